//! A guest is started only where its record says so when it is started.
//!
//! An order to start may be old by the time it arrives: whoever gave it read the record earlier, and may have been
//! held up while another one started the guest and moved it away. This host forgets a guest that has left, so only
//! the record can tell.

use std::sync::Arc;

use godwit_handover::{Decision, RecordView};

use super::error::GuestError;
use super::manager::{Guests, Inner};
use super::types::StartRequest;
use crate::migration::Records;

impl Guests {
    /// From now on a guest's record is read before the guest is started. A second call does nothing.
    pub fn obey(&self, records: Arc<dyn Records>) {
        // The first stays.
        let _ = self.inner.records.set(records);
    }
}

impl Inner {
    /// Refuses to start a guest that the record, read fresh, does not leave to this host under the order's epoch.
    pub(super) async fn check_record(&self, request: &StartRequest) -> Result<(), GuestError> {
        let Some(records) = self.records.get() else {
            return Ok(());
        };
        match records.read(&request.identity.uid).await {
            Some(record) => may_start(&record, &self.settings.host, request),
            None => Err(GuestError::RecordUnread {
                uid: request.identity.uid.clone(),
            }),
        }
    }
}

fn may_start(record: &RecordView, host: &str, request: &StartRequest) -> Result<(), GuestError> {
    if record.epoch > request.epoch {
        return Err(GuestError::StaleEpoch {
            known: record.epoch,
            given: request.epoch,
        });
    }
    if record.holder != host || record.epoch != request.epoch {
        return Err(GuestError::Conflict(format!(
            "By its GuestRecord the guest belongs to {} under epoch {}, and the order to start it is for {host} under epoch {}",
            record.holder, record.epoch, request.epoch
        )));
    }
    match (&record.migration, record.decision) {
        // It may run at the destination already.
        (Some(migration), Decision::None) => Err(GuestError::Protected {
            migration: migration.clone(),
        }),
        (Some(_), Decision::Committed | Decision::Aborted | Decision::Reverted) | (None, _) => Ok(()),
    }
}
