//! Each agent killed at each entry of its journal and around each command that it cannot take back, and started again
//! at once: the guest moves, or stays, and runs once.

use anyhow::Context as _;
use godwit_lab::Lab;

use super::point::{Deed, Point};
use super::scene::{Scene, is_gone};
use super::table::Cell;
use super::way::{MANAGED, PEERS, Way};
use crate::attempt::End;
use crate::crashes::Seal;

const MOVES: &[End] = &[End::Moved];
/// What is not begun for good is begun again, or given up.
const EITHER: &[End] = &[End::Moved, End::Stays];

struct Moment {
    point: Point,
    phase: &'static str,
    seal: Seal,
    expected: &'static [End],
}

const fn of(
    host: usize,
    point: &'static str,
    phase: &'static str,
    seal: Seal,
    expected: &'static [End],
) -> Moment {
    Moment {
        point: Point::of(host, point),
        phase,
        seal,
        expected,
    }
}

const SOURCE: [Moment; 9] = [
    of(
        1,
        "source.journaled.Begun",
        "Begun journaled",
        Seal::Unsealed,
        EITHER,
    ),
    of(
        1,
        "source.before.StartStream",
        "before the stream",
        Seal::Unsealed,
        EITHER,
    ),
    of(
        1,
        "source.journaled.Intent",
        "Intent journaled",
        Seal::Unsealed,
        EITHER,
    ),
    of(1, "source.event.BeforeSwitchover", "gate", Seal::Unsealed, EITHER),
    of(
        1,
        "source.before.SwitchOver",
        "before the switchover",
        Seal::Unsealed,
        EITHER,
    ),
    of(
        1,
        "source.journaled.Sealed",
        "Sealed journaled",
        Seal::Sealed,
        EITHER,
    ),
    of(1, "source.event.Ready", "before Go", Seal::Unsealed, MOVES),
    of(
        1,
        "source.journaled.GoSent",
        "Go journaled",
        Seal::Unsealed,
        MOVES,
    ),
    of(
        1,
        "source.journaled.Released",
        "Released journaled",
        Seal::Unsealed,
        MOVES,
    ),
];

const DESTINATION: [Moment; 6] = [
    of(
        2,
        "destination.journaled.Prepared",
        "Prepared journaled",
        Seal::Unsealed,
        EITHER,
    ),
    of(
        2,
        "destination.event.Launched",
        "launched",
        Seal::Unsealed,
        EITHER,
    ),
    of(2, "destination.event.Loaded", "loaded", Seal::Unsealed, MOVES),
    of(
        2,
        "destination.event.Finish",
        "before Go is obeyed",
        Seal::Unsealed,
        MOVES,
    ),
    of(
        2,
        "destination.journaled.ContIssued",
        "ContIssued journaled",
        Seal::Unsealed,
        MOVES,
    ),
    of(
        2,
        "destination.event.Resumed",
        "the guest was let run",
        Seal::Unsealed,
        MOVES,
    ),
];

async fn killed(lab: &mut Lab, way: Way, moments: &[Moment]) -> anyhow::Result<()> {
    for moment in moments {
        killed_at(lab, way, moment)
            .await
            .with_context(|| moment.point.name)?;
    }
    Ok(())
}

async fn killed_at(lab: &mut Lab, way: Way, moment: &Moment) -> anyhow::Result<()> {
    let armed = [(moment.point, Deed::Die)];
    let scene = Scene::set(lab, way, moment.seal, &armed).await?;
    is_gone(lab, moment.point).await?;
    lab.restart_agent(moment.point.host)?;
    let cell = Cell {
        phase: moment.phase,
        fault: if moment.point.host == 1 {
            "the source's agent is killed and started again"
        } else {
            "the destination's agent is killed and started again"
        },
        flow: way.flow,
        expected: moment.expected,
    };
    scene.ends(lab, cell).await?;
    Ok(())
}

pub async fn cell_source_agent_killed_at_each_entry_managed(lab: &mut Lab) -> anyhow::Result<()> {
    killed(lab, MANAGED, &SOURCE).await
}

pub async fn cell_source_agent_killed_at_each_entry_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    killed(lab, PEERS, &SOURCE).await
}

pub async fn cell_destination_agent_killed_at_each_entry_managed(lab: &mut Lab) -> anyhow::Result<()> {
    killed(lab, MANAGED, &DESTINATION).await
}

pub async fn cell_destination_agent_killed_at_each_entry_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    killed(lab, PEERS, &DESTINATION).await
}
