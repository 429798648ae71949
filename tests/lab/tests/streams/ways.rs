//! The ways themselves.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use godwit_crds::VirtualMachineMigration;
use godwit_crds::migration::ChannelSecurity;
use godwit_lab::guest::{self, Guest, migrations};
use godwit_lab::hosts::MIGRATION_PORTS;
use godwit_lab::{Host, Lab};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::setting::{MOVES_WITHIN, SOON, clear, linux, lives_on, start, succeeds};
use crate::traces::settles;

const CHECKED_WITHIN: Duration = Duration::from_secs(90);

/// Asks for a migration with these fields beside the usual ones.
pub async fn ask(lab: &Lab, guest: &Guest, name: &str, to: &Host, more: Value) -> anyhow::Result<()> {
    let mut spec = json!({
        "virtualMachine": guest.name,
        "destination": {"host": to.name},
        "controlFlow": "ManagedDirect",
    });
    let fields = spec.as_object_mut().context("an object")?;
    fields.extend(more.as_object().context("an object")?.clone());
    let migration: VirtualMachineMigration = serde_json::from_value(json!({
        "apiVersion": "godwit.dev/v1alpha1",
        "kind": "VirtualMachineMigration",
        "metadata": {"name": name, "namespace": guest::NAMESPACE},
        "spec": spec,
    }))?;
    migrations(lab).create(&PostParams::default(), &migration).await?;
    Ok(())
}

/// Changes a migration's limit.
pub async fn limit(lab: &Lab, name: &str, bandwidth: &str) -> anyhow::Result<()> {
    let patch = json!({"spec": {"tuning": {"bandwidth": bandwidth}}});
    migrations(lab)
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}

/// A guest whose memory takes its time at a few MiB in a second, and not long without a limit.
pub fn heavy(name: &str) -> Value {
    linux(name, "256Mi", "godwit.fill=96M godwit.dirty=1M")
}

/// Waits until no relay is left on any host, nor what it left.
pub async fn no_relay_is_left(lab: &Lab) -> anyhow::Result<()> {
    settles("no relay is left", SOON, || {
        let mut left = Vec::new();
        for host in &lab.hosts {
            left.extend(relays(host).iter().map(|relay| format!("{relay:?}")));
            let files = host.files()?.into_iter().map(|file| file.display().to_string());
            left.extend(files.filter(|file| file.contains("/tunnels/")));
        }
        Ok(left)
    })
    .await
}

/// The relays of a host.
pub fn relays(host: &Host) -> Vec<godwit_lab::processes::Seen> {
    let processes = host.processes().into_iter();
    processes.filter(|seen| seen.program == "godwit-relay").collect()
}

/// Whether something listens in a host's range for native streams.
fn port_is_open(host: &Host) -> anyhow::Result<bool> {
    let (first, last) = MIGRATION_PORTS;
    Ok(host.listening()?.iter().any(|port| (first..=last).contains(port)))
}

/// Bytes of guest memory that have travelled, by the status.
async fn travelled(lab: &Lab, name: &str) -> anyhow::Result<i64> {
    let status = migrations(lab).get(name).await?.status;
    let progress = status.and_then(|status| status.progress);
    Ok(progress.map_or(0, |progress| progress.transferred_bytes))
}

/// Waits until a migration's memory travels.
pub async fn travels(lab: &Lab, name: &str) -> anyhow::Result<()> {
    let moving = |migration: Option<&VirtualMachineMigration>| {
        let status = migration.and_then(|migration| migration.status.as_ref());
        let progress = status.and_then(|status| status.progress.as_ref());
        progress.is_some_and(|progress| progress.transferred_bytes > 4 << 20)
    };
    guest::until(&migrations(lab), name, MOVES_WITHIN, "memory travels", moving).await?;
    Ok(())
}

