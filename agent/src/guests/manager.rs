//! The guests' manager: every order about a guest passes here.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use godwit_crds::virtual_machine::GuestState;
use godwit_handover::{Epoch, Terms};
use tokio::sync::{Notify, OwnedMutexGuard, watch};

use super::definition::Definition;
use super::error::GuestError;
use super::launch::LaunchOrder;
use super::process;
use super::record::Standing;
use super::retire::Journals;
use super::slot::{Here, Known, Process, Slot, ended_view, shown};
use super::types::{GuestIdentity, GuestView, Held, Role, StartRequest};
use crate::cgroup::Cgroups;
use crate::hypervisor::{Hypervisor, HypervisorFacts, RunState, Start};
use crate::migration::Records;
use crate::pools::Pools;
use crate::state::{RecordFile, StateError};
use crate::taps::Taps;

/// How long the polite part of ending a guest's process may take.
pub(super) const DESTROY_DEADLINE: Duration = Duration::from_secs(2);

/// What the manager needs to know about its host.
pub struct Settings {
    /// The host's name.
    pub host: String,
    /// Where records are kept.
    pub state_directory: PathBuf,
    /// Where each guest's own directory is made, in `guests/<uid>`.
    pub run_directory: PathBuf,
    /// Memory that guests may have together, in bytes.
    pub memory: u64,
    /// Where their files lie.
    pub pools: Pools,
    /// What makes their network devices.
    pub taps: Arc<dyn Taps>,
    /// Users to run guests as, one each; `None` where the agent is not root.
    pub users: Option<UserRange>,
    /// Where their processes are put.
    pub cgroups: Cgroups,
}

/// A range of unprivileged user ids that no one else uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserRange {
    /// The first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// A handle on the guests of this host; clones are the same guests.
#[derive(Clone)]
pub struct Guests {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) settings: Settings,
    pub(super) hypervisor: Arc<dyn Hypervisor>,
    pub(super) boot_id: String,
    facts: Mutex<Option<Arc<HypervisorFacts>>>,
    slots: Mutex<BTreeMap<String, Arc<Slot>>>,
    changes: watch::Sender<u64>,
    state_problem: Mutex<Option<String>>,
    pub(super) suspected: Notify,
    /// What of a guest's process cannot be bounded on this host.
    unbounded: OnceLock<Vec<String>>,
    pub(super) journals: OnceLock<Arc<dyn Journals>>,
    pub(super) records: OnceLock<Arc<dyn Records>>,
}

/// A guest's place while one order has it for itself.
pub(super) struct Locked {
    pub(super) slot: Arc<Slot>,
    inner: Arc<Inner>,
    _operation: OwnedMutexGuard<()>,
}

impl Drop for Locked {
    fn drop(&mut self) {
        let mut slots = self.inner.slots();
        if matches!(*self.slot.known(), Known::Nothing) {
            slots.remove(&self.slot.uid);
        }
    }
}

