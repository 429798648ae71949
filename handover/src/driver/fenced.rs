//! What follows from an administrator's word that a host is gone for good (rule 5): it counts like a process that is seen
//! to be dead. Of what a fenced destination may have run nobody knows anything; it is lost only where he says that too.

use super::machine::Next;
use super::{Driver, DriverEffect, Outcome, SideView, Wait};
use crate::destination::DestinationReport;
use crate::source::SourceReport;
use crate::terms::{Cause, Decision, RecordView};

impl Driver {
    /// Whether an administrator has said, and the record says, that the source's host is gone for good.
    pub fn source_fenced(&self) -> bool {
        self.record
            .as_ref()
            .is_some_and(|record| record.source_fenced(&self.terms))
    }

    pub(super) fn destination_fenced(&self) -> bool {
        self.record
            .as_ref()
            .is_some_and(|record| record.destination_fenced(&self.terms))
    }

    /// Whether what the fenced destination may have run is given up for lost.
    pub(super) fn given_up(&self) -> bool {
        self.record
            .as_ref()
            .is_some_and(|record| record.given_up(&self.terms))
    }

    /// The source's host is gone, and its image with it: what the destination has decides.
    pub(super) fn without_the_source(&self, record: &RecordView) -> Next {
        match &self.destination {
            _ if self.destination_fenced() => match record.decision {
                Decision::None => Next::write(DriverEffect::DecideRecord(Decision::Aborted)),
                Decision::Committed => Next::write(DriverEffect::AdvanceRecord),
                Decision::Aborted | Decision::Reverted => Next::wait(Wait::Record),
            },
            SideView::Unheard => Next::wait(Wait::Destination),
            SideView::NoSuchMigration => Next::write(DriverEffect::DecideRecord(Decision::Aborted)),
            SideView::Reported(report) => match report {
                // It reads the record by itself, and commits it, or gives up what nobody will ever send. Never told to
                // give up: the report may be old, and the guest whole by now.
                DestinationReport::Prepared(_) | DestinationReport::Loaded => {
                    Next::order_destination(DriverEffect::ArbitrateDestination)
                }
                DestinationReport::Blocked => Next::wait(Wait::Decision),
                // A stream without a source ends by itself.
                DestinationReport::Preparing
                | DestinationReport::Receiving
                | DestinationReport::Deciding
                | DestinationReport::Starting
                | DestinationReport::Reverting(_) => Next::wait(Wait::Destination),
                DestinationReport::Holding { .. } | DestinationReport::Lost(_) => {
                    Next::write(DriverEffect::AdvanceRecord)
                }
                DestinationReport::Reverted(_) => Next::write(DriverEffect::DecideRecord(Decision::Reverted)),
            },
        }
    }

    /// The destination's host is gone while the source has bound itself: nobody can tell what ran there.
    pub(super) fn without_the_destination(&self) -> Next {
        match &self.source {
            SideView::Reported(SourceReport::GoSent(_) | SourceReport::Yielded) if self.given_up() => {
                Next::write(DriverEffect::AdvanceRecord)
            }
            // Go is barred by what follows, or was never said.
            SideView::Reported(
                SourceReport::Switching { .. } | SourceReport::InDoubt { .. } | SourceReport::Died,
            ) => Next::order_source(DriverEffect::ArbitrateSource(Cause::DestinationDied)),
            SideView::Reported(SourceReport::GoSent(_)) if self.terms.strict => {
                Next::order_source(DriverEffect::ArbitrateSource(Cause::DestinationDied))
            }
            SideView::Reported(SourceReport::Deciding { .. }) => Next::wait(Wait::Source),
            SideView::Reported(
                SourceReport::GoSent(_) | SourceReport::Yielded | SourceReport::Blocked { .. },
            ) => Next::wait(Wait::Decision),
            SideView::Reported(
                SourceReport::Begun | SourceReport::Streaming | SourceReport::Stopped { .. },
            ) => Next::order_source(DriverEffect::AbortSource(Cause::DestinationDied)),
            SideView::Unheard | SideView::Reported(SourceReport::Aborting(_)) => Next::wait(Wait::Source),
            SideView::NoSuchMigration
            | SideView::Reported(SourceReport::Aborted(_) | SourceReport::Lost(_)) => {
                Next::write(DriverEffect::DecideRecord(Decision::Aborted))
            }
            SideView::Reported(SourceReport::Released) => Next::wait(Wait::Decision),
        }
    }

    /// The guest was started afresh elsewhere by the administrator's word about this migration: nothing that it has left is
    /// of any use.
    pub(super) fn after_the_word(&self) -> Next {
        let cause = if self.destination_fenced() {
            Cause::DestinationDied
        } else {
            Cause::SourceDied
        };
        if !self.source_fenced() {
            match &self.source {
                SideView::Unheard | SideView::Reported(SourceReport::Aborting(_)) => {
                    return Next::wait(Wait::Source);
                }
                SideView::Reported(
                    SourceReport::Begun | SourceReport::Streaming | SourceReport::Stopped { .. },
                ) => return Next::order_source(DriverEffect::AbortSource(cause)),
                SideView::Reported(
                    SourceReport::Switching { .. }
                    | SourceReport::InDoubt { .. }
                    | SourceReport::Deciding { .. }
                    | SourceReport::Yielded
                    | SourceReport::Blocked { .. }
                    | SourceReport::GoSent(_)
                    | SourceReport::Died,
                ) => return Next::order_source(DriverEffect::Settle),
                SideView::NoSuchMigration
                | SideView::Reported(
                    SourceReport::Released | SourceReport::Aborted(_) | SourceReport::Lost(_),
                ) => {}
            }
        }
        self.end_after_destination(Outcome::GuestLost(cause), cause)
    }
}
