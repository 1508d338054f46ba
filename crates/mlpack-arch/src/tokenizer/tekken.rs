//! Tekken vocabularies of mistral-common (`tekken.json`), for folders without a `tokenizer.json` (llama.cpp b11434,
//! `conversion/base.py`, `_set_vocab_mistral`, and `gguf-py/gguf/vocab.py`, `MistralVocab`; mistral-common 1.13,
//! `tokens/tokenizers/tekken.py`).
//!
//! The special tokens come first; a token of rank r has the id `default_num_special_tokens` + r.
//!
//! **Known difference.** For tokenizers of version 11 and 13 the converter writes one of two chat templates that come
//! with it. They are not part of mlpack: the folder's own `chat_template.jinja` is written, or none, with a warning.

use super::files::Object;
use super::ranks::{Ranks, base64, byte_text};
use super::spm::token_type::{CONTROL, NORMAL};
use super::{Error, Input};
use mlpack_tensor::{MetaValue, Metadata};
use serde_json::Value;

pub(super) const FILE: &str = "tekken.json";
/// Bytes of the largest file that is read (Mistral NeMo: 15 MB).
const MAX_BYTES: u64 = 64 << 20;

/// The special tokens of files that do not list theirs (versions up to 7).
const SPECIAL: [&str; 20] = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
];

/// A vocabulary as `tekken.json` has it.
pub(super) struct Tekken {
    version: u64,
    /// The regex that cuts a text before bytes are joined.
    pub(super) pattern: String,
    /// Special tokens by id.
    special: Vec<String>,
    /// Ids of special tokens by text, as the file numbers them.
    special_ids: Vec<(String, u64)>,
    /// The other tokens by rank.
    tokens: Vec<Vec<u8>>,
    pub(super) ranks: Ranks,
}

impl Tekken {
    /// Reads the file; `None` when it is not there.
    pub(super) fn open(input: &mut Input<'_>) -> Result<Option<Tekken>, Error> {
        let Some(bytes) = input.files.bytes(FILE, MAX_BYTES)? else { return Ok(None) };
        let json = input.files.parse_object(FILE, bytes)?;
        let at = |key: &str| json.get("config").and_then(|c| c.get(key));
        let wrong = |key: &str, expected, found: Option<&Value>| {
            input.files.wrong_type(FILE, key, expected, found.unwrap_or(&Value::Null))
        };
        let version = at("version").and_then(Value::as_str).and_then(|v| v.strip_prefix('v')?.parse().ok());
        let Some(version) = version.filter(|v| matches!(v, 1 | 2 | 3 | 7 | 11 | 13 | 15)) else {
            return Err(wrong("config.version", "one of v1, v2, v3, v7, v11, v13 and v15", at("version")));
        };
        let count = |key: &str| {
            let value = at(key);
            let found = value.and_then(Value::as_u64);
            let found = found.ok_or_else(|| wrong(&format!("config.{key}"), "a number of tokens", value))?;
            input.checked_size(found)
        };
        let (size, special_count) = (count("default_vocab_size")?, count("default_num_special_tokens")?);
        let pattern = at("pattern").and_then(Value::as_str);
        let pattern = pattern.ok_or_else(|| wrong("config.pattern", "a regex", at("pattern")))?.to_owned();
        if special_count > size {
            return Err(wrong(
                "config.default_num_special_tokens",
                "at most default_vocab_size",
                at("default_num_special_tokens"),
            ));
        }
        let (special, special_ids) = special_tokens(input, &json, version, special_count)?;

        let list = json.get("vocab").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let wanted = (size - special_count) as usize;
        if list.len() < wanted {
            let (path, found) = (input.files.dir.join(FILE), list.len() as u64);
            return Err(Error::SizesDiffer { path, vocab_size: wanted as u64, found });
        }
        let (mut tokens, mut ranks) = (Vec::with_capacity(wanted), Ranks::default());
        for (rank, entry) in list.iter().take(wanted).enumerate() {
            let bytes = entry.get("token_bytes").and_then(Value::as_str).and_then(base64);
            let in_place = entry.get("rank").and_then(Value::as_u64) == Some(rank as u64);
            let Some(bytes) = bytes.filter(|b| in_place && (rank > 255 || *b == [rank as u8])) else {
                return Err(wrong(
                    &format!("vocab[{rank}]"),
                    "bytes in base64, ranks in order, single bytes first",
                    Some(entry),
                ));
            };
            if let Some(first) = ranks.insert(bytes.clone(), rank as u32) {
                let key = format!("vocab[{rank}]");
                return Err(input.files.wrong_type(FILE, key, "bytes of its own", &Value::from(first)));
            }
            tokens.push(bytes);
        }
        Ok(Some(Tekken { version, pattern, special, special_ids, tokens, ranks }))
    }

    /// The number of special tokens: what ranks are moved up by.
    pub(super) fn special_count(&self) -> u32 {
        self.special.len() as u32
    }

    fn id(&self, input: &Input<'_>, token: &str) -> Result<u32, Error> {
        let id = self.special_ids.iter().find(|(text, _)| text == token).and_then(|(_, id)| u32::try_from(*id).ok());
        id.ok_or_else(|| Error::NoSpecialToken { dir: input.files.dir.to_owned(), token: token.to_owned() })
    }

