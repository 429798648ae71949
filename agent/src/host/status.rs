//! The host's status, made from what is known: a function without I/O.

use godwit_crds::condition::{Condition, ConditionStatus, set_condition};
use godwit_crds::host::{HostGuest, HostResources, HypervisorStatus, Pool};
use godwit_crds::{VirtualMachineHostSpec, VirtualMachineHostStatus};
use jiff::Timestamp;

use super::health::Seen;
use super::machine::Machine;
use crate::guests::{GuestView, Role};
use crate::kernel_tls::{Encryptor, KernelTls, encryptor};
use crate::migration::Unresolved;

/// The agent answers, its hypervisor works and it can take migrations.
pub const AGENT_READY: &str = "AgentReady";
/// No hypervisor works here.
pub const HYPERVISOR_BROKEN: &str = "HypervisorBroken";
/// The state directory takes no writes.
pub const STATE_UNWRITABLE: &str = "StateUnwritable";
/// The agent's certificate has run out.
pub const CERTIFICATE_EXPIRED: &str = "CertificateExpired";
/// The agent is being stopped.
pub const SHUTTING_DOWN: &str = "ShuttingDown";

/// The condition that says whether every migration of which a journal speaks could be taken up.
pub const MIGRATIONS_RESOLVED: &str = "MigrationsResolved";
/// Each could.
pub const ALL_RESOLVED: &str = "AllResolved";
/// A newer version wrote a journal.
pub const JOURNAL_NEWER: &str = "JournalNewer";
/// A journal cannot be understood.
pub const JOURNAL_DAMAGED: &str = "JournalDamaged";
/// What a migration needs does not answer; it is asked again.
pub const MIGRATION_WAITS: &str = "MigrationWaits";

/// The condition that says whether guests here are walled off as they should be.
pub const GUESTS_ISOLATED: &str = "GuestsIsolated";
/// They are.
pub const ALL_WALLS_STAND: &str = "AllWallsStand";
/// Something on this host does not allow a wall.
pub const WALLS_MISSING: &str = "WallsMissing";

/// The condition that says whether what hypervisors send into tunnels has room enough.
pub const SEND_BUFFERS_FIT: &str = "SendBuffersFit";
/// It has.
pub const BUFFERS_LARGE: &str = "BuffersLarge";
/// A setting of this host makes tunnelled streams slower than they could be.
pub const BUFFERS_SMALL: &str = "BuffersSmall";

/// The condition that says whether the kernel could encrypt a stream itself.
pub const KERNEL_TLS: &str = "KernelTls";
/// It could.
pub const KERNEL_TLS_PRESENT: &str = "KernelTlsPresent";
/// It could not.
pub const KERNEL_TLS_MISSING: &str = "KernelTlsMissing";
/// It was not found out.
pub const KERNEL_TLS_UNKNOWN: &str = "KernelTlsUnknown";

const MEBIBYTE: u64 = 1 << 20;
/// Bounds of the custom resource.
const MACHINE_TYPES: usize = 256;
const CPU_MODELS: usize = 512;
const WORD: usize = 64;
const GUESTS: usize = 1024;
const MESSAGE: usize = 2048;

/// Everything that the status is made from.
pub struct Facts {
    /// The kernel's boot id.
    pub boot_id: String,
    /// What the host has; its memory less what guests do not get.
    pub machine: Machine,
    /// Virtual CPUs promised to guests.
    pub cpus_in_use: u64,
    /// Memory promised to guests, in bytes.
    pub memory_in_use: u64,
    /// The hypervisor.
    pub hypervisor: Seen,
    /// What was wrong when the state directory was last written to.
    pub state_problem: Option<String>,
    /// When the agent's certificate runs out.
    pub certificate_expires: Timestamp,
    /// Migrations that could not be taken up.
    pub unresolved: Vec<Unresolved>,
    /// What keeps guests here from being walled off as they should be.
    pub walls_missing: Vec<String>,
    /// Which send buffers of this host are too small for tunnels, and what to set.
    pub buffers_small: Vec<String>,
    /// What the kernel said about TLS when the agent began.
    pub kernel_tls: KernelTls,
    /// The agent is being stopped.
    pub stopping: bool,
    /// The pools that can be used.
    pub pools: Vec<Pool>,
    /// The guests.
    pub guests: Vec<GuestView>,
}

