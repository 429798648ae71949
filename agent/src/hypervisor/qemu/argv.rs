//! From a guest's definition to QEMU's arguments. Pure.
//!
//! Whatever takes JSON is given JSON. The rest is `key=value` text, in which a comma would begin another key: only
//! strings that were checked here get in. Both ends of a migration must come to the same machine, so every
//! device has its id and its address.

use godwit_crds::VirtualMachineSpec;
use godwit_crds::quantity::memory_bytes;
use godwit_crds::virtual_machine::{Disk, DiskCache, DiskFormat, FirmwareKind};
use serde_json::{Value, json};

use super::Accelerator;
use crate::hypervisor::Start;

/// What stands before a disk's name in its ids.
pub const DISK_PREFIX: &str = "disk-";

/// The console's socket in the guest's directory.
pub const CONSOLE_SOCKET: &str = "console.sock";

/// The console's output in the guest's directory.
pub const CONSOLE_LOG: &str = "console.log";

const MAX_INTERFACES: usize = 8;
const MAX_DISKS: usize = 16;
const RANDOM_SLOT: usize = 0x02;
const FIRST_INTERFACE_SLOT: usize = 0x03;
const FIRST_DISK_SLOT: usize = FIRST_INTERFACE_SLOT + MAX_INTERFACES;

// The last slot of a q35's root bus is the chipset's.
const _: () = assert!(FIRST_DISK_SLOT + MAX_DISKS <= 0x1f);

/// A guest's definition and the descriptors that its process inherits.
pub struct Plan<'a> {
    /// The VirtualMachine's UID.
    pub uid: uuid::Uuid,
    /// The name for people.
    pub name: &'a str,
    /// The definition.
    pub definition: &'a VirtualMachineSpec,
    /// The guest's directory.
    pub directory: &'a str,
    /// How it begins.
    pub start: Start,
    /// What runs its instructions.
    pub accelerator: Accelerator,
    /// A listening socket for the monitor.
    pub monitor: i32,
    /// `/dev/kvm`, opened, for [`Accelerator::Kvm`].
    pub kvm: Option<i32>,
    /// The kernel.
    pub kernel: Option<i32>,
    /// The initial RAM file system.
    pub initramfs: Option<i32>,
    /// One descriptor for each disk, and whether it is a block device.
    pub disks: &'a [PlannedDisk],
    /// One opened tap device for each interface.
    pub taps: &'a [i32],
}

/// A disk's descriptor.
#[derive(Clone, Copy, Debug)]
pub struct PlannedDisk {
    /// Opened as the definition says, with `O_DIRECT` where its cache mode wants that ([`direct`]).
    pub file: i32,
    /// Whether it is a block device.
    pub block_device: bool,
}

/// Whether a cache mode passes the host's page cache by. QEMU 10 takes a passed descriptor only if its
/// `O_DIRECT` is as this says.
pub fn direct(cache: DiskCache) -> bool {
    match cache {
        DiskCache::None | DiskCache::DirectSync => true,
        DiskCache::Writeback | DiskCache::Writethrough => false,
    }
}

/// Whether the guest is told that the disk has a cache that it must flush.
fn write_cache(cache: DiskCache) -> bool {
    match cache {
        DiskCache::None | DiskCache::Writeback => true,
        DiskCache::Writethrough | DiskCache::DirectSync => false,
    }
}

/// Arguments that keep a QEMU process in its place, for guests and probes alike.
pub fn confinement() -> Vec<String> {
    [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-msg",
        "timestamp=on",
    ]
    .map(String::from)
    .to_vec()
}

/// What makes a monitor of a listening socket that the process inherits.
pub fn monitor(id: &str, socket: i32) -> [String; 4] {
    [
        "-chardev".to_owned(),
        format!("socket,id={id},fd={socket},server=on,wait=off"),
        "-mon".to_owned(),
        format!("chardev={id},mode=control"),
    ]
}

/// The accelerator's arguments. `/dev/kvm` goes in as a descriptor, because the guest's user may not open it.
pub fn accelerator(accelerator: Accelerator, kvm: Option<i32>) -> Vec<String> {
    match (accelerator, kvm) {
        (Accelerator::Tcg, None | Some(_)) => vec!["-accel".into(), "tcg".into()],
        (Accelerator::Kvm, None) => vec!["-accel".into(), "kvm".into()],
        (Accelerator::Kvm, Some(file)) => vec![
            "-add-fd".into(),
            format!("fd={file},set=0"),
            "-accel".into(),
            "kvm,device=/dev/fdset/0".into(),
        ],
    }
}

