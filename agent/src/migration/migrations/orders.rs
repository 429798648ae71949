//! Orders: each is carried to the task that owns its migration's machine, and answered with what that said.

use std::sync::Arc;
use std::time::Duration;

use godwit_handover::{DestinationEvent, Refusal, SourceEvent, Terms};
use godwit_protocol::{Fault, Order, OrderAnswer};
use tokio::sync::{mpsc, oneshot};

use super::Inner;
use super::table::Orders;
use crate::migration::faults;
use crate::migration::role::Message;

impl Inner {
    /// Gives an order to whom it concerns.
    pub(super) async fn order(self: &Arc<Self>, terms: &Terms, order: Order) -> Result<OrderAnswer, Fault> {
        match order {
            Order::Begin { max_downtime, stream } => self.begin(terms, max_downtime, stream).await,
            Order::Prepare {
                guest,
                definition,
                stream,
                // Judged before, where the caller is known.
                ticket: _,
            } => self.prepare(terms, guest, &definition, stream).await,
            Order::Perform(channel) => self.to_source(terms, SourceEvent::Perform(channel)).await,
            Order::Ready => self.to_source(terms, SourceEvent::Ready).await,
            Order::Confirm => self.to_source(terms, SourceEvent::Confirm).await,
            Order::Settle => self.to_source(terms, SourceEvent::Settle).await,
            Order::ArbitrateSource(cause) => self.to_source(terms, SourceEvent::Arbitrate(cause)).await,
            Order::AbortSource(cause) => self.to_source(terms, SourceEvent::Abort(cause)).await,
            Order::Retune { bandwidth } => self.retune(terms, bandwidth),
            // Of the drivers' concern ([`crate::migration::Drivers`]); a side by itself drives nothing.
            Order::Drive(_) => Err(faults::internal(&"a side was ordered to drive")),
            Order::Finish(go) => self.to_destination(terms, DestinationEvent::Finish(go)).await,
            Order::SourceStands(standing) => {
                self.to_destination(terms, DestinationEvent::SourceStands(standing))
                    .await
            }
            Order::ArbitrateDestination => self.to_destination(terms, DestinationEvent::Arbitrate).await,
            Order::AbortDestination(cause) => {
                self.to_destination(terms, DestinationEvent::Abort(cause)).await
            }
        }
    }

    /// The driver of a migration lives.
    pub(super) fn keep_alive(
        &self,
        terms: &Terms,
        path_proven: bool,
        silence: Duration,
    ) -> Result<(), Fault> {
        let sent = match self.find(terms)? {
            Orders::Source(orders) => orders.send(Message::KeepAlive { path_proven, silence }).is_ok(),
            Orders::Destination(orders) => orders.send(Message::KeepAlive { path_proven, silence }).is_ok(),
        };
        if sent {
            Ok(())
        } else {
            Err(faults::unknown(&terms.migration))
        }
    }

    /// Where orders about this migration go.
    fn find(&self, terms: &Terms) -> Result<Orders, Fault> {
        self.table().find(terms)
    }

    pub(super) async fn to_source(&self, terms: &Terms, event: SourceEvent) -> Result<OrderAnswer, Fault> {
        match self.find(terms)? {
            Orders::Source(orders) => deliver(&orders, event, terms).await,
            Orders::Destination(_) => Err(faults::refused(Refusal::OtherTerms)),
        }
    }

    /// Another limit for a stream. It has no effect where nothing is limited any more.
    fn retune(&self, terms: &Terms, bandwidth: u64) -> Result<OrderAnswer, Fault> {
        match self.find(terms)? {
            Orders::Source(orders) => orders
                .send(Message::Retune { bandwidth })
                .map(|()| OrderAnswer::Taken)
                .map_err(|_| faults::unknown(&terms.migration)),
            Orders::Destination(_) => Err(faults::refused(Refusal::OtherTerms)),
        }
    }

    pub(super) async fn to_destination(
        &self,
        terms: &Terms,
        event: DestinationEvent,
    ) -> Result<OrderAnswer, Fault> {
        match self.find(terms)? {
            Orders::Destination(orders) => deliver(&orders, event, terms).await,
            Orders::Source(_) => Err(faults::refused(Refusal::OtherTerms)),
        }
    }
}

async fn deliver<E>(
    orders: &mpsc::UnboundedSender<Message<E>>,
    event: E,
    terms: &Terms,
) -> Result<OrderAnswer, Fault> {
    let (reply, answer) = oneshot::channel();
    let gone = || faults::unknown(&terms.migration);
    orders.send(Message::Order(event, reply)).map_err(|_| gone())?;
    match answer.await.map_err(|_| gone())? {
        Ok(()) => Ok(OrderAnswer::Taken),
        Err(refusal) => Err(faults::refused(refusal)),
    }
}
