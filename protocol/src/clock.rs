//! How far another host's clock is from ours, by its answers: pure figures, no clock is read here.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// One question and answer. Unix times in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When the question left, by our clock.
    pub sent_micros: i64,
    /// What the other host's clock said when it answered.
    pub remote_micros: i64,
    /// When the answer arrived, by our clock.
    pub received_micros: i64,
}

/// The other host's clock minus ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offset {
    /// The estimate, in microseconds.
    pub micros: i64,
    /// How far the truth may be from it, in microseconds.
    pub error_micros: u64,
}

/// How many of the latest samples are kept: clocks drift apart, so an old sample, however good, goes out.
const KEPT: usize = 32;

/// Of the latest 32 samples, trusts the one with the shortest round trip: the truth lies within half of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClockEstimate {
    /// Round trip in microseconds and what it says, the oldest first.
    latest: VecDeque<(u64, Offset)>,
}

impl ClockEstimate {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a sample in. One whose answer arrived before its question left (our clock was set back) is not used.
    pub fn add(&mut self, sample: Sample) {
        let Some(round_trip) = sample
            .received_micros
            .checked_sub(sample.sent_micros)
            .and_then(|micros| u64::try_from(micros).ok())
        else {
            return;
        };
        let middle = i128::from(sample.sent_micros) + i128::from(round_trip / 2);
        let Ok(micros) = i64::try_from(i128::from(sample.remote_micros) - middle) else {
            return;
        };
        if self.latest.len() == KEPT {
            self.latest.pop_front();
        }
        self.latest.push_back((
            round_trip,
            Offset {
                micros,
                error_micros: round_trip.div_ceil(2),
            },
        ));
    }

    /// The estimate; `None` before the first usable sample.
    pub fn offset(&self) -> Option<Offset> {
        self.latest
            .iter()
            .min_by_key(|(round_trip, _)| *round_trip)
            .map(|(_, offset)| *offset)
    }
}

impl Offset {
    /// The clock of `other` minus the clock of `self`, both measured against the same clock.
    pub fn to(self, other: Self) -> Self {
        Self {
            micros: other.micros.saturating_sub(self.micros),
            error_micros: other.error_micros.saturating_add(self.error_micros),
        }
    }
}

/// The time from an instant on one host's clock to an instant on another's, in microseconds, with the skew taken
/// out; it may come out below zero within the error.
pub fn elapsed(from_micros: i64, from: Offset, until_micros: i64, until: Offset) -> Offset {
    let skew = from.to(until);
    Offset {
        micros: until_micros
            .saturating_sub(from_micros)
            .saturating_sub(skew.micros),
        error_micros: skew.error_micros,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;

    fn sample(sent_micros: i64, remote_micros: i64, received_micros: i64) -> Sample {
        Sample {
            sent_micros,
            remote_micros,
            received_micros,
        }
    }

    #[test]
    fn the_shortest_round_trip_wins() {
        let mut estimate = ClockEstimate::new();
        assert_eq!(estimate.offset(), None);
        estimate.add(sample(1_000, 6_500, 2_000));
        assert_eq!(
            estimate.offset(),
            Some(Offset {
                micros: 5_000,
                error_micros: 500
            })
        );
        estimate.add(sample(3_000, 8_150, 3_200));
        assert_eq!(
            estimate.offset(),
            Some(Offset {
                micros: 5_050,
                error_micros: 100
            })
        );
        estimate.add(sample(4_000, 99_000, 5_000));
        assert_eq!(
            estimate.offset(),
            Some(Offset {
                micros: 5_050,
                error_micros: 100
            })
        );
    }

    #[test]
    fn an_old_sample_goes_out_however_good() {
        let mut estimate = ClockEstimate::new();
        estimate.add(sample(0, 1_000, 0));
        for _ in 0..KEPT {
            assert_eq!(
                estimate.offset(),
                Some(Offset {
                    micros: 1_000,
                    error_micros: 0
                })
            );
            estimate.add(sample(0, 7_050, 100));
        }
        assert_eq!(
            estimate.offset(),
            Some(Offset {
                micros: 7_000,
                error_micros: 50
            })
        );
    }

    #[test]
    fn a_clock_set_back_gives_no_sample() {
        let mut estimate = ClockEstimate::new();
        estimate.add(sample(2_000, 5_000, 1_000));
        estimate.add(sample(i64::MIN, 0, i64::MAX));
        assert_eq!(estimate.offset(), None);
    }

    #[test]
    fn the_skew_of_two_hosts_is_taken_out() {
        let source = Offset {
            micros: 1_000,
            error_micros: 10,
        };
        let destination = Offset {
            micros: -500,
            error_micros: 30,
        };
        assert_eq!(
            source.to(destination),
            Offset {
                micros: -1_500,
                error_micros: 40
            }
        );
        // Stopped at true time 10_000 and resumed at true time 12_000.
        assert_eq!(
            elapsed(11_000, source, 11_500, destination),
            Offset {
                micros: 2_000,
                error_micros: 40
            }
        );
    }

    proptest::proptest! {
        #[test]
        fn the_truth_lies_within_the_error(
            skew in -1_000_000_000i64..1_000_000_000,
            trips in proptest::collection::vec((0i64..1_000_000, 0i64..50_000, 0i64..50_000), 1..20),
        ) {
            let mut estimate = ClockEstimate::new();
            for (sent, there, back) in trips {
                estimate.add(sample(sent, sent + there + skew, sent + there + back));
            }
            let offset = estimate.offset().unwrap();
            proptest::prop_assert!(offset.micros.abs_diff(skew) <= offset.error_micros);
        }

        #[test]
        fn no_figures_overflow(sent: i64, remote: i64, received: i64, from: i64, until: i64) {
            let mut estimate = ClockEstimate::new();
            estimate.add(sample(sent, remote, received));
            if let Some(offset) = estimate.offset() {
                elapsed(from, offset, until, Offset { micros: remote, error_micros: u64::MAX });
            }
        }
    }
}
