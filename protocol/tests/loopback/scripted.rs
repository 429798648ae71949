//! An agent whose answers a test chooses, behind the real server.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;

use godwit_protocol::gate::Peer;
use godwit_protocol::server::{self, Limits, NoPassage, Passage};
use godwit_protocol::{
    Category, Fault, GuestAnswer, GuestState, Order, OrderAnswer, PeerIdentity, ServerTls, StartGuest,
    Update, wire,
};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

#[derive(Clone, Copy, PartialEq)]
pub enum HelloScript {
    /// As an agent answers.
    Honest,
    /// Settles on a version that nobody asked for.
    Version(u32),
    /// Speaks other versions only.
    OnlyVersions(u32, u32),
    /// Says another name than the certificate's.
    OtherHost,
}

pub struct Agent {
    pub hello: HelloScript,
    pub refuse_orders_with: Option<Fault>,
    pub taken: Mutex<Vec<(PeerIdentity, Order)>>,
    pub guests: Mutex<Vec<StartGuest>>,
    pub updates: watch::Sender<Update>,
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            hello: HelloScript::Honest,
            refuse_orders_with: None,
            taken: Mutex::default(),
            guests: Mutex::default(),
            updates: watch::Sender::new(Update::default()),
        }
    }
}

pub const CLOCK_MICROS: i64 = 1_234_567_890;

#[tonic::async_trait]
impl wire::agent_server::Agent for Agent {
    async fn hello(
        &self,
        request: Request<wire::HelloRequest>,
    ) -> Result<Response<wire::HelloReply>, Status> {
        let settled = Peer::of(&request)?.settle(request.get_ref())?;
        let (version, host) = match self.hello {
            HelloScript::Honest => (settled, "node-a"),
            HelloScript::Version(version) => (version, "node-a"),
            HelloScript::OtherHost => (settled, "node-b"),
            HelloScript::OnlyVersions(oldest, newest) => {
                let ours = godwit_protocol::version::Versions { oldest, newest };
                let theirs = godwit_protocol::version::OURS;
                (godwit_protocol::version::settle(ours, theirs)?, "node-a")
            }
        };
        Ok(Response::new(server::hello_reply(
            version,
            "scripted",
            host,
            "boot-1",
            CLOCK_MICROS,
        )))
    }

    async fn start_guest(
        &self,
        request: Request<wire::StartGuestRequest>,
    ) -> Result<Response<wire::GuestReply>, Status> {
        self.guests.lock().unwrap().push(request.into_inner().try_into()?);
        Ok(Response::new(
            GuestAnswer {
                state: GuestState::Running,
                since_micros: Some(5),
            }
            .into(),
        ))
    }

    async fn stop_guest(
        &self,
        request: Request<wire::StopGuestRequest>,
    ) -> Result<Response<wire::StopGuestReply>, Status> {
        let (guest, epoch) = godwit_protocol::guest::stop_request(request.into_inner())?;
        self.guests
            .lock()
            .unwrap()
            .retain(|held| held.guest != guest || held.epoch != epoch);
        Ok(Response::new(wire::StopGuestReply {}))
    }

    async fn order(
        &self,
        request: Request<wire::OrderRequest>,
    ) -> Result<Response<wire::OrderReply>, Status> {
        if let Some(fault) = &self.refuse_orders_with {
            return Err(fault.clone().into());
        }
        let identity = Peer::of(&request)?.identity.clone();
        let (_, order) = Order::from_request(request.into_inner())?;
        let answer = match &order {
            Order::Begin { .. } => OrderAnswer::Begun {
                definition: b"{}".to_vec(),
            },
            Order::Prepare { .. }
            | Order::Perform(_)
            | Order::Ready
            | Order::Finish(_)
            | Order::Confirm
            | Order::AbortSource(_)
            | Order::AbortDestination(_)
            | Order::Settle
            | Order::SourceStands(_)
            | Order::ArbitrateSource(_)
            | Order::ArbitrateDestination
            | Order::Retune { .. }
            | Order::Drive(_) => OrderAnswer::Taken,
        };
        self.taken.lock().unwrap().push((identity, order));
        Ok(Response::new(answer.into()))
    }

    type WatchMigrationStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<wire::MigrationUpdate, Status>> + Send>>;

    async fn watch_migration(
        &self,
        request: Request<wire::WatchMigrationRequest>,
    ) -> Result<Response<Self::WatchMigrationStream>, Status> {
        if request.get_ref().migration != "m-1" {
            return Err(Fault::new(Category::Invalid, "InternalError", "no such migration").into());
        }
        let updates = WatchStream::new(self.updates.subscribe());
        Ok(Response::new(Box::pin(updates.map(|update| Ok(update.into())))))
    }

    async fn keep_alive(
        &self,
        _request: Request<wire::KeepAliveRequest>,
    ) -> Result<Response<wire::KeepAliveReply>, Status> {
        Ok(Response::new(wire::KeepAliveReply {
            clock_micros: CLOCK_MICROS,
        }))
    }
}

/// A served agent; dropped, it ends.
pub struct Served {
    pub address: SocketAddr,
    pub agent: Arc<Agent>,
    pub task: tokio::task::JoinHandle<()>,
    pub stop: Option<oneshot::Sender<()>>,
}

impl Served {
    pub async fn with(agent: Agent, tls: ServerTls, limits: Limits) -> Self {
        Self::passing(agent, tls, limits, Arc::new(NoPassage)).await
    }

    pub async fn passing(agent: Agent, tls: ServerTls, limits: Limits, passage: Arc<dyn Passage>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let agent = Arc::new(agent);
        let (stop, stopped) = oneshot::channel();
        let serving = server::serve(listener, tls, limits, Arc::clone(&agent), passage, async {
            drop(stopped.await);
        });
        let task = tokio::spawn(async { serving.await.unwrap() });
        Self {
            address,
            agent,
            task,
            stop: Some(stop),
        }
    }

    pub async fn new(agent: Agent, tls: ServerTls) -> Self {
        Self::with(agent, tls, Limits::default()).await
    }

    pub fn endpoint(&self) -> String {
        self.address.to_string()
    }

    pub fn orders_taken(&self) -> usize {
        self.agent.taken.lock().unwrap().len()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}
