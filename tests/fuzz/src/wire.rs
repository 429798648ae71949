//! What travels between agents, and between them and the controller.

use std::time::Duration;

use godwit_handover::{
    Cause, Channel, DestinationReport, Go, GoEvidence, Phase, SourceReport, Standing, StandingBecause, Terms,
    Token, Wanted,
};
use godwit_protocol::clock::Offset;
use godwit_protocol::order::DriverLives;
use godwit_protocol::update::watch_request;
use godwit_protocol::{
    Category, Drive, Driving, Fault, GaveUp, GuestAnswer, GuestName, GuestState, Order, OtherSide,
    PeerIdentity, Progress, Side, StartGuest, StreamOptions, Told, TrustDomain, Update, error, guest, wire,
};
use prost::Message;
use rustls::pki_types::CertificateDer;
use tonic::metadata::{BinaryMetadataValue, MetadataMap};

use crate::ticket::ticket_for;
use crate::{is_host, is_uid};

const LONGEST_DEFINITION: usize = 256 * 1024;

pub(crate) fn terms() -> Terms {
    Terms {
        migration: "b4f0c4e5-3cf2-4d3a-8b8b-0b4a0c3f7a10".into(),
        guest: "7d0f3c1e-90a4-4f6e-a5c8-0c1a9f4f2b11".into(),
        epoch: 7,
        source: "host-a".into(),
        destination: "host-b.example".into(),
        strict: false,
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

fn bounded(terms: &Terms) -> bool {
    is_uid(&terms.migration)
        && is_uid(&terms.guest)
        && is_host(&terms.source)
        && is_host(&terms.destination)
        && terms.source != terms.destination
        && terms.epoch < i64::MAX.unsigned_abs()
}

/// Orders, as requests.
pub fn orders() -> Vec<Vec<u8>> {
    let orders = [
        Order::Begin {
            max_downtime: Duration::from_millis(300),
            stream: StreamOptions::PLAIN,
        },
        Order::Prepare {
            guest: name(),
            definition: br#"{"memory": "64Mi"}"#.to_vec(),
            stream: StreamOptions::PLAIN,
            ticket: ticket_for(terms()),
        },
        Order::Drive(Box::new(Drive {
            guest: name(),
            endpoint: "192.0.2.1:16514".into(),
            max_downtime: Duration::from_millis(300),
            stream: StreamOptions::PLAIN,
            silence: Duration::from_secs(30),
            ticket: ticket_for(terms()),
        })),
        Order::Perform(channel()),
        Order::Ready,
        Order::Finish(go()),
        Order::Confirm,
        Order::AbortSource(Cause::Cancelled),
        Order::AbortDestination(Cause::StreamFailed),
        Order::Settle,
        Order::SourceStands(Standing {
            because: StandingBecause::Sealed,
            wanted: Wanted::Run,
        }),
        Order::ArbitrateSource(Cause::PathNotProven),
        Order::ArbitrateDestination,
        Order::Retune { bandwidth: 1 << 30 },
    ];
    orders
        .iter()
        .map(|order| order.to_request(&terms()).encode_to_vec())
        .collect()
}

/// To an agent, from a controller or from a source's agent.
pub fn order(bytes: &[u8]) {
    let Ok(request) = wire::OrderRequest::decode(bytes) else {
        return;
    };
    let Ok((terms, order)) = Order::from_request(request) else {
        return;
    };
    assert!(bounded(&terms), "{terms:?}");
    match &order {
        Order::Prepare {
            guest,
            definition,
            ticket,
            ..
        } => {
            assert!(guest.uid == terms.guest && is_host(&guest.name));
            assert!(definition.len() <= LONGEST_DEFINITION && ticket.len() <= 4096);
        }
        Order::Drive(drive) => assert!(drive.ticket.len() <= 4096 && drive.endpoint.len() <= 261),
        Order::Perform(channel) => assert!(channel.uri.len() <= 512 && channel.token.0.len() == 32),
        Order::Begin { max_downtime, stream } => {
            assert!(*max_downtime <= Duration::from_secs(3600) && (1..=16).contains(&stream.connections));
        }
        Order::Ready
        | Order::Finish(_)
        | Order::Confirm
        | Order::AbortSource(_)
        | Order::AbortDestination(_)
        | Order::Settle
        | Order::SourceStands(_)
        | Order::ArbitrateSource(_)
        | Order::ArbitrateDestination
        | Order::Retune { .. } => {}
    }
    assert_eq!(Order::from_request(order.to_request(&terms)), Ok((terms, order)));
}

/// The other messages to an agent. The first byte says which.
pub fn requests() -> Vec<Vec<u8>> {
    let start = StartGuest {
        guest: name(),
        epoch: 1,
        definition: b"{}".to_vec(),
        again: true,
    };
    let stop = wire::StopGuestRequest {
        guest: Some((&name()).into()),
        epoch: 1,
    };
    let alive = wire::KeepAliveRequest {
        terms: Some((&terms()).into()),
        path_proven: true,
        silence_millis: 30_000,
    };
    let watch = wire::WatchMigrationRequest {
        migration: terms().migration,
    };
    let messages = [
        wire::StartGuestRequest::from(&start).encode_to_vec(),
        stop.encode_to_vec(),
        alive.encode_to_vec(),
        watch.encode_to_vec(),
    ];
    (0..)
        .zip(messages)
        .map(|(which, message)| [vec![which], message].concat())
        .collect()
}

/// As [`requests`].
pub fn request(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    match which % 4 {
        0 => {
            if let Ok(request) = wire::StartGuestRequest::decode(bytes)
                && let Ok(order) = StartGuest::try_from(request)
            {
                assert!(is_uid(&order.guest.uid) && order.definition.len() <= LONGEST_DEFINITION);
                let again = wire::StartGuestRequest::from(&order);
                assert_eq!(StartGuest::try_from(again), Ok(order));
            }
        }
        1 => {
            if let Ok(request) = wire::StopGuestRequest::decode(bytes)
                && let Ok((guest, epoch)) = guest::stop_request(request)
            {
                assert!(is_uid(&guest.uid) && epoch < i64::MAX.unsigned_abs());
            }
        }
        2 => {
            if let Ok(request) = wire::KeepAliveRequest::decode(bytes)
                && let Ok(lives) = DriverLives::try_from(request)
            {
                assert!(bounded(&lives.terms) && lives.silence <= Duration::from_secs(3600));
            }
        }
        _ => {
            if let Ok(request) = wire::WatchMigrationRequest::decode(bytes)
                && let Ok(migration) = watch_request(request)
            {
                assert!(is_uid(&migration));
            }
        }
    }
}

/// What agents tell of a migration.
pub fn updates() -> Vec<Vec<u8>> {
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
            wanted: Some(Wanted::Run),
        })),
        Some(Side::Source(SourceReport::Deciding {
            cause: Cause::DriverSilent,
            dead: Some(Wanted::Run),
            sealed: true,
        })),
        Some(Side::Destination(DestinationReport::Deciding)),
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
                held_back: true,
            };
            wire::MigrationUpdate::from(update).encode_to_vec()
        })
        .collect()
}

