//! Reads authorities, chain and key from PEM files, with errors that name the file.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Material, TlsError, TlsFiles};
use crate::identity::{IdentityError, PeerIdentity};

/// Far more than any bundle of certificates.
const LARGEST: u64 = 1024 * 1024;

pub(super) fn read(files: &TlsFiles, provider: &CryptoProvider) -> Result<Material, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(&files.authorities)? {
        roots.add(authority).map_err(|source| TlsError::Authority {
            path: files.authorities.clone(),
            source,
        })?;
    }
    let chain = certificates(&files.chain)?;
    let leaf = chain
        .first()
        .ok_or_else(|| missing(&files.chain, "certificate"))?;
    let identity = PeerIdentity::of_certificate(leaf).map_err(|source| TlsError::Identity {
        path: files.chain.clone(),
        source,
    })?;
    let expires = expiry(leaf).ok_or_else(|| TlsError::Identity {
        path: files.chain.clone(),
        source: IdentityError::Unreadable,
    })?;
    let key =
        PrivateKeyDer::from_pem_slice(&bytes(&files.key)?).map_err(|_| missing(&files.key, "private key"))?;
    let own = CertifiedKey::from_der(chain, key, provider).map_err(|source| TlsError::Key {
        key: files.key.clone(),
        chain: files.chain.clone(),
        source,
    })?;
    Ok(Material {
        roots: Arc::new(roots),
        own: Arc::new(own),
        identity,
        expires,
    })
}

/// When a certificate has run out.
fn expiry(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    // A time before 1970 has passed as well as that instant has.
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

fn missing(path: &Path, expected: &'static str) -> TlsError {
    TlsError::Missing {
        path: path.to_owned(),
        expected,
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes(path)?).collect();
    match found {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) | Err(_) => Err(missing(path, "certificate")),
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |source| TlsError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mut content = Vec::new();
    File::open(path)
        .map_err(unreadable)?
        .take(LARGEST + 1)
        .read_to_end(&mut content)
        .map_err(unreadable)?;
    if content.len() as u64 > LARGEST {
        return Err(TlsError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(content)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;
    use crate::tls::{ClientTls, ServerTls};

    struct Written {
        _directory: tempfile::TempDir,
        files: TlsFiles,
    }

    fn written(uri: Option<&str>) -> Written {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        if let Some(uri) = uri {
            parameters
                .subject_alt_names
                .push(rcgen::SanType::URI(uri.try_into().unwrap()));
        }
        let certificate = parameters.self_signed(&key).unwrap().pem();
        let directory = tempfile::tempdir().unwrap();
        let files = TlsFiles {
            authorities: directory.path().join("authorities.pem"),
            chain: directory.path().join("chain.pem"),
            key: directory.path().join("key.pem"),
        };
        std::fs::write(&files.authorities, &certificate).unwrap();
        std::fs::write(&files.chain, &certificate).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        Written {
            _directory: directory,
            files,
        }
    }

    const HOST: Option<&str> = Some("spiffe://godwit.dev/host/a");

    fn refusal(written: &Written) -> String {
        let server = ServerTls::load(&written.files).unwrap_err().to_string();
        let client = ClientTls::load(&written.files).unwrap_err().to_string();
        assert_eq!(server, client);
        server
    }

    #[test]
    fn good_files_say_who_this_program_is() {
        let written = written(HOST);
        let expected = PeerIdentity::Host("a".to_owned());
        assert_eq!(ServerTls::load(&written.files).unwrap().identity(), &expected);
        assert_eq!(ClientTls::load(&written.files).unwrap().identity(), &expected);
        // The last date that the library which made the certificate knows: the first of January 4096.
        let expires = ServerTls::load(&written.files).unwrap().expires();
        assert_eq!(
            expires,
            SystemTime::UNIX_EPOCH + Duration::from_secs(67_090_118_400)
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let written = written(HOST);
        std::fs::remove_file(&written.files.key).unwrap();
        let words = refusal(&written);
        assert!(
            words.contains("Cannot read") && words.contains("key.pem"),
            "{words}"
        );
    }

    #[test]
    fn a_file_without_a_certificate_is_named() {
        let written = written(HOST);
        std::fs::write(&written.files.authorities, "not PEM").unwrap();
        let words = refusal(&written);
        assert!(
            words.contains("no certificate") && words.contains("authorities.pem"),
            "{words}"
        );
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let written = written(HOST);
        std::fs::write(
            &written.files.key,
            rcgen::KeyPair::generate().unwrap().serialize_pem(),
        )
        .unwrap();
        let words = refusal(&written);
        assert!(
            words.contains("key.pem") && words.contains("chain.pem"),
            "{words}"
        );
    }

    #[test]
    fn a_certificate_that_names_nobody_is_refused_at_the_start() {
        for uri in [None, Some("https://example.org")] {
            let words = refusal(&written(uri));
            assert!(words.contains("cannot be this program's"), "{words}");
        }
    }

    #[test]
    fn a_huge_file_is_not_read() {
        let written = written(HOST);
        std::fs::write(&written.files.chain, vec![b'x'; 1024 * 1024 + 1]).unwrap();
        assert!(refusal(&written).contains("1 MiB"));
    }
}
