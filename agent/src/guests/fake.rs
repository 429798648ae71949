//! A hypervisor that exists in memory only, with faults on demand. Its processes outlive the manager, as real ones
//! outlive the agent.

use std::collections::HashMap;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use godwit_handover::Gates;
use tokio::sync::broadcast;

use super::process::boot_id;
use crate::hypervisor::*;

/// Pids that no kernel gives out.
const FIRST_PID: u32 = 5_000_000;

pub fn facts() -> HypervisorFacts {
    HypervisorFacts {
        name: "fake".into(),
        version: "1.0".into(),
        accelerator: "none".into(),
        machine_types: vec!["pc-q35-10.0".into()],
        cpu_models: vec!["qemu64".into()],
        gates: Gates {
            seal: true,
            hold_before_switchover: true,
            keep_destination_paused: true,
            inactivate_disks: true,
        },
        streams: StreamAbilities {
            encrypts: true,
            connections: 1,
            several_encrypted: false,
        },
        walls_missing: Vec::new(),
    }
}

#[derive(Default)]
pub struct FakeHypervisor {
    guests: Mutex<HashMap<String, Arc<FakeGuest>>>,
    pub launches: Mutex<Vec<(String, Start)>>,
    /// The next launch fails so.
    pub fail_launch: Mutex<Option<HypervisorError>>,
    /// Processes that do not answer while this is set.
    pub unresponsive: Mutex<bool>,
}

pub struct FakeGuest {
    process: ProcessRecord,
    directory: PathBuf,
    events: broadcast::Sender<GuestEvent>,
    pub state: Mutex<Option<RunState>>,
    pub blockers: Mutex<Vec<String>>,
    pub resumes: Mutex<u32>,
    pub fail_destroy: Mutex<bool>,
    _monitor: Mutex<Option<UnixListener>>,
}

impl FakeHypervisor {
    /// The process of this guest, if it lives.
    pub fn process_of(&self, uid: &str) -> Option<Arc<FakeGuest>> {
        self.guests
            .lock()
            .unwrap()
            .get(uid)
            .filter(|guest| guest.state.lock().unwrap().is_some())
            .cloned()
    }

    pub fn launched(&self) -> usize {
        self.launches.lock().unwrap().len()
    }
}

impl FakeGuest {
    pub fn emit(&self, kind: GuestEventKind) {
        let _ = self.events.send(GuestEvent { at_micros: 1, kind });
    }

    /// The process ends by itself.
    pub fn die(&self) {
        *self.state.lock().unwrap() = None;
        *self._monitor.lock().unwrap() = None;
        self.emit(GuestEventKind::Died);
    }

    pub fn set(&self, state: RunState) {
        *self.state.lock().unwrap() = Some(state);
    }
}

#[async_trait]
impl Hypervisor for FakeHypervisor {
    async fn probe(&self) -> Result<HypervisorFacts, HypervisorError> {
        Ok(facts())
    }

    async fn launch(&self, launch: Launch) -> Result<Arc<dyn Guest>, HypervisorError> {
        if let Some(error) = self.fail_launch.lock().unwrap().take() {
            return Err(error);
        }
        let mut launches = self.launches.lock().unwrap();
        launches.push((launch.uid.clone(), launch.start));
        let monitor = UnixListener::bind(launch.directory.join("qmp.sock")).unwrap();
        let pid = FIRST_PID + u32::try_from(launches.len()).unwrap();
        let guest = Arc::new(FakeGuest {
            process: ProcessRecord {
                pid,
                start_time: 1,
                boot_id: boot_id().unwrap(),
            },
            directory: launch.directory,
            events: broadcast::Sender::new(16),
            state: Mutex::new(Some(match launch.start {
                Start::Boot => RunState::Paused,
                Start::Incoming => RunState::Incoming,
            })),
            blockers: Mutex::new(vec![]),
            resumes: Mutex::new(0),
            fail_destroy: Mutex::new(false),
            _monitor: Mutex::new(Some(monitor)),
        });
        self.guests.lock().unwrap().insert(launch.uid, guest.clone());
        Ok(guest)
    }

    async fn adopt(
        &self,
        uid: &str,
        _directory: &Path,
        process: &ProcessRecord,
    ) -> Result<Adoption, HypervisorError> {
        if process.boot_id != boot_id().unwrap() {
            return Ok(Adoption::Gone);
        }
        // The monitors of these processes are held by the test's own.
        let found = self
            .process_of(uid)
            .filter(|guest| guest.process == *process || process.pid == std::process::id());
        Ok(match found {
            Some(_) if *self.unresponsive.lock().unwrap() => Adoption::Unresponsive("it hangs".into()),
            Some(guest) => Adoption::Alive(guest),
            None => Adoption::Gone,
        })
    }
}

#[async_trait]
impl Guest for FakeGuest {
    fn process(&self) -> ProcessRecord {
        self.process.clone()
    }

    fn directory(&self) -> &Path {
        &self.directory
    }

    fn subscribe(&self) -> broadcast::Receiver<GuestEvent> {
        self.events.subscribe()
    }

    fn has_ended(&self) -> bool {
        self.state.lock().unwrap().is_none()
    }

    async fn run_state(&self) -> Result<RunState, HypervisorError> {
        self.state.lock().unwrap().ok_or(HypervisorError::Died)
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        self.set(RunState::Paused);
        self.emit(GuestEventKind::Stopped);
        Ok(())
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        *self.resumes.lock().unwrap() += 1;
        self.set(RunState::Running);
        self.emit(GuestEventKind::Resumed);
        Ok(())
    }

    async fn destroy(&self, _deadline: Duration) -> Result<(), HypervisorError> {
        if *self.fail_destroy.lock().unwrap() {
            return Err(HypervisorError::Protocol("it cannot be ended".into()));
        }
        self.die();
        Ok(())
    }

    async fn migration_blockers(&self) -> Result<Vec<String>, HypervisorError> {
        Ok(self.blockers.lock().unwrap().clone())
    }

    async fn send(&self, _stream: Stream, _limits: StreamLimits) -> Result<(), HypervisorError> {
        Ok(())
    }

    async fn receive(&self, _stream: Stream) -> Result<(), HypervisorError> {
        Ok(())
    }

    async fn stream(&self) -> Result<StreamStatus, HypervisorError> {
        Ok(StreamStatus {
            state: StreamState::None,
            error: None,
            figures: None,
        })
    }

    async fn set_limits(&self, _limits: StreamLimits) -> Result<(), HypervisorError> {
        Ok(())
    }

    async fn switch_over(&self) -> Result<(), HypervisorError> {
        Ok(())
    }

    async fn cancel_stream(&self) -> Result<(), HypervisorError> {
        Ok(())
    }

    async fn set_disks_active(&self, _active: bool) -> Result<(), HypervisorError> {
        Ok(())
    }

    async fn resident_bytes(&self) -> Result<u64, HypervisorError> {
        Ok(0)
    }
}
