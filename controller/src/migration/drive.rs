//! The driver of one migration: it hears both sides, and gives the orders that follow (managed direct). Peer to peer
//! it gives one order, to drive, and then watches: the same driver knows from the same reports how far the migration
//! is and how it ended, while another one, in the source's agent, gives the orders ([`super::watching`]).
//!
//! One task owns the driver. What it hears comes in as events, orders and writes of the record go out as tasks of
//! their own, so that nothing waits for anything else: while the guest is stopped, Ready and Go are passed on the
//! moment they are heard. The driver holds nothing that matters: killed at any point, the next one asks both sides
//! and goes on.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use godwit_crds::migration::ControlFlow;
use godwit_crds::{Decision, GuestRecord, VirtualMachineMigration};
use godwit_handover::{
    self as handover, Cause, Driver, DriverEffect, DriverEvent, OrderKey as Key, OrdersGiven, Outcome,
    SideView, SourceReport, Stand, Terms,
};
use godwit_protocol::clock::ClockEstimate;
use godwit_protocol::{
    Category, Fault, GuestName, Order, OrderAnswer, Side, StreamOptions, Update, definition,
};
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::book::{Book, Failed};
use super::doubts::needs_a_person;
use super::downtime::{Instants, downtime};
use super::drivers::{Control, Seat};
use super::failure::{self, Clues};
use super::publish::{Draft, publish};
use super::sides::{self, Heard, Proof, Role};
use super::watching::Watching;
use crate::agents::Connection;
use crate::cluster::Cluster;
use crate::reason::MigrationReason as Reason;
use crate::record::{self, RecordError};

/// From the start of the driver to the first byte of guest memory.
pub(super) const START_WITHIN: Duration = Duration::from_secs(30);
/// How often is looked whether something has to be given again.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What is to be driven.
pub struct Assignment {
    /// The object.
    pub migration: Arc<VirtualMachineMigration>,
    /// The terms.
    pub terms: Terms,
    /// Whom the destination prepares for.
    pub guest: GuestName,
    /// The record as it was just read.
    pub record: Option<GuestRecord>,
    /// Who drives.
    pub flow: ControlFlow,
    /// How long the guest may be stopped.
    pub budget: Duration,
    /// How memory is to travel.
    pub stream: StreamOptions,
    /// The status so far, accepted.
    pub book: Book,
}

/// What became of an order or a write.
pub(super) enum Done {
    Order(Key, Role, Result<OrderAnswer, Fault>),
    Record(Key, Box<Result<GuestRecord, RecordError>>),
}

/// What is known of a side besides its report.
#[derive(Default)]
pub(super) struct SideState {
    pub(super) connection: Option<Connection>,
    /// Set while the side may be sent keepalives.
    alive: watch::Sender<Option<Connection>>,
    pub(super) silent_since: Option<Instant>,
    pub(super) silent_because: Option<Fault>,
    pub(super) clock: ClockEstimate,
    pub(super) last: Update,
}

pub(super) struct Drive {
    pub(super) cluster: Arc<Cluster>,
    pub(super) terms: Terms,
    pub(super) guest: GuestName,
    pub(super) budget: Duration,
    pub(super) stream: StreamOptions,
    /// The limit that the source knows, as far as this driver can tell.
    pub(super) limit: Option<u64>,
    pub(super) told_limit: Option<u64>,
    /// Peer to peer: what is known of the driver in the source's agent. `None`: this driver gives the orders.
    pub(super) watching: Option<Watching>,
    pub(super) began: Instant,
    pub(super) driver: Driver,
    pub(super) record: Option<GuestRecord>,
    pub(super) record_missing: bool,
    pub(super) definition: Option<Vec<u8>>,
    /// The source was told to begin, and has not said that it will not: that it knows nothing is no evidence then.
    pub(super) told_to_begin: bool,
    pub(super) source: SideState,
    pub(super) destination: SideState,
    pub(super) sealed: bool,
    pub(super) given: OrdersGiven,
    pub(super) done: JoinSet<Done>,
    pub(super) proof: Arc<Proof>,
    pub(super) clues: Clues,
    pub(super) cancel: bool,
    pub(super) start_by: Option<Instant>,
    pub(super) doubt_since: Option<Instant>,
    pub(super) blocked: Option<Failed>,
    pub(super) not_now: Option<Fault>,
    pub(super) book: Book,
    pub(super) drafts: watch::Sender<Draft>,
}

