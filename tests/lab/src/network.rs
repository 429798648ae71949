//! The hosts' network: a network namespace for each host, all on one bridge, and the machine itself beside them.
//!
//! The bridge is in a namespace of its own (`gwN`), so that the machine's packet filters do not see what the hosts say
//! to each other, and so that everything goes when the namespaces do. The machine is on it with one address, at which
//! the API server listens. A process that is not root gets loopback addresses instead, in the machine's own namespace.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::cache;

/// How long the kernel may take to pass the news of a cable or a port on.
const NOTICED_WITHIN: Duration = Duration::from_secs(30);

/// The network of a run; a copy is the same network.
#[derive(Clone, Debug)]
pub struct Network {
    number: u8,
    hosts: usize,
    separate: bool,
}

impl Network {
    /// Makes the network of run `number` with so many hosts.
    ///
    /// # Errors
    /// When `ip` is missing or refuses; the message holds its words.
    pub fn make(number: u8, hosts: usize) -> anyhow::Result<Self> {
        if hosts > 99 {
            bail!("a lab has at most 99 hosts, not {hosts}");
        }
        let network = Self {
            number,
            hosts,
            separate: cache::root(),
        };
        if network.separate {
            network.make_namespaces()?;
        }
        Ok(network)
    }

    fn make_namespaces(&self) -> anyhow::Result<()> {
        let hub = hub(self.number);
        ip(&format!("netns add {hub}"))?;
        ip(&format!("-n {hub} link set lo up"))?;
        ip(&format!("-n {hub} link add br0 type bridge"))?;
        ip(&format!("-n {hub} link set br0 up"))?;
        ip(&format!("link add {hub} type veth peer name root netns {hub}"))?;
        ip(&format!("-n {hub} link set root master br0 up"))?;
        ip(&format!("addr add {}/24 dev {hub}", self.machine()))?;
        ip(&format!("link set {hub} up"))?;
        for host in 1..=self.hosts {
            let name = host_namespace(self.number, host);
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {name} link set lo up"))?;
            ip(&format!(
                "link add eth0 netns {name} type veth peer name h{host} netns {hub}"
            ))?;
            ip(&format!("-n {hub} link set h{host} master br0 up"))?;
            ip(&format!("-n {name} addr add {}/24 dev eth0", self.host(host)))?;
            ip(&format!("-n {name} link set eth0 up"))?;
            self.reserve(host);
        }
        Ok(())
    }

    /// Keeps the migration ports free of connections that the host makes itself. Where that may not be set, one of them
    /// has such a port now and then.
    fn reserve(&self, host: usize) {
        let (first, last) = crate::hosts::MIGRATION_PORTS;
        let script = format!("echo {first}-{last} >/proc/sys/net/ipv4/ip_local_reserved_ports");
        let name = host_namespace(self.number, host);
        let _ = Command::new("ip")
            .args(["netns", "exec", &name, "sh", "-c", &script])
            .stderr(Stdio::null())
            .status();
    }

    /// Whether each host has a network namespace of its own.
    #[must_use]
    pub fn separate(&self) -> bool {
        self.separate
    }

