//! What the signer's account may do, and that nobody else may do it.

use anyhow::ensure;
use godwit_lab::{Lab, chart, signer};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;

/// Asks the API server whether one of godwit's accounts may do something.
async fn may(lab: &Lab, account: &str, verb: &str, resource: &str, name: &str) -> anyhow::Result<bool> {
    let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{}:{account}", chart::NAMESPACE)),
            groups: Some(vec![
                "system:authenticated".to_owned(),
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{}", chart::NAMESPACE),
            ]),
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.to_owned()),
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource: Some(subresource.to_owned()),
                name: Some(name.to_owned()),
                namespace: Some(chart::NAMESPACE.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let answer = Api::<SubjectAccessReview>::all(lab.client())
        .create(&PostParams::default(), &review)
        .await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

pub async fn r1_only_the_signer_signs_and_it_does_nothing_else(lab: &mut Lab) -> anyhow::Result<()> {
    const SIGNER: &str = "godwit-signer";
    let parts = [chart::CONTROLLER_ACCOUNT, chart::AGENT_ACCOUNT, SIGNER];
    let others = "kubernetes.io/kube-apiserver-client";
    let bundle = "godwit.dev:agent:roots";
    #[rustfmt::skip]
    let table: &[(&str, &str, &str, &[&str])] = &[
        // verb, resource, name, who may
        ("sign", "signers.certificates.k8s.io", signer::NAME, &[SIGNER]),
        ("approve", "signers.certificates.k8s.io", signer::NAME, &[SIGNER]),
        ("attest", "signers.certificates.k8s.io", signer::NAME, &[SIGNER]),
        ("sign", "signers.certificates.k8s.io", others, &[]),
        ("approve", "signers.certificates.k8s.io", others, &[]),
        ("update", "certificatesigningrequests/status.certificates.k8s.io", "some", &[SIGNER]),
        ("update", "certificatesigningrequests/approval.certificates.k8s.io", "some", &[SIGNER]),
        ("create", "certificatesigningrequests.certificates.k8s.io", "", &[chart::CONTROLLER_ACCOUNT, chart::AGENT_ACCOUNT]),
        ("update", "podcertificaterequests/status.certificates.k8s.io", "some", &[SIGNER]),
        ("create", "podcertificaterequests.certificates.k8s.io", "", &[]),
        ("patch", "clustertrustbundles.certificates.k8s.io", bundle, &[SIGNER]),
        ("patch", "clustertrustbundles.certificates.k8s.io", "example.org:other:roots", &[]),
        ("delete", "clustertrustbundles.certificates.k8s.io", bundle, &[]),
        ("patch", "configmaps", signer::TRUST, &[SIGNER]),
        // Each has its own key and none of the other's; the authority's is mounted into the signer's pod.
        ("get", "secrets", "godwit-ticket-key", &[chart::CONTROLLER_ACCOUNT]),
        ("get", "secrets", "godwit-signer-ca", &[]),
        ("create", "pods", "", &[]),
    ];
    for (verb, resource, name, who) in table {
        for part in parts {
            let allowed = may(lab, part, verb, resource, name).await?;
            ensure!(
                allowed == who.contains(&part),
                "{part}: {verb} {resource} {name}: {allowed}"
            );
        }
    }
    // It knows nothing of guests, and cannot make itself another account.
    for resource in [
        "secrets",
        "pods",
        "serviceaccounts/token",
        "virtualmachines.godwit.dev",
        "virtualmachinemigrations.godwit.dev",
        "virtualmachinehosts.godwit.dev",
        "virtualmachineresolutions.godwit.dev",
        "guestrecords.godwit.dev",
        "leases.coordination.k8s.io",
    ] {
        for verb in ["get", "list", "create", "update", "patch", "delete"] {
            ensure!(
                !may(lab, SIGNER, verb, resource, "some").await?,
                "{verb} {resource}"
            );
        }
    }
    Ok(())
}
