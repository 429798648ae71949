//! Two hosts with played guests, whose agents can be killed and started again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use godwit_agent::guest_network::GuestNetwork;
use godwit_agent::guests::Role;
use godwit_agent::hypervisor::{Guest, RunState};
use godwit_agent::migration::{Custody, Migrations, Settings};
use godwit_handover::{Outcome, Terms};

use super::conductor::{Conductor, Record, SOON};
use super::played::{Arena, Handle, Kept, Played, PlayedCustody, Script};

pub struct Host {
    pub name: String,
    pub script: Arc<Script>,
    pub calls: Arc<AtomicUsize>,
    pub kept: Arc<Mutex<HashMap<String, Kept>>>,
    pub directory: tempfile::TempDir,
    arena: Arc<Arena>,
    record: Record,
    pub custody: Arc<PlayedCustody>,
    pub agent: Migrations,
}

impl Host {
    fn new(name: &str, arena: &Arc<Arena>, record: &Record) -> Self {
        let script = Arc::new(Script::default());
        let calls = Arc::new(AtomicUsize::new(0));
        let kept = Arc::new(Mutex::new(HashMap::new()));
        let directory = tempfile::tempdir().unwrap();
        let (custody, agent) = life(name, arena, &script, &calls, &kept, &directory, record);
        Self {
            name: name.into(),
            script,
            calls,
            kept,
            directory,
            arena: arena.clone(),
            record: record.clone(),
            custody,
            agent,
        }
    }

    /// The agent is killed: its tasks end where they are. Its guests go on.
    pub async fn crash(&mut self) {
        let (custody, agent) = life(
            &self.name,
            &self.arena,
            &self.script,
            &self.calls,
            &self.kept,
            &self.directory,
            &self.record,
        );
        let old = std::mem::replace(&mut self.custody, custody);
        drop(std::mem::replace(&mut self.agent, agent));
        // Its tasks hold the guests' keeper until they are gone.
        let start = Instant::now();
        while Arc::strong_count(&old) > 1 {
            assert!(start.elapsed() < SOON, "the killed agent's tasks do not end");
            tokio::task::yield_now().await;
        }
    }

    /// The agent is killed and started again.
    pub async fn restart(&mut self) {
        self.crash().await;
        self.agent.recover().await.unwrap();
    }

    pub fn guest(&self) -> Arc<Played> {
        self.kept.lock().unwrap()["guest-1"].guest.clone()
    }

    pub fn journal(&self) -> std::path::PathBuf {
        self.directory.path().join("journals/migration-1.journal")
    }
}

fn life(
    name: &str,
    arena: &Arc<Arena>,
    script: &Arc<Script>,
    calls: &Arc<AtomicUsize>,
    kept: &Arc<Mutex<HashMap<String, Kept>>>,
    directory: &tempfile::TempDir,
    record: &Record,
) -> (Arc<PlayedCustody>, Migrations) {
    let custody = Arc::new(PlayedCustody {
        host: name.into(),
        arena: arena.clone(),
        script: script.clone(),
        calls: calls.clone(),
        kept: kept.clone(),
        refuse_launch: Mutex::new(None),
    });
    let settings = Settings {
        host: name.into(),
        boot_id: "boot".into(),
        state_directory: directory.path().to_path_buf(),
        migration_address: "127.0.0.1".parse().unwrap(),
        migration_ports: 0..=0,
        refuse_plain_text: false,
        tunnels: None,
        guest_network: GuestNetwork::without("played hypervisors have no network"),
    };
    let keeper: Arc<dyn Custody> = custody.clone();
    (
        custody,
        Migrations::new(settings, keeper, Arc::new(record.clone())),
    )
}

pub struct World {
    pub arena: Arc<Arena>,
    pub terms: Terms,
    pub record: Record,
    pub source: Host,
    pub destination: Host,
    pub conductor: Conductor,
}

impl World {
    /// A guest runs at the source.
    pub async fn new() -> Self {
        Self::of(false).await
    }

    /// The same, for a migration whose handoff is strict.
    pub async fn strict() -> Self {
        Self::of(true).await
    }

    async fn of(strict: bool) -> Self {
        let terms = Terms {
            migration: "migration-1".into(),
            guest: "guest-1".into(),
            epoch: 4,
            source: "host-a".into(),
            destination: "host-b".into(),
            strict,
        };
        let arena = Arc::new(Arena::default());
        let record = Record::new(&terms);
        let source = Host::new("host-a", &arena, &record);
        let destination = Host::new("host-b", &arena, &record);
        let guest = Played::new("host-a", false, &arena, &source.script, &source.calls);
        Handle(guest.clone()).resume().await.unwrap();
        source.calls.store(0, Ordering::SeqCst);
        source.kept.lock().unwrap().insert(
            "guest-1".into(),
            Kept {
                role: Role::Held,
                epoch: 4,
                guest,
            },
        );
        source.agent.recover().await.unwrap();
        destination.agent.recover().await.unwrap();
        let conductor = Conductor::new(&terms, &record);
        Self {
            arena,
            terms,
            record,
            source,
            destination,
            conductor,
        }
    }

    pub async fn conduct(&mut self) -> Outcome {
        self.conductor
            .conduct(&self.source.agent, &self.destination.agent)
            .await
    }

    pub async fn until(&mut self, done: impl Fn(&Conductor) -> bool) {
        self.conductor
            .until(&self.source.agent, &self.destination.agent, done)
            .await;
    }

    pub fn nothing_went_wrong(&self) {
        assert_eq!(
            self.arena.violations(),
            Vec::<String>::new(),
            "{}",
            self.conductor.story()
        );
    }

    /// The guest runs at the destination, and nothing of it is left at the source.
    pub async fn is_at_destination(&self) {
        self.nothing_went_wrong();
        assert_eq!(self.arena.running(), ["host-b"], "{}", self.conductor.story());
        assert!(self.source.kept.lock().unwrap().is_empty());
        eventually("the guest is taken over", || {
            let kept = self.destination.kept.lock().unwrap();
            kept["guest-1"].role == Role::Held && kept["guest-1"].epoch == 5
        })
        .await;
        self.all_ended().await;
    }

    /// The guest runs at the source, unprotected, and nothing of it is at the destination.
    pub async fn is_at_source(&self) {
        self.nothing_went_wrong();
        assert_eq!(self.arena.running(), ["host-a"], "{}", self.conductor.story());
        assert_eq!(self.source.guest().run_state_now(), RunState::Running);
        assert_eq!(self.source.kept.lock().unwrap()["guest-1"].role, Role::Held);
        eventually("the destination is empty", || {
            self.destination.kept.lock().unwrap().is_empty()
        })
        .await;
        self.all_ended().await;
    }

    pub async fn all_ended(&self) {
        eventually("both sides are over", || {
            self.source.agent.active().is_empty() && self.destination.agent.active().is_empty()
        })
        .await;
    }
}

pub async fn eventually(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < SOON, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