/// The status that tells these facts. What others wrote into `observed` (conditions of other types) is kept, and a
/// time of transition moves only with its status.
pub fn status(
    facts: &Facts,
    observed: &VirtualMachineHostStatus,
    generation: Option<i64>,
    now: Timestamp,
) -> VirtualMachineHostStatus {
    let mut guests: Vec<_> = facts.guests.iter().filter_map(guest).collect();
    guests.sort_by(|a, b| a.uid.cmp(&b.uid));
    let guest_count = i64::try_from(guests.len()).unwrap_or(i64::MAX);
    guests.truncate(GUESTS);
    let mut conditions = observed.conditions.clone();
    let generation_seen = generation.unwrap_or_default();
    set_condition(&mut conditions, ready(facts, generation_seen, now));
    set_condition(
        &mut conditions,
        migrations_resolved(&facts.unresolved, generation_seen, now),
    );
    set_condition(
        &mut conditions,
        kernel_tls(&facts.kernel_tls, generation_seen, now),
    );
    // Of a hypervisor that does not run it is not known what it can be given.
    if facts.hypervisor.is_ok() {
        set_condition(
            &mut conditions,
            guests_isolated(&facts.walls_missing, generation_seen, now),
        );
    }
    set_condition(
        &mut conditions,
        send_buffers_fit(&facts.buffers_small, generation_seen, now),
    );
    VirtualMachineHostStatus {
        agent_version: Some(env!("CARGO_PKG_VERSION").into()),
        boot_id: Some(facts.boot_id.clone()),
        hypervisors: facts
            .hypervisor
            .iter()
            .map(|facts| HypervisorStatus {
                name: bounded(&facts.name, 32),
                version: bounded(&facts.version, WORD),
                accelerator: bounded(&facts.accelerator, 32),
                machine_types: words(&facts.machine_types, MACHINE_TYPES),
                cpu_models: words(&facts.cpu_models, CPU_MODELS),
            })
            .collect(),
        capacity: Some(resources(facts.machine.cpus, facts.machine.memory)),
        available: Some(resources(
            facts.machine.cpus.saturating_sub(facts.cpus_in_use),
            facts.machine.memory.saturating_sub(facts.memory_in_use),
        )),
        pools: facts.pools.clone(),
        guest_count,
        guests,
        observed_generation: generation,
        conditions,
    }
}

/// The conditions that this agent writes.
const OWN: [&str; 5] = [
    "Ready",
    MIGRATIONS_RESOLVED,
    KERNEL_TLS,
    GUESTS_ISOLATED,
    SEND_BUFFERS_FIT,
];

/// The part of a status that is this agent's to write.
pub fn own_part(status: &VirtualMachineHostStatus) -> VirtualMachineHostStatus {
    let mut own = status.clone();
    own.conditions
        .retain(|condition| OWN.contains(&condition.type_.as_str()));
    own
}

/// The same status with its lists in the order in which this agent writes them: their order means nothing.
pub fn in_order(status: &VirtualMachineHostStatus) -> VirtualMachineHostStatus {
    let mut sorted = status.clone();
    sorted.guests.sort_by(|a, b| a.uid.cmp(&b.uid));
    sorted.pools.sort_by(|a, b| a.name.cmp(&b.name));
    sorted
}

/// Whether a host object says the same as this configuration.
pub fn same_spec(observed: &VirtualMachineHostSpec, wanted: &VirtualMachineHostSpec) -> bool {
    observed.endpoint == wanted.endpoint && observed.migration_addresses == wanted.migration_addresses
}

/// A condition of the host from its status, reason and message.
fn judged(
    what: &str,
    (status, reason, message): (ConditionStatus, &str, &str),
    generation: i64,
    now: Timestamp,
) -> Condition {
    Condition {
        type_: what.into(),
        status,
        reason: reason.into(),
        message: bounded(message, MESSAGE),
        last_transition_time: now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        observed_generation: generation,
    }
}

