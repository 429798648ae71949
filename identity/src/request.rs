//! Asks the cluster's signer for a certificate by a CertificateSigningRequest, and for the next one in time.
//!
//! The key is made here and never leaves this host. Who asks is not said in the request but seen by the API server:
//! it writes what the caller's token is bound to (pod and node) into the request, and the signer goes by that.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use godwit_protocol::tls::{Pem, PemCredentials};
use godwit_protocol::{Credentials, CurrentCredentials, PeerIdentity, TlsError, TrustDomain};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use tokio_util::sync::CancellationToken;

use crate::files::PERIOD;
use crate::judge::{Judged, in_full};
use crate::schedule::{chance, renew_at, rest};
use crate::store::Store;

/// How long one request may wait for the signer until another one is made.
const ANSWER_WITHIN: Duration = Duration::from_secs(600);
/// The first and the longest pause between two looks at a request.
const LOOK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long one call of the API server may take.
const CALL_WITHIN: Duration = Duration::from_secs(10);

/// A way to the signer.
#[derive(Clone)]
pub struct Request {
    /// With the program's own token, which must be bound to its pod.
    pub client: Client,
    /// The signer's name.
    pub signer: String,
    /// How long the certificate shall hold, in whole seconds, at least ten minutes; the signer may shorten it.
    pub lifetime: Duration,
    /// The authorities that peers' certificates must come from: a file, read again when it changes.
    pub authorities: PathBuf,
    /// A directory for the key and the certificate, best one that does not outlive a reboot.
    pub directory: PathBuf,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("signer", &self.signer)
            .field("authorities", &self.authorities)
            .finish_non_exhaustive()
    }
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Key or request cannot be made.
    #[error("A key and a request for a certificate cannot be made")]
    Make(#[source] rcgen::Error),
    /// The API server.
    #[error("The API server: {0}")]
    Api(#[source] Box<kube::Error>),
    /// No answer of the API server.
    #[error("The API server did not answer within {} s", CALL_WITHIN.as_secs())]
    Deadline,
    /// The signer refused.
    #[error("The request {name} was refused: {reason}: {message}")]
    Refused {
        /// The request.
        name: String,
        /// The condition's reason.
        reason: String,
        /// Its message.
        message: String,
    },
    /// The signer did not answer.
    #[error("The request {0} was not answered within ten minutes; does the signer run?")]
    Unanswered(String),
    /// What came back cannot be used.
    #[error("What the signer gave cannot be used")]
    Unusable(#[from] TlsError),
}

impl From<kube::Error> for RequestError {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

/// The own half of credentials.
struct Own {
    chain: Pem,
    key: Pem,
}

/// Where a request stands.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    Waits,
    Refused { reason: String, message: String },
    Issued(Vec<u8>),
}

fn standing(request: &CertificateSigningRequest) -> Standing {
    let Some(status) = &request.status else {
        return Standing::Waits;
    };
    let refusal = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| matches!(condition.type_.as_str(), "Denied" | "Failed"));
    if let Some(condition) = refusal {
        return Standing::Refused {
            reason: condition.reason.clone().unwrap_or_default(),
            message: condition.message.clone().unwrap_or_default(),
        };
    }
    match &status.certificate {
        Some(certificate) if !certificate.0.is_empty() => Standing::Issued(certificate.0.clone()),
        Some(_) | None => Standing::Waits,
    }
}

async fn within<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, RequestError> {
    match tokio::time::timeout(CALL_WITHIN, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(RequestError::Deadline),
    }
}

impl Request {
    /// Makes a key, asks, and waits for the answer.
    async fn ask(&self, identity: &PeerIdentity, domain: &TrustDomain) -> Result<Own, RequestError> {
        let key = KeyPair::generate().map_err(RequestError::Make)?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = DistinguishedName::new();
        let uri = identity.uri(domain).try_into().map_err(RequestError::Make)?;
        parameters.subject_alt_names = vec![SanType::URI(uri)];
        let text = parameters
            .serialize_request(&key)
            .and_then(|request| request.pem())
            .map_err(RequestError::Make)?;
        let request = CertificateSigningRequest {
            metadata: ObjectMeta {
                generate_name: Some("godwit-".to_owned()),
                ..ObjectMeta::default()
            },
            spec: CertificateSigningRequestSpec {
                request: ByteString(text.into_bytes()),
                signer_name: self.signer.clone(),
                expiration_seconds: i32::try_from(self.lifetime.as_secs()).ok(),
                usages: Some(
                    ["digital signature", "server auth", "client auth"]
                        .map(str::to_owned)
                        .to_vec(),
                ),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        };
        let requests: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        let name = within(requests.create(&PostParams::default(), &request))
            .await?
            .name_any();
        tracing::debug!(request = %name, signer = %self.signer, "asked for a certificate");
        let chain = wait(&requests, &name).await?;
        Ok(Own {
            chain: Pem {
                origin: format!("the answer to the request {name}"),
                text: chain,
            },
            key: Pem {
                origin: format!("the request {name}"),
                text: key.serialize_pem().into_bytes(),
            },
        })
    }

    /// The own half with the authorities that lie there now.
    fn put_together(&self, own: &Own, domain: &TrustDomain) -> Result<Credentials, TlsError> {
        let unreadable = |source| TlsError::Unreadable {
            path: self.authorities.clone(),
            source,
        };
        let authorities = Pem {
            origin: self.authorities.display().to_string(),
            text: std::fs::read(&self.authorities).map_err(unreadable)?,
        };
        let pem = PemCredentials {
            authorities,
            chain: own.chain.clone(),
            key: own.key.clone(),
        };
        Credentials::of_pem(pem, domain)
    }

    /// What an earlier run of this program kept, if it is of use.
    fn kept(&self, identity: &PeerIdentity, domain: &TrustDomain) -> Option<(Own, Credentials)> {
        let store = Store::new(self.directory.clone());
        let text = match store.read() {
            Ok(text) => text?,
            Err(why) => {
                tracing::warn!("{} cannot be read: {why}", store.path().display());
                return None;
            }
        };
        let pem = Pem {
            origin: store.path().display().to_string(),
            text,
        };
        let own = Own {
            chain: pem.clone(),
            key: pem,
        };
        let usable = self
            .put_together(&own, domain)
            .and_then(|credentials| credentials.check_dates(SystemTime::now()).map(|()| credentials));
        match usable {
            Ok(credentials) if credentials.identity() == identity => Some((own, credentials)),
            Ok(credentials) => {
                tracing::info!("the kept certificate is that of {}", credentials.identity());
                None
            }
            Err(why) => {
                tracing::info!("the kept certificate is of no use: {}", in_full(&why));
                None
            }
        }
    }

    fn keep(&self, own: &Own) {
        let store = Store::new(self.directory.clone());
        if let Err(why) = store.write(&[&own.key.text[..], &own.chain.text[..]].concat()) {
            // What is in memory works all the same.
            tracing::warn!("{} cannot be written: {why}", store.path().display());
        }
    }

    /// The first credentials: kept ones, or as soon as the signer answers. Nothing once `stop` is cancelled.
    pub(crate) async fn first(
        self,
        identity: &PeerIdentity,
        domain: &TrustDomain,
        stop: &CancellationToken,
    ) -> Option<(CurrentCredentials, Requester)> {
        let (own, credentials) = match self.kept(identity, domain) {
            Some(kept) => kept,
            None => stop.run_until_cancelled(self.insist(identity, domain)).await?,
        };
        let current = CurrentCredentials::new(credentials);
        Some((
            current.clone(),
            Requester {
                request: self,
                own,
                current,
            },
        ))
    }

    /// Asks until there are credentials.
    async fn insist(&self, identity: &PeerIdentity, domain: &TrustDomain) -> (Own, Credentials) {
        let mut failures = 0u32;
        loop {
            match self.renewed(identity, domain).await {
                Ok(renewed) => return renewed,
                Err(why) => {
                    failures = failures.saturating_add(1);
                    tracing::warn!(failures, "There is no certificate yet: {}", in_full(&why));
                    tokio::time::sleep(rest(failures, chance())).await;
                }
            }
        }
    }

    async fn renewed(
        &self,
        identity: &PeerIdentity,
        domain: &TrustDomain,
    ) -> Result<(Own, Credentials), RequestError> {
        let own = self.ask(identity, domain).await?;
        let credentials = self.put_together(&own, domain)?;
        credentials.check_dates(SystemTime::now())?;
        if credentials.identity() != identity {
            return Err(RequestError::Unusable(TlsError::OtherIdentity {
                origin: own.chain.origin,
                found: credentials.identity().uri(domain),
                expected: identity.uri(domain),
            }));
        }
        self.keep(&own);
        Ok((own, credentials))
    }
}

async fn wait(requests: &Api<CertificateSigningRequest>, name: &str) -> Result<Vec<u8>, RequestError> {
    let deadline = Instant::now() + ANSWER_WITHIN;
    let mut pause = LOOK.0;
    while Instant::now() < deadline {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK.1);
        match within(requests.get(name)).await.map(|request| standing(&request)) {
            Ok(Standing::Waits) => {}
            Ok(Standing::Issued(chain)) => return Ok(chain),
            Ok(Standing::Refused { reason, message }) => {
                return Err(RequestError::Refused {
                    name: name.to_owned(),
                    reason,
                    message,
                });
            }
            // The request stands there, whatever became of this look at it; only a missing one is asked for anew.
            Err(RequestError::Api(why)) if matches!(*why, kube::Error::Api(ref status) if status.code == 404) =>
            {
                return Err(RequestError::Api(why));
            }
            Err(why) => tracing::debug!("{}", in_full(&why)),
        }
    }
    Err(RequestError::Unanswered(name.to_owned()))
}

/// Keeps credentials fresh by asking anew.
pub(crate) struct Requester {
    request: Request,
    own: Own,
    current: CurrentCredentials,
}

impl Requester {
    /// Renews in time and takes up the authorities' changes, until `stop`.
    pub(crate) async fn keep(mut self, stop: CancellationToken) {
        let (identity, domain) = (self.current.identity().clone(), self.current.domain().clone());
        let mut judged = Judged::default();
        while !stop.is_cancelled() {
            let used = self.current.get();
            // Whatever the dates say, the signer is not asked without a pause.
            let due =
                renew_at(used.valid_from(), used.valid_until(), chance()).max(SystemTime::now() + PERIOD);
            let renewing = async {
                // Looked at again and again: the clock may be set, and the machine may sleep.
                while SystemTime::now() < due {
                    tokio::time::sleep(PERIOD).await;
                }
                self.request.insist(&identity, &domain).await
            };
            let own = &self.own;
            let following = async {
                loop {
                    tokio::time::sleep(PERIOD).await;
                    judged.carry_out(&self.current, self.request.put_together(own, &domain));
                }
            };
            let (own, renewed): (Own, Credentials) = tokio::select! {
                () = stop.cancelled() => return,
                renewed = renewing => renewed,
                never = following => never,
            };
            self.own = own;
            judged.carry_out(&self.current, Ok(renewed));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use k8s_openapi::api::certificates::v1::{
        CertificateSigningRequestCondition, CertificateSigningRequestStatus,
    };

    use super::*;

    fn request(conditions: &[&str], certificate: Option<&[u8]>) -> CertificateSigningRequest {
        let conditions = conditions
            .iter()
            .map(|type_| CertificateSigningRequestCondition {
                type_: (*type_).to_owned(),
                status: "True".to_owned(),
                reason: Some("OtherIdentity".to_owned()),
                message: Some("another node".to_owned()),
                ..CertificateSigningRequestCondition::default()
            })
            .collect();
        CertificateSigningRequest {
            status: Some(CertificateSigningRequestStatus {
                conditions: Some(conditions),
                certificate: certificate.map(|text| ByteString(text.to_vec())),
            }),
            ..CertificateSigningRequest::default()
        }
    }

    #[test]
    fn a_request_waits_until_it_is_refused_or_has_a_certificate() {
        assert_eq!(standing(&CertificateSigningRequest::default()), Standing::Waits);
        assert_eq!(standing(&request(&[], None)), Standing::Waits);
        assert_eq!(standing(&request(&["Approved"], None)), Standing::Waits);
        assert_eq!(standing(&request(&["Approved"], Some(b""))), Standing::Waits);
        assert_eq!(
            standing(&request(&["Approved"], Some(b"chain"))),
            Standing::Issued(b"chain".to_vec())
        );
        for refusal in ["Denied", "Failed"] {
            assert_eq!(
                standing(&request(&[refusal], None)),
                Standing::Refused {
                    reason: "OtherIdentity".to_owned(),
                    message: "another node".to_owned()
                }
            );
        }
    }
}
