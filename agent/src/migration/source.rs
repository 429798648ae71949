//! The source's role: one task that owns the machine, carries its effects out and brings their answers back.
//!
//! Commands to the hypervisor go through one lane, in order; the journal and the record have lanes of their own,
//! so that a silent hypervisor delays neither. Answers are taken before events: what a command's answer says was
//! so before anything that the hypervisor told later.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use godwit_handover::{
    Pass, RecordView, Refusal, Source, SourceEffect, SourceEntry, SourceEvent, SourceReport, Step, Wanted,
};
use godwit_protocol::{Side, StreamOptions};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::channel::{self, ChannelError};
use super::custody::{Custody, Records};
use super::driver_watch::{DriverWatch, Lapse};
use super::journal::{self, Journal, Line};
use super::native_several::Cable;
use super::observation;
use super::pen::Pen;
use super::updates::{Note, Publisher};
use crate::guest_network;
use crate::guests::GuestError;
use crate::hypervisor::{
    Guest, GuestEvent, GuestEventKind, HypervisorError, RunState, StreamFigures, StreamLimits, StreamState,
    StreamStatus,
};
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
/// How long the record is read for before the answer is that it cannot be read.
const RECORD_DEADLINE: Duration = Duration::from_secs(5);
/// How often it is tried before the driver is left to ask again.
const RECORD_TRIES: u32 = 4;
/// The first pause before something is tried again; it doubles up to [`LONGEST_BACKOFF`].
const BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);
/// How long the hypervisor may take to decide whether it lets the guest run after a failed stream.
const SETTLE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

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
    /// The process; `None` if it is gone.
    pub(super) guest: Option<Arc<dyn Guest>>,
    pub(super) custody: Arc<dyn Custody>,
    pub(super) records: Arc<dyn Records>,
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

