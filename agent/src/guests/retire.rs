//! Transient guests that have ended by themselves: their host forgets them.
//!
//! A persistent guest's definition stays when the guest does not run. Of a transient one only a note is kept: that
//! it was started under this epoch and how it ended, until it is stopped by order or started under a later epoch.
//! The note is on disk before anything is removed, so that no crash in between lets the guest be started twice.

use std::sync::Arc;
use std::time::Duration;

use godwit_crds::virtual_machine::{GuestState, Persistence};
use godwit_handover::Epoch;
use tracing::{info, warn};

use super::error::GuestError;
use super::manager::{Inner, blocking};
use super::record::{Ending, GuestEntry, Standing};
use super::slot::{Known, Process, Slot};
use super::types::StartRequest;
use crate::hypervisor::RunState;

/// How often it is tried again to forget a guest that could not be forgotten yet.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Who knows of which guests the migrations' journals speak.
pub trait Journals: Send + Sync {
    /// How they speak of this guest.
    fn speak_of(&self, guest: &str) -> Spoken;

    /// The epoch at which this host has handed the guest on, as far as its journals still tell.
    fn handed_on(&self, guest: &str) -> Option<Epoch>;
}

/// How the migrations' journals speak of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// No migration of it is unended here.
    Nothing,
    /// A migration of it has not ended here.
    Unended,
    /// A journal that cannot be acted on is about it.
    Unread {
        /// Whether a newer version wrote it.
        newer: bool,
        /// What is wrong with it, for people.
        message: String,
    },
}

/// What came of an attempt to forget a guest.
pub(super) enum Attempt {
    /// It is forgotten, or has not ended, or something else will see to it.
    Over,
    /// It has ended, and cannot be forgotten yet.
    Again,
}

impl Inner {
    /// Refuses to touch a guest of which a journal speaks that cannot be acted on.
    pub(super) fn check_journals(&self, uid: &str) -> Result<(), GuestError> {
        match self.journals.get().map(|journals| journals.speak_of(uid)) {
            Some(Spoken::Unread { newer, message }) => Err(GuestError::JournalUnread { newer, message }),
            Some(Spoken::Nothing | Spoken::Unended) | None => Ok(()),
        }
    }

