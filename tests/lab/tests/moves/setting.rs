//! What a case begins with: hosts without guests, a guest that runs, a migration that was asked for.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use godwit_crds::condition::Condition;
use godwit_crds::migration::MigrationPhase;
use godwit_crds::{ConditionStatus, VirtualMachine, VirtualMachineMigration};
use godwit_lab::boot_sector::BootSector;
use godwit_lab::guest::{self, Guest, machines, migrations};
use godwit_lab::initramfs::KERNEL_OPTIONS;
use godwit_lab::{Host, Lab};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::traces;

/// For what is over in a second on a machine that has time.
pub const SOON: Duration = Duration::from_secs(60);

/// For a migration.
pub const MOVES_WITHIN: Duration = Duration::from_secs(150);

/// What guests leave between ticks.
pub const INTERVAL: Duration = Duration::from_millis(5);

/// Removes every guest and migration that an earlier case left, also one that failed, and lifts limits.
pub async fn clear(lab: &mut Lab) -> anyhow::Result<()> {
    lab.start_controller()?;
    lab.wait_until_ready().await?;
    if lab.network.separate() {
        for number in 1..=lab.hosts.len() {
            lab.network.shape(number, None)?;
        }
    }
    for migration in migrations(lab).list(&ListParams::default()).await? {
        remove(&migrations(lab), &migration.name_any()).await?;
    }
    for machine in machines(lab).list(&ListParams::default()).await? {
        remove(&machines(lab), &machine.name_any()).await?;
    }
    for host in &lab.hosts {
        ensure!(
            host.hypervisors().is_empty(),
            "{} has hypervisors and no guests",
            host.name
        );
    }
    Ok(())
}

/// Deletes an object and waits until it is gone.
pub async fn remove<K>(api: &kube::Api<K>, name: &str) -> anyhow::Result<()>
where
    K: kube::Resource
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned
        + Send
        + 'static,
{
    api.delete(name, &DeleteParams::default()).await?;
    guest::until(api, name, MOVES_WITHIN, "it is gone", |object| object.is_none()).await?;
    Ok(())
}

/// A Linux guest on h1, with these options of its own.
pub fn linux(name: &str, memory: &str, options: &str) -> Value {
    json!({
        "apiVersion": "godwit.dev/v1alpha1",
        "kind": "VirtualMachine",
        "metadata": {"name": name, "namespace": guest::NAMESPACE},
        "spec": {
            "host": "h1",
            "machine": {"type": "pc-q35-10.0"},
            "cpu": {"count": 1, "model": "qemu64"},
            "memory": memory,
            "boot": {"kernel": {
                "image": {"file": "vmlinuz"},
                "initramfs": {"file": "initramfs.cpio"},
                "commandLine": format!("{} {options}", KERNEL_OPTIONS.split_whitespace().collect::<Vec<_>>().join(" ")),
            }},
        },
    })
}

/// So slow, in Mbit/s, that a restless guest's memory alone takes half a minute: its migration does not come to its end
/// before the link is freed, also where the machine is so busy that the guest hardly changes any.
pub const CRAWLS: u32 = 30;

/// A guest that dirties its memory far faster than a link of [`CRAWLS`] carries it.
pub fn restless(name: &str) -> Value {
    linux(
        name,
        "256Mi",
        "godwit.fill=64M godwit.working_set=64M godwit.dirty=40M",
    )
}

/// A boot-sector guest on h1 with one disk, from which it boots. The disk's file is made anew.
pub fn counting(lab: &Lab, name: &str, disk: &Value) -> anyhow::Result<Value> {
    let file = format!("{name}.img");
    let path = lab.pool().join(&file);
    std::fs::write(&path, BootSector::default().image())?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
    let mut whole = json!({"name": "root", "file": {"file": file}});
    let fields = disk.as_object().context("a disk is an object")?;
    whole.as_object_mut().unwrap().extend(fields.clone());
    Ok(json!({
        "apiVersion": "godwit.dev/v1alpha1",
        "kind": "VirtualMachine",
        "metadata": {"name": name, "namespace": guest::NAMESPACE},
        "spec": {
            "host": "h1",
            "machine": {"type": "pc-q35-10.0"},
            "cpu": {"count": 1, "model": "qemu64"},
            "memory": "32Mi",
            "boot": {"firmware": {}},
            "disks": [whole],
        },
    }))
}

/// Starts a guest and waits until it ticks.
pub async fn start(lab: &Lab, manifest: Value) -> anyhow::Result<Guest> {
    let machine: VirtualMachine = serde_json::from_value(manifest)?;
    let guest = Guest::create(lab, &machine, INTERVAL).await?;
    guest.wait_until_it_ticks(lab).await?;
    Ok(guest)
}

/// Asks for a migration.
pub async fn ask(lab: &Lab, guest: &Guest, name: &str, to: &Host) -> anyhow::Result<VirtualMachineMigration> {
    ask_driven_by(lab, guest, name, to, "ManagedDirect").await
}

