//! All migrations of this host: takes orders on, finds unended ones again after a restart, forgets old ones.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use godwit_handover::{
    Destination, DestinationEntry, DestinationEvent, DestinationFacts, Refusal, Source, SourceEntry,
    SourceEvent, SourceFacts, Step, StreamFact, Terms, Wanted,
};
use godwit_protocol::{Category, Fault, GuestName, Order, OrderAnswer, StreamOptions, Transport, Update};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::WatchStream;
use tokio_util::task::AbortOnDropHandle;

use super::channel::{ChannelError, Door};
use super::custody::{Custody, Records};
use super::destination::{self, Arrival, DestinationStart};
use super::faults;
use super::gateway::Gateway;
use super::journal::{self, Head, Journal, JournalError, Reopened, Role};
use super::native_several::{Cable, Entrance};
use super::observation;
use super::options;
use super::source::{self, Message, SourceStart};
use super::updates::{Publisher, Shown};
use crate::guest_network::GuestNetwork;
use crate::guests::{Definition, GuestError, GuestIdentity, Held, Journals, Spoken};
use crate::hypervisor::{HypervisorError, RunState};
use crate::tickets::Attempt;
use crate::tunnel::Tunnels;

/// How long an ended migration's journal is kept: until then a repeated order about it does nothing.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// How often ended journals are looked through.
const BETWEEN_PRUNES: Duration = Duration::from_secs(3600);
/// How long an order waits for what it is answered with; less than the caller waits. After it the order counts as
/// taken, and the watch tells how it goes on.
const ANSWER_DEADLINE: Duration = Duration::from_secs(4);
/// How long an order waits for the guest's last migration to tidy up; together with the above less than the caller
/// waits in the usual case, and a repetition does no harm in the other.
const TIDYING: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

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

/// A migration whose journal, or whose guest, cannot be acted on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// The migration's UID, as far as the file's name or its head tells it.
    pub migration: String,
    /// The guest's UID, if it can be known. It is left alone.
    pub guest: Option<String>,
    /// A stable word of the table in `docs/conditions.md`.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// A handle on the migrations of this host; clones are the same migrations.
#[derive(Clone)]
pub struct Migrations {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    journals: PathBuf,
    custody: Arc<dyn Custody>,
    records: Arc<dyn Records>,
    table: Mutex<Table>,
    /// Held while a new migration is taken on, so that two for one guest cannot pass each other.
    admission: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Table {
    known: HashMap<String, Entry>,
    unresolved: HashMap<String, Unresolved>,
    shown: HashMap<String, watch::Sender<Shown>>,
    pruner: Option<AbortOnDropHandle<()>>,
}

struct Entry {
    terms: Terms,
    orders: Orders,
    over: Arc<AtomicBool>,
    /// The source's, for a repeated Begin.
    definition: Option<Vec<u8>>,
    /// Ends with the entry: a migration lives as long as the agent does.
    _task: AbortOnDropHandle<()>,
}

#[derive(Clone)]
enum Orders {
    Source(mpsc::UnboundedSender<Message<SourceEvent>>),
    Destination(mpsc::UnboundedSender<Message<DestinationEvent>>),
}

impl Migrations {
    /// A handle that knows no migration yet: [`Migrations::recover`] comes first.
    pub fn new(settings: Settings, custody: Arc<dyn Custody>, records: Arc<dyn Records>) -> Self {
        let journals = settings.state_directory.join("journals");
        Self {
            inner: Arc::new(Inner {
                settings,
                journals,
                custody,
                records,
                table: Mutex::default(),
                admission: tokio::sync::Mutex::default(),
            }),
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
            tunnels.tidy(going_on).await;
        }
        inner.settings.guest_network.tidy(going_on).await;
        let weak = Arc::downgrade(inner);
        let pruner = tokio::spawn(async move {
            loop {
                sleep(BETWEEN_PRUNES).await;
                match weak.upgrade() {
                    Some(inner) => inner.prune(SystemTime::now()),
                    None => return,
                }
            }
        });
        inner.prune(SystemTime::now());
        inner.table().pruner = Some(AbortOnDropHandle::new(pruner));
        Ok(())
    }

    /// Migrations that cannot be acted on, for the host's report.
    pub fn unresolved(&self) -> Vec<Unresolved> {
        self.inner.table().unresolved.values().cloned().collect()
    }

