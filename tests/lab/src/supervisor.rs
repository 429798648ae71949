//! A part that is started again when it ends by itself, as a kubelet does with a container: the controller ends when it
//! has lost the lead, which a machine that stands still for some seconds is enough for.

use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::bail;

use crate::process::Process;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Between its end and its next start.
const START_AFTER: Duration = Duration::from_secs(1);
/// A part that ends more often is broken, and left so.
const STARTS: usize = 5;

/// A part with somebody who looks after it.
#[derive(Debug)]
pub struct Supervised {
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    /// None once it was taken out.
    process: Option<Process>,
    /// How it has ended by itself, each time.
    ended: Vec<ExitStatus>,
    over: bool,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Supervised {
    /// Starts a part with `start`, and again each time it has ended by itself.
    ///
    /// # Errors
    /// When it cannot be started the first time.
    pub fn start(start: impl Fn() -> anyhow::Result<Process> + Send + 'static) -> anyhow::Result<Self> {
        let state = Arc::new(Mutex::new(State {
            process: Some(start()?),
            ended: Vec::new(),
            over: false,
        }));
        let watched = state.clone();
        let thread = std::thread::spawn(move || {
            while let Some(pause) = look(&watched, &start) {
                // `take` wakes it.
                std::thread::park_timeout(pause);
            }
        });
        Ok(Self {
            state,
            thread: Some(thread),
        })
    }

    /// The process id now; 0 when it has ended for good.
    #[must_use]
    pub fn pid(&self) -> u32 {
        lock(&self.state).process.as_ref().map_or(0, Process::pid)
    }

    /// How often it has ended by itself and was started again.
    #[must_use]
    pub fn restarts(&self) -> usize {
        lock(&self.state).ended.len()
    }

    /// An error when it has ended so often that it is not started any more.
    ///
    /// # Errors
    /// Then.
    pub fn check(&self) -> anyhow::Result<()> {
        let mut state = lock(&self.state);
        if state.ended.len() >= STARTS
            && let Some(process) = &mut state.process
        {
            return process.check();
        }
        Ok(())
    }

    /// The process, which nobody looks after any more.
    ///
    /// # Errors
    /// When there is none: it was taken before.
    pub fn take(mut self) -> anyhow::Result<Process> {
        self.release();
        match lock(&self.state).process.take() {
            Some(process) => Ok(process),
            None => bail!("the part was taken before"),
        }
    }

    fn release(&mut self) {
        lock(&self.state).over = true;
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It does not panic; if it did, its message is on standard error.
            let _ = thread.join();
        }
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.release();
    }
}

/// Looks once. How long to wait until the next look, or None when there is nothing to look after any more.
fn look(state: &Mutex<State>, start: &impl Fn() -> anyhow::Result<Process>) -> Option<Duration> {
    let mut state = lock(state);
    if state.over || state.ended.len() >= STARTS {
        return None;
    }
    match &mut state.process {
        None => match start() {
            Ok(process) => state.process = Some(process),
            Err(error) => {
                eprintln!("a part cannot be started again: {error:#}");
                return None;
            }
        },
        Some(process) => {
            if let Some(status) = process.exited() {
                eprintln!("{} ended by itself ({status})", process.part());
                state.ended.push(status);
                // The last end stays, for who asks.
                if state.ended.len() < STARTS {
                    state.process = None;
                    return Some(START_AFTER);
                }
            }
        }
    }
    Some(LOOK_EVERY)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::path::Path;
    use std::process::Command;
    use std::time::Instant;

    use super::*;

    fn part(script: &str) -> impl Fn() -> anyhow::Result<Process> + Send + 'static {
        let log = std::env::temp_dir().join(format!("godwit-lab-supervised-{}.log", std::process::id()));
        let script = script.to_owned();
        move || {
            let mut command = Command::new("sh");
            command.arg("-c").arg(&script);
            Process::start(&log, Path::new("/nowhere"), "a part", command)
        }
    }

    #[test]
    fn a_part_that_ends_by_itself_is_started_again_until_it_is_taken() {
        let supervised = Supervised::start(part("exec sleep 60")).unwrap();
        let first = supervised.pid();
        let pid = rustix::process::Pid::from_raw(i32::try_from(first).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while [0, first].contains(&supervised.pid()) {
            assert!(Instant::now() < deadline, "it is not started again");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(supervised.restarts(), 1);
        supervised.check().unwrap();
        let mut process = supervised.take().unwrap();
        assert!(process.exited().is_none());
        process.kill();
    }
}
