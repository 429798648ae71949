//! What follows from what is known about a guest: at most one deed, and the status that tells how things stand.
//!
//! A guest is started once, on the host that its record names, and by nobody else's word. Whether it was started
//! before is judged by the host itself: an order to start under an epoch that it has seen is answered with the
//! guest's state and starts nothing. After a move, or once the guest was seen, no such order is given at all.

use std::collections::BTreeMap;
use std::time::Duration;

use godwit_crds::condition::{find_condition, set_condition};
use godwit_crds::host::HostGuest;
use godwit_crds::virtual_machine::{GuestState, Persistence};
use godwit_crds::{Condition, ConditionStatus, GuestRecordSpec, VirtualMachineHost, VirtualMachineStatus};
use godwit_crds::{VirtualMachine, VirtualMachineSpec};
use godwit_protocol::{Category, Fault};
use jiff::Timestamp;
use kube::{Resource, ResourceExt};

use crate::placement::{self, Misfit};
use crate::reason::GuestReason as Reason;
use crate::record;
use crate::time::rfc3339;

/// How long a guest may be missing from its host's report before that means something: the report follows the
/// guest's arrival, and an agent that has just started finds its guests one by one.
pub const REPORT_LAG: Duration = Duration::from_secs(15);

/// How long a record may be open, with no migration at work, before that means something: a migration that was just
/// made may not have been seen yet.
pub const OPEN_FOR: Duration = Duration::from_secs(10);

/// What the holder answered to the order to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The guest's state, and since when it has run there (RFC 3339).
    State(GuestState, Option<String>),
    /// The order was refused, or its answer was lost.
    Fault(Fault),
}

/// What the judgement rests on.
pub struct Facts<'a> {
    /// The VirtualMachine.
    pub guest: &'a VirtualMachine,
    /// Its record, read fresh.
    pub record: Option<&'a GuestRecordSpec>,
    /// Every host by name.
    pub hosts: &'a BTreeMap<String, VirtualMachineHost>,
    /// The name of a migration of this guest that has not ended.
    pub migration: Option<&'a str>,
    /// Why that migration cannot go on by itself, and what to do, in its own words.
    pub waits: Option<&'a str>,
    /// Whether a migration has lost the guest at the record's epoch.
    pub lost: bool,
    /// What the holder answered to the order to start under the record's epoch.
    pub answer: Option<&'a Answer>,
    /// How long the holder's report has been without the guest.
    pub missing_for: Duration,
    /// How long its record has been open with no migration at work.
    pub open_for: Duration,
    /// Bytes of memory that are spoken for, by host.
    pub promised: &'a BTreeMap<String, u64>,
    /// Now.
    pub now: Timestamp,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Nothing but the status.
    None,
    /// Create the record with this host as the holder.
    Record {
        /// The host.
        host: String,
    },
    /// Order the holder to start the guest.
    Start {
        /// The holder.
        host: String,
        /// The record's epoch.
        epoch: u64,
    },
    /// Order the holder to stop the guest; then nothing of it may be kept.
    Stop {
        /// The holder.
        host: String,
        /// The record's epoch.
        epoch: u64,
    },
    /// Order a host that was fenced, and is back, to give up what it still has of the guest from before.
    Reap {
        /// The host.
        host: String,
        /// The epoch that it reports: an earlier one than the record's.
        epoch: u64,
    },
    /// Bring the migration for which the record is open to its end: it is over, or gone, and nobody drives it.
    Settle {
        /// The migration's UID.
        migration: String,
    },
    /// The guest was never given to a host: let the object go.
    Release,
}

/// What follows.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// What to do.
    pub deed: Deed,
    /// How things stand.
    pub status: VirtualMachineStatus,
    /// Whether the holder's report lacks the guest.
    pub missing: bool,
    /// Whether the record is open, with no migration at work.
    pub open: bool,
}

