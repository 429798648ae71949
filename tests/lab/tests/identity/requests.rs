//! CertificateSigningRequests with real tokens.

use anyhow::{Context as _, ensure};
use godwit_lab::certificates::{CONTROLLER_IDENTITY, host_identity};
use godwit_lab::{Lab, chart, credentials};
use godwit_protocol::PeerIdentity;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use rcgen::KeyPair;
use serde_json::json;

use crate::wire::{Outcome, ask, connect, controller, request};

/// A client with a token of the agent's pod on that node.
async fn agent_of(lab: &Lab, node: &str) -> anyhow::Result<Client> {
    let token = credentials::pod_bound_token(&lab.client(), node, chart::AGENT_ACCOUNT).await?;
    credentials::client(&lab.control_plane, &token).await
}

pub async fn r1_an_agent_gets_the_certificate_of_its_own_node_alone(lab: &mut Lab) -> anyhow::Result<()> {
    let agent = agent_of(lab, "h1").await?;
    let key = KeyPair::generate()?;
    let outcome = ask(&agent, &lab.client(), &request(&key, &host_identity("h1"))).await?;
    let Outcome::Issued(chain) = outcome else {
        anyhow::bail!("{outcome:?}")
    };
    // The certificate is that host's, and the other host's agent knows it for that.
    let ours = crate::wire::credentials(lab.authority.certificate(), &chain, &key.serialize_pem())?;
    ensure!(*ours.identity() == PeerIdentity::Host("h1".to_owned()));
    let life = ours.valid_until().duration_since(ours.valid_from())?;
    ensure!(life.as_secs() == 600, "{life:?}");
    let tls = godwit_protocol::ClientTls::new(godwit_protocol::CurrentCredentials::new(ours));
    connect(lab, 2, "h2", &tls).await?;

    for other in [
        host_identity("h2"),
        host_identity("h10"),
        CONTROLLER_IDENTITY.to_owned(),
        "spiffe://example.org/godwit/host/h1".to_owned(),
    ] {
        let outcome = ask(&agent, &lab.client(), &request(&key, &other)).await?;
        let message = outcome.denied("OtherIdentity");
        ensure!(message.contains(&host_identity("h1")), "{message}");
    }
    Ok(())
}

pub async fn r1_a_token_without_a_pod_gets_nothing(lab: &mut Lab) -> anyhow::Result<()> {
    let token = credentials::unbound_token(&lab.client(), chart::AGENT_ACCOUNT).await?;
    let agent = credentials::client(&lab.control_plane, &token).await?;
    let key = KeyPair::generate()?;
    let outcome = ask(&agent, &lab.client(), &request(&key, &host_identity("h1"))).await?;
    outcome.denied("TokenNotBound");
    Ok(())
}

pub async fn r4_claims_are_the_api_servers_and_not_the_requesters(lab: &mut Lab) -> anyhow::Result<()> {
    let key = KeyPair::generate()?;
    let mut forged = request(&key, &host_identity("h2"));
    forged.spec.username = Some(format!(
        "system:serviceaccount:{}:{}",
        chart::NAMESPACE,
        chart::AGENT_ACCOUNT
    ));
    forged.spec.extra = Some(
        [
            ("node-name", "h2"),
            ("pod-uid", "00000000-0000-4000-8000-000000000000"),
        ]
        .map(|(claim, value)| {
            (
                format!("authentication.kubernetes.io/{claim}"),
                vec![value.to_owned()],
            )
        })
        .into(),
    );
    // Said by the agent of another node, by one of no node, and by a person with all rights.
    let agent = agent_of(lab, "h1").await?;
    ask(&agent, &lab.client(), &forged).await?.denied("OtherIdentity");
    let token = credentials::unbound_token(&lab.client(), chart::AGENT_ACCOUNT).await?;
    let agent = credentials::client(&lab.control_plane, &token).await?;
    ask(&agent, &lab.client(), &forged).await?.denied("TokenNotBound");
    ask(&lab.client(), &lab.client(), &forged)
        .await?
        .denied("AccountNotKnown");
    Ok(())
}

pub async fn r4_other_accounts_get_nothing(lab: &mut Lab) -> anyhow::Result<()> {
    // The signer's own account is bound to a node like any other; it may not ask, and would not be served.
    let key = KeyPair::generate()?;
    let token = credentials::pod_bound_token(&lab.client(), "h1", "godwit-signer").await?;
    let signer = credentials::client(&lab.control_plane, &token).await?;
    let refused = ask(&signer, &lab.client(), &request(&key, &host_identity("h1"))).await;
    ensure!(refused.is_err(), "{refused:?}");
    // A certificate of another authority opens nothing, whatever it says.
    let stranger = godwit_lab::certificates::Authority::new("a stranger")?;
    let fault = connect(lab, 1, "h1", &controller(&stranger, lab.authority.certificate())?)
        .await
        .err()
        .context("a stranger was let in")?;
    ensure!(fault.reason == "CertificateRejected", "{fault:?}");
    Ok(())
}

pub async fn r4_nobody_approves_for_the_signer(lab: &mut Lab) -> anyhow::Result<()> {
    let agent = agent_of(lab, "h1").await?;
    let requests = Api::<CertificateSigningRequest>::all(agent);
    let key = KeyPair::generate()?;
    let made = requests
        .create(&PostParams::default(), &request(&key, &host_identity("h2")))
        .await?;
    let approval = json!({"status": {"conditions": [
        {"type": "Approved", "status": "True", "reason": "Mine", "message": "by itself"},
    ]}});
    let refused = requests
        .patch_approval(
            &made.name_any(),
            &PatchParams::default(),
            &Patch::Merge(&approval),
        )
        .await;
    ensure!(
        matches!(&refused, Err(kube::Error::Api(status)) if status.code == 403),
        "{refused:?}"
    );
    crate::wire::answer(&lab.client(), &made.name_any())
        .await?
        .denied("OtherIdentity");
    // What a person approves in good faith is judged all the same.
    lab.kill_signer();
    let everyone = Api::<CertificateSigningRequest>::all(lab.client());
    let made = requests
        .create(&PostParams::default(), &request(&key, &host_identity("h2")))
        .await?;
    everyone
        .patch_approval(
            &made.name_any(),
            &PatchParams::default(),
            &Patch::Merge(&approval),
        )
        .await?;
    lab.start_signer().await?;
    crate::wire::answer(&lab.client(), &made.name_any())
        .await?
        .denied("OtherIdentity");
    Ok(())
}
