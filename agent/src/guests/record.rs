//! What is kept on disk about a guest, so that a restarted agent finds it again.

use godwit_handover::{Epoch, Terms};
use serde::{Deserialize, Serialize};

use super::types::GuestIdentity;
use crate::hypervisor::ProcessRecord;

/// A guest's record on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestEntry {
    /// Which guest.
    pub identity: GuestIdentity,
    /// The JSON of its definition, as it came.
    pub definition: String,
    /// The epoch under which this host holds it, or (arriving) at which the source does.
    pub epoch: Epoch,
    /// What this host has to do with it.
    pub standing: Standing,
    /// The kernel's boot id when this was written.
    pub boot_id: String,
    /// The unprivileged user whose process it is.
    pub user: Option<u32>,
    /// Its tap devices.
    pub taps: Vec<String>,
}

/// How far this host is with a guest. Each step is on disk before the next one is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// Its process may or may not have been started; it has never been let run.
    Launching,
    /// This host holds it.
    Held {
        /// Its process.
        process: ProcessRecord,
        /// Since when it has run here, Unix time in microseconds; `None` until its first run is confirmed.
        since_micros: Option<i64>,
        /// The migration by which it came.
        arrived_by: Option<String>,
    },
    /// A process that is to wait for it may or may not have been started; nothing has been received.
    LaunchingIncoming {
        /// Its migration.
        terms: Terms,
    },
    /// A process waits for it or has received it. Whether it has run is the migration's journal to say.
    Arriving {
        /// Its migration.
        terms: Terms,
        /// Its process.
        process: ProcessRecord,
    },
    /// It was transient and has ended by itself. Of what this host had of it only this note is kept, so that an
    /// order under the same epoch does not start it a second time.
    Ended {
        /// Its process, until that is gone for certain.
        process: Option<ProcessRecord>,
        /// Since when it had run here, Unix time in microseconds.
        since_micros: Option<i64>,
        /// How it ended.
        ending: Ending,
        /// How that is known, for people.
        why: String,
    },
}

/// How a transient guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// It powered itself off.
    PoweredOff,
    /// Its process is gone, and nothing says that it had powered off.
    ProcessGone,
}

impl GuestEntry {
    /// Whether only the note is left of the guest: its definition is forgotten.
    pub fn is_forgotten(&self) -> bool {
        matches!(self.standing, Standing::Ended { .. }) && self.definition.is_empty()
    }
}

impl Standing {
    /// The guest's process, once it is known.
    pub fn process(&self) -> Option<&ProcessRecord> {
        match self {
            Self::Launching | Self::LaunchingIncoming { .. } => None,
            Self::Held { process, .. } | Self::Arriving { process, .. } => Some(process),
            Self::Ended { process, .. } => process.as_ref(),
        }
    }

    /// The migration by which the guest is arriving.
    pub fn arriving(&self) -> Option<&Terms> {
        match self {
            Self::LaunchingIncoming { terms } | Self::Arriving { terms, .. } => Some(terms),
            Self::Launching | Self::Held { .. } | Self::Ended { .. } => None,
        }
    }
}
