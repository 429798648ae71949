//! Bad input: refused or failed with the word that says what to do, and nothing is touched.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use godwit_crds::VirtualMachineHost;
use godwit_crds::condition::ConditionStatus;
use godwit_crds::virtual_machine::GuestState;
use godwit_lab::Lab;
use godwit_lab::certificates::{Authority, Issued, Subject, host_identity, write_secret};
use kube::Api;
use serde_json::{Value, json};

use crate::attempt::{Attempt, End, Ended, condition};
use crate::guest::{Guest, until};

/// Orders a move that ends where it began, for that reason, before memory travels.
async fn fails(lab: &mut Lab, guest: &Guest, to: &str, reason: &str) -> anyhow::Result<()> {
    let (attempt, ended) = refused(lab, guest, to, reason).await?;
    attempt.holds(lab, guest, &ended).await
}

/// The same; what holds then is looked at by the caller.
pub async fn refused(lab: &Lab, guest: &Guest, to: &str, reason: &str) -> anyhow::Result<(Attempt, Ended)> {
    let attempt = Attempt::order(lab, &guest.name, to).await?;
    let ended = attempt.ended(lab).await?;
    ensure!(
        ended.end == End::Stays && ended.reason == reason,
        "{reason} was expected: {ended:?}"
    );
    println!("  {}: {}", ended.reason, ended.message);
    let progress = attempt.status(lab).await?.progress;
    ensure!(
        progress
            .as_ref()
            .is_none_or(|figures| figures.transferred_bytes == 0),
        "memory has travelled: {progress:?}"
    );
    Ok((attempt, ended))
}

pub async fn unknown_names_are_refused(lab: &mut Lab) -> anyhow::Result<()> {
    let attempt = Attempt::order(lab, "nobody", "h2").await?;
    let ended = attempt.ended(lab).await?;
    ensure!(ended.reason == "VirtualMachineNotFound", "{ended:?}");
    let status = attempt.status(lab).await?;
    let accepted = condition(&status, "Accepted").context("no Accepted")?;
    ensure!(accepted.status == ConditionStatus::False && accepted.reason == ended.reason);

    let guest = Guest::start(lab).await?;
    fails(lab, &guest, "h9", "HostNotFound").await?;
    fails(lab, &guest, "h1", "SameHost").await?;
    guest.remove(lab).await
}

pub async fn a_second_active_migration_is_refused(lab: &mut Lab) -> anyhow::Result<()> {
    let guest = Guest::start_busy(lab).await?;
    lab.network.shape(1, Some(crate::crashes::SLOWER))?;
    let first = Attempt::order(lab, &guest.name, "h2").await?;
    let refused = async {
        first.streams(lab).await?;
        Attempt::order(lab, &guest.name, "h2").await?.ended(lab).await
    }
    .await;
    lab.network.shape(1, None)?;
    let refused = refused?;
    ensure!(refused.reason == "AnotherMigrationActive", "{refused:?}");
    first.settles(lab, guest, &[End::Moved]).await?;
    Ok(())
}

pub async fn a_guest_that_does_not_run_is_refused(lab: &mut Lab) -> anyhow::Result<()> {
    let guest = Guest::start(lab).await?;
    guest.types(lab, 1, "p")?;
    guest.state(lab, GuestState::ShutOff).await?;
    let attempt = Attempt::order(lab, &guest.name, "h2").await?;
    let ended = attempt.ended(lab).await?;
    ensure!(ended.reason == "GuestNotRunning", "{ended:?}");
    guest.nothing_left(lab, 2).await?;
    ensure!(guest.object(lab).await?.status.and_then(|status| status.state) == Some(GuestState::ShutOff));
    guest.remove(lab).await
}

