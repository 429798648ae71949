//! The walls around a hypervisor's process, which is taken for an enemy: whoever breaks out of a guest is in it.
//!
//! A confined process has a user and group of its own and no other groups, no capabilities and none to gain (empty
//! bounding set, `no_new_privs`), no core dumps, a session of its own, and mount, network, IPC and host-name
//! namespaces of its own. In its file system are the system's programs and libraries (read-only), a `/proc` in which it
//! sees itself alone, and its own directory; no pool, no other guest's directory, nothing of the agent's. Its network
//! namespace is empty but for what is opened for it ([`crate::guest_network`]). System calls are filtered by QEMU itself
//! (`-sandbox`), memory and the number of processes are bounded by [`crate::cgroup`].
//!
//! The agent sets these walls up itself between fork and exec, and does not ask QEMU to (`-run-with user=`): then
//! not one instruction of QEMU runs with the agent's rights, the bounding set and the namespaces can be had at
//! all, and a wall that cannot be built is an error that the agent sees, with the name of the wall.

mod enter;
mod root;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::read;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::geteuid;

use self::root::Root;

/// The walls for one process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sandbox<'a> {
    /// The user and group id that it runs as. `None` where the agent is not root: then there are only those walls
    /// that anybody can build (session, core dumps, `no_new_privs`).
    pub user: Option<u32>,
    /// Namespaces of its own. Without them (see [`namespaces`]) it sees the host's files and network.
    pub namespaces: bool,
    /// The only directory that it may write to.
    pub directory: Option<&'a Path>,
}

impl Sandbox<'static> {
    /// For a program that is only asked something.
    pub fn for_probe(namespaces: bool) -> Self {
        /// The kernel's own user for nobody.
        const NOBODY: u32 = 65534;
        Self {
            user: geteuid().is_root().then_some(NOBODY),
            namespaces,
            directory: None,
        }
    }
}

/// A wall, for the words of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Wall {
    Session = 1,
    CoreDumps,
    Namespaces,
    Files,
    BoundingSet,
    User,
    Capabilities,
    NoNewPrivileges,
}

impl Wall {
    const ALL: [Self; 8] = [
        Self::Session,
        Self::CoreDumps,
        Self::Namespaces,
        Self::Files,
        Self::BoundingSet,
        Self::User,
        Self::Capabilities,
        Self::NoNewPrivileges,
    ];

    fn words(self) -> &'static str {
        match self {
            Self::Session => "a session of its own",
            Self::CoreDumps => "no core dumps",
            Self::Namespaces => "namespaces of its own",
            Self::Files => "a file system of its own",
            Self::BoundingSet => "an empty bounding set of capabilities",
            Self::User => "a user of its own",
            Self::Capabilities => "no capabilities",
            Self::NoNewPrivileges => "no new privileges",
        }
    }
}

/// Tells which wall could not be built, once spawning has failed.
pub struct Verdict {
    reader: OwnedFd,
}

impl Verdict {
    /// The error of spawning, with the wall's name where it was one.
    pub fn explain(&self, error: io::Error) -> io::Error {
        let mut byte = [0];
        let wall = match read(&self.reader, &mut byte) {
            Ok(1) => Wall::ALL.into_iter().find(|wall| [*wall as u8] == byte),
            Ok(_) | Err(_) => None,
        };
        match wall {
            Some(wall) => io::Error::new(
                error.kind(),
                format!("the process cannot be given {}: {error}", wall.words()),
            ),
            None => error,
        }
    }
}

/// Has `command`, which runs `program`, build its walls between fork and exec. Hooks that are added to the command
/// later run behind the walls.
///
/// # Errors
/// When the program or the directory is not there, or a pipe cannot be made.
pub fn confine(command: &mut Command, program: &Path, sandbox: Sandbox<'_>) -> io::Result<Verdict> {
    let root = match (sandbox.user, sandbox.namespaces) {
        (Some(_), true) => Some(Root::plan(program, sandbox.directory)?),
        (Some(_) | None, false) | (None, true) => None,
    };
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    enter::before_exec(
        command,
        enter::Plan {
            user: sandbox.user,
            root,
            verdict: writer,
        },
    );
    Ok(Verdict { reader })
}

/// Whether a process here can have namespaces of its own; the error says, for people, why not. `program` is run once,
/// confined as a guest's is, with `--version`.
///
/// # Errors
/// When the agent is not root, or the kernel refuses one of the walls.
pub fn namespaces(program: &Path) -> Result<(), String> {
    if !geteuid().is_root() {
        return Err(
            "the agent is not root: its guests run as its own user, and see its files and network".into(),
        );
    }
    let mut command = Command::new(program);
    command
        .arg("--version")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let outcome = confine(&mut command, program, Sandbox::for_probe(true)).and_then(|verdict| {
        let mut child = command.spawn().map_err(|error| verdict.explain(error))?;
        child.wait()
    });
    match outcome {
        // A program that fails is not a wall that does; whoever runs it next says so better.
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error().is_some() => Ok(()),
        Err(error) => Err(format!(
            "guests see the host's files and network: {error}; the agent needs CAP_SYS_ADMIN for this"
        )),
    }
}
