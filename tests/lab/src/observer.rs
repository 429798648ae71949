//! The observer: reads what a test guest writes to its serial port, at every host it may run on, and judges.
//!
//! Three parts, of which only the last does I/O:
//! * [`Assembler`] makes lines of the bytes that arrive from each host, also where the handover cut a line in two;
//! * [`judge`] makes a [`Verdict`] of the lines;
//! * [`Observer`] follows the console logs as they grow, and marks each byte with its host and time of arrival.
//!
//! All times here are the host's CLOCK_MONOTONIC in nanoseconds, unless a name says that they are the guest's. The
//! guest's own clocks stand still while it is stopped, so how long it was silent can only be told from outside.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use godwit_guest::line::{LONGEST, Line, MemoryState};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// How often the logs are looked at; it bounds the error of a time of arrival.
const LOOK_EVERY: Duration = Duration::from_micros(500);

/// A line of the guest as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When its last byte was read.
    pub at_ns: u64,
    /// The host at which its last byte came out.
    pub host: String,
    /// Its first bytes came out at another host: the handover cut it in two.
    pub cut: bool,
    /// What it says.
    pub line: Line,
}

/// Bytes that are no line: the guest, the hypervisor or the handover lost or damaged some.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GarbledLine {
    /// How many whole lines were seen before it was known to be broken.
    pub after_lines: usize,
    /// When the last of them was read.
    pub at_ns: u64,
    /// Where they came out.
    pub host: String,
    /// The bytes, made printable and cut to a line's length.
    pub text: String,
}

/// Makes lines of bytes that come from several hosts. Pure: it is told the time.
///
/// A serial port's state moves with the guest, so a line that is being written during the handover begins in one
/// host's log and ends in the next one's, and the two parts together are whole. But should two copies of a guest run,
/// each goes on with that line by itself. So at the first newline after a change of host the assembler tries, in this
/// order: the part left at the host that spoke before and what came since; what came since; the part left at this
/// very host and what came since. The check in each line says which one is right.
#[derive(Debug, Default)]
pub struct Assembler {
    hosts: BTreeMap<String, Partial>,
    speaker: Option<String>,
    lines: Vec<Seen>,
    garbled: Vec<GarbledLine>,
}

/// What was read of a host since its last newline.
#[derive(Debug, Default)]
struct Partial {
    /// The part of a line that the host which spoke before had left, while it may still belong to this one's.
    carried: Vec<u8>,
    /// Since the last newline, but only from when this host became the one that speaks.
    fresh: Vec<u8>,
    /// Left by this host itself when another began to speak.
    left: Vec<u8>,
    /// When the last byte was read.
    at_ns: u64,
    /// Bytes that this host left are part of a whole line at another.
    used_elsewhere: bool,
}

impl Assembler {
    /// Takes bytes that were read from a host's log.
    pub fn bytes(&mut self, at_ns: u64, host: &str, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.speaker.as_deref() != Some(host) {
            self.change_speaker(host);
        }
        for byte in bytes {
            let partial = self.hosts.entry(host.to_owned()).or_default();
            partial.at_ns = at_ns;
            match byte {
                b'\n' => self.end_line(at_ns, host),
                // Bytes without a newline for long are noise; the end of them is enough to call them garbled.
                byte if partial.fresh.len() <= 2 * LONGEST => partial.fresh.push(*byte),
                _ => {}
            }
        }
    }

    /// A host's log began anew: what was left there belongs to a hypervisor process that is gone.
    pub fn log_began_anew(&mut self, host: &str) {
        self.drop_left(host);
        // What this very host had not finished was its old process's: what comes now does not belong to it.
        if self.speaker.as_deref() == Some(host)
            && let Some(partial) = self.hosts.get_mut(host)
        {
            partial.left = std::mem::take(&mut partial.carried);
            partial.left.append(&mut partial.fresh);
            self.drop_left(host);
        }
    }

    /// The lines so far, in the order in which they were completed.
    #[must_use]
    pub fn lines(&self) -> &[Seen] {
        &self.lines
    }

    /// What is garbled so far: lines that are broken, and parts of lines left at a host and completed nowhere.
    #[must_use]
    pub fn garbled(&self) -> Vec<GarbledLine> {
        let mut garbled = self.garbled.clone();
        for (host, partial) in &self.hosts {
            // What the one that speaks has not finished yet is not broken.
            if self.speaker.as_ref() != Some(host) && !partial.left.is_empty() && !partial.used_elsewhere {
                garbled.push(garbled_line(self.lines.len(), partial.at_ns, host, &partial.left));
            }
        }
        garbled
    }

