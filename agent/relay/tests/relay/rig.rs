//! Two relays, and this test as the agents and the hypervisors of both sides.

use std::cell::RefCell;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use godwit_relay::channel::{Channel, ChannelKind, Token};
use godwit_relay::client::{self, Notice, Place, Relay};
use godwit_relay::hello::{Hello, HelloReader};
use godwit_relay::limits::Limits;
use godwit_relay::order::{Begin, ChannelState, Credentials, End, Ending, Event, OpenFailure, Opening};
use uuid::Uuid;

use crate::authority::{Authority, DESTINATION, SOURCE};

pub const PATIENCE: Duration = Duration::from_secs(8);
pub const MIGRATION: Uuid = Uuid::from_u128(0xabc);

/// A relay, and what it tells.
pub struct Agent {
    pub relay: Relay,
    pub notices: Receiver<Notice>,
    pub directory: tempfile::TempDir,
    pub process: Option<Child>,
    /// What came and was not yet looked for.
    stash: RefCell<Vec<Event>>,
}

impl Agent {
    /// A relay within this process, with time limits of its own.
    pub fn within(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("relay.sock");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || godwit_relay::run(&listener, limits).unwrap());
        let (relay, notices) = attach(path);
        Self {
            relay,
            notices,
            directory,
            process: None,
            stash: RefCell::default(),
        }
    }

    /// The program.
    pub fn program() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("relay.sock");
        let program = Command::new(env!("CARGO_BIN_EXE_godwit-relay"));
        let process = client::start(program, &path).unwrap();
        let (relay, notices) = attach(path);
        Self {
            relay,
            notices,
            directory,
            process: Some(process),
            stash: RefCell::default(),
        }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("relay.sock")
    }

    /// The agent is replaced by another one.
    pub fn again(&mut self) {
        (self.relay, self.notices) = attach(self.path());
    }

    pub fn begin(&self, end: End, peer: &str, credentials: Credentials) {
        let begin = Begin {
            migration: MIGRATION,
            end,
            peer: peer.to_owned(),
            credentials,
        };
        self.relay.begin(begin).unwrap();
    }

    /// The first event that is looked for; others are kept.
    pub fn event<T>(&self, wanted: impl Fn(&Event) -> Option<T>) -> T {
        let mut stash = self.stash.borrow_mut();
        if let Some((at, found)) = stash
            .iter()
            .enumerate()
            .find_map(|(at, event)| Some((at, wanted(event)?)))
        {
            stash.remove(at);
            return found;
        }
        let until = Instant::now() + PATIENCE;
        while let Ok(Notice::Event(event)) = self
            .notices
            .recv_timeout(until.saturating_duration_since(Instant::now()))
        {
            match wanted(&event) {
                Some(found) => return found,
                None => stash.push(event),
            }
        }
        panic!("what was waited for has not come, but {stash:?}");
    }

    pub fn up(&self, name: Channel) {
        self.event(|event| (*event == Event::Up { channel: name }).then_some(()));
    }

    pub fn ended(&self, name: Channel) -> (u64, u64, Ending) {
        self.event(|event| {
            let Event::Ended {
                channel,
                sent,
                received,
                ending,
            } = event
            else {
                return None;
            };
            (*channel == name).then(|| (*sent, *received, ending.clone()))
        })
    }

    pub fn failed(&self, name: Channel) -> OpenFailure {
        self.event(|event| {
            let Event::Failed { channel, failure } = event else {
                return None;
            };
            (*channel == name).then(|| failure.clone())
        })
    }

    pub fn rejected(&self) -> OpenFailure {
        self.event(|event| {
            let Event::Rejected { failure } = event else {
                return None;
            };
            Some(failure.clone())
        })
    }

    pub fn state(&self, name: Channel) -> ChannelState {
        let status = self.relay.status().unwrap();
        let found = status.channels.into_iter().find(|known| known.channel == name);
        found.unwrap().state
    }

    /// Expects a channel; the hypervisor's end of it.
    pub fn expect(&self, opening: &Opening) -> UnixStream {
        let (hypervisor, relay) = UnixStream::pair().unwrap();
        self.relay
            .expect(opening.clone(), Place::Socket(relay.as_fd()))
            .unwrap();
        patient(hypervisor)
    }

    /// Opens a channel; the hypervisor's end of it.
    pub fn open(&self, opening: &Opening) -> UnixStream {
        let (hypervisor, relay) = UnixStream::pair().unwrap();
        self.relay.open(opening.clone(), &relay).unwrap();
        patient(hypervisor)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.relay.close();
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            process.wait().unwrap();
        }
    }
}

fn attach(path: PathBuf) -> (Relay, Receiver<Notice>) {
    let (tell, notices) = channel();
    let relay = Relay::attach(&path, PATIENCE, move |notice| drop(tell.send(notice))).unwrap();
    (relay, notices)
}

/// A socket that does not let a test hang.
pub fn patient(socket: UnixStream) -> UnixStream {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// What the destination's agent does with a connection to its port.
pub fn hand_on(mut socket: TcpStream, to: &Relay) -> Hello {
    let mut reader = HelloReader::new();
    let hello = loop {
        let mut bytes = [0; 512];
        let read = socket.read(&mut bytes).unwrap();
        assert_ne!(read, 0, "it was closed before it said what it is");
        if let Some(hello) = reader.push(&bytes[..read]).unwrap() {
            break hello;
        }
    };
    to.arrived(&socket, reader.into_bytes()).unwrap();
    hello
}

/// A name and a new token.
pub fn opening(kind: ChannelKind, number: u16) -> Opening {
    Opening {
        channel: Channel::new(kind, number),
        token: Token::generate().unwrap(),
    }
}

pub fn memory() -> Opening {
    opening(ChannelKind::Memory, 0)
}

/// Both relays, begun.
pub struct Rig {
    pub authority: Authority,
    pub source: Agent,
    pub destination: Agent,
    pub port: TcpListener,
}

impl Rig {
    pub fn new() -> Self {
        Self::of(Agent::within(Limits::default()), Agent::within(Limits::default()))
    }

    pub fn of(source: Agent, destination: Agent) -> Self {
        let authority = Authority::new();
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        source.begin(
            End::Source {
                destination: port.local_addr().unwrap(),
            },
            DESTINATION,
            authority.of(SOURCE),
        );
        destination.begin(End::Destination, SOURCE, authority.of(DESTINATION));
        Self {
            authority,
            source,
            destination,
            port,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.port.local_addr().unwrap()
    }

    /// The next connection at the destination's port, handed on.
    pub fn arrive(&self) {
        let (socket, _) = self.port.accept().unwrap();
        assert_eq!(hand_on(socket, &self.destination.relay).tunnel(), Some(MIGRATION));
    }

    /// A channel that is up; the hypervisors' ends of it, the source's first.
    pub fn channel(&self, opening: &Opening) -> (UnixStream, UnixStream) {
        let far = self.destination.expect(opening);
        let near = self.source.open(opening);
        self.arrive();
        self.source.up(opening.channel);
        self.destination.up(opening.channel);
        (near, far)
    }
}
