//! A guest's console, for what is typed at it. What the guest says is read in the console's log.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

/// How long the hypervisor may take to read what was typed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Types `words` and hangs up, once the hypervisor has taken them.
///
/// It never stays connected: where whoever is connected reads slowly, QEMU finds the socket full, tries the byte again,
/// and writes it into the console's log at each try. A line would then hold a byte twice that the guest sent once.
///
/// # Errors
/// When there is no console at `path`, or nobody takes the words.
pub fn type_at(path: &Path, words: &str) -> anyhow::Result<()> {
    let mut console = UnixStream::connect(path).with_context(|| format!("open {}", path.display()))?;
    console.write_all(words.as_bytes())?;
    // The half that is closed is seen after the words; to close both could overtake them.
    console.shutdown(Shutdown::Write)?;
    console.set_read_timeout(Some(PATIENCE))?;
    let mut said = [0; 4096];
    loop {
        match console.read(&mut said) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // The words ended the hypervisor before it hung up.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error).context("the hypervisor has not taken what was typed"),
        }
    }
}
