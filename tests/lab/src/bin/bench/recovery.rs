//! How soon a migration is followed again after an agent's restart.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use godwit_crds::VirtualMachineMigration;
use godwit_crds::migration::MigrationPhase;
use godwit_lab::Lab;
use godwit_lab::guest::{self, Guest};
use kube::ResourceExt as _;
use kube::api::PostParams;

use crate::downtime::{LIGHT, TICKS_AROUND};
use crate::rows::{Bound, Row};
use crate::setting::{self, Kind, Way};

/// Slow enough that the memory travels for longer than a restart takes, in Mbit/s.
const SLOW: u32 = 40;
/// Whatever takes longer hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked at what no watch tells.
pub const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Kills an agent, in turn the source's and the destination's, while memory travels, and starts it again at once.
pub async fn follow(lab: &mut Lab, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let kind = Kind {
        name: "follow",
        options: "godwit.fill=64M godwit.dirty=0 godwit.scrub=0",
        ..LIGHT
    };
    let guest = setting::start(lab, kind).await?;
    let mut samples = vec![];
    for round in 0..=rounds {
        let (from, to) = (round % 2 + 1, (round + 1) % 2 + 1);
        // Twice each: the guest goes to and fro.
        let victim = if round / 2 % 2 == 0 { from } else { to };
        lab.network.shape(from, Some(SLOW))?;
        let followed = followed_again(lab, &guest, &format!("follow-{round}"), to, victim).await;
        lab.network.shape(from, None)?;
        let (migration, took) = followed.with_context(|| format!("follow-{round}"))?;
        let phase = ended(lab, &migration).await?;
        ensure!(
            phase == MigrationPhase::Succeeded,
            "{migration} has ended as {phase:?} after a restart of h{victim}'s agent"
        );
        if round > 0 {
            samples.push(took.as_secs_f64());
        }
        guest.wait_for_ticks(TICKS_AROUND, PATIENCE)?;
        lab.wait_until_ready().await?;
    }
    setting::remove(lab, &guest).await?;
    Ok(vec![Row::of(
        "recovery-follow",
        "s",
        &samples,
        Some(Bound::AtMost(2.0)),
    )?])
}

/// From the kill until the agent, which serves nobody before it has taken up its migrations, has the controller's
/// connection again. That the migration is then followed is looked at, and not timed: figures are written to the status
/// every two seconds only.
async fn followed_again(
    lab: &mut Lab,
    guest: &Guest,
    name: &str,
    to: usize,
    victim: usize,
) -> anyhow::Result<(String, Duration)> {
    order(lab, guest, name, to).await?;
    let sent = |migration: &VirtualMachineMigration| {
        let progress = migration.status.as_ref()?.progress.as_ref()?;
        Some(progress.transferred_bytes)
    };
    let streams = |object: Option<&VirtualMachineMigration>| object.and_then(sent) > Some(0);
    let api = guest::migrations(lab);
    guest::until(&api, name, PATIENCE, "its memory travels", streams).await?;
    let before = sent(&api.get(name).await?);
    let begun = Instant::now();
    lab.restart_agent(victim)?;
    let controller = lab.network.machine();
    let host = lab.host(victim)?;
    while !host.hears(controller)? {
        ensure!(
            begun.elapsed() < PATIENCE,
            "the controller has not come back to h{victim}"
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let took = begun.elapsed();
    let goes_on = |object: Option<&VirtualMachineMigration>| object.and_then(sent) > before;
    guest::until(&api, name, PATIENCE, "its status moves on", goes_on).await?;
    Ok((name.to_owned(), took))
}

/// Orders a migration; its UID.
pub async fn order(lab: &Lab, guest: &Guest, name: &str, to: usize) -> anyhow::Result<String> {
    let migration = setting::migration(guest, name, &format!("h{to}"), Way::Plain, 1)?;
    let created = guest::migrations(lab)
        .create(&PostParams::default(), &migration)
        .await?;
    created.uid().context("a migration has a UID")
}

/// Waits for a migration's end: whether it has succeeded or failed, somebody has decided.
pub async fn ended(lab: &Lab, name: &str) -> anyhow::Result<MigrationPhase> {
    let last = |object: Option<&VirtualMachineMigration>| {
        let phase = object?.status.as_ref()?.phase?;
        [MigrationPhase::Succeeded, MigrationPhase::Failed]
            .contains(&phase)
            .then_some(phase)
    };
    let api = guest::migrations(lab);
    let object = guest::until(&api, name, PATIENCE, "it has ended", move |object| {
        last(object).is_some()
    })
    .await?;
    last(object.as_ref()).context("it was seen to end")
}
