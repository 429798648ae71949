//! Hosts that are not what they should be.

use std::time::Duration;

use godwit_crds::VirtualMachineHost;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::world::{World, condition};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kubernetes API server"]
async fn another_hosts_certificate_ends_it_before_anything_begins() {
    let world = World::new().await;
    let guest = world.running_guest("web").await;
    let hosts: Api<VirtualMachineHost> = Api::all(world.client.clone());
    let endpoint = world.agents["a"].address.to_string();
    let patch = Patch::Merge(json!({ "spec": { "endpoint": endpoint } }));
    hosts
        .patch(&world.hosts["b"], &PatchParams::default(), &patch)
        .await
        .unwrap();
    world.migrate("move", "web", &world.hosts["b"]).await;
    let failure = world.until_phase("move", "Failed").await.failure.unwrap();
    assert_eq!(failure.reason, "CertificateRejected", "{}", failure.message);
    assert!(failure.message.contains(&world.hosts["b"]), "{}", failure.message);
    assert_eq!(world.record(&guest).await.unwrap().spec.migration, None);
    assert_eq!(world.orders("a"), Vec::<String>::new());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kubernetes API server"]
async fn a_lease_that_has_run_out_is_told_and_the_agent_takes_its_word_back() {
    let world = World::new().await;
    let name = world.hosts["b"].clone();
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), &world.namespace);
    let old = json!({
        "metadata": { "name": name },
        "spec": { "holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": "2020-01-01T00:00:00.000000Z" },
    });
    leases
        .create(&PostParams::default(), &serde_json::from_value(old).unwrap())
        .await
        .unwrap();
    let hosts: Api<VirtualMachineHost> = Api::all(world.client.clone());
    let until = async |reason: &str| {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let host = hosts.get(&name).await.unwrap();
            if condition(&host.status.unwrap().conditions, "Ready") == Some(reason) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "not {reason} in time");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    until("LeaseExpired").await;
    let renewed = Patch::Merge(json!({ "spec": { "renewTime": "2020-01-01T00:00:10.000000Z" } }));
    leases
        .patch(&name, &PatchParams::default(), &renewed)
        .await
        .unwrap();
    // The agent goes on to say that it is well; once the controller has seen the renewal, that stands.
    let settled = tokio::time::Instant::now() + Duration::from_secs(3);
    while tokio::time::Instant::now() < settled {
        world.host_status(&name, json!([])).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let watched = tokio::time::Instant::now() + Duration::from_secs(3);
    while tokio::time::Instant::now() < watched {
        let host = hosts.get(&name).await.unwrap();
        assert_eq!(
            condition(&host.status.unwrap().conditions, "Ready"),
            Some("AgentReady")
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    world.end().await;
}
