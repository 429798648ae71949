//! The guests' manager.

use std::path::PathBuf;
use std::sync::Arc;

use godwit_handover::{Epoch, Terms};
use tokio::sync::watch;

use super::definition::Definition;
use super::error::GuestError;
use super::types::{GuestIdentity, GuestView, Held, StartRequest};
use crate::hypervisor::{Hypervisor, HypervisorFacts};

/// What the manager needs to know about its host.
pub struct Settings {
    /// The host's name.
    pub host: String,
    /// Where records are kept.
    pub state_directory: PathBuf,
    /// Where each guest's own directory is made.
    pub run_directory: PathBuf,
    /// Memory that guests may have together, in bytes.
    pub memory: u64,
}

/// A handle on the guests of this host; clones are the same guests.
#[derive(Clone)]
pub struct Guests {
    inner: Arc<Inner>,
}

struct Inner {}

impl Guests {
    /// A manager that knows no guest yet: [`Guests::recover`] comes first.
    pub fn new(_settings: Settings, _hypervisor: Arc<dyn Hypervisor>) -> Self {
        todo!()
    }

    /// What the hypervisor is; `None` while it does not work. Set by whoever probes it.
    pub fn set_facts(&self, _facts: Option<HypervisorFacts>) {
        todo!()
    }

    /// What the hypervisor is; `None` while it does not work.
    pub fn facts(&self) -> Option<Arc<HypervisorFacts>> {
        todo!()
    }

    /// Finds every recorded guest again. Nothing is started; a process is ended only where the records prove that
    /// its guest never ran. Comes before the migrations are recovered.
    pub async fn recover(&self) -> Result<(), GuestError> {
        todo!()
    }

    /// Starts a guest, or says how it stands if it was started before under this epoch.
    pub async fn start(&self, _request: StartRequest) -> Result<GuestView, GuestError> {
        todo!()
    }

    /// Stops a guest and forgets it. Nothing to do is a success.
    pub async fn stop(&self, _identity: &GuestIdentity, _epoch: Epoch) -> Result<(), GuestError> {
        todo!()
    }

    /// The source's Begin: checks that the guest is held here under the terms' epoch and can migrate, and protects
    /// it against every order that is not this migration's. Repeated, it answers the same.
    pub async fn protect(&self, _terms: &Terms) -> Result<Held, GuestError> {
        todo!()
    }

    /// As [`Guests::protect`], without asking whether the guest can migrate: for a source that is recovered from
    /// its journal, whose guest may stand in any state, or be dead (`Ok(None)`).
    pub async fn protect_again(&self, _terms: &Terms) -> Result<Option<Held>, GuestError> {
        todo!()
    }

    /// Ends this migration's protection. Another migration's is left alone. Nothing to do is a success.
    pub async fn unprotect(&self, _guest: &str, _migration: &str) {
        todo!()
    }

    /// The destination's Prepare: checks definition, machine type, CPU model, memory, name, pools and files, and
    /// starts a process that waits for the stream. This manager never lets it run. Repeated, it answers the same.
    pub async fn launch_incoming(
        &self,
        _identity: &GuestIdentity,
        _definition: &Definition,
        _terms: &Terms,
    ) -> Result<Held, GuestError> {
        todo!()
    }

    /// The arriving guest has become this host's, under `epoch`. Repeated, it does nothing.
    pub async fn take_over(
        &self,
        _guest: &str,
        _migration: &str,
        _epoch: Epoch,
        _since_micros: i64,
    ) -> Result<(), GuestError> {
        todo!()
    }

    /// Destroys and forgets a guest that was arriving by this migration. Nothing to do is a success; a guest that
    /// has been taken over is refused.
    pub async fn discard_incoming(&self, _guest: &str, _migration: &str) -> Result<(), GuestError> {
        todo!()
    }

    /// Destroys and forgets a guest that has left by this migration. Nothing to do is a success; a guest that this
    /// migration does not protect is refused.
    pub async fn release(&self, _guest: &str, _migration: &str) -> Result<(), GuestError> {
        todo!()
    }

    /// The guest, if its process lives here.
    pub fn held(&self, _guest: &str) -> Option<Held> {
        todo!()
    }

    /// The migrations by which guests were arriving when the agent last stopped, and those that arrive now. After
    /// their recovery the migrations discard each one for which no journal speaks: it never got past Prepare.
    pub fn arriving(&self) -> Vec<Terms> {
        todo!()
    }

    /// Every guest that this host knows of.
    pub fn list(&self) -> Vec<GuestView> {
        todo!()
    }

    /// Memory promised to guests whose processes live here, in bytes.
    pub fn memory_in_use(&self) -> u64 {
        todo!()
    }

    /// Counts up whenever [`Guests::list`] has changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        todo!()
    }
}
