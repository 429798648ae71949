//! Godwit's own share of the time that a guest stands still, what a migration writes to the API server, and how well the
//! budget is kept by guests that change their memory.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use godwit_lab::audit::{self, Write};
use godwit_lab::{Lab, guest::Guest};
use kube::ResourceExt as _;

use crate::downtime::{LIGHT, TICKS_AROUND, millis};
use crate::rows::{Bound, Row};
use crate::setting::{self, Kind, Way};

const PATIENCE: Duration = Duration::from_secs(20);
/// What the agents tell of the steps, where they are asked to (`make bench` asks them).
const STEPS: &str = "godwit_agent::handover";
/// What a guest may be stopped for, unless its migration says otherwise, in milliseconds.
const BUDGET: f64 = 300.0;

/// The moments of one handover, in microseconds of the machine's clock.
type Moments = HashMap<String, Vec<i64>>;

/// One handover's parts, in milliseconds.
struct Parts {
    /// From the gate to `migrate-continue`, and from the later `completed` to the guest's RESUME.
    share: f64,
    /// Of these, both journals' lines.
    journals: f64,
    /// When the guest was stopped and let run, in microseconds.
    blackout: (i64, i64),
}

/// Moves a guest to and fro, and takes each handover apart.
pub async fn measure(lab: &Lab, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let guest = setting::start(
        lab,
        Kind {
            name: "handover",
            ..LIGHT
        },
    )
    .await?;
    let (mut shares, mut journals, mut writes) = (vec![], vec![], vec![]);
    for round in 0..=rounds {
        let to = lab.hosts.get((round + 1) % 2).context("there are two hosts")?;
        let (name, since) = (format!("handover-{round}"), jiff::Timestamp::now());
        let moved = setting::move_to(lab, &guest, &name, to, Way::Plain).await?;
        guest.wait_for_ticks(TICKS_AROUND, PATIENCE)?;
        let stood_still = moved.stop_to_resume()?;
        let uid = migration(lab, &name).await?;
        let parts = take_apart(&moments(lab, &uid)?, stood_still).with_context(|| name.clone())?;
        let written = audit::writes(lab.control_plane.audit(), since)?;
        if round > 0 {
            shares.push(parts.share);
            journals.push(parts.journals);
            writes.push(count(&written, parts.blackout)?);
        }
    }
    setting::remove(lab, &guest).await?;
    let in_all: Vec<f64> = writes.iter().map(|(all, _)| *all).collect();
    let in_blackout: Vec<f64> = writes.iter().map(|(_, dark)| *dark).collect();
    Ok(vec![
        Row::of("handover-share", "ms", &shares, Some(Bound::AtMost(10.0)))?,
        at(99, "handover-share-p99", "ms", &shares, 25.0)?,
        Row::of("handover-share-journals", "ms", &journals, None)?,
        Row::of("api-writes", "writes", &in_all, Some(Bound::AtMost(15.0)))?,
        at(100, "api-writes-in-blackout", "writes", &in_blackout, 0.0)?,
    ])
}

/// How much of its budget each of these guests was stopped for.
pub async fn seals(lab: &Lab, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let mut rows = vec![];
    for (kind, id) in [
        (
            dirties("seal-0", "godwit.fill=64M godwit.dirty=0 godwit.scrub=0"),
            "seal-precision-0",
        ),
        (
            dirties(
                "seal-50",
                "godwit.fill=64M godwit.working_set=64M godwit.dirty=50M godwit.scrub=0",
            ),
            "seal-precision-50",
        ),
        (
            dirties(
                "seal-200",
                "godwit.fill=64M godwit.working_set=64M godwit.dirty=200M godwit.scrub=0",
            ),
            "seal-precision-200",
        ),
    ] {
        let guest = setting::start(lab, kind).await?;
        for round in 0..=rounds {
            let to = lab.hosts.get((round + 1) % 2).context("there are two hosts")?;
            setting::move_to(lab, &guest, &format!("{}-{round}", kind.name), to, Way::Plain).await?;
            guest.wait_for_ticks(TICKS_AROUND, PATIENCE)?;
        }
        let ratios = ratios(&guest)?;
        setting::remove(lab, &guest).await?;
        rows.push(at(90, id, "of the budget", &ratios, 1.2)?);
    }
    Ok(rows)
}

fn dirties(name: &'static str, options: &'static str) -> Kind {
    Kind {
        name,
        memory: "256Mi",
        options,
        ..LIGHT
    }
}

/// What the guest itself felt, of what it may be stopped for.
fn ratios(guest: &Guest) -> anyhow::Result<Vec<f64>> {
    let verdict = guest.observer.verdict();
    ensure!(verdict.counter_continuous(), "{}: {verdict:?}", guest.name);
    Ok(verdict
        .moves
        .iter()
        .skip(1)
        .map(|moved| Duration::from_nanos(moved.silence_ns).as_secs_f64() * 1000.0 / BUDGET)
        .collect())
}

