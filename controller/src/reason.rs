//! The stable words that stand in conditions, failures and events. docs/conditions.md is the table for people;
//! a test compares the two.

/// A set of words that one kind's conditions use.
macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($word:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $(#[doc = concat!("`", stringify!($word), "`, see docs/conditions.md.")] $word,)*
        }

        impl $name {
            /// Every word of the set.
            pub const ALL: &'static [Self] = &[$(Self::$word),*];

            /// The word as it stands in a condition.
            pub fn word(self) -> &'static str {
                match self { $(Self::$word => stringify!($word),)* }
            }

            /// The reason of that word, if there is one in this set.
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|reason| reason.word() == word)
            }
        }
    };
}

reasons! {
    /// Reasons on a VirtualMachineMigration.
    MigrationReason {
        Accepted, InProgress, HeldBack, Succeeded, Cancelled, CancelTooLate, NotNeeded,
        VirtualMachineNotFound, VirtualMachineDeleted, HostNotFound, SameHost, HostNotReady, GuestNotRunning,
        GuestNotMigratable, AnotherMigrationActive, MachineTypeMissing, CpuModelMissing, InsufficientMemory,
        StorageNotShared, UnsafeCacheMode,
        AgentUnreachable, PeerUnreachable, AgentRestarted, DriverLost, CertificateRejected, CertificateEndsTooSoon,
        ProtocolVersionUnsupported, NotAllowed, StaleEpoch, NameTaken, PortsExhausted, HypervisorUnavailable, DefinitionRefused, DefinitionMismatch, FileMissing, DiskFull, DiskFailed,
        StreamFailed, StreamNotServed, PlainTextRefused, SourceHypervisorDied, DestinationHypervisorDied, StartRefused, HypervisorUnresponsive,
        HostRebooted, DeadlineExceeded, GuestPoweredOff, GuestPanicked, GuestDiskError, GuestLost, InternalError,
        DecisionNeeded, RecordMissing, JournalNewer, JournalDamaged,
        GuestReset, GuestPaused, RecordDecided,
        TicketMissing, TicketInvalid, TicketKeyUnknown, TicketNotYetValid, TicketExpired, TicketForAnother,
        TicketReplayed, TicketKeysUnavailable,
    }
}

reasons! {
    /// Reasons on a VirtualMachine.
    GuestReason {
        HostChosen, HostNotFound, HostNotReady, NoHostFits, InsufficientMemory, MachineTypeMissing, CpuModelMissing,
        Starting, Running, Paused, ShutOff, Crashed, GuestLost, Stopping, HypervisorUnavailable, DefinitionRefused,
        FileMissing, NameTaken, DiskFull, DiskFailed, AgentUnreachable, MigrationWaits, StartUnanswered, HostRebooted, ProcessGone,
        RecordMissing, RecordConflict, NotNeeded, HypervisorUnresponsive, StaleEpoch, AnotherMigrationActive,
        NotAllowed, CertificateRejected, ProtocolVersionUnsupported, InternalError, JournalNewer, JournalDamaged,
    }
}

reasons! {
    /// Reasons on a VirtualMachineResolution.
    ResolutionReason {
        InProgress, NoHostFits, Fenced, SourceResumed, ColdStarted, LetGo, NotNeeded, VirtualMachineNotFound, RecordMissing,
        HostAnswers, NotFenced, NotResumable, Overtaken,
    }
}

/// The one reason that the controller writes on a VirtualMachineHost; the others are the agent's.
pub const LEASE_EXPIRED: &str = "LeaseExpired";

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const TABLE: &str = include_str!("../../docs/conditions.md");

    /// The words in the first column of the tables below the heading of `kind`.
    fn documented(kind: &str) -> BTreeSet<&'static str> {
        TABLE
            .lines()
            .skip_while(|line| *line != format!("## {kind}"))
            .skip(1)
            .take_while(|line| !line.starts_with("## "))
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .collect()
    }

    #[test]
    fn migrations_and_the_table_use_the_same_words() {
        let written: BTreeSet<_> = MigrationReason::ALL.iter().map(|r| r.word()).collect();
        assert_eq!(written, documented("VirtualMachineMigration"));
    }

    #[test]
    fn guests_and_the_table_use_the_same_words() {
        let written: BTreeSet<_> = GuestReason::ALL.iter().map(|r| r.word()).collect();
        assert_eq!(written, documented("VirtualMachine"));
    }

    #[test]
    fn resolutions_and_the_table_use_the_same_words() {
        let written: BTreeSet<_> = ResolutionReason::ALL.iter().map(|r| r.word()).collect();
        assert_eq!(written, documented("VirtualMachineResolution"));
    }

    #[test]
    fn the_hosts_word_is_in_the_table() {
        assert!(documented("VirtualMachineHost").contains(LEASE_EXPIRED));
    }

    #[test]
    fn words_are_read_back() {
        assert_eq!(
            MigrationReason::from_word("NameTaken"),
            Some(MigrationReason::NameTaken)
        );
        assert_eq!(MigrationReason::from_word("nameTaken"), None);
    }
}
