//! Migrations that the source's agent drives, as the controller sees them. How they go well is seen in the lab; here
//! the agents say what is seldom said.

use godwit_crds::{Decision, VirtualMachineMigration};
use godwit_handover::Cause;
use godwit_protocol::{Category, Driving, Fault, GaveUp, OtherSide, Told};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::world::World;

const FLOW: &str = "PeerToPeer";

/// The order is not taken: nothing was begun, and the record is free again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kubernetes API server"]
async fn an_order_to_drive_is_refused() {
    let world = World::new().await;
    let guest = world.running_guest("web").await;
    let refusal = Fault::new(Category::Conflict, "StaleEpoch", "A later epoch is known.");
    world.agents["a"].agent.script.lock().unwrap().refuse_drive = Some(refusal);
    world.migrate_by(FLOW, "first", "web", &world.hosts["b"]).await;
    let failure = world.until_phase("first", "Failed").await.failure.unwrap();
    assert_eq!(failure.reason, "StaleEpoch");
    assert!(
        failure.message.contains("A later epoch is known."),
        "{}",
        failure.message
    );
    let record = world.record(&guest).await.unwrap().spec;
    assert_eq!((record.decision, record.epoch), (Decision::Aborted, 1));
    assert_eq!(world.orders("b"), Vec::<String>::new());

    world.agents["a"].agent.script.lock().unwrap().refuse_drive = None;
    world.migrate("second", "web", &world.hosts["b"]).await;
    world.until_phase("second", "Succeeded").await;
    world.end().await;
}

/// The driver has given up before it began: its word and words are told, and what its agent could not write into the
/// record the controller does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kubernetes API server"]
async fn the_driver_says_why_it_has_given_up() {
    let world = World::new().await;
    let guest = world.running_guest("web").await;
    let driving = Driving {
        destination: Some(OtherSide::default()),
        gave_up: Some(GaveUp {
            cause: Cause::PathNotProven,
            told: Told::new("PeerUnreachable", "The agent on b was not reached within 30 s."),
        }),
        ended_at_micros: Some(1_700_000_000_000_000),
        ..Driving::default()
    };
    world.agents["a"].agent.script.lock().unwrap().driving = Some(Box::new(driving));
    world.migrate_by(FLOW, "first", "web", &world.hosts["b"]).await;
    let failure = world.until_phase("first", "Failed").await.failure.unwrap();
    assert_eq!(failure.reason, "PeerUnreachable");
    assert!(
        failure
            .message
            .starts_with("The agent on b was not reached within 30 s."),
        "{}",
        failure.message
    );
    let record = world.record(&guest).await.unwrap().spec;
    assert_eq!((record.decision, record.epoch), (Decision::Aborted, 1));
    assert_eq!(world.orders("a"), ["Drive"]);
    world.end().await;
}

/// A driver that says nothing is no evidence: the record stays undecided, and a cancellation goes to the source alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kubernetes API server"]
async fn a_silent_driver_decides_nothing() {
    let world = World::new().await;
    let guest = world.running_guest("web").await;
    world.agents["a"].agent.script.lock().unwrap().driving = Some(Box::default());
    world.migrate_by(FLOW, "first", "web", &world.hosts["b"]).await;
    world
        .until::<VirtualMachineMigration>("first", |migration| {
            (!world.orders("a").is_empty()).then(|| migration.clone())
        })
        .await;
    let api = world.api::<VirtualMachineMigration>();
    let cancel = Patch::Merge(json!({"spec": {"cancel": true}}));
    api.patch("first", &PatchParams::default(), &cancel)
        .await
        .unwrap();
    let status = world.until_phase("first", "Cancelled").await;
    assert_eq!(status.failure.unwrap().reason, "Cancelled");
    let orders = world.orders("a");
    assert!(
        orders
            .iter()
            .all(|order| order == "Drive" || order == "AbortSource"),
        "{orders:?}"
    );
    assert!(orders.contains(&"AbortSource".to_owned()), "{orders:?}");
    assert_eq!(world.orders("b"), Vec::<String>::new());
    assert_eq!(
        world.record(&guest).await.unwrap().spec.decision,
        Decision::Aborted
    );
    world.end().await;
}
