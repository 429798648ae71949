//! The handover's words on the wire, both ways. From the wire every field is checked: lengths, alphabets, and
//! enum values that are unspecified or unknown are refused by name.

use godwit_handover::{
    Cause, Channel, DestinationReport, Go, GoEvidence, SourceReport, Standing, StandingBecause, Terms, Token,
    Wanted,
};

use crate::error::{Category, Fault};
use crate::{reason, wire};

/// The longest UID, in bytes.
pub const LONGEST_UID: usize = 63;
/// The longest name of a host or of an object, in bytes.
pub const LONGEST_NAME: usize = 253;
/// The longest namespace, in bytes.
pub const LONGEST_NAMESPACE: usize = 63;
/// The longest migration URI, in bytes.
pub const LONGEST_URI: usize = 512;
/// The length of a one-time token, in bytes.
pub const TOKEN_LENGTH: usize = 32;
/// The longest definition of a guest, in bytes.
pub const LONGEST_DEFINITION: usize = 256 * 1024;

/// A message that no godwit program of this version would send.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Field {field} {problem}")]
pub struct Malformed {
    /// The field, by its name in the protocol's definition.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl Malformed {
    pub(crate) fn new(field: &'static str, problem: &'static str) -> Self {
        Self { field, problem }
    }

    pub(crate) fn missing(field: &'static str) -> Self {
        Self::new(field, "is missing")
    }

    pub(crate) fn unknown(field: &'static str) -> Self {
        Self::new(field, "has an unspecified or unknown value")
    }
}

impl From<Malformed> for Fault {
    fn from(malformed: Malformed) -> Self {
        Self::new(
            Category::Invalid,
            reason::INTERNAL_ERROR,
            format!("Malformed message: {malformed}"),
        )
    }
}

impl From<Malformed> for tonic::Status {
    fn from(malformed: Malformed) -> Self {
        Fault::from(malformed).into()
    }
}

/// A UID: it may become a file's name, so its alphabet is narrow.
pub(crate) fn uid(field: &'static str, value: String) -> Result<String, Malformed> {
    if value.is_empty() || value.len() > LONGEST_UID {
        return Err(Malformed::new(field, "must have 1 to 63 characters"));
    }
    if !value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err(Malformed::new(field, "may hold only letters, digits and hyphens"));
    }
    Ok(value)
}

/// Whether it is a DNS subdomain as Kubernetes names objects: lower-case labels of letters, digits and hyphens.
pub(crate) fn is_subdomain(value: &str) -> bool {
    !value.is_empty()
        && value.len() <= LONGEST_NAME
        && value.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}

/// The name of a host or of a namespaced object.
pub(crate) fn name(field: &'static str, value: String) -> Result<String, Malformed> {
    if is_subdomain(&value) {
        Ok(value)
    } else {
        Err(Malformed::new(
            field,
            "must be a DNS subdomain of at most 253 characters",
        ))
    }
}

/// An epoch: the API server keeps it as a signed number.
pub(crate) fn epoch(field: &'static str, value: u64) -> Result<u64, Malformed> {
    // One less than the largest, because the handover gives the destination the next one.
    if value < i64::MAX.unsigned_abs() {
        Ok(value)
    } else {
        Err(Malformed::new(field, "is too large"))
    }
}

/// A guest's definition, unread.
pub(crate) fn definition(field: &'static str, value: Vec<u8>) -> Result<Vec<u8>, Malformed> {
    if value.is_empty() {
        Err(Malformed::missing(field))
    } else if value.len() > LONGEST_DEFINITION {
        Err(Malformed::new(field, "is longer than 256 KiB"))
    } else {
        Ok(value)
    }
}

impl From<&Terms> for wire::Terms {
    fn from(terms: &Terms) -> Self {
        Self {
            migration: terms.migration.clone(),
            guest: terms.guest.clone(),
            epoch: terms.epoch,
            source: terms.source.clone(),
            destination: terms.destination.clone(),
            strict: terms.strict,
        }
    }
}

impl TryFrom<wire::Terms> for Terms {
    type Error = Malformed;

    fn try_from(terms: wire::Terms) -> Result<Self, Malformed> {
        let terms = Self {
            migration: uid("terms.migration", terms.migration)?,
            guest: uid("terms.guest", terms.guest)?,
            epoch: epoch("terms.epoch", terms.epoch)?,
            source: name("terms.source", terms.source)?,
            destination: name("terms.destination", terms.destination)?,
            strict: terms.strict,
        };
        if terms.source == terms.destination {
            return Err(Malformed::new("terms.destination", "is the source"));
        }
        Ok(terms)
    }
}

