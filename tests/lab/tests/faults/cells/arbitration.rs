//! Nobody says Go, and the record decides who runs the guest.

use anyhow::{Context as _, ensure};
use godwit_crds::Decision;
use godwit_lab::{Lab, hosts, processes};
use rustix::process::Signal;

use super::point::{Deed, Point};
use super::scene::{Scene, is_gone};
use super::table::Cell;
use super::way::{MANAGED, PEERS, Way};
use crate::attempt::{End, when_any_journaled, when_journaled};
use crate::crashes::{Seal, Victim, agent};
use crate::guest::until;

/// The source is told that the destination has the guest, and would say Go next.
const READY: Point = Point::of(1, "source.event.Ready");
const SWITCHES_OVER: Point = Point::of(1, "source.before.SwitchOver");
const ASKS: Point = Point::of(1, "source.journaled.Arbitrating");
/// The destination is told that the source's guest does not run again by itself.
const TOLD: Point = Point::of(2, "destination.event.SourceStands");
/// The destination has the guest, and nobody knows yet.
const LOADED: Point = Point::of(2, "destination.event.Loaded");
const INTENDS: Point = Point::of(2, "destination.journaled.CommitIntent");
const COMMITTED: Point = Point::of(2, "destination.event.RecordRead");
const LETS_RUN: Point = Point::of(2, "destination.journaled.ContIssued");

/// How the source's agent goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Away {
    Stopped,
    Killed,
}

impl Away {
    fn goes(self, lab: &mut Lab, scene: &Scene) -> anyhow::Result<()> {
        match self {
            Self::Stopped => {
                let agent = agent(lab, 1)?;
                ensure!(processes::signal(&agent, Signal::STOP), "{agent:?} had gone");
                Ok(())
            }
            Self::Killed => Victim::SourceAgent.kill(lab, &scene.guest),
        }
    }

    fn returns(self, lab: &mut Lab) -> anyhow::Result<()> {
        READY.release(lab)?;
        match self {
            Self::Stopped => {
                let agent = agent(lab, 1)?;
                ensure!(processes::signal(&agent, Signal::CONT), "{agent:?} had gone");
                Ok(())
            }
            Self::Killed => Victim::SourceAgent.heal(lab),
        }
    }
}

/// The destination has the guest and knows that the source's stands still; the source is about to say Go.
async fn about_to_say_go(lab: &mut Lab, way: Way, more: &[(Point, Deed)]) -> anyhow::Result<Scene> {
    let scene = Scene::set(lab, way, Seal::Sealed, &[(READY, Deed::Wait), (TOLD, Deed::Pass)]).await?;
    for (point, deed) in more {
        point.arm(lab, *deed)?;
    }
    Ok(scene)
}

async fn source_agent_away(lab: &mut Lab, way: Way, away: Away) -> anyhow::Result<()> {
    let scene = about_to_say_go(lab, way, &[]).await?;
    away.goes(lab, &scene)?;
    scene.commits_itself(lab).await?;
    ensure!(!scene.journaled(lab, 1, "GoSent")?, "Go was said");
    away.returns(lab)?;
    let cell = Cell {
        phase: "loaded, before Go",
        fault: match away {
            Away::Stopped => "the source's agent stands still",
            Away::Killed => "the source's agent is killed",
        },
        flow: way.flow,
        expected: &[End::Moved],
    };
    scene.ends(lab, cell).await?;
    Ok(())
}

pub async fn cell_source_agent_stopped_before_go_managed(lab: &mut Lab) -> anyhow::Result<()> {
    source_agent_away(lab, MANAGED, Away::Stopped).await
}

pub async fn cell_source_agent_killed_before_go_managed(lab: &mut Lab) -> anyhow::Result<()> {
    source_agent_away(lab, MANAGED, Away::Killed).await
}

pub async fn cell_source_agent_stopped_before_go_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    source_agent_away(lab, PEERS, Away::Stopped).await
}

pub async fn cell_source_agent_killed_before_go_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    source_agent_away(lab, PEERS, Away::Killed).await
}

/// Dead before it could tell anybody that it has the guest: the source has the record say Aborted.
async fn destination_agent_away(lab: &mut Lab, way: Way) -> anyhow::Result<()> {
    let scene = Scene::set(lab, way, Seal::Sealed, &[(LOADED, Deed::Die)]).await?;
    is_gone(lab, LOADED).await?;
    scene.comes_back(lab).await?;
    lab.restart_agent(2)?;
    let cell = Cell {
        phase: "loaded, before Ready",
        fault: "the destination's agent is killed",
        flow: way.flow,
        expected: &[End::Stays],
    };
    scene.ends(lab, cell).await?;
    Ok(())
}

