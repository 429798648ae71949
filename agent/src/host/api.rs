//! The way to the API server.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// How long one request may take in all.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long the connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a connection may bring nothing until another one is made. Longer than the pause between two renewals of
/// the lease: a connection that is closed just when it is used again loses a request.
const SILENCE: Duration = Duration::from_secs(15);

/// The name under which this agent owns fields.
pub const FIELD_MANAGER: &str = "godwit-agent";

/// Why a request to the API server gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The way to the API server is not configured.
    #[error("The way to the API server is not known: {0}")]
    Configuration(String),
    /// No answer within the deadline.
    #[error("The API server did not answer within {} s", DEADLINE.as_secs())]
    Deadline,
    /// It cannot be reached, or refuses.
    #[error("The API server: {0}")]
    Refused(#[source] Box<kube::Error>),
    /// It answered with something that cannot be.
    #[error("The API server answered with something that cannot be: {0}")]
    Malformed(String),
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        Self::Refused(Box::new(error))
    }
}

/// A client by a kubeconfig, or, without one, by what a pod is given. Nothing is asked yet.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, ApiError> {
    let unusable = |error: &dyn std::fmt::Display| ApiError::Configuration(error.to_string());
    let mut config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(|e| unusable(&e))?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(|e| unusable(&e))?
        }
        None => Config::incluster().map_err(|e| unusable(&e))?,
    };
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    config.write_timeout = Some(DEADLINE);
    Client::try_from(config).map_err(|e| unusable(&e))
}

/// A request with a deadline.
pub(super) async fn within<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, ApiError> {
    match tokio::time::timeout(DEADLINE, request).await {
        Ok(answer) => answer.map_err(ApiError::from),
        Err(_) => Err(ApiError::Deadline),
    }
}
