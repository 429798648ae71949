//! At rest nothing is written.

use std::time::{Duration, Instant};

use anyhow::ensure;
use godwit_lab::audit::Write;
use godwit_lab::{Lab, audit};
use serde_json::json;

use crate::setting::{MOVES_WITHIN, clear, counting, lives_on, moves, start};

/// How long nothing must be written.
const REST: Duration = Duration::from_secs(20);

/// What is quiet for so long has come to rest: hosts publish what they have left, and events are written behind.
const SETTLES: Duration = Duration::from_secs(3);

pub async fn nothing_is_written_at_rest(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    let guest = start(lab, counting(lab, "sleeper", &json!({}))?).await?;
    moves(lab, &guest, "sleeper-1", &lab.hosts[1]).await?;
    lives_on(lab, &guest, 2, 2).await?;
    // Time itself is what this case is about.
    let deadline = Instant::now() + MOVES_WITHIN;
    loop {
        let (_, others) = written(lab, SETTLES).await?;
        if others.is_empty() {
            break;
        }
        ensure!(Instant::now() < deadline, "it does not come to rest: {others:#?}");
    }
    let (leases, others) = written(lab, REST).await?;
    ensure!(others.is_empty(), "{others:#?}");
    // The log is read rightly: hosts and the controller show that they live.
    ensure!(!leases.is_empty(), "not one lease was renewed in {REST:?}");
    Ok(())
}

/// What is written from now on for so long: Leases, and everything else.
async fn written(lab: &Lab, time: Duration) -> anyhow::Result<(Vec<Write>, Vec<Write>)> {
    let since = jiff::Timestamp::now();
    tokio::time::sleep(time).await;
    let writes = audit::writes(lab.control_plane.audit(), since)?;
    Ok(writes.into_iter().partition(|write| write.resource == "leases"))
}
