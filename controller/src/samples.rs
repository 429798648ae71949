#![allow(clippy::unwrap_used, reason = "only tests use it")]
//! Objects for unit tests: a host on which everything fits, and a small guest.

use godwit_crds::host::{
    HostResources, HypervisorStatus, Pool, VirtualMachineHostSpec, VirtualMachineHostStatus,
};
use godwit_crds::virtual_machine::{
    Boot, Cpu, KernelBoot, Machine, Persistence, PoolFile, VirtualMachineSpec,
};
use godwit_crds::{Condition, ConditionStatus, VirtualMachineHost};

/// A Ready host with 4 GiB left.
pub fn host(name: &str) -> VirtualMachineHost {
    let mut host = VirtualMachineHost::new(
        name,
        VirtualMachineHostSpec {
            endpoint: "192.0.2.1:16514".into(),
            migration_addresses: vec!["192.0.2.1".into()],
        },
    );
    let memory = || {
        Some(HostResources {
            cpus: 4,
            memory: "4096Mi".into(),
        })
    };
    host.status = Some(VirtualMachineHostStatus {
        hypervisors: vec![HypervisorStatus {
            name: "qemu".into(),
            version: "10.0.2".into(),
            accelerator: "tcg".into(),
            machine_types: vec!["pc-q35-10.0".into()],
            cpu_models: vec!["qemu64".into()],
        }],
        capacity: memory(),
        available: memory(),
        pools: vec![Pool {
            name: "default".into(),
            id: "shared".into(),
        }],
        conditions: vec![Condition {
            type_: "Ready".into(),
            status: ConditionStatus::True,
            reason: "AgentReady".into(),
            message: String::new(),
            last_transition_time: "2026-01-01T00:00:00.000000Z".into(),
            observed_generation: 1,
        }],
        ..VirtualMachineHostStatus::default()
    });
    host
}

/// A guest with 512 MiB that boots a kernel from the pool `default`.
pub fn spec() -> VirtualMachineSpec {
    VirtualMachineSpec {
        host: None,
        persistence: Persistence::Persistent,
        machine: Machine {
            type_: "pc-q35-10.0".into(),
        },
        cpu: Cpu {
            count: 1,
            model: "qemu64".into(),
        },
        memory: "512Mi".into(),
        boot: Boot {
            kernel: Some(KernelBoot {
                image: PoolFile {
                    pool: "default".into(),
                    file: "vmlinuz".into(),
                },
                initramfs: None,
                command_line: String::new(),
            }),
            firmware: None,
        },
        disks: Vec::new(),
        interfaces: Vec::new(),
        serial_console: true,
        random_source: true,
    }
}

/// A VirtualMachine that its host reports as running is made of this and a host's list.
pub fn guest(name: &str) -> godwit_crds::VirtualMachine {
    let mut guest = godwit_crds::VirtualMachine::new(name, spec());
    guest.metadata.namespace = Some("default".into());
    guest.metadata.uid = Some(format!("uid-{name}"));
    guest.metadata.generation = Some(1);
    guest
}

/// A migration that was created `second` seconds after the epoch.
pub fn migration(name: &str, guest: &str, to: &str, second: i64) -> godwit_crds::VirtualMachineMigration {
    use godwit_crds::migration::{
        ControlFlow, Destination, Handoff, Security, SecurityRequirement, Transport, Tuning,
    };
    let mut migration = godwit_crds::VirtualMachineMigration::new(
        name,
        godwit_crds::VirtualMachineMigrationSpec {
            virtual_machine: guest.into(),
            destination: Destination { host: to.into() },
            control_flow: ControlFlow::ManagedDirect,
            transport: Transport::Native,
            security: Security {
                require: SecurityRequirement::None,
            },
            tuning: Tuning::default(),
            handoff: Handoff::Default,
            cancel: false,
        },
    );
    migration.metadata.namespace = Some("default".into());
    migration.metadata.uid = Some(format!("uid-{name}"));
    migration.metadata.generation = Some(1);
    migration.metadata.creation_timestamp = jiff::Timestamp::from_second(second)
        .ok()
        .map(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time);
    migration
}
