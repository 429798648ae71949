//! Who the peer is, by its certificate, and what it may call.

mod trust_domain;

use godwit_tls::verify::{NoUri, the_uri};
use rustls::pki_types::CertificateDer;

use crate::convert::is_subdomain;
use crate::error::{Category, Fault};
use crate::reason;

pub use trust_domain::TrustDomain;

/// Who the peer is, within one trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PeerIdentity {
    /// The agent of a host: `spiffe://<trust domain>/godwit/host/<name>`.
    Host(String),
    /// The controller: `spiffe://<trust domain>/godwit/controller`.
    Controller,
}

/// Why a certificate names nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// It is not a certificate.
    #[error("it cannot be read as an X.509 certificate")]
    Unreadable,
    /// It has no URI name.
    #[error("it names nobody: it has no URI in its subject alternative names")]
    NoName,
    /// It has more than one URI name.
    #[error("it has more than one URI in its subject alternative names")]
    SeveralNames,
    /// Its URI is none of godwit's.
    #[error("its URI is neither spiffe://{0}/godwit/controller nor spiffe://{0}/godwit/host/<name>")]
    OtherName(TrustDomain),
    /// The name of a trust domain cannot be one.
    #[error("a trust domain is a DNS name in lower case of at most 253 characters")]
    TrustDomain,
}

impl PeerIdentity {
    /// The identity in a certificate's one URI among its subject alternative names. The certificate's authority
    /// is judged elsewhere, before this.
    ///
    /// # Errors
    /// [`IdentityError`] where the certificate does not name exactly one identity of the trust domain.
    pub fn of_certificate(der: &CertificateDer<'_>, domain: &TrustDomain) -> Result<Self, IdentityError> {
        let uri = the_uri(der).map_err(|why| match why {
            NoUri::Unreadable => IdentityError::Unreadable,
            NoUri::None => IdentityError::NoName,
            NoUri::Several => IdentityError::SeveralNames,
        })?;
        Self::of_uri(&uri, domain)
    }

    /// The identity that a URI names. Byte for byte: another way to write the same URI is another name.
    ///
    /// # Errors
    /// [`IdentityError::OtherName`].
    pub fn of_uri(uri: &str, domain: &TrustDomain) -> Result<Self, IdentityError> {
        let path = uri
            .strip_prefix("spiffe://")
            .and_then(|rest| rest.strip_prefix(domain.as_str()))
            .and_then(|rest| rest.strip_prefix("/godwit/"));
        match path {
            Some("controller") => Ok(Self::Controller),
            Some(path) => match path.strip_prefix("host/") {
                Some(host) if is_subdomain(host) => Ok(Self::Host(host.to_owned())),
                Some(_) | None => Err(IdentityError::OtherName(domain.clone())),
            },
            None => Err(IdentityError::OtherName(domain.clone())),
        }
    }

    /// The URI that a certificate of this identity carries.
    pub fn uri(&self, domain: &TrustDomain) -> String {
        match self {
            Self::Host(name) => format!("spiffe://{domain}/godwit/host/{name}"),
            Self::Controller => format!("spiffe://{domain}/godwit/controller"),
        }
    }
}

impl std::fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Host(name) => write!(f, "host {name}"),
            Self::Controller => f.write_str("the controller"),
        }
    }
}

/// The calls of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rpc {
    /// Settles the protocol version.
    Hello,
    /// Starts a guest.
    StartGuest,
    /// Stops a guest.
    StopGuest,
    /// One order about a migration.
    Order,
    /// Follows a migration.
    WatchMigration,
    /// Says that the driver lives.
    KeepAlive,
}

impl Rpc {
    /// Every call.
    pub const ALL: [Self; 6] = [
        Self::Hello,
        Self::StartGuest,
        Self::StopGuest,
        Self::Order,
        Self::WatchMigration,
        Self::KeepAlive,
    ];

    /// Its name in the protocol's definition.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hello => "Hello",
            Self::StartGuest => "StartGuest",
            Self::StopGuest => "StopGuest",
            Self::Order => "Order",
            Self::WatchMigration => "WatchMigration",
            Self::KeepAlive => "KeepAlive",
        }
    }

    /// The call that an HTTP path means.
    pub fn of_path(path: &str) -> Option<Self> {
        let name = path.strip_prefix("/godwit.agent.v1.Agent/")?;
        Self::ALL.into_iter().find(|rpc| rpc.name() == name)
    }
}

