//! From the names of a checkpoint to the names of a GGUF file (llama.cpp b11434, `conversion/base.py`).

use crate::family::{LAYER, Template, TensorEntry, TransformEntry};
use crate::{Error, Model};
use mlpack_tensor::{Shape, nearest};
use serde_json::Value;

/// What becomes of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TensorRule {
    /// It is written.
    Mapped {
        /// Under this name.
        gguf_name: String,
        /// After this change.
        transform: Transform,
        /// As F32, whatever type is asked for: norms, biases, everything with one dimension.
        force_f32: bool,
    },
    /// It is not part of a text model's GGUF file.
    Dropped {
        /// Why, in words.
        reason: &'static str,
    },
}

/// A permutation of the rows of a tensor; each element of a tensor with one dimension is a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// Rows stay where they are.
    Copy,
    /// The rows of each head, stored as a first and a second half, become pairs: 0, n, 1, n + 1, …
    RopePermute {
        /// The number of heads that the rows divide into.
        heads: u64,
    },
}

impl Transform {
    /// The source row that becomes `out_row` of a tensor with `rows` rows.
    ///
    /// ```
    /// use mlpack_arch::Transform;
    /// let rows: Vec<u64> = (0..8).map(|row| Transform::RopePermute { heads: 2 }.source_row(row, 8)).collect();
    /// assert_eq!(rows, [0, 2, 1, 3, 4, 6, 5, 7]);
    /// ```
    ///
    /// # Panics
    /// When `rows` is not a multiple of twice the heads; [`Model::map_tensor`] has checked it.
    pub fn source_row(&self, out_row: u64, rows: u64) -> u64 {
        match self {
            Transform::Copy => out_row,
            Transform::RopePermute { heads } => {
                let head_rows = rows / heads;
                assert!(head_rows.is_multiple_of(2) && head_rows * heads == rows, "{rows} rows in {heads} heads");
                let (head, within) = (out_row / head_rows, out_row % head_rows);
                head * head_rows + within % 2 * (head_rows / 2) + within / 2
            }
        }
    }

    /// Rows that stay together: output rows `k * group..(k + 1) * group` are made of the same rows of the source.
    pub fn row_group(&self, rows: u64) -> u64 {
        match self {
            Transform::Copy => 1,
            Transform::RopePermute { heads } => rows / heads,
        }
    }
}

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
    /// When the architecture has no such tensor, its layer is not one of the model's, or its rows do not divide into
    /// heads as the config says.
    pub fn map_tensor(&self, name: &str, shape: &Shape) -> Result<TensorRule, Error> {
        let family = self.family();
        let mut source = name.to_owned();
        for part in &family.remove_from_names {
            source = source.replace(part.as_str(), "");
        }
        if MULTIMODAL_STARTS.iter().any(|s| source.starts_with(s))
            || MULTIMODAL_PARTS.iter().any(|s| source.contains(s))
        {
            return Ok(TensorRule::Dropped { reason: "not part of the text model" });
        }
        source = source.replace("language_model.", "");
        if BUFFER_ENDS.iter().any(|s| source.ends_with(s)) {
            return Ok(TensorRule::Dropped { reason: "a buffer that is computed, not stored" });
        }
        source.insert_str(0, &self.class().tensor_prefix);

        for suffix in ["", ".weight", ".bias"] {
            let Some(stem) = source.strip_suffix(suffix) else { continue };
            for entry in &family.tensors {
                for template in &entry.hf {
                    if let Some(layer) = template.matches(stem) {
                        return self.mapped(name, shape, entry, layer, suffix);
                    }
                }
            }
        }
        Err(Error::UnknownTensor {
            dir: self.dir().to_owned(),
            tensor: name.to_owned(),
            arch: family.arch.clone(),
            nearest: self.nearest_tensors(&source),
        })
    }

    fn mapped(
        &self,
        name: &str,
        shape: &Shape,
        entry: &TensorEntry,
        layer: Option<u64>,
        suffix: &str,
    ) -> Result<TensorRule, Error> {
        let layers = self.config().layer_count()?;
        if let Some(layer) = layer.filter(|layer| *layer >= layers) {
            return Err(Error::LayerOutOfRange { dir: self.dir().to_owned(), tensor: name.to_owned(), layer, layers });
        }
        let gguf_name = match layer {
            Some(layer) => entry.gguf.replace(LAYER, &layer.to_string()),
            None => entry.gguf.clone(),
        } + suffix;
        let transform = self.transform(name, shape, &entry.transform)?;
        let force_f32 = shape.rank() <= 1
            || gguf_name.ends_with("_norm.weight")
            || !gguf_name.ends_with(".weight")
            || F32_WEIGHTS.contains(&entry.gguf.as_str());
        Ok(TensorRule::Mapped { gguf_name, transform, force_f32 })
    }

    fn transform(&self, name: &str, shape: &Shape, entry: &TransformEntry) -> Result<Transform, Error> {
        let TransformEntry::RopePermute { heads: fields } = entry else { return Ok(Transform::Copy) };
        let config = self.config();
        let given = fields.iter().find_map(|f| Some((f.as_str(), config.field(f).filter(|v| !v.is_null())?)));
        let Some((field, value)) = given else {
            return Err(config.missing(&fields.iter().map(String::as_str).collect::<Vec<_>>()));
        };
        let heads: u64 = config.u32(field, value)?.into();
        if heads == 0 {
            return Err(config.wrong(field, "a number above zero", &Value::from(0)));
        }
        let rows = shape.dims().first().copied().unwrap_or(1);
        if !rows.is_multiple_of(heads * 2) {
            return Err(Error::HeadsDoNotDivide {
                dir: self.dir().to_owned(),
                tensor: name.to_owned(),
                heads,
                shape: shape.clone(),
            });
        }
        Ok(Transform::RopePermute { heads })
    }

    fn nearest_tensors(&self, name: &str) -> Vec<String> {
        let layer = name.split('.').find_map(|part| part.parse().ok()).unwrap_or(0);
        let known: Vec<String> = self
            .family()
            .tensors
            .iter()
            .filter_map(|entry| entry.hf.first())
            .map(|template: &Template| template.name(layer) + ".weight")
            .collect();
        nearest(name, known.iter().map(String::as_str), 3).into_iter().map(str::to_owned).collect()
    }
}
