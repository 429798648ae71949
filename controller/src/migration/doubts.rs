//! What keeps a migration from going on, as people are told it: who is silent, what is missing, and what cannot be
//! proved.

use std::time::Duration;

use godwit_handover::{DestinationReport, OrderKey as Key, SourceReport, Stand, Terms, Wait};
use godwit_protocol::{Fault, Side};
use jiff::Timestamp;
use tokio::time::Instant;

use super::book::Failed;
use super::drive::{Drive, START_WITHIN, SideState};
use super::failure;
use super::sides::Role;
use crate::reason::MigrationReason as Reason;

/// How long a doubt lasts before it is told: reports cross each other.
const DOUBT_AFTER: Duration = Duration::from_secs(2);
/// How long a side is silent before that is told.
const SILENT_AFTER: Duration = Duration::from_secs(10);

impl Drive {
    /// What has kept the migration from starting.
    pub(super) fn start_too_slow(&self) -> Failed {
        let seconds = START_WITHIN.as_secs();
        for (role, side) in [
            (Role::Source, &self.source),
            (Role::Destination, &self.destination),
        ] {
            // Peer to peer only the source has to be reached from here.
            if side.connection.is_none() && (role == Role::Source || self.watching.is_none()) {
                let words = side
                    .silent_because
                    .as_ref()
                    .map_or_else(String::new, |fault| format!(": {fault}"));
                let host = role.host(&self.terms);
                return failure::tell(
                    Reason::AgentUnreachable,
                    &format!("The agent on {host} was not reached within {seconds} s{words}."),
                );
            }
        }
        if self.record_missing {
            return failure::tell(Reason::RecordMissing, "The guest has no GuestRecord any more.");
        }
        // The host answers, and says why it does not do it now.
        let told = self.not_now.as_ref().map(failure::refused);
        if let Some(told) =
            told.filter(|told| ![Reason::AgentUnreachable, Reason::InternalError].contains(&told.reason))
        {
            return told;
        }
        let unanswered = self.driver.next().first().map(Key::of);
        let host = match self.driver.stand() {
            Stand::Waiting {
                wait: Wait::Destination,
            } => &self.terms.destination,
            Stand::Waiting {
                wait: Wait::Source | Wait::Record | Wait::Decision,
            }
            | Stand::Ended(_) => &self.terms.source,
        };
        match unanswered {
            Some(key) if self.given.unanswered(key) => failure::tell(
                Reason::AgentUnreachable,
                &format!("{key:?} was not answered within {seconds} s."),
            ),
            Some(_) | None => failure::tell(
                Reason::DeadlineExceeded,
                &format!("{host} did not come to the transfer of memory within {seconds} s."),
            ),
        }
    }

    /// Tells what godwit cannot go on without, once it has lasted.
    pub(super) fn look_at_doubts(&mut self) {
        let now = Instant::now();
        let timestamp = Timestamp::now();
        let stand = self.driver.stand();
        let in_doubt = matches!(stand, Stand::Waiting { wait: Wait::Decision });
        let refused = match &stand {
            Stand::Waiting { wait: Wait::Source } => refused(Role::Source, &self.source, &self.terms),
            Stand::Waiting {
                wait: Wait::Destination,
            } => refused(Role::Destination, &self.destination, &self.terms),
            Stand::Waiting {
                wait: Wait::Record | Wait::Decision,
            }
            | Stand::Ended(_) => None,
        };
        self.doubt_since = if in_doubt || refused.is_some() {
            self.doubt_since.or(Some(now))
        } else {
            None
        };
        let since =
            |at: Option<Instant>, limit: Duration| at.is_some_and(|at| now.duration_since(at) >= limit);
        let waits_for = match stand {
            Stand::Waiting { wait: Wait::Source } => Some((Role::Source, &self.source)),
            Stand::Waiting {
                wait: Wait::Destination,
            } => Some((Role::Destination, &self.destination)),
            Stand::Waiting {
                wait: Wait::Record | Wait::Decision,
            }
            | Stand::Ended(_) => None,
        };
        let silent = [
            waits_for,
            in_doubt.then_some((Role::Source, &self.source)),
            in_doubt.then_some((Role::Destination, &self.destination)),
            self.may_begin().then_some((Role::Source, &self.source)),
        ]
        .into_iter()
        .flatten()
        .filter(|(role, _)| *role == Role::Source || self.watching.is_none())
        .find(|(_, side)| since(side.silent_since, SILENT_AFTER));
        let told = if self.record_missing {
            Some(failure::tell(
                Reason::RecordMissing,
                "The guest's GuestRecord is not there; nothing is decided without it.",
            ))
        } else if let Some(blocked) = &self.blocked {
            Some(blocked.clone())
        } else if let Some((role, side)) = silent {
            let host = role.host(&self.terms);
            let words = side
                .silent_because
                .as_ref()
                .map_or_else(String::new, |fault| format!(" ({fault})"));
            let words =
                format!("The agent on {host} is silent{words}; what it knows decides. Bring it back.");
            Some(Failed {
                reason: Reason::AgentUnreachable,
                message: words,
            })
        } else if since(self.doubt_since, DOUBT_AFTER) {
            Some(refused.unwrap_or_else(|| {
                failure::tell(
                    Reason::DecisionNeeded,
                    "Which side may run the guest cannot be proved, so neither is started and nothing is destroyed.",
                )
            }))
        } else {
            None
        };
        match told {
            Some(failed) => self
                .book
                .needs_decision(failed.reason, &failed.message, timestamp),
            None => self.book.decided(timestamp),
        }
        if self.cancel && self.driver.too_late() {
            self.book.cancel_too_late(timestamp);
        }
    }
}

/// What the hypervisor that is waited for will not do, although it may run the guest: it is tried again for as long as
/// the guest's state is good, and somebody may have to free what is in the way.
fn refused(role: Role, side: &SideState, terms: &Terms) -> Option<Failed> {
    // A failure of something else, long ago, is in the report as well.
    let expected = match side.last.side.as_ref()? {
        Side::Source(SourceReport::Aborting(_)) => Reason::HypervisorUnresponsive,
        Side::Destination(DestinationReport::Starting) => Reason::StartRefused,
        Side::Source(_) | Side::Destination(_) => return None,
    };
    let reason = Reason::from_word(&side.last.reason).filter(|reason| *reason == expected)?;
    let (host, words) = (role.host(terms), &side.last.detail);
    let message = format!(
        "The guest is to run on {host}, whose hypervisor does not let it: {words}. It is tried again."
    );
    Some(Failed { reason, message })
}

/// A fault that only a person can mend, if it is one.
pub(super) fn needs_a_person(fault: &Fault) -> Option<Failed> {
    let reason = Reason::from_word(&fault.reason)?;
    [
        Reason::JournalNewer,
        Reason::JournalDamaged,
        Reason::RecordMissing,
    ]
    .contains(&reason)
    .then(|| failure::refused(fault))
}
