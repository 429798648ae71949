//! Relays: the tunnel's processes, one for each migration at each side. They outlive the agents that start them, and carry
//! the stream by themselves. The source's reaches the destination's through the agent port, whose agent passes it on.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use godwit_agent::hypervisor::{Guest, Stream};
use godwit_agent::tunnel::{Entry, GoesOn, Relays, TunnelError};
use godwit_handover::{Channel, Token};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::dial::Ports;
use crate::sim::{Life, Place, Sim};
use crate::wire::MigrationNetwork;

/// How often a relay that carries memory comes to a point at which it can be killed.
const CARRIES: Duration = Duration::from_millis(100);
/// What a socket holds, in bytes.
const ROOM: usize = 4096;

/// How far a relay's channel is.
#[derive(Clone, Debug, Default)]
struct Progress {
    up: bool,
    failed: Option<String>,
}

/// A relay.
struct Relay {
    life: Arc<Life>,
    /// Who has started it, and hears from it.
    agent: Arc<Life>,
    /// The other host.
    peer: Place,
    /// A destination's: what opens its channel, once, and where that leads.
    awaited: Mutex<Option<(Vec<u8>, DuplexStream)>>,
    progress: watch::Sender<Progress>,
}

/// The relays of all hosts.
#[derive(Default)]
pub struct Burrow(Mutex<BTreeMap<(Place, String), Arc<Relay>>>);

impl Burrow {
    fn relays(&self) -> MutexGuard<'_, BTreeMap<(Place, String), Arc<Relay>>> {
        self.0.lock().unwrap()
    }

    /// Whose relays live, and for which migrations.
    pub fn left(&self) -> Vec<(Place, String)> {
        self.relays().keys().cloned().collect()
    }

    fn at(&self, host: Place, migration: &str) -> Option<Arc<Relay>> {
        self.relays().get(&(host, migration.to_owned())).cloned()
    }

    fn end(&self, host: Place, migration: &str) {
        let ended = self.relays().remove(&(host, migration.to_owned()));
        if let Some(relay) = ended {
            relay.life.end();
        }
    }

    /// All relays of a host die.
    pub fn fell(&self, host: Place) {
        self.relays().retain(|(place, _), relay| {
            if *place == host {
                relay.life.end();
            }
            *place != host
        });
    }
}

/// The relays of a host, in the hands of one life of its agent.
pub struct Tunnels {
    /// The world.
    pub sim: Arc<Sim>,
    /// Whose hands.
    pub me: Arc<Life>,
    /// What hands a stream's end to a hypervisor.
    pub network: Arc<MigrationNetwork>,
    /// All relays.
    pub burrow: Arc<Burrow>,
    /// Where the agents are reached.
    pub ports: Arc<Ports>,
}

impl fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the relays of {}", self.me.place)
    }
}

fn peer(name: &str) -> Result<Place, TunnelError> {
    Place::host(name).ok_or_else(|| TunnelError::Failed("no such host".into()))
}

impl Tunnels {
    /// Starts a migration's relay anew: what an earlier attempt left is ended first.
    async fn start(&self, migration: &str, peer: Place) -> Arc<Relay> {
        let here = self.me.place;
        self.sim.pass(&self.me, "starts a relay").await;
        self.burrow.end(here, migration);
        let relay = Arc::new(Relay {
            life: Life::new(here.relay()),
            agent: self.me.clone(),
            peer,
            awaited: Mutex::default(),
            progress: watch::Sender::new(Progress::default()),
        });
        self.burrow
            .relays()
            .insert((here, migration.to_owned()), relay.clone());
        self.sim.pass(&self.me, "has started a relay").await;
        relay
    }

    fn handed(&self, socket: DuplexStream) -> Result<Stream, TunnelError> {
        let stands = self.network.stand_for(self.me.place, socket);
        let stands = stands.map_err(|source| TunnelError::System {
            action: "handing the stream over",
            source,
        })?;
        Ok(Stream::plain(stands))
    }
}

