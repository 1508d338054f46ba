//! The readers against llama.cpp b11434: `golden/expected.json` is what its converter writes for the folders of
//! `golden/cases.json` (made by `golden/make.py`), and the legal-qa fixture has goldens of its own. Then hostile files.

use super::spm::{ModelProto, NormalizerSpec, Piece, TrainerSpec};
use super::*;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use mlpack_fs::{ErrorKind, Sha256};
use mlpack_tensor::MetaArray;
use prost::Message as _;
use serde_json::json;
use std::fs;

/// Values of longer arrays are compared by digest.
const SHOWN: usize = 64;

#[test]
fn every_case_is_what_llama_cpp_writes() {
    let cases = Cases::load();
    let expected: Value = serde_json::from_str(include_str!("golden/expected.json")).unwrap();
    assert_eq!(
        expected.as_object().unwrap().len(),
        cases.list.len(),
        "run golden/make.py after a change of cases.json"
    );
    for case in &cases.list {
        let name = case["name"].as_str().unwrap();
        let golden = &expected[name];
        let dir = cases.folder(case);
        let given = case.get("pre").and_then(Value::as_str);
        let found = read_case(dir.path(), case, given).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(shown(&found.metadata), golden["keys"], "{name}");

        // Without the name, the check text's digest is in the warning or in the error: it is transformers' digest.
        let Some(hash) = golden["hash"].as_str() else { continue };
        let said = match read_case(dir.path(), case, None) {
            Ok(found) => found.warnings.join("\n"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{name}");
                assert!(error.hint().unwrap().contains("--pre"), "{name}");
                error.to_string()
            }
        };
        assert!(said.contains(hash), "{name}: {said}");
    }
}

