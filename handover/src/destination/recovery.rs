//! How a restarted agent takes the destination's side up again.

use super::{Destination, DestinationEffect, DestinationEntry, Stage};
use crate::gates::Gates;
use crate::terms::{Cause, Go, Step, StreamFact, Terms, Wanted};

/// What the destination's process was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationFacts {
    /// Proved to be gone, or never started.
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
    committing: Option<Go>,
    issued: Option<Go>,
    taken_over: bool,
    revert: Option<Cause>,
    reverted: Option<Cause>,
    refusals: u8,
}

fn read(entries: &[DestinationEntry]) -> Option<Story> {
    let (first, rest) = entries.split_first()?;
    let DestinationEntry::Prepared { terms } = first else {
        return None;
    };
    let mut story = Story {
        terms: terms.clone(),
        committing: None,
        issued: None,
        taken_over: false,
        revert: None,
        reverted: None,
        refusals: 0,
    };
    for entry in rest {
        match entry {
            DestinationEntry::Prepared { .. } => return None,
            DestinationEntry::CommitIntent(go) => story.committing = Some(*go),
            DestinationEntry::ContIssued(go) => story.issued = Some(*go),
            DestinationEntry::ContRefused => {
                story.issued = None;
                story.refusals = story.refusals.saturating_add(1);
            }
            DestinationEntry::TakenOver(_) => story.taken_over = true,
            DestinationEntry::RevertIntent { cause } => story.revert = Some(*cause),
            DestinationEntry::Reverted { cause } => story.reverted = Some(*cause),
        }
    }
    Some(story)
}

impl Destination {
    /// Rebuilds the machine after a restart. `None` if the journal does not begin with `Prepared`: nothing may be
    /// done on its word.
    pub fn recover(
        entries: &[DestinationEntry],
        gates: Gates,
        facts: DestinationFacts,
    ) -> Option<(Self, Step<DestinationEffect>)> {
        let story = read(entries)?;
        let (stage, effects) = stand(&story, facts);
        Some((
            Self {
                terms: story.terms,
                gates,
                refusals: story.refusals,
                told: None,
                stage,
            },
            Step::many(effects),
        ))
    }
}

fn stand(story: &Story, facts: DestinationFacts) -> (Stage, Vec<DestinationEffect>) {
    if let Some(cause) = story.reverted {
        return (Stage::Reverted { cause }, vec![]);
    }
    if let Some(cause) = story.revert {
        return match facts {
            DestinationFacts::Gone => reverted(cause),
            DestinationFacts::Alive { .. } => (Stage::Destroying { cause }, vec![DestinationEffect::Destroy]),
        };
    }
    if story.taken_over {
        // It was ours when the journal said so; a process that died since is a guest that crashed here.
        return (Stage::Holding { running: false }, vec![]);
    }
    if let Some(go) = story.issued {
        return match facts {
            DestinationFacts::Gone => (
                Stage::Lost {
                    cause: Cause::DestinationDied,
                },
                vec![],
            ),
            DestinationFacts::Alive { running: true, .. } => (Stage::Holding { running: true }, vec![]),
            // It stands still, and the Go that was journaled still holds.
            DestinationFacts::Alive { running: false, .. } => (
                Stage::Starting {
                    go: Go {
                        wanted: Wanted::Run,
                        ..go
                    },
                },
                vec![DestinationEffect::Resume],
            ),
        };
    }
    // Only a loaded guest is committed for; and what was told to commit it holds for ever.
    if let (Some(go), DestinationFacts::Alive { running: false, .. }) = (story.committing, facts) {
        return (Stage::Committing { go }, vec![DestinationEffect::DecideCommitted]);
    }
    unstarted(facts)
}

fn unstarted(facts: DestinationFacts) -> (Stage, Vec<DestinationEffect>) {
    match facts {
        DestinationFacts::Gone => revert(Cause::DestinationDied, false),
        DestinationFacts::Alive { stream, .. } => match stream {
            StreamFact::Completed => (
                Stage::Loaded {
                    journal_broken: false,
                },
                vec![],
            ),
            StreamFact::Active | StreamFact::BeforeSwitchover | StreamFact::SwitchingOver => {
                (Stage::Receiving, vec![])
            }
            // The listener and its word died with the agent, and nothing was received: nothing is lost by
            // giving the process up.
            StreamFact::None | StreamFact::Failed | StreamFact::Cancelled => {
                revert(Cause::DestinationFailed, true)
            }
        },
    }
}

fn reverted(cause: Cause) -> (Stage, Vec<DestinationEffect>) {
    (
        Stage::Reverted { cause },
        vec![DestinationEffect::Journal(DestinationEntry::Reverted { cause })],
    )
}

fn revert(cause: Cause, alive: bool) -> (Stage, Vec<DestinationEffect>) {
    let entry = DestinationEntry::RevertIntent { cause };
    (
        Stage::RevertJournal { cause, alive },
        vec![DestinationEffect::Journal(entry)],
    )
}
