//! What the driver does next, from the last report of each side and the record.

use super::{Driver, DriverEffect, DriverEvent, Outcome, SideView, Stand, Wait};
use crate::destination::DestinationReport;
use crate::source::SourceReport;
use crate::terms::{Cause, Decision, Go, Phase, RecordView, Step, Terms};

/// What follows from what is known: what is to be done, each for itself, and where that leaves the driver.
pub(super) struct Next {
    pub(super) effects: Vec<DriverEffect>,
    pub(super) stand: Stand,
}

impl Next {
    pub(super) fn order_source(effect: DriverEffect) -> Self {
        Self {
            effects: vec![effect],
            stand: Stand::Waiting { wait: Wait::Source },
        }
    }

    pub(super) fn order_destination(effect: DriverEffect) -> Self {
        Self {
            effects: vec![effect],
            stand: Stand::Waiting {
                wait: Wait::Destination,
            },
        }
    }

    pub(super) fn write(effect: DriverEffect) -> Self {
        Self {
            effects: vec![effect],
            stand: Stand::Waiting { wait: Wait::Record },
        }
    }

    pub(super) fn wait(wait: Wait) -> Self {
        Self {
            effects: vec![],
            stand: Stand::Waiting { wait },
        }
    }

    pub(super) fn end(outcome: Outcome) -> Self {
        Self {
            effects: vec![],
            stand: Stand::Ended(outcome),
        }
    }
}

impl Driver {
    /// A driver that knows nothing yet: of a new migration, or after a restart.
    pub fn new(terms: Terms) -> Self {
        Self {
            terms,
            cancel: false,
            source: SideView::Unheard,
            destination: SideView::Unheard,
            record: None,
            channel: None,
            give_up: None,
            source_silent: false,
            destination_silent: false,
            phase: Phase::Begin,
        }
    }

    /// What the migration is about.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The phase for people; it never goes back.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The source's last report.
    pub fn source(&self) -> &SideView<SourceReport> {
        &self.source
    }

    /// The destination's last report.
    pub fn destination(&self) -> &SideView<DestinationReport> {
        &self.destination
    }

    /// Takes an event; gives the new state and the orders that follow from it, if it changed anything.
    #[must_use]
    pub fn step(&self, event: DriverEvent) -> (Self, Step<DriverEffect>) {
        let mut next = self.clone();
        match event {
            DriverEvent::Cancel => next.cancel = true,
            DriverEvent::Source(report) => next.source = view(report),
            DriverEvent::Destination(report) => {
                if let Some(DestinationReport::Prepared(channel)) = &report {
                    next.channel = Some(channel.clone());
                }
                next.destination = view(report);
            }
            DriverEvent::Record(record) => next.record = Some(record),
            DriverEvent::SourceSilent(silent) => next.source_silent = silent,
            DriverEvent::DestinationSilent(silent) => next.destination_silent = silent,
            DriverEvent::OrderFailed(cause) => next.give_up = next.give_up.or(Some(cause)),
        }
        next.phase = next.phase.max(next.judge_phase());
        if next == *self {
            return (next, Step::none());
        }
        let effects = next.next();
        (next, Step::many(effects))
    }

    /// The orders that follow from what is known. They are to be given again from time to time until the reports
    /// move on: an order or a report may have been lost.
    pub fn next(&self) -> Vec<DriverEffect> {
        self.judge().effects
    }

    /// Where the driver stands.
    pub fn stand(&self) -> Stand {
        self.judge().stand
    }

    fn judge(&self) -> Next {
        let Some(record) = &self.record else {
            return Next::write(DriverEffect::ArmRecord);
        };
        if record.advanced_for(&self.terms) {
            return self.after_handover();
        }
        if record.reverted_for(&self.terms) {
            return self.after_decision();
        }
        let spoken_of = self.source_fenced() || self.destination_fenced();
        if record.migration.as_deref() != Some(self.terms.migration.as_str()) {
            return if spoken_of && record.left_behind(&self.terms) {
                self.after_the_word()
            } else {
                self.unarmed(record)
            };
        }
        if self.source_fenced() {
            return self.without_the_source(record);
        }
        if self.destination_fenced() {
            return self.without_the_destination();
        }
        self.in_the_silence(self.undecided())
    }

