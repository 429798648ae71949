//! The world around the machines: two hypervisor processes that behave as the real one was seen to, two journals,
//! a record, a network that loses, repeats and reorders, and agents and a driver that crash.

use godwit_handover::{
    Cause, Channel, Decision, Destination, DestinationEffect, DestinationEntry, DestinationEvent,
    DestinationFacts, DestinationReport, Driver, DriverEffect, DriverEvent, Gates, Pass, RecordView, Source,
    SourceEffect, SourceEntry, SourceEvent, SourceFacts, SourceReport, StreamFact, Terms, Token, Wanted,
};
use std::collections::BTreeSet;
use std::time::Duration;

pub const GATES: Gates = Gates {
    seal: true,
    hold_before_switchover: true,
    keep_destination_paused: true,
    inactivate_disks: true,
};

pub fn terms() -> Terms {
    Terms {
        migration: "m".into(),
        guest: String::new(),
        epoch: 1,
        source: "s".into(),
        destination: "d".into(),
    }
}

pub fn channel() -> Channel {
    Channel {
        uri: String::new(),
        token: Token(Vec::new()),
    }
}

/// A pass after which the rest fits any budget.
pub const SMALL_PASS: Pass = Pass {
    iteration: 2,
    remaining_bytes: 0,
    bytes_per_second: 1,
};

/// The source's hypervisor process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceProcess {
    pub alive: bool,
    pub running: bool,
    pub stream: StreamFact,
    /// What the hypervisor noted when it stopped the guest for its switchover: it restarts a guest that ran.
    pub noted_running: bool,
    /// The stream has failed and the hypervisor has not yet acted on it.
    pub restart_due: bool,
    /// The guest powered off or panicked: nobody may let it run again.
    pub ended: bool,
    pub destroyed_by_us: bool,
}

/// The destination's hypervisor process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DestinationProcess {
    pub launches: u8,
    pub alive: bool,
    pub running: bool,
    pub connected: bool,
    pub loaded: bool,
    pub failed: bool,
}

/// What the source's agent has still to do, in order. An effect's answer is taken in with it: a crash between the
/// two leaves behind what a crash just after both does, because only the journal and the process outlive it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SourceTodo {
    Effect(SourceEffect),
    /// The second look of a pause: the hypervisor may have moved on since the first.
    LookAfterPause,
}

/// An order that was sent; once sent it may arrive any number of times, at any time, or never.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Order {
    Begin,
    Prepare,
    Perform,
    Ready,
    Finish(u8),
    Confirm,
    AbortSource(Cause),
    AbortDestination(Cause),
    Settle,
}

/// A host's agent: `None` while it is crashed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Agent<M, E, T> {
    pub up: bool,
    pub machine: Option<M>,
    pub journal: Vec<E>,
    pub journal_broken: bool,
    pub todo: Vec<T>,
}

impl<M, E, T> Agent<M, E, T> {
    fn new() -> Self {
        Self {
            up: true,
            machine: None,
            journal: vec![],
            journal_broken: false,
            todo: vec![],
        }
    }

    pub fn crash(&mut self) {
        self.up = false;
        self.machine = None;
        self.todo.clear();
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub source: SourceProcess,
    pub destination: DestinationProcess,
    pub source_agent: Agent<Source, SourceEntry, SourceTodo>,
    pub destination_agent: Agent<Destination, DestinationEntry, DestinationEffect>,
    pub driver: Driver,
    pub orders: BTreeSet<Order>,
    pub gos: Vec<godwit_handover::Go>,
    pub record: RecordView,
    pub cancelled: bool,
    pub faults_left: u8,
    /// The destination has executed an instruction.
    pub executed: bool,
    /// The source ran after the destination had loaded the guest: the destination's copy is stale.
    pub stale: bool,
    /// A rule that was seen to be broken in a step, where the state alone would not show it.
    pub broken: Option<&'static str>,
}

impl World {
    pub fn new(faults: u8) -> Self {
        let mut world = Self {
            source: SourceProcess {
                alive: true,
                running: true,
                stream: StreamFact::None,
                noted_running: false,
                restart_due: false,
                ended: false,
                destroyed_by_us: false,
            },
            destination: DestinationProcess::default(),
            source_agent: Agent::new(),
            destination_agent: Agent::new(),
            driver: Driver::new(terms()),
            orders: BTreeSet::new(),
            gos: vec![],
            record: RecordView {
                holder: "s".into(),
                epoch: 1,
                migration: None,
                decision: Decision::None,
            },
            cancelled: false,
            faults_left: faults,
            executed: false,
            stale: false,
            broken: None,
        };
        world.feed_driver(DriverEvent::Record(world.record.clone()));
        world
    }

