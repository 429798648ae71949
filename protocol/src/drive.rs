//! Peer to peer: the order that makes the source's agent the driver, and what that driver tells of itself.

use std::time::Duration;

use godwit_handover::{Cause, DestinationReport, Phase};
use serde::{Deserialize, Serialize};

use crate::clock::Offset;
use crate::convert::{self, Malformed};
use crate::error::LONGEST_MESSAGE;
use crate::guest::{self, GuestName};
use crate::order::downtime;
use crate::stream::{self, StreamOptions};
use crate::update::{self, LONGEST_DETAIL};
use crate::wire;

/// The longest endpoint, in bytes: a host's name, a colon and a port.
const LONGEST_ENDPOINT: usize = 261;
/// The longest ticket, in bytes.
pub const LONGEST_TICKET: usize = 4096;
/// How long a peer may be silent before it counts as silent.
const SILENCE: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// To the source's agent: drive this migration, with the agent's own identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drive {
    /// Whom the destination prepares for.
    pub guest: GuestName,
    /// `host:port` of the destination's agent, as the source reaches it.
    pub endpoint: String,
    /// How long the guest may stand still; whole microseconds.
    pub max_downtime: Duration,
    /// How memory is to travel.
    pub stream: StreamOptions,
    /// How long the other agent may be silent before that counts, in whole milliseconds: 1 s to an hour.
    pub silence: Duration,
    /// The controller's word that the destination is to take this guest; unread here, shown with Prepare. At most
    /// [`LONGEST_TICKET`] bytes.
    pub ticket: Vec<u8>,
}

/// What the driver in the source's agent tells of itself, for whoever writes the status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Driving {
    /// What it last heard of the destination; `None` before it heard anything.
    pub destination: Option<OtherSide>,
    /// When each phase began, in order, by the source's clock in microseconds.
    pub phases: Vec<(Phase, i64)>,
    /// When it was all over, by the same clock.
    pub ended_at_micros: Option<i64>,
    /// Why the driver itself has given up. It is final.
    pub gave_up: Option<GaveUp>,
    /// What only a person can mend, and keeps the driver from going on.
    pub blocked: Option<Told>,
}

/// The destination, as the driver heard it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherSide {
    /// Its report; `None`: it knows no such migration. A channel's word is not passed on: what is Prepared is told
    /// as Preparing.
    pub report: Option<DestinationReport>,
    /// When the guest was let run there, by the destination's clock in microseconds.
    pub resumed_at_micros: Option<i64>,
    /// The destination's clock minus the source's.
    pub clock: Option<Offset>,
    /// Its own word and words about its last failure; empty without one.
    pub failure: Told,
}

/// A word of the table in `docs/conditions.md`, and words for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The word; empty where there is none.
    pub reason: String,
    /// What happened; at most [`LONGEST_MESSAGE`] bytes.
    pub message: String,
}

/// Why a driver has given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GaveUp {
    /// In the words of the handover.
    pub cause: Cause,
    /// More precisely, if it is known.
    pub told: Told,
}

impl From<&Drive> for wire::Drive {
    fn from(drive: &Drive) -> Self {
        Self {
            guest: Some((&drive.guest).into()),
            endpoint: drive.endpoint.clone(),
            max_downtime_micros: u64::try_from(drive.max_downtime.as_micros()).unwrap_or(u64::MAX),
            stream: Some(drive.stream.into()),
            silence_millis: u32::try_from(drive.silence.as_millis()).unwrap_or(u32::MAX),
            ticket: drive.ticket.clone(),
        }
    }
}

impl TryFrom<wire::Drive> for Drive {
    type Error = Malformed;

    fn try_from(drive: wire::Drive) -> Result<Self, Malformed> {
        let silence = Duration::from_millis(drive.silence_millis.into());
        if !SILENCE.contains(&silence) {
            return Err(Malformed::new("drive.silence_millis", "must be 1 s to an hour"));
        }
        Ok(Self {
            guest: guest::required(drive.guest)?,
            endpoint: endpoint("drive.endpoint", drive.endpoint)?,
            max_downtime: downtime("drive.max_downtime_micros", drive.max_downtime_micros)?,
            stream: stream::required(drive.stream)?,
            silence,
            ticket: ticket("drive.ticket", drive.ticket)?,
        })
    }
}

/// A ticket, unread.
pub(crate) fn ticket(field: &'static str, value: Vec<u8>) -> Result<Vec<u8>, Malformed> {
    if value.len() > LONGEST_TICKET {
        return Err(Malformed::new(field, "is longer than 4 KiB"));
    }
    Ok(value)
}

