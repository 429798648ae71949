use proptest::prelude::*;

use super::*;

const NOW: u64 = 1_800_000_000;

fn terms() -> Terms {
    Terms {
        migration: "b4f0c4e5-3cf2-4d3a-8b8b-0b4a0c3f7a10".into(),
        guest: "7d0f3c1e-90a4-4f6e-a5c8-0c1a9f4f2b11".into(),
        epoch: 7,
        source: "host-a".into(),
        destination: "host-b.example".into(),
        strict: false,
    }
}

fn key() -> SigningKey {
    SigningKey::from_seed(&[7; 32]).unwrap()
}

fn keys(until: u64) -> PublicKeys {
    let other = SigningKey::from_seed(&[8; 32]).unwrap();
    PublicKeys::new(vec![other.public(until).unwrap(), key().public(until).unwrap()]).unwrap()
}

fn ticket() -> Ticket {
    Ticket::new(terms(), Act::Receive, NOW).unwrap()
}

/// As the named destination judges it, shown by the named source.
fn judge(bytes: &[u8], terms: &Terms, now: u64) -> Result<Ticket, TicketError> {
    let expected = Expected {
        peer: "host-a",
        host: "host-b.example",
        terms,
        act: Act::Receive,
    };
    Ticket::verify(bytes, &keys(NOW + 3600), now, expected)
}

#[test]
fn a_good_ticket_is_read_as_it_was_made() {
    let ticket = ticket();
    let bytes = ticket.sign(&key()).unwrap();
    assert_eq!(judge(&bytes, &terms(), NOW), Ok(ticket));
    assert_eq!(Ticket::key_id(&bytes), Ok(key().id()));
}

#[test]
fn the_layout_is_fixed() {
    let ticket = Ticket {
        nonce: Nonce([9; 16]),
        ..ticket()
    };
    let bytes = ticket.sign(&key()).unwrap();
    assert_eq!((bytes[0], bytes[17], bytes[25]), (1, 1, 7));
    assert_eq!(bytes[1..17], key().id().0);
    assert_eq!(bytes[26..34], NOW.to_be_bytes());
    assert_eq!(bytes[34..42], (NOW + LIFETIME).to_be_bytes());
    assert_eq!(bytes[42..58], [9; 16]);
    assert_eq!((bytes[58], &bytes[59..95]), (36, terms().migration.as_bytes()));
    // Ed25519 draws nothing: the same ticket has the same bytes.
    assert_eq!(ticket.sign(&key()).unwrap(), bytes);
}

#[test]
fn the_longest_names_fit_and_longer_ones_are_not_signed() {
    let name = "a".repeat(convert::LONGEST_NAME);
    let uid = "a".repeat(convert::LONGEST_UID);
    let longest = Terms {
        migration: uid.clone(),
        guest: uid.clone(),
        epoch: 1,
        source: name.clone(),
        destination: format!("b{}", &name[1..]),
        strict: false,
    };
    let sign = |terms: Terms| Ticket::new(terms, Act::Receive, NOW).unwrap().sign(&key());
    let bytes = sign(longest.clone()).unwrap();
    assert_eq!(bytes.len(), LONGEST);
    let expected = Expected {
        peer: &longest.source,
        host: &longest.destination,
        terms: &longest,
        act: Act::Receive,
    };
    assert!(Ticket::verify(&bytes, &keys(NOW + 1), NOW, expected).is_ok());
    for longer in [
        Terms {
            migration: format!("{uid}a"),
            ..longest.clone()
        },
        Terms {
            source: format!("{name}a"),
            ..longest.clone()
        },
        Terms {
            destination: "a".repeat(300),
            ..longest.clone()
        },
    ] {
        assert_eq!(sign(longer), Err(KeyError::Terms));
    }
}

#[test]
fn two_tickets_for_the_same_terms_are_two_tickets() {
    assert_ne!(ticket().nonce, ticket().nonce);
}

