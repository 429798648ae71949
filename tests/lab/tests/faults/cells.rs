//! Cells of the table of faults and phases that are met exactly: the agents' own fail points hold the moment, however
//! fast or slow the machine is. What came of each is shown as a table at the end.

pub mod arbitration;
pub mod certificate;
pub mod clock;
pub mod deleted;
pub mod disk;
pub mod journal;
mod judge;
pub mod killed;
pub mod late;
pub mod lost;
mod point;
mod scene;
pub mod storage;
pub mod table;
pub mod tunnelled;
mod way;
