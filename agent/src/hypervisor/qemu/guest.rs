//! A guest in a QEMU process.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::{Mutex, broadcast};
use tokio::time::{sleep, timeout, timeout_at};

use super::logs::{self, Log};
use super::process::{End, Process};
use super::qmp::QmpError;
use super::qmp::client::{Client, Command};
use super::qmp::event;
use super::qmp::wire::{Version, bounded};
use super::{
    EXIT_ON_ERROR_SINCE, LATE_BLOCK_ACTIVATE_UNTIL, LOG, SEVERAL_ENCRYPTED_SINCE, argv, psk, states,
};
use crate::hypervisor::{
    Guest, GuestEvent, GuestEventKind, HypervisorError, Place, ProcessRecord, RunState, Stream, StreamKey,
    StreamLimits, StreamState, StreamStatus, Way,
};

/// The monitor's socket in the guest's directory.
pub const MONITOR_SOCKET: &str = "qmp.sock";

/// How many events a slow receiver may be behind.
const EVENTS_KEPT: usize = 256;

/// Under which name QEMU keeps the stream's socket.
const STREAM_NAME: &str = "godwit-stream";

/// QEMU's words for the two ends of an encrypted stream.
const CLIENT: &str = "client";
const SERVER: &str = "server";

/// The name of the object that holds the stream's key.
const KEY_NAME: &str = "godwit-stream-key";

/// How long an outgoing stream may take to end after a polite request.
const POLITE_CANCEL: Duration = Duration::from_secs(2);

/// How long it may take to end once it was cut.
const FORCED_CANCEL: Duration = Duration::from_secs(10);

/// How long QEMU may take to settle after a failed stream, and a killed process to be gone from the system.
const SETTLE: Duration = Duration::from_secs(2);

/// How long a process may take to die of SIGKILL: its memory must be freed.
const KILLED: Duration = Duration::from_secs(30);

/// How often the guest's logs are looked at. Some hundred MiB fit in between, at the worst.
const TRIM_LOGS: Duration = Duration::from_secs(10);

/// The most reasons against a migration that are kept.
const MAX_BLOCKERS: usize = 16;

/// QEMU takes no more as its `downtime-limit`, in milliseconds.
const MAX_DOWNTIME_MILLIS: u128 = 2_000_000;

/// A guest in a QEMU process.
pub struct QemuGuest {
    uid: uuid::Uuid,
    directory: PathBuf,
    process: Arc<Process>,
    events: broadcast::Sender<GuestEvent>,
    client: Mutex<Client>,
    /// Whether a stream's key may be about: in QEMU, or in a file.
    keyed: AtomicBool,
}

impl QemuGuest {
    /// Connects to a process's monitor and has it say that it is this guest.
    pub async fn attach(
        process: Arc<Process>,
        uid: uuid::Uuid,
        directory: PathBuf,
        deadline: Duration,
    ) -> Result<Arc<Self>, HypervisorError> {
        let (events, _) = broadcast::channel(EVENTS_KEPT);
        let client = connect(&directory, uid, &events, deadline)
            .await
            .map_err(into_error)?;
        let guest = Arc::new(Self {
            uid,
            directory,
            process,
            events,
            client: Mutex::new(client),
            // An agent before this one may have left one.
            keyed: AtomicBool::new(true),
        });
        tokio::spawn(watch_over(
            Arc::downgrade(&guest),
            guest.directory.clone(),
            guest.process.clone(),
            guest.events.clone(),
        ));
        Ok(guest)
    }

    /// QEMU's version.
    async fn version(&self) -> Result<Version, HypervisorError> {
        Ok(self.client().await?.version())
    }

    /// The connection, made anew if it was lost while the process lives.
    async fn client(&self) -> Result<Client, HypervisorError> {
        let mut client = self.client.lock().await;
        if client.is_closed() {
            if self.process.has_ended() {
                return Err(HypervisorError::Died);
            }
            *client = match connect(&self.directory, self.uid, &self.events, Duration::from_secs(5)).await {
                Ok(client) => client,
                Err(error) => return Err(self.judge(error).await),
            };
        }
        Ok(client.clone())
    }

