//! New migrations: whether this host takes one on, and what it needs for that.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use godwit_handover::{Destination, DestinationEvent, Gates, Refusal, Source, SourceEvent, Terms, Wanted};
use godwit_protocol::{Category, Fault, GuestName, OrderAnswer, StreamOptions};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::Inner;
use super::table::Orders;
use crate::guests::{Definition, GuestError, GuestIdentity, Held};
use crate::hypervisor::RunState;
use crate::migration::channel::{ChannelError, Door};
use crate::migration::destination::{self, Arrival, DestinationStart};
use crate::migration::faults;
use crate::migration::gateway::Gateway;
use crate::migration::journal::{Head, Journal, JournalError, Role};
use crate::migration::native_several::Entrance;
use crate::migration::options;
use crate::migration::rim;
use crate::migration::source::{self, SourceStart};

/// How long an order waits for what it is answered with; less than the caller waits. After it the order counts as
/// taken, and the watch tells how it goes on.
const ANSWER_DEADLINE: Duration = Duration::from_secs(4);
/// How long an order waits for the guest's last migration to tidy up; together with the above less than the caller
/// waits in the usual case, and a repetition does no harm in the other.
const TIDYING: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

impl Inner {
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
        let created = rim::done(&*self.rim.desk, move || {
            std::fs::create_dir_all(&directory).map_err(|source| JournalError::System {
                action: "make",
                path: directory.clone(),
                source,
            })?;
            Journal::create(&directory, &head)
        });
        match created.await {
            Ok(created) => created.map_err(|error| faults::journal(&error)),
            Err(error) => Err(faults::internal(&error)),
        }
    }

    /// An order of a later epoch proves that the guest's last migration was decided: what this host still has to
    /// tidy up after it is waited for, not refused.
    async fn let_last_one_end(&self, terms: &Terms) {
        let deadline = Instant::now() + TIDYING;
        while self.table().last_one_is_ending(terms) && Instant::now() < deadline {
            sleep(LOOK_AGAIN).await;
        }
    }

    pub(super) async fn begin(
        self: &Arc<Self>,
        terms: &Terms,
        max_downtime: Duration,
        stream: StreamOptions,
    ) -> Result<OrderAnswer, Fault> {
        self.let_last_one_end(terms).await;
        let admission = self.admission.lock().await;
        let known = self
            .table()
            .known(&terms.migration)
            .map(|entry| entry.definition.clone());
        match known {
            Some(definition) => {
                drop(admission);
                self.to_source(terms, SourceEvent::Begin(terms.clone())).await?;
                let definition = definition.ok_or_else(|| faults::refused(Refusal::Ended))?;
                return Ok(OrderAnswer::Begun { definition });
            }
            None => self.table().check_new(terms)?,
        }
        self.check_party(&terms.source)?;
        self.check_stream(stream, Role::Source)?;
        let gates = self.custody.gates().ok_or_else(faults::no_hypervisor)?;
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
                // There is room for it by now.
                "DiskFailed",
                "The agent could not write its journal; look at the disk of its state directory",
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
        gates: Gates,
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
            rim: self.rim.clone(),
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

    pub(super) async fn prepare(
        self: &Arc<Self>,
        terms: &Terms,
        guest: GuestName,
        definition: &[u8],
        stream: StreamOptions,
    ) -> Result<OrderAnswer, Fault> {
        self.let_last_one_end(terms).await;
        let admission = self.admission.lock().await;
        let known = self.table().known(&terms.migration).is_some();
        if known {
            drop(admission);
            return self
                .to_destination(terms, DestinationEvent::Prepare(terms.clone()))
                .await;
        }
        self.table().check_new(terms)?;
        self.check_party(&terms.destination)?;
        self.check_stream(stream, Role::Destination)?;
        let gates = self.custody.gates().ok_or_else(faults::no_hypervisor)?;
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
            rim: self.rim.clone(),
            guest: None,
            custody: self.custody.clone(),
            records: self.records.clone(),
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
        Door::open(
            &*self.rim.wire,
            settings.migration_address,
            ports,
            migration,
            stream.encrypted,
        )
        .map(Gateway::Native)
    }

    /// Whether this host lets a stream travel in this way, and can.
    fn check_stream(&self, stream: StreamOptions, role: Role) -> Result<(), Fault> {
        let abilities = self.custody.streams().ok_or_else(faults::no_hypervisor)?;
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
}