fn ready(facts: &Facts, generation: i64, now: Timestamp) -> Condition {
    let (status, reason, message) = if facts.stopping {
        (
            ConditionStatus::False,
            SHUTTING_DOWN,
            "The agent is being stopped; its guests go on".into(),
        )
    } else if facts.certificate_expires <= now {
        (
            ConditionStatus::False,
            CERTIFICATE_EXPIRED,
            format!(
                "The agent's certificate ran out on {}: nobody connects to it any more. Renew it and start the agent anew",
                facts.certificate_expires.strftime("%Y-%m-%dT%H:%M:%SZ")
            ),
        )
    } else if let Some(problem) = &facts.state_problem {
        (
            ConditionStatus::False,
            STATE_UNWRITABLE,
            format!("Free space in the agent's state directory, or repair it: {problem}"),
        )
    } else if let Err(why) = &facts.hypervisor {
        (
            ConditionStatus::False,
            HYPERVISOR_BROKEN,
            format!("Install or repair the hypervisor; the agent tries again by itself: {why}"),
        )
    } else {
        (
            ConditionStatus::True,
            AGENT_READY,
            "The agent answers and its hypervisor works".into(),
        )
    };
    judged("Ready", (status, reason, &message), generation, now)
}

/// Whether every migration of which a journal speaks could be taken up, and if not, which guests are left alone.
fn migrations_resolved(unresolved: &[Unresolved], generation: i64, now: Timestamp) -> Condition {
    let mut unresolved: Vec<_> = unresolved.iter().collect();
    unresolved.sort_by(|a, b| a.migration.cmp(&b.migration));
    // The word for what needs a person comes first.
    let reason = [JOURNAL_NEWER, JOURNAL_DAMAGED]
        .into_iter()
        .find(|word| unresolved.iter().any(|one| one.reason == *word))
        .unwrap_or(MIGRATION_WAITS);
    let (status, reason, message) = if unresolved.is_empty() {
        let words = "Every migration that has not ended here could be taken up";
        (ConditionStatus::True, ALL_RESOLVED, words.to_owned())
    } else {
        let each: Vec<_> = unresolved
            .iter()
            .map(|one| {
                let guest = one.guest.as_deref().map_or_else(
                    || "its guest is not known".to_owned(),
                    |guest| format!("guest {guest} is left alone"),
                );
                format!(
                    "migration {} ({guest}): {}: {}",
                    one.migration, one.reason, one.message
                )
            })
            .collect();
        (ConditionStatus::False, reason, each.join("; "))
    };
    judged(MIGRATIONS_RESOLVED, (status, reason, &message), generation, now)
}

/// Whether guests here are walled off from the host and from each other as they should be, and if not, in what.
fn guests_isolated(missing: &[String], generation: i64, now: Timestamp) -> Condition {
    let (status, reason, message) = if missing.is_empty() {
        let words = "Each guest has a user, a sandbox and bounds of its own";
        (ConditionStatus::True, ALL_WALLS_STAND, words.to_owned())
    } else {
        (ConditionStatus::False, WALLS_MISSING, missing.join("; "))
    };
    judged(GUESTS_ISOLATED, (status, reason, &message), generation, now)
}

/// Whether what hypervisors send into tunnels has room enough, and if not, what to set.
fn send_buffers_fit(small: &[String], generation: i64, now: Timestamp) -> Condition {
    let (status, reason, message) = if small.is_empty() {
        let words = "Tunnelled streams have send buffers of 512 KiB";
        (ConditionStatus::True, BUFFERS_LARGE, words.to_owned())
    } else {
        (ConditionStatus::False, BUFFERS_SMALL, small.join("; "))
    };
    judged(SEND_BUFFERS_FIT, (status, reason, &message), generation, now)
}

