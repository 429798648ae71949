//! The list of guests.

use godwit_crds::condition::find_condition;
use godwit_crds::{ConditionStatus, VirtualMachine};
use jiff::Timestamp;
use kube::ResourceExt as _;

use super::table::table;
use crate::units;

/// What the table shows beside the usual columns.
#[derive(Clone, Copy, Debug, Default)]
pub struct Columns {
    /// The namespace, first.
    pub namespace: bool,
    /// CPU model, machine type, epoch and the reason of Ready.
    pub wide: bool,
}

/// The table, sorted by namespace and name, or a sentence when there is nothing to list.
pub fn guests(machines: &[VirtualMachine], columns: Columns, now: Timestamp) -> String {
    let mut sorted: Vec<&VirtualMachine> = machines.iter().collect();
    sorted.sort_by_key(|m| (m.namespace(), m.name_any()));
    let mut header = vec!["NAME", "STATE", "HOST", "CPUS", "MEMORY", "SINCE", "MIGRATION"];
    if columns.namespace {
        header.insert(0, "NAMESPACE");
    }
    if columns.wide {
        header.extend(["EPOCH", "CPU-MODEL", "MACHINE", "REASON"]);
    }
    let rows: Vec<Vec<String>> = sorted.into_iter().map(|m| row(m, columns, now)).collect();
    table(&header, &rows)
}

fn row(machine: &VirtualMachine, columns: Columns, now: Timestamp) -> Vec<String> {
    let spec = &machine.spec;
    let status = machine.status.clone().unwrap_or_default();
    let since = status.since.as_deref().and_then(|t| t.parse().ok());
    let mut row = vec![
        machine.name_any(),
        status.state.map(|s| format!("{s:?}")).unwrap_or_default(),
        status.host.clone().unwrap_or_default(),
        spec.cpu.count.to_string(),
        units::memory(&spec.memory).unwrap_or_else(|| spec.memory.clone()),
        since.map(|t| units::age(t, now)).unwrap_or_default(),
        status.migration.clone().unwrap_or_default(),
    ];
    if columns.namespace {
        row.insert(0, machine.namespace().unwrap_or_default());
    }
    if columns.wide {
        row.push(status.epoch.map(|e| e.to_string()).unwrap_or_default());
        row.push(spec.cpu.model.clone());
        row.push(spec.machine.type_.clone());
        row.push(reason(machine));
    }
    row
}

/// The word that says most about the guest: why it needs a decision, else why it has no host, else why it is
/// ready or not.
fn reason(machine: &VirtualMachine) -> String {
    let Some(status) = &machine.status else {
        return String::new();
    };
    let find = |type_| find_condition(&status.conditions, type_);
    let doubt = find("NeedsDecision").filter(|c| c.status == ConditionStatus::True);
    let unplaced = find("Scheduled").filter(|c| c.status == ConditionStatus::False);
    doubt
        .or(unplaced)
        .or_else(|| find("Ready"))
        .map(|c| c.reason.clone())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(namespace: &str, name: &str, status: serde_json::Value) -> VirtualMachine {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "godwit.dev/v1alpha1",
            "kind": "VirtualMachine",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "machine": {"type": "pc-q35-10.0"},
                "cpu": {"count": 2, "model": "qemu64"},
                "memory": "512Mi",
                "boot": {"firmware": {}}
            },
            "status": status
        }))
        .unwrap()
    }

    fn machines() -> Vec<VirtualMachine> {
        let condition = |type_: &str, status: &str, reason: &str| {
            serde_json::json!({"type": type_, "status": status, "reason": reason, "message": "",
                "lastTransitionTime": "2026-11-22T19:00:00Z", "observedGeneration": 1})
        };
        vec![
            machine(
                "default",
                "web2",
                serde_json::json!({"conditions": [
                    condition("Ready", "False", "Starting"),
                    condition("Scheduled", "False", "NoHostFits")
                ]}),
            ),
            machine(
                "default",
                "web1",
                serde_json::json!({
                    "state": "Running", "host": "node-a", "since": "2026-11-22T19:00:00Z", "epoch": 4,
                    "migration": "web1-x7k2p",
                    "conditions": [
                        condition("Ready", "True", "Running"),
                        condition("NeedsDecision", "False", "NotNeeded")
                    ]
                }),
            ),
        ]
    }

    #[test]
    fn usual_columns() {
        let now = "2026-11-22T19:10:00Z".parse().unwrap();
        assert_eq!(
            guests(&machines(), Columns::default(), now),
            "\
NAME   STATE     HOST     CPUS   MEMORY    SINCE   MIGRATION
web1   Running   node-a   2      512 MiB   10m     web1-x7k2p
web2   -         -        2      512 MiB   -       -
"
        );
    }

    #[test]
    fn every_column() {
        let now = "2026-11-22T19:10:00Z".parse().unwrap();
        assert_eq!(
            guests(&machines(), Columns { namespace: true, wide: true }, now),
            "\
NAMESPACE   NAME   STATE     HOST     CPUS   MEMORY    SINCE   MIGRATION    EPOCH   CPU-MODEL   MACHINE       REASON
default     web1   Running   node-a   2      512 MiB   10m     web1-x7k2p   4       qemu64      pc-q35-10.0   Running
default     web2   -         -        2      512 MiB   -       -            -       qemu64      pc-q35-10.0   NoHostFits
"
        );
    }
}
