//! A QEMU under this test, and what its guest's memory holds.

use std::io::{BufRead as _, BufReader, IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

/// Where in the guest's memory the contents are, and how much: nothing there writes to it.
const AT: usize = 16 << 20;
const SIZE: usize = 64 << 20;

/// TCG on a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// Random bytes in a file.
pub struct Contents {
    directory: tempfile::TempDir,
    bytes: Vec<u8>,
}

impl Contents {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut bytes = vec![0; SIZE];
        let mut random = std::fs::File::open("/dev/urandom").unwrap();
        random.read_exact(&mut bytes).unwrap();
        std::fs::write(directory.path().join("contents"), &bytes).unwrap();
        Self { directory, bytes }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("contents")
    }
}

/// A QEMU, killed when it is dropped.
pub struct Hypervisor {
    process: Child,
    directory: tempfile::TempDir,
    monitor: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Hypervisor {
    /// At the source the contents are put into the guest's memory; at the destination only a stream can bring them.
    pub fn start(contents: &Contents, incoming: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qmp.sock");
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-machine", "q35,accel=tcg", "-m", "128M", "-display", "none"]);
        command.args(["-nodefaults", "-no-user-config", "-S", "-qmp"]);
        command.arg(format!("unix:{},server=on,wait=off", path.display()));
        if incoming {
            command.args(["-incoming", "defer"]);
        } else {
            command.arg("-device").arg(format!(
                "loader,file={},addr={AT},force-raw=on",
                contents.path().display()
            ));
        }
        let process = command.stdin(Stdio::null()).spawn().unwrap();
        let until = Instant::now() + PATIENCE;
        let monitor = loop {
            match UnixStream::connect(&path) {
                Ok(monitor) => break monitor,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        monitor.set_read_timeout(Some(PATIENCE)).unwrap();
        let lines = BufReader::new(monitor.try_clone().unwrap());
        let mut hypervisor = Self {
            process,
            directory,
            monitor,
            lines,
        };
        assert!(hypervisor.line().get("QMP").is_some());
        hypervisor.call("qmp_capabilities", json!({"enable": ["oob"]}));
        hypervisor
    }

    pub fn call(&mut self, command: &str, arguments: Value) -> Value {
        self.call_with(command, arguments, None)
    }

    /// With a descriptor beside it.
    pub fn call_with(&mut self, command: &str, arguments: Value, socket: Option<BorrowedFd<'_>>) -> Value {
        self.say(&json!({"execute": command, "arguments": arguments}), socket)
    }

    /// Out of band: answered while the monitor is held up by a migration that is paused.
    pub fn call_at_once(&mut self, command: &str, arguments: Value) -> Value {
        let order = json!({"exec-oob": command, "arguments": arguments, "id": "oob"});
        self.say(&order, None)
    }

    fn say(&mut self, order: &Value, socket: Option<BorrowedFd<'_>>) -> Value {
        let text = format!("{order}\n");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        let sockets = socket.as_slice();
        if !sockets.is_empty() {
            assert!(beside.push(SendAncillaryMessage::ScmRights(sockets)));
        }
        let bytes = [IoSlice::new(text.as_bytes())];
        let sent = sendmsg(&self.monitor, &bytes, &mut beside, SendFlags::empty()).unwrap();
        assert_eq!(sent, text.len());
        loop {
            let mut line = self.line();
            if let Some(error) = line.get("error") {
                panic!("{order}: {error}");
            }
            if let Some(answer) = line.get_mut("return") {
                return answer.take();
            }
        }
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Waits until the migration is so far.
    pub fn reaches(&mut self, status: &str) {
        let until = Instant::now() + PATIENCE;
        loop {
            let now = self.call("query-migrate", json!({}));
            let is = now.get("status").and_then(Value::as_str).unwrap_or("none");
            if is == status {
                return;
            }
            assert!(is != "failed" && Instant::now() < until, "not {status}: {now}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether its guest's memory holds the contents.
    pub fn holds(&mut self, contents: &Contents) -> bool {
        let path = self.directory.path().join("memory");
        let arguments = json!({"val": AT, "size": SIZE, "filename": path});
        self.call("pmemsave", arguments);
        std::fs::read(path).unwrap() == contents.bytes
    }

    pub fn quit(&mut self) {
        self.call("quit", json!({}));
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Hypervisor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        self.process.wait().unwrap();
    }
}