#[async_trait]
impl Relays for Tunnels {
    async fn expect(
        &self,
        migration: &str,
        source: &str,
        _connections: u32,
    ) -> Result<Box<dyn Entry>, TunnelError> {
        let relay = self.start(migration, peer(source)?).await;
        let (hypervisor, far) = tokio::io::duplex(ROOM);
        let token: Vec<u8> = self.sim.dice.uid().into_bytes().into_iter().take(32).collect();
        *relay.awaited.lock().unwrap() = Some((token.clone(), far));
        Ok(Box::new(Mouth {
            channel: Channel {
                uri: format!("tunnel://{}", self.me.place),
                token: Token(token),
            },
            hypervisor,
            relay,
            host: Self {
                sim: self.sim.clone(),
                me: self.me.clone(),
                network: self.network.clone(),
                burrow: self.burrow.clone(),
                ports: self.ports.clone(),
            },
        }))
    }

    async fn open(
        &self,
        migration: &str,
        destination: &str,
        channel: &Channel,
        _stream: (u32, &dyn Guest),
        within: Duration,
    ) -> Result<Stream, TunnelError> {
        let relay = self.start(migration, peer(destination)?).await;
        let (hypervisor, far) = tokio::io::duplex(ROOM);
        let dig = Dig {
            sim: self.sim.clone(),
            burrow: self.burrow.clone(),
            ports: self.ports.clone(),
            here: self.me.place,
            migration: migration.to_owned(),
            token: channel.token.0.clone(),
            relay: relay.clone(),
        };
        tokio::spawn(dig.live(far));
        let mut progress = relay.progress.subscribe();
        let decided = progress.wait_for(|progress| progress.up || progress.failed.is_some());
        let outcome = tokio::select! {
            biased;
            decided = timeout(within, decided) => match decided {
                Ok(Ok(progress)) => progress.failed.clone().map_or(Ok(()), |why| Err(TunnelError::Failed(why))),
                Ok(Err(_)) => Err(TunnelError::Gone),
                Err(_) => Err(TunnelError::Deadline(within)),
            },
            () = relay.life.over() => Err(TunnelError::Gone),
        };
        if let Err(error) = outcome {
            self.close(migration, None).await;
            return Err(error);
        }
        self.sim
            .pass(&self.me, "hears from its relay that the channel is open")
            .await;
        self.handed(hypervisor)
    }

    fn failure(&self, migration: &str) -> Option<String> {
        let relay = self.burrow.at(self.me.place, migration)?;
        let mine = Arc::ptr_eq(&relay.agent, &self.me);
        mine.then(|| relay.progress.borrow().failed.clone()).flatten()
    }

    async fn close(&self, migration: &str, _guest: Option<&Path>) {
        if self.burrow.at(self.me.place, migration).is_none() {
            return;
        }
        self.sim.pass(&self.me, "ends a relay").await;
        self.burrow.end(self.me.place, migration);
        self.sim.pass(&self.me, "has ended a relay").await;
    }

    async fn tidy(&self, goes_on: GoesOn<'_>) {
        for (host, migration) in self.burrow.left() {
            if host == self.me.place && !goes_on(&migration) {
                self.close(&migration, None).await;
            }
        }
    }
}

/// A destination's end before the source has come.
struct Mouth {
    channel: Channel,
    hypervisor: DuplexStream,
    relay: Arc<Relay>,
    host: Tunnels,
}

#[async_trait]
impl Entry for Mouth {
    fn channel(&self) -> &Channel {
        &self.channel
    }

    async fn listen(self: Box<Self>, _hypervisor: &dyn Guest) -> Result<Box<dyn Entry>, TunnelError> {
        Ok(self)
    }

