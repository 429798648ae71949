//! Who this program is and whom it believes, as it stands at one moment.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use godwit_tls::VERSIONS;
use godwit_tls::verify::IssuerAndName;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{ALPN_CONTROL, TlsError, provider, verify};
use crate::identity::{IdentityError, PeerIdentity, TrustDomain};

/// PEM text, and where it comes from: a path, or words such as "the signer's answer".
#[derive(Clone, PartialEq, Eq)]
pub struct Pem {
    /// For messages.
    pub origin: String,
    /// The text.
    pub text: Vec<u8>,
}

impl fmt::Debug for Pem {
    // Some of them are keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pem")
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

/// What credentials are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PemCredentials {
    /// The authorities that peers' certificates must come from. Several during a rotation.
    pub authorities: Pem,
    /// This program's certificate and what leads from it to an authority, the certificate first.
    pub chain: Pem,
    /// The certificate's private key.
    pub key: Pem,
}

/// Credentials that fit together: authorities, chain and key. They do not change; cheap to clone.
///
/// Dates are not judged when they are made: see [`Credentials::check_dates`].
#[derive(Clone)]
pub struct Credentials(Arc<Inner>);

struct Inner {
    pem: PemCredentials,
    roots: Arc<RootCertStore>,
    own: Arc<CertifiedKey>,
    identity: PeerIdentity,
    domain: TrustDomain,
    valid_from: SystemTime,
    valid_until: SystemTime,
    server: Arc<ServerConfig>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.0.identity)
            .field("domain", &self.0.domain)
            .field("valid_from", &self.0.valid_from)
            .field("valid_until", &self.0.valid_until)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads PEM: every authority must be usable, the key must be the certificate's, and the certificate must name
    /// one identity of the trust domain.
    ///
    /// # Errors
    /// [`TlsError`], which names the part at fault.
    pub fn of_pem(pem: PemCredentials, domain: &TrustDomain) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for authority in certificates(&pem.authorities)? {
            roots.add(authority).map_err(|source| TlsError::Authority {
                origin: pem.authorities.origin.clone(),
                source,
            })?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(&pem.chain)?;
        let leaf = chain.first().ok_or_else(|| missing(&pem.chain, "certificate"))?;
        let not_ours = |source| TlsError::Identity {
            origin: pem.chain.origin.clone(),
            source,
        };
        let identity = PeerIdentity::of_certificate(leaf, domain).map_err(not_ours)?;
        let (valid_from, valid_until) = dates(leaf).ok_or_else(|| not_ours(IdentityError::Unreadable))?;
        let key =
            PrivateKeyDer::from_pem_slice(&pem.key.text).map_err(|_| missing(&pem.key, "private key"))?;
        let own = CertifiedKey::from_der(chain, key, &provider()).map_err(|source| TlsError::Key {
            key: pem.key.origin.clone(),
            chain: pem.chain.origin.clone(),
            source,
        })?;
        let own = Arc::new(own);
        let server = server(&roots, &own, domain).map_err(|source| TlsError::Setup {
            origin: pem.authorities.origin.clone(),
            source,
        })?;
        let credentials = Self(Arc::new(Inner {
            pem,
            roots,
            own,
            identity,
            domain: domain.clone(),
            valid_from,
            valid_until,
            server,
        }));
        // Tried once here, so that what the library refuses is told now and not at the first call.
        credentials
            .client(PeerIdentity::Controller)
            .map_err(|source| TlsError::Setup {
                origin: credentials.0.pem.authorities.origin.clone(),
                source,
            })?;
        Ok(credentials)
    }

    /// Who this program is, by the certificate.
    pub fn identity(&self) -> &PeerIdentity {
        &self.0.identity
    }

    /// The trust domain of this program and its peers.
    pub fn domain(&self) -> &TrustDomain {
        &self.0.domain
    }

    /// From when on the certificate holds.
    pub fn valid_from(&self) -> SystemTime {
        self.0.valid_from
    }

    /// When the certificate runs out.
    pub fn valid_until(&self) -> SystemTime {
        self.0.valid_until
    }

    /// What they were made of, the key included: for a program of this host that speaks in the host's name. Never
    /// to be logged, or given to a guest's hypervisor.
    pub fn pem(&self) -> &PemCredentials {
        &self.0.pem
    }

    /// Whether the certificate holds at `now`.
    ///
    /// # Errors
    /// [`TlsError::NotYetValid`] or [`TlsError::Expired`].
    pub fn check_dates(&self, now: SystemTime) -> Result<(), TlsError> {
        let origin = || self.0.pem.chain.origin.clone();
        if now < self.0.valid_from {
            Err(TlsError::NotYetValid {
                origin: origin(),
                seconds: seconds(now, self.0.valid_from),
            })
        } else if now >= self.0.valid_until {
            Err(TlsError::Expired {
                origin: origin(),
                seconds: seconds(self.0.valid_until, now),
            })
        } else {
            Ok(())
        }
    }

    /// The configuration for a handshake that a peer has begun.
    pub(super) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.server)
    }

    /// The configuration for a handshake with the one server that is expected to answer.
    pub(super) fn client(&self, expected: PeerIdentity) -> Result<Arc<ClientConfig>, rustls::Error> {
        let provider = provider();
        let expected = verify::ServerIs {
            expected,
            domain: self.0.domain.clone(),
        };
        let verifier = IssuerAndName::new(expected, Arc::clone(&self.0.roots), &provider)?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(VERSIONS)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.0.own))));
        config.alpn_protocols = vec![ALPN_CONTROL.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_sni = false;
        Ok(Arc::new(config))
    }
}

fn server(
    roots: &Arc<RootCertStore>,
    own: &Arc<CertifiedKey>,
    domain: &TrustDomain,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = provider();
    let expected = verify::ClientIsKnown {
        domain: domain.clone(),
    };
    let verifier = IssuerAndName::new(expected, Arc::clone(roots), &provider)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(VERSIONS)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(own))));
    config.alpn_protocols = vec![ALPN_CONTROL.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

fn seconds(from: SystemTime, until: SystemTime) -> u64 {
    until.duration_since(from).unwrap_or_default().as_secs()
}

/// From when until when a certificate holds.
fn dates(certificate: &CertificateDer<'_>) -> Option<(SystemTime, SystemTime)> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    // A time before 1970 has passed as well as that instant has.
    let at = |timestamp: i64| {
        let seconds = u64::try_from(timestamp).unwrap_or(0);
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    };
    let validity = certificate.validity();
    Some((
        at(validity.not_before.timestamp())?,
        at(validity.not_after.timestamp())?,
    ))
}

fn missing(pem: &Pem, expected: &'static str) -> TlsError {
    TlsError::Missing {
        origin: pem.origin.clone(),
        expected,
    }
}

fn certificates(pem: &Pem) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    godwit_tls::certificates(&pem.text).ok_or_else(|| missing(pem, "certificate"))
}
