//! A hypervisor's late failures, at either side of the switchover: its peer dies, it dies itself, the stream is cut, the
//! user cancels. The cells are data; each row is tried in both flows and has a name for each.

use std::time::Duration;

use anyhow::{bail, ensure};
use godwit_lab::Lab;
use godwit_lab::cases::LeftOut;
use godwit_lab::processes;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::judge::Judge;
use super::point::{Deed, Point};
use super::scene::{Scene, fresh};
use super::table::Cell;
use super::way::{MANAGED, PEERS, Way, relay, reset_stream};
use crate::attempt::{Attempt, End, migrations};
use crate::crashes::{MOST_MISSED, SLOW, Victim, missed};
use crate::guest::{Guest, until_within};

/// A point that is not reached by then has been passed by another way.
const COMES_WITHIN: Duration = Duration::from_secs(30);

pub const SOURCE: usize = 1;
pub const DESTINATION: usize = 2;

pub const MOVED: &[End] = &[End::Moved];
pub const STAYS: &[End] = &[End::Stays];
pub const LOST: &[End] = &[End::Lost];
pub const EITHER: &[End] = &[End::Stays, End::Moved];
pub const STAYS_OR_LOST: &[End] = &[End::Stays, End::Lost];

/// What happens at the point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The hypervisor of that host dies while the agent stands at it.
    Hypervisor(usize),
    /// The relay of that host dies while the agent stands at it.
    Relay(usize),
    /// The connections on which memory travels are reset at both ends while the agent stands at it.
    StreamCut,
    /// The user cancels while the agent stands at it.
    Cancel,
}

/// Which guest is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Little to move: its hypervisor converges by itself, or is stopped just before.
    Idle,
    /// It changes its memory all the time, and is always sealed.
    Busy,
}

/// Where an agent is held.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub point: Point,
    pub phase: &'static str,
}

/// The guest runs, and is to be stopped while its stream is active.
pub const SEAL: Moment = Moment {
    point: Point::of(SOURCE, "source.before.Pause"),
    phase: "before the seal",
};
/// All but the last of its state has gone over.
pub const SWITCHOVER: Moment = Moment {
    point: Point::of(SOURCE, "source.before.SwitchOver"),
    phase: "before the switchover",
};
pub const COMPLETED: Moment = Moment {
    point: Point::of(SOURCE, "source.event.StreamCompleted"),
    phase: "stream completed",
};
pub const LOADED: Moment = Moment {
    point: Point::of(DESTINATION, "destination.event.Loaded"),
    phase: "loaded, before Ready",
};
/// Nothing is written down yet.
pub const TOLD_GO: Moment = Moment {
    point: Point::of(DESTINATION, "destination.event.Finish"),
    phase: "Go arrives",
};

#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub moment: Moment,
    pub fault: Fault,
    pub kind: Kind,
    pub way: Way,
    pub expected: &'static [End],
}

impl Fault {
    fn told(self) -> &'static str {
        match self {
            Self::Hypervisor(SOURCE) => "the source's hypervisor dies",
            Self::Hypervisor(_) => "the destination's hypervisor dies",
            Self::Relay(SOURCE) => "the source's relay dies",
            Self::Relay(_) => "the destination's relay dies",
            Self::StreamCut => "the stream is cut",
            Self::Cancel => "the user cancels",
        }
    }

    /// Has it happen, and the agent go on.
    async fn strikes(self, lab: &mut Lab, row: &Row, guest: &Guest, attempt: &Attempt) -> anyhow::Result<()> {
        match self {
            Self::Hypervisor(SOURCE) => Victim::SourceHypervisor.kill(lab, guest)?,
            Self::Hypervisor(_) => Victim::DestinationHypervisor.kill(lab, guest)?,
            Self::Relay(host) => {
                let relay = relay(lab, host)?;
                let left = processes::kill(std::slice::from_ref(&relay));
                ensure!(left.is_empty(), "still there: {left:?}");
            }
            Self::StreamCut => reset_stream(lab, row.way.transport)?,
            Self::Cancel => {
                let patch = Patch::Merge(json!({"spec": {"cancel": true}}));
                migrations(lab)
                    .patch(&attempt.name, &PatchParams::default(), &patch)
                    .await?;
            }
        }
        row.moment.point.release(lab)
    }
}

pub async fn run(lab: &mut Lab, row: Row) -> anyhow::Result<()> {
    let Moment { point, phase } = row.moment;
    if !lab.network.separate() && row.fault == Fault::StreamCut {
        return Err(LeftOut("links cannot be cut").into());
    }
    let scene = held(lab, row.way, row.kind, point).await?;
    row.fault.strikes(lab, &row, &scene.guest, &scene.attempt).await?;
    let cell = Cell {
        phase,
        fault: row.fault.told(),
        flow: row.way.flow,
        expected: row.expected,
    };
    scene.ends(lab, cell).await?;
    Ok(())
}

