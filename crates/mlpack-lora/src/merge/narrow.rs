//! The commonest rows, those of a bfloat16 base with one low-rank delta, in float32 where that cannot change a bit.
//!
//! ```text
//!   s = w + f·(l·r)            in float32: twice as fast as in float64, and what a GPU can do
//!   e ≥ |s - exact sum|        from the norms of l and r, and the roundings on the way
//!   bfloat16(s - e) = bfloat16(s + e)     then the exact sum rounds to the same; else the element is computed in float64
//! ```
//! **The bound.** A dot product of k terms in float32, in any order and with or without fused additions, is off by at most
//! `k·u / (1 - k·u) · Σ|l·r|` with `u = 2⁻²⁴` (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), and
//! `Σ|l·r| ≤ ‖l‖·‖r‖`. That is so where nothing underflows. A GPU may also take every operand below float32's normal range for
//! zero, and make zero of every result there. Let `η = 2⁻¹²⁶`, the least normal value. Then each factor is off by at most η, which
//! moves the sum by at most `η·(Σ|l| + Σ|r|) + k·η²`, and each of the k products and k additions by at most η more; and
//! `Σ|l| ≤ √k·‖l‖`. So with f, `e` has one part for each unit of ‖r‖, `|f|·(‖l‖·(k + 8)·1.5·u + 2η·√k)`, and one for the row,
//! `|f|·2η·(√k·‖l‖ + 2k + 1)`: the first factor of two is for the products of these small terms, and `k + 8` and 1.5 leave room for
//! rounding f, the product with it, the norms and the bound itself. Norms and bounds are made larger by η: what is so small that
//! float32 loses its bits is rounded up. Products here, of f and the sum, are those of a CPU, which has subnormals.
//!
//! **Overflow.** By Cauchy and Schwarz no sum on the way is larger than `‖l‖·‖r‖`. Only where that is far within float32's range
//! is a GPU asked: how it computes with infinity is not known. What is not finite after the last addition is done in float64.
//!
//! **A GPU.** Its arithmetic is looked at when it is opened (`product/check.rs`), as it might multiply with fewer bits, and so is the
//! last row of every product. Then everything above holds for its products too, whatever their order, and the merged bytes are those of
//! the CPU. The right factor stays there from slab to slab; it is here too, for the elements in doubt.

use super::{Merge, RowRoom};
use crate::delta::{Delta, Operand, Panels, Stored};
use crate::matrix::{Matrix, to_f64};
use crate::product::check::{ROUNDOFF, SMALLEST, underflow};
use crate::simd::simd;
use crate::target::Form;
use crate::{Adapter, Combine, Error, Overlay, ProductDevice, round_to};
use candle_core::{Device, Tensor};
use mlpack_tensor::Dtype;
use pulp::NullaryFnOnce;
use std::array::from_fn;

/// Elements that are summed and rounded together.
const GROUP: usize = 32;

/// Elements in doubt that are computed together.
const LANES: usize = 8;

/// Elements of a row for each one that may be in doubt; when there are more, the row is computed in float64 as a whole.
const PER_DOUBT: usize = 4;

/// Terms of a sum that one product takes: the bound grows with them, and faster than the errors.
const DEPTH: usize = 64;

/// The longest sums: those whose order in float64 is that of the ranks (`delta.rs`).
const MAX_RANK: u64 = 512;

/// What the roundings of a sum may add to its error, relative to the sum.
const SUM_ERROR: f32 = 1.0 / (1 << 21) as f32;

/// What the last product and sum may be off by below float32's normal range.
const UNDERFLOW: f64 = 1e-36;

/// Factors that float32 holds with all its bits, and that leave the bound small.
const FACTORS: std::ops::Range<f64> = 1e-30..1e6;

/// Bounds of sums that a GPU is asked for.
const LARGEST: f64 = 1e37;

/// The low-rank delta that is all that changes a tensor.
pub(super) struct LowRank<'m> {
    adapter: &'m Adapter,
    left: &'m Matrix,
    right: &'m Matrix,
    factor: f64,
}

