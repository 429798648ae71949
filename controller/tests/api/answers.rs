//! Answers of the API server that are kept back: what was asked for is done, and whoever asked does not know it yet.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use http::{Method, Request};
use tokio::sync::watch;
use tower::{Layer, Service};

/// Keeps the answers to writes of guests' records back while it is told to.
#[derive(Clone, Debug)]
pub struct Answers {
    kept_back: watch::Sender<bool>,
    any: Arc<AtomicBool>,
}

impl Answers {
    pub fn new() -> Self {
        Self {
            kept_back: watch::Sender::new(false),
            any: Arc::default(),
        }
    }

    /// From now on.
    pub fn keep_back(&self) {
        self.kept_back.send_replace(true);
    }

    /// All that were kept back arrive.
    pub fn release(&self) {
        self.kept_back.send_replace(false);
    }

    /// Whether one is, or was, kept back.
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }
}

impl<S> Layer<S> for Answers {
    type Service = KeptBack<S>;

    fn layer(&self, inner: S) -> KeptBack<S> {
        KeptBack {
            inner,
            answers: self.clone(),
        }
    }
}

pub struct KeptBack<S> {
    inner: S,
    answers: Answers,
}

impl<S, B> Service<Request<B>> for KeptBack<S>
where
    S: Service<Request<B>>,
    S::Future: Send + 'static,
    S::Response: Send,
    S::Error: Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let concerned = *request.method() == Method::PUT && request.uri().path().contains("/guestrecords/");
        let (answered, answers) = (self.inner.call(request), self.answers.clone());
        Box::pin(async move {
            let answer = answered.await;
            let mut kept_back = answers.kept_back.subscribe();
            if concerned && *kept_back.borrow() {
                answers.any.store(true, Ordering::Relaxed);
                // It ends with the world.
                let _ = kept_back.wait_for(|kept_back| !kept_back).await;
            }
            answer
        })
    }
}
