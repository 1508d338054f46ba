//! A model directory: its config, its family, and the metadata of the GGUF file that it becomes.

use crate::extra::{llama3_rope_freqs, longrope_factors};
use crate::family::{Class, ExtraKind, RefusedField};
use crate::parameters::rope_parameters;
use crate::tensors::Quantization;
use crate::tokenizer::{self, TokenizerRequest};
use crate::{Config, Error, ExtraTensor, Families, Family, ParameterCount, general, json, parameters, pooling};
use mlpack_tensor::Metadata;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A model directory whose architecture is known.
#[derive(Clone, Debug)]
pub struct Model {
    dir: PathBuf,
    config: Config,
    family: Arc<Family>,
    class: Class,
    quantization: Quantization,
}

/// What the metadata of a GGUF file depends on besides the model directory.
#[derive(Clone, Copy, Debug)]
pub struct MetadataRequest<'a> {
    /// The name that the converter would find as the name of the directory.
    pub name: &'a str,
    /// The value of `general.file_type` (llama.cpp's `LlamaFileType`).
    pub file_type: u32,
    /// The parameters of the tensors that are written.
    pub parameters: ParameterCount,
    /// A pre-tokenizer name that the user insists on.
    pub pre: Option<&'a str>,
    /// Whether the model card describes the weights that are written; the base's card does not once an adapter is merged.
    pub card: bool,
}

/// The metadata of a GGUF file and where it comes from.
#[derive(Clone, Debug)]
pub struct ModelMetadata {
    /// The keys, in the converter's order.
    pub entries: Metadata,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// The files that were read, config.json first.
    pub files: Vec<PathBuf>,
}

/// Fields of configs that hold another model's config, and fields that only other kinds of models have.
const UNSUPPORTED_FIELDS: &[(&str, &str)] = &[
    ("text_config", "a model of several parts, such as a vision model, is not handled"),
    ("llm_config", "a model of several parts, such as a vision model, is not handled"),
    ("lm_config", "a model of several parts, such as a vision model, is not handled"),
    ("thinker_config", "a model of several parts, such as a vision model, is not handled"),
    ("language_config", "a model of several parts, such as a vision model, is not handled"),
    ("lfm", "a model of several parts, such as a vision model, is not handled"),
    ("configuration_files", "a config per library version is not handled"),
    ("transformer_layer_config", "a draft model for speculative decoding is not handled"),
    ("draft_vocab_size", "a draft model for speculative decoding is not handled"),
];

/// `GGML_QNT_VERSION`.
const QUANTIZATION_VERSION: u32 = 2;

/// Bytes of the largest model card that is read.
const CARD_LIMIT: u64 = 16 << 20;

impl Model {
    /// Opens a model directory: reads its config.json and finds its family.
    ///
    /// # Errors
    /// When the config cannot be read, and when the model is one that mlpack does not handle: an unknown architecture,
    /// a quantized checkpoint, a model of several parts, Mistral's own file layout.
    pub fn open(dir: &Path, families: &Families) -> Result<Model, Error> {
        let config = Config::open(dir)?;
        for &(field, what) in UNSUPPORTED_FIELDS {
            if config.raw().get(field).is_some_and(json::is_truthy) {
                return Err(Error::UnsupportedConfig { path: config.path().to_owned(), field, what });
            }
        }
        refuse_quantized(dir)?;
        let class = config.class()?;
        let Some(family) = families.find_shared(class) else {
            return Err(Error::UnknownArchitecture {
                path: config.path().to_owned(),
                class: class.to_owned(),
                nearest: families.nearest_classes(class),
            });
        };
        let class = family.classes.get(class).cloned().unwrap_or_default();
        let config = config.complete(families)?;
        refuse_fields(family, &config)?;
        let quantization = Quantization::of(&config, family)?;
        Ok(Model { dir: dir.to_owned(), family: family.clone(), class, config, quantization })
    }

    /// The model directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The config, completed with defaults.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The value of `general.architecture`.
    pub fn arch(&self) -> &str {
        self.family.arch()
    }

    /// The description that the model is converted by.
    pub fn family(&self) -> &Family {
        &self.family
    }

    pub(crate) fn quantization(&self) -> Quantization {
        self.quantization
    }

    pub(crate) fn class(&self) -> &Class {
        &self.class
    }

    /// The tensors that are made from the config; they come first in the file.
    ///
    /// # Errors
    /// When a config field that one is made from is missing or wrong.
    pub fn extra_tensors(&self) -> Result<Vec<ExtraTensor>, Error> {
        let mut tensors = Vec::new();
        for kind in &self.family.extra_tensors {
            match kind {
                ExtraKind::Llama3RopeFreqs => tensors.extend(llama3_rope_freqs(&self.config)?),
                ExtraKind::LongropeFactors => {
                    tensors.extend(longrope_factors(&self.config)?.into_iter().flat_map(|longrope| longrope.tensors));
                }
            }
        }
        Ok(tensors)
    }

