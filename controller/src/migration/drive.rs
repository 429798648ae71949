//! The driver of one migration: it hears both sides, and gives the orders that follow (managed direct).
//!
//! One task owns the driver. What it hears comes in as events, orders and writes of the record go out as tasks of
//! their own, so that nothing waits for anything else: while the guest is stopped, Ready and Go are passed on the
//! moment they are heard. The driver holds nothing that matters: killed at any point, the next one asks both sides
//! and goes on.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use godwit_crds::{Decision, GuestRecord, VirtualMachineMigration};
use godwit_handover::{
    self as handover, Cause, DestinationReport, Driver, DriverEffect, DriverEvent, Outcome, SideView,
    SourceReport, Stand, Terms, Wait,
};
use godwit_protocol::clock::ClockEstimate;
use godwit_protocol::{Category, Fault, GuestName, Order, OrderAnswer, Side, StreamOptions, Update};
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::book::{Book, Failed};
use super::downtime::{Instants, downtime};
use super::drivers::{Control, Seat};
use super::failure::{self, Clues};
use super::publish::{Draft, publish};
use super::sides::{self, Heard, Proof, Role};
use crate::agents::Connection;
use crate::cluster::Cluster;
use crate::reason::MigrationReason as Reason;
use crate::record::{self, RecordError};

/// From the start of the driver to the first byte of guest memory.
const START_WITHIN: Duration = Duration::from_secs(30);
/// An order that was taken is given again if the reports have not moved on by then.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// Between two attempts of an order that was not answered.
const RETRY_AFTER: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];
/// How often is looked whether something has to be given again.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a doubt lasts before it is told: reports cross each other.
const DOUBT_AFTER: Duration = Duration::from_secs(2);
/// How long a side is silent before that is told.
const SILENT_AFTER: Duration = Duration::from_secs(10);

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
    /// How long the guest may be stopped.
    pub budget: Duration,
    /// How memory is to travel.
    pub stream: StreamOptions,
    /// The status so far, accepted.
    pub book: Book,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Arm,
    Advance,
    Decide,
    Begin,
    Prepare,
    Perform,
    Ready,
    Finish,
    Confirm,
    AbortSource,
    AbortDestination,
    Settle,
    Retune,
}

/// How far an order has come.
#[derive(Clone, Copy, Debug)]
enum Given {
    InFlight { failures: u32 },
    Taken { at: Instant },
    Failed { again_at: Instant, failures: u32 },
}

/// What became of an order or a write.
enum Done {
    Order(Key, Role, Result<OrderAnswer, Fault>),
    Record(Key, Box<Result<GuestRecord, RecordError>>),
}

/// What is known of a side besides its report.
#[derive(Default)]
struct SideState {
    connection: Option<Connection>,
    /// Set while the side may be sent keepalives.
    alive: watch::Sender<Option<Connection>>,
    silent_since: Option<Instant>,
    silent_because: Option<Fault>,
    clock: ClockEstimate,
    last: Update,
}

