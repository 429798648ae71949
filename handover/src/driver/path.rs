//! Whether Ready and Go would get through, and the API server answers. Pure: the time is told.

use std::time::Duration;

/// How old the other side's last answer may be for the path to count as proved.
const OTHER_SIDE: Duration = Duration::from_secs(2);
/// The same for the API server's.
const API: Duration = Duration::from_secs(5);

/// What is known of the path. Times are counted from any fixed instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathProof {
    destination_answered: Option<Duration>,
    destination_watched: bool,
    api_reached: Option<Duration>,
}

impl PathProof {
    /// The API server has answered.
    pub fn api_reached(&mut self, now: Duration) {
        self.api_reached = Some(now);
    }

    /// The destination has answered a keepalive.
    pub fn destination_answered(&mut self, now: Duration) {
        self.destination_answered = Some(now);
    }

    /// Whether the destination's reports arrive.
    pub fn destination_watched(&mut self, watched: bool) {
        self.destination_watched = watched;
    }

    /// Whether the path is proved now.
    pub fn proven(&self, now: Duration) -> bool {
        let within = |at: Option<Duration>, limit| at.is_some_and(|at| now.saturating_sub(at) <= limit);
        self.destination_watched
            && within(self.destination_answered, OTHER_SIDE)
            && within(self.api_reached, API)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proof_has_three_parts_and_an_age() {
        let now = Duration::from_secs(7);
        let proof = PathProof {
            destination_answered: Some(now),
            destination_watched: true,
            api_reached: Some(now),
        };
        assert!(proof.proven(now));
        assert!(proof.proven(now + OTHER_SIDE));
        assert!(!proof.proven(now + OTHER_SIDE + Duration::from_millis(1)));
        let mut unwatched = proof;
        unwatched.destination_watched(false);
        assert!(!unwatched.proven(now));
        let unread = PathProof {
            api_reached: None,
            ..proof
        };
        assert!(!unread.proven(now));
        let mut late = proof;
        late.destination_answered(now + Duration::from_secs(6));
        assert!(!late.proven(now + Duration::from_secs(6)));
        late.api_reached(now + Duration::from_secs(6));
        assert!(late.proven(now + Duration::from_secs(6)));
    }
}
