//! Keeps the VirtualMachineHost and its Lease true. Nothing is written that has not changed, the Lease apart; an
//! API server that does not answer is asked again, and the guests do not notice.

use std::time::Duration;

use godwit_crds::{VirtualMachineHost, VirtualMachineHostSpec, VirtualMachineHostStatus};
use godwit_protocol::CurrentCredentials;
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::api::{ApiError, FIELD_MANAGER, within};
use super::health::Seen;
use super::lease::HostLease;
use super::machine::Machine;
use super::status::{Facts, in_order, own_part, same_spec, status};
use crate::clock;
use crate::guests::{GuestView, Guests, Role};
use crate::kernel_tls::KernelTls;
use crate::migration::Migrations;
use crate::pools::Pools;
use crate::tunnel::buffers;

/// How often the lease is renewed and the host object looked at.
const PERIOD: Duration = Duration::from_secs(10);
/// How long changes are gathered before they are written.
const GATHER: Duration = Duration::from_millis(100);
/// How long what is to be told waits for a guest that arrives, or is handed over: what takes longer is worth telling of.
const MOVE: Duration = Duration::from_secs(2);
/// The first and the longest wait after a failure.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// How often it is tried whether the state directory takes writes.
const STATE_PERIOD: Duration = Duration::from_secs(30);
/// How long the last word may take when the agent is stopped.
const FAREWELL: Duration = Duration::from_secs(2);

/// Publishes one host.
pub struct Publisher {
    hosts: Api<VirtualMachineHost>,
    lease: HostLease,
    name: String,
    spec: VirtualMachineHostSpec,
    boot_id: String,
    machine: Machine,
    kernel_tls: KernelTls,
    pools: Pools,
    certificate: CurrentCredentials,
    guests: Guests,
    migrations: Migrations,
    hypervisor: watch::Receiver<Seen>,
    stopping: bool,
    /// Errors of pools that were said already.
    complaints: Vec<String>,
    /// The guests that the host object tells of. `None`: it has told nothing yet.
    told: Option<Vec<GuestView>>,
}

/// What the publisher needs to know of its host.
pub struct HostFacts {
    /// The host's name.
    pub name: String,
    /// Where and how it is reached.
    pub spec: VirtualMachineHostSpec,
    /// The namespace of its Lease.
    pub namespace: String,
    /// The kernel's boot id.
    pub boot_id: String,
    /// What it has; its memory less what guests do not get.
    pub machine: Machine,
    /// What its kernel said about TLS.
    pub kernel_tls: KernelTls,
    /// Where guests' files lie.
    pub pools: Pools,
    /// The agent's certificate, which is renewed while the agent runs.
    pub certificate: CurrentCredentials,
}

/// Work that is done again and again, sooner after a failure.
struct Due {
    at: Instant,
    failures: u32,
}

impl Due {
    fn now() -> Self {
        Self {
            at: Instant::now(),
            failures: 0,
        }
    }

    fn is_due(&self) -> bool {
        self.at <= Instant::now()
    }

    /// Notes an outcome; returns whether it is another one than before.
    fn done(&mut self, succeeded: bool) -> bool {
        let before = self.failures;
        self.failures = if succeeded { 0 } else { before.saturating_add(1) };
        let wait = if succeeded {
            PERIOD
        } else {
            jittered(backoff(before))
        };
        self.at = Instant::now() + wait;
        succeeded != (before == 0)
    }
}

/// The wait after the nth failure in a row, counted from 0.
fn backoff(failures: u32) -> Duration {
    RETRY
        .0
        .saturating_mul(2u32.saturating_pow(failures.min(16)))
        .min(RETRY.1)
}

/// Between three quarters and the whole of `wait`, so that hosts do not come back in step.
fn jittered(wait: Duration) -> Duration {
    let (random, _) = uuid::Uuid::new_v4().as_u64_pair();
    wait.mul_f64(0.75 + 0.25 * (random >> 11) as f64 / (1u64 << 53) as f64)
}

impl Publisher {
    /// A publisher over this client.
    pub fn new(
        client: Client,
        host: HostFacts,
        guests: Guests,
        migrations: Migrations,
        hypervisor: watch::Receiver<Seen>,
    ) -> Self {
        Self {
            hosts: Api::all(client.clone()),
            lease: HostLease::new(client, &host.namespace, &host.name),
            name: host.name,
            spec: host.spec,
            boot_id: host.boot_id,
            machine: host.machine,
            kernel_tls: host.kernel_tls,
            pools: host.pools,
            certificate: host.certificate,
            guests,
            migrations,
            hypervisor,
            stopping: false,
            complaints: Vec::new(),
            told: None,
        }
    }

