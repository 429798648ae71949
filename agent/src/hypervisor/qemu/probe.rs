//! What QEMU has to offer on this host, found out by running it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::guest::{into_error, kill, system};
use super::logs::Log;
use super::process::{End, Process};
use super::qmp::client::{Client, Command};
use super::qmp::wire::{RawEvent, Version, bounded};
use super::spawn::{Inherited, in_memory, spawn};
use super::{Accelerator, argv};
use crate::hypervisor::HypervisorError;
use crate::sandbox::Sandbox;

/// How long a boot under KVM may take; where KVM works it takes some tenths of a second.
const KVM_BOOT: Duration = Duration::from_secs(2);

/// How long a boot under TCG may take; it takes half a second on a quiet host.
const TCG_BOOT: Duration = Duration::from_secs(20);

/// How long QEMU may take to start and answer what it is asked.
const ASK: Duration = Duration::from_secs(20);

/// The most names of one kind that are taken.
const MAX_NAMES: usize = 512;

/// The exit status of a QEMU whose guest has reached the end of [`BOOT_SECTOR`]: `isa-debug-exit` makes 2n + 1 of
/// the n that the guest writes, which is 7 + 7.
const BOOTED: i32 = 29;

/// What QEMU answered.
pub struct Answers {
    /// Its version.
    pub version: Version,
    /// Versioned machine types that the driver can use.
    pub machine_types: Vec<String>,
    /// CPU models that a guest can have here, and that mean the same on every host.
    pub cpu_models: Vec<String>,
}

/// Opens `/dev/kvm`.
pub fn open_kvm() -> io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open("/dev/kvm")?.into())
}

/// The accelerator that was seen to work.
pub async fn working_accelerator(
    program: &Path,
    sandbox: Sandbox<'static>,
) -> Result<Accelerator, HypervisorError> {
    match boots(program, Accelerator::Kvm, sandbox, KVM_BOOT).await {
        Ok(()) => return Ok(Accelerator::Kvm),
        Err(error) => tracing::info!(%error, "KVM does not work here, guests run under TCG"),
    }
    boots(program, Accelerator::Tcg, sandbox, TCG_BOOT).await?;
    Ok(Accelerator::Tcg)
}

/// Asks QEMU for its version, machine types and CPU models.
pub async fn ask(
    program: &Path,
    accelerator: Accelerator,
    sandbox: Sandbox<'static>,
) -> Result<Answers, HypervisorError> {
    let probe = Probe::start(
        program,
        accelerator,
        sandbox,
        Inherited::default(),
        &["-machine", "none"],
        |_| (),
    )
    .await?;
    let answers = async {
        let client = &probe.client;
        let machines = client.call(Command::new("query-machines").within(ASK)).await?;
        let models = client
            .call(Command::new("query-cpu-definitions").within(ASK))
            .await?;
        Ok(Answers {
            version: client.version(),
            machine_types: machine_types(&machines),
            cpu_models: cpu_models(&models),
        })
    }
    .await;
    probe.end().await?;
    answers.map_err(into_error)
}

/// Boots [`BOOT_SECTOR`].
async fn boots(
    program: &Path,
    accelerator: Accelerator,
    sandbox: Sandbox<'static>,
    deadline: Duration,
) -> Result<(), HypervisorError> {
    let mut inherited = Inherited::default();
    let disk = inherited.add(
        in_memory("godwit-probe", &BOOT_SECTOR).map_err(|error| system("making the probe's disk", error))?,
    );
    let disk = format!("fd={disk},set=1");
    let node =
        json!({"driver": "raw", "node-name": "disk", "file": {"driver": "file", "filename": "/dev/fdset/1"}})
            .to_string();
    let drive = json!({"driver": "ide-hd", "drive": "disk", "bootindex": 1}).to_string();
    let exit = json!({"driver": "isa-debug-exit", "iobase": 0xf4, "iosize": 4}).to_string();
    let arguments = [
        "-machine",
        "pc",
        "-m",
        "size=16M",
        "-add-fd",
        &disk,
        "-blockdev",
        &node,
        "-device",
        &drive,
        "-device",
        &exit,
    ];
    let stopped = Arc::new(Notify::new());
    let hear = {
        let stopped = stopped.clone();
        // A KVM that cannot go on stops the guest.
        move |event: RawEvent| {
            if event.name == "STOP" {
                stopped.notify_one();
            }
        }
    };
    let probe = Probe::start(program, accelerator, sandbox, inherited, &arguments, hear).await?;
    let outcome = timeout(deadline, async {
        // The guest may end QEMU before the answer is read.
        let _ = probe.client.call(Command::new("cont")).await;
        tokio::select! {
            end = probe.process.ended() => end.ok(),
            () = stopped.notified() => None,
        }
    })
    .await;
    let said = probe.log.tail();
    probe.end().await?;
    match outcome {
        Ok(Some(End::Exited(BOOTED))) => Ok(()),
        Ok(Some(_) | None) => Err(HypervisorError::Unavailable(format!(
            "a guest does not boot with {}: {said}",
            accelerator.name()
        ))),
        Err(_) => Err(HypervisorError::Unavailable(format!(
            "a guest did not boot with {} within {deadline:?}",
            accelerator.name()
        ))),
    }
}

