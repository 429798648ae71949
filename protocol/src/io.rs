//! The server's end of a connection: who is there, how long it may be silent, and its place among the others.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::gate::Peer;
use crate::hello::Begun;
use crate::places::Place;
use crate::through::writes_through;

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

writes_through!(Connection);
