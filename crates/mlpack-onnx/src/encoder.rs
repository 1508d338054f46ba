//! The recipe of an encoder: the vectors of a text, and what its head or its pooling makes of them.
//!
//! ```text
//!   input_ids, token_type_ids ── embeddings ── [ attention ── MLP ] … ── last_hidden_state ── pooling ── sentence_embedding
//!   attention_mask ── mask ──────────────────────┘                        └── head ── logits, or start_logits and end_logits
//! ```
//! Names of inputs and outputs are those of optimum and transformers.js.

mod attention;
mod head;

use crate::element::Element;
use crate::error::Error;
use crate::graph::{Attribute, Graph, Profile, Value};
use crate::recipe::{GraphRequest, Recipe};
use crate::weights::Weights;
use mlpack_arch::{Encoder, Norm, NormPlacement, Positions, Task, TokenTypes};

/// Builds the graph of an encoder. Weights are known by the names that [`Encoder::tensor_name`] gives.
///
/// # Errors
/// [`Error::Weights`] with every tensor that is missing, left over or of another shape; [`Error::NoDim`] and
/// [`Error::TooLong`] for sizes that make no sense.
pub fn build_encoder(encoder: &Encoder, weights: Weights, request: &GraphRequest) -> Result<Graph, Error> {
    if request.fixed.past.is_some() {
        return Err(Error::NoDim { name: "past" });
    }
    let limit = match encoder.positions {
        Positions::Rotary => u64::MAX,
        Positions::Sequence => encoder.positions_count,
        Positions::Unpadded => encoder.positions_count.saturating_sub(encoder.padding + 1),
    };
    if let Some(sequence) = request.fixed.sequence.filter(|sequence| *sequence > limit) {
        return Err(Error::TooLong { sequence, limit });
    }
    let mut recipe = Recipe::new(encoder, weights, request)?;
    recipe.graph();
    recipe.finish()
}

/// The name of the words' vectors in the graph.
const WORDS: &str = "model.embeddings.words.weight";

/// What all layers share.
struct Shared {
    /// `[batch, 1, sequence, sequence]`, of what is attended to; one for each window that occurs.
    masks: Vec<(Option<u64>, Value)>,
    /// Cosines and sines `[1, sequence, pairs]`, for each rotation.
    rotations: Vec<(Value, Value)>,
    /// `[1, heads, sequence, sequence]`, what is added to scores.
    bias: Option<Value>,
}

/// The inputs, and their size.
struct Inputs {
    ids: Value,
    attended: Value,
    types: Option<Value>,
    /// The length of the texts, as a list of one.
    sequence: Value,
}

impl Recipe<&Encoder> {
    fn graph(&mut self) {
        let e = self.model;
        let mut input =
            |name: &str| self.graph.input(name, Element::I64, &["batch_size".into(), "sequence_length".into()]);
        let (ids, attended) = (input("input_ids"), input("attention_mask"));
        let types = (e.token_types == Some(TokenTypes::Input)).then(|| input("token_type_ids"));
        let shape = self.graph.node("Shape", "/model/ids/Shape", &[&ids], Element::I64, &[]);
        let sequence = self.slice("/model/ids/Length", &shape, 1, 2, 0);
        let inputs = Inputs { ids, attended, types, sequence };
        let mut x = self.embeddings(&inputs);
        let shared = self.shared(&inputs);
        for i in 0..e.layers.len() {
            x = self.layer(i, x, &shared);
        }
        if let Some(norm) = &e.names.final_norm {
            x = self.layer_norm("/model/final_norm", norm, &x);
        }
        self.outputs(x, &inputs);
    }

