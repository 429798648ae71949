//! The key of one stream, as QEMU's TLS takes it: a file in the guest's directory, for as long as it is needed.
//!
//! A pre-shared key, and no certificates: the key comes from a word that only the two agents know, so that it proves
//! exactly this migration's other end, and there is no authority whose other certificates would have to be kept out.
//! It is made for one stream, never holds anything of the host's, and lies in memory (the run directory is one) only
//! until the handshake is over.
//!
//! The guest's directory belongs to the guest's user, who may have put anything in the file's place.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, fchown, fstat, mkdirat, openat, unlinkat};
use rustix::io::Errno;

use super::qmp::wire::Version;
use crate::hypervisor::StreamKey;

/// The directory of the key's file, in the guest's.
pub const DIRECTORY: &str = "stream-key";
/// The name that QEMU gives the file.
const FILE: &str = "keys.psk";
/// The name under which the key stands in the file.
pub const USER: &str = "godwit";

/// From this version on a long stream over one channel does not end the process: before, GnuTLS was used by two
/// threads at once when it changed the key, which AES-GCM needs after 64 GiB of pages and ChaCha20 never.
const SOUND_REKEYING_SINCE: Version = Version {
    major: 10,
    minor: 1,
    micro: 0,
};

/// Which ciphers QEMU may take, in GnuTLS's words. TLS 1.3 alone. AES-128-GCM costs half of what ChaCha20 does, and
/// is not what GnuTLS would choose by itself for a pre-shared key. The one is taken only where both ends have it, so
/// that a careful end has its way.
pub fn priority(version: Version) -> &'static str {
    if version < SOUND_REKEYING_SINCE {
        "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+CHACHA20-POLY1305"
    } else {
        "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM:+CHACHA20-POLY1305"
    }
}

/// Writes the key where only the guest's own user, and root, can read it.
pub fn write(guest: &Path, key: &StreamKey) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let guest = openat(CWD, guest, flags, Mode::empty())?;
    remove_beneath(&guest)?;
    let owner = fstat(&guest)?;
    mkdirat(&guest, DIRECTORY, Mode::RWXU)?;
    let directory = openat(&guest, DIRECTORY, flags, Mode::empty())?;
    let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(&directory, FILE, create, Mode::RUSR)?);
    let mut line = format!("{USER}:");
    for byte in key.bytes() {
        line.push_str(&format!("{byte:02x}"));
    }
    line.push('\n');
    file.write_all(line.as_bytes())?;
    let (user, group) = (Uid::from_raw(owner.st_uid), Gid::from_raw(owner.st_gid));
    fchown(&file, Some(user), Some(group))?;
    fchown(&directory, Some(user), Some(group))?;
    Ok(())
}

/// Removes the key's file, if it is there.
pub fn remove(guest: &Path) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(CWD, guest, flags, Mode::empty()) {
        Ok(guest) => remove_beneath(&guest),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn remove_beneath(guest: &impl std::os::fd::AsFd) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let gone = |outcome: rustix::io::Result<()>| match outcome {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(io::Error::from(error)),
    };
    match openat(guest, DIRECTORY, flags, Mode::empty()) {
        Ok(directory) => gone(unlinkat(&directory, FILE, AtFlags::empty()))?,
        Err(Errno::NOENT) => return Ok(()),
        // Not a directory: whatever was put there goes.
        Err(Errno::NOTDIR | Errno::LOOP) => return gone(unlinkat(guest, DIRECTORY, AtFlags::empty())),
        Err(error) => return Err(error.into()),
    }
    gone(unlinkat(guest, DIRECTORY, AtFlags::REMOVEDIR))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]

    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_key_lies_there_for_its_user_alone_and_is_removed() {
        let guest = tempfile::tempdir().unwrap();
        let file = guest.path().join(DIRECTORY).join(FILE);
        for byte in [0xab, 0x01] {
            write(guest.path(), &StreamKey::new([byte; 32])).unwrap();
            let text = std::fs::read_to_string(&file).unwrap();
            assert_eq!(text, format!("godwit:{}\n", format!("{byte:02x}").repeat(32)));
            let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o400, 0o700));
        }
        remove(guest.path()).unwrap();
        assert!(!file.parent().unwrap().exists());
        remove(guest.path()).unwrap();
    }

    #[test]
    fn a_key_never_follows_a_link() {
        let (guest, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(elsewhere.path(), guest.path().join(DIRECTORY)).unwrap();
        write(guest.path(), &StreamKey::new([1; 32])).unwrap();
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
        assert!(guest.path().join(DIRECTORY).join(FILE).exists());
    }

    #[test]
    fn ciphers_are_chosen_by_what_the_version_can_bear() {
        let version = |major, minor| Version {
            major,
            minor,
            micro: 0,
        };
        assert!(!priority(version(10, 0)).contains("AES"));
        assert!(priority(version(10, 1)).contains("+AES-128-GCM:+CHACHA20"));
    }
}
