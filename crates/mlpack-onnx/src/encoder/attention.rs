//! Attention of an encoder: every position sees every other that is text, or those within a window.

use super::{Inputs, Shared};
use crate::element::Element;
use crate::graph::{Attribute, Value};
use crate::recipe::Recipe;
use mlpack_arch::Encoder;

/// Distances beyond which relative positions are one bucket (transformers 5.23.0, MPNet).
const MAX_DISTANCE: i64 = 128;

impl Recipe<&Encoder> {
    /// Masks, rotations and the bias of relative positions.
    pub(super) fn shared(&mut self, inputs: &Inputs) -> Shared {
        let e = self.model;
        let zero_dim = self.graph.ints(&[0]);
        let length = self.graph.node("Squeeze", "/model/length", &[&inputs.sequence, &zero_dim], Element::I64, &[]);
        let (zero, one) = (self.graph.int(0), self.graph.int(1));
        let keys = self.graph.node("Range", "/model/mask/keys/Range", &[&zero, &length, &one], Element::I64, &[]);
        let queries = self.unsqueeze("/model/mask/queries/Unsqueeze", &keys, &[1]);
        // Key minus query.
        let distance = self.graph.node("Sub", "/model/mask/distance/Sub", &[&keys, &queries], Element::I64, &[]);
        // A position attends to itself even where it is padding: its row would else be empty.
        let own = self.graph.node("Equal", "/model/mask/own/Equal", &[&distance, &zero], Element::Bool, &[]);
        let real = self.cast("/model/mask/real/Cast", &inputs.attended, Element::Bool);
        let real = self.unsqueeze("/model/mask/real/Unsqueeze", &real, &[1, 2]);
        let full = self.graph.node("Or", "/model/mask/full/Or", &[&real, &own], Element::Bool, &[]);
        let mut windows: Vec<Option<u64>> = e.layers.iter().map(|layer| layer.window).collect();
        windows.sort_unstable();
        windows.dedup();
        let mut masks = Vec::with_capacity(windows.len());
        for window in windows {
            let mut mask = full.clone();
            if let Some(window) = window {
                let path = format!("/model/mask/window_{window}");
                let size = self.graph.int(window as i64);
                let far = self.graph.node("Abs", &format!("{path}/Abs"), &[&distance], Element::I64, &[]);
                let near =
                    self.graph.node("LessOrEqual", &format!("{path}/LessOrEqual"), &[&far, &size], Element::Bool, &[]);
                mask = self.graph.node("And", &format!("{path}/And"), &[&full, &near], Element::Bool, &[]);
            }
            masks.push((window, mask));
        }
        let rotations = self.encoder_rotations(&keys);
        let bias = e.names.relative_bias.as_ref().map(|name| self.relative_bias(name, &distance));
        Shared { masks, rotations, bias }
    }

    fn encoder_rotations(&mut self, keys: &Value) -> Vec<(Value, Value)> {
        let e = self.model;
        let mut rotations = Vec::with_capacity(e.ropes.len());
        for (i, rope) in e.ropes.iter().enumerate() {
            let path = format!("/model/rotary.{i}");
            let pairs = rope.frequencies.len() as u64;
            let frequencies =
                self.graph.floats(&format!("model.rotary.{i}.frequencies"), &rope.frequencies, &[1, 1, pairs]);
            let positions = self.cast(&format!("{path}/Cast"), keys, Element::F32);
            let positions = self.unsqueeze(&format!("{path}/Unsqueeze"), &positions, &[0, 2]);
            let angles = self.graph.node("Mul", &format!("{path}/Mul"), &[&positions, &frequencies], Element::F32, &[]);
            let [cos, sin] = ["Cos", "Sin"].map(|op| {
                let mut value = self.graph.node(op, &format!("{path}/{op}"), &[&angles], Element::F32, &[]);
                if rope.scale != 1.0 {
                    value = self.scaled(&format!("{path}/{op}/Scale"), &value, rope.scale.into());
                }
                self.cast(&format!("{path}/{op}/Cast"), &value, self.element)
            });
            rotations.push((cos, sin));
        }
        rotations
    }

