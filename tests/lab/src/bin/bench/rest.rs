//! What godwit takes while nothing happens.

use std::time::Duration;

use anyhow::{Context as _, bail};
use godwit_lab::audit;
use godwit_lab::{Lab, processes};

use crate::rows::{Bound, Row};
use crate::setting::{self, Kind};

/// A guest that does nothing but live.
const QUIET: Kind = Kind {
    name: "rest",
    memory: "128Mi",
    interval: Duration::from_millis(100),
    options: "godwit.fill=16M godwit.dirty=0 godwit.scrub=0",
};

/// The agents' and the controller's memory, without guests.
pub async fn memory(lab: &mut Lab, settle: Duration) -> anyhow::Result<Vec<Row>> {
    tokio::time::sleep(settle).await;
    let mut agents = Vec::new();
    for number in 1..=lab.hosts.len() {
        let agent = lab.host(number)?.agent().context("the agent runs")?;
        agents.push(resident(agent.pid())?);
    }
    let controller = lab.controller().context("the controller runs")?.pid();
    let controller = resident(controller)?;
    Ok(vec![
        // All of them count, not the one in the middle.
        Row::about(
            "agent-idle-rss",
            "MiB",
            agents.iter().copied().fold(0.0, f64::max),
            &agents,
            Some(Bound::AtMost(15.0)),
        ),
        Row::of(
            "controller-idle-rss",
            "MiB",
            &[controller],
            Some(Bound::AtMost(30.0)),
        )?,
    ])
}

/// What is written to the API server while a guest runs and nothing changes, leases apart.
pub async fn writes(lab: &Lab, settle: Duration, window: Duration) -> anyhow::Result<Vec<Row>> {
    let guest = setting::start(lab, QUIET).await?;
    tokio::time::sleep(settle).await;
    let since = jiff::Timestamp::now();
    tokio::time::sleep(window).await;
    let all = audit::writes(lab.control_plane.audit(), since)?;
    let (leases, others): (Vec<_>, Vec<_>) = all.iter().partition(|write| write.resource == "leases");
    if leases.is_empty() && window > Duration::from_secs(30) {
        bail!("not even a lease was renewed in {window:?}: the audit log does not tell");
    }
    for write in &others {
        eprintln!("written at rest: {write:?}");
    }
    setting::remove(lab, &guest).await?;
    let count = u32::try_from(others.len()).context("too many writes")?;
    Ok(vec![Row::of(
        "api-writes-at-rest",
        "writes",
        &[f64::from(count)],
        Some(Bound::AtMost(0.0)),
    )?])
}

/// A process's resident memory in MiB, as the kernel counts it.
fn resident(pid: u32) -> anyhow::Result<f64> {
    let pid = i32::try_from(pid).context("a process id")?;
    let seen = processes::look(pid).context("the process has ended")?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", seen.pid)).context("read its status")?;
    let kilobytes: u32 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .context("the status has no VmRSS")?
        .parse()?;
    Ok(f64::from(kilobytes) / 1024.0)
}
