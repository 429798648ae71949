//! The agent's program: its arguments, the order in which its parts begin, and how it ends.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use godwit_agent::cgroup::Cgroups;
use godwit_agent::config::{Accelerator, Config};
use godwit_agent::guest_network::GuestNetwork;
use godwit_agent::guests::{Guests, Settings, process};
use godwit_agent::host::machine::Machine;
use godwit_agent::host::publisher::HostFacts;
use godwit_agent::host::{Health, Publisher, RecordReader, RecordWriter, api};
use godwit_agent::hypervisor::Hypervisor;
use godwit_agent::hypervisor::qemu::{self, AcceleratorChoice, Qemu, QemuConfig};
use godwit_agent::identity;
use godwit_agent::kernel_tls;
use godwit_agent::migration::{self, Drivers, Migrations};
use godwit_agent::pools::Pools;
use godwit_agent::server::AgentService;
use godwit_agent::state::StateLock;
use godwit_agent::taps::IpCommand;
use godwit_agent::tickets::TicketGate;
use godwit_agent::tickets::keys::FromConfigMap;
use godwit_agent::tunnel::{self, HostTunnels};
use godwit_crds::VirtualMachineHostSpec;
use godwit_protocol::server::{Limits, serve};
use godwit_protocol::{ClientTls, PeerIdentity, ServerTls};
use rustix::process::{Resource, Rlimit, geteuid, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

/// How long calls and the last words to the API server may take when the agent is stopped.
const FAREWELL: Duration = Duration::from_secs(5);

/// godwit's agent: runs the guests of one host and moves them.
///
/// Its guests outlive it: it may be stopped, killed and replaced at any time.
#[derive(Parser)]
#[command(name = "godwit-agent", version, after_help = EXIT_CODES)]
struct Arguments {
    /// The configuration, a YAML file.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/godwit/agent.yaml",
        env = "GODWIT_AGENT_CONFIG"
    )]
    config: PathBuf,
    /// Check the configuration and end.
    #[arg(long)]
    check_config: bool,
    /// How the log is written, to standard error.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "GODWIT_LOG_FORMAT")]
    log_format: LogFormat,
    /// What is logged, for example `info` or `info,godwit_agent::migration=debug`.
    #[arg(long, value_name = "FILTER", default_value = DEFAULT_LOG, env = "GODWIT_LOG")]
    log: String,
}

/// The user that relays run as: the one below those of the guests.
const RELAY_USER: u32 = 2_099_999_999;

/// The client of the API server reports each failed request as an error; the agent says itself what it makes of it.
const DEFAULT_LOG: &str = "info,kube_client::client::builder=off";
const EXIT_CODES: &str = "Exit codes: 0 stopped by SIGTERM or SIGINT; 1 could not begin or go on; 2 wrong arguments or configuration.";

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object per line.
    Json,
}

fn main() -> ExitCode {
    end_on_panic();
    let arguments = Arguments::parse();
    let config = match Config::read(&arguments.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    if arguments.check_config {
        println!("{} can be used", arguments.config.display());
        return ExitCode::SUCCESS;
    }
    let filter = match EnvFilter::try_new(&arguments.log) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("--log: {error}");
            return ExitCode::from(2);
        }
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // A log that takes no more, on a full disk for example, is no reason to end: it would be told to the same log.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    match arguments.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    match begin(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn begin(config: Config) -> anyhow::Result<()> {
    // A core dump of the agent or of a guest would hold keys and guests' memory.
    setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )
    .context("forbid core dumps")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(32)
        .thread_keep_alive(Duration::from_secs(2))
        .enable_all()
        .build()
        .context("start the runtime")?;
    let outcome = runtime.block_on(run(config));
    // A thread that hangs on a network file system does not keep the agent from ending.
    runtime.shutdown_background();
    outcome
}

