//! A VirtualMachine is deleted, and its guest is stopped wherever it runs.

use anyhow::ensure;
use godwit_crds::GuestRecord;
use godwit_crds::migration::MigrationPhase;
use godwit_lab::Lab;
use godwit_lab::guest::{Guest, machines, migrations, until};
use kube::Api;

use crate::setting::{CRAWLS, SOON, ask, clear, ended, linux, reaches, remove, restless, start};
use crate::traces;

async fn all_is_gone(lab: &Lab, guest: &Guest) -> anyhow::Result<()> {
    for host in &lab.hosts {
        traces::nothing_is_left(host, &guest.uid).await?;
        ensure!(host.hypervisors().is_empty(), "{} has a hypervisor", host.name);
    }
    let records: Api<GuestRecord> = Api::all(lab.client());
    until(&records, &guest.uid, SOON, "the record is gone", |record| {
        record.is_none()
    })
    .await?;
    Ok(())
}

pub async fn a_machine_is_deleted(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    let guest = start(lab, linux("leaver", "128Mi", "")).await?;
    remove(&machines(lab), "leaver").await?;
    all_is_gone(lab, &guest).await?;
    // The name can be given to another guest.
    let again = start(lab, linux("leaver", "128Mi", "")).await?;
    ensure!(again.uid != guest.uid, "a new guest");
    remove(&machines(lab), "leaver").await?;
    all_is_gone(lab, &again).await
}

pub async fn a_machine_deleted_during_its_migration(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    let guest = start(lab, restless("fated")).await?;
    if lab.network.separate() {
        lab.network.shape(1, Some(CRAWLS))?;
    }
    ask(lab, &guest, "fated-1", &lab.hosts[1]).await?;
    reaches(lab, "fated-1", MigrationPhase::Perform).await?;
    remove(&machines(lab), "fated").await?;
    all_is_gone(lab, &guest).await?;
    let migration = ended(lab, "fated-1").await?;
    let phase = migration.status.and_then(|status| status.phase);
    ensure!(
        phase.is_some_and(|phase| phase >= MigrationPhase::Succeeded),
        "the migration of a guest that is gone is in {phase:?}"
    );
    remove(&migrations(lab), "fated-1").await
}
