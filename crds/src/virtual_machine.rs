//! `VirtualMachine`: a guest's definition, and where it runs.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::condition::Condition;
use crate::quantity::MEMORY_PATTERN;

/// A guest's definition. All but `host` is fixed once written: a running guest's hardware cannot change under it.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "godwit.dev",
    version = "v1alpha1",
    kind = "VirtualMachine",
    plural = "virtualmachines",
    shortname = "vm",
    category = "godwit",
    namespaced,
    derive = "PartialEq",
    status = "VirtualMachineStatus",
    doc = "A virtual machine: its definition (spec), and where and how it runs (status).",
    selectable = ".status.host",
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Host", type_ = "string", json_path = ".status.host"),
    printcolumn(name = "CPUs", type_ = "integer", json_path = ".spec.cpu.count"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".spec.memory"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".status.epoch", priority = 1),
    printcolumn(name = "Since", type_ = "date", json_path = ".status.since"),
    validation = Rule::new("self.metadata.name.size() <= 63").message("a VirtualMachine's name has at most 63 characters")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.host) == has(oldSelf.host) || !has(oldSelf.host)").message("host cannot be cleared; move the guest with a VirtualMachineMigration"),
    validation = Rule::new("!has(oldSelf.host) || !has(self.host) || self.host == oldSelf.host").message("host is where the guest is first started and cannot be changed; move the guest with a VirtualMachineMigration")
)]
pub struct VirtualMachineSpec {
    /// The VirtualMachineHost on which the guest is first started. Left out, the controller picks a ready host
    /// with room. Later moves are made by VirtualMachineMigration objects and do not change this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub host: Option<String>,
    /// Whether a host keeps the definition on disk when the guest does not run.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("persistence is immutable"))]
    pub persistence: Persistence,
    /// The machine type.
    #[x_kube(validation = Rule::new("self == oldSelf").message("machine is immutable: the running guest sees it"))]
    pub machine: Machine,
    /// The virtual CPUs.
    #[x_kube(validation = Rule::new("self == oldSelf").message("cpu is immutable: the running guest sees it"))]
    pub cpu: Cpu,
    /// The guest's memory, as a whole number of MiB or GiB, for example `512Mi` or `4Gi`.
    #[schemars(length(max = 12), regex(pattern = MEMORY_PATTERN))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("memory is immutable: the running guest sees it"))]
    pub memory: String,
    /// How the guest boots: from its disks by firmware, or straight into a kernel.
    #[x_kube(validation = Rule::new("self == oldSelf").message("boot is immutable"))]
    pub boot: Boot,
    /// The guest's disks, in the order in which the guest sees them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]), validation = Rule::new("self == oldSelf").message("disks are immutable"))]
    pub disks: Vec<Disk>,
    /// The guest's network interfaces, in the order in which the guest sees them. None means no network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]), validation = Rule::new("self == oldSelf").message("interfaces are immutable"))]
    pub interfaces: Vec<Interface>,
    /// Whether the guest has a serial port; its output is kept in the host's state directory and can be attached to.
    #[serde(default = "yes")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("serialConsole is immutable"))]
    pub serial_console: bool,
    /// Whether the guest has a virtio random source fed by its host.
    #[serde(default = "yes")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("randomSource is immutable"))]
    pub random_source: bool,
}

fn yes() -> bool {
    true
}

/// Whether a host keeps the definition when the guest does not run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Persistence {
    /// The host keeps the definition on disk.
    #[default]
    Persistent,
    /// The host forgets the definition when the guest ends.
    Transient,
}

/// The machine type, with its version: an alias such as `q35` would mean another machine on a newer hypervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// A versioned machine type, for example `pc-q35-10.0`.
    #[serde(rename = "type")]
    #[schemars(
        length(min = 1, max = 64),
        regex(pattern = r"^[a-z0-9]+(-[a-z0-9]+)*-[0-9]+\.[0-9]+$")
    )]
    pub type_: String,
}

/// The virtual CPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    /// How many virtual CPUs.
    // The API server knows no unsigned formats and warns of them.
    #[schemars(range(min = 1, max = 256), extend("format" = "int32"))]
    pub count: u32,
    /// A named CPU model of the hypervisor, for example `qemu64` or `Skylake-Server-v4`. Models that mean
    /// "whatever this host has" (`host`, `max`) are refused: the guest could not move.
    #[schemars(
        length(min = 1, max = 64),
        regex(pattern = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
    )]
    #[x_kube(validation = Rule::new("!(self in ['host', 'max', 'base'])").message("name a CPU model that is the same on every host: host, max and base are not"))]
    pub model: String,
}

