//! Each judgement about a guest, on plain data.

use godwit_crds::guest_record::GuestReference;
use godwit_crds::{ArmedMigration, Decision};

use super::*;
use crate::samples::{guest, host};

struct World {
    guest: VirtualMachine,
    record: Option<GuestRecordSpec>,
    hosts: BTreeMap<String, VirtualMachineHost>,
    migration: Option<&'static str>,
    waits: Option<&'static str>,
    lost: bool,
    answer: Option<Answer>,
    missing_for: Duration,
    open_for: Duration,
}

impl World {
    fn new() -> Self {
        Self {
            guest: guest("web"),
            record: None,
            hosts: ["a", "b"].map(|name| (name.to_owned(), host(name))).into(),
            migration: None,
            waits: None,
            lost: false,
            answer: None,
            missing_for: Duration::ZERO,
            open_for: Duration::ZERO,
        }
    }

    /// A guest that `a` holds.
    fn held() -> Self {
        let reference = GuestReference {
            namespace: "default".into(),
            name: "web".into(),
            uid: "uid-web".into(),
            definition: "0".repeat(64),
        };
        Self {
            record: Some(record::first(reference, "a")),
            ..Self::new()
        }
    }

    /// A guest that `a` holds and reports.
    fn reported(state: GuestState) -> Self {
        let mut world = Self::held();
        world.report("a", state, 1);
        world
    }

    fn report(&mut self, host: &str, state: GuestState, epoch: i64) {
        self.hosts
            .get_mut(host)
            .unwrap()
            .status
            .as_mut()
            .unwrap()
            .guests
            .push(HostGuest {
                uid: "uid-web".into(),
                namespace: "default".into(),
                name: "web".into(),
                state,
                epoch,
                since: Some("2026-01-01T00:00:00.000000Z".into()),
            });
    }

    fn silence(&mut self, host: &str) {
        self.hosts
            .get_mut(host)
            .unwrap()
            .status
            .as_mut()
            .unwrap()
            .conditions[0]
            .status = ConditionStatus::Unknown;
    }

    fn delete(&mut self) {
        self.guest.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            Timestamp::from_second(9).unwrap(),
        ));
    }

    fn at(&self, second: i64) -> Verdict {
        decide(&Facts {
            guest: &self.guest,
            record: self.record.as_ref(),
            hosts: &self.hosts,
            migration: self.migration,
            waits: self.waits,
            lost: self.lost,
            answer: self.answer.as_ref(),
            missing_for: self.missing_for,
            open_for: self.open_for,
            promised: &BTreeMap::new(),
            now: Timestamp::from_second(second).unwrap(),
        })
    }

    /// The verdict; a second look at its own status changes nothing.
    fn judge(&self) -> Verdict {
        let verdict = self.at(10);
        let mut again = World {
            guest: self.guest.clone(),
            record: self.record.clone(),
            hosts: self.hosts.clone(),
            answer: self.answer.clone(),
            ..*self
        };
        again.guest.status = Some(verdict.status.clone());
        if verdict.deed == Deed::None {
            assert_eq!(again.at(20), verdict, "a second look changes something");
        }
        verdict
    }
}

fn condition(verdict: &Verdict, type_: &str) -> (ConditionStatus, String) {
    let found = find_condition(&verdict.status.conditions, type_).unwrap();
    (found.status, found.reason.clone())
}

#[test]
fn the_record_comes_before_the_first_order() {
    let verdict = World::new().judge();
    assert_eq!(verdict.deed, Deed::Record { host: "a".into() });
    let verdict = World::held().judge();
    assert_eq!(
        verdict.deed,
        Deed::Start {
            host: "a".into(),
            epoch: 1
        }
    );
    assert_eq!(verdict.status.host.as_deref(), Some("a"));
    assert_eq!(
        condition(&verdict, "Ready"),
        (ConditionStatus::False, "Starting".into())
    );
}

