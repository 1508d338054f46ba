//! The recipe of a decoder: one graph for prefill and decode, with the cache of keys and values as inputs and outputs.
//!
//! ```text
//!   input_ids ── embedding ── [ norm ── attention ── + ── norm ── MLP ── + ] … ── norm ── head ── logits
//!   attention_mask, position_ids ──── mask, rotation ──┘  └── past_key_values.N.* -> present.N.*
//! ```
//! Names of inputs and outputs are those of optimum and transformers.js. The heads and their width are numbers in the
//! shapes of the cache, since transformers.js makes empty caches from them; the batch is `batch_size`.

mod attention;
mod layers;

use crate::element::Element;
use crate::error::Error;
use crate::graph::{Dim, Graph, Profile, Value};
use crate::recipe::{GraphRequest, Recipe};
use crate::weights::Weights;
use mlpack_arch::{Decoder, Placement};

/// Builds the graph of a decoder.
///
/// # Errors
/// [`Error::Weights`] with every tensor that is missing, left over or of another shape.
pub fn build_decoder(decoder: &Decoder, weights: Weights, request: &GraphRequest) -> Result<Graph, Error> {
    let mut recipe = Recipe::new(decoder, weights, request)?;
    recipe.graph();
    recipe.finish()
}

/// The inputs, and what all layers share.
struct Shared {
    /// `[batch, 1, sequence, total]`, of what is attended to; one for each window that occurs. In profile `ort` what is
    /// added to scores.
    masks: Vec<(Option<u64>, Value)>,
    /// Cosines and sines `[batch, sequence, pairs]`, for each rotation. In profile `ort` `[batch * sequence, pairs]`.
    rotations: Vec<(Value, Value)>,
    /// What GroupQueryAttention wants besides; in profile `ort` alone.
    lengths: Option<Lengths>,
}

/// What the operators of ONNX Runtime are told about lengths.
struct Lengths {
    /// The row of cosines and sines of each token, `[batch, sequence]`.
    rows: Value,
    /// The last position of each text, `[batch]`.
    last: Value,
    /// The number of positions.
    total: Value,
}

impl Recipe<&Decoder> {
    fn graph(&mut self) {
        let d = self.model;
        let ids = self.graph.input("input_ids", Element::I64, &["batch_size".into(), "sequence_length".into()]);
        let attended =
            self.graph.input("attention_mask", Element::I64, &["batch_size".into(), "total_sequence_length".into()]);
        let positions =
            self.graph.input("position_ids", Element::I64, &["batch_size".into(), "sequence_length".into()]);
        let mut past = Vec::with_capacity(d.layers.len());
        for i in 0..d.layers.len() {
            let mut cache = |kind: &str| {
                let name = format!("past_key_values.{i}.{kind}");
                self.graph.input(&name, self.element, &cache_dims(d, "past_sequence_length"))
            };
            past.push((cache("key"), cache("value")));
        }
        let mut x = self.embedding(&ids);
        if let Some(scale) = d.embedding_scale {
            x = self.scaled("/model/embed_tokens/Mul", &x, scale);
        }
        let lengths = (self.graph.profile() == Profile::Ort).then(|| self.lengths(&ids, &attended));
        let shared = Shared { masks: self.masks(&ids, &attended), rotations: self.rotations(&positions), lengths };
        let mut present = Vec::with_capacity(past.len());
        for (i, past) in past.iter().enumerate() {
            x = self.block(i, x, past, &shared, &mut present);
        }
        let x = self.norm("/model/norm", "output_norm", &x);
        let logits = self.head(&x);
        self.graph.output("logits", &logits, &["batch_size".into(), "sequence_length".into(), d.vocabulary.into()]);
        for (i, (key, value)) in present.iter().enumerate() {
            let dims = cache_dims(d, "total_sequence_length");
            self.graph.output(&format!("present.{i}.key"), key, &dims);
            self.graph.output(&format!("present.{i}.value"), value, &dims);
        }
    }

