//! What a PKCS #10 request says: its key, proven to be the requester's, and the names it asks for.

use k8s_openapi::ByteString;
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry;
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

/// The largest request that is looked at, in bytes: far more than one key and one name.
const LARGEST: usize = 16 * 1024;

/// A request whose signature proves that the requester has the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requested {
    /// The public key (SubjectPublicKeyInfo, DER).
    pub key: Vec<u8>,
    /// Whether the key is of a kind that certificates are issued for.
    pub key_kind: KeyKind,
    /// The names in its subject alternative names.
    pub names: Vec<Name>,
    /// Whether it asks for anything but names.
    pub more: bool,
}

/// The kind of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA over P-256 or P-384, or Ed25519.
    Allowed,
    /// Anything else: its object identifier.
    Other(String),
}

/// A name that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// A URI.
    Uri(String),
    /// A name of another kind, in words.
    Other(String),
}

/// Why a request cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not PEM, or more than one request.
    #[error("it does not hold exactly one CERTIFICATE REQUEST in PEM form")]
    NotOne,
    /// Larger than any request for one key and one name.
    #[error("it has more than {LARGEST} bytes")]
    TooLarge,
    /// Not a PKCS #10 request.
    #[error("it cannot be read as a PKCS #10 request")]
    Unreadable,
    /// Signed with another key.
    #[error("its signature does not prove that the requester has the key")]
    NoProof,
}

impl Requested {
    /// Reads PEM.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn of_pem(text: &ByteString) -> Result<Self, RequestError> {
        if text.0.len() > LARGEST {
            return Err(RequestError::TooLarge);
        }
        let found: Result<Vec<_>, _> = CertificateSigningRequestDer::pem_slice_iter(&text.0).collect();
        match found.as_deref() {
            Ok([one]) => Self::of_der(one),
            Ok(_) | Err(_) => Err(RequestError::NotOne),
        }
    }

    /// Reads DER.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn of_der(der: &[u8]) -> Result<Self, RequestError> {
        if der.len() > LARGEST {
            return Err(RequestError::TooLarge);
        }
        let (rest, request) =
            X509CertificationRequest::from_der(der).map_err(|_| RequestError::Unreadable)?;
        if !rest.is_empty() {
            return Err(RequestError::Unreadable);
        }
        request.verify_signature().map_err(|_| RequestError::NoProof)?;
        let (mut names, mut more) = (Vec::new(), false);
        for extension in request.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(alternative) = extension {
                names.extend(alternative.general_names.iter().map(name));
            } else {
                more = true;
            }
        }
        let key = &request.certification_request_info.subject_pki;
        Ok(Self {
            key: key.raw.to_vec(),
            key_kind: kind(key),
            names,
            more,
        })
    }
}

fn name(name: &GeneralName<'_>) -> Name {
    if let GeneralName::URI(uri) = name {
        Name::Uri((*uri).to_owned())
    } else {
        Name::Other(name.to_string())
    }
}

fn kind(key: &SubjectPublicKeyInfo<'_>) -> KeyKind {
    let algorithm = &key.algorithm.algorithm;
    let curve = key
        .algorithm
        .parameters
        .as_ref()
        .and_then(|parameters| parameters.as_oid().ok());
    let allowed = if *algorithm == oid_registry::OID_KEY_TYPE_EC_PUBLIC_KEY {
        curve.is_some_and(|curve| {
            curve == oid_registry::OID_EC_P256 || curve == oid_registry::OID_NIST_EC_P384
        })
    } else {
        *algorithm == oid_registry::OID_SIG_ED25519
    };
    if allowed {
        KeyKind::Allowed
    } else {
        KeyKind::Other(algorithm.to_id_string())
    }
}
