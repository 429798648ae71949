//! The simulation: the real controller and agents in one process, over a network, a clock, an API server, disks and
//! hypervisors that are played.
//!
//! Real are the controller's whole work (`godwit_controller::run::work`: its watches, reconcilers, drivers and writes) and
//! of the agents what takes part in a migration: `Migrations` with both roles, their journals and recovery, the driver
//! of peer to peer, the reader and writer of records, and the native transport's channel with its one-time word. Everything
//! that they touch is played by the modules here, and comes from one seed: [`run::run`] is the same run each time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a simulation that is wrong in itself is to end at once"
)]

pub mod administrator;
mod api;
pub mod clock;
pub mod custody;
pub mod desk;
pub mod dial;
pub mod dice;
pub mod faults;
pub mod judge;
pub mod many;
pub mod qemu;
pub mod relay;
pub mod run;
pub mod sim;
pub mod sweep;
pub mod wire;
pub mod world;
