//! A source's life: the production machine, its effects carried out in order, its journal, crashes between.

use std::collections::VecDeque;
use std::time::Duration;

use godwit_handover::{
    Pass, Source, SourceEffect, SourceEntry, SourceEvent, SourceFacts, SourceReport, Wanted,
};
use proptest::prelude::*;

use crate::words;

pub const BUDGET: Duration = Duration::from_millis(300);

/// A pass after which the rest fits the budget.
pub const SMALL_PASS: Pass = Pass {
    iteration: 2,
    remaining_bytes: 1,
    bytes_per_second: 1 << 30,
};

/// What happens next in a source's life.
#[derive(Clone, Debug)]
pub enum Move {
    /// The next effect is carried out; the number picks among its answers.
    Work(u8),
    /// What brings a migration forward from here.
    Forward,
    /// The destination is not heard, where that asks for something.
    Doubt,
    /// Something is ordered or seen, whether it fits or not.
    See(SourceEvent),
    /// The agent dies and comes back; what it had still to do is forgotten.
    Restart(SourceFacts),
}

/// What has happened.
#[derive(Clone, Debug)]
pub enum Line {
    Event(SourceEvent),
    /// Ordered by the machine.
    Effect(SourceEffect),
    /// On disk, whether or not the machine learns of it.
    Written(SourceEntry),
    Report(SourceReport),
    Restart(SourceFacts),
}

/// A life with everything that has happened in it, in order.
pub struct Run {
    pub machine: Source,
    pub todo: VecDeque<SourceEffect>,
    pub journal: Vec<SourceEntry>,
    pub log: Vec<Line>,
    journal_broken: bool,
}

