//! A stream over several connections, which the two QEMUs make themselves.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use godwit_agent::hypervisor::{
    Guest, HypervisorError, Place, RunState, Start, Stream, StreamLimits, StreamState, Way,
};
use rustix::process::Signal;

use crate::fixture::{
    ALL_OUT, Bench, SLOWLY, assert_counts, bring_over, eventually, new_uid, signal, until_state,
    until_stream, user,
};

const CONNECTIONS: u32 = 4;

/// What lies between two guests that see nothing of each other: takes connections in one's directory and goes on to
/// the other's.
struct Between {
    /// Bytes from the source, for each connection.
    carried: Arc<Mutex<Vec<Arc<AtomicU64>>>>,
    near: PathBuf,
}

impl Between {
    fn new(source: &Arc<dyn Guest>, destination: &Arc<dyn Guest>) -> Self {
        let near = source.directory().join("there.sock");
        let far = destination.directory().join("here.sock");
        let _ = std::fs::remove_file(&near);
        let listener = UnixListener::bind(&near).unwrap();
        if user().is_some() {
            chown(&near, user(), user()).unwrap();
            std::fs::set_permissions(&near, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        let carried = Arc::new(Mutex::new(Vec::new()));
        let all = carried.clone();
        std::thread::spawn(move || {
            while let Ok((source, _)) = listener.accept() {
                let count = Arc::new(AtomicU64::new(0));
                all.lock().unwrap().push(count.clone());
                let destination = UnixStream::connect(&far).unwrap();
                let (back, forth) = (source.try_clone().unwrap(), destination.try_clone().unwrap());
                std::thread::spawn(move || pump(source, forth, &count));
                std::thread::spawn(move || pump(destination, back, &AtomicU64::new(0)));
            }
        });
        Self { carried, near }
    }

    fn each(&self) -> Vec<u64> {
        let carried = self.carried.lock().unwrap();
        carried
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .collect()
    }
}

fn pump(mut from: UnixStream, mut to: UnixStream, count: &AtomicU64) {
    let mut chunk = vec![0; 1 << 16];
    while let Ok(read @ 1..) = from.read(&mut chunk) {
        if to.write_all(&chunk[..read]).is_err() {
            break;
        }
        count.fetch_add(read as u64, Ordering::Relaxed);
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

fn at(path: PathBuf) -> Stream {
    Stream {
        way: Way::Place {
            place: Place::Unix(path),
            connections: CONNECTIONS,
        },
        key: None,
    }
}

async fn start(source: &Arc<dyn Guest>, destination: &Arc<dyn Guest>, limits: StreamLimits) -> Between {
    destination
        .receive(at(destination.directory().join("here.sock")))
        .await
        .unwrap();
    let between = Between::new(source, destination);
    source.send(at(between.near.clone()), limits).await.unwrap();
    between
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn memory_is_spread_over_the_connections_that_were_asked_for() {
    let bench = Bench::new();
    let uid = new_uid();
    let source = bench.launch("a", &uid, Start::Boot).await;
    source.resume().await.unwrap();
    bench.counts_on("a").await;
    let destination = bench.launch("b", &uid, Start::Incoming).await;
    // Slow at first: memory that is sent all out may have gone before anybody looks.
    let between = start(&source, &destination, SLOWLY).await;
    until_stream(&source, StreamState::Active).await;
    source.pause().await.unwrap();
    source.set_limits(ALL_OUT).await.unwrap();
    until_stream(&source, StreamState::BeforeSwitchover).await;
    source.switch_over().await.unwrap();
    until_stream(&source, StreamState::Completed).await;
    until_state(&destination, RunState::Paused).await;
    let said = bench.console("a");
    destination.resume().await.unwrap();
    bench.counts_on("b").await;
    assert_counts(&[said, bench.console("b")].concat());
    let each = between.each();
    assert_eq!(each.len(), 5, "one beside the four: {each:?}");
    assert!(each.iter().all(|bytes| *bytes > 0), "{each:?}");
    // What QEMU made is gone with its stream.
    assert!(!destination.directory().join("here.sock").exists());
    source.destroy(Duration::from_secs(10)).await.unwrap();
    // On over one connection: nothing is left of the several.
    let third = bench.launch("c", &uid, Start::Incoming).await;
    crate::fixture::hand_over(&destination, &third).await;
    bench.counts_on("c").await;
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn several_connections_to_a_frozen_destination_are_cancelled_and_the_next_stream_works() {
    let bench = Bench::new();
    let uid = new_uid();
    let source = bench.launch("a", &uid, Start::Boot).await;
    source.resume().await.unwrap();
    let destination = bench.launch("b", &uid, Start::Incoming).await;
    let between = start(&source, &destination, SLOWLY).await;
    until_stream(&source, StreamState::Active).await;
    signal(&destination, Signal::STOP);
    source.set_limits(ALL_OUT).await.unwrap();
    // Until every connection is full, and the senders hang in them.
    let before = Mutex::new(Vec::new());
    eventually("nothing moves", async || {
        let now = between.each();
        std::mem::replace(&mut *before.lock().unwrap(), now.clone()) == now && now.len() == 5
    })
    .await;
    let begin = Instant::now();
    source.cancel_stream().await.unwrap();
    println!("cancelled in {:?}", begin.elapsed());
    destination.destroy(Duration::from_millis(200)).await.unwrap();
    until_state(&source, RunState::Running).await;
    bench.counts_on("a").await;
    let next = bench.launch("c", &uid, Start::Incoming).await;
    let between = start(&source, &next, SLOWLY).await;
    bring_over(&source, &next).await;
    bench.counts_on("c").await;
    assert_eq!(between.each().len(), 5);
}

/// A place that cannot be had is told at once. QEMU 10.0 then takes no other in the same process.
#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_place_that_cannot_be_had_is_refused() {
    let bench = Bench::new();
    let destination = bench.launch("b", &new_uid(), Start::Incoming).await;
    let nowhere = destination.directory().join("nowhere").join("here.sock");
    let refused = destination.receive(at(nowhere)).await;
    assert!(
        matches!(refused, Err(HypervisorError::Command { .. })),
        "{refused:?}"
    );
    destination.destroy(Duration::from_secs(10)).await.unwrap();
}

/// A destination whose connections do not all come waits; nothing of it runs, and it can be given up.
#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_destination_that_lacks_a_connection_goes_nowhere_and_is_given_up() {
    let bench = Bench::new();
    let destination = bench.launch("b", &new_uid(), Start::Incoming).await;
    let path = destination.directory().join("here.sock");
    destination.receive(at(path.clone())).await.unwrap();
    // The first, with the beginning of a stream on it; then nobody.
    let mut first = UnixStream::connect(&path).unwrap();
    first.write_all(&[0x51, 0x45, 0x56, 0x4d, 0, 0, 0, 3]).unwrap();
    // It answers while it waits.
    for _ in 0..3 {
        assert_eq!(destination.run_state().await.unwrap(), RunState::Incoming);
        let state = destination.stream().await.unwrap().state;
        assert!(
            matches!(state, StreamState::Setup | StreamState::None),
            "{state:?}"
        );
    }
    drop(first);
    destination.destroy(Duration::from_secs(10)).await.unwrap();
    assert!(destination.has_ended());
}
