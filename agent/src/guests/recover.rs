//! Finding the guests again after a restart of the agent.
//!
//! Nothing is started here. A process is ended only where the records prove that its guest never ran; everything
//! else is taken up as it is, or left alone and reported.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use godwit_crds::virtual_machine::GuestState;
use tracing::{error, info, warn};

use super::definition::Definition;
use super::error::GuestError;
use super::launch::{remove_directory, system};
use super::manager::{DESTROY_DEADLINE, Inner, blocking};
use super::process;
use super::record::{GuestEntry, Standing};
use super::slot::{Here, Known, Process, Slot};
use super::words;
use crate::clock::now_micros;
use crate::hypervisor::{Adoption, Guest, ProcessRecord, RunState};
use crate::state::StateError;

/// How many guests are taken up at a time.
const AT_ONCE: usize = 16;
/// How often a process that does not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// What became of a guest that may have been launching when the agent ended.
enum Launched {
    /// No process has to do with it.
    Nothing,
    /// This is its process; it never ran.
    Process(Arc<dyn Guest>),
    /// Something uses its directory and cannot be told to be its process.
    Unclear(String),
}

impl Inner {
    /// Takes up every recorded guest, several at a time: one that does not answer holds the others up little.
    pub(super) async fn recover(self: Arc<Self>) -> Result<(), GuestError> {
        let uids = self.recorded()?;
        let recovered = futures::stream::iter(uids).map(|uid| self.recover_one(uid));
        recovered.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        self.sweep()?;
        self.changed();
        Ok(())
    }

    async fn recover_one(self: &Arc<Self>, uid: String) -> Result<(), GuestError> {
        let locked = self.lock(&uid).await;
        let record = self.record(&uid);
        match blocking(move || record.read::<GuestEntry>()).await {
            Ok(None) => Ok(()),
            Ok(Some(entry)) if entry.is_forgotten() && entry.identity.uid == uid => {
                *locked.slot.known() = Known::Ended(Box::new(entry));
                Ok(())
            }
            Ok(Some(entry)) => match self.understood(&uid, &entry) {
                Ok(definition) => {
                    *locked.slot.known() = Known::Here(Box::new(Here::new(entry, definition)));
                    self.take_up(&locked.slot).await
                }
                Err(why) => {
                    let path = self.record(&uid).path().into();
                    self.leave_alone(&locked.slot, StateError::Damaged { path, why });
                    Ok(())
                }
            },
            Err(error) => {
                self.leave_alone(&locked.slot, error);
                Ok(())
            }
        }
    }

    fn understood(&self, uid: &str, entry: &GuestEntry) -> Result<Definition, String> {
        if entry.identity.uid != uid {
            return Err(format!("it is about guest {}", entry.identity.uid));
        }
        Definition::parse(entry.definition.as_bytes())
            .map_err(|e| format!("its definition is not understood: {e}"))
    }

    fn leave_alone(&self, slot: &Slot, why: StateError) {
        error!(guest = %slot.uid, error = %why, "the guest is left alone");
        *slot.known() = Known::Unreadable(Arc::new(why));
    }

    /// The UIDs for which there is a record.
    fn recorded(&self) -> Result<Vec<String>, GuestError> {
        let mut uids = Vec::new();
        for name in names_in(&self.records())? {
            match name.strip_suffix(".record") {
                Some(uid) if words::is_uid(uid) => uids.push(uid.to_owned()),
                // A record that was being written when the agent ended; the one that it was to replace is whole.
                Some(_) | None if name.ends_with(".record.new") => {
                    let _ = std::fs::remove_file(self.records().join(&name));
                }
                Some(_) | None => warn!(file = %name, "a file that is no record lies among the records"),
            }
        }
        Ok(uids)
    }

    /// Finds out what became of a recorded guest.
    async fn take_up(self: &Arc<Self>, slot: &Arc<Slot>) -> Result<(), GuestError> {
        let Some(entry) = slot.here(|here| here.entry.clone())? else {
            return Ok(());
        };
        match &entry.standing {
            Standing::Launching | Standing::LaunchingIncoming { .. } => {
                match self.find_launched(slot, &entry).await? {
                    Launched::Nothing => self.drop_launched(slot).await,
                    Launched::Process(guest) => {
                        info!(guest = %slot.uid, "a process that was being launched is ended: its guest never ran");
                        match guest.destroy(DESTROY_DEADLINE).await {
                            Ok(()) => self.drop_launched(slot).await,
                            Err(error) => {
                                self.silent(slot, error.to_string());
                                Ok(())
                            }
                        }
                    }
                    Launched::Unclear(why) => {
                        self.silent(slot, why);
                        Ok(())
                    }
                }
            }
            Standing::Held { process, .. } | Standing::Arriving { process, .. } => {
                self.look_for(slot, process).await;
                Ok(())
            }
            // Its end was noted and what is left of it was not yet removed.
            Standing::Ended { process, .. } => {
                match process {
                    None => {
                        slot.here(|here| here.process = Process::Gone("it had ended".into()))?;
                    }
                    Some(process) => self.look_for(slot, process).await,
                }
                Ok(())
            }
        }
    }

    /// Finds a recorded process again, or that it is gone.
    async fn look_for(self: &Arc<Self>, slot: &Arc<Slot>, process: &ProcessRecord) {
        match self
            .hypervisor
            .adopt(&slot.uid, &self.directory(&slot.uid), process)
            .await
        {
            Ok(Adoption::Alive(guest)) => self.adopted(slot, &guest).await,
            Ok(Adoption::Gone) => self.gone(slot, process),
            Ok(Adoption::Unresponsive(why)) => self.silent(slot, why),
            Err(error) => self.silent(slot, error.to_string()),
        }
    }

