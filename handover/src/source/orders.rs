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
            Group::Bound if matches!(self.stage, Stage::GoSent { .. }) => self.read_record(Reading::Confirm),
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

    fn read_record(&mut self, reading: Reading) -> Out {
        if self.reading.is_some() {
            return Step::none();
        }
        self.reading = Some(reading);
        Step::one(SourceEffect::ReadRecord)
    }

    /// Rules 1, 4 and 6: only a record that was read, and names this migration, moves the source here.
    pub(super) fn record_read(&mut self, record: Option<&RecordView>) -> Out {
        let Some((reading, record)) = self.reading.take().zip(record) else {
            return Step::none();
        };
        let (own, go) = if let Stage::GoSent { go, own } = self.stage {
            (own, Some(go))
        } else if let Stage::Switching { own, .. } | Stage::GoJournal { own, .. } = self.stage {
            (own, None)
        } else {
            return Step::none();
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
