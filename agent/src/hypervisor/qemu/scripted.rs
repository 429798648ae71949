//! Tests against a scripted monitor: what a real QEMU can hardly be brought to do.
// The sleeping processes are waited for by `Process::ended`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::zombie_processes
)]

use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::{Command as Program, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::guest::{MONITOR_SOCKET, QemuGuest, kill};
use super::process::Process;
use crate::hypervisor::{
    Guest, GuestEventKind, HypervisorError, Place, RunState, Stream, StreamKey, StreamLimits, Way,
};

/// A guest whose process sleeps and whose monitor is a script.
struct Scripted {
    directory: tempfile::TempDir,
    process: Arc<Process>,
    uid: uuid::Uuid,
    listener: Option<UnixListener>,
    heard: mpsc::UnboundedReceiver<Value>,
    hear: mpsc::UnboundedSender<Value>,
}

/// What the script says to a command: the value to return, or nothing at all.
type Script = Box<dyn FnMut(&str, &Value) -> Option<Value> + Send>;

impl Scripted {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join(MONITOR_SOCKET)).unwrap();
        let child = Program::new("sleep")
            .arg("600")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let process = Arc::new(Process::of_child(child.id()).unwrap());
        let (hear, heard) = mpsc::unbounded_channel();
        Self {
            directory,
            process,
            uid: uuid::Uuid::new_v4(),
            listener: Some(listener),
            heard,
            hear,
        }
    }

    /// Answers every connection in turn by this script.
    fn play(&mut self, version: (u32, u32), mut script: Script) {
        let (listener, uid, hear) = (self.listener.take().unwrap(), self.uid, self.hear.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                converse(stream, version, uid, &hear, &mut script).await;
            }
        });
    }

    async fn guest(&self) -> Result<Arc<QemuGuest>, HypervisorError> {
        let directory = self.directory.path().to_owned();
        QemuGuest::attach(self.process.clone(), self.uid, directory, Duration::from_secs(5)).await
    }

    /// The names of the commands so far, out-of-band ones with a mark.
    fn commands(&mut self) -> Vec<String> {
        let name = |command: Value| match command["exec-oob"].as_str() {
            Some(name) => format!("!{name}"),
            None => command["execute"].as_str().unwrap().to_owned(),
        };
        std::iter::from_fn(|| self.heard.try_recv().ok())
            .map(name)
            .collect()
    }
}

async fn converse(
    stream: UnixStream,
    version: (u32, u32),
    uid: uuid::Uuid,
    hear: &mpsc::UnboundedSender<Value>,
    script: &mut Script,
) {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    let greeting = json!({"QMP": {"version": {"qemu": {"major": version.0, "minor": version.1, "micro": 0}}, "capabilities": ["oob"]}});
    let _ = writer.write_all(format!("{greeting}\r\n").as_bytes()).await;
    while let Ok(Some(line)) = lines.next_line().await {
        let command: Value = serde_json::from_str(&line).unwrap();
        let name = command
            .get("execute")
            .or_else(|| command.get("exec-oob"))
            .unwrap()
            .as_str()
            .unwrap()
            .to_owned();
        let answer = match name.as_str() {
            "qmp_capabilities" => Some(json!({})),
            "query-uuid" => Some(json!({"UUID": uid.to_string()})),
            name => {
                let _ = hear.send(command.clone());
                script(name, &command["arguments"])
            }
        };
        match answer {
            Some(Value::String(raw)) if raw == "hang up" => return,
            Some(answer) => {
                let line = json!({"return": answer, "id": command["id"]});
                let _ = writer.write_all(format!("{line}\r\n").as_bytes()).await;
            }
            None => {}
        }
    }
}

