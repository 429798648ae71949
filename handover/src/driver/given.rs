//! When an order is given, and when it is given again. Pure: the time is told, counted from any fixed instant.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::DriverEffect;

/// An order that was taken is given again if the reports have not moved on by then.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// Between two attempts of an order that was not answered: the first pause, and the longest.
const RETRY_AFTER: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

/// What kind of order it is. There is one of each for a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OrderKey {
    /// To arm the record.
    Arm,
    /// To advance the record.
    Advance,
    /// To decide the record.
    Decide,
    /// Begin.
    Begin,
    /// Prepare.
    Prepare,
    /// Perform.
    Perform,
    /// Ready.
    Ready,
    /// Finish.
    Finish,
    /// Confirm.
    Confirm,
    /// To the source: give up.
    AbortSource,
    /// To the destination: give up.
    AbortDestination,
    /// To the source: read the record.
    Settle,
    /// To the destination: the source's guest does not run again by itself.
    TellStanding,
    /// To the source: have the record decide.
    ArbitrateSource,
    /// To the destination: have the record decide.
    ArbitrateDestination,
    /// To the source: another limit for the stream. It follows from no report, but from a person's wish.
    Retune,
}

impl OrderKey {
    /// The kind of this effect.
    pub fn of(effect: &DriverEffect) -> Self {
        match effect {
            DriverEffect::ArmRecord => Self::Arm,
            DriverEffect::Begin => Self::Begin,
            DriverEffect::Prepare => Self::Prepare,
            DriverEffect::Perform(_) => Self::Perform,
            DriverEffect::Ready => Self::Ready,
            DriverEffect::Finish(_) => Self::Finish,
            DriverEffect::AdvanceRecord => Self::Advance,
            DriverEffect::Confirm => Self::Confirm,
            DriverEffect::AbortSource(_) => Self::AbortSource,
            DriverEffect::AbortDestination(_) => Self::AbortDestination,
            DriverEffect::DecideRecord(_) => Self::Decide,
            DriverEffect::Settle => Self::Settle,
            DriverEffect::TellStanding(_) => Self::TellStanding,
            DriverEffect::ArbitrateSource(_) => Self::ArbitrateSource,
            DriverEffect::ArbitrateDestination => Self::ArbitrateDestination,
        }
    }

    /// Whether it comes before the first byte of memory: refused for good, it ends the attempt.
    pub fn before_memory(self) -> bool {
        match self {
            Self::Begin | Self::Prepare | Self::Perform => true,
            Self::Arm
            | Self::Advance
            | Self::Decide
            | Self::Ready
            | Self::Finish
            | Self::Confirm
            | Self::AbortSource
            | Self::AbortDestination
            | Self::Settle
            | Self::TellStanding
            | Self::ArbitrateSource
            | Self::ArbitrateDestination
            | Self::Retune => false,
        }
    }
}

/// How far an order has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Given {
    InFlight { failures: u32 },
    Taken { at: Duration },
    Failed { again_at: Duration, failures: u32 },
}

/// The orders that a driver has given, and how far each has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OrdersGiven {
    table: BTreeMap<OrderKey, Given>,
    /// Those that may be carried out yet, or have been, for all that is known.
    open: BTreeSet<OrderKey>,
}

impl OrdersGiven {
    /// Whether an order may be given (again) now; notes that it is.
    pub fn give(&mut self, key: OrderKey, now: Duration) -> bool {
        let failures = match self.table.get(&key) {
            None => 0,
            Some(Given::InFlight { .. }) => return false,
            Some(Given::Taken { at }) if now < *at + AGAIN_AFTER => return false,
            Some(Given::Failed { again_at, .. }) if now < *again_at => return false,
            Some(Given::Taken { .. }) => 0,
            Some(Given::Failed { failures, .. }) => *failures,
        };
        self.table.insert(key, Given::InFlight { failures });
        self.open.insert(key);
        true
    }

    /// The order was taken.
    pub fn taken(&mut self, key: OrderKey, now: Duration) {
        self.table.insert(key, Given::Taken { at: now });
    }

