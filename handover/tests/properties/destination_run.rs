//! A destination's life: the production machine, its effects carried out in order, its journal, crashes between.

use std::collections::VecDeque;

use godwit_handover::{
    Destination, DestinationEffect, DestinationEntry, DestinationEvent, DestinationFacts, DestinationReport,
    Go, GoEvidence, Standing, StandingBecause, Wanted,
};
use proptest::prelude::*;

use crate::words;

/// What happens next in a destination's life.
#[derive(Clone, Debug)]
pub enum Move {
    /// The next effect is carried out; the number picks among its answers.
    Work(u8),
    /// What brings a migration forward from here.
    Forward,
    /// The driver is not heard, and what it told before then is known.
    Doubt,
    /// Something is ordered or seen, whether it fits or not.
    See(DestinationEvent),
    /// The agent dies and comes back; what it had still to do is forgotten.
    Restart(DestinationFacts),
}

/// What has happened.
#[derive(Clone, Debug)]
pub enum Line {
    Event(DestinationEvent),
    /// Ordered by the machine.
    Effect(DestinationEffect),
    Report(DestinationReport),
    /// The agent came back and read so many entries in its journal.
    Restart {
        written: usize,
    },
}

/// A life with everything that has happened in it, in order.
pub struct Run {
    pub machine: Destination,
    pub todo: VecDeque<DestinationEffect>,
    pub journal: Vec<DestinationEntry>,
    pub log: Vec<Line>,
    journal_broken: bool,
}

impl Run {
    pub fn new() -> Self {
        let (machine, step) =
            Destination::prepare(words::terms(), words::GATES).expect("the gates are there");
        let mut run = Self {
            machine,
            todo: VecDeque::new(),
            journal: vec![],
            log: vec![],
            journal_broken: false,
        };
        run.order(step.effects);
        run
    }

    fn order(&mut self, effects: Vec<DestinationEffect>) {
        for effect in effects {
            self.log.push(Line::Effect(effect.clone()));
            self.todo.push_back(effect);
        }
        self.log.push(Line::Report(self.machine.report()));
    }

    pub fn see(&mut self, event: DestinationEvent) {
        self.log.push(Line::Event(event.clone()));
        let (next, step) = self.machine.step(event);
        self.machine = next;
        self.order(step.effects);
    }

    pub fn take(&mut self, action: Move) {
        match action {
            Move::See(event) => self.see(event),
            Move::Forward if self.todo.is_empty() => self.forward(),
            Move::Forward => self.work(u8::MAX),
            Move::Doubt => {
                if self.machine.report() == DestinationReport::Loaded {
                    self.see(DestinationEvent::SourceStands(Standing {
                        because: StandingBecause::Sealed,
                        wanted: Wanted::Run,
                    }));
                    self.see(DestinationEvent::DriverSilent);
                }
            }
            Move::Work(choice) => self.work(choice),
            Move::Restart(facts) => self.restart(facts),
        }
    }

    fn forward(&mut self) {
        let event = match self.machine.report() {
            DestinationReport::Preparing | DestinationReport::Prepared(_) => DestinationEvent::Connected,
            DestinationReport::Receiving => DestinationEvent::Loaded,
            DestinationReport::Loaded
            | DestinationReport::Blocked
            | DestinationReport::Deciding
            | DestinationReport::Starting
            | DestinationReport::Holding { .. }
            | DestinationReport::Reverting(_)
            | DestinationReport::Reverted(_)
            | DestinationReport::Lost(_) => DestinationEvent::Finish(Go {
                evidence: GoEvidence::Completed,
                wanted: Wanted::Run,
                sealed: true,
            }),
        };
        self.see(event);
    }

