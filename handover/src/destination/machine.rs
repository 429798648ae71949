//! The destination's transitions. What is not listed for a stage is a repetition or comes too late, and changes
//! nothing.

use super::{Destination, DestinationEffect, DestinationEntry, DestinationEvent, DestinationReport, Stage};
use crate::gates::Gates;
use crate::terms::{Cause, Channel, Go, GoEvidence, Refusal, Step, Terms, Wanted};

type Out = Step<DestinationEffect>;

/// A journal has room for so many refusals. After them the guest is tried again without a further entry, and a
/// process that dies then counts as one that may have run.
const JOURNALED_REFUSALS: u8 = 8;

impl Destination {
    /// Takes a migration on. No process is started before the journal has answered.
    ///
    /// # Errors
    /// [`Refusal::GatesMissing`] if the hypervisor cannot keep a loaded guest stopped.
    pub fn prepare(terms: Terms, gates: Gates) -> Result<(Self, Out), Refusal> {
        if !gates.keep_destination_paused {
            return Err(Refusal::GatesMissing);
        }
        let entry = DestinationEntry::Prepared { terms: terms.clone() };
        Ok((
            Self {
                terms,
                gates,
                refusals: 0,
                told: None,
                stage: Stage::PrepareJournal,
            },
            Step::one(DestinationEffect::Journal(entry)),
        ))
    }

    /// What the migration is about.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Whether nothing will happen any more.
    pub fn is_final(&self) -> bool {
        matches!(
            self.stage,
            Stage::Holding { .. } | Stage::Reverted { .. } | Stage::Lost { .. }
        )
    }

    /// What the driver is told.
    pub fn report(&self) -> DestinationReport {
        match &self.stage {
            Stage::PrepareJournal | Stage::Launching => DestinationReport::Preparing,
            Stage::Prepared { channel } => DestinationReport::Prepared(channel.clone()),
            Stage::Receiving => DestinationReport::Receiving,
            Stage::Loaded {
                journal_broken: false,
            }
            | Stage::Asking => DestinationReport::Loaded,
            Stage::CommitJournal { .. } | Stage::Committing { .. } | Stage::Marking { .. } => {
                DestinationReport::Deciding
            }
            Stage::Loaded { journal_broken: true } => DestinationReport::Blocked,
            Stage::ContJournal { .. } | Stage::Starting { .. } | Stage::RefusedJournal { .. } => {
                DestinationReport::Starting
            }
            Stage::Holding { running } => DestinationReport::Holding { running: *running },
            Stage::RevertJournal { cause, .. } | Stage::Destroying { cause } => {
                DestinationReport::Reverting(*cause)
            }
            Stage::Reverted { cause } => DestinationReport::Reverted(*cause),
            Stage::Lost { cause } => DestinationReport::Lost(*cause),
        }
    }

    /// Takes an event; gives the new state and what is to be done.
    #[must_use]
    pub fn step(&self, event: DestinationEvent) -> (Self, Out) {
        let mut next = self.clone();
        let out = next.take(event);
        (next, out)
    }

    fn take(&mut self, event: DestinationEvent) -> Out {
        match event {
            DestinationEvent::Prepare(terms) => {
                if terms == self.terms {
                    Step::none()
                } else {
                    Step::refuse(Refusal::OtherTerms)
                }
            }
            DestinationEvent::Finish(go) => self.finish(go),
            DestinationEvent::Abort(cause) => self.abort(cause),
            DestinationEvent::SourceStands(standing) => self.source_stands(standing),
            DestinationEvent::Arbitrate => self.arbitrate(true),
            DestinationEvent::RecordRead(record) => self.record_read(record.as_ref()),
            DestinationEvent::DriverSilent => self.driver_silent(),
            DestinationEvent::NobodyConnected => self.unused(Cause::StreamFailed),
            DestinationEvent::Journaled(entry) => self.journaled(&entry),
            DestinationEvent::JournalFailed => self.journal_failed(),
            DestinationEvent::Launched(channel) => self.launched(channel),
            DestinationEvent::LaunchFailed => self.launch_failed(),
            DestinationEvent::Connected => self.connected(),
            DestinationEvent::Loaded => self.loaded(),
            DestinationEvent::StreamFailed => self.stream_failed(),
            DestinationEvent::Resumed => self.resumed(),
            DestinationEvent::ResumeRefused => self.resume_refused(),
            DestinationEvent::NotRunnable => self.not_runnable(),
            DestinationEvent::Destroyed => self.destroyed(),
            DestinationEvent::Died => self.died(),
        }
    }

