//! The same guest, started and moved by libvirt: a daemon for each of two hosts, and `virsh` as a person would use it.

mod daemon;
mod domain;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use godwit_crds::quantity::memory_bytes;
use godwit_lab::certificates::Authority;
use godwit_lab::guest::{Guest, STARTS_WITHIN};
use godwit_lab::observer::Observer;
use godwit_lab::{Lab, accelerator, cache};

use crate::by_hand::Taken;
use crate::setting::{Kind, command_line};
use daemon::{Daemon, Programs};
use domain::Domain;

/// The file to which each hypervisor writes its guest's console.
const CONSOLE: &str = "console.log";

/// How libvirt moves a guest, always from daemon to daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// From hypervisor to hypervisor, in plain text.
    Native,
    /// Through the daemons, in plain text.
    Tunnelled,
    /// Through the daemons, encrypted.
    TunnelledTls,
}

/// Finds libvirt, and gives a line about it.
///
/// # Errors
/// When it is not there, with what is to be installed, or cannot be used.
pub fn find() -> anyhow::Result<String> {
    ensure!(
        cache::root(),
        "libvirt is measured by root only: its daemons need mounts and host names of their own"
    );
    let programs = programs()?;
    let output = std::process::Command::new(&programs.daemon)
        .arg("--version")
        .output()
        .with_context(|| format!("run {}", programs.daemon.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn programs() -> anyhow::Result<Programs> {
    const INSTALL: &str = "install the packages libvirt-daemon, libvirt-daemon-driver-qemu and libvirt-clients from \
         the distribution's backports (tests/tools/install libvirt)";
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&paths).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let directories: Vec<PathBuf> = directories.collect();
    let find = |name: &str| {
        let mut candidates = directories.iter().map(|directory| directory.join(name));
        candidates.find(|path| path.is_file())
    };
    let (Some(daemon), Some(virsh)) = (find("libvirtd"), find("virsh")) else {
        bail!("libvirt is not there (no libvirtd, or no virsh): {INSTALL}");
    };
    // The last one comes with the driver for QEMU, whose own place differs from distribution to distribution.
    let mut needed = daemon::COVERED.into_iter().chain(["/var/lib/libvirt/qemu"]);
    let missing = needed.find(|path| !Path::new(path).is_dir());
    if let Some(missing) = missing {
        bail!("libvirt is not all there (no {missing}): {INSTALL}");
    }
    Ok(Programs { daemon, virsh })
}

/// A guest that libvirt runs on the first of two hosts.
pub struct LibvirtGuest {
    /// What is seen of it; no VirtualMachine stands behind it.
    pub guest: Guest,
    name: &'static str,
    daemons: [Daemon; 2],
    at: usize,
}

impl LibvirtGuest {
    /// Starts both daemons, and the guest on h1, and waits until it ticks.
    ///
    /// # Errors
    /// When libvirt is not there or fails, or the guest does not tick.
    pub async fn start(lab: &Lab, kind: Kind) -> anyhow::Result<Self> {
        let programs = programs()?;
        let [first, second] = lab.hosts.as_slice() else {
            bail!("libvirt is measured between two hosts");
        };
        let names = format!(
            "127.0.0.1 localhost\n{} {}\n{} {}\n",
            first.address, first.name, second.address, second.name
        );
        let authority = Authority::new("the bench's libvirt")?;
        let daemons = [
            Daemon::start(first, &programs, &authority, &names).await?,
            Daemon::start(second, &programs, &authority, &names).await?,
        ];
        let xml = Domain {
            name: kind.name,
            memory: memory_bytes(kind.memory).context("an amount of memory")?,
            kvm: accelerator::choice() == "kvm",
            kernel: &lab.pool().join(godwit_lab::lab::KERNEL),
            initramfs: &lab.pool().join(godwit_lab::lab::INITRAMFS),
            command_line: &command_line(&kind),
            console: &format!("/var/log/libvirt/{CONSOLE}"),
        }
        .xml()?;
        let file = first.directory.join("libvirt/guest.xml");
        std::fs::write(&file, xml)?;
        let observer = Observer::start(kind.interval);
        for (host, daemon) in lab.hosts.iter().zip(&daemons) {
            observer.follow(&host.name, &daemon.log(CONSOLE));
        }
        let this = Self {
            guest: Guest {
                name: format!("{}, by libvirt", kind.name),
                uid: String::new(),
                observer,
            },
            name: kind.name,
            daemons,
            at: 0,
        };
        let [daemon, _] = &this.daemons;
        // Not defined, only run: nothing of it is left at the source once it has moved.
        daemon.order(&["create", &file.display().to_string()]).await?;
        this.guest.wait_for_ticks(1, STARTS_WITHIN)?;
        Ok(this)
    }

    /// Moves it to the other host.
    ///
    /// # Errors
    /// When libvirt refuses or fails.
    pub async fn move_on(&mut self, mode: Mode) -> anyhow::Result<Taken> {
        let [first, second] = &self.daemons;
        let (from, to) = if self.at == 0 {
            (first, second)
        } else {
            (second, first)
        };
        let words = from.migrate(self.name, to, mode);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let begun = Instant::now();
        from.order(&words).await?;
        let took = begun.elapsed();
        self.at = 1 - self.at;
        let told = to
            .order(&["domjobinfo", self.name, "--completed", "--rawstats"])
            .await?;
        domain::taken(&told, took)
    }
}
