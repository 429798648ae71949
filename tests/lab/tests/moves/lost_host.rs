//! A host that is gone for good: an administrator says that it is fenced. A guest is started afresh on another host, and one
//! that is being deleted is let go.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use godwit_crds::condition::find_condition;
use godwit_crds::virtual_machine::GuestState;
use godwit_crds::{
    ConditionStatus, GuestRecord, VirtualMachine, VirtualMachineHost, VirtualMachineResolution,
};
use godwit_lab::guest::{self, machines};
use godwit_lab::{Lab, processes};
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use rustix::process::Signal;

use crate::setting::{SOON, clear, linux, moves, start};
use crate::traces;

/// An agent's lease has run out by then, however long the machine takes.
const UNHEARD_WITHIN: Duration = Duration::from_secs(120);

/// What `kubectl godwit` says, and its exit code.
fn said(lab: &Lab, arguments: &[&str]) -> anyhow::Result<(i32, String)> {
    let output = lab.plugin().args(arguments).output().context("kubectl-godwit")?;
    let text = [output.stdout, output.stderr].concat();
    let code = output.status.code().context("it was killed")?;
    Ok((code, String::from_utf8_lossy(&text).into_owned()))
}

pub async fn a_guest_whose_host_is_gone_is_started_afresh_by_an_administrators_word(
    lab: &mut Lab,
) -> anyhow::Result<()> {
    clear(lab).await?;
    let guest = start(lab, linux("orphan", "128Mi", "godwit.dirty=2M")).await?;
    let doomed = start(lab, linux("doomed", "96Mi", "godwit.dirty=1M")).await?;
    let (here, there) = (lab.hosts[0].name.clone(), lab.hosts[1].name.clone());

    // A host that answers is not believed to be fenced, and the guest goes on.
    let word = |lab: &Lab, rest: &[&str]| -> anyhow::Result<(i32, String)> {
        let mut arguments = vec!["resolve", "orphan", "--fenced", here.as_str()];
        arguments.extend(rest);
        said(lab, &arguments)
    };
    let (code, text) = word(lab, &["--cold-start", "--wait"])?;
    ensure!(code == 1 && text.contains("HostAnswers"), "{code}: {text}");
    guest.wait_for_ticks(20, SOON)?;

    let host = lab.host(1)?;
    host.kill_agent();
    for hypervisor in host.hypervisors() {
        ensure!(processes::signal(&hypervisor, Signal::KILL), "it was gone");
    }
    let hosts: Api<VirtualMachineHost> = Api::all(lab.client());
    let unheard = |host: Option<&VirtualMachineHost>| {
        let conditions = host.and_then(|host| Some(&host.status.as_ref()?.conditions));
        conditions
            .and_then(|conditions| find_condition(conditions, "Ready"))
            .is_some_and(|ready| ready.status == ConditionStatus::Unknown)
    };
    guest::until(&hosts, &here, UNHEARD_WITHIN, "the host is not heard", unheard).await?;
    let (code, text) = said(lab, &["resolve", "orphan"])?;
    ensure!(
        code == 0 && text.contains("is not heard any more") && text.contains("--cold-start"),
        "{code}: {text}"
    );

    // What the guest said before is another life's.
    let before = guest.observer.lines().len();
    let began = Instant::now();
    let (code, text) = word(lab, &["--cold-start", "--note", "burnt down", "--wait"])?;
    ensure!(code == 0 && text.contains("ColdStarted"), "{code}: {text}");
    let runs = |machine: Option<&VirtualMachine>| {
        machine
            .and_then(|machine| machine.status.as_ref())
            .is_some_and(|status| {
                status.host.as_deref() == Some(there.as_str())
                    && status.epoch == Some(2)
                    && status.state == Some(GuestState::Running)
            })
    };
    guest::until(
        &machines(lab),
        &guest.name,
        SOON,
        "it runs on the other host",
        runs,
    )
    .await?;
    guest.wait_for_ticks_at(&there, SOON)?;
    println!("    started afresh within {:.1} s", began.elapsed().as_secs_f64());
    let since = &guest.observer.lines()[before..];
    ensure!(since.iter().all(|line| line.host == there), "it ticked elsewhere");
    let record = guest.record(lab.client()).await?.spec;
    let recorded = record.resolution.context("the word is in the record")?;
    ensure!(
        recorded.cold_start == Some(2)
            && recorded.fenced == [here.as_str()]
            && record.evidence.contains(&recorded.by),
        "{}",
        record.evidence
    );
    let words: Api<VirtualMachineResolution> = Api::namespaced(lab.client(), guest::NAMESPACE);
    ensure!(words.list(&ListParams::default()).await?.items.len() == 2);

    // A guest that is being deleted waits for its host, and says so. The word about the host lets it go, unasked.
    machines(lab)
        .delete(&doomed.name, &DeleteParams::default())
        .await?;
    let waits = |machine: Option<&VirtualMachine>| {
        let conditions = machine.and_then(|machine| Some(&machine.status.as_ref()?.conditions));
        conditions
            .and_then(|conditions| find_condition(conditions, "Ready"))
            .is_some_and(|ready| {
                ready.reason == "AgentUnreachable" && ready.message.contains("being deleted")
            })
    };
    guest::until(&machines(lab), &doomed.name, SOON, "it says why it stays", waits).await?;
    let (code, text) = said(lab, &["resolve", "doomed"])?;
    ensure!(
        code == 0 && text.contains("It is being deleted") && !text.contains("--cold-start"),
        "{code}: {text}"
    );
    let (code, text) = said(lab, &["resolve", "doomed", "--fenced", here.as_str(), "--wait"])?;
    ensure!(code == 0 && text.contains("LetGo"), "{code}: {text}");
    let gone = |machine: Option<&VirtualMachine>| machine.is_none();
    guest::until(&machines(lab), &doomed.name, SOON, "it is gone", gone).await?;
    let records: Api<GuestRecord> = Api::all(lab.client());
    // By it its host would learn how a migration ended: it stays for as long as that is away.
    ensure!(
        records.get_opt(&doomed.uid).await?.is_some(),
        "its record is gone"
    );

    // Said once more it is about a guest that has gone on.
    let (code, text) = word(lab, &["--cold-start", "--wait"])?;
    ensure!(code == 1 && text.contains("NotFenced"), "{code}: {text}");

    // The host comes back after all: what is left of the guest there goes, and the guest can move back.
    lab.restart_agent(1)?;
    lab.wait_until_ready().await?;
    traces::nothing_is_left(&lab.hosts[0], &guest.uid).await?;
    traces::nothing_is_left(&lab.hosts[0], &doomed.uid).await?;
    let forgotten = |record: Option<&GuestRecord>| record.is_none();
    guest::until(&records, &doomed.uid, SOON, "its record is gone", forgotten).await?;
    moves(lab, &guest, "home", &lab.hosts[0]).await?;
    guest.wait_for_ticks_at(&here, SOON)?;
    traces::nothing_is_left(&lab.hosts[1], &guest.uid).await?;
    let verdict = guest.observer.verdict();
    ensure!(verdict.boots == 2 && verdict.went_back.is_empty(), "{verdict:?}");
    Ok(())
}
