//! A relay's process: started apart from the agent, and cleared away once it has ended.

use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use godwit_relay::client;
use uuid::Uuid;

use super::{Settings, TunnelError, system};
use crate::cgroup::Limits;

/// A relay's own memory and some for each channel, with room to spare: one that reaches this has gone mad.
const LIMITS: Limits = Limits {
    memory: 256 << 20,
    tasks: 1024,
};
/// How long a relay that was told to end may take.
const END: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The control socket of a migration's relay.
pub(super) fn socket(directory: &Path, migration: Uuid) -> PathBuf {
    directory.join(format!("{}.sock", migration.as_hyphenated()))
}

fn cgroup(settings: &Settings, migration: Uuid) -> String {
    format!("{}.relay.{}", settings.host, migration.as_hyphenated())
}

/// Starts a relay, in a cgroup and under a user of its own.
pub(super) fn start(settings: &Settings, migration: Uuid) -> Result<(), TunnelError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&settings.directory)
        .map_err(system("Making the directory of the relays' sockets"))?;
    let mut command = Command::new(&settings.program);
    command.env_clear().current_dir("/").stderr(Stdio::inherit());
    if let Some(user) = settings.user {
        // Supplementary groups are dropped with it.
        command.uid(user).gid(user);
    }
    let mut child = client::start(command, &socket(&settings.directory, migration))
        .map_err(system("Starting the relay"))?;
    let placed = settings
        .cgroups
        .place(&cgroup(settings, migration), child.id(), LIMITS);
    for why in placed.refused {
        tracing::warn!(%migration, why, "a relay has no cgroup of its own and ends with the agent's");
    }
    // Taken from the system's table when it ends; after this agent's end that is its next parent's to do.
    let waiting = std::thread::Builder::new()
        .name("relay-end".into())
        .spawn(move || match child.wait() {
            Ok(status) if status.success() => tracing::debug!(%migration, "a relay has ended"),
            Ok(status) => tracing::warn!(%migration, %status, "a relay has failed"),
            Err(error) => tracing::warn!(%migration, %error, "waiting for a relay"),
        });
    if let Err(error) = waiting {
        tracing::warn!(%migration, %error, "a relay will not be waited for");
    }
    Ok(())
}

/// Waits until nobody listens at the socket any more, and removes what is left.
pub(super) fn clear(settings: &Settings, migration: Uuid) {
    let path = socket(&settings.directory, migration);
    let until = Instant::now() + END;
    while UnixStream::connect(&path).is_ok() && Instant::now() < until {
        std::thread::sleep(LOOK_AGAIN);
    }
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, path = %path.display(), "a relay's socket stays"),
    }
    let name = cgroup(settings, migration);
    while !settings.cgroups.remove(&name).is_empty() && Instant::now() < until {
        std::thread::sleep(LOOK_AGAIN);
    }
}
