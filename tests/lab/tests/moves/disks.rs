//! Guests with disks and interfaces move, and what belongs to these moves with them.

use anyhow::{Context as _, ensure};
use godwit_crds::VirtualMachineMigration;
use godwit_lab::{Host, Lab};
use serde_json::json;

use crate::setting::{ask, clear, counting, ended, lives_on, moves, start};
use crate::traces::taps;

/// The locks that a host's hypervisors hold on a file, as the kernel shows them.
fn locks(host: &Host, path: &std::path::Path) -> anyhow::Result<usize> {
    let mut found = 0;
    for process in host.hypervisors() {
        for entry in std::fs::read_dir(format!("/proc/{}/fd", process.pid))? {
            let entry = entry?;
            if std::fs::read_link(entry.path()).is_ok_and(|target| target == path) {
                let number = entry.file_name().into_string().unwrap_or_default();
                let shown = std::fs::read_to_string(format!("/proc/{}/fdinfo/{number}", process.pid))?;
                found += shown.lines().filter(|line| line.starts_with("lock:")).count();
            }
        }
    }
    Ok(found)
}

pub async fn a_guest_boots_from_its_disk_and_moves(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    let guest = start(lab, counting(lab, "disk-none", &json!({"cache": "None"}))?).await?;
    let path = lab.pool().join("disk-none.img").canonicalize()?;
    let before = locks(&lab.hosts[0], &path)?;
    ensure!(
        before > 0 && locks(&lab.hosts[1], &path)? == 0,
        "{before} locks at the source"
    );
    moves(lab, &guest, "disk-none-1", &lab.hosts[1]).await?;
    lives_on(lab, &guest, 2, 2).await?;
    let after = locks(&lab.hosts[1], &path)?;
    ensure!(
        after == before && locks(&lab.hosts[0], &path)? == 0,
        "{before} locks became {after}"
    );
    moves(lab, &guest, "disk-none-2", &lab.hosts[0]).await?;
    lives_on(lab, &guest, 1, 3).await?;
    ensure!(
        locks(&lab.hosts[0], &path)? == before && locks(&lab.hosts[1], &path)? == 0,
        "the locks came back"
    );
    Ok(())
}

pub async fn cached_disks(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    // What may be left in the source's page cache is refused, with what to do.
    let guest = start(
        lab,
        counting(lab, "disk-writeback", &json!({"cache": "Writeback"}))?,
    )
    .await?;
    ask(lab, &guest, "disk-writeback-1", &lab.hosts[1]).await?;
    let refused: VirtualMachineMigration = ended(lab, "disk-writeback-1").await?;
    let failure = refused
        .status
        .and_then(|status| status.failure)
        .context("a failure")?;
    ensure!(
        failure.reason == "UnsafeCacheMode" && failure.message.contains("root"),
        "{failure:?}"
    );
    lives_on(lab, &guest, 1, 1).await?;
    // A disk that is only read leaves nothing behind.
    let disk = json!({"cache": "Writeback", "readOnly": true});
    let guest = start(lab, counting(lab, "disk-read", &disk)?).await?;
    moves(lab, &guest, "disk-read-1", &lab.hosts[1]).await?;
    lives_on(lab, &guest, 2, 2).await
}

pub async fn a_guest_takes_its_interface_along(lab: &mut Lab) -> anyhow::Result<()> {
    const BRIDGE: &str = "guests0";
    clear(lab).await?;
    if !lab.network.separate() {
        println!("  skipped: guests have no tap interfaces");
        return Ok(());
    }
    for host in &lab.hosts {
        ip(host, &["link", "add", BRIDGE, "type", "bridge"])?;
        ip(host, &["link", "set", BRIDGE, "up"])?;
    }
    let mut manifest = counting(lab, "tapped", &json!({}))?;
    manifest["spec"]["interfaces"] = json!([{"name": "lan", "bridge": BRIDGE, "mac": "52:54:00:12:34:56"}]);
    let guest = start(lab, manifest).await?;
    ensure!(
        on_bridge(&lab.hosts[0], BRIDGE)?.len() == 1,
        "a tap device is on the bridge"
    );
    moves(lab, &guest, "tapped-1", &lab.hosts[1]).await?;
    lives_on(lab, &guest, 2, 2).await?;
    let taps_now = taps(&lab.hosts[1])?;
    ensure!(
        taps_now.len() == 1 && on_bridge(&lab.hosts[1], BRIDGE)?.len() == 1,
        "{taps_now:?}"
    );
    ensure!(taps(&lab.hosts[0])?.is_empty(), "{:?}", taps(&lab.hosts[0])?);
    clear(lab).await?;
    for host in &lab.hosts {
        ensure!(taps(host)?.is_empty(), "{:?}", taps(host)?);
        ip(host, &["link", "del", BRIDGE])?;
    }
    Ok(())
}

fn ip(host: &Host, words: &[&str]) -> anyhow::Result<String> {
    let output = host.command(std::path::Path::new("ip")).args(words).output()?;
    ensure!(
        output.status.success(),
        "ip {words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn on_bridge(host: &Host, bridge: &str) -> anyhow::Result<Vec<String>> {
    let shown = ip(host, &["-o", "link", "show", "master", bridge])?;
    Ok(shown.lines().map(str::to_owned).collect())
}
