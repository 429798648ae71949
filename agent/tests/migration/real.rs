//! The same with real guests in QEMU: two agents' halves over loopback, and what their own share of the blackout is.
//!
//! They need `qemu-system-x86_64`: `cargo test -p godwit-agent --test migration -- --include-ignored real`.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use godwit_agent::cgroup::Cgroups;
use godwit_agent::clock::now_micros;
use godwit_agent::guest_network::GuestNetwork;
use godwit_agent::guests::{
    Definition, GuestError, GuestIdentity, Guests, Held, Settings, StartRequest, UserRange,
};
use godwit_agent::hypervisor::qemu::{Accelerator, AcceleratorChoice, Qemu, QemuConfig};
use godwit_agent::hypervisor::{
    Guest, GuestEvent, GuestEventKind, Hypervisor, HypervisorError, ProcessRecord, RunState, Stream,
    StreamAbilities, StreamLimits, StreamState, StreamStatus,
};
use godwit_agent::migration::{self, Custody, Migrations};
use godwit_agent::pools::Pools;
use godwit_agent::taps::IpCommand;
use godwit_handover::{Cause, DriverEvent, Gates, Outcome, SourceReport, Terms};
use tokio::sync::broadcast;

use super::conductor::{Conductor, Record, SOON};
use super::plain::source_is;

/// Counts in memory at 0x500, and writes bits 16 to 23 of the count to the serial port every 16384 turns.
const COUNTER: &[u8] = &[
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x66, 0xc7, 0x06, 0x00, 0x05, 0, 0, 0, 0, // ds = 0, count = 0
    0x66, 0xff, 0x06, 0x00, 0x05, 0xf7, 0x06, 0x00, 0x05, 0xff, 0x3f, 0x75, 0xf3, // count
    0xba, 0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74, 0xf8, // wait for room
    0xa0, 0x02, 0x05, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xe2, // say it, and again
];

/// In protected mode: counts up a word in each page from 2 to 40 MiB, over and over, and writes bits 6 to 13 of the
/// number of rounds to the serial port after each.
const DIRTIER: &[u8] = &[
    // cli; ds = 0; A20; lgdt 0x7c70; protected mode; jump to 8:0x7c21; ds = 16; rounds = 0
    // again: for each page, word += 1; rounds += 1; wait for room at 0x3fd; say rounds >> 6; again
    // the table of segments at 0x7c58, and at 0x7c70 where it is
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0xe4, 0x92, 0x0c, 0x02, 0xe6, 0x92, 0x66, 0x0f, 0x01, 0x16, 0x70, 0x7c,
    0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, 0x66, 0xea, 0x21, 0x7c, 0x00, 0x00, 0x08, 0x00, 0x66,
    0xb8, 0x10, 0x00, 0x8e, 0xd8, 0x31, 0xdb, 0xbf, 0x00, 0x00, 0x20, 0x00, 0xff, 0x07, 0x81, 0xc7, 0x00,
    0x10, 0x00, 0x00, 0x81, 0xff, 0x00, 0x00, 0x80, 0x02, 0x72, 0xf0, 0x43, 0xba, 0xfd, 0x03, 0x00, 0x00,
    0xec, 0xa8, 0x20, 0x74, 0xfb, 0x89, 0xd8, 0xc1, 0xe8, 0x06, 0xba, 0xf8, 0x03, 0x00, 0x00, 0xee, 0xeb,
    0xd3, 0x66, 0x90, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0x00, 0x00, 0x00, 0x9a,
    0xcf, 0x00, 0xff, 0xff, 0x00, 0x00, 0x00, 0x92, 0xcf, 0x00, 0x17, 0x00, 0x58, 0x7c, 0x00, 0x00,
];

