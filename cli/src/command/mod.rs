//! The commands.

pub mod cancel;
pub mod completion;
pub mod list;
pub mod migrate;
pub mod resolve;
pub mod status;
