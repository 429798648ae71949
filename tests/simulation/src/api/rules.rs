//! What the schema of a guest's record admits, as `godwit_crds::guest_record` states it in the API server's own language.

use serde_json::Value;

/// Whether a record may be changed like this.
///
/// # Errors
/// The rule that it breaks.
pub fn admits(old: &Value, new: &Value) -> Result<(), &'static str> {
    let (old_epoch, epoch) = (old["epoch"].as_i64(), new["epoch"].as_i64());
    let (old_holder, holder) = (&old["holder"], &new["holder"]);
    let (old_armed, armed) = (&old["migration"], &new["migration"]);
    let (was, is) = (decision(old), decision(new));
    let same = !armed.is_null() && !old_armed.is_null() && armed["uid"] == old_armed["uid"];
    let next = old_epoch.map(|epoch| epoch + 1);
    let (old_word, word) = (&old["resolution"], &new["resolution"]);
    let cold_start = word["coldStart"].as_i64();
    let afresh = cold_start.is_some() && cold_start == epoch;
    let is_fenced = |word: &Value, host: &Value| {
        let fenced = word["fenced"].as_array();
        fenced.is_some_and(|fenced| fenced.contains(host))
    };
    let rules = [
        (new["guest"] == old["guest"], "a record's guest never changes"),
        (
            epoch == old_epoch || epoch == next,
            "the epoch grows by one, at a handover, and never shrinks",
        ),
        (
            (holder == old_holder) == (epoch == old_epoch),
            "the holder and the epoch change together",
        ),
        (
            holder == old_holder
                || (is == "Committed"
                    && same
                    && *holder == armed["destination"]
                    && *old_holder == armed["source"])
                || (afresh && is_fenced(word, old_holder) && armed.is_null()),
            "the holder changes only by committing the armed migration, or by a cold start where the old one is fenced",
        ),
        (
            old_armed.is_null() || !armed.is_null() || (afresh && epoch == next),
            "an armed migration is replaced by the next one, or ended by a cold start, never removed",
        ),
        (
            old_word.is_null() || !word.is_null(),
            "an administrator's word is replaced by the next one, never removed",
        ),
        (
            word.is_null()
                || old_word["uid"] != word["uid"]
                || (["fenced", "lost", "by", "migration"]
                    .iter()
                    .all(|field| word[field] == old_word[field])
                    && (old_word["coldStart"].is_null() || old_word["coldStart"] == word["coldStart"])),
            "an administrator's word does not change",
        ),
        (
            cold_start.is_none() || cold_start <= epoch,
            "a guest is started afresh at an epoch of its own",
        ),
        (
            !afresh || !is_fenced(word, holder) || epoch == old_epoch,
            "a guest is not started afresh on a fenced host",
        ),
        (!same || armed == old_armed, "an armed migration is immutable"),
        (
            !same
                || is == was
                || was == "None"
                || (was == "Committed" && *old_holder == old_armed["source"] && is == "Reverted"),
            "a decision is final; only a commitment that was not advanced may be reverted",
        ),
        (
            same || old_armed.is_null()
                || ["Aborted", "Reverted"].contains(&was)
                || (was == "Committed" && *old_holder == old_armed["destination"]),
            "a new migration is armed only after the last one is finally decided",
        ),
        (
            !same
                || new["started"] == old["started"]
                || (new["started"] == true
                    && armed["strict"] == true
                    && (was, is) == ("Committed", "Committed")
                    && holder == old_holder),
            "a start is recorded of a strict migration alone, between its commitment and its advance",
        ),
        (
            same || armed.is_null()
                || (is == "None"
                    && new["started"] != true
                    && armed["source"] == *holder
                    && holder == old_holder),
            "a migration is armed undecided, with the holder as its source",
        ),
        (
            !armed.is_null() || is == "None",
            "without a migration there is nothing to decide",
        ),
    ];
    match rules.into_iter().find(|(kept, _)| !kept) {
        Some((_, broken)) => Err(broken),
        None => Ok(()),
    }
}

/// Whether a migration's status may be changed like this, as `godwit_crds::migration` states it.
///
/// # Errors
/// The rule that it breaks.
pub fn stays_ended(old: &Value, new: &Value) -> Result<(), &'static str> {
    let phase = old["phase"].as_str().unwrap_or_default();
    if ["Succeeded", "Failed", "Cancelled"].contains(&phase) && new["phase"] != old["phase"] {
        return Err("a migration that has ended stays as it has ended");
    }
    Ok(())
}

