//! The QEMU driver against real QEMU processes. Each test starts its own guests and takes them down.
//!
//! They need `qemu-system-x86_64`: `cargo test -p godwit-agent --test qemu_driver -- --include-ignored`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)] // a test that cannot go on says where

mod confinement;
mod disks;
mod faults;
mod fixture;
mod life;
mod migration;
mod several;
mod start;