    /// The record is not armed for this migration (yet, or any more).
    fn unarmed(&self, record: &RecordView) -> Next {
        let ours = record.holder == self.terms.source && record.epoch == self.terms.epoch;
        match (&self.source, &self.destination) {
            // Nothing was begun anywhere: nothing is to be undone.
            (
                SideView::NoSuchMigration | SideView::Unheard,
                SideView::NoSuchMigration | SideView::Unheard,
            ) => match self.abort_cause() {
                Some(cause) => Next::end(Outcome::Aborted(cause)),
                None if ours => Next::write(DriverEffect::ArmRecord),
                None => Next::wait(Wait::Decision),
            },
            (_, _) if ours => Next::write(DriverEffect::ArmRecord),
            (_, _) => Next::wait(Wait::Decision),
        }
    }

    /// The destination holds the guest by the record: the source lets go.
    fn after_handover(&self) -> Next {
        let outcome = match &self.destination {
            _ if self.given_up() => Outcome::GuestLost(Cause::DestinationDied),
            SideView::Reported(DestinationReport::Holding { running }) => {
                Outcome::Succeeded { running: *running }
            }
            SideView::Reported(DestinationReport::Lost(cause)) => Outcome::GuestLost(*cause),
            SideView::Unheard
            | SideView::NoSuchMigration
            | SideView::Reported(
                DestinationReport::Preparing
                | DestinationReport::Prepared(_)
                | DestinationReport::Receiving
                | DestinationReport::Loaded
                | DestinationReport::Blocked
                | DestinationReport::Deciding
                | DestinationReport::Starting
                | DestinationReport::Reverting(_)
                | DestinationReport::Reverted(_),
            ) => return Next::wait(Wait::Destination),
        };
        match &self.source {
            _ if self.source_fenced() => Next::end(outcome),
            SideView::Reported(SourceReport::Released) => Next::end(outcome),
            SideView::Unheard => Next::wait(Wait::Source),
            // Without a Go where the destination has committed by itself.
            SideView::Reported(
                SourceReport::GoSent(_)
                | SourceReport::Switching { .. }
                | SourceReport::InDoubt { .. }
                | SourceReport::Died
                | SourceReport::Deciding { .. }
                | SourceReport::Blocked { .. }
                | SourceReport::Yielded,
            ) => Next::order_source(DriverEffect::Confirm),
            SideView::NoSuchMigration
            | SideView::Reported(
                SourceReport::Begun
                | SourceReport::Streaming
                | SourceReport::Stopped { .. }
                | SourceReport::Aborting(_)
                | SourceReport::Aborted(_)
                | SourceReport::Lost(_),
            ) => Next::wait(Wait::Decision),
        }
    }

    /// The record says that the destination never will run the guest.
    fn after_decision(&self) -> Next {
        match &self.source {
            SideView::Reported(SourceReport::Aborted(cause)) => {
                self.end_after_destination(Outcome::Aborted(self.name_cause(*cause)), *cause)
            }
            // Gone with its image, or with the guest that it had let run again.
            _ if self.source_fenced() => {
                self.end_after_destination(Outcome::GuestLost(Cause::SourceDied), Cause::SourceDied)
            }
            SideView::Unheard => Next::wait(Wait::Source),
            SideView::NoSuchMigration => {
                let cause = self.abort_cause().unwrap_or(Cause::DestinationFailed);
                self.end_after_destination(Outcome::Aborted(cause), cause)
            }
            SideView::Reported(SourceReport::Lost(cause)) => {
                self.end_after_destination(Outcome::GuestLost(*cause), *cause)
            }
            SideView::Reported(
                SourceReport::Switching { .. }
                | SourceReport::InDoubt { .. }
                | SourceReport::GoSent(_)
                | SourceReport::Deciding { .. }
                | SourceReport::Yielded
                | SourceReport::Blocked { .. }
                | SourceReport::Died,
            ) => Next::order_source(DriverEffect::Settle),
            SideView::Reported(
                SourceReport::Begun | SourceReport::Streaming | SourceReport::Stopped { .. },
            ) => Next::order_source(DriverEffect::AbortSource(self.name_cause(Cause::Reverted))),
            SideView::Reported(SourceReport::Aborting(_)) => Next::wait(Wait::Source),
            SideView::Reported(SourceReport::Released) => Next::wait(Wait::Decision),
        }
    }

