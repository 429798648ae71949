//! `make demo`: a running guest moves from one host to another and back, because of two manifests that went through a
//! real API server, and is shown never to have stopped counting.
//!
//! It ends clean and with status 0 only if all of it is so. `KEEP=1` leaves everything running.

mod follow;
mod report;
mod screen;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use godwit_lab::guest::{self, Guest, STARTS_WITHIN};
use godwit_lab::initramfs::KERNEL_OPTIONS;
use godwit_lab::{Lab, LabOptions, cache};
use kube::Api;

use follow::follow;
use report::{Leg, table};
use screen::Screen;

/// The guest's VirtualMachine.
const GUEST: &str = "web1";

/// What the guest leaves between ticks.
const INTERVAL: Duration = Duration::from_millis(5);

/// The limit on what each host sends, in Mbit/s: else memory would be across before anyone saw it travel.
const LINK: u32 = 1000;

/// How many ticks are watched before the first move and after the last.
const WATCHED_TICKS: u64 = 100;

/// How long the guest may take to look through all of its memory.
const CHECKED_WITHIN: Duration = Duration::from_secs(30);

/// How long hosts may take to let go of what a guest that has left used there.
const GONE_WITHIN: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let screen = Screen::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            tokio::select! {
                outcome = demonstrate(&screen) => outcome,
                _ = tokio::signal::ctrl_c() => bail!("interrupted; what was started has been taken down"),
            }
        })
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            screen.plain("");
            eprintln!("demo: FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn demonstrate(screen: &Screen) -> anyhow::Result<()> {
    let keep = std::env::var_os("KEEP").is_some_and(|value| !value.is_empty() && value != "0");
    screen.plain("A running guest moves from one host to another and back. All of it takes some 30 s.");
    let lab = bring_up(screen).await?;
    let outcome = show(&lab, screen).await;
    if let Err(error) = outcome {
        let logs = lab.records().join("logs");
        return Err(error.context(format!("logs are in {}", logs.display())));
    }
    if keep {
        return leave(lab, screen).await;
    }
    let logs = lab.records().join("logs");
    screen.line("taking everything down");
    lab.stop().await.context("take the lab down")?;
    screen.line(&format!("done; nothing is left but logs: {}", logs.display()));
    Ok(())
}

async fn bring_up(screen: &Screen) -> anyhow::Result<Lab> {
    screen.step(
        "A real control plane, two hosts with agents, the controller",
        "about 5 s, longer when the machine is busy",
    );
    let teller = screen.clone();
    let lab = Lab::start(LabOptions::new("demo").tell(Arc::new(move |step| teller.line(step)))).await?;
    if lab.network.separate() {
        for number in 1..=lab.hosts.len() {
            lab.network.shape(number, Some(LINK))?;
        }
        screen.line(&format!(
            "up; the link between the hosts is limited to {LINK} Mbit/s"
        ));
    } else {
        screen
            .line("up; not root, so the link between the hosts has no limit and the move will be over soon");
    }
    Ok(lab)
}

async fn show(lab: &Lab, screen: &Screen) -> anyhow::Result<()> {
    let [h1, h2] = lab.hosts.as_slice() else {
        bail!("the lab has {} hosts", lab.hosts.len());
    };
    screen.step(
        "A Linux guest that counts every 5 ms and changes 4 MiB of its memory each second",
        "about 5 s: its processor is emulated where there is no KVM",
    );
    let manifest = machine(&h1.name);
    apply(lab, screen, GUEST, &manifest)?;
    let object = guest::machines(lab).get(GUEST).await?;
    let guest = Guest::observe(lab, &object, INTERVAL)?;
    guest.wait_until_it_ticks(lab).await?;
    screen.line(&format!("the guest runs on {} and has begun to count", h1.name));
    guest.wait_for_ticks(WATCHED_TICKS, STARTS_WITHIN)?;

    let mut legs = Vec::new();
    for (from, to, estimate) in [
        (h1, h2, "about 3 s: some 340 MiB at 1 Gbit/s"),
        (h2, h1, "the same again"),
    ] {
        screen.step(
            &format!("It moves from {} to {} while it runs", from.name, to.name),
            estimate,
        );
        let name = format!("{GUEST}-to-{}", to.name);
        let manifest = migration(&name, &to.name);
        let applied = Instant::now();
        apply(lab, screen, &name, &manifest)?;
        let moved = follow(&guest::migrations(lab), &name, applied, screen).await?;
        let leg = Leg {
            from: from.name.clone(),
            to: to.name.clone(),
            moved,
        };
        guest.wait_for_ticks(WATCHED_TICKS, STARTS_WITHIN)?;
        legs.push(leg);
    }

    screen.step("Is everything where it should be?", "about 3 s");
    guest.check_memory(h1, CHECKED_WITHIN)?;
    screen.line("the guest has looked through all of its memory");
    settled(lab, &guest, 1 + legs.len()).await?;
    screen.line("record, status and hosts agree; nothing of the guest is left where it is not");
    let table = table(&legs, &guest.observer.verdict())?;
    screen.plain(&format!("\n{table}\n"));
    Ok(())
}

