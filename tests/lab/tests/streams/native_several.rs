//! Several connections that the hypervisors make themselves: what of the network they have for it, and what is left.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use godwit_crds::VirtualMachineHost;
use godwit_crds::migration::{ChannelSecurity, HypervisorNetwork};
use godwit_lab::cases::LeftOut;
use godwit_lab::hosts::AGENT_PORT;
use godwit_lab::processes::Seen;
use godwit_lab::{Host, Lab};
use kube::Api;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use crate::setting::{SOON, cancel, clear, ended, is_true, linux, lives_on, start, succeeds};
use crate::traces::settles;
use crate::ways::{ask, limit, travels};

const CHECKED_WITHIN: Duration = Duration::from_secs(30);
/// What is not answered for so long is not reached: everything here is one machine.
const UNANSWERED: Duration = Duration::from_millis(1500);

fn several(more: Value) -> Value {
    let mut all = json!({
        "transport": "Native",
        "security": {"require": "None"},
        "tuning": {"parallelConnections": 4},
    });
    let (fields, more) = (all.as_object_mut().unwrap(), more.as_object().unwrap().clone());
    fields.extend(more);
    all
}

fn slowly() -> Value {
    several(json!({"tuning": {"parallelConnections": 4, "bandwidth": "4Mi"}}))
}

fn heavy(name: &str) -> Value {
    linux(name, "256Mi", "godwit.fill=96M godwit.dirty=1M")
}

/// Runs a command in a network namespace; what it prints.
fn within(namespace: &str, command: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("nsenter")
        .arg(format!("--net={namespace}"))
        .args(command)
        .output()?;
    ensure!(
        output.status.success(),
        "{command:?} in {namespace}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn of_host(lab: &Lab, number: usize) -> anyhow::Result<String> {
    let namespace = lab.network.namespace(number).context("a namespace")?;
    Ok(namespace.display().to_string())
}

fn hypervisor(host: &Host) -> anyhow::Result<Seen> {
    let mut seen = host.hypervisors();
    ensure!(seen.len() == 1, "{}: {seen:?}", host.name);
    seen.pop().context("a hypervisor")
}

fn of_process(seen: &Seen) -> String {
    format!("/proc/{}/ns/net", seen.pid)
}

/// Whether anybody answers from there, to a process in that namespace; a refusal is an answer.
fn answers(namespace: &str, at: SocketAddr) -> anyhow::Result<bool> {
    let namespace = File::open(namespace)?;
    let asked = std::thread::spawn(move || {
        // Of this thread only, which ends with the question.
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        match TcpStream::connect_timeout(&at, UNANSWERED) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(true),
            Err(_) => std::io::Result::Ok(false),
        }
    });
    Ok(asked
        .join()
        .map_err(|_| anyhow::anyhow!("the thread ended badly"))??)
}

/// Where the destination's hypervisor is reached, by the connections that the source's has.
fn peer_of(source: &Seen) -> anyhow::Result<SocketAddr> {
    let text = within(&of_process(source), &["ss", "-Htn", "state", "established"])?;
    let mut peers: Vec<SocketAddr> = text
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3)?.parse().ok())
        .collect();
    // Four for memory, one for the rest.
    ensure!(peers.len() == 5, "{text}");
    peers.dedup();
    ensure!(peers.len() == 1, "{text}");
    peers.pop().context("a peer")
}

/// The address of the host's end of the cable.
fn way_out(namespace: &str) -> anyhow::Result<Ipv4Addr> {
    let text = within(namespace, &["ip", "-o", "-4", "addr", "show", "dev", "migration"])?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "peer");
    let address = words.nth(1).context("a peer's address")?;
    Ok(address.split('/').next().unwrap_or_default().parse()?)
}

