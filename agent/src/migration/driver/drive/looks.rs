//! What time alone changes: the proof of the path, keepalives, readings of the record, silences that last too long.

use std::time::Duration;

use godwit_handover::{Cause, DriverEvent, OrderKey, SideView, Stand, Wait};
use godwit_protocol::{GaveUp, OtherSide};
use tokio::time::Instant;

use super::{Done, Drive, READ_EVERY};
use crate::migration::driver_watch::STANDING_STILL;

/// Between two keepalives: the proof of the path must not grow old between them.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(1);
/// Between two readings of the record where the destination has to write into it before this driver can go on.
const READ_EVERY_WAITING: Duration = Duration::from_millis(250);

impl Drive {
    /// Looks at everything that time alone changes.
    pub(super) fn look(&mut self) {
        let now = Instant::now();
        self.forget_gave_up_unreached();
        self.give_again();
        if self.may_prepare() && matches!(self.driver.stand(), Stand::Ended(_)) {
            self.call_off();
        }
        self.read(now);
        self.keep_alive(now);
        self.keep(now);
        self.tell_silence(now);
        if let Some((at, _)) = &self.give_up_again
            && now >= *at
            && let Some((_, gave_up)) = self.give_up_again.take()
        {
            self.give_up(gave_up);
        }
        // Its journal cannot be read, or its hypervisor does not answer: what it was promised is not known.
        let unheard = *self.driver.source() == SideView::Unheard;
        self.step(DriverEvent::SourceSilent(
            unheard && self.began.elapsed() >= STANDING_STILL,
        ));
        if self.start_by.is_some_and(|by| now >= by) && !unheard {
            self.start_by = None;
            let told = self.start_too_slow();
            self.give_up(GaveUp {
                cause: Cause::PathNotProven,
                told,
            });
        }
        let silent_for = self.silent_since.map(|since| now.duration_since(since));
        let too_long = |limit| silent_for.is_some_and(|silence| silence >= limit);
        let standing_still = too_long(STANDING_STILL.min(self.kept.order.silence));
        self.step(DriverEvent::DestinationSilent(standing_still));
        if too_long(self.kept.order.silence) && self.driver.before_switchover() {
            let seconds = self.kept.order.silence.as_secs();
            let told = self.unreachable(&format!("was silent for {seconds} s"));
            self.give_up(GaveUp {
                cause: Cause::PathNotProven,
                told,
            });
        }
    }

    /// A restarted driver that had given up hears of the source only after it was told so.
    pub(super) fn forget_gave_up_unreached(&mut self) {
        if self.kept.view.gave_up.is_some() {
            self.forget_the_unreached();
        }
    }

    /// A destination that was never given Prepare knows nothing of the migration, whether it can be heard or not:
    /// Prepare needs what only the source's journaled beginning gives.
    pub(super) fn forget_the_unreached(&mut self) {
        let never_begun = *self.driver.source() == SideView::NoSuchMigration;
        if never_begun
            && *self.driver.destination() == SideView::Unheard
            && !self.given.ever(OrderKey::Begin)
            && !self.given.ever(OrderKey::Prepare)
        {
            self.kept.view.destination = Some(OtherSide::default());
            self.step(DriverEvent::Destination(None));
        }
    }

    pub(super) fn read(&mut self, now: Instant) {
        if self.reading || now < self.read_at {
            return;
        }
        let waiting = matches!(self.driver.stand(), Stand::Waiting { wait: Wait::Record });
        self.reading = true;
        self.read_at = now + if waiting { READ_EVERY_WAITING } else { READ_EVERY };
        let (records, guest) = (self.parts.records.clone(), self.terms().guest.clone());
        self.done
            .spawn(async move { Done::Read(records.read(&guest).await) });
    }

    /// Tells both sides that the driver lives.
    pub(super) fn keep_alive(&mut self, now: Instant) {
        self.tell_source_of_the_path();
        if now < self.keep_alive_at {
            return;
        }
        self.keep_alive_at = now + KEEP_ALIVE_EVERY;
        self.proven = self.path.proven(self.now());
        self.tell_source();
        let known = matches!(self.driver.destination(), SideView::Reported(_));
        if let Some(client) = self.client.clone().filter(|_| known && !self.keeping_alive) {
            self.keeping_alive = true;
            let (terms, proven, silence) = (self.terms().clone(), self.proven, self.kept.order.silence);
            self.done
                .spawn(async move { Done::KeptAlive(client.keep_alive(&terms, proven, silence).await) });
        }
    }

    /// The source waits for the proof of the path before it stops the guest: it is told at once.
    pub(super) fn tell_source_of_the_path(&mut self) {
        let proven = self.path.proven(self.now());
        if proven && !self.proven {
            self.proven = true;
            self.tell_source();
        }
    }

    pub(super) fn tell_source(&self) {
        let silence = self.kept.order.silence;
        // A source that does not know the migration yet, or any more, needs no driver.
        let _ = self
            .parts
            .migrations
            .keep_alive(self.terms(), self.proven, silence);
    }
}
