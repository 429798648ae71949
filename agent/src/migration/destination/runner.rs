//! The task: carries the machine's effects out, takes orders and answers, and hands the guest over, or away, at the end.

use std::future::Future;
use std::sync::atomic::Ordering;
use std::time::Duration;

use godwit_handover::{
    Decision, DestinationEffect, DestinationEntry, DestinationEvent, DestinationReport, RecordView, Step,
};
use godwit_protocol::{Category, Fault, Side};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::hand::Work;
use super::{Answer, Arrival, Runner};
use crate::clock::now_micros;
use crate::guest_network;
use crate::guests::{GuestError, Held};
use crate::hypervisor::{GuestEvent, GuestEventKind, HypervisorError, RunState, StreamState, StreamStatus};
use crate::migration::asking;
use crate::migration::driver_watch::{Bearing, Lapse};
use crate::migration::gateway::Gateway;
use crate::migration::journal::Line;
use crate::migration::observation;
use crate::migration::role::{self, LONGEST_BACKOFF, Message, Role};
use crate::migration::steps::{self, Moment};
use crate::migration::updates::Note;

/// How long nobody may open the channel before the process is given up.
const NOBODY: Duration = Duration::from_secs(30);
/// How long what follows a handover waits once the guest runs: its record, the source's end, the reports. They wake
/// five processes, and a guest that has just been let run has the caches and the translations of none of its code:
/// on two cores they cost it 5 to 15 ms of its silence, and nobody waits for them.
const GUEST_FIRST: Duration = Duration::from_millis(25);

impl Role for Runner {
    const SIDE: &'static str = "destination";

    type Event = DestinationEvent;
    type Effect = DestinationEffect;
    type Answer = Answer;

    fn advance(&mut self, event: DestinationEvent) -> Step<DestinationEffect> {
        let (machine, out) = self.machine.step(event);
        self.machine = machine;
        self.driver.bear(match self.machine.report() {
            DestinationReport::Loaded => Bearing::StandingStill,
            DestinationReport::Preparing
            | DestinationReport::Prepared(_)
            | DestinationReport::Receiving
            | DestinationReport::Blocked
            | DestinationReport::Deciding
            | DestinationReport::Starting
            | DestinationReport::Holding { .. }
            | DestinationReport::Reverting(_)
            | DestinationReport::Reverted(_)
            | DestinationReport::Lost(_) => Bearing::Patient,
        });
        out
    }

    fn carry_out(&mut self, effect: DestinationEffect) {
        match effect {
            DestinationEffect::Journal(entry) => {
                if matches!(entry, DestinationEntry::ContIssued(_)) {
                    self.tell_step(Moment::Journaling, None);
                }
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
            DestinationEffect::ReadRecord => {
                let (records, guest) = (self.records.clone(), self.machine.terms().guest.clone());
                self.ask(async move { asking::read(&*records, &guest).await });
            }
            DestinationEffect::DecideCommitted => {
                let (records, terms) = (self.records.clone(), self.machine.terms().clone());
                let after = self.patience.next();
                self.ask(async move { asking::decide(&*records, &terms, Decision::Committed, after).await });
            }
            DestinationEffect::MarkStarted => {
                let (records, terms) = (self.records.clone(), self.machine.terms().clone());
                let after = self.patience_to_start.next();
                self.ask(async move { asking::start(&*records, &terms, after).await });
            }
            DestinationEffect::Destroy => {
                self.shut_the_door();
                self.order(Work::Destroy);
            }
        }
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
            | DestinationReport::Deciding
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
                if matches!(
                    event,
                    DestinationEvent::Journaled(DestinationEntry::ContIssued(_))
                ) {
                    self.tell_step(Moment::Journaled, None);
                }
                self.feel(event);
                if failed && let Some(arrival) = self.arrival.take() {
                    // There is room for it from the beginning.
                    let words =
                        "The agent could not write its journal; look at the disk of its state directory";
                    let fault = Fault::new(Category::Unavailable, "DiskFailed", words);
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

    fn happened(&mut self, event: Result<GuestEvent, RecvError>) {
        let event = match event {
            Ok(event) => event,
            Err(RecvError::Lagged(_)) => {
                self.look_at = Instant::now();
                return;
            }
            Err(RecvError::Closed) => {
                self.events = None;
                self.look_at = Instant::now();
                return;
            }
        };
        match event.kind {
            GuestEventKind::Stream(StreamState::Completed) => {
                self.tell_step(Moment::Loaded, Some(event.at_micros));
                self.feel(DestinationEvent::Loaded);
            }
            // The hypervisor's words about it are worth a look; the look tells the failure too.
            GuestEventKind::Stream(StreamState::Failed | StreamState::Cancelled) => {
                self.look_at = Instant::now()
            }
            GuestEventKind::Resumed => {
                self.tell_step(Moment::Resumed, Some(event.at_micros));
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

    fn events(&mut self) -> &mut Option<broadcast::Receiver<GuestEvent>> {
        &mut self.events
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
            | DestinationReport::Deciding
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
        let migration = &self.machine.terms().migration;
        let way = (self.tunnel.take(), self.cable.take());
        let guest = self.guest.as_ref().map(|guest| guest.directory());
        role::take_down(migration, way, guest, guest_network::Side::Destination).await;
        tracing::info!(%migration, ?report, "the destination's side has ended");
        let line = Line::Ended {
            report: format!("{report:?}"),
        };
        if !self.pen.as_ref().is_some_and(|pen| pen.write(line)) {
            let _ = self.answers.send(Answer::Ended);
        }
    }
}

impl Runner {
    fn tell_step(&self, moment: Moment, at_micros: Option<i64>) {
        steps::tell(&self.machine.terms().migration, moment, at_micros);
    }

    /// Asks the record, beside all else.
    fn ask(&mut self, question: impl Future<Output = Option<RecordView>> + Send + 'static) {
        let answers = self.answers.clone();
        self.asking = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let record = question.await;
            let _ = answers.send(Answer::Event(DestinationEvent::RecordRead(record), None));
        })));
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

    fn died(&mut self) {
        if !matches!(self.machine.report(), DestinationReport::Reverting(_)) {
            let words = "The guest's process at the destination is gone";
            self.publisher.note(Note::new("DestinationHypervisorDied", words));
        }
        self.feel(DestinationEvent::Died);
    }

    /// How often it is looked where events tell the same: they may lag or be lost.
    fn look_interval(&self) -> Option<Duration> {
        if self.guest.is_none() || self.closing {
            return None;
        }
        match self.machine.report() {
            DestinationReport::Prepared(_) | DestinationReport::Receiving => Some(Duration::from_millis(250)),
            DestinationReport::Loaded | DestinationReport::Blocked | DestinationReport::Deciding => {
                Some(Duration::from_secs(1))
            }
            // The lane waits for the answer to `resume` and looks itself.
            DestinationReport::Starting
            | DestinationReport::Preparing
            | DestinationReport::Holding { .. }
            | DestinationReport::Reverting(_)
            | DestinationReport::Reverted(_)
            | DestinationReport::Lost(_) => None,
        }
    }

    /// Nothing of the guest is kept any more.
    fn let_go(&mut self) {
        self.lane = None;
        self.asking = None;
        self.guest = None;
        self.events = None;
        self.pen = None;
        self.arrival = None;
        self.destroy_at = None;
    }
}

/// A fault's reason as the static word that it was made from.
fn known_reason(reason: &str) -> &'static str {
    const WORDS: [&str; 18] = [
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
        "DiskFailed",
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
