//! The network between processes: how agents are reached, and what becomes of calls on their way.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use godwit_agent::guests::GuestError;
use godwit_agent::hypervisor::RunState;
use godwit_agent::migration::{Drivers, Migrations};
use godwit_agent::server::Roles;
use godwit_handover::Terms;
use godwit_protocol::{
    AgentClient, Calls, Category, Dial, Fault, Greeting, GuestAnswer, GuestName, GuestState, Order,
    OrderAnswer, PeerIdentity, StartGuest, Update, Watched, authority, wire,
};
use tokio::sync::{mpsc, oneshot};

use crate::custody::Keeper;
use crate::sim::{Life, Place, Sim};

/// How long a connection may bring nothing before it is given up.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// An agent that serves.
#[derive(Clone)]
pub struct Serving {
    /// Its life.
    pub life: Arc<Life>,
    /// What it serves.
    pub roles: Drivers,
    /// Its part in migrations.
    pub migrations: Migrations,
    /// Its guests.
    pub keeper: Arc<Keeper>,
    /// The boot of its host.
    pub boot: String,
}

/// Where the agents listen.
#[derive(Default)]
pub struct Ports(Mutex<[Option<Serving>; 2]>);

impl Ports {
    fn slot(place: Place) -> usize {
        usize::from(place == Place::B)
    }

    /// Somebody serves there, or nobody.
    pub fn serve(&self, place: Place, serving: Option<Serving>) {
        // What was there is dropped after the lock is.
        let _before = std::mem::replace(&mut self.0.lock().unwrap()[Self::slot(place)], serving);
    }

    /// Who serves there.
    pub fn at(&self, place: Place) -> Option<Serving> {
        self.0.lock().unwrap()[Self::slot(place)].clone()
    }
}

/// How a process reaches agents.
pub struct Dialer {
    /// The world.
    pub sim: Arc<Sim>,
    /// Whose.
    pub me: Arc<Life>,
    /// Where they listen.
    pub ports: Arc<Ports>,
}

impl Dialer {
    fn identity(&self) -> PeerIdentity {
        if Place::HOSTS.contains(&self.me.place) {
            PeerIdentity::Host(self.me.place.name().into())
        } else {
            PeerIdentity::Controller
        }
    }
}

#[async_trait]
impl Dial for Dialer {
    async fn dial(&self, _endpoint: &str, host: &str) -> Result<AgentClient, Fault> {
        let there = Place::host(host).ok_or_else(|| unreachable("no such host"))?;
        let (sim, me) = (&self.sim, self.me.place);
        let dialled = async {
            sim.travel(me, there).await;
            // Nothing of the other end is kept alive by whoever calls it, alive or dead.
            let server = self.ports.at(there).map(|serving| (serving.life, serving.boot));
            sim.travel(there, me).await;
            server.ok_or_else(|| unreachable("connection refused"))
        };
        // As the real one: five seconds for all of it.
        let (server, boot_id) = tokio::time::timeout(Duration::from_secs(5), dialled)
            .await
            .unwrap_or_else(|_| Err(unreachable("no answer within 5 s")))?;
        if self.me.is_over() {
            std::future::pending::<()>().await;
        }
        let greeting = Greeting {
            host: host.into(),
            boot_id,
            program: "simulated".into(),
            version: godwit_protocol::version::NEWEST,
        };
        let line = Line {
            sim: self.sim.clone(),
            me: self.me.clone(),
            identity: self.identity(),
            server,
            ports: self.ports.clone(),
        };
        Ok(AgentClient::over(greeting, Arc::new(line)))
    }
}

/// One connection. It keeps nothing of the other end alive.
#[derive(Clone)]
struct Line {
    sim: Arc<Sim>,
    me: Arc<Life>,
    identity: PeerIdentity,
    server: Arc<Life>,
    ports: Arc<Ports>,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}", self.me.place, self.server.place)
    }
}

impl Line {
    /// Carries a request there and its answer back. What was sent arrives even if nobody waits for the answer any more.
    async fn call<T, F>(
        &self,
        what: String,
        counted: bool,
        work: impl FnOnce(Drivers) -> F + Send + 'static,
    ) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Fault>> + Send,
    {
        let (me, there) = (self.me.place, self.server.place);
        if counted {
            self.sim.pass(&self.me, format!("sends {what} to {there}")).await;
        } else if self.me.is_over() {
            std::future::pending::<()>().await;
        }
        let (answer, answered) = oneshot::channel();
        let line = self.clone();
        tokio::spawn(async move {
            let Self {
                sim, server, ports, ..
            } = line;
            sim.travel(me, there).await;
            let carried_out = async {
                if counted {
                    sim.pass(&server, format!("hears {what} from {me}")).await;
                }
                let serving = ports
                    .at(there)
                    .filter(|serving| Arc::ptr_eq(&serving.life, &server));
                let Some(serving) = serving else {
                    return Err(unreachable("connection reset"));
                };
                let outcome = work(serving.roles).await;
                if counted {
                    sim.pass(&server, format!("answers {what}")).await;
                }
                outcome
            };
            let outcome = tokio::select! {
                biased;
                () = server.over() => Err(unreachable("connection reset")),
                outcome = carried_out => outcome,
            };
            sim.travel(there, me).await;
            // Whoever called may have gone.
            let _ = answer.send(outcome);
        });
        let outcome = tokio::select! {
            biased;
            outcome = answered => outcome.unwrap_or_else(|_| Err(unreachable("connection reset"))),
            () = self.sim.silent_for(me, there, KEEPALIVE) => Err(unreachable("keepalive")),
        };
        if self.me.is_over() {
            std::future::pending::<()>().await;
        }
        outcome
    }
}

