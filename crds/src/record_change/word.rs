//! What an administrator's word changes in a guest's record.

use super::{Attempt, Change, Refused, settled};
use crate::guest_record::{Decision, GuestRecordSpec, Resolution};
use crate::resolution::ResolutionAction;

/// What an administrator says about a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// The VirtualMachineResolution's UID.
    pub uid: String,
    /// Who says so.
    pub by: String,
    /// The epoch that he looked at.
    pub epoch: i64,
    /// The migration that waited then.
    pub migration: Option<String>,
    /// The hosts that he has fenced.
    pub fenced: Vec<String>,
    /// What is to become of the guest.
    pub action: ResolutionAction,
}

impl Word {
    fn has_fenced(&self, host: &str) -> bool {
        self.fenced.iter().any(|fenced| fenced == host)
    }
}

/// Takes the word into the record of a guest whose migration has not ended: whoever reads the record then knows who is
/// fenced. Also one that is decided may have to end without a host that is gone. The source's image goes on by it only where the record proves that the destination never started its own.
pub fn take_in(record: &GuestRecordSpec, word: &Word) -> Change {
    if said(record, word).is_some() {
        return Change::Already;
    }
    let about = |uid: &String| Some(uid) == word.migration.as_ref() && of_this_state(record, word);
    let Some(armed) = record.migration.as_ref().filter(|armed| about(&armed.uid)) else {
        return Change::Refuse(Refused::Overtaken);
    };
    // Of another host nothing follows.
    if !word.has_fenced(&armed.source) && !word.has_fenced(&armed.destination) {
        return Change::Refuse(Refused::NotFenced(armed.destination.clone()));
    }
    // What was said of this migration before stays said: a fence is a fact.
    let earlier = record
        .resolution
        .as_ref()
        .filter(|known| known.migration.as_ref() == Some(&armed.uid));
    let known = |host: &&String| {
        word.has_fenced(host) || earlier.is_some_and(|earlier| earlier.fenced.contains(host))
    };
    let fenced: Vec<String> = [&armed.source, &armed.destination]
        .into_iter()
        .filter(known)
        .cloned()
        .collect();
    let lost = word.action == ResolutionAction::ColdStart || earlier.is_some_and(|earlier| earlier.lost);
    let mut next = GuestRecordSpec {
        resolution: Some(Resolution {
            uid: word.uid.clone(),
            by: word.by.clone(),
            fenced,
            migration: Some(armed.uid.clone()),
            lost,
            cold_start: None,
        }),
        evidence: format!("{} has fenced {}", word.by, word.fenced.join(" and ")),
        ..record.clone()
    };
    match word.action {
        ResolutionAction::Wait | ResolutionAction::ColdStart => {}
        ResolutionAction::ResumeSource => {
            if !word.has_fenced(&armed.destination) {
                return Change::Refuse(Refused::NotFenced(armed.destination.clone()));
            }
            let committed = record.decision == Decision::Committed && record.holder == armed.source;
            if !(armed.strict && committed && !record.started) {
                return Change::Refuse(Refused::NotResumable);
            }
            next.decision = Decision::Reverted;
            next.evidence = format!(
                "{} has fenced {}, which committed and never started the guest",
                word.by, armed.destination
            );
        }
    }
    Change::Write(Box::new(next))
}

/// Says that the guest is started afresh on `host`, its memory being lost with the fenced host that held it.
pub fn cold_start(record: &GuestRecordSpec, word: &Word, host: &str) -> Change {
    if recorded(record, word).is_some_and(|recorded| recorded.cold_start.is_some()) {
        return Change::Already;
    }
    if let Some(armed) = record.migration.as_ref().filter(|_| !settled(record)) {
        return Change::Refuse(Refused::ArmedForOther(armed.uid.clone()));
    }
    if !of_this_state(record, word) {
        return Change::Refuse(Refused::Overtaken);
    }
    if !word.has_fenced(&record.holder) {
        return Change::Refuse(Refused::NotFenced(record.holder.clone()));
    }
    if word.has_fenced(host) {
        return Change::Refuse(Refused::NotFenced(host.into()));
    }
    let Some(epoch) = record.epoch.checked_add(1) else {
        return Change::Refuse(Refused::Overtaken);
    };
    let said = recorded(record, word).cloned().unwrap_or_else(|| Resolution {
        uid: word.uid.clone(),
        by: word.by.clone(),
        fenced: word.fenced.clone(),
        migration: None,
        lost: false,
        cold_start: None,
    });
    Change::Write(Box::new(GuestRecordSpec {
        holder: host.into(),
        epoch,
        migration: None,
        decision: Decision::None,
        started: false,
        resolution: Some(Resolution {
            cold_start: Some(epoch),
            ..said
        }),
        evidence: format!(
            "{} has fenced {} and has the guest started afresh on {host}",
            word.by, record.holder
        ),
        ..record.clone()
    }))
}

