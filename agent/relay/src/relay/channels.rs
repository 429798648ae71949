//! The channels' threads, and what they need.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use uuid::Uuid;

use super::Relay;
use super::control::system;
use crate::channel::Channel;
use crate::data::{self, Counters, Open, Over, STACK};
use crate::header::{Header, Refusal};
use crate::order::{
    Begin, ChannelStatus, Credentials, End, Event, OpenFailure, Opening, OrderRefusal, Said, Status, Task,
    VERSION,
};
use crate::state::Book;
use crate::tls::Trust;

/// Where a channel leads on this host.
pub(super) enum Hypervisor {
    /// To a socket.
    Socket(UnixStream),
    /// To whoever listens there, once the channel has come.
    Listens(PathBuf),
}

/// What a relay knows, and what belongs to it.
#[derive(Default)]
pub(super) struct Channels {
    book: Book,
    begun: Option<Begun>,
    /// Where awaited channels lead.
    places: HashMap<Channel, Hypervisor>,
    counters: HashMap<Channel, Arc<Counters>>,
}

struct Begun {
    trust: Arc<Trust>,
    peer: String,
    end: End,
    migration: Uuid,
}

/// What a connection from the source needs.
struct Way {
    trust: Arc<Trust>,
    destination: SocketAddr,
    migration: Uuid,
}

fn trust(credentials: &Credentials, peer: &str) -> Result<Arc<Trust>, OrderRefusal> {
    let trust = Trust::new(credentials, peer);
    Ok(Arc::new(trust.map_err(|error| {
        OrderRefusal::Credentials(data::short(&error))
    })?))
}

impl Channels {
    pub(super) fn begin(&mut self, begin: Begin) -> Result<(), OrderRefusal> {
        if self.begun.is_some() {
            return Err(OrderRefusal::Begun);
        }
        let trust = trust(&begin.credentials, &begin.peer)?;
        self.book.begin(Task {
            migration: begin.migration,
            role: begin.end.role(),
        })?;
        self.begun = Some(Begun {
            trust,
            peer: begin.peer,
            end: begin.end,
            migration: begin.migration,
        });
        Ok(())
    }

    pub(super) fn renew(&mut self, credentials: &Credentials) -> Result<(), OrderRefusal> {
        let begun = self.begun.as_mut().ok_or(OrderRefusal::NotBegun)?;
        begun.trust = trust(credentials, &begun.peer)?;
        Ok(())
    }

    pub(super) fn is_busy(&self) -> bool {
        self.book.is_busy()
    }

    pub(super) fn status(&self) -> Status {
        let channels = self.book.entries().map(|entry| {
            let counters = self.counters.get(&entry.channel);
            let count = |of: fn(&Counters) -> u64| counters.map_or(0, |counters| of(counters));
            ChannelStatus {
                channel: entry.channel,
                state: entry.state.clone(),
                sent: count(|counters| counters.sent.load(Ordering::Relaxed)),
                received: count(|counters| counters.received.load(Ordering::Relaxed)),
            }
        });
        Status {
            version: VERSION,
            task: self.book.task(),
            channels: channels.collect(),
            rejected: self.book.rejected(),
        }
    }

    pub(super) fn expect(&mut self, opening: &Opening, at: Hypervisor) -> Result<(), OrderRefusal> {
        self.book.expect(opening)?;
        self.count_anew(opening.channel);
        self.places.insert(opening.channel, at);
        Ok(())
    }

    /// Forgets the counters of channels that are forgotten, and begins to count for this one.
    fn count_anew(&mut self, channel: Channel) {
        let book = &self.book;
        self.counters
            .retain(|known, _| book.entries().any(|entry| entry.channel == *known));
        self.counters.insert(channel, Arc::default());
    }

    fn counters(&self, channel: Channel) -> Arc<Counters> {
        self.counters.get(&channel).map(Arc::clone).unwrap_or_default()
    }

