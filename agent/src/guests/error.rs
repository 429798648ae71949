//! Why the guests' manager did not do what it was asked.

use std::sync::Arc;

use godwit_handover::Epoch;
use godwit_protocol::{Category, Fault};

use crate::hypervisor::HypervisorError;
use crate::state::StateError;

/// Why a guest was not started, stopped, protected or received.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// This host does not hold the guest.
    #[error("This host does not hold guest {uid}")]
    NotHere {
        /// The guest's UID.
        uid: String,
    },
    /// The order carries another epoch than the one under which this host holds the guest.
    #[error(
        "The order carries epoch {given}, and this host knows epoch {known}; orders under an old epoch are refused"
    )]
    StaleEpoch {
        /// What this host knows.
        known: Epoch,
        /// What the order carries.
        given: Epoch,
    },
    /// What this host knows of the guest contradicts the order.
    #[error("{0}")]
    Conflict(String),
    /// A migration protects the guest.
    #[error("Migration {migration} of this guest has not ended; wait for it or cancel it")]
    Protected {
        /// Its UID.
        migration: String,
    },
    /// The guest is not in a state in which it can be moved.
    #[error("Only a running or paused guest can be moved; this one is {0}")]
    NotRunning(String),
    /// The hypervisor says that the guest cannot move.
    #[error("The hypervisor cannot move this guest: {0}")]
    NotMigratable(String),
    /// The host has rebooted since the guest was started.
    #[error(
        "This host has rebooted since the guest was started here under epoch {epoch}; it is not started again unless that is asked for"
    )]
    HostRebooted {
        /// The epoch.
        epoch: Epoch,
    },
    /// The guest was started under this epoch and its process is gone.
    #[error(
        "The guest was started here under epoch {epoch} and its process is gone ({why}); it is not started again unless that is asked for"
    )]
    ProcessGone {
        /// The epoch.
        epoch: Epoch,
        /// How it is known.
        why: String,
    },
    /// Another guest or process on this host goes under this name or UID.
    #[error("{0}")]
    NameTaken(String),
    /// The definition is not one that this agent or its hypervisor takes.
    #[error("The definition is refused: {0}")]
    DefinitionRefused(String),
    /// A file, device or bridge of the definition is not on this host.
    #[error("{0}")]
    FileMissing(String),
    /// There is not enough memory left for the guest.
    #[error(
        "The guest needs {needed_mebibytes} MiB of memory and this host has {free_mebibytes} MiB left for guests"
    )]
    InsufficientMemory {
        /// What the guest needs.
        needed_mebibytes: u64,
        /// What is left.
        free_mebibytes: u64,
    },
    /// The hypervisor does not know the machine type.
    #[error("The hypervisor on this host does not know machine type {0}")]
    MachineTypeMissing(String),
    /// The hypervisor cannot give the CPU model.
    #[error("The hypervisor on this host cannot give a guest CPU model {0}")]
    CpuModelMissing(String),
    /// The hypervisor is missing or does not work.
    #[error("{0}")]
    HypervisorUnavailable(String),
    /// The guest's process lives, or may live, and does not answer.
    #[error("{0}; it is left alone and asked again")]
    HypervisorSilent(String),
    /// The hypervisor or the guest's process did not answer, or answered with an error.
    #[error(transparent)]
    Hypervisor(HypervisorError),
    /// The guest's record on this host cannot be read, so the guest is left alone.
    #[error("The guest's record on this host cannot be acted on, so the guest is left alone: {0}")]
    RecordUnreadable(Arc<StateError>),
    /// A journal that cannot be acted on speaks of the guest.
    #[error("{message}; the guest is left alone")]
    JournalUnread {
        /// Whether a newer version wrote it.
        newer: bool,
        /// What is wrong with it.
        message: String,
    },
    /// The guest's GuestRecord could not be read, or is missing: nothing is started on that.
    #[error(
        "The GuestRecord of guest {uid} could not be read by this host's agent, so the guest is not started"
    )]
    RecordUnread {
        /// The guest's UID.
        uid: String,
    },
    /// The state directory took no write.
    #[error("The agent could not write its state: {0}")]
    StateUnwritable(StateError),
    /// The operating system refused something.
    #[error("{action}: {source}")]
    System {
        /// What was tried.
        action: String,
        /// The system's error.
        source: std::io::Error,
    },
}

