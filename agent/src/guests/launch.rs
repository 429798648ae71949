//! How a guest's process comes to be and ends. Each step is on disk before the next, so that a crash anywhere
//! leaves a record that says what may be there.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use godwit_crds::virtual_machine::GuestState;
use godwit_handover::Epoch;
use rustix::fs::{CWD, Mode, OFlags, openat};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::definition::Definition;
use super::error::GuestError;
use super::manager::{DESTROY_DEADLINE, Inner, blocking};
use super::process;
use super::record::{GuestEntry, Standing};
use super::slot::{Here, Known, Process, Slot};
use super::types::GuestIdentity;
use crate::cgroup::Limits;
use crate::hypervisor::{Guest, HypervisorError, Launch, ProcessRecord, Start};
use crate::pools::PoolError;
use crate::state::RecordFile;
use crate::taps::{TapError, tap_name};

/// How long a killed process may take to go.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
const MEBIBYTE: u64 = 1 << 20;
/// How long the kernel may take to empty the cgroup of a process that has ended.
const CGROUP_EMPTIES: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What is to be launched.
pub(super) struct LaunchOrder {
    pub(super) identity: GuestIdentity,
    pub(super) epoch: Epoch,
    pub(super) definition: Definition,
    pub(super) start: Start,
    /// The intent that is recorded first.
    pub(super) standing: Standing,
}

impl Inner {
    pub(super) fn make_directories(&self) -> Result<(), GuestError> {
        make_directory(&self.settings.state_directory, 0o700)?;
        make_directory(&self.records(), 0o700)?;
        // Guests' users pass through these and see nothing but their own.
        make_directory(&self.settings.run_directory, 0o711)?;
        make_directory(&self.settings.run_directory.join("guests"), 0o711)
    }

    /// Where the records are.
    pub(super) fn records(&self) -> PathBuf {
        self.settings.state_directory.join("guests")
    }

    pub(super) fn record(&self, uid: &str) -> RecordFile {
        RecordFile::at(self.records().join(format!("{uid}.record")))
    }

    /// A guest's own directory.
    pub(super) fn directory(&self, uid: &str) -> PathBuf {
        self.settings.run_directory.join("guests").join(uid)
    }

    /// Writes a guest's record.
    pub(super) async fn store(&self, entry: GuestEntry) -> Result<(), GuestError> {
        let file = self.record(&entry.identity.uid);
        let outcome = blocking(move || file.write(&entry)).await;
        self.note_state(outcome)
    }

