//! How long the guest was stopped: from STOP at the source to RESUME at the destination, each stamped by its own
//! host's clock, the difference between the clocks taken out.

use godwit_crds::migration::Downtime;
use godwit_protocol::clock::{self, Offset};

/// What is known of the two instants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instants {
    /// When the guest stopped, by the source's clock, in microseconds.
    pub stopped_micros: i64,
    /// The source's clock minus ours.
    pub source: Offset,
    /// When the guest was let run, by the destination's clock, in microseconds.
    pub resumed_micros: i64,
    /// The destination's clock minus ours.
    pub destination: Offset,
}

/// The downtime as it stands in a status.
pub fn downtime(instants: Instants, hypervisor_millis: Option<u64>, sealed: bool) -> Downtime {
    let skew = instants.source.to(instants.destination);
    let stopped = clock::elapsed(
        instants.stopped_micros,
        instants.source,
        instants.resumed_micros,
        instants.destination,
    );
    // Within the uncertainty it may come out below zero; no guest resumes before it stops.
    let micros = stopped.micros.max(0);
    Downtime {
        stop_to_resume: text(micros),
        stop_to_resume_micros: micros,
        clock_offset_micros: skew.micros,
        clock_uncertainty_micros: i64::try_from(stopped.error_micros).unwrap_or(i64::MAX),
        hypervisor_millis: hypervisor_millis.map(|millis| i64::try_from(millis).unwrap_or(i64::MAX)),
        sealed,
    }
}

/// A duration for people: `0.8 ms`, `43 ms`, `2.5 s`.
fn text(micros: i64) -> String {
    let (tenths, unit) = if micros < 999_950 {
        (micros / 100, "ms")
    } else {
        (micros / 100_000, "s")
    };
    if tenths >= 100 && unit == "ms" || tenths % 10 == 0 {
        format!("{} {unit}", tenths / 10)
    } else {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
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

    #[test]
    fn the_skew_is_taken_out() {
        let instants = Instants {
            stopped_micros: 1_000_000,
            source: Offset {
                micros: 500,
                error_micros: 20,
            },
            resumed_micros: 1_541_000,
            destination: Offset {
                micros: 499_500,
                error_micros: 30,
            },
        };
        let downtime = downtime(instants, Some(7), true);
        assert_eq!(downtime.stop_to_resume_micros, 42_000);
        assert_eq!(downtime.stop_to_resume, "42 ms");
        assert_eq!(downtime.clock_offset_micros, 499_000);
        assert_eq!(downtime.clock_uncertainty_micros, 50);
        assert_eq!(downtime.hypervisor_millis, Some(7));
        assert!(downtime.sealed);
    }

    #[test]
    fn never_below_zero() {
        let same = Offset {
            micros: 0,
            error_micros: 100,
        };
        let instants = Instants {
            stopped_micros: 1000,
            source: same,
            resumed_micros: 950,
            destination: same,
        };
        assert_eq!(downtime(instants, None, false).stop_to_resume_micros, 0);
    }

    #[test]
    fn durations_for_people() {
        for (micros, words) in [
            (0, "0 ms"),
            (849, "0.8 ms"),
            (9_990, "9.9 ms"),
            (43_210, "43 ms"),
            (999_949, "999 ms"),
            (1_000_000, "1 s"),
            (2_540_000, "2.5 s"),
        ] {
            assert_eq!(text(micros), words, "{micros}");
        }
    }
}
