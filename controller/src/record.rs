//! The guest's record: what the controller may write into it, and how.
//!
//! What is to be written follows from what was read ([`arm`], [`advance`], [`decide`]: pure). It is written by
//! compare-and-swap alone, resourceVersion and UID being part of the request. Each of these writes is idempotent
//! by the migration's UID, so a write whose answer was lost is found again by reading: either it is there, or it
//! is made again.

use godwit_crds::guest_record::GuestReference;
use godwit_crds::{ArmedMigration, Decision, GuestRecord, GuestRecordSpec};
use godwit_handover as handover;
use godwit_handover::{RecordView, Terms};
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use kube::{Client, Resource, ResourceExt};

use crate::apply::within;

/// Keeps a record until the guest is gone.
pub const FINALIZER: &str = "godwit.dev/guest";

/// How often one change is tried when others write at the same time.
const ATTEMPTS: usize = 5;

/// Why a record was not written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The API server could not be asked, or its answer was lost.
    #[error("the API server did not answer for the guest's record")]
    Api(#[from] kube::Error),
    /// There is no record.
    #[error("the guest's record is missing")]
    Missing,
    /// The record stands otherwise than this change needs.
    #[error("{0}")]
    Refused(Refused),
    /// Others write all the time.
    #[error("the guest's record was changed by others at each attempt")]
    Contended,
}

/// What in the record stands against a change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Another migration of this guest is undecided.
    #[error("the guest's record is armed for migration {0}, which is not decided yet")]
    ArmedForOther(String),
    /// The holder or the epoch is not the one that the migration builds on.
    #[error("the guest is held by {holder} at epoch {epoch}, which is not what this migration builds on")]
    HeldOtherwise {
        /// Who holds it.
        holder: String,
        /// At which epoch.
        epoch: i64,
    },
    /// The migration was decided otherwise.
    #[error("the guest's record says that this migration was decided otherwise: {0:?}")]
    DecidedOtherwise(Decision),
}

/// What follows from a record that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It says so already.
    Already,
    /// To be written. Its writer is filled in by [`Records`].
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

/// Arms the record for the migration of these terms.
pub fn arm(record: &GuestRecordSpec, terms: &Terms) -> Change {
    if let Some(armed) = &record.migration {
        if armed.uid == terms.migration {
            return Change::Already;
        }
        if !settled(record) {
            return Change::Refuse(Refused::ArmedForOther(armed.uid.clone()));
        }
    }
    if !held_by_source(record, terms) {
        return held_otherwise(record);
    }
    Change::Write(Box::new(GuestRecordSpec {
        migration: Some(ArmedMigration {
            uid: terms.migration.clone(),
            source: terms.source.clone(),
            destination: terms.destination.clone(),
            strict: false,
        }),
        decision: Decision::None,
        started: false,
        evidence: format!(
            "armed to move the guest from {} to {}",
            terms.source, terms.destination
        ),
        ..record.clone()
    }))
}

/// Says that the destination holds the guest: Committed, holder = destination, epoch + 1.
pub fn advance(record: &GuestRecordSpec, terms: &Terms) -> Change {
    if !armed_for(record, terms) {
        return held_otherwise(record);
    }
    if view(record).advanced_for(terms) {
        return Change::Already;
    }
    match record.decision {
        Decision::None | Decision::Committed if held_by_source(record, terms) => {
            Change::Write(Box::new(GuestRecordSpec {
                holder: terms.destination.clone(),
                epoch: record.epoch.saturating_add(1),
                decision: Decision::Committed,
                evidence: format!("{} reported that it holds the guest", terms.destination),
                ..record.clone()
            }))
        }
        Decision::None | Decision::Committed => held_otherwise(record),
        Decision::Aborted | Decision::Reverted => Change::Refuse(Refused::DecidedOtherwise(record.decision)),
    }
}

/// Says that the destination never will run the guest.
pub fn decide(record: &GuestRecordSpec, terms: &Terms, decision: Decision) -> Change {
    if !armed_for(record, terms) {
        return held_otherwise(record);
    }
    if view(record).reverted_for(terms) {
        return Change::Already;
    }
    // A commitment may be taken back by the destination that made it, and only until it was advanced.
    let open = match record.decision {
        Decision::None => true,
        Decision::Committed => decision == Decision::Reverted && held_by_source(record, terms),
        Decision::Aborted | Decision::Reverted => false,
    };
    if !open || !held_by_source(record, terms) {
        return Change::Refuse(Refused::DecidedOtherwise(record.decision));
    }
    let evidence = match decision {
        Decision::Aborted => format!("{} reported that it keeps the guest", terms.source),
        Decision::Reverted => format!(
            "{} reported that its copy is gone and never ran",
            terms.destination
        ),
        Decision::None | Decision::Committed => {
            return Change::Refuse(Refused::DecidedOtherwise(record.decision));
        }
    };
    Change::Write(Box::new(GuestRecordSpec {
        decision,
        evidence,
        ..record.clone()
    }))
}

