//! The units that users write: amounts of memory, durations and bandwidths. All are strings with a unit, so that a
//! manifest never has to be read twice to see whether `1024` meant KiB or MiB.

use std::time::Duration;

/// Pattern of a memory amount: whole MiB or GiB.
pub const MEMORY_PATTERN: &str = r"^[1-9][0-9]{0,6}(Mi|Gi)$";
/// Pattern of a duration: whole milliseconds or seconds.
pub const DURATION_PATTERN: &str = r"^[1-9][0-9]{0,6}(ms|s)$";

/// Pattern of a bandwidth: whole KiB, MiB or GiB in a second, or `0` for no limit.
pub const BANDWIDTH_PATTERN: &str = r"^(0|[1-9][0-9]{0,6}(Ki|Mi|Gi))$";

/// Reads a bandwidth such as `100Mi` (in a second) into bytes per second, `0` for no limit; `None` if it does not
/// match [`BANDWIDTH_PATTERN`].
pub fn bandwidth(text: &str) -> Option<u64> {
    match (text, text.strip_suffix("Ki")) {
        ("0", _) => Some(0),
        (_, Some(digits)) => Some(positive(digits)? << 10),
        (_, None) => memory_bytes(text),
    }
}

/// Reads a memory amount such as `512Mi` or `4Gi` into bytes; `None` if it does not match [`MEMORY_PATTERN`].
pub fn memory_bytes(text: &str) -> Option<u64> {
    let (digits, unit) = text
        .strip_suffix("Mi")
        .map(|d| (d, 1u64 << 20))
        .or_else(|| text.strip_suffix("Gi").map(|d| (d, 1u64 << 30)))?;
    Some(positive(digits)? * unit)
}

/// Reads a duration such as `300ms` or `2s`; `None` if it does not match [`DURATION_PATTERN`].
pub fn duration(text: &str) -> Option<Duration> {
    match text.strip_suffix("ms") {
        Some(digits) => positive(digits).map(Duration::from_millis),
        None => positive(text.strip_suffix('s')?).map(Duration::from_secs),
    }
}

/// One to seven digits without a leading zero: the bound that both patterns state.
fn positive(digits: &str) -> Option<u64> {
    let plain = digits.len() <= 7 && digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
    if plain { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory() {
        assert_eq!(memory_bytes("512Mi"), Some(512 << 20));
        assert_eq!(memory_bytes("4Gi"), Some(4 << 30));
        for bad in [
            "",
            "Mi",
            "0Mi",
            "01Mi",
            "-1Mi",
            "+1Mi",
            "1 Mi",
            "1M",
            "1024",
            "12345678Mi",
            "1.5Gi",
        ] {
            assert_eq!(memory_bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn bandwidths() {
        assert_eq!(bandwidth("0"), Some(0));
        assert_eq!(bandwidth("64Ki"), Some(64 << 10));
        assert_eq!(bandwidth("100Mi"), Some(100 << 20));
        assert_eq!(bandwidth("2Gi"), Some(2 << 30));
        for bad in ["", "00", "0Mi", "100", "100M", "1.5Mi", "-1Mi", "12345678Ki"] {
            assert_eq!(bandwidth(bad), None, "{bad}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("300ms"), Some(Duration::from_millis(300)));
        assert_eq!(duration("2s"), Some(Duration::from_secs(2)));
        for bad in ["", "s", "ms", "0s", "1m", "1h", "-1s", "1.5s"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