/// Whether the kernel could encrypt a stream itself, and who does.
fn kernel_tls(found: &KernelTls, generation: i64, now: Timestamp) -> Condition {
    let (status, reason, what) = match found {
        KernelTls::Present => (
            ConditionStatus::True,
            KERNEL_TLS_PRESENT,
            "This kernel does TLS".to_owned(),
        ),
        KernelTls::Missing { why } => (
            ConditionStatus::False,
            KERNEL_TLS_MISSING,
            format!("This kernel does no TLS: {why}"),
        ),
        KernelTls::Unknown { why } => (
            ConditionStatus::Unknown,
            KERNEL_TLS_UNKNOWN,
            format!("Whether this kernel does TLS is not known: {why}"),
        ),
    };
    let who = match encryptor(found) {
        Encryptor::Hypervisor => "Streams from hypervisor to hypervisor are encrypted by the hypervisors",
    };
    judged(
        KERNEL_TLS,
        (status, reason, &format!("{what}. {who}")),
        generation,
        now,
    )
}

/// A guest as the host reports it. One that is still arriving is its source's to report.
fn guest(view: &GuestView) -> Option<HostGuest> {
    match view.role {
        Role::Held | Role::Leaving { .. } => Some(HostGuest {
            uid: view.identity.uid.clone(),
            namespace: view.identity.namespace.clone(),
            name: view.identity.name.clone(),
            state: view.state,
            epoch: i64::try_from(view.epoch).unwrap_or(i64::MAX),
            since: view
                .since_micros
                .and_then(|micros| Timestamp::from_microsecond(micros).ok())
                .map(|since| since.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()),
        }),
        Role::Arriving { .. } => None,
    }
}

fn resources(cpus: u64, memory: u64) -> HostResources {
    HostResources {
        cpus: i64::try_from(cpus).unwrap_or(i64::MAX),
        memory: format!("{}Mi", memory / MEBIBYTE),
    }
}

fn words(all: &[String], most: usize) -> Vec<String> {
    all.iter()
        .filter(|word| !word.is_empty() && word.len() <= WORD)
        .take(most)
        .cloned()
        .collect()
}

