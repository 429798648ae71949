//! The table of a host's migrations: which are known, which cannot be acted on, and what watchers of each see. Answers
//! questions about them; does nothing by itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use godwit_handover::{
    DestinationEvent, DestinationReport, Epoch, Refusal, SourceEvent, SourceReport, Terms,
};
use godwit_protocol::{Category, Fault, Side};
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::guests::Spoken;
use crate::migration::faults;
use crate::migration::role::Message;
use crate::migration::updates::Shown;
use crate::tickets::Attempt;

/// A migration whose journal, or whose guest, cannot be acted on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// The migration's UID, as far as the file's name or its head tells it.
    pub migration: String,
    /// The guest's UID, if it can be known. It is left alone.
    pub guest: Option<String>,
    /// A stable word of the table in `docs/conditions.md`.
    pub reason: String,
    /// For people.
    pub message: String,
}

#[derive(Default)]
pub(super) struct Table {
    known: HashMap<String, Entry>,
    unresolved: HashMap<String, Unresolved>,
    shown: HashMap<String, watch::Sender<Shown>>,
}

pub(super) struct Entry {
    pub(super) terms: Terms,
    pub(super) orders: Orders,
    /// Set once the migration has ended here.
    pub(super) over: Arc<AtomicBool>,
    /// The source's, for a repeated Begin.
    pub(super) definition: Option<Vec<u8>>,
    /// Ends with the entry: a migration lives as long as the agent does.
    pub(super) _task: AbortOnDropHandle<()>,
}

/// Where a migration's orders go.
#[derive(Clone)]
pub(super) enum Orders {
    Source(mpsc::UnboundedSender<Message<SourceEvent>>),
    Destination(mpsc::UnboundedSender<Message<DestinationEvent>>),
}

/// Which migration holds a guest that another one wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Busy {
    Active(String),
    Unresolved(Unresolved),
}

impl Entry {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

impl Unresolved {
    fn fault(&self) -> Fault {
        Fault::new(Category::Unavailable, self.reason.clone(), self.message.clone())
    }
}

impl Busy {
    /// What that says to whoever wants to forget the guest.
    pub(super) fn spoken(self) -> Spoken {
        match self {
            Self::Active(_) => Spoken::Unended,
            Self::Unresolved(unresolved) => match unresolved.reason.as_str() {
                "JournalNewer" => Spoken::Unread {
                    newer: true,
                    message: unresolved.message,
                },
                "JournalDamaged" => Spoken::Unread {
                    newer: false,
                    message: unresolved.message,
                },
                // It is asked again, and its migration protects it meanwhile.
                _ => Spoken::Unended,
            },
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Active(migration) => faults::another(migration),
            Self::Unresolved(unresolved) => unresolved.fault(),
        }
    }
}

impl Table {
    /// Takes a migration on, or up again.
    pub(super) fn know(&mut self, entry: Entry) {
        self.unresolved.remove(&entry.terms.migration);
        self.known.insert(entry.terms.migration.clone(), entry);
    }

    /// Notes that a migration cannot be acted on.
    pub(super) fn leave(&mut self, unresolved: Unresolved) {
        self.unresolved.insert(unresolved.migration.clone(), unresolved);
    }

    /// Forgets one that has ended long ago.
    pub(super) fn forget(&mut self, migration: &str) {
        self.known.remove(migration);
        self.shown.remove(migration);
    }

    /// Where orders about this migration go.
    pub(super) fn find(&self, terms: &Terms) -> Result<Orders, Fault> {
        if let Some(entry) = self.known.get(&terms.migration) {
            return if entry.terms == *terms {
                Ok(entry.orders.clone())
            } else {
                Err(faults::refused(Refusal::OtherTerms))
            };
        }
        match self.unresolved.get(&terms.migration) {
            Some(unresolved) => Err(unresolved.fault()),
            None => Err(faults::unknown(&terms.migration)),
        }
    }

    /// What is known of a migration, ended or not, under whatever terms.
    pub(super) fn known(&self, migration: &str) -> Option<&Entry> {
        self.known.get(migration)
    }

    /// Whether a journal speaks of a migration, readable or not.
    pub(super) fn is_spoken_of(&self, migration: &str) -> bool {
        self.known.contains_key(migration) || self.unresolved.contains_key(migration)
    }

