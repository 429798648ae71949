//! Faults: what travels as a gRPC status, for programs and for people.

use std::borrow::Cow;
use std::error::Error as StdError;

use prost::Message;
use tonic::metadata::{BinaryMetadataValue, MetadataMap};
use tonic::{Code, Status};

use crate::{reason, wire};

/// The metadata key under which an `ErrorDetail` travels.
pub const DETAIL_KEY: &str = "godwit-error-bin";

/// The longest message of a fault, in bytes; a longer one is cut.
pub const LONGEST_MESSAGE: usize = 2048;

/// The longest reason of a fault, in bytes.
const LONGEST_REASON: usize = 64;

/// What kind of fault it is: decides whether to try again, and labels metrics and events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Category {
    /// The request is wrong and will stay so.
    Invalid,
    /// The caller may not, or is not who it should be.
    Forbidden,
    /// The host is not in a state to do it, or cannot be reached; it may be later.
    Unavailable,
    /// The host lacks something: memory, a port, a CPU model, a file.
    Lacking,
    /// The order comes too late, or under an old epoch or other terms.
    Conflict,
    /// The other side speaks another protocol version.
    Version,
    /// A fault of the program or the host.
    Internal,
}

impl Category {
    /// Every category, for tables.
    pub const ALL: [Self; 7] = [
        Self::Invalid,
        Self::Forbidden,
        Self::Unavailable,
        Self::Lacking,
        Self::Conflict,
        Self::Version,
        Self::Internal,
    ];

    /// Whether a side that answers so is one that will not talk to us at all, however often it is asked.
    pub fn bars_the_caller(self) -> bool {
        match self {
            Self::Forbidden | Self::Version => true,
            Self::Invalid | Self::Unavailable | Self::Lacking | Self::Conflict | Self::Internal => false,
        }
    }

    /// The word for metrics and events.
    pub fn label(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Forbidden => "forbidden",
            Self::Unavailable => "unavailable",
            Self::Lacking => "lacking",
            Self::Conflict => "conflict",
            Self::Version => "version",
            Self::Internal => "internal",
        }
    }

    /// The gRPC code under which it travels, for programs that know nothing of godwit.
    pub fn code(self) -> Code {
        match self {
            Self::Invalid => Code::InvalidArgument,
            Self::Forbidden => Code::PermissionDenied,
            Self::Unavailable => Code::Unavailable,
            Self::Lacking => Code::ResourceExhausted,
            Self::Conflict => Code::Aborted,
            Self::Version => Code::FailedPrecondition,
            Self::Internal => Code::Internal,
        }
    }

    fn to_wire(self) -> wire::ErrorCategory {
        match self {
            Self::Invalid => wire::ErrorCategory::Invalid,
            Self::Forbidden => wire::ErrorCategory::Forbidden,
            Self::Unavailable => wire::ErrorCategory::Unavailable,
            Self::Lacking => wire::ErrorCategory::Lacking,
            Self::Conflict => wire::ErrorCategory::Conflict,
            Self::Version => wire::ErrorCategory::Version,
            Self::Internal => wire::ErrorCategory::Internal,
        }
    }

    fn from_wire(value: i32) -> Option<Self> {
        match wire::ErrorCategory::try_from(value).ok()? {
            wire::ErrorCategory::Unspecified => None,
            wire::ErrorCategory::Invalid => Some(Self::Invalid),
            wire::ErrorCategory::Forbidden => Some(Self::Forbidden),
            wire::ErrorCategory::Unavailable => Some(Self::Unavailable),
            wire::ErrorCategory::Lacking => Some(Self::Lacking),
            wire::ErrorCategory::Conflict => Some(Self::Conflict),
            wire::ErrorCategory::Version => Some(Self::Version),
            wire::ErrorCategory::Internal => Some(Self::Internal),
        }
    }
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// What kind of fault it is.
    pub category: Category,
    /// A stable CamelCase word of the table in `docs/conditions.md`.
    pub reason: Cow<'static, str>,
    /// What happened and what to do; at most [`LONGEST_MESSAGE`] bytes.
    pub message: String,
}

impl Fault {
    /// A fault. A message that is too long is cut.
    pub fn new(category: Category, reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self {
            category,
            reason: reason.into(),
            message: bounded(message.into()),
        }
    }

