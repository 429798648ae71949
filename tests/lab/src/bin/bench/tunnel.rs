//! The relay by itself: generator → relay → TLS over loopback → relay → sink, against the same without TLS and
//! against a relay in Go.

pub mod builds;
mod load;
mod pair;
pub mod plain;
mod processes;

use std::path::Path;

use anyhow::Context as _;

use crate::rows::{Bound, Row, median, ratios};
use load::Flow;
use pair::{Kind, Pair};

/// How much is measured.
#[derive(Clone, Copy)]
pub struct Extent {
    /// Rounds that count, after one to warm up.
    pub rounds: usize,
    /// MiB carried in each measurement.
    pub mebibytes: usize,
}

/// One measurement's figures.
struct Figures {
    mebibytes_per_second: f64,
    cpu_seconds_per_gibibyte: f64,
}

/// What the rounds gave for one number of channels.
#[derive(Default)]
struct Samples {
    speed: [Vec<f64>; 3],
    cpu: [Vec<f64>; 3],
}

const CHANNELS: [usize; 3] = [1, 4, 8];

const GIBIBYTE: f64 = 1024.0;

/// Ours, the bound, and what others use.
const KINDS: [Kind; 3] = [Kind::Relay, Kind::Plain, Kind::Go];

/// Measures all of it.
///
/// # Errors
/// When a part cannot be run.
pub fn measure(extent: Extent) -> anyhow::Result<Vec<Row>> {
    in_directory(|directory| measure_in(extent, directory))
}

fn in_directory(measure: impl FnOnce(&Path) -> anyhow::Result<Vec<Row>>) -> anyhow::Result<Vec<Row>> {
    let directory = std::env::temp_dir().join(format!("godwit-bench-{}", std::process::id()));
    std::fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let rows = measure(&directory);
    std::fs::remove_dir_all(&directory).with_context(|| directory.display().to_string())?;
    rows
}

fn measure_in(extent: Extent, directory: &Path) -> anyhow::Result<Vec<Row>> {
    let files = pair::Files::write(directory)?;
    let mut pairs = KINDS
        .iter()
        .map(|kind| Pair::start(*kind, directory, &files))
        .collect::<anyhow::Result<Vec<Pair>>>()?;
    let mut rows = vec![];
    let empty = memory(&pairs)?;
    for channels in CHANNELS {
        let mut samples = Samples::default();
        for round in 0..=extent.rounds {
            // Who comes first changes with each round.
            for step in 0..KINDS.len() {
                let at = (round + step) % KINDS.len();
                let pair = pairs.get_mut(at).context("there is a pair of each kind")?;
                let figures = carry(pair, channels, extent.mebibytes)?;
                if round > 0 {
                    samples.take(at, &figures);
                }
            }
        }
        rows.extend(samples.rows(channels)?);
    }
    for (at, kind) in KINDS.iter().enumerate() {
        let pair = pairs.get_mut(at).context("there is a pair of each kind")?;
        let latency = load::return_path(&pair.channels(1)?, extent.rounds)?;
        rows.extend(latency_rows(*kind, &latency)?);
    }
    rows.push(memory_row(&mut pairs, empty, extent)?);
    Ok(rows)
}

/// Carries so much through so many channels.
fn carry(pair: &mut Pair, channels: usize, mebibytes: usize) -> anyhow::Result<Figures> {
    let before = pair.cpu_seconds()?;
    let ends = pair.channels(channels)?;
    let took = load::forward(ends, mebibytes)?;
    let cpu = pair.cpu_seconds()? - before;
    let mebibytes = f64::from(u32::try_from(mebibytes)?);
    Ok(Figures {
        mebibytes_per_second: mebibytes / took.as_secs_f64(),
        cpu_seconds_per_gibibyte: cpu / (mebibytes / GIBIBYTE),
    })
}

impl Samples {
    fn take(&mut self, at: usize, figures: &Figures) {
        if let Some(speed) = self.speed.get_mut(at) {
            speed.push(figures.mebibytes_per_second);
        }
        if let Some(cpu) = self.cpu.get_mut(at) {
            cpu.push(figures.cpu_seconds_per_gibibyte);
        }
    }

