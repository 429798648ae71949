//! All migrations of this host, behind one handle: [`orders`] go to those that are known, [`admission`] judges new ones,
//! [`recovery`] finds unended ones again after a restart and [`pruning`] forgets old ones. [`table`] is what they share.

mod admission;
mod orders;
mod pruning;
mod recovery;
mod table;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::StreamExt;
use godwit_handover::{Epoch, Terms};
use godwit_protocol::{Fault, Order, OrderAnswer, StreamOptions, Transport, Update};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_stream::wrappers::WatchStream;
use tokio_util::task::AbortOnDropHandle;

use super::custody::{Custody, RecordArbiter};
use super::faults;
use super::journal::{self, JournalError};
use super::native_several::Cable;
use super::rim::{Desk, Rim};
use super::updates::Publisher;
use crate::guest_network::GuestNetwork;
use crate::guests::{Journals, Spoken};
use crate::tickets::Attempt;
use crate::tunnel::Tunnels;
use table::{Entry, Orders, Table};

pub use table::Unresolved;

/// What the migrations need to know about their host.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The host's name.
    pub host: String,
    /// The kernel's boot id.
    pub boot_id: String,
    /// Where journals are kept: `journals` of it.
    pub state_directory: PathBuf,
    /// Where guest memory comes in.
    pub migration_address: IpAddr,
    /// On which ports.
    pub migration_ports: RangeInclusive<u16>,
    /// Whether streams in plain text are refused, whatever is ordered.
    pub refuse_plain_text: bool,
    /// The tunnels of this host; `None`: it serves none.
    pub tunnels: Option<Tunnels>,
    /// What gives hypervisors the migration network for connections of their own.
    pub guest_network: GuestNetwork,
}

/// A handle on the migrations of this host; clones are the same migrations.
#[derive(Clone)]
pub struct Migrations {
    inner: Arc<Inner>,
    /// The orders that are being carried out. They end with the last handle.
    orders: Arc<Mutex<JoinSet<()>>>,
}

