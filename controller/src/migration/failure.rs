//! How an ending is told: the word of the table, what happened, and what to do.

use godwit_handover::{Cause, Terms};
use godwit_protocol::{Fault, Told};

use super::book::Failed;
use crate::reason::MigrationReason as Reason;

/// What is known about why a migration ended without the guest having moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clues {
    /// The fault with which an agent refused an order; its message names the host.
    pub refused: Option<Fault>,
    /// Why the driver itself gave up.
    pub own: Option<Failed>,
    /// The destination's own word and words about its last failure.
    pub destination: (String, String),
    /// The source's own word and words about its last failure.
    pub source: (String, String),
}

/// How a migration that was given up is told. A cancellation is told as such whatever else went wrong; then the
/// more precise word comes first: an agent's refusal, a host's own word, the cause.
pub fn given_up(cause: Cause, clues: &Clues, terms: &Terms) -> Failed {
    if cause == Cause::Cancelled {
        return tell(
            Reason::Cancelled,
            "The migration was cancelled before the handover.",
        );
    }
    if let Some(fault) = &clues.refused {
        return refused(fault);
    }
    if let Some(own) = &clues.own {
        return own.clone();
    }
    // The source gave up because of its driver, and with that the stream: what the hypervisors say of it is an effect.
    if matches!(cause, Cause::DriverSilent | Cause::PathNotProven) {
        return tell(word_of(cause), meaning(cause));
    }
    let first_source = match cause {
        Cause::DestinationFailed | Cause::DestinationDied | Cause::Reverted => false,
        Cause::Cancelled
        | Cause::SourceDied
        | Cause::StreamFailed
        | Cause::DriverSilent
        | Cause::PathNotProven
        | Cause::GuestStopped
        | Cause::JournalFailed
        | Cause::HypervisorRefused => true,
    };
    let source = (&terms.source, &clues.source);
    let destination = (&terms.destination, &clues.destination);
    let sides = if first_source {
        [source, destination]
    } else {
        [destination, source]
    };
    let own_word = sides.iter().find_map(|(host, (word, words))| {
        Reason::from_word(word).map(|reason| (reason, host.as_str(), words.as_str()))
    });
    let words = sides.iter().find(|(_, (_, words))| !words.is_empty());
    match (own_word, words) {
        (Some((reason, host, words)), _) => tell(reason, &format!("{host}: {}", or_meaning(words, cause))),
        (None, Some((host, (_, words)))) => tell(word_of(cause), &format!("{host}: {}", sentence(words))),
        (None, None) => tell(word_of(cause), meaning(cause)),
    }
}

/// How the loss of the only valid image is told.
pub fn lost(cause: Cause, clues: &Clues) -> Failed {
    let words = [&clues.source.1, &clues.destination.1]
        .into_iter()
        .find(|words| !words.is_empty());
    let what = words.map_or_else(|| meaning(cause).to_owned(), |words| sentence(words));
    tell(Reason::GuestLost, &what)
}

/// How an agent's refusal is told.
pub fn refused(fault: &Fault) -> Failed {
    let reason = Reason::from_word(&fault.reason).unwrap_or(Reason::InternalError);
    tell(reason, &sentence(&fault.message))
}

/// How it is told what a driver in an agent has said.
pub fn told(told: &Told) -> Failed {
    let reason = Reason::from_word(&told.reason).unwrap_or(Reason::InternalError);
    tell(reason, &sentence(&told.message))
}

/// A failure with what to do about it.
pub fn tell(reason: Reason, what: &str) -> Failed {
    let advice = advice(reason);
    let message = if advice.is_empty() || what.contains(advice) {
        what.to_owned()
    } else {
        format!("{what} {advice}")
    };
    Failed { reason, message }
}

fn or_meaning(words: &str, cause: Cause) -> String {
    if words.is_empty() {
        meaning(cause).into()
    } else {
        sentence(words)
    }
}

fn sentence(words: &str) -> String {
    let words = words.trim();
    if words.ends_with(['.', '!', '?']) {
        words.into()
    } else {
        format!("{words}.")
    }
}

/// The word for a cause of which nothing more precise is known.
pub fn word_of(cause: Cause) -> Reason {
    match cause {
        Cause::Cancelled => Reason::Cancelled,
        Cause::DestinationFailed => Reason::HypervisorUnavailable,
        Cause::DestinationDied | Cause::Reverted => Reason::DestinationHypervisorDied,
        Cause::SourceDied => Reason::SourceHypervisorDied,
        Cause::StreamFailed => Reason::StreamFailed,
        Cause::DriverSilent => Reason::DriverLost,
        Cause::PathNotProven => Reason::AgentUnreachable,
        Cause::GuestStopped => Reason::GuestPoweredOff,
        Cause::JournalFailed => Reason::DiskFailed,
        Cause::HypervisorRefused => Reason::HypervisorUnresponsive,
    }
}

