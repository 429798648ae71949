//! Mutual TLS 1.3 from PEM files: who is trusted is decided by the authority *and* by the URI in the certificate.
//!
//! No resumption, no older versions, no way to turn authentication off. [`ServerTls`] and [`ClientTls`] hand out
//! a fresh configuration for each handshake, which is where reloading changed files will have its place.

mod files;
mod verify;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::identity::{IdentityError, PeerIdentity};

/// The one application protocol that the agent port serves now.
pub const ALPN_CONTROL: &[u8] = b"h2";

/// Where a program's certificate lies. The files may be one and the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities that peers' certificates must come from, as PEM.
    pub authorities: PathBuf,
    /// This program's certificate and what leads from it to an authority, as PEM, the certificate first.
    pub chain: PathBuf,
    /// The certificate's private key, as PEM.
    pub key: PathBuf,
}

/// Why certificates from files cannot be used. Each names the file.
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
    /// The file is not PEM, or holds nothing of the kind that is looked for.
    #[error("{} holds no {expected} in PEM form", path.display())]
    Missing {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        expected: &'static str,
    },
    /// An authority's certificate cannot be used.
    #[error("{} holds a certificate that cannot be an authority", path.display())]
    Authority {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The key cannot be used, or is not the certificate's.
    #[error("The key in {} cannot be used with the certificate in {}", key.display(), chain.display())]
    Key {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        chain: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The certificate names nobody in godwit's words.
    #[error("The certificate in {} cannot be this program's", path.display())]
    Identity {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: IdentityError,
    },
    /// The library refuses what the files hold.
    #[error("TLS cannot be set up with the authorities in {}", path.display())]
    Setup {
        /// The authorities' file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

/// What both ends have: whom to trust, and who this program is.
struct Material {
    roots: Arc<RootCertStore>,
    own: Arc<CertifiedKey>,
    identity: PeerIdentity,
    expires: SystemTime,
}

fn provider() -> Arc<CryptoProvider> {
    // Named outright: no process-wide default that another library might have set.
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The server's end.
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    identity: PeerIdentity,
    expires: SystemTime,
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`], which names the file at fault.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let setup = |source| TlsError::Setup {
            path: files.authorities.clone(),
            source,
        };
        let material = files::read(files, &provider())?;
        let verifier = verify::ClientIsKnown::new(material.roots, &provider()).map_err(setup)?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(setup)?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(material.own)));
        config.alpn_protocols = vec![ALPN_CONTROL.to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self {
            config: Arc::new(config),
            identity: material.identity,
            expires: material.expires,
        })
    }

    /// Who this program is, by its certificate.
    pub fn identity(&self) -> &PeerIdentity {
        &self.identity
    }

    /// When this program's certificate runs out.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// The configuration for the next handshake.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }
}

/// The client's end.
#[derive(Clone)]
pub struct ClientTls {
    material: Arc<Material>,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTls")
            .field("identity", &self.material.identity)
            .finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`], which names the file at fault.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let tls = Self {
            material: Arc::new(files::read(files, &provider())?),
        };
        // Tried once here, so that what the library refuses is told at the start and not at the first call.
        tls.config(PeerIdentity::Controller)
            .map_err(|source| TlsError::Setup {
                path: files.authorities.clone(),
                source,
            })?;
        Ok(tls)
    }

    /// Who this program is, by its certificate.
    pub fn identity(&self) -> &PeerIdentity {
        &self.material.identity
    }

    /// The configuration for a handshake with the one server that is expected to answer.
    pub(crate) fn config(&self, expected: PeerIdentity) -> Result<Arc<ClientConfig>, rustls::Error> {
        let verifier = verify::ServerIs::new(expected, Arc::clone(&self.material.roots), &provider());
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.material.own))));
        config.alpn_protocols = vec![ALPN_CONTROL.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_sni = false;
        Ok(Arc::new(config))
    }
}
