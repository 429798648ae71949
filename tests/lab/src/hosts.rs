//! A host of the lab: its place on the network, its directories, its agent.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::Signal;
use serde_json::json;

use crate::accelerator;
use crate::certificates::{Files, write_secret};
use crate::chart::NAMESPACE;
use crate::process::Process;
use crate::processes::{self, Owner, Seen};
use crate::run::Run;
use crate::signer;

/// The agent port.
pub const AGENT_PORT: u16 = 16514;
/// The ports from which agents take migrations.
pub const MIGRATION_PORTS: (u16, u16) = (49152, 49215);

/// The directory of the fail points in a host's own.
const POINTS: &str = "points";

/// How many guests a host can have.
const USERS: u32 = 100;
/// The first user id of the first run's first host: far above what systems give out.
const FIRST_USER: u32 = 2_000_000_000;

/// How long the certificates hold that agents ask for: as short as the API server allows, so that renewals are seen.
const SHORTEST_CERTIFICATE: Duration = Duration::from_secs(600);

/// A host.
#[derive(Debug)]
pub struct Host {
    /// Its name: that of its VirtualMachineHost, `h1` and on.
    pub name: String,
    /// Its address on the lab's network.
    pub address: IpAddr,
    /// Its directory: `state`, `run`, `tls`, `points`, `agent.yaml`.
    pub directory: PathBuf,
    namespace: Option<PathBuf>,
    program: PathBuf,
    first_user: u32,
    agent: Option<Process>,
}

/// What an agent needs to know that is the lab's to choose.
#[derive(Debug)]
pub struct AgentFiles<'a> {
    /// Its certificate, and whom it believes.
    pub tls: &'a Files,
    /// Whether it asks the signer for another certificate and does not use that one.
    pub asks_signer: bool,
    /// Its kubeconfig.
    pub kubeconfig: &'a Path,
    /// Its pools, by name.
    pub pools: &'a BTreeMap<String, PathBuf>,
    /// The hypervisor.
    pub qemu: &'a Path,
}

