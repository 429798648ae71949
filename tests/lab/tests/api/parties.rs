//! What an agent may write into a GuestRecord: what the handover's rules give to the host that it speaks for.

use godwit_lab::Lab;
use kube::Client;
use serde_json::{Value, json};

use crate::agents::{NO_NODE, agent, policies_in_force, unbound};
use crate::record::{armed, record, turn};
use crate::server::{Answer, create, eventually, path, send, set};

const RESOURCE: &str = "guestrecords";

/// A host's part in the migration of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Source,
    Destination,
    None,
}

/// What can be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Write {
    Commit,
    Abort,
    Revert,
    Start,
    Advance,
    AdvanceTwice,
    AdvanceElsewhere,
    Retreat,
    Undecide,
    Arm,
    Disarm,
    Rewrite,
}

const WRITES: [Write; 12] = [
    Write::Start,
    Write::Commit,
    Write::Abort,
    Write::Revert,
    Write::Advance,
    Write::AdvanceTwice,
    Write::AdvanceElsewhere,
    Write::Retreat,
    Write::Undecide,
    Write::Arm,
    Write::Disarm,
    Write::Rewrite,
];

impl Write {
    /// The record after this write by that host.
    fn of(self, record: &Value, host: &str) -> Value {
        let mut next = record.clone();
        let spec = &record["spec"];
        let epoch = spec["epoch"].as_i64().unwrap();
        let destination = spec.pointer("/migration/destination").cloned();
        let changes: &[(&str, Value)] = match self {
            Self::Commit => &[("decision", json!("Committed"))],
            Self::Abort => &[("decision", json!("Aborted"))],
            Self::Revert => &[("decision", json!("Reverted"))],
            Self::Start => &[("started", json!(true))],
            Self::Advance => &[
                ("decision", json!("Committed")),
                ("holder", destination.unwrap_or_else(|| json!("h2"))),
                ("epoch", json!(epoch + 1)),
            ],
            Self::AdvanceTwice => &[
                ("decision", json!("Committed")),
                ("holder", destination.unwrap_or_else(|| json!("h2"))),
                ("epoch", json!(epoch + 2)),
            ],
            Self::AdvanceElsewhere => &[
                ("decision", json!("Committed")),
                ("holder", json!("h9")),
                ("epoch", json!(epoch + 1)),
            ],
            Self::Retreat => &[("holder", json!("h1")), ("epoch", json!(epoch + 1))],
            Self::Undecide => &[("decision", json!("None"))],
            Self::Arm => &[
                ("migration", armed("m9", spec["holder"].as_str().unwrap(), "h9")),
                ("decision", json!("None")),
            ],
            Self::Disarm => &[("migration", Value::Null), ("decision", json!("None"))],
            Self::Rewrite => &[("evidence", json!("so it was"))],
        };
        for (field, value) in changes {
            set(&mut next, &format!("/spec/{field}"), value.clone());
        }
        set(&mut next, "/spec/writer", json!(host));
        next
    }
}

/// How the record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    Unarmed,
    Undecided,
    Committed,
    /// Of a strict migration.
    StrictlyCommitted,
    /// And its start was recorded.
    Started,
    Advanced,
    Aborted,
    Reverted,
    /// Advanced, and armed again: for the way from h2 to h3.
    ArmedAgain,
}

const STATES: [Stands; 9] = [
    Stands::Unarmed,
    Stands::Undecided,
    Stands::Committed,
    Stands::StrictlyCommitted,
    Stands::Started,
    Stands::Advanced,
    Stands::Aborted,
    Stands::Reverted,
    Stands::ArmedAgain,
];

impl Stands {
    fn part(self, host: &str) -> Part {
        match (self, host) {
            (Self::Unarmed, _) => Part::None,
            (Self::ArmedAgain, "h2") => Part::Source,
            (Self::ArmedAgain, "h3") => Part::Destination,
            (Self::ArmedAgain, _) => Part::None,
            (_, "h1") => Part::Source,
            (_, "h2") => Part::Destination,
            (_, _) => Part::None,
        }
    }

