//! The drivers, their orders on the network, and what they write into the record.

use std::collections::BTreeSet;

use godwit_handover::{
    Cause, Decision, DestinationEffect, DestinationEvent, DestinationReport, Driver, DriverEffect,
    DriverEvent, Go, Outcome, RecordView, SideView, SourceEffect, SourceEvent, Stand, Standing,
};

use crate::agents::SourceTodo;
use crate::record::{Manner, Record, Wish};
use crate::shared::Shared;
use crate::world::World;

/// Who drives the phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flow {
    /// The controller: it may be replaced, and two may lead at once. It crashes apart from the agents.
    ControllerDrives,
    /// The source's agent: what kills the one kills the other, and with it every order to the source. The driver
    /// comes back with the agent, from the order that was kept on disk; the controller armed the record before it
    /// gave it, and the destination alone writes that its copy is gone.
    SourceDrives,
}

/// A driver, and the record as it last read or wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Seat {
    pub driver: Shared<Driver>,
    pub known: Option<Shared<Record>>,
    /// A write was sent and not answered: what the record says is not known, and nobody ends before it is.
    pub unanswered: bool,
}

/// Why somebody gave up is for people and decides nothing: orders and reports carry one cause for all.
pub const ANY_CAUSE: Cause = Cause::Cancelled;

/// An order that was sent; once sent it may arrive any number of times, at any time, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Order {
    Begin,
    Prepare,
    Perform,
    Ready,
    Finish(u8),
    Confirm,
    AbortSource,
    AbortDestination,
    Settle,
    Standing(Standing),
    ArbitrateSource,
    ArbitrateDestination,
}

impl Order {
    pub fn is_for_source(self) -> bool {
        match self {
            Order::Prepare
            | Order::Finish(_)
            | Order::AbortDestination
            | Order::Standing(_)
            | Order::ArbitrateDestination => false,
            Order::Begin
            | Order::Perform
            | Order::Ready
            | Order::Confirm
            | Order::AbortSource
            | Order::ArbitrateSource
            | Order::Settle => true,
        }
    }
}

/// What was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Network {
    pub orders: BTreeSet<Order>,
    pub gos: Vec<Go>,
}

impl Seat {
    /// What the driver wants to write into the record. It goes on wanting until it knows that it is written.
    pub fn wish(&self, flow: Flow) -> Option<Wish> {
        let wish = self.driver.next().into_iter().find_map(|effect| match effect {
            DriverEffect::ArmRecord => Some(Wish::Arm),
            DriverEffect::AdvanceRecord => Some(Wish::Advance),
            DriverEffect::DecideRecord(decision) => Some(Wish::Decide(decision)),
            DriverEffect::Begin
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
            | DriverEffect::Settle => None,
        })?;
        let others = matches!(wish, Wish::Arm | Wish::Decide(Decision::Reverted));
        (flow == Flow::ControllerDrives || !others).then_some(wish)
    }

    pub fn outcome(&self) -> Option<Outcome> {
        match self.driver.stand() {
            Stand::Ended(outcome) if !self.unanswered => Some(outcome),
            Stand::Ended(_) | Stand::Waiting { .. } => None,
        }
    }

    pub fn ended(&self) -> bool {
        self.outcome().is_some()
    }

    /// Whether this report is news.
    pub fn unknown_source(&self, report: Option<godwit_handover::SourceReport>) -> bool {
        match (self.driver.source(), report) {
            (SideView::Reported(known), Some(report)) => *known != report,
            (SideView::NoSuchMigration, None) => false,
            (SideView::Unheard | SideView::NoSuchMigration | SideView::Reported(_), _) => true,
        }
    }

    pub fn unknown_destination(&self, report: Option<&DestinationReport>) -> bool {
        match (self.driver.destination(), report) {
            (SideView::Reported(known), Some(report)) => known != report,
            (SideView::NoSuchMigration, None) => false,
            (SideView::Unheard | SideView::NoSuchMigration | SideView::Reported(_), _) => true,
        }
    }
}

impl World {
    /// A driver that comes to be now, and the version of the record that it reads first.
    pub fn new_driver(&mut self, record: Option<Shared<Record>>) {
        self.drivers.push(Seat {
            driver: Shared::new(Driver::new(self.terms())),
            known: None,
            unanswered: false,
        });
        let which = self.drivers.len() - 1;
        if self.cancelled {
            self.feed_driver(which, DriverEvent::Cancel);
        }
        match record {
            Some(record) => self.tell_record(which, record),
            None => self.read_record(which),
        }
    }

    pub fn read_record(&mut self, which: usize) {
        let record = self.record.clone();
        self.tell_record(which, record);
    }

    /// The driver learns what the record says.
    pub fn tell_record(&mut self, which: usize, record: Shared<Record>) {
        let view = record.view();
        let Some(seat) = self.drivers.get_mut(which) else {
            return;
        };
        seat.known = Some(record);
        seat.unanswered = false;
        self.feed_driver(which, DriverEvent::Record(view));
    }

    /// What a driver believes after a write of which it heard nothing.
    pub fn tell_view(&mut self, which: usize, view: RecordView) {
        self.feed_driver(which, DriverEvent::Record(view));
    }

    /// The driver takes an event in, and its orders are on their way at once: what it knows of the sides may be old
    /// all the same.
    pub fn feed_driver(&mut self, which: usize, event: DriverEvent) {
        let Some(seat) = self.drivers.get_mut(which) else {
            return;
        };
        let (next, step) = seat.driver.step(event);
        if next != *seat.driver {
            seat.driver = Shared::new(next);
        }
        for effect in step.effects {
            self.send(effect);
        }
    }