#[test]
fn r2_a_ticket_is_needed() {
    assert_eq!(judge(&[], &terms(), NOW), Err(TicketError::Missing));
}

#[test]
fn r15_what_is_too_long_is_refused_unread() {
    assert_eq!(judge(&[1; LONGEST + 1], &terms(), NOW), Err(TicketError::TooLong));
    // As long as the longest, but no ticket: it is the key that is looked for next.
    assert_eq!(judge(&[1; LONGEST], &terms(), NOW), Err(TicketError::UnknownKey));
}

#[test]
fn r15_another_format_and_every_cut_are_refused() {
    let bytes = ticket().sign(&key()).unwrap();
    for length in 1..bytes.len() {
        assert!(judge(&bytes[..length], &terms(), NOW).is_err(), "{length}");
    }
    let mut later = bytes;
    later[0] = 2;
    assert_eq!(judge(&later, &terms(), NOW), Err(TicketError::Unreadable));
}

#[test]
fn r2_only_published_keys_count() {
    let stranger = SigningKey::generate().unwrap();
    let bytes = ticket().sign(&stranger).unwrap();
    assert_eq!(judge(&bytes, &terms(), NOW), Err(TicketError::UnknownKey));
    // Signed by a stranger in the name of a published key.
    let mut forged = bytes;
    forged[1..17].copy_from_slice(&key().id().0);
    assert_eq!(judge(&forged, &terms(), NOW), Err(TicketError::BadSignature));
}

#[test]
fn r2_a_key_counts_until_its_end() {
    let bytes = ticket().sign(&key()).unwrap();
    let terms = terms();
    let expected = Expected {
        peer: "host-a",
        host: "host-b.example",
        terms: &terms,
        act: Act::Receive,
    };
    let judge = |until| Ticket::verify(&bytes, &keys(until), NOW, expected);
    assert!(judge(NOW - CLOCK_TOLERANCE + 1).is_ok());
    assert_eq!(judge(NOW - CLOCK_TOLERANCE), Err(TicketError::RetiredKey));
}

#[test]
fn r2_a_signature_for_another_purpose_is_none_for_a_ticket() {
    let mut bytes = ticket().sign(&key()).unwrap();
    let at = bytes.len() - SIGNATURE;
    // The same key over the bare bytes.
    let signature = key().sign(&bytes[..at]).unwrap();
    bytes[at..].copy_from_slice(&signature);
    assert_eq!(judge(&bytes, &terms(), NOW), Err(TicketError::BadSignature));
}

#[test]
fn r2_a_ticket_has_its_time() {
    let bytes = ticket().sign(&key()).unwrap();
    let end = NOW + LIFETIME + CLOCK_TOLERANCE;
    for (now, outcome) in [
        (0, Some(TicketError::NotYetValid)),
        (NOW - CLOCK_TOLERANCE - 1, Some(TicketError::NotYetValid)),
        (NOW - CLOCK_TOLERANCE, None),
        (NOW, None),
        (end - 1, None),
        (end, Some(TicketError::Expired)),
    ] {
        assert_eq!(judge(&bytes, &terms(), now).err(), outcome, "{now}");
    }
    assert_eq!(ticket().forgotten_at(), end);
}

#[test]
fn r2_no_ticket_is_good_for_ever() {
    for (not_before, expiry) in [(NOW, NOW + LIFETIME + 1), (NOW, u64::MAX), (NOW, NOW - 1)] {
        let ticket = Ticket {
            not_before,
            expiry,
            ..ticket()
        };
        let bytes = ticket.sign(&key()).unwrap();
        assert_eq!(judge(&bytes, &terms(), NOW), Err(TicketError::LivesTooLong));
    }
}

