//! The manager over a hypervisor in memory: orders and their repetitions, every state in which a crash of the agent
//! can leave the disk, and faults of disk and hypervisor.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use godwit_crds::virtual_machine::GuestState;
use godwit_handover::{Decision, RecordView, Terms};

use super::fake::{FakeGuest, FakeHypervisor, facts};
use super::record::{GuestEntry, Standing};
use super::*;
use crate::cgroup::Cgroups;
use crate::hypervisor::{Guest, GuestEventKind, HypervisorError, RunState, Start};
use crate::migration::Records;
use crate::pools::Pools;
use crate::sandbox::Network;
use crate::state::RecordFile;
use crate::taps::{TapError, Taps};

mod users;

const UID: &str = "6f1ad7a0-3f54-4a43-9c5e-0d8a5b1c2d3e";
const OTHER: &str = "7f1ad7a0-3f54-4a43-9c5e-0d8a5b1c2d3f";

/// A host's disk and hypervisor, which outlive the agent.
struct World {
    directory: tempfile::TempDir,
    hypervisor: Arc<FakeHypervisor>,
    taps: Arc<FakeTaps>,
}

#[derive(Default)]
struct FakeTaps {
    there: Mutex<Vec<String>>,
    broken: Mutex<bool>,
}

#[async_trait]
impl Taps for FakeTaps {
    async fn create(&self, name: &str, bridge: &str, _user: Option<u32>) -> Result<(), TapError> {
        if *self.broken.lock().unwrap() {
            return Err(TapError::Bridge {
                bridge: bridge.into(),
                message: "no such device".into(),
            });
        }
        self.there.lock().unwrap().push(name.into());
        Ok(())
    }

    async fn delete(&self, name: &str) -> Result<(), TapError> {
        self.there.lock().unwrap().retain(|tap| tap != name);
        Ok(())
    }
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("pool")).unwrap();
        fs::write(directory.path().join("pool/kernel"), "kernel").unwrap();
        Self {
            directory,
            hypervisor: Arc::default(),
            taps: Arc::default(),
        }
    }

    /// An agent's manager, as at the agent's start.
    async fn agent(&self) -> Guests {
        self.agent_with(None).await
    }

    async fn agent_with(&self, users: Option<UserRange>) -> Guests {
        let settings = Settings {
            host: "here".into(),
            state_directory: self.path("state"),
            run_directory: self.path("run"),
            memory: 1 << 30,
            pools: Pools::new(BTreeMap::from([("default".into(), self.path("pool"))]), vec![]),
            taps: self.taps.clone(),
            users,
            network: Network::Isolated,
            cgroups: Cgroups::default(),
        };
        let guests = Guests::open(settings, self.hypervisor.clone()).unwrap();
        guests.set_facts(Some(facts()));
        guests.recover().await.unwrap();
        guests
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn record(&self) -> RecordFile {
        RecordFile::at(self.path("state/guests").join(format!("{UID}.record")))
    }

    fn entry(&self) -> GuestEntry {
        self.record().read().unwrap().unwrap()
    }

    fn rewrite(&self, change: impl FnOnce(&mut GuestEntry)) {
        let mut entry = self.entry();
        change(&mut entry);
        self.record().write(&entry).unwrap();
    }

    fn process(&self) -> Option<Arc<FakeGuest>> {
        self.hypervisor.process_of(UID)
    }

    /// No process, record, directory or network device is left of the guest.
    fn assert_nothing_left(&self) {
        assert!(self.process().is_none(), "a process is left");
        assert!(
            self.record().read::<GuestEntry>().unwrap().is_none(),
            "a record is left"
        );
        assert!(!self.path("run/guests").join(UID).exists(), "a directory is left");
        assert!(
            self.taps.there.lock().unwrap().is_empty(),
            "a network device is left"
        );
    }
}

fn definition(memory: &str) -> Definition {
    let json = serde_json::json!({
        "machine": {"type": "pc-q35-10.0"},
        "cpu": {"count": 1, "model": "qemu64"},
        "memory": memory,
        "boot": {"kernel": {"image": {"file": "kernel"}}},
        "interfaces": [{"name": "net0", "bridge": "br0", "mac": "52:54:00:12:34:56"}],
    });
    Definition::parse(&serde_json::to_vec(&json).unwrap()).unwrap()
}

fn identity(uid: &str, name: &str) -> GuestIdentity {
    GuestIdentity {
        uid: uid.into(),
        namespace: "default".into(),
        name: name.into(),
    }
}

fn request(epoch: u64, again: bool) -> StartRequest {
    StartRequest {
        identity: identity(UID, "web"),
        epoch,
        definition: definition("128Mi"),
        again,
    }
}

fn leaving(migration: &str) -> Terms {
    Terms {
        migration: migration.into(),
        guest: UID.into(),
        epoch: 1,
        source: "here".into(),
        destination: "there".into(),
    }
}

fn arriving(migration: &str) -> Terms {
    Terms {
        source: "there".into(),
        destination: "here".into(),
        ..leaving(migration)
    }
}

async fn receive(guests: &Guests, migration: &str) -> Result<Held, GuestError> {
    guests
        .launch_incoming(&identity(UID, "web"), &definition("128Mi"), &arriving(migration))
        .await
}