fn armed_for(record: &GuestRecordSpec, terms: &Terms) -> bool {
    record
        .migration
        .as_ref()
        .is_some_and(|armed| armed.uid == terms.migration)
}

fn held_by_source(record: &GuestRecordSpec, terms: &Terms) -> bool {
    record.holder == terms.source && u64::try_from(record.epoch) == Ok(terms.epoch)
}

fn held_otherwise(record: &GuestRecordSpec) -> Change {
    Change::Refuse(Refused::HeldOtherwise {
        holder: record.holder.clone(),
        epoch: record.epoch,
    })
}

/// The record in the words of the handover.
pub fn view(record: &GuestRecordSpec) -> RecordView {
    RecordView {
        holder: record.holder.clone(),
        epoch: u64::try_from(record.epoch).unwrap_or(0),
        migration: record.migration.as_ref().map(|armed| armed.uid.clone()),
        decision: match record.decision {
            Decision::None => handover::Decision::None,
            Decision::Committed => handover::Decision::Committed,
            Decision::Aborted => handover::Decision::Aborted,
            Decision::Reverted => handover::Decision::Reverted,
        },
    }
}

/// The terms under which a migration goes on after a restart, if the record is armed for it.
pub fn terms_of_armed(record: &GuestRecordSpec, migration: &str) -> Option<Terms> {
    let armed = record.migration.as_ref().filter(|armed| armed.uid == migration)?;
    let epoch = u64::try_from(record.epoch).ok()?;
    let advanced = record.holder == armed.destination;
    Some(Terms {
        migration: migration.into(),
        guest: record.guest.uid.clone(),
        epoch: if advanced { epoch.checked_sub(1)? } else { epoch },
        source: armed.source.clone(),
        destination: armed.destination.clone(),
    })
}

/// Reads and writes records.
#[derive(Clone)]
pub struct Records {
    api: Api<GuestRecord>,
    writer: String,
}

impl Records {
    /// `writer` names this process in what it writes; no two processes have the same.
    pub fn new(client: Client, writer: String) -> Self {
        Self {
            api: Api::all(client),
            writer,
        }
    }

    /// The record as the API server has it now (a quorum read, never a cache); `None` if there is none.
    pub async fn read(&self, guest: &str) -> Result<Option<GuestRecord>, kube::Error> {
        within(self.api.get_opt(guest)).await
    }

    /// Creates a guest's first record, or gives the one that is there: whoever was first has chosen the host.
    pub async fn create(&self, mut spec: GuestRecordSpec) -> Result<GuestRecord, RecordError> {
        let name = spec.guest.uid.clone();
        spec.writer.clone_from(&self.writer);
        let mut record = GuestRecord::new(&name, spec);
        record.meta_mut().finalizers = Some(vec![FINALIZER.into()]);
        match within(self.api.create(&PostParams::default(), &record)).await {
            Ok(created) => Ok(created),
            // Also when the answer to an own attempt was lost: what is there counts.
            Err(error) => match self.read(&name).await? {
                Some(found) => Ok(found),
                None => Err(error.into()),
            },
        }
    }

