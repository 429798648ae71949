//! A guest that a case works on: a boot sector that counts, or a Linux guest that keeps its memory changing.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use godwit_crds::VirtualMachine;
use godwit_crds::virtual_machine::GuestState;
use godwit_guest::line::Line;
use godwit_lab::Lab;
use godwit_lab::boot_sector::{self, BootSector, WRITES_EVERY};
use godwit_lab::console::type_at;
use godwit_lab::guest::STARTS_WITHIN;
use godwit_lab::initramfs::KERNEL_OPTIONS;
use godwit_lab::lab::{INITRAMFS, KERNEL};
use godwit_lab::observer::Observer;
use godwit_lab::processes::Seen;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

/// How long anything may take that takes milliseconds by itself: the machine may have other things to do.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at something that does not tell by itself.
pub const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Each guest has a name of its own: a case that failed must not be in the way of the next.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A guest that was started on host 1.
pub struct Guest {
    pub name: String,
    pub uid: String,
    pub observer: Observer,
    /// The file that its disk is, if it has one.
    pub disk: Option<PathBuf>,
    /// Whether it can check its memory.
    linux: bool,
}

/// Waits until `look` finds something.
pub async fn until<T>(what: &str, look: impl AsyncFnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    until_within(PATIENCE, what, look).await
}

