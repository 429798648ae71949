//! A record that is not there is evidence of nothing: all goes on as it was, and nothing begins.

use anyhow::{Context as _, ensure};
use godwit_crds::migration::MigrationPhase;
use godwit_lab::Lab;
use godwit_lab::cases::LeftOut;
use godwit_lab::guest::migrations;
use kube::ResourceExt as _;
use serde_json::json;

use crate::backup::{delete, migration_says, needs_decision, put_back, runs_once_at};
use crate::setting::{
    CRAWLS, SOON, ask, clear, counting, ended, is_true, lives_on, moves, reaches, restless, start, succeeds,
};
use crate::traces::settles;

pub async fn a_deleted_record_is_put_back(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    let guest = start(lab, counting(lab, "unfiled", &json!({}))?).await?;
    moves(lab, &guest, "unfiled-1", &lab.hosts[1]).await?;
    lives_on(lab, &guest, 2, 2).await?;
    let saved = guest.record(lab.client()).await?;
    delete(lab, &guest).await?;
    // A look at the guest: its host's agent and the controller come back and find no record.
    lab.restart_agent(2)?;
    lab.kill_controller();
    lab.start_controller()?;
    lab.wait_until_ready().await?;
    needs_decision(lab, &guest, "RecordMissing").await?;
    ask(lab, &guest, "unfiled-2", &lab.hosts[0]).await?;
    let refused = ended(lab, "unfiled-2").await?;
    ensure!(is_true(&refused, "Failed"), "{:?}", refused.status);
    runs_once_at(lab, &guest, 2)?;
    put_back(lab, &saved).await?;
    needs_decision(lab, &guest, "NotNeeded").await?;
    moves(lab, &guest, "unfiled-3", &lab.hosts[0]).await?;
    lives_on(lab, &guest, 1, 3).await
}

/// The guest is not stopped without its record; the memory travels on, and the migration goes on once it is back.
pub async fn a_record_is_deleted_while_memory_travels(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    if !lab.network.separate() {
        return Err(LeftOut("links cannot be shaped").into());
    }
    let guest = start(lab, restless("unbound")).await?;
    lab.network.shape(1, Some(CRAWLS))?;
    ask(lab, &guest, "unbound-1", &lab.hosts[1]).await?;
    reaches(lab, "unbound-1", MigrationPhase::Perform).await?;
    let saved = guest.record(lab.client()).await?;
    delete(lab, &guest).await?;
    migration_says(lab, "unbound-1", "RecordMissing").await?;
    // The path is not proved without it.
    let log = lab.records().join("logs/agent-h1.log");
    let uid = migrations(lab).get("unbound-1").await?.uid().context("a UID")?;
    settles("the source holds the stream back", SOON, || {
        let text = std::fs::read_to_string(&log)?;
        let mut lines = text.lines();
        let held = lines.any(|line| line.contains(&uid) && line.contains("the stream is held back"));
        Ok((!held).then(|| log.display().to_string()).into_iter().collect())
    })
    .await?;
    lab.network.shape(1, None)?;
    // Nothing but that keeps the guest here.
    guest.wait_for_ticks(300, SOON)?;
    guest.wait_for_ticks_at("h1", SOON)?;
    put_back(lab, &saved).await?;
    succeeds(lab, "unbound-1").await?;
    lives_on(lab, &guest, 2, 2).await
}