pub async fn a_stopped_agents_host_is_refused(lab: &mut Lab) -> anyhow::Result<()> {
    let guest = Guest::start(lab).await?;
    lab.host(2)?.stop_agent().await?;
    host_is_not_ready(lab, "ShuttingDown").await?;
    let outcome = fails(lab, &guest, "h2", "HostNotReady").await;
    lab.start_agent(2)?;
    lab.wait_until_ready().await?;
    outcome?;
    guest.remove(lab).await
}

/// Waits until host 2 says of itself why it is not ready.
async fn host_is_not_ready(lab: &Lab, reason: &str) -> anyhow::Result<()> {
    let hosts: Api<VirtualMachineHost> = Api::all(lab.client());
    until("host 2 says how it is", async || {
        let status = hosts.get("h2").await?.status.unwrap_or_default();
        let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
        let said = ready.is_some_and(|c| c.status == ConditionStatus::False && c.reason == reason);
        Ok(said.then_some(()))
    })
    .await
}

/// Host 2 with a changed configuration, as long as `work` takes.
pub async fn with_host_2(
    lab: &mut Lab,
    change: impl FnOnce(&mut Value),
    unready: Option<&str>,
    work: impl AsyncFnOnce(&mut Lab) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let path = lab.host(2)?.configuration();
    let before = std::fs::read_to_string(&path)?;
    let mut configuration = serde_json::from_str(&before)?;
    change(&mut configuration);
    lab.host(2)?.stop_agent().await?;
    write_secret(&path, &configuration.to_string())?;
    lab.start_agent(2)?;
    let outcome = async {
        match unready {
            None => lab.wait_until_ready().await?,
            Some(reason) => host_is_not_ready(lab, reason).await?,
        }
        work(lab).await
    }
    .await;
    lab.host(2)?.stop_agent().await?;
    write_secret(&path, &before)?;
    lab.start_agent(2)?;
    lab.wait_until_ready().await?;
    outcome
}

pub async fn too_little_memory_is_refused(lab: &mut Lab) -> anyhow::Result<()> {
    let guest = Guest::start(lab).await?;
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    let kibibytes: u64 = meminfo
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        })
        .context("no MemTotal")?;
    let reserve = format!("{}Mi", kibibytes / 1024 - 8);
    with_host_2(
        lab,
        |c| c["memoryReserve"] = json!(reserve),
        None,
        async |lab| fails(lab, &guest, "h2", "InsufficientMemory").await,
    )
    .await?;
    guest.remove(lab).await
}

pub async fn ports_may_run_out(lab: &mut Lab) -> anyhow::Result<()> {
    let guest = Guest::start(lab).await?;
    let address = SocketAddr::new(lab.host(2)?.address, 49200);
    let listener = listen_on_host_2(lab, address)?;
    with_host_2(
        lab,
        |c| c["migrationPorts"] = json!({"first": 49200, "last": 49200}),
        None,
        async |lab| {
            let attempt = Attempt::order(lab, &guest.name, "h2").await?;
            let ended = attempt.ended(lab).await?;
            ensure!(ended.reason == "PortsExhausted", "{ended:?}");
            guest.ticks_at("h1").await?;
            // The listener is ours, and shall not count as left.
            drop(listener);
            attempt.holds(lab, &guest, &ended).await
        },
    )
    .await?;
    guest.remove(lab).await
}

/// A foreign listener at host 2.
fn listen_on_host_2(lab: &Lab, address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    let namespace = lab.network.namespace(2);
    let listening = std::thread::spawn(move || -> anyhow::Result<std::net::TcpListener> {
        if let Some(namespace) = namespace {
            enter(&namespace)?;
        }
        Ok(std::net::TcpListener::bind(address)?)
    });
    listening.join().map_err(|_| anyhow::anyhow!("it panicked"))?
}

/// Moves this thread into a network namespace.
fn enter(namespace: &Path) -> anyhow::Result<()> {
    use std::os::fd::AsFd as _;

    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    let file = std::fs::File::open(namespace)?;
    Ok(move_into_link_name_space(
        file.as_fd(),
        Some(LinkNameSpaceType::Network),
    )?)
}

