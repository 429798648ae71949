//! What tells one agent from another at the API server: the node in its token. All agents have one account.

use godwit_lab::{Lab, chart, credentials};
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::server::{Answer, apply, create, eventually, path, send, send_with, try_create};

const HOSTS: &str = "virtualmachinehosts";
/// What is said to a token that names no node.
pub const NO_NODE: &str = "bound to no node";

/// A client with the token that an agent's pod on that node has.
pub async fn agent(lab: &Lab, node: &str) -> anyhow::Result<Client> {
    let token = credentials::pod_bound_token(&lab.client(), node, chart::AGENT_ACCOUNT).await?;
    credentials::client(&lab.control_plane, &token).await
}

/// A client with a token of the agents' account that is bound to nothing.
pub async fn unbound(lab: &Lab) -> anyhow::Result<Client> {
    let token = credentials::unbound_token(&lab.client(), chart::AGENT_ACCOUNT).await?;
    credentials::client(&lab.control_plane, &token).await
}

/// Waits until the policies are in force: they take effect a moment after they were made.
pub async fn policies_in_force(lab: &Lab) -> anyhow::Result<()> {
    let unbound = unbound(lab).await?;
    let administrator = lab.client();
    eventually("the agents' policy takes effect", async || {
        let path = format!("{}?dryRun=All", path(HOSTS));
        let answer = send(&unbound, "POST", &path, Some(&host("early"))).await;
        answer.message().contains(NO_NODE).then_some(())
    })
    .await;
    eventually("the records' policy takes effect", async || {
        let answer = try_create(&administrator, "guestrecords", &crate::record::record("early")).await;
        answer.message().contains("only godwit itself").then_some(())
    })
    .await;
    Ok(())
}

fn host(name: &str) -> Value {
    json!({
        "apiVersion": "godwit.dev/v1alpha1",
        "kind": "VirtualMachineHost",
        "metadata": {"name": name},
        "spec": {"endpoint": "10.0.0.1:16514", "migrationAddresses": ["10.0.0.1"]},
    })
}

fn host_status(name: &str) -> Value {
    json!({
        "apiVersion": "godwit.dev/v1alpha1",
        "kind": "VirtualMachineHost",
        "metadata": {"name": name},
        "status": {"agentVersion": "0.1.0", "guestCount": 0},
    })
}

async fn apply_host(client: &Client, name: &str) -> Answer {
    apply(client, &format!("{}/{name}", path(HOSTS)), &host(name)).await
}

async fn apply_host_status(client: &Client, name: &str) -> Answer {
    apply(
        client,
        &format!("{}/{name}/status", path(HOSTS)),
        &host_status(name),
    )
    .await
}

async fn apply_lease(client: &Client, name: &str, holder: &str) -> Answer {
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": 40},
    });
    let path = format!(
        "/apis/coordination.k8s.io/v1/namespaces/{}/leases/{name}",
        chart::NAMESPACE
    );
    apply(client, &path, &lease).await
}

/// What the API server knows of whoever asks.
async fn who(client: &Client) -> Answer {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    send(client, "POST", path, Some(&review)).await
}

pub async fn r3_a_token_names_its_node_and_dies_with_its_pod(lab: &mut Lab) -> anyhow::Result<()> {
    let administrator = lab.client();
    let pod = credentials::pod_on_node(&administrator, "h7", chart::AGENT_ACCOUNT).await?;
    let node = send(&administrator, "GET", "/api/v1/nodes/h7", None)
        .await
        .accepted();
    let agent = agent(lab, "h7").await?;
    let user = who(&agent).await.accepted()["status"]["userInfo"].clone();
    let extra = &user["extra"];
    let said = |word: &str| extra[format!("authentication.kubernetes.io/{word}")][0].clone();
    assert_eq!(said("node-name"), "h7");
    assert_eq!(said("node-uid"), node["metadata"]["uid"]);
    assert_eq!(said("pod-name"), json!(pod.metadata.name));
    assert_eq!(said("pod-uid"), json!(pod.metadata.uid));

    let unbound = unbound(lab).await?;
    let user = who(&unbound).await.accepted()["status"]["userInfo"].clone();
    assert!(user["username"].as_str().unwrap().ends_with(":godwit-agent"));
    assert!(
        user["extra"]
            .get("authentication.kubernetes.io/node-name")
            .is_none(),
        "{user}"
    );

    let pods: Api<Pod> = Api::namespaced(administrator, chart::NAMESPACE);
    let now = DeleteParams::default().grace_period(0);
    pods.delete(pod.metadata.name.as_deref().unwrap(), &now).await?;
    // The API server remembers for some seconds that the token was good.
    eventually("the token is refused", async || {
        (who(&agent).await.code == 401).then_some(())
    })
    .await;
    Ok(())
}

