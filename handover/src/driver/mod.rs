//! The driver of the phases: the controller in managed direct, the source's agent in peer to peer.
//!
//! It is level-triggered: it knows nothing but the last report of each side and what the record said, and gives
//! the order that follows from them. So it may die at any moment; the next one starts from the same reports.
//! It decides nothing about who may run the guest: only the source says Go and only the destination reverts. Where one
//! of them is not heard it has the other ask the record.

mod fenced;
mod given;
mod machine;
mod path;
mod silence;
mod stage;

pub use given::{OrderKey, OrdersGiven};
pub use path::PathProof;

use serde::{Deserialize, Serialize};

use crate::destination::DestinationReport;
use crate::source::SourceReport;
use crate::terms::{Cause, Channel, Go, Phase, RecordView, Standing, Terms};

/// The driver of one migration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Driver {
    pub(crate) terms: Terms,
    pub(crate) cancel: bool,
    pub(crate) source: SideView<SourceReport>,
    pub(crate) destination: SideView<DestinationReport>,
    pub(crate) record: Option<RecordView>,
    /// The channel that the destination last offered.
    pub(crate) channel: Option<Channel>,
    pub(crate) give_up: Option<Cause>,
    pub(crate) source_silent: bool,
    pub(crate) destination_silent: bool,
    pub(crate) phase: Phase,
}

/// What the driver knows of a side.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SideView<R> {
    /// Nothing: it has not answered yet.
    Unheard,
    /// It says that it knows no such migration.
    NoSuchMigration,
    /// Its last report.
    Reported(R),
}

/// What happens to the driver.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DriverEvent {
    /// The user asked to stop the migration.
    Cancel,
    /// The source's report; `None`: it knows no such migration.
    Source(Option<SourceReport>),
    /// The destination's report; `None`: it knows no such migration.
    Destination(Option<DestinationReport>),
    /// The record, read fresh or as just written.
    Record(RecordView),
    /// Whether the source has not been heard for longer than a guest is to stand still for it.
    SourceSilent(bool),
    /// Whether the destination has not been heard for longer than a guest is to stand still for it.
    DestinationSilent(bool),
    /// An order before the switchover was refused for good, or could not be delivered in time.
    OrderFailed(Cause),
}

/// What the driver wants done next. Each is idempotent and is given again until the reports move on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DriverEffect {
    /// Arm the record for this migration by compare-and-swap; answered by `Record`.
    ArmRecord,
    /// To the source: take the migration on.
    Begin,
    /// To the destination: prepare.
    Prepare,
    /// To the source: send the guest.
    Perform(Channel),
    /// To the source: the destination has loaded the guest.
    Ready,
    /// To the destination: the source's Go.
    Finish(Go),
    /// Advance the record by compare-and-swap: Committed, holder = destination, epoch + 1; answered by `Record`.
    AdvanceRecord,
    /// To the source: let go.
    Confirm,
    /// To the source: give up, if it is not too late.
    AbortSource(Cause),
    /// To the destination: give the copy up.
    AbortDestination(Cause),
    /// Write the destination's or the source's final report into the record; answered by `Record`.
    DecideRecord(crate::terms::Decision),
    /// To the source: read the record.
    Settle,
    /// To the destination: the source's guest does not run again by itself.
    TellStanding(Standing),
    /// To the source: have the record decide.
    ArbitrateSource(Cause),
    /// To the destination: have the record decide.
    ArbitrateDestination,
}

/// How a migration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// The destination has the guest at the next epoch, and the source's process is gone.
    Succeeded {
        /// Whether the guest runs there; otherwise it was taken over stopped, as it was.
        running: bool,
    },
    /// The guest is at the source as it was; nothing is left at the destination.
    Aborted(Cause),
    /// The only valid image died.
    GuestLost(Cause),
}

/// Where the driver stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Stand {
    /// It waits for a report or an answer.
    Waiting {
        /// For what, as a stable word.
        wait: Wait,
    },
    /// It is over.
    Ended(Outcome),
}

/// What the driver waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Wait {
    /// The source's next report.
    Source,
    /// The destination's next report.
    Destination,
    /// The answer to a write of the record.
    Record,
    /// The handover is in doubt and cannot be decided yet: the guest is kept stopped at both sides.
    Decision,
}
