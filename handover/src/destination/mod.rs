//! The destination's side of a migration: it runs the guest only with a received Go, or with its own commitment of the
//! record.
//!
//! ```text
//! PrepareJournal → Launching → Prepared → Receiving → Loaded → ContJournal → Starting → Holding
//!                                                       ↑ cont refused └──────┘
//! Loaded, in doubt, and the source is known to stand still: CommitJournal → Committing → ContJournal
//! Loaded, with a Go, under strict terms: CommitJournal → Committing → Marking → ContJournal
//! any of them before ContJournal → RevertJournal → Destroying → Reverted
//! ```
//! `cont-issued` is journaled before the guest is let run (rule 3). Giving the copy up is journaled first too
//! (rule 4) and forbids running it for ever. A loaded guest is never given up because of a time-out.

mod arbitration;
mod machine;
mod recovery;

use serde::{Deserialize, Serialize};

pub use recovery::DestinationFacts;

use crate::gates::Gates;
use crate::terms::{Cause, Channel, Go, RecordView, Standing, Terms};

/// The destination's side of one migration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    pub(crate) terms: Terms,
    pub(crate) gates: Gates,
    /// How often the hypervisor has refused to let the guest run.
    pub(crate) refusals: u8,
    /// That the source's guest does not run again by itself, once that was told.
    pub(crate) told: Option<Standing>,
    pub(crate) stage: Stage,
}

/// Where the destination stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    PrepareJournal,
    Launching,
    Prepared {
        channel: Channel,
    },
    Receiving,
    Loaded {
        journal_broken: bool,
    },
    /// Loaded, and the record is read: somebody may have decided.
    Asking,
    /// That the record is to be committed is being journaled.
    CommitJournal {
        go: Go,
    },
    /// Committed is being written into the record.
    Committing {
        go: Go,
    },
    /// Strict: that the guest is let run is being written into the record.
    Marking {
        go: Go,
    },
    ContJournal {
        go: Go,
    },
    Starting {
        go: Go,
    },
    RefusedJournal {
        go: Go,
    },
    Holding {
        running: bool,
    },
    RevertJournal {
        cause: Cause,
        alive: bool,
    },
    Destroying {
        cause: Cause,
    },
    Reverted {
        cause: Cause,
    },
    Lost {
        cause: Cause,
    },
}

/// What happens to the destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DestinationEvent {
    /// Order: prepare. Only for [`Destination::prepare`]'s repetition.
    Prepare(Terms),
    /// Order: the source's Go.
    Finish(Go),
    /// Order: the source keeps the guest; give the copy up.
    Abort(Cause),
    /// Order, or rather news: the source's guest does not run again by itself.
    SourceStands(Standing),
    /// Order: the source is not heard; have the record decide.
    Arbitrate,
    /// The record, read fresh. `None`: it could not be read, or is missing, which is evidence of nothing.
    RecordRead(Option<RecordView>),
    /// The driver has been silent for longer than the keepalive allows.
    DriverSilent,
    /// Nobody has opened the channel in time.
    NobodyConnected,
    /// The journal holds the entry.
    Journaled(DestinationEntry),
    /// The journal does not take entries any more.
    JournalFailed,
    /// The process waits for a stream, and the channel can be opened.
    Launched(Channel),
    /// The process could not be started, and none is left.
    LaunchFailed,
    /// The channel was opened with the right word and handed to the hypervisor.
    Connected,
    /// The guest is loaded and stands still.
    Loaded,
    /// The stream failed before the guest was loaded.
    StreamFailed,
    /// The virtual CPUs run.
    Resumed,
    /// The hypervisor refused to let the guest run, and it was seen to stand still after that.
    ResumeRefused,
    /// The guest arrived powered off, panicked or stopped on an I/O error: there is nothing to let run.
    NotRunnable,
    /// The process was destroyed by us.
    Destroyed,
    /// The process is gone, by its pidfd.
    Died,
}

/// What the destination wants done. The answer to each comes back as an event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DestinationEffect {
    /// Make the entry durable; answered by `Journaled` or `JournalFailed`.
    Journal(DestinationEntry),
    /// Start the process and open a channel for it; answered by `Launched` or `LaunchFailed`.
    Launch,
    /// Let the guest run; answered by `Resumed`, `ResumeRefused`, `NotRunnable` or `Died`. Without an answer, look
    /// at what the guest does until there is one. A repetition comes after a pause.
    Resume,
    /// Read the guest's record, fresh; answered by `RecordRead`.
    ReadRecord,
    /// Write Committed into the record by compare-and-swap, if it is undecided; answered by `RecordRead` with what it
    /// says then. A repetition comes after a pause.
    DecideCommitted,
    /// Strict: write into the committed record that the guest is let run; answered by `RecordRead` with what it says
    /// then. A repetition comes after a pause.
    MarkStarted,
    /// Destroy the process and close the channel; answered by `Destroyed`.
    Destroy,
}

/// What the destination's journal holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DestinationEntry {
    /// The migration was taken on.
    Prepared {
        /// Its terms.
        terms: Terms,
    },
    /// The record is asked to say Committed; with it the guest is let run as this says.
    CommitIntent(Go),
    /// The guest is about to be let run.
    ContIssued(Go),
    /// The hypervisor refused that, and the guest was seen to stand still.
    ContRefused,
    /// The guest was taken over as it is, stopped.
    TakenOver(Go),
    /// The guest will never run here under these terms.
    RevertIntent {
        /// Why.
        cause: Cause,
    },
    /// The process is gone.
    Reverted {
        /// Why.
        cause: Cause,
    },
}

/// What the destination tells the driver: the whole of its state.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DestinationReport {
    /// The process is being started.
    Preparing,
    /// The channel can be opened.
    Prepared(Channel),
    /// Memory arrives.
    Receiving,
    /// The guest is loaded and stands still (Ready).
    Loaded,
    /// The guest is loaded, and may not be let run because the journal takes no entries.
    Blocked,
    /// The record is being asked whether the guest is to run here.
    Deciding,
    /// The guest is being let run.
    Starting,
    /// The destination has the guest.
    Holding {
        /// Whether it was let run; otherwise it was taken over stopped, as it was.
        running: bool,
    },
    /// The copy is being given up.
    Reverting(Cause),
    /// The copy is gone and never ran. Final.
    Reverted(Cause),
    /// The process died after the guest may have run here. Final.
    Lost(Cause),
}
