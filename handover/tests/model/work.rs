//! What each action does to the world.

use godwit_handover::{
    Cause, Decision, DestinationEffect, DestinationEntry, DestinationEvent, DestinationReport, DriverEffect,
    DriverEvent, Go, GoEvidence, RecordView, SourceEffect, SourceEntry, SourceEvent, SourceReport,
    StreamFact, Wanted,
};

use crate::action::Action;
use crate::agents::SourceTodo;
use crate::driving::Order;
use crate::migration::Migration;
use crate::mutants::Mutant;
use crate::record::{Manner, Wish};
use crate::world::{self, SMALL_PASS, World};

impl Migration {
    pub fn apply(&self, world: &World, action: &Action) -> World {
        let mut w = world.clone();
        match action {
            Action::SourceWork => self.source_work(&mut w),
            Action::DestinationWork => self.destination_work(&mut w),
            Action::SourceAgentRestart => {
                w.source_agent_comes(self.flow);
            }
            Action::DestinationAgentRestart => {
                if self.is(Mutant::RevertAfterCont) && !w.destination.alive {
                    w.destination_agent
                        .journal
                        .retain(|entry| !matches!(entry, DestinationEntry::ContIssued(_)));
                }
                w.restart_destination_agent();
            }
            Action::Deliver(order) => self.deliver(&mut w, *order),
            Action::HearSource(which) => self.hear_source(&mut w, *which),
            Action::HearDestination(which) => self.hear_destination(&mut w, *which),
            Action::DriverWrites(which) => w.driver_writes(self.flow, *which, self.manner(), true),
            Action::DriverReads(which) => w.read_record(*which),
            Action::SourceUnheard(which) => w.unheard(*which, DriverEvent::SourceSilent),
            Action::DestinationUnheard(which) => w.unheard(*which, DriverEvent::DestinationSilent),
            Action::LateWrite => {
                if let Some((decision, read)) = w.late.take()
                    && (read == w.record || self.is(Mutant::UnconditionalPatch))
                {
                    w.write_record(Wish::Decide(decision), self.manner(), Some(&read));
                }
            }
            Action::DestinationWrites => {
                if let Some(wish) = w.destinations_wish()
                    && !self.is(Mutant::RevertNotWritten)
                {
                    w.write_record(wish, self.manner(), None);
                }
            }
            Action::PathProvenAgain => {
                w.path = true;
                w.feed_source(SourceEvent::PathProven(true));
            }
            Action::Say(said) => self.say(&mut w, *said),
            Action::ColdStart => self.start_afresh(&mut w),
            Action::SeeSource(event) => w.feed_source(event.clone()),
            Action::SeeDestination(event) => w.feed_destination(event.clone()),
            Action::Collect => w.feed_source(SourceEvent::Pass(SMALL_PASS)),
            Action::Converge => {
                w.source.noted_running = w.source.running;
                w.source.running = false;
                w.source.stream = StreamFact::BeforeSwitchover;
            }
            Action::Load => w.destination.loaded = true,
            Action::Acknowledge => w.source.stream = StreamFact::Completed,
            Action::SelfRestart => {
                w.source.restart_due = false;
                w.run_source();
            }
            Action::StreamEnds => w.destination.fail_stream(),
            Action::PeerGone => w.source.fail_stream(),
            Action::Fault(fault) => self.fail(&mut w, *fault),
        }
        // What no other part can see or cross happens at once: a crash before it and a crash after it leave the
        // same behind as a crash before or after the step that led to it.
        while w.source_agent.todo.first().is_some_and(at_once) {
            self.source_work(&mut w);
        }
        while w
            .destination_agent
            .todo
            .first()
            .is_some_and(at_once_at_destination)
        {
            self.destination_work(&mut w);
        }
        w.path |= !w.needs_path();
        w
    }

    fn manner(&self) -> Manner {
        if self.is(Mutant::UnconditionalPatch) {
            Manner::Patch
        } else if self.is(Mutant::ForeignRecord) {
            Manner::AnyMigration
        } else {
            Manner::Swap
        }
    }

    fn deliver(&self, w: &mut World, order: Order) {
        if self.is(Mutant::AbortAfterGo)
            && order == Order::AbortSource
            && matches!(w.source_report(), Some(SourceReport::GoSent(_)))
        {
            w.run_source();
        }
        if self.is(Mutant::SecondAttempt)
            && order == Order::Prepare
            && matches!(w.destination_report(), Some(DestinationReport::Reverted(_)))
        {
            w.destination_agent.journal.clear();
            w.destination_agent.machine = None;
        }
        let strict = w.strict;
        // The destination takes the terms as they are told to it.
        w.strict &= !(self.is(Mutant::GoIsEnough) && order == Order::Prepare);
        w.deliver(order);
        w.strict = strict;
    }

