//! A hypervisor's process, held by its pidfd: no signal can ever reach another process that was given its pid.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::hypervisor::ProcessRecord;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// It was another's child: an earlier agent's. Only its own words may tell.
    Unknown,
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exit status {status}"),
            Self::Killed(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("unknown, it was started by an earlier agent"),
        }
    }
}

impl From<WaitIdStatus> for End {
    fn from(status: WaitIdStatus) -> Self {
        let killed = status.terminating_signal().map(Self::Killed);
        let exited = status.exit_status().map(Self::Exited);
        killed.or(exited).unwrap_or(Self::Unknown)
    }
}

/// A process that was verified to be the recorded one.
pub struct Process {
    record: ProcessRecord,
    pidfd: AsyncFd<OwnedFd>,
    /// What was learnt when it was waited for, which is possible once.
    end: Mutex<Option<End>>,
}

impl Process {
    /// Takes hold of a child that has not been waited for.
    pub fn of_child(pid: u32) -> io::Result<Self> {
        let pidfd = open_pidfd(pid)?.ok_or(io::ErrorKind::NotFound)?;
        // A child that was not waited for keeps its entry, dead or alive.
        let start_time = start_time(pid)?.ok_or(io::ErrorKind::NotFound)?;
        Ok(Self {
            record: ProcessRecord {
                pid,
                start_time,
                boot_id: boot_id()?,
            },
            pidfd: watch(pidfd)?,
            end: Mutex::default(),
        })
    }

    /// Takes hold of a recorded process, or proves that it is gone (`None`): another boot, no such process,
    /// another process under its pid, or a dead one that was not waited for.
    pub fn of_record(record: &ProcessRecord) -> io::Result<Option<Self>> {
        if boot_id()? != record.boot_id {
            return Ok(None);
        }
        let Some(pidfd) = open_pidfd(record.pid)? else {
            return Ok(None);
        };
        // The pidfd came first: if the process under it still lives after its start time was read, the start
        // time was that process's.
        let found = start_time(record.pid)?;
        if found != Some(record.start_time) || is_over(&pidfd)? {
            return Ok(None);
        }
        Ok(Some(Self {
            record: record.clone(),
            pidfd: watch(pidfd)?,
            end: Mutex::default(),
        }))
    }

    /// What identifies it.
    pub fn record(&self) -> &ProcessRecord {
        &self.record
    }

    /// Whether it has ended. A failure to find out counts as no.
    pub fn has_ended(&self) -> bool {
        is_over(self.pidfd.get_ref()).unwrap_or(false)
    }

    /// Waits until it has ended. If it was a child, the first to ask takes it from the system's table.
    pub async fn ended(&self) -> io::Result<End> {
        loop {
            let mut ready = self.pidfd.readable().await?;
            // What the runtime remembers of a descriptor is a hint; the system's answer counts.
            if is_over(self.pidfd.get_ref())? {
                break;
            }
            ready.clear_ready();
        }
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = *end {
            return Ok(known);
        }
        let found = match waitid(
            WaitId::PidFd(self.pidfd.get_ref().as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        ) {
            Ok(status) => status.map_or(End::Unknown, End::from),
            // An adopted process is another's child, and is waited for there.
            Err(rustix::io::Errno::CHILD) => End::Unknown,
            Err(error) => return Err(error.into()),
        };
        *end = Some(found);
        Ok(found)
    }

    /// Sends a signal; nothing happens if the process has ended.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(self.pidfd.get_ref(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> io::Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", self.record.pid))?;
        if self.has_ended() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let pages: u64 = text
            .split_ascii_whitespace()
            .nth(1)
            .and_then(|pages| pages.parse().ok())
            .ok_or(io::ErrorKind::InvalidData)?;
        Ok(pages.saturating_mul(rustix::param::page_size() as u64))
    }
}

/// The running kernel's boot id.
pub fn boot_id() -> io::Result<String> {
    Ok(
        std::fs::read_to_string(Path::new("/proc/sys/kernel/random/boot_id"))?
            .trim()
            .to_owned(),
    )
}

/// Tokio would have us promise, in `unsafe`, that the descriptor stays the same one; an `OwnedFd` does.
#[allow(deprecated)]
fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(pidfd, Interest::READABLE)
}

fn rustix_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

fn open_pidfd(pid: u32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = rustix_pid(pid) else {
        return Ok(None);
    };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        // EINVAL: the number is a thread's, so no process has it.
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_over(pidfd: &OwnedFd) -> io::Result<bool> {
    let mut wanted = [PollFd::new(pidfd, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    Ok(poll(&mut wanted, Some(&now))? > 0)
}

/// A process's start time in clock ticks since boot; `None` if there is no such process.
fn start_time(pid: u32) -> io::Result<Option<u64>> {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(text) => parse_start_time(&text)
            .map(Some)
            .ok_or_else(|| io::ErrorKind::InvalidData.into()),
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The 22nd field. The second, the program's name, is in brackets and may hold anything, brackets too.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    // The children are waited for by `Process::ended`.
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::zombie_processes)]

    use super::*;
    use std::process::{Child, Command, Stdio};

    fn sleeper() -> Child {
        Command::new("sleep")
            .arg("600")
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    }

    #[test]
    fn reads_the_start_time_behind_a_nasty_name() {
        let stat = "71 (a) b (c)) S 1 71 71 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 111 22 18446744073709551615";
        assert_eq!(parse_start_time(stat), Some(987_654));
        assert_eq!(parse_start_time("no brackets"), None);
        assert_eq!(parse_start_time("1 (x) S 1"), None);
    }

    #[tokio::test]
    async fn a_process_is_held_until_it_ends() {
        let child = sleeper();
        let process = Process::of_child(child.id()).unwrap();
        let again = Process::of_record(process.record()).unwrap().expect("it lives");
        assert!(!process.has_ended() && again.resident_bytes().unwrap() > 0);
        again.signal(Signal::KILL).unwrap();
        // Whoever asks later learns the same, though it can be waited for once.
        for _ in 0..2 {
            assert_eq!(process.ended().await.unwrap(), End::Killed(9));
        }
        assert_eq!(again.ended().await.unwrap(), End::Unknown);
        assert!(process.has_ended() && again.has_ended());
        // Waited for, so its pid is free.
        assert!(start_time(child.id()).unwrap().is_none());
        assert!(Process::of_record(process.record()).unwrap().is_none());
        again.signal(Signal::TERM).unwrap();
    }

    #[tokio::test]
    async fn another_boot_or_start_time_is_another_process() {
        let child = sleeper();
        let process = Process::of_child(child.id()).unwrap();
        let record = process.record().clone();
        let other_boot = ProcessRecord {
            boot_id: "00000000-0000-0000-0000-000000000000".into(),
            ..record.clone()
        };
        let recycled = ProcessRecord {
            start_time: record.start_time + 1,
            ..record.clone()
        };
        assert!(Process::of_record(&other_boot).unwrap().is_none());
        assert!(Process::of_record(&recycled).unwrap().is_none());
        assert!(
            Process::of_record(&ProcessRecord { pid: 0, ..record })
                .unwrap()
                .is_none()
        );
        process.signal(Signal::KILL).unwrap();
        process.ended().await.unwrap();
    }

    #[tokio::test]
    async fn a_dead_child_that_was_not_waited_for_is_gone() {
        let mut child = sleeper();
        let process = Process::of_child(child.id()).unwrap();
        let record = process.record().clone();
        child.kill().unwrap();
        let _ready = process.pidfd.readable().await.unwrap();
        assert!(Process::of_record(&record).unwrap().is_none());
        child.wait().unwrap();
    }
}
