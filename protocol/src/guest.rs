//! Guests on the wire: who is meant, the order to start or stop one, and the state that answers it.

use serde::{Deserialize, Serialize};

use crate::convert::{self, LONGEST_NAMESPACE, Malformed};
use crate::wire;

/// A VirtualMachine: by UID for programs, by namespace and name for people.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GuestName {
    /// The VirtualMachine's UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl From<&GuestName> for wire::GuestIdentity {
    fn from(guest: &GuestName) -> Self {
        Self {
            uid: guest.uid.clone(),
            namespace: guest.namespace.clone(),
            name: guest.name.clone(),
        }
    }
}

impl TryFrom<wire::GuestIdentity> for GuestName {
    type Error = Malformed;

    fn try_from(guest: wire::GuestIdentity) -> Result<Self, Malformed> {
        let namespace = convert::name("guest.namespace", guest.namespace)?;
        if namespace.len() > LONGEST_NAMESPACE || namespace.contains('.') {
            return Err(Malformed::new(
                "guest.namespace",
                "must be a DNS label of at most 63 characters",
            ));
        }
        Ok(Self {
            uid: convert::uid("guest.uid", guest.uid)?,
            namespace,
            name: convert::name("guest.name", guest.name)?,
        })
    }
}

/// The guest of a message, which must have one.
pub(crate) fn required(guest: Option<wire::GuestIdentity>) -> Result<GuestName, Malformed> {
    guest.ok_or(Malformed::missing("guest"))?.try_into()
}

/// The order to start a guest that the host holds by the guest's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartGuest {
    /// Which one.
    pub guest: GuestName,
    /// The epoch at which the host holds it.
    pub epoch: u64,
    /// The VirtualMachine's spec as JSON; at most [`convert::LONGEST_DEFINITION`] bytes, unread here.
    pub definition: Vec<u8>,
    /// Whether to start it even though it was started under this epoch and is gone.
    pub again: bool,
}

impl From<&StartGuest> for wire::StartGuestRequest {
    fn from(order: &StartGuest) -> Self {
        Self {
            guest: Some((&order.guest).into()),
            epoch: order.epoch,
            definition: order.definition.clone(),
            again: order.again,
        }
    }
}

impl TryFrom<wire::StartGuestRequest> for StartGuest {
    type Error = Malformed;

    fn try_from(request: wire::StartGuestRequest) -> Result<Self, Malformed> {
        Ok(Self {
            guest: required(request.guest)?,
            epoch: convert::epoch("epoch", request.epoch)?,
            definition: convert::definition("definition", request.definition)?,
            again: request.again,
        })
    }
}

/// Which guest a stop order means, and at which epoch.
pub fn stop_request(request: wire::StopGuestRequest) -> Result<(GuestName, u64), Malformed> {
    Ok((required(request.guest)?, convert::epoch("epoch", request.epoch)?))
}

/// What a guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuestState {
    /// Its process is being started.
    Starting,
    /// Its virtual CPUs run.
    Running,
    /// Its virtual CPUs stand still and can go on.
    Paused,
    /// It has powered itself off.
    ShutOff,
    /// Its kernel panicked, or its process died.
    Crashed,
}

impl From<GuestState> for wire::GuestState {
    fn from(state: GuestState) -> Self {
        match state {
            GuestState::Starting => Self::Starting,
            GuestState::Running => Self::Running,
            GuestState::Paused => Self::Paused,
            GuestState::ShutOff => Self::ShutOff,
            GuestState::Crashed => Self::Crashed,
        }
    }
}

/// The answer to a start order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestAnswer {
    /// What the guest does.
    pub state: GuestState,
    /// Since when it has run on the host, Unix time in microseconds by the host's clock; `None` if not known.
    pub since_micros: Option<i64>,
}

impl From<GuestAnswer> for wire::GuestReply {
    fn from(answer: GuestAnswer) -> Self {
        Self {
            state: wire::GuestState::from(answer.state).into(),
            since_micros: answer.since_micros.unwrap_or_default(),
        }
    }
}

impl TryFrom<wire::GuestReply> for GuestAnswer {
    type Error = Malformed;

    fn try_from(reply: wire::GuestReply) -> Result<Self, Malformed> {
        let state = match wire::GuestState::try_from(reply.state) {
            Ok(wire::GuestState::Starting) => GuestState::Starting,
            Ok(wire::GuestState::Running) => GuestState::Running,
            Ok(wire::GuestState::Paused) => GuestState::Paused,
            Ok(wire::GuestState::ShutOff) => GuestState::ShutOff,
            Ok(wire::GuestState::Crashed) => GuestState::Crashed,
            Ok(wire::GuestState::Unspecified) | Err(_) => return Err(Malformed::unknown("state")),
        };
        Ok(Self {
            state,
            since_micros: crate::update::instant(reply.since_micros),
        })
    }
}
