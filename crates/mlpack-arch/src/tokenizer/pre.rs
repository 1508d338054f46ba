//! Names of pre-tokenizers (`tokenizer.ggml.pre`).
//!
//! llama.cpp knows a pre-tokenizer by the token ids of one fixed text: sha256 of the ids as Python prints a list. The
//! ids depend on the vocabulary too, so a tokenizer that was trained anew is not found that way even when it splits
//! text like a known one. Such a tokenizer is compared by structure: its normalizer, its pre-tokenizer and
//! `ignore_merges`, which is what llama.cpp's loader derives from the name.

use super::auto::ModelKind;
use super::files::Object;
use super::{Error, Input};
use crate::json::is_truthy;
use mlpack_fs::Sha256;
use mlpack_tensor::nearest;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// The text that llama.cpp b11434 encodes (`conversion/base.py`, `get_vocab_base_pre`).
pub(super) const CHECK_TEXT: &str = "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u{200d}🌫\u{fe0f} (multiple emojis \
concatenated) ✅ 🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ \
------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not \
sure I'll make it, 'D you like some tea? We'Ve a'lL";

/// The name of the pre-tokenizer of which `ids` are the ids of [`CHECK_TEXT`]. The name of a WordPiece tokenizer is
/// never read by llama.cpp's loader, so it need not be one that the loader knows.
pub(super) fn name(
    input: &mut Input<'_>,
    ids: &[u32],
    structure: &Structure,
    kind: ModelKind,
) -> Result<&'static str, Error> {
    let loadable = |name: &&str| kind == ModelKind::WordPiece || loader_names().any(|known| known == *name);
    let hash = hash_ids(ids);
    let by_hash = by_hash(&hash);
    if let Some(given) = input.pre {
        if !loadable(&given) {
            return Err(unknown_name(given));
        }
        if let Some(found) = by_hash.filter(|found| *found != given) {
            input.warnings.push(format!(
                "the pre-tokenizer is written as `{given}`, as asked for; llama.cpp takes this tokenizer for `{found}`"
            ));
        }
        return Ok(given);
    }
    if let Some(found) = by_hash {
        return Ok(found);
    }
    match by_structure(structure).filter(loadable) {
        Some(found) => {
            input.pre_by_structure = Some(found);
            input.warnings.push(format!(
                "the pre-tokenizer is written as `{found}` because it has the same structure; llama.cpp's converter \
                 does not know this tokenizer (its check text has sha256 {hash}) and would refuse it"
            ));
            Ok(found)
        }
        None => Err(Error::UnknownPreTokenizer { path: input.files.dir.join("tokenizer.json"), hash }),
    }
}

/// A name given by the user, if llama.cpp b11434 has it: one that its loader knows, or one of its converter's, which
/// WordPiece tokenizers have too.
pub(super) fn known_name(name: &str) -> Result<&'static str, Error> {
    let of_converter = rows(include_str!("data/pre-hashes.tsv")).map(|row| row[1]);
    loader_names().chain(of_converter).find(|known| *known == name).ok_or_else(|| unknown_name(name))
}

/// The names that llama.cpp's loader knows.
fn loader_names() -> impl Iterator<Item = &'static str> {
    rows(include_str!("data/pre-names.txt")).map(|row| row[0])
}

fn unknown_name(name: &str) -> Error {
    Error::UnknownPreName { name: name.to_owned(), nearest: nearest(name, loader_names(), 3) }
}

/// Whether the converter takes a tokenizer with these ids of [`CHECK_TEXT`] for `name`.
pub(super) fn is_name_of(name: &str, ids: &[u32]) -> bool {
    by_hash(&hash_ids(ids)) == Some(name)
}

/// The lines of a table as fields; lines that start with `#` are comments.
pub(super) fn rows(table: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    table.lines().filter(|line| !line.starts_with('#')).map(|line| line.split('\t').collect())
}

fn hash_ids(ids: &[u32]) -> String {
    let mut text = String::from("[");
    for (i, id) in ids.iter().enumerate() {
        let separator = if i == 0 { "" } else { ", " };
        write!(text, "{separator}{id}").expect("a String takes all text");
    }
    text.push(']');
    Sha256::of(text.as_bytes()).to_string()
}

fn by_hash(hash: &str) -> Option<&'static str> {
    rows(include_str!("data/pre-hashes.tsv")).find(|row| row[0] == hash).map(|row| row[1])
}

/// What of a tokenizer decides how text is split, as `tokenizer.json` writes it.
#[derive(Debug, PartialEq)]
pub(super) struct Structure {
    normalizer: Value,
    pre_tokenizer: Value,
    ignore_merges: bool,
}

impl Structure {
    /// The structure of a `tokenizer.json`.
    pub(super) fn of(json: &Object) -> Structure {
        let component = |key| canonical(json.get(key).unwrap_or(&Value::Null));
        Structure {
            normalizer: component("normalizer"),
            pre_tokenizer: component("pre_tokenizer"),
            ignore_merges: json.get("model").and_then(|m| m.get("ignore_merges")).is_some_and(is_truthy),
        }
    }
}

