//! The observer: reads what a test guest writes to its serial port, at every host it may run on, and judges.
//!
//! Three parts, of which only the last does I/O:
//! * [`Assembler`] makes lines of the bytes that arrive from each host, also where the handover cut a line in two;
//! * [`judge`] makes a [`Verdict`] of the lines;
//! * [`Observer`] follows the console logs as they grow, and marks each byte with its host and time of arrival.
//!
//! All times here are the host's CLOCK_MONOTONIC in nanoseconds, unless a name says that they are the guest's. The
//! guest's own clocks stand still while it is stopped, so how long it was silent can only be told from outside.
//!
//! Beside it [`Monitors`] asks the hypervisors themselves who runs, where they have a monitor for that; [`judge_runs`]
//! makes a verdict of their words, whose times are Unix time in microseconds.

mod assembler;
mod monitors;
mod running;
mod verdict;

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

pub use assembler::{Assembler, GarbledLine, Seen};
pub use monitors::Monitors;
pub use running::{Run, Running, Said, Sighting, judge_runs};
pub use verdict::{Jump, Memory, Move, Silence, Verdict, judge};

/// How often the logs are looked at; it bounds the error of a time of arrival.
const LOOK_EVERY: Duration = Duration::from_micros(500);

/// Follows console logs as they grow, in a thread of its own, until it is dropped.
#[derive(Debug)]
pub struct Observer {
    shared: Arc<Shared>,
    interval: Duration,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Rung when there are new lines, and when the thread is to end.
    news: Condvar,
}

#[derive(Debug, Default)]
struct State {
    assembler: Assembler,
    logs: Vec<Log>,
    /// The log in which something new was found last.
    latest: usize,
    end: bool,
    /// The longest time between the beginnings of two looks.
    blind: Duration,
}

#[derive(Debug)]
struct Log {
    host: String,
    path: PathBuf,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    inode: u64,
    read: u64,
}

impl Observer {
    /// Starts to observe a guest that means to leave `interval` between ticks. It has no logs to follow yet.
    #[must_use]
    pub fn start(interval: Duration) -> Self {
        let shared = Arc::new(Shared::default());
        let follower = Arc::clone(&shared);
        let thread = std::thread::spawn(move || follower.follow());
        Self {
            shared,
            interval,
            thread: Some(thread),
        }
    }

    /// Follows a host's console log from its beginning, also if it does not exist yet or begins anew later.
    pub fn follow(&self, host: &str, path: &Path) {
        self.shared.lock().logs.push(Log {
            host: host.to_owned(),
            path: path.to_owned(),
            open: None,
        });
    }

