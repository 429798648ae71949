//! Who gets a certificate: pure functions from a request to an answer.
//!
//! A refusal is for good: a kubelet does not ask again for the same pod. So only what lies in the request itself is
//! refused; whatever may pass (an authority that is missing, say) leaves the request where it is.

use std::time::Duration;

use godwit_protocol::{PeerIdentity, TrustDomain};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;

use super::objects::PodCertificateRequest;
use super::request::{KeyKind, Name, Requested};

/// What the API server writes into a request about a token that is bound to a pod: the pod's node.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// The pod's UID. A token that is bound to a node alone has none.
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// What a certificate may be used for.
const USAGES: [&str; 3] = ["digital signature", "server auth", "client auth"];
/// The shortest life that the API server lets a pod's certificate have.
pub const SHORTEST_FOR_POD: Duration = Duration::from_secs(3600);
/// The shortest life of any certificate; the API server takes no request for a shorter one.
pub const SHORTEST: Duration = Duration::from_secs(600);
/// What the API server writes where a pod's request leaves it open.
const POD_DEFAULT: Duration = Duration::from_secs(86_400);

/// By what the signer goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The trust domain of the identities that it gives out.
    pub domain: TrustDomain,
    /// The signer's name; requests for others are not its business.
    pub signer: String,
    /// The namespace of godwit's own accounts. Who may make pods or tokens in it can be any host.
    pub namespace: String,
    /// The agents' service account: its bearers become the host that their pod runs on.
    pub agent_account: String,
    /// The controller's service account.
    pub controller_account: String,
    /// The longest life of a certificate. At least [`SHORTEST_FOR_POD`].
    pub longest: Duration,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A certificate is issued.
    Issue(Grant),
    /// Never.
    Deny(Refusal),
    /// Nothing is to be done: it is for another signer, or has its answer.
    Leave,
}

/// What a certificate is issued for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Whose it is.
    pub identity: PeerIdentity,
    /// The public key (SubjectPublicKeyInfo, DER).
    pub key: Vec<u8>,
    /// How long it holds at most.
    pub lifetime: Duration,
}

/// Why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// A stable word; all are in `docs/conditions.md`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// The requester is none of godwit's accounts.
pub const ACCOUNT_NOT_KNOWN: &str = "AccountNotKnown";
/// The requester's token is not bound to a pod on a node.
pub const TOKEN_NOT_BOUND: &str = "TokenNotBound";
/// The request asks for another identity than the requester's.
pub const OTHER_IDENTITY: &str = "OtherIdentity";
/// The request cannot be read, or does not prove that the requester has the key.
pub const REQUEST_MALFORMED: &str = "RequestMalformed";
/// A key of a kind that certificates are not issued for: the word that Kubernetes has for it.
pub const UNSUPPORTED_KEY_TYPE: &str = "UnsupportedKeyType";
/// A use that certificates are not issued for.
pub const USAGE_NOT_ALLOWED: &str = "UsageNotAllowed";
/// A life that is too short.
pub const LIFETIME_NOT_ALLOWED: &str = "LifetimeNotAllowed";

/// Every reason that a refusal can have.
pub const REASONS: [&str; 7] = [
    ACCOUNT_NOT_KNOWN,
    TOKEN_NOT_BOUND,
    OTHER_IDENTITY,
    REQUEST_MALFORMED,
    UNSUPPORTED_KEY_TYPE,
    USAGE_NOT_ALLOWED,
    LIFETIME_NOT_ALLOWED,
];

fn refuse(reason: &'static str, message: impl Into<String>) -> Refusal {
    Refusal {
        reason,
        message: message.into(),
    }
}

/// The answer to a CertificateSigningRequest. What it goes by is what the API server itself wrote into it: the
/// requester's name and what its token is bound to.
pub fn signing_request(rules: &Rules, request: &CertificateSigningRequest) -> Decision {
    if request.spec.signer_name != rules.signer || is_answered(request) {
        return Decision::Leave;
    }
    judge_signing_request(rules, request).map_or_else(Decision::Deny, Decision::Issue)
}

fn is_answered(request: &CertificateSigningRequest) -> bool {
    request.status.as_ref().is_some_and(|status| {
        let certificate = status.certificate.as_ref().is_some_and(|text| !text.0.is_empty());
        let refused = status
            .conditions
            .iter()
            .flatten()
            .any(|condition| matches!(condition.type_.as_str(), "Denied" | "Failed"));
        certificate || refused
    })
}

