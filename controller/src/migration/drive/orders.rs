//! What the driver wants done, given to whom it concerns: orders to both sides and writes of the record, each as a task
//! of its own, and what follows from the answers.

use std::future::Future;

use godwit_crds::{Decision, GuestRecordSpec};
use godwit_handover::{
    self as handover, Cause, DriverEffect, DriverEvent, OrderKey as Key, SideView, SourceReport, Terms,
};
use godwit_protocol::{Category, Fault, Order, OrderAnswer, Side, definition};

use super::{Done, Drive};
use crate::migration::doubts::needs_a_person;
use crate::migration::failure;
use crate::migration::publish::Claim;
use crate::migration::sides::Role;
use crate::reason::MigrationReason as Reason;
use crate::record::{self, RecordError};

impl Drive {
    /// Carries an effect out, unless that is being done already.
    pub(super) fn give(&mut self, effect: DriverEffect) {
        if self.watching.is_some() {
            self.give_watching(&effect);
            return;
        }
        match effect {
            DriverEffect::ArmRecord => self.arm(),
            DriverEffect::AdvanceRecord => self.write(Key::Advance, record::advance),
            DriverEffect::DecideRecord(decision) => match decision {
                handover::Decision::Aborted if self.may_begin() => self.call_off(),
                handover::Decision::Aborted if self.may_prepare() => self.call_off_destination(),
                handover::Decision::Aborted => {
                    self.write(Key::Decide, |spec, terms| {
                        record::decide(spec, terms, Decision::Aborted)
                    });
                }
                handover::Decision::Reverted => {
                    self.write(Key::Decide, |spec, terms| {
                        record::decide(spec, terms, Decision::Reverted)
                    });
                }
                handover::Decision::None | handover::Decision::Committed => {
                    tracing::error!(?decision, "a driver does not write this decision");
                }
            },
            DriverEffect::Ready => self.order(Key::Ready, Role::Source, Order::Ready),
            DriverEffect::Finish(go) => self.order(Key::Finish, Role::Destination, Order::Finish(go)),
            DriverEffect::Begin => self.begin(),
            DriverEffect::Prepare => match self.definition.clone() {
                Some(definition) => {
                    let Some(record) = &self.record else { return };
                    // Peer to peer the destination does this by itself.
                    let recorded = &record.spec.guest.definition;
                    if let Err(fault) = definition::check(&self.terms.source, &definition, recorded) {
                        return self.order_failed(Key::Prepare, Role::Source, &fault);
                    }
                    let guest = self.guest.clone();
                    self.order(
                        Key::Prepare,
                        Role::Destination,
                        Order::Prepare {
                            guest,
                            definition,
                            stream: self.stream,
                            ticket: Vec::new(),
                        },
                    );
                }
                // The source gives the definition again, as often as it is asked.
                None => self.begin(),
            },
            DriverEffect::Perform(channel) => self.order(Key::Perform, Role::Source, Order::Perform(channel)),
            DriverEffect::Confirm => self.order(Key::Confirm, Role::Source, Order::Confirm),
            DriverEffect::AbortSource(cause) => {
                self.order(Key::AbortSource, Role::Source, Order::AbortSource(cause));
            }
            DriverEffect::AbortDestination(cause) => {
                self.order(
                    Key::AbortDestination,
                    Role::Destination,
                    Order::AbortDestination(cause),
                );
            }
            DriverEffect::Settle => self.order(Key::Settle, Role::Source, Order::Settle),
            DriverEffect::TellStanding(standing) => {
                self.order(
                    Key::TellStanding,
                    Role::Destination,
                    Order::SourceStands(standing),
                );
            }
            DriverEffect::ArbitrateSource(cause) => {
                self.order(Key::ArbitrateSource, Role::Source, Order::ArbitrateSource(cause));
            }
            DriverEffect::ArbitrateDestination => {
                self.order(
                    Key::ArbitrateDestination,
                    Role::Destination,
                    Order::ArbitrateDestination,
                );
            }
        }
    }

    pub(super) fn give_again(&mut self) {
        for effect in self.driver.next() {
            self.give(effect);
        }
    }

    /// Whether the source may yet begin, or has begun and not said so. One that is gone for good begins nothing.
    pub(in crate::migration) fn may_begin(&self) -> bool {
        self.told_to_begin
            && *self.driver.source() == SideView::NoSuchMigration
            && !self.driver.source_fenced()
    }

