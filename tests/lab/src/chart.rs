//! The Helm chart, installed by Helm itself: its custom resources, rights and policies are what every run tests.

use std::process::Command;

use anyhow::{Context as _, bail};

use crate::cache;
use crate::control_plane::ControlPlane;

/// The namespace of godwit's own accounts.
pub const NAMESPACE: &str = "godwit-system";
/// The release's name; the names of the accounts follow from it.
pub const RELEASE: &str = "godwit";
/// The controller's service account.
pub const CONTROLLER_ACCOUNT: &str = "godwit-controller";
/// The agents' service account.
pub const AGENT_ACCOUNT: &str = "godwit-agent";

/// Installs the chart without its Deployment and DaemonSet: here, these parts are processes of the lab. Gives back
/// what Helm said.
///
/// # Errors
/// When Helm is missing or refuses; the message holds its words.
pub async fn install(control_plane: &ControlPlane) -> anyhow::Result<String> {
    let mut command = helm(control_plane)?;
    command
        .args(["install", RELEASE])
        .arg(cache::workspace().join("charts/godwit"))
        .args(["--namespace", NAMESPACE, "--create-namespace"])
        .args(["--set", "controller.deploy=false,agent.deploy=false"]);
    run(command).await
}

/// `helm` as the administrator, with directories of its own.
///
/// # Errors
/// When Helm is missing.
pub fn helm(control_plane: &ControlPlane) -> anyhow::Result<Command> {
    let mut command = Command::new(cache::tool("helm")?);
    let own = control_plane.authority().with_file_name("helm");
    command
        .env("KUBECONFIG", control_plane.administrator())
        .env("HELM_CACHE_HOME", own.join("cache"))
        .env("HELM_CONFIG_HOME", own.join("config"))
        .env("HELM_DATA_HOME", own.join("data"));
    Ok(command)
}

/// Runs a command to its end and gives back everything that it said.
///
/// # Errors
/// When it fails; the message holds its words.
pub async fn run(mut command: Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = tokio::task::spawn_blocking(move || command.output())
        .await?
        .with_context(|| format!("run {program}"))?;
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("{program} failed ({}):\n{}", output.status, said.trim());
    }
    Ok(said)
}