    /// What the journals say of guests. It does not keep the migrations alive.
    pub fn journals(&self) -> Arc<dyn Journals> {
        Arc::new(Spokesman(Arc::downgrade(&self.inner)))
    }

    /// The UIDs of migrations that have not ended here.
    pub fn active(&self) -> Vec<String> {
        let table = self.inner.table();
        let active = table.known.iter().filter(|(_, entry)| !entry.is_over());
        active.map(|(migration, _)| migration.clone()).collect()
    }

    /// The terms of a migration that this host knows.
    pub fn terms(&self, migration: &str) -> Option<Terms> {
        let table = self.inner.table();
        table.known.get(migration).map(|entry| entry.terms.clone())
    }

    /// Whether this host has taken a migration on, and whether it has ended here. Ended ones are known for a day,
    /// far longer than a ticket for them can be used.
    pub fn attempt(&self, migration: &str) -> Attempt {
        let table = self.inner.table();
        match table.known.get(migration) {
            Some(entry) if entry.is_over() => Attempt::Ended,
            Some(_) => Attempt::UnderWay,
            None if table.unresolved.contains_key(migration) => Attempt::UnderWay,
            None => Attempt::Unknown,
        }
    }

    /// The migrations of which this host is the destination, ended ones too.
    pub fn arriving(&self) -> Vec<Terms> {
        let table = self.inner.table();
        let mut arriving = Vec::new();
        for entry in table.known.values() {
            match entry.orders {
                Orders::Destination(_) => arriving.push(entry.terms.clone()),
                Orders::Source(_) => {}
            }
        }
        arriving
    }

    /// Takes one order. The answer says that it was taken, not that it was carried out. Begin is answered once the
    /// journal holds it, and Prepare once the process waits for the guest, so that what this host lacks is a fault
    /// of the order itself.
    pub async fn order(&self, terms: &Terms, order: Order) -> Result<OrderAnswer, Fault> {
        let inner = &self.inner;
        match order {
            Order::Begin { max_downtime, stream } => inner.begin(terms, max_downtime, stream).await,
            Order::Prepare {
                guest,
                definition,
                stream,
                // Judged before, where the caller is known.
                ticket: _,
            } => inner.prepare(terms, guest, &definition, stream).await,
            Order::Perform(channel) => inner.to_source(terms, SourceEvent::Perform(channel)).await,
            Order::Ready => inner.to_source(terms, SourceEvent::Ready).await,
            Order::Confirm => inner.to_source(terms, SourceEvent::Confirm).await,
            Order::Settle => inner.to_source(terms, SourceEvent::Settle).await,
            Order::AbortSource(cause) => inner.to_source(terms, SourceEvent::Abort(cause)).await,
            Order::Retune { bandwidth } => inner.retune(terms, bandwidth),
            // Of the drivers' concern ([`super::Drivers`]); a side by itself drives nothing.
            Order::Drive(_) => Err(internal(&"a side was ordered to drive")),
            Order::Finish(go) => inner.to_destination(terms, DestinationEvent::Finish(go)).await,
            Order::AbortDestination(cause) => {
                inner.to_destination(terms, DestinationEvent::Abort(cause)).await
            }
        }
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
        let sent = match self.inner.find(terms)? {
            Orders::Source(orders) => orders.send(Message::KeepAlive { path_proven, silence }).is_ok(),
            Orders::Destination(orders) => orders.send(Message::KeepAlive { path_proven, silence }).is_ok(),
        };
        if sent {
            Ok(())
        } else {
            Err(faults::unknown(&terms.migration))
        }
    }
}

/// Says of which guests the journals speak.
struct Spokesman(Weak<Inner>);

impl Journals for Spokesman {
    fn speak_of(&self, guest: &str) -> Spoken {
        match self.0.upgrade().and_then(|inner| inner.busy(guest)) {
            None => Spoken::Nothing,
            Some(Busy::Active(_)) => Spoken::Unended,
            Some(Busy::Unresolved(unresolved)) => match unresolved.reason.as_str() {
                "JournalNewer" => Spoken::Unread {
                    newer: true,
                    message: unresolved.message,
                },
                "JournalDamaged" => Spoken::Unread {
                    newer: false,
                    message: unresolved.message,
                },
                // It is asked again, and its migration protects it meanwhile.
                _ => Spoken::Unended,
            },
        }
    }
}

impl Entry {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

impl Table {
    /// What watchers of a migration see. Those that nobody watches and that are not known are forgotten.
    fn shown(&mut self, migration: &str, at_first: Shown) -> watch::Sender<Shown> {
        let (known, unresolved) = (&self.known, &self.unresolved);
        self.shown.retain(|uid, sender| {
            sender.receiver_count() > 0
                || known.contains_key(uid)
                || unresolved.contains_key(uid)
                || uid == migration
        });
        self.shown
            .entry(migration.to_owned())
            .or_insert_with(|| watch::Sender::new(at_first))
            .clone()
    }
}

/// Which migration holds a guest that another one wants.
enum Busy {
    Active(String),
    Unresolved(Unresolved),
}

impl Inner {
    /// Nothing that is done under this lock can panic half-way, so a poisoned lock is still good.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where orders about this migration go.
    fn find(&self, terms: &Terms) -> Result<Orders, Fault> {
        let table = self.table();
        if let Some(entry) = table.known.get(&terms.migration) {
            return if entry.terms == *terms {
                Ok(entry.orders.clone())
            } else {
                Err(faults::refused(Refusal::OtherTerms))
            };
        }
        match table.unresolved.get(&terms.migration) {
            Some(unresolved) => Err(unresolved.fault()),
            None => Err(faults::unknown(&terms.migration)),
        }
    }