    /// A driver has not heard a side for too long; its orders are on their way when it hears of it again.
    pub fn unheard(&mut self, which: usize, silent: fn(bool) -> DriverEvent) {
        self.feed_driver(which, silent(true));
        self.feed_driver(which, silent(false));
    }

    pub fn all_unheard(&mut self, silent: fn(bool) -> DriverEvent) {
        for which in 0..self.drivers.len() {
            self.unheard(which, silent);
        }
    }

    /// Sends an order. Writes of the record are made apart ([`Seat::wish`]).
    pub fn send(&mut self, effect: DriverEffect) {
        let order = match effect {
            DriverEffect::ArmRecord | DriverEffect::AdvanceRecord | DriverEffect::DecideRecord(_) => return,
            DriverEffect::Begin => Order::Begin,
            DriverEffect::Prepare => Order::Prepare,
            DriverEffect::Perform(_) => Order::Perform,
            DriverEffect::Ready => Order::Ready,
            DriverEffect::Confirm => Order::Confirm,
            DriverEffect::AbortSource(_) => Order::AbortSource,
            DriverEffect::AbortDestination(_) => Order::AbortDestination,
            DriverEffect::Settle => Order::Settle,
            DriverEffect::TellStanding(standing) => Order::Standing(standing),
            DriverEffect::ArbitrateSource(_) => Order::ArbitrateSource,
            DriverEffect::ArbitrateDestination => Order::ArbitrateDestination,
            DriverEffect::Finish(go) => {
                let known = self.network.gos.iter().position(|g| *g == go);
                let index = known.unwrap_or_else(|| {
                    self.network.gos.push(go);
                    self.network.gos.len() - 1
                });
                Order::Finish(u8::try_from(index).unwrap_or(u8::MAX))
            }
        };
        if !self.network.orders.contains(&order) {
            self.network.orders.insert(order);
        }
    }

    /// A driver's write arrives, and the driver hears what became of it.
    pub fn driver_writes(&mut self, flow: Flow, which: usize, manner: Manner, answered: bool) {
        let Some(seat) = self.drivers.get(which).cloned() else {
            return;
        };
        let Some(wish) = seat.wish(flow) else { return };
        let done = self.write_record(wish, manner, seat.known.as_ref());
        if done && answered {
            self.read_record(which);
        } else if !answered && let Some(seat) = self.drivers.get_mut(which) {
            seat.unanswered = true;
        }
    }

    /// What the destination's agent has to write by itself.
    pub fn destinations_wish(&self) -> Option<Wish> {
        match self.destination_report()? {
            DestinationReport::Holding { .. } | DestinationReport::Lost(_) => Some(Wish::Advance),
            DestinationReport::Reverted(_) => Some(Wish::Decide(Decision::Reverted)),
            DestinationReport::Preparing
            | DestinationReport::Prepared(_)
            | DestinationReport::Receiving
            | DestinationReport::Loaded
            | DestinationReport::Blocked
            | DestinationReport::Deciding
            | DestinationReport::Starting
            | DestinationReport::Reverting(_) => None,
        }
    }

    /// An order arrives at an agent that is there.
    pub fn deliver(&mut self, order: Order) {
        match order {
            Order::Begin if self.source_agent.machine.is_none() => self.begin_source(),
            Order::Begin => self.feed_source(SourceEvent::Begin(self.terms())),
            Order::Prepare if self.destination_agent.machine.is_none() => self.prepare_destination(),
            Order::Prepare => self.feed_destination(DestinationEvent::Prepare(self.terms())),
            Order::Perform => self.feed_source(SourceEvent::Perform(crate::world::channel())),
            Order::Ready => self.feed_source(SourceEvent::Ready),
            Order::Finish(index) => {
                if let Some(go) = self.network.gos.get(usize::from(index)).copied() {
                    self.feed_destination(DestinationEvent::Finish(go));
                }
            }
            Order::Confirm => self.feed_source(SourceEvent::Confirm),
            Order::AbortSource => self.feed_source(SourceEvent::Abort(ANY_CAUSE)),
            Order::AbortDestination => self.feed_destination(DestinationEvent::Abort(ANY_CAUSE)),
            Order::Settle => self.feed_source(SourceEvent::Settle),
            Order::Standing(standing) => self.feed_destination(DestinationEvent::SourceStands(standing)),
            Order::ArbitrateSource => self.feed_source(SourceEvent::Arbitrate(ANY_CAUSE)),
            Order::ArbitrateDestination => self.feed_destination(DestinationEvent::Arbitrate),
        }
    }

    /// The agent that drives is gone, and with it the driver and what it had said to its own side. That it had ended
    /// is on the disk.
    pub fn source_agent_goes(&mut self, flow: Flow) {
        if self.source_agent.todo.first() == Some(&SourceTodo::Effect(SourceEffect::DecideAborted)) {
            self.late_write(Decision::Aborted);
        }
        self.source_agent.crash();
        if flow == Flow::SourceDrives {
            self.drivers.retain(Seat::ended);
            if self.network.orders.iter().any(|order| order.is_for_source()) {
                self.network.orders.retain(|order| !order.is_for_source());
            }
        }
    }

    pub fn destination_agent_goes(&mut self) {
        if self.destination_agent.todo.first() == Some(&DestinationEffect::DecideCommitted) {
            self.late_write(Decision::Committed);
        }
        self.destination_agent.crash();
    }

    /// What was asked of the record goes on its way without whoever asked; it names the version that was read.
    fn late_write(&mut self, decision: Decision) {
        self.late = Some((decision, self.record.clone()));
    }

    pub fn source_agent_comes(&mut self, flow: Flow) {
        self.restart_source_agent();
        if flow == Flow::SourceDrives && self.drivers.is_empty() {
            self.new_driver(None);
        }
    }
}
