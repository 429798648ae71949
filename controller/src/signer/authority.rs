//! The authority's certificate and key, and what is issued with them.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use godwit_protocol::{PeerIdentity, TrustDomain};
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

/// By how much a certificate begins in the past, so that a host whose clock is a little slow believes it. The API
/// server takes up to five minutes.
const BEGINS_BEFORE: Duration = Duration::from_secs(60);
/// Far more than any bundle of roots.
const LARGEST: u64 = 1024 * 1024;

/// Where the authority lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityFiles {
    /// The certificate that issues, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Further roots that are published beside it: the next one before it issues, the last one after it has. The
    /// file may be empty or missing.
    pub roots: Option<PathBuf>,
}

/// An authority that can issue.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ends: SystemTime,
    roots: String,
}

/// Why an authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} does not hold {expected}", path.display())]
    Missing {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// The key is another certificate's.
    #[error("the key in {} is not that of the certificate in {}", key.display(), certificate.display())]
    OtherKey {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// It is outside its dates.
    #[error("the certificate in {} is outside its dates", path.display())]
    Dates {
        /// Which.
        path: PathBuf,
    },
}

/// Why a certificate is not issued now. None of it lies in the request.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The authority would end before the certificate.
    #[error("the authority's own certificate ends too soon: no certificate of {} s fits in", shortest.as_secs())]
    AuthorityEnds {
        /// The shortest life that would do.
        shortest: Duration,
    },
    /// The library.
    #[error("the certificate cannot be made")]
    Library(#[from] rcgen::Error),
}

/// A certificate that was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// PEM.
    pub pem: String,
    /// Its first second.
    pub from: SystemTime,
    /// Its last second.
    pub until: SystemTime,
}

impl Authority {
    /// Reads the files.
    ///
    /// # Errors
    /// [`AuthorityError`], which names the file.
    pub fn load(files: &AuthorityFiles, now: SystemTime) -> Result<Self, AuthorityError> {
        let text = read(&files.certificate)?;
        let certificates = certificates(&files.certificate, &text)?;
        let missing = |path: &Path, expected| AuthorityError::Missing {
            path: path.to_owned(),
            expected,
        };
        let [certificate] = certificates.as_slice() else {
            return Err(missing(&files.certificate, "exactly one certificate"));
        };
        let unusable = || missing(&files.certificate, "an authority's certificate");
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| unusable())?;
        if !parsed.is_ca() {
            return Err(unusable());
        }
        let validity = parsed.validity();
        let (begins, ends) = (
            at(validity.not_before.timestamp()),
            at(validity.not_after.timestamp()),
        );
        if now < begins || now >= ends {
            return Err(AuthorityError::Dates {
                path: files.certificate.clone(),
            });
        }
        let key_text = read(&files.key)?;
        let key = KeyPair::from_pem(&key_text).map_err(|_| missing(&files.key, "a private key"))?;
        if key.subject_public_key_info() != parsed.public_key().raw {
            return Err(AuthorityError::OtherKey {
                key: files.key.clone(),
                certificate: files.certificate.clone(),
            });
        }
        let mut roots = text.trim_end().to_owned() + "\n";
        if let Some(path) = &files.roots {
            let further = match read(path) {
                Err(AuthorityError::Unreadable { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound =>
                {
                    String::new()
                }
                read => read?,
            };
            if !further.trim().is_empty() {
                for other in self::certificates(path, &further)? {
                    // The API server takes no bundle in which one stands twice.
                    if other != *certificate {
                        roots.push_str(&pem(&other));
                    }
                }
            }
        }
        let issuer = Issuer::from_ca_cert_der(certificate, key).map_err(|_| unusable())?;
        Ok(Self { issuer, ends, roots })
    }

    /// Every root to be published, PEM, the issuing one first.
    pub fn roots(&self) -> &str {
        &self.roots
    }

    /// Issues a certificate for a key, from a minute ago on: `longest` if the authority itself lasts that long, and at
    /// least `shortest`.
    ///
    /// # Errors
    /// [`IssueError`].
    pub fn issue(
        &self,
        identity: &PeerIdentity,
        domain: &TrustDomain,
        key: &[u8],
        (shortest, longest): (Duration, Duration),
        now: SystemTime,
    ) -> Result<Certificate, IssueError> {
        let key = SubjectPublicKeyInfo::from_der(key)?;
        let from = whole_seconds(now - BEGINS_BEFORE);
        let until = (from + longest).min(self.ends);
        if until < from + shortest {
            return Err(IssueError::AuthorityEnds { shortest });
        }
        let mut parameters = CertificateParams::default();
        // The name stands in the URI alone.
        parameters.distinguished_name = DistinguishedName::new();
        parameters.subject_alt_names = vec![SanType::URI(identity.uri(domain).try_into()?)];
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        parameters.use_authority_key_identifier_extension = true;
        parameters.not_before = from.into();
        parameters.not_after = until.into();
        Ok(Certificate {
            pem: parameters.signed_by(&key, &self.issuer)?.pem(),
            from,
            until,
        })
    }
}

fn at(timestamp: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(timestamp).unwrap_or(0))
}

fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

fn read(path: &Path) -> Result<String, AuthorityError> {
    use std::io::Read as _;
    let unreadable = |source| AuthorityError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    std::fs::File::open(path)
        .map_err(unreadable)?
        .take(LARGEST)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    Ok(text)
}

fn certificates(path: &Path, text: &str) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| AuthorityError::Missing {
            path: path.to_owned(),
            expected: "certificates in PEM form",
        })
}

/// A certificate in PEM form: 64 characters a line, as the API server wants it.
fn pem(certificate: &CertificateDer<'_>) -> String {
    // Kubernetes' own type for bytes is written in base64.
    let base64 = match serde_json::to_value(k8s_openapi::ByteString(certificate.to_vec())) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(_) | Err(_) => String::new(),
    };
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for (index, character) in base64.chars().enumerate() {
        if index > 0 && index.is_multiple_of(64) {
            text.push('\n');
        }
        text.push(character);
    }
    text.push_str("\n-----END CERTIFICATE-----\n");
    text
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use rcgen::{BasicConstraints, IsCa};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    struct Written {
        directory: tempfile::TempDir,
    }

    impl Written {
        fn new() -> Self {
            let written = Self {
                directory: tempfile::tempdir().unwrap(),
            };
            written.authority("ca", IsCa::Ca(BasicConstraints::Unconstrained), 2090);
            written
        }

        fn authority(&self, name: &str, is_ca: IsCa, until: i32) {
            let key = KeyPair::generate().unwrap();
            let mut parameters = CertificateParams::default();
            parameters.is_ca = is_ca;
            parameters.not_after = rcgen::date_time_ymd(until, 1, 1);
            let certificate = parameters.self_signed(&key).unwrap();
            std::fs::write(self.path(name, "crt"), certificate.pem()).unwrap();
            std::fs::write(self.path(name, "key"), key.serialize_pem()).unwrap();
        }

        fn path(&self, name: &str, suffix: &str) -> PathBuf {
            self.directory.path().join(format!("{name}.{suffix}"))
        }

        fn files(&self) -> AuthorityFiles {
            AuthorityFiles {
                certificate: self.path("ca", "crt"),
                key: self.path("ca", "key"),
                roots: None,
            }
        }

        fn load(&self, files: &AuthorityFiles) -> Result<Authority, AuthorityError> {
            Authority::load(files, SystemTime::now())
        }
    }

    #[test]
    fn a_certificate_names_one_identity_and_holds_as_long_as_it_was_asked_for() {
        let written = Written::new();
        let authority = written.load(&written.files()).unwrap();
        let key = KeyPair::generate().unwrap();
        let (host, domain) = (PeerIdentity::Host("a".to_owned()), TrustDomain::default());
        let now = SystemTime::now();
        let spki = key.subject_public_key_info();
        let issued = authority.issue(&host, &domain, &spki, (HOUR, HOUR), now).unwrap();
        assert_eq!(issued.until.duration_since(issued.from).unwrap(), HOUR);
        let der = CertificateDer::from_pem_slice(issued.pem.as_bytes()).unwrap();
        assert_eq!(PeerIdentity::of_certificate(&der, &domain).unwrap(), host);
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        assert_eq!(parsed.public_key().raw, spki);
        assert!(!parsed.is_ca());
        assert_eq!(at(parsed.validity().not_before.timestamp()), issued.from);
        assert_eq!(at(parsed.validity().not_after.timestamp()), issued.until);
        let usage = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && usage.client_auth && !usage.any);
    }

    #[test]
    fn nothing_outlives_the_authority() {
        let written = Written::new();
        let authority = written.load(&written.files()).unwrap();
        let key = KeyPair::generate().unwrap().subject_public_key_info();
        let domain = TrustDomain::default();
        let issue = |now| authority.issue(&PeerIdentity::Controller, &domain, &key, (HOUR, 2 * HOUR), now);
        let short = issue(authority.ends - HOUR).unwrap();
        assert_eq!(short.until, authority.ends);
        assert!(matches!(
            issue(authority.ends - HOUR / 2),
            Err(IssueError::AuthorityEnds { .. })
        ));
    }

    #[test]
    fn further_roots_are_published_once_each_after_the_issuing_one() {
        let written = Written::new();
        written.authority("next", IsCa::Ca(BasicConstraints::Unconstrained), 2090);
        let text = |name| std::fs::read_to_string(written.path(name, "crt")).unwrap();
        std::fs::write(written.path("roots", "pem"), text("next") + &text("ca")).unwrap();
        let files = AuthorityFiles {
            roots: Some(written.path("roots", "pem")),
            ..written.files()
        };
        let roots = written.load(&files).unwrap().roots().to_owned();
        let found: Vec<_> = CertificateDer::pem_slice_iter(roots.as_bytes())
            .map(Result::unwrap)
            .collect();
        let der = |name| CertificateDer::from_pem_slice(text(name).as_bytes()).unwrap();
        assert_eq!(found, [der("ca"), der("next")]);
        // None yet, as before a first rotation.
        std::fs::write(written.path("roots", "pem"), "\n").unwrap();
        assert!(written.load(&files).is_ok());
        std::fs::remove_file(written.path("roots", "pem")).unwrap();
        assert_eq!(written.load(&files).unwrap().roots().trim(), text("ca").trim());
    }

    #[test]
    fn what_is_no_authority_is_named() {
        let written = Written::new();
        written.authority("other", IsCa::Ca(BasicConstraints::Unconstrained), 2090);
        written.authority("leaf", IsCa::ExplicitNoCa, 2090);
        written.authority("old", IsCa::Ca(BasicConstraints::Unconstrained), 2001);
        let load = |certificate: &str, key: &str| {
            let files = AuthorityFiles {
                certificate: written.path(certificate, "crt"),
                key: written.path(key, "key"),
                roots: None,
            };
            written.load(&files).map(|_| ()).unwrap_err()
        };
        assert!(matches!(load("ca", "other"), AuthorityError::OtherKey { .. }));
        assert!(matches!(load("leaf", "leaf"), AuthorityError::Missing { .. }));
        assert!(matches!(load("old", "old"), AuthorityError::Dates { .. }));
        assert!(matches!(load("none", "ca"), AuthorityError::Unreadable { .. }));
        std::fs::write(written.path("ca", "crt"), "").unwrap();
        assert!(matches!(load("ca", "ca"), AuthorityError::Missing { .. }));
    }
}
