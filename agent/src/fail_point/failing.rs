//! A disk that fails when an entry is written, and a clock that is wrong.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::io::Errno;

use crate::migration::journal::Medium;

/// The ending of a point that is armed.
const ARMED: &str = ".armed";

/// A journal's medium.
pub struct Failing {
    directory: &'static Path,
    /// What the names of its points begin with.
    prefix: String,
    inner: Box<dyn Medium>,
    /// What is told when what was written is to be brought to the disk.
    at_sync: Mutex<Option<Errno>>,
}

impl Failing {
    pub fn new(directory: &'static Path, side: &str, inner: Box<dyn Medium>) -> Self {
        Self {
            directory,
            prefix: format!("{side}.written."),
            inner,
            at_sync: Mutex::new(None),
        }
    }

    /// What happens to an entry with these bytes, once.
    fn deed(&self, bytes: &[u8]) -> Option<Errno> {
        for entry in fs::read_dir(self.directory).ok()? {
            let name = entry.ok()?.file_name();
            let Some(point) = name.to_str().and_then(|name| name.strip_suffix(ARMED)) else {
                continue;
            };
            let Some(wanted) = point.strip_prefix(&self.prefix) else {
                continue;
            };
            let wanted = format!("\"{wanted}\"");
            if !bytes
                .windows(wanted.len())
                .any(|window| window == wanted.as_bytes())
            {
                continue;
            }
            let armed = self.directory.join(&name);
            let word = fs::read_to_string(&armed).ok()?;
            fs::rename(&armed, self.directory.join(format!("{point}.reached"))).ok()?;
            tracing::warn!(point, word, "the journal's disk fails");
            return match word.trim() {
                "eio" => Some(Errno::IO),
                "enospc" => Some(Errno::NOSPC),
                _ => None,
            };
        }
        None
    }
}

impl Medium for Failing {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let deed = self.deed(bytes);
        if deed == Some(Errno::NOSPC) {
            return Err(Errno::NOSPC.into());
        }
        *self.at_sync.lock().unwrap_or_else(PoisonError::into_inner) = deed;
        self.inner.write_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()?;
        match self.at_sync.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(errno) => Err(errno.into()),
            None => Ok(()),
        }
    }
}

/// What a clock shows that is as wrong as the directory says.
pub fn clock(directory: &Path, now: SystemTime) -> SystemTime {
    let Ok(text) = fs::read_to_string(directory.join(super::CLOCK)) else {
        return now;
    };
    let Ok(seconds) = text.trim().parse::<i64>() else {
        return now;
    };
    let by = Duration::from_secs(seconds.unsigned_abs());
    let wrong = if seconds < 0 {
        now.checked_sub(by)
    } else {
        now.checked_add(by)
    };
    wrong.unwrap_or(now)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;
    use crate::migration::journal::Medium;

    /// Takes everything.
    struct Good;

    impl Medium for Good {
        fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_entry_fails_once_in_the_way_that_was_asked_for() {
        let directory = Box::leak(Box::new(tempfile::tempdir().unwrap())).path();
        let medium = Failing::new(directory, "source", Box::new(Good));
        let arm = |name: &str, word: &str| fs::write(directory.join(name), word).unwrap();
        arm("source.written.Sealed.armed", "eio");
        arm("source.written.GoSent.armed", "enospc");
        arm("destination.written.Intent.armed", "eio");
        for line in ["{\"Intent\":1}", "\"Sealed by\""] {
            medium.write_at(line.as_bytes(), 0).unwrap();
            medium.sync().unwrap();
        }
        medium.write_at(b"\"Sealed\"", 0).unwrap();
        assert_eq!(medium.sync().unwrap_err().raw_os_error(), Some(5));
        medium.sync().unwrap();
        let full = medium.write_at(b"{\"GoSent\":{}}", 0).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert!(directory.join("source.written.GoSent.reached").exists());
        medium.write_at(b"\"Sealed\"", 0).unwrap();
        medium.sync().unwrap();
    }

    #[test]
    fn a_clock_is_as_wrong_as_was_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000);
        let shown = || clock(directory.path(), now);
        assert_eq!(shown(), now);
        for (words, seconds) in [("3600", 13_600), ("-3600\n", 6400), ("soon", 10_000)] {
            fs::write(directory.path().join(super::super::CLOCK), words).unwrap();
            assert_eq!(
                shown(),
                SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
                "{words}"
            );
        }
    }
}