pub async fn cell_destination_agent_killed_loaded_managed(lab: &mut Lab) -> anyhow::Result<()> {
    destination_agent_away(lab, MANAGED).await
}

pub async fn cell_destination_agent_killed_loaded_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    destination_agent_away(lab, PEERS).await
}

/// Both agents are there, and who would carry Ready and Go is not: each asks the record, and one of them wins.
pub async fn cell_controller_killed_loaded(lab: &mut Lab) -> anyhow::Result<()> {
    let armed = [(LOADED, Deed::Wait), (TOLD, Deed::Pass)];
    let scene = Scene::set(lab, MANAGED, Seal::Sealed, &armed).await?;
    Victim::Controller.kill(lab, &scene.guest)?;
    LOADED.release(lab)?;
    let host = decided_host(lab, &scene).await?;
    scene.guest.ticks_at(host).await?;
    Victim::Controller.heal(lab)?;
    let cell = Cell {
        phase: "loaded, before Ready",
        fault: "the controller is killed",
        flow: MANAGED.flow,
        expected: &[End::Stays, End::Moved],
    };
    let end = scene.ends(lab, cell).await?;
    ensure!((end == End::Moved) == (host == "h2"), "{end:?} after {host}");
    Ok(())
}

/// Waits until the record is decided; where it then has the guest run.
async fn decided_host(lab: &Lab, scene: &Scene) -> anyhow::Result<&'static str> {
    until("the record is decided", async || {
        Ok(match scene.decision(lab).await? {
            Decision::None => None,
            Decision::Committed => Some("h2"),
            Decision::Aborted | Decision::Reverted => Some("h1"),
        })
    })
    .await
}

/// The destination's agent dies on its way from the doubt to the running guest; the next one goes on.
async fn killed_while_committing(lab: &mut Lab, way: Way, point: Point) -> anyhow::Result<()> {
    let scene = about_to_say_go(lab, way, &[(point, Deed::Die)]).await?;
    Away::Stopped.goes(lab, &scene)?;
    is_gone(lab, point).await?;
    ensure!(scene.guest.ticks("h2") == 0, "it runs already");
    let decision = scene.decision(lab).await?;
    let expected = if point == INTENDS {
        Decision::None
    } else {
        Decision::Committed
    };
    ensure!(decision == expected, "{decision:?}");
    lab.restart_agent(2)?;
    scene.commits_itself(lab).await?;
    Away::Stopped.returns(lab)?;
    let cell = Cell {
        phase: match point {
            INTENDS => "CommitIntent journaled",
            COMMITTED => "record committed",
            _ => "ContIssued journaled",
        },
        fault: "the destination's agent is killed, the source's stands still",
        flow: way.flow,
        expected: &[End::Moved],
    };
    scene.ends(lab, cell).await?;
    Ok(())
}

pub async fn cell_destination_agent_killed_commit_intended_managed(lab: &mut Lab) -> anyhow::Result<()> {
    killed_while_committing(lab, MANAGED, INTENDS).await
}

pub async fn cell_destination_agent_killed_committed_managed(lab: &mut Lab) -> anyhow::Result<()> {
    killed_while_committing(lab, MANAGED, COMMITTED).await
}

pub async fn cell_destination_agent_killed_cont_issued_managed(lab: &mut Lab) -> anyhow::Result<()> {
    killed_while_committing(lab, MANAGED, LETS_RUN).await
}

pub async fn cell_destination_agent_killed_commit_intended_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    killed_while_committing(lab, PEERS, INTENDS).await
}

pub async fn cell_destination_agent_killed_committed_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    killed_while_committing(lab, PEERS, COMMITTED).await
}

pub async fn cell_destination_agent_killed_cont_issued_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    killed_while_committing(lab, PEERS, LETS_RUN).await
}

/// The source's agent dies when it has promised never to say Go; the next one goes on asking.
async fn killed_while_asking(lab: &mut Lab, way: Way) -> anyhow::Result<()> {
    let armed = [(LOADED, Deed::Die), (ASKS, Deed::Die)];
    let scene = Scene::set(lab, way, Seal::Sealed, &armed).await?;
    is_gone(lab, LOADED).await?;
    is_gone(lab, ASKS).await?;
    let decision = scene.decision(lab).await?;
    ensure!(decision == Decision::None, "{decision:?}");
    lab.restart_agent(1)?;
    scene.comes_back(lab).await?;
    lab.restart_agent(2)?;
    let cell = Cell {
        phase: "Arbitrating journaled",
        fault: "the source's agent is killed, the destination's is dead",
        flow: way.flow,
        expected: &[End::Stays],
    };
    scene.ends(lab, cell).await?;
    Ok(())
}

