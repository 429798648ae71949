//! `VirtualMachineMigration`: one attempt to move one guest.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::condition::Condition;
use crate::quantity::{BANDWIDTH_PATTERN, DURATION_PATTERN};

/// One attempt to move one guest. A retry is a new object. The spec is immutable, but for `cancel` and
/// `tuning.bandwidth`.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "godwit.dev",
    version = "v1alpha1",
    kind = "VirtualMachineMigration",
    plural = "virtualmachinemigrations",
    shortname = "vmmig",
    category = "godwit",
    namespaced,
    derive = "PartialEq",
    status = "VirtualMachineMigrationStatus",
    doc = "One attempt to move one running guest to another host without stopping it.",
    selectable = ".spec.virtualMachine",
    selectable = ".status.phase",
    printcolumn(name = "Guest", type_ = "string", json_path = ".spec.virtualMachine"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Source", type_ = "string", json_path = ".status.source"),
    printcolumn(name = "Destination", type_ = "string", json_path = ".spec.destination.host"),
    printcolumn(name = "Progress", type_ = "string", json_path = ".status.progress.percent"),
    printcolumn(
        name = "Downtime",
        type_ = "string",
        json_path = ".status.downtime.stopToResume"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Transferred",
        type_ = "string",
        json_path = ".status.progress.transferred",
        priority = 1
    ),
    printcolumn(
        name = "Speed",
        type_ = "string",
        json_path = ".status.progress.speed",
        priority = 1
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.failure.reason",
        priority = 1
    ),
    printcolumn(
        name = "Flow",
        type_ = "string",
        json_path = ".spec.controlFlow",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineMigrationSpec {
    /// The VirtualMachine to move, in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("virtualMachine is immutable; make a new migration"))]
    pub virtual_machine: String,
    /// Where to.
    #[x_kube(validation = Rule::new("self == oldSelf").message("destination is immutable; make a new migration"))]
    pub destination: Destination,
    /// Who drives the phases.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("controlFlow is immutable; make a new migration"))]
    pub control_flow: ControlFlow,
    /// How guest memory travels.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("transport is immutable; make a new migration"))]
    pub transport: Transport,
    /// What the data channel must offer.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("security is immutable; make a new migration"))]
    pub security: Security,
    /// Figures that steer the transfer.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self.maxDowntime == oldSelf.maxDowntime").message("tuning.maxDowntime is immutable; make a new migration"))]
    #[x_kube(validation = Rule::new("self.parallelConnections == oldSelf.parallelConnections").message("tuning.parallelConnections is immutable; make a new migration"))]
    pub tuning: Tuning,
    /// How the right to run the guest passes.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("handoff is immutable; make a new migration"))]
    pub handoff: Handoff,
    /// Set to true to stop the migration; the guest then goes on at the source and the record of the attempt
    /// stays. It has no effect once the handover has begun. It cannot be taken back.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self || !oldSelf").message("cancel cannot be taken back; make a new migration"))]
    pub cancel: bool,
}

/// Where a guest is moved to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// The VirtualMachineHost that is to run the guest.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub host: String,
}

/// Who drives the phases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum ControlFlow {
    /// The controller gives the source's agent one order; that agent talks to the destination's, and goes on without
    /// the controller.
    #[default]
    PeerToPeer,
    /// The controller talks to both agents, phase by phase.
    ManagedDirect,
}

/// How the right to run the guest passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Handoff {
    /// The source's word lets the destination run the guest; the API server is not asked while the guest stands still.
    #[default]
    Default,
    /// The destination also writes into the GuestRecord that it may run the guest, and that it does, before it does: two
    /// writes while the guest stands still. A source whose destination is not heard any more after its word can then
    /// still ask for the guest back.
    Strict,
}

/// How guest memory travels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Transport {
    /// Hypervisor to hypervisor.
    #[default]
    Native,
    /// Through the agents' TLS port, by a relay at each side. It is encrypted whatever is required.
    Tunnelled,
}