/// Whether a guest that is being deleted may be let go without a word of the host that holds it: that host is fenced, so
/// nothing of the guest runs there any more, and nobody else may have it.
///
/// # Errors
/// What in the record stands against it.
pub fn let_go(record: &GuestRecordSpec, word: &Word) -> Result<(), Refused> {
    if let Some(armed) = record.migration.as_ref().filter(|_| !settled(record)) {
        return Err(Refused::ArmedForOther(armed.uid.clone()));
    }
    if !of_this_state(record, word) {
        return Err(Refused::Overtaken);
    }
    if word.has_fenced(&record.holder) {
        Ok(())
    } else {
        Err(Refused::NotFenced(record.holder.clone()))
    }
}

/// Whether the guest stands as the administrator saw it, or as the end of the migration that he spoke of left it.
fn of_this_state(record: &GuestRecordSpec, word: &Word) -> bool {
    let ended_by_it = record.epoch.checked_sub(1) == Some(word.epoch)
        && word.migration.is_some()
        && record.migration.as_ref().map(|armed| &armed.uid) == word.migration.as_ref();
    record.epoch == word.epoch || ended_by_it
}

/// The word in the record, if this one adds nothing to it: it is this one, or another about the same migration that fences as
/// much and gives as much up. Two administrators who say the same do not write the record by turns.
pub fn said<'a>(record: &'a GuestRecordSpec, word: &Word) -> Option<&'a Resolution> {
    let known = record.resolution.as_ref()?;
    let same = known.migration.is_some() && known.migration == word.migration;
    let carried_out = match word.action {
        ResolutionAction::Wait => true,
        ResolutionAction::ColdStart => known.lost,
        ResolutionAction::ResumeSource => record.decision == Decision::Reverted,
    };
    let of_these = |host: &String| {
        record
            .migration
            .as_ref()
            .is_none_or(|armed| [&armed.source, &armed.destination].contains(&host))
    };
    let as_much = word
        .fenced
        .iter()
        .filter(|host| of_these(host))
        .all(|host| known.fenced.contains(host));
    (known.uid == word.uid || same && carried_out && as_much).then_some(known)
}

fn recorded<'a>(record: &'a GuestRecordSpec, word: &Word) -> Option<&'a Resolution> {
    record.resolution.as_ref().filter(|known| known.uid == word.uid)
}

/// Who has fenced this host, for this attempt.
pub(super) fn fenced<'a>(record: &'a GuestRecordSpec, attempt: &Attempt, host: &str) -> Option<&'a str> {
    let word = record.resolution.as_ref()?;
    let about = word.migration.as_ref() == Some(&attempt.migration);
    (about && word.fenced.iter().any(|fenced| fenced == host)).then_some(word.by.as_str())
}

/// Who has given up for lost what this attempt's destination may have run.
pub(super) fn given_up<'a>(record: &'a GuestRecordSpec, attempt: &Attempt) -> Option<&'a str> {
    let lost = record.resolution.as_ref().is_some_and(|word| word.lost);
    fenced(record, attempt, &attempt.destination).filter(|_| lost)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a failing test may panic")]
mod tests {
    use super::super::{advance, arm, armed_attempt, decide, first, start};
    use super::*;
    use crate::guest_record::GuestReference;

    fn attempt(strict: bool) -> Attempt {
        Attempt {
            migration: "m".into(),
            epoch: 1,
            source: "a".into(),
            destination: "b".into(),
            strict,
        }
    }

    fn word(fenced: &[&str], action: ResolutionAction) -> Word {
        Word {
            uid: "w".into(),
            by: "eve".into(),
            epoch: 1,
            migration: Some("m".into()),
            fenced: fenced.iter().map(|host| (*host).to_owned()).collect(),
            action,
        }
    }

