//! Carrying a plan out, and back: the `ip` and `nft` commands, and the kernel's settings.
//!
//! Commands and not a netlink library: `ip` makes the guests' tap devices already, and the two speak a language that
//! an administrator can read and try.

use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::fs::fstat;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::links::Device;
use super::plan::Plan;
use super::{PlugError, links, rules, system_error};
use crate::guests::process;
use crate::hypervisor::ProcessRecord;

/// How long one command may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How much of a command's words is told.
const WORDS: usize = 200;
/// In the guest's namespace an answer that does not come within some 25 s breaks the connection, however the hypervisor
/// made it: the sum of the pauses between so many repetitions. With the system's 15 it would be a quarter of an hour.
const REPETITIONS: &str = "6";

/// Whether the programs are there and the kernel knows everything that the rules speak of. Made and unmade in one
/// step, nothing of it ever takes effect.
pub(super) async fn look() -> Result<(), PlugError> {
    const TRIED: &str = "table inet godwit_try {
  chain a { type nat hook prerouting priority dstnat; policy accept;
    tcp dport 1 dnat ip to 169.254.208.1:1
  }
  chain b { type nat hook postrouting priority srcnat; policy accept;
    iifname \"gwm*\" snat ip to 169.254.208.1
  }
  chain c { type filter hook forward priority filter; policy accept;
    ct state established ct direction reply ct status dnat accept
  }
}
delete table inet godwit_try
";
    command("ip", &["-V"], "").await?;
    command("nft", &["-f", "-"], TRIED).await.map(drop)
}

/// The network namespace of a process that is the recorded one and does not share the agent's.
pub(super) fn namespace_of(record: &ProcessRecord) -> Result<OwnedFd, PlugError> {
    let looking = || system_error("Looking for the network of the guest's process");
    let alive = || -> Result<(), PlugError> {
        match process::identify(record.pid).map_err(looking())? {
            Some(found) if found == *record => Ok(()),
            Some(_) | None => Err(PlugError::Gone),
        }
    };
    alive()?;
    let namespace = match File::open(format!("/proc/{}/ns/net", record.pid)) {
        Ok(namespace) => namespace,
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(PlugError::Gone),
        Err(error) => return Err(looking()(error)),
    };
    // It was there before and after, so what was opened between is its.
    alive()?;
    let own = File::open("/proc/thread-self/ns/net").map_err(looking())?;
    let of = |file: &File| fstat(file).map(|seen| (seen.st_dev, seen.st_ino));
    let (theirs, ours) = (of(&namespace), of(&own));
    match (theirs, ours) {
        (Ok(theirs), Ok(ours)) if theirs != ours => Ok(namespace.into()),
        (Ok(_), Ok(_)) => Err(PlugError::NotIsolated),
        (Err(errno), _) | (_, Err(errno)) => Err(looking()(errno.into())),
    }
}

/// The host's devices.
pub(super) async fn devices() -> Result<Vec<Device>, PlugError> {
    let answer = command("ip", &["-j", "-4", "addr", "show"], "").await?;
    links::devices(&answer).map_err(|message| PlugError::Command {
        program: "ip",
        message,
    })
}

/// The device that leads from this host's migration address to the peer's.
pub(super) async fn uplink(devices: &[Device], own: Ipv4Addr, peer: Ipv4Addr) -> Result<Device, PlugError> {
    let no_way = |why: &str| {
        PlugError::Address(format!(
            "Guest memory cannot travel over several connections from {own} to {peer}: {why}"
        ))
    };
    if !devices.iter().any(|device| device.addresses.contains(&own)) {
        return Err(no_way("this host does not have the first of the two"));
    }
    let (to, from) = (peer.to_string(), own.to_string());
    let answer = command("ip", &["-j", "route", "get", &to, "from", &from], "").await?;
    let name = links::way(&answer).map_err(|why| no_way(&why))?;
    let device = devices.iter().find(|device| device.name == name);
    let device = device.ok_or_else(|| no_way(&format!("device {name} has no address")))?;
    Ok(Device {
        name,
        mtu: device.mtu,
        addresses: Vec::new(),
    })
}

/// Whether the host passes on what comes in at a device.
pub(super) fn forwards(device: &str) -> Result<bool, PlugError> {
    let path = forwarding(device);
    let text = std::fs::read_to_string(&path).map_err(system_error(format!("Reading {path}")))?;
    Ok(text.trim() != "0")
}