    fn way(&self) -> Result<Way, OrderRefusal> {
        let begun = self.begun.as_ref().ok_or(OrderRefusal::NotBegun)?;
        match begun.end {
            End::Source { destination } => Ok(Way {
                trust: Arc::clone(&begun.trust),
                destination,
                migration: begun.migration,
            }),
            End::Destination => Err(OrderRefusal::WrongRole),
        }
    }
}

/// Source: opens a channel for a hypervisor.
pub(super) fn open(relay: &Arc<Relay>, opening: Opening, hypervisor: UnixStream) -> Result<(), OrderRefusal> {
    let channel = opening.channel;
    let mut channels = relay.channels();
    let way = channels.way()?;
    channels.book.open(channel)?;
    channels.count_anew(channel);
    drop(channels);
    begin_opening(relay, way, opening, hypervisor)
}

fn begin_opening(
    relay: &Arc<Relay>,
    way: Way,
    opening: Opening,
    hypervisor: UnixStream,
) -> Result<(), OrderRefusal> {
    let channel = opening.channel;
    let shared = Arc::clone(relay);
    let opened = thread("send", move || {
        let settled = Settled(&shared, Some(channel));
        let header = Header {
            migration: way.migration,
            channel,
            token: opening.token,
        };
        match data::connect(way.destination, &way.trust, &header, &shared.limits) {
            Ok(open) => carry(&shared, channel, open, &hypervisor),
            Err(failure) => fail(&shared, channel, failure),
        }
        drop(settled);
    });
    opened.map_err(|error| {
        let failure = OpenFailure::Lost(data::short(&error));
        relay.channels().book.failed(channel, failure);
        system(&error)
    })
}

/// Source: opens a channel each time that the hypervisor connects, as often as there are channels.
pub(super) fn listen(
    relay: &Arc<Relay>,
    openings: Vec<Opening>,
    uid: u32,
    listener: impl FnOnce() -> Result<(UnixListener, Option<PathBuf>), OrderRefusal>,
) -> Result<(), OrderRefusal> {
    let mut channels = relay.channels();
    channels.way()?;
    channels.book.await_hypervisor(&openings)?;
    let names: Vec<Channel> = openings.iter().map(|opening| opening.channel).collect();
    for name in &names {
        channels.count_anew(*name);
    }
    let shared = Arc::clone(relay);
    let begun = listener().and_then(|(listener, path)| {
        let listening = thread("listen", move || {
            take_hypervisor(&shared, &listener, uid, openings);
            // First closed, then removed: nobody connects to what nobody accepts from.
            drop(listener);
            if let Some(path) = path {
                let _ = std::fs::remove_file(path);
            }
        });
        listening.map_err(|error| system(&error))
    });
    if let Err(refusal) = &begun {
        for name in names {
            let failure = OpenFailure::Lost(data::short(refusal));
            channels.book.failed(name, failure);
        }
    }
    begun
}

fn take_hypervisor(relay: &Arc<Relay>, listener: &UnixListener, uid: u32, openings: Vec<Opening>) {
    for opening in openings {
        let channel = opening.channel;
        let result = accept_from(relay, listener, uid).and_then(|hypervisor| {
            let mut channels = relay.channels();
            let way = channels.way().map_err(std::io::Error::other)?;
            channels.book.opening(channel);
            drop(channels);
            // A thread that cannot be had is told by the channel's state.
            let _ = begin_opening(relay, way, opening, hypervisor);
            Ok(())
        });
        if let Err(error) = result {
            fail(relay, channel, OpenFailure::Lost(data::short(&error)));
        }
    }
}

/// Waits for a connection from this user.
fn accept_from(relay: &Relay, listener: &UnixListener, uid: u32) -> std::io::Result<UnixStream> {
    loop {
        let (stream, _) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let who = rustix::net::sockopt::socket_peercred(&stream)?.uid.as_raw();
        if who == uid {
            let checked = data::hypervisor(stream.into())?;
            return checked.ok_or_else(|| std::io::Error::other("it is not a stream"));
        }
        drop(stream);
        relay.channels().book.reject();
        relay.say(&Said::Event(Event::Stranger { uid: who }));
    }
}

