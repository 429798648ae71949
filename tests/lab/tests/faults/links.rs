//! The network breaks while a guest moves, and heals: one copy runs, and nothing is left over.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use godwit_lab::hosts::{AGENT_PORT, MIGRATION_PORTS};
use godwit_lab::network::Network;
use godwit_lab::{Lab, processes};
use rustix::process::Signal;

use crate::attempt::{Attempt, End, journaled, when_any_journaled};
use crate::crashes::{MOST_MISSED, SLOW, SLOWER, go_is_said, loaded, missed, unsaid};
use crate::guest::{Guest, until, until_within};

/// How long a stream may hang before it counts as broken, and what follows from that.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(120);

/// What breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Break {
    /// A host's cable: both ends are told.
    Cable(usize),
    /// A host's packets vanish, and nobody is told.
    Host(usize),
    /// Guest memory that a host sends vanishes; orders and reports get through.
    Memory(usize),
}

impl Break {
    fn set(self, network: &Network, broken: bool) -> anyhow::Result<()> {
        match self {
            Self::Cable(host) => network.connect(host, !broken),
            Self::Host(host) => network.swallow(host, broken),
            Self::Memory(host) => network.swallow_memory(host, broken),
        }
    }
}

fn skips(lab: &Lab) -> bool {
    let skips = !lab.network.separate();
    if skips {
        println!("  skipped: links cannot be cut");
    }
    skips
}

/// Waits until something was sent in vain so often: to these ports of host 2, by the process whose table this is.
async fn in_vain(
    lab: &Lab,
    ports: std::ops::RangeInclusive<u16>,
    table: impl Fn(&Lab) -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    const OFTEN: u64 = 3;
    let IpAddr::V4(address) = lab.network.host(2) else {
        anyhow::bail!("the lab has no IPv6");
    };
    let address = format!("{:08X}", u32::from_ne_bytes(address.octets()));
    until("nothing gets through", async || {
        let table = table(lab)?;
        let often = table.lines().any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let number = |index: usize| u64::from_str_radix(fields.get(index).unwrap_or(&""), 16);
            let Some((at, port)) = fields.get(2).and_then(|remote| remote.rsplit_once(':')) else {
                return false;
            };
            let port = u16::from_str_radix(port, 16).is_ok_and(|port| ports.contains(&port));
            // Sent again without an answer, or not sent at all and asked for the way again.
            let times = number(6).unwrap_or(0) + number(8).unwrap_or(0);
            at == address && port && times >= OFTEN
        });
        Ok(often.then_some(()))
    })
    .await
}

/// Guest memory, by host 1's hypervisor.
async fn memory_in_vain(lab: &Lab) -> anyhow::Result<()> {
    let (first, last) = MIGRATION_PORTS;
    in_vain(lab, first..=last, |lab| {
        let host = lab.hosts.first().context("no host")?;
        let output = host.command(Path::new("cat")).arg("/proc/net/tcp").output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    })
    .await
}

/// Orders, by the controller.
async fn orders_in_vain(lab: &Lab) -> anyhow::Result<()> {
    in_vain(lab, AGENT_PORT..=AGENT_PORT, |_| {
        Ok(std::fs::read_to_string("/proc/net/tcp")?)
    })
    .await
}

/// For a moment while memory travels: it goes on.
async fn in_pre_copy(lab: &mut Lab, what: Break) -> anyhow::Result<()> {
    if skips(lab) {
        return Ok(());
    }
    let guest = Guest::start_busy(lab).await?;
    lab.network.shape(1, Some(SLOWER))?;
    let outcome = async {
        let attempt = Attempt::order(lab, &guest.name, "h2").await?;
        attempt.streams(lab).await?;
        what.set(&lab.network, true)?;
        let noticed = memory_in_vain(lab).await;
        let stopped = journaled(&attempt.journal(lab, 1)?, "Sealed");
        what.set(&lab.network, false)?;
        noticed?;
        ensure!(!stopped, "the guest was stopped for a link that was down");
        anyhow::Ok(attempt)
    }
    .await;
    lab.network.shape(1, None)?;
    outcome?.settles(lab, guest, &[End::Moved]).await?;
    Ok(())
}

pub async fn a_cable_is_pulled_while_memory_travels(lab: &mut Lab) -> anyhow::Result<()> {
    in_pre_copy(lab, Break::Cable(2)).await
}

pub async fn a_host_is_out_of_reach_while_memory_travels(lab: &mut Lab) -> anyhow::Result<()> {
    in_pre_copy(lab, Break::Host(1)).await?;
    in_pre_copy(lab, Break::Host(2)).await?;
    in_pre_copy(lab, Break::Memory(1)).await
}