/// Nothing but its peer's port is to be reached from a hypervisor, even if whoever is in it could make itself a way to
/// everywhere: the wall is the host's, and not the routes in the namespace.
fn is_walled_in(lab: &Lab, seen: &Seen, peer: Option<SocketAddr>) -> anyhow::Result<()> {
    let namespace = of_process(seen);
    let gate = way_out(&namespace)?;
    within(
        &namespace,
        &[
            "ip",
            "route",
            "add",
            "default",
            "via",
            &gate.to_string(),
            "dev",
            "migration",
        ],
    )?;
    let port = |address: IpAddr, port: u16| SocketAddr::new(address, port);
    let mut asked = vec![
        port(gate.into(), AGENT_PORT),
        port(lab.network.machine(), AGENT_PORT),
    ];
    for host in &lab.hosts {
        asked.extend([port(host.address, AGENT_PORT), port(host.address, 22)]);
    }
    let server = lab.control_plane.server().strip_prefix("https://");
    asked.push(server.context("the API server's address")?.parse()?);
    if let Some(peer) = peer {
        asked.push(port(peer.ip(), peer.port() + 1));
        asked.push(port(peer.ip(), peer.port() - 1));
    }
    // Other guests' cables have the addresses beside its own.
    let beside = Ipv4Addr::from_bits(gate.to_bits() + 3);
    asked.push(port(beside.into(), 49152));
    let questions: Vec<_> = asked
        .into_iter()
        .map(|at| {
            let namespace = namespace.clone();
            std::thread::spawn(move || (at, answers(&namespace, at)))
        })
        .collect();
    for question in questions {
        let (at, answered) = question
            .join()
            .map_err(|_| anyhow::anyhow!("a thread ended badly"))?;
        ensure!(!answered?, "{at} answers to {seen:?}");
    }
    within(&namespace, &["ip", "route", "del", "default"])?;
    if let Some(peer) = peer {
        ensure!(answers(&namespace, peer)?, "{peer} does not answer to {seen:?}");
    }
    Ok(())
}

fn has_networks(lab: &Lab) -> Result<(), LeftOut> {
    if lab.network.separate() {
        return Ok(());
    }
    Err(LeftOut("not root, so hosts have no network of their own"))
}

/// From this version on QEMU outlives an encrypted stream over several connections that breaks off.
const SURVIVES_SINCE: [u32; 3] = [11, 1, 0];

/// Whether the first host sends encrypted over several connections, by the version of its hypervisor.
async fn sends_encrypted(lab: &Lab) -> anyhow::Result<bool> {
    let hosts: Api<VirtualMachineHost> = Api::all(lab.client());
    let status = hosts.get(&lab.hosts[0].name).await?.status.context("a status")?;
    let hypervisor = status.hypervisors.first().context("a hypervisor")?;
    let version: Result<Vec<u32>, _> = hypervisor.version.split('.').map(str::parse).collect();
    Ok(version? >= SURVIVES_SINCE.to_vec())
}

/// No cable, rule, note or setting is left on any host.
async fn nothing_is_plugged(lab: &Lab) -> anyhow::Result<()> {
    settles("no migration network is left", SOON, || {
        let mut left = Vec::new();
        for (number, host) in (1..).zip(&lab.hosts) {
            let namespace = of_host(lab, number)?;
            let lines = |text: String, what: &str| -> Vec<String> {
                let found = text.lines().filter(|line| line.contains(what));
                found.map(|line| format!("{}: {line}", host.name)).collect()
            };
            left.extend(lines(within(&namespace, &["ip", "-o", "link"])?, "gwm"));
            left.extend(lines(within(&namespace, &["nft", "list", "tables"])?, "godwit"));
            let forwarding = "/proc/sys/net/ipv4/conf/eth0/forwarding";
            left.extend(lines(within(&namespace, &["cat", forwarding])?, "1"));
            let files = host.files()?.into_iter().map(|file| file.display().to_string());
            left.extend(files.filter(|file| file.contains("/guest-network/")));
            for seen in host.hypervisors() {
                left.extend(lines(
                    within(&of_process(&seen), &["ip", "-o", "link"])?,
                    "migration",
                ));
            }
        }
        Ok(left)
    })
    .await
}

