//! Relays, agents and hypervisors killed in each phase, by both flows: the guest ends where the table of outcomes says.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::ensure;
use godwit_crds::migration::{ControlFlow, SecurityRequirement};
use godwit_crds::virtual_machine::GuestState;
use godwit_lab::Lab;
use godwit_lab::guest::machines;
use godwit_lab::processes::{self, Seen};
use rustix::process::Signal;

use crate::attempt::End;
use crate::guest::until;
use crate::moments::{Moment, Traveller, Trip, Way, agent, at, hypervisor, nothing_is_left, relay};

/// Who is killed, at which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    SourceRelay,
    DestinationRelay,
    SourceAgent,
    DestinationAgent,
    SourceHypervisor,
    DestinationHypervisor,
}

impl Victim {
    fn host(self, trip: &Trip) -> usize {
        match self {
            Self::SourceRelay | Self::SourceAgent | Self::SourceHypervisor => trip.from,
            Self::DestinationRelay | Self::DestinationAgent | Self::DestinationHypervisor => trip.to,
        }
    }

    fn find(self, lab: &mut Lab, trip: &Trip) -> anyhow::Result<Seen> {
        let host = self.host(trip);
        match self {
            Self::SourceRelay | Self::DestinationRelay => relay(lab, host),
            Self::SourceAgent | Self::DestinationAgent => agent(lab, host),
            Self::SourceHypervisor | Self::DestinationHypervisor => hypervisor(lab, host),
        }
    }
}

/// False: it was too late for it.
async fn kill(lab: &mut Lab, trip: &Trip, moment: Moment, victim: Victim) -> anyhow::Result<bool> {
    let find = |lab: &mut Lab| victim.find(lab, trip);
    let gone = Arc::new(AtomicBool::new(false));
    let seen_gone = Arc::clone(&gone);
    let done = at(lab, trip, moment, find, move |process| {
        if !processes::signal(&process, Signal::KILL) {
            seen_gone.store(true, Ordering::Relaxed);
            return Ok(());
        }
        let left = processes::kill(std::slice::from_ref(&process));
        ensure!(left.is_empty(), "still there: {left:?}");
        Ok(())
    })
    .await;
    if matches!(victim, Victim::SourceAgent | Victim::DestinationAgent) {
        lab.restart_agent(victim.host(trip))?;
        lab.wait_until_ready().await?;
    }
    if gone.load(Ordering::Relaxed) {
        // A relay is let go soon after the guest was let run.
        ensure!(moment > Moment::PreCopy, "{victim:?} had gone");
        return done.map(|_| false);
    }
    done
}

/// Kills it on the guest's next trip, and checks the end.
async fn killed(
    lab: &mut Lab,
    traveller: &mut Traveller,
    way: Way,
    moment: Moment,
    victim: Victim,
    allowed: &[End],
) -> anyhow::Result<()> {
    let mut trip = traveller.leaves(lab, way).await?;
    while !kill(lab, &trip, moment, victim).await? {
        traveller.was_early(lab, &trip).await?;
        trip = traveller.leaves(lab, way).await?;
    }
    trip.goes_on(lab).await?;
    let ended = traveller.settles(lab, &trip, allowed, (moment, victim)).await?;
    let relay = matches!(victim, Victim::SourceRelay | Victim::DestinationRelay);
    if relay && ended.end == End::Stays {
        ensure!(ended.reason == "StreamFailed", "{ended:?}");
    }
    Ok(())
}

/// What a relay carries is lost with it; what has arrived is not.
pub fn outcomes(moment: Moment) -> &'static [End] {
    match moment {
        Moment::Prepare | Moment::PreCopy => &[End::Stays],
        Moment::Switchover => &[End::Stays, End::Moved],
        Moment::Loaded | Moment::Unheard | Moment::Go | Moment::Cont => &[End::Moved],
    }
}

async fn relays_killed(
    lab: &mut Lab,
    name: &str,
    flow: ControlFlow,
    kills: &[(Victim, Moment)],
) -> anyhow::Result<()> {
    let mut traveller = Traveller::start(lab, name).await?;
    for (victim, moment) in kills.iter().copied() {
        let way = Way::tunnelled(flow);
        killed(lab, &mut traveller, way, moment, victim, outcomes(moment)).await?;
    }
    traveller.is_whole(lab)
}

