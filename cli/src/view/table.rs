//! Aligned columns, as kubectl prints them.

use crate::text::{NAME, clean};

/// A table of cleaned cells, three spaces between columns, nothing after the last one. What is empty shows as
/// `-`, so that columns can be counted.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = std::iter::once(header.iter().map(|h| (*h).to_owned()).collect())
        .chain(
            rows.iter()
                .map(|row| row.iter().map(|cell| cell_text(cell)).collect()),
        )
        .collect();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            let padding = width.saturating_sub(cell.chars().count()) + 3;
            line.extend(std::iter::repeat_n(' ', padding));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn cell_text(cell: &str) -> String {
    let cell = clean(cell, NAME);
    if cell.trim().is_empty() { "-".into() } else { cell }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_cells_cleaned() {
        let rows = [
            vec!["a".into(), "\u{1b}[31mred".into(), "x".into()],
            vec!["a-long-name".into(), String::new(), "yy".into()],
        ];
        let expected = "\
NAME          STATE      N
a             \u{fffd}[31mred   x
a-long-name   -          yy
";
        assert_eq!(table(&["NAME", "STATE", "N"], &rows), expected);
    }
}
