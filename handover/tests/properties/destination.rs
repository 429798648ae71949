//! What a destination never does, whatever happens to it.

use godwit_handover::{
    Destination, DestinationEffect, DestinationEntry, DestinationEvent, DestinationReport, Go, GoEvidence,
    Refusal, Wanted,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::destination_run::{self, Line, Run};
use crate::words;

/// Each ordered effect with the log up to it.
fn orders(run: &Run) -> impl Iterator<Item = (&DestinationEffect, &[Line])> {
    run.log.iter().enumerate().filter_map(|(i, line)| match line {
        Line::Effect(effect) => Some((effect, &run.log[..i])),
        Line::Event(_) | Line::Report(_) | Line::Restart { .. } => None,
    })
}

fn finish(go: Go) -> Line {
    Line::Event(DestinationEvent::Finish(go))
}

fn same(left: &Line, right: &Line) -> bool {
    match (left, right) {
        (Line::Event(a), Line::Event(b)) => a == b,
        (Line::Effect(a), Line::Effect(b)) => a == b,
        (_, _) => false,
    }
}

/// Where `cont-issued` was last journaled, if the guest was not seen to stand still after a refusal since.
fn may_run(entries: &[DestinationEntry]) -> Option<Go> {
    let mut issued = None;
    for entry in entries {
        match entry {
            DestinationEntry::ContIssued(go) => issued = Some(*go),
            DestinationEntry::ContRefused => issued = None,
            DestinationEntry::Prepared { .. }
            | DestinationEntry::CommitIntent(_)
            | DestinationEntry::TakenOver(_)
            | DestinationEntry::RevertIntent { .. }
            | DestinationEntry::Reverted { .. } => {}
        }
    }
    issued
}

fn any_entry(entries: &[DestinationEntry], is: fn(&DestinationEntry) -> bool) -> bool {
    entries.iter().any(is)
}

fn is_revert(entry: &DestinationEntry) -> bool {
    matches!(
        entry,
        DestinationEntry::RevertIntent { .. } | DestinationEntry::Reverted { .. }
    )
}

fn is_taken_over(entry: &DestinationEntry) -> bool {
    matches!(entry, DestinationEntry::TakenOver(_))
}

proptest! {
    /// Rule 3: the guest is let run only by a Go that wants it to, received and journaled before.
    #[test]
    fn the_guest_runs_only_by_a_journaled_go(run in destination_run::run()) {
        for (effect, before) in orders(&run) {
            if *effect != DestinationEffect::Resume {
                continue;
            }
            let issued = before.iter().rev().find_map(|line| match line {
                Line::Effect(DestinationEffect::Journal(DestinationEntry::ContIssued(go))) => Some(*go),
                Line::Effect(_) | Line::Event(_) | Line::Report(_) | Line::Restart { .. } => None,
            });
            let go = issued.expect("journaled before");
            prop_assert_eq!(go.wanted, Wanted::Run);
            prop_assert!(run.journal.contains(&DestinationEntry::ContIssued(go)));
            let ordered = before
                .iter()
                .position(|l| {
                    same(l, &Line::Effect(DestinationEffect::Journal(DestinationEntry::ContIssued(go))))
                })
                .unwrap();
            let so_far = &before[..ordered];
            if go.evidence == GoEvidence::Committed {
                let read = Line::Event(DestinationEvent::RecordRead(Some(words::committed())));
                prop_assert!(so_far.iter().any(|l| same(l, &read)));
                prop_assert!(run.journal.contains(&DestinationEntry::CommitIntent(go)));
            } else {
                prop_assert!(so_far.iter().any(|l| same(l, &finish(go))));
            }
        }
    }

    /// Rule 3: the record is committed only for a guest that is loaded, with that on disk, and after it was told that
    /// the source's does not run again by itself.
    #[test]
    fn the_record_is_committed_only_where_the_source_stands(run in destination_run::run()) {
        for (effect, before) in orders(&run) {
            if *effect != DestinationEffect::DecideCommitted {
                continue;
            }
            let told = before
                .iter()
                .any(|l| matches!(l, Line::Event(DestinationEvent::SourceStands(_))));
            let loaded = before.iter().any(|l| matches!(l, Line::Report(DestinationReport::Loaded)));
            prop_assert!(told && loaded);
            prop_assert!(any_entry(&run.journal, |e| matches!(e, DestinationEntry::CommitIntent(_))));
        }
    }

    /// Rule 3: a guest that may have run is not destroyed. Where the journal failed, the refusal was at least seen.
    #[test]
    fn a_guest_that_may_have_run_is_never_destroyed(run in destination_run::run()) {
        let mut may_have_run = false;
        for line in &run.log {
            match line {
                Line::Effect(DestinationEffect::Resume) => may_have_run = true,
                Line::Event(DestinationEvent::ResumeRefused | DestinationEvent::NotRunnable) => may_have_run = false,
                Line::Effect(DestinationEffect::Destroy) => prop_assert!(!may_have_run),
                Line::Effect(_) | Line::Event(_) | Line::Report(_) | Line::Restart { .. } => {}
            }
        }
    }

    /// Rule 4: giving the copy up is for ever: no process is started and no guest let run after it.
    #[test]
    fn a_copy_given_up_never_runs(run in destination_run::run()) {
        let mut given_up = false;
        for line in &run.log {
            match line {
                // What was not written is forgotten.
                Line::Restart { written } => given_up = any_entry(&run.journal[..*written], is_revert),
                Line::Effect(DestinationEffect::Journal(entry)) => {
                    given_up |= is_revert(entry);
                    let issued = matches!(entry, DestinationEntry::ContIssued(_) | DestinationEntry::TakenOver(_));
                    prop_assert!(!(given_up && issued));
                }
                Line::Effect(DestinationEffect::Launch | DestinationEffect::Resume) => prop_assert!(!given_up),
                Line::Effect(
                    DestinationEffect::Destroy
                    | DestinationEffect::ReadRecord
                    | DestinationEffect::DecideCommitted
                    | DestinationEffect::MarkStarted,
                )
                | Line::Event(_)
                | Line::Report(_) => {}
            }
        }
    }

    /// I5: at most one process is started for a migration.
    #[test]
    fn one_process_is_started(run in destination_run::run()) {
        let launches = orders(&run).filter(|(effect, _)| **effect == DestinationEffect::Launch).count();
        prop_assert!(launches <= 1);
    }

    /// A guest that was taken over as it is stays so.
    #[test]
    fn a_guest_taken_over_stopped_is_never_let_run(run in destination_run::run()) {
        let mut taken_over = false;
        for line in &run.log {
            match line {
                Line::Report(DestinationReport::Holding { running: false }) => taken_over = true,
                Line::Effect(effect) => prop_assert!(!taken_over, "{:?}", effect),
                Line::Report(report) => {
                    prop_assert!(!taken_over, "{:?}", report);
                }
                Line::Event(_) | Line::Restart { .. } => {}
            }
        }
    }

    /// Once Go has arrived an abort comes too late, except where the journal does not take it.
    #[test]
    fn what_comes_too_late_is_refused(run in destination_run::run(), go in words::go(), cause in words::cause()) {
        let (next, _) = run.machine.step(DestinationEvent::Finish(go));
        let (after, step) = next.step(DestinationEvent::Abort(cause));
        match next.report() {
            DestinationReport::Starting | DestinationReport::Loaded | DestinationReport::Holding { .. } => {
                prop_assert_eq!(step.refusal, Some(Refusal::TooLate));
                prop_assert!(step.effects.is_empty());
                prop_assert_eq!(after, next);
            }
            DestinationReport::Preparing
            | DestinationReport::Prepared(_)
            | DestinationReport::Receiving
            | DestinationReport::Blocked
            | DestinationReport::Reverting(_)
            | DestinationReport::Reverted(_)
            | DestinationReport::Lost(_) => prop_assert_eq!(step.refusal, None),
            DestinationReport::Deciding => prop_assert!(false, "a Go is enough by itself"),
        }
        let (next, step) = run.machine.step(DestinationEvent::Prepare(words::other_terms()));
        prop_assert_eq!(step.refusal, Some(Refusal::OtherTerms));
        prop_assert_eq!(next, run.machine);
    }

    /// A loaded guest is never given up because of a silence.
    #[test]
    fn silence_destroys_nothing_that_was_received(run in destination_run::run()) {
        for event in [DestinationEvent::DriverSilent, DestinationEvent::NobodyConnected] {
            let (next, step) = run.machine.step(event);
            if matches!(run.machine.report(), DestinationReport::Prepared(_)) {
                continue;
            }
            let asks = step.effects.iter().all(|effect| {
                matches!(
                    effect,
                    DestinationEffect::ReadRecord | DestinationEffect::Journal(DestinationEntry::CommitIntent(_))
                )
            });
            prop_assert!(asks, "{:?}", step.effects);
            if run.machine.report() != DestinationReport::Loaded {
                prop_assert_eq!(&next, &run.machine);
            }
        }
    }

    /// An ending is one: nothing is done and nothing else is told any more.
    #[test]
    fn an_ending_is_never_left(
        run in destination_run::run(),
        events in prop::collection::vec(anything(), 1..20),
    ) {
        let mut machine = run.machine;
        let report = machine.report();
        let ended = machine.is_final();
        for event in events {
            let (next, step) = machine.step(event);
            if ended {
                prop_assert!(step.effects.is_empty());
                prop_assert_eq!(next.report(), report.clone());
                prop_assert!(next.is_final());
            }
            machine = next;
        }
    }

    /// I10: an order, or a sighting, that is repeated changes nothing and does nothing, but that the record may be read
    /// again.
    #[test]
    fn a_repetition_does_nothing(run in destination_run::run(), event in destination_run::sighting()) {
        let (once, _) = run.machine.step(event.clone());
        let (twice, step) = once.step(event);
        let reads = step.effects.iter().all(|e| *e == DestinationEffect::ReadRecord);
        prop_assert!(reads, "{:?}", step.effects);
        prop_assert_eq!(once, twice);
    }

    /// Answers that nobody asked for, in any order: no panic, and the guest still runs only after a Go that was
    /// received and journaled.
    #[test]
    fn nonsense_is_borne(events in prop::collection::vec(anything(), 0..60)) {
        let mut machine = Run::new().machine;
        let (mut received, mut written, mut given_up) = (false, false, false);
        for event in events {
            received |= matches!(event, DestinationEvent::Finish(_))
                || event == DestinationEvent::RecordRead(Some(words::committed()));
            written |= received && matches!(event, DestinationEvent::Journaled(DestinationEntry::ContIssued(_)));
            let (next, step) = machine.step(event);
            for effect in &step.effects {
                given_up |= matches!(effect, DestinationEffect::Journal(entry) if is_revert(entry));
                let runs = *effect == DestinationEffect::Resume;
                prop_assert!(!runs || (written && !given_up));
                prop_assert!(*effect != DestinationEffect::Launch || !given_up);
                prop_assert!(*effect != DestinationEffect::Destroy || given_up);
            }
            machine = next;
        }
    }

    /// Whatever a journal holds: no panic, and nothing is promised or done that is not in it.
    #[test]
    fn any_journal_is_borne(
        entries in prop::collection::vec(destination_run::entry(), 0..8),
        facts in destination_run::facts(),
    ) {
        let begins = entries.iter().filter(|e| matches!(e, DestinationEntry::Prepared { .. })).count();
        let first = matches!(entries.first(), Some(DestinationEntry::Prepared { .. }));
        let recovered = Destination::recover(&entries, words::GATES, facts);
        prop_assert_eq!(recovered.is_some(), first && begins == 1);
        let Some((machine, step)) = recovered else {
            return Ok(());
        };
        let (reverted, taken_over) = (any_entry(&entries, is_revert), any_entry(&entries, is_taken_over));
        if let DestinationReport::Holding { running } = machine.report() {
            prop_assert!(!reverted);
            let held = if running { may_run(&entries).is_some() } else { taken_over };
            prop_assert!(held);
        }
        for effect in &step.effects {
            match effect {
                DestinationEffect::Resume => {
                    prop_assert!(may_run(&entries).is_some() && !reverted && !taken_over);
                }
                DestinationEffect::Destroy => prop_assert!(reverted),
                DestinationEffect::DecideCommitted => {
                    let intent = any_entry(&entries, |e| matches!(e, DestinationEntry::CommitIntent(_)));
                    prop_assert!(intent && !reverted && !taken_over);
                }
                DestinationEffect::ReadRecord => {}
                DestinationEffect::MarkStarted => prop_assert!(false, "marked before it was committed"),
                DestinationEffect::Launch => prop_assert!(false, "started a process"),
                DestinationEffect::Journal(_) => {}
            }
        }
    }

    /// Every beginning of a journal that a life wrote, with any facts.
    #[test]
    fn a_promise_outlives_its_agent(run in destination_run::run(), facts in destination_run::facts()) {
        for end in 1..=run.journal.len() {
            let written = &run.journal[..end];
            let (machine, step) =
                Destination::recover(written, words::GATES, facts).expect("an honest journal");
            let report = machine.report();
            let kept = if any_entry(written, is_revert) {
                matches!(report, DestinationReport::Reverting(_) | DestinationReport::Reverted(_))
            } else if any_entry(written, is_taken_over) {
                report == DestinationReport::Holding { running: false }
            } else if may_run(written).is_some() {
                matches!(
                    report,
                    DestinationReport::Starting
                        | DestinationReport::Holding { running: true }
                        | DestinationReport::Lost(_)
                )
            } else {
                let committing = any_entry(written, |e| matches!(e, DestinationEntry::CommitIntent(_)));
                matches!(
                    report,
                    DestinationReport::Receiving | DestinationReport::Loaded | DestinationReport::Reverting(_)
                ) || committing && report == DestinationReport::Deciding
            };
            prop_assert!(kept, "{:?} after {:?}", report, written);
            let resumes = step.effects.contains(&DestinationEffect::Resume);
            prop_assert_eq!(resumes, report == DestinationReport::Starting);
        }
    }
}

/// Any event at all, with any answer.
fn anything() -> impl Strategy<Value = DestinationEvent> {
    prop_oneof![
        8 => destination_run::sighting(),
        6 => destination_run::entry().prop_map(DestinationEvent::Journaled),
        1 => Just(DestinationEvent::JournalFailed),
        3 => Just(DestinationEvent::Launched(words::channel())),
        1 => Just(DestinationEvent::LaunchFailed),
        2 => Just(DestinationEvent::Resumed),
        2 => Just(DestinationEvent::ResumeRefused),
        1 => Just(DestinationEvent::NotRunnable),
        1 => Just(DestinationEvent::Destroyed),
        3 => prop::option::of(words::record()).prop_map(DestinationEvent::RecordRead),
        2 => Just(DestinationEvent::RecordRead(Some(words::committed()))),
    ]
}

/// The lives above come far enough to be worth judging: each ending, and each restart that matters.
#[test]
fn the_lives_reach_every_part() {
    let mut runner = TestRunner::deterministic();
    let mut committed = 0;
    let (mut running, mut stopped, mut reverted, mut lost, mut refused, mut restarted) = (0, 0, 0, 0, 0, 0);
    for _ in 0..512 {
        let run = destination_run::run()
            .new_tree(&mut runner)
            .expect("a life")
            .current();
        let report = run.machine.report();
        running += usize::from(report == DestinationReport::Holding { running: true });
        stopped += usize::from(report == DestinationReport::Holding { running: false });
        reverted += usize::from(matches!(report, DestinationReport::Reverted(_)));
        lost += usize::from(matches!(report, DestinationReport::Lost(_)));
        committed += usize::from(any_entry(
            &run.journal,
            |e| matches!(e, DestinationEntry::ContIssued(go) if go.evidence == GoEvidence::Committed),
        ));
        refused += usize::from(run.journal.contains(&DestinationEntry::ContRefused));
        let resumed = run
            .log
            .iter()
            .position(|l| matches!(l, Line::Effect(DestinationEffect::Resume)));
        if let Some(at) = resumed {
            restarted += usize::from(run.log[at..].iter().any(|l| matches!(l, Line::Restart { .. })));
        }
    }
    let reached = [running, stopped, reverted, lost, refused, restarted, committed];
    assert!(reached.iter().all(|n| *n >= 5), "{reached:?}");
}
