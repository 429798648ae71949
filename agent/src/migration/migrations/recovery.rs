//! After a restart: takes every migration up again that a journal speaks of, notes why where it cannot, and gives up
//! processes of which no journal speaks where nothing is lost with them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use godwit_handover::{
    Destination, DestinationEntry, DestinationFacts, Gates, Source, SourceEntry, SourceFacts, Step,
    StreamFact, Terms,
};
use godwit_protocol::{Category, Fault};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::Inner;
use super::table::{Orders, Unresolved};
use crate::guests::{GuestError, Held, Role as Standing};
use crate::hypervisor::{HypervisorError, RunState};
use crate::migration::asking;
use crate::migration::destination::{self, DestinationStart};
use crate::migration::faults;
use crate::migration::journal::{self, Head, Journal, JournalError, Reopened, Role};
use crate::migration::observation;
use crate::migration::source::{self, SourceStart};
use crate::state::disk_reason;

impl Inner {
    /// Takes a migration up again, or notes why not; what may change by itself is tried again.
    pub(super) async fn take_up(self: Arc<Self>, path: PathBuf) {
        let Some(unresolved) = self.try_take_up(&path).await else {
            return;
        };
        tracing::warn!(
            migration = %unresolved.what.migration,
            reason = %unresolved.what.reason,
            "a migration is not taken up: {}",
            unresolved.what.message
        );
        {
            let mut table = self.table();
            // Nothing is known yet, which is not the same as knowing nothing.
            table.shown(&unresolved.what.migration, None);
            table.leave(unresolved.what);
        }
        if !unresolved.again {
            return;
        }
        let weak = Arc::downgrade(&self);
        tokio::spawn(async move {
            let mut pause = Duration::from_millis(100);
            loop {
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(2));
                let Some(inner) = weak.upgrade() else { return };
                match inner.try_take_up(&path).await {
                    None => return,
                    Some(left) => {
                        let again = left.again;
                        inner.table().leave(left.what);
                        if !again {
                            return;
                        }
                    }
                }
            }
        });
    }

    /// `None` once the migration is taken up.
    async fn try_take_up(self: &Arc<Self>, path: &Path) -> Option<Left> {
        let outcome = match journal::head(path) {
            Ok(head) => match head.role {
                Role::Source => match journal::reopen::<SourceEntry>(path) {
                    Ok(reopened) => self.take_up_source(reopened).await,
                    Err(error) => Err(Left::by_journal(path, &error)),
                },
                Role::Destination => match journal::reopen::<DestinationEntry>(path) {
                    Ok(reopened) => self.take_up_destination(reopened).await,
                    Err(error) => Err(Left::by_journal(path, &error)),
                },
            },
            Err(error) => Err(Left::by_journal(path, &error)),
        };
        outcome.err()
    }

    async fn take_up_source(self: &Arc<Self>, reopened: Reopened<SourceEntry>) -> Result<(), Left> {
        let Reopened {
            head,
            entries,
            ended,
            journal,
        } = reopened;
        // A journal without a line: the migration was never answered for.
        let Some(SourceEntry::Begun { terms, .. }) = entries.first().cloned() else {
            return self.forget_unbegun(&head, entries.is_empty());
        };
        let last = entries.last();
        let at_rest = ended || is_at_rest(last);
        let (guest, definition, facts) = if at_rest {
            (None, None, SourceFacts::Gone)
        } else {
            let handed_over = entries.iter().any(|e| matches!(e, SourceEntry::GoSent(_)));
            let held = match self.custody.find_leaving(&terms).await {
                Ok(held) => held,
                // Forgotten after it was let go of.
                Err(GuestError::NotHere { .. }) if handed_over => None,
                // It was let go of, and has come back since.
                Err(GuestError::StaleEpoch { .. }) if last == Some(&SourceEntry::Released) => None,
                // The same where the journal could not be told, if that is what the record says.
                Err(GuestError::NotHere { .. } | GuestError::StaleEpoch { .. })
                    if asking::read(&*self.records, &terms.guest)
                        .await
                        .is_some_and(|record| record.is_past(&terms)) =>
                {
                    None
                }
                Err(error) => return Err(Left::by_guest(&head, &error)),
            };
            match held {
                None => (None, None, SourceFacts::Gone),
                Some(held) => {
                    let (running, stream) = look(&held).await.map_err(|e| Left::by_guest(&head, &e))?;
                    let definition = held.definition.json().to_vec();
                    (
                        Some(held.guest),
                        Some(definition),
                        SourceFacts::Alive { running, stream },
                    )
                }
            }
        };
        let gates = self.gates_for(&head)?;
        let (machine, first) = Source::recover(&entries, gates, facts)
            .ok_or_else(|| Left::by_meaning(&head, "its lines contradict each other"))?;
        tracing::info!(migration = %terms.migration, report = ?machine.report(), ended, "the source's side is taken up again");
        let (orders, mailbox) = mpsc::unbounded_channel();
        let over = Arc::new(AtomicBool::new(ended));
        let start = SourceStart {
            machine,
            first: if ended { nothing() } else { first },
            stream: head.stream,
            tunnel: self.tunnel(head.stream),
            cable: self.cable(head.stream),
            rim: self.rim.clone(),
            guest,
            custody: self.custody.clone(),
            records: self.records.clone(),
            journal: (!ended).then_some(journal),
            publisher: self.publisher(&terms),
            mailbox,
            recovered: true,
            over: over.clone(),
            begun: None,
        };
        let task = tokio::spawn(source::run(start));
        self.know(&terms, Orders::Source(orders), over, definition, task);
        Ok(())
    }

    async fn take_up_destination(self: &Arc<Self>, reopened: Reopened<DestinationEntry>) -> Result<(), Left> {
        let Reopened {
            head,
            entries,
            ended,
            journal,
        } = reopened;
        let Some(DestinationEntry::Prepared { terms }) = entries.first().cloned() else {
            return self.forget_unbegun(&head, entries.is_empty());
        };
        let (guest, facts) = if ended {
            // What became of the guest since is not this migration's business.
            (
                None,
                DestinationFacts::Alive {
                    running: true,
                    stream: StreamFact::Completed,
                },
            )
        } else {
            match self.custody.find_arriving(&terms).await {
                Ok(None) => (None, DestinationFacts::Gone),
                // It has come by another migration since, under the same epoch: by this one it was never let run. The
                // journal was not told the end of an attempt whose disk failed.
                Ok(Some(held)) if held.role == Standing::Held && !entries.iter().any(may_have_run) => {
                    (None, DestinationFacts::Gone)
                }
                Ok(Some(held)) => {
                    let (running, stream) = look(&held).await.map_err(|e| Left::by_guest(&head, &e))?;
                    (Some(held.guest), DestinationFacts::Alive { running, stream })
                }
                Err(error) => return Err(Left::by_guest(&head, &error)),
            }
        };
        let gates = self.gates_for(&head)?;
        let (machine, first) = Destination::recover(&entries, gates, facts)
            .ok_or_else(|| Left::by_meaning(&head, "its lines contradict each other"))?;
        tracing::info!(migration = %terms.migration, report = ?machine.report(), ended, "the destination's side is taken up again");
        let (orders, mailbox) = mpsc::unbounded_channel();
        let over = Arc::new(AtomicBool::new(ended));
        let start = DestinationStart {
            machine,
            first: if ended { nothing() } else { first },
            arrival: None,
            tunnel: self.tunnel(head.stream),
            cable: self.cable(head.stream),
            rim: self.rim.clone(),
            guest,
            custody: self.custody.clone(),
            records: self.records.clone(),
            journal: (!ended).then_some(journal),
            publisher: self.publisher(&terms),
            mailbox,
            recovered: true,
            over: over.clone(),
        };
        let task = tokio::spawn(destination::run(start));
        self.know(&terms, Orders::Destination(orders), over, None, task);
        Ok(())
    }

    /// What the hypervisor can hold back, which a machine is rebuilt with.
    fn gates_for(&self, head: &Head) -> Result<Gates, Left> {
        let gates = self.custody.gates();
        gates.ok_or_else(|| Left::by_fault(head, &faults::no_hypervisor(), true))
    }

    /// A journal whose first line was never answered for: nothing was promised and nothing begun.
    fn forget_unbegun(&self, head: &Head, empty: bool) -> Result<(), Left> {
        if !empty {
            return Err(Left::by_meaning(head, "it does not begin with a beginning"));
        }
        journal::remove(&Journal::path_of(&self.journals, &head.migration)).map_err(|error| {
            let fault = Fault::new(
                Category::Unavailable,
                disk_reason(&error),
                format!("Removing a journal: {error}"),
            );
            Left::by_fault(head, &fault, true)
        })
    }

    /// Processes that wait for a guest under a migration of which no journal speaks. One that has not got its guest
    /// whole is given up: nothing is lost with it. One that has is left alone: that a journal is missing is no
    /// evidence against what may be the only copy.
    pub(super) async fn discard_unspoken(&self) {
        for terms in self.custody.arriving() {
            if self.table().is_spoken_of(&terms.migration) {
                continue;
            }
            let Err(error) = self.discard_incomplete(&terms).await else {
                continue;
            };
            tracing::warn!(guest = %terms.guest, %error, "a process that no journal speaks of is left");
            let unresolved = Unresolved {
                migration: terms.migration.clone(),
                guest: Some(terms.guest.clone()),
                reason: "JournalDamaged".into(),
                message: format!("The journal of migration {} is missing: {error}", terms.migration),
            };
            let mut table = self.table();
            table.shown(&terms.migration, None);
            table.leave(unresolved);
        }
    }

    async fn discard_incomplete(&self, terms: &Terms) -> Result<(), GuestError> {
        if let Some(held) = self.custody.find_arriving(terms).await? {
            let (running, stream) = look(&held).await?;
            if running || may_be_whole(stream) {
                return Err(GuestError::Conflict(format!(
                    "this host may have the only copy of guest {}",
                    terms.guest
                )));
            }
        }
        self.custody.discard_incoming(terms).await
    }
}

