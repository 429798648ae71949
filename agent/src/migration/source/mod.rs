//! The source's role: one task that owns the machine, carries its effects out and brings their answers back.
//!
//! Commands to the hypervisor go through one lane, in order ([`hand`]); the journal and the record have lanes of their
//! own, so that a silent hypervisor delays neither. [`runner`] is the task, [`senses`] what it makes of what the
//! hypervisor tells and of what a look at it shows.

mod hand;
mod runner;
mod senses;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use godwit_handover::{Source, SourceEffect, SourceEntry, SourceEvent, SourceReport, Step};
use godwit_protocol::StreamOptions;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::asking::Patience;
use super::custody::{Custody, RecordArbiter};
use super::driver_watch::DriverWatch;
use super::faults;
use super::journal::{Journal, Line};
use super::native_several::Cable;
use super::pen::Pen;
use super::rim::Rim;
use super::role::{self, BACKOFF, Message, Role};
use super::updates::{Note, Publisher};
use crate::fail_point;
use crate::hypervisor::{Guest, GuestEvent, HypervisorError, RunState, StreamFigures, StreamStatus};
use crate::tunnel::Tunnels;
use hand::{Hand, Work};

/// Everything that a source's task starts with.
pub(super) struct SourceStart {
    pub(super) machine: Source,
    pub(super) first: Step<SourceEffect>,
    /// How memory is to travel.
    pub(super) stream: StreamOptions,
    /// The tunnels, if the stream goes through one.
    pub(super) tunnel: Option<Tunnels>,
    /// The migration network, if the hypervisor gets it for the stream.
    pub(super) cable: Option<Cable>,
    /// The host's disk and network.
    pub(super) rim: Rim,
    /// The process; `None` if it is gone.
    pub(super) guest: Option<Arc<dyn Guest>>,
    pub(super) custody: Arc<dyn Custody>,
    pub(super) records: Arc<dyn RecordArbiter>,
    /// `None` if the migration had ended before.
    pub(super) journal: Option<Journal>,
    pub(super) publisher: Publisher,
    pub(super) mailbox: mpsc::UnboundedReceiver<Message<SourceEvent>>,
    /// Whether the machine was rebuilt after a restart.
    pub(super) recovered: bool,
    /// Set once nothing is left to be done.
    pub(super) over: Arc<AtomicBool>,
    /// Answered when the journal has answered for the first time: whether it holds the beginning.
    pub(super) begun: Option<oneshot::Sender<bool>>,
}

/// What comes back from the lanes.
enum Answer {
    Event(SourceEvent, Option<Note>),
    Written(SourceEvent, Option<Note>),
    /// Whether the journal holds the end.
    Ended(bool),
    Nothing(Option<Note>),
    Retry(SourceEffect, Option<Note>),
    Looked(Result<(RunState, StreamStatus), HypervisorError>),
    Figures(StreamFigures),
}

struct Runner {
    machine: Source,
    guest: Option<Arc<dyn Guest>>,
    tunnel: Option<Tunnels>,
    cable: Option<Cable>,
    custody: Arc<dyn Custody>,
    records: Arc<dyn RecordArbiter>,
    pen: Option<Pen<SourceEntry>>,
    journal_path: Option<PathBuf>,
    lane: Option<(mpsc::UnboundedSender<Work>, AbortOnDropHandle<()>)>,
    answers: mpsc::UnboundedSender<Answer>,
    events: Option<broadcast::Receiver<GuestEvent>>,
    publisher: Publisher,
    driver: DriverWatch,
    over: Arc<AtomicBool>,
    begun: Option<oneshot::Sender<bool>>,
    reading: Option<AbortOnDropHandle<()>>,
    patience: Patience,
    /// The stream that the hypervisor shows is this migration's.
    stream_known: bool,
    /// What the hypervisor was told last; not known after a restart.
    held_back: Option<bool>,
    end_told: bool,
    looking: bool,
    look_at: Instant,
    unsettled_since: Option<Instant>,
    retry: Option<(Instant, SourceEffect)>,
    backoff: Duration,
    writes: usize,
    closing: bool,
    close_at: Instant,
}

/// Runs a source's side to its end, and answers orders about it from then on. Ends when nobody can order any more.
pub(super) async fn run(start: SourceStart) {
    let (answers, answered) = mpsc::unbounded_channel();
    let now = Instant::now();
    let over = start.over.load(Ordering::Acquire);
    let events = start.guest.as_ref().map(|guest| guest.subscribe());
    let lane = start.guest.as_ref().filter(|_| !over).map(|guest| {
        let (sender, work) = mpsc::unbounded_channel();
        let hand = Hand {
            guest: guest.clone(),
            custody: start.custody.clone(),
            terms: start.machine.terms().clone(),
            stream: start.stream,
            tunnel: start.tunnel.clone(),
            cable: start.cable.clone(),
            wire: start.rim.wire.clone(),
            held_back: false,
            started: start.recovered && start.machine.report() == SourceReport::Streaming,
        };
        (
            sender,
            AbortOnDropHandle::new(tokio::spawn(hand.work(work, answers.clone()))),
        )
    });
    let journal_path = start.journal.as_ref().map(|journal| journal.path().to_path_buf());
    let desk = start.rim.desk.clone();
    let pen = start.journal.map(|journal| {
        let answers = answers.clone();
        Pen::new(&*desk, Runner::SIDE, journal, move |line, outcome| {
            if let (Line::Entry(entry), Ok(())) = (&line, &outcome) {
                fail_point::pass(Runner::SIDE, fail_point::JOURNALED, entry);
            }
            let answer = match (line, outcome) {
                (Line::Entry(entry), Ok(())) => Answer::Written(SourceEvent::Journaled(entry), None),
                (Line::Entry(_), Err(error)) => {
                    let reason = faults::journal_reason(&error);
                    Answer::Written(SourceEvent::JournalFailed, Some(Note::new(reason, error)))
                }
                (Line::Ended { .. }, outcome) => Answer::Ended(outcome.is_ok()),
            };
            // Nobody listens where the agent is about to end.
            let _ = answers.send(answer);
        })
    });
    let mut runner = Runner {
        machine: start.machine,
        guest: start.guest,
        tunnel: start.tunnel,
        cable: start.cable,
        custody: start.custody,
        records: start.records,
        pen,
        journal_path,
        lane,
        answers,
        events,
        publisher: start.publisher,
        driver: DriverWatch::new(now, start.recovered),
        over: start.over,
        begun: start.begun,
        reading: None,
        patience: Patience::default(),
        stream_known: start.recovered,
        held_back: (!start.recovered).then_some(false),
        end_told: false,
        looking: false,
        look_at: now,
        unsettled_since: None,
        retry: None,
        backoff: BACKOFF,
        writes: 0,
        closing: over,
        close_at: now,
    };
    if over {
        runner.let_go();
    }
    runner.hold_back();
    if let Err(refusal) = runner.follow(start.first) {
        tracing::error!(%refusal, "the machine refused its own beginning");
    }
    role::run(runner, answered, start.mailbox).await;
}
