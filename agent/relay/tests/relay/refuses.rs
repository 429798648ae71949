//! What is not let in, by name.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use godwit_relay::channel::{Channel, ChannelKind, Token};
use godwit_relay::client::{ClientError, Place};
use godwit_relay::header::{self, LENGTH, Refusal};
use godwit_relay::hello::ALPN_TUNNEL;
use godwit_relay::limits::Limits;
use godwit_relay::order::{Begin, ChannelState, Credentials, End, OpenFailure, Opening, OrderRefusal};
use uuid::Uuid;

use crate::authority::{Authority, DESTINATION, Good, SOURCE};
use crate::peers::{self, good_source, present};
use crate::rig::{Agent, MIGRATION, Rig, memory, opening};

/// Presents a header, and sees the refusal at both ends.
fn refused(rig: &Rig, header: &[u8; LENGTH], expected: Refusal) {
    let mut source = good_source(rig.address(), &rig.authority.of(SOURCE));
    rig.arrive();
    let answer = present(&mut source, header);
    assert_eq!(header::verdict(answer), Some(Err(expected)));
    // In order, so that the answer is not lost; and nothing after it.
    assert_eq!(source.read(&mut [0; 1]).unwrap(), 0);
    drop(source);
    assert_eq!(rig.destination.rejected(), OpenFailure::Refused(expected));
}

#[test]
fn r2_each_wrong_header_is_refused_by_name_and_others_go_on() {
    let rig = Rig::new();
    let first = memory();
    let (mut near, mut far) = rig.channel(&first);
    let [second, third, fourth, gone] = [0, 1, 2, 3].map(|n| opening(ChannelKind::Multifd, n));
    let ends = [&second, &third, &fourth].map(|opening| rig.destination.expect(opening));
    let nowhere = rig.destination.directory.path().join("nowhere.sock");
    rig.destination
        .relay
        .expect(gone.clone(), Place::Path(&nowhere))
        .unwrap();
    let good = peers::header(&second);

    let mut not_a_header = good.encode();
    not_a_header[0] = 0;
    refused(&rig, &not_a_header, Refusal::NotAHeader);
    let mut version = good.encode();
    version[4] = 9;
    refused(&rig, &version, Refusal::Version);
    let mut kind = good.encode();
    kind[5] = 99;
    refused(&rig, &kind, Refusal::UnknownKind);
    let mut elsewhere = good.clone();
    elsewhere.migration = Uuid::from_u128(2);
    refused(&rig, &elsewhere.encode(), Refusal::WrongMigration);
    let mut unknown = good.clone();
    unknown.token = Token::generate().unwrap();
    refused(&rig, &unknown.encode(), Refusal::UnknownToken);
    refused(&rig, &peers::header(&first).encode(), Refusal::UsedToken);
    // Swapped channels, by kind and by number.
    let mut swapped = peers::header(&third);
    swapped.channel = Channel::new(ChannelKind::Preempt, 1);
    refused(&rig, &swapped.encode(), Refusal::WrongKind);
    let mut swapped = peers::header(&fourth);
    swapped.channel = second.channel;
    refused(&rig, &swapped.encode(), Refusal::WrongNumber);
    refused(&rig, &peers::header(&gone).encode(), Refusal::Unreachable);

    // After all that, the one that is right, and the one that was there.
    let mut source = good_source(rig.address(), &rig.authority.of(SOURCE));
    rig.arrive();
    assert_eq!(present(&mut source, &good.encode()), header::answer(Ok(())));
    rig.destination.up(second.channel);
    refused(&rig, &unknown.encode(), Refusal::TooManyChannels);
    near.write_all(b"on").unwrap();
    far.read_exact(&mut [0; 2]).unwrap();
    assert_eq!(rig.destination.relay.status().unwrap().rejected, 10);
    drop(ends);
}

#[test]
fn the_source_is_told_why_its_channel_is_refused() {
    let rig = Rig::new();
    let name = memory();
    let mut near = rig.source.open(&name);
    rig.arrive();
    let expected = OpenFailure::Refused(Refusal::TooManyChannels);
    assert_eq!(rig.source.failed(name.channel), expected);
    assert_eq!(rig.destination.rejected(), expected);
    assert_eq!(near.read(&mut [0; 1]).unwrap(), 0, "its hypervisor is let go");
    assert_eq!(
        rig.source.state(name.channel),
        ChannelState::Failed { failure: expected }
    );
}

fn handshake_fails(failure: &OpenFailure, with: &str) {
    let OpenFailure::Handshake(why) = failure else {
        panic!("{failure:?}");
    };
    assert!(why.contains(with), "{why}");
}

#[test]
fn r4_the_destination_takes_the_source_of_this_migration_only() {
    let rig = Rig::new();
    let other = Authority::new();
    let of = |uris: &[&str], good| rig.authority.credentials(uris, good);
    let cases: [(Option<Credentials>, &str); 7] = [
        (
            Some(rig.authority.of("spiffe://test.example/host/another")),
            "not that of spiffe://test.example/host/source",
        ),
        (Some(of(&[], Good::Now)), "not that of"),
        (Some(of(&[SOURCE, DESTINATION], Good::Now)), "not that of"),
        (Some(other.of(SOURCE)), "BadSignature"),
        (Some(of(&[SOURCE], Good::Earlier)), "expired"),
        (Some(of(&[SOURCE], Good::Later)), "not valid yet"),
        (None, "no certificates"),
    ];
    for (credentials, why) in cases {
        let mut source = peers::source(rig.address(), credentials.as_ref(), &[ALPN_TUNNEL]);
        source.conn.write_tls(&mut source.sock).unwrap();
        rig.arrive();
        // With TLS 1.3 a client learns afterwards that it is not wanted.
        let read = source.read(&mut [0; 1]);
        assert!(read.is_err(), "{why}: {read:?}");
        drop(source);
        handshake_fails(&rig.destination.rejected(), why);
    }
}

