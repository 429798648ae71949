//! What a migration is about: the words that every order and every journal carries.

use serde::{Deserialize, Serialize};

/// Grows by one at each handover of a guest. An order with a lower one than the host knows is refused.
pub type Epoch = u64;

/// The terms of one migration. Two orders belong together only if all of this is equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Terms {
    /// The VirtualMachineMigration's UID. Every order is idempotent by it.
    pub migration: String,
    /// The VirtualMachine's UID.
    pub guest: String,
    /// The epoch at which the source holds the guest; after the handover the destination holds it at the next one.
    pub epoch: Epoch,
    /// The source host's name.
    pub source: String,
    /// The destination host's name.
    pub destination: String,
    /// Whether the destination lets the guest run only once the record says Committed and started (`handoff: Strict`).
    #[serde(default)]
    pub strict: bool,
}

/// The five steps of the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Phase {
    /// The source checks the guest and protects it against changes.
    Begin,
    /// The destination makes itself ready to receive.
    Prepare,
    /// Memory travels, up to the source's word Go.
    Perform,
    /// The destination takes the guest over.
    Finish,
    /// The source lets go.
    Confirm,
}

/// Where and with which word the destination takes the stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Channel {
    /// The migration URI, for example `tcp://10.0.0.2:49160`.
    pub uri: String,
    /// The one-time word that opens the channel. A secret: never in a log, a status or a journal.
    pub token: Token,
}

/// A secret word. Its `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Token(pub Vec<u8>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// What the guest did when it was stopped for the switchover, and so what it is to do at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Wanted {
    /// It ran: the destination lets it run.
    Run,
    /// A user had paused it, or it had powered off, panicked or stopped on an I/O error: the destination takes
    /// it over as it is and does not let it run.
    StayStopped,
}

/// Why a migration ended otherwise than by a handover. The details, for people, travel beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Cause {
    /// The user asked for it.
    Cancelled,
    /// The destination could not prepare itself, or gave the guest's copy up.
    DestinationFailed,
    /// The destination's hypervisor process died.
    DestinationDied,
    /// The source's hypervisor process died.
    SourceDied,
    /// The stream could not be opened, or broke.
    StreamFailed,
    /// The driver was silent for longer than the keepalive allows.
    DriverSilent,
    /// There was no recent proof that Ready and Go would get through and that the API server answers.
    PathNotProven,
    /// The guest powered off, panicked or stopped on an I/O error before the switchover.
    GuestStopped,
    /// The agent's state directory took no write.
    JournalFailed,
    /// The hypervisor refused a command that it should have taken.
    HypervisorRefused,
    /// The record says that the destination never will run the guest.
    Reverted,
}

/// Why Go may be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GoEvidence {
    /// The source's hypervisor has acknowledged the whole stream; it can no longer run the guest by itself.
    Completed,
    /// The source is sealed and has given its disks up, and the destination has loaded the guest.
    SealedAndReleased,
    /// The source's hypervisor process is dead, by its pidfd.
    SourceDead,
    /// Not the source's word: the destination has itself committed the record, by compare-and-swap. Never on the wire.
    Committed,
}

/// The source's guest stands still, and nothing but a record that was read to say Aborted or Reverted makes it run
/// again: with this the destination may commit the record by itself (rule 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Standing {
    /// Why that is so.
    pub because: StandingBecause,
    /// What the guest is to do.
    pub wanted: Wanted,
}

/// Why the source's guest does not run again by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum StandingBecause {
    /// It is sealed and the switchover was ordered: no undo is left.
    Sealed,
    /// Its process is dead, by its pidfd.
    SourceDead,
    /// Its host is fenced, as the record says (rule 5).
    SourceFenced,
}

/// The source's word that the destination may run the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Go {
    /// Why it may be said.
    pub evidence: GoEvidence,
    /// What the guest is to do.
    pub wanted: Wanted,
    /// Whether the source is known never to restart by itself.
    pub sealed: bool,
}

/// A fresh reading of the guest's record.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RecordView {
    /// The host that may run the guest.
    pub holder: String,
    /// The epoch.
    pub epoch: Epoch,
    /// The migration that the record is armed for.
    pub migration: Option<String>,
    /// What was decided about it.
    pub decision: Decision,
    /// Strict only: the destination has said that it lets the guest run.
    #[serde(default)]
    pub started: bool,
    /// What an administrator has said about the guest, if anything.
    #[serde(default)]
    pub word: Option<Word>,
}

/// An administrator's word about a migration whose hosts are gone for good (rule 5). It is evidence like a pidfd: a fenced
/// host runs nothing and never will.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Word {
    /// The migration that it is about; `None`: the guest at rest.
    pub migration: Option<String>,
    /// The hosts that are fenced.
    pub fenced: Vec<String>,
    /// Whether what a fenced destination may have run is given up for lost.
    pub lost: bool,
    /// The epoch at which the guest was started afresh by it.
    pub cold_start: Option<Epoch>,
}

