//! What the agent asks of a hypervisor, in words of guests and migration streams.
//!
//! Nothing above this module knows which hypervisor it talks to. A driver states as data ([`Gates`]) what it can
//! hold back, and the handover picks its rules from that. A driver never decides: it carries out one request, or
//! says why it could not, and reports what happened by itself as [`GuestEvent`]s.

pub mod qemu;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use godwit_crds::VirtualMachineSpec;
use godwit_handover::Gates;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

/// A hypervisor installed on this host.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// What it is and what works here. Asked once at the agent's start, and again when the host's condition is
    /// to be renewed.
    async fn probe(&self) -> Result<HypervisorFacts, HypervisorError>;

    /// Starts a guest's process, its virtual CPUs stopped. The process outlives the agent. When this fails, no
    /// process is left.
    async fn launch(&self, launch: Launch) -> Result<Arc<dyn Guest>, HypervisorError>;

    /// Finds a guest's process again after a restart of the agent. It is taken for the guest only if it is the
    /// very process that was recorded (start time and boot id, not only the pid) and it says itself that it is
    /// that guest.
    async fn adopt(
        &self,
        uid: &str,
        directory: &Path,
        process: &ProcessRecord,
    ) -> Result<Adoption, HypervisorError>;
}

/// What became of a recorded process.
pub enum Adoption {
    /// It lives and is the guest.
    Alive(Arc<dyn Guest>),
    /// It is proved to be gone: no such process, another process under its pid, or another boot of the host.
    Gone,
    /// A process with that pid and start time lives but does not answer as the guest within the deadline. Not a
    /// proof of anything.
    Unresponsive(String),
}

/// What a hypervisor is and can do on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HypervisorFacts {
    /// Its name, for example `qemu`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What runs the guests' instructions (`kvm`, `tcg`), seen to work.
    pub accelerator: String,
    /// Versioned machine types.
    pub machine_types: Vec<String>,
    /// CPU models that it can give a guest here.
    pub cpu_models: Vec<String>,
    /// What it can hold back during a migration.
    pub gates: Gates,
    /// What it can make of a stream.
    pub streams: StreamAbilities,
    /// What keeps guests here from being walled off as they should be, for people; empty where nothing does.
    pub walls_missing: Vec<String>,
}

/// Everything that a driver needs to start a guest. Paths have been resolved and files opened by the caller,
/// beneath the host's pools.
pub struct Launch {
    /// The VirtualMachine's UID.
    pub uid: String,
    /// A name for people, used in process titles and nowhere else.
    pub name: String,
    /// The definition, validated.
    pub definition: VirtualMachineSpec,
    /// The definition's files, opened.
    pub files: GuestFiles,
    /// Tap devices, one for each interface of the definition, in its order; already on their bridges and owned
    /// by `user`.
    pub taps: Vec<String>,
    /// The guest's own directory on this host: sockets, logs. Exists, empty of sockets, and belongs to `user`. In its
    /// sandbox the process finds it under the same path, and no other directory but the system's.
    pub directory: PathBuf,
    /// The unprivileged user and group id to run as; `None` where the agent itself is not root.
    pub user: Option<u32>,
    /// Whether the guest boots, or waits for a migration stream.
    pub start: Start,
}

/// How a guest's process begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Ready to boot at the first `resume`.
    Boot,
    /// Waiting for [`Guest::receive`].
    Incoming,
}

/// The files of a definition, opened by the agent.
#[derive(Default)]
pub struct GuestFiles {
    /// The kernel for direct boot.
    pub kernel: Option<OwnedFd>,
    /// Its initial RAM file system.
    pub initramfs: Option<OwnedFd>,
    /// One entry for each disk of the definition, in its order.
    pub disks: Vec<DiskFile>,
}

/// An opened disk.
pub struct DiskFile {
    /// Opened for reading and writing, or only for reading where the definition says so.
    pub file: OwnedFd,
    /// Whether it is a block device.
    pub block_device: bool,
}

/// What identifies a process beyond its pid. Kept in the guest's record on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot, from `/proc/PID/stat`.
    pub start_time: u64,
    /// The kernel's boot id.
    pub boot_id: String,
}

/// A guest's process.
#[async_trait]
pub trait Guest: Send + Sync {
    /// What identifies the process.
    fn process(&self) -> ProcessRecord;

    /// The guest's own directory on this host. It belongs to the user that the process runs as, who may have put
    /// anything there; the process finds it under the same path.
    fn directory(&self) -> &Path;