    /// Rule 3: the guest runs only with a received Go, after `cont-issued` was journaled.
    fn finish(&mut self, go: Go) -> Out {
        match self.stage {
            // Under strict terms it is the record that lets the guest run.
            Stage::Loaded {
                journal_broken: false,
            }
            | Stage::Asking
                if self.terms.strict =>
            {
                self.commit(go)
            }
            Stage::CommitJournal { .. } | Stage::Committing { .. } if self.terms.strict => Step::none(),
            // The source's word is enough by itself: a commitment that is on its way says nothing else.
            Stage::Loaded {
                journal_broken: false,
            }
            | Stage::Asking
            | Stage::CommitJournal { .. }
            | Stage::Committing { .. } => self.start(go),
            Stage::Loaded { journal_broken: true }
            | Stage::Marking { .. }
            | Stage::ContJournal { .. }
            | Stage::Starting { .. }
            | Stage::RefusedJournal { .. }
            | Stage::Holding { .. } => Step::none(),
            Stage::PrepareJournal | Stage::Launching | Stage::Prepared { .. } | Stage::Receiving => {
                Step::refuse(Refusal::TooEarly)
            }
            Stage::RevertJournal { .. }
            | Stage::Destroying { .. }
            | Stage::Reverted { .. }
            | Stage::Lost { .. } => Step::refuse(Refusal::Ended),
        }
    }

    pub(super) fn start(&mut self, go: Go) -> Out {
        self.stage = Stage::ContJournal { go };
        Step::one(DestinationEffect::Journal(match go.wanted {
            Wanted::Run => DestinationEntry::ContIssued(go),
            Wanted::StayStopped => DestinationEntry::TakenOver(go),
        }))
    }

    /// The driver's word that the source keeps the guest. Once Go has arrived it comes too late.
    fn abort(&mut self, cause: Cause) -> Out {
        match self.stage {
            Stage::PrepareJournal => self.revert(cause, false),
            Stage::Launching
            | Stage::Prepared { .. }
            | Stage::Receiving
            | Stage::Loaded { .. }
            | Stage::Asking
            | Stage::CommitJournal { .. } => self.revert(cause, true),
            // Committed may stand in the record: what it says is waited for.
            Stage::Committing { .. }
            | Stage::Marking { .. }
            | Stage::ContJournal { .. }
            | Stage::Starting { .. }
            | Stage::RefusedJournal { .. }
            | Stage::Holding { .. } => Step::refuse(Refusal::TooLate),
            Stage::RevertJournal { .. }
            | Stage::Destroying { .. }
            | Stage::Reverted { .. }
            | Stage::Lost { .. } => Step::none(),
        }
    }

    /// A process that has taken nothing yet may be given up because of a silence: it holds no image.
    pub(super) fn unused(&mut self, cause: Cause) -> Out {
        match self.stage {
            Stage::Prepared { .. } => self.revert(cause, true),
            Stage::PrepareJournal
            | Stage::Launching
            | Stage::Receiving
            | Stage::Loaded { .. }
            | Stage::Asking
            | Stage::CommitJournal { .. }
            | Stage::Committing { .. }
            | Stage::Marking { .. }
            | Stage::ContJournal { .. }
            | Stage::Starting { .. }
            | Stage::RefusedJournal { .. }
            | Stage::Holding { .. }
            | Stage::RevertJournal { .. }
            | Stage::Destroying { .. }
            | Stage::Reverted { .. }
            | Stage::Lost { .. } => Step::none(),
        }
    }

    pub(super) fn revert(&mut self, cause: Cause, alive: bool) -> Out {
        self.stage = Stage::RevertJournal { cause, alive };
        Step::one(DestinationEffect::Journal(DestinationEntry::RevertIntent {
            cause,
        }))
    }

