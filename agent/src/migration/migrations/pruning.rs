//! Forgets migrations that have ended long ago.

use std::sync::Weak;
use std::time::{Duration, SystemTime};

use tokio::time::sleep;

use super::Inner;
use crate::clock;
use crate::migration::journal::{self, Journal};

/// How long an ended migration's journal is kept: until then a repeated order about it does nothing.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// How often ended journals are looked through.
const BETWEEN_PRUNES: Duration = Duration::from_secs(3600);

/// Forgets them from time to time, as long as there are migrations.
pub(super) async fn keep_pruning(migrations: Weak<Inner>) {
    loop {
        sleep(BETWEEN_PRUNES).await;
        match migrations.upgrade() {
            Some(inner) => inner.prune(clock::now()),
            None => return,
        }
    }
}

/// Whether a journal that was written last at this time has been kept for long enough. Where it is not known when, or
/// where the clock was set back, it stays.
fn is_old(written: Option<SystemTime>, now: SystemTime) -> bool {
    written
        .and_then(|written| now.duration_since(written).ok())
        .is_some_and(|age| age > KEPT)
}

impl Inner {
    /// Forgets what ended long before `now`.
    pub(super) fn prune(&self, now: SystemTime) {
        let ended = self.table().ended();
        for migration in ended {
            let path = Journal::path_of(&self.journals, &migration);
            let written = std::fs::metadata(&path).and_then(|data| data.modified());
            if is_old(written.ok(), now) {
                match journal::remove(&path) {
                    Ok(()) => self.table().forget(&migration),
                    Err(error) => tracing::warn!(%error, path = %path.display(), "an old journal stays"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_to_be_old_is_old() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        assert!(is_old(Some(now - KEPT - Duration::from_secs(1)), now));
        assert!(!is_old(Some(now - KEPT), now));
        assert!(!is_old(Some(now + Duration::from_secs(1)), now));
        assert!(!is_old(None, now));
    }
}
