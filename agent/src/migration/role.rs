//! What the tasks of both roles have alike: what reaches them from outside, in which order they take what comes, and
//! how their machine is given an event.

use std::fmt::Debug;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use godwit_handover::{Refusal, Step};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::native_several::Cable;
use crate::fail_point;
use crate::guest_network;
use crate::hypervisor::GuestEvent;
use crate::tunnel::Tunnels;

/// The first pause before something is tried again; it doubles up to [`LONGEST_BACKOFF`].
pub(super) const BACKOFF: Duration = Duration::from_millis(50);
pub(super) const LONGEST_BACKOFF: Duration = Duration::from_secs(2);

/// What reaches a role's task from outside.
pub(super) enum Message<E> {
    /// An order; answered once the machine has taken or refused it.
    Order(E, oneshot::Sender<Result<(), Refusal>>),
    /// The driver lives.
    KeepAlive {
        /// Whether the way for Ready and Go is proved.
        path_proven: bool,
        /// How long it may be silent.
        silence: Duration,
    },
    /// Another limit while the guest runs, in bytes per second. Only for the source.
    Retune {
        /// 0 is unlimited.
        bandwidth: u64,
    },
}

/// One side of a migration as its task runs it. The machine decides; all else here carries its effects out, or brings
/// it what has come of them.
pub(super) trait Role: Send {
    /// The side's name.
    const SIDE: &'static str;
    /// What the machine is told.
    type Event: Send + Debug;
    /// What it asks for.
    type Effect: Send + Debug;
    /// What comes back from the lanes on which that is done.
    type Answer: Send;

    /// Gives the machine an event, and takes over what else changes with it before its effects are carried out.
    fn advance(&mut self, event: Self::Event) -> Step<Self::Effect>;
    /// Sends one effect on its way; what comes of it is an answer.
    fn carry_out(&mut self, effect: Self::Effect);
    /// Shows how the machine stands.
    fn publish(&mut self);
    /// Something that was asked for has come back.
    fn answered(&mut self, answer: Self::Answer);
    /// The hypervisor told something by itself.
    fn happened(&mut self, event: Result<GuestEvent, RecvError>);
    /// Something came from outside.
    fn told(&mut self, message: Message<Self::Event>);
    /// When there is something to be done without being told.
    fn wake(&self) -> Option<Instant>;
    /// Does it.
    fn woken(&mut self, now: Instant);
    /// Where the hypervisor tells; `None` if nobody does.
    fn events(&mut self) -> &mut Option<broadcast::Receiver<GuestEvent>>;
    /// Lets go of the guest once nothing is left to be done with it.
    fn close_if_over(&mut self) -> impl Future<Output = ()> + Send;

    /// Carries out what a step of the machine asks for.
    fn follow(&mut self, step: Step<Self::Effect>) -> Result<(), Refusal> {
        for effect in step.effects {
            fail_point::pass(Self::SIDE, fail_point::BEFORE, &effect);
            self.carry_out(effect);
        }
        self.publish();
        match step.refusal {
            None => Ok(()),
            Some(refusal) => Err(refusal),
        }
    }

    /// A step for an order, which the machine may refuse.
    fn step(&mut self, event: Self::Event) -> Result<(), Refusal> {
        fail_point::pass(Self::SIDE, fail_point::EVENT, &event);
        let step = self.advance(event);
        self.follow(step)
    }

    /// A step for something that is no order: there is nobody to tell of a refusal, and none is possible.
    fn feel(&mut self, event: Self::Event) {
        if let Err(refusal) = self.step(event) {
            tracing::error!(%refusal, "the machine refused what is no order");
        }
    }
}

/// Runs a side to its end, and answers orders about it from then on. Ends when nobody can order any more. Answers are
/// taken before events: what a command's answer says was so before anything that the hypervisor told later.
pub(super) async fn run<R: Role>(
    mut role: R,
    mut answered: mpsc::UnboundedReceiver<R::Answer>,
    mut mailbox: mpsc::UnboundedReceiver<Message<R::Event>>,
) {
    loop {
        role.close_if_over().await;
        let wake = role.wake();
        tokio::select! {
            biased;
            Some(answer) = answered.recv() => role.answered(answer),
            event = next_event(role.events()) => role.happened(event),
            message = mailbox.recv() => match message {
                Some(message) => role.told(message),
                None => return,
            },
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => role.woken(Instant::now()),
        }
    }
}

async fn next_event(
    events: &mut Option<broadcast::Receiver<GuestEvent>>,
) -> Result<GuestEvent, broadcast::error::RecvError> {
    match events {
        Some(receiver) => receiver.recv().await,
        None => std::future::pending().await,
    }
}

/// Takes down what a side's stream went through, if that was the tunnel or the migration network. `guest` is the
/// directory of the guest's process, if that is still there.
pub(super) async fn take_down(
    migration: &str,
    (tunnel, cable): (Option<Tunnels>, Option<Cable>),
    guest: Option<&Path>,
    side: guest_network::Side,
) {
    if let Some(tunnel) = tunnel {
        tunnel.close(migration, guest).await;
    }
    if let Some(cable) = cable {
        cable.take_out(migration, side).await;
    }
}

/// A sleep of no time still waits for the timer's next tick.
pub(super) async fn sleep_if(time: Duration) {
    if !time.is_zero() {
        sleep(time).await;
    }
}
