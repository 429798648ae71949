//! The host's Lease: it shows that the host lives, as nodes do.

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::api::{ApiError, FIELD_MANAGER, within};
use crate::clock;

/// How long the lease lasts without a renewal, in seconds: four renewals may fail.
const SECONDS: i32 = 40;

/// The host's Lease.
pub struct HostLease {
    leases: Api<Lease>,
    host: String,
}

impl HostLease {
    /// The Lease of `host`, under its name in `namespace`.
    pub fn new(client: Client, namespace: &str, host: &str) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            host: host.into(),
        }
    }

    /// Renews the lease, making it at the first time.
    pub async fn renew(&self) -> Result<(), ApiError> {
        let patch = Patch::Apply(lease(&self.host, clock::timestamp()));
        within(
            self.leases
                .patch(&self.host, &PatchParams::apply(FIELD_MANAGER).force(), &patch),
        )
        .await
        .map(drop)
    }
}

fn lease(host: &str, now: Timestamp) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": host},
        "spec": {
            "holderIdentity": host,
            "leaseDurationSeconds": SECONDS,
            "renewTime": now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
        },
    })
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_lease() {
        let written = lease(
            "node-a",
            Timestamp::from_microsecond(1_700_000_000_000_001).unwrap(),
        );
        assert_eq!(written["spec"]["renewTime"], "2023-11-14T22:13:20.000001Z");
        let lease: Lease = serde_json::from_value(written).unwrap();
        assert_eq!(lease.spec.unwrap().holder_identity.as_deref(), Some("node-a"));
    }
}
