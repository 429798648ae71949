//! Memory spread over several connections, through the tunnel.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use godwit_crds::migration::{ChannelSecurity, ControlFlow};
use godwit_lab::hosts::AGENT_PORT;
use godwit_lab::{Host, Lab, processes};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::faults::fails;
use crate::setting::{SOON, clear, linux, lives_on, start, succeeds};
use crate::traces::settles;
use crate::ways::{ask, limit, no_relay_is_left, relays, travels};

const CHECKED_WITHIN: Duration = Duration::from_secs(90);
/// The four that were asked for, and the one for all the rest of the stream.
const CHANNELS: [&str; 5] = ["memory 0", "multifd 0", "multifd 1", "multifd 2", "multifd 3"];

fn spread(flow: ControlFlow, bandwidth: &str) -> Value {
    json!({
        "controlFlow": flow,
        "transport": "Tunnelled",
        "tuning": {"parallelConnections": 4, "bandwidth": bandwidth},
    })
}

/// What an agent says of each channel of a migration that is over: its name, and the bytes that went each way.
fn carried(lab: &Lab, host: &Host, migration: &str) -> anyhow::Result<Vec<(String, u64)>> {
    let log = lab
        .records()
        .join("logs")
        .join(format!("agent-{}.log", host.name));
    let text = std::fs::read_to_string(&log).with_context(|| log.display().to_string())?;
    let over = text
        .lines()
        .filter(|line| line.contains("a tunnel's channel is over") && line.contains(migration));
    let mut channels = Vec::new();
    for line in over {
        let after = |what: &str| line.split_once(what).map(|(_, rest)| rest);
        let name = CHANNELS
            .iter()
            .find(|name| line.contains(&format!("channel={name} ")));
        let number = |what: &str| -> Option<u64> {
            let digits: String = after(what)?.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        };
        let bytes = number("sent=")
            .zip(number("received="))
            .with_context(|| line.to_owned())?;
        channels.push((
            (*name.with_context(|| line.to_owned())?).to_owned(),
            bytes.0 + bytes.1,
        ));
    }
    channels.sort();
    Ok(channels)
}

/// Waits until both agents have told of every channel of a migration, each of which has carried something.
async fn each_has_carried(lab: &Lab, migration: &str) -> anyhow::Result<()> {
    settles("every channel has carried memory", SOON, || {
        let mut lacking = Vec::new();
        for host in &lab.hosts {
            let channels = carried(lab, host, migration)?;
            let names: Vec<&str> = channels.iter().map(|(name, _)| name.as_str()).collect();
            if names != CHANNELS || channels.iter().any(|(_, bytes)| *bytes == 0) {
                lacking.push(format!("{}: {channels:?}", host.name));
            }
        }
        Ok(lacking)
    })
    .await
}

/// Nothing is left at which hypervisors and relays have met.
async fn no_meeting_is_left(lab: &Lab) -> anyhow::Result<()> {
    no_relay_is_left(lab).await?;
    settles("no socket of a stream is left", SOON, || {
        let mut left = Vec::new();
        for host in &lab.hosts {
            let files = host.files()?.into_iter().map(|file| file.display().to_string());
            left.extend(
                files.filter(|file| file.contains("/run/streams/") || file.ends_with("/stream.sock")),
            );
        }
        Ok(left)
    })
    .await
}

async fn uid_of(lab: &Lab, name: &str) -> anyhow::Result<String> {
    let migration = godwit_lab::guest::migrations(lab).get(name).await?;
    kube::ResourceExt::uid(&migration).context("a UID")
}

pub async fn memory_is_spread_over_several_connections(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    let guest = start(lab, linux("wide", "128Mi", "godwit.fill=32M godwit.dirty=2M")).await?;
    for (number, flow) in [(1, ControlFlow::ManagedDirect), (2, ControlFlow::PeerToPeer)] {
        let name = format!("wide-{number}");
        ask(lab, &guest, &name, &lab.hosts[number % 2], spread(flow, "0")).await?;
        let uid = uid_of(lab, &name).await?;
        let status = succeeds(lab, &name).await?.status.context("a status")?;
        ensure!(status.channel == Some(ChannelSecurity::Encrypted), "{status:?}");
        let (here, epoch) = (number % 2 + 1, i64::try_from(number)? + 1);
        lives_on(lab, &guest, here, epoch).await?;
        each_has_carried(lab, &uid).await?;
    }
    guest.check_memory(&lab.hosts[0], CHECKED_WITHIN)?;
    let verdict = guest.observer.verdict();
    ensure!(
        verdict.memory_intact() && verdict.counter_continuous(),
        "{verdict:?}"
    );
    no_meeting_is_left(lab).await?;
    // One connection again: the hypervisor that had several has left nothing of them set.
    ask(
        lab,
        &guest,
        "wide-3",
        &lab.hosts[1],
        json!({"transport": "Tunnelled"}),
    )
    .await?;
    succeeds(lab, "wide-3").await?;
    lives_on(lab, &guest, 2, 4).await
}

