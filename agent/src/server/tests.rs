//! The agent port over real TLS: the guests' calls as the controller makes them, and what is refused.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use godwit_handover::{Cause, Decision, DestinationReport, RecordView, Terms};
use godwit_protocol::server::{Limits, NoPassage, serve};
use godwit_protocol::ticket::{Act, CLOCK_TOLERANCE, LIFETIME, PublicKey, PublicKeys, SigningKey, Ticket};
use godwit_protocol::{
    AgentClient, Category, ClientTls, CurrentCredentials, Fault, GuestName, Order, OrderAnswer, PeerIdentity,
    ServerTls, Side, StartGuest, StreamOptions, TlsFiles, TrustDomain, Update, definition,
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
use crate::migration::{Recorded, Records};
use crate::pools::Pools;
use crate::taps::IpCommand;
use crate::tickets::keys::{PublishedKeys, Unread};
use crate::tickets::{Attempt, TicketGate};

const UID: &str = "6f1ad7a0-3f54-4a43-9c5e-0d8a5b1c2d3e";
const MIGRATION: &str = "0c1ad7a0-3f54-4a43-9c5e-0d8a5b1c2d3e";

/// Notes what reaches the roles.
#[derive(Clone, Default)]
struct FakeRoles {
    orders: Arc<Mutex<Vec<&'static str>>>,
    terms: Arc<Mutex<Option<Terms>>>,
    side: Arc<Mutex<Option<Side>>>,
    /// Why it cannot be followed.
    unread: Arc<Mutex<Option<Fault>>>,
    /// Whether the migration has ended here.
    ended: Arc<AtomicBool>,
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

    fn unread(&self, _migration: &str) -> Option<Fault> {
        self.unread.lock().unwrap().clone()
    }

    async fn keep_alive(&self, _terms: Terms, _path_proven: bool, _silence: Duration) -> Result<(), Fault> {
        Ok(())
    }

    fn terms(&self, _migration: &str) -> Option<Terms> {
        self.terms.lock().unwrap().clone()
    }

    fn attempt(&self, _migration: &str) -> Attempt {
        match (
            self.orders.lock().unwrap().is_empty(),
            self.ended.load(Ordering::Relaxed),
        ) {
            (true, _) => Attempt::Unknown,
            (false, false) => Attempt::UnderWay,
            (false, true) => Attempt::Ended,
        }
    }
}

/// What a controller with this one key publishes.
struct OneKey(PublicKey);

#[async_trait]
impl PublishedKeys for OneKey {
    async fn read(&self) -> Result<PublicKeys, Unread> {
        Ok(PublicKeys::new(vec![self.0.clone()]).unwrap())
    }
}

/// Every guest's record is armed for the one migration.
struct Armed;

#[async_trait]
impl Records for Armed {
    async fn whole(&self, _guest: &str) -> Option<Recorded> {
        Some(Recorded {
            strict: false,
            view: RecordView {
                holder: "there".into(),
                epoch: 1,
                migration: Some(MIGRATION.into()),
                decision: Decision::None,
                started: false,
                word: None,
            },
            definition: definition::digest(DEFINITION.as_bytes()).unwrap(),
        })
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

fn files(directory: &Path, name: &str) -> TlsFiles {
    let file = |suffix: &str| directory.join(format!("{name}.{suffix}"));
    TlsFiles {
        authorities: file("ca"),
        chain: file("pem"),
        key: file("key"),
    }
}

/// The controller's.
fn ticket_key() -> SigningKey {
    SigningKey::from_seed(&[5; 32]).unwrap()
}

fn write_identity(
    directory: &Path,
    issuer: &CertifiedIssuer<'_, KeyPair>,
    name: &str,
    identity: &PeerIdentity,
) {
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
    let files = files(directory, name);
    std::fs::write(files.authorities, issuer.pem()).unwrap();
    std::fs::write(files.chain, certificate.pem()).unwrap();
    std::fs::write(files.key, key.serialize_pem()).unwrap();
}

impl Served {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        write_identity(
            directory.path(),
            &issuer,
            "here",
            &PeerIdentity::Host("here".into()),
        );
        write_identity(directory.path(), &issuer, "controller", &PeerIdentity::Controller);
        for other in ["there", "elsewhere"] {
            let identity = PeerIdentity::Host(other.into());
            write_identity(directory.path(), &issuer, other, &identity);
        }
        std::fs::create_dir(directory.path().join("pool")).unwrap();
        std::fs::write(directory.path().join("pool/kernel"), "").unwrap();
        Self::start(directory, FakeRoles::default()).await
    }

    /// The agent ends and another one begins with what the first has left on the disk.
    async fn restart(self) -> Self {
        self.stop.cancel();
        self.serving.await.unwrap();
        Self::start(self.directory, self.roles).await
    }

    async fn start(directory: tempfile::TempDir, roles: FakeRoles) -> Self {
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
            cgroups: Cgroups::default(),
        };
        let guests = Guests::open(settings, hypervisor.clone()).unwrap();
        guests.set_facts(Some(facts()));
        guests.recover().await.unwrap();
        let stop = CancellationToken::new();
        let host = files(directory.path(), "here").load(&TrustDomain::default());
        let credentials = CurrentCredentials::new(host.unwrap());
        let published = OneKey(ticket_key().public(u64::MAX).unwrap());
        let state = directory.path().join("state");
        let tickets = TicketGate::open("here", &state, Arc::new(published), Arc::new(Armed)).unwrap();
        let service = AgentService::new(
            "here".into(),
            "boot".into(),
            guests,
            roles.clone(),
            credentials.clone(),
            tickets,
            stop.clone(),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let tls = ServerTls::new(credentials);
        let shutdown = stop.clone().cancelled_owned();
        let serving = tokio::spawn(async move {
            serve(
                listener,
                tls,
                Limits::default(),
                service,
                Arc::new(NoPassage),
                shutdown,
            )
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
        let files = files(self.directory.path(), name);
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
        strict: false,
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

    // What cannot be read is nobody's to follow, and the controller is told why: whose it is, is not known.
    let fault = Fault::new(Category::Conflict, "JournalNewer", "put the newer agent back");
    *served.roles.unread.lock().unwrap() = Some(fault);
    let controller = served.client("controller").await;
    let told = controller.watch_migration(MIGRATION).await.map(|_| ());
    assert_eq!(told.unwrap_err().reason, "JournalNewer");

    // What nobody knows may be watched; another's migration may not.
    let mut updates = client.watch_migration(MIGRATION).await.unwrap();
    assert_eq!(updates.next().await.unwrap().unwrap(), Update::default());
    *served.roles.unread.lock().unwrap() = None;
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

fn prepare(ticket: Vec<u8>) -> Order {
    Order::Prepare {
        guest: guest(),
        definition: DEFINITION.as_bytes().to_vec(),
        stream: StreamOptions::PLAIN,
        ticket,
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A ticket for these terms, made some seconds ago.
fn ticket(terms: &Terms, key: &SigningKey, ago: u64) -> Vec<u8> {
    Ticket::new(terms.clone(), Act::Receive, now() - ago)
        .unwrap()
        .sign(key)
        .unwrap()
}

#[tokio::test]
async fn r2_the_right_host_needs_a_ticket_for_just_this() {
    let served = Served::new().await;
    let client = served.client("there").await;
    let (mine, key) = (terms("there", "here"), ticket_key());
    let other = |change: fn(&mut Terms)| {
        let mut terms = mine.clone();
        change(&mut terms);
        ticket(&terms, &key, 0)
    };
    let lasts = LIFETIME + CLOCK_TOLERANCE;
    let stranger = SigningKey::generate().unwrap();
    let mut forged = ticket(&mine, &key, 0);
    *forged.last_mut().unwrap() ^= 1;
    let cases = [
        (Vec::new(), "TicketMissing"),
        (other(|t| t.migration = UID.into()), "TicketForAnother"),
        (other(|t| t.guest = MIGRATION.into()), "TicketForAnother"),
        (other(|t| t.source = "elsewhere".into()), "TicketForAnother"),
        (other(|t| t.destination = "elsewhere".into()), "TicketForAnother"),
        (other(|t| t.epoch = 2), "TicketForAnother"),
        (ticket(&mine, &key, lasts), "TicketExpired"),
        (forged, "TicketInvalid"),
        (b"not a ticket".to_vec(), "TicketInvalid"),
        (vec![1; 4096], "TicketInvalid"),
        (ticket(&mine, &stranger, 0), "TicketKeyUnknown"),
    ];
    for (shown, reason) in cases {
        let fault = client.order(&mine, &prepare(shown)).await.unwrap_err();
        assert_eq!(
            (fault.category, fault.reason.as_ref()),
            (Category::Forbidden, reason),
            "{fault}"
        );
    }
    assert!(served.roles.orders.lock().unwrap().is_empty());
    client
        .order(&mine, &prepare(ticket(&mine, &key, 1)))
        .await
        .unwrap();
    assert_eq!(*served.roles.orders.lock().unwrap(), ["Prepare"]);
}

#[tokio::test]
async fn r14_what_a_source_says_of_a_guest_is_held_against_the_record() {
    let served = Served::new().await;
    let client = served.client("there").await;
    let (mine, key) = (terms("there", "here"), ticket_key());
    for (was, is) in [
        ("128Mi", "129Mi"),
        ("\"file\": \"kernel\"", "\"file\": \"kernel-of-another\""),
        (
            "{",
            "{\"disks\": [{\"name\": \"root\", \"file\": {\"file\": \"another-guests.img\"}}], ",
        ),
    ] {
        let mut order = prepare(ticket(&mine, &key, 0));
        let forged = DEFINITION.replacen(was, is, 1).into_bytes();
        assert_ne!(forged, DEFINITION.as_bytes());
        if let Order::Prepare { definition, .. } = &mut order {
            *definition = forged;
        }
        let fault = client.order(&mine, &order).await.unwrap_err();
        assert_eq!(
            (fault.category, fault.reason.as_ref()),
            (Category::Forbidden, "DefinitionMismatch"),
            "{fault}"
        );
    }
    assert!(served.roles.orders.lock().unwrap().is_empty());
}

#[tokio::test]
async fn r2_a_ticket_is_its_sources_alone() {
    let served = Served::new().await;
    let (mine, key) = (terms("there", "here"), ticket_key());
    let stolen = ticket(&mine, &key, 0);
    let thief = served.client("elsewhere").await;
    // In the name of the source, and in its own.
    let fault = thief.order(&mine, &prepare(stolen.clone())).await.unwrap_err();
    assert_eq!(fault.reason, "NotAllowed");
    let fault = thief
        .order(&terms("elsewhere", "here"), &prepare(stolen))
        .await
        .unwrap_err();
    assert_eq!(fault.reason, "TicketForAnother");
    assert!(served.roles.orders.lock().unwrap().is_empty());
    // The controller gives its orders itself.
    let controller = served.client("controller").await;
    controller.order(&mine, &prepare(Vec::new())).await.unwrap();
}

#[tokio::test]
async fn r2_a_replayed_ticket_is_refused_also_after_a_restart_of_the_agent() {
    let mut served = Served::new().await;
    let mine = terms("there", "here");
    let once = prepare(ticket(&mine, &ticket_key(), 0));
    let client = served.client("there").await;
    client.order(&mine, &once).await.unwrap();
    // The answer may have been lost: the same again, for the same attempt, is the same.
    client.order(&mine, &once).await.unwrap();
    served = served.restart().await;
    let client = served.client("there").await;
    client.order(&mine, &once).await.unwrap();
    // It has ended here.
    served.roles.ended.store(true, Ordering::Relaxed);
    for _ in 0..2 {
        let client = served.client("there").await;
        let fault = client.order(&mine, &once).await.unwrap_err();
        assert_eq!(
            (fault.category, fault.reason.as_ref()),
            (Category::Forbidden, "TicketReplayed"),
            "{fault}"
        );
        served = served.restart().await;
    }
    assert_eq!(served.roles.orders.lock().unwrap().len(), 3);
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