    fn change_speaker(&mut self, host: &str) {
        let mut carried = Vec::new();
        if let Some(before) = self
            .speaker
            .replace(host.to_owned())
            .and_then(|name| self.hosts.get_mut(&name))
        {
            carried.append(&mut before.carried);
            let fresh = std::mem::take(&mut before.fresh);
            carried.extend_from_slice(&fresh);
            before.left.extend_from_slice(&fresh);
        }
        self.hosts.entry(host.to_owned()).or_default().carried = carried;
    }

    fn end_line(&mut self, at_ns: u64, host: &str) {
        let partial = self.hosts.entry(host.to_owned()).or_default();
        let fresh = std::mem::take(&mut partial.fresh);
        let carried = std::mem::take(&mut partial.carried);
        let joined = [carried.as_slice(), &fresh].concat();
        let resumed = [partial.left.as_slice(), &fresh].concat();
        let seen = |line, cut| Seen {
            at_ns,
            host: host.to_owned(),
            cut,
            line,
        };
        if !carried.is_empty()
            && let Ok(line) = Line::parse(&joined)
        {
            self.lines.push(seen(line, true));
            self.carried_was_used(host, &carried);
        } else if let Ok(line) = Line::parse(&fresh) {
            self.lines.push(seen(line, false));
        } else if !partial.left.is_empty()
            && let Ok(line) = Line::parse(&resumed)
        {
            self.lines.push(seen(line, false));
            partial.left.clear();
        } else {
            self.garbled
                .push(garbled_line(self.lines.len(), at_ns, host, &joined));
            self.carried_was_used(host, &carried);
        }
        self.drop_left(host);
    }

    /// What hosts other than `host` left and what ends in `carried` needs no further explanation.
    fn carried_was_used(&mut self, host: &str, carried: &[u8]) {
        for (name, partial) in &mut self.hosts {
            if name != host && !partial.left.is_empty() && carried.ends_with(&partial.left) {
                partial.used_elsewhere = true;
            }
        }
    }

    fn drop_left(&mut self, host: &str) {
        let Some(partial) = self.hosts.get_mut(host) else {
            return;
        };
        let left = std::mem::take(&mut partial.left);
        let explained = std::mem::take(&mut partial.used_elsewhere);
        if !left.is_empty() && !explained {
            let lost = garbled_line(self.lines.len(), partial.at_ns, host, &left);
            self.garbled.push(lost);
        }
    }
}

fn garbled_line(after_lines: usize, at_ns: u64, host: &str, bytes: &[u8]) -> GarbledLine {
    let text = bytes
        .iter()
        .take(LONGEST)
        .flat_map(|byte| byte.escape_ascii())
        .map(char::from)
        .collect();
    GarbledLine {
        after_lines,
        at_ns,
        host: host.to_owned(),
        text,
    }
}

/// What the guest's lines prove. Plain data: the caller says what it may be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Ticks seen.
    pub ticks: u64,
    /// The tick that was seen first.
    pub first_tick: Option<u64>,
    /// The tick that was seen last.
    pub last_tick: Option<u64>,
    /// Each change of host, in order.
    pub moves: Vec<Move>,
    /// Ticks that were smaller than the one before and had not been seen.
    pub went_back: Vec<Jump>,
    /// Ticks that had been seen already: a copy of the guest ran twice, or an old one ran again.
    pub doubled: Vec<Jump>,
    /// Ticks that were more than one larger than the one before.
    pub skipped: Vec<Jump>,
    /// How often the guest booted while it was watched.
    pub boots: u64,
    /// The longest time without a tick, anywhere.
    pub longest_silence: Option<Silence>,
    /// The usual distance of two ticks as it was seen here, in nanoseconds: how precise the figures can be.
    pub median_gap_ns: u64,
    /// One in a hundred distances of two ticks was longer than this, in nanoseconds.
    pub p99_gap_ns: u64,
    /// What is known about the guest's memory.
    pub memory: Memory,
    /// Lines that are broken, once the first whole one had been seen.
    pub garbled: Vec<GarbledLine>,
    /// Whole lines that began at one host and ended at another.
    pub cut_lines: u64,
}