fn set_forwarding(device: &str, on: bool) -> Result<(), PlugError> {
    let path = forwarding(device);
    match std::fs::write(&path, if on { "1" } else { "0" }) {
        Ok(()) => Ok(()),
        // The device is gone.
        Err(error) if error.kind() == ErrorKind::NotFound && !on => Ok(()),
        Err(error) => Err(system_error(format!("Writing {path}"))(error)),
    }
}

fn forwarding(device: &str) -> String {
    format!("/proc/sys/net/ipv4/conf/{device}/forwarding")
}

/// Makes everything: the rules first, then the cable, and what lets packets through last.
pub(super) async fn make(plan: &Plan, namespace: OwnedFd) -> Result<(), PlugError> {
    command("nft", &["-f", "-"], &rules::make(plan)).await?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
    command("ip", &["-batch", "-"], &links::on_the_host(plan, &path)).await?;
    inside(namespace, links::in_the_namespace(plan)).await?;
    set_forwarding(&plan.device(), true)?;
    if plan.restore_forwarding {
        set_forwarding(&plan.uplink, true)?;
    }
    Ok(())
}

/// Takes everything out, whatever there is of it, in the opposite order. `needed`: other cables lead to the same
/// device.
pub(super) async fn undo(plan: &Plan, needed: bool) -> Result<(), PlugError> {
    let device = plan.device();
    // Both ends go. Where the guest's process is gone they went with its namespace.
    if command("ip", &["link", "show", "dev", &device], "").await.is_ok()
        && let Err(error) = command("ip", &["link", "delete", "dev", &device], "").await
        && command("ip", &["link", "show", "dev", &device], "").await.is_ok()
    {
        return Err(error);
    }
    // A host that was made a router meanwhile, by somebody else, stays one.
    if plan.restore_forwarding && !needed && !forwards("all")? {
        set_forwarding(&plan.uplink, false)?;
    }
    command("nft", &["-f", "-"], &rules::remove(plan)).await.map(drop)
}

/// Runs `ip` and sets what is to be set in another network namespace: in a thread that enters it and ends there, for
/// the others must not.
async fn inside(namespace: OwnedFd, batch: String) -> Result<(), PlugError> {
    let (sender, done) = oneshot::channel();
    let work = move || -> io::Result<Output> {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        std::fs::write("/proc/sys/net/ipv4/tcp_retries2", REPETITIONS)?;
        let mut child = std::process::Command::new("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(batch.as_bytes())?;
        }
        child.wait_with_output()
    };
    std::thread::Builder::new()
        .name("guest-network".into())
        .spawn(move || {
            // Whoever asked may have gone.
            let _ = sender.send(work());
        })
        .map_err(system_error("Entering the guest's network"))?;
    let late = || PlugError::Command {
        program: "ip",
        message: format!("no end within {} s", DEADLINE.as_secs()),
    };
    match timeout(DEADLINE, done).await {
        Ok(Ok(Ok(output))) => judged("ip", output).map(drop),
        Ok(Ok(Err(error))) => Err(system_error("Entering the guest's network")(error)),
        Ok(Err(_)) | Err(_) => Err(late()),
    }
}

/// Runs a command; what it prints.
async fn command(program: &'static str, arguments: &[&str], input: &str) -> Result<Vec<u8>, PlugError> {
    let failed = |message: String| PlugError::Command { program, message };
    let run = async {
        let mut child = tokio::process::Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(input.as_bytes()).await {
                // It says itself why it read no further.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                outcome => outcome?,
            }
        }
        child.wait_with_output().await
    };
    let output = timeout(DEADLINE, run)
        .await
        .map_err(|_| failed(format!("no end within {} s", DEADLINE.as_secs())))?
        .map_err(|error| {
            failed(if error.kind() == ErrorKind::NotFound {
                "it is not installed on this host".into()
            } else {
                format!("it does not run: {error}")
            })
        })?;
    judged(program, output)
}

fn judged(program: &'static str, output: Output) -> Result<Vec<u8>, PlugError> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words = words.lines().find(|line| !line.trim().is_empty());
    Err(PlugError::Command {
        program,
        message: words.map_or_else(
            || output.status.to_string(),
            |words| {
                words
                    .trim()
                    .chars()
                    .filter(|c| !c.is_control())
                    .take(WORDS)
                    .collect()
            },
        ),
    })
}
