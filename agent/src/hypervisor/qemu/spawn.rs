//! Starting a QEMU process: descriptors that it inherits, in the sandbox that it is given.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use rustix::fs::{MemfdFlags, Mode, SealFlags, fcntl_add_seals, fstat, memfd_create};
use rustix::io::fcntl_dupfd_cloexec;

use super::logs::Log;
use crate::sandbox::{Sandbox, confine};

/// Descriptors in the child begin here, above the standard streams and with room for what its libraries open.
const FIRST_DESCRIPTOR: i32 = 10;

/// The largest kernel or initial RAM file system that is copied, in bytes.
const MAX_BOOT_FILE_BYTES: u64 = 1 << 30;

/// Descriptors that a child inherits, under numbers of our choice.
#[derive(Default)]
pub struct Inherited {
    mappings: Vec<FdMapping>,
}

impl Inherited {
    /// Adds one; answers its number in the child.
    pub fn add(&mut self, file: impl Into<OwnedFd>) -> i32 {
        let child_fd = self
            .mappings
            .iter()
            .map(|mapping| mapping.child_fd + 1)
            .max()
            .unwrap_or(FIRST_DESCRIPTOR);
        self.mappings.push(FdMapping {
            parent_fd: file.into(),
            child_fd,
        });
        child_fd
    }

    /// Occupies, in this process, those numbers of the child's that are free. Between fork and exec the standard library
    /// holds a pipe into which it writes if the program cannot be run: had it one of these numbers, a guest's disk
    /// would be there instead by then.
    fn keep_numbers_free(&self) -> io::Result<Vec<OwnedFd>> {
        let end =
            FIRST_DESCRIPTOR + i32::try_from(self.mappings.len()).unwrap_or(i32::MAX - FIRST_DESCRIPTOR);
        let nothing = File::open("/dev/null")?;
        let mut kept = Vec::new();
        loop {
            let next = fcntl_dupfd_cloexec(&nothing, FIRST_DESCRIPTOR)?;
            if next.as_raw_fd() >= end {
                return Ok(kept);
            }
            kept.push(next);
        }
    }
}

/// Starts a process in its sandbox, that this one's end does not touch and that inherits nothing but what it is given.
pub fn spawn(
    program: &Path,
    arguments: &[String],
    inherited: Inherited,
    sandbox: Sandbox<'_>,
    log: &Log,
) -> io::Result<Child> {
    let program = find(program);
    let mut command = Command::new(&program);
    command
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.for_child()?)
        .stderr(log.for_child()?);
    let verdict = confine(&mut command, &program, sandbox)?;
    let kept_free = inherited.keep_numbers_free()?;
    command
        .fd_mappings(inherited.mappings)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let child = command.spawn().map_err(|error| verdict.explain(error));
    drop(kept_free);
    child
}

/// The file that a program is: by its name alone it is looked up in PATH, and links are followed, since what they lead
/// through is not in the sandbox. One that is not there stays as it was given.
pub fn find(program: &Path) -> PathBuf {
    let found = if program.components().count() == 1 && !program.has_root() {
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        std::env::split_paths(&path)
            .map(|directory| directory.join(program))
            .find(|found| found.is_file())
    } else {
        Some(program.into())
    };
    found
        .and_then(|found| found.canonicalize().ok())
        .unwrap_or_else(|| program.into())
}

/// Makes sure that `user` can open a kernel's file again through `/proc/self/fd`, which QEMU does: as it is if
/// everybody may read it, else as a sealed copy in memory.
pub fn boot_file(file: OwnedFd, user: Option<u32>) -> io::Result<OwnedFd> {
    let mode = Mode::from_raw_mode(fstat(&file)?.st_mode);
    if user.is_none() || mode.contains(Mode::ROTH) {
        return Ok(file);
    }
    let copy = memfd_create(
        "godwit-boot-file",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?;
    let mut source = File::from(file).take(MAX_BOOT_FILE_BYTES + 1);
    let mut copy = File::from(copy);
    if io::copy(&mut source, &mut copy)? > MAX_BOOT_FILE_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "a kernel or initial RAM file system has at most 1 GiB",
        ));
    }
    fcntl_add_seals(
        copy.as_fd(),
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(copy.into())
}

/// A file in memory with these bytes.
pub fn in_memory(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.write_all_at(bytes, 0)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_child_has_its_descriptors_and_no_others() {
        let log = Log::in_memory().unwrap();
        let mut inherited = Inherited::default();
        let numbers = [
            inherited.add(in_memory("one", b"first").unwrap()),
            inherited.add(in_memory("two", b"second").unwrap()),
        ];
        assert_eq!(numbers, [10, 11]);
        let script = "for f in 0 1 2 3 4 5 6 7 8 9 10 11 12 13; do [ -e /proc/$$/fd/$f ] && printf '%s ' $f; done; cat /proc/$$/fd/11";
        let mut child = spawn(
            Path::new("/bin/sh"),
            &["-c".into(), script.into()],
            inherited,
            Sandbox::default(),
            &log,
        )
        .unwrap();
        child.wait().unwrap();
        assert_eq!(log.tail(), "0 1 2 10 11 second");
    }

    #[test]
    fn a_program_is_found_by_its_name_and_through_links() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/bin/sh", &link).unwrap();
        let shell = Path::new("/bin/sh").canonicalize().unwrap();
        for given in [Path::new("sh"), Path::new("/bin/sh"), &link] {
            assert_eq!(find(given), shell, "{}", given.display());
        }
        for missing in ["no-such-program", "/nowhere/qemu"] {
            assert_eq!(find(Path::new(missing)), Path::new(missing));
        }
    }

    #[test]
    fn a_child_has_a_session_of_its_own() {
        let log = Log::in_memory().unwrap();
        let mut child = spawn(
            Path::new("/bin/sleep"),
            &["60".into()],
            Inherited::default(),
            Sandbox::default(),
            &log,
        )
        .unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let session = rustix::process::getsid(Some(pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(session.unwrap(), pid);
    }

    #[test]
    fn a_private_kernel_is_copied_and_a_public_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kernel");
        std::fs::write(&path, "kernel").unwrap();
        let opened = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            OwnedFd::from(File::open(&path).unwrap())
        };
        let inode = |file: &OwnedFd| fstat(file).unwrap().st_ino;
        let public = opened(0o644);
        let before = inode(&public);
        assert_eq!(inode(&boot_file(public, Some(1234)).unwrap()), before);
        let copy = boot_file(opened(0o600), Some(1234)).unwrap();
        assert_ne!(inode(&copy), before);
        assert!(Mode::from_raw_mode(fstat(&copy).unwrap().st_mode).contains(Mode::ROTH));
        assert!(File::from(copy).write_at(b"x", 0).is_err());
    }
}