fn unreachable(why: &str) -> Fault {
    Fault::new(Category::Unavailable, "AgentUnreachable", why.to_owned())
}

#[async_trait]
impl Calls for Line {
    async fn start_guest(&self, order: &StartGuest) -> Result<GuestAnswer, Fault> {
        let (ports, place, guest, epoch) = (
            self.ports.clone(),
            self.server.place,
            order.guest.uid.clone(),
            order.epoch,
        );
        self.call("a start of the guest".into(), true, move |roles| async move {
            drop(roles);
            let keeper = ports.at(place).map(|serving| serving.keeper);
            let keeper = keeper.ok_or_else(|| unreachable("connection reset"))?;
            let run = keeper.start(&guest, epoch).await.map_err(Fault::from)?;
            Ok(GuestAnswer {
                state: match run {
                    RunState::Running => GuestState::Running,
                    RunState::Paused | RunState::StoppedForMigration | RunState::Incoming => {
                        GuestState::Paused
                    }
                    RunState::ShutDown => GuestState::ShutOff,
                    RunState::Panicked | RunState::IoError | RunState::Broken => GuestState::Crashed,
                },
                since_micros: None,
            })
        })
        .await
    }

    async fn stop_guest(&self, guest: &GuestName, epoch: u64) -> Result<(), Fault> {
        let (ports, place, guest) = (self.ports.clone(), self.server.place, guest.uid.clone());
        self.call("a stop of the guest".into(), true, move |roles| async move {
            drop(roles);
            let serving = ports.at(place);
            let Serving {
                keeper, migrations, ..
            } = serving.ok_or_else(|| unreachable("connection reset"))?;
            // As the agent's journals say.
            let unended = !migrations.active().is_empty();
            drop(migrations);
            if unended {
                return Err(Fault::from(GuestError::Conflict(
                    "a migration has not ended".into(),
                )));
            }
            keeper.stop(&guest, epoch).await.map_err(Fault::from)
        })
        .await
    }

    async fn order(&self, terms: &Terms, order: &Order) -> Result<OrderAnswer, Fault> {
        let identity = self.identity.clone();
        let name = order.name();
        let duplicate =
            self.sim.faulty.load(std::sync::atomic::Ordering::Relaxed) && self.sim.dice.percent(3);
        if duplicate {
            // The same order arrives once more, at some other time.
            let (line, terms, order) = (self.clone(), terms.clone(), order.clone());
            let later = Duration::from_millis(self.sim.dice.within(0, 400));
            tokio::spawn(async move {
                tokio::time::sleep(later).await;
                let request = order.to_request(&terms);
                let _ = line
                    .call(format!("{name} again"), true, move |roles| async move {
                        let (terms, order) = Order::from_request(request)?;
                        roles.order(terms, order).await
                    })
                    .await;
            });
        }
        let request = order.to_request(terms);
        self.call(name.to_owned(), true, move |roles| async move {
            let (terms, order) = Order::from_request(request)?;
            authority::may_order(&identity, &terms, &order)?;
            roles.order(terms, order).await
        })
        .await
    }

    async fn watch_migration(&self, migration: &str) -> Result<Watched, Fault> {
        let migration = migration.to_owned();
        let (updates, heard) = mpsc::unbounded_channel::<Result<Update, Fault>>();
        let line = self.clone();
        self.call("a watch".into(), false, move |roles| async move {
            let mut told = roles.watch(&migration);
            drop(roles);
            tokio::spawn(async move {
                let Self {
                    sim,
                    me,
                    server: life,
                    ..
                } = line;
                let there = life.place;
                loop {
                    let update = tokio::select! {
                        biased;
                        () = life.over() => None,
                        () = updates.closed() => return,
                        () = sim.silent_for(me.place, there, KEEPALIVE) => None,
                        update = told.next() => update,
                    };
                    let Some(update) = update else { break };
                    let words = update.side.as_ref().map(|side| format!("{side:?}"));
                    let message = wire::MigrationUpdate::from(update);
                    if let Some(words) = words
                        && sim.reach(&life, format!("tells {}: {words}", me.place))
                    {
                        break;
                    }
                    let arrives = tokio::select! {
                        biased;
                        () = sim.travel(there, me.place) => true,
                        () = sim.silent_for(me.place, there, KEEPALIVE) => false,
                    };
                    if !arrives {
                        break;
                    }
                    let update = Update::try_from(message).map_err(Fault::from);
                    if sim.reach(&me, format!("hears of {there}")) || updates.send(update).is_err() {
                        return;
                    }
                }
                drop(told);
                sim.travel(there, me.place).await;
                let _ = updates.send(Err(unreachable("the connection is gone")));
            });
            Ok(())
        })
        .await?;
        Ok(Box::pin(stream::unfold(heard, |mut heard| async move {
            heard.recv().await.map(|update| (update, heard))
        })))
    }

    async fn keep_alive(&self, terms: &Terms, path_proven: bool, silence: Duration) -> Result<i64, Fault> {
        let (terms, identity) = (terms.clone(), self.identity.clone());
        self.call("a keepalive".into(), false, move |roles| async move {
            authority::may_drive(&identity, &terms)?;
            roles.keep_alive(terms, path_proven, silence).await?;
            Ok(godwit_agent::clock::now_micros())
        })
        .await
    }
}
