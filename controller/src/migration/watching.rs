//! Peer to peer, seen from the controller: it arms the record, gives the source the order to drive, and watches.
//!
//! The driver runs in the source's agent; the controller's own copy of it is told the same reports, so that phases,
//! waiting and the outcome come from the same code in both flows, but its orders are not given. The destination is
//! heard directly where it can be, and else as the source's driver has heard it: that the controller does not reach it
//! is no failure.
//!
//! The controller writes what is proved into the record where the agents have not done so within a while. It never
//! decides on a silence: that the source will never begin is believed only where its driver has said so for good, or
//! where there is none.

use godwit_crds::Decision;
use godwit_handover::{
    self as handover, Cause, DriverEffect, DriverEvent, OrderKey as Key, SideView, SourceReport, Terms,
};
use godwit_protocol::clock::Offset;
use godwit_protocol::{Category, Drive as DriveOrder, Driving, Fault, Order, Update};
use jiff::Timestamp;
use std::time::Duration;
use tokio::time::Instant;

use super::book::Failed;
use super::downtime::{Instants, downtime};
use super::drive::{Done, Drive};
use super::failure;
use super::sides::Role;
use crate::record;

/// How long the agents have for writing into the record what is proved, before the controller does.
const AGENTS_FIRST: Duration = Duration::from_secs(3);

/// What is known of the driver in the source's agent.
#[derive(Default)]
pub(super) struct Watching {
    /// What it last told of itself.
    driving: Option<Driving>,
    /// The source has said that nobody drives, or has refused to; nobody ever will.
    undriven: bool,
    /// Since when the record is to be written.
    write_due: Option<(Key, Instant)>,
}

impl Drive {
    fn driving(&self) -> Option<&Driving> {
        self.watching
            .as_ref()
            .and_then(|watching| watching.driving.as_ref())
    }

    /// Takes in what the source's driver tells of itself; comes before what the source itself reports.
    pub(super) fn hear_driver(&mut self, update: &Update) {
        let Some(driving) = update.driving.as_deref() else {
            return;
        };
        let news = self.driving() != Some(driving);
        if let Some(watching) = &mut self.watching {
            watching.driving = Some(driving.clone());
        }
        if !news {
            return;
        }
        // The order has arrived; from now on the source's driver judges what takes too long.
        self.start_by = None;
        self.blocked = self.told_by_the_driver();
        self.hear_destination_of_the_driver();
        if let Some(gave_up) = &driving.gave_up {
            match gave_up.cause {
                Cause::Cancelled => self.step(DriverEvent::Cancel),
                cause @ (Cause::DestinationFailed
                | Cause::DestinationDied
                | Cause::SourceDied
                | Cause::StreamFailed
                | Cause::DriverSilent
                | Cause::PathNotProven
                | Cause::GuestStopped
                | Cause::JournalFailed
                | Cause::HypervisorRefused
                | Cause::Reverted) => self.refuse(cause, failure::told(&gave_up.told)),
            }
        }
    }

    /// What the source's driver says that it cannot go on without.
    pub(super) fn told_by_the_driver(&self) -> Option<Failed> {
        self.driving()?.blocked.as_ref().map(failure::told)
    }

    /// The destination as the source's driver has heard it, where it is not heard directly.
    pub(super) fn hear_destination_of_the_driver(&mut self) {
        if self.destination.connection.is_some() {
            return;
        }
        let Some(side) = self.driving().and_then(|driving| driving.destination.clone()) else {
            return;
        };
        self.destination.last = Update {
            reason: side.failure.reason,
            detail: side.failure.message,
            resumed_at_micros: side.resumed_at_micros,
            ..Update::default()
        };
        self.step(DriverEvent::Destination(side.report));
    }