/// To a driver, from an agent.
pub fn update(bytes: &[u8]) {
    let Ok(message) = wire::MigrationUpdate::decode(bytes) else {
        return;
    };
    let Ok(update) = Update::try_from(message) else {
        return;
    };
    assert!(update.detail.len() <= 1024 && update.reason.len() <= 64);
    if let Some(driving) = &update.driving {
        assert!(driving.phases.len() <= 5);
    }
    assert_eq!(
        Update::try_from(wire::MigrationUpdate::from(update.clone())),
        Ok(update)
    );
}

/// What agents answer about a guest.
pub fn answers() -> Vec<Vec<u8>> {
    let answer = GuestAnswer {
        state: GuestState::Running,
        since_micros: Some(1),
    };
    vec![wire::GuestReply::from(answer).encode_to_vec()]
}

/// As [`answers`].
pub fn answer(bytes: &[u8]) {
    if let Ok(reply) = wire::GuestReply::decode(bytes)
        && let Ok(answer) = GuestAnswer::try_from(reply)
    {
        assert_eq!(GuestAnswer::try_from(wire::GuestReply::from(answer)), Ok(answer));
    }
}

/// What goes with a refusal, in its metadata.
pub fn details() -> Vec<Vec<u8>> {
    let detail = |category, reason: &str, message: &str| {
        wire::ErrorDetail {
            category,
            reason: reason.into(),
            message: message.into(),
        }
        .encode_to_vec()
    };
    let long = (&"A".repeat(64), &"x".repeat(4000));
    vec![detail(2, "NotAllowed", "words"), detail(7, long.0, long.1)]
        .into_iter()
        .map(|detail| [vec![7, 3], b"no!".to_vec(), detail].concat())
        .collect()
}

/// From an agent: the first byte is the refusal's code, the next says how long its own words are.
pub fn detail(bytes: &[u8]) {
    let [code, length, rest @ ..] = bytes else {
        return;
    };
    let (words, detail) = rest.split_at(usize::from(*length).min(rest.len()));
    let mut metadata = MetadataMap::new();
    metadata.insert_bin("godwit-error-bin", BinaryMetadataValue::from_bytes(detail));
    let words = String::from_utf8_lossy(words).repeat(usize::from(code / 32) * 10 + 1);
    let code = i32::from(code % 20) - 1;
    let fault = Fault::from(tonic::Status::with_metadata(code.into(), words, metadata));
    assert!(
        fault.message.len() <= error::LONGEST_MESSAGE,
        "{}",
        fault.message.len()
    );
    assert!((1..=64).contains(&fault.reason.len()));
    assert!(fault.reason.bytes().all(|b| b.is_ascii_alphanumeric()));
    assert!(Category::ALL.contains(&fault.category));
}

/// Certificates of a controller and of a host.
pub fn certificates() -> Vec<Vec<u8>> {
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

/// Certificates are looked at after their authority was, but what they say is still another's.
pub fn certificate(bytes: &[u8]) {
    let domain = TrustDomain::default();
    if let Ok(identity) = PeerIdentity::of_certificate(&CertificateDer::from(bytes), &domain) {
        if let PeerIdentity::Host(host) = &identity {
            assert!(is_host(host), "{host}");
        }
        assert_eq!(
            PeerIdentity::of_uri(&identity.uri(&domain), &domain),
            Ok(identity)
        );
    }
    // As an URI by itself: most changed certificates are none any more.
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(identity) = PeerIdentity::of_uri(text, &domain)
    {
        assert_eq!(identity.uri(&domain), text);
    }
}
