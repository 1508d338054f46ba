//! Norms and the feed-forward network of a decoder.

use crate::graph::Value;
use crate::recipe::Recipe;
use mlpack_arch::{Decoder, Mlp};

impl Recipe<&Decoder> {
    /// A norm over the last dimension, with the weights of `role`.
    pub(super) fn norm(&mut self, path: &str, role: &str, x: &Value) -> Value {
        self.norm_of(path, role, x, self.model.hidden)
    }

    /// A norm over the last dimension of a given size.
    pub(super) fn norm_of(&mut self, path: &str, role: &str, x: &Value, size: u64) -> Value {
        self.normed(path, role, x, (self.model.norm, size, self.model.epsilon))
    }

    /// The feed-forward network.
    pub(super) fn mlp(&mut self, path: &str, role: &str, x: &Value) -> Value {
        let (hidden, width) = (self.model.hidden, self.model.feed_forward);
        if self.model.mlp == Mlp::Plain {
            let up = self.linear(&format!("{path}/up_proj"), &format!("{role}.ffn_up"), x, hidden, width);
            let inner = self.activation(&format!("{path}/act"), &up, self.model.activation);
            return self.linear(&format!("{path}/down_proj"), &format!("{role}.ffn_down"), &inner, width, hidden);
        }
        let is_fused = self.model.mlp == Mlp::GatedFused;
        let whole = if is_fused { format!("{role}.ffn_up") } else { format!("{role}.ffn_gate_up") };
        let parts = ["gate", "up"].map(|part| (format!("{path}/{part}_proj"), format!("{role}.ffn_{part}"), width));
        let [gate, up] = self.linears((&format!("{path}/gate_up_proj"), &whole), is_fused, parts, x, hidden);
        let gate = self.activation(&format!("{path}/act"), &gate, self.model.activation);
        let inner = self.graph.node("Mul", &format!("{path}/Mul"), &[&gate, &up], self.element, &[]);
        self.linear(&format!("{path}/down_proj"), &format!("{role}.ffn_down"), &inner, width, hidden)
    }
}