    /// Has a source that may have begun give up, or say that it never began.
    pub(super) fn call_off(&mut self) {
        if !self.given.in_flight(Key::Begin) {
            let cause = if self.cancel {
                Cause::Cancelled
            } else {
                Cause::PathNotProven
            };
            self.order(Key::AbortSource, Role::Source, Order::AbortSource(cause));
        }
    }

    /// Whether the destination may yet prepare, or has prepared and not said so. One that is silent is not waited for:
    /// a process that nobody opens the channel to is given up there.
    pub(super) fn may_prepare(&self) -> bool {
        *self.driver.destination() == SideView::NoSuchMigration
            && self.given.open(Key::Prepare)
            && self.destination.silent_since.is_none()
    }

    /// Has a destination that may have prepared give up, or say that it never did.
    pub(super) fn call_off_destination(&mut self) {
        if self.given.in_flight(Key::Prepare) {
            return;
        }
        let cause = match self.driver.source() {
            SideView::Reported(SourceReport::Aborted(cause) | SourceReport::Lost(cause)) => *cause,
            SideView::Unheard | SideView::NoSuchMigration | SideView::Reported(_) => Cause::DriverSilent,
        };
        let order = Order::AbortDestination(cause);
        self.order(Key::AbortDestination, Role::Destination, order);
    }

    pub(super) fn begin(&mut self) {
        // A source that was begun by an earlier driver may have been told another limit.
        if self.source.last.side.is_none() {
            self.limit.get_or_insert(self.stream.bandwidth);
        }
        self.order(
            Key::Begin,
            Role::Source,
            Order::Begin {
                max_downtime: self.budget,
                stream: self.stream,
            },
        );
        self.told_to_begin |= self.given.in_flight(Key::Begin);
    }

    /// Tells a streaming source the limit that it may not know: the user has changed it, or this driver has taken
    /// the migration over and cannot tell what the source was told.
    pub(super) fn retune(&mut self) {
        let streaming = self.source.last.side == Some(Side::Source(SourceReport::Streaming));
        let asked = self.given.in_flight(Key::Retune);
        if streaming && !asked && self.limit != Some(self.stream.bandwidth) {
            let bandwidth = self.stream.bandwidth;
            self.told_limit = Some(bandwidth);
            self.order(Key::Retune, Role::Source, Order::Retune { bandwidth });
        }
    }

    /// Arms the record once both sides have been heard: a host that cannot be reached costs nothing then. Peer to peer
    /// whether the destination is reached is the source's to find out. And not before its status says that it has begun:
    /// until then another controller may end it.
    pub(in crate::migration) fn arm(&mut self) {
        let heard = !matches!(self.driver.source(), SideView::Unheard)
            && (self.watching.is_some() || !matches!(self.driver.destination(), SideView::Unheard));
        if self.claim == Claim::Ours && (heard || self.record.is_none()) {
            self.write(Key::Arm, record::arm);
        }
    }

    /// Whether the record may be armed for this migration, for all that is known: a write is on its way, or its answer
    /// was lost. Ended now, the migration would leave a record that nobody decides, and no other could begin.
    pub(super) fn may_be_armed(&self) -> bool {
        self.given.open(Key::Arm) && !self.armed()
    }

    /// Reads the record once a write that may have armed it is over. Armed, it is decided as any other.
    pub(super) fn look_whether_armed(&mut self) {
        let now = self.now();
        if self.given.writing() || !self.given.give(Key::Arm, now) {
            return;
        }
        let (cluster, terms) = (self.cluster.clone(), self.terms.clone());
        self.spawn(async move {
            let read = cluster.records.read(&terms.guest).await;
            let record = read
                .map_err(RecordError::from)
                .and_then(|record| record.ok_or(RecordError::Missing));
            Done::WhetherArmed(Box::new(record))
        });
    }

    pub(in crate::migration) fn order(&mut self, key: Key, role: Role, order: Order) {
        let Some(connection) = self.side(role).connection.clone() else {
            return;
        };
        let now = self.now();
        // An older agent knows nothing of it: what would follow from it waits for a person there.
        if connection.client.version() < order.since() || !self.given.give(key, now) {
            return;
        }
        tracing::debug!(
            migration = self.terms.migration,
            order = order.name(),
            ?role,
            "order"
        );
        let terms = self.terms.clone();
        self.spawn(async move { Done::Order(key, role, connection.client.order(&terms, &order).await) });
    }

