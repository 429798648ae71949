//! One driver for each migration, whatever reconciles it: who drives what.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// How long what is told of a migration and its guest waits for a handover: one that takes longer is worth telling of.
pub const LONGEST_HOLD: Duration = Duration::from_secs(3);

/// What the user may change while a migration is driven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// The migration is to be cancelled.
    pub cancel: bool,
    /// The limit for the stream while the guest runs, in bytes per second; 0 for none.
    pub bandwidth: u64,
    /// The object's generation.
    pub generation: Option<i64>,
}

/// One driver at work.
struct Driven {
    control: watch::Sender<Control>,
    /// Since when the guest is handed over.
    handover: Option<Instant>,
}

type Table = Arc<Mutex<HashMap<String, Driven>>>;

/// The drivers at work, by their migrations' UIDs.
#[derive(Clone, Default)]
pub struct Drivers {
    table: Table,
}

/// A driver's place in the table. It is given up when this is dropped.
pub struct Seat {
    table: Table,
    migration: String,
}

impl Drivers {
    /// Tells a driver what the user wants; false if nobody drives that migration.
    pub fn tell(&self, migration: &str, control: Control) -> bool {
        locked(&self.table).get(migration).is_some_and(|driven| {
            driven.control.send_if_modified(|known| {
                let news = *known != control;
                *known = control;
                news
            });
            true
        })
    }

    /// Whether somebody drives that migration.
    pub fn has(&self, migration: &str) -> bool {
        locked(&self.table).contains_key(migration)
    }

    /// Notes that the guest of this migration is being handed over.
    pub fn hands_over(&self, migration: &str) {
        if let Some(driven) = locked(&self.table).get_mut(migration) {
            driven.handover.get_or_insert_with(Instant::now);
        }
    }

    /// How long to wait yet with what can be told of its guest later: the handover takes milliseconds, and what is seen
    /// amid it is another thing a moment later. `None`: nobody drives it, or it has not come to that, or takes too long.
    pub fn hold(&self, migration: &str) -> Option<Duration> {
        let since = locked(&self.table).get(migration)?.handover?;
        left(since.elapsed())
    }

    /// A seat for a new driver; `None` if there is one already.
    pub fn enter(&self, migration: &str, control: Control) -> Option<(watch::Receiver<Control>, Seat)> {
        let mut table = locked(&self.table);
        if table.contains_key(migration) {
            return None;
        }
        let (sender, receiver) = watch::channel(control);
        table.insert(
            migration.into(),
            Driven {
                control: sender,
                handover: None,
            },
        );
        Some((
            receiver,
            Seat {
                table: self.table.clone(),
                migration: migration.into(),
            },
        ))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        locked(&self.table).remove(&self.migration);
    }
}

/// What is left of the longest wait.
fn left(waited: Duration) -> Option<Duration> {
    LONGEST_HOLD.checked_sub(waited).filter(|left| !left.is_zero())
}

fn locked(table: &Table) -> MutexGuard<'_, HashMap<String, Driven>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn one_driver_for_each_migration() {
        let drivers = Drivers::default();
        assert!(!drivers.tell("m", Control::default()));
        let (mut control, seat) = drivers.enter("m", Control::default()).unwrap();
        assert!(drivers.enter("m", Control::default()).is_none());
        assert!(drivers.enter("other", Control::default()).is_some());
        assert!(drivers.tell("m", Control::default()));
        assert!(!control.has_changed().unwrap());
        assert!(drivers.tell(
            "m",
            Control {
                cancel: true,
                bandwidth: 0,
                generation: Some(2)
            }
        ));
        assert!(control.borrow_and_update().cancel);
        drop(seat);
        assert!(!drivers.has("m"));
        assert!(drivers.enter("m", Control::default()).is_some());
    }
    #[test]
    fn a_handover_is_waited_for_and_not_for_ever() {
        let drivers = Drivers::default();
        drivers.hands_over("m");
        assert_eq!(drivers.hold("m"), None, "nobody drives it");
        let (_control, seat) = drivers.enter("m", Control::default()).unwrap();
        assert_eq!(drivers.hold("m"), None);
        drivers.hands_over("m");
        assert!(drivers.hold("m").is_some());
        drop(seat);
        assert_eq!(drivers.hold("m"), None);
        assert_eq!(
            left(Duration::from_secs(1)),
            Some(LONGEST_HOLD - Duration::from_secs(1))
        );
        assert_eq!(left(LONGEST_HOLD), None);
        assert_eq!(left(LONGEST_HOLD * 2), None);
    }
}