pub async fn cell_source_agent_killed_asking_managed(lab: &mut Lab) -> anyhow::Result<()> {
    killed_while_asking(lab, MANAGED).await
}

pub async fn cell_source_agent_killed_asking_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    killed_while_asking(lab, PEERS).await
}

/// The same where the destination is there and asks too, and nobody drives.
pub async fn cell_source_agent_killed_asking_beside_the_destination(lab: &mut Lab) -> anyhow::Result<()> {
    let armed = [(LOADED, Deed::Wait), (TOLD, Deed::Pass)];
    let scene = Scene::set(lab, MANAGED, Seal::Sealed, &armed).await?;
    Victim::Controller.kill(lab, &scene.guest)?;
    ASKS.arm(lab, Deed::Die)?;
    is_gone(lab, ASKS).await?;
    LOADED.release(lab)?;
    scene.commits_itself(lab).await?;
    lab.restart_agent(1)?;
    Victim::Controller.heal(lab)?;
    let cell = Cell {
        phase: "Arbitrating journaled",
        fault: "the source's agent and the controller are killed",
        flow: MANAGED.flow,
        expected: &[End::Moved],
    };
    scene.ends(lab, cell).await?;
    Ok(())
}

/// Go is said and does not arrive, and the source's host does not reach the API server: the destination commits.
pub async fn cell_go_lost_and_the_source_cut_off(lab: &mut Lab) -> anyhow::Result<()> {
    let scene = about_to_say_go(lab, PEERS, &[]).await?;
    let network = lab.network.clone();
    network.part_from_api(1, true)?;
    network.part_agents(1, 2, true)?;
    let outcome = async {
        READY.release(lab)?;
        when_journaled(scene.attempt.journal(lab, 1)?, "GoSent", || {}).await?;
        scene.commits_itself(lab).await?;
        scene.guest.process(lab, 1).context("the source's copy is kept")?;
        anyhow::Ok(())
    }
    .await;
    network.part_agents(1, 2, false)?;
    network.part_from_api(1, false)?;
    outcome?;
    let cell = Cell {
        phase: "Go journaled",
        fault: "Go is lost, the source does not reach the API server",
        flow: PEERS.flow,
        expected: &[End::Moved],
    };
    scene.ends(lab, cell).await?;
    Ok(())
}

/// The destination's host reaches nobody: the source has the record say Aborted.
async fn destination_cut_off(lab: &mut Lab, way: Way) -> anyhow::Result<()> {
    let armed = [(LOADED, Deed::Wait), (TOLD, Deed::Pass)];
    let scene = Scene::set(lab, way, Seal::Sealed, &armed).await?;
    let network = lab.network.clone();
    network.swallow(2, true)?;
    let outcome = async {
        LOADED.release(lab)?;
        scene.comes_back(lab).await?;
        // It has asked as well, and gets no answer.
        when_journaled(scene.attempt.journal(lab, 2)?, "CommitIntent", || {}).await?;
        ensure!(scene.guest.ticks("h2") == 0, "it runs at the destination");
        anyhow::Ok(())
    }
    .await;
    network.swallow(2, false)?;
    outcome?;
    let cell = Cell {
        phase: "loaded, before Ready",
        fault: "the destination's host reaches nobody",
        flow: way.flow,
        expected: &[End::Stays],
    };
    scene.ends(lab, cell).await?;
    Ok(())
}

pub async fn cell_destination_cut_off_loaded_managed(lab: &mut Lab) -> anyhow::Result<()> {
    destination_cut_off(lab, MANAGED).await
}

pub async fn cell_destination_cut_off_loaded_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    destination_cut_off(lab, PEERS).await
}

/// Go is said and does not arrive, and neither reaches the API server: the guest stands still until one does.
pub async fn cell_go_lost_and_both_cut_off(lab: &mut Lab) -> anyhow::Result<()> {
    let scene = about_to_say_go(lab, PEERS, &[]).await?;
    let network = lab.network.clone();
    network.part_from_api(1, true)?;
    network.part_from_api(2, true)?;
    network.part_agents(1, 2, true)?;
    let outcome = async {
        READY.release(lab)?;
        when_journaled(scene.attempt.journal(lab, 1)?, "GoSent", || {}).await?;
        when_journaled(scene.attempt.journal(lab, 2)?, "CommitIntent", || {}).await?;
        scene.attempt.needs_decision(lab, "PeerUnreachable").await?;
        ensure!(
            scene.decision(lab).await? == Decision::None
                && !scene.journaled(lab, 2, "ContIssued")?
                && !scene.journaled(lab, 1, "AbortIntent")?
                && scene.guest.ticks("h2") == 0,
            "somebody has decided"
        );
        anyhow::Ok(())
    }
    .await;
    network.part_agents(1, 2, false)?;
    network.part_from_api(2, false)?;
    network.part_from_api(1, false)?;
    outcome?;
    let cell = Cell {
        phase: "Go journaled",
        fault: "Go is lost, nobody reaches the API server",
        flow: PEERS.flow,
        expected: &[End::Moved],
    };
    scene.ends(lab, cell).await?;
    Ok(())
}

