//! The rules of GuestRecord, and who may write one.

use godwit_lab::{Lab, audit, chart, control_plane, credentials};
use kube::Client;
use serde_json::{Value, json};

use crate::server::{Answer, change, create, eventually, path, send, set, try_create};

const RESOURCE: &str = "guestrecords";

pub fn record(uid: &str) -> Value {
    json!({
        "apiVersion": "godwit.dev/v1alpha1",
        "kind": "GuestRecord",
        "metadata": {"name": uid, "finalizers": ["godwit.dev/guest"]},
        "spec": {
            "guest": {"namespace": "default", "name": "web1", "uid": uid, "definition": "0".repeat(64)},
            "holder": "h1",
            "epoch": 1,
            "writer": "controller",
        },
    })
}

pub fn armed(uid: &str, source: &str, destination: &str) -> Value {
    json!({"uid": uid, "source": source, "destination": destination, "strict": false})
}

pub async fn a_record_is_checked(lab: &mut Lab) -> anyhow::Result<()> {
    let client = lab.controller_client().await?;
    let good = record("checked");
    let made = try_create(&client, RESOURCE, &good).await.accepted();
    assert_eq!(made["spec"]["decision"], "None");
    assert_eq!(made["spec"]["started"], false);
    #[rustfmt::skip]
    let table = [
        ("/metadata/name", json!("another"), "named by its guest's UID"),
        ("/spec/guest/definition", Value::Null, "spec.guest.definition: Required"),
        ("/spec/guest/definition", json!("0".repeat(63)), "spec.guest.definition"),
        ("/spec/guest/definition", json!("G".repeat(64)), "spec.guest.definition"),
        ("/spec/holder", Value::Null, "spec.holder: Required"),
        ("/spec/holder", json!(""), "spec.holder"),
        ("/spec/epoch", json!(0), "greater than or equal to 1"),
        ("/spec/epoch", json!(-1), "greater than or equal to 1"),
        ("/spec/writer", Value::Null, "spec.writer: Required"),
        ("/spec/decision", json!("Committed"), "without a migration there is nothing to decide"),
        ("/spec/decision", json!("Perhaps"), "Unsupported value"),
        ("/spec/migration", armed("m1", "h1", "h1"), "source and destination differ"),
        ("/spec/evidence", json!("e".repeat(1025)), "may not be more than 1024"),
        ("/spec/owner", json!("me"), "unknown field"),
    ];
    for (pointer, value, words) in table {
        let mut bad = good.clone();
        let what = format!("{pointer} = {value}");
        set(&mut bad, pointer, value);
        try_create(&client, RESOURCE, &bad).await.refused(&what, words);
    }
    Ok(())
}

/// Changes a record as the controller: by replacing the version that was read.
pub async fn turn(client: &Client, name: &str, changes: &[(&str, Value)]) -> Answer {
    change(client, RESOURCE, name, |object| {
        for (pointer, value) in changes {
            set(object, pointer, value.clone());
        }
    })
    .await
}

