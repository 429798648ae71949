//! What an agent reads of a guest's definition, which a peer sends, and of its own journals, which a disk may spoil.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use godwit_agent::guests::Definition;
use godwit_agent::guests::definition::MAX_BYTES;
use godwit_agent::guests::words;
use godwit_agent::migration::journal::{self, Head, Journal, Line, Role, SIZE};
use godwit_handover::{Cause, SourceEntry, Wanted};
use godwit_protocol::StreamOptions;

use crate::wire::terms;

/// Definitions that are taken.
pub fn definitions() -> Vec<Vec<u8>> {
    let kernel = r#"{"kernel": {"image": {"pool": "default", "file": "vmlinuz"}, "initramfs": {"file": "initrd"}, "commandLine": "a b"}}"#;
    let definition = |boot: &str| {
        format!(
            r#"{{"machine": {{"type": "pc-q35-10.0"}}, "cpu": {{"count": 1, "model": "qemu64"}}, "memory": "128Mi",
            "boot": {boot},
            "disks": [{{"name": "root", "file": {{"file": "root.qcow2"}}, "format": "Qcow2"}}, {{"name": "raw", "blockDevice": "/dev/vda"}}],
            "interfaces": [{{"name": "net0", "bridge": "br0", "mac": "52:54:00:12:34:56"}}],
            "persistence": "Transient"}}"#
        )
        .into_bytes()
    };
    vec![definition(kernel), definition(r#"{"firmware": {}}"#)]
}

/// From a source's agent, or from a tenant by the controller.
pub fn definition(bytes: &[u8]) {
    let digest = godwit_protocol::definition::digest(bytes);
    let Ok(definition) = Definition::parse(bytes) else {
        return;
    };
    // Two texts with one digest are one definition.
    let value: serde_json::Value = serde_json::from_slice(bytes).unwrap();
    let sorted = value.to_string();
    assert_eq!(digest, godwit_protocol::definition::digest(sorted.as_bytes()));
    assert!(digest.is_ok());
    assert_eq!(
        Definition::parse(sorted.as_bytes()).unwrap().spec(),
        definition.spec()
    );
    assert!(bytes.len() <= MAX_BYTES && definition.memory() > 0);
    let spec = definition.spec();
    for disk in &spec.disks {
        assert!(words::is_device_name(&disk.name));
        assert!(disk.file.is_some() != disk.block_device.is_some());
        if let Some(file) = &disk.file {
            let below = |part: &str| !part.is_empty() && part != "." && part != "..";
            assert!(!file.file.starts_with('/') && file.file.split('/').all(below));
        }
    }
    let written = serde_json::to_vec(spec).unwrap();
    assert_eq!(Definition::parse(&written).unwrap().spec(), spec);
}

const HEADER: usize = 4096;
const SECTOR: usize = 512;

/// A journal without lines, in a place of its own that is kept in memory.
fn empty() -> &'static (PathBuf, Vec<u8>) {
    static EMPTY: OnceLock<(PathBuf, Vec<u8>)> = OnceLock::new();
    EMPTY.get_or_init(|| {
        let memory = PathBuf::from("/dev/shm");
        let parent = if memory.is_dir() {
            memory
        } else {
            std::env::temp_dir()
        };
        let directory = parent.join(format!("godwit-fuzz-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let head = Head {
            migration: terms().migration,
            guest: terms().guest,
            role: Role::Source,
            boot_id: "boot".into(),
            stream: StreamOptions::PLAIN,
        };
        let path = Journal::create(&directory, &head).unwrap().path().to_owned();
        let bytes = fs::read(&path).unwrap();
        // Only its name is needed: what is left behind by a run that fell would be found by nobody.
        fs::remove_dir_all(&directory).unwrap();
        (path, bytes)
    })
}

/// Lines of a journal, and a byte before them: even, they are the file's own bytes; odd, the heads of lines are
/// made for them.
pub fn journals() -> Vec<Vec<u8>> {
    let lines = [
        Line::Entry(SourceEntry::Begun {
            terms: terms(),
            budget_micros: 1,
        }),
        Line::Entry(SourceEntry::Intent { wanted: Wanted::Run }),
        Line::Entry(SourceEntry::Sealed),
        Line::Entry(SourceEntry::Aborted {
            cause: Cause::Cancelled,
        }),
        Line::Ended { report: "r".into() },
    ];
    let mut text = vec![1];
    for line in &lines {
        text.extend(serde_json::to_vec(line).unwrap());
        text.push(b'\n');
    }
    let mut raw = vec![0];
    raw.extend(sectors(&text[1..]));
    vec![text, raw]
}

/// The lines as they lie on the disk.
fn sectors(text: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    for payload in text.split_inclusive(|byte| *byte == b'\n') {
        let length = u16::try_from(payload.len()).unwrap().to_le_bytes();
        let mut sum = crc32fast::Hasher::new();
        sum.update(&length);
        sum.update(payload);
        all.extend(length);
        all.extend(length.map(|byte| !byte));
        all.extend(sum.finalize().to_le_bytes());
        all.extend(payload);
        all.resize(all.len().next_multiple_of(SECTOR), 0);
    }
    all
}

/// Read at an agent's start: a whole line is never lost, whatever follows it, and what was read is read again.
pub fn journal(bytes: &[u8]) {
    let Some((which, lines)) = bytes.split_first() else {
        return;
    };
    let lines = if which % 2 == 0 {
        lines.to_vec()
    } else {
        sectors(lines)
    };
    let (path, empty) = empty();
    let mut file = empty.clone();
    let room = lines.len().min(SIZE - HEADER);
    file[HEADER..HEADER + room].copy_from_slice(&lines[..room]);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, &file).unwrap();
    if let Ok(first) = journal::reopen::<SourceEntry>(path) {
        assert_eq!(first.head.guest, terms().guest);
        let second = journal::reopen::<SourceEntry>(path).unwrap();
        assert_eq!((second.entries, second.ended), (first.entries, first.ended));
    } else {
        assert_eq!(fs::read(path).unwrap(), file, "what is refused is kept as it is");
    }
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
}
