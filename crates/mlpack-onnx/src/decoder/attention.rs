//! Attention: masks, rotation, the cache, and the products of queries, keys and values.

use super::{Lengths, Shared};
use crate::element::Element;
use crate::graph::{Attribute, Profile, Value};
use crate::recipe::Recipe;
use mlpack_arch::{Decoder, QkNorm};

impl Recipe<&Decoder> {
    /// Who attends to whom, `[batch, 1, sequence, total]`, for each window that occurs.
    ///
    /// A position attends to itself even where it is padding: its row would else be empty, and NaN from there spreads
    /// through the values of the next layer. The mask has the full shape, since ONNX Runtime 1.31 does not broadcast it.
    pub(super) fn masks(&mut self, ids: &Value, attended: &Value) -> Vec<(Option<u64>, Value)> {
        let mut windows: Vec<Option<u64>> = self.model.layers.iter().map(|layer| layer.window).collect();
        windows.sort_unstable();
        windows.dedup();
        let size = |recipe: &mut Self, name: &str, x: &Value| {
            let shape = recipe.graph.node("Shape", &format!("/model/mask/{name}/Shape"), &[x], Element::I64, &[]);
            let one = recipe.graph.int(1);
            recipe.graph.node("Gather", &format!("/model/mask/{name}/Gather"), &[&shape, &one], Element::I64, &[])
        };
        let sequence = size(self, "sequence", ids);
        let total = size(self, "total", attended);
        let (zero, one) = (self.graph.int(0), self.graph.int(1));
        let past = self.graph.node("Sub", "/model/mask/past/Sub", &[&total, &sequence], Element::I64, &[]);
        let keys = self.graph.node("Range", "/model/mask/keys/Range", &[&zero, &total, &one], Element::I64, &[]);
        let queries = self.graph.node("Range", "/model/mask/queries/Range", &[&past, &total, &one], Element::I64, &[]);
        let queries = self.unsqueeze("/model/mask/queries/Unsqueeze", &queries, &[1]);
        let causal =
            self.graph.node("LessOrEqual", "/model/mask/causal/LessOrEqual", &[&keys, &queries], Element::Bool, &[]);
        let own = self.graph.node("Equal", "/model/mask/own/Equal", &[&keys, &queries], Element::Bool, &[]);
        let real = self.cast("/model/mask/real/Cast", attended, Element::Bool);
        let real = self.unsqueeze("/model/mask/real/Unsqueeze", &real, &[1, 2]);
        let real = self.graph.node("Or", "/model/mask/real/Or", &[&real, &own], Element::Bool, &[]);
        let full = self.graph.node("And", "/model/mask/full/And", &[&causal, &real], Element::Bool, &[]);
        let mut masks = Vec::with_capacity(windows.len());
        for window in windows {
            let mut path = "/model/mask/full".to_owned();
            let mut mask = full.clone();
            if let Some(window) = window {
                path = format!("/model/mask/window_{window}");
                let size = self.graph.int(window as i64);
                let end = self.graph.node("Add", &format!("{path}/Add"), &[&keys, &size], Element::I64, &[]);
                let near =
                    self.graph.node("Greater", &format!("{path}/Greater"), &[&end, &queries], Element::Bool, &[]);
                mask = self.graph.node("And", &format!("{path}/And"), &[&full, &near], Element::Bool, &[]);
            }
            if self.graph.profile() == Profile::Ort {
                let zero = self.graph.float(self.element, 0.0);
                let lowest =
                    self.graph.float(self.element, if self.element == Element::F16 { -65504.0 } else { -1e30 });
                let inputs = [&mask, &zero, &lowest];
                mask = self.graph.node("Where", &format!("{path}/Where"), &inputs, self.element, &[]);
            }
            masks.push((window, mask));
        }
        masks
    }

    /// What the operators of ONNX Runtime are told about lengths. Padding on the left is in the mask, so every text ends at
    /// the last position.
    pub(super) fn lengths(&mut self, ids: &Value, attended: &Value) -> Lengths {
        let path = "/model/lengths";
        let shape = self.graph.node("Shape", &format!("{path}/ids/Shape"), &[ids], Element::I64, &[]);
        let count = self.graph.node("Size", &format!("{path}/ids/Size"), &[ids], Element::I64, &[]);
        let (zero, one) = (self.graph.int(0), self.graph.int(1));
        let rows = self.graph.node("Range", &format!("{path}/rows/Range"), &[&zero, &count, &one], Element::I64, &[]);
        let rows = self.graph.node("Reshape", &format!("{path}/rows/Reshape"), &[&rows, &shape], Element::I64, &[]);
        let all = self.graph.node("Shape", &format!("{path}/mask/Shape"), &[attended], Element::I64, &[]);
        let total = self.graph.node("Gather", &format!("{path}/total/Gather"), &[&all, &one], Element::I64, &[]);
        let last = self.graph.node("Sub", &format!("{path}/last/Sub"), &[&total, &one], Element::I64, &[]);
        let batch = self.slice(&format!("{path}/batch/Slice"), &all, 0, 1, 0);
        let last = self.graph.node("Expand", &format!("{path}/last/Expand"), &[&last, &batch], Element::I64, &[]);
        Lengths {
            rows,
            last: self.cast(&format!("{path}/last/Cast"), &last, Element::I32),
            total: self.cast(&format!("{path}/total/Cast"), &total, Element::I32),
        }
    }

