//! What follows from an administrator's word. Pure.
//!
//! A word counts once, for the state of the guest that its author has seen. What it is about is looked at before it is
//! taken into the record, and by the record's own rules; from then on the migration ends by the record, and a cold start
//! follows that end. A refused word stays refused: whoever still means it says it again.

use std::collections::BTreeMap;

use godwit_crds::condition::find_condition;
use godwit_crds::record_change::{self, Change, Refused, Word};
use godwit_crds::{
    ConditionStatus, GuestRecordSpec, ResolutionAction, VirtualMachine, VirtualMachineHost,
    VirtualMachineResolution, VirtualMachineResolutionSpec,
};
use kube::{Resource, ResourceExt};

use crate::guest::decide::alive;
use crate::placement;
use crate::reason::ResolutionReason as Reason;

/// The condition's type.
pub(super) const APPLIED: &str = "Applied";

/// What the judgement rests on.
pub(super) struct Facts<'a> {
    /// What was said.
    pub(super) resolution: &'a VirtualMachineResolution,
    /// The guest, if it is there.
    pub(super) guest: Option<&'a VirtualMachine>,
    /// Its record, read fresh.
    pub(super) record: Option<&'a GuestRecordSpec>,
    /// Every host by name.
    pub(super) hosts: &'a BTreeMap<String, VirtualMachineHost>,
    /// A migration of this guest that has not ended, by name and UID.
    pub(super) active: Option<(&'a str, &'a str)>,
    /// Bytes of memory that are spoken for, by host.
    pub(super) promised: &'a BTreeMap<String, u64>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// Nothing but the status.
    None,
    /// Take the word into the guest's record.
    TakeIn,
    /// Have the guest started afresh on this host.
    ColdStart(String),
    /// Let the guest, which is being deleted, go: the host that would have to stop it is fenced.
    LetGo,
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// What to do.
    pub(super) deed: Deed,
    /// Whether the word has been carried out.
    pub(super) applied: ConditionStatus,
    /// The word of the table.
    pub(super) reason: Reason,
    /// What is so, and what to do.
    pub(super) words: String,
}

impl Verdict {
    fn of(applied: ConditionStatus, reason: Reason, words: impl Into<String>) -> Self {
        Self {
            deed: Deed::None,
            applied,
            reason,
            words: words.into(),
        }
    }

    fn done(reason: Reason, words: impl Into<String>) -> Self {
        Self::of(ConditionStatus::True, reason, words)
    }

    fn refused(reason: Reason, words: impl Into<String>) -> Self {
        Self::of(ConditionStatus::False, reason, words)
    }

    fn waits(reason: Reason, words: impl Into<String>) -> Self {
        Self::of(ConditionStatus::Unknown, reason, words)
    }

    fn to(deed: Deed, words: impl Into<String>) -> Self {
        Self {
            deed,
            ..Self::waits(Reason::InProgress, words)
        }
    }

    /// Whether nothing more ever follows from the word.
    pub(super) fn ended(&self) -> bool {
        self.applied != ConditionStatus::Unknown
    }
}

/// Whether the word was carried out, or refused, before.
pub(super) fn ended(resolution: &VirtualMachineResolution) -> bool {
    let conditions = resolution
        .status
        .as_ref()
        .map_or(&[][..], |status| &status.conditions);
    find_condition(conditions, APPLIED).is_some_and(|told| told.status != ConditionStatus::Unknown)
}

/// The guest that was let go by this word, if one was.
pub(super) fn has_let_go(resolution: &VirtualMachineResolution) -> Option<&str> {
    resolution.status.as_ref()?.let_go.as_deref()
}

/// The word, as the record's rules know it.
pub(super) fn word(resolution: &VirtualMachineResolution) -> Word {
    let spec = &resolution.spec;
    Word {
        uid: resolution.uid().unwrap_or_default(),
        by: spec.by.clone(),
        epoch: spec.epoch,
        migration: spec.migration.clone(),
        fenced: spec.fenced_hosts.clone(),
        action: spec.action,
    }
}

