//! What godwit's parts log in with: tokens of their service accounts, given as a kubelet gives them to pods.
//!
//! There is no kubelet in the lab, so it does a kubelet's part: it makes the Node and the pod that the API server
//! wants to see, asks for a token that is bound to that pod, keeps it in a file and renews the file in time. What the
//! API server makes of such a token is real: the node's and the pod's names and UIDs in the user's `extra` are its own
//! findings.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::certificates::write_secret;
use crate::chart::NAMESPACE;
use crate::control_plane::{ControlPlane, write_kubeconfig};

/// How long a token lasts: what the chart's pods ask for.
const LASTS: Duration = Duration::from_secs(3600);
/// How long a token lasts that nobody renews: those of a lab that is left running.
const LASTS_LEFT: Duration = Duration::from_secs(30 * 24 * 3600);
/// The first wait after a renewal that failed.
const RETRY: Duration = Duration::from_secs(1);

/// Whose token it is.
#[derive(Clone, Debug)]
struct Bearer {
    account: String,
    /// The node of the pod that the token is bound to; none for a token that is bound to nothing.
    node: Option<String>,
}

impl Bearer {
    async fn token(&self, client: &Client, lasts: Duration) -> anyhow::Result<String> {
        let bound_object_ref = match &self.node {
            Some(node) => {
                let pod = pod_on_node(client, node, &self.account).await?;
                Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: pod.metadata.name,
                    uid: pod.metadata.uid,
                })
            }
            None => None,
        };
        let request = TokenRequest {
            spec: TokenRequestSpec {
                expiration_seconds: Some(i64::try_from(lasts.as_secs())?),
                bound_object_ref,
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
        let answer = accounts
            .create_token_request(&self.account, &PostParams::default(), &request)
            .await
            .with_context(|| format!("ask for a token of {}", self.account))?;
        Ok(answer.status.context("the API server gave no token")?.token)
    }
}

/// A token of one of godwit's service accounts as a pod on that node has it. The Node and the pod are made if they
/// are not there.
///
/// # Errors
/// When the account does not exist, or the API server refuses.
pub async fn pod_bound_token(client: &Client, node: &str, account: &str) -> anyhow::Result<String> {
    let bearer = Bearer {
        account: account.to_owned(),
        node: Some(node.to_owned()),
    };
    bearer.token(client, LASTS).await
}

/// A token of one of godwit's service accounts that is bound to nothing: it says of no node that it comes from there.
///
/// # Errors
/// When the account does not exist, or the API server refuses.
pub async fn unbound_token(client: &Client, account: &str) -> anyhow::Result<String> {
    let bearer = Bearer {
        account: account.to_owned(),
        node: None,
    };
    bearer.token(client, LASTS).await
}

/// A client with that token.
///
/// # Errors
/// When the API server's certificate cannot be read.
pub async fn client(control_plane: &ControlPlane, token: &str) -> anyhow::Result<Client> {
    let mut kubeconfig = Kubeconfig::read_from(control_plane.administrator())?;
    for user in &mut kubeconfig.auth_infos {
        user.auth_info = Some(serde_json::from_value(json!({ "token": token }))?);
    }
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// The pod of that account on that node, as a DaemonSet makes it; made, with its Node, if it is not there.
///
/// # Errors
/// When the API server refuses.
pub async fn pod_on_node(client: &Client, node: &str, account: &str) -> anyhow::Result<Pod> {
    let described = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node, "labels": {"kubernetes.io/hostname": node}},
    });
    make(
        &Api::<Node>::all(client.clone()),
        serde_json::from_value(described)?,
    )
    .await?;
    let described = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": format!("{account}-{node}")},
        "spec": {
            "nodeName": node,
            "serviceAccountName": account,
            "automountServiceAccountToken": false,
            "containers": [{"name": "part", "image": "nothing.invalid/never-pulled"}],
            // As in the chart: a node is given tokens for what its pods mount.
            "volumes": [{"name": "token", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": LASTS.as_secs()}},
            ]}}],
            // What every DaemonSet's pod has. No kubelet says that the node is well: other pods would be evicted.
            "tolerations": [{"operator": "Exists"}],
        },
    });
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    make(&pods, serde_json::from_value(described)?).await
}

