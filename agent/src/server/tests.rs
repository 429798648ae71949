//! The agent port over real TLS: the guests' calls as the controller makes them, and what is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use godwit_handover::{Cause, DestinationReport, Terms};
use godwit_protocol::server::{Limits, serve};
use godwit_protocol::{
    AgentClient, Category, ClientTls, CurrentCredentials, Fault, GuestName, Order, OrderAnswer, PeerIdentity,
    ServerTls, Side, StartGuest, TlsFiles, TrustDomain, Update,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{AgentService, Roles, Updates};
use crate::cgroup::Cgroups;
use crate::guests::fake::{FakeHypervisor, facts};
use crate::guests::{Guests, Settings};
use crate::pools::Pools;
use crate::sandbox::Network;
use crate::taps::IpCommand;

const UID: &str = "6f1ad7a0-3f54-4a43-9c5e-0d8a5b1c2d3e";
const MIGRATION: &str = "0c1ad7a0-3f54-4a43-9c5e-0d8a5b1c2d3e";

/// Notes what reaches the roles.
#[derive(Clone, Default)]
struct FakeRoles {
    orders: Arc<Mutex<Vec<&'static str>>>,
    terms: Arc<Mutex<Option<Terms>>>,
    side: Arc<Mutex<Option<Side>>>,
}

#[async_trait]
impl Roles for FakeRoles {
    async fn order(&self, _terms: Terms, order: Order) -> Result<OrderAnswer, Fault> {
        self.orders.lock().unwrap().push(order.name());
        Ok(OrderAnswer::Taken)
    }

    fn watch(&self, _migration: &str) -> Updates {
        use futures::StreamExt;
        let side = self.side.lock().unwrap().clone();
        let once = futures::stream::once(async {
            Update {
                side,
                ..Update::default()
            }
        });
        Box::pin(once.chain(futures::stream::pending()))
    }

    async fn keep_alive(&self, _terms: Terms, _path_proven: bool, _silence: Duration) -> Result<(), Fault> {
        Ok(())
    }

    fn terms(&self, _migration: &str) -> Option<Terms> {
        self.terms.lock().unwrap().clone()
    }
}

struct Served {
    directory: tempfile::TempDir,
    endpoint: String,
    hypervisor: Arc<FakeHypervisor>,
    roles: FakeRoles,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

fn write_identity(
    directory: &Path,
    issuer: &CertifiedIssuer<'_, KeyPair>,
    name: &str,
    identity: &PeerIdentity,
) -> TlsFiles {
    let key = KeyPair::generate().unwrap();
    let mut parameters = CertificateParams::default();
    parameters.subject_alt_names = vec![SanType::URI(
        identity.uri(&TrustDomain::default()).try_into().unwrap(),
    )];
    parameters.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let certificate = parameters.signed_by(&key, issuer).unwrap();
    let write = |suffix: &str, text: String| -> PathBuf {
        let path = directory.join(format!("{name}.{suffix}"));
        std::fs::write(&path, text).unwrap();
        path
    };
    TlsFiles {
        authorities: write("ca", issuer.pem()),
        chain: write("pem", certificate.pem()),
        key: write("key", key.serialize_pem()),
    }
}

impl Served {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let host = write_identity(
            directory.path(),
            &issuer,
            "here",
            &PeerIdentity::Host("here".into()),
        );
        write_identity(directory.path(), &issuer, "controller", &PeerIdentity::Controller);
        write_identity(
            directory.path(),
            &issuer,
            "there",
            &PeerIdentity::Host("there".into()),
        );
        std::fs::create_dir(directory.path().join("pool")).unwrap();
        std::fs::write(directory.path().join("pool/kernel"), "").unwrap();

        let hypervisor: Arc<FakeHypervisor> = Arc::default();
        let settings = Settings {
            host: "here".into(),
            state_directory: directory.path().join("state"),
            run_directory: directory.path().join("run"),
            memory: 1 << 30,
            pools: Pools::new(
                BTreeMap::from([("default".into(), directory.path().join("pool"))]),
                vec![],
            ),
            taps: Arc::new(IpCommand),
            users: None,
            network: Network::Isolated,
            cgroups: Cgroups::default(),
        };
        let guests = Guests::open(settings, hypervisor.clone()).unwrap();
        guests.set_facts(Some(facts()));
        guests.recover().await.unwrap();
        let (roles, stop) = (FakeRoles::default(), CancellationToken::new());
        let credentials = CurrentCredentials::new(host.load(&TrustDomain::default()).unwrap());
        let service = AgentService::new(
            "here".into(),
            "boot".into(),
            guests,
            roles.clone(),
            credentials.clone(),
            stop.clone(),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let tls = ServerTls::new(credentials);
        let shutdown = stop.clone().cancelled_owned();
        let serving = tokio::spawn(async move {
            serve(listener, tls, Limits::default(), service, shutdown)
                .await
                .unwrap()
        });
        Self {
            directory,
            endpoint,
            hypervisor,
            roles,
            stop,
            serving,
        }
    }

    async fn client(&self, name: &str) -> AgentClient {
        let file = |suffix: &str| self.directory.path().join(format!("{name}.{suffix}"));
        let files = TlsFiles {
            authorities: file("ca"),
            chain: file("pem"),
            key: file("key"),
        };
        let tls = ClientTls::load(&files, &TrustDomain::default()).unwrap();
        AgentClient::connect(&self.endpoint, "here", &tls).await.unwrap()
    }
}

fn guest() -> GuestName {
    GuestName {
        uid: UID.into(),
        namespace: "default".into(),
        name: "web".into(),
    }
}

fn start(definition: &str) -> StartGuest {
    StartGuest {
        guest: guest(),
        epoch: 1,
        definition: definition.as_bytes().to_vec(),
        again: false,
    }
}

const DEFINITION: &str = r#"{"machine": {"type": "pc-q35-10.0"}, "cpu": {"count": 1, "model": "qemu64"}, "memory": "128Mi",
    "boot": {"kernel": {"image": {"file": "kernel"}}}}"#;

fn terms(source: &str, destination: &str) -> Terms {
    Terms {
        migration: MIGRATION.into(),
        guest: UID.into(),
        epoch: 1,
        source: source.into(),
        destination: destination.into(),
    }
}

#[tokio::test]
async fn the_controller_starts_and_stops_a_guest() {
    let served = Served::new().await;
    let client = served.client("controller").await;
    assert_eq!((client.host(), client.boot_id()), ("here", "boot"));
    let answer = client.start_guest(&start(DEFINITION)).await.unwrap();
    assert_eq!(answer.state, godwit_protocol::GuestState::Running);
    assert_eq!(client.start_guest(&start(DEFINITION)).await.unwrap(), answer);
    let fault = client.stop_guest(&guest(), 0).await.unwrap_err();
    assert_eq!(fault.reason, "StaleEpoch");
    client.stop_guest(&guest(), 1).await.unwrap();
    client.stop_guest(&guest(), 1).await.unwrap();
    assert_eq!(served.hypervisor.launched(), 1);
    assert!(served.hypervisor.process_of(UID).is_none());
}

#[tokio::test]
async fn a_hostile_definition_reaches_nothing() {
    let served = Served::new().await;
    let client = served.client("controller").await;
    for definition in [
        "",
        "{}",
        &DEFINITION.replace("kernel\"}}", "../kernel\"}}"),
        &DEFINITION.replace("qemu64", "qemu64,+x"),
    ] {
        let fault = client.start_guest(&start(definition)).await.unwrap_err();
        assert_eq!(fault.category, Category::Invalid, "{definition}: {fault:?}");
    }
    let mut odd = start(DEFINITION);
    odd.guest.uid = "not-a-uuid".into();
    assert_eq!(
        client.start_guest(&odd).await.unwrap_err().category,
        Category::Invalid
    );
    assert_eq!(served.hypervisor.launched(), 0);
}

#[tokio::test]
async fn another_host_may_order_nothing() {
    let served = Served::new().await;
    let client = served.client("there").await;
    let fault = client.start_guest(&start(DEFINITION)).await.unwrap_err();
    assert_eq!(
        (fault.category, fault.reason.as_ref()),
        (Category::Forbidden, "NotAllowed")
    );
    assert_eq!(served.hypervisor.launched(), 0);
}

/// The agent "there", as the source of a migration that comes here, and of none that leaves.
#[tokio::test]
async fn the_sources_agent_drives_its_own_destination() {
    let served = Served::new().await;
    let client = served.client("there").await;
    let silence = Duration::from_secs(10);
    let mine = terms("there", "here");
    let abort = Order::AbortDestination(Cause::Cancelled);
    client.order(&mine, &abort).await.unwrap();
    client.keep_alive(&mine, true, silence).await.unwrap();
    let others = terms("elsewhere", "here");
    let leaves = terms("here", "there");
    let refused = [
        client.order(&others, &abort).await.unwrap_err(),
        client.order(&leaves, &Order::Ready).await.unwrap_err(),
        client
            .order(&leaves, &Order::AbortSource(Cause::Cancelled))
            .await
            .unwrap_err(),
        client.keep_alive(&others, true, silence).await.unwrap_err(),
        client.keep_alive(&leaves, true, silence).await.unwrap_err(),
    ];
    for fault in refused {
        assert_eq!(
            (fault.category, fault.reason.as_ref()),
            (Category::Forbidden, "NotAllowed"),
            "{fault}"
        );
    }
    assert_eq!(*served.roles.orders.lock().unwrap(), ["AbortDestination"]);

    // What nobody knows may be watched; another's migration may not.
    let mut updates = client.watch_migration(MIGRATION).await.unwrap();
    assert_eq!(updates.next().await.unwrap().unwrap(), Update::default());
    *served.roles.side.lock().unwrap() = Some(Side::Destination(DestinationReport::Loaded));
    for (terms, allowed) in [(mine, true), (others, false)] {
        *served.roles.terms.lock().unwrap() = Some(terms);
        let mut updates = client.watch_migration(MIGRATION).await.unwrap();
        let first = updates.next().await.unwrap();
        assert_eq!(first.is_ok(), allowed, "{first:?}");
        if let Err(fault) = first {
            assert_eq!(fault.reason, "NotAllowed");
            assert!(updates.next().await.is_none());
        }
    }
}

#[tokio::test]
async fn an_order_reaches_only_the_side_that_it_is_for() {
    let served = Served::new().await;
    let client = served.client("controller").await;
    let (leaves, arrives, passes) = (
        terms("here", "there"),
        terms("there", "here"),
        terms("there", "elsewhere"),
    );
    for order in [
        Order::Ready,
        Order::Confirm,
        Order::Settle,
        Order::AbortSource(Cause::Cancelled),
    ] {
        client.order(&leaves, &order).await.unwrap();
        for wrong in [&arrives, &passes] {
            assert_eq!(
                client.order(wrong, &order).await.unwrap_err().reason,
                "NotAllowed",
                "{}",
                order.name()
            );
        }
    }
    let order = Order::AbortDestination(Cause::Cancelled);
    client.order(&arrives, &order).await.unwrap();
    assert_eq!(
        client.order(&leaves, &order).await.unwrap_err().reason,
        "NotAllowed"
    );
    assert_eq!(
        *served.roles.orders.lock().unwrap(),
        ["Ready", "Confirm", "Settle", "AbortSource", "AbortDestination"]
    );
    let silence = Duration::from_secs(10);
    client.keep_alive(&leaves, true, silence).await.unwrap();
    assert_eq!(
        client
            .keep_alive(&passes, true, silence)
            .await
            .unwrap_err()
            .reason,
        "NotAllowed"
    );
    assert_eq!(
        client
            .keep_alive(&leaves, true, Duration::ZERO)
            .await
            .unwrap_err()
            .category,
        Category::Invalid
    );
}

#[tokio::test]
async fn watches_end_with_the_agent_and_so_does_its_port() {
    let served = Served::new().await;
    let client = served.client("controller").await;
    let mut updates = client.watch_migration(MIGRATION).await.unwrap();
    assert_eq!(updates.next().await.unwrap().unwrap(), Update::default());
    served.stop.cancel();
    let rest = tokio::time::timeout(Duration::from_secs(10), updates.next())
        .await
        .expect("the watch ends");
    assert!(!matches!(rest, Some(Ok(_))), "{rest:?}");
    drop((updates, client));
    tokio::time::timeout(Duration::from_secs(10), served.serving)
        .await
        .expect("serving ends")
        .unwrap();
    assert!(tokio::net::TcpStream::connect(&served.endpoint).await.is_err());
}
