//! The lab as a whole: a control plane with the chart installed, hosts with agents, the controller.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use godwit_crds::{ConditionStatus, VirtualMachineHost};
use kube::{Api, Client};

use crate::certificates::Authority;
use crate::control_plane::ControlPlane;
use crate::credentials::Credentials;
use crate::hosts::{AGENT_PORT, AgentFiles, Host};
use crate::network::Network;
use crate::process::Process;
use crate::run::Run;
use crate::signer::Signer;
use crate::supervisor::Supervised;
use crate::{accelerator, cache, chart, initramfs, signer};

/// The file names in the pool `default` that test guests boot from.
pub const KERNEL: &str = "vmlinuz";
/// See [`KERNEL`].
pub const INITRAMFS: &str = "initramfs.cpio";

/// The node whose pod the controller is, where it asks the signer.
const CONTROLLER_NODE: &str = "h1";

/// How long agents may take from their start until their hosts are ready.
const HOSTS_READY_WITHIN: Duration = Duration::from_secs(90);

/// Told what the lab is about to do, for progress.
pub type Teller = Arc<dyn Fn(&str) + Send + Sync>;

/// What a lab consists of.
#[derive(Clone)]
pub struct LabOptions {
    label: String,
    hosts: usize,
    agents: bool,
    controller: bool,
    guest_files: bool,
    signer: bool,
    teller: Teller,
}

impl LabOptions {
    /// A control plane with the chart, and two hosts with agents, a controller and the test guests' files. The label
    /// names the run's directory of logs.
    #[must_use]
    pub fn new(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            hosts: 2,
            agents: true,
            controller: true,
            guest_files: true,
            signer: false,
            teller: Arc::new(|_| {}),
        }
    }

    /// That many hosts.
    #[must_use]
    pub fn hosts(mut self, hosts: usize) -> Self {
        self.hosts = hosts;
        self
    }

    /// No hosts, no agents, no controller, no guests: the control plane and the chart.
    #[must_use]
    pub fn only_api(mut self) -> Self {
        (self.hosts, self.agents, self.controller, self.guest_files) = (0, false, false, false);
        self
    }

    /// Whether the controller is started. [`Lab::start_controller`] does it later.
    #[must_use]
    pub fn controller(mut self, start: bool) -> Self {
        self.controller = start;
        self
    }

    /// Whether the agents are started. [`Lab::start_agent`] does it later.
    #[must_use]
    pub fn agents(mut self, start: bool) -> Self {
        self.agents = start;
        self
    }

    /// Whether the files that test guests boot from are made.
    #[must_use]
    pub fn guest_files(mut self, make: bool) -> Self {
        self.guest_files = make;
        self
    }

    /// Whether the signer is started, and the agents and the controller ask it for their certificates. Else they have
    /// them from the lab.
    #[must_use]
    pub fn signer(mut self, start: bool) -> Self {
        self.signer = start;
        self
    }

    /// Whom to tell about each step.
    #[must_use]
    pub fn tell(mut self, teller: Teller) -> Self {
        self.teller = teller;
        self
    }
}

/// A running lab. Dropped, it kills its processes; [`Lab::stop`] takes everything down in order and checks.
pub struct Lab {
    controller: Option<Supervised>,
    signer: Option<Signer>,
    /// The hosts: the first is `h1`.
    pub hosts: Vec<Host>,
    /// The control plane.
    pub control_plane: ControlPlane,
    /// The hosts' network.
    pub network: Network,
    /// What issued the agents' and the controller's certificates.
    pub authority: Authority,
    /// The controller's, then the hosts' in their order.
    credentials: Vec<Credentials>,
    controller_kubeconfig: PathBuf,
    asks_signer: bool,
    programs: PathBuf,
    controller_program: PathBuf,
    pool: PathBuf,
    // Last, so that it goes last: it holds the lock on the run's number.
    run: Option<Run>,
}

