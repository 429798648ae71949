//! A migration does not begin with a certificate that ends before the migration may.

use std::time::{Duration, SystemTime};

use godwit_protocol::{Category, Credentials, Fault, Order};

/// How long Begin and Prepare may take.
const START_WITHIN: Duration = Duration::from_secs(30);
/// How long the parties of a migration may have to connect to each other anew after that: a reconnect needs a
/// certificate, a connection that stands does not.
const RECONNECTS_FOR: Duration = Duration::from_secs(120);
/// For how long the certificate must still hold when a migration begins. Less than a third of ten minutes, the
/// shortest certificate there is: one that is renewed in time always holds for long enough.
pub const MUST_LAST: Duration = START_WITHIN.saturating_add(RECONNECTS_FOR);

/// The reason of a refusal; in `docs/conditions.md`.
pub const CERTIFICATE_ENDS_TOO_SOON: &str = "CertificateEndsTooSoon";

/// Whether this host's certificate lasts for the order: those that begin a migration need one that does, and every
/// other is part of a migration that has begun.
///
/// # Errors
/// A fault of category Unavailable: the next certificate may be on its way.
pub fn check_order(
    order: &Order,
    host: &str,
    credentials: &Credentials,
    now: SystemTime,
) -> Result<(), Fault> {
    match order {
        Order::Begin { .. } | Order::Prepare { .. } | Order::Drive(_) => check(host, credentials, now),
        Order::Perform(_)
        | Order::Ready
        | Order::Finish(_)
        | Order::Confirm
        | Order::AbortSource(_)
        | Order::AbortDestination(_)
        | Order::Settle
        | Order::SourceStands(_)
        | Order::ArbitrateSource(_)
        | Order::ArbitrateDestination
        | Order::Retune { .. } => Ok(()),
    }
}

fn check(host: &str, credentials: &Credentials, now: SystemTime) -> Result<(), Fault> {
    let refuse = |why: String| {
        Err(Fault::new(
            Category::Unavailable,
            CERTIFICATE_ENDS_TOO_SOON,
            format!("The certificate of host {host} {why}"),
        ))
    };
    if now < credentials.valid_from() {
        return refuse("is not yet valid".to_owned());
    }
    match credentials.valid_until().duration_since(now) {
        Ok(left) if left >= MUST_LAST => Ok(()),
        Ok(left) if !left.is_zero() => refuse(format!(
            "ends in {} s, and a migration needs one for {} s",
            left.as_secs(),
            MUST_LAST.as_secs()
        )),
        Ok(_) | Err(_) => refuse("has run out".to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use godwit_protocol::tls::{Pem, PemCredentials};
    use godwit_protocol::{PeerIdentity, StreamOptions, TrustDomain};
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn credentials() -> Credentials {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        let uri = PeerIdentity::Host("here".to_owned()).uri(&TrustDomain::default());
        parameters.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        let certificate = parameters.self_signed(&key).unwrap().pem();
        let pem = |text: String| Pem {
            origin: "a test".to_owned(),
            text: text.into_bytes(),
        };
        let pem = PemCredentials {
            authorities: pem(certificate.clone()),
            chain: pem(certificate),
            key: pem(key.serialize_pem()),
        };
        Credentials::of_pem(pem, &TrustDomain::default()).unwrap()
    }

    #[test]
    fn r5_a_migration_does_not_begin_with_a_certificate_that_ends_before_it_may() {
        let credentials = credentials();
        let begin = Order::Begin {
            max_downtime: Duration::from_millis(300),
            stream: StreamOptions::default(),
        };
        let judge = |now| check_order(&begin, "here", &credentials, now);
        let ends = credentials.valid_until();
        assert!(judge(ends - MUST_LAST).is_ok());
        let second = Duration::from_secs(1);
        for (now, words) in [
            (ends - MUST_LAST + second, "ends in 149 s"),
            (ends, "has run out"),
            (ends + second, "has run out"),
            (credentials.valid_from() - second, "is not yet valid"),
        ] {
            let fault = judge(now).unwrap_err();
            assert_eq!(fault.category, Category::Unavailable);
            assert_eq!(fault.reason, CERTIFICATE_ENDS_TOO_SOON);
            assert!(fault.message.contains(words), "{}", fault.message);
        }
        // What has begun comes to its end.
        assert!(check_order(&Order::Confirm, "here", &credentials, ends).is_ok());
    }

    #[test]
    fn a_certificate_that_is_renewed_in_time_always_holds_for_long_enough() {
        const SHORTEST: Duration = Duration::from_secs(600);
        assert!(MUST_LAST < SHORTEST / 3);
    }

    #[test]
    fn the_reason_is_in_the_documented_table() {
        let table = include_str!("../../../docs/conditions.md");
        assert!(table.contains(&format!("| `{CERTIFICATE_ENDS_TOO_SOON}` |")));
    }
}