/// The terms of a message, which must have them.
pub(crate) fn terms(terms: Option<wire::Terms>) -> Result<Terms, Malformed> {
    terms.ok_or(Malformed::missing("terms"))?.try_into()
}

impl From<&Channel> for wire::Channel {
    fn from(channel: &Channel) -> Self {
        Self {
            uri: channel.uri.clone(),
            token: channel.token.0.clone(),
        }
    }
}

impl TryFrom<wire::Channel> for Channel {
    type Error = Malformed;

    fn try_from(channel: wire::Channel) -> Result<Self, Malformed> {
        if channel.uri.is_empty() || channel.uri.len() > LONGEST_URI {
            return Err(Malformed::new("channel.uri", "must have 1 to 512 characters"));
        }
        if !channel.uri.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Malformed::new(
                "channel.uri",
                "may hold only printable ASCII without spaces",
            ));
        }
        if channel.token.len() != TOKEN_LENGTH {
            return Err(Malformed::new("channel.token", "must have 32 bytes"));
        }
        Ok(Self {
            uri: channel.uri,
            token: Token(channel.token),
        })
    }
}

impl From<Wanted> for wire::Wanted {
    fn from(wanted: Wanted) -> Self {
        match wanted {
            Wanted::Run => Self::Run,
            Wanted::StayStopped => Self::StayStopped,
        }
    }
}

fn wanted(field: &'static str, value: i32) -> Result<Wanted, Malformed> {
    maybe_wanted(field, value)?.ok_or(Malformed::unknown(field))
}

/// Where an older version says nothing.
fn maybe_wanted(field: &'static str, value: i32) -> Result<Option<Wanted>, Malformed> {
    match wire::Wanted::try_from(value) {
        Ok(wire::Wanted::Run) => Ok(Some(Wanted::Run)),
        Ok(wire::Wanted::StayStopped) => Ok(Some(Wanted::StayStopped)),
        Ok(wire::Wanted::Unspecified) => Ok(None),
        Err(_) => Err(Malformed::unknown(field)),
    }
}

impl From<Standing> for wire::SourceStands {
    fn from(standing: Standing) -> Self {
        let because = match standing.because {
            StandingBecause::Sealed => wire::StandingBecause::Sealed,
            StandingBecause::SourceDead => wire::StandingBecause::SourceDead,
            StandingBecause::SourceFenced => wire::StandingBecause::SourceFenced,
        };
        Self {
            because: because.into(),
            wanted: wire::Wanted::from(standing.wanted).into(),
        }
    }
}

impl TryFrom<wire::SourceStands> for Standing {
    type Error = Malformed;

    fn try_from(standing: wire::SourceStands) -> Result<Self, Malformed> {
        let because = match wire::StandingBecause::try_from(standing.because) {
            Ok(wire::StandingBecause::Sealed) => StandingBecause::Sealed,
            Ok(wire::StandingBecause::SourceDead) => StandingBecause::SourceDead,
            Ok(wire::StandingBecause::SourceFenced) => StandingBecause::SourceFenced,
            Ok(wire::StandingBecause::Unspecified) | Err(_) => {
                return Err(Malformed::unknown("source_stands.because"));
            }
        };
        Ok(Self {
            because,
            wanted: wanted("source_stands.wanted", standing.wanted)?,
        })
    }
}

impl From<GoEvidence> for wire::GoEvidence {
    fn from(evidence: GoEvidence) -> Self {
        match evidence {
            GoEvidence::Completed => Self::Completed,
            GoEvidence::SealedAndReleased => Self::SealedAndReleased,
            GoEvidence::SourceDead => Self::SourceDead,
            // No Go of a source's: whoever is sent it refuses it.
            GoEvidence::Committed => Self::Unspecified,
        }
    }
}

fn evidence(value: i32) -> Result<GoEvidence, Malformed> {
    match wire::GoEvidence::try_from(value) {
        Ok(wire::GoEvidence::Completed) => Ok(GoEvidence::Completed),
        Ok(wire::GoEvidence::SealedAndReleased) => Ok(GoEvidence::SealedAndReleased),
        Ok(wire::GoEvidence::SourceDead) => Ok(GoEvidence::SourceDead),
        Ok(wire::GoEvidence::Unspecified) | Err(_) => Err(Malformed::unknown("go.evidence")),
    }
}

impl From<Go> for wire::Go {
    fn from(go: Go) -> Self {
        Self {
            evidence: wire::GoEvidence::from(go.evidence).into(),
            wanted: wire::Wanted::from(go.wanted).into(),
            sealed: go.sealed,
        }
    }
}

