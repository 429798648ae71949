//! The source's agent drives: with the controller, without it, and against what may happen to either agent.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use godwit_crds::migration::MigrationPhase;
use godwit_crds::{Decision, VirtualMachineMigration};
use godwit_lab::Lab;
use godwit_lab::guest::{self, Guest, migrations};

use crate::endings::cancelled;
use crate::setting::{
    CRAWLS, MOVES_WITHIN, SOON, ask_driven_by, cancel, clear, ended, is_true, linux, lives_on, restless,
    start, succeeds,
};

const CHECKED_WITHIN: Duration = Duration::from_secs(90);

/// Asks for a migration that the source's agent is to drive.
async fn ask(lab: &Lab, guest: &Guest, name: &str, to: usize) -> anyhow::Result<()> {
    ask_driven_by(lab, guest, name, &lab.hosts[to - 1], "PeerToPeer").await?;
    Ok(())
}

/// A guest whose memory is on its way and will not arrive before the link is freed.
async fn under_way(lab: &mut Lab, name: &str, migration: &str) -> anyhow::Result<Option<Guest>> {
    clear(lab).await?;
    if !lab.network.separate() {
        println!("  skipped: links cannot be shaped");
        return Ok(None);
    }
    let guest = start(lab, restless(name)).await?;
    lab.network.shape(1, Some(CRAWLS))?;
    ask(lab, &guest, migration, 2).await?;
    let travels = |migration: Option<&VirtualMachineMigration>| {
        let status = migration.and_then(|migration| migration.status.as_ref());
        let progress = status.and_then(|status| status.progress.as_ref());
        progress.is_some_and(|progress| progress.transferred_bytes > 0)
    };
    guest::until(
        &migrations(lab),
        migration,
        MOVES_WITHIN,
        "memory travels",
        travels,
    )
    .await?;
    Ok(Some(guest))
}

/// Everything that a status tells of a migration that went well.
fn complete(migration: &VirtualMachineMigration) -> anyhow::Result<()> {
    let status = migration.status.as_ref().context("a status")?;
    ensure!(status.phase == Some(MigrationPhase::Succeeded), "{status:?}");
    ensure!(
        status.source.as_deref() == Some("h1") && status.destination.as_deref() == Some("h2"),
        "{status:?}"
    );
    ensure!(status.failure.is_none(), "{status:?}");
    let phases: Vec<_> = status.timeline.iter().map(|times| times.phase).collect();
    ensure!(
        phases
            == [
                MigrationPhase::Begin,
                MigrationPhase::Prepare,
                MigrationPhase::Perform,
                MigrationPhase::Finish,
                MigrationPhase::Confirm
            ],
        "{phases:?}"
    );
    let mut last = "";
    for times in &status.timeline {
        let ended_at = times.ended_at.as_deref().context("each phase has ended")?;
        ensure!(
            last <= times.started_at.as_str() && times.started_at.as_str() <= ended_at,
            "{:?}",
            status.timeline
        );
        last = ended_at;
    }
    let progress = status.progress.as_ref().context("progress")?;
    ensure!(progress.transferred_bytes > 16 << 20, "{progress:?}");
    let downtime = status.downtime.as_ref().context("a downtime")?;
    ensure!(downtime.stop_to_resume_micros > 0, "{downtime:?}");
    Ok(())
}

/// The guest has come to h2 whole, and its record was advanced by an agent.
async fn has_moved(lab: &Lab, guest: &Guest) -> anyhow::Result<()> {
    lives_on(lab, guest, 2, 2).await?;
    guest.check_memory(&lab.hosts[1], CHECKED_WITHIN)?;
    let verdict = guest.observer.verdict();
    ensure!(
        verdict.memory_intact() && verdict.counter_continuous(),
        "{verdict:?}"
    );
    ensure!(verdict.moves.len() == 1, "{verdict:?}");
    let record = guest.record(lab.client()).await?.spec;
    ensure!(record.decision == Decision::Committed, "{record:?}");
    ensure!(
        record.writer.starts_with("h1/") || record.writer.starts_with("h2/"),
        "{record:?}"
    );
    Ok(())
}

pub async fn peer_to_peer_a_guest_moves(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    let guest = start(lab, linux("peer", "128Mi", "godwit.dirty=2M")).await?;
    ask(lab, &guest, "peer-1", 2).await?;
    let migration = succeeds(lab, "peer-1").await?;
    complete(&migration)?;
    has_moved(lab, &guest).await?;
    // And back, which the other agent drives.
    ask(lab, &guest, "peer-2", 1).await?;
    succeeds(lab, "peer-2").await?;
    lives_on(lab, &guest, 1, 3).await
}

