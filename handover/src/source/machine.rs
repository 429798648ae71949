//! The source's machine: its beginning, one function for each event, and its report. What an event does not change
//! in a stage is a repetition there or comes too late.

use std::time::Duration;

use super::stage::{Own, SealEntry, Stage};
use super::{Source, SourceEffect, SourceEntry, SourceEvent, SourceReport};
use crate::gates::Gates;
use crate::terms::{Refusal, Step, Terms, Wanted};

type Out = Step<SourceEffect>;

impl Source {
    /// Takes a migration on. `wanted` is what the guest does now; `budget` is the longest stop that the user
    /// allows. Nothing is under way before the journal has answered.
    ///
    /// # Errors
    /// [`Refusal::GatesMissing`] if the hypervisor cannot wait before the switchover.
    pub fn begin(
        terms: Terms,
        gates: Gates,
        budget: Duration,
        wanted: Wanted,
    ) -> Result<(Self, Out), Refusal> {
        if !gates.hold_before_switchover {
            return Err(Refusal::GatesMissing);
        }
        let micros = u64::try_from(budget.as_micros()).unwrap_or(u64::MAX);
        let entry = SourceEntry::Begun {
            terms: terms.clone(),
            budget_micros: micros,
        };
        let source = Self {
            terms,
            gates,
            budget,
            wanted,
            path_proven: false,
            journal_broken: false,
            reading: None,
            stage: Stage::BeginJournal,
        };
        Ok((source, Step::one(SourceEffect::Journal(entry))))
    }

    /// What the migration is about.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Whether nothing will happen any more.
    pub fn is_final(&self) -> bool {
        matches!(
            self.stage,
            Stage::Released | Stage::Aborted { .. } | Stage::Lost { .. }
        )
    }

    /// Whether memory is to travel so slowly that the hypervisor does not come to the switchover by itself. Rule 8: without
    /// a recent proof of the path the migration stays in pre-copy, and at the switchover it could only be given up.
    pub fn held_back(&self) -> bool {
        matches!(self.stage, Stage::Connecting | Stage::Streaming { .. }) && !self.path_proven
    }

    /// What the driver is told.
    pub fn report(&self) -> SourceReport {
        let report = report_of(&self.stage, self.wanted);
        match (report, &self.stage) {
            // A dead process needs no journal to have nothing to say.
            (
                SourceReport::Switching { sealed, .. } | SourceReport::InDoubt { sealed, .. },
                Stage::Switching { .. },
            ) if self.journal_broken => SourceReport::Blocked {
                sealed,
                wanted: self.wanted,
            },
            (_, _) => report,
        }
    }

    /// Takes an event; gives the new state and what is to be done.
    #[must_use]
    pub fn step(&self, event: SourceEvent) -> (Self, Out) {
        let mut next = self.clone();
        let out = next.take(event);
        (next, out)
    }

    fn take(&mut self, event: SourceEvent) -> Out {
        match event {
            SourceEvent::Begin(terms) => self.repeated_begin(&terms),
            SourceEvent::Perform(channel) => self.perform(channel),
            SourceEvent::Ready => self.ready(),
            SourceEvent::Confirm => self.confirm(),
            SourceEvent::Abort(cause) => self.abort(cause, true),
            SourceEvent::Settle => self.settle(),
            SourceEvent::Arbitrate(cause) => self.arbitrate_ordered(cause),
            SourceEvent::PathProven(proven) => self.path(proven),
            SourceEvent::DriverSilent => self.driver_silent(),
            SourceEvent::Journaled(entry) => self.journaled(&entry),
            SourceEvent::JournalFailed => self.journal_failed(),
            SourceEvent::StreamStarted => self.stream_started(),
            SourceEvent::StreamNotStarted(cause) => self.stream_not_started(cause),
            SourceEvent::Pass(pass) => self.pass(pass),
            SourceEvent::Paused { stream_active } => self.paused(stream_active),
            SourceEvent::PauseFailed => self.pause_failed(),
            SourceEvent::BeforeSwitchover => self.before_switchover(),
            SourceEvent::SwitchOverRefused => self.switch_over_refused(),
            SourceEvent::StreamCompleted => self.stream_completed(),
            SourceEvent::StreamFailed { running } => self.stream_failed(running),
            SourceEvent::StreamCancelled => self.stream_cancelled(),
            SourceEvent::DisksReleased => self.disks_released(),
            SourceEvent::DisksReclaimed => self.disks_reclaimed(),
            SourceEvent::Restored => self.restored(),
            SourceEvent::RestoreFailed => self.restore_failed(),
            SourceEvent::RecordRead(record) => self.record_read(record.as_ref()),
            SourceEvent::Destroyed => self.destroyed(),
            SourceEvent::GuestWants(wanted) => self.guest_wants(wanted),
            SourceEvent::GuestEnded => self.guest_ended(),
            SourceEvent::Died => self.died(),
        }
    }