#[test]
fn a_named_host_is_taken_or_waited_for() {
    let mut world = World::new();
    world.guest.spec.host = Some("b".into());
    assert_eq!(world.judge().deed, Deed::Record { host: "b".into() });
    world.silence("b");
    let verdict = world.judge();
    assert_eq!(verdict.deed, Deed::None);
    assert_eq!(
        condition(&verdict, "Scheduled"),
        (ConditionStatus::False, "HostNotReady".into())
    );
    world.hosts.remove("b");
    assert_eq!(condition(&world.judge(), "Scheduled").1, "HostNotFound");
    world.guest.spec.host = None;
    world.guest.spec.memory = "999Gi".into();
    assert_eq!(condition(&world.judge(), "Scheduled").1, "NoHostFits");
}

#[test]
fn what_the_holder_reports_is_mirrored() {
    let verdict = World::reported(GuestState::Running).judge();
    assert_eq!(verdict.deed, Deed::None);
    assert_eq!(verdict.status.state, Some(GuestState::Running));
    assert_eq!(
        verdict.status.since.as_deref(),
        Some("2026-01-01T00:00:00.000000Z")
    );
    assert_eq!(
        condition(&verdict, "Ready"),
        (ConditionStatus::True, "Running".into())
    );
    assert_eq!(
        condition(&verdict, "NeedsDecision"),
        (ConditionStatus::False, "NotNeeded".into())
    );
}

#[test]
fn a_guest_whose_migration_waits_for_a_decision_says_so() {
    let mut world = World::reported(GuestState::Paused);
    world.waits = Some("Bring the agent on b back.");
    assert_eq!(
        condition(&world.judge(), "NeedsDecision").0,
        ConditionStatus::False
    );
    world.migration = Some("web-to-b");
    let verdict = world.judge();
    assert_eq!(
        condition(&verdict, "NeedsDecision"),
        (ConditionStatus::True, "MigrationWaits".into())
    );
    let told = find_condition(&verdict.status.conditions, "NeedsDecision").unwrap();
    assert_eq!(
        told.message,
        "Migration web-to-b waits: Bring the agent on b back."
    );
    world.waits = None;
    assert_eq!(
        condition(&world.judge(), "NeedsDecision").0,
        ConditionStatus::False
    );
}

#[test]
fn nothing_is_started_a_second_time() {
    for state in [GuestState::ShutOff, GuestState::Crashed, GuestState::Paused] {
        let verdict = World::reported(state).judge();
        assert_eq!(verdict.deed, Deed::None, "{state:?}");
        assert_eq!(verdict.status.state, Some(state));
        assert_eq!(condition(&verdict, "Ready").0, ConditionStatus::False);
    }
    // Seen once and missing now.
    let mut world = World::held();
    world.guest.status = Some(World::reported(GuestState::Running).judge().status);
    let verdict = world.judge();
    assert_eq!((verdict.deed, verdict.missing), (Deed::None, true));
    assert_eq!(verdict.status.state, Some(GuestState::Running));
    world.missing_for = REPORT_LAG;
    let verdict = world.judge();
    assert_eq!(verdict.deed, Deed::None);
    assert_eq!(
        condition(&verdict, "NeedsDecision"),
        (ConditionStatus::True, "ProcessGone".into())
    );
    // Moved once: no start order either.
    let mut world = World::held();
    world.record.as_mut().unwrap().epoch = 2;
    assert_eq!(world.judge().deed, Deed::None);
    // Answered once.
    let mut world = World::held();
    world.answer = Some(Answer::State(GuestState::ShutOff, None));
    assert_eq!(world.judge().status.state, Some(GuestState::ShutOff));
    world.missing_for = REPORT_LAG;
    assert_eq!(world.judge().deed, Deed::None);
}

