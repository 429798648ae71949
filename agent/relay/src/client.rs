//! The agent's end of a relay's control socket.
//!
//! Everything here blocks, for no longer than the time that is given: an asynchronous agent calls it where blocking is
//! allowed. Events come on a thread of their own, to a function that passes them on.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::control::{FrameError, receive, send};
use crate::data::short;
use crate::limits::HELLO;
use crate::order::{Answer, Begin, Credentials, Event, Opening, Order, OrderRefusal, Said, Status};

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No relay listens there (any more).
    #[error("no relay can be reached at {}", path.display())]
    Unreachable {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The relay refuses. Nothing has changed.
    #[error(transparent)]
    Refused(#[from] OrderRefusal),
    /// The relay did not answer in time. Whether the order was carried out is not known; attach anew and ask.
    #[error("the relay has not answered within {0:?}")]
    Deadline(Duration),
    /// The connection is gone: the relay has ended, or another agent has taken over.
    #[error("the relay's connection is gone: {0}")]
    Gone(String),
    /// The relay answers something else than was asked.
    #[error("the relay's answer is not one to this order")]
    Answer,
}

/// What comes from a relay by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// An event.
    Event(Event),
    /// The connection is gone: nothing more comes. The relay has ended, or another agent has taken over.
    Gone,
}

/// Where a hypervisor's channel comes from or leads to.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// A socket: listening for [`Relay::listen`], connected for [`Relay::expect`]. The relay makes it a blocking one.
    Socket(BorrowedFd<'a>),
    /// A path: the relay makes the listening socket there, or connects to it once the channel has come.
    Path(&'a Path),
}

/// A connection to a relay.
///
/// Dropped, it leaves the relay as it is; [`Relay::close`] ends it.
#[derive(Debug)]
pub struct Relay {
    stream: UnixStream,
    within: Duration,
    /// The answers; locked for the time of one order, so that each gets its own.
    answers: Mutex<Receiver<Answer>>,
}

/// Makes the control socket at the path, where nothing may be yet, and starts the relay with it as standard input.
/// `command` is the program with whatever user, group and cgroup it is to have, and no arguments.
///
/// The relay needs no descriptor but standard input and error. It never ends with its parent.
///
/// # Errors
/// When the socket cannot be made, or the program not started.
pub fn start(mut command: Command, path: &Path) -> io::Result<Child> {
    let listener = UnixListener::bind(path)?;
    command
        .arg("-")
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null());
    let started = command.spawn();
    if started.is_err() {
        let _ = std::fs::remove_file(path);
    }
    started
}

/// Two connected sockets for a hypervisor's channel: the first is for the hypervisor, with as much room for what it
/// sends as the host allows (up to `wanted` bytes), the second is for [`Relay::open`] or [`Relay::expect`].
///
/// # Errors
/// When the kernel gives none.
pub fn hypervisor_pair(wanted: usize) -> io::Result<(UnixStream, UnixStream)> {
    let (hypervisor, relay) = UnixStream::pair()?;
    rustix::net::sockopt::set_socket_send_buffer_size(&hypervisor, wanted)?;
    Ok((hypervisor, relay))
}

impl Relay {
    /// Connects to a relay, in place of any agent that was connected before. `notify` is called on a thread of its
    /// own, in order; as long as it blocks, no answer comes.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`].
    pub fn attach(
        path: &Path,
        within: Duration,
        notify: impl FnMut(Notice) + Send + 'static,
    ) -> Result<Self, ClientError> {
        let unreachable = |source| ClientError::Unreachable {
            path: path.to_owned(),
            source,
        };
        let stream = crate::data::connect_unix(path, within).map_err(unreachable)?;
        Self::over(stream, within, notify).map_err(unreachable)
    }

