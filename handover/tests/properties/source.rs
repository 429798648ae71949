//! What a source never does, whatever happens to it.

use godwit_handover::{
    Cause, Go, Refusal, Source, SourceEffect, SourceEntry, SourceEvent, SourceFacts, SourceReport, Wanted,
    convergence,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::source_run::{self, BUDGET, Line, Move, Run};
use crate::words;

/// What cannot be taken back once it was done.
fn lets_the_guest_run(effect: &SourceEffect) -> bool {
    match effect {
        // Cancelling makes a hypervisor restart a guest that it had stopped by itself.
        SourceEffect::Restore(_) | SourceEffect::CancelStream | SourceEffect::ReclaimDisks => true,
        SourceEffect::Journal(_)
        | SourceEffect::StartStream(_)
        | SourceEffect::Pause
        | SourceEffect::LiftLimits
        | SourceEffect::SwitchOver
        | SourceEffect::ReleaseDisks
        | SourceEffect::ReadRecord
        | SourceEffect::DecideAborted
        | SourceEffect::Destroy => false,
    }
}

fn is_read_reverted(line: &Line) -> bool {
    matches!(line, Line::Event(SourceEvent::RecordRead(Some(record))) if *record == words::reverted())
}

/// The hypervisor had let the guest run by itself, and an abort was ordered upon that. (Where the journal is broken it
/// stands nowhere; but neither could Go.)
fn runs_and_forbids_go(log: &[Line]) -> bool {
    let mut runs = false;
    log.iter().any(|line| match line {
        Line::Event(event) => {
            runs = matches!(
                event,
                SourceEvent::StreamFailed { running: true } | SourceEvent::GuestWants(Wanted::Run)
            );
            false
        }
        Line::Effect(SourceEffect::Journal(SourceEntry::AbortIntent {
            switchover: false, ..
        })) => runs,
        Line::Effect(_) | Line::Written(_) | Line::Report(_) | Line::Restart(_) => false,
    })
}

fn sealed_in(report: SourceReport) -> bool {
    match report {
        SourceReport::Switching { sealed, .. }
        | SourceReport::InDoubt { sealed, .. }
        | SourceReport::Deciding { sealed, .. } => sealed,
        SourceReport::GoSent(go) => go.sealed,
        SourceReport::Begun
        | SourceReport::Streaming
        | SourceReport::Stopped { .. }
        | SourceReport::Yielded
        | SourceReport::Blocked { .. }
        | SourceReport::Released
        | SourceReport::Aborting(_)
        | SourceReport::Aborted(_)
        | SourceReport::Died
        | SourceReport::Lost(_) => false,
    }
}

/// What the journal holds after so much of the log.
fn written(log: &[Line]) -> impl DoubleEndedIterator<Item = &SourceEntry> {
    log.iter().filter_map(|line| match line {
        Line::Written(entry) => Some(entry),
        Line::Event(_) | Line::Effect(_) | Line::Report(_) | Line::Restart(_) => None,
    })
}

fn last_intent(log: &[Line]) -> Option<Wanted> {
    written(log).rev().find_map(|entry| match entry {
        SourceEntry::Intent { wanted } => Some(*wanted),
        SourceEntry::Begun { .. }
        | SourceEntry::Sealed
        | SourceEntry::AbortIntent { .. }
        | SourceEntry::Arbitrating { .. }
        | SourceEntry::GoSent(_)
        | SourceEntry::Released
        | SourceEntry::Aborted { .. }
        | SourceEntry::Lost { .. } => None,
    })
}

/// What forbids Go for ever.
fn forbids_go(entry: &SourceEntry) -> bool {
    matches!(
        entry,
        SourceEntry::AbortIntent { .. } | SourceEntry::Arbitrating { .. }
    )
}

/// The log since the agent was last started.
fn this_life(log: &[Line]) -> &[Line] {
    let start = log.iter().rposition(|line| matches!(line, Line::Restart(_)));
    &log[start.unwrap_or(0)..]
}

fn path_proven(log: &[Line]) -> bool {
    this_life(log)
        .iter()
        .rev()
        .find_map(|line| match line {
            Line::Event(SourceEvent::PathProven(proven)) => Some(*proven),
            Line::Event(_) | Line::Effect(_) | Line::Written(_) | Line::Report(_) | Line::Restart(_) => None,
        })
        .unwrap_or(false)
}

/// Each ordered effect with the log up to it and the event that led to it (`None`: a start or restart).
fn orders(run: &Run) -> impl Iterator<Item = (&SourceEffect, &[Line], Option<&SourceEvent>)> {
    run.log.iter().enumerate().filter_map(|(i, line)| {
        let Line::Effect(effect) = line else {
            return None;
        };
        let before = &run.log[..i];
        let led = before.iter().rev().find(|l| !matches!(l, Line::Effect(_)));
        let event = match led {
            Some(Line::Event(event)) => Some(event),
            Some(Line::Effect(_) | Line::Written(_) | Line::Report(_) | Line::Restart(_)) | None => None,
        };
        Some((effect, before, event))
    })
}

/// Whether the process was ever known to be gone.
fn has_died(log: &[Line]) -> bool {
    log.iter().any(|line| match line {
        Line::Event(SourceEvent::Died) | Line::Restart(SourceFacts::Gone) => true,
        Line::Event(_) | Line::Restart(_) | Line::Effect(_) | Line::Written(_) | Line::Report(_) => false,
    })
}

proptest! {
    /// Rule 2: Go is told only once the journal holds it.
    #[test]
    fn go_is_told_only_after_it_was_journaled(run in source_run::run()) {
        for (i, line) in run.log.iter().enumerate() {
            if let Line::Report(SourceReport::GoSent(go)) = line {
                prop_assert!(written(&run.log[..i]).any(|e| *e == SourceEntry::GoSent(*go)));
            }
        }
    }

    /// Rule 2: an abort that was begun forbids Go for ever; across restarts once it was written.
    #[test]
    fn no_go_is_journaled_after_an_abort(run in source_run::run()) {
        let mut aborted = false;
        for line in &run.log {
            match line {
                Line::Restart(_) => aborted = false,
                Line::Effect(SourceEffect::Journal(SourceEntry::GoSent(_))) => prop_assert!(!aborted),
                Line::Effect(SourceEffect::Journal(entry)) if forbids_go(entry) => aborted = true,
                // What could not be written does not count; nothing has been done upon it.
                Line::Event(SourceEvent::JournalFailed) => aborted = false,
                Line::Report(SourceReport::GoSent(_)) => prop_assert!(!aborted),
                Line::Effect(_) | Line::Written(_) | Line::Event(_) | Line::Report(_) => {}
            }
        }
        let abort = run.journal.iter().position(forbids_go);
        let go = run.journal.iter().rposition(|e| matches!(e, SourceEntry::GoSent(_)));
        if let (Some(abort), Some(go)) = (abort, go) {
            prop_assert!(go < abort);
        }
    }

    /// Rule 2: Aborted is asked of the record only with the promise on disk that Go is never said, and none said before.
    #[test]
    fn the_record_is_asked_only_where_go_is_out_of_the_question(run in source_run::run()) {
        for (effect, before, _) in orders(&run) {
            if *effect == SourceEffect::DecideAborted {
                let promised = written(before).any(|e| matches!(e, SourceEntry::Arbitrating { .. }));
                let said = written(before).any(|e| matches!(e, SourceEntry::GoSent(_)));
                prop_assert!(promised && !said);
            }
        }
    }

    /// Rule 1: after Go nothing that could let the guest run here, but for a record that was read.
    #[test]
    fn after_go_only_the_record_brings_the_guest_back(run in source_run::run()) {
        for (effect, before, _) in orders(&run) {
            let gone = before.iter().any(|l| matches!(l, Line::Report(SourceReport::GoSent(_))));
            if lets_the_guest_run(effect) && gone {
                prop_assert!(before.iter().any(is_read_reverted), "{effect:?}");
            }
        }
    }

    /// Rule 1: from the switchover on the guest comes back only if it was refused, or by a record that was read; or it was
    /// seen to run already, and Go is forbidden for ever.
    #[test]
    fn after_the_switchover_nobodys_word_brings_the_guest_back(run in source_run::run()) {
        for (effect, before, _) in orders(&run) {
            let life = this_life(before);
            let ordered = life.iter().position(|l| matches!(l, Line::Effect(SourceEffect::SwitchOver)));
            if let (true, Some(at)) = (lets_the_guest_run(effect), ordered) {
                let since = &life[at..];
                let refused = since.iter().any(|l| matches!(l, Line::Event(SourceEvent::SwitchOverRefused)));
                let ran = matches!(effect, SourceEffect::Restore(_)) && runs_and_forbids_go(since);
                prop_assert!(refused || ran || since.iter().any(is_read_reverted), "{effect:?}");
            }
        }
    }

    /// Rules 0 and 8: no switchover without the path proved and the intent on disk; the seal on disk if there is
    /// one.
    #[test]
    fn the_switchover_is_prepared(run in source_run::run()) {
        for (i, line) in run.log.iter().enumerate() {
            let before = &run.log[..i];
            match line {
                Line::Effect(SourceEffect::SwitchOver) => {
                    prop_assert!(path_proven(before));
                    prop_assert!(last_intent(before).is_some());
                }
                Line::Report(report) if sealed_in(*report) => {
                    prop_assert!(written(before).any(|e| *e == SourceEntry::Sealed));
                }
                Line::Effect(SourceEffect::Journal(SourceEntry::Sealed)) => {
                    let seen = Line::Event(SourceEvent::Paused { stream_active: true });
                    let last = before.iter().rev().find(|l| matches!(l, Line::Event(_)));
                    prop_assert_eq!(format!("{:?}", last), format!("{:?}", Some(seen)));
                }
                Line::Event(_) | Line::Effect(_) | Line::Written(_) | Line::Report(_) | Line::Restart(_) => {}
            }
        }
    }

    /// Rule 0: the guest is stopped for a pass that fits, with the path proved; or once more after a restart that
    /// found it stopped so.
    #[test]
    fn the_guest_is_stopped_only_when_the_rest_fits(run in source_run::run()) {
        for (effect, before, event) in orders(&run) {
            if *effect != SourceEffect::Pause {
                continue;
            }
            match event {
                Some(SourceEvent::Pass(pass)) => {
                    prop_assert!(convergence::fits(*pass, BUDGET));
                    prop_assert!(path_proven(before));
                    prop_assert!(last_intent(before).is_some());
                }
                Some(event) => prop_assert!(false, "stopped on {:?}", event),
                None => prop_assert!(last_intent(before).is_some()),
            }
        }
    }

    /// A guest that was last known to be stopped is not let run at the destination.
    #[test]
    fn go_wants_no_more_than_was_journaled(run in source_run::run()) {
        for (i, line) in run.log.iter().enumerate() {
            let Line::Written(SourceEntry::GoSent(go)) = line else {
                continue;
            };
            if go.wanted == Wanted::Run {
                prop_assert_ne!(last_intent(&run.log[..i]), Some(Wanted::StayStopped));
            }
        }
    }

    /// Rule 6: the process is destroyed only after Confirm, and the advanced record read after it. One that is gone needs
    /// no Confirm for what is left of it.
    #[test]
    fn the_process_is_destroyed_only_by_an_advanced_record(run in source_run::run()) {
        for (effect, before, _) in orders(&run) {
            if *effect != SourceEffect::Destroy {
                continue;
            }
            let read = before.iter().rposition(|l| {
                matches!(l, Line::Event(SourceEvent::RecordRead(Some(r))) if *r == words::advanced())
            });
            let confirmed = read.is_some_and(|read| {
                before[..read]
                    .iter()
                    .any(|l| matches!(l, Line::Event(SourceEvent::Confirm)))
            });
            prop_assert!(confirmed || has_died(before));
        }
    }

    /// An ending is one: nothing is done and nothing else is told any more.
    #[test]
    fn an_ending_is_never_left(run in source_run::run(), events in prop::collection::vec(anything(), 1..20)) {
        let mut machine = run.machine;
        let report = machine.report();
        let ended = machine.is_final();
        for event in events {
            let (next, step) = machine.step(event);
            if ended {
                prop_assert!(step.effects.is_empty());
                prop_assert_eq!(next.report(), report);
                prop_assert!(next.is_final());
            }
            machine = next;
        }
    }

    /// I10: an order, or a sighting, that is repeated changes nothing and does nothing.
    #[test]
    fn a_repetition_does_nothing(run in source_run::run(), event in source_run::sighting()) {
        let (once, _) = run.machine.step(event.clone());
        let (twice, step) = once.step(event);
        prop_assert!(step.effects.is_empty(), "{:?}", step.effects);
        prop_assert_eq!(once, twice);
    }

    /// A record that is not about this migration and epoch, or that decides nothing, moves nothing; unless nothing is left
    /// and the guest has long gone on.
    #[test]
    fn other_records_move_nothing(
        run in source_run::run(),
        record in words::foreign_record(),
        order in prop::sample::select(vec![SourceEvent::Confirm, SourceEvent::Settle]),
    ) {
        // The record counts only where it is being read.
        let (reading, _) = run.machine.step(order);
        let past = record.is_past(&words::terms());
        let (next, step) = reading.step(SourceEvent::RecordRead(Some(record)));
        if past && has_died(&run.log) && step.effects == [SourceEffect::Journal(SourceEntry::Released)] {
            return Ok(());
        }
        let asks_again = matches!(run.machine.report(), SourceReport::Deciding { .. });
        prop_assert!(step.effects.is_empty() || asks_again && step.effects == [SourceEffect::DecideAborted]);
        prop_assert_eq!(next.report(), run.machine.report());
    }

    /// Other terms are refused; an abort after the switchover comes too late.
    #[test]
    fn what_comes_too_late_is_refused(run in source_run::run(), cause in words::cause()) {
        let (next, step) = run.machine.step(SourceEvent::Begin(words::other_terms()));
        prop_assert_eq!(step.refusal, Some(Refusal::OtherTerms));
        prop_assert_eq!(&next, &run.machine);
        let late = matches!(
            run.machine.report(),
            SourceReport::Switching { .. }
                | SourceReport::InDoubt { .. }
                | SourceReport::Deciding { .. }
                | SourceReport::Yielded
                | SourceReport::Blocked { .. }
                | SourceReport::Died
                | SourceReport::GoSent(_)
                | SourceReport::Released
        );
        let (next, step) = run.machine.step(SourceEvent::Abort(cause));
        if late {
            prop_assert_eq!(step.refusal, Some(Refusal::TooLate));
            prop_assert!(step.effects.is_empty());
            prop_assert_eq!(next, run.machine);
        } else {
            prop_assert_eq!(step.refusal, None);
        }
    }

    /// Answers that nobody asked for, in any order: no panic, and still no Go that was not journaled, none after
    /// an abort, and no process destroyed without Confirm and the record.
    #[test]
    fn nonsense_is_borne(wanted in words::wanted(), events in prop::collection::vec(anything(), 0..80)) {
        let mut run = Run::new(wanted);
        let (mut written, mut aborted, mut confirmed, mut advanced) = (vec![], false, false, false);
        for event in events {
            if let SourceEvent::Journaled(SourceEntry::GoSent(go)) = &event {
                written.push(*go);
            }
            confirmed |= event == SourceEvent::Confirm;
            advanced |= confirmed && event == SourceEvent::RecordRead(Some(words::advanced()));
            let (next, step) = run.machine.step(event);
            for effect in &step.effects {
                aborted |= matches!(effect, SourceEffect::Journal(SourceEntry::AbortIntent { .. }));
                aborted |= *effect == SourceEffect::DecideAborted;
                let go = matches!(effect, SourceEffect::Journal(SourceEntry::GoSent(_)));
                prop_assert!(!(aborted && go));
                prop_assert!(*effect != SourceEffect::Destroy || advanced);
            }
            if let SourceReport::GoSent(go) = next.report() {
                prop_assert!(written.contains(&go));
            }
            run.machine = next;
        }
    }
}

/// Any event at all, with any answer.
fn anything() -> impl Strategy<Value = SourceEvent> {
    prop_oneof![
        8 => source_run::sighting(),
        6 => source_run::entry().prop_map(SourceEvent::Journaled),
        1 => Just(SourceEvent::JournalFailed),
        3 => Just(SourceEvent::StreamStarted),
        1 => words::cause().prop_map(SourceEvent::StreamNotStarted),
        3 => any::<bool>().prop_map(|stream_active| SourceEvent::Paused { stream_active }),
        1 => Just(SourceEvent::PauseFailed),
        1 => Just(SourceEvent::SwitchOverRefused),
        2 => Just(SourceEvent::DisksReleased),
        2 => Just(SourceEvent::DisksReclaimed),
        2 => Just(SourceEvent::Restored),
        1 => Just(SourceEvent::RestoreFailed),
        3 => prop::option::of(words::record()).prop_map(SourceEvent::RecordRead),
        3 => prop::sample::select(vec![words::advanced(), words::reverted()])
            .prop_map(|r| SourceEvent::RecordRead(Some(r))),
        1 => Just(SourceEvent::Destroyed),
    ]
}

/// The pause for the seal may be carried out only after the hypervisor came to the switchover, failed there and let the
/// guest run again: what is ordered after it lets it run once more.
#[test]
fn a_pause_that_comes_late_does_not_leave_the_guest_standing() {
    let mut run = source_run::Run::new(Wanted::Run);
    while !run.todo.contains(&SourceEffect::Pause) {
        run.take(Move::Forward);
    }
    run.see(SourceEvent::BeforeSwitchover);
    run.see(SourceEvent::StreamFailed { running: true });
    assert!(run.todo.contains(&SourceEffect::Pause), "it is still on its way");
    while !run.todo.is_empty() {
        run.take(Move::Forward);
    }
    let effects: Vec<&SourceEffect> = orders(&run).map(|(effect, ..)| effect).collect();
    let pause = effects.iter().position(|e| **e == SourceEffect::Pause);
    let restore = effects
        .iter()
        .position(|e| **e == SourceEffect::Restore(Wanted::Run));
    assert!(pause < restore && pause.is_some(), "{effects:?}");
    assert!(
        matches!(run.machine.report(), SourceReport::Aborted(_)),
        "{effects:?}"
    );
}

/// The lives above come far enough to be worth judging: each ending, and each restart that matters.
#[test]
fn the_lives_reach_every_part() {
    let mut runner = TestRunner::deterministic();
    let (mut released, mut aborted, mut brought_back, mut lost, mut restarted, mut unsealed) =
        (0, 0, 0, 0, 0, 0);
    let (mut asked_and_kept, mut asked_and_yielded) = (0, 0);
    for _ in 0..1024 {
        let run = source_run::run().new_tree(&mut runner).expect("a life").current();
        let go = run
            .log
            .iter()
            .position(|l| matches!(l, Line::Report(SourceReport::GoSent(_))));
        let report = run.machine.report();
        let back = matches!(report, SourceReport::Aborted(_));
        let asked = run
            .log
            .iter()
            .any(|l| matches!(l, Line::Effect(SourceEffect::DecideAborted)));
        asked_and_kept += usize::from(asked && back);
        asked_and_yielded += usize::from(asked && report == SourceReport::Released);
        released += usize::from(report == SourceReport::Released);
        brought_back += usize::from(back && go.is_some());
        aborted += usize::from(back && go.is_none());
        lost += usize::from(matches!(report, SourceReport::Lost(_)));
        if let Some(go) = go {
            let after = &run.log[go..];
            restarted += usize::from(after.iter().any(|l| matches!(l, Line::Restart(_))));
            unsealed += usize::from(matches!(
                run.log[go],
                Line::Report(SourceReport::GoSent(Go { sealed: false, .. }))
            ));
        }
    }
    let reached = [
        released,
        aborted,
        brought_back,
        lost,
        restarted,
        unsealed,
        asked_and_kept,
        asked_and_yielded,
    ];
    assert!(reached.iter().all(|n| *n >= 5), "{reached:?}");
}

/// What the hypervisor refuses is refused also while the record is about to be asked, and where the journal fails over
/// that question: nobody else would let the guest go on.
#[test]
fn a_refused_switchover_is_not_forgotten_over_a_question_to_the_record() {
    let (source, step) =
        Source::begin(words::terms(), words::GATES, BUDGET, Wanted::Run).expect("the gates are there");
    let [SourceEffect::Journal(begun)] = &step.effects[..] else {
        panic!("{step:?}");
    };
    let wanted = Wanted::Run;
    let question = SourceEntry::Arbitrating {
        cause: Cause::PathNotProven,
    };
    let mut switching = source;
    for event in [
        SourceEvent::Journaled(begun.clone()),
        SourceEvent::Perform(words::channel()),
        SourceEvent::StreamStarted,
        SourceEvent::Journaled(SourceEntry::Intent { wanted }),
        SourceEvent::PathProven(true),
        SourceEvent::BeforeSwitchover,
        SourceEvent::Arbitrate(Cause::PathNotProven),
    ] {
        (switching, _) = switching.step(event);
    }
    for asked in [false, true] {
        let mut source = switching.clone();
        if asked {
            (source, _) = source.step(SourceEvent::Journaled(question.clone()));
        }
        let (refused, _) = source.step(SourceEvent::SwitchOverRefused);
        assert_eq!(refused.report(), SourceReport::Aborting(Cause::HypervisorRefused));
        let (_, step) = refused.step(SourceEvent::JournalFailed);
        assert_eq!(step.effects, [SourceEffect::CancelStream]);
    }
}
