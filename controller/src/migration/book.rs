//! A migration's status, kept as one keeps a book: each thing that happens is entered once, with its time, and what
//! was entered stays. All of it is plain data, so that a restarted controller goes on from what it finds.

use std::time::Duration;

use godwit_crds::condition::{find_condition, set_condition};
use godwit_crds::migration::{Downtime, Failure, MigrationPhase};
use godwit_crds::{Condition, ConditionStatus, VirtualMachineMigrationStatus};
use godwit_handover::{Phase, Terms};
use godwit_protocol::Progress as Figures;
use jiff::Timestamp;

use super::progress;
use super::timeline;
use crate::reason::MigrationReason as Reason;
use crate::time::rfc3339;

/// The longest message of a condition or failure, in bytes, as the schema bounds it.
const LONGEST_MESSAGE: usize = 2048;

/// A status, with the generation that it is judged on.
#[derive(Clone, Debug, PartialEq)]
pub struct Book {
    /// The status as it is to be written.
    pub status: VirtualMachineMigrationStatus,
    generation: i64,
}

/// Why it ended without the guest having moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The word of the table.
    pub reason: Reason,
    /// What happened and what to do.
    pub message: String,
}

impl Book {
    /// Goes on from what the object's status says.
    pub fn open(status: Option<VirtualMachineMigrationStatus>, generation: Option<i64>) -> Self {
        let mut book = Self {
            status: status.unwrap_or_default(),
            generation: generation.unwrap_or(0),
        };
        book.status.observed_generation = Some(book.generation);
        book
    }

    /// The object has a new generation.
    pub fn observe(&mut self, generation: Option<i64>) {
        self.generation = generation.unwrap_or(self.generation);
        self.status.observed_generation = Some(self.generation);
    }

    /// The request fits: the phases begin.
    pub fn accept(&mut self, terms: &Terms, now: Timestamp) {
        self.status.source = Some(terms.source.clone());
        self.status.destination = Some(terms.destination.clone());
        self.status.virtual_machine_uid = Some(terms.guest.clone());
        self.status.epoch = i64::try_from(terms.epoch).ok();
        let fits = format!(
            "Guest and hosts fit: {} is to go from {} to {}.",
            terms.guest, terms.source, terms.destination
        );
        self.condition("Accepted", ConditionStatus::True, Reason::Accepted, &fits, now);
        self.goes_on(false, now);
        self.decided(now);
        self.enter(Phase::Begin, now);
    }

    /// How it goes on, until it has ended: held back as long as the source has no proof of the path.
    pub fn goes_on(&mut self, held_back: bool, now: Timestamp) {
        let ended = |type_| {
            find_condition(&self.status.conditions, type_)
                .is_some_and(|condition| condition.status != ConditionStatus::Unknown)
        };
        if ended("Succeeded") || ended("Failed") {
            return;
        }
        let (reason, message) = if held_back {
            (
                Reason::HeldBack,
                "There is no recent proof that both agents and the API server are reached: memory travels slowly and the guest is not stopped. Check the agents and the network between them.",
            )
        } else {
            (Reason::InProgress, "The migration goes on.")
        };
        for type_ in ["Succeeded", "Failed"] {
            self.condition(type_, ConditionStatus::Unknown, reason, message, now);
        }
    }

    /// A phase has begun. A phase never goes back.
    pub fn enter(&mut self, phase: Phase, now: Timestamp) {
        let phase = match phase {
            Phase::Begin => MigrationPhase::Begin,
            Phase::Prepare => MigrationPhase::Prepare,
            Phase::Perform => MigrationPhase::Perform,
            Phase::Finish => MigrationPhase::Finish,
            Phase::Confirm => MigrationPhase::Confirm,
        };
        if self.status.phase.is_none_or(|current| current < phase) {
            self.status.phase = Some(phase);
        }
        timeline::enter(&mut self.status.timeline, phase, &rfc3339(now));
    }

    /// New figures of the stream, and the time that the hypervisor has taken for it so far.
    pub fn progress(&mut self, figures: &Figures, hypervisor_millis: Option<u64>, budget: Duration) {
        self.status.progress = Some(progress::progress(figures, hypervisor_millis, budget));
    }

    /// How long the guest was stopped, once it is known.
    pub fn downtime(&mut self, downtime: Downtime) {
        self.status.downtime = Some(downtime);
    }

    /// Which side may run the guest cannot be proved, or something else keeps godwit from going on.
    pub fn needs_decision(&mut self, reason: Reason, message: &str, now: Timestamp) {
        self.condition("NeedsDecision", ConditionStatus::True, reason, message, now);
    }