impl Guests {
    /// A manager that knows no guest yet: [`Guests::recover`] comes first. Makes the directories that it needs.
    pub fn open(settings: Settings, hypervisor: Arc<dyn Hypervisor>) -> Result<Self, GuestError> {
        let boot_id = process::boot_id().map_err(|source| GuestError::System {
            action: "Read the boot id".into(),
            source,
        })?;
        let inner = Inner {
            settings,
            hypervisor,
            boot_id,
            facts: Mutex::new(None),
            slots: Mutex::new(BTreeMap::new()),
            changes: watch::Sender::new(0),
            state_problem: Mutex::new(None),
            suspected: Notify::new(),
            unbounded: OnceLock::new(),
            journals: OnceLock::new(),
            records: OnceLock::new(),
        };
        inner.make_directories()?;
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// What the hypervisor is; `None` while it does not work. Set by whoever probes it.
    pub fn set_facts(&self, facts: Option<HypervisorFacts>) {
        *lock(&self.inner.facts) = facts.map(Arc::new);
    }

    /// What the hypervisor is; `None` while it does not work.
    pub fn facts(&self) -> Option<Arc<HypervisorFacts>> {
        lock(&self.inner.facts).clone()
    }

    /// What keeps guests here from being walled off as they should be, for people.
    pub fn walls_missing(&self) -> Vec<String> {
        let mut missing = self
            .facts()
            .map_or_else(Vec::new, |facts| facts.walls_missing.clone());
        let settings = &self.inner.settings;
        let unbounded = self.inner.unbounded.get_or_init(|| {
            // No guest's: those end in a UID.
            settings.cgroups.missing(&format!("{}.trial", settings.host))
        });
        missing.extend(unbounded.iter().cloned());
        missing
    }

    /// Finds every recorded guest again. Nothing is started; a process is ended only where the records prove that
    /// its guest never ran. Comes before the migrations are recovered.
    pub async fn recover(&self) -> Result<(), GuestError> {
        self.inner.clone().recover().await
    }

    /// From now on it is known which guests the migrations' journals speak of, and transient guests that have ended
    /// are forgotten. Comes after the migrations are recovered; a second call does nothing.
    pub fn settle(&self, journals: Arc<dyn Journals>) {
        if self.inner.journals.set(journals).is_ok() {
            let slots: Vec<_> = self.inner.slots().values().cloned().collect();
            for slot in slots {
                self.inner.consider_ended(&slot);
            }
        }
    }

    /// Starts a guest, or says how it stands if it was started before under this epoch.
    pub async fn start(&self, request: StartRequest) -> Result<GuestView, GuestError> {
        let inner = self.inner.clone();
        owned(async move { inner.start(request).await }).await
    }

    /// Stops a guest and forgets it. Nothing to do is a success.
    pub async fn stop(&self, identity: &GuestIdentity, epoch: Epoch) -> Result<(), GuestError> {
        let (inner, uid) = (self.inner.clone(), identity.uid.clone());
        owned(async move { inner.stop(&uid, epoch).await }).await
    }

    /// The source's Begin: checks that the guest is held here under the terms' epoch and can migrate, and protects
    /// it against every order that is not this migration's. Repeated, it answers the same. The protection is not
    /// kept on disk: the migration's journal is, and its recovery protects again before anything is served.
    pub async fn protect(&self, terms: &Terms) -> Result<Held, GuestError> {
        let (inner, terms) = (self.inner.clone(), terms.clone());
        owned(async move { inner.protect(terms).await }).await
    }

    /// As [`Guests::protect`], without asking whether the guest can migrate: for a source that is recovered from
    /// its journal, whose guest may stand in any state. `Ok(None)` where its process is proved to be gone; where it
    /// does not answer this is an error, and the guest is protected all the same.
    pub async fn protect_again(&self, terms: &Terms) -> Result<Option<Held>, GuestError> {
        let (inner, terms) = (self.inner.clone(), terms.clone());
        owned(async move {
            let locked = inner.lock(&terms.guest).await;
            inner.put_protection(&locked.slot, &terms)?;
            inner.changed();
            let silent = locked
                .slot
                .here(|here| matches!(here.process, Process::Silent | Process::Launching))?;
            if silent == Some(true) {
                return Err(GuestError::silent(&locked.slot.uid));
            }
            Ok(inner.held(&locked.slot))
        })
        .await
    }

    /// Ends this migration's protection. Another migration's is left alone. Nothing to do is a success.
    pub async fn unprotect(&self, guest: &str, migration: &str) {
        let locked = self.inner.lock(guest).await;
        let ended = locked.slot.here(|here| {
            let mine = here
                .protected
                .as_ref()
                .is_some_and(|terms| terms.migration == migration);
            if mine {
                here.protected = None;
            }
            mine
        });
        if matches!(ended, Ok(Some(true))) {
            self.inner.changed();
            // Its own end may have waited for that of the migration.
            self.inner.consider_ended(&locked.slot);
        }
    }

    /// The destination's Prepare: checks definition, machine type, CPU model, memory, name, pools and files, and
    /// starts a process that waits for the stream. This manager never lets it run. Repeated, it answers the same.
    pub async fn launch_incoming(
        &self,
        identity: &GuestIdentity,
        definition: &Definition,
        terms: &Terms,
    ) -> Result<Held, GuestError> {
        let order = LaunchOrder {
            identity: identity.clone(),
            epoch: terms.epoch,
            definition: definition.clone(),
            start: Start::Incoming,
            standing: Standing::LaunchingIncoming { terms: terms.clone() },
        };
        let (inner, terms) = (self.inner.clone(), terms.clone());
        owned(async move { inner.launch_incoming(order, terms).await }).await
    }

    /// The arriving guest has become this host's, under `epoch`, and has run here since `since_micros` (Unix time
    /// in microseconds; `None` if it was taken over stopped). Repeated, it does nothing.
    pub async fn take_over(
        &self,
        guest: &str,
        migration: &str,
        epoch: Epoch,
        since_micros: Option<i64>,
    ) -> Result<(), GuestError> {
        let (inner, guest, migration) = (self.inner.clone(), guest.to_owned(), migration.to_owned());
        owned(async move { inner.take_over(&guest, &migration, epoch, since_micros).await }).await
    }

    /// Destroys and forgets a guest that was arriving by this migration. Nothing to do is a success; a guest that
    /// this migration has brought here for good is refused.
    pub async fn discard_incoming(&self, guest: &str, migration: &str) -> Result<(), GuestError> {
        let (inner, guest, migration) = (self.inner.clone(), guest.to_owned(), migration.to_owned());
        owned(async move { inner.discard_incoming(&guest, &migration).await }).await
    }

    /// Destroys and forgets a guest that has left by this migration. Nothing to do is a success; a guest that this
    /// migration does not protect is refused.
    pub async fn release(&self, guest: &str, migration: &str) -> Result<(), GuestError> {
        let (inner, guest, migration) = (self.inner.clone(), guest.to_owned(), migration.to_owned());
        owned(async move { inner.release(&guest, &migration).await }).await
    }

    /// The guest, if its process lives here and answers.
    pub fn held(&self, guest: &str) -> Option<Held> {
        let slot = self.inner.slots().get(guest).cloned()?;
        self.inner.held(&slot)
    }

    /// The terms of every migration by which a guest is arriving. After their recovery the migrations discard each
    /// one for which there is no journal: it never got past Prepare.
    pub fn arriving(&self) -> Vec<Terms> {
        self.inner
            .each(|here| here.entry.standing.arriving().cloned())
            .into_iter()
            .flatten()
            .collect()
    }

    /// Every guest that this host knows of.
    pub fn list(&self) -> Vec<GuestView> {
        let slots: Vec<_> = self.inner.slots().values().cloned().collect();
        slots
            .iter()
            .filter_map(|slot| match &*slot.known() {
                Known::Nothing => None,
                Known::Unreadable(error) => Some(GuestView {
                    identity: GuestIdentity {
                        uid: slot.uid.clone(),
                        namespace: String::new(),
                        name: String::new(),
                    },
                    epoch: 0,
                    state: GuestState::Unknown,
                    since_micros: None,
                    role: Role::Held,
                    note: Some(error.to_string()),
                }),
                Known::Ended(entry) => Some(ended_view(entry)),
                Known::Here(here) => Some(here.view()),
            })
            .collect()
    }

    /// Memory that guests may have together, in bytes.
    pub fn memory(&self) -> u64 {
        self.inner.settings.memory
    }

    /// Memory promised to guests whose processes are not proved to be gone, in bytes.
    pub fn memory_in_use(&self) -> u64 {
        self.inner
            .each(|here| {
                if here.uses_memory() {
                    here.definition.memory()
                } else {
                    0
                }
            })
            .into_iter()
            .sum()
    }

    /// Virtual CPUs of guests whose processes are not proved to be gone.
    pub fn cpus_in_use(&self) -> u64 {
        self.inner
            .each(|here| {
                if here.uses_memory() {
                    u64::from(here.definition.spec().cpu.count)
                } else {
                    0
                }
            })
            .into_iter()
            .sum()
    }

    /// What was wrong when the state directory was last written to.
    pub fn state_problem(&self) -> Option<String> {
        lock(&self.inner.state_problem).clone()
    }

    /// Writes to the state directory, to see whether it takes writes.
    pub async fn try_state(&self) -> Result<(), GuestError> {
        let file = RecordFile::at(self.inner.settings.state_directory.join("probe"));
        let outcome = blocking(move || file.write(&())).await;
        self.inner.note_state(outcome)
    }

    /// Waits until a launch has shown that the hypervisor may not work any more.
    pub async fn hypervisor_suspected(&self) {
        self.inner.suspected.notified().await;
    }

    /// Counts up whenever [`Guests::list`] has changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }
}

impl Inner {
    pub(super) fn view(&self, slot: &Slot) -> Result<GuestView, GuestError> {
        slot.here(|here| here.view())?.ok_or_else(|| GuestError::NotHere {
            uid: slot.uid.clone(),
        })
    }