    /// What cannot be tested on this network, in words; empty when all can.
    #[must_use]
    pub fn skipped(&self) -> &'static [&'static str] {
        if self.separate {
            &[]
        } else {
            &[
                "not root: hosts are loopback addresses of one machine, so links cannot be shaped or cut",
                "not root: guests' hypervisors run as the calling user, not as an unprivileged one of their own",
                "not root: guests have no tap interfaces",
            ]
        }
    }

    /// The machine's own address on the network.
    #[must_use]
    pub fn machine(&self) -> IpAddr {
        self.address(1)
    }

    /// The address of a host; hosts are counted from 1.
    #[must_use]
    pub fn host(&self, host: usize) -> IpAddr {
        // At most 99 hosts, so this never saturates.
        self.address(u8::try_from(host).unwrap_or(u8::MAX - 10) + 10)
    }

    fn address(&self, last: u8) -> IpAddr {
        let first = if self.separate { 10 } else { 127 };
        IpAddr::V4(Ipv4Addr::new(first, 113, self.number, last))
    }

    /// The network namespace of a host, as a path; None when hosts have none of their own.
    #[must_use]
    pub fn namespace(&self, host: usize) -> Option<PathBuf> {
        self.separate.then(|| path(&host_namespace(self.number, host)))
    }

    /// Limits what a host sends to so many Mbit/s (token bucket, with a queue of 50 ms), or lifts the limit.
    ///
    /// # Errors
    /// When hosts have no network of their own, or `tc` refuses.
    pub fn shape(&self, host: usize, megabits: Option<u32>) -> anyhow::Result<()> {
        let name = self.own_namespace(host)?;
        match megabits {
            // The bucket holds 2 ms, and at least one packet of the largest size that offloading makes.
            Some(rate) => {
                let burst = (u64::from(rate) * 250).max(128 * 1024);
                run(
                    "tc",
                    &format!(
                        "-n {name} qdisc replace dev eth0 root tbf rate {rate}mbit burst {burst} latency 50ms"
                    ),
                )
            }
            None => run("tc", &format!("-n {name} qdisc replace dev eth0 root pfifo_fast"))
                .or_else(|_| run("tc", &format!("-n {name} qdisc del dev eth0 root"))),
        }
    }

    /// Cuts a host's cable, or plugs it in again.
    ///
    /// # Errors
    /// When hosts have no network of their own, or `ip` refuses.
    pub fn connect(&self, host: usize, connected: bool) -> anyhow::Result<()> {
        let name = self.own_namespace(host)?;
        let state = if connected { "up" } else { "down" };
        ip(&format!("-n {} link set h{host} {state}", hub(self.number)))?;
        // Both the host and the bridge notice a little later, and pass nothing on until then.
        let noticed = || -> anyhow::Result<bool> {
            let host_up = output("ip", &format!("-n {name} -o link show eth0"))?.contains("state UP");
            let port = output("ip", &format!("-n {} -d -o link show h{host}", hub(self.number)))?;
            Ok(host_up == connected && port.contains("state forwarding") == connected)
        };
        let deadline = Instant::now() + NOTICED_WITHIN;
        while !noticed()? {
            if Instant::now() > deadline {
                bail!("it was not noticed within {NOTICED_WITHIN:?} that host {host}'s cable is {state}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Has everything that a host sends and is sent vanish, without anybody being told, or passes it on again.
    ///
    /// # Errors
    /// When hosts have no network of their own, or `ip` refuses.
    pub fn swallow(&self, host: usize, vanishes: bool) -> anyhow::Result<()> {
        self.own_namespace(host)?;
        let hub = hub(self.number);
        let master = if vanishes { "nomaster" } else { "master br0" };
        ip(&format!("-n {hub} link set h{host} {master}"))?;
        let passes = || -> anyhow::Result<bool> {
            Ok(output("ip", &format!("-n {hub} -d -o link show h{host}"))?.contains("state forwarding"))
        };
        let deadline = Instant::now() + NOTICED_WITHIN;
        while passes()? == vanishes {
            if Instant::now() > deadline {
                bail!("the bridge did not follow within {NOTICED_WITHIN:?}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Has what a host sends to the migration ports of others vanish, or sends it again: only guest memory does not
    /// get through.
    ///
    /// # Errors
    /// When hosts have no network of their own, or `ip` refuses.
    pub fn swallow_memory(&self, host: usize, vanishes: bool) -> anyhow::Result<()> {
        let name = self.own_namespace(host)?;
        let deed = if vanishes { "add" } else { "del" };
        let (first, last) = crate::hosts::MIGRATION_PORTS;
        ip(&format!(
            "-n {name} rule {deed} ipproto tcp dport {first}-{last} blackhole"
        ))
    }

    /// Has what a host's agent says to another host's agent vanish, or sends it again. Guest memory still gets through,
    /// and whoever else talks to the two.
    ///
    /// # Errors
    /// When hosts have no network of their own, or `ip` refuses.
    pub fn part_agents(&self, from: usize, to: usize, parted: bool) -> anyhow::Result<()> {
        let name = self.own_namespace(from)?;
        let deed = if parted { "add" } else { "del" };
        let (address, port) = (self.host(to), crate::hosts::AGENT_PORT);
        ip(&format!(
            "-n {name} rule {deed} to {address} ipproto tcp dport {port} blackhole"
        ))
    }

    /// Has what a host's agent answers to the controller vanish, or sends it again. The API server still hears it.
    ///
    /// # Errors
    /// When hosts have no network of their own, or `ip` refuses.
    pub fn hide_from_controller(&self, host: usize, hidden: bool) -> anyhow::Result<()> {
        let name = self.own_namespace(host)?;
        let deed = if hidden { "add" } else { "del" };
        let (address, port) = (self.machine(), crate::hosts::AGENT_PORT);
        ip(&format!(
            "-n {name} rule {deed} to {address} ipproto tcp sport {port} blackhole"
        ))
    }

    /// Has what a host's agent says to the API server vanish, or sends it again. The controller and the other agents
    /// still hear it.
    ///
    /// # Errors
    /// When hosts have no network of their own, or `ip` refuses.
    pub fn part_from_api(&self, host: usize, parted: bool) -> anyhow::Result<()> {
        let name = self.own_namespace(host)?;
        let deed = if parted { "add" } else { "del" };
        // What it answers to the controller, which is at the same address, comes from the port that it listens on.
        let (address, above) = (self.machine(), crate::hosts::AGENT_PORT + 1);
        ip(&format!(
            "-n {name} rule {deed} to {address} ipproto tcp sport {above}-65534 blackhole"
        ))
    }

    fn own_namespace(&self, host: usize) -> anyhow::Result<String> {
        if !self.separate {
            bail!("hosts have no network of their own: this needs root");
        }
        if host == 0 || host > self.hosts {
            bail!("there is no host {host}");
        }
        Ok(host_namespace(self.number, host))
    }
}

fn hub(number: u8) -> String {
    format!("gw{number}")
}

fn host_namespace(number: u8, host: usize) -> String {
    format!("gw{number}-h{host}")
}

fn path(namespace: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(namespace)
}

/// The namespaces of a run that exist, as paths.
#[must_use]
pub fn namespaces_of(number: u8) -> Vec<PathBuf> {
    names_of(number).iter().map(|name| path(name)).collect()
}

fn names_of(number: u8) -> Vec<String> {
    let hub = hub(number);
    let prefix = format!("{hub}-h");
    std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| *name == hub || name.starts_with(&prefix))
        .collect()
}

/// Removes a run's namespaces and with them its links. Nothing may run in them any more.
///
/// # Errors
/// When `ip` refuses.
pub fn remove(number: u8) -> anyhow::Result<()> {
    for name in names_of(number) {
        ip(&format!("netns delete {name}"))?;
    }
    // A namespace is taken down a little after its name is gone; its half of the cable would be in the next run's way.
    let link = PathBuf::from("/sys/class/net").join(hub(number));
    if cache::root() && link.exists() {
        let deleted = ip(&format!("link delete {}", hub(number)));
        if link.exists() {
            return deleted;
        }
    }
    Ok(())
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    run("ip", arguments)
}

fn run(program: &str, arguments: &str) -> anyhow::Result<()> {
    output(program, arguments).map(|_| ())
}

fn output(program: &str, arguments: &str) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .with_context(|| format!("run {program}: is iproute2 installed? (tests/tools/install system)"))?;
    if !output.status.success() {
        bail!(
            "{program} {arguments}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
