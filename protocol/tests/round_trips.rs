//! Every word of the handover survives the wire, and what no program of ours would send is refused by name.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failing test may panic"
)]

use std::time::Duration;

use godwit_handover::{
    Cause, Channel, DestinationReport, Go, GoEvidence, Phase, SourceReport, Terms, Token, Wanted,
};
use godwit_protocol::clock::Offset;
use godwit_protocol::order::DriverLives;
use godwit_protocol::update::watch_request;
use godwit_protocol::{
    Drive, Driving, GaveUp, GuestAnswer, GuestName, GuestState, Malformed, Order, OtherSide, Progress, Side,
    StartGuest, StreamOptions, Told, Transport, Update, wire,
};
use proptest::prelude::*;

fn uid() -> impl Strategy<Value = String> {
    "[0-9a-zA-Z-]{1,63}"
}

fn name() -> impl Strategy<Value = String> {
    "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z0-9]{1,10}){0,3}"
}

fn terms() -> impl Strategy<Value = Terms> {
    (uid(), uid(), 0..i64::MAX.unsigned_abs(), name(), name())
        .prop_filter("two hosts", |(.., source, destination)| source != destination)
        .prop_map(|(migration, guest, epoch, source, destination)| Terms {
            migration,
            guest,
            epoch,
            source,
            destination,
        })
}

fn channel() -> impl Strategy<Value = Channel> {
    ("[!-~]{1,512}", proptest::collection::vec(any::<u8>(), 32)).prop_map(|(uri, token)| Channel {
        uri,
        token: Token(token),
    })
}

fn cause() -> impl Strategy<Value = Cause> {
    prop::sample::select(vec![
        Cause::Cancelled,
        Cause::DestinationFailed,
        Cause::DestinationDied,
        Cause::SourceDied,
        Cause::StreamFailed,
        Cause::DriverSilent,
        Cause::PathNotProven,
        Cause::GuestStopped,
        Cause::JournalFailed,
        Cause::HypervisorRefused,
        Cause::Reverted,
    ])
}

fn go() -> impl Strategy<Value = Go> {
    (
        prop::sample::select(vec![
            GoEvidence::Completed,
            GoEvidence::SealedAndReleased,
            GoEvidence::SourceDead,
        ]),
        prop::sample::select(vec![Wanted::Run, Wanted::StayStopped]),
        any::<bool>(),
    )
        .prop_map(|(evidence, wanted, sealed)| Go {
            evidence,
            wanted,
            sealed,
        })
}

fn guest() -> impl Strategy<Value = GuestName> {
    (uid(), "[a-z0-9]([a-z0-9-]{0,60}[a-z0-9])?", name()).prop_map(|(uid, namespace, name)| GuestName {
        uid,
        namespace,
        name,
    })
}

fn definition() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 1..300)
}

fn source_report() -> impl Strategy<Value = SourceReport> {
    prop_oneof![
        Just(SourceReport::Begun),
        Just(SourceReport::Streaming),
        any::<bool>().prop_map(|sealed| SourceReport::Stopped { sealed }),
        any::<(bool, bool)>().prop_map(|(sealed, ready)| SourceReport::Switching { sealed, ready }),
        any::<(bool, bool)>().prop_map(|(sealed, ready)| SourceReport::InDoubt { sealed, ready }),
        go().prop_map(SourceReport::GoSent),
        Just(SourceReport::Released),
        cause().prop_map(SourceReport::Aborting),
        cause().prop_map(SourceReport::Aborted),
        Just(SourceReport::Died),
        cause().prop_map(SourceReport::Lost),
    ]
}

