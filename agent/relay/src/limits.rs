//! How much of everything there may be, and how long it may take.

use std::time::Duration;

/// The most bytes of a connection's beginning that are read to see where it belongs.
pub use godwit_tls::hello::LONGEST as HELLO;

/// A relay's time limits. They are fixed for the program; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the start of a connection until its channel is open: connect, handshake, header and answer together.
    pub opening: Duration,
    /// The longest time for which the other host may acknowledge nothing, or take nothing, before a channel is cut.
    pub silence: Duration,
    /// How long a relay stays without an agent and without a live channel.
    pub orphaned: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            opening: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            orphaned: Duration::from_secs(60),
        }
    }
}

/// The most channels that a relay awaits and carries at once: QEMU's 255 and those beside them.
pub const CHANNELS: usize = 272;

/// The most connections whose header is still to come.
pub const ARRIVALS: usize = CHANNELS;

/// How many used tokens are remembered: one shown again after that is unknown instead of used.
pub const USED_TOKENS: usize = 1024;

/// How many channels that are over are remembered for a status.
pub const ENDED: usize = CHANNELS;

/// The longest message on the control socket, in bytes.
pub const MESSAGE: usize = 256 * 1024;

/// The longest text that says why something failed, in bytes.
pub const REASON: usize = 512;
