//! The reconciler of guests: read → decide → act → status.

use std::sync::Arc;
use std::time::Duration;

use godwit_crds::condition::find_condition;
use godwit_crds::guest_record::GuestReference;
use godwit_crds::quantity::memory_bytes;
use godwit_crds::virtual_machine::GuestState;
use godwit_crds::{ConditionStatus, VirtualMachine, VirtualMachineMigration, VirtualMachineStatus};
use godwit_protocol::{Category, Fault, GuestName, StartGuest, definition};
use jiff::Timestamp;
use kube::runtime::controller::Action;
use kube::{Api, Resource, ResourceExt};

use super::decide::{self, Answer, Deed, Facts, Verdict};
use crate::apply;
use crate::cluster::{Cluster, WatchEnded};
use crate::migration::book::Notice;
use crate::migration::{orphan, validate};
use crate::reason::{GuestReason, MigrationReason};
use crate::record::{self, FINALIZER, RecordError};
use crate::resolution;
use crate::time;

/// Between two orders to start that were not carried out.
const START_AGAIN: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(30)];
/// Between two looks at a guest that its host does not report, or that is on its way.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The same for a guest that is to be stopped, and waits for what others report.
const LOOK_AGAIN_TO_STOP: Duration = Duration::from_secs(1);

/// Why a reconciliation has to be tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server.
    #[error("the API server did not take it")]
    Api(#[from] kube::Error),
    /// The guest's record.
    #[error("the guest's record could not be written")]
    Record(#[from] RecordError),
    /// The guest's definition.
    #[error("the guest's definition could not be told")]
    Definition(#[from] serde_json::Error),
    /// What is written down of it.
    #[error("the guest's definition could not be written down: {0}")]
    Digest(Fault),
    /// The holder did not stop the guest.
    #[error("the guest could not be stopped: {0}")]
    Stop(Fault),
    /// A watch.
    #[error(transparent)]
    Watch(#[from] WatchEnded),
}

/// Brings one guest on.
pub async fn reconcile(guest: Arc<VirtualMachine>, cluster: Arc<Cluster>) -> Result<Action, Error> {
    cluster.seen().await?;
    let api: Api<VirtualMachine> =
        Api::namespaced(cluster.client.clone(), &guest.namespace().unwrap_or_default());
    let uid = guest.uid().unwrap_or_default();
    let deleting = guest.meta().deletion_timestamp.is_some();
    if !guest.finalizers().iter().any(|name| name == FINALIZER) {
        if !deleting {
            // The write is seen by the watch, and the guest comes back with it.
            apply::finalizer(&api, &*guest, FINALIZER, true).await?;
        }
        return Ok(Action::await_change());
    }
    if deleting {
        // The watch may lag behind the end of an earlier look: what is gone is not stopped once more.
        let now = apply::within(api.get_metadata_opt(&guest.name_any())).await?;
        if now.is_none_or(|now| now.metadata.uid != guest.meta().uid) {
            cluster.starts.forget(&uid);
            return Ok(Action::await_change());
        }
    }

    if let Some(left) = handed_over(&cluster, &guest) {
        return Ok(Action::requeue(left));
    }

    let record = cluster.records.read(&uid).await?;
    let Verdict {
        deed,
        status,
        missing,
        open,
    } = judge(&cluster, &guest, record.as_ref().map(|r| &r.spec));
    cluster.starts.missing(&uid, missing);
    cluster.starts.open(&uid, open);
    write_status(&cluster, &api, &guest, &status).await?;
    match deed {
        // That a host does not report it any more wakes nobody.
        Deed::None if deleting => Ok(Action::requeue(LOOK_AGAIN_TO_STOP)),
        Deed::None if missing || open || unsettled(&status) => Ok(Action::requeue(LOOK_AGAIN)),
        Deed::None => Ok(Action::await_change()),
        Deed::Record { host } => {
            cluster.warm(&host);
            let spec = record::first(reference(&guest, &uid)?, &host);
            let record = cluster.records.create(spec).await?;
            tracing::info!(guest = guest.name_any(), host = record.spec.holder, "host chosen");
            // Straight on to the start order: nobody else changes the record before that.
            let verdict = judge(&cluster, &guest, Some(&record.spec));
            match verdict.deed {
                Deed::Start { host, epoch } => start(&cluster, &api, &guest, &uid, &host, epoch).await,
                Deed::None
                | Deed::Record { .. }
                | Deed::Stop { .. }
                | Deed::Reap { .. }
                | Deed::Settle { .. }
                | Deed::Release => Ok(Action::requeue(START_AGAIN[0])),
            }
        }
        Deed::Start { host, epoch } => start(&cluster, &api, &guest, &uid, &host, epoch).await,
        Deed::Stop { host, epoch } => {
            stop(&cluster, &name(&guest, &uid), &host, epoch)
                .await
                .map_err(Error::Stop)?;
            if let Some(record) = &record
                && !resolution::reconcile::keeps(&cluster, &guest, record).await?
            {
                cluster.records.remove(record).await?;
            }
            let_go(&cluster, &guest).await?;
            Ok(Action::await_change())
        }
        Deed::Reap { host, epoch } => {
            if let Err(error) = stop(&cluster, &name(&guest, &uid), &host, epoch).await {
                tracing::warn!(guest = guest.name_any(), host, %error, "what is left of the guest there stays for now");
            }
            Ok(Action::requeue(LOOK_AGAIN))
        }
        Deed::Settle { migration } => {
            if let Some(record) = record {
                orphan::settle(&cluster, &guest, record, &migration).await?;
            }
            Ok(Action::requeue(LOOK_AGAIN))
        }
        Deed::Release => {
            let_go(&cluster, &guest).await?;
            Ok(Action::await_change())
        }
    }
}

/// How long to wait yet for a handover of the guest that is under way: nothing is written to the API server while it
/// stands still, and the migration's end brings the guest back here at once.
fn handed_over(cluster: &Cluster, guest: &VirtualMachine) -> Option<Duration> {
    let migrations = cluster.migrations.state();
    migrations
        .iter()
        .filter(|migration| migrates(migration, guest) && !validate::ended(migration))
        .find_map(|migration| cluster.drivers.hold(&migration.uid()?))
}

/// Whether the migration is one of the guest of that name.
fn migrates(migration: &VirtualMachineMigration, guest: &VirtualMachine) -> bool {
    migration.namespace() == guest.namespace() && migration.spec.virtual_machine == guest.name_any()
}

/// Whether the guest is on its way to somewhere: then it is looked at again, whatever is heard.
fn unsettled(status: &VirtualMachineStatus) -> bool {
    match status.state {
        None | Some(GuestState::Starting | GuestState::Unknown) => true,
        Some(
            GuestState::Running
            | GuestState::Paused
            | GuestState::ShutOff
            | GuestState::Crashed
            | GuestState::Lost,
        ) => false,
    }
}

fn judge(
    cluster: &Cluster,
    guest: &VirtualMachine,
    record: Option<&godwit_crds::GuestRecordSpec>,
) -> Verdict {
    let uid = guest.uid().unwrap_or_default();
    let hosts = cluster.hosts_by_name();
    let migrations = cluster.migrations.state();
    let own = || migrations.iter().filter(|migration| migrates(migration, guest));
    // One that was not accepted has no say over the guest, but will be judged in a moment.
    let active = own().find(|migration| !validate::ended(migration));
    let waits = active
        .and_then(|migration| migration.status.as_ref())
        .and_then(|status| find_condition(&status.conditions, "NeedsDecision"))
        .filter(|told| told.status == ConditionStatus::True)
        .map(|told| told.message.clone());
    let active = active.map(|migration| migration.name_any());
    // The image that died was the source's at the migration's epoch, or the destination's at the next one.
    let of_this_image = |migration: &VirtualMachineMigration, epoch: Option<i64>| {
        record.zip(epoch).is_some_and(|(record, epoch)| {
            let armed = record.migration.as_ref().map(|armed| armed.uid.as_str());
            record.epoch == epoch || record.epoch == epoch + 1 && armed == migration.uid().as_deref()
        })
    };
    let lost = own().any(|migration| {
        migration.status.as_ref().is_some_and(|status| {
            status.virtual_machine_uid.as_deref() == Some(&uid)
                && of_this_image(migration, status.epoch)
                && status
                    .failure
                    .as_ref()
                    .is_some_and(|failure| failure.reason == MigrationReason::GuestLost.word())
        })
    });
    let epoch = record
        .and_then(|record| u64::try_from(record.epoch).ok())
        .unwrap_or(0);
    let answer = cluster.starts.answer(&uid, epoch);
    let missing_for = cluster.starts.missing_for(&uid);
    let open_for = cluster.starts.open_for(&uid);
    if hosts
        .values()
        .any(|host| decide::report(host, &uid).next().is_some())
    {
        cluster.starts.shown(&uid);
    }
    let bytes = memory_bytes(&guest.spec.memory).unwrap_or(0);
    cluster.starts.promise(&uid, bytes, |promised| {
        let verdict = decide::decide(&Facts {
            guest,
            record,
            hosts: &hosts,
            migration: active.as_deref(),
            waits: waits.as_deref(),
            lost,
            answer: answer.as_ref(),
            missing_for,
            open_for,
            promised,
            now: Timestamp::now(),
        });
        let host = match &verdict.deed {
            Deed::Record { host } => Some(host.clone()),
            Deed::None
            | Deed::Start { .. }
            | Deed::Stop { .. }
            | Deed::Reap { .. }
            | Deed::Settle { .. }
            | Deed::Release => None,
        };
        (verdict, host)
    })
}

fn reference(guest: &VirtualMachine, uid: &str) -> Result<GuestReference, Error> {
    Ok(GuestReference {
        namespace: guest.namespace().unwrap_or_default(),
        name: guest.name_any(),
        uid: uid.into(),
        definition: definition::digest(&serde_json::to_vec(&guest.spec)?).map_err(Error::Digest)?,
    })
}

fn name(guest: &VirtualMachine, uid: &str) -> GuestName {
    GuestName {
        uid: uid.into(),
        namespace: guest.namespace().unwrap_or_default(),
        name: guest.name_any(),
    }
}

/// Gives the order to start, and writes down what was answered.
async fn start(
    cluster: &Arc<Cluster>,
    api: &Api<VirtualMachine>,
    guest: &VirtualMachine,
    uid: &str,
    host: &str,
    epoch: u64,
) -> Result<Action, Error> {
    if let Some(left) = cluster.starts.paused_for(uid) {
        return Ok(Action::requeue(left));
    }
    let order = StartGuest {
        guest: name(guest, uid),
        epoch,
        definition: serde_json::to_vec(&guest.spec)?,
        // A second start is a person's decision, never the controller's.
        again: false,
    };
    let answer = match call(cluster, host, async |client| client.start_guest(&order).await).await {
        Ok(answer) => {
            let since = answer.since_micros.and_then(time::from_micros);
            tracing::info!(guest = guest.name_any(), host, state = ?answer.state, "started");
            Answer::State(state(answer.state), since)
        }
        Err(fault) => {
            tracing::warn!(guest = guest.name_any(), host, %fault, "not started");
            Answer::Fault(fault)
        }
    };
    let starting = matches!(answer, Answer::State(GuestState::Starting, _));
    let failures = cluster.starts.answered(uid, epoch, answer);
    let again = failures > 0 || starting;
    let pause = START_AGAIN[0]
        .saturating_mul(1 << failures.min(8))
        .min(START_AGAIN[1]);
    if again {
        cluster.starts.pause(uid, pause);
    }
    let record = cluster.records.read(uid).await?;
    // What the answer means for the status is told from the object as it is now.
    if let Some(now) = apply::within(api.get_opt(&guest.name_any()))
        .await?
        .filter(|now| now.uid().as_deref() == Some(uid))
    {
        let verdict = judge(cluster, &now, record.as_ref().map(|record| &record.spec));
        cluster.starts.missing(uid, verdict.missing);
        write_status(cluster, api, &now, &verdict.status).await?;
    }
    Ok(Action::requeue(if again { pause } else { LOOK_AGAIN }))
}

/// Has a host stop a guest and forget it. It does so under exactly this epoch, and where no migration has the guest.
///
/// # Errors
/// What the host answers, or that it does not.
pub async fn stop(cluster: &Cluster, guest: &GuestName, host: &str, epoch: u64) -> Result<(), Fault> {
    call(cluster, host, async |client| {
        client.stop_guest(guest, epoch).await
    })
    .await?;
    tracing::info!(guest = guest.name, host, "stopped");
    Ok(())
}

/// Calls the agent of `host` over the connection at hand.
async fn call<T>(
    cluster: &Cluster,
    host: &str,
    call: impl AsyncFnOnce(&godwit_protocol::AgentClient) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let endpoint = cluster.endpoint(host).ok_or_else(|| {
        Fault::new(
            Category::Unavailable,
            "AgentUnreachable",
            format!("There is no VirtualMachineHost {host}"),
        )
    })?;
    let connection = cluster.agents.connect(host, &endpoint).await?;
    let answer = call(&connection.client).await;
    if let Err(fault) = &answer
        && fault.category == Category::Unavailable
    {
        cluster.agents.dropped(host, &connection).await;
    }
    answer
}

/// Lets the object of a deleted guest go, of which no host has anything any more.
///
/// # Errors
/// If the API server does not take it.
pub async fn let_go(cluster: &Cluster, guest: &VirtualMachine) -> Result<(), kube::Error> {
    let namespace = guest.namespace().unwrap_or_default();
    let api: Api<VirtualMachine> = Api::namespaced(cluster.client.clone(), &namespace);
    apply::finalizer(&api, guest, FINALIZER, false).await?;
    cluster.starts.forget(&guest.uid().unwrap_or_default());
    Ok(())
}

/// Writes the status if it says something new, and tells of what has turned.
async fn write_status(
    cluster: &Cluster,
    api: &Api<VirtualMachine>,
    guest: &VirtualMachine,
    status: &VirtualMachineStatus,
) -> Result<(), kube::Error> {
    if guest.status.as_ref() == Some(status) {
        return Ok(());
    }
    match apply::status(api, guest, status).await {
        Ok(()) => {}
        Err(error) if apply::gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    }
    let before = guest.status.clone().unwrap_or_default();
    cluster.notify(guest, notices(&before, status)).await;
    Ok(())
}

/// What has turned between two statuses: each condition whose status or reason is another one, once. That nothing
/// is in doubt is no news.
pub fn notices(before: &VirtualMachineStatus, after: &VirtualMachineStatus) -> Vec<Notice> {
    after
        .conditions
        .iter()
        .filter(|condition| {
            let old = find_condition(&before.conditions, &condition.type_);
            condition.reason != GuestReason::NotNeeded.word()
                && old.is_none_or(|old| (old.status, &old.reason) != (condition.status, &condition.reason))
        })
        .map(|condition| Notice {
            warning: match condition.type_.as_str() {
                "NeedsDecision" => condition.status == ConditionStatus::True,
                "Ready" => ![
                    GuestReason::Running,
                    GuestReason::Starting,
                    GuestReason::Paused,
                    GuestReason::Stopping,
                    GuestReason::ShutOff,
                ]
                .iter()
                .any(|reason| reason.word() == condition.reason),
                _ => condition.status != ConditionStatus::True,
            },
            reason: condition.reason.clone(),
            note: condition.message.clone(),
        })
        .collect()
}

fn state(state: godwit_protocol::GuestState) -> GuestState {
    match state {
        godwit_protocol::GuestState::Starting => GuestState::Starting,
        godwit_protocol::GuestState::Running => GuestState::Running,
        godwit_protocol::GuestState::Paused => GuestState::Paused,
        godwit_protocol::GuestState::ShutOff => GuestState::ShutOff,
        godwit_protocol::GuestState::Crashed => GuestState::Crashed,
    }
}
