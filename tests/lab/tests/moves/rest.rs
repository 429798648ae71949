//! At rest nothing is written.

use std::time::Duration;

use anyhow::ensure;
use godwit_lab::{Lab, audit};
use serde_json::json;

use crate::setting::{clear, counting, lives_on, moves, start};

/// How long nothing must be written.
const REST: Duration = Duration::from_secs(20);

/// How long things may take to come to rest: hosts publish what they have left, and events are written behind.
const SETTLES: Duration = Duration::from_secs(3);

pub async fn nothing_is_written_at_rest(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    let guest = start(lab, counting(lab, "sleeper", &json!({}))?).await?;
    moves(lab, &guest, "sleeper-1", &lab.hosts[1]).await?;
    lives_on(lab, &guest, 2, 2).await?;
    // Time itself is what this case is about.
    tokio::time::sleep(SETTLES).await;
    let since = jiff::Timestamp::now();
    tokio::time::sleep(REST).await;
    let writes = audit::writes(lab.control_plane.audit(), since)?;
    let (leases, others): (Vec<_>, Vec<_>) = writes.into_iter().partition(|write| write.resource == "leases");
    ensure!(others.is_empty(), "{others:#?}");
    // The log is read rightly: hosts and the controller show that they live.
    ensure!(!leases.is_empty(), "not one lease was renewed in {REST:?}");
    Ok(())
}
