//! Guests that end by themselves, and guests that the agent leaves alone, on real parts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use godwit_crds::condition::find_condition;
use godwit_crds::virtual_machine::GuestState;
use godwit_crds::{ConditionStatus, VirtualMachine, VirtualMachineHost, VirtualMachineMigration};
use godwit_lab::boot_sector::BootSector;
use godwit_lab::guest::{self, Guest, NAMESPACE, directory, machines, migrations};
use godwit_lab::{Host, Lab, LabOptions, cases};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

/// For what is over in a second on a machine that has time.
const SOON: Duration = Duration::from_secs(90);

fn main() -> ExitCode {
    godwit_lab::cases::main(
        LabOptions::new("guests").hosts(2).guest_files(false),
        cases![
            a_persistent_guest_that_powers_off_stays_on_its_host,
            a_transient_guest_that_powers_off_is_forgotten_and_not_started_again,
            a_transient_guest_whose_process_dies_is_forgotten,
            a_transient_guest_that_has_moved_is_forgotten_where_it_ends,
            a_guest_of_which_a_newer_journal_speaks_is_left_alone,
        ],
    )
}

/// Starts a boot sector on h1 and waits until it counts.
async fn start(lab: &Lab, name: &str, persistence: &str) -> anyhow::Result<Guest> {
    let disk = lab.pool().join(format!("{name}.raw"));
    std::fs::write(&disk, BootSector::default().image())?;
    // The hypervisor opens it as a user of its own.
    std::fs::set_permissions(&disk, std::fs::Permissions::from_mode(0o666))?;
    let machine = serde_json::from_value(json!({
        "apiVersion": "godwit.dev/v1alpha1",
        "kind": "VirtualMachine",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "host": "h1",
            "persistence": persistence,
            "machine": {"type": "pc-q35-10.0"},
            "cpu": {"count": 1, "model": "qemu64"},
            "memory": "32Mi",
            "boot": {"firmware": {}},
            "disks": [{"name": "root", "file": {"file": format!("{name}.raw")}}],
        },
    }))?;
    let guest = Guest::create(lab, &machine, Duration::from_millis(5)).await?;
    guest.wait_until_it_ticks(lab).await?;
    Ok(guest)
}

/// Waits until the VirtualMachine tells that state, with these words in its condition Ready; gives the condition's reason
/// and all of its words.
async fn told(
    lab: &Lab,
    guest: &Guest,
    state: GuestState,
    words: &[&str],
) -> anyhow::Result<(String, String)> {
    let told = |machine: Option<&VirtualMachine>| {
        machine
            .and_then(|machine| machine.status.as_ref())
            .is_some_and(|status| {
                let ready = find_condition(&status.conditions, "Ready");
                let said = ready.map(|ready| ready.message.as_str()).unwrap_or_default();
                status.state == Some(state) && words.iter().all(|words| said.contains(words))
            })
    };
    let what = format!("it is {state:?}");
    let machine = guest::until(&machines(lab), &guest.name, SOON, &what, told)
        .await?
        .context("it is gone")?;
    let status = machine.status.context("it has no status")?;
    let ready = find_condition(&status.conditions, "Ready").context("it has no condition Ready")?;
    ensure!(ready.status == ConditionStatus::False, "{ready:?}");
    Ok((ready.reason.clone(), ready.message.clone()))
}

/// Looks again and again until it is so.
async fn until(what: &str, so: impl Fn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + SOON;
    while !so()? {
        ensure!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// The processes of a guest on a host.
fn processes(host: &Host, uid: &str) -> usize {
    let of_guest = |pid: i32| {
        std::fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|arguments| String::from_utf8_lossy(&arguments).contains(uid))
    };
    host.hypervisors()
        .iter()
        .filter(|seen| of_guest(seen.pid))
        .count()
}

fn record(host: &Host, uid: &str) -> PathBuf {
    host.directory.join(format!("state/guests/{uid}.record"))
}

fn contains(path: &Path, words: &str) -> anyhow::Result<bool> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).contains(words))
}

/// Waits until nothing of the guest is on its host but the note that it was there.
async fn only_the_note_is_left(lab: &Lab, host: &Host, guest: &Guest) -> anyhow::Result<()> {
    let (path, place) = (record(host, &guest.uid), directory(host, &guest.uid));
    until("its definition is forgotten, and only a note is left", || {
        Ok(!contains(&path, "pc-q35-10.0")? && processes(host, &guest.uid) == 0 && !place.exists())
    })
    .await?;
    let objects = Api::<VirtualMachineHost>::all(lab.client());
    guest::until(&objects, &host.name, SOON, "its memory is free again", |host| {
        host.and_then(|host| host.status.as_ref()).is_some_and(|status| {
            status.available.as_ref().map(|free| &free.memory)
                == status.capacity.as_ref().map(|all| &all.memory)
        })
    })
    .await?;
    Ok(())
}