    /// Starts a process for a guest of which nothing is known. When this fails, nothing is left of it.
    pub(super) async fn launch(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        order: LaunchOrder,
    ) -> Result<Arc<dyn Guest>, GuestError> {
        let directory = self.directory(&slot.uid);
        let users =
            process::users_of(&directory).map_err(|source| system("Look through the processes", source))?;
        if let Some(pid) = users.listeners.first().or(users.mentions.first()) {
            return Err(GuestError::NameTaken(format!(
                "Process {pid} uses {}, the directory of this guest, and no record says that it may; end it if it is a left-over",
                directory.display()
            )));
        }
        let start = order.start;
        let definition = order.definition.clone();
        let entry = self.admit(slot, order)?;
        self.changed();
        let outcome = match self.store(entry.clone()).await {
            Ok(()) => self.launch_recorded(slot, entry, definition, start).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &outcome {
            warn!(guest = %slot.uid, %error, "the guest was not launched");
            let process = slot.here(|here| here.process.clone());
            match process {
                Ok(Some(Process::Launching)) => {
                    let _ = slot.here(|here| here.process = Process::Gone("it was never started".into()));
                    if let Err(error) = self.forget(slot).await {
                        warn!(guest = %slot.uid, %error, "something is left of a guest that was not launched");
                    }
                }
                // Its process could not be ended: it stays known, so that a stop order ends it.
                Ok(Some(Process::Alive(_) | Process::Silent | Process::Gone(_)) | None) | Err(_) => {}
            }
        }
        outcome
    }

    /// Checks that there is room for the guest and takes it, in one step.
    fn admit(&self, slot: &Slot, order: LaunchOrder) -> Result<GuestEntry, GuestError> {
        let spec = order.definition.spec();
        let Some(facts) = self.facts() else {
            return Err(GuestError::HypervisorUnavailable(
                "No hypervisor works on this host; its condition Ready says why".into(),
            ));
        };
        if !facts.machine_types.contains(&spec.machine.type_) {
            return Err(GuestError::MachineTypeMissing(spec.machine.type_.clone()));
        }
        if !facts.cpu_models.contains(&spec.cpu.model) {
            return Err(GuestError::CpuModelMissing(spec.cpu.model.clone()));
        }
        let slots = self.slots();
        let (mut used, mut users) = (0u64, Vec::new());
        for other in slots.values().filter(|other| other.uid != slot.uid) {
            let Known::Here(here) = &*other.known() else {
                continue;
            };
            if here.entry.identity.namespace == order.identity.namespace
                && here.entry.identity.name == order.identity.name
            {
                return Err(GuestError::NameTaken(format!(
                    "This host has another guest named {}/{}, with UID {}",
                    order.identity.namespace, order.identity.name, other.uid
                )));
            }
            if here.uses_memory() {
                used = used.saturating_add(here.definition.memory());
            }
            users.extend(here.entry.user);
        }
        let (needed, free) = (
            order.definition.memory(),
            self.settings.memory.saturating_sub(used),
        );
        if needed > free {
            return Err(GuestError::InsufficientMemory {
                needed_mebibytes: needed / MEBIBYTE,
                free_mebibytes: free / MEBIBYTE,
            });
        }
        let user = match self.settings.users {
            None => None,
            Some(range) => {
                // A process that nobody knows any more, of a guest whose record cannot be read, has its user still.
                users.extend(
                    process::users_at_work()
                        .map_err(|source| system("Look through the processes", source))?,
                );
                let free =
                    (range.first..range.first.saturating_add(range.count)).find(|user| !users.contains(user));
                Some(free.ok_or_else(|| {
                    GuestError::Conflict(format!(
                        "All {} users that guests may run as are taken; widen guestUsers",
                        range.count
                    ))
                })?)
            }
        };
        let entry = GuestEntry {
            identity: order.identity,
            definition: String::from_utf8_lossy(order.definition.json()).into_owned(),
            epoch: order.epoch,
            standing: order.standing,
            boot_id: self.boot_id.clone(),
            user,
            taps: (0..spec.interfaces.len())
                .map(|index| tap_name(&slot.uid, index))
                .collect(),
        };
        *slot.known() = Known::Here(Box::new(Here::new(entry.clone(), order.definition)));
        Ok(entry)
    }

    async fn launch_recorded(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        mut entry: GuestEntry,
        definition: Definition,
        start: Start,
    ) -> Result<Arc<dyn Guest>, GuestError> {
        let directory = self.directory(&slot.uid);
        fresh_directory(&directory, entry.user)?;
        let pools = self.settings.pools.clone();
        let spec = definition.spec().clone();
        let files = match tokio::task::spawn_blocking(move || pools.open_all(&spec)).await {
            Ok(files) => files.map_err(from_pool)?,
            Err(error) => return Err(system("Open the guest's files", io::Error::other(error))),
        };
        for (interface, tap) in definition.spec().interfaces.iter().zip(&entry.taps) {
            self.settings
                .taps
                .create(tap, &interface.bridge, entry.user)
                .await
                .map_err(from_tap)?;
        }
        let launch = Launch {
            uid: slot.uid.clone(),
            name: entry.identity.name.clone(),
            definition: definition.spec().clone(),
            files,
            taps: entry.taps.clone(),
            directory,
            user: entry.user,
            start,
        };
        let launched = self.hypervisor.launch(launch).await;
        if matches!(launched, Err(HypervisorError::Unavailable(_))) {
            self.suspected.notify_one();
        }
        let guest = launched.map_err(from_hypervisor)?;
        let process = guest.process();
        let limits = Limits::of(definition.memory(), definition.spec().cpu.count);
        let placed = self
            .settings
            .cgroups
            .place(&self.cgroup(&slot.uid), process.pid, limits);
        for problem in placed.refused {
            info!(guest = %slot.uid, %problem, "no cgroup of its own in one hierarchy");
        }
        for (resource, why) in placed.unbounded {
            warn!(guest = %slot.uid, resource = resource.name(), %why, "the guest is not bounded in this");
        }
        entry.standing = match entry.standing {
            Standing::LaunchingIncoming { terms } | Standing::Arriving { terms, .. } => {
                Standing::Arriving { terms, process }
            }
            Standing::Launching | Standing::Held { .. } | Standing::Ended { .. } => Standing::Held {
                process,
                since_micros: None,
                arrived_by: None,
            },
        };
        slot.here(|here| here.entry = entry.clone())?;
        self.attach(slot, &guest);
        if let Err(error) = self.store(entry).await {
            // It has not run, and nothing on disk would find it again.
            self.destroy_and_forget(slot).await?;
            return Err(error);
        }
        info!(guest = %slot.uid, pid = guest.process().pid, ?start, "the guest's process is there");
        Ok(guest)
    }

    fn cgroup(&self, uid: &str) -> String {
        format!("{}.{uid}", self.settings.host)
    }

    /// Ends the guest's process for certain, and forgets the guest.
    pub(super) async fn destroy_and_forget(&self, slot: &Slot) -> Result<(), GuestError> {
        self.destroy(slot).await?;
        self.forget(slot).await
    }

    /// Ends the guest's process for certain.
    pub(super) async fn destroy(&self, slot: &Slot) -> Result<(), GuestError> {
        let known = slot.here(|here| {
            here.ending = true;
            (here.process.clone(), here.entry.standing.process().cloned())
        })?;
        let Some((process, recorded)) = known else {
            return Ok(());
        };
        if let Err(error) = self.end(slot, process, recorded).await {
            slot.here(|here| here.ending = false)?;
            return Err(error);
        }
        slot.here(|here| {
            if !matches!(here.process, Process::Gone(_)) {
                here.process = Process::Gone("it was ended".into());
                here.state = GuestState::ShutOff;
            }
        })?;
        Ok(())
    }

    /// Ends a guest's process for certain.
    async fn end(
        &self,
        slot: &Slot,
        process: Process,
        recorded: Option<ProcessRecord>,
    ) -> Result<(), GuestError> {
        match (process, recorded) {
            (Process::Gone(_), _) => Ok(()),
            (Process::Alive(guest), _) => guest
                .destroy(DESTROY_DEADLINE)
                .await
                .map_err(GuestError::Hypervisor),
            (Process::Silent | Process::Launching, Some(recorded)) => process::kill(&recorded, KILL_DEADLINE)
                .await
                .map_err(|source| system("End the guest's process", source)),
            (Process::Silent | Process::Launching, None) => Err(GuestError::HypervisorSilent(format!(
                "A process uses the directory of guest {} and cannot be told to be the guest's",
                slot.uid
            ))),
        }
    }

    /// Removes everything that is left of a guest whose process is gone. The record goes last, so that a crash in
    /// between leaves something to go on from.
    pub(super) async fn forget(&self, slot: &Slot) -> Result<(), GuestError> {
        if !self.clear(slot).await? {
            return Ok(());
        }
        let record = self.record(&slot.uid);
        if let Err(error) = blocking(move || record.remove()).await {
            return self.note_state(Err(error));
        }
        self.replace(slot, Known::Nothing);
        info!(guest = %slot.uid, "nothing is left of the guest on this host");
        Ok(())
    }

    /// Puts something else in a guest's place, whose watcher is ended.
    pub(super) fn replace(&self, slot: &Slot, new: Known) {
        let known = std::mem::replace(&mut *slot.known(), new);
        if let Known::Here(here) = known
            && let Some(watcher) = here.watcher
        {
            watcher.abort();
        }
        self.changed();
    }

    /// A process is told to have ended a moment before the kernel has taken it out of its cgroup.
    async fn remove_cgroup(&self, slot: &Slot) -> Vec<String> {
        let name = self.cgroup(&slot.uid);
        let deadline = Instant::now() + CGROUP_EMPTIES;
        loop {
            let left = self.settings.cgroups.remove(&name);
            if left.is_empty() || Instant::now() >= deadline {
                return left;
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Removes everything but the record that is left of a guest whose process is gone. `false` if it is not here.
    pub(super) async fn clear(&self, slot: &Slot) -> Result<bool, GuestError> {
        let Some(taps) = slot.here(|here| here.entry.taps.clone())? else {
            return Ok(false);
        };
        for tap in &taps {
            self.settings.taps.delete(tap).await.map_err(from_tap)?;
        }
        for problem in self.remove_cgroup(slot).await {
            warn!(guest = %slot.uid, %problem, "the guest's cgroup could not be removed");
        }
        let directory = self.directory(&slot.uid);
        remove_directory(&directory)?;
        Ok(true)
    }
}

fn make_directory(path: &Path, mode: u32) -> Result<(), GuestError> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(mode)))
        .map_err(|source| system(&format!("Make {}", path.display()), source))
}

/// An empty directory that only the guest's user can enter. Its parent belongs to the agent, so nobody else can
/// put anything in its place.
fn fresh_directory(path: &Path, user: Option<u32>) -> Result<(), GuestError> {
    remove_directory(path)?;
    DirBuilder::new()
        .mode(0o700)
        .create(path)
        .and_then(|()| match user {
            Some(user) => give(path, user),
            None => Ok(()),
        })
        .map_err(|source| system(&format!("Make {}", path.display()), source))
}

/// Gives a directory to a user: the one that was opened, whatever its path leads to by then.
fn give(path: &Path, user: u32) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(CWD, path, flags, Mode::empty())?;
    fchown(directory, Some(user), Some(user))
}