fn destination_report() -> impl Strategy<Value = DestinationReport> {
    prop_oneof![
        Just(DestinationReport::Preparing),
        channel().prop_map(DestinationReport::Prepared),
        Just(DestinationReport::Receiving),
        Just(DestinationReport::Loaded),
        Just(DestinationReport::Blocked),
        Just(DestinationReport::Starting),
        any::<bool>().prop_map(|running| DestinationReport::Holding { running }),
        cause().prop_map(DestinationReport::Reverting),
        cause().prop_map(DestinationReport::Reverted),
        cause().prop_map(DestinationReport::Lost),
    ]
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![
        ((1u64..=3_600_000_000), stream()).prop_map(|(micros, stream)| Order::Begin {
            max_downtime: Duration::from_micros(micros),
            stream,
        }),
        (guest(), definition(), stream(), ticket()).prop_map(|(guest, definition, stream, ticket)| {
            Order::Prepare {
                guest,
                definition,
                stream,
                ticket,
            }
        }),
        drive().prop_map(|drive| Order::Drive(Box::new(drive))),
        channel().prop_map(Order::Perform),
        Just(Order::Ready),
        go().prop_map(Order::Finish),
        Just(Order::Confirm),
        cause().prop_map(Order::AbortSource),
        cause().prop_map(Order::AbortDestination),
        Just(Order::Settle),
        (0..=i64::MAX.unsigned_abs()).prop_map(|bandwidth| Order::Retune { bandwidth }),
    ]
}

fn stream() -> impl Strategy<Value = StreamOptions> {
    let transport = prop_oneof![Just(Transport::Native), Just(Transport::Tunnelled)];
    (
        transport,
        any::<bool>(),
        1u32..=16,
        0..=i64::MAX.unsigned_abs(),
        any::<Option<std::net::IpAddr>>(),
    )
        .prop_map(
            |(transport, encrypted, connections, bandwidth, source_address)| StreamOptions {
                transport,
                encrypted,
                connections,
                bandwidth,
                source_address,
            },
        )
}

fn progress() -> impl Strategy<Value = Progress> {
    any::<(u64, u64, u64, u64, u64, u64)>().prop_map(|figures| Progress {
        total_bytes: figures.0,
        transferred_bytes: figures.1,
        remaining_bytes: figures.2,
        dirty_bytes_per_second: figures.3,
        bytes_per_second: figures.4,
        iteration: figures.5,
    })
}

fn update() -> impl Strategy<Value = Update> {
    let side = prop_oneof![
        source_report().prop_map(Side::Source),
        destination_report().prop_map(Side::Destination),
    ];
    (
        proptest::option::of(side),
        proptest::option::of(progress()),
        proptest::option::of(1..i64::MAX),
        proptest::option::of(1..i64::MAX),
        proptest::option::of(any::<u64>()),
        proptest::option::of(1..u64::MAX),
        "[ -~ä]{0,500}",
        "[A-Za-z]{0,64}",
        proptest::option::of(driving().prop_map(Box::new)),
        any::<bool>(),
    )
        .prop_map(
            |(side, progress, stopped, resumed, downtime, total, detail, reason, driving, held_back)| {
                Update {
                    side,
                    progress,
                    stopped_at_micros: stopped,
                    resumed_at_micros: resumed,
                    hypervisor_downtime_millis: downtime,
                    hypervisor_total_millis: total,
                    detail,
                    reason,
                    driving,
                    held_back,
                }
            },
        )
}

fn ticket() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..300)
}

fn drive() -> impl Strategy<Value = Drive> {
    (
        guest(),
        "[a-z0-9.]{1,40}:[1-9][0-9]{0,3}",
        1u64..=3_600_000_000,
        stream(),
        1000u64..=3_600_000,
        ticket(),
    )
        .prop_map(|(guest, endpoint, downtime, stream, silence, ticket)| Drive {
            guest,
            endpoint,
            max_downtime: Duration::from_micros(downtime),
            stream,
            silence: Duration::from_millis(silence),
            ticket,
        })
}

fn told() -> impl Strategy<Value = Told> {
    ("[A-Za-z]{0,64}", "[ -~ä]{0,200}").prop_map(|(reason, message)| Told { reason, message })
}

fn driving() -> impl Strategy<Value = Driving> {
    let clock = any::<(i64, u64)>().prop_map(|(micros, error_micros)| Offset { micros, error_micros });
    let destination = (
        proptest::option::of(destination_report()),
        proptest::option::of(1..i64::MAX),
        proptest::option::of(clock),
        told(),
    )
        .prop_map(|(report, resumed_at_micros, clock, failure)| OtherSide {
            report,
            resumed_at_micros,
            clock,
            failure,
        });
    let phases = [
        Phase::Begin,
        Phase::Prepare,
        Phase::Perform,
        Phase::Finish,
        Phase::Confirm,
    ];
    (
        proptest::option::of(destination),
        proptest::sample::subsequence(phases.to_vec(), 0..=5),
        any::<i64>(),
        proptest::option::of(1..i64::MAX),
        proptest::option::of((cause(), told())),
        proptest::option::of(told()),
    )
        .prop_map(
            |(destination, phases, at, ended_at_micros, gave_up, blocked)| Driving {
                destination,
                phases: phases.into_iter().map(|phase| (phase, at)).collect(),
                ended_at_micros,
                gave_up: gave_up.map(|(cause, told)| GaveUp { cause, told }),
                blocked,
            },
        )
}

