//! QEMU's words for what a guest and a stream do, in ours. QEMU may know more words tomorrow: for the guest an
//! unknown word is [`RunState::Broken`] (nothing can be expected of it), for a stream it is no answer at all.

use crate::hypervisor::{RunState, StreamFigures, StreamState};
use serde_json::Value;

/// `query-status`'s `status`.
///
/// Seen on QEMU 10.0: a guest that never ran is `prelaunch`; a source `finish-migrate` from the stop before the
/// switchover until completion, then `postmigrate`; a destination `inmigrate`, and once loaded `paused`, or the
/// state of its own in which the source stood (`shutdown`, `guest-panicked`, `io-error`).
pub fn run_state(status: &str) -> RunState {
    match status {
        // A guest in ACPI S3 wakes up by itself.
        "running" | "suspended" => RunState::Running,
        "paused" | "prelaunch" => RunState::Paused,
        "finish-migrate" | "postmigrate" => RunState::StoppedForMigration,
        "inmigrate" => RunState::Incoming,
        "shutdown" => RunState::ShutDown,
        "guest-panicked" => RunState::Panicked,
        "io-error" => RunState::IoError,
        // Known, and reached only by error or by requests that are never made: internal-error, debug, watchdog,
        // save-vm, restore-vm, colo.
        _ => RunState::Broken,
    }
}

/// `query-migrate`'s or the `MIGRATION` event's `status`; `None` for one that is not known, or that only a mode
/// of migration has that is never asked for.
pub fn stream_state(status: &str) -> Option<StreamState> {
    Some(match status {
        "none" => StreamState::None,
        "setup" | "wait-unplug" => StreamState::Setup,
        "active" => StreamState::Active,
        "pre-switchover" => StreamState::BeforeSwitchover,
        "device" => StreamState::SwitchingOver,
        "completed" => StreamState::Completed,
        "cancelling" => StreamState::Cancelling,
        "cancelled" => StreamState::Cancelled,
        // `failing` is newer QEMU's word for a failure that is being cleaned up.
        "failed" | "failing" => StreamState::Failed,
        _ => return None,
    })
}

/// Whether nothing more happens to a stream in this state by itself.
pub fn is_final(state: StreamState) -> bool {
    match state {
        StreamState::None | StreamState::Completed | StreamState::Cancelled | StreamState::Failed => true,
        StreamState::Setup
        | StreamState::Active
        | StreamState::BeforeSwitchover
        | StreamState::SwitchingOver
        | StreamState::Cancelling => false,
    }
}

/// The figures in `query-migrate`'s answer; `None` if it has none (no stream yet, or the receiving side).
pub fn stream_figures(answer: &Value) -> Option<StreamFigures> {
    let ram = answer.get("ram")?;
    let number = |field| ram.get(field).and_then(Value::as_u64).unwrap_or(0);
    Some(StreamFigures {
        total_bytes: number("total"),
        transferred_bytes: number("transferred"),
        remaining_bytes: number("remaining"),
        dirty_bytes_per_second: number("dirty-pages-rate").saturating_mul(number("page-size")),
        bytes_per_second: bytes_per_second(ram.get("mbps").and_then(Value::as_f64).unwrap_or(0.0)),
        iteration: number("dirty-sync-count"),
        total_millis: answer.get("total-time").and_then(Value::as_u64).unwrap_or(0),
        downtime_millis: answer.get("downtime").and_then(Value::as_u64),
    })
}

/// QEMU's `mbps` is 10⁶ bits a second.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a cast from float saturates, and that is what is wanted
fn bytes_per_second(megabits: f64) -> u64 {
    (megabits * 125_000.0) as u64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn unknown_words_are_tolerated() {
        assert_eq!(run_state("dreaming"), RunState::Broken);
        assert_eq!(stream_state("teleporting"), None);
        assert_eq!(stream_state("postcopy-active"), None);
    }

    #[test]
    fn a_real_answer_gives_its_figures() {
        // As QEMU 10.0.2 wrote it after one pass over an idle 64 MiB guest.
        let answer = serde_json::json!({"expected-downtime": 1, "status": "active", "setup-time": 1, "total-time": 12, "ram": {
            "total": 67_641_344, "postcopy-requests": 0, "dirty-sync-count": 1, "multifd-bytes": 0, "pages-per-second": 0,
            "downtime-bytes": 0, "page-size": 4096, "remaining": 67_596_288, "postcopy-bytes": 0, "mbps": 16.5, "transferred": 203,
            "dirty-sync-missed-zero-copy": 0, "precopy-bytes": 8278, "duplicate": 7, "dirty-pages-rate": 3, "normal-bytes": 8192, "normal": 2}});
        let expected = StreamFigures {
            total_bytes: 67_641_344,
            transferred_bytes: 203,
            remaining_bytes: 67_596_288,
            dirty_bytes_per_second: 12_288,
            bytes_per_second: 2_062_500,
            iteration: 1,
            total_millis: 12,
            downtime_millis: None,
        };
        assert_eq!(stream_figures(&answer).unwrap(), expected);
        assert_eq!(stream_figures(&serde_json::json!({"status": "setup"})), None);
    }

    #[test]
    fn absurd_figures_do_not_overflow() {
        let answer = serde_json::json!({"ram": {"dirty-pages-rate": u64::MAX, "page-size": 4096, "mbps": -1.0e300, "total": "many"}});
        let figures = stream_figures(&answer).unwrap();
        assert_eq!(
            (
                figures.dirty_bytes_per_second,
                figures.bytes_per_second,
                figures.total_bytes
            ),
            (u64::MAX, 0, 0)
        );
    }
}
