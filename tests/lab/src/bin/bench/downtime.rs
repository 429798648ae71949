//! How much longer a guest stands still when godwit moves it than when it is moved by hand.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use godwit_lab::Lab;
use godwit_lab::guest::Guest;

use crate::by_hand::{HandGuest, Protection, Recipe};
use crate::rows::{Bound, Row, median};
use crate::setting::{self, Kind, Way};

/// A guest that changes a little of its memory all the time.
pub const LIGHT: Kind = Kind {
    name: "downtime",
    memory: "256Mi",
    interval: Duration::from_millis(2),
    options: "godwit.fill=16M godwit.dirty=1M godwit.scrub=0",
};

/// Ticks around each move.
pub const TICKS_AROUND: u64 = 100;

const PATIENCE: Duration = Duration::from_secs(20);

const MOST_MILLIS: f64 = 10.0;

/// In milliseconds.
#[derive(Default)]
struct Stops {
    silence: Vec<f64>,
    stop_to_resume: Vec<f64>,
}

/// Moves the same guest by godwit and by hand in turn, with the same time allowed.
pub async fn measure(lab: &Lab, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let guest = setting::start(lab, LIGHT).await?;
    let host = lab.hosts.first().context("the lab has no hosts")?;
    let recipe = Recipe::of(host, &guest, lab.pool())?;
    let mut by_hand = HandGuest::start(lab, LIGHT.name, recipe, LIGHT.interval)?;
    let (mut ours, mut theirs) = (Stops::default(), Stops::default());
    // One round to warm up.
    for round in 0..=rounds {
        let to = lab.hosts.get((round + 1) % 2).context("there are two hosts")?;
        for step in 0..2 {
            if (round + step) % 2 == 0 {
                let moved =
                    setting::move_to(lab, &guest, &format!("downtime-{round}"), to, Way::Plain).await?;
                guest.wait_for_ticks(TICKS_AROUND, PATIENCE)?;
                if round > 0 {
                    ours.stop_to_resume.push(millis(moved.stop_to_resume()?)?);
                }
            } else {
                let moved = tokio::task::block_in_place(|| by_hand.move_on(lab, Protection::None, 1))?;
                by_hand.guest.wait_for_ticks(TICKS_AROUND, PATIENCE)?;
                if round > 0 {
                    theirs.stop_to_resume.push(millis(moved.stop_to_resume)?);
                }
            }
        }
    }
    ours.silence = silences(&guest, rounds)?;
    theirs.silence = silences(&by_hand.guest, rounds)?;
    setting::remove(lab, &guest).await?;
    Ok(vec![
        added("downtime-added", &ours.silence, &theirs.silence, MOST_MILLIS)?,
        added(
            "downtime-added-stop-to-resume",
            &ours.stop_to_resume,
            &theirs.stop_to_resume,
            MOST_MILLIS,
        )?,
        Row::of("silence", "ms", &ours.silence, None)?,
        Row::of("silence-qmp", "ms", &theirs.silence, None)?,
        Row::of("stop-to-resume", "ms", &ours.stop_to_resume, None)?,
        Row::of("stop-to-resume-qmp", "ms", &theirs.stop_to_resume, None)?,
    ])
}

/// The difference of the medians; the range is that of the rounds' differences.
///
/// # Errors
/// When there are no samples.
pub fn added(id: &'static str, ours: &[f64], theirs: &[f64], most: f64) -> anyhow::Result<Row> {
    let differences: Vec<f64> = ours
        .iter()
        .zip(theirs)
        .map(|(ours, theirs)| ours - theirs)
        .collect();
    let (Some(ours), Some(theirs)) = (median(ours), median(theirs)) else {
        bail!("{id} has no samples");
    };
    let must = Some(Bound::AtMost(most));
    Ok(Row::about(id, "ms", ours - theirs, &differences, must))
}

/// How long the guest was silent in each move but the first, in milliseconds.
fn silences(guest: &Guest, rounds: usize) -> anyhow::Result<Vec<f64>> {
    let verdict = guest.observer.verdict();
    ensure!(verdict.counter_continuous(), "{}: {verdict:?}", guest.name);
    ensure!(
        verdict.moves.len() == rounds + 1,
        "{} was seen to move {} times, not {}",
        guest.name,
        verdict.moves.len(),
        rounds + 1
    );
    let moves = verdict.moves.iter().skip(1);
    Ok(moves
        .map(|moved| Duration::from_nanos(moved.silence_ns).as_secs_f64() * 1000.0)
        .collect())
}

/// From microseconds.
///
/// # Errors
/// When it is below zero.
pub fn millis(micros: i64) -> anyhow::Result<f64> {
    let micros = u64::try_from(micros).context("a guest was resumed before it was stopped")?;
    Ok(Duration::from_micros(micros).as_secs_f64() * 1000.0)
}
