//! Two relays of a kind, and channels through them. All kinds are reached alike: by UNIX sockets at paths.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use godwit_lab::cache;
use godwit_relay::channel::{Channel, ChannelKind, Token};
use godwit_relay::client::{self, Place, Relay};
use godwit_relay::hello::HelloReader;
use godwit_relay::order::{Begin, Credentials, End, Opening};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

use super::plain;
use super::processes::Process;

/// Which relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ours.
    Relay,
    /// Without TLS.
    Plain,
    /// In Go.
    Go,
}

/// The name in both certificates: one for all is enough here.
const NAME: &str = "spiffe://bench/host";

const WITHIN: Duration = Duration::from_secs(10);

/// Certificates.
pub struct Files {
    credentials: Credentials,
    authority: PathBuf,
    chain: PathBuf,
    key: PathBuf,
}

impl Files {
    /// Makes them, and writes them for who reads them from files.
    pub fn write(directory: &Path) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authorities = parameters.self_signed(&key)?.pem();
        let issuer = Issuer::new(parameters, key);
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::new(vec!["bench".to_owned()])?;
        parameters.subject_alt_names.push(SanType::URI(NAME.try_into()?));
        let credentials = Credentials {
            authorities,
            chain: parameters.signed_by(&key, &issuer)?.pem(),
            key: key.serialize_pem(),
        };
        let write = |name: &str, text: &str| -> anyhow::Result<PathBuf> {
            let path = directory.join(name);
            std::fs::write(&path, text)?;
            Ok(path)
        };
        Ok(Self {
            authority: write("authority.pem", &credentials.authorities)?,
            chain: write("chain.pem", &credentials.chain)?,
            key: write("key.pem", &credentials.key)?,
            credentials,
        })
    }
}

/// The hypervisors' ends of a channel.
pub struct Ends {
    /// The source's.
    pub near: UnixStream,
    /// The destination's.
    pub far: UnixStream,
}

/// Two relays.
pub struct Pair {
    source: Process,
    destination: Process,
    near: PathBuf,
    far: PathBuf,
    far_listener: UnixListener,
    ours: Option<Ours>,
}

/// The source's and the destination's; and the agent, if they are ours.
type Processes = (Process, Process, Option<Ours>);

/// Our relays' agent.
struct Ours {
    source: Relay,
    destination: Relay,
    port: TcpListener,
    /// The next channel's number. None is used twice: when a channel's name is free again cannot be seen from here.
    next: std::cell::Cell<u16>,
}

impl Pair {
    /// Starts them.
    ///
    /// # Errors
    /// When they do not start.
    pub fn start(kind: Kind, directory: &Path, files: &Files) -> anyhow::Result<Self> {
        let directory = directory.join(format!("{kind:?}"));
        Self::with(&directory, |near, far| match kind {
            Kind::Relay => {
                let program = std::env::current_exe()?.with_file_name("godwit-relay");
                ours(&program, &directory, files)
            }
            Kind::Plain => {
                let program = std::env::current_exe()?;
                let start = |role: &str, path: &Path, address: &str| {
                    let mut command = Command::new(&program);
                    command.args([plain::ARGUMENT, role]).arg(path).arg(address);
                    Process::start(command)
                };
                let (destination, address) = start("destination", far, "127.0.0.1:0")?;
                Ok((start("source", near, &address)?.0, destination, None))
            }
            Kind::Go => {
                let program = cache::workspace().join("target/bench/go-relay");
                ensure!(program.exists(), "{} is not built", program.display());
                let start = |role: &str, path: &Path, address: &str| {
                    let mut command = Command::new(&program);
                    command.arg(role).arg(path).arg(address);
                    command.args([&files.authority, &files.chain, &files.key]);
                    Process::start(command)
                };
                let (destination, address) = start("destination", far, "127.0.0.1:0")?;
                Ok((start("source", near, &address)?.0, destination, None))
            }
        })
    }

