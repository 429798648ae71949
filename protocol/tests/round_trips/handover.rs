//! The handover's own words, one by one: what cannot be one of them is refused by its field.

use godwit_handover::{Channel, DestinationReport, Go, SourceReport, Terms};
use godwit_protocol::{GuestAnswer, Order, wire};

use crate::{good_terms, refused_field};

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
