//! The reconciler of administrators' words: read → decide → write the record → status.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use godwit_crds::condition::set_condition;
use godwit_crds::quantity::memory_bytes;
use godwit_crds::record_change;
use godwit_crds::{
    Condition, GuestRecord, VirtualMachine, VirtualMachineHost, VirtualMachineMigration,
    VirtualMachineResolution, VirtualMachineResolutionStatus,
};
use godwit_protocol::GuestName;
use jiff::Timestamp;
use kube::api::ListParams;
use kube::runtime::controller::Action;
use kube::{Api, Resource, ResourceExt};

use super::decide::{self, APPLIED, Deed, Facts, Verdict};
use crate::apply;
use crate::cluster::{Cluster, WatchEnded};
use crate::guest;
use crate::guest::decide::{alive, report};
use crate::migration::book::Notice;
use crate::migration::validate;
use crate::reason::ResolutionReason as Reason;
use crate::record::RecordError;
use crate::time::rfc3339;

/// Holds a word for as long as the record of a guest that it has let go is there.
const FINALIZER: &str = "godwit.dev/let-go";
/// Between two looks at a word that is not carried out yet.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Between two looks for what a host that was fenced may have brought back.
const LOOK_FOR_REMAINS: Duration = Duration::from_secs(10);

/// Why a reconciliation has to be tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server.
    #[error("the API server did not take it")]
    Api(#[from] kube::Error),
    /// The guest's record.
    #[error("the guest's record could not be written")]
    Record(#[from] RecordError),
    /// A watch.
    #[error(transparent)]
    Watch(#[from] WatchEnded),
}

/// What was asked of the API server for one judgement: such a word is rare, and nothing of it rests on a cache.
struct View {
    guest: Option<VirtualMachine>,
    record: Option<GuestRecord>,
    hosts: BTreeMap<String, VirtualMachineHost>,
    active: Option<(String, String)>,
}

impl View {
    async fn read(cluster: &Cluster, resolution: &VirtualMachineResolution) -> Result<Self, kube::Error> {
        let namespace = resolution.namespace().unwrap_or_default();
        let client = || cluster.client.clone();
        let name = &resolution.spec.virtual_machine;
        let guests: Api<VirtualMachine> = Api::namespaced(client(), &namespace);
        let migrations: Api<VirtualMachineMigration> = Api::namespaced(client(), &namespace);
        let hosts: Api<VirtualMachineHost> = Api::all(client());
        let every = ListParams::default();
        let guest = apply::within(guests.get_opt(name)).await?;
        let record = match guest.as_ref().and_then(ResourceExt::uid) {
            Some(uid) => cluster.records.read(&uid).await?,
            None => None,
        };
        let migrations = apply::within(migrations.list(&every)).await?;
        let active = migrations
            .items
            .iter()
            .find(|migration| migration.spec.virtual_machine == *name && !validate::ended(migration))
            .map(|migration| (migration.name_any(), migration.uid().unwrap_or_default()));
        let hosts = apply::within(hosts.list(&every)).await?;
        Ok(Self {
            guest,
            record,
            hosts: hosts
                .items
                .into_iter()
                .map(|host| (host.name_any(), host))
                .collect(),
            active,
        })
    }

    fn judge(&self, cluster: &Cluster, resolution: &VirtualMachineResolution) -> Verdict {
        let uid = self.guest.as_ref().and_then(ResourceExt::uid).unwrap_or_default();
        let memory = self
            .guest
            .as_ref()
            .and_then(|guest| memory_bytes(&guest.spec.memory));
        cluster.starts.promise(&uid, memory.unwrap_or(0), |promised| {
            let verdict = decide::decide(&Facts {
                resolution,
                guest: self.guest.as_ref(),
                record: self.record.as_ref().map(|record| &record.spec),
                hosts: &self.hosts,
                active: self
                    .active
                    .as_ref()
                    .map(|(name, uid)| (name.as_str(), uid.as_str())),
                promised,
            });
            let host = match &verdict.deed {
                Deed::ColdStart(host) => Some(host.clone()),
                Deed::None | Deed::TakeIn | Deed::LetGo => None,
            };
            (verdict, host)
        })
    }
}

/// Carries one word on.
pub async fn reconcile(
    resolution: Arc<VirtualMachineResolution>,
    cluster: Arc<Cluster>,
) -> Result<Action, Error> {
    cluster.seen().await?;
    let namespace = resolution.namespace().unwrap_or_default();
    let api: Api<VirtualMachineResolution> = Api::namespaced(cluster.client.clone(), &namespace);
    if resolution.meta().deletion_timestamp.is_some() {
        forget(&cluster, &api, &resolution).await?;
        return Ok(Action::await_change());
    }
    if decide::ended(&resolution) {
        return give_up_what_is_left(&cluster, &api, &resolution).await;
    }
    // The watch may lag behind an end that was written just now.
    let resolution = match apply::within(api.get_opt(&resolution.name_any())).await? {
        Some(now) if now.uid() == resolution.uid() && !decide::ended(&now) => now,
        Some(_) | None => return Ok(Action::await_change()),
    };
    let mut view = View::read(&cluster, &resolution).await?;
    let mut verdict = view.judge(&cluster, &resolution);
    match (&verdict.deed, view.record.clone()) {
        (Deed::None, _) | (Deed::TakeIn | Deed::ColdStart(_), None) => {}
        (Deed::LetGo, record) => {
            if let Some(guest) = &view.guest {
                // Whoever takes over after this knows that the guest went by this word.
                apply::finalizer(&api, &resolution, FINALIZER, true).await?;
                write_status(&cluster, &api, &resolution, Some(guest), &verdict).await?;
                guest::reconcile::let_go(&cluster, guest).await?;
                let mirrored = guest.status.as_ref().and_then(|status| status.host.clone());
                let holder = record
                    .map(|record| record.spec.holder)
                    .or(mirrored)
                    .unwrap_or_default();
                tracing::warn!(guest = guest.name_any(), holder, "let go, its host being fenced");
                verdict = decide::let_go(&holder);
            }
        }
        (Deed::TakeIn | Deed::ColdStart(_), Some(record)) => {
            match carry_out(&cluster, &resolution, &verdict.deed, record).await {
                Ok(record) => {
                    view.record = Some(record);
                    verdict = view.judge(&cluster, &resolution);
                }
                Err(RecordError::Refused(why)) => verdict = decide::refused(&why),
                Err(error) => return Err(error.into()),
            }
        }
    }
    write_status(&cluster, &api, &resolution, view.guest.as_ref(), &verdict).await?;
    Ok(if verdict.ended() {
        Action::await_change()
    } else {
        Action::requeue(LOOK_AGAIN)
    })
}

/// A host that was fenced may come back with what it had of a guest that was let go since: a process that is gone, or a
/// journal of a migration that had not ended there. The record is what tells it how that migration ended, and stays for
/// as long.
async fn give_up_what_is_left(
    cluster: &Cluster,
    api: &Api<VirtualMachineResolution>,
    resolution: &VirtualMachineResolution,
) -> Result<Action, Error> {
    let held = resolution.finalizers().iter().any(|name| name == FINALIZER);
    let Some(uid) = decide::has_let_go(resolution).filter(|_| held) else {
        return Ok(Action::await_change());
    };
    let guest = GuestName {
        uid: uid.into(),
        namespace: resolution.namespace().unwrap_or_default(),
        name: resolution.spec.virtual_machine.clone(),
    };
    let hosts = cluster.hosts_by_name();
    let record = cluster.records.read(uid).await?;
    let epoch = record
        .as_ref()
        .map_or(resolution.spec.epoch, |record| record.spec.epoch);
    for name in &resolution.spec.fenced_hosts {
        let Some(host) = hosts.get(name).filter(|host| alive(host)) else {
            return Ok(Action::requeue(LOOK_FOR_REMAINS));
        };
        let epoch = report(host, uid).next().map_or(epoch, |left| left.epoch);
        let epoch = u64::try_from(epoch).unwrap_or_default();
        if let Err(fault) = guest::reconcile::stop(cluster, &guest, name, epoch).await {
            tracing::warn!(guest = guest.name, host = name, %fault, "what is left of the guest there stays for now");
            return Ok(Action::requeue(LOOK_FOR_REMAINS));
        }
    }
    forget(cluster, api, resolution).await?;
    Ok(Action::await_change())
}

/// Whether the record of a guest that was stopped is to outlive it: a host that was fenced by the word in it, and is away
/// yet, may come back with a journal of a migration that ended without it. The word then keeps the record, if it is there.
pub async fn keeps(
    cluster: &Cluster,
    guest: &VirtualMachine,
    record: &GuestRecord,
) -> Result<bool, kube::Error> {
    let Some(word) = &record.spec.resolution else {
        return Ok(false);
    };
    let hosts = cluster.hosts_by_name();
    let away = |host: &String| *host != record.spec.holder && !hosts.get(host).is_some_and(alive);
    if !word.fenced.iter().any(away) {
        return Ok(false);
    }
    let namespace = guest.namespace().unwrap_or_default();
    let api: Api<VirtualMachineResolution> = Api::namespaced(cluster.client.clone(), &namespace);
    let said = apply::within(api.list(&ListParams::default())).await?;
    let said = said.items.into_iter().find(|said| {
        said.uid().as_deref() == Some(word.uid.as_str()) && said.meta().deletion_timestamp.is_none()
    });
    let Some(said) = said else {
        return Ok(false);
    };
    apply::finalizer(&api, &said, FINALIZER, true).await?;
    let status = VirtualMachineResolutionStatus {
        let_go: guest.uid(),
        ..said.status.clone().unwrap_or_default()
    };
    apply::status(&api, &said, &status).await?;
    Ok(true)
}

/// The record of a guest that was let go is needed no more.
async fn forget(
    cluster: &Cluster,
    api: &Api<VirtualMachineResolution>,
    resolution: &VirtualMachineResolution,
) -> Result<(), Error> {
    if let Some(uid) = decide::has_let_go(resolution)
        && let Some(record) = cluster.records.read(uid).await?
    {
        cluster.records.remove(&record).await?;
    }
    apply::finalizer(api, resolution, FINALIZER, false).await?;
    Ok(())
}

async fn carry_out(
    cluster: &Cluster,
    resolution: &VirtualMachineResolution,
    deed: &Deed,
    record: GuestRecord,
) -> Result<GuestRecord, RecordError> {
    let word = decide::word(resolution);
    let guest = record.name_any();
    let written = cluster
        .records
        .change(Some(record), &guest, |spec| match deed {
            Deed::None | Deed::LetGo => record_change::Change::Already,
            Deed::TakeIn => record_change::take_in(spec, &word),
            Deed::ColdStart(host) => record_change::cold_start(spec, &word, host),
        })
        .await?;
    tracing::warn!(
        guest,
        by = word.by,
        fenced = word.fenced.join(","),
        evidence = written.spec.evidence,
        epoch = written.spec.epoch,
        "an administrator's word is in the record"
    );
    Ok(written)
}

async fn write_status(
    cluster: &Cluster,
    api: &Api<VirtualMachineResolution>,
    resolution: &VirtualMachineResolution,
    guest: Option<&VirtualMachine>,
    verdict: &Verdict,
) -> Result<(), kube::Error> {
    let mut status = resolution.status.clone().unwrap_or_default();
    set_condition(
        &mut status.conditions,
        Condition {
            type_: APPLIED.into(),
            status: verdict.applied,
            reason: verdict.reason.word().into(),
            message: verdict.words.chars().take(1000).collect(),
            last_transition_time: rfc3339(Timestamp::now()),
            observed_generation: resolution.meta().generation.unwrap_or(0),
        },
    );
    if verdict.deed == Deed::LetGo || verdict.reason == Reason::LetGo {
        status.let_go = status.let_go.or_else(|| guest.and_then(ResourceExt::uid));
    }
    if resolution.status.as_ref() == Some(&status) {
        return Ok(());
    }
    match apply::status(api, resolution, &status).await {
        Ok(()) => {}
        Err(error) if apply::gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    }
    // Who has said what about a guest belongs with the guest, too.
    if let Some(guest) = guest.filter(|_| verdict.ended()) {
        let spec = &resolution.spec;
        let note = format!(
            "{} has said that {} is fenced ({:?}). {}",
            spec.by,
            spec.fenced_hosts.join(" and "),
            spec.action,
            verdict.words
        );
        let notice = Notice {
            warning: true,
            reason: verdict.reason.word().into(),
            note,
        };
        cluster.notify(guest, vec![notice.clone()]).await;
        cluster.notify(resolution, vec![notice]).await;
    }
    Ok(())
}
