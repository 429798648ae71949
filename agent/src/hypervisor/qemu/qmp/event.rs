//! QEMU's events in words of guests and streams. Pure.

use serde_json::Value;

use super::wire::{RawEvent, bounded};
use crate::hypervisor::qemu::{argv, states};
use crate::hypervisor::{GuestEvent, GuestEventKind};

/// What an event of QEMU means; `None` for those that nothing above asks for, and for those not known.
pub fn meaning(event: &RawEvent) -> Option<GuestEvent> {
    kind(event).map(|kind| GuestEvent {
        at_micros: event.at_micros,
        kind,
    })
}

fn kind(event: &RawEvent) -> Option<GuestEventKind> {
    let text = |field| event.data.get(field).and_then(Value::as_str);
    // Asked for by the guest, not by `quit`, `system_reset` or a signal.
    let by_guest = || event.data.get("guest").and_then(Value::as_bool).unwrap_or(false);
    match event.name.as_str() {
        "STOP" => Some(GuestEventKind::Stopped),
        "RESUME" => Some(GuestEventKind::Resumed),
        "SHUTDOWN" => by_guest().then_some(GuestEventKind::ShutDown),
        "RESET" => by_guest().then_some(GuestEventKind::Reset),
        "GUEST_PANICKED" => Some(GuestEventKind::Panicked),
        "BLOCK_IO_ERROR" => (text("action") == Some("stop")).then(|| {
            let node = text("node-name").or_else(|| text("device")).unwrap_or_default();
            GuestEventKind::IoError {
                disk: bounded(node.strip_prefix(argv::DISK_PREFIX).unwrap_or(node)),
            }
        }),
        "MIGRATION" => text("status")
            .and_then(states::stream_state)
            .map(GuestEventKind::Stream),
        "MIGRATION_PASS" => event
            .data
            .get("pass")
            .and_then(Value::as_u64)
            .map(|iteration| GuestEventKind::DirtyPagesCollected { iteration }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::StreamState;
    use proptest::prelude::*;
    use serde_json::json;

    fn of(name: &str, data: Value) -> Option<GuestEventKind> {
        kind(&RawEvent {
            name: name.into(),
            at_micros: 1,
            data,
        })
    }

    #[test]
    fn only_the_guests_own_shutdown_counts() {
        assert_eq!(
            of("SHUTDOWN", json!({"guest": true, "reason": "guest-shutdown"})),
            Some(GuestEventKind::ShutDown)
        );
        assert_eq!(
            of("SHUTDOWN", json!({"guest": false, "reason": "host-qmp-quit"})),
            None
        );
        assert_eq!(
            of("RESET", json!({"guest": true, "reason": "guest-reset"})),
            Some(GuestEventKind::Reset)
        );
        assert_eq!(
            of(
                "RESET",
                json!({"guest": false, "reason": "host-qmp-system-reset"})
            ),
            None
        );
    }

    #[test]
    fn a_disks_error_names_the_disk_and_counts_if_it_stops_the_guest() {
        let data = |action| json!({"device": "", "qdev": "/x", "node-name": "disk-root", "operation": "write", "action": action, "reason": "No space left on device"});
        assert_eq!(
            of("BLOCK_IO_ERROR", data("stop")),
            Some(GuestEventKind::IoError { disk: "root".into() })
        );
        assert_eq!(of("BLOCK_IO_ERROR", data("report")), None);
    }

    #[test]
    fn streams_and_passes() {
        assert_eq!(
            of("MIGRATION", json!({"status": "pre-switchover"})),
            Some(GuestEventKind::Stream(StreamState::BeforeSwitchover))
        );
        assert_eq!(of("MIGRATION", json!({"status": "sideways"})), None);
        assert_eq!(
            of("MIGRATION_PASS", json!({"pass": 3})),
            Some(GuestEventKind::DirtyPagesCollected { iteration: 3 })
        );
        assert_eq!(of("SOMETHING_NEW", json!({})), None);
    }

    proptest! {
        #[test]
        fn no_event_panics(name in "STOP|SHUTDOWN|RESET|BLOCK_IO_ERROR|MIGRATION|MIGRATION_PASS|[A-Z_]{0,10}", field in "guest|status|pass|action|node-name", value in "\\PC{0,20}") {
            let mut data = serde_json::Map::new();
            data.insert(field, Value::String(value));
            let _ = of(&name, Value::Object(data));
        }
    }
}
