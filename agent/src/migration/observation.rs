//! What a look at the hypervisor means to the machines: events may lag or be lost, a look tells the state itself.
//! Pure; each event may be told again, and does nothing then.

use godwit_handover::{DestinationEvent, DestinationReport, SourceEvent, SourceReport, StreamFact, Wanted};

use crate::hypervisor::{RunState, StreamState, StreamStatus};

/// Whether the guest stands in an end of its own, out of which nobody may let it run.
pub fn ended(run: RunState) -> bool {
    match run {
        RunState::ShutDown | RunState::Panicked | RunState::IoError | RunState::Broken => true,
        RunState::Running | RunState::Paused | RunState::StoppedForMigration | RunState::Incoming => false,
    }
}

/// How a stream stands, in the core's words.
pub fn fact(state: StreamState) -> StreamFact {
    match state {
        StreamState::None => StreamFact::None,
        StreamState::Setup | StreamState::Active => StreamFact::Active,
        StreamState::BeforeSwitchover => StreamFact::BeforeSwitchover,
        StreamState::SwitchingOver => StreamFact::SwitchingOver,
        StreamState::Completed => StreamFact::Completed,
        StreamState::Failed => StreamFact::Failed,
        StreamState::Cancelling | StreamState::Cancelled => StreamFact::Cancelled,
    }
}

/// Whether the hypervisor is still about to let a guest run by itself whose stream ended badly.
pub fn unsettled(run: RunState, stream: StreamState) -> bool {
    run == RunState::StoppedForMigration && matches!(stream, StreamState::Failed | StreamState::Cancelled)
}

/// What a look at the source means. `stream` is `None` while it may still be an earlier migration's.
pub fn at_source(report: &SourceReport, run: RunState, stream: Option<&StreamStatus>) -> Vec<SourceEvent> {
    let mut events = Vec::new();
    let running = run == RunState::Running;
    let moving = matches!(report, SourceReport::Begun | SourceReport::Streaming);
    if let Some(status) = stream {
        match status.state {
            StreamState::None | StreamState::SwitchingOver | StreamState::Cancelling => {}
            // A peer that is gone shows as an error before the state says so.
            StreamState::Setup | StreamState::Active => {
                if status.error.is_some() {
                    events.push(SourceEvent::StreamFailed { running });
                }
            }
            StreamState::BeforeSwitchover => events.push(match status.error {
                Some(_) => SourceEvent::StreamFailed { running },
                None => SourceEvent::BeforeSwitchover,
            }),
            StreamState::Completed => events.push(match (report, running) {
                // Somebody's hand has let it run: Go was not said yet, and must not be.
                (
                    SourceReport::Switching { .. }
                    | SourceReport::InDoubt { .. }
                    | SourceReport::Blocked { .. },
                    true,
                ) => SourceEvent::StreamFailed { running: true },
                (_, _) => SourceEvent::StreamCompleted,
            }),
            StreamState::Failed => events.push(SourceEvent::StreamFailed { running }),
            StreamState::Cancelled => events.push(match report {
                SourceReport::Switching { .. }
                | SourceReport::InDoubt { .. }
                | SourceReport::Deciding { .. }
                | SourceReport::Blocked { .. }
                | SourceReport::Yielded => SourceEvent::StreamFailed { running },
                SourceReport::Begun
                | SourceReport::Streaming
                | SourceReport::Stopped { .. }
                | SourceReport::GoSent(_)
                | SourceReport::Released
                | SourceReport::Aborting(_)
                | SourceReport::Aborted(_)
                | SourceReport::Died
                | SourceReport::Lost(_) => SourceEvent::StreamCancelled,
            }),
        }
    }
    if events.is_empty() && moving {
        match run {
            RunState::Running => events.push(SourceEvent::GuestWants(Wanted::Run)),
            RunState::Paused => events.push(SourceEvent::GuestWants(Wanted::StayStopped)),
            RunState::StoppedForMigration
            | RunState::Incoming
            | RunState::ShutDown
            | RunState::Panicked
            | RunState::IoError
            | RunState::Broken => {}
        }
    }
    events
}