/// What a refusal of the record's rules means to whoever has said the word.
pub(super) fn refused(refused: &Refused) -> Verdict {
    let reason = match refused {
        Refused::NotFenced(_) => Reason::NotFenced,
        Refused::NotResumable => Reason::NotResumable,
        Refused::Overtaken
        | Refused::ArmedForOther(_)
        | Refused::HeldOtherwise { .. }
        | Refused::DecidedOtherwise(_) => Reason::Overtaken,
    };
    Verdict::refused(
        reason,
        format!(
            "{refused}. Look again (`kubectl godwit resolve` shows how things stand), and say it anew if it still holds."
        ),
    )
}

/// Judges.
pub(super) fn decide(facts: &Facts<'_>) -> Verdict {
    let spec = &facts.resolution.spec;
    let name = &spec.virtual_machine;
    let word = word(facts.resolution);
    let Some(guest) = facts.guest else {
        // Its object was all that was left to do.
        if has_let_go(facts.resolution).is_some() {
            return let_go(&spec.fenced_hosts.join(" and "));
        }
        return Verdict::refused(
            Reason::VirtualMachineNotFound,
            format!("There is no VirtualMachine {name} in this namespace."),
        );
    };
    let deleted = guest.meta().deletion_timestamp.is_some();
    let Some(record) = facts.record else {
        // The record goes before the object does: what the object mirrors says who held the guest.
        let mirrored = guest.status.as_ref();
        let held = mirrored.and_then(|status| status.host.as_ref().zip(status.epoch));
        return match held {
            Some((holder, epoch)) if deleted && epoch == word.epoch && word.fenced.contains(holder) => {
                facts.letting_go(holder)
            }
            Some(_) | None => Verdict::refused(
                Reason::RecordMissing,
                format!("{name} has no GuestRecord: nothing is decided without it."),
            ),
        };
    };
    let taken_in = record_change::said(record, &word);
    let own = taken_in.filter(|known| known.uid == word.uid);
    if let Some(epoch) = own.and_then(|known| known.cold_start) {
        return Verdict::done(
            Reason::ColdStarted,
            format!(
                "The guest was given to {} under epoch {epoch}, to be started afresh from its disks.",
                record.holder
            ),
        );
    }
    if taken_in.is_none()
        && let Some(answers) = facts.answering(spec)
    {
        return not_fenced(&answers);
    }
    let named = |uid: &str| spec.migration.as_deref() == Some(uid);
    match facts.active {
        Some((active, uid)) if !named(uid) => {
            return Verdict::refused(
                Reason::Overtaken,
                format!("Migration {active} of the guest is on its way. Look again when it has ended."),
            );
        }
        None if record_change::settled(record) => {}
        Some(_) | None => {
            return match record_change::take_in(record, &word) {
                Change::Write(_) => {
                    Verdict::to(Deed::TakeIn, "The word is being written into the guest's record.")
                }
                Change::Refuse(why) => refused(&why),
                Change::Already => facts.ending(),
            };
        }
    }
    if deleted {
        return match record_change::let_go(record, &word) {
            Ok(()) => facts.letting_go(&record.holder),
            // By the migration's end it belongs on another host, which stops it.
            Err(Refused::NotFenced(_)) if taken_in.is_some() => ended_on(&record.holder),
            Err(why) => refused(&why),
        };
    }
    match spec.action {
        ResolutionAction::Wait | ResolutionAction::ResumeSource if taken_in.is_none() => {
            refused(&Refused::Overtaken)
        }
        ResolutionAction::Wait => ended_on(&record.holder),
        ResolutionAction::ResumeSource => Verdict::done(
            Reason::SourceResumed,
            format!("The migration has ended; the guest goes on at {}.", record.holder),
        ),
        ResolutionAction::ColdStart => facts.cold_start(guest, record, &word, taken_in.is_some()),
    }
}