/// Judges.
pub fn decide(facts: &Facts<'_>) -> Verdict {
    let mut page = Page::open(facts);
    let open = open(facts);
    let deed = if facts.guest.meta().deletion_timestamp.is_some() {
        // Who is to be stopped follows from the record's decision.
        page.stopping(open.is_some())
    } else {
        match facts.record {
            None => page.without_record(),
            Some(record) => page.with_record(record),
        }
    };
    let deed = match open {
        Some(migration) if facts.open_for >= OPEN_FOR && deed == Deed::None && page.holder_has_it() => {
            page.settling(migration)
        }
        Some(_) | None => deed,
    };
    Verdict {
        deed,
        status: page.status,
        missing: page.missing,
        open: open.is_some(),
    }
}

/// The migration for which the record is open, though none of this guest is at work. Two controllers that both believed
/// that they lead can leave one: one of them ends the migration, and the other has armed the record for it.
fn open<'a>(facts: &Facts<'a>) -> Option<&'a str> {
    let record = facts.record.filter(|record| !record::settled(record))?;
    let armed = record.migration.as_ref()?;
    facts.migration.is_none().then_some(armed.uid.as_str())
}

/// The status as it is being written.
struct Page<'a> {
    facts: &'a Facts<'a>,
    uid: String,
    status: VirtualMachineStatus,
    missing: bool,
}

impl<'a> Page<'a> {
    fn open(facts: &'a Facts<'a>) -> Self {
        let mut status = facts.guest.status.clone().unwrap_or_default();
        status.observed_generation = facts.guest.meta().generation;
        status.migration = facts.migration.map(Into::into);
        Self {
            facts,
            uid: facts.guest.uid().unwrap_or_default(),
            status,
            missing: false,
        }
    }

