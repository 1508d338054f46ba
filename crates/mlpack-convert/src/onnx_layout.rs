//! Where graphs lie in a directory, and what each runtime wants to find beside them.
//!
//! ```text
//! transformers.js   config.json with `transformers.js_config`   onnx/model.onnx   onnx/model.onnx_data[_1…]   onnx/model_q4.onnx …
//! plain             config.json                                 model.onnx        model.onnx_data             model_q4.onnx …
//! genai             config.json, genai_config.json              model.onnx        model.onnx_data
//! ```

use crate::carry::Carried;
use crate::{Computation, Error, Precision};
use mlpack_arch::Decoder;
use mlpack_tensor::nearest;
use serde_json::{Map, Value, json};

/// Bytes of the longest file that a browser can hold in one array.
const BROWSER_LIMIT: u64 = (1 << 31) - (1 << 16);

/// The runtime that a directory is laid out for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// transformers.js 4: graphs in a folder, and config.json says which have files of weights.
    TransformersJs,
    /// ONNX Runtime itself, and optimum.
    Plain,
    /// onnxruntime-genai.
    Genai,
}

impl Layout {
    const ALL: [Layout; 3] = [Layout::TransformersJs, Layout::Plain, Layout::Genai];

    /// The layout of that name.
    ///
    /// # Errors
    /// [`Error::Option`] with the most similar name.
    pub fn parse(name: &str) -> Result<Layout, Error> {
        let found = Layout::ALL.into_iter().find(|layout| layout.name() == name);
        found.ok_or_else(|| Error::Option {
            option: "--layout",
            value: name.to_owned(),
            expected: "transformers.js, plain or genai",
            reason: match nearest(name, Layout::ALL.map(Layout::name), 1).first() {
                Some(nearest) => {
                    format!("`{}` is no such layout; did you mean `{nearest}`?", mlpack_tensor::Escaped(name))
                }
                None => format!("`{}` is no such layout", mlpack_tensor::Escaped(name)),
            },
        })
    }

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Layout::TransformersJs => "transformers.js",
            Layout::Plain => "plain",
            Layout::Genai => "genai",
        }
    }

    /// The folder of the graphs, with a slash where it is not the directory itself.
    pub(crate) const fn folder(self) -> &'static str {
        match self {
            Layout::TransformersJs => "onnx/",
            Layout::Plain | Layout::Genai => "",
        }
    }

    /// The most bytes of a file of weights.
    pub(crate) const fn data_limit(self) -> u64 {
        match self {
            Layout::TransformersJs => BROWSER_LIMIT,
            Layout::Plain | Layout::Genai => u64::MAX,
        }
    }

    /// Refuses what the runtime cannot do.
    pub(crate) fn check(self, computation: &Computation, precisions: &[Precision]) -> Result<(), Error> {
        let refused = |what| Err(Error::RuntimeLayout { layout: self.name(), what });
        match (self, computation) {
            (Layout::Genai, Computation::Encoder(_)) => refused("an encoder: it generates text"),
            (Layout::Genai, _) if precisions.len() > 1 => refused("several precisions in one directory"),
            _ => Ok(()),
        }
    }

    /// Adds what the runtime reads to the files beside the graphs. `graphs` are their names, each with its precision and
    /// the number of its files of weights.
    pub(crate) fn complete(
        self,
        computation: &Computation,
        graphs: &[(String, Precision, usize)],
        files: &mut Vec<Carried>,
    ) -> Result<(), Error> {
        match (self, computation) {
            (Layout::TransformersJs, _) => transformers_js(graphs, files),
            (Layout::Genai, Computation::Decoder(_, decoder)) => genai(decoder, graphs, files),
            (Layout::Plain, _) | (Layout::Genai, Computation::Encoder(_)) => Ok(()),
        }
    }
}

