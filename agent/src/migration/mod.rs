//! The two roles of a migration on this host: the machines of `godwit-handover`, run on real parts.

pub mod channel;
pub mod journal;
