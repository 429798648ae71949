//! PodCertificateRequests as kubelets make them: under a node's credential.

use anyhow::{Context as _, ensure};
use godwit_lab::{Lab, chart, credentials, signer};
use godwit_protocol::PeerIdentity;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::client::Body;
use kube::{Api, Client, ResourceExt as _};
use rcgen::KeyPair;
use serde_json::{Value, json};

use crate::wire::{eventually, pkcs10};

/// Who makes a request.
#[derive(Clone, Copy)]
enum Asker {
    Node(&'static str),
    Administrator,
}

/// What the API server said.
struct Answer {
    code: u16,
    body: Value,
}

impl Answer {
    fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }
}

async fn send(
    client: &Client,
    asker: Asker,
    method: &str,
    path: &str,
    body: &Value,
) -> anyhow::Result<Answer> {
    let mut request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json");
    if let Asker::Node(name) = asker {
        request = request
            .header("impersonate-user", format!("system:node:{name}"))
            .header("impersonate-group", "system:nodes")
            .header("impersonate-group", "system:authenticated");
    }
    let body = if body.is_null() {
        Vec::new()
    } else {
        serde_json::to_vec(body)?
    };
    let answer = client.send(request.body(Body::from(body))?).await?;
    let code = answer.status().as_u16();
    let bytes = answer.into_body().collect_bytes().await?;
    Ok(Answer {
        code,
        body: serde_json::from_slice(&bytes).unwrap_or_default(),
    })
}

fn path(namespace: &str) -> String {
    format!("/apis/certificates.k8s.io/v1/namespaces/{namespace}/podcertificaterequests")
}

/// A pod with the volume that the chart gives to agents: a kubelet may ask for no other.
async fn pod_with_volume(lab: &Lab, node: &str, account: &str) -> anyhow::Result<Value> {
    let name = format!("certified-{account}-{node}");
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "nodeName": node,
            "serviceAccountName": account,
            "automountServiceAccountToken": false,
            "containers": [{"name": "part", "image": "nothing.invalid/never-pulled"}],
            "tolerations": [{"operator": "Exists"}],
            "volumes": [{"name": "identity", "projected": {"sources": [{"podCertificate": {
                "signerName": signer::NAME, "keyType": "ECDSAP256", "credentialBundlePath": "bundle.pem",
            }}]}}],
        },
    });
    let pods = format!("/api/v1/namespaces/{}/pods", chart::NAMESPACE);
    let made = send(&lab.client(), Asker::Administrator, "POST", &pods, &pod).await?;
    ensure!(
        matches!(made.code, 201 | 409),
        "{}: {}",
        made.code,
        made.message()
    );
    let found = format!("{pods}/{name}");
    let found = send(&lab.client(), Asker::Administrator, "GET", &found, &Value::Null).await?;
    Ok(found.body["metadata"].clone())
}

/// A request for a pod of that account on that node, as its kubelet makes it.
async fn described(lab: &Lab, node: &str, account: &str, key: &KeyPair) -> anyhow::Result<Value> {
    // The node is made with it.
    credentials::pod_on_node(&lab.client(), node, account).await?;
    let pod = pod_with_volume(lab, node, account).await?;
    let node = Api::<Node>::all(lab.client()).get(node).await?;
    let namespace = chart::NAMESPACE;
    let account = Api::<ServiceAccount>::namespaced(lab.client(), namespace)
        .get(account)
        .await?;
    Ok(json!({
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "PodCertificateRequest",
        "metadata": {"generateName": "case-", "namespace": namespace},
        "spec": {
            "signerName": signer::NAME,
            "podName": pod["name"],
            "podUID": pod["uid"],
            "serviceAccountName": account.name_any(),
            "serviceAccountUID": account.uid(),
            "nodeName": node.name_any(),
            "nodeUID": node.uid(),
            "maxExpirationSeconds": 3600,
            "stubPKCS10Request": ByteString(pkcs10(key, &[]).der().to_vec()),
        },
    }))
}

/// The API server's own view of a node's pods lags behind a little: a node that it has not seen yet is refused.
async fn make(lab: &Lab, asker: Asker, request: &Value) -> anyhow::Result<Answer> {
    let mut last = String::new();
    let taken = eventually("the request is taken", async || {
        let answer = send(&lab.client(), asker, "POST", &path(chart::NAMESPACE), request).await?;
        last = format!("{}: {}", answer.code, answer.message());
        Ok((answer.code == 201).then_some(answer))
    })
    .await;
    taken.context(last)
}