    fn work(&mut self, choice: u8) {
        let Some(effect) = self.todo.pop_front() else {
            return;
        };
        let answer = match effect {
            DestinationEffect::Journal(entry) => self.write(entry, choice),
            DestinationEffect::Launch if choice < 24 => DestinationEvent::LaunchFailed,
            DestinationEffect::Launch => DestinationEvent::Launched(words::channel()),
            DestinationEffect::Resume => match choice {
                0..64 => DestinationEvent::ResumeRefused,
                64..96 => DestinationEvent::NotRunnable,
                96..112 => DestinationEvent::Died,
                _ => DestinationEvent::Resumed,
            },
            DestinationEffect::ReadRecord => DestinationEvent::RecordRead(match choice {
                0..24 => None,
                24..96 => Some(words::reverted()),
                _ => Some(words::armed()),
            }),
            DestinationEffect::DecideCommitted => DestinationEvent::RecordRead(match choice {
                0..24 => None,
                24..48 => Some(words::armed()),
                48..96 => Some(words::reverted()),
                _ => Some(words::committed()),
            }),
            DestinationEffect::MarkStarted => DestinationEvent::RecordRead(None),
            DestinationEffect::Destroy => DestinationEvent::Destroyed,
        };
        self.see(answer);
    }

    /// A journal that has failed once takes nothing more; what failed may be on disk all the same.
    fn write(&mut self, entry: DestinationEntry, choice: u8) -> DestinationEvent {
        if self.journal_broken || choice < 8 {
            if !self.journal_broken && choice < 4 {
                self.journal.push(entry);
            }
            self.journal_broken = true;
            return DestinationEvent::JournalFailed;
        }
        self.journal.push(entry.clone());
        DestinationEvent::Journaled(entry)
    }

    fn restart(&mut self, facts: DestinationFacts) {
        // An agent whose first entry was not written knows of no migration after its restart.
        let Some((machine, step)) = Destination::recover(&self.journal, words::GATES, facts) else {
            return;
        };
        self.log.push(Line::Restart {
            written: self.journal.len(),
        });
        self.machine = machine;
        self.todo.clear();
        self.journal_broken = false;
        self.order(step.effects);
    }
}

/// Orders and sightings: what can arrive at any time, any number of times.
pub fn sighting() -> impl Strategy<Value = DestinationEvent> {
    prop_oneof![
        1 => Just(DestinationEvent::Prepare(words::terms())),
        1 => Just(DestinationEvent::Prepare(words::other_terms())),
        6 => words::go().prop_map(DestinationEvent::Finish),
        2 => words::cause().prop_map(DestinationEvent::Abort),
        2 => Just(DestinationEvent::DriverSilent),
        4 => words::standing().prop_map(DestinationEvent::SourceStands),
        2 => Just(DestinationEvent::Arbitrate),
        1 => Just(DestinationEvent::NobodyConnected),
        3 => Just(DestinationEvent::Connected),
        4 => Just(DestinationEvent::Loaded),
        1 => Just(DestinationEvent::StreamFailed),
        1 => Just(DestinationEvent::Died),
    ]
}

pub fn facts() -> impl Strategy<Value = DestinationFacts> {
    prop_oneof![
        1 => Just(DestinationFacts::Gone),
        6 => (any::<bool>(), words::stream_fact())
            .prop_map(|(running, stream)| DestinationFacts::Alive { running, stream }),
    ]
}

/// A whole life.
pub fn run() -> impl Strategy<Value = Run> {
    let action = prop_oneof![
        10 => any::<u8>().prop_map(Move::Work),
        10 => Just(Move::Forward),
        4 => Just(Move::Doubt),
        4 => sighting().prop_map(Move::See),
        1 => facts().prop_map(Move::Restart),
    ];
    prop::collection::vec(action, 0..40).prop_map(|moves| {
        let mut run = Run::new();
        for action in moves {
            run.take(action);
        }
        run
    })
}

/// Any entry at all.
pub fn entry() -> impl Strategy<Value = DestinationEntry> {
    prop_oneof![
        2 => Just(DestinationEntry::Prepared { terms: words::terms() }),
        2 => words::go().prop_map(DestinationEntry::CommitIntent),
        3 => words::go().prop_map(DestinationEntry::ContIssued),
        2 => Just(DestinationEntry::ContRefused),
        2 => words::go().prop_map(DestinationEntry::TakenOver),
        2 => words::cause().prop_map(|cause| DestinationEntry::RevertIntent { cause }),
        2 => words::cause().prop_map(|cause| DestinationEntry::Reverted { cause }),
    ]
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in &self.log {
            writeln!(f, "{line:?}")?;
        }
        writeln!(f, "journal: {:?}", self.journal)
    }
}