    /// Enters the phases, as the source's driver came to them where it tells so.
    pub(super) fn enter_phases(&mut self) {
        if self.watching.is_none() {
            return;
        }
        let phases = self
            .driving()
            .map(|driving| driving.phases.clone())
            .unwrap_or_default();
        for (phase, micros) in phases {
            if let Ok(at) = Timestamp::from_microsecond(micros) {
                self.book.enter(phase, at);
            }
        }
        if matches!(self.driver.source(), SideView::Reported(_)) {
            self.book.enter(self.driver.phase(), Timestamp::now());
        }
    }

    /// Carries out the few effects that are the controller's, peer to peer.
    pub(super) fn give_watching(&mut self, effect: &DriverEffect) {
        match effect {
            DriverEffect::ArmRecord => self.arm(),
            DriverEffect::Begin => self.order_drive(),
            DriverEffect::AdvanceRecord => {
                if self.write_is_due(Key::Advance) {
                    self.write(Key::Advance, record::advance);
                }
            }
            DriverEffect::DecideRecord(handover::Decision::Aborted) => {
                if self.source_never_will() && self.write_is_due(Key::Decide) {
                    self.write(Key::Decide, |spec, terms| {
                        record::decide(spec, terms, Decision::Aborted)
                    });
                }
            }
            DriverEffect::DecideRecord(handover::Decision::Reverted) => {
                if self.write_is_due(Key::Decide) {
                    self.write(Key::Decide, |spec, terms| {
                        record::decide(spec, terms, Decision::Reverted)
                    });
                }
            }
            DriverEffect::DecideRecord(handover::Decision::None | handover::Decision::Committed)
            | DriverEffect::Prepare
            | DriverEffect::Perform(_)
            | DriverEffect::Ready
            | DriverEffect::Finish(_)
            | DriverEffect::Confirm
            | DriverEffect::AbortSource(_)
            | DriverEffect::AbortDestination(_)
            | DriverEffect::TellStanding(_)
            | DriverEffect::ArbitrateSource(_)
            | DriverEffect::ArbitrateDestination
            | DriverEffect::Settle => {}
        }
    }

    /// Gives the one order: the source is to drive.
    fn order_drive(&mut self) {
        let now = self.now();
        // An order that is under way may still make a driver: what nobody drives is judged by its answer.
        if self.unwanted() {
            return;
        }
        let Some(connection) = self.source.connection.clone() else {
            return;
        };
        if !self.given.give(Key::Begin, now) {
            return;
        }
        let (cluster, terms) = (self.cluster.clone(), self.terms.clone());
        let (guest, max_downtime, stream) = (self.guest.clone(), self.budget, self.stream);
        self.limit.get_or_insert(self.stream.bandwidth);
        self.spawn(async move {
            let ordered = async {
                let endpoint = cluster
                    .endpoint(&terms.destination)
                    .ok_or_else(|| no_such_host(&terms))?;
                let order = Order::Drive(Box::new(DriveOrder {
                    guest,
                    endpoint,
                    max_downtime,
                    stream,
                    silence: cluster.peer_silence,
                    ticket: cluster.tickets.sign(&terms).await?,
                }));
                connection.client.order(&terms, &order).await
            };
            Done::Order(Key::Begin, Role::Source, ordered.await)
        });
    }

    /// Whether the migration is not to begin any more.
    fn unwanted(&self) -> bool {
        self.cancel || self.clues.own.is_some() || self.clues.refused.is_some()
    }

    /// Whether it is proved that the source keeps the guest and will never begin to send it, or is gone for good.
    fn source_never_will(&self) -> bool {
        if self.driver.source_fenced() {
            return true;
        }
        match self.driver.source() {
            SideView::Reported(SourceReport::Aborted(_) | SourceReport::Lost(_)) => true,
            SideView::NoSuchMigration => self.watching.as_ref().is_some_and(|watching| {
                watching.undriven
                    || watching
                        .driving
                        .as_ref()
                        .is_some_and(|driving| driving.gave_up.is_some())
            }),
            SideView::Unheard
            | SideView::Reported(
                SourceReport::Begun
                | SourceReport::Streaming
                | SourceReport::Stopped { .. }
                | SourceReport::Switching { .. }
                | SourceReport::InDoubt { .. }
                | SourceReport::Deciding { .. }
                | SourceReport::Yielded
                | SourceReport::Blocked { .. }
                | SourceReport::GoSent(_)
                | SourceReport::Released
                | SourceReport::Aborting(_)
                | SourceReport::Died,
            ) => false,
        }
    }

