//! The way to the API server.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

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

/// Where the API server says on which node the bearer of a token is, if the token is bound to a pod.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Checks that this agent's token is that of the node by whose name its host goes: the API server would refuse every
/// object of the host else, one by one. A token that names no node, as outside of a cluster, is no host's.
///
/// # Errors
/// Words for people where the two names differ. That the API server does not answer is no error: then it is not known.
pub async fn check_host(client: Client, host: &str) -> Result<(), String> {
    let reviews: Api<SelfSubjectReview> = Api::all(client);
    let (parameters, question) = (PostParams::default(), SelfSubjectReview::default());
    match within(reviews.create(&parameters, &question)).await {
        Ok(answer) => agree(host, &answer),
        Err(error) => {
            tracing::info!(%error, "whose token this is was not told");
            Ok(())
        }
    }
}

fn agree(host: &str, answer: &SelfSubjectReview) -> Result<(), String> {
    let user = answer
        .status
        .as_ref()
        .and_then(|status| status.user_info.as_ref());
    let extra = user.and_then(|user| user.extra.as_ref()?.get(NODE_NAME)?.first());
    match extra {
        Some(node) if node != host => Err(format!(
            "The configuration says that this is host {host}, and the agent's token is that of node {node}: no agent may \
             write another host's objects. Set `host` in the agent's configuration to {node}"
        )),
        Some(_) | None => Ok(()),
    }
}

/// A request with a deadline.
pub(super) async fn within<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, ApiError> {
    match tokio::time::timeout(DEADLINE, request).await {
        Ok(answer) => answer.map_err(ApiError::from),
        Err(_) => Err(ApiError::Deadline),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_token_of_another_node_is_refused_by_name() {
        let of = |extra: serde_json::Value| -> SelfSubjectReview {
            let user = json!({"username": "system:serviceaccount:godwit:godwit-agent", "extra": extra});
            serde_json::from_value(json!({"metadata": {}, "status": {"userInfo": user}})).unwrap()
        };
        assert_eq!(agree("h1", &of(json!({NODE_NAME: ["h1"]}))), Ok(()));
        let words = agree("h1", &of(json!({NODE_NAME: ["h2"]}))).unwrap_err();
        assert!(
            words.contains("host h1") && words.contains("node h2") && words.contains("Set `host`"),
            "{words}"
        );
        // Outside of a cluster a token names no node.
        assert_eq!(
            agree("h1", &of(json!({"authentication.kubernetes.io/pod-name": ["p"]}))),
            Ok(())
        );
        assert_eq!(agree("h1", &SelfSubjectReview::default()), Ok(()));
    }
}
