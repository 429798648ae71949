//! The file system that a confined process sees.
//!
//! An allow-list: what is not named here is not there. It is built on an empty file system in memory, mounted where no
//! other process sees it, and made the root; the host's root is let go.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_remount, unmount,
};
use rustix::process::{chdir, pivot_root};

/// The system's programs and libraries. Where one is a link, as `/bin` is on most systems, it stays one.
const SYSTEM: [&str; 9] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/nix/store",
    "/gnu/store",
];

/// What programs and libraries read of the configuration: where libraries lie, which ciphers are allowed.
const CONFIGURATION: [&str; 7] = [
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ld-musl-x86_64.path",
    "/etc/alternatives",
    "/etc/crypto-policies",
    "/etc/gnutls",
];

/// Devices that hold nothing of anybody's.
const DEVICES: [&str; 5] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
];

/// Beside a program in `bin` lie its parts.
const PARTS: [&str; 4] = ["share", "lib", "lib64", "libexec"];

/// Over this directory the new root is built where there is no directory of the guest's.
const SCRATCH: &str = "/proc";

const READ_ONLY: MountFlags = MountFlags::RDONLY
    .union(MountFlags::NOSUID)
    .union(MountFlags::NODEV);
const DEVICE: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC);
const WRITABLE: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// A file system in the making: every path as it stands in the host's tree, ready for the kernel.
pub(super) struct Root {
    /// Where it is built. In the new namespace only, this hides what lies there.
    scratch: CString,
    /// The guest's directory, entered before it is hidden.
    directory: Option<CString>,
    entries: Vec<Entry>,
    processes: CString,
}

enum Entry {
    Directory(CString),
    File(CString),
    Link {
        target: CString,
        at: CString,
    },
    Bind {
        from: CString,
        to: CString,
        flags: MountFlags,
    },
}

impl Root {
    /// Plans a root for a program. The host is only looked at.
    pub(super) fn plan(program: &Path, directory: Option<&Path>) -> io::Result<Self> {
        let scratch = directory.unwrap_or(Path::new(SCRATCH));
        if !scratch.is_absolute() || scratch.components().any(|part| part == Component::ParentDir) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a guest's directory must be an absolute path",
            ));
        }
        let mut plan = Planner {
            scratch,
            made: Vec::new(),
            entries: Vec::new(),
        };
        for path in SYSTEM.iter().chain(&CONFIGURATION).map(Path::new) {
            plan.system(path)?;
        }
        for path in beside(&program.canonicalize()?) {
            plan.bind(&path, READ_ONLY)?;
        }
        for path in DEVICES.map(Path::new) {
            if path.exists() {
                plan.bind(path, DEVICE)?;
            }
        }
        plan.make_directory(Path::new("/proc"))?;
        if let Some(directory) = directory {
            // Entered before, it is the current one.
            plan.make_directory(directory)?;
            let to = plan.inside(directory)?;
            plan.entries.push(Entry::Bind {
                from: c".".into(),
                to,
                flags: WRITABLE,
            });
        }
        Ok(Self {
            scratch: c_string(scratch)?,
            directory: directory.map(c_string).transpose()?,
            processes: plan.inside(Path::new("/proc"))?,
            entries: plan.entries,
        })
    }

    /// Builds it and enters it. Only system calls; the process must be in a mount namespace of its own.
    pub(super) fn enter(&self) -> Result<(), Errno> {
        // Nothing that is mounted from here on is seen outside.
        mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        chdir(self.directory.as_deref().unwrap_or(c"/"))?;
        mount(
            c"none",
            &*self.scratch,
            c"tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            c"mode=0755,size=64k,nr_inodes=512",
        )?;
        for entry in &self.entries {
            entry.make()?;
        }
        self.mount_processes()?;
        chdir(&*self.scratch)?;
        mount_remount(c".", MountFlags::BIND | READ_ONLY, c"")?;
        // The old root lies on top of the new one for a moment.
        pivot_root(c".", c".")?;
        unmount(c".", UnmountFlags::DETACH)?;
        chdir(c"/")
    }

    /// A `/proc` in which a user sees no other's processes, and where the kernel can (5.8) nothing but processes.
    fn mount_processes(&self) -> Result<(), Errno> {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let on = |options| mount(c"proc", &*self.processes, c"proc", flags, options);
        on(c"hidepid=invisible,subset=pid").or_else(|_| on(c"hidepid=2"))
    }
}

impl Entry {
    fn make(&self) -> Result<(), Errno> {
        match self {
            Self::Directory(path) => match mkdirat(CWD, &**path, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(errno) => Err(errno),
            },
            Self::File(path) => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
                openat(CWD, &**path, flags, Mode::from_raw_mode(0o644)).map(drop)
            }
            Self::Link { target, at } => symlinkat(&**target, CWD, &**at),
            Self::Bind { from, to, flags } => {
                mount_bind(&**from, &**to)?;
                mount_remount(&**to, MountFlags::BIND | *flags, c"")
            }
        }
    }
}

/// Writes a plan down in the order in which it can be built.
struct Planner<'a> {
    scratch: &'a Path,
    /// What is bound already.
    made: Vec<PathBuf>,
    entries: Vec<Entry>,
}

impl Planner<'_> {
    /// A path of the host as it will lie below the scratch directory.
    fn inside(&self, path: &Path) -> io::Result<CString> {
        let mut whole = self.scratch.as_os_str().to_owned();
        whole.push(path);
        c_string(Path::new(&whole))
    }

    /// Takes a part of the system over, if it is there: a link as a link.
    fn system(&mut self, path: &Path) -> io::Result<()> {
        let found = match path.symlink_metadata() {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if !found.is_symlink() {
            return self.bind(path, READ_ONLY);
        }
        if let Some(parent) = path.parent() {
            self.make_directory(parent)?;
        }
        let at = self.inside(path)?;
        self.entries.push(Entry::Link {
            target: c_string(&path.read_link()?)?,
            at,
        });
        Ok(())
    }

    /// Binds a file or directory, unless it is in what is bound already.
    fn bind(&mut self, path: &Path, flags: MountFlags) -> io::Result<()> {
        if self.made.iter().any(|made| path.starts_with(made)) {
            return Ok(());
        }
        if path.is_dir() {
            self.make_directory(path)?;
        } else {
            if let Some(parent) = path.parent() {
                self.make_directory(parent)?;
            }
            let at = self.inside(path)?;
            self.entries.push(Entry::File(at));
        }
        let to = self.inside(path)?;
        self.entries.push(Entry::Bind {
            from: c_string(path)?,
            to,
            flags,
        });
        self.made.push(path.into());
        Ok(())
    }

    /// Makes a directory and those above it.
    fn make_directory(&mut self, path: &Path) -> io::Result<()> {
        let mut above: Vec<&Path> = path.ancestors().collect();
        above.reverse();
        for directory in above.into_iter().skip(1) {
            let at = self.inside(directory)?;
            self.entries.push(Entry::Directory(at));
        }
        Ok(())
    }
}

/// What a program outside the system's directories needs: the directory that it lies in, or its parts.
fn beside(program: &Path) -> Vec<PathBuf> {
    let Some(directory) = program.parent() else {
        return Vec::new();
    };
    let mut found = vec![directory.to_owned()];
    if let (true, Some(prefix)) = (directory.ends_with("bin"), directory.parent()) {
        found.extend(
            PARTS
                .map(|part| prefix.join(part))
                .into_iter()
                .filter(|part| part.is_dir()),
        );
    }
    found
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
