//! A channel while it is up: two threads, one for each direction, and the TLS connection between them.
//!
//! The connection's lock is held for the cryptography only, never while a socket is read or written: a direction
//! that is stuck does not hold up the other. Each direction ends by itself; one that breaks takes the other with it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use rustix::net::SendFlags;

use super::open::{Open, short};
use crate::order::{Ending, Side};
use crate::tls::{Inbox, Session, Step};

/// What is read from a hypervisor at once, encrypted at once and sent at once, in bytes.
const SEND: usize = 256 * 1024;

/// What is received from the other host at once, in bytes.
pub(crate) const RECEIVE: usize = 256 * 1024;

/// A thread's stack, in bytes. Only what is used of it counts; the handshake's big numbers use most.
pub(crate) const STACK: usize = 512 * 1024;

/// What a channel has carried so far.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Bytes from the hypervisor that were sent.
    pub(crate) sent: AtomicU64,
    /// Bytes for the hypervisor that were passed on.
    pub(crate) received: AtomicU64,
}

/// A channel that is over.
pub(crate) struct Over {
    /// How it ended.
    pub(crate) ending: Ending,
}

/// What both directions share.
struct Wires<'a> {
    peer: &'a TcpStream,
    hypervisor: &'a UnixStream,
    session: Mutex<Session>,
    /// Held by the sending direction while it sends, so that an alert is never put into the middle of a record.
    sending: Mutex<()>,
    /// Where it broke first. What breaks afterwards is a consequence.
    cut: Mutex<Option<(Side, String)>>,
    counters: &'a Counters,
}

/// Carries a channel until both its directions are over.
pub(crate) fn carry(open: Open, hypervisor: &UnixStream, counters: &Counters) -> Over {
    let Open {
        socket,
        session,
        inbox,
        early,
        ended,
    } = open;
    let wires = Wires {
        peer: &socket,
        hypervisor,
        session: Mutex::new(session),
        sending: Mutex::new(()),
        cut: Mutex::new(None),
        counters,
    };
    std::thread::scope(|scope| {
        let receiving = std::thread::Builder::new()
            .name("receive".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, || {
                let whole = Whole(&wires);
                wires.receive(inbox, early, ended);
                drop(whole);
            });
        let whole = Whole(&wires);
        match receiving {
            Ok(_) => wires.send(),
            Err(error) => wires.cut(Side::Hypervisor, short(&error)),
        }
        drop(whole);
    });
    let cut = lock(&wires.cut).take();
    Over {
        ending: match cut {
            None => Ending::End,
            Some((side, why)) => Ending::Cut { side, why },
        },
    }
}

/// Breaks a channel one of whose threads panics, so that the other does not wait for it.
struct Whole<'a>(&'a Wires<'a>);

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.cut(Side::Peer, "the relay has failed".to_owned());
        }
    }
}

/// A thread that panicked has left nothing half done that another one relies on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wires<'_> {
    /// Breaks both directions, at both ends: without the words of an end, so that nobody takes it for one.
    fn cut(&self, side: Side, why: String) {
        // First the cause, then its consequences: whoever is woken by them finds it.
        lock(&self.cut).get_or_insert((side, why));
        // Either may be gone already.
        let _ = self.peer.shutdown(Shutdown::Both);
        let _ = self.hypervisor.shutdown(Shutdown::Both);
    }

    fn is_cut(&self) -> bool {
        lock(&self.cut).is_some()
    }

    /// From the hypervisor to the other host.
    fn send(&self) {
        let (mut hypervisor, mut peer) = (self.hypervisor, self.peer);
        let mut plain = vec![0; SEND];
        let mut sealed = vec![0; Session::sealed_size(SEND)];
        loop {
            let read = match hypervisor.read(&mut plain) {
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return self.cut(Side::Hypervisor, short(&error)),
            };
            // What ends because the channel was cut has not ended.
            if read == 0 && self.is_cut() {
                return;
            }
            // Before the encryption, so that what is encrypted first is sent first.
            let sending = lock(&self.sending);
            let result = match plain.get(..read) {
                Some(some) if read > 0 => lock(&self.session).seal(some, &mut sealed),
                _ => lock(&self.session).end(&mut sealed),
            };
            let length = match result {
                Ok(length) => length,
                Err(error) => return self.cut(Side::Peer, short(&error)),
            };
            let sent = peer.write_all(sealed.get(..length).unwrap_or_default());
            drop(sending);
            if let Err(error) = sent {
                return self.cut(Side::Peer, short(&error));
            }
            if read == 0 {
                // The other side may have gone, with all it needed.
                let _ = self.peer.shutdown(Shutdown::Write);
                return;
            }
            self.counters.sent.fetch_add(read as u64, Ordering::Relaxed);
        }
    }

    /// From the other host to the hypervisor.
    fn receive(&self, mut inbox: Inbox, mut plain: Vec<u8>, mut ended: bool) {
        let (mut hypervisor, mut peer) = (self.hypervisor, self.peer);
        plain.reserve_exact(RECEIVE);
        loop {
            if !plain.is_empty() {
                if let Err(error) = hypervisor.write_all(&plain) {
                    return self.cut(Side::Hypervisor, short(&error));
                }
                let passed = plain.len() as u64;
                self.counters.received.fetch_add(passed, Ordering::Relaxed);
                plain.clear();
            }
            if ended {
                // It may have gone, with all it wanted.
                let _ = self.hypervisor.shutdown(Shutdown::Write);
                return;
            }
            match peer.read(inbox.space()) {
                // An end is said in words that nobody between can say. This is a cut.
                Ok(0) => {
                    return self.cut(Side::Peer, "the connection was closed without an end".to_owned());
                }
                Ok(read) => inbox.filled(read),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return self.cut(Side::Peer, short(&error)),
            }
            let step = lock(&self.session).open(&mut inbox, &mut plain);
            match step {
                Ok(Step::Open) => {}
                Ok(Step::Ended) => ended = true,
                Ok(Step::Handshake) => {
                    return self.cut(Side::Peer, "a second handshake was begun".to_owned());
                }
                Err(error) => {
                    self.complain();
                    return self.cut(Side::Peer, short(&error));
                }
            }
        }
    }

    /// Tells the peer what was wrong with what it said, if that can be said at once.
    fn complain(&self) {
        let sending = match self.sending.try_lock() {
            Ok(sending) => sending,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let alert = lock(&self.session).pending();
        let _ = rustix::net::send(self.peer, &alert, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        drop(sending);
    }
}
