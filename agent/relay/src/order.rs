//! What agent and relay say to each other: orders and answers, and events of which the relay tells by itself.
//!
//! Each message is four bytes of length (the highest first) and as much JSON; descriptors travel beside the first
//! byte by `SCM_RIGHTS`. A relay may be older or younger than the agent that comes back to it: fields that are not
//! known are passed over, an order that is not known is refused.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::channel::{Channel, Token};
use crate::header::Refusal;

/// The version of these messages.
pub const VERSION: u32 = 1;

/// Which end of a migration a relay serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// It connects.
    Source,
    /// It is given connections that have arrived.
    Destination,
}

/// A host's certificate, its key, and who is trusted: each as PEM.
#[derive(Clone, Serialize, Deserialize)]
pub struct Credentials {
    /// The authorities that the other host's certificate must come from.
    pub authorities: String,
    /// This host's certificate and what leads from it to an authority, the certificate first.
    pub chain: String,
    /// The certificate's private key.
    pub key: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// What a relay is to do. Given once.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Begin {
    /// The migration's UID.
    pub migration: Uuid,
    /// Which end this is.
    pub end: End,
    /// The one URI among the subject alternative names of the *other* host's certificate, byte for byte.
    pub peer: String,
    /// This host's.
    pub credentials: Credentials,
}

/// The end of a migration that a relay is for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "role")]
pub enum End {
    /// It connects to the destination's agent port.
    Source {
        /// Where that is.
        destination: SocketAddr,
    },
    /// It is given connections that have arrived.
    Destination,
}

impl End {
    /// Its role.
    pub fn role(&self) -> Role {
        match self {
            Self::Source { .. } => Role::Source,
            Self::Destination => Role::Destination,
        }
    }
}

/// A channel and what opens it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Opening {
    /// The channel.
    pub channel: Channel,
    /// Its token.
    pub token: Token,
}

/// An agent's order.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "order", content = "with")]
pub enum Order {
    /// What to do. Before it nothing else is carried out but Status and Close.
    Begin(Begin),
    /// Other credentials for the connections that are made from now on.
    Renew(Credentials),
    /// Source: open a channel for the hypervisor at the other end of the socket that comes along.
    Open(Opening),
    /// Source: the hypervisor will connect to the listening socket that comes along, or to the path, as often as
    /// there are channels, which are opened in this order. Nobody listens afterwards.
    Listen {
        /// Where to listen, if no socket comes along. Nothing may be there yet.
        path: Option<PathBuf>,
        /// The user id that the hypervisor runs with. Others are turned away.
        uid: u32,
        /// One for each connection.
        channels: Vec<Opening>,
    },
    /// Destination: a channel may come. It leads to the socket that comes along, or to the listening path.
    Expect {
        /// Which, and what opens it.
        opening: Opening,
        /// Where the hypervisor listens, if no socket comes along. It is connected to once the channel is there.
        path: Option<PathBuf>,
    },
    /// Destination: the connection that comes along is for this migration.
    Arrived {
        /// What has been read of it.
        #[serde(with = "crate::hex")]
        read: Vec<u8>,
    },
    /// How it stands.
    Status,
    /// End now. Channels that are still up are cut.
    Close,
}

/// Why an order is not carried out. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase", tag = "why", content = "detail")]
pub enum OrderRefusal {
    /// The message is none that this relay knows.
    #[error("the relay does not understand the order: {0}")]
    Unreadable(String),
    /// It was not yet told what to do.
    #[error("the relay has not begun")]
    NotBegun,
    /// It was told already.
    #[error("the relay has begun already")]
    Begun,
    /// The order is for the other end.
    #[error("the order is not for this end of the migration")]
    WrongRole,
    /// The credentials cannot be used.
    #[error("the credentials cannot be used: {0}")]
    Credentials(String),
    /// A channel of this name is awaited or up.
    #[error("channel {0} is there already")]
    ChannelExists(Channel),
    /// A token was given before.
    #[error("the token of channel {0} was given before")]
    TokenExists(Channel),
    /// There are as many channels as there may be.
    #[error("the relay carries no more channels")]
    TooManyChannels,
    /// There are as many connections without a header as there may be.
    #[error("too many connections have not said yet what they are")]
    TooManyArrivals,
    /// A socket should have come along and did not, or one too many, or one of the wrong kind.
    #[error("the order came without the socket that it needs, or with a wrong one")]
    Socket,
    /// The kernel refuses.
    #[error("the system refuses: {0}")]
    System(String),
}

