//! A real control plane: etcd, kube-apiserver and kube-controller-manager as child processes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rustix::process::Signal;
use serde_json::json;

use crate::cache;
use crate::certificates::{Authority, Subject, write_secret};
use crate::process::Process;
use crate::run::Run;

/// How long the API server may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// A running control plane.
pub struct ControlPlane {
    server: String,
    authority: PathBuf,
    administrator: PathBuf,
    audit: PathBuf,
    client: Client,
    places: Places,
    /// The API server.
    pub api_server: Process,
    /// The controller manager: garbage collection, namespaces, aggregated roles.
    pub controller_manager: Process,
    /// The API server's store.
    pub etcd: Process,
}

/// Where the API server and its store are.
struct Places {
    directory: PathBuf,
    store: SocketAddr,
    peers: SocketAddr,
    server: SocketAddr,
}

impl ControlPlane {
    /// Starts a control plane whose API server listens on `address`, and waits until it is ready.
    ///
    /// # Errors
    /// When a program is missing, or the API server is not ready in time; the message names the log.
    pub async fn start(run: &Run, address: IpAddr) -> anyhow::Result<Self> {
        let directory = run.directory().join("control-plane");
        std::fs::create_dir_all(&directory)?;
        // An address of this run alone, so that a port which is free now is not taken by another run.
        let loopback = IpAddr::V4(Ipv4Addr::new(127, 113, run.number(), 1));
        let [client_port, peer_port] = free_ports(loopback)?;
        let [port] = free_ports(address)?;

        let keys = Keys::make(&directory, address)?;
        let server = format!("https://{}", SocketAddr::new(address, port));
        let administrator = run.records().join("administrator.kubeconfig");
        keys.write_kubeconfig(&administrator, &server, "administrator", "system:masters")?;
        let manager = directory.join("controller-manager.kubeconfig");
        keys.write_kubeconfig(&manager, &server, "system:kube-controller-manager", "")?;

        let places = Places {
            directory: directory.clone(),
            store: SocketAddr::new(loopback, client_port),
            peers: SocketAddr::new(loopback, peer_port),
            server: SocketAddr::new(address, port),
        };
        let audit = run.records().join("logs/audit.jsonl");
        let (mut etcd, mut api_server) = places.spawn(run, &audit)?;
        let client = client(&administrator, None).await?;
        wait_until_ready(&client, &mut api_server, &mut etcd).await?;
        let command = controller_manager(&directory, &manager)?;
        let controller_manager = Process::spawn(run, run.directory(), "kube-controller-manager", command)?;
        Ok(Self {
            server,
            authority: directory.join("ca.crt"),
            administrator,
            audit,
            client,
            places,
            api_server,
            controller_manager,
            etcd,
        })
    }

