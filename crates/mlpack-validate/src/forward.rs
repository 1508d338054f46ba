//! What layers are made of: products with weights that are read some rows at a time, norms, nonlinearities, attention.
//!
//! Positions of all texts are rows of one matrix `[positions, width]`, so that each weight is read once; attention goes text by
//! text. Everything is float32.

mod decoder;
mod encoder;

use candle_core::{D, Device, Result, Tensor};
use mlpack_arch::{Activation, Norm, Rope};
use mlpack_convert::WeightRows;
use std::cell::RefCell;

pub(crate) use decoder::decoder;
pub(crate) use encoder::{encoder, token_type};

/// Elements of a matrix that are in memory at once.
const ELEMENTS: u64 = 1 << 24;
/// What is added to scores of positions that are not seen.
const UNSEEN: f32 = -1e30;

/// Either a weight cannot be read, or a product is wrong.
type Outcome<T> = std::result::Result<T, crate::Error>;

/// Where a value first leaves the range of float16.
#[derive(Clone, Debug, PartialEq)]
pub struct Overflow {
    /// The checkpoint's tensor that it goes into, or comes from.
    pub tensor: String,
    /// Whether it comes from it.
    pub is_output: bool,
    /// The largest magnitude there.
    pub magnitude: f32,
}

/// The weights of a model, and where it first computes what float16 cannot hold.
pub(crate) struct Weights<'a> {
    rows: WeightRows<'a>,
    overflow: RefCell<Option<Overflow>>,
}

impl<'a> Weights<'a> {
    pub(crate) fn new(rows: WeightRows<'a>) -> Weights<'a> {
        Weights { rows, overflow: RefCell::default() }
    }

    /// Where something that was computed first left the range of float16.
    pub(crate) fn overflow(&self) -> Option<Overflow> {
        self.overflow.borrow().clone()
    }

    /// Looks at what goes into a tensor or comes from it.
    fn look(&self, role: &str, is_output: bool, x: &Tensor) -> Outcome<()> {
        let mut overflow = self.overflow.borrow_mut();
        if overflow.is_none() && x.elem_count() > 0 {
            let magnitude = x.flatten_all()?.abs()?.max(0)?.to_scalar::<f32>()?;
            if half::f16::from_f32(magnitude).is_infinite() {
                let tensor = self.rows.tensor(role).unwrap_or(role).to_owned();
                *overflow = Some(Overflow { tensor, is_output, magnitude });
            }
        }
        Ok(())
    }

    fn has(&self, role: &str) -> bool {
        self.rows.shape(role).is_some()
    }

    /// Rows of a matrix that is there.
    pub(crate) fn row_count(&self, role: &str) -> u64 {
        self.rows.shape(role).and_then(mlpack_tensor::Shape::row_count).unwrap_or(0)
    }

    /// A whole vector or small table.
    fn whole(&self, role: &str) -> Outcome<Tensor> {
        let shape: Vec<usize> =
            self.rows.shape(role).map(|shape| shape.dims().iter().map(|n| *n as usize).collect()).unwrap_or_default();
        Ok(Tensor::from_vec(self.rows.read(role, 0..self.row_count(role))?, shape, &Device::Cpu)?)
    }

    /// Rows of a table by number, `[numbers, width]`.
    fn looked_up(&self, role: &str, numbers: &[u64]) -> Outcome<Tensor> {
        let mut values = Vec::new();
        for &number in numbers {
            values.extend(self.rows.read(role, number..number + 1)?);
        }
        let width = values.len() / numbers.len().max(1);
        Ok(Tensor::from_vec(values, (numbers.len(), width), &Device::Cpu)?)
    }

    /// `x @ W^T` with the matrix `[outputs, inputs]` of a name, some rows of it at a time.
    fn product(&self, role: &str, x: &Tensor) -> Outcome<Tensor> {
        let (inputs, outputs) = (x.dim(1)? as u64, self.row_count(role));
        let step = (ELEMENTS / inputs.max(1)).max(1);
        let mut parts = Vec::new();
        let mut start = 0;
        while start < outputs {
            let end = outputs.min(start + step);
            let rows = Tensor::from_vec(
                self.rows.read(role, start..end)?,
                ((end - start) as usize, inputs as usize),
                &Device::Cpu,
            )?;
            parts.push(x.matmul(&rows.t()?)?);
            start = end;
        }
        Ok(Tensor::cat(&parts, 1)?)
    }

    /// `x @ W^T + b`, with the vector where the checkpoint has one.
    fn linear(&self, name: &str, x: &Tensor) -> Outcome<Tensor> {
        let (matrix, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        self.look(&matrix, false, x)?;
        let mut y = self.product(&matrix, x)?;
        self.look(&matrix, true, &y)?;
        if self.has(&bias) {
            y = y.broadcast_add(&self.whole(&bias)?)?;
            self.look(&bias, true, &y)?;
        }
        Ok(y)
    }

    /// A norm over the last dimension.
    fn norm(&self, name: &str, x: &Tensor, norm: Norm, epsilon: f32) -> Outcome<Tensor> {
        let weight = format!("{name}.weight");
        self.look(&weight, false, x)?;
        let centred = match norm {
            Norm::Rms => x.clone(),
            Norm::Layer => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
        };
        let mean = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let y = centred.broadcast_div(&(mean + f64::from(epsilon))?.sqrt()?)?;
        let mut y = y.broadcast_mul(&self.whole(&weight)?)?;
        let bias = format!("{name}.bias");
        if norm == Norm::Layer && self.has(&bias) {
            y = y.broadcast_add(&self.whole(&bias)?)?;
        }
        self.look(&weight, true, &y)?;
        Ok(y)
    }
}

fn activation(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Silu => x.silu(),
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::Relu => x.relu(),
    }
}

/// `c * tanh(x / c)`
fn softcap(x: &Tensor, cap: Option<f64>) -> Result<Tensor> {
    match cap {
        None => Ok(x.clone()),
        Some(cap) => (x / cap)?.tanh()? * cap,
    }
}

/// Shares that sum up to one.
fn softmax(x: &Tensor) -> Result<Tensor> {
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}

/// The positions of a text, as they lie among those of all texts: first and number.
fn spans(lengths: &[usize]) -> Vec<(usize, usize)> {
    let mut start = 0;
    let span = |length: &usize| {
        start += length;
        (start - length, *length)
    };
    lengths.iter().map(span).collect()
}

/// What one text's positions see of each other.
struct Seen<'a> {
    /// Whether a query sees a key.
    sees: &'a dyn Fn(usize, usize) -> bool,
    /// What is added to scores, `[heads, queries, keys]`.
    bias: Option<Tensor>,
    scale: f64,
    softcap: Option<f64>,
}

