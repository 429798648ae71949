//! How a restarted agent takes the source's side up again: from its journal and from what the hypervisor says.
//!
//! The journal tells what was promised, the hypervisor what is so. Where the two leave a doubt whether the
//! switchover was ordered, it is taken as ordered: the guest then stays stopped until Ready arrives or the record
//! is read.

use std::time::Duration;

use super::stage::{Own, Reading, SealEntry, Stage, Undo};
use super::{Source, SourceEffect, SourceEntry};
use crate::gates::Gates;
use crate::terms::{Cause, Go, Step, StreamFact, Terms, Wanted};

/// What the source's process was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceFacts {
    /// Proved to be gone.
    Gone,
    /// It lives.
    Alive {
        /// Whether its virtual CPUs run.
        running: bool,
        /// How its stream stands.
        stream: StreamFact,
    },
}

/// The journal read from its beginning, with the later entries winning.
struct Story {
    terms: Terms,
    budget: Duration,
    wanted: Option<Wanted>,
    sealed: bool,
    arbitrating: Option<Cause>,
    abort: Option<(Cause, bool)>,
    go: Option<Go>,
    end: Option<End>,
}

enum End {
    Released,
    Aborted(Cause),
    Lost(Cause),
}

fn read(entries: &[SourceEntry]) -> Option<Story> {
    let (first, rest) = entries.split_first()?;
    let SourceEntry::Begun { terms, budget_micros } = first else {
        return None;
    };
    let mut story = Story {
        terms: terms.clone(),
        budget: Duration::from_micros(*budget_micros),
        wanted: None,
        sealed: false,
        arbitrating: None,
        abort: None,
        go: None,
        end: None,
    };
    for entry in rest {
        match entry {
            // A journal begins once.
            SourceEntry::Begun { .. } => return None,
            SourceEntry::Intent { wanted } => story.wanted = Some(*wanted),
            SourceEntry::Sealed => story.sealed = true,
            SourceEntry::AbortIntent { cause, switchover } => story.abort = Some((*cause, *switchover)),
            SourceEntry::Arbitrating { cause } => story.arbitrating = Some(*cause),
            SourceEntry::GoSent(go) => story.go = Some(*go),
            SourceEntry::Released => story.end = Some(End::Released),
            SourceEntry::Aborted { cause } => story.end = Some(End::Aborted(*cause)),
            SourceEntry::Lost { cause } => story.end = Some(End::Lost(*cause)),
        }
    }
    Some(story)
}

impl Source {
    /// Rebuilds the machine after a restart. `None` if the journal does not begin with `Begun`, which is no
    /// journal of this machine: nothing may be done on its word.
    pub fn recover(
        entries: &[SourceEntry],
        gates: Gates,
        facts: SourceFacts,
    ) -> Option<(Self, Step<SourceEffect>)> {
        let story = read(entries)?;
        let wanted = story.wanted.unwrap_or(match facts {
            // Before the switchover the hypervisor stops the guest by itself: that it stands still there is not its
            // own wish. One that was paused by a hand while memory travelled has that in its journal.
            SourceFacts::Alive { running: true, .. }
            | SourceFacts::Alive {
                stream: StreamFact::BeforeSwitchover,
                ..
            } => Wanted::Run,
            SourceFacts::Alive { running: false, .. } | SourceFacts::Gone => Wanted::StayStopped,
        });
        let (stage, effects) = stand(&story, wanted, facts, gates);
        let reads = effects.contains(&SourceEffect::ReadRecord);
        let reading = if matches!(stage, Stage::Deciding { .. }) {
            Some(Reading::Decide)
        } else {
            reads.then_some(Reading::Settle)
        };
        let source = Self {
            terms: story.terms,
            gates,
            budget: story.budget,
            wanted,
            path_proven: false,
            journal_broken: false,
            reading,
            stage,
        };
        Some((source, Step::many(effects)))
    }
}

