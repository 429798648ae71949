//! Agents and the controller killed before memory travels, in Begin and in Prepare, and started again.

use anyhow::{Context as _, bail, ensure};
use godwit_crds::migration::ControlFlow;
use godwit_lab::{Lab, processes};
use rustix::process::Signal;

use crate::attempt::{Attempt, End, journaled, when_journaled};
use crate::crashes::{MOST_MISSED, Victim, agent};
use crate::guest::Guest;

/// How far the migration has come: told by the journal of the host whose step it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The source has taken it on.
    Begin,
    /// The destination has too, and starts a process.
    Prepare,
}

/// Tries until it is killed in that phase: the moment may be missed.
pub async fn killed(lab: &mut Lab, flow: ControlFlow, phase: Phase, victim: Victim) -> anyhow::Result<()> {
    for _ in 0..MOST_MISSED {
        if killed_once(lab, flow, phase, victim).await? {
            return Ok(());
        }
    }
    bail!("{phase:?} was missed {MOST_MISSED} times")
}

async fn killed_once(lab: &mut Lab, flow: ControlFlow, phase: Phase, victim: Victim) -> anyhow::Result<bool> {
    let guest = Guest::start(lab).await?;
    let process = victim.find(lab, &guest)?;
    let attempt = Attempt::order_driven(lab, flow, &guest.name, "h2").await?;
    let (here, entry) = match phase {
        Phase::Begin => (1, "Begun"),
        Phase::Prepare => (2, "Prepared"),
    };
    let killed = when_journaled(attempt.journal(lab, here)?, entry, move || {
        processes::signal(&process, Signal::KILL)
    })
    .await?;
    let early = killed && !journaled(&attempt.journal(lab, 1)?, "Intent");
    let prepared = journaled(&attempt.journal(lab, 2)?, "Prepared");
    victim.heal(lab)?;
    let allowed: &[End] = match (early, victim) {
        (true, Victim::SourceHypervisor) => &[End::Lost],
        // What a destination's agent had begun to start when it was killed, it gives up; everything else goes on.
        (true, Victim::DestinationAgent) if prepared => &[End::Moved, End::Stays],
        (true, Victim::SourceAgent | Victim::DestinationAgent | Victim::Controller) => &[End::Moved],
        (true, Victim::DestinationHypervisor) => &[End::Stays],
        (false, _) => &[End::Moved, End::Stays, End::Lost],
    };
    let ended = attempt
        .settles(lab, guest, allowed)
        .await
        .with_context(|| format!("{victim:?} killed in {phase:?}"))?;
    println!(
        "  {victim:?}: {:?}, {}: {}{}",
        ended.end,
        ended.reason,
        ended.message,
        if early { "" } else { " (too late)" }
    );
    lab.wait_until_ready().await?;
    Ok(early)
}

pub async fn anybody_killed_in_begin(lab: &mut Lab) -> anyhow::Result<()> {
    for victim in [Victim::SourceAgent, Victim::DestinationAgent, Victim::Controller] {
        killed(lab, ControlFlow::ManagedDirect, Phase::Begin, victim).await?;
    }
    Ok(())
}

pub async fn anybody_killed_in_prepare(lab: &mut Lab) -> anyhow::Result<()> {
    for victim in [Victim::SourceAgent, Victim::DestinationAgent, Victim::Controller] {
        killed(lab, ControlFlow::ManagedDirect, Phase::Prepare, victim).await?;
    }
    Ok(())
}

/// The source dies while the order to prepare is on its way: the destination obeys it afterwards, and is told at once
/// that nothing comes. It need not find out by a silence.
pub async fn a_destination_that_prepares_late_is_called_off(lab: &mut Lab) -> anyhow::Result<()> {
    for flow in [ControlFlow::PeerToPeer, ControlFlow::ManagedDirect] {
        let mut tries = 0;
        while !prepares_late(lab, flow)
            .await
            .with_context(|| format!("{flow:?}"))?
        {
            tries += 1;
            ensure!(tries < MOST_MISSED, "{flow:?}: missed {tries} times");
        }
    }
    Ok(())
}

/// False: the moment was missed.
async fn prepares_late(lab: &mut Lab, flow: ControlFlow) -> anyhow::Result<bool> {
    let guest = Guest::start(lab).await?;
    let process = guest.process(lab, 1)?;
    let destination = agent(lab, 2)?;
    let attempt = Attempt::order_driven(lab, flow, &guest.name, "h2").await?;
    let stopped = destination.clone();
    let died = async {
        when_journaled(attempt.journal(lab, 1)?, "Begun", move || {
            processes::signal(&stopped, Signal::STOP);
            processes::signal(&process, Signal::KILL)
        })
        .await?;
        // The source's side ends here, and whoever drives hears of it.
        when_journaled(attempt.journal(lab, 1)?, "Lost", || {}).await
    }
    .await;
    let there = attempt.journal(lab, 2)?;
    let late = !there.exists();
    processes::signal(&destination, Signal::CONT);
    died?;
    attempt.settles(lab, guest, &[End::Lost]).await?;
    // The order may not have been given yet when the source died.
    let late = late && there.exists();
    ensure!(
        !late || journaled(&there, "SourceDied"),
        "the destination was not told: {:?}",
        String::from_utf8_lossy(&std::fs::read(&there)?)
    );
    Ok(late)
}