/// Deletes the VirtualMachine and waits until nothing at all is left of it.
async fn remove(lab: &Lab, guest: &Guest) -> anyhow::Result<()> {
    machines(lab)
        .delete(&guest.name, &DeleteParams::default())
        .await?;
    guest::until(&machines(lab), &guest.name, SOON, "it is gone", |object| {
        object.is_none()
    })
    .await?;
    for host in &lab.hosts {
        // Journals of migrations that have ended are kept for a day, under the migrations' own names.
        until(
            &format!("nothing of {} is left on {}", guest.name, host.name),
            || {
                let files = host.files()?;
                let mut of_guest = files.iter().map(|path| path.to_string_lossy());
                Ok(!of_guest.any(|path| path.contains(&guest.uid)) && processes(host, &guest.uid) == 0)
            },
        )
        .await?;
    }
    std::fs::remove_file(lab.pool().join(format!("{}.raw", guest.name)))?;
    Ok(())
}

/// Kills agent and controller, starts both again, and waits until the controller has judged every guest anew.
async fn restart_all(lab: &mut Lab) -> anyhow::Result<()> {
    lab.kill_controller();
    lab.restart_agent(1)?;
    lab.start_controller()?;
    lab.wait_until_ready().await?;
    // A guest that is made now comes after those that the controller finds at its start.
    let after = start(lab, "after", "Persistent").await?;
    remove(lab, &after).await
}

async fn a_persistent_guest_that_powers_off_stays_on_its_host(lab: &mut Lab) -> anyhow::Result<()> {
    let guest = start(lab, "persistent", "Persistent").await?;
    guest.tell(&lab.hosts[0], "p")?;
    let (reason, words) = told(lab, &guest, GuestState::ShutOff, &[]).await?;
    ensure!(
        reason == "ShutOff" && !words.contains("transient"),
        "{reason}: {words}"
    );
    lab.restart_agent(1)?;
    lab.wait_until_ready().await?;
    told(lab, &guest, GuestState::ShutOff, &[]).await?;
    ensure!(contains(&record(&lab.hosts[0], &guest.uid), "pc-q35-10.0")?);
    let console = directory(&lab.hosts[0], &guest.uid).join("console.log");
    ensure!(console.exists(), "its console is there to look at");
    remove(lab, &guest).await
}

async fn a_transient_guest_that_powers_off_is_forgotten_and_not_started_again(
    lab: &mut Lab,
) -> anyhow::Result<()> {
    let guest = start(lab, "transient", "Transient").await?;
    guest.tell(&lab.hosts[0], "p")?;
    let forgotten = ["transient", "forgotten its definition"];
    let (reason, words) = told(lab, &guest, GuestState::ShutOff, &forgotten).await?;
    ensure!(reason == "ShutOff", "{reason}: {words}");
    only_the_note_is_left(lab, &lab.hosts[0], &guest).await?;
    restart_all(lab).await?;
    told(lab, &guest, GuestState::ShutOff, &[]).await?;
    only_the_note_is_left(lab, &lab.hosts[0], &guest).await?;
    remove(lab, &guest).await
}

async fn a_transient_guest_whose_process_dies_is_forgotten(lab: &mut Lab) -> anyhow::Result<()> {
    let guest = start(lab, "killed", "Transient").await?;
    ensure!(lab.hosts[0].hypervisors().len() == 1, "the guest is the only one");
    lab.hosts[0].kill_hypervisor()?;
    let (reason, words) = told(lab, &guest, GuestState::Crashed, &["transient"]).await?;
    ensure!(reason == "Crashed", "{reason}: {words}");
    only_the_note_is_left(lab, &lab.hosts[0], &guest).await?;
    lab.restart_agent(1)?;
    lab.wait_until_ready().await?;
    told(lab, &guest, GuestState::Crashed, &[]).await?;
    remove(lab, &guest).await
}

