//! The table at the end, and whether what it says is what was promised.

use std::fmt::Write as _;

use anyhow::{Context as _, bail};
use godwit_lab::observer::Verdict;
use jiff::Timestamp;

use crate::follow::Moved;

/// One move of the guest, with what godwit said of it.
pub struct Leg {
    /// The source.
    pub from: String,
    /// The destination.
    pub to: String,
    /// The migration.
    pub moved: Moved,
}

/// The table of these moves and of what the guest itself felt, or what is not as promised.
///
/// # Errors
/// When the counter did not go on, memory is damaged or was not checked, or the guest has moved otherwise than asked.
pub fn table(legs: &[Leg], verdict: &Verdict) -> anyhow::Result<String> {
    if !verdict.counter_continuous() {
        bail!(
            "the guest's counter was not continuous: {} went back, {} doubled, {} skipped, {} boots, {} broken lines",
            verdict.went_back.len(),
            verdict.doubled.len(),
            verdict.skipped.len(),
            verdict.boots,
            verdict.garbled.len()
        );
    }
    if !verdict.memory_intact() {
        bail!(
            "the guest's memory is not known to be intact: {:?}",
            verdict.memory
        );
    }
    let asked: Vec<_> = legs
        .iter()
        .map(|leg| (leg.from.as_str(), leg.to.as_str()))
        .collect();
    let felt: Vec<_> = verdict
        .moves
        .iter()
        .map(|felt| (felt.from.as_str(), felt.to.as_str()))
        .collect();
    if asked != felt {
        bail!("the guest was to move {asked:?}, and its lines came from {felt:?}");
    }
    let mut rows: Vec<(&str, Vec<String>)> = [
        "guest memory",
        "bytes sent",
        "time, from kubectl apply to Succeeded",
        "of it, transfer (Perform)",
        "speed of the transfer",
        "downtime by QEMU",
        "STOP to RESUME, as godwit measured",
        "silence, as the guest's user felt it",
    ]
    .map(|title| (title, Vec::new()))
    .into();
    for (leg, felt) in legs.iter().zip(&verdict.moves) {
        let cells = cells(leg, felt.silence_ns)
            .with_context(|| format!("the status of the migration from {} to {}", leg.from, leg.to))?;
        for ((_, row), cell) in rows.iter_mut().zip(cells) {
            row.push(cell);
        }
    }
    let mut text = String::new();
    let header = legs
        .iter()
        .map(|leg| format!("{} to {}", leg.from, leg.to))
        .collect();
    write_row(&mut text, "", &header);
    for (title, cells) in &rows {
        write_row(&mut text, title, cells);
    }
    let first = verdict.first_tick.unwrap_or(0);
    let last = verdict.last_tick.unwrap_or(0);
    let _ = write!(
        text,
        "\n  memory intact: {} pages, checked after the last move\n  \
         counter continuous: each of the ticks {first} to {last} once, {:.1} ms apart as a rule, the longest silence {:.1} ms",
        verdict.memory.pages,
        millis(verdict.median_gap_ns),
        millis(verdict.longest_silence.map_or(0, |longest| longest.length_ns)),
    );
    Ok(text)
}

fn cells(leg: &Leg, silence_ns: u64) -> anyhow::Result<[String; 8]> {
    let status = &leg.moved.status;
    let progress = status.progress.as_ref().context("there is no progress")?;
    let downtime = status.downtime.as_ref().context("there is no downtime")?;
    let hypervisor = downtime.hypervisor_millis.context("QEMU's downtime is missing")?;
    let perform = status
        .timeline
        .iter()
        .find(|times| times.phase == godwit_crds::migration::MigrationPhase::Perform)
        .context("there is no phase Perform")?;
    let began: Timestamp = perform.started_at.parse()?;
    let ended: Timestamp = perform
        .ended_at
        .as_deref()
        .context("Perform has not ended")?
        .parse()?;
    let transfer = ended.duration_since(began).as_secs_f64();
    // Byte counts far below 2^52.
    let sent = progress.transferred_bytes as f64;
    if transfer <= 0.0 || sent <= 0.0 {
        bail!("nothing was sent, or in no time: {progress:?}");
    }
    Ok([
        mebibytes(progress.total_bytes as f64),
        mebibytes(sent),
        format!("{:.2} s", leg.moved.took.as_secs_f64()),
        format!("{transfer:.2} s"),
        format!("{}/s", mebibytes(sent / transfer)),
        format!("{hypervisor} ms"),
        format!("{:.1} ms", downtime.stop_to_resume_micros as f64 / 1e3),
        format!("{:.1} ms", millis(silence_ns)),
    ])
}

fn write_row(text: &mut String, title: &str, cells: &Vec<String>) {
    // Writing into a `String` cannot fail.
    let _ = write!(text, "  {title:<38}");
    for cell in cells {
        let _ = write!(text, "{cell:>14}");
    }
    text.push('\n');
}

fn mebibytes(bytes: f64) -> String {
    format!("{:.1} MiB", bytes / f64::from(1 << 20))
}

fn millis(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::time::Duration;

    use godwit_guest::line::{Line, MemoryState};
    use godwit_lab::observer::{Seen, judge};

    use super::*;

    fn seen(tick: u64, line: Line) -> Seen {
        Seen {
            at_ns: tick * 5_000_000,
            host: "h1".to_owned(),
            cut: false,
            line,
        }
    }

    fn tick(tick: u64) -> Seen {
        let line = Line::Tick {
            tick,
            wall_us: tick,
            mono_us: tick,
            memory: MemoryState::Intact,
        };
        seen(tick, line)
    }

    fn check(since_tick: u64, bad: u64) -> Seen {
        let line = Line::Check {
            since_tick,
            pages: 16,
            bad,
            first_bad: 3,
            mono_us: 1,
        };
        seen(since_tick, line)
    }

    fn refused(lines: &[Seen]) -> String {
        let verdict = judge(lines, &[], Duration::from_millis(5));
        table(&[], &verdict).unwrap_err().to_string()
    }

    #[test]
    fn what_is_not_so_is_not_shown_as_a_success() {
        assert!(refused(&[]).contains("not continuous"));
        assert!(refused(&[tick(1), tick(3), check(1, 0)]).contains("not continuous"));
        assert!(refused(&[tick(1), tick(2)]).contains("memory is not known"));
        assert!(refused(&[tick(1), tick(2), check(1, 1)]).contains("memory is not known"));
        let moved = [
            tick(1),
            Seen {
                host: "h2".to_owned(),
                ..tick(2)
            },
            check(2, 0),
        ];
        assert!(refused(&moved).contains("its lines came from"));
        let stayed = judge(&[tick(1), tick(2), check(2, 0)], &[], Duration::from_millis(5));
        assert!(table(&[], &stayed).unwrap().contains("memory intact: 16 pages"));
    }
}
