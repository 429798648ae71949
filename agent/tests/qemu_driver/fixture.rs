//! Guests for the tests: a boot sector that counts aloud, in directories that go away with the test.

use std::fs::{File, Permissions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use godwit_agent::hypervisor::qemu::{Accelerator, AcceleratorChoice, Qemu, QemuConfig};
use godwit_agent::hypervisor::{
    DiskFile, Guest, GuestEvent, GuestEventKind, GuestFiles, Hypervisor, HypervisorError, Launch, RunState,
    Start, Stream, StreamKey, StreamLimits, StreamState, Way,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::sync::broadcast;

/// Everything that should happen soon happens within this, also on a busy machine.
pub const SOON: Duration = Duration::from_secs(90);

/// As many guests' processes as tests run at once fit under this user.
const USER: u32 = 61_907;

/// Counts in memory at 0x500, writes bits 16 to 23 of the count to the serial port every 16384 turns, and obeys
/// letters from there: `o` powers off, `r` resets, `p` panics, `w` writes the count to the disk's second sector
/// (and says `W`, or `E` for an error).
const COUNTER: &[u8] = &[
    // cli; ds, es, ss = 0; sp = 0x7c00; count = 0
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0x66, 0xc7, 0x06, 0x00, 0x05, 0,
    0, 0, 0, // next: count += 1, and again until its low 14 bits are 0
    0x66, 0xff, 0x06, 0x00, 0x05, 0xf7, 0x06, 0x00, 0x05, 0xff, 0x3f, 0x75, 0xf3,
    // if a letter waits at 0x3f8: o, r, p, w
    0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0x14, 0xba, 0xf8, 0x03, 0xec, 0x3c, 0x6f, 0x74, 0x1d, 0x3c,
    0x72, 0x74, 0x22, 0x3c, 0x70, 0x74, 0x24, 0x3c, 0x77, 0x74, 0x28,
    // say: wait for room, write the byte at 0x502, on to next
    0xba, 0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74, 0xf8, 0xa0, 0x02, 0x05, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xc6,
    // off: 0x2000 to port 0x604
    0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xeb, 0xbd, // reset: 0xfe to port 0x64
    0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xb7, // panic: 1 to port 0x505
    0xba, 0x05, 0x05, 0xb0, 0x01, 0xee, 0xeb, 0xaf,
    // disk: BIOS call 0x13, write one sector from 0x500; say W or E
    0xfb, 0xb8, 0x01, 0x03, 0xb9, 0x02, 0x00, 0xba, 0x80, 0x00, 0xbb, 0x00, 0x05, 0xcd, 0x13, 0xfa, 0xb0,
    0x57, 0x73, 0x02, 0xb0, 0x45, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0x93,
];

/// An image with the counter in its first sector.
fn image() -> Vec<u8> {
    let mut image = COUNTER.to_vec();
    image.resize(1 << 20, 0);
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    image
}

/// The counter's image in the qcow2 format: header, one refcount table and block, one L1 and L2 table, one cluster.
pub fn qcow2() -> Vec<u8> {
    const CLUSTER: usize = 1 << 16;
    let mut image = vec![0; 6 * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &3_u32.to_be_bytes()); // version
    put(20, &16_u32.to_be_bytes()); // cluster bits
    put(24, &(1_u64 << 20).to_be_bytes()); // the disk's size
    put(36, &1_u32.to_be_bytes()); // L1 entries
    put(40, &(3 * CLUSTER as u64).to_be_bytes()); // L1 table
    put(48, &(CLUSTER as u64).to_be_bytes()); // refcount table
    put(56, &1_u32.to_be_bytes()); // its clusters
    put(96, &4_u32.to_be_bytes()); // refcounts of 2^4 bits
    put(100, &104_u32.to_be_bytes()); // the header's length
    put(CLUSTER, &(2 * CLUSTER as u64).to_be_bytes());
    for cluster in 0..6 {
        put(2 * CLUSTER + 2 * cluster, &1_u16.to_be_bytes());
    }
    put(3 * CLUSTER, &((1 << 63) | (4 * CLUSTER as u64)).to_be_bytes());
    put(4 * CLUSTER, &((1 << 63) | (5 * CLUSTER as u64)).to_be_bytes());
    put(5 * CLUSTER, COUNTER);
    put(5 * CLUSTER + 510, &[0x55, 0xaa]);
    image
}

/// A Linux kernel image whose setup code is the counter.
pub fn kernel() -> Vec<u8> {
    let mut kernel = vec![0; 3 * 512];
    kernel[0x1f1] = 1; // one sector of setup code
    kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    kernel[0x200..0x202].copy_from_slice(&[0xeb, 0x66]); // over the header
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x206..0x208].copy_from_slice(&[0x03, 0x02]); // protocol 2.3
    kernel[0x211] = 1; // loaded high
    kernel[0x22c..0x230].copy_from_slice(&[0xff, 0xff, 0xff, 0x37]); // where an initramfs may lie
    kernel[0x268..0x268 + COUNTER.len()].copy_from_slice(COUNTER);
    kernel
}

/// A test's directory and guests.
pub struct Bench {
    directory: tempfile::TempDir,
    pub qemu: Qemu,
    started: Mutex<Vec<(u32, String)>>,
}

impl Bench {
    pub fn new() -> Self {
        let _ = tracing_subscriber::fmt()
            .with_test_writer()
            .with_env_filter("debug")
            .try_init();
        let directory = tempfile::Builder::new().prefix("godwit-qemu-").tempdir().unwrap();
        // The guests' users must get through.
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o711)).unwrap();
        std::fs::write(directory.path().join("disk.img"), image()).unwrap();
        Self {
            directory,
            qemu: qemu(AcceleratorChoice::Forced(Accelerator::Tcg)),
            started: Mutex::default(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What starts a guest of this definition in a directory of its own.
    pub fn order(&self, name: &str, uid: &str, start: Start, definition: Value) -> Launch {
        let directory = self.path(name);
        std::fs::create_dir_all(&directory).unwrap();
        if user().is_some() {
            chown(&directory, user(), user()).unwrap();
        }
        let mut whole = json!({"machine": {"type": "pc-q35-10.0"}, "cpu": {"count": 1, "model": "qemu64"}, "memory": "64Mi",
            "boot": {"firmware": {}}, "disks": [{"name": "root", "file": {"file": "disk.img"}, "cache": "Writeback"}]});
        whole
            .as_object_mut()
            .unwrap()
            .extend(definition.as_object().unwrap().clone());
        let definition: godwit_crds::VirtualMachineSpec = serde_json::from_value(whole).unwrap();
        let open = |write| {
            OwnedFd::from(
                File::options()
                    .read(true)
                    .write(write)
                    .open(self.path("disk.img"))
                    .unwrap(),
            )
        };
        let disks = definition
            .disks
            .iter()
            .map(|disk| DiskFile {
                file: open(!disk.read_only),
                block_device: false,
            })
            .collect();
        Launch {
            uid: uid.into(),
            name: name.into(),
            definition,
            files: GuestFiles {
                kernel: None,
                initramfs: None,
                disks,
            },
            taps: Vec::new(),
            directory,
            user: user(),
            start,
        }
    }

    pub async fn try_launch(&self, order: Launch) -> Result<Arc<dyn Guest>, HypervisorError> {
        let uid = order.uid.clone();
        let guest = self.qemu.launch(order).await?;
        self.started.lock().unwrap().push((guest.process().pid, uid));
        Ok(guest)
    }

    pub async fn launch(&self, name: &str, uid: &str, start: Start) -> Arc<dyn Guest> {
        self.try_launch(self.order(name, uid, start, json!({})))
            .await
            .unwrap()
    }

    /// What the guest has said in this directory.
    pub fn console(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name).join("console.log")).unwrap_or_default()
    }

    /// Waits until the guest has counted on.
    pub async fn counts_on(&self, name: &str) {
        let before = self.console(name).len();
        eventually("the guest counts on", async || {
            self.console(name).len() > before + 8
        })
        .await;
    }

    /// Sends a letter to the guest.
    pub fn tell(&self, name: &str, letter: u8) {
        let mut console = UnixStream::connect(self.path(name).join("console.sock")).unwrap();
        console.write_all(&[letter]).unwrap();
        // The half that is closed is seen after the letter; to close both could overtake it.
        console.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = std::io::copy(&mut console, &mut std::io::sink());
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for (pid, uid) in self.started.lock().unwrap().drain(..) {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&arguments).contains(&uid) {
                let _ = kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL);
            }
        }
    }
}

