//! `/livez` and `/readyz`.
//!
//! Alive: the certificate is still awaited, or the loop that asks for or renews the lead still turns. Ready: the API server has answered that loop lately,
//! and, in the leader, each watch has seen everything once.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

/// How old the API server's last answer may be for the controller to be ready.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// After this long without an answer something in this process is stuck, or the API server has long been away: a
/// restart costs nothing, since guests and transfers do without the controller.
const ALIVE_WITHIN: Duration = Duration::from_secs(300);

/// What the endpoints tell.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    reached_millis: AtomicU64,
    reached: AtomicBool,
    awaits_certificate: AtomicBool,
    watching: AtomicBool,
    leading: AtomicBool,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            reached_millis: AtomicU64::new(0),
            reached: AtomicBool::new(false),
            awaits_certificate: AtomicBool::new(false),
            watching: AtomicBool::new(false),
            leading: AtomicBool::new(false),
        }
    }
}

impl Health {
    /// The work begins only with a certificate, which is asked for.
    pub fn awaits_certificate(&self) {
        self.awaits_certificate.store(true, Ordering::Relaxed);
    }

    /// The certificate is there.
    pub fn certified(&self) {
        self.turned();
        self.awaits_certificate.store(false, Ordering::Relaxed);
    }

    /// The API server has answered.
    pub fn reached(&self) {
        self.turned();
        self.reached.store(true, Ordering::Relaxed);
    }

    fn turned(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.reached_millis.store(millis, Ordering::Relaxed);
    }

    /// This process leads.
    pub fn leading(&self) {
        self.leading.store(true, Ordering::Relaxed);
    }

    /// Each watch has seen everything once.
    pub fn watching(&self) {
        self.watching.store(true, Ordering::Relaxed);
    }

    fn silent_for(&self) -> Duration {
        let reached = Duration::from_millis(self.reached_millis.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(reached)
    }

    fn answer(&self, path: &str) -> (StatusCode, &'static str) {
        let silent = self.silent_for();
        match path {
            // It is asked for again and again; a restart would bring nothing nearer.
            "/livez" if self.awaits_certificate.load(Ordering::Relaxed) => (StatusCode::OK, "ok\n"),
            "/readyz" if self.awaits_certificate.load(Ordering::Relaxed) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "the signer has given no certificate yet\n",
            ),
            "/livez" if silent <= ALIVE_WITHIN => (StatusCode::OK, "ok\n"),
            "/livez" => (
                StatusCode::SERVICE_UNAVAILABLE,
                "the API server has not answered for five minutes\n",
            ),
            "/readyz" if !self.reached.load(Ordering::Relaxed) || silent > READY_WITHIN => (
                StatusCode::SERVICE_UNAVAILABLE,
                "the API server does not answer\n",
            ),
            "/readyz" if self.leading.load(Ordering::Relaxed) && !self.watching.load(Ordering::Relaxed) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "the watches have not seen everything yet\n",
            ),
            "/readyz" => (StatusCode::OK, "ok\n"),
            _ => (StatusCode::NOT_FOUND, "there are /livez and /readyz\n"),
        }
    }
}

/// Serves the endpoints for ever.
pub async fn serve(listener: TcpListener, health: Arc<Health>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a health check was not taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let health = health.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let (status, words) = health.answer(request.uri().path());
                let mut response = Response::new(Full::new(Bytes::from_static(words.as_bytes())));
                *response.status_mut() = status;
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(5))
                .max_buf_size(16 * 1024)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a health check broke off");
            }
        });
    }
}

/// Opens the port.
pub async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_that_the_api_answers_and_all_was_seen() {
        let health = Health::default();
        assert_eq!(health.answer("/livez").0, StatusCode::OK);
        assert_eq!(health.answer("/readyz").0, StatusCode::SERVICE_UNAVAILABLE);
        health.reached();
        assert_eq!(health.answer("/readyz").0, StatusCode::OK);
        health.leading();
        assert_eq!(health.answer("/readyz").0, StatusCode::SERVICE_UNAVAILABLE);
        health.watching();
        assert_eq!(health.answer("/readyz").0, StatusCode::OK);
        assert_eq!(health.answer("/").0, StatusCode::NOT_FOUND);
    }

    #[test]
    fn a_controller_that_waits_for_its_certificate_is_alive_and_not_ready() {
        let health = Health::default();
        health.reached();
        health.awaits_certificate();
        assert_eq!(health.answer("/livez").0, StatusCode::OK);
        let (status, words) = health.answer("/readyz");
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(words.contains("certificate"), "{words}");
        health.certified();
        assert_eq!(health.answer("/readyz").0, StatusCode::OK);
    }
}
