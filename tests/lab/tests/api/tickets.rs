//! The keys of tickets: who publishes them.

use godwit_lab::{Lab, chart};
use serde_json::{Value, json};

use crate::server::{eventually, send, set};

const KEYS: &str = "godwit-ticket-keys";

fn path() -> String {
    format!("/api/v1/namespaces/{}/configmaps", chart::NAMESPACE)
}

/// Whoever may publish a key can sign tickets: not even an administrator does so by the way.
pub async fn r2_only_the_controller_publishes_keys(lab: &mut Lab) -> anyhow::Result<()> {
    let administrator = lab.client();
    let one = format!("{}/{KEYS}", path());
    let words = "published by its controller, not by";
    let object = send(&administrator, "GET", &one, None).await.accepted();
    for (field, forged) in [
        ("/data", json!({"keys": "ed25519 00 1\n"})),
        ("/binaryData", json!({"keys": "c29tZQ=="})),
    ] {
        let mut forged_object = object.clone();
        set(&mut forged_object, field, forged);
        eventually("the policy takes effect", async || {
            let dry = format!("{one}?dryRun=All");
            let answer = send(&administrator, "PUT", &dry, Some(&forged_object)).await;
            answer.message().contains(words).then_some(())
        })
        .await;
        send(&administrator, "PUT", &one, Some(&forged_object))
            .await
            .refused(field, words);
    }
    // Its labels are the installer's.
    let mut labelled = object;
    set(&mut labelled, "/metadata/labels/by", json!("hand"));
    send(&administrator, "PUT", &one, Some(&labelled)).await.accepted();

    // The controller does.
    let controller = lab.controller_client().await?;
    let mut published = send(&controller, "GET", &one, None).await.accepted();
    set(&mut published, "/data", json!({"keys": ""}));
    send(&controller, "PUT", &one, Some(&published)).await.accepted();

    // Removed and made again, it is empty, and the controller does not make it.
    send(&administrator, "DELETE", &one, None).await.accepted();
    let make = |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": KEYS}, "data": data});
    send(&administrator, "POST", &path(), Some(&make(json!({"keys": ""}))))
        .await
        .refused("made with keys", words);
    send(&controller, "POST", &path(), Some(&make(Value::Null)))
        .await
        .refused("made by the controller", "cannot create");
    send(&administrator, "POST", &path(), Some(&make(Value::Null)))
        .await
        .accepted();
    // Another one's content is nobody's business.
    let other = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "other-"},
        "data": {"keys": "x"}});
    send(&administrator, "POST", &path(), Some(&other)).await.accepted();
    Ok(())
}