/// Attention of one text: `[positions, heads * width]` each.
fn attention(q: &Tensor, k: &Tensor, v: &Tensor, (heads, kv_heads): (u64, u64), seen: &Seen<'_>) -> Result<Tensor> {
    let (heads, kv_heads, n) = (heads as usize, kv_heads as usize, q.dim(0)?);
    let width = q.dim(1)? / heads;
    let by_head = |x: &Tensor, heads: usize| x.reshape((n, heads, width))?.transpose(0, 1)?.contiguous();
    let (k, v) = (by_head(k, kv_heads)?, by_head(v, kv_heads)?);
    // Query heads of one key head are rows of one matrix.
    let rows = heads / kv_heads * n;
    let q = (by_head(q, heads)?.reshape((kv_heads, rows, width))? * seen.scale)?;
    let scores = softcap(&q.matmul(&k.transpose(1, 2)?.contiguous()?)?, seen.softcap)?.reshape((heads, n, n))?;
    let hidden = (0..n * n).map(|i| if (seen.sees)(i / n, i % n) { 0.0 } else { UNSEEN }).collect::<Vec<f32>>();
    let mut scores = scores.broadcast_add(&Tensor::from_vec(hidden, (1, n, n), &Device::Cpu)?)?;
    if let Some(bias) = &seen.bias {
        scores = (scores + bias)?;
    }
    let y = softmax(&scores)?.reshape((kv_heads, rows, n))?.matmul(&v)?;
    y.reshape((heads, n, width))?.transpose(0, 1)?.contiguous()?.reshape((n, heads * width))
}

/// Heads of one text rotated by their positions: the first and the second half of their first elements are pairs.
fn rotated(x: &Tensor, heads: u64, rope: &Rope) -> Result<Tensor> {
    let (n, all) = x.dims2()?;
    let width = all / heads as usize;
    let long = rope.long.as_ref().filter(|long| n as u64 > long.after);
    let frequencies = long.map_or(&rope.frequencies, |long| &long.frequencies);
    let pairs = frequencies.len();
    let angles: Vec<f32> = (0..n).flat_map(|at| frequencies.iter().map(move |f| at as f32 * f)).collect();
    let angles = Tensor::from_vec(angles, (n, 1, pairs), &Device::Cpu)?;
    let [cos, sin] = [angles.cos()?, angles.sin()?].map(|x| x * f64::from(rope.scale));
    let (cos, sin) = (cos?, sin?);
    let x = x.reshape((n, heads as usize, width))?;
    let (a, b) = (x.narrow(2, 0, pairs)?, x.narrow(2, pairs, pairs)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    let rest = x.narrow(2, 2 * pairs, width - 2 * pairs)?;
    Tensor::cat(&[first, second, rest.contiguous()?], 2)?.reshape((n, all))
}
