//! The QEMU driver.
//!
//! A guest is one `qemu-system-x86_64` process, started with its virtual CPUs stopped, in a sandbox of its own
//! ([`crate::sandbox`]), with what it needs handed over as opened descriptors. It is spoken to over QMP only, and
//! outlives the agent.

mod argv;
mod guest;
mod logs;
mod probe;
mod process;
mod psk;
pub mod qmp;
#[cfg(test)]
mod scripted;
mod spawn;
mod states;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use godwit_handover::Gates;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use self::guest::{MONITOR_SOCKET, QemuGuest, system};
use self::logs::Log;
use self::process::Process;
use self::qmp::wire::Version;
use self::spawn::Inherited;
use super::{
    Adoption, Guest, Hypervisor, HypervisorError, HypervisorFacts, Launch, ProcessRecord, StreamAbilities,
};
use crate::fail_point;
use crate::sandbox::{self, Sandbox};

/// The name of QEMU's own messages in a guest's directory.
const LOG: &str = "qemu.log";

/// From this version on an incoming stream that breaks need not end the process.
const EXIT_ON_ERROR_SINCE: Version = Version {
    major: 9,
    minor: 1,
    micro: 0,
};

/// From this version on a destination takes its disks only when it runs, without being asked to wait.
const LATE_BLOCK_ACTIVATE_UNTIL: Version = Version {
    major: 10,
    minor: 0,
    micro: 0,
};

/// From this version on disks can be given up on request.
const SET_DISKS_ACTIVE_SINCE: Version = Version {
    major: 10,
    minor: 0,
    micro: 0,
};

/// The oldest version that is taken: the accelerator's device can be given as a descriptor from here on.
const OLDEST: Version = Version {
    major: 8,
    minor: 2,
    micro: 0,
};

/// From this version on a source outlives an encrypted stream over several connections that breaks off. Before, it ended
/// each connection's TLS session while the thread that sends there could be in the middle of it, which GnuTLS answers by
/// aborting the process. It was seen in 10.0.2; by its source 10.2.2 has it mended, but 11.1 is the oldest that was tried.
const SEVERAL_ENCRYPTED_SINCE: Version = Version {
    major: 11,
    minor: 1,
    micro: 0,
};

/// QEMU counts a stream's channels in one byte.
const MOST_CHANNELS: u32 = 255;

/// How long QEMU may take from its start to its monitor's greeting.
const LAUNCH: Duration = Duration::from_secs(30);

/// How long an adopted process may take to say who it is.
const ADOPT: Duration = Duration::from_secs(5);

/// What runs a guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor, by the kernel's KVM.
    Kvm,
    /// QEMU's own translator.
    Tcg,
}

impl Accelerator {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// Which accelerator is to be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AcceleratorChoice {
    /// KVM if a guest was seen to boot with it, else TCG.
    #[default]
    Auto,
    /// This one, untried.
    Forced(Accelerator),
}

/// How the driver is set up.
#[derive(Clone, Debug)]
pub struct QemuConfig {
    /// QEMU's program.
    pub program: PathBuf,
    /// Which accelerator is to be used.
    pub accelerator: AcceleratorChoice,
}

impl Default for QemuConfig {
    fn default() -> Self {
        Self {
            program: "/usr/bin/qemu-system-x86_64".into(),
            accelerator: AcceleratorChoice::Auto,
        }
    }
}

/// QEMU on this host.
pub struct Qemu {
    config: QemuConfig,
    accelerator: OnceCell<Accelerator>,
    /// Whether processes here can have namespaces of their own, and why not.
    namespaces: OnceCell<Result<(), String>>,
}

impl Qemu {
    /// A driver. Nothing is started or looked at yet.
    pub fn new(config: QemuConfig) -> Self {
        Self {
            config,
            accelerator: OnceCell::new(),
            namespaces: OnceCell::new(),
        }
    }

    /// Whether processes here can have namespaces of their own. Tried once in this driver's life.
    async fn namespaces(&self) -> &Result<(), String> {
        let tried = self.namespaces.get_or_init(|| async {
            let program = spawn::find(&self.config.program);
            tokio::task::spawn_blocking(move || sandbox::namespaces(&program))
                .await
                .unwrap_or_else(|error| Err(error.to_string()))
        });
        tried.await
    }

