//! Who may do what by the chart's roles.

use godwit_lab::{Lab, cache, chart};
use kube::Client;
use serde_json::{Value, json};

use crate::agents::policies_in_force;
use crate::migration::migration;
use crate::record::{armed, record, turn};
use crate::server::{create, eventually, send, set, try_create};

/// Asks the API server whether a user may do something.
async fn may(client: &Client, user: &str, verb: &str, resource: &str, namespace: &str) -> bool {
    may_with(client, user, verb, (resource, "some"), namespace).await
}

/// The same for the object of that name.
async fn may_with(client: &Client, user: &str, verb: &str, what: (&str, &str), namespace: &str) -> bool {
    let (resource, name) = what;
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
    let mut groups = vec!["system:authenticated".to_owned()];
    if user.starts_with("system:serviceaccount:") {
        groups.push("system:serviceaccounts".to_owned());
        groups.push(format!("system:serviceaccounts:{}", chart::NAMESPACE));
    }
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "groups": groups, "resourceAttributes": {
            "verb": verb, "group": group, "resource": resource, "subresource": subresource,
            "namespace": namespace, "name": name,
        }},
    });
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    send(client, "POST", path, Some(&review)).await.accepted()["status"]["allowed"] == true
}

const VERBS: [&str; 8] = [
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
];

/// Everything that godwit's own accounts may do: what is not in the table is refused. Namespaces: `own` is the
/// release's, `any` one of a user.
pub async fn r3_parts_have_their_rights_and_no_more(lab: &mut Lab) -> anyhow::Result<()> {
    const READ: &str = "get list watch";
    #[rustfmt::skip]
    let table: &[(&str, &str, &str, &str)] = &[
        // resource, namespace, the controller's verbs, an agent's verbs
        ("virtualmachines.godwit.dev", "any", "get list watch patch", ""),
        ("virtualmachines.godwit.dev/status", "any", "patch", ""),
        ("virtualmachines.godwit.dev/finalizers", "any", "", ""),
        ("virtualmachinemigrations.godwit.dev", "any", "get list watch patch", ""),
        ("virtualmachinemigrations.godwit.dev/status", "any", "patch", ""),
        ("virtualmachinemigrations.godwit.dev/finalizers", "any", "", ""),
        ("virtualmachinehosts.godwit.dev", "", READ, "get create patch"),
        ("virtualmachinehosts.godwit.dev/status", "", "patch", "patch"),
        ("guestrecords.godwit.dev", "", "get list watch create update delete", "get update"),
        ("virtualmachineresolutions.godwit.dev", "any", "get list watch patch", ""),
        ("virtualmachineresolutions.godwit.dev/status", "any", "patch", ""),
        ("events.events.k8s.io", "any", "create patch", ""),
        ("leases.coordination.k8s.io", "own", "get list watch create", "create patch"),
        ("leases.coordination.k8s.io", "any", "", ""),
        ("secrets", "own", "", ""),
        ("secrets", "any", "", ""),
        ("pods", "any", "", ""),
        ("pods/exec", "any", "", ""),
        ("nodes", "", "", ""),
        ("configmaps", "own", "", ""),
        ("serviceaccounts/token", "own", "", ""),
        ("pods", "own", "", ""),
        // A host's name the signer gives to a host's token only: who may move guests cannot make itself a host.
        ("certificatesigningrequests.certificates.k8s.io", "", "create get", "create get"),
        ("certificatesigningrequests.certificates.k8s.io/approval", "", "", ""),
        ("podcertificaterequests.certificates.k8s.io", "own", "", ""),
        ("podcertificaterequests.certificates.k8s.io/status", "own", "", ""),
        ("clusterroles.rbac.authorization.k8s.io", "", "", ""),
        ("validatingadmissionpolicybindings.admissionregistration.k8s.io", "", "", ""),
        ("customresourcedefinitions.apiextensions.k8s.io", "", "", ""),
    ];
    let client = lab.client();
    for (resource, scope, controller, agent) in table {
        let namespace = match *scope {
            "own" => chart::NAMESPACE,
            "any" => "default",
            _ => "",
        };
        for (account, verbs) in [
            (chart::CONTROLLER_ACCOUNT, controller),
            (chart::AGENT_ACCOUNT, agent),
        ] {
            let user = format!("system:serviceaccount:{}:{account}", chart::NAMESPACE);
            for verb in VERBS {
                let expected = verbs.split(' ').any(|word| word == verb);
                let allowed = may(&client, &user, verb, resource, namespace).await;
                assert_eq!(allowed, expected, "{account}: {verb} {resource} in “{namespace}”");
            }
        }
    }
    // Objects by name, in godwit's own namespace: what signs tickets is the controller's alone, and of the Leases it
    // changes the one that says which controller leads.
    for (what, controller, agent) in [
        (
            ("leases.coordination.k8s.io", "godwit-controller"),
            "get list watch create update",
            "create patch",
        ),
        (("secrets", "godwit-ticket-key"), "get update", ""),
        (("configmaps", "godwit-ticket-keys"), "get update", "get"),
    ] {
        for (account, verbs) in [
            (chart::CONTROLLER_ACCOUNT, controller),
            (chart::AGENT_ACCOUNT, agent),
        ] {
            let user = format!("system:serviceaccount:{}:{account}", chart::NAMESPACE);
            for verb in VERBS {
                let expected = verbs.split(' ').any(|word| word == verb);
                let allowed = may_with(&client, &user, verb, what, chart::NAMESPACE).await;
                assert_eq!(allowed, expected, "{account}: {verb} {what:?}");
                let elsewhere = may_with(&client, &user, verb, what, "default").await;
                assert!(!elsewhere, "{account}: {verb} {what:?} elsewhere");
            }
        }
    }
    Ok(())
}

