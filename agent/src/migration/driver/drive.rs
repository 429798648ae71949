//! The driver of one migration: it hears both sides, and gives the orders that follow (peer to peer).
//!
//! One task owns it. What it hears comes in as events; orders, keepalives and writes go out as tasks of their own, so
//! that nothing waits for anything else. It holds nothing that matters but the order itself and that it has given up,
//! which are on disk: killed at any point, the next one hears both sides and goes on.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use godwit_handover::{
    Cause, Decision, DestinationReport, Driver, DriverEffect, DriverEvent, OrderKey, OrdersGiven, PathProof,
    RecordView, SideView, SourceReport, Stand, Terms, Wait,
};
use godwit_protocol::clock::ClockEstimate;
use godwit_protocol::{
    AgentClient, Category, Fault, GaveUp, KeepAlive, Order, OrderAnswer, OtherSide, Side, Told, Update,
};
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
/// Between two keepalives: the proof of the path must not grow old between them.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(1);
/// Between two readings of the record, which prove the way to the API server.
const READ_EVERY: Duration = Duration::from_secs(2);
/// The same where the destination has to write into it before this driver can go on.
const READ_EVERY_WAITING: Duration = Duration::from_millis(250);
/// What a restarted driver is to tell is written down so long after it has changed.
const KEEP_AFTER: Duration = Duration::from_millis(500);
/// The same while the guest stands still: it has waited far longer for something else then than for a disk.
const KEEP_AFTER_STANDING_STILL: Duration = Duration::from_secs(3);

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
        parts.tls.clone(),
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
            let told = self.unreachable("was not heard any more when the guest was about to be stopped");
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

    /// Gives up, for a reason of the driver's own. It is written down before it is acted on and told: a restarted
    /// driver must not begin what the controller has been told will never be begun.
    pub(super) fn give_up(&mut self, gave_up: GaveUp) {
        if self.giving_up || self.kept.view.gave_up.is_some() {
            return;
        }
        if !self.writes.is_empty() {
            self.give_up_again = Some((Instant::now(), gave_up));
            return;
        }
        self.giving_up = true;
        tracing::warn!(migration = self.terms().migration, cause = ?gave_up.cause, "giving up: {}", gave_up.told.message);
        let mut kept = self.kept.clone();
        kept.view.gave_up = Some(gave_up.clone());
        let put = self.put(kept);
        self.writes.spawn(async move { Done::GaveUp(gave_up, put.await) });
    }

    fn put(&self, kept: Kept) -> impl Future<Output = Result<(), StateError>> + Send + use<> {
        let (shelf, writer) = (self.shelf.clone(), self.shelf.clone());
        async move {
            let put = tokio::task::spawn_blocking(move || writer.put(&kept)).await;
            put.unwrap_or_else(|error| Err(shelf.failed("write", std::io::Error::other(error))))
        }
    }

    /// There is something to tell that a restarted driver would not know.
    pub(super) fn unkept(&mut self) {
        self.unkept_since.get_or_insert_with(Instant::now);
    }

    /// Writes it down, in its own time: the guest does not wait for it.
    fn keep(&mut self, now: Instant) {
        let after = if self.driver.blackout() {
            KEEP_AFTER_STANDING_STILL
        } else {
            KEEP_AFTER
        };
        let due = self.unkept_since.is_some_and(|since| now >= since + after);
        if due && self.writes.is_empty() {
            self.unkept_since = None;
            let put = self.put(self.kept.clone());
            self.writes.spawn(async move { Done::Kept(put.await) });
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

    /// Carries an effect out, unless that is being done already.
    fn give(&mut self, effect: DriverEffect) {
        let key = OrderKey::of(&effect);
        match effect {
            // The controller has armed it; what stands there is read again.
            DriverEffect::ArmRecord => {}
            // The destination alone may write that; it does, and here it is read.
            DriverEffect::DecideRecord(Decision::Reverted) => {}
            DriverEffect::AdvanceRecord => {
                let (records, terms) = (self.parts.records.clone(), self.terms().clone());
                self.write(key, async move { records.advance(&terms).await });
            }
            DriverEffect::DecideRecord(Decision::Aborted) if self.may_begin() => {}
            DriverEffect::DecideRecord(Decision::Aborted) => {
                let (records, terms) = (self.parts.records.clone(), self.terms().clone());
                self.write(key, async move { records.abort(&terms).await });
            }
            DriverEffect::DecideRecord(decision @ (Decision::None | Decision::Committed)) => {
                tracing::error!(?decision, "a driver does not write this decision");
            }
            DriverEffect::Begin => self.begin(),
            DriverEffect::Prepare => match self.definition.clone() {
                Some(definition) => {
                    let order = Order::Prepare {
                        guest: self.kept.order.guest.clone(),
                        definition,
                        stream: self.kept.order.stream,
                        ticket: self.kept.order.ticket.clone(),
                    };
                    self.order_destination(key, order);
                }
                // The source gives the definition again, as often as it is asked.
                None => self.begin(),
            },
            DriverEffect::Perform(channel) => self.order_source(key, Order::Perform(channel)),
            DriverEffect::Ready => self.order_source(key, Order::Ready),
            DriverEffect::Finish(go) => self.order_destination(key, Order::Finish(go)),
            DriverEffect::Confirm => self.order_source(key, Order::Confirm),
            DriverEffect::AbortSource(cause) => self.order_source(key, Order::AbortSource(cause)),
            DriverEffect::AbortDestination(cause) => {
                self.order_destination(key, Order::AbortDestination(cause))
            }
            DriverEffect::Settle => self.order_source(key, Order::Settle),
        }
    }

    /// Whether the source may yet begin, or has begun and not said so: that it knows nothing is no evidence then.
    fn may_begin(&self) -> bool {
        *self.driver.source() == SideView::NoSuchMigration
            && (self.given.in_flight(OrderKey::Begin) || self.definition.is_some())
    }

    /// Begins once the destination has been heard: one that cannot be reached costs nothing then.
    fn begin(&mut self) {
        if matches!(self.driver.destination(), SideView::Unheard) || self.giving_up {
            return;
        }
        let order = Order::Begin {
            max_downtime: self.kept.order.max_downtime,
            stream: self.kept.order.stream,
        };
        self.order_source(OrderKey::Begin, order);
    }

    fn order_source(&mut self, key: OrderKey, order: Order) {
        let now = self.now();
        if !self.given.give(key, now) {
            return;
        }
        let (migrations, terms) = (self.parts.migrations.clone(), self.terms().clone());
        self.done
            .spawn(async move { Done::Order(key, true, migrations.order(&terms, order).await) });
    }

    fn order_destination(&mut self, key: OrderKey, order: Order) {
        let now = self.now();
        let Some(client) = self.client.clone() else { return };
        if !self.given.give(key, now) {
            return;
        }
        let terms = self.terms().clone();
        self.done
            .spawn(async move { Done::Order(key, false, client.order(&terms, &order).await) });
    }

    fn write(
        &mut self,
        key: OrderKey,
        written: impl Future<Output = Result<RecordView, Unwritten>> + Send + 'static,
    ) {
        let now = self.now();
        if self.given.writing() || !self.given.give(key, now) {
            return;
        }
        self.done.spawn(async move { Done::Written(key, written.await) });
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

    /// A destination that was never given Prepare knows nothing of the migration, whether it can be heard or not:
    /// Prepare needs what only the source's journaled beginning gives.
    fn forget_the_unreached(&mut self) {
        let never_begun = *self.driver.source() == SideView::NoSuchMigration;
        if never_begun
            && *self.driver.destination() == SideView::Unheard
            && !self.given.ever(OrderKey::Begin)
            && !self.given.ever(OrderKey::Prepare)
        {
            self.kept.view.destination = Some(OtherSide::default());
            self.step(DriverEvent::Destination(None));
        }
    }

    fn record_read(&mut self, record: RecordView) {
        let now = self.now();
        self.record_missing = false;
        self.path.api_reached(now);
        self.step(DriverEvent::Record(record));
    }

    fn order_failed(&mut self, key: OrderKey, at_source: bool, fault: &Fault) {
        tracing::warn!(migration = self.terms().migration, ?key, at_source, %fault, "an order was not taken");
        // A refusal of what the reports have left behind means nothing.
        let still_wanted = self
            .driver
            .next()
            .iter()
            .any(|effect| OrderKey::of(effect) == key);
        let now = self.now();
        self.given.failed(key, now);
        if fault.category == Category::Unavailable {
            self.not_now = Some(fault.clone());
            return;
        }
        if key.before_memory() && still_wanted {
            let cause = if at_source {
                Cause::HypervisorRefused
            } else {
                Cause::DestinationFailed
            };
            let told = Told::new(fault.reason.clone(), fault.message.clone());
            self.give_up(GaveUp { cause, told });
        } else if ["JournalNewer", "JournalDamaged"].contains(&fault.reason.as_ref()) {
            self.kept.view.blocked = Some(Told::new(fault.reason.clone(), fault.message.clone()));
            self.show();
        }
    }

    fn give_again(&mut self) {
        for effect in self.driver.next() {
            self.give(effect);
        }
    }

    /// Looks at everything that time alone changes.
    fn look(&mut self) {
        let now = Instant::now();
        self.forget_gave_up_unreached();
        self.give_again();
        self.read(now);
        self.keep_alive(now);
        self.keep(now);
        self.tell_silence(now);
        if let Some((at, _)) = &self.give_up_again
            && now >= *at
            && let Some((_, gave_up)) = self.give_up_again.take()
        {
            self.give_up(gave_up);
        }
        if self.start_by.is_some_and(|by| now >= by) {
            self.start_by = None;
            let told = self.start_too_slow();
            self.give_up(GaveUp {
                cause: Cause::PathNotProven,
                told,
            });
        }
        let silent = self
            .silent_since
            .is_some_and(|since| now.duration_since(since) >= self.kept.order.silence);
        if silent && self.driver.before_switchover() {
            let seconds = self.kept.order.silence.as_secs();
            let told = self.unreachable(&format!("was silent for {seconds} s"));
            self.give_up(GaveUp {
                cause: Cause::PathNotProven,
                told,
            });
        }
    }

    /// A restarted driver that had given up hears of the source only after it was told so.
    fn forget_gave_up_unreached(&mut self) {
        if self.kept.view.gave_up.is_some() {
            self.forget_the_unreached();
        }
    }

    fn read(&mut self, now: Instant) {
        if self.reading || now < self.read_at {
            return;
        }
        let waiting = matches!(self.driver.stand(), Stand::Waiting { wait: Wait::Record });
        self.reading = true;
        self.read_at = now + if waiting { READ_EVERY_WAITING } else { READ_EVERY };
        let (records, guest) = (self.parts.records.clone(), self.terms().guest.clone());
        self.done
            .spawn(async move { Done::Read(records.read(&guest).await) });
    }

    /// Tells both sides that the driver lives.
    fn keep_alive(&mut self, now: Instant) {
        self.tell_source_of_the_path();
        if now < self.keep_alive_at {
            return;
        }
        self.keep_alive_at = now + KEEP_ALIVE_EVERY;
        self.proven = self.path.proven(self.now());
        self.tell_source();
        let known = matches!(self.driver.destination(), SideView::Reported(_));
        if let Some(client) = self.client.clone().filter(|_| known && !self.keeping_alive) {
            self.keeping_alive = true;
            let (terms, proven, silence) = (self.terms().clone(), self.proven, self.kept.order.silence);
            self.done
                .spawn(async move { Done::KeptAlive(client.keep_alive(&terms, proven, silence).await) });
        }
    }

    /// The source waits for the proof of the path before it stops the guest: it is told at once.
    fn tell_source_of_the_path(&mut self) {
        let proven = self.path.proven(self.now());
        if proven && !self.proven {
            self.proven = true;
            self.tell_source();
        }
    }

    fn tell_source(&self) {
        let silence = self.kept.order.silence;
        // A source that does not know the migration yet, or any more, needs no driver.
        let _ = self
            .parts
            .migrations
            .keep_alive(self.terms(), self.proven, silence);
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
        let (shelf, kept) = (self.shelf.clone(), self.kept.clone());
        match tokio::task::spawn_blocking(move || shelf.put(&kept)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the end was not written down; it is found again"),
            Err(error) => tracing::error!(%error, "the end was not written down"),
        }
        self.show();
    }
}
