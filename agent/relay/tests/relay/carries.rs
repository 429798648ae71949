//! Streams: that they arrive whole, and that an end and a cut are never taken for each other.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use godwit_relay::channel::ChannelKind;
use godwit_relay::header;
use godwit_relay::limits::Limits;
use godwit_relay::order::{Ending, Side};
use rustls::Connection;

use crate::authority::{DESTINATION, SOURCE};
use crate::peers::{self, good_source, present};
use crate::rig::{Agent, Rig, hand_on, memory, opening};

const BLOCK: usize = 1 << 20;

/// Random bytes without end, each block of them another.
struct Random(Vec<u8>);

impl Random {
    fn new() -> Self {
        let mut bytes = vec![0; BLOCK + 4096];
        std::fs::File::open("/dev/urandom")
            .unwrap()
            .read_exact(&mut bytes)
            .unwrap();
        Self(bytes)
    }

    fn block(&self, number: usize) -> &[u8] {
        &self.0[number * 797 % 4096..][..BLOCK]
    }

    fn write(&self, to: &mut impl Write, blocks: usize) {
        for number in 0..blocks {
            to.write_all(self.block(number)).unwrap();
        }
    }

    fn read(&self, from: &mut impl Read, blocks: usize) {
        let mut read = vec![0; BLOCK];
        for number in 0..blocks {
            from.read_exact(&mut read).unwrap();
            assert!(read == self.block(number), "block {number} is another");
        }
    }
}

fn at_end(from: &mut impl Read) -> bool {
    from.read(&mut [0; 16]).unwrap() == 0
}

fn cut_by_peer(ending: &Ending) -> bool {
    matches!(ending, Ending::Cut { side: Side::Peer, .. })
}

#[test]
fn a_quarter_gibibyte_arrives_as_it_was_sent_while_something_comes_back() {
    let rig = Rig::new();
    let (mut near, mut far) = rig.channel(&memory());
    let random = Random::new();
    std::thread::scope(|scope| {
        let mut back = (near.try_clone().unwrap(), far.try_clone().unwrap());
        scope.spawn(|| {
            random.write(&mut near, 256);
            near.shutdown(Shutdown::Write).unwrap();
        });
        scope.spawn(|| {
            random.read(&mut far, 256);
            assert!(at_end(&mut far));
        });
        scope.spawn(move || {
            for byte in 0..200 {
                back.1.write_all(&[byte]).unwrap();
                let mut echo = [0];
                back.0.read_exact(&mut echo).unwrap();
                assert_eq!(echo, [byte]);
            }
            back.1.shutdown(Shutdown::Write).unwrap();
            assert!(at_end(&mut back.0));
        });
    });
    let quarter = 256 << 20;
    let name = memory().channel;
    assert_eq!(rig.source.ended(name), (quarter, 200, Ending::End));
    assert_eq!(rig.destination.ended(name), (200, quarter, Ending::End));
}

#[test]
fn each_direction_ends_by_itself() {
    for source_first in [true, false] {
        let rig = Rig::new();
        let (mut near, mut far) = rig.channel(&memory());
        let (first, second) = if source_first {
            (&mut near, &mut far)
        } else {
            (&mut far, &mut near)
        };
        first.write_all(b"all").unwrap();
        first.shutdown(Shutdown::Write).unwrap();
        let mut all = vec![];
        second.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"all");
        // The other direction is as good as before.
        let random = Random::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                random.write(second, 4);
                second.shutdown(Shutdown::Write).unwrap();
            });
            random.read(first, 4);
            assert!(at_end(first));
        });
        let name = memory().channel;
        assert_eq!(rig.source.ended(name).2, Ending::End);
        assert_eq!(rig.destination.ended(name).2, Ending::End);
    }
}

#[test]
fn four_and_eight_channels_carry_at_once() {
    for number in [4, 8] {
        let rig = Rig::new();
        let random = Random::new();
        let names: Vec<_> = (0..number).map(|n| opening(ChannelKind::Multifd, n)).collect();
        let mut ends: Vec<_> = names.iter().map(|name| rig.channel(name)).collect();
        std::thread::scope(|scope| {
            for (near, far) in &mut ends {
                scope.spawn(|| {
                    random.write(near, 8);
                    near.shutdown(Shutdown::Both).unwrap();
                });
                scope.spawn(|| {
                    random.read(far, 8);
                    assert!(at_end(far));
                    far.shutdown(Shutdown::Both).unwrap();
                });
            }
        });
        for name in names {
            assert_eq!(rig.destination.ended(name.channel), (0, 8 << 20, Ending::End));
        }
    }
}

