//! What people read: pure functions from the cluster's objects to text. Everything in their output has gone
//! through [`crate::text::clean`].

pub mod guests;
pub mod hosts;
pub mod migration;
pub mod progress;
pub mod resolve;
mod table;
