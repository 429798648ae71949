//! Server and client over loopback, with certificates of a test's own authority.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]

mod authority;
mod calls;
mod handshakes;
mod limits;
mod raw;
mod rotation;
mod scripted;
mod versions;
