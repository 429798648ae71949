//! A run of the lab: its number, its directories, and what it may leave behind.
//!
//! Every run has a number from 1 to 250, and everything that it makes in the system is named by it: addresses
//! (`10.113.N.0/24`), network namespaces (`gwN`, `gwN-h1`), the directory. A run holds a lock on its number as long as
//! it lives; when the lock is free, what is there was left behind by a crash and is removed by the next run that
//! starts, unless it was left on purpose ([`Run::leave`]).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::processes::{self, Owner, Seen};
use crate::{cache, network};

const LAST: u8 = 250;
const KEPT_LOGS: usize = 30;
const GROUP_EMPTIES: Duration = Duration::from_secs(20);

/// A run that this process holds. Dropped, it is removed from the system.
#[derive(Debug)]
pub struct Run {
    number: u8,
    directory: PathBuf,
    records: PathBuf,
    lock_path: PathBuf,
    over: bool,
    // Held until this value goes; the lock is the file descriptor's.
    _lock: File,
}

/// What is known about a run from its directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Left {
    /// The kernel's boot id: after a reboot nothing of the run lives.
    boot: String,
    /// Whether it was left running on purpose.
    pub on_purpose: bool,
    /// Where its logs and kubeconfigs are.
    pub records: PathBuf,
}

/// A run as [`list`] sees it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its number.
    pub number: u8,
    /// Whether a process holds it now.
    pub held: bool,
    /// What its directory says; None when it crashed too early to say anything.
    pub left: Option<Left>,
    /// Its living processes.
    pub processes: Vec<Seen>,
}

impl Run {
    /// Takes the lowest free number, after having removed whatever crashed runs left behind.
    ///
    /// # Errors
    /// When all numbers are taken, or the remains of a crashed run cannot be removed.
    pub fn claim(label: &str) -> anyhow::Result<Self> {
        let base = base()?;
        remove_crashed(&base)?;
        for number in 1..=LAST {
            let Some((lock, lock_path)) = lock(&base, number)? else {
                continue;
            };
            let directory = base.join(number.to_string());
            if directory.exists() {
                // Left running on purpose: it keeps its number.
                continue;
            }
            let stamp = jiff::Zoned::now().strftime("%Y%m%d-%H%M%S").to_string();
            let runs = cache::runs()?;
            prune(&runs);
            let records = runs.join(format!("{stamp}-{label}-{number}"));
            std::fs::create_dir_all(records.join("logs"))
                .with_context(|| format!("make {}", records.display()))?;
            std::fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
            // Guests' hypervisors run as other users and must get through to their files.
            std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o711))?;
            let run = Self {
                number,
                directory,
                records,
                lock_path,
                over: false,
                _lock: lock,
            };
            run.describe(false)?;
            return Ok(run);
        }
        bail!("all {LAST} lab runs are taken: tests/lab's `lab status` shows them, `lab down` removes them")
    }

    fn describe(&self, on_purpose: bool) -> anyhow::Result<()> {
        let left = Left {
            boot: boot_id(),
            on_purpose,
            records: self.records.clone(),
        };
        std::fs::write(self.directory.join("run.json"), serde_json::to_vec(&left)?)
            .context("describe the run")
    }

    /// The run's number.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// The directory for everything that ends with the run.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The directory in the build directory that outlives the run: `logs/` and kubeconfigs.
    #[must_use]
    pub fn records(&self) -> &Path {
        &self.records
    }

    /// The log of a part.
    #[must_use]
    pub fn log(&self, part: &str) -> PathBuf {
        self.records.join("logs").join(format!("{part}.log"))
    }

    /// Leaves everything as it is when this value goes: `lab down` removes it.
    ///
    /// # Errors
    /// When the run's directory cannot be written.
    pub fn leave(mut self) -> anyhow::Result<()> {
        self.describe(true)?;
        // The lock goes with the descriptor; its file stays for the next `lab down`.
        self.over = true;
        Ok(())
    }

    /// Removes everything of this run from the system but its logs.
    ///
    /// # Errors
    /// When something cannot be removed; the message names it.
    pub fn remove(mut self) -> anyhow::Result<()> {
        self.end()
    }

    fn end(&mut self) -> anyhow::Result<()> {
        self.over = true;
        remove(self.number, &self.directory)?;
        // While the lock is held; who waits for it sees that the file is no longer the one it opened.
        std::fs::remove_file(&self.lock_path).context("remove the run's lock")
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.over
            && let Err(error) = self.end()
        {
            eprintln!("The next run will remove what this one leaves behind: {error:#}");
        }
    }
}

/// The directory below which each run has its own: short, as socket paths are, and outside of home directories, into
/// which a guest's unprivileged hypervisor could not go.
fn base() -> anyhow::Result<PathBuf> {
    let base = if cache::root() {
        PathBuf::from("/var/lib/godwit-lab")
    } else {
        cache::directory().join("lab")
    };
    std::fs::create_dir_all(&base).with_context(|| format!("make {}", base.display()))?;
    Ok(base)
}

/// Takes a number's lock. None when another process holds it.
fn lock(base: &Path, number: u8) -> anyhow::Result<Option<(File, PathBuf)>> {
    let path = base.join(format!("{number}.lock"));
    loop {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        let held = file.metadata()?.ino();
        // The holder before us may have removed the file between our open and our lock.
        if std::fs::metadata(&path).is_ok_and(|now| now.ino() == held) {
            return Ok(Some((file, path)));
        }
    }
}

fn owner(number: u8, directory: &Path) -> Owner {
    Owner {
        directory: directory.to_owned(),
        namespaces: network::namespaces_of(number),
    }
}

