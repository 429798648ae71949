//! The network between two relays breaks, in each phase and in each way: cut in a manner that both ends notice, or a
//! hole in which everything vanishes. Short ones are survived, long ones end the migration; a cut is never an end.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use godwit_crds::migration::ControlFlow;
use godwit_lab::Lab;
use godwit_lab::hosts::AGENT_PORT;
use godwit_lab::network::Network;
use godwit_lab::processes::Seen;

use crate::attempt::{End, journaled};
use crate::guest::{until, until_within};
use crate::kills::outcomes;
use crate::moments::{Moment, Traveller, Trip, Way, agent, agent_port, at, holds, relay, sockets, streams};

/// How long a stream may hang before it counts as broken, and what follows from that.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(150);

/// What vanishes without anybody being told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hole {
    /// What the destination answers to the source from its agent port: the tunnel, and the source's agent if it
    /// drives.
    Answers,
    /// All that the source sends and is sent.
    Source,
    /// All that the destination sends and is sent.
    Destination,
}

impl Hole {
    fn set(self, network: &Network, [from, to]: [usize; 2], open: bool) -> anyhow::Result<()> {
        match self {
            Self::Answers => mute(network, to, from, open),
            Self::Source => network.swallow(from, open),
            Self::Destination => network.swallow(to, open),
        }
    }
}

/// Has what a host's agent and its relays answer to another host vanish, or sends it again.
fn mute(network: &Network, host: usize, to: usize, muted: bool) -> anyhow::Result<()> {
    let namespace = network
        .namespace(host)
        .context("the host has no network of its own")?;
    let deed = if muted { "add" } else { "del" };
    let status = Command::new("ip")
        .arg("-n")
        .arg(namespace.file_name().context("the namespace has no name")?)
        .args(["rule", deed, "to", &network.host(to).to_string()])
        .args(["ipproto", "tcp", "sport", &AGENT_PORT.to_string(), "blackhole"])
        .status()?;
    ensure!(status.success(), "ip rule {deed}: {status}");
    Ok(())
}

pub fn skips(lab: &Lab) -> bool {
    let skips = !lab.network.separate();
    if skips {
        println!("  skipped: links cannot be cut");
    }
    skips
}

/// Breaks connections as a firewall does that has forgotten them: with a reset to both ends.
fn reset(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().context("run ss: is iproute2 installed?")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    // A line for each that it has broken, below the heading.
    let broken = String::from_utf8_lossy(&output.stdout).lines().count();
    ensure!(broken > 1, "no connection was broken: {said}");
    Ok(())
}

/// The command that does it to all connections from one host to another's agent port, or to the one from this port.
pub fn breaker(lab: &Lab, from: usize, to: usize, port: Option<u16>) -> Command {
    let mut command = lab.hosts[from - 1].command(Path::new("ss"));
    let peer = format!("{}:{AGENT_PORT}", lab.hosts[to - 1].address);
    command.args(["-K", "-t", "-n", "state", "established", "dst", &peer]);
    if let Some(port) = port {
        command.args(["sport", "=", &format!(":{port}")]);
    }
    command
}

/// The port from which a relay of one host reaches another.
pub fn port_of(lab: &Lab, relay: &Seen, to: usize) -> anyhow::Result<u16> {
    let remote = agent_port(&lab.hosts[to - 1])?;
    let mut all = sockets(relay.pid)?.into_iter();
    let own = all.find(|socket| socket.remote == remote && socket.established && holds(relay, socket));
    Ok(own.context("the relay has no connection")?.local_port)
}

async fn resets(lab: &mut Lab, flow: ControlFlow, name: &str, moments: &[Moment]) -> anyhow::Result<()> {
    if skips(lab) {
        return Ok(());
    }
    let mut traveller = Traveller::start(lab, name).await?;
    let mut moments = moments.iter().copied().peekable();
    while let Some(moment) = moments.peek().copied() {
        let trip = traveller.leaves(lab, Way::tunnelled(flow)).await?;
        let find = |lab: &mut Lab| {
            relay(lab, trip.from)?;
            Ok(breaker(lab, trip.from, trip.to, None))
        };
        // Late in a migration the relays' connection may be over, and there is none to be broken but the driver's.
        let must = moment == Moment::PreCopy;
        let deed = move |mut command: Command| match reset(&mut command) {
            Err(error) if must => Err(error),
            Ok(()) | Err(_) => Ok(()),
        };
        if !at(lab, &trip, moment, find, deed).await? {
            traveller.was_early(lab, &trip).await?;
            continue;
        }
        moments.next();
        trip.goes_on(lab).await?;
        let ended = traveller
            .settles(lab, &trip, outcomes(moment), ("reset", moment))
            .await?;
        if ended.end == End::Stays {
            ensure!(ended.reason == "StreamFailed", "{ended:?}");
        }
    }
    traveller.is_whole(lab)
}

