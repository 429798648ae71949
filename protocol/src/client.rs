//! A driver's way to an agent: one connection, Hello first, then typed calls, each with a deadline.
//!
//! [`Dial`] is how an agent is reached, [`Calls`] what goes over one connection: over the network both are gRPC on mutual
//! TLS; a simulation has its own.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use godwit_handover::Terms;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::Stream;
use tonic::codegen::{InterceptedService, Service, http};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status, Streaming, async_trait};

use crate::clock::Sample;
use crate::convert::Malformed;
use crate::error::{Category, Fault};
use crate::gate::LONGEST_PROGRAM;
use crate::guest::{GuestAnswer, GuestName, StartGuest};
use crate::identity::PeerIdentity;
use crate::order::{Order, OrderAnswer};
use crate::server::{LARGEST_HEADERS, LARGEST_MESSAGE};
use crate::tls::{ALPN_CONTROL, ClientTls};
use crate::update::Update;
use crate::version::{self, Tag};
use crate::witness::{Seen, Witnessed};
use crate::{reason, wire};

/// From the first packet to the answer to Hello.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// An order, a keepalive, the first word of a watch.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Starting or stopping a guest: a hypervisor process comes or goes meanwhile.
const GUEST_WITHIN: Duration = Duration::from_secs(30);
/// How often the agent is pinged, so that a dead one is noticed under a quiet watch.
const PING_EVERY: Duration = Duration::from_secs(5);
/// The longest boot id, in bytes; Linux has 36.
const LONGEST_BOOT_ID: usize = 64;
/// How long a ping may stay unanswered.
const PING_ANSWER: Duration = Duration::from_secs(5);

/// How agents are reached.
#[async_trait]
pub trait Dial: Send + Sync {
    /// A connection to the agent at `host:port`, of which it is proved that it is the expected host's.
    ///
    /// # Errors
    /// As [`AgentClient::connect`].
    async fn dial(&self, endpoint: &str, expected_host: &str) -> Result<AgentClient, Fault>;
}

#[async_trait]
impl Dial for ClientTls {
    async fn dial(&self, endpoint: &str, expected_host: &str) -> Result<AgentClient, Fault> {
        AgentClient::connect(endpoint, expected_host, self).await
    }
}

/// What goes over one connection to an agent, without the deadlines, which are [`AgentClient`]'s.
#[async_trait]
pub trait Calls: std::fmt::Debug + Send + Sync {
    /// Starts a guest.
    async fn start_guest(&self, order: &StartGuest) -> Result<GuestAnswer, Fault>;
    /// Stops a guest.
    async fn stop_guest(&self, guest: &GuestName, epoch: u64) -> Result<(), Fault>;
    /// Gives an order about a migration.
    async fn order(&self, terms: &Terms, order: &Order) -> Result<OrderAnswer, Fault>;
    /// Follows the host's side of a migration.
    async fn watch_migration(&self, migration: &str) -> Result<Watched, Fault>;
    /// Says that the driver lives; answered with the host's clock, in microseconds of Unix time.
    async fn keep_alive(&self, terms: &Terms, path_proven: bool, silence: Duration) -> Result<i64, Fault>;
}

/// What a watch brings.
pub type Watched = Pin<Box<dyn Stream<Item = Result<Update, Fault>> + Send>>;

/// The calls as gRPC.
#[derive(Clone, Debug)]
struct Grpc(wire::agent_client::AgentClient<InterceptedService<Channel, Tag>>);

/// Whom a connection leads to, as Hello said it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Greeting {
    /// The host's name.
    pub host: String,
    /// Its boot id.
    pub boot_id: String,
    /// The agent's program and version.
    pub program: String,
    /// The protocol version that was settled.
    pub version: u32,
}

/// A connection to one agent. Cheap to clone; all clones share the connection.
///
/// It does not come back by itself: after a fault of category Unavailable connect again, because the version
/// must be settled anew (the agent may have been replaced meanwhile).
#[derive(Clone, Debug)]
pub struct AgentClient {
    calls: Arc<dyn Calls>,
    hello: Greeting,
}

