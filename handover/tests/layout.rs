//! The direction in which the crates depend on each other. What decides who may run the guest must not come to
//! know a network, a hypervisor or an API server; and an agent and the controller meet only in the protocol.

#![allow(
    clippy::panic,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Every crate of the workspace, and which of the others it may depend on (for its tests and its build too).
const ALLOWED: &[(&str, &[&str])] = &[
    ("godwit-crds", &[]),
    ("godwit-handover", &[]),
    // What the agent port and a relay have in common: no runtime, no gRPC.
    ("godwit-tls", &[]),
    ("godwit-protocol", &["godwit-handover", "godwit-tls"]),
    // Where certificates come from, for whoever speaks the protocol.
    ("godwit-identity", &["godwit-protocol"]),
    (
        "godwit-agent",
        &[
            "godwit-crds",
            "godwit-handover",
            "godwit-identity",
            "godwit-protocol",
            "godwit-relay",
        ],
    ),
    // A process of its own, which outlives the agent: it knows nothing of guests and rules.
    ("godwit-relay", &["godwit-tls"]),
    (
        "godwit-controller",
        &[
            "godwit-crds",
            "godwit-handover",
            "godwit-identity",
            "godwit-protocol",
        ],
    ),
    ("godwit-cli", &["godwit-crds"]),
    ("godwit-guest", &[]),
    // Made-up bytes for whatever reads another's.
    (
        "godwit-fuzz",
        &[
            "godwit-agent",
            "godwit-handover",
            "godwit-protocol",
            "godwit-relay",
            "godwit-tls",
        ],
    ),
    // The real agents and controller in one process: the one place where both meet outside the protocol.
    (
        "godwit-simulation",
        &[
            "godwit-agent",
            "godwit-controller",
            "godwit-crds",
            "godwit-handover",
            "godwit-protocol",
        ],
    ),
    // The lab meets agent, controller and CLI as programs, as a user does.
    // The bench drives a relay as an agent does, and tests of identities call agents as a stranger would.
    (
        "godwit-lab",
        &[
            "godwit-crds",
            "godwit-guest",
            "godwit-handover",
            "godwit-protocol",
            "godwit-relay",
        ],
    ),
];

/// What `cargo metadata` says, judged: one line for each crate that is not in the table and each dependency that
/// is not allowed.
fn wrong(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let names: Vec<&str> = packages.iter().map(|p| text(p, "name")).collect();
    let mut wrong = vec![];
    for package in packages {
        let name = text(package, "name");
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == name) else {
            wrong.push(format!("{name} is not in the table of this test"));
            continue;
        };
        let dependencies = package["dependencies"].as_array().expect("a list");
        for dependency in dependencies {
            let on = text(dependency, "name");
            // A path leads to a crate of ours even if it lies outside the workspace.
            let ours = names.contains(&on) || !dependency["path"].is_null();
            if ours && !allowed.contains(&on) {
                wrong.push(format!("{name} depends on {on}"));
            }
        }
    }
    wrong
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().expect("a text")
}

#[test]
fn crates_depend_on_each_other_in_one_direction() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .arg("--manifest-path")
        .arg(workspace)
        .output()
        .expect("cargo can be run");
    assert!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let found = metadata["packages"].as_array().map(Vec::len);
    assert_eq!(found, Some(ALLOWED.len()), "the table names every crate once");
    assert_eq!(wrong(&metadata), Vec::<String>::new());
}

#[test]
fn a_wrong_direction_is_seen() {
    let metadata = serde_json::json!({"packages": [
        {"name": "godwit-agent", "dependencies": [
            {"name": "godwit-controller", "path": "/x/controller"},
            {"name": "godwit-protocol", "path": "/x/protocol"},
            {"name": "serde", "path": null},
        ]},
        {"name": "godwit-controller", "dependencies": []},
        {"name": "godwit-handover", "dependencies": [{"name": "godwit-side-door", "path": "/elsewhere"}]},
        {"name": "godwit-new", "dependencies": []},
    ]});
    assert_eq!(
        wrong(&metadata),
        [
            "godwit-agent depends on godwit-controller",
            "godwit-handover depends on godwit-side-door",
            "godwit-new is not in the table of this test",
        ]
    );
}
