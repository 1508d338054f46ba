//! The forward pass of an encoder and of what comes after its last layer.

use super::{Outcome, Seen, Weights, activation, attention, rotated, spans};
use candle_core::Tensor;
use mlpack_arch::{
    AfterPooling, Encoder, Head, HeadActivation, Norm, NormPlacement, PoolingMode, Positions, Task, TokenTypes,
};

/// Distances beyond which relative positions are one bucket (transformers 5.23.0, MPNet).
const MAX_DISTANCE: f32 = 128.0;

/// The outputs by name. What has a row for each position comes as `[positions of all texts, …]`, what has one for each text
/// as `[texts, …]`.
pub(crate) fn encoder(e: &Encoder, weights: &Weights<'_>, texts: &[Vec<u32>]) -> Outcome<Vec<(&'static str, Tensor)>> {
    let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
    let pass = Pass { e, weights, spans: spans(&lengths) };
    let mut x = pass.embeddings(texts)?;
    for i in 0..e.layers.len() {
        x = pass.layer(i, x)?;
    }
    if let Some(norm) = &e.names.final_norm {
        x = pass.norm(norm, &x)?;
    }
    pass.outputs(x)
}

/// The type of a token: the second half of a text has another one, where there are several.
pub(crate) fn token_type(place: usize, length: usize, types: u64) -> u64 {
    u64::from(types > 1 && place >= length / 2)
}

struct Pass<'a> {
    e: &'a Encoder,
    weights: &'a Weights<'a>,
    spans: Vec<(usize, usize)>,
}