    async fn admit(self: Box<Self>) -> Result<Option<Stream>, TunnelError> {
        let mut progress = self.relay.progress.subscribe();
        tokio::select! {
            biased;
            _ = progress.wait_for(|progress| progress.up) => {}
            () = self.relay.life.over() => return Err(TunnelError::Gone),
        }
        let Self { hypervisor, host, .. } = *self;
        host.sim
            .pass(&host.me, "hears from its relay that the source has come")
            .await;
        host.handed(hypervisor).map(Some)
    }
}

/// What a source's relay does.
struct Dig {
    sim: Arc<Sim>,
    burrow: Arc<Burrow>,
    ports: Arc<Ports>,
    here: Place,
    migration: String,
    token: Vec<u8>,
    relay: Arc<Relay>,
}

impl Dig {
    /// Its life: opens the channel, and carries the stream until one of its ends is gone, or one of the two relays.
    async fn live(self, mut mine: DuplexStream) {
        let relay = self.relay.clone();
        tokio::select! {
            biased;
            () = relay.life.over() => {}
            () = async {
                match self.connect().await {
                    Ok(Some((theirs, mut far))) => {
                        let carry = self.carry(&mut mine, &mut far, &theirs);
                        tokio::select! {
                            biased;
                            () = theirs.over() => {}
                            () = carry => {}
                        }
                    }
                    Ok(None) => {}
                    Err(why) => relay.progress.send_modify(|progress| progress.failed = Some(why.into())),
                }
            } => {}
        }
    }

    /// `None` where somebody is killed meanwhile.
    async fn connect(&self) -> Result<Option<(Arc<Life>, DuplexStream)>, &'static str> {
        let (sim, there) = (&self.sim, self.relay.peer);
        if sim.reach(&self.relay.life, "connects to the agent port") {
            return Ok(None);
        }
        sim.travel(self.here, there).await;
        let agent = self.ports.at(there).map(|serving| serving.life);
        let agent = agent.ok_or("connection refused")?;
        if sim.reach(&agent, "passes a connection on to its relay") {
            return Err("connection reset");
        }
        let theirs = self
            .burrow
            .at(there, &self.migration)
            .ok_or("no such tunnel here")?;
        if theirs.peer != self.here {
            return Err("it is not the host that is awaited");
        }
        let opened = theirs
            .awaited
            .lock()
            .unwrap()
            .take_if(|(token, _)| *token == self.token);
        let (_, far) = opened.ok_or("the token opens nothing")?;
        if sim.reach(&theirs.life, "takes the channel") {
            return Err("connection reset");
        }
        theirs.progress.send_modify(|progress| progress.up = true);
        sim.travel(there, self.here).await;
        if sim.reach(&self.relay.life, "has its channel") {
            return Ok(None);
        }
        self.relay.progress.send_modify(|progress| progress.up = true);
        Ok(Some((theirs.life.clone(), far)))
    }

    async fn carry(&self, mine: &mut DuplexStream, far: &mut DuplexStream, theirs: &Life) {
        let (mut there, mut back) = ([0; 64], [0; 64]);
        loop {
            let carried = tokio::select! {
                biased;
                read = mine.read(&mut there) => match read {
                    Ok(1..) if self.passes(theirs) => far.write_all(&there[..read.unwrap_or(0)]).await.is_ok(),
                    Ok(_) | Err(_) => false,
                },
                read = far.read(&mut back) => match read {
                    Ok(1..) if self.passes(theirs) => mine.write_all(&back[..read.unwrap_or(0)]).await.is_ok(),
                    Ok(_) | Err(_) => false,
                },
                () = sleep(CARRIES) => self.passes(theirs),
            };
            if !carried {
                return;
            }
        }
    }

    /// Both relays carry something; false where one of them is killed at it.
    fn passes(&self, theirs: &Life) -> bool {
        !self.sim.reach(&self.relay.life, "carries the stream")
            && !self.sim.reach(theirs, "carries the stream")
    }
}