    /// All lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<Seen> {
        self.shared.lock().assembler.lines().to_vec()
    }

    /// The verdict on what was seen so far.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let (lines, garbled) = {
            let state = self.shared.lock();
            (state.assembler.lines().to_vec(), state.assembler.garbled())
        };
        judge(&lines, &garbled, self.interval)
    }

    /// The longest time for which the logs were not looked at so far: by so much a time of arrival may be late.
    #[must_use]
    pub fn blind(&self) -> Duration {
        self.shared.lock().blind
    }

    /// Waits until the lines so far are such that `enough` says so, but not longer than `patience`; says whether
    /// they are. It blocks: asynchronous code calls it where blocking is allowed.
    pub fn wait_until(&self, patience: Duration, mut enough: impl FnMut(&[Seen]) -> bool) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.lock();
        loop {
            if enough(state.assembler.lines()) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self
                .shared
                .news
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.shared.lock().end = true;
        self.shared.news.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of the follower has been printed by itself.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A state that a panicking thread left is still whole: each change to it is complete before the next.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(&self) {
        let mut state = self.lock();
        let mut last = Instant::now();
        while !state.end {
            state.blind = state.blind.max(last.elapsed());
            last = Instant::now();
            let news = state.look();
            if news {
                self.news.notify_all();
            }
            // Also the pause between two looks: whoever ends the observer rings.
            state = self
                .news
                .wait_timeout(state, LOOK_EVERY)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl State {
    /// Reads what is new in each log; says whether anything was.
    fn look(&mut self) -> bool {
        let mut news = self.take(self.latest);
        for index in 0..self.logs.len() {
            if index == self.latest {
                continue;
            }
            let Some(log) = self.logs.get_mut(index) else {
                continue;
            };
            let mut bytes = Vec::new();
            let anew = log.read_new(&mut bytes);
            if !bytes.is_empty() {
                // A handover has fallen between two looks, or into this one. The destination's first bytes were written
                // after the source's last ones, so these can all be read by now, and are taken first.
                self.take(self.latest);
                self.latest = index;
                news = true;
            }
            self.hear(index, anew, &bytes);
        }
        news
    }

    /// Reads what is new in one log; says whether anything was.
    fn take(&mut self, index: usize) -> bool {
        let Some(log) = self.logs.get_mut(index) else {
            return false;
        };
        let mut bytes = Vec::new();
        let anew = log.read_new(&mut bytes);
        self.hear(index, anew, &bytes);
        !bytes.is_empty()
    }

    fn hear(&mut self, index: usize, anew: bool, bytes: &[u8]) {
        let Some(log) = self.logs.get(index) else {
            return;
        };
        if anew {
            self.assembler.log_began_anew(&log.host);
        }
        if !bytes.is_empty() {
            self.assembler.bytes(now(), &log.host, bytes);
        }
    }
}

impl Log {
    /// Appends what is new to `bytes`; says whether the log began anew. A log that cannot be read has nothing new.
    fn read_new(&mut self, bytes: &mut Vec<u8>) -> bool {
        let mut anew = false;
        if let Some(open) = &mut self.open {
            open.read_to_end(bytes);
        }
        // Asked after reading, never before: the file may have grown in between, and would look cut short.
        let there = std::fs::metadata(&self.path).ok();
        if let (Some(open), Some(there)) = (&self.open, &there)
            && (there.ino() != open.inode || there.len() < open.read)
        {
            self.open = None;
            anew = true;
        }
        if self.open.is_none() && there.is_some() {
            self.open = File::open(&self.path).ok().and_then(|file| {
                let inode = file.metadata().ok()?.ino();
                Some(Open { file, inode, read: 0 })
            });
            if let Some(open) = &mut self.open {
                open.read_to_end(bytes);
            }
        }
        anew
    }
}

impl Open {
    fn read_to_end(&mut self, bytes: &mut Vec<u8>) {
        // What was read before an error is in `bytes` and counts; the rest comes with the next look.
        let before = bytes.len();
        let _ = self.file.read_to_end(bytes);
        self.read += (bytes.len() - before) as u64;
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use std::io::Write as _;

    use godwit_guest::line::Line;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    struct Console(PathBuf);

    impl Console {
        /// A console log that does not exist yet.
        fn new(name: &str) -> Self {
            let name = format!("godwit-observer-{}-{name}.log", std::process::id());
            Self(std::env::temp_dir().join(name))
        }

        fn write(&self, text: &str) {
            let mut file = File::options().create(true).append(true).open(&self.0).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }
    }

    impl Drop for Console {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn text(tick: u32) -> String {
        Line::Count { tick }.encode()
    }

    fn last_is(tick: u64) -> impl FnMut(&[Seen]) -> bool {
        move |lines| lines.last().and_then(|seen| seen.line.tick()) == Some(tick)
    }

    #[test]
    fn logs_that_appear_later_and_a_line_cut_between_them_are_followed() {
        let (a, b) = (Console::new("cut-a"), Console::new("cut-b"));
        let observer = Observer::start(Duration::from_millis(5));
        observer.follow("a", &a.0);
        observer.follow("b", &b.0);
        let two = text(2);
        a.write(&format!("{}{}", text(1), &two[..7]));
        assert!(observer.wait_until(PATIENCE, last_is(1)));
        b.write(&format!("{}{}", &two[7..], text(3)));
        assert!(observer.wait_until(PATIENCE, last_is(3)));
        let verdict = observer.verdict();
        assert!(verdict.counter_continuous(), "{verdict:?}");
        assert_eq!((verdict.moves.len(), verdict.cut_lines), (1, 1));
    }

    #[test]
    fn a_log_that_is_replaced_or_cut_short_is_read_from_its_beginning() {
        let a = Console::new("anew");
        let observer = Observer::start(Duration::from_millis(5));
        observer.follow("a", &a.0);
        a.write(&text(1));
        assert!(observer.wait_until(PATIENCE, last_is(1)));
        std::fs::remove_file(&a.0).unwrap();
        a.write(&text(2));
        assert!(observer.wait_until(PATIENCE, last_is(2)));
        a.write(&text(3));
        assert!(observer.wait_until(PATIENCE, last_is(3)));
        std::fs::write(&a.0, text(4)).unwrap();
        assert!(observer.wait_until(PATIENCE, last_is(4)));
        assert!(observer.verdict().counter_continuous());
    }

    #[test]
    fn waiting_ends() {
        let observer = Observer::start(Duration::from_millis(5));
        assert!(!observer.wait_until(Duration::from_millis(20), |lines| !lines.is_empty()));
    }
}
