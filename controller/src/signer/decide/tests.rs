use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequestCondition, CertificateSigningRequestSpec, CertificateSigningRequestStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::ObjectMeta;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};

use super::super::objects::{PodAnswer, PodRequest, pod_certificate_requests};
use super::*;

fn rules() -> Rules {
    Rules {
        domain: TrustDomain::default(),
        signer: "godwit.dev/agent".to_owned(),
        namespace: "godwit-system".to_owned(),
        agent_account: "godwit-agent".to_owned(),
        controller_account: "godwit-controller".to_owned(),
        longest: Duration::from_secs(86_400),
    }
}

const NODE_A: &str = "spiffe://godwit.dev/godwit/host/node-a";

/// A PKCS #10 request for these names.
fn pkcs10_by(key: &KeyPair, names: Vec<SanType>) -> rcgen::CertificateSigningRequest {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.subject_alt_names = names;
    parameters.serialize_request(key).unwrap()
}

fn pkcs10(uris: &[&str]) -> rcgen::CertificateSigningRequest {
    let names = uris
        .iter()
        .map(|uri| SanType::URI((*uri).try_into().unwrap()))
        .collect();
    pkcs10_by(&KeyPair::generate().unwrap(), names)
}

fn pem(request: &rcgen::CertificateSigningRequest) -> ByteString {
    ByteString(request.pem().unwrap().into_bytes())
}

/// As the API server has it when the agent of node-a asks for its own name.
fn good() -> CertificateSigningRequest {
    let claims = [(NODE_NAME, "node-a"), (POD_UID, "7b0c")];
    CertificateSigningRequest {
        spec: CertificateSigningRequestSpec {
            request: pem(&pkcs10(&[NODE_A])),
            signer_name: "godwit.dev/agent".to_owned(),
            username: Some("system:serviceaccount:godwit-system:godwit-agent".to_owned()),
            extra: Some(
                claims
                    .iter()
                    .map(|(key, value)| ((*key).to_owned(), vec![(*value).to_owned()]))
                    .collect(),
            ),
            usages: Some(USAGES.map(str::to_owned).to_vec()),
            expiration_seconds: Some(3600),
            ..CertificateSigningRequestSpec::default()
        },
        ..CertificateSigningRequest::default()
    }
}

fn with(change: impl FnOnce(&mut CertificateSigningRequestSpec)) -> Decision {
    let mut request = good();
    change(&mut request.spec);
    signing_request(&rules(), &request)
}

fn refused(decision: Decision) -> &'static str {
    match decision {
        Decision::Deny(refusal) => refusal.reason,
        other @ (Decision::Issue(_) | Decision::Leave) => panic!("{other:?}"),
    }
}

fn issued(decision: Decision) -> Grant {
    match decision {
        Decision::Issue(grant) => grant,
        other @ (Decision::Deny(_) | Decision::Leave) => panic!("{other:?}"),
    }
}

fn set(spec: &mut CertificateSigningRequestSpec, key: &str, values: &[&str]) {
    let values = values.iter().map(|value| (*value).to_owned()).collect();
    spec.extra
        .get_or_insert_with(BTreeMap::new)
        .insert(key.to_owned(), values);
}

#[test]
fn the_agent_of_a_node_gets_that_hosts_name() {
    let grant = issued(with(|_| {}));
    assert_eq!(grant.identity, PeerIdentity::Host("node-a".to_owned()));
    assert_eq!(grant.lifetime, Duration::from_secs(3600));
    assert!(!grant.key.is_empty());
}

#[test]
fn the_controller_gets_its_name_and_never_a_hosts() {
    let controller = Some("system:serviceaccount:godwit-system:godwit-controller".to_owned());
    let own = pem(&pkcs10(&["spiffe://godwit.dev/godwit/controller"]));
    let grant = issued(with(|spec| {
        spec.username = controller.clone();
        spec.request = own.clone();
    }));
    assert_eq!(grant.identity, PeerIdentity::Controller);
    // T6: the controller's account asks for the host that its own pod runs on.
    assert_eq!(refused(with(|spec| spec.username = controller)), OTHER_IDENTITY);
    // And an agent does not become the controller.
    assert_eq!(refused(with(|spec| spec.request = own)), OTHER_IDENTITY);
}

#[test]
fn other_accounts_get_nothing() {
    for username in [
        None,
        Some(""),
        Some("admin"),
        Some("system:node:node-a"),
        Some("system:serviceaccount:godwit-system:default"),
        Some("system:serviceaccount:godwit-system:godwit-signer"),
        Some("system:serviceaccount:default:godwit-agent"),
        Some("system:serviceaccount:godwit-system:godwit-agent:x"),
        Some("xsystem:serviceaccount:godwit-system:godwit-agent"),
    ] {
        let decision = with(|spec| spec.username = username.map(str::to_owned));
        assert_eq!(refused(decision), ACCOUNT_NOT_KNOWN, "{username:?}");
    }
}