impl Pass<'_> {
    fn norm(&self, name: &str, x: &Tensor) -> Outcome<Tensor> {
        self.weights.norm(name, x, Norm::Layer, self.e.epsilon)
    }

    fn embeddings(&self, texts: &[Vec<u32>]) -> Outcome<Tensor> {
        let e = self.e;
        let tokens: Vec<u64> = texts.iter().flatten().map(|token| u64::from(*token)).collect();
        let places = || texts.iter().flat_map(|text| (0..text.len()).map(|place| (place, text.len())));
        let mut x = self.weights.looked_up(&format!("{}.weight", e.names.word), &tokens)?;
        if let (Some(name), Some(kind)) = (&e.names.token_type, e.token_types) {
            let role = format!("{name}.weight");
            let count = if kind == TokenTypes::Input { self.weights.row_count(&role) } else { 1 };
            let types: Vec<u64> = places().map(|(place, length)| token_type(place, length, count)).collect();
            x = (x + self.weights.looked_up(&role, &types)?)?;
        }
        if let Some(name) = &e.names.position {
            let first = if e.positions == Positions::Unpadded { e.padding + 1 } else { 0 };
            let rows: Vec<u64> = places().map(|(place, _)| first + place as u64).collect();
            x = (x + self.weights.looked_up(&format!("{name}.weight"), &rows)?)?;
        }
        self.norm(&e.names.embedding_norm, &x)
    }

    fn layer(&self, i: usize, x: Tensor) -> Outcome<Tensor> {
        let e = self.e;
        let name = |template: &str| template.replace("{}", &i.to_string());
        let mut x = x;
        for (part, norm) in [&e.names.attention_norm, &e.names.output_norm].into_iter().enumerate() {
            let before = e.placement == NormPlacement::Before && (i, part) != (0, 0);
            let y = if before { self.norm(&name(norm), &x)? } else { x.clone() };
            let y = if part == 0 { self.attention(i, &y)? } else { self.mlp(&name, &y)? };
            x = (x + y)?;
            if e.placement == NormPlacement::After {
                x = self.norm(&name(norm), &x)?;
            }
        }
        Ok(x)
    }

    fn mlp(&self, name: &dyn Fn(&str) -> String, x: &Tensor) -> Outcome<Tensor> {
        let e = self.e;
        let up = self.weights.linear(&name(&e.names.up), x)?;
        let width = e.feed_forward as usize;
        let inner = if e.gated {
            (activation(&up.narrow(1, 0, width)?.contiguous()?, e.activation)? * up.narrow(1, width, width)?)?
        } else {
            activation(&up, e.activation)?
        };
        self.weights.linear(&name(&e.names.down), &inner)
    }

    fn attention(&self, i: usize, x: &Tensor) -> Outcome<Tensor> {
        let e = self.e;
        let linear = |template: &String| self.weights.linear(&template.replace("{}", &i.to_string()), x);
        let [q, k, v] = match (&e.names.query, &e.names.key, &e.names.value, &e.names.qkv) {
            (Some(q), Some(k), Some(v), None) => [linear(q)?, linear(k)?, linear(v)?],
            (.., qkv) => {
                let (all, width) = (linear(qkv.as_ref().unwrap_or(&String::new()))?, e.hidden as usize);
                [all.narrow(1, 0, width)?, all.narrow(1, width, width)?, all.narrow(1, 2 * width, width)?]
            }
        };
        let layer = e.layers[i];
        let sees = |query: usize, key: usize| layer.window.is_none_or(|window| query.abs_diff(key) as u64 <= window);
        let mut texts = Vec::with_capacity(self.spans.len());
        for &(start, n) in &self.spans {
            let [mut q, mut k, v] = [q.narrow(0, start, n)?, k.narrow(0, start, n)?, v.narrow(0, start, n)?];
            if let Some(rope) = layer.rope {
                q = rotated(&q, e.heads, &e.ropes[rope])?;
                k = rotated(&k, e.heads, &e.ropes[rope])?;
            }
            let scale = 1.0 / (e.head_dim as f64).sqrt();
            let seen = Seen { sees: &sees, bias: self.relative_bias(n)?, scale, softcap: None };
            texts.push(attention(&q, &k, &v, (e.heads, e.heads), &seen)?);
        }
        let name = e.names.attention_output.replace("{}", &i.to_string());
        self.weights.linear(&name, &Tensor::cat(&texts, 0)?)
    }

    /// What each head adds to the scores of two positions, `[heads, queries, keys]`.
    fn relative_bias(&self, n: usize) -> Outcome<Option<Tensor>> {
        let Some(name) = &self.e.names.relative_bias else { return Ok(None) };
        let buckets = self.e.buckets as i64;
        let numbers: Vec<u64> = (0..n * n).map(|i| bucket((i % n) as i64 - (i / n) as i64, buckets)).collect();
        let rows = self.weights.looked_up(&format!("{name}.weight"), &numbers)?;
        Ok(Some(rows.t()?.contiguous()?.reshape((self.e.heads as usize, n, n))?))
    }

    fn outputs(&self, x: Tensor) -> Outcome<Vec<(&'static str, Tensor)>> {
        Ok(match &self.e.task {
            Task::Features => {
                let mut outputs = vec![("last_hidden_state", x.clone())];
                if let Some(pooling) = &self.e.pooling {
                    let mut y = self.pooled(&x, pooling.mode)?;
                    for step in &pooling.after {
                        y = match step {
                            AfterPooling::Normalize => y.broadcast_div(&y.sqr()?.sum_keepdim(1)?.sqrt()?)?,
                            AfterPooling::Dense(dense) => {
                                let y = self.weights.linear(&dense.name, &y)?;
                                dense.activation.map_or(Ok(y.clone()), |kind| head_activation(&y, kind))?
                            }
                        };
                    }
                    outputs.push(("sentence_embedding", y));
                }
                outputs
            }
            Task::FillMask(head) => vec![("logits", self.words(head, &self.transformed(head, &x)?)?)],
            Task::ClassifyTokens(head) => vec![("logits", self.labels(head, &x)?)],
            Task::ClassifyText(head, mode) => vec![("logits", self.labels(head, &self.pooled(&x, *mode)?)?)],
            Task::AnswerQuestion(head) => {
                let logits = self.labels(head, &x)?;
                let part = |i| logits.narrow(1, i, 1)?.squeeze(1);
                vec![("start_logits", part(0)?), ("end_logits", part(1)?)]
            }
        })
    }

    /// One vector for each text.
    fn pooled(&self, x: &Tensor, mode: PoolingMode) -> Outcome<Tensor> {
        let mut texts = Vec::with_capacity(self.spans.len());
        for &(start, n) in &self.spans {
            let text = x.narrow(0, start, n)?;
            texts.push(match mode {
                PoolingMode::Mean => text.mean_keepdim(0)?,
                PoolingMode::First => text.narrow(0, 0, 1)?,
                PoolingMode::Max => text.max_keepdim(0)?,
            });
        }
        Ok(Tensor::cat(&texts, 0)?)
    }

    fn transformed(&self, head: &Head, x: &Tensor) -> Outcome<Tensor> {
        let Some(dense) = &head.dense else { return Ok(x.clone()) };
        let x = self.weights.linear(dense, x)?;
        let x = head_activation(&x, head.activation)?;
        match &head.norm {
            Some(norm) => self.norm(norm, &x),
            None => Ok(x),
        }
    }

    fn labels(&self, head: &Head, x: &Tensor) -> Outcome<Tensor> {
        self.weights.linear(&head.out, &self.transformed(head, x)?)
    }

    /// Logits of words: by a matrix of their own, or by the embedding.
    fn words(&self, head: &Head, x: &Tensor) -> Outcome<Tensor> {
        let own = format!("{}.weight", head.out);
        let table = if self.weights.has(&own) { own } else { format!("{}.weight", self.e.names.word) };
        let y = self.weights.product(&table, x)?;
        let biases = [head.bias.clone(), Some(format!("{}.bias", head.out))];
        match biases.into_iter().flatten().find(|bias| self.weights.has(bias)) {
            Some(bias) => Ok(y.broadcast_add(&self.weights.whole(&bias)?)?),
            None => Ok(y),
        }
    }
}

fn head_activation(x: &Tensor, kind: HeadActivation) -> candle_core::Result<Tensor> {
    match kind {
        HeadActivation::Tanh => x.tanh(),
        HeadActivation::Of(kind) => activation(x, kind),
    }
}

/// The bucket of a relative position, key minus query: half of them for each direction; in each, one for each distance below
/// half of its buckets, and steps of equal ratio beyond.
fn bucket(distance: i64, buckets: i64) -> u64 {
    let each = buckets / 2;
    let exact = each / 2;
    let far = distance.abs();
    let within = if far < exact {
        far
    } else {
        let ratio = (far as f32 / exact as f32).ln() / (MAX_DISTANCE / exact as f32).ln();
        (exact + (ratio * (each - exact) as f32) as i64).min(each - 1)
    };
    (within + if distance > 0 { each } else { 0 }) as u64
}