/// QEMU's arguments for a guest. The error says what in the definition cannot be had.
pub fn arguments(plan: &Plan<'_>) -> Result<Vec<String>, String> {
    let definition = plan.definition;
    let bus = root_bus(&definition.machine.type_)?;
    let memory = memory_bytes(&definition.memory)
        .ok_or_else(|| format!("memory {:?} is not an amount of memory", definition.memory))?;
    let name = word(plan.name, "the name")?;
    let machine = word(&definition.machine.type_, "the machine type")?;
    let model = word(&definition.cpu.model, "the CPU model")?;
    let count = definition.cpu.count;
    let directory = path(plan.directory)?;
    let incoming = plan.start == Start::Incoming;

    let mut argv = Argv {
        words: confinement(),
        bus,
    };
    argv.pair("-name", format!("guest={name},debug-threads=on"));
    argv.pair("-uuid", plan.uid.hyphenated().to_string());
    argv.words.push("-S".into());
    // A guest that powers off, even in the middle of its migration, is kept until somebody has looked at it.
    argv.pair("-action", "reboot=reset,shutdown=pause,panic=pause");
    argv.pair(
        "-machine",
        format!("type={machine},memory-backend=pc.ram,dump-guest-core=off"),
    );
    argv.words.extend(accelerator(plan.accelerator, plan.kvm));
    // `enforce`: rather no guest than one with fewer features than its definition names.
    argv.pair("-cpu", format!("{model},enforce=on"));
    argv.pair(
        "-smp",
        format!("cpus={count},maxcpus={count},sockets=1,cores={count},threads=1"),
    );
    argv.pair("-m", format!("size={}M", memory >> 20));
    argv.json(
        "-object",
        json!({"qom-type": "memory-backend-ram", "id": "pc.ram", "size": memory, "dump": false}),
    );
    argv.pair("-rtc", "base=utc");
    argv.words.extend(monitor("monitor", plan.monitor));

    let firmware = boot(&mut argv, plan)?;
    argv.json("-device", json!({"driver": "pvpanic", "id": "panic"}));
    if definition.serial_console {
        let console = format!(
            "socket,id=console,path={directory}/{CONSOLE_SOCKET},server=on,wait=off,logfile={directory}/{CONSOLE_LOG},logappend=on"
        );
        argv.pair("-chardev", console);
        argv.json(
            "-device",
            json!({"driver": "isa-serial", "id": "serial", "chardev": "console", "index": 0}),
        );
    }
    if definition.random_source {
        argv.json(
            "-object",
            json!({"qom-type": "rng-builtin", "id": "random-source"}),
        );
        argv.device(
            RANDOM_SLOT,
            json!({"driver": "virtio-rng-pci", "id": "random", "rng": "random-source"}),
        );
    }
    interfaces(&mut argv, plan)?;
    disks(&mut argv, plan, firmware)?;
    if incoming {
        argv.pair("-incoming", "defer");
    }
    Ok(argv.words)
}

/// Adds what boots the guest; says whether firmware boots it from its disks.
fn boot(argv: &mut Argv, plan: &Plan<'_>) -> Result<bool, String> {
    argv.pair("-boot", "menu=off,strict=on");
    match (&plan.definition.boot.kernel, &plan.definition.boot.firmware) {
        (Some(boot), None) => {
            let kernel = plan.kernel.ok_or("the kernel was not opened")?;
            argv.pair("-kernel", format!("/proc/self/fd/{kernel}"));
            if boot.initramfs.is_some() != plan.initramfs.is_some() {
                return Err("the initial RAM file system was not opened, or is not in the definition".into());
            }
            if let Some(initramfs) = plan.initramfs {
                argv.pair("-initrd", format!("/proc/self/fd/{initramfs}"));
            }
            if !boot.command_line.is_empty() {
                if !boot
                    .command_line
                    .bytes()
                    .all(|byte| (b' '..=b'~').contains(&byte))
                {
                    return Err(
                        "the kernel's command line has characters that are not printable ASCII".into(),
                    );
                }
                // Taken as it is: QEMU looks for no keys in it.
                argv.pair("-append", boot.command_line.clone());
            }
            Ok(false)
        }
        (None, Some(firmware)) => match firmware.kind {
            FirmwareKind::Bios => Ok(true),
        },
        (None, None) | (Some(_), Some(_)) => {
            Err("exactly one of boot.kernel and boot.firmware is needed".into())
        }
    }
}