    async fn to_source(&self, terms: &Terms, event: SourceEvent) -> Result<OrderAnswer, Fault> {
        match self.find(terms)? {
            Orders::Source(orders) => deliver(&orders, event, terms).await,
            Orders::Destination(_) => Err(faults::refused(Refusal::OtherTerms)),
        }
    }

    /// Another limit for a stream. It has no effect where nothing is limited any more.
    fn retune(&self, terms: &Terms, bandwidth: u64) -> Result<OrderAnswer, Fault> {
        match self.find(terms)? {
            Orders::Source(orders) => orders
                .send(Message::Retune { bandwidth })
                .map(|()| OrderAnswer::Taken)
                .map_err(|_| faults::unknown(&terms.migration)),
            Orders::Destination(_) => Err(faults::refused(Refusal::OtherTerms)),
        }
    }

    async fn to_destination(&self, terms: &Terms, event: DestinationEvent) -> Result<OrderAnswer, Fault> {
        match self.find(terms)? {
            Orders::Destination(orders) => deliver(&orders, event, terms).await,
            Orders::Source(_) => Err(faults::refused(Refusal::OtherTerms)),
        }
    }

    fn busy(&self, guest: &str) -> Option<Busy> {
        let table = self.table();
        let unresolved = table
            .unresolved
            .values()
            .find(|u| u.guest.as_deref() == Some(guest));
        if let Some(unresolved) = unresolved {
            return Some(Busy::Unresolved(unresolved.clone()));
        }
        let active = table
            .known
            .values()
            .find(|entry| entry.terms.guest == guest && !entry.is_over());
        active.map(|entry| Busy::Active(entry.terms.migration.clone()))
    }

    fn check_free(&self, guest: &str) -> Result<(), Fault> {
        match self.busy(guest) {
            None => Ok(()),
            Some(Busy::Active(migration)) => Err(faults::another(&migration)),
            Some(Busy::Unresolved(unresolved)) => Err(unresolved.fault()),
        }
    }

    fn head(&self, terms: &Terms, role: Role, stream: StreamOptions) -> Head {
        Head {
            migration: terms.migration.clone(),
            guest: terms.guest.clone(),
            role,
            boot_id: self.settings.boot_id.clone(),
            stream,
        }
    }