/// Waits until the guest is shown so.
async fn shown(guests: &Guests, state: GuestState) {
    let mut changes = guests.changes();
    let wait = async {
        while guests.list().first().map(|view| view.state) != Some(state) {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait)
        .await
        .unwrap_or_else(|_| panic!("never {state:?}: {:?}", guests.list()));
}

#[tokio::test]
async fn a_guest_is_started_once_however_often_it_is_ordered() {
    let world = World::new();
    let guests = world.agent().await;
    let view = guests.start(request(1, false)).await.unwrap();
    assert_eq!((view.state, view.epoch), (GuestState::Running, 1));
    assert!(view.since_micros.is_some());
    assert_eq!(guests.start(request(1, false)).await.unwrap(), view);
    assert_eq!(
        guests.start(request(1, true)).await.unwrap(),
        view,
        "`again` is for a guest that is gone"
    );
    assert_eq!(world.hypervisor.launched(), 1);
    assert_eq!(*world.process().unwrap().resumes.lock().unwrap(), 1);
    assert_eq!(*world.taps.there.lock().unwrap(), ["g0d8a5b1c2d3e0"]);

    guests.stop(&identity(UID, "web"), 1).await.unwrap();
    world.assert_nothing_left();
    guests.stop(&identity(UID, "web"), 1).await.unwrap();
    assert!(guests.list().is_empty());
}

#[tokio::test]
async fn orders_side_by_side_start_it_once() {
    let world = World::new();
    let guests = world.agent().await;
    let orders = (0..8).map(|_| guests.start(request(1, false)));
    for outcome in futures::future::join_all(orders).await {
        assert_eq!(outcome.unwrap().state, GuestState::Running);
    }
    assert_eq!(world.hypervisor.launched(), 1);
}

#[tokio::test]
async fn an_order_is_carried_out_though_its_caller_has_left() {
    let world = World::new();
    let guests = world.agent().await;
    let order = guests.start(request(1, false));
    // Polled once, then dropped, as the server does when a client goes away.
    assert!(tokio::time::timeout(Duration::ZERO, order).await.is_err());
    shown(&guests, GuestState::Running).await;
    assert!(world.process().is_some());
}

#[tokio::test]
async fn another_epoch_is_refused() {
    let world = World::new();
    let guests = world.agent().await;
    guests.start(request(3, false)).await.unwrap();
    let stale = guests.start(request(2, false)).await.unwrap_err();
    assert!(matches!(stale, GuestError::StaleEpoch { known: 3, given: 2 }));
    assert_eq!(stale.reason(), "StaleEpoch");
    assert!(matches!(
        guests.start(request(4, true)).await,
        Err(GuestError::Conflict(_))
    ));
    assert!(matches!(
        guests.stop(&identity(UID, "web"), 2).await,
        Err(GuestError::StaleEpoch { .. })
    ));
    assert!(matches!(
        guests
            .protect(&Terms {
                epoch: 2,
                ..leaving("m")
            })
            .await,
        Err(GuestError::StaleEpoch { .. })
    ));
    assert!(world.process().is_some());
}

#[tokio::test]
async fn a_guest_that_is_gone_is_started_again_only_if_asked_for() {
    let world = World::new();
    let guests = world.agent().await;
    guests.start(request(1, false)).await.unwrap();
    world.process().unwrap().die();
    shown(&guests, GuestState::Crashed).await;
    assert_eq!(guests.memory_in_use(), 0);
    assert!(matches!(
        guests.start(request(1, false)).await,
        Err(GuestError::ProcessGone { epoch: 1, .. })
    ));

    // Nor after a restart of the agent.
    let guests = world.agent().await;
    assert_eq!(guests.list()[0].state, GuestState::Crashed);
    assert!(matches!(
        guests.start(request(1, false)).await,
        Err(GuestError::ProcessGone { epoch: 1, .. })
    ));
    assert_eq!(world.hypervisor.launched(), 1);
    assert_eq!(
        guests.start(request(1, true)).await.unwrap().state,
        GuestState::Running
    );
    assert_eq!(world.hypervisor.launched(), 2);
}

#[tokio::test]
async fn after_a_reboot_the_host_says_so() {
    let world = World::new();
    world.agent().await.start(request(1, false)).await.unwrap();
    world.process().unwrap().die();
    world.rewrite(|entry| {
        entry.boot_id = "of yesterday".into();
        if let Standing::Held { process, .. } = &mut entry.standing {
            process.boot_id = "of yesterday".into();
        }
    });
    let guests = world.agent().await;
    assert!(guests.list()[0].note.as_ref().unwrap().contains("rebooted"));
    let error = guests.start(request(1, false)).await.unwrap_err();
    assert_eq!(error.reason(), "HostRebooted");
    assert_eq!(
        guests.start(request(1, true)).await.unwrap().state,
        GuestState::Running
    );
}

#[tokio::test]
async fn what_a_guest_does_is_seen() {
    let world = World::new();
    let guests = world.agent().await;
    guests.start(request(1, false)).await.unwrap();
    let process = world.process().unwrap();
    process.pause().await.unwrap();
    shown(&guests, GuestState::Paused).await;
    process.resume().await.unwrap();
    shown(&guests, GuestState::Running).await;
    process.emit(GuestEventKind::Panicked);
    shown(&guests, GuestState::Crashed).await;
    process.set(RunState::ShutDown);
    process.emit(GuestEventKind::ShutDown);
    shown(&guests, GuestState::ShutOff).await;
    // It powered itself off: an ordinary order does not undo that, and one that asks for it does.
    assert_eq!(
        guests.start(request(1, false)).await.unwrap().state,
        GuestState::ShutOff
    );
    assert_eq!(world.hypervisor.launched(), 1);
    assert_eq!(
        guests.start(request(1, true)).await.unwrap().state,
        GuestState::Running
    );
    assert_eq!(world.hypervisor.launched(), 2);
}

#[tokio::test]
async fn a_restarted_agent_finds_its_guest_and_leaves_it_alone() {
    let world = World::new();
    let view = world.agent().await.start(request(1, false)).await.unwrap();
    let guests = world.agent().await;
    assert_eq!(guests.list(), [view]);
    assert_eq!(guests.held(UID).unwrap().definition, definition("128Mi"));
    assert_eq!(guests.memory_in_use(), 128 << 20);
    let process = world.process().unwrap();
    assert_eq!(
        *process.resumes.lock().unwrap(),
        1,
        "nothing was resumed by the recovery"
    );
    process.set(RunState::Paused);
    process.emit(GuestEventKind::Stopped);
    shown(&guests, GuestState::Paused).await;
    assert_eq!(
        guests.start(request(1, false)).await.unwrap().state,
        GuestState::Paused,
        "a paused guest stays paused"
    );
}

#[tokio::test]
async fn a_launch_that_was_recorded_and_not_begun_leaves_nothing() {
    let world = World::new();
    world.agent().await.start(request(1, false)).await.unwrap();
    world.process().unwrap().die();
    world.rewrite(|entry| entry.standing = Standing::Launching);
    let guests = world.agent().await;
    assert!(guests.list().is_empty());
    world.assert_nothing_left();
    // It never ran, so an ordinary order starts it.
    assert_eq!(
        guests.start(request(1, false)).await.unwrap().state,
        GuestState::Running
    );
}

#[tokio::test]
async fn a_process_whose_launch_was_not_recorded_is_found_and_ended() {
    let world = World::new();
    world.agent().await.start(request(1, false)).await.unwrap();
    world.rewrite(|entry| entry.standing = Standing::Launching);
    assert!(world.process().is_some());
    let guests = world.agent().await;
    world.assert_nothing_left();
    assert!(guests.list().is_empty());

    receive(&guests, "m").await.unwrap();
    world.rewrite(|entry| entry.standing = Standing::LaunchingIncoming { terms: arriving("m") });
    let guests = world.agent().await;
    world.assert_nothing_left();
    assert!(guests.arriving().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_process_that_may_be_the_launched_one_is_left_alone_until_it_answers() {
    let world = World::new();
    world.agent().await.start(request(1, false)).await.unwrap();
    world.rewrite(|entry| entry.standing = Standing::Launching);
    *world.hypervisor.unresponsive.lock().unwrap() = true;
    let guests = world.agent().await;
    assert_eq!(guests.list()[0].state, GuestState::Unknown);
    assert_eq!(
        guests.start(request(1, true)).await.unwrap_err().reason(),
        "HypervisorUnresponsive"
    );
    assert!(world.process().is_some());
    *world.hypervisor.unresponsive.lock().unwrap() = false;
    let mut changes = guests.changes();
    while !guests.list().is_empty() {
        changes.changed().await.unwrap();
    }
    world.assert_nothing_left();
}

#[tokio::test]
async fn a_start_that_was_cut_short_is_finished_by_the_next_order() {
    let world = World::new();
    world.agent().await.start(request(1, false)).await.unwrap();
    world.process().unwrap().set(RunState::Paused);
    world.rewrite(|entry| {
        if let Standing::Held { since_micros, .. } = &mut entry.standing {
            *since_micros = None;
        }
    });
    let guests = world.agent().await;
    assert_eq!(
        guests.list()[0].state,
        GuestState::Paused,
        "the recovery starts nothing"
    );
    assert!(matches!(
        guests.protect(&leaving("m")).await,
        Err(GuestError::NotRunning(_))
    ));
    let view = guests.start(request(1, false)).await.unwrap();
    assert_eq!(view.state, GuestState::Running);
    assert_eq!(world.hypervisor.launched(), 1);
    assert!(matches!(
        world.entry().standing,
        Standing::Held {
            since_micros: Some(_),
            ..
        }
    ));
}

#[tokio::test]
async fn a_run_that_was_not_noted_is_noted_at_the_restart() {
    let world = World::new();
    world.agent().await.start(request(1, false)).await.unwrap();
    world.rewrite(|entry| {
        if let Standing::Held { since_micros, .. } = &mut entry.standing {
            *since_micros = None;
        }
    });
    assert!(world.agent().await.list()[0].since_micros.is_some());
    assert!(matches!(
        world.entry().standing,
        Standing::Held {
            since_micros: Some(_),
            ..
        }
    ));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_does_not_answer_is_asked_again() {
    let world = World::new();
    world.agent().await.start(request(1, false)).await.unwrap();
    *world.hypervisor.unresponsive.lock().unwrap() = true;
    let guests = world.agent().await;
    assert_eq!(guests.list()[0].state, GuestState::Unknown);
    assert!(guests.held(UID).is_none());
    assert_eq!(guests.memory_in_use(), 128 << 20, "it may well live");
    assert_eq!(
        guests.start(request(1, true)).await.unwrap_err().reason(),
        "HypervisorUnresponsive"
    );
    *world.hypervisor.unresponsive.lock().unwrap() = false;
    shown(&guests, GuestState::Running).await;
    assert_eq!(world.hypervisor.launched(), 1);
}

#[tokio::test]
async fn a_record_that_is_damaged_or_newer_is_left_alone() {
    for (content, reason) in [
        ("godwit-record 2 of another time", "JournalNewer"),
        ("torn", "JournalDamaged"),
    ] {
        let world = World::new();
        world.agent().await.start(request(1, false)).await.unwrap();
        let whole = fs::read(world.record().path()).unwrap();
        fs::write(world.record().path(), format!("{content}\n")).unwrap();
        let guests = world.agent().await;
        assert_eq!(guests.list()[0].state, GuestState::Unknown);
        assert!(guests.list()[0].note.is_some());
        assert_eq!(guests.start(request(1, true)).await.unwrap_err().reason(), reason);
        assert_eq!(
            guests.stop(&identity(UID, "web"), 1).await.unwrap_err().reason(),
            reason
        );
        assert_eq!(receive(&guests, "m").await.err().unwrap().reason(), reason);
        guests.discard_incoming(UID, "m").await.unwrap_err();
        assert!(world.process().is_some(), "its process lives");
        // The record is put right, and the guest is there again.
        fs::write(world.record().path(), whole).unwrap();
        assert_eq!(world.agent().await.list()[0].state, GuestState::Running);
    }
}

#[tokio::test]
async fn left_over_directories_are_removed_unless_a_process_uses_them() {
    let world = World::new();
    drop(world.agent().await);
    let unused = world.path("run/guests").join(UID);
    fs::create_dir(&unused).unwrap();
    fs::write(unused.join("console.log"), "").unwrap();
    let used = world.path("run/guests").join(OTHER);
    fs::create_dir(&used).unwrap();
    let _process = std::os::unix::net::UnixListener::bind(used.join("qmp.sock")).unwrap();
    let guests = world.agent().await;
    assert!(!unused.exists());
    assert!(used.exists());
    // And nothing is launched into it.
    let request = StartRequest {
        identity: identity(OTHER, "other"),
        ..request(1, false)
    };
    assert_eq!(guests.start(request).await.unwrap_err().reason(), "NameTaken");
    assert!(used.join("qmp.sock").exists());
}

#[tokio::test]
async fn a_launch_that_fails_leaves_nothing() {
    let world = World::new();
    let guests = world.agent().await;
    *world.hypervisor.fail_launch.lock().unwrap() = Some(HypervisorError::Refused("no such device".into()));
    assert_eq!(
        guests.start(request(1, false)).await.unwrap_err().reason(),
        "DefinitionRefused"
    );
    world.assert_nothing_left();
    *world.taps.broken.lock().unwrap() = true;
    assert_eq!(
        guests.start(request(1, false)).await.unwrap_err().reason(),
        "FileMissing"
    );
    world.assert_nothing_left();
    *world.taps.broken.lock().unwrap() = false;
    fs::remove_file(world.path("pool/kernel")).unwrap();
    assert_eq!(
        guests.start(request(1, false)).await.unwrap_err().reason(),
        "FileMissing"
    );
    world.assert_nothing_left();
    assert!(guests.list().is_empty());
    assert_eq!(guests.memory_in_use(), 0);
    assert_eq!(world.hypervisor.launched(), 0);
}

#[tokio::test]
async fn what_the_host_lacks_is_named() {
    let world = World::new();
    let guests = world.agent().await;
    let start = |memory: &str| {
        guests.start(StartRequest {
            definition: definition(memory),
            ..request(1, false)
        })
    };
    assert_eq!(start("2Gi").await.unwrap_err().reason(), "InsufficientMemory");
    let mut less = facts();
    less.machine_types.clear();
    guests.set_facts(Some(less));
    assert_eq!(start("128Mi").await.unwrap_err().reason(), "MachineTypeMissing");
    let mut less = facts();
    less.cpu_models.clear();
    guests.set_facts(Some(less));
    assert_eq!(start("128Mi").await.unwrap_err().reason(), "CpuModelMissing");
    guests.set_facts(None);
    assert_eq!(
        start("128Mi").await.unwrap_err().reason(),
        "HypervisorUnavailable"
    );
    guests.set_facts(Some(facts()));
    start("1000Mi").await.unwrap();
    let other = StartRequest {
        identity: identity(OTHER, "other"),
        ..request(1, false)
    };
    assert_eq!(
        guests.start(other).await.unwrap_err().reason(),
        "InsufficientMemory"
    );
    let namesake = StartRequest {
        identity: identity(OTHER, "web"),
        ..request(1, false)
    };
    assert_eq!(guests.start(namesake).await.unwrap_err().reason(), "NameTaken");
}

#[tokio::test]
async fn without_a_record_nothing_is_launched() {
    let world = World::new();
    let guests = world.agent().await;
    fs::remove_dir(world.path("state/guests")).unwrap();
    let error = guests.start(request(1, false)).await.unwrap_err();
    assert_eq!(error.reason(), "DiskFull");
    assert_eq!(world.hypervisor.launched(), 0);
    assert!(guests.state_problem().is_some());
    fs::create_dir(world.path("state/guests")).unwrap();
    guests.try_state().await.unwrap();
    assert_eq!(guests.state_problem(), None);
    guests.start(request(1, false)).await.unwrap();
}

#[tokio::test]
async fn a_protected_guest_takes_orders_from_its_migration_only() {
    let world = World::new();
    let guests = world.agent().await;
    assert!(matches!(
        guests.protect(&leaving("m")).await,
        Err(GuestError::NotHere { .. })
    ));
    guests.start(request(1, false)).await.unwrap();
    *world.process().unwrap().blockers.lock().unwrap() = vec!["a device".into()];
    assert_eq!(
        guests.protect(&leaving("m")).await.err().unwrap().reason(),
        "GuestNotMigratable"
    );
    world.process().unwrap().blockers.lock().unwrap().clear();
    assert!(
        matches!(guests.protect(&arriving("m")).await, Err(GuestError::Conflict(_))),
        "this host is not its source"
    );

    let held = guests.protect(&leaving("m")).await.unwrap();
    assert_eq!(
        held.role,
        Role::Leaving {
            migration: "m".into()
        }
    );
    guests.protect(&leaving("m")).await.unwrap();
    assert!(matches!(
        guests.protect(&leaving("n")).await,
        Err(GuestError::Protected { .. })
    ));
    let other_terms = Terms {
        destination: "elsewhere".into(),
        ..leaving("m")
    };
    assert!(matches!(
        guests.protect(&other_terms).await,
        Err(GuestError::Conflict(_))
    ));
    assert_eq!(
        guests.stop(&identity(UID, "web"), 1).await.unwrap_err().reason(),
        "AnotherMigrationActive"
    );
    guests.unprotect(UID, "n").await;
    assert!(matches!(
        guests.stop(&identity(UID, "web"), 1).await,
        Err(GuestError::Protected { .. })
    ));
    assert!(matches!(
        guests.release(UID, "n").await,
        Err(GuestError::Conflict(_))
    ));
    guests.unprotect(UID, "m").await;
    assert!(
        matches!(guests.release(UID, "m").await, Err(GuestError::Conflict(_))),
        "it is no longer the migration's"
    );
    guests.stop(&identity(UID, "web"), 1).await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test]
async fn a_guest_that_has_left_is_forgotten() {
    let world = World::new();
    let guests = world.agent().await;
    guests.start(request(1, false)).await.unwrap();
    guests.protect(&leaving("m")).await.unwrap();
    guests.release(UID, "m").await.unwrap();
    world.assert_nothing_left();
    guests.release(UID, "m").await.unwrap();

    // Its process may be dead by then, and the agent another one.
    guests.start(request(1, false)).await.unwrap();
    world.process().unwrap().die();
    let guests = world.agent().await;
    assert!(guests.protect_again(&leaving("m")).await.unwrap().is_none());
    assert!(matches!(
        guests.start(request(1, true)).await,
        Err(GuestError::Protected { .. })
    ));
    guests.release(UID, "m").await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test]
async fn a_process_that_cannot_be_ended_is_not_forgotten() {
    let world = World::new();
    let guests = world.agent().await;
    guests.start(request(1, false)).await.unwrap();
    *world.process().unwrap().fail_destroy.lock().unwrap() = true;
    assert!(guests.stop(&identity(UID, "web"), 1).await.is_err());
    assert!(guests.held(UID).is_some());
    assert!(world.record().read::<GuestEntry>().unwrap().is_some());
    *world.process().unwrap().fail_destroy.lock().unwrap() = false;
    guests.stop(&identity(UID, "web"), 1).await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test]
async fn an_arriving_guest_waits_and_is_taken_over_once() {
    let world = World::new();
    let guests = world.agent().await;
    let held = receive(&guests, "m").await.unwrap();
    assert_eq!(
        held.role,
        Role::Arriving {
            migration: "m".into()
        }
    );
    receive(&guests, "m").await.unwrap();
    assert_eq!(
        *world.hypervisor.launches.lock().unwrap(),
        [(UID.to_owned(), Start::Incoming)]
    );
    assert_eq!(receive(&guests, "n").await.err().unwrap().reason(), "NameTaken");
    assert!(matches!(
        guests.start(request(1, false)).await,
        Err(GuestError::Protected { .. })
    ));
    assert!(matches!(
        guests.stop(&identity(UID, "web"), 1).await,
        Err(GuestError::Protected { .. })
    ));
    guests.discard_incoming(UID, "n").await.unwrap();
    assert!(
        world.process().is_some(),
        "another migration's copy is left alone"
    );
    assert_eq!(guests.arriving(), [arriving("m")]);

    // The agent restarts in between.
    let guests = world.agent().await;
    assert_eq!(guests.arriving(), [arriving("m")]);
    assert_eq!(
        *world.process().unwrap().resumes.lock().unwrap(),
        0,
        "this manager never lets it run"
    );
    assert!(matches!(
        guests.take_over(UID, "n", 2, None).await,
        Err(GuestError::Conflict(_))
    ));
    assert!(matches!(
        guests.take_over(UID, "m", 3, None).await,
        Err(GuestError::Conflict(_))
    ));
    guests.take_over(UID, "m", 2, Some(7)).await.unwrap();
    guests.take_over(UID, "m", 2, Some(8)).await.unwrap();
    assert!(guests.arriving().is_empty());
    assert!(
        matches!(
            guests.discard_incoming(UID, "m").await,
            Err(GuestError::Conflict(_))
        ),
        "it is never the only copy's end"
    );

    let guests = world.agent().await;
    let view = &guests.list()[0];
    assert_eq!(
        (view.epoch, view.since_micros, &view.role),
        (2, Some(7), &Role::Held)
    );
    assert!(matches!(
        guests.start(request(1, true)).await,
        Err(GuestError::StaleEpoch { .. })
    ));
}

#[tokio::test]
async fn a_discarded_guest_leaves_nothing() {
    let world = World::new();
    let guests = world.agent().await;
    receive(&guests, "m").await.unwrap();
    guests.discard_incoming(UID, "m").await.unwrap();
    world.assert_nothing_left();
    guests.discard_incoming(UID, "m").await.unwrap();
    // Its process may be dead by then.
    receive(&guests, "n").await.unwrap();
    world.process().unwrap().die();
    let guests = world.agent().await;
    assert_eq!(receive(&guests, "n").await.err().unwrap().reason(), "ProcessGone");
    assert_eq!(guests.arriving(), [arriving("n")]);
    guests.discard_incoming(UID, "n").await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test]
async fn a_guest_that_is_held_here_is_not_received() {
    let world = World::new();
    let guests = world.agent().await;
    guests.start(request(1, false)).await.unwrap();
    assert_eq!(receive(&guests, "m").await.err().unwrap().reason(), "NameTaken");
    let elsewhere = guests
        .launch_incoming(&identity(UID, "web"), &definition("128Mi"), &leaving("m"))
        .await;
    assert!(
        matches!(elsewhere, Err(GuestError::Conflict(_))),
        "this host is not its destination"
    );
    guests.discard_incoming(UID, "m").await.unwrap();
    assert!(world.process().is_some());
}

#[tokio::test]
async fn a_take_over_that_cannot_be_written_has_not_happened() {
    let world = World::new();
    let guests = world.agent().await;
    receive(&guests, "m").await.unwrap();
    let (records, aside) = (world.path("state/guests"), world.path("aside"));
    fs::rename(&records, &aside).unwrap();
    assert_eq!(
        guests.take_over(UID, "m", 2, None).await.unwrap_err().reason(),
        "DiskFull"
    );
    fs::rename(&aside, &records).unwrap();
    assert_eq!(guests.arriving(), [arriving("m")]);
    guests.take_over(UID, "m", 2, None).await.unwrap();
    assert_eq!(world.entry().epoch, 2);
}

#[test]
fn each_reason_is_in_the_table() {
    let table = include_str!("../../../docs/conditions.md");
    let damaged = crate::state::StateError::Damaged {
        path: PathBuf::new(),
        why: String::new(),
    };
    let newer = crate::state::StateError::Newer {
        path: PathBuf::new(),
        version: 2,
        known: 1,
    };
    let full = crate::state::StateError::InUse(PathBuf::new());
    let text = String::new;
    let errors = [
        GuestError::NotHere { uid: text() },
        GuestError::StaleEpoch { known: 1, given: 0 },
        GuestError::Conflict(text()),
        GuestError::Protected { migration: text() },
        GuestError::NotRunning(text()),
        GuestError::NotMigratable(text()),
        GuestError::ProcessGone {
            epoch: 1,
            why: text(),
        },
        GuestError::HostRebooted { epoch: 1 },
        GuestError::NameTaken(text()),
        GuestError::DefinitionRefused(text()),
        GuestError::FileMissing(text()),
        GuestError::InsufficientMemory {
            needed_mebibytes: 1,
            free_mebibytes: 0,
        },
        GuestError::MachineTypeMissing(text()),
        GuestError::CpuModelMissing(text()),
        GuestError::HypervisorUnavailable(text()),
        GuestError::HypervisorSilent(text()),
        GuestError::Hypervisor(HypervisorError::Died),
        GuestError::Hypervisor(HypervisorError::Protocol(text())),
        GuestError::Hypervisor(HypervisorError::Refused(text())),
        GuestError::RecordUnreadable(Arc::new(damaged)),
        GuestError::RecordUnreadable(Arc::new(newer)),
        GuestError::StateUnwritable(full),
        GuestError::System {
            action: text(),
            source: std::io::Error::other(""),
        },
    ];
    for error in errors {
        assert!(
            table.contains(&format!("| `{}` |", error.reason())),
            "{}",
            error.reason()
        );
    }
}

/// What the migrations' journals say, as a test wants it.
struct Said(Mutex<Spoken>);

impl Said {
    fn nothing() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Spoken::Nothing)))
    }

    fn say(&self, spoken: Spoken) {
        *self.0.lock().unwrap() = spoken;
    }
}

