//! Named points at which a test has the agent stand still or die, so that a fault meets exactly the moment that it is
//! about. They are in builds with debug assertions only, whatever the features are: a released agent has none.
//!
//! A test arms a point with a file `<point>.armed` in the directory that [`DIRECTORY`] names. The first time the agent
//! comes to that point it renames the file to `<point>.reached` and does what stands in it:
//!
//! | word | what the agent does |
//! | --- | --- |
//! | `pass` | goes on |
//! | `wait` | has the thread that is there wait until `<point>.reached` is removed; all others go on |
//! | `stop` | stops itself as SIGSTOP does; continued, it goes on once `<point>.reached` is removed |
//! | `die` | kills itself as SIGKILL does |
//!
//! A point's name is the side's, the moment's and the thing's: `source.event.Ready` before the source's machine is given
//! that event, `destination.before.Resume` before that effect is sent on its way, `source.journaled.Sealed` when that
//! entry is on the disk and nobody knows yet.
//!
//! The disk under a journal fails where a point `source.written.Sealed` is armed with one of two words:
//!
//! | word | what the journal's file does when that entry is written |
//! | --- | --- |
//! | `eio` | takes the entry, and tells an error when it is to be brought to the disk |
//! | `enospc` | takes nothing of it, for want of room |
//!
//! A file [`CLOCK`] with a number of seconds sets the agent's clock that much forward, or back where it is negative.
//!
//! While a file [`OBSERVED`] is there, each guest that is started gets a second monitor, for whoever judges the test: a
//! socket `<uid of the guest>.monitor` in the same directory.

use std::fmt::Debug;
use std::os::unix::net::UnixListener;
use std::time::SystemTime;

use uuid::Uuid;

use crate::migration::journal::Medium;

/// The environment variable that names the directory of the armed points. Without it there are none.
pub const DIRECTORY: &str = "GODWIT_FAIL_POINTS";

/// The file that asks for monitors of the judge's own.
pub const OBSERVED: &str = "observed";

/// The file with the seconds by which the clock is wrong.
pub const CLOCK: &str = "clock";

/// Before a machine is given something.
pub const EVENT: &str = "event";
/// Before an effect is sent on its way.
pub const BEFORE: &str = "before";
/// After an entry has come to the disk.
pub const JOURNALED: &str = "journaled";

/// Comes to the point of that name; `what` is named by its variant.
pub fn pass(side: &str, moment: &str, what: &impl Debug) {
    #[cfg(all(feature = "fail-points", debug_assertions))]
    if let Some(directory) = armed::directory() {
        armed::meet(directory, &armed::name(side, moment, what));
    }
    #[cfg(not(all(feature = "fail-points", debug_assertions)))]
    let _ = (side, moment, what);
}

/// Where the judge of a test can ask a guest's process itself, if there is one.
pub fn observed(guest: Uuid) -> Option<UnixListener> {
    #[cfg(all(feature = "fail-points", debug_assertions))]
    return armed::directory().and_then(|directory| armed::observed(directory, guest));
    #[cfg(not(all(feature = "fail-points", debug_assertions)))]
    {
        let _ = guest;
        None
    }
}

/// The medium of a side's journal, which fails where that was asked for.
pub fn medium(side: &'static str, medium: Box<dyn Medium>) -> Box<dyn Medium> {
    #[cfg(all(feature = "fail-points", debug_assertions))]
    if let Some(directory) = armed::directory() {
        return Box::new(failing::Failing::new(directory, side, medium));
    }
    let _ = side;
    medium
}

/// What the agent's clock shows at a time.
pub fn clock(now: SystemTime) -> SystemTime {
    #[cfg(all(feature = "fail-points", debug_assertions))]
    if let Some(directory) = armed::directory() {
        return failing::clock(directory, now);
    }
    now
}

#[cfg(all(feature = "fail-points", debug_assertions))]
mod failing;