    /// What each head adds to the scores of two positions, by the bucket of their distance.
    fn relative_bias(&mut self, name: &str, distance: &Value) -> Value {
        let e = self.model;
        let path = "/model/relative";
        let (role, shape) = (format!("{name}.weight"), [e.buckets, e.heads]);
        self.weights.take(&role, &shape);
        let table_of_distances: Vec<i64> =
            (-MAX_DISTANCE..=MAX_DISTANCE).map(|d| bucket(d, e.buckets as i64)).collect();
        let buckets = self.graph.ints(&table_of_distances);
        let (lowest, highest) = (self.graph.int(-MAX_DISTANCE), self.graph.int(MAX_DISTANCE));
        let clipped = self.graph.node("Max", &format!("{path}/Max"), &[distance, &lowest], Element::I64, &[]);
        let clipped = self.graph.node("Min", &format!("{path}/Min"), &[&clipped, &highest], Element::I64, &[]);
        let places = self.graph.node("Add", &format!("{path}/Add"), &[&clipped, &highest], Element::I64, &[]);
        let rows = self.graph.node("Gather", &format!("{path}/Buckets"), &[&buckets, &places], Element::I64, &[]);
        let bias = self.looked_up(path, "model.relative.weight", &role, shape, &rows);
        let order = [("perm", Attribute::Ints(vec![2, 0, 1]))];
        let bias = self.graph.node("Transpose", &format!("{path}/Transpose"), &[&bias], self.element, &order);
        self.unsqueeze(&format!("{path}/Unsqueeze"), &bias, &[0])
    }

    /// Attention of one layer, from projections to projection.
    pub(super) fn attention(&mut self, i: usize, x: &Value, shared: &Shared) -> Value {
        let e = self.model;
        let path = format!("/model/layers.{i}/attn");
        let name = |template: &str| template.replace("{}", &i.to_string());
        let [mut q, mut k, v] = match (&e.names.qkv, &e.names.query, &e.names.key, &e.names.value) {
            (None, Some(q), Some(k), Some(v)) => [("q", q), ("k", k), ("v", v)]
                .map(|(part, role)| self.linear(&format!("{path}/{part}"), &name(role), x, e.hidden, e.hidden)),
            (qkv, ..) => {
                let role = name(qkv.as_deref().unwrap_or_default());
                let all = self.linear(&format!("{path}/qkv"), &role, x, e.hidden, 3 * e.hidden);
                let width = e.hidden as i64;
                [0, 1, 2]
                    .map(|part| self.slice(&format!("{path}/Part_{part}"), &all, part * width, (part + 1) * width, 2))
            }
        };
        if let Some(rope) = e.layers[i].rope {
            let rotation = &shared.rotations[rope];
            [q, k] = [("q", q), ("k", k)].map(|(part, x)| self.rotated(&format!("{path}/{part}_rotary"), &x, rotation));
        }
        let window = e.layers[i].window;
        let mask = shared.masks.iter().find(|(known, _)| *known == window).map(|(_, mask)| mask);
        let mask = mask.expect("there is a mask for every window of a layer");
        let y = self.scores(&path, [&q, &k, &v], mask, shared.bias.as_ref());
        self.linear(&format!("{path}/o"), &name(&e.names.attention_output), &y, e.hidden, e.hidden)
    }