#[test]
fn r4_the_source_speaks_with_the_destination_of_this_migration_only() {
    let rig = Rig::new();
    let other = Authority::new();
    let of = |uris: &[&str], good| rig.authority.credentials(uris, good);
    for (credentials, why) in [
        (
            rig.authority.of("spiffe://test.example/host/another"),
            "not that of spiffe://test.example/host/destination",
        ),
        (rig.authority.of(SOURCE), "not that of"),
        (other.of(DESTINATION), "BadSignature"),
        (of(&[DESTINATION], Good::Earlier), "expired"),
        (of(&[DESTINATION], Good::Later), "not valid yet"),
    ] {
        let name = memory();
        let near = rig.source.open(&name);
        let mut destination = peers::bare_destination(&rig.port, &credentials);
        let read = destination.read(&mut [0; 1]);
        assert!(read.is_err(), "{why}: a header came: {read:?}");
        drop(destination);
        handshake_fails(&rig.source.failed(name.channel), why);
        drop(near);
    }
}

#[test]
fn r5_an_older_tls_is_not_spoken() {
    let rig = Rig::new();
    let credentials = rig.authority.of(SOURCE);
    let mut source = peers::source_with(
        rig.address(),
        Some(&credentials),
        &[ALPN_TUNNEL],
        &rustls::version::TLS12,
    );
    source.conn.write_tls(&mut source.sock).unwrap();
    rig.arrive();
    let error = source.read(&mut [0; 1]).unwrap_err();
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
    drop(source);
    handshake_fails(&rig.destination.rejected(), "Tls12NotOfferedOrEnabled");
}

#[test]
fn other_protocols_are_turned_away() {
    let rig = Rig::new();
    let credentials = rig.authority.of(SOURCE);
    let offered: [&[&[u8]]; 2] = [&[b"h2"], &[]];
    for alpn in offered {
        let mut source = peers::source(rig.address(), Some(&credentials), alpn);
        source.conn.write_tls(&mut source.sock).unwrap();
        let (socket, _) = rig.port.accept().unwrap();
        let hello = crate::rig::hand_on(socket, &rig.destination.relay);
        assert_eq!(hello.tunnel(), None, "an agent hands on no such connection");
        drop(source);
        assert!(matches!(
            rig.destination.rejected(),
            OpenFailure::Handshake(_) | OpenFailure::Lost(_)
        ));
    }
    // No TLS at all.
    let mut stray = TcpStream::connect(rig.address()).unwrap();
    stray.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let (socket, _) = rig.port.accept().unwrap();
    rig.destination.relay.arrived(&socket, vec![]).unwrap();
    drop(stray);
    assert!(matches!(rig.destination.rejected(), OpenFailure::Handshake(_)));
}

fn order_refused(result: Result<(), ClientError>) -> OrderRefusal {
    match result {
        Err(ClientError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn orders_that_cannot_be_are_refused_and_change_nothing() {
    let agent = Agent::within(Limits::default());
    let authority = Authority::new();
    let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
    let relay = &agent.relay;
    assert_eq!(order_refused(relay.open(memory(), &one)), OrderRefusal::NotBegun);
    let mut begin = Begin {
        migration: MIGRATION,
        end: End::Destination,
        peer: SOURCE.to_owned(),
        credentials: authority.of(DESTINATION),
    };
    let good = begin.clone();
    begin.credentials.key = "not a key".to_owned();
    assert!(matches!(
        order_refused(relay.begin(begin)),
        OrderRefusal::Credentials(_)
    ));
    relay.begin(good.clone()).unwrap();
    assert_eq!(order_refused(relay.begin(good)), OrderRefusal::Begun);
    assert_eq!(order_refused(relay.open(memory(), &one)), OrderRefusal::WrongRole);
    let file = std::fs::File::open("/dev/null").unwrap();
    let place = Place::Socket(std::os::fd::AsFd::as_fd(&file));
    assert_eq!(order_refused(relay.expect(memory(), place)), OrderRefusal::Socket);
    assert_eq!(order_refused(relay.arrived(&one, vec![])), OrderRefusal::Socket);
    let path = "x".repeat(300 * 1024);
    assert!(matches!(
        order_refused(relay.expect(memory(), Place::Path(path.as_ref()))),
        OrderRefusal::Unreadable(_)
    ));
    let first = memory();
    let there = agent.expect(&first);
    let again = Opening {
        channel: Channel::new(ChannelKind::Multifd, 0),
        token: first.token.clone(),
    };
    let place = Place::Socket(std::os::fd::AsFd::as_fd(&other));
    assert_eq!(
        order_refused(relay.expect(again.clone(), place)),
        OrderRefusal::TokenExists(again.channel)
    );
    assert_eq!(relay.status().unwrap().channels.len(), 1);
    drop(there);
}
