//! The chart and the resource definitions as a whole.

use std::path::Path;
use std::process::Command;

use godwit_lab::{Lab, cache, chart};
use serde_json::Value;

use crate::server::{eventually, send};

const RESOURCES: [&str; 5] = [
    "virtualmachines",
    "virtualmachinehosts",
    "virtualmachinemigrations",
    "virtualmachineresolutions",
    "guestrecords",
];

pub async fn helm_warns_of_nothing(lab: &mut Lab) -> anyhow::Result<()> {
    let client = lab.client();
    let said = std::fs::read_to_string(lab.records().join("logs/helm.log"))?;
    assert!(!said.to_lowercase().contains("warning"), "{said}");
    assert!(said.contains("STATUS: deployed"), "{said}");
    for resource in RESOURCES {
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{resource}.godwit.dev");
        let definition = eventually("the definition is established", async || {
            let found = send(&client, "GET", &path, None).await.accepted();
            condition(&found, "Established").then_some(found)
        })
        .await;
        assert!(!condition(&definition, "NonStructuralSchema"), "{resource}");
        assert!(condition(&definition, "NamesAccepted"), "{resource}");
    }
    // The controller manager checks the types in the policies' expressions, and says what it finds.
    for policy in [
        "guest-records",
        "resolutions",
        "agents",
        "hosts",
        "ticket-keys",
        "pod-certificates",
    ] {
        let name = format!("{}-{}-{policy}", chart::NAMESPACE, chart::RELEASE);
        let path = format!("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/{name}");
        let found = eventually("the policy is checked", async || {
            let found = send(&client, "GET", &path, None).await.accepted();
            found.pointer("/status/typeChecking").is_some().then_some(found)
        })
        .await;
        let warnings = found.pointer("/status/typeChecking/expressionWarnings");
        assert!(warnings.is_none(), "{}", found["status"]);
        // What cannot be judged is refused, and said to the auditor.
        assert_eq!(found["spec"]["failurePolicy"], "Fail", "{name}");
        let bindings = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";
        let binding = send(&client, "GET", &format!("{bindings}/{name}"), None)
            .await
            .accepted();
        assert_eq!(binding["spec"]["policyName"], name.as_str());
        assert_eq!(
            binding["spec"]["validationActions"],
            serde_json::json!(["Deny", "Audit"])
        );
    }
    Ok(())
}

fn condition(object: &Value, name: &str) -> bool {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    conditions
        .into_iter()
        .flatten()
        .any(|found| found["type"] == name && found["status"] == "True")
}

pub async fn every_field_is_explained(lab: &mut Lab) -> anyhow::Result<()> {
    for (name, expected) in [
        ("vmmig", "One attempt to move one running guest"),
        ("vmmig.spec", "controlFlow"),
        ("vmmig.spec.controlFlow", "Who drives the phases"),
        (
            "vmmig.spec.tuning.maxDowntime",
            "longest stop that the guest may suffer",
        ),
        (
            "vmmig.status.downtime.stopToResume",
            "From STOP at the source to RESUME at the destination",
        ),
        ("vm.spec.cpu.model", "named CPU model"),
        ("vmhost.status.hypervisors", "accelerator"),
        ("guestrecord.spec.epoch", "Grows by one at each handover"),
    ] {
        // kubectl reads the server's OpenAPI, which follows the definitions after a moment.
        let said = eventually(name, async || {
            let mut command = lab.kubectl().ok()?;
            command.args(["explain", name]);
            chart::run(command).await.ok()
        })
        .await;
        // kubectl wraps lines.
        let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(expected), "kubectl explain {name}:\n{said}");
    }
    let client = lab.client();
    for resource in RESOURCES {
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{resource}.godwit.dev");
        let definition = send(&client, "GET", &path, None).await.accepted();
        let schema = definition
            .pointer("/spec/versions/0/schema/openAPIV3Schema")
            .expect("a schema");
        let mut silent = Vec::new();
        for part in ["spec", "status"] {
            if let Some(part_schema) = schema.pointer(&format!("/properties/{part}")) {
                without_words(part_schema, &format!("{resource}.{part}"), &mut silent);
            }
        }
        assert!(silent.is_empty(), "fields without a description: {silent:?}");
    }
    Ok(())
}

/// Collects the fields that say nothing about themselves.
fn without_words(schema: &Value, path: &str, silent: &mut Vec<String>) {
    let fields = schema["properties"]
        .as_object()
        .or_else(|| schema["items"]["properties"].as_object());
    for (name, field) in fields.into_iter().flatten() {
        let path = format!("{path}.{name}");
        if field["description"].as_str().is_none_or(str::is_empty) {
            silent.push(path.clone());
        }
        without_words(field, &path, silent);
    }
}

