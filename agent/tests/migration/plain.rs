//! Migrations to which nothing happens that need not, and orders that are refused.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use godwit_agent::guests::{GuestError, Role};
use godwit_agent::hypervisor::RunState;
use godwit_agent::migration::Migrations;
use godwit_handover::{Cause, DestinationReport, DriverEvent, Outcome, SourceReport, Terms};
use godwit_protocol::{GuestName, Order, OrderAnswer, Side, StreamOptions};

use super::conductor::now;
use super::played::definition;
use super::world::{World, eventually};

#[tokio::test]
async fn a_guest_moves_sealed() {
    let mut world = World::new().await;
    assert_eq!(world.conduct().await, Outcome::Succeeded { running: true });
    world.is_at_destination().await;
    let source = world.conductor.source.clone().unwrap();
    let destination = world.conductor.destination.clone().unwrap();
    let stopped = source.stopped_at_micros.unwrap();
    let resumed = destination.resumed_at_micros.unwrap();
    assert!(
        stopped < resumed && resumed - stopped < 1_000_000,
        "{stopped} to {resumed}"
    );
    assert_eq!(source.progress.unwrap().total_bytes, 1 << 30);
    assert_eq!(source.reason, "");
    assert_eq!(destination.reason, "");
}

#[tokio::test]
async fn a_guest_moves_unsealed_when_it_converges_by_itself() {
    let mut world = World::new().await;
    world
        .source
        .script
        .converges_by_itself
        .store(true, Ordering::Relaxed);
    assert_eq!(world.conduct().await, Outcome::Succeeded { running: true });
    world.is_at_destination().await;
}

#[tokio::test]
async fn looks_alone_tell_everything() {
    let mut world = World::new().await;
    world.source.script.mute.store(true, Ordering::Relaxed);
    world.destination.script.mute.store(true, Ordering::Relaxed);
    // Without word of its passes it is not sealed.
    world
        .source
        .script
        .converges_by_itself
        .store(true, Ordering::Relaxed);
    assert_eq!(world.conduct().await, Outcome::Succeeded { running: true });
    world.is_at_destination().await;
}

#[tokio::test]
async fn a_paused_guest_arrives_paused() {
    let mut world = World::new().await;
    world.source.guest().by_hand(false);
    assert_eq!(world.conduct().await, Outcome::Succeeded { running: false });
    world.nothing_went_wrong();
    assert!(world.arena.running().is_empty());
    assert_eq!(world.destination.guest().run_state_now(), RunState::Paused);
    world.all_ended().await;
}

#[tokio::test]
async fn a_guest_that_is_paused_by_hand_on_the_way_arrives_paused() {
    let mut world = World::new().await;
    world.source.script.keeps_dirtying.store(true, Ordering::Relaxed);
    world.until(|c| source_is(c, &SourceReport::Streaming)).await;
    world.source.guest().by_hand(false);
    // The intent is journaled anew.
    eventually("the pause is journaled", || {
        String::from_utf8_lossy(&std::fs::read(world.source.journal()).unwrap()).contains("StayStopped")
    })
    .await;
    world.source.script.keeps_dirtying.store(false, Ordering::Relaxed);
    assert_eq!(world.conduct().await, Outcome::Succeeded { running: false });
    world.nothing_went_wrong();
    assert!(world.arena.running().is_empty());
}

#[tokio::test]
async fn a_cancelled_migration_leaves_the_guest_as_it_was() {
    let mut world = World::new().await;
    world.source.script.keeps_dirtying.store(true, Ordering::Relaxed);
    world.until(|c| source_is(c, &SourceReport::Streaming)).await;
    world.conductor.feel(DriverEvent::Cancel);
    assert_eq!(world.conduct().await, Outcome::Aborted(Cause::Cancelled));
    world.is_at_source().await;
}

