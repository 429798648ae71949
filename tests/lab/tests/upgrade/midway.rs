//! An upgrade in mid-migration: an older agent that has a part in it is stopped at a moment of it, and today's comes in
//! its place, on the same state directory. Its journal is of the older format.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, ensure};
use godwit_crds::migration::{ControlFlow, SecurityRequirement};
use godwit_lab::Lab;
use godwit_lab::processes;
use rustix::process::Signal;

use crate::attempt::End;
use crate::moments::{Moment, Traveller, Trip, Way, agent, at};
use crate::setting::clear;
use crate::versions::Version::{Older, Todays};
use crate::versions::{Mix, install, put, replace_controller, runs};

/// Whose agent is upgraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

impl Side {
    fn host(self, trip: &Trip) -> usize {
        match self {
            Self::Source => trip.from,
            Self::Destination => trip.to,
        }
    }
}

/// How the older agent ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    /// It is asked to, as by a rollout.
    Asked,
    /// It is killed, as by a rollout that has lost its patience.
    Killed,
}

impl Ends {
    fn signal(self) -> Signal {
        match self {
            Self::Asked => Signal::TERM,
            Self::Killed => Signal::KILL,
        }
    }
}

const MOMENTS: [(Moment, Ends); 6] = [
    (Moment::Prepare, Ends::Killed),
    (Moment::PreCopy, Ends::Asked),
    (Moment::Switchover, Ends::Killed),
    (Moment::Loaded, Ends::Killed),
    (Moment::Go, Ends::Killed),
    (Moment::Cont, Ends::Asked),
];

/// False: it was too late for it.
async fn upgrade(lab: &mut Lab, trip: &Trip, side: Side, moment: Moment, ends: Ends) -> anyhow::Result<bool> {
    let host = side.host(trip);
    let gone = Arc::new(AtomicBool::new(false));
    let seen_gone = Arc::clone(&gone);
    install(lab, host, Todays)?;
    let find = |lab: &mut Lab| agent(lab, host);
    let done = at(lab, trip, moment, find, move |process| {
        // One that was held up hears it once it goes on.
        seen_gone.store(!processes::signal(&process, ends.signal()), Ordering::Relaxed);
        processes::signal(&process, Signal::CONT);
        Ok(())
    })
    .await?;
    ensure!(
        !gone.load(Ordering::Relaxed),
        "the older agent had ended by itself"
    );
    if !done {
        install(lab, host, Older)?;
        return Ok(false);
    }
    // Waits for its end first.
    lab.host(host)?.stop_agent().await?;
    lab.start_agent(host)?;
    lab.wait_until_ready().await?;
    runs(lab, host, Todays).await?;
    Ok(true)
}

/// On the guest's next trip, by older agents alone, with today's controller: it is upgraded first.
async fn upgraded(
    lab: &mut Lab,
    traveller: &mut Traveller,
    way: Way,
    side: Side,
    moment: Moment,
    ends: Ends,
) -> anyhow::Result<()> {
    // What an agent had begun to start, or to open, when it ended, it gives up. And a guest that stands still for as long
    // as an agent takes to come back may have to be let run where it is.
    let allowed: &[End] = match moment {
        Moment::Prepare | Moment::Switchover => &[End::Moved, End::Stays],
        Moment::PreCopy | Moment::Loaded | Moment::Unheard | Moment::Go | Moment::Cont => &[End::Moved],
    };
    let older = Mix {
        controller: Todays,
        agents: [Older; 2],
    };
    put(lab, older).await?;
    let mut trip = traveller.leaves(lab, way).await?;
    while !upgrade(lab, &trip, side, moment, ends).await? {
        traveller.was_early(lab, &trip).await?;
        trip = traveller.leaves(lab, way).await?;
    }
    trip.goes_on(lab).await?;
    traveller
        .settles(lab, &trip, allowed, (way.transport, side, moment))
        .await?;
    Ok(())
}

async fn agents_upgraded(lab: &mut Lab, name: &str, ways: [Way; 2]) -> anyhow::Result<()> {
    put(lab, Mix::OLDER).await?;
    clear(lab).await?;
    let mut traveller = Traveller::start(lab, name).await?;
    for side in [Side::Source, Side::Destination] {
        for (number, (moment, ends)) in MOMENTS.into_iter().enumerate() {
            // By turns: both flows at either side, in half the time.
            let way = ways[(number + usize::from(side == Side::Source)) % 2];
            let what = format!("{way:?}, {side:?}, {moment:?}");
            upgraded(lab, &mut traveller, way, side, moment, ends)
                .await
                .context(what)?;
        }
    }
    traveller.is_whole(lab)?;
    clear(lab).await?;
    put(lab, Mix::TODAYS).await
}

pub async fn agents_upgraded_in_mid_migration_native(lab: &mut Lab) -> anyhow::Result<()> {
    let encrypted = SecurityRequirement::Encrypted;
    let ways = [ControlFlow::PeerToPeer, ControlFlow::ManagedDirect].map(|flow| Way::native(flow, encrypted));
    agents_upgraded(lab, "settler", ways).await
}

pub async fn agents_upgraded_in_mid_migration_tunnelled(lab: &mut Lab) -> anyhow::Result<()> {
    let ways = [ControlFlow::PeerToPeer, ControlFlow::ManagedDirect].map(Way::tunnelled);
    agents_upgraded(lab, "pioneer", ways).await
}

/// The driver of a managed migration is replaced by a newer one while memory travels, and once the guest is loaded.
pub async fn the_controller_is_upgraded_in_mid_migration(lab: &mut Lab) -> anyhow::Result<()> {
    put(lab, Mix::OLDER).await?;
    clear(lab).await?;
    let mut traveller = Traveller::start(lab, "herald").await?;
    for moment in [Moment::PreCopy, Moment::Loaded] {
        let older = Mix {
            controller: Older,
            agents: [Older; 2],
        };
        put(lab, older).await?;
        let way = Way::tunnelled(ControlFlow::ManagedDirect);
        let trip = loop {
            let trip = traveller.leaves(lab, way).await?;
            let find = |lab: &mut Lab| trip.driver(lab);
            let killed = at(lab, &trip, moment, find, |process| {
                ensure!(
                    processes::signal(&process, Signal::KILL),
                    "the controller had ended"
                );
                Ok(())
            });
            if killed.await? {
                break trip;
            }
            traveller.was_early(lab, &trip).await?;
        };
        replace_controller(lab, Todays).await?;
        trip.goes_on(lab).await?;
        traveller
            .settles(lab, &trip, &[End::Moved], ("the controller", moment))
            .await?;
    }
    traveller.is_whole(lab)?;
    clear(lab).await?;
    put(lab, Mix::TODAYS).await
}
