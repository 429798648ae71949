//! A world: two hosts with agents, a controller or two, an API server and the network between them. What is real in it is
//! the controller, the agents' migrations and drivers, and their journals.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use godwit_agent::guest_network::GuestNetwork;
use godwit_agent::guests::Role;
use godwit_agent::host::record::RecordWriter;
use godwit_agent::hypervisor::RunState;
use godwit_agent::migration::rim::Rim;
use godwit_agent::migration::{Drivers, Migrations, Settings};
use godwit_controller::health::Health;
use godwit_controller::run;
use godwit_controller::ticket::{KEPT_UNDER, SECRET};
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::api::{Access, Key, Kind, Store};
use crate::custody::{Cellar, GUEST, Keeper, NAMESPACE, definition, spec};
use crate::desk::{Disk, Files};
use crate::dial::{Dialer, Ports, Serving};
use crate::qemu::Yard;
use crate::relay::{Burrow, Tunnels};
use crate::sim::{Blow, Life, Place, Sim};
use crate::wire::{MigrationNetwork, Socket};

/// A key for tickets as the controller keeps it, made two hours before the beginning.
const KEY: &str = "0707070707070707070707070707070707070707070707070707070707070707 1767218400\n";
/// The epoch at which the world begins.
pub const EPOCH: u64 = 4;
/// How long the other agent may be silent before that counts.
const PEER_SILENCE: Duration = Duration::from_secs(30);
/// How often an agent reports its guests.
const REPORT_EVERY: Duration = Duration::from_millis(500);
/// How often an agent looks whether its host's object is there, and renews its Lease.
const LOOKS_EVERY: Duration = Duration::from_secs(10);

/// A host.
pub struct Host {
    /// Where it is.
    pub place: Place,
    /// Its guests.
    pub cellar: Arc<Cellar>,
    /// Its disk.
    pub disk: Arc<Disk>,
    /// It has lost its power, and nobody gives it back.
    pub lost: AtomicBool,
    directory: tempfile::TempDir,
    boot: Mutex<u64>,
    agent: Mutex<Option<Agent>>,
}

struct Agent {
    life: Arc<Life>,
    migrations: Migrations,
    tasks: Vec<JoinHandle<()>>,
}

struct Running {
    life: Arc<Life>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// The world.
pub struct World {
    /// What all parts share.
    pub sim: Arc<Sim>,
    /// The API server's objects.
    pub store: Arc<Store>,
    /// The way to them.
    pub api: Access,
    /// The hosts.
    pub hosts: [Arc<Host>; 2],
    /// The migration network.
    pub network: Arc<MigrationNetwork>,
    /// The relays.
    pub burrow: Arc<Burrow>,
    /// The guest's UID.
    pub guest: String,
    loses_hosts: bool,
    ports: Arc<Ports>,
    controllers: Mutex<[Option<Running>; 2]>,
}

impl World {
    /// A guest runs on host `a`; both agents and the controller are started.
    /// Nobody has ever migrated anything in it if `first`.
    /// A host may be lost for good in it if `loses_hosts`: then the agents renew Leases.
    pub async fn new(sim: &Arc<Sim>, seed: u64, first: bool, loses_hosts: bool) -> Arc<Self> {
        let network = Arc::new(MigrationNetwork::default());
        let yard = Yard::new(sim, &network);
        let store = Store::new(seed);
        let guest = sim.dice.uid();
        let scratch = std::path::Path::new("/dev/shm");
        let host = |place| {
            let directory = if scratch.is_dir() {
                tempfile::tempdir_in(scratch)
            } else {
                tempfile::tempdir()
            };
            Arc::new(Host {
                place,
                cellar: Cellar::new(place, &yard),
                disk: Arc::default(),
                lost: AtomicBool::new(false),
                directory: directory.unwrap(),
                boot: Mutex::new(1),
                agent: Mutex::default(),
            })
        };
        let world = Arc::new(Self {
            sim: sim.clone(),
            api: Access::new(sim, &store),
            store,
            hosts: Place::HOSTS.map(host),
            network,
            burrow: Arc::default(),
            guest,
            loses_hosts,
            ports: Arc::default(),
            controllers: Mutex::default(),
        });
        world.furnish(first);
        let weak = Arc::downgrade(&world);
        sim.kill_by(move |blow| {
            if let Some(world) = weak.upgrade() {
                match blow {
                    Blow::Process(place) => world.fell(place),
                    Blow::Host(place) => world.lose(place),
                }
            }
        });
        for place in Place::HOSTS {
            world.start_agent(place).await;
        }
        world.start_controller(Place::Controller);
        world
    }

