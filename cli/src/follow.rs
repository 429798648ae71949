//! Following a migration to its end.

use std::pin::pin;
use std::time::Duration;

use futures::StreamExt as _;
use godwit_crds::VirtualMachineMigration;
use godwit_crds::condition::find_condition;
use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::runtime::{WatchStreamExt as _, watcher};
use tokio::time::{Instant, sleep_until};

use crate::connect::Cluster;
use crate::error::{Action, CliError, is_transient};
use crate::outcome::{Outcome, outcome};
use crate::report::Report;

/// A doubt often heals by itself, when an agent that was away answers: so long it is given before a person is sent for.
const DECISION_GRACE: Duration = Duration::from_secs(30);
/// After so long without a word of the controller, the user is told where to look.
const UNSEEN_HINT: Duration = Duration::from_secs(10);
/// Longer waits than this are the same as waiting without end.
const FOR_EVER: Duration = Duration::from_secs(30 * 86_400);

/// How the following ended.
pub enum End {
    /// The migration is over, or waits for a decision: as it was last seen.
    Settled(Box<VirtualMachineMigration>),
    /// The time was up.
    TimedOut,
    /// Ctrl-C.
    Interrupted,
}

/// Follows the migration until it is settled, the time is up, or the user has seen enough. The object must be the
/// one with `uid`: another of the same name is another attempt. The API server may be away in between.
pub async fn follow(
    cluster: &Cluster,
    migration: &VirtualMachineMigration,
    timeout: Option<Duration>,
    report: &mut Report,
) -> Result<End, CliError> {
    let name = migration.name_any();
    let uid = migration.uid();
    let start = Instant::now();
    let deadline = start + timeout.unwrap_or(FOR_EVER).min(FOR_EVER);
    let mut unseen = Some(start + UNSEEN_HINT);
    let mut doubt: Option<(Instant, VirtualMachineMigration)> = None;

    let api = cluster.api::<VirtualMachineMigration>();
    let mut changes = pin!(watcher::watch_object(api, &name).default_backoff());
    let mut interrupt = pin!(tokio::signal::ctrl_c());
    loop {
        let doubt_over = doubt.as_ref().map_or(deadline, |(at, _)| *at);
        tokio::select! {
            change = changes.next() => match change {
                Some(Ok(Some(now))) if now.uid() == uid => {
                    report.show(&now)?;
                    let outcome = outcome(now.status.as_ref());
                    if outcome != Outcome::Unseen {
                        unseen = None;
                    }
                    if outcome.ended() {
                        return Ok(End::Settled(Box::new(now)));
                    }
                    doubt = match outcome {
                        Outcome::NeedsDecision(_) => {
                            // Counted from when it arose, or from now should the controller's clock be ahead.
                            let left = DECISION_GRACE.saturating_sub(doubted_for(&now, Timestamp::now()));
                            let at = doubt.take().map_or(Instant::now() + left, |(at, _)| at);
                            Some((at, now))
                        }
                        Outcome::Unseen | Outcome::Going => None,
                        Outcome::Succeeded | Outcome::Cancelled(_) | Outcome::Failed(_) => None,
                    };
                }
                Some(Ok(Some(_) | None)) => return Err(CliError::Deleted),
                Some(Err(error)) => tolerate(cluster.action::<VirtualMachineMigration>("watch", Some(&name)), error, report)?,
                // The watcher's stream has no end.
                None => return Err(CliError::Deleted),
            },
            () = sleep_until(doubt_over), if doubt.is_some() => {
                if let Some((_, now)) = doubt.take() {
                    return Ok(End::Settled(Box::new(now)));
                }
            }
            () = sleep_until(unseen.unwrap_or(deadline)), if unseen.is_some() => {
                unseen = None;
                report.note("Not taken up yet: check that godwit-controller runs. Still waiting")?;
            }
            () = sleep_until(deadline), if timeout.is_some() => return Ok(End::TimedOut),
            pressed = &mut interrupt => {
                pressed.map_err(CliError::Runtime)?;
                return Ok(End::Interrupted);
            }
        }
    }
}

/// How long the migration has needed a decision.
fn doubted_for(migration: &VirtualMachineMigration, now: Timestamp) -> Duration {
    let conditions = migration
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    find_condition(conditions, "NeedsDecision")
        .and_then(|c| c.last_transition_time.parse::<Timestamp>().ok())
        .and_then(|since| Duration::try_from(now.duration_since(since)).ok())
        .unwrap_or_default()
}

/// Goes on after what may pass, and gives up on what will not.
fn tolerate(action: Action, error: watcher::Error, report: &mut Report) -> Result<(), CliError> {
    let cause = match error {
        watcher::Error::InitialListFailed(e)
        | watcher::Error::WatchStartFailed(e)
        | watcher::Error::WatchFailed(e) => e,
        watcher::Error::WatchError(status) => kube::Error::Api(status),
        // The watcher starts over by itself.
        watcher::Error::NoResourceVersion => return Ok(()),
    };
    if is_transient(&cause) {
        return report.note(&format!("Still waiting. {}", action.failed(cause)));
    }
    Err(action.failed(cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubt_is_as_old_as_its_condition() {
        let migration: VirtualMachineMigration = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "m"},
            "spec": {"virtualMachine": "v", "destination": {"host": "h"}, "controlFlow": "ManagedDirect",
                "security": {"require": "None"}},
            "status": {"conditions": [{"type": "NeedsDecision", "status": "True", "reason": "DecisionNeeded",
                "message": "", "lastTransitionTime": "2026-11-22T19:00:00Z", "observedGeneration": 1}]}
        }))
        .unwrap();
        let at = |t: &str| doubted_for(&migration, t.parse().unwrap());
        assert_eq!(at("2026-11-22T19:00:12Z"), Duration::from_secs(12));
        // The controller's clock is ahead of ours: no time has passed.
        assert_eq!(at("2026-11-22T18:59:00Z"), Duration::ZERO);
    }
}
