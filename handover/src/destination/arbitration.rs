//! What a loaded destination does when nobody says Go: it asks the record (rule 3). It commits it by itself only where it
//! was told that the source's guest does not run again by itself; and gives its copy up only where the record was read
//! to say that it never will run.

use super::{Destination, DestinationEffect, DestinationEntry, Stage};
use crate::terms::{Cause, Go, GoEvidence, RecordView, Refusal, Standing, StandingBecause, Step, Wanted};

type Out = Step<DestinationEffect>;

impl Destination {
    /// What was told once stays so: only the record makes the source's guest run again.
    pub(super) fn source_stands(&mut self, standing: Standing) -> Out {
        match self.stage {
            Stage::PrepareJournal | Stage::Launching => Step::refuse(Refusal::TooEarly),
            Stage::Prepared { .. } | Stage::Receiving | Stage::Loaded { .. } | Stage::Asking => {
                self.told = Some(standing);
                Step::none()
            }
            Stage::CommitJournal { .. }
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

    /// A process that has taken nothing yet is given up; a loaded guest's record is asked.
    pub(super) fn driver_silent(&mut self) -> Out {
        if let Stage::Loaded { .. } = self.stage {
            self.arbitrate(false)
        } else {
            self.unused(Cause::DriverSilent)
        }
    }

    pub(super) fn arbitrate(&mut self, ordered: bool) -> Out {
        match self.stage {
            Stage::Loaded {
                journal_broken: false,
            } => {
                let Some(Standing { because, wanted }) = self.told else {
                    self.stage = Stage::Asking;
                    return Step::one(DestinationEffect::ReadRecord);
                };
                let go = Go {
                    evidence: GoEvidence::Committed,
                    wanted,
                    sealed: because == StandingBecause::Sealed,
                };
                self.commit(go)
            }
            // What nobody has connected to is given up where the record says that the source is gone for good.
            Stage::Prepared { .. } if ordered => Step::one(DestinationEffect::ReadRecord),
            Stage::PrepareJournal | Stage::Launching | Stage::Receiving if ordered => {
                Step::refuse(Refusal::TooEarly)
            }
            // Without a journal the guest is never let run, and nothing is promised.
            Stage::Loaded { journal_broken: true }
            | Stage::PrepareJournal
            | Stage::Launching
            | Stage::Prepared { .. }
            | Stage::Receiving
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

    pub(super) fn commit(&mut self, go: Go) -> Out {
        self.stage = Stage::CommitJournal { go };
        Step::one(DestinationEffect::Journal(DestinationEntry::CommitIntent(go)))
    }

    /// Whether the record says that this image never will run.
    fn over_by(&self, record: &RecordView) -> bool {
        record.reverted_for(&self.terms)
            || record.left_behind(&self.terms)
            || record.advanced_for(&self.terms) && record.given_up(&self.terms)
    }

    pub(super) fn record_read(&mut self, record: Option<&RecordView>) -> Out {
        let over = record.is_some_and(|record| self.over_by(record));
        let source_fenced = record.is_some_and(|record| record.source_fenced(&self.terms));
        match self.stage {
            Stage::Asking | Stage::Committing { .. } | Stage::Marking { .. } if over => {
                self.revert(Cause::Reverted, true)
            }
            Stage::Prepared { .. } if source_fenced => self.revert(Cause::SourceDied, true),
            // Rule 5: a fenced host runs nothing any more; what the guest was to do there, nobody can say otherwise.
            Stage::Asking if source_fenced => {
                let standing = Standing {
                    because: StandingBecause::SourceFenced,
                    wanted: self.told.map_or(Wanted::Run, |told| told.wanted),
                };
                self.told = Some(standing);
                self.stage = Stage::Loaded {
                    journal_broken: false,
                };
                self.arbitrate(false)
            }
            Stage::Asking => {
                self.stage = Stage::Loaded {
                    journal_broken: false,
                };
                Step::none()
            }
            Stage::Committing { go } => {
                let committed = record.filter(|record| record.committed_for(&self.terms));
                match committed {
                    Some(record) if self.terms.strict && !record.started => {
                        self.stage = Stage::Marking { go };
                        Step::one(DestinationEffect::MarkStarted)
                    }
                    Some(_) => self.start(go),
                    // Not written, or not known whether it was: it is asked again until the record says.
                    None => Step::one(DestinationEffect::DecideCommitted),
                }
            }
            Stage::Marking { go } => {
                if record.is_some_and(|record| record.committed_for(&self.terms) && record.started) {
                    self.start(go)
                } else {
                    Step::one(DestinationEffect::MarkStarted)
                }
            }
            // An answer to what was left meanwhile.
            Stage::PrepareJournal
            | Stage::Launching
            | Stage::Prepared { .. }
            | Stage::Receiving
            | Stage::Loaded { .. }
            | Stage::CommitJournal { .. }
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
}
