//! The check against llama.cpp itself (the digests `ids` of `golden/expected.json` are made by its library), on sound
//! tokenizers, and on vocabularies that were written wrong.

use super::*;
use crate::tokenizer::tests::{Cases, config_of, reader_of};
use crate::tokenizer::{Tokenizer, VocabReader, read};
use mlpack_fs::{ErrorKind, Sha256};
use mlpack_tensor::{MetaArray, MetaValue};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Reads a case, then checks what `change` makes of its keys.
fn check(case: &Value, pre: Option<&str>, change: impl FnOnce(&mut Metadata)) -> Result<TokenizationCheck, Error> {
    let dir = Cases::load().folder(case);
    let config = config_of(dir.path());
    let request = TokenizerRequest { dir: dir.path(), config: &config, reader: reader_of(case), pre };
    let Tokenizer { mut metadata, .. } = read(&request).unwrap();
    change(&mut metadata);
    check_tokenization(&request, &metadata)
}

/// Changes the strings of an array.
fn change_strings(metadata: &mut Metadata, key: &str, change: impl FnOnce(&mut Vec<String>)) {
    let key = format!("tokenizer.ggml.{key}");
    let Some(MetaValue::Array(MetaArray::String(mut strings))) = metadata.find(&key).cloned() else { panic!("{key}") };
    change(&mut strings);
    metadata.set(key, strings.into());
}

#[test]
fn the_encoder_gives_the_ids_of_llama_cpp() {
    let cases = Cases::load();
    let expected: Value = serde_json::from_str(include_str!("../golden/expected.json")).unwrap();
    let mut compared = 0;
    for case in &cases.list {
        let name = case["name"].as_str().unwrap();
        let Some(golden) = expected[name]["ids"].as_str() else { continue };
        let dir = cases.folder(case);
        let (config, pre) = (config_of(dir.path()), case.get("pre").and_then(Value::as_str));
        let request = TokenizerRequest { dir: dir.path(), config: &config, reader: reader_of(case), pre };
        let metadata = read(&request).unwrap().metadata;
        let Ok(written) = Written::of(&metadata, dir.path()).unwrap() else {
            assert_eq!(pre, Some("mmbert"), "{name}");
            continue;
        };
        let list = |ids: Vec<u32>| format!("{ids:?}");
        let ids: Vec<String> = probes().iter().map(|text| list(written.encode(dir.path(), text).unwrap())).collect();
        assert_eq!(Sha256::of(format!("[{}]", ids.join(", ")).as_bytes()).to_string(), golden, "{name}: {ids:?}");
        compared += 1;
    }
    assert!(compared >= 40, "{compared} vocabularies were compared");
}

fn named(name: &str) -> Value {
    Cases::load().named(name).clone()
}