    async fn call(&self, command: Command) -> Result<Value, HypervisorError> {
        match self.client().await?.call(command).await {
            Ok(value) => Ok(value),
            Err(error) => Err(self.judge(error).await),
        }
    }

    /// A closed connection may mean a process that is about to be gone.
    async fn judge(&self, error: QmpError) -> HypervisorError {
        match error {
            QmpError::Closed if matches!(timeout(SETTLE, self.process.ended()).await, Ok(Ok(_))) => {
                HypervisorError::Died
            }
            error @ (QmpError::Closed
            | QmpError::Deadline { .. }
            | QmpError::Refused { .. }
            | QmpError::Protocol(_)) => into_error(error),
        }
    }

    async fn status(&self) -> Result<String, HypervisorError> {
        let answer = self.call(Command::new("query-status")).await?;
        text(&answer, "status")
            .map(bounded)
            .ok_or_else(|| HypervisorError::Protocol("query-status has no status".into()))
    }

    /// What both ends must agree about: the capabilities, and over how many connections memory is spread.
    async fn set_capabilities(&self, source: bool, connections: u32) -> Result<(), HypervisorError> {
        let several = connections > 1;
        let mut wanted = vec![
            // A stream before this one may have had it.
            ("multifd", several),
            ("events", true),
            ("return-path", true),
            ("validate-uuid", true),
            ("pause-before-switchover", source),
        ];
        if self.version().await? < LATE_BLOCK_ACTIVATE_UNTIL {
            wanted.push(("late-block-activate", true));
        }
        let list: Vec<Value> = wanted
            .iter()
            .map(|(name, state)| json!({"capability": name, "state": state}))
            .collect();
        self.call(Command::new("migrate-set-capabilities").with(json!({ "capabilities": list })))
            .await?;
        if several {
            let channels = json!({ "multifd-channels": connections });
            self.call(Command::new("migrate-set-parameters").with(channels))
                .await?;
        }
        Ok(())
    }

    /// Gives QEMU the key of a stream that it is to encrypt, or none.
    async fn set_key(&self, key: Option<&StreamKey>, endpoint: &str) -> Result<(), HypervisorError> {
        self.forget_key().await;
        let Some(key) = key else {
            let plain = json!({"tls-creds": ""});
            self.call(Command::new("migrate-set-parameters").with(plain))
                .await?;
            return Ok(());
        };
        self.keyed.store(true, Ordering::Release);
        let version = self.version().await?;
        let (directory, secret) = (self.directory.clone(), key.clone());
        tokio::task::spawn_blocking(move || psk::write(&directory, &secret))
            .await
            .map_err(|error| system("writing a stream's key", std::io::Error::other(error)))?
            .map_err(|error| system("writing a stream's key", error))?;
        let mut object = json!({
            "qom-type": "tls-creds-psk", "id": KEY_NAME, "endpoint": endpoint,
            "dir": self.directory.join(psk::DIRECTORY), "priority": psk::priority(version),
        });
        if let (CLIENT, Some(object)) = (endpoint, object.as_object_mut()) {
            object.insert("username".into(), psk::USER.into());
        }
        self.call(Command::new("object-add").with(object)).await?;
        self.call(Command::new("migrate-set-parameters").with(json!({"tls-creds": KEY_NAME})))
            .await?;
        Ok(())
    }

    /// Removes the key of a stream that is over, in QEMU and in its file.
    async fn forget_key(&self) {
        if !self.keyed.swap(false, Ordering::AcqRel) {
            return;
        }
        self.remove_key_file().await;
        let gone = Command::new("object-del").with(json!({ "id": KEY_NAME }));
        if let Err(error) = self.call(gone).await {
            // Most often there is none.
            tracing::debug!(%error, "a stream's key was not taken from QEMU");
        }
    }

    async fn remove_key_file(&self) {
        let directory = self.directory.clone();
        let removed = tokio::task::spawn_blocking(move || psk::remove(&directory)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(%error, uid = %self.uid, "the file with a stream's key stays");
        }
    }

