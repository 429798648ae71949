//! The server's end of a connection: who is there, how long it may be silent, and its place among the others.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::gate::Peer;
use crate::hello::Begun;
use crate::places::Place;

/// A connection after its handshake.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<Begun>,
    peer: Peer,
    longest_silence: Duration,
    silence: Pin<Box<Sleep>>,
    /// Its place among the connections that the server takes; given back when it ends.
    _place: Place,
}

impl Connection {
    pub(crate) fn new(stream: TlsStream<Begun>, peer: Peer, longest_silence: Duration, place: Place) -> Self {
        let silence = Box::pin(tokio::time::sleep(longest_silence));
        Self {
            stream,
            peer,
            longest_silence,
            silence,
            _place: place,
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    /// Ends with `TimedOut` when the peer has sent nothing for longer than the server's pings allow: a peer that
    /// is alive answers those, and one that never begins to speak HTTP/2 gets none.
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Ready(result) => {
                let until = Instant::now() + self.longest_silence;
                self.silence.as_mut().reset(until);
                Poll::Ready(result)
            }
            Poll::Pending => match self.silence.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                Poll::Pending => Poll::Pending,
            },
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