    /// A launch that did not come to its end: what it left is removed.
    async fn drop_launched(&self, slot: &Slot) -> Result<(), GuestError> {
        slot.here(|here| here.process = Process::Gone("it was never started".into()))?;
        if let Err(error) = self.forget(slot).await {
            warn!(guest = %slot.uid, %error, "something is left of a launch that did not come to its end");
        }
        Ok(())
    }

    async fn find_launched(&self, slot: &Slot, entry: &GuestEntry) -> Result<Launched, GuestError> {
        if entry.boot_id != self.boot_id {
            return Ok(Launched::Nothing);
        }
        let directory = self.directory(&slot.uid);
        let users =
            process::users_of(&directory).map_err(|source| system("Look through the processes", source))?;
        for pid in users.listeners.iter().chain(&users.mentions) {
            let Some(record) =
                process::identify(*pid).map_err(|source| system("Look at a process", source))?
            else {
                continue;
            };
            // Only a process that listens in the directory can answer for the guest.
            if users.listeners.contains(pid)
                && let Ok(Adoption::Alive(guest)) =
                    self.hypervisor.adopt(&slot.uid, &directory, &record).await
            {
                return Ok(Launched::Process(guest));
            }
            return Ok(Launched::Unclear(format!(
                "Process {pid} uses {} and does not answer as the guest",
                directory.display()
            )));
        }
        Ok(Launched::Nothing)
    }

    /// The process lives and is the guest.
    async fn adopted(self: &Arc<Self>, slot: &Arc<Slot>, guest: &Arc<dyn Guest>) {
        self.attach(slot, guest);
        let state = guest.run_state().await;
        if let Ok(state) = &state {
            self.show(slot, *state);
        }
        info!(guest = %slot.uid, pid = guest.process().pid, ?state, "the guest has been found again");
        let unconfirmed = slot.here(|here| {
            matches!(
                here.entry.standing,
                Standing::Held {
                    since_micros: None,
                    ..
                }
            )
        });
        if matches!((state, unconfirmed), (Ok(RunState::Running), Ok(Some(true)))) {
            // The agent ended between the guest's first run and the note of it.
            self.note_since(slot, now_micros()).await;
        }
    }

    fn gone(self: &Arc<Self>, slot: &Slot, process: &ProcessRecord) {
        let why = if process.boot_id == self.boot_id {
            "it ended while the agent was away"
        } else {
            "the host has rebooted"
        };
        warn!(guest = %slot.uid, why, "the guest's process is gone");
        let _ = slot.here(|here| {
            here.process = Process::Gone(why.into());
            here.state = GuestState::Crashed;
            here.note = Some(format!("The guest's process is gone: {why}"));
        });
        self.changed();
        self.consider_ended(slot);
    }

    /// Nothing is known for certain: it is asked again until something is.
    fn silent(self: &Arc<Self>, slot: &Arc<Slot>, why: String) {
        warn!(guest = %slot.uid, %why, "the guest's process does not answer; it is left alone and asked again");
        let task = tokio::spawn({
            let (inner, uid) = (Arc::downgrade(self), slot.uid.clone());
            async move {
                tokio::time::sleep(ASK_AGAIN).await;
                let Some(inner) = inner.upgrade() else { return };
                // Not in this task: taking the guest up replaces, and so ends, its watcher.
                tokio::spawn(async move {
                    let locked = inner.lock(&uid).await;
                    let waits = locked.slot.here(|here| matches!(here.process, Process::Silent));
                    if matches!(waits, Ok(Some(true)))
                        && let Err(error) = inner.take_up(&locked.slot).await
                    {
                        inner.silent(&locked.slot, error.to_string());
                    }
                });
            }
        });
        let old = slot.here(|here| {
            here.process = Process::Silent;
            here.state = GuestState::Unknown;
            here.note = Some(why);
            here.watcher.replace(task.abort_handle())
        });
        if let Ok(Some(Some(old))) = old {
            old.abort();
        }
        self.changed();
    }

    /// Removes directories of guests that have no record: the record goes last, so these are left-overs, unless a
    /// process uses one.
    fn sweep(&self) -> Result<(), GuestError> {
        let parent = self.settings.run_directory.join("guests");
        for uid in names_in(&parent)? {
            if self.slots().contains_key(&uid) {
                continue;
            }
            let directory = parent.join(&uid);
            let users = process::users_of(&directory)
                .map_err(|source| system("Look through the processes", source))?;
            match users.listeners.first().or(users.mentions.first()) {
                Some(pid) => {
                    error!(directory = %directory.display(), pid, "a process uses the directory of a guest without a record; both are left alone");
                }
                None => {
                    info!(directory = %directory.display(), "a left-over directory is removed");
                    if let Err(error) = remove_directory(&directory) {
                        warn!(%error, "a left-over directory stays");
                    }
                }
            }
        }
        Ok(())
    }
}

fn names_in(directory: &Path) -> Result<Vec<String>, GuestError> {
    let listed = std::fs::read_dir(directory).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
    let entries = listed.map_err(|source| system(&format!("List {}", directory.display()), source))?;
    Ok(entries
        .into_iter()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect())
}
