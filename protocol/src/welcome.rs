//! A newcomer: what it wants, and who it is. Nothing here has a bound in time of its own: the caller sets it.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::error::Fault;
use crate::gate::Peer;
use crate::hello::{self, Begun};
use crate::server::Passage;
use crate::tls::{ALPN_CONTROL, ServerTls};

/// What is read from a peer that was refused before the connection is closed, in bytes.
const DRAINED: usize = 64 * 1024;

/// Sees what a newcomer wants: who asks for the tunnel alone is passed on, with everyone else hands are shaken.
///
/// # Errors
/// Why it was turned away.
pub(crate) async fn welcome(
    stream: TcpStream,
    address: SocketAddr,
    tls: &ServerTls,
    passage: &dyn Passage,
) -> Result<Option<(TlsStream<Begun>, Peer)>, Fault> {
    // Ready and Go travel while the guest stands still: no message may wait for the one before it.
    stream
        .set_nodelay(true)
        .map_err(|why| Fault::from_transport(&why))?;
    let (hello, begun) = hello::read(stream).await?;
    match hello {
        Some(hello) if hello.wants_tunnel() => {
            let (stream, read) = begun.into_parts();
            passage
                .pass(hello.sni, stream, read)
                .await
                .map_err(Fault::unreachable)?;
            Ok(None)
        }
        Some(_) | None => shake_hands(begun, address, tls).await.map(Some),
    }
}

async fn shake_hands(
    stream: Begun,
    address: SocketAddr,
    tls: &ServerTls,
) -> Result<(TlsStream<Begun>, Peer), Fault> {
    let mut stream = match TlsAcceptor::from(tls.config())
        .accept(stream)
        .into_fallible()
        .await
    {
        Ok(stream) => stream,
        Err((why, stream)) => {
            let fault = Fault::from_transport(&why);
            drain(stream).await;
            return Err(fault);
        }
    };
    let (_, session) = stream.get_ref();
    let known = if session.alpn_protocol() == Some(ALPN_CONTROL) {
        session
            .peer_certificates()
            .and_then(|chain| chain.first())
            .ok_or_else(|| Fault::certificate("The other side showed no certificate"))
            .and_then(|leaf| tls.peer(leaf).map_err(|why| Fault::certificate(why.to_string())))
    } else {
        Err(Fault::unreachable(
            "The other side asked for no application protocol; this port serves h2",
        ))
    };
    match known {
        Ok(identity) => Ok((stream, Peer::new(identity, address))),
        Err(fault) => {
            // The connection is given up; whether the farewell arrives does not matter.
            drop(stream.shutdown().await);
            Err(fault)
        }
    }
}

/// Lets the refused peer read why: closing with unread bytes would reset the connection, and the alert that was
/// sent would be lost with it. Bounded in bytes here and in time by the deadline.
async fn drain(mut stream: Begun) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut buffer = [0; 4096];
    let mut left = DRAINED;
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        left = left.saturating_sub(count);
        if left == 0 {
            return;
        }
    }
}
