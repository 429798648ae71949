//! What a watch tells: bounded by who sends it, and refused where it is not.

use godwit_protocol::update::watch_request;
use godwit_protocol::{Driving, Update, wire};

use crate::refused_field;

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
fn watches_are_read_or_refused_by_field() {
    let watch = |migration: &str| wire::WatchMigrationRequest {
        migration: migration.to_owned(),
    };
    assert_eq!(watch_request(watch("m-1")), Ok("m-1".to_owned()));
    assert_eq!(refused_field(watch_request(watch("a/b"))), "migration");
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