pub async fn a_relay_killed_in_each_phase(lab: &mut Lab) -> anyhow::Result<()> {
    let kills = [
        (Victim::SourceRelay, Moment::Prepare),
        (Victim::SourceRelay, Moment::PreCopy),
        (Victim::DestinationRelay, Moment::PreCopy),
        (Victim::SourceRelay, Moment::Switchover),
        (Victim::DestinationRelay, Moment::Loaded),
        (Victim::SourceRelay, Moment::Go),
        (Victim::DestinationRelay, Moment::Cont),
    ];
    relays_killed(lab, "parcel", ControlFlow::PeerToPeer, &kills).await
}

pub async fn either_relay_killed_in_each_phase_in_both_flows(lab: &mut Lab) -> anyhow::Result<()> {
    let moments = [
        Moment::Prepare,
        Moment::PreCopy,
        Moment::Switchover,
        Moment::Loaded,
        Moment::Go,
        Moment::Cont,
    ];
    let of = |victim| moments.map(|moment| (victim, moment));
    let kills = [of(Victim::SourceRelay), of(Victim::DestinationRelay)].concat();
    relays_killed(lab, "letter", ControlFlow::ManagedDirect, &kills).await?;
    relays_killed(lab, "card", ControlFlow::PeerToPeer, &kills).await
}

/// Streams go on without agents, and the agents find them again.
async fn agents_killed(lab: &mut Lab, way: Way, name: &str) -> anyhow::Result<()> {
    let mut traveller = Traveller::start(lab, name).await?;
    for victim in [Victim::SourceAgent, Victim::DestinationAgent] {
        for moment in [
            Moment::Prepare,
            Moment::PreCopy,
            Moment::Switchover,
            Moment::Loaded,
            Moment::Go,
            Moment::Cont,
        ] {
            let allowed: &[End] = match moment {
                // What an agent had begun to start, or to open, when it was killed, it gives up. And a guest that
                // stands still for as long as an agent takes to come back may have to be let run where it is.
                Moment::Prepare | Moment::Switchover => &[End::Moved, End::Stays],
                Moment::PreCopy | Moment::Loaded | Moment::Unheard | Moment::Go | Moment::Cont => {
                    &[End::Moved]
                }
            };
            killed(lab, &mut traveller, way, moment, victim, allowed).await?;
        }
    }
    traveller.is_whole(lab)
}

pub async fn an_agent_killed_in_each_phase_of_a_tunnelled_move(lab: &mut Lab) -> anyhow::Result<()> {
    agents_killed(lab, Way::tunnelled(ControlFlow::PeerToPeer), "crate").await?;
    agents_killed(lab, Way::tunnelled(ControlFlow::ManagedDirect), "box").await
}

pub async fn an_agent_killed_in_each_phase_of_an_encrypted_move(lab: &mut Lab) -> anyhow::Result<()> {
    let encrypted = SecurityRequirement::Encrypted;
    agents_killed(lab, Way::native(ControlFlow::PeerToPeer, encrypted), "trunk").await?;
    agents_killed(lab, Way::native(ControlFlow::ManagedDirect, encrypted), "case").await
}

pub async fn a_hypervisor_killed_while_a_tunnel_carries_its_memory(lab: &mut Lab) -> anyhow::Result<()> {
    let way = Way::tunnelled(ControlFlow::PeerToPeer);
    let mut traveller = Traveller::start(lab, "mortal").await?;
    let victim = Victim::DestinationHypervisor;
    killed(lab, &mut traveller, way, Moment::PreCopy, victim, &[End::Stays]).await?;
    // The only valid image dies, and is not taken for one that was moved.
    let trip = traveller.leaves(lab, way).await?;
    ensure!(kill(lab, &trip, Moment::PreCopy, Victim::SourceHypervisor).await?);
    let ended = trip.attempt.ended(lab).await?;
    ensure!(ended.end == End::Lost, "{ended:?}");
    until("the guest is told lost", async || {
        let machine = machines(lab).get(&traveller.guest.name).await?;
        let state = machine.status.and_then(|status| status.state);
        Ok((state == Some(GuestState::Lost)).then_some(()))
    })
    .await?;
    for host in &lab.hosts {
        ensure!(host.hypervisors().is_empty(), "a copy is left on {}", host.name);
    }
    nothing_is_left(lab, &trip.attempt).await
}
