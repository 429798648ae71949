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
use crate::migration::{Recorded, Records};
use crate::pools::Pools;
use crate::state::RecordFile;
use crate::taps::{TapError, Taps};

mod ended;
mod migrating;
mod records;
mod restarts;
mod starts;
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
        strict: false,
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