pub async fn r3_an_agent_writes_its_own_host_and_no_other(lab: &mut Lab) -> anyhow::Result<()> {
    policies_in_force(lab).await?;
    let (one, two) = (agent(lab, "h1").await?, agent(lab, "h2").await?);
    for (agent, name) in [(&one, "h1"), (&two, "h2")] {
        apply_host(agent, name).await.accepted();
        apply_host_status(agent, name).await.accepted();
    }
    let words = "host h1 writes its own objects, not h2";
    apply_host(&one, "h2").await.refused("another's host", words);
    apply_host_status(&one, "h2")
        .await
        .refused("another's status", words);
    apply_host(&one, "h9").await.refused(
        "a host that is not there",
        "host h1 writes its own objects, not h9",
    );
    create(&one, HOSTS, &host("h9"))
        .await
        .refused("made otherwise", "host h1 writes its own objects, not h9");
    let mut nameless = host("x");
    nameless["metadata"] = json!({"generateName": "h1"});
    create(&one, HOSTS, &nameless)
        .await
        .refused("a name that the server makes", "host h1 writes its own objects");
    for name in ["h1", "h2"] {
        let at = format!("{}/{name}", path(HOSTS));
        let answer = send(&one, "DELETE", &at, None).await;
        answer.refused("a deletion", "forbidden");
    }
    send(&one, "DELETE", &path(HOSTS), None)
        .await
        .refused("a deletion of all", "forbidden");
    Ok(())
}

/// Nobody takes the object of a living host away while guests run there.
pub async fn a_host_with_guests_is_not_removed_while_it_is_heard(lab: &mut Lab) -> anyhow::Result<()> {
    policies_in_force(lab).await?;
    let (administrator, five) = (lab.client(), agent(lab, "h5").await?);
    apply_host(&five, "h5").await.accepted();
    let at = format!("{}/h5", path(HOSTS));
    let say = async |ready: &str, guests: u32| {
        let mut object = host_status("h5");
        object["status"]["guestCount"] = json!(guests);
        object["status"]["conditions"] = json!([{
            "type": "Ready", "status": ready, "reason": "Some", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1,
        }]);
        apply(&five, &format!("{at}/status"), &object).await.accepted();
    };
    let try_to = async || send(&administrator, "DELETE", &format!("{at}?dryRun=All"), None).await;
    say("True", 2).await;
    eventually("the policy takes effect", async || {
        try_to()
            .await
            .message()
            .contains("host h5 has 2 guests")
            .then_some(())
    })
    .await;
    say("False", 1).await;
    try_to()
        .await
        .refused("a host that is not ready", "its agent is heard");
    for (ready, guests) in [("True", 0), ("Unknown", 2), ("False", 0)] {
        say(ready, guests).await;
        try_to().await.accepted();
    }
    send(&administrator, "DELETE", &at, None).await.accepted();
    // One that never said anything.
    apply_host(&five, "h5").await.accepted();
    send(&administrator, "DELETE", &at, None).await.accepted();
    Ok(())
}

pub async fn r3_a_host_holds_its_own_lease_and_no_other(lab: &mut Lab) -> anyhow::Result<()> {
    policies_in_force(lab).await?;
    let (one, two) = (agent(lab, "h1").await?, agent(lab, "h2").await?);
    apply_lease(&one, "h1", "h1").await.accepted();
    apply_lease(&two, "h2", "h2").await.accepted();
    let words = "host h1 writes its own objects";
    for holder in ["h1", "h2"] {
        apply_lease(&one, "h2", holder)
            .await
            .refused("another's Lease", words);
    }
    // With the controller's Lease in hand, no controller would lead.
    apply_lease(&one, "godwit-controller", "h1")
        .await
        .refused("the controller's Lease", words);
    let namesake = agent(lab, "godwit-controller").await?;
    apply_lease(&namesake, "godwit-controller", "godwit-controller")
        .await
        .refused(
            "the controller's Lease, by its name",
            "its own Lease and no other",
        );
    Ok(())
}

pub async fn r4_the_name_comes_from_the_token_and_not_from_the_message(lab: &mut Lab) -> anyhow::Result<()> {
    policies_in_force(lab).await?;
    let one = agent(lab, "h1").await?;
    apply_lease(&one, "h1", "h2")
        .await
        .refused("a Lease held as another", "its own Lease and no other");
    let claims = json!({"authentication.kubernetes.io/node-name": "h2"});
    let mut forged = host("h2");
    forged["metadata"]["annotations"] = claims.clone();
    forged["metadata"]["labels"] = json!({"kubernetes.io/hostname": "h2"});
    apply(&one, &format!("{}/h2", path(HOSTS)), &forged)
        .await
        .refused("a node that the object claims", "host h1 writes its own objects");
    // Nor can a token be asked for that says more than what it is bound to.
    let mut request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": [], "boundObjectRef": null},
    });
    request["metadata"] = json!({"annotations": claims});
    let accounts = format!("/api/v1/namespaces/{}/serviceaccounts", chart::NAMESPACE);
    let tokens = format!("{accounts}/{}/token", chart::AGENT_ACCOUNT);
    send(&one, "POST", &tokens, Some(&request))
        .await
        .refused("an agent asks for a token", "forbidden");
    let answer = send(&lab.client(), "POST", &tokens, Some(&request))
        .await
        .accepted();
    let token = answer["status"]["token"].as_str().unwrap().to_owned();
    let client = credentials::client(&lab.control_plane, &token).await?;
    apply_host(&client, "h2")
        .await
        .refused("a token asked for with a claim", NO_NODE);
    Ok(())
}

