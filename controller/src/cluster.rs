//! What the parts of the controller share: the client, what the watches have seen, the agents.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use godwit_crds::{VirtualMachine, VirtualMachineHost, VirtualMachineMigration};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::Store;
use kube::{Client, Resource, ResourceExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agents::Agents;
use crate::guest::starts::Starts;
use crate::migration::book::Notice;
use crate::migration::drivers::Drivers;
use crate::record::Records;
use crate::ticket::Tickets;

/// The field manager of every status that the controller writes, and the reporter of its events.
pub const NAME: &str = "godwit-controller";

/// The longest note of an event, in bytes, as the API server bounds it.
const LONGEST_NOTE: usize = 1024;

/// Shared by all reconcilers and drivers.
pub struct Cluster {
    /// The API server.
    pub client: Client,
    /// The guests' records.
    pub records: Records,
    /// The agents.
    pub agents: Agents,
    /// Signs the tickets that sources show to destinations.
    pub tickets: Tickets,
    /// Peer to peer: how long the other agent may be silent before that counts.
    pub peer_silence: Duration,
    /// What the watches have seen. Never decides who may run a guest: the record does, read fresh.
    pub guests: Store<VirtualMachine>,
    /// The migrations.
    pub migrations: Store<VirtualMachineMigration>,
    /// The hosts.
    pub hosts: Store<VirtualMachineHost>,
    /// The drivers of migrations.
    pub drivers: Drivers,
    /// What is known about guests' starts.
    pub starts: Starts,
    /// Every task that has to come to a good end before the process may.
    pub tasks: TaskTracker,
    /// The first stage of the shutdown.
    pub shutdown: CancellationToken,
    seen: watch::Sender<bool>,
    recorder: Recorder,
}

/// What was seen so far is not all of it: a watch has ended before its first list.
#[derive(Debug, thiserror::Error)]
#[error("a watch has ended")]
pub struct WatchEnded;

impl Cluster {
    /// Puts the parts together.
    #[allow(clippy::too_many_arguments, reason = "one for each part")]
    pub fn new(
        client: Client,
        records: Records,
        agents: Agents,
        tickets: Tickets,
        peer_silence: Duration,
        guests: Store<VirtualMachine>,
        migrations: Store<VirtualMachineMigration>,
        hosts: Store<VirtualMachineHost>,
        shutdown: CancellationToken,
    ) -> Self {
        let reporter = Reporter {
            controller: NAME.into(),
            instance: Some(NAME.into()),
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            records,
            agents,
            tickets,
            peer_silence,
            guests,
            migrations,
            hosts,
            seen: watch::Sender::new(false),
            drivers: Drivers::default(),
            starts: Starts::default(),
            tasks: TaskTracker::new(),
            shutdown,
        }
    }

    /// Waits until each watch has seen everything once.
    pub async fn seen(&self) -> Result<(), WatchEnded> {
        self.seen
            .subscribe()
            .wait_for(|seen| *seen)
            .await
            .map(|_| ())
            .map_err(|_| WatchEnded)
    }

    /// Whether each watch has seen everything once.
    pub fn has_seen(&self) -> bool {
        *self.seen.borrow()
    }

    /// Watches over the watches, for all who wait in [`Self::seen`]. To be run once, in the task that runs the
    /// controllers: a store wakes only the last task that has asked it, and each controller asks its own.
    pub async fn wait_until_seen(&self) -> Result<(), WatchEnded> {
        let seen = async {
            self.guests.wait_until_ready().await.map_err(|_| WatchEnded)?;
            self.migrations.wait_until_ready().await.map_err(|_| WatchEnded)?;
            self.hosts.wait_until_ready().await.map_err(|_| WatchEnded)
        };
        tokio::pin!(seen);
        // The ticks ask again, so that not even a lost waking keeps anyone waiting.
        let mut ticks = tokio::time::interval(std::time::Duration::from_millis(100));
        loop {
            tokio::select! {
                ended = &mut seen => {
                    self.seen.send_replace(ended.is_ok());
                    return ended;
                }
                _ = ticks.tick() => {}
            }
        }
    }

    /// The hosts by name.
    pub fn hosts_by_name(&self) -> BTreeMap<String, VirtualMachineHost> {
        self.hosts
            .state()
            .into_iter()
            .map(|host| (host.name_any(), Arc::unwrap_or_clone(host)))
            .collect()
    }

    /// Where the host's agent listens.
    pub fn endpoint(&self, host: &str) -> Option<String> {
        self.hosts
            .find(|known| known.name_any() == host)
            .map(|host| host.spec.endpoint.clone())
    }

    /// Makes a connection to the host's agent, for whoever needs it next.
    pub fn warm(self: &Arc<Self>, host: &str) {
        let (cluster, host) = (self.clone(), host.to_owned());
        self.tasks.spawn(async move {
            if let Some(endpoint) = cluster.endpoint(&host)
                && let Err(fault) = cluster.agents.connect(&host, &endpoint).await
            {
                tracing::debug!(host, %fault, "no connection yet");
            }
        });
    }

    /// Tells of a transition. An event that cannot be written is not worth an order's delay.
    pub async fn notify<K: Resource<DynamicType = ()>>(&self, object: &K, notices: Vec<Notice>) {
        let reference = object.object_ref(&());
        for notice in notices {
            let event = Event {
                type_: if notice.warning {
                    EventType::Warning
                } else {
                    EventType::Normal
                },
                action: notice.reason.clone(),
                reason: notice.reason,
                note: Some(bounded(notice.note)),
                secondary: None,
            };
            if let Err(error) = self.recorder.publish(&event, &reference).await {
                tracing::warn!(%error, reason = event.reason, "an event was not written");
            }
        }
    }
}

fn bounded(mut note: String) -> String {
    let mut end = note.len().min(LONGEST_NOTE);
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    note.truncate(end);
    note
}
