//! What a diff says, in the order in which a person reads it, and figures as text.

use mlpack_convert::{Diff, Exceeded, Limits, TensorDiff, TensorError, bits_per_weight};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Two files and how far apart they are.
pub struct Report {
    /// The source, as it was called.
    pub a: String,
    /// The file made from it, as it was called.
    pub b: String,
    /// What is accepted.
    pub limits: Limits,
    /// The tensors: those outside the layers first, then by layer and kind.
    pub diff: Diff,
}

/// Tensors that do the same in different layers, or one outside them.
pub struct Kind<'a> {
    /// The name without layer and `.weight`.
    pub name: String,
    /// The tensors in the order of their layers.
    pub tensors: Vec<(Option<u64>, &'a TensorDiff)>,
}

/// What comes first within a layer; the others follow by name.
const READING_ORDER: [&str; 11] = [
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_down_exps",
];

/// More layers than any model has (llama.cpp b11434 takes 512): a larger number in a name is no layer, and does not
/// stretch the plots.
const LAYERS: u64 = 4096;

impl Report {
    /// Puts the tensors in reading order.
    pub fn new(a: String, b: String, mut diff: Diff, limits: Limits) -> Report {
        diff.tensors.sort_by_cached_key(|t| {
            let (layer, kind) = layer_and_kind(&t.name);
            // Outside the layers the order of the file says most.
            layer.map(|layer| (layer, rank(&kind), kind))
        });
        Report { a, b, limits, diff }
    }

    /// The error over all elements.
    pub fn total(&self) -> TensorError {
        TensorError::total(self.diff.tensors.iter().map(|t| &t.error))
    }

    /// Bits for each element, over all tensors.
    pub fn bits_per_weight(&self) -> f64 {
        bits_per_weight(self.diff.tensors.iter().map(|t| t.byte_len).sum(), self.total().elements)
    }

    /// The tensors by kind: those outside the layers, then the kinds of the layers in reading order.
    pub fn kinds(&self) -> Vec<Kind<'_>> {
        let mut kinds: Vec<Kind<'_>> = Vec::new();
        let mut places = BTreeMap::new();
        for tensor in &self.diff.tensors {
            let (layer, name) = layer_and_kind(&tensor.name);
            let place = *places.entry((layer.is_some(), name.clone())).or_insert_with(|| {
                kinds.push(Kind { name, tensors: Vec::new() });
                kinds.len() - 1
            });
            kinds[place].tensors.push((layer, tensor));
        }
        kinds.sort_by_cached_key(|k| k.is_layered().then(|| (rank(&k.name), k.name.clone())));
        kinds
    }

    /// The tensors, the largest relative error first; what is not a number is before all others.
    pub fn worst_first(&self) -> Vec<&TensorDiff> {
        let mut tensors: Vec<&TensorDiff> = self.diff.tensors.iter().collect();
        tensors.sort_by(|x, y| largest(y.error.relative_rmse()).total_cmp(&largest(x.error.relative_rmse())));
        tensors
    }

    /// The limits that a tensor does not keep.
    pub fn exceeded(&self, tensor: &TensorDiff) -> Vec<Exceeded> {
        self.limits.exceeded(&tensor.error)
    }

    /// How many tensors do not keep the limits.
    pub fn exceeding(&self) -> usize {
        self.diff.tensors.iter().filter(|t| !self.exceeded(t).is_empty()).count()
    }

    /// Tensors that could not be compared: they are in one file only, or have another shape.
    pub fn not_compared(&self) -> usize {
        self.diff.only_in_a.len() + self.diff.only_in_b.len() + self.diff.reshaped.len()
    }

    /// Whether every tensor was compared and keeps the limits; without limits there is nothing to keep.
    pub fn holds(&self) -> bool {
        !self.limits.any() || (self.exceeding() == 0 && self.not_compared() == 0)
    }

    /// The limits in words; empty without any.
    pub fn limits_text(&self) -> String {
        let rmse = self.limits.max_rmse.map(|limit| format!("RMSE at most {limit}"));
        let cosine = self.limits.min_cosine.map(|limit| format!("cosine at least {limit}"));
        rmse.into_iter().chain(cosine).collect::<Vec<_>>().join(", ")
    }
}

impl Kind<'_> {
    /// Whether it is a kind of the layers.
    pub fn is_layered(&self) -> bool {
        self.tensors.iter().all(|(layer, _)| layer.is_some())
    }

    /// The error over all its elements.
    pub fn total(&self) -> TensorError {
        TensorError::total(self.tensors.iter().map(|(_, t)| &t.error))
    }

    /// Whether every tensor is what it was.
    pub fn is_exact(&self) -> bool {
        self.total().squared_error == 0.0
    }

    /// Bits for each element.
    pub fn bits_per_weight(&self) -> f64 {
        bits_per_weight(self.tensors.iter().map(|(_, t)| t.byte_len).sum(), self.total().elements)
    }

    /// The types in B with the number of tensors of each, the most frequent first.
    pub fn types(&self) -> Vec<(&'static str, usize)> {
        let mut counts = BTreeMap::new();
        for (_, tensor) in &self.tensors {
            *counts.entry(tensor.b.name()).or_insert(0) += 1;
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|(_, n)| Reverse(*n));
        counts
    }
}

