//! A guest moves from one QEMU to another.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use godwit_agent::hypervisor::{
    GuestEvent, GuestEventKind, HypervisorError, RunState, Start, Stream, StreamKey, StreamLimits,
    StreamState, Way,
};
use serde_json::json;
use tokio::sync::broadcast::Receiver;

use crate::fixture::{
    ALL_OUT, Bench, SLOWLY, assert_counts, bring_over, eventually, new_uid, start_encrypted, start_stream,
    until, until_state, until_stream,
};

fn streams(events: &[GuestEvent]) -> Vec<StreamState> {
    events
        .iter()
        .filter_map(|event| {
            if let GuestEventKind::Stream(state) = event.kind {
                Some(state)
            } else {
                None
            }
        })
        .collect()
}

fn at(events: &[GuestEvent], kind: &GuestEventKind) -> i64 {
    events
        .iter()
        .find(|event| event.kind == *kind)
        .unwrap_or_else(|| panic!("no {kind:?} in {events:?}"))
        .at_micros
}

fn rest(receiver: &mut Receiver<GuestEvent>) -> Vec<GuestEvent> {
    std::iter::from_fn(|| receiver.try_recv().ok()).collect()
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_sealed_guest_moves_with_its_count_and_its_disk() {
    let bench = Bench::new();
    let uid = new_uid();
    let source = bench.launch("a", &uid, Start::Boot).await;
    source.resume().await.unwrap();
    bench.counts_on("a").await;
    // The source has the image; the destination must not want it before it runs.
    let destination = bench.launch("b", &uid, Start::Incoming).await;
    assert_eq!(destination.run_state().await.unwrap(), RunState::Incoming);
    assert_eq!(source.stream().await.unwrap().state, StreamState::None);
    let Err(HypervisorError::Command { .. }) = destination.resume().await else {
        panic!("ran before it was received")
    };

    let (mut left, mut right) = (source.subscribe(), destination.subscribe());
    let begin = Instant::now();
    start_stream(&source, &destination, SLOWLY).await;
    let mut seen = until(&mut left, GuestEventKind::DirtyPagesCollected { iteration: 1 }).await;
    until_stream(&source, StreamState::Active).await;
    assert_eq!(source.run_state().await.unwrap(), RunState::Running);

    // The seal.
    source.pause().await.unwrap();
    assert_eq!(
        (
            source.run_state().await.unwrap(),
            source.stream().await.unwrap().state
        ),
        (RunState::Paused, StreamState::Active)
    );
    // It can be undone for free.
    source.resume().await.unwrap();
    bench.counts_on("a").await;
    source.pause().await.unwrap();
    let status = source.stream().await.unwrap();
    assert_eq!(status.state, StreamState::Active);
    assert!(status.figures.unwrap().total_bytes >= 64 << 20);
    source.set_limits(ALL_OUT).await.unwrap();

    seen.extend(until(&mut left, GuestEventKind::Stream(StreamState::BeforeSwitchover)).await);
    assert_eq!(source.run_state().await.unwrap(), RunState::StoppedForMigration);
    assert_eq!(destination.run_state().await.unwrap(), RunState::Incoming);
    let switchover = Instant::now();
    source.switch_over().await.unwrap();
    seen.extend(until(&mut left, GuestEventKind::Stream(StreamState::Completed)).await);
    until(&mut right, GuestEventKind::Stream(StreamState::Completed)).await;
    assert_eq!(source.run_state().await.unwrap(), RunState::StoppedForMigration);
    until_state(&destination, RunState::Paused).await;
    assert!(
        source
            .stream()
            .await
            .unwrap()
            .figures
            .unwrap()
            .downtime_millis
            .is_some()
    );
    let said = bench.console("a");

    destination.resume().await.unwrap();
    let resumed = at(
        &until(&mut right, GuestEventKind::Resumed).await,
        &GuestEventKind::Resumed,
    );
    println!(
        "send to running: {} ms, switchover to running: {} ms",
        begin.elapsed().as_millis(),
        switchover.elapsed().as_millis()
    );
    let stopped = seen
        .iter()
        .rev()
        .find(|event| event.kind == GuestEventKind::Stopped)
        .unwrap()
        .at_micros;
    println!("STOP to RESUME by QEMU's stamps: {} us", resumed - stopped);
    assert!(resumed > stopped);
    seen.extend(rest(&mut left));
    assert_eq!(
        streams(&seen),
        [
            StreamState::Setup,
            StreamState::Active,
            StreamState::BeforeSwitchover,
            StreamState::SwitchingOver,
            StreamState::Completed
        ]
    );

    bench.counts_on("b").await;
    assert_counts(&[said.clone(), bench.console("b")].concat());
    assert_eq!(bench.console("a"), said);
    // The disk is the destination's now.
    let second = || std::fs::read(bench.path("disk.img")).unwrap()[512..516].to_vec();
    bench.tell("b", b'w');
    eventually("the destination writes", async || second() != [0; 4]).await;
    let Err(HypervisorError::Command { message, .. }) = source.resume().await else {
        panic!("both ran")
    };
    assert!(message.contains("lock"), "{message}");
    source.destroy(Duration::from_secs(10)).await.unwrap();
    assert_eq!(destination.run_state().await.unwrap(), RunState::Running);
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_tiny_guest_moves_quickly() {
    let bench = Bench::new();
    let uid = new_uid();
    let source = bench.launch("a", &uid, Start::Boot).await;
    source.resume().await.unwrap();
    bench.counts_on("a").await;
    let destination = bench.launch("b", &uid, Start::Incoming).await;
    let mut right = destination.subscribe();
    let begin = Instant::now();
    start_stream(&source, &destination, ALL_OUT).await;
    until_stream(&source, StreamState::BeforeSwitchover).await;
    let held = begin.elapsed();
    source.switch_over().await.unwrap();
    until_stream(&source, StreamState::Completed).await;
    until(&mut right, GuestEventKind::Stream(StreamState::Completed)).await;
    println!(
        "send to before-switchover: {} ms, to completed: {} ms",
        held.as_millis(),
        begin.elapsed().as_millis()
    );
    // QEMU stopped it itself; still it waits here.
    until_state(&destination, RunState::Paused).await;
    destination.resume().await.unwrap();
    bench.counts_on("b").await;
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn dirty_pages_are_counted_when_the_figure_is_true() {
    let bench = Bench::new();
    let uid = new_uid();
    let source = bench.launch("a", &uid, Start::Boot).await;
    source.resume().await.unwrap();
    bench.counts_on("a").await;
    let destination = bench.launch("b", &uid, Start::Incoming).await;
    let mut left = source.subscribe();
    // A busy guest never fits into a millisecond of 256 KiB/s.
    let limits = StreamLimits {
        bandwidth: 256 << 10,
        downtime: Duration::from_millis(1),
    };
    start_stream(&source, &destination, limits).await;
    for iteration in 1..4 {
        until(&mut left, GuestEventKind::DirtyPagesCollected { iteration }).await;
        // The first comes while the stream is still being set up, without figures.
        eventually("figures", async || {
            source.stream().await.unwrap().figures.is_some()
        })
        .await;
        let figures = source.stream().await.unwrap().figures.unwrap();
        println!("pass {iteration}: {figures:?}");
        assert!(figures.iteration >= iteration);
    }
    source.cancel_stream().await.unwrap();
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_guest_that_powers_off_under_way_arrives_powered_off() {
    let bench = Bench::new();
    let uid = new_uid();
    let source = bench.launch("a", &uid, Start::Boot).await;
    source.resume().await.unwrap();
    bench.counts_on("a").await;
    let destination = bench.launch("b", &uid, Start::Incoming).await;
    let (mut left, mut right) = (source.subscribe(), destination.subscribe());
    start_stream(&source, &destination, SLOWLY).await;
    until_stream(&source, StreamState::Active).await;
    bench.tell("a", b'o');
    until(&mut left, GuestEventKind::ShutDown).await;
    until_state(&source, RunState::ShutDown).await;
    source.set_limits(ALL_OUT).await.unwrap();
    until_stream(&source, StreamState::BeforeSwitchover).await;
    source.switch_over().await.unwrap();
    until_stream(&source, StreamState::Completed).await;
    until(&mut right, GuestEventKind::Stream(StreamState::Completed)).await;
    until_state(&destination, RunState::ShutDown).await;
    assert!(matches!(
        destination.resume().await,
        Err(HypervisorError::Command { .. })
    ));
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_guest_without_disks_and_one_with_a_serial_port_only_move_too() {
    let bench = Bench::new();
    let uid = new_uid();
    let definition = || json!({"disks": [], "randomSource": false, "machine": {"type": "pc-i440fx-10.0"}});
    let source = bench
        .try_launch(bench.order("a", &uid, Start::Boot, definition()))
        .await
        .unwrap();
    let destination = bench
        .try_launch(bench.order("b", &uid, Start::Incoming, definition()))
        .await
        .unwrap();
    source.resume().await.unwrap();
    start_stream(&source, &destination, ALL_OUT).await;
    until_stream(&source, StreamState::BeforeSwitchover).await;
    source.switch_over().await.unwrap();
    until_stream(&source, StreamState::Completed).await;
    source.set_disks_active(false).await.unwrap();
    until_state(&destination, RunState::Paused).await;
    destination.resume().await.unwrap();
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn another_guests_stream_is_refused() {
    let bench = Bench::new();
    let source = bench.launch("a", &new_uid(), Start::Boot).await;
    source.resume().await.unwrap();
    let destination = bench.launch("b", &new_uid(), Start::Incoming).await;
    start_stream(&source, &destination, ALL_OUT).await;
    until_stream(&destination, StreamState::Failed).await;
    let error = destination.stream().await.unwrap().error.unwrap();
    println!("refused: {error}");
    assert!(error.contains("failed"), "{error}");
    // QEMU tells the reason only in its log.
    let log = std::fs::read_to_string(bench.path("b").join("qemu.log")).unwrap();
    assert!(log.contains("UUID"), "{log}");
    until_stream(&source, StreamState::Failed).await;
    until_state(&source, RunState::Running).await;
}

/// Twice, there and back: nothing of the first stream's key is in the way of the second's.
#[tokio::test]
#[ignore = "needs QEMU"]
async fn an_encrypted_stream_moves_the_guest_and_leaves_no_key() {
    let bench = Bench::new();
    let uid = new_uid();
    let source = bench.launch("a", &uid, Start::Boot).await;
    source.resume().await.unwrap();
    bench.counts_on("a").await;
    let mut destination = bench.launch("b", &uid, Start::Incoming).await;
    // Another's key is no way in, and the guest at the source goes on.
    start_encrypted(&source, &destination, ALL_OUT, [[1; 32], [2; 32]]).await;
    until_stream(&source, StreamState::Failed).await;
    until_state(&source, RunState::Running).await;
    bench.counts_on("a").await;
    destination.destroy(Duration::from_secs(10)).await.unwrap();
    destination = bench.launch("b", &uid, Start::Incoming).await;
    start_encrypted(&source, &destination, SLOWLY, [[3; 32], [3; 32]]).await;
    bring_over(&source, &destination).await;
    bench.counts_on("b").await;
    for side in ["a", "b"] {
        assert!(!bench.path(side).join("stream-key").exists(), "{side}");
    }
}

/// One end encrypts and the other does not: nothing is taken for a guest's memory.
#[tokio::test]
#[ignore = "needs QEMU"]
async fn an_encrypted_stream_is_not_read_as_plain_text() {
    let bench = Bench::new();
    let uid = new_uid();
    let source = bench.launch("a", &uid, Start::Boot).await;
    source.resume().await.unwrap();
    let destination = bench.launch("b", &uid, Start::Incoming).await;
    let (near, far) = UnixStream::pair().unwrap();
    let key = Some(StreamKey::new([3; 32]));
    let expecting = Stream {
        way: Way::Socket(far.into()),
        key,
    };
    destination.receive(expecting).await.unwrap();
    source.send(Stream::plain(near), ALL_OUT).await.unwrap();
    until_stream(&source, StreamState::Failed).await;
    until_state(&source, RunState::Running).await;
    assert_ne!(destination.stream().await.unwrap().state, StreamState::Completed);
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_stream_of_garbage_fails_and_says_so() {
    let bench = Bench::new();
    let destination = bench.launch("b", &new_uid(), Start::Incoming).await;
    let (near, far) = UnixStream::pair().unwrap();
    destination.receive(Stream::plain(far)).await.unwrap();
    std::io::Write::write_all(&mut &near, &[b'x'; 4096]).unwrap();
    until_stream(&destination, StreamState::Failed).await;
    assert!(destination.stream().await.unwrap().error.is_some());
    destination.destroy(Duration::from_secs(10)).await.unwrap();
}