fn interfaces(argv: &mut Argv, plan: &Plan<'_>) -> Result<(), String> {
    let interfaces = &plan.definition.interfaces;
    if interfaces.len() != plan.taps.len() || interfaces.len() > MAX_INTERFACES {
        return Err(format!(
            "{} interfaces and {} tap devices (at most {MAX_INTERFACES})",
            interfaces.len(),
            plan.taps.len()
        ));
    }
    for (slot, (interface, tap)) in (FIRST_INTERFACE_SLOT..).zip(interfaces.iter().zip(plan.taps)) {
        let name = word(&interface.name, "an interface's name")?;
        let backend = format!("net-{name}");
        argv.json(
            "-netdev",
            json!({"type": "tap", "id": backend, "fd": tap.to_string()}),
        );
        // No boot ROM: it would be one more part that must be alike at both ends.
        argv.device(
            slot,
            json!({"driver": "virtio-net-pci", "id": format!("nic-{name}"), "netdev": backend, "mac": interface.mac, "romfile": ""}),
        );
    }
    Ok(())
}

fn disks(argv: &mut Argv, plan: &Plan<'_>, firmware: bool) -> Result<(), String> {
    let disks = &plan.definition.disks;
    if disks.len() != plan.disks.len() || disks.len() > MAX_DISKS {
        return Err(format!(
            "{} disks and {} opened files (at most {MAX_DISKS})",
            disks.len(),
            plan.disks.len()
        ));
    }
    for (index, (disk, planned)) in disks.iter().zip(plan.disks).enumerate() {
        let name = word(&disk.name, "a disk's name")?;
        // Set 0 is the accelerator's.
        let set = index + 1;
        argv.pair("-add-fd", format!("fd={},set={set}", planned.file));
        argv.json("-blockdev", block_node(name, disk, *planned, set));
        let mut device = json!({
            "driver": "virtio-blk-pci", "id": format!("{DISK_PREFIX}{name}-device"), "drive": format!("{DISK_PREFIX}{name}"),
            "write-cache": if write_cache(disk.cache) { "on" } else { "off" }, "serial": name,
            // A guest that meets an error stops, so that it can go on when the host's fault is mended.
            "werror": "stop", "rerror": "stop",
        });
        if let (true, Some(device)) = (firmware, device.as_object_mut()) {
            device.insert("bootindex".into(), json!(index + 1));
        }
        argv.device(FIRST_DISK_SLOT + index, device);
    }
    Ok(())
}

fn block_node(name: &str, disk: &Disk, planned: PlannedDisk, set: usize) -> Value {
    let cache = json!({"direct": direct(disk.cache), "no-flush": false});
    let file = json!({
        "driver": if planned.block_device { "host_device" } else { "file" }, "node-name": format!("file-{name}"), "filename": format!("/dev/fdset/{set}"),
        "read-only": disk.read_only, "auto-read-only": false, "locking": "on", "cache": cache, "discard": "unmap",
    });
    let node = format!("{DISK_PREFIX}{name}");
    match disk.format {
        DiskFormat::Raw => {
            json!({"driver": "raw", "node-name": node, "read-only": disk.read_only, "cache": cache, "discard": "unmap", "file": file})
        }
        // An image that names another file as its base, written by whoever filled the pool, must not make QEMU open it.
        DiskFormat::Qcow2 => {
            json!({"driver": "qcow2", "node-name": node, "read-only": disk.read_only, "cache": cache, "discard": "unmap", "backing": null, "file": file})
        }
    }
}

/// The arguments so far, and the bus on which devices are put.
struct Argv {
    words: Vec<String>,
    bus: &'static str,
}

impl Argv {
    fn pair(&mut self, option: &str, value: impl Into<String>) {
        self.words.push(option.into());
        self.words.push(value.into());
    }

    fn json(&mut self, option: &str, value: Value) {
        self.pair(option, value.to_string());
    }

    fn device(&mut self, slot: usize, mut device: Value) {
        if let Some(device) = device.as_object_mut() {
            device.insert("bus".into(), self.bus.into());
            device.insert("addr".into(), format!("{slot:#x}").into());
        }
        self.json("-device", device);
    }
}

/// The bus of a machine type's first devices.
fn root_bus(machine: &str) -> Result<&'static str, String> {
    if machine.starts_with("pc-q35-") {
        Ok("pcie.0")
    } else if machine.starts_with("pc-i440fx-") {
        Ok("pci.0")
    } else {
        Err(format!(
            "machine type {machine:?} is neither a pc-q35 nor a pc-i440fx"
        ))
    }
}

