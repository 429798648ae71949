//! Whether a migration may begin: everything that can be said from what the API server knows. What only the
//! agents know (a name that is taken, a file that is missing), they say when they are ordered to begin.

use std::collections::BTreeMap;

use godwit_crds::host::Pool;
use godwit_crds::migration::{Handoff, MigrationPhase};
use godwit_crds::quantity::memory_bytes;
use godwit_crds::virtual_machine::{DiskCache, GuestState};
use godwit_crds::{GuestRecordSpec, VirtualMachine, VirtualMachineHost, VirtualMachineMigration};
use godwit_handover::Terms;
use kube::{Resource, ResourceExt};

use crate::placement::{self, Misfit};
use crate::reason::MigrationReason as Reason;
use crate::record;

/// Why a migration does not begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The word of the table.
    pub reason: Reason,
    /// What is so and what to do.
    pub message: String,
}

fn refuse<T>(reason: Reason, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal {
        reason,
        message: message.into(),
    })
}

/// What the judgement rests on.
pub struct Facts<'a> {
    /// The migration.
    pub migration: &'a VirtualMachineMigration,
    /// The VirtualMachine of that name.
    pub guest: Option<&'a VirtualMachine>,
    /// Its record, read fresh.
    pub record: Option<&'a GuestRecordSpec>,
    /// Every host by name.
    pub hosts: &'a BTreeMap<String, VirtualMachineHost>,
    /// Every migration in this namespace.
    pub migrations: &'a [&'a VirtualMachineMigration],
    /// Bytes of the destination's memory that are spoken for by guests that it does not show yet.
    pub promised: u64,
}

/// Whether a migration has ended, by its status.
pub fn ended(migration: &VirtualMachineMigration) -> bool {
    match migration.status.as_ref().and_then(|status| status.phase) {
        Some(MigrationPhase::Succeeded | MigrationPhase::Failed | MigrationPhase::Cancelled) => true,
        None
        | Some(
            MigrationPhase::Pending
            | MigrationPhase::Begin
            | MigrationPhase::Prepare
            | MigrationPhase::Perform
            | MigrationPhase::Finish
            | MigrationPhase::Confirm,
        ) => false,
    }
}

/// Whether a migration was accepted: it stands before those that were not, however old they are.
pub fn begun(migration: &VirtualMachineMigration) -> bool {
    migration
        .status
        .as_ref()
        .is_some_and(|status| status.epoch.is_some())
}

/// The terms under which the migration may begin.
pub fn validate(facts: &Facts<'_>) -> Result<Terms, Refusal> {
    let spec = &facts.migration.spec;
    let uid = facts.migration.uid().unwrap_or_default();
    let Some(guest) = facts.guest else {
        return refuse(
            Reason::VirtualMachineNotFound,
            format!(
                "There is no VirtualMachine {} in this namespace. Check the name: kubectl get vm.",
                spec.virtual_machine
            ),
        );
    };
    if guest.meta().deletion_timestamp.is_some() {
        return refuse(
            Reason::VirtualMachineDeleted,
            format!(
                "The VirtualMachine {} is being deleted; it is stopped where it runs.",
                guest.name_any()
            ),
        );
    }
    let destination_name = &spec.destination.host;
    let Some(destination) = facts.hosts.get(destination_name) else {
        return refuse(
            Reason::HostNotFound,
            format!(
                "There is no VirtualMachineHost {destination_name}. Check the name: kubectl godwit hosts."
            ),
        );
    };
    if let Some(other) = other_active(facts, guest) {
        return refuse(
            Reason::AnotherMigrationActive,
            format!(
                "The migration {} of this guest has not ended. Wait for it, or cancel it: kubectl godwit cancel {}.",
                other.name_any(),
                other.name_any()
            ),
        );
    }
    let Some(record) = facts.record else {
        return refuse(
            Reason::GuestNotRunning,
            format!(
                "{} has no GuestRecord: it was not started yet, or the record was deleted. Look at the VirtualMachine's conditions.",
                guest.name_any()
            ),
        );
    };
    if record.holder == *destination_name {
        return refuse(
            Reason::SameHost,
            format!("The guest runs on {destination_name} already. Name another host."),
        );
    }
    if let Some(armed) = record
        .migration
        .as_ref()
        .filter(|armed| armed.uid != uid && !record::settled(record))
    {
        return refuse(
            Reason::AnotherMigrationActive,
            format!(
                "The guest's record is armed for the migration with UID {}, which is not decided. Wait for its end.",
                armed.uid
            ),
        );
    }
    let source = check_ready(facts, &record.holder, "source")?;
    check_ready(facts, destination_name, "destination")?;
    check_running(guest, record, source)?;
    check_disks(guest, source, destination)?;
    check_fits(facts, guest, destination)?;
    let Ok(epoch) = u64::try_from(record.epoch) else {
        return refuse(Reason::InternalError, "The guest's record has no valid epoch.");
    };
    Ok(Terms {
        migration: uid,
        guest: record.guest.uid.clone(),
        epoch,
        source: record.holder.clone(),
        destination: destination_name.clone(),
        strict: facts.migration.spec.handoff == Handoff::Strict,
    })
}