    pub fn run_source(&mut self) {
        if self.source.alive {
            if self.source.ended {
                self.broken = Some("a guest that had ended was let run at the source");
            }
            self.source.running = true;
            self.source.restart_due = false;
            if self.destination.loaded {
                self.stale = true;
            }
        }
    }

    pub fn run_destination(&mut self) {
        if self.source.ended {
            // The real one refuses to run a guest that arrived shut down.
            return;
        }
        if self.destination.alive && self.destination.loaded {
            self.destination.running = true;
            self.executed = true;
        }
    }

    /// A late or early break of the stream, as seen from the source.
    pub fn fail_source_stream(&mut self) {
        let stream = self.source.stream;
        self.source.stream = StreamFact::Failed;
        self.source.restart_due = matches!(stream, StreamFact::BeforeSwitchover | StreamFact::SwitchingOver)
            && self.source.noted_running;
    }

    pub fn fail_destination_stream(&mut self) {
        if self.destination.alive && !self.destination.loaded && self.destination.connected {
            self.destination.failed = true;
        }
    }

    pub fn feed_source(&mut self, event: SourceEvent) {
        if let Some(machine) = &self.source_agent.machine {
            let (next, step) = machine.step(event);
            self.source_agent.machine = Some(next);
            self.source_agent
                .todo
                .extend(step.effects.into_iter().map(SourceTodo::Effect));
        }
    }

    pub fn feed_destination(&mut self, event: DestinationEvent) {
        if let Some(machine) = &self.destination_agent.machine {
            let (next, step) = machine.step(event);
            self.destination_agent.machine = Some(next);
            self.destination_agent.todo.extend(step.effects);
        }
    }