    fn journaled(&mut self, entry: &DestinationEntry) -> Out {
        match (&self.stage, entry) {
            (Stage::PrepareJournal, DestinationEntry::Prepared { .. }) => {
                self.stage = Stage::Launching;
                Step::one(DestinationEffect::Launch)
            }
            (Stage::CommitJournal { go }, DestinationEntry::CommitIntent(_)) => {
                self.stage = Stage::Committing { go: *go };
                Step::one(DestinationEffect::DecideCommitted)
            }
            (Stage::ContJournal { go }, DestinationEntry::ContIssued(_)) => {
                self.stage = Stage::Starting { go: *go };
                Step::one(DestinationEffect::Resume)
            }
            (Stage::ContJournal { .. }, DestinationEntry::TakenOver(_)) => {
                self.stage = Stage::Holding { running: false };
                Step::none()
            }
            // Nobody gives a Go again that nobody gave: the record is read once more.
            (Stage::RefusedJournal { go }, DestinationEntry::ContRefused)
                if self.terms.strict || go.evidence == GoEvidence::Committed =>
            {
                self.stage = Stage::Committing { go: *go };
                Step::one(DestinationEffect::DecideCommitted)
            }
            // The driver sees Loaded and gives the source's Go again.
            (Stage::RefusedJournal { .. }, DestinationEntry::ContRefused) => {
                self.stage = Stage::Loaded {
                    journal_broken: false,
                };
                Step::none()
            }
            (Stage::RevertJournal { cause, alive }, DestinationEntry::RevertIntent { .. }) => {
                let (cause, alive) = (*cause, *alive);
                self.destroy(cause, alive)
            }
            (_, _) => Step::none(),
        }
    }

    fn destroy(&mut self, cause: Cause, alive: bool) -> Out {
        if alive {
            self.stage = Stage::Destroying { cause };
            return Step::one(DestinationEffect::Destroy);
        }
        self.end_reverted(cause)
    }

    fn end_reverted(&mut self, cause: Cause) -> Out {
        self.stage = Stage::Reverted { cause };
        Step::one(DestinationEffect::Journal(DestinationEntry::Reverted { cause }))
    }

    /// Without a journal the guest is never let run: a restarted agent could not know of it.
    fn journal_failed(&mut self) -> Out {
        match self.stage {
            Stage::PrepareJournal => {
                self.stage = Stage::Reverted {
                    cause: Cause::JournalFailed,
                };
                Step::none()
            }
            Stage::CommitJournal { .. } | Stage::ContJournal { .. } | Stage::RefusedJournal { .. } => {
                self.stage = Stage::Loaded { journal_broken: true };
                Step::none()
            }
            // The promise could not be written down, but a dead process keeps it all the same: the process is
            // destroyed before anyone is told, and a restarted agent finds it gone.
            Stage::RevertJournal { cause, alive: false } => {
                self.stage = Stage::Reverted { cause };
                Step::none()
            }
            Stage::RevertJournal { cause, alive: true } => {
                self.stage = Stage::Destroying { cause };
                Step::one(DestinationEffect::Destroy)
            }
            Stage::Launching
            | Stage::Prepared { .. }
            | Stage::Receiving
            | Stage::Loaded { .. }
            | Stage::Asking
            | Stage::Committing { .. }
            | Stage::Marking { .. }
            | Stage::Starting { .. }
            | Stage::Holding { .. }
            | Stage::Destroying { .. }
            | Stage::Reverted { .. }
            | Stage::Lost { .. } => Step::none(),
        }
    }

    fn launched(&mut self, channel: Channel) -> Out {
        if self.stage == Stage::Launching {
            self.stage = Stage::Prepared { channel };
        }
        Step::none()
    }

    fn launch_failed(&mut self) -> Out {
        match self.stage {
            Stage::Launching => self.revert(Cause::DestinationFailed, false),
            // Given up while it was being launched.
            Stage::RevertJournal { cause, .. } => {
                self.stage = Stage::RevertJournal { cause, alive: false };
                Step::none()
            }
            Stage::Destroying { cause } => self.end_reverted(cause),
            Stage::PrepareJournal
            | Stage::Prepared { .. }
            | Stage::Receiving
            | Stage::Loaded { .. }
            | Stage::Asking
            | Stage::CommitJournal { .. }
            | Stage::Committing { .. }
            | Stage::Marking { .. }
            | Stage::ContJournal { .. }
            | Stage::Starting { .. }
            | Stage::RefusedJournal { .. }
            | Stage::Holding { .. }
            | Stage::Reverted { .. }
            | Stage::Lost { .. } => Step::none(),
        }
    }

