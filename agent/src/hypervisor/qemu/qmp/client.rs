//! One connection to QEMU's monitor, owned by one task; others send it requests.

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::QmpError;
use super::pace::Pace;
use super::wire::{Greeting, Lines, Message, RawEvent, Refusal, Version, parse};

/// QEMU stops reading its monitor, out-of-band commands too, when eight ordinary commands wait.
const COMMANDS_AT_ONCE: usize = 4;

/// How many requests may wait for the owner.
const REQUESTS_WAITING: usize = 16;

/// A request to QEMU.
#[derive(Debug)]
pub struct Command {
    name: &'static str,
    arguments: Value,
    file: Option<OwnedFd>,
    out_of_band: bool,
    deadline: Duration,
}

impl Command {
    /// A command without arguments, to be answered within five seconds.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            arguments: Value::Null,
            file: None,
            out_of_band: false,
            deadline: Duration::from_secs(5),
        }
    }

    /// With these arguments, an object.
    pub fn with(mut self, arguments: Value) -> Self {
        self.arguments = arguments;
        self
    }

    /// With a file that goes along with it.
    pub fn passing(mut self, file: OwnedFd) -> Self {
        self.file = Some(file);
        self
    }

    /// Past the commands that wait or hang. Few commands can.
    pub fn out_of_band(mut self) -> Self {
        self.out_of_band = true;
        self
    }

    /// To be answered within this time.
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }
}

/// A connection to a monitor. Clones share it; it is closed when the last is dropped.
#[derive(Clone)]
pub struct Client {
    requests: mpsc::Sender<Request>,
    ordinary: Arc<Semaphore>,
    greeting: Greeting,
}

struct Request {
    line: Vec<u8>,
    id: u64,
    file: Option<OwnedFd>,
    answer: Pending,
}

