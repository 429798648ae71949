//! What runs on this machine on behalf of a run, told from `/proc` alone: so that also what an agent started, and
//! what a crashed run left behind, is found.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The environment variable in which every process of a run finds the directory it belongs to.
pub const MARK: &str = "GODWIT_LAB_DIRECTORY";

/// A process at the moment it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The process id.
    pub pid: i32,
    /// When it was started, in clock ticks since boot: with the pid it names one process for good.
    pub start_time: u64,
    /// The file name of its program.
    pub program: String,
}

/// How a run's (or a host's) processes are told from others.
#[derive(Clone, Debug)]
pub struct Owner {
    /// The run's or the host's directory.
    pub directory: PathBuf,
    /// The network namespaces that are its own, by path.
    pub namespaces: Vec<PathBuf>,
}

impl Owner {
    /// The processes that belong to it: by the mark in their environment, by their network namespace, or, for
    /// hypervisors and godwit's own programs, by a file below the directory among their arguments. Zombies and the
    /// calling process are left out.
    #[must_use]
    pub fn processes(&self) -> Vec<Seen> {
        let inodes: Vec<u64> = self
            .namespaces
            .iter()
            .filter_map(|path| std::fs::metadata(path).ok())
            .map(|metadata| metadata.ino())
            .collect();
        let own = std::process::id();
        pids()
            .filter(|pid| u32::try_from(*pid) != Ok(own))
            .filter_map(|pid| {
                let seen = look(pid)?;
                self.owns(&seen, &inodes).then_some(seen)
            })
            .collect()
    }

    fn owns(&self, seen: &Seen, inodes: &[u64]) -> bool {
        let process = PathBuf::from(format!("/proc/{}", seen.pid));
        let namespace = std::fs::metadata(process.join("ns/net")).map(|metadata| metadata.ino());
        if namespace.is_ok_and(|inode| inodes.contains(&inode)) {
            return true;
        }
        let environment = std::fs::read(process.join("environ")).unwrap_or_default();
        let marked = environment.split(|byte| *byte == 0).any(|variable| {
            variable
                .strip_prefix(MARK.as_bytes())
                .and_then(|rest| rest.strip_prefix(b"="))
                .is_some_and(|value| Path::new(OsStr::from_bytes(value)).starts_with(&self.directory))
        });
        if marked {
            return true;
        }
        if !is_hypervisor(seen) && !seen.program.starts_with("godwit-") {
            return false;
        }
        let arguments = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let mut below = self.directory.as_os_str().as_bytes().to_vec();
        below.push(b'/');
        arguments.windows(below.len()).any(|window| window == below)
    }
}

/// Whether a process is a hypervisor's.
#[must_use]
pub fn is_hypervisor(seen: &Seen) -> bool {
    seen.program.starts_with("qemu-system-")
}

fn pids() -> impl Iterator<Item = i32> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// What of a process's line in `/proc` is of interest here.
struct Stat {
    zombie: bool,
    start_time: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The program's name stands in parentheses and may hold anything, so the fields are counted from the last one.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_whitespace();
        Some(Self {
            zombie: matches!(fields.next()?, "Z" | "X"),
            start_time: fields.nth(18)?.parse().ok()?,
        })
    }
}

/// Looks at one process. None when it does not exist or is a zombie.
#[must_use]
pub fn look(pid: i32) -> Option<Seen> {
    let stat = Stat::read(pid)?;
    if stat.zombie {
        return None;
    }
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let program = program
        .file_name()?
        .to_str()?
        .trim_end_matches(" (deleted)")
        .to_owned();
    Some(Seen {
        pid,
        start_time: stat.start_time,
        program,
    })
}

/// Sends a signal to exactly this process, never to one that got its pid later. Whether it was there.
pub fn signal(seen: &Seen, signal: Signal) -> bool {
    hold(seen).is_some_and(|(descriptor, stat)| !stat.zombie && pidfd_send_signal(descriptor, signal).is_ok())
}

/// Takes hold of exactly this process, if it is still there.
fn hold(seen: &Seen) -> Option<(OwnedFd, Stat)> {
    let descriptor = pidfd_open(Pid::from_raw(seen.pid)?, PidfdFlags::empty()).ok()?;
    // Now that the descriptor holds the process, see whether it is the one that was meant.
    let stat = Stat::read(seen.pid)?;
    (stat.start_time == seen.start_time).then_some((descriptor, stat))
}

/// Kills processes and waits until they are gone, half a minute at most. Gives back those that are still there.
///
/// Gone is a process whose last thread has ended: its first one is a zombie some milliseconds sooner, while the others
/// still hold its files and sockets.
#[must_use]
pub fn kill(processes: &[Seen]) -> Vec<Seen> {
    let held: Vec<(&Seen, OwnedFd)> = processes
        .iter()
        .filter_map(|process| Some((process, hold(process)?.0)))
        .collect();
    for (_, descriptor) in &held {
        // One that has ended meanwhile needs none.
        let _ = pidfd_send_signal(descriptor, Signal::KILL);
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    held.into_iter()
        .filter(|(_, descriptor)| !ended(descriptor, deadline))
        .map(|(process, _)| process.clone())
        .collect()
}

/// Waits until a process has ended, or the deadline has passed.
fn ended(process: &OwnedFd, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = Timespec::try_from(left).unwrap_or_default();
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&wait)) {
            Ok(ready) => return ready > 0,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_marked_process_is_found_and_killed() {
        let directory = std::env::temp_dir().join(format!("godwit-lab-mark-{}", std::process::id()));
        let owner = Owner {
            directory: directory.clone(),
            namespaces: Vec::new(),
        };
        let mut child = Command::new("sleep")
            .arg("60")
            .env(MARK, directory.join("h1"))
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let found = loop {
            let found = owner.processes();
            if found.iter().any(|seen| seen.program == "sleep") {
                break found;
            }
            assert!(Instant::now() < deadline, "the marked process was not found");
        };
        assert_eq!(found.len(), 1);
        // A recycled pid has another start time and is left alone.
        let other = Seen {
            start_time: found[0].start_time + 1,
            ..found[0].clone()
        };
        assert!(!signal(&other, Signal::KILL));
        assert!(kill(&found).is_empty());
        child.wait().unwrap();
        assert!(owner.processes().is_empty());
    }

    #[test]
    fn the_own_process_is_never_found() {
        let owner = Owner {
            directory: PathBuf::from("/"),
            namespaces: vec!["/proc/self/ns/net".into()],
        };
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(owner.processes().iter().all(|seen| seen.pid != own));
    }
}