/// Waits for the condition that ends a request.
async fn ended(lab: &Lab, made: &Answer) -> anyhow::Result<Value> {
    let name = made.body["metadata"]["name"].as_str().context("a name")?;
    let path = format!("{}/{name}", path(chart::NAMESPACE));
    eventually("the request is answered", async || {
        let found = send(&lab.client(), Asker::Administrator, "GET", &path, &Value::Null).await?;
        let conditions = found.body["status"]["conditions"].as_array().map_or(0, Vec::len);
        Ok((conditions > 0).then(|| found.body["status"].clone()))
    })
    .await
}

pub async fn r1_a_pod_gets_the_certificate_of_its_node(lab: &mut Lab) -> anyhow::Result<()> {
    for (account, expected) in [
        (chart::AGENT_ACCOUNT, PeerIdentity::Host("h1".to_owned())),
        (chart::CONTROLLER_ACCOUNT, PeerIdentity::Controller),
    ] {
        let key = KeyPair::generate()?;
        let request = described(lab, "h1", account, &key).await?;
        let made = make(lab, Asker::Node("h1"), &request).await?;
        let status = ended(lab, &made).await?;
        ensure!(status["conditions"][0]["type"] == "Issued", "{status}");
        let chain = status["certificateChain"].as_str().context("a chain")?;
        let ours = crate::wire::credentials(
            lab.authority.certificate(),
            chain.as_bytes(),
            &key.serialize_pem(),
        )?;
        ensure!(*ours.identity() == expected, "{ours:?}");
        ensure!(status["beginRefreshAt"].is_string(), "{status}");
    }
    // A key of a kind that is not served is refused for good, in Kubernetes' own word.
    let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_3072)?;
    let request = described(lab, "h1", chart::AGENT_ACCOUNT, &key).await?;
    let made = make(lab, Asker::Node("h1"), &request).await?;
    let status = ended(lab, &made).await?;
    let condition = &status["conditions"][0];
    ensure!(
        condition["type"] == "Denied" && condition["reason"] == "UnsupportedKeyType",
        "{status}"
    );
    Ok(())
}

pub async fn r4_only_its_own_node_asks_for_a_pod(lab: &mut Lab) -> anyhow::Result<()> {
    let key = KeyPair::generate()?;
    let request = described(lab, "h1", chart::AGENT_ACCOUNT, &key).await?;
    // h2 has been seen by the API server, too: what refuses it is not ignorance.
    make(
        lab,
        Asker::Node("h2"),
        &described(lab, "h2", chart::AGENT_ACCOUNT, &key).await?,
    )
    .await?;
    let answer = send(
        &lab.client(),
        Asker::Node("h2"),
        "POST",
        &path(chart::NAMESPACE),
        &request,
    )
    .await?;
    ensure!(answer.code == 403, "{}: {}", answer.code, answer.message());
    // Who is no node is not checked by Kubernetes itself, whatever rights it has: the policy is.
    let answer = send(
        &lab.client(),
        Asker::Administrator,
        "POST",
        &path(chart::NAMESPACE),
        &request,
    )
    .await?;
    ensure!(
        answer.code == 403 && answer.message().contains("only the kubelet of node h1"),
        "{}: {}",
        answer.code,
        answer.message()
    );
    Ok(())
}

pub async fn r4_the_signer_serves_godwits_pods_alone(lab: &mut Lab) -> anyhow::Result<()> {
    let key = KeyPair::generate()?;
    // A pod of the namespace with another account, asked for by its own node.
    let request = described(lab, "h1", "godwit-signer", &key).await?;
    let answer = eventually("the policy refuses it", async || {
        let answer = send(
            &lab.client(),
            Asker::Node("h1"),
            "POST",
            &path(chart::NAMESPACE),
            &request,
        )
        .await?;
        ensure!(answer.code != 201, "it was taken");
        Ok(answer.message().contains("godwit's own pods").then_some(answer))
    })
    .await?;
    ensure!(answer.code == 403, "{}", answer.code);
    Ok(())
}
