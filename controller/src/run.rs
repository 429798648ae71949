//! Puts the controller together and runs it: first for the lead, then all reconcilers until the shutdown.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use godwit_crds::{
    GuestRecord, VirtualMachine, VirtualMachineHost, VirtualMachineMigration, VirtualMachineResolution,
};
use godwit_identity::{OpenError, Request, Source};
use godwit_protocol::{ClientTls, Dial, PeerIdentity, TlsFiles};
use kube::runtime::controller::{self, Action, Controller};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::agents::Agents;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::connect::{self, ConnectError};
use crate::health::{self, Health};
use crate::leader::Candidate;
use crate::migration::validate;
use crate::record::Records;
use crate::ticket::{Keys, Tickets};
use crate::{guest, host, migration, resolution};

/// How many objects of a kind are reconciled at the same time.
const CONCURRENCY: u16 = 8;
/// A failed reconciliation is tried again after this long.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// How long the first stage of the shutdown may take: writes that are under way, and handovers whose guest is
/// stopped.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);

/// Why the controller cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The way to the API server.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The certificates.
    #[error("the certificates cannot be used")]
    Tls(#[from] OpenError),
    /// No way to a certificate.
    #[error("neither --tls-certificate and --tls-key nor --certificate-signer are given")]
    NoCertificate,
    /// The health endpoint.
    #[error("--health-listen cannot be opened")]
    Health(#[source] std::io::Error),
    /// Another controller has taken over.
    #[error("the lead was lost")]
    LeadLost,
}

/// Runs until `shutdown`, or until the lead is lost: what runs then is not to be trusted, and a new process starts
/// clean.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), RunError> {
    let client = connect::client(config.kubeconfig.as_deref()).await?;
    // Before the certificate: the signer may take its time, and a controller that waits for it is well.
    let health = Arc::new(Health::default());
    health.awaits_certificate();
    if let Some(address) = config.health_listen {
        let listener = health::listen(address).await.map_err(RunError::Health)?;
        tokio::spawn(health::serve(listener, health.clone()));
    }
    let source = source(&config, &client).ok_or(RunError::NoCertificate)?;
    let opened = source
        .open(&PeerIdentity::Controller, &config.trust_domain, &shutdown)
        .await;
    let (credentials, keeper) = match opened {
        Ok(opened) => opened,
        Err(OpenError::Stopped) => return Ok(()),
        Err(why @ OpenError::Tls(_)) => return Err(why.into()),
    };
    health.certified();
    let tls = ClientTls::new(credentials);
    tokio::spawn(keeper.run(shutdown.clone()));
    let me = format!("{}-{}", crate::cluster::NAME, uuid::Uuid::new_v4());
    // Only the lead goes to a name that lasts: what is written into records tells of one process.
    let identity = config.identity.clone().unwrap_or_else(|| me.clone());
    let mut candidate = Candidate::new(client.clone(), &config.namespace, identity);
    if !candidate.lead(&health, &shutdown).await {
        return Ok(());
    }
    health.leading();
    let stop = shutdown.child_token();
    let work = tokio::spawn(work(
        client,
        Arc::new(tls),
        me,
        config.namespace,
        Duration::from_secs(config.peer_silence),
        health.clone(),
        stop.clone(),
    ));
    candidate.keep(&health, &shutdown).await;
    let lost = !shutdown.is_cancelled();
    stop.cancel();
    if tokio::time::timeout(LEAVE_WITHIN, work).await.is_err() {
        tracing::warn!("not everything came to its end in time; the next controller takes it up");
    }
    if lost {
        return Err(RunError::LeadLost);
    }
    candidate.release().await;
    Ok(())
}

/// The way to the controller's certificate; none where the command line names none, which it always does.
fn source(config: &Config, client: &Client) -> Option<Source> {
    if let (Some(signer), Some(directory)) = (&config.certificate_signer, &config.certificate_directory) {
        return Some(Source::Request(Box::new(Request {
            client: client.clone(),
            signer: signer.clone(),
            lifetime: Duration::from_secs(config.certificate_lifetime),
            authorities: config.tls_ca.clone(),
            directory: directory.clone(),
        })));
    }
    Some(Source::Files(TlsFiles {
        authorities: config.tls_ca.clone(),
        chain: config.tls_certificate.clone()?,
        key: config.tls_key.clone()?,
    }))
}

