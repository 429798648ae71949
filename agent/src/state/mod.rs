//! What the agent keeps on disk: records that are whole or not there, and one lock for the whole directory.

pub mod durable;
pub mod lock;
pub mod record_file;

use std::path::PathBuf;

pub use lock::StateLock;
pub use record_file::RecordFile;

/// Why the state directory gave or took nothing.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A newer version of the agent wrote it: its meaning is not known here.
    #[error("{path} was written by a newer agent (format {version}; this one knows up to {known}); put the newer agent back", path = path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        version: u32,
        /// The newest format that this agent knows.
        known: u32,
    },
    /// It is torn or was altered.
    #[error("{path} is damaged ({why}); keep it for whoever looks into it", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How it is known.
        why: String,
    },
    /// The operating system refused something. Whether a write has taken place is not known then.
    #[error("{action} {path}: {source}", path = path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Another agent uses the directory.
    #[error("another agent uses the state directory {path}", path = .0.display())]
    InUse(PathBuf),
}

impl StateError {
    /// The stable word for a state that cannot be written.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::System { source, .. } => disk_reason(source),
            Self::Newer { .. } | Self::Damaged { .. } | Self::InUse(_) => "DiskFailed",
        }
    }
}

/// The stable word for a file of the agent's that could not be written: more room helps, or somebody has to look at the
/// disk.
pub fn disk_reason(error: &std::io::Error) -> &'static str {
    let room = [std::io::ErrorKind::StorageFull, std::io::ErrorKind::QuotaExceeded];
    if room.contains(&error.kind()) {
        "DiskFull"
    } else {
        "DiskFailed"
    }
}