/// The answer to a keepalive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// For the estimate of the host's clock; `remote_micros` is what the host said.
    pub sample: Sample,
    /// Measured here, by a clock that is never set.
    pub round_trip: Duration,
}

impl AgentClient {
    /// Connects to `host:port`, proves by its certificate that the host of the expected name answers, and settles
    /// the protocol version; all within 5 s.
    ///
    /// # Errors
    /// Unavailable/AgentUnreachable, Forbidden/CertificateRejected, Version/ProtocolVersionUnsupported.
    pub async fn connect(endpoint: &str, expected_host: &str, tls: &ClientTls) -> Result<Self, Fault> {
        timeout(CONNECT_WITHIN, Self::connect_now(endpoint, expected_host, tls))
            .await
            .unwrap_or_else(|_| {
                Err(Fault::unreachable(format!(
                    "Host {expected_host} did not answer at {endpoint} within 5 s"
                )))
            })
    }

    async fn connect_now(endpoint: &str, expected_host: &str, tls: &ClientTls) -> Result<Self, Fault> {
        let whom = format!("Host {expected_host} at {endpoint}");
        let stream = open(endpoint, expected_host, tls)
            .await
            .map_err(|fault| about(fault, &whom))?;
        let seen = Seen::default();
        let channel = Endpoint::from_static("http://agent.godwit")
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_ANSWER)
            .keep_alive_while_idle(true)
            .http2_max_header_list_size(LARGEST_HEADERS)
            .connect_with_connector(Once {
                stream: Some(Witnessed::new(stream, seen.clone())),
            })
            .await
            .map_err(|why| about(seen.rather_than(Fault::from_transport(&why)), &whom))?;
        let request = wire::HelloRequest {
            oldest_version: version::OLDEST,
            newest_version: version::NEWEST,
            program: concat!("godwit ", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        let hello = wire::agent_client::AgentClient::new(channel.clone())
            .hello(request)
            .await
            .map_err(|status| about(seen.rather_than(status.into()), &whom))?
            .into_inner();
        if !(version::OLDEST..=version::NEWEST).contains(&hello.version) {
            return Err(Fault::new(
                Category::Version,
                reason::PROTOCOL_VERSION_UNSUPPORTED,
                format!(
                    "Host {expected_host} settled on protocol version {}, but this side speaks {}",
                    hello.version,
                    version::OURS
                ),
            ));
        }
        if hello.program.len() > LONGEST_PROGRAM || hello.boot_id.len() > LONGEST_BOOT_ID {
            let malformed = Malformed::new("program or boot_id", "is too long");
            return Err(about(malformed.into(), &whom));
        }
        if hello.host != expected_host {
            return Err(Fault::certificate(format!(
                "The agent at {endpoint} has the certificate of host {expected_host} and says that it is {:?}",
                hello.host
            )));
        }
        let tagged = InterceptedService::new(channel, Tag::new(hello.version));
        let calls = wire::agent_client::AgentClient::new(tagged)
            .max_decoding_message_size(LARGEST_MESSAGE)
            .max_encoding_message_size(LARGEST_MESSAGE);
        let greeting = Greeting {
            host: hello.host,
            boot_id: hello.boot_id,
            program: hello.program,
            version: hello.version,
        };
        Ok(Self::over(greeting, Arc::new(Grpc(calls))))
    }

    /// The calls of a connection that has been made and greeted.
    pub fn over(greeting: Greeting, calls: Arc<dyn Calls>) -> Self {
        Self {
            calls,
            hello: greeting,
        }
    }

    /// The host's name.
    pub fn host(&self) -> &str {
        &self.hello.host
    }

    /// The host's boot id, as it was when the connection was made.
    pub fn boot_id(&self) -> &str {
        &self.hello.boot_id
    }

    /// The agent's program and version, for logs.
    pub fn program(&self) -> &str {
        &self.hello.program
    }

    /// The protocol version of this connection.
    pub fn version(&self) -> u32 {
        self.hello.version
    }

    /// Starts a guest that the host holds. Idempotent by UID and epoch.
    ///
    /// # Errors
    /// The agent's fault, or Unavailable after 30 s: the guest may then run or not.
    pub async fn start_guest(&self, order: &StartGuest) -> Result<GuestAnswer, Fault> {
        self.answered("StartGuest", GUEST_WITHIN, self.calls.start_guest(order))
            .await
    }

    /// Stops a guest and has the host forget it. Idempotent.
    ///
    /// # Errors
    /// The agent's fault, or Unavailable after 30 s: the guest may then run or not.
    pub async fn stop_guest(&self, guest: &GuestName, epoch: u64) -> Result<(), Fault> {
        self.answered("StopGuest", GUEST_WITHIN, self.calls.stop_guest(guest, epoch))
            .await
    }

    /// Gives an order about a migration. Idempotent by the migration's UID.
    ///
    /// # Errors
    /// Version/ProtocolVersionUnsupported under strict terms where the agent is too old for them. The agent's fault, or Unavailable after 5 s: the order may then have been taken or not.
    pub async fn order(&self, terms: &Terms, order: &Order) -> Result<OrderAnswer, Fault> {
        if terms.strict && self.version() < version::ARBITRATION {
            return Err(Fault::new(
                Category::Version,
                reason::PROTOCOL_VERSION_UNSUPPORTED,
                format!(
                    "Host {} speaks protocol version {}, which knows no strict handoff; upgrade its agent",
                    self.host(),
                    self.version()
                ),
            ));
        }
        self.answered(order.name(), ANSWER_WITHIN, self.calls.order(terms, order))
            .await
    }

    /// Follows the host's side of a migration: its whole state at once and again at each change.
    ///
    /// # Errors
    /// The agent's fault, or Unavailable after 5 s.
    pub async fn watch_migration(&self, migration: &str) -> Result<Updates, Fault> {
        let updates = self
            .answered(
                "WatchMigration",
                ANSWER_WITHIN,
                self.calls.watch_migration(migration),
            )
            .await?;
        Ok(Updates {
            updates,
            host: self.hello.host.clone(),
        })
    }

    /// Says that this driver lives and whether it has lately heard from the other side and from the API server.
    /// Without the next one within `silence` (whole milliseconds) the host counts it as silent.
    ///
    /// # Errors
    /// The agent's fault, or Unavailable after 5 s.
    pub async fn keep_alive(
        &self,
        terms: &Terms,
        path_proven: bool,
        silence: Duration,
    ) -> Result<KeepAlive, Fault> {
        let sent_micros = unix_micros();
        let started = Instant::now();
        let kept_alive = self.calls.keep_alive(terms, path_proven, silence);
        let remote_micros = self.answered("KeepAlive", ANSWER_WITHIN, kept_alive).await?;
        let round_trip = started.elapsed();
        let sample = Sample {
            sent_micros,
            remote_micros,
            received_micros: unix_micros(),
        };
        Ok(KeepAlive { sample, round_trip })
    }

    /// The answer to a call, or what became of it. Every fault names the host and the call.
    async fn answered<T>(
        &self,
        call: &str,
        within: Duration,
        answer: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        match timeout(within, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(fault)) => Err(about(fault, &format!("{call} at host {}", self.hello.host))),
            Err(_) => Err(Fault::unreachable(format!(
                "{call} at host {}: no answer within {} s",
                self.hello.host,
                within.as_secs()
            ))),
        }
    }
}

