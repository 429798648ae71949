//! A guest's record: read fresh, and, where this host is a party, changed by compare-and-swap with the agent's own
//! credentials. What may be written follows from what was read ([`godwit_crds::record_change`]); the API server's
//! admission policy holds the agent to its part.

use async_trait::async_trait;
use godwit_crds::guest_record::Decision as Written;
use godwit_crds::record_change::{self, Attempt, Change};
use godwit_crds::{GuestRecord, GuestRecordSpec};
use godwit_handover::{Decision, RecordView, Terms, Word};
use kube::api::PostParams;
use kube::{Api, Client};
use tracing::warn;
use uuid::Uuid;

use super::api::{ApiError, within};
use crate::migration::{RecordArbiter, RecordKeeper, Recorded, Records, Unwritten};

/// How often one change is tried when others write at the same time.
const ATTEMPTS: usize = 5;

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
    pub async fn read(&self, guest_uid: &str) -> Result<Option<Recorded>, ApiError> {
        match within(self.records.get_opt(guest_uid)).await? {
            Some(record) if record.spec.guest.uid == guest_uid => Ok(Some(Recorded {
                view: view(&record.spec)?,
                strict: record.spec.migration.is_some_and(|armed| armed.strict),
                definition: record.spec.guest.definition,
            })),
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
    async fn whole(&self, guest: &str) -> Option<Recorded> {
        match Self::read(self, guest).await {
            Ok(record) => record,
            Err(error) => {
                warn!(guest, %error, "the guest's record could not be read");
                None
            }
        }
    }
}

/// Reads and changes the records in which this host is a party.
#[derive(Clone)]
pub struct RecordWriter {
    reader: RecordReader,
    writer: String,
}

impl RecordWriter {
    /// A writer over this client. What it writes carries the host's name and a word of this process's own.
    pub fn new(client: Client, host: &str) -> Self {
        Self {
            reader: RecordReader::new(client),
            writer: format!("{host}/{}", Uuid::new_v4()),
        }
    }

    /// Carries `change` out on what is read, again after another writer was faster.
    async fn change(
        &self,
        guest: &str,
        change: impl Fn(&GuestRecordSpec) -> Change + Send,
    ) -> Result<RecordView, Unwritten> {
        let records = &self.reader.records;
        let mut failure = None;
        for _ in 0..ATTEMPTS {
            let record = within(records.get_opt(guest)).await.map_err(unreachable)?;
            let Some(mut record) = record else {
                return Err(Unwritten::Missing);
            };
            match change(&record.spec) {
                Change::Already => return view(&record.spec).map_err(unreachable),
                Change::Refuse(refused) => return Err(Unwritten::Refused(refused.to_string())),
                Change::Write(spec) => record.spec = *spec,
            }
            record.spec.writer.clone_from(&self.writer);
            // The object carries its resourceVersion and UID: the write fails if either is not the current one.
            match within(records.replace(guest, &PostParams::default(), &record)).await {
                Ok(written) => return view(&written.spec).map_err(unreachable),
                Err(ApiError::Refused(error)) => {
                    if let kube::Error::Api(status) = &*error {
                        if status.is_conflict() {
                            continue;
                        }
                        if status.is_forbidden() || status.is_invalid() {
                            return Err(Unwritten::Refused(status.message.clone()));
                        }
                    }
                    // Whether it was written is not known: the next round reads.
                    failure = Some(error.to_string());
                }
                Err(error) => failure = Some(error.to_string()),
            }
        }
        let why =
            failure.unwrap_or_else(|| "the guest's record was changed by others at each attempt".into());
        Err(Unwritten::Unreachable(why))
    }
}

impl RecordWriter {
    /// What the record says after a write that it may have refused.
    async fn after(&self, terms: &Terms, written: Result<RecordView, Unwritten>) -> Option<RecordView> {
        match written {
            Ok(record) => Some(record),
            // It stands otherwise: what it says is what counts.
            Err(Unwritten::Refused(why)) => {
                warn!(migration = terms.migration, why, "the record was not changed so");
                Records::read(self, &terms.guest).await
            }
            Err(error @ (Unwritten::Missing | Unwritten::Unreachable(_))) => {
                warn!(migration = terms.migration, %error, "the record was not changed");
                None
            }
        }
    }
}

fn unreachable(error: ApiError) -> Unwritten {
    Unwritten::Unreachable(error.to_string())
}

fn attempt(terms: &Terms) -> Attempt {
    Attempt {
        migration: terms.migration.clone(),
        epoch: terms.epoch,
        source: terms.source.clone(),
        destination: terms.destination.clone(),
        strict: terms.strict,
    }
}

#[async_trait]
impl Records for RecordWriter {
    async fn whole(&self, guest: &str) -> Option<Recorded> {
        self.reader.whole(guest).await
    }
}

#[async_trait]
impl RecordArbiter for RecordWriter {
    async fn decide(&self, terms: &Terms, decision: Decision) -> Option<RecordView> {
        let decision = written(decision);
        let attempt = attempt(terms);
        let decided = self
            .change(&terms.guest, move |spec| {
                record_change::decide(spec, &attempt, decision)
            })
            .await;
        self.after(terms, decided).await
    }

    async fn start(&self, terms: &Terms) -> Option<RecordView> {
        let attempt = attempt(terms);
        let started = self
            .change(&terms.guest, move |spec| record_change::start(spec, &attempt))
            .await;
        self.after(terms, started).await
    }
}

#[async_trait]
impl RecordKeeper for RecordWriter {
    async fn read(&self, guest: &str) -> Result<RecordView, Unwritten> {
        match self.reader.read(guest).await {
            Ok(Some(record)) => Ok(record.view),
            Ok(None) => Err(Unwritten::Missing),
            Err(error) => Err(unreachable(error)),
        }
    }

    async fn advance(&self, terms: &Terms) -> Result<RecordView, Unwritten> {
        let attempt = attempt(terms);
        self.change(&terms.guest, move |spec| record_change::advance(spec, &attempt))
            .await
    }

    async fn abort(&self, terms: &Terms) -> Result<RecordView, Unwritten> {
        let attempt = attempt(terms);
        self.change(&terms.guest, move |spec| {
            record_change::decide(spec, &attempt, Written::Aborted)
        })
        .await
    }

    async fn revert(&self, terms: &Terms) -> Result<RecordView, Unwritten> {
        let attempt = attempt(terms);
        self.change(&terms.guest, move |spec| {
            record_change::decide(spec, &attempt, Written::Reverted)
        })
        .await
    }
}

fn written(decision: Decision) -> Written {
    match decision {
        Decision::None => Written::None,
        Decision::Committed => Written::Committed,
        Decision::Aborted => Written::Aborted,
        Decision::Reverted => Written::Reverted,
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
        started: record.started,
        word: record.resolution.as_ref().map(|word| Word {
            migration: word.migration.clone(),
            fenced: word.fenced.clone(),
            lost: word.lost,
            cold_start: word.cold_start.and_then(|epoch| u64::try_from(epoch).ok()),
        }),
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
                definition: "0".repeat(64),
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
            resolution: None,
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
                decision: Decision::Committed,
                started: false,
                word: None,
            }
        );
        record.epoch = -1;
        assert!(view(&record).is_err());
    }
}
