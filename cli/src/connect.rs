//! The way to the API server: the user's kubeconfig, read as kubectl reads it.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

use crate::args::ClusterArgs;
use crate::error::{Action, CliError};
use crate::near::near;
use crate::resource::Kind;
use crate::text::{MESSAGE, clean};

/// How long a connection may take to be made: a person waits for it.
const CONNECT: Duration = Duration::from_secs(10);

/// A client and the namespace that it speaks of.
pub struct Cluster {
    client: Client,
    /// The namespace for all that has one.
    pub namespace: String,
}

impl Cluster {
    /// Reads the kubeconfig and makes a client. Nothing is sent yet.
    pub async fn connect(args: &ClusterArgs) -> Result<Self, CliError> {
        let unusable = |e: &dyn std::error::Error| CliError::Kubeconfig(clean(&e.to_string(), MESSAGE));
        let options = KubeConfigOptions {
            context: args.context.clone(),
            ..Default::default()
        };
        let mut config = match &args.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).map_err(|e| unusable(&e))?;
                Config::from_custom_kubeconfig(file, &options)
                    .await
                    .map_err(|e| unusable(&e))?
            }
            None if args.context.is_some() => Config::from_kubeconfig(&options)
                .await
                .map_err(|e| unusable(&e))?,
            // Also inside a pod, by its service account.
            None => Config::infer().await.map_err(|e| unusable(&e))?,
        };
        config.connect_timeout = Some(CONNECT);
        let namespace = args
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|e| unusable(&e))?;
        Ok(Self { client, namespace })
    }

    /// The objects of a kind: those of the namespace, or the cluster's for a kind without namespaces.
    pub fn api<K: Kind>(&self) -> Api<K> {
        K::api(&self.client, &self.namespace)
    }

    /// The cluster's nodes.
    pub fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    /// Who the user is, as the API server knows him.
    pub fn reviews(&self) -> Api<SelfSubjectReview> {
        Api::all(self.client.clone())
    }

    /// The objects of a kind in all namespaces.
    pub fn everywhere<K: Kind>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// A request about objects of a kind, for what errors say.
    pub fn action<K: Kind>(&self, verb: &'static str, name: Option<&str>) -> Action {
        Action {
            verb,
            resource: K::PLURAL,
            name: name.map(Into::into),
            namespace: K::NAMESPACED.then(|| self.namespace.clone()),
        }
    }

    /// One object. When it is not there, the error names those whose names are near.
    pub async fn get<K: Kind>(&self, name: &str) -> Result<K, CliError> {
        let api = self.api::<K>();
        let error = match api.get(name).await {
            Ok(object) => return Ok(object),
            Err(error) => self.action::<K>("get", Some(name)).failed(error),
        };
        let CliError::NotFound { action, .. } = error else {
            return Err(error);
        };
        // A courtesy: whoever may not list is told without it.
        let list = api.list_metadata(&ListParams::default()).await;
        let names: Vec<String> = list
            .into_iter()
            .flat_map(|l| l.items)
            .filter_map(|o| o.metadata.name)
            .collect();
        let near = near(name, names.iter().map(String::as_str));
        Err(CliError::NotFound {
            action,
            near: near.into_iter().map(Into::into).collect(),
        })
    }
}