/// A change of host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Move {
    /// Where the last tick before it came out.
    pub from: String,
    /// Where the first tick after it came out.
    pub to: String,
    /// The last tick before it.
    pub last_tick: u64,
    /// The first tick after it.
    pub first_tick: u64,
    /// When the first tick after it arrived.
    pub at_ns: u64,
    /// How long the guest was silent: the time between these two ticks, less the usual time between ticks.
    pub silence_ns: u64,
    /// How much the guest's own monotonic clock moved between these two ticks, in microseconds.
    pub guest_mono_us: Option<i64>,
    /// How much the guest's wall clock moved between them, in microseconds. Below 0 it went back.
    pub guest_wall_us: Option<i64>,
}

/// A tick whose number does not follow that of the tick before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Jump {
    /// The tick before.
    pub before: u64,
    /// The tick.
    pub tick: u64,
    /// Where it came out.
    pub host: String,
    /// When it arrived.
    pub at_ns: u64,
}

/// A time without a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Silence {
    /// The tick after it.
    pub before_tick: u64,
    /// When that tick arrived.
    pub at_ns: u64,
    /// How long it was, less the usual time between ticks.
    pub length_ns: u64,
}

/// What is known about the guest's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Checks of all pages that found each one good.
    pub good_checks: u64,
    /// Of those, the checks that began after the last change of host.
    pub good_checks_since_move: u64,
    /// Pages that the last check looked at.
    pub pages: u64,
    /// Something said that a page was bad: this many in the worst check, or 1 where only a tick said so.
    pub bad_pages: u64,
    /// The first bad page of the first check that found one.
    pub first_bad: Option<u64>,
}

impl Verdict {
    /// The counter never went back, doubled, skipped or began again, and no byte was lost.
    #[must_use]
    pub fn counter_continuous(&self) -> bool {
        self.ticks > 0
            && self.went_back.is_empty()
            && self.doubled.is_empty()
            && self.skipped.is_empty()
            && self.boots <= 1
            && self.garbled.is_empty()
    }

    /// No page was ever bad, and all pages were checked after the last change of host.
    #[must_use]
    pub fn memory_intact(&self) -> bool {
        self.memory.bad_pages == 0 && self.memory.good_checks_since_move > 0
    }
}

/// Judges what was seen. `interval` is the time the guest means to leave between ticks.
#[must_use]
pub fn judge(lines: &[Seen], garbled: &[GarbledLine], interval: Duration) -> Verdict {
    let interval_ns = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
    let mut verdict = Verdict {
        ticks: 0,
        first_tick: None,
        last_tick: None,
        moves: Vec::new(),
        went_back: Vec::new(),
        doubled: Vec::new(),
        skipped: Vec::new(),
        boots: 0,
        longest_silence: None,
        median_gap_ns: 0,
        p99_gap_ns: 0,
        memory: Memory::default(),
        garbled: Vec::new(),
        cut_lines: 0,
    };
    // What precedes the first whole line is firmware and kernel, who do not know our lines.
    verdict.garbled = garbled
        .iter()
        .filter(|line| line.after_lines > 0)
        .cloned()
        .collect();
    let mut gaps = Vec::new();
    let mut before: Option<(&Seen, u64)> = None;
    let mut highest = 0;
    for seen in lines {
        verdict.cut_lines += u64::from(seen.cut);
        match &seen.line {
            Line::Hello { .. } => {
                verdict.boots += 1;
                // Ticks begin again with a boot, and the time a boot takes is no silence.
                before = None;
                highest = 0;
            }
            Line::Check {
                since_tick,
                pages,
                bad,
                first_bad,
                ..
            } => {
                let memory = &mut verdict.memory;
                memory.pages = *pages;
                if *bad > 0 {
                    memory.bad_pages = memory.bad_pages.max(*bad);
                    memory.first_bad.get_or_insert(*first_bad);
                } else {
                    memory.good_checks += 1;
                    // The tick after which it began came out here, after the move.
                    if verdict
                        .moves
                        .last()
                        .is_none_or(|last| *since_tick >= last.first_tick)
                    {
                        memory.good_checks_since_move += 1;
                    }
                }
            }
            Line::Tick { .. } | Line::Count { .. } => {
                let Some(tick) = seen.line.tick() else { continue };
                if let Line::Tick {
                    memory: MemoryState::Corrupt,
                    ..
                } = seen.line
                {
                    verdict.memory.bad_pages = verdict.memory.bad_pages.max(1);
                }
                verdict.ticks += 1;
                verdict.first_tick.get_or_insert(tick);
                verdict.last_tick = Some(tick);
                if let Some((previous, number)) = before {
                    let gap = seen.at_ns.saturating_sub(previous.at_ns);
                    let silence = gap.saturating_sub(interval_ns);
                    gaps.push(gap);
                    if verdict
                        .longest_silence
                        .is_none_or(|longest| longest.length_ns < silence)
                    {
                        verdict.longest_silence = Some(Silence {
                            before_tick: tick,
                            at_ns: seen.at_ns,
                            length_ns: silence,
                        });
                    }
                    let jump = || Jump {
                        before: number,
                        tick,
                        host: seen.host.clone(),
                        at_ns: seen.at_ns,
                    };
                    if tick <= highest && was_seen(lines, seen, tick) {
                        verdict.doubled.push(jump());
                    } else if tick < number {
                        verdict.went_back.push(jump());
                    } else if tick > number + 1 {
                        verdict.skipped.push(jump());
                    }
                    if previous.host != seen.host {
                        verdict.moves.push(Move {
                            from: previous.host.clone(),
                            to: seen.host.clone(),
                            last_tick: number,
                            first_tick: tick,
                            at_ns: seen.at_ns,
                            silence_ns: silence,
                            guest_mono_us: difference(mono(previous), mono(seen)),
                            guest_wall_us: difference(wall(previous), wall(seen)),
                        });
                        verdict.memory.good_checks_since_move = 0;
                    }
                }
                highest = highest.max(tick);
                before = Some((seen, tick));
            }
            Line::Accepted { .. } | Line::Refused { .. } => {}
        }
    }
    gaps.sort_unstable();
    let rank = |part: usize| {
        gaps.get((gaps.len() * part / 100).min(gaps.len().saturating_sub(1)))
            .copied()
    };
    verdict.median_gap_ns = rank(50).unwrap_or(0);
    verdict.p99_gap_ns = rank(99).unwrap_or(0);
    verdict
}

