//! How soon a handover that nobody could decide is decided once its fault is mended.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use godwit_lab::guest::{self, Guest};
use godwit_lab::{Lab, processes};
use rustix::process::Signal;

use crate::downtime::{LIGHT, TICKS_AROUND};
use crate::recovery::{LOOK_EVERY, PATIENCE, ended, order};
use crate::rows::{Bound, Row};
use crate::setting::{self, Kind};

/// How often the moment may be missed at which a guest stands still and nobody has let it run.
const MOST_MISSED: usize = 10;
/// A moment of the handover lasts for a millisecond or two.
const LOOK_AT_JOURNALS_EVERY: Duration = Duration::from_micros(200);

/// Kills the destination's agent when it has the whole guest and has not let it run, and starts it again.
pub async fn measure(lab: &mut Lab, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let kind = Kind {
        name: "decision",
        ..LIGHT
    };
    let guest = setting::start(lab, kind).await?;
    let mut samples = vec![];
    let mut missed = 0;
    // One round to warm up.
    while samples.len() <= rounds {
        let name = format!("decision-{}", samples.len() + missed);
        match decided(lab, &guest, &name).await.with_context(|| name.clone())? {
            Some(took) => samples.push(took.as_secs_f64()),
            None => missed += 1,
        }
        ensure!(missed <= MOST_MISSED, "the moment was missed {missed} times");
        guest.wait_for_ticks(TICKS_AROUND, PATIENCE)?;
        lab.wait_until_ready().await?;
    }
    setting::remove(lab, &guest).await?;
    let counted = samples.get(1..).unwrap_or_default();
    Ok(vec![Row::of(
        "recovery-decision",
        "s",
        counted,
        Some(Bound::AtMost(5.0)),
    )?])
}

/// From the agent's start until a watcher sees that the migration has ended. None where the moment was missed.
async fn decided(lab: &mut Lab, guest: &Guest, name: &str) -> anyhow::Result<Option<Duration>> {
    let machine = guest::machines(lab).get(&guest.name).await?;
    let runs_at = machine.status.and_then(|status| status.host);
    let from = match runs_at.as_deref() {
        Some("h1") => 1,
        Some("h2") => 2,
        elsewhere => bail!("{} runs at {elsewhere:?}", guest.name),
    };
    let to = 3 - from;
    let uid = order(lab, guest, name, to).await?;
    let (source, destination) = (journal(lab, from, &uid)?, journal(lab, to, &uid)?);
    // Without the controller, the source does not learn that all has arrived.
    let controller = lab.controller().context("the controller runs")?.pid();
    let controller = processes::look(i32::try_from(controller)?).context("the controller has ended")?;
    tokio::task::block_in_place(|| wait_for_entry(&source, "Intent"))?;
    ensure!(
        processes::signal(&controller, Signal::STOP),
        "the controller has ended"
    );
    let arrived = arrives(lab, to).await;
    if arrived.is_ok() {
        lab.host(to)?.kill_agent();
    }
    let goes_on = processes::signal(&controller, Signal::CONT);
    arrived?;
    ensure!(goes_on, "the controller has ended");
    let missed = holds(&destination, "ContIssued");
    let begun = Instant::now();
    lab.start_agent(to)?;
    ended(lab, name).await?;
    Ok((!missed).then(|| begun.elapsed()))
}

/// Waits until no stream comes in at a host any more.
async fn arrives(lab: &mut Lab, host: usize) -> anyhow::Result<()> {
    let begun = Instant::now();
    while lab.host(host)?.native_streams()? > 0 {
        ensure!(begun.elapsed() < PATIENCE, "the stream to h{host} does not end");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

fn journal(lab: &mut Lab, host: usize, uid: &str) -> anyhow::Result<PathBuf> {
    let journals = lab.host(host)?.directory.join("state/journals");
    Ok(journals.join(format!("{uid}.journal")))
}

fn wait_for_entry(journal: &Path, entry: &str) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !holds(journal, entry) {
        ensure!(
            begun.elapsed() < PATIENCE,
            "{} holds no {entry}",
            journal.display()
        );
        std::thread::sleep(LOOK_AT_JOURNALS_EVERY);
    }
    Ok(())
}

fn holds(journal: &Path, entry: &str) -> bool {
    let wanted = format!("\"{entry}\"");
    std::fs::read(journal).is_ok_and(|bytes| {
        let mut pieces = bytes.windows(wanted.len());
        pieces.any(|piece| piece == wanted.as_bytes())
    })
}
