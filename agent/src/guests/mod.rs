//! The guests on this host: started, stopped, found again after a restart, and lent to migrations.
//!
//! [`Guests`] is the one owner of the guests' records on disk and of their processes. Each guest has a lock of its
//! own, so that two orders about one guest never interleave and two guests never wait for each other.

mod arbiter;
pub mod definition;
pub mod error;
mod launch;
mod lend;
pub mod manager;
mod observe;
mod orders;
pub mod process;
pub mod record;
mod recover;
mod retire;
mod slot;
pub mod types;
pub mod words;

pub use definition::Definition;
pub use error::GuestError;
pub use manager::{Guests, Settings, UserRange};
pub use retire::{Journals, Spoken};
pub use types::{GuestIdentity, GuestView, Held, Role, StartRequest};

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "a failing test may panic"
)]
pub(crate) mod fake;
#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failing test may panic"
)]
mod tests;