    fn spec(&self) -> &'a VirtualMachineSpec {
        &self.facts.guest.spec
    }

    /// Whether the record's holder reports the guest at the record's epoch: then the record does not come from an older
    /// backup, on whose word nothing is decided.
    fn holder_has_it(&self) -> bool {
        let Some(record) = self.facts.record else {
            return false;
        };
        let holder = self.facts.hosts.get(&record.holder).filter(|host| alive(host));
        holder.is_some_and(|host| report(host, &self.uid).any(|guest| guest.epoch == record.epoch))
    }

    fn settling(&mut self, migration: &str) -> Deed {
        let words = format!(
            "The guest's record is open for the migration {migration}, which is over. Both of its hosts are asked, and how \
             it ended is written down; then the guest can be migrated again. If one of the hosts is gone for good, \
             `kubectl godwit resolve` shows what can be said."
        );
        self.needs(Reason::MigrationWaits, &words);
        Deed::Settle {
            migration: migration.into(),
        }
    }

    fn stopping(&mut self, open: bool) -> Deed {
        self.condition(
            "Ready",
            ConditionStatus::False,
            Reason::Stopping,
            "The VirtualMachine is being deleted.",
        );
        if self.facts.migration.is_some() {
            return Deed::None;
        }
        let holder = match self.facts.record {
            Some(record) => Some((record.holder.clone(), record.epoch)),
            // The record goes before the object does; what the status mirrors says whom to ask once more.
            None => self.status.host.clone().zip(self.status.epoch),
        };
        let Some((host, epoch)) = holder else {
            return Deed::Release;
        };
        // Whoever is stopped on the word of a record that lies behind is not who runs the guest.
        if let Some(record) = self.facts.record
            && let Some(seen) = self.status.epoch.filter(|seen| *seen > record.epoch)
        {
            return self.behind(record, seen);
        }
        // Whoever says something about its host says it of the guest as it stands.
        if let Some(record) = self.facts.record {
            self.status.host = Some(record.holder.clone());
            self.status.epoch = Some(record.epoch);
        }
        if let Some(other) = self.runs_elsewhere(&host, epoch) {
            self.conflict(&other, &host);
            return Deed::None;
        }
        if let Some(record) = self.facts.record {
            let reap = self.reap(record);
            if reap != Deed::None {
                return reap;
            }
            if let Some(other) = self.left_elsewhere(record) {
                let words = format!(
                    "The VirtualMachine is being deleted, and {other} reports the guest from before it came to {host}. The \
                     guest is stopped on {host} once that is gone: moments after a move. If it stays, look at both hosts, for \
                     somebody may have written the GuestRecord by hand (docs/runbooks.md)."
                );
                self.needs(Reason::RecordConflict, &words);
                return Deed::None;
            }
        }
        if open {
            return Deed::None;
        }
        let known = self.facts.hosts.get(&host);
        if !known.is_some_and(alive) {
            let how = match known {
                Some(_) => "does not answer",
                None => "is not known any more",
            };
            let words = format!(
                "The VirtualMachine is being deleted, and its host {host} {how}: the guest may well run there. Bring the \
                 host back; if it is gone for good, make sure that it runs nothing and say so: `kubectl godwit resolve`."
            );
            self.condition(
                "Ready",
                ConditionStatus::Unknown,
                Reason::AgentUnreachable,
                &words,
            );
        }
        match (u64::try_from(epoch), known) {
            // An agent that nobody hears may answer all the same.
            (Ok(epoch), Some(_)) => Deed::Stop { host, epoch },
            (Ok(_) | Err(_), _) => Deed::None,
        }
    }

    fn without_record(&mut self) -> Deed {
        let seen_on = self
            .facts
            .hosts
            .values()
            .find(|host| report(host, &self.uid).next().is_some());
        if self.status.epoch.is_some() || seen_on.is_some() {
            self.needs(
                Reason::RecordMissing,
                "The guest was started and its GuestRecord is not there. Find out who deleted it and restore it; \
                 godwit starts nothing without it.",
            );
            self.status.state = Some(GuestState::Unknown);
            self.condition(
                "Ready",
                ConditionStatus::Unknown,
                Reason::RecordMissing,
                "What the guest does is not known without its record.",
            );
            return Deed::None;
        }
        self.status.state = Some(GuestState::Starting);
        match self.choose() {
            Ok(host) => {
                self.chosen(&host);
                self.starting();
                self.clear();
                Deed::Record { host }
            }
            Err((reason, words)) => {
                self.condition("Scheduled", ConditionStatus::False, reason, &words);
                self.condition(
                    "Ready",
                    ConditionStatus::False,
                    Reason::Starting,
                    "No host has been chosen yet.",
                );
                self.clear();
                Deed::None
            }
        }
    }

    fn choose(&self) -> Result<String, (Reason, String)> {
        let Some(name) = &self.spec().host else {
            return placement::place(self.spec(), self.facts.hosts.values(), self.facts.promised).map_err(|misfits| {
                let words: Vec<_> = misfits.iter().take(20).map(|(host, misfit)| format!("{host} {misfit}")).collect();
                let words = if words.is_empty() { "there is no host".into() } else { words.join("; ") };
                (
                    Reason::NoHostFits,
                    format!("No host fits: {words}. Add a host or make room; it is tried again when hosts change."),
                )
            });
        };
        let Some(host) = self.facts.hosts.get(name) else {
            let words = format!(
                "There is no VirtualMachineHost {name}. Create the guest again with a host that exists."
            );
            return Err((Reason::HostNotFound, words));
        };
        let promised = self.facts.promised.get(name).copied().unwrap_or(0);
        match placement::fits(self.spec(), host, promised, 0) {
            // Whether a file is there the host itself knows best, and says so by name.
            Ok(()) | Err(Misfit::PoolMissing(_)) => Ok(name.clone()),
            Err(misfit) => {
                let reason = match misfit {
                    Misfit::NotReady(_) | Misfit::PoolMissing(_) => Reason::HostNotReady,
                    Misfit::MachineTypeMissing => Reason::MachineTypeMissing,
                    Misfit::CpuModelMissing => Reason::CpuModelMissing,
                    Misfit::InsufficientMemory { .. } => Reason::InsufficientMemory,
                };
                Err((
                    reason,
                    format!("{name}: {misfit}. The guest is started once that has changed."),
                ))
            }
        }
    }

    fn with_record(&mut self, record: &GuestRecordSpec) -> Deed {
        if self.facts.migration.is_none()
            && let Some(seen) = self.status.epoch.filter(|seen| *seen > record.epoch)
        {
            return self.behind(record, seen);
        }
        let same_epoch = self.status.epoch == Some(record.epoch);
        if !same_epoch {
            self.status.since = None;
        }
        self.status.host = Some(record.holder.clone());
        self.status.epoch = Some(record.epoch);
        self.chosen(&record.holder);
        self.clear();
        if let (Some(migration), Some(words)) = (self.facts.migration, self.facts.waits) {
            self.needs(
                Reason::MigrationWaits,
                &format!("Migration {migration} waits: {words}"),
            );
        }
        let moving = self.facts.migration.is_some() || !record::settled(record);
        if self.facts.lost || same_epoch && self.status.state == Some(GuestState::Lost) {
            self.status.state = Some(GuestState::Lost);
            self.condition(
                "Ready",
                ConditionStatus::False,
                Reason::GuestLost,
                "The only valid image of the guest died during a migration. Delete and create it to start afresh.",
            );
            return Deed::None;
        }
        let elsewhere = self
            .runs_elsewhere(&record.holder, record.epoch)
            .filter(|_| self.facts.migration.is_none());
        if let Some(other) = &elsewhere {
            self.conflict(other, &record.holder);
        }
        let Some(host) = self.facts.hosts.get(&record.holder).filter(|host| alive(host)) else {
            return self.silent_host(record);
        };
        let reported = report(host, &self.uid)
            .find(|guest| guest.epoch == record.epoch)
            .cloned();
        if let Some(guest) = reported {
            self.mirror(guest.state, guest.since, &record.holder);
            return if moving { Deed::None } else { self.reap(record) };
        }
        match self.facts.answer {
            Some(Answer::State(state, since)) if self.facts.missing_for < REPORT_LAG => {
                // The report lags behind the answer.
                self.missing = true;
                self.mirror(*state, since.clone(), &record.holder);
                return Deed::None;
            }
            Some(Answer::Fault(fault)) => self.refused(fault, &record.holder),
            Some(Answer::State(..)) | None => {}
        }
        let afresh = record.resolution.as_ref().and_then(|word| word.cold_start) == Some(record.epoch);
        let started = record.epoch > 1 && !afresh
            || self.status.since.is_some()
            || matches!(self.facts.answer, Some(Answer::State(state, _)) if *state != GuestState::Starting);
        if moving || started || elsewhere.is_some() {
            self.missing = true;
            return self.gone_from_report(record, moving);
        }
        if self.facts.answer.is_none() {
            self.status.state = Some(GuestState::Starting);
            self.starting();
        }
        match u64::try_from(record.epoch) {
            Ok(epoch) => Deed::Start {
                host: record.holder.clone(),
                epoch,
            },
            Err(_) => Deed::None,
        }
    }

    /// The record is the positive fact: the guest was started afresh at a later epoch, because that host was fenced.
    fn reap(&self, record: &GuestRecordSpec) -> Deed {
        let Some(word) = record
            .resolution
            .as_ref()
            .filter(|word| word.cold_start.is_some())
        else {
            return Deed::None;
        };
        let back = word.fenced.iter().filter(|name| **name != record.holder);
        back.filter_map(|name| Some((name, self.facts.hosts.get(name).filter(|host| alive(host))?)))
            .find_map(|(name, host)| {
                let old = report(host, &self.uid).find(|guest| guest.epoch < record.epoch)?;
                Some(Deed::Reap {
                    host: name.clone(),
                    epoch: u64::try_from(old.epoch).ok()?,
                })
            })
            .unwrap_or(Deed::None)
    }

    /// The record lies behind what was seen: it comes from an older backup, or somebody has written it by hand. Nothing is
    /// done on its word, and what was seen stays in the status.
    fn behind(&mut self, record: &GuestRecordSpec, seen: i64) -> Deed {
        let words = format!(
            "The GuestRecord says epoch {} at {}, and the guest has been at epoch {seen}: the record comes from an older \
             backup, or was written by hand. Write it anew as the host that runs the guest reports it \
             (docs/runbooks.md).",
            record.epoch, record.holder
        );
        self.needs(Reason::RecordConflict, &words);
        self.status.state = Some(GuestState::Unknown);
        self.condition("Ready", ConditionStatus::Unknown, Reason::RecordConflict, &words);
        Deed::None
    }

    fn conflict(&mut self, other: &str, holder: &str) {
        let words = format!(
            "{other} reports this guest, which {holder} holds by the record. Look at both hosts before anything is stopped."
        );
        self.needs(Reason::RecordConflict, &words);
    }

    /// A host other than the holder that reports the guest under an epoch that the record does not lie behind.
    fn runs_elsewhere(&self, holder: &str, epoch: i64) -> Option<String> {
        self.facts
            .hosts
            .iter()
            .filter(|(name, _)| name.as_str() != holder)
            .find(|(_, host)| {
                report(host, &self.uid).any(|guest| {
                    guest.epoch >= epoch && matches!(guest.state, GuestState::Running | GuestState::Paused)
                })
            })
            .map(|(name, _)| name.clone())
    }

    /// A host that answers and reports the guest as it was before the record's epoch.
    fn left_elsewhere(&self, record: &GuestRecordSpec) -> Option<String> {
        let mut others = self
            .facts
            .hosts
            .iter()
            .filter(|(name, host)| **name != record.holder && alive(host));
        let (name, _) = others.find(|(_, host)| {
            report(host, &self.uid).any(|guest| {
                guest.epoch < record.epoch && matches!(guest.state, GuestState::Running | GuestState::Paused)
            })
        })?;
        Some(name.clone())
    }

    fn silent_host(&mut self, record: &GuestRecordSpec) -> Deed {
        self.status.state = Some(GuestState::Unknown);
        let words = format!(
            "The host {} does not answer; the guest may well run there. Bring the agent or the host back; if it is gone for good, \
             `kubectl godwit resolve` shows what can be said.",
            record.holder
        );
        self.condition(
            "Ready",
            ConditionStatus::Unknown,
            Reason::AgentUnreachable,
            &words,
        );
        if let Some(Answer::Fault(fault)) = self.facts.answer
            && fault.category == Category::Unavailable
        {
            self.unanswered(&record.holder);
        }
        Deed::None
    }

    fn gone_from_report(&mut self, record: &GuestRecordSpec, moving: bool) -> Deed {
        if moving || self.facts.missing_for < REPORT_LAG {
            // Keep what was known; a look at the next report tells.
            if self.status.state.is_none() {
                self.status.state = Some(GuestState::Unknown);
            }
            return Deed::None;
        }
        self.status.state = Some(GuestState::Unknown);
        let words = format!(
            "{} holds the guest and does not report it any more. Look at the host; delete and create the guest to \
             start it afresh.",
            record.holder
        );
        self.condition("Ready", ConditionStatus::False, Reason::ProcessGone, &words);
        self.needs(Reason::ProcessGone, &words);
        Deed::None
    }

    fn mirror(&mut self, state: GuestState, since: Option<String>, host: &str) {
        self.status.state = Some(state);
        if since.is_some() {
            self.status.since = since;
        }
        // While a migration is on its way, its host keeps even a guest that has ended.
        let forgotten = self.spec().persistence == Persistence::Transient && self.facts.migration.is_none();
        let (status, reason, words) = match state {
            GuestState::Starting => (ConditionStatus::False, Reason::Starting, "The guest is being started.".to_owned()),
            GuestState::Running => (ConditionStatus::True, Reason::Running, format!("The guest runs on {host}.")),
            GuestState::Paused => (
                ConditionStatus::False,
                Reason::Paused,
                "The guest is stopped and can go on. See its migration, if there is one.".to_owned(),
            ),
            GuestState::ShutOff => (
                ConditionStatus::False,
                Reason::ShutOff,
                if forgotten {
                    format!(
                        "The guest powered itself off. It was transient, so {host} has forgotten its definition. Delete \
                         it, or create it again to start it."
                    )
                } else {
                    "The guest powered itself off. Delete it, or create it again to start it.".to_owned()
                },
            ),
            GuestState::Crashed => (
                ConditionStatus::False,
                Reason::Crashed,
                if forgotten {
                    format!(
                        "The guest's kernel panicked or its process died. If it is the process, {host} has forgotten the \
                         guest, which was transient; else look at its console and hypervisor log there. godwit does not \
                         start it a second time by itself."
                    )
                } else {
                    format!(
                        "The guest's kernel panicked or its process died. Look at its console and hypervisor log on \
                         {host}; godwit does not start it a second time by itself."
                    )
                },
            ),
            GuestState::Lost => (
                ConditionStatus::False,
                Reason::GuestLost,
                "The only valid image of the guest died during a migration. Delete and create it to start afresh."
                    .to_owned(),
            ),
            GuestState::Unknown => {
                (ConditionStatus::Unknown, Reason::AgentUnreachable, format!("{host} cannot tell what the guest does."))
            }
        };
        self.condition("Ready", status, reason, &words);
    }

    fn refused(&mut self, fault: &Fault, host: &str) {
        self.status.state = Some(GuestState::Starting);
        let said = fault.message.trim_end_matches('.');
        let reason = Reason::from_word(&fault.reason);
        // Without a word of its own, such an answer is none: the order may or may not have arrived.
        if fault.category == Category::Unavailable && reason.is_none_or(|it| it == Reason::AgentUnreachable) {
            let words = format!("{said}. The same host is asked again.");
            self.condition(
                "Ready",
                ConditionStatus::Unknown,
                Reason::AgentUnreachable,
                &words,
            );
            self.unanswered(host);
            return;
        }
        let reason = reason.unwrap_or(if fault.category == Category::Invalid {
            Reason::DefinitionRefused
        } else {
            Reason::InternalError
        });
        let words = format!("{said}. It is tried again on the same host.");
        // The agent leaves such a guest alone, and knows nothing of what it does.
        let left_alone = [Reason::JournalNewer, Reason::JournalDamaged].contains(&reason);
        if left_alone || reason == Reason::HypervisorUnresponsive {
            self.status.state = Some(GuestState::Unknown);
            self.condition("Ready", ConditionStatus::Unknown, reason, &words);
        } else {
            self.condition("Ready", ConditionStatus::False, reason, &words);
        }
        if left_alone {
            self.needs(reason, &words);
        }
    }

    fn unanswered(&mut self, host: &str) {
        let words = format!(
            "The order to start the guest was given to {host} and not answered. Bring the host back: it is asked first."
        );
        self.needs(Reason::StartUnanswered, &words);
    }

    fn chosen(&mut self, host: &str) {
        self.condition(
            "Scheduled",
            ConditionStatus::True,
            Reason::HostChosen,
            &format!("The guest belongs on {host}."),
        );
    }

    fn starting(&mut self) {
        self.condition(
            "Ready",
            ConditionStatus::False,
            Reason::Starting,
            "The start order is on its way.",
        );
    }

    fn needs(&mut self, reason: Reason, words: &str) {
        self.condition("NeedsDecision", ConditionStatus::True, reason, words);
    }

    fn clear(&mut self) {
        self.condition(
            "NeedsDecision",
            ConditionStatus::False,
            Reason::NotNeeded,
            "Nothing is in doubt.",
        );
    }

    fn condition(&mut self, type_: &str, status: ConditionStatus, reason: Reason, words: &str) {
        let observed_generation = self.facts.guest.meta().generation.unwrap_or(0);
        // A condition that is cleared and set again within one judgement has not flipped.
        let before = self
            .facts
            .guest
            .status
            .as_ref()
            .and_then(|s| find_condition(&s.conditions, type_));
        let since = before.filter(|before| before.status == status).map_or_else(
            || rfc3339(self.facts.now),
            |before| before.last_transition_time.clone(),
        );
        self.status
            .conditions
            .retain(|c| c.type_ != type_ || c.status == status);
        set_condition(
            &mut self.status.conditions,
            Condition {
                type_: type_.into(),
                status,
                reason: reason.word().into(),
                message: words.chars().take(1000).collect(),
                last_transition_time: since,
                observed_generation,
            },
        );
        self.status.conditions.sort_by(|a, b| b.type_.cmp(&a.type_));
    }
}

/// Whether the host's agent is known to live: its Ready condition is not Unknown.
pub fn alive(host: &VirtualMachineHost) -> bool {
    let conditions = host.status.as_ref().map_or(&[][..], |status| &status.conditions);
    find_condition(conditions, "Ready").is_some_and(|ready| ready.status != ConditionStatus::Unknown)
}

/// What the host reports about the guest.
pub fn report<'a>(host: &'a VirtualMachineHost, uid: &'a str) -> impl Iterator<Item = &'a HostGuest> {
    host.status
        .iter()
        .flat_map(|status| &status.guests)
        .filter(move |guest| guest.uid == uid)
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests;
