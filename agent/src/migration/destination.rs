//! The destination's role: one task that owns the machine, carries its effects out and brings their answers back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use godwit_handover::{
    Destination, DestinationEffect, DestinationEntry, DestinationEvent, DestinationReport, Refusal, Step,
    Terms,
};
use godwit_protocol::{Fault, Side};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::channel::ChannelError;
use super::custody::Custody;
use super::driver_watch::{DriverWatch, Lapse};
use super::faults;
use super::gateway::Gateway;
use super::journal::{Journal, Line};
use super::native_several::Cable;
use super::observation;
use super::pen::Pen;
use super::source::{Message, next_event, sleep_if};
use super::updates::{Note, Publisher};
use crate::clock::now_micros;
use crate::guest_network;
use crate::guests::{Definition, GuestError, GuestIdentity, Held};
use crate::hypervisor::{
    Guest, GuestEvent, GuestEventKind, HypervisorError, RunState, Stream, StreamState, StreamStatus,
};
use crate::tunnel::Tunnels;

/// How long nobody may open the channel before the process is given up.
const NOBODY: Duration = Duration::from_secs(30);
/// The first pause before something is tried again; it doubles up to [`LONGEST_BACKOFF`].
const BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);

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
    /// The process of a recovered one.
    pub(super) guest: Option<Arc<dyn Guest>>,
    pub(super) custody: Arc<dyn Custody>,
    /// `None` if the migration had ended before.
    pub(super) journal: Option<Journal>,
    pub(super) publisher: Publisher,
    pub(super) mailbox: mpsc::UnboundedReceiver<Message<DestinationEvent>>,
    /// Whether the machine was rebuilt after a restart.
    pub(super) recovered: bool,
    /// Set once nothing is left to be done.
    pub(super) over: Arc<AtomicBool>,
}

enum Work {
    Launch(Box<(GuestIdentity, Definition, Gateway)>),
    Receive(Stream),
    Resume,
    Destroy,
    Look,
}

enum Answer {
    Event(DestinationEvent, Option<Note>),
    Written(DestinationEvent, Option<Note>),
    Ended,
    Launched(Box<Result<(Held, Gateway), Fault>>),
    Admitted(Result<Option<Stream>, ChannelError>),
    NotDestroyed(Note),
    Looked(Result<(RunState, StreamStatus), HypervisorError>),
}

/// How long what follows a handover waits once the guest runs: its record, the source's end, the reports. They wake
/// five processes, and a guest that has just been let run has the caches and the translations of none of its code:
/// on two cores they cost it 5 to 15 ms of its silence, and nobody waits for them.
const GUEST_FIRST: Duration = Duration::from_millis(25);

