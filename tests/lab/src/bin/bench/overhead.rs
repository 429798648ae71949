//! What godwit adds around QEMU's own time.

use std::time::Duration;

use anyhow::Context as _;
use godwit_lab::Lab;

use crate::rows::{Bound, Row};
use crate::setting::{self, Kind, Way};

/// A guest of which there is little to send.
const LIGHT: Kind = Kind {
    name: "overhead",
    memory: "256Mi",
    interval: Duration::from_millis(5),
    options: "godwit.fill=16M godwit.dirty=1M godwit.scrub=0",
};

/// Ticks between two migrations, so that none meets what the one before is still tidying up.
const TICKS_BETWEEN: u64 = 50;

/// Moves a light guest back and forth; from the API server's answer to the create to a watcher that sees
/// `Succeeded`, less QEMU's own time.
pub async fn measure(lab: &Lab, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let guest = setting::start(lab, LIGHT).await?;
    let (mut overheads, mut wholes) = (Vec::new(), Vec::new());
    // One round to warm up.
    for round in 0..=rounds {
        let to = lab.hosts.get((round + 1) % 2).context("there are two hosts")?;
        let moved = setting::move_to(lab, &guest, &format!("overhead-{round}"), to, Way::Plain).await?;
        guest.wait_for_ticks(TICKS_BETWEEN, Duration::from_secs(20))?;
        if round == 0 {
            continue;
        }
        let whole = moved.took.as_secs_f64();
        wholes.push(whole);
        overheads.push(whole - Duration::from_millis(moved.hypervisor_millis()?).as_secs_f64());
    }
    setting::remove(lab, &guest).await?;
    Ok(vec![
        Row::of(
            "overhead-apply-to-succeeded",
            "s",
            &overheads,
            Some(Bound::AtMost(0.4)),
        )?,
        Row::of("apply-to-succeeded", "s", &wholes, None)?,
    ])
}
