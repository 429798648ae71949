//! The guest's filled memory: what is in it, which of it changes, and checking it bit by bit between ticks.

use crate::pattern::{PAGE_BYTES, Page, Pattern};

/// Memory filled with a [`Pattern`]. The first pages, the working set, are written again and again, each time with a
/// new generation of their pattern; the others stay as they are.
pub struct Memory {
    pattern: Pattern,
    pages: Vec<Page>,
    /// How often each page of the working set was written. It moves with the guest like the pages do, so a page that
    /// was left behind at an older state is seen, as long as not all of memory is.
    generations: Vec<u32>,
    next_dirty: usize,
}

/// A check of all pages that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    /// The last tick before the first page was looked at.
    pub since_tick: u64,
    next: usize,
    bad: u64,
    first_bad: u64,
}

/// What a finished check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Pages that differed.
    pub bad: u64,
    /// The first of them, or 0.
    pub first_bad: u64,
}

impl Pass {
    /// A check that begins after `since_tick`.
    #[must_use]
    pub fn new(since_tick: u64) -> Self {
        Self {
            since_tick,
            next: 0,
            bad: 0,
            first_bad: 0,
        }
    }
}

impl Memory {
    /// Fills `fill` bytes, of which the first `working_set` bytes can be dirtied. Both are rounded up to pages, and
    /// `fill` grows to hold the working set.
    #[must_use]
    pub fn fill(pattern: Pattern, fill: u64, working_set: u64) -> Self {
        let working_set = working_set.div_ceil(PAGE_BYTES);
        let count = fill.div_ceil(PAGE_BYTES).max(working_set);
        // Where the counts do not fit in memory the allocation fails, and with it the guest, visibly.
        let mut pages = Vec::with_capacity(usize::try_from(count).unwrap_or(usize::MAX));
        pages.extend((0..count).map(|number| pattern.page(number, 0)));
        let generations = vec![0; usize::try_from(working_set).unwrap_or(usize::MAX)];
        Self {
            pattern,
            pages,
            generations,
            next_dirty: 0,
        }
    }

    /// How many pages are filled.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages.len() as u64
    }

    /// Writes the next `count` pages of the working set, round and round.
    pub fn dirty(&mut self, count: u64) {
        for _ in 0..count {
            let at = self.next_dirty;
            let (Some(page), Some(generation)) = (self.pages.get_mut(at), self.generations.get_mut(at))
            else {
                return; // no working set
            };
            *generation = generation.wrapping_add(1);
            self.pattern.write(page, at as u64, *generation);
            self.next_dirty = if at + 1 < self.generations.len() {
                at + 1
            } else {
                0
            };
        }
    }

    /// Goes on with a check for at most `count` pages; says what was found once the last page was looked at.
    #[must_use]
    pub fn check(&self, pass: &mut Pass, count: u64) -> Option<Found> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        for (at, page) in self.pages.iter().enumerate().skip(pass.next).take(count) {
            let generation = self.generations.get(at).copied().unwrap_or(0);
            if !self.pattern.holds(page, at as u64, generation) {
                if pass.bad == 0 {
                    pass.first_bad = at as u64;
                }
                pass.bad += 1;
            }
        }
        pass.next = pass.next.saturating_add(count).min(self.pages.len());
        (pass.next == self.pages.len()).then_some(Found {
            bad: pass.bad,
            first_bad: pass.first_bad,
        })
    }

    /// Whether a check under way has found a page that differs.
    #[must_use]
    pub fn seen_bad(pass: &Pass) -> bool {
        pass.bad > 0
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::*;

    const GOOD: Option<Found> = Some(Found { bad: 0, first_bad: 0 });

    fn memory(pages: u64, working_set: u64) -> Memory {
        Memory::fill(Pattern::new(1), pages * PAGE_BYTES, working_set * PAGE_BYTES)
    }

    #[test]
    fn sizes_are_rounded_up_to_pages() {
        assert_eq!(Memory::fill(Pattern::new(1), 1, 0).pages(), 1);
        assert_eq!(Memory::fill(Pattern::new(1), PAGE_BYTES + 1, 0).pages(), 2);
        assert_eq!(
            Memory::fill(Pattern::new(1), PAGE_BYTES, 3 * PAGE_BYTES).pages(),
            3
        );
    }

    #[test]
    fn memory_is_good_at_first_and_while_it_is_dirtied_between_steps_of_a_check() {
        let mut memory = memory(10, 4);
        let mut pass = Pass::new(0);
        for _ in 0..3 {
            assert_eq!(memory.check(&mut pass, 3), None);
            memory.dirty(7);
        }
        assert_eq!(memory.check(&mut pass, 3), GOOD);
        assert_eq!(memory.generations, [6, 5, 5, 5]);
    }

    #[test]
    fn damaged_pages_are_counted_and_the_first_is_named() {
        let mut memory = memory(10, 4);
        memory.pages[2].damage(0, 5);
        memory.pages[9].damage(511, 63);
        assert_eq!(
            memory.check(&mut Pass::new(0), 100),
            Some(Found { bad: 2, first_bad: 2 })
        );
    }

    #[test]
    fn a_page_that_kept_an_older_generation_is_bad() {
        let mut memory = memory(4, 2);
        let old = memory.pages[1].clone();
        memory.dirty(2);
        memory.pages[1] = old;
        assert_eq!(
            memory.check(&mut Pass::new(0), 4),
            Some(Found { bad: 1, first_bad: 1 })
        );
    }

    #[test]
    fn nothing_filled_and_nothing_to_dirty_is_no_error() {
        let mut none = memory(0, 0);
        none.dirty(5);
        assert_eq!(none.check(&mut Pass::new(0), 1), GOOD);
        let mut still = memory(2, 0);
        still.dirty(5);
        assert_eq!(still.check(&mut Pass::new(0), 2), GOOD);
    }
}
