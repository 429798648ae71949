//! Orders about one migration, with the terms that each of them carries.

use std::time::Duration;

use godwit_handover::{Cause, Channel, Go, Standing, Terms};

use crate::convert::{self, Malformed};
use crate::drive::{self, Drive};
use crate::guest::{self, GuestName};
use crate::stream::{self, StreamOptions};
use crate::{version, wire};

/// The longest downtime that a migration may allow: an hour, far beyond any use.
const LONGEST_DOWNTIME: Duration = Duration::from_secs(3600);

/// An order about one migration. Each is idempotent by the migration's UID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// To the source: take the migration on.
    Begin {
        /// How long the guest may stand still; whole microseconds.
        max_downtime: Duration,
        /// How memory is to travel.
        stream: StreamOptions,
    },
    /// To the destination: make ready to receive.
    Prepare {
        /// Whom.
        guest: GuestName,
        /// The definition that the source gave at Begin, as JSON; unread here.
        definition: Vec<u8>,
        /// How memory is to travel: the same as at Begin.
        stream: StreamOptions,
        /// Where the caller is the source's agent: the ticket that it was given; else empty.
        ticket: Vec<u8>,
    },
    /// To the source: send the guest.
    Perform(Channel),
    /// To the source: the destination has loaded the guest.
    Ready,
    /// To the destination: the source's Go.
    Finish(Go),
    /// To the source: the destination holds the guest and the record says so.
    Confirm,
    /// To the source: give up, if it is not too late.
    AbortSource(Cause),
    /// To the destination: give the copy up.
    AbortDestination(Cause),
    /// To the source: the record has been decided; read it.
    Settle,
    /// To the destination: the source's guest does not run again by itself.
    SourceStands(Standing),
    /// To the source: the destination is not heard; have the record decide.
    ArbitrateSource(Cause),
    /// To the destination: the source is not heard; have the record decide.
    ArbitrateDestination,
    /// To the source: another limit while the guest runs, in bytes per second; 0 is unlimited. Nothing is limited
    /// once the guest stands still, so that a late one has no effect.
    Retune {
        /// Bytes per second.
        bandwidth: u64,
    },
    /// To the source, peer to peer: drive this migration.
    Drive(Box<Drive>),
}

/// What an order is answered with: that it was taken, not that it was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderAnswer {
    /// To Begin: the guest's definition as the source runs it, as JSON.
    Begun {
        /// At most 256 KiB.
        definition: Vec<u8>,
    },
    /// To every other order.
    Taken,
}

impl Order {
    /// The message that carries this order under these terms.
    pub fn to_request(&self, terms: &Terms) -> wire::OrderRequest {
        use wire::order_request::Order as Wire;
        let order = match self {
            Self::Begin { max_downtime, stream } => Wire::Begin(wire::Begin {
                max_downtime_micros: u64::try_from(max_downtime.as_micros()).unwrap_or(u64::MAX),
                stream: Some((*stream).into()),
            }),
            Self::Prepare {
                guest,
                definition,
                stream,
                ticket,
            } => Wire::Prepare(wire::Prepare {
                guest: Some(guest.into()),
                definition: definition.clone(),
                stream: Some((*stream).into()),
                ticket: ticket.clone(),
            }),
            Self::Perform(channel) => Wire::Perform(wire::Perform {
                channel: Some(channel.into()),
            }),
            Self::Ready => Wire::Ready(wire::Ready {}),
            Self::Finish(go) => Wire::Finish(wire::Finish {
                go: Some((*go).into()),
            }),
            Self::Confirm => Wire::Confirm(wire::Confirm {}),
            Self::AbortSource(cause) => Wire::AbortSource(wire::AbortSource {
                cause: wire::Cause::from(*cause).into(),
            }),
            Self::AbortDestination(cause) => Wire::AbortDestination(wire::AbortDestination {
                cause: wire::Cause::from(*cause).into(),
            }),
            Self::Settle => Wire::Settle(wire::Settle {}),
            Self::SourceStands(standing) => Wire::SourceStands((*standing).into()),
            Self::ArbitrateSource(cause) => Wire::ArbitrateSource(wire::ArbitrateSource {
                cause: wire::Cause::from(*cause).into(),
            }),
            Self::ArbitrateDestination => Wire::ArbitrateDestination(wire::ArbitrateDestination {}),
            Self::Retune { bandwidth } => Wire::Retune(wire::Retune {
                bandwidth: *bandwidth,
            }),
            Self::Drive(drive) => Wire::Drive((&**drive).into()),
        };
        wire::OrderRequest {
            terms: Some(terms.into()),
            order: Some(order),
        }
    }

