//! The controller is killed and started again; migrations go on.

use anyhow::{Context as _, ensure};
use godwit_crds::migration::MigrationPhase;
use godwit_lab::Lab;
use godwit_lab::guest::{Guest, migrations};
use kube::ResourceExt as _;
use serde_json::json;

use crate::setting::{
    CRAWLS, MOVES_WITHIN, SOON, ask, clear, counting, ended, is_true, linux, lives_on, moves, reaches,
    restless, start, succeeds,
};
use crate::traces::settles;

pub async fn the_controller_is_killed(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    // One migration whose memory travels, one that has just been seen, and one that nobody has seen. The first cannot
    // come to its end before the link is freed.
    let travels = start(lab, restless("travels")).await?;
    let seen = start(lab, counting(lab, "seen", &json!({}))?).await?;
    let unseen = start(lab, counting(lab, "unseen", &json!({}))?).await?;
    if lab.network.separate() {
        lab.network.shape(1, Some(CRAWLS))?;
    }
    ask(lab, &travels, "travels-1", &lab.hosts[1]).await?;
    reaches(lab, "travels-1", MigrationPhase::Perform).await?;
    ask(lab, &seen, "seen-1", &lab.hosts[1]).await?;
    reaches(lab, "seen-1", MigrationPhase::Begin).await?;
    lab.kill_controller();
    ask(lab, &unseen, "unseen-1", &lab.hosts[1]).await?;
    lab.start_controller()?;
    for (guest, migration) in [(&seen, "seen-1"), (&unseen, "unseen-1")] {
        succeeds(lab, migration).await?;
        lives_on(lab, guest, 2, 2).await?;
    }
    if lab.network.separate() {
        let status = migrations(lab).get("travels-1").await?.status;
        let phase = status.and_then(|status| status.phase);
        ensure!(
            phase == Some(MigrationPhase::Perform),
            "its memory still travels, not {phase:?}"
        );
        lab.network.shape(1, None)?;
    }
    succeeds(lab, "travels-1").await?;
    lives_on(lab, &travels, 2, 2).await?;
    travels.check_memory(&lab.hosts[1], SOON)?;
    ensure!(
        travels.observer.verdict().memory_intact(),
        "{:?}",
        travels.observer.verdict()
    );

    // And one that is all but over, whose end only its agents know.
    ask(lab, &seen, "seen-2", &lab.hosts[0]).await?;
    reaches(lab, "seen-2", MigrationPhase::Finish).await?;
    lab.kill_controller();
    lab.start_controller()?;
    succeeds(lab, "seen-2").await?;
    lives_on(lab, &seen, 1, 3).await
}

/// A guest whose memory takes some 20 s, and then nothing is left to send; its controller is killed while it travels.
async fn abandoned(lab: &mut Lab, name: &str, migration: &str) -> anyhow::Result<Option<Guest>> {
    clear(lab).await?;
    if !lab.network.separate() {
        println!("  skipped: links cannot be shaped");
        return Ok(None);
    }
    let guest = start(lab, linux(name, "256Mi", "godwit.fill=128M godwit.scrub=1M")).await?;
    lab.network.shape(1, Some(60))?;
    ask(lab, &guest, migration, &lab.hosts[1]).await?;
    reaches(lab, migration, MigrationPhase::Perform).await?;
    lab.kill_controller();
    Ok(Some(guest))
}

/// Without a controller nobody could say Go: a guest is not stopped for its sake, wherever its memory is by then. It goes
/// on when the controller is back.
pub async fn no_guest_is_stopped_without_a_controller(lab: &mut Lab) -> anyhow::Result<()> {
    let Some(guest) = abandoned(lab, "idle", "idle-1").await? else {
        return Ok(());
    };
    let uid = migrations(lab).get("idle-1").await?.uid().context("a UID")?;
    let log = lab.records().join("logs/agent-h1.log");
    settles("the source holds the stream back", SOON, || {
        let text = std::fs::read_to_string(&log)?;
        let held = text
            .lines()
            .any(|line| line.contains(&uid) && line.contains("the stream is held back"));
        Ok(if held {
            vec![]
        } else {
            vec![log.display().to_string()]
        })
    })
    .await?;
    // Nothing but that holds it from here on.
    lab.network.shape(1, None)?;
    guest.wait_for_ticks(200, SOON)?;
    let journal = lab.hosts[0]
        .directory
        .join(format!("state/journals/{uid}.journal"));
    let journal = String::from_utf8_lossy(&std::fs::read(journal)?).into_owned();
    ensure!(!journal.contains("\"Sealed\""), "the guest was stopped");
    lab.start_controller()?;
    succeeds(lab, "idle-1").await?;
    lives_on(lab, &guest, 2, 2).await
}

/// By themselves the agents come to an end, and the destination gives its copy up.
pub async fn a_controller_that_stays_away_is_given_up(lab: &mut Lab) -> anyhow::Result<()> {
    let Some(guest) = abandoned(lab, "left", "left-1").await? else {
        return Ok(());
    };
    settles("the destination gives the guest's copy up", MOVES_WITHIN, || {
        let hypervisors = lab.hosts[1].hypervisors();
        Ok(hypervisors
            .iter()
            .map(|process| process.program.clone())
            .collect())
    })
    .await?;
    guest.wait_for_ticks(20, SOON)?;
    lab.network.shape(1, None)?;
    lab.start_controller()?;
    let migration = ended(lab, "left-1").await?;
    ensure!(!is_true(&migration, "Succeeded"), "{:?}", migration.status);
    let failure = migration.status.and_then(|status| status.failure);
    ensure!(
        failure
            .as_ref()
            .is_some_and(|failure| ["DriverLost", "AgentUnreachable"].contains(&failure.reason.as_str())),
        "{failure:?}"
    );
    lives_on(lab, &guest, 1, 1).await?;
    moves(lab, &guest, "left-2", &lab.hosts[1]).await?;
    lives_on(lab, &guest, 2, 2).await
}
