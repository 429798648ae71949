//! A destination's duty towards the guest's record. What only it may write, and what else would wait for a driver that
//! is gone, it writes by itself: that its copy is gone and never ran, and that it holds the guest.

use std::time::Duration;

use futures::StreamExt;
use godwit_handover::{DestinationReport, Terms};
use godwit_protocol::Side;
use tokio::time::sleep;

use super::{Parts, Unwritten};

/// A driver that lives writes the record at once; this host's turn comes after it.
const DRIVERS_FIRST: Duration = Duration::from_secs(2);
/// Between two attempts.
const RETRY_AFTER: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Write {
    Advance,
    Revert,
}

/// Waits for the end of a migration at this destination, and sees to it that the record tells it.
pub(super) async fn destination(parts: Parts, terms: Terms) {
    let mut updates = Box::pin(parts.migrations.watch(&terms.migration));
    let write = loop {
        let Some(update) = updates.next().await else {
            return;
        };
        match update.side {
            Some(Side::Destination(report)) => {
                if let Some(write) = follows_from(&report) {
                    break write;
                }
            }
            None => {}
            Some(Side::Source(_)) => return,
        }
    };
    loop {
        sleep(DRIVERS_FIRST).await;
        let written = match write {
            Write::Advance => parts.records.advance(&terms).await,
            Write::Revert => parts.records.revert(&terms).await,
        };
        match written {
            Ok(_) => return,
            // The record has gone on, or never came to this migration.
            Err(Unwritten::Refused(why)) => {
                tracing::info!(
                    migration = terms.migration,
                    ?write,
                    why,
                    "the record is left as it is"
                );
                return;
            }
            Err(error @ (Unwritten::Missing | Unwritten::Unreachable(_))) => {
                tracing::debug!(migration = terms.migration, ?write, %error, "the record was not written");
                sleep(RETRY_AFTER).await;
            }
        }
    }
}

/// What this host's last report has to be followed by.
fn follows_from(report: &DestinationReport) -> Option<Write> {
    match report {
        DestinationReport::Holding { .. } | DestinationReport::Lost(_) => Some(Write::Advance),
        DestinationReport::Reverted(_) => Some(Write::Revert),
        DestinationReport::Preparing
        | DestinationReport::Prepared(_)
        | DestinationReport::Receiving
        | DestinationReport::Loaded
        | DestinationReport::Blocked
        | DestinationReport::Deciding
        | DestinationReport::Starting
        | DestinationReport::Reverting(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use godwit_handover::Cause;

    use super::*;

    #[test]
    fn only_an_end_is_written() {
        for (report, write) in [
            (DestinationReport::Loaded, None),
            (DestinationReport::Starting, None),
            (DestinationReport::Reverting(Cause::Cancelled), None),
            (DestinationReport::Reverted(Cause::Cancelled), Some(Write::Revert)),
            (DestinationReport::Holding { running: true }, Some(Write::Advance)),
            (
                DestinationReport::Lost(Cause::DestinationDied),
                Some(Write::Advance),
            ),
        ] {
            assert_eq!(follows_from(&report), write, "{report:?}");
        }
    }
}