    async fn create_journal(&self, head: Head) -> Result<Journal, Fault> {
        let directory = self.journals.clone();
        let created = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&directory).map_err(|source| JournalError::System {
                action: "make",
                path: directory.clone(),
                source,
            })?;
            Journal::create(&directory, &head)
        });
        match created.await {
            Ok(created) => created.map_err(|error| faults::journal(&error)),
            Err(error) => Err(internal(&error)),
        }
    }

    /// An order of a later epoch proves that the guest's last migration was decided: what this host still has to
    /// tidy up after it is waited for, not refused.
    async fn let_last_one_end(&self, terms: &Terms) {
        let ending = || {
            let table = self.table();
            let mut of_guest = table
                .known
                .values()
                .filter(|entry| entry.terms.guest == terms.guest);
            of_guest.any(|entry| !entry.is_over() && entry.terms.epoch < terms.epoch)
        };
        let deadline = Instant::now() + TIDYING;
        while ending() && Instant::now() < deadline {
            sleep(LOOK_AGAIN).await;
        }
    }

    async fn begin(
        self: &Arc<Self>,
        terms: &Terms,
        max_downtime: Duration,
        stream: StreamOptions,
    ) -> Result<OrderAnswer, Fault> {
        self.let_last_one_end(terms).await;
        let admission = self.admission.lock().await;
        let known = self
            .table()
            .known
            .get(&terms.migration)
            .map(|entry| entry.definition.clone());
        match known {
            Some(definition) => {
                drop(admission);
                self.to_source(terms, SourceEvent::Begin(terms.clone())).await?;
                let definition = definition.ok_or_else(|| faults::refused(Refusal::Ended))?;
                return Ok(OrderAnswer::Begun { definition });
            }
            None => self.check_free(&terms.guest)?,
        }
        if let Some(unresolved) = self.table().unresolved.get(&terms.migration) {
            return Err(unresolved.fault());
        }
        self.check_party(&terms.source)?;
        self.check_stream(stream, Role::Source)?;
        let gates = self.custody.gates().ok_or_else(no_hypervisor)?;
        let held = self.custody.protect(terms).await?;
        let begun = self
            .begin_protected(terms, max_downtime, stream, gates, &held)
            .await;
        let waits = match begun {
            Ok(waits) => waits,
            Err(fault) => {
                self.custody.unprotect(terms).await;
                return Err(fault);
            }
        };
        drop(admission);
        if let Ok(Ok(false) | Err(_)) = timeout(ANSWER_DEADLINE, waits).await {
            return Err(Fault::new(
                Category::Unavailable,
                "DiskFull",
                "The agent could not write its journal; look at its state directory",
            ));
        }
        Ok(OrderAnswer::Begun {
            definition: held.definition.json().to_vec(),
        })
    }

    async fn begin_protected(
        self: &Arc<Self>,
        terms: &Terms,
        max_downtime: Duration,
        stream: StreamOptions,
        gates: godwit_handover::Gates,
        held: &Held,
    ) -> Result<oneshot::Receiver<bool>, Fault> {
        let run = held.guest.run_state().await.map_err(GuestError::Hypervisor)?;
        let wanted = if run == RunState::Running {
            Wanted::Run
        } else {
            Wanted::StayStopped
        };
        let (machine, first) =
            Source::begin(terms.clone(), gates, max_downtime, wanted).map_err(faults::refused)?;
        let journal = self
            .create_journal(self.head(terms, Role::Source, stream))
            .await?;
        let (begun, waits) = oneshot::channel();
        let (orders, mailbox) = mpsc::unbounded_channel();
        let over = Arc::new(AtomicBool::new(false));
        let start = SourceStart {
            machine,
            first,
            stream,
            tunnel: self.tunnel(stream),
            cable: self.cable(stream),
            guest: Some(held.guest.clone()),
            custody: self.custody.clone(),
            records: self.records.clone(),
            journal: Some(journal),
            publisher: self.publisher(terms),
            mailbox,
            recovered: false,
            over: over.clone(),
            begun: Some(begun),
        };
        let task = tokio::spawn(source::run(start));
        let definition = Some(held.definition.json().to_vec());
        self.know(terms, Orders::Source(orders), over, definition, task);
        Ok(waits)
    }

    async fn prepare(
        self: &Arc<Self>,
        terms: &Terms,
        guest: GuestName,
        definition: &[u8],
        stream: StreamOptions,
    ) -> Result<OrderAnswer, Fault> {
        self.let_last_one_end(terms).await;
        let admission = self.admission.lock().await;
        let known = self.table().known.contains_key(&terms.migration);
        if known {
            drop(admission);
            return self
                .to_destination(terms, DestinationEvent::Prepare(terms.clone()))
                .await;
        }
        self.check_free(&terms.guest)?;
        if let Some(unresolved) = self.table().unresolved.get(&terms.migration) {
            return Err(unresolved.fault());
        }
        self.check_party(&terms.destination)?;
        self.check_stream(stream, Role::Destination)?;
        let gates = self.custody.gates().ok_or_else(no_hypervisor)?;
        let definition = Definition::parse(definition)
            .map_err(|error| GuestError::DefinitionRefused(error.to_string()))?;
        let (machine, first) = Destination::prepare(terms.clone(), gates).map_err(faults::refused)?;
        let gateway = self
            .gateway(terms, stream)
            .await
            .map_err(|error| faults::channel(&error))?;
        let tunnel = self.tunnel(stream);
        let head = self.head(terms, Role::Destination, stream);
        let journal = match self.create_journal(head).await {
            Ok(journal) => journal,
            Err(fault) => {
                if let Some(tunnel) = tunnel {
                    tunnel.close(&terms.migration, None).await;
                }
                return Err(fault);
            }
        };
        let (launched, waits) = oneshot::channel();
        let (orders, mailbox) = mpsc::unbounded_channel();
        let over = Arc::new(AtomicBool::new(false));
        let identity = GuestIdentity {
            uid: guest.uid,
            namespace: guest.namespace,
            name: guest.name,
        };
        let start = DestinationStart {
            machine,
            first,
            arrival: Some(Arrival {
                identity,
                definition,
                gateway,
                launched,
            }),
            tunnel,
            cable: self.cable(stream),
            guest: None,
            custody: self.custody.clone(),
            journal: Some(journal),
            publisher: self.publisher(terms),
            mailbox,
            recovered: false,
            over: over.clone(),
        };
        let task = tokio::spawn(destination::run(start));
        self.know(terms, Orders::Destination(orders), over, None, task);
        drop(admission);
        match timeout(ANSWER_DEADLINE, waits).await {
            Ok(Ok(Ok(()))) => Ok(OrderAnswer::Taken),
            Ok(Ok(Err(fault))) => Err(fault),
            // Given up before it was launched.
            Ok(Err(_)) => Err(faults::refused(Refusal::Ended)),
            // It goes on; the watch tells how.
            Err(_) => Ok(OrderAnswer::Taken),
        }
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

    /// Where a stream is to come in.
    async fn gateway(&self, terms: &Terms, stream: StreamOptions) -> Result<Gateway, ChannelError> {
        if let Some(tunnel) = self.tunnel(stream) {
            let door = tunnel
                .expect(&terms.migration, &terms.source, stream.connections)
                .await?;
            return Ok(Gateway::Tunnel(door));
        }
        let (settings, migration) = (&self.settings, &terms.migration);
        let ports = settings.migration_ports.clone();
        if let Some(cable) = self.cable(stream) {
            let entrance = Entrance::reserve(cable, migration, ports, stream)?;
            return Ok(Gateway::Several(Box::new(entrance)));
        }
        Door::open(settings.migration_address, ports, migration, stream.encrypted).map(Gateway::Native)
    }

    /// Whether this host lets a stream travel in this way, and can.
    fn check_stream(&self, stream: StreamOptions, role: Role) -> Result<(), Fault> {
        let abilities = self.custody.streams().ok_or_else(no_hypervisor)?;
        let settings = &self.settings;
        let host = options::Host {
            tunnels: settings.tunnels.is_some(),
            network: settings.guest_network.served(),
            address: settings.migration_address,
            sends: role == Role::Source,
            refuse_plain_text: settings.refuse_plain_text,
        };
        options::judge(stream, abilities, host)
    }

    fn check_party(&self, named: &str) -> Result<(), Fault> {
        if named == self.settings.host {
            return Ok(());
        }
        let message = format!(
            "The order is for host {named:?}, and this is {:?}",
            self.settings.host
        );
        Err(Fault::new(Category::Forbidden, "NotAllowed", message))
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
        let mut table = self.table();
        table.unresolved.remove(&terms.migration);
        table.known.insert(terms.migration.clone(), entry);
    }

    /// Takes a migration up again, or notes why not; what may change by itself is tried again.
    async fn take_up(self: Arc<Self>, path: PathBuf) {
        let Some(unresolved) = self.try_take_up(&path).await else {
            return;
        };
        tracing::warn!(
            migration = %unresolved.what.migration,
            reason = %unresolved.what.reason,
            "a migration is not taken up: {}",
            unresolved.what.message
        );
        let migration = unresolved.what.migration.clone();
        {
            let mut table = self.table();
            // Nothing is known yet, which is not the same as knowing nothing.
            table.shown(&migration, None);
            table.unresolved.insert(migration, unresolved.what);
        }
        if !unresolved.again {
            return;
        }
        let weak = Arc::downgrade(&self);
        tokio::spawn(async move {
            let mut pause = Duration::from_millis(100);
            loop {
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(2));
                let Some(inner) = weak.upgrade() else { return };
                match inner.try_take_up(&path).await {
                    None => return,
                    Some(left) => {
                        let again = left.again;
                        inner
                            .table()
                            .unresolved
                            .insert(left.what.migration.clone(), left.what);
                        if !again {
                            return;
                        }
                    }
                }
            }
        });
    }

    /// `None` once the migration is taken up.
    async fn try_take_up(self: &Arc<Self>, path: &Path) -> Option<Left> {
        let outcome = match journal::head(path) {
            Ok(head) => match head.role {
                Role::Source => match journal::reopen::<SourceEntry>(path) {
                    Ok(reopened) => self.take_up_source(reopened).await,
                    Err(error) => Err(Left::by_journal(path, &error)),
                },
                Role::Destination => match journal::reopen::<DestinationEntry>(path) {
                    Ok(reopened) => self.take_up_destination(reopened).await,
                    Err(error) => Err(Left::by_journal(path, &error)),
                },
            },
            Err(error) => Err(Left::by_journal(path, &error)),
        };
        outcome.err()
    }

    async fn take_up_source(self: &Arc<Self>, reopened: Reopened<SourceEntry>) -> Result<(), Left> {
        let Reopened {
            head,
            entries,
            ended,
            journal,
        } = reopened;
        // A journal without a line: the migration was never answered for.
        let Some(SourceEntry::Begun { terms, .. }) = entries.first().cloned() else {
            return self.forget_unbegun(&head, entries.is_empty());
        };
        let last = entries.last();
        let at_rest = ended || matches!(last, Some(SourceEntry::Aborted { .. } | SourceEntry::Lost { .. }));
        let (guest, definition, facts) = if at_rest {
            (None, None, SourceFacts::Gone)
        } else {
            let handed_over = entries.iter().any(|e| matches!(e, SourceEntry::GoSent(_)));
            let held = match self.custody.find_leaving(&terms).await {
                Ok(held) => held,
                // Forgotten after it was let go of.
                Err(GuestError::NotHere { .. }) if handed_over => None,
                // It was let go of, and has come back since.
                Err(GuestError::StaleEpoch { .. }) if last == Some(&SourceEntry::Released) => None,
                Err(error) => return Err(Left::by_guest(&head, &error)),
            };
            match held {
                None => (None, None, SourceFacts::Gone),
                Some(held) => {
                    let (running, stream) = look(&held).await.map_err(|e| Left::by_guest(&head, &e))?;
                    let definition = held.definition.json().to_vec();
                    (
                        Some(held.guest),
                        Some(definition),
                        SourceFacts::Alive { running, stream },
                    )
                }
            }
        };
        let gates = self
            .custody
            .gates()
            .ok_or_else(|| Left::by_fault(&head, &no_hypervisor(), true))?;
        let (machine, first) = Source::recover(&entries, gates, facts)
            .ok_or_else(|| Left::by_fault(&head, &unreadable("its lines contradict each other"), false))?;
        tracing::info!(migration = %terms.migration, report = ?machine.report(), ended, "the source's side is taken up again");
        let (orders, mailbox) = mpsc::unbounded_channel();
        let over = Arc::new(AtomicBool::new(ended));
        let start = SourceStart {
            machine,
            first: if ended { nothing() } else { first },
            stream: head.stream,
            tunnel: self.tunnel(head.stream),
            cable: self.cable(head.stream),
            guest,
            custody: self.custody.clone(),
            records: self.records.clone(),
            journal: (!ended).then_some(journal),
            publisher: self.publisher(&terms),
            mailbox,
            recovered: true,
            over: over.clone(),
            begun: None,
        };
        let task = tokio::spawn(source::run(start));
        self.know(&terms, Orders::Source(orders), over, definition, task);
        Ok(())
    }

    async fn take_up_destination(self: &Arc<Self>, reopened: Reopened<DestinationEntry>) -> Result<(), Left> {
        let Reopened {
            head,
            entries,
            ended,
            journal,
        } = reopened;
        let Some(DestinationEntry::Prepared { terms }) = entries.first().cloned() else {
            return self.forget_unbegun(&head, entries.is_empty());
        };
        let (guest, facts) = if ended {
            // What became of the guest since is not this migration's business.
            (
                None,
                DestinationFacts::Alive {
                    running: true,
                    stream: StreamFact::Completed,
                },
            )
        } else {
            match self.custody.find_arriving(&terms).await {
                Ok(None) => (None, DestinationFacts::Gone),
                Ok(Some(held)) => {
                    let (running, stream) = look(&held).await.map_err(|e| Left::by_guest(&head, &e))?;
                    (Some(held.guest), DestinationFacts::Alive { running, stream })
                }
                Err(error) => return Err(Left::by_guest(&head, &error)),
            }
        };
        let gates = self
            .custody
            .gates()
            .ok_or_else(|| Left::by_fault(&head, &no_hypervisor(), true))?;
        let (machine, first) = Destination::recover(&entries, gates, facts)
            .ok_or_else(|| Left::by_fault(&head, &unreadable("its lines contradict each other"), false))?;
        tracing::info!(migration = %terms.migration, report = ?machine.report(), ended, "the destination's side is taken up again");
        let (orders, mailbox) = mpsc::unbounded_channel();
        let over = Arc::new(AtomicBool::new(ended));
        let start = DestinationStart {
            machine,
            first: if ended { nothing() } else { first },
            arrival: None,
            tunnel: self.tunnel(head.stream),
            cable: self.cable(head.stream),
            guest,
            custody: self.custody.clone(),
            journal: (!ended).then_some(journal),
            publisher: self.publisher(&terms),
            mailbox,
            recovered: true,
            over: over.clone(),
        };
        let task = tokio::spawn(destination::run(start));
        self.know(&terms, Orders::Destination(orders), over, None, task);
        Ok(())
    }

    /// A journal whose first line was never answered for: nothing was promised and nothing begun.
    fn forget_unbegun(&self, head: &Head, empty: bool) -> Result<(), Left> {
        if !empty {
            return Err(Left::by_fault(
                head,
                &unreadable("it does not begin with a beginning"),
                false,
            ));
        }
        journal::remove(&Journal::path_of(&self.journals, &head.migration)).map_err(|error| {
            let fault = Fault::new(
                Category::Unavailable,
                "DiskFull",
                format!("Removing a journal: {error}"),
            );
            Left::by_fault(head, &fault, true)
        })
    }

    /// Processes that wait for a guest under a migration of which no journal speaks. One that has not got its guest
    /// whole is given up: nothing is lost with it. One that has is left alone: that a journal is missing is no
    /// evidence against what may be the only copy.
    async fn discard_unspoken(&self) {
        for terms in self.custody.arriving() {
            let spoken_of = {
                let table = self.table();
                table.known.contains_key(&terms.migration) || table.unresolved.contains_key(&terms.migration)
            };
            if spoken_of {
                continue;
            }
            let Err(error) = self.discard_incomplete(&terms).await else {
                continue;
            };
            tracing::warn!(guest = %terms.guest, %error, "a process that no journal speaks of is left");
            let unresolved = Unresolved {
                migration: terms.migration.clone(),
                guest: Some(terms.guest.clone()),
                reason: "JournalDamaged".into(),
                message: format!("The journal of migration {} is missing: {error}", terms.migration),
            };
            let mut table = self.table();
            table.shown(&terms.migration, None);
            table.unresolved.insert(terms.migration.clone(), unresolved);
        }
    }

    async fn discard_incomplete(&self, terms: &Terms) -> Result<(), GuestError> {
        if let Some(held) = self.custody.find_arriving(terms).await? {
            match look(&held).await? {
                (
                    false,
                    StreamFact::None | StreamFact::Active | StreamFact::Failed | StreamFact::Cancelled,
                ) => {}
                (true, _)
                | (false, StreamFact::BeforeSwitchover | StreamFact::SwitchingOver | StreamFact::Completed) =>
                {
                    return Err(GuestError::Conflict(format!(
                        "this host may have the only copy of guest {}",
                        terms.guest
                    )));
                }
            }
        }
        self.custody.discard_incoming(terms).await
    }

    /// Forgets migrations that have ended long ago.
    fn prune(&self, now: SystemTime) {
        let ended: Vec<String> = {
            let table = self.table();
            table
                .known
                .iter()
                .filter(|(_, e)| e.is_over())
                .map(|(uid, _)| uid.clone())
                .collect()
        };
        for migration in ended {
            let path = Journal::path_of(&self.journals, &migration);
            let age = std::fs::metadata(&path)
                .and_then(|data| data.modified())
                .ok()
                .and_then(|written| now.duration_since(written).ok());
            if age.is_some_and(|age| age > KEPT) {
                match journal::remove(&path) {
                    Ok(()) => {
                        let mut table = self.table();
                        table.known.remove(&migration);
                        table.shown.remove(&migration);
                    }
                    Err(error) => tracing::warn!(%error, path = %path.display(), "an old journal stays"),
                }
            }
        }
    }
}