    /// Has a command start the stream.
    async fn start_stream(
        &self,
        way: Way,
        command: &'static str,
        mut arguments: serde_json::Map<String, Value>,
    ) -> Result<(), HypervisorError> {
        arguments.insert("uri".into(), uri(&way).into());
        let command = Command::new(command).with(arguments.into());
        match way {
            Way::Socket(socket) => self.start_on(socket, command).await,
            Way::Place { .. } => self.call(command).await.map(drop),
        }
    }

    /// Gives QEMU the stream's socket, then the command that uses it; takes it back if that fails.
    async fn start_on(&self, channel: OwnedFd, command: Command) -> Result<(), HypervisorError> {
        let name = json!({ "fdname": STREAM_NAME });
        self.call(Command::new("getfd").with(name.clone()).passing(channel))
            .await?;
        if let Err(error) = self.call(command).await {
            if let Err(second) = self.call(Command::new("closefd").with(name)).await {
                tracing::debug!(error = %second, "QEMU has used or dropped the stream's socket already");
            }
            return Err(error);
        }
        Ok(())
    }

    /// Waits until the stream can change no more by itself. Events only make it quicker: the answer counts.
    async fn until_final(&self) -> Result<StreamState, HypervisorError> {
        let mut events = self.events.subscribe();
        loop {
            let state = self.stream().await?.state;
            if states::is_final(state) {
                return Ok(state);
            }
            let news = async {
                loop {
                    match events.recv().await {
                        Ok(event)
                            if !matches!(event.kind, GuestEventKind::Stream(_) | GuestEventKind::Died) => {}
                        Ok(_) | Err(_) => return,
                    }
                }
            };
            let _ = timeout(Duration::from_millis(100), news).await;
        }
    }

