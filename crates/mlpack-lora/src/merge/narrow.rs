//! The commonest rows, those of a bfloat16 base with one low-rank delta, in float32 where that cannot change a bit.
//!
//! ```text
//!   s = w + f·(l·r)            in float32: twice as fast as in float64
//!   e ≥ |s - exact sum|        from the norms of l and r, and the roundings on the way
//!   bfloat16(s - e) = bfloat16(s + e)     then the exact sum rounds to the same; else the element is computed in float64
//! ```
//! A dot product of k terms in float32, in any order and with or without fused additions, is off by at most
//! `k·u / (1 - k·u) · Σ|l·r|` with `u = 2⁻²⁴` (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), and
//! `Σ|l·r| ≤ ‖l‖·‖r‖`. About one element of a thousand is left to float64.

use super::{Merge, RowRoom};
use crate::delta::{Delta, Operand, Panels, Stored};
use crate::matrix::{Matrix, to_f64};
use crate::simd::simd;
use crate::target::Form;
use crate::{Adapter, Combine, Error, round_to};
use candle_core::{Device, Tensor};
use mlpack_tensor::Dtype;
use pulp::NullaryFnOnce;

/// Elements that are summed and rounded together.
const GROUP: usize = 32;

/// The longest sum. The bound grows faster than the errors: of longer sums too many would be in doubt.
const MAX_RANK: u64 = 64;

/// Elements of a row for each one that may be in doubt; when there are more, the row is computed in float64 as a whole.
const PER_DOUBT: usize = 32;

/// The unit roundoff of float32, and half as much again for the roundings of the bound itself.
const ROUNDOFF: f64 = 1.5 / (1u64 << 24) as f64;

/// What the roundings of a sum may add to its error, relative to the sum.
const SUM_ERROR: f32 = 1.0 / (1 << 21) as f32;

/// What products below float32's normal range may be off by, all together.
const UNDERFLOW: f32 = 1e-36;

/// The low-rank delta that is all that changes a tensor.
pub(super) struct LowRank<'m> {
    merge: &'m Merge<'m>,
    adapter: &'m Adapter,
    left: &'m Matrix,
    right: &'m Matrix,
    factor: f64,
}

impl<'m> LowRank<'m> {
    /// The delta of a target that has nothing else and can be summed in float32.
    pub(super) fn of(merge: &'m Merge<'m>) -> Option<LowRank<'m>> {
        let target = merge.target;
        let [part] = &target.parts[..] else { return None };
        let Form::Add { delta: Delta::Plain(Operand::Product(left, right)), scale } = &part.form else { return None };
        let factor = part.weight * scale;
        let (rows, cols) = target.matrix_dims();
        let plain = merge.overlay.combine() == Combine::Sum
            && target.dtype == Dtype::BF16
            && target.replaced.is_none()
            && merge.has_base_values()
            && part.rect.rows == (0..rows)
            && part.rect.cols == (0..cols)
            && right.rows <= MAX_RANK
            && [left, right].into_iter().all(Matrix::is_exact_in_f32)
            && factor.abs() < 1e6;
        let adapter = &merge.overlay.adapters()[part.adapter].0;
        plain.then_some(LowRank { merge, adapter, left, right, factor })
    }

    /// Writes merged rows to `out`.
    ///
    /// # Errors
    /// As [`Merge::compute`].
    pub(super) fn merge(
        &self,
        rows: &[u64],
        room: &mut RowRoom,
        panels: &mut Panels,
        out: &mut [u8],
    ) -> Result<(), Error> {
        let failed = |e: candle_core::Error| self.merge.device(&e);
        let (rank, cols) = (self.right.rows as usize, self.right.cols as usize);
        let [right, norms] = panels.panel((self.merge.index, 0, 0), || self.right()).map_err(failed)? else {
            unreachable!("a panel of float32 is made of its values and their norms")
        };
        let mut left = vec![0.0; rows.len() * rank];
        let bytes = self.adapter.bytes(self.left.tensor);
        for (row, left) in rows.iter().zip(left.chunks_exact_mut(rank.max(1))) {
            self.left.decode_row(bytes, *row, left);
        }
        let narrow: Vec<f32> = left.iter().map(|v| *v as f32).collect();
        let product = Tensor::from_vec(narrow, (rows.len(), rank), &Device::Cpu).and_then(|l| l.matmul(right));
        let product = product.map_err(failed)?;
        let (product, norms, right) = (Stored::of(&product), Stored::of(norms), Stored::of(right));
        let per_row = rows.iter().zip(left.chunks_exact(rank)).zip(product.values::<f32>().chunks_exact(cols));
        let mut doubtful = Vec::new();
        for (((row, left), product), out) in per_row.zip(out.chunks_exact_mut(cols * 2)) {
            let base = self.merge.base.get(*row as usize * cols * 2..(*row as usize + 1) * cols * 2);
            let norm = left.iter().map(|l| l * l).sum::<f64>().sqrt();
            let spread = self.factor.abs() * norm * (rank + 8) as f64 * ROUNDOFF;
            let (factor, spread) = (self.factor as f32, spread as f32);
            simd(Sums { base, product, norms: norms.values::<f32>(), factor, spread, out, doubtful: &mut doubtful });
            if doubtful.len() > cols / PER_DOUBT {
                doubtful.clear();
                self.exact_row(*row, base, left, right.values(), room, out)?;
            }
            for col in doubtful.drain(..) {
                let column = right.values::<f32>().iter().skip(col).step_by(cols);
                let exact = left.iter().zip(column).fold(0.0, |sum, (l, r)| sum + l * f64::from(*r));
                let mut value = [0.0];
                to_f64(Dtype::BF16, &base[col * 2..col * 2 + 2], &mut value);
                value[0] += 0.0 + self.factor * exact;
                let rounded = round_to(Dtype::BF16, &value, &mut out[col * 2..col * 2 + 2]);
                rounded.map_err(|wrong| self.merge.not_finite(*row, col, wrong.value))?;
            }
        }
        Ok(())
    }

    /// A row in float64: the same sums in the same order as those of single elements.
    fn exact_row(
        &self,
        row: u64,
        base: &[u8],
        left: &[f64],
        right: &[f32],
        room: &mut RowRoom,
        out: &mut [u8],
    ) -> Result<(), Error> {
        let RowRoom { values, change } = room;
        values.resize(self.right.cols as usize, 0.0);
        to_f64(Dtype::BF16, base, values);
        change.clear();
        change.resize(values.len(), 0.0);
        for (l, right) in left.iter().zip(right.chunks_exact(values.len())) {
            simd(|| change.iter_mut().zip(right).for_each(|(sum, r)| *sum += l * f64::from(*r)));
        }
        simd(|| values.iter_mut().zip(change).for_each(|(value, sum)| *value += 0.0 + self.factor * *sum));
        round_to(Dtype::BF16, values, out).map_err(|wrong| self.merge.not_finite(row, wrong.index, wrong.value))
    }

    /// The right factor and the norms of its columns.
    fn right(&self) -> candle_core::Result<Vec<Tensor>> {
        let (rank, cols) = (self.right.rows as usize, self.right.cols as usize);
        let values = self.right.decode(self.adapter.bytes(self.right.tensor));
        let mut squares = vec![0.0; cols];
        for row in values.chunks_exact(cols.max(1)) {
            squares.iter_mut().zip(row).for_each(|(square, v)| *square += v * v);
        }
        // Rounded up.
        let norms: Vec<f32> = squares.iter().map(|square| (square.sqrt() * (1.0 + 1e-6)) as f32).collect();
        let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        let tensor = |values, rows| Tensor::from_vec(values, (rows, cols), &Device::Cpu);
        Ok(vec![tensor(values, rank)?, tensor(norms, 1)?])
    }
}

