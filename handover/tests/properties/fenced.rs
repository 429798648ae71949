//! An administrator's word: what follows from it, and what does not.

use godwit_handover::{
    Cause, Decision, Destination, DestinationEffect, DestinationEntry, DestinationEvent, DestinationReport,
    Driver, DriverEffect, DriverEvent, Go, GoEvidence, Outcome, RecordView, SourceEffect, SourceEntry,
    SourceEvent, SourceReport, Stand, StandingBecause, Terms, Wait, Wanted,
};
use proptest::prelude::*;

use crate::{destination_run, source_run, words};

fn source() -> String {
    words::terms().source
}

fn destination() -> String {
    words::terms().destination
}

fn go() -> Go {
    Go {
        evidence: GoEvidence::Completed,
        wanted: Wanted::Run,
        sealed: true,
    }
}

fn driver(
    terms: Terms,
    record: RecordView,
    source: Option<SourceReport>,
    destination: Option<DestinationReport>,
) -> Driver {
    let mut events = vec![DriverEvent::Record(record)];
    events.extend(source.map(|report| DriverEvent::Source(Some(report))));
    events.extend(destination.map(|report| DriverEvent::Destination(Some(report))));
    events
        .into_iter()
        .fold(Driver::new(terms), |driver, event| driver.step(event).0)
}

fn decision() -> Stand {
    Stand::Waiting { wait: Wait::Decision }
}

#[test]
fn after_go_a_fenced_destination_is_waited_for_until_it_is_given_up_for_lost() {
    for (lost, effects, stand) in [
        (false, vec![], decision()),
        (
            true,
            vec![DriverEffect::AdvanceRecord],
            Stand::Waiting { wait: Wait::Record },
        ),
    ] {
        let record = words::fenced(words::armed(), &[destination()], lost);
        let driver = driver(words::terms(), record, Some(SourceReport::GoSent(go())), None);
        assert_eq!((driver.next(), driver.stand()), (effects, stand), "{lost}");
    }
    // Then the source lets go, and the guest is lost.
    let advanced = words::fenced(words::advanced(), &[destination()], true);
    let bound = driver(
        words::terms(),
        advanced.clone(),
        Some(SourceReport::GoSent(go())),
        None,
    );
    assert_eq!(bound.next(), [DriverEffect::Confirm]);
    let released = driver(words::terms(), advanced, Some(SourceReport::Released), None);
    assert_eq!(
        released.stand(),
        Stand::Ended(Outcome::GuestLost(Cause::DestinationDied))
    );
}

#[test]
fn before_go_the_source_of_a_fenced_destination_keeps_its_guest() {
    let record = words::fenced(words::armed(), &[destination()], true);
    let given = |report| driver(words::terms(), record.clone(), Some(report), None).next();
    assert_eq!(
        given(SourceReport::Streaming),
        [DriverEffect::AbortSource(Cause::DestinationDied)]
    );
    let standing = SourceReport::Switching {
        sealed: true,
        ready: true,
        wanted: Some(Wanted::Run),
    };
    assert_eq!(
        given(standing),
        [DriverEffect::ArbitrateSource(Cause::DestinationDied)]
    );
    assert_eq!(
        given(SourceReport::Aborted(Cause::DestinationDied)),
        [DriverEffect::DecideRecord(Decision::Aborted)]
    );
    let aborted = RecordView {
        decision: Decision::Aborted,
        ..record.clone()
    };
    let ended = driver(
        words::terms(),
        aborted,
        Some(SourceReport::Aborted(Cause::DestinationDied)),
        None,
    );
    assert_eq!(
        ended.stand(),
        Stand::Ended(Outcome::Aborted(Cause::DestinationDied))
    );
}

#[test]
fn of_a_fenced_source_the_destination_takes_what_it_has_got_whole() {
    let record = words::fenced(words::armed(), &[source()], false);
    let given = |report| {
        let driver = driver(words::terms(), record.clone(), None, Some(report));
        driver.next()
    };
    assert_eq!(
        given(DestinationReport::Loaded),
        [DriverEffect::ArbitrateDestination]
    );
    assert_eq!(
        given(DestinationReport::Prepared(words::channel())),
        [DriverEffect::ArbitrateDestination]
    );
    assert_eq!(given(DestinationReport::Receiving), []);
    assert_eq!(
        given(DestinationReport::Holding { running: true }),
        [DriverEffect::AdvanceRecord]
    );
    assert_eq!(
        given(DestinationReport::Reverted(Cause::StreamFailed)),
        [DriverEffect::DecideRecord(Decision::Reverted)]
    );
    let advanced = words::fenced(words::advanced(), &[source()], false);
    let holds = driver(
        words::terms(),
        advanced,
        None,
        Some(DestinationReport::Holding { running: true }),
    );
    assert_eq!(holds.stand(), Stand::Ended(Outcome::Succeeded { running: true }));
    let reverted = words::fenced(words::reverted(), &[source()], false);
    let gone = driver(
        words::terms(),
        reverted,
        None,
        Some(DestinationReport::Reverted(Cause::StreamFailed)),
    );
    assert_eq!(gone.stand(), Stand::Ended(Outcome::GuestLost(Cause::SourceDied)));
}