pub(super) fn remove_directory(path: &Path) -> Result<(), GuestError> {
    match std::fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(system(&format!("Remove {}", path.display()), source)),
    }
}

pub(super) fn system(action: &str, source: io::Error) -> GuestError {
    GuestError::System {
        action: action.into(),
        source,
    }
}

fn from_pool(error: PoolError) -> GuestError {
    match error {
        PoolError::DeviceNotAllowed(_) => GuestError::DefinitionRefused(error.to_string()),
        PoolError::NoPool(_)
        | PoolError::Directory { .. }
        | PoolError::File { .. }
        | PoolError::Kind { .. }
        | PoolError::Id { .. } => GuestError::FileMissing(error.to_string()),
    }
}

fn from_tap(error: TapError) -> GuestError {
    match error {
        TapError::Bridge { .. } => GuestError::FileMissing(error.to_string()),
        TapError::Device { .. } => system("Change a network device", io::Error::other(error)),
    }
}

fn from_hypervisor(error: HypervisorError) -> GuestError {
    match error {
        HypervisorError::Refused(why) => GuestError::DefinitionRefused(why),
        HypervisorError::Unavailable(why) => GuestError::HypervisorUnavailable(why),
        other @ (HypervisorError::Died
        | HypervisorError::Deadline { .. }
        | HypervisorError::Command { .. }
        | HypervisorError::Protocol(_)
        | HypervisorError::System { .. }) => GuestError::Hypervisor(other),
    }
}
