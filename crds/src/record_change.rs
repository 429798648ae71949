//! How a guest's record may change. Pure: what is to be written follows from what was read.
//!
//! Each of these changes is idempotent by the migration's UID, so a write whose answer was lost is found again by
//! reading: either it is there, or it is made again. Whoever writes does it by compare-and-swap alone, resourceVersion
//! and UID being part of the request.

use std::fmt;

use crate::guest_record::{ArmedMigration, Decision, GuestRecordSpec, GuestReference};

#[path = "record_change/word.rs"]
mod word;

pub use word::{Word, cold_start, let_go, said, take_in};

/// One attempt to move a guest, as far as its record is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The VirtualMachineMigration's UID.
    pub migration: String,
    /// The epoch at which the source holds the guest.
    pub epoch: u64,
    /// The host that gives the guest away.
    pub source: String,
    /// The host that takes it.
    pub destination: String,
    /// Whether the destination must record that it starts the guest before it does.
    pub strict: bool,
}

/// What in the record stands against a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Another migration of this guest is undecided.
    ArmedForOther(String),
    /// The holder or the epoch is not the one that the migration builds on.
    HeldOtherwise {
        /// Who holds it.
        holder: String,
        /// At which epoch.
        epoch: i64,
    },
    /// The migration was decided otherwise.
    DecidedOtherwise(Decision),
    /// An administrator's word is about another state of the guest than this one.
    Overtaken,
    /// The host that counts is not among those that the administrator has fenced.
    NotFenced(String),
    /// The destination may have run its image: the source's must not go on.
    NotResumable,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ArmedForOther(migration) => write!(
                f,
                "the guest's record is armed for migration {migration}, which is not decided yet"
            ),
            Self::HeldOtherwise { holder, epoch } => write!(
                f,
                "the guest is held by {holder} at epoch {epoch}, which is not what this migration builds on"
            ),
            Self::DecidedOtherwise(decision) => write!(
                f,
                "the guest's record says that this migration was decided otherwise: {decision:?}"
            ),
            Self::Overtaken => f.write_str("the guest has gone on since: look again"),
            Self::NotFenced(host) => write!(f, "{host} is not among the fenced hosts, and the guest may be there"),
            Self::NotResumable => f.write_str(
                "the destination may have run the guest: only a migration with `handoff: Strict` that is committed and \
                 not started proves that it has not",
            ),
        }
    }
}

impl std::error::Error for Refused {}

/// What follows from a record that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It says so already.
    Already,
    /// To be written. Its writer is filled in by whoever writes it.
    Write(Box<GuestRecordSpec>),
    /// It must not be written.
    Refuse(Refused),
}

/// The record of a guest that has never been started.
pub fn first(guest: GuestReference, host: &str) -> GuestRecordSpec {
    GuestRecordSpec {
        guest,
        holder: host.into(),
        epoch: 1,
        migration: None,
        decision: Decision::None,
        started: false,
        resolution: None,
        writer: String::new(),
        evidence: format!("{host} was chosen before the guest's first start"),
    }
}

/// Whether the last migration of this record is decided for good.
pub fn settled(record: &GuestRecordSpec) -> bool {
    let Some(armed) = &record.migration else {
        return true;
    };
    match record.decision {
        Decision::None => false,
        Decision::Aborted | Decision::Reverted => true,
        Decision::Committed => record.holder == armed.destination,
    }
}

/// Arms the record for this attempt.
pub fn arm(record: &GuestRecordSpec, attempt: &Attempt) -> Change {
    if let Some(armed) = &record.migration {
        if armed.uid == attempt.migration {
            return Change::Already;
        }
        if !settled(record) {
            return Change::Refuse(Refused::ArmedForOther(armed.uid.clone()));
        }
    }
    if !held_by_source(record, attempt) {
        return held_otherwise(record);
    }
    Change::Write(Box::new(GuestRecordSpec {
        migration: Some(ArmedMigration {
            uid: attempt.migration.clone(),
            source: attempt.source.clone(),
            destination: attempt.destination.clone(),
            strict: attempt.strict,
        }),
        decision: Decision::None,
        started: false,
        evidence: format!(
            "armed to move the guest from {} to {}",
            attempt.source, attempt.destination
        ),
        ..record.clone()
    }))
}

