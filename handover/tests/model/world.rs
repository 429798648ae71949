//! The world around the machines: two hypervisor processes, two agents with their journals, a record, a network that
//! loses, repeats and reorders, and drivers.

use godwit_handover::{Channel, Decision, Gates, Pass, SourceReport, Terms, Token};

use crate::agents::{DestinationAgent, SourceAgent};
use crate::driving::{Flow, Network, Seat};
use crate::processes::{DestinationProcess, SourceProcess};
use crate::record::{Manner, Outcome, Record, Wish};
use crate::shared::Shared;

pub const GATES: Gates = Gates {
    seal: true,
    hold_before_switchover: true,
    keep_destination_paused: true,
    inactivate_disks: true,
};

/// The migration's terms, but for how strict they are ([`World::terms`]).
pub fn terms() -> Terms {
    Terms {
        migration: "m".into(),
        guest: String::new(),
        epoch: 1,
        source: "s".into(),
        destination: "d".into(),
        strict: false,
    }
}

pub fn channel() -> Channel {
    Channel {
        uri: String::new(),
        token: Token(Vec::new()),
    }
}

/// A pass after which the rest fits any budget.
pub const SMALL_PASS: Pass = Pass {
    iteration: 2,
    remaining_bytes: 0,
    bytes_per_second: 1,
};

/// A rule that was seen to be broken in a step, where the state alone would not show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Broken {
    /// I7: a party destroyed the only valid image.
    ImageDestroyed,
    /// A guest that had powered off was let run at the source.
    EndedGuestRun,
    /// Rule 1: the destination was let run while the source held the disks.
    LockedOut,
    /// Rule 6: the source was destroyed while the record still named it.
    DestroyedWhileNamed,
    /// Rule 8: the switchover was ordered without a proof of the path.
    PathNotProven,
    /// The record was changed in a way that its rules forbid.
    RecordRules,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub source: SourceProcess,
    pub destination: DestinationProcess,
    pub source_agent: Shared<SourceAgent>,
    pub destination_agent: Shared<DestinationAgent>,
    /// Who drives: nobody while the agent that does is away.
    pub drivers: Vec<Seat>,
    pub network: Shared<Network>,
    pub strict: bool,
    pub record: Shared<Record>,
    /// What an agent asked of the record just before it crashed, and the version that it had read.
    pub late: Option<(Decision, Shared<Record>)>,
    /// Whether Ready and Go would get through and the API server answers, as far as the driver can prove it.
    pub path: bool,
    pub cancelled: bool,
    /// Hosts that never come back.
    pub source_gone: bool,
    pub destination_gone: bool,
    /// The guest was started afresh elsewhere.
    pub afresh: bool,
    pub faults_left: u8,
    /// The destination has executed an instruction.
    pub executed: bool,
    /// The source ran after the destination had loaded the guest: the destination's copy is stale.
    pub stale: bool,
    pub broken: Option<Broken>,
}

impl World {
    pub fn new(flow: Flow, strict: bool, faults: u8) -> Self {
        let mut world = Self {
            source: SourceProcess::new(),
            destination: DestinationProcess::default(),
            source_agent: Shared::new(SourceAgent::new()),
            destination_agent: Shared::new(DestinationAgent::new()),
            drivers: vec![],
            network: Shared::new(Network::default()),
            strict,
            record: Shared::new(Record::first(&terms().source)),
            late: None,
            path: true,
            cancelled: false,
            source_gone: false,
            destination_gone: false,
            afresh: false,
            faults_left: faults,
            executed: false,
            stale: false,
            broken: None,
        };
        if flow == Flow::SourceDrives {
            // The controller has armed it before it gave the order to drive.
            world.write_record(Wish::Arm, Manner::Swap, None);
        }
        world.new_driver(None);
        world
    }

    /// The terms as everybody was given them.
    pub fn terms(&self) -> Terms {
        Terms {
            strict: self.strict,
            ..terms()
        }
    }

    /// Whether the proof of the path still matters: up to the switchover.
    pub fn needs_path(&self) -> bool {
        matches!(
            self.source_report(),
            None | Some(SourceReport::Begun | SourceReport::Streaming | SourceReport::Stopped { .. })
        )
    }

    /// The first breach counts.
    pub fn breaks(&mut self, rule: Broken) {
        self.broken = self.broken.or(Some(rule));
    }

    /// Changes the record; whether its writer then knows what it says, which it does not where it was refused.
    pub fn write_record(&mut self, wish: Wish, manner: Manner, known: Option<&Shared<Record>>) -> bool {
        let known = known.map(|known| &**known);
        match self.record.write(&self.terms(), wish, manner, known) {
            Outcome::Already => true,
            Outcome::Refused => false,
            Outcome::Written {
                record,
                against_rules,
            } => {
                self.record = record;
                if against_rules {
                    self.breaks(Broken::RecordRules);
                }
                true
            }
        }
    }
}
