//! The pattern that a page of the guest's memory holds: known from the page's number and generation, different for
//! each, and of no use to a compressor.

/// Bytes in a page.
pub const PAGE_BYTES: u64 = 4096;

const WORDS: usize = 512;

/// One page of memory, aligned as the processor's pages are, so that to write one dirties one.
#[derive(Clone)]
#[repr(align(4096))]
pub struct Page([u64; WORDS]);

/// Makes and recognises pages.
///
/// A page is a table of random words, each combined with a key that belongs to this page and this generation. No two
/// pages share a run of bytes that a compressor could find, and both making and checking a page is one pass of the
/// simplest instructions, which matters where instructions are emulated.
pub struct Pattern {
    seed: u64,
    table: Page,
}

impl Pattern {
    /// The pattern that belongs to `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut table = Page([0; WORDS]);
        for (word, index) in table.0.iter_mut().zip(0..) {
            *word = mix(seed.wrapping_add(index));
        }
        Self { seed, table }
    }

    /// A page as it is to be.
    #[must_use]
    pub fn page(&self, number: u64, generation: u32) -> Page {
        let mut page = self.table.clone();
        let key = self.key(number, generation);
        for word in &mut page.0 {
            *word ^= key;
        }
        page
    }

    /// Writes all of a page.
    pub fn write(&self, page: &mut Page, number: u64, generation: u32) {
        let key = self.key(number, generation);
        for (word, table) in page.0.iter_mut().zip(&self.table.0) {
            *word = table ^ key;
        }
    }

    /// Says whether a page is as it is to be.
    #[must_use]
    pub fn holds(&self, page: &Page, number: u64, generation: u32) -> bool {
        let key = self.key(number, generation);
        // No early end: the loop without a branch is much faster, and pages are nearly always good.
        page.0
            .iter()
            .zip(&self.table.0)
            .fold(0, |differs, (word, table)| differs | (word ^ table ^ key))
            == 0
    }

    fn key(&self, number: u64, generation: u32) -> u64 {
        mix(mix(self.seed ^ number) ^ u64::from(generation))
    }
}

impl Page {
    /// What the page holds, word by word.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.0
    }

    /// Turns one bit over.
    #[cfg(test)]
    pub(crate) fn damage(&mut self, word: usize, bit: u32) {
        if let Some(word) = self.0.get_mut(word) {
            *word ^= 1 << bit;
        }
    }
}

/// A step of the splitmix64 generator: each input gives another output, and neighbours have nothing in common.
fn mix(input: u64) -> u64 {
    let mut word = input.wrapping_add(0x9E37_79B9_7F4A_7C15);
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_recognised_only_as_itself() {
        let pattern = Pattern::new(7);
        let mut page = pattern.page(3, 1);
        assert!(pattern.holds(&page, 3, 1));
        assert!(!pattern.holds(&page, 4, 1), "another page");
        assert!(!pattern.holds(&page, 3, 0), "an older generation");
        assert!(!Pattern::new(8).holds(&page, 3, 1), "another seed");
        pattern.write(&mut page, 4, 2);
        assert!(pattern.holds(&page, 4, 2));
    }

    #[test]
    fn one_bit_is_enough() {
        let pattern = Pattern::new(7);
        for word in [0, 1, 255, 511] {
            for bit in [0, 31, 63] {
                let mut page = pattern.page(3, 1);
                page.damage(word, bit);
                assert!(!pattern.holds(&page, 3, 1));
            }
        }
    }

    #[test]
    fn pages_lie_on_page_boundaries() {
        assert_eq!(align_of::<Page>() as u64, PAGE_BYTES);
        assert_eq!(size_of::<Page>() as u64, PAGE_BYTES);
    }

    #[test]
    fn no_word_comes_twice() {
        let pattern = Pattern::new(1);
        let mut words: Vec<u64> = (0..64).flat_map(|number| pattern.page(number, 0).0).collect();
        let all = words.len();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), all);
    }
}
