//! godwit's per-host agent.

pub mod cgroup;
pub mod clock;
pub mod config;
mod derivation;
pub mod fail_point;
pub mod guest_network;
pub mod guests;
pub mod host;
pub mod hypervisor;
pub mod identity;
pub mod kernel_tls;
pub mod migration;
pub mod pools;
pub mod sandbox;
pub mod server;
pub mod state;
pub mod taps;
pub mod tickets;
pub mod tun;
pub mod tunnel;
