//! Tells everyone which roots to believe: a ClusterTrustBundle, and a ConfigMap for clusters without them.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use super::objects::{GROUP, VERSION, cluster_trust_bundles};

/// The name under which the signer owns fields.
pub const FIELD_MANAGER: &str = "godwit-signer";

/// Where roots are written.
pub struct Publisher {
    client: Client,
    signer: String,
    namespace: String,
    config_map: Option<String>,
}

impl Publisher {
    /// For the roots of this signer; the ConfigMap, if one is wanted, lies in the namespace.
    pub fn new(client: Client, signer: String, namespace: String, config_map: Option<String>) -> Self {
        Self {
            client,
            signer,
            namespace,
            config_map,
        }
    }

    /// Writes the roots wherever the cluster has room for them.
    ///
    /// # Errors
    /// The API server's; nothing is lost by trying again.
    pub async fn publish(&self, roots: &str) -> Result<(), kube::Error> {
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let name = bundle_name(&self.signer);
        let bundle = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "ClusterTrustBundle",
            "metadata": {"name": name, "labels": {"godwit.dev/trust": "agent"}},
            "spec": {"signerName": self.signer, "trustBundle": roots},
        });
        let bundles: Api<DynamicObject> = Api::all_with(self.client.clone(), &cluster_trust_bundles());
        match bundles.patch(&name, &parameters, &Patch::Apply(&bundle)).await {
            Ok(_) => {}
            // An older cluster: the ConfigMap is for it.
            Err(kube::Error::Api(status)) if status.code == 404 => {
                tracing::debug!("this cluster has no ClusterTrustBundles of version {VERSION}");
            }
            Err(why) => return Err(why),
        }
        if let Some(name) = &self.config_map {
            let map = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": name, "labels": {"godwit.dev/trust": "agent"}},
                "data": {"ca.crt": roots},
            });
            let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
            maps.patch(name, &parameters, &Patch::Apply(&map)).await?;
        }
        Ok(())
    }
}

/// The name of a signer's bundle: Kubernetes wants the signer's own in front.
pub fn bundle_name(signer: &str) -> String {
    format!("{}:roots", signer.replace('/', ":"))
}