#[test]
fn a_source_that_closes_without_an_end_has_cut_the_stream() {
    let rig = Rig::new();
    let name = memory();
    let mut far = rig.destination.expect(&name);
    let mut source = good_source(rig.address(), &rig.authority.of(SOURCE));
    rig.arrive();
    assert_eq!(
        present(&mut source, &peers::header(&name).encode()),
        header::answer(Ok(()))
    );
    source.write_all(b"half of i").unwrap();
    source.flush().unwrap();
    let mut half = [0; 9];
    far.read_exact(&mut half).unwrap();
    source.sock.shutdown(Shutdown::Both).unwrap();
    assert!(at_end(&mut far));
    let (_, received, ending) = rig.destination.ended(name.channel);
    assert_eq!(received, 9);
    assert!(cut_by_peer(&ending), "{ending:?}");
}

#[test]
fn a_destination_that_closes_without_an_end_has_cut_the_stream_in_both_directions() {
    let rig = Rig::new();
    let name = memory();
    let mut near = rig.source.open(&name);
    let (mut destination, header) = peers::destination(&rig.port, &rig.authority.of(DESTINATION));
    assert_eq!(header.channel, name.channel);
    destination.write_all(&[header::answer(Ok(()))]).unwrap();
    rig.source.up(name.channel);
    near.write_all(b"forward").unwrap();
    destination.read_exact(&mut [0; 7]).unwrap();
    // Its direction of sending is closed with no word; ours was not closed at all.
    destination.sock.shutdown(Shutdown::Write).unwrap();
    assert!(at_end(&mut near));
    let (sent, _, ending) = rig.source.ended(name.channel);
    assert_eq!(sent, 7);
    assert!(cut_by_peer(&ending), "{ending:?}");
    assert!(near.write_all(b"more").is_err());
    // Nor does the peer see an end.
    let read = destination.read(&mut [0; 16]);
    assert!(read.is_err(), "{read:?}");
}

#[test]
fn a_record_that_was_tampered_with_cuts_the_stream() {
    let rig = Rig::new();
    let name = memory();
    let far = rig.destination.expect(&name);
    let mut source = good_source(rig.address(), &rig.authority.of(SOURCE));
    rig.arrive();
    present(&mut source, &peers::header(&name).encode());
    let mut record = vec![];
    source.conn.writer().write_all(b"good").unwrap();
    source.conn.write_tls(&mut record).unwrap();
    *record.last_mut().unwrap() ^= 1;
    source.sock.write_all(&record).unwrap();
    let (_, received, ending) = rig.destination.ended(name.channel);
    assert_eq!(received, 0);
    assert!(cut_by_peer(&ending), "{ending:?}");
    // And it is told so.
    let error = source.read(&mut [0; 16]).unwrap_err();
    assert!(error.to_string().contains("BadRecordMac"), "{error}");
    drop(far);
}

#[test]
fn a_hypervisor_that_closes_what_it_should_read_has_cut_the_stream() {
    let rig = Rig::new();
    let (mut near, far) = rig.channel(&memory());
    drop(far);
    // The far relay has ended its direction; what is sent still has nowhere to go.
    assert!(at_end(&mut near));
    let block = vec![1; BLOCK];
    while near.write_all(&block).is_ok() {}
    let name = memory().channel;
    let (_, _, ending) = rig.destination.ended(name);
    assert!(
        matches!(
            ending,
            Ending::Cut {
                side: Side::Hypervisor,
                ..
            }
        ),
        "{ending:?}"
    );
    assert!(cut_by_peer(&rig.source.ended(name).2));
}

#[test]
fn a_killed_relay_is_a_cut_for_the_other_one() {
    for source_dies in [true, false] {
        let mut rig = Rig::of(Agent::program(), Agent::program());
        let (mut near, mut far) = rig.channel(&memory());
        near.write_all(b"some").unwrap();
        far.read_exact(&mut [0; 4]).unwrap();
        let (dies, lives, left) = if source_dies {
            (&mut rig.source, &rig.destination, &mut far)
        } else {
            (&mut rig.destination, &rig.source, &mut near)
        };
        dies.process.as_mut().unwrap().kill().unwrap();
        assert!(at_end(left));
        let (_, _, ending) = lives.ended(memory().channel);
        assert!(cut_by_peer(&ending), "{ending:?}");
    }
}

