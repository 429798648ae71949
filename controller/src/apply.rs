//! Writing what the controller owns of an object: its status, by server-side apply, and finalizers.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use kube::api::{Api, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::cluster::NAME;

/// How long the API server may take over one request; it is counted as unreachable then.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How often a compare-and-swap is tried when others write at the same time.
const ATTEMPTS: usize = 5;

/// The answer of the API server, or that there was none in time: whether a write was made is not known then.
pub async fn within<T>(answer: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    match tokio::time::timeout(ANSWER_WITHIN, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(kube::Error::Service(
            "the API server did not answer within 5 s".into(),
        )),
    }
}

/// Writes the whole status of `object`, as it is identified by name and UID: a later object of the same name is
/// left alone.
pub async fn status<K, S>(api: &Api<K>, object: &K, status: &S) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
    S: Serialize,
{
    let identity = json!({ "name": object.name_any(), "uid": object.uid() });
    status_of(api, object, identity, status).await
}

/// The same as long as nobody has written to the object since it was read; else the API server answers with a conflict.
pub async fn status_as_read<K, S>(api: &Api<K>, object: &K, status: &S) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
    S: Serialize,
{
    let version = object.resource_version();
    let identity = json!({ "name": object.name_any(), "uid": object.uid(), "resourceVersion": version });
    status_of(api, object, identity, status).await
}

async fn status_of<K, S>(
    api: &Api<K>,
    object: &K,
    identity: serde_json::Value,
    status: &S,
) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
    S: Serialize,
{
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": identity,
        "status": status,
    });
    let params = PatchParams::apply(NAME).force();
    within(api.patch_status(&object.name_any(), &params, &Patch::Apply(&patch)))
        .await
        .map(|_| ())
}

/// Whether a write failed because the object is not there any more, or is another one by now.
pub fn gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found() || status.is_conflict())
}

/// Whether the object's own rules forbid a write: what stands there is final.
pub fn forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_invalid())
}

/// Adds a finalizer, or takes it away; on the object of exactly this UID. One that is gone has no finalizer.
pub async fn finalizer<K>(api: &Api<K>, object: &K, finalizer: &str, present: bool) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let mut metadata = object.meta().clone();
    let mut attempts = 0;
    loop {
        let held = metadata.finalizers.unwrap_or_default();
        if held.iter().any(|name| name == finalizer) == present {
            return Ok(());
        }
        let mut finalizers: Vec<_> = held.into_iter().filter(|name| name != finalizer).collect();
        if present {
            finalizers.push(finalizer.into());
        }
        // The resourceVersion makes it a compare-and-swap: the list of finalizers is others' too.
        let patch = json!({ "metadata": {
            "uid": object.uid(),
            "resourceVersion": metadata.resource_version,
            "finalizers": finalizers,
        }});
        attempts += 1;
        match within(api.patch_metadata(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch)))
            .await
        {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if !present && status.is_not_found() => return Ok(()),
            Err(kube::Error::Api(status)) if status.is_conflict() && attempts < ATTEMPTS => {}
            Err(error) => return Err(error),
        }
        // Somebody was faster, or our own status was: look again.
        match within(api.get_metadata_opt(&object.name_any())).await? {
            Some(now) if now.metadata.uid == object.meta().uid => metadata = now.metadata,
            Some(_) | None => return Ok(()),
        }
    }
}
