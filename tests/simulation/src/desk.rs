//! The disks of the agents: real files, on which each write is a point at which the agent can be killed, and which can fail.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use godwit_agent::migration::journal::Medium;
use godwit_agent::migration::rim::{Desk, Work, Writer};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::sim::{Life, Sim};

/// What is wrong with a host's disk.
#[derive(Debug, Default)]
pub struct Disk {
    /// So many syncs to come fail.
    pub failing: AtomicUsize,
    /// One has failed since the agent was started.
    pub failed: AtomicBool,
    /// It takes its time.
    pub slow: AtomicBool,
}

/// An agent's way to its disk.
pub struct Files {
    /// The world.
    pub sim: Arc<Sim>,
    /// Whose.
    pub me: Arc<Life>,
    /// The disk.
    pub disk: Arc<Disk>,
}

impl Files {
    fn pause(&self) -> Duration {
        let most = if self.disk.slow.load(Ordering::Relaxed) {
            700
        } else {
            3
        };
        Duration::from_millis(self.sim.dice.within(1, most))
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the disk of {}", self.me.place)
    }
}

impl Desk for Files {
    fn once(&self, work: Work) {
        let (sim, me, pause) = (self.sim.clone(), self.me.clone(), self.pause());
        tokio::spawn(async move {
            sleep(pause).await;
            if sim.reach(&me, "writes a file") {
                // Whoever waits for it is dead too, and is not to be told that it failed.
                std::mem::forget(work);
                return;
            }
            work();
            sim.reach(&me, "has written a file");
        });
    }

    fn writer(&self) -> io::Result<Box<dyn Writer>> {
        let (works, mut given) = mpsc::unbounded_channel::<Work>();
        let (sim, me, disk) = (self.sim.clone(), self.me.clone(), self.disk.clone());
        tokio::spawn(async move {
            while let Some(work) = given.recv().await {
                let most = if disk.slow.load(Ordering::Relaxed) { 700 } else { 3 };
                sleep(Duration::from_millis(sim.dice.within(1, most))).await;
                if me.is_over() {
                    std::mem::forget(work);
                    return;
                }
                work();
            }
        });
        Ok(Box::new(InOrder(works)))
    }

    fn medium(&self, file: Box<dyn Medium>) -> Box<dyn Medium> {
        Box::new(Watched {
            sim: self.sim.clone(),
            me: self.me.clone(),
            disk: self.disk.clone(),
            file,
        })
    }
}

struct InOrder(mpsc::UnboundedSender<Work>);

impl Writer for InOrder {
    fn write(&self, work: Work) -> bool {
        self.0.send(work).is_ok()
    }
}

/// A journal's file.
struct Watched {
    sim: Arc<Sim>,
    me: Arc<Life>,
    disk: Arc<Disk>,
    file: Box<dyn Medium>,
}

impl Watched {
    fn dead() -> io::Error {
        io::Error::other("the process is dead")
    }
}

impl Medium for Watched {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        // After its length and its checksum.
        let start = bytes.iter().position(|byte| *byte == b'{').unwrap_or(bytes.len());
        let line = String::from_utf8_lossy(&bytes[start..]);
        let line: String = line.lines().next().unwrap_or_default().chars().take(64).collect();
        if line.contains("ContIssued") {
            self.sim.judge.promised(self.me.place.name());
        }
        if self.sim.reach(&self.me, format!("journals {line}")) {
            // Killed in the middle of it, or before: the line is torn, or not there.
            if self.sim.dice.percent(50) {
                let half = bytes.len().min(512) / 2;
                self.file.write_at(&bytes[..half], offset)?;
            }
            return Err(Self::dead());
        }
        self.file.write_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        let failing = &self.disk.failing;
        let fails = failing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if fails.is_ok() {
            self.disk.failed.store(true, Ordering::Relaxed);
            self.sim.note(self.me.place, "its disk fails: EIO");
            return Err(io::Error::from_raw_os_error(5));
        }
        self.file.sync()?;
        if self.sim.reach(&self.me, "has journaled") {
            return Err(Self::dead());
        }
        Ok(())
    }
}
