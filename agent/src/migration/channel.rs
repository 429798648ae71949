//! The native transport: the agents make the connection on which the hypervisors then talk.
//!
//! The destination's agent listens on the migration address and hands a socket to its hypervisor only after the
//! one-time word was said on it; so the hypervisor never listens on a network, and a stranger never reaches it.
//! Both agents may end after that without hurting the stream.
//!
//! ```text
//! source → destination   GODWITM\0 · version · migration's UID, zero-padded · the word
//! destination → source   one byte: taken
//! ```
//! Nothing else is read or written by the agents: the next byte on the socket, in either direction, is the
//! hypervisors'.
//!
//! Where the hypervisors encrypt the stream, the word is not the one-time token itself but made from it, and so is
//! the hypervisors' key: whoever hears the word on the wire knows nothing of the key.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::time::Duration;

use async_trait::async_trait;
use godwit_handover::{Channel, Token};
use rustix::net::sockopt;
use subtle::ConstantTimeEq;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::rim::{Connection, Listener, Wire};
use crate::derivation::derive;
use crate::hypervisor::{HypervisorError, Stream, StreamKey, Way};

/// How long a connection may take to say the word.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// How many connections may be about to say the word at once; the oldest has to go for a newer one.
const MAX_STRANGERS: usize = 8;
/// How soon a data path without an answer counts as broken, also in the hypervisor's hands.
const PATH_TIMEOUT: Duration = Duration::from_secs(30);
const VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"GODWITM\0";
const UID_BYTES: usize = 64;
const TOKEN_BYTES: usize = 32;
const HELLO_BYTES: usize = 8 + 4 + UID_BYTES + TOKEN_BYTES;
const TAKEN: u8 = 6;
const SCHEME: &str = "tcp://";
/// Parts what is made from a token here from anything else that may ever be.
const SALT: &[u8] = b"godwit stream 1";

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// Every port of the range is in use.
    #[error(
        "Each port from {first} to {last} on {address} is in use; wait for other migrations, or widen the range"
    )]
    PortsExhausted {
        /// The migration address.
        address: IpAddr,
        /// The range's first port.
        first: u16,
        /// Its last port.
        last: u16,
    },
    /// The URI is not one that this agent can open.
    #[error("The migration URI {0} is not tcp://ADDRESS:PORT")]
    Uri(String),
    /// The destination closed the connection instead of taking it.
    #[error("The destination at {0} did not take the one-time word")]
    NotTaken(SocketAddr),
    /// Not within the deadline.
    #[error("No channel to {address} within {deadline:?}")]
    Deadline {
        /// The other end.
        address: SocketAddr,
        /// How long was waited.
        deadline: Duration,
    },
    /// The tunnel does not come to be.
    #[error(transparent)]
    Tunnel(#[from] crate::tunnel::TunnelError),
    /// The hypervisor does not get the network for connections of its own.
    #[error("The hypervisor cannot be given the migration network: {0}")]
    Network(#[from] crate::guest_network::PlugError),
    /// The order does not say from where the hypervisor at the source will come.
    #[error("The source's migration address is not known: give its VirtualMachineHost one, or use a tunnel")]
    SourceUnknown,
    /// The hypervisor does not listen for connections of its own.
    #[error("The hypervisor does not listen: {0}")]
    Listening(HypervisorError),
    /// The operating system refused something.
    #[error("{action}: {source}")]
    System {
        /// What was tried.
        action: String,
        /// The system's error.
        source: std::io::Error,
    },
}

fn system(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> ChannelError {
    let action = action.into();
    move |source| ChannelError::System { action, source }
}

/// The destination's end before anyone has come: a listener and its word.
pub struct Door {
    listener: Box<dyn Listener>,
    hello: [u8; HELLO_BYTES],
    key: Option<StreamKey>,
    channel: Channel,
}

impl Door {
    /// Listens on the first free port of the range and draws a new word.
    ///
    /// # Errors
    /// [`ChannelError::PortsExhausted`] if every port is in use.
    pub fn open(
        wire: &dyn Wire,
        address: IpAddr,
        ports: RangeInclusive<u16>,
        migration: &str,
        encrypted: bool,
    ) -> Result<Self, ChannelError> {
        let listener = listen(wire, address, &ports)?;
        let bound = listener.address().map_err(system("The listener's address"))?;
        let token = draw()?;
        let words =
            words(migration, &token, encrypted).ok_or_else(|| ChannelError::Uri(bound.to_string()))?;
        Ok(Self {
            listener,
            hello: words.hello,
            key: words.key,
            channel: Channel {
                uri: format!("{SCHEME}{bound}"),
                token: Token(token.to_vec()),
            },
        })
    }

    /// Where it is and with which word it opens.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Waits for the one who knows the word. Everyone else is turned away; once it was said the door is gone.
    /// Runs until then: whoever calls sets the deadline.
    pub async fn admit(self) -> Result<Stream, ChannelError> {
        let mut strangers = JoinSet::new();
        let mut waiting = VecDeque::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => {
                    let (stream, peer) = match accepted {
                        Ok(accepted) => accepted,
                        Err(error) => {
                            tracing::warn!(%error, "Accepting a connection for a migration failed");
                            tokio::time::sleep(Duration::from_millis(50)).await;
                            continue;
                        }
                    };
                    if strangers.len() >= MAX_STRANGERS && let Some(oldest) = waiting.pop_front() {
                        let oldest: tokio::task::AbortHandle = oldest;
                        oldest.abort();
                    }
                    let hello = self.hello;
                    waiting.push_back(strangers.spawn(listen_for(stream, peer, hello)));
                    waiting.retain(|handle| !handle.is_finished());
                }
                Some(known) = strangers.join_next() => {
                    let Ok(Some(mut stream)) = known else { continue };
                    strangers.shutdown().await;
                    drop(self.listener);
                    stream.write_all(&[TAKEN]).await.map_err(system("Answering the source"))?;
                    return Ok(Stream {
                        way: Way::Socket(hand_over(stream)?),
                        key: self.key,
                    });
                }
            }
        }
    }
}

