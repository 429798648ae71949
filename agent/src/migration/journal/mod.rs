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

//!
//! The module `format` knows the bytes; what is here keeps them in a file.

mod format;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::state::durable;
pub use format::{FORMAT, Head, Line, Role, SIZE};
use format::{HEADER, Told, Unread, blank, encode};

/// The end of a journal's file name.
pub const SUFFIX: &str = ".journal";

const NEW_SUFFIX: &str = ".journal.new";

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

impl JournalError {
    fn unread(path: &Path, unread: Unread) -> Self {
        let path = path.to_path_buf();
        match unread {
            Unread::Newer { format, head } => Self::Newer { path, format, head },
            Unread::Damaged { why, head } => Self::Damaged { path, why, head },
            Unread::Foreign => Self::Foreign { path },
        }
    }
}

/// Where a journal's bytes lie. A file; in tests and in the simulation also one that fails.
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
        durable::sync_name(&path).map_err(|e| {
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

    /// Has its bytes go through another medium on their way to their file.
    pub(crate) fn through(mut self, other: impl FnOnce(Box<dyn Medium>) -> Box<dyn Medium>) -> Self {
        self.medium = other(self.medium);
        self
    }
}

/// Reads whom the journal at `path` is about, whatever its format.
///
/// # Errors
/// As [`reopen`].
pub fn head(path: &Path) -> Result<Head, JournalError> {
    format::read_head(&load(path)?, named(path)).map_err(|unread| JournalError::unread(path, unread))
}

/// Reads the journal at `path` and opens it to be gone on with. A last line that was cut short is wiped.
///
/// # Errors
/// [`JournalError::Newer`], [`JournalError::Damaged`] and [`JournalError::Foreign`]: nothing may be done on its
/// word then.
pub fn reopen<E: DeserializeOwned>(path: &Path) -> Result<Reopened<E>, JournalError> {
    let bytes = load(path)?;
    let told = format::read(&bytes, named(path)).map_err(|unread| JournalError::unread(path, unread))?;
    let Told {
        head,
        entries,
        ended,
        next,
        torn,
    } = told;
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
    if torn {
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
        Ok(()) => durable::sync_name(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// The migration whose journal a file is by its name.
fn named(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()?.strip_suffix(SUFFIX)
}

fn load(path: &Path) -> Result<Vec<u8>, JournalError> {
    let bytes = fs::read(path).map_err(|source| JournalError::System {
        action: "read",
        path: path.to_path_buf(),
        source,
    })?;
    Ok(bytes)
}
