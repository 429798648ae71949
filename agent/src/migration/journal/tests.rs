//! What a journal promises, tried on files.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]

use super::format::{SECTOR, checksum};
use super::*;
use godwit_handover::{Cause, Go, GoEvidence, SourceEntry, Terms, Wanted};
use godwit_protocol::StreamOptions;
use proptest::prelude::*;

fn a_head(migration: &str) -> Head {
    Head {
        migration: migration.into(),
        guest: "guest-1".into(),
        role: Role::Source,
        boot_id: "boot".into(),
        stream: StreamOptions::PLAIN,
    }
}

fn entries() -> Vec<SourceEntry> {
    let terms = Terms {
        migration: "m".into(),
        guest: "guest-1".into(),
        epoch: 3,
        source: "a".repeat(253),
        destination: "b".repeat(253),
        strict: false,
    };
    let go = Go {
        evidence: GoEvidence::Completed,
        wanted: Wanted::Run,
        sealed: true,
    };
    vec![
        SourceEntry::Begun {
            terms,
            budget_micros: 300_000,
        },
        SourceEntry::Intent { wanted: Wanted::Run },
        SourceEntry::Sealed,
        SourceEntry::GoSent(go),
        SourceEntry::Released,
    ]
}

fn written(directory: &Path, lines: usize) -> (PathBuf, Vec<u8>) {
    let mut journal = Journal::create(directory, &a_head("m")).unwrap();
    for entry in entries().into_iter().take(lines) {
        journal.append(&Line::Entry(entry)).unwrap();
    }
    let path = Journal::path_of(directory, "m");
    let bytes = fs::read(&path).unwrap();
    (path, bytes)
}

fn read(path: &Path) -> Result<Vec<SourceEntry>, JournalError> {
    reopen::<SourceEntry>(path).map(|r| r.entries)
}

#[test]
fn what_was_answered_for_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let (path, _) = written(directory.path(), 5);
    let mut again = reopen::<SourceEntry>(&path).unwrap();
    assert_eq!(again.entries, entries());
    assert_eq!(again.head, a_head("m"));
    assert!(!again.ended);
    let ended: Line<SourceEntry> = Line::Ended {
        report: "Released".into(),
    };
    again.journal.append(&ended).unwrap();
    let again = reopen::<SourceEntry>(&path).unwrap();
    assert_eq!(again.entries, entries());
    assert!(again.ended);
}

#[test]
fn every_cut_of_the_file_is_recognised() {
    let directory = tempfile::tempdir().unwrap();
    let (path, whole) = written(directory.path(), 5);
    for cut in (0..whole.len()).step_by(97) {
        fs::write(&path, &whole[..cut]).unwrap();
        assert!(
            matches!(
                read(&path),
                Err(JournalError::Damaged { .. } | JournalError::Foreign { .. })
            ),
            "cut at {cut}"
        );
    }
}

#[test]
fn a_line_cut_short_is_as_if_not_written_and_the_journal_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let (path, whole) = written(directory.path(), 4);
    let (_, before) = {
        let other = tempfile::tempdir().unwrap();
        written(other.path(), 3)
    };
    let start = (0..SIZE).find(|at| whole[*at] != before[*at]).unwrap();
    let last = (0..SIZE).rfind(|at| whole[*at] != before[*at]).unwrap();
    // Disks write in words of at least four bytes: the length and its complement are there together or not.
    for cut in (start + 4)..last {
        let mut torn = whole.clone();
        torn[cut..].fill(0);
        fs::write(&path, &torn).unwrap();
        let mut again = reopen::<SourceEntry>(&path).unwrap();
        assert_eq!(again.entries, entries()[..3], "cut at {cut}");
        again
            .journal
            .append(&Line::Entry(SourceEntry::Aborted {
                cause: Cause::Cancelled,
            }))
            .unwrap();
        let mut expected = entries()[..3].to_vec();
        expected.push(SourceEntry::Aborted {
            cause: Cause::Cancelled,
        });
        assert_eq!(read(&path).unwrap(), expected);
    }
}

#[test]
fn a_newer_format_is_named_with_its_guest() {
    let directory = tempfile::tempdir().unwrap();
    let (path, mut bytes) = written(directory.path(), 2);
    bytes[8..12].copy_from_slice(&7_u32.to_le_bytes());
    let sum = checksum(&[&7_u32.to_le_bytes(), &bytes[16..HEADER]]);
    bytes[12..16].copy_from_slice(&sum.to_le_bytes());
    fs::write(&path, &bytes[..HEADER + 100]).unwrap();
    let Err(JournalError::Newer { format: 7, head, .. }) = read(&path) else {
        panic!("not taken for newer")
    };
    assert_eq!(head.guest, "guest-1");
}