    fn rotated(&mut self, path: &str, x: &Value, (cos, sin): &(Value, Value)) -> Value {
        let e = self.model;
        let (heads, width, half) = (e.heads as i64, e.head_dim as i64, e.head_dim as i64 / 2);
        let split = self.reshape(&format!("{path}/Heads"), x, &[0, 0, heads, width]);
        let first = self.slice(&format!("{path}/First"), &split, 0, half, 3);
        let second = self.slice(&format!("{path}/Second"), &split, half, width, 3);
        let [cos, sin] =
            [("Cos", cos), ("Sin", sin)].map(|(name, value)| self.unsqueeze(&format!("{path}/{name}"), value, &[2]));
        let mut node = |op: &'static str, name: &str, a: &Value, b: &Value| {
            self.graph.node(op, &format!("{path}/{name}"), &[a, b], x.element(), &[])
        };
        let (a, b) = (node("Mul", "FirstCos", &first, &cos), node("Mul", "SecondSin", &second, &sin));
        let (c, d) = (node("Mul", "SecondCos", &second, &cos), node("Mul", "FirstSin", &first, &sin));
        let (low, high) = (node("Sub", "Sub", &a, &b), node("Add", "Add", &c, &d));
        let axis = [("axis", Attribute::Int(3))];
        let joined = self.graph.node("Concat", &format!("{path}/Concat"), &[&low, &high], self.element, &axis);
        self.reshape(&format!("{path}/Reshape"), &joined, &[0, 0, heads * width])
    }

    /// Shares of values by the products of queries and keys, in float32 where it matters.
    fn scores(&mut self, path: &str, [q, k, v]: [&Value; 3], mask: &Value, bias: Option<&Value>) -> Value {
        let e = self.model;
        let (heads, width) = (e.heads as i64, e.head_dim as i64);
        let scale = 1.0 / (e.head_dim as f64).sqrt();
        let mut by_head = |part: &str, x: &Value, order: [i64; 4]| {
            let split = self.reshape(&format!("{path}/{part}/Heads"), x, &[0, 0, heads, width]);
            self.transpose(&format!("{path}/{part}/Transpose"), &split, order)
        };
        let (q, k, v) = (by_head("q", q, [0, 2, 1, 3]), by_head("k", k, [0, 2, 3, 1]), by_head("v", v, [0, 2, 1, 3]));
        let q = self.scaled(&format!("{path}/q/Scale"), &q, scale);
        let scores = self.graph.node("MatMul", &format!("{path}/scores/MatMul"), &[&q, &k], self.element, &[]);
        let mut scores = self.cast(&format!("{path}/scores/Cast"), &scores, Element::F32);
        if let Some(bias) = bias {
            let bias = self.cast(&format!("{path}/bias/Cast"), bias, Element::F32);
            scores = self.graph.node("Add", &format!("{path}/bias/Add"), &[&scores, &bias], Element::F32, &[]);
        }
        let lowest = self.graph.float(Element::F32, -1e30);
        let inputs = [mask, &scores, &lowest];
        let scores = self.graph.node("Where", &format!("{path}/scores/Where"), &inputs, Element::F32, &[]);
        let axis = [("axis", Attribute::Int(-1))];
        let shares = self.graph.node("Softmax", &format!("{path}/Softmax"), &[&scores], Element::F32, &axis);
        let shares = self.cast(&format!("{path}/shares/Cast"), &shares, self.element);
        let y = self.graph.node("MatMul", &format!("{path}/values/MatMul"), &[&shares, &v], self.element, &[]);
        let y = self.transpose(&format!("{path}/values/Transpose"), &y, [0, 2, 1, 3]);
        self.reshape(&format!("{path}/values/Reshape"), &y, &[0, 0, heads * width])
    }
}

/// The bucket of a relative position (key minus query), as transformers computes it in float32: each distance below a
/// quarter of the buckets has one, the others share the rest in logarithmic steps.
fn bucket(distance: i64, buckets: i64) -> i64 {
    let half = buckets / 2;
    let exact = half / 2;
    let start = if distance > 0 { half } else { 0 };
    let n = distance.abs();
    if n < exact {
        return start + n;
    }
    let steps =
        ((n as f32 / exact as f32).ln() / ((MAX_DISTANCE as f64 / exact as f64).ln() as f32)) * (half - exact) as f32;
    start + (exact + steps as i64).min(half - 1)
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn near_positions_have_buckets_of_their_own_and_far_ones_share() {
        assert_eq!([-3, 0, 3, 7, 8].map(|d| bucket(d, 32)), [3, 0, 19, 23, 24]);
        assert_eq!([-16, -64, -127, -128, 128].map(|d| bucket(d, 32)), [10, 14, 15, 15, 31]);
    }
}
