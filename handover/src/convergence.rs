//! When the source is sealed: the judgement whether what is left fits the downtime that the user allows.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Figures of the stream, read just after the hypervisor collected the guest's dirty pages: between two
/// collections `remaining_bytes` leaves out what the guest has dirtied since and must not be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pass {
    /// How often the dirty pages were collected; the first is the whole memory.
    pub iteration: u64,
    /// Bytes left to send.
    pub remaining_bytes: u64,
    /// Bytes per second that the stream has reached.
    pub bytes_per_second: u64,
}

/// The share of the allowed downtime that the rest of the memory may take; the other part is for the device
/// state, the journal and the round trip of Ready and Go.
const MEMORY_SHARE_PERCENT: u128 = 80;

/// Whether the guest may be stopped now: what is left travels within the budget at the speed reached so far.
/// Before the first whole pass there is no telling, and without a speed there is no estimate.
pub fn fits(pass: Pass, budget: Duration) -> bool {
    if pass.iteration < 2 {
        return false;
    }
    let allowed = u128::from(pass.bytes_per_second) * budget.as_micros() * MEMORY_SHARE_PERCENT;
    u128::from(pass.remaining_bytes) * 1_000_000 * 100 <= allowed && pass.bytes_per_second > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(iteration: u64, remaining_bytes: u64, bytes_per_second: u64) -> Pass {
        Pass {
            iteration,
            remaining_bytes,
            bytes_per_second,
        }
    }

    #[test]
    fn nothing_is_judged_before_the_first_whole_pass() {
        assert!(!fits(pass(1, 0, 1 << 30), Duration::from_secs(10)));
    }

    #[test]
    fn without_a_speed_there_is_no_estimate() {
        assert!(!fits(pass(5, 0, 0), Duration::from_secs(10)));
    }

    #[test]
    fn the_budget_is_met_to_the_byte() {
        // 100 MB/s for 300 ms is 30 MB, of which memory may take 80 %: 24 MB.
        assert!(fits(pass(2, 24_000_000, 100_000_000), Duration::from_millis(300)));
        assert!(!fits(
            pass(2, 24_000_001, 100_000_000),
            Duration::from_millis(300)
        ));
    }

    #[test]
    fn the_largest_figures_do_not_overflow() {
        assert!(!fits(pass(u64::MAX, u64::MAX, 1), Duration::from_secs(60)));
        assert!(fits(pass(2, 1, u64::MAX), Duration::from_secs(60)));
    }
}