impl GuestError {
    /// The guest's process lives, or may live, and does not answer.
    pub(super) fn silent(uid: &str) -> Self {
        Self::HypervisorSilent(format!("The process of guest {uid} lives and does not answer"))
    }

    /// The stable word of this error; the table is in docs/conditions.md.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotHere { .. } | Self::NotRunning(_) => "GuestNotRunning",
            Self::StaleEpoch { .. } => "StaleEpoch",
            Self::Conflict(_) => "RecordConflict",
            Self::Protected { .. } => "AnotherMigrationActive",
            Self::NotMigratable(_) => "GuestNotMigratable",
            Self::HostRebooted { .. } => "HostRebooted",
            Self::ProcessGone { .. } => "ProcessGone",
            Self::NameTaken(_) => "NameTaken",
            Self::DefinitionRefused(_) => "DefinitionRefused",
            Self::FileMissing(_) => "FileMissing",
            Self::InsufficientMemory { .. } => "InsufficientMemory",
            Self::MachineTypeMissing(_) => "MachineTypeMissing",
            Self::CpuModelMissing(_) => "CpuModelMissing",
            Self::HypervisorUnavailable(_) => "HypervisorUnavailable",
            Self::HypervisorSilent(_) => "HypervisorUnresponsive",
            Self::Hypervisor(error) => match error {
                HypervisorError::Unavailable(_) | HypervisorError::Died | HypervisorError::System { .. } => {
                    "HypervisorUnavailable"
                }
                HypervisorError::Refused(_) | HypervisorError::Command { .. } => "DefinitionRefused",
                HypervisorError::Deadline { .. } | HypervisorError::Protocol(_) => "HypervisorUnresponsive",
            },
            Self::RecordUnreadable(error) => match error.as_ref() {
                StateError::Newer { .. } => "JournalNewer",
                StateError::Damaged { .. } | StateError::System { .. } | StateError::InUse(_) => {
                    "JournalDamaged"
                }
            },
            Self::JournalUnread { newer: true, .. } => "JournalNewer",
            Self::JournalUnread { newer: false, .. } => "JournalDamaged",
            Self::RecordUnread { .. } => "RecordMissing",
            Self::StateUnwritable(error) => error.reason(),
            Self::System { .. } => "InternalError",
        }
    }

    /// Its category, as it goes over the wire.
    pub fn category(&self) -> Category {
        match self {
            Self::DefinitionRefused(_) => Category::Invalid,
            Self::StaleEpoch { .. }
            | Self::Conflict(_)
            | Self::Protected { .. }
            | Self::HostRebooted { .. }
            | Self::ProcessGone { .. }
            | Self::NameTaken(_) => Category::Conflict,
            Self::NotHere { .. }
            | Self::NotRunning(_)
            | Self::NotMigratable(_)
            | Self::RecordUnreadable(_)
            | Self::JournalUnread { .. } => Category::Unavailable,
            Self::FileMissing(_)
            | Self::InsufficientMemory { .. }
            | Self::MachineTypeMissing(_)
            | Self::CpuModelMissing(_) => Category::Lacking,
            Self::HypervisorUnavailable(_) | Self::HypervisorSilent(_) => Category::Unavailable,
            Self::Hypervisor(error) => match error {
                HypervisorError::Refused(_) => Category::Invalid,
                HypervisorError::Unavailable(_)
                | HypervisorError::Died
                | HypervisorError::Deadline { .. } => Category::Unavailable,
                HypervisorError::Command { .. }
                | HypervisorError::Protocol(_)
                | HypervisorError::System { .. } => Category::Internal,
            },
            Self::StateUnwritable(_) | Self::RecordUnread { .. } => Category::Unavailable,
            Self::System { .. } => Category::Internal,
        }
    }
}

impl From<GuestError> for Fault {
    fn from(error: GuestError) -> Self {
        Self::new(error.category(), error.reason(), error.to_string())
    }
}