fn listen(
    wire: &dyn Wire,
    address: IpAddr,
    ports: &RangeInclusive<u16>,
) -> Result<Box<dyn Listener>, ChannelError> {
    for port in ports.clone() {
        match wire.listen(SocketAddr::new(address, port)) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(system(format!("Listening on {address} port {port}"))(error)),
        }
    }
    Err(ChannelError::PortsExhausted {
        address,
        first: *ports.start(),
        last: *ports.end(),
    })
}

fn draw() -> Result<[u8; TOKEN_BYTES], ChannelError> {
    let mut token = [0; TOKEN_BYTES];
    let drawn = rustix::rand::getrandom(&mut token, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| system("Drawing a one-time word")(errno.into()))?;
    if drawn == TOKEN_BYTES {
        Ok(token)
    } else {
        Err(system("Drawing a one-time word")(std::io::Error::other(
            "too few random bytes",
        )))
    }
}

/// A place at which the hypervisors themselves connect, with a new token, and the key that is made from it. No word is
/// said there.
pub fn without_a_word(
    at: SocketAddr,
    migration: &str,
    encrypted: bool,
) -> Result<(Channel, Option<StreamKey>), ChannelError> {
    let token = draw()?;
    let channel = Channel {
        uri: format!("{SCHEME}{at}"),
        token: Token(token.to_vec()),
    };
    let (_, key) = known_place(&channel, migration, encrypted)?;
    Ok((channel, key))
}

/// Such a place, as the other side sees it.
pub fn known_place(
    channel: &Channel,
    migration: &str,
    encrypted: bool,
) -> Result<(SocketAddr, Option<StreamKey>), ChannelError> {
    target(channel, migration, encrypted).map(|(at, words)| (at, words.key))
}

/// Where a channel leads, and what its token makes.
fn target(channel: &Channel, migration: &str, encrypted: bool) -> Result<(SocketAddr, Words), ChannelError> {
    let address = channel.uri.strip_prefix(SCHEME).and_then(|at| at.parse().ok());
    let words = words(migration, &channel.token.0, encrypted);
    address
        .zip(words)
        .ok_or_else(|| ChannelError::Uri(channel.uri.clone()))
}

