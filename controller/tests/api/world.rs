//! A test's world: a namespace, two hosts with agents, and a controller that can be stopped and started.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use godwit_controller::health::Health;
use godwit_controller::run;
use godwit_crds::{
    GuestRecord, VirtualMachine, VirtualMachineHost, VirtualMachineMigration, VirtualMachineMigrationStatus,
};
use http_body_util::BodyExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::client::{Body, ClientBuilder};
use kube::core::NamespaceResourceScope;
use kube::{Client, CustomResourceExt, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{Mutex as AsyncMutex, MutexGuard};
use tokio_util::sync::CancellationToken;

use crate::agent::{Fabric, Served};
use crate::answers::Answers;
use crate::authority::Authority;

const DEADLINE: Duration = Duration::from_secs(20);

/// The controller watches every namespace.
static ONE_AT_A_TIME: AsyncMutex<()> = AsyncMutex::const_new(());

pub struct World {
    pub client: Client,
    pub namespace: String,
    pub agents: HashMap<&'static str, Served>,
    pub hosts: HashMap<&'static str, String>,
    _fabric: Arc<Fabric>,
    authority: Authority,
    writes: Arc<AtomicUsize>,
    pub answers: Answers,
    controller: Option<(CancellationToken, tokio::task::JoinHandle<()>)>,
    _turn: MutexGuard<'static, ()>,
}

impl World {
    /// Hosts `a` and `b`, of which `b`'s clock is five seconds ahead, and a running controller.
    pub async fn new() -> Self {
        let turn = ONE_AT_A_TIME.lock().await;
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_test_writer()
            .try_init();
        let config = kube::Config::infer()
            .await
            .expect("KUBECONFIG names a Kubernetes API server");
        let client = Client::try_from(config).unwrap();
        install(&client).await;
        let namespace = format!("controller-test-{}", uuid::Uuid::new_v4().simple());
        let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(client.clone());
        let object = serde_json::from_value(json!({ "metadata": { "name": namespace } })).unwrap();
        namespaces.create(&PostParams::default(), &object).await.unwrap();
        crate::tickets::make(&client, &namespace).await;

        let authority = Authority::new();
        let fabric = Arc::new(Mutex::new(HashMap::new()));
        let mut world = Self {
            client,
            agents: HashMap::new(),
            hosts: HashMap::new(),
            _fabric: fabric.clone(),
            authority,
            writes: Arc::default(),
            answers: Answers::new(),
            controller: None,
            _turn: turn,
            namespace,
        };
        for (short, ahead) in [("a", 0), ("b", 5)] {
            let name = format!("{}-{short}", world.namespace);
            let tls = world.authority.host(&name);
            let served = Served::new(&name, Duration::from_secs(ahead), &fabric, tls).await;
            world.publish_host(&name, &served.address.to_string()).await;
            world.agents.insert(short, served);
            world.hosts.insert(short, name);
        }
        world.start_controller();
        world
    }

    async fn publish_host(&self, name: &str, endpoint: &str) {
        let api: Api<VirtualMachineHost> = Api::all(self.client.clone());
        let object = serde_json::from_value(json!({
            "apiVersion": "godwit.dev/v1alpha1", "kind": "VirtualMachineHost",
            "metadata": { "name": name },
            "spec": { "endpoint": endpoint, "migrationAddresses": ["127.0.0.1"] },
        }))
        .unwrap();
        api.create(&PostParams::default(), &object).await.unwrap();
        self.host_status(name, json!([])).await;
    }

    /// Writes the host's whole status as its agent does.
    pub async fn host_status(&self, name: &str, guests: Value) {
        let api: Api<VirtualMachineHost> = Api::all(self.client.clone());
        let status = json!({
            "apiVersion": "godwit.dev/v1alpha1", "kind": "VirtualMachineHost",
            "metadata": { "name": name },
            "status": {
                "hypervisors": [{ "name": "qemu", "version": "10.0.2", "accelerator": "tcg",
                    "machineTypes": ["pc-q35-10.0"], "cpuModels": ["qemu64"] }],
                "capacity": { "cpus": 4, "memory": "4096Mi" },
                "available": { "cpus": 4, "memory": "4096Mi" },
                "pools": [{ "name": "default", "id": "shared" }],
                "guestCount": guests.as_array().unwrap().len(),
                "guests": guests,
                "conditions": [{ "type": "Ready", "status": "True", "reason": "AgentReady", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1 }],
            },
        });
        let params = PatchParams::apply("agent").force();
        api.patch_status(name, &params, &Patch::Apply(&status))
            .await
            .unwrap();
    }

    pub fn start_controller(&mut self) {
        let (writes, answers) = (self.writes.clone(), self.answers.clone());
        let tls = self.authority.controller();
        let namespace = self.namespace.clone();
        let stop = CancellationToken::new();
        let token = stop.clone();
        let task = tokio::spawn(async move {
            let count = tower::util::MapRequestLayer::new(move |request: http::Request<Body>| {
                if !matches!(*request.method(), http::Method::GET) {
                    writes.fetch_add(1, Ordering::Relaxed);
                }
                request
            });
            let client = ClientBuilder::try_from(kube::Config::infer().await.unwrap())
                .unwrap()
                .with_layer(&answers)
                .with_layer(&count);
            let client = client
                .with_layer(&tower::util::MapResponseLayer::new(
                    |response: http::Response<_>| response.map(BodyExt::boxed_unsync),
                ))
                .build();
            let me = format!("test-{}", uuid::Uuid::new_v4());
            run::work(
                client,
                Arc::new(tls),
                me,
                namespace,
                Duration::from_secs(30),
                Arc::new(Health::default()),
                token,
            )
            .await;
        });
        self.controller = Some((stop, task));
    }

    /// Ends the controller in order.
    pub async fn stop_controller(&mut self) {
        let (stop, task) = self.controller.take().unwrap();
        stop.cancel();
        tokio::time::timeout(DEADLINE, task)
            .await
            .expect("the controller ends")
            .unwrap();
    }

    /// Ends the controller as a kill does.
    pub async fn kill_controller(&mut self) {
        let (_, task) = self.controller.take().unwrap();
        task.abort();
        let _ = task.await;
    }

    /// How many requests other than reads the controller has made.
    pub fn writes(&self) -> usize {
        self.writes.load(Ordering::Relaxed)
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub async fn create_guest(&self, name: &str) -> VirtualMachine {
        let object = serde_json::from_value(json!({
            "apiVersion": "godwit.dev/v1alpha1", "kind": "VirtualMachine",
            "metadata": { "name": name },
            "spec": {
                "host": self.hosts["a"],
                "machine": { "type": "pc-q35-10.0" },
                "cpu": { "count": 1, "model": "qemu64" },
                "memory": "64Mi",
                "boot": { "kernel": { "image": { "file": "vmlinuz" } } },
            },
        }))
        .unwrap();
        self.api::<VirtualMachine>()
            .create(&PostParams::default(), &object)
            .await
            .unwrap()
    }

    /// A guest that runs on host `a`.
    pub async fn running_guest(&self, name: &str) -> VirtualMachine {
        self.create_guest(name).await;
        self.until::<VirtualMachine>(name, |guest| {
            condition(&guest.status.as_ref()?.conditions, "Ready")
                .filter(|ready| *ready == "Running")
                .map(|_| guest.clone())
        })
        .await
    }

    pub async fn migrate(&self, name: &str, guest: &str, to: &str) {
        self.migrate_by("ManagedDirect", name, guest, to).await;
    }

    /// A migration of this control flow.
    pub async fn migrate_by(&self, flow: &str, name: &str, guest: &str, to: &str) {
        self.migrate_with(flow, "Default", name, guest, to).await;
    }

    /// A migration of this control flow and handoff.
    pub async fn migrate_with(&self, flow: &str, handoff: &str, name: &str, guest: &str, to: &str) {
        let object = serde_json::from_value(json!({
            "apiVersion": "godwit.dev/v1alpha1", "kind": "VirtualMachineMigration",
            "metadata": { "name": name },
            "spec": {
                "virtualMachine": guest,
                "destination": { "host": to },
                "controlFlow": flow,
                "handoff": handoff,
                "security": { "require": "None" },
            },
        }))
        .unwrap();
        self.api::<VirtualMachineMigration>()
            .create(&PostParams::default(), &object)
            .await
            .unwrap();
    }

    /// Waits until `found` finds something in the object.
    pub async fn until<K>(&self, name: &str, found: impl Fn(&K) -> Option<K>) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        let api = self.api::<K>();
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            let object = api.get(name).await.unwrap();
            if let Some(object) = found(&object) {
                return object;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "not so in time: {object:#?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the migration has ended, or stands where `wanted` says.
    pub async fn until_phase(&self, name: &str, wanted: &str) -> VirtualMachineMigrationStatus {
        let migration = self
            .until::<VirtualMachineMigration>(name, |migration| {
                let phase = migration.status.as_ref()?.phase?;
                (format!("{phase:?}") == wanted).then(|| migration.clone())
            })
            .await;
        migration.status.unwrap()
    }

    /// Waits until the object is gone.
    pub async fn until_gone<K>(&self, name: &str)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while let Some(object) = self.api::<K>().get_opt(name).await.unwrap() {
            assert!(tokio::time::Instant::now() < deadline, "still there: {object:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn record(&self, guest: &VirtualMachine) -> Option<GuestRecord> {
        Api::all(self.client.clone())
            .get_opt(&guest.uid().unwrap())
            .await
            .unwrap()
    }

    pub fn orders(&self, host: &str) -> Vec<String> {
        self.agents[host].agent.script.lock().unwrap().orders.clone()
    }

    /// The reasons of the events about an object, in the order in which they were told, once there are `count`.
    pub async fn events(&self, name: &str, count: usize) -> Vec<String> {
        let api: Api<k8s_openapi::api::events::v1::Event> =
            Api::namespaced(self.client.clone(), &self.namespace);
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            let mut events: Vec<_> = api
                .list(&Default::default())
                .await
                .unwrap()
                .items
                .into_iter()
                .filter(|event| {
                    event.regarding.as_ref().and_then(|object| object.name.as_deref()) == Some(name)
                })
                .map(|event| {
                    (
                        event.event_time.clone().map(|time| time.0),
                        event.reason.unwrap_or_default(),
                    )
                })
                .collect();
            events.sort();
            let reasons: Vec<_> = events.into_iter().map(|(_, reason)| reason).collect();
            if reasons.len() >= count {
                return reasons;
            }
            assert!(tokio::time::Instant::now() < deadline, "only {reasons:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Takes everything away.
    pub async fn end(mut self) {
        for migration in self
            .api::<VirtualMachineMigration>()
            .list(&Default::default())
            .await
            .unwrap()
        {
            let name = migration.name_any();
            let _ = self
                .api::<VirtualMachineMigration>()
                .delete(&name, &DeleteParams::default())
                .await;
            self.until_gone::<VirtualMachineMigration>(&name).await;
        }
        for guest in self
            .api::<VirtualMachine>()
            .list(&Default::default())
            .await
            .unwrap()
        {
            let name = guest.name_any();
            let _ = self
                .api::<VirtualMachine>()
                .delete(&name, &DeleteParams::default())
                .await;
            self.until_gone::<VirtualMachine>(&name).await;
        }
        self.stop_controller().await;
        let hosts: Api<VirtualMachineHost> = Api::all(self.client.clone());
        for name in self.hosts.values() {
            hosts.delete(name, &DeleteParams::default()).await.unwrap();
        }
    }
}

/// The reason of a condition.
pub fn condition<'a>(conditions: &'a [godwit_crds::Condition], type_: &str) -> Option<&'a str> {
    godwit_crds::condition::find_condition(conditions, type_).map(|condition| condition.reason.as_str())
}

async fn install(client: &Client) {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let params = PatchParams::apply("controller-test").force();
    for crd in [
        VirtualMachine::crd(),
        VirtualMachineHost::crd(),
        VirtualMachineMigration::crd(),
        GuestRecord::crd(),
    ] {
        let name = crd.name_any();
        api.patch(&name, &params, &Patch::Apply(&crd)).await.unwrap();
        let established = kube::runtime::wait::conditions::is_crd_established();
        let waiting = kube::runtime::wait::await_condition(api.clone(), &name, established);
        tokio::time::timeout(DEADLINE, waiting)
            .await
            .expect("the CRD is served")
            .unwrap();
    }
}