#[async_trait]
impl Calls for Grpc {
    async fn start_guest(&self, order: &StartGuest) -> Result<GuestAnswer, Fault> {
        let request = wire::StartGuestRequest::from(order);
        let reply = said(self.0.clone().start_guest(request).await)?;
        believe(reply.try_into())
    }

    async fn stop_guest(&self, guest: &GuestName, epoch: u64) -> Result<(), Fault> {
        let request = wire::StopGuestRequest {
            guest: Some(guest.into()),
            epoch,
        };
        let wire::StopGuestReply {} = said(self.0.clone().stop_guest(request).await)?;
        Ok(())
    }

    async fn order(&self, terms: &Terms, order: &Order) -> Result<OrderAnswer, Fault> {
        let reply = said(self.0.clone().order(order.to_request(terms)).await)?;
        believe(order.read_reply(reply))
    }

    async fn watch_migration(&self, migration: &str) -> Result<Watched, Fault> {
        let request = wire::WatchMigrationRequest {
            migration: migration.to_owned(),
        };
        let updates = said(self.0.clone().watch_migration(request).await)?;
        Ok(Box::pin(Read(updates)))
    }

    async fn keep_alive(&self, terms: &Terms, path_proven: bool, silence: Duration) -> Result<i64, Fault> {
        let request = wire::KeepAliveRequest {
            terms: Some(terms.into()),
            path_proven,
            silence_millis: u32::try_from(silence.as_millis()).unwrap_or(u32::MAX),
        };
        let reply = said(self.0.clone().keep_alive(request).await)?;
        Ok(reply.clock_micros)
    }
}

