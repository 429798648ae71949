//! The source's transitions. Each function below handles one event; what is not listed for a stage is a repetition
//! or comes too late, and changes nothing.

use std::time::Duration;

use super::{
    Own, Reading, SealEntry, Source, SourceEffect, SourceEntry, SourceEvent, SourceReport, Stage, Undo,
};
use crate::convergence::{self, Pass};
use crate::gates::Gates;
use crate::terms::{Cause, Channel, Go, GoEvidence, RecordView, Refusal, Step, Terms, Wanted};

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

    /// What the driver is told.
    pub fn report(&self) -> SourceReport {
        report_of(&self.stage)
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
            SourceEvent::PathProven(proven) => self.path(proven),
            SourceEvent::DriverSilent => self.abort(Cause::DriverSilent, false),
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

    fn repeated_begin(&self, terms: &Terms) -> Out {
        if *terms == self.terms {
            Step::none()
        } else {
            Step::refuse(Refusal::OtherTerms)
        }
    }

    fn perform(&mut self, channel: Channel) -> Out {
        match self.stage {
            Stage::BeginJournal => Step::refuse(Refusal::TooEarly),
            Stage::Begun => {
                self.stage = Stage::Connecting;
                Step::one(SourceEffect::StartStream(channel))
            }
            Stage::Released | Stage::Aborted { .. } | Stage::Lost { .. } => Step::refuse(Refusal::Ended),
            Stage::Connecting
            | Stage::Streaming { .. }
            | Stage::Sealing
            | Stage::Sealed { .. }
            | Stage::Gate { .. }
            | Stage::Switching { .. }
            | Stage::GoJournal { .. }
            | Stage::GoSent { .. }
            | Stage::ReleaseJournal { .. }
            | Stage::Releasing { .. }
            | Stage::AbortJournal { .. }
            | Stage::Undoing { .. }
            | Stage::Reclaiming { .. }
            | Stage::Restoring { .. } => Step::none(),
        }
    }

    fn ready(&mut self) -> Out {
        match &mut self.stage {
            Stage::Switching { peer_loaded, .. } => {
                *peer_loaded = true;
                self.consider_go()
            }
            Stage::BeginJournal
            | Stage::Begun
            | Stage::Connecting
            | Stage::Streaming { .. }
            | Stage::Sealing
            | Stage::Sealed { .. }
            | Stage::Gate { .. } => Step::refuse(Refusal::TooEarly),
            Stage::GoJournal { .. }
            | Stage::GoSent { .. }
            | Stage::ReleaseJournal { .. }
            | Stage::Releasing { .. }
            | Stage::Released => Step::none(),
            Stage::AbortJournal { .. }
            | Stage::Undoing { .. }
            | Stage::Reclaiming { .. }
            | Stage::Restoring { .. }
            | Stage::Aborted { .. }
            | Stage::Lost { .. } => Step::refuse(Refusal::Ended),
        }
    }

    /// Rule 2: Go only after it was journaled. Rule 1: a source whose stream failed gives its disks up first.
    fn consider_go(&mut self) -> Out {
        let Stage::Switching {
            sealed,
            own,
            peer_loaded: true,
        } = self.stage
        else {
            return Step::none();
        };
        let evidence = match own {
            Own::Completed => GoEvidence::Completed,
            Own::Dead => GoEvidence::SourceDead,
            Own::Released if sealed => GoEvidence::SealedAndReleased,
            Own::Released | Own::Failed | Own::Running => return Step::none(),
        };
        let go = Go {
            evidence,
            wanted: self.wanted,
            sealed,
        };
        self.stage = Stage::GoJournal { go, own };
        Step::one(SourceEffect::Journal(SourceEntry::GoSent(go)))
    }

    fn confirm(&mut self) -> Out {
        match self.stage {
            Stage::GoSent { .. } => self.read_record(Reading::Confirm),
            Stage::ReleaseJournal { .. } | Stage::Releasing { .. } | Stage::Released => Step::none(),
            Stage::BeginJournal
            | Stage::Begun
            | Stage::Connecting
            | Stage::Streaming { .. }
            | Stage::Sealing
            | Stage::Sealed { .. }
            | Stage::Gate { .. }
            | Stage::Switching { .. }
            | Stage::GoJournal { .. } => Step::refuse(Refusal::TooEarly),
            Stage::AbortJournal { .. }
            | Stage::Undoing { .. }
            | Stage::Reclaiming { .. }
            | Stage::Restoring { .. }
            | Stage::Aborted { .. }
            | Stage::Lost { .. } => Step::refuse(Refusal::Ended),
        }
    }

    fn settle(&mut self) -> Out {
        match self.stage {
            Stage::Switching { .. } | Stage::GoJournal { .. } | Stage::GoSent { .. } => {
                self.read_record(Reading::Settle)
            }
            Stage::BeginJournal
            | Stage::Begun
            | Stage::Connecting
            | Stage::Streaming { .. }
            | Stage::Sealing
            | Stage::Sealed { .. }
            | Stage::Gate { .. } => Step::refuse(Refusal::TooEarly),
            Stage::ReleaseJournal { .. }
            | Stage::Releasing { .. }
            | Stage::Released
            | Stage::AbortJournal { .. }
            | Stage::Undoing { .. }
            | Stage::Reclaiming { .. }
            | Stage::Restoring { .. }
            | Stage::Aborted { .. }
            | Stage::Lost { .. } => Step::none(),
        }
    }

    fn read_record(&mut self, reading: Reading) -> Out {
        if self.reading.is_some() {
            return Step::none();
        }
        self.reading = Some(reading);
        Step::one(SourceEffect::ReadRecord)
    }

    /// Rule 1: up to the gate the source gives up on its own; from the switchover on nobody's word is enough.
    fn abort(&mut self, cause: Cause, ordered: bool) -> Out {
        let undo = match self.stage {
            Stage::Begun | Stage::BeginJournal => Undo::Nothing,
            Stage::Connecting
            | Stage::Streaming { .. }
            | Stage::Sealing
            | Stage::Sealed { .. }
            | Stage::Gate { .. } => Undo::Stream,
            Stage::AbortJournal { .. }
            | Stage::Undoing { .. }
            | Stage::Reclaiming { .. }
            | Stage::Restoring { .. }
            | Stage::Aborted { .. }
            | Stage::Lost { .. } => return Step::none(),
            Stage::Switching { .. }
            | Stage::GoJournal { .. }
            | Stage::GoSent { .. }
            | Stage::ReleaseJournal { .. }
            | Stage::Releasing { .. }
            | Stage::Released => {
                return if ordered {
                    Step::refuse(Refusal::TooLate)
                } else {
                    Step::none()
                };
            }
        };
        self.journal_abort(cause, undo)
    }

    fn journal_abort(&mut self, cause: Cause, undo: Undo) -> Out {
        self.stage = Stage::AbortJournal { cause, undo };
        let switchover = undo == Undo::Switchover;
        Step::one(SourceEffect::Journal(SourceEntry::AbortIntent {
            cause,
            switchover,
        }))
    }

    fn path(&mut self, proven: bool) -> Out {
        self.path_proven = proven;
        self.consider_switch_over()
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
            (Stage::AbortJournal { cause, undo }, SourceEntry::AbortIntent { .. }) => {
                let (cause, undo) = (*cause, *undo);
                self.undo(cause, undo)
            }
            // An answer that belongs to a stage that was left meanwhile; the entry stands, and does no harm.
            (_, _) => Step::none(),
        }
    }

    fn undo(&mut self, cause: Cause, undo: Undo) -> Out {
        match undo {
            Undo::Nothing | Undo::RunsAlready => self.end_aborted(cause),
            Undo::Stream | Undo::Switchover => {
                // After a switchover too: a stream may still be trying to reach a destination that is gone.
                self.stage = Stage::Undoing {
                    cause,
                    switchover: undo == Undo::Switchover,
                };
                Step::one(SourceEffect::CancelStream)
            }
        }
    }

    fn end_aborted(&mut self, cause: Cause) -> Out {
        self.stage = Stage::Aborted { cause };
        Step::one(SourceEffect::Journal(SourceEntry::Aborted { cause }))
    }

    fn end_lost(&mut self, cause: Cause) -> Out {
        self.stage = Stage::Lost { cause };
        Step::one(SourceEffect::Journal(SourceEntry::Lost { cause }))
    }

    /// Without a journal there is no Go and no way to remember an abort. Up to the gate the guest simply goes on
    /// here: no Go can ever be said, because saying it needs the journal too.
    fn journal_failed(&mut self) -> Out {
        match self.stage {
            Stage::BeginJournal | Stage::Begun => {
                self.stage = Stage::Aborted {
                    cause: Cause::JournalFailed,
                };
                Step::none()
            }
            Stage::Connecting
            | Stage::Streaming { .. }
            | Stage::Sealing
            | Stage::Sealed { .. }
            | Stage::Gate { .. } => {
                self.stage = Stage::Undoing {
                    cause: Cause::JournalFailed,
                    switchover: false,
                };
                Step::one(SourceEffect::CancelStream)
            }
            Stage::AbortJournal { cause, undo } => match undo {
                // Nothing has switched over, so the hypervisor's own state tells a restarted agent as much.
                Undo::Nothing | Undo::Stream | Undo::RunsAlready => self.undo(cause, undo),
                // The record already says that the destination never will run the guest; it is read again after a
                // restart.
                Undo::Switchover => self.undo(cause, undo),
            },
            // No Go without the journal: stopped, until the record is decided.
            Stage::GoJournal { go, own } => {
                self.stage = Stage::Switching {
                    sealed: go.sealed,
                    own,
                    peer_loaded: false,
                };
                Step::none()
            }
            // The record has been read: destroying the process needs no further proof, and a restarted agent
            // reads the record again.
            Stage::ReleaseJournal { go } => {
                self.stage = Stage::Releasing { go };
                Step::one(SourceEffect::Destroy)
            }
            Stage::Switching { .. }
            | Stage::GoSent { .. }
            | Stage::Releasing { .. }
            | Stage::Released
            | Stage::Undoing { .. }
            | Stage::Reclaiming { .. }
            | Stage::Restoring { .. }
            | Stage::Aborted { .. }
            | Stage::Lost { .. } => Step::none(),
        }
    }

    fn stream_started(&mut self) -> Out {
        if self.stage == Stage::Connecting {
            // The intent is journaled while the guest runs, so that the stop itself waits for no disk.
            self.stage = Stage::Streaming {
                intent_journaled: false,
            };
            return Step::one(SourceEffect::Journal(SourceEntry::Intent { wanted: self.wanted }));
        }
        Step::none()
    }

    fn stream_not_started(&mut self, cause: Cause) -> Out {
        if self.stage == Stage::Connecting {
            self.journal_abort(cause, Undo::Stream)
        } else {
            Step::none()
        }
    }

    /// Rules 0 and 8: seal when what is left fits the budget, only with the intent journaled and the way for
    /// Ready and Go proved.
    fn pass(&mut self, pass: Pass) -> Out {
        let may = self.stage
            == (Stage::Streaming {
                intent_journaled: true,
            })
            && self.path_proven
            && self.gates.seal;
        if may && convergence::fits(pass, self.budget) {
            self.stage = Stage::Sealing;
            return Step::one(SourceEffect::Pause);
        }
        Step::none()
    }

    fn paused(&mut self, stream_active: bool) -> Out {
        if self.stage == Stage::Sealing && stream_active {
            self.stage = Stage::Sealed {
                entry: SealEntry::Writing,
                intent_journaled: true,
            };
            return Step::many(vec![
                SourceEffect::LiftLimits,
                SourceEffect::Journal(SourceEntry::Sealed),
            ]);
        }
        // Not active any more: the stream's own event says what became of it.
        Step::none()
    }

    fn pause_failed(&mut self) -> Out {
        if self.stage == Stage::Sealing {
            return self.journal_abort(Cause::HypervisorRefused, Undo::Stream);
        }
        Step::none()
    }

    fn before_switchover(&mut self) -> Out {
        match self.stage {
            Stage::Sealed {
                entry,
                intent_journaled,
            } => {
                self.stage = Stage::Gate {
                    sealed: Some(entry),
                    intent_journaled,
                };
                self.consider_switch_over()
            }
            // The hypervisor was faster than the pause, or found nothing left to wait for: unsealed.
            Stage::Streaming { intent_journaled } => {
                self.stage = Stage::Gate {
                    sealed: None,
                    intent_journaled,
                };
                self.consider_switch_over()
            }
            Stage::Sealing => {
                self.stage = Stage::Gate {
                    sealed: None,
                    intent_journaled: true,
                };
                self.consider_switch_over()
            }
            // The stream passed its setup before the answer to its start was seen.
            Stage::Connecting => {
                self.stage = Stage::Gate {
                    sealed: None,
                    intent_journaled: false,
                };
                Step::one(SourceEffect::Journal(SourceEntry::Intent { wanted: self.wanted }))
            }
            Stage::BeginJournal
            | Stage::Begun
            | Stage::Gate { .. }
            | Stage::Switching { .. }
            | Stage::GoJournal { .. }
            | Stage::GoSent { .. }
            | Stage::ReleaseJournal { .. }
            | Stage::Releasing { .. }
            | Stage::Released
            | Stage::AbortJournal { .. }
            | Stage::Undoing { .. }
            | Stage::Reclaiming { .. }
            | Stage::Restoring { .. }
            | Stage::Aborted { .. }
            | Stage::Lost { .. } => Step::none(),
        }
    }

    /// Rule 8: the switchover is entered only with a recent proof of the path; the guest stands still here, so
    /// without one it goes on at the source at once.
    fn consider_switch_over(&mut self) -> Out {
        let Stage::Gate {
            sealed,
            intent_journaled,
        } = self.stage
        else {
            return Step::none();
        };
        if !self.path_proven {
            return self.journal_abort(Cause::PathNotProven, Undo::Stream);
        }
        if !intent_journaled || sealed == Some(SealEntry::Writing) {
            return Step::none();
        }
        self.stage = Stage::Switching {
            sealed: sealed.is_some(),
            own: Own::Running,
            peer_loaded: false,
        };
        Step::one(SourceEffect::SwitchOver)
    }

    fn switch_over_refused(&mut self) -> Out {
        if let Stage::Switching {
            own: Own::Running, ..
        } = self.stage
        {
            return self.journal_abort(Cause::HypervisorRefused, Undo::Stream);
        }
        Step::none()
    }

    fn stream_completed(&mut self) -> Out {
        if let Stage::Switching { own, .. } = &mut self.stage
            && *own == Own::Running
        {
            *own = Own::Completed;
        }
        self.consider_go()
    }

    fn stream_failed(&mut self, running: bool) -> Out {
        match &mut self.stage {
            Stage::Connecting
            | Stage::Streaming { .. }
            | Stage::Sealing
            | Stage::Sealed { .. }
            | Stage::Gate { .. } => self.journal_abort(Cause::StreamFailed, Undo::Stream),
            Stage::Switching { own, .. } => {
                let release = fail_own(own, running);
                self.after_late_failure(running, release)
            }
            Stage::BeginJournal
            | Stage::Begun
            | Stage::GoJournal { .. }
            | Stage::GoSent { .. }
            | Stage::ReleaseJournal { .. }
            | Stage::Releasing { .. }
            | Stage::Released
            | Stage::AbortJournal { .. }
            | Stage::Undoing { .. }
            | Stage::Reclaiming { .. }
            | Stage::Restoring { .. }
            | Stage::Aborted { .. }
            | Stage::Lost { .. } => Step::none(),
        }
    }

    /// The hypervisor may have restarted an unsealed source by itself: it runs, so Go is never said. A source that
    /// stands still gives its disks up, so that the destination can take them.
    fn after_late_failure(&mut self, running: bool, release: bool) -> Out {
        if running {
            return self.journal_abort(Cause::StreamFailed, Undo::RunsAlready);
        }
        if release && self.gates.inactivate_disks {
            Step::one(SourceEffect::ReleaseDisks)
        } else {
            Step::none()
        }
    }

    fn stream_cancelled(&mut self) -> Out {
        match self.stage {
            Stage::Undoing {
                cause,
                switchover: true,
            } => {
                self.stage = Stage::Reclaiming { cause };
                Step::one(SourceEffect::ReclaimDisks)
            }
            Stage::Undoing {
                cause,
                switchover: false,
            } => {
                self.stage = Stage::Restoring { cause };
                Step::one(SourceEffect::Restore(self.wanted))
            }
            // Someone else cancelled it.
            Stage::Connecting
            | Stage::Streaming { .. }
            | Stage::Sealing
            | Stage::Sealed { .. }
            | Stage::Gate { .. } => self.journal_abort(Cause::StreamFailed, Undo::Stream),
            Stage::BeginJournal
            | Stage::Begun
            | Stage::Switching { .. }
            | Stage::GoJournal { .. }
            | Stage::GoSent { .. }
            | Stage::ReleaseJournal { .. }
            | Stage::Releasing { .. }
            | Stage::Released
            | Stage::AbortJournal { .. }
            | Stage::Reclaiming { .. }
            | Stage::Restoring { .. }
            | Stage::Aborted { .. }
            | Stage::Lost { .. } => Step::none(),
        }
    }

    fn disks_released(&mut self) -> Out {
        if let Stage::Switching { own, .. } = &mut self.stage
            && *own == Own::Failed
        {
            *own = Own::Released;
        }
        self.consider_go()
    }

    fn disks_reclaimed(&mut self) -> Out {
        if let Stage::Reclaiming { cause } = self.stage {
            self.stage = Stage::Restoring { cause };
            return Step::one(SourceEffect::Restore(self.wanted));
        }
        Step::none()
    }

    fn restored(&mut self) -> Out {
        if let Stage::Restoring { cause } = self.stage {
            self.end_aborted(cause)
        } else {
            Step::none()
        }
    }

    fn restore_failed(&mut self) -> Out {
        if let Stage::Restoring { .. } = self.stage {
            return Step::one(SourceEffect::Restore(self.wanted));
        }
        Step::none()
    }

    /// Rules 1, 4 and 6: only a record that was read, and names this migration, moves the source here.
    fn record_read(&mut self, record: Option<&RecordView>) -> Out {
        let Some((reading, record)) = self.reading.take().zip(record) else {
            return Step::none();
        };
        let (own, go) = match self.stage {
            Stage::Switching { own, .. } => (own, None),
            Stage::GoJournal { own, .. } => (own, None),
            Stage::GoSent { go, own } => (own, Some(go)),
            Stage::BeginJournal
            | Stage::Begun
            | Stage::Connecting
            | Stage::Streaming { .. }
            | Stage::Sealing
            | Stage::Sealed { .. }
            | Stage::Gate { .. }
            | Stage::ReleaseJournal { .. }
            | Stage::Releasing { .. }
            | Stage::Released
            | Stage::AbortJournal { .. }
            | Stage::Undoing { .. }
            | Stage::Reclaiming { .. }
            | Stage::Restoring { .. }
            | Stage::Aborted { .. }
            | Stage::Lost { .. } => return Step::none(),
        };
        if record.reverted_for(&self.terms) {
            return if own == Own::Dead {
                self.end_lost(Cause::SourceDied)
            } else {
                self.journal_abort(Cause::Reverted, Undo::Switchover)
            };
        }
        match (reading, go) {
            (Reading::Confirm, Some(go)) if record.advanced_for(&self.terms) => {
                self.stage = Stage::ReleaseJournal { go };
                Step::one(SourceEffect::Journal(SourceEntry::Released))
            }
            (Reading::Confirm | Reading::Settle, _) => Step::none(),
        }
    }

    fn destroyed(&mut self) -> Out {
        if let Stage::Releasing { .. } = self.stage {
            self.stage = Stage::Released;
        }
        Step::none()
    }

    /// Before the seal, and before the hypervisor's own stop, a pause or resume by anyone is the guest's wanted
    /// state. After it the guest cannot want anything.
    fn guest_wants(&mut self, wanted: Wanted) -> Out {
        match &mut self.stage {
            Stage::BeginJournal | Stage::Begun | Stage::Connecting => {
                self.wanted = wanted;
                Step::none()
            }
            Stage::Streaming { intent_journaled } => {
                if wanted == self.wanted {
                    return Step::none();
                }
                self.wanted = wanted;
                *intent_journaled = false;
                Step::one(SourceEffect::Journal(SourceEntry::Intent { wanted }))
            }
            // A guest that runs after a late failure was restarted by the hypervisor itself, or by someone's hand.
            Stage::Switching {
                own: Own::Failed | Own::Released,
                ..
            } if wanted == Wanted::Run => self.journal_abort(Cause::StreamFailed, Undo::RunsAlready),
            Stage::Sealing
            | Stage::Sealed { .. }
            | Stage::Gate { .. }
            | Stage::Switching { .. }
            | Stage::GoJournal { .. }
            | Stage::GoSent { .. }
            | Stage::ReleaseJournal { .. }
            | Stage::Releasing { .. }
            | Stage::Released
            | Stage::AbortJournal { .. }
            | Stage::Undoing { .. }
            | Stage::Reclaiming { .. }
            | Stage::Restoring { .. }
            | Stage::Aborted { .. }
            | Stage::Lost { .. } => Step::none(),
        }
    }

    /// A guest that ended by itself before the switchover keeps its state at the source. One that ended just as
    /// it was stopped is taken over as it is: nobody lets it run again.
    fn guest_ended(&mut self) -> Out {
        let known = self.wanted == Wanted::StayStopped;
        self.wanted = Wanted::StayStopped;
        match self.stage {
            Stage::BeginJournal | Stage::Begun => self.journal_abort(Cause::GuestStopped, Undo::Nothing),
            Stage::Connecting | Stage::Streaming { .. } | Stage::Sealing => {
                self.journal_abort(Cause::GuestStopped, Undo::Stream)
            }
            Stage::Sealed {
                ref mut intent_journaled,
                ..
            }
            | Stage::Gate {
                ref mut intent_journaled,
                ..
            } => {
                if known {
                    return Step::none();
                }
                *intent_journaled = false;
                Step::one(SourceEffect::Journal(SourceEntry::Intent {
                    wanted: Wanted::StayStopped,
                }))
            }
            Stage::Switching { .. }
            | Stage::GoJournal { .. }
            | Stage::GoSent { .. }
            | Stage::ReleaseJournal { .. }
            | Stage::Releasing { .. }
            | Stage::Released
            | Stage::AbortJournal { .. }
            | Stage::Undoing { .. }
            | Stage::Reclaiming { .. }
            | Stage::Restoring { .. }
            | Stage::Aborted { .. }
            | Stage::Lost { .. } => Step::none(),
        }
    }

    fn died(&mut self) -> Out {
        match &mut self.stage {
            // Nothing can be loaded elsewhere before the switchover: the guest died with its process.
            Stage::BeginJournal
            | Stage::Begun
            | Stage::Connecting
            | Stage::Streaming { .. }
            | Stage::Sealing
            | Stage::Sealed { .. }
            | Stage::Gate { .. }
            | Stage::AbortJournal { .. }
            | Stage::Undoing { .. }
            | Stage::Reclaiming { .. }
            | Stage::Restoring { .. } => self.end_lost(Cause::SourceDied),
            Stage::Switching { own, .. } => {
                *own = Own::Dead;
                self.consider_go()
            }
            Stage::GoJournal { own, .. } | Stage::GoSent { own, .. } => {
                *own = Own::Dead;
                Step::none()
            }
            Stage::Releasing { .. } => {
                self.stage = Stage::Released;
                Step::none()
            }
            Stage::ReleaseJournal { .. } | Stage::Released | Stage::Aborted { .. } | Stage::Lost { .. } => {
                Step::none()
            }
        }
    }
}

/// Notes a late failure; whether the disks are now to be given up.
fn fail_own(own: &mut Own, running: bool) -> bool {
    match own {
        Own::Running => {
            if !running {
                *own = Own::Failed;
            }
            !running
        }
        // An acknowledged stream does not fail any more, and a repeated report changes nothing.
        Own::Completed | Own::Failed | Own::Released | Own::Dead => false,
    }
}

fn report_of(stage: &Stage) -> SourceReport {
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
            },
            Own::Failed | Own::Released => SourceReport::InDoubt {
                sealed: *sealed,
                ready: *peer_loaded,
            },
            Own::Dead => SourceReport::Died,
        },
        Stage::GoJournal { go, .. } => SourceReport::Switching {
            sealed: go.sealed,
            ready: true,
        },
        // While the source lets go its process may still live: the driver waits for Released.
        Stage::GoSent { go, .. } | Stage::ReleaseJournal { go } | Stage::Releasing { go } => {
            SourceReport::GoSent(*go)
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