/// From the moment on in which the guest was stopped: the last of its memory is on its way then.
pub async fn memory_does_not_arrive_at_the_switchover(lab: &mut Lab) -> anyhow::Result<()> {
    if skips(lab) {
        return Ok(());
    }
    for _ in 0..MOST_MISSED {
        let guest = Guest::start_busy(lab).await?;
        lab.network.shape(1, Some(SLOW))?;
        let outcome = async {
            let attempt = Attempt::order(lab, &guest.name, "h2").await?;
            let network = lab.network.clone();
            let vanishes = move || Break::Memory(1).set(&network, true);
            let (source, destination) = (attempt.journal(lab, 1)?, attempt.journal(lab, 2)?);
            let moments = ["Sealed", "GoSent", "AbortIntent"];
            when_any_journaled(source.clone(), &moments, vanishes).await??;
            let in_time = journaled(&source, "Sealed") && !journaled(&destination, "ContIssued");
            // Or all had got through before.
            let noticed = tokio::select! {
                biased;
                noticed = memory_in_vain(&*lab) => noticed.map(|()| in_time),
                loaded = loaded(&*lab) => loaded.map(|()| false),
            };
            let there = journaled(&destination, "ContIssued");
            Break::Memory(1).set(&lab.network, false)?;
            let noticed = noticed?;
            ensure!(
                !noticed || !there,
                "the guest was let run without the last of its memory"
            );
            anyhow::Ok((attempt, noticed))
        }
        .await;
        lab.network.shape(1, None)?;
        let (attempt, noticed) = outcome?;
        if noticed {
            let ended = attempt.settles(lab, guest, &[End::Stays, End::Moved]).await?;
            println!("  {:?}, {}: {}", ended.end, ended.reason, ended.message);
            return Ok(());
        }
        missed(lab, attempt, guest).await?;
    }
    bail!("all of the memory had arrived {MOST_MISSED} times")
}

/// The guest is loaded, and the destination cannot be told that it may run it: it stands still until the link heals.
pub async fn a_destination_is_out_of_reach_when_go_is_said(lab: &mut Lab) -> anyhow::Result<()> {
    if skips(lab) {
        return Ok(());
    }
    for _ in 0..MOST_MISSED {
        let (guest, attempt, controller) = unsaid(lab).await?;
        Break::Host(2).set(&lab.network, true)?;
        let outcome = async {
            processes::signal(&controller, Signal::CONT);
            if !go_is_said(&attempt.journal(lab, 1)?).await? {
                return Ok(false);
            }
            orders_in_vain(lab).await?;
            ensure!(
                !journaled(&attempt.journal(lab, 2)?, "ContIssued"),
                "Go has got through"
            );
            ensure!(
                !journaled(&attempt.journal(lab, 1)?, "AbortIntent"),
                "the source has given up after Go"
            );
            anyhow::Ok(true)
        }
        .await;
        processes::signal(&controller, Signal::CONT);
        Break::Host(2).set(&lab.network, false)?;
        if outcome? {
            attempt.settles(lab, guest, &[End::Moved]).await?;
            return Ok(());
        }
        missed(lab, attempt, guest).await?;
    }
    bail!("Go was not said {MOST_MISSED} times")
}

/// Longer than a stream may hang: the guest stays where it is, and goes on.
async fn given_up(lab: &mut Lab, what: Break) -> anyhow::Result<()> {
    if skips(lab) {
        return Ok(());
    }
    let guest = Guest::start_busy(lab).await?;
    lab.network.shape(1, Some(SLOWER))?;
    let mut broken = false;
    let outcome = async {
        let attempt = Attempt::order(lab, &guest.name, "h2").await?;
        attempt.streams(lab).await?;
        what.set(&lab.network, true)?;
        broken = true;
        let journal = attempt.journal(lab, 1)?;
        until_within(GIVEN_UP_WITHIN, "the source gives the migration up", async || {
            Ok(journaled(&journal, "AbortIntent").then_some(()))
        })
        .await?;
        guest.ticks_at("h1").await?;
        anyhow::Ok(attempt)
    }
    .await;
    if broken {
        what.set(&lab.network, false)?;
    }
    lab.network.shape(1, None)?;
    let attempt = outcome?;
    lab.wait_until_ready().await?;
    // What the destination has heard of it by then is little.
    attempt.ended_within(lab, GIVEN_UP_WITHIN).await?;
    let ended = attempt.settles(lab, guest, &[End::Stays]).await?;
    println!("  {}: {}", ended.reason, ended.message);
    Ok(())
}

pub async fn memory_that_does_not_arrive_any_more_is_given_up(lab: &mut Lab) -> anyhow::Result<()> {
    given_up(lab, Break::Memory(1)).await
}

pub async fn a_destination_that_stays_away_is_given_up(lab: &mut Lab) -> anyhow::Result<()> {
    given_up(lab, Break::Host(2)).await
}

/// Not every moment of a migration has a name.
pub async fn a_broken_link_at_any_moment(lab: &mut Lab) -> anyhow::Result<()> {
    const LASTS: Duration = Duration::from_secs(3);
    if skips(lab) {
        return Ok(());
    }
    for what in [Break::Host(1), Break::Host(2), Break::Cable(1), Break::Cable(2)] {
        for after in [60, 150, 250, 350, 450] {
            let guest = Guest::start(lab).await?;
            let attempt = Attempt::order(lab, &guest.name, "h2").await?;
            tokio::time::sleep(Duration::from_millis(after)).await;
            what.set(&lab.network, true)?;
            tokio::time::sleep(LASTS).await;
            what.set(&lab.network, false)?;
            let ended = attempt.ended_within(lab, GIVEN_UP_WITHIN).await;
            let ended = ended.with_context(|| format!("{what:?} after {after} ms"))?;
            println!("  {what:?} after {after} ms: {:?}, {}", ended.end, ended.reason);
            attempt
                .settles(lab, guest, &[End::Stays, End::Moved])
                .await
                .with_context(|| format!("{what:?} after {after} ms"))?;
        }
    }
    Ok(())
}