struct Drive {
    cluster: Arc<Cluster>,
    terms: Terms,
    guest: GuestName,
    budget: Duration,
    stream: StreamOptions,
    /// The limit that the source knows, as far as this driver can tell.
    limit: Option<u64>,
    told_limit: Option<u64>,
    driver: Driver,
    record: Option<GuestRecord>,
    record_missing: bool,
    definition: Option<Vec<u8>>,
    source: SideState,
    destination: SideState,
    sealed: bool,
    given: HashMap<Key, Given>,
    done: JoinSet<Done>,
    proof: Arc<Proof>,
    clues: Clues,
    cancel: bool,
    start_by: Option<Instant>,
    doubt_since: Option<Instant>,
    blocked: Option<Failed>,
    not_now: Option<Fault>,
    book: Book,
    drafts: watch::Sender<Draft>,
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
        source: SideState::default(),
        destination: SideState::default(),
        sealed: false,
        given: HashMap::new(),
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
        let alive = side.alive.subscribe();
        beside.spawn(sides::keep_alive(
            terms.clone(),
            role,
            proof.clone(),
            alive,
            sender.clone(),
        ));
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
        if let Stand::Ended(outcome) = drive.driver.stand() {
            break Some(outcome);
        }
        if cluster.shutdown.is_cancelled() && !drive.blackout() {
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
            () = cluster.shutdown.cancelled(), if !drive.blackout() => {}
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
                if !self.writing() {
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

    fn update(&mut self, role: Role, update: Update) {
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
        self.side(role).last = update;
        self.look_at_times();
        self.publish(false);
    }

    fn silent(&mut self, role: Role, fault: Fault) {
        tracing::warn!(migration = self.terms.migration, ?role, %fault, "a side is silent");
        if role == Role::Destination {
            self.proof.destination_watched(false);
        }
        let forbidding = match fault.category {
            Category::Forbidden | Category::Version => true,
            Category::Invalid
            | Category::Unavailable
            | Category::Lacking
            | Category::Conflict
            | Category::Internal => false,
        };
        let side = self.side(role);
        side.connection = None;
        side.alive.send_replace(None);
        side.silent_since.get_or_insert_with(Instant::now);
        side.silent_because = Some(fault.clone());
        if forbidding && !self.armed() {
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
    fn refuse(&mut self, cause: Cause, failed: Failed) {
        self.clues.own.get_or_insert(failed);
        self.step(DriverEvent::OrderFailed(cause));
    }

    fn step(&mut self, event: DriverEvent) {
        let (driver, step) = self.driver.step(event);
        self.driver = driver;
        for effect in step.effects {
            self.give(effect);
        }
        self.book.enter(self.driver.phase(), Timestamp::now());
        if self.streaming() {
            self.start_by = None;
        }
        self.publish(false);
    }

    /// Carries an effect out, unless that is being done already.
    fn give(&mut self, effect: DriverEffect) {
        match effect {
            DriverEffect::ArmRecord => self.arm(),
            DriverEffect::AdvanceRecord => self.write(Key::Advance, record::advance),
            DriverEffect::DecideRecord(decision) => match decision {
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
                    let guest = self.guest.clone();
                    self.order(
                        Key::Prepare,
                        Role::Destination,
                        Order::Prepare {
                            guest,
                            definition,
                            stream: self.stream,
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
    }

    /// Tells a streaming source the limit that it may not know: the user has changed it, or this driver has taken
    /// the migration over and cannot tell what the source was told.
    fn retune(&mut self) {
        let streaming = self.source.last.side == Some(Side::Source(SourceReport::Streaming));
        let asked = matches!(self.given.get(&Key::Retune), Some(Given::InFlight { .. }));
        if streaming && !asked && self.limit != Some(self.stream.bandwidth) {
            let bandwidth = self.stream.bandwidth;
            self.told_limit = Some(bandwidth);
            self.order(Key::Retune, Role::Source, Order::Retune { bandwidth });
        }
    }

    /// Arms the record once both sides have been heard: a host that cannot be reached costs nothing then.
    fn arm(&mut self) {
        let heard = !matches!(self.driver.source(), SideView::Unheard)
            && !matches!(self.driver.destination(), SideView::Unheard);
        if heard || self.record.is_none() {
            self.write(Key::Arm, record::arm);
        }
    }

    /// Whether an order may be given (again) now; notes that it is.
    fn may_give(&mut self, key: Key) -> bool {
        let now = Instant::now();
        let failures = match self.given.get(&key) {
            None => 0,
            Some(Given::InFlight { .. }) => return false,
            Some(Given::Taken { at }) if now < *at + AGAIN_AFTER => return false,
            Some(Given::Failed { again_at, .. }) if now < *again_at => return false,
            Some(Given::Taken { .. }) => 0,
            Some(Given::Failed { failures, .. }) => *failures,
        };
        self.given.insert(key, Given::InFlight { failures });
        true
    }

    fn order(&mut self, key: Key, role: Role, order: Order) {
        let Some(connection) = self.side(role).connection.clone() else {
            return;
        };
        if !self.may_give(key) {
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

    fn write(
        &mut self,
        key: Key,
        change: impl Fn(&godwit_crds::GuestRecordSpec, &Terms) -> record::Change + Send + Sync + 'static,
    ) {
        if self.writing() || !self.may_give(key) {
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

    fn spawn(&mut self, work: impl Future<Output = Done> + Send + 'static) {
        self.done.spawn(work);
    }

    fn writing(&self) -> bool {
        [Key::Arm, Key::Advance, Key::Decide]
            .iter()
            .any(|key| matches!(self.given.get(key), Some(Given::InFlight { .. })))
    }

    fn answered(&mut self, done: Done) {
        match done {
            Done::Order(key, _, Ok(answer)) => {
                self.given.insert(key, Given::Taken { at: Instant::now() });
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
                    self.given.insert(key, Given::Taken { at: Instant::now() });
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
        let before_memory = match key {
            Key::Begin | Key::Prepare | Key::Perform => true,
            Key::Arm
            | Key::Advance
            | Key::Decide
            | Key::Ready
            | Key::Finish
            | Key::Confirm
            | Key::AbortSource
            | Key::AbortDestination
            | Key::Settle
            | Key::Retune => false,
        };
        // A refusal of what the reports have left behind means nothing.
        let still_wanted = self.driver.next().iter().any(|effect| key_of(effect) == key);
        self.fail(key);
        if fault.category == Category::Unavailable {
            self.not_now = Some(fault.clone());
            return;
        }
        if before_memory && still_wanted {
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
        self.fail(key);
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

    fn fail(&mut self, key: Key) {
        let failures = match self.given.get(&key) {
            Some(Given::InFlight { failures } | Given::Failed { failures, .. }) => *failures,
            Some(Given::Taken { .. }) | None => 0,
        };
        let pause = RETRY_AFTER[0]
            .saturating_mul(1 << failures.min(8))
            .min(RETRY_AFTER[1]);
        self.given.insert(
            key,
            Given::Failed {
                again_at: Instant::now() + pause,
                failures: failures.saturating_add(1),
            },
        );
    }

    fn give_again(&mut self) {
        for effect in self.driver.next() {
            self.give(effect);
        }
    }

    /// Looks at everything that time alone changes.
    fn look(&mut self) {
        self.give_again();
        self.retune();
        if self.start_by.is_some_and(|by| Instant::now() >= by) {
            self.start_by = None;
            let failed = self.start_too_slow();
            self.refuse(Cause::PathNotProven, failed);
        }
        self.look_at_doubts();
        self.publish(false);
    }

    /// What has kept the migration from starting.
    fn start_too_slow(&self) -> Failed {
        let seconds = START_WITHIN.as_secs();
        for (role, side) in [
            (Role::Source, &self.source),
            (Role::Destination, &self.destination),
        ] {
            if side.connection.is_none() {
                let words = side
                    .silent_because
                    .as_ref()
                    .map_or_else(String::new, |fault| format!(": {fault}"));
                let host = role.host(&self.terms);
                return failure::tell(
                    Reason::AgentUnreachable,
                    &format!("The agent on {host} was not reached within {seconds} s{words}."),
                );
            }
        }
        if self.record_missing {
            return failure::tell(Reason::RecordMissing, "The guest has no GuestRecord any more.");
        }
        // The host answers, and says why it does not do it now.
        let told = self.not_now.as_ref().map(failure::refused);
        if let Some(told) =
            told.filter(|told| ![Reason::AgentUnreachable, Reason::InternalError].contains(&told.reason))
        {
            return told;
        }
        let unanswered = self.driver.next().first().map(key_of);
        let host = match self.driver.stand() {
            Stand::Waiting {
                wait: Wait::Destination,
            } => &self.terms.destination,
            Stand::Waiting {
                wait: Wait::Source | Wait::Record | Wait::Decision,
            }
            | Stand::Ended(_) => &self.terms.source,
        };
        match unanswered {
            Some(key)
                if matches!(
                    self.given.get(&key),
                    Some(Given::InFlight { .. } | Given::Failed { .. })
                ) =>
            {
                failure::tell(
                    Reason::AgentUnreachable,
                    &format!("{key:?} was not answered within {seconds} s."),
                )
            }
            Some(_) | None => failure::tell(
                Reason::DeadlineExceeded,
                &format!("{host} did not come to the transfer of memory within {seconds} s."),
            ),
        }
    }

    fn look_at_doubts(&mut self) {
        let now = Instant::now();
        let timestamp = Timestamp::now();
        let stand = self.driver.stand();
        let in_doubt = matches!(stand, Stand::Waiting { wait: Wait::Decision });
        self.doubt_since = if in_doubt {
            self.doubt_since.or(Some(now))
        } else {
            None
        };
        let since =
            |at: Option<Instant>, limit: Duration| at.is_some_and(|at| now.duration_since(at) >= limit);
        let waits_for = match stand {
            Stand::Waiting { wait: Wait::Source } => Some((Role::Source, &self.source)),
            Stand::Waiting {
                wait: Wait::Destination,
            } => Some((Role::Destination, &self.destination)),
            Stand::Waiting {
                wait: Wait::Record | Wait::Decision,
            }
            | Stand::Ended(_) => None,
        };
        let silent = [
            waits_for,
            in_doubt.then_some((Role::Source, &self.source)),
            in_doubt.then_some((Role::Destination, &self.destination)),
        ]
        .into_iter()
        .flatten()
        .find(|(_, side)| since(side.silent_since, SILENT_AFTER));
        let told = if self.record_missing {
            Some(failure::tell(
                Reason::RecordMissing,
                "The guest's GuestRecord is not there; nothing is decided without it.",
            ))
        } else if let Some(blocked) = &self.blocked {
            Some(blocked.clone())
        } else if let Some((role, side)) = silent {
            let host = role.host(&self.terms);
            let words = side
                .silent_because
                .as_ref()
                .map_or_else(String::new, |fault| format!(" ({fault})"));
            let words =
                format!("The agent on {host} is silent{words}; what it knows decides. Bring it back.");
            Some(Failed {
                reason: Reason::AgentUnreachable,
                message: words,
            })
        } else if since(self.doubt_since, DOUBT_AFTER) {
            Some(failure::tell(
                Reason::DecisionNeeded,
                "Which side may run the guest cannot be proved, so neither is started and nothing is destroyed.",
            ))
        } else {
            None
        };
        match told {
            Some(failed) => self
                .book
                .needs_decision(failed.reason, &failed.message, timestamp),
            None => self.book.decided(timestamp),
        }
        if self.cancel && self.too_late() {
            self.book.cancel_too_late(timestamp);
        }
    }

    /// Enters the downtime as soon as both instants and both clocks are known.
    fn look_at_times(&mut self) {
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

    fn armed(&self) -> bool {
        self.record.as_ref().is_some_and(|record| {
            record
                .spec
                .migration
                .as_ref()
                .is_some_and(|armed| armed.uid == self.terms.migration)
        })
    }

    /// Whether memory travels, or did: from then on the source's agent judges what it can wait for.
    fn streaming(&self) -> bool {
        match self.driver.source() {
            SideView::Unheard | SideView::NoSuchMigration | SideView::Reported(SourceReport::Begun) => false,
            SideView::Reported(
                SourceReport::Streaming
                | SourceReport::Stopped { .. }
                | SourceReport::Switching { .. }
                | SourceReport::InDoubt { .. }
                | SourceReport::GoSent(_)
                | SourceReport::Released
                | SourceReport::Aborting(_)
                | SourceReport::Aborted(_)
                | SourceReport::Died
                | SourceReport::Lost(_),
            ) => true,
        }
    }

    /// Whether a cancellation comes too late.
    fn too_late(&self) -> bool {
        match self.driver.source() {
            SideView::Reported(
                SourceReport::Switching { .. }
                | SourceReport::InDoubt { .. }
                | SourceReport::GoSent(_)
                | SourceReport::Released
                | SourceReport::Died,
            ) => true,
            SideView::Unheard
            | SideView::NoSuchMigration
            | SideView::Reported(
                SourceReport::Begun
                | SourceReport::Streaming
                | SourceReport::Stopped { .. }
                | SourceReport::Aborting(_)
                | SourceReport::Aborted(_)
                | SourceReport::Lost(_),
            ) => false,
        }
    }

    /// Whether the guest is stopped for the handover and has not been let run again.
    fn blackout(&self) -> bool {
        self.handing_over()
            && !matches!(
                self.driver.destination(),
                SideView::Reported(DestinationReport::Holding { .. } | DestinationReport::Lost(_))
            )
    }

    /// Whether the last steps are under way, which take milliseconds: no status is written beside them.
    fn handing_over(&self) -> bool {
        match self.driver.source() {
            SideView::Reported(
                SourceReport::Stopped { .. } | SourceReport::Switching { .. } | SourceReport::GoSent(_),
            ) => true,
            SideView::Unheard
            | SideView::NoSuchMigration
            | SideView::Reported(
                SourceReport::Begun
                | SourceReport::Streaming
                | SourceReport::InDoubt { .. }
                | SourceReport::Released
                | SourceReport::Aborting(_)
                | SourceReport::Aborted(_)
                | SourceReport::Died
                | SourceReport::Lost(_),
            ) => false,
        }
    }

    fn publish(&mut self, last: bool) {
        let draft = Draft {
            status: self.book.status.clone(),
            hold: self.handing_over() && !last,
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

fn key_of(effect: &DriverEffect) -> Key {
    match effect {
        DriverEffect::ArmRecord => Key::Arm,
        DriverEffect::Begin => Key::Begin,
        DriverEffect::Prepare => Key::Prepare,
        DriverEffect::Perform(_) => Key::Perform,
        DriverEffect::Ready => Key::Ready,
        DriverEffect::Finish(_) => Key::Finish,
        DriverEffect::AdvanceRecord => Key::Advance,
        DriverEffect::Confirm => Key::Confirm,
        DriverEffect::AbortSource(_) => Key::AbortSource,
        DriverEffect::AbortDestination(_) => Key::AbortDestination,
        DriverEffect::DecideRecord(_) => Key::Decide,
        DriverEffect::Settle => Key::Settle,
    }
}

/// A fault that only a person can mend, if it is one.
fn needs_a_person(fault: &Fault) -> Option<Failed> {
    let reason = Reason::from_word(&fault.reason)?;
    [
        Reason::JournalNewer,
        Reason::JournalDamaged,
        Reason::RecordMissing,
    ]
    .contains(&reason)
    .then(|| failure::refused(fault))
}