/// What the data channel must offer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Security {
    /// `Encrypted`: guest memory is encrypted on its way, and both ends prove who they are. `None`: it crosses the
    /// network in plain text, and only the word given on the control channel ties the data channel to this migration.
    #[serde(default)]
    pub require: SecurityRequirement,
}

/// What is required of the data channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum SecurityRequirement {
    /// Encryption, and proof of who is at the other end.
    #[default]
    Encrypted,
    /// Nothing: plain text is accepted.
    None,
}

/// Figures that steer the transfer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tuning {
    /// The longest stop that the guest may suffer at the switchover, by the estimate of what is left to send:
    /// whole milliseconds or seconds, for example `300ms`. The guest is not stopped before the estimate fits.
    #[serde(default = "default_max_downtime")]
    #[schemars(length(max = 10), regex(pattern = DURATION_PATTERN))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10ms') && duration(self) <= duration('60s')").message("maxDowntime lies between 10ms and 60s"))]
    pub max_downtime: String,
    /// The most that may travel in a second while the guest runs: whole KiB, MiB or GiB, for example `100Mi`; `0`
    /// for no limit. It may be changed while memory travels. Once the guest is stopped for the switchover, nothing is
    /// limited.
    #[serde(default = "default_bandwidth")]
    #[schemars(length(max = 10), regex(pattern = BANDWIDTH_PATTERN))]
    pub bandwidth: String,
    /// Over how many connections the guest's memory is spread: QEMU's multifd channels. From 2 on there are so many,
    /// and beside them the one connection on which everything else of the stream travels; 1 is one connection for
    /// all. Several pay where one connection, or one core at either end, does not fill the link. With
    /// `transport: Native` the hypervisors make them themselves, and get the migration network for it
    /// (`status.hypervisorNetwork`). A host that cannot serve it refuses the migration with `StreamNotServed`.
    #[serde(default = "default_parallel_connections")]
    #[schemars(range(min = 1, max = 16))]
    pub parallel_connections: i32,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            max_downtime: default_max_downtime(),
            bandwidth: default_bandwidth(),
            parallel_connections: default_parallel_connections(),
        }
    }
}

fn default_max_downtime() -> String {
    // What QEMU, libvirt and Nova's users are used to.
    "300ms".into()
}

fn default_bandwidth() -> String {
    // A limit that nobody asked for would only lengthen the migration.
    "0".into()
}

fn default_parallel_connections() -> i32 {
    // More cost memory and processors at both ends, and on a link that one connection fills they bring nothing.
    1
}

/// What happened to the migration so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(oldSelf.phase) || !(oldSelf.phase in ['Succeeded', 'Failed', 'Cancelled']) || (has(self.phase) && self.phase == oldSelf.phase)").message("a migration that has ended stays as it has ended"))]
pub struct VirtualMachineMigrationStatus {
    /// Where the migration stands, for people; scripts wait for the conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<MigrationPhase>,
    /// `Succeeded` and `Failed` say how it ended; `Accepted`, `Cancelled` and `NeedsDecision` say more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The source host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub source: Option<String>,
    /// The destination host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub destination: Option<String>,
    /// The UID of the VirtualMachine that this attempt moves: the name may be given to another one later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub virtual_machine_uid: Option<String>,
    /// The guest's epoch at the source. After a success the guest runs at the next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub epoch: Option<i64>,
    /// How far the transfer is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// When each phase began and ended, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["phase".into()]))]
    pub timeline: Vec<PhaseTimes>,
    /// How long the guest was stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime: Option<Downtime>,
    /// How the channel for guest memory is protected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<ChannelSecurity>,
    /// What of the network the guest's hypervisor processes have for this migration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hypervisor_network: Option<HypervisorNetwork>,
    /// Why it failed and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The generation that this status was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
}