    /// A host by its place.
    pub fn host(&self, place: Place) -> &Arc<Host> {
        &self.hosts[usize::from(place == Place::B)]
    }

    fn create(&self, plural: &str, namespace: &str, name: &str, object: Value) {
        let kind = Kind::by_plural(plural).unwrap();
        let key = Key {
            plural: kind.plural,
            namespace: namespace.into(),
            name: name.into(),
        };
        let Ok(created) = self.store.create(kind, &key, object) else {
            panic!("{name} is there already")
        };
        if !created["status"].is_null() {
            let patch = json!({"status": created["status"]});
            assert!(self.store.status(&key, &patch).is_ok());
        }
    }

    /// The objects with which the world begins.
    fn furnish(&self, first: bool) {
        let host = self.host(Place::A);
        host.cellar.hold(&self.guest, EPOCH);
        // A cluster that has migrated before has a key. Making one costs more than all the rest of a run.
        let key = if first {
            json!({})
        } else {
            json!({"data": {KEPT_UNDER: ByteString(KEY.into())}})
        };
        self.create("secrets", NAMESPACE, SECRET, key);
        self.create("configmaps", NAMESPACE, "godwit-ticket-keys", json!({}));
        for place in Place::HOSTS {
            self.publish_host(place);
        }
        let digest = godwit_protocol::definition::digest(definition().json()).unwrap();
        let machine = json!({
            "metadata": {"uid": self.guest, "finalizers": ["godwit.dev/guest"]},
            "spec": spec(),
            "status": {
                "host": Place::A.name(), "state": "Running", "epoch": EPOCH, "since": "2026-01-01T00:00:00Z",
            },
        });
        self.create("virtualmachines", NAMESPACE, GUEST, machine);
        let record = json!({
            "metadata": {"finalizers": ["godwit.dev/guest"]},
            "spec": {
                "guest": {"namespace": NAMESPACE, "name": GUEST, "uid": self.guest, "definition": digest},
                "holder": Place::A.name(), "epoch": EPOCH, "decision": "None", "started": false,
                "writer": "the beginning", "evidence": "",
            },
        });
        self.create("guestrecords", "", &self.guest, record);
    }

    fn host_key(place: Place) -> Key {
        Key {
            plural: Kind::HOST.plural,
            namespace: String::new(),
            name: place.name().into(),
        }
    }

    fn publish_host(&self, place: Place) {
        let address = address(place);
        let mut object = json!({"spec": {
            "endpoint": format!("{address}:16514"), "migrationAddresses": [address],
        }});
        object["status"] = self.report(place);
        self.create("virtualmachinehosts", "", place.name(), object);
    }

    /// Somebody deletes a host's object, which is refused while it says that it has guests.
    pub fn delete_host(&self, place: Place) {
        let key = Self::host_key(place);
        let guests = self.store.get(&key).map(|host| host["status"]["guestCount"] != 0);
        match guests {
            Some(false) => {
                self.sim.note("user", format!("deletes {place}"));
                // Nothing holds it.
                let _ = self.store.delete(&key, &Value::Null);
            }
            Some(true) => self.sim.note("user", format!("may not delete {place}")),
            None => {}
        }
    }

