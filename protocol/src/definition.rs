//! Which definition a guest has: a digest of it, kept in the guest's record from before its first start.
//!
//! A destination is given the definition by the source, which may have been taken over and name another guest's disks. So
//! whoever lets the destination prepare (the destination's agent peer to peer, else the controller) holds what the source
//! says against the record, which no agent can change there.

use aws_lc_rs::digest;
use serde_json::Value;

use crate::convert::LONGEST_DEFINITION;
use crate::error::{Category, Fault};
use crate::reason;

/// Where the guest is first started. It may be filled in later, and is nothing that a guest or its host sees.
const FIRST_HOST: &str = "host";

/// The digest of a definition: SHA-256 in 64 hexadecimal digits, over its JSON with keys in order. Fields that say nothing
/// (null, empty) count as left out, so that it does not matter who wrote the JSON.
///
/// # Errors
/// It is no JSON object, or longer than a definition may be.
pub fn digest(definition: &[u8]) -> Result<String, Fault> {
    let unreadable = |why: String| Fault::new(Category::Invalid, reason::DEFINITION_REFUSED, why);
    if definition.len() > LONGEST_DEFINITION {
        return Err(unreadable("the definition is too long".into()));
    }
    let mut value: Value = serde_json::from_slice(definition)
        .map_err(|error| unreadable(format!("the definition is no JSON: {error}")))?;
    let Value::Object(fields) = &mut value else {
        return Err(unreadable("the definition is no JSON object".into()));
    };
    fields.remove(FIRST_HOST);
    let said = said(value).unwrap_or_default();
    // An object's keys are kept in order.
    let digest = digest::digest(&digest::SHA256, said.to_string().as_bytes());
    Ok(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What of a value says something.
fn said(value: Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::String(text) => (!text.is_empty()).then_some(Value::String(text)),
        // Each has its place in the list.
        Value::Array(items) => (!items.is_empty()).then(|| {
            let items = items.into_iter().map(|item| said(item).unwrap_or_default());
            Value::Array(items.collect())
        }),
        Value::Object(fields) => {
            let said = fields
                .into_iter()
                .filter_map(|(key, value)| Some((key, said(value)?)));
            Some(Value::Object(said.collect()))
        }
        Value::Bool(_) | Value::Number(_) => Some(value),
    }
}

/// Holds what the host `source` says of a guest against the digest in the guest's record.
///
/// # Errors
/// Forbidden with `DefinitionMismatch` if it is another; as [`digest`] if it cannot be read.
pub fn check(source: &str, definition: &[u8], recorded: &str) -> Result<(), Fault> {
    if digest(definition)? == recorded {
        return Ok(());
    }
    Err(Fault::new(
        Category::Forbidden,
        reason::DEFINITION_MISMATCH,
        format!(
            "The definition that {source} gives of the guest is not the one under which it was first started"
        ),
    ))
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use super::*;

    const GUEST: &[u8] =
        br#"{"cpu":{"count":1,"model":"qemu64"},"memory":"128Mi","disks":[{"name":"root","pool":"a"}]}"#;

    #[test]
    fn who_wrote_the_json_does_not_matter() {
        let same = [
            GUEST,
            br#"{ "memory": "128Mi", "disks": [{"pool": "a", "name": "root"}], "cpu": {"model": "qemu64", "count": 1} }"#,
            br#"{"host":"h1","cpu":{"count":1,"model":"qemu64"},"memory":"128Mi","disks":[{"name":"root","pool":"a","serial":""}],"interfaces":[],"firmware":null}"#,
        ];
        let digests = same.map(|guest| digest(guest).unwrap());
        assert!(digests.iter().all(|one| *one == digests[0]), "{digests:?}");
        assert_eq!(digests[0].len(), 64);
        assert!(check("h1", same[2], &digests[0]).is_ok());
    }

    #[test]
    fn r14_every_change_of_a_definition_is_another_definition() {
        let recorded = digest(GUEST).unwrap();
        let text = std::str::from_utf8(GUEST).unwrap();
        for (was, is) in [
            ("\"pool\":\"a\"", "\"pool\":\"b\""),
            ("\"count\":1", "\"count\":2"),
            ("\"count\":1", "\"count\":\"1\""),
            ("root", "Root"),
            ("128Mi", "128Gi"),
            ("]}", ",{\"name\":\"more\",\"pool\":\"a\"}]}"),
            ("]}", ",{}]}"),
            ("\"model\"", "\"modell\""),
            ("]}", "],\"randomSource\":false}"),
        ] {
            let changed = text.replacen(was, is, 1);
            assert_ne!(changed, text);
            let fault = check("h1", changed.as_bytes(), &recorded).unwrap_err();
            assert_eq!(fault.category, Category::Forbidden, "{changed}");
            assert_eq!(fault.reason, reason::DEFINITION_MISMATCH, "{changed}");
        }
    }

    #[test]
    fn r14_what_is_no_definition_is_refused() {
        let long = vec![b' '; LONGEST_DEFINITION + 1];
        for bad in [b"".as_slice(), b"[]", b"null", b"{", b"\xff", &long] {
            assert_eq!(digest(bad).unwrap_err().category, Category::Invalid);
        }
    }
}
