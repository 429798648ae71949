//! One migration's journal: what this host has promised, on disk before it is acted on.
//!
//! ```text
//! sector 0     GODWITJ\0 · format · checksum · who it is about, as JSON, zero-padded
//! sector 1…    one line each: length · its complement · checksum · JSON · newline, zero-padded to whole sectors
//! ```
//! The file has its whole size from the beginning, written with zeros and synced, so that a full disk is met when a
//! migration is taken on and never at its handover, and so that appending changes no metadata. Each line begins on
//! a sector of its own: writing one can not harm an earlier one.
//!
//! A line whose write was cut short by a loss of power was never answered for, and is taken as not written. It is
//! told from damage by its end: JSON and the newline have no zero bytes, so a line that was whole once does not
//! end in zeros. Anything else that does not fit makes the journal damaged, and a damaged journal is never acted on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use godwit_protocol::StreamOptions;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The format that this agent writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
/// The size of a journal in bytes: some 120 lines, where a migration writes fewer than ten.
pub const SIZE: usize = 64 * 1024;
/// The end of a journal's file name.
pub const SUFFIX: &str = ".journal";

const MAGIC: &[u8; 8] = b"GODWITJ\0";
const SECTOR: usize = 512;
const HEADER: usize = 8 * SECTOR;
const LINE_HEAD: usize = 8;
const NEW_SUFFIX: &str = ".journal.new";

/// Whom a journal is about. Its place and shape stay the same in every format, so that an agent that meets a newer
/// journal knows which guest to leave alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The migration's UID.
    pub migration: String,
    /// The guest's UID.
    pub guest: String,
    /// This host's side of it.
    pub role: Role,
    /// The boot of the host in which the journal was begun.
    pub boot_id: String,
    /// How memory was to travel at the beginning.
    #[serde(default)]
    pub stream: StreamOptions,
}

/// A host's side of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// It sends the guest.
    Source,
    /// It receives the guest.
    Destination,
}

/// A line of a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Line<E> {
    /// What the state machine asked for.
    Entry(E),
    /// The migration has ended here and everything that follows from that is done. What became of the guest later
    /// is none of this journal's business any more.
    Ended {
        /// The last report, for people.
        report: String,
    },
}

/// Why a journal was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A newer agent wrote it: its meaning is not known here.
    #[error("{path} was written by a newer agent (format {format}; this one knows up to {FORMAT}); put the newer agent back", path = path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
        /// Whom it is about.
        head: Box<Head>,
    },
    /// It was altered, or a part of it is missing.
    #[error("{path} is damaged ({why}); keep it and compare it with the other host's journal", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How it is known.
        why: String,
        /// Whom it is about, where at least that can be read.
        head: Option<Box<Head>>,
    },
    /// It is no journal at all.
    #[error("{path} is not a journal; move it away", path = path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// There is no room for it on the disk.
    #[error("There is no room for {path}; free space in the agent's state directory", path = path.display())]
    DiskFull {
        /// The file.
        path: PathBuf,
    },
    /// An earlier write or sync failed: what is on the disk is not known, and nothing more is written.
    #[error("{path} takes no entries any more since a write failed", path = path.display())]
    Broken {
        /// The file.
        path: PathBuf,
    },
    /// There is no room for another line in it.
    #[error("{path} is full", path = path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused something. Whether a write has taken place is not known then.
    #[error("{action} {path}: {source}", path = path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// Where a journal's bytes lie. A file; in tests also one that fails.
pub trait Medium: Send {
    /// Writes at a place.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Returns once what was written is on the medium.
    fn sync(&self) -> io::Result<()>;
}

impl Medium for File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// A journal that takes lines.
pub struct Journal {
    path: PathBuf,
    medium: Box<dyn Medium>,
    next: usize,
    broken: bool,
}

/// What a journal holds, and the journal to go on with.
pub struct Reopened<E> {
    /// Whom it is about.
    pub head: Head,
    /// The entries that were answered for, in their order.
    pub entries: Vec<E>,
    /// Whether the migration has ended here.
    pub ended: bool,
    /// To be gone on with.
    pub journal: Journal,
}