    /// How far a migration has come here.
    pub(super) fn attempt(&self, migration: &str) -> Attempt {
        match self.known.get(migration) {
            Some(entry) if entry.is_over() => Attempt::Ended,
            Some(_) => Attempt::UnderWay,
            None if self.unresolved.contains_key(migration) => Attempt::UnderWay,
            None => Attempt::Unknown,
        }
    }

    /// Those that cannot be acted on.
    pub(super) fn unresolved(&self) -> Vec<Unresolved> {
        self.unresolved.values().cloned().collect()
    }

    /// Why a migration is not followed here until a person has seen to it: its journal cannot be read.
    pub(super) fn unread(&self, migration: &str) -> Option<Fault> {
        let unresolved = self.unresolved.get(migration)?;
        let unread = ["JournalNewer", "JournalDamaged"].contains(&unresolved.reason.as_str());
        // Not for want of the host: whoever watches other migrations over the same connection goes on.
        unread.then(|| {
            Fault::new(
                Category::Conflict,
                unresolved.reason.clone(),
                unresolved.message.clone(),
            )
        })
    }

    /// Whether the last steps of a migration are under way here, which take milliseconds.
    pub(super) fn handing_over(&self) -> bool {
        self.known.values().filter(|entry| !entry.is_over()).any(|entry| {
            let shown = self.shown.get(&entry.terms.migration);
            shown.is_some_and(|shown| {
                let update = shown.borrow();
                let side = update.as_ref().and_then(|update| update.side.as_ref());
                side.is_some_and(hands_over)
            })
        })
    }

    /// Those that have not ended here.
    pub(super) fn active(&self) -> Vec<String> {
        self.uids(|entry| !entry.is_over())
    }

    /// Those that have ended here.
    pub(super) fn ended(&self) -> Vec<String> {
        self.uids(Entry::is_over)
    }

