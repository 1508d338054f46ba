//! Names of pre-tokenizers (`tokenizer.ggml.pre`).
//!
//! llama.cpp knows a pre-tokenizer by the token ids of one fixed text: sha256 of the ids as Python prints a list. The
//! ids depend on the vocabulary too, so a tokenizer that was trained anew is not found that way even when it splits
//! text like a known one. Such a tokenizer is compared by structure: its normalizer, its pre-tokenizer and
//! `ignore_merges`, which is what llama.cpp's loader derives from the name.

use super::auto::{QWEN2, QWEN35};
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

/// The name of the pre-tokenizer of which `ids` are the ids of [`CHECK_TEXT`].
pub(super) fn name(input: &mut Input<'_>, ids: &[u32], structure: &Structure) -> Result<&'static str, Error> {
    let hash = hash_ids(ids);
    let by_hash = by_hash(&hash);
    if let Some(given) = input.pre {
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
    match by_structure(structure) {
        Some(found) => {
            input.warnings.push(format!(
                "the pre-tokenizer is written as `{found}` because it has the same structure; llama.cpp's converter \
                 does not know this tokenizer (its check text has sha256 {hash}) and would refuse it"
            ));
            Ok(found)
        }
        None => Err(Error::UnknownPreTokenizer { path: input.files.dir.join("tokenizer.json"), hash }),
    }
}

/// A name given by the user, if llama.cpp b11434 can load it.
pub(super) fn known_name(name: &str) -> Result<&'static str, Error> {
    let known = || rows(include_str!("data/pre-names.txt")).map(|row| row[0]);
    known()
        .find(|k| *k == name)
        .ok_or_else(|| Error::UnknownPreName { name: name.to_owned(), nearest: nearest(name, known(), 3) })
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
fn structures() -> Vec<(&'static str, Structure)> {
    const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const DEEPSEEK3: &str = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";
    let split =
        |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": use_regex});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let sequence = |parts: Vec<Value>| json!({"type": "Sequence", "pretokenizers": parts});
    let by_regex = |regex| sequence(vec![split(regex), byte_level(false)]);
    let nfc = json!({"type": "NFC"});
    let structure = |pre, normalizer: &Value, pre_tokenizer, ignore_merges| {
        let (normalizer, pre_tokenizer) = (canonical(normalizer), canonical(&pre_tokenizer));
        (pre, Structure { normalizer, pre_tokenizer, ignore_merges })
    };
    let none = Value::Null;
    let deepseek3 = vec![split(r"\p{N}{1,3}"), split("[一-龥\u{3040}-ゟ゠-ヿ]+"), split(DEEPSEEK3), byte_level(false)];
    vec![
        structure("gpt-2", &none, byte_level(true), false),
        structure("llama-bpe", &none, by_regex(LLAMA3), true),
        structure("smaug-bpe", &none, by_regex(LLAMA3), false),
        structure("qwen2", &nfc, by_regex(QWEN2), false),
        structure("qwen35", &nfc, by_regex(QWEN35), false),
        structure("gpt-4o", &none, by_regex(GPT4O), true),
        structure("tekken", &none, by_regex(TEKKEN), true),
        structure("deepseek-v3", &none, sequence(deepseek3), false),
        structure("smollm", &none, sequence(vec![digits, byte_level(true)]), false),
    ]
}

fn by_structure(structure: &Structure) -> Option<&'static str> {
    structures().into_iter().find(|(_, known)| known == structure).map(|(pre, _)| pre)
}

/// A component without what does not change its tokens: offsets, empty sequences, sequences of one.
fn canonical(component: &Value) -> Value {
    let Some(object) = component.as_object() else { return component.clone() };
    let mut out = object.clone();
    out.remove("trim_offsets");
    if object.get("type").and_then(Value::as_str) == Some("ByteLevel") {
        out.entry("add_prefix_space").or_insert(Value::Bool(true));
        out.entry("use_regex").or_insert(Value::Bool(true));
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
        for (pre, _) in structures() {
            assert_eq!(known_name(pre).unwrap(), pre);
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
    }
}