    /// Cosines and sines of the positions, `[batch, sequence, pairs]`, in float32 and then rounded. They are computed
    /// rather than looked up: a table would be as long as the longest context.
    pub(super) fn rotations(&mut self, positions: &Value) -> Vec<(Value, Value)> {
        let decoder = self.model;
        let positions = self.cast("/model/rotary/Cast", positions, Element::F32);
        let wide = self.unsqueeze("/model/rotary/Unsqueeze", &positions, &[2]);
        let mut rotations = Vec::with_capacity(decoder.ropes.len());
        for (i, rope) in decoder.ropes.iter().enumerate() {
            let path = format!("/model/rotary.{i}");
            let name = format!("model.rotary.{i}.frequencies");
            let mut frequencies = self.graph.floats(&name, &rope.frequencies, &[1, 1, rope.frequencies.len() as u64]);
            if let Some(long) = &rope.long {
                let name = format!("model.rotary.{i}.long_frequencies");
                let others = self.graph.floats(&name, &long.frequencies, &[1, 1, long.frequencies.len() as u64]);
                let attributes = [("keepdims", Attribute::Int(0))];
                let last = self.graph.node(
                    "ReduceMax",
                    &format!("{path}/ReduceMax"),
                    &[&positions],
                    Element::F32,
                    &attributes,
                );
                // Positions count from zero.
                let limit = self.graph.float(Element::F32, long.after as f32 - 1.0);
                let is_long =
                    self.graph.node("Greater", &format!("{path}/Greater"), &[&last, &limit], Element::Bool, &[]);
                let inputs = [&is_long, &others, &frequencies];
                frequencies = self.graph.node("Where", &format!("{path}/Where"), &inputs, Element::F32, &[]);
            }
            let angles = self.graph.node("Mul", &format!("{path}/Mul"), &[&wide, &frequencies], Element::F32, &[]);
            let [cos, sin] = ["Cos", "Sin"].map(|op| {
                let mut value = self.graph.node(op, &format!("{path}/{op}"), &[&angles], Element::F32, &[]);
                if rope.scale != 1.0 {
                    value = self.scaled(&format!("{path}/{op}/Scale"), &value, rope.scale.into());
                }
                let value = self.cast(&format!("{path}/{op}/Cast"), &value, self.element);
                if self.graph.profile() == Profile::Ort {
                    return self.reshape(&format!("{path}/{op}/Rows"), &value, &[-1, rope.frequencies.len() as i64]);
                }
                value
            });
            rotations.push((cos, sin));
        }
        rotations
    }

    /// Attention of one layer, from projections to projection.
    pub(super) fn attention(
        &mut self,
        layer: usize,
        x: &Value,
        past: &(Value, Value),
        shared: &Shared,
        present: &mut Vec<(Value, Value)>,
    ) -> Value {
        let d = self.model;
        let path = format!("/model/layers.{layer}/attn");
        let role = format!("blk.{layer}");
        let (q_size, kv_size) = (d.heads * d.head_dim, d.kv_heads * d.head_dim);
        let parts = [("q", q_size), ("k", kv_size), ("v", kv_size)];
        let parts = parts.map(|(part, size)| (format!("{path}/{part}_proj"), format!("{role}.attn_{part}"), size));
        let whole = (&*format!("{path}/qkv_proj"), &*format!("{role}.attn_qkv"));
        let [q, k, v] = self.linears(whole, d.fused_attention, parts, x, d.hidden);
        let [q, k] = [("q", q, d.heads), ("k", k, d.kv_heads)].map(|(name, x, heads)| {
            let x = self.head_norm(&format!("{path}/{name}_norm"), &format!("{role}.attn_{name}_norm"), x, heads);
            match d.layers[layer].rope {
                Some(rope) => {
                    let pairs = d.ropes[rope].frequencies.len() as u64;
                    let rows = shared.lengths.as_ref().map(|lengths| &lengths.rows);
                    self.rotate(&format!("{path}/{name}_rotary"), &x, (heads, pairs), &shared.rotations[rope], rows)
                }
                None => x,
            }
        });
        let window = d.layers[layer].window;
        let mask = shared.masks.iter().find(|(known, _)| *known == window).map(|(_, mask)| mask);
        let mask = mask.expect("there is a mask for every window of a layer");
        let y = match (self.graph.profile(), &shared.lengths) {
            (Profile::Std, _) => self.attention_operator(&path, [&q, &k, &v], mask, past, present),
            (_, Some(lengths)) => self.attention_of_groups(&path, [&q, &k, &v], (mask, lengths), past, present),
            (_, None) => self.attention_products(&path, [&q, &k, &v], mask, past, present),
        };
        self.linear(&format!("{path}/o_proj"), &format!("{role}.attn_output"), &y, q_size, d.hidden)
    }

