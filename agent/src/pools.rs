//! The directories in which guests' files lie, and the way to a file in them.
//!
//! A path from a definition is resolved by the kernel strictly beneath its pool and without symbolic links, and
//! what the hypervisor gets is the opened file: nobody can swap a path between the check and the use.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use godwit_crds::VirtualMachineSpec;
use godwit_crds::host::Pool;
use godwit_crds::virtual_machine::PoolFile;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, fcntl_setfl, fstat, linkat, openat, openat2, unlinkat,
};
use rustix::io::Errno;

use crate::guests::words;
use crate::hypervisor::{DiskFile, GuestFiles};

/// The file in which a pool keeps its id. No definition can name it: names in a pool do not begin with a dot.
const ID_FILE: &str = ".godwit-pool";

/// The pools of this host and the block devices that its guests may use.
#[derive(Clone, Debug, Default)]
pub struct Pools {
    directories: BTreeMap<String, PathBuf>,
    block_devices: Vec<PathBuf>,
}

/// Why a file of a definition could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The host has no such pool.
    #[error("This host has no pool named {0}")]
    NoPool(String),
    /// The pool's directory is not there or cannot be used.
    #[error("Pool {pool} at {path}: {source}", path = path.display())]
    Directory {
        /// The pool.
        pool: String,
        /// Its directory.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is not there or cannot be opened.
    #[error("{what}: {source}")]
    File {
        /// Which file.
        what: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// It is something else than a plain file or a block device.
    #[error("{what} is not a {expected}")]
    Kind {
        /// Which file.
        what: String,
        /// What it must be.
        expected: &'static str,
    },
    /// The host does not give this block device to guests.
    #[error(
        "{0} is not among the block devices that this host gives to guests; its administrator lists them in the agent's configuration (blockDevices)"
    )]
    DeviceNotAllowed(String),
    /// The pool's id file has other content than an id.
    #[error(
        "Pool {pool}: its id file {ID_FILE} does not hold an id; remove the file if no other host uses the pool"
    )]
    Id {
        /// The pool.
        pool: String,
    },
}

impl Pools {
    /// Pools by name; `block_devices` are devices, or directories of devices, that guests may use.
    pub fn new(directories: BTreeMap<String, PathBuf>, block_devices: Vec<PathBuf>) -> Self {
        Self {
            directories,
            block_devices,
        }
    }

    /// The pools that can be used, with the id that lies in each, and what is wrong with the others.
    pub fn publish(&self) -> (Vec<Pool>, Vec<PoolError>) {
        let (mut pools, mut errors) = (Vec::new(), Vec::new());
        for name in self.directories.keys() {
            match self.id(name) {
                Ok(id) => pools.push(Pool {
                    name: name.clone(),
                    id,
                }),
                Err(error) => errors.push(error),
            }
        }
        (pools, errors)
    }

    /// Opens every file that a definition names.
    pub fn open_all(&self, spec: &VirtualMachineSpec) -> Result<GuestFiles, PoolError> {
        let mut files = GuestFiles::default();
        if let Some(kernel) = &spec.boot.kernel {
            files.kernel = Some(self.open_file(&kernel.image, false)?);
            files.initramfs = kernel
                .initramfs
                .as_ref()
                .map(|file| self.open_file(file, false))
                .transpose()?;
        }
        for disk in &spec.disks {
            let disk = match (&disk.file, &disk.block_device) {
                (Some(file), _) => DiskFile {
                    file: self.open_file(file, !disk.read_only)?,
                    block_device: false,
                },
                (None, Some(path)) => DiskFile {
                    file: self.open_device(path, !disk.read_only)?,
                    block_device: true,
                },
                // A checked definition names one of the two.
                (None, None) => {
                    return Err(PoolError::Kind {
                        what: format!("Disk {}", disk.name),
                        expected: "file or a block device",
                    });
                }
            };
            files.disks.push(disk);
        }
        Ok(files)
    }

