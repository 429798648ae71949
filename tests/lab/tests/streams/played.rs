//! A source's relay that breaks the rules. This test's own program plays it: an agent that finds it in the place of its
//! relay starts it, and gives it everything that a relay gets, so that it has whatever a host that was taken over has.

use std::fmt::Display;
use std::io::{ErrorKind, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use godwit_relay::channel::{Channel, ChannelKind, Token};
use godwit_relay::header::{Header, LENGTH, Refusal, VERSION};
use godwit_relay::limits::MESSAGE;
use godwit_relay::order::{
    Answer, Begin, Credentials, End, Ending, Event, OpenFailure, Opening, Order, OrderRefusal, Said, Side,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The application protocol of a tunnel.
const PROTOCOL: &[u8] = b"godwit-tunnel/1";

/// The file beside the program that says what is played.
pub const PART: &str = "part.json";
/// The file beside the program in which it writes what became of it.
pub const DIARY: &str = "diary";

/// How long a peer may take for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// How much of a stream is carried before it is broken, in bytes: more than what hypervisors say to each other first.
const BEFORE: u64 = 32 * 1024;

/// What is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// Every header that is none comes first, then the right one; then the token again, and one channel too many.
    TriesAll,
    /// The token opens a channel of another kind.
    WrongKind,
    /// The token opens another channel of the same kind.
    WrongNumber,
    /// It says that the channel is open, and never connects.
    NeverComes,
    /// It connects, and says half a header.
    HalfAHeader,
    /// In mid-stream its connection ends without an end, and its agent hears nothing of it.
    Fin,
    /// In mid-stream comes what no TLS says.
    Garbage,
    /// In mid-stream it ends the channel in order.
    End,
}

/// A connection as a source's relay makes it.
pub type Tunnel = StreamOwned<ClientConnection, TcpStream>;

/// Connects as whoever has these credentials, and asks for the tunnel of a migration. No handshake has been made yet.
pub fn connect(to: SocketAddr, migration: Uuid, credentials: &Credentials) -> anyhow::Result<Tunnel> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(credentials.chain.as_bytes()).collect();
    let key = PrivateKeyDer::from_pem_slice(credentials.key.as_bytes())?;
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_client_auth_cert(chain?, key)?;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    let name = ServerName::try_from(format!("{migration}.tunnel.godwit.internal"))?;
    let socket = TcpStream::connect_timeout(&to, PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.set_nodelay(true)?;
    Ok(StreamOwned::new(
        ClientConnection::new(Arc::new(config), name)?,
        socket,
    ))
}

/// Says something and hears the answer of one byte.
pub fn present(tunnel: &mut Tunnel, words: &[u8]) -> std::io::Result<u8> {
    tunnel.write_all(words)?;
    tunnel.flush()?;
    let mut answer = [0];
    tunnel.read_exact(&mut answer)?;
    Ok(answer[0])
}

/// Takes any server: what is tested is whether the server takes this client.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("an older TLS".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether this process was started in a relay's place.
pub fn is_a_relay() -> bool {
    let program = std::env::current_exe().unwrap_or_default();
    program.file_name() == Some(Path::new("godwit-relay").as_os_str())
}

/// Plays the part that lies beside the program, until the agent has had enough.
pub fn play() -> anyhow::Result<()> {
    let program = std::env::current_exe()?;
    let part: Part = serde_json::from_slice(&std::fs::read(program.with_file_name(PART))?)?;
    let diary = program.with_file_name(DIARY);
    let listener = UnixListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut begun = None;
    loop {
        let (agent, _) = listener.accept()?;
        while let Ok((order, descriptor)) = receive(&agent) {
            let answer = match order {
                Order::Begin(begin) => {
                    begun = Some(begin);
                    Answer::Done
                }
                Order::Open(opening) => {
                    let (Some(begin), Some(socket)) = (begun.clone(), descriptor) else {
                        bail!("a channel is to be opened before it was said for what");
                    };
                    let (agent, diary) = (agent.try_clone()?, diary.clone());
                    std::thread::spawn(move || {
                        let outcome =
                            perform(part, &begin, &opening, &UnixStream::from(socket), &agent, &diary);
                        if let Err(error) = outcome {
                            note(&diary, &format!("{error:#}"));
                        }
                    });
                    Answer::Done
                }
                Order::Close => {
                    say(&agent, &Said::Answer(Answer::Done))?;
                    return Ok(());
                }
                Order::Renew(_)
                | Order::Listen { .. }
                | Order::Expect { .. }
                | Order::Arrived { .. }
                | Order::Status => Answer::Refused(OrderRefusal::WrongRole),
            };
            say(&agent, &Said::Answer(answer))?;
        }
    }
}

fn receive(agent: &UnixStream) -> anyhow::Result<(Order, Option<OwnedFd>)> {
    let mut descriptor = None;
    let mut prefix = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(
        agent,
        &mut [IoSliceMut::new(&mut prefix)],
        &mut beside,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL,
    )?;
    ensure!(got.bytes == prefix.len(), "the agent has gone");
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptor = passed.into_iter().next();
        }
    }
    let length = usize::try_from(u32::from_be_bytes(prefix))?;
    ensure!(length <= MESSAGE, "{length} bytes");
    let mut body = vec![0; length];
    let mut agent = agent;
    agent.read_exact(&mut body)?;
    Ok((serde_json::from_slice(&body)?, descriptor))
}