/// What was asked of a guest, and when (Unix time in microseconds).
#[derive(Default)]
struct Times(Mutex<BTreeMap<&'static str, i64>>);

impl Times {
    fn note(&self, what: &'static str, at: i64) {
        self.0.lock().unwrap().insert(what, at);
    }

    fn at(&self, what: &str) -> i64 {
        *self
            .0
            .lock()
            .unwrap()
            .get(what)
            .unwrap_or_else(|| panic!("no {what}"))
    }
}

/// A guest that notes when it was asked what.
struct Timed {
    guest: Arc<dyn Guest>,
    times: Arc<Times>,
}

#[async_trait]
impl Guest for Timed {
    fn process(&self) -> ProcessRecord {
        self.guest.process()
    }
    fn directory(&self) -> &Path {
        self.guest.directory()
    }
    fn subscribe(&self) -> broadcast::Receiver<GuestEvent> {
        self.guest.subscribe()
    }
    fn has_ended(&self) -> bool {
        self.guest.has_ended()
    }
    async fn run_state(&self) -> Result<RunState, HypervisorError> {
        self.guest.run_state().await
    }
    async fn pause(&self) -> Result<(), HypervisorError> {
        self.times.note("pause", now_micros());
        self.guest.pause().await
    }
    async fn resume(&self) -> Result<(), HypervisorError> {
        self.times.note("resume", now_micros());
        let outcome = self.guest.resume().await;
        self.times.note("resume answered", now_micros());
        outcome
    }
    async fn destroy(&self, deadline: Duration) -> Result<(), HypervisorError> {
        self.guest.destroy(deadline).await
    }
    async fn migration_blockers(&self) -> Result<Vec<String>, HypervisorError> {
        self.guest.migration_blockers().await
    }
    async fn send(&self, stream: Stream, limits: StreamLimits) -> Result<(), HypervisorError> {
        self.guest.send(stream, limits).await
    }
    async fn receive(&self, stream: Stream) -> Result<(), HypervisorError> {
        self.guest.receive(stream).await
    }
    async fn stream(&self) -> Result<StreamStatus, HypervisorError> {
        self.guest.stream().await
    }
    async fn set_limits(&self, limits: StreamLimits) -> Result<(), HypervisorError> {
        self.guest.set_limits(limits).await
    }
    async fn switch_over(&self) -> Result<(), HypervisorError> {
        self.times.note("switch over", now_micros());
        self.guest.switch_over().await
    }
    async fn cancel_stream(&self) -> Result<(), HypervisorError> {
        self.guest.cancel_stream().await
    }
    async fn set_disks_active(&self, active: bool) -> Result<(), HypervisorError> {
        self.guest.set_disks_active(active).await
    }
    async fn resident_bytes(&self) -> Result<u64, HypervisorError> {
        self.guest.resident_bytes().await
    }
}

/// The guests' manager, with guests that note times.
struct TimedCustody {
    guests: Guests,
    times: Arc<Times>,
}

impl TimedCustody {
    fn timed(&self, mut held: Held) -> Held {
        let (mut events, times) = (held.guest.subscribe(), self.times.clone());
        tokio::spawn(async move {
            while let Ok(event) = events.recv().await {
                let what = match event.kind {
                    GuestEventKind::Stopped => "stopped",
                    GuestEventKind::Resumed => "resumed",
                    GuestEventKind::Stream(StreamState::BeforeSwitchover) => "before switchover",
                    GuestEventKind::Stream(StreamState::Completed) => "completed",
                    GuestEventKind::Stream(_)
                    | GuestEventKind::ShutDown
                    | GuestEventKind::Reset
                    | GuestEventKind::Panicked
                    | GuestEventKind::IoError { .. }
                    | GuestEventKind::DirtyPagesCollected { .. }
                    | GuestEventKind::Died => continue,
                };
                times.note(what, event.at_micros);
            }
        });
        held.guest = Arc::new(Timed {
            guest: held.guest,
            times: self.times.clone(),
        });
        held
    }
}

#[async_trait]
impl Custody for TimedCustody {
    fn gates(&self) -> Option<Gates> {
        Custody::gates(&self.guests)
    }
    fn streams(&self) -> Option<StreamAbilities> {
        Custody::streams(&self.guests)
    }
    async fn protect(&self, terms: &Terms) -> Result<Held, GuestError> {
        Custody::protect(&self.guests, terms)
            .await
            .map(|held| self.timed(held))
    }
    async fn find_leaving(&self, terms: &Terms) -> Result<Option<Held>, GuestError> {
        Ok(Custody::find_leaving(&self.guests, terms)
            .await?
            .map(|held| self.timed(held)))
    }
    async fn unprotect(&self, terms: &Terms) {
        Custody::unprotect(&self.guests, terms).await;
    }
    async fn launch_incoming(
        &self,
        identity: &GuestIdentity,
        definition: &Definition,
        terms: &Terms,
    ) -> Result<Held, GuestError> {
        let held = Custody::launch_incoming(&self.guests, identity, definition, terms).await?;
        Ok(self.timed(held))
    }
    async fn find_arriving(&self, terms: &Terms) -> Result<Option<Held>, GuestError> {
        Ok(Custody::find_arriving(&self.guests, terms)
            .await?
            .map(|held| self.timed(held)))
    }
    async fn take_over(&self, terms: &Terms, since_micros: Option<i64>) -> Result<(), GuestError> {
        Custody::take_over(&self.guests, terms, since_micros).await
    }
    async fn discard_incoming(&self, terms: &Terms) -> Result<(), GuestError> {
        Custody::discard_incoming(&self.guests, terms).await
    }
    async fn release(&self, terms: &Terms) -> Result<(), GuestError> {
        Custody::release(&self.guests, terms).await
    }
    fn arriving(&self) -> Vec<Terms> {
        Custody::arriving(&self.guests)
    }
}

struct Host {
    name: String,
    guests: Guests,
    times: Arc<Times>,
    agent: Migrations,
    directory: std::path::PathBuf,
}

impl Host {
    async fn new(root: &Path, name: &str, first_user: u32, record: &Record) -> Self {
        let directory = root.join(name);
        std::fs::create_dir_all(&directory).unwrap();
        // The guests' users must get through.
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o711)).unwrap();
        let qemu: Arc<dyn Hypervisor> = Arc::new(Qemu::new(QemuConfig {
            accelerator: AcceleratorChoice::Forced(Accelerator::Tcg),
            ..QemuConfig::default()
        }));
        let guests = Guests::open(
            Settings {
                host: name.into(),
                state_directory: directory.join("state"),
                run_directory: directory.join("run"),
                memory: 4 << 30,
                pools: Pools::new(BTreeMap::from([("default".into(), root.join("pool"))]), vec![]),
                taps: Arc::new(IpCommand),
                users: rustix::process::geteuid().is_root().then_some(UserRange {
                    first: first_user,
                    count: 8,
                }),
                cgroups: Cgroups::discover(),
            },
            qemu.clone(),
        )
        .unwrap();
        guests.set_facts(Some(qemu.probe().await.unwrap()));
        guests.recover().await.unwrap();
        let times = Arc::new(Times::default());
        let custody = Arc::new(TimedCustody {
            guests: guests.clone(),
            times: times.clone(),
        });
        let settings = migration::Settings {
            host: name.into(),
            boot_id: "boot".into(),
            state_directory: directory.join("state"),
            migration_address: "127.0.0.1".parse().unwrap(),
            migration_ports: 0..=0,
            refuse_plain_text: false,
            tunnels: None,
            guest_network: GuestNetwork::without("this test is about one connection"),
        };
        let agent = Migrations::new(settings, custody, Arc::new(record.clone()));
        agent.recover().await.unwrap();
        Self {
            name: name.into(),
            guests,
            times,
            agent,
            directory,
        }
    }

    fn said(&self, uid: &str) -> Vec<u8> {
        std::fs::read(self.directory.join("run/guests").join(uid).join("console.log")).unwrap_or_default()
    }
}

