//! `handoff: Strict`: the record says that the destination may start the guest, and that it does, before it does.

use std::time::Duration;

use anyhow::ensure;
use godwit_crds::Decision;
use godwit_lab::Lab;
use godwit_lab::guest::{self, migrations};
use kube::api::PostParams;
use serde_json::json;

use crate::setting::{clear, linux, lives_on, start, succeeds};

const CHECKED_WITHIN: Duration = Duration::from_secs(90);

pub async fn a_strict_handoff_is_recorded_before_the_start(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    let guest = start(lab, linux("strict", "128Mi", "godwit.dirty=2M")).await?;
    for (flow, to, epoch) in [("ManagedDirect", 2, 2), ("PeerToPeer", 1, 3)] {
        let name = format!("strict-{epoch}");
        let migration = serde_json::from_value(json!({
            "apiVersion": "godwit.dev/v1alpha1",
            "kind": "VirtualMachineMigration",
            "metadata": {"name": name, "namespace": guest::NAMESPACE},
            "spec": {
                "virtualMachine": guest.name,
                "destination": {"host": lab.hosts[to - 1].name},
                "controlFlow": flow,
                "handoff": "Strict",
            },
        }))?;
        migrations(lab).create(&PostParams::default(), &migration).await?;
        succeeds(lab, &name).await?;
        lives_on(lab, &guest, to, epoch).await?;
        let record = guest.record(lab.client()).await?.spec;
        let strict = record.migration.as_ref().is_some_and(|armed| armed.strict);
        ensure!(
            strict && record.started && record.decision == Decision::Committed,
            "{record:?}"
        );
    }
    guest.check_memory(&lab.hosts[0], CHECKED_WITHIN)?;
    let verdict = guest.observer.verdict();
    ensure!(
        verdict.memory_intact() && verdict.counter_continuous() && verdict.moves.len() == 2,
        "{verdict:?}"
    );
    Ok(())
}
