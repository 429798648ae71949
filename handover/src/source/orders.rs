//! What the driver orders, and what the record says when it is read on an order.

use super::stage::{Group, Own, Reading, Stage, Undo};
use super::{Source, SourceEffect, SourceEntry};
use crate::terms::{Cause, Channel, Go, GoEvidence, RecordView, Refusal, Step, Terms};

type Out = Step<SourceEffect>;

impl Source {
    pub(super) fn repeated_begin(&self, terms: &Terms) -> Out {
        if *terms == self.terms {
            Step::none()
        } else {
            Step::refuse(Refusal::OtherTerms)
        }
    }

    pub(super) fn perform(&mut self, channel: Channel) -> Out {
        match self.stage.group() {
            Group::Before if self.stage == Stage::Begun => {
                self.stage = Stage::Connecting;
                Step::one(SourceEffect::StartStream(channel))
            }
            Group::Before => Step::refuse(Refusal::TooEarly),
            Group::Free | Group::Bound | Group::LettingGo | Group::GivingUp => Step::none(),
            Group::Released | Group::Over => Step::refuse(Refusal::Ended),
        }
    }

    pub(super) fn ready(&mut self) -> Out {
        match self.stage.group() {
            Group::Before | Group::Free => Step::refuse(Refusal::TooEarly),
            Group::Bound => {
                if let Stage::Switching { peer_loaded, .. } = &mut self.stage {
                    *peer_loaded = true;
                }
                self.consider_go()
            }
            Group::LettingGo | Group::Released => Step::none(),
            Group::GivingUp | Group::Over => Step::refuse(Refusal::Ended),
        }
    }

