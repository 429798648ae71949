//! The keys of tickets at a real API server: made, published, turned and taken back, by several controllers at once.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use godwit_controller::ticket::{KEPT_UNDER, Keys, SECRET, Tickets};
use godwit_handover::Terms;
use godwit_protocol::ticket::{Act, Expected, PUBLISHED_IN, PUBLISHED_UNDER, PublicKeys, Ticket};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio_util::sync::CancellationToken;

struct Objects {
    client: Client,
    namespace: String,
    secrets: Api<Secret>,
    published: Api<ConfigMap>,
}

/// A namespace with the two objects, empty as the chart makes them.
async fn objects() -> Objects {
    let client = Client::try_from(kube::Config::infer().await.unwrap()).unwrap();
    let namespace = format!("tickets-test-{}", uuid::Uuid::new_v4().simple());
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let object = serde_json::from_value(json!({ "metadata": { "name": namespace } })).unwrap();
    namespaces.create(&PostParams::default(), &object).await.unwrap();
    make(&client, &namespace).await;
    Objects {
        secrets: Api::namespaced(client.clone(), &namespace),
        published: Api::namespaced(client.clone(), &namespace),
        client,
        namespace,
    }
}

/// The two objects as the chart makes them.
pub async fn make(client: &Client, namespace: &str) {
    let named = |name: &str| json!({ "metadata": { "name": name } });
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let published: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let parameters = PostParams::default();
    let secret = serde_json::from_value(named(SECRET)).unwrap();
    secrets.create(&parameters, &secret).await.unwrap();
    let map = serde_json::from_value(named(PUBLISHED_IN)).unwrap();
    published.create(&parameters, &map).await.unwrap();
}

impl Objects {
    fn tickets(&self) -> Tickets {
        Tickets::new(Keys::new(self.client.clone(), &self.namespace))
    }

    async fn published(&self) -> PublicKeys {
        let data = self.published.get(PUBLISHED_IN).await.unwrap().data.unwrap();
        PublicKeys::read_published(&data[PUBLISHED_UNDER]).unwrap()
    }

    /// As the destination judges it by what is published now.
    async fn taken(&self, ticket: &[u8]) -> bool {
        let terms = terms();
        let expected = Expected {
            peer: "a",
            host: "b",
            terms: &terms,
            act: Act::Receive,
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        Ticket::verify(ticket, &self.published().await, now, expected).is_ok()
    }

    async fn end(self) {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces
            .delete(&self.namespace, &DeleteParams::default())
            .await
            .unwrap();
    }
}

fn terms() -> Terms {
    Terms {
        migration: "m".into(),
        guest: "g".into(),
        epoch: 1,
        source: "a".into(),
        destination: "b".into(),
        strict: false,
    }
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server"]
async fn r2_several_controllers_sign_with_one_key_that_is_published() {
    let objects = objects().await;
    // All begin at once, none has a key.
    let signed =
        futures::future::join_all((0..4).map(|_| async { objects.tickets().sign(&terms()).await.unwrap() }))
            .await;
    assert_eq!(objects.published().await.iter().count(), 1);
    for ticket in &signed {
        assert!(objects.taken(ticket).await);
    }
    // The secret half is in the Secret and nowhere in the publication.
    let secret = objects.secrets.get(SECRET).await.unwrap();
    let kept = String::from_utf8(secret.data.unwrap()[KEPT_UNDER].0.clone()).unwrap();
    let said = objects.published.get(PUBLISHED_IN).await.unwrap();
    assert!(!format!("{said:?}").contains(&kept[..64]));
    // A fixed point writes nothing.
    objects.tickets().sign(&terms()).await.unwrap();
    let after = objects.published.get(PUBLISHED_IN).await.unwrap();
    assert_eq!(after.metadata.resource_version, said.metadata.resource_version);
    objects.end().await;
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server"]
async fn r2_an_emptied_secret_takes_every_ticket_back() {
    let objects = objects().await;
    let before = objects.tickets().sign(&terms()).await.unwrap();
    let empty = Patch::Merge(json!({ "data": { KEPT_UNDER: null } }));
    objects
        .secrets
        .patch(SECRET, &PatchParams::default(), &empty)
        .await
        .unwrap();
    let after = objects.tickets().sign(&terms()).await.unwrap();
    assert!(!objects.taken(&before).await);
    assert!(objects.taken(&after).await);
    objects.end().await;
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server"]
async fn r2_what_somebody_else_published_is_put_right() {
    let objects = objects().await;
    let tickets = objects.tickets();
    let ticket = tickets.sign(&terms()).await.unwrap();
    let forged = Patch::Merge(json!({ "data": { PUBLISHED_UNDER: "", "more": "x" } }));
    objects
        .published
        .patch(PUBLISHED_IN, &PatchParams::default(), &forged)
        .await
        .unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(tickets.run(stop.clone()));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !objects.taken(&ticket).await {
        assert!(tokio::time::Instant::now() < deadline, "not put right in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        objects
            .published
            .get(PUBLISHED_IN)
            .await
            .unwrap()
            .data
            .unwrap()
            .len(),
        1
    );
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), running)
        .await
        .unwrap()
        .unwrap();
    objects.end().await;
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server"]
async fn without_its_objects_no_ticket_is_signed_and_none_is_made() {
    let objects = objects().await;
    objects
        .published
        .delete(PUBLISHED_IN, &DeleteParams::default())
        .await
        .unwrap();
    let tickets = objects.tickets();
    let refused = async |words: &str| {
        let fault = tickets.sign(&terms()).await.unwrap_err();
        assert_eq!(fault.reason, "TicketKeysUnavailable");
        assert!(fault.message.contains(words), "{}", fault.message);
    };
    refused("godwit-ticket-keys is missing").await;
    assert_eq!(objects.secrets.get(SECRET).await.unwrap().data, None);
    // Damaged, or a newer controller's: it is left alone.
    let map = serde_json::from_value(json!({ "metadata": { "name": PUBLISHED_IN } })).unwrap();
    objects
        .published
        .create(&PostParams::default(), &map)
        .await
        .unwrap();
    let foreign = Patch::Merge(json!({ "stringData": { KEPT_UNDER: "2 something else\n" } }));
    objects
        .secrets
        .patch(SECRET, &PatchParams::default(), &foreign)
        .await
        .unwrap();
    refused("cannot be read").await;
    let kept = objects.secrets.get(SECRET).await.unwrap().data.unwrap();
    assert_eq!(kept[KEPT_UNDER].0, b"2 something else\n");
    objects.end().await;
}
