//! How many of the connections that were turned away are told of: a flood of strangers must not fill the logs.

use std::time::{Duration, Instant};

/// As many are told of in each span; the rest are counted.
const TOLD: u32 = 5;
/// The span.
const SPAN: Duration = Duration::from_secs(10);

/// What has been told of lately.
#[derive(Debug)]
pub(crate) struct Refusals {
    since: Instant,
    told: u32,
    untold: u64,
}

/// What to say about a refusal.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Say {
    /// It, and how many were not told of before it.
    It {
        /// Since the last one that was told of.
        untold_before: u64,
    },
    /// Nothing.
    Nothing,
}

impl Refusals {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            since: now,
            told: 0,
            untold: 0,
        }
    }

    /// Another one.
    pub(crate) fn another(&mut self, now: Instant) -> Say {
        if now.saturating_duration_since(self.since) >= SPAN {
            self.since = now;
            self.told = 0;
        }
        if self.told < TOLD {
            self.told += 1;
            Say::It {
                untold_before: std::mem::take(&mut self.untold),
            }
        } else {
            self.untold += 1;
            Say::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_of_a_few_times_and_counted() {
        let start = Instant::now();
        let mut refusals = Refusals::new(start);
        for _ in 0..TOLD {
            assert_eq!(refusals.another(start), Say::It { untold_before: 0 });
        }
        for _ in 0..1000 {
            assert_eq!(refusals.another(start), Say::Nothing);
        }
        assert_eq!(refusals.another(start + SPAN), Say::It { untold_before: 1000 });
        assert_eq!(refusals.another(start + SPAN), Say::It { untold_before: 0 });
    }
}
