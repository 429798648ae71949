//! The destination's end before the source has come, whichever way the stream takes.

use std::sync::Arc;

use godwit_handover::Channel;

use super::channel::{ChannelError, Door};
use super::native_several::Entrance;
use crate::hypervisor::{Guest, Stream};
use crate::tunnel;

/// Where a stream comes in.
pub enum Gateway {
    /// At a port of its own, from hypervisor to hypervisor.
    Native(Door),
    /// At a port of its own, over connections that the hypervisors make themselves.
    Several(Box<Entrance>),
    /// At the agent port, by relays.
    Tunnel(Box<dyn tunnel::Entry>),
}

impl Gateway {
    /// Has the hypervisor listen, where it makes the connections itself; it must have been launched, and nobody has
    /// come yet. Where the connection is handed to it there is nothing to be done.
    pub async fn listen(self, guest: &Arc<dyn Guest>) -> Result<Self, ChannelError> {
        match self {
            Self::Native(door) => Ok(Self::Native(door)),
            Self::Several(entrance) => Ok(Self::Several(Box::new(entrance.listen(guest).await?))),
            Self::Tunnel(door) => Ok(Self::Tunnel(door.listen(&**guest).await?)),
        }
    }

    /// Where it is and with which token it opens. Known once the hypervisor listens.
    pub fn channel(&self) -> &Channel {
        match self {
            Self::Native(door) => door.channel(),
            Self::Several(entrance) => entrance.channel(),
            Self::Tunnel(door) => door.channel(),
        }
    }

    /// Waits for the one who knows the token. Answers the connection that is to be handed to the hypervisor, or
    /// `None` once the hypervisor has them all by itself. Whoever calls sets the deadline.
    pub async fn admit(self) -> Result<Option<Stream>, ChannelError> {
        match self {
            Self::Native(door) => Ok(Some(door.admit().await?)),
            Self::Several(entrance) => entrance.admit().await.map(|()| None),
            Self::Tunnel(door) => Ok(door.admit().await?),
        }
    }
}
