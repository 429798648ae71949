//! Reading a guest's record. The agent never writes one.

use async_trait::async_trait;
use godwit_crds::guest_record::Decision as Written;
use godwit_crds::{GuestRecord, GuestRecordSpec};
use godwit_handover::{Decision, RecordView};
use kube::{Api, Client};
use tracing::warn;

use super::api::{ApiError, within};
use crate::migration::Records;

/// Reads guests' records, fresh each time.
#[derive(Clone)]
pub struct RecordReader {
    records: Api<GuestRecord>,
}

impl RecordReader {
    /// A reader over this client.
    pub fn new(client: Client) -> Self {
        Self {
            records: Api::all(client),
        }
    }

    /// The record of the guest with this UID as it is now: a read without a resource version, which the API server
    /// answers from a quorum and never from a cache. `None` if there is no such record, which is no evidence of
    /// anything.
    pub async fn read(&self, guest_uid: &str) -> Result<Option<RecordView>, ApiError> {
        match within(self.records.get_opt(guest_uid)).await? {
            Some(record) if record.spec.guest.uid == guest_uid => view(&record.spec).map(Some),
            Some(record) => Err(ApiError::Malformed(format!(
                "the record of guest {guest_uid} is about {}",
                record.spec.guest.uid
            ))),
            None => Ok(None),
        }
    }
}

#[async_trait]
impl Records for RecordReader {
    async fn read(&self, guest: &str) -> Option<RecordView> {
        match Self::read(self, guest).await {
            Ok(record) => record,
            Err(error) => {
                warn!(guest, %error, "the guest's record could not be read");
                None
            }
        }
    }
}

fn view(record: &GuestRecordSpec) -> Result<RecordView, ApiError> {
    Ok(RecordView {
        holder: record.holder.clone(),
        epoch: u64::try_from(record.epoch)
            .map_err(|_| ApiError::Malformed(format!("epoch {}", record.epoch)))?,
        migration: record.migration.as_ref().map(|migration| migration.uid.clone()),
        decision: match record.decision {
            Written::None => Decision::None,
            Written::Committed => Decision::Committed,
            Written::Aborted => Decision::Aborted,
            Written::Reverted => Decision::Reverted,
        },
    })
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use godwit_crds::ArmedMigration;
    use godwit_crds::guest_record::GuestReference;

    use super::*;

    #[test]
    fn a_record_is_read_as_the_handover_sees_it() {
        let mut record = GuestRecordSpec {
            guest: GuestReference {
                namespace: "default".into(),
                name: "web".into(),
                uid: "u".into(),
            },
            holder: "b".into(),
            epoch: 2,
            migration: Some(ArmedMigration {
                uid: "m".into(),
                source: "a".into(),
                destination: "b".into(),
                strict: false,
            }),
            decision: Written::Committed,
            started: false,
            writer: "w".into(),
            evidence: String::new(),
        };
        let seen = view(&record).unwrap();
        assert_eq!(
            seen,
            RecordView {
                holder: "b".into(),
                epoch: 2,
                migration: Some("m".into()),
                decision: Decision::Committed
            }
        );
        record.epoch = -1;
        assert!(view(&record).is_err());
    }
}