#[tokio::test]
async fn a_stream_that_stays_in_cancelling_is_cut_after_two_seconds() {
    let mut scripted = Scripted::new();
    let mut state = "active";
    scripted.play(
        (10, 0),
        Box::new(move |name, _| {
            match name {
                "migrate_cancel" => state = "cancelling",
                "yank" => state = "cancelled",
                _ => {}
            }
            Some(if name == "query-migrate" {
                json!({ "status": state })
            } else {
                json!({})
            })
        }),
    );
    let guest = scripted.guest().await.unwrap();
    let begin = std::time::Instant::now();
    guest.cancel_stream().await.unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(2) && begin.elapsed() < Duration::from_secs(5));
    let commands = scripted.commands();
    assert!(commands.contains(&"migrate_cancel".to_owned()) && commands.contains(&"!yank".to_owned()));
    kill(&scripted.process).await.unwrap();
}

#[tokio::test]
async fn a_monitor_that_hangs_in_a_cancel_is_cut_out_of_band() {
    let mut scripted = Scripted::new();
    let (mut hangs, mut cut) = (false, false);
    scripted.play(
        (10, 0),
        Box::new(move |name, _| {
            hangs |= name == "migrate_cancel";
            cut |= name == "yank";
            let status = if cut { "cancelled" } else { "active" };
            (!hangs || cut).then(|| {
                if name == "query-migrate" {
                    json!({ "status": status })
                } else {
                    json!({})
                }
            })
        }),
    );
    let guest = scripted.guest().await.unwrap();
    guest.cancel_stream().await.unwrap();
    assert!(scripted.commands().contains(&"!yank".to_owned()));
    kill(&scripted.process).await.unwrap();
}