    /// The other side could not be reached, or was lost on the way.
    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self::new(Category::Unavailable, reason::AGENT_UNREACHABLE, message)
    }

    /// A certificate was refused, ours or theirs.
    pub(crate) fn certificate(message: impl Into<String>) -> Self {
        Self::new(Category::Forbidden, reason::CERTIFICATE_REJECTED, message)
    }

    /// What an error of the transport means: a refused certificate anywhere in its causes is named as such.
    pub fn from_transport(error: &(dyn StdError + 'static)) -> Self {
        match certificate_fault(error) {
            Some(words) => Self::certificate(words),
            None => Self::unreachable(chain(error)),
        }
    }
}

/// The error and its causes in one line, without repetitions.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !words.contains(&more) {
            words.push_str(": ");
            words.push_str(&more);
        }
        next = cause.source();
    }
    words
}

/// Looks through the causes for a refusal of a certificate.
fn certificate_fault(error: &(dyn StdError + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
            return certificate_words(tls);
        }
        // An I/O error shows its inner error only through `get_ref`; `source` skips it.
        if let Some(io) = cause.downcast_ref::<std::io::Error>()
            && let Some(inner) = io.get_ref()
            && let Some(words) = certificate_fault(inner)
        {
            return Some(words);
        }
        next = cause.source();
    }
    None
}

#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "the enums belong to rustls and may grow; what is not about a certificate is a transport fault"
)]
fn certificate_words(error: &rustls::Error) -> Option<String> {
    use rustls::AlertDescription as Alert;
    match error {
        // Our own judgement of names, in its own words.
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(why)) => {
            Some(format!("The other side's certificate was refused: {}", why.0))
        }
        rustls::Error::InvalidCertificate(why) => {
            Some(format!("The other side's certificate was refused: {why}"))
        }
        rustls::Error::NoCertificatesPresented => Some("The other side showed no certificate".to_owned()),
        rustls::Error::AlertReceived(
            alert @ (Alert::NoCertificate
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError
            | Alert::CertificateRequired),
        ) => Some(format!(
            "The other side refused this program's certificate: {alert:?}"
        )),
        _ => None,
    }
}