pub async fn connections_are_reset(lab: &mut Lab) -> anyhow::Result<()> {
    let moments = [Moment::PreCopy, Moment::Switchover, Moment::Go];
    resets(lab, ControlFlow::PeerToPeer, "scattered", &moments).await
}

pub async fn connections_are_reset_in_each_phase_in_both_flows(lab: &mut Lab) -> anyhow::Result<()> {
    let moments = [
        Moment::PreCopy,
        Moment::Switchover,
        Moment::Loaded,
        Moment::Unheard,
        Moment::Go,
        Moment::Cont,
    ];
    resets(lab, ControlFlow::ManagedDirect, "spilt", &moments).await?;
    resets(lab, ControlFlow::PeerToPeer, "strewn", &moments).await
}

/// Waits until something was sent to a host's agent port in vain so often, from the network of this process.
async fn in_vain(lab: &Lab, to: usize, process: &Seen, often: u64) -> anyhow::Result<()> {
    let remote = agent_port(&lab.hosts[to - 1])?;
    until("nothing gets through", async || {
        let mut sockets = sockets(process.pid)?.into_iter();
        let vain = sockets.any(|socket| socket.remote == remote && socket.tries >= often);
        Ok(vain.then_some(()))
    })
    .await
}

/// Opens a hole at a moment, waits until it is noticed, and closes it. False: it was too late for it.
async fn noticed(lab: &mut Lab, trip: &Trip, moment: Moment, hole: Hole) -> anyhow::Result<bool> {
    let network = lab.network.clone();
    let find = move |_: &mut Lab| Ok(network.clone());
    let (driver, source) = (trip.driver(lab)?, agent(lab, trip.from)?);
    let hosts = [trip.from, trip.to];
    let begun = at(lab, trip, moment, find, move |network| {
        hole.set(&network, hosts, true)
    })
    .await;
    let outcome = async {
        if !begun? {
            return Ok(false);
        }
        match moment {
            // The relay speaks and is not heard. While it connects, it says it again after a second, and then rarely.
            Moment::Prepare => in_vain(lab, trip.to, &source, 1).await?,
            Moment::PreCopy => in_vain(lab, trip.to, &source, 3).await?,
            // Or all had got through before.
            Moment::Switchover => {
                let vain = in_vain(lab, trip.to, &source, 3);
                tokio::select! {
                    vain = vain => vain?,
                    over = until("the stream is over", async || Ok((streams(lab, trip.to)? == 0).then_some(()))) => over?,
                }
            }
            Moment::Loaded | Moment::Unheard | Moment::Go => in_vain(lab, trip.to, &driver, 3).await?,
            // All that there is to say may have been said.
            Moment::Cont => {}
        }
        Ok(true)
    }
    .await;
    if !matches!(outcome, Ok(false)) {
        hole.set(&lab.network, hosts, false)?;
    }
    outcome
}

async fn survived(lab: &mut Lab, name: &str, holes: &[(ControlFlow, Moment, Hole)]) -> anyhow::Result<()> {
    if skips(lab) {
        return Ok(());
    }
    let mut traveller = Traveller::start(lab, name).await?;
    let mut holes = holes.iter().copied().peekable();
    while let Some((flow, moment, hole)) = holes.peek().copied() {
        let trip = traveller.leaves(lab, Way::tunnelled(flow)).await?;
        let what = || format!("{flow:?} {moment:?} {hole:?}");
        if !noticed(lab, &trip, moment, hole).await.with_context(what)? {
            traveller.was_early(lab, &trip).await?;
            continue;
        }
        holes.next();
        let [source, destination] = trip.journals(lab)?;
        if moment <= Moment::PreCopy {
            ensure!(!journaled(&source, "Sealed"), "{}: the guest was stopped", what());
        }
        if moment == Moment::Unheard {
            ensure!(
                !journaled(&source, "AbortIntent"),
                "{}: given up after Go",
                what()
            );
        }
        trip.goes_on(lab).await?;
        // The guest is stopped only with a fresh proof that both agents are reached. One that is ready for that sooner
        // after the hole than the proof is renewed stays; while memory travels it is held back from that.
        let allowed: &[End] = match moment {
            Moment::Switchover => &[End::Stays, End::Moved],
            Moment::Prepare
            | Moment::PreCopy
            | Moment::Loaded
            | Moment::Unheard
            | Moment::Go
            | Moment::Cont => &[End::Moved],
        };
        let ended = traveller.settles(lab, &trip, allowed, (moment, hole)).await?;
        let obeyed = journaled(&destination, "ContIssued");
        ensure!(obeyed == (ended.end == End::Moved), "{}: {ended:?}", what());
        lab.wait_until_ready().await?;
    }
    traveller.is_whole(lab)
}