    /// Every way to join two tokens into a third, in the order of the third's rank, then of the first's and the
    /// second's.
    fn merges(&self, input: &Input<'_>) -> Result<Vec<String>, Error> {
        let mut merges = Vec::with_capacity(self.tokens.len());
        for (rank, token) in self.tokens.iter().enumerate().skip(256) {
            let halves = (1..token.len()).map(|at| token.split_at(at));
            let mut found: Vec<(u32, u32, usize)> = halves
                .filter_map(|(left, right)| Some((self.ranks.rank(left)?, self.ranks.rank(right)?, left.len())))
                .collect();
            if found.is_empty() {
                let (key, found) = (format!("vocab[{rank}]"), Value::from(byte_text(token)));
                return Err(input.files.wrong_type(FILE, key, "bytes that two other tokens make up", &found));
            }
            found.sort_unstable();
            for (_, _, at) in found {
                let (left, right) = token.split_at(at);
                merges.push(format!("{} {}", byte_text(left), byte_text(right)));
            }
        }
        Ok(merges)
    }
}

/// Reads `tekken.json` and writes its keys.
pub(super) fn read(input: &mut Input<'_>, metadata: &mut Metadata) -> Result<(), Error> {
    let Some(tekken) = Tekken::open(input)? else {
        return Err(Error::NoVocabulary { dir: input.files.dir.to_owned(), looked_for: vec![FILE] });
    };
    let merges = tekken.merges(input)?;
    metadata.set("tokenizer.ggml.model", "gpt2".into());
    metadata.set("tokenizer.ggml.pre", input.pre.unwrap_or("tekken").into());
    if !merges.is_empty() {
        metadata.set("tokenizer.ggml.merges", merges.into());
    }
    for (key, token) in [("bos", "<s>"), ("eos", "</s>"), ("unknown", "<unk>"), ("padding", "<pad>")] {
        metadata.set(format!("tokenizer.ggml.{key}_token_id"), MetaValue::U32(tekken.id(input, token)?));
    }
    let (special, template) = (tekken.special.len(), template(input, tekken.version)?);
    let mut tokens = tekken.special;
    tokens.extend(tekken.tokens.iter().map(|token| byte_text(token)));
    let size = tokens.len();
    let types: Vec<i32> = (0..size).map(|id| if id < special { CONTROL } else { NORMAL }).collect();
    metadata.set("tokenizer.ggml.tokens", tokens.into());
    metadata.set("tokenizer.ggml.scores", MetaValue::from(vec![0i32; size]));
    metadata.set("tokenizer.ggml.token_type", MetaValue::from(types));
    input.vocab_size = Some(size as u64);
    metadata.set("tokenizer.ggml.add_bos_token", MetaValue::Bool(true));
    metadata.set("tokenizer.ggml.add_eos_token", MetaValue::Bool(false));
    if let Some(template) = template {
        metadata.set("tokenizer.chat_template", template.into());
    }
    Ok(())
}

/// The special tokens by id, filled up with `<SPECIAL_n>`, and the ids that the file gives them.
#[expect(clippy::type_complexity, reason = "two lists that are made together")]
fn special_tokens(
    input: &Input<'_>,
    json: &Object,
    version: u64,
    count: u64,
) -> Result<(Vec<String>, Vec<(String, u64)>), Error> {
    let mut ids: Vec<(String, u64)> = match json.get("special_tokens").filter(|v| !v.is_null()) {
        None if version > 7 => {
            return Err(input.files.wrong_type(FILE, "special_tokens", "the special tokens", &Value::Null));
        }
        None => SPECIAL.iter().zip(0..).map(|(token, id)| ((*token).to_owned(), id)).collect(),
        Some(list) => {
            let token = |v: &Value| Some((v.get("token_str")?.as_str()?.to_owned(), v.get("rank")?.as_u64()?));
            let list = list.as_array().and_then(|list| list.iter().map(token).collect::<Option<Vec<_>>>());
            list.ok_or_else(|| {
                let found = json.get("special_tokens").unwrap_or(&Value::Null);
                input.files.wrong_type(FILE, "special_tokens", "objects with token_str and rank", found)
            })?
        }
    };
    ids.extend((ids.len() as u64..count).map(|id| (format!("<SPECIAL_{id}>"), id)));
    for (i, (token, id)) in ids.iter().enumerate() {
        if let Some((first, _)) = ids[..i].iter().find(|(other, other_id)| other == token || other_id == id) {
            let (path, first, second) = (input.files.dir.join(FILE), first.clone(), token.clone());
            return Err(Error::SharedId { path, id: *id, first, second });
        }
    }
    if ids.len() as u64 != count {
        let (path, found) = (input.files.dir.join(FILE), ids.len() as u64);
        return Err(Error::SizesDiffer { path, vocab_size: count, found });
    }
    Ok((ids.iter().map(|(token, _)| token.clone()).collect(), ids))
}

/// The chat template: names that llama.cpp knows for the old versions.
fn template(input: &mut Input<'_>, version: u64) -> Result<Option<String>, Error> {
    let known = match version {
        1 => "mistral-v1",
        3 => "mistral-v3-tekken",
        7 => "mistral-v7-tekken",
        _ => {
            let own = input.files.text("chat_template.jinja")?;
            let written = if own.is_some() { "that of `chat_template.jinja` is" } else { "none is" };
            input.warnings.push(format!(
                "mlpack has no chat template for tekken version {version}, where llama.cpp's converter brings its own: \
                 {written} written"
            ));
            return Ok(own);
        }
    };
    Ok(Some(known.to_owned()))
}
