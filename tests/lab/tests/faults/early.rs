//! Agents and the controller killed before memory travels, in Begin and in Prepare, and started again.

use anyhow::{Context as _, ensure};
use godwit_lab::{Lab, processes};
use rustix::process::Signal;

use crate::attempt::{Attempt, End, journaled, when_journaled};
use crate::crashes::{agent, controller};
use crate::guest::Guest;

/// How far the migration has come: told by the journal of the host whose step it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The source has taken it on.
    Begin,
    /// The destination has too, and starts a process.
    Prepare,
}

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Agent(usize),
    Controller,
}

async fn killed(lab: &mut Lab, phase: Phase, victim: Victim) -> anyhow::Result<()> {
    let guest = Guest::start(lab).await?;
    let process = match victim {
        Victim::Agent(host) => agent(lab, host)?,
        Victim::Controller => controller(lab)?,
    };
    let attempt = Attempt::order(lab, &guest.name, "h2").await?;
    let (here, entry) = match phase {
        Phase::Begin => (1, "Begun"),
        Phase::Prepare => (2, "Prepared"),
    };
    let killed = when_journaled(attempt.journal(lab, here)?, entry, move || {
        processes::signal(&process, Signal::KILL)
    })
    .await?;
    ensure!(killed, "it had gone");
    ensure!(
        !journaled(&attempt.journal(lab, 1)?, "Intent"),
        "the guest was stopped already"
    );
    let prepared = journaled(&attempt.journal(lab, 2)?, "Prepared");
    match victim {
        Victim::Agent(host) => lab.restart_agent(host)?,
        Victim::Controller => {
            lab.kill_controller();
            lab.start_controller()?;
        }
    }
    // What a destination's agent had begun to start when it was killed, it gives up; everything else goes on.
    let allowed: &[End] = if victim == Victim::Agent(2) && prepared {
        &[End::Moved, End::Stays]
    } else {
        &[End::Moved]
    };
    let ended = attempt
        .settles(lab, guest, allowed)
        .await
        .with_context(|| format!("{victim:?} killed in {phase:?}"))?;
    println!(
        "  {victim:?}: {:?}, {}: {}",
        ended.end, ended.reason, ended.message
    );
    lab.wait_until_ready().await
}

pub async fn anybody_killed_in_begin(lab: &mut Lab) -> anyhow::Result<()> {
    for victim in [Victim::Agent(1), Victim::Agent(2), Victim::Controller] {
        killed(lab, Phase::Begin, victim).await?;
    }
    Ok(())
}

pub async fn anybody_killed_in_prepare(lab: &mut Lab) -> anyhow::Result<()> {
    for victim in [Victim::Agent(1), Victim::Agent(2), Victim::Controller] {
        killed(lab, Phase::Prepare, victim).await?;
    }
    Ok(())
}
