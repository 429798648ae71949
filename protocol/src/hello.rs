//! Reads a connection's first message, and keeps its bytes with the connection: who asks for a tunnel is handed on with
//! them, and every other handshake begins with them again.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use godwit_tls::hello::{Hello, HelloError, HelloReader};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::net::TcpStream;

use crate::error::Fault;
use crate::through::writes_through;

/// How much is read at once: a hello has some hundred bytes.
const STEP: usize = 2048;

/// Reads a connection's first message; nothing of it where it is not TLS as it should be, for the handshake proper
/// finds the same and says so in the peer's own words. The caller bounds the time.
///
/// # Errors
/// A fault where the message has no end.
pub(crate) async fn read(mut stream: TcpStream) -> Result<(Option<Hello>, Begun), Fault> {
    let mut reader = HelloReader::new();
    let mut buffer = vec![0; STEP];
    let hello = loop {
        let count = stream
            .read(&mut buffer)
            .await
            .map_err(|why| Fault::from_transport(&why))?;
        let bytes = buffer.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            return Err(Fault::unreachable("The other side left before it said anything"));
        }
        match reader.push(bytes) {
            Ok(None) => {}
            Ok(Some(hello)) => break Some(hello),
            Err(HelloError::NotTls(_)) => break None,
            Err(HelloError::TooLong) => {
                return Err(Fault::unreachable("The other side's first message has no end"));
            }
        }
    };
    let begun = Begun {
        stream,
        read: reader.into_bytes(),
        given: 0,
    };
    Ok((hello, begun))
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
