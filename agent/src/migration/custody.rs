//! What a migration asks of the rest of the agent: guests to lend, and the guest's record to read.

use async_trait::async_trait;
use godwit_crds::virtual_machine::GuestState;
use godwit_handover::{Decision, Gates, RecordView, Terms};

use crate::guests::{Definition, GuestError, GuestIdentity, Guests, Held, Role};
use crate::hypervisor::StreamAbilities;

/// Who keeps the guests and lends them to migrations.
#[async_trait]
pub trait Custody: Send + Sync {
    /// What the hypervisor can hold back; `None` while it does not work.
    fn gates(&self) -> Option<Gates>;
    /// What the hypervisor can make of a stream; `None` while it does not work.
    fn streams(&self) -> Option<StreamAbilities>;
    /// Checks that the guest can leave, and protects it against everything but this migration.
    async fn protect(&self, terms: &Terms) -> Result<Held, GuestError>;
    /// Protects a guest again after a restart. `None` if its process is proved to be gone; an error if that is not
    /// known, or if the guest is none of this migration's business any more.
    async fn find_leaving(&self, terms: &Terms) -> Result<Option<Held>, GuestError>;
    /// Ends the protection.
    async fn unprotect(&self, terms: &Terms);
    /// Checks everything that the guest needs here and starts a process that waits for it.
    async fn launch_incoming(
        &self,
        identity: &GuestIdentity,
        definition: &Definition,
        terms: &Terms,
    ) -> Result<Held, GuestError>;
    /// Finds an arriving guest again after a restart. `None` if it is proved to be gone or was never started; an
    /// error if that is not known.
    async fn find_arriving(&self, terms: &Terms) -> Result<Option<Held>, GuestError>;
    /// The arriving guest is this host's now, at the next epoch. Repeated, it does nothing.
    async fn take_over(&self, terms: &Terms, since_micros: Option<i64>) -> Result<(), GuestError>;
    /// Destroys and forgets the arriving guest.
    async fn discard_incoming(&self, terms: &Terms) -> Result<(), GuestError>;
    /// Destroys and forgets the guest that has left.
    async fn release(&self, terms: &Terms) -> Result<(), GuestError>;
    /// The migrations by which guests are arriving.
    fn arriving(&self) -> Vec<Terms>;
}

/// Who reads guests' records.
#[async_trait]
pub trait Records: Send + Sync {
    /// The guest's record, read fresh (never from a cache). `None` if it could not be read or is missing: evidence
    /// of nothing.
    async fn whole(&self, guest: &str) -> Option<Recorded>;

    /// The same, as far as the handover is concerned.
    async fn read(&self, guest: &str) -> Option<RecordView> {
        Some(self.whole(guest).await?.view)
    }
}

/// Who has guests' records decide, with this host's own credentials.
#[async_trait]
pub trait RecordArbiter: Records {
    /// Writes Committed (as the destination) or Aborted (as the source) by compare-and-swap if the record is undecided,
    /// and tells what it says then. `None` if that is not known: the write may have been made or not.
    async fn decide(&self, terms: &Terms, decision: Decision) -> Option<RecordView>;

    /// Strict: writes, as the destination, that the guest is let run, and tells what the record says then. `None` as above.
    async fn start(&self, terms: &Terms) -> Option<RecordView>;
}

/// What a guest's record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Who may run the guest.
    pub view: RecordView,
    /// Whether the migration that it is armed for is a strict one.
    pub strict: bool,
    /// The digest of the guest's definition, as [`godwit_protocol::definition::digest`] makes it.
    pub definition: String,
}

#[async_trait]
impl Custody for Guests {
    fn gates(&self) -> Option<Gates> {
        self.facts().map(|facts| facts.gates)
    }

    fn streams(&self) -> Option<StreamAbilities> {
        self.facts().map(|facts| facts.streams)
    }

    async fn protect(&self, terms: &Terms) -> Result<Held, GuestError> {
        Self::protect(self, terms).await
    }

    async fn find_leaving(&self, terms: &Terms) -> Result<Option<Held>, GuestError> {
        if let Some(held) = self.protect_again(terms).await? {
            return Ok(Some(held));
        }
        // Protected, so the repetition only says why there is no process to be had.
        match Self::protect(self, terms).await {
            Ok(held) => Ok(Some(held)),
            Err(GuestError::NotRunning(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn unprotect(&self, terms: &Terms) {
        Self::unprotect(self, &terms.guest, &terms.migration).await;
    }

    async fn launch_incoming(
        &self,
        identity: &GuestIdentity,
        definition: &Definition,
        terms: &Terms,
    ) -> Result<Held, GuestError> {
        Self::launch_incoming(self, identity, definition, terms).await
    }

    async fn find_arriving(&self, terms: &Terms) -> Result<Option<Held>, GuestError> {
        if let Some(held) = self.held(&terms.guest) {
            let mine = match &held.role {
                Role::Arriving { migration } => *migration == terms.migration,
                // Taken over, and the journal was not told yet.
                Role::Held => held.epoch == terms.epoch + 1,
                Role::Leaving { .. } => false,
            };
            return if mine {
                Ok(Some(held))
            } else {
                Err(GuestError::Conflict(format!(
                    "Guest {} is here and is none of migration {}'s business any more",
                    terms.guest, terms.migration
                )))
            };
        }
        let known = self
            .list()
            .into_iter()
            .find(|view| view.identity.uid == terms.guest);
        match known.map(|view| (view.state, view.note)) {
            Some((GuestState::Unknown | GuestState::Starting, note)) => {
                Err(GuestError::HypervisorSilent(note.unwrap_or_else(|| {
                    format!("The process of guest {} does not answer", terms.guest)
                })))
            }
            Some(_) | None => Ok(None),
        }
    }

    async fn take_over(&self, terms: &Terms, since_micros: Option<i64>) -> Result<(), GuestError> {
        Self::take_over(
            self,
            &terms.guest,
            &terms.migration,
            terms.epoch + 1,
            since_micros,
        )
        .await
    }

    async fn discard_incoming(&self, terms: &Terms) -> Result<(), GuestError> {
        Self::discard_incoming(self, &terms.guest, &terms.migration).await
    }

    async fn release(&self, terms: &Terms) -> Result<(), GuestError> {
        Self::release(self, &terms.guest, &terms.migration).await
    }

    fn arriving(&self) -> Vec<Terms> {
        Self::arriving(self)
    }
}