impl Journal {
    /// The place of a migration's journal in the journals' directory.
    pub fn path_of(directory: &Path, migration: &str) -> PathBuf {
        directory.join(format!("{migration}{SUFFIX}"))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Begins a migration's journal. When this returns, the whole of its space is on the medium and its name in
    /// the directory.
    ///
    /// # Errors
    /// [`JournalError::DiskFull`] where there is no room; nothing is left behind then.
    pub fn create(directory: &Path, head: &Head) -> Result<Self, JournalError> {
        let path = Self::path_of(directory, &head.migration);
        let temporary = directory.join(format!("{}{NEW_SUFFIX}", head.migration));
        let failed = |action: &'static str, source: io::Error| {
            let _ = fs::remove_file(&temporary);
            if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
                JournalError::DiskFull { path: path.clone() }
            } else {
                JournalError::System {
                    action,
                    path: path.clone(),
                    source,
                }
            }
        };
        if path.exists() {
            return Err(failed("create", ErrorKind::AlreadyExists.into()));
        }
        let bytes = blank(head).map_err(|e| failed("encode", e))?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(|e| failed("create", e))?;
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, SIZE as u64) {
            // Where a file system cannot promise space, writing the zeros is the promise.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(failed("allocate", errno.into())),
        }
        file.write_all_at(&bytes, 0).map_err(|e| failed("write", e))?;
        file.sync_all().map_err(|e| failed("sync", e))?;
        fs::rename(&temporary, &path).map_err(|e| failed("rename", e))?;
        sync_directory(directory).map_err(|e| {
            let _ = fs::remove_file(&path);
            failed("sync the directory of", e)
        })?;
        Ok(Self {
            path,
            medium: Box::new(file),
            next: HEADER,
            broken: false,
        })
    }

    /// Makes a line durable. An error is final: nothing is known about the file's pages after a failed sync, so it
    /// is never tried again.
    pub fn append<E: Serialize>(&mut self, line: &Line<E>) -> Result<(), JournalError> {
        if self.broken {
            return Err(JournalError::Broken {
                path: self.path.clone(),
            });
        }
        let outcome = self.try_append(line);
        self.broken = outcome.is_err();
        outcome
    }

    fn try_append<E: Serialize>(&mut self, line: &Line<E>) -> Result<(), JournalError> {
        let bytes = encode(line).map_err(|e| self.failed("encode a line of", e))?;
        let end = self.next + bytes.len();
        if end > SIZE {
            return Err(JournalError::Full {
                path: self.path.clone(),
            });
        }
        self.medium
            .write_at(&bytes, self.next as u64)
            .map_err(|e| self.failed("write", e))?;
        self.medium.sync().map_err(|e| self.failed("sync", e))?;
        self.next = end;
        Ok(())
    }

    fn failed(&self, action: &'static str, source: io::Error) -> JournalError {
        JournalError::System {
            action,
            path: self.path.clone(),
            source,
        }
    }

    /// Puts another medium under it, which fails when a test wants it to.
    #[cfg(test)]
    pub(crate) fn on(mut self, medium: Box<dyn Medium>) -> Self {
        self.medium = medium;
        self
    }
}

/// Reads whom the journal at `path` is about, whatever its format.
///
/// # Errors
/// As [`reopen`].
pub fn head(path: &Path) -> Result<Head, JournalError> {
    read_head(path, &load(path)?)
}

/// Reads the journal at `path` and opens it to be gone on with. A last line that was cut short is wiped.
///
/// # Errors
/// [`JournalError::Newer`], [`JournalError::Damaged`] and [`JournalError::Foreign`]: nothing may be done on its
/// word then.
pub fn reopen<E: DeserializeOwned>(path: &Path) -> Result<Reopened<E>, JournalError> {
    let bytes = load(path)?;
    let head = read_head(path, &bytes)?;
    let damaged = |why: String| JournalError::Damaged {
        path: path.to_path_buf(),
        why,
        head: Some(Box::new(head.clone())),
    };
    let read = read_lines(bytes.get(HEADER..).unwrap_or_default()).map_err(damaged)?;
    let mut entries = Vec::new();
    let mut ended = false;
    for payload in read.payloads {
        let line = serde_json::from_slice(payload)
            .map_err(|e| damaged(format!("a line has another meaning: {e}")))?;
        match line {
            Line::Entry(_) if ended => return Err(damaged("something follows its end".into())),
            Line::Entry(entry) => entries.push(entry),
            Line::Ended { .. } => ended = true,
        }
    }
    let system = |action| {
        move |source| JournalError::System {
            action,
            path: path.to_path_buf(),
            source,
        }
    };
    let file = OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(system("open"))?;
    let next = HEADER + read.end;
    if read.torn {
        let zeros = vec![0; SIZE - next];
        file.write_all_at(&zeros, next as u64).map_err(system("write"))?;
        file.sync_data().map_err(system("sync"))?;
    }
    let journal = Journal {
        path: path.to_path_buf(),
        medium: Box::new(file),
        next,
        broken: false,
    };
    Ok(Reopened {
        head,
        entries,
        ended,
        journal,
    })
}

