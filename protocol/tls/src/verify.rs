//! Who is let in: a certificate from a known authority whose one URI names a peer that is expected.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Why a certificate is nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoUri {
    /// It is not a certificate.
    #[error("it cannot be read as an X.509 certificate")]
    Unreadable,
    /// It has no URI name.
    #[error("it has no URI in its subject alternative names")]
    None,
    /// It has more than one URI name.
    #[error("it has more than one URI in its subject alternative names")]
    Several,
}

/// The one URI among a certificate's subject alternative names. Its authority is judged elsewhere.
///
/// # Errors
/// [`NoUri`] where there is not exactly one.
pub fn the_uri(certificate: &CertificateDer<'_>) -> Result<String, NoUri> {
    let (rest, certificate) = X509Certificate::from_der(certificate).map_err(|_| NoUri::Unreadable)?;
    if !rest.is_empty() {
        return Err(NoUri::Unreadable);
    }
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| NoUri::Unreadable)?;
    let mut found = None;
    for name in names.iter().flat_map(|extension| &extension.value.general_names) {
        if let GeneralName::URI(uri) = name
            && found.replace(*uri).is_some()
        {
            return Err(NoUri::Several);
        }
    }
    found.map(str::to_owned).ok_or(NoUri::None)
}

/// Why a certificate that is in order is not one of those expected. The library shows its debug form.
pub type Stranger = Arc<dyn std::error::Error + Send + Sync>;

/// Which names are let in.
pub trait Expects: std::fmt::Debug + Send + Sync {
    /// Judges a certificate whose chain leads to a known authority.
    ///
    /// # Errors
    /// Why it is not let in.
    fn judge(&self, certificate: &CertificateDer<'_>) -> Result<(), Stranger>;
}

/// Lets in who is expected, whichever end of the connection that is: the chain to a known authority is judged first,
/// then the name. DNS names and addresses mean nothing.
#[derive(Debug)]
pub struct IssuerAndName<E> {
    expected: E,
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
    clients: Arc<dyn ClientCertVerifier>,
}

impl<E: Expects> IssuerAndName<E> {
    /// With these authorities, of which several may hold during a rotation.
    ///
    /// # Errors
    /// The library's, where there is no authority among them.
    pub fn new(
        expected: E,
        roots: Arc<RootCertStore>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, Error> {
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider))
            .build()
            .map_err(|why| Error::General(why.to_string()))?;
        Ok(Self {
            expected,
            roots,
            algorithms: provider.signature_verification_algorithms,
            clients,
        })
    }

    fn check_name(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        self.expected
            .judge(certificate)
            .map_err(|why| Error::InvalidCertificate(CertificateError::Other(OtherError(why))))
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }
}

fn only_tls13() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("only TLS 1.3 is spoken here".to_owned()))
}

impl<E: Expects> ServerCertVerifier for IssuerAndName<E> {
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
        only_tls13()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl<E: Expects> ClientCertVerifier for IssuerAndName<E> {
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
        only_tls13()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;

    fn certificate(uris: &[&str]) -> CertificateDer<'static> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec!["a-dns-name".to_owned()]).unwrap();
        for uri in uris {
            parameters
                .subject_alt_names
                .push(rcgen::SanType::URI((*uri).try_into().unwrap()));
        }
        parameters.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn a_certificate_is_known_by_its_one_uri() {
        assert_eq!(
            the_uri(&certificate(&["spiffe://a/b"])).as_deref(),
            Ok("spiffe://a/b")
        );
        assert_eq!(the_uri(&certificate(&[])), Err(NoUri::None));
        assert_eq!(the_uri(&certificate(&["a:b", "a:b"])), Err(NoUri::Several));
        let longer = CertificateDer::from([certificate(&["a:b"]).as_ref(), &[0]].concat());
        assert_eq!(the_uri(&longer), Err(NoUri::Unreadable));
        assert_eq!(
            the_uri(&CertificateDer::from(vec![0x30, 0x80, 1])),
            Err(NoUri::Unreadable)
        );
    }
}
