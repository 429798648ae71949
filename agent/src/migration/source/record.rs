//! Reads the guest's record, patiently.

use std::time::Duration;

use godwit_handover::RecordView;
use tokio::time::{sleep, timeout};

use crate::migration::custody::Records;
use crate::migration::role::{BACKOFF, LONGEST_BACKOFF};

/// How long the record is read for before the answer is that it cannot be read.
const DEADLINE: Duration = Duration::from_secs(5);
/// How often it is tried before the driver is left to ask again.
const TRIES: u32 = 4;

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

    use crate::migration::custody::Recorded;

    fn a_record() -> Recorded {
        Recorded {
            view: RecordView {
                holder: "a".into(),
                epoch: 3,
                migration: Some("m-1".into()),
                decision: Decision::None,
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