    /// Carries `change` out on `known`, or on what is read after another writer was faster. Gives the record as
    /// it stands then.
    pub async fn change(
        &self,
        known: Option<GuestRecord>,
        guest: &str,
        change: impl Fn(&GuestRecordSpec) -> Change,
    ) -> Result<GuestRecord, RecordError> {
        let mut known = known;
        let mut failure = None;
        for _ in 0..ATTEMPTS {
            let record = match known.take() {
                Some(record) => record,
                None => self.read(guest).await?.ok_or(RecordError::Missing)?,
            };
            let mut next = record.clone();
            match change(&record.spec) {
                Change::Already => return Ok(record),
                Change::Refuse(refused) => {
                    return Err(RecordError::Refused(refused));
                }
                Change::Write(spec) => next.spec = *spec,
            }
            next.spec.writer.clone_from(&self.writer);
            // The object carries its resourceVersion and UID: the write fails if either is not the current one.
            match within(self.api.replace(guest, &PostParams::default(), &next)).await {
                Ok(written) => return Ok(written),
                Err(kube::Error::Api(status)) if status.is_conflict() => {}
                // Whether it was written is not known: the next round reads.
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.map_or(RecordError::Contended, RecordError::Api))
    }

    /// Removes the record of a guest that is known to be gone. Idempotent.
    pub async fn remove(&self, record: &GuestRecord) -> Result<(), kube::Error> {
        let name = record.name_any();
        if record.meta().deletion_timestamp.is_none() {
            let exactly_this = DeleteParams::default().preconditions(Preconditions {
                uid: record.uid(),
                resource_version: record.resource_version(),
            });
            match within(self.api.delete(&name, &exactly_this)).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        let Some(mut left) = self.read(&name).await? else {
            return Ok(());
        };
        left.meta_mut().finalizers = Some(
            left.finalizers()
                .iter()
                .filter(|name| *name != FINALIZER)
                .cloned()
                .collect(),
        );
        match within(self.api.replace(&name, &PostParams::default(), &left)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use super::*;

    fn terms() -> Terms {
        Terms {
            migration: "m".into(),
            guest: "g".into(),
            epoch: 3,
            source: "a".into(),
            destination: "b".into(),
        }
    }

    fn fresh() -> GuestRecordSpec {
        let guest = GuestReference {
            namespace: "n".into(),
            name: "vm".into(),
            uid: "g".into(),
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
        let armed = written(arm(&fresh(), &terms()));
        assert_eq!(armed.decision, Decision::None);
        assert_eq!((armed.holder.as_str(), armed.epoch), ("a", 3));
        assert_eq!(arm(&armed, &terms()), Change::Already);
        assert_eq!(terms_of_armed(&armed, "m"), Some(terms()));

        let advanced = written(advance(&armed, &terms()));
        assert_eq!((advanced.holder.as_str(), advanced.epoch), ("b", 4));
        assert!(view(&advanced).advanced_for(&terms()));
        assert_eq!(advance(&advanced, &terms()), Change::Already);
        assert_eq!(terms_of_armed(&advanced, "m"), Some(terms()));
        assert_eq!(terms_of_armed(&advanced, "other"), None);

        let back = Terms {
            migration: "m2".into(),
            epoch: 4,
            source: "b".into(),
            destination: "a".into(),
            ..terms()
        };
        let armed = written(arm(&advanced, &back));
        assert_eq!(terms_of_armed(&armed, "m2"), Some(back));
    }

    #[test]
    fn one_migration_at_a_time() {
        let armed = written(arm(&fresh(), &terms()));
        let other = Terms {
            migration: "m2".into(),
            ..terms()
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
        let aborted = written(decide(&armed, &terms(), Decision::Aborted));
        assert_eq!(written(arm(&aborted, &other)).migration.unwrap().uid, "m2");
    }

    #[test]
    fn terms_that_the_record_has_left_behind_are_refused() {
        for old in [
            Terms { epoch: 2, ..terms() },
            Terms {
                source: "c".into(),
                ..terms()
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
        assert!(matches!(advance(&fresh(), &terms()), Change::Refuse(_)));
        assert!(matches!(
            decide(&fresh(), &terms(), Decision::Aborted),
            Change::Refuse(_)
        ));
    }

    #[test]
    fn a_decision_is_final() {
        let armed = written(arm(&fresh(), &terms()));
        let reverted = written(decide(&armed, &terms(), Decision::Reverted));
        assert_eq!(decide(&reverted, &terms(), Decision::Reverted), Change::Already);
        assert_eq!(decide(&reverted, &terms(), Decision::Aborted), Change::Already);
        assert_eq!(
            advance(&reverted, &terms()),
            Change::Refuse(Refused::DecidedOtherwise(Decision::Reverted))
        );
        let advanced = written(advance(&armed, &terms()));
        for decision in [Decision::Aborted, Decision::Reverted] {
            assert_eq!(
                decide(&advanced, &terms(), decision),
                Change::Refuse(Refused::DecidedOtherwise(Decision::Committed))
            );
        }
        let committed = GuestRecordSpec {
            decision: Decision::Committed,
            ..armed
        };
        assert!(matches!(
            decide(&committed, &terms(), Decision::Aborted),
            Change::Refuse(_)
        ));
        assert_eq!(
            written(decide(&committed, &terms(), Decision::Reverted)).decision,
            Decision::Reverted
        );
    }
}