impl TryFrom<wire::Go> for Go {
    type Error = Malformed;

    fn try_from(go: wire::Go) -> Result<Self, Malformed> {
        Ok(Self {
            evidence: evidence(go.evidence)?,
            wanted: wanted("go.wanted", go.wanted)?,
            sealed: go.sealed,
        })
    }
}

impl From<Cause> for wire::Cause {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Cancelled => Self::Cancelled,
            Cause::DestinationFailed => Self::DestinationFailed,
            Cause::DestinationDied => Self::DestinationDied,
            Cause::SourceDied => Self::SourceDied,
            Cause::StreamFailed => Self::StreamFailed,
            Cause::DriverSilent => Self::DriverSilent,
            Cause::PathNotProven => Self::PathNotProven,
            Cause::GuestStopped => Self::GuestStopped,
            Cause::JournalFailed => Self::JournalFailed,
            Cause::HypervisorRefused => Self::HypervisorRefused,
            Cause::Reverted => Self::Reverted,
        }
    }
}

/// A cause by its number on the wire.
pub(crate) fn cause(field: &'static str, value: i32) -> Result<Cause, Malformed> {
    match wire::Cause::try_from(value) {
        Ok(wire::Cause::Cancelled) => Ok(Cause::Cancelled),
        Ok(wire::Cause::DestinationFailed) => Ok(Cause::DestinationFailed),
        Ok(wire::Cause::DestinationDied) => Ok(Cause::DestinationDied),
        Ok(wire::Cause::SourceDied) => Ok(Cause::SourceDied),
        Ok(wire::Cause::StreamFailed) => Ok(Cause::StreamFailed),
        Ok(wire::Cause::DriverSilent) => Ok(Cause::DriverSilent),
        Ok(wire::Cause::PathNotProven) => Ok(Cause::PathNotProven),
        Ok(wire::Cause::GuestStopped) => Ok(Cause::GuestStopped),
        Ok(wire::Cause::JournalFailed) => Ok(Cause::JournalFailed),
        Ok(wire::Cause::HypervisorRefused) => Ok(Cause::HypervisorRefused),
        Ok(wire::Cause::Reverted) => Ok(Cause::Reverted),
        Ok(wire::Cause::Unspecified) | Err(_) => Err(Malformed::unknown(field)),
    }
}

impl From<SourceReport> for wire::SourceReport {
    fn from(report: SourceReport) -> Self {
        use wire::SourceStage as Stage;
        let at = |stage: Stage| Self {
            stage: stage.into(),
            ..Self::default()
        };
        let by = |stage: Stage, cause: Cause| Self {
            cause: wire::Cause::from(cause).into(),
            ..at(stage)
        };
        match report {
            SourceReport::Begun => at(Stage::Begun),
            SourceReport::Streaming => at(Stage::Streaming),
            SourceReport::Stopped { sealed } => Self {
                sealed,
                ..at(Stage::Stopped)
            },
            SourceReport::Switching {
                sealed,
                ready,
                wanted,
            } => Self {
                sealed,
                ready,
                wanted: on_the_wire(wanted),
                ..at(Stage::Switching)
            },
            SourceReport::InDoubt {
                sealed,
                ready,
                wanted,
            } => Self {
                sealed,
                ready,
                wanted: on_the_wire(wanted),
                ..at(Stage::InDoubt)
            },
            SourceReport::Deciding { cause, dead, sealed } => Self {
                sealed,
                wanted: on_the_wire(dead),
                record: wire::Record::Asked.into(),
                ..by(Stage::InDoubt, cause)
            },
            SourceReport::Blocked { sealed, wanted } => Self {
                sealed,
                wanted: on_the_wire(Some(wanted)),
                record: wire::Record::OutOfReach.into(),
                ..at(Stage::InDoubt)
            },
            SourceReport::Yielded => Self {
                record: wire::Record::Committed.into(),
                ..at(Stage::InDoubt)
            },
            SourceReport::GoSent(go) => Self {
                go: Some(go.into()),
                ..at(Stage::GoSent)
            },
            SourceReport::Released => at(Stage::Released),
            SourceReport::Aborting(cause) => by(Stage::Aborting, cause),
            SourceReport::Aborted(cause) => by(Stage::Aborted, cause),
            SourceReport::Died => at(Stage::Died),
            SourceReport::Lost(cause) => by(Stage::Lost, cause),
        }
    }
}

fn on_the_wire(wanted: Option<Wanted>) -> i32 {
    wanted.map_or(wire::Wanted::Unspecified, Into::into).into()
}

impl TryFrom<wire::SourceReport> for SourceReport {
    type Error = Malformed;

