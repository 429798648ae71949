//! The two roles of a migration on this host: the machines of `godwit-handover`, run on real parts.
//!
//! [`Migrations`] takes orders and gives each to the one task that owns its migration's machine (`source` or
//! `destination`; `role` is what the two have alike). What a machine promises is on disk ([`journal`]) before it is acted
//! on, so that a restarted agent goes on where the last one was. [`channel`] makes the connection on which the hypervisors
//! talk.

mod asking;
pub mod channel;
pub mod custody;
mod destination;
mod driver;
mod driver_watch;
mod faults;
mod gateway;
pub mod journal;
mod migrations;
mod native_several;
mod observation;
mod options;
mod pen;
pub mod rim;
mod role;
mod source;
mod steps;
mod updates;

pub use custody::{Custody, RecordArbiter, Recorded, Records};
pub use driver::{Drivers, RecordKeeper, Unwritten};
pub use migrations::{Migrations, Settings, Unresolved};
