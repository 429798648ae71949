//! Agents that ask the signer.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use godwit_crds::{ConditionStatus, VirtualMachineMigration};
use godwit_lab::certificates::{Files, Subject, host_identity, write_secret};
use godwit_lab::guest::{self, Guest, migrations};
use godwit_lab::initramfs::KERNEL_OPTIONS;
use godwit_lab::{Host, Lab};
use godwit_protocol::PeerIdentity;
use kube::api::PostParams;
use serde_json::json;

use crate::controllers;
use crate::wire::{answers, connect, controller, credentials, within};

/// For a migration.
const MOVES_WITHIN: Duration = Duration::from_secs(150);

/// The agent's own key and certificate.
fn kept(host: &Host) -> PathBuf {
    host.directory.join("run/identity/identity.pem")
}

pub async fn r1_each_agent_has_the_certificate_of_its_own_host(lab: &mut Lab) -> anyhow::Result<()> {
    let tls = controller(&lab.authority, lab.authority.certificate())?;
    let mut keys = Vec::new();
    for number in 1..=2 {
        let host = &lab.hosts[number - 1];
        let text = std::fs::read_to_string(kept(host))?;
        let mode = std::fs::metadata(kept(host))?.permissions().mode();
        ensure!(mode & 0o777 == 0o600, "{mode:o}");
        let own = credentials(lab.authority.certificate(), text.as_bytes(), &text)?;
        ensure!(
            *own.identity() == PeerIdentity::Host(host.name.clone()),
            "{own:?}"
        );
        keys.push(text);
        answers(&connect(lab, number, &host.name, &tls).await?).await?;
    }
    ensure!(keys[0] != keys[1], "two hosts share a key");
    // Who answers at h1 is not taken for h2.
    let fault = connect(lab, 1, "h2", &tls)
        .await
        .err()
        .context("h1 passed for h2")?;
    ensure!(fault.reason == "CertificateRejected", "{fault:?}");
    Ok(())
}

pub async fn a_restarted_agent_needs_no_signer(lab: &mut Lab) -> anyhow::Result<()> {
    lab.kill_signer();
    let before = std::fs::read(kept(&lab.hosts[0]))?;
    lab.restart_agent(1)?;
    lab.wait_until_ready().await?;
    ensure!(
        std::fs::read(kept(&lab.hosts[0]))? == before,
        "it has another certificate"
    );
    lab.start_signer().await
}

/// Starts a guest on h1.
async fn start(lab: &Lab, name: &str) -> anyhow::Result<Guest> {
    let options: Vec<_> = KERNEL_OPTIONS.split_whitespace().collect();
    let machine = serde_json::from_value(json!({
        "apiVersion": "godwit.dev/v1alpha1",
        "kind": "VirtualMachine",
        "metadata": {"name": name, "namespace": guest::NAMESPACE},
        "spec": {
            "host": "h1",
            "machine": {"type": "pc-q35-10.0"},
            "cpu": {"count": 1, "model": "qemu64"},
            "memory": "128Mi",
            "boot": {"kernel": {
                "image": {"file": "vmlinuz"},
                "initramfs": {"file": "initramfs.cpio"},
                "commandLine": options.join(" "),
            }},
        },
    }))?;
    let guest = Guest::create(lab, &machine, Duration::from_millis(5)).await?;
    guest.wait_until_it_ticks(lab).await?;
    Ok(guest)
}

/// Asks for a move to h2 and waits for its end: none if the guest has moved, or the failure's reason.
async fn moved(lab: &Lab, guest: &Guest, name: &str) -> anyhow::Result<Option<String>> {
    let migration = serde_json::from_value(json!({
        "apiVersion": "godwit.dev/v1alpha1",
        "kind": "VirtualMachineMigration",
        "metadata": {"name": name, "namespace": guest::NAMESPACE},
        "spec": {
            "virtualMachine": guest.name,
            "destination": {"host": "h2"},
            "controlFlow": "ManagedDirect",
            "security": {"require": "None"},
        },
    }))?;
    migrations(lab).create(&PostParams::default(), &migration).await?;
    let is_true = |migration: &VirtualMachineMigration, type_: &str| {
        migration
            .status
            .iter()
            .flat_map(|status| &status.conditions)
            .any(|condition| condition.type_ == type_ && condition.status == ConditionStatus::True)
    };
    let over = |migration: Option<&VirtualMachineMigration>| {
        migration.is_none_or(|migration| is_true(migration, "Succeeded") || is_true(migration, "Failed"))
    };
    let ended = guest::until(&migrations(lab), name, MOVES_WITHIN, "it ends", over)
        .await?
        .context("the migration is gone")?;
    if is_true(&ended, "Succeeded") {
        return Ok(None);
    }
    let failure = ended
        .status
        .and_then(|status| status.failure)
        .context("a failure")?;
    println!("  {}: {}", failure.reason, failure.message);
    Ok(Some(failure.reason))
}