/// The layer of a tensor and its name without it: `blk.7.attn_q.weight` is `attn_q` of layer 7.
pub fn layer_and_kind(name: &str) -> (Option<u64>, String) {
    let short = name.strip_suffix(".weight").unwrap_or(name);
    let parts: Vec<&str> = short.split('.').collect();
    let number = |part: &&str| {
        let digits = part.bytes().all(|b| b.is_ascii_digit());
        part.parse().ok().filter(|layer| digits && *layer < LAYERS)
    };
    let Some((at, layer)) = parts.iter().enumerate().find_map(|(i, part)| Some((i, number(part)?))) else {
        return (None, short.to_owned());
    };
    let kind: Vec<&str> =
        parts.iter().enumerate().filter(|(i, part)| *i != at && **part != "blk").map(|(_, part)| *part).collect();
    (Some(layer), kind.join("."))
}

fn rank(kind: &str) -> usize {
    READING_ORDER.iter().position(|k| *k == kind).unwrap_or(READING_ORDER.len())
}

/// For sorting: NaN counts as infinite.
fn largest(x: f64) -> f64 {
    if x.is_nan() { f64::INFINITY } else { x }
}

/// A figure with four significant digits.
pub fn figure(x: f64) -> String {
    significant(x, 4)
}

/// A ratio in percent, with three significant digits.
pub fn percent(ratio: f64) -> String {
    let percent = significant(ratio * 100.0, 3);
    if ratio.is_finite() { format!("{percent} %") } else { percent }
}

/// A cosine with six decimals; 1 is exactly 1.
pub fn cosine(x: f64) -> String {
    const NEARLY_ONE: f64 = 0.999_999_5;
    match x {
        1.0 => "1".to_owned(),
        x if x >= NEARLY_ONE => ">0.999999".to_owned(),
        x => format!("{x:.6}"),
    }
}

fn significant(x: f64, digits: i32) -> String {
    if x == 0.0 || !x.is_finite() {
        return x.to_string();
    }
    let exponent = x.abs().log10().floor() as i32;
    if (-5..7).contains(&exponent) {
        format!("{x:.*}", (digits - 1 - exponent).max(0) as usize)
    } else {
        format!("{x:.*e}", (digits - 1) as usize)
    }
}

/// A number of elements for people.
pub fn count(n: u64) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..1_000_000 => format!("{:.1} thousand", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} million", n as f64 / 1e6),
        _ => format!("{:.2} billion", n as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_layer_and_a_kind() {
        let of = |name| layer_and_kind(name);
        assert_eq!(of("blk.7.attn_q.weight"), (Some(7), "attn_q".to_owned()));
        assert_eq!(of("blk.12.attn_q.bias"), (Some(12), "attn_q.bias".to_owned()));
        assert_eq!(of("enc.blk.0.ffn_up.weight"), (Some(0), "enc.ffn_up".to_owned()));
        assert_eq!(of("token_embd.weight"), (None, "token_embd".to_owned()));
        assert_eq!(of("blk.+3.x.weight"), (None, "blk.+3.x".to_owned()));
        assert_eq!(of("blk.99999999999999999999.x"), (None, "blk.99999999999999999999.x".to_owned()));
        assert_eq!(of("blk.18446744073709551615.x"), (None, "blk.18446744073709551615.x".to_owned()));
    }

    #[test]
    fn figures_keep_their_significant_digits() {
        assert_eq!([0.0, 0.001_234_56, 12.345_67, 1.234_4e-9].map(figure), ["0", "0.001235", "12.35", "1.234e-9"]);
        assert_eq!([f64::NAN, f64::INFINITY, 123_456.0].map(figure), ["NaN", "inf", "123456"]);
        assert_eq!([0.052_11, 0.0, 1e-9, f64::NAN].map(percent), ["5.21 %", "0 %", "1.00e-7 %", "NaN"]);
        let cosines = [1.0, 0.999_999_99, 0.998_712_3, 0.0, f64::NAN];
        assert_eq!(cosines.map(cosine), ["1", ">0.999999", "0.998712", "0.000000", "NaN"]);
        let counts = [9_999, 123_456, 1_081_344, 7_000_000_000];
        assert_eq!(counts.map(count), ["9999", "123.5 thousand", "1.08 million", "7.00 billion"]);
    }
}
