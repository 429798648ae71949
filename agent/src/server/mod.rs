//! The agent's calls: what the controller, and the agents of sources, ask over the agent port.
//!
//! Who calls and under which version has been judged before (the protocol's gate); here each message is checked
//! field by field, and whether this caller may ask it, and then it is handed to the guests' manager or to the
//! migrations.

use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{Stream, StreamExt};
use godwit_handover::Terms;
use godwit_protocol::gate::Peer;
use godwit_protocol::guest::{GuestAnswer, GuestName, GuestState, StartGuest, stop_request};
use godwit_protocol::server::hello_reply;
use godwit_protocol::{
    Category, CurrentCredentials, Fault, Order, OrderAnswer, PeerIdentity, Update, authority, wire,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::info;

use crate::guests::{Definition, GuestError, GuestIdentity, GuestView, Guests, StartRequest, words};
use crate::identity::check_order;
use crate::tickets::{Attempt, TicketGate};

/// A stream of a migration's states.
pub type Updates = Pin<Box<dyn Stream<Item = Update> + Send>>;

/// What the server asks of the migrations' roles.
#[async_trait]
pub trait Roles: Send + Sync {
    /// Takes one order about one migration of which this host is a party.
    async fn order(&self, terms: Terms, order: Order) -> Result<OrderAnswer, Fault>;

    /// The host's side of a migration: as it is, and at each change. Ends with the migration's own end.
    fn watch(&self, migration: &str) -> Updates;

    /// Why a migration cannot be followed here until a person has seen to it.
    fn unread(&self, migration: &str) -> Option<Fault>;

    /// The driver lives; `silence` is how long it may be silent before it counts as gone.
    async fn keep_alive(&self, terms: Terms, path_proven: bool, silence: Duration) -> Result<(), Fault>;

    /// The terms of a migration that this host knows.
    fn terms(&self, migration: &str) -> Option<Terms>;

    /// Whether this host has taken a migration on, and whether it has ended here.
    fn attempt(&self, migration: &str) -> Attempt;
}

/// The agent's service.
pub struct AgentService<R> {
    host: String,
    boot_id: String,
    guests: Guests,
    roles: Arc<R>,
    certificate: CurrentCredentials,
    tickets: TicketGate,
    /// Ends the watches when the agent stops serving.
    stopping: CancellationToken,
}

/// How long a driver may ask to be silent.
const SILENCE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
/// The program and its version, for logs.
pub const PROGRAM: &str = concat!("godwit-agent/", env!("CARGO_PKG_VERSION"));

impl<R: Roles> AgentService<R> {
    /// A service for this host's guests and migrations, which begin only while the certificate lasts for them, and
    /// at the word of another host only with a ticket.
    /// `stopping` ends its watches.
    pub fn new(
        host: String,
        boot_id: String,
        guests: Guests,
        roles: R,
        certificate: CurrentCredentials,
        tickets: TicketGate,
        stopping: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            host,
            boot_id,
            guests,
            roles: Arc::new(roles),
            certificate,
            tickets,
            stopping,
        })
    }

    /// An order is for the side that its terms give this host.
    fn check_side(&self, terms: &Terms, order: &Order) -> Result<(), Fault> {
        let (side, named) = match order {
            Order::Begin { .. }
            | Order::Perform(_)
            | Order::Ready
            | Order::Confirm
            | Order::AbortSource(_)
            | Order::ArbitrateSource(_)
            | Order::Settle
            | Order::Retune { .. }
            | Order::Drive(_) => ("source", &terms.source),
            Order::Prepare { .. }
            | Order::Finish(_)
            | Order::AbortDestination(_)
            | Order::SourceStands(_)
            | Order::ArbitrateDestination => ("destination", &terms.destination),
        };
        if *named == self.host {
            return Ok(());
        }
        Err(not_a_party(format!(
            "{} is an order for the {side}, which is {named:?} by its terms, and this is {:?}",
            order.name(),
            self.host
        )))
    }
}

impl<R: Roles> AgentService<R> {
    /// A source's agent begins nothing here without the controller's ticket. Its later orders are about a migration
    /// that this host knows then, with it as the source, or are refused as unknown.
    async fn check_ticket(&self, caller: &PeerIdentity, terms: &Terms, order: &Order) -> Result<(), Fault> {
        if let (
            PeerIdentity::Host(peer),
            Order::Prepare {
                ticket, definition, ..
            },
        ) = (caller, order)
        {
            let attempt = self.roles.attempt(&terms.migration);
            let shown = (ticket.as_slice(), definition.as_slice());
            self.tickets.admit(peer, terms, shown, attempt).await?;
        }
        Ok(())
    }
}

/// Nothing is said after a refusal.
fn until_refused<T: Send>(
    updates: impl Stream<Item = Result<T, Fault>> + Send,
) -> impl Stream<Item = Result<T, Status>> + Send {
    updates
        .scan(false, |refused, update| {
            let before = std::mem::replace(refused, update.is_err());
            std::future::ready((!before).then_some(update))
        })
        .map(|update| update.map_err(Status::from))
}

fn not_a_party(message: String) -> Fault {
    Fault::new(Category::Forbidden, "NotAllowed", message)
}

fn malformed(message: impl Into<String>) -> Fault {
    Fault::new(Category::Invalid, "InternalError", message)
}

/// A guest's identity, with a UID that the agent can use in paths and as a UUID.
fn identity(name: GuestName) -> Result<GuestIdentity, Fault> {
    if !words::is_uid(&name.uid) {
        return Err(malformed(format!(
            "{:?} is not a UID as the API server makes them",
            name.uid
        )));
    }
    Ok(GuestIdentity {
        uid: name.uid,
        namespace: name.namespace,
        name: name.name,
    })
}