    /// The accelerator that works here. Tried once in this driver's life.
    async fn accelerator(&self) -> Result<Accelerator, HypervisorError> {
        match self.config.accelerator {
            AcceleratorChoice::Forced(accelerator) => Ok(accelerator),
            AcceleratorChoice::Auto => {
                let sandbox = Sandbox::for_probe(self.namespaces().await.is_ok());
                self.accelerator
                    .get_or_try_init(|| probe::working_accelerator(&self.config.program, sandbox))
                    .await
                    .copied()
            }
        }
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    async fn probe(&self) -> Result<HypervisorFacts, HypervisorError> {
        let accelerator = self.accelerator().await?;
        let namespaces = self.namespaces().await;
        let sandbox = Sandbox::for_probe(namespaces.is_ok());
        let answers = probe::ask(&self.config.program, accelerator, sandbox).await?;
        if answers.version < OLDEST {
            return Err(HypervisorError::Unavailable(format!(
                "QEMU {} is older than {OLDEST}",
                answers.version
            )));
        }
        Ok(HypervisorFacts {
            name: "qemu".into(),
            version: answers.version.to_string(),
            accelerator: accelerator.name().into(),
            machine_types: answers.machine_types,
            cpu_models: answers.cpu_models,
            gates: Gates {
                seal: true,
                hold_before_switchover: true,
                keep_destination_paused: true,
                inactivate_disks: answers.version >= SET_DISKS_ACTIVE_SINCE,
            },
            streams: StreamAbilities {
                encrypts: true,
                connections: MOST_CHANNELS,
                several_encrypted: answers.version >= SEVERAL_ENCRYPTED_SINCE,
            },
            walls_missing: namespaces.as_ref().err().into_iter().cloned().collect(),
        })
    }

    async fn launch(&self, launch: Launch) -> Result<Arc<dyn Guest>, HypervisorError> {
        let accelerator = self.accelerator().await?;
        let uid = parse_uid(&launch.uid)?;
        let directory = launch.directory.clone();
        let program = self.config.program.clone();
        let namespaces = self.namespaces().await.is_ok();
        let work = move || start(&program, accelerator, namespaces, uid, launch);
        let (child, log) = tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| HypervisorError::Unavailable(error.to_string()))??;
        match attach_child(child, &log, uid, &directory).await {
            Ok(guest) => Ok(guest),
            Err(error) => {
                guest::remove_sockets(&directory);
                Err(error)
            }
        }
    }

    async fn adopt(
        &self,
        uid: &str,
        directory: &Path,
        record: &ProcessRecord,
    ) -> Result<Adoption, HypervisorError> {
        let uid = parse_uid(uid)?;
        let found =
            Process::of_record(record).map_err(|error| system("looking for the guest's process", error))?;
        let Some(process) = found.map(Arc::new) else {
            guest::remove_sockets(directory);
            return Ok(Adoption::Gone);
        };
        match QemuGuest::attach(process.clone(), uid, directory.to_owned(), ADOPT).await {
            Ok(guest) => Ok(Adoption::Alive(guest)),
            Err(_) if process.has_ended() => Ok(Adoption::Gone),
            Err(error) => Ok(Adoption::Unresponsive(error.to_string())),
        }
    }
}

fn parse_uid(uid: &str) -> Result<uuid::Uuid, HypervisorError> {
    uid.parse()
        .map_err(|_| HypervisorError::Refused(format!("the guest's uid {uid:?} is not a UUID")))
}

