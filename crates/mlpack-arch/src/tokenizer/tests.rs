//! The readers against llama.cpp b11434: `golden/expected.json` is what its converter writes for the folders of
//! `golden/cases.json` (made by `golden/make.py`), and the legal-qa fixture has goldens of its own. Then hostile files.

use super::spm::{ModelProto, Piece, TrainerSpec};
use super::*;
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
    fs::write(dir.path().join("tokenizer_config.json"), r#"{"tokenizer_class": "CohereTokenizerFast"}"#).unwrap();
    let warnings = read_case(dir.path(), case, Some("gpt-2")).unwrap().warnings;
    assert!(warnings.iter().any(|w| w.contains("`CohereTokenizer`")), "{warnings:?}");
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
    assert!(matches!(read(&request), Err(Error::UnsupportedFormat { .. })));
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
    let trainer_spec = Some(TrainerSpec { byte_fallback: Some(byte_fallback) });
    ModelProto { pieces, trainer_spec }.encode_to_vec()
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
    assert!(matches!(refused(&|j| j["model"]["type"] = "Unigram".into(), none()), Error::NotBpe { .. }));
    assert!(matches!(refused(&|j| j["model"] = json!(7), none()), Error::NotBpe { .. }));
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
struct Cases {
    merges: Vec<String>,
    list: Vec<Value>,
}

use serde_json::Value;

impl Cases {
    fn load() -> Cases {
        let json: Value = serde_json::from_str(include_str!("golden/cases.json")).unwrap();
        let merges = json["merges"].as_array().unwrap().iter().map(|m| m.as_str().unwrap().to_owned()).collect();
        Cases { merges, list: json["cases"].as_array().unwrap().clone() }
    }

    fn named(&self, name: &str) -> &Value {
        self.list.iter().find(|case| case["name"] == name).unwrap()
    }

    /// Writes the files of a case, as `golden/make.py` does.
    fn folder(&self, case: &Value) -> tempfile::TempDir {
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
    model(byte_fallback, pieces)
}

fn read_case(dir: &Path, case: &Value, pre: Option<&str>) -> Result<Tokenizer, Error> {
    let config = fs::File::open(dir.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_reader(config).unwrap();
    if let Some(nested) = config.get("text_config").and_then(Value::as_object).cloned() {
        config.as_object_mut().unwrap().extend(nested);
    }
    let reader = match case["reader"].as_str().unwrap() {
        "llama" => VocabReader::Llama,
        "qwen" => VocabReader::Qwen,
        _ => VocabReader::Bpe,
    };
    read(&TokenizerRequest { dir, config: &config, reader, pre })
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