impl Journals for Said {
    fn speak_of(&self, _guest: &str) -> Spoken {
        self.0.lock().unwrap().clone()
    }
}

fn transient(epoch: u64, again: bool) -> StartRequest {
    let mut spec: serde_json::Value = serde_json::from_slice(definition("128Mi").json()).unwrap();
    spec["persistence"] = "Transient".into();
    StartRequest {
        definition: Definition::parse(&serde_json::to_vec(&spec).unwrap()).unwrap(),
        ..request(epoch, again)
    }
}

impl World {
    /// A manager that knows what the journals say.
    async fn settled(&self) -> Guests {
        let guests = self.agent().await;
        guests.settle(Said::nothing());
        guests
    }

    /// Waits until only the note is left of the guest, and gives it.
    async fn forgotten(&self, guests: &Guests) -> GuestEntry {
        let mut changes = guests.changes();
        let wait = async {
            loop {
                if let Some(entry) = self.record().read::<GuestEntry>().unwrap()
                    && entry.is_forgotten()
                {
                    return entry;
                }
                // The note is written before the change is told.
                changes.changed().await.unwrap();
            }
        };
        let entry = tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap();
        assert!(self.process().is_none(), "a process is left");
        assert!(!self.path("run/guests").join(UID).exists(), "a directory is left");
        assert!(
            self.taps.there.lock().unwrap().is_empty(),
            "a network device is left"
        );
        assert_eq!((guests.memory_in_use(), guests.cpus_in_use()), (0, 0));
        entry
    }

