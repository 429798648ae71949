//! What carries commands to the hypervisor, one after the other.

use std::sync::Arc;
use std::time::Duration;

use godwit_handover::{Cause, Channel, SourceEffect, SourceEvent, Terms, Wanted};
use godwit_protocol::StreamOptions;
use tokio::sync::mpsc;

use super::Answer;
use crate::hypervisor::{Guest, HypervisorError, RunState, StreamLimits, StreamState, StreamStatus};
use crate::migration::channel::{self, ChannelError};
use crate::migration::custody::Custody;
use crate::migration::native_several::Cable;
use crate::migration::rim::Wire;
use crate::migration::role::{BACKOFF, LONGEST_BACKOFF, sleep_if};
use crate::migration::steps::{self, Moment};
use crate::migration::updates::Note;
use crate::tunnel::Tunnels;

/// How long opening the channel may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// While memory travels the hypervisor hardly judges for itself when the rest is small enough: the seal does.
const NARROW_DOWNTIME: Duration = Duration::from_millis(1);
/// Bytes per second while the way for Ready and Go is not proved: as slow as can be, 0 being unlimited. QEMU 10 looks at
/// its limit ten times a second and sends 128 KiB each time, whatever the limit is; a guest that writes a page in
/// between does not come to the switchover, and a peer that is gone is noticed.
const HELD_BACK: u64 = 64 << 10;
/// Once the guest stands still nothing holds the stream back.
const WIDE: StreamLimits = StreamLimits {
    bandwidth: 0,
    downtime: Duration::from_secs(2000),
};

/// What it is asked for.
pub(super) enum Work {
    Effect(SourceEffect),
    /// Limit the stream, or the one that will be started; by itself it starts nothing.
    Limit {
        bandwidth: u64,
    },
    /// Hold the stream back, or let it go, whatever its limit is.
    HoldBack(bool),
    Look,
    Figures,
}

/// The hand itself, and the stream as far as it knows of it.
pub(super) struct Hand {
    pub(super) guest: Arc<dyn Guest>,
    pub(super) custody: Arc<dyn Custody>,
    pub(super) terms: Terms,
    pub(super) stream: StreamOptions,
    pub(super) tunnel: Option<Tunnels>,
    pub(super) cable: Option<Cable>,
    pub(super) wire: Arc<dyn Wire>,
    pub(super) held_back: bool,
    /// There is, or may be, a stream whose limits can be changed.
    pub(super) started: bool,
}

impl Hand {
    pub(super) async fn work(
        mut self,
        mut work: mpsc::UnboundedReceiver<Work>,
        answers: mpsc::UnboundedSender<Answer>,
    ) {
        let mut before_restore = Duration::ZERO;
        while let Some(next) = work.recv().await {
            let answer = match next {
                Work::Effect(effect) => {
                    if matches!(effect, SourceEffect::Restore(_)) {
                        sleep_if(before_restore).await;
                        before_restore = (before_restore * 2).clamp(BACKOFF, LONGEST_BACKOFF);
                    }
                    self.carry_out(effect).await
                }
                Work::Limit { bandwidth } => {
                    self.stream.bandwidth = bandwidth;
                    Answer::Nothing(self.limit().await)
                }
                Work::HoldBack(held) => {
                    self.held_back = held;
                    Answer::Nothing(self.limit().await)
                }
                Work::Look => Answer::Looked(self.look().await),
                Work::Figures => match self.guest.stream().await {
                    Ok(StreamStatus {
                        state: StreamState::Active,
                        figures: Some(figures),
                        ..
                    }) => Answer::Figures(figures),
                    Ok(_) => Answer::Nothing(None),
                    Err(error) => Answer::Nothing(Some(Note::new("HypervisorUnresponsive", error))),
                },
            };
            if answers.send(answer).is_err() {
                return;
            }
        }
    }

    /// The run state is asked last: a guest that was seen to run is then known to run under that stream.
    async fn look(&self) -> Result<(RunState, StreamStatus), HypervisorError> {
        let status = self.guest.stream().await?;
        Ok((self.guest.run_state().await?, status))
    }

    /// The limits of this stream while the guest runs.
    fn narrow(&self) -> StreamLimits {
        StreamLimits {
            bandwidth: if self.held_back {
                HELD_BACK
            } else {
                self.stream.bandwidth
            },
            downtime: NARROW_DOWNTIME,
        }
    }