struct Inner {
    settings: Settings,
    rim: Rim,
    journals: PathBuf,
    custody: Arc<dyn Custody>,
    records: Arc<dyn RecordArbiter>,
    table: Mutex<Table>,
    /// Held while a new migration is taken on, so that two for one guest cannot pass each other.
    admission: tokio::sync::Mutex<()>,
    pruner: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl Migrations {
    /// A handle that knows no migration yet: [`Migrations::recover`] comes first.
    pub fn new(settings: Settings, custody: Arc<dyn Custody>, records: Arc<dyn RecordArbiter>) -> Self {
        Self::on(Rim::default(), settings, custody, records)
    }

    /// The same on another disk and network than the host's.
    pub fn on(
        rim: Rim,
        settings: Settings,
        custody: Arc<dyn Custody>,
        records: Arc<dyn RecordArbiter>,
    ) -> Self {
        let journals = settings.state_directory.join("journals");
        Self {
            inner: Arc::new(Inner {
                settings,
                rim,
                journals,
                custody,
                records,
                table: Mutex::default(),
                pruner: Mutex::default(),
                admission: tokio::sync::Mutex::default(),
            }),
            orders: Arc::default(),
        }
    }

    /// Takes every migration up again that a journal speaks of. Comes after the guests' recovery and before
    /// anything is served. A guest whose process does not answer is left alone and asked again; one whose journal
    /// cannot be read is left alone until somebody mends that ([`Migrations::unresolved`]).
    ///
    /// # Errors
    /// If the directory of the journals cannot be read.
    pub async fn recover(&self) -> Result<(), JournalError> {
        let inner = &self.inner;
        let paths = journal::list(&inner.journals).map_err(|source| JournalError::System {
            action: "read",
            path: inner.journals.clone(),
            source,
        })?;
        for path in paths {
            inner.clone().take_up(path).await;
        }
        inner.discard_unspoken().await;
        let going_on = |migration: &str| self.attempt(migration) == Attempt::UnderWay;
        if let Some(tunnels) = &inner.settings.tunnels {
            tunnels.tidy(&going_on).await;
        }
        inner.settings.guest_network.tidy(going_on).await;
        let pruner = tokio::spawn(pruning::keep_pruning(Arc::downgrade(inner)));
        inner.prune(crate::clock::now());
        *inner.pruner.lock().unwrap_or_else(PoisonError::into_inner) = Some(AbortOnDropHandle::new(pruner));
        Ok(())
    }

    /// Where what waits for the disk is done.
    pub(super) fn desk(&self) -> Arc<dyn Desk> {
        self.inner.rim.desk.clone()
    }

    /// Migrations that cannot be acted on, for the host's report.
    pub fn unresolved(&self) -> Vec<Unresolved> {
        self.inner.table().unresolved()
    }

    /// What the journals say of guests. It does not keep the migrations alive.
    pub fn journals(&self) -> Arc<dyn Journals> {
        Arc::new(Spokesman(Arc::downgrade(&self.inner)))
    }

    /// The UIDs of migrations that have not ended here.
    pub fn active(&self) -> Vec<String> {
        self.inner.table().active()
    }

    /// The terms of a migration that this host knows.
    pub fn terms(&self, migration: &str) -> Option<Terms> {
        self.inner
            .table()
            .known(migration)
            .map(|entry| entry.terms.clone())
    }

    /// Whether this host has taken a migration on, and whether it has ended here. Ended ones are known for a day,
    /// far longer than a ticket for them can be used.
    pub fn attempt(&self, migration: &str) -> Attempt {
        self.inner.table().attempt(migration)
    }

    /// Why a migration is not followed here until a person has seen to it: its journal cannot be read.
    pub fn unread(&self, migration: &str) -> Option<Fault> {
        self.inner.table().unread(migration)
    }

    /// Whether a guest stands still here for its handover: what can wait does.
    pub fn handing_over(&self) -> bool {
        self.inner.table().handing_over()
    }

    /// The migrations of which this host is the destination, ended ones too.
    pub fn arriving(&self) -> Vec<Terms> {
        self.inner.table().arriving()
    }

    /// Takes one order. The answer says that it was taken, not that it was carried out. Begin is answered once the
    /// journal holds it, and Prepare once the process waits for the guest, so that what this host lacks is a fault
    /// of the order itself.
    ///
    /// It is carried out to its end even if whoever gave it does not wait for the answer, being dead or cut off: an
    /// order that ends half-way leaves a journal, a port or a protected guest that no migration knows, and its
    /// repetition is refused then.
    pub async fn order(&self, terms: &Terms, order: Order) -> Result<OrderAnswer, Fault> {
        let (inner, terms) = (self.inner.clone(), terms.clone());
        let (answer, answered) = oneshot::channel();
        {
            let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
            while orders.try_join_next().is_some() {}
            orders.spawn(async move {
                // Whoever ordered may have gone.
                let _ = answer.send(inner.order(&terms, order).await);
            });
        }
        answered
            .await
            .unwrap_or_else(|_| Err(faults::internal(&"an order was not carried out")))
    }

    /// The whole state of a migration here, at once and at each change. One that this host does not know is shown
    /// without a side, and changes when an order makes it known.
    pub fn watch(&self, migration: &str) -> impl futures::Stream<Item = Update> + Send + use<> {
        let receiver = self
            .inner
            .table()
            .shown(migration, Some(Update::default()))
            .subscribe();
        WatchStream::new(receiver).filter_map(std::future::ready)
    }

    /// The driver of a migration lives.
    ///
    /// # Errors
    /// If this host does not know the migration, or knows it under other terms.
    pub fn keep_alive(&self, terms: &Terms, path_proven: bool, silence: Duration) -> Result<(), Fault> {
        self.inner.keep_alive(terms, path_proven, silence)
    }
}

/// Says of which guests the journals speak.
struct Spokesman(Weak<Inner>);

impl Journals for Spokesman {
    fn speak_of(&self, guest: &str) -> Spoken {
        let busy = self.0.upgrade().and_then(|inner| inner.table().busy(guest));
        busy.map_or(Spoken::Nothing, |busy| busy.spoken())
    }

    fn handed_on(&self, guest: &str) -> Option<Epoch> {
        self.0.upgrade()?.table().handed_on(guest)
    }
}

impl Inner {
    /// Nothing that is done under this lock can panic half-way, so a poisoned lock is still good.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tunnels, if a stream travels through one.
    fn tunnel(&self, stream: StreamOptions) -> Option<Tunnels> {
        match stream.transport {
            Transport::Native => None,
            Transport::Tunnelled => self.settings.tunnels.clone(),
        }
    }

    /// The migration network, if the hypervisors make a stream's connections themselves.
    fn cable(&self, stream: StreamOptions) -> Option<Cable> {
        let themselves = stream.transport == Transport::Native && stream.connections > 1;
        themselves.then(|| Cable {
            network: self.settings.guest_network.clone(),
            own: self.settings.migration_address,
        })
    }

    fn publisher(&self, terms: &Terms) -> Publisher {
        Publisher::new(self.table().shown(&terms.migration, None))
    }

    fn know(
        &self,
        terms: &Terms,
        orders: Orders,
        over: Arc<AtomicBool>,
        definition: Option<Vec<u8>>,
        task: tokio::task::JoinHandle<()>,
    ) {
        let entry = Entry {
            terms: terms.clone(),
            orders,
            over,
            definition,
            _task: AbortOnDropHandle::new(task),
        };
        self.table().know(entry);
    }
}
