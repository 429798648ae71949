//! How one migration stands, at length.

use godwit_crds::VirtualMachineMigration;
use godwit_crds::migration::{ChannelSecurity, Downtime, PhaseTimes};
use jiff::Timestamp;
use kube::ResourceExt as _;

use super::progress;
use super::table::table;
use crate::outcome::{Cause, Outcome, cancelled_too_late, outcome};
use crate::text::{MESSAGE, NAME, WORD, clean};
use crate::units;

/// The whole view. `now` only tells how long the current phase has lasted.
pub fn migration(migration: &VirtualMachineMigration, now: Timestamp) -> String {
    let status = migration.status.clone().unwrap_or_default();
    let outcome = outcome(migration.status.as_ref());
    let name = |text: &str| clean(text, NAME);
    let mut out = String::new();
    let mut line = |label: &str, text: &str| out.push_str(&format!("{label:<12} {text}\n"));

    let namespace = migration.namespace().unwrap_or_default();
    line(
        "Migration",
        &format!("{}/{}", name(&namespace), name(&migration.name_any())),
    );
    line("Guest", &name(&migration.spec.virtual_machine));
    line(
        "Source",
        &status.source.as_deref().map_or_else(|| "-".into(), name),
    );
    line("Destination", &name(&migration.spec.destination.host));
    line("Phase", &phase(migration, &outcome));
    if let Some(channel) = status.channel {
        line("Channel", channel_text(channel));
    }
    if status.progress.is_some() {
        if outcome.ended() {
            line("Sent", &progress::summary(migration));
        } else {
            line(
                "Progress",
                &format!(
                    "{}%, {}",
                    progress::percent(migration),
                    progress::figures(migration)
                ),
            );
        }
    }
    if outcome.ended()
        && let Some(micros) = whole(&status.timeline)
    {
        line("Took", &units::span(micros));
    }
    if let Some(downtime) = &status.downtime {
        line("Downtime", &downtime_text(downtime));
    }
    if let Some(epoch) = status.epoch {
        line("Epoch", &epoch_text(epoch, &outcome));
    }
    if let Some((label, text)) = verdict(migration, &outcome) {
        line(label, &text);
    }
    if !status.timeline.is_empty() {
        out.push('\n');
        out.push_str(&timeline(&status.timeline, outcome.ended(), now));
    }
    out
}

fn phase(migration: &VirtualMachineMigration, outcome: &Outcome) -> String {
    let stage = progress::stage(migration);
    match outcome {
        Outcome::Unseen if migration.spec.cancel => {
            format!("{stage}, cancelling: if this lasts, check that godwit-controller runs")
        }
        Outcome::Unseen => format!("{stage}: if this lasts, check that godwit-controller runs"),
        Outcome::NeedsDecision(_) => format!("{stage}, waits for a decision"),
        Outcome::Going if migration.spec.cancel => format!("{stage}, cancelling"),
        Outcome::Going | Outcome::Succeeded | Outcome::Cancelled(_) | Outcome::Failed(_) => stage,
    }
}

fn channel_text(channel: ChannelSecurity) -> &'static str {
    match channel {
        ChannelSecurity::PlainText => "plain text: guest memory is not encrypted on its way",
        ChannelSecurity::Encrypted => "encrypted, and both hosts have proved who they are",
    }
}

fn downtime_text(downtime: &Downtime) -> String {
    let mut text = format!(
        "{} from stop to resume",
        units::span(downtime.stop_to_resume_micros)
    );
    if downtime.clock_uncertainty_micros > 0 {
        text.push_str(&format!(" (±{})", units::span(downtime.clock_uncertainty_micros)));
    }
    if let Some(millis) = downtime.hypervisor_millis {
        text.push_str(&format!("; the hypervisor counts {millis} ms"));
    }
    text
}

fn epoch_text(epoch: i64, outcome: &Outcome) -> String {
    match outcome {
        Outcome::Succeeded => format!("{} (was {epoch})", epoch.saturating_add(1)),
        Outcome::Unseen
        | Outcome::Going
        | Outcome::NeedsDecision(_)
        | Outcome::Cancelled(_)
        | Outcome::Failed(_) => epoch.to_string(),
    }
}

/// What came of it, and why. The message says what to do.
fn verdict(migration: &VirtualMachineMigration, outcome: &Outcome) -> Option<(&'static str, String)> {
    let status = migration.status.as_ref();
    match outcome {
        Outcome::Unseen | Outcome::Going => {
            cancelled_too_late(status).map(|late| ("Too late", clean(&late.message, MESSAGE)))
        }
        Outcome::NeedsDecision(cause) => Some(("Decision", cause_text(cause))),
        Outcome::Succeeded => None,
        Outcome::Cancelled(cause) => Some(("Cancelled", clean(&cause.message, MESSAGE))),
        Outcome::Failed(cause) => Some(match status.and_then(|s| s.failure.as_ref()) {
            Some(failure) => (
                "Failed",
                format!(
                    "{} in {:?}: {}",
                    clean(&failure.reason, WORD),
                    failure.phase,
                    clean(&failure.message, MESSAGE)
                ),
            ),
            None => ("Failed", cause_text(cause)),
        }),
    }
}

