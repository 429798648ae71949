//! An API server: objects with resource versions, compare-and-swap, finalizers, status by apply, watches; and the rules
//! that it enforces on guests' records.

mod rules;
mod server;
mod store;

pub use server::Access;
pub use store::{Key, Kind, Store};
