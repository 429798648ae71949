//! The judge: who runs the guest, whose image is the newest, and what must never be.
//!
//! A copy that is let run makes a new image; every other copy's is older from then on. So one rule covers both the source
//! that runs after its destination has, and the destination that runs what the source has since changed: whoever is let run
//! must have the newest image, and nobody else may run.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

/// A process of a hypervisor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    /// On which host.
    pub host: &'static str,
    /// For which migration it came to be; the first one for none.
    pub migration: Option<String>,
    /// Whether it lives.
    pub alive: bool,
    /// Whether its virtual CPUs run.
    pub running: bool,
    /// Which state of the guest it has whole.
    pub image: Option<u64>,
    /// That it is let run was written down, or may have been.
    pub promised: bool,
    /// It is stopped because its guest was deleted.
    pub given_up: bool,
}

#[derive(Default)]
struct State {
    copies: BTreeMap<String, Copy>,
    newest: u64,
    /// The guest has powered off, panicked, or stopped for an error: nobody lets it run again.
    over: bool,
    /// A user has deleted the guest.
    deleted: bool,
    /// An administrator has given the guest's memory up for lost.
    given_up: bool,
    /// The epoch at which the guest is to be started afresh.
    afresh_at: Option<u64>,
    /// A copy that was promised to run has died before it did: nobody can know that any more, and its source is let go.
    undecidable: bool,
    violations: Vec<String>,
}

/// Watches over all copies of one guest.
#[derive(Default)]
pub struct Judge(Mutex<State>);

impl Judge {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Something was wrong.
    pub fn wrong(&self, what: impl Into<String>) {
        self.state().violations.push(what.into());
    }

    /// Everything that was wrong so far.
    pub fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    /// A process has come to be.
    pub fn launched(&self, name: &str, host: &'static str, migration: Option<String>) {
        let mut state = self.state();
        let twice = migration.is_some()
            && state
                .copies
                .values()
                .any(|other| other.alive && other.migration == migration);
        if twice {
            state
                .violations
                .push(format!("I5: {name} is a second process of one migration"));
        }
        let image = migration.is_none().then_some(0);
        let copy = Copy {
            host,
            migration,
            alive: true,
            running: false,
            image,
            promised: false,
            given_up: false,
        };
        state.copies.insert(name.into(), copy);
    }

    /// The guest runs in this process.
    pub fn started(&self, name: &str) {
        let mut state = self.state();
        let others: Vec<_> = state
            .copies
            .iter()
            .filter(|(other, copy)| *other != name && copy.running)
            .map(|(other, _)| other.clone())
            .collect();
        if !others.is_empty() {
            state
                .violations
                .push(format!("I1: {name} runs beside {}", others.join(", ")));
        }
        if state.over {
            let words = format!("{name} runs a guest that has ended");
            state.violations.push(words);
        }
        let newest = state.newest;
        let image = state.copies.get(name).and_then(|copy| copy.image);
        if image != Some(newest) {
            state.violations.push(format!(
                "I3: {name} runs with the image {image:?}, and {newest} is the newest"
            ));
        }
        state.newest += 1;
        state.undecidable = false;
        state.given_up = false;
        let newest = state.newest;
        if let Some(copy) = state.copies.get_mut(name) {
            copy.running = true;
            copy.image = Some(newest);
        }
    }

    /// It stands still there.
    pub fn stopped(&self, name: &str) {
        if let Some(copy) = self.state().copies.get_mut(name) {
            copy.running = false;
        }
    }

    /// The record says by an administrator's word that what a fenced host may have run is lost; and that the guest is started
    /// afresh, if it is.
    pub fn memory_given_up(&self, cold_start: Option<u64>) {
        let mut state = self.state();
        state.given_up = true;
        state.afresh_at = state.afresh_at.max(cold_start);
    }

    /// A process is about to start the guest afresh, under this epoch.
    pub fn starts_afresh(&self, name: &str, epoch: u64) {
        let mut state = self.state();
        if state.afresh_at != Some(epoch) {
            let words = format!("{name} starts the guest afresh at epoch {epoch}, and nobody has said so");
            state.violations.push(words);
        }
        // Whatever there was of the guest's memory is given up by it.
        state.afresh_at = None;
        state.over = false;
        state.undecidable = false;
        state.given_up = false;
        let newest = state.newest;
        if let Some(copy) = state.copies.get_mut(name) {
            copy.image = Some(newest);
        }
    }

    /// The guest has ended by itself.
    pub fn guest_ended(&self) {
        self.state().over = true;
    }

    /// Whether it has.
    pub fn is_over(&self) -> bool {
        self.state().over
    }

    /// A user deletes the guest.
    pub fn guest_deleted(&self) {
        self.state().deleted = true;
    }

    /// Whether somebody has.
    pub fn is_deleted(&self) -> bool {
        self.state().deleted
    }

    /// This process is about to be stopped because its guest was deleted.
    pub fn stopped_for_good(&self, name: &str) {
        let mut state = self.state();
        if !state.deleted {
            let words = format!("{name} is stopped, and nobody has deleted its guest");
            state.violations.push(words);
        }
        if let Some(copy) = state.copies.get_mut(name) {
            copy.given_up = true;
        }
    }

