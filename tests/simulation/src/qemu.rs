//! A hypervisor's process as QEMU 10 shows itself: its stream, its locks on the disks, and that it lets the source run
//! again by itself when the stream fails late.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use godwit_agent::clock::now_micros;
use godwit_agent::hypervisor::{
    Guest, GuestEvent, GuestEventKind, HypervisorError, ProcessRecord, RunState, Stream, StreamFigures,
    StreamLimits, StreamState, StreamStatus, Way,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{Notify, broadcast, oneshot, watch};
use tokio::time::sleep;

use crate::sim::{Life, Place, Sim};
use crate::wire::MigrationNetwork;

/// How long an agent waits for the answer to a command.
const ANSWER: Duration = Duration::from_secs(5);
/// How soon a path without an answer counts as broken.
const PATH_TIMEOUT: Duration = Duration::from_secs(30);
/// One pass over the guest's memory.
const PASS: Duration = Duration::from_millis(40);

/// The locks of the guest's disks, which only one process has.
#[derive(Default)]
pub struct Disks(Mutex<Option<String>>);

impl Disks {
    fn lock(&self, who: &str) -> bool {
        let mut held = self.0.lock().unwrap();
        match &*held {
            Some(other) if other != who => false,
            Some(_) | None => {
                *held = Some(who.to_owned());
                true
            }
        }
    }

    fn unlock(&self, who: &str) {
        let mut held = self.0.lock().unwrap();
        if held.as_deref() == Some(who) {
            *held = None;
        }
    }
}

/// What all processes have in common.
#[derive(Clone)]
pub struct Yard {
    /// The world.
    pub sim: Arc<Sim>,
    /// The disks.
    pub disks: Arc<Disks>,
    /// The migration network.
    pub network: Arc<MigrationNetwork>,
    count: Arc<AtomicU64>,
}

impl Yard {
    /// A yard without processes.
    pub fn new(sim: &Arc<Sim>, network: &Arc<MigrationNetwork>) -> Self {
        Self {
            sim: sim.clone(),
            disks: Arc::default(),
            network: network.clone(),
            count: Arc::default(),
        }
    }
}

/// What a process will do otherwise than usual.
#[derive(Clone, Debug, Default)]
pub struct Mood {
    /// It converges by itself and so reaches the switchover unsealed.
    pub converges: bool,
    /// The stream breaks after the last byte was sent.
    pub fails_late: bool,
    /// The arriving guest is not taken whole.
    pub fails_to_load: bool,
    /// So many orders to let the guest run are refused.
    pub refuses: u32,
    /// It tells nothing by itself.
    pub mute: bool,
    /// How many passes it makes at least.
    pub passes: u64,
}

/// What a guest does by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// It powers off.
    PowersOff,
    /// Its kernel panics.
    Panics,
    /// Its disk fails.
    DiskFails,
    /// It resets, and goes on.
    Resets,
}

struct State {
    alive: bool,
    run: RunState,
    stream: StreamState,
    error: Option<String>,
    limits: StreamLimits,
    iteration: u64,
    /// How the guest stood when the hypervisor stopped it for the end of the stream.
    before: RunState,
    cancelled: bool,
    /// Whether it has ever sent its guest.
    sending: bool,
    mood: Mood,
}

/// A process.
pub struct Qemu {
    /// Its name: where it is and the how manyth it is.
    pub name: String,
    /// On which host.
    pub host: Place,
    arrived: bool,
    yard: Yard,
    events: broadcast::Sender<GuestEvent>,
    state: Mutex<State>,
    hung: watch::Sender<bool>,
    go_on: Notify,
    ended: watch::Sender<u64>,
}

fn refused(command: &str) -> HypervisorError {
    HypervisorError::Command {
        command: command.into(),
        message: "it is so".into(),
    }
}