    /// The driver takes a report in and acts on it at once: what it knows of the other side may be old all the
    /// same.
    pub fn feed_driver(&mut self, event: DriverEvent) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let (next, step) = self.driver.step(event);
            self.driver = next;
            for effect in step.effects {
                events.extend(self.drive(effect));
            }
        }
    }

    /// Carries a driver's effect out; gives its answer.
    pub fn drive(&mut self, effect: DriverEffect) -> Option<DriverEvent> {
        let order = match effect {
            DriverEffect::ArmRecord => {
                if self.record.migration.is_none() {
                    self.record.migration = Some(terms().migration);
                }
                return Some(DriverEvent::Record(self.record.clone()));
            }
            DriverEffect::AdvanceRecord => {
                if self.record.decision == Decision::None {
                    self.record.decision = Decision::Committed;
                    self.record.holder = terms().destination;
                    self.record.epoch += 1;
                }
                return Some(DriverEvent::Record(self.record.clone()));
            }
            DriverEffect::DecideRecord(decision) => {
                if self.record.decision == Decision::None {
                    self.record.decision = decision;
                }
                return Some(DriverEvent::Record(self.record.clone()));
            }
            DriverEffect::Begin => Order::Begin,
            DriverEffect::Prepare => Order::Prepare,
            DriverEffect::Perform(_) => Order::Perform,
            DriverEffect::Ready => Order::Ready,
            DriverEffect::Confirm => Order::Confirm,
            DriverEffect::AbortSource(cause) => Order::AbortSource(cause),
            DriverEffect::AbortDestination(cause) => Order::AbortDestination(cause),
            DriverEffect::Settle => Order::Settle,
            DriverEffect::Finish(go) => {
                let index = self.gos.iter().position(|g| *g == go).unwrap_or_else(|| {
                    self.gos.push(go);
                    self.gos.len() - 1
                });
                Order::Finish(u8::try_from(index).unwrap_or(u8::MAX))
            }
        };
        self.orders.insert(order);
        None
    }

    pub fn source_report(&self) -> Option<SourceReport> {
        self.source_agent.machine.as_ref().map(Source::report)
    }

    pub fn destination_report(&self) -> Option<DestinationReport> {
        self.destination_agent.machine.as_ref().map(Destination::report)
    }

    pub fn deliver(&mut self, order: &Order) {
        match order {
            Order::Begin if self.source_agent.machine.is_none() => {
                if let Ok((machine, step)) =
                    Source::begin(terms(), GATES, Duration::from_secs(1), self.wanted())
                {
                    self.source_agent.machine = Some(machine);
                    self.source_agent
                        .todo
                        .extend(step.effects.into_iter().map(SourceTodo::Effect));
                    self.feed_source(SourceEvent::PathProven(true));
                }
            }
            Order::Begin => self.feed_source(SourceEvent::Begin(terms())),
            Order::Prepare if self.destination_agent.machine.is_none() => {
                if let Ok((machine, step)) = Destination::prepare(terms(), GATES) {
                    self.destination_agent.machine = Some(machine);
                    self.destination_agent.todo.extend(step.effects);
                }
            }
            Order::Prepare => self.feed_destination(DestinationEvent::Prepare(terms())),
            Order::Perform => self.feed_source(SourceEvent::Perform(channel())),
            Order::Ready => self.feed_source(SourceEvent::Ready),
            Order::Finish(index) => {
                if let Some(go) = self.gos.get(usize::from(*index)).copied() {
                    self.feed_destination(DestinationEvent::Finish(go));
                }
            }
            Order::Confirm => self.feed_source(SourceEvent::Confirm),
            Order::AbortSource(cause) => self.feed_source(SourceEvent::Abort(*cause)),
            Order::AbortDestination(cause) => self.feed_destination(DestinationEvent::Abort(*cause)),
            Order::Settle => self.feed_source(SourceEvent::Settle),
        }
    }

    fn wanted(&self) -> Wanted {
        if self.source.running {
            Wanted::Run
        } else {
            Wanted::StayStopped
        }
    }

    pub fn restart_source_agent(&mut self) {
        self.source_agent.up = true;
        let facts = if self.source.alive {
            SourceFacts::Alive {
                running: self.source.running,
                stream: self.source.stream,
            }
        } else {
            SourceFacts::Gone
        };
        if let Some((machine, step)) = Source::recover(&self.source_agent.journal, GATES, facts) {
            self.source_agent.machine = Some(machine);
            self.source_agent.todo = step.effects.into_iter().map(SourceTodo::Effect).collect();
            self.feed_source(SourceEvent::PathProven(true));
        }
    }

    pub fn restart_destination_agent(&mut self) {
        self.destination_agent.up = true;
        let d = &self.destination;
        let stream = match (d.loaded, d.failed, d.connected) {
            (true, _, _) => StreamFact::Completed,
            (_, true, _) => StreamFact::Failed,
            (_, _, true) => StreamFact::Active,
            (false, false, false) => StreamFact::None,
        };
        let facts = if d.alive {
            DestinationFacts::Alive {
                running: d.running,
                stream,
            }
        } else {
            DestinationFacts::Gone
        };
        if let Some((machine, step)) = Destination::recover(&self.destination_agent.journal, GATES, facts) {
            self.destination_agent.machine = Some(machine);
            self.destination_agent.todo = step.effects;
        }
    }

    /// Destroys the destination's process on the agent's wish; says so where that was the last valid image.
    pub fn destroy_destination(&mut self) {
        let d = &self.destination;
        let last_valid =
            d.alive && d.loaded && !self.stale && !self.source.alive && !self.source.destroyed_by_us;
        if last_valid || (d.alive && self.executed) {
            self.broken = Some("the destination destroyed the only valid image");
        }
        self.destination.alive = false;
        self.destination.running = false;
    }

    pub fn destroy_source(&mut self) {
        if self.source.alive && !self.executed && !(self.source.ended || self.destination_holds()) {
            self.broken = Some("the source destroyed the only valid image");
        }
        self.source.alive = false;
        self.source.running = false;
        self.source.destroyed_by_us = true;
    }

    /// Taken over stopped, or lost there after it may have run.
    pub fn destination_holds(&self) -> bool {
        self.destination_agent.journal.iter().any(|e| {
            matches!(
                e,
                DestinationEntry::TakenOver(_) | DestinationEntry::ContIssued(_)
            )
        })
    }
}