pub async fn r13_migrating_is_an_administrators_right(lab: &mut Lab) -> anyhow::Result<()> {
    let client = lab.client();
    for role in ["view", "edit", "admin"] {
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": format!("people-{role}")},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": format!("a-{role}")}],
        });
        let path = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
        send(&client, "POST", path, Some(&binding)).await.accepted();
    }
    let (machines, migrations) = (
        "virtualmachines.godwit.dev",
        "virtualmachinemigrations.godwit.dev",
    );
    // The controller manager aggregates roles after a moment.
    eventually("the roles are aggregated", async || {
        let all = may(&client, "a-view", "get", machines, "default").await
            && may(&client, "a-edit", "create", machines, "default").await
            && may(&client, "a-admin", "create", migrations, "default").await;
        all.then_some(())
    })
    .await;
    #[rustfmt::skip]
    let table = [
        ("a-view", "list", machines, true), ("a-view", "watch", migrations, true),
        ("a-view", "create", machines, false), ("a-view", "create", migrations, false),
        ("a-edit", "delete", machines, true), ("a-edit", "list", migrations, true),
        ("a-edit", "create", migrations, false), ("a-edit", "patch", migrations, false),
        ("a-admin", "delete", machines, true), ("a-admin", "patch", migrations, true),
        ("a-admin", "update", "virtualmachines.godwit.dev/status", false),
        ("a-admin", "patch", "virtualmachinemigrations.godwit.dev/status", false),
    ];
    for (user, verb, resource, expected) in table {
        let allowed = may(&client, user, verb, resource, "default").await;
        assert_eq!(allowed, expected, "{user}: {verb} {resource}");
        assert!(
            !may(&client, user, verb, resource, "kube-public").await,
            "{user} in another namespace"
        );
    }
    for user in ["a-view", "a-edit", "a-admin"] {
        for verb in VERBS {
            assert!(
                !may(&client, user, verb, "guestrecords.godwit.dev", "").await,
                "{user}: {verb} records"
            );
            assert!(
                !may(&client, user, verb, "virtualmachinehosts.godwit.dev", "").await,
                "{user}: {verb} hosts"
            );
        }
    }
    Ok(())
}

/// Runs `helm upgrade` with these values.
async fn upgrade(lab: &Lab, values: &str) -> anyhow::Result<()> {
    let mut command = chart::helm(&lab.control_plane)?;
    command
        .args(["upgrade", chart::RELEASE])
        .arg(cache::workspace().join("charts/godwit"))
        .args(["--namespace", chart::NAMESPACE])
        .args(["--set", "controller.deploy=false,agent.deploy=false"])
        .args(["--set", values]);
    chart::run(command).await.map(drop)
}

