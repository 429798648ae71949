//! Where the migrations touch the host: who waits for the disk, and who makes the connections of the native transport.
//! [`Rim::default`] is the host's own; a simulation has another, in which nothing takes time but what it says.

use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use super::channel::Tcp;
use super::journal::Medium;

/// What the migrations are given of the host.
#[derive(Clone, Debug)]
pub struct Rim {
    /// Where whatever waits for the disk is done.
    pub desk: Arc<dyn Desk>,
    /// What makes the connections of the native transport.
    pub wire: Arc<dyn Wire>,
}

impl Default for Rim {
    fn default() -> Self {
        Self {
            desk: Arc::new(Threads),
            wire: Arc::new(Tcp),
        }
    }
}

/// Something that waits for the disk.
pub type Work = Box<dyn FnOnce() + Send>;

/// Where what waits for the disk is done, so that nothing else waits for it.
pub trait Desk: Debug + Send + Sync {
    /// Does one piece of work, to its end even where nobody waits for that.
    fn once(&self, work: Work);

    /// Somebody who does one piece of work after another.
    ///
    /// # Errors
    /// If there is nobody to be had.
    fn writer(&self) -> io::Result<Box<dyn Writer>>;

    /// What a journal's bytes go through on their way to their file.
    fn medium(&self, file: Box<dyn Medium>) -> Box<dyn Medium> {
        file
    }
}

/// Does one piece of work after another. Dropped, it has done what it was given before it is gone.
pub trait Writer: Send + Sync {
    /// Gives it another one; `false` if it never will be done.
    fn write(&self, work: Work) -> bool;
}

/// Does `work` at the desk and gives back what came of it.
///
/// # Errors
/// If it ended without an answer: it has panicked.
pub async fn done<T: Send + 'static>(
    desk: &dyn Desk,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (answer, answered) = oneshot::channel();
    desk.once(Box::new(move || {
        // Whoever asked may have gone.
        let _ = answer.send(work());
    }));
    answered
        .await
        .map_err(|_| io::Error::other("work at the disk ended without an answer"))
}

/// Threads of this process.
#[derive(Clone, Copy, Debug)]
pub struct Threads;

impl Desk for Threads {
    fn once(&self, work: Work) {
        tokio::task::spawn_blocking(work);
    }

    fn writer(&self) -> io::Result<Box<dyn Writer>> {
        let (works, given) = mpsc::channel::<Work>();
        let thread = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || {
                for work in given {
                    work();
                }
            })?;
        Ok(Box::new(Thread {
            works: Some(works),
            thread: Some(thread),
        }))
    }
}

/// A thread of its own, so that work is on its way without a detour over a pool of threads.
struct Thread {
    works: Option<mpsc::Sender<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer for Thread {
    fn write(&self, work: Work) -> bool {
        self.works.as_ref().is_some_and(|works| works.send(work).is_ok())
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.works = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a writer at the disk has panicked");
        }
    }
}

/// What makes the connections of the native transport.
#[async_trait]
pub trait Wire: Debug + Send + Sync {
    /// Listens there and nowhere else. A port whose last connection still lingers is free; one that somebody listens on
    /// is not (`AddrInUse`).
    fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>>;

    /// Connects.
    async fn connect(&self, address: SocketAddr) -> io::Result<Box<dyn Connection>>;
}

/// Somebody who listens; dropped, nobody does.
#[async_trait]
pub trait Listener: Send + Sync {
    /// Where.
    fn address(&self) -> io::Result<SocketAddr>;

    /// The next who comes, and from where.
    async fn accept(&self) -> io::Result<(Box<dyn Connection>, SocketAddr)>;
}

/// A connection in the agent's hands.
pub trait Connection: AsyncRead + AsyncWrite + Unpin + Send {
    /// The socket as a hypervisor takes it: blocking, without delays, and with a bound on silence.
    fn hand_over(self: Box<Self>) -> io::Result<OwnedFd>;
}