/// Destination: takes a connection of which these bytes have been read.
pub(super) fn arrived(relay: &Arc<Relay>, socket: TcpStream, read: Vec<u8>) -> Result<(), OrderRefusal> {
    let mut channels = relay.channels();
    channels.book.arrive()?;
    let trust = match &channels.begun {
        Some(begun) => Arc::clone(&begun.trust),
        None => return Err(OrderRefusal::NotBegun),
    };
    drop(channels);
    let shared = Arc::clone(relay);
    let taken = thread("send", move || take(&shared, socket, &read, &trust));
    taken.map_err(|error| {
        relay.channels().book.arrived();
        system(&error)
    })
}

fn take(relay: &Relay, socket: TcpStream, read: &[u8], trust: &Trust) {
    let mut settled = Settled(relay, None);
    let accepted = data::accept(socket, read, trust, &relay.limits, |header, deadline| {
        admit(relay, header, deadline)
    });
    // Admitted, it is a channel that is being opened; not admitted, it is nothing any more.
    relay.channels().book.arrived();
    match accepted {
        Ok((open, (channel, hypervisor))) => {
            settled.1 = Some(channel);
            carry(relay, channel, open, &hypervisor);
        }
        Err((failure, Some((channel, _)))) => fail(relay, channel, failure),
        Err((failure, None)) => {
            relay.channels().book.reject();
            relay.say(&Said::Event(Event::Rejected { failure }));
            relay.wake();
        }
    }
}

fn admit(
    relay: &Relay,
    header: Result<Header, Refusal>,
    deadline: Instant,
) -> Result<(Channel, UnixStream), Refusal> {
    let mut channels = relay.channels();
    let channel = channels.book.admit(header)?;
    let place = channels.places.remove(&channel);
    drop(channels);
    let socket = match place {
        Some(Hypervisor::Socket(socket)) => Ok(socket),
        Some(Hypervisor::Listens(path)) => {
            data::connect_unix(&path, deadline.saturating_duration_since(Instant::now()))
        }
        None => Err(std::io::Error::other("nowhere to lead")),
    };
    match socket {
        Ok(socket) => Ok((channel, socket)),
        Err(_) => {
            let failure = OpenFailure::Refused(Refusal::Unreachable);
            relay.channels().book.failed(channel, failure);
            Err(Refusal::Unreachable)
        }
    }
}

fn carry(relay: &Relay, channel: Channel, open: Open, hypervisor: &UnixStream) {
    let mut channels = relay.channels();
    channels.book.up(channel);
    let counters = channels.counters(channel);
    drop(channels);
    relay.say(&Said::Event(Event::Up { channel }));
    let Over { ending } = data::carry(open, hypervisor, &counters);
    relay.channels().book.ended(channel, ending.clone());
    relay.say(&Said::Event(Event::Ended {
        channel,
        sent: counters.sent.load(Ordering::Relaxed),
        received: counters.received.load(Ordering::Relaxed),
        ending,
    }));
    relay.wake();
}

/// Settles what becomes of a connection whose thread panics.
struct Settled<'a>(&'a Relay, Option<Channel>);

impl Drop for Settled<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let failure = OpenFailure::Lost("the relay has failed".to_owned());
            match self.1 {
                Some(channel) => fail(self.0, channel, failure),
                None => self.0.channels().book.arrived(),
            }
        }
    }
}

fn fail(relay: &Relay, channel: Channel, failure: OpenFailure) {
    relay.channels().book.failed(channel, failure.clone());
    relay.say(&Said::Event(Event::Failed { channel, failure }));
    relay.wake();
}

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let builder = std::thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK);
    builder.spawn(run).map(drop)
}
