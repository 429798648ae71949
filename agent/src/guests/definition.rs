//! A guest's definition as the agent takes it: parsed within bounds, each string checked by an allow-list.
//!
//! The API server has checked the same before, but the agent does not take anybody's word for it: what reaches it
//! over the wire becomes arguments and paths of a process.

use std::collections::HashSet;
use std::sync::Arc;

use godwit_crds::VirtualMachineSpec;
use godwit_crds::quantity::memory_bytes;
use godwit_crds::virtual_machine::{Boot, Disk, Interface, PoolFile};
use serde_json::Value;

use super::words;

/// The most bytes of JSON that a definition may have.
pub const MAX_BYTES: usize = 256 * 1024;
/// The most disks that a guest may have.
pub const MAX_DISKS: usize = 16;
/// The most network interfaces that a guest may have.
pub const MAX_INTERFACES: usize = 8;
/// The most virtual CPUs that a guest may have.
pub const MAX_CPUS: u32 = 256;

/// A definition that has passed every check, with the bytes that it was read from.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    spec: Arc<VirtualMachineSpec>,
    json: Arc<[u8]>,
    memory: u64,
}

/// Why a definition is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DefinitionError(pub String);

impl Definition {
    /// Reads and checks a VirtualMachine's spec given as JSON.
    pub fn parse(json: &[u8]) -> Result<Self, DefinitionError> {
        if json.len() > MAX_BYTES {
            return refuse(format!(
                "it has {} bytes, and at most {MAX_BYTES} are taken",
                json.len()
            ));
        }
        let spec: VirtualMachineSpec = serde_json::from_slice(json)
            .map_err(|e| DefinitionError(format!("it is not a VirtualMachine's spec: {e}")))?;
        // A field that this agent does not know may be one that the guest needs.
        let given: Value = serde_json::from_slice(json).map_err(|e| DefinitionError(e.to_string()))?;
        let known = serde_json::to_value(&spec).map_err(|e| DefinitionError(e.to_string()))?;
        if let Some(path) = unknown_field(&given, &known, "spec") {
            return refuse(format!("this agent does not know the field {path}"));
        }
        let memory = check(&spec)?;
        Ok(Self {
            spec: Arc::new(spec),
            json: json.into(),
            memory,
        })
    }

    /// The definition.
    pub fn spec(&self) -> &VirtualMachineSpec {
        &self.spec
    }

    /// The bytes that it was read from.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// The guest's memory in bytes.
    pub fn memory(&self) -> u64 {
        self.memory
    }
}

fn refuse<T>(why: String) -> Result<T, DefinitionError> {
    Err(DefinitionError(why))
}

fn expect(holds: bool, why: impl FnOnce() -> String) -> Result<(), DefinitionError> {
    if holds {
        Ok(())
    } else {
        Err(DefinitionError(why()))
    }
}

/// The path of the first field that was given, says something, and is not in the definition as it was understood.
fn unknown_field(given: &Value, known: &Value, path: &str) -> Option<String> {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => given.iter().find_map(|(key, value)| {
            let path = format!(
                "{path}.{}",
                key.chars().take(64).collect::<String>().escape_debug()
            );
            match known.get(key) {
                Some(inner) => unknown_field(value, inner, &path),
                None => (!says_nothing(value)).then_some(path),
            }
        }),
        (Value::Array(given), Value::Array(known)) => given
            .iter()
            .zip(known)
            .enumerate()
            .find_map(|(at, (g, k))| unknown_field(g, k, &format!("{path}[{at}]"))),
        _ => None,
    }
}

/// Whether a value is one that is left out when a definition is written.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => false,
    }
}

