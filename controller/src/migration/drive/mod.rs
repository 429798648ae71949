//! The driver of one migration: it hears both sides, and gives the orders that follow (managed direct). Peer to peer
//! it gives one order, to drive, and then watches: the same driver knows from the same reports how far the migration
//! is and how it ended, while another one, in the source's agent, gives the orders ([`super::watching`]).
//!
//! One task owns the driver. What it hears comes in as events, orders and writes of the record go out as tasks of
//! their own, so that nothing waits for anything else: while the guest is stopped, Ready and Go are passed on the
//! moment they are heard. The driver holds nothing that matters: killed at any point, the next one asks both sides
//! and goes on.

mod orders;

use std::sync::Arc;
use std::time::Duration;

use godwit_crds::migration::ControlFlow;
use godwit_crds::{Decision, GuestRecord, VirtualMachineMigration};
use godwit_handover::{
    Cause, Driver, DriverEvent, OrderKey as Key, OrdersGiven, Outcome, SourceReport, Stand, Terms,
};
use godwit_protocol::clock::ClockEstimate;
use godwit_protocol::{Fault, GuestName, OrderAnswer, Side, StreamOptions, Update};
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::book::{Book, Failed, Notice};
use super::doubts::needs_a_person;
use super::downtime::{Instants, downtime};
use super::drivers::{Control, Seat};
use super::failure::{self, Clues};
use super::publish::{Claim, Draft, publish};
use super::sides::{self, Heard, Proof, Role};
use super::validate;
use super::watching::Watching;
use crate::agents::Connection;
use crate::cluster::Cluster;
use crate::reason::MigrationReason as Reason;
use crate::record::{self, RecordError};

/// From the start of the driver to the first byte of guest memory.
pub(super) const START_WITHIN: Duration = Duration::from_secs(30);
/// How long a side is silent before the other one, where the guest stands still, has the record decide.
const STANDING_STILL: Duration = Duration::from_secs(5);
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
    /// What a reading gave after a write that may have armed the record.
    WhetherArmed(Box<Result<GuestRecord, RecordError>>),
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
    pub(super) claim: Claim,
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
    let audited = migration.clone();
    let armed = record
        .as_ref()
        .is_some_and(|record| record::terms_of_armed(&record.spec, &terms.migration).is_some());
    let (claim, mut claimed) = watch::channel(if armed || validate::begun(&migration) {
        Claim::Ours
    } else {
        Claim::Open
    });
    let publisher = cluster
        .tasks
        .spawn(publish(cluster.clone(), migration, to_write, claim));
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
        claim: *claimed.borrow_and_update(),
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
            && !drive.may_prepare()
            && !drive.may_be_armed()
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
            Ok(()) = claimed.changed() => drive.claimed(*claimed.borrow_and_update()),
            _ = ticks.tick() => drive.look(),
            () = cluster.shutdown.cancelled(), if !drive.needed() => {}
        }
    };
    beside.abort_all();
    match outcome {
        Some(outcome) => drive.end(outcome),
        None => tracing::info!(migration = terms.migration, "left to the next controller"),
    }
    let decided = drive.decided().filter(|_| outcome.is_some());
    // The publisher ends with the last draft, or with the sender.
    drop(drive);
    if let Err(error) = publisher.await {
        tracing::error!(%error, "the publisher failed");
    }
    // Who decided, and upon what, is for the auditor to find beside the migration.
    if let Some(notice) = decided {
        cluster.notify(&*audited, vec![notice]).await;
    }
    drop(seat);
}

impl Drive {
    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Update(role, update) => self.update(role, *update),
            Heard::Connected(role, connection) => {
                let side = self.side(role);
                // It is silent until it speaks of the migration: it may not be able to read its journal.
                side.connection = Some(*connection);
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
        let side = self.side(role);
        side.silent_because = None;
        if side.silent_since.take().is_some() {
            // What kept it from speaking is over.
            self.blocked = self.told_by_the_driver();
        }
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

    fn claimed(&mut self, claim: Claim) {
        self.claim = claim;
        if claim == Claim::Over && !self.cancel {
            tracing::info!(migration = self.terms.migration, "somebody else has ended it");
            self.cancel = true;
            self.step(DriverEvent::Cancel);
        }
        self.look();
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

    /// The time since the driver began: what its tables count in.
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Looks at everything that time alone changes.
    fn look(&mut self) {
        self.give_again();
        if self.watching.is_some() {
            self.look_watching();
        }
        let silent = |side: &SideState| {
            side.silent_since
                .is_some_and(|since| since.elapsed() >= STANDING_STILL)
        };
        let (source, destination) = (silent(&self.source), silent(&self.destination));
        self.step(DriverEvent::SourceSilent(source));
        self.step(DriverEvent::DestinationSilent(destination));
        self.retune();
        if matches!(self.driver.stand(), Stand::Ended(_)) {
            if self.may_begin() {
                self.call_off();
            }
            if self.may_prepare() {
                self.call_off_destination();
            }
            if self.may_be_armed() {
                self.look_whether_armed();
            }
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

    /// What the record says about this migration: the epoch, the decision, who wrote it, and upon what evidence.
    fn decided(&self) -> Option<Notice> {
        let record = &self.record.as_ref().filter(|_| self.armed())?.spec;
        (record.decision != Decision::None).then(|| Notice {
            warning: false,
            reason: Reason::RecordDecided.word().into(),
            note: format!(
                "Epoch {}, {:?}, written by {}: {}",
                record.epoch, record.decision, record.writer, record.evidence
            ),
        })
    }

    fn publish(&mut self, last: bool) {
        if self.driver.handing_over() {
            self.cluster.drivers.hands_over(&self.terms.migration);
        }
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