/// Says that the destination holds the guest: Committed, holder = destination, epoch + 1.
pub fn advance(record: &GuestRecordSpec, attempt: &Attempt) -> Change {
    if !armed_for(record, attempt) {
        return held_otherwise(record);
    }
    if advanced(record, attempt) {
        return Change::Already;
    }
    match record.decision {
        Decision::None | Decision::Committed if held_by_source(record, attempt) => {
            Change::Write(Box::new(GuestRecordSpec {
                holder: attempt.destination.clone(),
                epoch: record.epoch.saturating_add(1),
                decision: Decision::Committed,
                evidence: match word::given_up(record, attempt) {
                    Some(by) => format!(
                        "{by} has fenced {} and gives what ran there up for lost",
                        attempt.destination
                    ),
                    None => format!("{} reported that it holds the guest", attempt.destination),
                },
                ..record.clone()
            }))
        }
        Decision::None | Decision::Committed => held_otherwise(record),
        Decision::Aborted | Decision::Reverted => Change::Refuse(Refused::DecidedOtherwise(record.decision)),
    }
}

/// Decides who runs the guest: Committed says that the destination may, Aborted and Reverted that it never will.
pub fn decide(record: &GuestRecordSpec, attempt: &Attempt, decision: Decision) -> Change {
    if !armed_for(record, attempt) {
        return held_otherwise(record);
    }
    let otherwise = Change::Refuse(Refused::DecidedOtherwise(record.decision));
    if !held_by_source(record, attempt) {
        return otherwise;
    }
    // Who is fenced can neither keep its guest nor report anything.
    let fenced = |host: &str| word::fenced(record, attempt, host);
    let evidence = match (record.decision, decision) {
        (Decision::Aborted | Decision::Reverted, Decision::Aborted | Decision::Reverted)
        | (Decision::Committed, Decision::Committed) => return Change::Already,
        (Decision::None, Decision::Aborted) => match fenced(&attempt.source) {
            Some(by) => format!(
                "{by} has fenced {}, and nobody else has the guest whole",
                attempt.source
            ),
            None => format!("{} keeps the guest", attempt.source),
        },
        // A commitment may be taken back by the destination that made it, and only until it was advanced.
        (Decision::None | Decision::Committed, Decision::Reverted) => format!(
            "{} reported that its copy is gone and never ran",
            attempt.destination
        ),
        (Decision::None, Decision::Committed) => match fenced(&attempt.source) {
            Some(by) => format!(
                "{} holds the guest whole, and {by} has fenced {}",
                attempt.destination, attempt.source
            ),
            None => format!(
                "{} holds the guest whole, and was told that it does not run again at {} by itself",
                attempt.destination, attempt.source
            ),
        },
        (_, Decision::None)
        | (Decision::Aborted | Decision::Reverted, Decision::Committed)
        | (Decision::Committed, Decision::Aborted) => return otherwise,
    };
    Change::Write(Box::new(GuestRecordSpec {
        decision,
        evidence,
        ..record.clone()
    }))
}

/// Says that the destination lets the guest run: Strict alone, and only what it has committed.
pub fn start(record: &GuestRecordSpec, attempt: &Attempt) -> Change {
    if !armed_for(record, attempt) || !held_by_source(record, attempt) {
        return held_otherwise(record);
    }
    let strict = record.migration.as_ref().is_some_and(|armed| armed.strict);
    match record.decision {
        Decision::Committed if record.started => Change::Already,
        Decision::Committed if strict => Change::Write(Box::new(GuestRecordSpec {
            started: true,
            evidence: format!("{} lets the guest run", attempt.destination),
            ..record.clone()
        })),
        Decision::None | Decision::Committed | Decision::Aborted | Decision::Reverted => {
            Change::Refuse(Refused::DecidedOtherwise(record.decision))
        }
    }
}