enum Work {
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
    records: Arc<dyn Records>,
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
    let (answers, mut answered) = mpsc::unbounded_channel();
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
            held_back: false,
            started: start.recovered && start.machine.report() == SourceReport::Streaming,
        };
        (
            sender,
            AbortOnDropHandle::new(tokio::spawn(hand.work(work, answers.clone()))),
        )
    });
    let journal_path = start.journal.as_ref().map(|journal| journal.path().to_path_buf());
    let pen = start.journal.map(|journal| {
        let answers = answers.clone();
        Pen::new(journal, move |line, outcome| {
            let answer = match (line, outcome) {
                (Line::Entry(entry), Ok(())) => Answer::Written(SourceEvent::Journaled(entry), None),
                (Line::Entry(_), Err(error)) => {
                    Answer::Written(SourceEvent::JournalFailed, Some(Note::new("DiskFull", error)))
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
    for effect in start.first.effects {
        runner.carry_out(effect);
    }
    runner.publish();
    let mut mailbox = start.mailbox;
    loop {
        runner.close_if_over().await;
        let wake = runner.wake();
        tokio::select! {
            biased;
            Some(answer) = answered.recv() => runner.answered(answer),
            event = next_event(&mut runner.events) => runner.happened(event),
            message = mailbox.recv() => match message {
                Some(message) => runner.told(message),
                None => return,
            },
            () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => runner.woken(Instant::now()),
        }
    }
}

pub(super) async fn next_event(
    events: &mut Option<broadcast::Receiver<GuestEvent>>,
) -> Result<GuestEvent, broadcast::error::RecvError> {
    match events {
        Some(receiver) => receiver.recv().await,
        None => std::future::pending().await,
    }
}

impl Runner {
    fn step(&mut self, event: SourceEvent) -> Result<(), Refusal> {
        let (machine, out) = self.machine.step(event);
        self.machine = machine;
        self.hold_back();
        for effect in out.effects {
            self.carry_out(effect);
        }
        self.publish();
        match out.refusal {
            None => Ok(()),
            Some(refusal) => Err(refusal),
        }
    }

    /// Holds the stream back where the path is not proved, and lets it go again. Before what else a step wants: a stream
    /// that is to be started is held back from its start. Once the guest is stopped the limits are no more of this.
    fn hold_back(&mut self) {
        let held = self.machine.held_back();
        self.publisher.held_back(held);
        if self.machine.report() != SourceReport::Streaming || self.held_back == Some(held) {
            return;
        }
        let migration = &self.machine.terms().migration;
        if held {
            tracing::warn!(%migration, "there is no recent proof that both agents and the API server are reached: the stream is held back");
        } else if self.held_back == Some(true) {
            tracing::info!(%migration, "the path is proved again: the stream goes on");
        }
        if let Some((lane, _)) = &self.lane
            && lane.send(Work::HoldBack(held)).is_ok()
        {
            self.held_back = Some(held);
        }
    }

    /// A step for something that is no order: there is nobody to tell of a refusal, and none is possible.
    fn feel(&mut self, event: SourceEvent) {
        if let Err(refusal) = self.step(event) {
            tracing::error!(%refusal, "the machine refused what is no order");
        }
    }

    fn carry_out(&mut self, effect: SourceEffect) {
        match effect {
            SourceEffect::Journal(entry) => {
                if self.pen.as_ref().is_some_and(|pen| pen.write(Line::Entry(entry))) {
                    self.writes += 1;
                } else {
                    let _ = self.answers.send(Answer::Event(SourceEvent::JournalFailed, None));
                }
            }
            SourceEffect::ReadRecord => {
                let (records, answers) = (self.records.clone(), self.answers.clone());
                let guest = self.machine.terms().guest.clone();
                self.reading = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                    let record = read_record(&*records, &guest).await;
                    let _ = answers.send(Answer::Event(SourceEvent::RecordRead(record), None));
                })));
            }
            SourceEffect::StartStream(_)
            | SourceEffect::Pause
            | SourceEffect::LiftLimits
            | SourceEffect::SwitchOver
            | SourceEffect::CancelStream
            | SourceEffect::ReleaseDisks
            | SourceEffect::ReclaimDisks
            | SourceEffect::Restore(_)
            | SourceEffect::Destroy => {
                self.retry = None;
                self.order_hand(effect);
            }
        }
    }

    fn order_hand(&mut self, effect: SourceEffect) {
        let sent = match &self.lane {
            Some((lane, _)) => lane.send(Work::Effect(effect)).is_ok(),
            None => false,
        };
        if !sent {
            // The process is gone; that is the answer to whatever is asked of it.
            let _ = self.answers.send(Answer::Event(SourceEvent::Died, None));
        }
    }

    fn publish(&mut self) {
        let report = self.machine.report();
        let withheld = match report {
            // The guest is free for another migration, and nothing of it is left here, once this one has let go of
            // it, and not before.
            SourceReport::Released | SourceReport::Aborted(_) | SourceReport::Lost(_) => {
                !self.over.load(Ordering::Acquire)
            }
            SourceReport::Begun
            | SourceReport::Streaming
            | SourceReport::Stopped { .. }
            | SourceReport::Switching { .. }
            | SourceReport::InDoubt { .. }
            | SourceReport::GoSent(_)
            | SourceReport::Aborting(_)
            | SourceReport::Died => false,
        };
        if !withheld {
            self.publisher.side(Side::Source(report));
        }
    }

    fn answered(&mut self, answer: Answer) {
        match answer {
            Answer::Event(event, note) => {
                self.noted(note);
                if event == SourceEvent::StreamStarted {
                    self.stream_known = true;
                }
                self.feel(event);
            }
            Answer::Written(event, note) => {
                self.writes = self.writes.saturating_sub(1);
                self.noted(note);
                let holds = matches!(event, SourceEvent::Journaled(_));
                self.feel(event);
                if let Some(begun) = self.begun.take() {
                    let _ = begun.send(holds);
                }
            }
            Answer::Ended(written) => {
                if !written {
                    self.forget_broken_journal();
                }
                self.over.store(true, Ordering::Release);
                self.let_go();
                self.publish();
            }
            Answer::Nothing(note) => self.noted(note),
            Answer::Retry(effect, note) => {
                self.noted(note);
                self.retry = Some((Instant::now() + self.backoff, effect));
                self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
            }
            Answer::Looked(seen) => self.looked(seen),
            Answer::Figures(figures) => {
                tracing::debug!(?figures, "dirty pages were collected");
                self.publisher.figures(&figures, Instant::now());
                if self.stream_known && matches!(self.machine.report(), SourceReport::Streaming) {
                    self.feel(SourceEvent::Pass(Pass {
                        iteration: figures.iteration,
                        remaining_bytes: figures.remaining_bytes,
                        bytes_per_second: figures.bytes_per_second,
                    }));
                }
            }
        }
    }

    fn noted(&mut self, note: Option<Note>) {
        if let Some(note) = note {
            self.publisher.note(note);
        }
    }

    fn looked(&mut self, seen: Result<(RunState, StreamStatus), HypervisorError>) {
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

    fn happened(&mut self, event: Result<GuestEvent, broadcast::error::RecvError>) {
        let event = match event {
            Ok(event) => event,
            Err(broadcast::error::RecvError::Lagged(_)) => return self.look_soon(Duration::ZERO),
            Err(broadcast::error::RecvError::Closed) => {
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
                StreamState::BeforeSwitchover => self.feel(SourceEvent::BeforeSwitchover),
                StreamState::Completed => {
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

    fn told(&mut self, message: Message<SourceEvent>) {
        let now = Instant::now();
        match message {
            Message::Order(event, reply) => {
                self.driver.heard(now);
                let outcome = self.step(event);
                // Whoever ordered may have gone.
                let _ = reply.send(outcome);
            }
            Message::KeepAlive { path_proven, silence } => {
                self.driver.keep_alive(now, path_proven, silence);
                if !self.closing {
                    self.feel(SourceEvent::PathProven(path_proven));
                }
            }
            Message::Retune { bandwidth } => self.retune(bandwidth),
        }
    }

    /// Limits the stream anew, unless its limits are lifted or about to be: then it may not be slowed down again.
    fn retune(&mut self, bandwidth: u64) {
        match self.machine.report() {
            SourceReport::Begun | SourceReport::Streaming => {}
            SourceReport::Stopped { .. }
            | SourceReport::Switching { .. }
            | SourceReport::InDoubt { .. }
            | SourceReport::GoSent(_)
            | SourceReport::Released
            | SourceReport::Aborting(_)
            | SourceReport::Aborted(_)
            | SourceReport::Died
            | SourceReport::Lost(_) => return,
        }
        tracing::info!(migration = %self.machine.terms().migration, bandwidth, "the stream's limit is changed");
        if let Some((lane, _)) = &self.lane
            && lane.send(Work::Limit { bandwidth }).is_err()
        {
            tracing::error!("the lane to the hypervisor is gone");
        }
    }

    fn look_soon(&mut self, after: Duration) {
        self.look_at = self.look_at.min(Instant::now() + after);
    }

    /// How often it is looked where events tell the same: they may lag or be lost.
    fn look_interval(&self) -> Duration {
        match self.machine.report() {
            SourceReport::Stopped { .. } | SourceReport::Switching { .. } | SourceReport::InDoubt { .. } => {
                Duration::from_millis(50)
            }
            SourceReport::Begun | SourceReport::Streaming | SourceReport::Aborting(_) => {
                Duration::from_millis(500)
            }
            SourceReport::GoSent(_) => Duration::from_secs(1),
            SourceReport::Released
            | SourceReport::Aborted(_)
            | SourceReport::Died
            | SourceReport::Lost(_) => Duration::from_secs(10),
        }
    }

    fn wake(&self) -> Option<Instant> {
        if self.closing {
            return None;
        }
        let look = (self.lane.is_some() && !self.looking).then_some(self.look_at);
        let retry = self.retry.as_ref().map(|(at, _)| *at);
        let close = self
            .machine
            .is_final()
            .then_some(self.close_at)
            .filter(|at| *at > Instant::now());
        [look, retry, close, self.driver.next()]
            .into_iter()
            .flatten()
            .min()
    }

    fn woken(&mut self, now: Instant) {
        for lapse in self.driver.lapsed(now) {
            match lapse {
                Lapse::Path => self.feel(SourceEvent::PathProven(false)),
                Lapse::Driver => {
                    tracing::warn!(migration = %self.machine.terms().migration, "the driver is silent");
                    self.feel(SourceEvent::DriverSilent);
                }
            }
        }
        if let Some((_, effect)) = self.retry.take_if(|(at, _)| *at <= now) {
            self.order_hand(effect);
        }
        if !self.looking && now >= self.look_at {
            self.look_at = now + self.look_interval();
            if let Some((lane, _)) = &self.lane {
                self.looking = lane.send(Work::Look).is_ok();
            }
        }
    }

    /// Lets go of the guest once the machine's last entry is on disk, and notes that in the journal.
    async fn close_if_over(&mut self) {
        if self.closing || !self.machine.is_final() || self.writes > 0 || Instant::now() < self.close_at {
            return;
        }
        let report = self.machine.report();
        if report == SourceReport::Released {
            // The process is gone; what was kept about it goes too.
            match self.custody.release(self.machine.terms()).await {
                Ok(()) => {}
                Err(GuestError::Conflict(why)) => tracing::warn!(%why, "nothing to let go of"),
                Err(error) => {
                    tracing::warn!(%error, "letting go of a guest that has left; tried again");
                    self.close_at = Instant::now() + LONGEST_BACKOFF;
                    return;
                }
            }
        } else {
            self.custody.unprotect(self.machine.terms()).await;
        }
        self.closing = true;
        if let Some(tunnel) = self.tunnel.take() {
            let guest = self.guest.as_ref().map(|guest| guest.directory());
            tunnel.close(&self.machine.terms().migration, guest).await;
        }
        if let Some(cable) = self.cable.take() {
            cable
                .take_out(&self.machine.terms().migration, guest_network::Side::Source)
                .await;
        }
        tracing::info!(migration = %self.machine.terms().migration, ?report, "the source's side has ended");
        let line = Line::Ended {
            report: format!("{report:?}"),
        };
        if !self.pen.as_ref().is_some_and(|pen| pen.write(line)) {
            let _ = self.answers.send(Answer::Ended(false));
        }
    }

    /// The guest is here, free for another migration, and the journal could not be told: it would be taken for
    /// unended by the next agent, which could mistake the other migration's stream for this one's.
    fn forget_broken_journal(&self) {
        if let (SourceReport::Aborted(_) | SourceReport::Lost(_), Some(path)) =
            (self.machine.report(), &self.journal_path)
            && let Err(error) = journal::remove(path)
        {
            tracing::error!(%error, path = %path.display(), "a broken journal stays; remove it by hand");
        }
    }

    /// Nothing of the guest is kept any more.
    fn let_go(&mut self) {
        self.lane = None;
        self.events = None;
        self.guest = None;
        self.pen = None;
        self.retry = None;
        self.reading = None;
    }
}

/// A sleep of no time still waits for the timer's next tick.
pub(super) async fn sleep_if(time: Duration) {
    if !time.is_zero() {
        sleep(time).await;
    }
}

/// Reads the record, again where it cannot be read at once.
async fn read_record(records: &dyn Records, guest: &str) -> Option<RecordView> {
    let mut pause = BACKOFF;
    for tried in 1..=RECORD_TRIES {
        if let Ok(Some(record)) = timeout(RECORD_DEADLINE, records.read(guest)).await {
            return Some(record);
        }
        if tried < RECORD_TRIES {
            sleep(pause).await;
            pause = (pause * 4).min(LONGEST_BACKOFF);
        }
    }
    None
}

/// What carries commands to the hypervisor, one after the other.
struct Hand {
    guest: Arc<dyn Guest>,
    custody: Arc<dyn Custody>,
    terms: godwit_handover::Terms,
    stream: StreamOptions,
    tunnel: Option<Tunnels>,
    cable: Option<Cable>,
    held_back: bool,
    /// There is, or may be, a stream whose limits can be changed.
    started: bool,
}

impl Hand {
    async fn work(mut self, mut work: mpsc::UnboundedReceiver<Work>, answers: mpsc::UnboundedSender<Answer>) {
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
            SourceEffect::Journal(_) | SourceEffect::ReadRecord => Answer::Nothing(None),
        }
    }

    async fn start_stream(&mut self, channel: &godwit_handover::Channel) -> Answer {
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
            (None, None) => channel::connect(channel, migration, encrypted, CONNECT_DEADLINE).await,
        };
        let stream = match opened {
            Ok(stream) => stream,
            Err(error) => {
                return not(
                    godwit_handover::Cause::StreamFailed,
                    "StreamFailed",
                    error.to_string(),
                );
            }
        };
        match self.guest.send(stream, self.narrow()).await {
            Ok(()) => {
                self.started = true;
                Answer::Event(SourceEvent::StreamStarted, None)
            }
            Err(HypervisorError::Died) => Answer::Event(SourceEvent::Died, None),
            // It may have begun all the same; what follows is a cancel, which ends it if so.
            Err(error) => not(
                godwit_handover::Cause::HypervisorRefused,
                "StreamFailed",
                error.to_string(),
            ),
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