/// Why a migration was not taken up.
struct Left {
    what: Unresolved,
    /// Whether it may change by itself.
    again: bool,
}

impl Left {
    fn by_journal(path: &Path, error: &JournalError) -> Self {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let head = match error {
            JournalError::Newer { head, .. } => Some(head),
            JournalError::Damaged { head, .. } => head.as_ref(),
            JournalError::Foreign { .. }
            | JournalError::DiskFull { .. }
            | JournalError::Broken { .. }
            | JournalError::Full { .. }
            | JournalError::System { .. } => None,
        };
        let what = Unresolved {
            migration: name.strip_suffix(journal::SUFFIX).unwrap_or(name).to_owned(),
            guest: head.map(|head| head.guest.clone()),
            reason: faults::journal_reason(error).to_owned(),
            message: error.to_string(),
        };
        Self {
            what,
            again: matches!(error, JournalError::System { .. }),
        }
    }

    fn by_fault(head: &Head, fault: &Fault, again: bool) -> Self {
        let what = Unresolved {
            migration: head.migration.clone(),
            guest: Some(head.guest.clone()),
            reason: fault.reason.clone().into_owned(),
            message: fault.message.clone(),
        };
        Self { what, again }
    }

    /// Its lines are whole and mean nothing together.
    fn by_meaning(head: &Head, why: &str) -> Self {
        let message = format!("The migration's journal is damaged: {why}");
        let fault = Fault::new(Category::Unavailable, "JournalDamaged", message);
        Self::by_fault(head, &fault, false)
    }

