//! A part of the lab: a child process with a log of its own, killed when it is dropped.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::processes::MARK;
use crate::run::Run;

/// A running part.
#[derive(Debug)]
pub struct Process {
    part: String,
    child: Option<Child>,
    log: PathBuf,
}

impl Process {
    /// Starts a part. Its output is appended to the run's `logs/<part>.log`; it is in a process group of its own, so
    /// that a Ctrl-C at the terminal reaches the lab only, which then takes its parts down in order. `directory` is
    /// the one that the process belongs to: the run's, or a host's.
    ///
    /// # Errors
    /// When the log cannot be opened or the program cannot be started.
    pub fn spawn(run: &Run, directory: &Path, part: &str, command: Command) -> anyhow::Result<Self> {
        Self::start(&run.log(part), directory, part, command)
    }

    /// The same with a log that is named.
    ///
    /// # Errors
    /// As [`Process::spawn`].
    pub fn start(log: &Path, directory: &Path, part: &str, mut command: Command) -> anyhow::Result<Self> {
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))?;
        let errors = output.try_clone().context("share the log")?;
        command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .env(MARK, directory)
            // A log is read in a file.
            .env("NO_COLOR", "1");
        let child = command
            .spawn()
            .with_context(|| format!("start {part}: {}", command.get_program().to_string_lossy()))?;
        Ok(Self {
            part: part.to_owned(),
            child: Some(child),
            log: log.to_owned(),
        })
    }

    /// The part's name.
    #[must_use]
    pub fn part(&self) -> &str {
        &self.part
    }

    /// The process id; 0 when it was left to itself.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, if it did.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok().flatten()
    }

    /// An error when the part has ended, with the last lines that it wrote.
    ///
    /// # Errors
    /// When the part has ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.exited() {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status}); {}", self.part, self.last_words()),
        }
    }

    /// The last lines of its log and the log's place, for error messages.
    #[must_use]
    pub fn last_words(&self) -> String {
        format!("{} ends with:\n{}", self.log.display(), tail(&self.log, 12))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        let pid = pid.with_context(|| format!("{} is not running", self.part))?;
        kill_process(pid, signal).with_context(|| format!("signal {}", self.part))
    }

    /// Asks it to end and waits.
    ///
    /// # Errors
    /// When it has not ended within `patience`; it is then killed.
    pub async fn terminate(&mut self, patience: Duration) -> anyhow::Result<ExitStatus> {
        if let Some(status) = self.exited() {
            return Ok(status);
        }
        self.signal(Signal::TERM)?;
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.exited() {
                return Ok(status);
            }
            if Instant::now() > deadline {
                self.kill();
                bail!(
                    "{} did not end within {patience:?} of SIGTERM; {}",
                    self.part,
                    self.last_words()
                );
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Kills it (as `kill -9` does) and reaps it. What it started itself goes on.
    pub fn kill(&mut self) {
        if let Some(child) = &mut self.child {
            // An error means that it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Leaves it running when this value goes.
    pub fn leave(&mut self) {
        self.child = None;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last lines of a file.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(16 * 1024)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..)
        .unwrap_or_default()
        .join("\n")
}
