//! The reconciler of migrations: read → validate → hand over to a driver. It starts nothing twice: one driver for
//! each migration, and one armed migration for each guest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use godwit_crds::migration::Handoff;
use godwit_crds::quantity::{self, memory_bytes};
use godwit_crds::{GuestRecord, VirtualMachine, VirtualMachineHost, VirtualMachineMigration};
use godwit_handover::Terms;
use godwit_protocol::GuestName;
use jiff::Timestamp;
use kube::api::ListParams;
use kube::runtime::controller::Action;
use kube::{Api, Resource, ResourceExt};

use super::book::{self, Book, Failed};
use super::drive::{Assignment, drive};
use super::drivers::Control;
use super::failure;
use super::stream;
use super::validate::{self, Facts, Refusal};
use crate::apply;
use crate::cluster::{Cluster, WatchEnded};
use crate::reason::MigrationReason as Reason;
use crate::record;

/// Keeps a migration until it has ended.
pub const FINALIZER: &str = "godwit.dev/migration";

/// Why a reconciliation has to be tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server.
    #[error("the API server did not take it")]
    Api(#[from] kube::Error),
    /// A watch.
    #[error(transparent)]
    Watch(#[from] WatchEnded),
}

/// Brings one migration on.
pub async fn reconcile(
    migration: Arc<VirtualMachineMigration>,
    cluster: Arc<Cluster>,
) -> Result<Action, Error> {
    cluster.seen().await?;
    let namespace = migration.namespace().unwrap_or_default();
    let api: Api<VirtualMachineMigration> = Api::namespaced(cluster.client.clone(), &namespace);
    let uid = migration.uid().unwrap_or_default();
    let deleting = migration.meta().deletion_timestamp.is_some();
    if validate::ended(&migration) {
        apply::finalizer(&api, &*migration, FINALIZER, false).await?;
        return Ok(Action::await_change());
    }
    let guest = guest_of(&cluster, &migration, &namespace);
    let guest_goes = guest
        .as_ref()
        .is_some_and(|guest| guest.meta().deletion_timestamp.is_some());
    let control = Control {
        cancel: migration.spec.cancel || deleting || guest_goes,
        bandwidth: stream::options(&migration.spec, None).bandwidth,
        generation: migration.meta().generation,
    };
    if cluster.drivers.tell(&uid, control) {
        return Ok(Action::await_change());
    }
    // The watch may lag behind what a driver of ours has just written: ask once more before anything is begun.
    let name = migration.name_any();
    let guest_uid = migration
        .status
        .as_ref()
        .and_then(|status| status.virtual_machine_uid.clone())
        .or_else(|| guest.as_ref().and_then(|guest| guest.uid()));
    let (now, record) = tokio::join!(
        apply::within(api.get_opt(&name)),
        read_record(&cluster, guest_uid)
    );
    let migration = match now? {
        Some(now) if now.uid().as_deref() == Some(&uid) && !validate::ended(&now) => Arc::new(now),
        Some(_) | None => return Ok(Action::await_change()),
    };
    let record = record?;
    if let Some(terms) = going_on(&migration, record.as_ref(), &uid) {
        apply_finalizer(&api, &migration, deleting).await?;
        start(&cluster, &migration, guest.as_deref(), terms, record, control);
        return Ok(Action::await_change());
    }

    // Nothing was begun.
    if migration.spec.cancel || deleting {
        let mut book = Book::open(migration.status.clone(), control.generation);
        let failed = failure::tell(Reason::Cancelled, "The migration was cancelled before it began.");
        refuse(&cluster, &api, &migration, &mut book, &failed).await?;
        return Ok(Action::await_change());
    }
    let view = View::seen(&cluster, guest, record);
    let judged = match view.judge(&cluster, &migration) {
        // The watches may lag behind what the user has just seen: nothing is refused on their word alone.
        Err(_) => {
            let view = View::fresh(&cluster, &migration).await?;
            view.judge(&cluster, &migration).map(|terms| (terms, view))
        }
        Ok(terms) => Ok((terms, view)),
    };
    match judged {
        Err(refusal) => {
            let mut book = Book::open(migration.status.clone(), control.generation);
            let failed = Failed {
                reason: refusal.reason,
                message: refusal.message,
            };
            refuse(&cluster, &api, &migration, &mut book, &failed).await?;
        }
        Ok((terms, view)) => {
            cluster.warm(&terms.source);
            cluster.warm(&terms.destination);
            // Before the first order, so that a deletion waits for the end.
            apply_finalizer(&api, &migration, deleting).await?;
            start(
                &cluster,
                &migration,
                view.guest.as_deref(),
                terms,
                view.record,
                control,
            );
        }
    }
    Ok(Action::await_change())
}

/// What a judgement rests on.
struct View {
    guest: Option<Arc<VirtualMachine>>,
    record: Option<GuestRecord>,
    hosts: BTreeMap<String, VirtualMachineHost>,
    migrations: Vec<Arc<VirtualMachineMigration>>,
}

impl View {
    /// What the watches have seen, with the record as it was just read.
    fn seen(cluster: &Cluster, guest: Option<Arc<VirtualMachine>>, record: Option<GuestRecord>) -> Self {
        Self {
            guest,
            record,
            hosts: cluster.hosts_by_name(),
            migrations: cluster.migrations.state(),
        }
    }

    /// The same, asked of the API server now.
    async fn fresh(cluster: &Cluster, migration: &VirtualMachineMigration) -> Result<Self, kube::Error> {
        let namespace = migration.namespace().unwrap_or_default();
        let client = || cluster.client.clone();
        let guests: Api<VirtualMachine> = Api::namespaced(client(), &namespace);
        let migrations: Api<VirtualMachineMigration> = Api::namespaced(client(), &namespace);
        let hosts: Api<VirtualMachineHost> = Api::all(client());
        let guest = apply::within(guests.get_opt(&migration.spec.virtual_machine))
            .await?
            .map(Arc::new);
        let record = read_record(cluster, guest.as_ref().and_then(|guest| guest.uid())).await?;
        let migrations = apply::within(migrations.list(&ListParams::default())).await?;
        let mut known = BTreeMap::new();
        let holder = record.as_ref().map(|record| record.spec.holder.clone());
        for name in holder
            .into_iter()
            .chain([migration.spec.destination.host.clone()])
        {
            if let Some(host) = apply::within(hosts.get_opt(&name)).await? {
                known.insert(name, host);
            }
        }
        let migrations = migrations.items.into_iter().map(Arc::new).collect();
        Ok(Self {
            guest,
            record,
            hosts: known,
            migrations,
        })
    }

    fn judge(&self, cluster: &Cluster, migration: &VirtualMachineMigration) -> Result<Terms, Refusal> {
        let migrations: Vec<_> = self.migrations.iter().map(AsRef::as_ref).collect();
        validate::validate(&Facts {
            migration,
            guest: self.guest.as_deref(),
            record: self.record.as_ref().map(|record| &record.spec),
            hosts: &self.hosts,
            promised: promised(cluster, migration, &migrations),
            migrations: &migrations,
        })
    }
}

async fn read_record(cluster: &Cluster, guest: Option<String>) -> Result<Option<GuestRecord>, kube::Error> {
    match guest {
        Some(uid) => cluster.records.read(&uid).await,
        None => Ok(None),
    }
}

/// The VirtualMachine that the migration is about: the one of that UID once it is known.
fn guest_of(
    cluster: &Cluster,
    migration: &VirtualMachineMigration,
    namespace: &str,
) -> Option<Arc<VirtualMachine>> {
    let known = migration
        .status
        .as_ref()
        .and_then(|status| status.virtual_machine_uid.clone());
    cluster.guests.find(|guest| {
        guest.namespace().as_deref() == Some(namespace)
            && guest.name_any() == migration.spec.virtual_machine
            && (known.is_none() || guest.uid() == known)
    })
}

/// The terms of a migration that was begun: by its record, or else by its own status.
fn going_on(migration: &VirtualMachineMigration, record: Option<&GuestRecord>, uid: &str) -> Option<Terms> {
    if let Some(terms) = record.and_then(|record| record::terms_of_armed(&record.spec, uid)) {
        return Some(terms);
    }
    let status = migration.status.as_ref()?;
    Some(Terms {
        migration: uid.into(),
        guest: status.virtual_machine_uid.clone()?,
        epoch: u64::try_from(status.epoch?).ok()?,
        source: status.source.clone()?,
        destination: status.destination.clone()?,
        strict: migration.spec.handoff == Handoff::Strict,
    })
}

/// Memory at the destination that other migrations are about to take.
fn promised(
    cluster: &Cluster,
    migration: &VirtualMachineMigration,
    migrations: &[&VirtualMachineMigration],
) -> u64 {
    migrations
        .iter()
        .filter(|other| {
            other.uid() != migration.uid()
                && other.spec.destination.host == migration.spec.destination.host
                && validate::begun(other)
                && !validate::ended(other)
        })
        .filter_map(|other| {
            let guest = guest_of(cluster, other, &other.namespace().unwrap_or_default())?;
            memory_bytes(&guest.spec.memory)
        })
        .fold(0, u64::saturating_add)
}

async fn apply_finalizer(
    api: &Api<VirtualMachineMigration>,
    migration: &VirtualMachineMigration,
    deleting: bool,
) -> Result<(), kube::Error> {
    // The API server takes no new finalizer on an object that goes; the one that is there holds it.
    if deleting {
        Ok(())
    } else {
        apply::finalizer(api, migration, FINALIZER, true).await
    }
}

pub(super) fn start(
    cluster: &Arc<Cluster>,
    migration: &Arc<VirtualMachineMigration>,
    guest: Option<&VirtualMachine>,
    terms: Terms,
    record: Option<GuestRecord>,
    control: Control,
) {
    let Some((receiver, seat)) = cluster.drivers.enter(&terms.migration, control) else {
        return;
    };
    let mut book = Book::open(migration.status.clone(), control.generation);
    book.accept(&terms, Timestamp::now());
    book.status.channel = Some(stream::channel(&migration.spec));
    book.status.hypervisor_network = Some(stream::hypervisor_network(&migration.spec));
    let source = cluster.hosts_by_name().remove(&terms.source);
    let name = guest.map_or_else(|| migration.spec.virtual_machine.clone(), ResourceExt::name_any);
    let assignment = Assignment {
        migration: migration.clone(),
        guest: GuestName {
            uid: terms.guest.clone(),
            namespace: migration.namespace().unwrap_or_default(),
            name,
        },
        terms,
        record,
        flow: migration.spec.control_flow,
        stream: stream::options(&migration.spec, source.as_ref()),
        budget: quantity::duration(&migration.spec.tuning.max_downtime).unwrap_or(Duration::from_millis(300)),
        book,
    };
    cluster
        .tasks
        .spawn(drive(cluster.clone(), assignment, receiver, seat));
}

/// Ends a migration that never began, as it was read: whoever begins it meanwhile says so in its status first.
async fn refuse(
    cluster: &Cluster,
    api: &Api<VirtualMachineMigration>,
    migration: &VirtualMachineMigration,
    book: &mut Book,
    failed: &Failed,
) -> Result<(), kube::Error> {
    tracing::info!(
        migration = migration.name_any(),
        reason = failed.reason.word(),
        "refused"
    );
    book.failed(failed, Timestamp::now());
    match apply::status_as_read(api, migration, &book.status).await {
        Ok(()) => {
            let before = migration.status.clone().unwrap_or_default();
            cluster
                .notify(migration, book::notices(&before, &book.status))
                .await;
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}
