//! What was measured, as a table for people and as JSON for programs.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

/// What a figure has to be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Bound {
    /// That or less.
    AtMost(f64),
    /// That or more.
    AtLeast(f64),
}

/// One measured figure.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its name, which does not change.
    pub id: Cow<'static, str>,
    /// The figure: the median of the rounds.
    pub value: f64,
    /// The unit of it, and of `min`, `max` and `must`.
    pub unit: &'static str,
    /// The smallest of the rounds.
    pub min: f64,
    /// The largest of the rounds.
    pub max: f64,
    /// How many there were.
    pub rounds: usize,
    /// What `value` has to be; none where it is shown for comparison only.
    pub must: Option<Bound>,
    /// Whether it is; none where nothing is demanded.
    pub holds: Option<bool>,
}

impl Row {
    /// A figure of which each round gave one sample.
    ///
    /// # Errors
    /// When there are no samples.
    pub fn of(
        id: impl Into<Cow<'static, str>>,
        unit: &'static str,
        samples: &[f64],
        must: Option<Bound>,
    ) -> anyhow::Result<Self> {
        let id = id.into();
        let value = median(samples).with_context(|| format!("{id} has no samples"))?;
        Ok(Self::about(id, unit, value, samples, must))
    }

    /// A figure that was made from the rounds in another way than by their median; `samples` give the range.
    pub fn about(
        id: impl Into<Cow<'static, str>>,
        unit: &'static str,
        value: f64,
        samples: &[f64],
        must: Option<Bound>,
    ) -> Self {
        let min = samples.iter().copied().fold(f64::INFINITY, f64::min);
        let max = samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Self {
            id: id.into(),
            value,
            unit,
            min,
            max,
            rounds: samples.len(),
            must,
            holds: must.map(|must| match must {
                Bound::AtMost(most) => value <= most,
                Bound::AtLeast(least) => value >= least,
            }),
        }
    }
}

/// What each round's two figures make of each other.
pub fn ratios(ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    let pairs = ours.iter().zip(theirs);
    pairs.map(|(ours, theirs)| ours / theirs).collect()
}

/// The middle one; of an even number the mean of the two in the middle.
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *sorted.get(sorted.len() / 2 - 1)?;
    Some(f64::midpoint(lower, upper))
}

/// The rows as a table in Markdown, which is readable as it is.
pub fn table(rows: &[Row]) -> String {
    let mut cells = vec![["", "median", "min to max", "rounds", "must be", "holds"].map(str::to_owned)];
    for row in rows {
        let must = match row.must {
            None => "–".to_owned(),
            Some(Bound::AtMost(most)) => format!("≤ {most} {}", row.unit),
            Some(Bound::AtLeast(least)) => format!("≥ {least} {}", row.unit),
        };
        let holds = match row.holds {
            None => "–",
            Some(true) => "yes",
            Some(false) => "NO",
        };
        cells.push([
            row.id.to_string(),
            format!("{} {}", figure(row.value), row.unit),
            format!("{} to {}", figure(row.min), figure(row.max)),
            row.rounds.to_string(),
            must.trim_end().to_owned(),
            holds.to_owned(),
        ]);
    }
    let mut widths = [0; 6];
    for line in &cells {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for (number, line) in cells.iter().enumerate() {
        for (cell, width) in line.iter().zip(widths) {
            // Writing to a string does not fail.
            let _ = write!(text, "| {cell:<width$} ");
        }
        text.push_str("|\n");
        if number == 0 {
            for width in widths {
                let _ = write!(text, "|{}", "-".repeat(width + 2));
            }
            text.push_str("|\n");
        }
    }
    text
}

/// Three digits, or all of those before the point.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size > 0.0 => format!("{value:.2}"),
        _ => "0".to_owned(),
    }
}

/// Writes the rows as JSON.
///
/// # Errors
/// When the file cannot be written.
pub fn write(rows: &[Row], path: &Path) -> anyhow::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let mut text = serde_json::to_string_pretty(rows)?;
    text.push('\n');
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn bounds_are_judged_by_the_median() -> anyhow::Result<()> {
        let samples = [0.5, 0.3, 0.2];
        let row = |must| Row::of("x", "s", &samples, must);
        assert_eq!(row(Some(Bound::AtMost(0.3)))?.holds, Some(true));
        assert_eq!(row(Some(Bound::AtMost(0.29)))?.holds, Some(false));
        assert_eq!(row(Some(Bound::AtLeast(0.3)))?.holds, Some(true));
        assert_eq!(row(Some(Bound::AtLeast(0.31)))?.holds, Some(false));
        let shown = row(None)?;
        assert_eq!((shown.min, shown.max, shown.holds), (0.2, 0.5, None));
        assert!(Row::of("x", "s", &[], None).is_err());
        Ok(())
    }

    #[test]
    fn a_missed_target_is_seen_at_a_glance() -> anyhow::Result<()> {
        let rows = [Row::of("slow", "s", &[2.0], Some(Bound::AtMost(1.0)))?];
        let table = table(&rows);
        assert!(
            table.contains("| slow | 2.00 s | 2.00 to 2.00 | 1      | ≤ 1 s   | NO    |"),
            "{table}"
        );
        Ok(())
    }
}