impl Run {
    pub fn new(wanted: Wanted) -> Self {
        let (machine, step) =
            Source::begin(words::terms(), words::GATES, BUDGET, wanted).expect("the gates are there");
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

    fn order(&mut self, effects: Vec<SourceEffect>) {
        for effect in effects {
            self.log.push(Line::Effect(effect.clone()));
            self.todo.push_back(effect);
        }
        self.log.push(Line::Report(self.machine.report()));
    }

    pub fn see(&mut self, event: SourceEvent) {
        self.log.push(Line::Event(event.clone()));
        let (next, step) = self.machine.step(event);
        self.machine = next;
        self.order(step.effects);
    }

    pub fn take(&mut self, action: Move) {
        match action {
            Move::See(event) => self.see(event),
            Move::Forward => {
                if self.todo.is_empty() {
                    self.forward();
                } else {
                    self.work(u8::MAX);
                }
            }
            Move::Doubt => {
                if let SourceReport::Switching { .. } | SourceReport::InDoubt { .. } = self.machine.report() {
                    self.see(SourceEvent::Arbitrate(godwit_handover::Cause::PathNotProven));
                }
            }
            Move::Work(choice) => self.work(choice),
            Move::Restart(facts) => self.restart(facts),
        }
    }

    fn forward(&mut self) {
        let event = match self.machine.report() {
            SourceReport::Begun => SourceEvent::Perform(words::channel()),
            SourceReport::Streaming => {
                self.see(SourceEvent::PathProven(true));
                SourceEvent::Pass(SMALL_PASS)
            }
            SourceReport::Stopped { .. } => {
                self.see(SourceEvent::PathProven(true));
                SourceEvent::BeforeSwitchover
            }
            SourceReport::Switching { .. } => {
                self.see(SourceEvent::StreamCompleted);
                SourceEvent::Ready
            }
            SourceReport::InDoubt { .. } | SourceReport::Died => SourceEvent::Ready,
            SourceReport::Deciding { .. }
            | SourceReport::Yielded
            | SourceReport::Blocked { .. }
            | SourceReport::GoSent(_)
            | SourceReport::Released
            | SourceReport::Aborting(_)
            | SourceReport::Aborted(_)
            | SourceReport::Lost(_) => SourceEvent::Confirm,
        };
        self.see(event);
    }

    fn work(&mut self, choice: u8) {
        let Some(effect) = self.todo.pop_front() else {
            return;
        };
        let answer = match effect {
            SourceEffect::Journal(entry) => Some(self.write(entry, choice)),
            SourceEffect::StartStream(_) => Some(match choice {
                0..24 => SourceEvent::StreamNotStarted(godwit_handover::Cause::StreamFailed),
                _ => SourceEvent::StreamStarted,
            }),
            SourceEffect::Pause => Some(match choice {
                0..16 => SourceEvent::PauseFailed,
                16..64 => SourceEvent::Paused { stream_active: false },
                _ => SourceEvent::Paused { stream_active: true },
            }),
            SourceEffect::LiftLimits => None,
            SourceEffect::SwitchOver => (choice < 24).then_some(SourceEvent::SwitchOverRefused),
            SourceEffect::CancelStream => Some(SourceEvent::StreamCancelled),
            SourceEffect::ReleaseDisks => Some(SourceEvent::DisksReleased),
            SourceEffect::ReclaimDisks => Some(SourceEvent::DisksReclaimed),
            SourceEffect::Restore(_) => Some(match choice {
                0..24 => SourceEvent::RestoreFailed,
                _ => SourceEvent::Restored,
            }),
            SourceEffect::ReadRecord => Some(SourceEvent::RecordRead(match choice {
                0..24 => None,
                24..48 => Some(words::armed()),
                48..96 => Some(words::reverted()),
                _ => Some(words::advanced()),
            })),
            SourceEffect::DecideAborted => Some(SourceEvent::RecordRead(match choice {
                0..24 => None,
                24..48 => Some(words::armed()),
                48..96 => Some(words::committed()),
                96..128 => Some(words::advanced()),
                _ => Some(words::reverted()),
            })),
            SourceEffect::Destroy => Some(SourceEvent::Destroyed),
        };
        if let Some(answer) = answer {
            self.see(answer);
        }
    }

    /// A journal that has failed once takes nothing more; what failed may be on disk all the same.
    fn write(&mut self, entry: SourceEntry, choice: u8) -> SourceEvent {
        if self.journal_broken || choice < 8 {
            if !self.journal_broken && choice < 4 {
                self.put(entry);
            }
            self.journal_broken = true;
            return SourceEvent::JournalFailed;
        }
        self.put(entry.clone());
        SourceEvent::Journaled(entry)
    }

    fn put(&mut self, entry: SourceEntry) {
        self.log.push(Line::Written(entry.clone()));
        self.journal.push(entry);
    }

    fn restart(&mut self, facts: SourceFacts) {
        // An agent whose first entry was not written knows of no migration after its restart.
        let Some((machine, step)) = Source::recover(&self.journal, words::GATES, facts) else {
            return;
        };
        self.log.push(Line::Restart(facts));
        self.machine = machine;
        self.todo.clear();
        self.journal_broken = false;
        self.order(step.effects);
    }
}

/// Orders and sightings: what can arrive at any time, any number of times.
pub fn sighting() -> impl Strategy<Value = SourceEvent> {
    let pass = prop_oneof![
        Just(SMALL_PASS),
        (0..4_u64, 0..1_000_000_000_u64, 0..1_000_000_u64).prop_map(|(iteration, remaining_bytes, speed)| {
            Pass {
                iteration,
                remaining_bytes,
                bytes_per_second: speed,
            }
        }),
    ];
    prop_oneof![
        1 => Just(SourceEvent::Begin(words::terms())),
        1 => Just(SourceEvent::Begin(words::other_terms())),
        4 => Just(SourceEvent::Perform(words::channel())),
        1 => Just(SourceEvent::Perform(words::other_channel())),
        6 => Just(SourceEvent::Ready),
        6 => Just(SourceEvent::Confirm),
        2 => words::cause().prop_map(SourceEvent::Abort),
        6 => Just(SourceEvent::Settle),
        2 => words::cause().prop_map(SourceEvent::Arbitrate),
        6 => prop::bool::weighted(0.8).prop_map(SourceEvent::PathProven),
        1 => Just(SourceEvent::DriverSilent),
        4 => pass.prop_map(SourceEvent::Pass),
        4 => Just(SourceEvent::BeforeSwitchover),
        4 => Just(SourceEvent::StreamCompleted),
        2 => any::<bool>().prop_map(|running| SourceEvent::StreamFailed { running }),
        1 => Just(SourceEvent::StreamCancelled),
        4 => words::wanted().prop_map(SourceEvent::GuestWants),
        1 => Just(SourceEvent::GuestEnded),
        1 => Just(SourceEvent::Died),
    ]
}

pub fn facts() -> impl Strategy<Value = SourceFacts> {
    prop_oneof![
        1 => Just(SourceFacts::Gone),
        6 => (any::<bool>(), words::stream_fact())
            .prop_map(|(running, stream)| SourceFacts::Alive { running, stream }),
    ]
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let action = prop_oneof![
        10 => any::<u8>().prop_map(Move::Work),
        10 => Just(Move::Forward),
        4 => Just(Move::Doubt),
        6 => sighting().prop_map(Move::See),
        1 => facts().prop_map(Move::Restart),
    ];
    prop::collection::vec(action, 0..60)
}

/// A whole life.
pub fn run() -> impl Strategy<Value = Run> {
    (words::wanted(), moves()).prop_map(|(wanted, moves)| {
        let mut run = Run::new(wanted);
        for action in moves {
            run.take(action);
        }
        run
    })
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in &self.log {
            writeln!(f, "{line:?}")?;
        }
        writeln!(f, "journal: {:?}", self.journal)
    }
}

/// Any entry at all.
pub fn entry() -> impl Strategy<Value = SourceEntry> {
    prop_oneof![
        2 => Just(SourceEntry::Begun {
            terms: words::terms(),
            budget_micros: 300_000,
        }),
        3 => words::wanted().prop_map(|wanted| SourceEntry::Intent { wanted }),
        2 => Just(SourceEntry::Sealed),
        2 => (words::cause(), any::<bool>())
            .prop_map(|(cause, switchover)| SourceEntry::AbortIntent { cause, switchover }),
        2 => words::cause().prop_map(|cause| SourceEntry::Arbitrating { cause }),
        2 => words::go().prop_map(SourceEntry::GoSent),
        2 => Just(SourceEntry::Released),
        1 => words::cause().prop_map(|cause| SourceEntry::Aborted { cause }),
        1 => words::cause().prop_map(|cause| SourceEntry::Lost { cause }),
    ]
}
