//! What the stream and the guest do: convergence, the seal, the gate and the switchover.

use super::stage::{Group, Own, SealEntry, Stage, Undo};
use super::{Source, SourceEffect, SourceEntry};
use crate::convergence::{self, Pass};
use crate::terms::{Cause, Step, Wanted};

type Out = Step<SourceEffect>;

impl Source {
    pub(super) fn path(&mut self, proven: bool) -> Out {
        self.path_proven = proven;
        self.consider_switch_over()
    }

    pub(super) fn stream_started(&mut self) -> Out {
        if self.stage == Stage::Connecting {
            // The intent is journaled while the guest runs, so that the stop itself waits for no disk.
            self.stage = Stage::Streaming {
                intent_journaled: false,
            };
            return Step::one(SourceEffect::Journal(SourceEntry::Intent { wanted: self.wanted }));
        }
        Step::none()
    }

    pub(super) fn stream_not_started(&mut self, cause: Cause) -> Out {
        if self.stage == Stage::Connecting {
            self.journal_abort(cause, Undo::Stream)
        } else {
            Step::none()
        }
    }

    /// Rules 0 and 8: seal when what is left fits the budget, only with the intent journaled and the way for
    /// Ready and Go proved.
    pub(super) fn pass(&mut self, pass: Pass) -> Out {
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

    pub(super) fn paused(&mut self, stream_active: bool) -> Out {
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

    pub(super) fn pause_failed(&mut self) -> Out {
        if self.stage == Stage::Sealing {
            return self.journal_abort(Cause::HypervisorRefused, Undo::Stream);
        }
        Step::none()
    }

    pub(super) fn before_switchover(&mut self) -> Out {
        if self.stage.group() != Group::Free {
            return Step::none();
        }
        // The stream passed its setup before the answer to its start was seen.
        if self.stage == Stage::Connecting {
            self.stage = Stage::Gate {
                sealed: None,
                intent_journaled: false,
            };
            return Step::one(SourceEffect::Journal(SourceEntry::Intent { wanted: self.wanted }));
        }
        if let Stage::Sealed {
            entry,
            intent_journaled,
        } = self.stage
        {
            return self.reach_gate(Some(entry), intent_journaled);
        }
        // The hypervisor was faster than the pause, or found nothing left to wait for: unsealed.
        if let Stage::Streaming { intent_journaled } = self.stage {
            return self.reach_gate(None, intent_journaled);
        }
        if self.stage == Stage::Sealing {
            return self.reach_gate(None, true);
        }
        Step::none()
    }

    fn reach_gate(&mut self, sealed: Option<SealEntry>, intent_journaled: bool) -> Out {
        self.stage = Stage::Gate {
            sealed,
            intent_journaled,
        };
        self.consider_switch_over()
    }

    /// Rule 8: the switchover is entered only with a recent proof of the path; the guest stands still here, so
    /// without one it goes on at the source at once.
    pub(super) fn consider_switch_over(&mut self) -> Out {
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

    /// The hypervisor still waits before the switchover: the destination has nothing to run, whatever it was meant to be
    /// asked or told meanwhile, and the guest goes on here without the record.
    pub(super) fn switch_over_refused(&mut self) -> Out {
        if let Stage::Switching {
            own: Own::Running, ..
        }
        | Stage::DecideJournal {
            own: Own::Running, ..
        }
        | Stage::Deciding {
            own: Own::Running, ..
        } = self.stage
        {
            return self.journal_abort(Cause::HypervisorRefused, Undo::Stream);
        }
        Step::none()
    }

    pub(super) fn stream_completed(&mut self) -> Out {
        if let Some(own) = self.stage.own_mut()
            && *own == Own::Running
        {
            *own = Own::Completed;
        }
        self.consider_go()
    }

    pub(super) fn stream_failed(&mut self, running: bool) -> Out {
        match self.stage.group() {
            Group::Free => self.journal_abort(Cause::StreamFailed, Undo::Stream),
            Group::Bound => {
                let Some(own) = self.stage.own_mut() else {
                    return Step::none();
                };
                let failed = fail_own(own, running);
                self.after_late_failure(running, failed)
            }
            Group::Before | Group::LettingGo | Group::Released | Group::GivingUp | Group::Over => {
                Step::none()
            }
        }
    }

    /// The hypervisor may have restarted an unsealed source by itself: it runs, so Go is never said. A source that
    /// stands still gives its disks up, so that the destination can take them; where it cannot, or may yet restart by
    /// itself, Go can never be said, and the record is asked to say so.
    fn after_late_failure(&mut self, running: bool, failed: bool) -> Out {
        if let Stage::Switching { sealed, .. } = self.stage {
            // One that was sealed runs by somebody's hand, and the destination may be about to commit the record.
            if running && !sealed {
                return self.journal_abort(Cause::StreamFailed, Undo::RunsAlready);
            }
            if running || failed && !(sealed && self.gates.inactivate_disks) {
                return self.arbitrate(Cause::StreamFailed);
            }
        }
        // The destination may have committed, or commit yet.
        if failed && self.gates.inactivate_disks {
            Step::one(SourceEffect::ReleaseDisks)
        } else {
            Step::none()
        }
    }

    pub(super) fn disks_released(&mut self) -> Out {
        if let Some(own) = self.stage.own_mut()
            && *own == Own::Failed
        {
            *own = Own::Released;
        }
        self.consider_go()
    }

    /// Before the seal, and before the hypervisor's own stop, a pause or resume by anyone is the guest's wanted
    /// state. After it the guest cannot want anything.
    pub(super) fn guest_wants(&mut self, wanted: Wanted) -> Out {
        if self.stage.group() == Group::Before || self.stage == Stage::Connecting {
            self.wanted = wanted;
            return Step::none();
        }
        if let Stage::Streaming { intent_journaled } = &mut self.stage {
            if wanted == self.wanted {
                return Step::none();
            }
            self.wanted = wanted;
            *intent_journaled = false;
            return Step::one(SourceEffect::Journal(SourceEntry::Intent { wanted }));
        }
        // A guest that runs after a late failure was restarted by the hypervisor itself, or by someone's hand.
        if let Stage::Switching {
            own: Own::Failed | Own::Released,
            ..
        } = self.stage
            && wanted == Wanted::Run
        {
            return self.after_late_failure(true, false);
        }
        Step::none()
    }

    /// A guest that ended by itself before the switchover keeps its state at the source. One that ended just as
    /// it was stopped is taken over as it is: nobody lets it run again.
    pub(super) fn guest_ended(&mut self) -> Out {
        let known = self.wanted == Wanted::StayStopped;
        self.wanted = Wanted::StayStopped;
        match self.stage.group() {
            Group::Before => self.journal_abort(Cause::GuestStopped, Undo::Nothing),
            Group::Free => {
                let (Stage::Sealed { intent_journaled, .. } | Stage::Gate { intent_journaled, .. }) =
                    &mut self.stage
                else {
                    return self.journal_abort(Cause::GuestStopped, Undo::Stream);
                };
                if known {
                    return Step::none();
                }
                *intent_journaled = false;
                Step::one(SourceEffect::Journal(SourceEntry::Intent {
                    wanted: Wanted::StayStopped,
                }))
            }
            Group::Bound | Group::LettingGo | Group::Released | Group::GivingUp | Group::Over => Step::none(),
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