/// The stream fails at the switchover of a guest that was not sealed: its hypervisor lets it run again by itself, and the
/// source never says Go. Nobody waits for anything: the destination was not told that the source stands still, and its
/// agent tells nothing.
async fn unsealed_late_failure(lab: &mut Lab, way: Way) -> anyhow::Result<()> {
    let armed = [(SWITCHES_OVER, Deed::Wait)];
    let scene = Scene::set(lab, way, Seal::Unsealed, &armed).await?;
    let destination = (agent(lab, 2)?, scene.guest.process(lab, 2)?);
    let outcome = async {
        for stopped in [&destination.0, &destination.1] {
            ensure!(processes::signal(stopped, Signal::STOP), "{stopped:?} had gone");
        }
        let before = unread(lab)?;
        SWITCHES_OVER.release(lab)?;
        // The source waits at its end of the stream for what the destination's hypervisor says of the last of it.
        until("the switchover is under way", async || {
            Ok((unread(lab)? > before).then_some(()))
        })
        .await?;
        Victim::DestinationHypervisor.kill(lab, &scene.guest)?;
        scene.guest.ticks_at("h1").await?;
        // Its hypervisor is faster than its agent.
        let promises = ["AbortIntent", "Arbitrating"];
        when_any_journaled(scene.attempt.journal(lab, 1)?, &promises, || {}).await?;
        ensure!(
            !scene.journaled(lab, 1, "GoSent")? && scene.guest.ticks("h2") == 0,
            "Go was said"
        );
        anyhow::Ok(())
    }
    .await;
    processes::signal(&destination.0, Signal::CONT);
    outcome?;
    let cell = Cell {
        phase: "switchover, unsealed",
        fault: "the stream fails, the destination's agent stands still",
        flow: way.flow,
        expected: &[End::Stays],
    };
    scene.ends(lab, cell).await?;
    Ok(())
}

/// How many bytes of guest memory lie unread at host 2.
fn unread(lab: &Lab) -> anyhow::Result<u64> {
    let host = lab.hosts.get(1).context("no second host")?;
    let output = host
        .command(std::path::Path::new("ss"))
        .args(["-Htn", "state", "established"])
        .output()?;
    let (first, last) = hosts::MIGRATION_PORTS;
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    let unread = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let port: u16 = fields.get(2)?.rsplit_once(':')?.1.parse().ok()?;
        let unread: u64 = fields.first()?.parse().ok()?;
        (first..=last).contains(&port).then_some(unread)
    });
    Ok(unread.sum())
}

pub async fn cell_unsealed_stream_failed_at_the_switchover_managed(lab: &mut Lab) -> anyhow::Result<()> {
    unsealed_late_failure(lab, MANAGED).await
}

pub async fn cell_unsealed_stream_failed_at_the_switchover_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    unsealed_late_failure(lab, PEERS).await
}

/// The destination's hypervisor dies while the source's waits at the gate: nothing of the switchover was sent, and the
/// source goes on by itself, whoever is away.
async fn failed_at_the_gate(lab: &mut Lab, way: Way) -> anyhow::Result<()> {
    let armed = [(SWITCHES_OVER, Deed::Wait)];
    let scene = Scene::set(lab, way, Seal::Unsealed, &armed).await?;
    let destination = agent(lab, 2)?;
    ensure!(processes::signal(&destination, Signal::STOP), "it had gone");
    let outcome = async {
        Victim::DestinationHypervisor.kill(lab, &scene.guest)?;
        SWITCHES_OVER.release(lab)?;
        scene.guest.ticks_at("h1").await?;
        ensure!(!scene.journaled(lab, 1, "GoSent")?, "Go was said");
        anyhow::Ok(())
    }
    .await;
    processes::signal(&destination, Signal::CONT);
    outcome?;
    let cell = Cell {
        phase: "gate, unsealed",
        fault: "the stream fails, the destination's agent stands still",
        flow: way.flow,
        expected: &[End::Stays],
    };
    scene.ends(lab, cell).await?;
    Ok(())
}

pub async fn cell_unsealed_stream_failed_at_the_gate_managed(lab: &mut Lab) -> anyhow::Result<()> {
    failed_at_the_gate(lab, MANAGED).await
}

pub async fn cell_unsealed_stream_failed_at_the_gate_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    failed_at_the_gate(lab, PEERS).await
}