/// Through the bytes, not only through the structs.
fn carried<M: prost::Message + Default>(message: &M) -> M {
    M::decode(message.encode_to_vec().as_slice()).unwrap()
}

proptest! {
    #[test]
    fn orders(terms in terms(), order in order()) {
        let (terms, order) = match order {
            // A Prepare and a Drive name the guest of their terms.
            Order::Prepare { guest, definition, stream, ticket } => {
                let terms = Terms { guest: guest.uid.clone(), ..terms };
                (terms, Order::Prepare { guest, definition, stream, ticket })
            }
            Order::Drive(drive) => {
                let terms = Terms { guest: drive.guest.uid.clone(), ..terms };
                (terms, Order::Drive(drive))
            }
            Order::Begin { .. } | Order::Perform(_) | Order::Ready | Order::Finish(_) | Order::Confirm
            | Order::AbortSource(_) | Order::AbortDestination(_) | Order::Settle | Order::Retune { .. } => (terms, order),
        };
        let request = carried(&order.to_request(&terms));
        prop_assert_eq!(Order::from_request(request), Ok((terms, order)));
    }

    #[test]
    fn updates(update in update()) {
        let message = carried(&wire::MigrationUpdate::from(update.clone()));
        prop_assert_eq!(Update::try_from(message), Ok(update));
    }

    #[test]
    fn start_orders(guest in guest(), epoch in 0..i64::MAX.unsigned_abs(), definition in definition(), again: bool) {
        let order = StartGuest { guest, epoch, definition, again };
        prop_assert_eq!(StartGuest::try_from(carried(&wire::StartGuestRequest::from(&order))), Ok(order));
    }

    #[test]
    fn arbitrary_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        use prost::Message;
        if let Ok(request) = wire::OrderRequest::decode(bytes.as_slice())
            && let Ok((terms, order)) = Order::from_request(request)
        {
            prop_assert_eq!(Order::from_request(order.to_request(&terms)), Ok((terms, order)));
        }
        if let Ok(update) = wire::MigrationUpdate::decode(bytes.as_slice())
            && let Ok(update) = Update::try_from(update)
        {
            prop_assert_eq!(Update::try_from(wire::MigrationUpdate::from(update.clone())), Ok(update));
        }
    }
}

#[test]
fn states_of_guests() {
    for state in [
        GuestState::Starting,
        GuestState::Running,
        GuestState::Paused,
        GuestState::ShutOff,
        GuestState::Crashed,
    ] {
        for since_micros in [None, Some(1)] {
            let answer = GuestAnswer { state, since_micros };
            assert_eq!(
                GuestAnswer::try_from(carried(&wire::GuestReply::from(answer))),
                Ok(answer)
            );
        }
    }
}

fn good_terms() -> wire::Terms {
    wire::Terms {
        migration: "m-1".into(),
        guest: "g-1".into(),
        epoch: 3,
        source: "node-a".into(),
        destination: "node-b".into(),
    }
}

fn refused_field<T: std::fmt::Debug>(read: Result<T, Malformed>) -> &'static str {
    read.unwrap_err().field
}

