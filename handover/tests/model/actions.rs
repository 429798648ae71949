//! What can happen next in the world.

use godwit_handover::{
    Cause, Decision, DestinationEffect, DestinationEntry, DestinationEvent, DestinationReport, DriverEffect,
    DriverEvent, SourceEffect, SourceEntry, SourceEvent, SourceReport, StreamFact, Wanted,
};

use crate::mutants::Mutant;
use crate::world::{self, Order, SMALL_PASS, SourceTodo, World};

/// The model: how many faults one history may have, and which rule is left out.
#[derive(Clone, Debug)]
pub struct Migration {
    pub faults: u8,
    /// The kinds of fault that may happen; `None`: all.
    pub only: Option<&'static [Action]>,
    pub mutant: Option<Mutant>,
}

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    // Work in order.
    SourceWork,
    DestinationWork,
    // The network.
    Deliver(Order),
    HearSource,
    HearDestination,
    // What agents see of their processes.
    SeeSource(SourceEvent),
    SeeDestination(DestinationEvent),
    // What the hypervisors do by themselves.
    Collect,
    Converge,
    Load,
    Acknowledge,
    SelfRestart,
    /// The destination sees the end of a stream whose source is gone.
    StreamEnds,
    /// The source sees that its peer is gone.
    PeerGone,
    // Faults: each costs one of the budget.
    SourceAgentCrash,
    /// Between the opening of the channel and the start of the stream: the hypervisor keeps the channel open.
    SourceAgentCrashAfterConnect,
    DestinationAgentCrash,
    SourceAgentRestart,
    DestinationAgentRestart,
    DriverRestart,
    SourceProcessDies,
    DestinationProcessDies,
    StreamBreaks,
    LateFailure,
    DriverSilent,
    PathLost,
    SourceJournalBreaks,
    DestinationJournalBreaks,
    ResumeRefused,
    GuestEnds,
    Cancel,
}

impl Action {
    /// Whether it is a fault: something that need not ever happen.
    pub fn is_fault(&self) -> bool {
        match self {
            Action::SourceAgentCrash
            | Action::SourceAgentCrashAfterConnect
            | Action::DestinationAgentCrash
            | Action::DriverRestart
            | Action::SourceProcessDies
            | Action::DestinationProcessDies
            | Action::StreamBreaks
            | Action::LateFailure
            | Action::DriverSilent
            | Action::PathLost
            | Action::SourceJournalBreaks
            | Action::DestinationJournalBreaks
            | Action::ResumeRefused
            | Action::GuestEnds
            | Action::Cancel => true,
            Action::SourceWork
            | Action::DestinationWork
            | Action::Deliver(_)
            | Action::HearSource
            | Action::HearDestination
            | Action::SeeSource(_)
            | Action::SeeDestination(_)
            | Action::Collect
            | Action::Converge
            | Action::Load
            | Action::Acknowledge
            | Action::SelfRestart
            | Action::StreamEnds
            | Action::PeerGone
            | Action::SourceAgentRestart
            | Action::DestinationAgentRestart => false,
        }
    }
}

impl Migration {
    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub fn enabled(&self, w: &World, actions: &mut Vec<Action>) {
        if !w.source_agent.up {
            actions.push(Action::SourceAgentRestart);
        } else if !w.source_agent.todo.is_empty() {
            actions.push(Action::SourceWork);
        }
        if !w.destination_agent.up {
            actions.push(Action::DestinationAgentRestart);
        } else if !w.destination_agent.todo.is_empty() {
            actions.push(Action::DestinationWork);
        }
        // An agent that is away gives no report; its last one stays what the driver knows.
        if w.source_agent.up {
            actions.push(Action::HearSource);
        }
        if w.destination_agent.up {
            actions.push(Action::HearDestination);
        }
        actions.extend(w.orders.iter().cloned().map(Action::Deliver));
        self.see(w, actions);
        self.hypervisors(w, actions);
        if w.faults_left > 0 {
            let mut faults = vec![];
            self.faults(w, &mut faults);
            actions.extend(
                faults
                    .into_iter()
                    .filter(|fault| self.only.is_none_or(|only| only.contains(fault))),
            );
        }
    }

