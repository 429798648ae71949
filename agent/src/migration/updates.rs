//! What watchers of a migration see: the whole state, at once at each change; bare figures twice a second at most.

use std::time::Duration;

use godwit_protocol::update::LONGEST_DETAIL;
use godwit_protocol::{Progress, Side, Update};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::hypervisor::StreamFigures;

/// The shortest time between two updates that differ in nothing but figures.
const BETWEEN_FIGURES: Duration = Duration::from_millis(500);

/// What watchers of one migration see. `None` while a restarted agent does not know yet how its side stands.
pub type Shown = Option<Update>;

/// The last failure, in a stable word and in words for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Of the table in `docs/conditions.md`.
    pub reason: &'static str,
    /// The hypervisor's or the system's own words.
    pub detail: String,
}

impl Note {
    /// A note, its words cut to what an update may carry.
    pub fn new(reason: &'static str, detail: impl ToString) -> Self {
        let mut detail = detail.to_string();
        let mut end = detail.len().min(LONGEST_DETAIL);
        while !detail.is_char_boundary(end) {
            end -= 1;
        }
        detail.truncate(end);
        Self { reason, detail }
    }
}

/// The one writer of a migration's updates.
pub struct Publisher {
    sender: watch::Sender<Shown>,
    update: Update,
    figures_shown: Option<Instant>,
}

impl Publisher {
    /// A publisher that has said nothing yet.
    pub fn new(sender: watch::Sender<Shown>) -> Self {
        Self {
            sender,
            update: Update::default(),
            figures_shown: None,
        }
    }

    /// Shows the machine's report, with everything that was noted before.
    pub fn side(&mut self, side: Side) {
        if self.update.side.as_ref() != Some(&side) {
            self.update.side = Some(side);
            self.show();
        }
    }

    /// Shows figures of the stream, if the last ones were shown long enough ago; else they go with the next update.
    pub fn figures(&mut self, figures: &StreamFigures, now: Instant) {
        let progress = Progress {
            total_bytes: figures.total_bytes,
            transferred_bytes: figures.transferred_bytes,
            remaining_bytes: figures.remaining_bytes,
            dirty_bytes_per_second: figures.dirty_bytes_per_second,
            bytes_per_second: figures.bytes_per_second,
            iteration: figures.iteration,
        };
        let settled = figures.downtime_millis.is_some()
            && self.update.hypervisor_downtime_millis != figures.downtime_millis;
        self.update.progress = Some(progress);
        self.update.hypervisor_downtime_millis = figures.downtime_millis;
        self.update.hypervisor_total_millis = (figures.total_millis != 0).then_some(figures.total_millis);
        if settled
            || self
                .figures_shown
                .is_none_or(|shown| now >= shown + BETWEEN_FIGURES)
        {
            self.figures_shown = Some(now);
            self.show();
        }
    }

    /// Whether the stream is held back; shown at once.
    pub fn held_back(&mut self, held: bool) {
        if self.update.held_back != held {
            self.update.held_back = held;
            self.show();
        }
    }

    /// When the guest stopped, as the hypervisor stamped it.
    pub fn stopped_at(&mut self, micros: i64) {
        self.update.stopped_at_micros = Some(micros);
        self.show();
    }

    /// When the guest was let run, as the hypervisor stamped it.
    pub fn resumed_at(&mut self, micros: i64) {
        self.update.resumed_at_micros = Some(micros);
        self.show();
    }

    /// When the guest was let run, if it was.
    pub fn resumed(&self) -> Option<i64> {
        self.update.resumed_at_micros
    }

    /// The last failure. It is shown with the report that follows from it; one that comes again lasts, and is shown
    /// now, for nothing may follow from it.
    pub fn note(&mut self, note: Note) {
        tracing::warn!(reason = note.reason, "{}", note.detail);
        let lasts = self.update.reason == note.reason;
        self.update.reason = note.reason.to_owned();
        self.update.detail = note.detail;
        if lasts {
            self.show();
        }
    }

    fn show(&self) {
        if self.update.side.is_some() {
            self.sender.send_replace(Some(self.update.clone()));
        }
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
    use super::*;
    use godwit_handover::SourceReport;

    fn figures(transferred_bytes: u64) -> StreamFigures {
        StreamFigures {
            total_bytes: 1000,
            transferred_bytes,
            ..StreamFigures::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn figures_come_twice_a_second_and_stages_at_once() {
        let sender = watch::Sender::new(None);
        let mut seen = sender.subscribe();
        let mut publisher = Publisher::new(sender);
        publisher.side(Side::Source(SourceReport::Streaming));
        let mut shown = Vec::new();
        let start = Instant::now();
        for tick in 0..20 {
            publisher.figures(&figures(tick), start + Duration::from_millis(tick * 100));
            if seen.has_changed().unwrap() {
                shown.push(
                    seen.borrow_and_update()
                        .clone()
                        .unwrap()
                        .progress
                        .unwrap()
                        .transferred_bytes,
                );
            }
        }
        assert_eq!(shown, [0, 5, 10, 15]);
        publisher.side(Side::Source(SourceReport::Stopped { sealed: true }));
        let update = seen.borrow_and_update().clone().unwrap();
        assert_eq!(
            update.side,
            Some(Side::Source(SourceReport::Stopped { sealed: true }))
        );
        assert_eq!(update.progress.unwrap().transferred_bytes, 19);
        publisher.side(Side::Source(SourceReport::Stopped { sealed: true }));
        assert!(!seen.has_changed().unwrap());
        // The end's figures do not wait.
        let last = StreamFigures {
            downtime_millis: Some(7),
            total_millis: 40,
            ..figures(20)
        };
        publisher.figures(&last, start + Duration::from_millis(1950));
        assert_eq!(
            seen.borrow_and_update()
                .clone()
                .unwrap()
                .hypervisor_downtime_millis,
            Some(7)
        );
    }

    #[tokio::test]
    async fn a_failure_that_comes_again_is_shown_without_a_report_that_follows() {
        let sender = watch::Sender::new(None);
        let mut seen = sender.subscribe();
        let mut publisher = Publisher::new(sender);
        publisher.side(Side::Source(SourceReport::Streaming));
        seen.borrow_and_update();
        publisher.note(Note::new("StartRefused", "locked"));
        assert!(!seen.has_changed().unwrap());
        publisher.note(Note::new("StartRefused", "locked still"));
        let update = seen.borrow_and_update().clone().unwrap();
        assert_eq!(
            (update.reason.as_str(), update.detail.as_str()),
            ("StartRefused", "locked still")
        );
    }

    #[test]
    fn a_long_detail_is_cut_at_a_letter() {
        let note = Note::new("StreamFailed", "ä".repeat(LONGEST_DETAIL));
        assert_eq!(note.detail.len(), LONGEST_DETAIL);
        let note = Note::new("StreamFailed", format!("x{}", "ä".repeat(LONGEST_DETAIL)));
        assert_eq!(note.detail.len(), LONGEST_DETAIL - 1);
    }
}
