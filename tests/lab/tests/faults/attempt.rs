//! A migration of a guest from host 1 to host 2, how far it has come, and the judgement of its end.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use godwit_crds::condition::{Condition, ConditionStatus};
use godwit_crds::migration::{
    ControlFlow, MigrationPhase, SecurityRequirement, Transport, VirtualMachineMigrationStatus,
};
use godwit_crds::virtual_machine::GuestState;
use godwit_crds::{GuestRecord, VirtualMachineMigration};
use godwit_lab::Lab;
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use serde_json::json;

use crate::guest::{Guest, PATIENCE, until, until_within};

/// How long it may take until a connection that hangs counts as broken, and that is told.
const NOTICED_WITHIN: Duration = Duration::from_secs(120);

/// A migration.
pub struct Attempt {
    pub name: String,
    pub uid: String,
}

/// How a migration may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest runs at the source as if nothing had been.
    Stays,
    /// The guest runs at the destination.
    Moved,
    /// The only valid image died.
    Lost,
}

/// How it ended.
#[derive(Clone, Debug)]
pub struct Ended {
    pub end: End,
    pub reason: String,
    pub message: String,
}

impl Attempt {
    /// Orders the move of a guest to a host, driven by the controller.
    pub async fn order(lab: &Lab, guest: &str, to: &str) -> anyhow::Result<Self> {
        Self::order_driven(lab, ControlFlow::ManagedDirect, guest, to).await
    }

    /// Orders the move of a guest to a host, in plain text over the native transport.
    pub async fn order_driven(lab: &Lab, flow: ControlFlow, guest: &str, to: &str) -> anyhow::Result<Self> {
        Self::order_over(lab, flow, Transport::Native, guest, to).await
    }

    /// Orders the move of a guest to a host; what goes through the tunnel is required to be encrypted.
    pub async fn order_over(
        lab: &Lab,
        flow: ControlFlow,
        transport: Transport,
        guest: &str,
        to: &str,
    ) -> anyhow::Result<Self> {
        let require = match transport {
            Transport::Tunnelled => SecurityRequirement::Encrypted,
            Transport::Native => SecurityRequirement::None,
        };
        let object = serde_json::from_value(json!({
            "apiVersion": "godwit.dev/v1alpha1",
            "kind": "VirtualMachineMigration",
            "metadata": {"generateName": "move-", "namespace": "default"},
            "spec": {
                "virtualMachine": guest,
                "destination": {"host": to},
                "controlFlow": flow,
                "transport": transport,
                "security": {"require": require},
            },
        }))?;
        let made = migrations(lab).create(&PostParams::default(), &object).await?;
        Ok(Self {
            name: made.name_any(),
            uid: made.uid().context("the server gives a UID")?,
        })
    }

    pub async fn status(&self, lab: &Lab) -> anyhow::Result<VirtualMachineMigrationStatus> {
        let object: VirtualMachineMigration = migrations(lab).get(&self.name).await?;
        Ok(object.status.unwrap_or_default())
    }

    /// Waits until memory travels, and has begun to arrive.
    pub async fn streams(&self, lab: &Lab) -> anyhow::Result<()> {
        let mut last = None;
        until("memory travels", async || {
            let status = self.status(lab).await?;
            last = Some(status.clone());
            ensure!(
                status.phase <= Some(MigrationPhase::Perform),
                "it was too fast: {status:?}"
            );
            let figures = status.progress.as_ref();
            Ok(figures
                .is_some_and(|figures| figures.transferred_bytes > 0)
                .then_some(()))
        })
        .await
        .with_context(|| format!("{last:?}"))
    }

    /// Waits until what an agent tells reaches the controller anew.
    pub async fn is_heard_again(&self, lab: &Lab) -> anyhow::Result<()> {
        let before = self.status(lab).await?;
        until("the migration's status moves on", async || {
            let now = self.status(lab).await?;
            Ok((now.phase != before.phase || now.progress != before.progress).then_some(()))
        })
        .await
    }

    /// Waits until the status says that godwit cannot go on, and why; tells the words.
    pub async fn needs_decision(&self, lab: &Lab, reason: &str) -> anyhow::Result<String> {
        let mut last = None;
        let found = until_within(NOTICED_WITHIN, "the status tells what is missing", async || {
            let status = self.status(lab).await?;
            let told = condition(&status, "NeedsDecision").cloned();
            last = told.clone();
            let told = told.filter(|told| told.status == ConditionStatus::True && told.reason == reason);
            Ok(told.map(|told| told.message))
        });
        found.await.with_context(|| format!("{last:?}"))
    }

    /// The migration's journal on a host.
    pub fn journal(&self, lab: &mut Lab, host: usize) -> anyhow::Result<PathBuf> {
        let directory = lab.host(host)?.directory.join("state/journals");
        Ok(directory.join(format!("{}.journal", self.uid)))
    }

    /// Waits for its end. A wait for a decision that lasts is an error: all that these cases break comes back.
    pub async fn ended(&self, lab: &Lab) -> anyhow::Result<Ended> {
        self.ended_within(lab, PATIENCE).await
    }

