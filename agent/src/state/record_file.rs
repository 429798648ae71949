//! A record in a file of its own: it is there whole or not at all, and it says in which format it is.
//!
//! The first line names the format, the length and the checksum of what follows:
//! `godwit-record 1 <length> <crc32 in hex>`. A new version of the record is written to a temporary file, synced,
//! renamed over the old one, and the directory is synced, so that a crash leaves either the old one or the new.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{StateError, durable};

/// The format that this agent writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
/// The most bytes that a record may have: a definition's bound, escaped, and the rest.
const MAX_BYTES: u64 = 2 * 1024 * 1024;
const MAGIC: &str = "godwit-record";

/// The place of one record.
#[derive(Clone, Debug)]
pub struct RecordFile {
    path: PathBuf,
}

impl RecordFile {
    /// A record at `path`; its directory must exist.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the record; `None` if there is none. A record that is torn, altered or newer is an error and is
    /// never acted on by guess.
    pub fn read<T: DeserializeOwned>(&self) -> Result<Option<T>, StateError> {
        let mut bytes = Vec::new();
        match File::open(&self.path) {
            Ok(file) => file
                .take(MAX_BYTES + 1)
                .read_to_end(&mut bytes)
                .map_err(|e| self.failed("read", e))?,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed("open", error)),
        };
        let payload = self.payload(&bytes)?;
        serde_json::from_slice(payload)
            .map(Some)
            .map_err(|e| self.damaged(format!("its content is not a record of this kind: {e}")))
    }

    /// Replaces the record. When this returns, it is on the medium.
    pub fn write<T: Serialize>(&self, record: &T) -> Result<(), StateError> {
        let payload = serde_json::to_vec(record).map_err(|e| self.failed("encode", e.into()))?;
        let head = format!(
            "{MAGIC} {FORMAT} {} {:08x}\n",
            payload.len(),
            crc32fast::hash(&payload)
        );
        let temporary = self.temporary();
        durable::write(&temporary, &[head.as_bytes(), &payload]).map_err(|e| self.failed("write", e))?;
        fs::rename(&temporary, &self.path).map_err(|e| self.failed("rename", e))?;
        self.sync_directory()
    }

    /// Removes the record. Nothing to remove is a success.
    pub fn remove(&self) -> Result<(), StateError> {
        let _ = fs::remove_file(self.temporary());
        match fs::remove_file(&self.path) {
            Ok(()) => self.sync_directory(),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(self.failed("remove", error)),
        }
    }

    fn temporary(&self) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(".new");
        name.into()
    }

    fn sync_directory(&self) -> Result<(), StateError> {
        durable::sync_name(&self.path).map_err(|e| self.failed("sync the directory of", e))
    }

    fn payload<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8], StateError> {
        if bytes.len() as u64 > MAX_BYTES {
            return Err(self.damaged(format!("it is longer than {MAX_BYTES} bytes")));
        }
        let end = bytes
            .iter()
            .position(|b| *b == b'\n')
            .ok_or_else(|| self.damaged("it has no first line".into()))?;
        let (head, rest) = bytes.split_at(end);
        let payload = rest.get(1..).unwrap_or_default();
        let head =
            std::str::from_utf8(head).map_err(|_| self.damaged("its first line is not text".into()))?;
        let mut words = head.split(' ');
        if words.next() != Some(MAGIC) {
            return Err(self.damaged("its first line is not a record's".into()));
        }
        let version: u32 = words
            .next()
            .and_then(|w| w.parse().ok())
            .ok_or_else(|| self.damaged("its first line names no format".into()))?;
        if version > FORMAT {
            return Err(StateError::Newer {
                path: self.path.clone(),
                version,
                known: FORMAT,
            });
        }
        let length = words.next().and_then(|w| w.parse::<usize>().ok());
        let checksum = words.next().and_then(|w| u32::from_str_radix(w, 16).ok());
        let (Some(length), Some(checksum), None) = (length, checksum, words.next()) else {
            return Err(self.damaged("its first line is not complete".into()));
        };
        if payload.len() != length {
            return Err(self.damaged(format!(
                "it has {} bytes where its first line says {length}",
                payload.len()
            )));
        }
        if crc32fast::hash(payload) != checksum {
            return Err(self.damaged("its checksum does not fit".into()));
        }
        Ok(payload)
    }

    fn damaged(&self, why: String) -> StateError {
        StateError::Damaged {
            path: self.path.clone(),
            why,
        }
    }

    fn failed(&self, action: &'static str, source: std::io::Error) -> StateError {
        StateError::System {
            action,
            path: self.path.clone(),
            source,
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use super::*;

    fn file() -> (tempfile::TempDir, RecordFile) {
        let directory = tempfile::tempdir().unwrap();
        let file = RecordFile::at(directory.path().join("a.record"));
        (directory, file)
    }

    #[test]
    fn missing_is_not_an_error() {
        let (_directory, file) = file();
        assert_eq!(file.read::<String>().unwrap(), None);
        file.remove().unwrap();
    }

    #[test]
    fn written_is_read() {
        let (_directory, file) = file();
        file.write(&"one").unwrap();
        file.write(&"two").unwrap();
        assert_eq!(file.read::<String>().unwrap().as_deref(), Some("two"));
        file.remove().unwrap();
        assert_eq!(file.read::<String>().unwrap(), None);
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_noticed() {
        let (_directory, file) = file();
        file.write(&"some content").unwrap();
        let whole = fs::read(file.path()).unwrap();
        for cut in 0..whole.len() {
            fs::write(file.path(), &whole[..cut]).unwrap();
            assert!(
                matches!(file.read::<String>(), Err(StateError::Damaged { .. })),
                "cut at {cut}"
            );
        }
        for at in 0..whole.len() {
            let mut altered = whole.clone();
            altered[at] ^= 0x10;
            fs::write(file.path(), &altered).unwrap();
            let outcome = file.read::<String>();
            assert!(
                matches!(
                    outcome,
                    Err(StateError::Damaged { .. } | StateError::Newer { .. })
                ),
                "byte {at}: {outcome:?}"
            );
        }
    }

    #[test]
    fn a_newer_format_is_named_and_not_read() {
        let (_directory, file) = file();
        fs::write(file.path(), "godwit-record 2 whatever comes\nthen").unwrap();
        assert!(matches!(
            file.read::<String>(),
            Err(StateError::Newer {
                version: 2,
                known: FORMAT,
                ..
            })
        ));
    }

    #[test]
    fn an_interrupted_write_leaves_the_old_record() {
        let (_directory, file) = file();
        file.write(&"old").unwrap();
        fs::write(file.temporary(), "godwit-record 1 99 0000").unwrap();
        assert_eq!(file.read::<String>().unwrap().as_deref(), Some("old"));
        file.write(&"new").unwrap();
        assert_eq!(file.read::<String>().unwrap().as_deref(), Some("new"));
    }

    #[test]
    fn a_write_that_fails_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let file = RecordFile::at(directory.path().join("absent/a.record"));
        assert!(matches!(file.write(&"x"), Err(StateError::System { .. })));
    }
}
