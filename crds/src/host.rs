//! `VirtualMachineHost`: a machine with an agent on it.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::condition::Condition;
use crate::virtual_machine::GuestState;

/// A machine that runs guests: how its agent and its hypervisors are reached.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "godwit.dev",
    version = "v1alpha1",
    kind = "VirtualMachineHost",
    plural = "virtualmachinehosts",
    shortname = "vmhost",
    category = "godwit",
    derive = "PartialEq",
    status = "VirtualMachineHostStatus",
    doc = "A machine that runs guests. Each agent publishes its own.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(name = "Guests", type_ = "integer", json_path = ".status.guestCount"),
    printcolumn(name = "CPUs", type_ = "integer", json_path = ".status.capacity.cpus"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".status.capacity.memory"),
    printcolumn(
        name = "Endpoint",
        type_ = "string",
        json_path = ".spec.endpoint",
        priority = 1
    ),
    printcolumn(
        name = "Hypervisor",
        type_ = "string",
        json_path = ".status.hypervisors[0].version",
        priority = 1
    ),
    printcolumn(
        name = "Accelerator",
        type_ = "string",
        json_path = ".status.hypervisors[0].accelerator",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineHostSpec {
    /// Where the host's agent listens: `address:port`, an IPv6 address in brackets.
    #[schemars(length(min = 3, max = 262))]
    pub endpoint: String,
    /// The addresses at which this host takes guest memory, the preferred one first.
    #[schemars(length(min = 1, max = 8), inner(length(min = 2, max = 45)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub migration_addresses: Vec<String>,
}

/// What the host's agent last said about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineHostStatus {
    /// The agent's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub agent_version: Option<String>,
    /// The kernel's boot id: a new one means that every guest of the last boot is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub boot_id: Option<String>,
    /// The hypervisors that work on this host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub hypervisors: Vec<HypervisorStatus>,
    /// What the host has for guests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<HostResources>,
    /// What its guests do not use yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available: Option<HostResources>,
    /// The directories in which guests' files lie.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub pools: Vec<Pool>,
    /// How many guests the host has.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub guest_count: i64,
    /// The guests on this host, as the agent sees them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["uid".into()]))]
    pub guests: Vec<HostGuest>,
    /// The generation that this status was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// What is known about the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// A hypervisor that the agent drives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HypervisorStatus {
    /// Its name, for example `qemu`.
    #[schemars(length(min = 1, max = 32))]
    pub name: String,
    /// Its version.
    #[schemars(length(min = 1, max = 64))]
    pub version: String,
    /// What runs the guests' instructions: `kvm` or `tcg` for QEMU. It was seen to work, not only to exist.
    #[schemars(length(min = 1, max = 32))]
    pub accelerator: String,
    /// The machine types that it knows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 64)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub machine_types: Vec<String>,
    /// The CPU models that it can give a guest here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512), inner(length(max = 64)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub cpu_models: Vec<String>,
}

/// Processors and memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostResources {
    /// Processors.
    #[schemars(range(min = 0))]
    pub cpus: i64,
    /// Memory, in whole MiB, for example `16384Mi`.
    #[schemars(length(max = 24), regex(pattern = r"^[0-9]{1,18}Mi$"))]
    pub memory: String,
}

/// A directory in which guests' files lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// The pool's name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// An id that is kept in the pool itself: two hosts that show the same one share it.
    #[schemars(length(min = 1, max = 63))]
    pub id: String,
}

/// A guest, as its host's agent sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostGuest {
    /// The VirtualMachine's UID.
    #[schemars(length(min = 1, max = 63))]
    pub uid: String,
    /// Its namespace.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// What it does.
    pub state: GuestState,
    /// The epoch under which this host holds it.
    #[schemars(range(min = 0))]
    pub epoch: i64,
    /// Since when it has run here (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40), extend("format" = "date-time"))]
    pub since: Option<String>,
}