#[test]
fn bad_terms_are_refused_by_field() {
    assert!(Terms::try_from(good_terms()).is_ok());
    let good = good_terms;
    for (terms, field) in [
        (
            wire::Terms {
                migration: String::new(),
                ..good()
            },
            "terms.migration",
        ),
        (
            wire::Terms {
                migration: "x".repeat(64),
                ..good()
            },
            "terms.migration",
        ),
        (
            wire::Terms {
                migration: "../../etc".into(),
                ..good()
            },
            "terms.migration",
        ),
        (
            wire::Terms {
                guest: "a b".into(),
                ..good()
            },
            "terms.guest",
        ),
        (
            wire::Terms {
                epoch: u64::MAX,
                ..good()
            },
            "terms.epoch",
        ),
        (
            wire::Terms {
                epoch: i64::MAX.unsigned_abs(),
                ..good()
            },
            "terms.epoch",
        ),
        (
            wire::Terms {
                source: "Node".into(),
                ..good()
            },
            "terms.source",
        ),
        (
            wire::Terms {
                source: "a".repeat(254),
                ..good()
            },
            "terms.source",
        ),
        (
            wire::Terms {
                destination: "a..b".into(),
                ..good()
            },
            "terms.destination",
        ),
        (
            wire::Terms {
                destination: "node-a".into(),
                ..good()
            },
            "terms.destination",
        ),
    ] {
        assert_eq!(refused_field(Terms::try_from(terms)), field);
    }
}

#[test]
fn bad_channels_are_refused_by_field() {
    let good = || wire::Channel {
        uri: "tcp://10.0.0.2:49160".into(),
        token: vec![7; 32],
    };
    assert!(Channel::try_from(good()).is_ok());
    for (channel, field) in [
        (
            wire::Channel {
                uri: String::new(),
                ..good()
            },
            "channel.uri",
        ),
        (
            wire::Channel {
                uri: "x".repeat(513),
                ..good()
            },
            "channel.uri",
        ),
        (
            wire::Channel {
                uri: "tcp://a\nb".into(),
                ..good()
            },
            "channel.uri",
        ),
        (
            wire::Channel {
                token: vec![7; 31],
                ..good()
            },
            "channel.token",
        ),
        (
            wire::Channel {
                token: vec![7; 33],
                ..good()
            },
            "channel.token",
        ),
    ] {
        assert_eq!(refused_field(Channel::try_from(channel)), field);
    }
}

#[test]
fn unspecified_and_unknown_values_are_refused() {
    for value in [0, 99, -1] {
        assert_eq!(
            refused_field(Go::try_from(wire::Go {
                evidence: value,
                wanted: 1,
                sealed: true
            })),
            "go.evidence"
        );
        assert_eq!(
            refused_field(Go::try_from(wire::Go {
                evidence: 1,
                wanted: value,
                sealed: true
            })),
            "go.wanted"
        );
        let report = wire::SourceReport {
            stage: value,
            ..Default::default()
        };
        assert_eq!(refused_field(SourceReport::try_from(report)), "source.stage");
        let report = wire::DestinationReport {
            stage: value,
            ..Default::default()
        };
        assert_eq!(
            refused_field(DestinationReport::try_from(report)),
            "destination.stage"
        );
        let aborted = wire::SourceStage::Aborted.into();
        let report = wire::SourceReport {
            stage: aborted,
            cause: value,
            ..Default::default()
        };
        assert_eq!(refused_field(SourceReport::try_from(report)), "source.cause");
        let reply = wire::GuestReply {
            state: value,
            since_micros: 0,
        };
        assert_eq!(refused_field(GuestAnswer::try_from(reply)), "state");
    }
}

#[test]
fn what_is_missing_is_named() {
    let go_sent = wire::SourceReport {
        stage: wire::SourceStage::GoSent.into(),
        ..Default::default()
    };
    assert_eq!(refused_field(SourceReport::try_from(go_sent)), "source.go");
    let prepared = wire::DestinationReport {
        stage: wire::DestinationStage::Prepared.into(),
        ..Default::default()
    };
    assert_eq!(
        refused_field(DestinationReport::try_from(prepared)),
        "destination.channel"
    );
    let empty = wire::OrderRequest {
        terms: None,
        order: None,
    };
    assert_eq!(refused_field(Order::from_request(empty)), "terms");
    let no_order = wire::OrderRequest {
        terms: Some(good_terms()),
        order: None,
    };
    assert_eq!(refused_field(Order::from_request(no_order)), "order");
    let finish = wire::order_request::Order::Finish(wire::Finish { go: None });
    let no_go = wire::OrderRequest {
        terms: Some(good_terms()),
        order: Some(finish),
    };
    assert_eq!(refused_field(Order::from_request(no_go)), "finish.go");
}

