//! Peer to peer: everybody who takes part is killed in each phase, the controller too. The guest ends where the table
//! says, and the status tells the whole of it, also where the controller saw none of it.

use anyhow::{Context as _, ensure};
use godwit_crds::Decision;
use godwit_crds::migration::ControlFlow;
use godwit_lab::{Lab, processes};
use rustix::process::Signal;

use crate::attempt::{Attempt, End, condition, journaled, record, when_journaled};
use crate::crashes::{
    Held, Seal, Victim, after_cont, agent, before_go, comes_back_afterwards, in_pre_copy,
    only_copy_killed_after_cont,
};
use crate::early::{Phase, killed};
use crate::guest::{Guest, until};

const FLOW: ControlFlow = ControlFlow::PeerToPeer;

/// Everybody, and how the migration ends where each is killed after the guest was loaded and before it was let run.
const LOADED: [(Victim, End); 5] = [
    (Victim::SourceHypervisor, End::Moved),
    (Victim::DestinationHypervisor, End::Stays),
    (Victim::SourceAgent, End::Moved),
    (Victim::DestinationAgent, End::Moved),
    (Victim::Controller, End::Moved),
];

pub async fn peer_to_peer_anybody_killed_in_begin(lab: &mut Lab) -> anyhow::Result<()> {
    // There is no process at the destination yet.
    for victim in [
        Victim::SourceHypervisor,
        Victim::SourceAgent,
        Victim::DestinationAgent,
        Victim::Controller,
    ] {
        killed(lab, FLOW, Phase::Begin, victim).await?;
    }
    Ok(())
}

pub async fn peer_to_peer_anybody_killed_in_prepare(lab: &mut Lab) -> anyhow::Result<()> {
    for victim in [
        Victim::SourceHypervisor,
        Victim::SourceAgent,
        Victim::DestinationAgent,
        Victim::Controller,
    ] {
        killed(lab, FLOW, Phase::Prepare, victim).await?;
    }
    destination_hypervisor_killed_in_prepare(lab).await
}

/// Its process stands ready, and nobody connects: the driver stands still.
async fn destination_hypervisor_killed_in_prepare(lab: &mut Lab) -> anyhow::Result<()> {
    let guest = Guest::start(lab).await?;
    let driver = agent(lab, 1)?;
    let attempt = Attempt::order_driven(lab, FLOW, &guest.name, "h2").await?;
    let stop = driver.clone();
    when_journaled(attempt.journal(lab, 2)?, "Prepared", move || {
        processes::signal(&stop, Signal::STOP)
    })
    .await?;
    let outcome = async {
        let process = until("the destination's process", async || {
            Ok(guest.process(lab, 2).ok())
        })
        .await?;
        ensure!(processes::signal(&process, Signal::KILL), "{process:?} had gone");
        let journal = attempt.journal(lab, 1)?;
        ensure!(!journaled(&journal, "Intent"), "memory travelled already");
        anyhow::Ok(())
    }
    .await;
    processes::signal(&driver, Signal::CONT);
    outcome?;
    attempt.settles(lab, guest, &[End::Stays]).await?;
    Ok(())
}

pub async fn peer_to_peer_a_hypervisor_killed_in_pre_copy(lab: &mut Lab) -> anyhow::Result<()> {
    for (victim, end) in [
        (Victim::SourceHypervisor, End::Lost),
        (Victim::DestinationHypervisor, End::Stays),
    ] {
        let ended = in_pre_copy(lab, FLOW, victim, &[end]).await;
        ended.with_context(|| format!("{victim:?}"))?;
    }
    Ok(())
}

/// All three together are among the moves that go well; here it is each alone.
pub async fn peer_to_peer_an_agent_or_the_controller_killed_in_pre_copy(lab: &mut Lab) -> anyhow::Result<()> {
    for (victim, end) in [
        (Victim::SourceAgent, End::Moved),
        (Victim::DestinationAgent, End::Moved),
        (Victim::Controller, End::Moved),
    ] {
        let ended = in_pre_copy(lab, FLOW, victim, &[end]).await;
        ended.with_context(|| format!("{victim:?}"))?;
    }
    Ok(())
}

pub async fn peer_to_peer_anybody_killed_before_go_sealed(lab: &mut Lab) -> anyhow::Result<()> {
    for (victim, end) in LOADED {
        let ended = before_go(lab, FLOW, Seal::Sealed, victim, &[end]).await;
        ended.with_context(|| format!("{victim:?}"))?;
    }
    Ok(())
}