    /// After a failed or cancelled stream QEMU stays in `finish-migrate` for some milliseconds, and refuses to go
    /// on meanwhile.
    async fn settled_status(&self) -> Result<String, HypervisorError> {
        let give_up = tokio::time::Instant::now() + SETTLE;
        loop {
            let status = self.status().await?;
            let unsettled = status == "finish-migrate"
                && matches!(
                    self.stream().await?.state,
                    StreamState::Failed | StreamState::Cancelled
                );
            if !unsettled || tokio::time::Instant::now() >= give_up {
                return Ok(status);
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}

#[async_trait]
impl Guest for QemuGuest {
    fn process(&self) -> ProcessRecord {
        self.process.record().clone()
    }

    fn directory(&self) -> &std::path::Path {
        &self.directory
    }

    fn subscribe(&self) -> broadcast::Receiver<GuestEvent> {
        self.events.subscribe()
    }

    fn has_ended(&self) -> bool {
        self.process.has_ended()
    }

    async fn run_state(&self) -> Result<RunState, HypervisorError> {
        Ok(states::run_state(&self.status().await?))
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        self.call(Command::new("stop")).await?;
        match self.run_state().await? {
            RunState::Running => Err(refused("stop", "the guest runs on")),
            RunState::Paused
            | RunState::StoppedForMigration
            | RunState::Incoming
            | RunState::ShutDown
            | RunState::Panicked
            | RunState::IoError
            | RunState::Broken => Ok(()),
        }
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        let before = self.settled_status().await?;
        match states::run_state(&before) {
            RunState::Running => return Ok(()),
            // QEMU would take it, and run the guest by itself once it is loaded.
            RunState::Incoming => return Err(refused("cont", "the guest has not been received yet")),
            // QEMU would take it from some of these, and nobody lets a guest run that has come to an end of its own.
            RunState::ShutDown | RunState::Panicked | RunState::IoError | RunState::Broken => {
                return Err(refused(
                    "cont",
                    &format!("the guest has stopped by itself ({before})"),
                ));
            }
            RunState::Paused | RunState::StoppedForMigration => {}
        }
        self.call(Command::new("cont")).await?;
        // The stream is over, at either end.
        self.forget_key().await;
        match self.run_state().await? {
            // QEMU took it, so it may have run: this is no refusal.
            RunState::Paused | RunState::StoppedForMigration | RunState::Incoming => Err(
                HypervisorError::Protocol("the guest does not run after an accepted cont".into()),
            ),
            // It may have run, and stopped for a reason of its own.
            RunState::Running
            | RunState::ShutDown
            | RunState::Panicked
            | RunState::IoError
            | RunState::Broken => Ok(()),
        }
    }

    async fn destroy(&self, deadline: Duration) -> Result<(), HypervisorError> {
        let half = deadline / 2;
        let polite = async {
            // Whatever it answers, what counts is that it ends.
            if let Err(error) = self.call(Command::new("quit")).await {
                tracing::debug!(%error, "QEMU did not answer quit");
            }
            self.process.ended().await
        };
        // An error in waiting is no end.
        if !self.process.has_ended() && !matches!(timeout(half, polite).await, Ok(Ok(_))) {
            self.process
                .signal(Signal::TERM)
                .map_err(|error| system("ending the guest's process", error))?;
            if !matches!(timeout(half, self.process.ended()).await, Ok(Ok(_))) {
                tracing::warn!(uid = %self.uid, "the guest's process does not end by itself and is killed");
                kill(&self.process).await?;
            }
        }
        remove_sockets(&self.directory);
        Ok(())
    }

    async fn migration_blockers(&self) -> Result<Vec<String>, HypervisorError> {
        let answer = self.call(Command::new("query-migrate")).await?;
        let reasons = answer.get("blocked-reasons").and_then(Value::as_array);
        Ok(reasons
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .take(MAX_BLOCKERS)
            .map(bounded)
            .collect())
    }

    async fn send(&self, stream: Stream, limits: StreamLimits) -> Result<(), HypervisorError> {
        // The host may have another version by now than the one that this process was started with.
        let version = self.version().await?;
        if stream.key.is_some() && stream.way.connections() > 1 && version < SEVERAL_ENCRYPTED_SINCE {
            return Err(HypervisorError::Refused(format!(
                "QEMU {version}, in which this guest runs, may not outlive an encrypted stream over several connections; \
                 {SEVERAL_ENCRYPTED_SINCE} does, and a tunnel serves every version"
            )));
        }
        self.set_capabilities(true, stream.way.connections()).await?;
        self.set_limits(limits).await?;
        self.set_key(stream.key.as_ref(), CLIENT).await?;
        // A client has read its key already.
        self.remove_key_file().await;
        self.start_stream(stream.way, "migrate", serde_json::Map::new())
            .await
    }

    async fn receive(&self, stream: Stream) -> Result<(), HypervisorError> {
        self.set_capabilities(false, stream.way.connections()).await?;
        self.set_key(stream.key.as_ref(), SERVER).await?;
        let mut arguments = serde_json::Map::new();
        // An older QEMU ends when the stream breaks, and is then reported as died.
        if self.version().await? >= EXIT_ON_ERROR_SINCE {
            arguments.insert("exit-on-error".into(), false.into());
        }
        self.start_stream(stream.way, "migrate-incoming", arguments).await
    }

    async fn stream(&self) -> Result<StreamStatus, HypervisorError> {
        let answer = self.call(Command::new("query-migrate")).await?;
        let state = match text(&answer, "status") {
            None => StreamState::None,
            Some(status) => states::stream_state(status).ok_or_else(|| {
                HypervisorError::Protocol(format!("unknown state of a stream: {}", bounded(status)))
            })?,
        };
        let mut error = text(&answer, "error-desc").map(bounded);
        if state == StreamState::Failed {
            // QEMU often tells the reason only in its log.
            let log = Log::found(&self.directory, LOG)
                .map(|log| log.tail())
                .unwrap_or_default();
            let said = error
                .filter(|said| !said.is_empty())
                .unwrap_or_else(|| "no reason given".into());
            error = Some(bounded(&if log.is_empty() {
                said
            } else {
                format!("{said} (its log: {log})")
            }));
        }
        Ok(StreamStatus {
            state,
            error,
            figures: states::stream_figures(&answer),
        })
    }

    async fn set_limits(&self, limits: StreamLimits) -> Result<(), HypervisorError> {
        let downtime = limits
            .downtime
            .as_micros()
            .div_ceil(1000)
            .clamp(1, MAX_DOWNTIME_MILLIS);
        // QEMU counts in a signed number.
        let bandwidth = i64::try_from(limits.bandwidth).unwrap_or(i64::MAX);
        let parameters =
            json!({"max-bandwidth": bandwidth, "downtime-limit": u64::try_from(downtime).unwrap_or(1)});
        self.call(Command::new("migrate-set-parameters").with(parameters))
            .await?;
        Ok(())
    }

    async fn switch_over(&self) -> Result<(), HypervisorError> {
        self.call(Command::new("migrate-continue").with(json!({"state": "pre-switchover"})))
            .await?;
        Ok(())
    }

    async fn cancel_stream(&self) -> Result<(), HypervisorError> {
        let polite = async {
            if !states::is_final(self.stream().await?.state) {
                self.call(Command::new("migrate_cancel")).await?;
            }
            self.until_final().await
        };
        match timeout(POLITE_CANCEL, polite).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(HypervisorError::Died)) => return Err(HypervisorError::Died),
            Ok(Err(error)) => tracing::warn!(%error, "the stream could not be cancelled and is cut"),
            Err(_) => tracing::warn!(uid = %self.uid, "the stream does not end after a cancel and is cut"),
        }
        let give_up = tokio::time::Instant::now() + FORCED_CANCEL;
        let cut = Command::new("yank")
            .with(json!({"instances": [{"type": "migration"}]}))
            .out_of_band();
        if let Err(error) = self.call(cut).await {
            // It is refused where the stream ended in between.
            tracing::warn!(%error, "cutting the stream");
        }
        let late = |_| HypervisorError::Deadline {
            command: "migrate_cancel".into(),
            deadline: POLITE_CANCEL + FORCED_CANCEL,
        };
        timeout_at(give_up, self.until_final())
            .await
            .map_err(late)?
            .map(|_| ())
    }

    async fn set_disks_active(&self, active: bool) -> Result<(), HypervisorError> {
        // QEMU 10.0 takes it even then, and the guest would go on to write.
        if !active && self.run_state().await? == RunState::Running {
            return Err(refused("blockdev-set-active", "the guest runs"));
        }
        self.call(Command::new("blockdev-set-active").with(json!({ "active": active })))
            .await?;
        Ok(())
    }

    async fn resident_bytes(&self) -> Result<u64, HypervisorError> {
        self.process.resident_bytes().map_err(|error| {
            if self.process.has_ended() {
                HypervisorError::Died
            } else {
                system("reading the guest's memory use", error)
            }
        })
    }
}

/// Kills a process and waits until it is gone.
pub async fn kill(process: &Process) -> Result<(), HypervisorError> {
    process
        .signal(Signal::KILL)
        .map_err(|error| system("killing the guest's process", error))?;
    let late = |_| HypervisorError::Deadline {
        command: "SIGKILL".into(),
        deadline: KILLED,
    };
    timeout(KILLED, process.ended())
        .await
        .map_err(late)?
        .map_err(|error| system("waiting for the guest's process", error))?;
    Ok(())
}

/// Removes what a process leaves in its directory when it cannot do so itself.
pub fn remove_sockets(directory: &std::path::Path) {
    for name in [MONITOR_SOCKET, argv::CONSOLE_SOCKET] {
        match std::fs::remove_file(directory.join(name)) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(%error, name, directory = %directory.display(), "a guest's socket stays")
            }
        }
    }
}

