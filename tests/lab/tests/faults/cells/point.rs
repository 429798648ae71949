//! A moment of one side, at which its agent is held up: see the agent's `fail_point`.

use std::path::PathBuf;

use anyhow::Context as _;
use godwit_lab::Lab;

use crate::guest::until;

/// A point of the agent on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    pub host: usize,
    pub name: &'static str,
}

/// What the agent does that comes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Goes on: only that it was there is told.
    Pass,
    /// Has this side's task wait, and nothing else.
    Wait,
    /// Dies.
    Die,
    /// At an entry that is written: the journal's disk takes it, and tells an error when it is synced.
    Eio,
    /// At an entry that is written: the journal's disk has no room for it.
    Enospc,
}

impl Point {
    pub const fn of(host: usize, name: &'static str) -> Self {
        Self { host, name }
    }

    fn file(self, lab: &mut Lab, ending: &str) -> anyhow::Result<PathBuf> {
        let points = lab.host(self.host)?.points();
        Ok(points.join(format!("{}.{ending}", self.name)))
    }

    pub fn arm(self, lab: &mut Lab, deed: Deed) -> anyhow::Result<()> {
        let word = match deed {
            Deed::Pass => "pass",
            Deed::Wait => "wait",
            Deed::Die => "die",
            Deed::Eio => "eio",
            Deed::Enospc => "enospc",
        };
        // Seen whole or not at all.
        let (written, armed) = (self.file(lab, "new")?, self.file(lab, "armed")?);
        std::fs::write(&written, word)?;
        Ok(std::fs::rename(&written, &armed)?)
    }

    pub fn is_reached(self, lab: &mut Lab) -> anyhow::Result<bool> {
        Ok(self.file(lab, "reached")?.exists())
    }

    pub async fn reached(self, lab: &mut Lab) -> anyhow::Result<()> {
        let file = self.file(lab, "reached")?;
        until("a fail point is reached", async || {
            Ok(file.exists().then_some(()))
        })
        .await
        .with_context(|| format!("{self:?}"))
    }

    /// Has whoever waits there go on.
    pub fn release(self, lab: &mut Lab) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(self.file(lab, "reached")?)?)
    }
}

/// Nothing is armed any more, and nobody waits.
pub fn clear(lab: &mut Lab) -> anyhow::Result<()> {
    for number in 1..=lab.hosts.len() {
        for entry in std::fs::read_dir(lab.host(number)?.points())? {
            // The agent may just rename it.
            let _ = std::fs::remove_file(entry?.path());
        }
    }
    Ok(())
}