pub async fn hypervisors_connect_themselves_and_reach_nothing_else(lab: &mut Lab) -> anyhow::Result<()> {
    has_networks(lab)?;
    clear(lab).await?;
    let guest = start(lab, heavy("direct")).await?;
    if !sends_encrypted(lab).await? {
        for (name, flow) in [("sealed-1", "PeerToPeer"), ("sealed-2", "ManagedDirect")] {
            let encrypted = several(json!({"controlFlow": flow, "security": {"require": "Encrypted"}}));
            ask(lab, &guest, name, &lab.hosts[1], encrypted).await?;
            let migration = ended(lab, name).await?;
            let failure = migration.status.and_then(|status| status.failure);
            ensure!(
                failure
                    .as_ref()
                    .is_some_and(|failure| failure.reason == "StreamNotServed"),
                "{failure:?}"
            );
        }
    }
    // Driven by the controller.
    ask(lab, &guest, "direct-1", &lab.hosts[1], slowly()).await?;
    travels(lab, "direct-1").await?;
    let (source, destination) = (hypervisor(&lab.hosts[0])?, hypervisor(&lab.hosts[1])?);
    let peer = peer_of(&source)?;
    ensure!(peer.ip() == lab.hosts[1].address, "{peer}");
    is_walled_in(lab, &source, Some(peer))?;
    is_walled_in(lab, &destination, None)?;
    limit(lab, "direct-1", "0").await?;
    let status = succeeds(lab, "direct-1").await?.status.context("a status")?;
    ensure!(status.channel == Some(ChannelSecurity::PlainText), "{status:?}");
    let network = Some(HypervisorNetwork::MigrationPeer);
    ensure!(status.hypervisor_network == network, "{status:?}");
    lives_on(lab, &guest, 2, 2).await?;
    guest.check_memory(&lab.hosts[1], CHECKED_WITHIN)?;
    ensure!(
        guest.observer.verdict().memory_intact(),
        "{:?}",
        guest.observer.verdict()
    );
    nothing_is_plugged(lab).await?;
    // And back, driven by the source.
    let back = several(json!({"controlFlow": "PeerToPeer"}));
    ask(lab, &guest, "direct-2", &lab.hosts[0], back).await?;
    let status = succeeds(lab, "direct-2").await?.status.context("a status")?;
    ensure!(status.channel == Some(ChannelSecurity::PlainText), "{status:?}");
    ensure!(status.hypervisor_network == network, "{status:?}");
    lives_on(lab, &guest, 1, 3).await?;
    // Over one connection nobody gets a network.
    ask(lab, &guest, "direct-3", &lab.hosts[1], json!({})).await?;
    let status = succeeds(lab, "direct-3").await?.status.context("a status")?;
    ensure!(
        status.hypervisor_network == Some(HypervisorNetwork::Isolated),
        "{status:?}"
    );
    nothing_is_plugged(lab).await
}

pub async fn the_migration_network_goes_with_its_migration(lab: &mut Lab) -> anyhow::Result<()> {
    has_networks(lab)?;
    clear(lab).await?;
    let guest = start(lab, heavy("plugged")).await?;
    // Given up in mid-stream, with the agents killed before: whoever comes after them takes it out.
    let slow_peers = json!({"controlFlow": "PeerToPeer"});
    let mut first = slowly();
    first
        .as_object_mut()
        .unwrap()
        .extend(slow_peers.as_object().unwrap().clone());
    ask(lab, &guest, "plugged-1", &lab.hosts[1], first).await?;
    travels(lab, "plugged-1").await?;
    for number in [1, 2] {
        lab.host(number)?.kill_agent();
        lab.start_agent(number)?;
    }
    lab.wait_until_ready().await?;
    // It goes on meanwhile, over the connections that it had.
    let source = hypervisor(&lab.hosts[0])?;
    peer_of(&source)?;
    cancel(lab, "plugged-1").await?;
    let migration = ended(lab, "plugged-1").await?;
    ensure!(is_true(&migration, "Failed"), "{:?}", migration.status);
    lives_on(lab, &guest, 1, 1).await?;
    nothing_is_plugged(lab).await?;
    // The hypervisor dies that the memory goes to.
    ask(lab, &guest, "plugged-2", &lab.hosts[1], slowly()).await?;
    travels(lab, "plugged-2").await?;
    lab.hosts[1].kill_hypervisor()?;
    let migration = ended(lab, "plugged-2").await?;
    ensure!(is_true(&migration, "Failed"), "{:?}", migration.status);
    lives_on(lab, &guest, 1, 1).await?;
    nothing_is_plugged(lab).await?;
    // Killed in mid-stream once more, and it ends well.
    ask(lab, &guest, "plugged-3", &lab.hosts[1], slowly()).await?;
    travels(lab, "plugged-3").await?;
    for number in [1, 2] {
        lab.host(number)?.kill_agent();
        lab.start_agent(number)?;
    }
    lab.wait_until_ready().await?;
    limit(lab, "plugged-3", "0").await?;
    succeeds(lab, "plugged-3").await?;
    lives_on(lab, &guest, 2, 2).await?;
    nothing_is_plugged(lab).await
}