/// Drives a migration to its end. Returns early only at the shutdown, and then not while the guest is stopped.
pub async fn drive(
    cluster: Arc<Cluster>,
    assignment: Assignment,
    mut control: watch::Receiver<Control>,
    seat: Seat,
) {
    let Assignment {
        migration,
        terms,
        guest,
        record,
        flow,
        budget,
        stream,
        book,
    } = assignment;
    tracing::info!(
        migration = terms.migration,
        guest = terms.guest,
        source = terms.source,
        destination = terms.destination,
        epoch = terms.epoch,
        "driving"
    );
    let (sender, mut heard) = mpsc::channel(64);
    let proof = Arc::new(Proof::default());
    let mut beside = JoinSet::new();
    let (drafts, to_write) = watch::channel(Draft {
        status: book.status.clone(),
        hold: false,
        last: false,
    });
    let publisher = cluster.tasks.spawn(publish(cluster.clone(), migration, to_write));
    let mut drive = Drive {
        watching: match flow {
            ControlFlow::PeerToPeer => Some(Watching::default()),
            ControlFlow::ManagedDirect => None,
        },
        began: Instant::now(),
        driver: Driver::new(terms.clone()),
        cluster: cluster.clone(),
        guest,
        budget,
        stream,
        limit: None,
        told_limit: None,
        record: None,
        record_missing: false,
        definition: None,
        told_to_begin: false,
        source: SideState::default(),
        destination: SideState::default(),
        sealed: false,
        given: OrdersGiven::default(),
        done: JoinSet::new(),
        proof: proof.clone(),
        clues: Clues::default(),
        cancel: false,
        start_by: Some(Instant::now() + START_WITHIN),
        doubt_since: None,
        blocked: None,
        not_now: None,
        book,
        drafts,
        terms: terms.clone(),
    };
    for (role, side) in [
        (Role::Source, &drive.source),
        (Role::Destination, &drive.destination),
    ] {
        beside.spawn(sides::watch(cluster.clone(), terms.clone(), role, sender.clone()));
        // Whoever drives tells both sides that the driver lives.
        if drive.watching.is_none() {
            let alive = side.alive.subscribe();
            beside.spawn(sides::keep_alive(
                terms.clone(),
                role,
                proof.clone(),
                alive,
                sender.clone(),
            ));
        }
    }
    beside.spawn(sides::read_record(
        cluster.clone(),
        terms.guest.clone(),
        proof,
        sender,
    ));
    match record {
        Some(record) => drive.record_read(record),
        None => drive.look(),
    }
    drive.control(*control.borrow_and_update());

    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let outcome = loop {
        if let Stand::Ended(outcome) = drive.driver.stand()
            && !drive.may_begin()
        {
            break Some(outcome);
        }
        if cluster.shutdown.is_cancelled() && !drive.needed() {
            break None;
        }
        tokio::select! {
            biased;
            Some(heard) = heard.recv() => drive.hear(heard),
            Some(done) = drive.done.join_next() => match done {
                Ok(done) => drive.answered(done),
                Err(error) => tracing::error!(%error, "an order's task failed"),
            },
            Ok(()) = control.changed() => drive.control(*control.borrow_and_update()),
            _ = ticks.tick() => drive.look(),
            () = cluster.shutdown.cancelled(), if !drive.needed() => {}
        }
    };
    beside.abort_all();
    match outcome {
        Some(outcome) => drive.end(outcome),
        None => tracing::info!(migration = terms.migration, "left to the next controller"),
    }
    // The publisher ends with the last draft, or with the sender.
    drop(drive);
    if let Err(error) = publisher.await {
        tracing::error!(%error, "the publisher failed");
    }
    drop(seat);
}