fn meaning(cause: Cause) -> &'static str {
    match cause {
        Cause::Cancelled => "The migration was cancelled before the handover.",
        Cause::DestinationFailed => "The destination could not prepare itself, or gave the guest's copy up.",
        Cause::DestinationDied => "The destination's hypervisor process died.",
        Cause::SourceDied => "The source's hypervisor process died.",
        Cause::StreamFailed => "The connection for guest memory broke, or could not be opened.",
        Cause::DriverSilent => {
            "Whoever drove the migration (the controller, or peer to peer the source's agent) was away for longer than the agents wait."
        }
        Cause::PathNotProven => {
            "There was no recent proof that both agents and the API server are reached, so the guest was not stopped."
        }
        Cause::GuestStopped => "The guest stopped by itself during the migration.",
        Cause::JournalFailed => "An agent could not write its journal.",
        Cause::HypervisorRefused => "A hypervisor refused a command that it should have taken.",
        Cause::Reverted => "The guest's record says that the destination never will run the guest.",
    }
}

/// What to do about it; the guest is where the table says.
pub fn advice(reason: Reason) -> &'static str {
    match reason {
        Reason::Cancelled => "The guest is at the source; a new attempt is a new object.",
        Reason::AgentUnreachable => {
            "Check the agent, its endpoint and the network; the guest is at the source."
        }
        Reason::AgentRestarted
        | Reason::DeadlineExceeded
        | Reason::StartRefused
        | Reason::DestinationHypervisorDied => {
            "The guest is at the source. Look at the logs on that host; try again."
        }
        Reason::DriverLost => "Check the controller, or peer to peer the source's agent; try again.",
        Reason::PeerUnreachable => {
            "Check the network between the two hosts' agent ports; the guest is at the source."
        }
        Reason::CertificateRejected => "Renew the certificate; check the clocks of the hosts.",
        Reason::CertificateEndsTooSoon => {
            "See in that agent's log why its certificate is not renewed; the clock may be wrong. Then try again."
        }
        Reason::ProtocolVersionUnsupported => "Upgrade the older program.",
        Reason::NotAllowed => "Check which account and certificate the controller uses.",
        Reason::StaleEpoch => "Look at the GuestRecord if it repeats.",
        Reason::TicketMissing => "Upgrade the older of controller and source.",
        Reason::TicketInvalid | Reason::TicketForAnother | Reason::TicketReplayed => {
            "The destination refused the order. If it repeats, find out who uses the source's certificate."
        }
        Reason::TicketKeyUnknown => "See that the ConfigMap godwit-ticket-keys was not altered; try again.",
        Reason::TicketNotYetValid | Reason::TicketExpired => {
            "Compare the clocks of the controller's and the destination's host; try again."
        }
        Reason::TicketKeysUnavailable => {
            "Check the API server, the Secret godwit-ticket-key and the ConfigMap godwit-ticket-keys."
        }
        Reason::NameTaken => "Remove the left-over there, or name another host.",
        Reason::PortsExhausted => "Wait for other migrations, or widen the port range of that host.",
        Reason::HypervisorUnavailable => "Repair the hypervisor on that host.",
        Reason::DefinitionRefused => "Correct the guest, or name another host.",
        Reason::DefinitionMismatch => {
            "The guest runs on at the source. Find out whether that host was taken over before you trust the guest."
        }
        Reason::FileMissing => "Provide it under the same name there.",
        Reason::DiskFull => "Free space in the agent's state directory.",
        Reason::DiskFailed => {
            "Look at the disk of that agent's state directory, and at the kernel's log there."
        }
        Reason::StreamNotServed => "Ask for less, or name another host.",
        Reason::PlainTextRefused => "Leave `security.require` out; then the memory is encrypted.",
        Reason::StreamFailed => "Check the network between the migration addresses; try again.",
        Reason::HypervisorUnresponsive => "Look at the hypervisor's process on that host.",
        Reason::HostRebooted => "If it was the source the guest is lost; else try again.",
        Reason::GuestPoweredOff => "Its own wish is kept: it is off at the source.",
        Reason::GuestPanicked => "Look at its console at the source.",
        Reason::GuestDiskError => "Mend the disk; the guest stays stopped at the source.",
        Reason::SourceHypervisorDied | Reason::GuestLost => {
            "The guest's memory is gone and its disks are as a crash leaves them. Delete and create it to start afresh."
        }
        Reason::InternalError => "Report it with the logs of controller and agents.",
        Reason::GuestNotMigratable => "Remove the device or job that it names.",
        Reason::GuestNotRunning => "Look at the VirtualMachine's conditions.",
        Reason::InsufficientMemory
        | Reason::CpuModelMissing
        | Reason::MachineTypeMissing
        | Reason::HostNotReady
        | Reason::StorageNotShared => "Name another host, or mend this one.",
        Reason::AnotherMigrationActive => "Wait for it, or cancel it.",
        Reason::DecisionNeeded => {
            "Bring back both agents: what they find settles it. Do not start or delete anything by hand before both answer."
        }
        Reason::RecordMissing => "Find out who deleted it; restore it from a backup of the cluster.",
        Reason::JournalNewer => "Put the newer agent back.",
        Reason::JournalDamaged => {
            "Keep the file; compare with the other host's journal before anything is removed."
        }
        Reason::Accepted
        | Reason::InProgress
        | Reason::HeldBack
        | Reason::Succeeded
        | Reason::CancelTooLate
        | Reason::NotNeeded
        | Reason::VirtualMachineNotFound
        | Reason::VirtualMachineDeleted
        | Reason::HostNotFound
        | Reason::SameHost
        | Reason::UnsafeCacheMode
        | Reason::GuestReset
        | Reason::GuestPaused
        | Reason::RecordDecided => "",
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use godwit_protocol::Category;

    use super::*;

    fn terms() -> Terms {
        Terms {
            migration: "m".into(),
            guest: "g".into(),
            epoch: 3,
            source: "host-a".into(),
            destination: "host-b".into(),
            strict: false,
        }
    }

    #[test]
    fn an_agents_refusal_keeps_its_word_and_words() {
        let fault = Fault::new(
            Category::Lacking,
            "PortsExhausted",
            "Prepare at host host-b: Each of the 10 ports is in use",
        );
        let clues = Clues {
            refused: Some(fault),
            ..Clues::default()
        };
        let failed = given_up(Cause::DestinationFailed, &clues, &terms());
        assert_eq!(failed.reason, Reason::PortsExhausted);
        assert_eq!(
            failed.message,
            "Prepare at host host-b: Each of the 10 ports is in use. Wait for other migrations, or widen the port range of that host."
        );
    }

    #[test]
    fn a_cancellation_stays_one() {
        let fault = Fault::new(Category::Conflict, "NameTaken", "x");
        let clues = Clues {
            refused: Some(fault),
            ..Clues::default()
        };
        assert_eq!(
            given_up(Cause::Cancelled, &clues, &terms()).reason,
            Reason::Cancelled
        );
    }

    #[test]
    fn the_side_that_the_cause_speaks_of_is_heard_first() {
        let clues = Clues {
            source: ("StreamFailed".into(), "connection reset".into()),
            destination: ("StartRefused".into(), "image is locked".into()),
            ..Clues::default()
        };
        assert_eq!(
            given_up(Cause::StreamFailed, &clues, &terms()).reason,
            Reason::StreamFailed
        );
        let failed = given_up(Cause::Reverted, &clues, &terms());
        assert_eq!(failed.reason, Reason::StartRefused);
        assert!(
            failed.message.starts_with("host-b: image is locked."),
            "{}",
            failed.message
        );
    }

    #[test]
    fn a_stream_that_broke_because_it_was_given_up_is_no_reason() {
        let clues = Clues {
            destination: ("StreamFailed".into(), "load of migration failed".into()),
            ..Clues::default()
        };
        for (cause, reason) in [
            (Cause::DriverSilent, Reason::DriverLost),
            (Cause::PathNotProven, Reason::AgentUnreachable),
        ] {
            let failed = given_up(cause, &clues, &terms());
            assert_eq!(failed.reason, reason);
            assert!(failed.message.starts_with(meaning(cause)), "{}", failed.message);
        }
    }

    #[test]
    fn a_word_that_is_not_in_the_table_is_not_passed_on() {
        let fault = Fault::new(Category::Internal, "Surprise", "what?");
        assert_eq!(refused(&fault).reason, Reason::InternalError);
        for word in [
            "OtherTerms",
            "OrderTooEarly",
            "MigrationEnded",
            "MigrationUnknown",
        ] {
            let fault = Fault::new(Category::Conflict, word, "of the driver's concern");
            assert_eq!(refused(&fault).reason, Reason::InternalError, "{word}");
        }
        let clues = Clues {
            source: ("Surprise".into(), String::new()),
            ..Clues::default()
        };
        assert_eq!(
            given_up(Cause::SourceDied, &clues, &terms()).reason,
            Reason::SourceHypervisorDied
        );
    }

    #[test]
    fn silence_and_loss() {
        let own = tell(
            Reason::AgentUnreachable,
            "host-b did not answer Prepare within 30 s.",
        );
        assert!(own.message.contains("Check the agent"));
        let clues = Clues {
            own: Some(own.clone()),
            ..Clues::default()
        };
        assert_eq!(given_up(Cause::DestinationFailed, &clues, &terms()), own);
        assert_eq!(
            lost(Cause::SourceDied, &Clues::default()).reason,
            Reason::GuestLost
        );
    }

    #[test]
    fn every_failure_says_what_to_do() {
        for cause in [
            Cause::Cancelled,
            Cause::DestinationFailed,
            Cause::DestinationDied,
            Cause::SourceDied,
            Cause::StreamFailed,
            Cause::DriverSilent,
            Cause::PathNotProven,
            Cause::GuestStopped,
            Cause::JournalFailed,
            Cause::HypervisorRefused,
            Cause::Reverted,
        ] {
            assert_ne!(advice(word_of(cause)), "", "{cause:?}");
        }
    }
}