/// Whether a machine type can be had by this driver.
pub fn knows_machine(machine: &str) -> bool {
    root_bus(machine).is_ok()
}

/// A string that can stand in `key=value` text.
fn word<'a>(text: &'a str, what: &str) -> Result<&'a str, String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let begins_well = text.starts_with(|first: char| first.is_ascii_alphanumeric());
    if !begins_well || text.len() > 253 || !text.bytes().all(good) {
        return Err(format!(
            "{what} {text:?} is no word of letters, digits, '.', '_' and '-'"
        ));
    }
    Ok(text)
}

/// An absolute path that can stand in `key=value` text and, with a socket's name, in a socket's address.
fn path(text: &str) -> Result<&str, String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/');
    if !text.starts_with('/') || !text.bytes().all(good) {
        return Err(format!(
            "the guest's directory {text:?} is not an absolute path of letters, digits, '.', '_', '-' and '/'"
        ));
    }
    if text.len() + 1 + CONSOLE_SOCKET.len() > 107 {
        return Err(format!(
            "the guest's directory {text:?} is too long for a socket's address"
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;
    use proptest::prelude::*;

    fn definition(value: Value) -> VirtualMachineSpec {
        let mut whole = json!({"machine": {"type": "pc-q35-10.0"}, "cpu": {"count": 2, "model": "qemu64"}, "memory": "64Mi", "boot": {"firmware": {}}});
        whole
            .as_object_mut()
            .unwrap()
            .extend(value.as_object().unwrap().clone());
        serde_json::from_value(whole).unwrap()
    }

    fn plan<'a>(definition: &'a VirtualMachineSpec, disks: &'a [PlannedDisk], taps: &'a [i32]) -> Plan<'a> {
        Plan {
            uid: uuid::Uuid::from_u128(7),
            name: "web1",
            definition,
            directory: "/run/godwit/guests/7",
            start: Start::Boot,
            accelerator: Accelerator::Tcg,
            monitor: 10,
            kvm: None,
            kernel: None,
            initramfs: None,
            disks,
            taps,
        }
    }

    fn values<'a>(argv: &'a [String], option: &str) -> Vec<&'a str> {
        argv.windows(2)
            .filter(|pair| pair[0] == option)
            .map(|pair| pair[1].as_str())
            .collect()
    }

    const DISK: PlannedDisk = PlannedDisk {
        file: 12,
        block_device: false,
    };

    #[test]
    fn a_guest_is_confined_and_stopped() {
        let argv = arguments(&plan(&definition(json!({})), &[], &[])).unwrap();
        for option in ["-S", "-nodefaults", "-no-user-config"] {
            assert!(argv.iter().any(|word| word == option), "{option}");
        }
        assert_eq!(
            values(&argv, "-sandbox"),
            ["on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
        );
        assert_eq!(values(&argv, "-uuid"), ["00000000-0000-0000-0000-000000000007"]);
        assert_eq!(
            values(&argv, "-action"),
            ["reboot=reset,shutdown=pause,panic=pause"]
        );
        assert!(values(&argv, "-incoming").is_empty());
    }

    #[test]
    fn both_ends_differ_only_in_waiting() {
        let definition = definition(json!({"disks": [{"name": "root", "file": {"file": "a.img"}}]}));
        let disks = [DISK];
        let source = plan(&definition, &disks, &[]);
        let destination = Plan {
            start: Start::Incoming,
            ..plan(&definition, &disks, &[])
        };
        let mut expected = arguments(&source).unwrap();
        expected.extend(["-incoming".into(), "defer".into()]);
        assert_eq!(arguments(&destination).unwrap(), expected);
    }

    #[test]
    fn disks_go_by_descriptor_with_their_cache_mode() {
        let definition = definition(json!({"disks": [
            {"name": "root", "file": {"file": "a.img"}, "cache": "DirectSync"},
            {"name": "data", "blockDevice": "/dev/vg/data", "cache": "Writeback", "format": "Qcow2", "readOnly": true}]}));
        let disks = [
            DISK,
            PlannedDisk {
                file: 13,
                block_device: true,
            },
        ];
        let argv = arguments(&plan(&definition, &disks, &[])).unwrap();
        assert_eq!(values(&argv, "-add-fd"), ["fd=12,set=1", "fd=13,set=2"]);
        let nodes: Vec<Value> = values(&argv, "-blockdev")
            .iter()
            .map(|node| serde_json::from_str(node).unwrap())
            .collect();
        assert_eq!(
            (&nodes[0]["cache"]["direct"], &nodes[1]["cache"]["direct"]),
            (&json!(true), &json!(false))
        );
        assert_eq!(
            (&nodes[0]["file"]["driver"], &nodes[1]["file"]["driver"]),
            (&json!("file"), &json!("host_device"))
        );
        assert_eq!(
            (&nodes[1]["backing"], &nodes[1]["file"]["read-only"]),
            (&json!(null), &json!(true))
        );
        assert!(nodes[1].as_object().unwrap().contains_key("backing"));
        let devices: Vec<Value> = values(&argv, "-device")
            .iter()
            .map(|device| serde_json::from_str(device).unwrap())
            .collect();
        let disks: Vec<&Value> = devices
            .iter()
            .filter(|device| device["driver"] == "virtio-blk-pci")
            .collect();
        assert_eq!(
            (&disks[0]["addr"], &disks[1]["addr"]),
            (&json!("0xb"), &json!("0xc"))
        );
        assert_eq!(
            (&disks[0]["bootindex"], &disks[0]["write-cache"]),
            (&json!(1), &json!("off"))
        );
    }

    #[test]
    fn a_kernel_is_opened_through_its_descriptor() {
        let definition = definition(
            json!({"boot": {"kernel": {"image": {"file": "k"}, "initramfs": {"file": "i"}, "commandLine": "console=ttyS0,115200 a=b,c"}}}),
        );
        let argv = arguments(&Plan {
            kernel: Some(20),
            initramfs: Some(21),
            ..plan(&definition, &[], &[])
        })
        .unwrap();
        assert_eq!(values(&argv, "-kernel"), ["/proc/self/fd/20"]);
        assert_eq!(values(&argv, "-initrd"), ["/proc/self/fd/21"]);
        assert_eq!(values(&argv, "-append"), ["console=ttyS0,115200 a=b,c"]);
        assert!(arguments(&plan(&definition, &[], &[])).is_err());
    }

    #[test]
    fn every_slot_is_used_once_and_below_the_chipset() {
        let names = |prefix: char, count: usize| (0..count).map(move |number| format!("{prefix}{number}"));
        let disks: Vec<Value> = names('d', MAX_DISKS)
            .map(|name| json!({"name": name, "file": {"file": "x"}}))
            .collect();
        let interfaces: Vec<Value> = names('n', MAX_INTERFACES)
            .map(|name| json!({"name": name, "bridge": "br0", "mac": "52:54:00:00:00:01"}))
            .collect();
        let definition = definition(json!({"disks": disks, "interfaces": interfaces}));
        let argv = arguments(&plan(&definition, &[DISK; MAX_DISKS], &[30; MAX_INTERFACES])).unwrap();
        let mut slots: Vec<String> = values(&argv, "-device")
            .iter()
            .filter_map(|device| {
                serde_json::from_str::<Value>(device).unwrap()["addr"]
                    .as_str()
                    .map(String::from)
            })
            .collect();
        assert_eq!(slots.len(), MAX_DISKS + MAX_INTERFACES + 1);
        slots.sort();
        slots.dedup();
        assert_eq!(slots.len(), MAX_DISKS + MAX_INTERFACES + 1);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let plain = definition(json!({}));
        assert!(
            arguments(&plan(
                &definition(json!({"machine": {"type": "microvm-1.0"}})),
                &[],
                &[]
            ))
            .is_err()
        );
        assert!(arguments(&plan(&plain, &[DISK], &[])).is_err());
        assert!(arguments(&plan(&plain, &[], &[30])).is_err());
        let long = format!("/{}", "d".repeat(100));
        assert!(
            arguments(&Plan {
                directory: &long,
                ..plan(&plain, &[], &[])
            })
            .is_err()
        );
    }

    proptest! {
        // Whatever the strings are, none opens another key or another option.
        #[test]
        fn r9_no_string_breaks_out(name in "\\PC{0,30}", model in "\\PC{0,30}", directory in "/\\PC{0,30}") {
            let definition = definition(json!({"cpu": {"count": 1, "model": model}, "interfaces": [{"name": "a", "bridge": "b", "mac": "52:54:00:00:00:01"}]}));
            let planned = Plan { name: &name, directory: &directory, ..plan(&definition, &[], &[30]) };
            if let Ok(argv) = arguments(&planned) {
                for text in [&name, &definition.cpu.model, &directory] {
                    prop_assert!(!text.contains([',', ' ', '=', '"', '\\', '%']), "{text}");
                }
                prop_assert_eq!(values(&argv, "-cpu"), [format!("{},enforce=on", definition.cpu.model)]);
            }
        }
    }
}
