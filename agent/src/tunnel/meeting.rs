//! Where a hypervisor that makes several connections itself and its relay meet: a UNIX socket in the guest's directory.
//!
//! The guest's user reaches nothing but that directory, and a relay's user nothing of it. So at the source the agent
//! makes the socket and hands it to the relay, listening; at the destination, where the hypervisor listens, the agent
//! gives the very socket that it made a second name, at which the relay's user, and no other guest's, may connect.
//!
//! The directory belongs to the guest's user, who may have put anything in the socket's place: only a socket is
//! touched, never what a link leads to, and nothing that a user can put there gives it more than it has.

use std::fs::DirBuilder;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chmod, chownat, fstat, linkat, lstat, openat,
};

/// The socket's name in the guest's directory.
const SOCKET: &str = "stream.sock";

/// The socket of a guest with this directory: in its sandbox it has the same path.
pub(super) fn socket(guest: &Path) -> PathBuf {
    guest.join(SOCKET)
}

/// The source's: listens, for the guest's own user, whose id is answered too.
pub(super) fn listen(guest: &Path) -> io::Result<(UnixListener, u32)> {
    let user = lstat(guest)?.st_uid;
    remove(guest)?;
    let path = socket(guest);
    let listener = UnixListener::bind(&path)?;
    let (made, found) = open(&path)?;
    if found != user {
        chownat(
            &made,
            "",
            Some(Uid::from_raw(user)),
            Some(Gid::from_raw(user)),
            AtFlags::EMPTY_PATH,
        )?;
    }
    Ok((listener, user))
}

/// The destination's, once the hypervisor listens: its socket, for the user of the relay, at `name` too.
pub(super) fn lead(guest: &Path, name: &Path, relay: Option<u32>) -> io::Result<()> {
    let user = lstat(guest)?.st_uid;
    let (made, found) = open(&socket(guest))?;
    if found != user {
        return Err(io::Error::new(
            ErrorKind::PermissionDenied,
            "the socket for the stream is not the guest's",
        ));
    }
    // The very socket that was looked at.
    let itself = format!("/proc/self/fd/{}", made.as_raw_fd());
    if let Some(relay) = relay {
        let group = Some(Gid::from_raw(relay));
        chownat(&made, "", None, group, AtFlags::EMPTY_PATH)?;
        chmod(&itself, Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP)?;
    }
    forget(name)?;
    linkat(CWD, &itself, CWD, name, AtFlags::SYMLINK_FOLLOW)?;
    Ok(())
}

/// Makes the directory of the second names: a relay's user passes through it and sees nothing of it.
pub(super) fn make_directory(path: &Path, relay: Option<u32>) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o710).create(path)?;
    if let Some(relay) = relay {
        std::os::unix::fs::chown(path, None, Some(relay))?;
    }
    Ok(())
}

/// Removes the socket from the guest's directory, if it is there.
pub(super) fn remove(guest: &Path) -> io::Result<()> {
    forget(&socket(guest))
}

/// Removes a name of the socket, if it is there.
pub(super) fn forget(name: &Path) -> io::Result<()> {
    match std::fs::remove_file(name) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A socket and whose it is.
fn open(path: &Path) -> io::Result<(OwnedFd, u32)> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat(CWD, path, flags, Mode::empty())?;
    let about = fstat(&found)?;
    if FileType::from_raw_mode(about.st_mode) == FileType::Socket {
        Ok((found, about.st_uid))
    } else {
        Err(io::Error::new(
            ErrorKind::InvalidInput,
            "something else is in the place of the stream's socket",
        ))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_second_name_leads_to_the_hypervisors_socket_and_both_go() {
        let run = tempfile::tempdir().unwrap();
        let (guest, names) = (run.path().join("guest"), run.path().join("streams"));
        std::fs::create_dir(&guest).unwrap();
        make_directory(&names, None).unwrap();
        let name = names.join("m.sock");
        lead(&guest, &name, None).unwrap_err();
        let hypervisor = UnixListener::bind(socket(&guest)).unwrap();
        for _ in 0..2 {
            lead(&guest, &name, None).unwrap();
        }
        let connected = UnixStream::connect(&name).unwrap();
        drop((hypervisor.accept().unwrap(), connected));
        for _ in 0..2 {
            forget(&name).unwrap();
            remove(&guest).unwrap();
        }
        assert!(!name.exists() && !socket(&guest).exists());
    }

    #[test]
    fn what_a_guest_puts_in_the_sockets_place_is_not_followed() {
        let run = tempfile::tempdir().unwrap();
        let guest = run.path().join("guest");
        std::fs::create_dir(&guest).unwrap();
        let name = run.path().join("m.sock");
        let _other = UnixListener::bind(run.path().join("other.sock")).unwrap();
        symlink(run.path().join("other.sock"), socket(&guest)).unwrap();
        lead(&guest, &name, None).unwrap_err();
        remove(&guest).unwrap();
        std::fs::write(socket(&guest), "a file").unwrap();
        lead(&guest, &name, None).unwrap_err();
        assert!(!name.exists());
        // The source's takes its place.
        let (_listener, user) = listen(&guest).unwrap();
        assert_eq!(user, std::fs::metadata(&guest).unwrap().uid());
        UnixStream::connect(socket(&guest)).unwrap();
        assert!(run.path().join("other.sock").exists());
    }
}
