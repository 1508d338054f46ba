//! The scalars of a small YAML mapping, as text: what MLflow's `meta.yaml` files hold.

use saphyr_parser::{Event, Parser};
use std::collections::BTreeMap;

/// Most scalars of a document.
const MAX_SCALARS: usize = 10_000;
/// Deepest nesting.
const MAX_DEPTH: usize = 8;

/// Every scalar under its keys joined by dots; members of lists are left out. The error is the rule that is broken.
pub(super) fn scalars(text: &str) -> Result<BTreeMap<String, String>, &'static str> {
    let mut scalars = BTreeMap::new();
    // For each open collection: its key, whether it is a mapping, and the key that waits for its value.
    let mut open: Vec<(bool, Option<String>)> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, _) = event.map_err(|_| "must be YAML")?;
        match event {
            Event::MappingStart(..) | Event::SequenceStart(..) => {
                if open.len() >= MAX_DEPTH {
                    return Err("must not be nested deeper than 8 levels");
                }
                open.push((matches!(event, Event::MappingStart(..)), None));
            }
            Event::MappingEnd | Event::SequenceEnd => {
                open.pop();
                if let Some((true, key)) = open.last_mut() {
                    *key = None;
                }
            }
            Event::Scalar(value, ..) => {
                let in_lists = open.iter().any(|(is_mapping, _)| !is_mapping);
                let parents: Vec<&str> = open.iter().filter_map(|(_, key)| key.as_deref()).collect();
                let path = parents.join(".");
                let Some((true, key)) = open.last_mut() else { continue };
                if key.is_none() {
                    *key = Some(value.into_owned());
                    continue;
                }
                *key = None;
                if !in_lists {
                    scalars.insert(path, value.into_owned());
                }
                if scalars.len() > MAX_SCALARS {
                    return Err("must not have more than 10000 values");
                }
            }
            Event::Alias(_) => return Err("must not have aliases"),
            _ => {}
        }
    }
    Ok(scalars)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_have_their_keys_and_lists_are_left_out() {
        let text = "a: 1\nb: '{\"x\": \"y,\n  z\"}'\ntags:\n  mlflow.data.context: training\nlist: [1, {q: 2}]\nempty: {}\nc: null\n";
        let scalars = scalars(text).unwrap();
        let expected =
            [("a", "1"), ("b", "{\"x\": \"y, z\"}"), ("c", "null"), ("tags.mlflow.data.context", "training")];
        assert_eq!(scalars, expected.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect());
    }

    #[test]
    fn hostile_documents_are_refused() {
        assert_eq!(scalars("a: &x [*x]").unwrap_err(), "must not have aliases");
        assert_eq!(scalars(&"[".repeat(100)).unwrap_err(), "must not be nested deeper than 8 levels");
        assert_eq!(scalars("a: 'b").unwrap_err(), "must be YAML");
    }
}
