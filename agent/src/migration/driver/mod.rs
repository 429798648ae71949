//! Peer to peer: this agent drives the migrations whose source it is.
//!
//! The controller gives one order ([`Order::Drive`]); from then on the same driver as in managed direct
//! (`godwit_handover::Driver`) runs here, in one task for each migration ([`drive`]). Its own side it orders and hears
//! without a network, the destination over the agent port with this agent's own identity ([`peer`]). The order is
//! kept on disk ([`kept`]), so that a restarted agent goes on driving; what the driver knows is shown to whoever
//! watches the source, so that the status can be complete without the controller having heard the destination.
//!
//! As a destination this agent writes into the guest's record what the record's rules leave to it ([`duty`]).

mod drive;
mod duty;
mod kept;
mod peer;
mod record;
mod silence;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use godwit_handover::{Cause, Refusal, Terms};
use godwit_protocol::{Category, Dial, Drive, Fault, Order, OrderAnswer, Update};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::WatchStream;
use tokio_util::task::AbortOnDropHandle;

use super::faults;
use super::migrations::Migrations;
use super::rim;
use crate::clock::now_micros;
use crate::server::{Roles, Updates};
use crate::state::StateError;
use crate::tickets::Attempt;
use drive::{Assignment, Word};
use kept::{Kept, Shelf, Shown};

pub use record::{RecordKeeper, Unwritten};

/// What a driver works with.
#[derive(Clone)]
pub(super) struct Parts {
    pub(super) migrations: Migrations,
    pub(super) records: Arc<dyn RecordKeeper>,
    pub(super) dial: Arc<dyn Dial>,
}

/// The migrations of this host and the drivers of those that it drives; clones are the same.
#[derive(Clone)]
pub struct Drivers {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    shelf: Shelf,
    table: Mutex<Table>,
    /// Held while a new migration is taken on, so that one order given twice starts one driver.
    admission: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Table {
    seats: HashMap<String, Seat>,
    /// What each driver tells; also of migrations that are only watched so far.
    told: HashMap<String, watch::Sender<Option<Shown>>>,
    /// The duties of this host as a destination.
    duties: HashMap<String, AbortOnDropHandle<()>>,
}

struct Seat {
    terms: Terms,
    words: mpsc::UnboundedSender<Word>,
    _task: AbortOnDropHandle<()>,
}

impl Drivers {
    /// A handle that drives nothing yet: [`Drivers::recover`] comes first, and after [`Migrations::recover`].
    /// `dial` reaches the destinations' agents.
    pub fn new(
        migrations: Migrations,
        records: Arc<dyn RecordKeeper>,
        dial: Arc<dyn Dial>,
        state_directory: &Path,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                parts: Parts {
                    migrations,
                    records,
                    dial,
                },
                shelf: Shelf::at(state_directory.join("drives")),
                table: Mutex::default(),
                admission: tokio::sync::Mutex::default(),
            }),
        }
    }

    /// Goes on driving what was driven before the agent was restarted, and takes up the duties of a destination.
    ///
    /// # Errors
    /// If the directory of the orders cannot be made or read. An order that cannot be read is left where it is; its
    /// migration ends as one does whose driver is silent.
    pub async fn recover(&self) -> Result<(), StateError> {
        let shelf = self.inner.shelf.clone();
        let found = rim::done(&*self.inner.parts.migrations.desk(), move || shelf.take_stock())
            .await
            .map_err(|error| self.inner.shelf.failed("read", error))??;
        for kept in found {
            let migration = kept.terms.migration.clone();
            tracing::info!(
                migration,
                ended = kept.ended(),
                "the order to drive is taken up again"
            );
            self.inner
                .table()
                .told(&migration)
                .send_replace(Some(kept.shown()));
            if !kept.ended() {
                self.inner.start(kept, true);
            }
        }
        for terms in self.inner.parts.migrations.arriving() {
            self.inner.take_duty(terms);
        }
        Ok(())
    }

    /// Where the orders are kept.
    pub fn directory(&self) -> PathBuf {
        self.inner.shelf.directory().to_owned()
    }

    async fn drive(&self, terms: Terms, order: Drive) -> Result<OrderAnswer, Fault> {
        let inner = &self.inner;
        let _admission = inner.admission.lock().await;
        if let Some(seat) = inner.table().seats.get(&terms.migration) {
            if seat.terms != terms {
                return Err(faults::refused(Refusal::OtherTerms));
            }
            // The driver may have ended meanwhile; then nothing is left to be told.
            let _ = seat.words.send(Word::Ticket(order.ticket));
            return Ok(OrderAnswer::Taken);
        }
        if let Some(ended) = inner.table().told(&terms.migration).borrow().as_ref() {
            // It was driven before, and has ended.
            tracing::debug!(migration = terms.migration, ?ended, "driven already");
            return Ok(OrderAnswer::Taken);
        }
        let kept = Kept::new(terms, order);
        let (shelf, copy) = (inner.shelf.clone(), kept.clone());
        let put = move || {
            // Old ends go when new orders come.
            shelf.take_stock()?;
            shelf.put(&copy)
        };
        rim::done(&*inner.parts.migrations.desk(), put)
            .await
            .map_err(|error| Fault::new(Category::Internal, "InternalError", error.to_string()))?
            .map_err(|error| Fault::new(Category::Unavailable, error.reason(), error.to_string()))?;
        inner.start(kept, false);
        Ok(OrderAnswer::Taken)
    }

    /// Tells the driver of this migration that it is to give up; false if there is none.
    fn cancel(&self, terms: &Terms) -> bool {
        let table = self.inner.table();
        let seat = table
            .seats
            .get(&terms.migration)
            .filter(|seat| seat.terms == *terms);
        seat.is_some_and(|seat| seat.words.send(Word::Cancel).is_ok())
    }
}