/// How a channel's stream came to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "how")]
pub enum Ending {
    /// Both directions were ended in order, and all that was sent before was passed on.
    End,
    /// It broke. What arrived before may be a part of what was sent.
    Cut {
        /// Where it broke.
        side: Side,
        /// How it was seen.
        why: String,
    },
}

/// A side of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Side {
    /// The hypervisor's, on this host.
    Hypervisor,
    /// The other host's, or the network between.
    Peer,
}

/// What a relay tells by itself. What an agent misses while it is away is in the status, as long as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "event")]
pub enum Event {
    /// A channel is open, at both ends.
    Up {
        /// Which.
        channel: Channel,
    },
    /// A channel that was up is over.
    Ended {
        /// Which.
        channel: Channel,
        /// Bytes from the hypervisor that were sent.
        sent: u64,
        /// Bytes for the hypervisor that were passed on.
        received: u64,
        /// How.
        ending: Ending,
    },
    /// A channel could not be opened.
    Failed {
        /// Which.
        channel: Channel,
        /// Why.
        failure: OpenFailure,
    },
    /// Destination: a connection was turned away before it was a channel, or instead of becoming one.
    Rejected {
        /// Why.
        failure: OpenFailure,
    },
    /// Source: someone who is not the hypervisor connected where the hypervisor was to, and was turned away.
    Stranger {
        /// Who it was.
        uid: u32,
    },
}

/// Why a channel is not opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase", tag = "at", content = "why")]
pub enum OpenFailure {
    /// The other host cannot be reached.
    #[error("the other host cannot be reached: {0}")]
    Connect(String),
    /// TLS does not come about: a wrong certificate, an older version, no TLS at all.
    #[error("the handshake failed: {0}")]
    Handshake(String),
    /// It took longer than it may.
    #[error("it was not open within the time allowed")]
    Deadline,
    /// The other side went away.
    #[error("the other side went away: {0}")]
    Lost(String),
    /// The destination's relay refuses the channel.
    #[error("{0}")]
    Refused(Refusal),
}

/// How far a channel is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum ChannelState {
    /// Destination: it may come. Source: the hypervisor has not connected yet.
    Awaited,
    /// It is being opened.
    Opening,
    /// It is up.
    Up,
    /// It was up.
    Ended {
        /// How it ended.
        ending: Ending,
    },
    /// It could not be opened.
    Failed {
        /// Why.
        failure: OpenFailure,
    },
}

/// A channel in a status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelStatus {
    /// Which.
    pub channel: Channel,
    /// How far it is.
    #[serde(flatten)]
    pub state: ChannelState,
    /// Bytes from the hypervisor that were sent.
    pub sent: u64,
    /// Bytes for the hypervisor that were passed on.
    pub received: u64,
}

/// How a relay stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The version of these messages that the relay speaks.
    pub version: u32,
    /// What it was told to do.
    pub task: Option<Task>,
    /// Its channels, those that are over too (the last [`crate::limits::ENDED`]).
    pub channels: Vec<ChannelStatus>,
    /// How many connections were turned away.
    pub rejected: u64,
}

/// What a relay is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// The migration's UID.
    pub migration: Uuid,
    /// Which end it is.
    pub role: Role,
}

/// An answer. Each order has one, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "answer", content = "with")]
pub enum Answer {
    /// It is done, or under way.
    Done,
    /// How it stands.
    Status(Status),
    /// It is not carried out.
    Refused(OrderRefusal),
}

/// What a relay says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Said {
    /// An answer to an order.
    Answer(Answer),
    /// An event.
    Event(Event),
}