/// Creates an object, or gives the one that is there.
async fn make<K>(api: &Api<K>, object: K) -> anyhow::Result<K>
where
    K: Resource + Clone + serde::Serialize + DeserializeOwned + std::fmt::Debug,
{
    let name = object.name_any();
    match api.create(&PostParams::default(), &object).await {
        Ok(made) => Ok(made),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            api.get(&name).await.with_context(|| format!("read {name}"))
        }
        Err(error) => Err(error).with_context(|| format!("make {name}")),
    }
}

/// A kubeconfig and its token in a file beside it, which is renewed as long as this value lives.
pub struct Credentials {
    kubeconfig: PathBuf,
    token: PathBuf,
    bearer: Bearer,
    client: Client,
    renewal: JoinHandle<()>,
}

impl Credentials {
    /// What a pod of that account has on that node. The files are `<name>.kubeconfig` and `<name>.token`.
    ///
    /// # Errors
    /// When the account does not exist, the API server refuses, or a file cannot be written.
    pub async fn of_pod(
        control_plane: &ControlPlane,
        node: &str,
        account: &str,
        directory: &Path,
        name: &str,
    ) -> anyhow::Result<Self> {
        let bearer = Bearer {
            account: account.to_owned(),
            node: Some(node.to_owned()),
        };
        Self::write(control_plane, bearer, directory, name).await
    }

    /// What a part outside of any pod has: a token that names no node.
    ///
    /// # Errors
    /// As [`Credentials::of_pod`].
    pub async fn unbound(
        control_plane: &ControlPlane,
        account: &str,
        directory: &Path,
        name: &str,
    ) -> anyhow::Result<Self> {
        let bearer = Bearer {
            account: account.to_owned(),
            node: None,
        };
        Self::write(control_plane, bearer, directory, name).await
    }

    async fn write(
        control_plane: &ControlPlane,
        bearer: Bearer,
        directory: &Path,
        name: &str,
    ) -> anyhow::Result<Self> {
        let client = control_plane.client();
        let token = directory.join(format!("{name}.token"));
        replace(&token, &bearer.token(&client, LASTS).await?)?;
        let kubeconfig = directory.join(format!("{name}.kubeconfig"));
        let authority = std::fs::read_to_string(control_plane.authority())?;
        write_kubeconfig(
            &kubeconfig,
            control_plane.server(),
            &authority,
            &json!({ "tokenFile": token }),
        )?;
        let renewal = tokio::spawn(renew(client.clone(), bearer.clone(), token.clone()));
        Ok(Self {
            kubeconfig,
            token,
            bearer,
            client,
            renewal,
        })
    }

    /// The kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The file with the token.
    #[must_use]
    pub fn token(&self) -> &Path {
        &self.token
    }

    /// Renews the token now, as a kubelet does ahead of its end.
    ///
    /// # Errors
    /// When the API server refuses or the file cannot be written.
    pub async fn renew(&self) -> anyhow::Result<()> {
        replace(&self.token, &self.bearer.token(&self.client, LASTS).await?)
    }

    /// Writes a token that lasts for 30 days and renews it no more: for a part that outlives this process.
    ///
    /// # Errors
    /// As [`Credentials::renew`].
    pub async fn outlast(self) -> anyhow::Result<()> {
        // Not written over by a renewal that is under way.
        self.renewal.abort();
        replace(&self.token, &self.bearer.token(&self.client, LASTS_LEFT).await?)
    }
}

impl Drop for Credentials {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

/// Renews a token again and again when four fifths of its time have passed, as a kubelet does.
async fn renew(client: Client, bearer: Bearer, file: PathBuf) {
    let mut wait = LASTS * 4 / 5;
    loop {
        tokio::time::sleep(wait).await;
        let renewed = match bearer.token(&client, LASTS).await {
            Ok(token) => replace(&file, &token),
            Err(error) => Err(error),
        };
        // A test may have stopped the API server.
        wait = if renewed.is_ok() { LASTS * 4 / 5 } else { RETRY };
    }
}

/// Replaces a file in one step: whoever reads it finds the old token or the new one.
fn replace(file: &Path, token: &str) -> anyhow::Result<()> {
    if token.is_empty() {
        bail!("the API server gave an empty token");
    }
    let new = file.with_extension("token.new");
    write_secret(&new, token)?;
    std::fs::rename(&new, file).with_context(|| format!("write {}", file.display()))
}
