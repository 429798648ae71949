//! What the driver does so that the record can decide where one side is not heard: it tells the destination in time that
//! the source stands still, and has whoever is heard ask the record.

use super::machine::Next;
use super::{Driver, DriverEffect, SideView};
use crate::destination::DestinationReport;
use crate::source::SourceReport;
use crate::terms::{Cause, Standing, StandingBecause};

impl Driver {
    /// Adds to what is next what a silence asks for, and what the destination has to know before there is one.
    pub(super) fn in_the_silence(&self, mut next: Next) -> Next {
        let (takes, loaded) = match &self.destination {
            SideView::Reported(DestinationReport::Prepared(_) | DestinationReport::Receiving) => {
                (true, false)
            }
            SideView::Reported(DestinationReport::Loaded) => (true, true),
            SideView::Unheard
            | SideView::NoSuchMigration
            | SideView::Reported(
                DestinationReport::Preparing
                | DestinationReport::Blocked
                | DestinationReport::Deciding
                | DestinationReport::Starting
                | DestinationReport::Holding { .. }
                | DestinationReport::Reverting(_)
                | DestinationReport::Reverted(_)
                | DestinationReport::Lost(_),
            ) => (false, false),
        };
        let standing = self.standing();
        if let Some(standing) = standing.filter(|_| takes) {
            next.effects.push(DriverEffect::TellStanding(standing));
        }
        // A dead source that never says Go: the destination's commitment is all that is left.
        let dead = standing.is_some_and(|standing| standing.because == StandingBecause::SourceDead);
        let source_blocked = matches!(self.source, SideView::Reported(SourceReport::Blocked { .. }));
        if loaded && (self.source_silent || dead || source_blocked) {
            next.effects.push(DriverEffect::ArbitrateDestination);
        }
        let destination_blocked = matches!(self.destination, SideView::Reported(DestinationReport::Blocked));
        if (self.destination_silent || destination_blocked) && self.go_outstanding() {
            next.effects
                .push(DriverEffect::ArbitrateSource(Cause::PathNotProven));
        }
        next
    }

    /// That the source's guest does not run again by itself, if the source's last report says so.
    fn standing(&self) -> Option<Standing> {
        let (because, wanted) = match &self.source {
            SideView::Reported(
                SourceReport::Switching {
                    sealed: true, wanted, ..
                }
                | SourceReport::InDoubt {
                    sealed: true, wanted, ..
                },
            ) => (StandingBecause::Sealed, *wanted),
            SideView::Reported(SourceReport::Deciding { dead, .. }) => (StandingBecause::SourceDead, *dead),
            SideView::Reported(SourceReport::Blocked { sealed: true, wanted }) => {
                (StandingBecause::Sealed, Some(*wanted))
            }
            SideView::Unheard
            | SideView::NoSuchMigration
            | SideView::Reported(
                SourceReport::Begun
                | SourceReport::Streaming
                | SourceReport::Stopped { .. }
                | SourceReport::Switching { .. }
                | SourceReport::InDoubt { .. }
                | SourceReport::Yielded
                | SourceReport::Blocked { .. }
                | SourceReport::GoSent(_)
                | SourceReport::Released
                | SourceReport::Aborting(_)
                | SourceReport::Aborted(_)
                | SourceReport::Died
                | SourceReport::Lost(_),
            ) => return None,
        };
        wanted.map(|wanted| Standing { because, wanted })
    }

    /// Whether the guest stands still at the source and waits for a Go that was not said.
    fn go_outstanding(&self) -> bool {
        match &self.source {
            SideView::Reported(SourceReport::Switching { .. } | SourceReport::InDoubt { .. }) => true,
            // Said, and under strict terms not enough.
            SideView::Reported(SourceReport::GoSent(_)) => self.terms.strict,
            SideView::Unheard
            | SideView::NoSuchMigration
            | SideView::Reported(
                SourceReport::Begun
                | SourceReport::Streaming
                | SourceReport::Stopped { .. }
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
}
