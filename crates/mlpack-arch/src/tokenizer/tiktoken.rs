//! The vocabulary of Qwen 1: `qwen.tiktoken`, ranks of byte strings in base64 (llama.cpp b11434, `conversion/base.py`,
//! `_set_vocab_qwen`). Its special tokens and its regex are in Qwen's own code, `tokenization_qwen.py`. Other
//! `.tiktoken` files come with other code, which mlpack does not run.

use super::pre::{self, Structure};
use super::ranks::{Ranks, base64, byte_text};
use super::special::{STANDARD_TYPES, SpecialVocab, Wanted};
use super::spm::token_type::{CONTROL, NORMAL, UNUSED};
use super::{Error, Input, auto};
use mlpack_tensor::{MetaValue, Metadata};
use serde_json::{Value, json};

pub(super) const FILE: &str = "qwen.tiktoken";
const MAX_BYTES: u64 = 64 << 20;

/// The tokens of a file.
pub(super) struct Tiktoken {
    pub(super) ranks: Ranks,
    /// Tokens by rank.
    tokens: Vec<Vec<u8>>,
}

/// Reads `qwen.tiktoken`; `None` when it is not there.
pub(super) fn open(input: &mut Input<'_>) -> Result<Option<Tiktoken>, Error> {
    let Some(bytes) = input.files.bytes(FILE, MAX_BYTES)? else { return Ok(None) };
    let (mut ranks, mut tokens) = (Ranks::default(), Vec::new());
    for (i, line) in bytes.split(|b| *b == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
        let text = std::str::from_utf8(line).unwrap_or_default().trim_end_matches('\r');
        let parsed = text.split_once(' ').and_then(|(token, rank)| Some((base64(token)?, rank.parse::<u32>().ok()?)));
        let next = tokens.len() as u32;
        match parsed.filter(|(token, rank)| *rank == next && ranks.rank(token).is_none()) {
            Some((token, rank)) => {
                ranks.insert(token.clone(), rank);
                tokens.push(token);
            }
            None => {
                let found = Value::from(text);
                let expected = "a new token in base64 and the next rank";
                return Err(input.files.wrong_type(FILE, format!("line {}", i + 1), expected, &found));
            }
        }
    }
    Ok(Some(Tiktoken { ranks, tokens }))
}

/// Reads `qwen.tiktoken` and writes its keys.
pub(super) fn read(input: &mut Input<'_>, metadata: &mut Metadata) -> Result<(), Error> {
    let Some(Tiktoken { ranks, tokens }) = open(input)? else {
        let (dir, looked_for) = (input.files.dir.to_owned(), vec!["tokenizer.json", FILE]);
        return Err(Error::NoVocabulary { dir, looked_for });
    };
    let special: Vec<String> = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        .map(str::to_owned)
        .into_iter()
        .chain((0..205).map(|i| format!("<|extra_{i}|>")))
        .collect();
    let all = (tokens.len() + special.len()) as u64;
    let size = input.model_size()?.unwrap_or(all);
    if all > size {
        return Err(Error::SizesDiffer { path: input.files.dir.join(FILE), vocab_size: size, found: all });
    }
    let ids = encode(input, &ranks, pre::CHECK_TEXT)?;
    let pre = pre::name(input, &ids, &structure(), auto::ModelKind::Bpe)?;
    let mut merges = Vec::with_capacity(tokens.len());
    for (rank, token) in tokens.iter().enumerate().filter(|(_, token)| token.len() > 1) {
        let parts = ranks.parts(token, rank as u32);
        let [left, _] = parts[..] else {
            let (key, found) = (format!("rank {rank}"), Value::from(byte_text(token)));
            return Err(input.files.wrong_type(FILE, key, "bytes that two tokens of lower rank make up", &found));
        };
        let (left, right) = token.split_at(left);
        merges.push(format!("{} {}", byte_text(left), byte_text(right)));
    }
    let end = tokens.len() as u32;
    let mut texts: Vec<String> = tokens.iter().map(|token| byte_text(token)).collect();
    let mut types = vec![NORMAL; texts.len()];
    types.resize(all as usize, CONTROL);
    texts.extend(special);
    for id in all..size {
        texts.push(format!("[PAD{id}]"));
        types.push(UNUSED);
    }
    metadata.set("tokenizer.ggml.model", "gpt2".into());
    metadata.set("tokenizer.ggml.pre", pre.into());
    metadata.set("tokenizer.ggml.tokens", texts.into());
    metadata.set("tokenizer.ggml.token_type", MetaValue::from(types));
    let mut vocab = SpecialVocab::load(input, &Wanted { merges: false, types: STANDARD_TYPES, vocab_size: None })?;
    vocab.set_merges(merges);
    if vocab.has_no_ids() {
        vocab.set_default_id("bos", end);
        vocab.set_default_id("eos", end);
    }
    vocab.set_default_id("unk", end);
    vocab.write(metadata, &mut input.warnings);
    Ok(())
}

/// The ids of a text without special tokens, as Qwen's code gives them.
pub(super) fn encode(input: &Input<'_>, ranks: &Ranks, text: &str) -> Result<Vec<u32>, Error> {
    let path = input.files.dir.join(FILE);
    let regex = auto::guarded(&path, || tokenizers::utils::SysRegex::new(auto::QWEN2))?;
    let mut ids = Vec::new();
    for (start, end) in regex.find_iter(text) {
        ids.extend(ranks.encode(&text.as_bytes()[start..end]));
    }
    Ok(ids)
}

/// What `tokenizer.json` would say of it.
fn structure() -> Structure {
    let split = json!({"type": "Split", "pattern": {"Regex": auto::QWEN2}, "behavior": "Isolated", "invert": false});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false});
    let json = json!({
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes]},
    });
    Structure::of(json.as_object().expect("json! with braces makes an object"))
}
