//! A certificate authority for one test.

use std::path::PathBuf;

use godwit_protocol::{ClientTls, PeerIdentity, ServerTls, TlsFiles, TrustDomain};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use tempfile::TempDir;

pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters
            .distinguished_name
            .push(DnType::CommonName, "A test's authority");
        let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
        Self {
            issuer,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn issue(&self, name: &str, identity: &PeerIdentity) -> TlsFiles {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.subject_alt_names.push(SanType::URI(
            identity.uri(&TrustDomain::default()).try_into().unwrap(),
        ));
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let write = |suffix: &str, content: String| -> PathBuf {
            let path = self.directory.path().join(format!("{name}-{suffix}.pem"));
            std::fs::write(&path, content).unwrap();
            path
        };
        TlsFiles {
            authorities: write("authorities", self.issuer.pem()),
            chain: write("chain", certificate.pem()),
            key: write("key", key.serialize_pem()),
        }
    }

    pub fn controller(&self) -> ClientTls {
        let files = self.issue("controller", &PeerIdentity::Controller);
        ClientTls::load(&files, &TrustDomain::default()).unwrap()
    }

    pub fn host(&self, name: &str) -> ServerTls {
        let files = self.issue(name, &PeerIdentity::Host(name.to_owned()));
        ServerTls::load(&files, &TrustDomain::default()).unwrap()
    }
}
