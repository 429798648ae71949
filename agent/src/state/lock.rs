//! One agent per state directory: a lock that the kernel drops with the process, however it ends.

use std::fs::{File, OpenOptions};
use std::io::{Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::StateError;

/// Held for as long as the agent lives.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

impl StateLock {
    /// Takes the lock of `directory`, or says that another agent has it.
    pub fn take(directory: &Path) -> Result<Self, StateError> {
        let path = directory.join("lock");
        let failed = |action| {
            let path = path.clone();
            move |source| StateError::System { action, path, source }
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .map_err(failed("open"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(StateError::InUse(directory.to_path_buf())),
            Err(errno) => return Err(failed("lock")(errno.into())),
        }
        // The pid is for people; the lock is what counts.
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(failed("write"))?;
        Ok(Self { _file: file })
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

    #[test]
    fn only_one_agent_gets_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let first = StateLock::take(directory.path()).unwrap();
        assert!(matches!(
            StateLock::take(directory.path()),
            Err(StateError::InUse(_))
        ));
        drop(first);
        StateLock::take(directory.path()).unwrap();
    }
}
