//! Every way that there is moves a Linux guest whole: both flows, both transports, encrypted and in plain text.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use godwit_crds::migration::{ChannelSecurity, SecurityRequirement};
use godwit_lab::Lab;
use serde_json::json;

use crate::moments::{BOTH_FLOWS, Way};
use crate::setting::{clear, linux, lives_on, start, succeeds};
use crate::ways::{ask, no_relay_is_left};

const CHECKED_WITHIN: Duration = Duration::from_secs(90);

pub async fn every_way_moves_a_linux_guest(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    let guest = start(
        lab,
        linux("traveller", "128Mi", "godwit.fill=16M godwit.dirty=2M"),
    )
    .await?;
    let mut here = 1;
    let mut epoch = 1;
    for flow in BOTH_FLOWS {
        for (way, channel) in [
            (Way::tunnelled(flow), ChannelSecurity::Encrypted),
            (
                Way::native(flow, SecurityRequirement::Encrypted),
                ChannelSecurity::Encrypted,
            ),
            (
                Way::native(flow, SecurityRequirement::None),
                ChannelSecurity::PlainText,
            ),
        ] {
            let there = 3 - here;
            let name = format!("traveller-{epoch}");
            let spec = json!({
                "controlFlow": way.flow,
                "transport": way.transport,
                "security": {"require": way.require},
            });
            ask(lab, &guest, &name, &lab.hosts[there - 1], spec).await?;
            let moved = succeeds(lab, &name).await.with_context(|| format!("{way:?}"))?;
            let status = moved.status.context("a status")?;
            ensure!(status.channel == Some(channel), "{way:?}: {status:?}");
            epoch += 1;
            here = there;
            lives_on(lab, &guest, here, epoch)
                .await
                .with_context(|| format!("{way:?}"))?;
        }
    }
    guest.check_memory(&lab.hosts[here - 1], CHECKED_WITHIN)?;
    let verdict = guest.observer.verdict();
    ensure!(
        verdict.memory_intact() && verdict.counter_continuous(),
        "{verdict:?}"
    );
    ensure!(verdict.moves.len() == 6, "{verdict:?}");
    no_relay_is_left(lab).await
}
