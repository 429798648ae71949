//! Writes a migration's status and tells of its transitions, beside the driver: no order ever waits for it.

use std::sync::Arc;
use std::time::Duration;

use godwit_crds::{VirtualMachineMigration, VirtualMachineMigrationStatus};
use kube::{Api, ResourceExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::book::{self, Notice};
use super::drivers::LONGEST_HOLD;
use super::validate;
use crate::apply;
use crate::cluster::Cluster;

/// Figures alone are written at most this often.
const FIGURES_EVERY: Duration = Duration::from_secs(2);
/// Between two attempts to write.
const RETRY_AFTER: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

/// What is to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// The status.
    pub status: VirtualMachineMigrationStatus,
    /// The handover is under way: the machine and the API server have better things to do, for [`LONGEST_HOLD`].
    pub hold: bool,
    /// Nothing comes after it.
    pub last: bool,
}

/// Whether the migration is this driver's to begin. A second controller that believes that it leads may end the migration
/// at the same time: it was cancelled before it began. Both say so in its status first, and what has ended stays so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// That it has been accepted is not written yet.
    Open,
    /// It is written, and nobody ends it any more without driving it.
    Ours,
    /// It has been ended by somebody else, or is gone: it is given up where that is not too late.
    Over,
}

/// Writes drafts until the last one is written, the sender is gone, or the object is.
pub async fn publish(
    cluster: Arc<Cluster>,
    migration: Arc<VirtualMachineMigration>,
    mut drafts: watch::Receiver<Draft>,
    claim: watch::Sender<Claim>,
) {
    // What has ended keeps its word; it is only driven once more because its record was left open.
    if validate::ended(&migration) {
        return;
    }
    let api: Api<VirtualMachineMigration> =
        Api::namespaced(cluster.client.clone(), &migration.namespace().unwrap_or_default());
    let (events, mut to_tell) = tokio::sync::mpsc::unbounded_channel::<Vec<Notice>>();
    let teller = {
        let (cluster, migration) = (cluster.clone(), migration.clone());
        cluster.tasks.clone().spawn(async move {
            while let Some(notices) = to_tell.recv().await {
                cluster.notify(&*migration, notices).await;
            }
        })
    };
    let mut written = migration.status.clone().unwrap_or_default();
    let mut written_at: Option<Instant> = None;
    let mut held_since: Option<Instant> = None;
    let mut retry_after = RETRY_AFTER[0];
    let mut open = true;
    loop {
        let draft = drafts.borrow_and_update().clone();
        if draft.status == written {
            if draft.last || !open {
                break;
            }
            open = drafts.changed().await.is_ok();
            continue;
        }
        held_since = if draft.hold {
            held_since.or_else(|| Some(Instant::now()))
        } else {
            None
        };
        let due = match (held_since, written_at) {
            (Some(since), _) => Some(since + LONGEST_HOLD),
            (None, Some(at)) if open && book::only_figures_differ(&written, &draft.status) => {
                Some(at + FIGURES_EVERY)
            }
            (None, _) => None,
        };
        if let Some(due) = due
            && open
            && Instant::now() < due
        {
            tokio::select! {
                changed = drafts.changed() => open = changed.is_ok(),
                () = sleep_until(due) => {}
            }
            continue;
        }
        match apply::status(&api, &*migration, &draft.status).await {
            Ok(()) => {
                let notices = book::notices(&written, &draft.status);
                if !notices.is_empty() {
                    // The receiver lives as long as this function.
                    let _ = events.send(notices);
                }
                claim.send_if_modified(|claim| std::mem::replace(claim, Claim::Ours) != Claim::Ours);
                written = draft.status;
                written_at = Some(Instant::now());
                retry_after = RETRY_AFTER[0];
            }
            Err(error) if apply::gone(&error) => {
                tracing::info!(migration = migration.name_any(), "the migration's object is gone");
                over(&claim);
                break;
            }
            // Of two controllers that lead for a while one is slower: what the faster one has ended stays so.
            Err(error) if apply::forbidden(&error) => {
                tracing::info!(%error, migration = migration.name_any(), "the migration has been ended by another controller");
                if has_ended(&api, &migration).await {
                    over(&claim);
                }
                break;
            }
            Err(error) => {
                tracing::warn!(%error, migration = migration.name_any(), "the status was not written");
                if !open {
                    break;
                }
                tokio::select! {
                    () = tokio::time::sleep(retry_after) => {}
                    () = cluster.shutdown.cancelled() => break,
                }
                retry_after = (retry_after * 2).min(RETRY_AFTER[1]);
            }
        }
    }
    drop(events);
    drop(teller);
}

/// Whether the migration stands as ended, as far as the API server tells it now.
async fn has_ended(api: &Api<VirtualMachineMigration>, migration: &VirtualMachineMigration) -> bool {
    match apply::within(api.get_opt(&migration.name_any())).await {
        Ok(Some(now)) => now.uid() != migration.uid() || validate::ended(&now),
        Ok(None) => true,
        Err(_) => false,
    }
}

/// Nothing can be written any more: somebody else has ended it, or it is gone.
fn over(claim: &watch::Sender<Claim>) {
    claim.send_if_modified(|claim| std::mem::replace(claim, Claim::Over) != Claim::Over);
}
