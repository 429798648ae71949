//! Orders, streams and keepalives that no driver of ours would send are refused by their field.

use std::time::Duration;

use godwit_handover::{Channel, Terms, Token};
use godwit_protocol::order::DriverLives;
use godwit_protocol::{Drive, GuestName, Order, StreamOptions, wire};

use crate::{good_terms, refused_field};

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
fn a_token_shows_in_no_debug_text() {
    let order = Order::Perform(Channel {
        uri: "tcp://a:1".into(),
        token: Token(vec![171; 32]),
    });
    assert!(!format!("{order:?}").contains("171"));
}

#[test]
fn keepalives_are_read_or_refused_by_field() {
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
}

#[test]
fn an_order_to_drive_is_checked_field_by_field() {
    let terms = Terms {
        migration: "m".into(),
        guest: "g".into(),
        epoch: 1,
        source: "a".into(),
        destination: "b".into(),
        strict: false,
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