#[tokio::test]
async fn a_lost_connection_is_made_again_while_the_process_lives() {
    let mut scripted = Scripted::new();
    let mut times = 0;
    scripted.play(
        (10, 0),
        Box::new(move |_, _| {
            times += 1;
            Some(if times == 1 {
                json!("hang up")
            } else {
                json!({"status": "from-the-future"})
            })
        }),
    );
    let guest = scripted.guest().await.unwrap();
    let mut events = guest.subscribe();
    assert!(matches!(
        guest.run_state().await,
        Err(HypervisorError::Protocol(_))
    ));
    assert_eq!(guest.run_state().await.unwrap(), RunState::Broken);
    assert!(matches!(guest.stream().await, Err(HypervisorError::Protocol(_))));
    kill(&scripted.process).await.unwrap();
    let died = tokio::time::timeout(Duration::from_secs(10), events.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(died.kind, GuestEventKind::Died);
}

#[tokio::test]
async fn older_versions_are_asked_for_what_they_have() {
    for (version, late, survives) in [
        ((8, 2), true, false),
        ((9, 1), true, true),
        ((10, 0), false, true),
    ] {
        let mut scripted = Scripted::new();
        scripted.play(version, Box::new(|_, _| Some(json!({}))));
        let guest = scripted.guest().await.unwrap();
        let (near, _far) = StdUnixStream::pair().unwrap();
        guest.receive(Stream::plain(near)).await.unwrap();
        let commands: Vec<Value> = std::iter::from_fn(|| scripted.heard.try_recv().ok()).collect();
        let list = commands[0]["arguments"]["capabilities"]
            .as_array()
            .unwrap()
            .clone();
        let has = |name: &str| {
            list.iter()
                .any(|entry| entry["capability"] == name && entry["state"] == true)
        };
        assert_eq!(
            (has("late-block-activate"), has("return-path")),
            (late, true),
            "{version:?}"
        );
        assert!(!has("pause-before-switchover"));
        let last = commands.last().unwrap();
        assert_eq!(
            last["arguments"].get("exit-on-error").is_some(),
            survives,
            "{version:?}"
        );
        kill(&scripted.process).await.unwrap();
    }
}

/// A guest may run in an older version than the one that its host has by now.
#[tokio::test]
async fn a_version_that_may_not_outlive_it_sends_nothing_encrypted_over_several_connections() {
    for (version, connections, encrypted, sends) in [
        ((10, 1), 4, true, false),
        ((9, 2), 2, true, false),
        ((10, 1), 4, false, true),
        ((10, 1), 1, true, true),
        ((11, 0), 4, true, false),
        ((11, 1), 4, true, true),
    ] {
        let mut scripted = Scripted::new();
        scripted.play(version, Box::new(|_, _| Some(json!({}))));
        let guest = scripted.guest().await.unwrap();
        let stream = Stream {
            way: Way::Place {
                place: Place::Tcp(([192, 0, 2, 2], 49152).into()),
                connections,
            },
            key: encrypted.then(|| StreamKey::new([7; 32])),
        };
        let limits = StreamLimits {
            bandwidth: 0,
            downtime: Duration::ZERO,
        };
        let outcome = guest.send(stream, limits).await;
        let refused = matches!(outcome, Err(HypervisorError::Refused(_)));
        assert_eq!((refused, outcome.is_ok()), (!sends, sends), "{version:?}");
        let begun = scripted.commands().contains(&"migrate".to_owned());
        assert_eq!(begun, sends, "{version:?}");
        kill(&scripted.process).await.unwrap();
    }
}

#[tokio::test]
async fn r11_limits_and_reasons_are_bounded() {
    let mut scripted = Scripted::new();
    let reasons: Vec<String> = (0..100)
        .map(|number| format!("{number} {}", "because ".repeat(1000)))
        .collect();
    scripted.play(
        (10, 0),
        Box::new(move |_, _| Some(json!({ "blocked-reasons": reasons }))),
    );
    let guest = scripted.guest().await.unwrap();
    let blockers = guest.migration_blockers().await.unwrap();
    assert!(blockers.len() == 16 && blockers.iter().all(|reason| reason.len() <= 1024));
    scripted.commands();
    for (limits, bandwidth, downtime) in [
        (
            StreamLimits {
                bandwidth: 0,
                downtime: Duration::ZERO,
            },
            json!(0),
            json!(1),
        ),
        (
            StreamLimits {
                bandwidth: u64::MAX,
                downtime: Duration::MAX,
            },
            json!(i64::MAX),
            json!(2_000_000),
        ),
        (
            StreamLimits {
                bandwidth: 7,
                downtime: Duration::from_micros(1500),
            },
            json!(7),
            json!(2),
        ),
    ] {
        guest.set_limits(limits).await.unwrap();
        let command = scripted.heard.recv().await.unwrap();
        assert_eq!(
            (
                &command["arguments"]["max-bandwidth"],
                &command["arguments"]["downtime-limit"]
            ),
            (&bandwidth, &downtime)
        );
    }
    kill(&scripted.process).await.unwrap();
}

#[tokio::test]
async fn an_impostor_is_not_taken_for_the_guest() {
    let mut scripted = Scripted::new();
    scripted.play((10, 0), Box::new(|_, _| Some(json!({}))));
    let other = QemuGuest::attach(
        scripted.process.clone(),
        uuid::Uuid::new_v4(),
        scripted.directory.path().to_owned(),
        Duration::from_secs(5),
    );
    assert!(matches!(other.await, Err(HypervisorError::Protocol(_))));
    kill(&scripted.process).await.unwrap();
}

#[tokio::test]
async fn nobody_lets_a_guest_run_that_has_come_to_an_end_of_its_own() {
    for status in ["shutdown", "guest-panicked", "io-error", "internal-error"] {
        let mut scripted = Scripted::new();
        let script: Script = Box::new(move |name, _| match name {
            "query-status" => Some(json!({"status": status})),
            _ => Some(json!({})),
        });
        scripted.play((10, 0), script);
        let guest = scripted.guest().await.unwrap();
        assert!(matches!(
            guest.resume().await,
            Err(HypervisorError::Command { .. })
        ));
        assert!(!scripted.commands().contains(&"cont".to_owned()), "{status}");
        kill(&scripted.process).await.unwrap();
    }
}

#[tokio::test]
async fn an_accepted_cont_is_no_refusal_whatever_is_seen_after_it() {
    let mut scripted = Scripted::new();
    let script: Script = Box::new(|name, _| match name {
        "query-status" => Some(json!({"status": "paused"})),
        _ => Some(json!({})),
    });
    scripted.play((10, 0), script);
    let guest = scripted.guest().await.unwrap();
    assert!(matches!(guest.resume().await, Err(HypervisorError::Protocol(_))));
    assert!(scripted.commands().contains(&"cont".to_owned()));
    kill(&scripted.process).await.unwrap();
}