fn stand(story: &Story, wanted: Wanted, facts: SourceFacts, gates: Gates) -> (Stage, Vec<SourceEffect>) {
    let alive = facts != SourceFacts::Gone;
    match story.end {
        Some(End::Aborted(cause)) => return (Stage::Aborted { cause }, vec![]),
        Some(End::Lost(cause)) => return (Stage::Lost { cause }, vec![]),
        Some(End::Released) => {
            return if alive {
                (Stage::Releasing { go: story.go }, vec![SourceEffect::Destroy])
            } else {
                (Stage::Released, vec![])
            };
        }
        None => {}
    }
    if let Some((cause, switchover)) = story.abort {
        return aborting(cause, switchover, facts);
    }
    if let Some(cause) = story.arbitrating {
        return arbitrating(cause, story.sealed, facts, gates);
    }
    if let Some(go) = story.go {
        return if alive {
            let own = Own::Completed;
            (Stage::GoSent { go, own }, vec![])
        } else {
            let own = Own::Dead;
            (Stage::GoSent { go, own }, vec![SourceEffect::ReadRecord])
        };
    }
    match facts {
        SourceFacts::Gone => gone(story),
        SourceFacts::Alive { running, stream } => living(story, wanted, running, stream, gates),
    }
}

fn aborting(cause: Cause, switchover: bool, facts: SourceFacts) -> (Stage, Vec<SourceEffect>) {
    match facts {
        SourceFacts::Gone => {
            let cause = Cause::SourceDied;
            (
                Stage::Lost { cause },
                vec![SourceEffect::Journal(SourceEntry::Lost { cause })],
            )
        }
        SourceFacts::Alive { .. } if switchover => (
            Stage::Undoing { cause, switchover },
            vec![SourceEffect::CancelStream],
        ),
        SourceFacts::Alive {
            running: true,
            stream: StreamFact::None | StreamFact::Failed | StreamFact::Cancelled,
        } => (
            Stage::Aborted { cause },
            vec![SourceEffect::Journal(SourceEntry::Aborted { cause })],
        ),
        SourceFacts::Alive { .. } => (
            Stage::Undoing {
                cause,
                switchover: false,
            },
            vec![SourceEffect::CancelStream],
        ),
    }
}

/// Go will never be said. What the record says is read again; where it says nothing it is asked again.
fn arbitrating(cause: Cause, sealed: bool, facts: SourceFacts, gates: Gates) -> (Stage, Vec<SourceEffect>) {
    let (own, mut effects) = match facts {
        SourceFacts::Gone => (Own::Dead, vec![]),
        SourceFacts::Alive {
            running: false,
            stream: StreamFact::Failed,
        } if gates.inactivate_disks => (Own::Failed, vec![SourceEffect::ReleaseDisks]),
        SourceFacts::Alive {
            stream: StreamFact::None | StreamFact::Failed | StreamFact::Cancelled,
            ..
        } => (Own::Failed, vec![]),
        SourceFacts::Alive {
            stream: StreamFact::Completed,
            ..
        } => (Own::Completed, vec![]),
        SourceFacts::Alive {
            stream: StreamFact::Active | StreamFact::BeforeSwitchover | StreamFact::SwitchingOver,
            ..
        } => (Own::Running, vec![]),
    };
    effects.push(match own {
        Own::Dead => SourceEffect::ReadRecord,
        Own::Running | Own::Completed | Own::Failed | Own::Released => SourceEffect::DecideAborted,
    });
    (Stage::Deciding { cause, sealed, own }, effects)
}

/// The process died while the agent was away. Whether the switchover had been ordered is not known; if it had,
/// the destination may have the guest, so it is asked (by waiting for Ready) before the guest is called lost. The record
/// may say more than a journal that could not be told.
fn gone(story: &Story) -> (Stage, Vec<SourceEffect>) {
    if story.wanted.is_none() {
        let cause = Cause::SourceDied;
        return (
            Stage::Lost { cause },
            vec![SourceEffect::Journal(SourceEntry::Lost { cause })],
        );
    }
    (
        Stage::Switching {
            sealed: story.sealed,
            own: Own::Dead,
            peer_loaded: false,
        },
        vec![SourceEffect::ReadRecord],
    )
}