    /// The API server's URL.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The certificate of the API server's authority.
    #[must_use]
    pub fn authority(&self) -> &Path {
        &self.authority
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn administrator(&self) -> &Path {
        &self.administrator
    }

    /// The API server's audit log: one JSON object a line for each write to godwit's objects, events and leases.
    #[must_use]
    pub fn audit(&self) -> &Path {
        &self.audit
    }

    /// A client with all rights.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// `kubectl` as the administrator.
    ///
    /// # Errors
    /// When kubectl is missing.
    pub fn kubectl(&self) -> anyhow::Result<Command> {
        let mut command = Command::new(cache::tool("kubectl")?);
        command.env("KUBECONFIG", &self.administrator);
        Ok(command)
    }

    /// Copies the store as it is at a moment, for [`Self::restore`].
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn save(&self, to: &Path) -> anyhow::Result<()> {
        self.etcd.signal(Signal::STOP)?;
        let copied = copy(&self.places.store_directory(), to);
        self.etcd.signal(Signal::CONT)?;
        copied
    }

    /// Ends the API server and its store, puts a copy of the store in its place, and starts both again.
    ///
    /// # Errors
    /// When the copy cannot be read, or the API server does not come up.
    pub async fn restore(&mut self, run: &Run, from: &Path) -> anyhow::Result<()> {
        for process in [&mut self.api_server, &mut self.etcd] {
            process.signal(Signal::KILL)?;
            while process.exited().is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        std::fs::remove_dir_all(self.places.store_directory())?;
        copy(from, &self.places.store_directory())?;
        (self.etcd, self.api_server) = self.places.spawn(run, &self.audit)?;
        wait_until_ready(&self.client, &mut self.api_server, &mut self.etcd).await
    }

    pub(crate) fn parts(&mut self) -> [&mut Process; 3] {
        [&mut self.controller_manager, &mut self.api_server, &mut self.etcd]
    }
}

impl Places {
    fn store_directory(&self) -> PathBuf {
        self.directory.join("etcd")
    }

    /// Starts the store and the API server.
    fn spawn(&self, run: &Run, audit: &Path) -> anyhow::Result<(Process, Process)> {
        let etcd = etcd(&self.directory, self.store, self.peers)?;
        let etcd = Process::spawn(run, run.directory(), "etcd", etcd)?;
        let command = api_server(&self.directory, self.store, self.server, audit)?;
        let api_server = Process::spawn(run, run.directory(), "kube-apiserver", command)?;
        Ok((etcd, api_server))
    }
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(copied.success(), "copy {} to {}", from.display(), to.display());
    Ok(())
}

/// A client from a kubeconfig, or, with `user` given, one that acts as that user.
///
/// # Errors
/// When the kubeconfig cannot be read.
pub async fn client(kubeconfig: &Path, user: Option<&str>) -> anyhow::Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.auth_info.impersonate = user.map(str::to_owned);
    Ok(Client::try_from(config)?)
}

async fn wait_until_ready(
    client: &Client,
    api_server: &mut Process,
    etcd: &mut Process,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        etcd.check()?;
        api_server.check()?;
        let request = http::Request::get("/readyz").body(Vec::new())?;
        match tokio::time::timeout(Duration::from_secs(5), client.request_text(request)).await {
            Ok(Ok(text)) if text == "ok" => return Ok(()),
            answer => {
                if Instant::now() > deadline {
                    bail!(
                        "the API server was not ready within {READY_WITHIN:?} ({answer:?}); {}",
                        api_server.last_words()
                    );
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The keys and certificates of a control plane.
struct Keys {
    authority: Authority,
}

impl Keys {
    fn make(directory: &Path, address: IpAddr) -> anyhow::Result<Self> {
        let authority = Authority::new("godwit lab")?;
        write_secret(&directory.join("ca.crt"), authority.certificate())?;
        write_secret(&directory.join("ca.key"), authority.key())?;
        let serving = authority.issue(&Subject {
            common_name: "kube-apiserver".to_owned(),
            names: ["localhost", "kubernetes", "kubernetes.default.svc"]
                .map(str::to_owned)
                .to_vec(),
            addresses: vec![
                address,
                IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)),
            ],
            ..Subject::default()
        })?;
        write_secret(&directory.join("serving.crt"), &serving.certificate)?;
        write_secret(&directory.join("serving.key"), &serving.key)?;
        let accounts = rcgen::KeyPair::generate().context("make the key for service accounts")?;
        write_secret(&directory.join("accounts.key"), &accounts.serialize_pem())?;
        write_secret(&directory.join("accounts.pub"), &accounts.public_key_pem())?;
        write_secret(&directory.join("audit.json"), &audit_policy().to_string())?;
        Ok(Self { authority })
    }

    fn write_kubeconfig(&self, path: &Path, server: &str, user: &str, group: &str) -> anyhow::Result<()> {
        let issued = self.authority.issue(&Subject {
            common_name: user.to_owned(),
            organization: group.to_owned(),
            ..Subject::default()
        })?;
        let user = json!({
            "client-certificate-data": base64(issued.certificate.as_bytes()),
            "client-key-data": base64(issued.key.as_bytes()),
        });
        write_kubeconfig(path, server, self.authority.certificate(), &user)
    }
}

/// Writes a kubeconfig with one cluster and one user (JSON, which is YAML too).
///
/// # Errors
/// When it cannot be written.
pub fn write_kubeconfig(
    path: &Path,
    server: &str,
    authority: &str,
    user: &serde_json::Value,
) -> anyhow::Result<()> {
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": {
            "server": server,
            "certificate-authority-data": base64(authority.as_bytes()),
        }}],
        "users": [{"name": "user", "user": user}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "user", "namespace": "default"}}],
        "current-context": "lab",
    });
    write_secret(path, &serde_json::to_string_pretty(&kubeconfig)?)
}

