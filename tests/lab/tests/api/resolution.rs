//! An administrator's last word: who may say it, under which name, and what it may change in a guest's record.

use godwit_lab::{Lab, chart, control_plane, credentials};
use serde_json::{Value, json};

use crate::record::{armed, record, turn};
use crate::server::{change, create, eventually, path, send, set, try_create};

const RESOURCE: &str = "virtualmachineresolutions";

fn resolution(name: &str, by: &str) -> Value {
    json!({
        "apiVersion": "godwit.dev/v1alpha1",
        "kind": "VirtualMachineResolution",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "virtualMachine": "web1",
            "epoch": 3,
            "fencedHosts": ["h1"],
            "action": "ColdStart",
            "by": by,
        },
    })
}

pub async fn a_resolution_is_checked_and_carries_the_name_of_its_author(lab: &mut Lab) -> anyhow::Result<()> {
    let administrator = lab.client();
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let path_of_reviews = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let me = send(&administrator, "POST", path_of_reviews, Some(&review))
        .await
        .accepted();
    let me = me["status"]["userInfo"]["username"].as_str().unwrap().to_owned();
    let good = resolution("word", &me);
    eventually("the policy takes effect", async || {
        let forged = try_create(&administrator, RESOURCE, &resolution("word", "somebody")).await;
        forged.message().contains("names who says it").then_some(())
    })
    .await;
    try_create(&administrator, RESOURCE, &good).await.accepted();
    #[rustfmt::skip]
    let table = [
        ("/spec/virtualMachine", Value::Null, "spec.virtualMachine: Required"),
        ("/spec/epoch", json!(0), "greater than or equal to 1"),
        ("/spec/fencedHosts", json!([]), "at least 1 items"),
        ("/spec/fencedHosts", json!(["a", "b", "c"]), "at most 2 items"),
        ("/spec/fencedHosts", json!(["h1", "h1"]), "Duplicate"),
        ("/spec/action", json!("Guess"), "Unsupported value"),
        ("/spec/action", json!("ResumeSource"), "name its UID"),
        ("/spec/host", json!("h1"), "not started on a host that is fenced"),
        ("/spec/by", Value::Null, "spec.by: Required"),
        ("/spec/force", json!(true), "unknown field"),
    ];
    for (pointer, value, words) in table {
        let mut bad = good.clone();
        let what = format!("{pointer} = {value}");
        set(&mut bad, pointer, value);
        try_create(&administrator, RESOURCE, &bad)
            .await
            .refused(&what, words);
    }
    let mut elsewhere = good.clone();
    set(&mut elsewhere, "/spec/host", json!("h2"));
    set(&mut elsewhere, "/spec/action", json!("Wait"));
    try_create(&administrator, RESOURCE, &elsewhere)
        .await
        .refused("a host without a cold start", "goes with ColdStart alone");

    create(&administrator, RESOURCE, &good).await.accepted();
    change(&administrator, RESOURCE, "word", |object| {
        set(object, "/spec/epoch", json!(4));
    })
    .await
    .refused("changed", "immutable");
    let at = format!("{}/word", path(RESOURCE));
    send(&administrator, "DELETE", &at, None).await.accepted();

    // An editor of the namespace may not say such a thing, its administrator may.
    for (role, may) in [("edit", false), ("admin", true)] {
        let user = format!("resolver-{role}");
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": user},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        });
        let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
        send(&administrator, "POST", bindings, Some(&binding))
            .await
            .accepted();
        let client = control_plane::client(lab.control_plane.administrator(), Some(&user)).await?;
        let word = resolution("tried", &user);
        if may {
            eventually("the roles are aggregated", async || {
                let answer = try_create(&client, RESOURCE, &word).await;
                (answer.code < 300).then_some(())
            })
            .await;
        } else {
            try_create(&client, RESOURCE, &word)
                .await
                .refused("an editor", "forbidden");
        }
    }
    Ok(())
}

fn word(uid: &str, changes: &[(&str, Value)]) -> Value {
    let mut word = json!({"uid": uid, "by": "eve", "fenced": ["h1"], "lost": false});
    for (pointer, value) in changes {
        set(&mut word, pointer, value.clone());
    }
    word
}