async fn migration(lab: &Lab, name: &str) -> anyhow::Result<String> {
    let migration = godwit_lab::guest::migrations(lab).get(name).await?;
    migration.uid().context("a migration has a UID")
}

/// What both agents have told of a migration.
fn moments(lab: &Lab, migration: &str) -> anyhow::Result<Moments> {
    let mut told = Moments::new();
    for host in &lab.hosts {
        let log = lab.records().join(format!("logs/agent-{}.log", host.name));
        for (moment, at) in read(&log, migration)? {
            told.entry(moment).or_default().push(at);
        }
    }
    ensure!(
        !told.is_empty(),
        "the agents tell no steps: run it by `make bench`, or with GODWIT_LOG=info,{STEPS}=debug"
    );
    Ok(told)
}

fn read(log: &Path, migration: &str) -> anyhow::Result<Vec<(String, i64)>> {
    let text = std::fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
    let steps = text
        .lines()
        .filter(|line| line.contains(STEPS) && line.contains(migration));
    steps
        .map(|line| {
            let field = |name: &str| {
                line.split_whitespace()
                    .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
                    .with_context(|| format!("no {name} in {line}"))
            };
            Ok((field("moment")?.to_owned(), field("at_micros")?.parse()?))
        })
        .collect()
}

fn take_apart(told: &Moments, stood_still: i64) -> anyhow::Result<Parts> {
    let of = |name: &str| told.get(name).map_or(&[][..], Vec::as_slice);
    let first = |name: &str| {
        of(name)
            .iter()
            .min()
            .copied()
            .with_context(|| format!("no {name}: {told:?}"))
    };
    let last = |name: &str| {
        of(name)
            .iter()
            .max()
            .copied()
            .with_context(|| format!("no {name}: {told:?}"))
    };
    let resumed = last("Resumed")?;
    let whole = last("Completed")?.max(last("Loaded")?);
    let share = millis(first("SwitchOver")? - first("Gate")?)? + millis((resumed - whole).max(0))?;
    let (begun, done): (i64, i64) = (of("Journaling").iter().sum(), of("Journaled").iter().sum());
    ensure!(
        of("Journaling").len() == of("Journaled").len(),
        "a line is missing: {told:?}"
    );
    Ok(Parts {
        share,
        journals: millis(done - begun)?,
        blackout: (resumed - stood_still, resumed),
    })
}

/// Writes without events, leases and the user's own; and of these, those that came in while the guest stood still.
fn count(writes: &[Write], (stopped, resumed): (i64, i64)) -> anyhow::Result<(f64, f64)> {
    let own = |write: &&Write| {
        !["events", "leases"].contains(&write.resource.as_str())
            && write.user.starts_with("system:serviceaccount:")
    };
    let all = writes.iter().filter(own).count();
    let dark = writes
        .iter()
        .filter(own)
        .filter(|write| (stopped..=resumed).contains(&write.at.as_microsecond()))
        .count();
    let float = |count: usize| Ok::<_, anyhow::Error>(f64::from(u32::try_from(count)?));
    Ok((float(all)?, float(dark)?))
}

/// The figure below which so many of a hundred rounds are.
fn at(
    percent: usize,
    id: &'static str,
    unit: &'static str,
    samples: &[f64],
    most: f64,
) -> anyhow::Result<Row> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    let value = *sorted
        .get(index)
        .with_context(|| format!("{id} has no samples"))?;
    Ok(Row::about(id, unit, value, samples, Some(Bound::AtMost(most))))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_handover_is_taken_apart() {
        let told: Moments = [
            ("Gate", vec![1_000]),
            ("SwitchOver", vec![3_000]),
            ("Completed", vec![50_000]),
            ("Loaded", vec![52_000]),
            ("Journaling", vec![50_500, 53_000]),
            ("Journaled", vec![51_000, 54_500]),
            ("Resumed", vec![56_000]),
        ]
        .into_iter()
        .map(|(name, at)| (name.to_owned(), at))
        .collect();
        let parts = take_apart(&told, 60_000).unwrap();
        assert!((parts.share - 6.0).abs() < 1e-9, "{}", parts.share);
        assert!((parts.journals - 2.0).abs() < 1e-9, "{}", parts.journals);
        assert_eq!(parts.blackout, (-4_000, 56_000));
        let without = Moments::from([("Gate".to_owned(), vec![1])]);
        assert!(take_apart(&without, 1).is_err());
    }

    #[test]
    fn a_share_of_the_rounds_lies_below() {
        let samples: Vec<f64> = (1..=200).map(f64::from).collect();
        let value = |percent| at(percent, "x", "ms", &samples, 1.0).unwrap().value;
        assert!((value(99) - 198.0).abs() < 1e-9);
        assert!((value(100) - 200.0).abs() < 1e-9);
    }
}