    /// The norm of queries or keys, `[batch, sequence, heads * width]`.
    fn head_norm(&mut self, path: &str, role: &str, x: Value, heads: u64) -> Value {
        let width = self.model.head_dim;
        match self.model.qk_norm {
            QkNorm::None => x,
            QkNorm::Whole => self.norm_of(path, role, &x, heads * width),
            QkNorm::Head => {
                let split = self.reshape(&format!("{path}/Heads"), &x, &[0, 0, heads as i64, width as i64]);
                let normed = self.norm_of(path, role, &split, width);
                self.reshape(&format!("{path}/Reshape"), &normed, &[0, 0, (heads * width) as i64])
            }
        }
    }

    /// Queries or keys rotated by their positions, in the same shape.
    fn rotate(
        &mut self,
        path: &str,
        x: &Value,
        (heads, pairs): (u64, u64),
        (cos, sin): &(Value, Value),
        rows: Option<&Value>,
    ) -> Value {
        let d = self.model;
        let rotated = 2 * pairs;
        let mut attributes = vec![("num_heads", Attribute::Int(heads as i64))];
        if rotated < d.head_dim {
            attributes.push(("rotary_embedding_dim", Attribute::Int(rotated as i64)));
        }
        if let Some(rows) = rows {
            let (op, inputs) = ("com.microsoft.RotaryEmbedding", [x, rows, cos, sin]);
            return self.graph.node(op, &format!("{path}/Rotary"), &inputs, self.element, &attributes);
        }
        if self.graph.profile() == Profile::Std {
            return self.graph.node(
                "RotaryEmbedding",
                &format!("{path}/Rotary"),
                &[x, cos, sin],
                self.element,
                &attributes,
            );
        }
        let e = self.element;
        let split = self.reshape(&format!("{path}/Heads"), x, &[0, 0, heads as i64, d.head_dim as i64]);
        let (half, whole) = (pairs as i64, d.head_dim as i64);
        let first = self.slice(&format!("{path}/First"), &split, 0, half, 3);
        let second = self.slice(&format!("{path}/Second"), &split, half, 2 * half, 3);
        let [cos, sin] =
            [("Cos", cos), ("Sin", sin)].map(|(name, value)| self.unsqueeze(&format!("{path}/{name}"), value, &[2]));
        let mut product =
            |name: &str, a: &Value, b: &Value| self.graph.node("Mul", &format!("{path}/{name}"), &[a, b], e, &[]);
        let [a, b] = [product("FirstCos", &first, &cos), product("SecondSin", &second, &sin)];
        let [c, f] = [product("SecondCos", &second, &cos), product("FirstSin", &first, &sin)];
        let mut parts = vec![
            self.graph.node("Sub", &format!("{path}/Sub"), &[&a, &b], e, &[]),
            self.graph.node("Add", &format!("{path}/Add"), &[&c, &f], e, &[]),
        ];
        if 2 * half < whole {
            parts.push(self.slice(&format!("{path}/Rest"), &split, 2 * half, whole, 3));
        }
        let parts: Vec<&Value> = parts.iter().collect();
        let joined = self.graph.node("Concat", &format!("{path}/Concat"), &parts, e, &[("axis", Attribute::Int(3))]);
        self.reshape(&format!("{path}/Reshape"), &joined, &[0, 0, (heads * d.head_dim) as i64])
    }

    /// The attention of opset 23, which keeps the cache itself.
    fn attention_operator(
        &mut self,
        path: &str,
        [q, k, v]: [&Value; 3],
        mask: &Value,
        past: &(Value, Value),
        present: &mut Vec<(Value, Value)>,
    ) -> Value {
        let mut attributes = self.attention_attributes("q_num_heads");
        if self.element != Element::F32 {
            attributes.push(("softmax_precision", Attribute::Int(Element::F32.id().into())));
        }
        let inputs = [q, k, v, mask, &past.0, &past.1];
        let name = format!("{path}/Attention");
        let [y, key, value] = self.graph.node_with("Attention", &name, &inputs, [self.element; 3], &attributes);
        present.push((key, value));
        y
    }

