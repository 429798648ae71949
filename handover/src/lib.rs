//! The handover: who may run the guest, and when.

pub mod gates;

pub use gates::Gates;