async fn a_transient_guest_that_has_moved_is_forgotten_where_it_ends(lab: &mut Lab) -> anyhow::Result<()> {
    let guest = start(lab, "moved", "Transient").await?;
    let migration = serde_json::from_value(json!({
        "apiVersion": "godwit.dev/v1alpha1",
        "kind": "VirtualMachineMigration",
        "metadata": {"name": "moved", "namespace": NAMESPACE},
        "spec": {
            "virtualMachine": "moved",
            "destination": {"host": "h2"},
            "controlFlow": "ManagedDirect",
            "security": {"require": "None"},
        },
    }))?;
    migrations(lab).create(&PostParams::default(), &migration).await?;
    let succeeded = |migration: Option<&VirtualMachineMigration>| {
        migration
            .and_then(|migration| migration.status.as_ref())
            .and_then(|status| find_condition(&status.conditions, "Succeeded"))
            .is_some_and(|succeeded| succeeded.status == ConditionStatus::True)
    };
    guest::until(&migrations(lab), "moved", SOON, "it has moved", succeeded).await?;
    until("its source forgets it", || {
        Ok(!record(&lab.hosts[0], &guest.uid).exists())
    })
    .await?;
    guest.tell(&lab.hosts[1], "p")?;
    let forgotten = ["h2 has forgotten its definition"];
    let (reason, words) = told(lab, &guest, GuestState::ShutOff, &forgotten).await?;
    ensure!(reason == "ShutOff", "{reason}: {words}");
    only_the_note_is_left(lab, &lab.hosts[1], &guest).await?;
    remove(lab, &guest).await
}

/// A journal of a format that the agent does not know. Its head stays the same in every format.
fn newer_journal(migration: &str, guest: &str) -> Vec<u8> {
    const HEADER: usize = 4096;
    const SIZE: usize = 65536;
    let format = 999_u32.to_le_bytes();
    let mut content = serde_json::to_vec(
        &json!({"migration": migration, "guest": guest, "role": "Source", "boot_id": "another"}),
    )
    .unwrap();
    content.resize(HEADER - 16, 0);
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&format);
    checksum.update(&content);
    let mut bytes = b"GODWITJ\0".to_vec();
    bytes.extend(format);
    bytes.extend(checksum.finalize().to_le_bytes());
    bytes.extend(content);
    bytes.resize(SIZE, 0);
    bytes
}

/// Waits until h1's condition MigrationsResolved has that status and reason, and gives its words.
async fn resolved(lab: &Lab, status: ConditionStatus, reason: &str) -> anyhow::Result<String> {
    let hosts = Api::<VirtualMachineHost>::all(lab.client());
    let of = |host: Option<&VirtualMachineHost>| {
        let conditions = host
            .and_then(|host| host.status.as_ref())
            .map(|status| &status.conditions)?;
        find_condition(conditions, "MigrationsResolved").cloned()
    };
    let host = guest::until(&hosts, "h1", SOON, reason, |host| {
        of(host).is_some_and(|it| it.status == status && it.reason == reason)
    })
    .await?;
    Ok(of(host.as_ref()).context("it is gone")?.message)
}

async fn a_guest_of_which_a_newer_journal_speaks_is_left_alone(lab: &mut Lab) -> anyhow::Result<()> {
    let guest = start(lab, "alone", "Transient").await?;
    resolved(lab, ConditionStatus::True, "AllResolved").await?;
    let migration = "5f2a1c52-7d0d-4c52-9a51-6d2f7be64d11";
    let journals = lab.hosts[0].directory.join("state/journals");
    std::fs::create_dir_all(&journals)?;
    let journal = journals.join(format!("{migration}.journal"));
    std::fs::write(&journal, newer_journal(migration, &guest.uid))?;
    lab.restart_agent(1)?;
    let words = resolved(lab, ConditionStatus::False, "JournalNewer").await?;
    ensure!(
        words.contains(migration) && words.contains(&guest.uid) && words.contains("newer agent"),
        "{words}"
    );
    guest.wait_for_ticks(20, SOON)?;

    // It is not even stopped by order: what it may do is written where this agent cannot read it.
    machines(lab)
        .delete(&guest.name, &DeleteParams::default())
        .await?;
    let log = lab.records().join("logs/controller.log");
    until("the order to stop it is refused", || {
        contains(&log, "newer agent")
    })
    .await?;
    guest.wait_for_ticks(20, SOON)?;
    ensure!(processes(&lab.hosts[0], &guest.uid) == 1, "it runs");

    std::fs::remove_file(&journal)?;
    lab.restart_agent(1)?;
    resolved(lab, ConditionStatus::True, "AllResolved").await?;
    guest::until(&machines(lab), &guest.name, 2 * SOON, "it is gone", |object| {
        object.is_none()
    })
    .await?;
    ensure!(processes(&lab.hosts[0], &guest.uid) == 0, "a process is left");
    Ok(())
}
