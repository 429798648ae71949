//! The agent port: takes connections, shakes hands within a deadline and a number, and serves the agent's calls.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use crate::error::Fault;
use crate::gate::{Gate, Peer};
use crate::hello::{self, Begun};
use crate::io::Connection;
use crate::places::{Place, Places};
use crate::refusals::{Refusals, Say};
use crate::tls::{ALPN_CONTROL, ServerTls};
use crate::wire;
use crate::wire::agent_server::{Agent, AgentServer};

/// The largest message in either direction, in bytes: a definition has at most a quarter of it.
pub const LARGEST_MESSAGE: usize = 1024 * 1024;

/// Calls of one connection that are carried out side by side; further ones wait.
const CALLS_PER_CONNECTION: usize = 64;
/// Open calls of one connection, watches included: one for each migration of the host.
const STREAMS_PER_CONNECTION: u32 = 512;
/// The largest set of headers in bytes; what a fault needs at most fits twice.
pub(crate) const LARGEST_HEADERS: u32 = 16 * 1024;
/// What is read from a peer that was refused before the connection is closed, in bytes.
const DRAINED: usize = 64 * 1024;

/// How long the port rests when the system gave no connection.
const AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(20);

/// Whoever passes a tunnel's connections on to the process that serves them.
pub trait Passage: Send + Sync {
    /// Takes a connection that asks for the tunnel's protocol and for this server name, with what was read of it.
    /// Nothing is proven. Where nobody is there to serve it, the connection is closed, with the reason for the log.
    fn pass(&self, server_name: Option<String>, stream: TcpStream, read: Vec<u8>) -> Passing;
}

/// A connection being passed on.
pub type Passing = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// No tunnel is served: whoever asks for one is turned away.
#[derive(Clone, Copy, Debug)]
pub struct NoPassage;

impl Passage for NoPassage {
    fn pass(&self, _: Option<String>, _: TcpStream, _: Vec<u8>) -> Passing {
        Box::pin(std::future::ready(Err("no tunnel is served here".into())))
    }
}

/// How much the server bears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long a handshake may take.
    pub handshake: Duration,
    /// Handshakes at a time; a newcomer beyond it is dropped.
    pub handshakes: usize,
    /// Connections at a time, handshakes included; a newcomer beyond it is dropped.
    pub connections: usize,
    /// Of those, how many from one address.
    pub connections_from_one: usize,
    /// How often a quiet connection is pinged.
    pub ping_every: Duration,
    /// How long a ping may stay unanswered before the connection is closed.
    pub ping_answer: Duration,
}

impl Default for Limits {
    /// Handshakes of 10 s, 64 at a time; 512 connections, 48 of them from one address, so that nobody can take all
    /// handshakes by himself; pings every 15 s, answered within 10 s.
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            handshakes: 64,
            connections: 512,
            connections_from_one: 48,
            ping_every: Duration::from_secs(15),
            ping_answer: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// How long a peer that lives can be silent at most.
    fn longest_silence(&self) -> Duration {
        (self.ping_every + self.ping_answer) * 2
    }
}

