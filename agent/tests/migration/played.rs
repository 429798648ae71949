//! Guests that are played: a process with virtual CPUs, disks and a stream, as a hypervisor shows them, whose
//! stream travels over the real channel. Who runs when is written down, and two at once is a violation.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use godwit_agent::guests::{Definition, GuestError, GuestIdentity, Held, Role};
use godwit_agent::hypervisor::{
    Guest, GuestEvent, GuestEventKind, HypervisorError, ProcessRecord, RunState, Stream, StreamAbilities,
    StreamFigures, StreamLimits, StreamState, StreamStatus, Way,
};
use godwit_agent::migration::Custody;
use godwit_handover::{Gates, Terms};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, broadcast};

/// Every feature that QEMU has.
const GATES: Gates = Gates {
    seal: true,
    hold_before_switchover: true,
    keep_destination_paused: true,
    inactivate_disks: true,
};

/// Where all of one guest's copies run, and what was done wrong.
#[derive(Default)]
pub struct Arena {
    state: Mutex<ArenaState>,
}

#[derive(Default)]
struct ArenaState {
    running: Vec<String>,
    violations: Vec<String>,
    ran_at_destination: bool,
    /// Who holds the disks' locks.
    disks: Option<String>,
}

impl Arena {
    fn started(&self, host: &str, arrived: bool) {
        let mut state = self.state.lock().unwrap();
        if !state.running.is_empty() {
            let words = format!("{host} runs beside {:?}", state.running);
            state.violations.push(words);
        }
        if !arrived && state.ran_at_destination {
            state
                .violations
                .push(format!("{host} runs after the destination has run"));
        }
        state.ran_at_destination |= arrived;
        state.running.push(host.to_owned());
    }

    fn stopped(&self, host: &str) {
        self.state.lock().unwrap().running.retain(|h| h != host);
    }

    pub fn running(&self) -> Vec<String> {
        self.state.lock().unwrap().running.clone()
    }

    pub fn violations(&self) -> Vec<String> {
        self.state.lock().unwrap().violations.clone()
    }

    fn lock_disks(&self, host: &str) -> bool {
        let mut state = self.state.lock().unwrap();
        match &state.disks {
            Some(other) if other != host => false,
            Some(_) | None => {
                state.disks = Some(host.to_owned());
                true
            }
        }
    }

    fn unlock_disks(&self, host: &str) {
        let mut state = self.state.lock().unwrap();
        if state.disks.as_deref() == Some(host) {
            state.disks = None;
        }
    }
}

/// What a played guest is told to do wrong, or otherwise than usual.
#[derive(Default)]
pub struct Script {
    /// Converges by itself and so reaches the switchover unsealed.
    pub converges_by_itself: AtomicBool,
    /// The same, where nothing limits its stream.
    pub converges_unlimited: AtomicBool,
    /// The source's stream breaks after the switchover was ordered and the last byte was sent.
    pub fails_late: AtomicBool,
    /// The destination's stream breaks before the guest is loaded.
    pub destination_fails: AtomicBool,
    /// Never converges until this is cleared.
    pub keeps_dirtying: AtomicBool,
    /// How often letting the guest run is refused at the destination.
    pub resume_refusals: AtomicUsize,
    /// So many orders to switch over get lost on their way.
    pub lost_switchovers: AtomicUsize,
    /// The agent of the host is killed when its guests have been asked this often; 0 never.
    pub crash_at_call: AtomicUsize,
    /// That is so now.
    pub crash: Notify,
    /// Every event is swallowed: only looks tell.
    pub mute: AtomicBool,
    /// So is the end of the process: nobody has looked at its pidfd yet.
    pub dies_unseen: AtomicBool,
}

pub struct Played {
    host: String,
    arrived: bool,
    arena: Arc<Arena>,
    script: Arc<Script>,
    calls: Arc<AtomicUsize>,
    events: broadcast::Sender<GuestEvent>,
    state: Mutex<State>,
    go_on: Notify,
    ended: Notify,
}

struct State {
    alive: bool,
    run: RunState,
    stream: StreamState,
    error: Option<String>,
    limits: StreamLimits,
    iteration: u64,
    /// Whether the guest ran when the hypervisor stopped it for the end of the stream.
    ran: bool,
    cancelled: bool,
}

fn now() -> i64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    i64::try_from(since.as_micros()).unwrap()
}

