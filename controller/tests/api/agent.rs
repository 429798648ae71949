//! Agents that play their part in a migration as real ones do, but for the guest; and that misbehave where a test says so.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use godwit_handover::{
    Cause, Channel, DestinationReport, Go, GoEvidence, SourceReport, Terms, Token, Wanted,
};
use godwit_protocol::gate::Peer;
use godwit_protocol::server::{self, Limits, NoPassage};
use godwit_protocol::version::{self, Versions};
use godwit_protocol::{
    Driving, Fault, GuestAnswer, GuestState, Order, OrderAnswer, Progress, ServerTls, Side, StartGuest,
    Update, wire,
};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

/// All agents of a test, by host.
pub type Fabric = Mutex<HashMap<String, Arc<Agent>>>;

/// What a test tells an agent to do, and what it saw.
#[derive(Default)]
pub struct Script {
    /// Refuse Prepare with this.
    pub refuse_prepare: Option<Fault>,
    /// Refuse to drive with this.
    pub refuse_drive: Option<Fault>,
    /// What the driver tells of itself as soon as it was ordered to drive.
    pub driving: Option<Box<Driving>>,
    /// Speak only this version of the protocol.
    pub only_version: Option<u32>,
    /// Tell this of a guest that is to leave, and not what it was started with.
    pub another_definition: Option<Vec<u8>>,
    /// Refuse to start guests with this.
    pub refuse_start: Option<Fault>,
    /// The stream does not end by itself.
    pub endless: bool,
    /// The orders that came, by name.
    pub orders: Vec<String>,
    /// The guests that were started.
    pub started: Vec<StartGuest>,
    /// The guests that were received, by UID, with their definitions.
    pub received: HashMap<String, Vec<u8>>,
    /// The guests that were stopped, with their epochs.
    pub stopped: Vec<(String, u64)>,
}

pub struct Agent {
    host: String,
    /// Ahead of the real time by this much, in microseconds.
    clock_ahead: i64,
    fabric: Weak<Fabric>,
    pub script: Mutex<Script>,
    updates: Mutex<HashMap<String, watch::Sender<Update>>>,
    proven: watch::Sender<bool>,
}

impl Agent {
    fn now(&self) -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
        i64::try_from(now).unwrap() + self.clock_ahead
    }

    pub fn updates(&self, migration: &str) -> watch::Sender<Update> {
        self.updates
            .lock()
            .unwrap()
            .entry(migration.into())
            .or_default()
            .clone()
    }

    fn tell_source(&self, migration: &str, report: SourceReport) {
        self.updates(migration)
            .send_modify(|update| update.side = Some(Side::Source(report)));
    }

    fn tell_destination(&self, migration: &str, report: DestinationReport) {
        self.updates(migration)
            .send_modify(|update| update.side = Some(Side::Destination(report)));
    }

    fn peer(&self, host: &str) -> Arc<Agent> {
        self.fabric
            .upgrade()
            .unwrap()
            .lock()
            .unwrap()
            .get(host)
            .unwrap()
            .clone()
    }

    /// What it was started with or received with.
    fn definition(&self, guest: &str) -> Option<Vec<u8>> {
        let script = self.script.lock().unwrap();
        let started = script.started.iter().find(|start| start.guest.uid == guest);
        started
            .map(|start| start.definition.clone())
            .or_else(|| script.received.get(guest).cloned())
    }

    /// Sends the guest: as soon as the path is proved, the guest is stopped and loaded at the destination.
    async fn stream(self: Arc<Self>, terms: Terms) {
        let destination = self.peer(&terms.destination);
        let migration = &terms.migration;
        self.updates(migration).send_modify(|update| {
            update.side = Some(Side::Source(SourceReport::Streaming));
            update.progress = Some(Progress {
                total_bytes: 1 << 30,
                transferred_bytes: 1 << 29,
                remaining_bytes: 1 << 29,
                bytes_per_second: 1 << 28,
                ..Progress::default()
            });
        });
        destination.tell_destination(migration, DestinationReport::Receiving);
        if self.script.lock().unwrap().endless {
            return;
        }
        self.proven.subscribe().wait_for(|proven| *proven).await.unwrap();
        let stopped = self.now();
        self.updates(migration).send_modify(|update| {
            update.side = Some(Side::Source(SourceReport::Stopped { sealed: true }));
            update.stopped_at_micros = Some(stopped);
        });
        self.tell_source(
            migration,
            SourceReport::Switching {
                sealed: true,
                ready: false,
                wanted: Some(Wanted::Run),
            },
        );
        destination.tell_destination(migration, DestinationReport::Loaded);
    }

    fn take(self: &Arc<Self>, terms: &Terms, order: &Order) -> Result<OrderAnswer, Fault> {
        let migration = &terms.migration;
        self.script.lock().unwrap().orders.push(order.name().into());
        match order {
            Order::Begin { .. } => {
                if self.updates(migration).borrow().side.is_none() {
                    self.tell_source(migration, SourceReport::Begun);
                }
                let other = self.script.lock().unwrap().another_definition.clone();
                let definition = other.or_else(|| self.definition(&terms.guest));
                return Ok(OrderAnswer::Begun {
                    definition: definition.unwrap(),
                });
            }
            Order::Prepare { definition, .. } => {
                if let Some(fault) = self.script.lock().unwrap().refuse_prepare.clone() {
                    return Err(fault);
                }
                let channel = Channel {
                    uri: "tcp://192.0.2.2:49160".into(),
                    token: Token(vec![7; 32]),
                };
                let (guest, definition) = (terms.guest.clone(), definition.clone());
                self.script.lock().unwrap().received.insert(guest, definition);
                self.tell_destination(migration, DestinationReport::Prepared(channel));
            }
            Order::Perform(_) => {
                tokio::spawn(self.clone().stream(terms.clone()));
            }
            Order::Ready => {
                let go = Go {
                    evidence: GoEvidence::SealedAndReleased,
                    wanted: Wanted::Run,
                    sealed: true,
                };
                self.tell_source(migration, SourceReport::GoSent(go));
            }
            Order::Finish(_) => {
                let resumed = self.now();
                self.updates(migration).send_modify(|update| {
                    update.side = Some(Side::Destination(DestinationReport::Holding { running: true }));
                    update.resumed_at_micros = Some(resumed);
                });
            }
            Order::Confirm => self.tell_source(migration, SourceReport::Released),
            Order::AbortSource(cause) => self.tell_source(migration, SourceReport::Aborted(*cause)),
            Order::AbortDestination(cause) => {
                self.tell_destination(migration, DestinationReport::Reverted(*cause));
            }
            Order::Retune { .. } => {}
            Order::Drive(drive) => {
                let script = self.script.lock().unwrap();
                if let Some(fault) = script.refuse_drive.clone() {
                    return Err(fault);
                }
                assert!(!drive.ticket.is_empty(), "a driver needs a ticket");
                let driving = script.driving.clone();
                drop(script);
                self.updates(migration)
                    .send_modify(|update| update.driving = driving);
            }
            Order::SourceStands(_) => {}
            Order::ArbitrateSource(cause) => self.tell_source(migration, SourceReport::Aborted(*cause)),
            Order::ArbitrateDestination => {
                self.tell_destination(migration, DestinationReport::Holding { running: true });
            }
            Order::Settle => self.tell_source(migration, SourceReport::Aborted(Cause::Reverted)),
        }
        Ok(OrderAnswer::Taken)
    }
}

