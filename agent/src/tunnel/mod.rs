//! The tunnel: guest memory through the agent port, carried by a relay process at each side.
//!
//! The agent starts one relay for each migration and gives it everything over a control socket; from then on the
//! relay needs no agent. It has a cgroup of its own and outlives the agent, which finds it again by the socket's
//! path. Connections that ask for a tunnel reach the agent port; the agent passes each on, unread but for its first
//! message, to the relay of the migration that it names.

pub mod buffers;
mod meeting;
mod openings;
mod process;
mod seam;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use godwit_handover::{Channel, Token};
use godwit_protocol::server::{Passage, Passing};
use godwit_protocol::{CurrentCredentials, PeerIdentity};
use godwit_relay::channel;
use godwit_relay::client::{ClientError, Notice, Place, Relay, hypervisor_pair};
use godwit_relay::hello::{ALPN_TUNNEL, Hello};
use godwit_relay::order::{Begin, Credentials, End, Event};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use uuid::Uuid;

use crate::cgroup::Cgroups;
use crate::hypervisor::{Guest, HypervisorError, Place as At, Stream, Way};
pub use seam::{Entry, GoesOn, Relays, Tunnels};

/// What a channel's URI begins with.
const SCHEME: &str = "tunnel://";
/// How long a relay may take to answer an order.
const ANSWER: Duration = Duration::from_secs(5);

/// Where relays run and what they are given.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This host's name.
    pub host: String,
    /// The relay's program.
    pub program: PathBuf,
    /// Where their control sockets lie.
    pub directory: PathBuf,
    /// Where relays reach the sockets of hypervisors that listen themselves. On the file system of the guests'
    /// directories.
    pub meetings: PathBuf,
    /// The user id that they run with; `None` where the agent itself is not root.
    pub user: Option<u32>,
    /// Where they are put.
    pub cgroups: Cgroups,
    /// Where other hosts' relays reach this host's agent port.
    pub address: SocketAddr,
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The migration's UID is none.
    #[error("The migration's UID {0:?} is not a UUID")]
    Uid(String),
    /// The channel is none of a tunnel.
    #[error("The migration URI {0} is not tunnel://ADDRESS:PORT with a token of 32 bytes")]
    Uri(String),
    /// The relay could not be started, or prepared.
    #[error("{action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// The relay does not do as it is told.
    #[error("The relay of this host: {0}")]
    Relay(#[from] ClientError),
    /// The hypervisor cannot make the connections.
    #[error("The hypervisor does not listen for the stream: {0}")]
    Hypervisor(#[from] HypervisorError),
    /// The channel did not come to be.
    #[error("The tunnel was not opened: {0}")]
    Failed(String),
    /// The host has no certificate yet.
    #[error("This host has no certificate yet; try again")]
    NoCertificate,
    /// The relay is gone.
    #[error("The relay of this host has ended")]
    Gone,
    /// Not within the deadline.
    #[error("No tunnel within {0:?}")]
    Deadline(Duration),
}

fn system(action: &'static str) -> impl FnOnce(std::io::Error) -> TunnelError {
    move |source| TunnelError::System { action, source }
}

/// How far a relay's channels are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Progress {
    /// How many have come to be.
    up: usize,
    /// Why one has not.
    failed: Option<String>,
    /// The relay is gone, or is another agent's.
    gone: bool,
}

/// A relay that this agent is connected to.
struct Attached {
    relay: Relay,
    progress: watch::Receiver<Progress>,
}

/// The relays of this host; clones are the same ones.
#[derive(Clone)]
pub struct HostTunnels {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    /// In whose name relays speak. It may come long after the relays of an earlier agent are found again.
    credentials: OnceLock<CurrentCredentials>,
    attached: Mutex<HashMap<Uuid, Arc<Attached>>>,
}

impl std::fmt::Debug for HostTunnels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostTunnels").finish_non_exhaustive()
    }
}