fn numbers(base: &Path) -> Vec<u8> {
    let mut numbers: Vec<u8> = std::fs::read_dir(base)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
}

fn description(directory: &Path) -> Option<Left> {
    serde_json::from_slice(&std::fs::read(directory.join("run.json")).ok()?).ok()
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn remove_crashed(base: &Path) -> anyhow::Result<()> {
    for number in numbers(base) {
        let directory = base.join(number.to_string());
        let Some((lock, path)) = lock(base, number)? else {
            continue;
        };
        let left = description(&directory);
        if left.is_some_and(|left| left.on_purpose && left.boot == boot_id()) {
            continue;
        }
        remove(number, &directory).with_context(|| format!("remove what run {number} left behind"))?;
        std::fs::remove_file(&path).context("remove a crashed run's lock")?;
        drop(lock);
    }
    Ok(())
}

/// Removes every run that no process holds, those that were left on purpose too. Gives back their numbers.
///
/// # Errors
/// When something cannot be removed.
pub fn remove_all() -> anyhow::Result<Vec<u8>> {
    let base = base()?;
    let mut removed = Vec::new();
    for number in numbers(&base) {
        let Some((lock, path)) = lock(&base, number)? else {
            continue;
        };
        remove(number, &base.join(number.to_string()))?;
        std::fs::remove_file(&path).context("remove a run's lock")?;
        drop(lock);
        removed.push(number);
    }
    Ok(removed)
}

/// Removes one run that no process holds. Whether it was there.
///
/// # Errors
/// When a process holds it, or something cannot be removed.
pub fn remove_one(number: u8) -> anyhow::Result<bool> {
    let base = base()?;
    let directory = base.join(number.to_string());
    if !directory.exists() {
        return Ok(false);
    }
    let Some((lock, path)) = lock(&base, number)? else {
        bail!("run {number} is held by a process that lives: end that one first");
    };
    remove(number, &directory)?;
    std::fs::remove_file(&path).context("remove a run's lock")?;
    drop(lock);
    Ok(true)
}

/// All runs on this machine.
///
/// # Errors
/// When the runs' directory cannot be read.
pub fn list() -> anyhow::Result<Vec<Listed>> {
    let base = base()?;
    let mut listed = Vec::new();
    for number in numbers(&base) {
        let directory = base.join(number.to_string());
        let held = match lock(&base, number)? {
            None => true,
            // The lock may have been made by this very look.
            Some((lock, _)) => {
                drop(lock);
                false
            }
        };
        let processes = owner(number, &directory).processes();
        listed.push(Listed {
            number,
            held,
            left: description(&directory),
            processes,
        });
    }
    Ok(listed)
}

fn remove(number: u8, directory: &Path) -> anyhow::Result<()> {
    let owner = owner(number, directory);
    // A dying agent may still start something: look until nothing is found.
    for _ in 0..5 {
        let processes = owner.processes();
        if processes.is_empty() {
            break;
        }
        let groups = control_groups(&processes);
        let left = processes::kill(&processes);
        if let Some(first) = left.first() {
            bail!("{} ({}) cannot be killed", first.program, first.pid);
        }
        for group in groups {
            remove_group(&group);
        }
    }
    if let Some(left) = owner.processes().first() {
        bail!("{} ({}) keeps coming back", left.program, left.pid);
    }
    network::remove(number)?;
    unmount_below(directory)?;
    if directory.exists() {
        std::fs::remove_dir_all(directory).with_context(|| format!("remove {}", directory.display()))?;
    }
    Ok(())
}

/// Unmounts what a test has mounted in the run's directory, for example a disk of its own for an agent's state.
fn unmount_below(directory: &Path) -> anyhow::Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("read the table of mounts")?;
    // The last one first: it may lie in another one. The run's own paths have no characters that are escaped here.
    for place in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
        if Path::new(place).starts_with(directory) {
            let output = std::process::Command::new("umount").arg(place).output();
            let output = output.with_context(|| format!("unmount {place}"))?;
            if !output.status.success() {
                bail!(
                    "unmount {place}: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                );
            }
        }
    }
    Ok(())
}

/// Removes a control group that is empty, or is about to be: a process is told to have ended a moment before the
/// kernel has taken it out of its group. One that others use too is not ours and stays.
fn remove_group(group: &Path) {
    let deadline = Instant::now() + GROUP_EMPTIES;
    loop {
        match std::fs::remove_dir(group) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(_) | Ok(()) => return,
        }
    }
}

/// The control groups that an agent made for guests, deepest first: those with godwit's name in them.
fn control_groups(processes: &[Seen]) -> Vec<PathBuf> {
    let mut groups: Vec<PathBuf> = Vec::new();
    for process in processes {
        let text = std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).unwrap_or_default();
        for line in text.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
                continue;
            };
            if !path.contains("godwit") {
                continue;
            }
            // Version 2 has no named controllers; beside version 1 it has a directory of its own.
            let mounts: &[&str] = match controllers {
                "" => &["", "/unified"],
                controllers => &[&format!("/{}", controllers.trim_start_matches("name="))],
            };
            for mount in mounts {
                groups.push(PathBuf::from(format!("/sys/fs/cgroup{mount}{path}")));
            }
        }
    }
    groups.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    groups.dedup();
    groups
}

/// Keeps the logs of the last runs only.
fn prune(runs: &Path) {
    let mut old: Vec<PathBuf> = std::fs::read_dir(runs)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    old.sort();
    let surplus = old.len().saturating_sub(KEPT_LOGS);
    for path in old.into_iter().take(surplus) {
        // Another run may be removing the same one.
        let _ = std::fs::remove_dir_all(path);
    }
}
