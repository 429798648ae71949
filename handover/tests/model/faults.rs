//! Which faults can happen, and what they do.

use godwit_handover::{
    Cause, Decision, DestinationEffect, DestinationEvent, DestinationReport, DriverEvent, RecordView,
    SourceEffect, SourceEvent, SourceReport, Standing, StandingBecause, StreamFact, Wanted,
};

use crate::action::Fault;
use crate::agents::{Pen, SourceTodo};
use crate::driving::{Flow, Order, Seat};
use crate::migration::Migration;
use crate::mutants::Mutant;
use crate::record::{Manner, Wish};
use crate::shared::Shared;
use crate::work::connect;
use crate::world::{World, terms};

/// The orders upon which the source reads the record.
const READING: [Order; 2] = [Order::Confirm, Order::Settle];

impl Migration {
    /// The faults that can happen now.
    pub fn faults(&self, w: &World, faults: &mut Vec<Fault>) {
        self.at_source(w, faults);
        at_destination(w, faults);
        if self.loses_hosts() && w.destination_agent.up {
            faults.push(Fault::DestinationHostLost);
        }
        self.around(w, faults);
    }

    fn at_source(&self, w: &World, faults: &mut Vec<Fault>) {
        let (agent, process) = (&w.source_agent, &w.source);
        if agent.up {
            faults.push(Fault::SourceAgentCrash);
            if process.alive {
                faults.push(Fault::SourceHostReboots);
            }
            if self.loses_hosts() {
                faults.push(Fault::SourceHostLost);
            }
            if let Some(SourceTodo::Effect(effect)) = agent.todo.first() {
                faults.extend(match effect {
                    SourceEffect::StartStream(_) => {
                        &[Fault::SourceAgentCrashAfterConnect, Fault::StreamStartUnanswered][..]
                    }
                    SourceEffect::Pause => &[Fault::PauseRefused, Fault::PauseUnanswered],
                    SourceEffect::SwitchOver if process.stream == StreamFact::BeforeSwitchover => {
                        &[Fault::SwitchOverRefused]
                    }
                    SourceEffect::Restore(_) => &[Fault::RestoreFails],
                    SourceEffect::DecideAborted => {
                        &[Fault::SourceDecisionUnanswered, Fault::SourceDecisionLost]
                    }
                    SourceEffect::SwitchOver
                    | SourceEffect::ReadRecord
                    | SourceEffect::Journal(_)
                    | SourceEffect::LiftLimits
                    | SourceEffect::CancelStream
                    | SourceEffect::ReleaseDisks
                    | SourceEffect::ReclaimDisks
                    | SourceEffect::Destroy => &[],
                });
            }
        }
        if agent.machine.is_some() {
            faults.extend([Fault::SourceHearsNobody, Fault::DriverSilent]);
            if w.path && w.needs_path() {
                faults.push(Fault::PathLost);
            }
            if agent.pen == Pen::Good {
                faults.extend([Fault::SourceJournalFails, Fault::SourceJournalFailsWritten]);
            }
        }
        if agent.up && READING.iter().any(|order| w.network.orders.contains(order)) {
            faults.push(Fault::RecordReadFails);
        }
        if process.alive {
            faults.push(Fault::SourceProcessDies);
        }
        if process.streams() {
            faults.extend([Fault::StreamBreaks, Fault::LateFailure]);
        }
        let moving = matches!(
            w.source_report(),
            None | Some(SourceReport::Begun | SourceReport::Streaming)
        ) && matches!(process.stream, StreamFact::None | StreamFact::Active);
        if process.running && !process.ended {
            faults.push(Fault::GuestEnds);
            if moving {
                faults.push(Fault::UserPauses);
            }
        }
        if process.paused && !process.running && !process.ended && moving && process.alive {
            faults.push(Fault::UserResumes);
        }
    }