/// A destination's end before the source has come.
struct Door {
    channel: Channel,
    inside: Inside,
    progress: watch::Receiver<Progress>,
    tunnels: HostTunnels,
    migration: Uuid,
}

/// How the relay reaches the hypervisor.
enum Inside {
    /// By the other end of this socket.
    Socket(OwnedFd),
    /// Where it listens, for so many connections beside the first.
    Listens {
        connections: u32,
        /// The guest's directory, once it does.
        guest: Option<PathBuf>,
    },
}

#[async_trait]
impl Entry for Door {
    fn channel(&self) -> &Channel {
        &self.channel
    }

    async fn listen(mut self: Box<Self>, hypervisor: &dyn Guest) -> Result<Box<dyn Entry>, TunnelError> {
        let Inside::Listens { connections, guest } = &mut self.inside else {
            return Ok(self);
        };
        let directory = hypervisor.directory().to_owned();
        let stream = Stream {
            way: Way::Place {
                place: At::Unix(meeting::socket(&directory)),
                connections: *connections,
            },
            // The tunnel encrypts.
            key: None,
        };
        *guest = Some(directory.clone());
        meeting::remove(&directory).map_err(system("Removing an earlier stream's socket"))?;
        hypervisor.receive(stream).await?;
        let (inner, migration) = (self.tunnels.inner.clone(), self.migration);
        blocking(move || {
            let name = inner.meeting(migration);
            meeting::lead(&directory, &name, inner.settings.user)
                .map_err(system("Leading the relay to the hypervisor's socket"))
        })
        .await?;
        Ok(self)
    }

    async fn admit(mut self: Box<Self>) -> Result<Option<Stream>, TunnelError> {
        let wanted = match &self.inside {
            Inside::Socket(_) => 1,
            Inside::Listens { connections, .. } => channels(*connections),
        };
        // A connection that was turned away is none of the source's: the channel is still awaited then.
        let decided = |progress: &Progress| progress.up >= wanted || progress.gone;
        match self.progress.wait_for(decided).await.as_deref() {
            Ok(progress) if progress.up >= wanted => {}
            Ok(_) | Err(_) => return Err(TunnelError::Gone),
        }
        match self.inside {
            Inside::Socket(socket) => Ok(Some(Stream::plain(socket))),
            Inside::Listens { guest, .. } => {
                let (inner, migration) = (self.tunnels.inner, self.migration);
                blocking(move || {
                    inner.forget_meeting(migration, guest.as_deref());
                    Ok(())
                })
                .await?;
                Ok(None)
            }
        }
    }
}

/// How many channels a stream has that is spread over so many connections.
fn channels(connections: u32) -> usize {
    match connections {
        0 | 1 => 1,
        several => usize::try_from(several).unwrap_or(usize::MAX).saturating_add(1),
    }
}

impl HostTunnels {
    /// No relay is started yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            inner: Arc::new(Inner {
                settings,
                credentials: OnceLock::new(),
                attached: Mutex::default(),
            }),
        }
    }

    /// The host's credentials, for every relay that is started from now on. Told once.
    pub fn speak_as(&self, credentials: &CurrentCredentials) {
        if self.inner.credentials.set(credentials.clone()).is_err() {
            tracing::error!("the tunnels were told twice who this host is");
        }
    }
}

#[async_trait]
impl Relays for HostTunnels {
    async fn expect(
        &self,
        migration: &str,
        source: &str,
        connections: u32,
    ) -> Result<Box<dyn Entry>, TunnelError> {
        let uid = parse(migration)?;
        let (tunnels, source) = (self.clone(), source.to_owned());
        blocking(move || {
            let inner = &tunnels.inner;
            let attached = inner.start(uid, &source, End::Destination)?;
            match inner.expect(uid, &attached, connections) {
                Ok((channel, inside)) => Ok(Box::new(Door {
                    channel,
                    inside,
                    progress: attached.progress.clone(),
                    tunnels: tunnels.clone(),
                    migration: uid,
                }) as Box<dyn Entry>),
                Err(error) => {
                    inner.close(uid, None);
                    Err(error)
                }
            }
        })
        .await
    }