fn said<T>(answer: Result<Response<T>, Status>) -> Result<T, Fault> {
    answer.map(Response::into_inner).map_err(Fault::from)
}

fn believe<T>(read: Result<T, Malformed>) -> Result<T, Fault> {
    read.map_err(|malformed| about(malformed.into(), "Its answer"))
}

/// Updates as they come, read field by field.
struct Read(Streaming<wire::MigrationUpdate>);

impl Stream for Read {
    type Item = Result<Update, Fault>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.0).poll_next(context).map(|next| {
            next.map(|update| {
                update
                    .map_err(Fault::from)
                    .and_then(|update| Update::try_from(update).map_err(Fault::from))
            })
        })
    }
}

/// What a host tells about its side of a migration, as it changes.
pub struct Updates {
    updates: Watched,
    host: String,
}

impl std::fmt::Debug for Updates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Updates")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl Updates {
    /// The next update; `None` when the agent has ended the watch (it shuts down). After a fault nothing comes.
    pub async fn next(&mut self) -> Option<Result<Update, Fault>> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }
}

impl Stream for Updates {
    type Item = Result<Update, Fault>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.updates.as_mut().poll_next(context).map(|next| {
            next.map(|update| update.map_err(|fault| about(fault, &format!("Watch at host {}", self.host))))
        })
    }
}

/// The fault with what it is about in front of its message.
fn about(fault: Fault, what: &str) -> Fault {
    Fault::new(fault.category, fault.reason, format!("{what}: {}", fault.message))
}

/// Unix time by this host's clock.
fn unix_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Opens the connection and shakes hands, so that what is wrong with it is seen as it is.
async fn open(endpoint: &str, expected_host: &str, tls: &ClientTls) -> Result<TlsStream<TcpStream>, Fault> {
    let config = tls
        .config(PeerIdentity::Host(expected_host.to_owned()))
        .map_err(|why| Fault::new(Category::Internal, reason::INTERNAL_ERROR, why.to_string()))?;
    let stream = TcpStream::connect(endpoint)
        .await
        .map_err(|why| Fault::from_transport(&why))?;
    // Ready and Go travel while the guest stands still: no message may wait for the one before it.
    stream
        .set_nodelay(true)
        .map_err(|why| Fault::from_transport(&why))?;
    // Not sent and not judged: the certificate's URI is.
    let name = ServerName::try_from("agent.godwit").map_err(|why| Fault::from_transport(&why))?;
    let stream = TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(|why| Fault::from_transport(&why))?;
    if stream.get_ref().1.alpn_protocol() == Some(ALPN_CONTROL) {
        Ok(stream)
    } else {
        Err(Fault::unreachable(
            "What answers does not speak h2; is it an agent?",
        ))
    }
}

/// Gives the one connection out once: a second one would have settled no version.
struct Once {
    stream: Option<Witnessed>,
}

impl Service<http::Uri> for Once {
    type Response = TokioIo<Witnessed>;
    type Error = io::Error;
    type Future = std::future::Ready<Result<Self::Response, io::Error>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: http::Uri) -> Self::Future {
        std::future::ready(match self.stream.take() {
            Some(stream) => Ok(TokioIo::new(stream)),
            None => Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "The connection to the agent was lost",
            )),
        })
    }
}
