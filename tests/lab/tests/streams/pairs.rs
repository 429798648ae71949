//! Two migrations at once through one port: what breaks one does not touch the other.

use anyhow::{Context as _, ensure};
use godwit_lab::guest::{Guest, migrations};
use godwit_lab::processes::{self, Seen};
use godwit_lab::{Host, Lab};
use kube::ResourceExt as _;
use rustix::process::Signal;
use serde_json::json;

use crate::cuts::{breaker, port_of, skips};
use crate::moments::{TRICKLE, holds, sockets, travels};
use crate::setting::{SOON, clear, ended, is_true, linux, lives_on, start, succeeds};
use crate::traces::settles;
use crate::ways::{ask, limit, no_relay_is_left, relays};

/// The relay of one migration on a host.
async fn relay_of(lab: &Lab, host: &Host, migration: &str) -> anyhow::Result<Seen> {
    let uid = migrations(lab).get(migration).await?.uid().context("a UID")?;
    let socket = host.directory.join(format!("run/tunnels/{uid}.sock"));
    let mut found = relays(host);
    found.retain(|relay| {
        // A listener's sockets bear its path in the kernel's table, and each relay holds one listener.
        let table = std::fs::read_to_string(format!("/proc/{}/net/unix", relay.pid)).unwrap_or_default();
        let inodes: Vec<&str> = table
            .lines()
            .filter(|line| line.ends_with(&*socket.to_string_lossy()))
            .filter_map(|line| line.split_whitespace().nth(6))
            .collect();
        let held = std::fs::read_dir(format!("/proc/{}/fd", relay.pid));
        held.into_iter().flatten().any(|entry| {
            let link = entry.ok().and_then(|entry| std::fs::read_link(entry.path()).ok());
            link.is_some_and(|link| {
                inodes
                    .iter()
                    .any(|inode| link.as_os_str() == format!("socket:[{inode}]").as_str())
            })
        })
    });
    ensure!(found.len() == 1, "{}: {found:?}", host.name);
    found.pop().context("a relay")
}

/// What breaks the one.
#[derive(Clone, Copy, Debug)]
enum Fault {
    SourceRelayKilled,
    DestinationRelayKilled,
    ConnectionReset,
    HypervisorKilled,
}

async fn one_breaks(lab: &mut Lab, faults: &[Fault]) -> anyhow::Result<()> {
    clear(lab).await?;
    if skips(lab) {
        return Ok(());
    }
    let broken = start(lab, linux("broken", "128Mi", "godwit.fill=16M godwit.dirty=1M")).await?;
    let whole = start(lab, linux("whole", "128Mi", "godwit.fill=64M godwit.dirty=1M")).await?;
    let slowly =
        |flow: &str| json!({"controlFlow": flow, "transport": "Tunnelled", "tuning": {"bandwidth": TRICKLE}});
    ask(lab, &whole, "whole-1", &lab.hosts[1], slowly("PeerToPeer")).await?;
    travels(lab, "whole-1").await?;
    let untouched = [
        relay_of(lab, &lab.hosts[0], "whole-1").await?,
        relay_of(lab, &lab.hosts[1], "whole-1").await?,
    ];
    let connection = port_of(lab, &untouched[0], 2)?;
    for (number, fault) in faults.iter().copied().enumerate() {
        let name = format!("broken-{}", number + 1);
        let flow = if number % 2 == 0 {
            "PeerToPeer"
        } else {
            "ManagedDirect"
        };
        ask(lab, &broken, &name, &lab.hosts[1], slowly(flow)).await?;
        travels(lab, &name).await?;
        breaks(lab, &broken, &name, fault).await?;
        let migration = ended(lab, &name).await?;
        ensure!(is_true(&migration, "Failed"), "{fault:?}: {:?}", migration.status);
        let failure = migration
            .status
            .and_then(|status| status.failure)
            .context("a failure")?;
        println!("  {fault:?}: {}: {}", failure.reason, failure.message);
        let expected = match fault {
            Fault::SourceRelayKilled | Fault::DestinationRelayKilled | Fault::ConnectionReset => {
                "StreamFailed"
            }
            Fault::HypervisorKilled => "DestinationHypervisorDied",
        };
        ensure!(failure.reason == expected, "{fault:?}: {failure:?}");
        lives_on(lab, &broken, 1, 1).await?;
        settles("each host has the other's relay, and no more", SOON, || {
            let mut wrong = Vec::new();
            for (host, relay) in lab.hosts.iter().zip(&untouched) {
                let found = relays(host);
                ensure!(
                    found.contains(relay),
                    "{}: {found:?} without {relay:?}",
                    host.name
                );
                if found.len() > 1 {
                    wrong.push(format!("{}: {found:?}", host.name));
                }
            }
            Ok(wrong)
        })
        .await?;
        let mut all = sockets(untouched[0].pid)?.into_iter();
        ensure!(
            all.any(|socket| socket.local_port == connection
                && socket.established
                && holds(&untouched[0], &socket)),
            "{fault:?}: the other's connection is not what it was"
        );
    }
    limit(lab, "whole-1", "0").await?;
    succeeds(lab, "whole-1").await?;
    lives_on(lab, &whole, 2, 2).await?;
    no_relay_is_left(lab).await
}

pub async fn what_breaks_one_migration_does_not_touch_another(lab: &mut Lab) -> anyhow::Result<()> {
    one_breaks(lab, &[Fault::DestinationRelayKilled, Fault::ConnectionReset]).await
}

pub async fn nor_does_anything_else_that_breaks_one(lab: &mut Lab) -> anyhow::Result<()> {
    one_breaks(lab, &[Fault::HypervisorKilled, Fault::SourceRelayKilled]).await
}

async fn breaks(lab: &Lab, guest: &Guest, name: &str, fault: Fault) -> anyhow::Result<()> {
    let victim = match fault {
        Fault::SourceRelayKilled => relay_of(lab, &lab.hosts[0], name).await?,
        Fault::DestinationRelayKilled => relay_of(lab, &lab.hosts[1], name).await?,
        Fault::ConnectionReset => {
            let port = port_of(lab, &relay_of(lab, &lab.hosts[0], name).await?, 2)?;
            let output = breaker(lab, 1, 2, Some(port)).output()?;
            ensure!(output.status.success(), "{output:?}");
            return Ok(());
        }
        Fault::HypervisorKilled => {
            let mut processes = lab.hosts[1].hypervisors();
            processes.retain(|process| {
                let arguments = std::fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
                String::from_utf8_lossy(&arguments).contains(&guest.uid)
            });
            processes.pop().context("a hypervisor")?
        }
    };
    ensure!(processes::signal(&victim, Signal::KILL), "{victim:?} had gone");
    Ok(())
}
