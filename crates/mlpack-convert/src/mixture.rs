//! Which tensor gets which type: llama-quantize's mixtures (llama.cpp b11434, `src/llama-quant.cpp`,
//! `tensor_allows_quantization`, `llama_tensor_get_type`, `tensor_type_fallback`), from names and shapes alone.
//!
//! Long because it is one table of rules, in the order in which the reference asks them; the order matters, as some
//! rules count how often they were asked.

use crate::{FileType, QuantizeOptions};
use mlpack_tensor::{GgmlType, MetaArray, MetaValue, Metadata, Shape};

/// What a mixture asks about a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelFacts {
    /// `general.architecture`.
    pub arch: String,
    /// Layers, those for multi-token prediction included.
    pub layers: u64,
    /// Query heads of the first layer.
    pub heads: u64,
    /// Key-value heads of the first layer.
    pub kv_heads: u64,
    /// Experts of a mixture-of-experts model; 0 for a dense one.
    pub experts: u64,
    /// Whether an importance matrix is given.
    pub importance: bool,
}

impl ModelFacts {
    /// The facts as a GGUF's own metadata states them.
    pub fn from_metadata(metadata: &Metadata) -> ModelFacts {
        let arch = match metadata.find("general.architecture") {
            Some(MetaValue::String(arch)) => arch.clone(),
            _ => String::new(),
        };
        // A number, or the first of an array that has one for each layer.
        let number = |key: &str| match metadata.find(&format!("{arch}.{key}"))? {
            MetaValue::U32(n) => Some(u64::from(*n)),
            MetaValue::I32(n) => u64::try_from(*n).ok(),
            MetaValue::U64(n) => Some(*n),
            MetaValue::Array(MetaArray::I32(per_layer)) => u64::try_from(*per_layer.first()?).ok(),
            MetaValue::Array(MetaArray::U32(per_layer)) => per_layer.first().map(|n| u64::from(*n)),
            _ => None,
        };
        let heads = number("attention.head_count").unwrap_or(0);
        ModelFacts {
            layers: number("block_count").unwrap_or(0),
            heads,
            kv_heads: number("attention.head_count_kv").unwrap_or(heads),
            experts: number("expert_count").unwrap_or(0),
            importance: false,
            arch,
        }
    }

    /// Query heads for each key-value head.
    fn group_size(&self) -> u64 {
        self.heads.checked_div(self.kv_heads).unwrap_or(0)
    }

    /// Whether llama.cpp calls this model's size 70B (`src/models/*.cpp`, `load_hparams`).
    fn is_70b(&self) -> bool {
        match self.arch.as_str() {
            "llama" | "deci" => self.layers == 80 && self.heads != self.kv_heads,
            "qwen2" | "olmo" => self.layers == 80,
            "jais2" => self.layers == 68,
            _ => false,
        }
    }
}

/// What kind of tensor a name belongs to, as broadly as the rules need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Category {
    TokenEmbedding,
    Query,
    /// Values, and fused projections that contain them.
    Value,
    Key,
    AttentionOutput,
    FfnUp,
    FfnGate,
    FfnDown,
    Output,
    Other,
}

impl Category {
    fn of(name: &str) -> Category {
        const PARTS: &[(&str, Category)] = &[
            ("attn_qkv.weight", Category::Value),
            ("attn_kv_b.weight", Category::Value),
            ("attn_v.weight", Category::Value),
            ("attn_k.weight", Category::Key),
            ("attn_q.weight", Category::Query),
            ("attn_output.weight", Category::AttentionOutput),
            ("ffn_up", Category::FfnUp),
            ("ffn_gate", Category::FfnGate),
            ("ffn_down", Category::FfnDown),
        ];
        match name {
            "output.weight" => Category::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Category::TokenEmbedding,
            _ => PARTS.iter().find(|(part, _)| name.contains(part)).map_or(Category::Other, |(_, category)| *category),
        }
    }
}

