//! What the source's last report says about how far a migration is.

use super::{Driver, SideView};
use crate::destination::DestinationReport;
use crate::source::SourceReport;

impl Driver {
    /// Whether memory travels, or has travelled, or the source has given up.
    pub fn has_streamed(&self) -> bool {
        match &self.source {
            SideView::Unheard | SideView::NoSuchMigration | SideView::Reported(SourceReport::Begun) => false,
            SideView::Reported(
                SourceReport::Streaming
                | SourceReport::Stopped { .. }
                | SourceReport::Switching { .. }
                | SourceReport::InDoubt { .. }
                | SourceReport::Deciding { .. }
                | SourceReport::Yielded
                | SourceReport::Blocked { .. }
                | SourceReport::GoSent(_)
                | SourceReport::Released
                | SourceReport::Aborting(_)
                | SourceReport::Aborted(_)
                | SourceReport::Died
                | SourceReport::Lost(_),
            ) => true,
        }
    }

    /// Whether the guest still runs at the source and nothing has been handed over: the attempt can be given up at
    /// no cost.
    pub fn before_switchover(&self) -> bool {
        match &self.source {
            SideView::NoSuchMigration | SideView::Reported(SourceReport::Begun | SourceReport::Streaming) => {
                true
            }
            SideView::Unheard
            | SideView::Reported(
                SourceReport::Stopped { .. }
                | SourceReport::Switching { .. }
                | SourceReport::InDoubt { .. }
                | SourceReport::Deciding { .. }
                | SourceReport::Yielded
                | SourceReport::Blocked { .. }
                | SourceReport::GoSent(_)
                | SourceReport::Released
                | SourceReport::Aborting(_)
                | SourceReport::Aborted(_)
                | SourceReport::Died
                | SourceReport::Lost(_),
            ) => false,
        }
    }

    /// Whether a cancellation comes too late.
    pub fn too_late(&self) -> bool {
        match &self.source {
            SideView::Reported(
                SourceReport::Switching { .. }
                | SourceReport::InDoubt { .. }
                | SourceReport::Deciding { .. }
                | SourceReport::Yielded
                | SourceReport::Blocked { .. }
                | SourceReport::GoSent(_)
                | SourceReport::Released
                | SourceReport::Died,
            ) => true,
            SideView::Unheard
            | SideView::NoSuchMigration
            | SideView::Reported(
                SourceReport::Begun
                | SourceReport::Streaming
                | SourceReport::Stopped { .. }
                | SourceReport::Aborting(_)
                | SourceReport::Aborted(_)
                | SourceReport::Lost(_),
            ) => false,
        }
    }

    /// Whether the last steps are under way, which take milliseconds: nothing that can wait is done beside them.
    pub fn handing_over(&self) -> bool {
        match &self.source {
            SideView::Reported(
                SourceReport::Stopped { .. } | SourceReport::Switching { .. } | SourceReport::GoSent(_),
            ) => true,
            SideView::Unheard
            | SideView::NoSuchMigration
            | SideView::Reported(
                SourceReport::Begun
                | SourceReport::Streaming
                | SourceReport::InDoubt { .. }
                | SourceReport::Deciding { .. }
                | SourceReport::Yielded
                | SourceReport::Blocked { .. }
                | SourceReport::Released
                | SourceReport::Aborting(_)
                | SourceReport::Aborted(_)
                | SourceReport::Died
                | SourceReport::Lost(_),
            ) => false,
        }
    }

    /// Whether the guest is stopped for the handover and has not been let run again.
    pub fn blackout(&self) -> bool {
        self.handing_over()
            && !matches!(
                self.destination,
                SideView::Reported(DestinationReport::Holding { .. } | DestinationReport::Lost(_))
            )
    }
}
