//! Many runs side by side, each in a process of its own: what is global in one must not be in another.

use std::io;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::run::Outcome;

/// Runs `simulate` once for each list of arguments, as many at a time as the machine has processors, and gives each
/// outcome to `judge` as it comes.
///
/// # Errors
/// If the program cannot be run, or does not say what came of its run.
pub fn all<A: AsRef<str> + Sync>(
    program: &std::path::Path,
    runs: &[Vec<A>],
    judge: impl Fn(&[A], Outcome) + Sync,
) -> io::Result<()> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Ok(())));
    std::thread::scope(|scope| {
        for _ in 0..threads.min(runs.len()) {
            scope.spawn(|| {
                while let Some(arguments) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match once(program, arguments) {
                        Ok(outcome) => judge(arguments, outcome),
                        Err(error) => *failed.lock().unwrap() = Err(error),
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap()
}

/// Runs `simulate` once.
///
/// # Errors
/// As [`all`].
pub fn once<A: AsRef<str>>(program: &std::path::Path, arguments: &[A]) -> io::Result<Outcome> {
    let arguments = arguments.iter().map(AsRef::as_ref);
    let output = Command::new(program).args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().unwrap_or_default();
    serde_json::from_str(last).map_err(|error| {
        let words = String::from_utf8_lossy(&output.stderr);
        io::Error::other(format!("{}: {error}: {words}", output.status))
    })
}
