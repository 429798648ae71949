//! The whole of etcd is restored from a backup, by the runbook: what it knows lies behind what the hosts do. Guests go on
//! where they are; nobody is started a second time.

use anyhow::ensure;
use godwit_crds::Decision;
use godwit_crds::migration::MigrationPhase;
use godwit_lab::Lab;
use godwit_lab::cases::LeftOut;
use godwit_lab::guest::{Guest, machines};
use serde_json::json;

use crate::backup::{needs_decision, replace, runs_once_at, with};
use crate::setting::{
    CRAWLS, SOON, ask, clear, counting, lives_on, moves, reaches, restless, start, succeeds,
};

/// The runbook's steps 1 to 3: the controller is not there while agents and store are.
async fn restore(lab: &mut Lab, backup: &std::path::Path) -> anyhow::Result<()> {
    lab.kill_controller();
    lab.restore_store(backup).await?;
    for number in 1..=lab.hosts.len() {
        lab.restart_agent(number)?;
    }
    lab.wait_until_ready().await
}

fn backup(lab: &Lab, name: &str) -> std::path::PathBuf {
    lab.records().join(format!("{name}.etcd"))
}

/// The guest has moved since.
pub async fn etcd_is_restored_from_before_a_move(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    let guest = start(lab, counting(lab, "remembered", &json!({}))?).await?;
    let copy = backup(lab, "before-a-move");
    lab.save_store(&copy)?;
    moves(lab, &guest, "remembered-1", &lab.hosts[1]).await?;
    lives_on(lab, &guest, 2, 2).await?;
    restore(lab, &copy).await?;
    let old = guest.record(lab.client()).await?;
    ensure!((old.spec.holder.as_str(), old.spec.epoch) == ("h1", 1), "{old:?}");
    // Somebody forgets to compare before the controller is started.
    lab.start_controller()?;
    lab.wait_until_ready().await?;
    let words = needs_decision(lab, &guest, "RecordConflict").await?;
    ensure!(words.contains("h2"), "{words}");
    runs_once_at(lab, &guest, 2)?;
    let right = with(&old, |spec| {
        (spec.holder, spec.epoch) = ("h2".into(), 2);
    });
    replace(lab, &guest, &right).await?;
    needs_decision(lab, &guest, "NotNeeded").await?;
    moves(lab, &guest, "remembered-2", &lab.hosts[0]).await?;
    lives_on(lab, &guest, 1, 3).await
}

/// The migration was under way, and has succeeded since: the journals tell.
pub async fn etcd_is_restored_from_amid_a_migration(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    if !lab.network.separate() {
        return Err(LeftOut("links cannot be shaped").into());
    }
    let guest = start(lab, restless("relived")).await?;
    lab.network.shape(1, Some(CRAWLS))?;
    ask(lab, &guest, "relived-1", &lab.hosts[1]).await?;
    reaches(lab, "relived-1", MigrationPhase::Perform).await?;
    let copy = backup(lab, "amid-a-migration");
    lab.save_store(&copy)?;
    lab.network.shape(1, None)?;
    succeeds(lab, "relived-1").await?;
    lives_on(lab, &guest, 2, 2).await?;
    restore(lab, &copy).await?;
    // The source's agent has driven it, and looks by itself whether what it has proved is written down.
    let restored = guest.record(lab.client()).await?.spec;
    let told = (restored.holder.as_str(), restored.decision);
    ensure!(
        told == ("h1", Decision::None) || told == ("h2", Decision::Committed),
        "{restored:?}"
    );
    runs_once_at(lab, &guest, 2)?;
    lab.start_controller()?;
    lab.wait_until_ready().await?;
    succeeds(lab, "relived-1").await?;
    let record = guest.record(lab.client()).await?;
    ensure!(
        (record.spec.holder.as_str(), record.spec.epoch) == ("h2", 2),
        "{record:?}"
    );
    lives_on(lab, &guest, 2, 2).await?;
    runs_once_at(lab, &guest, 2)
}

/// The guest is younger than the backup: no object knows it, and nobody stops it for that.
pub async fn etcd_is_restored_from_before_a_guest(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    let copy = backup(lab, "before-a-guest");
    lab.save_store(&copy)?;
    let guest: Guest = start(lab, counting(lab, "unheard", &json!({}))?).await?;
    restore(lab, &copy).await?;
    lab.start_controller()?;
    lab.wait_until_ready().await?;
    ensure!(
        machines(lab).get_opt(&guest.name).await?.is_none(),
        "the backup knows the guest"
    );
    guest.wait_for_ticks(600, SOON)?;
    runs_once_at(lab, &guest, 1)
}