    /// Ends once nothing is left at the destination.
    pub(super) fn end_after_destination(&self, outcome: Outcome, cause: Cause) -> Next {
        match self.clear_destination(cause) {
            Ok(()) => Next::end(outcome),
            Err(next) => next,
        }
    }

    /// Whether nothing is left at the destination; otherwise what has to come before.
    fn clear_destination(&self, cause: Cause) -> Result<(), Next> {
        match &self.destination {
            _ if self.destination_fenced() => Ok(()),
            SideView::NoSuchMigration | SideView::Reported(DestinationReport::Reverted(_)) => Ok(()),
            // It reads by itself what the record says.
            SideView::Unheard
            | SideView::Reported(DestinationReport::Reverting(_) | DestinationReport::Deciding) => {
                Err(Next::wait(Wait::Destination))
            }
            SideView::Reported(
                DestinationReport::Preparing
                | DestinationReport::Prepared(_)
                | DestinationReport::Receiving
                | DestinationReport::Loaded
                | DestinationReport::Blocked,
            ) => Err(Next::order_destination(DriverEffect::AbortDestination(cause))),
            SideView::Reported(
                DestinationReport::Starting | DestinationReport::Holding { .. } | DestinationReport::Lost(_),
            ) => Err(Next::wait(Wait::Decision)),
        }
    }

    fn undecided(&self) -> Next {
        match &self.source {
            SideView::Unheard => Next::wait(Wait::Source),
            SideView::NoSuchMigration => self.before_begin(),
            SideView::Reported(report) => match report {
                SourceReport::Begun => self.begun(),
                SourceReport::Streaming | SourceReport::Stopped { .. } => self.streaming(),
                SourceReport::Switching { ready, .. } | SourceReport::InDoubt { ready, .. } => {
                    self.switching(*ready)
                }
                SourceReport::Died => self.switching(false),
                SourceReport::Blocked { sealed, .. } => self.blocked(*sealed),
                SourceReport::Deciding { .. } | SourceReport::Yielded => self.given_to_the_record(),
                SourceReport::GoSent(go) => self.go_sent(*go),
                SourceReport::Aborting(_) => Next::wait(Wait::Source),
                SourceReport::Aborted(cause) | SourceReport::Lost(cause) => {
                    match self.clear_destination(*cause) {
                        Ok(()) => Next::write(DriverEffect::DecideRecord(Decision::Aborted)),
                        Err(next) => next,
                    }
                }
                SourceReport::Released => Next::wait(Wait::Decision),
            },
        }
    }

    /// The source says that it knows nothing of it. That is no evidence where the destination has got the guest
    /// whole: the source had the migration once and has lost it, and the copy may be the only one left.
    fn before_begin(&self) -> Next {
        if let SideView::Reported(DestinationReport::Loaded | DestinationReport::Blocked) = &self.destination
        {
            return Next::wait(Wait::Decision);
        }
        let Some(cause) = self.abort_cause() else {
            return Next::order_source(DriverEffect::Begin);
        };
        match self.clear_destination(cause) {
            Ok(()) => Next::write(DriverEffect::DecideRecord(Decision::Aborted)),
            Err(next) => next,
        }
    }