    fn around(&self, w: &World, faults: &mut Vec<Fault>) {
        let ended = w.drivers.iter().any(Seat::ended);
        if self.flow == Flow::ControllerDrives && !ended {
            faults.extend([Fault::DriverRestart, Fault::DriverRestartOnOldRecord]);
            if w.drivers.len() < 2 {
                faults.push(Fault::SecondDriver);
            }
        }
        let unheard = |up: bool| up && !ended && !w.drivers.is_empty();
        if unheard(w.source_agent.up) && self.flow == Flow::ControllerDrives {
            faults.push(Fault::SourceUnheard);
        }
        if unheard(w.destination_agent.up) {
            faults.push(Fault::DestinationUnheard);
        }
        if w.drivers.iter().any(|seat| seat.wish(self.flow).is_some()) {
            faults.push(Fault::RecordWriteUnanswered);
        }
        if ended && w.record.is_for(&terms()) {
            faults.push(Fault::NextMigration);
        }
        if !w.cancelled && !w.drivers.is_empty() && !ended {
            faults.push(Fault::Cancel);
        }
    }

    /// What a fault costs of the budget. Two drivers at once multiply the worlds beyond what can be visited, and come
    /// alone. A journal whose entry is there though it was said not to be is worth two: the other faults are seen beside
    /// one whose entry is not.
    pub fn cost(&self, fault: Fault) -> u8 {
        let twins = [
            Fault::SourceJournalFailsWritten,
            Fault::DestinationJournalFailsWritten,
        ];
        if fault == Fault::SecondDriver {
            self.faults
        } else if twins.contains(&fault) {
            self.faults.min(2)
        } else {
            1
        }
    }

