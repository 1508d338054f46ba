//! The forward pass of a decoder: whole texts at once, no cache.

use super::{Outcome, Seen, Weights, activation, attention, rotated, softcap, spans};
use candle_core::Tensor;
use mlpack_arch::{Decoder, Mlp, Placement, QkNorm};

/// Logits `[positions of all texts, vocabulary]`.
pub(crate) fn decoder(d: &Decoder, weights: &Weights<'_>, texts: &[Vec<u32>]) -> Outcome<Tensor> {
    let numbers: Vec<u64> = texts.iter().flatten().map(|token| u64::from(*token)).collect();
    let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
    let pass = Pass { d, weights, spans: spans(&lengths) };
    let mut x = weights.looked_up("token_embd.weight", &numbers)?;
    if let Some(scale) = d.embedding_scale {
        x = (x * f64::from(scale as f32))?;
    }
    for i in 0..d.layers.len() {
        x = pass.layer(i, x)?;
    }
    let x = pass.norm("output_norm", &x)?;
    let mut logits = if d.tied { weights.product("token_embd.weight", &x)? } else { weights.linear("output", &x)? };
    if let Some(divisor) = d.logit_divisor {
        logits = (logits / divisor)?;
    }
    Ok(softcap(&logits, d.logit_softcap)?)
}

struct Pass<'a> {
    d: &'a Decoder,
    weights: &'a Weights<'a>,
    spans: Vec<(usize, usize)>,
}

impl Pass<'_> {
    fn norm(&self, name: &str, x: &Tensor) -> Outcome<Tensor> {
        self.weights.norm(name, x, self.d.norm, self.d.epsilon)
    }

    fn layer(&self, i: usize, x: Tensor) -> Outcome<Tensor> {
        let (before, after) = match self.d.placement {
            Placement::Before => (true, false),
            Placement::After => (false, true),
            Placement::Around => (true, true),
        };
        let parts = [("attn_norm", "post_attention_norm"), ("ffn_norm", "post_ffw_norm")];
        let mut x = x;
        for (part, (norm_before, norm_after)) in parts.into_iter().enumerate() {
            let mut y = if before { self.norm(&format!("blk.{i}.{norm_before}"), &x)? } else { x.clone() };
            y = if part == 0 { self.attention(i, &y)? } else { self.mlp(i, &y)? };
            if after {
                y = self.norm(&format!("blk.{i}.{norm_after}"), &y)?;
            }
            if let Some(scale) = self.d.residual_scale {
                y = (y * scale)?;
            }
            x = (x + y)?;
        }
        Ok(x)
    }

    fn attention(&self, i: usize, x: &Tensor) -> Outcome<Tensor> {
        let d = self.d;
        let (q_size, kv_size) = ((d.heads * d.head_dim) as usize, (d.kv_heads * d.head_dim) as usize);
        let linear = |name: &str| self.weights.linear(&format!("blk.{i}.attn_{name}"), x);
        let [q, k, v] = if d.fused_attention {
            let all = linear("qkv")?;
            [all.narrow(1, 0, q_size)?, all.narrow(1, q_size, kv_size)?, all.narrow(1, q_size + kv_size, kv_size)?]
        } else {
            [linear("q")?, linear("k")?, linear("v")?]
        };
        let q = self.head_norm(&format!("blk.{i}.attn_q_norm"), q, d.heads)?;
        let k = self.head_norm(&format!("blk.{i}.attn_k_norm"), k, d.kv_heads)?;
        let layer = d.layers[i];
        let sees = |query: usize, key: usize| key <= query && layer.window.is_none_or(|w| ((query - key) as u64) < w);
        let seen = Seen { sees: &sees, bias: None, scale: d.attention_scale, softcap: d.attention_softcap };
        let mut texts = Vec::with_capacity(self.spans.len());
        for &(start, n) in &self.spans {
            let [mut q, mut k, v] = [q.narrow(0, start, n)?, k.narrow(0, start, n)?, v.narrow(0, start, n)?];
            if let Some(rope) = layer.rope {
                q = rotated(&q, d.heads, &d.ropes[rope])?;
                k = rotated(&k, d.kv_heads, &d.ropes[rope])?;
            }
            texts.push(attention(&q, &k, &v, (d.heads, d.kv_heads), &seen)?);
        }
        self.weights.linear(&format!("blk.{i}.attn_output"), &Tensor::cat(&texts, 0)?)
    }

    /// The norm of queries or keys.
    fn head_norm(&self, name: &str, x: Tensor, heads: u64) -> Outcome<Tensor> {
        match self.d.qk_norm {
            QkNorm::None => Ok(x),
            QkNorm::Whole => self.norm(name, &x),
            QkNorm::Head => {
                let (n, all) = x.dims2()?;
                let split = x.reshape((n, heads as usize, all / heads as usize))?;
                Ok(self.norm(name, &split)?.reshape((n, all))?)
            }
        }
    }

    fn mlp(&self, i: usize, x: &Tensor) -> Outcome<Tensor> {
        let d = self.d;
        let linear = |name: &str, x: &Tensor| self.weights.linear(&format!("blk.{i}.ffn_{name}"), x);
        let up = linear("up", x)?;
        let inner = match d.mlp {
            Mlp::Plain => activation(&up, d.activation)?,
            Mlp::Gated => (activation(&linear("gate", x)?, d.activation)? * up)?,
            Mlp::GatedFused => {
                let width = d.feed_forward as usize;
                let gate = up.narrow(1, 0, width)?.contiguous()?;
                (activation(&gate, d.activation)? * up.narrow(1, width, width)?)?
            }
        };
        linear("down", &inner)
    }
}