    /// The terms and the order that a message carries.
    pub fn from_request(request: wire::OrderRequest) -> Result<(Terms, Self), Malformed> {
        use wire::order_request::Order as Wire;
        let terms = convert::terms(request.terms)?;
        let order = match request.order.ok_or(Malformed::missing("order"))? {
            Wire::Begin(begin) => Self::Begin {
                max_downtime: downtime("begin.max_downtime_micros", begin.max_downtime_micros)?,
                stream: stream::required(begin.stream)?,
            },
            Wire::Prepare(prepare) => {
                let guest = guest::required(prepare.guest)?;
                of_the_terms("prepare.guest.uid", &guest, &terms)?;
                Self::Prepare {
                    guest,
                    definition: convert::definition("prepare.definition", prepare.definition)?,
                    stream: stream::required(prepare.stream)?,
                    ticket: drive::ticket("prepare.ticket", prepare.ticket)?,
                }
            }
            Wire::Perform(perform) => Self::Perform(
                perform
                    .channel
                    .ok_or(Malformed::missing("perform.channel"))?
                    .try_into()?,
            ),
            Wire::Ready(wire::Ready {}) => Self::Ready,
            Wire::Finish(finish) => {
                Self::Finish(finish.go.ok_or(Malformed::missing("finish.go"))?.try_into()?)
            }
            Wire::Confirm(wire::Confirm {}) => Self::Confirm,
            Wire::AbortSource(abort) => Self::AbortSource(convert::cause("abort_source.cause", abort.cause)?),
            Wire::AbortDestination(abort) => {
                Self::AbortDestination(convert::cause("abort_destination.cause", abort.cause)?)
            }
            Wire::Settle(wire::Settle {}) => Self::Settle,
            Wire::SourceStands(standing) => Self::SourceStands(standing.try_into()?),
            Wire::ArbitrateSource(order) => {
                Self::ArbitrateSource(convert::cause("arbitrate_source.cause", order.cause)?)
            }
            Wire::ArbitrateDestination(wire::ArbitrateDestination {}) => Self::ArbitrateDestination,
            Wire::Retune(retune) => Self::Retune {
                bandwidth: stream::bandwidth("retune.bandwidth", retune.bandwidth)?,
            },
            Wire::Drive(drive) => {
                let drive = Drive::try_from(drive)?;
                of_the_terms("drive.guest.uid", &drive.guest, &terms)?;
                Self::Drive(Box::new(drive))
            }
        };
        Ok((terms, order))
    }

    /// The oldest version in which it can be given.
    pub fn since(&self) -> u32 {
        match self {
            Self::SourceStands(_) | Self::ArbitrateSource(_) | Self::ArbitrateDestination => {
                version::ARBITRATION
            }
            Self::Begin { .. }
            | Self::Prepare { .. }
            | Self::Perform(_)
            | Self::Ready
            | Self::Finish(_)
            | Self::Confirm
            | Self::AbortSource(_)
            | Self::AbortDestination(_)
            | Self::Settle
            | Self::Retune { .. }
            | Self::Drive(_) => version::OLDEST,
        }
    }

    /// The order's name, for logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Begin { .. } => "Begin",
            Self::Prepare { .. } => "Prepare",
            Self::Perform(_) => "Perform",
            Self::Ready => "Ready",
            Self::Finish(_) => "Finish",
            Self::Confirm => "Confirm",
            Self::AbortSource(_) => "AbortSource",
            Self::AbortDestination(_) => "AbortDestination",
            Self::Settle => "Settle",
            Self::SourceStands(_) => "SourceStands",
            Self::ArbitrateSource(_) => "ArbitrateSource",
            Self::ArbitrateDestination => "ArbitrateDestination",
            Self::Retune { .. } => "Retune",
            Self::Drive(_) => "Drive",
        }
    }

    /// What a reply to this order says.
    pub(crate) fn read_reply(&self, reply: wire::OrderReply) -> Result<OrderAnswer, Malformed> {
        match self {
            Self::Begin { .. } => Ok(OrderAnswer::Begun {
                definition: convert::definition("definition", reply.definition)?,
            }),
            Self::Prepare { .. }
            | Self::Perform(_)
            | Self::Ready
            | Self::Finish(_)
            | Self::Confirm
            | Self::AbortSource(_)
            | Self::AbortDestination(_)
            | Self::Settle
            | Self::SourceStands(_)
            | Self::ArbitrateSource(_)
            | Self::ArbitrateDestination
            | Self::Retune { .. }
            | Self::Drive(_) => Ok(OrderAnswer::Taken),
        }
    }
}

impl From<OrderAnswer> for wire::OrderReply {
    fn from(answer: OrderAnswer) -> Self {
        match answer {
            OrderAnswer::Begun { definition } => Self { definition },
            OrderAnswer::Taken => Self::default(),
        }
    }
}

/// A budget for the guest's stop.
pub(crate) fn downtime(field: &'static str, micros: u64) -> Result<Duration, Malformed> {
    let max_downtime = Duration::from_micros(micros);
    if max_downtime.is_zero() || max_downtime > LONGEST_DOWNTIME {
        return Err(Malformed::new(field, "must be more than 0 and at most an hour"));
    }
    Ok(max_downtime)
}

fn of_the_terms(field: &'static str, guest: &GuestName, terms: &Terms) -> Result<(), Malformed> {
    if guest.uid == terms.guest {
        Ok(())
    } else {
        Err(Malformed::new(field, "is not the guest of the terms"))
    }
}

/// The longest silence that a driver may ask to be borne: an hour.
const LONGEST_SILENCE: Duration = Duration::from_secs(3600);

/// A driver's word that it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverLives {
    /// The migration that it drives.
    pub terms: Terms,
    /// Whether it has lately heard from the other side and from the API server.
    pub path_proven: bool,
    /// How long the host may go without the next one before the driver counts as silent.
    pub silence: Duration,
}

impl TryFrom<wire::KeepAliveRequest> for DriverLives {
    type Error = Malformed;

    fn try_from(request: wire::KeepAliveRequest) -> Result<Self, Malformed> {
        let silence = Duration::from_millis(request.silence_millis.into());
        if silence.is_zero() || silence > LONGEST_SILENCE {
            return Err(Malformed::new(
                "silence_millis",
                "must be more than 0 and at most an hour",
            ));
        }
        Ok(Self {
            terms: convert::terms(request.terms)?,
            path_proven: request.path_proven,
            silence,
        })
    }
}
