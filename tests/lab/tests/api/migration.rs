//! The rules of VirtualMachineMigration.

use godwit_lab::{Lab, cache, chart};
use serde_json::{Value, json};

use crate::server::{change, create, eventually, path, send, set, try_create};

const RESOURCE: &str = "virtualmachinemigrations";

pub fn migration(name: &str) -> Value {
    json!({
        "apiVersion": "godwit.dev/v1alpha1",
        "kind": "VirtualMachineMigration",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "virtualMachine": "web1",
            "destination": {"host": "h2"},
            "controlFlow": "ManagedDirect",
            "security": {"require": "None"},
        },
    })
}

pub async fn a_migration_is_checked(lab: &mut Lab) -> anyhow::Result<()> {
    let client = lab.client();
    let good = migration("checked");
    let made = try_create(&client, RESOURCE, &good).await.accepted();
    assert_eq!(made["spec"]["transport"], "Native");
    assert_eq!(made["spec"]["tuning"]["maxDowntime"], "300ms");
    assert_eq!(made["spec"]["tuning"]["bandwidth"], "0");
    assert_eq!(made["spec"]["cancel"], false);
    let mut silent = good.clone();
    set(&mut silent, "/spec/security", Value::Null);
    let made = try_create(&client, RESOURCE, &silent).await.accepted();
    assert_eq!(made["spec"]["security"]["require"], "Encrypted");
    for budget in ["10ms", "300ms", "2s", "60s", "60000ms"] {
        let mut object = good.clone();
        set(&mut object, "/spec/tuning/maxDowntime", json!(budget));
        try_create(&client, RESOURCE, &object).await.accepted();
    }
    #[rustfmt::skip]
    let table = [
        ("/spec/virtualMachine", Value::Null, "spec.virtualMachine: Required"),
        ("/spec/virtualMachine", json!(""), "spec.virtualMachine"),
        ("/spec/destination", Value::Null, "spec.destination: Required"),
        ("/spec/destination", json!({}), "spec.destination.host: Required"),
        ("/spec/destination/host", json!("h2/../h1"), "spec.destination.host"),
        ("/spec/controlFlow", json!("Whatever"), "Unsupported value"),
        ("/spec/controlFlow", json!("UnmanagedDirect"), "Unsupported value"),
        ("/spec/security/require", json!("Whatever"), "Unsupported value"),
        ("/spec/transport", json!("Whatever"), "Unsupported value"),
        ("/spec/tuning/maxDowntime", json!("9ms"), "between 10ms and 60s"),
        ("/spec/tuning/maxDowntime", json!("61s"), "between 10ms and 60s"),
        ("/spec/tuning/maxDowntime", json!("0ms"), "maxDowntime"),
        ("/spec/tuning/maxDowntime", json!("1m"), "maxDowntime"),
        ("/spec/tuning/maxDowntime", json!(300), "must be of type string"),
        ("/spec/tuning/bandwidth", json!("0Mi"), "spec.tuning.bandwidth"),
        ("/spec/tuning/bandwidth", json!("100M"), "spec.tuning.bandwidth"),
        ("/spec/tuning/bandwidth", json!(100), "must be of type string"),
        ("/spec/cancel", json!("yes"), "must be of type boolean"),
    ];
    for (pointer, value, words) in table {
        let mut bad = good.clone();
        let what = format!("{pointer} = {value}");
        set(&mut bad, pointer, value);
        try_create(&client, RESOURCE, &bad).await.refused(&what, words);
    }
    Ok(())
}

/// What must be said is refused without it; what need not be said has the default that the schema tells.
pub async fn what_is_left_out_is_refused_or_has_its_default(lab: &mut Lab) -> anyhow::Result<()> {
    let client = lab.client();
    let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{RESOURCE}.godwit.dev");
    let definition = send(&client, "GET", &path, None).await.accepted();
    let spec = definition
        .pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec")
        .expect("a schema");
    for (parent, field) in [
        ("", "virtualMachine"),
        ("", "destination"),
        ("", "controlFlow"),
        ("", "transport"),
        ("", "security"),
        ("/security", "require"),
        ("", "cancel"),
    ] {
        let schema = spec
            .pointer(&parent.replace('/', "/properties/"))
            .expect("a schema");
        let required = schema["required"]
            .as_array()
            .is_some_and(|names| names.iter().any(|name| name == field));
        let pointer = format!("/spec{parent}/{field}");
        let mut object = migration("short");
        set(&mut object, &pointer, Value::Null);
        let answer = try_create(&client, RESOURCE, &object).await;
        if required {
            answer.refused(&pointer, "Required");
        } else {
            let default = &schema["properties"][field]["default"];
            assert!(
                !default.is_null(),
                "{pointer} is neither required nor has a default"
            );
            let made = answer.accepted();
            let found = made.pointer(&pointer).unwrap_or(&Value::Null);
            // A default of {} is filled with the defaults of its fields.
            assert!(
                found == default || *default == json!({}),
                "{pointer}: {found}, not {default}"
            );
            assert!(!found.is_null(), "{pointer}");
        }
    }
    Ok(())
}

