//! Whatever bytes come: each decoder reads them or refuses them, within its bounds, and never falls.
//!
//! Some of the cases are made up; the others are messages as godwit's programs write them, with some bytes changed,
//! put in, left out, moved or cut off: those get past the first checks. `make fuzz` searches for hours what this
//! tries in a second.

#![allow(clippy::indexing_slicing, reason = "a failing test may panic")]

use std::path::Path;

use godwit_fuzz::{TARGETS, Target, named};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestRunner;

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

fn target(name: &str) -> Target {
    named(name).unwrap_or_else(|| unreachable!("{name} is a target"))
}

fn tried(name: &str) {
    let target = target(name);
    let tried = TestRunner::default().run(&bytes_like((target.good)()), |bytes| {
        (target.read)(&bytes);
        Ok(())
    });
    assert!(tried.is_ok(), "{name}: {tried:?}");
}

macro_rules! targets {
    ($($test:ident: $name:literal,)*) => {
        $(#[test]
        fn $test() {
            tried($name);
        })*

        #[test]
        fn every_target_is_tried() {
            assert_eq!(TARGETS.iter().map(|target| target.name).collect::<Vec<_>>(), [$($name),*]);
        }
    };
}

targets! {
    r15_orders_are_read_within_their_bounds_or_refused: "order",
    r15_other_requests_are_read_within_their_bounds_or_refused: "request",
    r15_updates_are_read_within_their_bounds_or_refused: "update",
    r15_answers_are_read_within_their_bounds_or_refused: "answer",
    r15_the_detail_of_an_error_is_believed_within_its_bounds_or_not: "detail",
    r15_a_certificate_names_an_identity_or_nobody: "certificate",
    r15_a_ticket_is_the_very_one_that_was_signed_or_none: "ticket",
    r15_published_keys_are_read_within_their_bounds_or_refused: "ticket-keys",
    r15_a_channels_header_has_one_meaning_or_none: "header",
    r15_a_connections_beginning_is_read_alike_however_it_is_cut: "hello",
    r15_agent_and_relay_read_each_others_words_or_refuse_them: "relay",
    r11_a_monitors_lines_are_read_within_their_bounds_or_refused: "monitor",
    r9_a_definition_is_read_within_its_bounds_or_refused: "definition",
    a_journal_is_read_alike_twice_or_kept_as_it_is: "journal",
}

/// What fuzzing has found once is not found again.
#[test]
fn what_was_found_once_is_borne() {
    for target in TARGETS {
        let found = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("found")
            .join(target.name);
        for entry in std::fs::read_dir(found).into_iter().flatten().flatten() {
            if let Ok(bytes) = std::fs::read(entry.path()) {
                (target.read)(&bytes);
            }
        }
    }
}

/// Else the cases above would begin from nothing.
#[test]
fn what_is_changed_was_good() {
    use godwit_protocol::{Order, PeerIdentity, TrustDomain, Update, wire};
    use prost::Message as _;

    for bytes in (target("order").good)() {
        let request = wire::OrderRequest::decode(bytes.as_slice());
        assert!(Order::from_request(request.unwrap_or_default()).is_ok());
    }
    for bytes in (target("update").good)() {
        let update = wire::MigrationUpdate::decode(bytes.as_slice());
        assert!(Update::try_from(update.unwrap_or_default()).is_ok());
    }
    for bytes in (target("certificate").good)() {
        assert!(PeerIdentity::of_certificate(&bytes.into(), &TrustDomain::default()).is_ok());
    }
    for bytes in (target("definition").good)() {
        assert!(godwit_agent::guests::Definition::parse(&bytes).is_ok());
    }
}