    /// Publishes until `stop`, and then says that the agent is being stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        let (mut lease, mut host) = (Due::now(), Due::now());
        let mut changes = self.guests.changes();
        let mut next_state = Instant::now() + STATE_PERIOD;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep_until(lease.at.min(host.at).min(next_state)) => {}
                // While the API server does not answer, changes wait for the next attempt.
                Ok(()) = changes.changed(), if host.failures == 0 => {
                    tokio::time::sleep(GATHER).await;
                    host.at = Instant::now();
                }
                Ok(()) = self.hypervisor.changed(), if host.failures == 0 => host.at = Instant::now(),
            }
            if next_state <= Instant::now() {
                let before = self.guests.state_problem().is_some();
                if self.guests.try_state().await.is_err() != before {
                    host.at = Instant::now();
                }
                next_state = Instant::now() + STATE_PERIOD;
            }
            if lease.is_due() {
                let renewed = self.lease.renew().await;
                if lease.done(renewed.is_ok()) {
                    tell("the lease", &renewed);
                    // While it could not be renewed, the host may have been written off.
                    host.at = Instant::now();
                }
            }
            if host.is_due() {
                changes.mark_unchanged();
                self.hypervisor.mark_unchanged();
                let published = self.publish(&stop).await;
                if host.done(published.is_ok()) {
                    tell("the host object", &published);
                }
            }
        }
        self.stopping = true;
        if !matches!(
            tokio::time::timeout(FAREWELL, self.publish(&stop)).await,
            Ok(Ok(()))
        ) {
            warn!("the API server could not be told that the agent is being stopped");
        }
    }

    /// A guest that is handed over is seen as standing still here, and as gone a moment later, and one that arrives as
    /// waiting, and as running a moment later: one word of it is enough, and nobody writes to the API server while it
    /// stands still. The destination does not know when that is before it has the guest, so whatever there is to tell waits
    /// for one that has just begun to arrive.
    async fn moves_first(&self, stop: &CancellationToken) {
        let deadline = Instant::now() + MOVE;
        while self.moves() && Instant::now() < deadline && !stop.is_cancelled() {
            tokio::time::sleep(GATHER).await;
        }
    }

    fn moves(&self) -> bool {
        let arrives = |told: &[GuestView]| arrives_anew(told, &self.guests.list());
        self.migrations.handing_over() || self.told.as_deref().is_some_and(arrives)
    }

    /// Compares the host object with what is so, and writes what differs.
    async fn publish(&mut self, stop: &CancellationToken) -> Result<(), ApiError> {
        let apply = PatchParams::apply(FIELD_MANAGER).force();
        let observed = within(self.hosts.get_opt(&self.name)).await?;
        let observed = match observed {
            Some(host) if same_spec(&host.spec, &self.spec) => host,
            Some(_) | None => {
                let patch = Patch::Apply(json!({
                    "apiVersion": "godwit.dev/v1alpha1",
                    "kind": "VirtualMachineHost",
                    "metadata": {"name": self.name},
                    "spec": self.spec,
                }));
                within(self.hosts.patch(&self.name, &apply, &patch)).await?
            }
        };
        let before = observed.status.clone().unwrap_or_default();
        self.moves_first(stop).await;
        let mut facts = self.facts().await;
        if self.moves() {
            // Since then: what is known now is not to be written in a moment.
            self.moves_first(stop).await;
            facts = self.facts().await;
        }
        self.told = Some(facts.guests.clone());
        let wanted = status(&facts, &before, observed.metadata.generation, clock::timestamp());
        if observed.status.is_some() && in_order(&before) == in_order(&wanted) {
            return Ok(());
        }
        self.write_status(&own_part(&wanted), &apply).await
    }

    async fn write_status(
        &self,
        status: &VirtualMachineHostStatus,
        apply: &PatchParams,
    ) -> Result<(), ApiError> {
        let patch = Patch::Apply(json!({
            "apiVersion": "godwit.dev/v1alpha1",
            "kind": "VirtualMachineHost",
            "metadata": {"name": self.name},
            "status": status,
        }));
        within(self.hosts.patch_status(&self.name, apply, &patch))
            .await
            .map(drop)
    }

    async fn facts(&mut self) -> Facts {
        let pools = self.pools.clone();
        // A pool may be a network file system that hangs; it must not hang the agent.
        let published = tokio::task::spawn_blocking(move || pools.publish())
            .await
            .unwrap_or_default();
        let complaints: Vec<_> = published.1.iter().map(ToString::to_string).collect();
        if complaints != self.complaints {
            for complaint in &complaints {
                warn!(%complaint, "a pool cannot be used");
            }
            self.complaints = complaints;
        }
        Facts {
            boot_id: self.boot_id.clone(),
            machine: self.machine,
            cpus_in_use: self.guests.cpus_in_use(),
            memory_in_use: self.guests.memory_in_use(),
            hypervisor: self.hypervisor.borrow().clone(),
            state_problem: self.guests.state_problem(),
            // What lies beyond the calendar does not run out.
            certificate_expires: Timestamp::try_from(self.certificate.get().valid_until())
                .unwrap_or(Timestamp::MAX),
            unresolved: self.migrations.unresolved(),
            walls_missing: self.guests.walls_missing(),
            // A host that has no socket left has other conditions that tell it.
            buffers_small: buffers::probe().map_or_else(|_| Vec::new(), |buffers| buffers.lacks()),
            kernel_tls: self.kernel_tls.clone(),
            stopping: self.stopping,
            pools: published.0,
            guests: self.guests.list(),
        }
    }
}