    async fn open(
        &self,
        migration: &str,
        destination: &str,
        channel: &Channel,
        (connections, guest): (u32, &dyn Guest),
        within: Duration,
    ) -> Result<Stream, TunnelError> {
        let uid = parse(migration)?;
        let (address, token) = target(channel)?;
        let end = End::Source { destination: address };
        let (inner, destination) = (self.inner.clone(), destination.to_owned());
        let directory = guest.directory().to_owned();
        let begun = blocking(move || {
            let attached = inner.start(uid, &destination, end)?;
            let openings = openings::of_stream(uid, &token, connections);
            if connections > 1 {
                let (listener, user) =
                    meeting::listen(&directory).map_err(system("A socket for the hypervisor"))?;
                attached
                    .relay
                    .listen(Place::Socket(listener.as_fd()), user, openings)?;
                let way = Way::Place {
                    place: At::Unix(meeting::socket(&directory)),
                    connections,
                };
                return Ok((way, None));
            }
            let (hypervisor, far) =
                hypervisor_pair(buffers::WANTED).map_err(system("A socket for the hypervisor"))?;
            for opening in openings {
                attached.relay.open(opening, &far)?;
            }
            Ok((Way::Socket(hypervisor.into()), Some(attached.progress.clone())))
        })
        .await;
        let outcome = match begun {
            Ok((way, progress)) => match progress {
                Some(progress) => opened(progress, within).await.map(|()| way),
                None => Ok(way),
            },
            Err(error) => Err(error),
        };
        match outcome {
            // The tunnel encrypts.
            Ok(way) => Ok(Stream { way, key: None }),
            Err(error) => {
                self.close(migration, Some(guest.directory())).await;
                Err(error)
            }
        }
    }

    fn failure(&self, migration: &str) -> Option<String> {
        let attached = self.inner.attached().get(&parse(migration).ok()?).cloned()?;
        attached.progress.borrow().failed.clone()
    }

    async fn close(&self, migration: &str, guest: Option<&Path>) {
        let Ok(uid) = parse(migration) else { return };
        let (inner, guest) = (self.inner.clone(), guest.map(Path::to_owned));
        let closed = blocking(move || {
            inner.close(uid, guest.as_deref());
            Ok(())
        });
        if let Err(error) = closed.await {
            tracing::warn!(%error, migration, "a relay may be left");
        }
    }

    async fn tidy(&self, goes_on: GoesOn<'_>) {
        let inner = self.inner.clone();
        let found = blocking(move || Ok(inner.found())).await;
        for migration in found.unwrap_or_default() {
            if !goes_on(&migration) {
                tracing::info!(migration, "a relay is left of a migration that does not go on");
                self.close(&migration, None).await;
            }
        }
    }
}

/// Waits until a source's one channel is open.
async fn opened(mut progress: watch::Receiver<Progress>, within: Duration) -> Result<(), TunnelError> {
    let decided = progress.wait_for(|progress| progress.up > 0 || progress.gone || progress.failed.is_some());
    match timeout(within, decided).await {
        Ok(Ok(progress)) => match &progress.failed {
            _ if progress.up > 0 => Ok(()),
            Some(why) => Err(TunnelError::Failed(why.clone())),
            None => Err(TunnelError::Gone),
        },
        Ok(Err(_)) => Err(TunnelError::Gone),
        Err(_) => Err(TunnelError::Deadline(within)),
    }
}

impl Passage for HostTunnels {
    fn pass(&self, server_name: Option<String>, stream: TcpStream, read: Vec<u8>) -> Passing {
        let hello = Hello {
            alpn: vec![ALPN_TUNNEL.to_vec()],
            sni: server_name,
        };
        let inner = self.inner.clone();
        Box::pin(async move {
            let uid = hello.tunnel().ok_or("the tunnel of no migration is asked for")?;
            let stream = stream.into_std().map_err(|error| error.to_string())?;
            stream.set_nonblocking(false).map_err(|error| error.to_string())?;
            let passed = blocking(move || {
                let attached = inner.find(uid)?;
                Ok(attached.relay.arrived(&stream, read)?)
            });
            passed
                .await
                .map_err(|error| format!("the tunnel of migration {uid}: {error}"))
        })
    }
}