    /// It is being written down on a host that the guest is let run there.
    pub fn promised(&self, host: &str) {
        let mut state = self.state();
        let there = state
            .copies
            .values_mut()
            .filter(|copy| copy.alive && copy.host == host);
        there.for_each(|copy| copy.promised = true);
    }

    /// The image that a process has.
    pub fn image(&self, name: &str) -> Option<u64> {
        self.state().copies.get(name).and_then(|copy| copy.image)
    }

    /// The process has got this image whole.
    pub fn loaded(&self, name: &str, image: Option<u64>) {
        if let Some(copy) = self.state().copies.get_mut(name) {
            copy.image = image;
        }
    }

    /// The process is gone; by one of ours where `by_us`.
    pub fn ended(&self, name: &str, by_us: bool) {
        let mut state = self.state();
        let Some(copy) = state.copies.get_mut(name) else {
            return;
        };
        if !std::mem::replace(&mut copy.alive, false) {
            return;
        }
        let ran = std::mem::replace(&mut copy.running, false);
        let (image, by_us) = (copy.image, by_us && !copy.given_up);
        state.undecidable |= !by_us && copy.promised;
        let newest = state.newest;
        let another = state
            .copies
            .values()
            .any(|other| other.alive && other.image == Some(newest));
        // What is given up for lost stands still.
        let given_up = state.given_up && !ran;
        if by_us && image == Some(newest) && !another && !state.undecidable && !given_up {
            state
                .violations
                .push(format!("I7: {name} had the only valid image and was destroyed"));
        }
    }

    /// The processes that live.
    pub fn alive(&self) -> Vec<(String, Copy)> {
        let state = self.state();
        let alive = state.copies.iter().filter(|(_, copy)| copy.alive);
        alive.map(|(name, copy)| (name.clone(), copy.clone())).collect()
    }

    /// Whether no process has the newest image any more.
    pub fn is_lost(&self) -> bool {
        let state = self.state();
        !state
            .copies
            .values()
            .any(|copy| copy.alive && copy.image == Some(state.newest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest that runs at `a`, and a process at `b` that has got it whole.
    fn two() -> Judge {
        let judge = Judge::default();
        judge.launched("a", "host-a", None);
        judge.started("a");
        judge.launched("b", "host-b", Some("m".into()));
        judge.stopped("a");
        judge.loaded("b", judge.image("a"));
        judge
    }

    #[test]
    fn a_handover_is_right_and_so_is_its_way_back_before_it() {
        let judge = two();
        judge.started("b");
        judge.ended("a", true);
        assert_eq!((judge.violations(), judge.is_lost()), (vec![], false));

        let judge = two();
        judge.started("a");
        judge.ended("b", true);
        assert_eq!((judge.violations(), judge.is_lost()), (vec![], false));
    }

    #[test]
    fn whatever_must_never_be_is_seen() {
        let seen = |wrong: &dyn Fn(&Judge)| {
            let judge = two();
            wrong(&judge);
            let words: Vec<_> = judge
                .violations()
                .iter()
                .map(|words| words[..2].to_owned())
                .collect();
            words
        };
        // Two at once; the second has an old image then, too.
        let both = |judge: &Judge| {
            judge.started("b");
            judge.started("a");
        };
        assert_eq!(seen(&both), ["I1", "I3"]);
        // The source after the destination.
        let after = |judge: &Judge| {
            judge.started("b");
            judge.stopped("b");
            judge.started("a");
        };
        assert_eq!(seen(&after), ["I3"]);
        // The destination with what the source has changed since.
        let stale = |judge: &Judge| {
            judge.started("a");
            judge.stopped("a");
            judge.started("b");
        };
        assert_eq!(seen(&stale), ["I3"]);
        // What was never taken whole.
        let half = |judge: &Judge| {
            judge.loaded("b", None);
            judge.started("b");
        };
        assert_eq!(seen(&half), ["I3"]);
        // The only valid image is destroyed; one that dies by itself is nobody's fault.
        let only = |judge: &Judge| {
            judge.ended("b", false);
            judge.ended("a", true);
        };
        assert_eq!(seen(&only), ["I7"]);
        let dead = |judge: &Judge| {
            judge.guest_ended();
            judge.started("b");
        };
        assert_eq!(seen(&dead), ["b "]);
        let second = |judge: &Judge| judge.launched("c", "host-b", Some("m".into()));
        assert_eq!(seen(&second), ["I5"]);
        // Afresh without an administrator's word, or with one beside the guest that runs.
        let afresh = |judge: &Judge| {
            judge.launched("c", "host-c", None);
            judge.starts_afresh("c", 6);
            judge.started("c");
        };
        assert_eq!(seen(&afresh), ["c "]);
        let beside = |judge: &Judge| {
            judge.started("b");
            judge.memory_given_up(Some(6));
            afresh(judge);
        };
        assert_eq!(seen(&beside), ["I1"]);
        let given_up = |judge: &Judge| {
            judge.memory_given_up(None);
            judge.ended("b", false);
            judge.ended("a", true);
            judge.memory_given_up(Some(6));
            afresh(judge);
        };
        assert_eq!(seen(&given_up), [""; 0]);
        let judge = two();
        judge.ended("a", false);
        judge.ended("b", false);
        assert_eq!((judge.violations(), judge.is_lost()), (vec![], true));
    }
}