/// The attempt that the record is armed for, if it is that of this migration, as it was before the handover.
pub fn armed_attempt(record: &GuestRecordSpec, migration: &str) -> Option<Attempt> {
    let armed = record.migration.as_ref().filter(|armed| armed.uid == migration)?;
    let epoch = u64::try_from(record.epoch).ok()?;
    let advanced = record.holder == armed.destination;
    Some(Attempt {
        migration: migration.into(),
        epoch: if advanced { epoch.checked_sub(1)? } else { epoch },
        source: armed.source.clone(),
        destination: armed.destination.clone(),
        strict: armed.strict,
    })
}

fn armed_for(record: &GuestRecordSpec, attempt: &Attempt) -> bool {
    record
        .migration
        .as_ref()
        .is_some_and(|armed| armed.uid == attempt.migration)
}

fn held_by_source(record: &GuestRecordSpec, attempt: &Attempt) -> bool {
    record.holder == attempt.source && u64::try_from(record.epoch) == Ok(attempt.epoch)
}

fn advanced(record: &GuestRecordSpec, attempt: &Attempt) -> bool {
    record.decision == Decision::Committed
        && record.holder == attempt.destination
        && u64::try_from(record.epoch).ok() == attempt.epoch.checked_add(1)
}

fn held_otherwise(record: &GuestRecordSpec) -> Change {
    Change::Refuse(Refused::HeldOtherwise {
        holder: record.holder.clone(),
        epoch: record.epoch,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a failing test may panic")]
mod tests {
    use super::*;

    fn attempt() -> Attempt {
        Attempt {
            migration: "m".into(),
            epoch: 3,
            source: "a".into(),
            destination: "b".into(),
            strict: false,
        }
    }

    fn fresh() -> GuestRecordSpec {
        let guest = GuestReference {
            namespace: "n".into(),
            name: "vm".into(),
            uid: "g".into(),
            definition: "0".repeat(64),
        };
        GuestRecordSpec {
            epoch: 3,
            ..first(guest, "a")
        }
    }

    fn written(change: Change) -> GuestRecordSpec {
        match change {
            Change::Write(spec) => *spec,
            Change::Already | Change::Refuse(_) => panic!("expected a write: {change:?}"),
        }
    }

    #[test]
    fn armed_advanced_and_armed_back() {
        let armed = written(arm(&fresh(), &attempt()));
        assert_eq!(armed.decision, Decision::None);
        assert_eq!((armed.holder.as_str(), armed.epoch), ("a", 3));
        assert_eq!(arm(&armed, &attempt()), Change::Already);
        assert_eq!(armed_attempt(&armed, "m"), Some(attempt()));

        let advanced = written(advance(&armed, &attempt()));
        assert_eq!((advanced.holder.as_str(), advanced.epoch), ("b", 4));
        assert_eq!(advanced.decision, Decision::Committed);
        assert_eq!(advance(&advanced, &attempt()), Change::Already);
        assert_eq!(armed_attempt(&advanced, "m"), Some(attempt()));
        assert_eq!(armed_attempt(&advanced, "other"), None);

        let back = Attempt {
            migration: "m2".into(),
            epoch: 4,
            source: "b".into(),
            destination: "a".into(),
            strict: false,
        };
        let armed = written(arm(&advanced, &back));
        assert_eq!(armed_attempt(&armed, "m2"), Some(back));
    }

    #[test]
    fn one_migration_at_a_time() {
        let armed = written(arm(&fresh(), &attempt()));
        let other = Attempt {
            migration: "m2".into(),
            ..attempt()
        };
        assert_eq!(
            arm(&armed, &other),
            Change::Refuse(Refused::ArmedForOther("m".into()))
        );
        // A commitment that was not advanced is not final.
        let committed = GuestRecordSpec {
            decision: Decision::Committed,
            ..armed.clone()
        };
        assert_eq!(
            arm(&committed, &other),
            Change::Refuse(Refused::ArmedForOther("m".into()))
        );
        let aborted = written(decide(&armed, &attempt(), Decision::Aborted));
        assert_eq!(written(arm(&aborted, &other)).migration.unwrap().uid, "m2");
    }

    #[test]
    fn strict_a_start_is_written_after_the_commitment() {
        let strict = Attempt {
            strict: true,
            ..attempt()
        };
        let armed = written(arm(&fresh(), &strict));
        assert!(armed.migration.as_ref().unwrap().strict && !armed.started);
        assert_eq!(armed_attempt(&armed, "m"), Some(strict.clone()));
        assert!(matches!(start(&armed, &strict), Change::Refuse(_)));
        let committed = written(decide(&armed, &strict, Decision::Committed));
        let started = written(start(&committed, &strict));
        assert!(started.started && started.holder == "a");
        assert_eq!(start(&started, &strict), Change::Already);
        let advanced = written(advance(&started, &strict));
        assert!(matches!(start(&advanced, &strict), Change::Refuse(_)));
        let next = Attempt {
            migration: "m2".into(),
            epoch: 4,
            source: "b".into(),
            destination: "a".into(),
            strict: false,
        };
        assert!(!written(arm(&advanced, &next)).started);

        let lax = written(decide(
            &written(arm(&fresh(), &attempt())),
            &attempt(),
            Decision::Committed,
        ));
        assert!(matches!(start(&lax, &attempt()), Change::Refuse(_)));
    }

    #[test]
    fn an_attempt_that_the_record_has_left_behind_is_refused() {
        for old in [
            Attempt {
                epoch: 2,
                ..attempt()
            },
            Attempt {
                source: "c".into(),
                ..attempt()
            },
        ] {
            assert_eq!(
                arm(&fresh(), &old),
                Change::Refuse(Refused::HeldOtherwise {
                    holder: "a".into(),
                    epoch: 3
                })
            );
        }
        assert!(matches!(advance(&fresh(), &attempt()), Change::Refuse(_)));
        assert!(matches!(
            decide(&fresh(), &attempt(), Decision::Aborted),
            Change::Refuse(_)
        ));
    }

    #[test]
    fn a_decision_is_final() {
        let armed = written(arm(&fresh(), &attempt()));
        let reverted = written(decide(&armed, &attempt(), Decision::Reverted));
        assert_eq!(decide(&reverted, &attempt(), Decision::Reverted), Change::Already);
        assert_eq!(decide(&reverted, &attempt(), Decision::Aborted), Change::Already);
        assert_eq!(
            advance(&reverted, &attempt()),
            Change::Refuse(Refused::DecidedOtherwise(Decision::Reverted))
        );
        let advanced = written(advance(&armed, &attempt()));
        assert_eq!(
            decide(&reverted, &attempt(), Decision::Committed),
            Change::Refuse(Refused::DecidedOtherwise(Decision::Reverted))
        );
        for decision in [Decision::Aborted, Decision::Reverted, Decision::Committed] {
            assert_eq!(
                decide(&advanced, &attempt(), decision),
                Change::Refuse(Refused::DecidedOtherwise(Decision::Committed))
            );
        }
        let committed = written(decide(&armed, &attempt(), Decision::Committed));
        assert_eq!((committed.holder.as_str(), committed.epoch), ("a", 3));
        assert_eq!(
            decide(&committed, &attempt(), Decision::Committed),
            Change::Already
        );
        assert_eq!(
            written(advance(&committed, &attempt())).holder,
            attempt().destination
        );
        assert!(matches!(
            decide(&committed, &attempt(), Decision::Aborted),
            Change::Refuse(_)
        ));
        assert_eq!(
            written(decide(&committed, &attempt(), Decision::Reverted)).decision,
            Decision::Reverted
        );
    }
}
