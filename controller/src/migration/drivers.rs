//! One driver for each migration, whatever reconciles it: who drives what.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

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

type Table = Arc<Mutex<HashMap<String, watch::Sender<Control>>>>;

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
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.get(migration).is_some_and(|seat| {
            seat.send_if_modified(|known| {
                let news = *known != control;
                *known = control;
                news
            });
            true
        })
    }

    /// Whether somebody drives that migration.
    pub fn has(&self, migration: &str) -> bool {
        self.table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(migration)
    }

    /// A seat for a new driver; `None` if there is one already.
    pub fn enter(&self, migration: &str, control: Control) -> Option<(watch::Receiver<Control>, Seat)> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.contains_key(migration) {
            return None;
        }
        let (sender, receiver) = watch::channel(control);
        table.insert(migration.into(), sender);
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
        self.table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.migration);
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
}
