//! Records from an older backup, and of another holder.

use anyhow::ensure;
use godwit_crds::{Decision, GuestRecord, VirtualMachine};
use godwit_lab::Lab;
use godwit_lab::guest::{self, Guest, machines};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::backup::{needs_decision, replace, runs_once_at, with};
use crate::setting::{MOVES_WITHIN, ask, clear, counting, ended, is_true, lives_on, moves, start};

/// A guest that has moved to host 2, and its record from before that, as it was when it was armed, and now.
async fn moved(lab: &mut Lab, name: &str) -> anyhow::Result<(Guest, [GuestRecord; 3])> {
    clear(lab).await?;
    let guest = start(lab, counting(lab, name, &json!({}))?).await?;
    let before = guest.record(lab.client()).await?;
    moves(lab, &guest, &format!("{name}-1"), &lab.hosts[1]).await?;
    lives_on(lab, &guest, 2, 2).await?;
    let after = guest.record(lab.client()).await?;
    let armed = with(&after, |spec| {
        (spec.holder, spec.epoch, spec.decision) = ("h1".into(), 1, Decision::None);
    });
    Ok((guest, [before, armed, after]))
}

/// Has everybody look at the guest anew, as after a restored etcd.
async fn all_look_again(lab: &mut Lab) -> anyhow::Result<()> {
    lab.kill_controller();
    lab.restart_agent(1)?;
    lab.restart_agent(2)?;
    lab.wait_until_ready().await?;
    lab.start_controller()
}

/// No migration of it succeeds, and neither host gets a second copy.
async fn does_not_move(lab: &Lab, guest: &Guest, name: &str, at: usize) -> anyhow::Result<()> {
    ask(lab, guest, name, &lab.hosts[2 - at]).await?;
    let migration = ended(lab, name).await?;
    ensure!(!is_true(&migration, "Succeeded"), "{:?}", migration.status);
    runs_once_at(lab, guest, at)
}

/// Deleted, the guest is not stopped on the word of such a record, nor forgotten: once the record is right it goes.
async fn goes_once_it_is_right(
    lab: &Lab,
    guest: &Guest,
    at: usize,
    right: &GuestRecord,
) -> anyhow::Result<()> {
    machines(lab)
        .delete(&guest.name, &DeleteParams::default())
        .await?;
    runs_once_at(lab, guest, at)?;
    ensure!(
        machines(lab).get_opt(&guest.name).await?.is_some(),
        "it was forgotten"
    );
    replace(lab, guest, right).await?;
    let gone = |machine: Option<&VirtualMachine>| machine.is_none();
    guest::until(&machines(lab), &guest.name, MOVES_WITHIN, "it is gone", gone).await?;
    for host in &lab.hosts {
        ensure!(
            host.hypervisors().is_empty(),
            "a process is left on {}",
            host.name
        );
    }
    Ok(())
}

pub async fn a_record_from_before_a_move_is_put_back(lab: &mut Lab) -> anyhow::Result<()> {
    let (guest, [before, _, after]) = moved(lab, "outdated").await?;
    replace(lab, &guest, &before).await?;
    all_look_again(lab).await?;
    let words = needs_decision(lab, &guest, "RecordConflict").await?;
    ensure!(words.contains("h1"), "{words}");
    runs_once_at(lab, &guest, 2)?;
    goes_once_it_is_right(lab, &guest, 2, &after).await
}

/// Its VirtualMachine comes from there too, and says nothing of a start: the host that had it does not start it again.
pub async fn a_record_from_before_the_first_start_is_put_back(lab: &mut Lab) -> anyhow::Result<()> {
    let (guest, [before, _, after]) = moved(lab, "unborn").await?;
    lab.kill_controller();
    replace(lab, &guest, &before).await?;
    let empty = Patch::Merge(json!({"status": null}));
    machines(lab)
        .patch_status(&guest.name, &PatchParams::default(), &empty)
        .await?;
    // What host 2 has is not known either: only host 1's own journal can tell that it has handed the guest on.
    lab.host(2)?.kill_agent();
    let hosts: kube::Api<godwit_crds::VirtualMachineHost> = kube::Api::all(lab.client());
    let none = Patch::Merge(json!({"status": {"guests": []}}));
    hosts.patch_status("h2", &PatchParams::default(), &none).await?;
    lab.restart_agent(1)?;
    lab.start_controller()?;
    let stale = |machine: Option<&VirtualMachine>| {
        let status = machine.and_then(|machine| machine.status.as_ref());
        let mut conditions = status.into_iter().flat_map(|status| &status.conditions);
        conditions.any(|condition| condition.type_ == "Ready" && condition.reason == "StaleEpoch")
    };
    guest::until(
        &machines(lab),
        &guest.name,
        MOVES_WITHIN,
        "its host refuses",
        stale,
    )
    .await?;
    runs_once_at(lab, &guest, 2)?;
    lab.start_agent(2)?;
    lab.wait_until_ready().await?;
    needs_decision(lab, &guest, "RecordConflict").await?;
    runs_once_at(lab, &guest, 2)?;
    goes_once_it_is_right(lab, &guest, 2, &after).await
}

/// It is armed for a migration that has long succeeded: nobody ends it once more by guess.
pub async fn a_record_of_a_migration_that_is_over_is_put_back(lab: &mut Lab) -> anyhow::Result<()> {
    let (guest, [_, armed, after]) = moved(lab, "rerun").await?;
    for older in [
        armed.clone(),
        with(&armed, |spec| spec.decision = Decision::Committed),
    ] {
        replace(lab, &guest, &older).await?;
        all_look_again(lab).await?;
        needs_decision(lab, &guest, "RecordConflict").await?;
        runs_once_at(lab, &guest, 2)?;
        let name = format!("rerun-{:?}", older.spec.decision).to_lowercase();
        does_not_move(lab, &guest, &name, 2).await?;
        replace(lab, &guest, &after).await?;
        needs_decision(lab, &guest, "NotNeeded").await?;
    }
    moves(lab, &guest, "rerun-2", &lab.hosts[0]).await?;
    lives_on(lab, &guest, 1, 3).await
}

/// Somebody has written that another host holds the guest.
pub async fn a_record_that_names_another_holder(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    let guest = start(lab, counting(lab, "claimed", &json!({}))?).await?;
    let right = guest.record(lab.client()).await?;
    for epoch in [2, 1] {
        let wrong = with(&right, |spec| {
            (spec.holder, spec.epoch) = ("h2".into(), epoch);
        });
        replace(lab, &guest, &wrong).await?;
        all_look_again(lab).await?;
        let reason = if epoch == 1 {
            "RecordConflict"
        } else {
            "ProcessGone"
        };
        needs_decision(lab, &guest, reason).await?;
        runs_once_at(lab, &guest, 1)?;
        does_not_move(lab, &guest, &format!("claimed-{epoch}"), 1).await?;
    }
    goes_once_it_is_right(lab, &guest, 1, &right).await
}