    /// What a host says of itself.
    fn report(&self, place: Place) -> Value {
        let guests: Vec<_> = self
            .host(place)
            .cellar
            .all()
            .into_iter()
            .filter(|(_, kept)| !matches!(kept.role, Role::Arriving { .. }))
            .map(|(uid, kept)| {
                let state = match kept.qemu.run() {
                    _ if !kept.qemu.alive() => "Crashed",
                    RunState::Running => "Running",
                    RunState::Paused | RunState::StoppedForMigration | RunState::Incoming => "Paused",
                    RunState::ShutDown => "ShutOff",
                    RunState::Panicked | RunState::IoError | RunState::Broken => "Crashed",
                };
                json!({"uid": uid, "namespace": NAMESPACE, "name": GUEST, "state": state, "epoch": kept.epoch,
                    "since": "2026-01-01T00:00:00.000000Z"})
            })
            .collect();
        json!({
            "hypervisors": [{"name": "qemu", "version": "10.0.2", "accelerator": "tcg",
                "machineTypes": ["pc-q35-10.0"], "cpuModels": ["qemu64"]}],
            "capacity": {"cpus": 4, "memory": "4096Mi"},
            "available": {"cpus": 4, "memory": "4096Mi"},
            "pools": [{"name": "default", "id": "shared"}],
            "guestCount": guests.len(),
            "guests": guests,
            "conditions": [{"type": "Ready", "status": "True", "reason": "AgentReady", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}],
        })
    }

    /// Reports a host's guests now and then, and makes its object again where somebody has deleted it.
    async fn keep_reporting(world: Weak<Self>, life: Arc<Life>) {
        let place = life.place;
        let key = Self::host_key(place);
        let mut missed = Duration::ZERO;
        let mut unrenewed = LOOKS_EVERY;
        let mut first = true;
        loop {
            // An agent says that it lives before anything else.
            if !std::mem::take(&mut first) {
                sleep(REPORT_EVERY).await;
            }
            let Some(world) = world.upgrade() else { return };
            if life.is_over() {
                return;
            }
            unrenewed += REPORT_EVERY;
            if world.sim.is_cut(place, Place::Api) {
                continue;
            }
            if unrenewed >= LOOKS_EVERY {
                unrenewed = Duration::ZERO;
                world.renew_lease(place);
            }
            if world.store.get(&key).is_some() {
                missed = Duration::ZERO;
                let patch = json!({"status": world.report(place)});
                // It is there.
                let _ = world.store.status(&key, &patch);
                continue;
            }
            missed += REPORT_EVERY;
            if missed >= LOOKS_EVERY {
                world.sim.note(place, "makes its object again");
                world.publish_host(place);
            }
        }
    }