    pub(in crate::migration) fn write(
        &mut self,
        key: Key,
        change: impl Fn(&GuestRecordSpec, &Terms) -> record::Change + Send + Sync + 'static,
    ) {
        let now = self.now();
        if self.given.writing() || !self.given.give(key, now) {
            return;
        }
        let (cluster, terms, known) = (self.cluster.clone(), self.terms.clone(), self.record.clone());
        self.spawn(async move {
            let guest = terms.guest.clone();
            Done::Record(
                key,
                Box::new(
                    cluster
                        .records
                        .change(known, &guest, |spec| change(spec, &terms))
                        .await,
                ),
            )
        });
    }

    pub(in crate::migration) fn spawn(&mut self, work: impl Future<Output = Done> + Send + 'static) {
        self.done.spawn(work);
    }

    pub(super) fn answered(&mut self, done: Done) {
        let now = self.now();
        match done {
            Done::Order(key, _, Ok(answer)) => {
                self.given.taken(key, now);
                if key == Key::Retune {
                    self.limit = self.told_limit;
                }
                if let OrderAnswer::Begun { definition } = answer {
                    self.definition = Some(definition);
                    self.give_again();
                }
            }
            Done::Order(key, role, Err(fault)) => self.order_failed(key, role, &fault),
            Done::Record(key, written) => match *written {
                Ok(record) => {
                    self.given.taken(key, now);
                    self.record_missing = false;
                    self.record_read(record);
                }
                Err(error) => self.write_failed(key, error),
            },
            Done::WhetherArmed(read) => {
                self.given.failed(Key::Arm, now);
                match *read {
                    Ok(record) => {
                        self.given.void(Key::Arm);
                        self.record_read(record);
                    }
                    Err(RecordError::Missing) => {
                        self.given.void(Key::Arm);
                        self.record_missing = true;
                    }
                    Err(error @ (RecordError::Api(_) | RecordError::Refused(_) | RecordError::Contended)) => {
                        tracing::debug!(migration = self.terms.migration, %error, "the record was not read");
                    }
                }
            }
        }
    }

    pub(super) fn order_failed(&mut self, key: Key, role: Role, fault: &Fault) {
        let host = role.host(&self.terms).to_owned();
        tracing::warn!(migration = self.terms.migration, ?key, host, %fault, "an order was not taken");
        // A refusal of what the reports have left behind means nothing.
        let still_wanted = self.driver.next().iter().any(|effect| Key::of(effect) == key);
        let now = self.now();
        self.given.failed(key, now);
        if let Some(failed) = needs_a_person(fault).filter(|_| !key.before_memory()) {
            self.blocked = Some(failed);
        }
        if fault.category == Category::Unavailable {
            self.not_now = Some(fault.clone());
            return;
        }
        if self.watching.is_some() {
            self.refused_watching(key, fault);
        }
        // It has answered, and has not begun; nor does it any more.
        let unknown = key == Key::AbortSource && fault.reason == "MigrationUnknown";
        if key == Key::Begin || (unknown && !self.given.in_flight(Key::Begin)) {
            self.told_to_begin = false;
        }
        let unknown = key == Key::AbortDestination && fault.reason == "MigrationUnknown";
        if key == Key::Prepare || unknown {
            self.given.void(Key::Prepare);
        }
        if key.before_memory() && still_wanted {
            let cause = match role {
                Role::Source => Cause::HypervisorRefused,
                Role::Destination => Cause::DestinationFailed,
            };
            self.clues.refused.get_or_insert_with(|| fault.clone());
            self.step(DriverEvent::OrderFailed(cause));
        }
    }

    pub(super) fn write_failed(&mut self, key: Key, error: RecordError) {
        tracing::warn!(migration = self.terms.migration, ?key, %error, "the record was not written");
        let now = self.now();
        self.given.failed(key, now);
        match error {
            RecordError::Missing => self.record_missing = true,
            RecordError::Refused(refused) if key == Key::Arm => {
                self.given.void(Key::Arm);
                let failed = failure::tell(Reason::AnotherMigrationActive, &format!("{refused}."));
                self.refuse(Cause::HypervisorRefused, failed);
            }
            // What stands there is read again and settles it; or the API server comes back.
            RecordError::Refused(_) | RecordError::Contended | RecordError::Api(_) => {}
        }
    }
}
