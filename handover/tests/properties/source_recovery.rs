//! A source that is taken up again from its journal promises no more and no less than was written.

use godwit_handover::{Source, SourceEffect, SourceEntry, SourceFacts, SourceReport, StreamFact};
use proptest::prelude::*;

use crate::source_run::{self, facts};
use crate::words;

fn go_in(entries: &[SourceEntry]) -> bool {
    entries.iter().any(|e| matches!(e, SourceEntry::GoSent(_)))
}

fn arbitrating_in(entries: &[SourceEntry]) -> bool {
    entries
        .iter()
        .any(|e| matches!(e, SourceEntry::Arbitrating { .. }))
}

fn abort_in(entries: &[SourceEntry]) -> bool {
    entries
        .iter()
        .any(|e| matches!(e, SourceEntry::AbortIntent { .. }))
}

proptest! {
    /// Whatever a journal holds: no panic, no Go that is not in it, no process destroyed unless it says so, and no
    /// guest let run on the spot.
    #[test]
    fn any_journal_is_borne(entries in prop::collection::vec(source_run::entry(), 0..8), facts in facts()) {
        let begins = entries.iter().filter(|e| matches!(e, SourceEntry::Begun { .. })).count();
        let first = matches!(entries.first(), Some(SourceEntry::Begun { .. }));
        let recovered = Source::recover(&entries, words::GATES, facts);
        prop_assert_eq!(recovered.is_some(), first && begins == 1);
        let Some((machine, step)) = recovered else {
            return Ok(());
        };
        if let SourceReport::GoSent(go) = machine.report() {
            prop_assert!(entries.contains(&SourceEntry::GoSent(go)));
        }
        for effect in &step.effects {
            let written = *effect != SourceEffect::Destroy || entries.contains(&SourceEntry::Released);
            prop_assert!(written);
            let acts = matches!(
                effect,
                SourceEffect::Restore(_) | SourceEffect::SwitchOver | SourceEffect::StartStream(_)
            );
            prop_assert!(!acts, "{:?}", effect);
        }
    }

    /// Every beginning of a journal that a life wrote, with any facts.
    #[test]
    fn a_promise_outlives_its_agent(run in source_run::run(), facts in facts()) {
        for end in 1..=run.journal.len() {
            let written = &run.journal[..end];
            let (machine, step) = Source::recover(written, words::GATES, facts).expect("an honest journal");
            let report = machine.report();
            if abort_in(written) {
                let kept = matches!(
                    report,
                    SourceReport::Aborting(_) | SourceReport::Aborted(_) | SourceReport::Lost(_)
                );
                prop_assert!(kept, "{:?} after {:?}", report, written);
                continue;
            }
            if arbitrating_in(written) && !go_in(written) {
                let kept = matches!(
                    report,
                    SourceReport::Deciding { .. }
                        | SourceReport::Yielded
                        | SourceReport::Released
                        | SourceReport::Lost(_)
                );
                prop_assert!(kept, "{:?} after {:?}", report, written);
                continue;
            }
            let released = written.contains(&SourceEntry::Released);
            let over = written.iter().any(|e| matches!(e, SourceEntry::Lost { .. } | SourceEntry::Aborted { .. }));
            if go_in(written) && !over {
                prop_assert!(
                    matches!(report, SourceReport::GoSent(_) | SourceReport::Released),
                    "{:?} after {:?}", report, written
                );
                let harmless = step
                    .effects
                    .iter()
                    .all(|e| matches!(e, SourceEffect::Destroy | SourceEffect::ReadRecord));
                prop_assert!(harmless, "{:?} after {:?}", step.effects, written);
            } else {
                let more = matches!(report, SourceReport::GoSent(_) | SourceReport::Released | SourceReport::Yielded);
                prop_assert!(!more || released, "{:?} after {:?}", report, written);
            }
            if machine.is_final() {
                let rest = step.effects.iter().all(|e| {
                    matches!(e, SourceEffect::Journal(SourceEntry::Aborted { .. } | SourceEntry::Lost { .. }))
                });
                prop_assert!(rest);
            }
        }
    }
}

/// Without a journaled intent the switchover was never ordered: a stopped guest whose process shows an ended stream,
/// an earlier migration's, is not kept in doubt for ever.
#[test]
fn an_earlier_migrations_stream_leaves_no_doubt() {
    let begun = SourceEntry::Begun {
        terms: words::terms(),
        budget_micros: 300_000,
    };
    for stream in [StreamFact::Completed, StreamFact::Failed] {
        let facts = SourceFacts::Alive {
            running: false,
            stream,
        };
        let (machine, step) = Source::recover(std::slice::from_ref(&begun), words::GATES, facts).unwrap();
        assert!(
            matches!(machine.report(), SourceReport::Aborting(_)),
            "{stream:?}"
        );
        let journaled = matches!(
            step.effects[..],
            [SourceEffect::Journal(SourceEntry::AbortIntent {
                switchover: false,
                ..
            })]
        );
        assert!(journaled, "{:?}", step.effects);
    }
}