/// Both agents are killed and started anew while memory travels; then a migration whose relay is killed instead.
pub async fn several_connections_outlive_agents_and_fall_with_a_relay(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    let guest = start(lab, linux("broad", "128Mi", "godwit.fill=32M godwit.dirty=1M")).await?;
    ask(
        lab,
        &guest,
        "broad-1",
        &lab.hosts[1],
        spread(ControlFlow::PeerToPeer, "2Mi"),
    )
    .await?;
    travels(lab, "broad-1").await?;
    let before: Vec<_> = lab.hosts.iter().map(relays).collect();
    for number in [1, 2] {
        lab.host(number)?.kill_agent();
        lab.start_agent(number)?;
    }
    lab.wait_until_ready().await?;
    let after: Vec<_> = lab.hosts.iter().map(relays).collect();
    ensure!(
        before == after && before.iter().all(|relays| relays.len() == 1),
        "{before:?}, {after:?}"
    );
    limit(lab, "broad-1", "0").await?;
    succeeds(lab, "broad-1").await?;
    lives_on(lab, &guest, 2, 2).await?;
    no_meeting_is_left(lab).await?;

    ask(
        lab,
        &guest,
        "broad-2",
        &lab.hosts[0],
        spread(ControlFlow::ManagedDirect, "2Mi"),
    )
    .await?;
    travels(lab, "broad-2").await?;
    let relays = relays(&lab.hosts[1]);
    ensure!(
        relays.len() == 1 && processes::signal(&relays[0], Signal::KILL),
        "{relays:?}"
    );
    let reason = fails(lab, "broad-2").await?;
    ensure!(reason == "StreamFailed", "{reason}");
    lives_on(lab, &guest, 2, 2).await?;
    no_meeting_is_left(lab).await?;
    ask(
        lab,
        &guest,
        "broad-3",
        &lab.hosts[0],
        spread(ControlFlow::ManagedDirect, "0"),
    )
    .await?;
    succeeds(lab, "broad-3").await?;
    lives_on(lab, &guest, 1, 3).await
}

fn filter(host: &Host, rules: &[&str]) -> anyhow::Result<()> {
    for rule in rules {
        let mut command: Command = host.command(Path::new("nft"));
        let output = command.args(rule.split(' ')).output().context("run nft")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "nft {rule}: {said}");
    }
    Ok(())
}

/// Between the hosts only the first connections come through, and nobody says why.
pub async fn a_channel_that_never_comes_ends_the_migration(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    if !lab.network.separate() {
        println!("  skipped: the hosts have no network of their own");
        return Ok(());
    }
    let guest = start(lab, linux("narrow", "128Mi", "godwit.dirty=1M")).await?;
    let from = lab.hosts[0].address;
    // The agents do not talk to each other in this flow: what comes from the source are its channels.
    let rule = format!(
        "add rule ip godwit-lab in ip saddr {from} tcp dport {AGENT_PORT} tcp flags & (syn|ack) == syn \
         limit rate over 1/day burst 3 packets drop"
    );
    filter(
        &lab.hosts[1],
        &[
            "add table ip godwit-lab",
            "add chain ip godwit-lab in { type filter hook input priority 0 ; }",
            &rule,
        ],
    )?;
    ask(
        lab,
        &guest,
        "narrow-1",
        &lab.hosts[1],
        spread(ControlFlow::ManagedDirect, "0"),
    )
    .await?;
    let reason = fails(lab, "narrow-1").await;
    filter(&lab.hosts[1], &["delete table ip godwit-lab"])?;
    let reason = reason?;
    ensure!(reason == "StreamFailed", "{reason}");
    lives_on(lab, &guest, 1, 1).await?;
    no_meeting_is_left(lab).await?;
    ask(
        lab,
        &guest,
        "narrow-2",
        &lab.hosts[1],
        spread(ControlFlow::ManagedDirect, "0"),
    )
    .await?;
    succeeds(lab, "narrow-2").await?;
    lives_on(lab, &guest, 2, 2).await
}
