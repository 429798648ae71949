//! A disk that fails under a guest: the kernel answers its hypervisor's calls with an input/output error, on either side
//! of the switchover. `strace` has it do so, by which nothing but the answer is played.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use godwit_lab::cases::{Case, LeftOut};
use godwit_lab::processes::Seen;
use godwit_lab::{Lab, cases};
use rustix::process::{Pid, Signal};

use super::late::{Kind, TOLD_GO, held};
use super::point::Point;
use super::scene::{Scene, fresh};
use super::table::{self, Cell};
use super::way::{MANAGED, PEERS, Way};
use crate::attempt::{End, when_journaled};
use crate::guest::until;

/// The source is told to send the guest, and has not begun.
const PERFORM: Point = Point::of(1, "source.event.Perform");

/// How a hypervisor writes, and how it makes sure of what it has written. Of a guest whose firmware writes, each write is
/// made sure of.
const WRITES: &str = "pwrite64,pwritev,pwritev2";
const FLUSHES: &str = "fdatasync,fsync";

/// Has the kernel answer some calls of a process with an error.
struct FailingDisk {
    strace: Child,
    told: PathBuf,
}

impl FailingDisk {
    /// Begins, and waits until each thread of the process is concerned.
    async fn under(lab: &Lab, process: &Seen, calls: &str) -> anyhow::Result<Self> {
        let told = lab.records().join(format!("failing-disk-{}.log", process.pid));
        let strace = Command::new("strace")
            .args(["-f", "-p", &process.pid.to_string(), "-e"])
            .arg(format!("trace={calls}"))
            .arg("-e")
            .arg(format!("inject={calls}:error=EIO"))
            .arg("-o")
            .arg(&told)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start strace: `tests/tools/install system`")?;
        let mut disk = Self { strace, told };
        until("each thread is traced", async || {
            if disk.strace.try_wait()?.is_some() {
                return Err(LeftOut("processes cannot be traced here").into());
            }
            for thread in std::fs::read_dir(format!("/proc/{}/task", process.pid))? {
                let status = std::fs::read_to_string(thread?.path().join("status")).unwrap_or_default();
                if status.lines().any(|line| line == "TracerPid:\t0") {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await?;
        Ok(disk)
    }

    /// How many calls were answered so.
    fn failed(&self) -> usize {
        let told = std::fs::read_to_string(&self.told).unwrap_or_default();
        told.lines().filter(|line| line.contains("(INJECTED)")).count()
    }

    /// Waits until a call was answered so.
    async fn has_failed(&self) -> anyhow::Result<()> {
        until("a call fails", async || Ok((self.failed() > 0).then_some(()))).await
    }

    /// The disk works again.
    fn mended(mut self) -> anyhow::Result<()> {
        self.end()
    }

    fn end(&mut self) -> anyhow::Result<()> {
        if self.strace.try_wait()?.is_none()
            && let Some(pid) = Pid::from_raw(i32::try_from(self.strace.id())?)
        {
            // By which it lets go of the process first.
            rustix::process::kill_process(pid, Signal::TERM)?;
        }
        self.strace.wait()?;
        Ok(())
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

fn cell(phase: &'static str, fault: &'static str, way: Way, expected: &'static [End]) -> Cell {
    Cell {
        phase,
        fault,
        flow: way.flow,
        expected,
    }
}

/// The destination cannot take the disk when it is told to let the guest run.
async fn destination_cannot_take_it(lab: &mut Lab, way: Way) -> anyhow::Result<()> {
    let scene = held(lab, way, Kind::Idle, TOLD_GO.point).await?;
    let process = scene.guest.process(lab, 2)?;
    let disk = FailingDisk::under(lab, &process, "fcntl").await?;
    TOLD_GO.point.release(lab)?;
    when_journaled(scene.attempt.journal(lab, 2)?, "ContRefused", || {}).await?;
    let ticks = (scene.guest.ticks("h1"), scene.guest.ticks("h2"));
    let words = scene.attempt.needs_decision(lab, "StartRefused").await?;
    ensure!(words.contains("h2"), "{words}");
    ensure!(disk.failed() > 0, "no call has failed");
    ensure!(
        (scene.guest.ticks("h1"), scene.guest.ticks("h2")) == ticks && ticks.1 == 0,
        "it runs"
    );
    println!("  {} calls failed: {words}", disk.failed());
    disk.mended()?;
    let told = cell(
        TOLD_GO.phase,
        "the destination's disk fails when it is taken",
        way,
        &[End::Moved],
    );
    scene.ends(lab, told).await?;
    Ok(())
}

/// The guest itself meets the error while its memory travels, and is stopped by it: it stays as it is, where it is.
async fn guest_cannot_write(lab: &mut Lab, way: Way, calls: &str) -> anyhow::Result<()> {
    let Scene {
        guest,
        attempt,
        judge,
        ..
    } = held(lab, way, Kind::Idle, PERFORM).await?;
    let process = guest.process(lab, 1)?;
    let disk = FailingDisk::under(lab, &process, calls).await?;
    disk.has_failed().await?;
    PERFORM.release(lab)?;
    let ended = attempt.ended(lab).await?;
    println!("  {} calls failed", disk.failed());
    println!("  {:?}, {}: {}", ended.end, ended.reason, ended.message);
    ensure!(
        ended.end == End::Stays && ended.reason == "GuestDiskError",
        "{ended:?}"
    );
    disk.mended()?;
    guest.nothing_left(lab, 2).await?;
    guest.process(lab, 1)?;
    guest.ran_once()?;
    judge.agrees(End::Stays)?;
    table::note(
        cell(
            "memory travels",
            "the guest's disk fails when it writes",
            way,
            &[End::Stays],
        ),
        ended.end,
        None,
    );
    guest.remove(lab).await?;
    fresh(lab).await
}

async fn cell_disk_error_when_the_destination_takes_it_managed(lab: &mut Lab) -> anyhow::Result<()> {
    destination_cannot_take_it(lab, MANAGED).await
}

async fn cell_disk_error_when_the_destination_takes_it_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    destination_cannot_take_it(lab, PEERS).await
}

async fn cell_disk_error_while_memory_travels_managed(lab: &mut Lab) -> anyhow::Result<()> {
    guest_cannot_write(lab, MANAGED, WRITES).await?;
    guest_cannot_write(lab, MANAGED, FLUSHES).await
}

async fn cell_disk_error_while_memory_travels_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    guest_cannot_write(lab, PEERS, WRITES).await?;
    guest_cannot_write(lab, PEERS, FLUSHES).await
}

pub const CASES: &[Case] = cases![
    cell_disk_error_while_memory_travels_peer_to_peer;
    long:
    cell_disk_error_when_the_destination_takes_it_managed,
    cell_disk_error_when_the_destination_takes_it_peer_to_peer,
    cell_disk_error_while_memory_travels_managed,
];
