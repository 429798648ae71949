//! What QEMU and the guest's console write, within bounds.
//!
//! The logs lie in a directory that belongs to the guest's user, who may have put anything in their place.

use std::fs::File;
use std::io::{self, Seek};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{
    CWD, FallocateFlags, FileType, MemfdFlags, Mode, OFlags, fallocate, fstat, memfd_create, openat,
};

use super::qmp::wire::bounded;

/// The longest part of a log that is read, in bytes.
const TAIL_BYTES: u64 = 4096;

/// A log may take this much of the disk, in bytes; after a while even a guest that only talks has not more.
const MAX_DISK_BYTES: u64 = 64 << 20;

/// How much of a log's end is kept when it has grown too large, in bytes.
const KEPT_BYTES: u64 = 16 << 20;

/// What a process says about itself, in a file.
pub struct Log {
    file: File,
    /// Where this process's part begins.
    start: u64,
}

impl Log {
    /// A log in memory, for a process that lives shortly.
    pub fn in_memory() -> io::Result<Self> {
        let file = File::from(memfd_create("godwit-log", MemfdFlags::CLOEXEC)?);
        Ok(Self { file, start: 0 })
    }

    /// A log in a guest's directory, made if it is not there.
    pub fn beneath(directory: &Path, name: &str) -> io::Result<Self> {
        let mut file = open(directory, name, OFlags::RDWR | OFlags::APPEND | OFlags::CREATE)?;
        let start = file.seek(io::SeekFrom::End(0))?;
        Ok(Self { file, start })
    }

    /// The descriptor that the process writes to.
    pub fn for_child(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// A log as it lies in a guest's directory, for reading.
    pub fn found(directory: &Path, name: &str) -> io::Result<Self> {
        let file = open(directory, name, OFlags::RDONLY)?;
        Ok(Self { file, start: 0 })
    }

    /// The last lines of what the process has said, within bounds.
    pub fn tail(&self) -> String {
        let Ok(end) = self.file.metadata().map(|metadata| metadata.len()) else {
            return String::new();
        };
        let from = end.saturating_sub(TAIL_BYTES).max(self.start);
        let mut bytes = vec![0; usize::try_from(end.saturating_sub(from)).unwrap_or(0)];
        let read = self.file.read_at(&mut bytes, from).unwrap_or(0);
        let text = String::from_utf8_lossy(bytes.get(..read).unwrap_or_default()).into_owned();
        let mut last: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .rev()
            .take(4)
            .collect();
        last.reverse();
        bounded(&last.join("; "))
    }
}

/// Frees the disk under all but the end of a log that has grown too large. Its length stays, so that whoever reads
/// it keeps the place; the freed part reads as zeros.
pub fn trim(directory: &Path, name: &str) -> io::Result<()> {
    trim_to(directory, name, MAX_DISK_BYTES, KEPT_BYTES)
}

fn trim_to(directory: &Path, name: &str, most: u64, kept: u64) -> io::Result<()> {
    let file = match open(directory, name, OFlags::WRONLY) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let found = file.metadata()?;
    if found.blocks().saturating_mul(512) <= most {
        return Ok(());
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(&file, flags, 0, found.len().saturating_sub(kept).max(1)) {
        // Not every file system can; then the whole goes.
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(0),
        other => Ok(other?),
    }
}

/// Opens a plain file that is nobody else's too: no link of either kind, no pipe.
fn open(directory: &Path, name: &str, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = openat(CWD, directory.join(name), flags, Mode::RUSR | Mode::WUSR)?;
    let found = fstat(&file)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile || found.st_nlink != 1 {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!("{name} is not a plain file"),
        ));
    }
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::io::Write;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_log_is_not_written_through_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("precious");
        std::fs::write(&target, "x").unwrap();
        symlink(&target, directory.path().join("link")).unwrap();
        std::fs::hard_link(&target, directory.path().join("hard")).unwrap();
        assert!(Log::beneath(directory.path(), "link").is_err());
        assert!(Log::beneath(directory.path(), "hard").is_err());
        assert!(Log::beneath(directory.path(), "qemu.log").is_ok());
    }

    #[test]
    fn a_logs_tail_begins_with_this_process_and_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("qemu.log"), "old words\n").unwrap();
        let log = Log::beneath(directory.path(), "qemu.log").unwrap();
        assert_eq!(log.tail(), "");
        (&log.file).write_all(b"new \x1b[2J words\n").unwrap();
        assert_eq!(log.tail(), "new  [2J words");
        (&log.file).write_all("long ".repeat(100_000).as_bytes()).unwrap();
        assert!(log.tail().len() <= 1024);
    }

    #[test]
    fn a_log_that_has_grown_too_large_keeps_its_end_and_its_length() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        std::fs::write(&path, [vec![b'a'; 1 << 20], b"the end".to_vec()].concat()).unwrap();
        let blocks = || std::fs::metadata(&path).unwrap().blocks() * 512;
        trim_to(directory.path(), "console.log", 2 << 20, 4096).unwrap();
        assert!(blocks() >= 1 << 20);
        trim_to(directory.path(), "console.log", 1 << 19, 4096).unwrap();
        let kept = std::fs::read(&path).unwrap();
        assert!(blocks() <= 64 << 10, "{}", blocks());
        assert!(kept.is_empty() || (kept.len() == (1 << 20) + 7 && kept.ends_with(b"athe end")));
        trim_to(directory.path(), "missing", 1, 1).unwrap();
        symlink(&path, directory.path().join("link")).unwrap();
        assert!(trim_to(directory.path(), "link", 1, 1).is_err());
    }
}