#[test]
fn bad_orders_are_refused_by_field() {
    use wire::order_request::Order as Wire;
    let refused = |order| {
        refused_field(Order::from_request(wire::OrderRequest {
            terms: Some(good_terms()),
            order: Some(order),
        }))
    };
    let guest = |uid: &str| {
        Some(wire::GuestIdentity {
            uid: uid.into(),
            namespace: "default".into(),
            name: "web1".into(),
        })
    };
    assert_eq!(
        refused(Wire::Begin(wire::Begin {
            max_downtime_micros: 0,
            stream: good_stream(),
        })),
        "begin.max_downtime_micros"
    );
    assert_eq!(
        refused(Wire::Begin(wire::Begin {
            max_downtime_micros: u64::MAX,
            stream: good_stream(),
        })),
        "begin.max_downtime_micros"
    );
    assert_eq!(
        refused(Wire::Prepare(wire::Prepare {
            guest: guest("other"),
            definition: vec![1],
            stream: good_stream(),
            ticket: Vec::new(),
        })),
        "prepare.guest.uid"
    );
    for definition in [Vec::new(), vec![0; 256 * 1024 + 1]] {
        assert_eq!(
            refused(Wire::Prepare(wire::Prepare {
                guest: guest("g-1"),
                definition,
                stream: good_stream(),
                ticket: Vec::new(),
            })),
            "prepare.definition"
        );
    }
    let largest = Wire::Prepare(wire::Prepare {
        guest: guest("g-1"),
        definition: vec![0; 256 * 1024],
        stream: good_stream(),
        ticket: Vec::new(),
    });
    let request = wire::OrderRequest {
        terms: Some(good_terms()),
        order: Some(largest),
    };
    assert!(Order::from_request(request).is_ok());
}

fn good_stream() -> Option<wire::StreamOptions> {
    Some(StreamOptions::PLAIN.into())
}

#[test]
fn a_stream_that_no_agent_could_make_is_refused() {
    let refused = |stream| {
        let begin = wire::order_request::Order::Begin(wire::Begin {
            max_downtime_micros: 1,
            stream,
        });
        refused_field(Order::from_request(wire::OrderRequest {
            terms: Some(good_terms()),
            order: Some(begin),
        }))
    };
    let good = wire::StreamOptions::from(StreamOptions::PLAIN);
    assert_eq!(refused(None), "stream");
    for transport in [0, 3, -1] {
        assert_eq!(
            refused(Some(wire::StreamOptions {
                transport,
                ..good.clone()
            })),
            "stream.transport"
        );
    }
    for connections in [0, 17, u32::MAX] {
        assert_eq!(
            refused(Some(wire::StreamOptions {
                connections,
                ..good.clone()
            })),
            "stream.connections"
        );
    }
    let bandwidth = 1 << 63;
    assert_eq!(
        refused(Some(wire::StreamOptions {
            bandwidth,
            ..good.clone()
        })),
        "stream.bandwidth"
    );
    for address in ["node-b", "192.0.2.1:49160", " 192.0.2.1"] {
        let source_address = address.to_owned();
        assert_eq!(
            refused(Some(wire::StreamOptions {
                source_address,
                ..good.clone()
            })),
            "stream.source_address"
        );
    }
    let retune = wire::order_request::Order::Retune(wire::Retune { bandwidth });
    let request = wire::OrderRequest {
        terms: Some(good_terms()),
        order: Some(retune),
    };
    assert_eq!(refused_field(Order::from_request(request)), "retune.bandwidth");
}

#[test]
fn a_long_detail_is_cut_by_the_sender_and_refused_from_others() {
    let update = Update {
        detail: "ä".repeat(2000),
        ..Update::default()
    };
    let message = wire::MigrationUpdate::from(update);
    assert!(message.detail.len() <= 1024 && message.detail.ends_with('ä'));
    assert!(Update::try_from(message).is_ok());
    let message = wire::MigrationUpdate {
        detail: "x".repeat(1025),
        ..Default::default()
    };
    assert_eq!(refused_field(Update::try_from(message)), "detail");
    let message = wire::MigrationUpdate {
        reason: "two words".into(),
        ..Default::default()
    };
    assert_eq!(refused_field(Update::try_from(message)), "reason");
}

