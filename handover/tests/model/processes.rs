//! The two hypervisor processes, which behave as the real one was seen to.

use godwit_handover::StreamFact;

use crate::world::{Broken, World, terms};

/// The source's hypervisor process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceProcess {
    pub alive: bool,
    pub running: bool,
    pub stream: StreamFact,
    /// What the hypervisor noted when it stopped the guest for its switchover: it restarts a guest that ran.
    pub noted_running: bool,
    /// The stream has failed and the hypervisor has not yet acted on it.
    pub restart_due: bool,
    /// It has the disks' locks. It gives them up for the switchover, and takes them back when that fails.
    pub holds_disks: bool,
    /// The guest powered off or panicked: nobody may let it run again.
    pub ended: bool,
    /// A user has paused it once. Whether he has let it run again may be seen too late.
    pub paused: bool,
    pub destroyed_by_us: bool,
}

impl SourceProcess {
    pub fn new() -> Self {
        Self {
            alive: true,
            running: true,
            stream: StreamFact::None,
            noted_running: false,
            restart_due: false,
            holds_disks: true,
            ended: false,
            paused: false,
            destroyed_by_us: false,
        }
    }

    pub fn die(&mut self) {
        self.alive = false;
        self.running = false;
        self.restart_due = false;
        self.holds_disks = false;
    }

    /// Whether a stream is under way.
    pub fn streams(&self) -> bool {
        let open = [
            StreamFact::Active,
            StreamFact::BeforeSwitchover,
            StreamFact::SwitchingOver,
        ];
        self.alive && open.contains(&self.stream)
    }

    /// A late or early break of the stream, as seen from the source.
    pub fn fail_stream(&mut self) {
        self.restart_due = matches!(
            self.stream,
            StreamFact::BeforeSwitchover | StreamFact::SwitchingOver
        ) && self.noted_running;
        self.stream = StreamFact::Failed;
        self.holds_disks = true;
    }
}

/// The destination's hypervisor process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DestinationProcess {
    pub launches: u8,
    pub alive: bool,
    pub running: bool,
    pub connected: bool,
    pub loaded: bool,
    pub failed: bool,
}

impl DestinationProcess {
    pub fn die(&mut self) {
        self.alive = false;
        self.running = false;
    }

    /// Whether the stream can still arrive.
    pub fn receives(&self) -> bool {
        self.alive && self.connected && !self.loaded && !self.failed
    }

    pub fn fail_stream(&mut self) {
        if self.receives() {
            self.failed = true;
        }
    }
}

impl World {
    pub fn run_source(&mut self) {
        if self.source.alive {
            if self.source.ended {
                self.breaks(Broken::EndedGuestRun);
            }
            self.source.running = true;
            self.source.restart_due = false;
            if self.destination.loaded {
                self.stale = true;
            }
        }
    }

    /// What the hypervisor makes of the order to let the guest run.
    pub fn run_destination(&mut self) {
        if self.source.ended {
            // The real one refuses to run a guest that arrived shut down.
            return;
        }
        if self.source.holds_disks {
            // Who commits by itself cannot know whether the source still has them, and is refused until it has not.
            if !self.destination_committed() {
                self.breaks(Broken::LockedOut);
            }
            return;
        }
        if self.destination.alive && self.destination.loaded {
            self.destination.running = true;
            self.executed = true;
        }
    }

    /// Destroys the destination's process on the agent's wish; says so where that was the last valid image. One that the
    /// record has decided against may not run any more, whatever became of the source since.
    pub fn destroy_destination(&mut self) {
        let d = &self.destination;
        let record = self.record.view();
        let decided_against = record.reverted_for(&terms()) || self.is_given_up();
        let last_valid = !decided_against
            && d.alive
            && d.loaded
            && !self.stale
            && !self.source.alive
            && !self.source.destroyed_by_us;
        if last_valid || (d.alive && self.executed) {
            self.breaks(Broken::ImageDestroyed);
        }
        self.destination.die();
    }

    /// An administrator has given up for lost what the destination may have run; the source's image is older than that.
    fn is_given_up(&self) -> bool {
        let record = self.record.view();
        record.given_up(&terms()) || record.left_behind(&terms())
    }

    pub fn destroy_source(&mut self) {
        let worthless = self.source.ended || self.destination_holds() || self.is_given_up();
        if self.source.alive && !self.executed && !worthless {
            self.breaks(Broken::ImageDestroyed);
        }
        if self.source.alive && self.record.names_source() {
            self.breaks(Broken::DestroyedWhileNamed);
        }
        self.source.die();
        self.source.destroyed_by_us = true;
    }
}
