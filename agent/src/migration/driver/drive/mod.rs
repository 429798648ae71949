//! The driver of one migration: it hears both sides, and gives the orders that follow (peer to peer).
//!
//! One task owns it. What it hears comes in as events; orders, keepalives and writes go out as tasks of their own, so
//! that nothing waits for anything else. It holds nothing that matters but the order itself and that it has given up,
//! which are on disk: killed at any point, the next one hears both sides and goes on.

mod keeping;
mod looks;
mod orders;

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use godwit_handover::{
    Cause, DestinationReport, Driver, DriverEvent, OrderKey, OrdersGiven, PathProof, RecordView, SideView,
    SourceReport, Stand, Terms,
};
use godwit_protocol::clock::ClockEstimate;
use godwit_protocol::{AgentClient, Fault, GaveUp, KeepAlive, OrderAnswer, OtherSide, Side, Told, Update};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use super::kept::{Kept, Shelf, Shown};
use super::peer::{self, Heard};
use super::{Parts, Unwritten};
use crate::clock::now_micros;
use crate::state::StateError;

/// From the start of the driver to the first byte of guest memory.
pub(super) const START_WITHIN: Duration = Duration::from_secs(30);
/// How often is looked whether something has to be given again.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Between two readings of the record, which prove the way to the API server.
const READ_EVERY: Duration = Duration::from_secs(2);

/// What is said to a driver.
pub(super) enum Word {
    /// The user asked to stop the migration.
    Cancel,
    /// The controller's newest ticket.
    Ticket(Vec<u8>),
}

/// What is to be driven.
pub(super) struct Assignment {
    pub(super) parts: Parts,
    pub(super) shelf: Shelf,
    pub(super) kept: Kept,
    /// Whether the order was found on disk.
    pub(super) recovered: bool,
    pub(super) words: mpsc::UnboundedReceiver<Word>,
    pub(super) told: watch::Sender<Option<Shown>>,
}

/// What became of an order, a keepalive or a write.
pub(super) enum Done {
    Order(OrderKey, bool, Result<OrderAnswer, Fault>),
    Written(OrderKey, Result<RecordView, Unwritten>),
    Read(Result<RecordView, Unwritten>),
    KeptAlive(Result<KeepAlive, Fault>),
    GaveUp(GaveUp, Result<(), StateError>),
    Kept(Result<(), StateError>),
}

pub(super) struct Drive {
    pub(super) parts: Parts,
    pub(super) shelf: Shelf,
    pub(super) kept: Kept,
    pub(super) driver: Driver,
    pub(super) began: Instant,
    pub(super) given: OrdersGiven,
    pub(super) path: PathProof,
    pub(super) proven: bool,
    pub(super) done: JoinSet<Done>,
    /// What is being written down: one thing at a time, each whole.
    pub(super) writes: JoinSet<Done>,
    /// Since when there is something to tell that is not on disk.
    pub(super) unkept_since: Option<Instant>,
    pub(super) definition: Option<Vec<u8>>,
    pub(super) record_missing: bool,
    pub(super) reading: bool,
    pub(super) read_at: Instant,
    pub(super) client: Option<AgentClient>,
    pub(super) silent_since: Option<Instant>,
    pub(super) silent_because: Option<Fault>,
    pub(super) clock: ClockEstimate,
    pub(super) destination: Update,
    pub(super) keep_alive_at: Instant,
    pub(super) keeping_alive: bool,
    pub(super) start_by: Option<Instant>,
    pub(super) not_now: Option<Fault>,
    /// A reason to give up that is being written down.
    pub(super) giving_up: bool,
    pub(super) give_up_again: Option<(Instant, GaveUp)>,
    pub(super) told: watch::Sender<Option<Shown>>,
}