    fn journaled(&mut self, entry: &SourceEntry) -> Out {
        match (&mut self.stage, entry) {
            (Stage::BeginJournal, SourceEntry::Begun { .. }) => {
                self.stage = Stage::Begun;
                Step::none()
            }
            (Stage::Streaming { intent_journaled }, SourceEntry::Intent { wanted }) => {
                *intent_journaled = *wanted == self.wanted;
                Step::none()
            }
            (Stage::Sealed { entry, .. }, SourceEntry::Sealed) => {
                *entry = SealEntry::Written;
                Step::none()
            }
            (Stage::Sealed { intent_journaled, .. }, SourceEntry::Intent { wanted }) => {
                *intent_journaled = *wanted == self.wanted;
                Step::none()
            }
            (
                Stage::Gate {
                    sealed: Some(entry), ..
                },
                SourceEntry::Sealed,
            ) => {
                *entry = SealEntry::Written;
                self.consider_switch_over()
            }
            (Stage::Gate { intent_journaled, .. }, SourceEntry::Intent { wanted }) => {
                *intent_journaled = *wanted == self.wanted;
                self.consider_switch_over()
            }
            (Stage::GoJournal { go, own }, SourceEntry::GoSent(written)) if *written == *go => {
                self.stage = Stage::GoSent { go: *go, own: *own };
                Step::none()
            }
            (Stage::ReleaseJournal { go }, SourceEntry::Released) => {
                self.stage = Stage::Releasing { go: *go };
                Step::one(SourceEffect::Destroy)
            }
            (Stage::DecideJournal { cause, sealed, own }, SourceEntry::Arbitrating { .. }) => {
                let (cause, sealed, own) = (*cause, *sealed, *own);
                self.decide(cause, sealed, own)
            }
            (Stage::AbortJournal { cause, undo }, SourceEntry::AbortIntent { .. }) => {
                let (cause, undo) = (*cause, *undo);
                self.undo(cause, undo)
            }
            // An answer that belongs to a stage that was left meanwhile; the entry stands, and does no harm.
            (_, _) => Step::none(),
        }
    }
}

fn report_of(stage: &Stage, wanted: Wanted) -> SourceReport {
    match stage {
        Stage::BeginJournal | Stage::Begun => SourceReport::Begun,
        Stage::Connecting | Stage::Streaming { .. } => SourceReport::Streaming,
        // "Sealed" is told only once the hypervisor has left `active` under the seal: until then an undo is left.
        Stage::Sealing | Stage::Sealed { .. } => SourceReport::Stopped { sealed: false },
        Stage::Gate { sealed, .. } => SourceReport::Stopped {
            sealed: sealed.is_some(),
        },
        Stage::Switching {
            sealed,
            own,
            peer_loaded,
        } => match own {
            Own::Running | Own::Completed => SourceReport::Switching {
                sealed: *sealed,
                ready: *peer_loaded,
                wanted: Some(wanted),
            },
            Own::Failed | Own::Released => SourceReport::InDoubt {
                sealed: *sealed,
                ready: *peer_loaded,
                wanted: Some(wanted),
            },
            Own::Dead => SourceReport::Died,
        },
        Stage::GoJournal { go, .. } => SourceReport::Switching {
            sealed: go.sealed,
            ready: true,
            wanted: Some(wanted),
        },
        Stage::DecideJournal { cause, sealed, own } | Stage::Deciding { cause, sealed, own } => {
            SourceReport::Deciding {
                cause: *cause,
                dead: (*own == Own::Dead).then_some(wanted),
                sealed: *sealed,
            }
        }
        // While the source lets go its process may still live: the driver waits for Released.
        Stage::GoSent { go, .. }
        | Stage::ReleaseJournal { go: Some(go) }
        | Stage::Releasing { go: Some(go) } => SourceReport::GoSent(*go),
        Stage::Yielded { .. } | Stage::ReleaseJournal { go: None } | Stage::Releasing { go: None } => {
            SourceReport::Yielded
        }
        Stage::Released => SourceReport::Released,
        Stage::AbortJournal { cause, .. }
        | Stage::Undoing { cause, .. }
        | Stage::Reclaiming { cause }
        | Stage::Restoring { cause } => SourceReport::Aborting(*cause),
        Stage::Aborted { cause } => SourceReport::Aborted(*cause),
        Stage::Lost { cause } => SourceReport::Lost(*cause),
    }
}
