//! Migrations from create to end.

use std::time::{Duration, Instant};

use godwit_crds::condition::find_condition;
use godwit_crds::{
    ArmedMigration, ConditionStatus, Decision, GuestRecord, VirtualMachine, VirtualMachineMigration,
};
use godwit_protocol::{Category, Fault};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::world::{World, condition};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kubernetes API server"]
async fn a_guest_moves_and_moves_back() {
    let world = World::new().await;
    let guest = world.running_guest("web").await;
    let (a, b) = (world.hosts["a"].clone(), world.hosts["b"].clone());
    let started = tokio::time::Instant::now();
    world.migrate("there", "web", &b).await;
    let status = world.until_phase("there", "Succeeded").await;
    eprintln!("create to Succeeded: {:?}", started.elapsed());

    assert_eq!(world.orders("a"), ["Begin", "Perform", "Ready", "Confirm"]);
    let mut to_destination = world.orders("b");
    // Told beside the rest, so that the record can decide where Go is lost.
    to_destination.retain(|order| order != "SourceStands");
    assert_eq!(to_destination, ["Prepare", "Finish"]);
    let record = world.record(&guest).await.unwrap().spec;
    assert_eq!(
        (record.holder.as_str(), record.epoch, record.decision),
        (b.as_str(), 2, Decision::Committed)
    );
    assert_eq!(
        (status.source.as_deref(), status.destination.as_deref()),
        (Some(a.as_str()), Some(b.as_str()))
    );
    assert_eq!(status.epoch, Some(1));
    for (type_, reason) in [
        ("Accepted", "Accepted"),
        ("Succeeded", "Succeeded"),
        ("NeedsDecision", "NotNeeded"),
    ] {
        assert_eq!(condition(&status.conditions, type_), Some(reason));
    }
    let phases: Vec<_> = status
        .timeline
        .iter()
        .map(|times| format!("{:?}", times.phase))
        .collect();
    assert_eq!(phases, ["Begin", "Prepare", "Perform", "Finish", "Confirm"]);
    assert!(status.timeline.iter().all(|times| {
        times
            .ended_at
            .as_ref()
            .is_some_and(|end| *end >= times.started_at)
    }));
    assert_eq!(status.progress.unwrap().percent, "100 %");
    // The destination's clock is five seconds ahead; the downtime is not.
    let downtime = status.downtime.unwrap();
    assert!(downtime.stop_to_resume_micros < 1_000_000, "{downtime:?}");
    assert!(
        (downtime.clock_offset_micros - 5_000_000).abs() < 500_000,
        "{downtime:?}"
    );
    assert!(downtime.sealed);
    world
        .until::<VirtualMachine>("web", |guest| {
            (guest.status.as_ref()?.host.as_ref() == Some(&b)).then(|| guest.clone())
        })
        .await;

    // A controller that believes that it still leads does not take the end back.
    let late = json!({
        "apiVersion": "godwit.dev/v1alpha1", "kind": "VirtualMachineMigration",
        "metadata": { "name": "there" },
        "status": { "phase": "Confirm" },
    });
    let params = PatchParams::apply("godwit-controller").force();
    let refused = world
        .api::<VirtualMachineMigration>()
        .patch_status("there", &params, &Patch::Apply(&late))
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, kube::Error::Api(status) if status.is_invalid()),
        "{refused}"
    );

    world.migrate("back", "web", &a).await;
    world.until_phase("back", "Succeeded").await;
    let record = world.record(&guest).await.unwrap().spec;
    assert_eq!((record.holder.as_str(), record.epoch), (a.as_str(), 3));
    // What is told of the phases has its order; who decided is told beside them.
    let (decided, phases): (Vec<_>, Vec<_>) = world
        .events("back", 7)
        .await
        .into_iter()
        .partition(|reason| reason == "RecordDecided");
    assert_eq!(
        phases,
        ["Begin", "Prepare", "Perform", "Finish", "Confirm", "Succeeded"]
    );
    assert_eq!(decided.len(), 1);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kubernetes API server"]
