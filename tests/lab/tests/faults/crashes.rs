//! Hypervisors and agents killed at either end, in each phase: the guest ends where the table says.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use godwit_crds::migration::ControlFlow;
use godwit_crds::virtual_machine::GuestState;
use godwit_lab::processes::{self, Seen};
use godwit_lab::{Lab, hosts};
use rustix::process::Signal;

use crate::attempt::{Attempt, End, Ended, journaled, when_any_journaled, when_journaled};
use crate::guest::{Guest, until, until_within};

const MANAGED: ControlFlow = ControlFlow::ManagedDirect;

/// Slow enough that the last of a busy guest's memory takes its time, in Mbit/s.
pub const SLOW: u32 = 160;

/// Slow enough that a busy guest's memory is on its way until the link is freed, in Mbit/s.
pub const SLOWER: u32 = 40;

/// How often a moment may be missed before that is no accident: whoever looks for it gets no time now and then, and a
/// guest that gets none hardly changes its memory.
pub const MOST_MISSED: usize = 10;

/// So slow that even an idle guest's memory travels for seconds, in Mbit/s.
const CRAWLING: u32 = 1;

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    SourceHypervisor,
    DestinationHypervisor,
    SourceAgent,
    DestinationAgent,
    Controller,
}

impl Victim {
    pub fn find(self, lab: &mut Lab, guest: &Guest) -> anyhow::Result<Seen> {
        match self {
            Self::SourceHypervisor => guest.process(lab, 1),
            Self::DestinationHypervisor => guest.process(lab, 2),
            Self::SourceAgent => agent(lab, 1),
            Self::DestinationAgent => agent(lab, 2),
            Self::Controller => controller(lab),
        }
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(self, lab: &mut Lab, guest: &Guest) -> anyhow::Result<()> {
        let seen = self.find(lab, guest)?;
        if self == Self::Controller {
            // Killed by its process only, it would be started again.
            lab.kill_controller();
            return Ok(());
        }
        ensure!(processes::signal(&seen, Signal::KILL), "{seen:?} had gone");
        let left = processes::kill(std::slice::from_ref(&seen));
        ensure!(left.is_empty(), "still there: {left:?}");
        Ok(())
    }

    /// Starts what was killed again, where that is anybody's to do.
    pub fn heal(self, lab: &mut Lab) -> anyhow::Result<()> {
        match self {
            Self::SourceHypervisor | Self::DestinationHypervisor => Ok(()),
            Self::SourceAgent => lab.restart_agent(1),
            Self::DestinationAgent => lab.restart_agent(2),
            Self::Controller => {
                lab.kill_controller();
                lab.start_controller()
            }
        }
    }
}

pub fn agent(lab: &mut Lab, host: usize) -> anyhow::Result<Seen> {
    let agent = lab.host(host)?.agent().context("no agent")?;
    let pid = i32::try_from(agent.pid())?;
    processes::look(pid).context("the agent had ended")
}

pub fn controller(lab: &mut Lab) -> anyhow::Result<Seen> {
    let pid = i32::try_from(lab.controller().context("no controller")?.pid())?;
    processes::look(pid).context("the controller had ended")
}

/// While memory travels.
pub async fn in_pre_copy(
    lab: &mut Lab,
    flow: ControlFlow,
    victim: Victim,
    allowed: &[End],
) -> anyhow::Result<Ended> {
    let guest = Guest::start_busy(lab).await?;
    lab.network.shape(1, Some(SLOWER))?;
    let outcome = async {
        let attempt = Attempt::order_driven(lab, flow, &guest.name, "h2").await?;
        attempt.streams(lab).await?;
        victim.kill(lab, &guest)?;
        let journal = attempt.journal(lab, 1)?;
        ensure!(!journaled(&journal, "Sealed"), "the guest was stopped already");
        victim.heal(lab)?;
        anyhow::Ok(attempt)
    }
    .await;
    if let (Ok(attempt), true) = (&outcome, allowed.contains(&End::Moved)) {
        lab.wait_until_ready().await?;
        attempt.is_heard_again(lab).await?;
        if flow == ControlFlow::PeerToPeer {
            driver_hears(lab).await?;
        }
    }
    lab.network.shape(1, None)?;
    outcome?.settles(lab, guest, allowed).await
}

/// Waits until the driver in the source's agent is connected to the destination's.
async fn driver_hears(lab: &mut Lab) -> anyhow::Result<()> {
    let source = lab.network.host(1);
    let host = lab.host(2)?;
    until("the driver hears the destination", async || {
        Ok(host.hears(source)?.then_some(()))
    })
    .await
}

/// How the source comes to its switchover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seal {
    /// The guest is stopped while the stream is active: it is busy, so there is always something left.
    Sealed,
    /// The hypervisor finds nothing left to wait for: the guest is idle.
    Unsealed,
}

