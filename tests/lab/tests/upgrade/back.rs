//! A step back: an older agent that finds what a newer one has begun leaves that guest alone, and says so.

use anyhow::{Context as _, ensure};
use godwit_crds::condition::ConditionStatus;
use godwit_crds::migration::{ControlFlow, SecurityRequirement};
use godwit_crds::{Decision, VirtualMachineHost, VirtualMachineMigration};
use godwit_lab::Lab;
use godwit_lab::guest::{self, migrations};
use godwit_lab::processes;
use kube::Api;
use rustix::process::Signal;
use serde_json::json;

use crate::attempt::End;
use crate::moments::{Moment, Traveller, Trip, Way, agent, at, travels};
use crate::setting::{MOVES_WITHIN, SOON, clear, linux, lives_on, start, succeeds};
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
    put(lab, Mix::TODAYS).await?;
    clear(lab).await?;
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
        ensure!(found.len() == 1, "{what}: {found:?}");
        replace(lab, host, Todays).await?;
        resolved(lab, &name, ConditionStatus::True, "AllResolved").await?;
        trip.goes_on(lab).await?;
        traveller
            .settles(lab, &trip, &[End::Moved, End::Stays], what)
            .await?;
    }
    traveller.is_whole(lab)
}

/// Where the guest stands still, and nobody has said Go. What the older agent cannot read it leaves alone; where the other
/// side, or the controller, can have the record decide, it does, else the guest waits for the newer agent, and that is
/// told. It runs nowhere twice.
pub async fn an_older_agent_in_the_middle_of_a_handover_is_in_nobodys_way(
    lab: &mut Lab,
) -> anyhow::Result<()> {
    put(lab, Mix::TODAYS).await?;
    clear(lab).await?;
    let mut traveller = Traveller::start(lab, "straddler").await?;
    for (flow, at_source) in [
        (ControlFlow::PeerToPeer, true),
        (ControlFlow::PeerToPeer, false),
        (ControlFlow::ManagedDirect, true),
        (ControlFlow::ManagedDirect, false),
    ] {
        let what = format!("{flow:?}, at the source: {at_source}");
        let (trip, host) = killed_loaded(lab, &mut traveller, flow, at_source).await?;
        let name = lab.host(host)?.name.clone();
        replace(lab, host, Older).await.with_context(|| what.clone())?;
        resolved(lab, &name, ConditionStatus::False, "JournalNewer")
            .await
            .with_context(|| what.clone())?;
        let end = if at_source && flow == ControlFlow::PeerToPeer {
            // The older one drives, and gives no order that it does not know. The controller hears nothing of its side.
            let words = trip.attempt.needs_decision(lab, "AgentUnreachable").await?;
            ensure!(words.contains(&name), "{what}: {words}");
            &[End::Moved, End::Stays][..]
        } else {
            decided_without(lab, &traveller, &trip, at_source)
                .await
                .with_context(|| what.clone())?
        };
        replace(lab, host, Todays).await?;
        traveller.settles(lab, &trip, end, what).await?;
        resolved(lab, &name, ConditionStatus::True, "AllResolved").await?;
    }
    traveller.is_whole(lab)
}

/// The same where today's agent finds a journal of tomorrow's: also the driver beside it has the record decide, and the
/// migration says what is missing.
pub async fn an_agent_in_the_middle_of_a_handover_cannot_read_its_journal(
    lab: &mut Lab,
) -> anyhow::Result<()> {
    put(lab, Mix::TODAYS).await?;
    clear(lab).await?;
    let mut traveller = Traveller::start(lab, "oracle").await?;
    for (flow, at_source) in [
        (ControlFlow::PeerToPeer, true),
        (ControlFlow::ManagedDirect, true),
        (ControlFlow::PeerToPeer, false),
    ] {
        let what = format!("{flow:?}, at the source: {at_source}");
        let (trip, host) = killed_loaded(lab, &mut traveller, flow, at_source).await?;
        lab.host(host)?.stop_agent().await?;
        let journal = trip.attempt.journal(lab, host)?;
        let read = std::fs::read(&journal)?;
        std::fs::write(&journal, of_tomorrow(&read))?;
        lab.start_agent(host)?;
        let end = decided_without(lab, &traveller, &trip, at_source)
            .await
            .with_context(|| what.clone())?;
        if at_source {
            let words = trip.attempt.needs_decision(lab, "JournalNewer").await?;
            ensure!(words.contains("newer agent"), "{what}: {words}");
        }
        // The newer agent is put back: it can read it.
        lab.host(host)?.stop_agent().await?;
        std::fs::write(&journal, read)?;
        lab.start_agent(host)?;
        lab.wait_until_ready().await?;
        traveller.settles(lab, &trip, end, what).await?;
    }
    traveller.is_whole(lab)
}

/// The next move of a guest, whose agent at one side was killed when the destination had all of it.
async fn killed_loaded(
    lab: &mut Lab,
    traveller: &mut Traveller,
    flow: ControlFlow,
    at_source: bool,
) -> anyhow::Result<(Trip, usize)> {
    loop {
        let trip = traveller.leaves(lab, Way::tunnelled(flow)).await?;
        let host = if at_source { trip.from } else { trip.to };
        let find = |lab: &mut Lab| agent(lab, host);
        let killed = at(lab, &trip, Moment::Loaded, find, |process| {
            ensure!(processes::signal(&process, Signal::KILL), "the agent had ended");
            Ok(())
        });
        if killed.await? {
            return Ok((trip, host));
        }
        traveller.was_early(lab, &trip).await?;
    }
}

/// Waits until the guest runs where the record says that it may, without the side that cannot read its journal.
async fn decided_without(
    lab: &Lab,
    traveller: &Traveller,
    trip: &Trip,
    at_source: bool,
) -> anyhow::Result<&'static [End]> {
    let (other, end) = if at_source {
        (trip.to, &[End::Moved])
    } else {
        (trip.from, &[End::Stays])
    };
    traveller.guest.wait_for_ticks(20, MOVES_WITHIN)?;
    traveller.guest.wait_for_ticks_at(&format!("h{other}"), SOON)?;
    let decision = traveller.guest.record(lab.client()).await?.spec.decision;
    ensure!((decision == Decision::Committed) == at_source, "{decision:?}");
    Ok(end)
}

/// A journal with another number of its format: the next one.
fn of_tomorrow(journal: &[u8]) -> Vec<u8> {
    const CONTENT: std::ops::Range<usize> = 16..8 * 512;
    let mut bytes = journal.to_vec();
    let format = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) + 1;
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&format.to_le_bytes());
    checksum.update(&bytes[CONTENT]);
    bytes[8..12].copy_from_slice(&format.to_le_bytes());
    bytes[12..16].copy_from_slice(&checksum.finalize().to_le_bytes());
    bytes
}

/// A guest that has come by a newer agent's migration, which is over: the older one cannot know, and says so. The guest
/// runs on; today's agent takes it over again.
pub async fn an_older_agent_leaves_alone_what_it_handed_on(lab: &mut Lab) -> anyhow::Result<()> {
    put(lab, Mix::TODAYS).await?;
    clear(lab).await?;
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
