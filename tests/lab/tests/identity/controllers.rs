//! A controller that asks the signer.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::ensure;
use godwit_lab::certificates::{CONTROLLER_IDENTITY, host_identity};
use godwit_lab::{Lab, chart, credentials};
use godwit_protocol::{ClientTls, CurrentCredentials, PeerIdentity};
use rcgen::KeyPair;

use crate::wire::{answers, ask, connect, credentials as credentials_of, eventually, request};

/// The controller's own key and certificate.
pub fn kept(lab: &Lab) -> anyhow::Result<PathBuf> {
    Ok(lab.controller_directory()?.join("identity/identity.pem"))
}

/// What the controller has from the signer, as soon as it has it, believing in these authorities.
pub async fn own(lab: &Lab, believed: &str) -> anyhow::Result<ClientTls> {
    let path = kept(lab)?;
    let text = eventually("the controller has a certificate", async || {
        Ok(std::fs::read_to_string(&path).ok())
    })
    .await?;
    let own = credentials_of(believed, text.as_bytes(), &text)?;
    ensure!(*own.identity() == PeerIdentity::Controller, "{own:?}");
    Ok(ClientTls::new(CurrentCredentials::new(own)))
}

/// Starts the controller without the certificate that it had.
pub async fn anew(lab: &mut Lab) -> anyhow::Result<()> {
    let path = kept(lab)?;
    eventually("the controller has a certificate", async || {
        Ok(path.exists().then_some(()))
    })
    .await?;
    lab.kill_controller();
    std::fs::remove_file(path)?;
    lab.start_controller()
}

pub async fn r1_the_controller_has_a_certificate_of_its_own(lab: &mut Lab) -> anyhow::Result<()> {
    let root = lab.authority.certificate().to_owned();
    let tls = own(lab, &root).await?;
    let mode = std::fs::metadata(kept(lab)?)?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "{mode:o}");
    for number in 1..=2 {
        let name = lab.hosts[number - 1].name.clone();
        answers(&connect(lab, number, &name, &tls).await?).await?;
    }
    // Started again it needs no signer.
    let before = std::fs::read(kept(lab)?)?;
    lab.kill_signer();
    lab.kill_controller();
    lab.start_controller()?;
    lab.wait_until_ready().await?;
    ensure!(std::fs::read(kept(lab)?)? == before, "it has another certificate");
    lab.start_signer().await
}

/// That an agent's token gets no controller's is in `r1_an_agent_gets_the_certificate_of_its_own_node_alone`.
pub async fn r4_the_controllers_token_gets_no_hosts_certificate(lab: &mut Lab) -> anyhow::Result<()> {
    let key = KeyPair::generate()?;
    let token = credentials::pod_bound_token(&lab.client(), "h1", chart::CONTROLLER_ACCOUNT).await?;
    let account = credentials::client(&lab.control_plane, &token).await?;
    for other in [host_identity("h1"), host_identity("h2")] {
        let outcome = ask(&account, &lab.client(), &request(&key, &other)).await?;
        let message = outcome.denied("OtherIdentity");
        ensure!(message.contains(CONTROLLER_IDENTITY), "{message}");
    }
    // Nor does anyone get the controller's with a token of its account that is bound to no pod.
    let token = credentials::unbound_token(&lab.client(), chart::CONTROLLER_ACCOUNT).await?;
    let account = credentials::client(&lab.control_plane, &token).await?;
    let outcome = ask(&account, &lab.client(), &request(&key, CONTROLLER_IDENTITY)).await?;
    outcome.denied("TokenNotBound");
    Ok(())
}