pub async fn listings_have_columns(lab: &mut Lab) -> anyhow::Result<()> {
    let client = lab.client();
    let machine = crate::machine::machine("listed");
    crate::server::create(&client, "virtualmachines", &machine)
        .await
        .accepted();
    let migration = crate::migration::migration("listed");
    crate::server::create(&client, "virtualmachinemigrations", &migration)
        .await
        .accepted();
    for (arguments, columns) in [
        ("get vm listed", "NAME STATE HOST CPUS MEMORY SINCE"),
        ("get vm listed -o wide", "NAME STATE HOST CPUS MEMORY EPOCH SINCE"),
        (
            "get vmmig listed",
            "NAME GUEST PHASE SOURCE DESTINATION PROGRESS DOWNTIME AGE",
        ),
        (
            "get vmmig listed -o wide",
            "NAME GUEST PHASE SOURCE DESTINATION PROGRESS DOWNTIME AGE TRANSFERRED SPEED REASON FLOW",
        ),
        (
            "get vmmig --field-selector spec.virtualMachine=web1",
            "NAME GUEST PHASE",
        ),
        ("get godwit", "NAME"),
    ] {
        let mut command = lab.kubectl()?;
        command.args(arguments.split(' '));
        let said = chart::run(command).await?;
        let head = said.lines().next().unwrap_or_default();
        let head = head.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(head.starts_with(columns), "kubectl {arguments}:\n{said}");
    }
    let mut command = lab.kubectl()?;
    command.args([
        "get",
        "vmmig",
        "--field-selector",
        "spec.virtualMachine=another",
        "-o",
        "name",
    ]);
    assert_eq!(chart::run(command).await?.trim(), "");
    Ok(())
}

fn helm_on_chart(lab: &Lab, word: &str, values: Option<&Path>) -> anyhow::Result<Command> {
    let mut command = chart::helm(&lab.control_plane)?;
    let chart = cache::workspace().join("charts/godwit");
    match word {
        "template" => command
            .args(["template", "godwit", "--namespace", "restricted"])
            .arg(chart),
        _ => command.args([word, "--strict"]).arg(chart),
    };
    if let Some(values) = values {
        command.arg("--values").arg(values);
    }
    Ok(command)
}

pub async fn images_must_be_named(lab: &mut Lab) -> anyhow::Result<()> {
    let error = chart::run(helm_on_chart(lab, "template", None)?)
        .await
        .expect_err("images were not named");
    let said = error.to_string();
    for value in [
        "/controller/image/repository",
        "/agent/image/repository",
        "/controller/tls/secretName",
    ] {
        assert!(said.contains(value), "{said}");
    }
    let values = cache::workspace().join("charts/godwit/ci");
    for file in ["deployed-values.yaml", "rights-only-values.yaml"] {
        chart::run(helm_on_chart(lab, "lint", Some(&values.join(file)))?).await?;
    }
    Ok(())
}

/// What is rendered is accepted by the API server; the controller's and the signer's pods meet the `restricted` profile,
/// and one that asks for more than it allows does not pass unseen.
pub async fn r16_the_controllers_pod_meets_the_restricted_profile(lab: &mut Lab) -> anyhow::Result<()> {
    let values = cache::workspace().join("charts/godwit/ci");
    let rendered = chart::run(helm_on_chart(
        lab,
        "template",
        Some(&values.join("deployed-values.yaml")),
    )?)
    .await?;
    assert!(rendered.contains("- --peer-silence=20"), "{rendered}");
    let manifest = lab.records().join("rendered.yaml");
    std::fs::write(&manifest, rendered)?;
    let mut command = lab.kubectl()?;
    command.args(["create", "namespace", "restricted"]);
    chart::run(command).await?;
    let mut command = lab.kubectl()?;
    command.args([
        "label",
        "namespace",
        "restricted",
        "pod-security.kubernetes.io/warn=restricted",
    ]);
    chart::run(command).await?;
    let mut command = lab.kubectl()?;
    command
        .args(["apply", "--dry-run=server", "--namespace", "restricted", "-f"])
        .arg(&manifest);
    let said = chart::run(command).await?;
    assert!(
        said.contains("deployment.apps/godwit-controller created"),
        "{said}"
    );
    let warnings: Vec<&str> = said.lines().filter(|line| line.contains("Warning")).collect();
    // The agent cannot meet it: it is the one part with root.
    assert!(
        warnings
            .iter()
            .all(|line| line.contains("hostPID") || line.contains("hostNetwork")),
        "{said}"
    );
    assert_eq!(warnings.len(), 1, "{said}");
    // The judge judges: a pod that may run as root is named.
    let worse = std::fs::read_to_string(&manifest)?.replace("runAsNonRoot: true", "runAsNonRoot: false");
    std::fs::write(&manifest, worse)?;
    let mut command = lab.kubectl()?;
    command
        .args(["apply", "--dry-run=server", "--namespace", "restricted", "-f"])
        .arg(&manifest);
    let said = chart::run(command).await?;
    assert!(said.contains("runAsNonRoot != true"), "{said}");
    Ok(())
}