pub async fn peer_to_peer_the_controller_is_away(lab: &mut Lab) -> anyhow::Result<()> {
    let Some(guest) = under_way(lab, "orphan", "orphan-1").await? else {
        return Ok(());
    };
    lab.kill_controller();
    lab.network.shape(1, None)?;
    // By themselves the agents come to the end: the source lets go only after it has read the advanced record.
    let deadline = Instant::now() + MOVES_WITHIN;
    while !lab.hosts[0].hypervisors().is_empty() {
        ensure!(Instant::now() < deadline, "the source has not let go");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let record = guest.record(lab.client()).await?.spec;
    ensure!(
        (record.holder.as_str(), record.epoch, record.decision) == ("h2", 2, Decision::Committed),
        "{record:?}"
    );
    let before = migrations(lab)
        .get("orphan-1")
        .await?
        .status
        .context("a status")?;
    ensure!(before.phase == Some(MigrationPhase::Perform), "{before:?}");
    lab.start_controller()?;
    let migration = succeeds(lab, "orphan-1").await?;
    complete(&migration)?;
    has_moved(lab, &guest).await
}

pub async fn peer_to_peer_cancelled(lab: &mut Lab) -> anyhow::Result<()> {
    let Some(guest) = under_way(lab, "settler", "settler-1").await? else {
        return Ok(());
    };
    cancel(lab, "settler-1").await?;
    cancelled(&ended(lab, "settler-1").await?)?;
    lives_on(lab, &guest, 1, 1).await?;
    let record = guest.record(lab.client()).await?.spec;
    ensure!(
        matches!(record.decision, Decision::Aborted | Decision::Reverted),
        "{record:?}"
    );
    lab.network.shape(1, None)?;
    ask(lab, &guest, "settler-2", 2).await?;
    succeeds(lab, "settler-2").await?;
    has_moved(lab, &guest).await
}

pub async fn peer_to_peer_the_agents_are_killed(lab: &mut Lab) -> anyhow::Result<()> {
    let Some(guest) = under_way(lab, "survivor", "survivor-1").await? else {
        return Ok(());
    };
    // The driver with its side, and then the other side; the stream is the hypervisors' own.
    lab.restart_agent(1)?;
    lab.wait_until_ready().await?;
    lab.restart_agent(2)?;
    lab.wait_until_ready().await?;
    // A guest whose memory is through waits for no driver: the two are to hear each other again before.
    let began = Instant::now();
    while !lab.hosts[1].hears(lab.network.host(1))? {
        ensure!(
            began.elapsed() < SOON,
            "the driver does not come back to the destination"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let phase = migrations(lab)
        .get("survivor-1")
        .await?
        .status
        .and_then(|status| status.phase);
    ensure!(
        phase == Some(MigrationPhase::Perform),
        "its memory travels, not {phase:?}"
    );
    lab.network.shape(1, None)?;
    complete(&succeeds(lab, "survivor-1").await?)?;
    has_moved(lab, &guest).await
}

pub async fn peer_to_peer_agents_are_parted(lab: &mut Lab) -> anyhow::Result<()> {
    let Some(guest) = under_way(lab, "parted", "parted-1").await? else {
        return Ok(());
    };
    lab.network.part_agents(1, 2, true)?;
    let outcome = parted(lab, &guest).await;
    lab.network.part_agents(1, 2, false)?;
    outcome?;
    lab.network.shape(1, None)?;
    ask(lab, &guest, "parted-3", 2).await?;
    succeeds(lab, "parted-3").await?;
    has_moved(lab, &guest).await
}

async fn parted(lab: &Lab, guest: &Guest) -> anyhow::Result<()> {
    // In the middle of one, and before another one begins.
    for name in ["parted-1", "parted-2"] {
        if name == "parted-2" {
            ask(lab, guest, name, 2).await?;
        }
        let migration = ended(lab, name).await?;
        ensure!(!is_true(&migration, "Succeeded"), "{:?}", migration.status);
        let failure = migration.status.and_then(|status| status.failure);
        let failure = failure.context("a failure")?;
        ensure!(failure.reason == "PeerUnreachable", "{name}: {failure:?}");
        ensure!(failure.message.contains("h2"), "{name}: {failure:?}");
        lives_on(lab, guest, 1, 1).await?;
    }
    Ok(())
}

pub async fn peer_to_peer_the_controller_does_not_reach_the_destination(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    if !lab.network.separate() {
        println!("  skipped: hosts share a network");
        return Ok(());
    }
    let guest = start(lab, linux("hidden", "128Mi", "godwit.dirty=2M")).await?;
    lab.network.hide_from_controller(2, true)?;
    let outcome = async {
        ask(lab, &guest, "hidden-1", 2).await?;
        let migration = succeeds(lab, "hidden-1").await?;
        complete(&migration)
    }
    .await;
    lab.network.hide_from_controller(2, false)?;
    outcome?;
    guest.wait_for_ticks(20, SOON)?;
    has_moved(lab, &guest).await
}
