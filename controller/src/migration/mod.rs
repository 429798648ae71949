//! Migrations: whether one may begin, who drives it, and what its status says.

pub mod book;
mod doubts;
pub mod downtime;
pub mod drive;
pub mod drivers;
pub mod failure;
pub mod orphan;
pub mod progress;
pub mod publish;
pub mod reconcile;
pub mod sides;
pub mod stream;
pub mod timeline;
pub mod validate;
mod watching;