/// The guest is idle: it is moved unsealed, or nearly always.
pub async fn peer_to_peer_anybody_killed_before_go(lab: &mut Lab) -> anyhow::Result<()> {
    for (victim, end) in LOADED {
        let ended = before_go(lab, FLOW, Seal::Unsealed, victim, &[end]).await;
        ended.with_context(|| format!("{victim:?}"))?;
    }
    Ok(())
}

/// Go was said and does not arrive: what the destination's agent tells gets through, and what it is told does not.
pub async fn go_does_not_arrive(lab: &mut Lab, seal: Seal) -> anyhow::Result<Held> {
    let held = Held::before_go(lab, FLOW, seal).await?;
    let said = async {
        lab.network.part_agents(1, 2, true)?;
        held.release();
        when_journaled(held.attempt.journal(lab, 1)?, "GoSent", || {}).await
    }
    .await;
    if said.is_err() {
        held.release();
        lab.network.part_agents(1, 2, false)?;
    }
    said.map(|()| held)
}

async fn after_go(lab: &mut Lab, victim: Victim, end: End) -> anyhow::Result<()> {
    let held = go_does_not_arrive(lab, Seal::Unsealed).await?;
    let outcome = async {
        victim.kill(lab, &held.guest)?;
        let journal = held.attempt.journal(lab, 2)?;
        ensure!(
            !journaled(&journal, "ContIssued"),
            "the guest was let run already"
        );
        match victim {
            // A Go that arrived before its agent knew would be given to a dead process.
            Victim::DestinationHypervisor => when_journaled(journal, "RevertIntent", || {}).await,
            Victim::Controller => Ok(()),
            Victim::SourceHypervisor | Victim::SourceAgent | Victim::DestinationAgent => victim.heal(lab),
        }
    }
    .await;
    lab.network.part_agents(1, 2, false)?;
    outcome?;
    let Held { guest, attempt, .. } = held;
    if victim == Victim::Controller {
        comes_back_afterwards(lab, &attempt).await?;
        attempt.is_complete(lab).await?;
    }
    let ended = attempt.settles(lab, guest, &[end]).await?;
    let obeyed = journaled(&attempt.journal(lab, 2)?, "ContIssued");
    ensure!(
        obeyed == (ended.end == End::Moved),
        "{ended:?}, and that it was let run is journaled: {obeyed}"
    );
    Ok(())
}

pub async fn peer_to_peer_anybody_killed_after_go(lab: &mut Lab) -> anyhow::Result<()> {
    if !lab.network.separate() {
        println!("  skipped: links cannot be cut");
        return Ok(());
    }
    for (victim, end) in LOADED {
        let ended = after_go(lab, victim, end).await;
        ended.with_context(|| format!("{victim:?}"))?;
    }
    Ok(())
}

pub async fn peer_to_peer_anybody_killed_after_cont(lab: &mut Lab) -> anyhow::Result<()> {
    for victim in [
        Victim::SourceHypervisor,
        Victim::SourceAgent,
        Victim::DestinationAgent,
        Victim::Controller,
    ] {
        let ended = after_cont(lab, FLOW, victim, &[End::Moved]).await;
        ended.with_context(|| format!("{victim:?}"))?;
    }
    only_copy_killed_after_cont(lab, FLOW).await
}

/// The guest is loaded, and the destination's agent does not come back: the source has the record decide, and the guest
/// runs there again. The status tells who is not heard; when he is back, nothing is left of the copy.
pub async fn peer_to_peer_a_destination_that_stays_away_keeps_no_guest(lab: &mut Lab) -> anyhow::Result<()> {
    let held = Held::before_go(lab, FLOW, Seal::Unsealed).await?;
    let outcome = async {
        Victim::DestinationAgent.kill(lab, &held.guest)?;
        held.guest.ticks_at("h1").await?;
        let decision = record(lab, &held.guest.uid).await?.spec.decision;
        ensure!(decision == Decision::Aborted, "{decision:?}");
        let journal = held.attempt.journal(lab, 1)?;
        ensure!(
            journaled(&journal, "Arbitrating") && !journaled(&journal, "GoSent"),
            "the source has not promised that it never says Go"
        );
        until(
            "the status tells for whom it waits, and that the guest does not",
            async || {
                let words = held.attempt.needs_decision(lab, "PeerUnreachable").await?;
                Ok((words.contains("h2") && !words.contains("stands still")).then_some(()))
            },
        )
        .await
    }
    .await;
    Victim::DestinationAgent.heal(lab)?;
    outcome?;
    let Held { guest, attempt, .. } = held;
    attempt.ended(lab).await?;
    let status = attempt.status(lab).await?;
    let told = condition(&status, "NeedsDecision").context("a condition")?;
    ensure!(told.reason == "NotNeeded", "{told:?}");
    attempt.settles(lab, guest, &[End::Stays]).await?;
    Ok(())
}
