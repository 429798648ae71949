//! What is said is what is heard.

use godwit_handover::Terms;
use godwit_protocol::{GuestAnswer, GuestState, Order, StartGuest, Update, wire};
use proptest::prelude::*;

use crate::carried;
use crate::strategies::{definition, guest, order, terms, update};

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
            | Order::AbortSource(_) | Order::AbortDestination(_) | Order::Settle | Order::SourceStands(_)
            | Order::ArbitrateSource(_) | Order::ArbitrateDestination | Order::Retune { .. } => (terms, order),
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