/// How the guest boots. Exactly one of the two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.kernel) != has(self.firmware)").message("give exactly one of boot.kernel and boot.firmware"))]
pub struct Boot {
    /// Direct kernel boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelBoot>,
    /// Boot by the machine type's own firmware, from the disks in their order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<FirmwareBoot>,
}

/// Direct kernel boot. The files lie in a pool of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct KernelBoot {
    /// The kernel image.
    pub image: PoolFile,
    /// The initial RAM file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<PoolFile>,
    /// The kernel's command line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 2048), regex(pattern = r"^[ -~]*$"))]
    pub command_line: String,
}

/// Firmware boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct FirmwareBoot {
    /// Which firmware.
    #[serde(default)]
    pub kind: FirmwareKind,
}

/// Which firmware boots the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum FirmwareKind {
    /// The PC BIOS that comes with the hypervisor.
    #[default]
    Bios,
}

/// A file in one of the host's pools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolFile {
    /// The pool's name, as the host publishes it.
    #[serde(default = "default_pool")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub pool: String,
    /// The file's path below the pool, without `..` and without a leading slash.
    #[schemars(
        length(min = 1, max = 255),
        regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$")
    )]
    pub file: String,
}

fn default_pool() -> String {
    "default".into()
}

/// A disk of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.file) != has(self.blockDevice)").message("give exactly one of file and blockDevice"))]
pub struct Disk {
    /// The disk's name, unique in this guest.
    #[schemars(length(min = 1, max = 20), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// A file in a pool. To migrate, both hosts must share the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PoolFile>,
    /// A block device of the host, the same path on every host that may run the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 6, max = 255),
        regex(pattern = r"^/dev/[A-Za-z0-9_][A-Za-z0-9:._-]*(/[A-Za-z0-9_][A-Za-z0-9:._-]*)*$")
    )]
    pub block_device: Option<String>,
    /// The image's format.
    #[serde(default)]
    pub format: DiskFormat,
    /// How the host caches the disk.
    #[serde(default)]
    pub cache: DiskCache,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
}

/// The format of a disk's image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum DiskFormat {
    /// Plain bytes.
    #[default]
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

/// How the host caches a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum DiskCache {
    /// The host's page cache is passed by; the guest's flushes reach the medium. The safest for migration.
    #[default]
    None,
    /// Through the host's page cache; the guest's flushes reach the medium.
    Writeback,
    /// Through the host's page cache; each write reaches the medium before it is acknowledged.
    Writethrough,
    /// Past the host's page cache; each write reaches the medium before it is acknowledged.
    DirectSync,
}

/// A network interface of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// The interface's name, unique in this guest.
    #[schemars(length(min = 1, max = 20), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The bridge on the host to which the guest's tap device is added; the same name on every host.
    #[schemars(
        length(min = 1, max = 15),
        regex(pattern = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
    )]
    pub bridge: String,
    /// The interface's MAC address, a unicast one in lower case, for example `52:54:00:12:34:56`.
    #[schemars(
        length(min = 17, max = 17),
        regex(pattern = r"^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$")
    )]
    pub mac: String,
}

/// Where and how the guest runs. It mirrors the guest's record and its host's report, and decides nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineStatus {
    /// The host that holds the guest according to its GuestRecord.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub host: Option<String>,
    /// What the guest does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<GuestState>,
    /// Since when the guest has run on this host (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40), extend("format" = "date-time"))]
    pub since: Option<String>,
    /// The guest's epoch: it grows by one at each handover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub epoch: Option<i64>,
    /// The active migration of this guest, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub migration: Option<String>,
    /// The generation that this status was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// What is known about the guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// What a guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum GuestState {
    /// No host has been chosen, or the start order has not been answered yet.
    Starting,
    /// Its virtual CPUs run.
    Running,
    /// Its virtual CPUs are stopped and it can go on.
    Paused,
    /// It powered itself off or was stopped.
    ShutOff,
    /// It panicked, or its hypervisor process died.
    Crashed,
    /// It was being moved when its only valid image died.
    Lost,
    /// Its host does not answer: the last known state is no longer known to hold.
    Unknown,
}