/// Whether this tick stands in the lines before `until`, since the boot before it. Only asked where something is wrong.
fn was_seen(lines: &[Seen], until: &Seen, tick: u64) -> bool {
    let end = lines
        .iter()
        .position(|seen| std::ptr::eq(seen, until))
        .unwrap_or(lines.len());
    let before = lines.get(..end).unwrap_or_default();
    before
        .iter()
        .rev()
        .take_while(|seen| !matches!(seen.line, Line::Hello { .. }))
        .any(|seen| seen.line.tick() == Some(tick))
}

fn mono(seen: &Seen) -> Option<u64> {
    if let Line::Tick { mono_us, .. } = seen.line {
        Some(mono_us)
    } else {
        None
    }
}

fn wall(seen: &Seen) -> Option<u64> {
    if let Line::Tick { wall_us, .. } = seen.line {
        Some(wall_us)
    } else {
        None
    }
}

fn difference(earlier: Option<u64>, later: Option<u64>) -> Option<i64> {
    Some(later?.cast_signed().wrapping_sub(earlier?.cast_signed()))
}

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
        while !state.end {
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
        // The host that spoke last comes first: if a handover fell between two looks, the source's last bytes are then
        // taken before the destination's first ones.
        let count = self.logs.len();
        let order = (0..count).map(|offset| (self.latest + offset) % count);
        let mut news = false;
        for index in order.collect::<Vec<_>>() {
            let Some(log) = self.logs.get_mut(index) else {
                continue;
            };
            let mut bytes = Vec::new();
            if log.read_new(&mut bytes) {
                self.assembler.log_began_anew(&log.host);
            }
            if !bytes.is_empty() {
                self.assembler.bytes(now(), &log.host, &bytes);
                self.latest = index;
                news = true;
            }
        }
        news
    }
}

impl Log {
    /// Appends what is new to `bytes`; says whether the log began anew. A log that cannot be read has nothing new.
    fn read_new(&mut self, bytes: &mut Vec<u8>) -> bool {
        let mut anew = false;
        let there = std::fs::metadata(&self.path).ok();
        if let Some(open) = &mut self.open {
            open.read_to_end(bytes);
            if let Some(there) = &there
                && (there.ino() != open.inode || there.len() < open.read)
            {
                self.open = None;
                anew = true;
            }
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