#[cfg(all(feature = "fail-points", debug_assertions))]
mod armed {
    use std::fmt::Debug;
    use std::fs;
    use std::os::unix::net::UnixListener;
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};
    use uuid::Uuid;

    /// Between two looks whether it may go on.
    const LOOK_EVERY: Duration = Duration::from_millis(1);

    pub fn directory() -> Option<&'static Path> {
        static NAMED: OnceLock<Option<PathBuf>> = OnceLock::new();
        NAMED
            .get_or_init(|| std::env::var_os(super::DIRECTORY).map(PathBuf::from))
            .as_deref()
    }

    pub fn name(side: &str, moment: &str, what: &impl Debug) -> String {
        let what = format!("{what:?}");
        let variant = what.split(|c: char| !c.is_alphanumeric()).next();
        format!("{side}.{moment}.{}", variant.unwrap_or_default())
    }

    pub fn meet(directory: &Path, point: &str) {
        let armed = directory.join(format!("{point}.armed"));
        let reached = directory.join(format!("{point}.reached"));
        let Ok(deed) = fs::read_to_string(&armed) else {
            return;
        };
        // What was armed once is met once, also by the agent that is started after this one.
        if fs::rename(&armed, &reached).is_err() {
            return;
        }
        let itself = match deed.trim() {
            "wait" => None,
            "stop" => Some(Signal::STOP),
            "die" => Some(Signal::KILL),
            _ => return,
        };
        tracing::warn!(point, deed, "a fail point is reached");
        if let Some(signal) = itself
            && let Err(error) = kill_process(getpid(), signal)
        {
            tracing::error!(%error, point, "the signal was not sent");
        }
        // The signal may take effect a little later.
        while reached.exists() {
            std::thread::sleep(LOOK_EVERY);
        }
    }

    pub fn observed(directory: &Path, guest: Uuid) -> Option<UnixListener> {
        if !directory.join(super::OBSERVED).exists() {
            return None;
        }
        let socket = directory.join(format!("{guest}.monitor"));
        // One of a process that has ended.
        let _ = fs::remove_file(&socket);
        match UnixListener::bind(&socket) {
            Ok(listener) => Some(listener),
            Err(error) => {
                tracing::error!(%error, %guest, "the judge gets no monitor");
                None
            }
        }
    }

    #[cfg(test)]
    #[allow(clippy::unwrap_used, reason = "a failing test may panic")]
    mod tests {
        use super::*;

        #[derive(Debug)]
        #[allow(dead_code, reason = "only its name is of interest")]
        enum Thing {
            Plain,
            Full(u32),
            Wide { field: u32 },
        }

        #[test]
        fn a_point_is_named_by_the_variant() {
            for (thing, named) in [
                (Thing::Plain, "source.event.Plain"),
                (Thing::Full(1), "source.event.Full"),
                (Thing::Wide { field: 1 }, "source.event.Wide"),
            ] {
                assert_eq!(name("source", "event", &thing), named);
            }
        }

        /// The points hang on debug assertions, which no profile of ours turns on where cargo leaves them off.
        #[test]
        fn a_release_has_none() {
            let manifest = include_str!("../../Cargo.toml");
            assert!(manifest.contains("[profile.release]"));
            assert!(!manifest.contains("debug-assertions"));
            assert!(!manifest.contains("inherits = \"dev\""));
        }

        #[test]
        fn the_judge_gets_a_monitor_where_it_asks_for_one() {
            let directory = tempfile::tempdir().unwrap();
            assert!(observed(directory.path(), Uuid::nil()).is_none());
            fs::write(directory.path().join(super::super::OBSERVED), "").unwrap();
            for _ in 0..2 {
                assert!(observed(directory.path(), Uuid::nil()).is_some());
            }
            let socket = directory.path().join(format!("{}.monitor", Uuid::nil()));
            assert!(socket.exists());
        }

        #[test]
        fn a_point_is_met_once_and_holds_until_it_is_released() {
            let directory = tempfile::tempdir().unwrap();
            let (armed, reached) = (
                directory.path().join("p.armed"),
                directory.path().join("p.reached"),
            );
            // Nothing is armed.
            meet(directory.path(), "p");
            fs::write(&armed, "pass").unwrap();
            meet(directory.path(), "p");
            assert!(reached.exists() && !armed.exists());
            fs::remove_file(&reached).unwrap();
            fs::write(&armed, "wait").unwrap();
            let path = directory.path().to_owned();
            let waits = std::thread::spawn(move || meet(&path, "p"));
            while !reached.exists() {
                std::thread::yield_now();
            }
            assert!(!waits.is_finished());
            fs::remove_file(&reached).unwrap();
            waits.join().unwrap();
            meet(directory.path(), "p");
            assert!(!reached.exists());
        }
    }
}