/// Says in config.json how many files of weights each graph has (`transformers.js_config`, transformers.js 4.3.1), and
/// which precision is taken where nobody asks for one and there is no choice.
fn transformers_js(graphs: &[(String, Precision, usize)], files: &mut [Carried]) -> Result<(), Error> {
    const KEY: &str = "transformers.js_config";
    let Some(config) = files.iter_mut().find(|file| file.name() == "config.json") else { return Ok(()) };
    let Value::Object(mut object) = config.json()? else { return Ok(()) };
    let mut own = object.get(KEY).and_then(Value::as_object).cloned().unwrap_or_default();
    let counts: Map<String, Value> = graphs
        .iter()
        .map(|(name, _, count)| (name.rsplit('/').next().unwrap_or(name).to_owned(), json!(count)))
        .collect();
    own.insert("use_external_data_format".to_owned(), counts.into());
    if let [(name, precision, _)] = graphs
        && let Some(dtype) = precision.dtype(name)
    {
        own.insert("dtype".to_owned(), json!(dtype));
    }
    object.insert(KEY.to_owned(), own.into());
    config.replace(text(&object.into()));
    Ok(())
}

/// Model types that onnxruntime-genai 0.18 knows as decoders. It computes the same for all of them, but for Phi-3, where
/// it reads the text again when rotation changes.
const GENAI_TYPES: &[&str] = &[
    "gemma",
    "gemma2",
    "gemma3_text",
    "granite",
    "llama",
    "mistral",
    "olmo",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
];

/// genai_config.json (onnxruntime-genai 0.18).
fn genai(decoder: &Decoder, graphs: &[(String, Precision, usize)], files: &mut Vec<Carried>) -> Result<(), Error> {
    let object = |name: &str| -> Result<Map<String, Value>, Error> {
        let file = files.iter().find(|file| file.name() == name);
        Ok(match file.map(Carried::json).transpose()? {
            Some(Value::Object(object)) => object,
            _ => Map::new(),
        })
    };
    let (config, generation) = (object("config.json")?, object("generation_config.json")?);
    let field = |name: &str| {
        let value = generation.get(name).or_else(|| config.get(name));
        value.filter(|value| !value.is_null()).cloned()
    };
    let end = field("eos_token_id");
    let first_end = match &end {
        Some(Value::Array(list)) => list.first().cloned(),
        other => other.clone(),
    };
    let known = |name: &str| GENAI_TYPES.iter().copied().find(|known| *known == name);
    let model_type = config.get("model_type").and_then(Value::as_str).and_then(known).unwrap_or("llama");
    let filename = graphs.first().map(|(name, ..)| name.as_str());
    let cache = |direction: &str, kind: &str| json!(format!("{direction}.%d.{kind}"));
    let mut model = json!({
        "context_length": decoder.context,
        "decoder": {
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "filename": filename,
            "head_size": decoder.head_dim,
            "hidden_size": decoder.hidden,
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "position_ids": "position_ids",
                "past_key_names": cache("past_key_values", "key"),
                "past_value_names": cache("past_key_values", "value"),
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": cache("present", "key"),
                "present_value_names": cache("present", "value"),
            },
            "num_attention_heads": decoder.heads,
            "num_hidden_layers": decoder.layers.len(),
            "num_key_value_heads": decoder.kv_heads,
        },
        "type": model_type,
        "vocab_size": decoder.vocabulary,
    });
    let padding = field("pad_token_id").or(first_end);
    for (name, value) in [("bos_token_id", field("bos_token_id")), ("eos_token_id", end), ("pad_token_id", padding)] {
        if let (Value::Object(model), Some(value)) = (&mut model, value) {
            model.insert(name.to_owned(), value);
        }
    }
    let asked = |name: &str, default: Value| generation.get(name).filter(|v| !v.is_null()).cloned().unwrap_or(default);
    let config = json!({
        "model": model,
        "search": {
            "do_sample": asked("do_sample", json!(false)),
            "max_length": decoder.context,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            // The cache grows with the text: what comes out is as long as what there is to see.
            "past_present_share_buffer": false,
            "repetition_penalty": asked("repetition_penalty", json!(1.0)),
            "temperature": asked("temperature", json!(1.0)),
            "top_k": asked("top_k", json!(50)),
            "top_p": asked("top_p", json!(1.0)),
        },
    });
    files.retain(|file| file.name() != "genai_config.json");
    files.push(Carried::text("genai_config.json", text(&config)));
    files.sort_by(|a, b| a.name().cmp(b.name()));
    Ok(())
}

/// JSON with two spaces for each level, as transformers writes it.
fn text(value: &Value) -> String {
    format!("{value:#}\n")
}
