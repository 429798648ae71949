//! Points in time as they stand in a status: RFC 3339 in UTC with microseconds.

use jiff::Timestamp;

/// `at` with microseconds, for example `2026-11-22T10:00:00.000001Z`.
pub fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// A host's clock reading, microseconds since the Unix epoch; `None` for 0, which means unknown, and for times
/// that no calendar has.
pub fn from_micros(micros: i64) -> Option<String> {
    if micros == 0 {
        return None;
    }
    Timestamp::from_microsecond(micros).ok().map(rfc3339)
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
    fn microseconds_are_kept() {
        assert_eq!(
            from_micros(1_700_000_000_000_001).as_deref(),
            Some("2023-11-14T22:13:20.000001Z")
        );
        assert_eq!(from_micros(0), None);
        assert_eq!(from_micros(i64::MAX), None);
    }
}
