//! `status`.

use godwit_crds::VirtualMachineMigration;
use jiff::Timestamp;
use kube::ResourceExt as _;

use crate::args::{ObjectFormat, StatusArgs};
use crate::connect::Cluster;
use crate::error::CliError;
use crate::exit::Exit;
use crate::follow::{End, follow};
use crate::outcome::{Outcome, outcome};
use crate::output;
use crate::report::Report;
use crate::text::{NAME, clean};
use crate::view;

/// Shows a migration once, or follows it.
pub async fn run(cluster: &Cluster, args: &StatusArgs) -> Result<Exit, CliError> {
    let migration: VirtualMachineMigration = cluster.get(&args.name).await?;
    if args.watch {
        return watch(cluster, &migration, args.timeout, args.output).await;
    }
    print(&migration, args.output)?;
    Ok(Exit::Success)
}

/// Follows a migration, prints it as it is at the end, and says by the exit code how it ended.
pub async fn watch(
    cluster: &Cluster,
    migration: &VirtualMachineMigration,
    timeout: Option<std::time::Duration>,
    format: Option<ObjectFormat>,
) -> Result<Exit, CliError> {
    let mut report = Report::new(format.is_some());
    let end = follow(cluster, migration, timeout, &mut report).await;
    report.finish();
    match end? {
        End::Settled(migration) => {
            print(&migration, format)?;
            Ok(verdict(&outcome(migration.status.as_ref())))
        }
        End::TimedOut => {
            output::aside(&format!("Timed out waiting. {}", goes_on(migration)));
            Ok(Exit::TimedOut)
        }
        End::Interrupted => {
            output::aside(&format!("Stopped watching. {}", goes_on(migration)));
            Ok(Exit::Interrupted)
        }
    }
}

/// That the migration does not depend on being watched, and the two commands that a person may want next.
fn goes_on(migration: &VirtualMachineMigration) -> String {
    let name = clean(&migration.name_any(), NAME);
    let namespace = clean(&migration.namespace().unwrap_or_default(), NAME);
    format!(
        "The migration goes on. Watch it: kubectl godwit status {name} -n {namespace} --watch. \
         Cancel it: kubectl godwit cancel {name} -n {namespace}"
    )
}

fn verdict(outcome: &Outcome) -> Exit {
    match outcome {
        Outcome::Succeeded => Exit::Success,
        Outcome::Failed(_) => Exit::MigrationFailed,
        Outcome::Cancelled(_) => Exit::Cancelled,
        Outcome::NeedsDecision(_) => Exit::NeedsDecision,
        // Not settled: the caller asks only about what is.
        Outcome::Unseen | Outcome::Going => Exit::TimedOut,
    }
}

fn print(migration: &VirtualMachineMigration, format: Option<ObjectFormat>) -> Result<(), CliError> {
    match format {
        Some(ObjectFormat::Json) => output::object(migration),
        None => output::text(&view::migration::migration(migration, Timestamp::now())),
    }
}
