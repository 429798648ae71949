//! A person's QMP session with one QEMU: blocking, one command after the other, events kept in their order.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

/// The longest that QEMU may be silent when something is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a QEMU may take from its start until it answers.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// A session.
pub struct Session {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    events: VecDeque<Value>,
}

impl Session {
    /// Connects as soon as the socket is there.
    pub fn open(socket: &Path) -> anyhow::Result<Self> {
        let deadline = Instant::now() + ANSWERS_WITHIN;
        let writer = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => {
                    return Err(error).with_context(|| format!("connect to {}", socket.display()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        writer.set_read_timeout(Some(PATIENCE))?;
        let mut session = Self {
            reader: BufReader::new(writer.try_clone()?),
            writer,
            events: VecDeque::new(),
        };
        session.read().context("read the greeting")?;
        session.call("qmp_capabilities", json!({}))?;
        Ok(session)
    }

    fn read(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line).context("read from QEMU")? == 0 {
            bail!("QEMU has closed its monitor");
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Gives a command and its answer's `return`.
    pub fn call(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        let mut line = json!({"execute": command, "arguments": arguments}).to_string();
        line.push('\n');
        self.writer.write_all(line.as_bytes())?;
        loop {
            let mut message = self.read().with_context(|| command.to_owned())?;
            if message.get("event").is_some() {
                self.events.push_back(message);
            } else if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            } else {
                bail!("{command}: {message}");
            }
        }
    }

    /// Waits for the next event that is like that, and gives back when QEMU says it was, in microseconds.
    pub fn wait(&mut self, name: &str, status: Option<&str>) -> anyhow::Result<i64> {
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => self.read().with_context(|| format!("wait for {name}"))?,
            };
            let said = event.pointer("/data/status").and_then(Value::as_str);
            if said == Some("failed") {
                bail!("the migration failed: {event}");
            }
            if event.get("event").and_then(Value::as_str) == Some(name)
                && (status.is_none() || said == status)
            {
                let field = |path: &str| event.pointer(path).and_then(Value::as_i64);
                let seconds = field("/timestamp/seconds").context("an event has no time")?;
                return Ok(seconds * 1_000_000 + field("/timestamp/microseconds").unwrap_or(0));
            }
        }
    }
}