    /// Events from now on. A receiver that lags must ask [`Guest::run_state`] and [`Guest::stream`] afresh.
    fn subscribe(&self) -> broadcast::Receiver<GuestEvent>;

    /// Whether the process is proved to be gone now, by its pidfd, before any event tells it. A failure to find out
    /// counts as no.
    fn has_ended(&self) -> bool;

    /// What the guest does now.
    async fn run_state(&self) -> Result<RunState, HypervisorError>;

    /// Stops the virtual CPUs; answered once they stand still.
    async fn pause(&self) -> Result<(), HypervisorError>;

    /// Lets the virtual CPUs run.
    async fn resume(&self) -> Result<(), HypervisorError>;

    /// Ends the process and waits until it is gone. Idempotent. `deadline` bounds the polite part; after it the
    /// process is killed.
    async fn destroy(&self, deadline: Duration) -> Result<(), HypervisorError>;

    /// Why the guest cannot migrate, in the hypervisor's words; empty if it can.
    async fn migration_blockers(&self) -> Result<Vec<String>, HypervisorError>;

    /// Starts to send the guest. Returns when the stream has started.
    async fn send(&self, stream: Stream, limits: StreamLimits) -> Result<(), HypervisorError>;

    /// Starts to receive the guest, which stays stopped. With [`Way::Place`] it listens there when this returns; after
    /// a refusal the process is of no use any more.
    async fn receive(&self, stream: Stream) -> Result<(), HypervisorError>;

    /// How the stream stands.
    async fn stream(&self) -> Result<StreamStatus, HypervisorError>;

    /// Changes the limits of a running stream.
    async fn set_limits(&self, limits: StreamLimits) -> Result<(), HypervisorError>;

    /// Lets a stream that waits before the switchover go on.
    async fn switch_over(&self) -> Result<(), HypervisorError>;

    /// Ends an outgoing stream that has not completed, by force if it does not end within two seconds. The
    /// hypervisor may have let the guest run again when this returns: ask [`Guest::run_state`].
    /// The stream is then `Cancelled` or `Failed`; which of them says nothing.
    async fn cancel_stream(&self) -> Result<(), HypervisorError>;

    /// Gives the guest's disks up (`false`), so that another host may write to them, or takes them back. Needs
    /// stopped virtual CPUs.
    async fn set_disks_active(&self, active: bool) -> Result<(), HypervisorError>;

    /// Resident memory of the process in bytes, for the host's report.
    async fn resident_bytes(&self) -> Result<u64, HypervisorError>;
}

/// What a guest's virtual CPUs do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// They run.
    Running,
    /// Stopped, and can go on.
    Paused,
    /// Stopped by the hypervisor for the end of an outgoing migration (before or after its completion).
    StoppedForMigration,
    /// Waiting for, or receiving, an incoming migration.
    Incoming,
    /// The guest powered itself off.
    ShutDown,
    /// The guest's kernel panicked.
    Panicked,
    /// Stopped by an error of a disk.
    IoError,
    /// Stopped by an error inside the hypervisor, or in a state that this driver does not know.
    Broken,
}

/// Something that happened to a guest by itself or by a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestEvent {
    /// The host's clock (Unix time, microseconds), as the hypervisor stamped it.
    pub at_micros: i64,
    /// What happened.
    pub kind: GuestEventKind,
}

/// What happened to a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEventKind {
    /// The virtual CPUs stopped.
    Stopped,
    /// The virtual CPUs run.
    Resumed,
    /// The guest powered itself off.
    ShutDown,
    /// The guest reset itself.
    Reset,
    /// The guest's kernel panicked.
    Panicked,
    /// A disk reported an error that stops the guest.
    IoError {
        /// The disk's name in the definition.
        disk: String,
    },
    /// The stream changed its state.
    Stream(StreamState),
    /// The hypervisor has collected the guest's dirty memory for the nth time: now `remaining` is true.
    DirtyPagesCollected {
        /// How often so far.
        iteration: u64,
    },
    /// The process is gone: proved by its pidfd.
    Died,
}

/// A guest's stream, as one end of it sees it.
#[derive(Debug)]
pub struct Stream {
    /// By which way it travels.
    pub way: Way,
    /// With what the hypervisor encrypts it, and by what the two ends know each other; `None`: it writes in plain text.
    pub key: Option<StreamKey>,
}

impl Stream {
    /// One connection, on which the hypervisor itself writes in plain text.
    pub fn plain(socket: impl Into<OwnedFd>) -> Self {
        Self {
            way: Way::Socket(socket.into()),
            key: None,
        }
    }
}