/// Why a migration was not taken up.
struct Left {
    what: Unresolved,
    /// Whether it may change by itself.
    again: bool,
}

impl Left {
    fn by_journal(path: &Path, error: &JournalError) -> Self {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let head = match error {
            JournalError::Newer { head, .. } => Some(head),
            JournalError::Damaged { head, .. } => head.as_ref(),
            JournalError::Foreign { .. }
            | JournalError::DiskFull { .. }
            | JournalError::Broken { .. }
            | JournalError::Full { .. }
            | JournalError::System { .. } => None,
        };
        let what = Unresolved {
            migration: name.strip_suffix(journal::SUFFIX).unwrap_or(name).to_owned(),
            guest: head.map(|head| head.guest.clone()),
            reason: faults::journal_reason(error).to_owned(),
            message: error.to_string(),
        };
        Self {
            what,
            again: matches!(error, JournalError::System { .. }),
        }
    }

    fn by_fault(head: &Head, fault: &Fault, again: bool) -> Self {
        let what = Unresolved {
            migration: head.migration.clone(),
            guest: Some(head.guest.clone()),
            reason: fault.reason.clone().into_owned(),
            message: fault.message.clone(),
        };
        Self { what, again }
    }

    fn by_guest(head: &Head, error: &GuestError) -> Self {
        let fault = Fault::new(Category::Unavailable, error.reason(), error.to_string());
        Self::by_fault(head, &fault, true)
    }
}