pub async fn r13_the_chart_says_who_else_may_migrate(lab: &mut Lab) -> anyhow::Result<()> {
    let client = lab.client();
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "editor"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "editor"}],
    });
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    send(&client, "POST", bindings, Some(&binding)).await.accepted();
    let (machines, migrations) = (
        "virtualmachines.godwit.dev",
        "virtualmachinemigrations.godwit.dev",
    );
    // An upgrade keeps the rest as it is, and an editor's right on guests ends with the aggregation.
    for (values, guests, moves) in [
        ("userRoles.editorsMayMigrate=true", true, true),
        ("userRoles.aggregate=false", false, false),
        ("userRoles.editorsMayMigrate=false", true, false),
    ] {
        upgrade(lab, values).await?;
        eventually(values, async || {
            let as_said = may(&client, "editor", "create", machines, "default").await == guests
                && may(&client, "editor", "create", migrations, "default").await == moves
                && may(&client, "editor", "get", migrations, "default").await == guests;
            as_said.then_some(())
        })
        .await;
    }
    Ok(())
}

/// Whoever publishes a key can sign tickets: the policy lets no one do it but the controller, whatever his rights.
pub async fn r2_the_controller_alone_publishes_keys_of_tickets(lab: &mut Lab) -> anyhow::Result<()> {
    let administrator = lab.client();
    let maps = format!("/api/v1/namespaces/{}/configmaps", chart::NAMESPACE);
    let at = format!("{maps}/godwit-ticket-keys");
    let found = send(&administrator, "GET", &at, None).await.accepted();
    let mut forged = found.clone();
    set(&mut forged, "/data/keys", json!("ed25519 00 0"));
    let words = "published by its controller, not by";
    eventually("the policy takes effect", async || {
        let answer = send(&administrator, "PUT", &format!("{at}?dryRun=All"), Some(&forged)).await;
        answer.message().contains(words).then_some(())
    })
    .await;
    let mut bytes = found.clone();
    set(&mut bytes, "/binaryData/keys", json!("c29tZQ=="));
    send(&administrator, "PUT", &at, Some(&bytes))
        .await
        .refused("other data", words);
    // Labels are nobody's secret.
    let mut labelled = found.clone();
    set(&mut labelled, "/metadata/labels/some", json!("label"));
    send(&administrator, "PUT", &at, Some(&labelled)).await.accepted();
    // Nor is it a way round to remove it and make it anew.
    send(&administrator, "DELETE", &at, None).await.accepted();
    let mut anew = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "godwit-ticket-keys"},
        "data": {"keys": "ed25519 00 0"},
    });
    send(&administrator, "POST", &maps, Some(&anew))
        .await
        .refused("made with a key in it", words);
    set(&mut anew, "/metadata/labels", found["metadata"]["labels"].clone());
    set(
        &mut anew,
        "/metadata/annotations",
        found["metadata"]["annotations"].clone(),
    );
    set(&mut anew, "/data", Value::Null);
    send(&administrator, "POST", &maps, Some(&anew)).await.accepted();
    Ok(())
}

/// The chart makes the keys' objects empty, the controller fills them, and no upgrade empties them again.
pub async fn an_upgrade_keeps_what_the_controller_wrote(lab: &mut Lab) -> anyhow::Result<()> {
    let controller = lab.controller_client().await?;
    let namespace = format!("/api/v1/namespaces/{}", chart::NAMESPACE);
    let objects = [
        (
            format!("{namespace}/secrets/godwit-ticket-key"),
            json!("c29tZQ=="),
        ),
        (
            format!("{namespace}/configmaps/godwit-ticket-keys"),
            json!("some"),
        ),
    ];
    let mut before = Vec::new();
    for (path, text) in &objects {
        let mut object = send(&controller, "GET", path, None).await.accepted();
        before.push(object.clone());
        set(&mut object, "/data/keys", text.clone());
        send(&controller, "PUT", path, Some(&object)).await.accepted();
    }
    upgrade(lab, "userRoles.editorsMayMigrate=false").await?;
    for ((path, text), mut before) in objects.iter().zip(before) {
        let after = send(&controller, "GET", path, None).await.accepted();
        assert_eq!(after["data"]["keys"], *text, "{path}");
        before["metadata"]["resourceVersion"] = Value::Null;
        send(&controller, "PUT", path, Some(&before)).await.accepted();
    }
    Ok(())
}