/// Cuts a text to [`LONGEST_MESSAGE`] bytes at a character's border.
fn bounded(mut text: String) -> String {
    if text.len() > LONGEST_MESSAGE {
        let mut end = LONGEST_MESSAGE - '…'.len_utf8();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

impl From<Fault> for Status {
    fn from(fault: Fault) -> Self {
        let message = bounded(fault.message);
        let detail = wire::ErrorDetail {
            category: fault.category.to_wire().into(),
            reason: fault.reason.into_owned(),
            message: message.clone(),
        };
        let mut metadata = MetadataMap::new();
        metadata.insert_bin(
            DETAIL_KEY,
            BinaryMetadataValue::from_bytes(&detail.encode_to_vec()),
        );
        Self::with_metadata(fault.category.code(), message, metadata)
    }
}

impl From<Status> for Fault {
    fn from(status: Status) -> Self {
        from_detail(&status).unwrap_or_else(|| without_detail(&status))
    }
}

fn from_detail(status: &Status) -> Option<Fault> {
    let bytes = status.metadata().get_bin(DETAIL_KEY)?.to_bytes().ok()?;
    let detail = wire::ErrorDetail::decode(bytes).ok()?;
    let category = Category::from_wire(detail.category)?;
    let word = detail.reason;
    let stable =
        !word.is_empty() && word.len() <= LONGEST_REASON && word.chars().all(|c| c.is_ascii_alphanumeric());
    stable.then(|| Fault::new(category, word, detail.message))
}

/// A status that no godwit program wrote: the transport's own, or a stranger's.
fn without_detail(status: &Status) -> Fault {
    let words = match status.source() {
        Some(cause) => match certificate_fault(cause) {
            Some(words) => return Fault::certificate(words),
            None => format!("{}: {}", status.message(), chain(cause)),
        },
        None => status.message().to_owned(),
    };
    match status.code() {
        Code::Ok | Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
            Fault::unreachable(words)
        }
        Code::Unimplemented => Fault::new(Category::Version, reason::PROTOCOL_VERSION_UNSUPPORTED, words),
        Code::PermissionDenied | Code::Unauthenticated => {
            Fault::new(Category::Forbidden, reason::NOT_ALLOWED, words)
        }
        Code::InvalidArgument | Code::OutOfRange => {
            Fault::new(Category::Invalid, reason::INTERNAL_ERROR, words)
        }
        Code::NotFound
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Internal
        | Code::DataLoss => Fault::new(Category::Internal, reason::INTERNAL_ERROR, words),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;

    #[test]
    fn every_category_survives_the_wire() {
        for category in Category::ALL {
            let fault = Fault::new(category, "PortsExhausted", "No port is free; widen the range");
            let status = Status::from(fault.clone());
            assert_eq!(status.code(), category.code());
            assert_eq!(Fault::from(status), fault);
        }
    }

    #[test]
    fn labels_and_codes_are_one_to_one() {
        let labels: std::collections::BTreeSet<_> = Category::ALL.iter().map(|c| c.label()).collect();
        let codes: std::collections::BTreeSet<_> =
            Category::ALL.iter().map(|c| i32::from(c.code())).collect();
        assert_eq!((labels.len(), codes.len()), (7, 7));
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let fault = Fault::new(
            Category::Internal,
            reason::INTERNAL_ERROR,
            "ä".repeat(LONGEST_MESSAGE),
        );
        assert!(fault.message.len() <= LONGEST_MESSAGE);
        assert!(fault.message.ends_with("ä…"));
        let exact = "x".repeat(LONGEST_MESSAGE);
        assert_eq!(
            Fault::new(Category::Internal, reason::INTERNAL_ERROR, exact.clone()).message,
            exact
        );
    }

    #[test]
    fn a_lost_connection_is_an_unreachable_agent() {
        let fault = Fault::from(Status::unavailable("tcp connect error"));
        assert_eq!(
            (fault.category, fault.reason.as_ref()),
            (Category::Unavailable, reason::AGENT_UNREACHABLE)
        );
    }

    #[test]
    fn a_refused_certificate_is_found_under_an_io_error() {
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
        let io = std::io::Error::new(std::io::ErrorKind::InvalidData, tls);
        assert_eq!(Fault::from_transport(&io).reason, reason::CERTIFICATE_REJECTED);
        let status = Status::from_error(Box::new(io));
        assert_eq!(Fault::from(status).reason, reason::CERTIFICATE_REJECTED);
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::ProtocolVersion);
        let io = std::io::Error::new(std::io::ErrorKind::InvalidData, alert);
        assert_eq!(Fault::from_transport(&io).reason, reason::AGENT_UNREACHABLE);
    }

    #[test]
    fn a_detail_that_is_not_ours_is_not_believed() {
        for detail in [
            wire::ErrorDetail {
                category: 0,
                reason: "Cancelled".into(),
                message: String::new(),
            },
            wire::ErrorDetail {
                category: 99,
                reason: "Cancelled".into(),
                message: String::new(),
            },
            wire::ErrorDetail {
                category: 1,
                reason: "not a word".into(),
                message: String::new(),
            },
            wire::ErrorDetail {
                category: 1,
                reason: "A".repeat(65),
                message: String::new(),
            },
            wire::ErrorDetail {
                category: 1,
                reason: String::new(),
                message: String::new(),
            },
        ] {
            let mut metadata = MetadataMap::new();
            metadata.insert_bin(
                DETAIL_KEY,
                BinaryMetadataValue::from_bytes(&detail.encode_to_vec()),
            );
            let status = Status::with_metadata(Code::Internal, "words", metadata);
            assert_eq!(
                Fault::from(status),
                Fault::new(Category::Internal, reason::INTERNAL_ERROR, "words")
            );
        }
    }

    #[test]
    fn statuses_of_strangers_have_a_place() {
        for (code, category) in [
            (Code::Unimplemented, Category::Version),
            (Code::PermissionDenied, Category::Forbidden),
            (Code::OutOfRange, Category::Invalid),
            (Code::DeadlineExceeded, Category::Unavailable),
            (Code::Internal, Category::Internal),
        ] {
            assert_eq!(Fault::from(Status::new(code, "x")).category, category);
        }
    }
}