    /// Words, positions and types of tokens together.
    fn embeddings(&mut self, inputs: &Inputs) -> Value {
        let e = self.model;
        let path = "/model/embeddings/words";
        let mut x = if matches!(e.task, Task::FillMask(_)) && !self.is_in_standard_operators() {
            let words = self.word_table();
            let rows =
                self.graph.node("Gather", &format!("{path}/Gather"), &[&words, &inputs.ids], words.element(), &[]);
            self.cast(&format!("{path}/IslandOut"), &rows, self.element)
        } else {
            let (role, shape) = (format!("{}.weight", e.names.word), [e.vocabulary, e.hidden]);
            self.weights.take(&role, &shape);
            self.gathered(path, WORDS, &role, shape, &inputs.ids)
        };
        if let (Some(name), Some(types)) = (&e.names.token_type, e.token_types) {
            let path = "/model/embeddings/types";
            let role = format!("{name}.weight");
            let shape = [self.weights.rows(&role).unwrap_or(1), e.hidden];
            self.weights.take(&role, &shape);
            let name = "model.embeddings.types.weight";
            let vector = match (types, &inputs.types) {
                (TokenTypes::Input, Some(ids)) => self.looked_up(path, name, &role, shape, ids),
                _ => {
                    let table = self.table_of(name, &role, shape);
                    let first = self.slice(&format!("{path}/First"), &table, 0, 1, 0);
                    self.cast(&format!("{path}/IslandOut"), &first, self.element)
                }
            };
            x = self.graph.node("Add", &format!("{path}/Add"), &[&x, &vector], self.element, &[]);
        }
        if let Some(name) = &e.names.position {
            let path = "/model/embeddings/positions";
            let shape = [e.positions_count, e.hidden];
            let role = format!("{name}.weight");
            self.weights.take(&role, &shape);
            let name = "model.embeddings.positions.weight";
            let vectors = match e.positions {
                // A Gather of a Range here is rewritten wrongly by ONNX Runtime 1.31.
                Positions::Sequence | Positions::Rotary => {
                    let table = self.table_of(name, &role, shape);
                    let (start, axis) = (self.graph.ints(&[0]), self.graph.ints(&[0]));
                    let bounds = [&table, &start, &inputs.sequence, &axis];
                    let rows = self.graph.node("Slice", &format!("{path}/Slice"), &bounds, table.element(), &[]);
                    self.cast(&format!("{path}/IslandOut"), &rows, self.element)
                }
                Positions::Unpadded => {
                    let padding = self.graph.int(e.padding as i64);
                    let same = self.graph.node(
                        "Equal",
                        &format!("{path}/Equal"),
                        &[&inputs.ids, &padding],
                        Element::Bool,
                        &[],
                    );
                    let text = self.graph.node("Not", &format!("{path}/Not"), &[&same], Element::Bool, &[]);
                    let text = self.cast(&format!("{path}/Cast"), &text, Element::I64);
                    let axis = self.graph.int(1);
                    let sums = self.graph.node("CumSum", &format!("{path}/CumSum"), &[&text, &axis], Element::I64, &[]);
                    let counted = self.graph.node("Mul", &format!("{path}/Mul"), &[&sums, &text], Element::I64, &[]);
                    let rows =
                        self.graph.node("Add", &format!("{path}/Rows"), &[&counted, &padding], Element::I64, &[]);
                    self.looked_up(path, name, &role, shape, &rows)
                }
            };
            x = self.graph.node("Add", &format!("{path}/Add"), &[&x, &vectors], self.element, &[]);
        }
        self.layer_norm("/model/embeddings/norm", &e.names.embedding_norm, &x)
    }

    /// The vectors of words of a masked language model, whose output may be they too.
    fn word_table(&mut self) -> Value {
        let e = self.model;
        let (role, shape) = (format!("{}.weight", e.names.word), [e.vocabulary, e.hidden]);
        self.weights.take(&role, &shape);
        self.table_of(WORDS, &role, shape)
    }

    fn layer_norm(&mut self, path: &str, role: &str, x: &Value) -> Value {
        let (size, epsilon) = (self.model.hidden, self.model.epsilon);
        self.normed(path, role, x, (Norm::Layer, size, epsilon))
    }

    /// One layer: attention and feed-forward network, each with its norm and its residual.
    fn layer(&mut self, i: usize, x: Value, shared: &Shared) -> Value {
        let e = self.model;
        let path = format!("/model/layers.{i}");
        let name = |template: &str| template.replace("{}", &i.to_string());
        let norms = [&e.names.attention_norm, &e.names.output_norm].map(|norm| name(norm));
        let mut x = x;
        for (part, norm) in ["attn", "mlp"].into_iter().zip(&norms) {
            let norm_path = format!("{path}/{part}_norm");
            let before = e.placement == NormPlacement::Before && (i, part) != (0, "attn");
            let inner = if before { self.layer_norm(&norm_path, norm, &x) } else { x.clone() };
            let inner = if part == "attn" {
                self.attention(i, &inner, shared)
            } else {
                let width = e.feed_forward;
                let rows = if e.gated { 2 * width } else { width };
                let up = self.linear(&format!("{path}/mlp/up"), &name(&e.names.up), &inner, e.hidden, rows);
                let inner = if e.gated {
                    let first = self.slice(&format!("{path}/mlp/First"), &up, 0, width as i64, 2);
                    let second = self.slice(&format!("{path}/mlp/Second"), &up, width as i64, rows as i64, 2);
                    let first = self.activation(&format!("{path}/mlp/act"), &first, e.activation);
                    self.graph.node("Mul", &format!("{path}/mlp/Mul"), &[&first, &second], self.element, &[])
                } else {
                    self.activation(&format!("{path}/mlp/act"), &up, e.activation)
                };
                self.linear(&format!("{path}/mlp/down"), &name(&e.names.down), &inner, width, e.hidden)
            };
            x = self.graph.node("Add", &format!("{path}/{part}_residual/Add"), &[&x, &inner], self.element, &[]);
            if e.placement == NormPlacement::After {
                x = self.layer_norm(&norm_path, norm, &x);
            }
        }
        x
    }

    /// A reduction over one dimension; in opset 18 the axes became an input.
    fn reduced(&mut self, op: &'static str, name: &str, x: &Value, axis: i64) -> Value {
        let keep = ("keepdims", Attribute::Int(1));
        if op == "ReduceSum" || self.graph.profile() != Profile::Portable {
            let axes = self.graph.ints(&[axis]);
            self.graph.node(op, name, &[x, &axes], x.element(), &[keep])
        } else {
            self.graph.node(op, name, &[x], x.element(), &[("axes", Attribute::Ints(vec![axis])), keep])
        }
    }
}