/// What a look at the destination means.
pub fn at_destination(
    report: &DestinationReport,
    run: RunState,
    stream: &StreamStatus,
) -> Vec<DestinationEvent> {
    match report {
        DestinationReport::Prepared(_) | DestinationReport::Receiving => match stream.state {
            StreamState::Completed => vec![DestinationEvent::Loaded],
            StreamState::Failed | StreamState::Cancelled => vec![DestinationEvent::StreamFailed],
            StreamState::None
            | StreamState::Setup
            | StreamState::Active
            | StreamState::BeforeSwitchover
            | StreamState::SwitchingOver
            | StreamState::Cancelling => vec![],
        },
        DestinationReport::Starting if run == RunState::Running => vec![DestinationEvent::Resumed],
        DestinationReport::Starting
        | DestinationReport::Preparing
        | DestinationReport::Loaded
        | DestinationReport::Blocked
        | DestinationReport::Deciding
        | DestinationReport::Holding { .. }
        | DestinationReport::Reverting(_)
        | DestinationReport::Reverted(_)
        | DestinationReport::Lost(_) => vec![],
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use super::*;
    use godwit_handover::Cause;

    fn status(state: StreamState, error: Option<&str>) -> StreamStatus {
        StreamStatus {
            state,
            error: error.map(Into::into),
            figures: None,
        }
    }

    const SWITCHING: SourceReport = SourceReport::Switching {
        sealed: true,
        ready: false,
        wanted: Some(Wanted::Run),
    };

    #[test]
    fn an_earlier_migrations_stream_says_nothing() {
        let seen = at_source(&SourceReport::Begun, RunState::Running, None);
        assert_eq!(seen, [SourceEvent::GuestWants(Wanted::Run)]);
    }

    #[test]
    fn an_error_counts_whatever_the_state_says() {
        for state in [StreamState::Active, StreamState::BeforeSwitchover] {
            let seen = at_source(
                &SourceReport::Stopped { sealed: true },
                RunState::Paused,
                Some(&status(state, Some("reset"))),
            );
            assert_eq!(seen, [SourceEvent::StreamFailed { running: false }], "{state:?}");
        }
    }

    #[test]
    fn a_pause_is_the_users_only_while_memory_moves() {
        let active = status(StreamState::Active, None);
        let seen = at_source(&SourceReport::Streaming, RunState::Paused, Some(&active));
        assert_eq!(seen, [SourceEvent::GuestWants(Wanted::StayStopped)]);
        let seen = at_source(
            &SourceReport::Stopped { sealed: false },
            RunState::Paused,
            Some(&active),
        );
        assert_eq!(seen, []);
        let gate = status(StreamState::BeforeSwitchover, None);
        let seen = at_source(
            &SourceReport::Streaming,
            RunState::StoppedForMigration,
            Some(&gate),
        );
        assert_eq!(seen, [SourceEvent::BeforeSwitchover]);
    }

    #[test]
    fn a_guest_let_run_after_its_stream_was_acknowledged_forbids_go() {
        let completed = status(StreamState::Completed, None);
        assert_eq!(
            at_source(&SWITCHING, RunState::Running, Some(&completed)),
            [SourceEvent::StreamFailed { running: true }]
        );
        assert_eq!(
            at_source(&SWITCHING, RunState::StoppedForMigration, Some(&completed)),
            [SourceEvent::StreamCompleted]
        );
    }

    #[test]
    fn a_stream_cancelled_after_the_switchover_was_ordered_has_failed() {
        let cancelled = status(StreamState::Cancelled, None);
        assert_eq!(
            at_source(&SWITCHING, RunState::Paused, Some(&cancelled)),
            [SourceEvent::StreamFailed { running: false }]
        );
        assert_eq!(
            at_source(
                &SourceReport::Aborting(Cause::Cancelled),
                RunState::Paused,
                Some(&cancelled)
            ),
            [SourceEvent::StreamCancelled]
        );
    }

    #[test]
    fn the_destination_is_loaded_only_when_its_stream_says_so() {
        let receiving = DestinationReport::Receiving;
        let seen = |state| at_destination(&receiving, RunState::Incoming, &status(state, None));
        assert_eq!(seen(StreamState::Active), []);
        assert_eq!(seen(StreamState::Completed), [DestinationEvent::Loaded]);
        assert_eq!(seen(StreamState::Failed), [DestinationEvent::StreamFailed]);
        let loaded = at_destination(
            &DestinationReport::Loaded,
            RunState::Paused,
            &status(StreamState::Failed, None),
        );
        assert_eq!(loaded, []);
    }
}