    fn connected(&mut self) -> Out {
        if let Stage::Prepared { .. } = self.stage {
            self.stage = Stage::Receiving;
        }
        Step::none()
    }

    fn loaded(&mut self) -> Out {
        if let Stage::Prepared { .. } | Stage::Receiving = self.stage {
            self.stage = Stage::Loaded {
                journal_broken: false,
            };
        }
        Step::none()
    }

    fn stream_failed(&mut self) -> Out {
        match self.stage {
            Stage::Prepared { .. } | Stage::Receiving => self.revert(Cause::StreamFailed, true),
            Stage::PrepareJournal
            | Stage::Launching
            | Stage::Loaded { .. }
            | Stage::Asking
            | Stage::CommitJournal { .. }
            | Stage::Committing { .. }
            | Stage::Marking { .. }
            | Stage::ContJournal { .. }
            | Stage::Starting { .. }
            | Stage::RefusedJournal { .. }
            | Stage::Holding { .. }
            | Stage::RevertJournal { .. }
            | Stage::Destroying { .. }
            | Stage::Reverted { .. }
            | Stage::Lost { .. } => Step::none(),
        }
    }

    fn resumed(&mut self) -> Out {
        if let Stage::Starting { .. } = self.stage {
            self.stage = Stage::Holding { running: true };
        }
        Step::none()
    }

    /// A refusal with the guest seen to stand still is a positive fact: it never ran.
    fn resume_refused(&mut self) -> Out {
        if let Stage::Starting { go } = self.stage {
            self.refusals = self.refusals.saturating_add(1);
            if self.refusals > JOURNALED_REFUSALS {
                return Step::one(DestinationEffect::Resume);
            }
            self.stage = Stage::RefusedJournal { go };
            return Step::one(DestinationEffect::Journal(DestinationEntry::ContRefused));
        }
        Step::none()
    }

    /// The Go was said before it was known that the guest had ended: it is taken over as it is.
    fn not_runnable(&mut self) -> Out {
        if let Stage::Starting { go } = self.stage {
            let go = Go {
                wanted: Wanted::StayStopped,
                ..go
            };
            self.stage = Stage::ContJournal { go };
            return Step::one(DestinationEffect::Journal(DestinationEntry::TakenOver(go)));
        }
        Step::none()
    }

    fn destroyed(&mut self) -> Out {
        if let Stage::Destroying { cause } = self.stage {
            self.end_reverted(cause)
        } else {
            Step::none()
        }
    }

    /// Rule 4: a process that died before `cont-issued` never ran the guest.
    fn died(&mut self) -> Out {
        match self.stage {
            Stage::PrepareJournal => Step::none(),
            // `LaunchFailed` follows and says so.
            Stage::Launching => Step::none(),
            // A commitment that is on its way, or written, is taken back by what follows from this (rule 4).
            Stage::Prepared { .. }
            | Stage::Receiving
            | Stage::Loaded { .. }
            | Stage::Asking
            | Stage::CommitJournal { .. }
            | Stage::Committing { .. }
            | Stage::Marking { .. } => self.revert(Cause::DestinationDied, false),
            // `cont-issued` is being written; the guest was not let run yet, and will not be.
            Stage::ContJournal { .. } => self.revert(Cause::DestinationDied, false),
            // It was let run, or may have been.
            Stage::Starting { .. } => {
                self.stage = Stage::Lost {
                    cause: Cause::DestinationDied,
                };
                Step::none()
            }
            // Refused and seen to stand still.
            Stage::RefusedJournal { .. } => self.revert(Cause::DestinationDied, false),
            Stage::RevertJournal { cause, .. } => {
                self.stage = Stage::RevertJournal { cause, alive: false };
                Step::none()
            }
            Stage::Destroying { cause } => self.end_reverted(cause),
            Stage::Holding { .. } | Stage::Reverted { .. } | Stage::Lost { .. } => Step::none(),
        }
    }
}