    fn power_off(&self) {
        let process = self.process().unwrap();
        process.set(RunState::ShutDown);
        process.emit(GuestEventKind::ShutDown);
    }
}

#[tokio::test]
async fn a_transient_guest_that_powers_off_is_forgotten_and_not_started_twice() {
    let world = World::new();
    let guests = world.settled().await;
    guests.start(transient(2, false)).await.unwrap();
    world.power_off();
    let note = world.forgotten(&guests).await;
    assert_eq!((note.epoch, note.definition.as_str()), (2, ""));
    shown(&guests, GuestState::ShutOff).await;

    // Neither before nor after a restart of the agent does an order under the same epoch start it.
    for guests in [guests, world.settled().await] {
        let error = guests.start(transient(2, false)).await.unwrap_err();
        assert!(matches!(&error, GuestError::ProcessGone { epoch: 2, why } if why.contains("transient")));
        assert!(matches!(
            guests.start(transient(1, true)).await,
            Err(GuestError::StaleEpoch { known: 2, given: 1 })
        ));
        assert!(matches!(
            guests
                .launch_incoming(&identity(UID, "web"), &definition("128Mi"), &arriving("m"))
                .await,
            Err(GuestError::StaleEpoch { known: 2, given: 1 })
        ));
        assert!(matches!(
            guests
                .protect(&Terms {
                    epoch: 2,
                    ..leaving("m")
                })
                .await,
            Err(GuestError::NotHere { .. })
        ));
        assert_eq!(guests.list()[0].state, GuestState::ShutOff);
        assert!(matches!(
            guests.stop(&identity(UID, "web"), 1).await,
            Err(GuestError::StaleEpoch { .. })
        ));
    }
    assert_eq!(world.hypervisor.launched(), 1);

    let guests = world.settled().await;
    guests.stop(&identity(UID, "web"), 2).await.unwrap();
    world.assert_nothing_left();
    assert!(guests.list().is_empty());
}

