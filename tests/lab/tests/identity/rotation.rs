//! A new authority takes the old one's place.

use anyhow::{Context as _, ensure};
use godwit_lab::certificates::{Authority, write_secret};
use godwit_lab::{Lab, chart, signer};
use godwit_protocol::AgentClient;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ApiResource, DynamicObject};

use crate::controllers;
use crate::wire::{answers, connect, controller, eventually};

/// Waits until both the ClusterTrustBundle and the ConfigMap hold these roots, in this order.
async fn published(lab: &Lab, roots: &[&str]) -> anyhow::Result<()> {
    let expected = joined(roots);
    let kind = ApiResource {
        group: "certificates.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "certificates.k8s.io/v1".to_owned(),
        kind: "ClusterTrustBundle".to_owned(),
        plural: "clustertrustbundles".to_owned(),
    };
    let bundles: Api<DynamicObject> = Api::all_with(lab.client(), &kind);
    let maps: Api<ConfigMap> = Api::namespaced(lab.client(), chart::NAMESPACE);
    eventually("the roots are published", async || {
        let bundle = bundles.get_opt("godwit.dev:agent:roots").await?;
        let bundle =
            bundle.map(|bundle| plain(bundle.data["spec"]["trustBundle"].as_str().unwrap_or_default()));
        let map = maps.get_opt(signer::TRUST).await?;
        let map = map.and_then(|map| map.data?.get("ca.crt").map(|text| plain(text)));
        let both = bundle.as_ref() == Some(&expected) && map.as_ref() == Some(&expected);
        Ok(both.then_some(()))
    })
    .await
}

/// PEM without its line ends: who writes it breaks lines as it likes.
fn plain(text: &str) -> String {
    text.split_whitespace().collect()
}

fn joined(roots: &[&str]) -> String {
    roots.iter().map(|root| plain(root)).collect()
}

/// Writes what agents and controller believe, as the kubelet does with the published roots.
fn believed(lab: &Lab, roots: &str) -> anyhow::Result<()> {
    let hosts = lab.hosts.iter().map(|host| host.directory.join("tls"));
    for directory in hosts.chain([lab.controller_directory()?]) {
        write_secret(&directory.join("ca.crt.new"), roots)?;
        std::fs::rename(directory.join("ca.crt.new"), directory.join("ca.crt"))?;
    }
    Ok(())
}

/// Connects as soon as the agent believes what was written for it: it looks every few seconds.
async fn let_in(lab: &Lab, number: usize, tls: &godwit_protocol::ClientTls) -> anyhow::Result<AgentClient> {
    let name = lab.hosts[number - 1].name.clone();
    eventually("the agent lets the client in", async || {
        Ok(connect(lab, number, &name, tls).await.ok())
    })
    .await
}

/// Starts an agent without the certificate that it had.
async fn anew(lab: &mut Lab, number: usize) -> anyhow::Result<()> {
    let host = lab.host(number)?;
    host.stop_agent().await?;
    std::fs::remove_file(host.directory.join("run/identity/identity.pem"))?;
    lab.start_agent(number)?;
    lab.wait_until_ready().await
}

pub async fn r5_two_roots_hold_during_a_rotation(lab: &mut Lab) -> anyhow::Result<()> {
    let next = Authority::new("the next authority")?;
    let (old_root, next_root) = (
        lab.authority.certificate().to_owned(),
        next.certificate().to_owned(),
    );
    let both = old_root.clone() + &next_root;
    published(lab, &[&old_root]).await?;
    let standing = connect(lab, 2, "h2", &controller(&lab.authority, &both)?).await?;

    // First everyone believes in both, then the next one issues.
    let signer = lab.signer().context("no signer")?;
    signer.publish_too(&next_root)?;
    published(lab, &[&old_root, &next_root]).await?;
    believed(lab, &both)?;
    let by_next = controller(&next, &both)?;
    for number in 1..=2 {
        answers(&let_in(lab, number, &by_next).await?).await?;
    }
    let signer = lab.signer().context("no signer")?;
    signer.publish_too(&old_root)?;
    signer.issue_with(&next)?;
    published(lab, &[&next_root, &old_root]).await?;

    // h1 gets a certificate of the next authority while h2 still has one of the old: either is known to whoever
    // believes in both.
    anew(lab, 1).await?;
    let only_next = controller(&lab.authority, &next_root)?;
    answers(&let_in(lab, 1, &only_next).await?).await?;
    let fault = connect(lab, 2, "h2", &only_next)
        .await
        .err()
        .context("h2 has a certificate of the old authority")?;
    ensure!(fault.reason == "CertificateRejected", "{fault:?}");
    answers(&let_in(lab, 2, &by_next).await?).await?;
    answers(&standing).await?;

    // When the last certificate of the old authority has ended, it is believed no more.
    anew(lab, 2).await?;
    controllers::anew(lab).await?;
    let controllers_own = controllers::own(lab, &next_root).await?;
    lab.signer().context("no signer")?.publish_too("")?;
    published(lab, &[&next_root]).await?;
    believed(lab, &next_root)?;
    let by_old = controller(&lab.authority, &next_root)?;
    let by_next = controller(&next, &next_root)?;
    let kept = let_in(lab, 1, &by_next).await?;
    answers(&let_in(lab, 2, &controllers_own).await?).await?;
    eventually("the old authority is believed no more", async || {
        let refused = connect(lab, 1, "h1", &by_old).await.err();
        Ok(refused.filter(|fault| fault.reason == "CertificateRejected"))
    })
    .await?;
    // All of it without breaking what stands.
    answers(&kept).await?;

    // Back to how the lab was.
    let signer = lab.signer().context("no signer")?;
    signer.issue_with(&lab.authority)?;
    published(lab, &[&old_root]).await?;
    believed(lab, &old_root)?;
    controllers::anew(lab).await?;
    controllers::own(lab, &old_root).await?;
    anew(lab, 1).await?;
    anew(lab, 2).await
}