fn endpoint(field: &'static str, value: String) -> Result<String, Malformed> {
    let port = value.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    let port = port.and_then(|(_, port)| port.parse::<u16>().ok());
    if value.len() > LONGEST_ENDPOINT
        || !value.bytes().all(|b| b.is_ascii_graphic())
        || port.is_none_or(|port| port == 0)
    {
        return Err(Malformed::new(
            field,
            "must be host:port of at most 261 characters",
        ));
    }
    Ok(value)
}

fn told(value: wire::Told) -> Result<Told, Malformed> {
    if value.message.len() > LONGEST_MESSAGE {
        return Err(Malformed::new("told.message", "is longer than 2048 bytes"));
    }
    Ok(Told {
        reason: update::word("told.reason", value.reason)?,
        message: value.message,
    })
}

impl From<Told> for wire::Told {
    fn from(told: Told) -> Self {
        Self {
            reason: told.reason,
            message: update::cut(told.message, LONGEST_MESSAGE),
        }
    }
}

impl From<Driving> for wire::Driving {
    fn from(driving: Driving) -> Self {
        Self {
            destination: driving.destination.map(|side| wire::OtherSide {
                report: side.report.as_ref().map(Into::into),
                resumed_at_micros: side.resumed_at_micros.unwrap_or_default(),
                clock: side.clock.map(|offset| wire::ClockOffset {
                    micros: offset.micros,
                    error_micros: offset.error_micros,
                }),
                failure: Some(side.failure.into()),
            }),
            phases: driving
                .phases
                .into_iter()
                .map(|(phase, at_micros)| wire::PhaseBegun {
                    phase: wire::Phase::from(phase).into(),
                    at_micros,
                })
                .collect(),
            ended_at_micros: driving.ended_at_micros.unwrap_or_default(),
            gave_up: driving.gave_up.map(|gave_up| wire::GaveUp {
                cause: wire::Cause::from(gave_up.cause).into(),
                told: Some(gave_up.told.into()),
            }),
            blocked: driving.blocked.map(Into::into),
        }
    }
}

impl TryFrom<wire::Driving> for Driving {
    type Error = Malformed;

    fn try_from(driving: wire::Driving) -> Result<Self, Malformed> {
        let destination = match driving.destination {
            None => None,
            Some(side) => Some(OtherSide {
                report: side.report.map(TryInto::try_into).transpose()?,
                resumed_at_micros: update::instant(side.resumed_at_micros),
                clock: side.clock.map(|offset| Offset {
                    micros: offset.micros,
                    error_micros: offset.error_micros,
                }),
                failure: told(side.failure.unwrap_or_default())?,
            }),
        };
        // There are five, and none comes twice.
        if driving.phases.len() > 5 {
            return Err(Malformed::new("driving.phases", "has more than 5 entries"));
        }
        let mut phases: Vec<(Phase, i64)> = Vec::with_capacity(driving.phases.len());
        for entry in driving.phases {
            let phase = phase(entry.phase)?;
            if phases.last().is_some_and(|(last, _)| *last >= phase) {
                return Err(Malformed::new("driving.phases", "are not in order"));
            }
            phases.push((phase, entry.at_micros));
        }
        let gave_up = match driving.gave_up {
            None => None,
            Some(gave_up) => Some(GaveUp {
                cause: convert::cause("driving.gave_up.cause", gave_up.cause)?,
                told: told(gave_up.told.unwrap_or_default())?,
            }),
        };
        Ok(Self {
            destination,
            phases,
            ended_at_micros: update::instant(driving.ended_at_micros),
            gave_up,
            blocked: driving.blocked.map(told).transpose()?,
        })
    }
}

impl From<Phase> for wire::Phase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Begin => Self::Begin,
            Phase::Prepare => Self::Prepare,
            Phase::Perform => Self::Perform,
            Phase::Finish => Self::Finish,
            Phase::Confirm => Self::Confirm,
        }
    }
}

fn phase(value: i32) -> Result<Phase, Malformed> {
    match wire::Phase::try_from(value) {
        Ok(wire::Phase::Begin) => Ok(Phase::Begin),
        Ok(wire::Phase::Prepare) => Ok(Phase::Prepare),
        Ok(wire::Phase::Perform) => Ok(Phase::Perform),
        Ok(wire::Phase::Finish) => Ok(Phase::Finish),
        Ok(wire::Phase::Confirm) => Ok(Phase::Confirm),
        Ok(wire::Phase::Unspecified) | Err(_) => Err(Malformed::unknown("driving.phases.phase")),
    }
}

impl Told {
    /// The word and the words; too long ones are cut.
    pub fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            message: update::cut(message.into(), LONGEST_MESSAGE),
        }
    }

    /// Words about a side's last failure, as its update gives them.
    pub fn of_update(update: &crate::update::Update) -> Self {
        Self {
            reason: update.reason.clone(),
            message: update::cut(update.detail.clone(), LONGEST_DETAIL),
        }
    }
}
