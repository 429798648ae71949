//! What the hypervisor tells by itself, and what a look at it shows, in the machine's words.

use std::time::Duration;

use godwit_handover::{SourceEvent, SourceReport};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use super::Runner;
use super::hand::Work;
use crate::hypervisor::{GuestEvent, GuestEventKind, HypervisorError, RunState, StreamState, StreamStatus};
use crate::migration::observation;
use crate::migration::role::Role;
use crate::migration::steps::{self, Moment};
use crate::migration::updates::Note;

/// How long the hypervisor may take to decide whether it lets the guest run after a failed stream.
const SETTLE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

impl Runner {
    pub(super) fn noted(&mut self, note: Option<Note>) {
        if let Some(note) = note {
            self.publisher.note(note);
        }
    }

    pub(super) fn looked(&mut self, seen: Result<(RunState, StreamStatus), HypervisorError>) {
        self.looking = false;
        let (run, status) = match seen {
            Ok(seen) => seen,
            Err(HypervisorError::Died) => return self.feel(SourceEvent::Died),
            // Not a proof of anything; it is looked again.
            Err(error) => return tracing::debug!(%error, "a look at the source was not answered"),
        };
        if let (true, Some(figures)) = (self.stream_known, &status.figures) {
            self.publisher.figures(figures, Instant::now());
        }
        if observation::unsettled(run, status.state) && self.stream_known {
            let since = *self.unsettled_since.get_or_insert_with(Instant::now);
            if since.elapsed() < SETTLE {
                return self.look_soon(LOOK_AGAIN);
            }
        }
        self.unsettled_since = None;
        if observation::ended(run) {
            self.guest_ended(run);
        }
        // A stream that was given up for another reason ends in an error too; that one tells nothing.
        let given_up = matches!(
            self.machine.report(),
            SourceReport::Aborting(_) | SourceReport::Aborted(_)
        );
        if let (true, false, Some(error)) = (self.stream_known, given_up, &status.error) {
            // A relay knows better than the hypervisor why a channel did not come to be.
            let migration = &self.machine.terms().migration;
            let tunnel = self.tunnel.as_ref().and_then(|tunnel| tunnel.failure(migration));
            self.publisher.note(match tunnel {
                Some(why) => Note::new(
                    "StreamFailed",
                    format!("The tunnel was not opened: {why} ({error})"),
                ),
                None => Note::new("StreamFailed", error),
            });
        }
        let stream = self.stream_known.then_some(&status);
        for event in observation::at_source(&self.machine.report(), run, stream) {
            self.feel(event);
        }
    }

    fn guest_ended(&mut self, run: RunState) {
        let (reason, words) = match run {
            RunState::ShutDown => ("GuestPoweredOff", "The guest powered itself off"),
            RunState::Panicked => ("GuestPanicked", "The guest's kernel panicked"),
            RunState::IoError => ("GuestDiskError", "A disk error stopped the guest"),
            RunState::Broken
            | RunState::Running
            | RunState::Paused
            | RunState::StoppedForMigration
            | RunState::Incoming => (
                "HypervisorUnresponsive",
                "The hypervisor stopped the guest for an error of its own",
            ),
        };
        // Each telling is journaled, so it is told once.
        if !std::mem::replace(&mut self.end_told, true) {
            self.publisher.note(Note::new(reason, words));
            self.feel(SourceEvent::GuestEnded);
        }
    }

    pub(super) fn hypervisor_told(&mut self, event: Result<GuestEvent, RecvError>) {
        let event = match event {
            Ok(event) => event,
            Err(RecvError::Lagged(_)) => return self.look_soon(Duration::ZERO),
            Err(RecvError::Closed) => {
                self.events = None;
                return self.look_soon(Duration::ZERO);
            }
        };
        tracing::debug!(?event, "the source's hypervisor told");
        match event.kind {
            // Whether it was a user's, the seal's or the hypervisor's own is seen by a look; the hypervisor's own
            // is followed by word of the stream, which a look would only delay.
            GuestEventKind::Stopped => {
                self.publisher.stopped_at(event.at_micros);
                if matches!(
                    self.machine.report(),
                    SourceReport::Begun | SourceReport::Streaming
                ) {
                    self.look_soon(Duration::from_millis(20));
                }
            }
            GuestEventKind::Resumed => self.look_soon(Duration::ZERO),
            GuestEventKind::ShutDown => self.guest_ended(RunState::ShutDown),
            GuestEventKind::Panicked => self.guest_ended(RunState::Panicked),
            GuestEventKind::IoError { .. } => self.guest_ended(RunState::IoError),
            GuestEventKind::Reset => {}
            GuestEventKind::Stream(state) => match state {
                StreamState::BeforeSwitchover => {
                    self.tell_step(Moment::Gate, Some(event.at_micros));
                    self.feel(SourceEvent::BeforeSwitchover);
                }
                StreamState::Completed => {
                    self.tell_step(Moment::Completed, Some(event.at_micros));
                    self.feel(SourceEvent::StreamCompleted);
                    // For the hypervisor's own figures.
                    self.look_soon(Duration::ZERO);
                }
                StreamState::Failed | StreamState::Cancelled => self.look_soon(Duration::ZERO),
                StreamState::None
                | StreamState::Setup
                | StreamState::Active
                | StreamState::SwitchingOver
                | StreamState::Cancelling => {}
            },
            GuestEventKind::DirtyPagesCollected { .. } => {
                if let (Some((lane, _)), SourceReport::Streaming) = (&self.lane, self.machine.report()) {
                    let _ = lane.send(Work::Figures);
                }
            }
            GuestEventKind::Died => {
                self.noted(match self.machine.report() {
                    SourceReport::Released | SourceReport::GoSent(_) => None,
                    SourceReport::Begun
                    | SourceReport::Streaming
                    | SourceReport::Stopped { .. }
                    | SourceReport::Switching { .. }
                    | SourceReport::InDoubt { .. }
                    | SourceReport::Deciding { .. }
                    | SourceReport::Yielded
                    | SourceReport::Blocked { .. }
                    | SourceReport::Aborting(_)
                    | SourceReport::Aborted(_)
                    | SourceReport::Died
                    | SourceReport::Lost(_) => Some(Note::new(
                        "SourceHypervisorDied",
                        "The guest's process at the source is gone",
                    )),
                });
                self.feel(SourceEvent::Died);
            }
        }
    }

    pub(super) fn tell_step(&self, moment: Moment, at_micros: Option<i64>) {
        steps::tell(&self.machine.terms().migration, moment, at_micros);
    }

    fn look_soon(&mut self, after: Duration) {
        self.look_at = self.look_at.min(Instant::now() + after);
    }

    /// How often it is looked where events tell the same: they may lag or be lost.
    pub(super) fn look_interval(&self) -> Duration {
        match self.machine.report() {
            SourceReport::Stopped { .. } | SourceReport::Switching { .. } | SourceReport::InDoubt { .. } => {
                Duration::from_millis(50)
            }
            SourceReport::Begun
            | SourceReport::Streaming
            | SourceReport::Deciding { .. }
            | SourceReport::Yielded
            | SourceReport::Blocked { .. }
            | SourceReport::Aborting(_) => Duration::from_millis(500),
            SourceReport::GoSent(_) => Duration::from_secs(1),
            SourceReport::Released
            | SourceReport::Aborted(_)
            | SourceReport::Died
            | SourceReport::Lost(_) => Duration::from_secs(10),
        }
    }
}