fn say(mut agent: &UnixStream, said: &Said) -> anyhow::Result<()> {
    let body = serde_json::to_vec(said)?;
    let mut message = u32::try_from(body.len())?.to_be_bytes().to_vec();
    message.extend(body);
    Ok(agent.write_all(&message)?)
}

/// Writes a line into the diary.
fn note(diary: &Path, line: &dyn Display) {
    let file = std::fs::OpenOptions::new().append(true).open(diary);
    // What is missing in it is missed by who reads it.
    let _ = file.and_then(|mut file| writeln!(file, "{line}"));
}

struct Player<'a> {
    begin: &'a Begin,
    opening: &'a Opening,
    destination: SocketAddr,
    diary: &'a Path,
}

impl Player<'_> {
    fn connect(&self) -> anyhow::Result<Tunnel> {
        connect(self.destination, self.begin.migration, &self.begin.credentials)
    }

    fn header(&self, channel: Channel, token: Token) -> [u8; LENGTH] {
        let migration = self.begin.migration;
        Header {
            migration,
            channel,
            token,
        }
        .encode()
    }

    fn right_header(&self) -> [u8; LENGTH] {
        self.header(self.opening.channel, self.opening.token.clone())
    }

    /// Shows a header on a connection of its own and notes the answer.
    fn shows(&self, what: &str, header: &[u8]) -> anyhow::Result<()> {
        let answer = present(&mut self.connect()?, header);
        note(
            self.diary,
            &match answer {
                Ok(answer) => format!("{what}: {answer}"),
                Err(error) => format!("{what}: {:?}", error.kind()),
            },
        );
        Ok(())
    }

    /// Everything that opens nothing.
    fn tries_all(&self) -> anyhow::Result<()> {
        let right = self.right_header();
        let with = |at: usize, byte: u8| {
            let mut header = right;
            header[at] = byte;
            header
        };
        self.shows("not a header", &with(0, b'H'))?;
        self.shows("a version", &with(4, VERSION + 1))?;
        self.shows("a kind", &with(5, 99))?;
        self.shows("a migration", &with(8, right[8] ^ 1))?;
        self.shows("a token", &self.header(self.opening.channel, Token::generate()?))?;
        let mut longer = self.header(self.opening.channel, Token::generate()?).to_vec();
        longer.resize(64 * 1024, 0xa5);
        self.shows("too much", &longer)?;
        // Half of one, and then an end in order.
        let mut half = self.connect()?;
        half.write_all(&right[..LENGTH / 2])?;
        half.conn.send_close_notify();
        half.flush()?;
        let heard = half.read(&mut [0; 16]).map_err(|error| error.kind());
        note(self.diary, &format!("half a header: {heard:?}"));
        // And without.
        let mut half = self.connect()?;
        half.write_all(&right[..LENGTH / 2])?;
        half.flush()?;
        half.sock.shutdown(Shutdown::Write)?;
        let heard = half.read(&mut [0; 16]).map_err(|error| error.kind());
        note(self.diary, &format!("half a header, cut: {heard:?}"));
        Ok(())
    }
}