    /// Gives the hypervisor the limits, if there is a stream that they are for.
    async fn limit(&self) -> Option<Note> {
        if !self.started {
            return None;
        }
        let outcome = self.guest.set_limits(self.narrow()).await;
        outcome
            .err()
            .map(|error| Note::new("HypervisorUnresponsive", error))
    }

    async fn carry_out(&mut self, effect: SourceEffect) -> Answer {
        match effect {
            SourceEffect::StartStream(channel) => self.start_stream(&channel).await,
            SourceEffect::Pause => self.pause().await,
            SourceEffect::LiftLimits => Answer::Nothing(
                self.guest
                    .set_limits(WIDE)
                    .await
                    .err()
                    .map(|error| Note::new("HypervisorUnresponsive", error)),
            ),
            SourceEffect::SwitchOver => self.switch_over().await,
            SourceEffect::CancelStream => match self.guest.cancel_stream().await {
                Ok(()) => Answer::Event(SourceEvent::StreamCancelled, None),
                Err(error) => again(SourceEffect::CancelStream, error),
            },
            SourceEffect::ReleaseDisks => match self.guest.set_disks_active(false).await {
                Ok(()) => Answer::Event(SourceEvent::DisksReleased, None),
                Err(error) => again(SourceEffect::ReleaseDisks, error),
            },
            SourceEffect::ReclaimDisks => match self.reclaim().await {
                Ok(()) => Answer::Event(SourceEvent::DisksReclaimed, None),
                Err(error) => again(SourceEffect::ReclaimDisks, error),
            },
            SourceEffect::Restore(wanted) => match self.restore(wanted).await {
                Ok(()) => Answer::Event(SourceEvent::Restored, None),
                Err(HypervisorError::Died) => Answer::Event(SourceEvent::Died, None),
                Err(error) => Answer::Event(
                    SourceEvent::RestoreFailed,
                    Some(Note::new("HypervisorUnresponsive", error)),
                ),
            },
            SourceEffect::Destroy => match self.custody.release(&self.terms).await {
                Ok(()) => Answer::Event(SourceEvent::Destroyed, None),
                Err(error) => Answer::Retry(
                    SourceEffect::Destroy,
                    Some(Note::new(error.reason(), error.to_string())),
                ),
            },
            // These have lanes of their own.
            SourceEffect::Journal(_) | SourceEffect::ReadRecord | SourceEffect::DecideAborted => {
                Answer::Nothing(None)
            }
        }
    }

    async fn start_stream(&mut self, channel: &Channel) -> Answer {
        let not = |cause, reason, detail: String| {
            Answer::Event(
                SourceEvent::StreamNotStarted(cause),
                Some(Note::new(reason, detail)),
            )
        };
        let (migration, encrypted) = (&self.terms.migration, self.stream.encrypted);
        let opened = match (&self.tunnel, &self.cable) {
            (Some(tunnel), _) => tunnel
                .open(
                    migration,
                    &self.terms.destination,
                    channel,
                    (self.stream.connections, &*self.guest),
                    CONNECT_DEADLINE,
                )
                .await
                .map_err(ChannelError::from),
            (None, Some(cable)) => cable.leave(migration, &*self.guest, channel, self.stream).await,
            (None, None) => {
                channel::connect(&*self.wire, channel, migration, encrypted, CONNECT_DEADLINE).await
            }
        };
        let stream = match opened {
            Ok(stream) => stream,
            Err(error) => {
                return not(Cause::StreamFailed, "StreamFailed", error.to_string());
            }
        };
        match self.guest.send(stream, self.narrow()).await {
            Ok(()) => {
                self.started = true;
                Answer::Event(SourceEvent::StreamStarted, None)
            }
            Err(HypervisorError::Died) => Answer::Event(SourceEvent::Died, None),
            // It may have begun all the same; what follows is a cancel, which ends it if so.
            Err(error) => not(Cause::HypervisorRefused, "StreamFailed", error.to_string()),
        }
    }

