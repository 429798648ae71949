//! The source's side of a migration: the only place that says Go.
//!
//! ```text
//! BeginJournal → Begun → Connecting → Streaming → Sealing → Sealed → Gate → Switching → GoJournal → GoSent
//!                                         └───────(unsealed)───────────┘    → ReleaseJournal → Releasing → Released
//! any of them up to Gate → AbortJournal → Undoing → Restoring → Aborted
//! Switching, GoSent, with a record read to say Reverted → AbortJournal → Undoing → Reclaiming → Restoring → Aborted
//! Switching, in doubt → DecideJournal → Deciding → with a record read to say Aborted: as above
//!                                               → with a record read to say Committed: Yielded → ReleaseJournal → …
//! ```
//! Up to `Gate` the source resumes on its own. From `Switching` on (rule 1) it does so only on a record that was
//! read to say Aborted or Reverted. Go is said only after it was journaled (rule 2), and an abort is journaled
//! before it is begun and forbids Go for ever.

mod ending;
mod machine;
mod orders;
mod recovery;
mod stage;
mod stream;

use serde::{Deserialize, Serialize};

pub use recovery::SourceFacts;
use stage::{Reading, Stage};

use crate::convergence::Pass;
use crate::gates::Gates;
use crate::terms::{Cause, Channel, Go, RecordView, Terms, Wanted};

/// The source's side of one migration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    pub(crate) terms: Terms,
    pub(crate) gates: Gates,
    pub(crate) budget: std::time::Duration,
    pub(crate) wanted: Wanted,
    pub(crate) path_proven: bool,
    /// The journal has failed.
    pub(crate) journal_broken: bool,
    /// The record is being read, and on which order.
    pub(crate) reading: Option<Reading>,
    pub(crate) stage: Stage,
}

/// What happens to the source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SourceEvent {
    /// Order: take the migration on. Only for [`Source::begin`]'s repetition.
    Begin(Terms),
    /// Order: send the guest.
    Perform(Channel),
    /// Order: the destination has loaded the guest (Ready).
    Ready,
    /// Order: the destination holds the guest under these terms; let go.
    Confirm,
    /// Order: give up, if it is not too late.
    Abort(Cause),
    /// Order: the record may have been decided; read it.
    Settle,
    /// Order: the destination is not heard; have the record decide.
    Arbitrate(Cause),
    /// The driver has proved, or has ceased to prove, that Ready and Go get through and the API server answers.
    PathProven(bool),
    /// The driver has been silent for longer than the keepalive allows.
    DriverSilent,
    /// The journal holds the entry.
    Journaled(SourceEntry),
    /// The journal does not take entries any more.
    JournalFailed,
    /// The stream has started.
    StreamStarted,
    /// The stream could not be started.
    StreamNotStarted(Cause),
    /// The guest's dirty pages were just collected.
    Pass(Pass),
    /// The virtual CPUs stand still; how the stream stood *after* that was seen.
    Paused {
        /// Whether the stream was still active then: the proof of the seal.
        stream_active: bool,
    },
    /// The pause was refused or not answered.
    PauseFailed,
    /// The hypervisor waits before the switchover.
    BeforeSwitchover,
    /// The hypervisor refused to go on, and still waits before the switchover.
    SwitchOverRefused,
    /// The stream has been acknowledged by the destination's hypervisor.
    StreamCompleted,
    /// The stream has failed.
    StreamFailed {
        /// Whether the guest runs: the hypervisor may have restarted it by itself.
        running: bool,
    },
    /// The stream was cancelled and no stream is left.
    StreamCancelled,
    /// The guest's disks have been given up.
    DisksReleased,
    /// The guest's disks have been taken back.
    DisksReclaimed,
    /// The guest does what it did before the migration (or is in a stopped state of its own).
    Restored,
    /// The hypervisor refused it; to be tried again.
    RestoreFailed,
    /// The record, read fresh. `None`: it could not be read, or is missing, which is evidence of nothing.
    RecordRead(Option<RecordView>),
    /// The process was destroyed by us.
    Destroyed,
    /// Someone, or the guest itself, has changed what the guest does.
    GuestWants(Wanted),
    /// The guest powered off, panicked or stopped on an I/O error.
    GuestEnded,
    /// The process is gone, by its pidfd.
    Died,
}

