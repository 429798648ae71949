//! Guests and migrations through the API server, as each measurement needs them.

use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures::TryStreamExt as _;
use godwit_crds::{ConditionStatus, VirtualMachine, VirtualMachineMigration, VirtualMachineMigrationStatus};
use godwit_lab::guest::{self, Guest, NAMESPACE};
use godwit_lab::initramfs::KERNEL_OPTIONS;
use godwit_lab::{Host, Lab};
use kube::api::{DeleteParams, PostParams};
use kube::runtime::watcher::{self, Event};
use serde_json::json;

use crate::by_hand::Taken;

/// A migration that takes longer hangs.
const MOVES_WITHIN: Duration = Duration::from_secs(90);

/// The guests' machine type.
pub const MACHINE: &str = "pc-q35-10.0";

/// The guests' processor.
pub const CPU: &str = "qemu64";

/// A guest's size and what it does.
#[derive(Clone, Copy)]
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// Its memory, as in its definition.
    pub memory: &'static str,
    /// What it leaves between ticks.
    pub interval: Duration,
    /// The guest's program's other options.
    pub options: &'static str,
}

/// How a guest's memory is to travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From hypervisor to hypervisor, in plain text.
    Plain,
    /// From hypervisor to hypervisor, encrypted by QEMU.
    QemuTls,
    /// Through the agents' relays, which encrypt.
    Tunnelled,
}

impl Way {
    fn transport(self) -> &'static str {
        match self {
            Self::Plain | Self::QemuTls => "Native",
            Self::Tunnelled => "Tunnelled",
        }
    }

    fn security(self) -> &'static str {
        match self {
            Self::Plain => "None",
            Self::QemuTls | Self::Tunnelled => "Encrypted",
        }
    }
}

/// What a guest's kernel is told.
pub fn command_line(kind: &Kind) -> String {
    format!(
        "{} {} godwit.interval={}",
        KERNEL_OPTIONS.split_whitespace().collect::<Vec<_>>().join(" "),
        kind.options,
        kind.interval.as_millis()
    )
}

/// Starts a guest on h1 and waits until it ticks.
///
/// # Errors
/// When it does not.
pub async fn start(lab: &Lab, kind: Kind) -> anyhow::Result<Guest> {
    let machine: VirtualMachine = serde_json::from_value(json!({
        "apiVersion": "godwit.dev/v1alpha1",
        "kind": "VirtualMachine",
        "metadata": {"name": kind.name, "namespace": NAMESPACE},
        "spec": {
            "host": "h1",
            "machine": {"type": MACHINE},
            "cpu": {"count": 1, "model": CPU},
            "memory": kind.memory,
            "boot": {"kernel": {
                "image": {"file": godwit_lab::lab::KERNEL},
                "initramfs": {"file": godwit_lab::lab::INITRAMFS},
                "commandLine": command_line(&kind),
            }},
        },
    }))?;
    let guest = Guest::create(lab, &machine, kind.interval).await?;
    guest.wait_until_it_ticks(lab).await?;
    Ok(guest)
}

/// Deletes a guest and waits until it is gone.
///
/// # Errors
/// When it does not go.
pub async fn remove(lab: &Lab, guest: &Guest) -> anyhow::Result<()> {
    let machines = guest::machines(lab);
    machines.delete(&guest.name, &DeleteParams::default()).await?;
    guest::until(&machines, &guest.name, MOVES_WITHIN, "it is gone", |object| {
        object.is_none()
    })
    .await?;
    Ok(())
}

/// A migration that has succeeded.
pub struct Moved {
    /// From the API server's answer to the create until a watcher saw that it had succeeded.
    pub took: Duration,
    /// Its status then.
    pub status: VirtualMachineMigrationStatus,
}