#[test]
fn kjv_llama_is_what_llama_cpp_writes() {
    let dir = legal_qa().join("kjv-llama");
    let golden = fs::File::open(legal_qa().join("golden/llama.cpp-b11434/hf-bf16.json")).unwrap();
    let golden: Value = serde_json::from_reader(golden).unwrap();
    let config = json!({"model_type": "llama", "vocab_size": 2048});
    let found = read(&TokenizerRequest { dir: &dir, config: &config, reader: VocabReader::Llama, pre: None }).unwrap();
    let expected: Vec<&Value> = golden["kv"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|kv| kv["key"].as_str().unwrap().starts_with("tokenizer."))
        .collect();
    assert_eq!(found.metadata.len(), expected.len());
    for ((key, value), golden) in found.metadata.iter().zip(expected) {
        let (types, mut value) = plain(value);
        if golden["value"].as_str().is_some_and(|v| v.starts_with("sha256:")) {
            value = digest(&value);
        }
        assert_eq!(json!({"key": key, "type": types, "value": value}), *golden);
    }
    let names: Vec<_> = found.files.iter().map(|f| f.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(
        names,
        ["tokenizer.json", "tokenizer_config.json", "config.json", "tokenizer.model", "chat_template.jinja"]
    );
    assert_eq!(found.warnings, [""; 0]);
}

#[test]
fn a_known_structure_names_the_pre_tokenizer_with_a_warning() {
    let cases = Cases::load();
    let by_structure = |name| {
        let case = cases.named(name);
        let found = read_case(cases.folder(case).path(), case, None).unwrap();
        let Some(MetaValue::String(pre)) = found.metadata.find("tokenizer.ggml.pre") else { panic!("{name}") };
        assert!(found.warnings.iter().any(|w| w.contains("same structure")), "{name}: {:?}", found.warnings);
        pre.clone()
    };
    assert_eq!(by_structure("gpt2_as_the_file_stands"), "gpt-2");
    assert_eq!(by_structure("llama3_like_with_bos_and_eos"), "llama-bpe");
    assert_eq!(by_structure("qwen2_class_overrules_llama"), "qwen2", "the structure of the class, not of the file");
    assert_eq!(by_structure("qwen3_5_class"), "qwen35");
}

#[test]
fn a_pre_tokenizer_without_a_name_is_an_error_that_says_what_to_do() {
    let cases = Cases::load();
    let case = cases.named("gpt2_class_replaces_the_pre_tokenizer");
    let dir = cases.folder(case);
    let error = read_case(dir.path(), case, None).unwrap_err();
    assert_eq!(
        error.to_string().replace(&dir.path().display().to_string(), "DIR"),
        "cannot name the pre-tokenizer of `DIR/tokenizer.json`\n  key `tokenizer.ggml.pre`\n  expected: a tokenizer \
         that llama.cpp b11434 knows, by its check text or by its structure\n  found:    token ids with sha256 \
         c6d9aec7411e09bfbca724a7a83bf40c25c16c6824ffafd7832d74a94b350ab9"
    );
    assert_eq!(
        error.hint().unwrap(),
        "if you know which tokenizer this one splits text like, name it with --pre, for example --pre qwen2"
    );
    let error = read_case(dir.path(), case, Some("gpt2")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misuse);
    assert!(error.to_string().contains("perhaps `gpt-2`"), "{error}");
}

#[test]
fn a_class_that_is_not_reproduced_is_warned_about() {
    let cases = Cases::load();
    let case = cases.named("gpt2_as_the_file_stands");
    let dir = cases.folder(case);
    fs::write(dir.path().join("tokenizer_config.json"), r#"{"tokenizer_class": "CLIPTokenizerFast"}"#).unwrap();
    let warnings = read_case(dir.path(), case, Some("gpt-2")).unwrap().warnings;
    assert!(warnings.iter().any(|w| w.contains("`CLIPTokenizer`")), "{warnings:?}");
    fs::write(dir.path().join("tokenizer_config.json"), r#"{"tokenizer_class": "TeamTokenizer"}"#).unwrap();
    let warnings = read_case(dir.path(), case, Some("gpt-2")).unwrap().warnings;
    assert_eq!(warnings, [""; 0], "transformers reads the file as it stands for a class that it does not know");
}

#[test]
fn additional_chat_templates_are_written_in_sorted_order() {
    let cases = Cases::load();
    let case = cases.named("chat_template_file_with_an_additional_one");
    let dir = cases.folder(case);
    for name in ["z", "a b", "m"] {
        fs::write(dir.path().join(format!("additional_chat_templates/{name}.jinja")), name).unwrap();
    }
    let found = read_case(dir.path(), case, Some("gpt-2")).unwrap().metadata;
    let keys: Vec<_> = found.iter().map(|(k, _)| k).filter(|k| k.contains("chat_template")).collect();
    assert_eq!(
        keys,
        [
            "tokenizer.chat_template.a_b",
            "tokenizer.chat_template.m",
            "tokenizer.chat_template.tool_use",
            "tokenizer.chat_template.z",
            "tokenizer.chat_templates",
            "tokenizer.chat_template"
        ]
    );
}

#[test]
fn a_folder_without_a_vocabulary_names_what_was_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    for reader in [VocabReader::Llama, VocabReader::Qwen, VocabReader::Bpe] {
        let error = read(&TokenizerRequest { dir: dir.path(), config: &json!({}), reader, pre: None }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains("`tokenizer.model`, `tokenizer.json`"), "{error}");
    }
    fs::write(dir.path().join("tekken.json"), "{}").unwrap();
    let request = TokenizerRequest { dir: dir.path(), config: &json!({}), reader: VocabReader::Llama, pre: None };
    assert!(read(&request).unwrap_err().to_string().contains("key `config.version`"));
}

/// What is wrong with a SentencePiece model, as the reader says it.
fn spm_error(model: &[u8], config: &Value) -> Error {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.model"), model).unwrap();
    read(&TokenizerRequest { dir: dir.path(), config, reader: VocabReader::Qwen, pre: None }).unwrap_err()
}

fn piece(text: &[u8], kind: i32) -> Piece {
    Piece { text: Some(text.to_vec()), score: None, kind: Some(kind) }
}

fn model(byte_fallback: bool, pieces: Vec<Piece>) -> Vec<u8> {
    let trainer_spec = Some(TrainerSpec { byte_fallback: Some(byte_fallback), model_type: None });
    ModelProto { pieces, trainer_spec, normalizer_spec: None }.encode_to_vec()
}

#[test]
fn every_truncation_of_a_sentencepiece_model_is_an_error_or_a_shorter_model() {
    let whole = model(false, vec![piece(b"<unk>", 2), piece("▁a".as_bytes(), 1), piece(b"b", 1)]);
    let dir = tempfile::tempdir().unwrap();
    for len in 0..whole.len() {
        fs::write(dir.path().join("tokenizer.model"), &whole[..len]).unwrap();
        let config = json!({});
        let request = TokenizerRequest { dir: dir.path(), config: &config, reader: VocabReader::Qwen, pre: None };
        match read(&request) {
            Ok(found) => assert!(found.metadata.find("tokenizer.ggml.tokens").is_some(), "{len}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Malformed, "{len}: {error}"),
        }
    }
}

#[test]
fn sentencepiece_models_that_its_library_refuses_are_refused() {
    let config = json!({});
    let unk = || piece(b"<unk>", 2);
    let expected = |model: &[u8]| match spm_error(model, &config) {
        Error::BadPiece { expected, .. } | Error::BadModel { expected, .. } => expected,
        other => panic!("{other}"),
    };
    assert_eq!(expected(&model(false, vec![unk(), piece(b"a\xff", 1)])), "text in UTF-8");
    assert_eq!(expected(&model(false, vec![unk(), piece(b"", 1)])), "text that is not empty");
    assert_eq!(expected(&model(false, vec![unk(), piece(b"a", 1), piece(b"a", 4)])), "text that no other piece has");
    assert_eq!(expected(&model(false, vec![unk(), piece(b"x", 2)])), "one unknown piece in the model");
    assert_eq!(expected(&model(false, vec![piece(b"a", 1)])), "one unknown piece");
    let byte = piece(b"<0x41>", 6);
    assert_eq!(expected(&model(false, vec![unk(), byte.clone()])), "no byte pieces in a model without byte fallback");
    assert_eq!(expected(&model(true, vec![unk(), byte])), "256 byte pieces in a model with byte fallback");
    assert_eq!(expected(&model(true, vec![unk(), piece(b"<0x4>", 6)])), "a byte piece from <0x00> to <0xFF>");
    let garbage = [0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    assert!(matches!(spm_error(&garbage, &config), Error::NotSentencePiece { .. }), "a length beyond the end");
}

#[test]
fn a_huge_vocabulary_is_refused_before_it_is_made() {
    let small = model(false, vec![piece(b"<unk>", 2)]);
    let error = spm_error(&small, &json!({"vocab_size": u64::MAX}));
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(matches!(error, Error::VocabularyTooLarge { found: u64::MAX, .. }));
    for (size, found) in [(json!("many"), "\"many\""), (json!(-1), "-1"), (json!(2.5), "2.5"), (json!([1]), "[1]")] {
        let error = spm_error(&small, &json!({"vocab_size": size}));
        assert!(error.to_string().ends_with(&format!("found:    {found}")), "{error}");
    }
}

#[test]
fn json_of_the_wrong_shape_is_refused_with_its_key() {
    let small = model(false, vec![piece(b"<unk>", 2)]);
    let cases = [
        ("tokenizer_config.json", "[]", "key ``"),
        ("tokenizer_config.json", "{\"a\": ", "not JSON"),
        ("tokenizer_config.json", r#"{"added_tokens_decoder": []}"#, "key `added_tokens_decoder`"),
        ("tokenizer_config.json", r#"{"added_tokens_decoder": {"0": 7}}"#, "key `added_tokens_decoder.0.content`"),
        ("tokenizer_config.json", r#"{"added_tokens_decoder": {"-1": {"content": "a"}}}"#, "found:    -1"),
        ("tokenizer_config.json", r#"{"chat_template": [7]}"#, "key `chat_template`"),
        ("added_tokens.json", r#"{"a": -1}"#, "found:    -1"),
        ("added_tokens.json", r#"{"a": "0"}"#, "found:    \"0\""),
        ("config.json", r#"{"eos_token_id": -7}"#, "found:    -7"),
        ("config.json", r#"{"eos_token_id": 4294967296}"#, "found:    4294967296"),
        ("tokenizer.json", r#"{"post_processor": {"processors": 7}}"#, "key `post_processor.processors`"),
    ];
    for (name, content, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tokenizer.model"), &small).unwrap();
        fs::write(dir.path().join(name), content).unwrap();
        let config = json!({});
        let request = TokenizerRequest { dir: dir.path(), config: &config, reader: VocabReader::Llama, pre: None };
        let error = read(&request).expect_err(content);
        assert_eq!(error.kind(), ErrorKind::Malformed, "{content}: {error}");
        let text = error.to_string();
        assert!(text.contains(expected) && text.contains(name), "{content}: {text}");
    }
}

#[test]
fn a_tokenizer_json_that_breaks_its_rules_is_refused() {
    let cases = Cases::load();
    let case = cases.named("gpt2_as_the_file_stands");
    let refused = |change: &dyn Fn(&mut Value), config: Value| {
        let dir = cases.folder(case);
        let path = dir.path().join("tokenizer.json");
        let mut json: Value = serde_json::from_reader(fs::File::open(&path).unwrap()).unwrap();
        change(&mut json);
        fs::write(&path, json.to_string()).unwrap();
        let request =
            TokenizerRequest { dir: dir.path(), config: &config, reader: VocabReader::Bpe, pre: Some("gpt-2") };
        read(&request).unwrap_err()
    };
    let none = || json!({"vocab_size": 400});
    assert!(matches!(refused(&|j| j["model"]["type"] = "Unigram".into(), none()), Error::WrongModel { .. }));
    assert!(matches!(refused(&|j| j["model"] = json!(7), none()), Error::WrongModel { .. }));
    assert!(matches!(refused(&|j| j["model"]["vocab"] = json!([1]), none()), Error::Refused { .. }));
    assert!(matches!(refused(&|j| j["model"]["merges"] = json!(["q q"]), none()), Error::Refused { .. }));
    assert!(matches!(refused(&|j| j["model"]["vocab"]["x y"] = json!(-1), none()), Error::Refused { .. }));
    assert!(matches!(refused(&|j| j["pre_tokenizer"] = json!({"type": "Nothing"}), none()), Error::Refused { .. }));
    let regex = json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false});
    assert!(matches!(refused(&|j| j["pre_tokenizer"] = regex.clone(), none()), Error::Refused { .. }));
    // The library panics on these two.
    let charsmap = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
    assert!(matches!(refused(&|j| j["normalizer"] = charsmap.clone(), none()), Error::Refused { .. }));
    let prefix = |j: &mut Value| j["model"]["continuing_subword_prefix"] = "</s>".into();
    assert!(matches!(refused(&prefix, none()), Error::Refused { .. }));
    let error = refused(&|j| j["model"]["vocab"]["x y"] = json!(5), none());
    assert!(matches!(&error, Error::SharedId { id: 5, first, .. } if first == "&"), "{error}");
    let error = refused(&|_| (), json!({"vocab_size": 100}));
    assert!(matches!(error, Error::BeyondVocabulary { id: 287, vocab_size: 100, .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Mismatch);
}

/// The folders of `golden/cases.json`.
pub(super) struct Cases {
    merges: Vec<String>,
    pub(super) list: Vec<Value>,
}

use serde_json::Value;

impl Cases {
    pub(super) fn load() -> Cases {
        let json: Value = serde_json::from_str(include_str!("golden/cases.json")).unwrap();
        let merges = json["merges"].as_array().unwrap().iter().map(|m| m.as_str().unwrap().to_owned()).collect();
        Cases { merges, list: json["cases"].as_array().unwrap().clone() }
    }

    pub(super) fn named(&self, name: &str) -> &Value {
        self.list.iter().find(|case| case["name"] == name).unwrap()
    }

    /// Writes the files of a case, as `golden/make.py` does.
    pub(super) fn folder(&self, case: &Value) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in case["copy"].as_array().into_iter().flatten() {
            let from = legal_qa().join(name.as_str().unwrap());
            fs::copy(&from, dir.path().join(from.file_name().unwrap())).unwrap();
        }
        for (name, content) in case["files"].as_object().into_iter().flatten() {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let bytes = match content {
                Value::String(text) => text.clone().into_bytes(),
                content if content.get("@pieces").is_some() => sentencepiece(content),
                content if content.get("@ranks").is_some() => {
                    let line = |(i, token): (usize, Vec<u8>)| format!("{} {i}\n", base64(&token));
                    ranked(&content["@ranks"]).into_iter().enumerate().map(line).collect::<String>().into_bytes()
                }
                content if content.get("@tekken").is_some() => tekken(content),
                content => {
                    let mut content = content.clone();
                    if content["model"].get("@vocab").is_some() {
                        self.expand(&mut content["model"]);
                    }
                    content.to_string().into_bytes()
                }
            };
            fs::write(path, bytes).unwrap();
        }
        dir
    }

    fn expand(&self, model: &mut Value) {
        let model = model.as_object_mut().unwrap();
        let style = model.remove("@vocab").unwrap();
        let mut take = |key| model.remove(key).and_then(|v| v.as_array().cloned()).unwrap_or_default();
        let (extra, extra_merges) = (take("extra"), take("extra_merges"));
        let printable = |c: &char| matches!(c, '!'..='~' | '¡'..='¬' | '®'..='ÿ' | '\u{100}'..='\u{143}');
        let alphabet = ('!'..='\u{143}').filter(printable).map(String::from);
        let merged = self.merges.iter().map(|m| m.replace(' ', ""));
        let extra = extra.iter().map(|t| t.as_str().unwrap().to_owned());
        let mut vocab = serde_json::Map::new();
        for token in alphabet.chain(merged).chain(extra) {
            let id = vocab.len();
            vocab.entry(token).or_insert(id.into());
        }
        let mut merges: Vec<Value> = match style.as_str().unwrap() {
            "pairs" => self.merges.iter().map(|m| json!(m.split(' ').collect::<Vec<_>>())).collect(),
            "lines" => self.merges.iter().map(|m| json!(m)).collect(),
            _ => Vec::new(),
        };
        merges.extend(extra_merges);
        model.insert("vocab".into(), vocab.into());
        model.insert("merges".into(), merges.into());
    }
}

fn sentencepiece(spec: &Value) -> Vec<u8> {
    let byte_fallback = spec["byte_fallback"].as_bool().unwrap();
    let mut pieces: Vec<Piece> = Vec::new();
    for entry in spec["@pieces"].as_array().unwrap() {
        pieces.push(Piece {
            text: Some(entry[0].as_str().unwrap().as_bytes().to_vec()),
            score: Some(entry[1].as_f64().unwrap() as f32),
            kind: Some(entry[2].as_i64().unwrap() as i32),
        });
    }
    if byte_fallback {
        pieces.extend((0..=255).map(|b| piece(format!("<0x{b:02X}>").as_bytes(), 6)));
    }
    let flag = |key| spec["normalizer"].get(key).and_then(Value::as_bool);
    let charsmap = spec["normalizer"]["charsmap"].as_str().map(|text| super::ranks::base64(text).unwrap());
    ModelProto {
        pieces,
        trainer_spec: Some(TrainerSpec {
            byte_fallback: Some(byte_fallback),
            model_type: spec.get("model_type").map(|t| t.as_i64().unwrap() as i32),
        }),
        normalizer_spec: Some(NormalizerSpec {
            precompiled_charsmap: charsmap,
            add_dummy_prefix: flag("add_dummy_prefix"),
            remove_extra_whitespaces: flag("remove_extra_whitespaces"),
        }),
    }
    .encode_to_vec()
}

/// The 256 single bytes, then the tokens.
fn ranked(tokens: &Value) -> Vec<Vec<u8>> {
    let tokens = tokens.as_array().unwrap().iter().map(|t| t.as_str().unwrap().as_bytes().to_vec());
    (0..=255).map(|b| vec![b]).chain(tokens).collect()
}

fn tekken(spec: &Value) -> Vec<u8> {
    let entry = |(i, t): (usize, Vec<u8>)| json!({"rank": i, "token_bytes": base64(&t), "token_str": null});
    let vocab: Vec<Value> = ranked(&spec["@tekken"]).into_iter().enumerate().map(entry).collect();
    let mut json = spec.as_object().unwrap().clone();
    json.remove("@tekken");
    json.insert("vocab".into(), vocab.into());
    Value::Object(json).to_string().into_bytes()
}

fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// The configuration of a case as `read` takes it.
pub(super) fn config_of(dir: &Path) -> Value {
    let config = fs::File::open(dir.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_reader(config).unwrap();
    if let Some(nested) = config.get("text_config").and_then(Value::as_object).cloned() {
        config.as_object_mut().unwrap().extend(nested);
    }
    config
}

pub(super) fn reader_of(case: &Value) -> VocabReader {
    serde_json::from_value(case["reader"].clone()).unwrap()
}

fn read_case(dir: &Path, case: &Value, pre: Option<&str>) -> Result<Tokenizer, Error> {
    read(&TokenizerRequest { dir, config: &config_of(dir), reader: reader_of(case), pre })
}

/// Metadata in the form of `golden/expected.json`.
fn shown(metadata: &Metadata) -> Value {
    let entry = |(key, value): (&str, &MetaValue)| {
        let (types, value) = plain(value);
        let long = value.as_array().is_some_and(|a| a.len() > SHOWN);
        json!([key, types, if long { digest(&value) } else { value }])
    };
    metadata.iter().map(entry).collect()
}

fn plain(value: &MetaValue) -> (Value, Value) {
    match value {
        MetaValue::String(v) => (json!(["STRING"]), json!(v)),
        MetaValue::U32(v) => (json!(["UINT32"]), json!(v)),
        MetaValue::Bool(v) => (json!(["BOOL"]), json!(v)),
        MetaValue::Array(MetaArray::String(v)) => (json!(["ARRAY", "STRING"]), json!(v)),
        MetaValue::Array(MetaArray::I32(v)) => (json!(["ARRAY", "INT32"]), json!(v)),
        MetaValue::Array(MetaArray::U8(v)) => (json!(["ARRAY", "UINT8"]), json!(v)),
        MetaValue::Array(MetaArray::F32(v)) => {
            (json!(["ARRAY", "FLOAT32"]), v.iter().map(|x| json!(f64::from(*x))).collect())
        }
        other => panic!("no tokenizer key has this type: {other:?}"),
    }
}

/// sha256 of the value as Python's `json.dumps` prints it.
fn digest(value: &Value) -> Value {
    let text = match value {
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(Value::to_string).collect();
            format!("[{}]", items.join(", "))
        }
        scalar => scalar.to_string(),
    };
    json!(format!("sha256:{}", Sha256::of(text.as_bytes())))
}

fn legal_qa() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/legal-qa")
}

#[test]
fn special_ids_beyond_the_vocabulary_are_refused() {
    let cases = Cases::load();
    let case = cases.named("gpt_neox_class");
    let dir = cases.folder(case);
    fs::write(dir.path().join("config.json"), r#"{"model_type": "gpt_neox", "vocab_size": 300, "sep_token_id": 300}"#)
        .unwrap();
    let error = read_case(dir.path(), case, Some("olmo")).unwrap_err();
    assert_eq!(
        error.to_string().replace(&dir.path().display().to_string(), "DIR"),
        "the special tokens of `DIR` do not fit the vocabulary\n  key `tokenizer.ggml.seperator_token_id`\n  expected: an \
         id below 300\n  found:    300"
    );
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    assert!(error.hint().unwrap().contains("correct the id"));
}

#[test]
fn two_added_tokens_of_one_id_are_refused() {
    let cases = Cases::load();
    let case = cases.named("gpt_neox_class");
    let dir = cases.folder(case);
    let path = dir.path().join("tokenizer.json");
    let mut json: Value = serde_json::from_reader(fs::File::open(&path).unwrap()).unwrap();
    json["added_tokens"][2]["id"] = json!(285);
    fs::write(&path, json.to_string()).unwrap();
    let error = read_case(dir.path(), case, Some("olmo")).unwrap_err();
    assert_eq!(
        error.to_string().replace(&dir.path().display().to_string(), "DIR"),
        "cannot read `DIR/tokenizer.json`\n  token `  `\n  expected: an id of its own\n  found:    285, the id of \
         `<|padding|>`"
    );
}

#[test]
fn a_chat_template_that_does_not_parse_is_kept_with_a_warning() {
    let cases = Cases::load();
    let case = cases.named("chat_template_json");
    let dir = cases.folder(case);
    let with = |template: &str| {
        let text = json!({"chat_template": template, "tokenizer_class": "GPT2Tokenizer"}).to_string();
        fs::write(dir.path().join("tokenizer_config.json"), text).unwrap();
        let found = read_case(dir.path(), case, Some("gpt-2")).unwrap();
        assert_eq!(found.metadata.find("tokenizer.chat_template"), Some(&MetaValue::String(template.to_owned())));
        found.warnings
    };
    let sound =
        "{%- for m in messages %}{% generation %}{{ m['content'].strip() }}{% endgeneration %}{% break %}{% endfor %}";
    assert_eq!(with(sound), [""; 0]);
    assert_eq!(with("mistral-v3-tekken"), [""; 0]);
    assert_eq!(
        with("a\n{% if x %}b"),
        [
            "the chat template `tokenizer.chat_template` does not parse at line 2: unexpected end of input, expected end of \
          block; it is written as it is, and programs that use it will fail or fall back to another"
        ]
    );
}

#[test]
fn files_that_do_not_fit_a_family_are_refused() {
    let cases = Cases::load();
    let failing = |name: &str, config: Value, reader| {
        let dir = cases.folder(cases.named(name));
        let error = read(&TokenizerRequest { dir: dir.path(), config: &config, reader, pre: None }).unwrap_err();
        (error.to_string().replace(&dir.path().display().to_string(), "DIR"), error.kind())
    };
    let (text, kind) = failing("phi_3_with_its_sentencepiece_model", json!({"vocab_size": 10}), VocabReader::Phi3);
    assert_eq!(
        text,
        "the tokenizer `DIR/tokenizer.model` does not fit the model\n  expected: a vocabulary of 10 tokens\n  found:    11"
    );
    assert_eq!(kind, ErrorKind::Mismatch);
    let (text, _) = failing("internlm_2_base", json!({"vocab_size": 12}), VocabReader::InternLm2);
    assert!(text.contains("expected: a vocabulary of 12 tokens\n  found:    11"), "{text}");
    let (text, kind) = failing("gpt_neox_class", json!({"model_type": "bert"}), VocabReader::Bert);
    assert_eq!(
        text,
        "cannot convert the tokenizer `DIR/tokenizer.json`\n  key `model.type`\n  expected: WordPiece\n  found:    \"BPE\""
    );
    assert_eq!(kind, ErrorKind::Unsupported);
    let (text, _) = failing("baichuan", json!({}), VocabReader::XlmRoberta);
    assert!(text.contains("`tokenizer.json`"), "{text}");
    let (text, kind) = failing("gpt_neox_class", json!({"model_type": "glm4", "vocab_size": 300}), VocabReader::Glm4);
    assert!(text.starts_with("cannot name the pre-tokenizer") || text.contains("special token"), "{text}");
    assert!(matches!(kind, ErrorKind::Unsupported | ErrorKind::Malformed));
    let empty = tempfile::tempdir().unwrap();
    let config = json!({"vocab_size": 50280});
    let request = TokenizerRequest { dir: empty.path(), config: &config, reader: VocabReader::Mamba, pre: None };
    let error = read(&request).unwrap_err();
    assert!(matches!(error, Error::NoTokenizerFiles { .. }), "{error}");
    assert!(error.hint().unwrap().contains("gpt-neox-20b"));
}

#[test]
fn malformed_tekken_files_are_refused_with_their_place() {
    let cases = Cases::load();
    let case = cases.named("tekken_of_version_3");
    let refused = |change: &dyn Fn(&mut Value)| {
        let dir = cases.folder(case);
        let path = dir.path().join("tekken.json");
        let mut json: Value = serde_json::from_reader(fs::File::open(&path).unwrap()).unwrap();
        change(&mut json);
        fs::write(&path, json.to_string()).unwrap();
        let error = read_case(dir.path(), case, None).unwrap_err();
        error.to_string().replace(&dir.path().display().to_string(), "DIR")
    };
    let contains = |text: String, part: &str| assert!(text.contains(part), "{text}");
    contains(refused(&|j| j["config"]["version"] = "v4".into()), "one of v1, v2, v3, v7, v11, v13 and v15");
    contains(refused(&|j| j["config"]["default_vocab_size"] = json!(999)), "expected: a vocabulary of 977 tokens");
    contains(refused(&|j| j["config"]["default_num_special_tokens"] = json!(5)), "expected: a vocabulary of 5 tokens");
    contains(refused(&|j| j["vocab"][256]["rank"] = json!(1)), "key `vocab[256]`");
    contains(refused(&|j| j["vocab"][3]["token_bytes"] = "AA==".into()), "key `vocab[3]`");
    contains(refused(&|j| j["vocab"][257] = json!({"rank": 257, "token_bytes": "dGg="})), "bytes of its own");
    contains(refused(&|j| j["vocab"][257]["token_bytes"] = "eHl6".into()), "bytes that two other tokens make up");
}