/// Asks for a migration of this control flow.
pub async fn ask_driven_by(
    lab: &Lab,
    guest: &Guest,
    name: &str,
    to: &Host,
    flow: &str,
) -> anyhow::Result<VirtualMachineMigration> {
    let migration = serde_json::from_value(json!({
        "apiVersion": "godwit.dev/v1alpha1",
        "kind": "VirtualMachineMigration",
        "metadata": {"name": name, "namespace": guest::NAMESPACE},
        "spec": {
            "virtualMachine": guest.name,
            "destination": {"host": to.name},
            "controlFlow": flow,
            "security": {"require": "None"},
        },
    }))?;
    Ok(migrations(lab).create(&PostParams::default(), &migration).await?)
}

/// Sets `spec.cancel`.
pub async fn cancel(lab: &Lab, name: &str) -> anyhow::Result<()> {
    let patch = json!({"spec": {"cancel": true}});
    migrations(lab)
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}

/// Waits until a migration has come to a phase, or past it.
pub async fn reaches(lab: &Lab, name: &str, phase: MigrationPhase) -> anyhow::Result<()> {
    let what = format!("it reaches {phase:?}");
    let reached = |migration: Option<&VirtualMachineMigration>| {
        let status = migration.and_then(|migration| migration.status.as_ref());
        status
            .and_then(|status| status.phase)
            .is_some_and(|now| now >= phase)
    };
    guest::until(&migrations(lab), name, MOVES_WITHIN, &what, reached).await?;
    Ok(())
}

/// Waits until a migration has ended, well or not.
pub async fn ended(lab: &Lab, name: &str) -> anyhow::Result<VirtualMachineMigration> {
    let over = |migration: Option<&VirtualMachineMigration>| {
        migration.is_none_or(|migration| is_true(migration, "Succeeded") || is_true(migration, "Failed"))
    };
    guest::until(&migrations(lab), name, MOVES_WITHIN, "it ends", over)
        .await?
        .with_context(|| format!("migration {name} is gone"))
}

/// Waits until a migration has succeeded.
pub async fn succeeds(lab: &Lab, name: &str) -> anyhow::Result<VirtualMachineMigration> {
    let migration = ended(lab, name).await?;
    if !is_true(&migration, "Succeeded") {
        let failure = migration.status.and_then(|status| status.failure);
        bail!("migration {name} failed: {failure:?}");
    }
    Ok(migration)
}

/// Moves a guest and waits for the end.
pub async fn moves(
    lab: &Lab,
    guest: &Guest,
    name: &str,
    to: &Host,
) -> anyhow::Result<VirtualMachineMigration> {
    ask(lab, guest, name, to).await?;
    succeeds(lab, name).await
}

/// A condition, if it is there.
pub fn condition<'a>(migration: &'a VirtualMachineMigration, type_: &str) -> Option<&'a Condition> {
    let status = migration.status.as_ref()?;
    status
        .conditions
        .iter()
        .find(|condition| condition.type_ == type_)
}

/// Whether a condition is True.
pub fn is_true(migration: &VirtualMachineMigration, type_: &str) -> bool {
    condition(migration, type_).is_some_and(|condition| condition.status == ConditionStatus::True)
}

/// The guest ticks on, is on that host in every object, and has left nothing on the other one.
pub async fn lives_on(lab: &Lab, guest: &Guest, number: usize, epoch: i64) -> anyhow::Result<()> {
    let host = &lab.hosts[number - 1];
    let last_seen = guest.observer.lines().len();
    guest.wait_for_ticks(20, SOON)?;
    guest.wait_for_ticks_at(&host.name, SOON)?;
    let lines = guest.observer.lines();
    // What it has said last where it was may be read late, but before anything that it says here.
    let mut new = lines[last_seen..]
        .iter()
        .skip_while(|seen| seen.host != host.name);
    ensure!(new.next().is_some(), "the guest does not tick on {}", host.name);
    let elsewhere = new.find(|seen| seen.host != host.name);
    ensure!(
        elsewhere.is_none(),
        "the guest ticks where it should not: {elsewhere:?}"
    );
    let verdict = guest.observer.verdict();
    ensure!(verdict.counter_continuous(), "{verdict:?}");
    let record = guest.record(lab.client()).await?.spec;
    ensure!(
        (record.holder.as_str(), record.epoch) == (host.name.as_str(), epoch),
        "{record:?}"
    );
    let mirrored = |machine: Option<&VirtualMachine>| {
        machine
            .and_then(|machine| machine.status.as_ref())
            .is_some_and(|status| {
                status.host.as_ref() == Some(&host.name)
                    && status.epoch == Some(epoch)
                    && status.migration.is_none()
                    && status.state == Some(godwit_crds::virtual_machine::GuestState::Running)
            })
    };
    guest::until(
        &machines(lab),
        &guest.name,
        SOON,
        "its status tells where the guest is",
        mirrored,
    )
    .await?;
    for other in lab.hosts.iter().filter(|other| other.name != host.name) {
        traces::nothing_is_left(other, &guest.uid).await?;
    }
    Ok(())
}
