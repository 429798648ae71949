//! A guest of the lab, as the person sees it who applied its VirtualMachine: its objects, its console at every host,
//! and what the observer makes of its lines.

use std::fmt::Debug;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use godwit_crds::virtual_machine::GuestState;
use godwit_crds::{GuestRecord, VirtualMachine, VirtualMachineMigration};
use godwit_guest::line::Line;
use kube::api::{Api, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Client, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::console::type_at;
use crate::observer::Observer;
use crate::{Host, Lab};

/// The namespace in which the lab's guests and migrations are made.
pub const NAMESPACE: &str = "default";

/// How long a guest may take from its VirtualMachine to its first tick. Most of it is an emulated boot.
pub const STARTS_WITHIN: Duration = Duration::from_secs(120);

/// A guest, observed from its first line on.
#[derive(Debug)]
pub struct Guest {
    /// The VirtualMachine's name.
    pub name: String,
    /// The VirtualMachine's UID, by which hosts know the guest.
    pub uid: String,
    /// Reads its console on every host.
    pub observer: Observer,
}

impl Guest {
    /// Creates a VirtualMachine and begins to observe its guest, which means to leave `interval` between ticks.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn create(lab: &Lab, machine: &VirtualMachine, interval: Duration) -> anyhow::Result<Self> {
        let created = machines(lab).create(&PostParams::default(), machine).await?;
        Self::observe(lab, &created, interval)
    }

    /// Begins to observe the guest of a VirtualMachine that exists.
    ///
    /// # Errors
    /// When the object has no UID: it is not the API server's.
    pub fn observe(lab: &Lab, machine: &VirtualMachine, interval: Duration) -> anyhow::Result<Self> {
        let uid = machine.uid().context("the VirtualMachine has no UID")?;
        let observer = Observer::start(interval);
        for host in &lab.hosts {
            observer.follow(&host.name, &directory(host, &uid).join("console.log"));
        }
        Ok(Self {
            name: machine.name_any(),
            uid,
            observer,
        })
    }

    /// Waits until the VirtualMachine says that its guest runs and the guest has begun to tick.
    ///
    /// # Errors
    /// When that takes longer than [`STARTS_WITHIN`].
    pub async fn wait_until_it_ticks(&self, lab: &Lab) -> anyhow::Result<VirtualMachine> {
        let machine = until(
            &machines(lab),
            &self.name,
            STARTS_WITHIN,
            "the guest runs",
            |machine| {
                machine
                    .and_then(|machine| machine.status.as_ref())
                    .is_some_and(|status| status.state == Some(GuestState::Running))
            },
        )
        .await?
        .context("the VirtualMachine is gone")?;
        self.wait_for_ticks(1, STARTS_WITHIN)?;
        Ok(machine)
    }

    /// Waits until the guest has ticked so many times more than it has now.
    ///
    /// # Errors
    /// When it does not within `patience`.
    pub fn wait_for_ticks(&self, more: u64, patience: Duration) -> anyhow::Result<()> {
        let mut goal = None;
        let ticked = blocking(|| {
            self.observer.wait_until(patience, |lines| {
                let last = lines.iter().rev().find_map(|seen| seen.line.tick()).unwrap_or(0);
                last >= *goal.get_or_insert(last + more)
            })
        });
        if !ticked {
            bail!("{} has not ticked {more} times within {patience:?}", self.name);
        }
        Ok(())
    }

    /// Waits until the guest's last tick came out at that host.
    ///
    /// # Errors
    /// When it does not within `patience`.
    pub fn wait_for_ticks_at(&self, host: &str, patience: Duration) -> anyhow::Result<()> {
        let ticked = blocking(|| {
            self.observer.wait_until(patience, |lines| {
                lines
                    .iter()
                    .rev()
                    .find(|seen| seen.line.tick().is_some())
                    .is_some_and(|seen| seen.host == host)
            })
        });
        if !ticked {
            bail!("{} has not ticked on {host} within {patience:?}", self.name);
        }
        Ok(())
    }

    /// Has all of the guest's memory checked, at the host that runs it, and waits for the outcome, good or bad.
    ///
    /// # Errors
    /// When the guest does not hear or does not answer within `patience`.
    pub fn check_memory(&self, host: &Host, patience: Duration) -> anyhow::Result<()> {
        let begun_after = self
            .observer
            .lines()
            .iter()
            .rev()
            .find_map(|seen| seen.line.tick())
            .unwrap_or(0);
        self.tell(host, "check\n")?;
        let checked = blocking(|| {
            self.observer.wait_until(patience, |lines| {
                lines.iter().rev().any(|seen| match seen.line {
                    Line::Check { since_tick, .. } => since_tick >= begun_after,
                    Line::Hello { .. }
                    | Line::Tick { .. }
                    | Line::Accepted { .. }
                    | Line::Refused { .. }
                    | Line::Count { .. } => false,
                })
            })
        });
        if !checked {
            bail!("{} has not checked its memory within {patience:?}", self.name);
        }
        Ok(())
    }

    /// Types something at the guest's console on a host.
    ///
    /// # Errors
    /// When the guest has no console there.
    pub fn tell(&self, host: &Host, words: &str) -> anyhow::Result<()> {
        type_at(&directory(host, &self.uid).join("console.sock"), words)
    }

    /// Its record.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn record(&self, client: Client) -> anyhow::Result<GuestRecord> {
        Ok(Api::all(client).get(&self.uid).await?)
    }
}

/// The directory of a guest on a host. It is there as long as the guest is.
#[must_use]
pub fn directory(host: &Host, uid: &str) -> PathBuf {
    host.directory.join("run/guests").join(uid)
}

/// The VirtualMachines of the lab.
#[must_use]
pub fn machines(lab: &Lab) -> Api<VirtualMachine> {
    Api::namespaced(lab.client(), NAMESPACE)
}

/// The VirtualMachineMigrations of the lab.
#[must_use]
pub fn migrations(lab: &Lab) -> Api<VirtualMachineMigration> {
    Api::namespaced(lab.client(), NAMESPACE)
}

/// Waits until an object is such that `enough` says so, and gives it back; None stands for an object that is gone.
///
/// # Errors
/// When that takes longer than `patience`; the message says in what state the object is.
pub async fn until<K>(
    api: &Api<K>,
    name: &str,
    patience: Duration,
    what: &str,
    enough: impl Fn(Option<&K>) -> bool + Send,
) -> anyhow::Result<Option<K>>
where
    K: kube::Resource + Clone + Debug + Serialize + DeserializeOwned + Send + 'static,
{
    let condition = await_condition(api.clone(), name, |object: Option<&K>| enough(object));
    match tokio::time::timeout(patience, condition).await {
        Ok(object) => Ok(object?),
        Err(_) => {
            let object = api
                .get_opt(name)
                .await?
                .map(|object| serde_json::to_string(&object));
            let object = object
                .transpose()?
                .unwrap_or_else(|| "it does not exist".to_owned());
            bail!("not within {patience:?}: {what}; {name}: {object}");
        }
    }
}

/// Lets other tasks go on elsewhere while this one blocks.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}
