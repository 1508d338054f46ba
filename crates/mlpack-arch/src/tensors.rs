//! From the names of a checkpoint to the names of a GGUF file (llama.cpp b11434, `conversion/base.py`).

mod order;
mod packing;
mod transform;

pub use order::{MappedTensor, Mapping};
pub use packing::Packing;
pub(crate) use packing::Quantization;

use crate::family::{LAYER, Numbers, Template, TensorEntry, ValueChange};
use crate::parameters::class_labels;
use crate::{Error, Model, View, json};
use mlpack_tensor::{Shape, nearest};

/// What becomes of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TensorRule {
    /// It is written: as one tensor, as several, or as a member of a stack.
    Mapped(Vec<TensorPart>),
    /// It is not part of a text model's GGUF file.
    Dropped {
        /// Why, in words.
        reason: &'static str,
    },
}

/// What a tensor of a checkpoint is, by its GGUF names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TensorRole {
    /// It is these tensors: several when a GGUF file has its parts apart.
    Named {
        /// Their names.
        names: Vec<String>,
        /// What is done to each value.
        values: ValueChange,
        /// Whether it is one of a stack.
        stacked: bool,
    },
    /// It is not part of a text model's GGUF file.
    Dropped {
        /// Why, in words.
        reason: &'static str,
    },
}

/// What one tensor of a checkpoint gives to one tensor of a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorPart {
    /// The name of the GGUF tensor.
    pub gguf_name: String,
    /// The shape of what it gives, outermost dimension first.
    pub shape: Shape,
    /// Where its values are in the source.
    pub view: View,
    /// What is done to each value.
    pub values: ValueChange,
    /// As F32, whatever type is asked for: norms, biases, everything with one dimension.
    pub force_f32: bool,
    /// It is dropped where another tensor gave the same one before.
    pub first_only: bool,
    /// Its place, where it is one of a stack.
    pub stack: Option<StackPlace>,
}

/// The place of a tensor in a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackPlace {
    /// From 0.
    pub index: u64,
    /// How many there must be.
    pub count: u64,
    /// Stacks with the same word and layer are written together.
    pub group: (String, u64),
}

/// What programs that train put before the names of all tensors when they save a model with its wrapping.
const WRAPPERS: &[&str] = &["module.", "_orig_mod.", "_fsdp_wrapped_module.", "base_model.model."];

/// Name parts of the vision, audio and projector tensors that the text part of a model does without.
const MULTIMODAL_PARTS: &[&str] = &[
    "visual.",
    "vision.",
    "audio.",
    "talker.",
    "vision_",
    "audio_",
    "token2wav.",
    "code2wav.",
    "projector.",
    "pre_mm_projector_norm",
    "image_newline",
    "view_seperator",
    "patch_embed",
    "patch_merger.",
    "patch_merge_mlp.",
    "model.connector.",
];

/// The same, at the start of a name.
const MULTIMODAL_STARTS: &[&str] = &[
    "mlp",
    "vit.",
    "vpm.",
    "siglip2.",
    "conformer.",
    "merger.",
    "resampler.",
    "sound_encoder.",
    "sound_projection.",
    "speech_embeddings.",
];

/// Buffers that old checkpoints hold and every program computes.
const BUFFER_ENDS: &[&str] = &[".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq"];

/// Weights that stay F32, by GGUF name.
const F32_WEIGHTS: &[&str] = &[
    "blk.{bid}.ffn_gate_inp",
    "blk.{bid}.ffn_gate_inp_shexp",
    "position_embd",
    "token_types",
    "blk.{bid}.ssm_conv1d",
    "blk.{bid}.shortconv.conv",
    "blk.{bid}.time_mix_first",
    "blk.{bid}.time_mix_w1",
    "blk.{bid}.time_mix_w2",
    "blk.{bid}.time_mix_decay_w1",
    "blk.{bid}.time_mix_decay_w2",
    "blk.{bid}.time_mix_lerp_fused",
    "posnet.{bid}.norm1",
    "posnet.{bid}.norm2",
    "v.position_embd",
    "a.position_embd",
    "blk.{bid}.altup_correct_coef",
    "blk.{bid}.altup_predict_coef",
    "blk.{bid}.ssm_conv1d_q",
    "blk.{bid}.ssm_conv1d_k",
    "blk.{bid}.ssm_conv1d_v",
    "blk.{bid}.indexer.proj",
];

impl Model {
    /// What becomes of the tensor of that name and shape in the checkpoint.
    ///
    /// # Errors
    /// When the architecture has no such tensor, its layer is not one of the model's, or its shape is not what the
    /// config says.
    pub fn map_tensor(&self, name: &str, shape: &Shape) -> Result<TensorRule, Error> {
        match self.find(name)? {
            Place::Dropped { reason } => Ok(TensorRule::Dropped { reason }),
            Place::Entry { entry, suffix, numbers } => {
                self.mapped(Found { name, shape, numbers }, entry, &suffix).map(TensorRule::Mapped)
            }
        }
    }

    /// What the tensor of that name is, whatever shape a GGUF file gives it.
    ///
    /// # Errors
    /// When the architecture has no such tensor, or its layer is not one of the model's.
    pub fn tensor_role(&self, name: &str) -> Result<TensorRole, Error> {
        match self.find(name)? {
            Place::Dropped { reason } => Ok(TensorRole::Dropped { reason }),
            Place::Entry { entry, suffix, numbers } => {
                self.check_layer(name, numbers)?;
                let gguf_name = |template: &String| gguf_name(template, numbers, &suffix);
                let names = entry.gguf.iter().map(gguf_name).collect();
                Ok(TensorRole::Named { names, values: entry.values, stacked: numbers.member.is_some() })
            }
        }
    }