    fn hear_source(&self, w: &mut World, which: usize) {
        let report = w.source_report();
        let go = matches!(report, Some(SourceReport::GoSent(_)));
        w.feed_driver(which, DriverEvent::Source(report));
        if go && self.is(Mutant::AdvanceOnGo) {
            w.write_record(Wish::Advance, Manner::Swap, None);
            w.send(DriverEffect::Confirm);
        }
        if go && self.is(Mutant::HostLostUnfenced) && !w.destination_agent.up {
            w.write_record(Wish::Decide(Decision::Reverted), Manner::Swap, None);
            w.send(DriverEffect::Settle);
        }
    }

    fn hear_destination(&self, w: &mut World, which: usize) {
        if self.is(Mutant::AbsenceIsRevert) && !w.destination_agent.up {
            let gone = DestinationReport::Reverted(Cause::DestinationDied);
            return w.feed_driver(which, DriverEvent::Destination(Some(gone)));
        }
        let report = w.destination_report();
        w.feed_driver(which, DriverEvent::Destination(report.clone()));
        if self.is(Mutant::ContBeforeGo) && report == Some(DestinationReport::Loaded) {
            let go = Go {
                evidence: GoEvidence::Completed,
                wanted: Wanted::Run,
                sealed: false,
            };
            w.send(DriverEffect::Finish(go));
        }
        if self.is(Mutant::DestroyWhileNamed) && matches!(report, Some(DestinationReport::Holding { .. })) {
            w.send(DriverEffect::Confirm);
        }
    }

    /// The record as the source reads it.
    fn read_record(&self, w: &World) -> RecordView {
        let terms = world::terms();
        if self.is(Mutant::StaleRead) {
            // An earlier migration of the same guest was given up.
            return RecordView {
                holder: terms.source,
                epoch: terms.epoch,
                migration: Some(terms.migration),
                decision: Decision::Reverted,
                started: false,
                word: None,
            };
        }
        if self.is(Mutant::DestroyWhileNamed) {
            return RecordView {
                holder: terms.destination,
                epoch: terms.epoch + 1,
                migration: Some(terms.migration),
                decision: Decision::Committed,
                started: false,
                word: None,
            };
        }
        w.record.view()
    }

    fn source_work(&self, w: &mut World) {
        let todo = w.source_agent.todo.remove(0);
        let answer = match todo {
            SourceTodo::LookAfterPause => {
                let active =
                    w.source.stream == StreamFact::Active && !w.source.running || self.is(Mutant::NoSeal);
                Some(SourceEvent::Paused {
                    stream_active: active,
                })
            }
            SourceTodo::Effect(effect) => match effect {
                SourceEffect::Journal(entry) => self.write_source(w, entry),
                SourceEffect::StartStream(_) => {
                    if connect(w) {
                        w.source.stream = StreamFact::Active;
                        Some(SourceEvent::StreamStarted)
                    } else {
                        Some(SourceEvent::StreamNotStarted(Cause::StreamFailed))
                    }
                }
                SourceEffect::Pause => {
                    if !self.is(Mutant::NoSeal) {
                        w.source.running = false;
                    }
                    if self.is(Mutant::SealWrittenEarly) {
                        w.source_agent.write(SourceEntry::Sealed);
                    }
                    w.source_agent.todo.push(SourceTodo::LookAfterPause);
                    None
                }
                SourceEffect::LiftLimits => None,
                SourceEffect::SwitchOver => {
                    if w.source.stream == StreamFact::BeforeSwitchover {
                        w.source.stream = StreamFact::SwitchingOver;
                        w.source.holds_disks = false;
                    }
                    None
                }
                SourceEffect::CancelStream => {
                    cancel_stream(w);
                    Some(SourceEvent::StreamCancelled)
                }
                SourceEffect::ReleaseDisks => {
                    w.source.holds_disks &= self.is(Mutant::LocksKept);
                    Some(SourceEvent::DisksReleased)
                }
                SourceEffect::ReclaimDisks => {
                    w.source.holds_disks = true;
                    Some(SourceEvent::DisksReclaimed)
                }
                SourceEffect::Restore(wanted) => {
                    let ended = w.source.ended && !self.is(Mutant::EndedGuestRestored);
                    let runs = wanted == Wanted::Run || self.is(Mutant::EndedGuestRestored);
                    if runs && !ended {
                        w.run_source();
                    }
                    Some(SourceEvent::Restored)
                }
                SourceEffect::DecideAborted => {
                    w.write_record(Wish::Decide(Decision::Aborted), self.manner(), None);
                    Some(SourceEvent::RecordRead(Some(self.read_record(w))))
                }
                SourceEffect::ReadRecord => Some(SourceEvent::RecordRead(Some(self.read_record(w)))),
                SourceEffect::Destroy => {
                    w.destroy_source();
                    Some(SourceEvent::Destroyed)
                }
            },
        };
        if let Some(event) = answer {
            w.feed_source(event);
        }
    }

    fn write_source(&self, w: &mut World, entry: SourceEntry) -> Option<SourceEvent> {
        let unwritten = self.is(Mutant::UnjournaledGo) && matches!(entry, SourceEntry::GoSent(_))
            || self.is(Mutant::UnjournaledArbitration) && matches!(entry, SourceEntry::Arbitrating { .. });
        let written = unwritten || w.source_agent.write(entry.clone()) || self.is(Mutant::FsyncErrorIgnored);
        if !written {
            return Some(SourceEvent::JournalFailed);
        }
        let silent = matches!(entry, SourceEntry::Aborted { .. } | SourceEntry::Lost { .. });
        (!silent).then_some(SourceEvent::Journaled(entry))
    }

