//! Certificates of hosts, good and bad ones.

use godwit_relay::order::Credentials;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};

pub const SOURCE: &str = "spiffe://test.example/host/source";
pub const DESTINATION: &str = "spiffe://test.example/host/destination";

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// When a certificate is good.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Good {
    Now,
    Earlier,
    Later,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = parameters.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(parameters, key),
            pem,
        }
    }

    pub fn credentials(&self, uris: &[&str], good: Good) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        for uri in uris {
            parameters
                .subject_alt_names
                .push(SanType::URI((*uri).try_into().unwrap()));
        }
        parameters.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        match good {
            Good::Now => {}
            Good::Earlier => parameters.not_after = rcgen::date_time_ymd(2001, 1, 1),
            Good::Later => parameters.not_before = rcgen::date_time_ymd(4000, 1, 1),
        }
        Credentials {
            authorities: self.pem.clone(),
            chain: parameters.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    pub fn of(&self, uri: &str) -> Credentials {
        self.credentials(&[uri], Good::Now)
    }
}