    /// Nothing is in doubt (any more).
    pub fn decided(&mut self, now: Timestamp) {
        let words = "It is known which side may run the guest.";
        self.condition(
            "NeedsDecision",
            ConditionStatus::False,
            Reason::NotNeeded,
            words,
            now,
        );
    }

    /// A cancellation was asked for and comes too late.
    pub fn cancel_too_late(&mut self, now: Timestamp) {
        let words = "The handover had begun when the cancellation arrived; the migration goes on. \
                     Move the guest back afterwards if it must be at the source.";
        self.condition(
            "Cancelled",
            ConditionStatus::False,
            Reason::CancelTooLate,
            words,
            now,
        );
    }

    /// The guest has moved.
    pub fn succeeded(&mut self, running: bool, cancel_asked: bool, now: Timestamp) {
        let words = if running {
            "The guest runs at the destination, and its process at the source is gone."
        } else {
            "The guest is at the destination, stopped as it was; its process at the source is gone."
        };
        self.condition("Succeeded", ConditionStatus::True, Reason::Succeeded, words, now);
        self.condition("Failed", ConditionStatus::False, Reason::Succeeded, words, now);
        self.decided(now);
        if cancel_asked {
            self.cancel_too_late(now);
        }
        self.status.progress = self.status.progress.take().map(progress::complete);
        self.end(MigrationPhase::Succeeded, now);
    }

    /// The attempt is over and the guest did not move.
    pub fn failed(&mut self, failed: &Failed, now: Timestamp) {
        let message = bounded(&failed.message);
        let reason = failed.reason;
        if find_condition(&self.status.conditions, "Accepted").is_none() {
            self.condition("Accepted", ConditionStatus::False, reason, &message, now);
        }
        self.condition("Succeeded", ConditionStatus::False, reason, &message, now);
        self.condition("Failed", ConditionStatus::True, reason, &message, now);
        self.decided(now);
        let phase = self.status.phase.unwrap_or(MigrationPhase::Pending);
        self.status.failure.get_or_insert_with(|| Failure {
            reason: reason.word().into(),
            message: message.clone(),
            phase,
        });
        if let Some(progress) = &mut self.status.progress {
            progress.estimated_seconds = None;
        }
        if reason == Reason::Cancelled {
            self.condition("Cancelled", ConditionStatus::True, reason, &message, now);
            self.end(MigrationPhase::Cancelled, now);
        } else {
            self.end(MigrationPhase::Failed, now);
        }
    }

    /// The phase that is open has ended then.
    pub fn close(&mut self, at: Timestamp) {
        timeline::close(&mut self.status.timeline, &rfc3339(at));
    }

    fn end(&mut self, phase: MigrationPhase, now: Timestamp) {
        timeline::close(&mut self.status.timeline, &rfc3339(now));
        self.status.phase = Some(phase);
    }

    fn condition(
        &mut self,
        type_: &str,
        status: ConditionStatus,
        reason: Reason,
        message: &str,
        now: Timestamp,
    ) {
        set_condition(
            &mut self.status.conditions,
            Condition {
                type_: type_.into(),
                status,
                reason: reason.word().into(),
                message: bounded(message),
                last_transition_time: rfc3339(now),
                observed_generation: self.generation,
            },
        );
    }
}

