//! What is known of the driver: when it was last heard, and for how long its proof of the path holds. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// How long the proof of the path holds after the driver gave it.
pub const PROOF_HOLDS: Duration = Duration::from_secs(3);
/// How long a driver may be silent that has not said so itself.
pub const DEFAULT_SILENCE: Duration = Duration::from_secs(30);

/// The same where a guest stands still for what the driver has to say: its record can decide as well.
pub const STANDING_STILL: Duration = Duration::from_secs(5);
/// How often a silence that goes on is told again: what followed from it may have come to nothing.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// What is known of a migration's driver.
#[derive(Clone, Debug)]
pub struct DriverWatch {
    last: Instant,
    silence: Duration,
    bearing: Bearing,
    proven_until: Option<Instant>,
    told_silent: Option<Instant>,
}

/// How long a silence is borne.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bearing {
    /// As long as the driver has asked for.
    Patient,
    /// No longer than a guest is to stand still: [`STANDING_STILL`].
    StandingStill,
}

/// What has lapsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lapse {
    /// The proof of the path.
    Path,
    /// The driver's patience: it counts as silent.
    Driver,
}

impl DriverWatch {
    /// The driver was heard now, and has proved nothing. A recovered migration gets one proof's time to hear of it
    /// before the path counts as not proved.
    pub fn new(now: Instant, recovered: bool) -> Self {
        Self {
            last: now,
            silence: DEFAULT_SILENCE,
            bearing: Bearing::Patient,
            proven_until: recovered.then(|| now + 2 * PROOF_HOLDS),
            told_silent: None,
        }
    }

    /// The driver was heard by an order.
    pub fn heard(&mut self, now: Instant) {
        self.last = now;
        self.told_silent = None;
    }

    /// How long a silence is borne from now on.
    pub fn bear(&mut self, bearing: Bearing) {
        self.bearing = bearing;
    }

    fn silent_at(&self) -> Instant {
        let silence = match self.bearing {
            Bearing::Patient => self.silence,
            Bearing::StandingStill => self.silence.min(STANDING_STILL),
        };
        let first = self.last + silence;
        self.told_silent
            .map_or(first, |told| first.max(told + TOLD_EVERY))
    }

    /// The driver was heard by a keepalive.
    pub fn keep_alive(&mut self, now: Instant, path_proven: bool, silence: Duration) {
        self.heard(now);
        if !silence.is_zero() {
            self.silence = silence;
        }
        self.proven_until = path_proven.then(|| now + PROOF_HOLDS);
    }

    /// When something lapses next.
    pub fn next(&self) -> Option<Instant> {
        let silent = self.silent_at();
        Some(self.proven_until.map_or(silent, |proven| proven.min(silent)))
    }

    /// What has lapsed since it was last asked.
    pub fn lapsed(&mut self, now: Instant) -> Vec<Lapse> {
        let mut lapses = Vec::new();
        if self.proven_until.is_some_and(|until| now >= until) {
            self.proven_until = None;
            lapses.push(Lapse::Path);
        }
        if now >= self.silent_at() {
            self.told_silent = Some(now);
            lapses.push(Lapse::Driver);
        }
        lapses
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

    #[test]
    fn a_proof_lapses_before_the_driver_does_and_a_silence_is_told_again() {
        let start = Instant::now();
        let mut watch = DriverWatch::new(start, false);
        assert_eq!(watch.next(), Some(start + DEFAULT_SILENCE));
        watch.keep_alive(start, true, Duration::from_secs(5));
        assert_eq!(watch.next(), Some(start + PROOF_HOLDS));
        assert_eq!(watch.lapsed(start + Duration::from_secs(2)), []);
        assert_eq!(watch.lapsed(start + PROOF_HOLDS), [Lapse::Path]);
        assert_eq!(watch.lapsed(start + Duration::from_secs(4)), []);
        assert_eq!(watch.lapsed(start + Duration::from_secs(5)), [Lapse::Driver]);
        assert_eq!(watch.lapsed(start + Duration::from_secs(9)), []);
        assert_eq!(watch.next(), Some(start + Duration::from_secs(10)));
        assert_eq!(watch.lapsed(start + Duration::from_secs(50)), [Lapse::Driver]);
        watch.heard(start + Duration::from_secs(51));
        assert_eq!(watch.lapsed(start + Duration::from_secs(56)), [Lapse::Driver]);
    }

    #[test]
    fn a_guest_that_stands_still_does_not_wait_as_long() {
        let start = Instant::now();
        let mut watch = DriverWatch::new(start, false);
        watch.bear(Bearing::StandingStill);
        assert_eq!(watch.next(), Some(start + STANDING_STILL));
        watch.keep_alive(start, false, Duration::from_secs(2));
        assert_eq!(watch.next(), Some(start + Duration::from_secs(2)));
        watch.bear(Bearing::Patient);
        watch.keep_alive(start, false, Duration::from_secs(60));
        assert_eq!(watch.next(), Some(start + Duration::from_secs(60)));
    }

    #[test]
    fn an_order_does_not_prolong_the_proof() {
        let start = Instant::now();
        let mut watch = DriverWatch::new(start, false);
        watch.keep_alive(start, true, Duration::ZERO);
        watch.heard(start + Duration::from_secs(2));
        assert_eq!(watch.lapsed(start + PROOF_HOLDS), [Lapse::Path]);
    }
}