/// Parts of names of small or delicate tensors that are never quantized.
const KEPT_PARTS: &[&str] = &[
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
];

/// The same for `glm5-next` alone.
const KEPT_PARTS_OF_GLM5_NEXT: &[&str] = &[
    "hc_",
    "indexer.attn_q_b",
    "indexer.attn_k",
    "indexer.proj",
    "indexer_compressor_gate",
    "indexer_compressor_ape",
    "ssm_f_a.weight",
    "ssm_f_b.weight",
    "ssm_g_a.weight",
    "ssm_g_b.weight",
    "ssm_beta.weight",
    "attn_kv_a_mqa.weight",
    "attn_k_b.weight",
    "attn_v_b.weight",
];

/// Parts of names that `glm5-next` keeps at Q8_0 or better.
const DELICATE_PARTS_OF_GLM5_NEXT: &[&str] = &["attn_q_a", "attn_q_b", "nextn.eh_proj"];

/// Whether a tensor may be quantized at all; the others keep the type that the converter gives them.
pub fn allows_quantization(arch: &str, name: &str, shape: &Shape) -> bool {
    // ggml does not count outer dimensions of 1.
    let rank = shape.dims().iter().skip_while(|d| **d == 1).count();
    rank >= 2
        && name.ends_with("weight")
        && !matches!(name, "position_embd.weight" | "token_types.weight")
        && !KEPT_PARTS.iter().any(|part| name.contains(part))
        && !(arch == "glm5-next" && KEPT_PARTS_OF_GLM5_NEXT.iter().any(|part| name.contains(part)))
}

/// The sort key of a tensor in a quantized file: tensors of no layer first, then by layer, then by name
/// (`src/llama-model-loader.h`, `weight_name_comparer`).
pub fn quantized_order(name: &str) -> (i64, &str) {
    let layer = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'))
        .and_then(|(number, _)| number.parse().ok())
        .unwrap_or(-1);
    (layer, name)
}

/// A mixture at work on one model. Tensors must be asked for in the order of the file, since some rules count.
#[derive(Debug)]
pub struct Mixture<'a> {
    file_type: FileType,
    facts: &'a ModelFacts,
    options: &'a QuantizeOptions,
    tied: bool,
    values: u64,
    values_seen: u64,
    ffn_down_seen: u64,
    ffn_gate_seen: u64,
    ffn_up_seen: u64,
}

/// A type, and the type that the rules wanted where the row length does not allow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The type to encode to.
    pub ty: GgmlType,
    /// What the mixture wanted, when that is another type.
    pub instead_of: Option<GgmlType>,
}

