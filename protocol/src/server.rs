//! The agent port: what it bears, and the agent's calls on it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use crate::accept::Port;
use crate::gate::Gate;
use crate::io::Connection;
use crate::tls::ServerTls;
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
    /// How long a newcomer may take to say what it wants and prove who it is.
    pub handshake: Duration,
    /// Newcomers at a time that have not. Beyond it a newcomer takes the place of one from where the most come from.
    pub strangers: usize,
    /// Connections of known peers at a time; a newcomer beyond it is dropped.
    pub connections: usize,
    /// Of those, how many of one peer. As many are kept for the controller.
    pub connections_of_one: usize,
    /// How often a quiet connection is pinged.
    pub ping_every: Duration,
    /// How long a ping may stay unanswered before the connection is closed.
    pub ping_answer: Duration,
}

impl Default for Limits {
    /// 10 s for 128 newcomers; 512 connections, 48 of them of one peer; pings every 15 s, answered within 10 s.
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            strangers: 128,
            connections: 512,
            connections_of_one: 48,
            ping_every: Duration::from_secs(15),
            ping_answer: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// How long a peer that lives can be silent at most.
    pub(crate) fn longest_silence(&self) -> Duration {
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
    let port = Port {
        listener,
        tls,
        limits,
        passage,
        ready,
    };
    tokio::spawn(port.run());
    ReceiverStream::new(taken)
}