struct Runner {
    machine: Destination,
    arrival: Option<Arrival>,
    tunnel: Option<Tunnels>,
    cable: Option<Cable>,
    custody: Arc<dyn Custody>,
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
    let (answers, mut answered) = mpsc::unbounded_channel();
    let now = Instant::now();
    let over = start.over.load(Ordering::Acquire);
    let pen = start.journal.map(|journal| {
        let answers = answers.clone();
        Pen::new(journal, move |line, outcome| {
            let answer = match (line, outcome) {
                (Line::Entry(entry), Ok(())) => Answer::Written(DestinationEvent::Journaled(entry), None),
                (Line::Entry(_), Err(error)) => Answer::Written(
                    DestinationEvent::JournalFailed,
                    Some(Note::new("DiskFull", error)),
                ),
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

impl Runner {
    fn step(&mut self, event: DestinationEvent) -> Result<(), Refusal> {
        let (machine, out) = self.machine.step(event);
        self.machine = machine;
        for effect in out.effects {
            self.carry_out(effect);
        }
        self.publish();
        match out.refusal {
            None => Ok(()),
            Some(refusal) => Err(refusal),
        }
    }

    /// A step for something that is no order: there is nobody to tell of a refusal, and none is possible.
    fn feel(&mut self, event: DestinationEvent) {
        if let Err(refusal) = self.step(event) {
            tracing::error!(%refusal, "the machine refused what is no order");
        }
    }

    fn carry_out(&mut self, effect: DestinationEffect) {
        match effect {
            DestinationEffect::Journal(entry) => {
                if self.pen.as_ref().is_some_and(|pen| pen.write(Line::Entry(entry))) {
                    self.writes += 1;
                } else {
                    let _ = self
                        .answers
                        .send(Answer::Event(DestinationEvent::JournalFailed, None));
                }
            }
            DestinationEffect::Launch => match self.arrival.take() {
                Some(arrival) => {
                    let Arrival {
                        identity,
                        definition,
                        gateway,
                        launched,
                    } = arrival;
                    self.launched = Some(launched);
                    self.order(Work::Launch(Box::new((identity, definition, gateway))));
                }
                // Only a new migration launches.
                None => {
                    let _ = self
                        .answers
                        .send(Answer::Event(DestinationEvent::LaunchFailed, None));
                }
            },
            DestinationEffect::Resume => self.order(Work::Resume),
            DestinationEffect::Destroy => {
                self.shut_the_door();
                self.order(Work::Destroy);
            }
        }
    }

    fn order(&mut self, work: Work) {
        if let Some((lane, _)) = &self.lane
            && lane.send(work).is_err()
        {
            tracing::error!("the lane to the hypervisor is gone");
        }
    }

    /// Waits behind the door.
    fn open(&mut self, gateway: Gateway) {
        self.nobody_at = Some(Instant::now() + NOBODY);
        let answers = self.answers.clone();
        self.waiting = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let _ = answers.send(Answer::Admitted(gateway.admit().await));
        })));
    }

    fn shut_the_door(&mut self) {
        self.waiting = None;
        self.nobody_at = None;
    }

    fn publish(&mut self) {
        let report = self.machine.report();
        let withheld = match &report {
            // The name and the memory are free for another migration once this one has let go of them.
            DestinationReport::Reverted(_) | DestinationReport::Lost(_) => !self.over.load(Ordering::Acquire),
            DestinationReport::Preparing
            | DestinationReport::Prepared(_)
            | DestinationReport::Receiving
            | DestinationReport::Loaded
            | DestinationReport::Blocked
            | DestinationReport::Starting
            | DestinationReport::Holding { .. }
            | DestinationReport::Reverting(_) => false,
        };
        if !withheld {
            self.publisher.side(Side::Destination(report));
        }
    }

    fn answered(&mut self, answer: Answer) {
        match answer {
            Answer::Event(event, note) => {
                self.noted(note);
                if event == DestinationEvent::Resumed {
                    // The hypervisor told when, before it answered.
                    self.catch_up();
                    self.runs_again();
                } else {
                    self.feel(event);
                }
            }
            Answer::Written(event, note) => {
                self.writes = self.writes.saturating_sub(1);
                self.noted(note);
                let failed = event == DestinationEvent::JournalFailed;
                self.feel(event);
                if failed && let Some(arrival) = self.arrival.take() {
                    let words = "The agent could not write its journal; free space in its state directory";
                    let fault = Fault::new(godwit_protocol::Category::Unavailable, "DiskFull", words);
                    let _ = arrival.launched.send(Err(fault));
                }
            }
            Answer::Ended => {
                self.over.store(true, Ordering::Release);
                self.let_go();
                self.publish();
            }
            Answer::Launched(outcome) => self.after_launch(*outcome),
            Answer::Admitted(Ok(stream)) => {
                self.shut_the_door();
                if matches!(self.machine.report(), DestinationReport::Prepared(_)) {
                    match stream {
                        Some(stream) => self.order(Work::Receive(stream)),
                        None => self.feel(DestinationEvent::Connected),
                    }
                }
            }
            Answer::Admitted(Err(error)) => {
                self.shut_the_door();
                self.publisher.note(Note::new("StreamFailed", error));
                self.feel(DestinationEvent::StreamFailed);
            }
            Answer::NotDestroyed(note) => {
                self.publisher.note(note);
                self.destroy_at = Some(Instant::now() + self.backoff);
                self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
            }
            Answer::Looked(seen) => self.looked(seen),
        }
    }

    /// The guest runs here. What follows from that is begun a moment later.
    fn runs_again(&mut self) {
        if self.machine.report() == DestinationReport::Starting {
            self.told_at.get_or_insert(Instant::now() + GUEST_FIRST);
        } else {
            self.feel(DestinationEvent::Resumed);
        }
    }

    fn after_launch(&mut self, outcome: Result<(Held, Gateway), Fault>) {
        let answer = match outcome {
            Ok((held, gateway)) => {
                self.events = Some(held.guest.subscribe());
                self.guest = Some(held.guest);
                self.feel(DestinationEvent::Launched(gateway.channel().clone()));
                // Unless it was given up meanwhile.
                if matches!(self.machine.report(), DestinationReport::Prepared(_)) {
                    self.open(gateway);
                }
                Ok(())
            }
            Err(fault) => {
                self.publisher.note(Note {
                    reason: known_reason(&fault.reason),
                    detail: Note::new("", &fault.message).detail,
                });
                self.feel(DestinationEvent::LaunchFailed);
                Err(fault)
            }
        };
        if let Some(launched) = self.launched.take() {
            let _ = launched.send(answer);
        }
    }

    fn noted(&mut self, note: Option<Note>) {
        if let Some(note) = note {
            self.publisher.note(note);
        }
    }

    /// Takes the events that have come already.
    fn catch_up(&mut self) {
        while let Some(Ok(event)) = self.events.as_mut().map(broadcast::Receiver::try_recv) {
            self.happened(Ok(event));
        }
    }

    fn looked(&mut self, seen: Result<(RunState, StreamStatus), HypervisorError>) {
        self.looking = false;
        match seen {
            Ok((run, status)) => {
                if let Some(error) = &status.error {
                    self.publisher.note(Note::new("StreamFailed", error));
                }
                for event in observation::at_destination(&self.machine.report(), run, &status) {
                    self.feel(event);
                }
            }
            Err(HypervisorError::Died) => self.feel(DestinationEvent::Died),
            // Not a proof of anything; it is looked again.
            Err(error) => tracing::debug!(%error, "a look at the destination was not answered"),
        }
    }

    fn happened(&mut self, event: Result<GuestEvent, broadcast::error::RecvError>) {
        let event = match event {
            Ok(event) => event,
            Err(broadcast::error::RecvError::Lagged(_)) => {
                self.look_at = Instant::now();
                return;
            }
            Err(broadcast::error::RecvError::Closed) => {
                self.events = None;
                self.look_at = Instant::now();
                return;
            }
        };
        match event.kind {
            GuestEventKind::Stream(StreamState::Completed) => self.feel(DestinationEvent::Loaded),
            // The hypervisor's words about it are worth a look; the look tells the failure too.
            GuestEventKind::Stream(StreamState::Failed | StreamState::Cancelled) => {
                self.look_at = Instant::now()
            }
            GuestEventKind::Resumed => {
                self.publisher.resumed_at(event.at_micros);
                self.runs_again();
            }
            GuestEventKind::Died => self.died(),
            GuestEventKind::Stream(
                StreamState::None
                | StreamState::Setup
                | StreamState::Active
                | StreamState::BeforeSwitchover
                | StreamState::SwitchingOver
                | StreamState::Cancelling,
            )
            | GuestEventKind::Stopped
            | GuestEventKind::ShutDown
            | GuestEventKind::Reset
            | GuestEventKind::Panicked
            | GuestEventKind::IoError { .. }
            | GuestEventKind::DirtyPagesCollected { .. } => {}
        }
    }

    fn died(&mut self) {
        if !matches!(self.machine.report(), DestinationReport::Reverting(_)) {
            let words = "The guest's process at the destination is gone";
            self.publisher.note(Note::new("DestinationHypervisorDied", words));
        }
        self.feel(DestinationEvent::Died);
    }

    fn told(&mut self, message: Message<DestinationEvent>) {
        let now = Instant::now();
        match message {
            Message::Order(event, reply) => {
                self.driver.heard(now);
                // Once it is written down that a dead process was let run, nobody can say any more that it was not.
                if matches!(event, DestinationEvent::Finish(_))
                    && self.guest.as_ref().is_some_and(|guest| guest.has_ended())
                {
                    self.died();
                }
                let outcome = self.step(event);
                // Whoever ordered may have gone.
                let _ = reply.send(outcome);
            }
            // The path's proof is the source's to judge.
            Message::KeepAlive {
                path_proven: _,
                silence,
            } => self.driver.keep_alive(now, false, silence),
            // Only a source is given that order.
            Message::Retune { .. } => {}
        }
    }

    /// How often it is looked where events tell the same: they may lag or be lost.
    fn look_interval(&self) -> Option<Duration> {
        if self.guest.is_none() || self.closing {
            return None;
        }
        match self.machine.report() {
            DestinationReport::Prepared(_) | DestinationReport::Receiving => Some(Duration::from_millis(250)),
            DestinationReport::Loaded | DestinationReport::Blocked => Some(Duration::from_secs(1)),
            // The lane waits for the answer to `resume` and looks itself.
            DestinationReport::Starting
            | DestinationReport::Preparing
            | DestinationReport::Holding { .. }
            | DestinationReport::Reverting(_)
            | DestinationReport::Reverted(_)
            | DestinationReport::Lost(_) => None,
        }
    }

    fn wake(&self) -> Option<Instant> {
        if self.closing {
            return None;
        }
        let look = self
            .look_interval()
            .filter(|_| !self.looking)
            .map(|_| self.look_at);
        let close = self
            .machine
            .is_final()
            .then_some(self.close_at)
            .filter(|at| *at > Instant::now());
        let own = [self.nobody_at, self.told_at, self.destroy_at, self.driver.next()];
        own.into_iter().chain([look, close]).flatten().min()
    }

    fn woken(&mut self, now: Instant) {
        for lapse in self.driver.lapsed(now) {
            match lapse {
                Lapse::Path => {}
                Lapse::Driver => self.feel(DestinationEvent::DriverSilent),
            }
        }
        if self.nobody_at.take_if(|at| *at <= now).is_some() {
            self.publisher.note(Note::new(
                "StreamFailed",
                "The source did not open the channel in time",
            ));
            self.feel(DestinationEvent::NobodyConnected);
        }
        if self.told_at.take_if(|at| *at <= now).is_some() {
            self.feel(DestinationEvent::Resumed);
        }
        if self.destroy_at.take_if(|at| *at <= now).is_some() {
            self.order(Work::Destroy);
        }
        if let Some(interval) = self.look_interval()
            && !self.looking
            && now >= self.look_at
        {
            self.look_at = now + interval;
            self.looking = true;
            self.order(Work::Look);
        }
    }

    /// Hands the guest over to this host, or what is left of it away, once the machine's last entry is on disk;
    /// and notes that in the journal.
    async fn close_if_over(&mut self) {
        if self.closing || !self.machine.is_final() || self.writes > 0 || Instant::now() < self.close_at {
            return;
        }
        let report = self.machine.report();
        let terms = self.machine.terms();
        let outcome = match report {
            DestinationReport::Holding { running } => {
                let since = running.then(|| self.publisher.resumed().unwrap_or_else(now_micros));
                self.custody.take_over(terms, since).await
            }
            DestinationReport::Reverted(_)
            | DestinationReport::Lost(_)
            | DestinationReport::Preparing
            | DestinationReport::Prepared(_)
            | DestinationReport::Receiving
            | DestinationReport::Loaded
            | DestinationReport::Blocked
            | DestinationReport::Starting
            | DestinationReport::Reverting(_) => self.custody.discard_incoming(terms).await,
        };
        match outcome {
            Ok(()) => {}
            Err(GuestError::Conflict(why) | GuestError::NameTaken(why)) => {
                tracing::warn!(%why, ?report, "the guest is none of this migration's business any more");
            }
            Err(error) => {
                tracing::warn!(%error, ?report, "the end of a migration is tried again");
                self.close_at = Instant::now() + LONGEST_BACKOFF;
                return;
            }
        }
        self.closing = true;
        self.shut_the_door();
        if let Some(tunnel) = self.tunnel.take() {
            let guest = self.guest.as_ref().map(|guest| guest.directory());
            tunnel.close(&self.machine.terms().migration, guest).await;
        }
        if let Some(cable) = self.cable.take() {
            cable
                .take_out(&self.machine.terms().migration, guest_network::Side::Destination)
                .await;
        }
        tracing::info!(migration = %self.machine.terms().migration, ?report, "the destination's side has ended");
        let line = Line::Ended {
            report: format!("{report:?}"),
        };
        if !self.pen.as_ref().is_some_and(|pen| pen.write(line)) {
            let _ = self.answers.send(Answer::Ended);
        }
    }

    /// Nothing of the guest is kept any more.
    fn let_go(&mut self) {
        self.lane = None;
        self.guest = None;
        self.events = None;
        self.pen = None;
        self.arrival = None;
        self.destroy_at = None;
    }
}

/// A fault's reason as the static word that it was made from.
fn known_reason(reason: &str) -> &'static str {
    const WORDS: [&str; 17] = [
        "NameTaken",
        "DefinitionRefused",
        "FileMissing",
        "StorageNotShared",
        "InsufficientMemory",
        "MachineTypeMissing",
        "CpuModelMissing",
        "HypervisorUnavailable",
        "HypervisorUnresponsive",
        "ProcessGone",
        "StaleEpoch",
        "RecordConflict",
        "DiskFull",
        "JournalDamaged",
        "StreamFailed",
        "StreamNotServed",
        "PortsExhausted",
    ];
    WORDS
        .into_iter()
        .find(|word| *word == reason)
        .unwrap_or("InternalError")
}

/// What carries commands to the hypervisor, one after the other.
struct Hand {
    guest: Option<Arc<dyn Guest>>,
    custody: Arc<dyn Custody>,
    terms: Terms,
}

impl Hand {
    async fn work(mut self, mut work: mpsc::UnboundedReceiver<Work>, answers: mpsc::UnboundedSender<Answer>) {
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
        let mut pause = BACKOFF;
        loop {
            let (refused, error) = match guest.resume().await {
                Ok(()) => return Answer::Event(DestinationEvent::Resumed, None),
                Err(HypervisorError::Died) => return Answer::Event(DestinationEvent::Died, None),
                Err(error) => (matches!(error, HypervisorError::Command { .. }), error),
            };
            match guest.run_state().await {
                Ok(RunState::Running) => return Answer::Event(DestinationEvent::Resumed, None),
                // It came in an end of its own, and is taken over in it: nobody lets it run.
                Ok(state) if refused && observation::ended(state) => {
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
