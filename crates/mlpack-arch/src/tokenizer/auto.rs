//! The tokenizer that `AutoTokenizer.from_pretrained` of transformers 5.23.0 makes of a folder with a `tokenizer.json`.
//!
//! Since version 5 a class may rebuild the tokenizer: it takes vocabulary, merges and post-processor from the file and
//! brings its own normalizer, pre-tokenizer and decoder. Which class is loaded depends on `tokenizer_config.json`, on
//! the model type and on two tables (`data/transformers-classes.tsv`, `data/transformers-model-types.tsv`). The classes
//! of [`Class`] are rebuilt here as they are there; any other class that rebuilds is warned about and the file is used
//! as it stands. Afterwards both add the tokens that the configuration names.

mod class;
mod options;

pub(super) use class::QWEN2;

use super::pre::Structure;
use super::{Error, Input};
use class::{Class, rebuild, resolve};
use options::Options;
use serde_json::Value;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::rc::Rc;
use tokenizers::{AddedToken, PostProcessorWrapper, Tokenizer};

/// The kinds of model that a `tokenizer.json` can hold, as its `model.type` names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ModelKind {
    Bpe,
    WordPiece,
    Unigram,
}

impl ModelKind {
    fn name(self) -> &'static str {
        match self {
            ModelKind::Bpe => "BPE",
            ModelKind::WordPiece => "WordPiece",
            ModelKind::Unigram => "Unigram",
        }
    }
}

/// A tokenizer as transformers runs it.
pub(super) struct Loaded {
    pub(super) tokenizer: Tokenizer,
    /// `all_special_tokens`: the named special tokens, then the extra ones, each once.
    pub(super) specials: Vec<String>,
    pub(super) structure: Structure,
    /// `add_prefix_space` of the Python object.
    pub(super) add_prefix_space: bool,
}

impl Loaded {
    /// The ids of the added tokens by content (`get_added_vocab`).
    pub(super) fn added(&self) -> HashMap<String, u32> {
        self.tokenizer.get_added_tokens_decoder().into_iter().map(|(id, token)| (token.content, id)).collect()
    }
}

/// Loads the folder's tokenizer. `tokenizer.json` must be there and hold a model of that kind.
/// A second time it is the same one: making it is most of the work of reading a vocabulary.
pub(super) fn load(input: &mut Input<'_>, kind: ModelKind) -> Result<Rc<Loaded>, Error> {
    match &input.loaded {
        Some((of_kind, loaded)) if *of_kind == kind => Ok(loaded.clone()),
        _ => {
            let loaded = Rc::new(make(input, kind)?);
            input.loaded = Some((kind, loaded.clone()));
            Ok(loaded)
        }
    }
}

fn make(input: &mut Input<'_>, kind: ModelKind) -> Result<Loaded, Error> {
    let path = input.files.dir.join(FILE);
    let json = input.files.tokenizer_json.as_ref().ok_or_else(|| Error::NoVocabulary {
        dir: input.files.dir.to_owned(),
        looked_for: vec!["tokenizer.model", FILE],
    })?;
    let found = json.get("model").and_then(|m| m.get("type")).unwrap_or(&Value::Null);
    if found.as_str() != Some(kind.name()) {
        let found = super::files::describe(found);
        return Err(Error::WrongModel { path, expected: kind.name(), found });
    }
    input.files.check_added_tokens()?;
    let class = resolve(input, kind);
    let options = Options::read(input, class)?;
    let json = input.files.tokenizer_json.as_ref().expect("checked above");
    let rebuilt = match class {
        Class::File => None,
        class => Some(rebuild(class, json, &options, input)?),
    };
    let structure = Structure::of(rebuilt.as_ref().unwrap_or(json));
    let text = match &rebuilt {
        None => &input.files.tokenizer_json_text,
        Some(json) => &serde_json::to_string(json).expect("a JSON value is always text"),
    };
    let specials = options.all_special_tokens();
    let tokenizer = guarded(&path, || {
        let mut tokenizer: Tokenizer = text.parse()?;
        tokenizer.with_truncation(None)?;
        tokenizer.with_padding(None);
        tokenizer.set_encode_special_tokens(options.split_special_tokens);
        let tokens = options.tokens_to_add(&tokenizer);
        tokenizer.add_tokens(tokens)?;
        if class == Class::Qwen2 {
            tokenizer.add_tokens(specials.iter().map(|s| AddedToken::from(s.clone(), true)))?;
        }
        if let Some(processor) = class.post_processor(&options, |token| tokenizer.token_to_id(token)) {
            let processor: PostProcessorWrapper = serde_json::from_value(processor)?;
            tokenizer.with_post_processor(Some(processor));
        }
        Ok(tokenizer)
    })?;
    Ok(Loaded { tokenizer, specials, structure, add_prefix_space: options.prefix_space(class) })
}

/// Runs the tokenizers library. It panics on some malformed files (a template that uses a token it does not define, a
/// truncated charsmap, …); such a panic is the file's fault and becomes an error. The tokenizer at work is given up.
pub(super) fn guarded<T>(path: &Path, run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, Error> {
    let refused = |reason| Err(Error::Refused { path: path.to_owned(), reason });
    match std::panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => refused(error.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            refused(format!("a panic: {text}"))
        }
    }
}

const FILE: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