struct Bench {
    root: Arc<tempfile::TempDir>,
    uid: String,
    _reaper: Arc<Reaper>,
    record: Record,
    terms: Terms,
    source: Host,
    destination: Host,
}

impl Bench {
    async fn new(first_user: u32) -> Self {
        Self::with(first_user, COUNTER).await
    }

    /// A guest that does this in its boot sector.
    async fn with(first_user: u32, program: &[u8]) -> Self {
        let root = Arc::new(tempfile::Builder::new().prefix("gw-mig-").tempdir().unwrap());
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        std::fs::create_dir(root.path().join("pool")).unwrap();
        let mut image = program.to_vec();
        image.resize(1 << 20, 0);
        image[510..512].copy_from_slice(&[0x55, 0xaa]);
        std::fs::write(root.path().join("pool/disk.img"), image).unwrap();
        let uid = uuid::Uuid::new_v4().to_string();
        let terms = Terms {
            migration: uuid::Uuid::new_v4().to_string(),
            guest: uid.clone(),
            epoch: 1,
            source: "a".into(),
            destination: "b".into(),
            strict: false,
        };
        let record = Record::new(&terms);
        let source = Host::new(root.path(), "a", first_user, &record).await;
        let destination = Host::new(root.path(), "b", first_user + 8, &record).await;
        let definition = serde_json::json!({
            "machine": {"type": "pc-q35-10.0"}, "cpu": {"count": 1, "model": "qemu64"}, "memory": "64Mi",
            "boot": {"firmware": {}}, "persistence": "Transient",
            "disks": [{"name": "root", "file": {"file": "disk.img"}, "cache": "Writeback"}],
        });
        let request = StartRequest {
            identity: GuestIdentity {
                uid: uid.clone(),
                namespace: "default".into(),
                name: "g".into(),
            },
            epoch: 1,
            definition: Definition::parse(&serde_json::to_vec(&definition).unwrap()).unwrap(),
            again: false,
        };
        source.guests.start(request).await.unwrap();
        let _reaper = Arc::new(Reaper { uid: uid.clone() });
        let bench = Self {
            root,
            uid,
            _reaper,
            record,
            terms,
            source,
            destination,
        };
        bench.counts_on(&bench.source).await;
        bench
    }

