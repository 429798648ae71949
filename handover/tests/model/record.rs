//! The guest's record: an object at an API server, changed as production changes it ([`crate::record_change`]), and an
//! eye on every change.

use godwit_handover::{Decision, RecordView, Terms};

use crate::guest_record::{Decision as Written, GuestRecordSpec, GuestReference};
use crate::record_change::{self, Attempt, Change, Word};
use crate::shared::Shared;

/// The migration that comes after the one of the model.
const NEXT: &str = "n";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record(GuestRecordSpec);

/// What somebody wants to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Arm,
    Advance,
    Decide(Decision),
    Start,
}

/// How a write is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// By compare-and-swap: what is written follows from what is there.
    Swap,
    /// Mutant: what is written follows from what was read once.
    Patch,
    /// Mutant: whose migration the record is armed for is not looked at.
    AnyMigration,
}

/// What became of it.
pub enum Outcome {
    /// The writer takes it to be there already.
    Already,
    Refused,
    Written {
        record: Shared<Record>,
        /// The change is none that the record's rules allow.
        against_rules: bool,
    },
}

fn attempt(terms: &Terms) -> Attempt {
    Attempt {
        migration: terms.migration.clone(),
        epoch: terms.epoch,
        source: terms.source.clone(),
        destination: terms.destination.clone(),
        strict: terms.strict,
    }
}

impl Record {
    /// Of a guest that was never moved.
    pub fn first(host: &str) -> Self {
        let nobody = GuestReference {
            namespace: String::new(),
            name: String::new(),
            uid: String::new(),
            definition: String::new(),
        };
        let mut record = Self(record_change::first(nobody, host));
        record.forget_words();
        record
    }

    /// Who wrote, and why in words, decides nothing.
    fn forget_words(&mut self) {
        self.0.writer = String::new();
        self.0.evidence = String::new();
    }

    /// The record in the words of the handover.
    pub fn view(&self) -> RecordView {
        RecordView {
            holder: self.0.holder.clone(),
            epoch: u64::try_from(self.0.epoch).unwrap_or(0),
            migration: self.0.migration.as_ref().map(|armed| armed.uid.clone()),
            decision: match self.0.decision {
                Written::None => Decision::None,
                Written::Committed => Decision::Committed,
                Written::Aborted => Decision::Aborted,
                Written::Reverted => Decision::Reverted,
            },
            started: self.0.started,
            word: self.0.resolution.as_ref().map(|word| godwit_handover::Word {
                migration: word.migration.clone(),
                fenced: word.fenced.clone(),
                lost: word.lost,
                cold_start: word.cold_start.and_then(|epoch| u64::try_from(epoch).ok()),
            }),
        }
    }

    /// The same record as it was before anything was decided about this migration.
    pub fn before_decision(&self, terms: &Terms) -> Self {
        let mut old = self.clone();
        if self.is_for(terms) {
            old.0.decision = Written::None;
            old.0.holder.clone_from(&terms.source);
            old.0.epoch = i64::try_from(terms.epoch).unwrap_or(0);
        }
        old
    }

    pub fn is_for(&self, terms: &Terms) -> bool {
        self.0
            .migration
            .as_ref()
            .is_some_and(|armed| armed.uid == terms.migration)
    }

    /// Whether the source is the host that may run the guest.
    pub fn names_source(&self) -> bool {
        self.0.holder == crate::world::terms().source
    }

    fn change(&self, wish: Wish, attempt: &Attempt) -> Change {
        match wish {
            Wish::Arm => record_change::arm(&self.0, attempt),
            Wish::Advance => record_change::advance(&self.0, attempt),
            Wish::Start => record_change::start(&self.0, attempt),
            Wish::Decide(decision) => record_change::decide(
                &self.0,
                attempt,
                match decision {
                    Decision::None => Written::None,
                    Decision::Committed => Written::Committed,
                    Decision::Aborted => Written::Aborted,
                    Decision::Reverted => Written::Reverted,
                },
            ),
        }
    }

    /// What follows where a party of the migration writes. `known` is what it has read before.
    pub fn write(&self, terms: &Terms, wish: Wish, manner: Manner, known: Option<&Self>) -> Outcome {
        let mut attempt = attempt(terms);
        if let (Manner::AnyMigration, Some(armed)) = (manner, &self.0.migration) {
            attempt.migration.clone_from(&armed.uid);
        }
        let base = match (manner, known) {
            (Manner::Patch, Some(known)) => known,
            (Manner::Swap | Manner::Patch | Manner::AnyMigration, _) => self,
        };
        let spec = match base.change(wish, &attempt) {
            Change::Already => return Outcome::Already,
            Change::Refuse(_) => return Outcome::Refused,
            Change::Write(spec) => *spec,
        };
        let foreign = self.0.migration.is_some() && !self.is_for(terms) && wish != Wish::Arm;
        let against_rules = foreign || !allowed(&self.0, &spec);
        let mut record = Self(spec);
        record.forget_words();
        Outcome::Written {
            record: Shared::new(record),
            against_rules,
        }
    }

    /// What follows from an administrator's word; `None`: nothing.
    pub fn hear(&self, word: &Word) -> Option<Self> {
        self.written(record_change::take_in(&self.0, word))
    }

    /// The guest is started afresh on a host that has had no part in the migration.
    pub fn start_afresh(&self, word: &Word) -> Option<Self> {
        self.written(record_change::cold_start(&self.0, word, "e"))
    }

    /// Mutant: whether the destination has started its own is not looked at.
    pub fn reverted_whatever_was_started(&self) -> Option<Self> {
        let undecided = matches!(self.0.decision, Written::None | Written::Committed) && self.names_source();
        let mut next = self.clone();
        next.0.decision = Written::Reverted;
        (undecided && self.0.migration.is_some()).then_some(next)
    }

    fn written(&self, change: Change) -> Option<Self> {
        let Change::Write(spec) = change else { return None };
        let mut record = Self(*spec);
        record.forget_words();
        Some(record)
    }

    /// Arms the record for the guest's next migration, away from where it is, if that is allowed.
    pub fn arm_next(&mut self) {
        let attempt = Attempt {
            migration: NEXT.into(),
            epoch: self.view().epoch,
            source: self.0.holder.clone(),
            destination: "e".into(),
            strict: false,
        };
        if let Change::Write(spec) = record_change::arm(&self.0, &attempt) {
            self.0 = *spec;
            self.forget_words();
        }
    }
}

/// The rules that the API server itself keeps: an epoch never shrinks, the holder changes only with it and by
/// Committed, a decision is final, and a new migration comes after the last one's decision.
fn allowed(old: &GuestRecordSpec, new: &GuestRecordSpec) -> bool {
    let moved = old.holder != new.holder;
    let epoch = new.epoch == old.epoch + i64::from(moved);
    let uid = |spec: &GuestRecordSpec| spec.migration.as_ref().map(|armed| armed.uid.clone());
    if uid(old) != uid(new) {
        return epoch && !moved && record_change::settled(old) && new.decision == Written::None;
    }
    let taken_back =
        old.decision == Written::Committed && new.decision == Written::Reverted && old.epoch == new.epoch;
    let decision = old.decision == new.decision || old.decision == Written::None || taken_back;
    let starts = old.started != new.started;
    if starts && !(new.started && old.decision == Written::Committed && !moved) {
        return false;
    }
    epoch && decision && (!moved || new.decision == Written::Committed)
}