    fn write_destination(&self, w: &mut World, entry: DestinationEntry) -> Option<DestinationEvent> {
        let unwritten = self.is(Mutant::UnjournaledCont) && matches!(entry, DestinationEntry::ContIssued(_));
        let written =
            unwritten || w.destination_agent.write(entry.clone()) || self.is(Mutant::FsyncErrorIgnored);
        if !written {
            return Some(DestinationEvent::JournalFailed);
        }
        let silent = matches!(entry, DestinationEntry::Reverted { .. });
        (!silent).then_some(DestinationEvent::Journaled(entry))
    }

    fn destination_work(&self, w: &mut World) {
        let answer = match w.destination_agent.todo.remove(0) {
            DestinationEffect::Journal(entry) => self.write_destination(w, entry),
            DestinationEffect::Launch => {
                w.destination.launches += 1;
                w.destination.alive = true;
                Some(DestinationEvent::Launched(world::channel()))
            }
            DestinationEffect::Resume => {
                if w.destination.alive {
                    w.run_destination();
                    Some(if w.source.ended {
                        DestinationEvent::NotRunnable
                    } else if w.destination.running {
                        DestinationEvent::Resumed
                    } else {
                        DestinationEvent::ResumeRefused
                    })
                } else {
                    Some(DestinationEvent::Died)
                }
            }
            DestinationEffect::ReadRecord => Some(DestinationEvent::RecordRead(Some(w.record.view()))),
            DestinationEffect::MarkStarted => {
                w.write_record(Wish::Start, self.manner(), None);
                Some(DestinationEvent::RecordRead(Some(w.record.view())))
            }
            DestinationEffect::DecideCommitted => {
                w.write_record(Wish::Decide(Decision::Committed), self.manner(), None);
                Some(DestinationEvent::RecordRead(Some(w.record.view())))
            }
            DestinationEffect::Destroy => {
                w.destroy_destination();
                Some(DestinationEvent::Destroyed)
            }
        };
        if let Some(event) = answer {
            w.feed_destination(event);
        }
    }
}

/// A stream that has ended cannot be cancelled; where it failed, the hypervisor may be about to let the guest run.
fn cancel_stream(w: &mut World) {
    let s = &mut w.source;
    if !s.streams() {
        return;
    }
    let restarts = s.stream != StreamFact::Active && s.noted_running && !s.ended;
    s.stream = StreamFact::Cancelled;
    s.holds_disks = true;
    if restarts {
        w.run_source();
    }
}

/// Opens the channel. The listener is the agent's: it is there only while the agent is, and waits.
pub fn connect(w: &mut World) -> bool {
    let listening =
        w.destination_agent.up && matches!(w.destination_report(), Some(DestinationReport::Prepared(_)));
    let open = listening && w.destination.alive && !w.destination.connected && w.source.alive;
    if open {
        w.destination.connected = true;
        // The agent itself took the connection, so it knows before the hypervisor does.
        w.feed_destination(DestinationEvent::Connected);
    }
    open
}

fn at_once(todo: &SourceTodo) -> bool {
    match todo {
        SourceTodo::LookAfterPause => false,
        SourceTodo::Effect(effect) => match effect {
            SourceEffect::Journal(entry) => match entry {
                SourceEntry::Begun { .. }
                | SourceEntry::Intent { .. }
                | SourceEntry::Sealed
                | SourceEntry::Released
                | SourceEntry::Aborted { .. }
                | SourceEntry::Lost { .. } => true,
                SourceEntry::AbortIntent { .. }
                | SourceEntry::Arbitrating { .. }
                | SourceEntry::GoSent(_) => false,
            },
            SourceEffect::LiftLimits
            | SourceEffect::ReleaseDisks
            | SourceEffect::ReclaimDisks
            | SourceEffect::ReadRecord => true,
            SourceEffect::StartStream(_)
            | SourceEffect::Pause
            | SourceEffect::SwitchOver
            | SourceEffect::CancelStream
            | SourceEffect::DecideAborted
            | SourceEffect::Restore(_)
            | SourceEffect::Destroy => false,
        },
    }
}

fn at_once_at_destination(effect: &DestinationEffect) -> bool {
    match effect {
        DestinationEffect::Journal(entry) => match entry {
            DestinationEntry::Prepared { .. } | DestinationEntry::Reverted { .. } => true,
            DestinationEntry::CommitIntent(_)
            | DestinationEntry::ContIssued(_)
            | DestinationEntry::ContRefused
            | DestinationEntry::TakenOver(_)
            | DestinationEntry::RevertIntent { .. } => false,
        },
        DestinationEffect::ReadRecord => true,
        DestinationEffect::Launch
        | DestinationEffect::Resume
        | DestinationEffect::DecideCommitted
        | DestinationEffect::MarkStarted
        | DestinationEffect::Destroy => false,
    }
}
