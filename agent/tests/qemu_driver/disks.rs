//! Whose the disks are, before, during and after a move.

use std::time::Duration;

use godwit_agent::hypervisor::{HypervisorError, RunState, Start, StreamState};
use serde_json::{Value, json};

use crate::fixture::{
    ALL_OUT, Bench, SLOWLY, assert_counts, eventually, hand_over, new_uid, qcow2, start_stream, until_state,
    until_stream,
};

fn disk(cache: &str, format: &str) -> Value {
    json!({"disks": [{"name": "root", "file": {"file": "disk.img"}, "cache": cache, "format": format}]})
}

/// The guest says that a write came through (`W`), after those already said.
async fn writes(bench: &Bench, name: &str) {
    let said = || bench.console(name).iter().filter(|byte| **byte == b'W').count();
    let image = || std::fs::read(bench.path("disk.img")).unwrap();
    let (before, image_before) = (said(), image());
    bench.tell(name, b'w');
    eventually("the write", async || said() > before).await;
    eventually("the image changes", async || image() != image_before).await;
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn the_source_writes_until_the_end_and_then_the_destination_does() {
    for (cache, format) in [
        ("None", "Raw"),
        ("Writeback", "Qcow2"),
        ("None", "Qcow2"),
        ("Writethrough", "Raw"),
    ] {
        let bench = Bench::new();
        if format == "Qcow2" {
            std::fs::write(bench.path("disk.img"), qcow2()).unwrap();
        }
        let uid = new_uid();
        let source = bench
            .try_launch(bench.order("a", &uid, Start::Boot, disk(cache, format)))
            .await
            .unwrap();
        source.resume().await.unwrap();
        bench.counts_on("a").await;
        let destination = bench
            .try_launch(bench.order("b", &uid, Start::Incoming, disk(cache, format)))
            .await
            .unwrap();
        writes(&bench, "a").await;
        start_stream(&source, &destination, SLOWLY).await;
        until_stream(&source, StreamState::Active).await;
        // The destination waits and has taken no lock that would hinder the source.
        writes(&bench, "a").await;
        source.pause().await.unwrap();
        source.set_limits(ALL_OUT).await.unwrap();
        until_stream(&source, StreamState::BeforeSwitchover).await;
        source.switch_over().await.unwrap();
        until_stream(&source, StreamState::Completed).await;
        until_state(&destination, RunState::Paused).await;
        destination.resume().await.unwrap();
        bench.counts_on("b").await;
        writes(&bench, "b").await;
        source.destroy(Duration::from_secs(10)).await.unwrap();
        writes(&bench, "b").await;
    }
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn disks_that_were_given_up_are_free_and_can_be_taken_back() {
    let bench = Bench::new();
    let guest = bench.launch("a", &new_uid(), Start::Boot).await;
    guest.resume().await.unwrap();
    bench.counts_on("a").await;
    assert!(
        matches!(
            guest.set_disks_active(false).await,
            Err(HypervisorError::Command { .. })
        ),
        "a running guest"
    );
    assert_eq!(guest.run_state().await.unwrap(), RunState::Running);
    guest.pause().await.unwrap();
    guest.set_disks_active(false).await.unwrap();
    // Once more has no further effect.
    guest.set_disks_active(false).await.unwrap();
    let other = bench.launch("b", &new_uid(), Start::Boot).await;
    assert!(
        matches!(
            guest.set_disks_active(true).await,
            Err(HypervisorError::Command { .. })
        ),
        "two writers"
    );
    other.destroy(Duration::from_secs(10)).await.unwrap();
    guest.set_disks_active(true).await.unwrap();
    guest.resume().await.unwrap();
    writes(&bench, "a").await;
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_guest_moves_to_and_fro() {
    let bench = Bench::new();
    let uid = new_uid();
    let mut guest = bench.launch("0", &uid, Start::Boot).await;
    guest.resume().await.unwrap();
    bench.counts_on("0").await;
    let mut said = Vec::new();
    for turn in 1..=6 {
        let (here, there) = (format!("{}", turn - 1), turn.to_string());
        let next = bench.launch(&there, &uid, Start::Incoming).await;
        hand_over(&guest, &next).await;
        guest.destroy(Duration::from_secs(10)).await.unwrap();
        bench.counts_on(&there).await;
        said.extend(bench.console(&here));
        guest = next;
    }
    guest.pause().await.unwrap();
    said.extend(bench.console("6"));
    assert_counts(&said);
}
