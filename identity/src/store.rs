//! The own key and certificate in a directory that only this program's user may enter: a program that is started
//! again has an identity at once, whether the signer answers or not.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The file: the key, then the certificate's chain, as PEM.
const FILE: &str = "identity.pem";
/// Where it is written before it gets its name.
const UNFINISHED: &str = "identity.pem.new";
/// Far more than any key and chain.
const LARGEST: u64 = 1024 * 1024;

/// The directory.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    directory: PathBuf,
}

impl Store {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Where the file lies, for messages.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    /// What was kept, if anything was.
    pub(crate) fn read(&self) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.path()) {
            Ok(file) => file,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(why) => return Err(why),
        };
        let mut text = Vec::new();
        file.take(LARGEST).read_to_end(&mut text)?;
        Ok(Some(text))
    }

    /// Keeps it in the place of what was kept before.
    pub(crate) fn write(&self, text: &[u8]) -> io::Result<()> {
        make_private(&self.directory)?;
        let unfinished = self.directory.join(UNFINISHED);
        match std::fs::remove_file(&unfinished) {
            Ok(()) => {}
            Err(why) if why.kind() == io::ErrorKind::NotFound => {}
            Err(why) => return Err(why),
        }
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)?
            .write_all(text)?;
        std::fs::rename(&unfinished, self.path())
    }
}

fn make_private(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_is_private() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().join("a/identity"));
        assert_eq!(store.read().unwrap(), None);
        store.write(b"first").unwrap();
        // As an end in the middle of writing leaves it.
        std::fs::write(directory.path().join("a/identity").join(UNFINISHED), "half").unwrap();
        store.write(b"second").unwrap();
        assert_eq!(store.read().unwrap().as_deref(), Some(&b"second"[..]));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&store.path()), 0o600);
        assert_eq!(mode(&directory.path().join("a/identity")), 0o700);
    }
}