    pub fn fail(&self, w: &mut World, fault: Fault) {
        w.faults_left = w.faults_left.saturating_sub(self.cost(fault));
        match fault {
            Fault::SourceAgentCrash => w.source_agent_goes(self.flow),
            Fault::SourceAgentCrashAfterConnect => {
                connect(w);
                w.source_agent_goes(self.flow);
            }
            Fault::DestinationAgentCrash => w.destination_agent_goes(),
            Fault::SourceHostReboots => {
                w.source.die();
                w.source_agent_goes(self.flow);
            }
            Fault::DestinationHostReboots => {
                w.destination.die();
                w.destination_agent_goes();
            }
            Fault::SourceHostLost => {
                w.source.die();
                w.source_agent_goes(self.flow);
                w.source_gone = true;
            }
            Fault::DestinationHostLost => {
                w.destination.die();
                w.destination_agent_goes();
                w.destination_gone = true;
            }
            Fault::DriverRestart | Fault::DriverRestartOnOldRecord => {
                let old = (fault == Fault::DriverRestartOnOldRecord)
                    .then(|| Shared::new(w.record.before_decision(&terms())));
                let others = w.drivers.split_off(1);
                w.drivers.clear();
                w.new_driver(old);
                w.drivers.extend(others);
            }
            Fault::SecondDriver => w.new_driver(None),
            Fault::SourceProcessDies => w.source.die(),
            Fault::DestinationProcessDies => w.destination.die(),
            Fault::SourceUnheard => w.all_unheard(DriverEvent::SourceSilent),
            Fault::DestinationUnheard => w.all_unheard(DriverEvent::DestinationSilent),
            Fault::SourceDecisionUnanswered | Fault::SourceDecisionLost => {
                w.source_agent.todo.remove(0);
                if fault == Fault::SourceDecisionUnanswered {
                    w.write_record(Wish::Decide(Decision::Aborted), Manner::Swap, None);
                }
                self.source_reads_nothing(w);
            }
            Fault::DestinationDecisionUnanswered | Fault::DestinationDecisionLost => {
                w.destination_agent.todo.remove(0);
                if fault == Fault::DestinationDecisionUnanswered {
                    w.write_record(Wish::Decide(Decision::Committed), Manner::Swap, None);
                }
                self.destination_reads_nothing(w);
            }
            Fault::StartUnanswered | Fault::StartLost => {
                w.destination_agent.todo.remove(0);
                if fault == Fault::StartUnanswered {
                    w.write_record(Wish::Start, Manner::Swap, None);
                }
                w.feed_destination(DestinationEvent::RecordRead(None));
            }
            Fault::LaunchFails => {
                w.destination_agent.todo.remove(0);
                w.feed_destination(DestinationEvent::LaunchFailed);
            }
            Fault::StreamStartUnanswered => {
                w.source_agent.todo.remove(0);
                if connect(w) {
                    w.source.stream = StreamFact::Active;
                }
                w.feed_source(SourceEvent::StreamNotStarted(Cause::StreamFailed));
            }
            Fault::StreamBreaks => w.destination.fail_stream(),
            Fault::LateFailure => w.source.fail_stream(),
            Fault::PauseRefused | Fault::PauseUnanswered => {
                w.source_agent.todo.remove(0);
                w.source.running &= fault == Fault::PauseRefused;
                w.feed_source(SourceEvent::PauseFailed);
            }
            Fault::SwitchOverRefused => {
                w.source_agent.todo.remove(0);
                w.feed_source(SourceEvent::SwitchOverRefused);
            }
            Fault::RestoreFails => {
                w.source_agent.todo.remove(0);
                w.feed_source(SourceEvent::RestoreFailed);
            }
            Fault::ResumeRefused => self.refuse_resume(w),
            Fault::DriverSilent => {
                self.silent_to_source(w);
                self.silent_to_destination(w);
            }
            Fault::SourceHearsNobody => self.silent_to_source(w),
            Fault::DestinationHearsNobody => self.silent_to_destination(w),
            Fault::PathLost => {
                w.path = false;
                if !self.is(Mutant::PathNotWatched) {
                    w.feed_source(SourceEvent::PathProven(false));
                }
            }
            Fault::RecordReadFails => self.fail_reading(w),
            Fault::RecordWriteUnanswered => self.lose_answer(w),
            Fault::NextMigration => w.record.arm_next(),
            Fault::SourceJournalFails => w.source_agent.pen = Pen::Broken,
            Fault::SourceJournalFailsWritten => w.source_agent.pen = Pen::Slipping,
            Fault::DestinationJournalFails => w.destination_agent.pen = Pen::Broken,
            Fault::DestinationJournalFailsWritten => w.destination_agent.pen = Pen::Slipping,
            Fault::GuestEnds => {
                w.source.ended = true;
                w.source.running = false;
            }
            Fault::UserPauses => {
                w.source.running = false;
                w.source.paused = true;
            }
            Fault::UserResumes => {
                w.source.running = true;
            }
            Fault::Cancel => {
                w.cancelled = true;
                for which in 0..w.drivers.len() {
                    w.feed_driver(which, DriverEvent::Cancel);
                }
            }
        }
    }

    /// An order to read the record arrives, and the record cannot be read.
    fn fail_reading(&self, w: &mut World) {
        for order in READING {
            let reads = |todo: &SourceTodo| *todo == SourceTodo::Effect(SourceEffect::ReadRecord);
            if w.network.orders.contains(&order) {
                w.deliver(order);
            }
            if w.source_agent.todo.last().is_some_and(reads) {
                w.source_agent.todo.pop();
                if self.is(Mutant::MissingRecordIsAborted) {
                    w.run_source();
                }
                return w.feed_source(SourceEvent::RecordRead(None));
            }
        }
    }

    /// A side that asked the record to decide gets no answer.
    fn source_reads_nothing(&self, w: &mut World) {
        if self.is(Mutant::UnansweredAbortIsWritten) {
            w.run_source();
        }
        w.feed_source(SourceEvent::RecordRead(None));
    }

    fn destination_reads_nothing(&self, w: &mut World) {
        let record = self.is(Mutant::UnansweredCommitIsWritten).then(|| RecordView {
            decision: Decision::Committed,
            ..w.record.before_decision(&terms()).view()
        });
        w.feed_destination(DestinationEvent::RecordRead(record));
    }