/// Checks everything; returns the memory in bytes.
fn check(spec: &VirtualMachineSpec) -> Result<u64, DefinitionError> {
    if let Some(host) = &spec.host {
        expect(words::is_name(host), || {
            format!("host: {host:?} is not a host's name")
        })?;
    }
    expect(words::is_machine_type(&spec.machine.type_), || {
        format!(
            "machine.type: {:?} is not a machine type with a version, such as pc-q35-10.0",
            spec.machine.type_
        )
    })?;
    expect((1..=MAX_CPUS).contains(&spec.cpu.count), || {
        format!("cpu.count: {} is not between 1 and {MAX_CPUS}", spec.cpu.count)
    })?;
    expect(words::is_cpu_model(&spec.cpu.model), || {
        format!(
            "cpu.model: {:?} is not a named CPU model that is the same on every host",
            spec.cpu.model
        )
    })?;
    let Some(memory) = memory_bytes(&spec.memory) else {
        return refuse(format!(
            "memory: {:?} is not a whole number of Mi or Gi",
            spec.memory
        ));
    };
    boot(&spec.boot)?;
    expect(spec.disks.len() <= MAX_DISKS, || {
        format!(
            "disks: there are {}, and at most {MAX_DISKS} are taken",
            spec.disks.len()
        )
    })?;
    expect(spec.interfaces.len() <= MAX_INTERFACES, || {
        format!(
            "interfaces: there are {}, and at most {MAX_INTERFACES} are taken",
            spec.interfaces.len()
        )
    })?;
    let mut names = HashSet::new();
    for (at, item) in spec.disks.iter().enumerate() {
        disk(at, item)?;
        expect(names.insert(&item.name), || {
            format!("disks[{at}].name: {:?} is there twice", item.name)
        })?;
    }
    names.clear();
    let mut macs = HashSet::new();
    for (at, item) in spec.interfaces.iter().enumerate() {
        interface(at, item)?;
        expect(names.insert(&item.name), || {
            format!("interfaces[{at}].name: {:?} is there twice", item.name)
        })?;
        expect(macs.insert(&item.mac), || {
            format!("interfaces[{at}].mac: {:?} is there twice", item.mac)
        })?;
    }
    Ok(memory)
}

fn boot(boot: &Boot) -> Result<(), DefinitionError> {
    match (&boot.kernel, &boot.firmware) {
        (Some(kernel), None) => {
            pool_file("boot.kernel.image", &kernel.image)?;
            if let Some(initramfs) = &kernel.initramfs {
                pool_file("boot.kernel.initramfs", initramfs)?;
            }
            expect(words::is_command_line(&kernel.command_line), || {
                "boot.kernel.commandLine: only printable ASCII, at most 2048 characters".into()
            })
        }
        (None, Some(_)) => Ok(()),
        (Some(_), Some(_)) | (None, None) => refuse("boot: give exactly one of kernel and firmware".into()),
    }
}

fn pool_file(field: &str, file: &PoolFile) -> Result<(), DefinitionError> {
    expect(words::is_label(&file.pool), || {
        format!("{field}.pool: {:?} is not a pool's name", file.pool)
    })?;
    expect(words::is_pool_path(&file.file), || {
        format!("{field}.file: {:?} is not a plain path below a pool", file.file)
    })
}

fn disk(at: usize, disk: &Disk) -> Result<(), DefinitionError> {
    expect(words::is_device_name(&disk.name), || {
        format!("disks[{at}].name: {:?} is not a disk's name", disk.name)
    })?;
    match (&disk.file, &disk.block_device) {
        (Some(file), None) => pool_file(&format!("disks[{at}].file"), file),
        (None, Some(path)) => expect(words::is_block_device(path), || {
            format!("disks[{at}].blockDevice: {path:?} is not a plain path below /dev")
        }),
        (Some(_), Some(_)) | (None, None) => {
            refuse(format!("disks[{at}]: give exactly one of file and blockDevice"))
        }
    }
}