    fn over(
        stream: UnixStream,
        within: Duration,
        notify: impl FnMut(Notice) + Send + 'static,
    ) -> io::Result<Self> {
        stream.set_write_timeout(Some(within))?;
        let listening = stream.try_clone()?;
        let (answered, answers) = sync_channel(1);
        std::thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || listen(&listening, &answered, notify))?;
        Ok(Self {
            stream,
            within,
            answers: Mutex::new(answers),
        })
    }

    /// Tells it what it is for. Once.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn begin(&self, begin: Begin) -> Result<(), ClientError> {
        self.order(&Order::Begin(begin), None)
    }

    /// Gives it other credentials, for the connections that are made from now on.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn renew(&self, credentials: Credentials) -> Result<(), ClientError> {
        self.order(&Order::Renew(credentials), None)
    }

    /// Source: opens a channel for the hypervisor at the other end of `socket`. Whether it comes to be is told by
    /// [`Event::Up`] or [`Event::Failed`].
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn open(&self, opening: Opening, socket: impl AsFd) -> Result<(), ClientError> {
        self.order(&Order::Open(opening), Some(socket.as_fd()))
    }

    /// Source: lets the hypervisor connect as often as there are channels, which are opened in this order. It runs
    /// with this user id; others are turned away.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn listen(&self, at: Place<'_>, uid: u32, channels: Vec<Opening>) -> Result<(), ClientError> {
        let (path, socket) = at.parts();
        self.order(&Order::Listen { path, uid, channels }, socket)
    }

    /// Destination: lets a channel come, which leads to that place.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn expect(&self, opening: Opening, to: Place<'_>) -> Result<(), ClientError> {
        let (path, socket) = to.parts();
        self.order(&Order::Expect { opening, path }, socket)
    }

    /// Destination: hands on a connection that [`crate::hello::Hello::tunnel`] says is for this migration, with what
    /// was read of it. The caller closes its own descriptor, and does nothing else with it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn arrived(&self, socket: impl AsFd, read: Vec<u8>) -> Result<(), ClientError> {
        if read.len() > HELLO {
            return Err(OrderRefusal::Unreadable("too much was read".to_owned()).into());
        }
        self.order(&Order::Arrived { read }, Some(socket.as_fd()))
    }

    /// How it stands.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn status(&self) -> Result<Status, ClientError> {
        match self.ask(&Order::Status, None)? {
            Answer::Status(status) => Ok(status),
            Answer::Refused(refusal) => Err(refusal.into()),
            Answer::Done => Err(ClientError::Answer),
        }
    }

    /// Ends it. Channels that are up are cut.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn close(&self) -> Result<(), ClientError> {
        self.order(&Order::Close, None)
    }

    fn order(&self, order: &Order, descriptor: Option<BorrowedFd<'_>>) -> Result<(), ClientError> {
        match self.ask(order, descriptor)? {
            Answer::Done => Ok(()),
            Answer::Refused(refusal) => Err(refusal.into()),
            Answer::Status(_) => Err(ClientError::Answer),
        }
    }

    fn ask(&self, order: &Order, descriptor: Option<BorrowedFd<'_>>) -> Result<Answer, ClientError> {
        let begun = Instant::now();
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = |error: &dyn std::fmt::Display| ClientError::Gone(short(error));
        match send(&self.stream, order, descriptor) {
            Ok(()) => {}
            // Nothing was sent.
            Err(FrameError::TooLong(length)) => {
                let why = format!("{length} bytes are too many");
                return Err(OrderRefusal::Unreadable(why).into());
            }
            Err(error) => {
                self.give_up();
                return Err(gone(&error));
            }
        }
        match answers.recv_timeout(self.within.saturating_sub(begun.elapsed())) {
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Timeout) => {
                // A late answer would be taken for that to another order.
                self.give_up();
                Err(ClientError::Deadline(self.within))
            }
            Err(RecvTimeoutError::Disconnected) => Err(gone(&"it was closed")),
        }
    }

    fn give_up(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // The listening thread has a descriptor of its own: this ends it.
        self.give_up();
    }
}

impl<'a> Place<'a> {
    fn parts(self) -> (Option<PathBuf>, Option<BorrowedFd<'a>>) {
        match self {
            Self::Socket(socket) => (None, Some(socket)),
            Self::Path(path) => (Some(path.to_owned()), None),
        }
    }
}

fn listen(stream: &UnixStream, answered: &SyncSender<Answer>, mut notify: impl FnMut(Notice)) {
    while let Ok(received) = receive::<Said>(stream) {
        match received.message {
            Ok(Said::Answer(answer)) => {
                // One order, one answer: more than one waiting was not asked for.
                if answered.try_send(answer).is_err() {
                    break;
                }
            }
            Ok(Said::Event(event)) => notify(Notice::Event(event)),
            // A newer relay may tell of what this agent does not know.
            Err(_) => {}
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
    notify(Notice::Gone);
}