    fn uids(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<String> {
        let wanted = self.known.iter().filter(|(_, entry)| wanted(entry));
        wanted.map(|(migration, _)| migration.clone()).collect()
    }

    /// Those of which this host is the destination, ended ones too.
    pub(super) fn arriving(&self) -> Vec<Terms> {
        let mut arriving = Vec::new();
        for entry in self.known.values() {
            match entry.orders {
                Orders::Destination(_) => arriving.push(entry.terms.clone()),
                Orders::Source(_) => {}
            }
        }
        arriving
    }

    /// Which migration holds a guest.
    pub(super) fn busy(&self, guest: &str) -> Option<Busy> {
        let unresolved = self
            .unresolved
            .values()
            .find(|u| u.guest.as_deref() == Some(guest));
        if let Some(unresolved) = unresolved {
            return Some(Busy::Unresolved(unresolved.clone()));
        }
        let active = self
            .known
            .values()
            .find(|entry| entry.terms.guest == guest && !entry.is_over());
        active.map(|entry| Busy::Active(entry.terms.migration.clone()))
    }

    /// The latest epoch at which a destination has taken the guest from this host, as the ended migrations tell.
    pub(super) fn handed_on(&self, guest: &str) -> Option<Epoch> {
        let released = |migration: &String| {
            let shown = self.shown.get(migration)?.borrow();
            let side = shown.as_ref()?.side.clone()?;
            Some(side == Side::Source(SourceReport::Released))
        };
        let of_guest = self.known.iter().filter(|(_, entry)| entry.terms.guest == guest);
        of_guest
            .filter(|(migration, _)| released(migration).unwrap_or(false))
            .map(|(_, entry)| entry.terms.epoch.saturating_add(1))
            .max()
    }

    /// Whether a migration that is not known can be taken on.
    pub(super) fn check_new(&self, terms: &Terms) -> Result<(), Fault> {
        if let Some(busy) = self.busy(&terms.guest) {
            return Err(busy.fault());
        }
        match self.unresolved.get(&terms.migration) {
            Some(unresolved) => Err(unresolved.fault()),
            None => Ok(()),
        }
    }

    /// Whether a migration of the guest that was decided before this one has still to tidy up here.
    pub(super) fn last_one_is_ending(&self, terms: &Terms) -> bool {
        let mut of_guest = self
            .known
            .values()
            .filter(|entry| entry.terms.guest == terms.guest);
        of_guest.any(|entry| !entry.is_over() && entry.terms.epoch < terms.epoch)
    }

    /// What watchers of a migration see. Those that nobody watches and that are not known are forgotten.
    pub(super) fn shown(&mut self, migration: &str, at_first: Shown) -> watch::Sender<Shown> {
        let (known, unresolved) = (&self.known, &self.unresolved);
        self.shown.retain(|uid, sender| {
            sender.receiver_count() > 0
                || known.contains_key(uid)
                || unresolved.contains_key(uid)
                || uid == migration
        });
        self.shown
            .entry(migration.to_owned())
            .or_insert_with(|| watch::Sender::new(at_first))
            .clone()
    }
}

/// Whether the guest stands still for its handover, as far as this side knows.
fn hands_over(side: &Side) -> bool {
    match side {
        Side::Source(report) => match report {
            SourceReport::Stopped { .. } | SourceReport::Switching { .. } | SourceReport::GoSent(_) => true,
            SourceReport::Begun
            | SourceReport::Streaming
            | SourceReport::InDoubt { .. }
            | SourceReport::Deciding { .. }
            | SourceReport::Yielded
            | SourceReport::Blocked { .. }
            | SourceReport::Released
            | SourceReport::Aborting(_)
            | SourceReport::Aborted(_)
            | SourceReport::Died
            | SourceReport::Lost(_) => false,
        },
        Side::Destination(report) => match report {
            DestinationReport::Loaded | DestinationReport::Starting => true,
            DestinationReport::Preparing
            | DestinationReport::Prepared(_)
            | DestinationReport::Receiving
            | DestinationReport::Blocked
            | DestinationReport::Deciding
            | DestinationReport::Holding { .. }
            | DestinationReport::Reverting(_)
            | DestinationReport::Reverted(_)
            | DestinationReport::Lost(_) => false,
        },
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
    use super::*;
    use godwit_handover::Cause;
    use godwit_protocol::Update;

    fn terms(migration: &str, epoch: u64) -> Terms {
        Terms {
            migration: migration.into(),
            guest: "guest-1".into(),
            epoch,
            source: "a".into(),
            destination: "b".into(),
            strict: false,
        }
    }

    /// A migration whose task does nothing, and what tells that it has ended.
    fn taken_on(table: &mut Table, terms: Terms, at_source: bool) -> Arc<AtomicBool> {
        let over = Arc::new(AtomicBool::new(false));
        table.know(Entry {
            terms,
            orders: if at_source {
                Orders::Source(mpsc::unbounded_channel().0)
            } else {
                Orders::Destination(mpsc::unbounded_channel().0)
            },
            over: over.clone(),
            definition: None,
            _task: AbortOnDropHandle::new(tokio::spawn(std::future::pending())),
        });
        over
    }

    fn unread(migration: &str, guest: Option<&str>, reason: &str) -> Unresolved {
        Unresolved {
            migration: migration.into(),
            guest: guest.map(str::to_owned),
            reason: reason.into(),
            message: "why".into(),
        }
    }

    fn reason<T>(outcome: Result<T, Fault>) -> String {
        match outcome {
            Ok(_) => String::new(),
            Err(fault) => fault.reason.into_owned(),
        }
    }

    #[tokio::test]
    async fn a_guest_is_free_once_its_migration_has_ended_and_not_before() {
        let mut table = Table::default();
        assert_eq!(table.attempt("m-1"), Attempt::Unknown);
        let over = taken_on(&mut table, terms("m-1", 3), true);
        assert_eq!(table.attempt("m-1"), Attempt::UnderWay);
        assert_eq!(table.busy("guest-1"), Some(Busy::Active("m-1".into())));
        assert_eq!(table.busy("guest-2"), None);
        let next = terms("m-2", 4);
        assert_eq!(reason(table.check_new(&next)), "AnotherMigrationActive");
        // Only one that was decided before is waited for.
        assert!(table.last_one_is_ending(&next));
        assert!(!table.last_one_is_ending(&terms("m-2", 3)));
        assert_eq!((table.active(), table.ended()), (vec!["m-1".into()], vec![]));
        over.store(true, Ordering::Release);
        assert_eq!(table.attempt("m-1"), Attempt::Ended);
        assert!(table.check_new(&next).is_ok() && !table.last_one_is_ending(&next));
        assert_eq!((table.active(), table.ended()), (vec![], vec!["m-1".into()]));
        table.forget("m-1");
        assert_eq!(table.attempt("m-1"), Attempt::Unknown);
    }

    #[tokio::test]
    async fn it_is_known_at_which_epoch_a_guest_was_handed_on() {
        let mut table = Table::default();
        let shows = |table: &mut Table, migration: &str, report| {
            let update = Update {
                side: Some(Side::Source(report)),
                ..Update::default()
            };
            table.shown(migration, None).send_replace(Some(update));
        };
        taken_on(&mut table, terms("m-1", 3), true);
        assert_eq!(table.handed_on("guest-1"), None);
        shows(&mut table, "m-1", SourceReport::Released);
        assert_eq!(table.handed_on("guest-1"), Some(4));
        assert_eq!(table.handed_on("guest-2"), None);
        // One that came to nothing.
        taken_on(&mut table, terms("m-2", 5), true);
        shows(&mut table, "m-2", SourceReport::Aborted(Cause::Cancelled));
        assert_eq!(table.handed_on("guest-1"), Some(4));
    }

    #[tokio::test]
    async fn orders_find_their_migration_under_its_own_terms_only() {
        let mut table = Table::default();
        taken_on(&mut table, terms("m-1", 3), true);
        taken_on(&mut table, terms("m-2", 3), false);
        assert!(matches!(table.find(&terms("m-1", 3)), Ok(Orders::Source(_))));
        assert_eq!(reason(table.find(&terms("m-1", 4))), "OtherTerms");
        assert_eq!(reason(table.find(&terms("m-3", 3))), "MigrationUnknown");
        assert_eq!(table.arriving(), [terms("m-2", 3)]);
    }

    #[tokio::test]
    async fn what_cannot_be_read_holds_its_guest_until_it_is_taken_up() {
        let mut table = Table::default();
        table.leave(unread("m-1", Some("guest-1"), "HypervisorUnresponsive"));
        table.leave(unread("m-9", None, "JournalDamaged"));
        for blocked in [terms("m-1", 3), terms("m-2", 3)] {
            assert_eq!(reason(table.check_new(&blocked)), "HypervisorUnresponsive");
        }
        // Whose it is cannot be read, so it holds no guest; it is not begun anew itself.
        let of_another = |migration: &str| Terms {
            guest: "guest-2".into(),
            ..terms(migration, 3)
        };
        assert!(table.check_new(&of_another("m-3")).is_ok());
        assert_eq!(reason(table.check_new(&of_another("m-9"))), "JournalDamaged");
        assert_eq!(reason(table.find(&terms("m-1", 3))), "HypervisorUnresponsive");
        assert!(table.is_spoken_of("m-1") && table.attempt("m-1") == Attempt::UnderWay);
        taken_on(&mut table, terms("m-1", 3), true);
        assert!(table.find(&terms("m-1", 3)).is_ok());
        assert_eq!(table.unresolved(), [unread("m-9", None, "JournalDamaged")]);
        let told = table.unread("m-9").unwrap();
        assert_eq!(
            (told.category, told.reason.as_ref()),
            (Category::Conflict, "JournalDamaged")
        );
        assert_eq!(table.unread("m-1"), None, "one that is followed");
    }

    #[test]
    fn a_guest_is_not_forgotten_on_the_word_of_a_journal_that_nobody_can_read() {
        let spoken = |reason: &str| Busy::Unresolved(unread("m", Some("g"), reason)).spoken();
        let message = || "why".to_owned();
        assert_eq!(Busy::Active("m".into()).spoken(), Spoken::Unended);
        assert_eq!(spoken("ProcessGone"), Spoken::Unended);
        let (newer, damaged) = (spoken("JournalNewer"), spoken("JournalDamaged"));
        assert_eq!(
            newer,
            Spoken::Unread {
                newer: true,
                message: message()
            }
        );
        assert_eq!(
            damaged,
            Spoken::Unread {
                newer: false,
                message: message()
            }
        );
    }

    #[test]
    fn watchers_are_kept_as_long_as_they_watch_or_the_migration_is_known() {
        let mut table = Table::default();
        let watched = table.shown("m-1", None).subscribe();
        table.leave(unread("m-2", None, "JournalDamaged"));
        drop(table.shown("m-2", None));
        drop(table.shown("m-3", None));
        let kept = |table: &Table| {
            let mut kept: Vec<_> = table.shown.keys().cloned().collect();
            kept.sort();
            kept
        };
        assert_eq!(kept(&table), ["m-1", "m-2", "m-3"]);
        drop(table.shown("m-2", None));
        assert_eq!(kept(&table), ["m-1", "m-2"]);
        drop(watched);
        drop(table.shown("m-2", None));
        assert_eq!(kept(&table), ["m-2"]);
    }
}
