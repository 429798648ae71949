//! Mutual TLS 1.3 from PEM files: who is trusted is decided by the authority *and* by the URI in the certificate.
//!
//! No resumption, no older versions, no way to turn authentication off. [`ServerTls`] and [`ClientTls`] hand out
//! the configuration of the moment for each handshake: what renews a certificate puts new [`Credentials`] into the
//! [`CurrentCredentials`] that they share, and no connection that stands is broken by it.

mod credentials;
mod current;
mod files;
mod verify;

use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ServerConfig};

use crate::identity::{IdentityError, PeerIdentity, TrustDomain};

pub use credentials::{Credentials, Pem, PemCredentials};
pub use current::CurrentCredentials;
pub use files::TlsFiles;

/// The one application protocol that the agent port serves now.
pub const ALPN_CONTROL: &[u8] = b"h2";

/// Why certificates cannot be used. Each names the file, or where else they come from.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read.
    #[error("Cannot read {}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is too large to hold certificates.
    #[error("{} is larger than 1 MiB and does not hold certificates", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// It is not PEM, or holds nothing of the kind that is looked for.
    #[error("{origin} holds no {expected} in PEM form")]
    Missing {
        /// Where from.
        origin: String,
        /// What was looked for.
        expected: &'static str,
    },
    /// An authority's certificate cannot be used.
    #[error("{origin} holds a certificate that cannot be an authority")]
    Authority {
        /// Where from.
        origin: String,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The key cannot be used, or is not the certificate's.
    #[error("The key in {key} cannot be used with the certificate in {chain}")]
    Key {
        /// Where the key comes from.
        key: String,
        /// Where the certificate comes from.
        chain: String,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The certificate names nobody in godwit's words.
    #[error("The certificate in {origin} cannot be this program's")]
    Identity {
        /// Where from.
        origin: String,
        /// Why.
        #[source]
        source: IdentityError,
    },
    /// The certificate is another program's.
    #[error("The certificate in {origin} names {found}, and this is {expected}")]
    OtherIdentity {
        /// Where from.
        origin: String,
        /// Whom it names.
        found: String,
        /// Who this program is.
        expected: String,
    },
    /// The certificate does not hold yet: a clock is wrong, or it was put there too early.
    #[error("The certificate in {origin} is not yet valid: it holds in {seconds} s")]
    NotYetValid {
        /// Where from.
        origin: String,
        /// In how many seconds it will hold.
        seconds: u64,
    },
    /// The certificate has run out.
    #[error("The certificate in {origin} expired {seconds} s ago")]
    Expired {
        /// Where from.
        origin: String,
        /// How many seconds ago.
        seconds: u64,
    },
    /// The library refuses what it is given.
    #[error("TLS cannot be set up with the authorities in {origin}")]
    Setup {
        /// Where the authorities come from.
        origin: String,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(godwit_tls::provider())
}

/// The server's end.
#[derive(Clone, Debug)]
pub struct ServerTls {
    current: CurrentCredentials,
}

impl ServerTls {
    /// A server with these credentials, and at each handshake those that have replaced them.
    pub fn new(current: CurrentCredentials) -> Self {
        Self { current }
    }

    /// Reads the files, once.
    ///
    /// # Errors
    /// [`TlsError`], which names the file at fault.
    pub fn load(files: &TlsFiles, domain: &TrustDomain) -> Result<Self, TlsError> {
        Ok(Self::new(CurrentCredentials::new(files.load(domain)?)))
    }

    /// Who this program is, by its certificate.
    pub fn identity(&self) -> &PeerIdentity {
        self.current.identity()
    }

    /// Who a client is, by its certificate, which the handshake has judged.
    pub(crate) fn peer(&self, certificate: &CertificateDer<'_>) -> Result<PeerIdentity, IdentityError> {
        PeerIdentity::of_certificate(certificate, self.current.domain())
    }

    /// The configuration for the next handshake.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.current.get().server()
    }
}

/// The client's end.
#[derive(Clone, Debug)]
pub struct ClientTls {
    current: CurrentCredentials,
}

impl ClientTls {
    /// A client with these credentials, and at each handshake those that have replaced them.
    pub fn new(current: CurrentCredentials) -> Self {
        Self { current }
    }

    /// Reads the files, once.
    ///
    /// # Errors
    /// [`TlsError`], which names the file at fault.
    pub fn load(files: &TlsFiles, domain: &TrustDomain) -> Result<Self, TlsError> {
        Ok(Self::new(CurrentCredentials::new(files.load(domain)?)))
    }

    /// Who this program is, by its certificate.
    pub fn identity(&self) -> &PeerIdentity {
        self.current.identity()
    }

    /// The configuration for a handshake with the one server that is expected to answer.
    pub(crate) fn config(&self, expected: PeerIdentity) -> Result<Arc<ClientConfig>, rustls::Error> {
        self.current.get().client(expected)
    }
}