/// A guest that is stopped at the source and loaded at the destination, and the source does not know the latter: who
/// would tell it stands still. In managed direct that is the controller, which passes it on, and peer to peer the
/// destination's agent.
pub struct Held {
    pub guest: Guest,
    pub attempt: Attempt,
    pub holder: Seen,
}

impl Held {
    /// Tries until one is held: a moment may be missed.
    pub async fn before_go(lab: &mut Lab, flow: ControlFlow, seal: Seal) -> anyhow::Result<Self> {
        for _ in 0..MOST_MISSED {
            let held = Self::ordered(lab, flow, seal).await?;
            let ready = held.is_before_go(lab, flow, seal).await;
            match ready {
                Ok(true) => return Ok(held),
                Ok(false) => {
                    held.release();
                    missed(lab, held.attempt, held.guest).await?;
                }
                Err(error) => {
                    held.release();
                    return Err(error);
                }
            }
        }
        bail!("a guest that is {seal:?} and loaded was missed {MOST_MISSED} times")
    }

    async fn ordered(lab: &mut Lab, flow: ControlFlow, seal: Seal) -> anyhow::Result<Self> {
        let guest = match seal {
            Seal::Sealed => Guest::start_busy(lab).await?,
            Seal::Unsealed => Guest::start(lab).await?,
        };
        let (holder, slow) = match (flow, seal) {
            (ControlFlow::ManagedDirect, Seal::Sealed) => (controller(lab)?, Some(SLOW)),
            (ControlFlow::ManagedDirect, Seal::Unsealed) => (controller(lab)?, None),
            (ControlFlow::PeerToPeer, Seal::Sealed) => (agent(lab, 2)?, Some(SLOW)),
            (ControlFlow::PeerToPeer, Seal::Unsealed) => (agent(lab, 2)?, Some(CRAWLING)),
        };
        if slow.is_some() {
            lab.network.shape(1, slow)?;
        }
        let ordered = Self::stopped(lab, flow, seal, &guest, &holder).await;
        if slow.is_some() {
            lab.network.shape(1, None)?;
        }
        let attempt = ordered.inspect_err(|_| {
            processes::signal(&holder, Signal::CONT);
        })?;
        Ok(Self {
            guest,
            attempt,
            holder,
        })
    }

    /// Orders the move, and stops who is to stand still.
    async fn stopped(
        lab: &mut Lab,
        flow: ControlFlow,
        seal: Seal,
        guest: &Guest,
        holder: &Seen,
    ) -> anyhow::Result<Attempt> {
        let attempt = Attempt::order_driven(lab, flow, &guest.name, "h2").await?;
        if flow == ControlFlow::PeerToPeer && seal == Seal::Unsealed {
            // The agent itself takes the connection in, and is not needed for what comes over it.
            takes_in(lab).await?;
            processes::signal(holder, Signal::STOP);
        } else {
            let entries: &[&str] = match seal {
                Seal::Sealed => &["Sealed", "GoSent", "AbortIntent"],
                Seal::Unsealed => &["Intent"],
            };
            let stop = holder.clone();
            when_any_journaled(attempt.journal(lab, 1)?, entries, move || {
                processes::signal(&stop, Signal::STOP)
            })
            .await?;
        }
        Ok(attempt)
    }

    /// False: the moment was missed.
    async fn is_before_go(&self, lab: &mut Lab, flow: ControlFlow, seal: Seal) -> anyhow::Result<bool> {
        loaded(lab).await?;
        let journal = self.attempt.journal(lab, 1)?;
        if journaled(&journal, "GoSent") || journaled(&journal, "AbortIntent") {
            return Ok(false);
        }
        // An idle guest whose path was proved long before is now and then stopped faster than its hypervisor ends.
        let either = flow == ControlFlow::PeerToPeer && seal == Seal::Unsealed;
        Ok(either || journaled(&journal, "Sealed") == (seal == Seal::Sealed))
    }

    /// Lets whoever stands still go on.
    pub fn release(&self) {
        processes::signal(&self.holder, Signal::CONT);
    }
}

