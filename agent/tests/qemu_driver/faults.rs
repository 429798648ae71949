//! The other end dies, freezes or is given up.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_agent::hypervisor::{
    Adoption, Guest, GuestEventKind, Hypervisor, HypervisorError, RunState, Start, StreamState,
};
use rustix::process::Signal;

use crate::fixture::{
    ALL_OUT, Bench, SLOWLY, SOON, assert_counts, new_uid, signal, start_stream, until, until_state,
    until_stream,
};

/// Where the stream stands when the fault comes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    Active,
    BeforeSwitchover,
    Completed,
}

/// A stream brought to a point, its source sealed or not.
async fn brought_to(bench: &Bench, when: When, seal: bool) -> (Arc<dyn Guest>, Arc<dyn Guest>) {
    let uid = new_uid();
    let source = bench.launch("a", &uid, Start::Boot).await;
    source.resume().await.unwrap();
    bench.counts_on("a").await;
    let destination = bench.launch("b", &uid, Start::Incoming).await;
    start_stream(&source, &destination, SLOWLY).await;
    until_stream(&source, StreamState::Active).await;
    if seal {
        source.pause().await.unwrap();
        assert_eq!(source.stream().await.unwrap().state, StreamState::Active);
    }
    if when != When::Active {
        source.set_limits(ALL_OUT).await.unwrap();
        until_stream(&source, StreamState::BeforeSwitchover).await;
    }
    if when == When::Completed {
        source.switch_over().await.unwrap();
        until_stream(&source, StreamState::Completed).await;
        until_state(&destination, RunState::Paused).await;
    }
    (source, destination)
}

/// A cancelled stream is over. Now and then QEMU calls it failed: its threads see the closed socket before they
/// see the cancel.
async fn assert_ended(source: &Arc<dyn Guest>) {
    let state = source.stream().await.unwrap().state;
    assert!(
        matches!(state, StreamState::Cancelled | StreamState::Failed),
        "{state:?}"
    );
}

