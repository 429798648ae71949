//! The agent port's accepting: a stranger has a place among a few until it has proven who it is, a known peer one of
//! its own.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use crate::gate::Peer;
use crate::hello::Begun;
use crate::io::Connection;
use crate::places::{Origin, Places, Room, Strangers};
use crate::refusals::{Refusals, Say};
use crate::server::{Limits, Passage};
use crate::tls::ServerTls;
use crate::welcome::welcome;

/// How long the port rests when the system gave no connection.
const AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(20);

/// What became of a newcomer.
enum Ended {
    /// It is passed on: others count it from here.
    PassedOn,
    /// It is a known peer.
    Known(Box<TlsStream<Begun>>, Peer),
    /// It is turned away.
    Refused(SocketAddr, String),
}

/// The listening socket, and those who have come to it.
pub(crate) struct Port {
    pub(crate) listener: TcpListener,
    pub(crate) tls: ServerTls,
    pub(crate) limits: Limits,
    pub(crate) passage: Arc<dyn Passage>,
    pub(crate) ready: mpsc::Sender<Result<Connection, io::Error>>,
}

impl Port {
    /// Accepts until nobody takes its connections any more.
    pub(crate) async fn run(self) {
        let places = Places::new(self.limits.connections, self.limits.connections_of_one);
        let mut strangers = Strangers::new(self.limits.strangers);
        let mut refusals = Refusals::new(Instant::now());
        let mut welcomes = JoinSet::new();
        let mut handles = HashMap::new();
        loop {
            tokio::select! {
                // Who has ended leaves a place: that comes before the next newcomer.
                biased;
                () = self.ready.closed() => return,
                Some(ended) = welcomes.join_next_with_id() => {
                    let (id, ended) = match ended {
                        Ok((id, ended)) => (id, Some(ended)),
                        // It had to go, or it panicked.
                        Err(why) => (why.id(), None),
                    };
                    strangers.leave(id);
                    handles.remove(&id);
                    match ended {
                        Some(Ended::Known(stream, peer)) => self.serve(*stream, peer, &places, &mut refusals),
                        Some(Ended::Refused(address, why)) => tell(&mut refusals, address, &why),
                        Some(Ended::PassedOn) | None => {}
                    }
                }
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, address)) => {
                        let (origin, now) = (Origin::of(address.ip()), Instant::now());
                        match strangers.room(origin, now) {
                            Room::Free => {}
                            Room::InsteadOf(id) => {
                                strangers.leave(id);
                                if let Some((handle, address)) = handles.remove(&id) {
                                    let handle: AbortHandle = handle;
                                    handle.abort();
                                    tell(&mut refusals, address, "its place was needed before it had proven who it is");
                                }
                            }
                            Room::None => {
                                tell(&mut refusals, address, "too many from there have yet to prove who they are");
                                continue;
                            }
                        }
                        let handle = welcomes.spawn(self.welcome(stream, address));
                        strangers.enter(handle.id(), origin, now);
                        handles.insert(handle.id(), (handle, address));
                    }
                    Err(why) => {
                        // Out of descriptors or memory, or a peer that left already: the port itself is sound.
                        tracing::warn!("A connection could not be taken: {why}");
                        tokio::time::sleep(AFTER_FAILED_ACCEPT).await;
                    }
                },
            }
        }
    }

    fn welcome(
        &self,
        stream: TcpStream,
        address: SocketAddr,
    ) -> impl Future<Output = Ended> + Send + 'static {
        // The credentials of this moment: those that replace them are for the connections after it.
        let (tls, passage) = (self.tls.clone(), Arc::clone(&self.passage));
        let within = self.limits.handshake;
        async move {
            match timeout(within, welcome(stream, address, &tls, &*passage)).await {
                Ok(Ok(None)) => Ended::PassedOn,
                Ok(Ok(Some((stream, peer)))) => Ended::Known(Box::new(stream), peer),
                Ok(Err(why)) => Ended::Refused(address, why.message),
                Err(_) => Ended::Refused(address, format!("no handshake within {within:?}")),
            }
        }
    }

    /// Has a known peer served, if it has not too many connections already.
    fn serve(&self, stream: TlsStream<Begun>, peer: Peer, places: &Places, refusals: &mut Refusals) {
        let place = match places.take(&peer.identity) {
            Ok(place) => place,
            Err(why) => return tell(refusals, peer.address, &why),
        };
        let connection = Connection::new(stream, peer, self.limits.longest_silence(), place);
        let ready = self.ready.clone();
        // It fails where the server has ended meanwhile: there is no one to serve the connection.
        tokio::spawn(async move { drop(ready.send(Ok(connection)).await) });
    }
}

fn tell(refusals: &mut Refusals, address: SocketAddr, why: &str) {
    match refusals.another(Instant::now()) {
        Say::It { untold_before: 0 } => tracing::warn!(%address, "Connection turned away: {why}"),
        Say::It { untold_before } => {
            tracing::warn!(%address, untold_before, "Connection turned away, and {untold_before} before it: {why}");
        }
        Say::Nothing => {}
    }
}