async fn holder(lab: &Lab, guest: &Guest) -> anyhow::Result<String> {
    Ok(guest.record(lab.client()).await?.spec.holder)
}

pub async fn a_guest_moves_between_agents_with_certificates_from_the_signer(
    lab: &mut Lab,
) -> anyhow::Result<()> {
    let guest = start(lab, "known").await?;
    let failed = moved(lab, &guest, "known-1").await?;
    ensure!(failed.is_none(), "{failed:?}");
    ensure!(holder(lab, &guest).await? == "h2");
    guest.wait_for_ticks(20, crate::wire::SOON)
}

/// Writes a certificate of h1 that holds for so long where its agent looks for one.
fn write_certificate(lab: &Lab, lasts: Duration) -> anyhow::Result<Files> {
    let host = &lab.hosts[0];
    let subject = Subject {
        common_name: host.name.clone(),
        uris: vec![host_identity(&host.name)],
        lasts: Some(lasts),
        ..Subject::default()
    };
    lab.authority.write(&host.directory.join("given"), &subject)
}

pub async fn r5_nothing_begins_with_a_certificate_that_ends_too_soon(lab: &mut Lab) -> anyhow::Result<()> {
    let guest = start(lab, "brief").await?;
    let given = write_certificate(lab, Duration::from_secs(140))?;
    let path = lab.hosts[0].configuration();
    let before = std::fs::read_to_string(&path)?;
    let mut configuration: serde_json::Value = serde_json::from_str(&before)?;
    let fields = configuration.as_object_mut().context("an object")?;
    fields.remove("certificateRequest");
    fields.insert(
        "tls".to_owned(),
        json!({"ca": given.authority, "certificate": given.certificate, "key": given.key}),
    );
    lab.host(1)?.stop_agent().await?;
    write_secret(&path, &configuration.to_string())?;
    lab.start_agent(1)?;
    lab.wait_until_ready().await?;
    let failed = moved(lab, &guest, "brief-1").await?;
    ensure!(failed.as_deref() == Some("CertificateEndsTooSoon"), "{failed:?}");
    ensure!(holder(lab, &guest).await? == "h1");
    guest.wait_for_ticks(20, crate::wire::SOON)?;

    // The next certificate is taken up where it lies, by the same agent.
    write_certificate(lab, Duration::from_secs(3600))?;
    let deadline = Instant::now() + MOVES_WITHIN;
    for attempt in 2.. {
        match moved(lab, &guest, &format!("brief-{attempt}")).await?.as_deref() {
            None => break,
            Some("CertificateEndsTooSoon") if Instant::now() < deadline => {}
            Some(other) => bail!("{other}"),
        }
    }
    ensure!(holder(lab, &guest).await? == "h2");
    lab.host(1)?.stop_agent().await?;
    write_secret(&path, &before)?;
    lab.start_agent(1)?;
    lab.wait_until_ready().await
}

/// Certificates hold for ten minutes here and are renewed after a little more than half of that.
pub async fn renewal_breaks_no_connection(lab: &mut Lab) -> anyhow::Result<()> {
    let tls = controller(&lab.authority, lab.authority.certificate())?;
    let client = connect(lab, 1, "h1", &tls).await?;
    let both = [kept(&lab.hosts[0]), controllers::kept(lab)?];
    controllers::own(lab, lab.authority.certificate()).await?;
    let read = || both.iter().map(std::fs::read).collect::<Result<Vec<_>, _>>();
    let before = read()?;
    within(
        Duration::from_secs(420),
        "the agent's and the controller's certificates are renewed",
        &mut async || {
            answers(&client).await?;
            let renewed = read()?.iter().zip(&before).all(|(now, before)| now != before);
            Ok(renewed.then_some(()))
        },
    )
    .await?;
    answers(&client).await?;
    answers(&connect(lab, 1, "h1", &tls).await?).await
}