impl<'m> LowRank<'m> {
    /// The delta of a target that has nothing else and can be summed in float32.
    pub(super) fn of(overlay: &'m Overlay, target: usize, base_len: u64) -> Option<LowRank<'m>> {
        let target = &overlay.targets()[target];
        let [part] = &target.parts[..] else { return None };
        let Form::Add { delta: Delta::Plain(Operand::Product(left, right)), scale } = &part.form else { return None };
        let factor = part.weight * scale;
        let (rows, cols) = target.matrix_dims();
        let plain = overlay.combine() == Combine::Sum
            && target.dtype == Dtype::BF16
            && target.replaced.is_none()
            && base_len == rows * cols * 2
            && part.rect.rows == (0..rows)
            && part.rect.cols == (0..cols)
            && cols > 0
            && (1..=MAX_RANK).contains(&right.rows)
            && [left, right].into_iter().all(Matrix::is_exact_in_f32)
            && FACTORS.contains(&factor.abs());
        plain.then_some(LowRank { adapter: &overlay.adapters()[part.adapter].0, left, right, factor })
    }

    /// Writes merged rows to `out`.
    ///
    /// # Errors
    /// As [`Merge::compute`].
    pub(super) fn merge(
        &self,
        merge: &Merge<'_>,
        rows: &[u64],
        room: &mut RowRoom,
        (panels, products): (&mut Panels, &ProductDevice),
        out: &mut [u8],
    ) -> Result<(), Error> {
        let failed = |e: candle_core::Error| merge.device(&e);
        let (rank, cols) = (self.right.rows as usize, self.right.cols as usize);
        let panel = panels.panel((merge.index, 0, 0), || self.right(products)).map_err(failed)?;
        let [norms, columns, pieces @ ..] = panel else { unreachable!("that is how the panel is made") };
        let (right, there) = pieces.split_at(rank.div_ceil(DEPTH));
        let (norms, columns) = (Stored::of(norms), Stored::of(columns));
        let (norms, columns) = (norms.values::<f32>(), columns.values::<f32>());
        let mut left = vec![0.0; rows.len() * rank];
        let bytes = self.adapter.bytes(self.left.tensor);
        for (row, left) in rows.iter().zip(left.chunks_exact_mut(rank)) {
            self.left.decode_row(bytes, *row, left);
        }
        let norm = |left: &[f64]| left.iter().map(|l| l * l).sum::<f64>().sqrt();
        let of_rows: Vec<f64> = left.chunks_exact(rank).map(norm).collect();
        // What is no number is not within range.
        let larger = |a: f64, b: f64| if b > a || b.is_nan() { b } else { a };
        let largest = of_rows.iter().copied().fold(0.0, larger) * norms.iter().map(|v| f64::from(*v)).fold(0.0, larger);
        let there = if largest < LARGEST { there } else { &[] };
        let product = product(&left, (rows.len(), rank), (right, there), products).map_err(failed)?;
        let product = Stored::of(&product);
        let products = product.values::<f32>().chunks_exact(cols);
        let per_row = rows.iter().zip(left.chunks_exact(rank)).zip(products).zip(of_rows);
        let mut doubtful = Vec::new();
        for ((((row, left), product), norm), out) in per_row.zip(out.chunks_exact_mut(cols * 2)) {
            let base = merge.base.get(*row as usize * cols * 2..(*row as usize + 1) * cols * 2);
            let bound = Bound::of(self.factor.abs(), rank, norm);
            let factor = self.factor as f32;
            simd(Sums { base, product, norms, factor, bound, out, doubtful: &mut doubtful });
            if doubtful.len() > cols / PER_DOUBT {
                doubtful.clear();
                self.exact_row(merge, (*row, base), (left, right), room, out)?;
            }
            for some in doubtful.chunks(LANES) {
                let column = |i: usize| some[i.min(some.len() - 1)] * rank;
                let exact = exact(left, from_fn(|i| &columns[column(i)..column(i) + rank]));
                for (col, exact) in some.iter().zip(exact) {
                    let mut value = [0.0];
                    to_f64(Dtype::BF16, &base[col * 2..col * 2 + 2], &mut value);
                    value[0] += 0.0 + self.factor * exact;
                    let rounded = round_to(Dtype::BF16, &value, &mut out[col * 2..col * 2 + 2]);
                    rounded.map_err(|wrong| merge.not_finite(*row, *col, wrong.value))?;
                }
            }
            doubtful.clear();
        }
        Ok(())
    }

    /// A row in float64: the same sums in the same order as those of single elements.
    fn exact_row(
        &self,
        merge: &Merge<'_>,
        (row, base): (u64, &[u8]),
        (left, right): (&[f64], &[Tensor]),
        room: &mut RowRoom,
        out: &mut [u8],
    ) -> Result<(), Error> {
        let RowRoom { values, change } = room;
        values.resize(self.right.cols as usize, 0.0);
        to_f64(Dtype::BF16, base, values);
        change.clear();
        change.resize(values.len(), 0.0);
        for (left, right) in left.chunks(DEPTH).zip(right) {
            let right = Stored::of(right);
            for (l, right) in left.iter().zip(right.values::<f32>().chunks_exact(values.len())) {
                simd(|| change.iter_mut().zip(right).for_each(|(sum, r)| *sum += l * f64::from(*r)));
            }
        }
        simd(|| values.iter_mut().zip(change).for_each(|(value, sum)| *value += 0.0 + self.factor * *sum));
        round_to(Dtype::BF16, values, out).map_err(|wrong| merge.not_finite(row, wrong.index, wrong.value))
    }

    /// The norms of the columns of the right factor, its columns one after another, and stretches of [`DEPTH`] rows of it: here, and
    /// on a GPU where there is one that takes all of them.
    fn right(&self, products: &ProductDevice) -> candle_core::Result<Vec<Tensor>> {
        let (rank, cols) = (self.right.rows as usize, self.right.cols as usize);
        let values = self.right.decode(self.adapter.bytes(self.right.tensor));
        let mut squares = vec![0.0; cols];
        let mut columns = vec![0.0; rank * cols];
        for (k, row) in values.chunks_exact(cols).enumerate() {
            squares.iter_mut().zip(row).for_each(|(square, v)| *square += v * v);
            columns.iter_mut().skip(k).step_by(rank).zip(row).for_each(|(to, v)| *to = *v as f32);
        }
        let norms: Vec<f32> = squares.iter().map(|square| above(square.sqrt())).collect();
        let tensor = |values, rows, cols| Tensor::from_vec(values, (rows, cols), &Device::Cpu);
        let mut panel = vec![tensor(norms, 1, cols)?, tensor(columns, cols, rank)?];
        for piece in values.chunks(DEPTH * cols) {
            panel.push(tensor(piece.iter().map(|v| *v as f32).collect(), piece.len() / cols, cols)?);
        }
        let there: Option<Vec<Tensor>> = panel[2..].iter().map(|piece| products.upload(piece)).collect();
        panel.extend(there.into_iter().flatten());
        Ok(panel)
    }
}

/// Rows of the left factor times the right one, whose stretches are here and perhaps on a GPU too. The products are added here.
fn product(
    left: &[f64],
    (rows, rank): (usize, usize),
    (right, there): (&[Tensor], &[Tensor]),
    products: &ProductDevice,
) -> candle_core::Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (i, right) in right.iter().enumerate() {
        let depth = right.dims()[0];
        let part =
            left.chunks_exact(rank).flat_map(|left| left[i * DEPTH..i * DEPTH + depth].iter().map(|l| *l as f32));
        let part = Tensor::from_vec(part.collect(), (rows, depth), &Device::Cpu)?;
        let by_gpu = there.get(i).and_then(|there| products.product(&part, right, there));
        let product = by_gpu.map_or_else(|| part.matmul(right), Ok)?;
        sum = Some(match sum {
            None => product,
            Some(sum) => added(&sum, &product)?,
        });
    }
    Ok(sum.expect("a right factor has rows"))
}

