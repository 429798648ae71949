#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing test may panic")]

use godwit_crds::guest_record::GuestReference;
use godwit_crds::record_change::{Attempt, Change, advance, arm, decide as decide_record, first};
use godwit_crds::{Condition, Decision, VirtualMachineStatus};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::samples;

struct World {
    resolution: VirtualMachineResolution,
    guest: Option<VirtualMachine>,
    record: Option<GuestRecordSpec>,
    hosts: BTreeMap<String, VirtualMachineHost>,
    active: Option<(String, String)>,
}

/// Three hosts, of which `a` is not heard any more, and a guest at rest on it.
fn world(fenced: &[&str], action: ResolutionAction) -> World {
    let guest = samples::guest("vm");
    let reference = GuestReference {
        namespace: "default".into(),
        name: "vm".into(),
        uid: guest.uid().unwrap(),
        definition: "0".repeat(64),
    };
    let mut resolution = VirtualMachineResolution::new(
        "word",
        VirtualMachineResolutionSpec {
            virtual_machine: "vm".into(),
            epoch: 1,
            migration: None,
            fenced_hosts: fenced.iter().map(|host| (*host).into()).collect(),
            action,
            host: None,
            by: "eve".into(),
            note: None,
        },
    );
    resolution.metadata.uid = Some("uid-word".into());
    let mut world = World {
        resolution,
        guest: Some(guest),
        record: Some(first(reference, "a")),
        hosts: ["a", "b", "c"]
            .into_iter()
            .map(|name| (name.to_owned(), samples::host(name)))
            .collect(),
        active: None,
    };
    world.silence("a");
    world
}

impl World {
    fn silence(&mut self, host: &str) {
        let status = self.hosts.get_mut(host).unwrap().status.as_mut().unwrap();
        for condition in &mut status.conditions {
            condition.status = ConditionStatus::Unknown;
        }
    }

    fn judge(&self) -> Verdict {
        decide(&Facts {
            resolution: &self.resolution,
            guest: self.guest.as_ref(),
            record: self.record.as_ref(),
            hosts: &self.hosts,
            active: self
                .active
                .as_ref()
                .map(|(name, uid)| (name.as_str(), uid.as_str())),
            promised: &BTreeMap::new(),
        })
    }

    /// Carries the deed out, as the reconciler does.
    fn act(&mut self, verdict: &Verdict) {
        let word = word(&self.resolution);
        let record = self.record.as_ref().unwrap();
        let change = match &verdict.deed {
            Deed::None | Deed::LetGo => return,
            Deed::TakeIn => record_change::take_in(record, &word),
            Deed::ColdStart(host) => record_change::cold_start(record, &word, host),
        };
        self.write(change);
    }

    fn write(&mut self, change: Change) {
        match change {
            Change::Write(record) => self.record = Some(*record),
            Change::Already | Change::Refuse(_) => panic!("expected a write: {change:?}"),
        }
    }

    /// A migration from a to b is on its way, and waits.
    fn moving(&mut self, strict: bool) -> Attempt {
        let attempt = Attempt {
            migration: "uid-move".into(),
            epoch: 1,
            source: "a".into(),
            destination: "b".into(),
            strict,
        };
        self.write(arm(self.record.as_ref().unwrap(), &attempt));
        self.active = Some(("move".into(), "uid-move".into()));
        self.resolution.spec.migration = Some("uid-move".into());
        attempt
    }
}

#[test]
fn a_guest_on_a_host_that_is_gone_is_started_afresh_on_another_one() {
    let mut world = world(&["a"], ResolutionAction::ColdStart);
    let verdict = world.judge();
    assert_eq!(verdict.deed, Deed::ColdStart("b".into()));
    assert!(!verdict.ended());
    world.act(&verdict);
    let done = world.judge();
    assert_eq!(
        (done.applied, done.reason),
        (ConditionStatus::True, Reason::ColdStarted)
    );
    assert_eq!(world.record.as_ref().unwrap().holder, "b");

    let mut named = self::world(&["a"], ResolutionAction::ColdStart);
    named.resolution.spec.host = Some("c".into());
    assert_eq!(named.judge().deed, Deed::ColdStart("c".into()));
    named.resolution.spec.host = Some("d".into());
    assert_eq!(named.judge().reason, Reason::NoHostFits);
    named.hosts.retain(|name, _| name == "a");
    named.resolution.spec.host = None;
    let waits = named.judge();
    assert_eq!(
        (waits.applied, waits.reason),
        (ConditionStatus::Unknown, Reason::NoHostFits)
    );
}

#[test]
fn a_host_that_answers_is_not_believed_to_be_fenced() {
    for (fenced, reason) in [("b", Reason::HostAnswers), ("a", Reason::InProgress)] {
        let world = world(&[fenced], ResolutionAction::ColdStart);
        assert_eq!(world.judge().reason, reason, "{fenced}");
    }
    // A host of which there is no object any more answers nothing.
    let mut gone = world(&["a"], ResolutionAction::ColdStart);
    gone.hosts.remove("a");
    assert!(matches!(gone.judge().deed, Deed::ColdStart(_)));
}