    /// Refuses to start a guest under an epoch before the one at which this host has handed it on: the record that says
    /// so comes from an older backup.
    pub(super) fn check_handed_on(&self, uid: &str, given: Epoch) -> Result<(), GuestError> {
        let known = self.journals.get().and_then(|journals| journals.handed_on(uid));
        match known {
            Some(known) if given < known => Err(GuestError::StaleEpoch { known, given }),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether an order may start a transient guest that has ended here.
    pub(super) fn check_ended(&self, ended: &GuestEntry, request: &StartRequest) -> Result<(), GuestError> {
        if ended.identity != request.identity {
            return Err(GuestError::Conflict(format!(
                "This host knew guest {} as {}/{}",
                ended.identity.uid, ended.identity.namespace, ended.identity.name
            )));
        }
        match request.epoch.cmp(&ended.epoch) {
            std::cmp::Ordering::Less => Err(GuestError::StaleEpoch {
                known: ended.epoch,
                given: request.epoch,
            }),
            std::cmp::Ordering::Equal if !request.again => Err(GuestError::ProcessGone {
                epoch: ended.epoch,
                why: match &ended.standing {
                    Standing::Ended { why, .. } => why.clone(),
                    Standing::Launching
                    | Standing::Held { .. }
                    | Standing::LaunchingIncoming { .. }
                    | Standing::Arriving { .. } => String::new(),
                },
            }),
            std::cmp::Ordering::Equal | std::cmp::Ordering::Greater => Ok(()),
        }
    }

    /// The order to stop a guest of which only the note is left.
    pub(super) async fn drop_note(
        &self,
        slot: &Slot,
        ended: &GuestEntry,
        epoch: Epoch,
    ) -> Result<(), GuestError> {
        if epoch < ended.epoch {
            return Err(GuestError::StaleEpoch {
                known: ended.epoch,
                given: epoch,
            });
        }
        let record = self.record(&slot.uid);
        if let Err(error) = blocking(move || record.remove()).await {
            return self.note_state(Err(error));
        }
        self.replace(slot, Known::Nothing);
        Ok(())
    }

    /// Forgets the guest if it is transient and has ended, now or as soon as that can be. Returns at once.
    pub(super) fn consider_ended(self: &Arc<Self>, slot: &Slot) {
        let transient = slot.here(|here| here.definition.spec().persistence == Persistence::Transient);
        if self.journals.get().is_none() || !matches!(transient, Ok(Some(true))) {
            return;
        }
        // A task of its own: what follows a guest's events ends with the guest's place.
        let (inner, uid) = (Arc::downgrade(self), slot.uid.clone());
        tokio::spawn(async move {
            loop {
                match inner.upgrade() {
                    Some(inner) => match inner.forget_ended(&uid).await {
                        Attempt::Over => return,
                        Attempt::Again => {}
                    },
                    None => return,
                }
                tokio::time::sleep(TRY_AGAIN).await;
            }
        });
    }

    pub(super) async fn forget_ended(self: &Arc<Self>, uid: &str) -> Attempt {
        let Some(journals) = self.journals.get() else {
            return Attempt::Over;
        };
        let locked = self.lock(uid).await;
        let slot = &locked.slot;
        let known = slot.here(|here| {
            let free = here.definition.spec().persistence == Persistence::Transient
                && here.protected.is_none()
                && !here.ending;
            free.then(|| (here.entry.clone(), here.process.clone(), here.state))
        });
        let Ok(Some(Some((entry, process, state)))) = known else {
            return Attempt::Over;
        };
        let (ending, why) = match &process {
            Process::Gone(_) if state == GuestState::ShutOff => {
                (Ending::PoweredOff, "it powered itself off".into())
            }
            Process::Gone(why) => (Ending::ProcessGone, why.clone()),
            // Asked afresh: what was seen before may have been undone by an order in between.
            Process::Alive(guest) => match guest.run_state().await {
                Ok(RunState::ShutDown) => (Ending::PoweredOff, "it powered itself off".into()),
                // A guest that panicked is stopped and has not ended: its console and memory are there to look at.
                Ok(
                    RunState::Running
                    | RunState::Paused
                    | RunState::StoppedForMigration
                    | RunState::Incoming
                    | RunState::Panicked
                    | RunState::IoError
                    | RunState::Broken,
                ) => return Attempt::Over,
                Err(_) => return Attempt::Again,
            },
            Process::Silent | Process::Launching => return Attempt::Over,
        };
        let standing = match entry.standing.clone() {
            Standing::Held {
                process,
                since_micros,
                ..
            } => Standing::Ended {
                process: Some(process),
                since_micros,
                ending,
                why: format!("{why}; it was transient, and its definition is forgotten"),
            },
            ended @ Standing::Ended { .. } => ended,
            Standing::Launching | Standing::LaunchingIncoming { .. } | Standing::Arriving { .. } => {
                return Attempt::Over;
            }
        };
        match journals.speak_of(uid) {
            Spoken::Nothing => {}
            Spoken::Unended | Spoken::Unread { .. } => return Attempt::Again,
        }
        match self.reduce(slot, GuestEntry { standing, ..entry }).await {
            Ok(()) => {
                info!(
                    guest = uid,
                    ?ending,
                    "the guest was transient and has ended: it is forgotten"
                );
                Attempt::Over
            }
            Err(error) => {
                warn!(guest = uid, %error, "a transient guest that has ended cannot be forgotten yet");
                Attempt::Again
            }
        }
    }

    /// Reduces a guest that has ended to a note, which is on disk before anything is removed.
    async fn reduce(&self, slot: &Slot, mut entry: GuestEntry) -> Result<(), GuestError> {
        self.store(entry.clone()).await?;
        slot.here(|here| here.entry = entry.clone())?;
        self.destroy(slot).await?;
        self.clear(slot).await?;
        if let Standing::Ended { process, .. } = &mut entry.standing {
            *process = None;
        }
        entry.definition = String::new();
        entry.taps = Vec::new();
        entry.user = None;
        self.store(entry.clone()).await?;
        self.replace(slot, Known::Ended(Box::new(entry)));
        Ok(())
    }
}
