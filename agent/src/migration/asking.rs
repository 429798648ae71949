//! Asks the guest's record, patiently: what it says, and to decide.

use std::time::Duration;

use godwit_handover::{Decision, RecordView, Terms};
use tokio::time::{sleep, timeout};

use super::custody::{RecordArbiter, Records};
use super::role::{BACKOFF, LONGEST_BACKOFF, sleep_if};

/// How long the record is read for before the answer is that it cannot be read.
const DEADLINE: Duration = Duration::from_secs(5);
/// How often it is tried before the driver is left to ask again.
const TRIES: u32 = 4;

/// The pauses between two attempts to have the record decide.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Patience(Duration);

impl Patience {
    /// How long to wait before the next attempt: not at all before the first, and ever longer.
    pub(super) fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).clamp(2 * BACKOFF, LONGEST_BACKOFF);
        pause
    }
}

/// Has the record decide; what it says then. `None`: whether it was written is not known.
pub(super) async fn decide(
    records: &dyn RecordArbiter,
    terms: &Terms,
    decision: Decision,
    after: Duration,
) -> Option<RecordView> {
    sleep_if(after).await;
    timeout(DEADLINE, records.decide(terms, decision))
        .await
        .unwrap_or(None)
}

/// Has the record say that the guest is let run; what it says then. `None`: whether it was written is not known.
pub(super) async fn start(records: &dyn RecordArbiter, terms: &Terms, after: Duration) -> Option<RecordView> {
    sleep_if(after).await;
    timeout(DEADLINE, records.start(terms)).await.unwrap_or(None)
}

/// Reads the record, again where it cannot be read at once.
pub(super) async fn read(records: &dyn Records, guest: &str) -> Option<RecordView> {
    let mut pause = BACKOFF;
    for tried in 1..=TRIES {
        if let Ok(Some(record)) = timeout(DEADLINE, records.read(guest)).await {
            return Some(record);
        }
        if tried < TRIES {
            sleep(pause).await;
            pause = (pause * 4).min(LONGEST_BACKOFF);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;
    use godwit_handover::Decision;

    use super::super::custody::Recorded;

    fn a_record() -> Recorded {
        Recorded {
            strict: false,
            view: RecordView {
                holder: "a".into(),
                epoch: 3,
                migration: Some("m-1".into()),
                decision: Decision::None,
                started: false,
                word: None,
            },
            definition: String::new(),
        }
    }

    /// Says nothing, or never answers, before this try.
    struct Sluggish {
        asked: AtomicU32,
        good_at: u32,
        hangs: bool,
    }

    #[async_trait]
    impl Records for Sluggish {
        async fn whole(&self, _: &str) -> Option<Recorded> {
            if self.asked.fetch_add(1, Ordering::Relaxed) + 1 >= self.good_at {
                return Some(a_record());
            }
            if self.hangs {
                std::future::pending::<()>().await;
            }
            None
        }
    }

    #[test]
    fn patience_grows_up_to_a_limit() {
        let mut patience = Patience::default();
        let pauses: Vec<u128> = (0..8).map(|_| patience.next().as_millis()).collect();
        assert_eq!(pauses, [0, 100, 200, 400, 800, 1600, 2000, 2000]);
    }

    #[async_trait]
    impl RecordArbiter for Sluggish {
        async fn decide(&self, terms: &Terms, decision: Decision) -> Option<RecordView> {
            let view = Records::read(self, &terms.guest).await?;
            Some(RecordView { decision, ..view })
        }

        async fn start(&self, terms: &Terms) -> Option<RecordView> {
            let view = Records::read(self, &terms.guest).await?;
            Some(RecordView {
                started: true,
                ..view
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_decision_that_is_not_answered_is_not_known() {
        let terms = Terms {
            migration: "m-1".into(),
            guest: "guest-1".into(),
            epoch: 3,
            source: "a".into(),
            destination: "b".into(),
            strict: false,
        };
        for (hangs, good_at, said) in [
            (true, 2, None),
            (false, 2, None),
            (true, 1, Some(Decision::Aborted)),
        ] {
            let records = Sluggish {
                asked: AtomicU32::new(0),
                good_at,
                hangs,
            };
            let view = decide(&records, &terms, Decision::Aborted, Duration::from_secs(1)).await;
            assert_eq!(view.map(|view| view.decision), said, "{hangs}, {good_at}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_read_again_where_it_cannot_be_read_and_not_for_ever() {
        for hangs in [false, true] {
            for (good_at, found) in [(1, true), (TRIES, true), (TRIES + 1, false)] {
                let records = Sluggish {
                    asked: AtomicU32::new(0),
                    good_at,
                    hangs,
                };
                let read = read(&records, "guest-1").await;
                assert_eq!(read, found.then(|| a_record().view), "{good_at}, {hangs}");
                assert_eq!(records.asked.into_inner(), good_at.min(TRIES));
            }
        }
    }
}
