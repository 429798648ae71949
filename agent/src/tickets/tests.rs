use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use godwit_handover::RecordView;
use godwit_protocol::ticket::{CLOCK_TOLERANCE, LIFETIME, SigningKey};

use super::keys::Unread;
use super::*;

const NOW: u64 = 1_800_000_000;
/// The guest's.
const DEFINITION: &[u8] = br#"{"memory": "128Mi"}"#;

/// A controller's publication; `None`: the API server does not answer.
#[derive(Default)]
struct Publication {
    keys: Mutex<Option<PublicKeys>>,
    reads: AtomicUsize,
}

impl Publication {
    fn say(&self, keys: &[&SigningKey]) {
        let public = keys.iter().map(|key| key.public(NOW + 86_400).unwrap()).collect();
        *self.keys.lock().unwrap() = Some(PublicKeys::new(public).unwrap());
    }
}

#[async_trait]
impl PublishedKeys for Publication {
    async fn read(&self) -> Result<PublicKeys, Unread> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.keys.lock().unwrap().clone().ok_or(Unread::Missing)
    }
}

/// The guest's record; `None`: it cannot be read.
#[derive(Default)]
struct Written(Mutex<Option<RecordView>>);

#[async_trait]
impl Records for Written {
    async fn whole(&self, _guest: &str) -> Option<Recorded> {
        let view = self.0.lock().unwrap().clone()?;
        Some(Recorded {
            strict: false,
            view,
            definition: definition::digest(DEFINITION).unwrap(),
        })
    }
}

fn armed() -> RecordView {
    let terms = terms();
    RecordView {
        holder: terms.source,
        epoch: terms.epoch,
        migration: Some(terms.migration),
        decision: Decision::None,
        started: false,
        word: None,
    }
}

struct Scene {
    directory: tempfile::TempDir,
    publication: Arc<Publication>,
    records: Arc<Written>,
    key: SigningKey,
    gate: TicketGate,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let publication = Arc::new(Publication::default());
        let key = SigningKey::generate().unwrap();
        publication.say(&[&key]);
        let records = Arc::new(Written::default());
        *records.0.lock().unwrap() = Some(armed());
        let gate = TicketGate::open("b", directory.path(), publication.clone(), records.clone()).unwrap();
        Self {
            records,
            directory,
            publication,
            key,
            gate,
        }
    }

    /// The agent falls and comes back.
    fn restart(&mut self) {
        let (directory, records) = (self.directory.path(), self.records.clone());
        self.gate = TicketGate::open("b", directory, self.publication.clone(), records).unwrap();
    }

    fn ticket(&self, terms: &Terms) -> Vec<u8> {
        Ticket::new(terms.clone(), Act::Receive, NOW)
            .unwrap()
            .sign(&self.key)
            .unwrap()
    }

    async fn show(&self, ticket: &[u8], attempt: Attempt) -> Result<(), Fault> {
        self.gate
            .judge("a", &terms(), (ticket, DEFINITION), attempt, NOW)
            .await
    }
}

fn terms() -> Terms {
    Terms {
        migration: "b4f0c4e5-3cf2-4d3a-8b8b-0b4a0c3f7a10".into(),
        guest: "7d0f3c1e-90a4-4f6e-a5c8-0c1a9f4f2b11".into(),
        epoch: 7,
        source: "a".into(),
        destination: "b".into(),
        strict: false,
    }
}

#[track_caller]
fn refused(outcome: Result<(), Fault>, category: Category, reason: &str) {
    let fault = outcome.unwrap_err();
    assert_eq!(
        (fault.category, fault.reason.as_ref()),
        (category, reason),
        "{fault}"
    );
}

#[tokio::test]
async fn r2_a_ticket_lets_one_order_in() {
    let scene = Scene::new();
    let ticket = scene.ticket(&terms());
    scene.show(&ticket, Attempt::Unknown).await.unwrap();
}

#[tokio::test]
async fn r2_the_right_host_without_a_ticket_is_refused() {
    let scene = Scene::new();
    refused(
        scene.show(&[], Attempt::Unknown).await,
        Category::Forbidden,
        "TicketMissing",
    );
    // A migration that is under way does not make it otherwise.
    refused(
        scene.show(&[], Attempt::UnderWay).await,
        Category::Forbidden,
        "TicketMissing",
    );
}