    fn open_file(&self, file: &PoolFile, write: bool) -> Result<OwnedFd, PoolError> {
        let what = format!("File {} in pool {}", file.file, file.pool);
        let root = self.root(&file.pool)?;
        let opened = open_beneath(&root, Path::new(&file.file), write, ResolveFlags::NO_SYMLINKS).map_err(
            |errno| PoolError::File {
                what: what.clone(),
                source: errno.into(),
            },
        )?;
        of_kind(opened, FileType::RegularFile, what, "plain file")
    }

    fn open_device(&self, path: &str, write: bool) -> Result<OwnedFd, PoolError> {
        let what = format!("Block device {path}");
        // The names under /dev/disk are links to the device; the kernel keeps them beneath /dev.
        let below = Path::new(path)
            .strip_prefix("/dev")
            .map_err(|_| PoolError::DeviceNotAllowed(path.into()))?;
        if !self
            .block_devices
            .iter()
            .any(|allowed| Path::new(path).starts_with(allowed))
        {
            return Err(PoolError::DeviceNotAllowed(path.into()));
        }
        let failed = |errno: Errno| PoolError::File {
            what: what.clone(),
            source: errno.into(),
        };
        let root = rustix::fs::open(
            "/dev",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(failed)?;
        let opened = open_beneath(&root, below, write, ResolveFlags::empty()).map_err(failed)?;
        of_kind(opened, FileType::BlockDevice, what, "block device")
    }

    /// The pool's directory, opened at each use: a network file system may be mounted there later than the agent
    /// starts.
    fn root(&self, pool: &str) -> Result<OwnedFd, PoolError> {
        let path = self
            .directories
            .get(pool)
            .ok_or_else(|| PoolError::NoPool(pool.into()))?;
        rustix::fs::open(
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| PoolError::Directory {
            pool: pool.into(),
            path: path.clone(),
            source: errno.into(),
        })
    }

    /// The pool's id, made at its first use. Of two hosts that make one at once, one wins and both read the same.
    fn id(&self, pool: &str) -> Result<String, PoolError> {
        let root = self.root(pool)?;
        let failed = |source: std::io::Error| PoolError::File {
            what: format!("The id of pool {pool}"),
            source,
        };
        match read_id(&root) {
            Ok(Some(id)) if words::is_uid(&id) => return Ok(id),
            Ok(Some(_)) => return Err(PoolError::Id { pool: pool.into() }),
            Ok(None) => {}
            Err(error) => return Err(failed(error)),
        }
        write_id(&root).map_err(failed)?;
        match read_id(&root).map_err(failed)? {
            Some(id) if words::is_uid(&id) => Ok(id),
            Some(_) | None => Err(PoolError::Id { pool: pool.into() }),
        }
    }
}

/// Opens a path that cannot leave `root`. Opening never waits (a pipe would make it), and what was opened works
/// as usual then.
fn open_beneath(root: &OwnedFd, path: &Path, write: bool, extra: ResolveFlags) -> Result<OwnedFd, Errno> {
    let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
    let opened = openat2(
        root,
        path,
        access | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | extra,
    )?;
    fcntl_setfl(&opened, access)?;
    Ok(opened)
}

fn of_kind(
    file: OwnedFd,
    kind: FileType,
    what: String,
    expected: &'static str,
) -> Result<OwnedFd, PoolError> {
    match fstat(&file) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == kind => Ok(file),
        Ok(_) => Err(PoolError::Kind { what, expected }),
        Err(errno) => Err(PoolError::File {
            what,
            source: errno.into(),
        }),
    }
}

fn read_id(root: &OwnedFd) -> std::io::Result<Option<String>> {
    let file = match openat2(
        root,
        ID_FILE,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    ) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let mut text = String::new();
    File::from(file).take(64).read_to_string(&mut text)?;
    Ok(Some(text.trim_end().to_owned()))
}

