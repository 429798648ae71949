//! Agents that come and go, and hypervisors that connect by themselves.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::Duration;

use godwit_relay::channel::{Channel, ChannelKind};
use godwit_relay::client::{self, ClientError, Notice, Place, Relay};
use godwit_relay::limits::Limits;
use godwit_relay::order::{ChannelState, Ending, Event, Role, Task};

use crate::rig::{Agent, MIGRATION, PATIENCE, Rig, memory, opening, patient};

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[test]
fn streams_go_on_without_their_agents_and_are_found_again() {
    let mut rig = Rig::of(Agent::program(), Agent::program());
    let name = memory();
    let (mut near, mut far) = rig.channel(&name);
    for agent in [&mut rig.source, &mut rig.destination] {
        agent.again();
        assert_eq!(agent.state(name.channel), ChannelState::Up);
    }
    let status = rig.destination.relay.status().unwrap();
    let role = Role::Destination;
    let task = Task {
        migration: MIGRATION,
        role,
    };
    assert_eq!(status.task, Some(task));
    near.write_all(b"and on").unwrap();
    far.read_exact(&mut [0; 6]).unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    far.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.source.ended(name.channel), (6, 0, Ending::End));
    // What was missed is in the status.
    assert_eq!(rig.destination.ended(name.channel).2, Ending::End);
    rig.destination.again();
    let status = rig.destination.relay.status().unwrap();
    let ended = ChannelState::Ended { ending: Ending::End };
    assert_eq!(status.channels[0].state, ended);
    assert_eq!(status.channels[0].received, 6);
}

#[test]
fn the_agent_that_came_last_is_the_agent() {
    let mut agent = Agent::within(Limits::default());
    let path = agent.path();
    let (tell, notices) = channel();
    let newer = Relay::attach(&path, PATIENCE, move |notice| drop(tell.send(notice))).unwrap();
    assert_eq!(agent.notices.recv_timeout(PATIENCE), Ok(Notice::Gone));
    assert!(matches!(agent.relay.status(), Err(ClientError::Gone(_))));
    newer.status().unwrap();
    newer.close().unwrap();
    assert_eq!(notices.recv_timeout(PATIENCE), Ok(Notice::Gone));
    agent.notices = channel().1;
}

#[test]
fn a_relay_that_nobody_needs_ends_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("relay.sock")).unwrap();
    let limits = Limits {
        orphaned: Duration::from_millis(100),
        ..Limits::default()
    };
    let (tell, told) = channel();
    let path = directory.path().join("relay.sock");
    let runs = std::thread::spawn(move || {
        godwit_relay::run(&listener, limits).unwrap();
        tell.send(()).unwrap();
    });
    let (gone, notices) = channel();
    let relay = Relay::attach(&path, PATIENCE, move |notice| drop(gone.send(notice))).unwrap();
    assert!(
        told.recv_timeout(limits.orphaned * 4).is_err(),
        "its agent is there"
    );
    drop(relay);
    told.recv_timeout(PATIENCE).unwrap();
    runs.join().unwrap();
    assert_eq!(notices.recv_timeout(PATIENCE), Ok(Notice::Gone));
}

#[test]
fn a_relay_told_to_end_ends_and_cuts_what_it_carries() {
    let mut rig = Rig::of(Agent::program(), Agent::within(Limits::default()));
    let (near, mut far) = rig.channel(&memory());
    rig.source.relay.close().unwrap();
    let ended = rig.source.process.as_mut().unwrap().wait().unwrap();
    assert!(ended.success(), "{ended}");
    assert_eq!(far.read(&mut [0; 1]).unwrap(), 0);
    let (_, _, ending) = rig.destination.ended(memory().channel);
    assert!(matches!(ending, Ending::Cut { .. }), "{ending:?}");
    drop(near);
}

