//! What the driver wants done, given to whom it concerns: orders to both sides and writes of the record, each as a task
//! of its own, and what follows where one is not taken.

use std::future::Future;

use godwit_handover::{Cause, Decision, DriverEffect, OrderKey, RecordView, SideView, SourceReport};
use godwit_protocol::{Category, Fault, GaveUp, Order, Told};

use super::super::Unwritten;
use super::{Done, Drive};

impl Drive {
    /// Carries an effect out, unless that is being done already.
    pub(super) fn give(&mut self, effect: DriverEffect) {
        let key = OrderKey::of(&effect);
        match effect {
            // The controller has armed it; what stands there is read again.
            DriverEffect::ArmRecord => {}
            // The destination alone may write that; it does, and here it is read.
            DriverEffect::DecideRecord(Decision::Reverted) => {}
            DriverEffect::AdvanceRecord => {
                let (records, terms) = (self.parts.records.clone(), self.terms().clone());
                self.write(key, async move { records.advance(&terms).await });
            }
            DriverEffect::DecideRecord(Decision::Aborted) if self.may_begin() => {}
            DriverEffect::DecideRecord(Decision::Aborted) if self.may_prepare() => self.call_off(),
            DriverEffect::DecideRecord(Decision::Aborted) => {
                let (records, terms) = (self.parts.records.clone(), self.terms().clone());
                self.write(key, async move { records.abort(&terms).await });
            }
            DriverEffect::DecideRecord(decision @ (Decision::None | Decision::Committed)) => {
                tracing::error!(?decision, "a driver does not write this decision");
            }
            DriverEffect::Begin => self.begin(),
            DriverEffect::Prepare => match self.definition.clone() {
                Some(definition) => {
                    let order = Order::Prepare {
                        guest: self.kept.order.guest.clone(),
                        definition,
                        stream: self.kept.order.stream,
                        ticket: self.kept.order.ticket.clone(),
                    };
                    self.order_destination(key, order);
                }
                // The source gives the definition again, as often as it is asked.
                None => self.begin(),
            },
            DriverEffect::Perform(channel) => self.order_source(key, Order::Perform(channel)),
            DriverEffect::Ready => self.order_source(key, Order::Ready),
            DriverEffect::Finish(go) => self.order_destination(key, Order::Finish(go)),
            DriverEffect::Confirm => self.order_source(key, Order::Confirm),
            DriverEffect::AbortSource(cause) => self.order_source(key, Order::AbortSource(cause)),
            DriverEffect::AbortDestination(cause) => {
                self.order_destination(key, Order::AbortDestination(cause))
            }
            DriverEffect::Settle => self.order_source(key, Order::Settle),
            DriverEffect::TellStanding(standing) => {
                self.order_destination(key, Order::SourceStands(standing));
            }
            DriverEffect::ArbitrateSource(cause) => self.order_source(key, Order::ArbitrateSource(cause)),
            DriverEffect::ArbitrateDestination => self.order_destination(key, Order::ArbitrateDestination),
        }
    }

    pub(super) fn give_again(&mut self) {
        for effect in self.driver.next() {
            self.give(effect);
        }
    }

    /// Whether the source may yet begin, or has begun and not said so: that it knows nothing is no evidence then.
    pub(super) fn may_begin(&self) -> bool {
        *self.driver.source() == SideView::NoSuchMigration
            && (self.given.in_flight(OrderKey::Begin) || self.definition.is_some())
    }

    /// Whether the destination may yet prepare, or has prepared and not said so. One that is silent is not waited for:
    /// a process that nobody opens the channel to is given up there.
    pub(super) fn may_prepare(&self) -> bool {
        *self.driver.destination() == SideView::NoSuchMigration
            && self.given.open(OrderKey::Prepare)
            && self.silent_since.is_none()
    }

    /// Has a destination that may have prepared give up, or say that it never did.
    pub(super) fn call_off(&mut self) {
        if self.given.in_flight(OrderKey::Prepare) {
            return;
        }
        let cause = match self.driver.source() {
            SideView::Reported(SourceReport::Aborted(cause) | SourceReport::Lost(cause)) => *cause,
            SideView::Unheard | SideView::NoSuchMigration | SideView::Reported(_) => Cause::DriverSilent,
        };
        self.order_destination(OrderKey::AbortDestination, Order::AbortDestination(cause));
    }

    /// Begins once the destination has been heard: one that cannot be reached costs nothing then.
    pub(super) fn begin(&mut self) {
        if matches!(self.driver.destination(), SideView::Unheard) || self.giving_up {
            return;
        }
        let order = Order::Begin {
            max_downtime: self.kept.order.max_downtime,
            stream: self.kept.order.stream,
        };
        self.order_source(OrderKey::Begin, order);
    }

    pub(super) fn order_source(&mut self, key: OrderKey, order: Order) {
        let now = self.now();
        if !self.given.give(key, now) {
            return;
        }
        let (migrations, terms) = (self.parts.migrations.clone(), self.terms().clone());
        self.done
            .spawn(async move { Done::Order(key, true, migrations.order(&terms, order).await) });
    }

    pub(super) fn order_destination(&mut self, key: OrderKey, order: Order) {
        let now = self.now();
        let Some(client) = self.client.clone() else { return };
        // An older agent knows nothing of it: what would follow from it waits for a person there.
        if client.version() < order.since() || !self.given.give(key, now) {
            return;
        }
        let terms = self.terms().clone();
        self.done
            .spawn(async move { Done::Order(key, false, client.order(&terms, &order).await) });
    }

    pub(super) fn write(
        &mut self,
        key: OrderKey,
        written: impl Future<Output = Result<RecordView, Unwritten>> + Send + 'static,
    ) {
        let now = self.now();
        if self.given.writing() || !self.given.give(key, now) {
            return;
        }
        self.done.spawn(async move { Done::Written(key, written.await) });
    }

    pub(super) fn order_failed(&mut self, key: OrderKey, at_source: bool, fault: &Fault) {
        tracing::warn!(migration = self.terms().migration, ?key, at_source, %fault, "an order was not taken");
        // A refusal of what the reports have left behind means nothing.
        let still_wanted = self
            .driver
            .next()
            .iter()
            .any(|effect| OrderKey::of(effect) == key);
        let now = self.now();
        self.given.failed(key, now);
        if unread(&fault.reason) && !key.before_memory() {
            self.kept.view.blocked = Some(Told::new(fault.reason.clone(), fault.message.clone()));
            self.show();
        }
        if fault.category == Category::Unavailable {
            self.not_now = Some(fault.clone());
            return;
        }
        // It has answered: it has not prepared, and does not any more.
        let unknown = key == OrderKey::AbortDestination && fault.reason == "MigrationUnknown";
        if key == OrderKey::Prepare || unknown {
            self.given.void(OrderKey::Prepare);
        }
        if key.before_memory() && still_wanted {
            let cause = if at_source {
                Cause::HypervisorRefused
            } else {
                Cause::DestinationFailed
            };
            let told = Told::new(fault.reason.clone(), fault.message.clone());
            self.give_up(GaveUp { cause, told });
        }
    }
}

/// Whether that word says that a journal cannot be read: a person has to see to it.
pub(super) fn unread(reason: &str) -> bool {
    ["JournalNewer", "JournalDamaged"].contains(&reason)
}
