//! Hosts that are gone for good at the moment of the handover: what no evidence decides waits, says so, and ends by an
//! administrator's word.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use godwit_crds::condition::find_condition;
use godwit_crds::migration::ControlFlow::{self, ManagedDirect, PeerToPeer};
use godwit_crds::virtual_machine::GuestState;
use godwit_crds::{ConditionStatus, Decision, VirtualMachineHost};
use godwit_lab::Lab;
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::point::{Deed, Point, clear};
use super::scene::fresh;
use super::table::{self, Cell};
use crate::attempt::{Attempt, End, migrations, record};
use crate::guest::{Guest, until, until_within};

/// Go arrives at the destination, and nothing of it is written down.
const GO: Point = Point::of(2, "destination.event.Finish");
/// Strict: the destination has committed the record, and has not said that it starts the guest.
const COMMITTED: Point = Point::of(2, "destination.event.RecordRead");
/// The destination has the guest whole, and nobody has told it anything about the source.
const LOADED: Point = Point::of(2, "destination.event.Loaded");
/// An agent's lease has run out by then, however long the machine takes.
const UNHEARD_WITHIN: Duration = Duration::from_secs(120);

/// An idle guest's migration that is held at this point.
async fn held(
    lab: &mut Lab,
    flow: ControlFlow,
    strict: bool,
    point: Point,
) -> anyhow::Result<(Guest, Attempt)> {
    fresh(lab).await?;
    let guest = Guest::start(lab).await?;
    point.arm(lab, Deed::Wait)?;
    let object = serde_json::from_value(json!({
        "apiVersion": "godwit.dev/v1alpha1",
        "kind": "VirtualMachineMigration",
        "metadata": {"generateName": "move-", "namespace": "default"},
        "spec": {
            "virtualMachine": guest.name,
            "destination": {"host": "h2"},
            "controlFlow": flow,
            "security": {"require": "None"},
            "handoff": if strict { "Strict" } else { "Default" },
        },
    }))?;
    let made = migrations(lab).create(&PostParams::default(), &object).await?;
    let attempt = Attempt {
        name: made.name_any(),
        uid: made.uid().context("the server gives a UID")?,
    };
    point.reached(lab).await?;
    Ok((guest, attempt))
}

/// The host loses its power, and everybody has noticed.
async fn is_lost(lab: &mut Lab, number: usize) -> anyhow::Result<()> {
    let host = lab.host(number)?;
    host.kill_agent();
    host.kill_hypervisor()?;
    let name = host.name.clone();
    let hosts: Api<VirtualMachineHost> = Api::all(lab.client());
    until_within(UNHEARD_WITHIN, "the host is not heard any more", async || {
        let status = hosts.get(&name).await?.status.unwrap_or_default();
        let ready = find_condition(&status.conditions, "Ready");
        Ok(ready
            .is_some_and(|ready| ready.status == ConditionStatus::Unknown)
            .then_some(()))
    })
    .await
}

/// What `kubectl godwit resolve` says, and its exit code.
fn resolve(lab: &Lab, guest: &Guest, rest: &[&str]) -> anyhow::Result<(i32, String)> {
    let output = lab
        .plugin()
        .args(["resolve", &guest.name])
        .args(rest)
        .output()
        .context("kubectl-godwit")?;
    let text = [output.stdout, output.stderr].concat();
    let code = output.status.code().context("it was killed")?;
    Ok((code, String::from_utf8_lossy(&text).into_owned()))
}

fn carried_out(said: &(i32, String), word: &str) -> anyhow::Result<()> {
    ensure!(said.0 == 0 && said.1.contains(word), "{said:?}");
    Ok(())
}

fn refused(said: &(i32, String), word: &str) -> anyhow::Result<()> {
    ensure!(said.0 == 1 && said.1.contains(word), "{said:?}");
    Ok(())
}

/// The host is back after all, and everything is as it is where no host was ever lost.
async fn is_back(lab: &mut Lab, number: usize, guest: &Guest) -> anyhow::Result<()> {
    clear(lab)?;
    lab.restart_agent(number)?;
    lab.wait_until_ready().await?;
    guest.nothing_left(lab, number).await
}

