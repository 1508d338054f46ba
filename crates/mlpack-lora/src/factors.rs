//! The low-rank differences of a target by their factors, for whoever merges rows elsewhere.

use crate::Adapter;
use crate::delta::{Delta, Operand};
use crate::matrix::Matrix;
use crate::target::Form;
use crate::{Combine, Overlay};

/// `factor · left · right`, added to every row of a tensor as a matrix.
pub struct LowRank<'a> {
    adapter: &'a Adapter,
    left: &'a Matrix,
    right: &'a Matrix,
    /// What the product is multiplied by.
    pub factor: f64,
}

impl Overlay {
    /// The differences that are added to a target, in their order, where its rows are the base's plus low-rank differences of
    /// factors that float32 holds exactly, and nothing else. Their sum, in float64 and in the order of
    /// [`Overlay::merge_rows`], rounded once, is the merged element. `base_len` are the bytes of the base tensor.
    pub fn low_rank(&self, target: usize, base_len: u64) -> Option<Vec<LowRank<'_>>> {
        let target = &self.targets()[target];
        let (rows, cols) = target.matrix_dims();
        let same_shape = base_len == rows * cols * target.dtype.byte_size();
        if self.combine() != Combine::Sum || target.replaced.is_some() || target.scales.is_some() || !same_shape {
            return None;
        }
        let mut found = Vec::with_capacity(target.parts.len());
        for part in &target.parts {
            let Form::Add { delta: Delta::Plain(Operand::Product(left, right)), scale } = &part.form else {
                return None;
            };
            let whole = part.rect.rows == (0..rows) && part.rect.cols == (0..cols);
            if !whole || ![left, right].into_iter().all(Matrix::is_exact_in_f32) {
                return None;
            }
            let adapter = &self.adapters()[part.adapter].0;
            found.push(LowRank { adapter, left, right, factor: part.weight * scale });
        }
        Some(found)
    }
}

impl LowRank<'_> {
    /// Columns of the left factor, and rows of the right one.
    pub fn rank(&self) -> usize {
        self.right.rows as usize
    }

    /// Columns of the right factor, and of the tensor as a matrix.
    pub fn cols(&self) -> u64 {
        self.right.cols
    }

    /// Appends rows of the left factor.
    pub fn left_rows(&self, rows: &[u64], out: &mut Vec<f32>) {
        let bytes = self.adapter.bytes(self.left.tensor);
        let mut row = vec![0.0; self.rank()];
        for number in rows {
            self.left.decode_row(bytes, *number, &mut row);
            out.extend(row.iter().map(|v| *v as f32));
        }
    }

    /// The right factor, row after row.
    pub fn right(&self) -> Vec<f32> {
        self.right.decode(self.adapter.bytes(self.right.tensor)).into_iter().map(|v| v as f32).collect()
    }
}