fn bounded(text: &str, most: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(most).collect()
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use std::sync::Arc;

    use godwit_crds::virtual_machine::GuestState;
    use godwit_handover::Gates;

    use super::*;
    use crate::guests::GuestIdentity;
    use crate::hypervisor::{HypervisorFacts, StreamAbilities};

    fn facts() -> Facts {
        Facts {
            boot_id: "boot".into(),
            machine: Machine {
                cpus: 2,
                memory: 4096 << 20,
            },
            cpus_in_use: 3,
            memory_in_use: 1024 << 20,
            hypervisor: Ok(Arc::new(HypervisorFacts {
                name: "qemu".into(),
                version: "10.0.2".into(),
                accelerator: "tcg".into(),
                machine_types: vec!["pc-q35-10.0".into()],
                cpu_models: vec!["qemu64".into(), "x".repeat(65)],
                gates: Gates {
                    seal: true,
                    hold_before_switchover: true,
                    keep_destination_paused: true,
                    inactivate_disks: true,
                },
                streams: StreamAbilities {
                    encrypts: true,
                    connections: 1,
                    several_encrypted: false,
                },
                walls_missing: vec![],
            })),
            state_problem: None,
            certificate_expires: at(3600),
            unresolved: vec![],
            walls_missing: vec![],
            buffers_small: vec![],
            kernel_tls: KernelTls::Present,
            stopping: false,
            pools: vec![],
            guests: vec![
                view("b", Role::Held),
                view(
                    "a",
                    Role::Leaving {
                        migration: "m".into(),
                    },
                ),
                view(
                    "c",
                    Role::Arriving {
                        migration: "m".into(),
                    },
                ),
            ],
        }
    }

    fn view(uid: &str, role: Role) -> GuestView {
        GuestView {
            identity: GuestIdentity {
                uid: uid.into(),
                namespace: "default".into(),
                name: uid.into(),
            },
            epoch: 1,
            state: GuestState::Running,
            since_micros: Some(1_700_000_000_123_456),
            role,
            note: None,
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    #[test]
    fn at_rest_nothing_changes() {
        let first = status(&facts(), &VirtualMachineHostStatus::default(), Some(1), at(0));
        assert_eq!(status(&facts(), &first, Some(1), at(60)), first);
        let mut shuffled = first.clone();
        shuffled.guests.reverse();
        assert_eq!(in_order(&shuffled), first);
    }

    #[test]
    fn it_tells_what_is_so() {
        let status = status(&facts(), &VirtualMachineHostStatus::default(), Some(1), at(0));
        assert_eq!(status.capacity.unwrap().memory, "4096Mi");
        let available = status.available.unwrap();
        assert_eq!((available.cpus, available.memory.as_str()), (0, "3072Mi"));
        assert_eq!(
            status.guest_count, 2,
            "an arriving guest is its source's to report"
        );
        assert_eq!(
            status.guests.iter().map(|g| g.uid.as_str()).collect::<Vec<_>>(),
            ["a", "b"]
        );
        assert_eq!(
            status.guests[0].since.as_deref(),
            Some("2023-11-14T22:13:20.123456Z")
        );
        assert_eq!(status.hypervisors[0].cpu_models, ["qemu64"]);
        assert_eq!(
            (status.conditions[0].reason.as_str(), status.conditions[0].status),
            (AGENT_READY, ConditionStatus::True)
        );
    }

    #[test]
    fn what_others_wrote_is_kept_and_not_taken_for_ours() {
        let mut observed = VirtualMachineHostStatus::default();
        let other = Condition {
            type_: "Drained".into(),
            ..ready(&facts(), 1, at(0))
        };
        observed.conditions.push(other.clone());
        let new = status(&facts(), &observed, Some(1), at(0));
        assert!(new.conditions.contains(&other));
        let own: Vec<_> = own_part(&new)
            .conditions
            .into_iter()
            .map(|condition| condition.type_)
            .collect();
        assert_eq!(own, OWN);
    }

    #[test]
    fn each_fault_has_its_reason_and_each_reason_is_in_the_table() {
        let table = include_str!("../../../docs/conditions.md");
        let reason = |change: &dyn Fn(&mut Facts)| {
            let mut facts = facts();
            change(&mut facts);
            ready(&facts, 1, at(0)).reason
        };
        let reasons = [
            reason(&|_| {}),
            reason(&|f| f.hypervisor = Err("gone".into())),
            reason(&|f| f.state_problem = Some("full".into())),
            reason(&|f| f.stopping = true),
            reason(&|f| f.certificate_expires = at(0)),
        ];
        assert_eq!(
            reasons,
            [
                AGENT_READY,
                HYPERVISOR_BROKEN,
                STATE_UNWRITABLE,
                SHUTTING_DOWN,
                CERTIFICATE_EXPIRED
            ]
        );
        let hosts = table.split("## VirtualMachineHost").nth(1).unwrap();
        let ours = [
            ALL_RESOLVED,
            JOURNAL_NEWER,
            JOURNAL_DAMAGED,
            MIGRATION_WAITS,
            ALL_WALLS_STAND,
            WALLS_MISSING,
            BUFFERS_LARGE,
            BUFFERS_SMALL,
            KERNEL_TLS_PRESENT,
            KERNEL_TLS_MISSING,
            KERNEL_TLS_UNKNOWN,
        ]
        .map(str::to_owned);
        for reason in reasons.into_iter().chain(ours) {
            assert!(hosts.contains(&format!("| `{reason}` |")), "{reason}");
        }
    }

    #[test]
    fn a_host_whose_buffers_slow_tunnels_down_says_what_to_set() {
        let told = |small: &[&str]| {
            let facts = Facts {
                buffers_small: small.iter().map(|each| (*each).to_owned()).collect(),
                ..facts()
            };
            let status = status(&facts, &VirtualMachineHostStatus::default(), Some(1), at(0));
            let mut found = status.conditions.into_iter();
            let found = found.find(|c| c.type_ == SEND_BUFFERS_FIT).unwrap();
            (found.status, found.reason, found.message)
        };
        let (status, reason, _) = told(&[]);
        assert_eq!((status, &*reason), (ConditionStatus::True, BUFFERS_LARGE));
        let (status, reason, message) = told(&["set one", "set another"]);
        assert_eq!((status, &*reason), (ConditionStatus::False, BUFFERS_SMALL));
        assert_eq!(message, "set one; set another");
    }

    #[test]
    fn r7_a_host_that_cannot_wall_its_guests_off_says_so() {
        let told = |change: &dyn Fn(&mut Facts)| {
            let mut facts = facts();
            change(&mut facts);
            let status = status(&facts, &VirtualMachineHostStatus::default(), Some(1), at(0));
            let found = status.conditions.into_iter().find(|c| c.type_ == GUESTS_ISOLATED);
            found.map(|c| (c.status, c.reason, c.message))
        };
        assert_eq!(
            told(&|_| {}).map(|told| (told.0, told.1)),
            Some((ConditionStatus::True, ALL_WALLS_STAND.into()))
        );
        let missing = |f: &mut Facts| f.walls_missing = vec!["not root".into(), "no bound".into()];
        assert_eq!(
            told(&missing),
            Some((
                ConditionStatus::False,
                WALLS_MISSING.into(),
                "not root; no bound".into()
            ))
        );
        assert_eq!(told(&|f| f.hypervisor = Err("gone".into())), None);
    }

    #[test]
    fn what_the_kernel_can_encrypt_is_told_and_who_does() {
        let told = |found| {
            let told = kernel_tls(&found, 1, at(0));
            (told.status, told.reason, told.message)
        };
        let who = "Streams from hypervisor to hypervisor are encrypted by the hypervisors";
        assert_eq!(
            told(KernelTls::Present),
            (
                ConditionStatus::True,
                KERNEL_TLS_PRESENT.into(),
                format!("This kernel does TLS. {who}")
            )
        );
        assert_eq!(
            told(KernelTls::Missing { why: "no module" }),
            (
                ConditionStatus::False,
                KERNEL_TLS_MISSING.into(),
                format!("This kernel does no TLS: no module. {who}")
            )
        );
        let unknown = KernelTls::Unknown { why: "full".into() };
        assert_eq!(told(unknown).0, ConditionStatus::Unknown);
    }

    #[test]
    fn migrations_that_are_left_alone_are_named_with_their_guests() {
        let left = |migration: &str, reason: &str, guest: Option<&str>| Unresolved {
            migration: migration.into(),
            guest: guest.map(Into::into),
            reason: reason.into(),
            message: "why".into(),
        };
        let told = |unresolved: &[Unresolved]| migrations_resolved(unresolved, 1, at(0));
        assert_eq!(
            (told(&[]).status, told(&[]).reason.as_str()),
            (ConditionStatus::True, ALL_RESOLVED)
        );
        let waits = left("m1", "HypervisorUnresponsive", Some("g1"));
        let newer = left("m2", JOURNAL_NEWER, Some("g2"));
        let damaged = left("m3", JOURNAL_DAMAGED, None);
        assert_eq!(told(std::slice::from_ref(&waits)).reason, MIGRATION_WAITS);
        assert_eq!(told(&[waits.clone(), damaged.clone()]).reason, JOURNAL_DAMAGED);
        let all = told(&[damaged.clone(), newer.clone(), waits.clone()]);
        assert_eq!(
            (all.status, all.reason.as_str()),
            (ConditionStatus::False, JOURNAL_NEWER)
        );
        assert_eq!(
            all.message,
            "migration m1 (guest g1 is left alone): HypervisorUnresponsive: why; \
             migration m2 (guest g2 is left alone): JournalNewer: why; \
             migration m3 (its guest is not known): JournalDamaged: why"
        );
        assert_eq!(
            told(&[waits, newer, damaged]),
            all,
            "their order means nothing: at rest nothing is written"
        );
    }

    #[test]
    fn words_of_the_hypervisor_are_bounded() {
        let mut broken = facts();
        broken.hypervisor = Err("e\n".repeat(5000));
        let message = ready(&broken, 1, at(0)).message;
        assert!(message.chars().count() <= MESSAGE && !message.contains('\n'));
    }
}