#[tokio::test]
async fn a_transient_guest_whose_process_dies_is_forgotten_and_a_later_epoch_starts_it() {
    let world = World::new();
    let guests = world.settled().await;
    guests.start(transient(1, false)).await.unwrap();
    world.process().unwrap().die();
    world.forgotten(&guests).await;
    shown(&guests, GuestState::Crashed).await;
    assert!(guests.start(transient(1, false)).await.is_err());
    assert_eq!(
        guests.start(transient(2, false)).await.unwrap().state,
        GuestState::Running
    );
    world.power_off();
    world.forgotten(&guests).await;
    assert_eq!(
        guests.start(transient(2, true)).await.unwrap().state,
        GuestState::Running
    );
}

#[tokio::test]
async fn a_persistent_guest_stays_however_it_ends_and_so_does_a_panicked_one() {
    let world = World::new();
    let guests = world.settled().await;
    guests.start(request(1, false)).await.unwrap();
    world.power_off();
    shown(&guests, GuestState::ShutOff).await;
    world.process().unwrap().die();
    // Whatever would be done about its end is done when the next order has had its turn.
    assert!(guests.start(request(1, false)).await.is_err());
    assert!(!world.entry().definition.is_empty());
    let guests = world.settled().await;
    assert_eq!(guests.list()[0].state, GuestState::Crashed);
    assert!(!world.entry().definition.is_empty());
    guests.stop(&identity(UID, "web"), 1).await.unwrap();

    guests.start(transient(1, false)).await.unwrap();
    let process = world.process().unwrap();
    process.set(RunState::Panicked);
    process.emit(GuestEventKind::Panicked);
    shown(&guests, GuestState::Crashed).await;
    guests
        .inner
        .consider_ended(&guests.inner.lock(UID).await.slot.clone());
    assert_eq!(
        guests.start(transient(1, false)).await.unwrap().state,
        GuestState::Crashed
    );
    assert!(world.process().is_some());
}

