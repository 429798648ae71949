//! What a hypervisor can hold back: data from which the handover picks its rules.

use serde::{Deserialize, Serialize};

/// What a hypervisor can hold back during a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Gates {
    /// The guest can be stopped while memory still travels, and a late failure then leaves it stopped.
    pub seal: bool,
    /// The hypervisor waits before the switchover until it is told to go on.
    pub hold_before_switchover: bool,
    /// The destination stays stopped after it has loaded the guest, until it is told to run.
    pub keep_destination_paused: bool,
    /// A stopped source can give its disks up before the destination runs.
    pub inactivate_disks: bool,
}