    /// The complete metadata, as `convert_hf_to_gguf.py` of llama.cpp b11434 writes it.
    ///
    /// # Errors
    /// When config.json, generation_config.json, the model card or the tokenizer cannot be used.
    pub fn gguf_metadata(&self, request: &MetadataRequest<'_>) -> Result<ModelMetadata, Error> {
        self.refuse_name(request.name)?;
        let mut files = vec![self.config.path().to_owned()];
        let mut entries = self.metadata_before_tokenizer(request, &mut files)?;
        let asked = TokenizerRequest {
            dir: &self.dir,
            config: self.config.value(),
            reader: self.family.tokenizer,
            pre: request.pre,
        };
        let (tokenizer, check) = tokenizer::read_checked(&asked)?;
        if let Some(size) = tokenizer.vocab_size.and_then(|size| u32::try_from(size).ok()) {
            entries.set(format!("{}.vocab_size", self.arch()), size.into());
        }
        entries.extend(tokenizer.metadata.iter().map(|(key, value)| (key.to_owned(), value.clone())));
        for file in tokenizer.files {
            if !files.contains(&file) {
                files.push(file);
            }
        }
        let warnings = self.config.warnings().iter().cloned().chain(tokenizer.warnings).chain(check.warnings).collect();
        Ok(ModelMetadata { entries, warnings, files })
    }

    /// The metadata of an adapter for this model, as `convert_lora_to_gguf.py` of llama.cpp b11434 writes it. `name` is
    /// what that program would find as the name of the adapter's directory `dir`.
    ///
    /// # Errors
    /// When the adapter's model card or generation config cannot be used.
    pub fn adapter_metadata(
        &self,
        dir: &Path,
        name: &str,
        parameters: u64,
        alpha: f32,
    ) -> Result<(Metadata, Vec<PathBuf>), Error> {
        let mut files = vec![self.config.path().to_owned()];
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", self.arch().into());
        general::append_adapter(&mut metadata, dir, name, parameters, &mut files)?;
        metadata.set("adapter.lora.alpha", alpha.into());
        metadata.set("general.quantization_version", QUANTIZATION_VERSION.into());
        Ok((metadata, files))
    }

    /// Refuses the kinds of models that the converter knows by their names.
    fn refuse_name(&self, name: &str) -> Result<(), Error> {
        if self.family.refused_names.is_empty() {
            return Ok(());
        }
        let card = self.dir.join("README.md");
        let card = if card.is_file() { mlpack_fs::read_to_string_bounded(&card, CARD_LIMIT)? } else { String::new() };
        let path = self.config.field("_name_or_path").and_then(Value::as_str).unwrap_or_default();
        let texts = [name.to_lowercase(), path.to_lowercase()];
        let card = card.to_lowercase();
        for refused in &self.family.refused_names {
            if texts.iter().any(|text| text.contains(refused)) || card.contains(&format!("# {refused}")) {
                return Err(Error::RefusedName { dir: self.dir.clone(), name: refused.clone() });
            }
        }
        Ok(())
    }

    /// `general.architecture` to `general.quantization_version`.
    fn metadata_before_tokenizer(
        &self,
        request: &MetadataRequest<'_>,
        files: &mut Vec<PathBuf>,
    ) -> Result<Metadata, Error> {
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", self.arch().into());
        // The converter makes extra tensors before it writes anything else.
        if self.family.extra_tensors.contains(&ExtraKind::LongropeFactors)
            && let Some(longrope) = longrope_factors(&self.config)?
        {
            metadata.set(format!("{}.rope.scaling.attn_factor", self.arch()), longrope.attention_factor.into());
        }
        let config = (self.config.path(), self.config.raw());
        general::append(&mut metadata, &self.dir, config, request, files)?;
        parameters::append(&mut metadata, &self.family, &self.config, request.file_type)?;
        if self.family.pooling {
            pooling::append(&mut metadata, self, files)?;
        }
        parameters::append_after_pooling(&mut metadata, &self.family, &self.config)?;
        metadata.set("general.quantization_version", QUANTIZATION_VERSION.into());
        Ok(metadata)
    }
}

/// Refuses a config that the converter treats in a way of its own and this version does not.
fn refuse_fields(family: &Family, config: &Config) -> Result<(), Error> {
    let rope = rope_parameters(config)?;
    for RefusedField { field, values, when_false } in &family.refused {
        let found = match field.strip_prefix("rope.") {
            Some(name) => rope.get(name),
            None => config.field(field),
        };
        let given = found.is_some_and(json::is_truthy);
        let refused = match (when_false, &values[..]) {
            (true, _) => !given,
            (false, []) => given,
            (false, values) => found.and_then(Value::as_str).is_some_and(|v| values.iter().any(|r| r == v)),
        };
        if refused {
            let expected = if *when_false { "a value" } else { "a model without it, or with another value" };
            return Err(config.wrong(field, expected, found.unwrap_or(&Value::Null)));
        }
    }
    Ok(())
}

/// Refuses checkpoints of TensorRT Model Optimizer, which say it in a file of their own.
fn refuse_quantized(dir: &Path) -> Result<(), Error> {
    let path = dir.join("hf_quant_config.json");
    if path.is_file() {
        let given = json::read_object(&path)?;
        let method = given.get("quantization").and_then(|q| q.get("quant_algo")).and_then(Value::as_str);
        return Err(Error::Quantized { path, method: method.unwrap_or("not named").to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
