//! Two agents' migrations, conducted by the driver of `godwit-handover`: with guests that are played, so that
//! anything can be made to fail at any moment, and with real ones in QEMU.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]

mod arbitration;
mod conductor;
mod faults;
mod left_over;
mod plain;
mod played;
mod real;
mod world;