impl Unresolved {
    fn fault(&self) -> Fault {
        Fault::new(Category::Unavailable, self.reason.clone(), self.message.clone())
    }
}

async fn look(held: &Held) -> Result<(bool, StreamFact), GuestError> {
    let ask = async {
        let status = held.guest.stream().await?;
        Ok((
            held.guest.run_state().await? == RunState::Running,
            observation::fact(status.state),
        ))
    };
    ask.await
        .map_err(|error: HypervisorError| GuestError::Hypervisor(error))
}

async fn deliver<E>(
    orders: &mpsc::UnboundedSender<Message<E>>,
    event: E,
    terms: &Terms,
) -> Result<OrderAnswer, Fault> {
    let (reply, answer) = oneshot::channel();
    let gone = || faults::unknown(&terms.migration);
    orders.send(Message::Order(event, reply)).map_err(|_| gone())?;
    match answer.await.map_err(|_| gone())? {
        Ok(()) => Ok(OrderAnswer::Taken),
        Err(refusal) => Err(faults::refused(refusal)),
    }
}

fn nothing<E>() -> Step<E> {
    Step {
        effects: Vec::new(),
        refusal: None,
    }
}

fn no_hypervisor() -> Fault {
    Fault::new(
        Category::Unavailable,
        "HypervisorUnavailable",
        "No hypervisor works on this host",
    )
}

fn unreadable(why: &str) -> Fault {
    Fault::new(
        Category::Unavailable,
        "JournalDamaged",
        format!("The migration's journal is damaged: {why}"),
    )
}

fn internal(error: &impl ToString) -> Fault {
    Fault::new(Category::Internal, "InternalError", error.to_string())
}