/// One row: sums rounded to bfloat16, and the columns where that is in doubt.
struct Sums<'a> {
    base: &'a [u8],
    product: &'a [f32],
    norms: &'a [f32],
    factor: f32,
    spread: f32,
    out: &'a mut [u8],
    doubtful: &'a mut Vec<usize>,
}

impl NullaryFnOnce for Sums<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Sums { base, product, norms, factor, spread, out, doubtful } = self;
        let (base, base_rest) = base.as_chunks::<{ GROUP * 2 }>();
        let (product, product_rest) = product.as_chunks::<GROUP>();
        let (norms, norms_rest) = norms.as_chunks::<GROUP>();
        let (out, out_rest) = out.as_chunks_mut::<{ GROUP * 2 }>();
        let groups = base.iter().zip(product).zip(norms).zip(out);
        for (i, (((base, product), norms), out)) in groups.enumerate() {
            let mut doubt = [false; GROUP];
            let bases = base.as_chunks::<2>().0;
            let outs = out.as_chunks_mut::<2>().0;
            for at in 0..GROUP {
                let (rounded, in_doubt) = sum(bases[at], factor * product[at], spread * norms[at]);
                outs[at] = rounded;
                doubt[at] = in_doubt;
            }
            if doubt.iter().fold(false, |any, d| any | d) {
                doubtful.extend((0..GROUP).filter(|at| doubt[*at]).map(|at| i * GROUP + at));
            }
        }
        let done = product.len() * GROUP;
        let (base, out) = (base_rest.as_chunks::<2>().0, out_rest.as_chunks_mut::<2>().0);
        for at in 0..base.len() {
            let (rounded, in_doubt) = sum(base[at], factor * product_rest[at], spread * norms_rest[at]);
            out[at] = rounded;
            if in_doubt {
                doubtful.push(done + at);
            }
        }
    }
}

/// A base value and what is added, rounded to bfloat16; and whether an error of the addend within the bound could change that.
#[inline(always)]
fn sum(base: [u8; 2], addend: f32, bound: f32) -> ([u8; 2], bool) {
    // To the nearest, ties to even.
    let round = |v: f32| v.to_bits().wrapping_add(0x7fff + (v.to_bits() >> 16 & 1)) >> 16;
    let base = f32::from_bits(u32::from(u16::from_le_bytes(base)) << 16);
    let sum = base + addend;
    let error = sum.abs() * SUM_ERROR + (bound + UNDERFLOW);
    let (low, high) = (round(sum - error), round(sum + error));
    let infinite = (sum.to_bits() & 0x7f80_0000 == 0x7f80_0000) | (high & 0x7f80 == 0x7f80);
    ((high as u16).to_le_bytes(), infinite | (low != high))
}
