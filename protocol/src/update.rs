//! What a host tells about its side of a migration.

use godwit_handover::{DestinationReport, SourceReport};

use crate::convert::{self, Malformed};
use crate::drive::Driving;
use crate::wire;

/// The longest detail of an update, in bytes; the sender cuts a longer one.
pub const LONGEST_DETAIL: usize = 1024;
/// The longest reason of an update, in bytes.
const LONGEST_REASON: usize = 64;

/// A host's side of a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Side {
    /// The host is the source.
    Source(SourceReport),
    /// The host is the destination.
    Destination(DestinationReport),
}

/// Figures of the stream of guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of memory that the guest has.
    pub total_bytes: u64,
    /// Bytes sent so far.
    pub transferred_bytes: u64,
    /// Bytes left to send.
    pub remaining_bytes: u64,
    /// Bytes that the guest dirties in a second.
    pub dirty_bytes_per_second: u64,
    /// Bytes sent in a second.
    pub bytes_per_second: u64,
    /// How often the dirty pages were collected.
    pub iteration: u64,
}

/// The whole of a host's side of a migration. Times are Unix time in microseconds by the host's clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// The state machine's report; `None` where the host knows no such migration.
    pub side: Option<Side>,
    /// Figures of the stream, once there is one.
    pub progress: Option<Progress>,
    /// When the guest last stopped here (source), as the hypervisor stamped it.
    pub stopped_at_micros: Option<i64>,
    /// When the guest was let run here (destination), as the hypervisor stamped it.
    pub resumed_at_micros: Option<i64>,
    /// What the hypervisor calls downtime, in milliseconds.
    pub hypervisor_downtime_millis: Option<u64>,
    /// The hypervisor's own time for the whole stream, in milliseconds.
    pub hypervisor_total_millis: Option<u64>,
    /// Words about the last failure, for people; empty without one, at most [`LONGEST_DETAIL`] bytes.
    pub detail: String,
    /// A stable word for the last failure where one is more precise than the cause; else empty.
    pub reason: String,
    /// Peer to peer, the source: what the driver in its agent tells of itself.
    pub driving: Option<Box<Driving>>,
    /// The source: memory travels slowly, because there is no recent proof of the path that a switchover needs.
    pub held_back: bool,
}

/// Zero stands for "has not happened" on the wire.
pub(crate) fn instant(micros: i64) -> Option<i64> {
    (micros != 0).then_some(micros)
}

/// A word of the table in `docs/conditions.md`, or nothing.
pub(crate) fn word(field: &'static str, value: String) -> Result<String, Malformed> {
    if value.len() > LONGEST_REASON || !value.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(Malformed::new(
            field,
            "must be a word of at most 64 letters and digits",
        ));
    }
    Ok(value)
}

/// The text, cut to so many bytes at a letter's border.
pub(crate) fn cut(mut text: String, longest: usize) -> String {
    let mut end = text.len().min(longest);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

impl From<Progress> for wire::Progress {
    fn from(progress: Progress) -> Self {
        Self {
            total_bytes: progress.total_bytes,
            transferred_bytes: progress.transferred_bytes,
            remaining_bytes: progress.remaining_bytes,
            dirty_bytes_per_second: progress.dirty_bytes_per_second,
            bytes_per_second: progress.bytes_per_second,
            iteration: progress.iteration,
        }
    }
}

impl From<wire::Progress> for Progress {
    fn from(progress: wire::Progress) -> Self {
        Self {
            total_bytes: progress.total_bytes,
            transferred_bytes: progress.transferred_bytes,
            remaining_bytes: progress.remaining_bytes,
            dirty_bytes_per_second: progress.dirty_bytes_per_second,
            bytes_per_second: progress.bytes_per_second,
            iteration: progress.iteration,
        }
    }
}

impl From<Update> for wire::MigrationUpdate {
    fn from(update: Update) -> Self {
        use wire::migration_update::Side as Wire;
        Self {
            side: update.side.map(|side| match side {
                Side::Source(report) => Wire::Source(report.into()),
                Side::Destination(report) => Wire::Destination((&report).into()),
            }),
            progress: update.progress.map(Into::into),
            stopped_at_micros: update.stopped_at_micros.unwrap_or_default(),
            resumed_at_micros: update.resumed_at_micros.unwrap_or_default(),
            hypervisor_downtime_millis: update.hypervisor_downtime_millis,
            detail: cut(update.detail, LONGEST_DETAIL),
            reason: update.reason,
            hypervisor_total_millis: update.hypervisor_total_millis.unwrap_or_default(),
            driving: update.driving.map(|driving| (*driving).into()),
            held_back: update.held_back,
        }
    }
}

impl TryFrom<wire::MigrationUpdate> for Update {
    type Error = Malformed;

    fn try_from(update: wire::MigrationUpdate) -> Result<Self, Malformed> {
        use wire::migration_update::Side as Wire;
        let side = match update.side {
            Some(Wire::Source(report)) => Some(Side::Source(report.try_into()?)),
            Some(Wire::Destination(report)) => Some(Side::Destination(report.try_into()?)),
            None => None,
        };
        if update.detail.len() > LONGEST_DETAIL {
            return Err(Malformed::new("detail", "is longer than 1024 bytes"));
        }
        Ok(Self {
            side,
            progress: update.progress.map(Into::into),
            stopped_at_micros: instant(update.stopped_at_micros),
            resumed_at_micros: instant(update.resumed_at_micros),
            hypervisor_downtime_millis: update.hypervisor_downtime_millis,
            hypervisor_total_millis: (update.hypervisor_total_millis != 0)
                .then_some(update.hypervisor_total_millis),
            detail: update.detail,
            reason: word("reason", update.reason)?,
            driving: match update.driving {
                Some(driving) => Some(Box::new(driving.try_into()?)),
                None => None,
            },
            held_back: update.held_back,
        })
    }
}

/// The UID of the migration that a watch is about.
pub fn watch_request(request: wire::WatchMigrationRequest) -> Result<String, Malformed> {
    convert::uid("migration", request.migration)
}