impl Inner {
    /// Nothing that is done under this lock can panic half-way, so a poisoned lock is still good.
    fn attached(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Attached>>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a migration's relay anew: what an earlier attempt left is ended first.
    fn start(&self, migration: Uuid, peer: &str, end: End) -> Result<Arc<Attached>, TunnelError> {
        let credentials = self.credentials.get().ok_or(TunnelError::NoCertificate)?.get();
        self.close(migration, None);
        process::start(&self.settings, migration)?;
        let attached = self.attach(migration)?;
        let pem = credentials.pem();
        let text = |pem: &[u8]| String::from_utf8_lossy(pem).into_owned();
        let begin = Begin {
            migration,
            end,
            peer: PeerIdentity::Host(peer.to_owned()).uri(credentials.domain()),
            credentials: Credentials {
                authorities: text(&pem.authorities.text),
                chain: text(&pem.chain.text),
                key: text(&pem.key.text),
            },
        };
        if let Err(error) = attached.relay.begin(begin) {
            self.close(migration, None);
            return Err(error.into());
        }
        Ok(attached)
    }

    /// Has a destination's relay expect every channel of a stream.
    fn expect(
        &self,
        migration: Uuid,
        attached: &Attached,
        connections: u32,
    ) -> Result<(Channel, Inside), TunnelError> {
        let secret = channel::Token::generate().map_err(system("Drawing a token"))?;
        let openings = openings::of_stream(migration, &secret, connections);
        let inside = if connections > 1 {
            meeting::make_directory(&self.settings.meetings, self.settings.user)
                .map_err(system("Making the directory of hypervisors' sockets"))?;
            let name = self.meeting(migration);
            for opening in openings {
                attached.relay.expect(opening, Place::Path(&name))?;
            }
            Inside::Listens {
                connections,
                guest: None,
            }
        } else {
            let (hypervisor, far) =
                hypervisor_pair(buffers::WANTED).map_err(system("A socket for the hypervisor"))?;
            for opening in openings {
                attached.relay.expect(opening, Place::Socket(far.as_fd()))?;
            }
            Inside::Socket(hypervisor.into())
        };
        let channel = Channel {
            uri: format!("{SCHEME}{}", self.settings.address),
            token: Token(secret.as_bytes().to_vec()),
        };
        Ok((channel, inside))
    }

    /// The migrations of which there is something on this host.
    fn found(&self) -> std::collections::BTreeSet<String> {
        let places = [&self.settings.directory, &self.settings.meetings].into_iter();
        places
            .filter_map(|place| std::fs::read_dir(place).ok())
            .flatten()
            .filter_map(|entry| {
                let name = entry.ok()?.file_name().into_string().ok()?;
                let migration = name.strip_suffix(".sock")?;
                Some(Uuid::parse_str(migration).ok()?.as_hyphenated().to_string())
            })
            .collect()
    }

    /// Where a migration's relay reaches a hypervisor that listens.
    fn meeting(&self, migration: Uuid) -> PathBuf {
        let name = format!("{}.sock", migration.as_hyphenated());
        self.settings.meetings.join(name)
    }

    /// Removes the sockets at which a hypervisor and its relay have met, or were to meet.
    fn forget_meeting(&self, migration: Uuid, guest: Option<&Path>) {
        let kept = meeting::forget(&self.meeting(migration)).and(guest.map_or(Ok(()), meeting::remove));
        if let Err(error) = kept {
            tracing::warn!(%error, %migration, "a socket for the stream stays");
        }
    }

    fn attach(&self, migration: Uuid) -> Result<Arc<Attached>, TunnelError> {
        let (sender, progress) = watch::channel(Progress::default());
        let path = process::socket(&self.settings.directory, migration);
        let relay = Relay::attach(&path, ANSWER, move |notice| heard(&sender, migration, notice))?;
        let attached = Arc::new(Attached { relay, progress });
        self.attached().insert(migration, attached.clone());
        Ok(attached)
    }

    /// A migration's relay; one that an earlier agent started is attached to.
    fn find(&self, migration: Uuid) -> Result<Arc<Attached>, TunnelError> {
        let known = self.attached().get(&migration).cloned();
        match known {
            Some(attached) => Ok(attached),
            None => self.attach(migration),
        }
    }

    fn close(&self, migration: Uuid, guest: Option<&Path>) {
        let attached = self.find(migration);
        self.attached().remove(&migration);
        if let Ok(attached) = attached
            && let Err(error) = attached.relay.close()
        {
            tracing::debug!(%error, %migration, "a relay did not answer the order to end");
        }
        process::clear(&self.settings, migration);
        self.forget_meeting(migration, guest);
    }
}

fn heard(progress: &watch::Sender<Progress>, migration: Uuid, notice: Notice) {
    match notice {
        Notice::Event(Event::Up { channel }) => {
            tracing::info!(%migration, %channel, "a tunnel's channel is open");
            progress.send_modify(|progress| progress.up += 1);
        }
        Notice::Event(Event::Failed { channel, failure }) => {
            tracing::warn!(%migration, %channel, %failure, "a tunnel's channel was not opened");
            progress.send_modify(|progress| progress.failed = Some(failure.to_string()));
        }
        Notice::Event(Event::Rejected { failure }) => {
            tracing::warn!(%migration, %failure, "a connection to a tunnel was turned away");
        }
        Notice::Event(Event::Ended {
            channel,
            sent,
            received,
            ending,
        }) => tracing::info!(%migration, %channel, sent, received, ?ending, "a tunnel's channel is over"),
        Notice::Event(Event::Stranger { uid }) => {
            tracing::warn!(%migration, uid, "a stranger came to a tunnel's socket");
        }
        Notice::Gone => progress.send_modify(|progress| progress.gone = true),
    }
}

fn parse(migration: &str) -> Result<Uuid, TunnelError> {
    Uuid::parse_str(migration).map_err(|_| TunnelError::Uid(migration.into()))
}

/// Where a channel leads and what opens it.
fn target(channel: &Channel) -> Result<(SocketAddr, channel::Token), TunnelError> {
    let address = channel.uri.strip_prefix(SCHEME).and_then(|at| at.parse().ok());
    let token = <[u8; channel::TOKEN]>::try_from(channel.token.0.as_slice()).ok();
    match (address, token) {
        (Some(address), Some(token)) => Ok((address, channel::Token::from_bytes(token))),
        (Some(_) | None, Some(_) | None) => Err(TunnelError::Uri(channel.uri.clone())),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TunnelError> + Send + 'static,
) -> Result<T, TunnelError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| system("Asking the relay")(std::io::Error::other(error)))?
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;

    #[test]
    fn only_a_tunnels_channel_is_taken_for_one() {
        let channel = |uri: &str, length| Channel {
            uri: uri.into(),
            token: Token(vec![7; length]),
        };
        let (address, token) = target(&channel("tunnel://192.0.2.1:16514", 32)).unwrap();
        assert_eq!(address, "192.0.2.1:16514".parse().unwrap());
        assert_eq!(token.as_bytes(), &[7; 32]);
        for (uri, length) in [
            ("tcp://192.0.2.1:16514", 32),
            ("tunnel://node-b:16514", 32),
            ("tunnel://192.0.2.1", 32),
            ("tunnel://192.0.2.1:16514", 31),
        ] {
            assert!(matches!(target(&channel(uri, length)), Err(TunnelError::Uri(_))));
        }
        assert!(matches!(parse("m-1"), Err(TunnelError::Uid(_))));
    }
}