    /// Notes whether the state directory took a write.
    pub(super) fn note_state(&self, outcome: Result<(), StateError>) -> Result<(), GuestError> {
        let mut problem = lock(&self.state_problem);
        match outcome {
            Ok(()) => {
                *problem = None;
                Ok(())
            }
            Err(error) => {
                *problem = Some(error.to_string());
                Err(GuestError::StateUnwritable(error))
            }
        }
    }

    /// Shows what a guest does.
    pub(super) fn show(&self, slot: &Slot, state: RunState) {
        let changed = slot.here(|here| std::mem::replace(&mut here.state, shown(state)) != shown(state));
        if matches!(changed, Ok(Some(true))) {
            self.changed();
        }
    }

    pub(super) fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    pub(super) fn slots(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Slot>>> {
        lock(&self.slots)
    }

    pub(super) fn facts(&self) -> Option<Arc<HypervisorFacts>> {
        lock(&self.facts).clone()
    }

    fn each<T>(&self, read: impl Fn(&mut Here) -> T) -> Vec<T> {
        let slots: Vec<_> = self.slots().values().cloned().collect();
        slots
            .iter()
            .filter_map(|slot| slot.here(&read).ok().flatten())
            .collect()
    }

    /// Waits until no other order has this guest, and takes it.
    pub(super) async fn lock(self: &Arc<Self>, uid: &str) -> Locked {
        loop {
            let slot = self
                .slots()
                .entry(uid.to_owned())
                .or_insert_with(|| Arc::new(Slot::new(uid)))
                .clone();
            let operation = slot.operation.clone().lock_owned().await;
            // The one before may have forgotten the guest and with it this place.
            if self
                .slots()
                .get(uid)
                .is_some_and(|current| Arc::ptr_eq(current, &slot))
            {
                return Locked {
                    slot,
                    inner: self.clone(),
                    _operation: operation,
                };
            }
        }
    }
}

/// An order is carried out to its end even if whoever gave it no longer listens.
async fn owned<T: Send + 'static>(
    task: impl Future<Output = Result<T, GuestError>> + Send + 'static,
) -> Result<T, GuestError> {
    match tokio::spawn(task).await {
        Ok(outcome) => outcome,
        Err(error) => Err(GuestError::System {
            action: "Carry an order out".into(),
            source: std::io::Error::other(error),
        }),
    }
}

/// Runs file work outside the runtime's own threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StateError> + Send + 'static,
) -> Result<T, StateError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(StateError::System {
            action: "work on",
            path: PathBuf::new(),
            source: std::io::Error::other(error),
        }),
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
