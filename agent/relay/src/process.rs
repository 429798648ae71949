//! The relay as a process: what it is given at its start, and what it gives up by itself.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use rustix::process::{DumpableBehavior, Resource, Rlimit};

/// Where the control socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// To be made at a path, where nothing may be yet.
    Path(PathBuf),
    /// Standard input is the listening socket.
    Inherited,
}

impl Argument {
    /// What the program's one argument means: `-`, or a path.
    pub fn of(argument: OsString) -> Self {
        if argument == "-" {
            Self::Inherited
        } else {
            Self::Path(argument.into())
        }
    }
}

/// The listening control socket.
///
/// # Errors
/// When there is something at the path, or standard input is no listening socket.
pub fn listener(argument: &Argument) -> io::Result<UnixListener> {
    match argument {
        Argument::Path(path) => UnixListener::bind(path),
        Argument::Inherited => {
            let socket = io::stdin().as_fd().try_clone_to_owned()?;
            let listens = rustix::net::sockopt::socket_acceptconn(&socket);
            if !listens.is_ok_and(|listens| listens) {
                return Err(io::Error::other("standard input is not a listening socket"));
            }
            Ok(UnixListener::from(socket))
        }
    }
}

/// Gives up what the relay never needs: new privileges, core dumps with keys in them, being looked into by others of
/// the same user, and the session of whoever started it.
///
/// # Errors
/// When the kernel refuses: then the relay is not to begin.
pub fn lock_down() -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(Resource::Core, none)?;
    // Refused only to who leads a group already, and so has nothing to leave.
    let _ = rustix::process::setsid();
    Ok(())
}