    /// The same where a deadline of godwit's own has to run out first.
    pub async fn ended_within(&self, lab: &Lab, patience: Duration) -> anyhow::Result<Ended> {
        let mut last = VirtualMachineMigrationStatus::default();
        let outcome = until_within(patience, "the migration ends", async || {
            last = self.status(lab).await?;
            let is = |name: &str| condition(&last, name).filter(|c| c.status == ConditionStatus::True);
            if let Some(succeeded) = is("Succeeded") {
                return Ok(Some(Ended {
                    end: End::Moved,
                    reason: succeeded.reason.clone(),
                    message: succeeded.message.clone(),
                }));
            }
            let Some(failed) = is("Failed") else {
                return Ok(None);
            };
            let Some(failure) = &last.failure else {
                bail!("Failed without a failure: {last:?}")
            };
            ensure!(failure.reason == failed.reason, "two reasons: {last:?}");
            let lost = ["GuestLost", "SourceHypervisorDied"].contains(&failed.reason.as_str());
            Ok(Some(Ended {
                end: if lost { End::Lost } else { End::Stays },
                reason: failed.reason.clone(),
                message: failed.message.clone(),
            }))
        })
        .await;
        let ended = outcome.with_context(|| format!("{}: {last:?}", self.name))?;
        ensure!(!ended.reason.is_empty() && !ended.message.is_empty(), "{ended:?}");
        Ok(ended)
    }

    /// Waits until it has succeeded, and checks that its status tells the whole of it, whoever was away meanwhile.
    pub async fn is_complete(&self, lab: &Lab) -> anyhow::Result<()> {
        let ended = self.ended(lab).await?;
        ensure!(ended.end == End::Moved, "{ended:?}");
        let status = self.status(lab).await?;
        let phases: Vec<_> = status.timeline.iter().map(|times| times.phase).collect();
        let all = [
            MigrationPhase::Begin,
            MigrationPhase::Prepare,
            MigrationPhase::Perform,
            MigrationPhase::Finish,
            MigrationPhase::Confirm,
        ];
        ensure!(phases == all, "{phases:?}");
        let whole = status.timeline.iter().all(|times| times.ended_at.is_some());
        ensure!(whole, "{:?}", status.timeline);
        ensure!(status.downtime.is_some(), "no downtime: {status:?}");
        ensure!(status.failure.is_none(), "{status:?}");
        Ok(())
    }

    /// Waits for its end, checks that it is one of `allowed` and that all is as that end says, and removes the guest.
    pub async fn settles(&self, lab: &mut Lab, guest: Guest, allowed: &[End]) -> anyhow::Result<Ended> {
        let ended = self.ended(lab).await?;
        ensure!(
            allowed.contains(&ended.end),
            "{ended:?} where only {allowed:?} may be"
        );
        self.holds(lab, &guest, &ended)
            .await
            .with_context(|| format!("{ended:?}"))?;
        guest.remove(lab).await.with_context(|| format!("{ended:?}"))?;
        Ok(ended)
    }

    /// Checks that all is as the end says.
    pub async fn holds(&self, lab: &mut Lab, guest: &Guest, ended: &Ended) -> anyhow::Result<()> {
        match ended.end {
            End::Stays | End::Moved => {
                let (here, there, epoch) = if ended.end == End::Moved {
                    (2, 1, 2)
                } else {
                    (1, 2, 1)
                };
                let host = format!("h{here}");
                guest.ticks_at(&host).await?;
                guest.nothing_left(lab, there).await?;
                guest.process(lab, here)?;
                guest.memory_is_intact(lab, here).await?;
                guest.disk_is_intact()?;
                guest.ran_once()?;
                let record = record(lab, &guest.uid).await?;
                ensure!(
                    record.spec.holder == host && record.spec.epoch == epoch,
                    "the record says {:?}",
                    record.spec
                );
                let seen = until("the VirtualMachine's status tells where it runs", async || {
                    let status = guest.object(lab).await?.status.unwrap_or_default();
                    let right = status.host.as_deref() == Some(host.as_str())
                        && status.state == Some(GuestState::Running)
                        && status.epoch == Some(epoch);
                    Ok(right.then_some(()))
                });
                seen.await
            }
            End::Lost => {
                guest.state(lab, GuestState::Lost).await?;
                for number in 1..=lab.hosts.len() {
                    let left = guest.processes(lab, number)?;
                    ensure!(
                        left.is_empty(),
                        "a lost guest's process on host {number}: {left:?}"
                    );
                }
                guest.ran_once()
            }
        }
    }
}

pub fn condition<'a>(status: &'a VirtualMachineMigrationStatus, name: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == name)
}

pub async fn record(lab: &Lab, uid: &str) -> anyhow::Result<GuestRecord> {
    Ok(Api::<GuestRecord>::all(lab.client()).get(uid).await?)
}

pub fn migrations(lab: &Lab) -> Api<VirtualMachineMigration> {
    Api::namespaced(lab.client(), "default")
}

/// Runs at once when an entry appears in a journal, in a thread of its own: the next entry is a millisecond away.
pub async fn when_journaled<T: Send + 'static>(
    journal: PathBuf,
    entry: &'static str,
    deed: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    when_any_journaled(journal, &[entry], deed).await
}

/// The same for whichever of several entries comes first.
pub async fn when_any_journaled<T: Send + 'static>(
    journal: PathBuf,
    entries: &[&'static str],
    deed: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    let entries = entries.to_vec();
    let waits = Waits::default();
    let over = Arc::clone(&waits.0);
    let wait = tokio::task::spawn_blocking(move || {
        let deadline = std::time::Instant::now() + PATIENCE;
        while !entries.iter().any(|entry| journaled(&journal, entry)) {
            ensure!(!over.load(Ordering::Relaxed), "nobody waits any more");
            ensure!(
                std::time::Instant::now() < deadline,
                "{} holds none of {entries:?}",
                journal.display()
            );
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(deed())
    });
    wait.await?
}

/// Tells the thread that looks into a journal when nobody waits for it any more.
#[derive(Default)]
struct Waits(Arc<AtomicBool>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether a journal holds an entry.
pub fn journaled(journal: &std::path::Path, entry: &str) -> bool {
    std::fs::read(journal).is_ok_and(|bytes| contains(&bytes, format!("\"{entry}\"").as_bytes()))
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
