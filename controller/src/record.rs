//! The guest's record: what the controller may write into it, and how.
//!
//! What is to be written follows from what was read ([`godwit_crds::record_change`]: pure). It is written by
//! compare-and-swap alone, resourceVersion and UID being part of the request.

use godwit_crds::record_change::{self, Attempt};
use godwit_crds::{Decision, GuestRecord, GuestRecordSpec};
use godwit_handover as handover;
use godwit_handover::{RecordView, Terms, Word};
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use kube::{Client, Resource, ResourceExt};

use crate::apply::within;

pub use godwit_crds::record_change::{Change, Refused, first, settled};

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

/// The attempt of these terms, as the record knows it.
fn attempt(terms: &Terms) -> Attempt {
    Attempt {
        migration: terms.migration.clone(),
        epoch: terms.epoch,
        source: terms.source.clone(),
        destination: terms.destination.clone(),
        strict: terms.strict,
    }
}

/// Arms the record for the migration of these terms.
pub fn arm(record: &GuestRecordSpec, terms: &Terms) -> Change {
    record_change::arm(record, &attempt(terms))
}

/// Says that the destination holds the guest: Committed, holder = destination, epoch + 1.
pub fn advance(record: &GuestRecordSpec, terms: &Terms) -> Change {
    record_change::advance(record, &attempt(terms))
}

/// Says that the destination never will run the guest.
pub fn decide(record: &GuestRecordSpec, terms: &Terms, decision: Decision) -> Change {
    record_change::decide(record, &attempt(terms), decision)
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
        started: record.started,
        word: record.resolution.as_ref().map(|word| Word {
            migration: word.migration.clone(),
            fenced: word.fenced.clone(),
            lost: word.lost,
            cold_start: word.cold_start.and_then(|epoch| u64::try_from(epoch).ok()),
        }),
    }
}

/// The terms under which a migration goes on after a restart, if the record is armed for it.
pub fn terms_of_armed(record: &GuestRecordSpec, migration: &str) -> Option<Terms> {
    let attempt = record_change::armed_attempt(record, migration)?;
    Some(Terms {
        migration: attempt.migration,
        guest: record.guest.uid.clone(),
        epoch: attempt.epoch,
        source: attempt.source,
        destination: attempt.destination,
        strict: attempt.strict,
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
#[allow(clippy::panic, reason = "a failing test may panic")]
mod tests {
    use godwit_crds::guest_record::GuestReference;

    use super::*;

    #[test]
    fn a_record_is_seen_in_the_words_of_the_handover() {
        let terms = Terms {
            migration: "m".into(),
            guest: "g".into(),
            epoch: 1,
            source: "a".into(),
            destination: "b".into(),
            strict: false,
        };
        let guest = GuestReference {
            namespace: "n".into(),
            name: "vm".into(),
            uid: "g".into(),
            definition: "0".repeat(64),
        };
        let Change::Write(armed) = arm(&first(guest, "a"), &terms) else {
            panic!("a fresh record can be armed");
        };
        assert_eq!(terms_of_armed(&armed, "m"), Some(terms.clone()));
        let Change::Write(advanced) = advance(&armed, &terms) else {
            panic!("an armed record can be advanced");
        };
        assert!(view(&advanced).advanced_for(&terms));
        assert_eq!(terms_of_armed(&advanced, "m"), Some(terms.clone()));
        let Change::Write(aborted) = decide(&armed, &terms, Decision::Aborted) else {
            panic!("an armed record can be decided");
        };
        assert!(view(&aborted).reverted_for(&terms));
    }
}