impl Lab {
    /// Brings a lab up, after having removed what crashed ones left behind.
    ///
    /// # Errors
    /// When a part is missing or does not come up; the message names its log. What was started is killed then.
    pub async fn start(options: LabOptions) -> anyhow::Result<Self> {
        let tell = &options.teller;
        let run = Run::claim(&options.label)?;
        let records = run.records().to_owned();
        let lab = Self::bring_up(&options, run).await;
        if lab.is_err() {
            tell(&format!(
                "the lab did not come up; its logs are in {}",
                records.join("logs").display()
            ));
        }
        lab
    }

    async fn bring_up(options: &LabOptions, run: Run) -> anyhow::Result<Self> {
        let tell = &options.teller;
        let (programs, pool) = prepare_files(options, &run).await?;

        tell("network");
        let network = Network::make(run.number(), options.hosts)?;
        for skipped in network.skipped() {
            tell(skipped);
        }

        tell("control plane");
        let control_plane = ControlPlane::start(&run, network.machine()).await?;
        tell("helm install");
        let said = chart::install(&control_plane).await?;
        std::fs::write(run.log("helm"), said)?;

        let authority = Authority::new("godwit lab agents")?;
        let certificates = run.directory().join("controller");
        authority.write_controller(&certificates)?;
        let account = chart::CONTROLLER_ACCOUNT;
        let controller = if options.signer {
            // Who asks the signer must be a pod.
            Credentials::of_pod(
                &control_plane,
                CONTROLLER_NODE,
                account,
                run.records(),
                "controller",
            )
            .await?
        } else {
            Credentials::unbound(&control_plane, account, run.records(), "controller").await?
        };
        let controller_kubeconfig = controller.kubeconfig().to_owned();
        let mut credentials = vec![controller];

        let mut hosts = Vec::with_capacity(options.hosts);
        for number in 1..=options.hosts {
            let host = Host::make(
                &run,
                number,
                network.host(number),
                network.namespace(number),
                &programs,
            )?;
            let tls = authority.write_host(&host.directory.join("tls"), &host.name, host.address)?;
            let agent = Credentials::of_pod(
                &control_plane,
                &host.name,
                chart::AGENT_ACCOUNT,
                &host.directory,
                "agent",
            )
            .await?;
            host.configure(&AgentFiles {
                tls: &tls,
                asks_signer: options.signer,
                kubeconfig: agent.kubeconfig(),
                pools: &BTreeMap::from([("default".to_owned(), pool.clone())]),
                qemu: Path::new("qemu-system-x86_64"),
            })?;
            hosts.push(host);
            credentials.push(agent);
        }
        let mut lab = Self {
            controller: None,
            signer: None,
            hosts,
            control_plane,
            network,
            authority,
            credentials,
            controller_kubeconfig,
            asks_signer: options.signer,
            controller_program: programs.join("godwit-controller"),
            programs,
            pool,
            run: Some(run),
        };
        if options.signer {
            tell("signer");
            lab.start_signer().await?;
        }
        if options.agents && options.hosts > 0 {
            tell("agents");
            for number in 1..=options.hosts {
                lab.start_agent(number)?;
            }
        }
        if options.controller {
            tell("controller");
            lab.start_controller()?;
        }
        if options.agents && options.hosts > 0 {
            lab.wait_until_ready().await?;
        }
        Ok(lab)
    }

    fn run(&self) -> anyhow::Result<&Run> {
        self.run.as_ref().context("the lab was stopped")
    }

