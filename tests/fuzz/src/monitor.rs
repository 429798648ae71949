//! What a guest's QEMU says on its monitor: it may have been taken over by the guest.

use godwit_agent::hypervisor::qemu::qmp::event;
use godwit_agent::hypervisor::qemu::qmp::wire::{Lines, MAX_TEXT_BYTES, Message, parse};

/// Lines as QEMU writes them.
pub fn lines() -> Vec<Vec<u8>> {
    let lines = [
        r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian"}, "capabilities": ["oob"]}}"#,
        r#"{"return": {}, "id": 7}"#,
        r#"{"id": 8, "error": {"class": "GenericError", "desc": "Failed to get \"write\" lock"}}"#,
        r#"{"timestamp": {"seconds": 1700000000, "microseconds": 25}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#,
        r#"{"timestamp": {"seconds": -1, "microseconds": -1}, "event": "STOP"}"#,
        r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "MIGRATION", "data": {"status": "pre-switchover"}}"#,
        r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "MIGRATION_PASS", "data": {"pass": 3}}"#,
        r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "BLOCK_IO_ERROR", "data": {"node-name": "disk-root", "action": "stop"}}"#,
    ];
    lines
        .iter()
        .map(|line| format!("{line}\n").into_bytes())
        .collect()
}

/// From QEMU, in pieces of any size.
pub fn line(bytes: &[u8]) {
    let cut = |piece: usize| {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for bytes in bytes.chunks(piece) {
            lines.push(bytes);
            while let Some(line) = lines
                .next_line()
                .expect("the bytes are fewer than a line may have")
            {
                found.push(line);
            }
        }
        found
    };
    let found = cut(bytes.len().max(1));
    assert_eq!(cut(13), found);
    for line in found {
        match parse(&line) {
            Ok(Message::Greeting(_)) => {}
            Ok(Message::Reply { result, .. }) => {
                if let Err(refusal) = result {
                    assert!(refusal.class.len() <= MAX_TEXT_BYTES && refusal.message.len() <= MAX_TEXT_BYTES);
                }
            }
            Ok(Message::Event(raw)) => {
                assert!(raw.name.len() <= MAX_TEXT_BYTES && raw.at_micros >= 0);
                drop(event::meaning(&raw));
            }
            Err(why) => assert!(why.len() <= MAX_TEXT_BYTES, "{why}"),
        }
    }
}
