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
        let inner = match self.model.mlp {
            Mlp::Plain => {
                let up = self.linear(&format!("{path}/up_proj"), &format!("{role}.ffn_up"), x, hidden, width);
                self.activation(&format!("{path}/act"), &up, self.model.activation)
            }
            Mlp::Gated => {
                let gate = self.linear(&format!("{path}/gate_proj"), &format!("{role}.ffn_gate"), x, hidden, width);
                let up = self.linear(&format!("{path}/up_proj"), &format!("{role}.ffn_up"), x, hidden, width);
                self.gated(path, &gate, &up)
            }
            Mlp::GatedFused => {
                let both =
                    self.linear(&format!("{path}/gate_up_proj"), &format!("{role}.ffn_up"), x, hidden, 2 * width);
                let gate = self.slice(&format!("{path}/Gate"), &both, 0, width as i64, 2);
                let up = self.slice(&format!("{path}/Up"), &both, width as i64, 2 * width as i64, 2);
                self.gated(path, &gate, &up)
            }
        };
        self.linear(&format!("{path}/down_proj"), &format!("{role}.ffn_down"), &inner, width, hidden)
    }

    fn gated(&mut self, path: &str, gate: &Value, up: &Value) -> Value {
        let gate = self.activation(&format!("{path}/act"), gate, self.model.activation);
        self.graph.node("Mul", &format!("{path}/Mul"), &[&gate, up], self.element, &[])
    }
}