/// The structures of the tokenizers that the names stand for. Where several names load alike, the plainest is here.
fn structures() -> impl Iterator<Item = (&'static str, Structure)> {
    #[derive(serde::Deserialize)]
    struct Row {
        pre: &'static str,
        normalizer: Value,
        pre_tokenizer: Value,
        ignore_merges: bool,
    }
    include_str!("data/pre-structures.jsonl").lines().map(|line| {
        let row: Row = serde_json::from_str(line).expect("every line of the table is a row");
        let (normalizer, pre_tokenizer) = (canonical(&row.normalizer), canonical(&row.pre_tokenizer));
        (row.pre, Structure { normalizer, pre_tokenizer, ignore_merges: row.ignore_merges })
    })
}

/// The name of the structure. llama.cpp has no NFC, so with it or without it a text is cut alike there; a name for the
/// very structure goes first.
fn by_structure(structure: &Structure) -> Option<&'static str> {
    let composes = |s: &Structure| s.normalizer.is_null() || s.normalizer == json!({"type": "NFC"});
    let alike = |known: &Structure| {
        composes(known)
            && composes(structure)
            && known.pre_tokenizer == structure.pre_tokenizer
            && known.ignore_merges == structure.ignore_merges
    };
    let exact = structures().find(|(_, known)| known == structure);
    exact.or_else(|| structures().find(|(_, known)| alike(known))).map(|(pre, _)| pre)
}

/// A component without what does not change its tokens: offsets, empty sequences, sequences of one. To remove what a
/// regex leaves over is to isolate what it matches, for a regex that matches everything, as all known ones do.
fn canonical(component: &Value) -> Value {
    let Some(object) = component.as_object() else { return component.clone() };
    let mut out = object.clone();
    out.remove("trim_offsets");
    if object.get("type").and_then(Value::as_str) == Some("ByteLevel") {
        out.entry("add_prefix_space").or_insert(Value::Bool(true));
        out.entry("use_regex").or_insert(Value::Bool(true));
    }
    if object.get("behavior").and_then(Value::as_str) == Some("Removed") && object.get("invert") == Some(&json!(true)) {
        out.insert("behavior".to_owned(), "Isolated".into());
        out.insert("invert".to_owned(), false.into());
    }
    for key in ["normalizers", "pretokenizers"] {
        let Some(parts) = object.get(key).and_then(Value::as_array) else { continue };
        let parts: Vec<Value> = parts.iter().map(canonical).filter(|p| !p.is_null()).collect();
        match parts.as_slice() {
            [] => return Value::Null,
            [one] => return one.clone(),
            _ => out.insert(key.to_owned(), Value::Array(parts)),
        };
    }
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_well_formed() {
        let hashes: Vec<_> = rows(include_str!("data/pre-hashes.tsv")).collect();
        assert_eq!(hashes.len(), 96, "98 comparisons, two of them of a hash that comes before");
        for row in &hashes {
            assert_eq!(row.len(), 2, "{row:?}");
            assert!(row[0].parse::<Sha256>().is_ok(), "{row:?}");
        }
        assert_eq!(by_hash("0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5"), Some("llama-bpe"));
        let mut structures: Vec<_> = structures().collect();
        assert!(structures.iter().all(|(pre, _)| known_name(pre).is_ok()));
        while let Some((pre, structure)) = structures.pop() {
            assert!(structures.iter().all(|(_, other)| *other != structure), "{pre} has the structure of another");
        }
    }

    #[test]
    fn ids_are_hashed_as_python_prints_them() {
        assert_eq!(hash_ids(&[1, 20, 3]), Sha256::of(b"[1, 20, 3]").to_string());
        assert_eq!(hash_ids(&[]), Sha256::of(b"[]").to_string());
    }

    #[test]
    fn the_check_text_is_that_of_llama_cpp() {
        assert_eq!(
            Sha256::of(CHECK_TEXT.as_bytes()).to_string(),
            "a36179c1e2b1cfcfbfad1dc779addad2ffc778201e4cf0d538bddeafa2c526da"
        );
    }

    #[test]
    fn an_unknown_name_is_refused_with_names_like_it() {
        let error = known_name("qwen-2").unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown pre-tokenizer `qwen-2`\n  expected: a name that llama.cpp b11434 knows, perhaps `qwen2`, `qwen35`"
        );
    }

    #[test]
    fn structure_is_compared_without_offsets_and_trivial_sequences() {
        let json = |text: &str| Structure::of(&serde_json::from_str(text).unwrap());
        let gpt2 = r#"{"normalizer": {"type": "Sequence", "normalizers": []},
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true}, "model": {}}"#;
        assert_eq!(by_structure(&json(gpt2)), Some("gpt-2"));
        let prefixed = gpt2.replace("false", "true");
        assert_eq!(by_structure(&json(&prefixed)), None, "a leading space changes the tokens");
        assert_eq!(by_structure(&json("{}")), None);
        let composed = gpt2.replace("\"normalizers\": []", "\"normalizers\": [{\"type\": \"NFC\"}]");
        assert_eq!(by_structure(&json(&composed)), Some("olmo"), "the one with NFC, which is cut alike");
        let lowercased = gpt2.replace("\"normalizers\": []", "\"normalizers\": [{\"type\": \"Lowercase\"}]");
        assert_eq!(by_structure(&json(&lowercased)), None, "llama.cpp would not do that");
    }
}