fn decision(record: &Value) -> &str {
    record["decision"].as_str().unwrap_or("None")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(decision: &str, holder: &str, epoch: u64, migration: Option<&str>) -> Value {
        let armed =
            migration.map(|uid| json!({"uid": uid, "source": "a", "destination": "b", "strict": true}));
        json!({"guest": {"uid": "g"}, "holder": holder, "epoch": epoch, "decision": decision, "started": false,
            "migration": armed})
    }

    #[test]
    fn what_is_right_is_admitted() {
        let none = record("None", "a", 4, None);
        let armed = record("None", "a", 4, Some("m"));
        let committed = record("Committed", "a", 4, Some("m"));
        let mut started = committed.clone();
        started["started"] = json!(true);
        let advanced = record("Committed", "b", 5, Some("m"));
        for (old, new) in [
            (&none, &armed),
            (&armed, &record("Aborted", "a", 4, Some("m"))),
            (&armed, &record("Reverted", "a", 4, Some("m"))),
            (&armed, &committed),
            (&committed, &started),
            (&committed, &record("Reverted", "a", 4, Some("m"))),
            (&committed, &advanced),
            (&armed, &advanced),
            (
                &record("Aborted", "a", 4, Some("m")),
                &record("None", "a", 4, Some("n")),
            ),
        ] {
            assert_eq!(admits(old, new), Ok(()), "{old} to {new}");
        }
    }

    #[test]
    fn an_administrators_word_starts_a_guest_afresh_and_does_not_change() {
        let said = |uid: &str, fenced: &str, cold_start: Option<u64>| json!({"uid": uid, "by": "eve", "fenced": [fenced], "lost": true, "coldStart": cold_start});
        let with = |mut record: Value, word: Value| {
            record["resolution"] = word;
            record
        };
        let at_rest = record("None", "a", 4, None);
        let armed = record("None", "a", 4, Some("m"));
        let advanced = record("Committed", "b", 5, Some("m"));
        let told = with(advanced.clone(), said("w", "b", None));
        for (old, new) in [
            (
                &at_rest,
                with(record("None", "b", 5, None), said("w", "a", Some(5))),
            ),
            (&armed, with(armed.clone(), said("w", "b", None))),
            (&told, with(record("None", "a", 6, None), said("w", "b", Some(6)))),
        ] {
            assert_eq!(admits(old, &new), Ok(()), "{old} to {new}");
        }
        for (old, new) in [
            (
                &at_rest,
                with(record("None", "b", 5, None), said("w", "b", Some(5))),
            ),
            (
                &at_rest,
                with(record("None", "a", 5, None), said("w", "a", Some(5))),
            ),
            (&at_rest, with(record("None", "b", 5, None), said("w", "a", None))),
            (
                &armed,
                with(record("None", "b", 5, None), said("w", "a", Some(5))),
            ),
            (&told, advanced.clone()),
            (&told, with(advanced.clone(), said("w", "a", None))),
            (&told, with(advanced.clone(), said("w", "b", Some(9)))),
        ] {
            assert!(admits(old, &new).is_err(), "{old} to {new}");
        }
    }

    #[test]
    fn an_end_is_one() {
        let phase = |phase: &str| json!({"phase": phase, "observedGeneration": 2});
        assert_eq!(stays_ended(&json!(null), &phase("Begin")), Ok(()));
        assert_eq!(stays_ended(&phase("Confirm"), &phase("Succeeded")), Ok(()));
        assert_eq!(stays_ended(&phase("Succeeded"), &phase("Succeeded")), Ok(()));
        assert!(stays_ended(&phase("Succeeded"), &phase("Confirm")).is_err());
        assert!(stays_ended(&phase("Cancelled"), &json!({})).is_err());
    }

    #[test]
    fn what_is_forged_is_not() {
        let armed = record("None", "a", 4, Some("m"));
        let aborted = record("Aborted", "a", 4, Some("m"));
        let advanced = record("Committed", "b", 5, Some("m"));
        let mut early = armed.clone();
        early["started"] = json!(true);
        for (old, new) in [
            (&armed, &record("None", "a", 5, Some("m"))),
            (&armed, &record("None", "b", 4, Some("m"))),
            (&armed, &record("None", "b", 5, Some("m"))),
            (&armed, &record("Committed", "b", 6, Some("m"))),
            (&armed, &record("None", "a", 4, None)),
            (&armed, &record("None", "a", 4, Some("n"))),
            (&armed, &early),
            (&aborted, &record("Committed", "a", 4, Some("m"))),
            (&aborted, &record("Committed", "b", 5, Some("m"))),
            (&aborted, &record("None", "a", 4, Some("m"))),
            (&advanced, &record("Reverted", "b", 5, Some("m"))),
            (&advanced, &record("Committed", "b", 4, Some("m"))),
        ] {
            assert!(admits(old, new).is_err(), "{old} to {new}");
        }
    }
}
