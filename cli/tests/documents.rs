//! The documents and the program say the same.
#![allow(clippy::unwrap_used, reason = "a test ends at its first surprise")]

use std::process::Command;

use godwit_crds::{
    GuestRecord, VirtualMachine, VirtualMachineHost, VirtualMachineMigration, VirtualMachineResolution,
};
use kube::CustomResourceExt as _;
use serde_json::Value;

const API: &str = include_str!("../../docs/api.md");
const PAGE: &str = include_str!("../../docs/cli.md");

/// The part of the API's page below the heading of `kind`.
fn section(kind: &str) -> String {
    API.lines()
        .skip_while(|line| *line != format!("## {kind}"))
        .skip(1)
        .take_while(|line| !line.starts_with("## "))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// The names of all fields of a schema, at any depth.
fn fields(schema: &Value, found: &mut Vec<String>) {
    for (name, inner) in schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        found.push(name.clone());
        fields(inner, found);
    }
    if let Some(items) = schema.get("items") {
        fields(items, found);
    }
}

#[test]
fn the_api_page_names_every_field_that_is_served() {
    for crd in [
        VirtualMachine::crd(),
        VirtualMachineHost::crd(),
        VirtualMachineMigration::crd(),
        GuestRecord::crd(),
        VirtualMachineResolution::crd(),
    ] {
        let kind = crd.spec.names.kind.clone();
        let text = section(&kind);
        assert!(!text.is_empty(), "{kind} has no section");
        let crd = serde_json::to_value(crd).unwrap();
        let mut found = vec![];
        let schema = crd
            .pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec")
            .unwrap();
        fields(schema, &mut found);
        assert!(!found.is_empty());
        for field in found {
            let named = text.split('`').any(|word| {
                word.split(|c: char| !c.is_ascii_alphanumeric())
                    .any(|part| part == field)
            });
            assert!(named, "{kind}: {field} is served and not documented");
        }
    }
}

#[test]
fn the_page_names_every_command_and_option() {
    for command in [
        "migrate",
        "status",
        "cancel",
        "resolve",
        "guests",
        "hosts",
        "completion",
    ] {
        let help = Command::new(env!("CARGO_BIN_EXE_kubectl-godwit"))
            .args([command, "--help"])
            .output()
            .unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        assert!(PAGE.contains(&format!("`kubectl godwit {command}")), "{command}");
        let options = help.split_whitespace().filter_map(|word| {
            let option = word.trim_end_matches([',', ']', ')', '.', ':', ';']);
            (option.starts_with("--") && option != "--help").then_some(option)
        });
        for option in options {
            assert!(PAGE.contains(option), "{command}: {option}");
        }
    }
}