/// Why the server ended.
#[derive(Debug, thiserror::Error)]
#[error("The agent port is no longer served")]
pub struct ServeError(#[source] tonic::transport::Error);

/// Serves an agent's calls until `shutdown` is done, and then until the calls under way have ended: the agent
/// ends its watches itself then.
///
/// Each request has the [`Peer`] in its extensions; calls that the peer may not make, or without the version that
/// Hello settled ([`Peer::settle`]), do not reach the agent.
///
/// # Errors
/// [`ServeError`] if the connections could no longer be served.
pub async fn serve<A, F>(
    listener: TcpListener,
    tls: ServerTls,
    limits: Limits,
    agent: Arc<A>,
    passage: Arc<dyn Passage>,
    shutdown: F,
) -> Result<(), ServeError>
where
    A: Agent,
    F: Future<Output = ()>,
{
    let service = AgentServer::from_arc(agent)
        .max_decoding_message_size(LARGEST_MESSAGE)
        .max_encoding_message_size(LARGEST_MESSAGE);
    let connections = connections(listener, tls, limits, passage);
    Server::builder()
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_max_header_list_size(LARGEST_HEADERS)
        .http2_keepalive_interval(Some(limits.ping_every))
        .http2_keepalive_timeout(Some(limits.ping_answer))
        .serve_with_incoming_shutdown(Gate::new(service), connections, shutdown)
        .await
        .map_err(ServeError)
}

/// The answer to a Hello whose version was settled with [`Peer::settle`].
pub fn hello_reply(
    version: u32,
    program: &str,
    host: &str,
    boot_id: &str,
    clock_micros: i64,
) -> wire::HelloReply {
    wire::HelloReply {
        version,
        program: program.to_owned(),
        host: host.to_owned(),
        boot_id: boot_id.to_owned(),
        clock_micros,
    }
}

/// Connections whose handshake has succeeded. Dropping it closes the port.
pub fn connections(
    listener: TcpListener,
    tls: ServerTls,
    limits: Limits,
    passage: Arc<dyn Passage>,
) -> ReceiverStream<Result<Connection, io::Error>> {
    let (ready, taken) = mpsc::channel(16);
    tokio::spawn(accept(listener, tls, limits, passage, ready));
    ReceiverStream::new(taken)
}

/// Owns the listening socket and the handshakes under way.
async fn accept(
    listener: TcpListener,
    tls: ServerTls,
    limits: Limits,
    passage: Arc<dyn Passage>,
    ready: mpsc::Sender<Result<Connection, io::Error>>,
) {
    let places = Places::new(limits.connections, limits.connections_from_one);
    let mut refusals = Refusals::new(Instant::now());
    let mut handshakes: JoinSet<Option<(SocketAddr, String)>> = JoinSet::new();
    loop {
        let (stream, address) = tokio::select! {
            () = ready.closed() => return,
            Some(ended) = handshakes.join_next() => {
                if let Ok(Some((address, why))) = ended {
                    tell(&mut refusals, address, &why);
                }
                continue;
            }
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(why) => {
                    // Out of descriptors or memory, or a peer that left already: the port itself is sound.
                    tracing::warn!("A connection could not be taken: {why}");
                    tokio::time::sleep(AFTER_FAILED_ACCEPT).await;
                    continue;
                }
            },
        };
        if handshakes.len() >= limits.handshakes {
            tell(
                &mut refusals,
                address,
                &format!("{} handshakes are under way", limits.handshakes),
            );
            continue;
        }
        let place = match places.take(address.ip()) {
            Ok(place) => place,
            Err(why) => {
                tell(&mut refusals, address, &why);
                continue;
            }
        };
        // The credentials of this moment: those that replace them are for the connections after it.
        let tls = tls.clone();
        let (ready, passage) = (ready.clone(), passage.clone());
        handshakes.spawn(async move {
            match timeout(limits.handshake, welcome(stream, address, &tls, &*passage)).await {
                // Passed on: others count it from here.
                Ok(Ok(None)) => None,
                Ok(Ok(Some((stream, peer)))) => {
                    let connection = connection(stream, peer, limits, place);
                    // Fails where the server has ended meanwhile: there is no one to serve the connection.
                    drop(ready.send(Ok(connection)).await);
                    None
                }
                Ok(Err(why)) => Some((address, why.message)),
                Err(_) => Some((address, format!("no handshake within {:?}", limits.handshake))),
            }
        });
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

fn connection(
    stream: tokio_rustls::server::TlsStream<Begun>,
    peer: Peer,
    limits: Limits,
    place: Place,
) -> Connection {
    Connection::new(stream, peer, limits.longest_silence(), place)
}

/// Sees what a newcomer wants: who asks for the tunnel alone is passed on, with everyone else hands are shaken.
async fn welcome(
    stream: TcpStream,
    address: SocketAddr,
    tls: &ServerTls,
    passage: &dyn Passage,
) -> Result<Option<(tokio_rustls::server::TlsStream<Begun>, Peer)>, Fault> {
    // Ready and Go travel while the guest stands still: no message may wait for the one before it.
    stream
        .set_nodelay(true)
        .map_err(|why| Fault::from_transport(&why))?;
    let (hello, begun) = hello::read(stream).await?;
    match hello {
        Some(hello) if hello.wants_tunnel() => {
            let (stream, read) = begun.into_parts();
            passage
                .pass(hello.sni, stream, read)
                .await
                .map_err(Fault::unreachable)?;
            Ok(None)
        }
        Some(_) | None => shake_hands(begun, address, tls).await.map(Some),
    }
}

async fn shake_hands(
    stream: Begun,
    address: SocketAddr,
    tls: &ServerTls,
) -> Result<(tokio_rustls::server::TlsStream<Begun>, Peer), Fault> {
    let mut stream = match TlsAcceptor::from(tls.config())
        .accept(stream)
        .into_fallible()
        .await
    {
        Ok(stream) => stream,
        Err((why, stream)) => {
            let fault = Fault::from_transport(&why);
            drain(stream).await;
            return Err(fault);
        }
    };
    let (_, session) = stream.get_ref();
    let known = if session.alpn_protocol() == Some(ALPN_CONTROL) {
        session
            .peer_certificates()
            .and_then(|chain| chain.first())
            .ok_or_else(|| Fault::certificate("The other side showed no certificate"))
            .and_then(|leaf| tls.peer(leaf).map_err(|why| Fault::certificate(why.to_string())))
    } else {
        Err(Fault::unreachable(
            "The other side asked for no application protocol; this port serves h2",
        ))
    };
    match known {
        Ok(identity) => Ok((stream, Peer::new(identity, address))),
        Err(fault) => {
            // The connection is given up; whether the farewell arrives does not matter.
            drop(stream.shutdown().await);
            Err(fault)
        }
    }
}

/// Lets the refused peer read why: closing with unread bytes would reset the connection, and the alert that was
/// sent would be lost with it. Bounded in bytes here and in time by the handshake's deadline.
async fn drain(mut stream: Begun) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut buffer = [0; 4096];
    let mut left = DRAINED;
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        left = left.saturating_sub(count);
        if left == 0 {
            return;
        }
    }
}