    /// The handover's rules 2, 3, 4 and 6.
    fn allows(self, part: Part, write: Write) -> bool {
        let undecided = matches!(self, Self::Undecided | Self::ArmedAgain);
        let committed = matches!(self, Self::Committed | Self::StrictlyCommitted | Self::Started);
        match (part, write) {
            (Part::Destination, Write::Start) => self == Self::StrictlyCommitted,
            (Part::Source, Write::Abort) | (Part::Destination, Write::Commit) => undecided,
            (Part::Destination, Write::Revert) | (Part::Source | Part::Destination, Write::Advance) => {
                undecided || committed
            }
            (Part::Source | Part::Destination | Part::None, _) => false,
        }
    }

    /// Makes a record that stands so, as the controller does.
    async fn make(self, controller: &Client, name: &str) -> Value {
        create(controller, RESOURCE, &record(name)).await.accepted();
        let decided = |decision: &str| vec![("/spec/decision", json!(decision))];
        let arming = vec![("/spec/migration", armed("m1", "h1", "h2"))];
        let advance = vec![("/spec/holder", json!("h2")), ("/spec/epoch", json!(2))];
        let mut strict = armed("m1", "h1", "h2");
        set(&mut strict, "/strict", json!(true));
        let strictly = vec![("/spec/migration", strict)];
        let steps = match self {
            Self::Unarmed => vec![],
            Self::Undecided => vec![arming],
            Self::Committed => vec![arming, decided("Committed")],
            Self::StrictlyCommitted => vec![strictly, decided("Committed")],
            Self::Started => vec![
                strictly,
                decided("Committed"),
                vec![("/spec/started", json!(true))],
            ],
            Self::Advanced => vec![arming, decided("Committed"), advance],
            Self::Aborted => vec![arming, decided("Aborted")],
            Self::Reverted => vec![arming, decided("Reverted")],
            Self::ArmedAgain => {
                let again = vec![
                    ("/spec/migration", armed("m2", "h2", "h3")),
                    ("/spec/decision", json!("None")),
                ];
                vec![arming, decided("Committed"), advance, again]
            }
        };
        for step in steps {
            turn(controller, name, &step).await.accepted();
        }
        read(controller, name).await
    }
}

async fn read(client: &Client, name: &str) -> Value {
    let at = format!("{}/{name}", path(RESOURCE));
    send(client, "GET", &at, None).await.accepted()
}

async fn remove(controller: &Client, name: &str) {
    let at = format!("{}/{name}", path(RESOURCE));
    send(controller, "DELETE", &at, None).await.accepted();
    turn(controller, name, &[("/metadata/finalizers", json!([]))])
        .await
        .accepted();
}

/// Asks whether the record may be replaced; nothing is written.
async fn attempt(client: &Client, next: &Value) -> Answer {
    let name = next["metadata"]["name"].as_str().unwrap();
    let at = format!("{}/{name}?dryRun=All&fieldValidation=Strict", path(RESOURCE));
    send(client, "PUT", &at, Some(next)).await
}

async fn write(client: &Client, write: Write, name: &str, host: &str) -> Answer {
    let next = write.of(&read(client, name).await, host);
    let at = format!("{}/{name}", path(RESOURCE));
    send(client, "PUT", &at, Some(&next)).await
}

/// Every write in every state by every part: what the rules give to a host it may write, and nothing else.
pub async fn r3_a_record_is_changed_by_its_parties_and_by_the_rules(lab: &mut Lab) -> anyhow::Result<()> {
    policies_in_force(lab).await?;
    let controller = lab.controller_client().await?;
    let unbound = unbound(lab).await?;
    let mut hosts = Vec::new();
    for name in ["h1", "h2", "h3", "h4"] {
        hosts.push((name, agent(lab, name).await?));
    }
    let (mut accepted, mut refused) = (0, 0);
    for stands in STATES {
        let name = format!("stands-{}", format!("{stands:?}").to_lowercase());
        let found = stands.make(&controller, &name).await;
        for (host, client) in &hosts {
            let part = stands.part(host);
            for what in WRITES {
                let next = what.of(&found, host);
                let answer = attempt(client, &next).await;
                let case = format!("{host} ({part:?}), {stands:?}: {what:?}");
                if stands.allows(part, what) {
                    assert_eq!(answer.code, 200, "{case}: {}", answer.message());
                    accepted += 1;
                    continue;
                }
                refused += 1;
                assert!(answer.code >= 400, "{case} was accepted");
                // Where the record's own rules have nothing against it, it is the policy that refuses.
                if attempt(&controller, &next).await.code == 200 {
                    assert_eq!(answer.code, 403, "{case}: {}", answer.message());
                    let words = match part {
                        Part::Source | Part::Destination => "and nothing else",
                        Part::None => "has no part",
                    };
                    answer.refused(&case, words);
                }
            }
        }
        for what in WRITES {
            let next = what.of(&found, "h2");
            let answer = attempt(&unbound, &next).await;
            assert!(answer.code >= 400, "no node, {stands:?}: {what:?} was accepted");
            if attempt(&controller, &next).await.code == 200 {
                answer.refused(&format!("no node, {stands:?}: {what:?}"), NO_NODE);
            }
        }
        remove(&controller, &name).await;
    }
    // In both undecided states abort, advance; commit, revert, advance. In the three committed ones advance; revert, advance;
    // and start, where that is strict and was not written yet.
    assert_eq!((accepted, refused), (20, 9 * 4 * 12 - 20));
    Ok(())
}

