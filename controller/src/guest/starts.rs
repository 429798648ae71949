//! What this process remembers about guests between two looks: answers to start orders, since when a guest is
//! missing from its host's report, and which memory was promised. All of it may be forgotten: the hosts know.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::decide::Answer;

/// What is remembered, by the guests' UIDs.
#[derive(Default)]
pub struct Starts {
    guests: Mutex<HashMap<String, Memory>>,
}

#[derive(Default)]
struct Memory {
    answer: Option<(u64, Answer)>,
    failures: u32,
    again_at: Option<Instant>,
    missing_since: Option<Instant>,
    open_since: Option<Instant>,
    promised: Option<(String, u64)>,
}

impl Starts {
    fn guests(&self) -> MutexGuard<'_, HashMap<String, Memory>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the holder answered to the order to start under that epoch.
    pub fn answer(&self, guest: &str, epoch: u64) -> Option<Answer> {
        let guests = self.guests();
        let (of, answer) = guests.get(guest)?.answer.as_ref()?;
        (*of == epoch).then(|| answer.clone())
    }

    /// Notes an answer. Gives how often in a row the order has failed.
    pub fn answered(&self, guest: &str, epoch: u64, answer: Answer) -> u32 {
        let mut guests = self.guests();
        let memory = guests.entry(guest.into()).or_default();
        memory.failures = match answer {
            Answer::State(..) => 0,
            Answer::Fault(_) => memory.failures.saturating_add(1),
        };
        memory.answer = Some((epoch, answer));
        memory.failures
    }

    /// The order is to be given again after `pause`, whatever happens before.
    pub fn pause(&self, guest: &str, pause: Duration) {
        self.guests().entry(guest.into()).or_default().again_at = Instant::now().checked_add(pause);
    }

    /// How long the next order still has to wait; `None` if it may be given.
    pub fn paused_for(&self, guest: &str) -> Option<Duration> {
        let again_at = self.guests().get(guest)?.again_at?;
        again_at
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
    }

    /// For how long the guest has been missing from its host's report.
    pub fn missing_for(&self, guest: &str) -> Duration {
        self.guests()
            .get(guest)
            .and_then(|memory| memory.missing_since)
            .map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Notes whether the guest is missing from its host's report.
    pub fn missing(&self, guest: &str, missing: bool) {
        let mut guests = self.guests();
        if missing {
            guests
                .entry(guest.into())
                .or_default()
                .missing_since
                .get_or_insert_with(Instant::now);
        } else if let Some(memory) = guests.get_mut(guest) {
            memory.missing_since = None;
        }
    }

    /// For how long the guest's record has been open, with no migration at work.
    pub fn open_for(&self, guest: &str) -> Duration {
        self.guests()
            .get(guest)
            .and_then(|memory| memory.open_since)
            .map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Notes whether the guest's record is open, with no migration at work.
    pub fn open(&self, guest: &str, open: bool) {
        let mut guests = self.guests();
        if open {
            guests
                .entry(guest.into())
                .or_default()
                .open_since
                .get_or_insert_with(Instant::now);
        } else if let Some(memory) = guests.get_mut(guest) {
            memory.open_since = None;
        }
    }

    /// Judges and promises in one step, so that no two guests are promised the same memory: `choose` is given what
    /// is promised by host, and says which host is to give `bytes`. It must not ask here for anything else: the table is
    /// locked meanwhile.
    pub fn promise<T>(
        &self,
        guest: &str,
        bytes: u64,
        choose: impl FnOnce(&BTreeMap<String, u64>) -> (T, Option<String>),
    ) -> T {
        let mut guests = self.guests();
        let mut promised = BTreeMap::new();
        for (host, bytes) in guests
            .iter()
            .filter(|(uid, _)| *uid != guest)
            .filter_map(|(_, m)| m.promised.as_ref())
        {
            let sum: &mut u64 = promised.entry(host.clone()).or_default();
            *sum = sum.saturating_add(*bytes);
        }
        let (chosen, host) = choose(&promised);
        if let Some(host) = host {
            guests.entry(guest.into()).or_default().promised = Some((host, bytes));
        }
        chosen
    }

    /// The host shows the guest: its memory is in the host's own figures now.
    pub fn shown(&self, guest: &str) {
        if let Some(memory) = self.guests().get_mut(guest) {
            memory.promised = None;
        }
    }

    /// The guest is gone.
    pub fn forget(&self, guest: &str) {
        self.guests().remove(guest);
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use godwit_crds::virtual_machine::GuestState;
    use godwit_protocol::{Category, Fault};

    use super::*;

    #[test]
    fn answers_belong_to_an_epoch_and_failures_are_counted() {
        let starts = Starts::default();
        let fault = Answer::Fault(Fault::new(Category::Lacking, "FileMissing", "x"));
        assert_eq!(starts.answered("g", 1, fault.clone()), 1);
        assert_eq!(starts.answered("g", 1, fault.clone()), 2);
        assert_eq!(starts.answer("g", 1), Some(fault));
        assert_eq!(starts.answer("g", 2), None);
        assert_eq!(
            starts.answered("g", 1, Answer::State(GuestState::Running, None)),
            0
        );
        starts.forget("g");
        assert_eq!(starts.answer("g", 1), None);
    }

    #[test]
    fn a_pause_ends() {
        let starts = Starts::default();
        assert_eq!(starts.paused_for("g"), None);
        starts.pause("g", Duration::from_secs(60));
        assert!(starts.paused_for("g").is_some());
        starts.pause("g", Duration::ZERO);
        assert_eq!(starts.paused_for("g"), None);
    }

    #[test]
    fn a_promise_counts_for_others_until_the_guest_shows() {
        let starts = Starts::default();
        starts.promise("g", 10, |_| ((), Some("a".into())));
        let seen = |guest: &str| starts.promise(guest, 0, |promised| (promised.get("a").copied(), None));
        assert_eq!(seen("other"), Some(10));
        assert_eq!(seen("g"), None);
        starts.shown("g");
        assert_eq!(seen("other"), None);
    }

    #[test]
    fn missing_is_measured_from_the_first_time() {
        let starts = Starts::default();
        assert_eq!(starts.missing_for("g"), Duration::ZERO);
        starts.missing("g", true);
        let first = starts.guests().get("g").unwrap().missing_since;
        starts.missing("g", true);
        assert_eq!(starts.guests().get("g").unwrap().missing_since, first);
        starts.missing("g", false);
        assert_eq!(starts.missing_for("g"), Duration::ZERO);
    }
}