    fn try_from(report: wire::SourceReport) -> Result<Self, Malformed> {
        use wire::SourceStage as Stage;
        let why = || cause("source.cause", report.cause);
        let wanted = || maybe_wanted("source.wanted", report.wanted);
        Ok(match Stage::try_from(report.stage) {
            Ok(Stage::Begun) => Self::Begun,
            Ok(Stage::Streaming) => Self::Streaming,
            Ok(Stage::Stopped) => Self::Stopped {
                sealed: report.sealed,
            },
            Ok(Stage::Switching) => Self::Switching {
                sealed: report.sealed,
                ready: report.ready,
                wanted: wanted()?,
            },
            Ok(Stage::InDoubt) => match wire::Record::try_from(report.record) {
                Ok(wire::Record::Unspecified) => Self::InDoubt {
                    sealed: report.sealed,
                    ready: report.ready,
                    wanted: wanted()?,
                },
                Ok(wire::Record::Asked) => Self::Deciding {
                    cause: why()?,
                    dead: wanted()?,
                    sealed: report.sealed,
                },
                Ok(wire::Record::Committed) => Self::Yielded,
                Ok(wire::Record::OutOfReach) => Self::Blocked {
                    sealed: report.sealed,
                    wanted: wanted()?.ok_or(Malformed::unknown("source.wanted"))?,
                },
                Err(_) => return Err(Malformed::unknown("source.record")),
            },
            Ok(Stage::GoSent) => Self::GoSent(report.go.ok_or(Malformed::missing("source.go"))?.try_into()?),
            Ok(Stage::Released) => Self::Released,
            Ok(Stage::Aborting) => Self::Aborting(why()?),
            Ok(Stage::Aborted) => Self::Aborted(why()?),
            Ok(Stage::Died) => Self::Died,
            Ok(Stage::Lost) => Self::Lost(why()?),
            Ok(Stage::Unspecified) | Err(_) => return Err(Malformed::unknown("source.stage")),
        })
    }
}

impl From<&DestinationReport> for wire::DestinationReport {
    fn from(report: &DestinationReport) -> Self {
        use wire::DestinationStage as Stage;
        let at = |stage: Stage| Self {
            stage: stage.into(),
            ..Self::default()
        };
        let by = |stage: Stage, cause: Cause| Self {
            cause: wire::Cause::from(cause).into(),
            ..at(stage)
        };
        match report {
            DestinationReport::Preparing => at(Stage::Preparing),
            DestinationReport::Prepared(channel) => Self {
                channel: Some(channel.into()),
                ..at(Stage::Prepared)
            },
            DestinationReport::Receiving => at(Stage::Receiving),
            DestinationReport::Loaded => at(Stage::Loaded),
            DestinationReport::Blocked => at(Stage::Blocked),
            DestinationReport::Deciding => Self {
                deciding: true,
                ..at(Stage::Loaded)
            },
            DestinationReport::Starting => at(Stage::Starting),
            DestinationReport::Holding { running } => Self {
                running: *running,
                ..at(Stage::Holding)
            },
            DestinationReport::Reverting(cause) => by(Stage::Reverting, *cause),
            DestinationReport::Reverted(cause) => by(Stage::Reverted, *cause),
            DestinationReport::Lost(cause) => by(Stage::Lost, *cause),
        }
    }
}

impl TryFrom<wire::DestinationReport> for DestinationReport {
    type Error = Malformed;

    fn try_from(report: wire::DestinationReport) -> Result<Self, Malformed> {
        use wire::DestinationStage as Stage;
        let why = || cause("destination.cause", report.cause);
        Ok(match Stage::try_from(report.stage) {
            Ok(Stage::Preparing) => Self::Preparing,
            Ok(Stage::Prepared) => Self::Prepared(
                report
                    .channel
                    .ok_or(Malformed::missing("destination.channel"))?
                    .try_into()?,
            ),
            Ok(Stage::Receiving) => Self::Receiving,
            Ok(Stage::Loaded) if report.deciding => Self::Deciding,
            Ok(Stage::Loaded) => Self::Loaded,
            Ok(Stage::Blocked) => Self::Blocked,
            Ok(Stage::Starting) => Self::Starting,
            Ok(Stage::Holding) => Self::Holding {
                running: report.running,
            },
            Ok(Stage::Reverting) => Self::Reverting(why()?),
            Ok(Stage::Reverted) => Self::Reverted(why()?),
            Ok(Stage::Lost) => Self::Lost(why()?),
            Ok(Stage::Unspecified) | Err(_) => return Err(Malformed::unknown("destination.stage")),
        })
    }
}
