//! One guest in the manager's memory: what is on disk about it, its process, and what it does.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use godwit_crds::virtual_machine::GuestState;
use godwit_handover::{Epoch, Terms};
use tokio::task::AbortHandle;

use super::definition::Definition;
use super::error::GuestError;
use super::record::{Ending, GuestEntry, Standing};
use super::types::{GuestView, Role};
use crate::hypervisor::{Guest, RunState};
use crate::state::StateError;

/// A guest's place. Whoever changes the guest holds `operation`; `known` is locked for moments only.
pub(super) struct Slot {
    pub(super) uid: String,
    pub(super) operation: Arc<tokio::sync::Mutex<()>>,
    known: Mutex<Known>,
}

/// What is known about a guest.
pub(super) enum Known {
    /// Nothing: it has never been here, or it has been forgotten.
    Nothing,
    /// Its record cannot be acted on.
    Unreadable(Arc<StateError>),
    /// It was transient and has ended: this note is all that is left.
    Ended(Box<GuestEntry>),
    /// It is here.
    Here(Box<Here>),
}

/// A guest that is here.
pub(super) struct Here {
    pub(super) entry: GuestEntry,
    pub(super) definition: Definition,
    pub(super) process: Process,
    pub(super) state: GuestState,
    /// The migration that protects it.
    pub(super) protected: Option<Terms>,
    /// For people: why it is not as expected.
    pub(super) note: Option<String>,
    /// Its process is being ended by an order: its end is no news.
    pub(super) ending: bool,
    /// Keeps `state` true.
    pub(super) watcher: Option<AbortHandle>,
}

/// What is known about the guest's process.
#[derive(Clone)]
pub(super) enum Process {
    /// It is being started.
    Launching,
    /// It lives.
    Alive(Arc<dyn Guest>),
    /// It may live, and does not answer.
    Silent,
    /// It is proved to be gone; why.
    Gone(String),
}

impl Slot {
    pub(super) fn new(uid: &str) -> Self {
        Self {
            uid: uid.into(),
            operation: Arc::new(tokio::sync::Mutex::new(())),
            known: Mutex::new(Known::Nothing),
        }
    }

    /// What is known. Nothing that is done under this lock can panic half-way, so a poisoned lock is still good.
    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads from a guest that is here; `None` if it is not.
    pub(super) fn here<T>(&self, read: impl FnOnce(&mut Here) -> T) -> Result<Option<T>, GuestError> {
        match &mut *self.known() {
            Known::Nothing | Known::Ended(_) => Ok(None),
            Known::Unreadable(error) => Err(GuestError::RecordUnreadable(error.clone())),
            Known::Here(here) => Ok(Some(read(here))),
        }
    }

    /// The note of a transient guest that has ended here.
    pub(super) fn ended(&self) -> Option<GuestEntry> {
        match &*self.known() {
            Known::Ended(entry) => Some(entry.as_ref().clone()),
            Known::Nothing | Known::Unreadable(_) | Known::Here(_) => None,
        }
    }
}

impl Here {
    pub(super) fn new(entry: GuestEntry, definition: Definition) -> Self {
        Self {
            entry,
            definition,
            process: Process::Launching,
            state: GuestState::Starting,
            protected: None,
            note: None,
            ending: false,
            watcher: None,
        }
    }

    pub(super) fn role(&self) -> Role {
        match (&self.protected, self.entry.standing.arriving()) {
            (_, Some(terms)) => Role::Arriving {
                migration: terms.migration.clone(),
            },
            (Some(terms), None) => Role::Leaving {
                migration: terms.migration.clone(),
            },
            (None, None) => Role::Held,
        }
    }

    pub(super) fn since_micros(&self) -> Option<i64> {
        match &self.entry.standing {
            Standing::Held { since_micros, .. } | Standing::Ended { since_micros, .. } => *since_micros,
            Standing::Launching | Standing::LaunchingIncoming { .. } | Standing::Arriving { .. } => None,
        }
    }

    pub(super) fn view(&self) -> GuestView {
        GuestView {
            identity: self.entry.identity.clone(),
            epoch: self.entry.epoch,
            state: self.state,
            since_micros: self.since_micros(),
            role: self.role(),
            note: self.note.clone(),
        }
    }

    /// Whether its memory must be counted: only a process that is proved to be gone uses none.
    pub(super) fn uses_memory(&self) -> bool {
        match self.process {
            Process::Launching | Process::Alive(_) | Process::Silent => true,
            Process::Gone(_) => false,
        }
    }

    /// Refuses an order that carries another epoch than this host holds the guest under.
    pub(super) fn check_epoch(&self, given: Epoch) -> Result<(), GuestError> {
        let known = self.entry.epoch;
        match given.cmp(&known) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Less => Err(GuestError::StaleEpoch { known, given }),
            std::cmp::Ordering::Greater => Err(GuestError::Conflict(format!(
                "The order carries epoch {given}, and this host still holds the guest under epoch {known}; look at the GuestRecord and at the guest's last migration"
            ))),
        }
    }
}

/// How a transient guest that has ended shows in the host's report: as a persistent one that ended in the same way.
pub(super) fn ended_view(entry: &GuestEntry) -> GuestView {
    let (state, since_micros, note) = match &entry.standing {
        Standing::Ended {
            since_micros,
            ending,
            why,
            ..
        } => {
            let state = match ending {
                Ending::PoweredOff => GuestState::ShutOff,
                Ending::ProcessGone => GuestState::Crashed,
            };
            (state, *since_micros, Some(why.clone()))
        }
        Standing::Launching
        | Standing::Held { .. }
        | Standing::LaunchingIncoming { .. }
        | Standing::Arriving { .. } => (GuestState::Unknown, None, None),
    };
    GuestView {
        identity: entry.identity.clone(),
        epoch: entry.epoch,
        state,
        since_micros,
        role: Role::Held,
        note,
    }
}

/// How a run state shows in the host's report.
pub(super) fn shown(state: RunState) -> GuestState {
    match state {
        RunState::Running => GuestState::Running,
        RunState::Paused | RunState::StoppedForMigration | RunState::IoError => GuestState::Paused,
        RunState::Incoming => GuestState::Starting,
        RunState::ShutDown => GuestState::ShutOff,
        RunState::Panicked | RunState::Broken => GuestState::Crashed,
    }
}