fn living(
    story: &Story,
    wanted: Wanted,
    running: bool,
    stream: StreamFact,
    gates: Gates,
) -> (Stage, Vec<SourceEffect>) {
    let intent_journaled = story.wanted == Some(wanted);
    let abort = |cause| {
        let entry = SourceEntry::AbortIntent {
            cause,
            switchover: false,
        };
        (
            Stage::AbortJournal {
                cause,
                undo: Undo::Stream,
            },
            vec![SourceEffect::Journal(entry)],
        )
    };
    let switching = |own| Stage::Switching {
        sealed: story.sealed,
        own,
        peer_loaded: false,
    };
    match (stream, running) {
        // Nothing was begun, or the start never reached the hypervisor: the order will be given again.
        (StreamFact::None, _) if story.wanted.is_none() => (Stage::Begun, vec![]),
        (StreamFact::None | StreamFact::Cancelled, _) => abort(Cause::StreamFailed),
        // Without the intent the switchover was never ordered: an end of the stream is an earlier migration's (a guest
        // that has arrived shows one too), or this one's before its switchover.
        (StreamFact::SwitchingOver | StreamFact::Completed | StreamFact::Failed, false)
            if story.wanted.is_none() =>
        {
            abort(Cause::StreamFailed)
        }
        (StreamFact::Active, true) => {
            let entry = SourceEntry::Intent { wanted };
            (
                Stage::Streaming { intent_journaled },
                if intent_journaled {
                    vec![]
                } else {
                    vec![SourceEffect::Journal(entry)]
                },
            )
        }
        // Stopped while active: the proof of the seal can be made again, by the same two looks in the same order.
        (StreamFact::Active, false) if wanted == Wanted::Run && gates.seal => {
            (Stage::Sealing, vec![SourceEffect::Pause])
        }
        (StreamFact::Active, false) => {
            let entry = SourceEntry::Intent { wanted };
            (
                Stage::Streaming { intent_journaled },
                if intent_journaled {
                    vec![]
                } else {
                    vec![SourceEffect::Journal(entry)]
                },
            )
        }
        // The guest stands still here until the path is proved, or is said not to be.
        (StreamFact::BeforeSwitchover, _) => {
            if intent_journaled {
                let sealed = story.sealed.then_some(SealEntry::Written);
                (
                    Stage::Gate {
                        sealed,
                        intent_journaled: true,
                    },
                    vec![],
                )
            } else {
                abort(Cause::StreamFailed)
            }
        }
        // Somebody's hand has let it run after its stream was acknowledged: Go was never said, and never will be.
        (StreamFact::Completed, true) => {
            let cause = Cause::StreamFailed;
            let entry = SourceEntry::AbortIntent {
                cause,
                switchover: false,
            };
            (
                Stage::AbortJournal {
                    cause,
                    undo: Undo::RunsAlready,
                },
                vec![SourceEffect::Journal(entry)],
            )
        }
        (StreamFact::SwitchingOver, _) => (switching(Own::Running), vec![]),
        (StreamFact::Completed, false) => (switching(Own::Completed), vec![]),
        // The hypervisor restarted it by itself, before or after the switchover was ordered: Go was never said.
        (StreamFact::Failed, true) => {
            let cause = Cause::StreamFailed;
            let entry = SourceEntry::AbortIntent {
                cause,
                switchover: false,
            };
            (
                Stage::AbortJournal {
                    cause,
                    undo: Undo::RunsAlready,
                },
                vec![SourceEffect::Journal(entry)],
            )
        }
        (StreamFact::Failed, false) if story.sealed && gates.inactivate_disks => {
            (switching(Own::Failed), vec![SourceEffect::ReleaseDisks])
        }
        // Go can never be said: the hypervisor may restart it by itself, or keeps the disks.
        (StreamFact::Failed, false) => {
            let cause = Cause::StreamFailed;
            (
                Stage::DecideJournal {
                    cause,
                    sealed: story.sealed,
                    own: Own::Failed,
                },
                vec![SourceEffect::Journal(SourceEntry::Arbitrating { cause })],
            )
        }
    }
}
