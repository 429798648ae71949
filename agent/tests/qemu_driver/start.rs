//! What can go wrong at the start, what boots, and what works on this host.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use godwit_agent::hypervisor::qemu::{Accelerator, AcceleratorChoice, Qemu, QemuConfig};
use godwit_agent::hypervisor::{Hypervisor, HypervisorError, RunState, Start};
use serde_json::json;

use crate::fixture::{Bench, assert_counts, kernel, new_uid, qemu};

#[tokio::test]
#[ignore = "needs QEMU"]
async fn the_host_is_probed_by_a_real_boot() {
    let driver = qemu(AcceleratorChoice::Auto);
    let begin = Instant::now();
    let facts = driver.probe().await.unwrap();
    println!(
        "probe: {} ms: {} {} {}, {} machine types, {} CPU models",
        begin.elapsed().as_millis(),
        facts.name,
        facts.version,
        facts.accelerator,
        facts.machine_types.len(),
        facts.cpu_models.len()
    );
    assert!(facts.machine_types.iter().any(|machine| machine == "pc-q35-10.0"));
    assert!(facts.cpu_models.iter().any(|model| model == "qemu64"));
    assert!(
        !facts
            .cpu_models
            .iter()
            .any(|model| model == "host" || model == "max")
    );
    assert!(facts.gates.seal && facts.gates.hold_before_switchover && facts.gates.keep_destination_paused);
    // The second time the accelerator is known.
    assert_eq!(driver.probe().await.unwrap(), facts);
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_program_that_is_missing_or_is_not_qemu_is_unavailable() {
    for program in ["/nonexistent/qemu", "/bin/false"] {
        for accelerator in [
            AcceleratorChoice::Auto,
            AcceleratorChoice::Forced(Accelerator::Tcg),
        ] {
            let driver = Qemu::new(QemuConfig {
                program: program.into(),
                accelerator,
            });
            assert!(
                matches!(driver.probe().await, Err(HypervisorError::Unavailable(_))),
                "{program}"
            );
        }
    }
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn what_qemu_does_not_have_is_refused_in_its_words() {
    let bench = Bench::new();
    for (definition, word) in [
        (json!({"machine": {"type": "pc-q35-99.9"}}), "pc-q35-99.9"),
        (
            json!({"cpu": {"count": 1, "model": "Sapphire9000"}}),
            "Sapphire9000",
        ),
        (
            json!({"disks": [{"name": "root", "file": {"file": "disk.img"}, "format": "Qcow2"}]}),
            "qcow2",
        ),
    ] {
        match bench
            .try_launch(bench.order("a", &new_uid(), Start::Boot, definition))
            .await
        {
            Err(HypervisorError::Refused(reason)) => assert!(reason.contains(word), "{reason}"),
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("started with {word}"),
        }
        assert!(!bench.path("a").join("qmp.sock").exists() && !bench.path("a").join("console.sock").exists());
    }
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn an_image_in_use_is_not_written_by_another_guest() {
    let bench = Bench::new();
    let guest = bench.launch("a", &new_uid(), Start::Boot).await;
    let Err(HypervisorError::Refused(reason)) = bench
        .try_launch(bench.order("b", &new_uid(), Start::Boot, json!({})))
        .await
        .map(|_| ())
    else {
        panic!("two guests on one image")
    };
    assert!(reason.contains("lock"), "{reason}");
    guest.destroy(Duration::from_secs(10)).await.unwrap();
    bench.launch("b", &new_uid(), Start::Boot).await;
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_kernel_boots_by_descriptor_whoever_may_read_its_file() {
    let bench = Bench::new();
    for (name, mode) in [("public", 0o644), ("private", 0o600)] {
        let path = bench.path(&format!("kernel-{name}"));
        std::fs::write(&path, kernel()).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        for machine in ["pc-q35-10.0", "pc-i440fx-10.0"] {
            let guest_name = format!("{name}-{machine}");
            let definition = json!({"machine": {"type": machine}, "disks": [],
                "boot": {"kernel": {"image": {"file": "k"}, "initramfs": {"file": "i"}, "commandLine": "a=b,c quiet"}}});
            let mut order = bench.order(&guest_name, &new_uid(), Start::Boot, definition);
            order.files.kernel = Some(File::open(&path).unwrap().into());
            order.files.initramfs = Some(File::open(&path).unwrap().into());
            let guest = bench.try_launch(order).await.unwrap();
            guest.resume().await.unwrap();
            bench.counts_on(&guest_name).await;
            assert_counts(&bench.console(&guest_name));
            guest.destroy(Duration::from_secs(10)).await.unwrap();
        }
    }
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_user_without_access_to_kvm_gets_it_by_descriptor() {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        println!("skipped: /dev/kvm does not open here: {error}");
        return;
    }
    let mut bench = Bench::new();
    bench.qemu = qemu(AcceleratorChoice::Forced(Accelerator::Kvm));
    // Some hosts' KVM lacks a feature of every model of today: then QEMU must refuse the model, and nothing else.
    let definition = json!({"cpu": {"count": 1, "model": "kvm64"}});
    match bench
        .try_launch(bench.order("a", &new_uid(), Start::Boot, definition))
        .await
    {
        Ok(guest) => assert_eq!(guest.run_state().await.unwrap(), RunState::Paused),
        Err(HypervisorError::Refused(reason)) => assert!(reason.contains("feature"), "{reason}"),
        Err(error) => panic!("{error:?}"),
    }
}
