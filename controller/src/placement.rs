//! Where a guest may run: what a host must have for it, and which of several hosts is taken.

use std::collections::BTreeMap;

use godwit_crds::condition::find_condition;
use godwit_crds::quantity::memory_bytes;
use godwit_crds::virtual_machine::{PoolFile, VirtualMachineSpec};
use godwit_crds::{ConditionStatus, VirtualMachineHost};
use kube::ResourceExt;

/// Why a host does not do for a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// It is not Ready; its own words.
    NotReady(String),
    /// Its hypervisors do not know the machine type.
    MachineTypeMissing,
    /// Its hypervisors cannot give that CPU model.
    CpuModelMissing,
    /// Too little memory is left: bytes needed and bytes available.
    InsufficientMemory {
        /// Bytes that the guest needs.
        needed: u64,
        /// Bytes that the host has left.
        available: u64,
    },
    /// It has no pool of that name.
    PoolMissing(String),
}

/// Whether the host is Ready; otherwise its own words why not.
pub fn ready(host: &VirtualMachineHost) -> Result<(), String> {
    let conditions = host.status.as_ref().map_or(&[][..], |status| &status.conditions);
    match find_condition(conditions, "Ready") {
        Some(condition) if condition.status == ConditionStatus::True => Ok(()),
        Some(condition) => Err(format!("{}: {}", condition.reason, condition.message)),
        None => Err("its agent has not reported yet".into()),
    }
}

/// What stands against running the guest on `host`. `promised` bytes of the host's memory are spoken for by
/// guests that it does not show yet; `returned` bytes are used by a guest that the host still shows and that has
/// left it.
pub fn fits(
    spec: &VirtualMachineSpec,
    host: &VirtualMachineHost,
    promised: u64,
    returned: u64,
) -> Result<(), Misfit> {
    ready(host).map_err(Misfit::NotReady)?;
    let Some(status) = &host.status else {
        return Err(Misfit::NotReady("its agent has not reported yet".into()));
    };
    // One hypervisor has to have both.
    if !status
        .hypervisors
        .iter()
        .any(|h| h.machine_types.contains(&spec.machine.type_))
    {
        return Err(Misfit::MachineTypeMissing);
    }
    if !status
        .hypervisors
        .iter()
        .any(|h| h.machine_types.contains(&spec.machine.type_) && h.cpu_models.contains(&spec.cpu.model))
    {
        return Err(Misfit::CpuModelMissing);
    }
    if let Some(pool) = pool_files(spec)
        .map(|f| &f.pool)
        .find(|pool| !status.pools.iter().any(|p| p.name == **pool))
    {
        return Err(Misfit::PoolMissing(pool.clone()));
    }
    let needed = memory_bytes(&spec.memory).unwrap_or(u64::MAX);
    let available = available_memory(host)
        .saturating_add(returned)
        .saturating_sub(promised);
    if available < needed {
        return Err(Misfit::InsufficientMemory { needed, available });
    }
    Ok(())
}

/// The files that the guest needs from its host's pools.
pub fn pool_files(spec: &VirtualMachineSpec) -> impl Iterator<Item = &PoolFile> {
    let kernel = spec.boot.kernel.as_ref();
    kernel
        .map(|k| &k.image)
        .into_iter()
        .chain(kernel.and_then(|k| k.initramfs.as_ref()))
        .chain(spec.disks.iter().filter_map(|disk| disk.file.as_ref()))
}

/// Bytes of memory that the host has left for guests, by its own report.
pub fn available_memory(host: &VirtualMachineHost) -> u64 {
    let available = host.status.as_ref().and_then(|status| status.available.as_ref());
    // A host counts in whole MiB, without the bound that users' amounts have.
    available
        .and_then(|resources| resources.memory.strip_suffix("Mi")?.parse::<u64>().ok())
        .map_or(0, |mebibytes| mebibytes.saturating_mul(1 << 20))
}

/// The host for a guest that names none: of those that fit, the one with the most memory left, then with the
/// fewest guests, then the first by name. If none fits, why not, host by host.
pub fn place<'a>(
    spec: &VirtualMachineSpec,
    hosts: impl IntoIterator<Item = &'a VirtualMachineHost>,
    promised: &BTreeMap<String, u64>,
) -> Result<String, Vec<(String, Misfit)>> {
    let mut misfits = Vec::new();
    let mut best: Option<(u64, i64, String)> = None;
    for host in hosts {
        let name = host.name_any();
        let spoken_for = promised.get(&name).copied().unwrap_or(0);
        match fits(spec, host, spoken_for, 0) {
            Err(misfit) => misfits.push((name, misfit)),
            Ok(()) => {
                let left = available_memory(host).saturating_sub(spoken_for);
                let guests = host.status.as_ref().map_or(0, |status| status.guest_count);
                let better = best.as_ref().is_none_or(|(best_left, best_guests, best_name)| {
                    (std::cmp::Reverse(left), guests, &name)
                        < (std::cmp::Reverse(*best_left), *best_guests, best_name)
                });
                if better {
                    best = Some((left, guests, name));
                }
            }
        }
    }
    best.map(|(_, _, name)| name).ok_or(misfits)
}

