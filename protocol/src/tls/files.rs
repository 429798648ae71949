//! Reads authorities, chain and key from files, with errors that name the file.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{Credentials, Pem, PemCredentials, TlsError};
use crate::identity::TrustDomain;

/// Far more than any bundle of certificates.
const LARGEST: u64 = 1024 * 1024;

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

impl TlsFiles {
    /// Reads what the files hold now. Nothing is judged yet.
    ///
    /// # Errors
    /// [`TlsError::Unreadable`] or [`TlsError::TooLarge`].
    pub fn read(&self) -> Result<PemCredentials, TlsError> {
        Ok(PemCredentials {
            authorities: read(&self.authorities)?,
            chain: read(&self.chain)?,
            key: read(&self.key)?,
        })
    }

    /// Reads the files and puts together what they hold.
    ///
    /// # Errors
    /// [`TlsError`], which names the file at fault.
    pub fn load(&self, domain: &TrustDomain) -> Result<Credentials, TlsError> {
        Credentials::of_pem(self.read()?, domain)
    }
}

fn read(path: &Path) -> Result<Pem, TlsError> {
    let unreadable = |source| TlsError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mut text = Vec::new();
    File::open(path)
        .map_err(unreadable)?
        .take(LARGEST + 1)
        .read_to_end(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > LARGEST {
        return Err(TlsError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(Pem {
        origin: path.display().to_string(),
        text,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::identity::PeerIdentity;

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

    const HOST: Option<&str> = Some("spiffe://godwit.dev/godwit/host/a");

    fn load(written: &Written) -> Result<Credentials, TlsError> {
        written.files.load(&TrustDomain::default())
    }

    fn refusal(written: &Written) -> String {
        load(written).unwrap_err().to_string()
    }

    #[test]
    fn good_files_say_who_this_program_is() {
        let credentials = load(&written(HOST)).unwrap();
        assert_eq!(credentials.identity(), &PeerIdentity::Host("a".to_owned()));
        // The first and last dates that the library which made the certificate knows: 1975 and 4096.
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(credentials.valid_from(), at(157_766_400));
        assert_eq!(credentials.valid_until(), at(67_090_118_400));
        assert!(credentials.check_dates(SystemTime::now()).is_ok());
        assert!(matches!(
            credentials.check_dates(at(157_766_399)),
            Err(TlsError::NotYetValid { seconds: 1, .. })
        ));
        assert!(matches!(
            credentials.check_dates(at(67_090_118_400)),
            Err(TlsError::Expired { seconds: 0, .. })
        ));
    }

    #[test]
    fn another_trust_domain_is_refused() {
        let domain = TrustDomain::new("example.org").unwrap();
        let words = written(HOST).files.load(&domain).unwrap_err().to_string();
        assert!(words.contains("cannot be this program's"), "{words}");
    }

    #[test]
    fn two_authorities_are_both_taken_and_each_must_be_one() {
        let (written, other) = (written(HOST), written(HOST));
        let read = |path| std::fs::read_to_string(path).unwrap();
        let two = read(&written.files.authorities) + &read(&other.files.authorities);
        std::fs::write(&written.files.authorities, &two).unwrap();
        assert!(load(&written).is_ok());
        let torn = two.split_at(two.len() - 100).0;
        std::fs::write(&written.files.authorities, torn).unwrap();
        assert!(refusal(&written).contains("no certificate"));
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
