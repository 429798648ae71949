//! Whatever bytes a peer sends: each decoder that it reaches reads them or refuses them, within its bounds, and never
//! falls. `make fuzz` runs this with many more cases.
//!
//! Half of the cases are made up; the others are messages as godwit's programs send them, with some bytes changed,
//! put in, left out, moved or cut off: those get past the first checks.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failing test may panic"
)]

use std::net::SocketAddr;
use std::time::Duration;

use godwit_handover::{
    Cause, Channel, DestinationReport, Go, GoEvidence, Phase, SourceReport, Terms, Token, Wanted,
};
use godwit_protocol::clock::Offset;
use godwit_protocol::gate::Peer;
use godwit_protocol::order::DriverLives;
use godwit_protocol::ticket::{Act, Expected, LONGEST, LONGEST_PUBLISHED, PublicKeys, SigningKey, Ticket};
use godwit_protocol::update::watch_request;
use godwit_protocol::{
    Category, Drive, Driving, Fault, GaveUp, GuestAnswer, GuestName, GuestState, Order, OtherSide,
    PeerIdentity, Progress, Rpc, Side, StartGuest, StreamOptions, Told, TrustDomain, Update, error, guest,
    version, wire,
};
use proptest::prelude::*;
use proptest::sample::Index;
use prost::Message;
use rustls::pki_types::CertificateDer;
use tonic::metadata::{BinaryMetadataValue, MetadataMap};

const NOW: u64 = 1_800_000_000;

/// One change to a message.
#[derive(Clone, Debug)]
enum Change {
    Flip(Index, u8),
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Leave(Index, usize),
    Repeat(Index, usize),
    Cut(Index),
}

fn change() -> impl Strategy<Value = Change> {
    let telling = prop_oneof![
        Just(0u8),
        Just(1),
        Just(0x7f),
        Just(0x80),
        Just(0xff),
        any::<u8>()
    ];
    prop_oneof![
        (any::<Index>(), 1u8..).prop_map(|(at, bits)| Change::Flip(at, bits)),
        (any::<Index>(), telling).prop_map(|(at, byte)| Change::Set(at, byte)),
        (any::<Index>(), prop::collection::vec(any::<u8>(), 1..20))
            .prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        (any::<Index>(), 1usize..20).prop_map(|(at, length)| Change::Leave(at, length)),
        (any::<Index>(), 1usize..80).prop_map(|(at, length)| Change::Repeat(at, length)),
        any::<Index>().prop_map(Change::Cut),
    ]
}

fn changed(mut bytes: Vec<u8>, changes: Vec<Change>) -> Vec<u8> {
    for change in changes {
        if bytes.is_empty() {
            return bytes;
        }
        let place = |at: Index, bytes: &[u8]| at.index(bytes.len());
        match change {
            Change::Flip(at, bits) => {
                let at = place(at, &bytes);
                bytes[at] ^= bits;
            }
            Change::Set(at, byte) => {
                let at = place(at, &bytes);
                bytes[at] = byte;
            }
            Change::Insert(at, more) => {
                let at = place(at, &bytes);
                bytes.splice(at..at, more);
            }
            Change::Leave(at, length) => {
                let at = place(at, &bytes);
                let end = (at + length).min(bytes.len());
                bytes.drain(at..end);
            }
            Change::Repeat(at, length) => {
                let at = place(at, &bytes);
                let end = (at + length).min(bytes.len());
                let again = bytes[at..end].to_vec();
                bytes.splice(end..end, again);
            }
            Change::Cut(at) => bytes.truncate(place(at, &bytes)),
        }
    }
    bytes
}

/// Made-up bytes, or one of these with some changes.
fn bytes_like(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..600),
        4 => (prop::sample::select(seeds), prop::collection::vec(change(), 0..6))
            .prop_map(|(seed, changes)| changed(seed, changes)),
    ]
}

fn terms() -> Terms {
    Terms {
        migration: "b4f0c4e5-3cf2-4d3a-8b8b-0b4a0c3f7a10".into(),
        guest: "7d0f3c1e-90a4-4f6e-a5c8-0c1a9f4f2b11".into(),
        epoch: 7,
        source: "host-a".into(),
        destination: "host-b.example".into(),
    }
}

fn name() -> GuestName {
    GuestName {
        uid: terms().guest,
        namespace: "default".into(),
        name: "web".into(),
    }
}

fn channel() -> Channel {
    Channel {
        uri: "tcp://192.0.2.1:49152".into(),
        token: Token(vec![7; 32]),
    }
}

fn go() -> Go {
    Go {
        evidence: GoEvidence::SealedAndReleased,
        wanted: Wanted::Run,
        sealed: true,
    }
}