/// Drives a migration to its end.
pub(super) async fn drive(assignment: Assignment) {
    let Assignment {
        parts,
        shelf,
        kept,
        recovered,
        mut words,
        told,
    } = assignment;
    let terms = kept.terms.clone();
    tracing::info!(
        migration = terms.migration,
        guest = terms.guest,
        destination = terms.destination,
        endpoint = kept.order.endpoint,
        epoch = terms.epoch,
        recovered,
        "driving"
    );
    let (sender, mut heard) = mpsc::channel(64);
    let _watching = AbortOnDropHandle::new(tokio::spawn(peer::watch(
        terms.clone(),
        kept.order.endpoint.clone(),
        parts.dial.clone(),
        sender,
    )));
    let mut source: Pin<Box<dyn Stream<Item = Update> + Send>> =
        Box::pin(parts.migrations.watch(&terms.migration));
    let now = Instant::now();
    let mut drive = Drive {
        driver: Driver::new(terms),
        parts,
        shelf,
        began: now,
        given: OrdersGiven::default(),
        path: PathProof::default(),
        proven: false,
        done: JoinSet::new(),
        writes: JoinSet::new(),
        unkept_since: None,
        definition: None,
        record_missing: false,
        reading: false,
        read_at: now,
        client: None,
        silent_since: Some(now),
        silent_because: None,
        clock: ClockEstimate::new(),
        destination: Update::default(),
        keep_alive_at: now,
        keeping_alive: false,
        start_by: Some(now + START_WITHIN),
        not_now: None,
        giving_up: false,
        give_up_again: None,
        told,
        kept,
    };
    if let Some(gave_up) = drive.kept.view.gave_up.clone() {
        drive.step(DriverEvent::OrderFailed(gave_up.cause));
    }
    drive.look();
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let outcome = loop {
        if let Stand::Ended(outcome) = drive.driver.stand()
            && !drive.may_begin()
            && !drive.may_prepare()
        {
            break outcome;
        }
        tokio::select! {
            biased;
            // What the guest waits for comes first.
            update = source.next() => match update {
                Some(update) => drive.source(&update),
                None => return,
            },
            Some(heard) = heard.recv() => drive.hear(heard),
            Some(done) = drive.done.join_next() => match done {
                Ok(done) => drive.answered(done),
                Err(error) => tracing::error!(%error, "a driver's task failed"),
            },
            Some(Ok(done)) = drive.writes.join_next() => drive.answered(done),
            Some(word) = words.recv() => drive.word(word),
            _ = ticks.tick() => drive.look(),
        }
    };
    tracing::info!(migration = drive.terms().migration, ?outcome, "ended");
    drive.end().await;
}

impl Drive {
    pub(super) fn terms(&self) -> &Terms {
        self.driver.terms()
    }

    /// The time since the driver began: what its tables count in.
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn source(&mut self, update: &Update) {
        match &update.side {
            Some(Side::Source(report)) => {
                let known = matches!(self.driver.source(), SideView::Reported(_));
                self.step(DriverEvent::Source(Some(*report)));
                self.explain(report);
                if !known {
                    self.proven = self.path.proven(self.now());
                    self.tell_source();
                }
            }
            None => self.step(DriverEvent::Source(None)),
            Some(Side::Destination(_)) => {
                tracing::error!(migration = self.terms().migration, "this host is the destination");
            }
        }
        if update.stopped_at_micros.is_some() && update.stopped_at_micros != self.kept.stopped_at_micros {
            self.kept.stopped_at_micros = update.stopped_at_micros;
            self.unkept();
            self.show();
        }
        if self.driver.has_streamed() {
            self.start_by = None;
        }
    }