#[test]
fn a_refused_start_is_told_and_tried_again() {
    let mut world = World::held();
    world.answer = Some(Answer::Fault(Fault::new(
        Category::Lacking,
        "FileMissing",
        "vmlinuz is not there",
    )));
    let verdict = world.judge();
    assert!(matches!(verdict.deed, Deed::Start { .. }));
    assert_eq!(
        condition(&verdict, "Ready"),
        (ConditionStatus::False, "FileMissing".into())
    );
    world.answer = Some(Answer::Fault(Fault::new(
        Category::Unavailable,
        "AgentUnreachable",
        "no answer",
    )));
    let verdict = world.judge();
    assert!(matches!(verdict.deed, Deed::Start { .. }));
    assert_eq!(
        condition(&verdict, "NeedsDecision"),
        (ConditionStatus::True, "StartUnanswered".into())
    );
}

#[test]
fn each_refusal_keeps_its_word_and_an_unknown_one_is_not_the_definitions_fault() {
    let told = |category, word: &'static str| {
        let mut world = World::held();
        world.answer = Some(Answer::Fault(Fault::new(category, word, "so it is")));
        let verdict = world.judge();
        (
            condition(&verdict, "Ready"),
            condition(&verdict, "NeedsDecision").0,
        )
    };
    let no = |status, word: &str| ((status, word.to_owned()), ConditionStatus::False);
    let yes = |status, word: &str| ((status, word.to_owned()), ConditionStatus::True);
    for (category, word) in [
        (Category::Internal, "InternalError"),
        (Category::Conflict, "StaleEpoch"),
        (Category::Conflict, "AnotherMigrationActive"),
        (Category::Conflict, "RecordConflict"),
        (Category::Forbidden, "NotAllowed"),
        (Category::Forbidden, "CertificateRejected"),
        (Category::Version, "ProtocolVersionUnsupported"),
        (Category::Unavailable, "DiskFull"),
        (Category::Unavailable, "HypervisorUnavailable"),
        (Category::Invalid, "DefinitionRefused"),
    ] {
        assert_eq!(told(category, word), no(ConditionStatus::False, word));
    }
    assert_eq!(
        told(Category::Unavailable, "HypervisorUnresponsive"),
        no(ConditionStatus::Unknown, "HypervisorUnresponsive")
    );
    for word in ["JournalNewer", "JournalDamaged"] {
        assert_eq!(
            told(Category::Unavailable, word),
            yes(ConditionStatus::Unknown, word)
        );
    }
    assert_eq!(
        told(Category::Internal, "Surprise"),
        no(ConditionStatus::False, "InternalError")
    );
    assert_eq!(
        told(Category::Invalid, "Surprise"),
        no(ConditionStatus::False, "DefinitionRefused")
    );
    assert_eq!(
        told(Category::Unavailable, "Surprise"),
        yes(ConditionStatus::Unknown, "AgentUnreachable")
    );
}

#[test]
fn it_is_said_that_the_host_has_forgotten_a_transient_guest() {
    let message = |persistence, migration| {
        let mut world = World::reported(GuestState::ShutOff);
        world.guest.spec.persistence = persistence;
        world.migration = migration;
        let verdict = world.judge();
        assert_eq!(verdict.deed, Deed::None);
        assert_eq!(
            condition(&verdict, "Ready"),
            (ConditionStatus::False, "ShutOff".into())
        );
        find_condition(&verdict.status.conditions, "Ready")
            .unwrap()
            .message
            .clone()
    };
    assert!(message(Persistence::Transient, None).contains("a has forgotten its definition"));
    assert!(!message(Persistence::Transient, Some("m")).contains("forgotten"));
    assert!(!message(Persistence::Persistent, None).contains("forgotten"));
}

#[test]
fn a_silent_host_is_no_evidence() {
    let mut world = World::reported(GuestState::Running);
    world.silence("a");
    let verdict = world.judge();
    assert_eq!(verdict.deed, Deed::None);
    assert_eq!(verdict.status.state, Some(GuestState::Unknown));
    assert_eq!(
        condition(&verdict, "Ready"),
        (ConditionStatus::Unknown, "AgentUnreachable".into())
    );
    let mut world = World::held();
    world.silence("a");
    assert_eq!(world.judge().deed, Deed::None);
}