fn orders() -> Vec<Vec<u8>> {
    let orders = [
        Order::Begin {
            max_downtime: Duration::from_millis(300),
            stream: StreamOptions::PLAIN,
        },
        Order::Prepare {
            guest: name(),
            definition: br#"{"memory": "64Mi"}"#.to_vec(),
            stream: StreamOptions::PLAIN,
            ticket: ticket(),
        },
        Order::Drive(Box::new(Drive {
            guest: name(),
            endpoint: "192.0.2.1:16514".into(),
            max_downtime: Duration::from_millis(300),
            stream: StreamOptions::PLAIN,
            silence: Duration::from_secs(30),
            ticket: ticket(),
        })),
        Order::Perform(channel()),
        Order::Ready,
        Order::Finish(go()),
        Order::Confirm,
        Order::AbortSource(Cause::Cancelled),
        Order::AbortDestination(Cause::StreamFailed),
        Order::Settle,
        Order::Retune { bandwidth: 1 << 30 },
    ];
    orders
        .iter()
        .map(|order| order.to_request(&terms()).encode_to_vec())
        .collect()
}

fn updates() -> Vec<Vec<u8>> {
    let told = Told {
        reason: "StreamFailed".into(),
        message: "it broke".into(),
    };
    let driving = Driving {
        destination: Some(OtherSide {
            report: Some(DestinationReport::Loaded),
            resumed_at_micros: Some(5),
            clock: Some(Offset {
                micros: -3,
                error_micros: 2,
            }),
            failure: told.clone(),
        }),
        phases: vec![(Phase::Begin, 1), (Phase::Prepare, 2), (Phase::Perform, 3)],
        ended_at_micros: Some(9),
        gave_up: Some(GaveUp {
            cause: Cause::DriverSilent,
            told: told.clone(),
        }),
        blocked: Some(told),
    };
    let sides = [
        None,
        Some(Side::Source(SourceReport::Switching {
            sealed: true,
            ready: false,
        })),
        Some(Side::Source(SourceReport::GoSent(go()))),
        Some(Side::Source(SourceReport::Lost(Cause::SourceDied))),
        Some(Side::Destination(DestinationReport::Prepared(channel()))),
        Some(Side::Destination(DestinationReport::Holding { running: true })),
    ];
    sides
        .into_iter()
        .map(|side| {
            let update = Update {
                side,
                progress: Some(Progress::default()),
                stopped_at_micros: Some(1),
                resumed_at_micros: Some(2),
                hypervisor_downtime_millis: Some(3),
                hypervisor_total_millis: Some(4),
                detail: "the hypervisor's words".into(),
                reason: "StreamFailed".into(),
                driving: Some(Box::new(driving.clone())),
            };
            wire::MigrationUpdate::from(update).encode_to_vec()
        })
        .collect()
}

fn key() -> SigningKey {
    SigningKey::from_seed(&[7; 32]).unwrap()
}

fn ticket() -> Vec<u8> {
    Ticket::new(terms(), Act::Receive, NOW)
        .unwrap()
        .sign(&key())
        .unwrap()
}

fn certificates() -> Vec<Vec<u8>> {
    [PeerIdentity::Controller, PeerIdentity::Host("host-a".into())]
        .iter()
        .map(|identity| {
            let mut parameters = rcgen::CertificateParams::default();
            let uri = identity.uri(&TrustDomain::default()).try_into().unwrap();
            parameters.subject_alt_names = vec![rcgen::SanType::URI(uri)];
            let key = rcgen::KeyPair::generate().unwrap();
            parameters.self_signed(&key).unwrap().der().to_vec()
        })
        .collect()
}