#[test]
fn the_token_must_be_bound_to_a_pod_on_a_node() {
    assert_eq!(refused(with(|spec| spec.extra = None)), TOKEN_NOT_BOUND);
    for key in [NODE_NAME, POD_UID] {
        let without = with(|spec| {
            spec.extra.as_mut().unwrap().remove(key);
        });
        assert_eq!(refused(without), TOKEN_NOT_BOUND, "{key}");
        for values in [&[][..], &[""], &["node-a", "node-b"]] {
            let decision = with(|spec| set(spec, key, values));
            assert_eq!(refused(decision), TOKEN_NOT_BOUND, "{key} {values:?}");
        }
    }
}

#[test]
fn what_is_no_hosts_name_gets_nothing() {
    for node in ["Node", "a/b", "../controller", "a b", "-a"] {
        let decision = with(|spec| set(spec, NODE_NAME, &[node]));
        assert_eq!(refused(decision), TOKEN_NOT_BOUND, "{node}");
    }
}

#[test]
fn only_the_nodes_own_name_is_given() {
    for uris in [
        &["spiffe://godwit.dev/godwit/host/node-b"][..],
        &["spiffe://godwit.dev/godwit/controller"],
        &["spiffe://example.org/godwit/host/node-a"],
        &["spiffe://godwit.dev/godwit/host/node-a/"],
        &[NODE_A, NODE_A],
        &[NODE_A, "spiffe://godwit.dev/godwit/host/node-b"],
        &[],
    ] {
        let decision = with(|spec| spec.request = pem(&pkcs10(uris)));
        assert_eq!(refused(decision), OTHER_IDENTITY, "{uris:?}");
    }
    let key = KeyPair::generate().unwrap();
    let names = vec![
        SanType::URI(NODE_A.try_into().unwrap()),
        SanType::DnsName("node-a".try_into().unwrap()),
    ];
    let decision = with(|spec| spec.request = pem(&pkcs10_by(&key, names)));
    assert_eq!(refused(decision), OTHER_IDENTITY);
}

#[test]
fn a_request_for_an_authority_is_refused() {
    let key = KeyPair::generate().unwrap();
    let mut parameters = CertificateParams::default();
    parameters.subject_alt_names = vec![SanType::URI(NODE_A.try_into().unwrap())];
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let request = parameters.serialize_request(&key).unwrap();
    let decision = with(|spec| spec.request = pem(&request));
    assert_eq!(refused(decision), REQUEST_MALFORMED);
}

#[test]
fn a_request_that_proves_nothing_is_refused() {
    let good = pkcs10(&[NODE_A]);
    let mut tampered = good.der().to_vec();
    *tampered.last_mut().unwrap() ^= 1;
    let tampered = pem_rfc(&tampered);
    let twice = [pem(&good).0, pem(&good).0].concat();
    for text in [
        b"not PEM".to_vec(),
        Vec::new(),
        tampered,
        twice,
        vec![b'x'; 100_000],
    ] {
        let decision = with(|spec| spec.request = ByteString(text.clone()));
        assert_eq!(refused(decision), REQUEST_MALFORMED, "{} bytes", text.len());
    }
}

#[test]
fn r4_an_altered_request_is_refused_or_gives_what_was_signed() {
    let good = pkcs10(&[NODE_A]).der().to_vec();
    let signed = issued(with(|spec| spec.request = ByteString(pem_rfc(&good))));
    for position in 0..good.len() {
        let mut altered = good.clone();
        altered[position] ^= 0x20;
        let decision = with(|spec| spec.request = ByteString(pem_rfc(&altered)));
        match decision {
            Decision::Deny(_) => {}
            // The frame around what is signed was altered, and was read all the same.
            Decision::Issue(grant) => assert_eq!(grant, signed, "byte {position}"),
            Decision::Leave => panic!("byte {position}: left"),
        }
    }
    for length in 0..good.len() {
        let decision = with(|spec| spec.request = ByteString(pem_rfc(&good[..length])));
        assert_eq!(refused(decision), REQUEST_MALFORMED, "{length} bytes");
    }
}

/// DER as a request in PEM form.
fn pem_rfc(der: &[u8]) -> Vec<u8> {
    let base64 = serde_json::to_string(&ByteString(der.to_vec())).unwrap();
    let body = base64.trim_matches('"');
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n").into_bytes()
}

#[test]
fn keys_are_elliptic() {
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
    ] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let names = vec![SanType::URI(NODE_A.try_into().unwrap())];
        issued(with(|spec| spec.request = pem(&pkcs10_by(&key, names))));
    }
    let key = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let names = vec![SanType::URI(NODE_A.try_into().unwrap())];
    let decision = with(|spec| spec.request = pem(&pkcs10_by(&key, names)));
    assert_eq!(refused(decision), UNSUPPORTED_KEY_TYPE);
}

#[test]
fn other_usages_are_refused() {
    for usage in ["cert sign", "any", "code signing", ""] {
        let decision = with(|spec| spec.usages.get_or_insert_default().push(usage.to_owned()));
        assert_eq!(refused(decision), USAGE_NOT_ALLOWED, "{usage}");
    }
}