    fn rows(&self, channels: usize) -> anyhow::Result<Vec<Row>> {
        let [relay, plain, go] = &self.speed;
        let [relay_cpu, plain_cpu, go_cpu] = &self.cpu;
        let at_least = |bound| Some(Bound::AtLeast(bound));
        let at_most = |bound| Some(Bound::AtMost(bound));
        // The bounds hold for one channel; the speed against Go for four, too.
        let [one, four, eight] = CHANNELS.map(|number| number == channels);
        let pick = |names: [&'static str; 3]| match (one, four, eight) {
            (true, _, _) => names[0],
            (_, true, _) => names[1],
            (_, _, _) => names[2],
        };
        let only_one = |bound: Option<Bound>| bound.filter(|_| one);
        let speed_bound = at_least(1.8).filter(|_| one || four);
        let row = |names, unit, samples: &[f64], must| Row::of(pick(names), unit, samples, must);
        Ok(vec![
            row(
                [
                    "relay-vs-go-throughput",
                    "relay-vs-go-throughput-4",
                    "relay-vs-go-throughput-8",
                ],
                "×",
                &ratios(relay, go),
                speed_bound,
            )?,
            row(
                ["relay-vs-go-cpu", "relay-vs-go-cpu-4", "relay-vs-go-cpu-8"],
                "×",
                &ratios(relay_cpu, go_cpu),
                only_one(at_most(0.5)),
            )?,
            row(
                ["relay-vs-plain", "relay-vs-plain-4", "relay-vs-plain-8"],
                "×",
                &ratios(relay, plain),
                only_one(at_least(0.8)),
            )?,
            row(
                [
                    "relay-vs-plain-cpu",
                    "relay-vs-plain-cpu-4",
                    "relay-vs-plain-cpu-8",
                ],
                "×",
                &ratios(relay_cpu, plain_cpu),
                only_one(at_most(1.5)),
            )?,
            row(
                ["relay-throughput", "relay-throughput-4", "relay-throughput-8"],
                "MiB/s",
                relay,
                None,
            )?,
            row(
                ["relay-cpu", "relay-cpu-4", "relay-cpu-8"],
                "s/GiB",
                relay_cpu,
                None,
            )?,
        ])
    }
}

/// In milliseconds: the median and the 99th percentile of each round.
fn latency_rows(kind: Kind, rounds: &[Vec<f64>]) -> anyhow::Result<Vec<Row>> {
    let medians: Vec<f64> = rounds.iter().filter_map(|round| median(round)).collect();
    let tails: Vec<f64> = rounds
        .iter()
        .filter_map(|round| load::percentile_99(round))
        .collect();
    Ok(match kind {
        Kind::Relay => vec![
            Row::of("return-path-latency", "ms", &medians, Some(Bound::AtMost(0.3)))?,
            Row::of("return-path-latency-p99", "ms", &tails, Some(Bound::AtMost(3.0)))?,
        ],
        Kind::Go => vec![
            Row::of("return-path-latency-go", "ms", &medians, None)?,
            Row::of("return-path-latency-go-p99", "ms", &tails, None)?,
        ],
        Kind::Plain => vec![
            Row::of("return-path-latency-plain", "ms", &medians, None)?,
            Row::of("return-path-latency-plain-p99", "ms", &tails, None)?,
        ],
    })
}

/// Our relays' own memory, in MiB, the larger of the two.
fn memory(pairs: &[Pair]) -> anyhow::Result<f64> {
    let ours = pairs.first().context("ours is the first")?;
    ours.memory()
}

/// With as many channels as there may be in a measurement, all of them busy in both directions.
fn memory_row(pairs: &mut [Pair], empty: f64, extent: Extent) -> anyhow::Result<Row> {
    let ours = pairs.first_mut().context("ours is the first")?;
    let samples = (0..extent.rounds).map(|_| memory_per_channel(ours, empty, extent));
    let samples = samples.collect::<anyhow::Result<Vec<f64>>>()?;
    Row::of("memory-per-channel", "MiB", &samples, Some(Bound::AtMost(1.5)))
}

fn memory_per_channel(ours: &mut Pair, empty: f64, extent: Extent) -> anyhow::Result<f64> {
    let ends = ours.channels(8)?;
    let flow = Flow::both_ways(&ends)?;
    flow.carried(extent.mebibytes)?;
    let each = (ours.memory()? - empty) / 8.0;
    flow.stop();
    Ok(each)
}
