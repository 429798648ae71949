//! Files that are whole or not there, also after a loss of power.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes `parts` in a row to a file of the agent's own, in the place of whatever is there. When this returns, they are on
/// the medium; its name is not yet ([`sync_name`]). After a failed sync nothing is known about the file's pages: it is
/// never synced again, but removed.
pub fn write(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        for part in parts {
            file.write_all(part)?;
        }
        file.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written
}

/// Puts on the medium what a file's name stands for: this file, another one or none.
pub fn sync_name(path: &Path) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory)?.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_was_there_is_replaced_and_nobody_else_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        write(&path, &[b"something longer"]).unwrap();
        write(&path, &[b"two ", b"parts"]).unwrap();
        sync_name(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two parts");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_cannot_be_written_whole_is_not_left() {
        let directory = tempfile::tempdir().unwrap();
        // A name that leads to where no byte can be written.
        let path = directory.path().join("full");
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let error = write(&path, &[b"text"]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(fs::symlink_metadata(&path).is_err());
        assert!(write(&directory.path().join("missing/file"), &[]).is_err());
    }
}