#[test]
fn a_token_shows_in_no_debug_text() {
    let order = Order::Perform(Channel {
        uri: "tcp://a:1".into(),
        token: Token(vec![171; 32]),
    });
    assert!(!format!("{order:?}").contains("171"));
}

#[test]
fn keepalives_and_watches_are_read_or_refused_by_field() {
    let request = wire::KeepAliveRequest {
        terms: Some(good_terms()),
        path_proven: true,
        silence_millis: 30_000,
    };
    let read = DriverLives::try_from(request.clone()).unwrap();
    assert_eq!(read.terms.guest, "g-1");
    assert_eq!((read.path_proven, read.silence), (true, Duration::from_secs(30)));
    for silence_millis in [0, 3_600_001] {
        let request = wire::KeepAliveRequest {
            silence_millis,
            ..request.clone()
        };
        assert_eq!(refused_field(DriverLives::try_from(request)), "silence_millis");
    }
    let request = wire::KeepAliveRequest {
        terms: None,
        ..request
    };
    assert_eq!(refused_field(DriverLives::try_from(request)), "terms");
    let watch = |migration: &str| wire::WatchMigrationRequest {
        migration: migration.to_owned(),
    };
    assert_eq!(watch_request(watch("m-1")), Ok("m-1".to_owned()));
    assert_eq!(refused_field(watch_request(watch("a/b"))), "migration");
}

#[test]
fn an_order_to_drive_is_checked_field_by_field() {
    let terms = Terms {
        migration: "m".into(),
        guest: "g".into(),
        epoch: 1,
        source: "a".into(),
        destination: "b".into(),
    };
    let good = Drive {
        guest: GuestName {
            uid: "g".into(),
            namespace: "n".into(),
            name: "vm".into(),
        },
        endpoint: "10.0.0.2:16514".into(),
        max_downtime: Duration::from_millis(300),
        stream: StreamOptions::PLAIN,
        silence: Duration::from_secs(30),
        ticket: vec![1; 4096],
    };
    let read = |drive: wire::Drive| {
        let request = wire::OrderRequest {
            terms: Some((&terms).into()),
            order: Some(wire::order_request::Order::Drive(drive)),
        };
        Order::from_request(request).map_err(|malformed| malformed.field)
    };
    let good = wire::Drive::from(&good);
    assert!(read(good.clone()).is_ok());
    let mut table = Vec::new();
    for endpoint in ["", "host", ":1", "host:0", "host:65536", "a b:1", "host:x"] {
        let mut bad = good.clone();
        bad.endpoint = endpoint.into();
        table.push((bad, "drive.endpoint"));
    }
    let mut bad = good.clone();
    bad.endpoint = format!("{}:1", "a".repeat(260));
    table.push((bad, "drive.endpoint"));
    for silence in [0, 999, 3_600_001, u32::MAX] {
        let mut bad = good.clone();
        bad.silence_millis = silence;
        table.push((bad, "drive.silence_millis"));
    }
    let mut bad = good.clone();
    bad.ticket.push(1);
    table.push((bad, "drive.ticket"));
    let mut bad = good.clone();
    bad.max_downtime_micros = 0;
    table.push((bad, "drive.max_downtime_micros"));
    let mut bad = good.clone();
    bad.stream = None;
    table.push((bad, "stream"));
    let mut bad = good;
    bad.guest.as_mut().unwrap().uid = "other".into();
    table.push((bad, "drive.guest.uid"));
    for (bad, field) in table {
        assert_eq!(read(bad.clone()), Err(field), "{bad:?}");
    }
}

#[test]
fn phases_are_told_in_order_and_once() {
    let begun = |phase: wire::Phase| wire::PhaseBegun {
        phase: phase.into(),
        at_micros: 1,
    };
    for phases in [
        vec![begun(wire::Phase::Prepare), begun(wire::Phase::Begin)],
        vec![begun(wire::Phase::Begin), begun(wire::Phase::Begin)],
        vec![begun(wire::Phase::Unspecified)],
        vec![begun(wire::Phase::Begin); 6],
    ] {
        let driving = wire::Driving {
            phases,
            ..wire::Driving::default()
        };
        assert!(Driving::try_from(driving).is_err());
    }
}