/// The service; a type of its own because the trait's methods do not get the `Arc`.
pub struct Service(Arc<Agent>);

#[tonic::async_trait]
impl wire::agent_server::Agent for Service {
    async fn hello(
        &self,
        request: Request<wire::HelloRequest>,
    ) -> Result<Response<wire::HelloReply>, Status> {
        let only = self.0.script.lock().unwrap().only_version;
        let mut hello = request.get_ref().clone();
        if let Some(only) = only {
            let ours = Versions {
                oldest: only,
                newest: only,
            };
            // Settled by the one here, whose connection keeps to it.
            hello.newest_version = version::settle(ours, version::OURS)?;
        }
        let version = Peer::of(&request)?.settle(&hello)?;
        Ok(Response::new(server::hello_reply(
            version,
            "scripted",
            &self.0.host,
            "boot-1",
            self.0.now(),
        )))
    }

    async fn start_guest(
        &self,
        request: Request<wire::StartGuestRequest>,
    ) -> Result<Response<wire::GuestReply>, Status> {
        let since = self.0.now();
        let mut script = self.0.script.lock().unwrap();
        if let Some(fault) = script.refuse_start.clone() {
            return Err(fault.into());
        }
        script.started.push(request.into_inner().try_into()?);
        Ok(Response::new(
            GuestAnswer {
                state: GuestState::Running,
                since_micros: Some(since),
            }
            .into(),
        ))
    }

    async fn stop_guest(
        &self,
        request: Request<wire::StopGuestRequest>,
    ) -> Result<Response<wire::StopGuestReply>, Status> {
        let (guest, epoch) = godwit_protocol::guest::stop_request(request.into_inner())?;
        self.0.script.lock().unwrap().stopped.push((guest.uid, epoch));
        Ok(Response::new(wire::StopGuestReply {}))
    }

    async fn order(
        &self,
        request: Request<wire::OrderRequest>,
    ) -> Result<Response<wire::OrderReply>, Status> {
        let (terms, order) = Order::from_request(request.into_inner())?;
        Ok(Response::new(self.0.take(&terms, &order)?.into()))
    }

    type WatchMigrationStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<wire::MigrationUpdate, Status>> + Send>>;

    async fn watch_migration(
        &self,
        request: Request<wire::WatchMigrationRequest>,
    ) -> Result<Response<Self::WatchMigrationStream>, Status> {
        let updates = WatchStream::new(self.0.updates(&request.get_ref().migration).subscribe());
        Ok(Response::new(Box::pin(updates.map(|update| Ok(update.into())))))
    }

    async fn keep_alive(
        &self,
        request: Request<wire::KeepAliveRequest>,
    ) -> Result<Response<wire::KeepAliveReply>, Status> {
        self.0.proven.send_replace(request.get_ref().path_proven);
        Ok(Response::new(wire::KeepAliveReply {
            clock_micros: self.0.now(),
        }))
    }
}

/// A served agent; dropped, it ends.
pub struct Served {
    pub agent: Arc<Agent>,
    pub address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Served {
    pub async fn new(host: &str, clock_ahead: Duration, fabric: &Arc<Fabric>, tls: ServerTls) -> Self {
        let agent = Arc::new(Agent {
            host: host.into(),
            clock_ahead: i64::try_from(clock_ahead.as_micros()).unwrap(),
            fabric: Arc::downgrade(fabric),
            script: Mutex::default(),
            updates: Mutex::default(),
            proven: watch::Sender::new(false),
        });
        fabric.lock().unwrap().insert(host.into(), agent.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = Arc::new(Service(agent.clone()));
        let task = tokio::spawn(async move {
            server::serve(
                listener,
                tls,
                Limits::default(),
                service,
                Arc::new(NoPassage),
                std::future::pending(),
            )
            .await
            .unwrap();
        });
        Self { agent, address, task }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}