async fn bad_requests_are_refused_with_their_reasons() {
    let world = World::new().await;
    let guest = world.running_guest("web").await;
    for (name, guest, to, reason) in [
        (
            "unknown-guest",
            "nobody",
            world.hosts["b"].as_str(),
            "VirtualMachineNotFound",
        ),
        ("unknown-host", "web", "nowhere", "HostNotFound"),
        ("same-host", "web", world.hosts["a"].as_str(), "SameHost"),
    ] {
        world.migrate(name, guest, to).await;
        let status = world.until_phase(name, "Failed").await;
        assert_eq!(status.failure.unwrap().reason, reason);
        assert_eq!(condition(&status.conditions, "Accepted"), Some(reason));
        assert_eq!(world.events(name, 1).await, [reason]);
    }
    assert_eq!(world.record(&guest).await.unwrap().spec.migration, None);
    assert_eq!(world.orders("a"), Vec::<String>::new());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kubernetes API server"]
async fn an_agents_refusal_is_told_and_the_next_attempt_is_free() {
    let world = World::new().await;
    let guest = world.running_guest("web").await;
    let refusal = Fault::new(Category::Lacking, "PortsExhausted", "Each port is in use.");
    world.agents["b"].agent.script.lock().unwrap().refuse_prepare = Some(refusal);
    world.migrate("first", "web", &world.hosts["b"]).await;
    let failure = world.until_phase("first", "Failed").await.failure.unwrap();
    assert_eq!(failure.reason, "PortsExhausted");
    assert!(
        failure.message.contains("Each port is in use."),
        "{}",
        failure.message
    );
    assert_eq!(
        world.record(&guest).await.unwrap().spec.decision,
        Decision::Aborted
    );
    assert_eq!(world.orders("a"), ["Begin", "AbortSource"]);

    world.agents["b"].agent.script.lock().unwrap().refuse_prepare = None;
    world.migrate("second", "web", &world.hosts["b"]).await;
    world.until_phase("second", "Succeeded").await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kubernetes API server"]
async fn r14_what_a_source_says_of_a_guest_is_held_against_the_record() {
    let world = World::new().await;
    let guest = world.running_guest("web").await;
    let mut spec = serde_json::to_value(&guest.spec).unwrap();
    spec["boot"]["kernel"]["image"]["file"] = "another-guests".into();
    let script = |other| world.agents["a"].agent.script.lock().unwrap().another_definition = other;
    script(Some(spec.to_string().into_bytes()));
    world.migrate("forged", "web", &world.hosts["b"]).await;
    let failure = world.until_phase("forged", "Failed").await.failure.unwrap();
    assert_eq!(failure.reason, "DefinitionMismatch", "{}", failure.message);
    assert!(failure.message.contains(&world.hosts["a"]), "{}", failure.message);
    assert_eq!(world.orders("b"), Vec::<String>::new());

    script(None);
    world.migrate("honest", "web", &world.hosts["b"]).await;
    world.until_phase("honest", "Succeeded").await;
    world.end().await;
}

/// The agent is newer by more than one version: both ranges are named, and the source is told to let go of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kubernetes API server"]
async fn an_agent_of_another_protocol_version_is_refused() {
    let world = World::new().await;
    let guest = world.running_guest("web").await;
    let other = godwit_protocol::version::NEWEST + 1;
    world.agents["b"].agent.script.lock().unwrap().only_version = Some(other);
    world.migrate("first", "web", &world.hosts["b"]).await;
    let failure = world.until_phase("first", "Failed").await.failure.unwrap();
    assert_eq!(failure.reason, "ProtocolVersionUnsupported");
    let ranges = format!("speaks {other}, the other {}", godwit_protocol::version::OURS);
    assert!(failure.message.contains(&ranges), "{}", failure.message);
    let decision = world.record(&guest).await.unwrap().spec.decision;
    assert!(
        matches!(decision, Decision::None | Decision::Aborted),
        "{decision:?}"
    );
    let given = world.orders("a");
    assert!(!given.contains(&"Perform".to_owned()), "{given:?}");
    assert_eq!(world.orders("b"), Vec::<String>::new());

    world.agents["b"].agent.script.lock().unwrap().only_version = None;
    world.migrate("second", "web", &world.hosts["b"]).await;
    world.until_phase("second", "Succeeded").await;
    world.end().await;
}

/// An agent one version behind moves guests as it always did: it is given no order that it does not know, and no
/// migration that it cannot keep the terms of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kubernetes API server"]
async fn an_older_agent_is_asked_for_nothing_new() {
    let world = World::new().await;
    let guest = world.running_guest("web").await;
    let before = godwit_protocol::version::ARBITRATION - 1;
    world.agents["b"].agent.script.lock().unwrap().only_version = Some(before);
    let b = world.hosts["b"].clone();
    world
        .migrate_with("ManagedDirect", "Strict", "strict", "web", &b)
        .await;
    let failure = world.until_phase("strict", "Failed").await.failure.unwrap();
    assert_eq!(failure.reason, "ProtocolVersionUnsupported", "{failure:?}");
    assert!(failure.message.contains("strict handoff"), "{}", failure.message);
    assert_eq!(world.orders("b"), Vec::<String>::new());
    assert_eq!(world.record(&guest).await.unwrap().spec.holder, world.hosts["a"]);

    world.migrate("default", "web", &b).await;
    world.until_phase("default", "Succeeded").await;
    assert_eq!(world.orders("b"), ["Prepare", "Finish"]);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kubernetes API server"]
async fn a_migration_is_cancelled_by_word_and_by_deletion() {
    let world = World::new().await;
    let guest = world.running_guest("web").await;
    world.agents["a"].agent.script.lock().unwrap().endless = true;
    let api = world.api::<VirtualMachineMigration>();

    world.migrate("word", "web", &world.hosts["b"]).await;
    world.until_phase("word", "Perform").await;
    let cancel = Patch::Merge(json!({ "spec": { "cancel": true } }));
    api.patch("word", &PatchParams::default(), &cancel).await.unwrap();
    let status = world.until_phase("word", "Cancelled").await;
    assert_eq!(condition(&status.conditions, "Cancelled"), Some("Cancelled"));
    assert_eq!(status.failure.unwrap().reason, "Cancelled");

    world.migrate("deletion", "web", &world.hosts["b"]).await;
    world.until_phase("deletion", "Perform").await;
    api.delete("deletion", &DeleteParams::default()).await.unwrap();
    world.until_gone::<VirtualMachineMigration>("deletion").await;
    let record = world.record(&guest).await.unwrap().spec;
    assert_eq!(
        (record.holder.as_str(), record.decision),
        (world.hosts["a"].as_str(), Decision::Aborted)
    );
    world.end().await;
}

/// The record is armed, and the controller does not know it yet when the user thinks better of it: the record must not
/// stay armed for a migration that nobody drives any more, for no other could begin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kubernetes API server"]
async fn a_cancellation_that_crosses_the_arming_leaves_the_record_decided() {
    let world = World::new().await;
    let guest = world.running_guest("web").await;
    let api = world.api::<VirtualMachineMigration>();
    world.answers.keep_back();
    world.migrate("crossed", "web", &world.hosts["b"]).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while !world.answers.any() {
        assert!(Instant::now() < deadline, "the record is not written");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let armed = world.record(&guest).await.unwrap().spec;
    assert_eq!(armed.decision, Decision::None);
    let uid = api.get("crossed").await.unwrap().uid();
    assert_eq!(armed.migration.map(|armed| armed.uid), uid);

    let cancel = Patch::Merge(json!({ "spec": { "cancel": true } }));
    api.patch("crossed", &PatchParams::default(), &cancel)
        .await
        .unwrap();
    // Time for a mistake: whoever knows better waits for the answer, and then it makes no difference when it comes.
    let ended = world.until_phase("crossed", "Cancelled");
    let early = tokio::time::timeout(Duration::from_secs(2), ended).await;
    world.answers.release();
    assert!(early.is_err(), "it has ended before it knew what it had written");
    world.until_phase("crossed", "Cancelled").await;
    assert_eq!(
        world.record(&guest).await.unwrap().spec.decision,
        Decision::Aborted
    );

    world.migrate("next", "web", &world.hosts["b"]).await;
    world.until_phase("next", "Succeeded").await;
    world.end().await;
}

/// A second controller has armed the record for a migration that the first has ended, and died; or the object is gone, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kubernetes API server"]
async fn a_record_left_open_by_a_migration_that_is_over_is_decided() {
    let world = World::new().await;
    let guests = [
        world.running_guest("ended").await,
        world.running_guest("gone").await,
    ];
    world.migrate("refused", "ended", &world.hosts["a"]).await;
    let refused = world.until_phase("refused", "Failed").await;
    let refused_uid = world
        .api::<VirtualMachineMigration>()
        .get("refused")
        .await
        .unwrap();
    let nobodys = "00000000-0000-4000-8000-000000000000".to_owned();
    for (guest, migration) in guests.iter().zip([refused_uid.uid().unwrap(), nobodys]) {
        let mut record = world.record(guest).await.unwrap();
        record.spec.migration = Some(ArmedMigration {
            uid: migration,
            source: world.hosts["a"].clone(),
            destination: world.hosts["b"].clone(),
            strict: false,
        });
        record.spec.decision = Decision::None;
        let api: Api<GuestRecord> = Api::all(world.client.clone());
        api.replace(&guest.uid().unwrap(), &PostParams::default(), &record)
            .await
            .unwrap();
    }
    let reported = guests.iter().zip(["ended", "gone"]).map(|(guest, name)| {
        json!({ "uid": guest.uid(), "namespace": world.namespace, "name": name, "state": "Running", "epoch": 1,
            "since": "2026-01-01T00:00:00.000000Z" })
    });
    let reported: Vec<_> = reported.collect();
    world.host_status(&world.hosts["a"], json!(reported)).await;
    for guest in &guests {
        let deadline = Instant::now() + Duration::from_secs(40);
        while world.record(guest).await.unwrap().spec.decision != Decision::Aborted {
            assert!(
                Instant::now() < deadline,
                "its record stays open: {:?}",
                guest.metadata.name
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(world.record(guest).await.unwrap().spec.holder, world.hosts["a"]);
    }
    let still = world.until_phase("refused", "Failed").await;
    assert_eq!(still, refused, "what has ended keeps its word");
    world.migrate("next", "gone", &world.hosts["b"]).await;
    world.until_phase("next", "Succeeded").await;
    world.host_status(&world.hosts["a"], json!([])).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kubernetes API server"]
async fn a_cancellation_after_the_handover_has_begun_is_told_to_come_too_late() {
    use godwit_handover::{DestinationReport, SourceReport, Wanted};
    use godwit_protocol::Side;
    let world = World::new().await;
    world.running_guest("web").await;
    world.agents["a"].agent.script.lock().unwrap().endless = true;
    let api = world.api::<VirtualMachineMigration>();
    world.migrate("late", "web", &world.hosts["b"]).await;
    world.until_phase("late", "Perform").await;
    let migration = api.get("late").await.unwrap().uid().unwrap();
    let switching = SourceReport::Switching {
        sealed: true,
        ready: false,
        wanted: Some(Wanted::Run),
    };
    let source = world.agents["a"].agent.updates(&migration);
    source.send_modify(|update| update.side = Some(Side::Source(switching)));

    let cancel = Patch::Merge(json!({ "spec": { "cancel": true } }));
    api.patch("late", &PatchParams::default(), &cancel).await.unwrap();
    let late = |status: &godwit_crds::VirtualMachineMigrationStatus| {
        find_condition(&status.conditions, "Cancelled").is_some_and(|cancelled| {
            cancelled.status == ConditionStatus::False && cancelled.reason == "CancelTooLate"
        })
    };
    world
        .until::<VirtualMachineMigration>("late", |migration| {
            migration
                .status
                .as_ref()
                .filter(|status| late(status))
                .map(|_| migration.clone())
        })
        .await;

    // It goes on, and ends as if nobody had asked.
    let destination = world.agents["b"].agent.updates(&migration);
    destination.send_modify(|update| update.side = Some(Side::Destination(DestinationReport::Loaded)));
    let status = world.until_phase("late", "Succeeded").await;
    assert!(late(&status), "{:?}", status.conditions);
    assert_eq!(world.orders("a"), ["Begin", "Perform", "Ready", "Confirm"]);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kubernetes API server"]
async fn a_second_migration_of_the_same_guest_is_refused() {
    let world = World::new().await;
    let guest = world.running_guest("web").await;
    world.agents["a"].agent.script.lock().unwrap().endless = true;
    world.migrate("first", "web", &world.hosts["b"]).await;
    world.until_phase("first", "Perform").await;
    world.migrate("second", "web", &world.hosts["b"]).await;
    let failure = world.until_phase("second", "Failed").await.failure.unwrap();
    assert_eq!(failure.reason, "AnotherMigrationActive");
    assert!(failure.message.contains("first"), "{}", failure.message);
    let first = world.api::<VirtualMachineMigration>().get("first").await.unwrap();
    let armed = world.record(&guest).await.unwrap().spec.migration.unwrap();
    assert_eq!(Some(armed.uid), first.uid());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kubernetes API server"]
async fn a_killed_controller_is_followed_by_one_that_goes_on() {
    let mut world = World::new().await;
    world.running_guest("web").await;
    world.agents["a"].agent.script.lock().unwrap().endless = true;
    world.migrate("move", "web", &world.hosts["b"]).await;
    let before = world.until_phase("move", "Perform").await;
    world.kill_controller().await;

    // The guest is stopped and loaded while nobody drives.
    let migration = world
        .api::<VirtualMachineMigration>()
        .get("move")
        .await
        .unwrap()
        .uid()
        .unwrap();
    use godwit_handover::{DestinationReport, SourceReport, Wanted};
    use godwit_protocol::Side;
    let switching = SourceReport::Switching {
        sealed: true,
        ready: false,
        wanted: Some(Wanted::Run),
    };
    let source = world.agents["a"].agent.updates(&migration);
    source.send_modify(|update| update.side = Some(Side::Source(switching)));
    let destination = world.agents["b"].agent.updates(&migration);
    destination.send_modify(|update| update.side = Some(Side::Destination(DestinationReport::Loaded)));

    world.start_controller();
    let after = world.until_phase("move", "Succeeded").await;
    assert_eq!(
        after.timeline[..2],
        before.timeline[..2],
        "earlier times are kept"
    );
    assert_eq!(after.timeline[2].started_at, before.timeline[2].started_at);
    assert_eq!(world.orders("a"), ["Begin", "Perform", "Ready", "Confirm"]);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Kubernetes API server"]
async fn at_rest_nothing_is_written() {
    let mut world = World::new().await;
    world.running_guest("web").await;
    world.migrate("move", "web", &world.hosts["b"]).await;
    world.until_phase("move", "Succeeded").await;
    let uid = world
        .api::<VirtualMachine>()
        .get("web")
        .await
        .unwrap()
        .uid()
        .unwrap();
    world
        .host_status(
            &world.hosts["b"],
            json!([{ "uid": uid, "namespace": world.namespace, "name": "web", "state": "Running", "epoch": 2,
                "since": "2026-01-01T00:00:00Z" }]),
        )
        .await;
    world
        .until::<VirtualMachine>("web", |guest| {
            guest
                .status
                .as_ref()?
                .since
                .as_ref()
                .filter(|since| *since == "2026-01-01T00:00:00Z")
                .map(|_| guest.clone())
        })
        .await;
    world.stop_controller().await;
    // A new controller looks at everything once, and finds nothing to write.
    let before = world.writes();
    world.start_controller();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.writes(), before);
    world.end().await;
}
