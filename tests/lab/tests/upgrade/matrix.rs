//! Every mix of versions that an upgrade passes through, or that somebody makes by mistake: guests move, or are refused
//! by name before anything is touched.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use godwit_crds::migration::SecurityRequirement;
use godwit_lab::Lab;
use serde_json::json;

use crate::moments::{BOTH_FLOWS, Way};
use crate::setting::{clear, ended, is_true, linux, lives_on, start, succeeds};
use crate::versions::Version::{Older, Todays};
use crate::versions::{Mix, put};
use crate::ways::{ask, no_relay_is_left};

const CHECKED_WITHIN: Duration = Duration::from_secs(90);

/// In the order in which the chart upgrades: what is newer is first the controller, then one agent, then all; and what
/// comes about when the controller was forgotten.
const MIXES: [Mix; 5] = [
    Mix::OLDER,
    Mix {
        controller: Todays,
        agents: [Older, Older],
    },
    Mix {
        controller: Todays,
        agents: [Todays, Older],
    },
    Mix {
        controller: Older,
        agents: [Older, Todays],
    },
    Mix {
        controller: Older,
        agents: [Todays, Todays],
    },
];

pub async fn every_mix_of_versions_moves_a_guest(lab: &mut Lab) -> anyhow::Result<()> {
    put(lab, Mix::OLDER).await?;
    clear(lab).await?;
    let guest = start(lab, linux("veteran", "128Mi", "godwit.fill=16M godwit.dirty=2M")).await?;
    let mut epoch = 1;
    for mix in MIXES {
        put(lab, mix).await?;
        for flow in BOTH_FLOWS {
            for way in [
                Way::tunnelled(flow),
                Way::native(flow, SecurityRequirement::Encrypted),
            ] {
                // There and back: each host is the source once.
                for (here, there) in [(1, 2), (2, 1)] {
                    let what = format!("{mix:?}, {way:?}, from host {here}");
                    let name = format!("veteran-{epoch}");
                    let spec = json!({
                        "controlFlow": way.flow,
                        "transport": way.transport,
                        "security": {"require": way.require},
                    });
                    ask(lab, &guest, &name, &lab.hosts[there - 1], spec).await?;
                    succeeds(lab, &name).await.with_context(|| what.clone())?;
                    epoch += 1;
                    lives_on(lab, &guest, there, epoch)
                        .await
                        .with_context(|| what.clone())?;
                }
            }
        }
    }
    guest.check_memory(&lab.hosts[0], CHECKED_WITHIN)?;
    let verdict = guest.observer.verdict();
    ensure!(
        verdict.memory_intact() && verdict.counter_continuous(),
        "{verdict:?}"
    );
    ensure!(verdict.moves.len() == MIXES.len() * 8, "{verdict:?}");
    no_relay_is_left(lab).await?;
    clear(lab).await?;
    put(lab, Mix::TODAYS).await
}

/// What an older agent cannot keep is refused before anything is touched.
pub async fn an_older_host_takes_no_strict_handoff(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    let mixes = [[Todays, Older], [Older, Todays]].map(|agents| Mix {
        controller: Todays,
        agents,
    });
    for (number, mix) in mixes.into_iter().enumerate() {
        put(lab, mix).await?;
        let guest = start(lab, linux(&format!("strict{number}"), "128Mi", "godwit.dirty=2M")).await?;
        for (again, flow) in BOTH_FLOWS.into_iter().enumerate() {
            let name = format!("strict{number}-{again}");
            let spec = json!({"controlFlow": flow, "handoff": "Strict"});
            ask(lab, &guest, &name, &lab.hosts[1], spec).await?;
            let migration = ended(lab, &name).await?;
            let failure = migration
                .status
                .as_ref()
                .and_then(|status| status.failure.as_ref());
            ensure!(
                !is_true(&migration, "Succeeded")
                    && failure.is_some_and(|failure| failure.reason == "ProtocolVersionUnsupported"),
                "{mix:?}, {flow:?}: {:?}",
                migration.status
            );
            let record = guest.record(lab.client()).await?.spec;
            ensure!(record.epoch == 1 && record.holder == "h1", "{record:?}");
            lives_on(lab, &guest, 1, 1)
                .await
                .with_context(|| format!("{mix:?}, {flow:?}"))?;
        }
        clear(lab).await?;
    }
    put(lab, Mix::TODAYS).await
}