    fn by_guest(head: &Head, error: &GuestError) -> Self {
        let fault = Fault::new(Category::Unavailable, error.reason(), error.to_string());
        Self::by_fault(head, &fault, true)
    }
}

/// Whether a source's last line leaves nothing to be done with the guest.
fn is_at_rest(last: Option<&SourceEntry>) -> bool {
    matches!(last, Some(SourceEntry::Aborted { .. } | SourceEntry::Lost { .. }))
}

/// Whether a destination may have let its guest run, or have taken it over, once it had written this: both are written
/// down before they are done.
fn may_have_run(entry: &DestinationEntry) -> bool {
    match entry {
        DestinationEntry::ContIssued(_) | DestinationEntry::TakenOver(_) => true,
        DestinationEntry::Prepared { .. }
        | DestinationEntry::CommitIntent(_)
        | DestinationEntry::ContRefused
        | DestinationEntry::RevertIntent { .. }
        | DestinationEntry::Reverted { .. } => false,
    }
}

/// Whether a process may have got its guest whole by its stream.
fn may_be_whole(stream: StreamFact) -> bool {
    match stream {
        StreamFact::None | StreamFact::Active | StreamFact::Failed | StreamFact::Cancelled => false,
        StreamFact::BeforeSwitchover | StreamFact::SwitchingOver | StreamFact::Completed => true,
    }
}