    /// The source gives up by itself where the path is not proved; why it is not, is known here.
    fn explain(&mut self, report: &SourceReport) {
        let unproven = matches!(
            report,
            SourceReport::Aborting(Cause::PathNotProven) | SourceReport::Aborted(Cause::PathNotProven)
        );
        if unproven && self.client.is_none() && self.kept.view.gave_up.is_none() {
            let told = self.unreachable("was not heard any more when the guest was to be handed over");
            self.give_up(GaveUp {
                cause: Cause::PathNotProven,
                told,
            });
        }
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Connected(client) => {
                self.client = Some(*client);
                self.keep_alive_at = Instant::now();
            }
            Heard::Update(update) => {
                self.silent_since = None;
                self.silent_because = None;
                // Whoever speaks of it has read its journal.
                let blocked = &mut self.kept.view.blocked;
                if blocked.take_if(|told| orders::unread(&told.reason)).is_some() {
                    self.show();
                }
                self.path.destination_watched(true);
                match &update.side {
                    Some(Side::Destination(report)) => {
                        if !matches!(self.driver.destination(), SideView::Reported(_)) {
                            // The proof of the path begins as soon as there is anybody to ask.
                            self.keep_alive_at = Instant::now();
                        }
                        self.step(DriverEvent::Destination(Some(report.clone())));
                    }
                    None => self.step(DriverEvent::Destination(None)),
                    Some(Side::Source(_)) => {
                        tracing::error!(
                            migration = self.terms().migration,
                            "the destination reports a source"
                        );
                    }
                }
                self.destination = *update;
                self.show_destination();
            }
            Heard::Silent(fault) => self.silent(fault),
        }
        self.look();
    }

    fn word(&mut self, word: Word) {
        match word {
            Word::Cancel if self.kept.view.gave_up.is_none() && !self.driver.too_late() => {
                tracing::info!(migration = self.terms().migration, "cancel");
                self.give_up(GaveUp {
                    cause: Cause::Cancelled,
                    told: Told::default(),
                });
            }
            Word::Cancel => {}
            Word::Ticket(ticket) => self.kept.order.ticket = ticket,
        }
    }

    fn step(&mut self, event: DriverEvent) {
        let (driver, step) = self.driver.step(event);
        self.driver = driver;
        for effect in step.effects {
            self.give(effect);
        }
        let phase = self.driver.phase();
        if self.kept.view.phases.last().is_none_or(|(last, _)| *last < phase) {
            self.kept.view.phases.push((phase, now_micros()));
            self.unkept();
            self.show();
        }
    }

    fn answered(&mut self, done: Done) {
        let now = self.now();
        match done {
            Done::Order(key, _, Ok(answer)) => {
                self.given.taken(key, now);
                if let OrderAnswer::Begun { definition } = answer {
                    self.definition = Some(definition);
                    self.give_again();
                }
            }
            Done::Order(key, at_source, Err(fault)) => self.order_failed(key, at_source, &fault),
            Done::Written(key, Ok(record)) => {
                self.given.taken(key, now);
                self.record_read(record);
            }
            Done::Written(key, Err(error)) => {
                tracing::warn!(migration = self.terms().migration, ?key, %error, "the record was not written");
                self.given.failed(key, now);
                // What stands there is read again and settles it; or the API server comes back.
                self.read_at = Instant::now();
            }
            Done::Read(read) => {
                self.reading = false;
                match read {
                    // A reading that crossed a write of ours may be older than it.
                    Ok(_) if self.given.writing() => self.path.api_reached(now),
                    Ok(record) => self.record_read(record),
                    Err(Unwritten::Missing) => self.record_missing = true,
                    Err(error @ (Unwritten::Refused(_) | Unwritten::Unreachable(_))) => {
                        tracing::debug!(%error, "the record was not read");
                    }
                }
            }
            Done::KeptAlive(answer) => {
                self.keeping_alive = false;
                match answer {
                    Ok(answer) => {
                        self.path.destination_answered(now);
                        self.clock.add(answer.sample);
                        self.show_destination();
                    }
                    Err(fault) => tracing::debug!(%fault, "a keepalive was not answered"),
                }
            }
            Done::Kept(Ok(())) => {}
            Done::Kept(Err(error)) => {
                tracing::warn!(%error, "what the driver tells was not written down");
                self.unkept();
            }
            Done::GaveUp(gave_up, put) => {
                self.giving_up = false;
                match put {
                    Ok(()) => {
                        let cause = gave_up.cause;
                        self.kept.view.gave_up = Some(gave_up);
                        self.step(match cause {
                            Cause::Cancelled => DriverEvent::Cancel,
                            Cause::DestinationFailed
                            | Cause::DestinationDied
                            | Cause::SourceDied
                            | Cause::StreamFailed
                            | Cause::DriverSilent
                            | Cause::PathNotProven
                            | Cause::GuestStopped
                            | Cause::JournalFailed
                            | Cause::HypervisorRefused
                            | Cause::Reverted => DriverEvent::OrderFailed(cause),
                        });
                        // Only now: it would else be begun with.
                        self.forget_the_unreached();
                        self.show();
                    }
                    Err(error) => {
                        tracing::warn!(%error, "that the driver gives up was not written down");
                        self.give_up_again = Some((Instant::now() + READ_EVERY, gave_up));
                    }
                }
            }
        }
        self.tell_source_of_the_path();
    }

    fn record_read(&mut self, record: RecordView) {
        let now = self.now();
        self.record_missing = false;
        self.path.api_reached(now);
        self.step(DriverEvent::Record(record));
    }

    fn show_destination(&mut self) {
        let resumed_at_micros = self.destination.resumed_at_micros;
        let report = match &self.destination.side {
            Some(Side::Destination(DestinationReport::Prepared(_))) => Some(DestinationReport::Preparing),
            Some(Side::Destination(report)) => Some(report.clone()),
            Some(Side::Source(_)) | None => None,
        };
        let known = self.kept.view.destination.as_ref().and_then(|side| side.clock);
        let clock = resumed_at_micros.and_then(|_| self.clock.offset());
        if clock.is_some() && known.is_none() {
            self.unkept();
        }
        self.kept.view.destination = Some(OtherSide {
            report,
            resumed_at_micros,
            clock,
            failure: Told::of_update(&self.destination),
        });
        self.show();
    }

    pub(super) fn show(&self) {
        self.told.send_if_modified(|known| {
            let shown = Some(self.kept.shown());
            let news = *known != shown;
            if news {
                *known = shown;
            }
            news
        });
    }

    /// Writes the end down and tells it.
    async fn end(mut self) {
        self.done.abort_all();
        // What was begun earlier must not be written later.
        while self.writes.join_next().await.is_some() {}
        self.kept.view.blocked = None;
        self.kept.view.ended_at_micros = Some(now_micros());
        // It was used, or never will be.
        self.kept.order.ticket = Vec::new();
        if let Err(error) = self.put(self.kept.clone()).await {
            tracing::warn!(%error, "the end was not written down; it is found again");
        }
        self.show();
    }
}
