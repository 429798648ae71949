//! The rules of VirtualMachine.

use godwit_lab::Lab;
use serde_json::{Value, json};

use crate::server::{change, create, send, set, try_create};

pub fn machine(name: &str) -> Value {
    json!({
        "apiVersion": "godwit.dev/v1alpha1",
        "kind": "VirtualMachine",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "host": "h1",
            "machine": {"type": "pc-q35-10.0"},
            "cpu": {"count": 1, "model": "qemu64"},
            "memory": "128Mi",
            "boot": {"kernel": {"image": {"file": "vmlinuz"}, "initramfs": {"file": "initramfs.cpio"}}},
            "disks": [{"name": "root", "file": {"file": "root.raw"}}],
            "interfaces": [{"name": "lan", "bridge": "br0", "mac": "52:54:00:12:34:56"}],
        },
    })
}

pub async fn a_machine_is_checked(lab: &mut Lab) -> anyhow::Result<()> {
    let client = lab.client();
    let good = machine("checked");
    try_create(&client, "virtualmachines", &good).await.accepted();
    let mut minimal = good.clone();
    set(&mut minimal, "/spec/host", Value::Null);
    set(&mut minimal, "/spec/disks", Value::Null);
    set(&mut minimal, "/spec/interfaces", Value::Null);
    set(&mut minimal, "/spec/boot", json!({"firmware": {}}));
    let made = try_create(&client, "virtualmachines", &minimal).await.accepted();
    assert_eq!(made["spec"]["persistence"], "Persistent");
    assert_eq!(made["spec"]["boot"]["firmware"]["kind"], "Bios");
    assert_eq!(made["spec"]["serialConsole"], true);
    assert_eq!(made["spec"]["randomSource"], true);

    let disk = |name: &str| json!({"name": name, "blockDevice": "/dev/vg/a"});
    let seventeen: Vec<Value> = (0..17).map(|number| disk(&format!("d{number}"))).collect();
    #[rustfmt::skip]
    let table = [
        ("/metadata/name", json!("a".repeat(64)), "at most 63 characters"),
        ("/spec/host", json!("H1"), "spec.host"),
        ("/spec/machine", Value::Null, "spec.machine: Required"),
        ("/spec/machine/type", json!("q35"), "spec.machine.type"),
        ("/spec/cpu/count", json!(0), "greater than or equal to 1"),
        ("/spec/cpu/count", json!(257), "less than or equal to 256"),
        ("/spec/cpu/model", json!("host"), "name a CPU model that is the same on every host"),
        ("/spec/cpu/model", json!("max"), "name a CPU model that is the same on every host"),
        ("/spec/cpu/model", json!("qemu64,+x2apic"), "spec.cpu.model"),
        ("/spec/memory", json!("128"), "spec.memory"),
        ("/spec/memory", json!("0Mi"), "spec.memory"),
        ("/spec/memory", json!("128MB"), "spec.memory"),
        ("/spec/boot", json!({}), "exactly one of boot.kernel and boot.firmware"),
        ("/spec/boot/firmware", json!({}), "exactly one of boot.kernel and boot.firmware"),
        ("/spec/boot/kernel/image/file", json!("../../etc/shadow"), "spec.boot.kernel.image.file"),
        ("/spec/boot/kernel/image/file", json!("/etc/shadow"), "spec.boot.kernel.image.file"),
        ("/spec/boot/kernel/commandLine", json!("a\nb"), "spec.boot.kernel.commandLine"),
        ("/spec/boot/kernel/commandLine", json!("a".repeat(2049)), "may not be more than 2048"),
        ("/spec/disks/0/blockDevice", json!("/dev/sda"), "exactly one of file and blockDevice"),
        ("/spec/disks/0", json!({"name": "root"}), "exactly one of file and blockDevice"),
        ("/spec/disks/0", json!({"name": "root", "blockDevice": "/dev/../etc/x"}), "blockDevice"),
        ("/spec/disks/0/cache", json!("Unsafe"), "Unsupported value"),
        ("/spec/disks", json!([disk("a"), disk("a")]), "Duplicate value"),
        ("/spec/disks", json!(seventeen), "must have at most 16 items"),
        ("/spec/interfaces/0/mac", json!("53:54:00:12:34:56"), "mac"),
        ("/spec/interfaces/0/bridge", json!("br0;reboot"), "bridge"),
        ("/spec/persistence", json!("Sometimes"), "Unsupported value"),
        ("/spec/qemuArguments", json!(["-s"]), "unknown field"),
    ];
    for (pointer, value, words) in table {
        let mut bad = good.clone();
        let what = format!("{pointer} = {value}");
        set(&mut bad, pointer, value);
        try_create(&client, "virtualmachines", &bad)
            .await
            .refused(&what, words);
    }
    Ok(())
}

pub async fn a_machine_is_fixed_once_written(lab: &mut Lab) -> anyhow::Result<()> {
    let client = lab.client();
    create(&client, "virtualmachines", &machine("fixed"))
        .await
        .accepted();
    let table = [
        (
            "/spec/host",
            json!("h2"),
            "move the guest with a VirtualMachineMigration",
        ),
        ("/spec/host", Value::Null, "host cannot be cleared"),
        ("/spec/machine/type", json!("pc-q35-9.2"), "machine is immutable"),
        ("/spec/cpu/count", json!(2), "cpu is immutable"),
        ("/spec/memory", json!("256Mi"), "memory is immutable"),
        (
            "/spec/boot/kernel/commandLine",
            json!("quiet"),
            "boot is immutable",
        ),
        ("/spec/disks/0/cache", json!("Writeback"), "disks are immutable"),
        (
            "/spec/interfaces/0/bridge",
            json!("br1"),
            "interfaces are immutable",
        ),
        (
            "/spec/persistence",
            json!("Transient"),
            "persistence is immutable",
        ),
        ("/spec/serialConsole", json!(false), "serialConsole is immutable"),
        ("/spec/randomSource", json!(false), "randomSource is immutable"),
    ];
    for (pointer, value, words) in table {
        let what = format!("{pointer} = {value}");
        change(&client, "virtualmachines", "fixed", |object| {
            set(object, pointer, value)
        })
        .await
        .refused(&what, words);
    }
    change(&client, "virtualmachines", "fixed", |object| {
        set(object, "/metadata/labels", json!({"a": "b"}))
    })
    .await
    .accepted();

    // Left out, the host may be filled in once.
    let mut placed = machine("placed");
    set(&mut placed, "/spec/host", Value::Null);
    create(&client, "virtualmachines", &placed).await.accepted();
    change(&client, "virtualmachines", "placed", |object| {
        set(object, "/spec/host", json!("h2"))
    })
    .await
    .accepted();
    change(&client, "virtualmachines", "placed", |object| {
        set(object, "/spec/host", json!("h1"))
    })
    .await
    .refused("a second host", "cannot be changed");

    // The status has bounds too, and is a resource of its own.
    let status = |reason: &str| {
        json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": reason, "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}]}})
    };
    for (reason, good) in [("Running", true), ("not a word", false)] {
        let mut object = send(
            &client,
            "GET",
            "/apis/godwit.dev/v1alpha1/namespaces/default/virtualmachines/fixed",
            None,
        )
        .await
        .accepted();
        set(&mut object, "/status", status(reason)["status"].clone());
        let answer = send(
            &client,
            "PUT",
            "/apis/godwit.dev/v1alpha1/namespaces/default/virtualmachines/fixed/status",
            Some(&object),
        )
        .await;
        if good {
            answer.accepted();
        } else {
            answer.refused(reason, "reason");
        }
    }
    Ok(())
}
