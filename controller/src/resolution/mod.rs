//! Administrators' words about guests whose hosts are gone for good: taken into the guests' records, and carried out.

mod decide;
pub mod reconcile;