#[test]
fn sound_tokenizers_pass() {
    let names = [
        "chat_templates_by_name",
        "chat_template_json",
        "gpt_neox_class",
        "cohere_class",
        "codegen_class",
        "mamba_rounds_its_vocabulary_up",
        "t5_unigram",
        "t5_without_a_vocab_size",
        "tekken_of_version_3",
        "tekken_of_version_7_with_its_special_tokens",
        "tiktoken_of_qwen",
    ];
    for name in names {
        let case = named(name);
        let found =
            check(&case, case.get("pre").and_then(Value::as_str), |_| ()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(found.equal, found.probes, "{name}");
        assert!(found.probes > 20, "{name}");
        assert_eq!(found.warnings, [""; 0], "{name}");
    }
}

#[test]
fn a_sentencepiece_model_is_what_its_vocabulary_is_compared_with() {
    let dir: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/legal-qa/kjv-llama");
    let config = json!({"model_type": "llama", "vocab_size": 2048});
    let request = TokenizerRequest { dir: &dir, config: &config, reader: VocabReader::Llama, pre: None };
    let found = check_tokenization(&request, &read(&request).unwrap().metadata).unwrap();
    assert!(found.equal >= 20, "{found:?}");
    // The model was trained with NFKC and without runs of spaces; its tokenizer.json has neither.
    let known = ["normalizes texts, which llama.cpp does not do", "another file than `tokenizer.json`"];
    assert!(found.warnings.iter().all(|warning| known.iter().any(|k| warning.contains(k))), "{found:?}");
    assert!(found.warnings.iter().any(|warning| warning.contains(known[0])), "{found:?}");
}

#[test]
fn known_differences_are_warnings_with_their_reason() {
    let warnings = |name: &str| {
        let case = named(name);
        let found =
            check(&case, case.get("pre").and_then(Value::as_str), |_| ()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(found.equal < found.probes || found.probes == 0, "{name}");
        found.warnings.join("\n")
    };
    assert!(warnings("lowercasing_normalizers").contains("normalizes texts, which llama.cpp does not do"));
    assert!(warnings("roberta_class").contains("it takes spaces beside it away"));
    assert!(warnings("wordpiece_uncased").contains("an added token of a WordPiece vocabulary that is not special"));
    assert!(warnings("wordpiece_of_distilbert").contains("add unk_token_id to config.json"));
    assert!(warnings("llama_hf_with_byte_fallback").contains("gives no scores"));
    assert!(warnings("gpt2_as_the_file_stands").contains("an added token with U+2581"));
    assert!(warnings("gemma_2").contains("does not load a SentencePiece-style vocabulary without byte tokens"));
    assert!(warnings("modern_bert_as_mmbert").contains("the rules of the pre-tokenizer `mmbert`"));
}

/// The message of an error, without the folder's name.
fn message(error: &Error) -> String {
    let text = error.to_string();
    let (before, rest) = text.split_once('`').unwrap();
    let (_, after) = rest.split_once('`').unwrap();
    format!("{before}`DIR`{after}")
}

#[test]
fn a_pre_tokenizer_of_the_wrong_name_is_an_error() {
    let error = check(&named("hunyuan_with_one_end"), Some("qwen2"), |_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    assert_eq!(
        message(&error),
        "the tokenizer of `DIR` would not work as it does now\n  text `line\\u{a}break\\u{a}\\u{a}paragraph\\u{a}\\u{a}\\u{a}  \
         indented`\n  expected: 198 `Ċ` as token 8 (`tokenizer.json`)\n  found:    268 `ĊĊ` (with the pre-tokenizer `qwen2`)"
    );
    assert!(error.hint().unwrap().contains("--pre"));
}

#[test]
fn a_vocabulary_that_was_written_wrong_is_an_error() {
    let case = named("cohere_class");
    let checked = |change: &dyn Fn(&mut Vec<String>), key: &str| {
        check(&case, Some("command-r"), |metadata| change_strings(metadata, key, change)).unwrap_err()
    };
    let error = checked(&|merges| merges.truncate(3), "merges");
    assert!(matches!(&error, Error::TokenizationDiffers(found) if found.pre.is_none()), "{error}");
    let error = checked(&|tokens| tokens.swap(40, 41), "tokens");
    assert_eq!(
        message(&error),
        "the tokenizer of `DIR` would not work as it does now\n  text `In 2024, 3.14159 was 1,000,000 times 0.5%.`\n  \
         expected: 40 `J` as token 0 (`tokenizer.json`)\n  found:    41 `I`"
    );
}

#[test]
fn two_tokens_of_one_text_are_an_error() {
    let error = check(&named("cohere_class"), Some("command-r"), |metadata| {
        change_strings(metadata, "tokens", |tokens| tokens[9] = "H".to_owned());
    })
    .unwrap_err();
    assert_eq!(
        message(&error),
        "the vocabulary of `DIR` cannot be loaded by llama.cpp\n  token `H`\n  expected: one id for a text\n  found:    9 and \
         39"
    );
}

#[test]
fn a_vocabulary_without_a_source_is_not_checked() {
    let case = named("gpt_neox_class");
    let dir = Cases::load().folder(&case);
    let config = config_of(dir.path());
    let request = TokenizerRequest { dir: dir.path(), config: &config, reader: reader_of(&case), pre: Some("olmo") };
    let metadata = read(&request).unwrap().metadata;
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let found = check_tokenization(&request, &metadata).unwrap();
    assert_eq!(found.probes, 0);
    assert_eq!(
        found.warnings,
        ["the tokenization is not checked: the folder has no tokenizer of its own to compare with"]
    );
}

#[test]
fn every_name_of_the_loader_has_rules_or_is_known_to_have_none() {
    let names = include_str!("../data/pre-names.txt").lines().filter(|line| !line.starts_with('#'));
    let without: Vec<&str> = names.filter(|name| !Written::has_rules(name)).collect();
    assert_eq!(without, ["afmoe", "kimi-k2", "mmbert", "sarvam-moe", "superbpe", "whitespace"]);
}