    fn at_rest() -> GuestRecordSpec {
        first(
            GuestReference {
                namespace: "n".into(),
                name: "vm".into(),
                uid: "g".into(),
                definition: "0".repeat(64),
            },
            "a",
        )
    }

    fn written(change: Change) -> GuestRecordSpec {
        match change {
            Change::Write(spec) => *spec,
            Change::Already | Change::Refuse(_) => panic!("expected a write: {change:?}"),
        }
    }

    #[test]
    fn a_guest_at_rest_is_started_afresh_where_its_host_is_fenced() {
        let about = Word {
            migration: None,
            ..word(&["a"], ResolutionAction::ColdStart)
        };
        let started = written(cold_start(&at_rest(), &about, "c"));
        assert_eq!((started.holder.as_str(), started.epoch), ("c", 2));
        assert_eq!(started.resolution.as_ref().unwrap().cold_start, Some(2));
        assert_eq!(cold_start(&started, &about, "c"), Change::Already);
        // The same word does not start it once more, wherever it goes.
        let moved = GuestRecordSpec {
            holder: "a".into(),
            epoch: 3,
            ..started
        };
        assert_eq!(cold_start(&moved, &about, "c"), Change::Already);
        for (host, other) in [
            ("c", word(&["b"], ResolutionAction::ColdStart)),
            ("a", about.clone()),
        ] {
            assert!(matches!(
                cold_start(&at_rest(), &other, host),
                Change::Refuse(Refused::NotFenced(_))
            ));
        }
        let old = Word { epoch: 7, ..about };
        assert_eq!(
            cold_start(&at_rest(), &old, "c"),
            Change::Refuse(Refused::Overtaken)
        );
    }

    #[test]
    fn a_deleted_guest_is_let_go_where_its_holder_is_fenced_and_nothing_is_undecided() {
        let about = Word {
            migration: None,
            ..word(&["a"], ResolutionAction::Wait)
        };
        assert_eq!(let_go(&at_rest(), &about), Ok(()));
        let other = word(&["b"], ResolutionAction::Wait);
        assert_eq!(let_go(&at_rest(), &other), Err(Refused::NotFenced("a".into())));
        let old = Word {
            epoch: 7,
            ..about.clone()
        };
        assert_eq!(let_go(&at_rest(), &old), Err(Refused::Overtaken));
        let armed = written(arm(&at_rest(), &attempt(false)));
        assert_eq!(let_go(&armed, &about), Err(Refused::ArmedForOther("m".into())));
        let aborted = written(decide(&armed, &attempt(false), Decision::Aborted));
        assert_eq!(let_go(&aborted, &about), Ok(()));
    }

    #[test]
    fn what_a_fenced_destination_may_have_run_is_lost_before_the_guest_is_started_afresh() {
        let attempt = attempt(false);
        let armed = written(arm(&at_rest(), &attempt));
        let word = word(&["b"], ResolutionAction::ColdStart);
        assert!(matches!(cold_start(&armed, &word, "c"), Change::Refuse(_)));
        let known = written(take_in(&armed, &word));
        assert_eq!((known.holder.as_str(), known.decision), ("a", Decision::None));
        assert_eq!(take_in(&known, &word), Change::Already);
        let lost = written(advance(&known, &attempt));
        assert!(lost.evidence.contains("eve"), "{}", lost.evidence);
        let started = written(cold_start(&lost, &word, "c"));
        assert_eq!((started.holder.as_str(), started.epoch), ("c", 3));
        assert_eq!(armed_attempt(&started, "m"), None);
        assert!(super::super::settled(&started));
    }

    #[test]
    fn a_word_about_another_migration_or_another_host_is_refused() {
        let armed = written(arm(&at_rest(), &attempt(false)));
        let other = Word {
            migration: Some("m2".into()),
            ..word(&["b"], ResolutionAction::Wait)
        };
        assert_eq!(take_in(&armed, &other), Change::Refuse(Refused::Overtaken));
        assert_eq!(take_in(&at_rest(), &other), Change::Refuse(Refused::Overtaken));
        assert!(matches!(
            take_in(&armed, &word(&["c"], ResolutionAction::Wait)),
            Change::Refuse(Refused::NotFenced(_))
        ));
        // It ended by itself, the other way, and the guest has moved on to the fenced host by another one.
        let aborted = written(decide(&armed, &attempt(false), Decision::Aborted));
        let next = Attempt {
            migration: "m2".into(),
            ..attempt(false)
        };
        let moved = written(advance(&written(arm(&aborted, &next)), &next));
        assert_eq!(moved.holder, "b");
        assert_eq!(
            cold_start(&moved, &word(&["b"], ResolutionAction::ColdStart), "c"),
            Change::Refuse(Refused::Overtaken)
        );
    }