/// Whether this peer may make this call at all. A host may drive a migration whose source it is; which orders that
/// allows is judged once the terms are read ([`crate::authority`]).
///
/// # Errors
/// A fault of category Forbidden.
pub fn authorise(peer: &PeerIdentity, rpc: Rpc) -> Result<(), Fault> {
    match (peer, rpc) {
        (
            PeerIdentity::Controller | PeerIdentity::Host(_),
            Rpc::Hello | Rpc::Order | Rpc::WatchMigration | Rpc::KeepAlive,
        )
        | (PeerIdentity::Controller, Rpc::StartGuest | Rpc::StopGuest) => Ok(()),
        (PeerIdentity::Host(_), Rpc::StartGuest | Rpc::StopGuest) => Err(Fault::new(
            Category::Forbidden,
            reason::NOT_ALLOWED,
            format!(
                "{} may be called by the controller only, not by {peer}",
                rpc.name()
            ),
        )),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;

    #[test]
    fn uris_name_hosts_and_the_controller_and_nothing_else() {
        let domain = TrustDomain::default();
        let host = |name: &str| PeerIdentity::Host(name.to_owned());
        for (uri, expected) in [
            ("spiffe://godwit.dev/godwit/controller", PeerIdentity::Controller),
            ("spiffe://godwit.dev/godwit/host/node-a", host("node-a")),
            (
                "spiffe://godwit.dev/godwit/host/node-a.example.org",
                host("node-a.example.org"),
            ),
        ] {
            assert_eq!(PeerIdentity::of_uri(uri, &domain), Ok(expected), "{uri}");
        }
        let long = format!("spiffe://godwit.dev/godwit/host/{}", "a".repeat(254));
        for uri in [
            "spiffe://godwit.dev/godwit/controller/",
            "spiffe://godwit.dev/godwit/controller#x",
            "spiffe://godwit.dev/godwit/",
            "spiffe://godwit.dev/godwit",
            "spiffe://godwit.dev/godwit/signer",
            "spiffe://godwit.dev/godwit/host",
            "spiffe://godwit.dev/godwit/host/",
            "spiffe://godwit.dev/godwit/host/a/b",
            "spiffe://godwit.dev/godwit/host/../controller",
            "spiffe://godwit.dev/godwit/host/Node",
            "spiffe://godwit.dev/godwit/host/-a",
            "spiffe://godwit.dev/godwit/host/a?x",
            "spiffe://godwit.dev/godwit/host/a%2e",
            "spiffe://godwit.dev/godwit//host/a",
            "spiffe://godwit.dev/controller",
            "spiffe://godwit.dev/host/a",
            "spiffe://godwit.dev.example/godwit/host/a",
            "spiffe://godwit.dev:1/godwit/host/a",
            "spiffe://example.org/godwit/host/a",
            "SPIFFE://godwit.dev/godwit/controller",
            "spiffe://Godwit.dev/godwit/controller",
            "https://godwit.dev/godwit/controller",
            "",
            &long,
        ] {
            assert_eq!(
                PeerIdentity::of_uri(uri, &domain),
                Err(IdentityError::OtherName(domain.clone())),
                "{uri}"
            );
        }
    }

    #[test]
    fn an_identity_reads_its_own_uri_in_its_own_trust_domain_only() {
        let [ours, theirs] = ["prod.example", "test.example"].map(|name| TrustDomain::new(name).unwrap());
        for identity in [
            PeerIdentity::Controller,
            PeerIdentity::Host("n1.example".to_owned()),
        ] {
            let uri = identity.uri(&ours);
            assert_eq!(PeerIdentity::of_uri(&uri, &ours).unwrap(), identity);
            assert!(PeerIdentity::of_uri(&uri, &theirs).is_err(), "{uri}");
        }
    }

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
    fn a_certificate_has_exactly_one_uri() {
        let domain = TrustDomain::default();
        let read = |uris: &[&str]| PeerIdentity::of_certificate(&certificate(uris), &domain);
        let ours = "spiffe://godwit.dev/godwit/host/a";
        assert_eq!(read(&[ours]), Ok(PeerIdentity::Host("a".into())));
        assert_eq!(read(&[]), Err(IdentityError::NoName));
        assert_eq!(read(&[ours, ours]), Err(IdentityError::SeveralNames));
        assert_eq!(
            read(&[ours, "https://example.org"]),
            Err(IdentityError::SeveralNames)
        );
        assert_eq!(
            read(&["https://example.org"]),
            Err(IdentityError::OtherName(domain.clone()))
        );
        assert_eq!(
            PeerIdentity::of_certificate(&CertificateDer::from(vec![0x30, 0x80, 1]), &domain),
            Err(IdentityError::Unreadable)
        );
    }

    #[test]
    fn who_may_call_what() {
        let host = PeerIdentity::Host("node-a".to_owned());
        for rpc in Rpc::ALL {
            assert!(authorise(&PeerIdentity::Controller, rpc).is_ok(), "{rpc:?}");
            match authorise(&host, rpc) {
                Ok(()) => assert!(![Rpc::StartGuest, Rpc::StopGuest].contains(&rpc), "{rpc:?}"),
                Err(fault) => {
                    assert!([Rpc::StartGuest, Rpc::StopGuest].contains(&rpc), "{rpc:?}");
                    assert_eq!(
                        (fault.category, fault.reason.as_ref()),
                        (Category::Forbidden, reason::NOT_ALLOWED)
                    );
                    assert!(fault.message.contains("node-a"), "{}", fault.message);
                }
            }
        }
    }

    #[test]
    fn paths_mean_calls() {
        for rpc in Rpc::ALL {
            assert_eq!(
                Rpc::of_path(&format!("/godwit.agent.v1.Agent/{}", rpc.name())),
                Some(rpc)
            );
        }
        for path in [
            "/",
            "",
            "/godwit.agent.v1.Agent/",
            "/godwit.agent.v1.Agent/hello",
            "/other.Agent/Hello",
        ] {
            assert_eq!(Rpc::of_path(path), None, "{path}");
        }
    }
}
