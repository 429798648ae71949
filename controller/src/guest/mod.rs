//! Guests: started once where their records say, mirrored, and stopped when their objects are deleted.

pub mod decide;
pub mod reconcile;
pub mod starts;