#[test]
fn where_both_hosts_are_fenced_the_guest_is_lost() {
    let both = [source(), destination()];
    let sent = Some(SourceReport::GoSent(go()));
    for (record, effect) in [
        (words::armed(), DriverEffect::DecideRecord(Decision::Aborted)),
        (words::committed(), DriverEffect::AdvanceRecord),
    ] {
        let driver = driver(words::terms(), words::fenced(record, &both, true), sent, None);
        assert_eq!(driver.next(), [effect]);
    }
    for record in [words::advanced(), words::reverted()] {
        let driver = driver(words::terms(), words::fenced(record, &both, true), sent, None);
        assert!(matches!(driver.stand(), Stand::Ended(Outcome::GuestLost(_))));
    }
}

#[test]
fn a_driver_ends_with_a_guest_that_was_started_afresh() {
    let bound = driver(
        words::terms(),
        words::afresh(),
        Some(SourceReport::GoSent(go())),
        None,
    );
    assert_eq!(bound.next(), [DriverEffect::Settle]);
    let released = driver(
        words::terms(),
        words::afresh(),
        Some(SourceReport::Released),
        None,
    );
    assert_eq!(
        released.stand(),
        Stand::Ended(Outcome::GuestLost(Cause::DestinationDied))
    );
}

/// A destination that has the guest whole, and was told nothing.
fn loaded() -> Destination {
    let mut run = destination_run::Run::new();
    let terms = words::terms();
    for event in [
        DestinationEvent::Journaled(DestinationEntry::Prepared { terms }),
        DestinationEvent::Launched(words::channel()),
        DestinationEvent::Connected,
        DestinationEvent::Loaded,
    ] {
        run.see(event);
    }
    assert_eq!(run.machine.report(), DestinationReport::Loaded);
    run.machine
}

#[test]
fn a_destination_that_was_told_nothing_commits_once_its_source_is_fenced() {
    let asking = loaded().step(DestinationEvent::DriverSilent).0;
    let waits = asking.step(DestinationEvent::RecordRead(Some(words::armed())));
    assert_eq!(waits.1.effects, []);
    let other = words::fenced(words::armed(), &[destination()], true);
    assert_eq!(
        asking.step(DestinationEvent::RecordRead(Some(other))).1.effects,
        []
    );
    let fenced = words::fenced(words::armed(), &[source()], false);
    let (_, step) = asking.step(DestinationEvent::RecordRead(Some(fenced)));
    let [DestinationEffect::Journal(DestinationEntry::CommitIntent(go))] = step.effects[..] else {
        panic!("{:?}", step.effects);
    };
    assert_eq!((go.evidence, go.wanted), (GoEvidence::Committed, Wanted::Run));
    assert!(!go.sealed && StandingBecause::SourceFenced != StandingBecause::Sealed);
}

#[test]
fn a_destination_that_was_given_up_for_lost_gives_up() {
    let asking = loaded().step(DestinationEvent::DriverSilent).0;
    let lost = words::fenced(words::advanced(), &[destination()], true);
    for record in [lost, words::afresh()] {
        let (next, step) = asking.step(DestinationEvent::RecordRead(Some(record)));
        assert!(matches!(
            step.effects[..],
            [DestinationEffect::Journal(DestinationEntry::RevertIntent { .. })]
        ));
        assert!(matches!(next.report(), DestinationReport::Reverting(_)));
    }
}

proptest! {
    /// A source that is bound lets go once the guest was started afresh, and runs nothing again.
    #[test]
    fn a_source_lets_go_of_a_guest_that_was_started_afresh(run in source_run::run()) {
        let (reading, _) = run.machine.step(SourceEvent::Settle);
        let (next, step) = reading.step(SourceEvent::RecordRead(Some(words::afresh())));
        for effect in &step.effects {
            let lets_go = matches!(effect, SourceEffect::Journal(SourceEntry::Released));
            prop_assert!(lets_go, "{effect:?}");
        }
        if !step.effects.is_empty() {
            prop_assert!(matches!(next.report(), SourceReport::GoSent(_) | SourceReport::Yielded));
        }
    }

    /// Whatever a word about other hosts or another migration says: it changes no order.
    #[test]
    fn a_word_about_others_changes_nothing(
        report in crate::driver::source_report(),
        told in prop::option::of(crate::driver::destination_report()),
        lost in any::<bool>(),
    ) {
        let plain = driver(words::terms(), words::armed(), Some(report), told.clone());
        let elsewhere = words::fenced(words::armed(), &["t".to_owned()], lost);
        let mut of_another = words::fenced(words::armed(), &[source(), destination()], lost);
        if let Some(word) = &mut of_another.word {
            word.migration = Some("n".into());
        }
        for record in [elsewhere, of_another] {
            let with = driver(words::terms(), record, Some(report), told.clone());
            prop_assert_eq!(with.next(), plain.next());
            prop_assert_eq!(with.stand(), plain.stand());
        }
    }
}