/// Where this machine's hypervisor lies.
pub fn hypervisor() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").context("no PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join("qemu-system-x86_64"))
        .find(|program| program.exists())
        .context("no QEMU")
}

pub async fn a_hypervisor_may_be_missing(lab: &mut Lab) -> anyhow::Result<()> {
    let guest = Guest::start(lab).await?;
    with_host_2(
        lab,
        |c| c["qemu"]["binary"] = json!("/nowhere/qemu"),
        Some("HypervisorBroken"),
        async |lab| fails(lab, &guest, "h2", "HostNotReady").await,
    )
    .await?;
    guest.remove(lab).await
}

pub async fn a_hypervisor_may_break(lab: &mut Lab) -> anyhow::Result<()> {
    let guest = Guest::start(lab).await?;
    let place = lab.host(2)?.directory.join("qemu");
    std::os::unix::fs::symlink(hypervisor()?, &place)?;
    with_host_2(
        lab,
        |c| c["qemu"]["binary"] = json!(place),
        None,
        async |lab| {
            // It was there when the agent looked at it, and now is another.
            std::fs::remove_file(&place)?;
            std::os::unix::fs::symlink("/bin/false", &place)?;
            fails(lab, &guest, "h2", "HypervisorUnavailable").await
        },
    )
    .await?;
    std::fs::remove_file(&place)?;
    guest.remove(lab).await
}

/// Host 2's agent with another certificate, as long as a migration takes to fail.
async fn with_certificate(lab: &mut Lab, issued: &Issued) -> anyhow::Result<()> {
    let guest = Guest::start(lab).await?;
    let directory = lab.host(2)?.directory.join("wrong-tls");
    std::fs::create_dir_all(&directory)?;
    let (certificate, key) = (directory.join("tls.crt"), directory.join("tls.key"));
    write_secret(&certificate, &issued.certificate)?;
    write_secret(&key, &issued.key)?;
    let change = |c: &mut Value| {
        c["tls"]["certificate"] = json!(certificate);
        c["tls"]["key"] = json!(key);
    };
    with_host_2(lab, change, None, async |lab| {
        fails(lab, &guest, "h2", "CertificateRejected").await
    })
    .await?;
    guest.remove(lab).await
}

pub async fn a_certificate_of_another_authority_is_rejected(lab: &mut Lab) -> anyhow::Result<()> {
    let subject = Subject {
        common_name: "h2".to_owned(),
        uris: vec![host_identity("h2")],
        names: vec!["h2".to_owned()],
        addresses: vec![lab.host(2)?.address],
        ..Subject::default()
    };
    let issued = Authority::new("someone else")?.issue(&subject)?;
    with_certificate(lab, &issued).await
}

pub async fn a_certificate_of_another_host_is_rejected(lab: &mut Lab) -> anyhow::Result<()> {
    let path = lab.host(2)?.configuration();
    let before = std::fs::read_to_string(&path)?;
    let mut configuration: Value = serde_json::from_str(&before)?;
    let directory = lab.host(1)?.directory.join("tls");
    configuration["tls"]["certificate"] = json!(directory.join("tls.crt"));
    configuration["tls"]["key"] = json!(directory.join("tls.key"));
    lab.host(2)?.stop_agent().await?;
    write_secret(&path, &configuration.to_string())?;
    lab.start_agent(2)?;
    // It does not even serve under a name that is not its own.
    let agent = lab.host(2)?.agent().context("no agent")?;
    let outcome = until("the agent ends", async || Ok(agent.exited())).await;
    let words = agent.last_words();
    write_secret(&path, &before)?;
    lab.start_agent(2)?;
    lab.wait_until_ready().await?;
    ensure!(
        !outcome?.success() && words.contains("names spiffe://godwit.dev/godwit/host/h1"),
        "{words}"
    );
    Ok(())
}
