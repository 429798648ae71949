//! Builds of our relay against each other: what a change to it costs or brings.

use std::path::{Path, PathBuf};

use super::pair::{Files, Pair};
use super::{Extent, carry, load, memory_per_channel};
use crate::rows::{Row, median, ratios};

/// What the rounds gave for one build.
#[derive(Default)]
struct Samples {
    speed: Vec<f64>,
    cpu: Vec<f64>,
    latency: Vec<f64>,
    latency_tail: Vec<f64>,
    memory: Vec<f64>,
}

/// Measures the programs in turns, with so many channels; each is compared with the first.
///
/// # Errors
/// When one cannot be run.
pub fn compare(programs: &[PathBuf], channels: usize, extent: Extent) -> anyhow::Result<Vec<Row>> {
    super::in_directory(|directory| compare_in(programs, channels, extent, directory))
}

fn compare_in(
    programs: &[PathBuf],
    channels: usize,
    extent: Extent,
    directory: &Path,
) -> anyhow::Result<Vec<Row>> {
    let files = Files::write(directory)?;
    let mut builds = vec![];
    for (at, program) in programs.iter().enumerate() {
        let pair = Pair::of_build(program, &directory.join(at.to_string()), &files)?;
        builds.push((pair, Samples::default()));
    }
    for round in 0..=extent.rounds {
        // Who comes first changes with each round.
        builds.rotate_left(1);
        for (pair, samples) in &mut builds {
            let before = pair.memory()?;
            let figures = carry(pair, channels, extent.mebibytes)?;
            let words = load::return_path(&pair.channels(1)?, 1)?.concat();
            let memory = memory_per_channel(pair, before, extent)?;
            if round > 0 {
                samples.speed.push(figures.mebibytes_per_second);
                samples.cpu.push(figures.cpu_seconds_per_gibibyte);
                samples.latency.extend(median(&words));
                samples.latency_tail.extend(load::percentile_99(&words));
                samples.memory.push(memory);
            }
        }
    }
    // In the order in which they were given.
    let turned = (extent.rounds + 1) % builds.len().max(1);
    builds.rotate_right(turned);
    let mut rows = vec![];
    let first = builds.first().map(|(_, samples)| samples);
    for (at, (_, samples)) in builds.iter().enumerate() {
        let number = at + 1;
        let mut row = |what: &str, unit, samples: &[f64]| -> anyhow::Result<()> {
            rows.push(Row::of(format!("build-{number}-{what}"), unit, samples, None)?);
            Ok(())
        };
        row("throughput", "MiB/s", &samples.speed)?;
        row("cpu", "s/GiB", &samples.cpu)?;
        if let Some(first) = first.filter(|_| at > 0) {
            row("vs-1-throughput", "×", &ratios(&samples.speed, &first.speed))?;
            row("vs-1-cpu", "×", &ratios(&samples.cpu, &first.cpu))?;
        }
        row("return-path-latency", "ms", &samples.latency)?;
        row("return-path-latency-p99", "ms", &samples.latency_tail)?;
        row("memory-per-channel", "MiB", &samples.memory)?;
    }
    Ok(rows)
}
