//! What a silent destination means to the driver, and what is told of it.

use godwit_handover::{Cause, SideView, SourceReport, Stand, Wait};
use godwit_protocol::{Fault, GaveUp, Told};
use std::time::Duration;
use tokio::time::Instant;

use super::drive::{Drive, START_WITHIN};

/// The word for a destination that this host does not reach.
const PEER_UNREACHABLE: &str = "PeerUnreachable";
/// How long the destination is silent before it is told that everything waits for it.
const TOLD_AFTER: Duration = Duration::from_secs(5);

impl Drive {
    pub(super) fn silent(&mut self, fault: Fault) {
        // It is tried again for as long as it takes; one line tells it.
        if self.silent_because.is_none() {
            tracing::warn!(migration = self.terms().migration, %fault, "the destination is silent");
        } else {
            tracing::debug!(migration = self.terms().migration, %fault, "the destination is still silent");
        }
        self.client = None;
        self.path.destination_watched(false);
        self.silent_since.get_or_insert_with(Instant::now);
        if fault.category.bars_the_caller() && *self.driver.source() == SideView::NoSuchMigration {
            let told = Told::new(fault.reason.clone(), fault.message.clone());
            self.give_up(GaveUp {
                cause: Cause::PathNotProven,
                told,
            });
        }
        self.silent_because = Some(fault);
    }

    pub(super) fn unreachable(&self, how: &str) -> Told {
        let terms = self.terms();
        let because = self
            .silent_because
            .as_ref()
            .map_or_else(String::new, |fault| format!(" ({fault})"));
        Told::new(
            PEER_UNREACHABLE,
            format!(
                "The agent on {} {how}, as the source {} sees it at {}{because}.",
                terms.destination, terms.source, self.kept.order.endpoint
            ),
        )
    }

    /// What has kept the migration from starting.
    pub(super) fn start_too_slow(&self) -> Told {
        let seconds = START_WITHIN.as_secs();
        if self.client.is_none() {
            return self.unreachable(&format!("was not reached within {seconds} s"));
        }
        if self.record_missing {
            return Told::new("RecordMissing", "The guest has no GuestRecord any more.");
        }
        if let Some(fault) = &self.not_now
            && fault.reason != "InternalError"
        {
            return Told::new(fault.reason.clone(), fault.message.clone());
        }
        let slow = match self.driver.stand() {
            Stand::Waiting {
                wait: Wait::Destination,
            } => &self.terms().destination,
            Stand::Waiting {
                wait: Wait::Source | Wait::Record | Wait::Decision,
            }
            | Stand::Ended(_) => &self.terms().source,
        };
        Told::new(
            "DeadlineExceeded",
            format!("{slow} did not come to the transfer of memory within {seconds} s."),
        )
    }

    /// From the switchover on silence is no evidence: what the destination knows is waited for, for as long as it
    /// takes. That it is, and what to do, is told soon.
    pub(super) fn tell_silence(&mut self, now: Instant) {
        let ours = self
            .kept
            .view
            .blocked
            .as_ref()
            .is_some_and(|told| told.reason == PEER_UNREACHABLE);
        let waits = match self.driver.stand() {
            Stand::Waiting {
                wait: Wait::Destination | Wait::Decision,
            } => true,
            Stand::Waiting {
                wait: Wait::Source | Wait::Record,
            }
            | Stand::Ended(_) => false,
        };
        let after = TOLD_AFTER.min(self.kept.order.silence);
        let silent = self
            .silent_since
            .is_some_and(|since| now.duration_since(since) >= after);
        if waits && silent && !self.driver.before_switchover() {
            let told = Some(self.waits_for_the_silent());
            if (self.kept.view.blocked.is_none() || ours) && self.kept.view.blocked != told {
                self.kept.view.blocked = told;
                self.show();
            }
        } else if ours {
            self.kept.view.blocked = None;
            self.show();
        }
    }

    fn waits_for_the_silent(&self) -> Told {
        let host = &self.terms().destination;
        let silent = self.unreachable("is not heard any more").message;
        let deciding = matches!(
            self.driver.source(),
            SideView::Reported(
                SourceReport::Switching { .. } | SourceReport::InDoubt { .. } | SourceReport::Deciding { .. }
            )
        );
        let guest = if deciding {
            "The guest stands still until its record is decided: the source asks it.".to_owned()
        } else if self.driver.blackout() {
            format!("The guest stands still: only {host} can tell whether it runs there or never will.")
        } else {
            format!("The migration ends when {host} tells what it has of the guest.")
        };
        Told::new(
            PEER_UNREACHABLE,
            format!("{silent} {guest} Bring its agent back, or the network between the two agents' ports."),
        )
    }
}