/// An agent that is no pod (a service of its host) has a token that is bound to its Node.
pub async fn r3_a_token_bound_to_a_node_speaks_for_that_node(lab: &mut Lab) -> anyhow::Result<()> {
    policies_in_force(lab).await?;
    let administrator = lab.client();
    credentials::pod_on_node(&administrator, "h8", chart::AGENT_ACCOUNT).await?;
    let mut command = lab.kubectl()?;
    command.args(["create", "token", chart::AGENT_ACCOUNT]);
    command.args(["--namespace", chart::NAMESPACE]);
    command.args(["--bound-object-kind", "Node", "--bound-object-name", "h8"]);
    let token = chart::run(command).await?;
    let eight = credentials::client(&lab.control_plane, token.trim()).await?;
    apply_host(&eight, "h8").await.accepted();
    apply_host(&eight, "h9")
        .await
        .refused("another's host", "host h8 writes its own objects, not h9");
    Ok(())
}

pub async fn r3_without_a_node_nothing_is_written(lab: &mut Lab) -> anyhow::Result<()> {
    policies_in_force(lab).await?;
    let unbound = unbound(lab).await?;
    for name in ["h1", "h9"] {
        apply_host(&unbound, name).await.refused("a host", NO_NODE);
    }
    apply_host_status(&unbound, "h1")
        .await
        .refused("a status", NO_NODE);
    apply_lease(&unbound, "h1", "h1")
        .await
        .refused("a Lease", NO_NODE);
    apply_lease(&unbound, "h1", "").await.refused("a Lease", NO_NODE);
    Ok(())
}

/// A kubelet (and who has taken its node) is given tokens of the pods on its own node, and of no other.
pub async fn r3_a_node_is_given_tokens_of_its_own_pods_alone(lab: &mut Lab) -> anyhow::Result<()> {
    let administrator = lab.client();
    let headers = [
        ("content-type", "application/json"),
        ("impersonate-user", "system:node:h1"),
        ("impersonate-group", "system:nodes"),
    ];
    let path = format!(
        "/api/v1/namespaces/{}/serviceaccounts/{}/token",
        chart::NAMESPACE,
        chart::AGENT_ACCOUNT
    );
    let mut pods = Vec::new();
    for node in ["h1", "h2"] {
        pods.push(credentials::pod_on_node(&administrator, node, chart::AGENT_ACCOUNT).await?);
    }
    let ask = async |bound: Value| {
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": [], "boundObjectRef": bound},
        });
        send_with(&administrator, "POST", &path, &headers, Some(&request)).await
    };
    let of = |pod: &Pod| {
        let metadata = &pod.metadata;
        json!({"apiVersion": "v1", "kind": "Pod", "name": metadata.name, "uid": metadata.uid})
    };
    eventually("the authorizer knows the pod", async || {
        (ask(of(&pods[0])).await.code == 201).then_some(())
    })
    .await;
    ask(of(&pods[1]))
        .await
        .refused("a pod on another node", "scheduled on a different node");
    ask(Value::Null)
        .await
        .refused("bound to nothing", "not bound to a pod");
    ask(json!({"apiVersion": "v1", "kind": "Node", "name": "h2"}))
        .await
        .refused("bound to another node", "not bound to a pod");
    Ok(())
}

