//! A step back: an older agent that finds what a newer one has begun leaves that guest alone, and says so.

use anyhow::{Context as _, ensure};
use godwit_crds::condition::ConditionStatus;
use godwit_crds::migration::{ControlFlow, SecurityRequirement};
use godwit_crds::{VirtualMachineHost, VirtualMachineMigration};
use godwit_lab::Lab;
use godwit_lab::guest::{self, migrations};
use kube::Api;
use serde_json::json;

use crate::attempt::End;
use crate::moments::{Traveller, Way, travels};
use crate::setting::{SOON, clear, linux, lives_on, start, succeeds};
use crate::versions::Version::{Older, Todays};
use crate::versions::{Mix, put, replace};
use crate::ways::ask;

/// Waits until a host's condition says whether it could take up what its journals speak of.
async fn resolved(lab: &Lab, host: &str, status: ConditionStatus, reason: &str) -> anyhow::Result<String> {
    let hosts: Api<VirtualMachineHost> = Api::all(lab.client());
    let found = |host: &VirtualMachineHost| {
        let conditions = host.status.as_ref().map(|status| &status.conditions);
        let mut conditions = conditions.into_iter().flatten();
        let condition = conditions.find(|condition| condition.type_ == "MigrationsResolved");
        condition
            .filter(|condition| condition.status == status && condition.reason == reason)
            .map(|condition| condition.message.clone())
    };
    let what = format!("{host}'s MigrationsResolved says {reason}");
    let host = guest::until(&hosts, host, SOON, &what, |host| host.and_then(found).is_some()).await?;
    host.as_ref().and_then(found).context("the condition is gone")
}

/// While memory travels, at either side, by either transport.
pub async fn an_older_agent_leaves_alone_what_a_newer_one_has_begun(lab: &mut Lab) -> anyhow::Result<()> {
    /// For longer than any deadline of an agent that is not heard, or has nothing to do.
    const TICKS: u64 = 400;
    clear(lab).await?;
    put(lab, Mix::TODAYS).await?;
    let mut traveller = Traveller::start(lab, "revenant").await?;
    for (way, at_source) in [
        (Way::tunnelled(ControlFlow::PeerToPeer), true),
        (
            Way::native(ControlFlow::ManagedDirect, SecurityRequirement::Encrypted),
            true,
        ),
        (
            Way::native(ControlFlow::PeerToPeer, SecurityRequirement::Encrypted),
            false,
        ),
        (Way::tunnelled(ControlFlow::ManagedDirect), false),
    ] {
        let what = format!("{way:?}, at the source: {at_source}");
        let trip = traveller.leaves(lab, way).await?;
        travels(lab, &trip.attempt.name).await?;
        let host = if at_source { trip.from } else { trip.to };
        let name = lab.host(host)?.name.clone();
        replace(lab, host, Older).await.with_context(|| what.clone())?;
        let message = resolved(lab, &name, ConditionStatus::False, "JournalNewer")
            .await
            .with_context(|| what.clone())?;
        ensure!(
            message.contains(&trip.attempt.uid) && message.contains(&traveller.guest.uid),
            "{what}: {message}"
        );
        // It runs on where it is, and its copy is left alone.
        traveller
            .guest
            .wait_for_ticks(TICKS, SOON)
            .with_context(|| what.clone())?;
        traveller
            .guest
            .wait_for_ticks_at(&format!("h{}", trip.from), SOON)?;
        let found = lab.host(host)?.hypervisors();
        ensure!(
            at_source == (host == trip.from) && (found.len() == 1 || !at_source),
            "{what}: {found:?}"
        );
        replace(lab, host, Todays).await?;
        resolved(lab, &name, ConditionStatus::True, "AllResolved").await?;
        trip.goes_on(lab).await?;
        traveller
            .settles(lab, &trip, &[End::Moved, End::Stays], what)
            .await?;
    }
    traveller.is_whole(lab)
}

/// A guest that has come by a newer agent's migration, which is over: the older one cannot know, and says so. The guest
/// runs on; today's agent takes it over again.
pub async fn an_older_agent_leaves_alone_what_it_handed_on(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    put(lab, Mix::TODAYS).await?;
    let guest = start(lab, linux("heirloom", "128Mi", "godwit.dirty=2M")).await?;
    ask(lab, &guest, "heirloom-1", &lab.hosts[1], json!({})).await?;
    succeeds(lab, "heirloom-1").await?;
    lives_on(lab, &guest, 2, 2).await?;
    replace(lab, 2, Older).await?;
    let message = resolved(lab, "h2", ConditionStatus::False, "JournalNewer").await?;
    ensure!(message.contains(&guest.uid), "{message}");
    guest.wait_for_ticks(100, SOON)?;
    guest.wait_for_ticks_at("h2", SOON)?;
    // No migration of it begins.
    ask(lab, &guest, "heirloom-2", &lab.hosts[0], json!({})).await?;
    let told = |migration: Option<&VirtualMachineMigration>| {
        let status = migration.and_then(|migration| migration.status.as_ref());
        status.is_some_and(|status| {
            status
                .conditions
                .iter()
                .any(|condition| condition.reason == "JournalNewer")
        })
    };
    guest::until(&migrations(lab), "heirloom-2", SOON, "it says why not", told).await?;
    guest.wait_for_ticks(100, SOON)?;
    replace(lab, 2, Todays).await?;
    resolved(lab, "h2", ConditionStatus::True, "AllResolved").await?;
    ask(lab, &guest, "heirloom-3", &lab.hosts[0], json!({})).await?;
    succeeds(lab, "heirloom-3").await?;
    lives_on(lab, &guest, 1, 3).await
}