impl Host {
    /// Makes a host's directories and its agent's configuration. `number` counts from 1.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn make(
        run: &Run,
        number: usize,
        address: IpAddr,
        namespace: Option<PathBuf>,
        programs: &Path,
    ) -> anyhow::Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let name = format!("h{number}");
        let directory = run.directory().join(&name);
        for part in [directory.clone(), directory.join("state"), directory.join("run")] {
            std::fs::create_dir_all(&part).with_context(|| format!("make {}", part.display()))?;
            std::fs::set_permissions(&part, std::fs::Permissions::from_mode(0o711))?;
        }
        let points = directory.join(POINTS);
        std::fs::create_dir_all(&points).with_context(|| format!("make {}", points.display()))?;
        std::fs::set_permissions(&points, std::fs::Permissions::from_mode(0o700))?;
        let program = programs.join("godwit-agent");
        // At most 250 runs of 99 hosts each.
        let place = u32::from(run.number()) * 100 + u32::try_from(number).context("too many hosts")?;
        let first_user = FIRST_USER + place * USERS;
        Ok(Self {
            name,
            address,
            directory,
            namespace,
            program,
            first_user,
            agent: None,
        })
    }

    /// Writes the agent's configuration. Its fields are the agent's; they stand here and nowhere else in the lab.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(&self, files: &AgentFiles<'_>) -> anyhow::Result<()> {
        let endpoint = std::net::SocketAddr::new(self.address, AGENT_PORT).to_string();
        let (first, last) = MIGRATION_PORTS;
        let (source, identity) = if files.asks_signer {
            let lifetime = SHORTEST_CERTIFICATE.as_secs();
            (
                "certificateRequest",
                json!({"ca": files.tls.authority, "signer": signer::NAME, "lifetimeSeconds": lifetime}),
            )
        } else {
            (
                "tls",
                json!({
                    "ca": files.tls.authority,
                    "certificate": files.tls.certificate,
                    "key": files.tls.key,
                }),
            )
        };
        let configuration = json!({
            "host": self.name,
            "listen": endpoint,
            "endpoint": endpoint,
            "migrationAddresses": [self.address],
            "migrationPorts": {"first": first, "last": last},
            "stateDirectory": self.directory.join("state"),
            "runDirectory": self.directory.join("run"),
            "pools": files.pools,
            (source): identity,
            "kubeconfig": files.kubeconfig,
            "qemu": {"binary": files.qemu, "accelerator": accelerator::choice()},
            // Hosts are one machine here: their guests still are users of their own.
            "guestUsers": {"first": self.first_user, "count": USERS},
            "namespace": NAMESPACE,
        });
        write_secret(
            &self.configuration(),
            &serde_json::to_string_pretty(&configuration)?,
        )
    }

    /// The agent's configuration file: JSON, which is YAML too. A test may change it and restart the agent.
    #[must_use]
    pub fn configuration(&self) -> PathBuf {
        self.directory.join("agent.yaml")
    }

    /// Where points are armed at which the agent is to stand still or die, and where it says that it has come to one.
    #[must_use]
    pub fn points(&self) -> PathBuf {
        self.directory.join(POINTS)
    }

    /// A command that runs on this host: in its network namespace, where it has one, and marked as the host's.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = match &self.namespace {
            // Not `ip netns exec`: it mounts another /sys, in which the control groups are not to be seen.
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command
                    .arg(format!("--net={}", namespace.display()))
                    .arg("--")
                    .arg(program);
                command
            }
            None => Command::new(program),
        };
        command.env(processes::MARK, &self.directory);
        command
    }

    /// Starts the agent, unless it runs. It is not waited for: see [`crate::Lab::wait_until_ready`].
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start_agent(&mut self, run: &Run) -> anyhow::Result<()> {
        if self.agent.as_mut().is_some_and(|agent| agent.exited().is_none()) {
            return Ok(());
        }
        let mut command = self.command(&self.program);
        command.arg("--config").arg(self.configuration());
        command.env("GODWIT_FAIL_POINTS", self.points());
        let part = format!("agent-{}", self.name);
        self.agent = Some(Process::spawn(run, &self.directory, &part, command)?);
        Ok(())
    }

    /// The agent's program.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Has the agent run from another place when it is started next. It finds its relay's program beside its own.
    pub fn run_agent_from(&mut self, program: PathBuf) {
        self.program = program;
    }

    /// Kills the agent as `kill -9` does; its guests go on.
    pub fn kill_agent(&mut self) {
        // Dropping a part kills it.
        self.agent = None;
    }

    /// Asks the agent to end; its guests go on.
    ///
    /// # Errors
    /// When it does not end within half a minute.
    pub async fn stop_agent(&mut self) -> anyhow::Result<()> {
        let Some(mut agent) = self.agent.take() else {
            return Ok(());
        };
        agent.terminate(Duration::from_secs(30)).await.map(|_| ())
    }

    /// The agent's process, if it was started and not stopped.
    pub fn agent(&mut self) -> Option<&mut Process> {
        self.agent.as_mut()
    }

    /// What belongs to the host and runs now: its agent, its guests' hypervisors, and whatever else they started.
    #[must_use]
    pub fn processes(&self) -> Vec<Seen> {
        let owner = Owner {
            directory: self.directory.clone(),
            namespaces: self.namespace.iter().cloned().collect(),
        };
        owner.processes()
    }

    /// The processes of the host's hypervisors.
    #[must_use]
    pub fn hypervisors(&self) -> Vec<Seen> {
        self.processes()
            .into_iter()
            .filter(processes::is_hypervisor)
            .collect()
    }

    /// Kills the only hypervisor on this host as `kill -9` does.
    ///
    /// # Errors
    /// When there is not exactly one.
    pub fn kill_hypervisor(&self) -> anyhow::Result<()> {
        match self.hypervisors().as_slice() {
            [one] if processes::signal(one, Signal::KILL) => Ok(()),
            other => bail!("{} has {} hypervisors to kill, not one", self.name, other.len()),
        }
    }

    /// The TCP ports on which something listens at this host's address or at all of them, in order.
    ///
    /// # Errors
    /// When the kernel's table cannot be read.
    pub fn listening(&self) -> anyhow::Result<Vec<u16>> {
        let output = self
            .command(Path::new("cat"))
            .args(["/proc/net/tcp", "/proc/net/tcp6"])
            .output()
            .context("read the table of sockets")?;
        let table = String::from_utf8_lossy(&output.stdout);
        let mut ports: Vec<u16> = table
            .lines()
            .filter_map(|line| listener(line, self.address))
            .collect();
        ports.sort_unstable();
        ports.dedup();
        Ok(ports)
    }

    /// Whether this host's agent has an open connection from the host at `peer`.
    ///
    /// # Errors
    /// When the kernel's table cannot be read.
    pub fn hears(&self, peer: IpAddr) -> anyhow::Result<bool> {
        let output = self
            .command(Path::new("cat"))
            .arg("/proc/net/tcp")
            .output()
            .context("read the table of sockets")?;
        let table = String::from_utf8_lossy(&output.stdout);
        Ok(table.lines().any(|line| visited(line, peer)))
    }

    /// How many connections have come in at this host's migration ports and are open.
    ///
    /// # Errors
    /// When the kernel's table cannot be read.
    pub fn native_streams(&self) -> anyhow::Result<usize> {
        let output = self
            .command(Path::new("cat"))
            .arg("/proc/net/tcp")
            .output()
            .context("read the table of sockets")?;
        let table = String::from_utf8_lossy(&output.stdout);
        Ok(table.lines().filter(|line| stream(line, self.address)).count())
    }

    /// The files below the agent's state and run directories, in order: what is left after a migration.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn files(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let mut directories = vec![self.directory.join("state"), self.directory.join("run")];
        while let Some(directory) = directories.pop() {
            let entries = match std::fs::read_dir(&directory) {
                Ok(entries) => entries,
                // One that was found a moment ago may be gone with its guest.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error).context(directory.display().to_string()),
            };
            for entry in entries {
                let entry = entry?;
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => directories.push(entry.path()),
                    Ok(_) => found.push(entry.path()),
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error).context(entry.path().display().to_string()),
                }
            }
        }
        found.sort();
        Ok(found)
    }
}

