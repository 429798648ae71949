//! The way to the API server, which the controller and the signer take alike.

use std::path::Path;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// Why there is no client of the API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig.
    #[error("the kubeconfig cannot be used")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// The cluster's own configuration of a pod.
    #[error("there is no --kubeconfig, and this is no pod of a cluster")]
    InCluster(#[from] kube::config::InClusterError),
    /// The client.
    #[error("the API server's client cannot be made")]
    Client(#[from] kube::Error),
}

/// A client by a kubeconfig, or, without one, by the account of the pod that this process runs in. It connects when it
/// is first used.
///
/// # Errors
/// [`ConnectError`] where the kubeconfig or the pod's account cannot be used.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, ConnectError> {
    let config = match kubeconfig {
        Some(file) => {
            Config::from_custom_kubeconfig(Kubeconfig::read_from(file)?, &KubeConfigOptions::default())
                .await?
        }
        None => Config::incluster()?,
    };
    Ok(Client::try_from(config)?)
}