impl Drive {
    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Update(role, update) => self.update(role, *update),
            Heard::Connected(role, connection) => {
                let side = self.side(role);
                side.connection = Some(*connection);
                side.silent_since = None;
                side.silent_because = None;
                self.look();
            }
            Heard::Silent(role, fault) => self.silent(role, fault),
            Heard::Clock(role, sample) => self.side(role).clock.add(sample),
            Heard::Record(Some(record)) => {
                // A reading that crossed a write of ours may be older than it.
                if !self.given.writing() {
                    self.record_missing = false;
                    self.record_read(*record);
                }
            }
            Heard::Record(None) => self.record_missing = true,
        }
    }

    fn side(&mut self, role: Role) -> &mut SideState {
        match role {
            Role::Source => &mut self.source,
            Role::Destination => &mut self.destination,
        }
    }

    /// Whether the guest stands still and waits for this driver.
    fn needed(&self) -> bool {
        self.watching.is_none() && self.driver.blackout()
    }

    fn update(&mut self, role: Role, update: Update) {
        if role == Role::Source && self.watching.is_some() {
            self.hear_driver(&update);
        }
        // What the guest waits for comes first: the report, and the order that follows from it.
        let event = match (role, &update.side) {
            (Role::Source, Some(Side::Source(report))) => Some(DriverEvent::Source(Some(*report))),
            (Role::Source, None) => Some(DriverEvent::Source(None)),
            (Role::Destination, Some(Side::Destination(report))) => {
                Some(DriverEvent::Destination(Some(report.clone())))
            }
            (Role::Destination, None) => Some(DriverEvent::Destination(None)),
            (Role::Source, Some(Side::Destination(_))) | (Role::Destination, Some(Side::Source(_))) => {
                tracing::error!(
                    migration = self.terms.migration,
                    ?role,
                    "a host reports the other side's role"
                );
                None
            }
        };
        if role == Role::Destination {
            self.proof.destination_watched(true);
        }
        if let Some(event) = event {
            self.step(event);
        }
        if let Some(Side::Source(SourceReport::GoSent(go))) = &update.side {
            self.sealed = go.sealed;
        }
        let known = update.side.is_some();
        let side = self.side(role);
        let connection = side.connection.clone().filter(|_| known);
        side.alive.send_if_modified(|held| {
            let news = held.is_some() != connection.is_some();
            *held = connection;
            news
        });
        if role == Role::Source
            && let Some(figures) = &update.progress
        {
            self.book
                .progress(figures, update.hypervisor_total_millis, self.budget);
        }
        let known = &self.side(role).last;
        // A restarted agent does not know any more when it stopped the guest, or let it run.
        let update = Update {
            stopped_at_micros: update.stopped_at_micros.or(known.stopped_at_micros),
            resumed_at_micros: update.resumed_at_micros.or(known.resumed_at_micros),
            ..update
        };
        if role == Role::Source {
            self.book.goes_on(update.held_back, Timestamp::now());
        }
        self.side(role).last = update;
        self.enter_phases();
        self.look_at_times();
        self.publish(false);
    }

    fn silent(&mut self, role: Role, fault: Fault) {
        tracing::warn!(migration = self.terms.migration, ?role, %fault, "a side is silent");
        if role == Role::Destination {
            self.proof.destination_watched(false);
        }
        let side = self.side(role);
        side.connection = None;
        side.alive.send_replace(None);
        side.silent_since.get_or_insert_with(Instant::now);
        side.silent_because = Some(fault.clone());
        if role == Role::Destination && self.watching.is_some() {
            self.hear_destination_of_the_driver();
        } else if fault.category.bars_the_caller() && !self.armed() {
            self.refuse(Cause::PathNotProven, failure::refused(&fault));
        } else if let Some(failed) = needs_a_person(&fault) {
            self.blocked = Some(failed);
        }
        self.look();
    }

    fn control(&mut self, control: Control) {
        self.book.observe(control.generation);
        if self.stream.bandwidth != control.bandwidth {
            tracing::info!(
                migration = self.terms.migration,
                control.bandwidth,
                "another limit"
            );
            self.stream.bandwidth = control.bandwidth;
            self.retune();
        }
        if control.cancel && !self.cancel {
            tracing::info!(migration = self.terms.migration, "cancel");
            self.cancel = true;
            self.step(DriverEvent::Cancel);
        }
        self.publish(false);
    }

    fn record_read(&mut self, record: GuestRecord) {
        self.proof.api_reached();
        let view = record::view(&record.spec);
        self.record = Some(record);
        self.step(DriverEvent::Record(view));
    }

    /// Gives up, for a reason of the driver's own.
    pub(super) fn refuse(&mut self, cause: Cause, failed: Failed) {
        self.clues.own.get_or_insert(failed);
        self.step(DriverEvent::OrderFailed(cause));
    }

    pub(super) fn step(&mut self, event: DriverEvent) {
        let (driver, step) = self.driver.step(event);
        self.driver = driver;
        for effect in step.effects {
            self.give(effect);
        }
        if self.watching.is_none() {
            self.book.enter(self.driver.phase(), Timestamp::now());
        }
        if self.driver.has_streamed() {
            self.start_by = None;
        }
        self.publish(false);
    }

    /// Carries an effect out, unless that is being done already.
    fn give(&mut self, effect: DriverEffect) {
        if self.watching.is_some() {
            self.give_watching(&effect);
            return;
        }
        match effect {
            DriverEffect::ArmRecord => self.arm(),
            DriverEffect::AdvanceRecord => self.write(Key::Advance, record::advance),
            DriverEffect::DecideRecord(decision) => match decision {
                handover::Decision::Aborted if self.may_begin() => self.call_off(),
                handover::Decision::Aborted => {
                    self.write(Key::Decide, |spec, terms| {
                        record::decide(spec, terms, Decision::Aborted)
                    });
                }
                handover::Decision::Reverted => {
                    self.write(Key::Decide, |spec, terms| {
                        record::decide(spec, terms, Decision::Reverted)
                    });
                }
                handover::Decision::None | handover::Decision::Committed => {
                    tracing::error!(?decision, "a driver does not write this decision");
                }
            },
            DriverEffect::Ready => self.order(Key::Ready, Role::Source, Order::Ready),
            DriverEffect::Finish(go) => self.order(Key::Finish, Role::Destination, Order::Finish(go)),
            DriverEffect::Begin => self.begin(),
            DriverEffect::Prepare => match self.definition.clone() {
                Some(definition) => {
                    let Some(record) = &self.record else { return };
                    // Peer to peer the destination does this by itself.
                    let recorded = &record.spec.guest.definition;
                    if let Err(fault) = definition::check(&self.terms.source, &definition, recorded) {
                        return self.order_failed(Key::Prepare, Role::Source, &fault);
                    }
                    let guest = self.guest.clone();
                    self.order(
                        Key::Prepare,
                        Role::Destination,
                        Order::Prepare {
                            guest,
                            definition,
                            stream: self.stream,
                            ticket: Vec::new(),
                        },
                    );
                }
                // The source gives the definition again, as often as it is asked.
                None => self.begin(),
            },
            DriverEffect::Perform(channel) => self.order(Key::Perform, Role::Source, Order::Perform(channel)),
            DriverEffect::Confirm => self.order(Key::Confirm, Role::Source, Order::Confirm),
            DriverEffect::AbortSource(cause) => {
                self.order(Key::AbortSource, Role::Source, Order::AbortSource(cause));
            }
            DriverEffect::AbortDestination(cause) => {
                self.order(
                    Key::AbortDestination,
                    Role::Destination,
                    Order::AbortDestination(cause),
                );
            }
            DriverEffect::Settle => self.order(Key::Settle, Role::Source, Order::Settle),
        }
    }

    /// Whether the source may yet begin, or has begun and not said so.
    pub(super) fn may_begin(&self) -> bool {
        self.told_to_begin && *self.driver.source() == SideView::NoSuchMigration
    }

    /// Has a source that may have begun give up, or say that it never began.
    fn call_off(&mut self) {
        if !self.given.in_flight(Key::Begin) {
            let cause = if self.cancel {
                Cause::Cancelled
            } else {
                Cause::PathNotProven
            };
            self.order(Key::AbortSource, Role::Source, Order::AbortSource(cause));
        }
    }

    fn begin(&mut self) {
        // A source that was begun by an earlier driver may have been told another limit.
        if self.source.last.side.is_none() {
            self.limit.get_or_insert(self.stream.bandwidth);
        }
        self.order(
            Key::Begin,
            Role::Source,
            Order::Begin {
                max_downtime: self.budget,
                stream: self.stream,
            },
        );
        self.told_to_begin |= self.given.in_flight(Key::Begin);
    }

    /// Tells a streaming source the limit that it may not know: the user has changed it, or this driver has taken
    /// the migration over and cannot tell what the source was told.
    fn retune(&mut self) {
        let streaming = self.source.last.side == Some(Side::Source(SourceReport::Streaming));
        let asked = self.given.in_flight(Key::Retune);
        if streaming && !asked && self.limit != Some(self.stream.bandwidth) {
            let bandwidth = self.stream.bandwidth;
            self.told_limit = Some(bandwidth);
            self.order(Key::Retune, Role::Source, Order::Retune { bandwidth });
        }
    }

    /// Arms the record once both sides have been heard: a host that cannot be reached costs nothing then. Peer to peer
    /// whether the destination is reached is the source's to find out.
    pub(super) fn arm(&mut self) {
        let heard = !matches!(self.driver.source(), SideView::Unheard)
            && (self.watching.is_some() || !matches!(self.driver.destination(), SideView::Unheard));
        if heard || self.record.is_none() {
            self.write(Key::Arm, record::arm);
        }
    }

    /// The time since the driver began: what its tables count in.
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    pub(super) fn order(&mut self, key: Key, role: Role, order: Order) {
        let Some(connection) = self.side(role).connection.clone() else {
            return;
        };
        let now = self.now();
        if !self.given.give(key, now) {
            return;
        }
        tracing::debug!(
            migration = self.terms.migration,
            order = order.name(),
            ?role,
            "order"
        );
        let terms = self.terms.clone();
        self.spawn(async move { Done::Order(key, role, connection.client.order(&terms, &order).await) });
    }

    pub(super) fn write(
        &mut self,
        key: Key,
        change: impl Fn(&godwit_crds::GuestRecordSpec, &Terms) -> record::Change + Send + Sync + 'static,
    ) {
        let now = self.now();
        if self.given.writing() || !self.given.give(key, now) {
            return;
        }
        let (cluster, terms, known) = (self.cluster.clone(), self.terms.clone(), self.record.clone());
        self.spawn(async move {
            let guest = terms.guest.clone();
            Done::Record(
                key,
                Box::new(
                    cluster
                        .records
                        .change(known, &guest, |spec| change(spec, &terms))
                        .await,
                ),
            )
        });
    }

    pub(super) fn spawn(&mut self, work: impl Future<Output = Done> + Send + 'static) {
        self.done.spawn(work);
    }

    fn answered(&mut self, done: Done) {
        let now = self.now();
        match done {
            Done::Order(key, _, Ok(answer)) => {
                self.given.taken(key, now);
                if key == Key::Retune {
                    self.limit = self.told_limit;
                }
                if let OrderAnswer::Begun { definition } = answer {
                    self.definition = Some(definition);
                    self.give_again();
                }
            }
            Done::Order(key, role, Err(fault)) => self.order_failed(key, role, &fault),
            Done::Record(key, written) => match *written {
                Ok(record) => {
                    self.given.taken(key, now);
                    self.record_missing = false;
                    self.record_read(record);
                }
                Err(error) => self.write_failed(key, error),
            },
        }
    }

    fn order_failed(&mut self, key: Key, role: Role, fault: &Fault) {
        let host = role.host(&self.terms).to_owned();
        tracing::warn!(migration = self.terms.migration, ?key, host, %fault, "an order was not taken");
        // A refusal of what the reports have left behind means nothing.
        let still_wanted = self.driver.next().iter().any(|effect| Key::of(effect) == key);
        let now = self.now();
        self.given.failed(key, now);
        if fault.category == Category::Unavailable {
            self.not_now = Some(fault.clone());
            return;
        }
        if self.watching.is_some() {
            self.refused_watching(key, fault);
        }
        // It has answered, and has not begun; nor does it any more.
        let unknown = key == Key::AbortSource && fault.reason == "MigrationUnknown";
        if key == Key::Begin || (unknown && !self.given.in_flight(Key::Begin)) {
            self.told_to_begin = false;
        }
        if key.before_memory() && still_wanted {
            let cause = match role {
                Role::Source => Cause::HypervisorRefused,
                Role::Destination => Cause::DestinationFailed,
            };
            self.clues.refused.get_or_insert_with(|| fault.clone());
            self.step(DriverEvent::OrderFailed(cause));
        } else if let Some(failed) = needs_a_person(fault) {
            self.blocked = Some(failed);
        }
    }

    fn write_failed(&mut self, key: Key, error: RecordError) {
        tracing::warn!(migration = self.terms.migration, ?key, %error, "the record was not written");
        let now = self.now();
        self.given.failed(key, now);
        match error {
            RecordError::Missing => self.record_missing = true,
            RecordError::Refused(refused) if key == Key::Arm => {
                let failed = failure::tell(Reason::AnotherMigrationActive, &format!("{refused}."));
                self.refuse(Cause::HypervisorRefused, failed);
            }
            // What stands there is read again and settles it; or the API server comes back.
            RecordError::Refused(_) | RecordError::Contended | RecordError::Api(_) => {}
        }
    }

    fn give_again(&mut self) {
        for effect in self.driver.next() {
            self.give(effect);
        }
    }

    /// Looks at everything that time alone changes.
    fn look(&mut self) {
        self.give_again();
        if self.watching.is_some() {
            self.look_watching();
        }
        self.retune();
        if self.may_begin() && matches!(self.driver.stand(), Stand::Ended(_)) {
            self.call_off();
        }
        if self.start_by.is_some_and(|by| Instant::now() >= by) {
            self.start_by = None;
            let failed = self.start_too_slow();
            self.refuse(Cause::PathNotProven, failed);
        }
        self.look_at_doubts();
        self.publish(false);
    }

    /// Enters the downtime as soon as both instants and both clocks are known.
    fn look_at_times(&mut self) {
        if self.watching.is_some() {
            self.look_at_times_of_the_driver();
            return;
        }
        let (Some(stopped_micros), Some(resumed_micros)) = (
            self.source.last.stopped_at_micros,
            self.destination.last.resumed_at_micros,
        ) else {
            return;
        };
        let (Some(source), Some(destination)) = (self.source.clock.offset(), self.destination.clock.offset())
        else {
            return;
        };
        let hypervisor = self
            .source
            .last
            .hypervisor_downtime_millis
            .or(self.destination.last.hypervisor_downtime_millis);
        self.book.downtime(downtime(
            Instants {
                stopped_micros,
                source,
                resumed_micros,
                destination,
            },
            hypervisor,
            self.sealed,
        ));
    }

    pub(super) fn armed(&self) -> bool {
        self.record.as_ref().is_some_and(|record| {
            record
                .spec
                .migration
                .as_ref()
                .is_some_and(|armed| armed.uid == self.terms.migration)
        })
    }
    fn publish(&mut self, last: bool) {
        let draft = Draft {
            status: self.book.status.clone(),
            hold: self.driver.handing_over() && !last,
            last,
        };
        self.drafts.send_if_modified(|known| {
            let news = *known != draft;
            *known = draft;
            news
        });
    }

    fn end(&mut self, outcome: Outcome) {
        tracing::info!(migration = self.terms.migration, ?outcome, "ended");
        self.look_at_times();
        let words = |update: &Update| (update.reason.clone(), update.detail.clone());
        self.clues.source = words(&self.source.last);
        self.clues.destination = words(&self.destination.last);
        let now = Timestamp::now();
        if self.watching.is_some() {
            self.end_watching();
        }
        match outcome {
            Outcome::Succeeded { running } => self.book.succeeded(running, self.cancel, now),
            Outcome::Aborted(cause) => {
                let failed = failure::given_up(cause, &self.clues, &self.terms);
                self.book.failed(&failed, now);
            }
            Outcome::GuestLost(cause) => self.book.failed(&failure::lost(cause, &self.clues), now),
        }
        self.publish(true);
    }
}
