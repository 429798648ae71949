//! What the demonstration prints: numbered steps with an estimate, lines with the time since the start, and a bar that
//! moves where there is a terminal. Elsewhere each line is printed once and never changed.

use std::io::{IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use jiff::Timestamp;

const STEPS: usize = 5;
const BAR_CELLS: usize = 30;

/// The screen. Copies of it write to the same one.
#[derive(Clone)]
pub struct Screen {
    begun: Instant,
    begun_at: Timestamp,
    terminal: bool,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    step: usize,
    /// The last line is a live one: the next takes its place.
    live: bool,
}

impl Screen {
    /// The process's standard output.
    pub fn new() -> Self {
        Self {
            begun: Instant::now(),
            begun_at: Timestamp::now(),
            terminal: std::io::stdout().is_terminal(),
            state: Arc::default(),
        }
    }

    /// Whether lines can change after they were printed.
    pub fn terminal(&self) -> bool {
        self.terminal
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    /// Begins the next step.
    pub fn step(&self, title: &str, estimate: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.step += 1;
        let title = format!("[{}/{STEPS}] {title}", state.step);
        let title = if self.terminal {
            format!("\x1b[1m{title}\x1b[0m")
        } else {
            title
        };
        self.print(&mut state, &format!("\n{title} ({estimate})"));
    }

    /// A line with the time since the start.
    pub fn line(&self, text: &str) {
        self.plain(&format!("{:7.2} s  {text}", self.seconds()));
    }

    /// A line about something that was at another time than now, as this machine's clock has it.
    pub fn line_of(&self, at: Timestamp, text: &str) {
        let seconds = at.duration_since(self.begun_at).as_secs_f64();
        self.plain(&format!("{seconds:7.2} s  {text}"));
    }

    /// A line as it is.
    pub fn plain(&self, text: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.print(&mut state, text);
    }

    /// A manifest, set off from the rest.
    pub fn manifest(&self, text: &str) {
        for line in text.lines() {
            self.plain(&format!("    {line}"));
        }
    }

    /// A line whose place the next one takes; nothing where there is no terminal.
    pub fn live(&self, text: &str) {
        if !self.terminal {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.print(&mut state, &format!("{:7.2} s  {text}", self.seconds()));
        state.live = true;
    }

    fn print(&self, state: &mut State, text: &str) {
        // Back to the beginning of the line above, and what stood there away.
        let over = if state.live { "\x1b[1A\r\x1b[2K" } else { "" };
        state.live = false;
        let mut out = std::io::stdout().lock();
        // Whoever has closed the pipe reads nothing; the exit status still tells how it went.
        let _ = writeln!(out, "{over}{text}");
        let _ = out.flush();
    }
}

/// A bar of which so many hundredths are full.
pub fn bar(percent: u8) -> String {
    let full = usize::from(percent.min(100)) * BAR_CELLS / 100;
    format!("[{}{}]", "#".repeat(full), "-".repeat(BAR_CELLS - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_full_at_the_end_only() {
        assert_eq!(bar(0), format!("[{}]", "-".repeat(30)));
        assert_eq!(bar(99).matches('#').count(), 29);
        assert_eq!(bar(100), format!("[{}]", "#".repeat(30)));
        assert_eq!(bar(255), bar(100));
    }
}
