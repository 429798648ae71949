//! The objects of `certificates.k8s.io` that the client library's oldest supported cluster does not know.

use k8s_openapi::ByteString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{ApiResource, Object};
use serde::{Deserialize, Serialize};

/// The API's version: in it are these kinds from Kubernetes 1.37 on.
pub const VERSION: &str = "v1";
/// The API's group.
pub const GROUP: &str = "certificates.k8s.io";

/// A kubelet asks for a certificate for a pod of its node.
pub type PodCertificateRequest = Object<PodRequest, PodAnswer>;

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRequest {
    /// Whom it is for.
    pub signer_name: String,
    /// The pod's name.
    #[serde(default)]
    pub pod_name: String,
    /// The pod's UID.
    #[serde(default, rename = "podUID")]
    pub pod_uid: String,
    /// The pod's service account.
    #[serde(default)]
    pub service_account_name: String,
    /// The pod's node. Admission sees to it that the node itself asks.
    #[serde(default)]
    pub node_name: String,
    /// How long the certificate may hold, in seconds.
    #[serde(default)]
    pub max_expiration_seconds: Option<i64>,
    /// A PKCS #10 request (DER) with the key, and nothing else of use.
    #[serde(default, rename = "stubPKCS10Request")]
    pub request: Option<ByteString>,
    /// What the pod's author has to say to the signer: nothing that this one knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unverified_user_annotations: Option<std::collections::BTreeMap<String, String>>,
}

/// The signer's answer. Once it is given it cannot be changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodAnswer {
    /// One of Issued, Denied and Failed.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// The certificate, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_chain: Option<String>,
    /// The certificate's own first second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Time>,
    /// When the kubelet shall ask for the next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begin_refresh_at: Option<Time>,
    /// The certificate's own last second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Time>,
}

fn resource(kind: &str, plural: &str) -> ApiResource {
    ApiResource {
        group: GROUP.to_owned(),
        version: VERSION.to_owned(),
        api_version: format!("{GROUP}/{VERSION}"),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

/// PodCertificateRequests.
pub fn pod_certificate_requests() -> ApiResource {
    resource("PodCertificateRequest", "podcertificaterequests")
}

/// ClusterTrustBundles.
pub fn cluster_trust_bundles() -> ApiResource {
    resource("ClusterTrustBundle", "clustertrustbundles")
}