/// What is made from a token.
struct Words {
    hello: [u8; HELLO_BYTES],
    key: Option<StreamKey>,
}

/// `None` if the UID or the token has not the length that they have.
fn words(migration: &str, token: &[u8], encrypted: bool) -> Option<Words> {
    if token.len() != TOKEN_BYTES {
        return None;
    }
    if !encrypted {
        return Some(Words {
            hello: hello(migration, token)?,
            key: None,
        });
    }
    let made = |purpose: &[u8]| derive(SALT, token, &[purpose, b"\0", migration.as_bytes()]);
    Some(Words {
        hello: hello(migration, &made(b"word")?)?,
        key: Some(StreamKey::new(made(b"key")?)),
    })
}

/// The bytes that open the channel; `None` if the UID or the word has not the length that they have.
fn hello(migration: &str, token: &[u8]) -> Option<[u8; HELLO_BYTES]> {
    if migration.len() > UID_BYTES || token.len() != TOKEN_BYTES {
        return None;
    }
    let mut bytes = Vec::with_capacity(HELLO_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_be_bytes());
    bytes.extend_from_slice(migration.as_bytes());
    bytes.resize(8 + 4 + UID_BYTES, 0);
    bytes.extend_from_slice(token);
    bytes.try_into().ok()
}

/// The stream, if the right word came on it in time.
async fn listen_for(
    mut stream: Box<dyn Connection>,
    peer: SocketAddr,
    expected: [u8; HELLO_BYTES],
) -> Option<Box<dyn Connection>> {
    let mut said = [0; HELLO_BYTES];
    match timeout(HELLO_DEADLINE, stream.read_exact(&mut said)).await {
        Ok(Ok(_)) if bool::from(said.ct_eq(&expected)) => Some(stream),
        Ok(Ok(_)) => {
            tracing::warn!(%peer, "A connection for a migration came with a wrong word and was closed");
            None
        }
        Ok(Err(error)) => {
            tracing::warn!(%peer, %error, "A connection for a migration ended before it said the word");
            None
        }
        Err(_) => {
            tracing::warn!(%peer, "A connection for a migration said nothing and was closed");
            None
        }
    }
}

/// Opens the source's end: connects, says the word and waits until it was taken.
pub async fn connect(
    wire: &dyn Wire,
    channel: &Channel,
    migration: &str,
    encrypted: bool,
    deadline: Duration,
) -> Result<Stream, ChannelError> {
    let (address, Words { hello, key }) = target(channel, migration, encrypted)?;
    let work = async {
        let mut stream = wire
            .connect(address)
            .await
            .map_err(system(format!("Connecting to {address}")))?;
        stream
            .write_all(&hello)
            .await
            .map_err(|_| ChannelError::NotTaken(address))?;
        let mut answer = [0];
        match stream.read_exact(&mut answer).await {
            Ok(_) if answer == [TAKEN] => hand_over(stream),
            Ok(_) | Err(_) => Err(ChannelError::NotTaken(address)),
        }
    };
    let socket = timeout(deadline, work)
        .await
        .map_err(|_| ChannelError::Deadline { address, deadline })??;
    Ok(Stream {
        way: Way::Socket(socket),
        key,
    })
}

fn hand_over(stream: Box<dyn Connection>) -> Result<OwnedFd, ChannelError> {
    stream.hand_over().map_err(system("Taking the socket over"))
}

/// TCP, as the host has it.
#[derive(Clone, Copy, Debug)]
pub struct Tcp;

#[async_trait]
impl Wire for Tcp {
    fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Box::new(socket.listen(16)?))
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<Box<dyn Connection>> {
        Ok(Box::new(TcpStream::connect(address).await?))
    }
}

#[async_trait]
impl Listener for TcpListener {
    fn address(&self) -> io::Result<SocketAddr> {
        self.local_addr()
    }

