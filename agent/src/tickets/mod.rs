//! The gate for orders that another host's agent gives: only with a ticket of the controller's, and each ticket once.
//!
//! What a ticket says is judged by [`godwit_protocol::ticket`]. Here is what that needs: the keys that the controller
//! publishes ([`keys`]), and the memory of tickets that were used ([`used`]), which outlives the agent. An order that
//! begins something is held against the guest's record too, read fresh: it must be armed for just this migration.
//!
//! "Once" means one attempt at one migration: the source may not have heard the answer and send the same order again,
//! and gets the same answer. Once the migration has ended here, its ticket opens nothing any more.

pub mod keys;
pub mod used;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use godwit_handover::{Decision, Terms};
use godwit_protocol::ticket::{Act, Expected, PublicKeys, Ticket, TicketError};
use godwit_protocol::{Category, Fault, definition, reason};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::migration::{Recorded, Records};
use crate::state::StateError;
use keys::{Known, PublishedKeys};
use used::{Use, Used, UsedError};

/// How long the reading of the keys may take: the source waits for its answer meanwhile.
const KEYS_WITHIN: Duration = Duration::from_secs(2);
/// How often the keys are read unasked, so that they are known when the API server cannot be reached. The controller
/// publishes a key an hour before it uses it.
const KEYS_EVERY: Duration = Duration::from_secs(600);

/// What this host knows of the migration that a ticket is shown for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// It is not known here: it never began, or the agent fell before it did.
    Unknown,
    /// It has been taken on and has not ended.
    UnderWay,
    /// It has ended here.
    Ended,
}

/// The gate. Cheap to clone.
#[derive(Clone)]
pub struct TicketGate(Arc<Inner>);

struct Inner {
    host: String,
    source: Arc<dyn PublishedKeys>,
    records: Arc<dyn Records>,
    known: tokio::sync::Mutex<Known>,
    used: Arc<tokio::sync::Mutex<Used>>,
}

impl TicketGate {
    /// The gate of this host, with its memory in `state_directory`.
    ///
    /// # Errors
    /// The memory cannot be read or written, or a newer agent wrote it. A damaged one is no error: see [`used`].
    pub fn open(
        host: &str,
        state_directory: &Path,
        source: Arc<dyn PublishedKeys>,
        records: Arc<dyn Records>,
    ) -> Result<Self, StateError> {
        let used = Used::open(state_directory, now())?;
        Ok(Self(Arc::new(Inner {
            host: host.to_owned(),
            source,
            records,
            known: tokio::sync::Mutex::default(),
            used: Arc::new(tokio::sync::Mutex::new(used)),
        })))
    }

    /// Lets an order to prepare in, or not. `peer` is the host at the other end by its certificate; `terms`, the ticket's
    /// bytes and the definition are the order's. When this returns Ok, the use of the ticket is on the medium.
    ///
    /// # Errors
    /// Forbidden with `TicketMissing`, `TicketInvalid`, `TicketKeyUnknown`, `TicketNotYetValid`, `TicketExpired`,
    /// `TicketForAnother`, `TicketReplayed` or `DefinitionMismatch`; Unavailable with `TicketKeysUnavailable`, `RecordMissing`, `DiskFull` or `DiskFailed`.
    pub async fn admit(
        &self,
        peer: &str,
        terms: &Terms,
        shown: (&[u8], &[u8]),
        attempt: Attempt,
    ) -> Result<(), Fault> {
        let outcome = self.judge(peer, terms, shown, attempt, now()).await;
        if let Err(fault) = &outcome {
            tracing::warn!(peer, migration = %terms.migration, guest = %terms.guest, epoch = terms.epoch,
                reason = %fault.reason, "ticket refused: {}", fault.message);
        }
        outcome
    }