pub async fn a_record_moves_by_the_rules_only(lab: &mut Lab) -> anyhow::Result<()> {
    let client = lab.controller_client().await?;
    create(&client, RESOURCE, &record("ruled")).await.accepted();
    let m1 = || armed("m1", "h1", "h2");
    let m2 = || armed("m2", "h2", "h1");

    let refused = async |what: &str, words: &str, changes: &[(&str, Value)]| {
        turn(&client, "ruled", changes).await.refused(what, words);
    };
    let accepted = async |changes: &[(&str, Value)]| {
        turn(&client, "ruled", changes).await.accepted();
    };
    let (holder, epoch, decision, migration) =
        ("/spec/holder", "/spec/epoch", "/spec/decision", "/spec/migration");

    refused(
        "epoch shrinks",
        "greater than or equal to 1",
        &[(epoch, json!(0))],
    )
    .await;
    refused("epoch jumps", "grows by one", &[(epoch, json!(3))]).await;
    refused("epoch alone", "change together", &[(epoch, json!(2))]).await;
    refused("holder alone", "change together", &[(holder, json!("h2"))]).await;
    refused(
        "holder unarmed",
        "only by committing",
        &[(holder, json!("h2")), (epoch, json!(2))],
    )
    .await;
    refused(
        "another guest",
        "guest never changes",
        &[("/spec/guest/name", json!("web2"))],
    )
    .await;
    refused(
        "a decision on nothing",
        "nothing to decide",
        &[(decision, json!("Aborted"))],
    )
    .await;
    refused(
        "armed from elsewhere",
        "with the holder as its source",
        &[(migration, m2())],
    )
    .await;
    let decided = [(migration, m1()), (decision, json!("Committed"))];
    refused("armed decided", "armed undecided", &decided).await;
    let started = [(migration, m1()), ("/spec/started", json!(true))];
    refused("armed started", "armed undecided", &started).await;

    accepted(&[(migration, m1())]).await;
    refused("disarmed", "never removed", &[(migration, Value::Null)]).await;
    refused(
        "rearmed undecided",
        "finally decided",
        &[(migration, armed("m9", "h1", "h3"))],
    )
    .await;
    refused(
        "armed one changed",
        "immutable",
        &[("/spec/migration/destination", json!("h3"))],
    )
    .await;
    let advance = [(holder, json!("h2")), (epoch, json!(2))];
    refused("holder uncommitted", "only by committing", &advance).await;

    accepted(&[(decision, json!("Committed"))]).await;
    refused(
        "commitment undone",
        "a decision is final",
        &[(decision, json!("None"))],
    )
    .await;
    refused(
        "commitment aborted",
        "a decision is final",
        &[(decision, json!("Aborted"))],
    )
    .await;
    refused(
        "rearmed unadvanced",
        "finally decided",
        &[(migration, armed("m9", "h1", "h3")), (decision, json!("None"))],
    )
    .await;
    refused(
        "to a third host",
        "only by committing",
        &[(holder, json!("h3")), (epoch, json!(2))],
    )
    .await;
    accepted(&advance).await;
    refused(
        "reverted after the advance",
        "a decision is final",
        &[(decision, json!("Reverted"))],
    )
    .await;
    refused("epoch shrinks", "never shrinks", &[(epoch, json!(1))]).await;
    refused("holder back", "change together", &[(holder, json!("h1"))]).await;
    refused(
        "rearmed with the old decision",
        "armed undecided",
        &[(migration, m2())],
    )
    .await;

    // Back again: committed, and reverted by the destination before it was advanced.
    accepted(&[(migration, m2()), (decision, json!("None"))]).await;
    accepted(&[(decision, json!("Committed"))]).await;
    accepted(&[(decision, json!("Reverted"))]).await;
    refused(
        "a decision again",
        "a decision is final",
        &[(decision, json!("Committed"))],
    )
    .await;
    refused(
        "holder after revert",
        "only by committing",
        &[(holder, json!("h1")), (epoch, json!(3))],
    )
    .await;

    // Strict: the start is recorded between the commitment and the advance.
    let mut strict = armed("m4", "h2", "h1");
    set(&mut strict, "/strict", json!(true));
    let start = [("/spec/started", json!(true))];
    refused("started after revert", "a start is recorded", &start).await;
    accepted(&[(migration, strict), (decision, json!("None"))]).await;
    refused("started uncommitted", "a start is recorded", &start).await;
    let both = [("/spec/started", json!(true)), (decision, json!("Committed"))];
    refused("started with the commitment", "a start is recorded", &both).await;
    accepted(&[(decision, json!("Committed"))]).await;
    accepted(&start).await;
    refused(
        "unstarted",
        "a start is recorded",
        &[("/spec/started", json!(false))],
    )
    .await;
    accepted(&[(decision, json!("Reverted"))]).await;

    // And aborted.
    let next = [
        (migration, armed("m3", "h2", "h1")),
        (decision, json!("None")),
        ("/spec/started", json!(false)),
    ];
    accepted(&next).await;
    accepted(&[(decision, json!("Aborted"))]).await;
    refused(
        "an abortion committed",
        "a decision is final",
        &[(decision, json!("Committed"))],
    )
    .await;
    accepted(&[(migration, armed("m4", "h2", "h3")), (decision, json!("None"))]).await;

    // Compare-and-swap: a write that was made from an older version is refused.
    let at = format!("{}/ruled", path(RESOURCE));
    let old = send(&client, "GET", &at, None).await.accepted();
    accepted(&[("/spec/writer", json!("another"))]).await;
    let late = send(&client, "PUT", &at, Some(&old)).await;
    assert_eq!(late.code, 409, "{}", late.message());

    // Every write is in the audit log, with its writer's name.
    let user = format!(
        "system:serviceaccount:{}:{}",
        chart::NAMESPACE,
        chart::CONTROLLER_ACCOUNT
    );
    let writes = eventually("the writes are in the audit log", async || {
        let writes = audit::writes(lab.control_plane.audit(), jiff::Timestamp::MIN).unwrap();
        let mine: Vec<_> = writes.into_iter().filter(|write| write.name == "ruled").collect();
        mine.iter().any(|write| write.code == 409).then_some(mine)
    })
    .await;
    assert!(
        writes
            .iter()
            .all(|write| write.user == user && write.resource == RESOURCE)
    );
    assert!(
        writes
            .iter()
            .all(|write| [200, 201, 409, 422].contains(&write.code)),
        "{writes:?}"
    );

    // The finalizer keeps it until godwit lets go.
    send(&client, "DELETE", &at, None).await.accepted();
    assert_eq!(send(&client, "GET", &at, None).await.code, 200);
    turn(&client, "ruled", &[("/metadata/finalizers", json!([]))])
        .await
        .accepted();
    assert_eq!(send(&client, "GET", &at, None).await.code, 404);
    Ok(())
}

