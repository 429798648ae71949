//! What outlives the driver: that it has given up, before that is acted on, and what it tells, in its own time.

use std::future::Future;
use std::time::Duration;

use godwit_protocol::GaveUp;
use tokio::time::Instant;

use super::super::kept::Kept;
use super::{Done, Drive};
use crate::migration::rim;
use crate::state::StateError;

/// What a restarted driver is to tell is written down so long after it has changed.
const KEEP_AFTER: Duration = Duration::from_millis(500);
/// The same while the guest stands still: it has waited far longer for something else then than for a disk.
const KEEP_AFTER_STANDING_STILL: Duration = Duration::from_secs(3);

impl Drive {
    /// Gives up, for a reason of the driver's own. It is written down before it is acted on and told: a restarted
    /// driver must not begin what the controller has been told will never be begun.
    pub(in crate::migration::driver) fn give_up(&mut self, gave_up: GaveUp) {
        if self.giving_up || self.kept.view.gave_up.is_some() {
            return;
        }
        if !self.writes.is_empty() {
            self.give_up_again = Some((Instant::now(), gave_up));
            return;
        }
        self.giving_up = true;
        tracing::warn!(migration = self.terms().migration, cause = ?gave_up.cause, "giving up: {}", gave_up.told.message);
        let mut kept = self.kept.clone();
        kept.view.gave_up = Some(gave_up.clone());
        let put = self.put(kept);
        self.writes.spawn(async move { Done::GaveUp(gave_up, put.await) });
    }

    pub(super) fn put(&self, kept: Kept) -> impl Future<Output = Result<(), StateError>> + Send + use<> {
        let (shelf, writer, desk) = (
            self.shelf.clone(),
            self.shelf.clone(),
            self.parts.migrations.desk(),
        );
        async move {
            let put = rim::done(&*desk, move || writer.put(&kept)).await;
            put.unwrap_or_else(|error| Err(shelf.failed("write", error)))
        }
    }

    /// There is something to tell that a restarted driver would not know.
    pub(in crate::migration::driver) fn unkept(&mut self) {
        self.unkept_since.get_or_insert_with(Instant::now);
    }

    /// Writes it down, in its own time: the guest does not wait for it.
    pub(super) fn keep(&mut self, now: Instant) {
        let after = if self.driver.blackout() {
            KEEP_AFTER_STANDING_STILL
        } else {
            KEEP_AFTER
        };
        let due = self.unkept_since.is_some_and(|since| now >= since + after);
        if due && self.writes.is_empty() {
            self.unkept_since = None;
            let put = self.put(self.kept.clone());
            self.writes.spawn(async move { Done::Kept(put.await) });
        }
    }
}