/// The journals in a directory, which is made if it is not there. What an interrupted [`Journal::create`] left is
/// removed: nobody was answered on its word.
pub fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    fs::create_dir_all(directory)?;
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if name.ends_with(NEW_SUFFIX) {
            fs::remove_file(&path)?;
        } else if name.ends_with(SUFFIX) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Removes a journal. Nothing to remove is a success.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_directory(path.parent().unwrap_or(Path::new("/"))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn load(path: &Path) -> Result<Vec<u8>, JournalError> {
    let bytes = fs::read(path).map_err(|source| JournalError::System {
        action: "read",
        path: path.to_path_buf(),
        source,
    })?;
    Ok(bytes)
}

fn checksum(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

fn blank(head: &Head) -> io::Result<Vec<u8>> {
    let mut content = serde_json::to_vec(head)?;
    if content.len() > HEADER - 16 {
        return Err(io::Error::other("whom it is about has too long a name"));
    }
    content.resize(HEADER - 16, 0);
    let format = FORMAT.to_le_bytes();
    let mut bytes = Vec::with_capacity(SIZE);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&format);
    bytes.extend_from_slice(&checksum(&[&format, &content]).to_le_bytes());
    bytes.extend_from_slice(&content);
    bytes.resize(SIZE, 0);
    Ok(bytes)
}

fn read_head(path: &Path, bytes: &[u8]) -> Result<Head, JournalError> {
    let damaged = |why: &str| JournalError::Damaged {
        path: path.to_path_buf(),
        why: why.into(),
        head: None,
    };
    if bytes.get(..8) != Some(MAGIC.as_slice()) {
        return Err(JournalError::Foreign {
            path: path.to_path_buf(),
        });
    }
    let (Some(format), Some(content)) = (number(bytes, 8), bytes.get(16..HEADER)) else {
        return Err(damaged("its head is not whole"));
    };
    if number(bytes, 12) != Some(checksum(&[&format.to_le_bytes(), content])) {
        return Err(damaged("its head's checksum does not fit"));
    }
    let end = content.iter().position(|b| *b == 0).unwrap_or(content.len());
    let head: Head = serde_json::from_slice(content.get(..end).unwrap_or_default())
        .map_err(|_| damaged("its head has another meaning"))?;
    if format > FORMAT {
        return Err(JournalError::Newer {
            path: path.to_path_buf(),
            format,
            head: Box::new(head),
        });
    }
    let name = path.file_name().and_then(|name| name.to_str());
    if name != Some(format!("{}{SUFFIX}", head.migration).as_str()) {
        return Err(damaged("it is about another migration than its name says"));
    }
    if bytes.len() != SIZE {
        let why = format!("it has {} bytes where it was made with {SIZE}", bytes.len());
        return Err(JournalError::Damaged {
            path: path.to_path_buf(),
            why,
            head: Some(Box::new(head)),
        });
    }
    Ok(head)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map(u32::from_le_bytes)
}

fn encode<E: Serialize>(line: &Line<E>) -> io::Result<Vec<u8>> {
    let mut payload = serde_json::to_vec(line)?;
    payload.push(b'\n');
    let length = u16::try_from(payload.len()).map_err(|_| io::Error::other("the line is too long"))?;
    let mut bytes = Vec::with_capacity(LINE_HEAD + payload.len() + SECTOR);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&(!length).to_le_bytes());
    bytes.extend_from_slice(&checksum(&[&length.to_le_bytes(), &payload]).to_le_bytes());
    bytes.extend_from_slice(&payload);
    bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
    Ok(bytes)
}

struct Lines<'a> {
    payloads: Vec<&'a [u8]>,
    /// Where the next line goes.
    end: usize,
    /// Whether the write of a line was cut short there.
    torn: bool,
}

fn read_lines(bytes: &[u8]) -> Result<Lines<'_>, String> {
    let mut payloads = Vec::new();
    let mut at = 0;
    let zero = |bytes: &[u8]| bytes.iter().all(|b| *b == 0);
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        if zero(rest) {
            return Ok(Lines {
                payloads,
                end: at,
                torn: false,
            });
        }
        let half = |from: usize| {
            rest.get(from..from + 2)
                .and_then(|b| b.try_into().ok())
                .map(u16::from_le_bytes)
        };
        let (Some(length), Some(complement), Some(sum)) = (half(0), half(2), number(rest, 4)) else {
            return Err(format!(
                "something stands where line {} would begin",
                payloads.len() + 1
            ));
        };
        if length != !complement || length < 2 {
            return Err(format!("line {} has no length", payloads.len() + 1));
        }
        let end = LINE_HEAD + usize::from(length);
        let next = end.next_multiple_of(SECTOR);
        let (Some(payload), Some(padding)) = (rest.get(LINE_HEAD..end), rest.get(end..next)) else {
            return Err(format!("line {} does not fit into the file", payloads.len() + 1));
        };
        if sum == checksum(&[&length.to_le_bytes(), payload]) && zero(padding) {
            payloads.push(payload);
            at += next;
            continue;
        }
        // Its last byte is a newline once it is whole: a zero there means that its write did not come so far.
        if payload.last() == Some(&0) && zero(rest.get(end..).unwrap_or_default()) {
            return Ok(Lines {
                payloads,
                end: at,
                torn: true,
            });
        }
        return Err(format!("line {} does not fit its checksum", payloads.len() + 1));
    }
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
    use godwit_handover::{Cause, Go, GoEvidence, SourceEntry, Terms, Wanted};
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
        let mut journal = journal.on(Box::new(Failing));
        assert!(matches!(
            journal.append(&Line::Entry(SourceEntry::Sealed)),
            Err(JournalError::System { action: "sync", .. })
        ));
        let path = Journal::path_of(directory.path(), "m");
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let mut journal = journal.on(Box::new(file));
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
}
