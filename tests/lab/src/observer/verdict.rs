//! From lines to a verdict.

use std::time::Duration;

use godwit_guest::line::{Line, MemoryState};
use serde::Serialize;

use super::assembler::{GarbledLine, Seen};

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

#[cfg(test)]
#[allow(clippy::panic, clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(5);

    fn tick_line(tick: u64, mono_us: u64) -> Line {
        Line::Tick {
            tick,
            wall_us: 1_000_000 + mono_us,
            mono_us,
            memory: MemoryState::Intact,
        }
    }

    fn seen(at_ms: u64, host: &str, line: Line) -> Seen {
        Seen {
            at_ns: at_ms * 1_000_000,
            host: host.to_owned(),
            cut: false,
            line,
        }
    }

    fn tick(at_ms: u64, host: &str, tick: u64) -> Seen {
        seen(at_ms, host, tick_line(tick, tick * 5000))
    }

    fn check(at_ms: u64, since_tick: u64, bad: u64) -> Seen {
        seen(
            at_ms,
            "b",
            Line::Check {
                since_tick,
                pages: 8,
                bad,
                first_bad: bad * 3,
                mono_us: 0,
            },
        )
    }

    /// Ten ticks at a, a move of 100 ms, ten ticks at b, and a check of memory there.
    fn good() -> Vec<Seen> {
        let at_a = (1..=10).map(|number| tick(number * 5, "a", number));
        let at_b = (11..=20).map(|number| tick(number * 5 + 100, "b", number));
        at_a.chain(at_b).chain([check(205, 20, 0)]).collect()
    }

    fn judged(lines: &[Seen]) -> Verdict {
        judge(lines, &[], INTERVAL)
    }

    #[test]
    fn a_good_move_is_good_and_its_silence_is_measured() {
        let verdict = judged(&good());
        assert!(verdict.counter_continuous());
        assert!(verdict.memory_intact());
        assert_eq!(
            (verdict.ticks, verdict.first_tick, verdict.last_tick),
            (20, Some(1), Some(20))
        );
        assert_eq!(verdict.median_gap_ns, 5_000_000);
        let [only] = verdict.moves.as_slice() else {
            panic!("{:?}", verdict.moves)
        };
        assert_eq!(
            (
                only.from.as_str(),
                only.to.as_str(),
                only.last_tick,
                only.first_tick
            ),
            ("a", "b", 10, 11)
        );
        assert_eq!(only.silence_ns, 100_000_000);
        assert_eq!(only.guest_mono_us, Some(5000), "the guest's clock stood still");
        assert_eq!(only.guest_wall_us, Some(5000));
        assert_eq!(
            verdict
                .longest_silence
                .map(|silence| (silence.before_tick, silence.length_ns)),
            Some((11, 100_000_000))
        );
    }

    #[test]
    fn a_silence_without_a_move_is_found() {
        let verdict = judged(&[
            tick(5, "a", 1),
            tick(10, "a", 2),
            tick(95, "a", 3),
            tick(100, "a", 4),
        ]);
        assert_eq!(
            verdict
                .longest_silence
                .map(|silence| (silence.before_tick, silence.length_ns)),
            Some((3, 80_000_000))
        );
        assert!(verdict.moves.is_empty());
        assert!(verdict.counter_continuous(), "late is not lost");
    }

    #[test]
    fn a_doubled_tick_is_found() {
        let verdict = judged(&[
            tick(5, "a", 1),
            tick(10, "a", 2),
            tick(15, "b", 2),
            tick(20, "b", 3),
        ]);
        assert_eq!(verdict.doubled.len(), 1);
        assert_eq!(
            (verdict.doubled[0].tick, verdict.doubled[0].host.as_str()),
            (2, "b")
        );
        assert!(!verdict.counter_continuous());
    }

    #[test]
    fn a_counter_that_went_back_is_found() {
        // Ticks 5 and 6 were never seen, so it is no doubling.
        let verdict = judged(&[
            tick(5, "a", 4),
            tick(10, "a", 7),
            tick(15, "b", 5),
            tick(20, "b", 6),
        ]);
        assert_eq!(
            verdict
                .went_back
                .iter()
                .map(|jump| (jump.before, jump.tick))
                .collect::<Vec<_>>(),
            [(7, 5)]
        );
        assert_eq!(verdict.skipped.len(), 1);
        assert!(verdict.doubled.is_empty());
        assert!(!verdict.counter_continuous());
    }

    #[test]
    fn a_skipped_tick_is_found() {
        let verdict = judged(&[tick(5, "a", 1), tick(10, "b", 3)]);
        assert_eq!(
            verdict
                .skipped
                .iter()
                .map(|jump| (jump.before, jump.tick))
                .collect::<Vec<_>>(),
            [(1, 3)]
        );
        assert!(!verdict.counter_continuous());
    }

    #[test]
    fn two_hosts_that_run_at_once_are_found() {
        let mut lines = vec![tick(5, "a", 1), tick(10, "a", 2)];
        for number in 3..8 {
            lines.push(tick(number * 5, "a", number));
            lines.push(tick(number * 5 + 1, "b", number));
        }
        let verdict = judged(&lines);
        assert_eq!(verdict.doubled.len(), 5);
        assert_eq!(verdict.moves.len(), 9);
        assert!(!verdict.counter_continuous());
    }

    #[test]
    fn an_old_copy_that_goes_on_after_the_move_is_found() {
        let mut lines = good();
        lines.push(tick(300, "a", 11));
        let verdict = judged(&lines);
        assert_eq!(verdict.doubled.len(), 1);
        assert!(!verdict.counter_continuous());
        assert!(
            !verdict.memory_intact(),
            "the last change of host is without a check"
        );
    }

    #[test]
    fn a_bad_check_is_remembered_whatever_comes_after() {
        let mut lines = good();
        lines.insert(5, check(26, 1, 2));
        let verdict = judged(&lines);
        assert_eq!((verdict.memory.bad_pages, verdict.memory.first_bad), (2, Some(6)));
        assert!(!verdict.memory_intact());
    }

    #[test]
    fn a_tick_that_says_bad_is_enough() {
        let mut lines = good();
        lines.push(seen(
            300,
            "b",
            Line::Tick {
                tick: 21,
                wall_us: 0,
                mono_us: 0,
                memory: MemoryState::Corrupt,
            },
        ));
        let verdict = judged(&lines);
        assert!(verdict.counter_continuous());
        assert!(!verdict.memory_intact());
    }

    #[test]
    fn a_check_that_began_before_the_move_proves_nothing_after_it() {
        let mut lines = good();
        lines.pop();
        assert!(!judged(&lines).memory_intact(), "no check at all");
        lines.push(check(205, 10, 0));
        assert!(!judged(&lines).memory_intact(), "it began at the source");
        lines.push(check(206, 11, 0));
        assert!(judged(&lines).memory_intact());
    }

    #[test]
    fn a_second_boot_is_counted_and_breaks_the_continuity() {
        let hello = || Line::Hello {
            pages: 8,
            interval_ms: 5,
            uptime_us: 1,
        };
        let lines = [
            seen(1, "a", hello()),
            tick(5, "a", 1),
            tick(10, "a", 2),
            seen(900, "a", hello()),
            tick(905, "a", 1),
            tick(910, "a", 2),
        ];
        let verdict = judged(&lines);
        assert_eq!(verdict.boots, 2);
        assert!(verdict.doubled.is_empty(), "ticks begin again with a boot");
        assert_eq!(
            verdict.longest_silence.map(|silence| silence.length_ns),
            Some(0),
            "a boot is no silence"
        );
        assert!(!verdict.counter_continuous());
        assert!(judged(&lines[..3]).counter_continuous());
    }

    #[test]
    fn broken_lines_count_but_not_those_before_the_first_whole_one() {
        let broken = |after_lines| GarbledLine {
            after_lines,
            at_ns: 0,
            host: "a".to_owned(),
            text: "?".to_owned(),
        };
        assert!(judge(&good(), &[broken(0)], INTERVAL).counter_continuous());
        assert!(!judge(&good(), &[broken(3)], INTERVAL).counter_continuous());
    }

    #[test]
    fn nothing_seen_proves_nothing() {
        let verdict = judged(&[]);
        assert!(!verdict.counter_continuous());
        assert!(!verdict.memory_intact());
        assert_eq!(verdict.longest_silence, None);
    }
}
