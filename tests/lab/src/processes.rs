//! What runs on this machine on behalf of a run, told from `/proc` alone: so that also what an agent started, and
//! what a crashed run left behind, is found.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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

/// Looks at one process. None when it does not exist or is a zombie.
#[must_use]
pub fn look(pid: i32) -> Option<Seen> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name stands in parentheses and may hold anything, so the fields are counted from the last one.
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    if matches!(fields.first(), Some(&"Z" | &"X")) {
        return None;
    }
    let start_time = fields.get(19)?.parse().ok()?;
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let program = program
        .file_name()?
        .to_str()?
        .trim_end_matches(" (deleted)")
        .to_owned();
    Some(Seen {
        pid,
        start_time,
        program,
    })
}

/// Sends a signal to exactly this process, never to one that got its pid later. Whether it was there.
pub fn signal(seen: &Seen, signal: Signal) -> bool {
    let Some(pid) = Pid::from_raw(seen.pid) else {
        return false;
    };
    let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else {
        return false;
    };
    // Now that the descriptor holds the process, see whether it is the one that was meant.
    look(seen.pid).is_some_and(|now| now.start_time == seen.start_time)
        && pidfd_send_signal(descriptor, signal).is_ok()
}

/// Kills processes and waits until they are gone, 10 s at most. Gives back those that are still there.
#[must_use]
pub fn kill(processes: &[Seen]) -> Vec<Seen> {
    for process in processes {
        signal(process, Signal::KILL);
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left: Vec<Seen> = processes
            .iter()
            .filter(|process| look(process.pid).is_some_and(|now| now.start_time == process.start_time))
            .cloned()
            .collect();
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        std::thread::sleep(Duration::from_millis(5));
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
        let deadline = Instant::now() + Duration::from_secs(5);
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
