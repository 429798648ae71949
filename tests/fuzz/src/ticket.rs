//! Tickets, and the keys that they are checked by.

use aws_lc_rs::signature::Ed25519KeyPair;
use godwit_handover::Terms;
use godwit_protocol::ticket::{
    Act, Expected, LONGEST, LONGEST_PUBLISHED, PublicKeys, SigningKey, Ticket, TicketError,
};

use crate::wire::terms;

const NOW: u64 = 1_800_000_000;
const SEED: [u8; 32] = [7; 32];
/// What the signature covers before the ticket itself.
const PURPOSE: &[u8] = b"godwit migration ticket, format 1\0";
const SIGNATURE: usize = 64;

fn key() -> SigningKey {
    SigningKey::from_seed(&SEED).unwrap()
}

pub(crate) fn ticket_for(terms: Terms) -> Vec<u8> {
    Ticket::new(terms, Act::Receive, NOW)
        .unwrap()
        .sign(&key())
        .unwrap()
}

/// Tickets that are taken.
pub fn tickets() -> Vec<Vec<u8>> {
    vec![ticket_for(terms())]
}

/// Shown by a source's agent: as it comes, and once more with a signature that fits, because what a ticket says is
/// read only then.
pub fn ticket(bytes: &[u8]) {
    judge(bytes);
    let body = bytes
        .get(..bytes.len().saturating_sub(SIGNATURE))
        .unwrap_or_default();
    let pair = Ed25519KeyPair::from_seed_unchecked(&SEED).unwrap();
    let signature = pair.sign(&[PURPOSE, body].concat());
    let signed = [body, signature.as_ref()].concat();
    assert_ne!(judge(&signed), Some(TicketError::BadSignature));
}

/// The refusal, if it is refused.
fn judge(bytes: &[u8]) -> Option<TicketError> {
    let keys = PublicKeys::new(vec![key().public(NOW + 3600).unwrap()]).unwrap();
    let terms = terms();
    let expected = Expected {
        peer: "host-a",
        host: "host-b.example",
        terms: &terms,
        act: Act::Receive,
    };
    match Ticket::verify(bytes, &keys, NOW, expected) {
        Ok(ticket) => {
            assert!(bytes.len() <= LONGEST);
            assert_eq!(&ticket.terms, &terms);
            // One encoding only.
            assert_eq!(ticket.sign(&key()).unwrap(), bytes);
            None
        }
        Err(error) => Some(error),
    }
}

/// Keys as they are published.
pub fn publications() -> Vec<Vec<u8>> {
    let keys = (0..8).map(|n| SigningKey::from_seed(&[n; 32]).unwrap().public(NOW).unwrap());
    vec![PublicKeys::new(keys.collect()).unwrap().publish().into_bytes()]
}

/// Read by agents from the API server.
pub fn keys(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(keys) = PublicKeys::read_published(&text) {
        assert!(text.len() <= LONGEST_PUBLISHED && keys.iter().count() <= 8);
        assert_eq!(PublicKeys::read_published(&keys.publish()), Ok(keys));
    }
}