pub async fn a_hole_that_closes_again_ends_nothing(lab: &mut Lab) -> anyhow::Result<()> {
    let holes = [
        (ControlFlow::PeerToPeer, Moment::PreCopy, Hole::Destination),
        (ControlFlow::ManagedDirect, Moment::Switchover, Hole::Answers),
        // Go is said into it: the guest stands still until it has closed.
        (ControlFlow::PeerToPeer, Moment::Unheard, Hole::Source),
    ];
    survived(lab, "patient", &holes).await
}

pub async fn more_holes_that_close_again(lab: &mut Lab) -> anyhow::Result<()> {
    let (managed, peers) = (ControlFlow::ManagedDirect, ControlFlow::PeerToPeer);
    let holes = [
        (managed, Moment::Prepare, Hole::Answers),
        (peers, Moment::Prepare, Hole::Answers),
        (managed, Moment::PreCopy, Hole::Answers),
        (managed, Moment::PreCopy, Hole::Source),
        (peers, Moment::Switchover, Hole::Answers),
        (peers, Moment::Switchover, Hole::Destination),
        (managed, Moment::Unheard, Hole::Destination),
        (peers, Moment::Unheard, Hole::Answers),
        (managed, Moment::Cont, Hole::Source),
        (peers, Moment::Cont, Hole::Destination),
    ];
    survived(lab, "calm", &holes).await
}

/// A hole that stays, until the migration was given up: the guest stays where it is, and goes on.
/// False: it was too late for it.
async fn given_up(lab: &mut Lab, trip: &Trip, moment: Moment, hole: Hole) -> anyhow::Result<bool> {
    let network = lab.network.clone();
    let find = move |_: &mut Lab| Ok(network.clone());
    let hosts = [trip.from, trip.to];
    let begun = at(lab, trip, moment, find, move |network| {
        hole.set(&network, hosts, true)
    })
    .await;
    let outcome = async {
        if !begun? {
            return Ok(None);
        }
        let [source, destination] = trip.journals(lab)?;
        let given_up = until_within(GIVEN_UP_WITHIN, "the source gives the migration up", async || {
            // Or all had got through before.
            let through = journaled(&source, "GoSent") || journaled(&destination, "ContIssued");
            Ok((journaled(&source, "AbortIntent") || through).then_some(!through))
        });
        given_up.await.map(Some)
    }
    .await;
    if !matches!(outcome, Ok(None)) {
        hole.set(&lab.network, hosts, false)?;
    }
    lab.wait_until_ready().await?;
    Ok(outcome? == Some(true))
}

pub async fn a_hole_that_stays_is_given_up(lab: &mut Lab) -> anyhow::Result<()> {
    if skips(lab) {
        return Ok(());
    }
    let (managed, peers) = (ControlFlow::ManagedDirect, ControlFlow::PeerToPeer);
    let mut traveller = Traveller::start(lab, "stayer").await?;
    let holes = [
        (managed, Moment::Prepare, Hole::Answers),
        (managed, Moment::PreCopy, Hole::Answers),
        (peers, Moment::PreCopy, Hole::Answers),
        (peers, Moment::PreCopy, Hole::Destination),
        (managed, Moment::Switchover, Hole::Answers),
    ];
    let mut holes = holes.into_iter().peekable();
    while let Some((flow, moment, hole)) = holes.peek().copied() {
        let trip = traveller.leaves(lab, Way::tunnelled(flow)).await?;
        let outcome = given_up(lab, &trip, moment, hole).await;
        if !outcome.with_context(|| format!("{flow:?} {moment:?} {hole:?}"))? {
            traveller.was_early(lab, &trip).await?;
            continue;
        }
        holes.next();
        traveller
            .settles(lab, &trip, &[End::Stays], (moment, hole))
            .await?;
    }
    traveller.is_whole(lab)
}