fn is_uid(text: &str) -> bool {
    (1..=63).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn is_host(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
        && !text.starts_with(['-', '.'])
}

fn bounded(terms: &Terms) -> bool {
    is_uid(&terms.migration)
        && is_uid(&terms.guest)
        && is_host(&terms.source)
        && is_host(&terms.destination)
        && terms.source != terms.destination
        && terms.epoch < i64::MAX.unsigned_abs()
}

proptest! {
    /// To an agent, from a controller or from a source's agent.
    #[test]
    fn r15_orders_are_read_within_their_bounds_or_refused(bytes in bytes_like(orders())) {
        let Ok(request) = wire::OrderRequest::decode(bytes.as_slice()) else { return Ok(()) };
        let Ok((terms, order)) = Order::from_request(request) else { return Ok(()) };
        prop_assert!(bounded(&terms), "{terms:?}");
        match &order {
            Order::Prepare { guest, definition, ticket, .. } => {
                prop_assert!(guest.uid == terms.guest && is_host(&guest.name));
                prop_assert!(definition.len() <= 256 * 1024 && ticket.len() <= 4096);
            }
            Order::Drive(drive) => prop_assert!(drive.ticket.len() <= 4096 && drive.endpoint.len() <= 261),
            Order::Perform(channel) => prop_assert!(channel.uri.len() <= 512 && channel.token.0.len() == 32),
            Order::Begin { max_downtime, stream } => {
                prop_assert!(*max_downtime <= Duration::from_secs(3600) && (1..=16).contains(&stream.connections));
            }
            Order::Ready | Order::Finish(_) | Order::Confirm | Order::AbortSource(_) | Order::AbortDestination(_)
            | Order::Settle | Order::Retune { .. } => {}
        }
        prop_assert_eq!(Order::from_request(order.to_request(&terms)), Ok((terms, order)));
    }

    /// The other messages to an agent.
    #[test]
    fn r15_other_requests_are_read_within_their_bounds_or_refused(
        bytes in bytes_like(vec![
            wire::StartGuestRequest::from(&StartGuest {
                guest: name(), epoch: 1, definition: b"{}".to_vec(), again: true,
            }).encode_to_vec(),
            wire::StopGuestRequest { guest: Some((&name()).into()), epoch: 1 }.encode_to_vec(),
            wire::KeepAliveRequest {
                terms: Some((&terms()).into()), path_proven: true, silence_millis: 30_000,
            }.encode_to_vec(),
            wire::WatchMigrationRequest { migration: terms().migration }.encode_to_vec(),
        ]),
    ) {
        if let Ok(request) = wire::StartGuestRequest::decode(bytes.as_slice())
            && let Ok(order) = StartGuest::try_from(request)
        {
            prop_assert!(is_uid(&order.guest.uid) && order.definition.len() <= 256 * 1024);
            prop_assert_eq!(StartGuest::try_from(wire::StartGuestRequest::from(&order)), Ok(order));
        }
        if let Ok(request) = wire::StopGuestRequest::decode(bytes.as_slice())
            && let Ok((guest, epoch)) = guest::stop_request(request)
        {
            prop_assert!(is_uid(&guest.uid) && epoch < i64::MAX.unsigned_abs());
        }
        if let Ok(request) = wire::KeepAliveRequest::decode(bytes.as_slice())
            && let Ok(lives) = DriverLives::try_from(request)
        {
            prop_assert!(bounded(&lives.terms) && lives.silence <= Duration::from_secs(3600));
        }
        if let Ok(request) = wire::WatchMigrationRequest::decode(bytes.as_slice())
            && let Ok(migration) = watch_request(request)
        {
            prop_assert!(is_uid(&migration));
        }
    }

    /// To a driver, from an agent.
    #[test]
    fn r15_updates_are_read_within_their_bounds_or_refused(bytes in bytes_like(updates())) {
        let Ok(message) = wire::MigrationUpdate::decode(bytes.as_slice()) else { return Ok(()) };
        let Ok(update) = Update::try_from(message) else { return Ok(()) };
        prop_assert!(update.detail.len() <= 1024 && update.reason.len() <= 64);
        if let Some(driving) = &update.driving {
            prop_assert!(driving.phases.len() <= 5);
        }
        prop_assert_eq!(Update::try_from(wire::MigrationUpdate::from(update.clone())), Ok(update));
    }

    #[test]
    fn r15_answers_are_read_within_their_bounds_or_refused(
        bytes in bytes_like(vec![
            wire::GuestReply::from(GuestAnswer { state: GuestState::Running, since_micros: Some(1) }).encode_to_vec(),
        ]),
    ) {
        if let Ok(reply) = wire::GuestReply::decode(bytes.as_slice())
            && let Ok(answer) = GuestAnswer::try_from(reply)
        {
            prop_assert_eq!(GuestAnswer::try_from(wire::GuestReply::from(answer)), Ok(answer));
        }
    }

    /// In the metadata of a refusal, from an agent.
    #[test]
    fn r15_the_detail_of_an_error_is_believed_within_its_bounds_or_not(
        bytes in bytes_like(vec![
            wire::ErrorDetail { category: 2, reason: "NotAllowed".into(), message: "words".into() }.encode_to_vec(),
            wire::ErrorDetail { category: 7, reason: "A".repeat(64), message: "x".repeat(4000) }.encode_to_vec(),
        ]),
        code in -1i32..20,
        words in (".{0,30}", 0usize..120).prop_map(|(words, times)| words.repeat(times)),
    ) {
        let mut metadata = MetadataMap::new();
        metadata.insert_bin("godwit-error-bin", BinaryMetadataValue::from_bytes(&bytes));
        let status = tonic::Status::with_metadata(code.into(), words, metadata);
        let fault = Fault::from(status);
        prop_assert!(fault.message.len() <= error::LONGEST_MESSAGE, "{}", fault.message.len());
        prop_assert!((1..=64).contains(&fault.reason.len()));
        prop_assert!(fault.reason.bytes().all(|b| b.is_ascii_alphanumeric()));
        prop_assert!(Category::ALL.contains(&fault.category));
    }

    /// The first message of all, and what every later one carries.
    #[test]
    fn r15_versions_are_settled_within_ours_or_refused(
        oldest: u32,
        newest: u32,
        small in any::<(bool, bool)>(),
        program in ".{0,200}",
        named in prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
    ) {
        let hello = wire::HelloRequest {
            oldest_version: if small.0 { oldest % 3 } else { oldest },
            newest_version: if small.1 { newest % 3 } else { newest },
            program,
        };
        let peer = Peer::new(PeerIdentity::Host("a".into()), SocketAddr::from(([127, 0, 0, 1], 1)));
        if let Ok(settled) = peer.settle(&hello) {
            prop_assert!((version::OLDEST..=version::NEWEST).contains(&settled));
            prop_assert!((hello.oldest_version..=hello.newest_version).contains(&settled));
            prop_assert!(hello.program.len() <= 128);
        }
        if version::check(named.as_deref(), Some(1)).is_ok() {
            let text = String::from_utf8(named.unwrap()).unwrap();
            prop_assert_eq!(text.parse::<u32>(), Ok(1));
        } else {
            prop_assert!(version::check(named.as_deref(), None).is_err());
        }
    }

    /// The path of a call is whatever a peer says.
    #[test]
    fn r15_a_path_means_one_of_our_calls_or_none(path in "(/godwit.agent.v1.Agent/)?.{0,40}") {
        if let Some(rpc) = Rpc::of_path(&path) {
            prop_assert_eq!(path, format!("/godwit.agent.v1.Agent/{}", rpc.name()));
        }
    }

    /// Certificates are looked at after their authority was, but what they say is still another's.
    #[test]
    fn r15_a_certificate_names_an_identity_or_nobody(bytes in bytes_like(certificates())) {
        let domain = TrustDomain::default();
        if let Ok(identity) = PeerIdentity::of_certificate(&CertificateDer::from(bytes), &domain) {
            if let PeerIdentity::Host(host) = &identity {
                prop_assert!(is_host(host), "{host}");
            }
            prop_assert_eq!(PeerIdentity::of_uri(&identity.uri(&domain), &domain), Ok(identity));
        }
    }

    /// Shown by a source's agent.
    #[test]
    fn r15_a_ticket_is_the_very_one_that_was_signed_or_none(bytes in bytes_like(vec![ticket()]), later: u64) {
        let keys = PublicKeys::new(vec![key().public(NOW + 3600).unwrap()]).unwrap();
        let terms = terms();
        let expected = Expected { peer: "host-a", host: "host-b.example", terms: &terms, act: Act::Receive };
        for now in [NOW, later] {
            if let Ok(ticket) = Ticket::verify(&bytes, &keys, now, expected) {
                prop_assert!(bytes.len() <= LONGEST);
                prop_assert_eq!(&ticket.terms, &terms);
                // One encoding only.
                prop_assert_eq!(ticket.sign(&key()).unwrap(), bytes.clone());
            }
        }
    }

    /// Read by agents from the API server.
    #[test]
    fn r15_published_keys_are_read_within_their_bounds_or_refused(
        bytes in bytes_like(vec![
            PublicKeys::new((0..8).map(|n| SigningKey::from_seed(&[n; 32]).unwrap().public(NOW).unwrap()).collect())
                .unwrap().publish().into_bytes(),
        ]),
    ) {
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(keys) = PublicKeys::read_published(&text) {
            prop_assert!(text.len() <= LONGEST_PUBLISHED && keys.iter().count() <= 8);
            prop_assert_eq!(PublicKeys::read_published(&keys.publish()), Ok(keys));
        }
    }
}

#[test]
fn the_messages_to_change_are_good_ones() {
    for bytes in orders() {
        Order::from_request(wire::OrderRequest::decode(bytes.as_slice()).unwrap()).unwrap();
    }
    for bytes in updates() {
        Update::try_from(wire::MigrationUpdate::decode(bytes.as_slice()).unwrap()).unwrap();
    }
    for bytes in certificates() {
        PeerIdentity::of_certificate(&bytes.into(), &TrustDomain::default()).unwrap();
    }
}
