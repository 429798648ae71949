//! What came of the cells.

use std::sync::Mutex;
use std::time::Duration;

use godwit_crds::migration::{ControlFlow, Transport};

use super::way::Way;
use crate::attempt::End;

/// A cell: where and what, and how it may end.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    pub phase: &'static str,
    pub fault: &'static str,
    pub flow: ControlFlow,
    pub expected: &'static [End],
}

struct Line {
    cell: Cell,
    transport: Transport,
    came: End,
    stood_still: Option<Duration>,
}

static LINES: Mutex<Vec<Line>> = Mutex::new(Vec::new());

/// Notes what came of a cell over the native transport.
pub fn note(cell: Cell, came: End, stood_still: Option<Duration>) {
    note_over(cell, Transport::Native, came, stood_still);
}

/// Notes what came of a cell.
pub fn note_over(cell: Cell, transport: Transport, came: End, stood_still: Option<Duration>) {
    let line = Line {
        cell,
        transport,
        came,
        stood_still,
    };
    LINES.lock().unwrap().push(line);
}

fn letter(end: End) -> &'static str {
    match end {
        End::Stays => "S",
        End::Moved => "D",
        End::Lost => "X",
    }
}

/// Shows all that came about in this run, if there was any.
pub fn show() {
    let lines = LINES.lock().unwrap();
    if lines.is_empty() {
        return;
    }
    println!(
        "S: the guest runs at the source; D: at the destination; X: it died with its only valid image\n"
    );
    println!("expected came  stood still  way                   phase                      fault");
    for Line {
        cell,
        transport,
        came,
        stood_still,
    } in lines.iter()
    {
        let expected: Vec<_> = cell.expected.iter().map(|end| letter(*end)).collect();
        let still = stood_still.map_or_else(String::new, |time| format!("{:.1} s", time.as_secs_f64()));
        println!(
            "{:<8} {:<5} {:>11}  {:<21} {:<26} {}",
            expected.join(" or "),
            letter(*came),
            still,
            Way {
                flow: cell.flow,
                transport: *transport,
            },
            cell.phase,
            cell.fault,
        );
    }
    println!();
}
