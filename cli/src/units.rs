//! Bytes, durations and instants for people.

use jiff::{SignedDuration, Timestamp};

/// An amount of bytes with three significant figures at most: `512 B`, `1.5 KiB`, `768 MiB`, `4.0 GiB`.
/// Negative amounts, which no honest status holds, show as `0 B`.
pub fn bytes(count: i64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let count = count.max(0);
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64;
    let mut unit = "B";
    for next in UNITS {
        // 1023.5 would be printed as 1024.
        if value < 1023.5 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if value < 9.95 {
        format!("{value:.1} {unit}")
    } else {
        format!("{value:.0} {unit}")
    }
}

/// An amount of memory as a manifest or a host writes it (`512Mi`, `16384Mi`, `4Gi`) for people. What is not of
/// that form is `None`.
pub fn memory(text: &str) -> Option<String> {
    let (digits, scale) = match (text.strip_suffix("Mi"), text.strip_suffix("Gi")) {
        (Some(d), _) => (d, 1i64 << 20),
        (None, Some(d)) => (d, 1i64 << 30),
        (None, None) => return None,
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(bytes(digits.parse::<i64>().ok()?.checked_mul(scale)?))
}

/// A stretch of time at a glance: `850 µs`, `48.2 ms`, `1.80 s`, `2m05s`, `3h07m`, `12d4h`.
pub fn span(micros: i64) -> String {
    let micros = micros.max(0);
    let seconds = micros / 1_000_000;
    match micros {
        0..=999 => format!("{micros} µs"),
        1_000..=999_949 => format!("{:.1} ms", micros as f64 / 1e3),
        999_950..=59_994_999 => format!("{:.2} s", micros as f64 / 1e6),
        59_995_000..=59_999_999 => "60.0 s".into(),
        _ if seconds < 3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ if seconds < 86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// How long ago, in whole units as kubectl does: `5s`, `12m`, `3h`, `40d`.
pub fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The time of day in UTC to the millisecond.
pub fn time_of_day(at: Timestamp) -> String {
    at.strftime("%H:%M:%S.%3f").to_string()
}

/// From `start` to `end` in microseconds.
pub fn micros_between(start: Timestamp, end: Timestamp) -> i64 {
    let span: SignedDuration = end.duration_since(start);
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        for (count, text) in [
            (-5, "0 B"),
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (10 << 10, "10 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (768 << 20, "768 MiB"),
            (4 << 30, "4.0 GiB"),
            (i64::MAX, "8192 PiB"),
        ] {
            assert_eq!(bytes(count), text, "{count}");
        }
    }

    #[test]
    fn memory_amounts() {
        assert_eq!(memory("512Mi").as_deref(), Some("512 MiB"));
        assert_eq!(memory("16384Mi").as_deref(), Some("16 GiB"));
        assert_eq!(memory("4Gi").as_deref(), Some("4.0 GiB"));
        for bad in ["", "Mi", "-1Mi", "12", "999999999999999999Gi"] {
            assert_eq!(memory(bad), None, "{bad}");
        }
    }

    #[test]
    fn spans() {
        for (micros, text) in [
            (-1, "0 µs"),
            (850, "850 µs"),
            (1_000, "1.0 ms"),
            (48_210, "48.2 ms"),
            (999_949, "999.9 ms"),
            (999_950, "1.00 s"),
            (1_800_000, "1.80 s"),
            (59_994_999, "59.99 s"),
            (59_999_999, "60.0 s"),
            (60_000_000, "1m00s"),
            (125_000_000, "2m05s"),
            (11_220_000_000, "3h07m"),
            (1_051_200_000_000, "12d4h"),
        ] {
            assert_eq!(span(micros), text, "{micros}");
        }
    }

    #[test]
    fn ages() {
        let at = |s: i64| Timestamp::from_second(1_700_000_000 + s).unwrap();
        for (seconds, text) in [
            (-3, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (7200, "2h"),
            (172_800, "2d"),
        ] {
            assert_eq!(age(at(0), at(seconds)), text);
        }
        assert_eq!(time_of_day(at(0)), "22:13:20.000");
        assert_eq!(micros_between(at(0), at(2)), 2_000_000);
    }
}
