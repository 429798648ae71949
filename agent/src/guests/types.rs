//! The words of the guests' manager: what it is asked and what it answers.

use std::path::PathBuf;
use std::sync::Arc;

use godwit_crds::virtual_machine::GuestState;
use godwit_handover::Epoch;
use serde::{Deserialize, Serialize};

use super::definition::Definition;
use crate::hypervisor::Guest;

/// A VirtualMachine, by UID for programs and by name for people.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GuestIdentity {
    /// The VirtualMachine's UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// An order to start a guest.
#[derive(Clone, Debug)]
pub struct StartRequest {
    /// Which guest.
    pub identity: GuestIdentity,
    /// The epoch under which its record lets this host run it.
    pub epoch: Epoch,
    /// What to start.
    pub definition: Definition,
    /// Start it again if it was started under this epoch and is gone.
    pub again: bool,
}

/// What this host has to do with a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// It holds the guest, by the guest's record.
    Held,
    /// It holds the guest and the migration of that UID protects it against changes.
    Leaving {
        /// The migration's UID.
        migration: String,
    },
    /// It waits for the guest, which has never run here under this migration.
    Arriving {
        /// The migration's UID.
        migration: String,
    },
}

/// A guest as the agent sees it, for answers and for the host's report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestView {
    /// Which guest.
    pub identity: GuestIdentity,
    /// The epoch under which this host holds it, or (arriving) at which the source does.
    pub epoch: Epoch,
    /// What it does.
    pub state: GuestState,
    /// Since when it has run here, Unix time in microseconds; `None` if it has not, or it is not known.
    pub since_micros: Option<i64>,
    /// What this host has to do with it.
    pub role: Role,
    /// Why the guest is not what one expects (its process is gone, its record cannot be read), for people.
    pub note: Option<String>,
}

/// A guest whose process lives on this host, with everything that its migration needs.
#[derive(Clone)]
pub struct Held {
    /// Which guest.
    pub identity: GuestIdentity,
    /// Its definition, validated, and the bytes it was read from.
    pub definition: Definition,
    /// The epoch under which this host holds it, or (arriving) at which the source does.
    pub epoch: Epoch,
    /// Its process.
    pub guest: Arc<dyn Guest>,
    /// Its own directory on this host.
    pub directory: PathBuf,
    /// What this host has to do with it.
    pub role: Role,
}