/// Another migration of this guest that stands before this one: one that has begun, or else the older one.
fn other_active<'a>(facts: &Facts<'a>, guest: &VirtualMachine) -> Option<&'a VirtualMachineMigration> {
    let age = |m: &VirtualMachineMigration| (m.creation_timestamp().map(|t| t.0), m.uid());
    facts.migrations.iter().copied().find(|other| {
        other.uid() != facts.migration.uid()
            && other.namespace() == facts.migration.namespace()
            && other.spec.virtual_machine == guest.name_any()
            && !ended(other)
            && (begun(other) || age(other) < age(facts.migration))
    })
}

fn check_ready<'a>(facts: &Facts<'a>, name: &str, role: &str) -> Result<&'a VirtualMachineHost, Refusal> {
    let why = match facts.hosts.get(name) {
        None => "there is no VirtualMachineHost of that name".to_owned(),
        Some(host) => match placement::ready(host) {
            Ok(()) => return Ok(host),
            Err(why) => why,
        },
    };
    refuse(
        Reason::HostNotReady,
        format!("The {role} {name} is not Ready: {why}. Mend it, or name another host."),
    )
}

/// Refuses a guest that is known not to run. Where the host has not reported on it at this epoch yet (just after a
/// move), the source's agent judges.
fn check_running(
    guest: &VirtualMachine,
    record: &GuestRecordSpec,
    source: &VirtualMachineHost,
) -> Result<(), Refusal> {
    let reported = source
        .status
        .iter()
        .flat_map(|status| &status.guests)
        .find(|g| g.uid == record.guest.uid && g.epoch == record.epoch)
        .map(|g| g.state);
    let mirrored = guest
        .status
        .as_ref()
        .filter(|status| status.epoch == Some(record.epoch))
        .and_then(|status| status.state)
        // Just after a move it still shows how the guest stood where it came from, stopped for the switchover.
        .filter(|state| *state != GuestState::Paused);
    let state = reported
        .or(mirrored)
        .or((record.epoch == 1).then_some(GuestState::Starting));
    match state {
        None | Some(GuestState::Running) => Ok(()),
        Some(
            state @ (GuestState::Starting
            | GuestState::Paused
            | GuestState::ShutOff
            | GuestState::Crashed
            | GuestState::Lost
            | GuestState::Unknown),
        ) => refuse(
            Reason::GuestNotRunning,
            format!(
                "{} is {state:?} on {}; only a running guest can be moved. Look at the VirtualMachine's conditions.",
                guest.name_any(),
                record.holder
            ),
        ),
    }
}

