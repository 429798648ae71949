//! The data path: how a channel is opened, and how it is carried.

mod open;
mod pump;
mod socket;

pub(crate) use open::{Open, accept, connect, short};
pub(crate) use pump::{Counters, Over, STACK, carry};
pub(crate) use socket::{connect_unix, hypervisor, listens, peer};