    /// The order was refused, or not answered.
    pub fn failed(&mut self, key: OrderKey, now: Duration) {
        let failures = match self.table.get(&key) {
            Some(Given::InFlight { failures } | Given::Failed { failures, .. }) => *failures,
            Some(Given::Taken { .. }) | None => 0,
        };
        let pause = RETRY_AFTER[0]
            .saturating_mul(1 << failures.min(8))
            .min(RETRY_AFTER[1]);
        self.table.insert(
            key,
            Given::Failed {
                again_at: now + pause,
                failures: failures.saturating_add(1),
            },
        );
    }

    /// Whoever was to carry the order out has said that it has not, and will not.
    pub fn void(&mut self, key: OrderKey) {
        if !self.in_flight(key) {
            self.open.remove(&key);
        }
    }

    /// Whether it was given, and may be carried out yet although a report says nothing of it: the two cross.
    pub fn open(&self, key: OrderKey) -> bool {
        self.open.contains(&key)
    }

    /// Whether it was given and its answer is awaited.
    pub fn in_flight(&self, key: OrderKey) -> bool {
        matches!(self.table.get(&key), Some(Given::InFlight { .. }))
    }

    /// Whether it was ever given.
    pub fn ever(&self, key: OrderKey) -> bool {
        self.table.contains_key(&key)
    }

    /// Whether it was given and has not been taken.
    pub fn unanswered(&self, key: OrderKey) -> bool {
        matches!(
            self.table.get(&key),
            Some(Given::InFlight { .. } | Given::Failed { .. })
        )
    }

    /// Whether the record is being written.
    pub fn writing(&self) -> bool {
        [OrderKey::Arm, OrderKey::Advance, OrderKey::Decide]
            .iter()
            .any(|key| self.in_flight(*key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(100);

    #[test]
    fn an_order_is_given_once_until_it_is_answered_and_again_after_a_while() {
        let mut given = OrdersGiven::default();
        assert!(!given.ever(OrderKey::Begin));
        assert!(given.give(OrderKey::Begin, START));
        assert!(!given.give(OrderKey::Begin, START + Duration::from_secs(60)));
        assert!(given.unanswered(OrderKey::Begin) && given.ever(OrderKey::Begin));
        given.taken(OrderKey::Begin, START);
        assert!(!given.unanswered(OrderKey::Begin));
        assert!(!given.give(OrderKey::Begin, START + Duration::from_millis(1999)));
        assert!(given.give(OrderKey::Begin, START + AGAIN_AFTER));
        assert!(
            given.give(OrderKey::Prepare, START),
            "another order waits for nothing"
        );
    }

    #[test]
    fn what_fails_is_tried_again_ever_more_slowly() {
        let mut given = OrdersGiven::default();
        let mut now = START;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert!(given.give(OrderKey::Finish, now));
            given.failed(OrderKey::Finish, now);
            let failed_at = now;
            while !given.clone().give(OrderKey::Finish, now) {
                now += Duration::from_millis(50);
            }
            pauses.push((now - failed_at).as_millis());
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
        assert!(given.give(OrderKey::Finish, now));
        given.taken(OrderKey::Finish, now);
        given.failed(OrderKey::Finish, now);
        assert!(given.give(OrderKey::Finish, now + RETRY_AFTER[0]));
    }

    #[test]
    fn an_order_is_open_until_it_is_void() {
        let mut given = OrdersGiven::default();
        assert!(!given.open(OrderKey::Prepare));
        assert!(given.give(OrderKey::Prepare, START));
        given.void(OrderKey::Prepare);
        assert!(given.open(OrderKey::Prepare), "what is on its way may arrive yet");
        given.failed(OrderKey::Prepare, START);
        assert!(
            given.open(OrderKey::Prepare),
            "that it was not answered says nothing"
        );
        given.void(OrderKey::Prepare);
        assert!(!given.open(OrderKey::Prepare) && given.ever(OrderKey::Prepare));
        assert!(given.give(OrderKey::Prepare, START + RETRY_AFTER[0]));
        given.taken(OrderKey::Prepare, START);
        assert!(given.open(OrderKey::Prepare), "the report of it may come later");
    }

    #[test]
    fn one_write_of_the_record_at_a_time_is_seen() {
        let mut given = OrdersGiven::default();
        assert!(given.give(OrderKey::Settle, START) && !given.writing());
        assert!(given.give(OrderKey::Advance, START) && given.writing());
        given.failed(OrderKey::Advance, START);
        assert!(!given.writing());
    }
}
