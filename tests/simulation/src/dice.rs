//! Chance from a seed.

use std::sync::Mutex;

use crate::clock;

/// Dice that fall alike for the same seed.
pub struct Dice(Mutex<u64>);

impl Dice {
    /// The dice of a seed.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(seed ^ 0x5DEE_CE66_D1CE_4E5B))
    }

    fn roll(&self) -> u64 {
        let mut state = self.0.lock().unwrap();
        let number;
        (*state, number) = clock::next(*state);
        number
    }

    /// A number from `low` up to `high`, both included.
    pub fn within(&self, low: u64, high: u64) -> u64 {
        low + self.roll() % (high - low + 1)
    }

    /// Whether something of that many per cent comes to pass.
    pub fn percent(&self, chance: u64) -> bool {
        self.within(1, 100) <= chance
    }

    /// One of these.
    pub fn one<T: Copy>(&self, of: &[T]) -> T {
        let index = usize::try_from(self.roll() % of.len() as u64).unwrap();
        of[index]
    }

    /// A UID as the API server makes them.
    pub fn uid(&self) -> String {
        let (high, low) = (self.roll(), self.roll());
        format!(
            "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
            high >> 32,
            high >> 16 & 0xFFFF,
            high & 0xFFF,
            low >> 52,
            low & 0xFFFF_FFFF_FFFF
        )
    }
}