    fn see(&self, w: &World, actions: &mut Vec<Action>) {
        let mut source = |event| actions.push(Action::SeeSource(event));
        if w.source_agent.machine.is_some() {
            if !w.source.alive {
                source(SourceEvent::Died);
            } else {
                match w.source.stream {
                    StreamFact::BeforeSwitchover => source(SourceEvent::BeforeSwitchover),
                    StreamFact::Completed => source(SourceEvent::StreamCompleted),
                    StreamFact::Failed => {
                        source(SourceEvent::StreamFailed {
                            running: w.source.running,
                        });
                        if w.source.running {
                            source(SourceEvent::GuestWants(Wanted::Run));
                        }
                    }
                    StreamFact::SwitchingOver if self.is(Mutant::CompletedUnacknowledged) => {
                        source(SourceEvent::StreamCompleted);
                    }
                    StreamFact::None
                    | StreamFact::Active
                    | StreamFact::SwitchingOver
                    | StreamFact::Cancelled => {}
                }
                if w.source.ended {
                    source(SourceEvent::GuestEnded);
                }
            }
        }
        let d = &w.destination;
        if w.destination_agent.machine.is_some() && d.launches > 0 {
            let event = match (d.alive, d.loaded, d.failed, d.connected) {
                (false, _, _, _) => DestinationEvent::Died,
                (true, true, _, _) => DestinationEvent::Loaded,
                (true, false, true, _) => DestinationEvent::StreamFailed,
                (true, false, false, _) => return,
            };
            actions.push(Action::SeeDestination(event));
        }
    }

    fn hypervisors(&self, w: &World, actions: &mut Vec<Action>) {
        let (s, d) = (&w.source, &w.destination);
        if s.alive && s.stream == StreamFact::Active {
            actions.push(Action::Collect);
            actions.push(Action::Converge);
        }
        if s.alive
            && s.stream == StreamFact::SwitchingOver
            && d.alive
            && d.connected
            && !d.loaded
            && !d.failed
        {
            actions.push(Action::Load);
        }
        if s.alive && s.stream == StreamFact::SwitchingOver && d.loaded {
            actions.push(Action::Acknowledge);
        }
        if s.restart_due {
            actions.push(Action::SelfRestart);
        }
        // A destination whose source is gone, or has failed, sees its stream end.
        if d.alive && d.connected && !d.loaded && !d.failed {
            let ended = !s.alive
                || matches!(
                    s.stream,
                    StreamFact::Failed | StreamFact::Cancelled | StreamFact::None
                );
            if ended {
                actions.push(Action::StreamEnds);
            }
        }
        // And a source whose destination is gone before it has acknowledged.
        let open = matches!(
            s.stream,
            StreamFact::Active | StreamFact::BeforeSwitchover | StreamFact::SwitchingOver
        );
        if s.alive && open && (!d.alive || d.failed) {
            actions.push(Action::PeerGone);
        }
        // Nobody opens a channel whose source has given up, or has died.
        let given_up = matches!(
            w.source_report(),
            None | Some(
                SourceReport::Aborting(_)
                    | SourceReport::Aborted(_)
                    | SourceReport::Died
                    | SourceReport::Lost(_)
            )
        );
        if d.alive && !d.connected && given_up && w.source_agent.up && w.destination_agent.machine.is_some() {
            actions.push(Action::SeeDestination(DestinationEvent::NobodyConnected));
        }
    }

    fn faults(&self, w: &World, actions: &mut Vec<Action>) {
        if w.source_agent.up {
            actions.push(Action::SourceAgentCrash);
            let starts = |todo: &SourceTodo| matches!(todo, SourceTodo::Effect(SourceEffect::StartStream(_)));
            if w.source_agent.todo.first().is_some_and(starts) {
                actions.push(Action::SourceAgentCrashAfterConnect);
            }
            if w.source_agent.machine.is_some() {
                actions.push(Action::DriverSilent);
                actions.push(Action::PathLost);
                if !w.source_agent.journal_broken {
                    actions.push(Action::SourceJournalBreaks);
                }
            }
        }
        if w.destination_agent.up {
            actions.push(Action::DestinationAgentCrash);
            if w.destination_agent.machine.is_some() && !w.destination_agent.journal_broken {
                actions.push(Action::DestinationJournalBreaks);
            }
        }
        actions.push(Action::DriverRestart);
        if w.source.alive {
            actions.push(Action::SourceProcessDies);
        }
        if w.destination.alive {
            actions.push(Action::DestinationProcessDies);
        }
        let open = |stream| {
            matches!(
                stream,
                StreamFact::Active | StreamFact::BeforeSwitchover | StreamFact::SwitchingOver
            )
        };
        if open(w.source.stream) {
            actions.push(Action::StreamBreaks);
            actions.push(Action::LateFailure);
        }
        if w.destination_agent.todo.contains(&DestinationEffect::Resume) {
            actions.push(Action::ResumeRefused);
        }
        if w.source.running && !w.source.ended {
            actions.push(Action::GuestEnds);
        }
        if !w.cancelled {
            actions.push(Action::Cancel);
        }
    }