/// With a decision that is its own to make, an agent cannot change anything else of the record.
pub async fn r3_a_decision_carries_no_other_change(lab: &mut Lab) -> anyhow::Result<()> {
    policies_in_force(lab).await?;
    let controller = lab.controller_client().await?;
    let found = Stands::Undecided.make(&controller, "decided").await;
    let nothing_else = "an agent changes a GuestRecord's decision, holder and epoch";
    for (host, what) in [
        ("h1", Write::Abort),
        ("h1", Write::Advance),
        ("h2", Write::Commit),
        ("h2", Write::Revert),
        ("h2", Write::Advance),
    ] {
        let client = agent(lab, host).await?;
        let good = what.of(&found, host);
        attempt(&client, &good).await.accepted();
        let other = if host == "h1" { "h2" } else { "h1" };
        let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": host, "uid": "some"}]);
        for (pointer, value, words) in [
            ("/metadata/finalizers", json!([]), nothing_else),
            ("/metadata/finalizers", Value::Null, nothing_else),
            (
                "/metadata/finalizers",
                json!(["godwit.dev/guest", "godwit.dev/more"]),
                nothing_else,
            ),
            ("/metadata/labels", json!({"host": host}), nothing_else),
            ("/metadata/annotations", json!({"host": host}), nothing_else),
            ("/metadata/ownerReferences", owner, nothing_else),
            ("/spec/started", json!(true), "a start is recorded"),
            ("/spec/guest/name", json!("web2"), "guest never changes"),
            ("/spec/migration/strict", json!(true), "immutable"),
            ("/spec/migration/destination", json!("h9"), "immutable"),
            ("/spec/writer", json!(other), "writes under its own name"),
            (
                "/spec/writer",
                json!(format!("{host}0/some")),
                "writes under its own name",
            ),
            ("/spec/writer", json!("controller"), "writes under its own name"),
        ] {
            let mut bad = good.clone();
            let case = format!("{host}: {what:?} with {pointer} = {value}");
            set(&mut bad, pointer, value);
            let answer = attempt(&client, &bad).await;
            answer.refused(&case, words);
        }
        let mut named = good.clone();
        set(&mut named, "/spec/writer", json!(format!("{host}/one-of-many")));
        attempt(&client, &named).await.accepted();
    }
    remove(&controller, "decided").await;
    Ok(())
}