async fn look(held: &Held) -> Result<(bool, StreamFact), GuestError> {
    let ask = async {
        let status = held.guest.stream().await?;
        Ok((
            held.guest.run_state().await? == RunState::Running,
            observation::fact(status.state),
        ))
    };
    ask.await
        .map_err(|error: HypervisorError| GuestError::Hypervisor(error))
}

fn nothing<E>() -> Step<E> {
    Step {
        effects: Vec::new(),
        refusal: None,
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
    use godwit_protocol::StreamOptions;

    fn a_head() -> Box<Head> {
        Box::new(Head {
            migration: "m-1".into(),
            guest: "guest-1".into(),
            role: Role::Source,
            boot_id: "boot".into(),
            stream: StreamOptions::PLAIN,
        })
    }

    #[test]
    fn what_is_left_names_its_migration_and_its_guest_as_far_as_they_are_known() {
        let path = Path::new("/journals/m-1.journal");
        let damaged = |head| JournalError::Damaged {
            path: path.into(),
            why: "rubbish".into(),
            head,
        };
        let newer = JournalError::Newer {
            path: path.into(),
            format: 7,
            head: a_head(),
        };
        let unread = JournalError::System {
            action: "read",
            path: path.into(),
            source: std::io::ErrorKind::Interrupted.into(),
        };
        let known = Some("guest-1");
        for (error, guest, reason, again) in [
            (newer, known, "JournalNewer", false),
            (damaged(Some(a_head())), known, "JournalDamaged", false),
            (damaged(None), None, "JournalDamaged", false),
            (
                JournalError::Foreign { path: path.into() },
                None,
                "JournalDamaged",
                false,
            ),
            // It may be read the next time.
            (unread, None, "DiskFailed", true),
        ] {
            let left = Left::by_journal(path, &error);
            assert_eq!(left.what.migration, "m-1", "{error}");
            assert_eq!(left.what.guest.as_deref(), guest, "{error}");
            assert_eq!((left.what.reason.as_str(), left.again), (reason, again));
            assert_eq!(left.what.message, error.to_string());
        }
    }

    #[test]
    fn what_may_be_the_only_copy_is_not_given_up() {
        use StreamFact as S;
        for gone in [S::None, S::Active, S::Failed, S::Cancelled] {
            assert!(!may_be_whole(gone), "{gone:?}");
        }
        for whole in [S::BeforeSwitchover, S::SwitchingOver, S::Completed] {
            assert!(may_be_whole(whole), "{whole:?}");
        }
    }
}