    pub fn apply(&self, world: &World, action: &Action) -> World {
        let mut w = world.clone();
        if action.is_fault() {
            w.faults_left = w.faults_left.saturating_sub(1);
        }
        match action {
            Action::SourceWork => self.source_work(&mut w),
            Action::DestinationWork => self.destination_work(&mut w),
            Action::Deliver(order) => {
                let up = match order {
                    Order::Prepare | Order::Finish(_) | Order::AbortDestination(_) => w.destination_agent.up,
                    Order::Begin
                    | Order::Perform
                    | Order::Ready
                    | Order::Confirm
                    | Order::AbortSource(_)
                    | Order::Settle => w.source_agent.up,
                };
                if up {
                    w.deliver(order);
                }
            }
            Action::HearSource => {
                let report = w.source_report();
                let go = matches!(report, Some(SourceReport::GoSent(_)));
                w.feed_driver(DriverEvent::Source(report));
                if go && self.is(Mutant::AdvanceOnGo) && w.record.decision == Decision::None {
                    w.drive(DriverEffect::AdvanceRecord);
                    w.drive(DriverEffect::Confirm);
                }
            }
            Action::HearDestination => {
                let report = w.destination_report();
                w.feed_driver(DriverEvent::Destination(report.clone()));
                if self.is(Mutant::ContBeforeGo) && report == Some(DestinationReport::Loaded) {
                    let go = godwit_handover::Go {
                        evidence: godwit_handover::GoEvidence::Completed,
                        wanted: Wanted::Run,
                        sealed: false,
                    };
                    w.drive(DriverEffect::Finish(go));
                }
            }
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
            Action::SourceAgentCrash => w.source_agent.crash(),
            Action::SourceAgentCrashAfterConnect => {
                connect(&mut w);
                w.source_agent.crash();
            }
            Action::DestinationAgentCrash => w.destination_agent.crash(),
            Action::SourceAgentRestart => w.restart_source_agent(),
            Action::DestinationAgentRestart => w.restart_destination_agent(),
            Action::DriverRestart => {
                w.driver = godwit_handover::Driver::new(world::terms());
                if w.cancelled {
                    w.feed_driver(DriverEvent::Cancel);
                }
                w.feed_driver(DriverEvent::Record(w.record.clone()));
            }
            Action::SourceProcessDies => {
                w.source.alive = false;
                w.source.running = false;
                w.source.restart_due = false;
            }
            Action::DestinationProcessDies => {
                w.destination.alive = false;
                w.destination.running = false;
            }
            Action::StreamBreaks | Action::StreamEnds => w.fail_destination_stream(),
            Action::LateFailure | Action::PeerGone => w.fail_source_stream(),
            Action::DriverSilent => {
                w.feed_source(SourceEvent::DriverSilent);
                w.feed_destination(DestinationEvent::DriverSilent);
                if self.is(Mutant::DestroyOnTimeOut)
                    && w.destination_report() == Some(DestinationReport::Loaded)
                {
                    w.feed_destination(DestinationEvent::Abort(Cause::DriverSilent));
                }
                let switching = matches!(
                    w.source_report(),
                    Some(SourceReport::Switching { .. } | SourceReport::GoSent(_))
                );
                if self.is(Mutant::ResumeOnSilence) && switching {
                    w.run_source();
                }
            }
            Action::PathLost => w.feed_source(SourceEvent::PathProven(false)),
            Action::SourceJournalBreaks => w.source_agent.journal_broken = true,
            Action::DestinationJournalBreaks => w.destination_agent.journal_broken = true,
            Action::ResumeRefused => {
                w.destination_agent
                    .todo
                    .retain(|t| *t != DestinationEffect::Resume);
                w.feed_destination(DestinationEvent::ResumeRefused);
            }
            Action::GuestEnds => {
                w.source.ended = true;
                w.source.running = false;
            }
            Action::Cancel => {
                w.cancelled = true;
                w.feed_driver(DriverEvent::Cancel);
            }
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
        w
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
                SourceEffect::Journal(_) if w.source_agent.journal_broken => Some(SourceEvent::JournalFailed),
                SourceEffect::Journal(entry) => {
                    w.source_agent.journal.push(entry.clone());
                    let silent = matches!(entry, SourceEntry::Aborted { .. } | SourceEntry::Lost { .. });
                    (!silent).then_some(SourceEvent::Journaled(entry))
                }
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
                    w.source_agent.todo.push(SourceTodo::LookAfterPause);
                    None
                }
                SourceEffect::LiftLimits => None,
                SourceEffect::SwitchOver => {
                    if w.source.stream == StreamFact::BeforeSwitchover {
                        w.source.stream = StreamFact::SwitchingOver;
                    }
                    None
                }
                SourceEffect::CancelStream => {
                    let s = &mut w.source;
                    let restarts =
                        matches!(s.stream, StreamFact::BeforeSwitchover) && s.noted_running && !s.ended;
                    s.stream = StreamFact::Cancelled;
                    s.restart_due = false;
                    if restarts && s.alive {
                        w.run_source();
                    }
                    Some(SourceEvent::StreamCancelled)
                }
                SourceEffect::ReleaseDisks => Some(SourceEvent::DisksReleased),
                SourceEffect::ReclaimDisks => Some(SourceEvent::DisksReclaimed),
                SourceEffect::Restore(wanted) => {
                    if wanted == Wanted::Run && !w.source.ended {
                        w.run_source();
                    }
                    Some(SourceEvent::Restored)
                }
                SourceEffect::ReadRecord => Some(SourceEvent::RecordRead(Some(w.record.clone()))),
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

    fn destination_work(&self, w: &mut World) {
        let answer = match w.destination_agent.todo.remove(0) {
            DestinationEffect::Journal(_) if w.destination_agent.journal_broken => {
                Some(DestinationEvent::JournalFailed)
            }
            DestinationEffect::Journal(entry) => {
                let unwritten =
                    self.is(Mutant::UnjournaledCont) && matches!(entry, DestinationEntry::ContIssued(_));
                if !unwritten {
                    w.destination_agent.journal.push(entry.clone());
                }
                let silent = matches!(entry, DestinationEntry::Reverted { .. });
                (!silent).then_some(DestinationEvent::Journaled(entry))
            }
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

/// Opens the channel. The listener is the agent's: it is there only while the agent is, and waits.
fn connect(w: &mut World) -> bool {
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
                | SourceEntry::Aborted { .. }
                | SourceEntry::Lost { .. } => true,
                SourceEntry::Sealed
                | SourceEntry::AbortIntent { .. }
                | SourceEntry::GoSent(_)
                | SourceEntry::Released => false,
            },
            SourceEffect::LiftLimits
            | SourceEffect::ReleaseDisks
            | SourceEffect::ReclaimDisks
            | SourceEffect::ReadRecord => true,
            SourceEffect::StartStream(_)
            | SourceEffect::Pause
            | SourceEffect::SwitchOver
            | SourceEffect::CancelStream
            | SourceEffect::Restore(_)
            | SourceEffect::Destroy => false,
        },
    }
}

fn at_once_at_destination(effect: &DestinationEffect) -> bool {
    match effect {
        DestinationEffect::Journal(entry) => match entry {
            DestinationEntry::Prepared { .. } | DestinationEntry::Reverted { .. } => true,
            DestinationEntry::ContIssued(_)
            | DestinationEntry::ContRefused
            | DestinationEntry::TakenOver(_)
            | DestinationEntry::RevertIntent { .. } => false,
        },
        DestinationEffect::Launch | DestinationEffect::Resume | DestinationEffect::Destroy => false,
    }
}
