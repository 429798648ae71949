//! godwit's per-host agent.

pub mod hypervisor;