/// Waits for the end of a move in which the moment was missed that the case is about. The guest is moved then, or was
/// held up so long that it stays.
pub async fn missed(lab: &mut Lab, attempt: Attempt, guest: Guest) -> anyhow::Result<()> {
    let ended = attempt.settles(lab, guest, &[End::Moved, End::Stays]).await?;
    println!("  the moment was missed: {:?}, {}", ended.end, ended.reason);
    Ok(())
}

/// The guest is stopped and loaded, and the word of that does not get through.
pub async fn before_go(
    lab: &mut Lab,
    flow: ControlFlow,
    seal: Seal,
    victim: Victim,
    allowed: &[End],
) -> anyhow::Result<Ended> {
    let held = Held::before_go(lab, flow, seal).await?;
    let outcome = async {
        victim.kill(lab, &held.guest)?;
        if victim == Victim::DestinationHypervisor {
            if flow == ControlFlow::PeerToPeer {
                held.release();
            }
            // Until its agent knows, a Go that arrives would be given to a dead process.
            let journal = held.attempt.journal(lab, 2)?;
            when_journaled(journal, "RevertIntent", || {}).await?;
        }
        if victim != Victim::Controller {
            victim.heal(lab)?;
        }
        anyhow::Ok(())
    }
    .await;
    held.release();
    outcome?;
    let Held { guest, attempt, .. } = held;
    if victim == Victim::Controller {
        comes_back_afterwards(lab, &attempt).await?;
        attempt.is_complete(lab).await?;
    }
    attempt.settles(lab, guest, allowed).await
}

/// The agents come to the end by themselves, and only then the controller comes back.
pub async fn comes_back_afterwards(lab: &mut Lab, attempt: &Attempt) -> anyhow::Result<()> {
    when_journaled(attempt.journal(lab, 1)?, "Released", || {}).await?;
    Victim::Controller.heal(lab)
}

/// A guest that is loaded at the destination, and the controller, which was told of it, stands still and says no Go.
pub async fn unsaid(lab: &mut Lab) -> anyhow::Result<(Guest, Attempt, Seen)> {
    for _ in 0..MOST_MISSED {
        let guest = Guest::start(lab).await?;
        let controller = controller(lab)?;
        let attempt = Attempt::order(lab, &guest.name, "h2").await?;
        let stop = controller.clone();
        let journal = attempt.journal(lab, 1)?;
        when_journaled(journal.clone(), "Intent", move || {
            processes::signal(&stop, Signal::STOP)
        })
        .await?;
        let outcome = async {
            loaded(lab).await?;
            if journaled(&journal, "GoSent") {
                return Ok(false);
            }
            told(lab).await.map(|()| true)
        }
        .await;
        match outcome {
            Ok(true) => return Ok((guest, attempt, controller)),
            Ok(false) => {
                processes::signal(&controller, Signal::CONT);
                missed(lab, attempt, guest).await?;
            }
            Err(error) => {
                processes::signal(&controller, Signal::CONT);
                return Err(error);
            }
        }
    }
    bail!("Go was said too soon {MOST_MISSED} times")
}

/// Waits until Go was said. False: it is not said, for what the destination's agent had told was something else.
pub async fn go_is_said(journal: &Path) -> anyhow::Result<bool> {
    const SAID_WITHIN: Duration = Duration::from_secs(15);
    let said = until_within(SAID_WITHIN, "Go is said", async || {
        Ok(journaled(journal, "GoSent").then_some(()))
    });
    Ok(said.await.is_ok())
}

/// Go was said and has not arrived: the destination's agent, which is to obey it, stands still.
async fn after_go(lab: &mut Lab, victim: Victim, allowed: &[End]) -> anyhow::Result<Ended> {
    for _ in 0..MOST_MISSED {
        let (guest, attempt, controller) = unsaid(lab).await?;
        let obeying = agent(lab, 2)?;
        let outcome = async {
            processes::signal(&obeying, Signal::STOP);
            processes::signal(&controller, Signal::CONT);
            if !go_is_said(&attempt.journal(lab, 1)?).await? {
                return Ok(false);
            }
            ensure!(
                !journaled(&attempt.journal(lab, 2)?, "ContIssued"),
                "the guest was let run already"
            );
            victim.kill(lab, &guest).map(|()| true)
        }
        .await;
        processes::signal(&controller, Signal::CONT);
        processes::signal(&obeying, Signal::CONT);
        if !outcome? {
            missed(lab, attempt, guest).await?;
            continue;
        }
        victim.heal(lab)?;
        let ended = attempt.settles(lab, guest, allowed).await?;
        let obeyed = journaled(&attempt.journal(lab, 2)?, "ContIssued");
        ensure!(
            obeyed == (ended.end != End::Stays),
            "{ended:?}, and that it was let run is journaled: {obeyed}"
        );
        return Ok(ended);
    }
    bail!("Go was not said {MOST_MISSED} times")
}