#[test]
fn a_missing_record_starts_nothing() {
    let mut world = World::reported(GuestState::Running);
    world.record = None;
    let verdict = world.judge();
    assert_eq!(verdict.deed, Deed::None);
    assert_eq!(
        condition(&verdict, "NeedsDecision"),
        (ConditionStatus::True, "RecordMissing".into())
    );
    let mut world = World::new();
    world.guest.status = Some(VirtualMachineStatus {
        epoch: Some(1),
        ..Default::default()
    });
    assert_eq!(world.judge().deed, Deed::None);
}

#[test]
fn a_guest_on_two_hosts_is_told() {
    let mut world = World::reported(GuestState::Running);
    world.report("b", GuestState::Running, 1);
    assert_eq!(condition(&world.judge(), "NeedsDecision").1, "RecordConflict");
    // The old host's report lags behind a move.
    let mut world = World::held();
    world.record.as_mut().unwrap().epoch = 2;
    world.report("a", GuestState::Running, 2);
    world.report("b", GuestState::Running, 1);
    assert_eq!(condition(&world.judge(), "NeedsDecision").1, "NotNeeded");
}

#[test]
fn nothing_is_done_on_the_word_of_a_record_that_lies_behind() {
    // It was restored from before the guest's move to b, which has not reported it again yet.
    let mut world = World::held();
    world.guest.status = Some(VirtualMachineStatus {
        host: Some("b".into()),
        epoch: Some(2),
        ..Default::default()
    });
    for deleted in [false, true] {
        if deleted {
            world.delete();
        }
        let verdict = world.judge();
        assert_eq!(verdict.deed, Deed::None);
        assert_eq!(condition(&verdict, "NeedsDecision").1, "RecordConflict");
        assert_eq!(
            (verdict.status.host.as_deref(), verdict.status.epoch),
            (Some("b"), Some(2))
        );
    }
    // The status was restored with it, from before the first start; b reports the guest.
    for state in [GuestState::Running, GuestState::Paused] {
        let mut world = World::held();
        world.report("b", state, 2);
        assert_eq!(world.judge().deed, Deed::None);
        assert_eq!(condition(&world.judge(), "NeedsDecision").1, "RecordConflict");
        world.delete();
        assert_eq!(world.judge().deed, Deed::None);
        assert_eq!(condition(&world.judge(), "NeedsDecision").1, "RecordConflict");
    }
    // It is armed for a migration that is long over.
    let mut world = World::held();
    world.report("b", GuestState::Running, 2);
    let record = world.record.as_mut().unwrap();
    record.migration = Some(ArmedMigration {
        uid: "m".into(),
        source: "a".into(),
        destination: "b".into(),
        strict: false,
    });
    assert_eq!(condition(&world.judge(), "NeedsDecision").1, "RecordConflict");
}

#[test]
fn during_a_migration_only_the_status_moves() {
    let mut world = World::held();
    world.migration = Some("web-to-b");
    let verdict = world.judge();
    assert_eq!(verdict.deed, Deed::None);
    assert_eq!(verdict.status.migration.as_deref(), Some("web-to-b"));
    let mut world = World::held();
    world.record.as_mut().unwrap().migration = Some(ArmedMigration {
        uid: "m".into(),
        source: "a".into(),
        destination: "b".into(),
        strict: false,
    });
    assert_eq!(world.judge().deed, Deed::None);
}

#[test]
fn a_lost_guest_stays_lost() {
    let mut world = World::reported(GuestState::Crashed);
    world.lost = true;
    let verdict = world.judge();
    assert_eq!(
        (verdict.deed.clone(), verdict.status.state),
        (Deed::None, Some(GuestState::Lost))
    );
    world.lost = false;
    world.guest.status = Some(verdict.status);
    assert_eq!(world.judge().status.state, Some(GuestState::Lost));
}

