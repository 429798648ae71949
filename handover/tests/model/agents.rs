//! The two agents: the production machines, their journals, and what they have still to do.

use std::time::Duration;

use godwit_handover::{
    Destination, DestinationEffect, DestinationEntry, DestinationEvent, DestinationFacts, DestinationReport,
    GoEvidence, Source, SourceEffect, SourceEntry, SourceEvent, SourceFacts, SourceReport, StreamFact,
    Wanted,
};

use crate::driving::ANY_CAUSE;
use crate::world::{Broken, GATES, World};

/// What the source's agent has still to do, in order. An effect's answer is taken in with it: a crash between the
/// two leaves behind what a crash just after both does, because only the journal and the process outlive it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SourceTodo {
    Effect(SourceEffect),
    /// The second look of a pause: the hypervisor may have moved on since the first.
    LookAfterPause,
}

/// Whether a journal takes entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pen {
    Good,
    /// The next entry is answered by an error, and is on the disk all the same. After it nothing is.
    Slipping,
    Broken,
}

/// A host's agent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Agent<M, E, T> {
    pub up: bool,
    /// `None`: it knows no such migration, or is away.
    pub machine: Option<M>,
    pub journal: Vec<E>,
    pub pen: Pen,
    pub todo: Vec<T>,
}

pub type SourceAgent = Agent<Source, SourceEntry, SourceTodo>;
pub type DestinationAgent = Agent<Destination, DestinationEntry, DestinationEffect>;

impl<M, E, T> Agent<M, E, T> {
    pub fn new() -> Self {
        Self {
            up: true,
            machine: None,
            journal: vec![],
            pen: Pen::Good,
            todo: vec![],
        }
    }

    pub fn crash(&mut self) {
        self.up = false;
        self.machine = None;
        self.todo.clear();
    }

    /// Writes an entry; whether the agent is told that it is on the disk.
    pub fn write(&mut self, entry: E) -> bool {
        match self.pen {
            Pen::Good => {
                self.journal.push(entry);
                true
            }
            Pen::Slipping => {
                self.journal.push(entry);
                self.pen = Pen::Broken;
                false
            }
            Pen::Broken => false,
        }
    }
}

impl World {
    pub fn source_report(&self) -> Option<SourceReport> {
        let report = self.source_agent.machine.as_ref().map(Source::report)?;
        Some(match report {
            SourceReport::Aborting(_) => SourceReport::Aborting(ANY_CAUSE),
            SourceReport::Aborted(_) => SourceReport::Aborted(ANY_CAUSE),
            SourceReport::Deciding { dead, sealed, .. } => SourceReport::Deciding {
                cause: ANY_CAUSE,
                dead,
                sealed,
            },
            SourceReport::Lost(_) => SourceReport::Lost(ANY_CAUSE),
            SourceReport::Begun
            | SourceReport::Streaming
            | SourceReport::Stopped { .. }
            | SourceReport::Switching { .. }
            | SourceReport::InDoubt { .. }
            | SourceReport::Yielded
            | SourceReport::Blocked { .. }
            | SourceReport::GoSent(_)
            | SourceReport::Released
            | SourceReport::Died => report,
        })
    }

    pub fn destination_report(&self) -> Option<DestinationReport> {
        let report = self.destination_agent.machine.as_ref().map(Destination::report)?;
        Some(match report {
            DestinationReport::Reverting(_) => DestinationReport::Reverting(ANY_CAUSE),
            DestinationReport::Reverted(_) => DestinationReport::Reverted(ANY_CAUSE),
            DestinationReport::Lost(_) => DestinationReport::Lost(ANY_CAUSE),
            DestinationReport::Preparing
            | DestinationReport::Prepared(_)
            | DestinationReport::Receiving
            | DestinationReport::Loaded
            | DestinationReport::Blocked
            | DestinationReport::Deciding
            | DestinationReport::Starting
            | DestinationReport::Holding { .. } => report,
        })
    }

    pub fn feed_source(&mut self, event: SourceEvent) {
        let Some(machine) = &self.source_agent.machine else {
            return;
        };
        let (next, step) = machine.step(event);
        if next == *machine && step.effects.is_empty() {
            return;
        }
        if step.effects.contains(&SourceEffect::SwitchOver) && !self.path {
            self.breaks(Broken::PathNotProven);
        }
        let agent = &mut *self.source_agent;
        agent.machine = Some(next);
        agent
            .todo
            .extend(step.effects.into_iter().map(SourceTodo::Effect));
    }

    pub fn feed_destination(&mut self, event: DestinationEvent) {
        let Some(machine) = &self.destination_agent.machine else {
            return;
        };
        let (next, step) = machine.step(event);
        if next == *machine && step.effects.is_empty() {
            return;
        }
        let agent = &mut *self.destination_agent;
        agent.machine = Some(next);
        agent.todo.extend(step.effects);
    }

    pub fn begin_source(&mut self) {
        let wanted = if self.source.running {
            Wanted::Run
        } else {
            Wanted::StayStopped
        };
        if let Ok((machine, step)) = Source::begin(self.terms(), GATES, Duration::from_secs(1), wanted) {
            let agent = &mut *self.source_agent;
            agent.machine = Some(machine);
            agent
                .todo
                .extend(step.effects.into_iter().map(SourceTodo::Effect));
            self.feed_source(SourceEvent::PathProven(self.path));
        }
    }

    pub fn prepare_destination(&mut self) {
        if let Ok((machine, step)) = Destination::prepare(self.terms(), GATES) {
            let agent = &mut *self.destination_agent;
            agent.machine = Some(machine);
            agent.todo.extend(step.effects);
        }
    }

    pub fn restart_source_agent(&mut self) {
        let facts = if self.source.alive {
            SourceFacts::Alive {
                running: self.source.running,
                stream: self.source.stream,
            }
        } else {
            SourceFacts::Gone
        };
        let agent = &mut *self.source_agent;
        agent.up = true;
        if let Some((machine, step)) = Source::recover(&agent.journal, GATES, facts) {
            agent.machine = Some(machine);
            agent.todo = step.effects.into_iter().map(SourceTodo::Effect).collect();
            self.feed_source(SourceEvent::PathProven(self.path));
        }
    }

    pub fn restart_destination_agent(&mut self) {
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
        let agent = &mut *self.destination_agent;
        agent.up = true;
        if let Some((machine, step)) = Destination::recover(&agent.journal, GATES, facts) {
            agent.machine = Some(machine);
            agent.todo = step.effects;
        }
    }

    /// Whether the destination runs the guest on its own commitment, without a Go.
    pub fn destination_committed(&self) -> bool {
        self.destination_agent
            .journal
            .iter()
            .rev()
            .find_map(|entry| match entry {
                DestinationEntry::ContIssued(go) => Some(go.evidence == GoEvidence::Committed),
                DestinationEntry::Prepared { .. }
                | DestinationEntry::CommitIntent(_)
                | DestinationEntry::ContRefused
                | DestinationEntry::TakenOver(_)
                | DestinationEntry::RevertIntent { .. }
                | DestinationEntry::Reverted { .. } => None,
            })
            .unwrap_or(false)
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