/// What the source wants done. The answer to each comes back as an event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SourceEffect {
    /// Make the entry durable; answered by `Journaled` or `JournalFailed`.
    Journal(SourceEntry),
    /// Connect, hand the channel to the hypervisor, start the stream with the narrowest limits of its own;
    /// answered by `StreamStarted` or `StreamNotStarted`.
    StartStream(Channel),
    /// Stop the virtual CPUs, then look at the stream; answered by `Paused` or `PauseFailed`.
    Pause,
    /// Lift the stream's limits for the rest. Not answered: a failure only costs time.
    LiftLimits,
    /// Let the hypervisor go on to the switchover; answered by what the stream does, or `SwitchOverRefused`.
    SwitchOver,
    /// End the stream; answered by `StreamCancelled`.
    CancelStream,
    /// Give the disks up; answered by `DisksReleased`. To be tried until it works or the process dies.
    ReleaseDisks,
    /// Take the disks back; answered by `DisksReclaimed`.
    ReclaimDisks,
    /// Make the guest do what it did before; answered by `Restored` or `RestoreFailed`.
    Restore(Wanted),
    /// Read the guest's record, fresh; answered by `RecordRead`.
    ReadRecord,
    /// Write Aborted into the record by compare-and-swap, if it is undecided; answered by `RecordRead` with what it
    /// says then. A repetition comes after a pause.
    DecideAborted,
    /// Destroy the process; answered by `Destroyed`.
    Destroy,
}

/// What the source's journal holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SourceEntry {
    /// The migration was taken on.
    Begun {
        /// Its terms.
        terms: Terms,
        /// The downtime that the user allows, in microseconds.
        budget_micros: u64,
    },
    /// The guest will be stopped for the switchover; this is what it did before.
    Intent {
        /// What the guest is to do afterwards, wherever it is then.
        wanted: Wanted,
    },
    /// The guest was seen to stand still while the stream was active.
    Sealed,
    /// Go will never be said.
    AbortIntent {
        /// Why.
        cause: Cause,
        /// Whether a switchover was under way (its disks may have to be taken back).
        switchover: bool,
    },
    /// Go will never be said, and the record is asked to say Aborted.
    Arbitrating {
        /// Why.
        cause: Cause,
    },
    /// Go was said.
    GoSent(Go),
    /// The record was read to name the destination; the process may be destroyed.
    Released,
    /// The guest is here as it was.
    Aborted {
        /// Why.
        cause: Cause,
    },
    /// The guest's process died and no copy of it is known.
    Lost {
        /// Why.
        cause: Cause,
    },
}

/// What the source tells the driver: the whole of its state, so that a lost or repeated report does no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SourceReport {
    /// The guest is protected against changes; nothing moves yet.
    Begun,
    /// Memory travels. The source resumes on its own if anything fails.
    Streaming,
    /// The guest is stopped for the switchover; the source still resumes on its own if anything fails.
    Stopped {
        /// Whether it was stopped while the stream was active.
        sealed: bool,
    },
    /// The switchover was ordered; the source waits for its stream and for Ready.
    Switching {
        /// Whether a restart by itself is out of the question.
        sealed: bool,
        /// Whether Ready has arrived.
        ready: bool,
        /// What the guest is to do; `None` from an agent that does not tell it.
        wanted: Option<Wanted>,
    },
    /// The stream failed after the switchover was ordered, and whether the destination has the guest is not known
    /// here: stopped until Ready arrives or the record is read to say Reverted.
    InDoubt {
        /// Whether a restart by itself is out of the question. If it is, Ready is all that is missing.
        sealed: bool,
        /// Whether Ready has arrived.
        ready: bool,
        /// What the guest is to do; `None` from an agent that does not tell it.
        wanted: Option<Wanted>,
    },
    /// Go will never be said: the record is being asked whether the guest comes back here.
    Deciding {
        /// Why.
        cause: Cause,
        /// Whether the source's process is dead; what the guest is to do then.
        dead: Option<Wanted>,
        /// Whether a restart by itself is out of the question.
        sealed: bool,
    },
    /// The guest stands still after the switchover was ordered, and nothing can be promised any more, because the journal
    /// takes no entries: neither Go nor that it is never said.
    Blocked {
        /// Whether a restart by itself is out of the question.
        sealed: bool,
        /// What the guest is to do.
        wanted: Wanted,
    },
    /// The record was read to say Committed: the guest is the destination's, and stands still here until the record
    /// names the destination as its holder.
    Yielded,
    /// Go: the destination may run the guest.
    GoSent(Go),
    /// The source's process is gone by our own hand. Final.
    Released,
    /// The guest is being brought back to what it did before.
    Aborting(Cause),
    /// The guest is at the source as it was. Go was not and never will be said. Final.
    Aborted(Cause),
    /// The source's process died before the handover; whether the destination has loaded the guest is not known
    /// here.
    Died,
    /// The guest is gone. Final.
    Lost(Cause),
}