    async fn counts_on(&self, host: &Host) {
        let before = host.said(&self.uid).len();
        let start = Instant::now();
        while host.said(&self.uid).len() < before + 8 {
            assert!(
                start.elapsed() < SOON,
                "the guest does not count at {}",
                host.name
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Moves the guest, and says how: microseconds from the hypervisor's pause to the order to switch over, from
    /// the last `completed` to the guest's resumption, and from its stop to its resumption.
    async fn move_once(&mut self, conductor: &mut Conductor) -> [i64; 3] {
        let outcome = conductor
            .conduct(&self.source.agent, &self.destination.agent)
            .await;
        assert_eq!(
            outcome,
            Outcome::Succeeded { running: true },
            "{}",
            conductor.story()
        );
        let (there, here) = (&self.source.times, &self.destination.times);
        let completed = there.at("completed").max(here.at("completed"));
        [
            there.at("switch over") - there.at("before switchover"),
            here.at("resumed") - completed,
            here.at("resumed") - there.at("stopped"),
        ]
    }

    /// The count went on where it was, at either side.
    fn count_is_whole(&self) {
        let mut said = self.source.said(&self.uid);
        said.extend(self.destination.said(&self.uid));
        for (index, pair) in said.windows(2).enumerate() {
            assert!(
                pair[1] == pair[0] || pair[1] == pair[0].wrapping_add(1),
                "byte {index}: {} after {}",
                pair[1],
                pair[0]
            );
        }
    }

    async fn end(&self) {
        for host in [&self.source, &self.destination] {
            for view in host.guests.list() {
                let _ = host.guests.stop(&view.identity, view.epoch).await;
            }
        }
    }
}

/// Takes down what a failed test leaves.
struct Reaper {
    uid: String,
}

impl Drop for Reaper {
    fn drop(&mut self) {
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&command).contains(&self.uid)
                && let Some(pid) = rustix::process::Pid::from_raw(pid)
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

fn log() {
    let _ = tracing_subscriber::fmt()
        .with_test_writer()
        .with_env_filter(std::env::var("GODWIT_LOG").unwrap_or_else(|_| "warn".into()))
        .try_init();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs QEMU"]
async fn a_real_guest_moves_and_counts_on() {
    log();
    let mut bench = Bench::new(61_700).await;
    let mut conductor = Conductor::new(&bench.terms, &bench.record);
    let times = bench.move_once(&mut conductor).await;
    eprintln!(
        "order to switch over {} us, resumption {} us, stop to resume {} us",
        times[0], times[1], times[2]
    );
    bench.counts_on(&bench.destination).await;
    assert!(bench.source.guests.list().is_empty());
    assert!(bench.source.agent.active().is_empty());
    bench.count_is_whole();
    let update = conductor.destination.clone().unwrap();
    assert_eq!(
        update.resumed_at_micros,
        Some(bench.destination.times.at("resumed"))
    );
    let update = conductor.source.clone().unwrap();
    assert_eq!(update.stopped_at_micros, Some(bench.source.times.at("stopped")));
    assert!(update.hypervisor_downtime_millis.is_some(), "{update:?}");
    bench.end().await;
}

/// A guest that dirties its memory faster than any idle one is stopped while its memory still travels.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs QEMU; a measurement too"]
async fn a_real_guest_that_dirties_its_memory_moves_sealed() {
    log();
    // On a busy machine the hypervisor may find nothing left to send before anyone could stop the guest.
    for _ in 0..8 {
        let mut bench = Bench::with(61_780, DIRTIER).await;
        let mut conductor = Conductor::new(&bench.terms, &bench.record);
        let [order, resumption, stopped] = bench.move_once(&mut conductor).await;
        bench.counts_on(&bench.destination).await;
        bench.count_is_whole();
        let journal = bench
            .root
            .path()
            .join(format!("a/state/journals/{}.journal", bench.terms.migration));
        let journal = String::from_utf8_lossy(&std::fs::read(journal).unwrap()).into_owned();
        let sealed = journal.contains("\"sealed\":true");
        assert_eq!(sealed, journal.contains("\"Sealed\""));
        eprintln!(
            "sealed {sealed}, order {order} us, resumption {resumption} us, stop to resume {stopped} us, {:?}",
            conductor.source.as_ref().and_then(|update| update.progress),
        );
        bench.end().await;
        if sealed {
            return;
        }
    }
    panic!("never sealed");
}

/// Moves one guest back and forth and prints the agents' own share of the blackout.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs QEMU; a measurement too"]
async fn a_real_guest_moves_back_and_forth() {
    log();
    let mut bench = Bench::new(61_720).await;
    let mut all = Vec::new();
    for round in 0..10 {
        let mut conductor = Conductor::new(&bench.terms, &bench.record);
        let [order, resumption, stopped] = bench.move_once(&mut conductor).await;
        let sealed = bench.source.times.0.lock().unwrap().contains_key("pause");
        eprintln!(
            "round {round}: order {order} us, resumption {resumption} us, stop to resume {stopped} us, sealed {sealed}"
        );
        all.push([order, resumption, stopped]);
        bench.counts_on(&bench.destination).await;
        for host in [&bench.source, &bench.destination] {
            host.times.0.lock().unwrap().clear();
        }
        std::mem::swap(&mut bench.source, &mut bench.destination);
        bench.terms = Terms {
            migration: uuid::Uuid::new_v4().to_string(),
            guest: bench.uid.clone(),
            epoch: bench.terms.epoch + 1,
            source: bench.source.name.clone(),
            destination: bench.destination.name.clone(),
            strict: false,
        };
        *bench.record.0.lock().unwrap() = Record::new(&bench.terms).view();
    }
    for (index, what) in ["pause to order", "completed to resumed", "stop to resumed"]
        .iter()
        .enumerate()
    {
        let mut values: Vec<i64> = all.iter().map(|row| row[index]).collect();
        values.sort_unstable();
        eprintln!(
            "{what}: median {} us, {} to {} us",
            values[values.len() / 2],
            values[0],
            values[values.len() - 1]
        );
    }
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs QEMU"]
async fn a_real_guest_stays_when_its_migration_is_cancelled_and_moves_the_next_time() {
    log();
    let mut bench = Bench::new(61_740).await;
    let mut conductor = Conductor::new(&bench.terms, &bench.record);
    conductor
        .until(&bench.source.agent, &bench.destination.agent, |c| {
            source_is(c, &SourceReport::Begun)
        })
        .await;
    conductor.feel(DriverEvent::Cancel);
    let outcome = conductor
        .conduct(&bench.source.agent, &bench.destination.agent)
        .await;
    assert_eq!(
        outcome,
        Outcome::Aborted(Cause::Cancelled),
        "{}",
        conductor.story()
    );
    bench.counts_on(&bench.source).await;
    assert!(bench.destination.guests.list().is_empty());
    bench.terms.migration = uuid::Uuid::new_v4().to_string();
    *bench.record.0.lock().unwrap() = Record::new(&bench.terms).view();
    let mut conductor = Conductor::new(&bench.terms, &bench.record);
    bench.move_once(&mut conductor).await;
    bench.counts_on(&bench.destination).await;
    bench.count_is_whole();
    bench.end().await;
}

/// A runtime that ends with everything in it is an agent that is killed: its connections close, its tasks are gone,
/// and QEMU and the stream go on.
#[test]
#[ignore = "needs QEMU"]
fn agents_that_are_killed_in_any_round_find_real_guests_again() {
    log();
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
    };
    for rounds in [3, 5, 6, 7, 8, 9, 10, 12] {
        let first = runtime();
        let (root, uid, reaper, record, terms) = first.block_on(async {
            let bench = Bench::new(61_760).await;
            let mut conductor = Conductor::new(&bench.terms, &bench.record);
            for _ in 0..rounds {
                conductor
                    .round(&bench.source.agent, &bench.destination.agent)
                    .await;
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            eprintln!(
                "killed at {:?}",
                conductor.source.as_ref().map(|update| update.side.clone())
            );
            let Bench {
                root,
                uid,
                _reaper,
                record,
                terms,
                ..
            } = bench;
            (root, uid, _reaper, record, terms)
        });
        drop(first);
        runtime().block_on(async {
            let source = Host::new(root.path(), "a", 61_760, &record).await;
            let destination = Host::new(root.path(), "b", 61_768, &record).await;
            let bench = Bench {
                root,
                uid,
                _reaper: reaper,
                record,
                terms,
                source,
                destination,
            };
            let mut conductor = Conductor::new(&bench.terms, &bench.record);
            let outcome = conductor
                .conduct(&bench.source.agent, &bench.destination.agent)
                .await;
            eprintln!("{rounds} rounds: {outcome:?}");
            match outcome {
                Outcome::Succeeded { running: true } => {
                    bench.counts_on(&bench.destination).await;
                    assert!(bench.source.guests.list().is_empty());
                }
                Outcome::Aborted(_) => {
                    bench.counts_on(&bench.source).await;
                    assert!(
                        bench.destination.guests.list().is_empty(),
                        "{:?}",
                        bench.destination.guests.list()
                    );
                }
                Outcome::Succeeded { running: false } | Outcome::GuestLost(_) => {
                    panic!("{outcome:?}\n{}", conductor.story())
                }
            }
            bench.count_is_whole();
            bench.end().await;
        });
    }
}