    async fn pause(&self) -> Answer {
        match self.guest.pause().await {
            Ok(()) => {}
            Err(HypervisorError::Died) => return Answer::Event(SourceEvent::Died, None),
            Err(error) => {
                return Answer::Event(
                    SourceEvent::PauseFailed,
                    Some(Note::new("HypervisorUnresponsive", error)),
                );
            }
        }
        match self.guest.stream().await {
            Ok(status) => {
                let stream_active = status.state == StreamState::Active && status.error.is_none();
                Answer::Event(SourceEvent::Paused { stream_active }, None)
            }
            Err(HypervisorError::Died) => Answer::Event(SourceEvent::Died, None),
            // Not seen to be active: no proof of the seal.
            Err(error) => Answer::Event(
                SourceEvent::Paused { stream_active: false },
                Some(Note::new("HypervisorUnresponsive", error)),
            ),
        }
    }

    /// Only a stream that was seen to wait still, after an answered refusal, has been refused; anything else is
    /// told by the stream itself.
    async fn switch_over(&self) -> Answer {
        steps::tell(&self.terms.migration, Moment::SwitchOver, None);
        let error = match self.guest.switch_over().await {
            Ok(()) => return Answer::Nothing(None),
            Err(error) => error,
        };
        let note = Some(Note::new("StreamFailed", &error));
        match error {
            HypervisorError::Died => Answer::Event(SourceEvent::Died, None),
            HypervisorError::Command { .. } => match self.guest.stream().await {
                Ok(StreamStatus {
                    state: StreamState::BeforeSwitchover,
                    ..
                }) => Answer::Event(SourceEvent::SwitchOverRefused, note),
                Ok(_) | Err(_) => Answer::Nothing(note),
            },
            // It may never have arrived: without it the guest would stand still for ever. A second one does no harm,
            // and where the first was taken the stream says so.
            HypervisorError::Unavailable(_)
            | HypervisorError::Refused(_)
            | HypervisorError::Deadline { .. }
            | HypervisorError::Protocol(_)
            | HypervisorError::System { .. } => match self.guest.stream().await {
                Err(HypervisorError::Died) => Answer::Event(SourceEvent::Died, None),
                Ok(StreamStatus {
                    state: StreamState::BeforeSwitchover,
                    ..
                })
                | Err(_) => Answer::Retry(SourceEffect::SwitchOver, note),
                Ok(_) => Answer::Nothing(note),
            },
        }
    }

    /// The record says that the destination never will run the guest: what is left of the stream is in the way.
    async fn reclaim(&self) -> Result<(), HypervisorError> {
        match self.guest.stream().await?.state {
            StreamState::None | StreamState::Completed | StreamState::Cancelled | StreamState::Failed => {}
            StreamState::Setup
            | StreamState::Active
            | StreamState::BeforeSwitchover
            | StreamState::SwitchingOver
            | StreamState::Cancelling => self.guest.cancel_stream().await?,
        }
        if self.guest.run_state().await? == RunState::Running {
            // The hypervisor let it run by itself, and took the disks back for that.
            return Ok(());
        }
        self.guest.set_disks_active(true).await
    }

    /// A guest that stands in an end of its own is left in it: nobody lets a guest run that powered off.
    /// One that runs is left running: the hypervisor has let it run by itself because it ran before its stream, and
    /// knows that better than an agent that was away, or has not yet seen a user's resume.
    async fn restore(&self, wanted: Wanted) -> Result<(), HypervisorError> {
        let run = self.guest.run_state().await?;
        match (wanted, run) {
            (Wanted::Run, RunState::Paused | RunState::StoppedForMigration) => self.guest.resume().await,
            (Wanted::Run, RunState::Incoming) => Err(HypervisorError::Protocol(
                "the source waits for an incoming guest".into(),
            )),
            (Wanted::Run | Wanted::StayStopped, _) => Ok(()),
        }
    }
}

fn again(effect: SourceEffect, error: HypervisorError) -> Answer {
    match error {
        HypervisorError::Died => Answer::Event(SourceEvent::Died, None),
        error @ (HypervisorError::Unavailable(_)
        | HypervisorError::Refused(_)
        | HypervisorError::Deadline { .. }
        | HypervisorError::Command { .. }
        | HypervisorError::Protocol(_)
        | HypervisorError::System { .. }) => {
            Answer::Retry(effect, Some(Note::new("HypervisorUnresponsive", error)))
        }
    }
}