    /// Whether the agents have had their time for this write.
    fn write_is_due(&mut self, key: Key) -> bool {
        let now = Instant::now();
        let Some(watching) = &mut self.watching else {
            return false;
        };
        match watching.write_due {
            Some((due, since)) if due == key => now.duration_since(since) >= AGENTS_FIRST,
            Some(_) | None => {
                watching.write_due = Some((key, now));
                false
            }
        }
    }

    /// What time alone brings, peer to peer.
    pub(super) fn look_watching(&mut self) {
        let gave_up = self
            .driving()
            .is_some_and(|driving| driving.gave_up.is_some() || driving.ended_at_micros.is_some());
        // Whoever drives there is to stop; if nobody does, that is what the order is answered with.
        if self.unwanted() && self.armed() && !gave_up && !self.undriven() && !self.driver.too_late() {
            self.order(
                Key::AbortSource,
                Role::Source,
                Order::AbortSource(Cause::Cancelled),
            );
        }
        // A destination of which no driver has ever ordered anything knows nothing of the migration.
        if self.undriven()
            && *self.driver.source() == SideView::NoSuchMigration
            && *self.driver.destination() == SideView::Unheard
        {
            self.step(DriverEvent::Destination(None));
        }
    }

    fn undriven(&self) -> bool {
        self.watching.as_ref().is_some_and(|watching| watching.undriven)
    }

    /// What the refusal of an order says about who drives.
    pub(super) fn refused_watching(&mut self, key: Key, fault: &Fault) {
        let nobody = match key {
            // It was answered, so it was not taken, and it will not be given again.
            Key::Begin => fault.category != Category::Unavailable,
            Key::AbortSource => fault.reason == "MigrationUnknown" && !self.given.in_flight(Key::Begin),
            Key::Arm
            | Key::Advance
            | Key::Decide
            | Key::Prepare
            | Key::Perform
            | Key::Ready
            | Key::Finish
            | Key::Confirm
            | Key::AbortDestination
            | Key::Settle
            | Key::TellStanding
            | Key::ArbitrateSource
            | Key::ArbitrateDestination
            | Key::Retune => false,
        };
        let known = self.driving().is_some() || matches!(self.driver.source(), SideView::Reported(_));
        if nobody
            && !known
            && let Some(watching) = &mut self.watching
        {
            watching.undriven = true;
        }
    }

    /// Enters the downtime by what the source's driver has measured: it alone asks the destination for its clock.
    pub(super) fn look_at_times_of_the_driver(&mut self) {
        let side = self.driving().and_then(|driving| driving.destination.as_ref());
        let (Some(stopped_micros), Some((resumed_micros, destination))) = (
            self.source.last.stopped_at_micros,
            side.and_then(|side| Some((side.resumed_at_micros?, side.clock?))),
        ) else {
            return;
        };
        let source = Offset {
            micros: 0,
            error_micros: 0,
        };
        let measured = downtime(
            Instants {
                stopped_micros,
                source,
                resumed_micros,
                destination,
            },
            self.source.last.hypervisor_downtime_millis,
            self.sealed,
        );
        self.book.downtime(measured);
    }

    /// The last phase has ended when the source's driver says so.
    pub(super) fn end_watching(&mut self) {
        self.enter_phases();
        let ended = self.driving().and_then(|driving| driving.ended_at_micros);
        if let Some(at) = ended.and_then(|micros| Timestamp::from_microsecond(micros).ok()) {
            self.book.close(at);
        }
    }
}

fn no_such_host(terms: &Terms) -> Fault {
    Fault::new(
        Category::Unavailable,
        "HostNotFound",
        format!("There is no VirtualMachineHost {} any more", terms.destination),
    )
}