fn ended_on(holder: &str) -> Verdict {
    Verdict::done(
        Reason::Fenced,
        format!("The migration has ended; by the record the guest belongs on {holder}."),
    )
}

fn not_fenced(host: &str) -> Verdict {
    Verdict::refused(
        Reason::HostAnswers,
        format!(
            "{host} is not fenced: its agent answers. Switch it off, wait until `kubectl godwit hosts` says that it is not \
             heard any more, and say it again."
        ),
    )
}

/// The guest was let go.
pub(super) fn let_go(holder: &str) -> Verdict {
    Verdict::done(
        Reason::LetGo,
        format!(
            "The guest was deleted, and {holder}, which held it, is fenced: it was not asked, and the guest is gone. Its \
             GuestRecord stays until that host is back and has nothing of it any more, or until this object is deleted."
        ),
    )
}

impl Facts<'_> {
    /// Nobody but its host could say that a deleted guest does not run any more, and that host is fenced.
    fn letting_go(&self, holder: &str) -> Verdict {
        if self.hosts.get(holder).is_some_and(alive) {
            return not_fenced(holder);
        }
        Verdict::to(
            Deed::LetGo,
            format!("The guest is deleted, and {holder} is fenced: the guest is let go."),
        )
    }

    /// A host that is said to be fenced, and whose agent answers.
    fn answering(&self, spec: &VirtualMachineResolutionSpec) -> Option<String> {
        let answers = |name: &&String| self.hosts.get(*name).is_some_and(alive);
        spec.fenced_hosts.iter().find(answers).cloned()
    }

    fn ending(&self) -> Verdict {
        let migration = self.active.map_or("The migration", |(name, _)| name);
        Verdict::waits(
            Reason::InProgress,
            format!(
                "The word is in the guest's record. {migration} ends by it as soon as the hosts that are left answer."
            ),
        )
    }

    fn cold_start(
        &self,
        guest: &VirtualMachine,
        record: &GuestRecordSpec,
        word: &Word,
        taken_in: bool,
    ) -> Verdict {
        if taken_in && !word.fenced.contains(&record.holder) {
            return Verdict::done(
                Reason::NotNeeded,
                format!(
                    "The guest was not lost: the migration has ended, and it belongs on {}.",
                    record.holder
                ),
            );
        }
        let hosts = self.hosts.iter().filter(|(name, _)| !word.fenced.contains(name));
        let host = match &self.resolution.spec.host {
            Some(named) => match self.hosts.get(named) {
                Some(host) => {
                    let promised = self.promised.get(named).copied().unwrap_or(0);
                    placement::fits(&guest.spec, host, promised, 0)
                        .map(|()| named.clone())
                        .map_err(|misfit| format!("{named} {misfit}"))
                }
                None => Err(format!("there is no VirtualMachineHost {named}")),
            },
            None => {
                placement::place(&guest.spec, hosts.map(|(_, host)| host), self.promised).map_err(|misfits| {
                    let words: Vec<_> = misfits
                        .iter()
                        .take(20)
                        .map(|(host, misfit)| format!("{host} {misfit}"))
                        .collect();
                    if words.is_empty() {
                        "there is no other host".into()
                    } else {
                        words.join("; ")
                    }
                })
            }
        };
        let host = match host {
            Ok(host) => host,
            Err(why) => {
                return Verdict::waits(
                    Reason::NoHostFits,
                    format!("No host takes the guest: {why}. Make room or add a host; it is tried again."),
                );
            }
        };
        match record_change::cold_start(record, word, &host) {
            Change::Write(_) => Verdict::to(
                Deed::ColdStart(host.clone()),
                format!("The guest is being given to {host}, to be started afresh from its disks."),
            ),
            Change::Refuse(why) => refused(&why),
            Change::Already => Verdict::done(
                Reason::ColdStarted,
                format!("The guest was given to {}.", record.holder),
            ),
        }
    }
}

#[cfg(test)]
mod tests;