#[tokio::test]
async fn a_migration_keeps_a_transient_guest_that_has_ended() {
    let world = World::new();
    let guests = world.agent().await;
    let said = Said::nothing();
    guests.settle(said.clone());
    guests.start(transient(1, false)).await.unwrap();
    guests.protect(&leaving("m")).await.unwrap();
    world.power_off();
    shown(&guests, GuestState::ShutOff).await;
    assert!(guests.held(UID).is_some());

    // The protection is not on disk: after a restart nothing is forgotten before the journals are known.
    let restarted = world.agent().await;
    shown(&restarted, GuestState::ShutOff).await;
    restarted.protect_again(&leaving("m")).await.unwrap().unwrap();
    restarted.settle(Said::nothing());
    assert!(matches!(
        restarted.stop(&identity(UID, "web"), 1).await,
        Err(GuestError::Protected { .. })
    ));
    assert!(world.process().is_some());

    // Neither is one whose migration has let go of it and has not ended.
    said.say(Spoken::Unended);
    guests.unprotect(UID, "m").await;
    assert!(matches!(
        guests.inner.forget_ended(UID).await,
        super::retire::Attempt::Again
    ));
    assert!(world.process().is_some());
    said.say(Spoken::Nothing);
    world.forgotten(&guests).await;
}

