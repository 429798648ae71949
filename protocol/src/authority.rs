//! What a caller may ask about one migration. The controller may ask anything; the source's agent, driving peer to
//! peer, only what a driver asks of the destination of its own migration. Whether such a migration was ordered at
//! all, the ticket that comes with Prepare says.

use godwit_handover::Terms;

use crate::error::{Category, Fault};
use crate::identity::PeerIdentity;
use crate::order::Order;
use crate::reason;

/// Whether this caller may give this order.
///
/// # Errors
/// A fault of category Forbidden.
pub fn may_order(caller: &PeerIdentity, terms: &Terms, order: &Order) -> Result<(), Fault> {
    let to_destination = match order {
        Order::Prepare { .. }
        | Order::Finish(_)
        | Order::AbortDestination(_)
        | Order::SourceStands(_)
        | Order::ArbitrateDestination => true,
        Order::Begin { .. }
        | Order::Perform(_)
        | Order::Ready
        | Order::Confirm
        | Order::AbortSource(_)
        | Order::ArbitrateSource(_)
        | Order::Settle
        | Order::Retune { .. }
        | Order::Drive(_) => false,
    };
    match caller {
        PeerIdentity::Controller => Ok(()),
        PeerIdentity::Host(host) if to_destination && *host == terms.source => Ok(()),
        PeerIdentity::Host(_) => Err(forbidden(format!(
            "{caller} may not order {} for migration {}, whose source is {}",
            order.name(),
            terms.migration,
            terms.source
        ))),
    }
}

/// Whether this caller may drive or follow the migration of these terms.
///
/// # Errors
/// A fault of category Forbidden.
pub fn may_drive(caller: &PeerIdentity, terms: &Terms) -> Result<(), Fault> {
    match caller {
        PeerIdentity::Controller => Ok(()),
        PeerIdentity::Host(host) if *host == terms.source => Ok(()),
        PeerIdentity::Host(_) => Err(forbidden(format!(
            "{caller} is not the source of migration {}",
            terms.migration
        ))),
    }
}

fn forbidden(message: String) -> Fault {
    Fault::new(Category::Forbidden, reason::NOT_ALLOWED, message)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use godwit_handover::{Cause, Channel, Go, GoEvidence, Token, Wanted};

    use super::*;
    use crate::drive::Drive;
    use crate::guest::GuestName;
    use crate::stream::StreamOptions;

    fn terms() -> Terms {
        Terms {
            migration: "m".into(),
            guest: "g".into(),
            epoch: 1,
            source: "a".into(),
            destination: "b".into(),
            strict: false,
        }
    }

    fn guest() -> GuestName {
        GuestName {
            uid: "g".into(),
            namespace: "n".into(),
            name: "vm".into(),
        }
    }

    fn orders() -> [(Order, bool); 11] {
        [
            (
                Order::Begin {
                    max_downtime: Duration::from_millis(300),
                    stream: StreamOptions::PLAIN,
                },
                false,
            ),
            (
                Order::Prepare {
                    guest: guest(),
                    definition: vec![1],
                    stream: StreamOptions::PLAIN,
                    ticket: Vec::new(),
                },
                true,
            ),
            (
                Order::Perform(Channel {
                    uri: "tcp://192.0.2.1:1".into(),
                    token: Token(vec![0; 32]),
                }),
                false,
            ),
            (Order::Ready, false),
            (
                Order::Finish(Go {
                    evidence: GoEvidence::Completed,
                    wanted: Wanted::Run,
                    sealed: true,
                }),
                true,
            ),
            (Order::Confirm, false),
            (Order::AbortSource(Cause::Cancelled), false),
            (Order::AbortDestination(Cause::Cancelled), true),
            (Order::Settle, false),
            (Order::Retune { bandwidth: 1 }, false),
            (
                Order::Drive(Box::new(Drive {
                    guest: guest(),
                    endpoint: "b:1".into(),
                    max_downtime: Duration::from_millis(300),
                    stream: StreamOptions::PLAIN,
                    silence: Duration::from_secs(30),
                    ticket: Vec::new(),
                })),
                false,
            ),
        ]
    }

    #[test]
    fn the_source_drives_its_own_destination_and_nobody_else() {
        let host = |name: &str| PeerIdentity::Host(name.to_owned());
        for (order, of_a_driver) in orders() {
            assert!(may_order(&PeerIdentity::Controller, &terms(), &order).is_ok());
            assert_eq!(
                may_order(&host("a"), &terms(), &order).is_ok(),
                of_a_driver,
                "{}",
                order.name()
            );
            for stranger in ["b", "c"] {
                let refused = may_order(&host(stranger), &terms(), &order).map_err(|fault| fault.category);
                assert_eq!(refused, Err(Category::Forbidden), "{stranger} {}", order.name());
            }
        }
        assert!(may_drive(&PeerIdentity::Controller, &terms()).is_ok());
        assert!(may_drive(&host("a"), &terms()).is_ok());
        assert!(may_drive(&host("b"), &terms()).is_err());
        assert!(may_drive(&host("c"), &terms()).is_err());
    }
}
