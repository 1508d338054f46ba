//! One tensor of the result: what it is made of.
//!
//! ```text
//!   W      the base tensor's row, or an adapter's where a module was trained whole
//!   D      Σ over parts of weight · change(W)
//!            Add       scale · Δ                         LoRA, LoHa, LoKr, biases
//!            Dora      m/‖W + scale·Δ‖ · (W + scale·Δ) - W
//!            Multiply  l · W - W                         IA3
//!            Replace   V - W                             rows of trained tokens; modules trained whole, when weighted
//!   row    W + D, rounded once
//! ```
//! Every part has a rectangle of the tensor, seen as a matrix of its first dimension (of the first two for a stack of
//! experts) by all others. A part that is alone in its rectangle and has weight 1 gives its values directly, without the
//! detour over the difference.

use crate::delta::Delta;
use crate::matrix::Matrix;
use mlpack_tensor::{Dtype, Shape};
use std::ops::Range;
use std::sync::OnceLock;

/// A tensor that adapters change or add.
#[derive(Debug)]
pub struct Target {
    /// Its name in the base and in the result.
    pub name: String,
    /// Its element type: that of the base tensor.
    pub dtype: Dtype,
    /// Its shape in the result, outermost dimension first.
    pub shape: Shape,
    /// The base tensor whose values it starts from; `None` where an adapter brings all of them.
    pub base: Option<usize>,
    /// Whether its first two dimensions are experts and their rows.
    pub(crate) stack: bool,
    /// The values that an adapter brings instead of the base's.
    pub(crate) replaced: Option<Replaced>,
    /// What is added.
    pub(crate) parts: Vec<Part>,
    /// The scales of an FP8 base.
    pub(crate) scales: Option<BlockScales>,
}

/// A parameter that was trained whole.
#[derive(Clone, Debug)]
pub(crate) struct Replaced {
    pub adapter: usize,
    pub values: Matrix,
}

/// What one module of one adapter does to a tensor.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// The adapter, as an index into the overlay's.
    pub adapter: usize,
    /// The adapter's weight.
    pub weight: f64,
    pub rect: Rect,
    pub form: Form,
}

/// Rows and columns of a tensor as a matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rect {
    pub rows: Range<u64>,
    pub cols: Range<u64>,
}

#[derive(Clone, Debug)]
pub(crate) enum Form {
    Add { delta: Delta, scale: f64 },
    Dora { delta: Delta, scale: f64, magnitude: Matrix, axis: Axis, norms: OnceLock<Vec<f64>> },
    Multiply { factors: Matrix, axis: Axis, taps: u64 },
    Replace { values: Matrix, rows: Option<Vec<(u64, u64)>> },
}

/// Whether a module's outputs are rows of the matrix or columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Axis {
    Rows,
    Cols,
}

impl Form {
    /// What a report calls it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Form::Add { delta: Delta::Plain(_), .. } => "lora",
            Form::Add { delta: Delta::Hadamard(..), .. } => "loha",
            Form::Add { delta: Delta::Kronecker(..), .. } => "lokr",
            Form::Dora { .. } => "dora",
            Form::Multiply { .. } => "ia3",
            Form::Replace { rows: Some(_), .. } => "tokens",
            Form::Replace { rows: None, .. } => "trained whole",
        }
    }

    /// Bytes that stay in memory from slab to slab.
    pub(crate) fn panel_byte_len(&self) -> u64 {
        match self {
            Form::Add { delta, .. } | Form::Dora { delta, .. } => delta.panel_byte_len(),
            Form::Multiply { factors, .. } => factors.element_count() * 8,
            Form::Replace { .. } => 0,
        }
    }
}

impl Rect {
    /// Those of some rows that are in it, counted from its first.
    pub(crate) fn rows_of(&self, rows: &[u64]) -> Vec<u64> {
        rows.iter().filter(|row| self.rows.contains(row)).map(|row| row - self.rows.start).collect()
    }

    pub(crate) fn overlaps(&self, other: &Rect) -> bool {
        let both = |a: &Range<u64>, b: &Range<u64>| a.start < b.end && b.start < a.end;
        both(&self.rows, &other.rows) && both(&self.cols, &other.cols)
    }
}

impl Target {
    /// Rows and columns of the tensor as a matrix: a stack of experts one below the other.
    pub(crate) fn matrix_dims(&self) -> (u64, u64) {
        matrix_dims(&self.shape, self.stack)
    }

    /// Whether no other part changes anything in the rectangle of this one.
    pub(crate) fn is_alone(&self, part: usize) -> bool {
        let rect = &self.parts[part].rect;
        !self.parts.iter().enumerate().any(|(i, other)| i != part && other.rect.overlaps(rect))
    }

    /// Bytes that stay in memory from slab to slab: the right factors of parts that share rows.
    pub(crate) fn panel_byte_len(&self) -> u64 {
        let beside = |part: &Part| {
            let near = self.parts.iter().filter(|other| {
                other.rect.rows.start < part.rect.rows.end && part.rect.rows.start < other.rect.rows.end
            });
            near.map(|other| other.form.panel_byte_len()).fold(0, u64::saturating_add)
        };
        // A slab may begin in one expert and end in the next.
        self.parts.iter().map(beside).max().unwrap_or(0).saturating_mul(if self.parts.len() > 1 { 2 } else { 1 })
    }

    /// How the adapters change it, for a report.
    pub fn kinds(&self) -> Vec<&'static str> {
        let mut kinds: Vec<&str> = self.replaced.iter().map(|_| "trained whole").collect();
        kinds.extend(self.parts.iter().map(|part| part.form.kind()));
        kinds.dedup();
        kinds
    }

    /// The adapters that change it, as indices into the overlay's.
    pub fn adapters(&self) -> Vec<usize> {
        let mut adapters: Vec<usize> = self.replaced.iter().map(|r| r.adapter).collect();
        adapters.extend(self.parts.iter().map(|part| part.adapter));
        adapters.sort_unstable();
        adapters.dedup();
        adapters
    }
}

/// Rows and columns of a shape as a matrix.
pub(crate) fn matrix_dims(shape: &Shape, stack: bool) -> (u64, u64) {
    match shape.dims() {
        [experts, rows, cols] if stack => (experts * rows, *cols),
        [rows, rest @ ..] => (*rows, rest.iter().product()),
        [] => (1, 1),
    }
}

/// Scales of an FP8 tensor: one for each block of rows and columns; a value is its element times its scale.
#[derive(Clone, Debug)]
pub(crate) struct BlockScales {
    pub values: Vec<f64>,
    pub block_rows: u64,
    pub block_cols: u64,
    /// Blocks beside each other.
    pub per_row: u64,
}

impl BlockScales {
    /// The scale of an element.
    pub(crate) fn at(&self, row: u64, col: u64) -> f64 {
        self.values[(row / self.block_rows * self.per_row + col / self.block_cols) as usize]
    }
}
