//! The destination's role: one task that owns the machine, carries its effects out and brings their answers back.
//!
//! Commands to the hypervisor go through one lane, in order ([`hand`]); the journal has a lane of its own, and so has
//! the wait at the door. [`runner`] is the task.

mod hand;
mod runner;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use godwit_handover::{Destination, DestinationEffect, DestinationEntry, DestinationEvent, Step};
use godwit_protocol::Fault;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::asking::Patience;
use super::channel::ChannelError;
use super::custody::{Custody, RecordArbiter};
use super::driver_watch::DriverWatch;
use super::faults;
use super::gateway::Gateway;
use super::journal::{Journal, Line};
use super::native_several::Cable;
use super::pen::Pen;
use super::rim::Rim;
use super::role::{self, BACKOFF, Message, Role};
use super::updates::{Note, Publisher};
use crate::fail_point;
use crate::guests::{Definition, GuestIdentity, Held};
use crate::hypervisor::{Guest, GuestEvent, HypervisorError, RunState, Stream, StreamStatus};
use crate::tunnel::Tunnels;
use hand::{Hand, Work};

/// What is to be launched, and behind which door.
pub(super) struct Arrival {
    pub(super) identity: GuestIdentity,
    pub(super) definition: Definition,
    pub(super) gateway: Gateway,
    /// Answered once the process waits, or says why there is none.
    pub(super) launched: oneshot::Sender<Result<(), Fault>>,
}

/// Everything that a destination's task starts with.
pub(super) struct DestinationStart {
    pub(super) machine: Destination,
    pub(super) first: Step<DestinationEffect>,
    /// Of a new migration.
    pub(super) arrival: Option<Arrival>,
    /// The tunnels, if the stream comes through one.
    pub(super) tunnel: Option<Tunnels>,
    /// The migration network, if the hypervisor gets it for the stream.
    pub(super) cable: Option<Cable>,
    /// The host's disk and network.
    pub(super) rim: Rim,
    /// The process of a recovered one.
    pub(super) guest: Option<Arc<dyn Guest>>,
    pub(super) custody: Arc<dyn Custody>,
    pub(super) records: Arc<dyn RecordArbiter>,
    /// `None` if the migration had ended before.
    pub(super) journal: Option<Journal>,
    pub(super) publisher: Publisher,
    pub(super) mailbox: mpsc::UnboundedReceiver<Message<DestinationEvent>>,
    /// Whether the machine was rebuilt after a restart.
    pub(super) recovered: bool,
    /// Set once nothing is left to be done.
    pub(super) over: Arc<AtomicBool>,
}

/// What comes back from the lanes.
enum Answer {
    Event(DestinationEvent, Option<Note>),
    Written(DestinationEvent, Option<Note>),
    Ended,
    Launched(Box<Result<(Held, Gateway), Fault>>),
    Admitted(Result<Option<Stream>, ChannelError>),
    NotDestroyed(Note),
    Looked(Result<(RunState, StreamStatus), HypervisorError>),
}

struct Runner {
    machine: Destination,
    arrival: Option<Arrival>,
    tunnel: Option<Tunnels>,
    cable: Option<Cable>,
    custody: Arc<dyn Custody>,
    records: Arc<dyn RecordArbiter>,
    asking: Option<AbortOnDropHandle<()>>,
    patience: Patience,
    patience_to_start: Patience,
    pen: Option<Pen<DestinationEntry>>,
    lane: Option<(mpsc::UnboundedSender<Work>, AbortOnDropHandle<()>)>,
    answers: mpsc::UnboundedSender<Answer>,
    events: Option<broadcast::Receiver<GuestEvent>>,
    publisher: Publisher,
    driver: DriverWatch,
    over: Arc<AtomicBool>,
    waiting: Option<AbortOnDropHandle<()>>,
    /// Answered once the launch has been.
    launched: Option<oneshot::Sender<Result<(), Fault>>>,
    guest: Option<Arc<dyn Guest>>,
    nobody_at: Option<Instant>,
    /// When the machine is told that the guest runs.
    told_at: Option<Instant>,
    looking: bool,
    look_at: Instant,
    destroy_at: Option<Instant>,
    backoff: Duration,
    writes: usize,
    closing: bool,
    close_at: Instant,
}

/// Runs a destination's side to its end, and answers orders about it from then on. Ends when nobody can order any
/// more.
pub(super) async fn run(start: DestinationStart) {
    let (answers, answered) = mpsc::unbounded_channel();
    let now = Instant::now();
    let over = start.over.load(Ordering::Acquire);
    let desk = start.rim.desk.clone();
    let pen = start.journal.map(|journal| {
        let answers = answers.clone();
        Pen::new(&*desk, Runner::SIDE, journal, move |line, outcome| {
            if let (Line::Entry(entry), Ok(())) = (&line, &outcome) {
                fail_point::pass(Runner::SIDE, fail_point::JOURNALED, entry);
            }
            let answer = match (line, outcome) {
                (Line::Entry(entry), Ok(())) => Answer::Written(DestinationEvent::Journaled(entry), None),
                (Line::Entry(_), Err(error)) => {
                    let reason = faults::journal_reason(&error);
                    Answer::Written(DestinationEvent::JournalFailed, Some(Note::new(reason, error)))
                }
                (Line::Ended { .. }, _) => Answer::Ended,
            };
            // Nobody listens where the agent is about to end.
            let _ = answers.send(answer);
        })
    });
    let lane = (!over).then(|| {
        let (sender, work) = mpsc::unbounded_channel();
        let hand = Hand {
            guest: start.guest.clone(),
            custody: start.custody.clone(),
            terms: start.machine.terms().clone(),
            recovered: start.guest.is_some(),
        };
        (
            sender,
            AbortOnDropHandle::new(tokio::spawn(hand.work(work, answers.clone()))),
        )
    });
    let mut runner = Runner {
        machine: start.machine,
        arrival: start.arrival,
        tunnel: start.tunnel,
        cable: start.cable,
        custody: start.custody,
        records: start.records,
        asking: None,
        patience: Patience::default(),
        patience_to_start: Patience::default(),
        pen,
        lane,
        answers,
        events: start.guest.as_ref().map(|guest| guest.subscribe()),
        publisher: start.publisher,
        driver: DriverWatch::new(now, start.recovered),
        over: start.over,
        waiting: None,
        launched: None,
        guest: start.guest,
        nobody_at: None,
        told_at: None,
        looking: false,
        look_at: now,
        destroy_at: None,
        backoff: BACKOFF,
        writes: 0,
        closing: over,
        close_at: now,
    };
    if let Err(refusal) = runner.follow(start.first) {
        tracing::error!(%refusal, "the machine refused its own beginning");
    }
    role::run(runner, answered, start.mailbox).await;
}
