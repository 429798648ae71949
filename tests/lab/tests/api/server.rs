//! Requests with plain JSON, so that what the types would not allow can be sent, and what the server said.

use std::time::{Duration, Instant};

use kube::Client;
use kube::client::Body;
use serde_json::Value;

/// What the server said to a request.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    /// The object, or the Status that says why not.
    pub body: Value,
    pub warnings: Vec<String>,
}

impl Answer {
    /// The object, if the request was accepted.
    #[track_caller]
    pub fn accepted(self) -> Value {
        assert!((200..300).contains(&self.code), "refused: {}", self.message());
        assert!(self.warnings.is_empty(), "{:?}", self.warnings);
        self.body
    }

    /// That it was refused, with these words.
    #[track_caller]
    pub fn refused(&self, what: &str, words: &str) {
        assert!(self.code >= 400, "{what}: was accepted");
        assert!(
            self.message().contains(words),
            "{what}: refused, but not with “{words}”: {}",
            self.message()
        );
    }

    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }
}

/// Paths of godwit's objects.
pub fn path(resource: &str) -> String {
    match resource {
        "guestrecords" | "virtualmachinehosts" => format!("/apis/godwit.dev/v1alpha1/{resource}"),
        _ => format!("/apis/godwit.dev/v1alpha1/namespaces/default/{resource}"),
    }
}

pub async fn send(client: &Client, method: &str, path: &str, body: Option<&Value>) -> Answer {
    send_with(
        client,
        method,
        path,
        &[("content-type", "application/json")],
        body,
    )
    .await
}

/// Applies an object as agents do: by server-side apply, as the owner of its fields.
pub async fn apply(client: &Client, path: &str, object: &Value) -> Answer {
    let headers = [("content-type", "application/apply-patch+yaml")];
    let path = format!("{path}?fieldManager=godwit-agent&force=true&fieldValidation=Strict");
    send_with(client, "PATCH", &path, &headers, Some(object)).await
}

pub async fn send_with(
    client: &Client,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&Value>,
) -> Answer {
    let bytes = body
        .map(|body| serde_json::to_vec(body).unwrap())
        .unwrap_or_default();
    let mut request = http::Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = client
        .send(request.body(Body::from(bytes)).unwrap())
        .await
        .unwrap();
    let code = answer.status().as_u16();
    let warnings = answer
        .headers()
        .get_all("warning")
        .iter()
        .map(|value| value.to_str().unwrap_or_default().to_owned())
        .collect();
    let bytes = answer.into_body().collect_bytes().await.unwrap();
    Answer {
        code,
        body: serde_json::from_slice(&bytes).unwrap_or_default(),
        warnings,
    }
}

/// Creates an object; fields that the schema does not know are refused.
pub async fn create(client: &Client, resource: &str, object: &Value) -> Answer {
    send(
        client,
        "POST",
        &format!("{}?fieldValidation=Strict", path(resource)),
        Some(object),
    )
    .await
}

/// Asks whether an object would be created.
pub async fn try_create(client: &Client, resource: &str, object: &Value) -> Answer {
    let path = format!("{}?fieldValidation=Strict&dryRun=All", path(resource));
    send(client, "POST", &path, Some(object)).await
}

/// Replaces an object by a changed version of what is there.
pub async fn change(client: &Client, resource: &str, name: &str, edit: impl FnOnce(&mut Value)) -> Answer {
    let path = format!("{}/{name}", path(resource));
    let mut object = send(client, "GET", &path, None).await.accepted();
    edit(&mut object);
    send(
        client,
        "PUT",
        &format!("{path}?fieldValidation=Strict"),
        Some(&object),
    )
    .await
}

/// Sets the value at a JSON pointer, or removes it when the value is null; missing parents are made.
pub fn set(object: &mut Value, pointer: &str, value: Value) {
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    if object.pointer(parent).is_none_or(Value::is_null) {
        set(object, parent, serde_json::json!({}));
    }
    match object.pointer_mut(parent).unwrap() {
        Value::Object(map) if value.is_null() => {
            map.remove(last);
        }
        Value::Object(map) => {
            map.insert(last.to_owned(), value);
        }
        Value::Array(list) => list[last.parse::<usize>().unwrap()] = value,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            panic!("{parent} has no fields")
        }
    }
}

/// Waits until a look gives something, a minute at most.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
