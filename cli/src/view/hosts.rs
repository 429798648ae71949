//! The list of hosts.

use godwit_crds::condition::find_condition;
use godwit_crds::host::HostResources;
use godwit_crds::{ConditionStatus, VirtualMachineHost};
use jiff::Timestamp;
use kube::ResourceExt as _;

use super::table::table;
use crate::units;

/// The table, sorted by name. `wide` adds how the host is reached and what it runs.
pub fn hosts(hosts: &[VirtualMachineHost], wide: bool, now: Timestamp) -> String {
    let mut sorted: Vec<&VirtualMachineHost> = hosts.iter().collect();
    sorted.sort_by_key(|h| h.name_any());
    let mut header = vec!["NAME", "READY", "GUESTS", "FREE CPUS", "FREE MEMORY", "AGE"];
    if wide {
        header.extend([
            "ENDPOINT",
            "MIGRATION ADDRESSES",
            "HYPERVISOR",
            "ACCELERATOR",
            "AGENT",
        ]);
    }
    let rows: Vec<Vec<String>> = sorted.into_iter().map(|h| row(h, wide, now)).collect();
    table(&header, &rows)
}

fn row(host: &VirtualMachineHost, wide: bool, now: Timestamp) -> Vec<String> {
    let status = host.status.clone().unwrap_or_default();
    let (available, capacity) = (status.available.as_ref(), status.capacity.as_ref());
    let mut row = vec![
        host.name_any(),
        ready(host),
        host.status
            .as_ref()
            .map(|s| s.guest_count.to_string())
            .unwrap_or_default(),
        of(available, capacity, |r| r.cpus.to_string()),
        of(available, capacity, |r| {
            units::memory(&r.memory).unwrap_or_else(|| r.memory.clone())
        }),
        host.creation_timestamp()
            .map(|t| units::age(t.0, now))
            .unwrap_or_default(),
    ];
    if wide {
        let hypervisors = |part: fn(&godwit_crds::host::HypervisorStatus) -> String| {
            status.hypervisors.iter().map(part).collect::<Vec<_>>().join(", ")
        };
        row.push(host.spec.endpoint.clone());
        row.push(host.spec.migration_addresses.join(", "));
        row.push(hypervisors(|h| format!("{} {}", h.name, h.version)));
        row.push(hypervisors(|h| h.accelerator.clone()));
        row.push(status.agent_version.clone().unwrap_or_default());
    }
    row
}

/// `yes`, or `no` or `unknown` with the reason.
fn ready(host: &VirtualMachineHost) -> String {
    let conditions = host
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    match find_condition(conditions, "Ready") {
        None => "unknown".into(),
        Some(c) => match c.status {
            ConditionStatus::True => "yes".into(),
            ConditionStatus::False => format!("no ({})", c.reason),
            ConditionStatus::Unknown => format!("unknown ({})", c.reason),
        },
    }
}

/// `available of capacity`, as far as known.
fn of(
    available: Option<&HostResources>,
    capacity: Option<&HostResources>,
    show: impl Fn(&HostResources) -> String,
) -> String {
    match (available.map(&show), capacity.map(&show)) {
        (Some(free), Some(all)) => format!("{free} of {all}"),
        (None, Some(all)) => format!("? of {all}"),
        (Some(free), None) => free,
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, status: serde_json::Value) -> VirtualMachineHost {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "godwit.dev/v1alpha1",
            "kind": "VirtualMachineHost",
            "metadata": {"name": name, "creationTimestamp": "2026-11-22T17:00:00Z"},
            "spec": {"endpoint": "10.9.0.1:16514", "migrationAddresses": ["10.9.0.1", "fd00::1"]},
            "status": status
        }))
        .unwrap()
    }

    fn fleet() -> Vec<VirtualMachineHost> {
        vec![
            host("node-b", serde_json::Value::Null),
            host(
                "node-a",
                serde_json::json!({
                    "agentVersion": "0.1.0", "guestCount": 2,
                    "capacity": {"cpus": 8, "memory": "16384Mi"},
                    "available": {"cpus": 5, "memory": "12288Mi"},
                    "hypervisors": [{"name": "qemu", "version": "10.0.2", "accelerator": "tcg"}],
                    "conditions": [{"type": "Ready", "status": "Unknown", "reason": "LeaseExpired", "message": "",
                        "lastTransitionTime": "2026-11-22T19:00:00Z", "observedGeneration": 1}]
                }),
            ),
        ]
    }

    #[test]
    fn usual_columns() {
        let now = "2026-11-22T19:10:00Z".parse().unwrap();
        assert_eq!(
            hosts(&fleet(), false, now),
            "\
NAME     READY                    GUESTS   FREE CPUS   FREE MEMORY        AGE
node-a   unknown (LeaseExpired)   2        5 of 8      12 GiB of 16 GiB   2h
node-b   unknown                  -        -           -                  2h
"
        );
    }

    #[test]
    fn wide() {
        let now = "2026-11-22T19:10:00Z".parse().unwrap();
        assert_eq!(
            hosts(&fleet()[1..], true, now),
            "\
NAME     READY                    GUESTS   FREE CPUS   FREE MEMORY        AGE   ENDPOINT         MIGRATION ADDRESSES   HYPERVISOR    ACCELERATOR   AGENT
node-a   unknown (LeaseExpired)   2        5 of 8      12 GiB of 16 GiB   2h    10.9.0.1:16514   10.9.0.1, fd00::1     qemu 10.0.2   tcg           0.1.0
"
        );
    }
}