async fn connect(
    directory: &std::path::Path,
    uid: uuid::Uuid,
    events: &broadcast::Sender<GuestEvent>,
    deadline: Duration,
) -> Result<Client, QmpError> {
    let events = events.clone();
    let path = directory.join(MONITOR_SOCKET);
    let work = async {
        // Where the process is gone, nobody listens.
        let stream = connect_here(&path).await.map_err(|_| QmpError::Closed)?;
        let on_event = move |raw| {
            if let Some(event) = event::meaning(&raw) {
                // Nobody may be listening.
                let _ = events.send(event);
            }
        };
        let client = Client::greet(stream, deadline, on_event).await?;
        // The directory belongs to the guest's user: what answers there must also say that it is this guest.
        let answer = client.call(Command::new("query-uuid")).await?;
        match text(&answer, "UUID").and_then(|found| found.parse::<uuid::Uuid>().ok()) {
            Some(found) if found == uid => Ok(client),
            found @ (Some(_) | None) => Err(QmpError::Protocol(format!(
                "the process behind the monitor is another guest: {found:?}"
            ))),
        }
    };
    let late = |_| QmpError::Deadline {
        command: "the connection",
        deadline,
    };
    timeout(deadline, work).await.map_err(late)?
}

/// Connects to a socket, and not to what a link in its place leads to: the directory belongs to the guest's user.
async fn connect_here(path: &std::path::Path) -> std::io::Result<UnixStream> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat(CWD, path, flags, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::Socket {
        return Err(std::io::ErrorKind::NotFound.into());
    }
    // The very socket that was looked at.
    UnixStream::connect(format!("/proc/self/fd/{}", found.as_raw_fd())).await
}

