//! `cancel`.

use godwit_crds::VirtualMachineMigration;
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};

use super::migrate::DEFAULT_WAIT;
use crate::args::CancelArgs;
use crate::connect::Cluster;
use crate::error::CliError;
use crate::exit::Exit;
use crate::follow::{End, follow};
use crate::outcome::{Outcome, outcome};
use crate::output;
use crate::report::Report;
use crate::text::{MESSAGE, NAME, WORD, clean};

/// Asks for the end of a migration. Asking again changes nothing.
pub async fn run(cluster: &Cluster, args: &CancelArgs) -> Result<Exit, CliError> {
    let before: VirtualMachineMigration = cluster.get(&args.name).await?;
    if outcome(before.status.as_ref()).ended() {
        return conclude(&before);
    }
    let asked = if before.spec.cancel {
        output::line("Cancellation was asked for already")?;
        before
    } else {
        // The UID makes the server refuse, should another attempt have taken the name in between.
        let patch = serde_json::json!({"metadata": {"uid": before.uid()}, "spec": {"cancel": true}});
        let action = cluster.action::<VirtualMachineMigration>("patch", Some(&args.name));
        let after = cluster
            .api::<VirtualMachineMigration>()
            .patch(&args.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .map_err(|e| action.failed(e))?;
        if outcome(after.status.as_ref()).ended() {
            return conclude(&after);
        }
        output::line("Cancellation asked for")?;
        after
    };
    if !args.wait {
        return Ok(Exit::Success);
    }
    let mut report = Report::new(false);
    let end = follow(
        cluster,
        &asked,
        Some(args.timeout.unwrap_or(DEFAULT_WAIT)),
        &mut report,
    )
    .await;
    report.finish();
    match end? {
        End::Settled(migration) => conclude(&migration),
        End::TimedOut => {
            output::aside("Timed out waiting. The cancellation stays asked for");
            Ok(Exit::TimedOut)
        }
        End::Interrupted => {
            output::aside("Stopped watching. The cancellation stays asked for");
            Ok(Exit::Interrupted)
        }
    }
}

/// What became of a migration that was to be cancelled.
fn conclude(migration: &VirtualMachineMigration) -> Result<Exit, CliError> {
    let name = clean(&migration.name_any(), NAME);
    match outcome(migration.status.as_ref()) {
        Outcome::Succeeded => Err(CliError::TooLate(format!(
            "{name} has succeeded and the guest runs on {}. To have it back, migrate it again",
            clean(&migration.spec.destination.host, NAME)
        ))),
        Outcome::Cancelled(cause) => {
            let text = format!("{name} is cancelled. {}", clean(&cause.message, MESSAGE));
            output::line(text.trim_end())?;
            Ok(Exit::Success)
        }
        Outcome::Failed(cause) => {
            output::line(&format!(
                "{name} has failed, there is nothing to cancel. {}: {}",
                clean(&cause.reason, WORD),
                clean(&cause.message, MESSAGE)
            ))?;
            Ok(Exit::Success)
        }
        Outcome::NeedsDecision(cause) => {
            output::line(&format!(
                "{name} needs a decision. {}: {}",
                clean(&cause.reason, WORD),
                clean(&cause.message, MESSAGE)
            ))?;
            Ok(Exit::NeedsDecision)
        }
        // Not settled: asked for, and no more is known.
        Outcome::Unseen | Outcome::Going => Ok(Exit::Success),
    }
}