/// At once when the guest is let run at the destination.
pub async fn after_cont(
    lab: &mut Lab,
    flow: ControlFlow,
    victim: Victim,
    allowed: &[End],
) -> anyhow::Result<Ended> {
    for _ in 0..MOST_MISSED {
        let guest = Guest::start(lab).await?;
        let attempt = Attempt::order_driven(lab, flow, &guest.name, "h2").await?;
        let process = until("there is somebody to kill", async || {
            Ok(victim.find(lab, &guest).ok())
        })
        .await?;
        let killed = when_journaled(attempt.journal(lab, 2)?, "ContIssued", move || {
            processes::signal(&process, Signal::KILL)
        })
        .await?;
        if !killed {
            // The source's hypervisor is let go soon after.
            ensure!(victim == Victim::SourceHypervisor, "{victim:?} had gone");
            missed(lab, attempt, guest).await?;
            continue;
        }
        victim.heal(lab)?;
        return attempt.settles(lab, guest, allowed).await;
    }
    bail!("{victim:?} had gone {MOST_MISSED} times")
}

/// Waits until what the destination's agent has said lies unread before the controller, and it says no more.
pub async fn told(lab: &mut Lab) -> anyhow::Result<()> {
    let address = match lab.host(2)?.address {
        std::net::IpAddr::V4(address) => format!("{:08X}", u32::from_ne_bytes(address.octets())),
        std::net::IpAddr::V6(_) => anyhow::bail!("the lab has no IPv6"),
    };
    let remote = format!("{address}:{:04X}", hosts::AGENT_PORT);
    let mut seen = (0, 0);
    until(
        "the destination's agent has told that the guest is loaded",
        async || {
            let table = std::fs::read_to_string("/proc/net/tcp")?;
            let unread = table
                .lines()
                .map(|line| line.split_whitespace().collect::<Vec<_>>())
                .filter(|fields| fields.get(2) == Some(&remote.as_str()))
                .filter_map(|fields| u64::from_str_radix(fields.get(4)?.rsplit_once(':')?.1, 16).ok())
                .sum::<u64>();
            seen = if unread == seen.0 {
                (unread, seen.1 + 1)
            } else {
                (unread, 0)
            };
            Ok((unread > 0 && seen.1 >= 20).then_some(()))
        },
    )
    .await
}

/// Who is killed and started again at some moment of a migration.
#[derive(Clone, Copy, Debug)]
enum Restarted {
    Agent(usize),
    Controller,
}

/// Kills it after so many milliseconds, whatever the migration is doing then, and starts it again at once.
async fn restarted(lab: &mut Lab, who: Restarted, after: u64) -> anyhow::Result<()> {
    let guest = Guest::start(lab).await?;
    let attempt = Attempt::order(lab, &guest.name, "h2").await?;
    tokio::time::sleep(std::time::Duration::from_millis(after)).await;
    match who {
        Restarted::Agent(host) => lab.restart_agent(host)?,
        Restarted::Controller => {
            lab.kill_controller();
            lab.start_controller()?;
        }
    }
    let outcome = attempt.settles(lab, guest, &[End::Stays, End::Moved]).await;
    lab.wait_until_ready().await?;
    outcome.with_context(|| format!("{who:?} after {after} ms"))?;
    Ok(())
}

/// Waits until no stream comes in at host 2 any more.
pub async fn loaded(lab: &Lab) -> anyhow::Result<()> {
    let host = lab.hosts.get(1).context("no second host")?;
    until("the guest is loaded", async || {
        Ok((host.native_streams()? == 0).then_some(()))
    })
    .await
}

