//! Kubeconfigs with the tokens of godwit's own service accounts: each part has the rights that the chart gives it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;

use crate::chart::NAMESPACE;
use crate::control_plane::{ControlPlane, write_kubeconfig};

/// Longer than any run.
const SECONDS: i64 = 24 * 3600;

/// Asks for a token of one of godwit's service accounts and writes a kubeconfig with it.
///
/// # Errors
/// When the account does not exist or the file cannot be written.
pub async fn write(
    control_plane: &ControlPlane,
    account: &str,
    directory: &Path,
    name: &str,
) -> anyhow::Result<PathBuf> {
    let accounts: Api<ServiceAccount> = Api::namespaced(control_plane.client(), NAMESPACE);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            expiration_seconds: Some(SECONDS),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .with_context(|| format!("ask for a token of {account}"))?;
    let token = answer.status.context("the API server gave no token")?.token;
    let path = directory.join(format!("{name}.kubeconfig"));
    let authority = std::fs::read_to_string(control_plane.authority())?;
    write_kubeconfig(
        &path,
        control_plane.server(),
        &authority,
        &json!({ "token": token }),
    )?;
    Ok(path)
}
