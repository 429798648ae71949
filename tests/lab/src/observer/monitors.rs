//! The judge's own monitors: asks the hypervisors of a guest in turn, the first, the second and the first again, and
//! notes what they tell by themselves.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::running::{Running, Said, Sighting, judge_runs};

/// How long an answer is waited for before the next is asked: one that was stopped answers when it goes on.
const ANSWERS_WITHIN: Duration = Duration::from_millis(20);
/// Between two rounds.
const ASK_EVERY: Duration = Duration::from_millis(8);

/// Asks in a thread of its own, until it is dropped.
#[derive(Debug)]
pub struct Monitors {
    seen: Arc<Mutex<Vec<Sighting>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Monitors {
    /// Watches the hypervisors whose monitors are at these sockets, by host, as soon as each is there.
    #[must_use]
    pub fn watch(sockets: Vec<(String, PathBuf)>) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let over = Arc::new(AtomicBool::new(false));
        let (notes, end) = (Arc::clone(&seen), Arc::clone(&over));
        let thread = std::thread::spawn(move || {
            let mut lines: Vec<Monitor> = sockets.into_iter().map(Monitor::of).collect();
            while !end.load(Ordering::Relaxed) {
                for monitor in &mut lines {
                    monitor.ask(&notes);
                }
                if let Some(first) = lines.first_mut() {
                    first.ask(&notes);
                }
                std::thread::sleep(ASK_EVERY);
            }
        });
        Self {
            seen,
            over,
            thread: Some(thread),
        }
    }

    /// What was seen so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Sighting> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What that proves.
    #[must_use]
    pub fn verdict(&self) -> Running {
        judge_runs(&self.seen())
    }
}

impl Drop for Monitors {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // One that has panicked has said so.
            let _ = thread.join();
        }
    }
}

/// One hypervisor's.
struct Monitor {
    host: String,
    socket: PathBuf,
    open: Option<Open>,
}

struct Open {
    stream: UnixStream,
    unread: Vec<u8>,
    greeted: bool,
    /// When it was asked what it has not answered.
    asked_us: Option<i64>,
}

impl Monitor {
    fn of((host, socket): (String, PathBuf)) -> Self {
        Self {
            host,
            socket,
            open: None,
        }
    }

    /// Asks whether the guest runs, and notes the answer and whatever was told before it.
    fn ask(&mut self, notes: &Mutex<Vec<Sighting>>) {
        if self.open.is_none() {
            let Ok(stream) = UnixStream::connect(&self.socket) else {
                return;
            };
            if stream.set_read_timeout(Some(ANSWERS_WITHIN)).is_err() {
                return;
            }
            self.open = Some(Open {
                stream,
                unread: Vec::new(),
                greeted: false,
                asked_us: None,
            });
        }
        let Some(open) = &mut self.open else { return };
        let mut said = Vec::new();
        let lives = open.ask(&mut said);
        if !lives {
            said.push(Said::Closed { at_us: now_us() });
            self.open = None;
        }
        let host = &self.host;
        let sightings = said.into_iter().map(|said| Sighting {
            host: host.clone(),
            said,
        });
        notes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(sightings);
    }
}

impl Open {
    /// False: the other end is closed.
    fn ask(&mut self, said: &mut Vec<Said>) -> bool {
        if self.greeted && self.asked_us.is_none() {
            self.asked_us = Some(now_us());
            if !self.send(&json!({"execute": "query-status", "id": "runs"})) {
                return false;
            }
        }
        let mut bytes = [0; 4096];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return false,
                Ok(read) => self.unread.extend(bytes.iter().take(read)),
                Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {
                    return true;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return false,
            }
            let mut answered = false;
            while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                let Ok(message) = serde_json::from_slice::<Value>(&line) else {
                    return false;
                };
                if message.get("QMP").is_some() {
                    if !self.send(&json!({"execute": "qmp_capabilities"})) {
                        return false;
                    }
                    self.greeted = true;
                }
                answered |= message.get("id").is_some();
                said.extend(self.told(&message));
            }
            if answered {
                // Also where it was an error.
                self.asked_us = None;
                return true;
            }
        }
    }

    fn told(&mut self, message: &Value) -> Option<Said> {
        if let Some(runs) = message.pointer("/return/running").and_then(Value::as_bool) {
            return Some(Said::Status {
                asked_us: self.asked_us.take()?,
                answered_us: now_us(),
                runs,
            });
        }
        let part = |name: &str| message.pointer(name).and_then(Value::as_i64);
        let at_us = part("/timestamp/seconds")? * 1_000_000 + part("/timestamp/microseconds")?;
        match message.get("event").and_then(Value::as_str)? {
            "RESUME" => Some(Said::Resumed { at_us }),
            "STOP" => Some(Said::Stopped { at_us }),
            _ => None,
        }
    }

    fn send(&mut self, command: &Value) -> bool {
        let line = format!("{command}\n");
        self.stream.write_all(line.as_bytes()).is_ok()
    }
}

/// Unix time, which is what hypervisors tell of their events.
fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