    async fn accept(&self) -> io::Result<(Box<dyn Connection>, SocketAddr)> {
        let (stream, peer) = Self::accept(self).await?;
        Ok((Box::new(stream), peer))
    }
}

impl Connection for TcpStream {
    /// Its buffers stay with the kernel's own tuning: fixed ones were no faster over loopback, and would not follow a
    /// longer path.
    fn hand_over(self: Box<Self>) -> io::Result<OwnedFd> {
        let stream = self.into_std()?;
        stream.set_nonblocking(false)?;
        let millis = u32::try_from(PATH_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_nodelay(&stream, true)?;
        sockopt::set_tcp_user_timeout(&stream, millis)?;
        sockopt::set_tcp_keepidle(&stream, PATH_TIMEOUT / 3)?;
        sockopt::set_tcp_keepintvl(&stream, PATH_TIMEOUT / 6)?;
        sockopt::set_tcp_keepcnt(&stream, 4)?;
        sockopt::set_socket_keepalive(&stream, true)?;
        Ok(stream.into())
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const LONG: Duration = Duration::from_secs(10);

    fn door() -> Door {
        // Port 0 is any free one.
        Door::open(&Tcp, LOOPBACK, 0..=0, "m-1", false).unwrap()
    }

    fn address(channel: &Channel) -> SocketAddr {
        channel.uri.strip_prefix(SCHEME).unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn every_byte_after_the_word_belongs_to_the_hypervisors() {
        let door = door();
        let channel = door.channel().clone();
        let admitted = tokio::spawn(door.admit());
        let source = connect(&Tcp, &channel, "m-1", false, LONG).await.unwrap();
        let destination = admitted.await.unwrap().unwrap();
        let [mut source, mut destination] = [source, destination].map(|stream| {
            let Way::Socket(socket) = stream.way else {
                panic!("no connection was made")
            };
            std::net::TcpStream::from(socket)
        });
        tokio::task::spawn_blocking(move || {
            source.write_all(b"QEVM first bytes").unwrap();
            destination.write_all(b"and back").unwrap();
            let mut there = [0; 16];
            destination.read_exact(&mut there).unwrap();
            let mut back = [0; 8];
            source.read_exact(&mut back).unwrap();
            assert_eq!((&there, &back), (b"QEVM first bytes", b"and back"));
            assert_eq!(sockopt::tcp_user_timeout(&source).unwrap(), 30_000);
            assert!(sockopt::tcp_nodelay(&destination).unwrap());
            assert!(sockopt::socket_keepalive(&destination).unwrap());
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn the_key_of_an_encrypted_stream_is_alike_at_both_ends_and_never_on_the_wire() {
        let door = Door::open(&Tcp, LOOPBACK, 0..=0, "m-1", true).unwrap();
        let channel = door.channel().clone();
        let admitted = tokio::spawn(door.admit());
        // Without encryption the word is another one.
        assert!(matches!(
            connect(&Tcp, &channel, "m-1", false, LONG).await,
            Err(ChannelError::NotTaken(_))
        ));
        let source = connect(&Tcp, &channel, "m-1", true, LONG).await.unwrap();
        let destination = admitted.await.unwrap().unwrap();
        assert!(source.key.is_some() && source.key == destination.key);
        let words = words("m-1", &channel.token.0, true).unwrap();
        let key = words.key.unwrap();
        assert!(Some(&key) == source.key.as_ref());
        assert_ne!(key.bytes().as_slice(), channel.token.0.as_slice());
        let said = |bytes: &[u8]| words.hello.windows(TOKEN_BYTES).any(|part| part == bytes);
        assert!(!said(key.bytes()) && !said(&channel.token.0));
        let other = super::words("m-2", &channel.token.0, true).unwrap();
        assert!(other.key != Some(key) && other.hello != words.hello);
    }

    #[tokio::test]
    async fn strangers_are_turned_away_and_the_right_one_still_comes_in() {
        let door = door();
        let channel = door.channel().clone();
        let admitted = tokio::spawn(door.admit());
        let mut silent = Vec::new();
        for _ in 0..3 * MAX_STRANGERS {
            silent.push(TcpStream::connect(address(&channel)).await.unwrap());
        }
        let mut garbage = TcpStream::connect(address(&channel)).await.unwrap();
        garbage.write_all(&[b'x'; HELLO_BYTES]).await.unwrap();
        let mut answer = Vec::new();
        // Closed without a word.
        let _ = timeout(LONG, garbage.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.is_empty());
        let wrong = Channel {
            token: Token(vec![0; TOKEN_BYTES]),
            ..channel.clone()
        };
        assert!(matches!(
            connect(&Tcp, &wrong, "m-1", false, LONG).await,
            Err(ChannelError::NotTaken(_))
        ));
        assert!(matches!(
            connect(&Tcp, &channel, "m-2", false, LONG).await,
            Err(ChannelError::NotTaken(_))
        ));
        connect(&Tcp, &channel, "m-1", false, LONG).await.unwrap();
        timeout(LONG, admitted).await.unwrap().unwrap().unwrap();
        // A replayed word finds no door.
        assert!(connect(&Tcp, &channel, "m-1", false, LONG).await.is_err());
    }

    #[tokio::test]
    async fn a_used_up_range_says_so_and_the_next_free_port_is_taken() {
        let first = door();
        let taken = address(first.channel()).port();
        let Err(ChannelError::PortsExhausted {
            first: low,
            last: high,
            ..
        }) = Door::open(&Tcp, LOOPBACK, taken..=taken, "m-2", false)
        else {
            panic!("a port was used twice")
        };
        assert_eq!((low, high), (taken, taken));
        if taken < u16::MAX - 16 {
            let second = Door::open(&Tcp, LOOPBACK, taken..=taken + 16, "m-2", false).unwrap();
            assert_ne!(address(second.channel()).port(), taken);
        }
    }

    #[tokio::test]
    async fn nobody_behind_the_door_is_a_deadline() {
        // Listens and never answers.
        let deaf = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
        let channel = Channel {
            uri: format!("{SCHEME}{}", deaf.local_addr().unwrap()),
            token: Token(vec![1; TOKEN_BYTES]),
        };
        let outcome = connect(&Tcp, &channel, "m-1", false, Duration::from_millis(200)).await;
        assert!(matches!(outcome, Err(ChannelError::Deadline { .. })));
        let foreign = Channel {
            uri: "unix:///x".into(),
            ..channel
        };
        assert!(matches!(
            connect(&Tcp, &foreign, "m-1", false, LONG).await,
            Err(ChannelError::Uri(_))
        ));
    }

    /// Not a judgement, a measurement: whether buffers set by hand beat the kernel's own tuning over loopback.
    #[test]
    #[ignore = "a measurement; run it by hand with --nocapture"]
    fn buffers_by_hand_against_the_kernels_tuning() {
        let total: usize = 2 << 30;
        for round in 0..3 {
            for buffer in [None, Some(208 * 1024), Some(4 << 20)] {
                let listener = std::net::TcpListener::bind((LOOPBACK, 0)).unwrap();
                let address = listener.local_addr().unwrap();
                let reader = std::thread::spawn(move || {
                    let (mut stream, _) = listener.accept().unwrap();
                    if let Some(bytes) = buffer {
                        sockopt::set_socket_recv_buffer_size(&stream, bytes).unwrap();
                    }
                    let mut chunk = vec![0; 32 * 1024];
                    while stream.read(&mut chunk).unwrap() > 0 {}
                });
                let mut stream = std::net::TcpStream::connect(address).unwrap();
                if let Some(bytes) = buffer {
                    sockopt::set_socket_send_buffer_size(&stream, bytes).unwrap();
                }
                let chunk = vec![7; 256 * 1024];
                let start = std::time::Instant::now();
                for _ in 0..total / chunk.len() {
                    stream.write_all(&chunk).unwrap();
                }
                drop(stream);
                reader.join().unwrap();
                let rate = (total >> 20) as f64 / start.elapsed().as_secs_f64();
                eprintln!("round {round}, buffer {buffer:?}: {rate:.0} MiB/s");
            }
        }
    }
}
