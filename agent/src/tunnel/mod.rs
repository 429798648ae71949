//! The tunnel: guest memory through the agent port, carried by a relay process at each side.
//!
//! The agent starts one relay for each migration and gives it everything over a control socket; from then on the
//! relay needs no agent. It has a cgroup of its own and outlives the agent, which finds it again by the socket's
//! path. Connections that ask for a tunnel reach the agent port; the agent passes each on, unread but for its first
//! message, to the relay of the migration that it names.

mod process;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use godwit_handover::{Channel, Token};
use godwit_protocol::server::{Passage, Passing};
use godwit_protocol::{CurrentCredentials, PeerIdentity};
use godwit_relay::channel::{self, ChannelKind};
use godwit_relay::client::{ClientError, Notice, Place, Relay, hypervisor_pair};
use godwit_relay::hello::{ALPN_TUNNEL, Hello};
use godwit_relay::order::{Begin, Credentials, End, Event, Opening};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use uuid::Uuid;

use crate::cgroup::Cgroups;
use crate::hypervisor::Stream;

/// What a channel's URI begins with.
const SCHEME: &str = "tunnel://";
/// How long a relay may take to answer an order.
const ANSWER: Duration = Duration::from_secs(5);
/// How much room a hypervisor's socket is to have for what it sends: with the system's usual 208 KiB a stream is half
/// as fast. The kernel gives no more than its `net.core.wmem_max`.
const SEND_BUFFER: usize = 4 << 20;

/// Where relays run and what they are given.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This host's name.
    pub host: String,
    /// The relay's program.
    pub program: PathBuf,
    /// Where their control sockets lie.
    pub directory: PathBuf,
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

/// How far a relay's one channel is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Awaited,
    Up,
    Failed(String),
    Gone,
}

/// A relay that this agent is connected to.
struct Attached {
    relay: Relay,
    state: watch::Receiver<State>,
}

/// The relays of this host; clones are the same ones.
#[derive(Clone)]
pub struct Tunnels {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    /// In whose name relays speak. It may come long after the relays of an earlier agent are found again.
    credentials: OnceLock<CurrentCredentials>,
    attached: Mutex<HashMap<Uuid, Arc<Attached>>>,
}

impl std::fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnels").finish_non_exhaustive()
    }
}

/// A destination's end before the source has come.
pub struct Door {
    channel: Channel,
    socket: OwnedFd,
    state: watch::Receiver<State>,
}

impl Door {
    /// Where it is and with which token it opens.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Waits until the source's relay has opened the channel. Whoever calls sets the deadline.
    ///
    /// # Errors
    /// [`TunnelError::Gone`] if this host's relay ends before that.
    pub async fn admit(mut self) -> Result<Stream, TunnelError> {
        // A connection that was turned away is none of the source's: the channel is still awaited then.
        let ended = |state: &State| matches!(state, State::Up | State::Gone);
        match self.state.wait_for(ended).await.as_deref() {
            Ok(State::Up) => Ok(Stream::plain(self.socket)),
            Ok(State::Awaited | State::Failed(_) | State::Gone) | Err(_) => Err(TunnelError::Gone),
        }
    }
}

impl Tunnels {
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

    /// The destination's end: starts a relay that lets `source` open one channel with the token that is drawn here.
    ///
    /// # Errors
    /// [`TunnelError`].
    pub async fn expect(&self, migration: &str, source: &str) -> Result<Door, TunnelError> {
        let uid = parse(migration)?;
        let (inner, source) = (self.inner.clone(), source.to_owned());
        blocking(move || {
            let attached = inner.start(uid, &source, End::Destination)?;
            let token = channel::Token::generate().map_err(system("Drawing a token"))?;
            let uri = format!("{SCHEME}{}", inner.settings.address);
            let bytes = token.as_bytes().to_vec();
            let (hypervisor, far) =
                hypervisor_pair(SEND_BUFFER).map_err(system("A socket for the hypervisor"))?;
            let opening = Opening {
                channel: memory(),
                token,
            };
            attached
                .relay
                .expect(opening, Place::Socket(std::os::fd::AsFd::as_fd(&far)))?;
            Ok(Door {
                channel: Channel {
                    uri,
                    token: Token(bytes),
                },
                socket: hypervisor.into(),
                state: attached.state.clone(),
            })
        })
        .await
    }

