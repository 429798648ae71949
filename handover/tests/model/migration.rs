//! The model: what is checked, and what can happen next in a world.

use godwit_handover::{DestinationEvent, SourceEvent, SourceReport, StreamFact, Wanted};

use crate::action::{Action, Fault};
use crate::driving::{Flow, Seat};
use crate::mutants::Mutant;
use crate::world::World;

/// Who drives, how many faults one history may have, and which rule is left out.
#[derive(Clone, Debug)]
pub struct Migration {
    pub flow: Flow,
    /// Whether a Go is not enough: `handoff: Strict`.
    pub strict: bool,
    pub faults: u8,
    /// The kinds of fault that may happen; `None`: all.
    pub only: Option<&'static [Fault]>,
    pub mutant: Option<Mutant>,
}

impl Migration {
    pub fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// Everything that can happen next; some of it changes nothing.
    pub fn enabled(&self, w: &World, actions: &mut Vec<Action>) {
        if !w.source_agent.up {
            if !w.source_gone {
                actions.push(Action::SourceAgentRestart);
            }
        } else if !w.source_agent.todo.is_empty() {
            actions.push(Action::SourceWork);
        }
        if !w.destination_agent.up {
            if !w.destination_gone {
                actions.push(Action::DestinationAgentRestart);
            }
        } else if !w.destination_agent.todo.is_empty() {
            actions.push(Action::DestinationWork);
        }
        self.administrator(w, actions);
        self.drivers(w, actions);
        if w.destination_agent.up && w.destinations_wish().is_some() {
            actions.push(Action::DestinationWrites);
        }
        if w.late.is_some() {
            actions.push(Action::LateWrite);
        }
        let there = |to_source| {
            if to_source {
                w.source_agent.up
            } else {
                w.destination_agent.up
            }
        };
        let arriving = w.network.orders.iter().filter(|o| there(o.is_for_source()));
        actions.extend(arriving.copied().map(Action::Deliver));
        if !w.path && w.source_agent.machine.is_some() {
            actions.push(Action::PathProvenAgain);
        }
        see_source(self, w, actions);
        see_destination(w, actions);
        hypervisors(w, actions);
        if w.faults_left > 0 {
            let mut faults = vec![];
            self.faults(w, &mut faults);
            let allowed = |fault: &Fault| {
                self.only.is_none_or(|only| only.contains(fault)) && w.faults_left >= self.cost(*fault)
            };
            actions.extend(faults.into_iter().filter(allowed).map(Action::Fault));
        }
    }

    fn drivers(&self, w: &World, actions: &mut Vec<Action>) {
        for (which, seat) in w.drivers.iter().enumerate() {
            // How it ended is written down; it hears nothing more.
            if seat.ended() {
                continue;
            }
            // An agent that is away gives no report; its last one stays what the driver knows.
            if w.source_agent.up && seat.unknown_source(w.source_report()) {
                actions.push(Action::HearSource(which));
            }
            let absent = self.is(Mutant::AbsenceIsRevert) && !w.destination_agent.up;
            if absent || w.destination_agent.up && seat.unknown_destination(w.destination_report().as_ref()) {
                actions.push(Action::HearDestination(which));
            }
            // Time tells of an agent that is away; that it does not hear one that is there is a fault.
            if !w.source_agent.up {
                actions.push(Action::SourceUnheard(which));
            }
            if !w.destination_agent.up {
                actions.push(Action::DestinationUnheard(which));
            }
            if seat.wish(self.flow).is_some() {
                actions.push(Action::DriverWrites(which));
            }
            if seat.known.as_ref() != Some(&w.record) {
                actions.push(Action::DriverReads(which));
            }
        }
    }
}

impl World {
    /// A driver that is away, or has ended, is silent; it takes no fault more.
    fn nobody_drives(&self) -> bool {
        self.drivers.iter().all(Seat::ended)
    }
}

fn see_source(model: &Migration, w: &World, actions: &mut Vec<Action>) {
    let Some(report) = w.source_report() else { return };
    let mut source = |event| actions.push(Action::SeeSource(event));
    if !w.source.alive {
        return source(SourceEvent::Died);
    }
    let running = w.source.running;
    let wanted = if running { Wanted::Run } else { Wanted::StayStopped };
    match w.source.stream {
        StreamFact::BeforeSwitchover => source(SourceEvent::BeforeSwitchover),
        StreamFact::Completed => source(SourceEvent::StreamCompleted),
        StreamFact::Failed => {
            source(SourceEvent::StreamFailed { running });
            if running {
                source(SourceEvent::GuestWants(Wanted::Run));
            }
        }
        StreamFact::SwitchingOver if model.is(Mutant::CompletedUnacknowledged) => {
            source(SourceEvent::StreamCompleted);
        }
        // A stop that is not the agent's own is a user's; later it cannot be told from the seal.
        StreamFact::None | StreamFact::Active => {
            if !w.source.ended && matches!(report, SourceReport::Begun | SourceReport::Streaming) {
                source(SourceEvent::GuestWants(wanted));
            }
        }
        StreamFact::SwitchingOver | StreamFact::Cancelled => {}
    }
    if w.source.ended {
        source(SourceEvent::GuestEnded);
    }
    if w.nobody_drives() {
        source(SourceEvent::DriverSilent);
    }
}

fn see_destination(w: &World, actions: &mut Vec<Action>) {
    if w.destination_agent.machine.is_none() {
        return;
    }
    let d = &w.destination;
    let mut destination = |event| actions.push(Action::SeeDestination(event));
    if d.launches > 0 {
        match (d.alive, d.loaded, d.failed) {
            (false, _, _) => destination(DestinationEvent::Died),
            (true, true, _) => destination(DestinationEvent::Loaded),
            (true, false, true) => destination(DestinationEvent::StreamFailed),
            (true, false, false) => {}
        }
    }
    // Nobody opens a channel whose source has given up, or has died.
    let given_up = matches!(
        w.source_report(),
        None | Some(
            SourceReport::Aborting(_) | SourceReport::Aborted(_) | SourceReport::Died | SourceReport::Lost(_)
        )
    );
    if d.alive && !d.connected && given_up && w.source_agent.up {
        destination(DestinationEvent::NobodyConnected);
    }
    if w.nobody_drives() {
        destination(DestinationEvent::DriverSilent);
    }
}

fn hypervisors(w: &World, actions: &mut Vec<Action>) {
    let (s, d) = (&w.source, &w.destination);
    if s.alive && s.stream == StreamFact::Active {
        actions.push(Action::Collect);
        actions.push(Action::Converge);
    }
    if s.alive && s.stream == StreamFact::SwitchingOver {
        if d.receives() {
            actions.push(Action::Load);
        }
        if d.loaded {
            actions.push(Action::Acknowledge);
        }
    }
    if s.restart_due {
        actions.push(Action::SelfRestart);
    }
    // A destination whose source is gone, or has failed, sees its stream end.
    let ended = !s.alive
        || matches!(
            s.stream,
            StreamFact::Failed | StreamFact::Cancelled | StreamFact::None
        );
    if d.receives() && ended {
        actions.push(Action::StreamEnds);
    }
    // And a source whose destination is gone before it has acknowledged.
    if s.streams() && (!d.alive || d.failed) {
        actions.push(Action::PeerGone);
    }
}
