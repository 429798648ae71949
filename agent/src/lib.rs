//! godwit's per-host agent.

pub mod cgroup;
pub mod guests;
pub mod hypervisor;
pub mod pools;
pub mod state;
pub mod taps;
