//! The steps of a handover, for whoever measures where the time goes while the guest stands still: a line of the log each
//! (`GODWIT_LOG=info,godwit_agent::handover=debug`), with the host's clock.

use crate::clock::now_micros;

/// A moment of the blackout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The source's hypervisor waits before the switchover.
    Gate,
    /// `migrate-continue` is sent.
    SwitchOver,
    /// The source's hypervisor has sent everything.
    Completed,
    /// The destination's has taken everything.
    Loaded,
    /// A line that lets the guest run is given to the journal: `go-sent`, or `cont-issued`.
    Journaling,
    /// It is on the medium.
    Journaled,
    /// The guest runs at the destination.
    Resumed,
}

/// Tells of a moment, at the time that the hypervisor gave it, or now.
pub fn tell(migration: &str, moment: Moment, at_micros: Option<i64>) {
    if tracing::enabled!(target: "godwit_agent::handover", tracing::Level::DEBUG) {
        let at_micros = at_micros.unwrap_or_else(now_micros);
        tracing::debug!(target: "godwit_agent::handover", migration, ?moment, at_micros, "step");
    }
}
