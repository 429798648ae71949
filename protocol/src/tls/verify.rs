//! Who is expected at the other end of a connection, by the name in its certificate.

use std::sync::Arc;

use godwit_tls::verify::{Expects, Stranger};
use rustls::pki_types::CertificateDer;

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

/// The client's judgement of the server: its URI names the one expected.
#[derive(Debug)]
pub(super) struct ServerIs {
    pub(super) expected: PeerIdentity,
    pub(super) domain: TrustDomain,
}

impl Expects for ServerIs {
    fn judge(&self, certificate: &CertificateDer<'_>) -> Result<(), Stranger> {
        let found = named(certificate, &self.domain)?;
        if found == self.expected {
            Ok(())
        } else {
            Err(Arc::new(OtherPeer {
                expected: self.expected.clone(),
                found,
            }))
        }
    }
}

/// The server's judgement of a client: it is one of godwit's programs. What that one may call is judged at each call.
#[derive(Debug)]
pub(super) struct ClientIsKnown {
    pub(super) domain: TrustDomain,
}

impl Expects for ClientIsKnown {
    fn judge(&self, certificate: &CertificateDer<'_>) -> Result<(), Stranger> {
        named(certificate, &self.domain).map(drop)
    }
}

fn named(certificate: &CertificateDer<'_>, domain: &TrustDomain) -> Result<PeerIdentity, Stranger> {
    PeerIdentity::of_certificate(certificate, domain).map_err(|why| Arc::new(Nobody(why)) as Stranger)
}
