//! The native transport over several connections, which the hypervisors make themselves.
//!
//! For the time of the migration each gets the migration network, as far as the other one ([`GuestNetwork`]): the
//! destination's listens there, the source's connects. The agents say no word on these connections. In its place the
//! destination's host lets the source's migration address through and nobody else, and where the stream is encrypted
//! both hypervisors prove on each connection that they have the key that is made from the one-time token.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use godwit_handover::Channel;
use godwit_protocol::StreamOptions;
use tokio::time::sleep;

use super::channel::{self, ChannelError};
use crate::guest_network::{GuestNetwork, Peer, Port, PortError, Side};
use crate::hypervisor::{Guest, HypervisorError, Place, Stream, StreamKey, StreamState, Way};

/// How often it is looked whether the source has connected. Nothing waits for it: the memory travels by then.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The destination's end before anyone has come.
pub struct Entrance {
    network: GuestNetwork,
    migration: String,
    source: IpAddr,
    connections: u32,
    key: Option<StreamKey>,
    channel: Channel,
    at: Entered,
}

enum Entered {
    /// The port is kept, and leads nowhere.
    Kept(Port),
    /// The hypervisor listens.
    Listening(Arc<dyn Guest>),
}

impl Entrance {
    /// Keeps the first free port of the range and draws a token.
    ///
    /// # Errors
    /// [`ChannelError::PortsExhausted`] if every port is in use.
    pub fn reserve(
        cable: Cable,
        migration: &str,
        ports: RangeInclusive<u16>,
        stream: StreamOptions,
    ) -> Result<Self, ChannelError> {
        let Cable {
            network,
            own: address,
        } = cable;
        let (first, last) = (*ports.start(), *ports.end());
        let port = Port::reserve(address, ports).map_err(|error| match error {
            PortError::Exhausted => ChannelError::PortsExhausted { address, first, last },
            PortError::System(source) => ChannelError::System {
                action: format!("Keeping a port of {address}"),
                source,
            },
        })?;
        let (channel, key) = channel::without_a_word(port.address(), migration, stream.encrypted)?;
        Ok(Self {
            network,
            migration: migration.to_owned(),
            source: stream.source_address.ok_or(ChannelError::SourceUnknown)?,
            connections: stream.connections,
            key,
            channel,
            at: Entered::Kept(port),
        })
    }

    /// Where it is and with which token it opens.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Gives the hypervisor the network and has it listen there.
    ///
    /// # Errors
    /// [`ChannelError`]: what was plugged is taken out when the migration's side closes.
    pub async fn listen(mut self, guest: &Arc<dyn Guest>) -> Result<Self, ChannelError> {
        if let Entered::Kept(port) = std::mem::replace(&mut self.at, Entered::Listening(guest.clone())) {
            let at = port.address();
            let peer = Peer::Source {
                at,
                from: self.source,
            };
            let inside = self
                .network
                .plug(&self.migration, &guest.process(), peer, Some(port))
                .await?;
            let place = Place::Tcp(SocketAddr::new(inside.into(), at.port()));
            guest
                .receive(Stream {
                    way: Way::Place {
                        place,
                        connections: self.connections,
                    },
                    key: self.key.take(),
                })
                .await
                .map_err(ChannelError::Listening)?;
        }
        Ok(self)
    }

    /// Waits until the source has made all its connections. Whoever calls sets the deadline.
    ///
    /// # Errors
    /// If the hypervisor is gone before that.
    pub async fn admit(self) -> Result<(), ChannelError> {
        let Entered::Listening(guest) = self.at else {
            return Ok(());
        };
        loop {
            match guest.stream().await.map(|status| status.state) {
                Ok(StreamState::None | StreamState::Setup) | Err(HypervisorError::Deadline { .. }) => {}
                // However it stands: it is the stream's from here on.
                Ok(
                    StreamState::Active
                    | StreamState::BeforeSwitchover
                    | StreamState::SwitchingOver
                    | StreamState::Completed
                    | StreamState::Failed
                    | StreamState::Cancelling
                    | StreamState::Cancelled,
                ) => return Ok(()),
                Err(error) => return Err(ChannelError::Listening(error)),
            }
            sleep(LOOK_AGAIN).await;
        }
    }
}

/// The migration network, as one side of a migration uses it.
#[derive(Clone)]
pub struct Cable {
    /// What plugs it.
    pub network: GuestNetwork,
    /// This host's migration address.
    pub own: IpAddr,
}

impl Cable {
    /// The source's end: gives the hypervisor the network and answers where it is to connect to.
    ///
    /// # Errors
    /// [`ChannelError`]: there is no stream then.
    pub async fn leave(
        &self,
        migration: &str,
        guest: &dyn Guest,
        channel: &Channel,
        stream: StreamOptions,
    ) -> Result<Stream, ChannelError> {
        let (at, key) = channel::known_place(channel, migration, stream.encrypted)?;
        let peer = Peer::Destination { own: self.own, at };
        self.network.plug(migration, &guest.process(), peer, None).await?;
        Ok(Stream {
            way: Way::Place {
                place: Place::Tcp(at),
                connections: stream.connections,
            },
            key,
        })
    }

    /// The stream is over, however it ended.
    pub async fn take_out(&self, migration: &str, side: Side) {
        if let Err(error) = self.network.unplug(migration, side).await {
            tracing::warn!(%error, migration, "the migration network is not taken out; the agent's next start does it");
        }
    }
}