fn check_disks(
    guest: &VirtualMachine,
    source: &VirtualMachineHost,
    destination: &VirtualMachineHost,
) -> Result<(), Refusal> {
    for disk in &guest.spec.disks {
        let cached = match disk.cache {
            DiskCache::None | DiskCache::DirectSync => false,
            DiskCache::Writeback | DiskCache::Writethrough => true,
        };
        if cached && !disk.read_only {
            return refuse(
                Reason::UnsafeCacheMode,
                format!(
                    "The disk {} has cache mode {:?}, which may leave data in the source's page cache. Give it None or DirectSync.",
                    disk.name, disk.cache
                ),
            );
        }
        let Some(file) = &disk.file else { continue };
        let at_destination = pool(destination, &file.pool);
        if at_destination.is_none()
            || pool(source, &file.pool).map(|p| &p.id) != at_destination.map(|p| &p.id)
        {
            return refuse(
                Reason::StorageNotShared,
                format!(
                    "The disk {} lies in the pool {}, which {} and {} do not share. Put it into a shared pool; copying disks is not served yet.",
                    disk.name,
                    file.pool,
                    source.name_any(),
                    destination.name_any()
                ),
            );
        }
    }
    Ok(())
}

fn pool<'a>(host: &'a VirtualMachineHost, name: &str) -> Option<&'a Pool> {
    host.status
        .iter()
        .flat_map(|status| &status.pools)
        .find(|pool| pool.name == name)
}