impl<'a> Mixture<'a> {
    /// A mixture for a model with tensors of these names.
    pub fn new<'n>(
        file_type: FileType,
        facts: &'a ModelFacts,
        options: &'a QuantizeOptions,
        names: impl IntoIterator<Item = &'n str>,
    ) -> Mixture<'a> {
        let (mut tied, mut values) = (true, 0);
        for name in names {
            match Category::of(name) {
                Category::Output => tied = false,
                Category::Value => values += 1,
                _ => {}
            }
        }
        Mixture {
            file_type,
            facts,
            options,
            tied,
            values,
            values_seen: 0,
            ffn_down_seen: 0,
            ffn_gate_seen: 0,
            ffn_up_seen: 0,
        }
    }

    /// The type of the next tensor; `None` where it keeps the one that it has.
    pub fn choose(&mut self, name: &str, shape: &Shape) -> Option<Choice> {
        let left = self.options.leave_output_tensor && name == "output.weight";
        if self.file_type == FileType::COPY || left || !allows_quantization(&self.facts.arch, name, shape) {
            return None;
        }
        let category = Category::of(name);
        let default = self.file_type.default;
        let as_asked = |ty| Some(Choice { ty, instead_of: None });
        if let (Category::TokenEmbedding, Some(ty)) = (category, self.options.token_embedding_type) {
            // The table of embeddings per layer is large and apart, so a pattern may name it.
            if name != "per_layer_token_embd.weight" || self.options.tensor_type(name).is_none() {
                return as_asked(ty);
            }
        }
        if let (Category::Output, Some(ty)) = (category, self.options.output_tensor_type) {
            return as_asked(ty);
        }
        if !default.is_quantized() {
            return as_asked(default);
        }
        // A pattern that matches skips the rules, and with them their counts.
        let wanted = match self.options.tensor_type(name) {
            Some(ty) => ty,
            None if self.options.pure => default,
            None => self.rule(category, name, shape),
        };
        let ty = fit(wanted, shape.row_len());
        Some(Choice { ty, instead_of: (ty != wanted).then_some(wanted) })
    }

    fn rule(&mut self, category: Category, name: &str, shape: &Shape) -> GgmlType {
        let default = self.file_type.default;
        if self.facts.arch == "glm5-next" && DELICATE_PARTS_OF_GLM5_NEXT.iter().any(|part| name.contains(part)) {
            return GgmlType::Q8_0;
        }
        if category == Category::Output || (self.tied && category == Category::TokenEmbedding) {
            return self.output(shape);
        }
        if self.file_type == FileType::MXFP4_MOE {
            let stacked = shape.rank() >= 3 && shape.dims()[shape.rank() - 3] > 1;
            // Other tensors of this architecture are three-dimensional too.
            let of_ffn = matches!(category, Category::FfnUp | Category::FfnGate | Category::FfnDown);
            let experts = stacked && (of_ffn || self.facts.arch != "bailingmoe3");
            return if experts { GgmlType::MXFP4 } else { GgmlType::Q8_0 };
        }
        match category {
            Category::TokenEmbedding => self.token_embedding().unwrap_or(default),
            _ if self.is_iq1_or_iq2() => self.low_bit(category).unwrap_or(default),
            Category::Value => self.value(),
            Category::Key | Category::Query => self.key_or_query(category).unwrap_or(default),
            Category::FfnDown => self.ffn_down(name).unwrap_or(default),
            Category::AttentionOutput => self.attention_output().unwrap_or(default),
            Category::FfnGate => {
                let layer = self.layer(name, self.ffn_gate_seen);
                self.ffn_gate_seen += 1;
                self.ffn_gate_or_up(layer).unwrap_or(default)
            }
            Category::FfnUp => {
                let layer = self.layer(name, self.ffn_up_seen);
                self.ffn_up_seen += 1;
                self.ffn_gate_or_up(layer).unwrap_or(default)
            }
            Category::Output | Category::Other => default,
        }
    }

    /// The output matrix, and the token embedding where it serves as the output too.
    fn output(&self, shape: &Shape) -> GgmlType {
        use FileType as T;
        let default = self.file_type.default;
        if let Some(ty) = self.options.output_tensor_type {
            return ty;
        }
        let misfit = !shape.row_len().is_multiple_of(default.block_len());
        match self.file_type {
            T::MXFP4_MOE => GgmlType::Q8_0,
            _ if self.facts.arch == "falcon" || misfit => GgmlType::Q8_0,
            T::IQ2_XXS | T::IQ2_XS | T::IQ3_XXS | T::IQ1_S | T::IQ2_S | T::IQ2_M | T::IQ1_M => GgmlType::Q5_K,
            _ if default == GgmlType::Q8_0 => GgmlType::Q8_0,
            _ => GgmlType::Q6_K,
        }
    }

    fn token_embedding(&self) -> Option<GgmlType> {
        use FileType as T;
        match self.file_type {
            T::IQ2_XXS | T::IQ2_XS | T::IQ1_S | T::IQ1_M => Some(GgmlType::Q2_K),
            T::IQ2_S | T::IQ2_M | T::IQ3_XXS => Some(GgmlType::IQ3_S),
            T::TQ1_0 | T::TQ2_0 | T::Q2_0 => Some(GgmlType::Q4_K),
            _ => None,
        }
    }

    fn is_iq1_or_iq2(&self) -> bool {
        use FileType as T;
        [T::IQ2_XXS, T::IQ2_XS, T::IQ1_S, T::IQ2_S, T::IQ2_M, T::IQ1_M].contains(&self.file_type)
    }

    /// The one- and two-bit mixtures, which have rules of their own.
    fn low_bit(&mut self, category: Category) -> Option<GgmlType> {
        use FileType as T;
        let two_bit_plus = matches!(self.file_type, T::IQ2_S | T::IQ2_M);
        let better = if two_bit_plus { GgmlType::IQ3_S } else { GgmlType::Q2_K };
        match category {
            Category::Value => {
                self.values_seen += 1;
                let shared = self.facts.group_size() >= 4 || self.facts.experts >= 4;
                Some(if shared { GgmlType::Q4_K } else { better })
            }
            Category::Key if self.facts.experts == 8 => Some(GgmlType::Q4_K),
            Category::FfnDown => {
                let early = self.ffn_down_seen < self.facts.layers / 8;
                self.ffn_down_seen += 1;
                early.then_some(better)
            }
            Category::AttentionOutput if self.facts.experts == 8 => Some(GgmlType::Q5_K),
            Category::AttentionOutput => match self.file_type {
                T::IQ1_S | T::IQ1_M => Some(GgmlType::IQ2_XXS),
                T::IQ2_S | T::IQ2_M => Some(GgmlType::IQ3_S),
                _ => None,
            },
            _ => None,
        }
    }

    fn value(&mut self) -> GgmlType {
        use FileType as T;
        let (i, n) = (self.values_seen, self.values);
        self.values_seen += 1;
        let grouped = self.facts.group_size() >= 4;
        let mut ty = match self.file_type {
            T::Q2_K if grouped => GgmlType::Q4_K,
            T::Q2_K => GgmlType::Q3_K,
            T::Q2_K_S if grouped => GgmlType::Q4_K,
            T::IQ3_XXS if grouped => GgmlType::Q4_K,
            T::IQ3_XXS if !self.facts.importance => GgmlType::IQ3_S,
            T::IQ3_XS | T::IQ3_S if grouped => GgmlType::Q4_K,
            T::IQ3_M => GgmlType::Q4_K,
            T::Q3_K_M if i < 2 => GgmlType::Q5_K,
            T::Q3_K_M => GgmlType::Q4_K,
            T::Q3_K_L => GgmlType::Q5_K,
            T::IQ4_NL | T::IQ4_XS if grouped => GgmlType::Q5_K,
            T::Q4_K_M | T::Q5_K_M if more_bits(i, n) => GgmlType::Q6_K,
            T::Q4_K_S if i < 4 => GgmlType::Q5_K,
            _ => self.file_type.default,
        };
        if self.facts.is_70b() && matches!(ty, GgmlType::Q3_K | GgmlType::Q4_K) {
            ty = GgmlType::Q5_K;
        }
        if self.facts.experts == 8 { GgmlType::Q8_0 } else { ty }
    }

    fn key_or_query(&self, category: Category) -> Option<GgmlType> {
        match self.file_type {
            _ if category == Category::Key && self.facts.experts == 8 => Some(GgmlType::Q8_0),
            FileType::IQ3_XS => Some(GgmlType::IQ3_XXS),
            FileType::IQ3_XXS => Some(GgmlType::IQ2_S),
            _ => None,
        }
    }

    fn ffn_down(&mut self, name: &str) -> Option<GgmlType> {
        use FileType as T;
        let n = self.facts.layers;
        let i = self.layer(name, self.ffn_down_seen);
        self.ffn_down_seen += 1;
        let falcon = self.facts.arch == "falcon";
        let importance = self.facts.importance;
        match self.file_type {
            T::Q2_K => Some(GgmlType::Q3_K),
            T::Q2_K_S => (i < n / 8).then_some(GgmlType::Q4_K),
            T::IQ3_XXS if !importance => Some(if i < n / 8 { GgmlType::Q4_K } else { GgmlType::Q3_K }),
            T::Q3_K_M if i < n / 16 => Some(GgmlType::Q5_K),
            T::Q3_K_M if !falcon || more_bits(i, n) => Some(GgmlType::Q4_K),
            T::Q3_K_M => Some(GgmlType::Q3_K),
            T::IQ3_M => (i < n / 8 || (self.facts.experts == 8 && more_bits(i, n))).then_some(GgmlType::Q4_K),
            T::Q3_K_L => Some(if falcon { GgmlType::Q4_K } else { GgmlType::Q5_K }),
            T::Q4_K_M if falcon && i < n / 16 => Some(GgmlType::Q6_K),
            T::Q4_K_M if falcon => Some(if more_bits(i, n) { GgmlType::Q5_K } else { GgmlType::Q4_K }),
            T::Q4_K_M | T::Q5_K_M => more_bits(i, n).then_some(GgmlType::Q6_K),
            T::IQ4_NL | T::IQ4_XS => (i < n / 8 && !importance).then_some(GgmlType::Q5_K),
            T::Q4_K_S => (!falcon && i < n / 8).then_some(GgmlType::Q5_K),
            T::Q4_0 => (importance && i < n / 8).then_some(GgmlType::Q4_1),
            T::Q5_0 => (importance && i < n / 8).then_some(GgmlType::Q5_1),
            _ => None,
        }
    }

    fn attention_output(&self) -> Option<GgmlType> {
        use FileType as T;
        if self.facts.arch == "falcon" {
            return (self.file_type == T::Q3_K_L).then_some(GgmlType::Q4_K);
        }
        if self.facts.experts == 8 {
            let raised = [
                T::Q2_K,
                T::IQ3_XS,
                T::IQ3_XXS,
                T::Q3_K_S,
                T::Q3_K_M,
                T::IQ4_NL,
                T::Q4_K_S,
                T::Q4_K_M,
                T::IQ3_S,
                T::IQ3_M,
                T::IQ4_XS,
            ];
            return raised.contains(&self.file_type).then_some(GgmlType::Q5_K);
        }
        match self.file_type {
            T::Q2_K => Some(GgmlType::Q3_K),
            T::IQ3_XXS => Some(GgmlType::IQ3_S),
            T::Q3_K_M | T::IQ3_M => Some(GgmlType::Q4_K),
            T::Q3_K_L => Some(GgmlType::Q5_K),
            _ => None,
        }
    }

    fn ffn_gate_or_up(&self, layer: u64) -> Option<GgmlType> {
        let n = self.facts.layers;
        let middle = layer >= n / 8 && layer < 7 * n / 8;
        (self.file_type == FileType::IQ3_XS && middle).then_some(GgmlType::IQ3_XXS)
    }

    /// The layer of a feed-forward tensor: counted, or read from the name where experts are stored apart.
    fn layer(&self, name: &str, counted: u64) -> u64 {
        if self.facts.experts > 1 { u64::try_from(quantized_order(name).0).unwrap_or(counted) } else { counted }
    }
}

/// The layers that the medium mixtures give more bits: the first and last eighth, and every third between.
fn more_bits(i: u64, n: u64) -> bool {
    i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2
}

/// The type that a row of that length can be encoded to: the wanted one, a smaller block, or F16. A type of larger blocks
/// that llama-quantize has no replacement for stays, though it does not fit.
pub fn fit(wanted: GgmlType, row_len: u64) -> GgmlType {
    use GgmlType::*;
    if row_len.is_multiple_of(wanted.block_len()) {
        return wanted;
    }
    let smaller = match wanted {
        IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ4_XS => IQ4_NL,
        Q2_0 | Q2_K | Q3_K | TQ1_0 | TQ2_0 => Q4_0,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        other if other.block_len() > 32 => return other,
        other => other,
    };
    if row_len.is_multiple_of(smaller.block_len()) { smaller } else { F16 }
}

#[cfg(test)]
mod tests;
