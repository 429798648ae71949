//! The relay: takes agents' orders, and runs a channel's threads.

mod channels;
mod control;

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::limits::Limits;
use crate::order::Said;
use crate::state::{Idle, Rest};
use channels::Channels;

/// The longest that an agent may keep the relay from telling it something. It has room for hundreds of messages first.
const AGENT_TAKES: Duration = Duration::from_secs(1);

/// Between two attempts to take an agent's connection, if the first fails.
const BREATHER: Duration = Duration::from_millis(100);

/// Why a relay cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The control socket fails.
    #[error("the control socket fails")]
    Control(#[from] io::Error),
}

/// A relay's parts.
struct Relay {
    limits: Limits,
    channels: Mutex<Channels>,
    /// The one agent that is told things: the last that came.
    agent: Mutex<Option<Arc<UnixStream>>>,
    closing: AtomicBool,
    /// A byte on it wakes the main thread.
    wake: UnixStream,
}

impl Relay {
    fn channels(&self) -> MutexGuard<'_, Channels> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn agent(&self) -> MutexGuard<'_, Option<Arc<UnixStream>>> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says something to the agent, if there is one. One that does not listen is given up; it asks for the status
    /// when it comes back.
    fn say(&self, said: &Said) {
        let mut agent = self.agent();
        if let Some(stream) = agent.as_deref()
            && crate::control::send(stream, said, None).is_err()
        {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            *agent = None;
        }
    }

    /// Wakes the main thread, to look whether the relay is needed still.
    fn wake(&self) {
        // If there is no room for it, it is being woken already.
        let _ = rustix::net::send(&self.wake, &[0], rustix::net::SendFlags::DONTWAIT);
    }

    fn needed(&self) -> bool {
        self.agent().is_some() || self.channels().is_busy()
    }
}

/// Runs a relay until it is told to close, or nobody needs it any more. Channels that are up then are cut by the end
/// of the process, which has to follow.
///
/// # Errors
/// [`Failure`].
pub fn run(listener: &UnixListener, limits: Limits) -> Result<(), Failure> {
    let (woken, wake) = UnixStream::pair()?;
    let relay = Arc::new(Relay {
        limits,
        channels: Mutex::default(),
        agent: Mutex::default(),
        closing: AtomicBool::new(false),
        wake,
    });
    listener.set_nonblocking(true)?;
    let mut idle = Idle::default();
    while !relay.closing.load(Ordering::Acquire) {
        let rest = match idle.ask(Instant::now(), relay.needed(), limits.orphaned) {
            Rest::UntilWoken => None,
            Rest::For(left) => Some(left),
            Rest::Over => break,
        };
        let timeout = rest.and_then(|rest| Timespec::try_from(rest).ok());
        let (agents, wakes) = (listener.as_fd(), woken.as_fd());
        let mut ready = [
            PollFd::from_borrowed_fd(agents, PollFlags::IN),
            PollFd::from_borrowed_fd(wakes, PollFlags::IN),
        ];
        match poll(&mut ready, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let mut scrap = [0; 64];
        let _ = rustix::net::recv(&woken, &mut scrap, rustix::net::RecvFlags::DONTWAIT);
        match listener.accept() {
            // An agent that cannot be served sees that its connection is closed, and comes again.
            Ok((stream, _)) => drop(take_agent(&relay, stream)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Out of descriptors, say. Streams go on; an agent waits until it is over.
            Err(_) => std::thread::sleep(BREATHER),
        }
    }
    Ok(())
}

/// Takes an agent's connection, in place of the one before, whose agent is gone or will see that it is replaced.
fn take_agent(relay: &Arc<Relay>, stream: UnixStream) -> io::Result<()> {
    let who = rustix::net::sockopt::socket_peercred(&stream)?;
    if !who.uid.is_root() && who.uid != rustix::process::geteuid() {
        // A stranger, whoever let it come to this socket.
        return Ok(());
    }
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(AGENT_TAKES))?;
    let stream = Arc::new(stream);
    if let Some(before) = relay.agent().replace(Arc::clone(&stream)) {
        let _ = before.shutdown(std::net::Shutdown::Both);
    }
    let relay = Arc::clone(relay);
    std::thread::Builder::new()
        .name("control".to_owned())
        .stack_size(crate::data::STACK)
        .spawn(move || {
            control::serve(&relay, &stream);
            let mut agent = relay.agent();
            if agent.as_ref().is_some_and(|now| Arc::ptr_eq(now, &stream)) {
                *agent = None;
            }
            drop(agent);
            relay.wake();
        })?;
    Ok(())
}
