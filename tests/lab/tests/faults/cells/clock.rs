//! Clocks that somebody sets an hour forward or back, on either host, at each phase. Tickets
//! are refused by their name; else nothing waits by them, and the guest moves.

use anyhow::{Context as _, ensure};
use godwit_crds::migration::ControlFlow;
use godwit_lab::Lab;
use godwit_lab::cases::Case;

use super::judge::Judge;
use super::point::{Deed, Point};
use super::scene::{Scene, fresh};
use super::table::Cell;
use super::way::{MANAGED, PEERS, Way};
use crate::attempt::End;
use crate::crashes::Seal;
use crate::guest::Guest;

const HOUR: i64 = 3600;
const MOVES: &[End] = &[End::Moved];
const STAYS: &[End] = &[End::Stays];

/// When the clock is set: an agent waits there meanwhile.
const MOMENTS: [(Point, &str, Seal); 6] = [
    (
        Point::of(1, "source.before.StartStream"),
        "before the stream",
        Seal::Unsealed,
    ),
    (
        Point::of(1, "source.journaled.Intent"),
        "Intent journaled",
        Seal::Unsealed,
    ),
    (
        Point::of(1, "source.journaled.Sealed"),
        "Sealed journaled",
        Seal::Sealed,
    ),
    (
        Point::of(1, "source.before.SwitchOver"),
        "before the switchover",
        Seal::Unsealed,
    ),
    (
        Point::of(2, "destination.event.Loaded"),
        "loaded, before Ready",
        Seal::Unsealed,
    ),
    (
        Point::of(2, "destination.event.Resumed"),
        "the guest was let run",
        Seal::Unsealed,
    ),
];

/// Sets a host's clock wrong by so many seconds, as its agent sees it.
pub fn set(lab: &mut Lab, host: usize, seconds: i64) -> anyhow::Result<()> {
    let file = lab.host(host)?.points().join("clock");
    // Seen whole or not at all.
    let written = file.with_extension("new");
    std::fs::write(&written, seconds.to_string())?;
    Ok(std::fs::rename(&written, &file)?)
}

fn told(host: usize, seconds: i64) -> &'static str {
    match (host, seconds > 0) {
        (1, true) => "the source's clock is set an hour forward",
        (1, false) => "the source's clock is set an hour back",
        (_, true) => "the destination's clock is set an hour forward",
        (_, false) => "the destination's clock is set an hour back",
    }
}

/// Set on its way: nobody minds.
async fn amid(lab: &mut Lab, way: Way, host: usize, seconds: i64) -> anyhow::Result<()> {
    for (point, phase, seal) in MOMENTS {
        let scene = Scene::set(lab, way, seal, &[(point, Deed::Wait)])
            .await
            .with_context(|| phase)?;
        set(lab, host, seconds)?;
        point.release(lab)?;
        let cell = Cell {
            phase,
            fault: told(host, seconds),
            flow: way.flow,
            expected: MOVES,
        };
        scene.ends(lab, cell).await.with_context(|| phase)?;
    }
    Ok(())
}

/// Set before it is ordered. Only the ticket is of a time that is looked at: the one that the source shows the
/// destination where it drives itself.
async fn before(lab: &mut Lab, way: Way, host: usize, seconds: i64) -> anyhow::Result<()> {
    let refused = match (way.flow, host) {
        (ControlFlow::PeerToPeer, 2) if seconds > 0 => Some("TicketExpired"),
        (ControlFlow::PeerToPeer, 2) => Some("TicketNotYetValid"),
        (ControlFlow::PeerToPeer | ControlFlow::ManagedDirect, _) => None,
    };
    fresh(lab).await?;
    let guest = Guest::start(lab).await?;
    let judge = Judge::watch(lab, &guest);
    set(lab, host, seconds)?;
    let attempt = Scene::order(lab, way, &guest).await?;
    let ended = attempt.ended(lab).await?;
    if let Some(reason) = refused {
        ensure!(ended.reason == reason, "{ended:?}");
    }
    let cell = Cell {
        phase: "before it is ordered",
        fault: told(host, seconds),
        flow: way.flow,
        expected: if refused.is_some() { STAYS } else { MOVES },
    };
    let scene = Scene {
        guest,
        attempt,
        way,
        judge,
    };
    scene.ends(lab, cell).await?;
    Ok(())
}

macro_rules! clocks {
    ($($amid:ident, $before:ident: $way:ident, $host:expr, $seconds:expr;)*) => {
        pub const CASES: &[Case] = &[$(
            Case {
                name: stringify!($before),
                long: true,
                body: |lab| Box::pin(before(lab, $way, $host, $seconds)),
            },
            Case {
                name: stringify!($amid),
                long: true,
                body: |lab| Box::pin(amid(lab, $way, $host, $seconds)),
            },
        )*];
    };
}

clocks! {
    cell_clock_of_the_source_an_hour_forward_managed, cell_clock_of_the_source_an_hour_forward_before_managed: MANAGED, 1, HOUR;
    cell_clock_of_the_source_an_hour_back_managed, cell_clock_of_the_source_an_hour_back_before_managed: MANAGED, 1, -HOUR;
    cell_clock_of_the_destination_an_hour_forward_managed, cell_clock_of_the_destination_an_hour_forward_before_managed: MANAGED, 2, HOUR;
    cell_clock_of_the_destination_an_hour_back_managed, cell_clock_of_the_destination_an_hour_back_before_managed: MANAGED, 2, -HOUR;
    cell_clock_of_the_source_an_hour_forward_peer_to_peer, cell_clock_of_the_source_an_hour_forward_before_peer_to_peer: PEERS, 1, HOUR;
    cell_clock_of_the_source_an_hour_back_peer_to_peer, cell_clock_of_the_source_an_hour_back_before_peer_to_peer: PEERS, 1, -HOUR;
    cell_clock_of_the_destination_an_hour_forward_peer_to_peer, cell_clock_of_the_destination_an_hour_forward_before_peer_to_peer: PEERS, 2, HOUR;
    cell_clock_of_the_destination_an_hour_back_peer_to_peer, cell_clock_of_the_destination_an_hour_back_before_peer_to_peer: PEERS, 2, -HOUR;
}
