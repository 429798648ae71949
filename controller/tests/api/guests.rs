//! Guests from create to deletion.

use godwit_crds::VirtualMachine;
use godwit_crds::virtual_machine::GuestState;
use godwit_protocol::{Category, Fault};
use kube::ResourceExt;
use kube::api::DeleteParams;

use crate::world::{World, condition};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kubernetes API server"]
async fn a_guest_is_started_once_and_stopped_where_it_runs() {
    let world = World::new().await;
    let guest = world.running_guest("web").await;
    let uid = guest.uid().unwrap();
    let status = guest.status.clone().unwrap();
    assert_eq!(status.host.as_deref(), Some(world.hosts["a"].as_str()));
    assert_eq!((status.state, status.epoch), (Some(GuestState::Running), Some(1)));
    assert!(status.since.is_some());
    let record = world.record(&guest).await.unwrap();
    assert_eq!(
        (record.spec.holder.as_str(), record.spec.epoch),
        (world.hosts["a"].as_str(), 1)
    );
    assert_eq!(record.finalizers(), ["godwit.dev/guest"]);
    {
        let script = world.agents["a"].agent.script.lock().unwrap();
        assert_eq!(script.started.len(), 1);
        assert_eq!(
            (script.started[0].guest.uid.as_str(), script.started[0].epoch),
            (uid.as_str(), 1)
        );
        assert!(!script.started[0].again);
        let spec: serde_json::Value = serde_json::from_slice(&script.started[0].definition).unwrap();
        assert_eq!(spec["memory"], "64Mi");
    }
    world
        .api::<VirtualMachine>()
        .delete("web", &DeleteParams::default())
        .await
        .unwrap();
    world.until_gone::<VirtualMachine>("web").await;
    assert!(world.record(&guest).await.is_none());
    assert_eq!(world.agents["a"].agent.script.lock().unwrap().stopped, [(uid, 1)]);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kubernetes API server"]
async fn a_deletion_ends_the_migration_first() {
    let world = World::new().await;
    let guest = world.running_guest("web").await;
    world.agents["a"].agent.script.lock().unwrap().endless = true;
    world.migrate("move", "web", &world.hosts["b"]).await;
    world.until_phase("move", "Perform").await;
    world
        .api::<VirtualMachine>()
        .delete("web", &DeleteParams::default())
        .await
        .unwrap();
    world.until_gone::<VirtualMachine>("web").await;
    world.until_phase("move", "Cancelled").await;
    let uid = guest.uid().unwrap();
    assert_eq!(world.agents["a"].agent.script.lock().unwrap().stopped, [(uid, 1)]);
    assert_eq!(world.agents["b"].agent.script.lock().unwrap().stopped, []);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kubernetes API server"]
async fn a_refused_start_is_told_and_tried_again_on_the_same_host() {
    let world = World::new().await;
    let refusal = Fault::new(
        Category::Lacking,
        "FileMissing",
        "vmlinuz is not in the pool default.",
    );
    world.agents["a"].agent.script.lock().unwrap().refuse_start = Some(refusal);
    world.create_guest("web").await;
    world
        .until::<VirtualMachine>("web", |guest| {
            condition(&guest.status.as_ref()?.conditions, "Ready")
                .filter(|reason| *reason == "FileMissing")
                .map(|_| guest.clone())
        })
        .await;
    world.agents["a"].agent.script.lock().unwrap().refuse_start = None;
    world
        .until::<VirtualMachine>("web", |guest| {
            (guest.status.as_ref()?.state == Some(GuestState::Running)).then(|| guest.clone())
        })
        .await;
    world.end().await;
}
