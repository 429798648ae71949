//! Who may do what by the chart's roles.

use godwit_lab::{Lab, chart};
use kube::Client;
use serde_json::json;

use crate::server::{eventually, send};

/// Asks the API server whether a user may do something.
async fn may(client: &Client, user: &str, verb: &str, resource: &str, namespace: &str) -> bool {
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
            "namespace": namespace, "name": "some",
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
        ("virtualmachines.godwit.dev", "any", "get list watch update patch", ""),
        ("virtualmachines.godwit.dev/status", "any", "get update patch", ""),
        ("virtualmachines.godwit.dev/finalizers", "any", "update", ""),
        ("virtualmachinemigrations.godwit.dev", "any", "get list watch update patch", ""),
        ("virtualmachinemigrations.godwit.dev/status", "any", "get update patch", ""),
        ("virtualmachinemigrations.godwit.dev/finalizers", "any", "update", ""),
        ("virtualmachinehosts.godwit.dev", "", READ, "get create patch"),
        ("virtualmachinehosts.godwit.dev/status", "", "get patch", "patch"),
        ("guestrecords.godwit.dev", "", "get list watch create update patch delete", "get update"),
        ("events.events.k8s.io", "any", "create update patch", ""),
        ("leases.coordination.k8s.io", "own", "get list watch create update patch", "create patch"),
        ("leases.coordination.k8s.io", "any", "", ""),
        ("secrets", "own", "", ""),
        ("secrets", "any", "", ""),
        ("pods", "any", "", ""),
        ("pods/exec", "any", "", ""),
        ("nodes", "", "", ""),
        ("configmaps", "own", "", ""),
        ("serviceaccounts/token", "own", "", ""),
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