/// A QEMU process that is there only to be asked.
struct Probe {
    process: Process,
    client: Client,
    log: Log,
}

impl Probe {
    /// Starts it with its virtual CPUs stopped.
    async fn start(
        program: &Path,
        accelerator: Accelerator,
        sandbox: Sandbox<'static>,
        mut inherited: Inherited,
        arguments: &[&str],
        hear: impl FnMut(RawEvent) + Send + 'static,
    ) -> Result<Self, HypervisorError> {
        let unavailable =
            |error: io::Error| HypervisorError::Unavailable(format!("{}: {error}", program.display()));
        let (near, far) = StdUnixStream::pair().map_err(unavailable)?;
        near.set_nonblocking(true).map_err(unavailable)?;
        let near = UnixStream::from_std(near).map_err(unavailable)?;
        let monitor = inherited.add(far);
        let kvm = match accelerator {
            Accelerator::Kvm => Some(inherited.add(
                open_kvm().map_err(|error| HypervisorError::Unavailable(format!("/dev/kvm: {error}")))?,
            )),
            Accelerator::Tcg => None,
        };
        let mut words = argv::confinement();
        words.extend(argv::accelerator(accelerator, kvm));
        words.push("-S".into());
        words.extend([
            "-chardev".into(),
            format!("socket,id=monitor,fd={monitor}"),
            "-mon".into(),
            "chardev=monitor,mode=control".into(),
        ]);
        words.extend(arguments.iter().map(ToString::to_string));
        let log = Log::in_memory().map_err(unavailable)?;
        let mut child = spawn(program, &words, inherited, sandbox, &log).map_err(unavailable)?;
        let process = match Process::of_child(child.id()) {
            Ok(process) => process,
            Err(error) => {
                // Not waited for yet, so the pid is still its own.
                let _ = child.kill().and_then(|()| child.wait());
                return Err(unavailable(error));
            }
        };
        match Client::greet(near, ASK, hear).await {
            Ok(client) => Ok(Self { process, client, log }),
            Err(error) => {
                kill(&process).await?;
                Err(HypervisorError::Unavailable(format!("{error}: {}", log.tail())))
            }
        }
    }

    async fn end(self) -> Result<(), HypervisorError> {
        kill(&self.process).await
    }
}

fn machine_types(answer: &Value) -> Vec<String> {
    let usable = |machine: &&Value| machine.get("deprecated").and_then(Value::as_bool) != Some(true);
    let named = |machine: &Value| {
        machine
            .get("name")
            .and_then(Value::as_str)
            .filter(|name| argv::knows_machine(name))
            .map(bounded)
    };
    list(answer, |machine| Some(machine).filter(usable).and_then(named))
}

fn cpu_models(answer: &Value) -> Vec<String> {
    list(answer, |model| {
        let name = model.get("name").and_then(Value::as_str)?;
        let missing = model.get("unavailable-features").and_then(Value::as_array)?;
        let fixed = model.get("migration-safe").and_then(Value::as_bool) != Some(false);
        (missing.is_empty() && fixed && !matches!(name, "host" | "max" | "base")).then(|| bounded(name))
    })
}

fn list(answer: &Value, pick: impl Fn(&Value) -> Option<String>) -> Vec<String> {
    let mut names: Vec<String> = answer
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(pick)
        .take(MAX_NAMES)
        .collect();
    names.sort();
    names.dedup();
    names
}

