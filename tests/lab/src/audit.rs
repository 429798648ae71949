//! The API server's audit log: who wrote what. It tells whether something at rest is really at rest.

use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;

/// A write that the API server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// When it came in.
    pub at: jiff::Timestamp,
    /// Who: a service account's full name, or a user's.
    pub user: String,
    /// `create`, `update`, `patch` or `delete`.
    pub verb: String,
    /// The resource, with the subresource after a slash.
    pub resource: String,
    /// The object's name; empty when the server chose it.
    pub name: String,
    /// The HTTP status of the answer.
    pub code: u16,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    stage: String,
    verb: String,
    user: User,
    #[serde(default)]
    object_ref: Object,
    #[serde(default)]
    response_status: Status,
    request_received_timestamp: jiff::Timestamp,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Deserialize, Default)]
struct Object {
    #[serde(default)]
    resource: String,
    #[serde(default)]
    subresource: String,
    #[serde(default)]
    name: String,
}

#[derive(Deserialize, Default)]
struct Status {
    #[serde(default)]
    code: u16,
}

/// Reads the writes to godwit's objects, events and leases since a time, in their order.
///
/// # Errors
/// When the log cannot be read or a whole line is not understood.
pub fn writes(log: &Path, since: jiff::Timestamp) -> anyhow::Result<Vec<Write>> {
    let text = std::fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
    // The server may be in the middle of its last line.
    let whole = text
        .rfind('\n')
        .map_or("", |end| text.get(..end).unwrap_or_default());
    let mut writes = Vec::new();
    for line in whole.lines() {
        writes.extend(write(line)?.filter(|write| write.at >= since));
    }
    writes.sort_by_key(|write| write.at);
    Ok(writes)
}

fn write(line: &str) -> anyhow::Result<Option<Write>> {
    let line: Line = serde_json::from_str(line).context("read a line of the audit log")?;
    if line.stage != "ResponseComplete" {
        return Ok(None);
    }
    let Object {
        resource,
        subresource,
        name,
    } = line.object_ref;
    let resource = if subresource.is_empty() {
        resource
    } else {
        format!("{resource}/{subresource}")
    };
    Ok(Some(Write {
        at: line.request_received_timestamp,
        user: line.user.username,
        verb: line.verb,
        resource,
        name,
        code: line.response_status.code,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read() -> anyhow::Result<()> {
        let line = r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"1",
            "stage":"ResponseComplete","requestURI":"/x","verb":"patch",
            "user":{"username":"system:serviceaccount:godwit-system:godwit-agent","uid":"2"},
            "sourceIPs":["10.113.1.11"],"userAgent":"godwit","objectRef":{"resource":"virtualmachinehosts",
            "name":"h1","apiGroup":"godwit.dev","apiVersion":"v1alpha1","subresource":"status"},
            "responseStatus":{"metadata":{},"code":200},
            "requestReceivedTimestamp":"2026-01-02T03:04:05.678901Z","stageTimestamp":"2026-01-02T03:04:05.7Z"}"#;
        let write = write(line)?.context("a write")?;
        assert_eq!(write.resource, "virtualmachinehosts/status");
        assert_eq!(write.user, "system:serviceaccount:godwit-system:godwit-agent");
        assert_eq!(
            (write.verb.as_str(), write.name.as_str(), write.code),
            ("patch", "h1", 200)
        );
        assert_eq!(write.at, "2026-01-02T03:04:05.678901Z".parse()?);
        Ok(())
    }
}