/// Waits until the destination's hypervisor reads what comes over its connection: the agent has read the first few
/// bytes only, and is not needed for the rest.
async fn takes_in(lab: &mut Lab) -> anyhow::Result<()> {
    const MORE_THAN_THE_AGENT: u64 = 16 * 1024;
    let (first, last) = hosts::MIGRATION_PORTS;
    let source = lab.network.host(1).to_string();
    let host = lab.host(2)?;
    until("the destination's hypervisor reads the stream", async || {
        let output = host
            .command(std::path::Path::new("ss"))
            .args(["-HtinO", "state", "established"])
            .output()?;
        let table = String::from_utf8_lossy(&output.stdout).into_owned();
        let read = table.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (port, peer) = (
                fields.get(2)?.rsplit_once(':')?.1,
                fields.get(3)?.rsplit_once(':')?,
            );
            let (port, to): (u16, u16) = (port.parse().ok()?, peer.1.parse().ok()?);
            // A connection that this host made may have any port.
            let comes_in = peer.0 == source && to != hosts::AGENT_PORT;
            let unread: u64 = fields.first()?.parse().ok()?;
            let received = fields
                .iter()
                .find_map(|field| field.strip_prefix("bytes_received:"))?;
            let received: u64 = received.parse().ok()?;
            (comes_in && (first..=last).contains(&port)).then_some(received.saturating_sub(unread))
        });
        Ok((read.max() > Some(MORE_THAN_THE_AGENT)).then_some(()))
    })
    .await
}

/// Over the whole of a migration, which takes a good half second: not every moment has a name.
const MOMENTS: [u64; 5] = [20, 90, 180, 300, 450];

pub async fn source_agent_restarted_at_any_moment(lab: &mut Lab) -> anyhow::Result<()> {
    for after in MOMENTS {
        restarted(lab, Restarted::Agent(1), after).await?;
    }
    Ok(())
}

pub async fn destination_agent_restarted_at_any_moment(lab: &mut Lab) -> anyhow::Result<()> {
    for after in MOMENTS {
        restarted(lab, Restarted::Agent(2), after).await?;
    }
    Ok(())
}

pub async fn controller_restarted_at_any_moment(lab: &mut Lab) -> anyhow::Result<()> {
    for after in MOMENTS {
        restarted(lab, Restarted::Controller, after).await?;
    }
    Ok(())
}

pub async fn source_hypervisor_killed_in_pre_copy(lab: &mut Lab) -> anyhow::Result<()> {
    in_pre_copy(lab, MANAGED, Victim::SourceHypervisor, &[End::Lost]).await?;
    Ok(())
}

pub async fn destination_hypervisor_killed_in_pre_copy(lab: &mut Lab) -> anyhow::Result<()> {
    in_pre_copy(lab, MANAGED, Victim::DestinationHypervisor, &[End::Stays]).await?;
    Ok(())
}

pub async fn source_agent_killed_in_pre_copy(lab: &mut Lab) -> anyhow::Result<()> {
    in_pre_copy(lab, MANAGED, Victim::SourceAgent, &[End::Moved]).await?;
    Ok(())
}

pub async fn destination_agent_killed_in_pre_copy(lab: &mut Lab) -> anyhow::Result<()> {
    in_pre_copy(lab, MANAGED, Victim::DestinationAgent, &[End::Moved]).await?;
    Ok(())
}

pub async fn source_hypervisor_killed_before_go_sealed(lab: &mut Lab) -> anyhow::Result<()> {
    before_go(
        lab,
        MANAGED,
        Seal::Sealed,
        Victim::SourceHypervisor,
        &[End::Moved],
    )
    .await?;
    Ok(())
}

pub async fn source_hypervisor_killed_before_go_unsealed(lab: &mut Lab) -> anyhow::Result<()> {
    before_go(
        lab,
        MANAGED,
        Seal::Unsealed,
        Victim::SourceHypervisor,
        &[End::Moved],
    )
    .await?;
    Ok(())
}

pub async fn destination_hypervisor_killed_before_go_sealed(lab: &mut Lab) -> anyhow::Result<()> {
    before_go(
        lab,
        MANAGED,
        Seal::Sealed,
        Victim::DestinationHypervisor,
        &[End::Stays],
    )
    .await?;
    Ok(())
}

pub async fn destination_hypervisor_killed_before_go_unsealed(lab: &mut Lab) -> anyhow::Result<()> {
    before_go(
        lab,
        MANAGED,
        Seal::Unsealed,
        Victim::DestinationHypervisor,
        &[End::Stays],
    )
    .await?;
    Ok(())
}

pub async fn source_agent_killed_before_go_sealed(lab: &mut Lab) -> anyhow::Result<()> {
    before_go(lab, MANAGED, Seal::Sealed, Victim::SourceAgent, &[End::Moved]).await?;
    Ok(())
}

pub async fn source_agent_killed_before_go_unsealed(lab: &mut Lab) -> anyhow::Result<()> {
    before_go(lab, MANAGED, Seal::Unsealed, Victim::SourceAgent, &[End::Moved]).await?;
    Ok(())
}