    fn refuse_resume(&self, w: &mut World) {
        w.destination_agent
            .todo
            .retain(|todo| *todo != DestinationEffect::Resume);
        if self.is(Mutant::RefusalUnseen) {
            w.run_destination();
        }
        w.feed_destination(DestinationEvent::ResumeRefused);
    }

    fn silent_to_source(&self, w: &mut World) {
        let before = w.source_report();
        w.feed_source(SourceEvent::DriverSilent);
        let resumes = match before {
            Some(SourceReport::Switching { .. }) => self.is(Mutant::ResumeOnSilence),
            Some(SourceReport::GoSent(_)) => {
                if self.is(Mutant::ArbitrateAfterGo) {
                    w.write_record(Wish::Decide(Decision::Aborted), Manner::Swap, None);
                    w.feed_source(SourceEvent::Settle);
                }
                self.is(Mutant::ResumeOnLostFinish)
            }
            Some(
                SourceReport::Begun
                | SourceReport::Streaming
                | SourceReport::Stopped { .. }
                | SourceReport::InDoubt { .. }
                | SourceReport::Deciding { .. }
                | SourceReport::Yielded
                | SourceReport::Blocked { .. }
                | SourceReport::Released
                | SourceReport::Aborting(_)
                | SourceReport::Aborted(_)
                | SourceReport::Died
                | SourceReport::Lost(_),
            )
            | None => false,
        };
        if resumes {
            w.run_source();
        }
    }

    fn silent_to_destination(&self, w: &mut World) {
        let loaded = w.destination_report() == Some(DestinationReport::Loaded);
        if loaded && self.is(Mutant::DestroyOnTimeOut) {
            w.feed_destination(DestinationEvent::Abort(Cause::DriverSilent));
        }
        if loaded && self.is(Mutant::CommitUntold) {
            w.feed_destination(DestinationEvent::SourceStands(Standing {
                because: StandingBecause::Sealed,
                wanted: Wanted::Run,
            }));
        }
        w.feed_destination(DestinationEvent::DriverSilent);
    }

    fn lose_answer(&self, w: &mut World) {
        let Some(which) = w.drivers.iter().position(|seat| seat.wish(self.flow).is_some()) else {
            return;
        };
        if self.is(Mutant::LostReplyIsWritten) {
            // The request was lost, not the answer.
            let mut imagined = w.clone();
            imagined.driver_writes(self.flow, which, Manner::Swap, true);
            w.tell_view(which, imagined.record.view());
        } else {
            w.driver_writes(self.flow, which, Manner::Swap, false);
            if self.is(Mutant::EndsUnanswered)
                && let Some(seat) = w.drivers.get_mut(which)
            {
                seat.unanswered = false;
            }
        }
    }
}

fn at_destination(w: &World, faults: &mut Vec<Fault>) {
    let agent = &w.destination_agent;
    if agent.up {
        faults.push(Fault::DestinationAgentCrash);
        if w.destination.alive {
            faults.push(Fault::DestinationHostReboots);
        }
        if agent.todo.first() == Some(&DestinationEffect::Launch) {
            faults.push(Fault::LaunchFails);
        }
        if agent.todo.first() == Some(&DestinationEffect::MarkStarted) {
            faults.extend([Fault::StartUnanswered, Fault::StartLost]);
        }
        if agent.todo.first() == Some(&DestinationEffect::DecideCommitted) {
            faults.extend([
                Fault::DestinationDecisionUnanswered,
                Fault::DestinationDecisionLost,
            ]);
        }
        if agent.todo.contains(&DestinationEffect::Resume) {
            faults.push(Fault::ResumeRefused);
        }
        if agent.machine.is_some() {
            faults.push(Fault::DestinationHearsNobody);
            if agent.pen == Pen::Good {
                faults.extend([
                    Fault::DestinationJournalFails,
                    Fault::DestinationJournalFailsWritten,
                ]);
            }
        }
    }
    if w.destination.alive {
        faults.push(Fault::DestinationProcessDies);
    }
}