fn interface(at: usize, interface: &Interface) -> Result<(), DefinitionError> {
    expect(words::is_device_name(&interface.name), || {
        format!(
            "interfaces[{at}].name: {:?} is not an interface's name",
            interface.name
        )
    })?;
    expect(words::is_bridge(&interface.bridge), || {
        format!(
            "interfaces[{at}].bridge: {:?} is not a bridge's name",
            interface.bridge
        )
    })?;
    expect(words::is_mac(&interface.mac), || {
        format!(
            "interfaces[{at}].mac: {:?} is not a unicast MAC address in lower case",
            interface.mac
        )
    })
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
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn good() -> Value {
        json!({
            "machine": {"type": "pc-q35-10.0"},
            "cpu": {"count": 1, "model": "qemu64"},
            "memory": "128Mi",
            "boot": {"kernel": {"image": {"pool": "default", "file": "vmlinuz"}, "initramfs": {"file": "initrd"}, "commandLine": "a b"}},
            "disks": [{"name": "root", "file": {"file": "root.qcow2"}, "format": "Qcow2"}, {"name": "raw", "blockDevice": "/dev/vda"}],
            "interfaces": [{"name": "net0", "bridge": "br0", "mac": "52:54:00:12:34:56"}],
            "persistence": "Transient"
        })
    }

    fn parse(value: &Value) -> Result<Definition, DefinitionError> {
        Definition::parse(&serde_json::to_vec(value).unwrap())
    }

    fn with(pointer: &str, value: Value) -> Value {
        let mut all = good();
        *all.pointer_mut(pointer).unwrap() = value;
        all
    }

    #[test]
    fn a_good_one_is_taken_whole() {
        let definition = parse(&good()).unwrap();
        assert_eq!(definition.memory(), 128 << 20);
        assert_eq!(definition.spec().disks.len(), 2);
        assert_eq!(Definition::parse(definition.json()).unwrap(), definition);
        let written = serde_json::to_vec(definition.spec()).unwrap();
        assert_eq!(Definition::parse(&written).unwrap().spec(), definition.spec());
    }

    #[test]
    fn r9_hostile_strings_are_refused_in_every_field() {
        let fields = [
            "/machine/type",
            "/cpu/model",
            "/memory",
            "/boot/kernel/image/pool",
            "/boot/kernel/image/file",
            "/boot/kernel/initramfs/file",
            "/disks/0/name",
            "/disks/0/file/file",
            "/disks/1/blockDevice",
            "/interfaces/0/name",
            "/interfaces/0/bridge",
            "/interfaces/0/mac",
        ];
        for field in fields {
            let original = good().pointer(field).unwrap().as_str().unwrap().to_owned();
            for bad in [
                "",
                ",",
                "a,b=c",
                "a\nb",
                "a\0",
                "..",
                "../../etc/passwd",
                "a/../b",
                "/etc/passwd",
                "-a",
                "a b",
                "é",
                "\u{202e}",
            ] {
                assert!(parse(&with(field, json!(bad))).is_err(), "{field} took {bad:?}");
                assert!(
                    parse(&with(field, json!(format!("{original}\n")))).is_err(),
                    "{field} took a line end"
                );
                assert!(
                    parse(&with(field, json!(format!("{original},x=y")))).is_err(),
                    "{field} took a comma"
                );
                assert!(
                    parse(&with(field, json!(format!("{original}\0")))).is_err(),
                    "{field} took a NUL"
                );
            }
            assert!(
                parse(&with(field, json!("a".repeat(5000)))).is_err(),
                "{field} took 5000 characters"
            );
        }
        assert!(parse(&with("/boot/kernel/commandLine", json!("a\nb"))).is_err());
    }

    #[test]
    fn bounds_hold() {
        assert!(parse(&with("/cpu/count", json!(0))).is_err());
        assert!(parse(&with("/cpu/count", json!(257))).is_err());
        assert!(parse(&with("/cpu/count", json!(-1))).is_err());
        assert!(parse(&with("/memory", json!("0Mi"))).is_err());
        let disk = |at: usize| json!({"name": format!("d{at}"), "blockDevice": "/dev/vda"});
        assert!(parse(&with("/disks", (0..16).map(disk).collect())).is_ok());
        assert!(parse(&with("/disks", (0..17).map(disk).collect())).is_err());
        let twice =
            json!([{"name": "a", "blockDevice": "/dev/vda"}, {"name": "a", "blockDevice": "/dev/vdb"}]);
        assert!(parse(&with("/disks", twice)).is_err());
        let mut long = serde_json::to_vec(&good()).unwrap();
        long.resize(MAX_BYTES + 1, b' ');
        assert!(Definition::parse(&long).is_err());
    }

    #[test]
    fn exactly_one_of_what_excludes_each_other() {
        assert!(parse(&with("/boot", json!({}))).is_err());
        assert!(parse(&with("/boot", json!({"firmware": {}}))).is_ok());
        let mut both = good();
        both["boot"]["firmware"] = json!({});
        assert!(parse(&both).is_err());
        assert!(parse(&with("/disks/0", json!({"name": "a"}))).is_err());
    }

    #[test]
    fn what_this_agent_does_not_know_is_refused() {
        let mut unknown = good();
        unknown["tpm"] = json!({"version": 2});
        assert!(parse(&unknown).unwrap_err().0.contains("spec.tpm"));
        let mut nested = good();
        nested["disks"][1]["throttle"] = json!(5);
        assert!(parse(&nested).unwrap_err().0.contains("spec.disks[1].throttle"));
        assert!(parse(&with("/boot", json!({"firmware": {}, "kernel": null}))).is_ok());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = Definition::parse(&bytes);
        }

        #[test]
        fn a_taken_path_stays_below_its_pool(text in "[a-z./_-]{0,40}") {
            if words::is_pool_path(&text) {
                prop_assert!(!text.starts_with('/'));
                prop_assert!(text.split('/').all(|part| part != ".." && part != "." && !part.is_empty()));
            }
        }
    }
}
