//! An agent outlives its token: it finds the next one in the same file, as pods do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::path::Path;
use std::time::{Duration, Instant};

use godwit_lab::{Lab, LabOptions, chart, credentials};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::DeleteParams;
use serde_json::Value;

/// The client looks into the file once a minute, and the Lease is renewed each ten seconds.
const WITHIN: Duration = Duration::from_secs(200);

/// The UIDs of the pods whose tokens came with the renewals of this host's Lease, the last one first.
fn pods_behind_the_lease(audit: &Path, host: &str) -> Vec<String> {
    let text = std::fs::read_to_string(audit).unwrap();
    let events = text
        .lines()
        .rev()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events
        .filter(|event| {
            let object = event.get("objectRef");
            let is = |field: &str, value: &str| {
                object.and_then(|object| object.get(field)?.as_str()) == Some(value)
            };
            let code = event.pointer("/responseStatus/code").and_then(Value::as_u64);
            is("resource", "leases") && is("name", host) && code.is_some_and(|code| code < 300)
        })
        .filter_map(|event| {
            let uid = event.pointer("/user/extra/authentication.kubernetes.io~1pod-uid/0")?;
            uid.as_str().map(str::to_owned)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r3_an_agent_goes_on_with_the_next_token() -> anyhow::Result<()> {
    let options = LabOptions::new("tokens")
        .hosts(1)
        .controller(false)
        .guest_files(false);
    let lab = Lab::start(options).await?;
    let pod = credentials::pod_on_node(&lab.client(), "h1", chart::AGENT_ACCOUNT).await?;
    let first = pod.metadata.uid.expect("a UID");
    let audit = lab.control_plane.audit();
    let behind = pods_behind_the_lease(audit, "h1");
    assert!(
        !behind.is_empty() && behind.iter().all(|uid| *uid == first),
        "{behind:?}"
    );

    // The pod is replaced, as by an upgrade: the old token dies with it, and the next one stands in the file.
    let pods: Api<Pod> = Api::namespaced(lab.client(), chart::NAMESPACE);
    let now = DeleteParams::default().grace_period(0);
    pods.delete(&pod.metadata.name.expect("a name"), &now).await?;
    lab.agent_credentials(1)?.renew().await?;
    let next = credentials::pod_on_node(&lab.client(), "h1", chart::AGENT_ACCOUNT).await?;
    let next = next.metadata.uid.expect("a UID");
    assert_ne!(next, first);
    let deadline = Instant::now() + WITHIN;
    while pods_behind_the_lease(audit, "h1").first() != Some(&next) {
        assert!(
            Instant::now() < deadline,
            "the agent did not take the next token within {WITHIN:?}"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    lab.stop().await
}