#[tokio::test]
async fn a_guest_of_which_an_unread_journal_speaks_is_left_alone() {
    let world = World::new();
    let guests = world.agent().await;
    let said = Said::nothing();
    guests.settle(said.clone());
    guests.start(transient(1, false)).await.unwrap();
    said.say(Spoken::Unread {
        newer: true,
        message: "Journal m was written by a newer version".into(),
    });
    let error = guests.stop(&identity(UID, "web"), 1).await.unwrap_err();
    assert_eq!(error.reason(), "JournalNewer");
    assert_eq!(
        guests.start(transient(1, false)).await.unwrap_err().reason(),
        "JournalNewer"
    );
    world.power_off();
    shown(&guests, GuestState::ShutOff).await;
    assert!(matches!(
        guests.inner.forget_ended(UID).await,
        super::retire::Attempt::Again
    ));
    assert!(world.process().is_some());
    said.say(Spoken::Nothing);
    guests.stop(&identity(UID, "web"), 1).await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test]
async fn an_end_that_was_noted_before_a_crash_of_the_agent_is_brought_to_its_end() {
    // Noted, and the process still waits.
    let world = World::new();
    let guests = world.agent().await;
    guests.start(transient(1, false)).await.unwrap();
    world.power_off();
    let note = |entry: &mut GuestEntry| {
        let Standing::Held {
            process,
            since_micros,
            ..
        } = entry.standing.clone()
        else {
            panic!("{entry:?}")
        };
        entry.standing = Standing::Ended {
            process: Some(process),
            since_micros,
            ending: super::record::Ending::PoweredOff,
            why: "it powered itself off".into(),
        };
    };
    world.rewrite(note);
    let guests = world.settled().await;
    world.forgotten(&guests).await;
    assert_eq!(guests.list()[0].state, GuestState::ShutOff);

    // Noted, and the process is gone already.
    let world = World::new();
    world.agent().await.start(transient(1, false)).await.unwrap();
    world.rewrite(note);
    world.process().unwrap().die();
    let guests = world.settled().await;
    world.forgotten(&guests).await;
    assert_eq!(guests.list()[0].state, GuestState::ShutOff, "as it was noted");
    assert!(guests.start(transient(1, false)).await.is_err());

    // A process that cannot be ended is ended later.
    let world = World::new();
    let guests = world.settled().await;
    guests.start(transient(1, false)).await.unwrap();
    let process = world.process().unwrap();
    *process.fail_destroy.lock().unwrap() = true;
    world.power_off();
    assert!(matches!(
        guests.inner.forget_ended(UID).await,
        super::retire::Attempt::Again
    ));
    assert!(world.process().is_some());
    *process.fail_destroy.lock().unwrap() = false;
    world.forgotten(&guests).await;
}

