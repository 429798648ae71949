//! A hypervisor's late failures, at either side of the switchover: its peer dies, it dies itself, the stream is cut, the
//! user cancels. The cells are data; each row is tried in both flows and has a name for each.

use std::path::Path;
use std::time::Duration;

use anyhow::{bail, ensure};
use godwit_crds::migration::ControlFlow::{self, ManagedDirect, PeerToPeer};
use godwit_lab::Lab;
use godwit_lab::cases::LeftOut;
use godwit_lab::hosts::MIGRATION_PORTS;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::point::{Deed, Point};
use super::scene::{Scene, fresh};
use super::table::Cell;
use crate::attempt::{Attempt, End, migrations};
use crate::crashes::{MOST_MISSED, SLOW, Victim, missed};
use crate::guest::{Guest, until_within};

/// A point that is not reached by then has been passed by another way.
const COMES_WITHIN: Duration = Duration::from_secs(30);

const SOURCE: usize = 1;
const DESTINATION: usize = 2;

const MOVED: &[End] = &[End::Moved];
const STAYS: &[End] = &[End::Stays];
const LOST: &[End] = &[End::Lost];
const EITHER: &[End] = &[End::Stays, End::Moved];
const STAYS_OR_LOST: &[End] = &[End::Stays, End::Lost];

/// What happens at the point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The hypervisor of that host dies while the agent stands at it.
    Hypervisor(usize),
    /// The connections on which memory travels are reset at both ends while the agent stands at it.
    StreamCut,
    /// The user cancels while the agent stands at it.
    Cancel,
}

/// Which guest is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Little to move: its hypervisor converges by itself, or is stopped just before.
    Idle,
    /// It changes its memory all the time, and is always sealed.
    Busy,
}

/// Where an agent is held.
#[derive(Clone, Copy, Debug)]
struct Moment {
    point: Point,
    phase: &'static str,
}

/// The guest runs, and is to be stopped while its stream is active.
const SEAL: Moment = Moment {
    point: Point::of(SOURCE, "source.before.Pause"),
    phase: "before the seal",
};
/// All but the last of its state has gone over.
const SWITCHOVER: Moment = Moment {
    point: Point::of(SOURCE, "source.before.SwitchOver"),
    phase: "before the switchover",
};
const COMPLETED: Moment = Moment {
    point: Point::of(SOURCE, "source.event.StreamCompleted"),
    phase: "stream completed",
};
const LOADED: Moment = Moment {
    point: Point::of(DESTINATION, "destination.event.Loaded"),
    phase: "loaded, before Ready",
};
/// Nothing is written down yet.
const TOLD_GO: Moment = Moment {
    point: Point::of(DESTINATION, "destination.event.Finish"),
    phase: "Go arrives",
};

#[derive(Clone, Copy, Debug)]
struct Row {
    moment: Moment,
    fault: Fault,
    kind: Kind,
    flow: ControlFlow,
    expected: &'static [End],
}

impl Fault {
    fn told(self) -> &'static str {
        match self {
            Self::Hypervisor(SOURCE) => "the source's hypervisor dies",
            Self::Hypervisor(_) => "the destination's hypervisor dies",
            Self::StreamCut => "the stream is cut",
            Self::Cancel => "the user cancels",
        }
    }

    /// Has it happen, and the agent go on.
    async fn strikes(
        self,
        lab: &mut Lab,
        point: Point,
        guest: &Guest,
        attempt: &Attempt,
    ) -> anyhow::Result<()> {
        match self {
            Self::Hypervisor(SOURCE) => Victim::SourceHypervisor.kill(lab, guest)?,
            Self::Hypervisor(_) => Victim::DestinationHypervisor.kill(lab, guest)?,
            Self::StreamCut => reset_stream(lab)?,
            Self::Cancel => {
                let patch = Patch::Merge(json!({"spec": {"cancel": true}}));
                migrations(lab)
                    .patch(&attempt.name, &PatchParams::default(), &patch)
                    .await?;
            }
        }
        point.release(lab)
    }
}

/// Resets what comes in at the destination's migration ports, as a firewall does that has forgotten it.
fn reset_stream(lab: &mut Lab) -> anyhow::Result<()> {
    let (first, last) = MIGRATION_PORTS;
    let output = lab
        .host(DESTINATION)?
        .command(Path::new("ss"))
        .args(["-HKt", "state", "established"])
        .arg(format!("( sport >= :{first} and sport <= :{last} )"))
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ss: {said}");
    ensure!(!output.stdout.is_empty(), "no connection was reset: {said}");
    Ok(())
}

async fn run(lab: &mut Lab, row: Row) -> anyhow::Result<()> {
    let Moment { point, phase } = row.moment;
    if !lab.network.separate() && (row.kind == Kind::Busy || row.fault == Fault::StreamCut) {
        return Err(LeftOut("links cannot be shaped or cut").into());
    }
    for _ in 0..MOST_MISSED {
        fresh(lab).await?;
        let guest = match row.kind {
            Kind::Idle => Guest::start(lab).await?,
            Kind::Busy => Guest::start_busy(lab).await?,
        };
        point.arm(lab, Deed::Wait)?;
        if row.kind == Kind::Busy {
            lab.network.shape(SOURCE, Some(SLOW))?;
        }
        let ordered = Attempt::order_driven(lab, row.flow, &guest.name, "h2").await;
        let reached = until_within(COMES_WITHIN, "the point is reached", async || {
            Ok(point.is_reached(lab)?.then_some(()))
        })
        .await;
        if row.kind == Kind::Busy {
            lab.network.shape(SOURCE, None)?;
        }
        let attempt = ordered?;
        if reached.is_err() {
            fresh(lab).await?;
            missed(lab, attempt, guest).await?;
            continue;
        }
        row.fault.strikes(lab, point, &guest, &attempt).await?;
        let cell = Cell {
            phase,
            fault: row.fault.told(),
            flow: row.flow,
            expected: row.expected,
        };
        Scene { guest, attempt }.ends(lab, cell).await?;
        return Ok(());
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
                    flow: ManagedDirect,
                    expected: $expected,
                })
                .await
            }

            pub async fn $peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
                run(lab, Row {
                    moment: $moment,
                    fault: $fault,
                    kind: Kind::$kind,
                    flow: PeerToPeer,
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
