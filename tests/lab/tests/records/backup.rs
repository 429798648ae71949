//! A guest's record as an administrator saves it and puts it back: as the controller's account, for nobody else may write
//! it, and as a new object, for no other way leads back.

use anyhow::{Context as _, ensure};
use godwit_crds::condition::ConditionStatus;
use godwit_crds::{GuestRecord, GuestRecordSpec, VirtualMachine, VirtualMachineMigration};
use godwit_lab::Lab;
use godwit_lab::guest::{self, Guest, machines, migrations};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt as _};

use crate::setting::{MOVES_WITHIN, SOON};

async fn records(lab: &Lab) -> anyhow::Result<Api<GuestRecord>> {
    Ok(Api::all(lab.controller_client().await?))
}

/// Deletes a record, its finalizer first: a finalizer keeps it from being deleted by mistake.
pub async fn delete(lab: &Lab, guest: &Guest) -> anyhow::Result<()> {
    let records = records(lab).await?;
    let mut record = records.get(&guest.uid).await?;
    record.metadata.finalizers = None;
    records
        .replace(&guest.uid, &PostParams::default(), &record)
        .await?;
    records.delete(&guest.uid, &DeleteParams::default()).await?;
    guest::until(&records, &guest.uid, SOON, "the record is gone", |record| {
        record.is_none()
    })
    .await?;
    Ok(())
}

/// Creates a record as it was saved.
pub async fn put_back(lab: &Lab, saved: &GuestRecord) -> anyhow::Result<()> {
    let mut record = GuestRecord::new(&saved.name_any(), saved.spec.clone());
    record.metadata.finalizers = saved.metadata.finalizers.clone();
    records(lab)
        .await?
        .create(&PostParams::default(), &record)
        .await?;
    Ok(())
}

/// Puts another record in the place of the one that is there.
pub async fn replace(lab: &Lab, guest: &Guest, saved: &GuestRecord) -> anyhow::Result<()> {
    delete(lab, guest).await?;
    put_back(lab, saved).await
}

/// A record with another specification.
pub fn with(saved: &GuestRecord, change: impl FnOnce(&mut GuestRecordSpec)) -> GuestRecord {
    let mut changed = saved.clone();
    change(&mut changed.spec);
    changed
}

/// Waits until a guest's NeedsDecision says that, and gives its words.
pub async fn needs_decision(lab: &Lab, guest: &Guest, reason: &str) -> anyhow::Result<String> {
    let of = |machine: &VirtualMachine| {
        let conditions = machine.status.as_ref().map(|status| &status.conditions);
        let mut conditions = conditions.into_iter().flatten();
        let found =
            conditions.find(|condition| condition.type_ == "NeedsDecision" && condition.reason == reason);
        found.map(|condition| condition.message.clone())
    };
    let what = format!("NeedsDecision says {reason}");
    let machine = guest::until(&machines(lab), &guest.name, SOON, &what, |machine| {
        machine.and_then(of).is_some()
    })
    .await?;
    machine.as_ref().and_then(of).context("the condition is gone")
}

/// Waits until a migration says what it cannot go on without, whether it waits for that or has failed for it.
pub async fn migration_says(lab: &Lab, name: &str, reason: &str) -> anyhow::Result<()> {
    let says = |migration: Option<&VirtualMachineMigration>| {
        let status = migration.and_then(|migration| migration.status.as_ref());
        let mut conditions = status.into_iter().flat_map(|status| &status.conditions);
        conditions.any(|condition| condition.status == ConditionStatus::True && condition.reason == reason)
    };
    let what = format!("it says {reason}");
    guest::until(&migrations(lab), name, MOVES_WITHIN, &what, says).await?;
    Ok(())
}

/// The guest ticks on at that host, and no other host has a process of it.
pub fn runs_once_at(lab: &Lab, guest: &Guest, number: usize) -> anyhow::Result<()> {
    guest.wait_for_ticks(100, SOON)?;
    guest.wait_for_ticks_at(&format!("h{number}"), SOON)?;
    for (host, index) in lab.hosts.iter().zip(1..) {
        let found = host.hypervisors();
        ensure!(
            found.len() == usize::from(index == number),
            "{}: {found:?}",
            host.name
        );
    }
    let verdict = guest.observer.verdict();
    ensure!(verdict.counter_continuous(), "{verdict:?}");
    Ok(())
}
