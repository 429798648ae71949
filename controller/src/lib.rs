//! godwit's controller: it starts guests where their records say, and drives migrations between the agents of two
//! hosts, phase by phase.
//!
//! [`guest`] and [`migration`] hold the reconcilers; in each, what is decided is apart from what is done. [`record`]
//! is the one place that writes guests' records. [`leader`] picks one controller of several; nothing about who may
//! run a guest rests on that.
//!
//! [`signer`] is the library of another program, `godwit-signer`: the controller neither calls it nor holds its key.

pub mod agents;
pub mod apply;
pub mod cluster;
pub mod config;
pub mod connect;
pub mod guest;
pub mod health;
pub mod host;
pub mod leader;
pub mod migration;
pub mod placement;
pub mod program;
pub mod reason;
pub mod record;
pub mod resolution;
pub mod run;
pub mod signer;
pub mod ticket;
pub mod time;

#[cfg(test)]
mod samples;
