//! The disk under an agent's journal fails when it is to take an entry: with an error after it has taken it, or for want
//! of room. Nothing is tried again on that file; the guest moves, or stays, and runs once.

use anyhow::Context as _;
use godwit_crds::condition::ConditionStatus;
use godwit_lab::cases::Case;
use godwit_lab::{Lab, cases};

use super::point::{Deed, Point};
use super::scene::{Scene, is_gone};
use super::table::Cell;
use super::way::{MANAGED, PEERS, Way};
use crate::attempt::{End, condition};
use crate::crashes::Seal;
use crate::guest::until;

const MOVES: &[End] = &[End::Moved];
const STAYS: &[End] = &[End::Stays];
const EITHER: &[End] = &[End::Moved, End::Stays];

/// The destination dies with the guest that nobody knows to be loaded: its agent is started again at once.
const LOADED: Point = Point::of(2, "destination.event.Loaded");
/// The source dies when it would say Go.
const READY: Point = Point::of(1, "source.event.Ready");

struct Entry {
    point: Point,
    phase: &'static str,
    seal: Seal,
    /// The agent that has to die for that entry to be written.
    dies: Option<Point>,
    /// Whether it waits for its agent to be started again.
    waits: bool,
    expected: &'static [End],
}

const fn entry(host: usize, point: &'static str, phase: &'static str, expected: &'static [End]) -> Entry {
    Entry {
        point: Point::of(host, point),
        phase,
        seal: Seal::Unsealed,
        dies: None,
        waits: false,
        expected,
    }
}

const ENTRIES: [Entry; 10] = [
    entry(1, "source.written.Begun", "Begun is written", STAYS),
    entry(1, "source.written.Intent", "Intent is written", STAYS),
    Entry {
        seal: Seal::Sealed,
        ..entry(1, "source.written.Sealed", "Sealed is written", EITHER)
    },
    Entry {
        seal: Seal::Sealed,
        ..entry(1, "source.written.GoSent", "Go is written", MOVES)
    },
    Entry {
        waits: true,
        ..entry(1, "source.written.GoSent", "Go is written, unsealed", EITHER)
    },
    entry(1, "source.written.Released", "Released is written", MOVES),
    entry(2, "destination.written.Prepared", "Prepared is written", STAYS),
    Entry {
        waits: true,
        ..entry(
            2,
            "destination.written.ContIssued",
            "ContIssued is written",
            EITHER,
        )
    },
    Entry {
        seal: Seal::Sealed,
        dies: Some(LOADED),
        ..entry(1, "source.written.Arbitrating", "Arbitrating is written", EITHER)
    },
    Entry {
        seal: Seal::Sealed,
        dies: Some(READY),
        ..entry(
            2,
            "destination.written.CommitIntent",
            "CommitIntent is written",
            EITHER,
        )
    },
];

/// The migration waits, and says so: nobody but the agent that cannot write knows what it has done.
async fn needs_its_agent(lab: &Lab, scene: &Scene) -> anyhow::Result<()> {
    let reason = until("the status tells that it waits", async || {
        let status = scene.attempt.status(lab).await?;
        let told = condition(&status, "NeedsDecision");
        let told = told.filter(|told| told.status == ConditionStatus::True);
        Ok(told.map(|told| told.reason.clone()))
    })
    .await?;
    println!("  it waits: {reason}");
    Ok(())
}

async fn fails(lab: &mut Lab, way: Way, deed: Deed) -> anyhow::Result<()> {
    for entry in &ENTRIES {
        fails_at(lab, way, deed, entry)
            .await
            .with_context(|| entry.point.name)?;
    }
    Ok(())
}

async fn fails_at(lab: &mut Lab, way: Way, deed: Deed, entry: &Entry) -> anyhow::Result<()> {
    let mut armed = vec![(entry.point, deed)];
    armed.extend(entry.dies.map(|dies| (dies, Deed::Die)));
    let scene = Scene::set(lab, way, entry.seal, &armed).await?;
    if let Some(dies) = entry.dies {
        is_gone(lab, dies).await?;
        lab.restart_agent(dies.host)?;
    }
    if entry.waits {
        needs_its_agent(lab, &scene).await?;
        lab.restart_agent(entry.point.host)?;
    }
    let cell = Cell {
        phase: entry.phase,
        fault: match (entry.point.host, deed) {
            (1, Deed::Eio) => "the source's journal: EIO when it is synced",
            (1, Deed::Enospc | Deed::Pass | Deed::Wait | Deed::Die) => "the source's journal: no room",
            (_, Deed::Eio) => "the destination's journal: EIO when it is synced",
            (_, Deed::Enospc | Deed::Pass | Deed::Wait | Deed::Die) => "the destination's journal: no room",
        },
        flow: way.flow,
        expected: entry.expected,
    };
    scene.ends(lab, cell).await?;
    Ok(())
}

async fn cell_journal_not_synced_at_each_entry_managed(lab: &mut Lab) -> anyhow::Result<()> {
    fails(lab, MANAGED, Deed::Eio).await
}

async fn cell_journal_not_synced_at_each_entry_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    fails(lab, PEERS, Deed::Eio).await
}

async fn cell_journal_without_room_at_each_entry_managed(lab: &mut Lab) -> anyhow::Result<()> {
    fails(lab, MANAGED, Deed::Enospc).await
}

async fn cell_journal_without_room_at_each_entry_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    fails(lab, PEERS, Deed::Enospc).await
}

pub const CASES: &[Case] = cases![
    ; long:
    cell_journal_not_synced_at_each_entry_managed,
    cell_journal_not_synced_at_each_entry_peer_to_peer,
    cell_journal_without_room_at_each_entry_managed,
    cell_journal_without_room_at_each_entry_peer_to_peer,
];
