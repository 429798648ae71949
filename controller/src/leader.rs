//! One controller of several works: a Lease says which, after the algorithm of client-go.
//!
//! A Lease does not fence: a paused process may believe for a while that it still leads. Nothing that matters rests
//! on it: records are written by compare-and-swap and orders carry the epoch.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::apply::within;
use crate::health::Health;

/// The Lease's name.
pub const LEASE: &str = "godwit-controller";
/// How long a leader may be silent before another one takes over.
const DURATION: Duration = Duration::from_secs(15);
/// How long a leader tries to renew before it gives up, well within the duration.
const RENEW_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What follows from the Lease as it was read.
#[derive(Clone, Debug, PartialEq)]
enum Move {
    /// Somebody else leads.
    Wait,
    /// Write this: we lead if it is taken.
    Take(Box<LeaseSpec>),
}

/// What to do about the Lease. `unchanged_for`: how long this process has seen it unchanged, which counts where the
/// clocks differ; its own times count too, since nothing that matters rests on them.
fn judge(lease: Option<&LeaseSpec>, me: &str, now: Timestamp, unchanged_for: Duration) -> Move {
    let holder = lease
        .and_then(|lease| lease.holder_identity.as_deref())
        .filter(|holder| !holder.is_empty());
    let ours = holder == Some(me);
    let duration = lease
        .and_then(|lease| lease.lease_duration_seconds)
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map_or(DURATION, Duration::from_secs);
    let renewed = lease
        .and_then(|lease| lease.renew_time.as_ref())
        .map(|time| time.0);
    let old = renewed.is_none_or(|at| {
        now.duration_since(at) > jiff::SignedDuration::try_from(duration).unwrap_or_default()
    });
    if holder.is_some() && !ours && !old && unchanged_for < duration {
        return Move::Wait;
    }
    let before = lease.cloned().unwrap_or_default();
    let transitions = before.lease_transitions.unwrap_or(0);
    Move::Take(Box::new(LeaseSpec {
        holder_identity: Some(me.into()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        renew_time: Some(MicroTime(now)),
        acquire_time: if ours {
            before.acquire_time
        } else {
            Some(MicroTime(now))
        },
        lease_transitions: Some(if ours || lease.is_none() {
            transitions
        } else {
            transitions.saturating_add(1)
        }),
        ..before
    }))
}

/// A candidate for the lead.
pub struct Candidate {
    api: Api<Lease>,
    me: String,
    seen: Option<(Option<LeaseSpec>, Instant)>,
}

impl Candidate {
    /// `me` is this process's name; no two have the same.
    pub fn new(client: kube::Client, namespace: &str, me: String) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            me,
            seen: None,
        }
    }

    /// Waits until this process leads; false at the shutdown.
    pub async fn lead(&mut self, health: &Health, shutdown: &CancellationToken) -> bool {
        let mut told = false;
        loop {
            match self.try_once().await {
                Ok(leads) => {
                    health.reached();
                    if leads {
                        tracing::info!(me = self.me, "leading");
                        return true;
                    }
                    if !told {
                        tracing::info!(me = self.me, "another controller leads; waiting");
                        told = true;
                    }
                }
                Err(error) => tracing::warn!(%error, "the Lease was not reached"),
            }
            tokio::select! {
                () = sleep(LOOK_EVERY) => {}
                () = shutdown.cancelled() => return false,
            }
        }
    }

    /// Renews until that fails for too long, another one leads, or the shutdown.
    pub async fn keep(&mut self, health: &Health, shutdown: &CancellationToken) {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = sleep(LOOK_EVERY) => {}
                () = shutdown.cancelled() => return,
            }
            match self.try_once().await {
                Ok(true) => {
                    renewed = Instant::now();
                    health.reached();
                }
                Ok(false) => {
                    tracing::error!("another controller leads");
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "the Lease was not renewed");
                    if renewed.elapsed() >= RENEW_WITHIN {
                        tracing::error!("the lead is given up: the Lease could not be renewed");
                        return;
                    }
                }
            }
        }
    }

    /// Lets the next one lead at once.
    pub async fn release(&mut self) {
        let released = async {
            let Some(mut lease) = within(self.api.get_opt(LEASE)).await? else {
                return Ok(());
            };
            let Some(spec) = lease
                .spec
                .as_mut()
                .filter(|spec| spec.holder_identity.as_deref() == Some(&self.me))
            else {
                return Ok(());
            };
            spec.holder_identity = Some(String::new());
            within(self.api.replace(LEASE, &PostParams::default(), &lease))
                .await
                .map(|_| ())
        };
        if let Err(error) = released.await {
            tracing::warn!(%error, "the Lease was not released");
        }
    }

    async fn try_once(&mut self) -> Result<bool, kube::Error> {
        let lease = within(self.api.get_opt(LEASE)).await?;
        let spec = lease.as_ref().and_then(|lease| lease.spec.clone());
        let unchanged_for = match &self.seen {
            Some((seen, at)) if *seen == spec => at.elapsed(),
            Some(_) | None => {
                self.seen = Some((spec.clone(), Instant::now()));
                Duration::ZERO
            }
        };
        let Move::Take(next) = judge(spec.as_ref(), &self.me, Timestamp::now(), unchanged_for) else {
            return Ok(false);
        };
        let written = match lease {
            Some(mut lease) => {
                lease.spec = Some(*next);
                within(self.api.replace(LEASE, &PostParams::default(), &lease)).await
            }
            None => {
                let metadata = ObjectMeta {
                    name: Some(LEASE.into()),
                    ..ObjectMeta::default()
                };
                let lease = Lease {
                    metadata,
                    spec: Some(*next),
                };
                within(self.api.create(&PostParams::default(), &lease)).await
            }
        };
        match written {
            Ok(_) => Ok(true),
            // Another one was faster.
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(false),
            Err(error) => Err(error),
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

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn taken(lease: Option<&LeaseSpec>, me: &str, now: i64) -> LeaseSpec {
        match judge(lease, me, at(now), Duration::ZERO) {
            Move::Take(spec) => *spec,
            Move::Wait => panic!("expected to take it"),
        }
    }

    #[test]
    fn a_free_lease_is_taken_and_renewed() {
        let first = taken(None, "a", 100);
        assert_eq!(first.holder_identity.as_deref(), Some("a"));
        assert_eq!(first.lease_transitions, Some(0));
        let renewed = taken(Some(&first), "a", 105);
        assert_eq!(renewed.acquire_time, first.acquire_time);
        assert_eq!(renewed.renew_time, Some(MicroTime(at(105))));
        assert_eq!(renewed.lease_transitions, Some(0));
    }

    #[test]
    fn a_living_leader_is_left_alone() {
        let lease = taken(None, "a", 100);
        assert_eq!(judge(Some(&lease), "b", at(115), Duration::ZERO), Move::Wait);
        assert_eq!(taken(Some(&lease), "b", 116).lease_transitions, Some(1));
        // A leader whose clock is ahead is judged by what was seen of it.
        assert_eq!(
            judge(Some(&lease), "b", at(50), Duration::from_secs(14)),
            Move::Wait
        );
        assert!(matches!(
            judge(Some(&lease), "b", at(50), DURATION),
            Move::Take(_)
        ));
    }

    #[test]
    fn a_released_lease_is_free_at_once() {
        let released = LeaseSpec {
            holder_identity: Some(String::new()),
            ..taken(None, "a", 100)
        };
        assert_eq!(
            taken(Some(&released), "b", 101).holder_identity.as_deref(),
            Some("b")
        );
    }
}