impl Played {
    pub fn new(
        host: &str,
        arrived: bool,
        arena: &Arc<Arena>,
        script: &Arc<Script>,
        calls: &Arc<AtomicUsize>,
    ) -> Arc<Self> {
        let state = State {
            alive: true,
            run: if arrived {
                RunState::Incoming
            } else {
                RunState::Paused
            },
            stream: StreamState::None,
            error: None,
            limits: StreamLimits {
                bandwidth: 1,
                downtime: Duration::from_millis(300),
            },
            iteration: 0,
            ran: false,
            cancelled: false,
        };
        Arc::new(Self {
            host: host.into(),
            arrived,
            arena: arena.clone(),
            script: script.clone(),
            calls: calls.clone(),
            events: broadcast::Sender::new(256),
            state: Mutex::new(state),
            go_on: Notify::new(),
            ended: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn tell(&self, kind: GuestEventKind) {
        if !self.script.mute.load(Ordering::Relaxed) {
            let _ = self.events.send(GuestEvent {
                at_micros: now(),
                kind,
            });
        }
    }

    fn set_stream(&self, state: &mut State, stream: StreamState) {
        state.stream = stream;
        self.tell(GuestEventKind::Stream(stream));
    }

    fn set_run(&self, state: &mut State, run: RunState) {
        if (state.run == RunState::Running) != (run == RunState::Running) {
            if run == RunState::Running {
                self.arena.started(&self.host, self.arrived);
                self.tell(GuestEventKind::Resumed);
            } else {
                self.arena.stopped(&self.host);
                self.tell(GuestEventKind::Stopped);
            }
        }
        state.run = run;
    }

    /// A request that the test counts.
    fn called(&self) -> Result<MutexGuard<'_, State>, HypervisorError> {
        let count = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        if count == self.script.crash_at_call.load(Ordering::SeqCst) {
            self.script.crash.notify_one();
        }
        let state = self.state();
        if state.alive {
            Ok(state)
        } else {
            Err(HypervisorError::Died)
        }
    }

    /// The process is killed from outside.
    pub fn kill(&self) {
        let mut state = self.state();
        if std::mem::replace(&mut state.alive, false) {
            if state.run == RunState::Running {
                self.arena.stopped(&self.host);
            }
            state.run = RunState::Broken;
            self.arena.unlock_disks(&self.host);
            // The process's end is seen by its pidfd, whatever else is lost.
            if !self.script.dies_unseen.load(Ordering::Relaxed) {
                let _ = self.events.send(GuestEvent {
                    at_micros: now(),
                    kind: GuestEventKind::Died,
                });
            }
            self.ended.notify_waiters();
        }
    }

    /// How fast its stream may be, in bytes per second, and how many passes it has made.
    pub fn pace(&self) -> (u64, u64) {
        let state = self.state();
        (state.limits.bandwidth, state.iteration)
    }

    /// An error of its disk stops the guest. Unlike one that has powered off it goes on where it is told to.
    pub fn meets_disk_error(&self) {
        let mut state = self.state();
        self.set_run(&mut state, RunState::IoError);
        self.tell(GuestEventKind::IoError { disk: "root".into() });
    }

    /// The guest powers itself off.
    pub fn power_off(&self) {
        let mut state = self.state();
        self.set_run(&mut state, RunState::ShutDown);
        self.tell(GuestEventKind::ShutDown);
    }

    /// Somebody stops or starts the guest by hand.
    pub fn by_hand(&self, run: bool) {
        let mut state = self.state();
        self.set_run(&mut state, if run { RunState::Running } else { RunState::Paused });
    }

    pub fn run_state_now(&self) -> RunState {
        self.state().run
    }

    fn fail(&self, words: &str) {
        let mut state = self.state();
        if !state.alive || state.cancelled {
            return;
        }
        state.error = Some(words.into());
        self.set_stream(&mut state, StreamState::Failed);
        if self.arrived {
            return;
        }
        // A failed hypervisor takes the image locks back, and lets a guest run that ran.
        self.arena.lock_disks(&self.host);
        if state.run == RunState::StoppedForMigration {
            let back = if state.ran {
                RunState::Running
            } else {
                RunState::Paused
            };
            self.set_run(&mut state, back);
        }
    }

    async fn pump(self: Arc<Self>, mut socket: TcpStream) {
        let work = async {
            let mut byte = [0];
            // Memory travels.
            loop {
                tokio::select! {
                    _ = socket.read(&mut byte) => return Err("the peer is gone"),
                    () = tokio::time::sleep(Duration::from_millis(3)) => {}
                }
                let mut state = self.state();
                if state.stream != StreamState::Active {
                    return Ok(());
                }
                state.iteration += 1;
                self.tell(GuestEventKind::DirtyPagesCollected {
                    iteration: state.iteration,
                });
                let script = &self.script;
                let itself = script.converges_by_itself.load(Ordering::Relaxed)
                    || (script.converges_unlimited.load(Ordering::Relaxed) && state.limits.bandwidth == 0);
                if (itself && state.iteration > 4) || state.limits.downtime > Duration::from_secs(1) {
                    state.ran = state.run == RunState::Running;
                    if matches!(state.run, RunState::Running | RunState::Paused) {
                        self.set_run(&mut state, RunState::StoppedForMigration);
                    }
                    self.set_stream(&mut state, StreamState::BeforeSwitchover);
                    break;
                }
            }
            tokio::select! {
                _ = socket.read(&mut byte) => return Err("the peer is gone"),
                () = self.go_on.notified() => {}
            }
            self.arena.unlock_disks(&self.host);
            socket
                .write_all(b"LOADED")
                .await
                .map_err(|_| "the peer is gone")?;
            if self.script.fails_late.load(Ordering::Relaxed) {
                // What was sent arrives; the answer does not.
                return Err("the answer was lost");
            }
            match socket.read(&mut byte).await {
                Ok(1) => {
                    let mut state = self.state();
                    self.set_stream(&mut state, StreamState::Completed);
                    Ok(())
                }
                Ok(_) | Err(_) => Err("the peer is gone"),
            }
        };
        tokio::select! {
            outcome = work => if let Err(words) = outcome { self.fail(words) },
            () = self.ended.notified() => {}
        }
    }

    async fn take(self: Arc<Self>, mut socket: TcpStream) {
        let work = async {
            let mut all = [0; 6];
            if socket.read_exact(&mut all).await.is_err()
                || self.script.destination_fails.load(Ordering::Relaxed)
            {
                self.fail("the stream broke");
                return;
            }
            {
                let mut state = self.state();
                self.set_run(&mut state, RunState::Paused);
                self.set_stream(&mut state, StreamState::Completed);
            }
            let _ = socket.write_all(&[1]).await;
        };
        tokio::select! {
            () = work => {}
            () = self.ended.notified() => {}
        }
    }
}

fn socket_of(stream: Stream) -> TcpStream {
    let Way::Socket(socket) = stream.way else {
        panic!("a played guest makes no connections")
    };
    let stream = std::net::TcpStream::from(socket);
    stream.set_nonblocking(true).unwrap();
    TcpStream::from_std(stream).unwrap()
}

fn refused(command: &str) -> HypervisorError {
    HypervisorError::Command {
        command: command.into(),
        message: "the script says so".into(),
    }
}

/// The part of a played guest that a pump of its own can share.
pub struct Handle(pub Arc<Played>);

#[async_trait]
impl Guest for Handle {
    fn process(&self) -> ProcessRecord {
        ProcessRecord {
            pid: 1,
            start_time: 1,
            boot_id: "boot".into(),
        }
    }

    fn directory(&self) -> &Path {
        Path::new("/nowhere")
    }

    fn subscribe(&self) -> broadcast::Receiver<GuestEvent> {
        self.0.events.subscribe()
    }

    fn has_ended(&self) -> bool {
        !self.0.state().alive
    }

    async fn run_state(&self) -> Result<RunState, HypervisorError> {
        Ok(self.0.called()?.run)
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        let mut state = self.0.called()?;
        if state.run == RunState::Running {
            self.0.set_run(&mut state, RunState::Paused);
        }
        Ok(())
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        let mut state = self.0.called()?;
        if self.0.arrived
            && self
                .0
                .script
                .resume_refusals
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                .is_ok()
        {
            return Err(refused("cont"));
        }
        if matches!(state.run, RunState::ShutDown | RunState::Incoming)
            || !self.0.arena.lock_disks(&self.0.host)
        {
            return Err(refused("cont"));
        }
        self.0.set_run(&mut state, RunState::Running);
        Ok(())
    }

    async fn destroy(&self, _deadline: Duration) -> Result<(), HypervisorError> {
        self.0.kill();
        Ok(())
    }

    async fn migration_blockers(&self) -> Result<Vec<String>, HypervisorError> {
        Ok(vec![])
    }

    async fn send(&self, stream: Stream, limits: StreamLimits) -> Result<(), HypervisorError> {
        let socket = socket_of(stream);
        {
            let mut state = self.0.called()?;
            state.limits = limits;
            state.error = None;
            state.cancelled = false;
            state.iteration = 0;
            self.0.set_stream(&mut state, StreamState::Setup);
            self.0.set_stream(&mut state, StreamState::Active);
        }
        tokio::spawn(self.0.clone().pump(socket));
        Ok(())
    }

    async fn receive(&self, stream: Stream) -> Result<(), HypervisorError> {
        let socket = socket_of(stream);
        {
            let mut state = self.0.called()?;
            self.0.set_stream(&mut state, StreamState::Active);
        }
        tokio::spawn(self.0.clone().take(socket));
        Ok(())
    }

    async fn stream(&self) -> Result<StreamStatus, HypervisorError> {
        let state = self.0.called()?;
        let script = &self.0.script;
        let dirtying = [
            &script.keeps_dirtying,
            &script.converges_by_itself,
            &script.converges_unlimited,
        ]
        .into_iter()
        .any(|told| told.load(Ordering::Relaxed));
        let figures = StreamFigures {
            total_bytes: 1 << 30,
            transferred_bytes: state.iteration << 20,
            remaining_bytes: if dirtying { 1 << 30 } else { 1 << 10 },
            bytes_per_second: 1 << 30,
            iteration: state.iteration,
            downtime_millis: (state.stream == StreamState::Completed).then_some(3),
            ..StreamFigures::default()
        };
        let figures = (state.stream != StreamState::None && !self.0.arrived).then_some(figures);
        Ok(StreamStatus {
            state: state.stream,
            error: state.error.clone(),
            figures,
        })
    }

    async fn set_limits(&self, limits: StreamLimits) -> Result<(), HypervisorError> {
        self.0.called()?.limits = limits;
        Ok(())
    }

    async fn switch_over(&self) -> Result<(), HypervisorError> {
        let mut state = self.0.called()?;
        let lost = self
            .0
            .script
            .lost_switchovers
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if lost.is_ok() {
            return Err(HypervisorError::Deadline {
                command: "migrate-continue".into(),
                deadline: Duration::from_secs(5),
            });
        }
        if state.stream != StreamState::BeforeSwitchover {
            return Err(refused("migrate-continue"));
        }
        self.0.set_stream(&mut state, StreamState::SwitchingOver);
        self.0.go_on.notify_one();
        Ok(())
    }

    async fn cancel_stream(&self) -> Result<(), HypervisorError> {
        let mut state = self.0.called()?;
        match state.stream {
            StreamState::None | StreamState::Completed | StreamState::Failed | StreamState::Cancelled => {}
            StreamState::Setup
            | StreamState::Active
            | StreamState::BeforeSwitchover
            | StreamState::SwitchingOver
            | StreamState::Cancelling => {
                state.cancelled = true;
                self.0.set_stream(&mut state, StreamState::Cancelled);
                if state.run == RunState::StoppedForMigration {
                    let back = if state.ran {
                        RunState::Running
                    } else {
                        RunState::Paused
                    };
                    self.0.set_run(&mut state, back);
                }
                self.0.ended.notify_waiters();
            }
        }
        Ok(())
    }

    async fn set_disks_active(&self, active: bool) -> Result<(), HypervisorError> {
        let _state = self.0.called()?;
        if active && !self.0.arena.lock_disks(&self.0.host) {
            return Err(refused("blockdev-set-active"));
        }
        if !active {
            self.0.arena.unlock_disks(&self.0.host);
        }
        Ok(())
    }

    async fn resident_bytes(&self) -> Result<u64, HypervisorError> {
        Ok(0)
    }
}

/// What a host keeps about its guests over a restart of its agent.
#[derive(Clone)]
pub struct Kept {
    pub role: Role,
    pub epoch: u64,
    pub guest: Arc<Played>,
}

/// A host's guests. They outlive the agent; `protected` does not.
pub struct PlayedCustody {
    pub host: String,
    pub arena: Arc<Arena>,
    pub script: Arc<Script>,
    pub calls: Arc<AtomicUsize>,
    pub kept: Arc<Mutex<HashMap<String, Kept>>>,
    pub refuse_launch: Mutex<Option<GuestError>>,
}

impl PlayedCustody {
    fn held(&self, guest: &str) -> Option<Held> {
        let kept = self.kept.lock().unwrap().get(guest).cloned()?;
        let alive = kept.guest.state().alive;
        alive.then(|| Held {
            identity: GuestIdentity {
                uid: guest.into(),
                namespace: "default".into(),
                name: "g".into(),
            },
            definition: definition(),
            epoch: kept.epoch,
            guest: Arc::new(Handle(kept.guest.clone())),
            directory: "/nowhere".into(),
            role: kept.role,
        })
    }
}

pub fn definition() -> Definition {
    let all = serde_json::json!({
        "machine": {"type": "pc-q35-10.0"},
        "cpu": {"count": 1, "model": "qemu64"},
        "memory": "64Mi",
        "boot": {"firmware": {}},
        "persistence": "Transient"
    });
    Definition::parse(&serde_json::to_vec(&all).unwrap()).unwrap()
}

#[async_trait]
impl Custody for PlayedCustody {
    fn gates(&self) -> Option<Gates> {
        Some(GATES)
    }

    fn streams(&self) -> Option<StreamAbilities> {
        Some(StreamAbilities {
            encrypts: true,
            connections: 1,
            several_encrypted: false,
        })
    }

    async fn protect(&self, terms: &Terms) -> Result<Held, GuestError> {
        let mut held = self.held(&terms.guest).ok_or_else(|| GuestError::NotHere {
            uid: terms.guest.clone(),
        })?;
        if held.epoch != terms.epoch {
            return Err(GuestError::StaleEpoch {
                known: held.epoch,
                given: terms.epoch,
            });
        }
        held.role = Role::Leaving {
            migration: terms.migration.clone(),
        };
        self.kept.lock().unwrap().get_mut(&terms.guest).unwrap().role = held.role.clone();
        Ok(held)
    }

    async fn find_leaving(&self, terms: &Terms) -> Result<Option<Held>, GuestError> {
        if !self.kept.lock().unwrap().contains_key(&terms.guest) {
            return Err(GuestError::NotHere {
                uid: terms.guest.clone(),
            });
        }
        match self.protect(terms).await {
            Ok(held) => Ok(Some(held)),
            Err(GuestError::NotHere { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn unprotect(&self, terms: &Terms) {
        if let Some(kept) = self.kept.lock().unwrap().get_mut(&terms.guest)
            && kept.role
                == (Role::Leaving {
                    migration: terms.migration.clone(),
                })
        {
            kept.role = Role::Held;
        }
    }

    async fn launch_incoming(
        &self,
        _identity: &GuestIdentity,
        _definition: &Definition,
        terms: &Terms,
    ) -> Result<Held, GuestError> {
        if let Some(error) = self.refuse_launch.lock().unwrap().take() {
            return Err(error);
        }
        let guest = Played::new(&self.host, true, &self.arena, &self.script, &self.calls);
        let role = Role::Arriving {
            migration: terms.migration.clone(),
        };
        self.kept.lock().unwrap().insert(
            terms.guest.clone(),
            Kept {
                role,
                epoch: terms.epoch,
                guest,
            },
        );
        Ok(self.held(&terms.guest).unwrap())
    }

    async fn find_arriving(&self, terms: &Terms) -> Result<Option<Held>, GuestError> {
        Ok(self.held(&terms.guest))
    }

    async fn take_over(&self, terms: &Terms, _since_micros: Option<i64>) -> Result<(), GuestError> {
        let mut kept = self.kept.lock().unwrap();
        let kept = kept.get_mut(&terms.guest).ok_or_else(|| GuestError::NotHere {
            uid: terms.guest.clone(),
        })?;
        kept.role = Role::Held;
        kept.epoch = terms.epoch + 1;
        Ok(())
    }

    async fn discard_incoming(&self, terms: &Terms) -> Result<(), GuestError> {
        let mut kept = self.kept.lock().unwrap();
        if let Some(one) = kept.get(&terms.guest) {
            if one.role
                != (Role::Arriving {
                    migration: terms.migration.clone(),
                })
            {
                return Err(GuestError::Conflict("it has arrived".into()));
            }
            one.guest.kill();
            kept.remove(&terms.guest);
        }
        Ok(())
    }

    async fn release(&self, terms: &Terms) -> Result<(), GuestError> {
        let mut kept = self.kept.lock().unwrap();
        if let Some(one) = kept.get(&terms.guest) {
            if one.role
                != (Role::Leaving {
                    migration: terms.migration.clone(),
                })
            {
                return Err(GuestError::Conflict("it does not leave".into()));
            }
            one.guest.kill();
            kept.remove(&terms.guest);
        }
        Ok(())
    }

    fn arriving(&self) -> Vec<Terms> {
        let kept = self.kept.lock().unwrap();
        let arriving = kept.iter().filter_map(|(guest, kept)| match &kept.role {
            Role::Arriving { migration } => Some(Terms {
                migration: migration.clone(),
                guest: guest.clone(),
                epoch: kept.epoch,
                source: "host-a".into(),
                destination: self.host.clone(),
                strict: false,
            }),
            Role::Leaving { .. } | Role::Held => None,
        });
        arriving.collect()
    }
}