/// Orders everything up to the stream, and nobody proves the path: the conductor's keepalives do, once it is asked.
async fn perform(world: &World) {
    let held = world.source.agent.order(&world.terms, begin()).await.unwrap();
    let OrderAnswer::Begun { definition } = held else {
        panic!("{held:?}")
    };
    let prepare = Order::Prepare {
        guest: name(),
        definition,
        stream: StreamOptions::PLAIN,
        ticket: Vec::new(),
    };
    world
        .destination
        .agent
        .order(&world.terms, prepare)
        .await
        .unwrap();
    let Some(Side::Destination(DestinationReport::Prepared(channel))) =
        now(&world.destination.agent, &world.terms).await.unwrap().side
    else {
        panic!("not prepared")
    };
    world
        .source
        .agent
        .order(&world.terms, Order::Perform(channel))
        .await
        .unwrap();
}

#[tokio::test]
async fn without_a_proof_of_the_path_the_guest_is_not_stopped_for_long() {
    let mut world = World::new().await;
    world
        .source
        .script
        .converges_by_itself
        .store(true, Ordering::Relaxed);
    perform(&world).await;
    let start = Instant::now();
    loop {
        let side = now(&world.source.agent, &world.terms).await.unwrap().side;
        if side == Some(Side::Source(SourceReport::Aborted(Cause::PathNotProven))) {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{side:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(world.conduct().await, Outcome::Aborted(Cause::PathNotProven));
    world.is_at_source().await;
}

#[tokio::test]
async fn until_the_path_is_proved_the_stream_is_held_back() {
    let mut world = World::new().await;
    let script = &world.source.script;
    script.converges_unlimited.store(true, Ordering::Relaxed);
    perform(&world).await;
    let guest = world.source.guest();
    let crawls = |since: u64| {
        let (bytes_per_second, passes) = guest.pace();
        (1..=1 << 20).contains(&bytes_per_second) && passes > since
    };
    eventually("the stream crawls", || crawls(10)).await;
    // A limit that is lifted meanwhile is for later.
    let lifted = Order::Retune { bandwidth: 0 };
    world.source.agent.order(&world.terms, lifted).await.unwrap();
    let (_, passes) = guest.pace();
    // Nor does an agent that is new know of any proof.
    world.source.restart().await;
    eventually("the stream crawls on", || crawls(passes + 20)).await;
    let side = now(&world.source.agent, &world.terms).await.unwrap().side;
    assert_eq!(side, Some(Side::Source(SourceReport::Streaming)));
    assert_eq!(guest.run_state_now(), RunState::Running);
    // The conductor proves it.
    assert_eq!(world.conduct().await, Outcome::Succeeded { running: true });
    world.is_at_destination().await;
}

#[tokio::test]
async fn a_second_migration_of_the_guest_is_refused_until_the_first_has_ended() {
    let mut world = World::new().await;
    world.source.script.keeps_dirtying.store(true, Ordering::Relaxed);
    world.until(|c| source_is(c, &SourceReport::Streaming)).await;
    let other = Terms {
        migration: "migration-2".into(),
        ..world.terms.clone()
    };
    assert_eq!(
        reason(&world.source.agent, &other, begin()).await,
        "AnotherMigrationActive"
    );
    let prepare = Order::Prepare {
        guest: name(),
        definition: definition().json().to_vec(),
        stream: StreamOptions::PLAIN,
        ticket: Vec::new(),
    };
    assert_eq!(
        reason(&world.destination.agent, &other, prepare).await,
        "AnotherMigrationActive"
    );
    world.conductor.feel(DriverEvent::Cancel);
    world.conduct().await;
    world.is_at_source().await;
    world.source.agent.order(&other, begin()).await.unwrap();
}

#[tokio::test]
async fn orders_that_do_not_fit_are_refused_by_name() {
    let world = World::new().await;
    let old = Terms {
        epoch: 3,
        ..world.terms.clone()
    };
    assert_eq!(reason(&world.source.agent, &old, begin()).await, "StaleEpoch");
    assert!(!world.source.journal().exists());
    assert_eq!(
        reason(&world.source.agent, &world.terms, Order::Ready).await,
        "MigrationUnknown"
    );
    world.source.agent.order(&world.terms, begin()).await.unwrap();
    let other = Terms {
        destination: "host-c".into(),
        ..world.terms.clone()
    };
    assert_eq!(
        reason(&world.source.agent, &other, Order::Ready).await,
        "OtherTerms"
    );
    assert_eq!(
        reason(&world.source.agent, &world.terms, Order::Confirm).await,
        "OrderTooEarly"
    );
    // Repeated, it answers the same.
    assert_eq!(
        world.source.agent.order(&world.terms, begin()).await.unwrap(),
        OrderAnswer::Begun {
            definition: definition().json().to_vec()
        }
    );
    let prepare = Order::Prepare {
        guest: name(),
        definition: b"{}".to_vec(),
        stream: StreamOptions::PLAIN,
        ticket: Vec::new(),
    };
    assert_eq!(
        reason(&world.destination.agent, &world.terms, prepare).await,
        "DefinitionRefused"
    );
}

#[tokio::test]
async fn what_the_destination_lacks_is_the_answer_to_prepare() {
    let mut world = World::new().await;
    *world.destination.custody.refuse_launch.lock().unwrap() =
        Some(GuestError::CpuModelMissing("Skylake".into()));
    let prepare = || Order::Prepare {
        guest: name(),
        definition: definition().json().to_vec(),
        stream: StreamOptions::PLAIN,
        ticket: Vec::new(),
    };
    assert_eq!(
        reason(&world.destination.agent, &world.terms, prepare()).await,
        "CpuModelMissing"
    );
    // The attempt is over there: repeated, also after a restart, it starts no process.
    for _ in 0..2 {
        world
            .destination
            .agent
            .order(&world.terms, prepare())
            .await
            .unwrap();
        let reverted = DestinationReport::Reverted(Cause::DestinationFailed);
        eventually("it is over", || world.destination.agent.active().is_empty()).await;
        let update = now(&world.destination.agent, &world.terms).await.unwrap();
        assert_eq!(update.side, Some(Side::Destination(reverted)));
        assert!(world.destination.kept.lock().unwrap().is_empty());
        world.destination.restart().await;
    }
}

#[tokio::test]
async fn a_journal_without_a_place_is_met_before_anything_is_begun() {
    let world = World::new().await;
    // A file where the journals' directory should be.
    let directory = world.source.directory.path().join("journals");
    std::fs::remove_dir_all(&directory).unwrap();
    std::fs::write(&directory, b"").unwrap();
    assert_eq!(
        reason(&world.source.agent, &world.terms, begin()).await,
        "DiskFailed"
    );
    assert_eq!(world.source.kept.lock().unwrap()["guest-1"].role, Role::Held);
    world.nothing_went_wrong();
}

#[tokio::test]
async fn nobody_needs_to_watch_a_migration_that_is_not_known() {
    let world = World::new().await;
    assert_eq!(now(&world.source.agent, &world.terms).await.unwrap().side, None);
}

pub fn begin() -> Order {
    Order::Begin {
        max_downtime: Duration::from_millis(300),
        stream: StreamOptions::PLAIN,
    }
}

pub fn name() -> GuestName {
    GuestName {
        uid: "guest-1".into(),
        namespace: "default".into(),
        name: "g".into(),
    }
}

pub async fn reason(agent: &Migrations, terms: &Terms, order: Order) -> String {
    agent.order(terms, order).await.unwrap_err().reason.into_owned()
}

pub fn source_is(conductor: &super::conductor::Conductor, report: &SourceReport) -> bool {
    conductor.source.as_ref().and_then(|update| update.side.clone()) == Some(Side::Source(*report))
}