/// Whoever may act as another account still cannot put a node into its claims.
pub async fn r3_a_node_cannot_be_forged_by_impersonation(lab: &mut Lab) -> anyhow::Result<()> {
    policies_in_force(lab).await?;
    let account = format!(
        "system:serviceaccount:{}:{}",
        chart::NAMESPACE,
        chart::AGENT_ACCOUNT
    );
    let path = format!("{}/h2?fieldManager=godwit-agent&force=true", path(HOSTS));
    let plain = [
        ("content-type", "application/apply-patch+yaml"),
        ("impersonate-user", account.as_str()),
    ];
    let forged = [
        plain[0],
        plain[1],
        ("impersonate-extra-authentication.kubernetes.io%2fnode-name", "h2"),
    ];
    let one = agent(lab, "h1").await?;
    send_with(&one, "PATCH", &path, &forged, Some(&host("h2")))
        .await
        .refused("an agent as another", "cannot impersonate");

    // Kubernetes' own role `admin` allows to act as the service accounts of a namespace.
    let administrator = lab.client();
    let name = "impersonator";
    let user = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
    let users = format!("/api/v1/namespaces/{}/serviceaccounts", chart::NAMESPACE);
    send(&administrator, "POST", &users, Some(&user)).await.accepted();
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": chart::NAMESPACE}],
    });
    let bindings = format!(
        "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
        chart::NAMESPACE
    );
    send(&administrator, "POST", &bindings, Some(&binding))
        .await
        .accepted();
    let token = credentials::unbound_token(&administrator, name).await?;
    let impersonator = credentials::client(&lab.control_plane, &token).await?;
    eventually(
        "he may act as the agents' account, which names no node then",
        async || {
            let answer = send_with(&impersonator, "PATCH", &path, &plain, Some(&host("h2"))).await;
            answer.message().contains(NO_NODE).then_some(())
        },
    )
    .await;
    send_with(&impersonator, "PATCH", &path, &forged, Some(&host("h2")))
        .await
        .refused("a claim that he writes himself", "cannot impersonate");
    send(&administrator, "DELETE", &format!("{bindings}/{name}"), None)
        .await
        .accepted();
    Ok(())
}

/// The policy holds whatever rights somebody grants the agents' account one day.
pub async fn r3_the_policy_holds_beyond_the_roles(lab: &mut Lab) -> anyhow::Result<()> {
    policies_in_force(lab).await?;
    let administrator = lab.client();
    let generous = "generous";
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": generous},
        "rules": [
            {"apiGroups": ["godwit.dev"], "resources": ["*"], "verbs": ["*"]},
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["*"]},
        ],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": generous},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": generous},
        "subjects": [{"kind": "ServiceAccount", "name": chart::AGENT_ACCOUNT, "namespace": chart::NAMESPACE}],
    });
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let (roles, bindings) = (
        format!("{rbac}/clusterroles"),
        format!("{rbac}/clusterrolebindings"),
    );
    send(&administrator, "POST", &roles, Some(&role)).await.accepted();
    send(&administrator, "POST", &bindings, Some(&binding))
        .await
        .accepted();

    let machine = crate::machine::machine("generous");
    let migration = crate::migration::migration("generous");
    create(&administrator, "virtualmachines", &machine)
        .await
        .accepted();
    create(&administrator, "virtualmachinemigrations", &migration)
        .await
        .accepted();
    let one = agent(lab, "h1").await?;
    apply_host(&one, "h1").await.accepted();
    // From here on it is the policy that refuses, no longer the roles.
    eventually("the rights are there", async || {
        let at = format!("{}/h1?dryRun=All", path(HOSTS));
        let answer = send(&one, "DELETE", &at, None).await;
        answer.message().contains("agents delete nothing").then_some(())
    })
    .await;
    for (resource, object) in [
        ("virtualmachines", &machine),
        ("virtualmachinemigrations", &migration),
    ] {
        let words = format!("agents do not write {resource}");
        let at = format!("{}/generous", path(resource));
        let mut other = object.clone();
        other["metadata"]["name"] = json!("other");
        create(&one, resource, &other).await.refused("made", &words);
        let found = send(&administrator, "GET", &at, None).await.accepted();
        send(&one, "PUT", &at, Some(&found))
            .await
            .refused("changed", &words);
        send(&one, "PUT", &format!("{at}/status"), Some(&found))
            .await
            .refused("its status", &words);
        send(&one, "DELETE", &at, None)
            .await
            .refused("deleted", "agents delete nothing");
    }
    let lease = format!(
        "/apis/coordination.k8s.io/v1/namespaces/{}/leases",
        chart::NAMESPACE
    );
    apply_lease(&one, "h1", "h1").await.accepted();
    send(&one, "DELETE", &format!("{lease}/h1"), None)
        .await
        .refused("its Lease deleted", "agents delete nothing");
    let record = crate::record::record("generous");
    create(&one, "guestrecords", &record)
        .await
        .refused("a record made", "never make or delete a GuestRecord");

    for at in [format!("{bindings}/{generous}"), format!("{roles}/{generous}")] {
        send(&administrator, "DELETE", &at, None).await.accepted();
    }
    for resource in ["virtualmachines", "virtualmachinemigrations"] {
        let at = format!("{}/generous", path(resource));
        send(&administrator, "DELETE", &at, None).await.accepted();
    }
    eventually("the rights are gone", async || {
        let answer = send(&one, "GET", &path("virtualmachines"), None).await;
        (answer.code == 403).then_some(())
    })
    .await;
    Ok(())
}