fn check_fits(
    facts: &Facts<'_>,
    guest: &VirtualMachine,
    destination: &VirtualMachineHost,
) -> Result<(), Refusal> {
    let name = destination.name_any();
    let uid = guest.uid();
    // A guest that has just left this host may still stand in its report.
    let still_shown = destination
        .status
        .iter()
        .flat_map(|status| &status.guests)
        .any(|g| Some(&g.uid) == uid.as_ref());
    let returned = if still_shown {
        memory_bytes(&guest.spec.memory).unwrap_or(0)
    } else {
        0
    };
    match placement::fits(&guest.spec, destination, facts.promised, returned) {
        Ok(()) => Ok(()),
        Err(Misfit::NotReady(why)) => refuse(
            Reason::HostNotReady,
            format!("The destination {name} is not Ready: {why}."),
        ),
        Err(Misfit::MachineTypeMissing) => refuse(
            Reason::MachineTypeMissing,
            format!(
                "{name} does not know the machine type {}. Name a host with the same or a newer hypervisor.",
                guest.spec.machine.type_
            ),
        ),
        Err(Misfit::CpuModelMissing) => refuse(
            Reason::CpuModelMissing,
            format!(
                "{name} cannot give the guest the CPU model {}. Name a host that lists it: kubectl godwit hosts -o json.",
                guest.spec.cpu.model
            ),
        ),
        Err(Misfit::PoolMissing(pool)) => refuse(
            Reason::FileMissing,
            format!("{name} has no pool {pool}, in which a file of the guest lies. Provide it there."),
        ),
        Err(misfit @ Misfit::InsufficientMemory { .. }) => refuse(
            Reason::InsufficientMemory,
            format!("{name} {misfit}. Move other guests away, or name another host."),
        ),
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use godwit_crds::guest_record::GuestReference;
    use godwit_crds::host::HostGuest;
    use godwit_crds::virtual_machine::{Disk, DiskFormat, PoolFile};
    use godwit_crds::{ArmedMigration, ConditionStatus, Decision};

    use super::*;
    use crate::samples::{guest, host, migration};

    struct World {
        migration: VirtualMachineMigration,
        guest: Option<VirtualMachine>,
        record: Option<GuestRecordSpec>,
        hosts: BTreeMap<String, VirtualMachineHost>,
        others: Vec<VirtualMachineMigration>,
    }

    impl World {
        fn new() -> Self {
            let guest = guest("web");
            let reference = GuestReference {
                namespace: "default".into(),
                name: "web".into(),
                uid: guest.uid().unwrap(),
                definition: "0".repeat(64),
            };
            let mut source = host("a");
            source.status.as_mut().unwrap().guests = vec![HostGuest {
                uid: guest.uid().unwrap(),
                namespace: "default".into(),
                name: "web".into(),
                state: GuestState::Running,
                epoch: 1,
                since: None,
            }];
            Self {
                migration: migration("m", "web", "b", 10),
                guest: Some(guest),
                record: Some(record::first(reference, "a")),
                hosts: [("a".to_owned(), source), ("b".to_owned(), host("b"))].into(),
                others: vec![],
            }
        }

        fn judge(&self) -> Result<Terms, Reason> {
            let migrations: Vec<_> = self.others.iter().chain([&self.migration]).collect();
            validate(&Facts {
                migration: &self.migration,
                guest: self.guest.as_ref(),
                record: self.record.as_ref(),
                hosts: &self.hosts,
                migrations: &migrations,
                promised: 0,
            })
            .map_err(|refusal| {
                assert!(refusal.message.ends_with('.'), "{}", refusal.message);
                refusal.reason
            })
        }

        fn host(&mut self, name: &str) -> &mut godwit_crds::VirtualMachineHostStatus {
            self.hosts.get_mut(name).unwrap().status.as_mut().unwrap()
        }

        fn disk(&mut self) -> &mut Disk {
            let disks = &mut self.guest.as_mut().unwrap().spec.disks;
            disks.push(Disk {
                name: "root".into(),
                file: Some(PoolFile {
                    pool: "default".into(),
                    file: "root.img".into(),
                }),
                block_device: None,
                format: DiskFormat::Raw,
                cache: DiskCache::None,
                read_only: false,
            });
            disks.last_mut().unwrap()
        }
    }

    #[test]
    fn a_sound_request_gets_its_terms() {
        let world = World::new();
        assert_eq!(
            world.judge(),
            Ok(Terms {
                migration: "uid-m".into(),
                guest: "uid-web".into(),
                epoch: 1,
                source: "a".into(),
                destination: "b".into(),
                strict: false,
            })
        );
    }

    #[test]
    fn unknown_and_vanishing_objects() {
        let mut world = World::new();
        world.guest = None;
        assert_eq!(world.judge(), Err(Reason::VirtualMachineNotFound));
        let mut world = World::new();
        world.guest.as_mut().unwrap().metadata.deletion_timestamp =
            world.migration.metadata.creation_timestamp.clone();
        assert_eq!(world.judge(), Err(Reason::VirtualMachineDeleted));
        let mut world = World::new();
        world.hosts.remove("b");
        assert_eq!(world.judge(), Err(Reason::HostNotFound));
        let mut world = World::new();
        world.hosts.remove("a");
        assert_eq!(world.judge(), Err(Reason::HostNotReady));
        let mut world = World::new();
        world.record = None;
        assert_eq!(world.judge(), Err(Reason::GuestNotRunning));
    }

    #[test]
    fn the_guest_is_there_already() {
        let mut world = World::new();
        world.migration.spec.destination.host = "a".into();
        assert_eq!(world.judge(), Err(Reason::SameHost));
    }

    #[test]
    fn both_hosts_must_be_ready() {
        for name in ["a", "b"] {
            let mut world = World::new();
            world.host(name).conditions[0].status = ConditionStatus::Unknown;
            assert_eq!(world.judge(), Err(Reason::HostNotReady));
        }
    }

    #[test]
    fn only_a_running_guest_moves() {
        for state in [
            GuestState::Starting,
            GuestState::Paused,
            GuestState::ShutOff,
            GuestState::Crashed,
            GuestState::Unknown,
        ] {
            let mut world = World::new();
            world.host("a").guests[0].state = state;
            assert_eq!(world.judge(), Err(Reason::GuestNotRunning), "{state:?}");
        }
        // Not reported yet: never started is refused; just moved here is left to the agent.
        let mut world = World::new();
        world.host("a").guests.clear();
        assert_eq!(world.judge(), Err(Reason::GuestNotRunning));
        world.record.as_mut().unwrap().epoch = 2;
        assert_eq!(world.judge().map(|terms| terms.epoch), Ok(2));
        // Nor does the mirror count for that which still shows the switchover. What else it shows does.
        let status = world.guest.as_mut().unwrap().status.get_or_insert_default();
        (status.epoch, status.state) = (Some(2), Some(GuestState::Paused));
        assert_eq!(world.judge().map(|terms| terms.epoch), Ok(2));
        let status = world.guest.as_mut().unwrap().status.get_or_insert_default();
        status.state = Some(GuestState::Lost);
        assert_eq!(world.judge(), Err(Reason::GuestNotRunning));
    }

    #[test]
    fn what_the_destination_lacks_is_named() {
        let mut world = World::new();
        world.host("b").hypervisors[0].machine_types.clear();
        assert_eq!(world.judge(), Err(Reason::MachineTypeMissing));
        let mut world = World::new();
        world.host("b").hypervisors[0].cpu_models.clear();
        assert_eq!(world.judge(), Err(Reason::CpuModelMissing));
        let mut world = World::new();
        world.host("b").available.as_mut().unwrap().memory = "511Mi".into();
        assert_eq!(world.judge(), Err(Reason::InsufficientMemory));
        // Its report has not caught up with the guest's leaving.
        let old = HostGuest {
            epoch: 0,
            ..world.host("a").guests[0].clone()
        };
        world.host("b").guests.push(old);
        assert!(world.judge().is_ok());
        let mut world = World::new();
        world.host("b").pools.clear();
        assert_eq!(world.judge(), Err(Reason::FileMissing));
    }

    #[test]
    fn disks_must_be_shared_and_uncached() {
        let mut world = World::new();
        world.disk();
        assert!(world.judge().is_ok());
        world.host("b").pools[0].id = "another".into();
        assert_eq!(world.judge(), Err(Reason::StorageNotShared));
        let mut world = World::new();
        world.disk().file.as_mut().unwrap().pool = "other".into();
        assert_eq!(world.judge(), Err(Reason::StorageNotShared));
        let mut world = World::new();
        world.disk().cache = DiskCache::Writeback;
        assert_eq!(world.judge(), Err(Reason::UnsafeCacheMode));
        let mut world = World::new();
        let disk = world.disk();
        (disk.cache, disk.read_only) = (DiskCache::Writeback, true);
        assert!(world.judge().is_ok());
    }

    #[test]
    fn of_two_migrations_the_older_or_begun_one_stands() {
        let status = |phase, epoch| {
            Some(godwit_crds::VirtualMachineMigrationStatus {
                phase: Some(phase),
                epoch,
                ..Default::default()
            })
        };
        let mut world = World::new();
        world.others = vec![migration("older", "web", "b", 9)];
        assert_eq!(world.judge(), Err(Reason::AnotherMigrationActive));
        world.others = vec![migration("younger", "web", "b", 11)];
        assert!(world.judge().is_ok());
        world.others[0].status = status(MigrationPhase::Perform, Some(1));
        assert_eq!(world.judge(), Err(Reason::AnotherMigrationActive));
        world.others[0].status = status(MigrationPhase::Succeeded, Some(1));
        assert!(world.judge().is_ok());
        // In the same second the UID decides, the same way for both.
        world.others = vec![migration("a-first", "web", "b", 10)];
        assert_eq!(world.judge(), Err(Reason::AnotherMigrationActive));
        world.others = vec![migration("z-last", "web", "b", 10)];
        assert!(world.judge().is_ok());
        world.others = vec![migration("older", "db", "b", 9)];
        assert!(world.judge().is_ok());
    }

    #[test]
    fn an_undecided_record_bars_the_next_migration() {
        let mut world = World::new();
        let record = world.record.as_mut().unwrap();
        record.migration = Some(ArmedMigration {
            uid: "gone".into(),
            source: "a".into(),
            destination: "b".into(),
            strict: false,
        });
        assert_eq!(world.judge(), Err(Reason::AnotherMigrationActive));
        world.record.as_mut().unwrap().decision = Decision::Aborted;
        assert!(world.judge().is_ok());
    }
}
