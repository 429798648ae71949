//! Migrations that end otherwise because somebody said so, and guests that go on where they were.

use anyhow::{Context as _, ensure};
use godwit_crds::migration::MigrationPhase;
use godwit_crds::{Decision, VirtualMachineMigration};
use godwit_lab::Lab;
use godwit_lab::guest::{Guest, migrations};

use crate::setting::{
    CRAWLS, ask, cancel, clear, condition, ended, is_true, lives_on, moves, reaches, remove, restless, start,
};

/// A guest whose memory is on its way and will not arrive.
async fn under_way(lab: &mut Lab, guest: &str, migration: &str) -> anyhow::Result<Option<Guest>> {
    clear(lab).await?;
    if !lab.network.separate() {
        println!("  skipped: links cannot be shaped");
        return Ok(None);
    }
    let guest = start(lab, restless(guest)).await?;
    lab.network.shape(1, Some(CRAWLS))?;
    ask(lab, &guest, migration, &lab.hosts[1]).await?;
    reaches(lab, migration, MigrationPhase::Perform).await?;
    Ok(Some(guest))
}

pub fn cancelled(migration: &VirtualMachineMigration) -> anyhow::Result<()> {
    let status = migration.status.as_ref().context("a status")?;
    ensure!(status.phase == Some(MigrationPhase::Cancelled), "{status:?}");
    ensure!(
        is_true(migration, "Cancelled") && is_true(migration, "Failed"),
        "{status:?}"
    );
    let failed = condition(migration, "Failed").context("a condition")?;
    let failure = status.failure.as_ref().context("a failure")?;
    ensure!(
        failed.reason == "Cancelled" && failure.reason == "Cancelled",
        "{status:?}"
    );
    Ok(())
}

/// The guest was not harmed, and its next migration is not hindered.
async fn unharmed(lab: &Lab, guest: &Guest, next: &str) -> anyhow::Result<()> {
    lives_on(lab, guest, 1, 1).await?;
    let record = guest.record(lab.client()).await?.spec;
    ensure!(
        matches!(
            record.decision,
            Decision::Aborted | Decision::Reverted | Decision::None
        ),
        "{record:?}"
    );
    lab.network.shape(1, None)?;
    moves(lab, guest, next, &lab.hosts[1]).await?;
    lives_on(lab, guest, 2, 2).await
}

pub async fn cancelled_while_memory_travels(lab: &mut Lab) -> anyhow::Result<()> {
    let Some(guest) = under_way(lab, "keeper", "keeper-1").await? else {
        return Ok(());
    };
    cancel(lab, "keeper-1").await?;
    let migration = ended(lab, "keeper-1").await?;
    cancelled(&migration)?;
    unharmed(lab, &guest, "keeper-2").await
}

pub async fn deleted_while_memory_travels(lab: &mut Lab) -> anyhow::Result<()> {
    let Some(guest) = under_way(lab, "stayer", "stayer-1").await? else {
        return Ok(());
    };
    remove(&migrations(lab), "stayer-1").await?;
    unharmed(lab, &guest, "stayer-2").await
}

pub async fn a_second_migration_is_refused(lab: &mut Lab) -> anyhow::Result<()> {
    let Some(guest) = under_way(lab, "twice", "twice-1").await? else {
        return Ok(());
    };
    ask(lab, &guest, "twice-2", &lab.hosts[1]).await?;
    let second = ended(lab, "twice-2").await?;
    let failure = second
        .status
        .clone()
        .and_then(|status| status.failure)
        .context("a failure")?;
    ensure!(
        failure.reason == "AnotherMigrationActive" && failure.message.contains("twice-1"),
        "{failure:?}"
    );
    let accepted = condition(&second, "Accepted").context("a condition")?;
    ensure!(
        accepted.reason == "AnotherMigrationActive" && !is_true(&second, "Accepted"),
        "{accepted:?}"
    );
    let first = migrations(lab).get("twice-1").await?;
    let phase = first.status.as_ref().and_then(|status| status.phase);
    ensure!(
        phase == Some(MigrationPhase::Perform),
        "the first one is in {phase:?}"
    );
    cancel(lab, "twice-1").await?;
    cancelled(&ended(lab, "twice-1").await?)?;
    lives_on(lab, &guest, 1, 1).await
}