pub async fn a_guest_is_started_afresh_by_the_rules_only(lab: &mut Lab) -> anyhow::Result<()> {
    let client = lab.controller_client().await?;
    create(&client, "guestrecords", &record("afresh"))
        .await
        .accepted();
    let refused = async |what: &str, words: &str, changes: &[(&str, Value)]| {
        turn(&client, "afresh", changes).await.refused(what, words);
    };
    let accepted = async |changes: &[(&str, Value)]| {
        turn(&client, "afresh", changes).await.accepted();
    };
    let (holder, epoch, migration, resolution) = (
        "/spec/holder",
        "/spec/epoch",
        "/spec/migration",
        "/spec/resolution",
    );
    let cold = |uid: &str, at: i64, fenced: &str| {
        word(uid, &[("/coldStart", json!(at)), ("/fenced", json!([fenced]))])
    };

    refused(
        "the holder is not fenced",
        "only by committing",
        &[
            (holder, json!("h2")),
            (epoch, json!(2)),
            (resolution, cold("w1", 2, "h3")),
        ],
    )
    .await;
    refused(
        "at another epoch",
        "only by committing",
        &[
            (holder, json!("h3")),
            (epoch, json!(2)),
            (resolution, word("w1", &[])),
        ],
    )
    .await;
    refused(
        "in the future",
        "at an epoch of its own",
        &[(resolution, cold("w1", 5, "h1"))],
    )
    .await;

    // While a migration is undecided the word is only taken in.
    accepted(&[(migration, armed("m1", "h1", "h2"))]).await;
    accepted(&[(resolution, word("w1", &[("/migration", json!("m1"))]))]).await;
    refused(
        "started afresh amid a migration",
        "only by committing",
        &[
            (holder, json!("h3")),
            (epoch, json!(2)),
            (resolution, cold("w1", 2, "h1")),
        ],
    )
    .await;
    refused(
        "disarmed amid a migration",
        "only after the last one",
        &[
            (holder, json!("h3")),
            (epoch, json!(2)),
            (migration, Value::Null),
            (resolution, cold("w2", 2, "h1")),
        ],
    )
    .await;
    refused("a word taken back", "never removed", &[(resolution, Value::Null)]).await;
    let other = word("w1", &[("/migration", json!("m1")), ("/fenced", json!(["h2"]))]);
    refused("a word changed", "does not change", &[(resolution, other)]).await;

    // Then the migration has ended, and the guest is started afresh elsewhere: never where it is fenced.
    accepted(&[("/spec/decision", json!("Aborted"))]).await;
    let disarmed = [
        (migration, Value::Null),
        ("/spec/decision", json!("None")),
        (epoch, json!(2)),
    ];
    let afresh = word("w1", &[("/migration", json!("m1")), ("/coldStart", json!(2))]);
    let mut changes = disarmed.to_vec();
    changes.extend([(holder, json!("h3")), (resolution, afresh.clone())]);
    accepted(&changes).await;
    refused(
        "started afresh again by the same word",
        "does not change",
        &[
            (holder, json!("h2")),
            (epoch, json!(3)),
            (
                resolution,
                word("w1", &[("/migration", json!("m1")), ("/coldStart", json!(3))]),
            ),
        ],
    )
    .await;
    // And moves on from there.
    accepted(&[(migration, armed("m2", "h3", "h1"))]).await;

    // Agents say no such word, whatever their part.
    let administrator = lab.client();
    let token = credentials::pod_bound_token(&administrator, "h3", chart::AGENT_ACCOUNT).await?;
    let agent = credentials::client(&lab.control_plane, &token).await?;
    turn(
        &agent,
        "afresh",
        &[
            ("/spec/writer", json!("h3")),
            ("/spec/decision", json!("Aborted")),
            (resolution, word("w3", &[])),
        ],
    )
    .await
    .refused("an agent's word", "and nothing else");
    turn(
        &agent,
        "afresh",
        &[
            ("/spec/writer", json!("h3")),
            ("/spec/decision", json!("Aborted")),
        ],
    )
    .await
    .accepted();
    Ok(())
}