/// Cuts a text to what the schema allows, at a character's border.
fn bounded(text: &str) -> String {
    let mut end = text.len().min(LONGEST_MESSAGE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

/// An event: one for each transition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Whether something went wrong.
    pub warning: bool,
    /// The word of the table, or the phase's name.
    pub reason: String,
    /// A sentence for people.
    pub note: String,
}

/// What has happened between two statuses, each transition once. Figures are no transition.
pub fn notices(before: &VirtualMachineMigrationStatus, after: &VirtualMachineMigrationStatus) -> Vec<Notice> {
    let normal = |reason: String, note: String| Notice {
        warning: false,
        reason,
        note,
    };
    let mut notices: Vec<Notice> = after
        .timeline
        .iter()
        .filter(|times| !before.timeline.iter().any(|old| old.phase == times.phase))
        .map(|times| {
            let note = match times.phase {
                MigrationPhase::Begin => "The source checks the guest and protects it against changes",
                MigrationPhase::Prepare => "The destination makes itself ready to receive",
                MigrationPhase::Perform => "Guest memory travels",
                MigrationPhase::Finish => "The destination takes the guest over",
                MigrationPhase::Confirm => "The source lets go",
                MigrationPhase::Pending
                | MigrationPhase::Succeeded
                | MigrationPhase::Failed
                | MigrationPhase::Cancelled => "The migration goes on",
            };
            normal(format!("{:?}", times.phase), note.into())
        })
        .collect();
    for (type_, warning_if) in [
        ("Cancelled", ConditionStatus::False),
        ("NeedsDecision", ConditionStatus::True),
    ] {
        let old = find_condition(&before.conditions, type_).map(|c| (c.status, c.reason.as_str()));
        if let Some(condition) = find_condition(&after.conditions, type_)
            && condition.status == warning_if
            && old != Some((condition.status, condition.reason.as_str()))
        {
            let (reason, note) = (condition.reason.clone(), condition.message.clone());
            notices.push(Notice {
                warning: true,
                reason,
                note,
            });
        }
    }
    if before.phase != after.phase {
        match (after.phase, &after.failure) {
            (Some(MigrationPhase::Succeeded), _) => {
                let downtime = after.downtime.as_ref().map_or_else(String::new, |downtime| {
                    format!("; it was stopped for {}", downtime.stop_to_resume)
                });
                notices.push(normal(
                    Reason::Succeeded.word().into(),
                    format!(
                        "The guest has moved to {}{downtime}",
                        after.destination.as_deref().unwrap_or("its destination")
                    ),
                ));
            }
            (Some(MigrationPhase::Cancelled), Some(failure)) => {
                notices.push(normal(failure.reason.clone(), failure.message.clone()));
            }
            (Some(MigrationPhase::Failed), Some(failure)) => notices.push(Notice {
                warning: true,
                reason: failure.reason.clone(),
                note: failure.message.clone(),
            }),
            (
                None
                | Some(
                    MigrationPhase::Pending
                    | MigrationPhase::Begin
                    | MigrationPhase::Prepare
                    | MigrationPhase::Perform
                    | MigrationPhase::Finish
                    | MigrationPhase::Confirm
                    | MigrationPhase::Cancelled
                    | MigrationPhase::Failed,
                ),
                _,
            ) => {}
        }
    }
    notices
}

/// Whether only figures differ: such a change may wait, a transition may not.
pub fn only_figures_differ(
    before: &VirtualMachineMigrationStatus,
    after: &VirtualMachineMigrationStatus,
) -> bool {
    let without = |status: &VirtualMachineMigrationStatus| VirtualMachineMigrationStatus {
        progress: None,
        ..status.clone()
    };
    before != after && without(before) == without(after)
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

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn terms() -> Terms {
        Terms {
            migration: "m".into(),
            guest: "g".into(),
            epoch: 3,
            source: "a".into(),
            destination: "b".into(),
            strict: false,
        }
    }

    fn condition<'a>(book: &'a Book, type_: &str) -> (ConditionStatus, &'a str) {
        let found = find_condition(&book.status.conditions, type_).unwrap();
        (found.status, &found.reason)
    }

    fn accepted() -> Book {
        let mut book = Book::open(None, Some(1));
        book.accept(&terms(), at(1));
        book
    }

    #[test]
    fn a_good_run() {
        let mut book = accepted();
        assert_eq!(
            condition(&book, "Succeeded"),
            (ConditionStatus::Unknown, "InProgress")
        );
        book.enter(Phase::Prepare, at(2));
        book.enter(Phase::Perform, at(3));
        book.enter(Phase::Finish, at(4));
        book.enter(Phase::Confirm, at(5));
        book.succeeded(true, false, at(6));
        assert_eq!(condition(&book, "Accepted"), (ConditionStatus::True, "Accepted"));
        assert_eq!(
            condition(&book, "Succeeded"),
            (ConditionStatus::True, "Succeeded")
        );
        assert_eq!(condition(&book, "Failed"), (ConditionStatus::False, "Succeeded"));
        assert_eq!(book.status.phase, Some(MigrationPhase::Succeeded));
        assert_eq!(book.status.timeline.len(), 5);
        assert!(book.status.timeline.iter().all(|times| times.ended_at.is_some()));
        let reasons: Vec<_> = notices(&Default::default(), &book.status)
            .into_iter()
            .map(|n| n.reason)
            .collect();
        assert_eq!(
            reasons,
            ["Begin", "Prepare", "Perform", "Finish", "Confirm", "Succeeded"]
        );
        assert_eq!(notices(&book.status, &book.status), []);
    }

    #[test]
    fn the_same_entry_again_changes_nothing() {
        let mut book = accepted();
        book.enter(Phase::Perform, at(3));
        let before = book.clone();
        let mut reopened = Book::open(Some(book.status.clone()), Some(1));
        reopened.accept(&terms(), at(9));
        reopened.enter(Phase::Perform, at(9));
        assert_eq!(reopened, before);
        book.failed(
            &Failed {
                reason: Reason::StreamFailed,
                message: "Broken.".into(),
            },
            at(10),
        );
        let ended = book.clone();
        book.failed(
            &Failed {
                reason: Reason::StreamFailed,
                message: "Broken.".into(),
            },
            at(11),
        );
        assert_eq!(book, ended);
    }

    #[test]
    fn a_refusal_never_began() {
        let mut book = Book::open(None, Some(1));
        book.failed(
            &Failed {
                reason: Reason::SameHost,
                message: "There already.".into(),
            },
            at(1),
        );
        assert_eq!(condition(&book, "Accepted"), (ConditionStatus::False, "SameHost"));
        assert_eq!(condition(&book, "Failed"), (ConditionStatus::True, "SameHost"));
        assert_eq!(
            book.status.failure.as_ref().unwrap().phase,
            MigrationPhase::Pending
        );
        assert_eq!(book.status.phase, Some(MigrationPhase::Failed));
        let notices = notices(&Default::default(), &book.status);
        assert_eq!(notices.len(), 1);
        assert!(notices[0].warning);
    }

    #[test]
    fn a_failure_keeps_its_phase_and_a_cancellation_is_named() {
        let mut book = accepted();
        book.enter(Phase::Perform, at(3));
        book.failed(
            &Failed {
                reason: Reason::Cancelled,
                message: "Asked for.".into(),
            },
            at(4),
        );
        assert_eq!(book.status.phase, Some(MigrationPhase::Cancelled));
        assert_eq!(
            book.status.failure.as_ref().unwrap().phase,
            MigrationPhase::Perform
        );
        assert_eq!(condition(&book, "Accepted"), (ConditionStatus::True, "Accepted"));
        assert_eq!(
            condition(&book, "Cancelled"),
            (ConditionStatus::True, "Cancelled")
        );
        assert_eq!(condition(&book, "Failed"), (ConditionStatus::True, "Cancelled"));
    }

    #[test]
    fn a_wait_for_a_decision_comes_and_goes() {
        let mut book = accepted();
        let before = book.clone();
        book.needs_decision(Reason::DecisionNeeded, "Bring both agents back.", at(5));
        assert_eq!(
            condition(&book, "NeedsDecision"),
            (ConditionStatus::True, "DecisionNeeded")
        );
        assert_eq!(notices(&before.status, &book.status).len(), 1);
        book.succeeded(true, true, at(6));
        assert_eq!(
            condition(&book, "NeedsDecision"),
            (ConditionStatus::False, "NotNeeded")
        );
        assert_eq!(
            condition(&book, "Cancelled"),
            (ConditionStatus::False, "CancelTooLate")
        );
    }

    #[test]
    fn figures_alone_are_no_transition() {
        let mut book = accepted();
        let before = book.status.clone();
        assert!(!only_figures_differ(&before, &book.status));
        let figures = Figures {
            total_bytes: 100,
            remaining_bytes: 50,
            ..Figures::default()
        };
        book.progress(&figures, None, Duration::from_millis(300));
        assert!(only_figures_differ(&before, &book.status));
        assert_eq!(notices(&before, &book.status), []);
        book.enter(Phase::Perform, at(2));
        assert!(!only_figures_differ(&before, &book.status));
    }

    #[test]
    fn what_holds_it_back_is_told_until_it_has_ended() {
        let mut book = accepted();
        let before = book.status.clone();
        book.goes_on(true, at(2));
        assert_eq!(condition(&book, "Failed"), (ConditionStatus::Unknown, "HeldBack"));
        let since = |book: &Book| {
            let found = find_condition(&book.status.conditions, "Succeeded").unwrap();
            found.last_transition_time.clone()
        };
        assert_eq!(since(&book), rfc3339(at(1)));
        book.goes_on(false, at(3));
        assert_eq!(book.status, before);
        book.succeeded(true, false, at(4));
        book.goes_on(true, at(5));
        assert_eq!(
            condition(&book, "Succeeded"),
            (ConditionStatus::True, "Succeeded")
        );
        assert_eq!(condition(&book, "Failed"), (ConditionStatus::False, "Succeeded"));
    }

    #[test]
    fn long_words_are_cut() {
        let mut book = Book::open(None, Some(1));
        book.failed(
            &Failed {
                reason: Reason::SameHost,
                message: "ä".repeat(2000),
            },
            at(1),
        );
        assert_eq!(book.status.failure.unwrap().message.len(), 2048);
    }
}