#[test]
fn r2_a_ticket_is_for_one_migration_of_one_guest_between_two_hosts() {
    let other = |change: fn(&mut Terms)| {
        let mut terms = terms();
        change(&mut terms);
        terms
    };
    for (ticketed, why) in [
        (
            other(|t| t.destination = "host-c".into()),
            TicketError::OtherDestination,
        ),
        (other(|t| t.source = "host-c".into()), TicketError::OtherSource),
        (other(|t| t.migration = "0-1".into()), TicketError::OtherMigration),
        (other(|t| t.guest = "0-1".into()), TicketError::OtherGuest),
        (other(|t| t.epoch = 8), TicketError::OtherEpoch),
    ] {
        let bytes = Ticket::new(ticketed.clone(), Act::Receive, NOW)
            .unwrap()
            .sign(&key())
            .unwrap();
        assert_eq!(judge(&bytes, &terms(), NOW), Err(why));
        // An order that repeats what the ticket says does not help where the channel or the host says otherwise.
        if matches!(why, TicketError::OtherDestination | TicketError::OtherSource) {
            assert_eq!(judge(&bytes, &ticketed, NOW), Err(why));
        } else {
            assert!(judge(&bytes, &ticketed, NOW).is_ok());
        }
    }
}

#[test]
fn r2_a_ticket_for_another_act_is_none_for_this_one() {
    for act in [0, 2, 255] {
        let bytes = ticket().sign_act(&key(), act).unwrap();
        assert_eq!(judge(&bytes, &terms(), NOW), Err(TicketError::OtherAct));
    }
}

#[test]
fn a_signing_key_shows_itself_to_nobody() {
    let shown = format!("{:?}", key());
    assert!(
        shown.contains(&format!("{:?}", key().id())) && !shown.contains("pair"),
        "{shown}"
    );
    assert_eq!(key().seed().unwrap(), [7; 32]);
    assert!(SigningKey::from_seed(&[7; 31]).is_err());
}

fn arbitrary_terms() -> impl Strategy<Value = Terms> {
    (
        "[0-9a-f-]{1,63}",
        "[0-9a-f-]{1,63}",
        0..i64::MAX.unsigned_abs(),
        "[a-z]{1,63}(\\.[a-z0-9]{1,60}){0,3}",
        "[a-z]{1,63}(\\.[a-z0-9]{1,60}){0,3}",
    )
        .prop_map(|(migration, guest, epoch, source, destination)| Terms {
            migration,
            guest,
            epoch,
            source,
            destination,
            strict: false,
        })
}

proptest! {
    #[test]
    fn whatever_was_signed_verifies_and_no_mutation_of_it_does(
        ticketed in arbitrary_terms(),
        at: prop::sample::Index,
        flip in 1u8..,
    ) {
        prop_assume!(ticketed.source != ticketed.destination);
        let mut bytes = Ticket::new(ticketed.clone(), Act::Receive, NOW).unwrap().sign(&key()).unwrap();
        let expected = Expected {
            peer: &ticketed.source,
            host: &ticketed.destination,
            terms: &ticketed,
            act: Act::Receive,
        };
        let keys = keys(NOW + 3600);
        prop_assert_eq!(Ticket::verify(&bytes, &keys, NOW, expected).unwrap().terms, ticketed.clone());
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(Ticket::verify(&bytes, &keys, NOW, expected).is_err());
    }

    #[test]
    fn neither_does_anything_longer_shorter_or_made_up(
        bytes in prop::collection::vec(any::<u8>(), 0..LONGEST + 50),
        more in prop::collection::vec(any::<u8>(), 1..50),
        now: u64,
    ) {
        prop_assert!(judge(&bytes, &terms(), now).is_err());
        let good = ticket().sign(&key()).unwrap();
        prop_assert!(judge(&[&good[..], &more].concat(), &terms(), NOW).is_err());
        let mut known = bytes;
        if let Some(id) = known.get_mut(..17) {
            id.copy_from_slice(&good[..17]);
        }
        prop_assert!(judge(&known, &terms(), NOW).is_err());
    }

    #[test]
    fn reading_what_was_signed_is_total(body in prop::collection::vec(any::<u8>(), 0..LONGEST)) {
        let _ = Ticket::read(&body);
    }
}
