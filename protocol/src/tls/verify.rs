//! Who is let in: a certificate from a known authority whose one URI names the peer.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};

use crate::identity::{IdentityError, PeerIdentity, TrustDomain};

/// The certificate is in order, but another name was expected.
#[derive(Debug, thiserror::Error)]
#[error("It is the certificate of {found}, not of {expected}")]
struct OtherPeer {
    expected: PeerIdentity,
    found: PeerIdentity,
}

/// The certificate names nobody in godwit's words.
#[derive(Debug, thiserror::Error)]
#[error("The certificate names nobody here: {0}")]
struct Nobody(IdentityError);

fn refused(why: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
}

fn only_tls13() -> Error {
    Error::General("only TLS 1.3 is spoken here".to_owned())
}

/// The client's judgement of the server: the URI names the one expected. DNS names and addresses mean nothing.
#[derive(Debug)]
pub(super) struct ServerIs {
    expected: PeerIdentity,
    domain: TrustDomain,
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerIs {
    pub(super) fn new(
        expected: PeerIdentity,
        domain: TrustDomain,
        roots: Arc<RootCertStore>,
        provider: &CryptoProvider,
    ) -> Self {
        Self {
            expected,
            domain,
            roots,
            algorithms: provider.signature_verification_algorithms,
        }
    }
}

impl ServerCertVerifier for ServerIs {
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
        let found =
            PeerIdentity::of_certificate(end_entity, &self.domain).map_err(|why| refused(Nobody(why)))?;
        if found == self.expected {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(refused(OtherPeer {
                expected: self.expected.clone(),
                found,
            }))
        }
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

/// The server's judgement of a client: a certificate is required, and it names one of godwit's programs. What
/// that one may call is judged at each call.
#[derive(Debug)]
pub(super) struct ClientIsKnown {
    domain: TrustDomain,
    chain: Arc<dyn ClientCertVerifier>,
}

impl ClientIsKnown {
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        domain: TrustDomain,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, Error> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider))
            .build()
            .map_err(|why| Error::General(why.to_string()))?;
        Ok(Self { domain, chain })
    }
}

impl ClientCertVerifier for ClientIsKnown {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        PeerIdentity::of_certificate(end_entity, &self.domain).map_err(|why| refused(Nobody(why)))?;
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
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