/// Streams both ways with a peer that changes its keys at each block, and asks for ours to be changed.
fn rekeys<C, S>(mut hypervisor: UnixStream, mut peer: rustls::StreamOwned<C, std::net::TcpStream>)
where
    C: std::ops::DerefMut<Target = rustls::ConnectionCommon<S>> + Into<Connection>,
    S: rustls::SideData,
{
    let random = Random::new();
    for number in 0..12 {
        peer.conn.refresh_traffic_keys().unwrap();
        peer.write_all(random.block(number)).unwrap();
        peer.flush().unwrap();
        let mut read = vec![0; BLOCK];
        hypervisor.read_exact(&mut read).unwrap();
        assert!(read == random.block(number));
        std::thread::scope(|scope| {
            scope.spawn(|| hypervisor.write_all(random.block(number)).unwrap());
            peer.read_exact(&mut read).unwrap();
        });
        assert!(read == random.block(number));
    }
    peer.conn.send_close_notify();
    peer.flush().unwrap();
    assert!(at_end(&mut hypervisor));
    hypervisor.shutdown(Shutdown::Write).unwrap();
    assert!(at_end(&mut peer));
}

#[test]
fn a_source_may_change_its_keys_in_mid_stream() {
    let rig = Rig::new();
    let name = memory();
    let far = rig.destination.expect(&name);
    let mut source = good_source(rig.address(), &rig.authority.of(SOURCE));
    rig.arrive();
    present(&mut source, &peers::header(&name).encode());
    rekeys(far, source);
    assert_eq!(rig.destination.ended(name.channel).2, Ending::End);
}

#[test]
fn a_destination_may_send_tickets_and_change_its_keys_in_mid_stream() {
    let rig = Rig::new();
    let name = memory();
    let near = rig.source.open(&name);
    let (mut destination, _) = peers::destination(&rig.port, &rig.authority.of(DESTINATION));
    destination.write_all(&[header::answer(Ok(()))]).unwrap();
    rekeys(near, destination);
    assert_eq!(rig.source.ended(name.channel).2, Ending::End);
}

#[test]
fn records_of_any_size_arrive_whole() {
    let rig = Rig::new();
    let name = memory();
    let mut far = rig.destination.expect(&name);
    let mut source = good_source(rig.address(), &rig.authority.of(SOURCE));
    rig.arrive();
    present(&mut source, &peers::header(&name).encode());
    let random = Random::new();
    std::thread::scope(|scope| {
        scope.spawn(|| random.read(&mut far, 1));
        // Each piece is a record or several: thousands of small ones in one receipt, and full ones between.
        let mut rest = random.block(0);
        for size in [1, 20_000, 3, 16_384, 40, 1, 16_385].into_iter().cycle() {
            let (some, more) = rest.split_at(rest.len().min(size));
            source.conn.writer().write_all(some).unwrap();
            for byte in more.chunks(1).take(200) {
                source.conn.writer().write_all(byte).unwrap();
            }
            source.flush().unwrap();
            rest = &more[more.len().min(200)..];
            if rest.is_empty() {
                break;
            }
        }
    });
    source.conn.send_close_notify();
    source.flush().unwrap();
    assert!(at_end(&mut far));
    far.shutdown(Shutdown::Write).unwrap();
    assert!(at_end(&mut source));
    assert_eq!(rig.destination.ended(name.channel).2, Ending::End);
}

#[test]
fn what_a_peer_says_at_once_is_not_lost() {
    // The header and all of a short stream, in one write, with the end of it.
    let rig = Rig::of(Agent::within(Limits::default()), Agent::within(Limits::default()));
    let name = memory();
    let mut far = rig.destination.expect(&name);
    let mut source = good_source(rig.address(), &rig.authority.of(SOURCE));
    let (socket, _) = rig.port.accept().unwrap();
    hand_on(socket, &rig.destination.relay);
    while source.conn.is_handshaking() {
        source.conn.complete_io(&mut source.sock).unwrap();
    }
    source
        .conn
        .writer()
        .write_all(&peers::header(&name).encode())
        .unwrap();
    source.conn.writer().write_all(b"and all the rest").unwrap();
    source.conn.send_close_notify();
    source.flush().unwrap();
    let mut all = String::new();
    far.read_to_string(&mut all).unwrap();
    assert_eq!(all, "and all the rest");
    far.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.destination.ended(name.channel), (0, 16, Ending::End));
}