/// A boot sector that goes the way of a 64-bit kernel: long mode, paging, model-specific registers, an SSE
/// instruction. A KVM that only emulates instructions brings firmware up, and stops at the last of these.
const BOOT_SECTOR: [u8; 512] = boot_sector(&[
    // cli; cld; es, ds and ss are 0; stack at 0x7c00
    0xfa, 0xfc, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c,
    // page tables at 0x1000, emptied; cr3
    0x66, 0xbf, 0x00, 0x10, 0x00, 0x00, 0x0f, 0x22, 0xdf, 0x66, 0xb9, 0x00, 0x0c, 0x00, 0x00, 0x66, 0x31,
    0xc0, 0x66, 0xf3, 0xab, // one page of 2 MiB at 0: level 4, 3, 2
    0x66, 0xc7, 0x06, 0x00, 0x10, 0x03, 0x20, 0x00, 0x00, 0x66, 0xc7, 0x06, 0x00, 0x20, 0x03, 0x30, 0x00,
    0x00, 0x66, 0xc7, 0x06, 0x00, 0x30, 0x83, 0x00, 0x00, 0x00,
    // cr4: PAE, and SSE for operating systems
    0x66, 0xb8, 0x20, 0x06, 0x00, 0x00, 0x0f, 0x22, 0xe0, // EFER: long mode, syscall
    0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, 0x66, 0x0d, 0x01, 0x01, 0x00, 0x00, 0x0f, 0x30,
    // cr0: paging, protection
    0x66, 0xb8, 0x13, 0x00, 0x00, 0x80, 0x66, 0x0f, 0x01, 0x16, 0xc0, 0x7c, 0x0f, 0x22, 0xc0,
    // far jump into 64-bit code
    0xea, 0x6a, 0x7c, 0x08, 0x00, // flat segments, stack
    0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0x00, 0x00,
    // cr3 again; a syscall MSR; swapgs twice
    0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, 0xb9, 0x82, 0x00, 0x00, 0xc0, 0x31, 0xc0, 0x31, 0xd2, 0x0f, 0x30,
    0x0f, 0x01, 0xf8, 0x0f, 0x01, 0xf8, // eax = 7, doubled in an SSE register
    0xb8, 0x07, 0x00, 0x00, 0x00, 0x66, 0x0f, 0x6e, 0xc0, 0x66, 0x0f, 0xfe, 0xc0, 0x66, 0x0f, 0x7e, 0xc0,
    // a million turns of push and pop
    0xb9, 0x40, 0x42, 0x0f, 0x00, 0x51, 0x59, 0xe2, 0xfc, // out 0xf4, eax; halt
    0xe7, 0xf4, 0xf4, 0xeb, 0xfd, // padding
    0x0f, 0x1f, 0x00, // descriptors: null, 64-bit code
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x9a, 0x20, 0x00,
    // their address
    0x0f, 0x00, 0xb0, 0x7c, 0x00, 0x00,
]);

const fn boot_sector(code: &[u8]) -> [u8; 512] {
    let mut sector = [0; 512];
    let (start, _) = sector.split_at_mut(code.len());
    start.copy_from_slice(code);
    sector[510] = 0x55;
    sector[511] = 0xaa;
    sector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_usable_machine_types_are_named() {
        let answer = json!([{"name": "pc-q35-10.0"}, {"name": "pc-q35-2.4", "deprecated": true}, {"name": "microvm"}, {"name": "none"},
            {"name": "pc-i440fx-9.0", "deprecated": false}, {"name": 5}, "junk"]);
        assert_eq!(machine_types(&answer), ["pc-i440fx-9.0", "pc-q35-10.0"]);
        assert!(machine_types(&json!({})).is_empty());
    }

    #[test]
    fn only_models_that_can_be_had_and_moved_are_named() {
        let answer = json!([
            {"name": "qemu64", "unavailable-features": [], "migration-safe": true},
            {"name": "EPYC-v1", "unavailable-features": ["svm"], "migration-safe": true},
            {"name": "max", "unavailable-features": [], "migration-safe": false},
            {"name": "base", "unavailable-features": [], "migration-safe": true},
            {"name": "unknown"}]);
        assert_eq!(cpu_models(&answer), ["qemu64"]);
    }
}
