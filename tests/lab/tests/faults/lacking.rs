//! A destination that lacks what the guest needs, or has what is in its way: refused by name before memory travels.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use godwit_lab::Lab;
use serde_json::json;

use crate::guest::{Guest, directory, until};
use crate::input::{hypervisor, refused, with_host_2};

/// Orders a move that is refused with that reason and these words, and checks that all is as before.
async fn is_refused(lab: &mut Lab, guest: &Guest, reason: &str, words: &str) -> anyhow::Result<()> {
    let (attempt, ended) = refused(lab, guest, "h2", reason).await?;
    ensure!(
        ended.message.contains(words),
        "{words:?} is not in {:?}",
        ended.message
    );
    attempt.holds(lab, guest, &ended).await
}

/// A copy of this machine's QEMU in which these words are others, as long as they were: what had those names, it lacks.
fn hypervisor_without(place: &Path, words: &[(&str, &str)]) -> anyhow::Result<PathBuf> {
    let program = hypervisor()?.canonicalize()?;
    // It looks for its firmware beside itself.
    let home = program.ancestors().nth(2).context("no directory above QEMU's")?;
    std::fs::create_dir_all(place.join("bin"))?;
    for directory in ["share", "lib"] {
        symlink(home.join(directory), place.join(directory))?;
    }
    let mut command = Command::new("sed");
    command.env("LC_ALL", "C");
    for (word, other) in words {
        ensure!(word.len() == other.len(), "{word} and {other} have other lengths");
        command
            .arg("-e")
            .arg(format!("s/{}/{other}/g", word.replace('.', "\\.")));
    }
    let output = command.arg(&program).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "sed: {}", output.status);
    let changed = place.join("bin/qemu-system-x86_64");
    std::fs::write(&changed, &output.stdout)?;
    std::fs::set_permissions(&changed, std::fs::Permissions::from_mode(0o755))?;
    Ok(changed)
}

pub async fn a_missing_machine_type_or_cpu_model_is_named(lab: &mut Lab) -> anyhow::Result<()> {
    let place = lab.host(2)?.directory.join("another-qemu");
    let another = hypervisor_without(&place, &[("pc-q35-10.0", "pc-q35-10.9"), ("qemu64", "qemv64")])?;
    with_host_2(
        lab,
        |c| c["qemu"]["binary"] = json!(another),
        None,
        async |lab| {
            let guest = Guest::start(lab).await?;
            is_refused(lab, &guest, "MachineTypeMissing", "pc-q35-10.0").await?;
            guest.remove(lab).await?;
            let guest = Guest::start_as(lab, |spec| spec["machine"]["type"] = json!("pc-q35-9.2")).await?;
            is_refused(lab, &guest, "CpuModelMissing", "qemu64").await?;
            guest.remove(lab).await
        },
    )
    .await?;
    Ok(std::fs::remove_dir_all(place)?)
}

/// Another directory under the pool's name, and then one that says to be the same and is an old copy.
pub async fn a_missing_pool_or_disk_is_named(lab: &mut Lab) -> anyhow::Result<()> {
    const ID: &str = ".godwit-pool";
    let guest = Guest::start(lab).await?;
    let place = lab.host(2)?.directory.join("another-pool");
    std::fs::create_dir(&place)?;
    std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o755))?;
    let pools = json!({"default": place});
    with_host_2(
        lab,
        |c| c["pools"] = pools.clone(),
        None,
        async |lab| is_refused(lab, &guest, "StorageNotShared", "pool default").await,
    )
    .await?;
    std::fs::copy(lab.pool().join(ID), place.join(ID))?;
    let file = format!("{}.raw", guest.name);
    with_host_2(
        lab,
        |c| c["pools"] = pools.clone(),
        None,
        async |lab| is_refused(lab, &guest, "FileMissing", &file).await,
    )
    .await?;
    guest.remove(lab).await?;
    Ok(std::fs::remove_dir_all(place)?)
}

pub async fn a_missing_bridge_is_named(lab: &mut Lab) -> anyhow::Result<()> {
    if !lab.network.separate() {
        println!("  skipped: guests have no tap interfaces");
        return Ok(());
    }
    ip(lab, 1, "link add only-here0 type bridge")?;
    let interface = json!([{"name": "lan", "bridge": "only-here0", "mac": "52:54:00:12:34:57"}]);
    let guest = Guest::start_as(lab, |spec| spec["interfaces"] = interface).await?;
    is_refused(lab, &guest, "FileMissing", "only-here0").await?;
    ensure!(
        ip(lab, 2, "-o link show type tun")?.is_empty(),
        "a tap device is left at the destination"
    );
    guest.remove(lab).await?;
    ip(lab, 1, "link del only-here0").map(drop)
}

fn ip(lab: &mut Lab, host: usize, words: &str) -> anyhow::Result<String> {
    let mut command = lab.host(host)?.command(Path::new("ip"));
    let output = command.args(words.split(' ')).output()?;
    ensure!(
        output.status.success(),
        "ip {words}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A process that ends with this value.
struct Leftover(Child);

impl Drop for Leftover {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A hypervisor of which no record of the agent speaks sits in the guest's place at the destination. Nobody knows what
/// it is, so nobody ends it.
pub async fn a_process_in_the_guests_place_is_left_alone(lab: &mut Lab) -> anyhow::Result<()> {
    let guest = Guest::start(lab).await?;
    let place = directory(&lab.host(2)?.directory, &guest.uid);
    std::fs::create_dir(&place)?;
    let socket = place.join("qmp.sock");
    let mut command = lab.host(2)?.command(&hypervisor()?);
    command
        .args([
            "-S",
            "-nodefaults",
            "-machine",
            "none",
            "-display",
            "none",
            "-qmp",
        ])
        .arg(format!("unix:{},server=on,wait=off", socket.display()))
        .stdin(Stdio::null());
    let mut leftover = Leftover(command.spawn()?);
    until("it listens", async || Ok(socket.exists().then_some(()))).await?;
    let pid = leftover.0.id();
    let (attempt, ended) = refused(lab, &guest, "h2", "NameTaken").await?;
    ensure!(ended.message.contains(&format!("Process {pid} ")), "{ended:?}");
    ensure!(leftover.0.try_wait()?.is_none(), "it was ended");
    guest.ticks_at("h1").await?;
    drop(leftover);
    std::fs::remove_dir_all(&place)?;
    attempt.holds(lab, &guest, &ended).await?;
    guest.remove(lab).await
}