    /// What both operators are told; they call the number of query heads differently.
    fn attention_attributes(&self, query_heads: &'static str) -> Vec<(&'static str, Attribute)> {
        let d = self.model;
        let mut attributes = vec![
            (query_heads, Attribute::Int(d.heads as i64)),
            ("kv_num_heads", Attribute::Int(d.kv_heads as i64)),
            ("scale", Attribute::Float(d.attention_scale as f32)),
        ];
        attributes.extend(d.attention_softcap.map(|cap| ("softcap", Attribute::Float(cap as f32))));
        attributes
    }

    /// The attention of ONNX Runtime, which keeps the cache itself.
    fn attention_of_groups(
        &mut self,
        path: &str,
        [q, k, v]: [&Value; 3],
        (mask, lengths): (&Value, &Lengths),
        past: &(Value, Value),
        present: &mut Vec<(Value, Value)>,
    ) -> Value {
        let attributes = self.attention_attributes("num_heads");
        // Cosines, sines and positions are for a rotation within the operator.
        let none = Value::none();
        let inputs = [q, k, v, &past.0, &past.1, &lengths.last, &lengths.total, &none, &none, &none, mask];
        let name = format!("{path}/GroupQueryAttention");
        let [y, key, value] =
            self.graph.node_with("GroupQueryAttention", &name, &inputs, [self.element; 3], &attributes);
        present.push((key, value));
        y
    }

    /// The same as products and a softmax. Query heads of one key head are rows of one matrix, so that nothing is
    /// repeated.
    fn attention_products(
        &mut self,
        path: &str,
        [q, k, v]: [&Value; 3],
        mask: &Value,
        past: &(Value, Value),
        present: &mut Vec<(Value, Value)>,
    ) -> Value {
        let d = self.model;
        let e = self.element;
        let (heads, kv_heads, width) = (d.heads as i64, d.kv_heads as i64, d.head_dim as i64);
        let mut by_head = |name: &str, x: &Value, heads: i64| {
            let split = self.reshape(&format!("{path}/{name}/Heads"), x, &[0, 0, heads, width]);
            self.transpose(&format!("{path}/{name}/Transpose"), &split, [0, 2, 1, 3])
        };
        let (q, k, v) = (by_head("q", q, heads), by_head("k", k, kv_heads), by_head("v", v, kv_heads));
        let mut joined = |name: &str, past: &Value, new: &Value| {
            self.graph.node("Concat", &format!("{path}/{name}/Concat"), &[past, new], e, &[("axis", Attribute::Int(2))])
        };
        let (key, value) = (joined("k", &past.0, &k), joined("v", &past.1, &v));
        // Before the product, where the numbers are small.
        let q = self.scaled(&format!("{path}/q/Scale"), &q, d.attention_scale);
        let q = self.reshape(&format!("{path}/q/Groups"), &q, &[0, kv_heads, -1, width]);
        let keys = self.transpose(&format!("{path}/k/Columns"), &key, [0, 1, 3, 2]);
        let scores = self.graph.node("MatMul", &format!("{path}/scores/MatMul"), &[&q, &keys], e, &[]);
        let mut scores = self.cast(&format!("{path}/scores/Cast"), &scores, Element::F32);
        if let Some(cap) = d.attention_softcap {
            scores = self.softcap(&format!("{path}/scores/softcap"), &scores, cap);
        }
        let scores = self.reshape(&format!("{path}/scores/Heads"), &scores, &[0, heads, -1, 0]);
        let lowest = self.graph.float(Element::F32, -1e30);
        let scores =
            self.graph.node("Where", &format!("{path}/scores/Where"), &[mask, &scores, &lowest], Element::F32, &[]);
        let axis = [("axis", Attribute::Int(-1))];
        let shares = self.graph.node("Softmax", &format!("{path}/Softmax"), &[&scores], Element::F32, &axis);
        let shares = self.cast(&format!("{path}/shares/Cast"), &shares, e);
        let shares = self.reshape(&format!("{path}/shares/Groups"), &shares, &[0, kv_heads, -1, 0]);
        let y = self.graph.node("MatMul", &format!("{path}/values/MatMul"), &[&shares, &value], e, &[]);
        let y = self.reshape(&format!("{path}/values/Heads"), &y, &[0, heads, -1, width]);
        let y = self.transpose(&format!("{path}/values/Transpose"), &y, [0, 2, 1, 3]);
        present.push((key, value));
        self.reshape(&format!("{path}/values/Reshape"), &y, &[0, 0, heads * width])
    }
}