#[test]
fn a_deleted_guest_is_stopped_where_it_runs() {
    let mut world = World::reported(GuestState::Running);
    world.delete();
    assert_eq!(
        world.judge().deed,
        Deed::Stop {
            host: "a".into(),
            epoch: 1
        }
    );
    world.migration = Some("web-to-b");
    assert_eq!(world.judge().deed, Deed::None);
    // The record went, the object is still there: the host is asked once more.
    let mut world = World::new();
    world.delete();
    world.guest.status = Some(VirtualMachineStatus {
        host: Some("a".into()),
        epoch: Some(1),
        ..Default::default()
    });
    assert_eq!(
        world.judge().deed,
        Deed::Stop {
            host: "a".into(),
            epoch: 1
        }
    );
    world.hosts.clear();
    assert_eq!(world.judge().deed, Deed::None);
    world.guest.status = None;
    assert_eq!(world.judge().deed, Deed::Release);
}

/// A guest that `a` holds and reports, its record armed for a migration to `b`.
fn armed() -> World {
    let mut world = World::reported(GuestState::Running);
    world.record.as_mut().unwrap().migration = Some(ArmedMigration {
        uid: "m".into(),
        source: "a".into(),
        destination: "b".into(),
        strict: false,
    });
    world
}

#[test]
fn a_record_that_stays_open_for_no_migration_is_settled() {
    let mut world = armed();
    world.migration = Some("web-to-b");
    world.open_for = OPEN_FOR;
    let verdict = world.judge();
    assert!(!verdict.open);
    assert_eq!(verdict.deed, Deed::None);

    world.migration = None;
    world.open_for = Duration::ZERO;
    let verdict = world.judge();
    assert!(verdict.open);
    assert_eq!(verdict.deed, Deed::None, "it may just not have been seen yet");

    world.open_for = OPEN_FOR;
    let verdict = world.judge();
    assert_eq!(
        verdict.deed,
        Deed::Settle {
            migration: "m".into()
        }
    );
    assert_eq!(
        condition(&verdict, "NeedsDecision"),
        (ConditionStatus::True, "MigrationWaits".into())
    );
    assert_eq!(verdict.status.state, Some(GuestState::Running));

    // Nor is anybody stopped before it is known who holds the guest.
    world.delete();
    assert_eq!(
        world.judge().deed,
        Deed::Settle {
            migration: "m".into()
        }
    );
    world.open_for = Duration::ZERO;
    assert_eq!(world.judge().deed, Deed::None);
    world.record.as_mut().unwrap().decision = Decision::Aborted;
    let verdict = world.judge();
    assert!(!verdict.open);
    assert_eq!(
        verdict.deed,
        Deed::Stop {
            host: "a".into(),
            epoch: 1
        }
    );
}

#[test]
fn a_guest_is_not_stopped_here_while_another_host_has_it_from_before() {
    let mut world = World::held();
    world.record.as_mut().unwrap().epoch = 5;
    world.record.as_mut().unwrap().holder = "b".into();
    world.report("a", GuestState::Running, 4);
    world.delete();
    let verdict = world.judge();
    assert_eq!(verdict.deed, Deed::None);
    assert_eq!(
        condition(&verdict, "NeedsDecision"),
        (ConditionStatus::True, "RecordConflict".into())
    );
    // What a host that does not answer said before it died is not waited for.
    world.silence("a");
    assert_eq!(
        world.judge().deed,
        Deed::Stop {
            host: "b".into(),
            epoch: 5
        }
    );
}

#[test]
fn a_record_from_a_backup_is_not_settled() {
    // It was armed when the backup was made; the guest has long run at the destination.
    let mut world = armed();
    world.open_for = OPEN_FOR;
    world
        .hosts
        .get_mut("a")
        .unwrap()
        .status
        .as_mut()
        .unwrap()
        .guests
        .clear();
    world.report("b", GuestState::Running, 2);
    let verdict = world.judge();
    assert_eq!(verdict.deed, Deed::None);
    assert_eq!(
        condition(&verdict, "NeedsDecision"),
        (ConditionStatus::True, "RecordConflict".into())
    );
    world.delete();
    let verdict = world.judge();
    assert_eq!(verdict.deed, Deed::None);
    assert_eq!(condition(&verdict, "NeedsDecision").1, "RecordConflict");
}