/// Starts a guest's process. Blocks for some milliseconds, longer where a kernel must be copied.
fn start(
    program: &Path,
    accelerator: Accelerator,
    namespaces: bool,
    uid: uuid::Uuid,
    launch: Launch,
) -> Result<(Child, Log), HypervisorError> {
    let mut inherited = Inherited::default();
    let socket = launch.directory.join(MONITOR_SOCKET);
    // Listening before QEMU runs: the connection can be made at once and is answered when QEMU is ready.
    let monitor =
        UnixListener::bind(&socket).map_err(|error| system("making the monitor's socket", error))?;
    let result = (|| {
        let monitor = inherited.add(monitor);
        let kvm = match accelerator {
            Accelerator::Kvm => Some(
                inherited.add(
                    probe::open_kvm()
                        .map_err(|error| HypervisorError::Unavailable(format!("/dev/kvm: {error}")))?,
                ),
            ),
            Accelerator::Tcg => None,
        };
        let mut boot_file = |file: Option<OwnedFd>| -> Result<Option<i32>, HypervisorError> {
            let Some(file) = file else { return Ok(None) };
            let file = spawn::boot_file(file, launch.user)
                .map_err(|error| system("handing over the kernel", error))?;
            Ok(Some(inherited.add(file)))
        };
        let kernel = boot_file(launch.files.kernel)?;
        let initramfs = boot_file(launch.files.initramfs)?;
        let mut disks = Vec::new();
        for (disk, opened) in launch.definition.disks.iter().zip(launch.files.disks) {
            set_direct(&opened.file, argv::direct(disk.cache)).map_err(|error| {
                HypervisorError::Refused(format!("disk {}'s cache mode: {error}", disk.name))
            })?;
            disks.push(argv::PlannedDisk {
                file: inherited.add(opened.file),
                block_device: opened.block_device,
            });
        }
        let mut taps = Vec::new();
        for tap in &launch.taps {
            let opened = crate::tun::open(tap)
                .map_err(|error| system(&format!("opening the tap device {tap}"), error))?;
            taps.push(inherited.add(opened));
        }
        let plan = argv::Plan {
            uid,
            name: &launch.name,
            definition: &launch.definition,
            directory: launch.directory.to_str().unwrap_or_default(),
            start: launch.start,
            accelerator,
            monitor,
            kvm,
            kernel,
            initramfs,
            disks: &disks,
            taps: &taps,
        };
        let mut arguments = argv::arguments(&plan).map_err(HypervisorError::Refused)?;
        if let Some(judge) = fail_point::observed(uid) {
            arguments.extend(argv::monitor("observer", inherited.add(judge)));
        }
        let log =
            Log::beneath(&launch.directory, LOG).map_err(|error| system("opening QEMU's log", error))?;
        let sandbox = Sandbox {
            user: launch.user,
            namespaces,
            directory: Some(&launch.directory),
        };
        let child = spawn::spawn(program, &arguments, inherited, sandbox, &log)
            .map_err(|error| HypervisorError::Unavailable(format!("{}: {error}", program.display())))?;
        Ok((child, log))
    })();
    if result.is_err() {
        guest::remove_sockets(&launch.directory);
    }
    result
}

/// QEMU takes a passed descriptor only if its `O_DIRECT` is as the cache mode wants.
fn set_direct(file: &OwnedFd, direct: bool) -> rustix::io::Result<()> {
    let mut flags = fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, direct);
    fcntl_setfl(file, flags)
}

/// Waits until a started process is a guest that can be spoken to; ends it if that fails.
async fn attach_child(
    mut child: Child,
    log: &Log,
    uid: uuid::Uuid,
    directory: &Path,
) -> Result<Arc<QemuGuest>, HypervisorError> {
    let process = match Process::of_child(child.id()) {
        Ok(process) => Arc::new(process),
        Err(error) => {
            // Not waited for yet, so the pid is still its own.
            let _ = child.kill().and_then(|()| child.wait());
            return Err(system("taking hold of the guest's process", error));
        }
    };
    let attached = QemuGuest::attach(process.clone(), uid, directory.to_owned(), LAUNCH).await;
    let Err(error) = attached else { return attached };
    // A process that ends by itself now has found something in its arguments that it cannot do.
    let by_itself = matches!(error, HypervisorError::Protocol(_))
        && matches!(timeout(Duration::from_secs(2), process.ended()).await, Ok(Ok(_)));
    if by_itself {
        let words = log.tail();
        // It says what it cannot do with its arguments; a program that says nothing is broken, or no hypervisor.
        return Err(if words.trim().is_empty() {
            HypervisorError::Unavailable("it ended at once and said nothing".into())
        } else {
            HypervisorError::Refused(words)
        });
    }
    guest::kill(&process).await?;
    Err(error)
}