fn base64(bytes: &[u8]) -> String {
    // Kubernetes' own type for bytes is written in base64.
    match serde_json::to_value(k8s_openapi::ByteString(bytes.to_vec())) {
        Ok(serde_json::Value::String(text)) => text,
        _ => String::new(),
    }
}

fn audit_policy() -> serde_json::Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "verbs": ["get", "list", "watch"]},
            {"level": "Metadata", "resources": [
                {"group": "godwit.dev"},
                {"group": "events.k8s.io"},
                {"group": "", "resources": ["events"]},
                {"group": "coordination.k8s.io"},
            ]},
            {"level": "None"},
        ],
    })
}

fn etcd(directory: &Path, client: SocketAddr, peer: SocketAddr) -> anyhow::Result<Command> {
    let mut command = Command::new(cache::tool("etcd")?);
    command
        .arg("--name=lab")
        .arg(format!("--data-dir={}", directory.join("etcd").display()))
        .arg(format!("--listen-client-urls=http://{client}"))
        .arg(format!("--advertise-client-urls=http://{client}"))
        .arg(format!("--listen-peer-urls=http://{peer}"))
        .arg(format!("--initial-advertise-peer-urls=http://{peer}"))
        .arg(format!("--initial-cluster=lab=http://{peer}"))
        .arg("--unsafe-no-fsync=true");
    Ok(command)
}

fn api_server(
    directory: &Path,
    etcd: SocketAddr,
    address: SocketAddr,
    audit: &Path,
) -> anyhow::Result<Command> {
    let file = |name: &str| directory.join(name).display().to_string();
    let mut command = Command::new(cache::tool("kube-apiserver")?);
    command
        .arg(format!("--etcd-servers=http://{etcd}"))
        .arg(format!("--cert-dir={}", directory.display()))
        .arg(format!("--tls-cert-file={}", file("serving.crt")))
        .arg(format!("--tls-private-key-file={}", file("serving.key")))
        .arg(format!("--bind-address={}", address.ip()))
        .arg(format!("--advertise-address={}", address.ip()))
        .arg(format!("--secure-port={}", address.port()))
        .arg("--service-cluster-ip-range=10.0.0.0/24")
        .arg("--endpoint-reconciler-type=none")
        .arg("--allow-privileged=true")
        .arg("--authorization-mode=Node,RBAC")
        .arg("--enable-admission-plugins=NodeRestriction")
        .arg("--service-account-issuer=https://kubernetes.default.svc")
        .arg(format!("--service-account-key-file={}", file("accounts.pub")))
        .arg(format!(
            "--service-account-signing-key-file={}",
            file("accounts.key")
        ))
        .arg(format!("--client-ca-file={}", file("ca.crt")))
        .arg(format!("--audit-policy-file={}", file("audit.json")))
        .arg(format!("--audit-log-path={}", audit.display()))
        // On SIGTERM it would wait a minute for clients that watch.
        .arg("--shutdown-delay-duration=0s");
    Ok(command)
}

fn controller_manager(directory: &Path, kubeconfig: &Path) -> anyhow::Result<Command> {
    let file = |name: &str| directory.join(name).display().to_string();
    let mut command = Command::new(cache::tool("kube-controller-manager")?);
    command
        .arg(format!("--kubeconfig={}", kubeconfig.display()))
        .arg(format!(
            "--service-account-private-key-file={}",
            file("accounts.key")
        ))
        .arg(format!("--root-ca-file={}", file("ca.crt")))
        .arg(format!("--cluster-signing-cert-file={}", file("ca.crt")))
        .arg(format!("--cluster-signing-key-file={}", file("ca.key")))
        .arg("--use-service-account-credentials=true")
        .arg("--leader-elect=false")
        // It serves nothing that the lab needs.
        .arg("--secure-port=0");
    Ok(command)
}

fn free_ports<const N: usize>(address: IpAddr) -> anyhow::Result<[u16; N]> {
    let mut ports = [0; N];
    let mut held = Vec::with_capacity(N);
    for port in &mut ports {
        let listener = TcpListener::bind((address, 0)).with_context(|| format!("listen on {address}"))?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}