    fn find(&self, name: &str) -> Result<Place<'_>, Error> {
        let family = self.family();
        let mut source = name;
        while let Some(inner) = WRAPPERS.iter().find_map(|wrapper| source.strip_prefix(wrapper)) {
            source = inner;
        }
        let mut source = source.to_owned();
        for part in &family.remove_from_names {
            source = source.replace(part.as_str(), "");
        }
        if MULTIMODAL_STARTS.iter().any(|s| source.starts_with(s))
            || MULTIMODAL_PARTS.iter().any(|s| source.contains(s))
        {
            return Ok(Place::Dropped { reason: "not part of the text model" });
        }
        source = source.replace("e_score_correction_bias", "e_score_correction.bias");
        source = source.replace("language_model.", "");
        if BUFFER_ENDS.iter().any(|s| source.ends_with(s)) {
            return Ok(Place::Dropped { reason: "a buffer that is computed, not stored" });
        }
        let drops = |name: &String| match name.strip_suffix('*') {
            Some(start) => source.starts_with(start),
            None => source == *name,
        };
        if family.dropped_tensors.iter().any(drops) {
            return Ok(Place::Dropped { reason: "llama.cpp does without it" });
        }
        if family.tied_head_dropped && source.ends_with("lm_head.weight") && self.head_is_tied() {
            return Ok(Place::Dropped { reason: "the output matrix is the embedding" });
        }
        source.insert_str(0, &self.class().tensor_prefix);

        let labels =
            family.tensors.iter().any(|entry| entry.labels.is_some()) && class_labels(self.config())?.is_some();
        for suffix in ["", ".weight", ".bias"] {
            let Some(stem) = source.strip_suffix(suffix) else { continue };
            for entry in &family.tensors {
                if entry.labels.is_some_and(|labelled| labelled != labels) {
                    continue;
                }
                for template in &entry.hf {
                    if let Some(numbers) = template.matches(stem) {
                        if family.extra_layers_dropped && self.is_extra_layer(numbers)? {
                            return Ok(Place::Dropped { reason: "a layer for predicting more than one token" });
                        }
                        let suffix = if suffix.is_empty() { entry.suffix.clone() } else { suffix.to_owned() };
                        return Ok(Place::Entry { entry, suffix, numbers });
                    }
                }
            }
        }
        // Such a layer has tensors that no other has.
        let mut parts = source.split('.').skip_while(|part| *part != "layers").skip(1);
        let layer = parts.next().and_then(|part| part.parse().ok());
        if family.extra_layers_dropped && self.is_extra_layer(Numbers { layer, member: None })? {
            return Ok(Place::Dropped { reason: "a layer for predicting more than one token" });
        }
        Err(Error::UnknownTensor {
            dir: self.dir().to_owned(),
            tensor: name.to_owned(),
            arch: family.arch.clone(),
            nearest: self.nearest_tensors(&source),
        })
    }

    fn is_extra_layer(&self, numbers: Numbers) -> Result<bool, Error> {
        let layers = self.config().layer_count()?;
        Ok(numbers.layer.is_some_and(|layer| layer >= layers))
    }

    fn head_is_tied(&self) -> bool {
        self.config().field("tie_word_embeddings").is_some_and(json::is_truthy)
    }

    fn mapped(&self, found: Found<'_>, entry: &TensorEntry, suffix: &str) -> Result<Vec<TensorPart>, Error> {
        self.check_layer(found.name, found.numbers)?;
        let stack = self.stack_place(&found, &entry.transform)?;
        let parts = self.views(&found, &entry.transform)?;
        debug_assert_eq!(parts.len(), entry.gguf.len(), "checked when the description was read");
        let part = |((shape, view), name): ((Shape, View), &String)| {
            let gguf_name = gguf_name(name, found.numbers, suffix);
            let rank = shape.rank() + usize::from(stack.is_some());
            let force_f32 = rank <= 1
                || gguf_name.ends_with("_norm.weight")
                || !gguf_name.ends_with(".weight")
                || F32_WEIGHTS.contains(&name.as_str());
            let (values, first_only) = (entry.values, entry.first_only);
            TensorPart { gguf_name, shape, view, values, force_f32, first_only, stack: stack.clone() }
        };
        Ok(parts.into_iter().zip(&entry.gguf).map(part).collect())
    }

    fn check_layer(&self, name: &str, numbers: Numbers) -> Result<(), Error> {
        let layers = self.config().layer_count()?;
        match numbers.layer.filter(|layer| *layer >= layers) {
            None => Ok(()),
            Some(layer) => {
                let (dir, tensor) = (self.dir().to_owned(), name.to_owned());
                Err(Error::LayerOutOfRange { dir, tensor, layer, layers })
            }
        }
    }

    fn nearest_tensors(&self, name: &str) -> Vec<String> {
        let mut numbers = name.split('.').filter_map(|part| part.parse().ok());
        let (layer, member) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let known: Vec<String> = self
            .family()
            .tensors
            .iter()
            .filter_map(|entry| entry.hf.first())
            .map(|template: &Template| template.name(layer, member) + ".weight")
            .collect();
        nearest(name, known.iter().map(String::as_str), 3).into_iter().map(str::to_owned).collect()
    }
}

/// What the description says of a tensor.
enum Place<'a> {
    Entry { entry: &'a TensorEntry, suffix: String, numbers: Numbers },
    Dropped { reason: &'static str },
}

fn gguf_name(template: &str, numbers: Numbers, suffix: &str) -> String {
    match numbers.layer {
        Some(layer) => template.replace(LAYER, &layer.to_string()) + suffix,
        None => template.to_owned() + suffix,
    }
}

/// A tensor of the checkpoint, with the numbers in its name.
struct Found<'a> {
    name: &'a str,
    shape: &'a Shape,
    numbers: Numbers,
}
