//! The migration network: the native transport's connections, in memory, and how they get into a hypervisor's hands.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use async_trait::async_trait;
use godwit_agent::migration::rim::{Connection, Listener, Wire};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;

use crate::sim::{Life, Place, Sim};

/// The migration network of both hosts. It goes the same way as messages between the two.
#[derive(Default)]
pub struct MigrationNetwork {
    listening: Mutex<BTreeMap<SocketAddr, mpsc::UnboundedSender<Plug>>>,
    /// Connections on their way from an agent's hands into a hypervisor's, by what stands for them.
    handed_over: Mutex<BTreeMap<RawFd, (Place, DuplexStream)>>,
}

impl MigrationNetwork {
    /// How many listen.
    pub fn listeners(&self) -> usize {
        self.listening.lock().unwrap().len()
    }

    /// A descriptor stands for a connection, which is kept until a hypervisor takes it.
    ///
    /// # Errors
    /// If there is no descriptor to be had.
    pub fn stand_for(&self, owner: Place, stream: DuplexStream) -> io::Result<OwnedFd> {
        let stands = OwnedFd::from(File::open("/dev/null")?);
        let mut handed_over = self.handed_over.lock().unwrap();
        handed_over.insert(stands.as_raw_fd(), (owner, stream));
        Ok(stands)
    }

    /// The connection that a descriptor stands for.
    pub fn take(&self, descriptor: &OwnedFd) -> Option<DuplexStream> {
        let taken = self.handed_over.lock().unwrap().remove(&descriptor.as_raw_fd());
        taken.map(|(_, stream)| stream)
    }

    /// What a process that has died had in its hands is closed.
    pub fn close(&self, place: Place) {
        self.handed_over
            .lock()
            .unwrap()
            .retain(|_, (owner, _)| *owner != place);
    }

    /// Connections that nobody has taken.
    pub fn left(&self) -> usize {
        self.handed_over.lock().unwrap().len()
    }
}

/// A process's way to the migration network.
pub struct Socket {
    /// The world.
    pub sim: Arc<Sim>,
    /// Whose.
    pub me: Arc<Life>,
    /// The network.
    pub network: Arc<MigrationNetwork>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the migration network of {}", self.me.place)
    }
}

#[async_trait]
impl Wire for Socket {
    fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        let (ears, comes) = mpsc::unbounded_channel();
        let mut listening = self.network.listening.lock().unwrap();
        if listening.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        listening.insert(address, ears);
        Ok(Box::new(Ear {
            network: self.network.clone(),
            address,
            comes: tokio::sync::Mutex::new(comes),
        }))
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<Box<dyn Connection>> {
        let there = if self.me.place == Place::A {
            Place::B
        } else {
            Place::A
        };
        self.sim.pass(&self.me, "connects the stream").await;
        self.sim.travel(self.me.place, there).await;
        self.sim.travel(there, self.me.place).await;
        let (mine, theirs) = tokio::io::duplex(4096);
        let plug = |stream, owner| Plug {
            stream,
            owner,
            network: self.network.clone(),
        };
        let heard = self.network.listening.lock().unwrap().get(&address).cloned();
        let heard = heard.ok_or(io::ErrorKind::ConnectionRefused)?;
        heard
            .send(plug(theirs, there))
            .map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(Box::new(plug(mine, self.me.place)))
    }
}

struct Ear {
    network: Arc<MigrationNetwork>,
    address: SocketAddr,
    comes: tokio::sync::Mutex<mpsc::UnboundedReceiver<Plug>>,
}

#[async_trait]
impl Listener for Ear {
    fn address(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    async fn accept(&self) -> io::Result<(Box<dyn Connection>, SocketAddr)> {
        match self.comes.lock().await.recv().await {
            Some(plug) => Ok((Box::new(plug), self.address)),
            None => std::future::pending().await,
        }
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.network.listening.lock().unwrap().remove(&self.address);
    }
}

struct Plug {
    stream: DuplexStream,
    owner: Place,
    network: Arc<MigrationNetwork>,
}

impl Connection for Plug {
    fn hand_over(self: Box<Self>) -> io::Result<OwnedFd> {
        self.network.stand_for(self.owner, self.stream)
    }
}

impl AsyncRead for Plug {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Plug {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
