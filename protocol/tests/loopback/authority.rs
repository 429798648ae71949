//! A certificate authority for one test, and the files that it gives out.

use std::path::PathBuf;

use godwit_protocol::{ClientTls, ServerTls, TlsFiles, TrustDomain};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use tempfile::TempDir;

pub const CONTROLLER: &str = "spiffe://godwit.dev/godwit/controller";

pub fn host(name: &str) -> String {
    format!("spiffe://godwit.dev/godwit/host/{name}")
}

pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Dates {
    Good,
    Past,
    Future,
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

    /// Writes a certificate for a URI; the file names are unique by `name`.
    pub fn issue(&self, name: &str, uri: &str, dates: Dates) -> TlsFiles {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters
            .subject_alt_names
            .push(SanType::URI(uri.try_into().unwrap()));
        let years = match dates {
            Dates::Good => None,
            Dates::Past => Some((2001, 2002)),
            Dates::Future => Some((2090, 2091)),
        };
        if let Some((from, until)) = years {
            parameters.not_before = rcgen::date_time_ymd(from, 1, 1);
            parameters.not_after = rcgen::date_time_ymd(until, 1, 1);
        }
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

    pub fn client(&self, uri: &str) -> ClientTls {
        let files = self.issue(&uri.replace(['/', ':'], "-"), uri, Dates::Good);
        ClientTls::load(&files, &TrustDomain::default()).unwrap()
    }

    pub fn server(&self, uri: &str) -> ServerTls {
        let name = format!("server-{}", uri.replace(['/', ':'], "-"));
        ServerTls::load(&self.issue(&name, uri, Dates::Good), &TrustDomain::default()).unwrap()
    }
}