/// Runs everything that a leader runs, until `stop`. `dial` reaches the agents.
pub async fn work(
    client: Client,
    dial: Arc<dyn Dial>,
    me: String,
    namespace: String,
    peer_silence: Duration,
    health: Arc<Health>,
    stop: CancellationToken,
) {
    let settings = controller::Config::default().concurrency(CONCURRENCY);
    let guests = Controller::<VirtualMachine>::new(Api::all(client.clone()), watcher::Config::default());
    let migrations =
        Controller::<VirtualMachineMigration>::new(Api::all(client.clone()), watcher::Config::default());
    let (hosts, writer) = reflector::store::<VirtualMachineHost>();
    let tickets = Tickets::new(Keys::new(client.clone(), &namespace));
    let cluster = Arc::new(Cluster::new(
        client.clone(),
        Records::new(client.clone(), me),
        Agents::new(dial),
        tickets.clone(),
        peer_silence,
        guests.store(),
        migrations.store(),
        hosts,
        stop.clone(),
    ));
    // One watch fills the store and wakes the guests: with one for each, a guest could be judged by what the store had
    // not heard yet, and nothing would wake it again.
    let host_watch = reflector::reflector(
        writer,
        watcher(
            Api::<VirtualMachineHost>::all(client.clone()),
            watcher::Config::default(),
        ),
    )
    .default_backoff()
    .touched_objects()
    .inspect_err(|error| tracing::warn!(%error, "the hosts are not seen"));

    let of_host = waiting_for_host(guests.store());
    let of_guest = of_guest(migrations.store());
    let guests = guests
        .with_config(settings.clone())
        .watches(
            Api::<GuestRecord>::all(client.clone()),
            watcher::Config::default(),
            |record| Some(ObjectRef::new(&record.spec.guest.name).within(&record.spec.guest.namespace)),
        )
        .watches(
            Api::<VirtualMachineMigration>::all(client.clone()),
            watcher::Config::default(),
            |migration| {
                let namespace = migration.namespace()?;
                Some(ObjectRef::new(&migration.spec.virtual_machine).within(&namespace))
            },
        )
        .watches_stream(host_watch, of_host)
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(guest::reconcile::reconcile, again, cluster.clone())
        .for_each(|done| async move { log("VirtualMachine", done) });
    let migrations = migrations
        .with_config(settings.clone())
        .watches(
            Api::<VirtualMachine>::all(client.clone()),
            watcher::Config::default(),
            of_guest,
        )
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(migration::reconcile::reconcile, again, cluster.clone())
        .for_each(|done| async move { log("VirtualMachineMigration", done) });
    let resolutions =
        Controller::<VirtualMachineResolution>::new(Api::all(client), watcher::Config::default())
            .with_config(settings)
            .graceful_shutdown_on(stop.clone().cancelled_owned())
            .run(resolution::reconcile::reconcile, again, cluster.clone())
            .for_each(|done| async move { log("VirtualMachineResolution", done) });
    let ready = async {
        if cluster.wait_until_seen().await.is_ok() {
            health.watching();
            tracing::info!("every watch has seen everything once");
        }
    };
    // At the shutdown the reconcilers end what they are at, then the drivers and writers do.
    let reconcilers = async {
        futures::future::join3(guests, migrations, resolutions).await;
        cluster.tasks.close();
        cluster.tasks.wait().await;
    };
    let beside = futures::future::join3(
        host::watch_leases(cluster.clone(), namespace),
        tickets.run(stop.clone()),
        ready,
    );
    // Nothing is reconciled before everything was seen: told to end before that, there is nothing to bring to its end,
    // and a watch that was stopped would be waited for in vain.
    let nothing_begun = async {
        stop.cancelled().await;
        if cluster.has_seen() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = reconcilers => {}
        _ = beside => {}
        () = nothing_begun => {}
    }
}

fn again<K, E: std::error::Error>(_: Arc<K>, _: &E, _: Arc<Cluster>) -> Action {
    Action::requeue(AGAIN_AFTER)
}

fn log<K: Resource, E: std::error::Error + 'static>(
    kind: &str,
    done: Result<(ObjectRef<K>, Action), controller::Error<E, watcher::Error>>,
) where
    K::DynamicType: std::fmt::Debug + std::hash::Hash + Eq + Clone,
{
    match done {
        Ok(_) => {}
        // An event of another kind named an object that is not there (any more).
        Err(controller::Error::ObjectNotFound(_)) => {}
        Err(error) => {
            let causes: Vec<_> =
                std::iter::successors(std::error::Error::source(&error), |cause| cause.source())
                    .map(ToString::to_string)
                    .collect();
            tracing::warn!(kind, %error, causes = causes.join(": "), "to be tried again");
        }
    }
}

/// The guests that a host's change may concern: its own, and those that have no host yet.
fn waiting_for_host(
    guests: Store<VirtualMachine>,
) -> impl Fn(VirtualMachineHost) -> Vec<ObjectRef<VirtualMachine>> + Send + Sync + 'static {
    move |host| {
        let name = host.name_any();
        guests
            .state()
            .into_iter()
            .filter(|guest| {
                let mirrored = guest.status.as_ref().and_then(|status| status.host.as_deref());
                mirrored.is_none_or(|mirrored| mirrored == name)
                    || guest
                        .uid()
                        .is_some_and(|uid| guest::decide::report(&host, &uid).next().is_some())
            })
            .map(|guest| ObjectRef::from_obj(&*guest))
            .collect()
    }
}

/// The migrations of a guest that have not ended.
fn of_guest(
    migrations: Store<VirtualMachineMigration>,
) -> impl Fn(VirtualMachine) -> Vec<ObjectRef<VirtualMachineMigration>> + Send + Sync + 'static {
    move |guest| {
        migrations
            .state()
            .into_iter()
            .filter(|migration| {
                migration.namespace() == guest.namespace()
                    && migration.spec.virtual_machine == guest.name_any()
                    && !validate::ended(migration)
            })
            .map(|migration| ObjectRef::from_obj(&*migration))
            .collect()
    }
}