    fn begun(&self) -> Next {
        if let Some(cause) = self.abort_cause().or_else(|| self.destination_gave_up()) {
            return Next::order_source(DriverEffect::AbortSource(cause));
        }
        match &self.destination {
            SideView::NoSuchMigration => Next::order_destination(DriverEffect::Prepare),
            SideView::Reported(DestinationReport::Prepared(channel)) => {
                Next::order_source(DriverEffect::Perform(channel.clone()))
            }
            SideView::Unheard | SideView::Reported(DestinationReport::Preparing) => {
                Next::wait(Wait::Destination)
            }
            // The reports of two hosts cross: the source's next one says that it streams, and then a repeated order
            // does nothing. Should its agent have been restarted between the connection and the stream, it finds
            // the channel used up and gives up.
            SideView::Reported(DestinationReport::Receiving | DestinationReport::Loaded) => {
                match &self.channel {
                    Some(channel) => Next::order_source(DriverEffect::Perform(channel.clone())),
                    None => Next::order_source(DriverEffect::AbortSource(Cause::StreamFailed)),
                }
            }
            SideView::Reported(
                DestinationReport::Blocked
                | DestinationReport::Deciding
                | DestinationReport::Starting
                | DestinationReport::Holding { .. }
                | DestinationReport::Reverting(_)
                | DestinationReport::Reverted(_)
                | DestinationReport::Lost(_),
            ) => Next::wait(Wait::Decision),
        }
    }

    fn streaming(&self) -> Next {
        match self.abort_cause().or_else(|| self.destination_gave_up()) {
            Some(cause) => Next::order_source(DriverEffect::AbortSource(cause)),
            None => Next::wait(Wait::Source),
        }
    }

    /// From here on a cancellation comes too late: either the destination loads the guest, or it gives it up.
    fn switching(&self, ready: bool) -> Next {
        match &self.destination {
            SideView::Reported(DestinationReport::Loaded) if !ready => {
                Next::order_source(DriverEffect::Ready)
            }
            SideView::Reported(DestinationReport::Loaded) => Next::wait(Wait::Source),
            SideView::NoSuchMigration | SideView::Reported(DestinationReport::Blocked) => {
                Next::wait(Wait::Decision)
            }
            SideView::Unheard
            | SideView::Reported(
                DestinationReport::Preparing
                | DestinationReport::Prepared(_)
                | DestinationReport::Receiving
                | DestinationReport::Deciding
                | DestinationReport::Starting
                | DestinationReport::Holding { .. }
                | DestinationReport::Reverting(_)
                | DestinationReport::Reverted(_)
                | DestinationReport::Lost(_),
            ) => self.destination_acts(),
        }
    }

    /// The source can say nothing any more: the destination asks the record, if it was told that the source stands still.
    fn blocked(&self, sealed: bool) -> Next {
        if sealed {
            self.given_to_the_record()
        } else {
            match self.switching(true) {
                next if next.effects.is_empty() => Next::wait(Wait::Decision),
                next => next,
            }
        }
    }

    /// The source never says Go: the record decides, and whoever wins tells it.
    fn given_to_the_record(&self) -> Next {
        match (&self.source, &self.destination) {
            (
                SideView::Reported(SourceReport::Deciding { .. }),
                SideView::Reported(
                    DestinationReport::Preparing
                    | DestinationReport::Prepared(_)
                    | DestinationReport::Receiving
                    | DestinationReport::Loaded
                    | DestinationReport::Blocked,
                )
                | SideView::NoSuchMigration,
            ) => Next::wait(Wait::Source),
            (_, SideView::NoSuchMigration | SideView::Reported(DestinationReport::Blocked)) => {
                Next::wait(Wait::Decision)
            }
            (_, _) => self.destination_acts(),
        }
    }