/// A migration whose agent waits at a point.
pub async fn held(lab: &mut Lab, way: Way, kind: Kind, point: Point) -> anyhow::Result<Scene> {
    if !lab.network.separate() && kind == Kind::Busy {
        return Err(LeftOut("links cannot be shaped").into());
    }
    for _ in 0..MOST_MISSED {
        fresh(lab).await?;
        let guest = match kind {
            Kind::Idle => Guest::start(lab).await?,
            Kind::Busy => Guest::start_busy(lab).await?,
        };
        let judge = Judge::watch(lab, &guest);
        point.arm(lab, Deed::Wait)?;
        if kind == Kind::Busy {
            lab.network.shape(SOURCE, Some(SLOW))?;
        }
        let ordered = Scene::order(lab, way, &guest).await;
        let reached = until_within(COMES_WITHIN, "the point is reached", async || {
            Ok(point.is_reached(lab)?.then_some(()))
        })
        .await;
        if kind == Kind::Busy {
            lab.network.shape(SOURCE, None)?;
        }
        let attempt = ordered?;
        if reached.is_ok() {
            return Ok(Scene {
                guest,
                attempt,
                way,
                judge,
            });
        }
        fresh(lab).await?;
        missed(lab, attempt, guest).await?;
    }
    bail!("{point:?} was missed {MOST_MISSED} times")
}

/// A case for each row and flow.
macro_rules! rows {
    ($($managed:ident, $peer_to_peer:ident: $moment:ident, $fault:expr, $kind:ident, $expected:ident;)*) => {
        $(
            pub async fn $managed(lab: &mut Lab) -> anyhow::Result<()> {
                run(lab, Row {
                    moment: $moment,
                    fault: $fault,
                    kind: Kind::$kind,
                    way: MANAGED,
                    expected: $expected,
                })
                .await
            }

            pub async fn $peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
                run(lab, Row {
                    moment: $moment,
                    fault: $fault,
                    kind: Kind::$kind,
                    way: PEERS,
                    expected: $expected,
                })
                .await
            }
        )*
    };
}

rows! {
    cell_source_hypervisor_dies_before_the_seal_managed, cell_source_hypervisor_dies_before_the_seal_peer_to_peer:
        SEAL, Fault::Hypervisor(SOURCE), Busy, LOST;
    cell_source_hypervisor_dies_before_the_switchover_managed, cell_source_hypervisor_dies_before_the_switchover_peer_to_peer:
        SWITCHOVER, Fault::Hypervisor(SOURCE), Busy, LOST;
    cell_source_hypervisor_dies_stream_completed_managed, cell_source_hypervisor_dies_stream_completed_peer_to_peer:
        COMPLETED, Fault::Hypervisor(SOURCE), Busy, MOVED;
    cell_source_hypervisor_dies_loaded_managed, cell_source_hypervisor_dies_loaded_peer_to_peer:
        LOADED, Fault::Hypervisor(SOURCE), Busy, MOVED;
    cell_destination_hypervisor_dies_before_the_seal_managed, cell_destination_hypervisor_dies_before_the_seal_peer_to_peer:
        SEAL, Fault::Hypervisor(DESTINATION), Busy, STAYS;
    cell_destination_hypervisor_dies_before_the_switchover_managed, cell_destination_hypervisor_dies_before_the_switchover_peer_to_peer:
        SWITCHOVER, Fault::Hypervisor(DESTINATION), Busy, STAYS;
    cell_destination_hypervisor_dies_before_the_switchover_idle_managed, cell_destination_hypervisor_dies_before_the_switchover_idle_peer_to_peer:
        SWITCHOVER, Fault::Hypervisor(DESTINATION), Idle, STAYS;
    cell_destination_hypervisor_dies_stream_completed_managed, cell_destination_hypervisor_dies_stream_completed_peer_to_peer:
        COMPLETED, Fault::Hypervisor(DESTINATION), Busy, STAYS;
    cell_destination_hypervisor_dies_loaded_managed, cell_destination_hypervisor_dies_loaded_peer_to_peer:
        LOADED, Fault::Hypervisor(DESTINATION), Busy, STAYS;
    // Its agent has looked already whether it lives: it finds the death before it writes down that it lets the guest run,
    // and proves that it never ran, or after, and then nobody can know any more.
    cell_destination_hypervisor_dies_told_go_managed, cell_destination_hypervisor_dies_told_go_peer_to_peer:
        TOLD_GO, Fault::Hypervisor(DESTINATION), Busy, STAYS_OR_LOST;
    cell_stream_cut_before_the_seal_managed, cell_stream_cut_before_the_seal_peer_to_peer:
        SEAL, Fault::StreamCut, Busy, STAYS;
    cell_stream_cut_before_the_switchover_managed, cell_stream_cut_before_the_switchover_peer_to_peer:
        SWITCHOVER, Fault::StreamCut, Busy, STAYS;
    cell_stream_cut_before_the_switchover_idle_managed, cell_stream_cut_before_the_switchover_idle_peer_to_peer:
        SWITCHOVER, Fault::StreamCut, Idle, STAYS;
    // Whoever is told first decides; both sides come to the same end.
    cell_cancelled_before_the_seal_managed, cell_cancelled_before_the_seal_peer_to_peer:
        SEAL, Fault::Cancel, Busy, EITHER;
    cell_cancelled_before_the_switchover_managed, cell_cancelled_before_the_switchover_peer_to_peer:
        SWITCHOVER, Fault::Cancel, Busy, EITHER;
    cell_cancelled_loaded_managed, cell_cancelled_loaded_peer_to_peer:
        LOADED, Fault::Cancel, Busy, EITHER;
}
