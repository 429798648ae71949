//! Every mutant is caught: by this property, in this flow, with no other faults than these, one of each. The shortest
//! history that shows it is printed.

use std::collections::BTreeSet;

use stateright::{Checker, HasDiscoveries, Model};

use crate::action::Fault;
use crate::driving::Flow::{self, ControllerDrives, SourceDrives};
use crate::migration::Migration;
use crate::mutants::Mutant;
use crate::properties;
use crate::threads;

fn assert_caught(mutant: Mutant, flow: Flow, property: &'static str, faults: &'static [Fault]) {
    let budget = u8::try_from(faults.len()).expect("a few faults");
    let checker = Migration {
        flow,
        strict: mutant == Mutant::GoIsEnough,
        faults: budget,
        only: Some(faults),
        mutant: Some(mutant),
    }
    .checker()
    .threads(threads())
    .finish_when(HasDiscoveries::AnyOf(BTreeSet::from([property])))
    .spawn_bfs()
    .join();
    let path = checker.discovery(property).unwrap_or_else(|| {
        panic!(
            "{mutant:?} was not caught by {property:?}; found instead: {:?}",
            checker.discoveries().keys()
        )
    });
    println!("{mutant:?} breaks {property:?}, {flow:?}:");
    for action in path.into_actions() {
        println!("  {action:?}");
    }
}

macro_rules! caught {
    ($($name:ident: $mutant:ident, $flow:ident, $property:ident, [$($fault:ident),*];)*) => {
        $(#[test]
        fn $name() {
            assert_caught(Mutant::$mutant, $flow, properties::$property, &[$(Fault::$fault),*]);
        })*
    };
}

caught! {
    // Rule 0
    mutant_no_seal_is_caught: NoSeal, ControllerDrives, ONE_COPY, [LateFailure];
    mutant_seal_written_early_is_caught: SealWrittenEarly, SourceDrives, ONE_COPY, [SourceAgentCrash, LateFailure];
    // Rule 1
    mutant_resume_on_silence_is_caught: ResumeOnSilence, ControllerDrives, ONE_COPY, [DriverSilent];
    mutant_resume_on_lost_finish_is_caught: ResumeOnLostFinish, ControllerDrives, ONE_COPY, [SourceHearsNobody];
    mutant_missing_record_is_caught: MissingRecordIsAborted, ControllerDrives, NO_WAY_BACK, [RecordReadFails];
    mutant_stale_read_is_caught: StaleRead, ControllerDrives, ONE_COPY, [];
    mutant_locks_kept_is_caught: LocksKept, SourceDrives, LOCKS, [LateFailure];
    // Rule 2
    mutant_unjournaled_go_is_caught: UnjournaledGo, ControllerDrives, ONE_COPY, [SourceAgentCrash, SourceHearsNobody];
    mutant_abort_after_go_is_caught: AbortAfterGo, ControllerDrives, ONE_COPY, [Cancel];
    mutant_arbitrate_after_go_is_caught: ArbitrateAfterGo, ControllerDrives, ONE_COPY, [SourceHearsNobody];
    mutant_unjournaled_arbitration_is_caught: UnjournaledArbitration, ControllerDrives, ONE_COPY,
        [SourceHearsNobody, SourceAgentCrash];
    mutant_second_attempt_is_caught: SecondAttempt, ControllerDrives, ONE_DESTINATION, [LaunchFails];
    // Rule 3
    mutant_cont_before_go_is_caught: ContBeforeGo, ControllerDrives, ONE_COPY, [LateFailure];
    mutant_commit_untold_is_caught: CommitUntold, ControllerDrives, ONE_COPY, [LateFailure, DestinationHearsNobody];
    mutant_unjournaled_cont_is_caught: UnjournaledCont, ControllerDrives, NO_WAY_BACK,
        [DestinationAgentCrash, DestinationProcessDies];
    mutant_destroy_on_time_out_is_caught: DestroyOnTimeOut, ControllerDrives, IMAGE,
        [DestinationHearsNobody, SourceProcessDies];
    mutant_refusal_unseen_is_caught: RefusalUnseen, ControllerDrives, NO_WAY_BACK,
        [ResumeRefused, DestinationProcessDies];
    mutant_fsync_error_ignored_is_caught: FsyncErrorIgnored, SourceDrives, NO_WAY_BACK,
        [DestinationJournalFails, DestinationHostReboots];
    mutant_go_is_enough_is_caught: GoIsEnough, ControllerDrives, ONE_COPY, [SourceHearsNobody];
    // Rule 4
    mutant_revert_after_cont_is_caught: RevertAfterCont, SourceDrives, NO_WAY_BACK, [DestinationHostReboots];
    mutant_absence_is_revert_is_caught: AbsenceIsRevert, ControllerDrives, ONE_COPY, [DestinationAgentCrash];
    mutant_revert_not_written_is_caught: RevertNotWritten, SourceDrives, SOMEBODY, [DestinationProcessDies];
    // Rule 5
    mutant_host_lost_unfenced_is_caught: HostLostUnfenced, ControllerDrives, ONE_COPY, [DestinationAgentCrash];
    mutant_fence_unproved_is_caught: FenceUnproved, ControllerDrives, ONE_COPY, [];
    mutant_resumed_after_start_is_caught: ResumedAfterStart, ControllerDrives, NO_WAY_BACK, [DestinationHostLost];
    // Rule 6
    mutant_advance_before_report_is_caught: AdvanceOnGo, ControllerDrives, IMAGE, [];
    mutant_destroy_while_named_is_caught: DestroyWhileNamed, ControllerDrives, NAMED, [];
    // Rule 7
    mutant_lost_reply_is_written_is_caught: LostReplyIsWritten, ControllerDrives, RECORDED,
        [LaunchFails, RecordWriteUnanswered];
    mutant_unanswered_abort_is_written_is_caught: UnansweredAbortIsWritten, ControllerDrives, ONE_COPY,
        [DriverSilent, SourceDecisionLost];
    mutant_unanswered_commit_is_written_is_caught: UnansweredCommitIsWritten, ControllerDrives, ONE_COPY,
        [DriverSilent, DestinationDecisionLost];
    mutant_ends_unanswered_is_caught: EndsUnanswered, ControllerDrives, RECORDED, [Cancel, RecordWriteUnanswered];
    // Rule 8
    mutant_path_not_watched_is_caught: PathNotWatched, ControllerDrives, PATH, [PathLost];
    // The record
    mutant_unconditional_patch_is_caught: UnconditionalPatch, ControllerDrives, RECORD, [Cancel];
    mutant_foreign_record_is_caught: ForeignRecord, ControllerDrives, RECORD, [Cancel, NextMigration];
    // Unsealed, and the guest's own ends
    mutant_completed_without_acknowledgement_is_caught: CompletedUnacknowledged, ControllerDrives, ONE_COPY,
        [LateFailure];
    mutant_ended_guest_restored_is_caught: EndedGuestRestored, ControllerDrives, ENDED, [GuestEnds];
}
