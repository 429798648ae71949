//! The disk under an agent's state is full.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, ensure};
use godwit_lab::Lab;

use crate::attempt::{Attempt, End};
use crate::crashes::SLOWER;
use crate::guest::Guest;
use crate::input::refused;

/// A disk of its own for a host's state, and a file that fills it.
struct SmallDisk {
    host: usize,
    filler: PathBuf,
}

impl SmallDisk {
    fn fill(&self) -> anyhow::Result<()> {
        let mut file = std::fs::File::create(&self.filler)?;
        loop {
            match file.write_all(&[0; 4096]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => bail!(error),
            }
        }
    }

    fn empty(&self) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(&self.filler)?)
    }
}

fn run(program: &str, arguments: &[&str], place: &Path) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments).arg(place).output()?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {words}", place.display());
    Ok(())
}

/// Hosts with a disk of 2 MiB for their state, as long as `work` takes.
async fn with_small_disks(
    lab: &mut Lab,
    hosts: &[usize],
    work: impl AsyncFnOnce(&mut Lab, &[SmallDisk]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if !lab.network.separate() {
        println!("  skipped: only root can mount");
        return Ok(());
    }
    let mut disks = Vec::new();
    for &host in hosts {
        lab.host(host)?.stop_agent().await?;
        let place = lab.host(host)?.directory.join("state");
        run(
            "mount",
            &["-t", "tmpfs", "-o", "size=2m,mode=0711", "none"],
            &place,
        )?;
        lab.start_agent(host)?;
        let filler = place.join("filler");
        disks.push(SmallDisk { host, filler });
    }
    lab.wait_until_ready().await?;
    let outcome = work(lab, &disks).await;
    for disk in &disks {
        lab.host(disk.host)?.stop_agent().await?;
        run("umount", &[], &lab.host(disk.host)?.directory.join("state"))?;
        lab.start_agent(disk.host)?;
    }
    lab.wait_until_ready().await?;
    outcome
}

/// At the source, and then at the destination, whose turn comes a little later.
pub async fn a_full_disk_at_the_beginning_is_named(lab: &mut Lab) -> anyhow::Result<()> {
    with_small_disks(lab, &[1, 2], async |lab, disks| {
        let guest = Guest::start(lab).await?;
        for disk in disks {
            disk.fill()?;
            let outcome = refused(lab, &guest, "h2", "DiskFull").await;
            disk.empty()?;
            let (attempt, ended) = outcome?;
            attempt.holds(lab, &guest, &ended).await?;
        }
        let attempt = Attempt::order(lab, &guest.name, "h2").await?;
        attempt.settles(lab, guest, &[End::Moved]).await?;
        Ok(())
    })
    .await
}

/// What is written at a handover has its place from the beginning: full disks do not keep the guest from moving. What
/// is written after it waits until there is room.
pub async fn full_disks_while_memory_travels(lab: &mut Lab) -> anyhow::Result<()> {
    with_small_disks(lab, &[1, 2], async |lab, disks| {
        let guest = Guest::start_busy(lab).await?;
        lab.network.shape(1, Some(SLOWER))?;
        let outcome = async {
            let attempt = Attempt::order(lab, &guest.name, "h2").await?;
            attempt.streams(lab).await?;
            for disk in disks {
                disk.fill()?;
            }
            anyhow::Ok(attempt)
        }
        .await;
        lab.network.shape(1, None)?;
        let moved = guest.ticks_at("h2").await;
        for disk in disks {
            disk.empty()?;
        }
        let attempt = outcome?;
        moved?;
        attempt.settles(lab, guest, &[End::Moved]).await?;
        Ok(())
    })
    .await
}