/// The sum of two tensors, on this thread: candle's own wakes others, which have slabs of theirs.
fn added(a: &Tensor, b: &Tensor) -> candle_core::Result<Tensor> {
    let (one, other) = (Stored::of(a), Stored::of(b));
    let mut sum = Vec::new();
    simd(|| sum.extend(one.values::<f32>().iter().zip(other.values::<f32>()).map(|(a, b)| a + b)));
    Tensor::from_vec(sum, a.shape(), &Device::Cpu)
}

/// Products in float64, each in the order of the ranks.
fn exact(left: &[f64], columns: [&[f32]; LANES]) -> [f64; LANES] {
    let mut sums = [0.0; LANES];
    for (k, l) in left.iter().enumerate() {
        sums.iter_mut().zip(columns).for_each(|(sum, column)| *sum += l * f64::from(column[k]));
    }
    sums
}

/// What the addends of a row may be off by.
#[derive(Clone, Copy)]
struct Bound {
    /// For each unit of a column's norm.
    spread: f32,
    /// Whatever the column.
    least: f32,
}

impl Bound {
    /// Of `factor` times a product of that rank, for a left row of that norm.
    fn of(factor: f64, rank: usize, norm: f64) -> Bound {
        let root = (rank as f64).sqrt();
        let depth = (rank.min(DEPTH) + rank.div_ceil(DEPTH) + 8) as f64;
        let spread = factor * (norm * depth * ROUNDOFF + 2.0 * SMALLEST * root);
        Bound { spread: above(spread), least: above(factor * underflow(rank, root * norm) + UNDERFLOW) }
    }
}

/// A float32 that is not less, and never so small that it has lost bits.
fn above(v: f64) -> f32 {
    (v * (1.0 + 1e-6)) as f32 + f32::MIN_POSITIVE
}

/// One row: sums rounded to bfloat16, and the columns where that is in doubt.
struct Sums<'a> {
    base: &'a [u8],
    product: &'a [f32],
    norms: &'a [f32],
    factor: f32,
    bound: Bound,
    out: &'a mut [u8],
    doubtful: &'a mut Vec<usize>,
}

impl NullaryFnOnce for Sums<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Sums { base, product, norms, factor, bound: Bound { spread, least }, out, doubtful } = self;
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
                let (rounded, in_doubt) = sum(bases[at], factor * product[at], spread * norms[at] + least);
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
            let (rounded, in_doubt) = sum(base[at], factor * product_rest[at], spread * norms_rest[at] + least);
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
    let error = sum.abs() * SUM_ERROR + bound;
    let (low, high) = (round(sum - error), round(sum + error));
    let infinite = (sum.to_bits() & 0x7f80_0000 == 0x7f80_0000) | (high & 0x7f80 == 0x7f80);
    ((high as u16).to_le_bytes(), infinite | (low != high))
}

#[cfg(test)]
mod tests;