/// By which way a guest's stream travels.
#[derive(Debug)]
pub enum Way {
    /// One connection that has been made: a stream socket.
    Socket(OwnedFd),
    /// Several, which the hypervisors make themselves: the destination's listens, the source's connects.
    Place {
        /// Where.
        place: Place,
        /// Over how many connections memory is spread, 2 or more. One more, made first, carries everything else.
        connections: u32,
    },
}

impl Way {
    /// Over how many connections memory is spread.
    pub fn connections(&self) -> u32 {
        match self {
            Self::Socket(_) => 1,
            Self::Place { connections, .. } => *connections,
        }
    }
}

/// Where a hypervisor listens, or connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A UNIX socket, under the path that it has in the hypervisor's sandbox.
    Unix(PathBuf),
    /// A TCP port. The hypervisor must have been launched with a network in which it is.
    Tcp(SocketAddr),
}

/// A key that both ends of one stream have, and nobody else. It never shows in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct StreamKey([u8; 32]);

impl StreamKey {
    /// The key with these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for StreamKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StreamKey(..)")
    }
}

/// What a hypervisor can make of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamAbilities {
    /// It encrypts a stream itself, with a [`StreamKey`].
    pub encrypts: bool,
    /// Over how many connections it can spread one's memory; 1: over no more than the one ([`Way::Socket`]).
    pub connections: u32,
    /// A stream that it encrypts itself and spreads over several connections may break off, and the guest that was to
    /// leave by it is unharmed.
    pub several_encrypted: bool,
}

/// Limits of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamLimits {
    /// Bytes per second; 0 is unlimited.
    pub bandwidth: u64,
    /// How long the hypervisor itself may stop the guest when it judges for itself that the rest is small enough.
    pub downtime: Duration,
}

/// How a stream stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamStatus {
    /// The state.
    pub state: StreamState,
    /// The hypervisor's own words about an error, bounded; may be there before the state says `Failed`.
    pub error: Option<String>,
    /// Figures; absent before the start.
    pub figures: Option<StreamFigures>,
}

/// The states of a stream that the handover tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamState {
    /// There is none.
    None,
    /// It is being set up.
    Setup,
    /// Memory travels; the guest may run.
    Active,
    /// The guest stands still and the hypervisor waits for [`Guest::switch_over`].
    BeforeSwitchover,
    /// The last part travels.
    SwitchingOver,
    /// It ended well. At the source this is the destination's acknowledgement too.
    Completed,
    /// It is being cancelled.
    Cancelling,
    /// It was cancelled.
    Cancelled,
    /// It failed.
    Failed,
}

/// Figures of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamFigures {
    /// Bytes of guest memory in all.
    pub total_bytes: u64,
    /// Bytes sent.
    pub transferred_bytes: u64,
    /// Bytes left, true only just after the dirty pages were collected.
    pub remaining_bytes: u64,
    /// Bytes per second that the guest dirties, by the hypervisor's estimate.
    pub dirty_bytes_per_second: u64,
    /// Bytes per second over the wire.
    pub bytes_per_second: u64,
    /// How often the dirty pages were collected.
    pub iteration: u64,
    /// The hypervisor's own time for the whole stream in milliseconds.
    pub total_millis: u64,
    /// The hypervisor's own figure for the downtime in milliseconds, once known.
    pub downtime_millis: Option<u64>,
}

/// Why a request to a hypervisor failed.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// The hypervisor's program is missing or does not run.
    #[error("The hypervisor does not work on this host: {0}")]
    Unavailable(String),
    /// The definition asks for what this hypervisor or host does not have.
    #[error("The hypervisor refuses the definition: {0}")]
    Refused(String),
    /// The process ended.
    #[error("The guest's process is gone")]
    Died,
    /// No answer within the deadline. Not a proof of anything.
    #[error("The hypervisor did not answer {command} within {deadline:?}")]
    Deadline {
        /// What was asked.
        command: String,
        /// How long was waited.
        deadline: Duration,
    },
    /// The hypervisor answered with an error.
    #[error("The hypervisor refused {command}: {message}")]
    Command {
        /// What was asked.
        command: String,
        /// Its words, bounded.
        message: String,
    },
    /// The hypervisor said something that this driver does not understand.
    #[error("The hypervisor broke its protocol: {0}")]
    Protocol(String),
    /// The operating system refused something.
    #[error("{action}: {source}")]
    System {
        /// What was tried.
        action: String,
        /// The system's error.
        source: std::io::Error,
    },
}