fn answer(view: &GuestView) -> GuestAnswer {
    use godwit_crds::virtual_machine::GuestState as Shown;
    let state = match view.state {
        Shown::Starting => GuestState::Starting,
        Shown::Running => GuestState::Running,
        Shown::Paused => GuestState::Paused,
        Shown::ShutOff => GuestState::ShutOff,
        Shown::Crashed | Shown::Lost | Shown::Unknown => GuestState::Crashed,
    };
    GuestAnswer {
        state,
        since_micros: view.since_micros,
    }
}

#[async_trait]
impl<R: Roles + 'static> wire::agent_server::Agent for AgentService<R> {
    async fn hello(
        &self,
        request: Request<wire::HelloRequest>,
    ) -> Result<Response<wire::HelloReply>, Status> {
        let peer = Peer::of(&request)?;
        let version = peer.settle(request.get_ref())?;
        info!(peer = %peer.identity, address = %peer.address, version, "connected");
        let reply = hello_reply(
            version,
            PROGRAM,
            &self.host,
            &self.boot_id,
            crate::clock::now_micros(),
        );
        Ok(Response::new(reply))
    }

    async fn start_guest(
        &self,
        request: Request<wire::StartGuestRequest>,
    ) -> Result<Response<wire::GuestReply>, Status> {
        let order = StartGuest::try_from(request.into_inner()).map_err(Fault::from)?;
        let definition = Definition::parse(&order.definition)
            .map_err(|e| Fault::from(GuestError::DefinitionRefused(e.to_string())))?;
        let request = StartRequest {
            identity: identity(order.guest)?,
            epoch: order.epoch,
            definition,
            again: order.again,
        };
        let view = self.guests.start(request).await.map_err(Fault::from)?;
        Ok(Response::new(answer(&view).into()))
    }

    async fn stop_guest(
        &self,
        request: Request<wire::StopGuestRequest>,
    ) -> Result<Response<wire::StopGuestReply>, Status> {
        let (guest, epoch) = stop_request(request.into_inner()).map_err(Fault::from)?;
        self.guests
            .stop(&identity(guest)?, epoch)
            .await
            .map_err(Fault::from)?;
        Ok(Response::new(wire::StopGuestReply {}))
    }

    async fn order(
        &self,
        request: Request<wire::OrderRequest>,
    ) -> Result<Response<wire::OrderReply>, Status> {
        let caller = Peer::of(&request)?.identity.clone();
        let (terms, order) = Order::from_request(request.into_inner()).map_err(Fault::from)?;
        self.check_side(&terms, &order)?;
        authority::may_order(&caller, &terms, &order)?;
        self.check_ticket(&caller, &terms, &order).await?;
        check_order(&order, &self.host, &self.certificate.get(), crate::clock::now())?;
        info!(migration = %terms.migration, guest = %terms.guest, order = order.name(), "ordered");
        let roles = self.roles.clone();
        // A call ends with its connection; what was ordered is done whole all the same.
        let answer = tokio::spawn(async move { roles.order(terms, order).await })
            .await
            .map_err(|error| Fault::new(Category::Internal, "InternalError", error.to_string()))??;
        Ok(Response::new(answer.into()))
    }

    type WatchMigrationStream = Pin<Box<dyn Stream<Item = Result<wire::MigrationUpdate, Status>> + Send>>;

    async fn watch_migration(
        &self,
        request: Request<wire::WatchMigrationRequest>,
    ) -> Result<Response<Self::WatchMigrationStream>, Status> {
        let caller = Peer::of(&request)?.identity.clone();
        let migration = request.into_inner().migration;
        if !words::is_uid(&migration) {
            return Err(malformed(format!("{migration:?} is not a migration's UID")).into());
        }
        // Whose it is cannot be known without its journal: the controller alone is told.
        if caller == PeerIdentity::Controller
            && let Some(unread) = self.roles.unread(&migration)
        {
            return Err(unread.into());
        }
        let stopping = self.stopping.clone().cancelled_owned();
        let roles = self.roles.clone();
        // One that is not known yet may be watched by any host; what becomes of it, by its source alone.
        let updates = roles.watch(&migration).map(move |update| {
            if update.side.is_some()
                && let Some(terms) = roles.terms(&migration)
            {
                authority::may_drive(&caller, &terms)?;
            }
            Ok(update.into())
        });
        let updates = until_refused(updates);
        Ok(Response::new(Box::pin(updates.take_until(stopping))))
    }

    async fn keep_alive(
        &self,
        request: Request<wire::KeepAliveRequest>,
    ) -> Result<Response<wire::KeepAliveReply>, Status> {
        let caller = Peer::of(&request)?.identity.clone();
        let request = request.into_inner();
        let Some(terms) = request.terms else {
            return Err(malformed("KeepAlive needs the migration's terms").into());
        };
        let terms = Terms::try_from(terms).map_err(Fault::from)?;
        if terms.source != self.host && terms.destination != self.host {
            return Err(not_a_party(format!(
                "This host ({:?}) is no party of migration {}",
                self.host, terms.migration
            ))
            .into());
        }
        authority::may_drive(&caller, &terms)?;
        let silence = Duration::from_millis(request.silence_millis.into());
        if !SILENCE.contains(&silence) {
            return Err(malformed(format!(
                "A driver may be silent for {SILENCE:?}, not for {silence:?}"
            ))
            .into());
        }
        self.roles.keep_alive(terms, request.path_proven, silence).await?;
        Ok(Response::new(wire::KeepAliveReply {
            clock_micros: crate::clock::now_micros(),
        }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, reason = "a failing test may panic")]
mod tests;