/// Keeps the guest's logs small, and says once that the process is gone, after the last of its own events.
async fn watch_over(
    guest: std::sync::Weak<QemuGuest>,
    directory: PathBuf,
    process: Arc<Process>,
    events: broadcast::Sender<GuestEvent>,
) {
    loop {
        match timeout(TRIM_LOGS, process.ended()).await {
            Err(_) => trim_logs(&directory).await,
            Ok(Ok(end)) => {
                tell_of(end, &directory);
                break;
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "waiting for the guest's process");
                return;
            }
        }
    }
    if let Some(guest) = guest.upgrade()
        && let Ok(client) = timeout(SETTLE, guest.client.lock())
            .await
            .map(|client| client.clone())
    {
        let _ = timeout(SETTLE, client.closed()).await;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Nobody may be listening.
    let _ = events.send(GuestEvent {
        at_micros: i64::try_from(now.as_micros()).unwrap_or(i64::MAX),
        kind: GuestEventKind::Died,
    });
}

/// Writes down how a process ended, with its last words: they go with its directory.
fn tell_of(end: End, directory: &std::path::Path) {
    let said = Log::found(directory, LOG)
        .map(|log| log.tail())
        .unwrap_or_default();
    let guest = directory.display();
    match end {
        End::Exited(0) | End::Unknown => tracing::info!(%guest, %end, said, "the guest's process has ended"),
        End::Exited(_) | End::Killed(_) => {
            tracing::warn!(%guest, %end, said, "the guest's process has ended")
        }
    }
}

async fn trim_logs(directory: &std::path::Path) {
    let directory = directory.to_owned();
    let work = move || {
        for name in [LOG, argv::CONSOLE_LOG] {
            if let Err(error) = logs::trim(&directory, name) {
                tracing::warn!(%error, name, directory = %directory.display(), "a guest's log may grow too large");
            }
        }
    };
    if let Err(error) = tokio::task::spawn_blocking(work).await {
        tracing::warn!(%error, "a guest's logs may grow too large");
    }
}

/// Where a stream goes, in QEMU's words. A path of ours has no letter in it that would mean anything to QEMU, whose
/// `channels` would say the same since 8.2 only.
fn uri(way: &Way) -> String {
    match way {
        Way::Socket(_) => format!("fd:{STREAM_NAME}"),
        Way::Place { place, .. } => match place {
            Place::Unix(path) => format!("unix:{}", path.display()),
            Place::Tcp(address) => format!("tcp:{address}"),
        },
    }
}

fn text<'a>(answer: &'a Value, field: &str) -> Option<&'a str> {
    answer.get(field).and_then(Value::as_str)
}

fn refused(command: &str, message: &str) -> HypervisorError {
    HypervisorError::Command {
        command: command.into(),
        message: message.into(),
    }
}

/// An error of the operating system.
pub fn system(action: &str, source: std::io::Error) -> HypervisorError {
    HypervisorError::System {
        action: action.into(),
        source,
    }
}

/// A monitor's error where nothing is known about the process.
pub fn into_error(error: QmpError) -> HypervisorError {
    match error {
        QmpError::Closed => HypervisorError::Protocol("the monitor's connection was closed".into()),
        QmpError::Deadline { command, deadline } => HypervisorError::Deadline {
            command: command.into(),
            deadline,
        },
        QmpError::Refused {
            command,
            class: _,
            message,
        } => refused(command, &message),
        QmpError::Protocol(reason) => HypervisorError::Protocol(reason),
    }
}