#[test]
fn a_hypervisor_connects_by_itself_once_for_each_channel() {
    let rig = Rig::new();
    let names: Vec<_> = [
        opening(ChannelKind::Memory, 0),
        opening(ChannelKind::Multifd, 0),
        opening(ChannelKind::Multifd, 1),
    ]
    .into();
    // The destination's hypervisor listens at a path, too.
    let far_path = rig.destination.directory.path().join("hypervisor.sock");
    let far_listener = UnixListener::bind(&far_path).unwrap();
    for name in &names {
        rig.destination
            .relay
            .expect(name.clone(), Place::Path(&far_path))
            .unwrap();
    }
    let near_path = rig.source.directory.path().join("listen.sock");
    rig.source
        .relay
        .listen(Place::Path(&near_path), own_uid(), names.clone())
        .unwrap();
    assert_eq!(rig.source.state(names[0].channel), ChannelState::Awaited);
    for (number, name) in names.iter().enumerate() {
        let mut near = patient(UnixStream::connect(&near_path).unwrap());
        rig.arrive();
        rig.source.up(name.channel);
        let mut far = patient(far_listener.accept().unwrap().0);
        let said = [u8::try_from(number).unwrap(); 100];
        near.write_all(&said).unwrap();
        let mut heard = [0; 100];
        far.read_exact(&mut heard).unwrap();
        assert_eq!(said, heard);
        near.shutdown(Shutdown::Both).unwrap();
        far.shutdown(Shutdown::Both).unwrap();
        assert_eq!(rig.source.ended(name.channel).2, Ending::End);
    }
    // One too many finds nobody.
    assert!(UnixStream::connect(&near_path).is_err());
    assert!(!near_path.exists());
}

#[test]
fn r8_another_user_is_not_taken_for_the_hypervisor() {
    let rig = Rig::new();
    let path = rig.source.directory.path().join("listen.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let uid = own_uid() + 1;
    rig.source
        .relay
        .listen(Place::Socket(listener.as_fd()), uid, vec![memory()])
        .unwrap();
    let mut stranger = patient(UnixStream::connect(&path).unwrap());
    assert_eq!(stranger.read(&mut [0; 1]).unwrap(), 0);
    rig.source
        .event(|event| (*event == Event::Stranger { uid: own_uid() }).then_some(()));
    assert_eq!(rig.source.state(memory().channel), ChannelState::Awaited);
}

#[test]
fn a_lost_channel_is_opened_anew_with_another_token() {
    let rig = Rig::of(Agent::program(), Agent::within(Limits::default()));
    let recovery = |number| opening(ChannelKind::Recovery, number);
    let first = recovery(0);
    let (near, far) = rig.channel(&first);
    drop((near, far));
    rig.source.ended(first.channel);
    rig.destination.ended(first.channel);
    for opening in [recovery(0), recovery(1)] {
        let (mut near, mut far) = rig.channel(&opening);
        near.write_all(b"again").unwrap();
        far.read_exact(&mut [0; 5]).unwrap();
    }
    let status = rig.source.relay.status().unwrap();
    let names: Vec<Channel> = status.channels.iter().map(|known| known.channel).collect();
    assert_eq!(names, [recovery(0).channel, recovery(1).channel]);
}

#[test]
fn the_program_gives_up_what_it_does_not_need() {
    let agent = Agent::program();
    let pid = agent.process.as_ref().unwrap().id();
    agent.relay.status().unwrap();
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let status = read("status");
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let limits = read("limits");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    // Root reads anything; that the kernel keeps others out shows in the owner of its directory.
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(format!("/proc/{pid}/mem")).unwrap());
    assert_eq!(owner, 0);
    assert_eq!(
        read("cmdline").split('\0').nth(1),
        Some("-"),
        "nothing is told by arguments"
    );
    assert_eq!(read("environ").matches("KEY").count(), 0);
}

#[test]
fn wrong_arguments_are_told() {
    let run = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_godwit-relay"))
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap()
    };
    let help = run(&["--help"]);
    assert!(help.status.success());
    assert!(String::from_utf8_lossy(&help.stdout).contains("CONTROL-SOCKET"));
    for wrong in [&[][..], &["--no-such"], &["a", "b"]] {
        assert_eq!(run(wrong).status.code(), Some(2), "{wrong:?}");
    }
    let not_a_socket = run(&["-"]);
    assert_eq!(not_a_socket.status.code(), Some(1));
    let missing = client::start(
        Command::new("/no/such/program"),
        &tempfile::tempdir().unwrap().path().join("s"),
    );
    assert!(missing.is_err());
}