    /// Starts the agent of a host; it takes up what its journals speak of, and serves.
    pub async fn start_agent(self: &Arc<Self>, place: Place) {
        let host = self.host(place);
        if host.agent.lock().unwrap().is_some() || host.lost.load(Ordering::Relaxed) {
            return;
        }
        let sim = &self.sim;
        let life = Life::new(place);
        sim.note(place, "starts");
        host.disk.failed.store(false, Ordering::Relaxed);
        let boot = format!("boot-{}", host.boot.lock().unwrap());
        let address: IpAddr = address(place).parse().unwrap();
        let settings = Settings {
            host: place.name().into(),
            boot_id: boot.clone(),
            state_directory: host.directory.path().to_path_buf(),
            migration_address: address,
            migration_ports: 49152..=49160,
            refuse_plain_text: false,
            tunnels: Some(Arc::new(Tunnels {
                sim: sim.clone(),
                me: life.clone(),
                network: self.network.clone(),
                burrow: self.burrow.clone(),
                ports: self.ports.clone(),
            })),
            guest_network: GuestNetwork::without("played hypervisors have no network"),
        };
        let rim = Rim {
            desk: Arc::new(Files {
                sim: sim.clone(),
                me: life.clone(),
                disk: host.disk.clone(),
            }),
            wire: Arc::new(Socket {
                sim: sim.clone(),
                me: life.clone(),
                network: self.network.clone(),
            }),
        };
        let client = self.api.client(&life);
        let writer = RecordWriter::new(client, place.name());
        let keeper = Arc::new(Keeper {
            cellar: host.cellar.clone(),
            life: life.clone(),
            records: Arc::new(writer.clone()),
        });
        let migrations = Migrations::on(rim, settings, keeper.clone(), Arc::new(writer.clone()));
        *host.agent.lock().unwrap() = Some(Agent {
            life: life.clone(),
            migrations: migrations.clone(),
            tasks: Vec::new(),
        });
        // The agent begins as its program does; killed in the middle of it, it does not come to the end.
        let dial = Dialer {
            sim: sim.clone(),
            me: life.clone(),
            ports: self.ports.clone(),
        };
        let drivers = Drivers::new(
            migrations.clone(),
            Arc::new(writer),
            Arc::new(dial),
            host.directory.path(),
        );
        let (world, weak) = (Arc::downgrade(self), Arc::downgrade(self));
        let begin = {
            let life = life.clone();
            async move {
                if let Err(error) = migrations.recover().await {
                    complain(&world, &life, &error);
                }
                if let Err(error) = drivers.recover().await {
                    complain(&world, &life, &error);
                }
                let Some(world) = world.upgrade() else { return };
                if life.is_over() {
                    return;
                }
                world.sim.note(life.place, "serves");
                let place = life.place;
                let serving = Serving {
                    life,
                    roles: drivers,
                    migrations,
                    keeper,
                    boot,
                };
                world.ports.serve(place, Some(serving));
            }
        };
        let tasks = vec![
            tokio::spawn(begin),
            tokio::spawn(Self::keep_reporting(weak, life.clone())),
        ];
        if let Some(agent) = host.agent.lock().unwrap().as_mut()
            && Arc::ptr_eq(&agent.life, &life)
        {
            agent.tasks = tasks;
        } else {
            tasks.iter().for_each(JoinHandle::abort);
        }
    }

    /// Starts a controller, as the leader or as somebody who believes that it is.
    pub fn start_controller(self: &Arc<Self>, place: Place) {
        let slot = usize::from(place == Place::Second);
        if self.controllers.lock().unwrap()[slot].is_some() {
            return;
        }
        self.sim.note(place, "starts");
        let life = Life::new(place);
        let stop = CancellationToken::new();
        let dial = Dialer {
            sim: self.sim.clone(),
            me: life.clone(),
            ports: self.ports.clone(),
        };
        let task = tokio::spawn(run::work(
            self.api.client(&life),
            Arc::new(dial),
            format!("{place}-{}", self.sim.dice.within(0, 1 << 40)),
            NAMESPACE.into(),
            PEER_SILENCE,
            Arc::new(Health::default()),
            stop.clone(),
        ));
        self.controllers.lock().unwrap()[slot] = Some(Running { life, stop, task });
    }

    /// Ends a controller in order; its drivers go on until nobody needs them.
    pub fn stop_controller(&self, place: Place) {
        let slot = usize::from(place == Place::Second);
        if let Some(running) = self.controllers.lock().unwrap()[slot].take() {
            self.sim.note(place, "is told to end");
            running.stop.cancel();
        }
    }

    /// Kills a process at once. Its hypervisors live on, and its files stay as they are.
    fn fell(&self, place: Place) {
        match place {
            Place::A | Place::B => {
                let agent = self.host(place).agent.lock().unwrap().take();
                self.ports.serve(place, None);
                if let Some(agent) = agent {
                    agent.life.end();
                    agent.tasks.iter().for_each(JoinHandle::abort);
                    self.network.close(place);
                    self.host(place).cellar.agent_ended();
                    drop(agent.migrations);
                }
            }
            Place::Controller | Place::Second => {
                let slot = usize::from(place == Place::Second);
                let running = self.controllers.lock().unwrap()[slot].take();
                if let Some(running) = running {
                    running.life.end();
                    running.task.abort();
                    // Its drivers have no effect any more; told to end, they do not linger.
                    running.stop.cancel();
                }
            }
            Place::RelaysOfA => self.burrow.fell(Place::A),
            Place::RelaysOfB => self.burrow.fell(Place::B),
            Place::Api => {}
        }
    }

