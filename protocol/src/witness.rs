//! The client's end of a connection. It remembers why TLS ended it: in TLS 1.3 the server judges the client's
//! certificate after the client's own handshake is done, so its refusal comes with the first read, and HTTP/2
//! keeps only the words of an I/O error.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::error::Fault;
use crate::reason;
use crate::through::writes_through;

/// What was seen of a connection's end, if TLS ended it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen(Arc<OnceLock<Fault>>);

impl Seen {
    /// The fault as TLS told it where this one only says that the connection is gone.
    pub(crate) fn rather_than(&self, fault: Fault) -> Fault {
        match self.0.get() {
            Some(seen) if fault.reason == reason::AGENT_UNREACHABLE => seen.clone(),
            Some(_) | None => fault,
        }
    }
}

/// A connection under observation.
#[derive(Debug)]
pub(crate) struct Witnessed {
    stream: TlsStream<TcpStream>,
    seen: Seen,
}

impl Witnessed {
    pub(crate) fn new(stream: TlsStream<TcpStream>, seen: Seen) -> Self {
        Self { stream, seen }
    }
}

impl AsyncRead for Witnessed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Poll::Ready(Err(why)) = &polled {
            // The first word counts; later errors only follow from it.
            self.seen.0.get_or_init(|| Fault::from_transport(why));
        }
        polled
    }
}

writes_through!(Witnessed);
