//! What is plugged, noted in files: written before anything is made, removed after everything is taken out.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use super::plan::Plan;
use super::{PlugError, system_error};

/// What the notes' names end with.
const SUFFIX: &str = ".json";

/// The directory of the notes. It is made with the first.
pub(super) struct Kept {
    directory: PathBuf,
}

impl Kept {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Everything that is noted. A note that was not written to its end is none: nothing was made after it.
    pub(super) fn all(&self) -> Result<Vec<Plan>, PlugError> {
        let reading = |path: &Path| format!("Reading {}", path.display());
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(system_error(reading(&self.directory))(error)),
        };
        let mut plans = Vec::new();
        for entry in entries {
            let path = entry.map_err(system_error(reading(&self.directory)))?.path();
            if !path.to_string_lossy().ends_with(SUFFIX) {
                continue;
            }
            let text = std::fs::read(&path).map_err(system_error(reading(&path)))?;
            match serde_json::from_slice(&text) {
                Ok(plan) => plans.push(plan),
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "a note of a migration network says nothing and is put aside");
                    let _ = std::fs::remove_file(&path);
                }
            }
        }
        Ok(plans)
    }

    /// Notes a plan. The notes end with the host's boot, as what they speak of does: they need not reach a disk.
    pub(super) fn write(&self, plan: &Plan) -> Result<(), PlugError> {
        let path = self.path(plan);
        let noting = || format!("Writing {}", path.display());
        let text = serde_json::to_vec(plan).map_err(|error| system_error(noting())(error.into()))?;
        let partial = path.with_extension("partial");
        let write = || {
            std::fs::create_dir_all(&self.directory)?;
            std::fs::File::create(&partial)?.write_all(&text)?;
            std::fs::rename(&partial, &path)
        };
        write().map_err(system_error(noting()))
    }

    /// Forgets a plan.
    pub(super) fn remove(&self, plan: &Plan) -> Result<(), PlugError> {
        let path = self.path(plan);
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(system_error(format!("Removing {}", path.display()))(error)),
        }
    }

    fn path(&self, plan: &Plan) -> PathBuf {
        self.directory.join(format!("{}{SUFFIX}", plan.name()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::super::plan::tests::{destination, source};
    use super::*;

    #[test]
    fn what_was_noted_is_found_until_it_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let kept = Kept::new(directory.path().join("guest-network"));
        assert_eq!(kept.all().unwrap(), []);
        kept.write(&source()).unwrap();
        kept.write(&source()).unwrap();
        kept.write(&destination()).unwrap();
        assert_eq!(kept.all().unwrap().len(), 2);
        kept.remove(&destination()).unwrap();
        kept.remove(&destination()).unwrap();
        assert_eq!(kept.all().unwrap(), [source()]);
        std::fs::write(kept.path(&source()), b"{").unwrap();
        assert_eq!(kept.all().unwrap(), []);
        assert_eq!(std::fs::read_dir(&kept.directory).unwrap().count(), 0);
    }
}