    /// Whether a process runs.
    pub fn is_up(&self, place: Place) -> bool {
        match place {
            Place::A | Place::B => self.host(place).agent.lock().unwrap().is_some(),
            Place::Controller | Place::Second => {
                self.controllers.lock().unwrap()[usize::from(place == Place::Second)].is_some()
            }
            Place::Api | Place::RelaysOfA | Place::RelaysOfB => true,
        }
    }

    /// The migrations that have not ended at a host, as its agent says; `None` without an agent that serves.
    pub fn active(&self, place: Place) -> Option<Vec<String>> {
        self.ports.at(place)?;
        let agent = self.host(place).agent.lock().unwrap();
        agent.as_ref().map(|agent| agent.migrations.active())
    }

    /// The migrations that cannot be acted on at a host.
    pub fn unresolved(&self, place: Place) -> Vec<String> {
        let agent = self.host(place).agent.lock().unwrap();
        let unresolved = agent.as_ref().map(|agent| agent.migrations.unresolved());
        unresolved
            .unwrap_or_default()
            .into_iter()
            .map(|left| format!("{}: {}", left.reason, left.message))
            .collect()
    }

    /// The host reboots: its agent and its hypervisors are gone.
    pub fn reboot(&self, place: Place) {
        self.sim.note(place, "loses its power");
        self.fell(place);
        let host = self.host(place);
        self.burrow.fell(place);
        *host.boot.lock().unwrap() += 1;
        for (_, kept) in host.cellar.all() {
            kept.qemu.kill(false);
        }
    }

    /// The host loses its power for good.
    pub fn lose(&self, place: Place) {
        self.host(place).lost.store(true, Ordering::Relaxed);
        self.sim.note(place, "is gone for good");
        self.reboot(place);
    }

    /// Somebody has found it, and switches it on: what was on its disk is there.
    pub async fn find(self: &Arc<Self>, place: Place) {
        self.host(place).lost.store(false, Ordering::Relaxed);
        self.sim.note(place, "is back");
        self.start_agent(place).await;
    }

    /// Whether it is gone for good.
    pub fn is_lost(&self, place: Place) -> bool {
        self.host(place).lost.load(Ordering::Relaxed)
    }

    /// An agent says that it lives. The Leases of a world in which no host is ever lost would only be noise.
    fn renew_lease(&self, place: Place) {
        if !self.loses_hosts {
            return;
        }
        let now = k8s_openapi::jiff::Timestamp::now();
        let object = json!({"spec": {"holderIdentity": place.name(), "renewTime": now.to_string()}});
        let key = Key {
            plural: Kind::LEASE.plural,
            namespace: NAMESPACE.into(),
            name: place.name().into(),
        };
        if self.store.merge(&key, &object).is_err() {
            // It is not there yet.
            let _ = self.store.create(Kind::LEASE, &key, object);
        }
    }

    /// The guest's record.
    pub fn record(&self) -> Value {
        let key = Key {
            plural: Kind::RECORD.plural,
            namespace: String::new(),
            name: self.guest.clone(),
        };
        self.store.get(&key).unwrap_or_default()["spec"].clone()
    }

    fn migration_key(name: &str) -> Key {
        Key {
            plural: Kind::MIGRATION.plural,
            namespace: NAMESPACE.into(),
            name: name.into(),
        }
    }