/// Nobody can tell what the destination has run: it is lost where somebody says so, and started afresh.
async fn destination_lost_after_go(lab: &mut Lab, flow: ControlFlow) -> anyhow::Result<()> {
    let (guest, attempt) = held(lab, flow, false, GO).await?;
    is_lost(lab, 2).await?;
    let reason = if flow == ManagedDirect {
        "AgentUnreachable"
    } else {
        "PeerUnreachable"
    };
    attempt.needs_decision(lab, reason).await?;
    let (code, text) = resolve(lab, &guest, &[])?;
    ensure!(
        code == 5 && text.contains("--fenced h2 --cold-start"),
        "{code}: {text}"
    );
    refused(
        &resolve(lab, &guest, &["--fenced", "h2", "--resume-source", "--wait"])?,
        "NotResumable",
    )?;
    // The fence alone says nothing of what ran there.
    let (code, text) = resolve(lab, &guest, &["--fenced", "h2", "--wait", "--timeout", "8s"])?;
    ensure!(code == 6 && text.contains("InProgress"), "{code}: {text}");
    ensure!(record(lab, &guest.uid).await?.spec.holder == "h1");
    carried_out(
        &resolve(lab, &guest, &["--fenced", "h2", "--cold-start", "--wait"])?,
        "ColdStarted",
    )?;
    let ended = attempt.ended(lab).await?;
    ensure!(ended.end == End::Lost, "{ended:?}");
    until("it runs afresh on host 1", async || {
        let status = guest.object(lab).await?.status.unwrap_or_default();
        let runs = status.host.as_deref() == Some("h1")
            && status.epoch == Some(3)
            && status.state == Some(GuestState::Running);
        Ok(runs.then_some(()))
    })
    .await?;
    guest.process(lab, 1)?;
    is_back(lab, 2, &guest).await?;
    table::note(
        Cell {
            phase: "Go said",
            fault: "the destination's host is lost for good",
            flow,
            expected: &[End::Lost],
        },
        ended.end,
        None,
    );
    guest.remove(lab).await
}

pub async fn cell_destination_host_lost_after_go_managed(lab: &mut Lab) -> anyhow::Result<()> {
    destination_lost_after_go(lab, ManagedDirect).await
}

pub async fn cell_destination_host_lost_after_go_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    destination_lost_after_go(lab, PeerToPeer).await
}

/// The record proves that the destination has not started it: the source's image goes on where somebody says so.
async fn strict_destination_lost(lab: &mut Lab, flow: ControlFlow) -> anyhow::Result<()> {
    let (guest, attempt) = held(lab, flow, true, COMMITTED).await?;
    is_lost(lab, 2).await?;
    let spec = record(lab, &guest.uid).await?.spec;
    ensure!(spec.decision == Decision::Committed && !spec.started, "{spec:?}");
    carried_out(
        &resolve(lab, &guest, &["--fenced", "h2", "--resume-source", "--wait"])?,
        "SourceResumed",
    )?;
    guest.ticks_at("h1").await?;
    ensure!(guest.ticks("h2") == 0, "it ran at the destination");
    is_back(lab, 2, &guest).await?;
    let cell = Cell {
        phase: "Strict: committed, not started",
        fault: "the destination's host is lost for good",
        flow,
        expected: &[End::Stays],
    };
    let ended = attempt.settles(lab, guest, cell.expected).await?;
    table::note(cell, ended.end, None);
    Ok(())
}

pub async fn cell_strict_destination_host_lost_managed(lab: &mut Lab) -> anyhow::Result<()> {
    strict_destination_lost(lab, ManagedDirect).await
}

pub async fn cell_strict_destination_host_lost_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    strict_destination_lost(lab, PeerToPeer).await
}

/// The destination has the guest whole and was told nothing: it waits until somebody says that the source is fenced.
async fn source_lost_untold(lab: &mut Lab, flow: ControlFlow) -> anyhow::Result<()> {
    let (guest, attempt) = held(lab, flow, false, LOADED).await?;
    is_lost(lab, 1).await?;
    LOADED.release(lab)?;
    let (code, text) = resolve(lab, &guest, &[])?;
    ensure!(text.contains("--fenced h1"), "{code}: {text}");
    ensure!(
        guest.ticks("h2") == 0,
        "it runs though nobody has said that it may"
    );
    carried_out(&resolve(lab, &guest, &["--fenced", "h1", "--wait"])?, "Fenced")?;
    guest.ticks_at("h2").await?;
    let spec = record(lab, &guest.uid).await?.spec;
    ensure!(spec.holder == "h2" && spec.epoch == 2, "{spec:?}");
    is_back(lab, 1, &guest).await?;
    let cell = Cell {
        phase: "loaded, the source unsealed",
        fault: "the source's host is lost for good",
        flow,
        expected: &[End::Moved],
    };
    let ended = attempt.settles(lab, guest, cell.expected).await?;
    table::note(cell, ended.end, None);
    Ok(())
}

pub async fn cell_source_host_lost_unsealed_managed(lab: &mut Lab) -> anyhow::Result<()> {
    source_lost_untold(lab, ManagedDirect).await
}

pub async fn cell_source_host_lost_unsealed_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    source_lost_untold(lab, PeerToPeer).await
}
