//! Who this host is, and the one peer that it speaks with.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    RootCertStore, ServerConfig, SignatureScheme,
};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::hello::ALPN_TUNNEL;
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
        for root in certificates(&credentials.authorities, "authority")? {
            roots.add(root)?;
        }
        let chain = certificates(&credentials.chain, "certificate")?;
        let key = PrivateKeyDer::from_pem_slice(credentials.key.as_bytes())
            .map_err(|_| TrustError::Missing("private key"))?;
        let own = Arc::new(CertifiedKey::from_der(chain, key, &provider)?);
        let verifier = Arc::new(PeerIs::new(peer, roots, &provider)?);
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>)
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&own))));
        client.alpn_protocols = vec![ALPN_TUNNEL.to_vec()];
        client.resumption = Resumption::disabled();
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
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

/// Named outright: no process-wide default that another library might have set. AES with 128 bits comes first, because
/// it is the fastest where the processor helps, and as good.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    provider
}

fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match read {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) | Err(_) => Err(TrustError::Missing(what)),
    }
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

/// Lets in the one peer, whichever side it is: a chain to a known authority first, then the name.
#[derive(Debug)]
struct PeerIs {
    peer: String,
    roots: RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
    clients: Arc<dyn ClientCertVerifier>,
}

impl PeerIs {
    fn new(peer: &str, roots: RootCertStore, provider: &Arc<CryptoProvider>) -> Result<Self, Error> {
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), Arc::clone(provider))
                .build()
                .map_err(|why| Error::General(why.to_string()))?;
        Ok(Self {
            peer: peer.to_owned(),
            roots,
            algorithms: provider.signature_verification_algorithms,
            clients,
        })
    }

    fn check_name(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        if the_uri(certificate).as_deref() == Some(self.peer.as_str()) {
            return Ok(());
        }
        let why = OtherPeer(self.peer.clone());
        Err(Error::InvalidCertificate(CertificateError::Other(OtherError(
            Arc::new(why),
        ))))
    }
}

/// The one URI among a certificate's names; none where there is not exactly one.
fn the_uri(certificate: &CertificateDer<'_>) -> Option<String> {
    let (rest, certificate) = X509Certificate::from_der(certificate).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let names = certificate.subject_alternative_name().ok()??;
    let mut found = None;
    for name in &names.value.general_names {
        if let GeneralName::URI(uri) = name
            && found.replace((*uri).to_owned()).is_some()
        {
            return None;
        }
    }
    found
}

fn only_tls13() -> Error {
    Error::General("only TLS 1.3 is spoken here".to_owned())
}

impl ServerCertVerifier for PeerIs {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        self.check_name(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerIs {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.clients.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.clients.verify_client_cert(end_entity, intermediates, now)?;
        self.check_name(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