/// The guest's record, as a test wants it; `None`: it cannot be read.
struct Written(Mutex<Option<RecordView>>);

#[async_trait]
impl Records for Written {
    async fn read(&self, _guest: &str) -> Option<RecordView> {
        self.0.lock().unwrap().clone()
    }
}

fn written(holder: &str, epoch: u64, migration: Option<&str>, decision: Decision) -> RecordView {
    RecordView {
        holder: holder.into(),
        epoch,
        migration: migration.map(Into::into),
        decision,
    }
}

#[tokio::test]
async fn an_old_order_does_not_start_a_guest_that_has_left() {
    let world = World::new();
    let guests = world.agent().await;
    let record = Arc::new(Written(Mutex::new(Some(written(
        "here",
        1,
        None,
        Decision::None,
    )))));
    guests.obey(record.clone());
    let write = |view| *record.0.lock().unwrap() = view;
    guests.start(request(1, false)).await.unwrap();
    guests.protect(&leaving("m")).await.unwrap();
    write(Some(written("there", 2, Some("m"), Decision::Committed)));
    guests.release(UID, "m").await.unwrap();
    world.assert_nothing_left();

    // Whoever gave this order had read the record before the guest was first started.
    assert_eq!(
        guests.start(request(1, false)).await.unwrap_err().reason(),
        "StaleEpoch"
    );
    world.assert_nothing_left();
    for unsaid in [
        None,
        Some(written("there", 1, None, Decision::None)),
        Some(written("here", 1, Some("m"), Decision::None)),
    ] {
        write(unsaid);
        guests.start(request(1, true)).await.unwrap_err();
        world.assert_nothing_left();
    }
    write(Some(written("here", 1, Some("m"), Decision::Aborted)));
    guests.start(request(1, false)).await.unwrap();
}