async fn runs_on(bench: &Bench, source: &Arc<dyn Guest>) {
    source.resume().await.unwrap();
    assert_eq!(source.run_state().await.unwrap(), RunState::Running);
    bench.counts_on("a").await;
    assert_counts(&bench.console("a"));
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_sealed_source_stays_stopped_when_its_destination_dies_in_pre_copy() {
    let bench = Bench::new();
    let (source, destination) = brought_to(&bench, When::Active, true).await;
    let mut events = source.subscribe();
    signal(&destination, Signal::KILL);
    until(&mut events, GuestEventKind::Stream(StreamState::Failed)).await;
    assert_eq!(source.run_state().await.unwrap(), RunState::Paused);
    assert!(source.stream().await.unwrap().error.is_some());
    runs_on(&bench, &source).await;
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_sealed_source_stays_stopped_when_its_destination_dies_before_the_switchover() {
    let bench = Bench::new();
    let (source, destination) = brought_to(&bench, When::BeforeSwitchover, true).await;
    let mut events = source.subscribe();
    signal(&destination, Signal::KILL);
    // The state does not tell, the error does.
    crate::fixture::eventually("an error", async || {
        source.stream().await.unwrap().error.is_some()
    })
    .await;
    println!(
        "killed before the switchover: {:?}",
        source.stream().await.unwrap().state
    );
    let begin = Instant::now();
    match source.switch_over().await {
        Ok(()) => {
            until(&mut events, GuestEventKind::Stream(StreamState::Failed)).await;
        }
        Err(error) => {
            println!("switch_over: {error}");
            source.cancel_stream().await.unwrap();
        }
    }
    // Released as the rules ask before anybody decides, and taken back by the resume.
    until_state(&source, RunState::Paused).await;
    source.set_disks_active(false).await.unwrap();
    source.set_disks_active(true).await.unwrap();
    runs_on(&bench, &source).await;
    println!("from the fault to running: {} ms", begin.elapsed().as_millis());
}

/// In the very switchover: the destination freezes before it has acknowledged. Where the sockets' buffers are full,
/// QEMU at the source does not answer now: it writes under its big lock.
async fn frozen_in_the_switchover(bench: &Bench) -> (Arc<dyn Guest>, Arc<dyn Guest>) {
    let (source, destination) = brought_to(bench, When::BeforeSwitchover, true).await;
    let mut events = source.subscribe();
    signal(&destination, Signal::STOP);
    match source.switch_over().await {
        // QEMU may do it and not come to the answer any more.
        Ok(()) | Err(HypervisorError::Deadline { .. }) => {}
        Err(error) => panic!("{error:?}"),
    }
    until(&mut events, GuestEventKind::Stream(StreamState::SwitchingOver)).await;
    (source, destination)
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_sealed_source_stays_stopped_when_its_destination_dies_in_the_switchover() {
    let bench = Bench::new();
    let (source, destination) = frozen_in_the_switchover(&bench).await;
    signal(&destination, Signal::KILL);
    until_stream(&source, StreamState::Failed).await;
    until_state(&source, RunState::Paused).await;
    // It has taken its disks back; a destination that had loaded the guest could not run.
    let taken = bench
        .try_launch(bench.order("c", &new_uid(), Start::Boot, serde_json::json!({})))
        .await;
    assert!(matches!(taken, Err(HypervisorError::Refused(_))));
    source.set_disks_active(false).await.unwrap();
    let other = bench.launch("c", &new_uid(), Start::Boot).await;
    other.destroy(Duration::from_secs(10)).await.unwrap();
    source.set_disks_active(true).await.unwrap();
    runs_on(&bench, &source).await;
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_stream_is_cancelled_in_the_switchover() {
    let bench = Bench::new();
    let (source, destination) = frozen_in_the_switchover(&bench).await;
    let begin = Instant::now();
    source.cancel_stream().await.unwrap();
    let state = source.stream().await.unwrap().state;
    println!(
        "cancel in the switchover: {} ms, {state:?}",
        begin.elapsed().as_millis()
    );
    assert!(
        matches!(state, StreamState::Cancelled | StreamState::Failed),
        "{state:?}"
    );
    until_state(&source, RunState::Paused).await;
    destination.destroy(Duration::from_millis(200)).await.unwrap();
    runs_on(&bench, &source).await;
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn an_unsealed_source_is_restarted_by_qemu_on_a_late_failure() {
    let bench = Bench::new();
    let (source, destination) = brought_to(&bench, When::BeforeSwitchover, false).await;
    let mut events = source.subscribe();
    signal(&destination, Signal::KILL);
    crate::fixture::eventually("an error", async || {
        source.stream().await.unwrap().error.is_some()
    })
    .await;
    source.switch_over().await.unwrap();
    until(&mut events, GuestEventKind::Stream(StreamState::Failed)).await;
    // This is why the seal is needed.
    until_state(&source, RunState::Running).await;
    bench.counts_on("a").await;
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_completed_source_goes_on_when_its_destination_died_before_it_ran() {
    let bench = Bench::new();
    let (source, destination) = brought_to(&bench, When::Completed, true).await;
    let mut events = destination.subscribe();
    signal(&destination, Signal::KILL);
    until(&mut events, GuestEventKind::Died).await;
    assert_eq!(source.run_state().await.unwrap(), RunState::StoppedForMigration);
    runs_on(&bench, &source).await;
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_loaded_destination_goes_on_when_its_source_died() {
    let bench = Bench::new();
    let (source, destination) = brought_to(&bench, When::Completed, true).await;
    let mut events = source.subscribe();
    signal(&source, Signal::KILL);
    until(&mut events, GuestEventKind::Died).await;
    destination.resume().await.unwrap();
    bench.counts_on("b").await;
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_destination_says_so_when_its_source_dies() {
    let bench = Bench::new();
    let (source, destination) = brought_to(&bench, When::Active, false).await;
    signal(&source, Signal::KILL);
    until_stream(&destination, StreamState::Failed).await;
    assert!(matches!(
        destination.resume().await,
        Err(HypervisorError::Command { .. })
    ));
    destination.destroy(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_cancelled_stream_ends_and_another_can_follow() {
    for seal in [false, true] {
        let bench = Bench::new();
        let (source, destination) = brought_to(&bench, When::Active, seal).await;
        source.cancel_stream().await.unwrap();
        assert_ended(&source).await;
        until_state(&source, if seal { RunState::Paused } else { RunState::Running }).await;
        // Once more has no further effect.
        source.cancel_stream().await.unwrap();
        destination.destroy(Duration::from_secs(10)).await.unwrap();
        runs_on(&bench, &source).await;
        move_to_another(&bench, &source).await;
    }
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_stream_is_cancelled_before_the_switchover() {
    let bench = Bench::new();
    let (source, destination) = brought_to(&bench, When::BeforeSwitchover, true).await;
    source.cancel_stream().await.unwrap();
    assert_ended(&source).await;
    destination.destroy(Duration::from_secs(10)).await.unwrap();
    runs_on(&bench, &source).await;
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_stream_to_a_frozen_peer_is_cut() {
    let bench = Bench::new();
    let (source, destination) = brought_to(&bench, When::Active, false).await;
    signal(&destination, Signal::STOP);
    source.set_limits(ALL_OUT).await.unwrap();
    // Until the socket is full and the sender hangs in it.
    let mut before = u64::MAX;
    loop {
        let now = source.stream().await.unwrap().figures.unwrap().transferred_bytes;
        if now == before {
            break;
        }
        before = now;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let begin = Instant::now();
    source.cancel_stream().await.unwrap();
    println!("cancel with a frozen peer: {} ms", begin.elapsed().as_millis());
    assert!(begin.elapsed() < Duration::from_secs(30));
    let state = source.stream().await.unwrap().state;
    assert!(
        matches!(state, StreamState::Cancelled | StreamState::Failed),
        "{state:?}"
    );
    until_state(&source, RunState::Running).await;
    destination.destroy(Duration::from_millis(200)).await.unwrap();
    move_to_another(&bench, &source).await;
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_frozen_guest_is_a_deadline_and_no_more() {
    let bench = Bench::new();
    let guest = bench.launch("a", &new_uid(), Start::Boot).await;
    signal(&guest, Signal::STOP);
    let Err(HypervisorError::Deadline { command, .. }) = guest.run_state().await else {
        panic!("it answered")
    };
    assert_eq!(command, "query-status");
    signal(&guest, Signal::CONT);
    assert_eq!(guest.run_state().await.unwrap(), RunState::Paused);
}

/// What the driver sends where a cancel does not help is something that QEMU takes.
#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_stream_can_be_cut_out_of_band() {
    let bench = Bench::new();
    let (source, destination) = brought_to(&bench, When::Active, true).await;
    let (uid, record) = (uid_of(&source), source.process());
    drop(source);
    let socket = bench.path("a").join("qmp.sock");
    tokio::task::spawn_blocking(move || {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut monitor = BufReader::new(stream);
        for command in [
            r#"{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}, "id": 1}"#,
            r#"{"exec-oob": "yank", "arguments": {"instances": [{"type": "migration"}]}, "id": 2}"#,
        ] {
            monitor.get_mut().write_all(command.as_bytes()).unwrap();
            let mut answer = String::new();
            while !answer.contains("\"return\"") {
                answer.clear();
                monitor.read_line(&mut answer).unwrap();
                assert!(!answer.contains("\"error\"") && !answer.is_empty(), "{answer}");
            }
        }
    })
    .await
    .unwrap();
    let Adoption::Alive(source) = bench.qemu.adopt(&uid, &bench.path("a"), &record).await.unwrap() else {
        panic!("not found")
    };
    until_stream(&source, StreamState::Failed).await;
    until_state(&source, RunState::Paused).await;
    destination.destroy(Duration::from_secs(10)).await.unwrap();
    runs_on(&bench, &source).await;
}

/// The agent dies in mid-stream: the stream goes on, and the next agent finds it where it stands.
#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_stream_goes_on_without_the_driver() {
    let bench = Bench::new();
    let (source, destination) = brought_to(&bench, When::BeforeSwitchover, true).await;
    let (uid, left, right) = (uid_of(&source), source.process(), destination.process());
    drop((source, destination));
    let again =
        async |name: &str, record| match bench.qemu.adopt(&uid, &bench.path(name), record).await.unwrap() {
            Adoption::Alive(guest) => guest,
            Adoption::Gone | Adoption::Unresponsive(_) => panic!("{name} not found"),
        };
    let (source, destination) = (again("a", &left).await, again("b", &right).await);
    assert_eq!(
        source.stream().await.unwrap().state,
        StreamState::BeforeSwitchover
    );
    assert_eq!(destination.run_state().await.unwrap(), RunState::Incoming);
    source.switch_over().await.unwrap();
    until_stream(&source, StreamState::Completed).await;
    until_state(&destination, RunState::Paused).await;
    destination.resume().await.unwrap();
    bench.counts_on("b").await;
}

/// A second migration of the same process works.
async fn move_to_another(bench: &Bench, source: &Arc<dyn Guest>) {
    let uid = uid_of(source);
    let other = bench.launch("c", &uid, Start::Incoming).await;
    start_stream(source, &other, ALL_OUT).await;
    until_stream(source, StreamState::BeforeSwitchover).await;
    source.switch_over().await.unwrap();
    until_stream(source, StreamState::Completed).await;
    until_state(&other, RunState::Paused).await;
    other.resume().await.unwrap();
    bench.counts_on("c").await;
}

fn uid_of(guest: &Arc<dyn Guest>) -> String {
    let arguments = std::fs::read_to_string(format!("/proc/{}/cmdline", guest.process().pid)).unwrap();
    let arguments: Vec<&str> = arguments.split('\0').collect();
    let at = arguments
        .iter()
        .position(|argument| *argument == "-uuid")
        .unwrap();
    arguments[at + 1].into()
}
