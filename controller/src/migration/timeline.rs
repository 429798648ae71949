//! When each phase began and ended.

use godwit_crds::migration::{MigrationPhase, PhaseTimes};

/// Notes that `phase` has begun at `at`: what was open before ends then. A phase that stands in the list is left
/// as it is, so that a controller that starts anew keeps the times that the last one wrote.
pub fn enter(timeline: &mut Vec<PhaseTimes>, phase: MigrationPhase, at: &str) {
    if timeline.iter().any(|times| times.phase >= phase) {
        return;
    }
    close(timeline, at);
    timeline.push(PhaseTimes {
        phase,
        started_at: at.into(),
        ended_at: None,
    });
}

/// Notes that the last phase has ended.
pub fn close(timeline: &mut [PhaseTimes], at: &str) {
    for times in timeline.iter_mut().filter(|times| times.ended_at.is_none()) {
        times.ended_at = Some(at.into());
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

    fn entry(phase: MigrationPhase, started: &str, ended: Option<&str>) -> PhaseTimes {
        PhaseTimes {
            phase,
            started_at: started.into(),
            ended_at: ended.map(Into::into),
        }
    }

    #[test]
    fn each_phase_ends_where_the_next_begins() {
        let mut timeline = Vec::new();
        enter(&mut timeline, MigrationPhase::Begin, "1");
        enter(&mut timeline, MigrationPhase::Prepare, "2");
        close(&mut timeline, "3");
        assert_eq!(
            timeline,
            [
                entry(MigrationPhase::Begin, "1", Some("2")),
                entry(MigrationPhase::Prepare, "2", Some("3"))
            ]
        );
    }

    #[test]
    fn a_controller_that_starts_anew_keeps_earlier_times() {
        let mut timeline = vec![
            entry(MigrationPhase::Begin, "1", Some("2")),
            entry(MigrationPhase::Perform, "2", None),
        ];
        let before = timeline.clone();
        enter(&mut timeline, MigrationPhase::Begin, "9");
        enter(&mut timeline, MigrationPhase::Prepare, "9");
        enter(&mut timeline, MigrationPhase::Perform, "9");
        assert_eq!(timeline, before);
        enter(&mut timeline, MigrationPhase::Finish, "10");
        assert_eq!(timeline[1], entry(MigrationPhase::Perform, "2", Some("10")));
        close(&mut timeline, "11");
        close(&mut timeline, "12");
        assert_eq!(timeline[2], entry(MigrationPhase::Finish, "10", Some("11")));
    }
}
