//! The host's clock, as it goes over the wire.

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

use crate::fail_point;

/// What the host's clock shows. Nothing waits by it.
pub fn now() -> SystemTime {
    fail_point::clock(SystemTime::now())
}

/// The same, as objects of the API have it.
pub fn timestamp() -> Timestamp {
    Timestamp::try_from(now()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Unix time in microseconds.
pub fn now_micros() -> i64 {
    now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|d| i64::try_from(d.as_micros()).ok())
        .unwrap_or_default()
}
