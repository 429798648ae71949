//! How much a monitor may say in a while. Pure.
//!
//! A QEMU that was taken over could talk without end, and keep the agent busy with reading. Past its allowance it is not
//! read from for a while: then its socket is full, and it waits.

use std::time::{Duration, Instant};

/// What a monitor may say at once, in bytes: several of the longest lines.
const BURST_BYTES: u32 = 8 << 20;
/// What it may go on to say, in bytes per second.
const BYTES_PER_SECOND: u32 = 1 << 20;
/// How many lines it may say at once.
const BURST_LINES: u32 = 4096;
/// How many it may go on to say in a second. A busy guest's are some dozens.
const LINES_PER_SECOND: u32 = 512;

/// An allowance that is used up by what is said and grows back with time.
#[derive(Clone, Copy, Debug)]
struct Allowance {
    burst: f64,
    per_second: f64,
    left: f64,
}

impl Allowance {
    fn new(burst: u32, per_second: u32) -> Self {
        Self {
            burst: burst.into(),
            per_second: per_second.into(),
            left: burst.into(),
        }
    }

    fn grow(&mut self, passed: Duration) {
        self.left = passed
            .as_secs_f64()
            .mul_add(self.per_second, self.left)
            .min(self.burst);
    }

    fn use_up(&mut self, amount: u32) {
        self.left -= f64::from(amount);
    }

    /// How long it takes until something is left again.
    fn recovers_in(&self) -> Duration {
        Duration::try_from_secs_f64(-self.left / self.per_second).unwrap_or_default()
    }
}

/// What one monitor may say.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    bytes: Allowance,
    lines: Allowance,
    at: Instant,
}

impl Pace {
    /// The whole allowance.
    pub fn new(now: Instant) -> Self {
        Self {
            bytes: Allowance::new(BURST_BYTES, BYTES_PER_SECOND),
            lines: Allowance::new(BURST_LINES, LINES_PER_SECOND),
            at: now,
        }
    }

    /// Counts what was said; says until when nothing more is to be read, if so.
    pub fn heard(&mut self, now: Instant, bytes: usize, lines: usize) -> Option<Instant> {
        let passed = now.saturating_duration_since(self.at);
        self.at = now;
        for (allowance, amount) in [(&mut self.bytes, bytes), (&mut self.lines, lines)] {
            allowance.grow(passed);
            allowance.use_up(u32::try_from(amount).unwrap_or(u32::MAX));
        }
        let pause = self.bytes.recovers_in().max(self.lines.recovers_in());
        (!pause.is_zero()).then(|| now + pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r11_what_an_honest_monitor_says_is_read_at_once() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        // The longest answer, then a hundred events a second.
        assert_eq!(pace.heard(start, 1 << 20, 1), None);
        for event in 1..2000 {
            let now = start + Duration::from_millis(10) * event;
            assert_eq!(pace.heard(now, 200, 1), None);
        }
    }

    #[test]
    fn r11_a_flood_is_read_at_the_pace_of_the_allowance() {
        for (bytes, lines, most) in [(65_536, 1, 18 << 20), (1024, 64, 9216)] {
            let start = Instant::now();
            let (mut pace, mut now, mut read) = (Pace::new(start), start, 0);
            while now < start + Duration::from_secs(10) {
                read += if lines == 1 { bytes } else { lines };
                now = pace.heard(now, bytes, lines).unwrap_or(now);
            }
            assert!(read <= most + 65_536 && read >= most / 2, "{read}");
        }
    }
}
