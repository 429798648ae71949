//! Conditions as every Kubernetes tool knows them: a list keyed by `type`.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// It cannot be told at present.
    Unknown,
}

/// One observed fact about an object, with the time at which it last flipped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What the condition speaks of, in CamelCase.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 64))]
    pub type_: String,
    /// True, False or Unknown.
    pub status: ConditionStatus,
    /// A stable CamelCase word for programs; the table is in docs/conditions.md.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Z][A-Za-z0-9]*$"))]
    pub reason: String,
    /// A sentence for people: what is so, and what to do about it.
    #[schemars(length(max = 2048))]
    pub message: String,
    /// When `status` last changed (RFC 3339).
    #[schemars(length(max = 40), extend("format" = "date-time"))]
    pub last_transition_time: String,
    /// The object's generation that this was judged on.
    #[schemars(range(min = 0))]
    pub observed_generation: i64,
}

/// Puts `new` into `conditions`. `last_transition_time` moves only when the status flips, so that a repeated
/// observation leaves the object byte for byte as it was. Returns whether anything changed.
pub fn set_condition(conditions: &mut Vec<Condition>, mut new: Condition) -> bool {
    match conditions.iter_mut().find(|c| c.type_ == new.type_) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time.clone_from(&old.last_transition_time);
            }
            let changed = *old != new;
            *old = new;
            changed
        }
        None => {
            conditions.push(new);
            true
        }
    }
}

/// The condition of that type, if it is there.
pub fn find_condition<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn condition(status: ConditionStatus, message: &str, time: &str) -> Condition {
        Condition {
            type_: "Ready".into(),
            status,
            reason: "Tested".into(),
            message: message.into(),
            last_transition_time: time.into(),
            observed_generation: 1,
        }
    }

    #[test]
    fn transition_time_moves_only_when_the_status_flips() {
        let mut list = vec![];
        assert!(set_condition(
            &mut list,
            condition(ConditionStatus::True, "a", "t1")
        ));
        assert!(!set_condition(
            &mut list,
            condition(ConditionStatus::True, "a", "t2")
        ));
        assert!(set_condition(
            &mut list,
            condition(ConditionStatus::True, "b", "t3")
        ));
        assert_eq!(list[0].last_transition_time, "t1");
        assert!(set_condition(
            &mut list,
            condition(ConditionStatus::False, "b", "t4")
        ));
        assert_eq!(list[0].last_transition_time, "t4");
        assert_eq!(list.len(), 1);
    }
}
