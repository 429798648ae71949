//! Peers that say nothing: each wait has an end, and the end has a name.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use godwit_relay::header;
use godwit_relay::limits::Limits;
use godwit_relay::order::{Ending, OpenFailure, Side};

use crate::authority::{DESTINATION, SOURCE};
use crate::peers::{self, good_source};
use crate::rig::{Agent, PATIENCE, Rig, memory};

fn short() -> Rig {
    let limits = Limits {
        opening: Duration::from_millis(400),
        silence: Duration::from_secs(1),
        ..Limits::default()
    };
    Rig::of(Agent::within(limits), Agent::within(limits))
}

#[test]
fn a_destination_that_never_answers_is_given_up() {
    let rig = short();
    let name = memory();
    // In the handshake: the connection is there, and nobody takes it.
    let mut near = rig.source.open(&name);
    let begun = Instant::now();
    assert_eq!(rig.source.failed(name.channel), OpenFailure::Deadline);
    assert!(begun.elapsed() < PATIENCE / 2);
    assert_eq!(near.read(&mut [0; 1]).unwrap(), 0);
    drop(rig.port.accept().unwrap());
    // After the header.
    let near = rig.source.open(&name);
    let silent = peers::destination(&rig.port, &rig.authority.of(DESTINATION));
    assert_eq!(rig.source.failed(name.channel), OpenFailure::Deadline);
    drop((near, silent));
}

#[test]
fn a_destination_that_is_not_there_is_told_at_once() {
    let rig = short();
    let address = rig.address();
    let Rig { source, port, .. } = rig;
    drop(port);
    assert!(TcpStream::connect(address).is_err());
    let near = source.open(&memory());
    assert!(matches!(source.failed(memory().channel), OpenFailure::Connect(_)));
    drop(near);
}

#[test]
fn r6_a_source_that_never_says_what_it_is_is_given_up() {
    let rig = short();
    // Nothing at all; a part of a hello; a handshake and half a header, byte by byte.
    let nothing = TcpStream::connect(rig.address()).unwrap();
    let (socket, _) = rig.port.accept().unwrap();
    rig.destination.relay.arrived(&socket, vec![]).unwrap();
    assert_eq!(rig.destination.rejected(), OpenFailure::Deadline);
    let (socket, _) = {
        let _kept = TcpStream::connect(rig.address()).unwrap();
        let accepted = rig.port.accept().unwrap();
        rig.destination
            .relay
            .arrived(&accepted.0, vec![22, 3, 1])
            .unwrap();
        assert_eq!(rig.destination.rejected(), OpenFailure::Deadline);
        accepted
    };
    let mut trickle = good_source(rig.address(), &rig.authority.of(SOURCE));
    rig.arrive();
    let begun = Instant::now();
    let mut said = 0;
    for byte in peers::header(&memory()).encode() {
        if trickle.write_all(&[byte]).and_then(|()| trickle.flush()).is_err() {
            break;
        }
        said += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(said < header::LENGTH, "one deadline for all of it");
    assert_eq!(rig.destination.rejected(), OpenFailure::Deadline);
    assert!(begun.elapsed() < PATIENCE);
    drop((nothing, socket));
}

#[test]
fn a_peer_that_takes_nothing_any_more_is_a_cut() {
    let rig = short();
    let name = memory();
    let mut near = rig.source.open(&name);
    let (mut destination, _) = peers::destination(&rig.port, &rig.authority.of(DESTINATION));
    destination.write_all(&[header::answer(Ok(()))]).unwrap();
    rig.source.up(name.channel);
    // It lives, but reads nothing: the buffers between fill up, and then time passes.
    let block = vec![7; 1 << 20];
    let error = loop {
        if let Err(error) = near.write_all(&block) {
            break error;
        }
    };
    assert_ne!(
        error.kind(),
        std::io::ErrorKind::WouldBlock,
        "the relay has given up first"
    );
    let (_, _, ending) = rig.source.ended(name.channel);
    assert!(
        matches!(ending, Ending::Cut { side: Side::Peer, .. }),
        "{ending:?}"
    );
}

#[test]
fn many_connections_that_say_nothing_do_not_keep_others_out_for_long() {
    let rig = short();
    let silent: Vec<_> = (0..40)
        .map(|_| {
            let silent = TcpStream::connect(rig.address()).unwrap();
            let (socket, _) = TcpListener::accept(&rig.port).unwrap();
            rig.destination.relay.arrived(&socket, vec![]).unwrap();
            silent
        })
        .collect();
    let (mut near, mut far) = rig.channel(&memory());
    near.write_all(b"x").unwrap();
    far.read_exact(&mut [0; 1]).unwrap();
    for _ in &silent {
        assert_eq!(rig.destination.rejected(), OpenFailure::Deadline);
    }
}