impl Qemu {
    /// A process that is ready to boot, or that waits for the guest of a migration.
    pub fn launch(yard: &Yard, host: Place, migration: Option<&str>, mood: Mood) -> Arc<Self> {
        let number = yard.count.fetch_add(1, Ordering::Relaxed);
        let name = format!("qemu-{number}@{host}");
        yard.sim
            .judge
            .launched(&name, host.name(), migration.map(str::to_owned));
        Arc::new(Self {
            name,
            host,
            arrived: migration.is_some(),
            yard: yard.clone(),
            events: broadcast::Sender::new(256),
            state: Mutex::new(State {
                alive: true,
                run: if migration.is_some() {
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
                before: RunState::Paused,
                cancelled: false,
                sending: false,
                mood,
            }),
            hung: watch::Sender::new(false),
            go_on: Notify::new(),
            ended: watch::Sender::new(0),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Whether it lives.
    pub fn alive(&self) -> bool {
        self.state().alive
    }

    /// What the guest does in it.
    pub fn run(&self) -> RunState {
        self.state().run
    }

    /// Changes what it will do otherwise than usual.
    pub fn mood(&self, change: impl FnOnce(&mut Mood)) {
        change(&mut self.state().mood);
    }

    /// It stops to answer, or goes on. Its guest does not run meanwhile, but is not stopped either.
    pub fn hang(&self, hung: bool) {
        self.hung.send_replace(hung);
    }

    fn tell(&self, state: &State, kind: GuestEventKind) {
        if !state.mood.mute {
            // Nobody may listen.
            let _ = self.events.send(GuestEvent {
                at_micros: now_micros(),
                kind,
            });
        }
    }

    fn set_stream(&self, state: &mut State, stream: StreamState) {
        state.stream = stream;
        self.yard.sim.note(&self.name, format!("stream {stream:?}"));
        self.tell(state, GuestEventKind::Stream(stream));
    }

    fn set_run(&self, state: &mut State, run: RunState) {
        let (did, does) = (state.run == RunState::Running, run == RunState::Running);
        self.yard.sim.note(&self.name, format!("{run:?}"));
        state.run = run;
        match (did, does) {
            (false, true) => {
                self.yard.sim.judge.started(&self.name);
                self.tell(state, GuestEventKind::Resumed);
            }
            (true, false) => {
                self.yard.sim.judge.stopped(&self.name);
                self.tell(state, GuestEventKind::Stopped);
            }
            (true, true) | (false, false) => {}
        }
    }

    /// The process ends; by an agent where `by_us`.
    pub fn kill(&self, by_us: bool) {
        let mut state = self.state();
        if std::mem::replace(&mut state.alive, false) {
            let words = if by_us { "is destroyed" } else { "dies" };
            self.yard.sim.note(&self.name, words);
            state.run = RunState::Broken;
            self.yard.sim.judge.ended(&self.name, by_us);
            self.yard.disks.unlock(&self.name);
            // Its end is seen by its pidfd, whatever else is lost.
            let _ = self.events.send(GuestEvent {
                at_micros: now_micros(),
                kind: GuestEventKind::Died,
            });
            self.ended.send_modify(|n| *n += 1);
        }
    }

    /// The guest is let run for the first time.
    pub fn boot(&self) {
        self.yard.disks.lock(&self.name);
        let mut state = self.state();
        self.set_run(&mut state, RunState::Running);
    }

    /// The guest powers off, panics, or meets an error of its disk, if it runs; or resets.
    pub fn guest_acts(&self, act: Act) {
        let mut state = self.state();
        if !state.alive || state.run != RunState::Running || *self.hung.borrow() {
            return;
        }
        self.yard.sim.note(&self.name, format!("the guest: {act:?}"));
        let (run, kind) = match act {
            Act::PowersOff => (RunState::ShutDown, GuestEventKind::ShutDown),
            Act::Panics => (RunState::Panicked, GuestEventKind::Panicked),
            Act::DiskFails => {
                let disk = "root".into();
                (RunState::IoError, GuestEventKind::IoError { disk })
            }
            Act::Resets => return self.tell(&state, GuestEventKind::Reset),
        };
        self.yard.sim.judge.guest_ended();
        self.set_run(&mut state, run);
        self.tell(&state, kind);
    }

    fn fail(&self, words: &str) {
        let mut state = self.state();
        if !state.alive || state.cancelled {
            return;
        }
        state.error = Some(words.into());
        self.set_stream(&mut state, StreamState::Failed);
        if self.arrived && state.run == RunState::Incoming {
            return;
        }
        self.go_back(&mut state);
    }

    /// A source whose stream has ended badly takes its disks back, and lets a guest run that ran.
    fn go_back(&self, state: &mut State) {
        if state.run == RunState::StoppedForMigration {
            self.yard.disks.lock(&self.name);
            self.set_run(state, state.before);
        }
    }

    fn other(&self) -> Place {
        if self.host == Place::A { Place::B } else { Place::A }
    }

    /// The path to the other host has been cut for long.
    async fn path_breaks(&self) {
        let later = Duration::from_millis(self.yard.sim.dice.within(0, 4000));
        self.yard
            .sim
            .silent_for(self.host, self.other(), PATH_TIMEOUT)
            .await;
        sleep(later).await;
    }

    async fn while_hung(&self) {
        // The sender is this.
        let _ = self.hung.subscribe().wait_for(|hung| !*hung).await;
    }

    /// Sends the guest.
    async fn pump(self: Arc<Self>, mut socket: DuplexStream) {
        let mut ended = self.ended.subscribe();
        let sim = self.yard.sim.clone();
        let work = async {
            let mut byte = [0];
            loop {
                tokio::select! {
                    biased;
                    _ = socket.read(&mut byte) => return Err("the peer is gone"),
                    () = sleep(PASS) => {}
                }
                self.while_hung().await;
                // Memory does not travel over a path that is cut.
                tokio::select! {
                    biased;
                    () = sim.travel(self.host, self.other()) => {}
                    () = self.path_breaks() => return Err("the path is broken"),
                }
                let mut state = self.state();
                if state.stream != StreamState::Active {
                    return Ok(());
                }
                state.iteration += 1;
                self.tell(
                    &state,
                    GuestEventKind::DirtyPagesCollected {
                        iteration: state.iteration,
                    },
                );
                let itself = state.mood.converges && state.iteration > state.mood.passes;
                if itself || state.limits.downtime > Duration::from_secs(1) {
                    // Whatever it was: one that has powered off, too.
                    state.before = state.run;
                    self.set_run(&mut state, RunState::StoppedForMigration);
                    self.set_stream(&mut state, StreamState::BeforeSwitchover);
                    break;
                }
            }
            tokio::select! {
                biased;
                _ = socket.read(&mut byte) => return Err("the peer is gone"),
                () = self.go_on.notified() => {}
                () = self.path_breaks() => return Err("the path is broken"),
            }
            self.yard.disks.unlock(&self.name);
            let image = sim.judge.image(&self.name);
            tokio::select! {
                biased;
                () = sim.travel(self.host, self.other()) => {}
                () = self.path_breaks() => return Err("the path is broken"),
            }
            socket
                .write_u64(image.unwrap_or(u64::MAX))
                .await
                .map_err(|_| "the peer is gone")?;
            let stood = match self.state().before {
                RunState::ShutDown => 1,
                RunState::Panicked => 2,
                RunState::IoError => 3,
                RunState::Running
                | RunState::Paused
                | RunState::StoppedForMigration
                | RunState::Incoming
                | RunState::Broken => 0,
            };
            socket.write_u8(stood).await.map_err(|_| "the peer is gone")?;
            if self.state().mood.fails_late {
                // What was sent arrives; the answer does not.
                sleep(Duration::from_millis(sim.dice.within(0, 30))).await;
                return Err("the answer was lost");
            }
            let answer = tokio::select! {
                biased;
                answer = socket.read(&mut byte) => answer,
                () = self.path_breaks() => return Err("the path is broken"),
            };
            match answer {
                Ok(1) => {
                    self.while_hung().await;
                    let mut state = self.state();
                    self.set_stream(&mut state, StreamState::Completed);
                    Ok(())
                }
                Ok(_) | Err(_) => Err("the peer is gone"),
            }
        };
        tokio::select! {
            biased;
            _ = ended.changed() => {}
            outcome = work => if let Err(words) = outcome {
                self.while_hung().await;
                self.fail(words);
            },
        }
    }

    /// Receives the guest.
    async fn take(self: Arc<Self>, mut socket: DuplexStream) {
        let mut ended = self.ended.subscribe();
        let sim = self.yard.sim.clone();
        let work = async {
            let image = tokio::select! {
                biased;
                image = async { Ok::<_, std::io::Error>((socket.read_u64().await?, socket.read_u8().await?)) } => image.ok(),
                () = self.path_breaks() => None,
            };
            self.while_hung().await;
            sleep(Duration::from_millis(sim.dice.within(1, 8))).await;
            let Some((image, stood)) = image.filter(|_| !self.state().mood.fails_to_load) else {
                self.fail("the stream broke");
                return;
            };
            {
                let mut state = self.state();
                sim.judge.loaded(&self.name, (image != u64::MAX).then_some(image));
                let run = match stood {
                    1 => RunState::ShutDown,
                    2 => RunState::Panicked,
                    3 => RunState::IoError,
                    _ => RunState::Paused,
                };
                self.set_run(&mut state, run);
                self.set_stream(&mut state, StreamState::Completed);
            }
            tokio::select! {
                biased;
                () = sim.travel(self.host, self.other()) => {}
                () = self.path_breaks() => return,
            }
            let _ = socket.write_all(&[1]).await;
        };
        tokio::select! {
            biased;
            _ = ended.changed() => {}
            () = work => {}
        }
    }
}

/// A process in the hands of one life of its agent.
pub struct Handle {
    /// The process.
    pub qemu: Arc<Qemu>,
    /// Whose hands.
    pub life: Arc<Life>,
}

impl Handle {
    /// Gives a command. A process that hangs carries it out once it goes on, however long that takes.
    async fn command<T: Send + 'static>(
        &self,
        name: &'static str,
        counted: bool,
        work: impl FnOnce(&Qemu, &mut State) -> Result<T, HypervisorError> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        let (qemu, life) = (self.qemu.clone(), self.life.clone());
        let sim = qemu.yard.sim.clone();
        if counted {
            sim.pass(&life, format!("{name} to {}", qemu.name)).await;
        }
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            sleep(Duration::from_millis(1)).await;
            let mut ended = qemu.ended.subscribe();
            while *qemu.hung.borrow() && qemu.alive() {
                let mut hung = qemu.hung.subscribe();
                tokio::select! {
                    biased;
                    _ = ended.changed() => {}
                    _ = hung.changed() => {}
                }
            }
            let mut state = qemu.state();
            let outcome = if state.alive {
                work(&qemu, &mut state)
            } else {
                Err(HypervisorError::Died)
            };
            drop(state);
            let _ = answer.send(outcome);
        });
        let outcome = tokio::time::timeout(ANSWER, answered).await;
        if counted {
            sim.pass(&life, format!("{name} answered")).await;
        } else if life.is_over() {
            std::future::pending::<()>().await;
        }
        match outcome {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(HypervisorError::Died),
            Err(_) => Err(HypervisorError::Deadline {
                command: name.into(),
                deadline: ANSWER,
            }),
        }
    }

    fn socket(&self, stream: Stream) -> Result<DuplexStream, HypervisorError> {
        let Way::Socket(descriptor) = stream.way else {
            return Err(HypervisorError::Protocol("no connections of its own".into()));
        };
        let taken = self.qemu.yard.network.take(&descriptor);
        taken.ok_or_else(|| HypervisorError::Protocol("no such connection".into()))
    }
}

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
        self.qemu.events.subscribe()
    }

    fn has_ended(&self) -> bool {
        !self.qemu.alive()
    }

    async fn run_state(&self) -> Result<RunState, HypervisorError> {
        self.command("query-status", false, |_, state| Ok(state.run))
            .await
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        self.command("stop", true, |qemu, state| {
            if state.run == RunState::Running {
                qemu.set_run(state, RunState::Paused);
            }
            // A guest that QEMU itself has stopped for the switchover is not let run by it any more.
            Ok(())
        })
        .await
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        self.command("cont", true, |qemu, state| {
            if state.mood.refuses > 0 {
                state.mood.refuses -= 1;
                return Err(refused("cont"));
            }
            if matches!(state.run, RunState::ShutDown | RunState::Incoming)
                || !qemu.yard.disks.lock(&qemu.name)
            {
                return Err(refused("cont"));
            }
            if state.run != RunState::Running {
                qemu.set_run(state, RunState::Running);
            }
            Ok(())
        })
        .await
    }

    async fn destroy(&self, _deadline: Duration) -> Result<(), HypervisorError> {
        let sim = &self.qemu.yard.sim;
        sim.pass(&self.life, format!("destroys {}", self.qemu.name)).await;
        self.qemu.kill(true);
        sim.pass(&self.life, "has destroyed it").await;
        Ok(())
    }

    async fn migration_blockers(&self) -> Result<Vec<String>, HypervisorError> {
        Ok(vec![])
    }

    async fn send(&self, stream: Stream, limits: StreamLimits) -> Result<(), HypervisorError> {
        let socket = self.socket(stream)?;
        let qemu = self.qemu.clone();
        self.command("migrate", true, move |_, state| {
            state.limits = limits;
            state.error = None;
            state.cancelled = false;
            state.sending = true;
            state.iteration = 0;
            qemu.set_stream(state, StreamState::Setup);
            qemu.set_stream(state, StreamState::Active);
            tokio::spawn(qemu.clone().pump(socket));
            Ok(())
        })
        .await
    }

    async fn receive(&self, stream: Stream) -> Result<(), HypervisorError> {
        let socket = self.socket(stream)?;
        let qemu = self.qemu.clone();
        self.command("migrate-incoming", true, move |_, state| {
            qemu.set_stream(state, StreamState::Active);
            tokio::spawn(qemu.clone().take(socket));
            Ok(())
        })
        .await
    }

    async fn stream(&self) -> Result<StreamStatus, HypervisorError> {
        self.command("query-migrate", false, |_, state| {
            let dirtying = state.mood.converges || state.iteration < state.mood.passes;
            let figures = StreamFigures {
                total_bytes: 1 << 30,
                transferred_bytes: state.iteration << 20,
                remaining_bytes: if dirtying { 1 << 30 } else { 1 << 10 },
                bytes_per_second: 1 << 30,
                iteration: state.iteration,
                downtime_millis: (state.stream == StreamState::Completed).then_some(3),
                ..StreamFigures::default()
            };
            let figures = state.sending.then_some(figures);
            Ok(StreamStatus {
                state: state.stream,
                error: state.error.clone(),
                figures,
            })
        })
        .await
    }

    async fn set_limits(&self, limits: StreamLimits) -> Result<(), HypervisorError> {
        self.command("migrate-set-parameters", true, move |_, state| {
            state.limits = limits;
            Ok(())
        })
        .await
    }

    async fn switch_over(&self) -> Result<(), HypervisorError> {
        self.command("migrate-continue", true, |qemu, state| {
            if state.stream != StreamState::BeforeSwitchover {
                return Err(refused("migrate-continue"));
            }
            qemu.set_stream(state, StreamState::SwitchingOver);
            qemu.go_on.notify_one();
            Ok(())
        })
        .await
    }

    async fn cancel_stream(&self) -> Result<(), HypervisorError> {
        self.command("migrate_cancel", true, |qemu, state| {
            match state.stream {
                StreamState::None | StreamState::Completed | StreamState::Failed | StreamState::Cancelled => {
                }
                StreamState::Setup
                | StreamState::Active
                | StreamState::BeforeSwitchover
                | StreamState::SwitchingOver
                | StreamState::Cancelling => {
                    state.cancelled = true;
                    qemu.set_stream(state, StreamState::Cancelled);
                    qemu.go_back(state);
                    qemu.ended.send_modify(|n| *n += 1);
                }
            }
            Ok(())
        })
        .await
    }

    async fn set_disks_active(&self, active: bool) -> Result<(), HypervisorError> {
        self.command("blockdev-set-active", true, move |qemu, state| {
            if state.run == RunState::Running {
                return Err(refused("blockdev-set-active"));
            }
            if active && !qemu.yard.disks.lock(&qemu.name) {
                return Err(refused("blockdev-set-active"));
            }
            if !active {
                qemu.yard.disks.unlock(&qemu.name);
            }
            Ok(())
        })
        .await
    }

    async fn resident_bytes(&self) -> Result<u64, HypervisorError> {
        Ok(0)
    }
}
