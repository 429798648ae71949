//! What happens when something fails: the guest runs on exactly one host in the end, or its only image died.

use std::sync::atomic::Ordering;
use std::time::Duration;

use godwit_agent::guests::Role;
use godwit_agent::hypervisor::RunState;
use godwit_handover::{Cause, DestinationReport, DriverEvent, Outcome, SourceReport};
use godwit_protocol::{Order, Side, StreamOptions};

use super::conductor::{Conductor, now};
use super::plain::{begin, name, source_is};
use super::played::{Kept, definition};
use super::world::{World, eventually};

/// Ends as it must whatever the moment of the fault: the guest runs at one host, and nothing is left at the other.
async fn ends_well(world: &mut World, what: &str) {
    let outcome = world.conduct().await;
    match outcome {
        Outcome::Succeeded { running: true } => world.is_at_destination().await,
        Outcome::Aborted(_) => world.is_at_source().await,
        Outcome::Succeeded { running: false } | Outcome::GuestLost(_) => {
            panic!("{what}: {outcome:?}\n{}", world.conductor.story())
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side1 {
    Source,
    Destination,
}

/// The agent of one side is killed when its guests have been asked `call` times, and comes back at once.
async fn crash_at(side: Side1, call: usize, unsealed: bool) -> bool {
    let mut world = World::new().await;
    world
        .source
        .script
        .converges_by_itself
        .store(unsealed, Ordering::Relaxed);
    let script = match side {
        Side1::Source => world.source.script.clone(),
        Side1::Destination => world.destination.script.clone(),
    };
    script.crash_at_call.store(call, Ordering::SeqCst);
    let what = format!("{side:?} at call {call}, unsealed {unsealed}");
    let World {
        conductor,
        source,
        destination,
        ..
    } = &mut world;
    let crashed = tokio::select! {
        () = script.crash.notified() => true,
        () = conductor.until(&source.agent, &destination.agent, |c| c.outcome().is_some()) => false,
    };
    if crashed {
        match side {
            Side1::Source => world.source.restart().await,
            Side1::Destination => world.destination.restart().await,
        }
        // The conductor's call was cut short too: it is asked again from the beginning.
        world.conductor = Conductor::new(&world.terms, &world.record);
    }
    ends_well(&mut world, &what).await;
    crashed
}

#[tokio::test]
async fn the_sources_agent_may_die_at_every_request_sealed() {
    for call in 1..40 {
        if !crash_at(Side1::Source, call, false).await {
            assert!(call > 6, "only {call} requests were made");
            return;
        }
    }
}

#[tokio::test]
async fn the_sources_agent_may_die_at_every_request_unsealed() {
    for call in 1..40 {
        if !crash_at(Side1::Source, call, true).await {
            assert!(call > 5, "only {call} requests were made");
            return;
        }
    }
}

#[tokio::test]
async fn the_destinations_agent_may_die_at_every_request() {
    for call in 1..40 {
        if !crash_at(Side1::Destination, call, call % 2 == 0).await {
            assert!(call > 1, "only {call} requests were made");
            return;
        }
    }
}

/// The agents are killed in every report that they make, one after the other and both at once.
#[tokio::test]
async fn agents_may_die_in_every_round() {
    for round in 0..30 {
        for (source, destination) in [(true, false), (false, true), (true, true)] {
            let mut world = World::new().await;
            let mut over = false;
            for _ in 0..round {
                world
                    .conductor
                    .round(&world.source.agent, &world.destination.agent)
                    .await;
                over |= world.conductor.outcome().is_some();
            }
            if source {
                world.source.restart().await;
            }
            if destination {
                world.destination.restart().await;
            }
            ends_well(&mut world, &format!("round {round}, {source}, {destination}")).await;
            if over {
                return;
            }
        }
    }
}

#[tokio::test]
async fn a_sealed_source_that_fails_late_stays_stopped_and_the_guest_goes_on_at_the_destination() {
    let mut world = World::new().await;
    world.source.script.fails_late.store(true, Ordering::Relaxed);
    assert_eq!(world.conduct().await, Outcome::Succeeded { running: true });
    world.is_at_destination().await;
}

#[tokio::test]
async fn an_unsealed_source_that_fails_late_runs_again_and_the_copy_is_given_up() {
    let mut world = World::new().await;
    world
        .source
        .script
        .converges_by_itself
        .store(true, Ordering::Relaxed);
    world.source.script.fails_late.store(true, Ordering::Relaxed);
    assert_eq!(world.conduct().await, Outcome::Aborted(Cause::StreamFailed));
    world.is_at_source().await;
    let source = world.conductor.source.clone().unwrap();
    assert_eq!(source.reason, "StreamFailed");
    assert_eq!(source.detail, "the answer was lost");
}

#[tokio::test]
async fn a_destination_that_fails_before_it_has_loaded_leaves_the_guest_at_the_source() {
    for unsealed in [false, true] {
        let mut world = World::new().await;
        world
            .source
            .script
            .converges_by_itself
            .store(unsealed, Ordering::Relaxed);
        world
            .destination
            .script
            .destination_fails
            .store(true, Ordering::Relaxed);
        let outcome = world.conduct().await;
        assert!(matches!(outcome, Outcome::Aborted(_)), "{outcome:?}");
        world.is_at_source().await;
    }
}

#[tokio::test]
async fn a_start_that_is_refused_at_first_is_tried_again() {
    let mut world = World::new().await;
    world
        .destination
        .script
        .resume_refusals
        .store(2, Ordering::SeqCst);
    assert_eq!(world.conduct().await, Outcome::Succeeded { running: true });
    world.is_at_destination().await;
    assert_eq!(
        world.conductor.destination.clone().unwrap().reason,
        "StartRefused"
    );
}

#[tokio::test]
async fn an_order_to_switch_over_that_got_lost_is_given_again() {
    let mut world = World::new().await;
    world.source.script.lost_switchovers.store(2, Ordering::SeqCst);
    assert_eq!(world.conduct().await, Outcome::Succeeded { running: true });
    world.is_at_destination().await;
}

#[tokio::test]
async fn a_source_process_that_dies_before_the_switchover_is_a_guest_lost() {
    let mut world = World::new().await;
    world.source.script.keeps_dirtying.store(true, Ordering::Relaxed);
    world.until(|c| source_is(c, &SourceReport::Streaming)).await;
    world.source.guest().kill();
    assert_eq!(world.conduct().await, Outcome::GuestLost(Cause::SourceDied));
    world.nothing_went_wrong();
    assert!(world.arena.running().is_empty());
    eventually("the destination is empty", || {
        world.destination.kept.lock().unwrap().is_empty()
    })
    .await;
    world.all_ended().await;
    assert_eq!(
        world.conductor.source.clone().unwrap().reason,
        "SourceHypervisorDied"
    );
}

#[tokio::test]
async fn a_destination_process_that_dies_on_the_way_leaves_the_guest_at_the_source() {
    let mut world = World::new().await;
    world.source.script.keeps_dirtying.store(true, Ordering::Relaxed);
    world.until(|c| source_is(c, &SourceReport::Streaming)).await;
    world.destination.guest().kill();
    let outcome = world.conduct().await;
    assert!(matches!(outcome, Outcome::Aborted(_)), "{outcome:?}");
    world.is_at_source().await;
}

/// The end of the process and the order to let it run come together: that the agent obeys is not written down then.
#[tokio::test]
async fn a_destination_process_that_died_unseen_before_go_leaves_the_guest_at_the_source() {
    let mut world = World::new().await;
    world
        .destination
        .script
        .dies_unseen
        .store(true, Ordering::Relaxed);
    world.until(|c| c.loaded()).await;
    world.destination.guest().kill();
    let outcome = world.conduct().await;
    assert_eq!(outcome, Outcome::Aborted(Cause::DestinationDied));
    world.is_at_source().await;
    let journal = std::fs::read(world.destination.journal()).unwrap();
    let journal = String::from_utf8_lossy(&journal);
    assert!(journal.contains("RevertIntent") && !journal.contains("ContIssued"));
}

/// The agent is killed once it has let the guest run, and is not told what the guest meets until it is back.
#[tokio::test]
async fn a_guest_that_ended_while_its_agent_was_away_is_not_let_run_again() {
    let mut world = World::new().await;
    let arena = world.arena.clone();
    world.until(move |_| arena.running() == ["host-b"]).await;
    world.destination.crash().await;
    // As killed before it could write down that the guest runs.
    let journal = world.destination.journal();
    let bytes = std::fs::read(&journal).unwrap();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(text.contains("ContIssued") && !text.contains("Ended"), "{text}");
    world.destination.guest().meets_disk_error();
    world.destination.agent.recover().await.unwrap();
    assert!(matches!(world.conduct().await, Outcome::Succeeded { .. }));
    world.nothing_went_wrong();
    assert_eq!(world.destination.guest().run_state_now(), RunState::IoError);
    assert!(world.arena.running().is_empty());
}

#[tokio::test]
async fn a_guest_that_powers_off_on_the_way_stays_at_the_source_powered_off() {
    let mut world = World::new().await;
    world.source.script.keeps_dirtying.store(true, Ordering::Relaxed);
    world.until(|c| source_is(c, &SourceReport::Streaming)).await;
    world.source.guest().power_off();
    assert_eq!(world.conduct().await, Outcome::Aborted(Cause::GuestStopped));
    world.nothing_went_wrong();
    assert_eq!(world.source.guest().run_state_now(), RunState::ShutDown);
    world.all_ended().await;
    assert_eq!(world.conductor.source.clone().unwrap().reason, "GuestPoweredOff");
}

/// Whoever pauses and resumes the guest by hand fills the journal; then the migration ends, and the guest goes on.
#[tokio::test]
async fn a_journal_that_takes_no_more_ends_the_migration_before_the_guest_is_stopped() {
    let mut world = World::new().await;
    world.source.script.keeps_dirtying.store(true, Ordering::Relaxed);
    world.until(|c| source_is(c, &SourceReport::Streaming)).await;
    let mut run = true;
    for _ in 0..1000 {
        if !source_is(&world.conductor, &SourceReport::Streaming) {
            break;
        }
        run = !run;
        world.source.guest().by_hand(run);
        let lines = || {
            // In the end it is removed: it could not be told that the migration has ended.
            let bytes = std::fs::read(world.source.journal()).unwrap_or_default();
            String::from_utf8_lossy(&bytes).matches("Intent").count()
        };
        let before = lines();
        let start = std::time::Instant::now();
        while lines() == before && start.elapsed() < Duration::from_millis(400) {
            world
                .conductor
                .hear(&world.source.agent, &world.destination.agent)
                .await;
            if !source_is(&world.conductor, &SourceReport::Streaming) {
                break;
            }
            let _ = world
                .source
                .agent
                .keep_alive(&world.terms, true, Duration::from_secs(30));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let outcome = world.conduct().await;
    assert_eq!(outcome, Outcome::Aborted(Cause::JournalFailed));
    world.nothing_went_wrong();
    assert_eq!(world.conductor.source.clone().unwrap().reason, "DiskFailed");
    assert!(world.destination.kept.lock().unwrap().is_empty());
    // Another agent does not take it for unended.
    world.source.restart().await;
    assert!(world.source.agent.active().is_empty() && world.source.agent.unresolved().is_empty());
}

#[tokio::test]
async fn a_silent_driver_ends_what_has_not_begun_and_nothing_else() {
    let mut world = World::new().await;
    world.source.script.keeps_dirtying.store(true, Ordering::Relaxed);
    world.until(|c| source_is(c, &SourceReport::Streaming)).await;
    for side in [&world.source.agent, &world.destination.agent] {
        side.keep_alive(&world.terms, true, Duration::from_millis(100))
            .unwrap();
    }
    eventually("the source gives up", || world.source.agent.active().is_empty()).await;
    let report = now(&world.source.agent, &world.terms).await.unwrap().side;
    assert_eq!(
        report,
        Some(Side::Source(SourceReport::Aborted(Cause::DriverSilent)))
    );
    assert_eq!(world.arena.running(), ["host-a"]);
    // The destination's copy goes with its stream.
    eventually("the destination gives up", || {
        world.destination.agent.active().is_empty()
    })
    .await;
    world.is_at_source().await;
}

#[tokio::test]
async fn a_migration_that_has_ended_is_not_begun_again_after_a_restart() {
    let mut world = World::new().await;
    assert_eq!(world.conduct().await, Outcome::Succeeded { running: true });
    world.is_at_destination().await;
    world.source.restart().await;
    world.destination.restart().await;
    assert!(world.source.agent.active().is_empty() && world.destination.agent.active().is_empty());
    let source = now(&world.source.agent, &world.terms).await.unwrap();
    assert_eq!(source.side, Some(Side::Source(SourceReport::Released)));
    let destination = now(&world.destination.agent, &world.terms).await.unwrap();
    assert_eq!(
        destination.side,
        Some(Side::Destination(DestinationReport::Holding { running: true }))
    );
    // A late repetition does nothing.
    let prepare = godwit_protocol::Order::Prepare {
        guest: name(),
        definition: definition().json().to_vec(),
        stream: godwit_protocol::StreamOptions::PLAIN,
        ticket: Vec::new(),
    };
    world
        .destination
        .agent
        .order(&world.terms, prepare)
        .await
        .unwrap();
    world.source.agent.order(&world.terms, begin()).await.unwrap_err();
    world.is_at_destination().await;
}

/// A journal whose end could not be written does not speak for a guest that has come back under a later epoch.
#[tokio::test]
async fn a_guest_that_has_come_back_is_none_of_an_old_journals_business() {
    let mut world = World::new().await;
    assert_eq!(world.conduct().await, Outcome::Succeeded { running: true });
    world.is_at_destination().await;
    world.source.crash().await;
    // The end is cut off, as if it had not been written.
    let mut bytes = std::fs::read(world.source.journal()).unwrap();
    let end = bytes.windows(7).rposition(|w| w == b"{\"Ended").unwrap() - 8;
    bytes[end..].fill(0);
    std::fs::write(world.source.journal(), &bytes).unwrap();
    let kept = world.destination.kept.lock().unwrap().remove("guest-1").unwrap();
    world
        .source
        .kept
        .lock()
        .unwrap()
        .insert("guest-1".into(), Kept { epoch: 6, ..kept });
    world.source.agent.recover().await.unwrap();
    eventually("the old migration is over", || {
        world.source.agent.active().is_empty()
    })
    .await;
    assert_eq!(world.source.agent.unresolved(), vec![]);
    assert_eq!(world.source.guest().run_state_now(), RunState::Running);
    let report = now(&world.source.agent, &world.terms).await.unwrap().side;
    assert_eq!(report, Some(Side::Source(SourceReport::Released)));
}

#[tokio::test]
async fn a_journal_that_cannot_be_believed_is_left_alone_and_said() {
    let mut world = World::new().await;
    world.source.script.keeps_dirtying.store(true, Ordering::Relaxed);
    world.until(|c| source_is(c, &SourceReport::Streaming)).await;
    eventually("the intent is journaled", || {
        String::from_utf8_lossy(&std::fs::read(world.source.journal()).unwrap()).contains("Intent")
    })
    .await;
    world.source.crash().await;
    let mut bytes = std::fs::read(world.source.journal()).unwrap();
    let at = bytes.iter().rposition(|b| *b == b'I').unwrap();
    bytes[at] ^= 1;
    std::fs::write(world.source.journal(), &bytes).unwrap();
    world.source.agent.recover().await.unwrap();
    let unresolved = world.source.agent.unresolved();
    assert_eq!(unresolved.len(), 1);
    assert_eq!(unresolved[0].reason, "JournalDamaged");
    assert_eq!(unresolved[0].guest.as_deref(), Some("guest-1"));
    // Not known is not the same as not there.
    assert_eq!(now(&world.source.agent, &world.terms).await, None);
    let fault = world.source.agent.order(&world.terms, begin()).await.unwrap_err();
    assert_eq!(fault.reason, "JournalDamaged");
    assert_eq!(world.arena.running(), ["host-a"]);
    world.conductor.feel(DriverEvent::Cancel);
}

/// A missing journal is evidence of nothing: a copy that is whole may be the only one.
#[tokio::test]
async fn a_whole_copy_of_which_no_journal_speaks_is_left_alone() {
    for whole in [false, true] {
        let mut world = World::new().await;
        world
            .until(move |c| {
                let side = c.destination.as_ref().and_then(|update| update.side.clone());
                let wanted = if whole {
                    DestinationReport::Loaded
                } else {
                    DestinationReport::Receiving
                };
                side == Some(Side::Destination(wanted))
            })
            .await;
        world.destination.crash().await;
        std::fs::remove_file(world.destination.journal()).unwrap();
        world.destination.agent.recover().await.unwrap();
        let kept = world.destination.kept.lock().unwrap().contains_key("guest-1");
        let unresolved = world.destination.agent.unresolved();
        // What it was seen to receive may have become whole since.
        assert_eq!(unresolved.len(), usize::from(kept));
        if whole {
            assert!(kept);
            assert_eq!(unresolved[0].reason, "JournalDamaged");
        }
        world.nothing_went_wrong();
    }
}

/// Whoever ordered is killed before it is answered: its call ends, wherever it was. What it ordered is done all the
/// same, and is there for whoever orders it again.
#[tokio::test]
async fn an_order_is_carried_out_whole_though_its_giver_is_gone() {
    let mut world = World::new().await;
    let prepare = || Order::Prepare {
        guest: name(),
        definition: definition().json().to_vec(),
        stream: StreamOptions::PLAIN,
        ticket: Vec::new(),
    };
    for (host, order) in [
        (&world.source, &begin as &dyn Fn() -> Order),
        (&world.destination, &prepare),
    ] {
        let mut given = Box::pin(host.agent.order(&world.terms, order()));
        assert!(futures::poll!(&mut given).is_pending());
        drop(given);
        eventually("the journal is there", || host.journal().exists()).await;
        host.agent.order(&world.terms, order()).await.unwrap();
        // A repetition is answered before the process is there.
        eventually("the guest is the migration's", || {
            let kept = host.kept.lock().unwrap();
            let role = kept.get("guest-1").map(|kept| kept.role.clone());
            matches!(role, Some(Role::Leaving { .. } | Role::Arriving { .. }))
        })
        .await;
    }
    assert_eq!(world.conduct().await, Outcome::Succeeded { running: true });
    world.is_at_destination().await;
}