pub async fn nobody_else_writes_records(lab: &mut Lab) -> anyhow::Result<()> {
    let words = "only godwit itself writes GuestRecords";
    let administrator = lab.client();
    // A policy takes effect a moment after it was made; a dry run leaves nothing behind until then.
    eventually("the policy takes effect", async || {
        let answer = try_create(&administrator, RESOURCE, &record("early")).await;
        (answer.code >= 400).then_some(())
    })
    .await;

    let controller = lab.controller_client().await?;
    create(&controller, RESOURCE, &record("guarded")).await.accepted();
    create(&administrator, RESOURCE, &record("other"))
        .await
        .refused("an administrator creates", words);
    turn(&administrator, "guarded", &[("/spec/writer", json!("me"))])
        .await
        .refused("an administrator changes", words);
    let at = format!("{}/guarded", path(RESOURCE));
    send(&administrator, "DELETE", &at, None)
        .await
        .refused("an administrator deletes", words);
    send(&administrator, "DELETE", &path(RESOURCE), None)
        .await
        .refused("an administrator deletes all", words);

    // A namespace's administrator has no right on a cluster-scoped object at all.
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "records-admin"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "tenant"}],
    });
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    send(&administrator, "POST", bindings, Some(&binding))
        .await
        .accepted();
    let tenant = control_plane::client(lab.control_plane.administrator(), Some("tenant")).await?;
    create(&tenant, RESOURCE, &record("other"))
        .await
        .refused("a tenant creates", "forbidden");
    send(&tenant, "GET", &at, None)
        .await
        .refused("a tenant reads", "forbidden");

    // An agent reads, and changes no record in which its host has no part.
    let token = credentials::pod_bound_token(&administrator, "h1", chart::AGENT_ACCOUNT).await?;
    let agent = credentials::client(&lab.control_plane, &token).await?;
    turn(&agent, "guarded", &[("/spec/writer", json!("h1"))])
        .await
        .refused("an agent changes", "has no part");
    create(&agent, RESOURCE, &record("other"))
        .await
        .refused("an agent creates", "forbidden");
    send(&agent, "DELETE", &at, None)
        .await
        .refused("an agent deletes", "forbidden");
    send(&agent, "GET", &path(RESOURCE), None)
        .await
        .refused("an agent lists", "forbidden");

    turn(&controller, "guarded", &[("/spec/writer", json!("controller-2"))])
        .await
        .accepted();
    send(&controller, "DELETE", &path(RESOURCE), None)
        .await
        .refused("the controller deletes all", "forbidden");
    turn(&controller, "guarded", &[("/metadata/finalizers", json!([]))])
        .await
        .accepted();
    send(&controller, "DELETE", &at, None).await.accepted();
    Ok(())
}
