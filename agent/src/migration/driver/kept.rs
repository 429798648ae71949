//! The orders to drive, on disk: a restarted agent goes on with them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use godwit_handover::Terms;
use godwit_protocol::{Drive, Driving};
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::state::{RecordFile, StateError};

/// How long an ended migration's order is kept, as long as its journal: until then whoever asks is told the end.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// The same in microseconds.
pub(super) const KEPT_MICROS: i64 = 24 * 3600 * 1_000_000;
const SUFFIX: &str = ".drive";

/// One order, and what its driver would tell after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) terms: Terms,
    pub(super) order: Drive,
    pub(super) view: Driving,
    /// When the guest stopped, by this host's clock in microseconds: an agent that was killed after that finds it
    /// nowhere else.
    #[serde(default)]
    pub(super) stopped_at_micros: Option<i64>,
}

/// What whoever watches the source is shown beside its own reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) driving: Driving,
    pub(super) stopped_at_micros: Option<i64>,
}

impl Kept {
    pub(super) fn new(terms: Terms, order: Drive) -> Self {
        Self {
            terms,
            order,
            view: Driving::default(),
            stopped_at_micros: None,
        }
    }

    pub(super) fn shown(&self) -> Shown {
        Shown {
            driving: self.view.clone(),
            stopped_at_micros: self.stopped_at_micros,
        }
    }

    /// Whether the migration has ended.
    pub(super) fn ended(&self) -> bool {
        self.view.ended_at_micros.is_some()
    }
}

/// Where the orders lie.
#[derive(Clone, Debug)]
pub(super) struct Shelf {
    directory: PathBuf,
}

impl Shelf {
    pub(super) fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Keeps an order. When this returns, it is on the medium.
    pub(super) fn put(&self, kept: &Kept) -> Result<(), StateError> {
        fs::create_dir_all(&self.directory).map_err(|source| self.failed("make", source))?;
        self.file(&kept.terms.migration).write(kept)
    }

    /// Every order that can be read. Those that have ended long ago are removed.
    pub(super) fn take_stock(&self) -> Result<Vec<Kept>, StateError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.failed("read", error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(|source| self.failed("read", source))?.path();
            if path.extension().is_none_or(|extension| extension != "drive") {
                continue;
            }
            let file = RecordFile::at(&path);
            match file.read::<Kept>() {
                Ok(Some(kept)) if kept.ended() && old(&path) => {
                    if let Err(error) = file.remove() {
                        tracing::warn!(%error, "an old order to drive stays");
                    }
                }
                Ok(Some(kept)) => found.push(kept),
                Ok(None) => {}
                Err(error) => tracing::error!(%error, "an order to drive is not taken up"),
            }
        }
        Ok(found)
    }

    pub(super) fn failed(&self, action: &'static str, source: io::Error) -> StateError {
        StateError::System {
            action,
            path: self.directory.clone(),
            source,
        }
    }

    fn file(&self, migration: &str) -> RecordFile {
        // A UID has letters, digits and hyphens only.
        RecordFile::at(self.directory.join(format!("{migration}{SUFFIX}")))
    }
}

fn old(path: &Path) -> bool {
    let written = fs::metadata(path).and_then(|data| data.modified()).ok();
    written
        .and_then(|written| clock::now().duration_since(written).ok())
        .is_some_and(|age| age > KEPT)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use godwit_protocol::{GuestName, StreamOptions};

    use super::*;

    fn kept(migration: &str) -> Kept {
        let terms = Terms {
            migration: migration.into(),
            guest: "g".into(),
            epoch: 1,
            source: "a".into(),
            destination: "b".into(),
            strict: false,
        };
        let order = Drive {
            guest: GuestName {
                uid: "g".into(),
                namespace: "n".into(),
                name: "vm".into(),
            },
            endpoint: "b:16514".into(),
            max_downtime: Duration::from_millis(300),
            stream: StreamOptions::PLAIN,
            silence: Duration::from_secs(30),
            ticket: vec![1, 2, 3],
        };
        Kept::new(terms, order)
    }

    #[test]
    fn orders_are_found_again_and_old_ends_are_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let shelf = Shelf::at(directory.path().join("drives"));
        assert_eq!(shelf.take_stock().unwrap(), []);
        let mut ended = kept("ended");
        ended.view.ended_at_micros = Some(7);
        for kept in [&kept("goes-on"), &ended] {
            shelf.put(kept).unwrap();
        }
        let mut found = shelf.take_stock().unwrap();
        found.sort_by(|a, b| a.terms.migration.cmp(&b.terms.migration));
        assert_eq!(found, [ended, kept("goes-on")]);

        let long_ago = std::time::SystemTime::now() - KEPT - Duration::from_secs(60);
        for name in ["ended.drive", "goes-on.drive"] {
            let file = fs::File::options()
                .write(true)
                .open(shelf.directory().join(name))
                .unwrap();
            file.set_modified(long_ago).unwrap();
        }
        assert_eq!(shelf.take_stock().unwrap(), [kept("goes-on")]);
        assert_eq!(fs::read_dir(shelf.directory()).unwrap().count(), 1);
    }

    #[test]
    fn an_order_that_cannot_be_read_keeps_no_other_one_from_being_taken_up() {
        let directory = tempfile::tempdir().unwrap();
        let shelf = Shelf::at(directory.path().to_owned());
        shelf.put(&kept("good")).unwrap();
        fs::write(directory.path().join("bad.drive"), b"x").unwrap();
        assert_eq!(shelf.take_stock().unwrap(), [kept("good")]);
        assert!(directory.path().join("bad.drive").exists());
    }
}