/// Encrypted it is served by hypervisors that bear its end, however it comes.
pub async fn encrypted_connections_end_no_guest(lab: &mut Lab) -> anyhow::Result<()> {
    has_networks(lab)?;
    if !sends_encrypted(lab).await? {
        // The case above sees it refused.
        return Err(LeftOut("the hypervisors here may not outlive such a stream").into());
    }
    clear(lab).await?;
    let guest = start(lab, heavy("sealed")).await?;
    let encrypted = |flow: &str, bandwidth: &str| {
        several(json!({
            "controlFlow": flow,
            "security": {"require": "Encrypted"},
            "tuning": {"parallelConnections": 4, "bandwidth": bandwidth},
        }))
    };
    // A slow stream has its senders idle when it is cancelled, a fast one has them busy.
    for round in 0..12 {
        let name = format!("given-up-{round}");
        let flow = ["PeerToPeer", "ManagedDirect"][round % 2];
        ask(lab, &guest, &name, &lab.hosts[1], encrypted(flow, "4Mi")).await?;
        travels(lab, &name).await?;
        if round % 6 == 5 {
            for number in [1, 2] {
                lab.host(number)?.kill_agent();
                lab.start_agent(number)?;
            }
            lab.wait_until_ready().await?;
        }
        if round % 3 == 1 {
            limit(lab, &name, "16Mi").await?;
        }
        if round % 4 == 3 {
            lab.hosts[1].kill_hypervisor()?;
        } else {
            cancel(lab, &name).await?;
        }
        let migration = ended(lab, &name).await?;
        ensure!(is_true(&migration, "Failed"), "{:?}", migration.status);
        lives_on(lab, &guest, 1, 1).await?;
    }
    nothing_is_plugged(lab).await?;
    for (name, to, epoch, flow) in [
        ("sealed-1", 2, 2, "ManagedDirect"),
        ("sealed-2", 1, 3, "PeerToPeer"),
    ] {
        ask(lab, &guest, name, &lab.hosts[to - 1], encrypted(flow, "0")).await?;
        let status = succeeds(lab, name).await?.status.context("a status")?;
        ensure!(status.channel == Some(ChannelSecurity::Encrypted), "{status:?}");
        let network = Some(HypervisorNetwork::MigrationPeer);
        ensure!(status.hypervisor_network == network, "{status:?}");
        lives_on(lab, &guest, to, epoch).await?;
        guest.check_memory(&lab.hosts[to - 1], CHECKED_WITHIN)?;
        ensure!(
            guest.observer.verdict().memory_intact(),
            "{:?}",
            guest.observer.verdict()
        );
    }
    for host in &lab.hosts {
        let files = host.files()?;
        ensure!(
            !files.iter().any(|file| file.ends_with("keys.psk")),
            "a key is left: {files:?}"
        );
    }
    nothing_is_plugged(lab).await
}
