//! The stages of the source, and what they have in common.

use crate::terms::{Cause, Go};

/// Where the source stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    BeginJournal,
    Begun,
    Connecting,
    Streaming {
        intent_journaled: bool,
    },
    /// The pause was ordered while the stream was active.
    Sealing,
    /// Stopped while the stream was still active: a late failure leaves it stopped.
    Sealed {
        entry: SealEntry,
        intent_journaled: bool,
    },
    /// The hypervisor waits before the switchover.
    Gate {
        sealed: Option<SealEntry>,
        intent_journaled: bool,
    },
    Switching {
        sealed: bool,
        own: Own,
        peer_loaded: bool,
    },
    GoJournal {
        go: Go,
        own: Own,
    },
    GoSent {
        go: Go,
        own: Own,
    },
    /// That the record is asked, and Go never said, is being journaled.
    DecideJournal {
        cause: Cause,
        sealed: bool,
        own: Own,
    },
    /// Aborted is being written into the record, or what it says is being read.
    Deciding {
        cause: Cause,
        sealed: bool,
        own: Own,
    },
    /// The record says Committed.
    Yielded {
        own: Own,
    },
    ReleaseJournal {
        go: Option<Go>,
    },
    Releasing {
        go: Option<Go>,
    },
    Released,
    AbortJournal {
        cause: Cause,
        undo: Undo,
    },
    Undoing {
        cause: Cause,
        /// A switchover that has come to nothing: the disks may have to be taken back.
        switchover: bool,
    },
    Reclaiming {
        cause: Cause,
    },
    Restoring {
        cause: Cause,
    },
    Aborted {
        cause: Cause,
    },
    Lost {
        cause: Cause,
    },
}

/// On which order the record is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reading {
    /// The destination has reported that it holds the guest: an advanced record lets the source go.
    Confirm,
    /// The driver believes that the destination has given the guest up.
    Settle,
    /// The source itself has asked the record to decide.
    Decide,
}

/// Whether the proof of the seal is on disk yet. It is written while the rest of the memory travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SealEntry {
    Writing,
    Written,
}

/// What is left of the source's own stream and process after the switchover was ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Own {
    Running,
    Completed,
    /// The stream failed and the guest is stopped; its disks may still be locked by this process.
    Failed,
    /// The same with the disks given up.
    Released,
    Dead,
}

/// What has to be undone by an abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Undo {
    /// Nothing was begun.
    Nothing,
    /// A stream that has not switched over.
    Stream,
    /// A switchover that the record says has come to nothing.
    Switchover,
    /// The guest already runs here; but a pause may still be on its way to it.
    RunsAlready,
}

/// What the stages have in common for most events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// Nothing moves yet.
    Before,
    /// A stream that has not switched over: the source resumes on its own if anything fails.
    Free,
    /// The switchover was ordered: only a record that was read brings the guest back.
    Bound,
    /// The record names the destination: the process is on its way out.
    LettingGo,
    /// The process is gone by our own hand. Final.
    Released,
    /// The guest is being brought back.
    GivingUp,
    /// The guest is here as it was, or is lost. Final.
    Over,
}

impl Stage {
    /// What is left of the source's own stream and process, from the switchover on.
    pub(crate) fn own_mut(&mut self) -> Option<&mut Own> {
        match self {
            Stage::Switching { own, .. }
            | Stage::GoJournal { own, .. }
            | Stage::GoSent { own, .. }
            | Stage::DecideJournal { own, .. }
            | Stage::Deciding { own, .. }
            | Stage::Yielded { own } => Some(own),
            Stage::BeginJournal
            | Stage::Begun
            | Stage::Connecting
            | Stage::Streaming { .. }
            | Stage::Sealing
            | Stage::Sealed { .. }
            | Stage::Gate { .. }
            | Stage::ReleaseJournal { .. }
            | Stage::Releasing { .. }
            | Stage::Released
            | Stage::AbortJournal { .. }
            | Stage::Undoing { .. }
            | Stage::Reclaiming { .. }
            | Stage::Restoring { .. }
            | Stage::Aborted { .. }
            | Stage::Lost { .. } => None,
        }
    }

    /// Every stage belongs to one group; a new one has to say to which.
    pub(crate) fn group(&self) -> Group {
        match self {
            Stage::BeginJournal | Stage::Begun => Group::Before,
            Stage::Connecting
            | Stage::Streaming { .. }
            | Stage::Sealing
            | Stage::Sealed { .. }
            | Stage::Gate { .. } => Group::Free,
            Stage::Switching { .. }
            | Stage::GoJournal { .. }
            | Stage::GoSent { .. }
            | Stage::DecideJournal { .. }
            | Stage::Deciding { .. }
            | Stage::Yielded { .. } => Group::Bound,
            Stage::ReleaseJournal { .. } | Stage::Releasing { .. } => Group::LettingGo,
            Stage::Released => Group::Released,
            Stage::AbortJournal { .. }
            | Stage::Undoing { .. }
            | Stage::Reclaiming { .. }
            | Stage::Restoring { .. } => Group::GivingUp,
            Stage::Aborted { .. } | Stage::Lost { .. } => Group::Over,
        }
    }
}
