//! The destination's end before the source has come, whichever way the stream takes.

use godwit_handover::Channel;

use super::channel::{ChannelError, Door};
use crate::hypervisor::Stream;
use crate::tunnel;

/// Where a stream comes in.
pub enum Gateway {
    /// At a port of its own, from hypervisor to hypervisor.
    Native(Door),
    /// At the agent port, by relays.
    Tunnel(tunnel::Door),
}

impl Gateway {
    /// Where it is and with which token it opens.
    pub fn channel(&self) -> &Channel {
        match self {
            Self::Native(door) => door.channel(),
            Self::Tunnel(door) => door.channel(),
        }
    }

    /// Waits for the one who knows the token. Whoever calls sets the deadline.
    pub async fn admit(self) -> Result<Stream, ChannelError> {
        match self {
            Self::Native(door) => door.admit().await,
            Self::Tunnel(door) => Ok(door.admit().await?),
        }
    }
}
