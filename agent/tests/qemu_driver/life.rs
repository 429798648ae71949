//! Starting, stopping, finding again, ending.

use std::time::Duration;

use godwit_agent::hypervisor::{
    Adoption, GuestEventKind, Hypervisor, HypervisorError, ProcessRecord, RunState, Start,
};
use rustix::process::Signal;
use serde_json::json;

use crate::fixture::{Bench, eventually, lives, new_uid, signal, until, until_state, user};

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_guest_starts_stopped_runs_pauses_and_ends() {
    let bench = Bench::new();
    let begin = std::time::Instant::now();
    let guest = bench.launch("a", &new_uid(), Start::Boot).await;
    println!("launch: {} ms", begin.elapsed().as_millis());
    let mut events = guest.subscribe();
    assert_eq!(guest.run_state().await.unwrap(), RunState::Paused);
    guest.resume().await.unwrap();
    assert_eq!(guest.run_state().await.unwrap(), RunState::Running);
    bench.counts_on("a").await;
    guest.pause().await.unwrap();
    assert_eq!(guest.run_state().await.unwrap(), RunState::Paused);
    let (resumed, stopped) = (
        until(&mut events, GuestEventKind::Resumed).await,
        until(&mut events, GuestEventKind::Stopped).await,
    );
    assert!(
        stopped.last().unwrap().at_micros > resumed[0].at_micros
            && resumed[0].at_micros > 1_600_000_000_000_000
    );
    let said = bench.console("a");
    guest.pause().await.unwrap();
    assert_eq!(bench.console("a"), said);
    guest.resume().await.unwrap();
    bench.counts_on("a").await;
    crate::fixture::assert_counts(&bench.console("a"));
    assert!(guest.resident_bytes().await.unwrap() > 1 << 20);
    assert_eq!(guest.migration_blockers().await.unwrap(), Vec::<String>::new());

    guest.destroy(Duration::from_secs(10)).await.unwrap();
    assert!(!lives(&guest));
    until(&mut events, GuestEventKind::Died).await;
    guest.destroy(Duration::from_secs(10)).await.unwrap();
    assert!(matches!(guest.run_state().await, Err(HypervisorError::Died)));
    for left in ["qmp.sock", "console.sock"] {
        assert!(!bench.path("a").join(left).exists(), "{left}");
    }
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_guests_process_is_confined() {
    let bench = Bench::new();
    let guest = bench.launch("a", &new_uid(), Start::Boot).await;
    let pid = guest.process().pid;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap()
            .split_whitespace()
            .collect::<Vec<_>>()
    };
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), (vec!["1"], vec!["2"]));
    if let Some(user) = user() {
        assert_eq!(field("Uid:"), vec![user.to_string(); 4]);
        assert_eq!(field("Gid:"), vec![user.to_string(); 4]);
        assert_eq!(
            (field("Groups:"), field("CapEff:")),
            (vec![], vec!["0000000000000000"])
        );
    }
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let cores: Vec<&str> = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max core file size"))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(&cores[..2], ["0", "0"]);
    // A process group of its own: what ends the agent does not end it.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    assert_eq!(
        stat.rsplit_once(')').unwrap().1.split_whitespace().nth(2),
        Some(pid.to_string().as_str())
    );
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_guest_is_found_again() {
    let bench = Bench::new();
    let uid = new_uid();
    let guest = bench.launch("a", &uid, Start::Boot).await;
    guest.resume().await.unwrap();
    let record = guest.process();
    drop(guest);

    let adopted = async |uid: &str, record: &ProcessRecord| {
        bench.qemu.adopt(uid, &bench.path("a"), record).await.unwrap()
    };
    let Adoption::Alive(guest) = adopted(&uid, &record).await else {
        panic!("not found")
    };
    assert_eq!(
        (guest.run_state().await.unwrap(), guest.process()),
        (RunState::Running, record.clone())
    );
    bench.counts_on("a").await;
    drop(guest);
    // It says itself that it is another.
    assert!(matches!(
        adopted(&new_uid(), &record).await,
        Adoption::Unresponsive(_)
    ));

    let Adoption::Alive(guest) = adopted(&uid, &record).await else {
        panic!("not found")
    };
    signal(&guest, Signal::STOP);
    drop(guest);
    let Adoption::Unresponsive(reason) = adopted(&uid, &record).await else {
        panic!("a frozen process answered")
    };
    println!("frozen: {reason}");
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(record.pid as i32).unwrap(),
        Signal::CONT,
    )
    .unwrap();
    let Adoption::Alive(guest) = adopted(&uid, &record).await else {
        panic!("not found")
    };

    let mut events = guest.subscribe();
    signal(&guest, Signal::KILL);
    until(&mut events, GuestEventKind::Died).await;
    assert!(matches!(guest.pause().await, Err(HypervisorError::Died)));
    assert!(matches!(adopted(&uid, &record).await, Adoption::Gone));
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn another_process_is_never_taken_for_the_guest() {
    let bench = Bench::new();
    let uid = new_uid();
    let guest = bench.launch("a", &uid, Start::Boot).await;
    let record = guest.process();
    let recycled = ProcessRecord {
        start_time: record.start_time - 1,
        ..record.clone()
    };
    let other_boot = ProcessRecord {
        boot_id: new_uid(),
        ..record.clone()
    };
    // Looked for elsewhere, so that the living guest keeps its sockets.
    let elsewhere = bench.path("b");
    for record in [recycled, other_boot] {
        assert!(matches!(
            bench.qemu.adopt(&uid, &elsewhere, &record).await.unwrap(),
            Adoption::Gone
        ));
    }
    assert_eq!(guest.run_state().await.unwrap(), RunState::Paused);
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn the_guests_own_acts_are_told_apart() {
    let bench = Bench::new();
    let guest = bench.launch("a", &new_uid(), Start::Boot).await;
    let mut events = guest.subscribe();
    guest.resume().await.unwrap();
    bench.counts_on("a").await;
    bench.tell("a", b'r');
    until(&mut events, GuestEventKind::Reset).await;
    bench.counts_on("a").await;
    assert_eq!(guest.run_state().await.unwrap(), RunState::Running);
    bench.tell("a", b'p');
    until(&mut events, GuestEventKind::Panicked).await;
    until_state(&guest, RunState::Panicked).await;
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_guest_that_powers_off_is_kept() {
    let bench = Bench::new();
    let guest = bench.launch("a", &new_uid(), Start::Boot).await;
    let mut events = guest.subscribe();
    guest.resume().await.unwrap();
    bench.counts_on("a").await;
    bench.tell("a", b'o');
    until(&mut events, GuestEventKind::ShutDown).await;
    until_state(&guest, RunState::ShutDown).await;
    assert!(lives(&guest));
    let Err(HypervisorError::Command { message, .. }) = guest.resume().await else {
        panic!("a guest without power ran")
    };
    println!("resume after power off: {message}");
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_frozen_process_is_killed_after_the_deadline() {
    let bench = Bench::new();
    let guest = bench.launch("a", &new_uid(), Start::Boot).await;
    guest.resume().await.unwrap();
    signal(&guest, Signal::STOP);
    let begin = std::time::Instant::now();
    guest.destroy(Duration::from_secs(1)).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(1) && begin.elapsed() < Duration::from_secs(30));
    assert!(!lives(&guest));
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn the_guest_writes_to_its_disk() {
    for cache in ["None", "Writeback", "Writethrough", "DirectSync"] {
        // A disk of its own: the count that the guest before has left there may well be this one's too.
        let bench = Bench::new();
        let definition = json!({"disks": [{"name": "root", "file": {"file": "disk.img"}, "cache": cache}]});
        let name = format!("a-{cache}");
        let guest = bench
            .try_launch(bench.order(&name, &new_uid(), Start::Boot, definition))
            .await
            .unwrap();
        guest.resume().await.unwrap();
        bench.counts_on(&name).await;
        let second = || std::fs::read(bench.path("disk.img")).unwrap()[512..516].to_vec();
        let before = second();
        bench.tell(&name, b'w');
        eventually("the disk changes", async || second() != before).await;
        guest.destroy(Duration::from_secs(10)).await.unwrap();
    }
}