impl Inner {
    /// Nothing that is done under this lock can panic half-way, so a poisoned lock is still good.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, kept: Kept, recovered: bool) {
        let (words, heard) = mpsc::unbounded_channel();
        let terms = kept.terms.clone();
        let mut table = self.table();
        table.seats.retain(|_, seat| !seat._task.is_finished());
        let told = table.told(&terms.migration);
        let assignment = Assignment {
            parts: self.parts.clone(),
            shelf: self.shelf.clone(),
            kept,
            recovered,
            words: heard,
            told,
        };
        let seat = Seat {
            terms: terms.clone(),
            words,
            _task: AbortOnDropHandle::new(tokio::spawn(drive::drive(assignment))),
        };
        table.seats.insert(terms.migration, seat);
    }

    fn take_duty(&self, terms: Terms) {
        let mut table = self.table();
        table.duties.retain(|_, duty| !duty.is_finished());
        let (parts, migration) = (self.parts.clone(), terms.migration.clone());
        table
            .duties
            .entry(migration)
            .or_insert_with(|| AbortOnDropHandle::new(tokio::spawn(duty::destination(parts, terms))));
    }
}

impl Table {
    /// What the driver of a migration tells. Those that nobody watches and that nobody has driven lately are
    /// forgotten.
    fn told(&mut self, migration: &str) -> watch::Sender<Option<Shown>> {
        let (seats, now) = (&self.seats, now_micros());
        let lately = |shown: &Shown| {
            let ended = shown.driving.ended_at_micros;
            ended.is_none_or(|at| now.saturating_sub(at) <= kept::KEPT_MICROS)
        };
        self.told.retain(|uid, told| {
            told.receiver_count() > 0
                || seats.contains_key(uid)
                || told.borrow().as_ref().is_some_and(lately)
                || uid == migration
        });
        self.told
            .entry(migration.to_owned())
            .or_insert_with(|| watch::Sender::new(None))
            .clone()
    }
}

/// What a watcher of a migration hears: the side's own state, what its driver tells, or that the first has ended.
enum Part {
    Side(Update),
    Driver(Option<Shown>),
    End,
}

#[async_trait]
impl Roles for Drivers {
    async fn order(&self, terms: Terms, order: Order) -> Result<OrderAnswer, Fault> {
        match order {
            Order::Drive(drive) => self.drive(terms, *drive).await,
            // Whatever the driver has begun, it alone ends.
            Order::AbortSource(Cause::Cancelled) if self.cancel(&terms) => Ok(OrderAnswer::Taken),
            Order::Prepare { .. } => {
                let answer = self.inner.parts.migrations.order(&terms, order).await;
                if answer.is_ok() {
                    self.inner.take_duty(terms);
                }
                answer
            }
            Order::Begin { .. }
            | Order::Perform(_)
            | Order::Ready
            | Order::Finish(_)
            | Order::Confirm
            | Order::AbortSource(_)
            | Order::AbortDestination(_)
            | Order::Settle
            | Order::SourceStands(_)
            | Order::ArbitrateSource(_)
            | Order::ArbitrateDestination
            | Order::Retune { .. } => self.inner.parts.migrations.order(&terms, order).await,
        }
    }

    fn watch(&self, migration: &str) -> Updates {
        let side = self.inner.parts.migrations.watch(migration).map(Part::Side);
        let side = side.chain(stream::once(async { Part::End }));
        let driver = WatchStream::new(self.inner.table().told(migration).subscribe()).map(Part::Driver);
        let whole = stream::select(side, driver).scan((None, None), |(side, driver), part| {
            match part {
                Part::Side(update) => *side = Some(update),
                Part::Driver(shown) => *driver = Some(shown),
                Part::End => return std::future::ready(None),
            }
            // Nothing is told before both are known: what only one of them tells would be taken for the whole.
            let update = side.clone().zip(driver.clone());
            let update = update.map(|(update, shown): (Update, Option<Shown>)| {
                let kept = shown.as_ref().and_then(|shown| shown.stopped_at_micros);
                Update {
                    stopped_at_micros: update.stopped_at_micros.or(kept),
                    driving: shown.map(|shown| Box::new(shown.driving)),
                    ..update
                }
            });
            std::future::ready(Some(update))
        });
        Box::pin(whole.filter_map(std::future::ready))
    }

    fn unread(&self, migration: &str) -> Option<Fault> {
        self.inner.parts.migrations.unread(migration)
    }

    async fn keep_alive(&self, terms: Terms, path_proven: bool, silence: Duration) -> Result<(), Fault> {
        self.inner
            .parts
            .migrations
            .keep_alive(&terms, path_proven, silence)
    }

    fn terms(&self, migration: &str) -> Option<Terms> {
        self.inner.parts.migrations.terms(migration)
    }

    fn attempt(&self, migration: &str) -> Attempt {
        self.inner.parts.migrations.attempt(migration)
    }
}
