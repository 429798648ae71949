//! The ways out: giving up, letting go, and what is done without a journal or a process.

use super::stage::{Group, Own, Stage, Undo};
use super::{Source, SourceEffect, SourceEntry};
use crate::terms::{Cause, Go, Step};

type Out = Step<SourceEffect>;

impl Source {
    pub(super) fn journal_abort(&mut self, cause: Cause, undo: Undo) -> Out {
        self.stage = Stage::AbortJournal { cause, undo };
        let switchover = undo == Undo::Switchover;
        Step::one(SourceEffect::Journal(SourceEntry::AbortIntent {
            cause,
            switchover,
        }))
    }

    /// Without a journal there is no Go and no way to remember an abort. Up to the gate the guest simply goes on
    /// here: no Go can ever be said, because saying it needs the journal too.
    pub(super) fn journal_failed(&mut self) -> Out {
        self.journal_broken = true;
        match self.stage.group() {
            Group::Before => {
                self.stage = Stage::Aborted {
                    cause: Cause::JournalFailed,
                };
                Step::none()
            }
            Group::Free => {
                self.stage = Stage::Undoing {
                    cause: Cause::JournalFailed,
                    switchover: false,
                };
                Step::one(SourceEffect::CancelStream)
            }
            Group::Bound => {
                // No Go without the journal, and no abort either, which a restarted agent could not know of: stopped,
                // until the record is decided.
                let (Stage::GoJournal {
                    go: Go { sealed, .. },
                    own,
                }
                | Stage::DecideJournal { sealed, own, .. }) = self.stage
                else {
                    return Step::none();
                };
                self.stage = Stage::Switching {
                    sealed,
                    own,
                    peer_loaded: false,
                };
                Step::none()
            }
            Group::LettingGo => {
                // The record has been read: destroying the process needs no further proof, and a restarted agent
                // reads the record again.
                let Stage::ReleaseJournal { go } = self.stage else {
                    return Step::none();
                };
                self.stage = Stage::Releasing { go };
                Step::one(SourceEffect::Destroy)
            }
            Group::GivingUp => {
                // Before a switchover the hypervisor's own state tells a restarted agent as much as the entry
                // would have; after one the record says that the destination never will run the guest, and is
                // read again.
                let Stage::AbortJournal { cause, undo } = self.stage else {
                    return Step::none();
                };
                self.undo(cause, undo)
            }
            Group::Released | Group::Over => Step::none(),
        }
    }

    pub(super) fn undo(&mut self, cause: Cause, undo: Undo) -> Out {
        match undo {
            Undo::Nothing => self.end_aborted(cause),
            // A pause that was ordered for the seal may still be on its way to the hypervisor: what comes after it lets
            // the guest run again, and does nothing to one that runs.
            Undo::RunsAlready => {
                self.stage = Stage::Restoring { cause };
                Step::one(SourceEffect::Restore(self.wanted))
            }
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

    pub(super) fn end_aborted(&mut self, cause: Cause) -> Out {
        self.stage = Stage::Aborted { cause };
        Step::one(SourceEffect::Journal(SourceEntry::Aborted { cause }))
    }

    pub(super) fn end_lost(&mut self, cause: Cause) -> Out {
        self.stage = Stage::Lost { cause };
        Step::one(SourceEffect::Journal(SourceEntry::Lost { cause }))
    }

    pub(super) fn stream_cancelled(&mut self) -> Out {
        // Someone else cancelled it.
        if self.stage.group() == Group::Free {
            return self.journal_abort(Cause::StreamFailed, Undo::Stream);
        }
        let Stage::Undoing { cause, switchover } = self.stage else {
            return Step::none();
        };
        if switchover {
            self.stage = Stage::Reclaiming { cause };
            return Step::one(SourceEffect::ReclaimDisks);
        }
        self.stage = Stage::Restoring { cause };
        Step::one(SourceEffect::Restore(self.wanted))
    }

    pub(super) fn disks_reclaimed(&mut self) -> Out {
        if let Stage::Reclaiming { cause } = self.stage {
            self.stage = Stage::Restoring { cause };
            return Step::one(SourceEffect::Restore(self.wanted));
        }
        Step::none()
    }

    pub(super) fn restored(&mut self) -> Out {
        if let Stage::Restoring { cause } = self.stage {
            self.end_aborted(cause)
        } else {
            Step::none()
        }
    }

    pub(super) fn restore_failed(&mut self) -> Out {
        if let Stage::Restoring { .. } = self.stage {
            return Step::one(SourceEffect::Restore(self.wanted));
        }
        Step::none()
    }

    pub(super) fn destroyed(&mut self) -> Out {
        if let Stage::Releasing { .. } = self.stage {
            self.stage = Stage::Released;
        }
        Step::none()
    }

    pub(super) fn died(&mut self) -> Out {
        match self.stage.group() {
            // Nothing can be loaded elsewhere before the switchover: the guest died with its process.
            Group::Before | Group::Free | Group::GivingUp => self.end_lost(Cause::SourceDied),
            Group::Bound => {
                if let Some(own) = self.stage.own_mut() {
                    *own = Own::Dead;
                }
                self.consider_go()
            }
            Group::LettingGo => {
                if let Stage::Releasing { .. } = self.stage {
                    self.stage = Stage::Released;
                }
                Step::none()
            }
            Group::Released | Group::Over => Step::none(),
        }
    }
}