    async fn judge(
        &self,
        peer: &str,
        terms: &Terms,
        (bytes, definition): (&[u8], &[u8]),
        attempt: Attempt,
        now: u64,
    ) -> Result<(), Fault> {
        let keys = self.keys(bytes).await?;
        let expected = Expected {
            peer,
            host: &self.0.host,
            terms,
            act: Act::Receive,
        };
        let ticket = Ticket::verify(bytes, &keys, now, expected)?;
        if attempt == Attempt::Unknown {
            let recorded = check_armed(self.0.records.whole(&terms.guest).await, terms)?;
            definition::check(&terms.source, definition, &recorded)?;
        }
        let this = Use {
            nonce: ticket.nonce,
            forgotten_at: ticket.forgotten_at(),
            digest: Ticket::digest(bytes),
        };
        let mut used = self.0.used.clone().lock_owned().await;
        let first = tokio::task::spawn_blocking(move || used.remember(this, now))
            .await
            .map_err(|error| Fault::new(Category::Internal, reason::INTERNAL_ERROR, error.to_string()))?
            .map_err(|error| refused(&error))?;
        if !first && attempt == Attempt::Ended {
            return Err(Fault::new(
                Category::Forbidden,
                reason::TICKET_REPLAYED,
                format!(
                    "The ticket was used before, and migration {} has ended here; a new attempt is a new migration",
                    terms.migration
                ),
            ));
        }
        tracing::info!(peer, migration = %terms.migration, guest = %terms.guest, epoch = terms.epoch, first,
            "ticket taken");
        Ok(())
    }

    /// The keys to judge these bytes by. They are read where they are not known, or not lately.
    async fn keys(&self, bytes: &[u8]) -> Result<PublicKeys, Fault> {
        let id = Ticket::key_id(bytes)?;
        let mut known = self.0.known.lock().await;
        if known.to_be_read(id, Instant::now()) {
            self.read(&mut known).await;
        }
        known.judging(id).cloned().ok_or_else(|| {
            Fault::new(
                Category::Unavailable,
                reason::TICKET_KEYS_UNAVAILABLE,
                "The keys that the controller publishes for its tickets cannot be read",
            )
        })
    }

    async fn read(&self, known: &mut Known) {
        let read = match tokio::time::timeout(KEYS_WITHIN, self.0.source.read()).await {
            Ok(Ok(keys)) => Some(keys),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the keys for tickets were not read");
                None
            }
            Err(_) => {
                tracing::warn!("the keys for tickets were not read in time");
                None
            }
        };
        known.was_read(read, Instant::now());
    }

    /// Keeps the keys known until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            self.read(&mut *self.0.known.lock().await).await;
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(KEYS_EVERY) => {}
            }
        }
    }
}

/// Whether the guest's record is armed for the migration of these terms, and nothing is decided: what was ordered ten
/// minutes ago may have ended since. Gives the digest of the guest's definition.
fn check_armed(record: Option<Recorded>, terms: &Terms) -> Result<String, Fault> {
    let Some(Recorded {
        view: record,
        strict,
        definition,
    }) = record
    else {
        return Err(Fault::new(
            Category::Unavailable,
            "RecordMissing",
            format!(
                "The record of guest {} cannot be read, or is missing",
                terms.guest
            ),
        ));
    };
    let armed = record.migration.as_ref() == Some(&terms.migration)
        && record.decision == Decision::None
        && record.holder == terms.source
        && record.epoch == terms.epoch
        && strict == terms.strict;
    if armed {
        return Ok(definition);
    }
    Err(Fault::new(
        Category::Forbidden,
        reason::TICKET_FOR_ANOTHER,
        format!(
            "The guest's record is not armed for migration {} from host {} under epoch {}",
            terms.migration, terms.source, terms.epoch
        ),
    ))
}

fn refused(error: &UsedError) -> Fault {
    match error {
        UsedError::OtherUse => Fault::new(
            Category::Forbidden,
            reason::TICKET_REPLAYED,
            "Another ticket with the same nonce was used before",
        ),
        UsedError::Forgotten { .. } => Fault::new(
            Category::Forbidden,
            TicketError::Expired.reason(),
            error.to_string(),
        ),
        UsedError::TooMany => Fault::new(Category::Unavailable, "DiskFull", error.to_string()),
        UsedError::State(state) => Fault::new(Category::Unavailable, state.reason(), error.to_string()),
    }
}

/// Unix time in seconds.
fn now() -> u64 {
    clock::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests;