    /// The run's number: addresses and namespaces follow from it.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.run.as_ref().map_or(0, Run::number)
    }

    /// The directory that outlives the lab: `logs/`, and `administrator.kubeconfig`.
    #[must_use]
    pub fn records(&self) -> &Path {
        self.run.as_ref().map_or(Path::new(""), Run::records)
    }

    /// A client with all rights.
    #[must_use]
    pub fn client(&self) -> Client {
        self.control_plane.client()
    }

    /// Copies the API server's store as it is now; see [`ControlPlane::save`].
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn save_store(&self, to: &Path) -> anyhow::Result<()> {
        self.control_plane.save(to)
    }

    /// Puts a copy of the API server's store in its place; see [`ControlPlane::restore`].
    ///
    /// # Errors
    /// When the API server does not come up with it.
    pub async fn restore_store(&mut self, from: &Path) -> anyhow::Result<()> {
        let run = self.run.as_ref().context("the lab was stopped")?;
        self.control_plane.restore(run, from).await
    }

    /// A client with the controller's own rights.
    ///
    /// # Errors
    /// When its kubeconfig cannot be read.
    pub async fn controller_client(&self) -> anyhow::Result<Client> {
        crate::control_plane::client(&self.controller_kubeconfig, None).await
    }

    /// What the agent of the host with that number logs in with.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn agent_credentials(&self, number: usize) -> anyhow::Result<&Credentials> {
        let found = if number == 0 {
            None
        } else {
            self.credentials.get(number)
        };
        found.with_context(|| format!("there is no host {number}"))
    }

    /// The pool `default`, which all hosts share.
    #[must_use]
    pub fn pool(&self) -> &Path {
        &self.pool
    }

    /// The host with that number, counted from 1 as in its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn host(&mut self, number: usize) -> anyhow::Result<&mut Host> {
        number
            .checked_sub(1)
            .and_then(|index| self.hosts.get_mut(index))
            .with_context(|| format!("there is no host {number}"))
    }

    /// Starts a host's agent, unless it runs.
    ///
    /// # Errors
    /// When there is no such host or its agent cannot be started.
    pub fn start_agent(&mut self, number: usize) -> anyhow::Result<()> {
        let run = self.run.as_ref().context("the lab was stopped")?;
        let host = number.checked_sub(1).and_then(|index| self.hosts.get_mut(index));
        host.with_context(|| format!("there is no host {number}"))?
            .start_agent(run)
    }

    /// Kills a host's agent as `kill -9` does and starts it again.
    ///
    /// # Errors
    /// As [`Lab::start_agent`].
    pub fn restart_agent(&mut self, number: usize) -> anyhow::Result<()> {
        self.host(number)?.kill_agent();
        self.start_agent(number)
    }

    /// Starts the controller, unless it runs. Whenever it ends by itself it is started again.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_controller(&mut self) -> anyhow::Result<()> {
        if let Some(controller) = &self.controller
            && controller.check().is_ok()
        {
            return Ok(());
        }
        let run = self.run()?;
        let (log, directory) = (run.log("controller"), run.directory().to_owned());
        let program = self.controller_program.clone();
        let kubeconfig = self.controller_kubeconfig.clone();
        let asks_signer = self.asks_signer;
        let start = move || {
            let command = controller(&program, &kubeconfig, &directory.join("controller"), asks_signer);
            Process::start(&log, &directory, "controller", command)
        };
        self.controller = Some(Supervised::start(start)?);
        Ok(())
    }

    /// The controller's program.
    #[must_use]
    pub fn controller_program(&self) -> &Path {
        &self.controller_program
    }

    /// Has the controller run from another place when it is started next.
    pub fn run_controller_from(&mut self, program: PathBuf) {
        self.controller_program = program;
    }

    /// Starts the signer, unless it runs. It issues with [`Lab::authority`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start_signer(&mut self) -> anyhow::Result<()> {
        if self
            .signer
            .as_mut()
            .is_some_and(|signer| signer.process.exited().is_none())
        {
            return Ok(());
        }
        let signer = Signer::start(self.run()?, &self.control_plane, &self.programs, &self.authority).await?;
        self.signer = Some(signer);
        Ok(())
    }

    /// Kills the signer as `kill -9` does.
    pub fn kill_signer(&mut self) {
        self.signer = None;
    }

    /// The controller's directory: whom it believes in `ca.crt`, and what the signer gave it in
    /// `identity/identity.pem`.
    ///
    /// # Errors
    /// When the lab was stopped.
    pub fn controller_directory(&self) -> anyhow::Result<PathBuf> {
        Ok(self.run()?.directory().join("controller"))
    }

    /// The signer, if it was started and not killed.
    #[must_use]
    pub fn signer(&self) -> Option<&Signer> {
        self.signer.as_ref()
    }

    /// Kills the controller as `kill -9` does.
    pub fn kill_controller(&mut self) {
        // Dropping a part kills it.
        self.controller = None;
    }

    /// The controller, if it was started and not killed.
    #[must_use]
    pub fn controller(&self) -> Option<&Supervised> {
        self.controller.as_ref()
    }

    /// Waits until every host whose agent was started is ready: its agent listens (the object may still tell of an
    /// agent that was killed) and its VirtualMachineHost says so.
    ///
    /// # Errors
    /// When one is not within 30 s, or its agent has ended; the message names the log.
    pub async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let objects: Api<VirtualMachineHost> = Api::all(self.client());
        let deadline = Instant::now() + HOSTS_READY_WITHIN;
        for host in &mut self.hosts {
            let name = host.name.clone();
            while let Some(agent) = host.agent() {
                agent.check()?;
                if let Some(controller) = &self.controller {
                    controller.check()?;
                }
                let object = objects.get_opt(&name).await?;
                let listens = host.listening()?.contains(&AGENT_PORT);
                if let Some(object) = object.as_ref().filter(|object| listens && ready(object)) {
                    let found = object.status.iter().flat_map(|status| &status.hypervisors).next();
                    if let Some(found) = found {
                        accelerator::remember(&found.accelerator);
                    }
                    break;
                }
                if Instant::now() > deadline {
                    let status = object
                        .and_then(|object| object.status)
                        .map(|status| status.conditions);
                    bail!(
                        "{name} is not ready after {HOSTS_READY_WITHIN:?}: {status:?}; {}",
                        host.agent().map(|agent| agent.last_words()).unwrap_or_default()
                    );
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// `kubectl` as the administrator.
    ///
    /// # Errors
    /// When kubectl is missing.
    pub fn kubectl(&self) -> anyhow::Result<Command> {
        self.control_plane.kubectl()
    }

    /// `kubectl godwit` as the administrator.
    #[must_use]
    pub fn plugin(&self) -> Command {
        let mut command = Command::new(self.programs.join("kubectl-godwit"));
        command.env("KUBECONFIG", self.control_plane.administrator());
        command
    }

    /// Takes everything down: the controller and the agents are asked to end, then guests and the control plane are
    /// killed, and namespaces and directories removed. Logs stay.
    ///
    /// # Errors
    /// When a part had ended before it was asked to, does not end when asked, or anything is left behind.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let mut complaints = Vec::new();
        if let Some(controller) = self.controller.take() {
            complaints.extend(end(&mut controller.take()?).await.err());
        }
        for host in &mut self.hosts {
            if let Some(agent) = host.agent() {
                complaints.extend(end(agent).await.err());
            }
            host.kill_agent();
        }
        if let Some(mut signer) = self.signer.take() {
            complaints.extend(end(&mut signer.process).await.err());
        }
        for part in self.control_plane.parts() {
            complaints.extend(part.check().err());
            part.kill();
        }
        if let Some(run) = self.run.take() {
            let number = run.number();
            run.remove()?;
            if let Some(left) = crate::run::list()?
                .into_iter()
                .find(|listed| listed.number == number)
            {
                // Another run may have taken the number by now; it holds it then.
                if !left.held {
                    bail!("the run left something behind: {left:?}");
                }
            }
        }
        if let Some(first) = complaints.into_iter().next() {
            return Err(first);
        }
        Ok(())
    }

    /// Leaves everything running and gives back the directory with logs and kubeconfigs. `lab down` removes it.
    ///
    /// # Errors
    /// When the run cannot be marked as left on purpose, or tokens cannot be had that last.
    pub async fn leave(mut self) -> anyhow::Result<PathBuf> {
        let records = self.records().to_owned();
        for credentials in self.credentials.drain(..) {
            credentials.outlast().await?;
        }
        if let Some(controller) = self.controller.take() {
            controller.take()?.leave();
        }
        if let Some(signer) = self.signer.take() {
            signer.leave().await?;
        }
        for host in &mut self.hosts {
            if let Some(agent) = host.agent() {
                agent.leave();
            }
        }
        for part in self.control_plane.parts() {
            part.leave();
        }
        if let Some(run) = self.run.take() {
            run.leave()?;
        }
        Ok(records)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // After `stop` or `leave` there is no run any more. Else this is a failed test: the parts are killed as their
        // values go, and the run, the last one, takes guests and namespaces with it.
        if let Some(run) = &self.run {
            eprintln!(
                "The logs of this run are in {}",
                run.records().join("logs").display()
            );
        }
    }
}

async fn end(part: &mut Process) -> anyhow::Result<()> {
    part.check()?;
    let status = part.terminate(Duration::from_secs(30)).await?;
    if !status.success() {
        bail!(
            "{} ended badly ({status}) when asked to end; {}",
            part.part(),
            part.last_words()
        );
    }
    Ok(())
}

fn controller(program: &Path, kubeconfig: &Path, certificates: &Path, asks_signer: bool) -> Command {
    let mut command = Command::new(program);
    command
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .arg("--tls-ca")
        .arg(certificates.join("ca.crt"));
    if asks_signer {
        command
            .args(["--certificate-signer", signer::NAME, "--certificate-directory"])
            .arg(certificates.join("identity"))
            // The shortest there is: it is renewed while a long suite runs.
            .args(["--certificate-lifetime", "600"]);
    } else {
        command
            .arg("--tls-certificate")
            .arg(certificates.join("tls.crt"))
            .arg("--tls-key")
            .arg(certificates.join("tls.key"));
    }
    command
        .args(["--namespace", chart::NAMESPACE])
        // A third of the default, so that a case about silence does not take half a minute.
        .args(["--peer-silence", "10"])
        // There is one, as in the chart's deployment; started again, it leads at once.
        .args(["--identity", "lab"]);
    command
}

fn ready(host: &VirtualMachineHost) -> bool {
    host.status
        .iter()
        .flat_map(|status| &status.conditions)
        .any(|condition| condition.type_ == "Ready" && condition.status == ConditionStatus::True)
}

/// Builds what is to be built, and fills the pool.
async fn prepare_files(options: &LabOptions, run: &Run) -> anyhow::Result<(PathBuf, PathBuf)> {
    use std::os::unix::fs::PermissionsExt as _;
    let programs = if options.agents || options.controller || options.signer {
        (options.teller)("programs");
        tokio::task::spawn_blocking(cache::build_programs).await??
    } else {
        cache::programs()?
    };
    let pool = run.directory().join("pool");
    std::fs::create_dir(&pool)?;
    std::fs::set_permissions(&pool, std::fs::Permissions::from_mode(0o755))?;
    if options.guest_files {
        (options.teller)("guest files");
        let kernel = cache::kernel()?;
        std::fs::copy(&kernel, pool.join(KERNEL)).with_context(|| format!("copy {}", kernel.display()))?;
        let path = pool.join(INITRAMFS);
        tokio::task::spawn_blocking(move || initramfs::write_initramfs(&cache::workspace(), &path)).await??;
        for file in [KERNEL, INITRAMFS] {
            std::fs::set_permissions(pool.join(file), std::fs::Permissions::from_mode(0o644))?;
        }
    }
    Ok((programs, pool))
}