    /// A user asks for a migration.
    pub fn migrate(&self, name: &str, flow: &str, (transport, strict): (&str, bool), to: Place) {
        let uid = self.sim.dice.uid();
        let words = format!("asks for {name} to {to}, {flow}, {transport}: {uid}");
        self.sim.note("user", words);
        let object = json!({
            "metadata": {"uid": uid},
            "spec": {
                "virtualMachine": GUEST,
                "destination": {"host": to.name()},
                "controlFlow": flow,
                "transport": transport,
                "handoff": if strict { "Strict" } else { "Default" },
                "security": {"require": "None"},
            },
        });
        self.create("virtualmachinemigrations", NAMESPACE, name, object);
    }

    /// A user cancels it.
    pub fn cancel(&self, name: &str) {
        self.sim.note("user", format!("cancels {name}"));
        // It may be gone.
        let _ = self
            .store
            .merge(&Self::migration_key(name), &json!({"spec": {"cancel": true}}));
    }

    /// A user deletes it.
    pub fn delete(&self, name: &str) {
        self.sim.note("user", format!("deletes {name}"));
        let _ = self.store.delete(&Self::migration_key(name), &Value::Null);
    }

    fn guest_key() -> Key {
        Key {
            plural: "virtualmachines",
            namespace: NAMESPACE.into(),
            name: GUEST.into(),
        }
    }

    /// A user deletes the guest.
    pub fn delete_guest(&self) {
        self.sim.note("user", "deletes the guest");
        self.sim.judge.guest_deleted();
        // It may be gone.
        let _ = self.store.delete(&Self::guest_key(), &Value::Null);
    }

    /// The guest's object.
    pub fn machine(&self) -> Option<Value> {
        self.store.get(&Self::guest_key())
    }

    /// An administrator says something about the guest, by this name.
    pub fn resolve(&self, name: &str, spec: Value) {
        self.sim.note("administrator", format!("says {spec}"));
        self.create(Kind::RESOLUTION.plural, NAMESPACE, name, json!({"spec": spec}));
    }

    /// What became of it: `Unknown` until it was carried out, or refused.
    pub fn resolved(&self, name: &str) -> String {
        let key = Key {
            plural: Kind::RESOLUTION.plural,
            namespace: NAMESPACE.into(),
            name: name.into(),
        };
        let word = self.store.get(&key).unwrap_or_default();
        let applied = &word["status"]["conditions"][0];
        format!(
            "{} {}",
            applied["status"].as_str().unwrap_or("Unknown"),
            applied["reason"].as_str().unwrap_or_default()
        )
    }

    /// The migrations that have not ended.
    pub fn migrations_under_way(&self) -> Vec<Value> {
        let (_, migrations) = self.store.list(Kind::MIGRATION.plural, NAMESPACE, 0);
        let ended = |migration: &Value| {
            let phase = migration["status"]["phase"].as_str().unwrap_or_default();
            ["Succeeded", "Failed", "Cancelled"].contains(&phase)
        };
        migrations
            .into_iter()
            .filter(|migration| !ended(migration))
            .collect()
    }

    /// Whether the guest's object is there.
    pub fn has_guest(&self) -> bool {
        self.store.get(&Self::guest_key()).is_some()
    }

    /// The migration as it stands.
    pub fn migration(&self, name: &str) -> Option<Value> {
        self.store.get(&Self::migration_key(name))
    }

    /// Ends everything, so that nothing of it is kept alive by itself.
    pub fn end(&self) {
        self.sim.disarm();
        for place in Place::PROCESSES {
            self.fell(place);
        }
    }
}

fn address(place: Place) -> &'static str {
    if place == Place::A { "10.0.0.1" } else { "10.0.0.2" }
}

fn complain(world: &Weak<World>, life: &Life, error: &dyn std::error::Error) {
    if let Some(world) = world.upgrade()
        && !life.is_over()
    {
        world
            .sim
            .judge
            .wrong(format!("{} cannot begin: {error}", life.place));
    }
}