    /// The rows of the tokens.
    fn embedding(&mut self, ids: &Value) -> Value {
        let (role, shape) = ("token_embd.weight", [self.model.vocabulary, self.model.hidden]);
        self.weights.take(role, &shape);
        self.gathered("/model/embed_tokens", TABLE, role, shape, ids)
    }

    /// The embedding as numbers.
    fn table(&mut self) -> Value {
        let shape = [self.model.vocabulary, self.model.hidden];
        self.table_of(TABLE, "token_embd.weight", shape)
    }

    /// One layer: attention and feed-forward network, each with its norms and its residual.
    fn block(
        &mut self,
        i: usize,
        x: Value,
        past: &(Value, Value),
        shared: &Shared,
        present: &mut Vec<(Value, Value)>,
    ) -> Value {
        let path = format!("/model/layers.{i}");
        let role = format!("blk.{i}");
        let (before, after) = match self.model.placement {
            Placement::Before => (Some(["attn_norm", "ffn_norm"]), None),
            Placement::After => (None, Some(["post_attention_norm", "post_ffw_norm"])),
            Placement::Around => (Some(["attn_norm", "ffn_norm"]), Some(["post_attention_norm", "post_ffw_norm"])),
        };
        let mut x = x;
        for (part, name) in ["attn", "mlp"].into_iter().enumerate() {
            let inner = match before {
                Some(norms) => self.norm(&format!("{path}/{name}_norm"), &format!("{role}.{}", norms[part]), &x),
                None => x.clone(),
            };
            let mut inner = if part == 0 {
                self.attention(i, &inner, past, shared, present)
            } else {
                self.mlp(&format!("{path}/mlp"), &role, &inner)
            };
            if let Some(norms) = after {
                inner = self.norm(&format!("{path}/{name}_post_norm"), &format!("{role}.{}", norms[part]), &inner);
            }
            if let Some(scale) = self.model.residual_scale {
                inner = self.scaled(&format!("{path}/{name}_residual/Mul"), &inner, scale);
            }
            x = self.graph.node("Add", &format!("{path}/{name}_residual/Add"), &[&x, &inner], self.element, &[]);
        }
        x
    }

    /// Logits. A tied head multiplies by the embedding as it lies there: no second matrix, and none made at load time.
    fn head(&mut self, x: &Value) -> Value {
        let d = self.model;
        if d.tied {
            self.weights.leave("output.weight");
        }
        let mut logits = match (d.tied, self.blocks_of_rows(d.hidden)) {
            (false, _) => self.linear("/lm_head", "output", x, d.hidden, d.vocabulary),
            // What is looked up and what is multiplied by are different bytes.
            (true, _) if self.is_in_standard_operators() => {
                let name = "lm_head.MatMul.weight";
                self.product("/lm_head", name, "token_embd.weight", x, [d.hidden, d.vocabulary])
            }
            (true, Some(blocks)) => {
                let parts = self.blocks(TABLE, "token_embd.weight", [d.vocabulary, d.hidden], blocks);
                self.product_of_blocks("/lm_head", x, &parts, [d.hidden, d.vocabulary], blocks)
            }
            (true, None) => self.tied_head(x),
        };
        if let Some(divisor) = d.logit_divisor {
            logits = self.scaled("/lm_head/Mul", &logits, 1.0 / divisor);
        }
        if let Some(cap) = d.logit_softcap {
            logits = self.softcap("/lm_head/softcap", &logits, cap);
        }
        logits
    }

    fn tied_head(&mut self, x: &Value) -> Value {
        let table = self.table();
        self.by_rows("/lm_head", x, &table, [self.model.hidden, self.model.vocabulary])
    }
}

/// The name of the embedding in the graph.
const TABLE: &str = "model.embed_tokens.weight";

fn cache_dims(d: &Decoder, length: &'static str) -> [Dim; 4] {
    ["batch_size".into(), d.kv_heads.into(), length.into(), d.head_dim.into()]
}
