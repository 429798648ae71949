//! What a guest has left on a host.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use godwit_lab::hosts::MIGRATION_PORTS;
use godwit_lab::{Host, guest};

/// How long a host may take to let go of a guest after the migration has ended.
pub const GONE_WITHIN: Duration = Duration::from_secs(45);

/// Waits until nothing of a guest is left on a host: no process, directory, record, control group, tap device or
/// port. What the agent keeps for a while is the migration's journal, which says how it ended.
pub async fn nothing_is_left(host: &Host, uid: &str) -> anyhow::Result<()> {
    settles(
        &format!("nothing of guest {uid} is left on {}", host.name),
        GONE_WITHIN,
        || left(host, uid),
    )
    .await
}

/// Waits until `look` finds nothing.
pub async fn settles(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> anyhow::Result<Vec<String>>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let found = look()?;
        if found.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("not within {patience:?}: {what}: {found:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn left(host: &Host, uid: &str) -> anyhow::Result<Vec<String>> {
    let mut left: Vec<String> = Vec::new();
    left.extend(
        host.hypervisors()
            .iter()
            .filter(|process| uses(process.pid, uid))
            .map(|process| format!("{process:?}")),
    );
    let directory = guest::directory(host, uid);
    left.extend(directory.exists().then(|| directory.display().to_string()));
    let files = host.files()?.into_iter().map(|file| file.display().to_string());
    left.extend(files.filter(|file| file.contains(uid)));
    left.extend(groups(host, uid).iter().map(|group| group.display().to_string()));
    left.extend(migration_ports(host)?.iter().map(|port| format!("port {port}")));
    if host.hypervisors().is_empty() {
        left.extend(taps(host)?);
    }
    Ok(left)
}

fn uses(pid: i32, uid: &str) -> bool {
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&arguments).contains(uid)
}

/// The control groups that the host made for a guest, in whatever hierarchies there are.
pub fn groups(host: &Host, uid: &str) -> Vec<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(&root).into_iter().flatten();
    let hierarchies = hierarchies.filter_map(|entry| Some(entry.ok()?.path()));
    std::iter::once(root.clone())
        .chain(hierarchies)
        .filter_map(|hierarchy| std::fs::read_dir(hierarchy.join("godwit")).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|group| {
            let name = group.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&format!("{}.", host.name)) && name.contains(uid)
        })
        .collect()
}

/// The ports of the migration range on which something listens.
pub fn migration_ports(host: &Host) -> anyhow::Result<Vec<u16>> {
    let (first, last) = MIGRATION_PORTS;
    let mut ports = host.listening()?;
    ports.retain(|port| (first..=last).contains(port));
    Ok(ports)
}

/// The host's tap devices, by name; none where hosts have no network of their own.
pub fn taps(host: &Host) -> anyhow::Result<Vec<String>> {
    if !godwit_lab::cache::root() {
        return Ok(Vec::new());
    }
    let output = host
        .command(std::path::Path::new("ip"))
        .args(["-o", "link", "show", "type", "tun"])
        .output()
        .context("list tap devices")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .lines()
        .filter_map(|line| Some(line.split(": ").nth(1)?.to_owned()))
        .collect())
}

/// How many connections to the API server an agent holds open. Its client keeps as many as it just needed at once, for
/// a while, whether guests move or not.
fn pooled(agent: u32, host: IpAddr) -> anyhow::Result<usize> {
    let IpAddr::V4(host) = host else { return Ok(0) };
    let [a, b, c, _] = host.octets();
    // The lab's control plane is at the machine's own address; the kernel writes it in the machine's byte order.
    let machine = format!("{:08X}:", u32::from_ne_bytes([a, b, c, 1]));
    let own_port = format!(":{:04X}", godwit_lab::hosts::AGENT_PORT);
    let table = std::fs::read_to_string(format!("/proc/{agent}/net/tcp"))?;
    let mut sockets = Vec::new();
    for line in table.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [_, local, remote, _, _, _, _, _, _, inode, ..] = fields.as_slice()
            && remote.starts_with(&machine)
            && !local.ends_with(&own_port)
        {
            sockets.push(format!("socket:[{inode}]"));
        }
    }
    let mut held = 0;
    for entry in std::fs::read_dir(format!("/proc/{agent}/fd"))? {
        // One that was closed meanwhile is not held.
        if let Ok(link) = std::fs::read_link(entry?.path())
            && sockets.iter().any(|socket| link.as_os_str() == socket.as_str())
        {
            held += 1;
        }
    }
    Ok(held)
}

/// What an agent holds and a host has lying about, in figures that may not grow from one migration to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holdings {
    descriptors: usize,
    threads: usize,
    processes: usize,
    ports: Vec<u16>,
    files: Vec<PathBuf>,
}

impl Holdings {
    /// Of a host and its agent, now. Journals are left out: there is one for each migration, for a day.
    pub fn of(host: &mut Host) -> anyhow::Result<Self> {
        let agent = host.agent().context("the agent does not run")?.pid();
        let count =
            |what: &str| Ok::<_, std::io::Error>(std::fs::read_dir(format!("/proc/{agent}/{what}"))?.count());
        let mut files = host.files()?;
        files.retain(|file| {
            // What the agent writes to see that it can: now and then, one file.
            let probe = file.file_name().is_some_and(|name| name == "probe");
            !probe && file.extension().is_none_or(|word| word != "journal")
        });
        Ok(Self {
            descriptors: count("fd")?.saturating_sub(pooled(agent, host.address)?),
            threads: count("task")?,
            processes: host.processes().len(),
            ports: host.listening()?,
            files,
        })
    }

    /// In what it exceeds another.
    pub fn beyond(&self, before: &Self) -> Vec<String> {
        let mut beyond = Vec::new();
        for (what, now, then) in [
            ("descriptors", self.descriptors, before.descriptors),
            ("processes", self.processes, before.processes),
            ("ports", self.ports.len(), before.ports.len()),
        ] {
            if now > then {
                beyond.push(format!("{what}: {then} became {now}"));
            }
        }
        let new = self.files.iter().filter(|file| !before.files.contains(file));
        beyond.extend(new.map(|file| file.display().to_string()));
        // The runtime starts threads for file work as it needs them and ends them when they have been idle.
        if self.threads > before.threads + 10 {
            beyond.push(format!("threads: {} became {}", before.threads, self.threads));
        }
        beyond
    }
}