/// Where a migration stands.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum MigrationPhase {
    /// Seen, not begun.
    Pending,
    /// The source checks the guest and protects it against changes.
    Begin,
    /// The destination makes itself ready to receive.
    Prepare,
    /// Memory travels.
    Perform,
    /// The destination takes over.
    Finish,
    /// The source lets go.
    Confirm,
    /// The guest runs at the destination and the source's process is gone.
    Succeeded,
    /// The migration ended otherwise; `failure` and the conditions say how.
    Failed,
    /// The migration was cancelled; the guest is at the source.
    Cancelled,
}

/// How far a transfer is. Byte counts are given as numbers for programs and as text for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// An estimate from 0 % to 100 %, for people.
    #[schemars(length(max = 8))]
    pub percent: String,
    /// Bytes of guest memory in all.
    #[schemars(range(min = 0))]
    pub total_bytes: i64,
    /// Bytes sent so far, repeated pages included.
    #[schemars(range(min = 0))]
    pub transferred_bytes: i64,
    /// Bytes still to be sent, as of the last look at the guest's dirty pages.
    #[schemars(range(min = 0))]
    pub remaining_bytes: i64,
    /// Bytes per second that the guest makes stale.
    #[schemars(range(min = 0))]
    pub dirty_bytes_per_second: i64,
    /// Bytes per second over the wire.
    #[schemars(range(min = 0))]
    pub bytes_per_second: i64,
    /// How often the guest's dirty pages have been collected.
    #[schemars(range(min = 0))]
    pub iteration: i64,
    /// Estimated seconds until the switchover; absent when no estimate can be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub estimated_seconds: Option<i64>,
    /// For how long the hypervisor has been sending by its own clock, in milliseconds; at the end, from the order to
    /// send until the destination had all of it. What the migration took beyond that is godwit's share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub hypervisor_millis: Option<i64>,
    /// `transferredBytes`, for people.
    #[schemars(length(max = 24))]
    pub transferred: String,
    /// `bytesPerSecond`, for people.
    #[schemars(length(max = 24))]
    pub speed: String,
}

/// When a phase began and ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PhaseTimes {
    /// The phase.
    pub phase: MigrationPhase,
    /// When it began (RFC 3339, microseconds).
    #[schemars(length(max = 40), extend("format" = "date-time"))]
    pub started_at: String,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40), extend("format" = "date-time"))]
    pub ended_at: Option<String>,
}

/// How long the guest was stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Downtime {
    /// From STOP at the source to RESUME at the destination, the difference of the hosts' clocks taken out.
    #[schemars(length(max = 24))]
    pub stop_to_resume: String,
    /// The same in microseconds.
    #[schemars(range(min = 0))]
    pub stop_to_resume_micros: i64,
    /// By how much the destination's clock was ahead of the source's, in microseconds, as measured.
    pub clock_offset_micros: i64,
    /// By how much that measure may be wrong, in microseconds.
    #[schemars(range(min = 0))]
    pub clock_uncertainty_micros: i64,
    /// What the hypervisor itself calls downtime, in milliseconds. It leaves out the time in which godwit has
    /// stopped the guest before the hypervisor would have, so it is not the guest's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub hypervisor_millis: Option<i64>,
    /// Whether the guest was stopped by godwit before the hypervisor's own switchover (sealed).
    pub sealed: bool,
}

/// How the channel for guest memory is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum ChannelSecurity {
    /// Not at all: the user asked for `security.require: None`.
    PlainText,
    /// It is encrypted, and both ends have proved who they are.
    Encrypted,
}

/// What of the network a guest's hypervisor processes have for a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum HypervisorNetwork {
    /// Nothing: they get sockets that the agents have made.
    Isolated,
    /// As long as the migration lasts, the way to each other at the hosts' migration addresses, and nothing else: the
    /// transport is native over several connections, which the hypervisors make themselves.
    MigrationPeer,
}

/// Why a migration failed and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// A stable word; the table is in docs/conditions.md.
    #[schemars(length(min = 1, max = 64))]
    pub reason: String,
    /// What happened and what to do.
    #[schemars(length(max = 2048))]
    pub message: String,
    /// The phase in which it happened.
    pub phase: MigrationPhase,
}
