//! The gate before the agent's service: who calls and under which version is judged before a message is read.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use tonic::Status;
use tonic::codegen::{BoxFuture, Service, http};

use crate::convert::Malformed;
use crate::error::{Category, Fault};
use crate::identity::{self, PeerIdentity, Rpc};
use crate::version::{self, Versions};
use crate::{reason, wire};

/// The longest name of a program in a Hello and its answer, in bytes.
pub(crate) const LONGEST_PROGRAM: usize = 128;

/// Who is at the other end of a connection. It is in the extensions of each request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// By its certificate.
    pub identity: PeerIdentity,
    /// Where it comes from.
    pub address: SocketAddr,
    /// The version that Hello settled on this connection; 0 before that.
    settled: Arc<AtomicU32>,
}

impl Peer {
    /// A connection on which nothing has been said yet.
    pub fn new(identity: PeerIdentity, address: SocketAddr) -> Self {
        Self {
            identity,
            address,
            settled: Arc::new(AtomicU32::new(0)),
        }
    }

    /// The peer that made a request.
    ///
    /// # Errors
    /// An internal fault where the server was put together without this crate's acceptor.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<&Self, Fault> {
        request.extensions().get::<Self>().ok_or_else(no_peer)
    }

    /// Settles the version of this connection by the peer's Hello and says which it is.
    ///
    /// # Errors
    /// A fault of category Version that names both ranges; of category Invalid if the Hello is malformed.
    pub fn settle(&self, hello: &wire::HelloRequest) -> Result<u32, Fault> {
        if hello.program.len() > LONGEST_PROGRAM {
            return Err(Malformed::new("program", "is longer than 128 bytes").into());
        }
        let theirs = Versions {
            oldest: hello.oldest_version,
            newest: hello.newest_version,
        };
        let settled = version::settle(version::OURS, theirs)?;
        self.settled.store(settled, Ordering::Relaxed);
        Ok(settled)
    }

    fn settled(&self) -> Option<u32> {
        match self.settled.load(Ordering::Relaxed) {
            0 => None,
            version => Some(version),
        }
    }
}

fn no_peer() -> Fault {
    Fault::new(
        Category::Internal,
        reason::INTERNAL_ERROR,
        "The connection has no identity",
    )
}

/// Whether a call may go on to the service.
fn admit(peer: Option<&Peer>, path: &str, version: Option<&[u8]>) -> Result<(), Fault> {
    let peer = peer.ok_or_else(no_peer)?;
    let rpc = Rpc::of_path(path).ok_or_else(|| {
        Fault::new(
            Category::Version,
            reason::PROTOCOL_VERSION_UNSUPPORTED,
            format!(
                "This agent has no such call; it speaks protocol version {}",
                version::OURS
            ),
        )
    })?;
    identity::authorise(&peer.identity, rpc)?;
    match rpc {
        Rpc::Hello => Ok(()),
        Rpc::StartGuest | Rpc::StopGuest | Rpc::Order | Rpc::WatchMigration | Rpc::KeepAlive => {
            version::check(version, peer.settled())
        }
    }
}

/// Lets only calls through that the peer may make, under the version that its Hello settled.
#[derive(Clone, Debug)]
pub struct Gate<S> {
    inner: S,
}

impl<S> Gate<S> {
    /// The gate before this service.
    pub fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S, B> Service<http::Request<B>> for Gate<S>
where
    S: Service<http::Request<B>, Response = http::Response<tonic::body::Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<S::Response, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let peer = request.extensions().get::<Peer>();
        let named = request
            .headers()
            .get(version::KEY)
            .map(http::HeaderValue::as_bytes);
        match admit(peer, request.uri().path(), named) {
            Ok(()) => Box::pin(self.inner.call(request)),
            Err(fault) => {
                tracing::warn!(
                    peer = peer.map(|peer| peer.identity.to_string()),
                    address = peer.map(|peer| peer.address.to_string()),
                    path = request.uri().path(),
                    reason = %fault.reason,
                    "Call refused: {}",
                    fault.message
                );
                let answer = Status::from(fault).into_http();
                Box::pin(async move { Ok(answer) })
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;

    fn peer(identity: PeerIdentity) -> Peer {
        Peer::new(identity, ([127, 0, 0, 1], 1).into())
    }

    fn path(rpc: Rpc) -> String {
        format!("/godwit.agent.v1.Agent/{}", rpc.name())
    }

    fn hello(oldest_version: u32, newest_version: u32) -> wire::HelloRequest {
        wire::HelloRequest {
            oldest_version,
            newest_version,
            program: String::new(),
        }
    }

    #[test]
    fn hello_comes_first_and_settles_the_version() {
        let controller = peer(PeerIdentity::Controller);
        assert!(admit(Some(&controller), &path(Rpc::Hello), None).is_ok());
        let fault = admit(Some(&controller), &path(Rpc::Order), Some(b"1")).unwrap_err();
        assert_eq!(fault.category, Category::Version);
        assert_eq!(controller.settle(&hello(1, 1)).unwrap(), 1);
        assert!(admit(Some(&controller), &path(Rpc::Order), Some(b"1")).is_ok());
        assert!(admit(Some(&controller), &path(Rpc::Order), None).is_err());
    }

    #[test]
    fn a_refused_hello_settles_nothing() {
        let controller = peer(PeerIdentity::Controller);
        assert!(controller.settle(&hello(7, 9)).is_err());
        assert!(admit(Some(&controller), &path(Rpc::KeepAlive), Some(b"1")).is_err());
    }

    #[test]
    fn a_hello_with_an_endless_name_settles_nothing() {
        let controller = peer(PeerIdentity::Controller);
        let endless = wire::HelloRequest {
            program: "x".repeat(129),
            ..hello(1, 1)
        };
        assert_eq!(
            controller.settle(&endless).unwrap_err().category,
            Category::Invalid
        );
        assert!(admit(Some(&controller), &path(Rpc::KeepAlive), Some(b"1")).is_err());
    }

    #[test]
    fn who_may_not_call_is_told_so_before_the_version_is_judged() {
        let host = peer(PeerIdentity::Host("a".to_owned()));
        let fault = admit(Some(&host), &path(Rpc::StartGuest), None).unwrap_err();
        assert_eq!(fault.category, Category::Forbidden);
    }

    #[test]
    fn an_unknown_call_is_a_matter_of_versions() {
        let controller = peer(PeerIdentity::Controller);
        let fault = admit(Some(&controller), "/godwit.agent.v1.Agent/Tunnel", Some(b"1")).unwrap_err();
        assert_eq!(fault.category, Category::Version);
    }

    #[test]
    fn without_an_identity_nothing_passes() {
        assert_eq!(
            admit(None, &path(Rpc::Hello), None).unwrap_err().category,
            Category::Internal
        );
    }
}
