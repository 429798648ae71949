//! What can be known about a process from outside, without asking it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;

use crate::hypervisor::ProcessRecord;

/// The kernel's boot id: another one means that no process of before lives.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// The start time of a process in clock ticks since boot, or `None` if there is no such process. An error says
/// nothing about it.
fn start_time(pid: u32) -> io::Result<Option<u64>> {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    // The name in parentheses may hold anything; the fields after it are plain. The start time is the 22nd of all.
    let field = stat
        .rsplit_once(')')
        .and_then(|(_, after)| after.split_whitespace().nth(19)?.parse().ok());
    field.map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// What identifies a process that lives now; `None` if there is no such process.
pub fn identify(pid: u32) -> io::Result<Option<ProcessRecord>> {
    let Some(start_time) = start_time(pid)? else {
        return Ok(None);
    };
    Ok(Some(ProcessRecord {
        pid,
        start_time,
        boot_id: boot_id()?,
    }))
}

/// Kills a recorded process and waits until it is gone. Another process under its pid is left alone: the pidfd is
/// opened first and the start time compared afterwards.
pub async fn kill(process: &ProcessRecord, deadline: Duration) -> io::Result<()> {
    if process.boot_id != boot_id()? {
        return Ok(());
    }
    let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else {
        return Ok(());
    };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    if start_time(process.pid)? != Some(process.start_time) {
        return Ok(());
    }
    match pidfd_send_signal(&pidfd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(errno) => return Err(errno.into()),
    }
    #[allow(
        deprecated,
        reason = "its successor is unsafe for types that may lie about their descriptor; OwnedFd does not"
    )]
    let pidfd = AsyncFd::with_interest(pidfd, tokio::io::Interest::READABLE)?;
    match tokio::time::timeout(deadline, pidfd.readable()).await {
        Ok(ready) => ready.map(drop),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("process {} did not end", process.pid),
        )),
    }
}

/// The processes that have to do with a guest's directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Users {
    /// They listen on a socket in it: a hypervisor does.
    pub listeners: Vec<u32>,
    /// They name it in their arguments: a hypervisor that is just starting, or any tool.
    pub mentions: Vec<u32>,
}

/// Looks through the whole process table for users of `directory`.
pub fn users_of(directory: &Path) -> io::Result<Users> {
    let sockets = sockets_in(directory)?;
    let mut users = Users::default();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        if !sockets.is_empty() && holds_any(pid, &sockets) {
            users.listeners.push(pid);
        } else if pid != std::process::id() && names(pid, directory) {
            users.mentions.push(pid);
        }
    }
    Ok(users)
}

/// The users that any process on this host belongs to.
pub fn users_at_work() -> io::Result<BTreeSet<u32>> {
    let mut users = BTreeSet::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let is_process = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()));
        // A process that ends meanwhile belongs to nobody; one that changed its user counts for each.
        if is_process && let Ok(status) = fs::read_to_string(entry.path().join("status")) {
            users.extend(
                status
                    .lines()
                    .filter_map(|line| line.strip_prefix("Uid:"))
                    .flat_map(str::split_whitespace)
                    .filter_map(|id| id.parse::<u32>().ok()),
            );
        }
    }
    Ok(users)
}

/// The inodes of the listening Unix sockets that were bound beneath `directory`.
fn sockets_in(directory: &Path) -> io::Result<Vec<String>> {
    let table = fs::read_to_string("/proc/net/unix")?;
    Ok(table
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let listening = fields.nth(3)? == "00010000";
            let inode = fields.nth(2)?;
            let path = fields.next()?;
            (listening && Path::new(path).starts_with(directory)).then(|| format!("socket:[{inode}]"))
        })
        .collect())
}

fn holds_any(pid: u32, sockets: &[String]) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    descriptors
        .flatten()
        .filter_map(|d| fs::read_link(d.path()).ok())
        .any(|link| sockets.iter().any(|socket| Path::new(socket) == link))
}

fn names(pid: u32, directory: &Path) -> bool {
    let needle = directory.as_os_str().as_bytes();
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.windows(needle.len()).any(|w| w == needle))
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::process::Command;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_listener_and_a_mention_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(users_of(directory.path()).unwrap(), Users::default());
        let _listener = UnixListener::bind(directory.path().join("qmp.sock")).unwrap();
        let mut child = Command::new("sleep")
            .arg("60")
            .arg0_mention(directory.path())
            .spawn()
            .unwrap();
        let child_id = child.id();
        // The kernel lets the parent go on before the new program's arguments are in place.
        let deadline = Instant::now() + Duration::from_secs(20);
        while fs::read(format!("/proc/{child_id}/cmdline")).unwrap().is_empty() {
            assert!(Instant::now() < deadline, "the child has no arguments");
            std::thread::yield_now();
        }
        let users = users_of(directory.path()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(users.listeners, [std::process::id()]);
        assert_eq!(users.mentions, [child_id]);
    }

    trait Arg0 {
        fn arg0_mention(&mut self, path: &Path) -> &mut Self;
    }

    impl Arg0 for Command {
        fn arg0_mention(&mut self, path: &Path) -> &mut Self {
            use std::os::unix::process::CommandExt;
            self.arg0(path.join("x"))
        }
    }

    #[tokio::test]
    async fn only_the_recorded_process_is_killed() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = identify(child.id()).unwrap().unwrap();
        let other_start = ProcessRecord {
            start_time: process.start_time + 1,
            ..process.clone()
        };
        kill(&other_start, Duration::from_secs(5)).await.unwrap();
        let other_boot = ProcessRecord {
            boot_id: "another".into(),
            ..process.clone()
        };
        kill(&other_boot, Duration::from_secs(5)).await.unwrap();
        assert!(child.try_wait().unwrap().is_none(), "the process lives");
        kill(&process, Duration::from_secs(5)).await.unwrap();
        assert!(!child.wait().unwrap().success());
        kill(&process, Duration::from_secs(5)).await.unwrap();
        assert_eq!(identify(child.id()).unwrap(), None);
    }
}