/// The writes that a handover needs, made for good, one after the other.
pub async fn each_party_makes_the_writes_that_are_its_own(lab: &mut Lab) -> anyhow::Result<()> {
    policies_in_force(lab).await?;
    let controller = lab.controller_client().await?;
    let (source, destination) = (agent(lab, "h1").await?, agent(lab, "h2").await?);
    #[rustfmt::skip]
    let handovers: &[&[(&Client, &str, Write)]] = &[
        &[(&destination, "h2", Write::Advance)],
        &[(&source, "h1", Write::Advance)],
        &[(&destination, "h2", Write::Commit), (&destination, "h2", Write::Advance)],
        &[(&destination, "h2", Write::Commit), (&source, "h1", Write::Advance)],
        &[(&destination, "h2", Write::Commit), (&destination, "h2", Write::Revert)],
        &[(&destination, "h2", Write::Revert)],
        &[(&source, "h1", Write::Abort)],
    ];
    for (number, handover) in handovers.iter().enumerate() {
        let name = format!("handover-{number}");
        let before = Stands::Undecided.make(&controller, &name).await;
        for (client, host, what) in *handover {
            let written = write(client, *what, &name, host).await.accepted();
            assert_eq!(written["spec"]["writer"], *host);
        }
        // The other one may be late: it loses, by the version that it read or by the decision that it finds.
        let late = Write::Abort.of(&before, "h1");
        let at = format!("{}/{name}", path(RESOURCE));
        assert_eq!(send(&source, "PUT", &at, Some(&late)).await.code, 409, "{name}");
        let after = write(&source, Write::Abort, &name, "h1").await;
        assert!(after.code >= 400, "{name}: {:?}", after.body);
        let end = read(&controller, &name).await;
        let advanced = handover.iter().any(|(_, _, what)| *what == Write::Advance);
        let holder = if advanced { "h2" } else { "h1" };
        assert_eq!(end["spec"]["holder"], holder, "{name}");
        assert_eq!(end["spec"]["epoch"], if advanced { 2 } else { 1 }, "{name}");
        remove(&controller, &name).await;
    }
    Ok(())
}

/// Who may change records neither by the roles nor by the policy: people of a namespace, however mighty there.
pub async fn r3_people_of_a_namespace_change_no_record(lab: &mut Lab) -> anyhow::Result<()> {
    policies_in_force(lab).await?;
    let administrator = lab.client();
    let controller = lab.controller_client().await?;
    let found = Stands::Undecided.make(&controller, "peoples").await;
    for role in ["edit", "admin"] {
        let user = format!("in-two-namespaces-{role}");
        for namespace in ["default", godwit_lab::chart::NAMESPACE] {
            let binding = json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "metadata": {"name": user},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
            });
            let bindings = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings");
            send(&administrator, "POST", &bindings, Some(&binding))
                .await
                .accepted();
        }
        let client =
            godwit_lab::control_plane::client(lab.control_plane.administrator(), Some(&user)).await?;
        eventually("the role is in force", async || {
            let secrets = "/api/v1/namespaces/default/configmaps";
            (send(&client, "GET", secrets, None).await.code == 200).then_some(())
        })
        .await;
        let at = format!("{}/peoples", path(RESOURCE));
        for (method, at, body) in [
            ("GET", &at, None),
            ("GET", &path(RESOURCE), None),
            ("POST", &path(RESOURCE), Some(record("another"))),
            ("PUT", &at, Some(Write::Abort.of(&found, "h1"))),
            ("DELETE", &at, None),
            ("DELETE", &path(RESOURCE), None),
        ] {
            let answer = send(&client, method, at, body.as_ref()).await;
            assert_eq!(answer.code, 403, "{role}: {method} {at}: {}", answer.message());
        }
    }
    remove(&controller, "peoples").await;
    Ok(())
}

/// A refusal is told to the auditor too, with the policy's name and its words.
pub async fn r3_refusals_are_in_the_audit_log(lab: &mut Lab) -> anyhow::Result<()> {
    policies_in_force(lab).await?;
    let controller = lab.controller_client().await?;
    Stands::Undecided.make(&controller, "audited").await;
    let stranger = agent(lab, "h3").await?;
    write(&stranger, Write::Abort, "audited", "h3")
        .await
        .refused("a stranger aborts", "has no part");
    let log = lab.control_plane.audit().to_owned();
    let event = eventually("the refusal is in the audit log", async || {
        let text = std::fs::read_to_string(&log).ok()?;
        let mut events = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.find(|event| event["objectRef"]["name"] == "audited" && event["responseStatus"]["code"] == 403)
    })
    .await;
    let found = event["annotations"]["validation.policy.admission.k8s.io/validation_failure"]
        .as_str()
        .unwrap_or_default();
    assert!(
        found.contains("guest-records") && found.contains("has no part"),
        "{event}"
    );
    let extra = &event["user"]["extra"]["authentication.kubernetes.io/node-name"];
    assert_eq!(extra[0], "h3", "{event}");
    remove(&controller, "audited").await;
    Ok(())
}
