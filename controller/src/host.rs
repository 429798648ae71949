//! Whether hosts live: each agent renews a Lease, and where that stops, the controller says so in the host's Ready
//! condition. It never says that a host is well: that is the agent's own word, when it comes back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use godwit_crds::condition::find_condition;
use godwit_crds::{Condition, ConditionStatus, VirtualMachineHost};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Resource, ResourceExt};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::cluster::Cluster;
use crate::reason::LEASE_EXPIRED;
use crate::time::rfc3339;

/// How long a Lease may go without renewal: four of the agents' periods of ten seconds.
pub const EXPIRES_AFTER: Duration = Duration::from_secs(40);
/// How often is looked.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Owns nothing but the word about an expired Lease, so that the agent's own apply takes the condition back.
const FIELD_MANAGER: &str = "godwit-controller-liveness";

/// When each host's Lease was last seen to change, by this process's clock: the hosts' clocks may be wrong.
#[derive(Debug, Default)]
struct Renewals {
    seen: HashMap<String, (Option<Timestamp>, Instant)>,
}

impl Renewals {
    /// A Lease was seen. One that this process sees for the first time may be old already.
    fn renewed(&mut self, host: &str, renewed_at: Option<Timestamp>, now: Timestamp, instant: Instant) {
        match self.seen.get(host) {
            Some((known, _)) if *known == renewed_at => {}
            Some(_) => {
                self.seen.insert(host.into(), (renewed_at, instant));
            }
            None => {
                let age = renewed_at.map_or(EXPIRES_AFTER, |at| {
                    Duration::try_from(now.duration_since(at))
                        .unwrap_or_default()
                        .min(EXPIRES_AFTER)
                });
                self.seen.insert(
                    host.into(),
                    (renewed_at, instant.checked_sub(age).unwrap_or(instant)),
                );
            }
        }
    }

    /// The Lease is gone.
    fn removed(&mut self, host: &str) {
        self.seen.remove(host);
    }

    /// Whether the host had a Lease and let it run out. A host without one (outside the cluster) is not judged.
    fn expired(&self, host: &str, instant: Instant) -> bool {
        self.seen
            .get(host)
            .is_some_and(|(_, at)| instant.duration_since(*at) >= EXPIRES_AFTER)
    }
}

/// What is to be written about a host whose Lease has run out; `None` if it stands there already.
fn verdict(host: &VirtualMachineHost, now: Timestamp) -> Option<Condition> {
    let conditions = host.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let ready = find_condition(conditions, "Ready");
    if ready.is_some_and(|ready| ready.status == ConditionStatus::Unknown && ready.reason == LEASE_EXPIRED) {
        return None;
    }
    Some(Condition {
        type_: "Ready".into(),
        status: ConditionStatus::Unknown,
        reason: LEASE_EXPIRED.into(),
        message:
            "The agent has not renewed its Lease; its guests may well run. Look at the agent and the host."
                .into(),
        last_transition_time: rfc3339(now),
        observed_generation: host.meta().generation.unwrap_or(0),
    })
}

/// Watches the Leases in `namespace` until the shutdown.
pub async fn watch_leases(cluster: Arc<Cluster>, namespace: String) {
    if cluster.seen().await.is_err() {
        return;
    }
    let api: Api<Lease> = Api::namespaced(cluster.client.clone(), &namespace);
    let mut leases = watcher(api, watcher::Config::default()).default_backoff().boxed();
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut renewals = Renewals::default();
    loop {
        tokio::select! {
            event = leases.try_next() => match event {
                Ok(Some(watcher::Event::Apply(lease) | watcher::Event::InitApply(lease))) => {
                    let at = lease.spec.as_ref().and_then(|spec| spec.renew_time.as_ref()).map(|time| time.0);
                    renewals.renewed(&lease.name_any(), at, Timestamp::now(), Instant::now());
                }
                Ok(Some(watcher::Event::Delete(lease))) => renewals.removed(&lease.name_any()),
                Ok(Some(watcher::Event::Init | watcher::Event::InitDone)) => {}
                Ok(None) => return,
                Err(error) => tracing::warn!(%error, "the hosts' Leases are not seen"),
            },
            _ = ticks.tick() => look(&cluster, &renewals).await,
            () = cluster.shutdown.cancelled() => return,
        }
    }
}

async fn look(cluster: &Cluster, renewals: &Renewals) {
    let now = Instant::now();
    for host in cluster.hosts.state() {
        let name = host.name_any();
        if !renewals.expired(&name, now) {
            continue;
        }
        let Some(condition) = verdict(&host, Timestamp::now()) else {
            continue;
        };
        tracing::warn!(host = name, "the Lease has run out");
        let api: Api<VirtualMachineHost> = Api::all(cluster.client.clone());
        let patch = json!({
            "apiVersion": VirtualMachineHost::api_version(&()),
            "kind": VirtualMachineHost::kind(&()),
            "metadata": { "name": name, "uid": host.uid() },
            "status": { "conditions": [condition] },
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        if let Err(error) = api.patch_status(&name, &params, &Patch::Apply(&patch)).await {
            tracing::warn!(%error, host = name, "that the host is silent was not written");
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use super::*;
    use crate::samples::host;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_lease_expires_by_our_own_clock() {
        let start = Instant::now();
        let mut renewals = Renewals::default();
        assert!(!renewals.expired("a", start));
        // The host's clock is a day behind: only that the Lease changes counts.
        renewals.renewed("a", Some(at(1000)), at(1000), start);
        renewals.renewed("a", Some(at(1000)), at(1030), start + Duration::from_secs(30));
        assert!(!renewals.expired("a", start + Duration::from_secs(39)));
        assert!(renewals.expired("a", start + EXPIRES_AFTER));
        renewals.renewed("a", Some(at(1001)), at(90_000), start + EXPIRES_AFTER);
        assert!(!renewals.expired("a", start + Duration::from_secs(79)));
        renewals.removed("a");
        assert!(!renewals.expired("a", start + Duration::from_secs(1000)));
    }

    #[test]
    fn an_old_lease_is_old_at_first_sight() {
        let start = Instant::now() + Duration::from_secs(100);
        let mut renewals = Renewals::default();
        renewals.renewed("a", Some(at(1000)), at(1020), start);
        assert!(!renewals.expired("a", start + Duration::from_secs(19)));
        assert!(renewals.expired("a", start + Duration::from_secs(20)));
        renewals.renewed("b", Some(at(1000)), at(5000), start);
        assert!(renewals.expired("b", start));
        renewals.renewed("ahead", Some(at(9000)), at(5000), start);
        assert!(!renewals.expired("ahead", start + Duration::from_secs(39)));
    }

    #[test]
    fn it_is_written_once() {
        let mut host = host("a");
        let condition = verdict(&host, at(5)).unwrap();
        assert_eq!(
            (condition.status, condition.reason.as_str()),
            (ConditionStatus::Unknown, "LeaseExpired")
        );
        host.status.as_mut().unwrap().conditions = vec![condition];
        assert_eq!(verdict(&host, at(9)), None);
    }
}