async fn run(config: Config) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    watch_signals(stop.clone())?;
    let boot_id = process::boot_id().context("read the boot id")?;
    let client = api::client(config.kubeconfig.as_deref()).await?;
    // The guests do not wait for the API server.
    let (asking, host) = (client.clone(), config.host.clone());
    let mut mine = tokio::spawn(async move { api::check_host(asking, &host).await });
    let pools = Pools::new(config.pools.clone(), config.block_devices.clone());
    let mut machine = Machine::look().context("look at the machine")?;
    machine.memory = machine.memory.saturating_sub(config.reserve_bytes());

    let hypervisor: Arc<dyn Hypervisor> = Arc::new(Qemu::new(qemu_config(&config)));
    let guests = Guests::open(
        Settings {
            host: config.host.clone(),
            state_directory: config.state_directory.clone(),
            run_directory: config.run_directory.clone(),
            memory: machine.memory,
            pools: pools.clone(),
            taps: Arc::new(IpCommand),
            users: geteuid().is_root().then(|| config.users()),
            cgroups: Cgroups::discover(),
        },
        hypervisor.clone(),
    )?;
    let _lock = StateLock::take(&config.state_directory)?;
    let health = Health::look(hypervisor, guests.clone()).await;
    guests.recover().await.context("find the guests again")?;
    let tunnels = HostTunnels::new(tunnel_settings(&config)?);
    let migrations = roles(
        &config,
        &boot_id,
        &guests,
        RecordWriter::new(client.clone(), &config.host),
        tunnels.clone(),
    )
    .await?;

    // The signer may be long in coming: the guests are looked after before.
    let (credentials, keeper) = identity::source(&config, &client)
        .context("no identity is configured")?
        .open(
            &PeerIdentity::Host(config.host.clone()),
            &config.trust_domain,
            &stop,
        )
        .await
        .with_context(|| {
            format!(
                "get the certificate of {}, as the configuration's `host` names this host",
                config.host
            )
        })?;
    tunnels.speak_as(&credentials);

    let drivers = Drivers::new(
        migrations.clone(),
        Arc::new(RecordWriter::new(client.clone(), &config.host)),
        Arc::new(ClientTls::new(credentials.clone())),
        &config.state_directory,
    );
    drivers.recover().await.context("go on driving")?;

    let published = FromConfigMap::new(client.clone(), &config.namespace);
    let records = Arc::new(RecordReader::new(client.clone()));
    let tickets = TicketGate::open(
        &config.host,
        &config.state_directory,
        Arc::new(published),
        records,
    )
    .context("open the memory of used tickets")?;

    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("listen on {}", config.listen))?;
    info!(host = %config.host, listen = %config.listen, guests = guests.list().len(), "the agent serves");
    let tasks = TaskTracker::new();
    let host = HostFacts {
        name: config.host.clone(),
        spec: VirtualMachineHostSpec {
            endpoint: config.endpoint.clone(),
            migration_addresses: config
                .migration_addresses
                .iter()
                .map(ToString::to_string)
                .collect(),
        },
        namespace: config.namespace.clone(),
        boot_id: boot_id.clone(),
        machine,
        kernel_tls: kernel_tls::probe(),
        pools,
        certificate: credentials.clone(),
    };
    info!(kernel_tls = ?host.kernel_tls, "the kernel was asked for TLS");
    let publisher = Publisher::new(client, host, guests.clone(), migrations.clone(), health.seen());
    tasks.spawn(publisher.run(stop.clone()));
    tasks.spawn(health.run(stop.clone()));
    tasks.spawn(keeper.run(stop.clone()));
    tasks.spawn(tickets.clone().run(stop.clone()));
    tasks.close();
    let service = AgentService::new(
        config.host,
        boot_id,
        guests,
        drivers,
        credentials.clone(),
        tickets,
        stop.clone(),
    );
    let mut serving = tokio::spawn(serve(
        listener,
        ServerTls::new(credentials),
        Limits::default(),
        service,
        Arc::new(tunnels),
        stop.clone().cancelled_owned(),
    ));

    tokio::select! {
        // Once the agent is told to stop, the port is no longer served either: that is no failure.
        biased;
        () = stop.cancelled() => {}
        Ok(Err(words)) = &mut mine => {
            stop.cancel();
            bail!("{words}");
        }
        outcome = &mut serving => {
            stop.cancel();
            outcome.context("serve")?.context("serve")?;
            bail!("the agent port is no longer served");
        }
    }
    info!("the agent is being stopped; its guests go on");
    let farewell = async {
        tasks.wait().await;
        let _ = (&mut serving).await;
    };
    if tokio::time::timeout(FAREWELL, farewell).await.is_err() {
        warn!("some calls did not end in time");
        serving.abort();
    }
    Ok(())
}

fn qemu_config(config: &Config) -> QemuConfig {
    let accelerator = match config.qemu.accelerator {
        Accelerator::Auto => AcceleratorChoice::Auto,
        Accelerator::Kvm => AcceleratorChoice::Forced(qemu::Accelerator::Kvm),
        Accelerator::Tcg => AcceleratorChoice::Forced(qemu::Accelerator::Tcg),
    };
    QemuConfig {
        program: config.qemu.binary.clone(),
        accelerator,
    }
}

fn watch_signals(stop: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    Ok(())
}

/// Relays are found beside the agent, and run as a user of their own where the agent is root.
fn tunnel_settings(config: &Config) -> anyhow::Result<tunnel::Settings> {
    let beside = std::env::current_exe().context("find the agent's own program")?;
    let address = *config
        .migration_addresses
        .first()
        .context("no migration address is configured")?;
    // The one at which the port listens, or the one that is published for guest memory if it listens at all.
    let address = if config.listen.ip().is_unspecified() {
        address
    } else {
        config.listen.ip()
    };
    Ok(tunnel::Settings {
        host: config.host.clone(),
        program: beside.with_file_name("godwit-relay"),
        directory: config.run_directory.join("tunnels"),
        meetings: config.run_directory.join("streams"),
        user: geteuid().is_root().then_some(RELAY_USER),
        cgroups: Cgroups::discover(),
        address: (address, config.listen.port()).into(),
    })
}

/// Takes up the migrations that the journals speak of.
async fn roles(
    config: &Config,
    boot_id: &str,
    guests: &Guests,
    records: RecordWriter,
    tunnels: HostTunnels,
) -> anyhow::Result<Migrations> {
    let migration_address = *config
        .migration_addresses
        .first()
        .context("no migration address is configured")?;
    let guest_network = GuestNetwork::open(config.run_directory.join("guest-network"))
        .await
        .context("look for migration networks that were plugged")?;
    if let Err(why) = guest_network.served() {
        warn!("native streams over several connections are not served here: {why}");
    }
    let settings = migration::Settings {
        host: config.host.clone(),
        boot_id: boot_id.to_owned(),
        state_directory: config.state_directory.clone(),
        migration_address,
        migration_ports: config.migration_ports.first..=config.migration_ports.last,
        refuse_plain_text: config.refuse_plain_text,
        tunnels: Some(Arc::new(tunnels)),
        guest_network,
    };
    guests.obey(Arc::new(records.clone()));
    let migrations = Migrations::new(settings, Arc::new(guests.clone()), Arc::new(records));
    migrations.recover().await.context("take up the migrations")?;
    guests.settle(migrations.journals());
    Ok(migrations)
}

/// A task that panicked would leave the rest of the agent running on half of what it knows; an agent that ends
/// finds its guests and migrations again from what is on disk and from the hypervisors.
fn end_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}
