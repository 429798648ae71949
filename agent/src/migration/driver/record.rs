//! What a driver, and a destination, asks of the guest's record.

use async_trait::async_trait;
use godwit_handover::{RecordView, Terms};

/// Why a record was not read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unwritten {
    /// There is no record. That is evidence of nothing.
    #[error("the guest has no GuestRecord")]
    Missing,
    /// The record stands otherwise than the change needs, or this host may not make it.
    #[error("{0}")]
    Refused(String),
    /// The API server could not be asked, or its answer was lost.
    #[error("{0}")]
    Unreachable(String),
}

/// Who reads and writes guests' records, fresh and by compare-and-swap, with this host's own credentials. Every write
/// is idempotent by the migration's UID.
#[async_trait]
pub trait RecordKeeper: Send + Sync {
    /// The record as the API server has it now.
    async fn read(&self, guest: &str) -> Result<RecordView, Unwritten>;

    /// Says that the destination holds the guest.
    async fn advance(&self, terms: &Terms) -> Result<RecordView, Unwritten>;

    /// Says, as the source, that the destination never will run the guest.
    async fn abort(&self, terms: &Terms) -> Result<RecordView, Unwritten>;

    /// Says, as the destination, that its copy is gone and never ran.
    async fn revert(&self, terms: &Terms) -> Result<RecordView, Unwritten>;
}
