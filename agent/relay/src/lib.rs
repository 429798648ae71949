//! The tunnel's data path: one small process for each side of a migration, which carries the hypervisor's streams
//! through TLS 1.3 to its like on the other host.
//!
//! The agent starts it, gives it everything over a control socket, and may die and come back while streams go on.
//! [`client`] is the agent's end of that socket, [`order`] what is said over it, [`hello`] what the agent reads of a
//! connection before it hands it to a relay. `docs/tunnel.md` tells the whole.

pub mod channel;
pub mod client;
mod control;
mod data;
pub mod header;
mod hex;
pub mod limits;
pub mod order;
mod process;
mod relay;
mod state;
mod tls;

/// How a connection asks for a relay.
pub use godwit_tls::hello;
pub use process::{Argument, listener, lock_down};
pub use relay::{Failure, run};