fn judge_signing_request(rules: &Rules, request: &CertificateSigningRequest) -> Result<Grant, Refusal> {
    let spec = &request.spec;
    let username = spec.username.as_deref().unwrap_or_default();
    let account = username
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'))
        .filter(|(namespace, _)| *namespace == rules.namespace)
        .map(|(_, account)| account)
        .ok_or_else(|| unknown(rules, username))?;
    let claim = |key: &str| match spec
        .extra
        .as_ref()
        .and_then(|extra| extra.get(key))
        .map(Vec::as_slice)
    {
        Some([one]) if !one.is_empty() => Ok(one.as_str()),
        Some(_) | None => Err(refuse(
            TOKEN_NOT_BOUND,
            format!("the requester's token does not say {key}; it must be bound to the pod that it is for"),
        )),
    };
    // Each must be there: a token of a node alone, or of no pod, may be anyone's who can ask for tokens.
    let node = claim(NODE_NAME)?;
    claim(POD_UID)?;
    let identity = identity(rules, account, node).ok_or_else(|| unknown(rules, username))??;
    let requested = Requested::of_pem(&spec.request)
        .map_err(|why| refuse(REQUEST_MALFORMED, format!("of the request: {why}")))?;
    let uri = identity.uri(&rules.domain);
    match requested.names.as_slice() {
        [Name::Uri(name)] if *name == uri => {}
        other => {
            return Err(refuse(
                OTHER_IDENTITY,
                format!(
                    "the requester may have the one name {uri}, and asks for {}",
                    in_words(other)
                ),
            ));
        }
    }
    if requested.more {
        return Err(refuse(
            REQUEST_MALFORMED,
            "the request asks for more than a subject alternative name",
        ));
    }
    check_key(&requested)?;
    let usages = spec.usages.as_deref().unwrap_or_default();
    if let Some(usage) = usages.iter().find(|usage| !USAGES.contains(&usage.as_str())) {
        return Err(refuse(
            USAGE_NOT_ALLOWED,
            format!("{usage:?} is none of {}", USAGES.join(", ")),
        ));
    }
    let lifetime = match spec.expiration_seconds {
        None => rules.longest,
        Some(seconds) => lifetime(rules, seconds.into(), SHORTEST)?,
    };
    Ok(Grant {
        identity,
        key: requested.key,
        lifetime,
    })
}

/// The answer to a PodCertificateRequest. That the pod's own node made it is not in the object: the policy that the
/// chart installs lets no one else make requests for this signer.
pub fn pod_request(rules: &Rules, request: &PodCertificateRequest) -> Decision {
    let answered = request
        .status
        .as_ref()
        .is_some_and(|status| !status.conditions.is_empty());
    if request.spec.signer_name != rules.signer || answered {
        return Decision::Leave;
    }
    judge_pod_request(rules, request).map_or_else(Decision::Deny, Decision::Issue)
}

fn judge_pod_request(rules: &Rules, request: &PodCertificateRequest) -> Result<Grant, Refusal> {
    let spec = &request.spec;
    let namespace = request.metadata.namespace.as_deref().unwrap_or_default();
    let requester = || unknown(rules, &format!("{namespace}:{}", spec.service_account_name));
    if namespace != rules.namespace {
        return Err(requester());
    }
    let identity = identity(rules, &spec.service_account_name, &spec.node_name).ok_or_else(requester)??;
    if let Some(key) = spec
        .unverified_user_annotations
        .as_ref()
        .and_then(|annotations| annotations.keys().next())
    {
        return Err(refuse(
            REQUEST_MALFORMED,
            format!("this signer knows no annotation {key:?}"),
        ));
    }
    let der = spec
        .request
        .as_ref()
        .map(|der| der.0.as_slice())
        .unwrap_or_default();
    let requested =
        Requested::of_der(der).map_err(|why| refuse(REQUEST_MALFORMED, format!("of the request: {why}")))?;
    check_key(&requested)?;
    let longest = spec
        .max_expiration_seconds
        .unwrap_or_else(|| i64::try_from(POD_DEFAULT.as_secs()).unwrap_or(i64::MAX));
    Ok(Grant {
        identity,
        key: requested.key,
        lifetime: lifetime(rules, longest, SHORTEST_FOR_POD)?,
    })
}

/// Who an account's bearer on a node is; none if the account is not godwit's.
fn identity(rules: &Rules, account: &str, node: &str) -> Option<Result<PeerIdentity, Refusal>> {
    if account == rules.controller_account {
        return Some(Ok(PeerIdentity::Controller));
    }
    if account != rules.agent_account {
        return None;
    }
    let host = PeerIdentity::Host(node.to_owned());
    // What peers would not read as this host's name is none.
    let read = PeerIdentity::of_uri(&host.uri(&rules.domain), &rules.domain);
    Some(if read.as_ref() == Ok(&host) {
        Ok(host)
    } else {
        Err(refuse(TOKEN_NOT_BOUND, format!("{node:?} is not a host's name")))
    })
}

fn unknown(rules: &Rules, requester: &str) -> Refusal {
    refuse(
        ACCOUNT_NOT_KNOWN,
        format!(
            "certificates are for the service accounts {} and {} of namespace {}, not for {requester:?}",
            rules.agent_account, rules.controller_account, rules.namespace
        ),
    )
}

fn check_key(requested: &Requested) -> Result<(), Refusal> {
    match &requested.key_kind {
        KeyKind::Allowed => Ok(()),
        KeyKind::Other(kind) => Err(refuse(
            UNSUPPORTED_KEY_TYPE,
            format!("the key ({kind}) is none of ECDSAP256, ECDSAP384 and ED25519"),
        )),
    }
}

fn lifetime(rules: &Rules, seconds: i64, shortest: Duration) -> Result<Duration, Refusal> {
    match u64::try_from(seconds).map(Duration::from_secs) {
        Ok(asked) if asked >= shortest => Ok(asked.min(rules.longest)),
        Ok(_) | Err(_) => Err(refuse(
            LIFETIME_NOT_ALLOWED,
            format!("{seconds} s is less than {} s", shortest.as_secs()),
        )),
    }
}

/// At most this much of what a stranger wrote is repeated.
const REPEATED: usize = 200;

fn in_words(names: &[Name]) -> String {
    let all: Vec<String> = names
        .iter()
        .map(|name| match name {
            Name::Uri(uri) => uri.clone(),
            Name::Other(words) => words.clone(),
        })
        .collect();
    if all.is_empty() {
        return "none".to_owned();
    }
    all.join(", ").chars().take(REPEATED).collect()
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests;