fn write_id(root: &OwnedFd) -> std::io::Result<()> {
    let id = uuid::Uuid::new_v4();
    let temporary = format!("{ID_FILE}.{id}");
    let file = openat(
        root,
        &temporary,
        OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o644),
    )?;
    let mut file = File::from(file);
    let linked = writeln!(file, "{id}")
        .and_then(|()| file.sync_all())
        .and_then(
            |()| match linkat(root, &temporary, root, ID_FILE, AtFlags::empty()) {
                // Another host was first: its id is the pool's.
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(errno) => Err(errno.into()),
            },
        );
    let _ = unlinkat(root, &temporary, AtFlags::empty());
    linked?;
    rustix::fs::fsync(root.as_fd())?;
    Ok(())
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
    use std::os::unix::fs::symlink;

    use super::*;

    fn pool() -> (tempfile::TempDir, Pools) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("pool");
        std::fs::create_dir_all(root.join("images")).unwrap();
        std::fs::write(root.join("images/a"), "content").unwrap();
        std::fs::write(directory.path().join("secret"), "secret").unwrap();
        let pools = Pools::new(BTreeMap::from([("default".to_owned(), root)]), vec![]);
        (directory, pools)
    }

    fn file(pool: &str, file: &str) -> PoolFile {
        PoolFile {
            pool: pool.into(),
            file: file.into(),
        }
    }

    #[test]
    fn a_file_in_the_pool_is_opened_with_the_access_asked_for() {
        let (_directory, pools) = pool();
        let mut text = String::new();
        File::from(pools.open_file(&file("default", "images/a"), false).unwrap())
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "content");
        let read_only = pools.open_file(&file("default", "images/a"), false).unwrap();
        assert!(File::from(read_only).write_all(b"x").is_err());
        let writable = pools.open_file(&file("default", "images/a"), true).unwrap();
        File::from(writable).write_all(b"x").unwrap();
    }

    #[test]
    fn r10_nothing_outside_the_pool_is_reached() {
        let (directory, pools) = pool();
        let root = directory.path().join("pool");
        symlink("../secret", root.join("out")).unwrap();
        symlink(directory.path(), root.join("up")).unwrap();
        symlink("images/a", root.join("inside")).unwrap();
        for path in [
            "../secret",
            "images/../../secret",
            "out",
            "up/secret",
            "inside",
            "/etc/passwd",
        ] {
            let outcome = pools.open_file(&file("default", path), false);
            assert!(
                matches!(outcome, Err(PoolError::File { .. })),
                "{path}: {outcome:?}"
            );
        }
    }

    #[test]
    fn r10_only_plain_files_are_taken_and_a_pipe_does_not_hang() {
        let (directory, pools) = pool();
        let fifo = directory.path().join("pool/fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(matches!(
            pools.open_file(&file("default", "fifo"), false),
            Err(PoolError::Kind { .. })
        ));
        assert!(matches!(
            pools.open_file(&file("default", "images"), false),
            Err(PoolError::Kind { .. })
        ));
        assert!(matches!(
            pools.open_file(&file("other", "images/a"), false),
            Err(PoolError::NoPool(_))
        ));
    }

    #[test]
    fn r10_a_block_device_must_be_allowed_and_be_one() {
        let (_directory, pools) = pool();
        assert!(matches!(
            pools.open_device("/dev/null", true),
            Err(PoolError::DeviceNotAllowed(_))
        ));
        let pools = Pools::new(BTreeMap::new(), vec!["/dev/null".into(), "/dev/mapper".into()]);
        assert!(matches!(
            pools.open_device("/dev/null", true),
            Err(PoolError::Kind { .. })
        ));
        assert!(matches!(
            pools.open_device("/dev/mapper-x", true),
            Err(PoolError::DeviceNotAllowed(_))
        ));
    }

    #[test]
    fn a_pool_keeps_one_id_for_everyone() {
        let (directory, pools) = pool();
        let (first, errors) = pools.publish();
        assert!(errors.is_empty(), "{errors:?}");
        let again = Pools::new(
            BTreeMap::from([("other-name".to_owned(), directory.path().join("pool"))]),
            vec![],
        )
        .publish()
        .0;
        assert_eq!(first[0].id, again[0].id);
        assert_eq!(
            std::fs::read_dir(directory.path().join("pool")).unwrap().count(),
            2,
            "the temporary file is gone"
        );
        std::fs::write(directory.path().join("pool/.godwit-pool"), "nonsense\n").unwrap();
        let (pools, errors) = pools.publish();
        assert!(pools.is_empty());
        assert!(matches!(errors[..], [PoolError::Id { .. }]));
    }
}
