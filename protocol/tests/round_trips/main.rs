//! Every word of the handover survives the wire, and what no program of ours would send is refused by name.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failing test may panic"
)]

mod handover;
mod orders;
mod strategies;
mod survives;
mod updates;

use godwit_protocol::{Malformed, wire};

/// Through the bytes, not only through the structs.
pub fn carried<M: prost::Message + Default>(message: &M) -> M {
    M::decode(message.encode_to_vec().as_slice()).unwrap()
}

/// Terms that are read; a test spoils one field.
pub fn good_terms() -> wire::Terms {
    wire::Terms {
        migration: "m-1".into(),
        guest: "g-1".into(),
        epoch: 3,
        source: "node-a".into(),
        destination: "node-b".into(),
        strict: false,
    }
}

/// Which field was refused. What was read after all fails the test.
pub fn refused_field<T: std::fmt::Debug>(read: Result<T, Malformed>) -> &'static str {
    read.unwrap_err().field
}