/// The port of a line of `/proc/net/tcp` that shows a listener at `address` or at any address.
fn listener(line: &str, address: IpAddr) -> Option<u16> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_whitespace().skip(1);
    let (local, _, state) = (fields.next()?, fields.next()?, fields.next()?);
    if state != LISTEN {
        return None;
    }
    let (at, port) = local.rsplit_once(':')?;
    let here = written(address)?;
    if at != here && at.chars().any(|digit| digit != '0') {
        return None;
    }
    u16::from_str_radix(port, 16).ok()
}

/// Whether a line of the kernel's table is an open connection from `peer` to the agent port.
fn visited(line: &str, peer: IpAddr) -> bool {
    const ESTABLISHED: &str = "01";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, local, remote, state, ..] = fields.as_slice() else {
        return false;
    };
    *state == ESTABLISHED
        && local.ends_with(&format!(":{AGENT_PORT:04X}"))
        && remote.split(':').next() == written(peer).as_deref()
}

/// Whether a line of the kernel's table is an open connection from another host to a migration port of the one at
/// `address`. The kernel gives ports of that range also to connections that a host makes itself, to the API server and
/// to other agents.
fn stream(line: &str, address: IpAddr) -> bool {
    const ESTABLISHED: &str = "01";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, local, remote, state, ..] = fields.as_slice() else {
        return false;
    };
    *state == ESTABLISHED && comes_in(local, remote, address)
}

/// Whether a connection between these two, as the kernel writes them, has come in at a migration port of `address`.
#[must_use]
pub fn comes_in(local: &str, remote: &str, address: IpAddr) -> bool {
    let port = |end: &str| u16::from_str_radix(end.rsplit_once(':')?.1, 16).ok();
    let (first, last) = MIGRATION_PORTS;
    let machine = match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            written(IpAddr::from([a, b, c, 1]))
        }
        IpAddr::V6(_) => None,
    };
    port(local).is_some_and(|port| (first..=last).contains(&port))
        && port(remote) != Some(AGENT_PORT)
        && remote.split(':').next() != machine.as_deref()
}

/// An address as the kernel writes it: a number in the machine's byte order.
fn written(address: IpAddr) -> Option<String> {
    match address {
        IpAddr::V4(address) => Some(format!("{:08X}", u32::from_ne_bytes(address.octets()))),
        IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_read_from_the_kernels_table() {
        let address = IpAddr::from([10, 113, 1, 11]);
        let at = |local: &str, state: &str| {
            listener(
                &format!("   0: {local} 00000000:0000 {state} 00000000:00000000"),
                address,
            )
        };
        assert_eq!(at("0B01710A:4082", "0A"), Some(16514));
        assert_eq!(at("00000000:C000", "0A"), Some(49152));
        assert_eq!(at("00000000000000000000000000000000:0016", "0A"), Some(22));
        assert_eq!(at("0B01710A:4082", "01"), None, "a connection");
        assert_eq!(at("0C01710A:4082", "0A"), None, "another host");
        assert_eq!(listener("  sl  local_address rem_address   st", address), None);
    }

    #[test]
    fn streams_are_told_from_connections_that_the_host_made() {
        let address = IpAddr::from([10, 113, 1, 12]);
        let seen = |local: &str, remote: &str, state: &str| {
            stream(
                &format!("   0: {local} {remote} {state} 00000000:00000000"),
                address,
            )
        };
        assert!(seen("0C01710A:C000", "0B01710A:D431", "01"));
        assert!(!seen("0C01710A:C000", "0B01710A:D431", "06"), "it has ended");
        assert!(!seen("0C01710A:B000", "0B01710A:D431", "01"), "another port");
        assert!(!seen("0C01710A:C000", "0B01710A:4082", "01"), "to an agent");
        assert!(!seen("0C01710A:C000", "0101710A:192B", "01"), "to the API server");
    }

    #[test]
    fn visitors_of_the_agent_port_are_read_from_it_too() {
        let peer = IpAddr::from([10, 113, 1, 11]);
        let seen = |local: &str, remote: &str, state: &str| {
            visited(&format!("   0: {local} {remote} {state} 00000000:00000000"), peer)
        };
        assert!(seen("0C01710A:4082", "0B01710A:D431", "01"));
        assert!(!seen("0C01710A:4082", "0B01710A:D431", "06"), "it has ended");
        assert!(!seen("0C01710A:4082", "0D01710A:D431", "01"), "another host");
        assert!(!seen("0C01710A:C082", "0B01710A:D431", "01"), "another port");
    }
}