#[test]
fn another_file_is_foreign_and_a_renamed_one_is_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.journal");
    fs::write(&path, vec![b'x'; SIZE]).unwrap();
    assert!(matches!(read(&path), Err(JournalError::Foreign { .. })));
    let (real, _) = written(directory.path(), 2);
    fs::copy(&real, &path).unwrap();
    assert!(matches!(read(&path), Err(JournalError::Damaged { .. })));
}

struct Failing;
impl Medium for Failing {
    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Err(io::Error::other("the disk is gone"))
    }
}

#[test]
fn after_a_failed_sync_nothing_is_written_again() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::create(directory.path(), &a_head("m")).unwrap();
    let mut journal = journal.through(|_| Box::new(Failing));
    assert!(matches!(
        journal.append(&Line::Entry(SourceEntry::Sealed)),
        Err(JournalError::System { action: "sync", .. })
    ));
    let path = Journal::path_of(directory.path(), "m");
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let mut journal = journal.through(|_| Box::new(file));
    assert!(matches!(
        journal.append(&Line::Entry(SourceEntry::Sealed)),
        Err(JournalError::Broken { .. })
    ));
    assert_eq!(read(&path).unwrap(), vec![]);
}

#[test]
fn a_full_journal_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let mut journal = Journal::create(directory.path(), &a_head("m")).unwrap();
    let mut taken = 0;
    let error = loop {
        match journal.append(&Line::Entry(SourceEntry::Sealed)) {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, JournalError::Full { .. }));
    assert_eq!(taken, (SIZE - HEADER) / SECTOR);
    assert_eq!(
        read(&Journal::path_of(directory.path(), "m")).unwrap().len(),
        taken
    );
}

#[test]
fn an_interrupted_beginning_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("m.journal.new"), b"half").unwrap();
    let (path, _) = written(directory.path(), 1);
    fs::write(directory.path().join("n.journal.new"), b"half").unwrap();
    assert_eq!(list(directory.path()).unwrap(), vec![path]);
    assert!(!directory.path().join("n.journal.new").exists());
}

/// A full disk is met at the beginning, and a journal that was begun takes all its lines on a full disk.
#[test]
fn a_full_disk_is_met_at_the_beginning() {
    let mount = tempfile::tempdir().unwrap();
    let name = c"godwit-journal-test";
    if let Err(errno) = rustix::mount::mount(
        name,
        mount.path(),
        c"tmpfs",
        rustix::mount::MountFlags::empty(),
        Some(c"size=192k"),
    ) {
        eprintln!("skipped: a file system of its own cannot be mounted here ({errno})");
        return;
    }
    struct Unmount(PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
        }
    }
    let _unmount = Unmount(mount.path().to_path_buf());
    let mut first = Journal::create(mount.path(), &a_head("first")).unwrap();
    let filler = File::create(mount.path().join("filler")).unwrap();
    let mut at = 0;
    while filler.write_all_at(&[1; 4096], at).is_ok() {
        at += 4096;
    }
    assert!(matches!(
        Journal::create(mount.path(), &a_head("second")),
        Err(JournalError::DiskFull { .. })
    ));
    assert_eq!(list(mount.path()).unwrap().len(), 1);
    for entry in entries() {
        first.append(&Line::Entry(entry)).unwrap();
    }
    assert_eq!(read(&Journal::path_of(mount.path(), "first")).unwrap(), entries());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn no_flipped_bit_is_believed(at in 0..(HEADER + 8 * SECTOR), bit in 0..8_u8, lines in 1..=5_usize) {
        let directory = tempfile::tempdir().unwrap();
        let (path, mut bytes) = written(directory.path(), lines);
        bytes[at] ^= 1 << bit;
        fs::write(&path, &bytes).unwrap();
        let outcome = read(&path);
        prop_assert!(
            matches!(outcome, Err(JournalError::Damaged { .. } | JournalError::Foreign { .. })),
            "{outcome:?}"
        );
    }

    #[test]
    fn rubbish_over_any_place_is_never_believed(
        at in 0..(HEADER + 8 * SECTOR),
        rubbish in proptest::collection::vec(any::<u8>(), 1..600),
        lines in 1..=5_usize,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let (path, whole) = written(directory.path(), lines);
        let mut bytes = whole.clone();
        let end = (at + rubbish.len()).min(SIZE);
        bytes[at..end].copy_from_slice(&rubbish[..end - at]);
        fs::write(&path, &bytes).unwrap();
        match read(&path) {
            Err(JournalError::Damaged { .. } | JournalError::Foreign { .. }) => {}
            Ok(found) => {
                // Zeros over the end of the last line look like a write that was cut short.
                prop_assert!(found == entries()[..lines] || found == entries()[..lines - 1]);
            }
            Err(other) => prop_assert!(false, "{other:?}"),
        }
    }
}
