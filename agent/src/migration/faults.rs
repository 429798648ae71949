//! Why an order about a migration was not taken, in the words of the wire.

use godwit_handover::Refusal;
use godwit_protocol::{Category, Fault};

use super::channel::ChannelError;
use super::journal::JournalError;
use crate::guest_network::PlugError;
use crate::state::disk_reason;

/// An order that the machine refused.
pub fn refused(refusal: Refusal) -> Fault {
    let (category, reason, message) = match refusal {
        Refusal::OtherTerms => (
            Category::Conflict,
            "OtherTerms",
            "This host knows this migration under other terms; look at the GuestRecord",
        ),
        Refusal::TooLate => (
            Category::Conflict,
            "CancelTooLate",
            "The handover has begun; it can not be stopped any more",
        ),
        Refusal::TooEarly => (
            Category::Unavailable,
            "OrderTooEarly",
            "An earlier phase has not ended here",
        ),
        Refusal::Ended => (
            Category::Conflict,
            "MigrationEnded",
            "The migration has ended here",
        ),
        Refusal::GatesMissing => (
            Category::Lacking,
            "GuestNotMigratable",
            "This hypervisor cannot wait before the switchover and keep the destination stopped",
        ),
    };
    Fault::new(category, reason, message)
}

/// An order about a migration that this host does not know.
pub fn unknown(migration: &str) -> Fault {
    let message = format!("This host knows no migration {migration}");
    Fault::new(Category::Conflict, "MigrationUnknown", message)
}

/// Another migration of the guest has not ended here.
pub fn another(migration: &str) -> Fault {
    let message = format!("Migration {migration} of this guest has not ended; wait for it or cancel it");
    Fault::new(Category::Conflict, "AnotherMigrationActive", message)
}

/// The stable word for a journal that cannot be written or read.
pub fn journal_reason(error: &JournalError) -> &'static str {
    match error {
        JournalError::Newer { .. } => "JournalNewer",
        JournalError::Damaged { .. } | JournalError::Foreign { .. } => "JournalDamaged",
        JournalError::DiskFull { .. } | JournalError::Full { .. } => "DiskFull",
        JournalError::Broken { .. } => "DiskFailed",
        JournalError::System { source, .. } => disk_reason(source),
    }
}

/// A journal that cannot be written or read.
pub fn journal(error: &JournalError) -> Fault {
    let category = match error {
        // The host lacks room: that is told at once, and nobody waits for it with a migration that has not begun.
        JournalError::DiskFull { .. } => Category::Lacking,
        JournalError::Newer { .. }
        | JournalError::Damaged { .. }
        | JournalError::Foreign { .. }
        | JournalError::Broken { .. }
        | JournalError::Full { .. }
        | JournalError::System { .. } => Category::Unavailable,
    };
    Fault::new(category, journal_reason(error), error.to_string())
}

/// A channel that cannot be opened.
pub fn channel(error: &ChannelError) -> Fault {
    let (category, reason) = match error {
        ChannelError::PortsExhausted { .. } => (Category::Lacking, "PortsExhausted"),
        ChannelError::SourceUnknown
        | ChannelError::Network(PlugError::NotServed(_) | PlugError::Address(_)) => {
            (Category::Lacking, "StreamNotServed")
        }
        ChannelError::Uri(_)
        | ChannelError::NotTaken(_)
        | ChannelError::Deadline { .. }
        | ChannelError::Tunnel(_)
        | ChannelError::Network(_)
        | ChannelError::Listening(_)
        | ChannelError::System { .. } => (Category::Unavailable, "StreamFailed"),
    };
    Fault::new(category, reason, error.to_string())
}

/// No hypervisor works here.
pub fn no_hypervisor() -> Fault {
    Fault::new(
        Category::Unavailable,
        "HypervisorUnavailable",
        "No hypervisor works on this host",
    )
}

/// Something that must not happen.
pub fn internal(error: &impl ToString) -> Fault {
    Fault::new(Category::Internal, "InternalError", error.to_string())
}
