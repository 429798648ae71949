//! How a guest's memory is to travel: what both sides of a migration are told at its beginning.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::convert::Malformed;
use crate::wire;

/// The most channels that a stream may be spread over.
pub const MOST_CONNECTIONS: u32 = 16;

/// How memory travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Transport {
    /// Hypervisor to hypervisor.
    Native,
    /// Through the agent port, by a relay at each side.
    Tunnelled,
}

/// How a guest's memory is to travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamOptions {
    /// By which way.
    pub transport: Transport,
    /// Whether each channel must be encrypted and its ends must prove who they are. A tunnel always is.
    pub encrypted: bool,
    /// How many channels memory is spread over: 1 to [`MOST_CONNECTIONS`].
    pub connections: u32,
    /// Bytes per second while the guest runs; 0 is unlimited. Once the guest stands still nothing is limited.
    pub bandwidth: u64,
    /// The source's migration address. Where the hypervisors make the connections themselves, nobody else reaches the
    /// destination's; without it they cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_address: Option<IpAddr>,
}

impl StreamOptions {
    /// One channel from hypervisor to hypervisor, unlimited and in plain text.
    pub const PLAIN: Self = Self {
        transport: Transport::Native,
        encrypted: false,
        connections: 1,
        bandwidth: 0,
        source_address: None,
    };
}

impl Default for StreamOptions {
    /// What an agent did before it was told: [`StreamOptions::PLAIN`].
    fn default() -> Self {
        Self::PLAIN
    }
}

/// Bandwidth in bytes per second, 0 for none; hypervisors count it in a signed number.
pub(crate) fn bandwidth(field: &'static str, value: u64) -> Result<u64, Malformed> {
    if i64::try_from(value).is_ok() {
        Ok(value)
    } else {
        Err(Malformed::new(field, "is too large"))
    }
}

impl From<StreamOptions> for wire::StreamOptions {
    fn from(options: StreamOptions) -> Self {
        let transport = match options.transport {
            Transport::Native => wire::Transport::Native,
            Transport::Tunnelled => wire::Transport::Tunnelled,
        };
        Self {
            transport: transport.into(),
            encrypted: options.encrypted,
            connections: options.connections,
            bandwidth: options.bandwidth,
            source_address: options
                .source_address
                .map_or_else(String::new, |address| address.to_string()),
        }
    }
}

impl TryFrom<wire::StreamOptions> for StreamOptions {
    type Error = Malformed;

    fn try_from(options: wire::StreamOptions) -> Result<Self, Malformed> {
        let transport = match wire::Transport::try_from(options.transport) {
            Ok(wire::Transport::Native) => Transport::Native,
            Ok(wire::Transport::Tunnelled) => Transport::Tunnelled,
            Ok(wire::Transport::Unspecified) | Err(_) => return Err(Malformed::unknown("stream.transport")),
        };
        if !(1..=MOST_CONNECTIONS).contains(&options.connections) {
            return Err(Malformed::new("stream.connections", "must be 1 to 16"));
        }
        let source_address = match options.source_address.as_str() {
            "" => None,
            address => Some(
                address
                    .parse()
                    .map_err(|_| Malformed::new("stream.source_address", "is no IP address"))?,
            ),
        };
        Ok(Self {
            transport,
            encrypted: options.encrypted,
            connections: options.connections,
            bandwidth: bandwidth("stream.bandwidth", options.bandwidth)?,
            source_address,
        })
    }
}

/// The options of a message, which must have them.
pub(crate) fn required(options: Option<wire::StreamOptions>) -> Result<StreamOptions, Malformed> {
    options.ok_or(Malformed::missing("stream"))?.try_into()
}
