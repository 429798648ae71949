//! The controller is killed and started again; migrations go on.

use anyhow::ensure;
use godwit_crds::migration::MigrationPhase;
use godwit_lab::Lab;
use godwit_lab::guest::migrations;
use serde_json::json;

use crate::setting::{
    MOVES_WITHIN, SOON, ask, clear, counting, ended, is_true, linux, lives_on, moves, reaches, restless,
    start, succeeds,
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
        lab.network.shape(1, Some(100))?;
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

/// Without a controller nobody could say Go: a guest is not stopped for its sake, wherever its memory is by then.
pub async fn no_guest_is_stopped_without_a_controller(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    if !lab.network.separate() {
        println!("  skipped: links cannot be shaped");
        return Ok(());
    }
    let guest = start(lab, linux("idle", "256Mi", "godwit.fill=128M godwit.scrub=1M")).await?;
    // Its memory takes more than 3 s, and then nothing is left to send.
    lab.network.shape(1, Some(200))?;
    ask(lab, &guest, "idle-1", &lab.hosts[1]).await?;
    reaches(lab, "idle-1", MigrationPhase::Perform).await?;
    lab.kill_controller();
    // By themselves the agents come to an end, and the destination gives its copy up.
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
    let migration = ended(lab, "idle-1").await?;
    ensure!(!is_true(&migration, "Succeeded"), "{:?}", migration.status);
    let failure = migration.status.and_then(|status| status.failure);
    ensure!(
        failure
            .as_ref()
            .is_some_and(|failure| failure.reason == "AgentUnreachable"),
        "{failure:?}"
    );
    lives_on(lab, &guest, 1, 1).await?;
    moves(lab, &guest, "idle-2", &lab.hosts[1]).await?;
    lives_on(lab, &guest, 2, 2).await
}
