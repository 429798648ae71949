//! Who this host is, and the one peer that it speaks with.

use std::sync::Arc;

use godwit_tls::hello::ALPN_TUNNEL;
use godwit_tls::verify::{Expects, IssuerAndName, Stranger, the_uri};
use godwit_tls::{VERSIONS, certificates};
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, Error, RootCertStore, ServerConfig};

use crate::order::Credentials;

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    /// A part of them is not PEM, or holds nothing of the kind.
    #[error("there is no {0} in PEM form")]
    Missing(&'static str),
    /// The library refuses them.
    #[error(transparent)]
    Refused(#[from] Error),
}

/// What connections are made with: both roles' configurations, for the same one peer.
pub(crate) struct Trust {
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
}

impl Trust {
    /// From credentials, for the peer whose certificate has this one URI.
    ///
    /// # Errors
    /// [`TrustError`].
    pub(crate) fn new(credentials: &Credentials, peer: &str) -> Result<Self, TrustError> {
        let provider = Arc::new(provider());
        let mut roots = RootCertStore::empty();
        let authorities = certificates(credentials.authorities.as_bytes());
        for root in authorities.ok_or(TrustError::Missing("authority"))? {
            roots.add(root)?;
        }
        let chain = certificates(credentials.chain.as_bytes()).ok_or(TrustError::Missing("certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(credentials.key.as_bytes())
            .map_err(|_| TrustError::Missing("private key"))?;
        let own = Arc::new(CertifiedKey::from_der(chain, key, &provider)?);
        let expected = PeerIs(peer.to_owned());
        let verifier = Arc::new(IssuerAndName::new(expected, Arc::new(roots), &provider)?);
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(VERSIONS)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>)
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&own))));
        client.alpn_protocols = vec![ALPN_TUNNEL.to_vec()];
        client.resumption = Resumption::disabled();
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(VERSIONS)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
        server.alpn_protocols = vec![ALPN_TUNNEL.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }
}

/// Godwit's, with the suites that tell where they leave plaintext.
fn provider() -> CryptoProvider {
    let mut provider = godwit_tls::provider();
    provider.cipher_suites = super::in_place::suites();
    provider
}

/// The certificate is in order, but is not the peer's.
#[derive(thiserror::Error)]
#[error("it is not that of {0}")]
struct OtherPeer(String);

impl std::fmt::Debug for OtherPeer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // This is what the library shows of it.
        std::fmt::Display::fmt(self, f)
    }
}

/// The one peer, by its URI, byte for byte.
#[derive(Debug)]
struct PeerIs(String);

impl Expects for PeerIs {
    fn judge(&self, certificate: &CertificateDer<'_>) -> Result<(), Stranger> {
        if the_uri(certificate).as_deref() == Ok(self.0.as_str()) {
            Ok(())
        } else {
            Err(Arc::new(OtherPeer(self.0.clone())))
        }
    }
}
