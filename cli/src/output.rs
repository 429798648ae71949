//! Writing to standard output. Unlike `println!` it does not panic when the reader is gone.

use std::io::{self, Write as _};

use kube::ResourceExt as _;
use serde::Serialize;

use crate::error::CliError;
use crate::resource::Kind;
use crate::text::clean_json;

/// Writes text as it is. The caller has cleaned it.
pub fn text(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Writes text and a line's end.
pub fn line(words: &str) -> Result<(), CliError> {
    text(&format!("{words}\n"))
}

/// Writes a line to standard error. That nobody reads it is no reason to fail.
pub fn aside(words: &str) {
    let _ = writeln!(io::stderr(), "{words}");
}

/// Writes one object as JSON, without the bookkeeping of its writers, as kubectl does.
pub fn object<K: Kind>(object: &K) -> Result<(), CliError> {
    json(&presentable(object))
}

/// Writes objects as a JSON list that kubectl can read again.
pub fn list<K: Kind>(objects: &[K]) -> Result<(), CliError> {
    let items: Vec<K> = objects.iter().map(presentable).collect();
    json(&serde_json::json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items}))
}

fn presentable<K: Kind>(object: &K) -> K {
    let mut object = object.clone();
    object.managed_fields_mut().clear();
    object.meta_mut().managed_fields = None;
    object
}

fn json<T: Serialize>(value: &T) -> Result<(), CliError> {
    line(&clean_json(&serde_json::to_string_pretty(value)?))
}