    /// The source's end: starts a relay and has it open the channel at `destination`.
    ///
    /// # Errors
    /// [`TunnelError`]: there is no stream then, and no relay is left.
    pub async fn open(
        &self,
        migration: &str,
        destination: &str,
        channel: &Channel,
        within: Duration,
    ) -> Result<Stream, TunnelError> {
        let uid = parse(migration)?;
        let (address, token) = target(channel)?;
        let (inner, destination) = (self.inner.clone(), destination.to_owned());
        let begun = blocking(move || {
            let end = End::Source { destination: address };
            let attached = inner.start(uid, &destination, end)?;
            let (hypervisor, far) =
                hypervisor_pair(SEND_BUFFER).map_err(system("A socket for the hypervisor"))?;
            let opening = Opening {
                channel: memory(),
                token,
            };
            attached.relay.open(opening, &far)?;
            Ok((attached.state.clone(), hypervisor))
        })
        .await;
        let outcome = match begun {
            Ok((mut state, hypervisor)) => {
                let decided = state.wait_for(|state| *state != State::Awaited);
                match timeout(within, decided).await {
                    Ok(Ok(state)) => match &*state {
                        State::Up => Ok(Stream::plain(hypervisor)),
                        State::Failed(why) => Err(TunnelError::Failed(why.clone())),
                        State::Gone | State::Awaited => Err(TunnelError::Gone),
                    },
                    Ok(Err(_)) => Err(TunnelError::Gone),
                    Err(_) => Err(TunnelError::Deadline(within)),
                }
            }
            Err(error) => Err(error),
        };
        if outcome.is_err() {
            self.close(migration).await;
        }
        outcome
    }

    /// Ends a migration's relay, also one that an earlier agent started, and removes what it leaves. A stream that is
    /// still up is cut.
    pub async fn close(&self, migration: &str) {
        let Ok(uid) = parse(migration) else { return };
        let inner = self.inner.clone();
        let closed = blocking(move || {
            inner.close(uid);
            Ok(())
        });
        if let Err(error) = closed.await {
            tracing::warn!(%error, migration, "a relay may be left");
        }
    }
}

impl Passage for Tunnels {
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
        self.close(migration);
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
            self.close(migration);
            return Err(error.into());
        }
        Ok(attached)
    }

    fn attach(&self, migration: Uuid) -> Result<Arc<Attached>, TunnelError> {
        let (sender, state) = watch::channel(State::Awaited);
        let path = process::socket(&self.settings.directory, migration);
        let relay = Relay::attach(&path, ANSWER, move |notice| heard(&sender, migration, notice))?;
        let attached = Arc::new(Attached { relay, state });
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

    fn close(&self, migration: Uuid) {
        let attached = self.find(migration);
        self.attached().remove(&migration);
        if let Ok(attached) = attached
            && let Err(error) = attached.relay.close()
        {
            tracing::debug!(%error, %migration, "a relay did not answer the order to end");
        }
        process::clear(&self.settings, migration);
    }
}

fn heard(state: &watch::Sender<State>, migration: Uuid, notice: Notice) {
    let next = match notice {
        Notice::Event(Event::Up { channel }) => {
            tracing::info!(%migration, %channel, "a tunnel is open");
            State::Up
        }
        Notice::Event(Event::Failed { channel, failure }) => {
            tracing::warn!(%migration, %channel, %failure, "a tunnel was not opened");
            State::Failed(failure.to_string())
        }
        Notice::Event(Event::Rejected { failure }) => {
            return tracing::warn!(%migration, %failure, "a connection to a tunnel was turned away");
        }
        Notice::Event(Event::Ended {
            channel,
            sent,
            received,
            ending,
        }) => {
            return tracing::info!(%migration, %channel, sent, received, ?ending, "a tunnel's channel is over");
        }
        Notice::Event(Event::Stranger { uid }) => {
            return tracing::warn!(%migration, uid, "a stranger came to a tunnel's socket");
        }
        Notice::Gone => State::Gone,
    };
    state.send_replace(next);
}

fn memory() -> channel::Channel {
    channel::Channel::new(ChannelKind::Memory, 0)
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
