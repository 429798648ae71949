//! godwit's per-host agent.

pub mod guests;
pub mod hypervisor;
pub mod state;
