//! `resolve`: an administrator's last word about a guest whose host is gone for good.

use std::pin::pin;
use std::time::Duration;

use futures::StreamExt as _;
use godwit_crds::condition::find_condition;
use godwit_crds::{
    ConditionStatus, ResolutionAction, VirtualMachine, VirtualMachineHost, VirtualMachineMigration,
    VirtualMachineResolution, VirtualMachineResolutionSpec,
};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::{ListParams, ObjectMeta, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use tokio::time::{Instant, sleep_until};

use crate::args::{ObjectFormat, ResolveArgs};
use crate::connect::Cluster;
use crate::error::{Action, CliError, is_transient};
use crate::exit::Exit;
use crate::outcome::{Outcome, outcome};
use crate::output;
use crate::text::{MESSAGE, NAME, WORD, clean};
use crate::view::resolve::{Standing, options};

/// How long `--wait` waits unless told otherwise.
const DEFAULT_WAIT: Duration = Duration::from_secs(120);
/// What a cloud or an administrator puts on a node whose machine is known to be off.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Says the word, or shows what can be said.
pub async fn run(cluster: &Cluster, args: &ResolveArgs) -> Result<Exit, CliError> {
    let guest: VirtualMachine = cluster.get(&args.vm).await?;
    let migration = waiting(cluster, &args.vm).await?;
    let standing = standing(cluster, &guest, migration.as_ref()).await;
    if args.fenced.is_empty() {
        output::text(&options(&standing))?;
        return Ok(if standing.waits.is_some() {
            Exit::NeedsDecision
        } else {
            Exit::Success
        });
    }
    let epoch = guest
        .status
        .as_ref()
        .and_then(|status| status.epoch)
        .ok_or_else(|| {
            CliError::Unresolvable(format!(
                "{} was never given to a host: there is nothing to resolve",
                args.vm
            ))
        })?;
    let spec = VirtualMachineResolutionSpec {
        virtual_machine: args.vm.clone(),
        epoch,
        migration: migration.as_ref().and_then(ResourceExt::uid),
        fenced_hosts: args.fenced.clone(),
        action: action(args),
        host: args.on.clone(),
        by: whoami(cluster).await?,
        note: args.note.clone(),
    };
    let mut resolution = VirtualMachineResolution::new("", spec);
    resolution.metadata = ObjectMeta {
        generate_name: Some(format!("{}-", args.vm)),
        ..ObjectMeta::default()
    };
    let request = cluster.action::<VirtualMachineResolution>("create", None);
    let created = cluster
        .api::<VirtualMachineResolution>()
        .create(&PostParams::default(), &resolution)
        .await
        .map_err(|error| request.failed(error))?;
    if args.output.is_none() {
        output::line(&format!(
            "virtualmachineresolution.godwit.dev/{} created",
            clean(&created.name_any(), NAME)
        ))?;
    }
    if args.wait {
        return wait(cluster, &created, args).await;
    }
    match args.output {
        Some(ObjectFormat::Json) => output::object(&created)?,
        None => output::line(&format!(
            "See what becomes of it: kubectl get vmres {} -n {}",
            clean(&created.name_any(), NAME),
            clean(&cluster.namespace, NAME)
        ))?,
    }
    Ok(Exit::Success)
}

fn action(args: &ResolveArgs) -> ResolutionAction {
    if args.cold_start {
        ResolutionAction::ColdStart
    } else if args.resume_source {
        ResolutionAction::ResumeSource
    } else {
        ResolutionAction::Wait
    }
}

/// The guest's migration that has not ended.
async fn waiting(cluster: &Cluster, guest: &str) -> Result<Option<VirtualMachineMigration>, CliError> {
    let request = cluster.action::<VirtualMachineMigration>("list", None);
    let migrations = cluster
        .api::<VirtualMachineMigration>()
        .list(&ListParams::default())
        .await
        .map_err(|error| request.failed(error))?;
    Ok(migrations.items.into_iter().find(|migration| {
        migration.spec.virtual_machine == guest && !outcome(migration.status.as_ref()).ended()
    }))
}

async fn standing(
    cluster: &Cluster,
    guest: &VirtualMachine,
    migration: Option<&VirtualMachineMigration>,
) -> Standing {
    let status = guest.status.as_ref();
    let holder = status.and_then(|status| status.host.clone());
    let destination = migration.map(|migration| migration.spec.destination.host.clone());
    let mut hosts = Vec::new();
    for name in holder.iter().chain(&destination) {
        hosts.push((name.clone(), heard(cluster, name).await));
    }
    Standing {
        guest: guest.name_any(),
        state: status
            .and_then(|status| status.state)
            .map(|state| format!("{state:?}")),
        holder,
        destination,
        strict: migration
            .is_some_and(|migration| migration.spec.handoff == godwit_crds::migration::Handoff::Strict),
        deleted: guest.metadata.deletion_timestamp.is_some(),
        migration: migration.map(ResourceExt::name_any),
        waits: migration.and_then(|migration| match outcome(migration.status.as_ref()) {
            Outcome::NeedsDecision(cause) => Some(cause.message),
            Outcome::Unseen
            | Outcome::Going
            | Outcome::Succeeded
            | Outcome::Cancelled(_)
            | Outcome::Failed(_) => None,
        }),
        hosts,
    }
}

/// Whether the host is heard, in words. A courtesy: whoever may not look is told without it.
async fn heard(cluster: &Cluster, name: &str) -> Option<String> {
    let host: VirtualMachineHost = cluster.api().get_opt(name).await.ok()??;
    let ready = host
        .status
        .as_ref()
        .and_then(|status| find_condition(&status.conditions, "Ready"))?;
    let mut words = match ready.status {
        ConditionStatus::Unknown => format!("is not heard any more ({})", clean(&ready.reason, WORD)),
        ConditionStatus::True | ConditionStatus::False => "answers".to_owned(),
    };
    let node: Option<Node> = cluster.nodes().get_opt(name).await.ok().flatten();
    let taints = node.and_then(|node| node.spec?.taints).unwrap_or_default();
    if taints.iter().any(|taint| taint.key == OUT_OF_SERVICE) {
        words.push_str("; its node is tainted as out of service");
    }
    Some(words)
}

/// The name by which the API server knows the user: the word carries it, and the server checks it.
async fn whoami(cluster: &Cluster) -> Result<String, CliError> {
    let request = Action {
        verb: "create",
        resource: "selfsubjectreviews",
        name: None,
        namespace: None,
    };
    let review = cluster
        .reviews()
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .map_err(|error| request.failed(error))?;
    let name = review.status.and_then(|status| status.user_info?.username);
    name.ok_or_else(|| CliError::Unresolvable("the API server does not say who you are".into()))
}

async fn wait(
    cluster: &Cluster,
    created: &VirtualMachineResolution,
    args: &ResolveArgs,
) -> Result<Exit, CliError> {
    let name = created.name_any();
    let deadline = Instant::now() + args.timeout.unwrap_or(DEFAULT_WAIT);
    let api = cluster.api::<VirtualMachineResolution>();
    let mut changes = pin!(watcher::watch_object(api, &name).default_backoff());
    let mut interrupt = pin!(tokio::signal::ctrl_c());
    let mut last = String::new();
    loop {
        let change = tokio::select! {
            change = changes.next() => change,
            () = sleep_until(deadline) => {
                output::aside("Timed out waiting. The word stands");
                return Ok(Exit::TimedOut);
            }
            _ = &mut interrupt => {
                output::aside("Stopped watching. The word stands");
                return Ok(Exit::Interrupted);
            }
        };
        let now = match change {
            Some(Ok(Some(now))) if now.uid() == created.uid() => now,
            Some(Err(watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error)))
                if !is_transient(&error) =>
            {
                return Err(cluster
                    .action::<VirtualMachineResolution>("watch", Some(&name))
                    .failed(error));
            }
            Some(Err(_)) => continue,
            Some(Ok(Some(_) | None)) | None => return Err(CliError::Deleted),
        };
        let conditions = now.status.as_ref().map_or(&[][..], |status| &status.conditions);
        let Some(applied) = find_condition(conditions, "Applied") else {
            continue;
        };
        let words = format!(
            "{}: {}",
            clean(&applied.reason, WORD),
            clean(&applied.message, MESSAGE)
        );
        match applied.status {
            ConditionStatus::Unknown => {
                if words != last {
                    output::aside(&words);
                    last = words;
                }
            }
            ConditionStatus::True => {
                match args.output {
                    Some(ObjectFormat::Json) => output::object(&now)?,
                    None => output::line(&words)?,
                }
                return Ok(Exit::Success);
            }
            ConditionStatus::False => return Err(CliError::Unresolvable(words)),
        }
    }
}