pub async fn an_unserved_field_is_refused(lab: &mut Lab) -> anyhow::Result<()> {
    let client = lab.client();
    for (field, value) in [
        ("mode", json!("Live")),
        ("startPaused", json!(true)),
        ("storage", json!({"copy": "None"})),
    ] {
        let mut object = migration("unserved");
        set(&mut object, &format!("/spec/{field}"), value);
        create(&client, RESOURCE, &object)
            .await
            .refused(field, "unknown field");
        // A client that does not ask for strictness is warned, and the field is not kept.
        let answer = send(
            &client,
            "POST",
            &format!("{}?dryRun=All", path(RESOURCE)),
            Some(&object),
        )
        .await;
        assert_eq!(answer.code, 201, "{}", answer.message());
        assert!(
            answer
                .warnings
                .iter()
                .any(|words| words.contains("unknown field")),
            "{:?}",
            answer.warnings
        );
        assert!(answer.body["spec"].get(field).is_none(), "{field} was kept");
    }
    Ok(())
}

pub async fn a_migration_is_fixed_once_written(lab: &mut Lab) -> anyhow::Result<()> {
    let client = lab.client();
    create(&client, RESOURCE, &migration("fixed")).await.accepted();
    let table = [
        (
            "/spec/virtualMachine",
            json!("web2"),
            "virtualMachine is immutable",
        ),
        ("/spec/destination/host", json!("h3"), "destination is immutable"),
        (
            "/spec/tuning/maxDowntime",
            json!("2s"),
            "tuning.maxDowntime is immutable",
        ),
    ];
    for (pointer, value, words) in table {
        change(&client, RESOURCE, "fixed", |object| set(object, pointer, value))
            .await
            .refused(pointer, words);
    }
    change(&client, RESOURCE, "fixed", |object| {
        set(object, "/spec/tuning/bandwidth", json!("64Mi"))
    })
    .await
    .accepted();
    change(&client, RESOURCE, "fixed", |object| {
        set(object, "/spec/cancel", json!(true))
    })
    .await
    .accepted();
    for taken_back in [json!(false), Value::Null] {
        change(&client, RESOURCE, "fixed", |object| {
            set(object, "/spec/cancel", taken_back)
        })
        .await
        .refused("cancel taken back", "cancel cannot be taken back");
    }
    for (pointer, value) in [
        ("/spec/controlFlow", json!("PeerToPeer")),
        ("/spec/transport", json!("Tunnelled")),
        ("/spec/security/require", json!("Encrypted")),
    ] {
        let answer = change(&client, RESOURCE, "fixed", |object| set(object, pointer, value)).await;
        // By the field's own rule, where the value is served; the schema refuses what is not.
        let words = match answer.message().contains("Unsupported value") {
            true => "Unsupported value",
            false => "is immutable",
        };
        answer.refused(pointer, words);
    }
    Ok(())
}

/// The cluster's own word against plain text, on demand: the chart's policy, as Helm renders it.
pub async fn r5_plain_text_is_refused_where_the_cluster_forbids_it(lab: &mut Lab) -> anyhow::Result<()> {
    let values = cache::workspace().join("charts/godwit/ci/rights-only-values.yaml");
    let mut command = chart::helm(&lab.control_plane)?;
    command
        .args([
            "template",
            "godwit",
            "--set",
            "migrations.refusePlainText=true",
            "--show-only",
        ])
        .arg("templates/plain-text-policy.yaml")
        .arg("--values")
        .args([values, cache::workspace().join("charts/godwit")]);
    let manifest = lab.records().join("plain-text-policy.yaml");
    std::fs::write(&manifest, chart::run(command).await?)?;
    let kubectl = async |verb: &str| {
        let mut command = lab.kubectl()?;
        command.args([verb, "-f"]).arg(&manifest);
        chart::run(command).await
    };
    let client = lab.client();
    let plain = migration("plain");
    try_create(&client, RESOURCE, &plain).await.accepted();
    kubectl("apply").await?;
    // The server takes a new policy up after a moment.
    let refused = eventually("plain text is refused", async || {
        let answer = try_create(&client, RESOURCE, &plain).await;
        (answer.code >= 400).then_some(answer)
    })
    .await;
    refused.refused("plain text", "this cluster refuses migrations in plain text");
    let mut encrypted = plain.clone();
    set(&mut encrypted, "/spec/security", Value::Null);
    try_create(&client, RESOURCE, &encrypted).await.accepted();
    kubectl("delete").await?;
    eventually("plain text is taken again", async || {
        (try_create(&client, RESOURCE, &plain).await.code < 400).then_some(())
    })
    .await;
    Ok(())
}
