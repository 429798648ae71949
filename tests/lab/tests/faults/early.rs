//! Agents and the controller killed before memory travels, in Begin and in Prepare, and started again.

use anyhow::{Context as _, bail};
use godwit_crds::migration::ControlFlow;
use godwit_lab::{Lab, processes};
use rustix::process::Signal;

use crate::attempt::{Attempt, End, journaled, when_journaled};
use crate::crashes::{MOST_MISSED, Victim};
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
