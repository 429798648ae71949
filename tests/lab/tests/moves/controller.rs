//! The controller is killed and started again; migrations go on.

use anyhow::ensure;
use godwit_crds::migration::MigrationPhase;
use godwit_lab::Lab;
use serde_json::json;

use crate::setting::{ask, clear, counting, linux, lives_on, reaches, start, succeeds};

pub async fn the_controller_is_killed(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    // One migration whose memory travels, one that has just been seen, and one that nobody has seen.
    let travels = start(lab, linux("travels", "256Mi", "godwit.fill=96M godwit.scrub=1M")).await?;
    let seen = start(lab, counting(lab, "seen", &json!({}))?).await?;
    let unseen = start(lab, counting(lab, "unseen", &json!({}))?).await?;
    let slow = lab.network.separate();
    if slow {
        lab.network.shape(1, Some(300))?;
    }
    ask(lab, &travels, "travels-1", &lab.hosts[1]).await?;
    reaches(lab, "travels-1", MigrationPhase::Perform).await?;
    ask(lab, &seen, "seen-1", &lab.hosts[1]).await?;
    reaches(lab, "seen-1", MigrationPhase::Begin).await?;
    lab.kill_controller();
    ask(lab, &unseen, "unseen-1", &lab.hosts[1]).await?;
    let unfinished = godwit_lab::guest::migrations(lab).get("travels-1").await?;
    let phase = unfinished.status.and_then(|status| status.phase);
    ensure!(
        !slow || phase == Some(MigrationPhase::Perform),
        "it was killed too late: {phase:?}"
    );
    lab.start_controller()?;
    for (guest, migration) in [(&travels, "travels-1"), (&seen, "seen-1"), (&unseen, "unseen-1")] {
        succeeds(lab, migration).await?;
        lives_on(lab, guest, 2, 2).await?;
    }

    // And one that is all but over, whose end only its agents know.
    ask(lab, &seen, "seen-2", &lab.hosts[0]).await?;
    reaches(lab, "seen-2", MigrationPhase::Perform).await?;
    lab.kill_controller();
    lab.start_controller()?;
    succeeds(lab, "seen-2").await?;
    lives_on(lab, &seen, 1, 3).await?;
    travels.check_memory(&lab.hosts[1], crate::setting::SOON)?;
    ensure!(
        travels.observer.verdict().memory_intact(),
        "{:?}",
        travels.observer.verdict()
    );
    Ok(())
}
