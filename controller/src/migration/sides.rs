//! What goes on beside a driver all the time: each side is watched and told that the driver lives, and the way to
//! the API server is tried. All of it ends with the driver.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use godwit_crds::GuestRecord;
use godwit_handover::{PathProof, Terms};
use godwit_protocol::clock::Sample;
use godwit_protocol::{Category, Fault, Update};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep};

use crate::agents::Connection;
use crate::cluster::Cluster;

/// How long an agent waits for the next keepalive before it counts the driver as silent: longer than a new leader
/// takes to come (15 s for the lease, and a start).
pub const SILENCE: Duration = Duration::from_secs(30);
/// Between two keepalives.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(1);
/// Between two readings of the record, which prove the way to the API server.
const READ_EVERY: Duration = Duration::from_secs(2);
/// Between two attempts to reach an agent.
const RECONNECT: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

/// A side of the migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The host that gives the guest away.
    Source,
    /// The host that takes it.
    Destination,
}

impl Role {
    /// The host that has this role.
    pub fn host(self, terms: &Terms) -> &str {
        match self {
            Self::Source => &terms.source,
            Self::Destination => &terms.destination,
        }
    }
}

/// What a driver hears.
#[derive(Debug)]
pub enum Heard {
    /// A side can be given orders over this connection.
    Connected(Role, Box<Connection>),
    /// A side's whole state.
    Update(Role, Box<Update>),
    /// A side cannot be heard.
    Silent(Role, Fault),
    /// A side's clock.
    Clock(Role, Sample),
    /// The record as it was read; `None`: there is none.
    Record(Option<Box<GuestRecord>>),
}

/// Whether Ready and Go would get through, and the API server answers.
#[derive(Debug)]
pub struct Proof {
    began: Instant,
    last: Mutex<PathProof>,
    proved: Notify,
}

impl Default for Proof {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            last: Mutex::default(),
            proved: Notify::new(),
        }
    }
}

impl Proof {
    /// The API server has answered.
    pub fn api_reached(&self) {
        self.note(|last, now| last.api_reached(now));
    }

    /// The destination has answered a keepalive.
    fn destination_answered(&self) {
        self.note(|last, now| last.destination_answered(now));
    }

    /// Whether the destination's reports arrive.
    pub fn destination_watched(&self, watched: bool) {
        self.note(|last, _| last.destination_watched(watched));
    }

    /// Whether the path is proved now.
    pub fn proven(&self) -> bool {
        self.last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .proven(self.began.elapsed())
    }

    fn note(&self, change: impl FnOnce(&mut PathProof, Duration)) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.began.elapsed();
        let before = last.proven(now);
        change(&mut last, now);
        if !before && last.proven(now) {
            self.proved.notify_one();
        }
    }
}

/// Watches a side and connects again for ever.
pub async fn watch(cluster: Arc<Cluster>, terms: Terms, role: Role, heard: mpsc::Sender<Heard>) {
    let host = role.host(&terms).to_owned();
    let mut again_after = RECONNECT[0];
    loop {
        let fault = match watch_once(&cluster, &terms, role, &host, &heard).await {
            Ok(()) => {
                again_after = RECONNECT[0];
                Fault::new(
                    Category::Unavailable,
                    "AgentUnreachable",
                    format!("The agent on {host} ended the watch"),
                )
            }
            Err(fault) => fault,
        };
        if heard.send(Heard::Silent(role, fault)).await.is_err() {
            return;
        }
        sleep(again_after).await;
        again_after = (again_after * 2).min(RECONNECT[1]);
    }
}

/// Watches until the connection breaks. `Ok` if anything was heard before that.
async fn watch_once(
    cluster: &Cluster,
    terms: &Terms,
    role: Role,
    host: &str,
    heard: &mpsc::Sender<Heard>,
) -> Result<(), Fault> {
    let endpoint = cluster.endpoint(host).ok_or_else(|| {
        Fault::new(
            Category::Unavailable,
            "HostNotFound",
            format!("There is no VirtualMachineHost {host} any more"),
        )
    })?;
    let connection = cluster.agents.connect(host, &endpoint).await?;
    let mut updates = match connection.client.watch_migration(&terms.migration).await {
        Ok(updates) => updates,
        Err(fault) => {
            if fault.category == Category::Unavailable {
                cluster.agents.dropped(host, &connection).await;
            }
            return Err(fault);
        }
    };
    let _ = heard
        .send(Heard::Connected(role, Box::new(connection.clone())))
        .await;
    let mut anything = false;
    while let Some(update) = updates.next().await {
        match update {
            Ok(update) => {
                anything = true;
                if heard.send(Heard::Update(role, Box::new(update))).await.is_err() {
                    return Ok(());
                }
            }
            Err(fault) => {
                if fault.category == Category::Unavailable {
                    cluster.agents.dropped(host, &connection).await;
                }
                return if anything { Ok(()) } else { Err(fault) };
            }
        }
    }
    // The agent shuts down, or the connection is half dead: make a new one.
    cluster.agents.dropped(host, &connection).await;
    Ok(())
}

/// Tells a side that the driver lives, once a second while `connection` holds a connection over which the side has
/// said that it knows the migration.
pub async fn keep_alive(
    terms: Terms,
    role: Role,
    proof: Arc<Proof>,
    mut connection: watch::Receiver<Option<Connection>>,
    heard: mpsc::Sender<Heard>,
) {
    loop {
        let Ok(current) = connection
            .wait_for(Option::is_some)
            .await
            .map(|held| held.clone())
        else {
            return;
        };
        let Some(current) = current else { continue };
        match current.client.keep_alive(&terms, proof.proven(), SILENCE).await {
            Ok(answer) => {
                if role == Role::Destination {
                    proof.destination_answered();
                }
                if heard.send(Heard::Clock(role, answer.sample)).await.is_err() {
                    return;
                }
            }
            Err(fault) => tracing::debug!(%fault, ?role, "a keepalive was not answered"),
        }
        // A new connection is an agent that may have restarted: it knows nothing of the driver until it is told.
        tokio::select! {
            () = sleep(KEEP_ALIVE_EVERY) => {}
            changed = connection.changed() => if changed.is_err() {
                return;
            },
            // The source waits for this proof before it stops the guest: it is told at once.
            () = proof.proved.notified(), if role == Role::Source => {}
        }
    }
}

/// Reads the record now and then: proof of the way to the API server, and what others wrote.
pub async fn read_record(
    cluster: Arc<Cluster>,
    guest: String,
    proof: Arc<Proof>,
    heard: mpsc::Sender<Heard>,
) {
    loop {
        sleep(READ_EVERY).await;
        match cluster.records.read(&guest).await {
            Ok(record) => {
                // Without its record a guest is not stopped: nobody could decide then who runs it.
                if record.is_some() {
                    proof.api_reached();
                }
                if heard.send(Heard::Record(record.map(Box::new))).await.is_err() {
                    return;
                }
            }
            Err(error) => tracing::debug!(%error, "the record was not read"),
        }
    }
}
