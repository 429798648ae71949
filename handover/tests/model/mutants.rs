//! Deliberate mistakes. Each leaves one rule out, in the way in which a hurried implementation would; the model
//! must catch every one ([`crate::catches`]).

/// A rule left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// Rule 0: the guest is called sealed without having been stopped while the stream was active.
    NoSeal,
    /// Rule 0: the seal is journaled when the pause is ordered, not when it was seen: what a restarted agent then
    /// takes for a proof is none.
    SealWrittenEarly,
    /// Rule 1: the source resumes when nobody answers after the switchover was ordered.
    ResumeOnSilence,
    /// Rule 1: the source resumes when Finish is not answered (what libvirt does).
    ResumeOnLostFinish,
    /// Rule 1: a record that cannot be read is taken for one that says Aborted.
    MissingRecordIsAborted,
    /// Rule 1: the record is read from a cache, and whose migration it is about is not looked at.
    StaleRead,
    /// Rule 1: a source whose stream failed keeps the disks' locks.
    LocksKept,
    /// Rule 2: `go-sent` is not written down.
    UnjournaledGo,
    /// Rule 2: the source gives up when it is told to, Go or not.
    AbortAfterGo,
    /// Rule 2: the source asks the record for Aborted although it has said Go.
    ArbitrateAfterGo,
    /// Rule 2: that the record is asked, and Go never said, is not written down.
    UnjournaledArbitration,
    /// Rule 2: a host that has given a migration up begins it again when it is asked again.
    SecondAttempt,
    /// Rule 3: the destination is let run as soon as it has loaded the guest.
    ContBeforeGo,
    /// Rule 3: the destination commits the record though nobody has told it that the source stands still.
    CommitUntold,
    /// Rule 3: `cont-issued` is not written down.
    UnjournaledCont,
    /// Rule 3: a loaded guest is given up after a silence.
    DestroyOnTimeOut,
    /// Rule 3: an error to `cont` is taken for a refusal, and nobody looks whether the guest runs.
    RefusalUnseen,
    /// Rule 3 and the journals: an entry whose fsync failed counts as written.
    FsyncErrorIgnored,
    /// Strict: a Go is enough to let the guest run.
    GoIsEnough,
    /// Rule 4: an agent that finds its guest's process dead says that the guest never ran, whatever the journal says.
    RevertAfterCont,
    /// Rule 4: an agent that does not answer is taken for one that has given its copy up.
    AbsenceIsRevert,
    /// Rule 4: that the destination's copy is gone and never ran is not written into the record.
    RevertNotWritten,
    /// Rule 5: a destination host that was lost after Go is declared dead without having been fenced.
    HostLostUnfenced,
    /// Rule 5: a fence is believed of a host that is alive.
    FenceUnproved,
    /// Rule 5: a source's image goes on by an administrator's word although the destination may have run its own.
    ResumedAfterStart,
    /// Rule 6: the record is advanced on the source's Go instead of the destination's report.
    AdvanceOnGo,
    /// Rule 6: the source lets go as soon as the destination reports; nobody has advanced the record.
    DestroyWhileNamed,
    /// Rule 7: a write whose answer was lost is taken for done.
    LostReplyIsWritten,
    /// Rule 7: the source takes Aborted for written where nobody has answered.
    UnansweredAbortIsWritten,
    /// Rule 7: the destination takes Committed for written where nobody has answered.
    UnansweredCommitIsWritten,
    /// Rule 7: a driver ends while the answer to its write is outstanding.
    EndsUnanswered,
    /// Rule 8: that the path is not proved any more is not told to the source.
    PathNotWatched,
    /// The record is written as it follows from what was read once: no compare-and-swap.
    UnconditionalPatch,
    /// The record is written without a look at the migration for which it is armed.
    ForeignRecord,
    /// Unsealed, and a fact about the hypervisor: without a return path the source is called completed before the
    /// destination has loaded.
    CompletedUnacknowledged,
    /// A guest that has powered off is let run again when its migration is given up.
    EndedGuestRestored,
}
