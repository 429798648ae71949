//! A channel while it is up: two threads, one for each direction, and the TLS connection between them.
//!
//! The connection's lock is held for the cryptography only, never while a socket is read or written: a direction
//! that is stuck does not hold up the other. Each direction ends by itself; one that breaks takes the other with it.

use std::io::{self, ErrorKind, IoSlice, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
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

/// How many pieces of plaintext are written at once: more than there are full records in what is received at once.
const PIECES: usize = 32;

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
                wires.receive(inbox, &early, ended);
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

    /// From the other host to the hypervisor. `early` has been decrypted already.
    fn receive(&self, mut inbox: Inbox, early: &[u8], mut ended: bool) {
        let mut peer = self.peer;
        let mut places = vec![];
        if let Err(error) = self.pass_on(&mut [IoSlice::new(early)]) {
            return self.cut(Side::Hypervisor, short(&error));
        }
        loop {
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
            let step = lock(&self.session).open_in_place(&mut inbox, &mut places);
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
            if let Err(error) = self.pass_on_places(&inbox, &places) {
                return self.cut(Side::Hypervisor, short(&error));
            }
            places.clear();
        }
    }

    /// Writes what was decrypted to the hypervisor, from where it lies.
    fn pass_on_places(&self, inbox: &Inbox, places: &[Range<usize>]) -> io::Result<()> {
        for some in places.chunks(PIECES) {
            let mut pieces = [IoSlice::new(&[]); PIECES];
            for (piece, place) in pieces.iter_mut().zip(some) {
                *piece = IoSlice::new(inbox.plain(place).unwrap_or_default());
            }
            self.pass_on(pieces.get_mut(..some.len()).unwrap_or_default())?;
        }
        Ok(())
    }

    /// Writes all of it to the hypervisor.
    fn pass_on(&self, mut pieces: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut hypervisor = self.hypervisor;
        // Leaves out what is empty at the beginning: nothing is written for that.
        IoSlice::advance_slices(&mut pieces, 0);
        while !pieces.is_empty() {
            match hypervisor.write_vectored(pieces) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    let passed = &self.counters.received;
                    passed.fetch_add(written as u64, Ordering::Relaxed);
                    IoSlice::advance_slices(&mut pieces, written);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
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
