//! A disk that cannot be taken at the handover: somebody else holds the image when the one who is to run the guest
//! activates it. The guest stands still and that is said; nobody else runs it; once the image is free, it goes on.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use godwit_crds::Decision;
use godwit_lab::cases::Case;
use godwit_lab::{Lab, cases};

use super::judge::Judge;
use super::point::{Deed, Point};
use super::scene::{Scene, fresh};
use super::table::Cell;
use super::way::{MANAGED, PEERS, Way};
use crate::attempt::{End, when_any_journaled, when_journaled};
use crate::crashes::Victim;
use crate::guest::Guest;

/// The source has sent all and given its disks up, and has not been told.
const COMPLETED: Point = Point::of(1, "source.event.StreamCompleted");
/// Go arrives, and the guest was not let run.
const TOLD_GO: Point = Point::of(2, "destination.event.Finish");

/// A process that has taken a disk image for itself.
struct Intruder(Child);

impl Intruder {
    /// Starts it, and waits until it has the image.
    fn takes(guest: &Guest) -> anyhow::Result<Self> {
        let image = guest.disk.as_deref().context("it has no disk")?;
        let child = Command::new("qemu-system-x86_64")
            .args([
                "-nodefaults",
                "-display",
                "none",
                "-S",
                "-machine",
                "q35,accel=tcg",
            ])
            .args([
                "-qmp",
                "stdio",
                "-device",
                "virtio-blk-pci,drive=disk",
                "-blockdev",
            ])
            .arg(format!("driver=file,node-name=disk,filename={}", image.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start the process that takes the image")?;
        let mut intruder = Self(child);
        // It greets before it has its devices, and answers when it has them.
        let input = intruder.0.stdin.as_mut().context("it has an input")?;
        input.write_all(b"{\"execute\": \"qmp_capabilities\"}\n")?;
        let output = intruder.0.stdout.as_mut().context("it has an output")?;
        for line in BufReader::new(output).lines() {
            if line?.contains("return") {
                return Ok(intruder);
            }
        }
        let mut words = String::new();
        let errors = intruder.0.stderr.as_mut().context("it has errors")?;
        BufReader::new(errors).read_line(&mut words)?;
        bail!("it did not get the image: {words}")
    }

    fn lets_go(mut self) -> anyhow::Result<()> {
        self.end().map_err(Into::into)
    }

    fn end(&mut self) -> std::io::Result<()> {
        self.0.kill()?;
        self.0.wait().map(drop)
    }
}

impl Drop for Intruder {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// A guest with a disk, at this point of its move.
async fn held(lab: &mut Lab, way: Way, point: Point) -> anyhow::Result<Scene> {
    fresh(lab).await?;
    let guest = Guest::start(lab).await?;
    let judge = Judge::watch(lab, &guest);
    point.arm(lab, Deed::Wait)?;
    let attempt = Scene::order(lab, way, &guest).await?;
    point.reached(lab).await?;
    Ok(Scene {
        guest,
        attempt,
        way,
        judge,
    })
}

/// The destination is told to let the guest run, and cannot take its disk.
async fn taken_from_the_destination(lab: &mut Lab, way: Way) -> anyhow::Result<()> {
    let scene = held(lab, way, TOLD_GO).await?;
    let intruder = Intruder::takes(&scene.guest)?;
    TOLD_GO.release(lab)?;
    when_journaled(scene.attempt.journal(lab, 2)?, "ContRefused", || {}).await?;
    let ticks = (scene.guest.ticks("h1"), scene.guest.ticks("h2"));
    let words = scene.attempt.needs_decision(lab, "StartRefused").await?;
    ensure!(words.contains("h2") && words.contains("lock"), "{words}");
    ensure!(
        (scene.guest.ticks("h1"), scene.guest.ticks("h2")) == ticks && ticks.1 == 0,
        "it runs"
    );
    intruder.lets_go()?;
    let cell = Cell {
        phase: "Go arrives",
        fault: "its disk's image is held by somebody else",
        flow: way.flow,
        expected: &[End::Moved],
    };
    scene.ends(lab, cell).await?;
    Ok(())
}

async fn cell_disk_taken_from_the_destination_managed(lab: &mut Lab) -> anyhow::Result<()> {
    taken_from_the_destination(lab, MANAGED).await
}

async fn cell_disk_taken_from_the_destination_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    taken_from_the_destination(lab, PEERS).await
}

/// The source is to let the guest run again, which it has given up, and cannot take its disk back.
async fn taken_from_the_source(lab: &mut Lab, way: Way) -> anyhow::Result<()> {
    let scene = held(lab, way, COMPLETED).await?;
    let intruder = Intruder::takes(&scene.guest)?;
    Victim::DestinationHypervisor.kill(lab, &scene.guest)?;
    COMPLETED.release(lab)?;
    let decided = ["Aborted", "Reverted"];
    when_any_journaled(scene.attempt.journal(lab, 1)?, &decided, || {}).await?;
    let ticks = scene.guest.ticks("h1");
    let words = scene
        .attempt
        .needs_decision(lab, "HypervisorUnresponsive")
        .await?;
    ensure!(words.contains("h1") && words.contains("lock"), "{words}");
    ensure!(scene.guest.ticks("h1") == ticks, "it runs");
    let decision = scene.decision(lab).await?;
    ensure!(
        matches!(decision, Decision::Aborted | Decision::Reverted),
        "{decision:?}"
    );
    intruder.lets_go()?;
    let cell = Cell {
        phase: "stream completed",
        fault: "the destination dies; the disk's image is held by somebody else",
        flow: way.flow,
        expected: &[End::Stays],
    };
    scene.ends(lab, cell).await?;
    Ok(())
}

async fn cell_disk_taken_from_the_source_managed(lab: &mut Lab) -> anyhow::Result<()> {
    taken_from_the_source(lab, MANAGED).await
}

async fn cell_disk_taken_from_the_source_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    taken_from_the_source(lab, PEERS).await
}

pub const CASES: &[Case] = cases![
    cell_disk_taken_from_the_destination_managed;
    long:
    cell_disk_taken_from_the_destination_peer_to_peer,
    cell_disk_taken_from_the_source_managed,
    cell_disk_taken_from_the_source_peer_to_peer,
];