pub fn qemu(accelerator: AcceleratorChoice) -> Qemu {
    Qemu::new(QemuConfig {
        accelerator,
        ..QemuConfig::default()
    })
}

pub fn user() -> Option<u32> {
    rustix::process::geteuid().is_root().then_some(USER)
}

pub fn new_uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

pub fn signal(guest: &Arc<dyn Guest>, signal: Signal) {
    kill_process(Pid::from_raw(guest.process().pid as i32).unwrap(), signal).unwrap();
}

pub fn lives(guest: &Arc<dyn Guest>) -> bool {
    Path::new(&format!("/proc/{}", guest.process().pid)).exists()
}

/// Asks again until it is so.
pub async fn eventually(what: &str, so: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while !so().await {
        assert!(start.elapsed() < SOON, "{what}: not within {SOON:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits for an event, and answers it with all that came before.
pub async fn until(events: &mut broadcast::Receiver<GuestEvent>, wanted: GuestEventKind) -> Vec<GuestEvent> {
    let mut seen = Vec::new();
    loop {
        let event = tokio::time::timeout(SOON, events.recv())
            .await
            .unwrap_or_else(|_| panic!("no {wanted:?}; seen {seen:?}"))
            .unwrap();
        let found = event.kind == wanted;
        seen.push(event);
        if found {
            return seen;
        }
    }
}

pub async fn until_stream(guest: &Arc<dyn Guest>, wanted: StreamState) {
    eventually(&format!("{wanted:?}"), async || {
        guest.stream().await.unwrap().state == wanted
    })
    .await;
}

pub async fn until_state(guest: &Arc<dyn Guest>, wanted: RunState) {
    eventually(&format!("{wanted:?}"), async || {
        guest.run_state().await.unwrap() == wanted
    })
    .await;
}

/// So slow that a test can do something in the middle, on a machine that has much else to do too.
pub const SLOWLY: StreamLimits = StreamLimits {
    bandwidth: 512 << 10,
    downtime: Duration::from_millis(1),
};

/// As fast as it goes, whatever the downtime.
pub const ALL_OUT: StreamLimits = StreamLimits {
    bandwidth: 0,
    downtime: Duration::from_secs(1000),
};

/// Connects two guests and starts an encrypted stream; each has its key.
pub async fn start_encrypted(
    source: &Arc<dyn Guest>,
    destination: &Arc<dyn Guest>,
    limits: StreamLimits,
    keys: [[u8; 32]; 2],
) {
    let (near, far) = UnixStream::pair().unwrap();
    let stream = |socket: UnixStream, key| Stream {
        way: Way::Socket(socket.into()),
        key: Some(StreamKey::new(key)),
    };
    destination.receive(stream(far, keys[1])).await.unwrap();
    source.send(stream(near, keys[0]), limits).await.unwrap();
}

/// Connects two guests and starts the stream.
pub async fn start_stream(source: &Arc<dyn Guest>, destination: &Arc<dyn Guest>, limits: StreamLimits) {
    let (near, far) = UnixStream::pair().unwrap();
    destination.receive(Stream::plain(far)).await.unwrap();
    source.send(Stream::plain(near), limits).await.unwrap();
}

/// Brings a guest from one QEMU to another, sealed, and lets it run there.
pub async fn hand_over(source: &Arc<dyn Guest>, destination: &Arc<dyn Guest>) {
    start_stream(source, destination, SLOWLY).await;
    bring_over(source, destination).await;
}

/// Brings the stream that has begun slowly to its end, sealed, and lets the guest run at the destination.
pub async fn bring_over(source: &Arc<dyn Guest>, destination: &Arc<dyn Guest>) {
    until_stream(source, StreamState::Active).await;
    source.pause().await.unwrap();
    source.set_limits(ALL_OUT).await.unwrap();
    until_stream(source, StreamState::BeforeSwitchover).await;
    source.switch_over().await.unwrap();
    until_stream(source, StreamState::Completed).await;
    until_state(destination, RunState::Paused).await;
    destination.resume().await.unwrap();
}

/// The count never went back and left nothing out. The count's byte is said four times before it grows; firmware
/// says nothing on the serial port.
pub fn assert_counts(said: &[u8]) {
    assert!(said.len() > 8, "the guest said only {} bytes", said.len());
    for (index, pair) in said.windows(2).enumerate() {
        assert!(
            pair[1] == pair[0] || pair[1] == pair[0].wrapping_add(1),
            "byte {index}: {} after {}",
            pair[1],
            pair[0]
        );
    }
}