impl std::fmt::Display for Misfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotReady(words) => write!(f, "not ready ({words})"),
            Self::MachineTypeMissing => f.write_str("lacks the machine type"),
            Self::CpuModelMissing => f.write_str("lacks the CPU model"),
            Self::InsufficientMemory { needed, available } => {
                write!(
                    f,
                    "has {} MiB of the {} MiB of memory needed",
                    available >> 20,
                    needed >> 20
                )
            }
            Self::PoolMissing(pool) => write!(f, "lacks the pool {pool}"),
        }
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
    use super::*;
    use crate::samples::{host, spec};

    fn with(change: impl FnOnce(&mut godwit_crds::VirtualMachineHostStatus)) -> VirtualMachineHost {
        let mut host = host("a");
        change(host.status.as_mut().unwrap());
        host
    }

    #[test]
    fn each_need_is_named() {
        assert_eq!(fits(&spec(), &host("a"), 0, 0), Ok(()));
        let not_ready = with(|s| s.conditions[0].status = ConditionStatus::Unknown);
        assert!(matches!(
            fits(&spec(), &not_ready, 0, 0),
            Err(Misfit::NotReady(_))
        ));
        let bare = VirtualMachineHost {
            status: None,
            ..host("a")
        };
        assert!(matches!(fits(&spec(), &bare, 0, 0), Err(Misfit::NotReady(_))));
        let no_type = with(|s| s.hypervisors[0].machine_types.clear());
        assert_eq!(fits(&spec(), &no_type, 0, 0), Err(Misfit::MachineTypeMissing));
        let no_model = with(|s| s.hypervisors[0].cpu_models.clear());
        assert_eq!(fits(&spec(), &no_model, 0, 0), Err(Misfit::CpuModelMissing));
        let no_pool = with(|s| s.pools.clear());
        assert_eq!(
            fits(&spec(), &no_pool, 0, 0),
            Err(Misfit::PoolMissing("default".into()))
        );
    }

    #[test]
    fn memory_is_met_to_the_byte() {
        let exact = with(|s| s.available.as_mut().unwrap().memory = "512Mi".into());
        assert_eq!(fits(&spec(), &exact, 0, 0), Ok(()));
        assert!(matches!(
            fits(&spec(), &exact, 1, 0),
            Err(Misfit::InsufficientMemory { .. })
        ));
        assert_eq!(fits(&spec(), &exact, 1, 1), Ok(()));
        let less = with(|s| s.available.as_mut().unwrap().memory = "511Mi".into());
        assert_eq!(
            fits(&spec(), &less, 0, 0),
            Err(Misfit::InsufficientMemory {
                needed: 512 << 20,
                available: 511 << 20
            })
        );
        let unknown = with(|s| s.available = None);
        assert!(matches!(
            fits(&spec(), &unknown, 0, 0),
            Err(Misfit::InsufficientMemory { .. })
        ));
    }

    #[test]
    fn the_least_loaded_host_is_taken() {
        let full = with(|s| s.available.as_mut().unwrap().memory = "600Mi".into());
        let roomy = host("b");
        assert_eq!(place(&spec(), [&full, &roomy], &BTreeMap::new()), Ok("b".into()));
        let promised = BTreeMap::from([("b".to_owned(), 4096 << 20)]);
        assert_eq!(place(&spec(), [&full, &roomy], &promised), Ok("a".into()));
        assert_eq!(
            place(&spec(), [&host("d"), &host("c")], &BTreeMap::new()),
            Ok("c".into())
        );
        let mut busy = host("c");
        busy.status.as_mut().unwrap().guest_count = 1;
        assert_eq!(
            place(&spec(), [&busy, &host("d")], &BTreeMap::new()),
            Ok("d".into())
        );
    }

    #[test]
    fn where_none_fits_each_host_is_accounted_for() {
        let no_type = with(|s| s.hypervisors[0].machine_types.clear());
        assert_eq!(
            place(&spec(), [&no_type], &BTreeMap::new()),
            Err(vec![("a".to_owned(), Misfit::MachineTypeMissing)])
        );
        assert_eq!(place(&spec(), [], &BTreeMap::new()), Err(vec![]));
    }
}