pub async fn destination_agent_killed_before_go_sealed(lab: &mut Lab) -> anyhow::Result<()> {
    before_go(
        lab,
        MANAGED,
        Seal::Sealed,
        Victim::DestinationAgent,
        &[End::Moved],
    )
    .await?;
    Ok(())
}

pub async fn destination_agent_killed_before_go_unsealed(lab: &mut Lab) -> anyhow::Result<()> {
    before_go(
        lab,
        MANAGED,
        Seal::Unsealed,
        Victim::DestinationAgent,
        &[End::Moved],
    )
    .await?;
    Ok(())
}

pub async fn source_hypervisor_killed_after_go(lab: &mut Lab) -> anyhow::Result<()> {
    after_go(lab, Victim::SourceHypervisor, &[End::Moved]).await?;
    Ok(())
}

/// Its agent finds the death and the order to let it run at the same time. It looks whether the process lives before it
/// writes down that it obeys, so it can prove that the guest never ran there, and the source goes on.
pub async fn destination_hypervisor_killed_after_go(lab: &mut Lab) -> anyhow::Result<()> {
    after_go(lab, Victim::DestinationHypervisor, &[End::Stays]).await?;
    Ok(())
}

pub async fn source_agent_killed_after_go(lab: &mut Lab) -> anyhow::Result<()> {
    after_go(lab, Victim::SourceAgent, &[End::Moved]).await?;
    Ok(())
}

pub async fn destination_agent_killed_after_go(lab: &mut Lab) -> anyhow::Result<()> {
    after_go(lab, Victim::DestinationAgent, &[End::Moved]).await?;
    Ok(())
}

pub async fn source_hypervisor_killed_after_cont(lab: &mut Lab) -> anyhow::Result<()> {
    after_cont(lab, MANAGED, Victim::SourceHypervisor, &[End::Moved]).await?;
    Ok(())
}

/// What runs at the destination is the only copy. Dead before its agent has told that it runs, it is a lost guest; a
/// moment later it is a guest that has moved and crashed. The source's copy never runs again.
pub async fn only_copy_killed_after_cont(lab: &mut Lab, flow: ControlFlow) -> anyhow::Result<()> {
    for _ in 0..MOST_MISSED {
        if only_copy_killed(lab, flow).await? {
            return Ok(());
        }
    }
    bail!("the copy was dead before it was let run {MOST_MISSED} times")
}

/// False: it was dead while its agent still wrote down that it lets it run, and so did not.
async fn only_copy_killed(lab: &mut Lab, flow: ControlFlow) -> anyhow::Result<bool> {
    let guest = Guest::start(lab).await?;
    let attempt = Attempt::order_driven(lab, flow, &guest.name, "h2").await?;
    let process = until("the destination's process", async || {
        Ok(guest.process(lab, 2).ok())
    })
    .await?;
    let killed = when_journaled(attempt.journal(lab, 2)?, "ContIssued", move || {
        processes::signal(&process, Signal::KILL)
    })
    .await?;
    ensure!(killed, "it had gone");
    let ended = attempt.ended(lab).await?;
    println!("  {:?}, {}: {}", ended.end, ended.reason, ended.message);
    match ended.end {
        End::Lost => guest.state(lab, GuestState::Lost).await?,
        End::Moved => guest.state(lab, GuestState::Crashed).await?,
        End::Stays => {
            ensure!(
                journaled(&attempt.journal(lab, 2)?, "RevertIntent") && guest.ticks("h2") == 0,
                "the source's copy was let run again: {ended:?}"
            );
            attempt.settles(lab, guest, &[End::Stays]).await?;
            return Ok(false);
        }
    };
    guest.nothing_left(lab, 1).await?;
    ensure!(guest.processes(lab, 2)?.is_empty(), "it lives");
    guest.ran_once()?;
    guest.remove(lab).await?;
    Ok(true)
}

pub async fn destination_hypervisor_killed_after_cont(lab: &mut Lab) -> anyhow::Result<()> {
    only_copy_killed_after_cont(lab, MANAGED).await
}

pub async fn source_agent_killed_after_cont(lab: &mut Lab) -> anyhow::Result<()> {
    after_cont(lab, MANAGED, Victim::SourceAgent, &[End::Moved]).await?;
    Ok(())
}

pub async fn destination_agent_killed_after_cont(lab: &mut Lab) -> anyhow::Result<()> {
    after_cont(lab, MANAGED, Victim::DestinationAgent, &[End::Moved]).await?;
    Ok(())
}