#[test]
fn a_word_about_another_state_is_refused_for_good() {
    let mut old = world(&["a"], ResolutionAction::ColdStart);
    old.resolution.spec.epoch = 7;
    let verdict = old.judge();
    assert_eq!(
        (verdict.applied, verdict.reason),
        (ConditionStatus::False, Reason::Overtaken)
    );
    for action in [ResolutionAction::Wait, ResolutionAction::ResumeSource] {
        assert_eq!(world(&["a"], action).judge().reason, Reason::Overtaken);
    }
    let mut elsewhere = world(&["c"], ResolutionAction::ColdStart);
    elsewhere.silence("c");
    assert_eq!(elsewhere.judge().reason, Reason::NotFenced);
    let mut gone = world(&["a"], ResolutionAction::ColdStart);
    gone.record = None;
    assert_eq!(gone.judge().reason, Reason::RecordMissing);
    gone.guest = None;
    assert_eq!(gone.judge().reason, Reason::VirtualMachineNotFound);
    let mut busy = world(&["a"], ResolutionAction::ColdStart);
    busy.active = Some(("other".into(), "uid-other".into()));
    assert_eq!(busy.judge().reason, Reason::Overtaken);

    old.resolution.status = Some(godwit_crds::VirtualMachineResolutionStatus {
        let_go: None,
        conditions: vec![Condition {
            type_: APPLIED.into(),
            status: ConditionStatus::False,
            reason: Reason::Overtaken.word().into(),
            message: String::new(),
            last_transition_time: String::new(),
            observed_generation: 1,
        }],
    });
    assert!(ended(&old.resolution));
}

#[test]
fn a_lost_destination_is_given_up_and_then_the_guest_is_started_afresh() {
    let mut world = world(&["b"], ResolutionAction::ColdStart);
    world.silence("b");
    let attempt = world.moving(false);
    let verdict = world.judge();
    assert_eq!(verdict.deed, Deed::TakeIn);
    world.act(&verdict);
    let waits = world.judge();
    assert_eq!((&waits.deed, waits.reason), (&Deed::None, Reason::InProgress));
    world.write(advance(world.record.as_ref().unwrap(), &attempt));
    assert_eq!(world.judge().deed, Deed::None);
    world.active = None;
    let verdict = world.judge();
    assert_eq!(verdict.deed, Deed::ColdStart("c".into()));
    world.act(&verdict);
    assert_eq!(world.judge().reason, Reason::ColdStarted);
}

#[test]
fn where_the_guest_turns_out_to_be_saved_nothing_is_started() {
    let mut world = world(&["a"], ResolutionAction::ColdStart);
    let attempt = world.moving(false);
    let verdict = world.judge();
    world.act(&verdict);
    world.write(advance(world.record.as_ref().unwrap(), &attempt));
    world.active = None;
    assert_eq!(world.judge().reason, Reason::NotNeeded);
}

#[test]
fn a_strict_source_goes_on_where_its_destination_has_not_started_the_guest() {
    let mut world = world(&["b"], ResolutionAction::ResumeSource);
    world.silence("b");
    let attempt = world.moving(true);
    assert_eq!(world.judge().reason, Reason::NotResumable);
    world.write(decide_record(
        world.record.as_ref().unwrap(),
        &attempt,
        Decision::Committed,
    ));
    let verdict = world.judge();
    assert_eq!(verdict.deed, Deed::TakeIn);
    world.act(&verdict);
    assert_eq!(world.record.as_ref().unwrap().decision, Decision::Reverted);
    assert_eq!(world.judge().reason, Reason::InProgress);
    world.active = None;
    assert_eq!(world.judge().reason, Reason::SourceResumed);
}

#[test]
fn a_deleted_guest_is_let_go_where_its_host_is_fenced() {
    let mut world = world(&["a"], ResolutionAction::Wait);
    let delete = |world: &mut World| {
        let deleted = world.guest.as_mut().unwrap();
        deleted.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    };
    delete(&mut world);
    assert_eq!(world.judge().deed, Deed::LetGo);
    // Its memory is not asked for any more, whatever was said of it.
    world.resolution.spec.action = ResolutionAction::ColdStart;
    assert_eq!(world.judge().deed, Deed::LetGo);
    // The record is gone already, and the object is not.
    let record = world.record.take();
    world.guest.as_mut().unwrap().status = Some(VirtualMachineStatus {
        host: Some("a".into()),
        epoch: Some(1),
        ..VirtualMachineStatus::default()
    });
    assert_eq!(world.judge().deed, Deed::LetGo);
    world.resolution.spec.epoch = 7;
    assert_eq!(world.judge().reason, Reason::RecordMissing);
    world.record = record;
    assert_eq!(world.judge().reason, Reason::Overtaken);

    let mut other = self::world(&["b"], ResolutionAction::Wait);
    other.silence("b");
    delete(&mut other);
    assert_eq!(other.judge().reason, Reason::NotFenced);
}

#[test]
fn a_deleted_guest_that_turns_out_to_be_elsewhere_is_not_let_go() {
    let mut world = world(&["a"], ResolutionAction::Wait);
    let attempt = world.moving(false);
    world.guest.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    // Its migration ends first, by the word.
    let verdict = world.judge();
    assert_eq!(verdict.deed, Deed::TakeIn);
    world.act(&verdict);
    assert_eq!(world.judge().reason, Reason::InProgress);
    world.write(advance(world.record.as_ref().unwrap(), &attempt));
    world.active = None;
    assert_eq!(world.judge().reason, Reason::Fenced);
}