#[tokio::test]
async fn r2_the_same_order_again_within_one_attempt_gets_the_same_answer() {
    let mut scene = Scene::new();
    let ticket = scene.ticket(&terms());
    for attempt in [Attempt::Unknown, Attempt::UnderWay, Attempt::UnderWay] {
        scene.show(&ticket, attempt).await.unwrap();
    }
    scene.restart();
    scene.show(&ticket, Attempt::Unknown).await.unwrap();
    scene.show(&ticket, Attempt::UnderWay).await.unwrap();
}

#[tokio::test]
async fn r2_a_ticket_of_an_ended_migration_is_a_replay_also_after_a_restart() {
    let mut scene = Scene::new();
    let ticket = scene.ticket(&terms());
    scene.show(&ticket, Attempt::Unknown).await.unwrap();
    refused(
        scene.show(&ticket, Attempt::Ended).await,
        Category::Forbidden,
        "TicketReplayed",
    );
    scene.restart();
    refused(
        scene.show(&ticket, Attempt::Ended).await,
        Category::Forbidden,
        "TicketReplayed",
    );
}

#[tokio::test]
async fn r2_a_ticket_is_refused_from_another_source_at_another_destination_and_for_other_terms() {
    let scene = Scene::new();
    let ticket = scene.ticket(&terms());
    let gate = &scene.gate;
    let judge = |peer, terms: Terms| {
        let ticket = &ticket;
        async move {
            gate.judge(peer, &terms, (ticket, DEFINITION), Attempt::Unknown, NOW)
                .await
        }
    };
    let other = |change: fn(&mut Terms)| {
        let mut terms = terms();
        change(&mut terms);
        terms
    };
    for (peer, terms) in [
        ("c", terms()),
        ("c", other(|t| t.source = "c".into())),
        ("a", other(|t| t.source = "c".into())),
        ("a", other(|t| t.destination = "c".into())),
        ("a", other(|t| t.migration = "0-1".into())),
        ("a", other(|t| t.guest = "0-1".into())),
        ("a", other(|t| t.epoch = 8)),
    ] {
        refused(judge(peer, terms).await, Category::Forbidden, "TicketForAnother");
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let (publication, records) = (scene.publication.clone(), scene.records.clone());
    let other = TicketGate::open("c", elsewhere.path(), publication, records).unwrap();
    refused(
        other
            .judge("a", &terms(), (&ticket, DEFINITION), Attempt::Unknown, NOW)
            .await,
        Category::Forbidden,
        "TicketForAnother",
    );
    // None of this used it up.
    assert!(judge("a", terms()).await.is_ok());
}

#[tokio::test]
async fn r2_a_ticket_has_its_time_by_the_hosts_clock() {
    let scene = Scene::new();
    let ticket = scene.ticket(&terms());
    for (now, reason) in [
        (NOW - CLOCK_TOLERANCE - 1, "TicketNotYetValid"),
        (NOW + LIFETIME + CLOCK_TOLERANCE, "TicketExpired"),
    ] {
        let outcome = scene
            .gate
            .judge("a", &terms(), (&ticket, DEFINITION), Attempt::Unknown, now)
            .await;
        refused(outcome, Category::Forbidden, reason);
    }
}

#[tokio::test(start_paused = true)]
async fn r2_a_forged_ticket_is_refused() {
    let scene = Scene::new();
    let good = scene.ticket(&terms());
    let stranger = SigningKey::generate().unwrap();
    let forged = Ticket::new(terms(), Act::Receive, NOW)
        .unwrap()
        .sign(&stranger)
        .unwrap();
    // The keys were read lately; for this one they are read again, and it is not among them.
    scene.show(&good, Attempt::Unknown).await.unwrap();
    tokio::time::advance(Duration::from_secs(2)).await;
    refused(
        scene.show(&forged, Attempt::Unknown).await,
        Category::Forbidden,
        "TicketKeyUnknown",
    );
    assert_eq!(scene.publication.reads.load(Ordering::Relaxed), 2);
    let mut altered = good;
    altered[25] ^= 1;
    refused(
        scene.show(&altered, Attempt::Unknown).await,
        Category::Forbidden,
        "TicketInvalid",
    );
    refused(
        scene.show(&[1; 5000], Attempt::Unknown).await,
        Category::Forbidden,
        "TicketInvalid",
    );
    refused(
        scene.show(&[1; 17], Attempt::Unknown).await,
        Category::Forbidden,
        "TicketKeyUnknown",
    );
}

#[tokio::test(start_paused = true)]
async fn a_new_key_is_learnt_when_its_first_ticket_comes_and_an_old_one_can_be_taken_back() {
    let mut scene = Scene::new();
    let old = scene.ticket(&terms());
    scene.show(&old, Attempt::Unknown).await.unwrap();
    scene.key = SigningKey::generate().unwrap();
    scene.publication.say(&[&scene.key]);
    tokio::time::advance(Duration::from_secs(2)).await;
    let new = scene.ticket(&terms());
    scene.show(&new, Attempt::UnderWay).await.unwrap();
    refused(
        scene.show(&old, Attempt::UnderWay).await,
        Category::Forbidden,
        "TicketKeyUnknown",
    );
}

#[tokio::test(start_paused = true)]
async fn without_the_api_server_known_keys_do_and_unknown_ones_wait() {
    let scene = Scene::new();
    let ticket = scene.ticket(&terms());
    *scene.publication.keys.lock().unwrap() = None;
    refused(
        scene.show(&ticket, Attempt::Unknown).await,
        Category::Unavailable,
        "TicketKeysUnavailable",
    );
    scene.publication.say(&[&scene.key]);
    tokio::time::advance(Duration::from_secs(10)).await;
    scene.show(&ticket, Attempt::Unknown).await.unwrap();
    *scene.publication.keys.lock().unwrap() = None;
    tokio::time::advance(Duration::from_secs(3600)).await;
    scene.show(&ticket, Attempt::UnderWay).await.unwrap();
}

#[tokio::test]
async fn r2_after_its_memory_was_damaged_a_host_takes_no_ticket_made_before() {
    let mut scene = Scene::new();
    // The gate itself reads the clock when it opens.
    let ticket = Ticket::new(terms(), Act::Receive, now())
        .unwrap()
        .sign(&scene.key)
        .unwrap();
    std::fs::write(scene.directory.path().join(used::FILE), b"not this").unwrap();
    scene.restart();
    let judge = |ticket: Vec<u8>, when| {
        let gate = scene.gate.clone();
        async move {
            gate.judge("a", &terms(), (&ticket, DEFINITION), Attempt::Unknown, when)
                .await
        }
    };
    refused(judge(ticket, now()).await, Category::Forbidden, "TicketExpired");
    let later = now() + 3 * CLOCK_TOLERANCE;
    let ticket = Ticket::new(terms(), Act::Receive, later)
        .unwrap()
        .sign(&scene.key)
        .unwrap();
    judge(ticket, later).await.unwrap();
}

#[tokio::test]
async fn r2_no_use_is_answered_for_that_is_not_on_the_disk() {
    let scene = Scene::new();
    let ticket = scene.ticket(&terms());
    // The memory must be written anew, and cannot be: its directory is gone.
    let path = scene.directory.path().to_path_buf();
    std::fs::remove_dir_all(&path).unwrap();
    let used = scene.gate.0.used.clone();
    used.lock().await.lose_file();
    refused(
        scene.show(&ticket, Attempt::Unknown).await,
        Category::Unavailable,
        "DiskFailed",
    );
    std::fs::create_dir(&path).unwrap();
    scene.show(&ticket, Attempt::Unknown).await.unwrap();
}

#[tokio::test]
async fn r2_nothing_begins_that_the_guests_record_is_not_armed_for() {
    let scene = Scene::new();
    let ticket = scene.ticket(&terms());
    let changes: [fn(&mut RecordView); 6] = [
        |record| record.migration = None,
        |record| record.migration = Some("0-1".into()),
        |record| record.decision = Decision::Aborted,
        |record| record.decision = Decision::Committed,
        |record| record.holder = "b".into(),
        |record| record.epoch += 1,
    ];
    for change in changes {
        let mut record = armed();
        change(&mut record);
        *scene.records.0.lock().unwrap() = Some(record);
        let outcome = scene.show(&ticket, Attempt::Unknown).await;
        refused(outcome, Category::Forbidden, "TicketForAnother");
    }
    *scene.records.0.lock().unwrap() = None;
    refused(
        scene.show(&ticket, Attempt::Unknown).await,
        Category::Unavailable,
        "RecordMissing",
    );
    // None of this used the ticket up, and what has begun is not asked for again.
    *scene.records.0.lock().unwrap() = Some(armed());
    scene.show(&ticket, Attempt::Unknown).await.unwrap();
    *scene.records.0.lock().unwrap() = None;
    scene.show(&ticket, Attempt::UnderWay).await.unwrap();
}
