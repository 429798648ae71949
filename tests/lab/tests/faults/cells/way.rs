//! Who drives a migration, and how its memory travels; and the relays, where that is through the tunnel.

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use godwit_crds::migration::{ControlFlow, Transport};
use godwit_lab::Lab;
use godwit_lab::hosts::{AGENT_PORT, MIGRATION_PORTS};
use godwit_lab::processes::Seen;

use crate::guest::until;

/// A way for a guest to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub flow: ControlFlow,
    pub transport: Transport,
}

pub const MANAGED: Way = Way {
    flow: ControlFlow::ManagedDirect,
    transport: Transport::Native,
};
pub const PEERS: Way = Way {
    flow: ControlFlow::PeerToPeer,
    transport: Transport::Native,
};
pub const TUNNELLED_MANAGED: Way = Way {
    flow: ControlFlow::ManagedDirect,
    transport: Transport::Tunnelled,
};
pub const TUNNELLED_PEERS: Way = Way {
    flow: ControlFlow::PeerToPeer,
    transport: Transport::Tunnelled,
};

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flow = match self.flow {
            ControlFlow::ManagedDirect => "managed",
            ControlFlow::PeerToPeer => "peer to peer",
        };
        let tunnel = match self.transport {
            Transport::Native => "",
            Transport::Tunnelled => ", tunnel",
        };
        f.pad(&format!("{flow}{tunnel}"))
    }
}

/// The relays of a host.
fn relays(lab: &mut Lab, host: usize) -> anyhow::Result<Vec<Seen>> {
    let processes = lab.host(host)?.processes().into_iter();
    Ok(processes.filter(|seen| seen.program == "godwit-relay").collect())
}

/// The one relay of a host.
pub fn relay(lab: &mut Lab, host: usize) -> anyhow::Result<Seen> {
    match relays(lab, host)?.as_slice() {
        [one] => Ok(one.clone()),
        other => bail!("{} relays on host {host}, not one", other.len()),
    }
}

/// Waits until no relay is left on any host.
pub async fn no_relay_is_left(lab: &mut Lab) -> anyhow::Result<()> {
    let mut left = Vec::new();
    let outcome = until("no relay is left", async || {
        left.clear();
        for host in 1..=lab.hosts.len() {
            left.extend(relays(lab, host)?);
        }
        Ok(left.is_empty().then_some(()))
    })
    .await;
    outcome.with_context(|| format!("{left:?}"))
}

/// Resets the connections on which memory travels at both ends, as a firewall does that has forgotten them.
pub fn reset_stream(lab: &mut Lab, transport: Transport) -> anyhow::Result<()> {
    let (host, which) = match transport {
        Transport::Native => {
            let (first, last) = MIGRATION_PORTS;
            (2, format!("( sport >= :{first} and sport <= :{last} )"))
        }
        Transport::Tunnelled => {
            let relay = relay(lab, 1)?;
            let ports = ports_of(lab, &relay)?;
            let ports: Vec<_> = ports.iter().map(|port| format!("sport = :{port}")).collect();
            ensure!(!ports.is_empty(), "the relay has no connection");
            (1, format!("( {} )", ports.join(" or ")))
        }
    };
    let output = lab
        .host(host)?
        .command(Path::new("ss"))
        .args(["-HKt", "state", "established"])
        .arg(which)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ss: {said}");
    ensure!(!output.stdout.is_empty(), "no connection was reset: {said}");
    Ok(())
}

/// The ports from which host 1's relay reaches host 2's agent port.
fn ports_of(lab: &mut Lab, relay: &Seen) -> anyhow::Result<Vec<String>> {
    let peer = format!("{}:{AGENT_PORT}", lab.host(2)?.address);
    let output = lab
        .host(1)?
        .command(Path::new("ss"))
        .args(["-Htnp", "state", "established", "dst", &peer])
        .output()?;
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    let owner = format!("pid={},", relay.pid);
    let ports = table
        .lines()
        .filter(|line| line.contains(&owner))
        .filter_map(|line| {
            let local = line.split_whitespace().nth(2)?;
            Some(local.rsplit_once(':')?.1.to_owned())
        });
    Ok(ports.collect())
}