/// What a record says about its migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Decision {
    /// Nothing yet.
    None,
    /// The destination may run the guest.
    Committed,
    /// The destination never will; the source decided.
    Aborted,
    /// The destination never will; the destination decided.
    Reverted,
}

impl RecordView {
    /// Whether the record has been advanced for this migration: the destination holds the guest at the next epoch.
    pub fn advanced_for(&self, terms: &Terms) -> bool {
        self.migration.as_deref() == Some(terms.migration.as_str())
            && self.decision == Decision::Committed
            && self.holder == terms.destination
            && self.epoch == terms.epoch + 1
    }

    /// Whether the destination of this migration has committed the record, and it was not advanced yet.
    pub fn committed_for(&self, terms: &Terms) -> bool {
        self.migration.as_deref() == Some(terms.migration.as_str())
            && self.decision == Decision::Committed
            && self.holder == terms.source
            && self.epoch == terms.epoch
    }

    /// Whether the record says that the destination of this migration never will run the guest.
    pub fn reverted_for(&self, terms: &Terms) -> bool {
        self.migration.as_deref() == Some(terms.migration.as_str())
            && matches!(self.decision, Decision::Aborted | Decision::Reverted)
            && self.holder == terms.source
            && self.epoch == terms.epoch
    }

    fn fenced(&self, terms: &Terms, host: &str) -> bool {
        self.word.as_ref().is_some_and(|word| {
            word.migration.as_ref() == Some(&terms.migration)
                && word.fenced.iter().any(|fenced| fenced == host)
        })
    }

    /// Whether this migration's source is gone for good.
    pub fn source_fenced(&self, terms: &Terms) -> bool {
        self.fenced(terms, &terms.source)
    }

    /// Whether this migration's destination is gone for good.
    pub fn destination_fenced(&self, terms: &Terms) -> bool {
        self.fenced(terms, &terms.destination)
    }

    /// Whether whatever this migration's destination may have run is given up for lost.
    pub fn given_up(&self, terms: &Terms) -> bool {
        self.destination_fenced(terms) && self.word.as_ref().is_some_and(|word| word.lost)
    }

    /// Whether the guest has come to be held at a later epoch than this migration's source had it at.
    pub fn is_past(&self, terms: &Terms) -> bool {
        self.epoch > terms.epoch
    }

    /// Whether the guest was started afresh since this migration, which has left no image of any use then.
    pub fn left_behind(&self, terms: &Terms) -> bool {
        let afresh = self.word.as_ref().and_then(|word| word.cold_start);
        afresh.is_some_and(|afresh| afresh > terms.epoch && self.epoch >= afresh)
            && self.migration.as_deref() != Some(terms.migration.as_str())
    }
}

/// Why an order was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The order carries other terms than the migration known under this UID.
    #[error("the order's terms are not those of this migration")]
    OtherTerms,
    /// It comes too late: the handover has begun.
    #[error("too late: the handover has begun")]
    TooLate,
    /// It comes before what it builds on.
    #[error("too early: an earlier phase has not ended")]
    TooEarly,
    /// The migration has ended.
    #[error("the migration has ended")]
    Ended,
    /// The hypervisor cannot hold back what the handover needs.
    #[error(
        "this hypervisor cannot wait before the switchover and keep the destination stopped, which the handover needs"
    )]
    GatesMissing,
}

/// What a step gives: the effects to carry out, in order, and whether an order was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step<E> {
    /// To be carried out in this order. The answer to each comes back as an event.
    pub effects: Vec<E>,
    /// Why the order was not taken, if it was not. A repeated order is taken and does nothing.
    pub refusal: Option<Refusal>,
}

impl<E> Step<E> {
    pub(crate) fn none() -> Self {
        Self {
            effects: Vec::new(),
            refusal: None,
        }
    }

    pub(crate) fn one(effect: E) -> Self {
        Self {
            effects: vec![effect],
            refusal: None,
        }
    }

    pub(crate) fn many(effects: Vec<E>) -> Self {
        Self {
            effects,
            refusal: None,
        }
    }

    pub(crate) fn refuse(refusal: Refusal) -> Self {
        Self {
            effects: Vec::new(),
            refusal: Some(refusal),
        }
    }
}

/// How a stream stood when a restarted agent looked at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StreamFact {
    /// There is none.
    None,
    /// It is being set up, or memory travels.
    Active,
    /// The hypervisor waits before the switchover.
    BeforeSwitchover,
    /// The last part travels.
    SwitchingOver,
    /// It ended well.
    Completed,
    /// It failed.
    Failed,
    /// It was cancelled, or is about to be.
    Cancelled,
}