fn arrives(guest: &GuestView) -> bool {
    match guest.role {
        Role::Arriving { .. } => true,
        Role::Held | Role::Leaving { .. } => false,
    }
}

/// Whether a guest arrives of which that was not told.
fn arrives_anew(told: &[GuestView], now: &[GuestView]) -> bool {
    let known = |guest: &GuestView| {
        let mut told = told.iter().filter(|told| arrives(told));
        told.any(|told| told.identity.uid == guest.identity.uid)
    };
    now.iter().any(|guest| arrives(guest) && !known(guest))
}

fn tell(what: &str, outcome: &Result<(), ApiError>) {
    match outcome {
        Ok(()) => info!("{what} is written again"),
        Err(error) => {
            warn!(%error, "{what} could not be written; it is tried again, and the guests do not notice")
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use super::*;
    use crate::guests::GuestIdentity;
    use godwit_crds::virtual_machine::GuestState;

    #[test]
    fn waits_grow_and_have_a_bound() {
        assert_eq!(backoff(0), Duration::from_millis(500));
        assert_eq!(backoff(2), Duration::from_secs(2));
        assert_eq!(backoff(40), Duration::from_secs(10));
        for _ in 0..100 {
            let wait = jittered(Duration::from_secs(4));
            assert!(
                (Duration::from_secs(3)..=Duration::from_secs(4)).contains(&wait),
                "{wait:?}"
            );
        }
    }

    fn guest(uid: &str, role: Role) -> GuestView {
        GuestView {
            identity: GuestIdentity {
                uid: uid.into(),
                namespace: "default".into(),
                name: uid.into(),
            },
            epoch: 1,
            state: GuestState::Running,
            since_micros: None,
            role,
            note: None,
        }
    }

    #[test]
    fn an_arrival_is_waited_for_until_it_was_told_of() {
        let arriving = |uid| {
            guest(
                uid,
                Role::Arriving {
                    migration: "m".into(),
                },
            )
        };
        let a = guest("a", Role::Held);
        assert!(arrives_anew(&[], &[arriving("c")]));
        assert!(arrives_anew(
            std::slice::from_ref(&a),
            &[arriving("c"), a.clone()]
        ));
        // It has left, and comes back.
        assert!(arrives_anew(std::slice::from_ref(&a), &[arriving("a")]));
        assert!(arrives_anew(&[arriving("b")], &[arriving("b"), arriving("c")]));
        assert!(!arrives_anew(&[arriving("c")], &[a.clone(), arriving("c")]));
        assert!(!arrives_anew(&[arriving("c")], &[guest("c", Role::Held)]));
        assert!(!arrives_anew(&[], &[a]));
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_change_of_fortune_is_told() {
        let mut due = Due::now();
        assert!(!due.done(true));
        assert!(due.done(false));
        assert!(!due.done(false));
        assert!(!due.is_due());
        assert!(due.done(true));
        tokio::time::advance(PERIOD).await;
        assert!(due.is_due());
    }
}
