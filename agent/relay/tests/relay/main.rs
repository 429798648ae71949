//! Relays on real sockets: with each other, and with peers that do not keep to the rules.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod agents;
mod authority;
mod carries;
mod peers;
mod refuses;
mod rig;
mod silence;