impl Moved {
    /// What QEMU counted.
    ///
    /// # Errors
    /// When the status does not tell.
    pub fn taken(&self) -> anyhow::Result<Taken> {
        Ok(Taken {
            bytes: self.bytes()?,
            millis: self.hypervisor_millis()?,
            stop_to_resume: self.stop_to_resume()?,
            took: self.took,
        })
    }

    /// QEMU's own time for it, in milliseconds.
    ///
    /// # Errors
    /// When the status does not tell.
    pub fn hypervisor_millis(&self) -> anyhow::Result<u64> {
        let progress = self.status.progress.as_ref();
        let millis = progress.and_then(|progress| progress.hypervisor_millis);
        u64::try_from(millis.context("the status does not tell QEMU's time")?).context("a time below zero")
    }

    /// Bytes sent.
    ///
    /// # Errors
    /// When the status does not tell.
    pub fn bytes(&self) -> anyhow::Result<u64> {
        let progress = self
            .status
            .progress
            .as_ref()
            .context("the status has no progress")?;
        u64::try_from(progress.transferred_bytes).context("less than no bytes")
    }

    /// From STOP at the source to RESUME at the destination, in microseconds.
    ///
    /// # Errors
    /// When the status does not tell.
    pub fn stop_to_resume(&self) -> anyhow::Result<i64> {
        let downtime = self
            .status
            .downtime
            .as_ref()
            .context("the status has no downtime")?;
        Ok(downtime.stop_to_resume_micros)
    }
}

/// Moves a guest to a host: a watcher is there first, then the migration is created.
///
/// # Errors
/// When it does not succeed.
pub async fn move_to(lab: &Lab, guest: &Guest, name: &str, to: &Host, way: Way) -> anyhow::Result<Moved> {
    move_over(lab, guest, name, to, way, 1).await
}

/// The same, over so many connections.
///
/// # Errors
/// When it does not succeed.
pub async fn move_over(
    lab: &Lab,
    guest: &Guest,
    name: &str,
    to: &Host,
    way: Way,
    connections: u32,
) -> anyhow::Result<Moved> {
    let api = guest::migrations(lab);
    let migration = migration(guest, name, &to.name, way, connections)?;
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = pin!(watcher::watcher(api.clone(), config));
    let ended = "the API server has ended the watch";
    while !matches!(events.try_next().await?.context(ended)?, Event::InitDone) {}
    api.create(&PostParams::default(), &migration).await?;
    let begun = Instant::now();
    let follow = async {
        loop {
            let (Event::Apply(object) | Event::InitApply(object)) =
                events.try_next().await?.context(ended)?
            else {
                continue;
            };
            let Some(status) = object.status else { continue };
            if is_true(&status, "Succeeded") {
                return Ok(Moved {
                    took: begun.elapsed(),
                    status,
                });
            }
            if is_true(&status, "Failed") || is_true(&status, "NeedsDecision") {
                bail!(
                    "migration {name} did not succeed: {:?} {:?}",
                    status.conditions,
                    status.failure
                );
            }
        }
    };
    tokio::time::timeout(MOVES_WITHIN, follow)
        .await
        .with_context(|| format!("migration {name} has not ended within {MOVES_WITHIN:?}"))?
}

/// A migration as a user writes it.
///
/// # Errors
/// When the types do not take it.
pub fn migration(
    guest: &Guest,
    name: &str,
    to: &str,
    way: Way,
    connections: u32,
) -> anyhow::Result<VirtualMachineMigration> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "godwit.dev/v1alpha1",
        "kind": "VirtualMachineMigration",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "virtualMachine": guest.name,
            "destination": {"host": to},
            "controlFlow": "ManagedDirect",
            "transport": way.transport(),
            "security": {"require": way.security()},
            "tuning": {"parallelConnections": connections},
        },
    }))?)
}

fn is_true(status: &VirtualMachineMigrationStatus, type_: &str) -> bool {
    let mut conditions = status.conditions.iter();
    conditions.any(|condition| condition.type_ == type_ && condition.status == ConditionStatus::True)
}
