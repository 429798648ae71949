//! What can happen, by name.

use godwit_handover::{DestinationEvent, SourceEvent};

use crate::driving::Order;

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    // Work in order.
    SourceWork,
    DestinationWork,
    SourceAgentRestart,
    DestinationAgentRestart,
    // The network. A driver is named by its number.
    Deliver(Order),
    HearSource(usize),
    HearDestination(usize),
    /// A driver's write of the record arrives, and is answered.
    DriverWrites(usize),
    DriverReads(usize),
    /// What time alone tells a driver: that it has not heard a side for too long.
    SourceUnheard(usize),
    DestinationUnheard(usize),
    /// What an agent had asked the record before it crashed arrives.
    LateWrite,
    /// The destination's agent writes into the record what only it may, or what else would wait for a driver.
    DestinationWrites,
    /// The proof that Ready and Go get through, and that the API server answers, is there again.
    PathProvenAgain,
    // What agents see of their processes, of their peers and of the time.
    SeeSource(SourceEvent),
    SeeDestination(DestinationEvent),
    // What the hypervisors do by themselves.
    Collect,
    Converge,
    Load,
    Acknowledge,
    SelfRestart,
    /// The destination sees the end of a stream whose source is gone.
    StreamEnds,
    /// The source sees that its peer is gone.
    PeerGone,
    /// An administrator speaks of a host that is gone for good.
    Say(Said),
    /// The guest is started afresh by his word.
    ColdStart,
    /// Costs one of the budget.
    Fault(Fault),
}

/// An administrator's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Said {
    /// What is gone is fenced.
    Fenced,
    /// And what a fenced destination may have run is lost.
    Lost,
    /// The source's image is to go on.
    Resume,
}

/// Something that need not ever happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    // Agents, hosts and drivers.
    SourceAgentCrash,
    /// Between the opening of the channel and the start of the stream: the hypervisor keeps the channel open.
    SourceAgentCrashAfterConnect,
    DestinationAgentCrash,
    /// The agent and the hypervisor at once; the journal outlives them.
    SourceHostReboots,
    DestinationHostReboots,
    /// The same, and it never comes back.
    SourceHostLost,
    DestinationHostLost,
    /// The controller that drives dies, and the next one starts from what is so.
    DriverRestart,
    /// The same, and it takes an old version of the record for the present one.
    DriverRestartOnOldRecord,
    /// Another controller leads as well, and the old one does not know it.
    SecondDriver,
    // Hypervisors.
    SourceProcessDies,
    DestinationProcessDies,
    LaunchFails,
    /// The hypervisor takes the stream on, and its answer does not come.
    StreamStartUnanswered,
    /// The stream fails as the destination sees it.
    StreamBreaks,
    /// The stream fails as the source sees it: a cut, a storage error at the switchover, a cancel by nobody knows
    /// whom.
    LateFailure,
    PauseRefused,
    /// The guest stands still, and the answer does not come.
    PauseUnanswered,
    SwitchOverRefused,
    RestoreFails,
    ResumeRefused,
    // Silence.
    /// Neither side hears the driver.
    DriverSilent,
    /// Only the one does not.
    SourceHearsNobody,
    DestinationHearsNobody,
    PathLost,
    /// The driver does not hear a side that is there.
    SourceUnheard,
    DestinationUnheard,
    // The API server.
    /// The record that the source wants to read cannot be read.
    RecordReadFails,
    /// A write of the record is applied, and its answer is lost.
    RecordWriteUnanswered,
    /// The same, where an agent asks the record to decide.
    SourceDecisionUnanswered,
    DestinationDecisionUnanswered,
    /// What an agent asks of the record is neither applied nor answered.
    SourceDecisionLost,
    DestinationDecisionLost,
    /// Strict: that the guest is let run was written and not answered, or not written either.
    StartUnanswered,
    StartLost,
    /// The guest moves on: the record is armed for its next migration as soon as that is allowed.
    NextMigration,
    // Disks.
    SourceJournalFails,
    /// An fsync fails, and the entry is on the disk all the same.
    SourceJournalFailsWritten,
    DestinationJournalFails,
    DestinationJournalFailsWritten,
    // The guest and its user.
    GuestEnds,
    UserPauses,
    UserResumes,
    Cancel,
}

impl Action {
    /// Whether it is a fault: something that need not ever happen.
    pub fn is_fault(&self) -> bool {
        match self {
            Action::Fault(_) => true,
            Action::SourceWork
            | Action::DestinationWork
            | Action::SourceAgentRestart
            | Action::DestinationAgentRestart
            | Action::Deliver(_)
            | Action::HearSource(_)
            | Action::HearDestination(_)
            | Action::DriverWrites(_)
            | Action::DriverReads(_)
            | Action::SourceUnheard(_)
            | Action::DestinationUnheard(_)
            | Action::LateWrite
            | Action::DestinationWrites
            | Action::PathProvenAgain
            | Action::SeeSource(_)
            | Action::SeeDestination(_)
            | Action::Collect
            | Action::Converge
            | Action::Load
            | Action::Acknowledge
            | Action::SelfRestart
            | Action::StreamEnds
            | Action::PeerGone
            | Action::Say(_)
            | Action::ColdStart => false,
        }
    }
}