#[test]
fn a_life_is_bounded_on_both_sides() {
    let lifetime = |seconds| issued(with(|spec| spec.expiration_seconds = seconds)).lifetime;
    assert_eq!(lifetime(None), Duration::from_secs(86_400));
    assert_eq!(lifetime(Some(600)), Duration::from_secs(600));
    assert_eq!(lifetime(Some(i32::MAX)), Duration::from_secs(86_400));
    for seconds in [599, 0, -1] {
        let decision = with(|spec| spec.expiration_seconds = Some(seconds));
        assert_eq!(refused(decision), LIFETIME_NOT_ALLOWED, "{seconds}");
    }
}

#[test]
fn what_is_answered_or_anothers_is_left() {
    assert_eq!(
        with(|spec| spec.signer_name = "example.org/x".to_owned()),
        Decision::Leave
    );
    let condition = |type_: &str| {
        let mut request = good();
        request.status = Some(CertificateSigningRequestStatus {
            conditions: Some(vec![CertificateSigningRequestCondition {
                type_: type_.to_owned(),
                ..CertificateSigningRequestCondition::default()
            }]),
            certificate: None,
        });
        signing_request(&rules(), &request)
    };
    assert_eq!(condition("Denied"), Decision::Leave);
    assert_eq!(condition("Failed"), Decision::Leave);
    // Approved by this signer before it ended, or by a person: the judgement is the same.
    assert!(matches!(condition("Approved"), Decision::Issue(_)));
    let mut request = good();
    request.status = Some(CertificateSigningRequestStatus {
        conditions: None,
        certificate: Some(ByteString(b"issued".to_vec())),
    });
    assert_eq!(signing_request(&rules(), &request), Decision::Leave);
}

fn pod(change: impl FnOnce(&mut PodCertificateRequest)) -> Decision {
    let spec = PodRequest {
        signer_name: "godwit.dev/agent".to_owned(),
        pod_name: "godwit-agent-x".to_owned(),
        pod_uid: "7b0c".to_owned(),
        service_account_name: "godwit-agent".to_owned(),
        node_name: "node-a".to_owned(),
        max_expiration_seconds: Some(7200),
        request: Some(ByteString(pkcs10(&[]).der().to_vec())),
        unverified_user_annotations: None,
    };
    let mut request = PodCertificateRequest::new("a", &pod_certificate_requests(), spec);
    request.metadata = ObjectMeta {
        namespace: Some("godwit-system".to_owned()),
        ..ObjectMeta::default()
    };
    change(&mut request);
    pod_request(&rules(), &request)
}

#[test]
fn the_pod_of_an_agent_gets_its_nodes_name() {
    let grant = issued(pod(|_| {}));
    assert_eq!(grant.identity, PeerIdentity::Host("node-a".to_owned()));
    assert_eq!(grant.lifetime, Duration::from_secs(7200));
    let controller = issued(pod(|r| {
        r.spec.service_account_name = "godwit-controller".to_owned()
    }));
    assert_eq!(controller.identity, PeerIdentity::Controller);
    assert_eq!(
        issued(pod(|r| r.spec.max_expiration_seconds = None)).lifetime,
        POD_DEFAULT
    );
}

#[test]
fn other_pods_get_nothing() {
    let other = pod(|r| r.metadata.namespace = Some("default".to_owned()));
    assert_eq!(refused(other), ACCOUNT_NOT_KNOWN);
    let other = pod(|r| r.spec.service_account_name = "default".to_owned());
    assert_eq!(refused(other), ACCOUNT_NOT_KNOWN);
    assert_eq!(
        refused(pod(|r| r.spec.node_name = String::new())),
        TOKEN_NOT_BOUND
    );
}

#[test]
fn pods_requests_are_read_as_strictly() {
    assert_eq!(refused(pod(|r| r.spec.request = None)), REQUEST_MALFORMED);
    let annotated = pod(|r| {
        r.spec.unverified_user_annotations =
            Some(BTreeMap::from([("example.org/a".to_owned(), "b".to_owned())]));
    });
    assert_eq!(refused(annotated), REQUEST_MALFORMED);
    let rsa = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let der = pkcs10_by(&rsa, Vec::new()).der().to_vec();
    let decision = pod(|r| r.spec.request = Some(ByteString(der)));
    assert_eq!(refused(decision), UNSUPPORTED_KEY_TYPE);
    let short = pod(|r| r.spec.max_expiration_seconds = Some(3599));
    assert_eq!(refused(short), LIFETIME_NOT_ALLOWED);
    assert_eq!(
        pod(|r| r.spec.signer_name = "example.org/x".to_owned()),
        Decision::Leave
    );
    let answered = pod(|r| {
        r.status = Some(PodAnswer {
            conditions: vec![Condition {
                type_: "Issued".to_owned(),
                status: "True".to_owned(),
                reason: String::new(),
                message: String::new(),
                last_transition_time: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                    jiff::Timestamp::UNIX_EPOCH,
                ),
                observed_generation: None,
            }],
            ..PodAnswer::default()
        });
    });
    assert_eq!(answered, Decision::Leave);
}

#[test]
fn every_reason_is_in_the_documented_table() {
    let table = include_str!("../../../../docs/conditions.md");
    for word in REASONS {
        assert!(table.contains(&format!("| `{word}` |")), "{word} is missing");
    }
}
