//! The controller against a real API server (the one that `KUBECONFIG` names; godwit's CRDs are installed there) and
//! scripted agents behind the real protocol. The controller watches all namespaces, so one test runs at a time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]

mod agent;
mod answers;
mod authority;
mod guests;
mod hosts;
mod migrations;
mod peer_to_peer;
mod tickets;
mod world;
