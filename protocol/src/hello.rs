//! What a connection's first message says, read before anything is answered: who asks for a tunnel is handed on with
//! the bytes that were read, because a TLS session cannot move between processes.

use std::io::{self, Cursor};
use std::pin::Pin;
use std::task::{Context, Poll};

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::net::TcpStream;

use crate::error::Fault;
use crate::through::writes_through;

/// The most bytes of a connection's beginning that are read to see what it wants.
const LONGEST_HELLO: usize = 16 * 1024;
/// How much is read at once: a hello has some hundred bytes.
const STEP: usize = 2048;

/// What a client says first. None of it is proven.
pub(crate) struct Hello {
    /// The application protocols that it offers.
    pub(crate) alpn: Vec<Vec<u8>>,
    /// The server name that it asks for.
    pub(crate) server_name: Option<String>,
}

/// Reads a connection's first message. The bytes stay with the connection. The caller bounds the time.
///
/// # Errors
/// A fault where it is not TLS, or has no end.
pub(crate) async fn read(mut stream: TcpStream) -> Result<(Option<Hello>, Begun), Fault> {
    let mut acceptor = Acceptor::default();
    let mut read = Vec::new();
    let mut buffer = vec![0; STEP];
    loop {
        let count = stream
            .read(&mut buffer)
            .await
            .map_err(|why| Fault::from_transport(&why))?;
        let bytes = buffer.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            return Err(Fault::unreachable("The other side left before it said anything"));
        }
        if read.len() + bytes.len() > LONGEST_HELLO {
            return Err(Fault::unreachable("The other side's first message has no end"));
        }
        read.extend_from_slice(bytes);
        let mut cursor = Cursor::new(bytes);
        while usize::try_from(cursor.position()).is_ok_and(|at| at < bytes.len()) {
            acceptor
                .read_tls(&mut cursor)
                .map_err(|why| Fault::from_transport(&why))?;
            let hello = match acceptor.accept() {
                Ok(None) => continue,
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    Some(Hello {
                        alpn: hello.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect(),
                        server_name: hello.server_name().map(str::to_owned),
                    })
                }
                // The handshake proper finds the same, and says so in the peer's own words.
                Err(_) => None,
            };
            return Ok((
                hello,
                Begun {
                    stream,
                    read,
                    given: 0,
                },
            ));
        }
    }
}

/// A connection of which some bytes have been read already; they are read again from here.
#[derive(Debug)]
pub struct Begun {
    stream: TcpStream,
    read: Vec<u8>,
    given: usize,
}

impl Begun {
    /// The connection, and what was read of it.
    pub(crate) fn into_parts(self) -> (TcpStream, Vec<u8>) {
        (self.stream, self.read)
    }
}

impl AsyncRead for Begun {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(rest) = this.read.get(this.given..).filter(|rest| !rest.is_empty()) {
            let count = rest.len().min(buffer.remaining());
            buffer.put_slice(rest.get(..count).unwrap_or_default());
            this.given += count;
            if this.given == this.read.len() {
                this.read = Vec::new();
                this.given = 0;
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

writes_through!(Begun);
