//! Properties of the production state machines under events that no world would send in that order: beside the
//! model, which visits every history of a small world, these try histories of any world.
//!
//! `PROPTEST_CASES` sets how many histories each property is tried on (256 by default).

#![allow(
    clippy::panic,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod destination;
mod destination_run;
mod driver;
mod fenced;
mod source;
mod source_recovery;
mod source_run;
mod words;