    /// What the destination does by itself, or has done.
    fn destination_acts(&self) -> Next {
        match &self.destination {
            // It ran the guest, or runs it: with a Go, or with its own commitment.
            SideView::Reported(DestinationReport::Holding { .. } | DestinationReport::Lost(_)) => {
                Next::write(DriverEffect::AdvanceRecord)
            }
            SideView::Reported(DestinationReport::Reverted(_)) => {
                Next::write(DriverEffect::DecideRecord(Decision::Reverted))
            }
            SideView::Unheard
            | SideView::NoSuchMigration
            | SideView::Reported(
                DestinationReport::Preparing
                | DestinationReport::Prepared(_)
                | DestinationReport::Receiving
                | DestinationReport::Loaded
                | DestinationReport::Blocked
                | DestinationReport::Deciding
                | DestinationReport::Starting
                | DestinationReport::Reverting(_),
            ) => Next::wait(Wait::Destination),
        }
    }

    fn go_sent(&self, go: Go) -> Next {
        match &self.destination {
            SideView::Reported(DestinationReport::Loaded | DestinationReport::Deciding) => {
                Next::order_destination(DriverEffect::Finish(go))
            }
            SideView::Unheard
            | SideView::Reported(
                DestinationReport::Starting
                | DestinationReport::Holding { .. }
                | DestinationReport::Reverting(_)
                | DestinationReport::Reverted(_)
                | DestinationReport::Lost(_),
            ) => self.destination_acts(),
            SideView::NoSuchMigration
            | SideView::Reported(
                DestinationReport::Preparing
                | DestinationReport::Prepared(_)
                | DestinationReport::Receiving
                | DestinationReport::Blocked,
            ) => Next::wait(Wait::Decision),
        }
    }

    fn abort_cause(&self) -> Option<Cause> {
        self.give_up
            .or(if self.cancel { Some(Cause::Cancelled) } else { None })
    }

    fn destination_gave_up(&self) -> Option<Cause> {
        match &self.destination {
            SideView::Reported(DestinationReport::Reverted(cause) | DestinationReport::Reverting(cause)) => {
                Some(*cause)
            }
            SideView::Unheard
            | SideView::NoSuchMigration
            | SideView::Reported(
                DestinationReport::Preparing
                | DestinationReport::Prepared(_)
                | DestinationReport::Receiving
                | DestinationReport::Loaded
                | DestinationReport::Blocked
                | DestinationReport::Deciding
                | DestinationReport::Starting
                | DestinationReport::Holding { .. }
                | DestinationReport::Lost(_),
            ) => None,
        }
    }

    /// `Reverted` says who decided; people want to know why.
    fn name_cause(&self, cause: Cause) -> Cause {
        if cause == Cause::Reverted {
            self.destination_gave_up().unwrap_or(cause)
        } else {
            cause
        }
    }

    fn judge_phase(&self) -> Phase {
        let advanced = self.record.as_ref().is_some_and(|r| r.advanced_for(&self.terms));
        if advanced {
            return Phase::Confirm;
        }
        match &self.source {
            SideView::Unheard | SideView::NoSuchMigration => Phase::Begin,
            SideView::Reported(SourceReport::Begun) => Phase::Prepare,
            SideView::Reported(
                SourceReport::Streaming
                | SourceReport::Stopped { .. }
                | SourceReport::Switching { .. }
                | SourceReport::InDoubt { .. }
                | SourceReport::Deciding { .. }
                | SourceReport::Yielded
                | SourceReport::Blocked { .. }
                | SourceReport::Died,
            ) => Phase::Perform,
            SideView::Reported(SourceReport::GoSent(_)) => Phase::Finish,
            SideView::Reported(SourceReport::Released) => Phase::Confirm,
            // An ending says nothing about how far it had come.
            SideView::Reported(
                SourceReport::Aborting(_) | SourceReport::Aborted(_) | SourceReport::Lost(_),
            ) => Phase::Begin,
        }
    }
}

fn view<R>(report: Option<R>) -> SideView<R> {
    match report {
        Some(report) => SideView::Reported(report),
        None => SideView::NoSuchMigration,
    }
}