/// Waits for what takes longer by its nature.
pub async fn until_within<T>(
    patience: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("not within {patience:?}: {what}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

impl Guest {
    /// Starts a boot sector on host 1 and waits until it counts. It is idle, and moves in no time.
    pub async fn start(lab: &mut Lab) -> anyhow::Result<Self> {
        Self::start_as(lab, |_| {}).await
    }

    /// The same with a definition that is changed before.
    pub async fn start_as(lab: &mut Lab, change: impl FnOnce(&mut Value)) -> anyhow::Result<Self> {
        let name = next_name();
        let disk = lab.pool().join(format!("{name}.raw"));
        let sector = BootSector {
            writes: true,
            ..BootSector::default()
        };
        std::fs::write(&disk, sector.image())?;
        // Both hosts' hypervisors open it, each as a user of its own.
        std::fs::set_permissions(&disk, std::fs::Permissions::from_mode(0o666))?;
        let mut spec = json!({
            "machine": {"type": "pc-q35-10.0"},
            "memory": "32Mi",
            "boot": {"firmware": {}},
            "disks": [{"name": "root", "file": {"file": format!("{name}.raw")}}],
        });
        change(&mut spec);
        Self::create(lab, name, spec, Some(disk)).await
    }

    /// Starts a Linux guest on host 1 and waits until it counts. It has memory to move, and changes it all the time:
    /// it can only be moved by being stopped while its stream is active.
    pub async fn start_busy(lab: &mut Lab) -> anyhow::Result<Self> {
        let options = "godwit.fill=32M godwit.dirty=4M godwit.working_set=8M godwit.interval=5";
        let spec = json!({
            "machine": {"type": "pc-q35-10.0"},
            "memory": "192Mi",
            "boot": {"kernel": {
                "image": {"file": KERNEL},
                "initramfs": {"file": INITRAMFS},
                "commandLine": format!("{} {options}", KERNEL_OPTIONS.split_whitespace().collect::<Vec<_>>().join(" ")),
            }},
        });
        Self::create(lab, next_name(), spec, None).await
    }

    async fn create(
        lab: &mut Lab,
        name: String,
        mut spec: Value,
        disk: Option<PathBuf>,
    ) -> anyhow::Result<Self> {
        clean_up(lab).await.context("what an earlier case left")?;
        spec["host"] = "h1".into();
        spec["cpu"] = json!({"count": 1, "model": "qemu64"});
        let object = serde_json::from_value(json!({
            "apiVersion": "godwit.dev/v1alpha1",
            "kind": "VirtualMachine",
            "metadata": {"name": name, "namespace": "default"},
            "spec": spec,
        }))?;
        let made = machines(lab).create(&PostParams::default(), &object).await?;
        let uid = made.uid().context("the server gives a UID")?;
        let observer = Observer::start(Duration::from_millis(5));
        for host in &lab.hosts {
            observer.follow(&host.name, &directory(&host.directory, &uid).join("console.log"));
        }
        let linux = disk.is_none();
        let guest = Self {
            name,
            uid,
            observer,
            disk,
            linux,
        };
        guest.state(lab, GuestState::Running).await?;
        guest.ticks_within(STARTS_WITHIN, "h1").await?;
        Ok(guest)
    }

    /// The object.
    pub async fn object(&self, lab: &Lab) -> anyhow::Result<VirtualMachine> {
        Ok(machines(lab).get(&self.name).await?)
    }

    /// Waits until its status tells that state.
    pub async fn state(&self, lab: &Lab, wanted: GuestState) -> anyhow::Result<VirtualMachine> {
        let mut last = None;
        until("the guest's state", async || {
            let object = self.object(lab).await?;
            last = object.status.clone();
            let state = object.status.as_ref().and_then(|status| status.state);
            Ok((state == Some(wanted)).then_some(object))
        })
        .await
        .with_context(|| format!("{} is not {wanted:?}: {last:?}", self.name))
    }

    /// Waits until the guest has counted on at a host since now: it runs there.
    pub async fn ticks_at(&self, host: &str) -> anyhow::Result<()> {
        self.ticks_within(PATIENCE, host).await
    }

    async fn ticks_within(&self, patience: Duration, host: &str) -> anyhow::Result<()> {
        let before = self.ticks(host);
        until_within(patience, "the guest counts", async || {
            Ok((self.ticks(host) >= before + 5).then_some(()))
        })
        .await
        .with_context(|| format!("{} at {host}", self.name))
    }

    /// How many lines it has written at a host.
    pub fn ticks(&self, host: &str) -> usize {
        self.observer
            .lines()
            .iter()
            .filter(|seen| seen.host == host)
            .count()
    }

    /// Its counter never went back or doubled: no two copies ran. What `lost` says it may have lost is the end of its
    /// console's output.
    pub fn ran_once(&self) -> anyhow::Result<()> {
        let verdict = self.observer.verdict();
        ensure!(
            verdict.counter_continuous(),
            "the counter of {} is not continuous: back {:?}, doubled {:?}, skipped {:?}, boots {}, garbled {:?}",
            self.name,
            verdict.went_back,
            verdict.doubled,
            verdict.skipped,
            verdict.boots,
            verdict.garbled
        );
        Ok(())
    }

    /// Has it check all of its memory at the host where it runs, if it can.
    pub async fn memory_is_intact(&self, lab: &mut Lab, host: usize) -> anyhow::Result<()> {
        if !self.linux {
            return Ok(());
        }
        let lines = self.observer.lines();
        let now = lines.iter().rev().find_map(|seen| seen.line.tick()).unwrap_or(0);
        self.types(lab, host, "check\n")?;
        until("the guest has checked its memory", async || {
            // One that was under way in the background may end first.
            let checked = self.observer.lines().iter().any(|seen| match seen.line {
                Line::Check { since_tick, .. } => since_tick >= now,
                Line::Hello { .. }
                | Line::Tick { .. }
                | Line::Accepted { .. }
                | Line::Refused { .. }
                | Line::Count { .. } => false,
            });
            Ok(checked.then_some(()))
        })
        .await?;
        let verdict = self.observer.verdict();
        ensure!(verdict.memory_intact(), "{} has {:?}", self.name, verdict.memory);
        Ok(())
    }

    /// Looks at what it has written to its disk, if it has one: no write is missing, and none came after a later one.
    pub fn disk_is_intact(&self) -> anyhow::Result<()> {
        let Some(disk) = &self.disk else {
            return Ok(());
        };
        if self.observer.verdict().boots > 1 {
            // It counts anew, over what it wrote before.
            return Ok(());
        }
        let told = self
            .observer
            .lines()
            .iter()
            .rev()
            .find_map(|seen| seen.line.tick());
        let before = u32::try_from(told.context("it has not counted")?)?;
        // It goes on writing: a look that crosses a write is taken again, and what is wrong stays wrong for long.
        let mut seen = String::new();
        for _ in 0..5 {
            let written = boot_sector::written(&std::fs::read(disk)?)?;
            let newest = written.iter().copied().max().unwrap_or(0);
            if newest + 2 * WRITES_EVERY >= before && written == boot_sector::last_writes(newest) {
                return Ok(());
            }
            let wrong = (1..).zip(written.iter().zip(boot_sector::last_writes(newest)));
            let wrong: Vec<_> = wrong.filter(|(_, (is, must))| **is != *must).take(8).collect();
            seen = format!("newest {newest}, told {before}; sectors and what must be there: {wrong:?}");
        }
        bail!("the disk of {} is not as it was written: {seen}", self.name)
    }

    /// Its processes on a host.
    pub fn processes(&self, lab: &mut Lab, host: usize) -> anyhow::Result<Vec<Seen>> {
        let mut processes = lab.host(host)?.hypervisors();
        processes.retain(|seen| {
            let arguments = std::fs::read(format!("/proc/{}/cmdline", seen.pid)).unwrap_or_default();
            String::from_utf8_lossy(&arguments).contains(&self.uid)
        });
        Ok(processes)
    }

    /// Its only process on a host.
    pub fn process(&self, lab: &mut Lab, host: usize) -> anyhow::Result<Seen> {
        match self.processes(lab, host)?.as_slice() {
            [one] => Ok(one.clone()),
            other => bail!("{} processes of the guest on host {host}, not one", other.len()),
        }
    }

    /// Types at its console on a host.
    pub fn types(&self, lab: &mut Lab, host: usize, text: &str) -> anyhow::Result<()> {
        type_at(
            &directory(&lab.host(host)?.directory, &self.uid).join("console.sock"),
            text,
        )
    }

    /// Deletes it, and checks that nothing of it is left on any host.
    pub async fn remove(self, lab: &mut Lab) -> anyhow::Result<()> {
        machines(lab).delete(&self.name, &DeleteParams::default()).await?;
        until("the VirtualMachine is gone", async || {
            Ok(machines(lab).get_opt(&self.name).await?.is_none().then_some(()))
        })
        .await
        .context(self.name.clone())?;
        for number in 1..=lab.hosts.len() {
            self.nothing_left(lab, number).await?;
        }
        if let Some(disk) = &self.disk {
            std::fs::remove_file(disk)?;
        }
        Ok(())
    }

    /// Waits until a host has no process, no port, no directory and no record of this guest.
    pub async fn nothing_left(&self, lab: &mut Lab, number: usize) -> anyhow::Result<()> {
        let uid = self.uid.clone();
        let host = lab.host(number)?;
        let mut left = String::new();
        let outcome = until("nothing is left", async || {
            let hypervisors = host.hypervisors();
            let ports: Vec<u16> = host
                .listening()?
                .into_iter()
                .filter(|port| *port != godwit_lab::hosts::AGENT_PORT)
                .collect();
            let files: Vec<PathBuf> = host
                .files()?
                .into_iter()
                .filter(|path| path.to_string_lossy().contains(&uid))
                .collect();
            let directory = directory(&host.directory, &uid);
            left = format!("{hypervisors:?}, ports {ports:?}, {files:?}");
            let nothing =
                hypervisors.is_empty() && ports.is_empty() && files.is_empty() && !directory.exists();
            Ok(nothing.then_some(()))
        })
        .await;
        outcome.with_context(|| format!("left of {uid} on host {number}: {left}"))
    }
}

fn next_name() -> String {
    format!("guest{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Takes away what a case that failed half-way has left: the next one is not to fail with it.
async fn clean_up(lab: &mut Lab) -> anyhow::Result<()> {
    let left = machines(lab).list(&ListParams::default()).await?.items;
    if left.is_empty() {
        return Ok(());
    }
    for machine in left {
        machines(lab)
            .delete(&machine.name_any(), &DeleteParams::default())
            .await?;
    }
    until("no guest is left", async || {
        Ok(machines(lab)
            .list(&ListParams::default())
            .await?
            .items
            .is_empty()
            .then_some(()))
    })
    .await
}

/// A guest's own directory on a host.
pub fn directory(host: &std::path::Path, uid: &str) -> PathBuf {
    host.join("run").join("guests").join(uid)
}

pub fn machines(lab: &Lab) -> Api<VirtualMachine> {
    Api::namespaced(lab.client(), "default")
}
