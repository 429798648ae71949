//! Nobody says Go, and the record decides who runs the guest: the agents ask it by themselves.

use std::time::Duration;

use godwit_handover::{Decision, DestinationReport, Outcome, SourceReport};
use godwit_protocol::Side;

use super::conductor::{Conductor, now};
use super::world::{Host, World, eventually};

/// How long a side bears the silence of whoever drives, here.
const SILENCE: Duration = Duration::from_millis(100);

/// The destination has the guest whole, and whoever drives is lost before these orders arrive.
async fn nobody_says_go(lost: &[&'static str]) -> World {
    nobody_says_go_in(World::new().await, lost).await
}

async fn nobody_says_go_in(mut world: World, lost: &[&'static str]) -> World {
    world.conductor.lost = lost.to_vec();
    world
        .until(|conductor| {
            let source = conductor.source.as_ref().and_then(|update| update.side.as_ref());
            let switched = matches!(
                source,
                Some(Side::Source(
                    SourceReport::Switching { sealed: true, .. } | SourceReport::GoSent(_)
                ))
            );
            conductor.loaded() && switched
        })
        .await;
    // What follows from the last reports is on its way.
    let (source, destination) = (&world.source.agent, &world.destination.agent);
    world.conductor.round(source, destination).await;
    world
}

fn is_silent(world: &World, host: &Host) {
    host.agent.keep_alive(&world.terms, true, SILENCE).unwrap();
}

async fn is_decided(world: &World) -> Decision {
    eventually("the record is decided", || {
        world.record.view().decision != Decision::None
    })
    .await;
    world.record.view().decision
}

/// The next one who drives finds it decided, and ends it so.
async fn ends_as_decided(world: &mut World, decision: Decision) {
    world.conductor = Conductor::new(&world.terms, &world.record);
    match (world.conduct().await, decision) {
        (Outcome::Succeeded { running: true }, Decision::Committed) => world.is_at_destination().await,
        (Outcome::Aborted(_), Decision::Aborted) => world.is_at_source().await,
        (outcome, decision) => panic!("{outcome:?} after {decision:?}\n{}", world.conductor.story()),
    }
}

#[tokio::test]
async fn both_sides_ask_and_one_of_them_runs_the_guest() {
    let mut world = nobody_says_go(&["Ready"]).await;
    is_silent(&world, &world.source);
    is_silent(&world, &world.destination);
    let decision = is_decided(&world).await;
    let host = match decision {
        Decision::Committed => "host-b",
        Decision::Aborted | Decision::Reverted | Decision::None => "host-a",
    };
    eventually("the guest runs where the record says", || {
        world.arena.running() == [host]
    })
    .await;
    world.nothing_went_wrong();
    ends_as_decided(&mut world, decision).await;
}

#[tokio::test]
async fn a_source_whose_destination_is_gone_gets_its_guest_back() {
    let mut world = nobody_says_go(&["Ready"]).await;
    world.destination.crash().await;
    is_silent(&world, &world.source);
    assert_eq!(is_decided(&world).await, Decision::Aborted);
    eventually("the guest runs again", || world.arena.running() == ["host-a"]).await;
    world.destination.agent.recover().await.unwrap();
    ends_as_decided(&mut world, Decision::Aborted).await;
}

#[tokio::test]
async fn a_destination_that_was_told_that_the_source_stands_still_runs_the_guest() {
    let mut world = nobody_says_go(&["Ready"]).await;
    world.source.crash().await;
    is_silent(&world, &world.destination);
    assert_eq!(is_decided(&world).await, Decision::Committed);
    eventually("the guest runs at the destination", || {
        world.arena.running() == ["host-b"]
    })
    .await;
    world.source.agent.recover().await.unwrap();
    ends_as_decided(&mut world, Decision::Committed).await;
}

/// A restarted agent goes on asking, though nobody tells it anything again.
#[tokio::test]
async fn a_commitment_outlives_the_destinations_agent() {
    let mut world = nobody_says_go(&["Ready"]).await;
    world.source.crash().await;
    world
        .destination
        .script
        .resume_refusals
        .store(1, std::sync::atomic::Ordering::SeqCst);
    is_silent(&world, &world.destination);
    assert_eq!(is_decided(&world).await, Decision::Committed);
    world.destination.restart().await;
    eventually("the guest runs at the destination", || {
        world.arena.running() == ["host-b"]
    })
    .await;
    world.source.agent.recover().await.unwrap();
    ends_as_decided(&mut world, Decision::Committed).await;
}

/// Rule 3: without that word it waits for the source, however long.
#[tokio::test]
async fn a_destination_that_was_told_nothing_asks_and_waits() {
    let mut world = nobody_says_go(&["Ready", "SourceStands"]).await;
    world.source.crash().await;
    is_silent(&world, &world.destination);
    let asked = world.record.read_count();
    eventually("the record is read", || world.record.read_count() > asked).await;
    assert_eq!(world.record.view().decision, Decision::None);
    assert_eq!(world.arena.running(), Vec::<String>::new());
    let update = now(&world.destination.agent, &world.terms).await.unwrap();
    assert_eq!(
        update.side,
        Some(Side::Destination(DestinationReport::Loaded)),
        "{update:?}"
    );
    world.source.agent.recover().await.unwrap();
    world.conductor = Conductor::new(&world.terms, &world.record);
    assert_eq!(world.conduct().await, Outcome::Succeeded { running: true });
    world.is_at_destination().await;
}

/// What is decided against is given up upon the record alone.
#[tokio::test]
async fn a_destination_that_reads_aborted_gives_its_copy_up() {
    let mut world = nobody_says_go(&["Ready"]).await;
    world.record.0.lock().unwrap().decision = Decision::Aborted;
    is_silent(&world, &world.destination);
    eventually("the copy is gone", || {
        world.destination.kept.lock().unwrap().is_empty()
    })
    .await;
    ends_as_decided(&mut world, Decision::Aborted).await;
}

/// Strict: the guest runs once the record says so, and not before.
#[tokio::test]
async fn a_strict_migration_is_committed_and_started_in_the_record() {
    let mut world = World::strict().await;
    assert_eq!(world.conduct().await, Outcome::Succeeded { running: true });
    world.is_at_destination().await;
    assert!(world.record.view().started);
}

/// Strict: Go was said, and the destination is not heard any more before it has committed: the source asks for the guest.
#[tokio::test]
async fn a_strict_source_gets_its_guest_back_after_go() {
    let mut world = nobody_says_go_in(World::strict().await, &["Finish"]).await;
    world
        .until(|conductor| {
            let source = conductor.source.as_ref().and_then(|update| update.side.as_ref());
            matches!(source, Some(Side::Source(SourceReport::GoSent(_))))
        })
        .await;
    world.destination.crash().await;
    is_silent(&world, &world.source);
    assert_eq!(is_decided(&world).await, Decision::Aborted);
    eventually("the guest runs again", || world.arena.running() == ["host-a"]).await;
    world.destination.agent.recover().await.unwrap();
    ends_as_decided(&mut world, Decision::Aborted).await;
}

/// Not strict, a Go that was said is for ever: nobody asks, and the destination runs the guest when it is back.
#[tokio::test]
async fn a_source_that_has_said_go_waits_for_the_destination() {
    let mut world = nobody_says_go(&["Finish"]).await;
    world
        .until(|conductor| {
            let source = conductor.source.as_ref().and_then(|update| update.side.as_ref());
            matches!(source, Some(Side::Source(SourceReport::GoSent(_))))
        })
        .await;
    world.destination.crash().await;
    is_silent(&world, &world.source);
    tokio::time::sleep(3 * SILENCE).await;
    assert_eq!(world.record.view().decision, Decision::None);
    assert_eq!(world.arena.running(), Vec::<String>::new());
    world.destination.agent.recover().await.unwrap();
    world.conductor = Conductor::new(&world.terms, &world.record);
    assert_eq!(world.conduct().await, Outcome::Succeeded { running: true });
    world.is_at_destination().await;
}