    #[test]
    fn the_source_goes_on_only_where_a_strict_destination_has_committed_and_not_started() {
        let resume = word(&["b"], ResolutionAction::ResumeSource);
        for strict in [false, true] {
            let attempt = attempt(strict);
            let armed = written(arm(&at_rest(), &attempt));
            assert_eq!(take_in(&armed, &resume), Change::Refuse(Refused::NotResumable));
            let committed = written(decide(&armed, &attempt, Decision::Committed));
            if strict {
                let resumed = written(take_in(&committed, &resume));
                assert_eq!(resumed.decision, Decision::Reverted);
                assert!(matches!(start(&resumed, &attempt), Change::Refuse(_)));
                let started = written(start(&committed, &attempt));
                assert_eq!(take_in(&started, &resume), Change::Refuse(Refused::NotResumable));
                let wrong = word(&["a"], ResolutionAction::ResumeSource);
                assert!(matches!(
                    take_in(&committed, &wrong),
                    Change::Refuse(Refused::NotFenced(_))
                ));
            } else {
                assert_eq!(
                    take_in(&committed, &resume),
                    Change::Refuse(Refused::NotResumable)
                );
            }
        }
    }

    #[test]
    fn what_was_said_of_a_migration_stays_said() {
        let armed = written(arm(&at_rest(), &attempt(false)));
        let lost = written(take_in(&armed, &word(&["b"], ResolutionAction::ColdStart)));
        let next = Word {
            uid: "w2".into(),
            ..word(&["a", "c"], ResolutionAction::Wait)
        };
        let said = written(take_in(&lost, &next)).resolution.unwrap();
        assert_eq!(said.fenced, ["a", "b"]);
        assert!(said.lost);
    }

    #[test]
    fn a_word_that_adds_nothing_is_not_written() {
        let armed = written(arm(&at_rest(), &attempt(true)));
        let named = |uid: &str, word: Word| Word {
            uid: uid.into(),
            ..word
        };
        let wait = named("w1", word(&["b"], ResolutionAction::Wait));
        let cold = named("w2", word(&["b"], ResolutionAction::ColdStart));
        let fenced = written(take_in(&armed, &wait));
        assert_eq!(take_in(&fenced, &named("w3", wait.clone())), Change::Already);
        let lost = written(take_in(&fenced, &cold));
        for again in [
            &wait,
            &cold,
            &named("w4", word(&["b", "z"], ResolutionAction::Wait)),
        ] {
            assert_eq!(take_in(&lost, again), Change::Already, "{again:?}");
        }
        assert!(matches!(
            take_in(&lost, &named("w5", word(&["a"], ResolutionAction::Wait))),
            Change::Write(_)
        ));
        let committed = written(decide(&fenced, &attempt(true), Decision::Committed));
        let resume = named("w6", word(&["b"], ResolutionAction::ResumeSource));
        let resumed = written(take_in(&committed, &resume));
        let replaced = written(take_in(
            &resumed,
            &named("w7", word(&["a"], ResolutionAction::Wait)),
        ));
        assert_eq!(take_in(&replaced, &resume), Change::Already);
    }

    #[test]
    fn the_evidence_names_who_has_fenced_the_source() {
        let attempt = attempt(false);
        let armed = written(arm(&at_rest(), &attempt));
        let known = written(take_in(&armed, &word(&["a"], ResolutionAction::Wait)));
        let committed = written(decide(&known, &attempt, Decision::Committed));
        assert!(
            committed.evidence.contains("eve has fenced a"),
            "{}",
            committed.evidence
        );
        let aborted = written(decide(&known, &attempt, Decision::Aborted));
        assert!(
            aborted.evidence.contains("eve has fenced a"),
            "{}",
            aborted.evidence
        );
    }
}
