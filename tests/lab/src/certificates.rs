//! Certificates for a run: an authority of its own, and what it issues.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

/// The identity of an agent, as it stands in its certificate.
#[must_use]
pub fn host_identity(host: &str) -> String {
    format!("spiffe://godwit.dev/godwit/host/{host}")
}

/// The identity of the controller, as it stands in its certificate.
pub const CONTROLLER_IDENTITY: &str = "spiffe://godwit.dev/godwit/controller";

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    key: String,
}

/// Whom a certificate names.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// The common name: Kubernetes' user name.
    pub common_name: String,
    /// Kubernetes' group; none when empty.
    pub organization: String,
    /// URIs: godwit's identities.
    pub uris: Vec<String>,
    /// DNS names.
    pub names: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// How long it holds from now on; left out, for as long as anything does.
    pub lasts: Option<Duration>,
    /// Whether its key may encrypt other keys. With TLS 1.3 none is, but libvirt accepts no certificate without it.
    pub encrypts_keys: bool,
}

/// The files of one certificate.
#[derive(Clone, Debug)]
pub struct Files {
    /// The authority's certificate.
    pub authority: PathBuf,
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

impl Authority {
    /// Makes an authority.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let key = KeyPair::generate().context("make an authority's key")?;
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, name);
        parameters.distinguished_name = subject;
        let certificate = parameters
            .self_signed(&key)
            .context("sign an authority's certificate")?
            .pem();
        let pem = key.serialize_pem();
        Ok(Self {
            issuer: Issuer::new(parameters, key),
            certificate,
            key: pem,
        })
    }

    /// The authority's certificate, as PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The authority's key, as PEM: the control plane signs with it too.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Issues a certificate for use by clients and servers.
    ///
    /// # Errors
    /// When a name is not one that a certificate can hold.
    pub fn issue(&self, subject: &Subject) -> anyhow::Result<Issued> {
        let mut parameters = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, subject.common_name.as_str());
        if !subject.organization.is_empty() {
            name.push(DnType::OrganizationName, subject.organization.as_str());
        }
        parameters.distinguished_name = name;
        parameters.use_authority_key_identifier_extension = true;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if subject.encrypts_keys {
            parameters.key_usages.push(KeyUsagePurpose::KeyEncipherment);
        }
        parameters.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        for uri in &subject.uris {
            parameters
                .subject_alt_names
                .push(SanType::URI(uri.as_str().try_into()?));
        }
        for name in &subject.names {
            parameters
                .subject_alt_names
                .push(SanType::DnsName(name.as_str().try_into()?));
        }
        for address in &subject.addresses {
            parameters.subject_alt_names.push(SanType::IpAddress(*address));
        }
        if let Some(lasts) = subject.lasts {
            parameters.not_after = (SystemTime::now() + lasts).into();
        }
        let key = KeyPair::generate().context("make a key")?;
        let certificate = parameters
            .signed_by(&key, &self.issuer)
            .context("sign a certificate")?;
        Ok(Issued {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Issues a certificate and writes `ca.crt`, `tls.crt` and `tls.key` into a directory.
    ///
    /// # Errors
    /// When it cannot be issued or written.
    pub fn write(&self, directory: &Path, subject: &Subject) -> anyhow::Result<Files> {
        let issued = self.issue(subject)?;
        std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        let files = Files {
            authority: directory.join("ca.crt"),
            certificate: directory.join("tls.crt"),
            key: directory.join("tls.key"),
        };
        write_secret(&files.authority, &self.certificate)?;
        write_secret(&files.certificate, &issued.certificate)?;
        write_secret(&files.key, &issued.key)?;
        Ok(files)
    }

    /// The certificate of a host's agent, at an address.
    ///
    /// # Errors
    /// As [`Authority::write`].
    pub fn write_host(&self, directory: &Path, host: &str, address: IpAddr) -> anyhow::Result<Files> {
        self.write(
            directory,
            &Subject {
                common_name: host.to_owned(),
                uris: vec![host_identity(host)],
                names: vec![host.to_owned()],
                addresses: vec![address],
                ..Subject::default()
            },
        )
    }

    /// The controller's certificate.
    ///
    /// # Errors
    /// As [`Authority::write`].
    pub fn write_controller(&self, directory: &Path) -> anyhow::Result<Files> {
        self.write(
            directory,
            &Subject {
                common_name: "godwit-controller".to_owned(),
                uris: vec![CONTROLLER_IDENTITY.to_owned()],
                ..Subject::default()
            },
        )
    }
}

/// Writes a file that only its owner may read.
///
/// # Errors
/// When it cannot be written.
pub fn write_secret(path: &Path, content: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let write = || {
        std::fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(path)?
            .write_all(content.as_bytes())
    };
    write().with_context(|| format!("write {}", path.display()))
}