/// `Reason: message`.
fn cause_text(cause: &Cause) -> String {
    format!(
        "{}: {}",
        clean(&cause.reason, WORD),
        clean(&cause.message, MESSAGE)
    )
}

/// From the beginning of the first phase to the end of the last, in microseconds.
fn whole(phases: &[PhaseTimes]) -> Option<i64> {
    let began = phases
        .iter()
        .filter_map(|p| p.started_at.parse::<Timestamp>().ok())
        .min()?;
    let ended = phases
        .iter()
        .filter_map(|p| p.ended_at.as_deref()?.parse::<Timestamp>().ok())
        .max()?;
    Some(units::micros_between(began, ended))
}

fn timeline(phases: &[PhaseTimes], ended: bool, now: Timestamp) -> String {
    let rows: Vec<Vec<String>> = phases.iter().map(|p| phase_row(p, ended, now)).collect();
    table(&["PHASE", "BEGAN (UTC)", "TOOK"], &rows)
}

fn phase_row(times: &PhaseTimes, ended: bool, now: Timestamp) -> Vec<String> {
    let began: Option<Timestamp> = times.started_at.parse().ok();
    let end: Option<Timestamp> = times.ended_at.as_deref().and_then(|t| t.parse().ok());
    let took = match (began, end) {
        (Some(began), Some(end)) => units::span(units::micros_between(began, end)),
        (Some(began), None) if !ended => {
            format!("{} so far", units::span(units::micros_between(began, now)))
        }
        (Some(_), None) | (None, _) => String::new(),
    };
    vec![
        format!("{:?}", times.phase),
        began.map(units::time_of_day).unwrap_or_default(),
        took,
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::view::progress::{line, percent};

    fn object(status: serde_json::Value) -> VirtualMachineMigration {
        serde_json::from_value(json!({
            "apiVersion": "godwit.dev/v1alpha1",
            "kind": "VirtualMachineMigration",
            "metadata": {"name": "web1-x7k2p", "namespace": "default"},
            "spec": {
                "virtualMachine": "web1",
                "destination": {"host": "node-b"},
                "controlFlow": "ManagedDirect",
                "security": {"require": "None"}
            },
            "status": status
        }))
        .unwrap()
    }

    fn condition(type_: &str, status: &str, reason: &str, message: &str) -> serde_json::Value {
        json!({"type": type_, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": "2026-11-22T19:00:00Z", "observedGeneration": 1})
    }

    fn show(object: &VirtualMachineMigration) -> String {
        migration(object, "2026-11-22T19:03:10Z".parse().unwrap())
    }

    fn transfer() -> serde_json::Value {
        json!({"percent": "42 %", "totalBytes": 4_294_967_296i64, "transferredBytes": 1_395_864_371i64,
            "remainingBytes": 2_254_857_830i64, "dirtyBytesPerSecond": 12_582_912, "bytesPerSecond": 325_058_560,
            "iteration": 3, "estimatedSeconds": 7, "transferred": "1.3 GiB", "speed": "310 MiB/s"})
    }

    #[test]
    fn unseen() {
        assert_eq!(
            show(&object(serde_json::Value::Null)),
            "\
Migration    default/web1-x7k2p
Guest        web1
Source       -
Destination  node-b
Phase        Not seen yet: if this lasts, check that godwit-controller runs
"
        );
        assert_eq!(line(&object(serde_json::Value::Null)), "Not seen yet");
    }

    #[test]
    fn under_way() {
        let migration = object(json!({
            "phase": "Perform", "source": "node-a", "destination": "node-b", "epoch": 4, "channel": "PlainText",
            "conditions": [condition("Accepted", "True", "Accepted", "")],
            "progress": transfer(),
            "timeline": [
                {"phase": "Begin", "startedAt": "2026-11-22T19:03:01.123456Z", "endedAt": "2026-11-22T19:03:01.135456Z"},
                {"phase": "Prepare", "startedAt": "2026-11-22T19:03:01.135456Z", "endedAt": "2026-11-22T19:03:01.275456Z"},
                {"phase": "Perform", "startedAt": "2026-11-22T19:03:01.275456Z"}
            ]
        }));
        assert_eq!(
            show(&migration),
            "\
Migration    default/web1-x7k2p
Guest        web1
Source       node-a
Destination  node-b
Phase        Perform
Channel      plain text: guest memory is not encrypted on its way
Progress     42%, 310 MiB/s, about 7 s to go, 1.3 GiB sent, 2.1 GiB of 4.0 GiB left, guest dirties 12 MiB/s, pass 3
Epoch        4

PHASE     BEGAN (UTC)    TOOK
Begin     19:03:01.123   12.0 ms
Prepare   19:03:01.135   140.0 ms
Perform   19:03:01.275   8.72 s so far
"
        );
        assert_eq!(
            line(&migration),
            "Perform     42%  310 MiB/s, about 7 s to go, 1.3 GiB sent, 2.1 GiB of 4.0 GiB left, guest dirties 12 MiB/s, pass 3"
        );
    }

    #[test]
    fn succeeded() {
        let migration = object(json!({
            "phase": "Succeeded", "source": "node-a", "destination": "node-b", "epoch": 4,
            "conditions": [condition("Succeeded", "True", "Succeeded", "The guest runs on node-b.")],
            "downtime": {"stopToResume": "48.2ms", "stopToResumeMicros": 48_210, "clockOffsetMicros": -1200,
                "clockUncertaintyMicros": 310, "hypervisorMillis": 12, "sealed": true},
            "progress": transfer(),
            "timeline": [
                {"phase": "Begin", "startedAt": "2026-11-22T19:03:01.123456Z", "endedAt": "2026-11-22T19:03:01.135456Z"},
                {"phase": "Confirm", "startedAt": "2026-11-22T19:03:04.5Z", "endedAt": "2026-11-22T19:03:05.123456Z"}
            ]
        }));
        assert_eq!(
            show(&migration),
            "\
Migration    default/web1-x7k2p
Guest        web1
Source       node-a
Destination  node-b
Phase        Succeeded
Sent         1.3 GiB for 4.0 GiB of guest memory, 3 passes, 310 MiB/s at last
Took         4.00 s
Downtime     48.2 ms from stop to resume (±310 µs); the hypervisor counts 12 ms
Epoch        5 (was 4)

PHASE     BEGAN (UTC)    TOOK
Begin     19:03:01.123   12.0 ms
Confirm   19:03:04.500   623.5 ms
"
        );
    }

    #[test]
    fn failed_with_a_hostile_message() {
        let migration = object(json!({
            "phase": "Failed", "source": "node-a", "destination": "node-b",
            "conditions": [condition("Failed", "True", "StreamFailed", "not this one")],
            "failure": {"reason": "StreamFailed", "phase": "Perform",
                "message": "The connection broke: \u{1b}]0;pwned\u{7}\nPhase        Succeeded. Check the network; try again."}
        }));
        assert_eq!(
            show(&migration),
            "\
Migration    default/web1-x7k2p
Guest        web1
Source       node-a
Destination  node-b
Phase        Failed
Failed       StreamFailed in Perform: The connection broke: \u{fffd}]0;pwned\u{fffd} Phase        Succeeded. Check the network; try again.
"
        );
    }

    #[test]
    fn waiting_for_a_decision() {
        let migration = object(json!({
            "phase": "Finish", "source": "node-a", "destination": "node-b", "epoch": 4,
            "conditions": [condition("NeedsDecision", "True", "DecisionNeeded", "node-b does not answer. Bring it back.")]
        }));
        assert_eq!(
            show(&migration),
            "\
Migration    default/web1-x7k2p
Guest        web1
Source       node-a
Destination  node-b
Phase        Finish, waits for a decision
Epoch        4
Decision     DecisionNeeded: node-b does not answer. Bring it back.
"
        );
        assert_eq!(
            line(&migration),
            "Finish     needs a decision: DecisionNeeded: node-b does not answer. Bring it back."
        );
    }

    #[test]
    fn cancelling_and_cancelled() {
        let mut migration = object(json!({
            "phase": "Perform", "source": "node-a",
            "conditions": [condition("Accepted", "True", "Accepted", "")]
        }));
        migration.spec.cancel = true;
        assert!(show(&migration).contains("Phase        Perform, cancelling\n"));
        assert_eq!(line(&migration), "Perform    cancelling");
        let mut ended = object(json!({
            "phase": "Cancelled", "source": "node-a",
            "conditions": [
                condition("Failed", "True", "Cancelled", ""),
                condition("Cancelled", "True", "Cancelled", "The guest goes on at node-a.")
            ]
        }));
        ended.spec.cancel = true;
        assert!(
            show(&ended).ends_with("Phase        Cancelled\nCancelled    The guest goes on at node-a.\n")
        );
        assert_eq!(line(&ended), "Cancelled");
    }

    #[test]
    fn too_late_to_cancel() {
        let migration = object(json!({
            "phase": "Finish", "source": "node-a",
            "conditions": [
                condition("Accepted", "True", "Accepted", ""),
                condition("Cancelled", "False", "CancelTooLate", "The handover has begun.")
            ]
        }));
        assert!(show(&migration).ends_with("Too late     The handover has begun.\n"));
        assert_eq!(
            line(&migration),
            "Finish     too late to cancel: The handover has begun."
        );
    }

    #[test]
    fn percents() {
        for (text, number) in [
            ("42 %", 42),
            ("42%", 42),
            ("7", 7),
            ("100 %", 100),
            ("900 %", 100),
            ("", 0),
            ("x", 0),
            ("-3", 0),
        ] {
            let migration = object(
                json!({"progress": {"percent": text, "totalBytes": 0, "transferredBytes": 0,
                "remainingBytes": 0, "dirtyBytesPerSecond": 0, "bytesPerSecond": 0, "iteration": 0,
                "transferred": "", "speed": ""}}),
            );
            assert_eq!(percent(&migration), number, "{text:?}");
        }
    }
}