    /// Starts two of ours, of which this is the program.
    ///
    /// # Errors
    /// When they do not start.
    pub fn of_build(program: &Path, directory: &Path, files: &Files) -> anyhow::Result<Self> {
        Self::with(directory, |_, _| ours(program, directory, files))
    }

    fn with(
        directory: &Path,
        start: impl FnOnce(&Path, &Path) -> anyhow::Result<Processes>,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let (near, far) = (directory.join("near.sock"), directory.join("far.sock"));
        let far_listener = UnixListener::bind(&far)?;
        let (source, destination, ours) = start(&near, &far)?;
        Ok(Self {
            source,
            destination,
            near,
            far,
            far_listener,
            ours,
        })
    }

    /// New channels.
    ///
    /// # Errors
    /// When they do not come about.
    pub fn channels(&mut self, number: usize) -> anyhow::Result<Vec<Ends>> {
        if let Some(ours) = &self.ours {
            ours.prepare(number, &self.near, &self.far)?;
        }
        let mut channels = vec![];
        for _ in 0..number {
            let near = UnixStream::connect(&self.near).context("the source's relay")?;
            if let Some(ours) = &self.ours {
                ours.arrive()?;
            }
            let (far, _) = self.far_listener.accept()?;
            channels.push(Ends { near, far });
        }
        Ok(channels)
    }

    /// CPU time of both so far, in seconds.
    ///
    /// # Errors
    /// When one is gone.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        Ok(self.source.cpu_seconds()? + self.destination.cpu_seconds()?)
    }

    /// The own memory of the larger of the two, in MiB.
    ///
    /// # Errors
    /// When one is gone.
    pub fn memory(&self) -> anyhow::Result<f64> {
        Ok(self.source.memory()?.max(self.destination.memory()?))
    }
}

fn ours(program: &Path, directory: &Path, files: &Files) -> anyhow::Result<Processes> {
    let port = TcpListener::bind("127.0.0.1:0")?;
    let start = |name: &str, end: End| -> anyhow::Result<(Process, Relay)> {
        let path = directory.join(name);
        let child =
            client::start(Command::new(program), &path).with_context(|| program.display().to_string())?;
        let process = Process::of(child);
        let relay = Relay::attach(&path, WITHIN, |_| ())?;
        relay.begin(Begin {
            migration: uuid::Uuid::from_u128(1),
            end,
            peer: NAME.to_owned(),
            credentials: files.credentials.clone(),
        })?;
        Ok((process, relay))
    };
    let address = port.local_addr()?;
    let (source_process, source) = start("source.sock", End::Source { destination: address })?;
    let (destination_process, destination) = start("destination.sock", End::Destination)?;
    let ours = Ours {
        source,
        destination,
        port,
        next: std::cell::Cell::new(0),
    };
    Ok((source_process, destination_process, Some(ours)))
}

impl Ours {
    fn prepare(&self, number: usize, near: &Path, far: &Path) -> anyhow::Result<()> {
        let mut openings = vec![];
        for _ in 0..number {
            let next = self.next.get();
            self.next.set(next.checked_add(1).context("too many channels")?);
            let opening = Opening {
                channel: Channel::new(ChannelKind::Multifd, next),
                token: Token::generate()?,
            };
            self.destination.expect(opening.clone(), Place::Path(far))?;
            openings.push(opening);
        }
        let uid = rustix::process::geteuid().as_raw();
        self.source.listen(Place::Path(near), uid, openings)?;
        Ok(())
    }

    /// What the destination's agent does with the next connection.
    fn arrive(&self) -> anyhow::Result<()> {
        let (mut socket, _): (TcpStream, _) = self.port.accept()?;
        let mut reader = HelloReader::new();
        let mut bytes = [0; 4096];
        loop {
            let read = socket.read(&mut bytes)?;
            ensure!(read > 0, "the source's relay has closed its connection");
            if reader.push(bytes.get(..read).unwrap_or_default())?.is_some() {
                break;
            }
        }
        Ok(self.destination.arrived(&socket, reader.into_bytes())?)
    }
}
