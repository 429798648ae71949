//! Keys, requests and what comes of them; connections to agents.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use godwit_lab::certificates::{Authority, CONTROLLER_IDENTITY, Subject};
use godwit_lab::hosts::AGENT_PORT;
use godwit_lab::{Lab, signer};
use godwit_protocol::tls::{Pem, PemCredentials};
use godwit_protocol::{
    AgentClient, Category, ClientTls, Credentials, CurrentCredentials, Fault, GuestName, TrustDomain,
};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt as _};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};

/// For what takes the signer a moment, on a machine with much else to do.
pub const SOON: Duration = Duration::from_secs(90);

/// A PKCS #10 request for these URIs.
pub fn pkcs10(key: &KeyPair, uris: &[&str]) -> rcgen::CertificateSigningRequest {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.subject_alt_names = uris
        .iter()
        .map(|uri| SanType::URI((*uri).try_into().unwrap()))
        .collect();
    parameters.serialize_request(key).unwrap()
}

/// A request for one identity, as an agent makes it.
pub fn request(key: &KeyPair, uri: &str) -> CertificateSigningRequest {
    CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: Some("case-".to_owned()),
            ..ObjectMeta::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pkcs10(key, &[uri]).pem().unwrap().into_bytes()),
            signer_name: signer::NAME.to_owned(),
            usages: Some(vec!["digital signature".to_owned(), "client auth".to_owned()]),
            expiration_seconds: Some(600),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    }
}

/// What became of a request.
#[derive(Debug)]
pub enum Outcome {
    /// The chain, PEM.
    Issued(Vec<u8>),
    /// The reason and the message.
    Denied(String, String),
}

impl Outcome {
    #[track_caller]
    pub fn denied(self, expected: &str) -> String {
        match self {
            Self::Denied(reason, message) => {
                assert_eq!(reason, expected, "{message}");
                message
            }
            Self::Issued(_) => panic!("a certificate was issued, and not refused as {expected}"),
        }
    }
}

/// Makes a request as this client's user and waits for the signer's answer, which `observer` reads.
pub async fn ask(
    asker: &Client,
    observer: &Client,
    request: &CertificateSigningRequest,
) -> anyhow::Result<Outcome> {
    let name = Api::<CertificateSigningRequest>::all(asker.clone())
        .create(&PostParams::default(), request)
        .await
        .context("make the request")?
        .name_any();
    answer(observer, &name).await
}

/// Waits for the signer's answer.
pub async fn answer(observer: &Client, name: &str) -> anyhow::Result<Outcome> {
    let requests = Api::<CertificateSigningRequest>::all(observer.clone());
    eventually(&format!("request {name} is answered"), async || {
        let status = requests.get(name).await?.status.unwrap_or_default();
        for condition in status.conditions.into_iter().flatten() {
            if condition.type_ != "Approved" {
                let (reason, message) = (condition.reason, condition.message);
                let denied = Outcome::Denied(reason.unwrap_or_default(), message.unwrap_or_default());
                return Ok(Some(denied));
            }
        }
        let issued = status.certificate.filter(|text| !text.0.is_empty());
        Ok(issued.map(|text| Outcome::Issued(text.0)))
    })
    .await
}

/// Looks again and again until there is something.
pub async fn eventually<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    within(SOON, what, &mut look).await
}

/// As [`eventually`], with another deadline.
pub async fn within<T>(
    patience: Duration,
    what: &str,
    look: &mut impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("not within {patience:?}: {what}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Credentials of these parts.
pub fn credentials(authorities: &str, chain: &[u8], key: &str) -> anyhow::Result<Credentials> {
    let pem = |text: &[u8]| Pem {
        origin: "the case".to_owned(),
        text: text.to_vec(),
    };
    let parts = PemCredentials {
        authorities: pem(authorities.as_bytes()),
        chain: pem(chain),
        key: pem(key.as_bytes()),
    };
    Ok(Credentials::of_pem(parts, &TrustDomain::default())?)
}

/// The controller's credentials by this authority, believing in these.
pub fn controller(authority: &Authority, believed: &str) -> anyhow::Result<ClientTls> {
    let issued = authority.issue(&Subject {
        common_name: "controller".to_owned(),
        uris: vec![CONTROLLER_IDENTITY.to_owned()],
        ..Subject::default()
    })?;
    let credentials = credentials(believed, issued.certificate.as_bytes(), &issued.key)?;
    Ok(ClientTls::new(CurrentCredentials::new(credentials)))
}

/// Connects to the agent of the host with that number, expecting the host of that name.
pub async fn connect(
    lab: &Lab,
    number: usize,
    expected: &str,
    tls: &ClientTls,
) -> Result<AgentClient, Fault> {
    let address = lab.hosts[number - 1].address;
    let endpoint = std::net::SocketAddr::new(address, AGENT_PORT).to_string();
    AgentClient::connect(&endpoint, expected, tls).await
}

/// That the connection lives: the agent answers that it has no such guest.
pub async fn answers(client: &AgentClient) -> anyhow::Result<()> {
    let nobody = GuestName {
        uid: "00000000-0000-4000-8000-000000000000".to_owned(),
        namespace: "default".to_owned(),
        name: "nobody".to_owned(),
    };
    match client.stop_guest(&nobody, 1).await {
        Ok(()) => Ok(()),
        Err(fault) if fault.category != Category::Unavailable => Ok(()),
        Err(fault) => bail!("{fault}"),
    }
}
