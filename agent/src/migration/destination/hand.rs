//! What carries commands to the hypervisor, one after the other.

use std::sync::Arc;
use std::time::Duration;

use godwit_handover::{DestinationEvent, Terms};
use godwit_protocol::Fault;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::Answer;
use crate::guests::{Definition, GuestIdentity, Held};
use crate::hypervisor::{Guest, HypervisorError, RunState, Stream, StreamStatus};
use crate::migration::custody::Custody;
use crate::migration::faults;
use crate::migration::gateway::Gateway;
use crate::migration::observation;
use crate::migration::role::{BACKOFF, LONGEST_BACKOFF, sleep_if};
use crate::migration::updates::Note;

/// What it is asked for.
pub(super) enum Work {
    Launch(Box<(GuestIdentity, Definition, Gateway)>),
    Receive(Stream),
    Resume,
    Destroy,
    Look,
}

/// The hand itself.
pub(super) struct Hand {
    pub(super) guest: Option<Arc<dyn Guest>>,
    pub(super) custody: Arc<dyn Custody>,
    pub(super) terms: Terms,
    /// The process was found by a journal, and not started by this hand.
    pub(super) recovered: bool,
}

impl Hand {
    pub(super) async fn work(
        mut self,
        mut work: mpsc::UnboundedReceiver<Work>,
        answers: mpsc::UnboundedSender<Answer>,
    ) {
        let mut before_resume = Duration::ZERO;
        while let Some(next) = work.recv().await {
            let answer = match next {
                Work::Launch(what) => Answer::Launched(Box::new(self.launch(*what).await)),
                Work::Receive(stream) => self.receive(stream).await,
                Work::Resume => {
                    sleep_if(before_resume).await;
                    before_resume = (before_resume * 2).clamp(2 * BACKOFF, LONGEST_BACKOFF);
                    self.resume().await
                }
                Work::Destroy => match self.custody.discard_incoming(&self.terms).await {
                    Ok(()) => Answer::Event(DestinationEvent::Destroyed, None),
                    Err(error) => Answer::NotDestroyed(Note::new(error.reason(), error.to_string())),
                },
                Work::Look => Answer::Looked(self.look().await),
            };
            if answers.send(answer).is_err() {
                return;
            }
        }
    }

    /// Starts the process, and has it listen where it makes the connections itself. One that cannot is not kept.
    async fn launch(
        &mut self,
        (identity, definition, gateway): (GuestIdentity, Definition, Gateway),
    ) -> Result<(Held, Gateway), Fault> {
        let launched = self
            .custody
            .launch_incoming(&identity, &definition, &self.terms)
            .await;
        let held = launched.map_err(Fault::from)?;
        self.guest = Some(held.guest.clone());
        match gateway.listen(&held.guest).await {
            Ok(gateway) => Ok((held, gateway)),
            Err(error) => {
                if let Err(error) = self.custody.discard_incoming(&self.terms).await {
                    tracing::warn!(%error, "a process that nothing reaches is left until the migration is over");
                }
                Err(faults::channel(&error))
            }
        }
    }

    fn guest(&self) -> Result<&Arc<dyn Guest>, HypervisorError> {
        self.guest.as_ref().ok_or(HypervisorError::Died)
    }

    async fn look(&self) -> Result<(RunState, StreamStatus), HypervisorError> {
        let guest = self.guest()?;
        let status = guest.stream().await?;
        Ok((guest.run_state().await?, status))
    }

    async fn receive(&self, stream: Stream) -> Answer {
        let outcome = match self.guest() {
            Ok(guest) => guest.receive(stream).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => Answer::Event(DestinationEvent::Connected, None),
            Err(HypervisorError::Died) => Answer::Event(DestinationEvent::Died, None),
            // Nothing was taken, or it is not known what was: the copy is given up, the source has the guest.
            Err(error) => Answer::Event(
                DestinationEvent::StreamFailed,
                Some(Note::new("StreamFailed", error)),
            ),
        }
    }

    /// Lets the guest run, and asks until it is known whether it does. A refusal counts only where the hypervisor
    /// answered it and the guest was seen to stand still after that.
    async fn resume(&self) -> Answer {
        let guest = match self.guest() {
            Ok(guest) => guest,
            Err(_) => return Answer::Event(DestinationEvent::Died, None),
        };
        // An earlier life of the agent may have let it run, and it may have powered off, panicked or met an error since.
        if self.recovered {
            match guest.run_state().await {
                Ok(RunState::Running) => return Answer::Event(DestinationEvent::Resumed, None),
                Ok(state) if observation::ended(state) => {
                    return Answer::Event(DestinationEvent::NotRunnable, None);
                }
                Err(HypervisorError::Died) => return Answer::Event(DestinationEvent::Died, None),
                Ok(_) | Err(_) => {}
            }
        }
        let mut pause = BACKOFF;
        loop {
            let (refused, error) = match guest.resume().await {
                Ok(()) => return Answer::Event(DestinationEvent::Resumed, None),
                Err(HypervisorError::Died) => return Answer::Event(DestinationEvent::Died, None),
                Err(error) => (matches!(error, HypervisorError::Command { .. }), error),
            };
            match guest.run_state().await {
                Ok(RunState::Running) => return Answer::Event(DestinationEvent::Resumed, None),
                // It came in an end of its own, or has met one since it was let run: it is taken over in it.
                Ok(state) if observation::ended(state) => {
                    return Answer::Event(DestinationEvent::NotRunnable, None);
                }
                Ok(RunState::Paused | RunState::StoppedForMigration) if refused => {
                    let note = Note::new("StartRefused", error);
                    return Answer::Event(DestinationEvent::ResumeRefused, Some(note));
                }
                Err(HypervisorError::Died) => return Answer::Event(DestinationEvent::Died, None),
                Ok(_) | Err(_) => {}
            }
            tracing::warn!(%error, "the guest's start was not answered; it is asked again");
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_BACKOFF);
        }
    }
}
