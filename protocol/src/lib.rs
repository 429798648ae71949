//! The wire between godwit's programs: gRPC over mutual TLS 1.3 on the agent port.
//!
//! * [`client`] is what a driver of migrations (the controller, or the source's agent) calls an agent with, in typed words.
//! * [`server`] takes connections for an agent: handshake, identity, limits; [`gate`] lets only calls through
//!   that the peer may make, under the version that Hello settled.
//! * [`convert`], [`drive`], [`guest`], [`order`], [`stream`] and [`update`] stand between the generated messages and the words of
//!   `godwit-handover`. Whatever comes from the wire is checked there, field by field.
//! * [`authority`], [`definition`], [`error`], [`identity`], [`version`] and [`clock`] are decisions on plain data.

mod accept;
pub mod authority;
pub mod client;
pub mod clock;
pub mod convert;
pub mod definition;
pub mod drive;
pub mod error;
pub mod gate;
pub mod guest;
mod hello;
pub mod identity;
pub mod io;
pub mod order;
mod places;
pub mod reason;
mod refusals;
pub mod server;
pub mod stream;
mod through;
pub mod ticket;
pub mod tls;
pub mod update;
pub mod version;
mod welcome;
mod witness;

/// The generated messages and services.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated code")]
pub mod wire {
    tonic::include_proto!("godwit.agent.v1");
}

pub use client::{AgentClient, Calls, Dial, Greeting, KeepAlive, Updates, Watched};
pub use convert::Malformed;
pub use drive::{Drive, Driving, GaveUp, OtherSide, Told};
pub use error::{Category, Fault};
pub use guest::{GuestAnswer, GuestName, GuestState, StartGuest};
pub use identity::{PeerIdentity, Rpc, TrustDomain};
pub use order::{DriverLives, Order, OrderAnswer};
pub use stream::{StreamOptions, Transport};
pub use tls::{ClientTls, Credentials, CurrentCredentials, ServerTls, TlsError, TlsFiles};
pub use update::{Progress, Side, Update};

/// The agent port: control, and later the tunnel, share it (libvirt's is 16514 too).
pub const AGENT_PORT: u16 = 16514;