pub async fn encrypted_by_default(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    let guest = start(lab, linux("secret", "128Mi", "godwit.dirty=2M")).await?;
    ask(lab, &guest, "secret-1", &lab.hosts[1], json!({})).await?;
    let migration = succeeds(lab, "secret-1").await?;
    let status = migration.status.context("a status")?;
    ensure!(status.channel == Some(ChannelSecurity::Encrypted), "{status:?}");
    lives_on(lab, &guest, 2, 2).await?;
    guest.check_memory(&lab.hosts[1], CHECKED_WITHIN)?;
    ensure!(
        guest.observer.verdict().memory_intact(),
        "{:?}",
        guest.observer.verdict()
    );
    for host in &lab.hosts {
        let files = host.files()?;
        ensure!(
            !files.iter().any(|file| file.ends_with("keys.psk")),
            "a key is left: {files:?}"
        );
    }
    // And back: the hypervisor that has received sends now.
    ask(lab, &guest, "secret-2", &lab.hosts[0], json!({})).await?;
    succeeds(lab, "secret-2").await?;
    lives_on(lab, &guest, 1, 3).await?;
    // In plain text only if it is said.
    let plain = json!({"security": {"require": "None"}});
    ask(lab, &guest, "secret-3", &lab.hosts[1], plain).await?;
    let status = succeeds(lab, "secret-3").await?.status.context("a status")?;
    ensure!(status.channel == Some(ChannelSecurity::PlainText), "{status:?}");
    lives_on(lab, &guest, 2, 4).await
}

pub async fn tunnelled(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    let guest = start(lab, linux("digger", "128Mi", "godwit.fill=32M godwit.dirty=2M")).await?;
    let slowly = json!({"transport": "Tunnelled", "tuning": {"bandwidth": "3Mi"}});
    ask(lab, &guest, "digger-1", &lab.hosts[1], slowly).await?;
    travels(lab, "digger-1").await?;
    for host in &lab.hosts {
        ensure!(relays(host).len() == 1, "{}: {:?}", host.name, relays(host));
        ensure!(!port_is_open(host)?, "a port is open on {}", host.name);
    }
    limit(lab, "digger-1", "0").await?;
    let status = succeeds(lab, "digger-1").await?.status.context("a status")?;
    ensure!(status.channel == Some(ChannelSecurity::Encrypted), "{status:?}");
    lives_on(lab, &guest, 2, 2).await?;
    guest.check_memory(&lab.hosts[1], CHECKED_WITHIN)?;
    let verdict = guest.observer.verdict();
    ensure!(
        verdict.memory_intact() && verdict.counter_continuous(),
        "{verdict:?}"
    );
    no_relay_is_left(lab).await?;
    for number in 2..=5 {
        let name = format!("digger-{number}");
        let to = &lab.hosts[number % 2];
        ask(lab, &guest, &name, to, json!({"transport": "Tunnelled"})).await?;
        succeeds(lab, &name).await?;
        lives_on(lab, &guest, number % 2 + 1, i64::try_from(number)? + 1).await?;
    }
    no_relay_is_left(lab).await
}

pub async fn a_limit_is_kept_and_changed(lab: &mut Lab) -> anyhow::Result<()> {
    /// Bytes in a second.
    const LIMIT: f64 = 2.0 * 1024.0 * 1024.0;
    /// The hypervisor keeps to its limit within a tenth of a second; and a little passes by it.
    const ROUGHLY: f64 = 1.25;
    clear(lab).await?;
    let guest = start(lab, heavy("slow")).await?;
    let begun = std::time::Instant::now();
    let slowly = json!({"tuning": {"bandwidth": "2Mi"}});
    ask(lab, &guest, "slow-1", &lab.hosts[1], slowly).await?;
    // Figures are told late, and never early: by any time at most so much can have travelled since before it began.
    let at_the_limit = || LIMIT * ROUGHLY * begun.elapsed().as_secs_f64();
    let some = |migration: Option<&VirtualMachineMigration>| {
        let status = migration.and_then(|migration| migration.status.as_ref());
        let progress = status.and_then(|status| status.progress.as_ref());
        progress.is_some_and(|progress| progress.transferred_bytes > 10 << 20)
    };
    guest::until(
        &migrations(lab),
        "slow-1",
        MOVES_WITHIN,
        "some has travelled",
        some,
    )
    .await?;
    let so_far = travelled(lab, "slow-1").await? as f64;
    ensure!(
        so_far < at_the_limit(),
        "{so_far} bytes have travelled within {:?}",
        begun.elapsed()
    );
    limit(lab, "slow-1", "0").await?;
    let status = succeeds(lab, "slow-1").await?.status.context("a status")?;
    let all = status.progress.context("progress")?.transferred_bytes as f64;
    ensure!(
        all > at_the_limit(),
        "the limit was not lifted: {all} bytes have travelled within {:?}",
        begun.elapsed()
    );
    lives_on(lab, &guest, 2, 2).await
}