    /// Rule 2: Go only after it was journaled. Rule 1: a source whose stream failed gives its disks up first.
    pub(super) fn consider_go(&mut self) -> Out {
        let Stage::Switching {
            sealed,
            own,
            peer_loaded: true,
        } = self.stage
        else {
            return Step::none();
        };
        if self.journal_broken {
            return Step::none();
        }
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

    pub(super) fn confirm(&mut self) -> Out {
        match self.stage.group() {
            // Without a Go too: the destination may have committed the record by itself.
            Group::Bound if !self.writing_a_promise() => self.read_record(Reading::Confirm),
            Group::Before | Group::Free | Group::Bound => Step::refuse(Refusal::TooEarly),
            Group::LettingGo | Group::Released => Step::none(),
            Group::GivingUp | Group::Over => Step::refuse(Refusal::Ended),
        }
    }

    pub(super) fn settle(&mut self) -> Out {
        match self.stage.group() {
            Group::Before | Group::Free => Step::refuse(Refusal::TooEarly),
            Group::Bound => self.read_record(Reading::Settle),
            Group::LettingGo | Group::Released | Group::GivingUp | Group::Over => Step::none(),
        }
    }

    /// Whether an entry is on its way to the journal that says what this side will never do.
    fn writing_a_promise(&self) -> bool {
        matches!(self.stage, Stage::GoJournal { .. } | Stage::DecideJournal { .. })
    }

    /// Order: the destination is not heard.
    pub(super) fn arbitrate_ordered(&mut self, cause: Cause) -> Out {
        match self.stage.group() {
            Group::Before | Group::Free => Step::refuse(Refusal::TooEarly),
            Group::Bound => self.arbitrate(cause),
            Group::LettingGo | Group::Released | Group::GivingUp | Group::Over => Step::none(),
        }
    }

    pub(super) fn driver_silent(&mut self) -> Out {
        let dead = self.stage.own_mut().is_some_and(|own| *own == Own::Dead);
        match self.stage.group() {
            // Nothing is left that could be done wrong: the record may say that it has ended, and no driver be left to
            // say so.
            Group::Bound if dead && !self.writing_a_promise() => self.read_record(Reading::Settle),
            // Where there is nothing to ask for, what the record says is still worth knowing.
            Group::Bound => match self.arbitrate(Cause::DriverSilent) {
                asked if asked.effects.is_empty() && !self.writing_a_promise() => {
                    self.read_record(Reading::Settle)
                }
                asked => asked,
            },
            Group::Before
            | Group::Free
            | Group::LettingGo
            | Group::Released
            | Group::GivingUp
            | Group::Over => self.abort(Cause::DriverSilent, false),
        }
    }

    /// Rule 2: Aborted is asked of the record only where Go was never journaled, and after it was journaled that it
    /// never will be. A dead process has nothing to come back to: it waits for Ready, or for the destination's own
    /// commitment.
    ///
    /// Under strict terms a Go lets nobody run the guest by itself, so that a source that has said it may ask as well.
    pub(super) fn arbitrate(&mut self, cause: Cause) -> Out {
        let (sealed, own) = match self.stage {
            Stage::Switching { sealed, own, .. } => (sealed, own),
            Stage::GoSent {
                go: Go { sealed, .. },
                own,
            } if self.terms.strict => (sealed, own),
            Stage::GoSent { .. }
            | Stage::BeginJournal
            | Stage::Begun
            | Stage::Connecting
            | Stage::Streaming { .. }
            | Stage::Sealing
            | Stage::Sealed { .. }
            | Stage::Gate { .. }
            | Stage::GoJournal { .. }
            | Stage::DecideJournal { .. }
            | Stage::Deciding { .. }
            | Stage::Yielded { .. }
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
        if self.journal_broken {
            return Step::none();
        }
        match own {
            Own::Dead => Step::none(),
            Own::Running | Own::Completed | Own::Failed | Own::Released => {
                self.stage = Stage::DecideJournal { cause, sealed, own };
                Step::one(SourceEffect::Journal(SourceEntry::Arbitrating { cause }))
            }
        }
    }

    pub(super) fn decide(&mut self, cause: Cause, sealed: bool, own: Own) -> Out {
        self.stage = Stage::Deciding { cause, sealed, own };
        self.reading = Some(Reading::Decide);
        Step::one(if own == Own::Dead {
            SourceEffect::ReadRecord
        } else {
            SourceEffect::DecideAborted
        })
    }

    fn read_record(&mut self, reading: Reading) -> Out {
        if self.reading.is_some() {
            return Step::none();
        }
        self.reading = Some(reading);
        Step::one(SourceEffect::ReadRecord)
    }

    /// Rules 1, 4 and 6: only a record that was read, and names this migration, moves the source here.
    pub(super) fn record_read(&mut self, record: Option<&RecordView>) -> Out {
        let Some(reading) = self.reading.take() else {
            return Step::none();
        };
        let (own, go) = match self.stage {
            Stage::GoSent { go, own } => (own, Some(go)),
            Stage::Switching { own, .. }
            | Stage::GoJournal { own, .. }
            | Stage::Deciding { own, .. }
            | Stage::Yielded { own } => (own, None),
            // What is being journaled comes first; the record is read again after it.
            Stage::DecideJournal { .. }
            | Stage::BeginJournal
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
        if record.is_some_and(|record| record.reverted_for(&self.terms)) {
            if own == Own::Dead {
                return self.end_lost(Cause::SourceDied);
            }
            let asked = if let Stage::Deciding { cause, .. } = self.stage {
                Some(cause)
            } else {
                None
            };
            return self.journal_abort(asked.unwrap_or(Cause::Reverted), Undo::Switchover);
        }
        let advanced = record.is_some_and(|record| record.advanced_for(&self.terms));
        let left_behind = record.is_some_and(|record| record.left_behind(&self.terms));
        // Nobody has to say that a process may be destroyed which is gone, and nobody waits for one that is called gone.
        let over = own == Own::Dead && record.is_some_and(|record| record.is_past(&self.terms));
        let fenced = advanced && record.is_some_and(|record| record.source_fenced(&self.terms));
        if advanced && reading == Reading::Confirm || left_behind || over || fenced {
            self.stage = Stage::ReleaseJournal { go };
            return Step::one(SourceEffect::Journal(SourceEntry::Released));
        }
        let Stage::Deciding { cause, sealed, own } = self.stage else {
            return Step::none();
        };
        if advanced || record.is_some_and(|record| record.committed_for(&self.terms)) {
            self.stage = Stage::Yielded { own };
            return Step::none();
        }
        // Not written, or not known whether it was: it is asked again until the record says. A dead process has
        // nothing to ask for; the driver tells when the record is to be read again.
        if own == Own::Dead {
            Step::none()
        } else {
            self.decide(cause, sealed, own)
        }
    }

    /// Rule 1: up to the gate the source gives up on its own; from the switchover on nobody's word is enough.
    pub(super) fn abort(&mut self, cause: Cause, ordered: bool) -> Out {
        match self.stage.group() {
            Group::Before => self.journal_abort(cause, Undo::Nothing),
            Group::Free => self.journal_abort(cause, Undo::Stream),
            Group::Bound | Group::LettingGo | Group::Released if ordered => Step::refuse(Refusal::TooLate),
            Group::Bound | Group::LettingGo | Group::Released => Step::none(),
            Group::GivingUp | Group::Over => Step::none(),
        }
    }
}