/// Whether the objects say what is so, and the host that the guest has left keeps nothing of it.
async fn settled(lab: &Lab, guest: &Guest, epoch: usize) -> anyhow::Result<()> {
    let [h1, h2] = lab.hosts.as_slice() else {
        bail!("the lab has {} hosts", lab.hosts.len());
    };
    let record = guest.record(lab.client()).await?.spec;
    if record.holder != h1.name || usize::try_from(record.epoch) != Ok(epoch) {
        bail!(
            "the record says {} at epoch {}, not {} at epoch {epoch}",
            record.holder,
            record.epoch,
            h1.name
        );
    }
    let api: Api<godwit_crds::VirtualMachine> = guest::machines(lab);
    let said = |machine: Option<&godwit_crds::VirtualMachine>| {
        machine
            .and_then(|machine| machine.status.as_ref())
            .is_some_and(|status| {
                status.host.as_deref() == Some("h1")
                    && status.epoch.and_then(|said| usize::try_from(said).ok()) == Some(epoch)
                    && status.migration.is_none()
            })
    };
    guest::until(
        &api,
        GUEST,
        GONE_WITHIN,
        "its status says where the guest is",
        said,
    )
    .await?;
    let (here, there) = (h1.hypervisors().len(), h2.hypervisors().len());
    if (here, there) != (1, 0) {
        bail!("h1 has {here} hypervisors and h2 has {there}, and there is one guest, on h1");
    }
    if guest::directory(h2, &guest.uid).exists() {
        bail!("{} is left", guest::directory(h2, &guest.uid).display());
    }
    Ok(())
}

/// Applies a manifest by kubectl, and shows it.
fn apply(lab: &Lab, screen: &Screen, name: &str, manifest: &str) -> anyhow::Result<()> {
    let path = lab.records().join(format!("{name}.yaml"));
    std::fs::write(&path, manifest).with_context(|| format!("write {}", path.display()))?;
    screen.line(&format!("kubectl apply -f {name}.yaml"));
    screen.manifest(manifest);
    let said = run(lab.kubectl()?.arg("apply").arg("-f").arg(&path))?;
    screen.line(said.trim());
    Ok(())
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().context("run kubectl")?;
    if !output.status.success() {
        bail!("kubectl: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn machine(host: &str) -> String {
    format!(
        "apiVersion: godwit.dev/v1alpha1
kind: VirtualMachine
metadata:
  name: {GUEST}
  namespace: {}
spec:
  host: {host}
  machine:
    type: pc-q35-10.0
  cpu:
    count: 1
    model: qemu64
  memory: 512Mi
  boot:
    kernel:
      image:
        file: vmlinuz
      initramfs:
        file: initramfs.cpio
      commandLine: >-
        {}
        godwit.fill=256M godwit.dirty=4M
",
        guest::NAMESPACE,
        KERNEL_OPTIONS.split_whitespace().collect::<Vec<_>>().join(" ")
    )
}

fn migration(name: &str, to: &str) -> String {
    format!(
        "apiVersion: godwit.dev/v1alpha1
kind: VirtualMachineMigration
metadata:
  name: {name}
  namespace: {}
spec:
  virtualMachine: {GUEST}
  destination:
    host: {to}
  controlFlow: PeerToPeer
  transport: Tunnelled
  security:
    require: Encrypted
",
        guest::NAMESPACE
    )
}

/// Leaves everything running and says what can be done with it.
async fn leave(lab: Lab, screen: &Screen) -> anyhow::Result<()> {
    let programs = cache::programs()?;
    let kubectl = cache::tool("kubectl")?;
    let tools = kubectl.parent().unwrap_or(Path::new("")).to_owned();
    let number = lab.number();
    let consoles: Vec<_> = lab
        .hosts
        .iter()
        .map(|host| host.directory.join("run/guests/*/console.log"))
        .collect();
    let records = lab.leave().await?;
    screen.plain("Everything is left running. To use it:");
    screen.plain(&format!(
        "  export KUBECONFIG={}",
        records.join("administrator.kubeconfig").display()
    ));
    screen.plain(&format!(
        "  export PATH={}:{}:$PATH",
        programs.display(),
        tools.display()
    ));
    for command in [
        "kubectl get godwit -A",
        "kubectl godwit migrate web1 --to h2 --tunnelled --wait",
        "kubectl godwit guests",
        "kubectl describe vmmig web1-to-h2",
    ] {
        screen.plain(&format!("  {command}"));
    }
    if let Some(console) = consoles.first() {
        screen.plain(&format!("  tail -f {}", console.display()));
    }
    screen.plain(&format!(
        "To remove it:\n  {}/lab down {number}",
        programs.display()
    ));
    Ok(())
}
