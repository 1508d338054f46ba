//! The one way this crate writes JSON.
//!
//! `oci-spec` keeps annotations in hash maps, so its own serialisation differs from run to run; every document that is
//! hashed goes through [`canonical`]. Properties stand in the order of the OCI specification and text is escaped as
//! Go's `encoding/json` escapes it: a Go tool that reads a document and writes it again, as skopeo does with an index,
//! arrives at the same digest.

use serde::Serialize;
use serde_json::Value;

/// The canonical bytes of a document: compact, properties in the order of their type, annotations sorted by key.
pub(crate) fn canonical<T: Serialize>(document: &T) -> Vec<u8> {
    let mut value = serde_json::to_value(document).expect("our documents have string keys and finite numbers");
    sort_annotations(&mut value);
    let text = serde_json::to_string(&value).expect("a JSON value serialises");
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // Outside of strings JSON has none of these.
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => escaped.push(c),
        }
    }
    escaped.into_bytes()
}

fn sort_annotations(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, child) in map.iter_mut() {
                match child {
                    Value::Object(annotations) if key == "annotations" => annotations.sort_keys(),
                    child => sort_annotations(child),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(sort_annotations),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_are_sorted_and_everything_else_keeps_its_order() {
        let value: Value =
            serde_json::from_str(r#"{"z":[{"size":18446744073709551615,"annotations":{"b":"é<&>","a":"\n"}}],"a":1}"#)
                .unwrap();
        let expected =
            r#"{"z":[{"size":18446744073709551615,"annotations":{"a":"\n","b":"é\u003c\u0026\u003e"}}],"a":1}"#;
        assert_eq!(canonical(&value), expected.as_bytes());
    }
}
