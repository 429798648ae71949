//! When a certificate is renewed, and how long a failed attempt rests.

use std::time::{Duration, SystemTime};

/// The share of a certificate's life after which it is renewed at the latest.
const LATEST: f64 = 2.0 / 3.0;
/// The share of its life by which the renewal may come earlier, by chance: hosts that were started together do not
/// ask together.
const EARLIER: f64 = 0.1;
/// The first and the longest rest after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// When to renew what holds between these times; `chance` lies between 0 and 1.
pub(crate) fn renew_at(from: SystemTime, until: SystemTime, chance: f64) -> SystemTime {
    let life = until.duration_since(from).unwrap_or_default();
    from + life.mul_f64(LATEST - EARLIER * chance.clamp(0.0, 1.0))
}

/// How long to rest after so many failures in a row, at least one; `chance` lies between 0 and 1.
pub(crate) fn rest(failures: u32, chance: f64) -> Duration {
    let doubled = 2u32.saturating_pow(failures.saturating_sub(1).min(16));
    let longest = RETRY.0.saturating_mul(doubled).min(RETRY.1);
    longest.mul_f64(0.75 + 0.25 * chance.clamp(0.0, 1.0))
}

/// A number between 0 and 1.
pub(crate) fn chance() -> f64 {
    let (random, _) = uuid::Uuid::new_v4().as_u64_pair();
    // 53 bits are what a float of this size holds exactly.
    (random >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewal_comes_between_half_and_two_thirds_of_the_life() {
        let from = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let until = from + Duration::from_secs(3600);
        assert_eq!(renew_at(from, until, 0.0), from + Duration::from_secs(2400));
        assert_eq!(renew_at(from, until, 1.0), from + Duration::from_secs(2040));
        // A certificate that ends before it begins is renewed at once.
        assert_eq!(renew_at(until, from, 0.5), until);
    }

    #[test]
    fn failures_rest_longer_and_longer_up_to_a_minute() {
        assert_eq!(rest(1, 1.0), Duration::from_secs(1));
        assert_eq!(rest(3, 1.0), Duration::from_secs(4));
        assert_eq!(rest(3, 0.0), Duration::from_secs(3));
        assert_eq!(rest(u32::MAX, 1.0), Duration::from_secs(60));
    }

    #[test]
    fn chance_lies_between_0_and_1_and_varies() {
        let drawn: Vec<_> = (0..100).map(|_| chance()).collect();
        assert!(drawn.iter().all(|x| (0.0..1.0).contains(x)));
        assert!(drawn.iter().any(|x| *x < 0.5) && drawn.iter().any(|x| *x >= 0.5));
    }
}