fn perform(
    part: Part,
    begin: &Begin,
    opening: &Opening,
    hypervisor: &UnixStream,
    agent: &UnixStream,
    diary: &Path,
) -> anyhow::Result<()> {
    let End::Source { destination } = begin.end else {
        bail!("it is to play a source");
    };
    let player = Player {
        begin,
        opening,
        destination,
        diary,
    };
    let channel = opening.channel;
    let up = || say(agent, &Said::Event(Event::Up { channel }));
    let failed = |refusal| {
        let failure = OpenFailure::Refused(refusal);
        say(agent, &Said::Event(Event::Failed { channel, failure }))
    };
    match part {
        Part::TriesAll => {
            player.tries_all()?;
            let mut tunnel = player.connect()?;
            let answer = present(&mut tunnel, &player.right_header())?;
            note(diary, &format!("the right one: {answer}"));
            up()?;
            player.shows("the token again", &player.right_header())?;
            player.shows("one too many", &player.header(channel, Token::generate()?))?;
            carry(&mut tunnel, hypervisor, u64::MAX)?;
            over(agent, channel)
        }
        Part::WrongKind | Part::WrongNumber => {
            let (other, refusal) = if part == Part::WrongKind {
                (
                    Channel::new(ChannelKind::Multifd, channel.number),
                    Refusal::WrongKind,
                )
            } else {
                (
                    Channel::new(channel.kind, channel.number + 1),
                    Refusal::WrongNumber,
                )
            };
            player.shows("the wrong one", &player.header(other, opening.token.clone()))?;
            player.shows("the right one", &player.right_header())?;
            failed(refusal)
        }
        Part::NeverComes => {
            up()?;
            swallow(hypervisor);
            Ok(())
        }
        Part::HalfAHeader => {
            let mut tunnel = player.connect()?;
            tunnel.write_all(&player.right_header()[..LENGTH / 2])?;
            tunnel.flush()?;
            let begun = Instant::now();
            let heard = tunnel.read(&mut [0; 16]).map_err(|error| error.kind());
            note(
                diary,
                &format!("half a header: {heard:?} after {} s", begun.elapsed().as_secs()),
            );
            Ok(())
        }
        Part::Fin | Part::Garbage | Part::End => {
            let mut tunnel = player.connect()?;
            let answer = present(&mut tunnel, &player.right_header())?;
            note(diary, &format!("the right one: {answer}"));
            up()?;
            carry(&mut tunnel, hypervisor, BEFORE)?;
            match part {
                Part::Garbage => tunnel.sock.write_all(&[0xa5; 4096])?,
                Part::End => {
                    tunnel.conn.send_close_notify();
                    tunnel.flush()?;
                    tunnel.sock.shutdown(Shutdown::Write)?;
                }
                Part::Fin
                | Part::TriesAll
                | Part::WrongKind
                | Part::WrongNumber
                | Part::NeverComes
                | Part::HalfAHeader => tunnel.sock.shutdown(Shutdown::Write)?,
            }
            note(diary, &"broken");
            // The hypervisor here is to see nothing of it.
            swallow(hypervisor);
            Ok(())
        }
    }
}

fn over(agent: &UnixStream, channel: Channel) -> anyhow::Result<()> {
    let ending = Ending::Cut {
        side: Side::Peer,
        why: "the play is over".into(),
    };
    say(
        agent,
        &Said::Event(Event::Ended {
            channel,
            sent: 0,
            received: 0,
            ending,
        }),
    )
}

/// Takes whatever the hypervisor says.
fn swallow(mut hypervisor: &UnixStream) {
    let mut scrap = vec![0; 64 * 1024];
    while hypervisor.read(&mut scrap).is_ok_and(|read| read > 0) {}
}

/// Carries both directions until either is over, or so many bytes have gone.
fn carry(tunnel: &mut Tunnel, mut hypervisor: &UnixStream, most: u64) -> anyhow::Result<()> {
    let mut carried = 0;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        // What came with the answer, or with the last look.
        loop {
            match tunnel.conn.reader().read(&mut buffer) {
                Ok(0) => {
                    hypervisor.shutdown(Shutdown::Write)?;
                    return Ok(());
                }
                Ok(read) => hypervisor.write_all(&buffer[..read])?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        let mut both = [
            PollFd::from_borrowed_fd(hypervisor.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(tunnel.sock.as_fd(), PollFlags::IN),
        ];
        poll(&mut both, None)?;
        let [from_hypervisor, from_peer] = both.map(|ready| !ready.revents().is_empty());
        if from_hypervisor {
            let read = hypervisor.read(&mut buffer)?;
            if read == 0 {
                tunnel.conn.send_close_notify();
                tunnel.flush()?;
                return Ok(());
            }
            tunnel.write_all(&buffer[..read])?;
            tunnel.flush()?;
            carried += read as u64;
            if carried > most {
                return Ok(());
            }
        }
        if from_peer {
            let read = tunnel.conn.read_tls(&mut tunnel.sock)?;
            ensure!(read > 0, "the destination has cut it");
            tunnel.conn.process_new_packets()?;
        }
    }
}

/// What the diary holds of something.
pub fn noted(diary: &str, what: &str) -> anyhow::Result<String> {
    let line = diary
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{what}: ")));
    Ok(line
        .with_context(|| format!("nothing of {what:?} in {diary:?}"))?
        .to_owned())
}