pub async fn r13_migrations_count_against_a_quota(lab: &mut Lab) -> anyhow::Result<()> {
    let client = lab.client();
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "thrifty"}});
    send(&client, "POST", "/api/v1/namespaces", Some(&namespace))
        .await
        .accepted();
    let quota = |most: &str| {
        json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "migrations"},
            "spec": {"hard": {"count/virtualmachinemigrations.godwit.dev": most}},
        })
    };
    let quotas = "/api/v1/namespaces/thrifty/resourcequotas";
    send(&client, "POST", quotas, Some(&quota("0"))).await.accepted();
    let migrations = "/apis/godwit.dev/v1alpha1/namespaces/thrifty/virtualmachinemigrations";
    let order = async |name: &str, how: &str| {
        let mut object = migration(name);
        set(&mut object, "/metadata/namespace", json!("thrifty"));
        send(&client, "POST", &format!("{migrations}{how}"), Some(&object)).await
    };
    // What checks a create learns of a quota later than whoever reads it, and then it is in force.
    eventually("the quota is in force", async || {
        let answer = order("none", "?dryRun=All").await;
        (answer.code >= 400 && answer.message().contains("exceeded quota")).then_some(())
    })
    .await;
    send(&client, "PUT", &format!("{quotas}/migrations"), Some(&quota("2")))
        .await
        .accepted();
    eventually("the greater quota is in force", async || {
        let answer = order("first", "").await;
        (answer.code < 300).then_some(())
    })
    .await;
    order("second", "").await.accepted();
    order("third", "").await.refused("a third", "exceeded quota");
    Ok(())
}

pub async fn r13_a_guest_goes_to_one_host_at_a_time(lab: &mut Lab) -> anyhow::Result<()> {
    let controller = lab.controller_client().await?;
    create(&controller, "guestrecords", &record("single"))
        .await
        .accepted();
    let arming = |uid: &str, to: &str| {
        [
            ("/spec/migration", armed(uid, "h1", to)),
            ("/spec/decision", json!("None")),
        ]
    };
    turn(&controller, "single", &arming("m1", "h2")).await.accepted();
    let words = "armed only after the last one is finally decided";
    turn(&controller, "single", &arming("m2", "h3"))
        .await
        .refused("a second destination", words);
    turn(&controller, "single", &[("/spec/decision", json!("Committed"))])
        .await
        .accepted();
    turn(&controller, "single", &arming("m2", "h3"))
        .await
        .refused("a second destination, the first one committed", words);
    Ok(())
}

/// What belongs together is found by UID. Nothing that a tenant writes selects by label or reaches another namespace.
pub async fn r12_objects_are_linked_by_uid_within_a_namespace(lab: &mut Lab) -> anyhow::Result<()> {
    policies_in_force(lab).await?;
    let client = lab.client();
    for resource in ["virtualmachines", "virtualmachinemigrations"] {
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{resource}.godwit.dev");
        let definition = send(&client, "GET", &path, None).await.accepted();
        assert_eq!(definition["spec"]["scope"], "Namespaced");
        let spec = definition
            .pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec")
            .expect("a schema");
        let mut fields = Vec::new();
        names_of_fields(spec, &mut fields);
        assert!(fields.iter().any(|name| name == "host"), "{fields:?}");
        for word in ["namespace", "selector", "label"] {
            let found = fields.iter().find(|name| name.to_lowercase().contains(word));
            assert_eq!(found, None, "{resource}");
        }
    }
    let mut elsewhere = migration("elsewhere");
    set(&mut elsewhere, "/spec/namespace", json!("kube-system"));
    try_create(&client, "virtualmachinemigrations", &elsewhere)
        .await
        .refused("another namespace", "unknown field");

    // A record is that of a UID: not of a name, which another guest may have one day.
    let controller = lab.controller_client().await?;
    let mut by_name = record("a-uid");
    set(&mut by_name, "/metadata/name", json!("web1"));
    try_create(&controller, "guestrecords", &by_name)
        .await
        .refused("a record by name", "named by its guest's UID");
    create(&controller, "guestrecords", &record("a-uid"))
        .await
        .accepted();
    for (pointer, value) in [
        ("/spec/guest/uid", json!("another-uid")),
        ("/spec/guest/name", json!("web2")),
        ("/spec/guest/namespace", json!("kube-system")),
        ("/spec/guest/definition", json!("1".repeat(64))),
    ] {
        turn(&controller, "a-uid", &[(pointer, value)])
            .await
            .refused(pointer, "guest never changes");
    }
    Ok(())
}

fn names_of_fields(schema: &Value, names: &mut Vec<String>) {
    let fields = schema["properties"].as_object();
    for (name, field) in fields.into_iter().flatten() {
        names.push(name.clone());
        names_of_fields(field, names);
    }
    if schema["items"].is_object() {
        names_of_fields(&schema["items"], names);
    }
}