/// An ordinary command keeps its permit until QEMU has answered it, however long its caller waits.
struct Pending {
    reply: oneshot::Sender<Result<Value, Refusal>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Client {
    /// Greets QEMU on a connected socket. Each event is given to `on_event`, in order, by the owner's task.
    pub async fn greet(
        stream: UnixStream,
        deadline: Duration,
        on_event: impl FnMut(RawEvent) + Send + 'static,
    ) -> Result<Self, QmpError> {
        let (requests, requested) = mpsc::channel(REQUESTS_WAITING);
        let (greeted, greeting) = oneshot::channel();
        let owner = Owner {
            stream,
            lines: Lines::default(),
            outbox: None,
            pending: HashMap::new(),
            greeted: Some(greeted),
            on_event: Box::new(on_event),
            pace: Pace::new(Instant::now()),
            silenced_until: None,
        };
        tokio::spawn(owner.run(requested));
        let late = |_| QmpError::Deadline {
            command: "the connection",
            deadline,
        };
        let greeting = timeout(deadline, greeting)
            .await
            .map_err(late)?
            .map_err(|_| QmpError::Closed)?;
        let client = Self {
            requests,
            ordinary: Arc::new(Semaphore::new(COMMANDS_AT_ONCE)),
            greeting,
        };
        let wanted: &[&str] = if greeting.out_of_band { &["oob"] } else { &[] };
        client
            .call(
                Command::new("qmp_capabilities")
                    .with(json!({ "enable": wanted }))
                    .within(deadline),
            )
            .await?;
        Ok(client)
    }

    /// QEMU's version.
    pub fn version(&self) -> Version {
        self.greeting.version
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    /// Waits until the connection has ended and all its events have been given out.
    pub async fn closed(&self) {
        self.requests.closed().await;
    }

    /// Sends a command and waits for its answer. If this is given up, or its deadline passes, QEMU may still
    /// carry the command out.
    pub async fn call(&self, command: Command) -> Result<Value, QmpError> {
        let Command {
            name,
            arguments,
            file,
            out_of_band,
            deadline,
        } = command;
        let answer = async {
            // Without the capability an urgent command goes the ordinary way: better late than not at all.
            let urgent = out_of_band && self.greeting.out_of_band;
            let permit = if urgent {
                None
            } else {
                Some(
                    self.ordinary
                        .clone()
                        .acquire_owned()
                        .await
                        .map_err(|_| QmpError::Closed)?,
                )
            };
            let (reply, answer) = oneshot::channel();
            let id = next_id();
            let mut request = json!({ if urgent { "exec-oob" } else { "execute" }: name, "id": id });
            if let (Some(object), false) = (request.as_object_mut(), arguments.is_null()) {
                object.insert("arguments".into(), arguments);
            }
            let request = Request {
                line: format!("{request}\n").into_bytes(),
                id,
                file,
                answer: Pending {
                    reply,
                    _permit: permit,
                },
            };
            self.requests.send(request).await.map_err(|_| QmpError::Closed)?;
            answer
                .await
                .map_err(|_| QmpError::Closed)?
                .map_err(|Refusal { class, message }| QmpError::Refused {
                    command: name,
                    class,
                    message,
                })
        };
        timeout(deadline, answer).await.map_err(|_| QmpError::Deadline {
            command: name,
            deadline,
        })?
    }
}

/// Ids are unique in the process, so that an answer can never be taken for another's.
fn next_id() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// What is being written.
struct Outbox {
    line: Vec<u8>,
    written: usize,
    file: Option<OwnedFd>,
}

struct Owner {
    stream: UnixStream,
    lines: Lines,
    outbox: Option<Outbox>,
    pending: HashMap<u64, Pending>,
    greeted: Option<oneshot::Sender<Greeting>>,
    on_event: Box<dyn FnMut(RawEvent) + Send>,
    pace: Pace,
    /// Until when nothing is read, because QEMU has said too much.
    silenced_until: Option<Instant>,
}

/// Why the owner stops.
enum End {
    /// QEMU closed the connection, or it broke.
    Closed,
    /// QEMU broke the protocol.
    Protocol(String),
}

impl Owner {
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let end = loop {
            let interest = match (self.outbox.is_some(), self.silenced_until) {
                (true, None) => Some(Interest::READABLE | Interest::WRITABLE),
                (true, Some(_)) => Some(Interest::WRITABLE),
                (false, None) => Some(Interest::READABLE),
                (false, Some(_)) => None,
            };
            let silence = self.silenced_until.unwrap_or_else(Instant::now);
            tokio::select! {
                request = requests.recv(), if self.outbox.is_none() => {
                    let Some(request) = request else { return };
                    self.take(request);
                }
                () = tokio::time::sleep_until(silence.into()), if self.silenced_until.is_some() => {
                    self.silenced_until = None;
                }
                ready = self.stream.ready(interest.unwrap_or(Interest::READABLE)), if interest.is_some() => {
                    let step = match ready {
                        Ok(ready) => {
                            let written = if ready.is_writable() { self.write() } else { Ok(()) };
                            let heard = self.silenced_until.is_none() && (ready.is_readable() || ready.is_read_closed());
                            let read = if heard { self.read() } else { Ok(()) };
                            read.and(written)
                        }
                        Err(_) => Err(End::Closed),
                    };
                    if let Err(end) = step {
                        break end;
                    }
                }
            }
        };
        match end {
            End::Closed => tracing::debug!("QEMU closed its monitor"),
            End::Protocol(reason) => tracing::warn!(
                reason,
                "QEMU broke its protocol; its monitor's connection is closed"
            ),
        }
        // `requests` goes first, so that whoever sees an answer missing also sees the connection closed.
        drop(requests);
    }

    fn take(&mut self, request: Request) {
        self.pending.insert(request.id, request.answer);
        self.outbox = Some(Outbox {
            line: request.line,
            written: 0,
            file: request.file,
        });
    }

    /// Writes what the socket takes. The file goes with the first byte.
    fn write(&mut self) -> Result<(), End> {
        let Some(outbox) = &mut self.outbox else {
            return Ok(());
        };
        let rest = outbox.line.get(outbox.written..).unwrap_or_default();
        let file = outbox.file.as_ref();
        let result = self.stream.try_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let files = file.map(|file| [file.as_fd()]);
            if let Some(files) = &files {
                ancillary.push(SendAncillaryMessage::ScmRights(files));
            }
            let sent = sendmsg(
                &self.stream,
                &[IoSlice::new(rest)],
                &mut ancillary,
                SendFlags::NOSIGNAL,
            )?;
            Ok(sent)
        });
        match result {
            Ok(sent) => {
                outbox.written += sent;
                outbox.file = None;
                if outbox.written >= outbox.line.len() {
                    self.outbox = None;
                }
                Ok(())
            }
            Err(error)
                if error.kind() == std::io::ErrorKind::WouldBlock
                    || error.kind() == std::io::ErrorKind::Interrupted =>
            {
                Ok(())
            }
            Err(_) => Err(End::Closed),
        }
    }

    fn read(&mut self) -> Result<(), End> {
        let mut space = vec![0; 64 << 10];
        let count = match self.stream.try_read_vectored(&mut [IoSliceMut::new(&mut space)]) {
            Ok(0) => return Err(End::Closed),
            Ok(count) => count,
            Err(error)
                if error.kind() == std::io::ErrorKind::WouldBlock
                    || error.kind() == std::io::ErrorKind::Interrupted =>
            {
                return Ok(());
            }
            Err(_) => return Err(End::Closed),
        };
        self.lines.push(space.get(..count).unwrap_or_default());
        let mut said = 0;
        while let Some(line) = self
            .lines
            .next_line()
            .map_err(|error| End::Protocol(error.to_string()))?
        {
            said += 1;
            if !line.iter().all(u8::is_ascii_whitespace) {
                self.hear(parse(&line).map_err(End::Protocol)?)?;
            }
        }
        let silenced = self.pace.heard(Instant::now(), count, said);
        if silenced.is_some() && self.silenced_until.is_none() {
            tracing::debug!("QEMU says more over its monitor than is read");
        }
        self.silenced_until = silenced;
        Ok(())
    }

    fn hear(&mut self, message: Message) -> Result<(), End> {
        match message {
            Message::Greeting(greeting) => {
                let greeted = self
                    .greeted
                    .take()
                    .ok_or_else(|| End::Protocol("the monitor greeted twice".into()))?;
                // Whoever waited for it may have given up; then the requests' end closes the connection.
                let _ = greeted.send(greeting);
            }
            Message::Event(event) => (self.on_event)(event),
            Message::Reply { id, result } => {
                let pending = id.and_then(|id| self.pending.remove(&id));
                let Some(pending) = pending else {
                    return Err(End::Protocol("the monitor answered what was not asked".into()));
                };
                // The caller may have given up at its deadline.
                let _ = pending.reply.send(result);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

    use std::io::Read;

    use super::*;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    const GREETING: &[u8] = b"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 2, \"minor\": 0, \"major\": 10}}, \"capabilities\": [\"oob\"]}}\n";
    const SOON: Duration = Duration::from_secs(5);

    /// The far end of a connection, scripted.
    struct Monitor {
        stream: BufReader<UnixStream>,
    }

    impl Monitor {
        async fn command(&mut self) -> Value {
            let mut line = String::new();
            self.stream.read_line(&mut line).await.unwrap();
            serde_json::from_str(&line).unwrap()
        }

        async fn say(&mut self, text: &[u8]) {
            self.stream.write_all(text).await.unwrap();
        }

        async fn answer(&mut self, command: &Value, value: Value) {
            let line = format!("{}\r\n", json!({ "return": value, "id": command["id"] }));
            self.say(line.as_bytes()).await;
        }
    }

    async fn connected() -> (Client, Monitor, mpsc::UnboundedReceiver<RawEvent>) {
        let (near, far) = UnixStream::pair().unwrap();
        let (heard, events) = mpsc::unbounded_channel();
        let greet = tokio::spawn(Client::greet(near, SOON, move |event| {
            let _ = heard.send(event);
        }));
        let mut monitor = Monitor {
            stream: BufReader::new(far),
        };
        monitor.say(GREETING).await;
        let command = monitor.command().await;
        assert_eq!(command["arguments"], json!({"enable": ["oob"]}));
        monitor.answer(&command, json!({})).await;
        (greet.await.unwrap().unwrap(), monitor, events)
    }

    #[tokio::test]
    async fn answers_find_their_questions_in_any_order() {
        let (client, mut monitor, mut events) = connected().await;
        let slow = tokio::spawn({
            let client = client.clone();
            async move { client.call(Command::new("slow")).await }
        });
        let first = monitor.command().await;
        let urgent = tokio::spawn({
            let client = client.clone();
            async move { client.call(Command::new("urgent").out_of_band()).await }
        });
        let second = monitor.command().await;
        assert_eq!(
            (first["execute"].as_str(), second["exec-oob"].as_str()),
            (Some("slow"), Some("urgent"))
        );
        monitor.answer(&second, json!(2)).await;
        monitor
            .say(b"{\"event\": \"NEWS\", \"timestamp\": {\"seconds\": 1, \"microseconds\": 2}}\n")
            .await;
        monitor.answer(&first, json!(1)).await;
        assert_eq!(urgent.await.unwrap().unwrap(), json!(2));
        assert_eq!(slow.await.unwrap().unwrap(), json!(1));
        assert_eq!(events.recv().await.unwrap().at_micros, 1_000_002);
    }

    #[tokio::test]
    async fn a_monitor_that_hangs_ends_in_a_deadline_and_keeps_room_for_urgent_commands() {
        let (client, mut monitor, _events) = connected().await;
        let short = Duration::from_millis(30);
        for _ in 0..(COMMANDS_AT_ONCE + 2) {
            let result = client.call(Command::new("hung").within(short)).await;
            assert!(
                matches!(result, Err(QmpError::Deadline { command: "hung", .. })),
                "{result:?}"
            );
        }
        let urgent = tokio::spawn(async move { client.call(Command::new("yank").out_of_band()).await });
        let mut sent = Vec::new();
        let last = loop {
            let command = monitor.command().await;
            if command.get("exec-oob").is_some() {
                break command;
            }
            sent.push(command);
        };
        // More than these would have made QEMU deaf.
        assert_eq!(sent.len(), COMMANDS_AT_ONCE);
        monitor.answer(&last, json!({})).await;
        assert!(urgent.await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn r11_garbage_and_over_long_lines_close_the_connection() {
        for junk in [
            b"hello\n".to_vec(),
            vec![b'{'; super::super::wire::MAX_LINE_BYTES + 2],
            b"{\"return\": {}, \"id\": 99999999}\n".to_vec(),
            [&b"{\"event\": \"A\", \"data\": "[..], &[b'['; 10_000], b"\n"].concat(),
            GREETING.to_vec(),
        ] {
            let (client, mut monitor, _events) = connected().await;
            let call = tokio::spawn({
                let client = client.clone();
                async move { client.call(Command::new("query-status")).await }
            });
            monitor.command().await;
            // The client may close before all of it is written.
            let _ = monitor.stream.write_all(&junk).await;
            assert!(matches!(call.await.unwrap(), Err(QmpError::Closed)));
            tokio::time::timeout(SOON, client.closed()).await.unwrap();
            assert!(client.is_closed());
        }
    }

    #[tokio::test]
    async fn r11_a_flood_of_events_is_read_slowly_and_answers_still_come() {
        let (client, monitor, mut events) = connected().await;
        let begin = Instant::now();
        let count = tokio::spawn(async move {
            let mut heard = 0_u32;
            while events.recv().await.is_some() {
                heard += 1;
            }
            heard
        });
        let (mut reading, mut writing) = monitor.stream.into_inner().into_split();
        let flood = tokio::spawn(async move {
            let event = b"{\"event\": \"A\"}\n".repeat(64);
            while begin.elapsed() < Duration::from_secs(1) {
                writing.write_all(&event).await.unwrap();
            }
            writing
        });
        let asked = tokio::spawn({
            let client = client.clone();
            async move {
                client
                    .call(Command::new("query-status").within(Duration::from_secs(60)))
                    .await
            }
        });
        let mut line = String::new();
        BufReader::new(&mut reading).read_line(&mut line).await.unwrap();
        let command: Value = serde_json::from_str(&line).unwrap();
        let mut writing = flood.await.unwrap();
        let answer = format!("{}\n", json!({ "return": 1, "id": command["id"] }));
        writing.write_all(answer.as_bytes()).await.unwrap();
        let outcome = asked.await.unwrap();
        let seconds = begin.elapsed().as_secs_f64();
        drop((client, writing, reading));
        let heard = f64::from(count.await.unwrap());
        // What one reading can take beyond the allowance is less than 64 KiB, 4096 such events.
        assert!(
            heard < 4096.0 + 4096.0 + 512.0 * seconds,
            "{heard} in {seconds} s"
        );
        assert_eq!(outcome.unwrap(), json!(1));
    }

    #[tokio::test]
    async fn a_silent_monitor_is_given_up_and_its_connection_closed() {
        let (near, far) = UnixStream::pair().unwrap();
        let result = Client::greet(near, Duration::from_millis(30), |_| ()).await;
        assert!(matches!(result, Err(QmpError::Deadline { .. })));
        let mut rest = String::new();
        assert_eq!(
            tokio::time::timeout(SOON, BufReader::new(far).read_line(&mut rest))
                .await
                .unwrap()
                .unwrap(),
            0
        );
    }

    #[tokio::test]
    async fn a_file_goes_with_its_command() {
        let (client, monitor, _events) = connected().await;
        let (mut reader, writer) = std::io::pipe().unwrap();
        let call =
            tokio::spawn(async move { client.call(Command::new("getfd").passing(writer.into())).await });
        let stream = monitor.stream.into_inner();
        let mut files = Vec::new();
        while files.is_empty() {
            stream.readable().await.unwrap();
            let _ = stream.try_io(Interest::READABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
                let mut ancillary = rustix::net::RecvAncillaryBuffer::new(&mut space);
                let mut bytes = [0; 4096];
                rustix::net::recvmsg(
                    &stream,
                    &mut [IoSliceMut::new(&mut bytes)],
                    &mut ancillary,
                    rustix::net::RecvFlags::CMSG_CLOEXEC,
                )?;
                for message in ancillary.drain() {
                    if let rustix::net::RecvAncillaryMessage::ScmRights(passed) = message {
                        files.extend(passed);
                    }
                }
                Ok(())
            });
        }
        assert_eq!(files.len(), 1);
        std::io::Write::write_all(&mut std::fs::File::from(files.remove(0)), b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        drop(stream);
        assert!(call.await.unwrap().is_err());
    }
}
