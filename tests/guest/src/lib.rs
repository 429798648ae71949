//! What the program inside a Linux test guest is made of.
//!
//! The program itself is `main.rs`. These parts are a library for two reasons: they are tested where no guest runs,
//! and the observer on the host reads the guest's lines with the very code that wrote them ([`line`]).

pub mod line;
pub mod memory;
pub mod options;
pub mod pattern;
