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
                    && *old_holder == armed["source"]),
            "the holder changes only by committing the armed migration",
        ),
        (
            old_armed.is_null() || !armed.is_null(),
            "an armed migration is replaced by the next one, never removed",
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
            same || armed.is_null() || (is == "None" && armed["source"] == *holder && holder == old_holder),
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

fn decision(record: &Value) -> &str {
    record["decision"].as_str().unwrap_or("None")
}
