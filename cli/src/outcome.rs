//! What a migration's conditions say: one pure function, on which every exit code and every wait rests.

use godwit_crds::condition::find_condition;
use godwit_crds::{Condition, ConditionStatus, VirtualMachineMigrationStatus};

/// How a migration stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The controller has written no condition yet.
    Unseen,
    /// It goes on.
    Going,
    /// Neither side may be started or destroyed before a person looks, or before the hosts have answered.
    NeedsDecision(Cause),
    /// The guest runs at the destination.
    Succeeded,
    /// It ended because someone asked for it.
    Cancelled(Cause),
    /// It ended otherwise.
    Failed(Cause),
}

/// A condition's own words, as they were written (not yet fit for a terminal).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The stable word.
    pub reason: String,
    /// The sentence.
    pub message: String,
}

impl Outcome {
    /// Whether nothing more will happen.
    pub fn ended(&self) -> bool {
        match self {
            Self::Unseen | Self::Going | Self::NeedsDecision(_) => false,
            Self::Succeeded | Self::Cancelled(_) | Self::Failed(_) => true,
        }
    }
}

/// How the migration with this status stands. `Failed` is looked at first: should both be true, which no honest
/// controller writes, success is not what a script is told.
pub fn outcome(status: Option<&VirtualMachineMigrationStatus>) -> Outcome {
    let conditions = status.map(|s| s.conditions.as_slice()).unwrap_or_default();
    let truth = |type_| find_condition(conditions, type_).filter(|c| c.status == ConditionStatus::True);
    if let Some(failed) = truth("Failed") {
        return match truth("Cancelled") {
            Some(cancelled) => Outcome::Cancelled(cause(cancelled)),
            None if failed.reason == "Cancelled" => Outcome::Cancelled(cause(failed)),
            None => Outcome::Failed(cause(failed)),
        };
    }
    if truth("Succeeded").is_some() {
        return Outcome::Succeeded;
    }
    if let Some(decision) = truth("NeedsDecision") {
        return Outcome::NeedsDecision(cause(decision));
    }
    if conditions.is_empty() {
        Outcome::Unseen
    } else {
        Outcome::Going
    }
}

/// Whether the controller has said that a cancellation came too late, and in which words.
pub fn cancelled_too_late(status: Option<&VirtualMachineMigrationStatus>) -> Option<Cause> {
    let conditions = status.map(|s| s.conditions.as_slice()).unwrap_or_default();
    find_condition(conditions, "Cancelled")
        .filter(|c| c.status == ConditionStatus::False && c.reason == "CancelTooLate")
        .map(cause)
}

fn cause(condition: &Condition) -> Cause {
    Cause {
        reason: condition.reason.clone(),
        message: condition.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(conditions: &[(&str, ConditionStatus, &str)]) -> VirtualMachineMigrationStatus {
        VirtualMachineMigrationStatus {
            conditions: conditions
                .iter()
                .map(|(type_, status, reason)| Condition {
                    type_: (*type_).into(),
                    status: *status,
                    reason: (*reason).into(),
                    message: format!("{type_} is so"),
                    last_transition_time: "2026-11-22T19:00:00Z".into(),
                    observed_generation: 1,
                })
                .collect(),
            ..Default::default()
        }
    }

    fn because(reason: &str, type_: &str) -> Cause {
        Cause {
            reason: reason.into(),
            message: format!("{type_} is so"),
        }
    }

    use ConditionStatus::{False, True, Unknown};

    #[test]
    fn each_outcome() {
        assert_eq!(outcome(None), Outcome::Unseen);
        assert_eq!(outcome(Some(&status(&[]))), Outcome::Unseen);
        let going = [
            ("Accepted", True, "Accepted"),
            ("Succeeded", Unknown, "InProgress"),
            ("Failed", Unknown, "InProgress"),
            ("NeedsDecision", False, "NotNeeded"),
        ];
        assert_eq!(outcome(Some(&status(&going))), Outcome::Going);
        let succeeded = [
            ("Accepted", True, "Accepted"),
            ("Succeeded", True, "Succeeded"),
            ("Failed", False, "Succeeded"),
        ];
        assert_eq!(outcome(Some(&status(&succeeded))), Outcome::Succeeded);
        let refused = [
            ("Accepted", False, "SameHost"),
            ("Succeeded", False, "SameHost"),
            ("Failed", True, "SameHost"),
        ];
        assert_eq!(
            outcome(Some(&status(&refused))),
            Outcome::Failed(because("SameHost", "Failed"))
        );
        let cancelled = [("Failed", True, "Cancelled"), ("Cancelled", True, "Cancelled")];
        assert_eq!(
            outcome(Some(&status(&cancelled))),
            Outcome::Cancelled(because("Cancelled", "Cancelled"))
        );
        let only_the_reason = [("Failed", True, "Cancelled")];
        assert_eq!(
            outcome(Some(&status(&only_the_reason))),
            Outcome::Cancelled(because("Cancelled", "Failed"))
        );
        let open = [
            ("Succeeded", Unknown, "InProgress"),
            ("NeedsDecision", True, "DecisionNeeded"),
        ];
        assert_eq!(
            outcome(Some(&status(&open))),
            Outcome::NeedsDecision(because("DecisionNeeded", "NeedsDecision"))
        );
    }

    #[test]
    fn success_is_never_told_in_doubt() {
        let both = [("Succeeded", True, "Succeeded"), ("Failed", True, "StreamFailed")];
        assert!(matches!(outcome(Some(&status(&both))), Outcome::Failed(_)));
        let unknown = [("Succeeded", Unknown, "Succeeded")];
        assert_eq!(outcome(Some(&status(&unknown))), Outcome::Going);
    }

    #[test]
    fn an_end_outweighs_an_old_doubt() {
        let healed = [
            ("NeedsDecision", True, "DecisionNeeded"),
            ("Succeeded", True, "Succeeded"),
        ];
        assert_eq!(outcome(Some(&status(&healed))), Outcome::Succeeded);
    }

    #[test]
    fn too_late() {
        let late = status(&[("Cancelled", False, "CancelTooLate")]);
        assert_eq!(
            cancelled_too_late(Some(&late)),
            Some(because("CancelTooLate", "Cancelled"))
        );
        assert_eq!(
            cancelled_too_late(Some(&status(&[("Cancelled", False, "InProgress")]))),
            None
        );
        assert_eq!(cancelled_too_late(None), None);
    }
}
