//! Deltas: matrices that are not stored but computed, row by row, from the small ones of an adapter.
//!
//! ```text
//!   LoRA    L·R                      LoHa    (L₁·R₁) ∘ (L₂·R₂)
//!   LoKr    W₁ ⊗ W₂                  Tucker  R is itself a core times a matrix: convolutions of LoHa and LoKr
//! ```
//! Products of float32 factors are exact in float64, and every element is accumulated in rank order, so a row does not
//! depend on which other rows are computed with it.

use crate::Adapter;
use crate::matrix::Matrix;
use candle_core::{Device, Storage, Tensor, WithDType};
use std::ops::Deref;

/// The longest stretch of a sum that goes through one matrix product. The product's own code adds up to so many terms
/// in order; longer ones it may cut, at a place that depends on the number of rows.
const MAX_DEPTH: u64 = 512;

/// A matrix that is stored, or the product of stored ones.
#[derive(Clone, Debug)]
pub(crate) enum Operand {
    /// A stored matrix.
    Full(Matrix),
    /// `left · right`.
    Product(Matrix, Matrix),
    /// `left · (core ×₁ right)`: the core is `[i, j, taps]`, right is `[j, cols]`, and the columns of the result are numbered
    /// by `(col, tap)`.
    Tucker {
        /// `[rows, i]`.
        left: Matrix,
        /// `[i, j · taps]`.
        core: Matrix,
        /// `[j, cols]`.
        right: Matrix,
    },
}

/// What is added to a module's weight, before its scale.
#[derive(Clone, Debug)]
pub(crate) enum Delta {
    /// One operand.
    Plain(Operand),
    /// The product of two, element by element.
    Hadamard(Operand, Operand),
    /// The Kronecker product of two.
    Kronecker(Operand, Operand),
}

/// Right factors in float64, kept from slab to slab: which part of which tensor they belong to, and which operand.
#[derive(Debug, Default)]
pub(crate) struct Panels {
    kept: Vec<(PanelKey, Vec<Tensor>, bool)>,
}

/// The tensor, the part, and the operand.
pub(crate) type PanelKey = (usize, usize, usize);

impl Panels {
    /// What is kept under a key, made where nothing is.
    pub(crate) fn panel(
        &mut self,
        key: PanelKey,
        make: impl FnOnce() -> candle_core::Result<Vec<Tensor>>,
    ) -> candle_core::Result<&[Tensor]> {
        let at = match self.kept.iter().position(|(kept, ..)| *kept == key) {
            Some(at) => at,
            None => {
                self.kept.push((key, make()?, true));
                self.kept.len() - 1
            }
        };
        self.kept[at].2 = true;
        Ok(&self.kept[at].1)
    }

    /// Drops what was not used since the last call, and says what that is.
    pub(crate) fn end_slab(&mut self) -> Vec<PanelKey> {
        let dropped = self.kept.iter().filter(|(.., used)| !used).map(|(key, ..)| *key).collect();
        self.kept.retain(|(.., used)| *used);
        self.kept.iter_mut().for_each(|(.., used)| *used = false);
        dropped
    }
}

impl Operand {
    pub(crate) fn rows(&self) -> u64 {
        match self {
            Operand::Full(m) => m.rows,
            Operand::Product(left, _) | Operand::Tucker { left, .. } => left.rows,
        }
    }

    pub(crate) fn cols(&self) -> u64 {
        match self {
            Operand::Full(m) => m.cols,
            Operand::Product(_, right) => right.cols,
            Operand::Tucker { core, right, .. } => right.cols * (core.cols / right.rows.max(1)),
        }
    }

    /// The rank of the product; 0 for a stored matrix.
    pub(crate) fn rank(&self) -> u64 {
        match self {
            Operand::Full(_) => 0,
            Operand::Product(_, right) => right.rows,
            Operand::Tucker { core, .. } => core.rows,
        }
    }

    /// Whether its parts fit each other.
    pub(crate) fn is_sound(&self) -> bool {
        match self {
            Operand::Full(_) => true,
            Operand::Product(left, right) => left.cols == right.rows,
            Operand::Tucker { left, core, right } => {
                left.cols == core.rows && right.rows > 0 && core.cols % right.rows == 0
            }
        }
    }

    /// The stored matrices that it is made of.
    pub(crate) fn matrices(&self) -> Vec<&Matrix> {
        match self {
            Operand::Full(m) => vec![m],
            Operand::Product(left, right) => vec![left, right],
            Operand::Tucker { left, core, right } => vec![left, core, right],
        }
    }

    /// Rows in float64, in the order given, one after another.
    fn compute(
        &self,
        adapter: &Adapter,
        rows: &[u64],
        key: PanelKey,
        panels: &mut Panels,
    ) -> candle_core::Result<Product> {
        let cols = self.cols() as usize;
        let left = match self {
            Operand::Full(matrix) => {
                let mut out = vec![0.0; rows.len() * cols];
                let bytes = adapter.bytes(matrix.tensor);
                for (row, out) in rows.iter().zip(out.chunks_exact_mut(cols.max(1))) {
                    matrix.decode_row(bytes, *row, out);
                }
                return Ok(Product::Values(out));
            }
            Operand::Product(left, _) | Operand::Tucker { left, .. } => left,
        };
        let bytes = adapter.bytes(left.tensor);
        let mut out: Option<Vec<f64>> = None;
        let pieces = panels.panel(key, || self.right(adapter))?;
        for (i, piece) in pieces.iter().enumerate() {
            let depth = piece.dims()[0];
            let from = i * MAX_DEPTH as usize;
            let mut factor = vec![0.0; rows.len() * depth];
            let mut whole = vec![0.0; left.cols as usize];
            for (row, factor) in rows.iter().zip(factor.chunks_exact_mut(depth.max(1))) {
                left.decode_row(bytes, *row, &mut whole);
                factor.copy_from_slice(&whole[from..from + depth]);
            }
            let product = Tensor::from_vec(factor, (rows.len(), depth), &Device::Cpu)?.matmul(piece)?;
            if pieces.len() == 1 {
                return Ok(Product::Tensor(product));
            }
            let product = Product::Tensor(product);
            match &mut out {
                None => out = Some(product.into_values()),
                Some(out) => out.iter_mut().zip(product.read().values()).for_each(|(o, p)| *o += p),
            }
        }
        Ok(Product::Values(out.unwrap_or_else(|| vec![0.0; rows.len() * cols])))
    }

    /// The right factor in float64, in stretches of [`MAX_DEPTH`] rows.
    fn right(&self, adapter: &Adapter) -> candle_core::Result<Vec<Tensor>> {
        let (values, rows, cols) = match self {
            Operand::Full(_) => return Ok(Vec::new()),
            Operand::Product(_, right) => (right.decode(adapter.bytes(right.tensor)), right.rows, right.cols),
            Operand::Tucker { core, right, .. } => {
                let (core_values, right_values) =
                    (core.decode(adapter.bytes(core.tensor)), right.decode(adapter.bytes(right.tensor)));
                let (inner, cols) = (right.rows as usize, right.cols as usize);
                let taps = core.cols as usize / inner.max(1);
                let mut values = vec![0.0; core.rows as usize * cols * taps];
                for (core, out) in core_values.chunks_exact(inner * taps).zip(values.chunks_exact_mut(cols * taps)) {
                    for (j, core) in core.chunks_exact(taps).enumerate() {
                        for (col, out) in out.chunks_exact_mut(taps).enumerate() {
                            let factor = right_values[j * cols + col];
                            out.iter_mut().zip(core).for_each(|(o, c)| *o += c * factor);
                        }
                    }
                }
                (values, core.rows, (cols * taps) as u64)
            }
        };
        let mut pieces = Vec::new();
        let mut values = values.as_slice();
        let mut left = rows;
        while left > 0 {
            let depth = left.min(MAX_DEPTH);
            let (piece, rest) = values.split_at((depth * cols) as usize);
            pieces.push(Tensor::from_slice(piece, (depth as usize, cols as usize), &Device::Cpu)?);
            (values, left) = (rest, left - depth);
        }
        Ok(pieces)
    }
}

impl Delta {
    /// Rows and columns.
    pub(crate) fn dims(&self) -> (u64, u64) {
        match self {
            Delta::Plain(a) | Delta::Hadamard(a, _) => (a.rows(), a.cols()),
            Delta::Kronecker(a, b) => (a.rows() * b.rows(), a.cols() * b.cols()),
        }
    }

    pub(crate) fn operands(&self) -> Vec<&Operand> {
        match self {
            Delta::Plain(a) => vec![a],
            Delta::Hadamard(a, b) | Delta::Kronecker(a, b) => vec![a, b],
        }
    }

    /// Whether its parts fit each other.
    pub(crate) fn is_sound(&self) -> bool {
        let operands = self.operands().into_iter().all(Operand::is_sound);
        operands
            && match self {
                Delta::Hadamard(a, b) => (a.rows(), a.cols()) == (b.rows(), b.cols()),
                Delta::Plain(_) | Delta::Kronecker(..) => true,
            }
    }

    /// Whether a factor is zero throughout, so that the delta is.
    pub(crate) fn is_zero(&self, adapter: &Adapter) -> bool {
        let zero = |m: &Matrix| m.decode(adapter.bytes(m.tensor)).iter().all(|v| *v == 0.0);
        self.operands().into_iter().any(|operand| operand.matrices().into_iter().any(zero))
    }

    /// Bytes that stay in memory from slab to slab: right factors in float64.
    pub(crate) fn panel_byte_len(&self) -> u64 {
        self.operands()
            .into_iter()
            .map(|o| o.rank().saturating_mul(o.cols()).saturating_mul(8))
            .fold(0, u64::saturating_add)
    }

    /// Rows in float64, in the order given, one after another.
    pub(crate) fn compute(
        &self,
        adapter: &Adapter,
        rows: &[u64],
        (tensor, part): (usize, usize),
        panels: &mut Panels,
    ) -> candle_core::Result<Product> {
        match self {
            Delta::Plain(a) => a.compute(adapter, rows, (tensor, part, 0), panels),
            Delta::Hadamard(a, b) => {
                let mut out = a.compute(adapter, rows, (tensor, part, 0), panels)?.into_values();
                let other = b.compute(adapter, rows, (tensor, part, 1), panels)?;
                out.iter_mut().zip(other.read().values()).for_each(|(o, v)| *o *= v);
                Ok(Product::Values(out))
            }
            Delta::Kronecker(a, b) => {
                let (inner_rows, inner_cols) = (b.rows(), b.cols() as usize);
                let outer: Vec<u64> = rows.iter().map(|row| row / inner_rows).collect();
                let inner: Vec<u64> = rows.iter().map(|row| row % inner_rows).collect();
                let outer = a.compute(adapter, &outer, (tensor, part, 0), panels)?.into_values();
                let inner = b.compute(adapter, &inner, (tensor, part, 1), panels)?.into_values();
                let mut out = Vec::with_capacity(outer.len() * inner_cols);
                let outer_rows = outer.chunks_exact((a.cols() as usize).max(1));
                for (outer, inner) in outer_rows.zip(inner.chunks_exact(inner_cols.max(1))) {
                    for factor in outer {
                        out.extend(inner.iter().map(|v| factor * v));
                    }
                }
                Ok(Product::Values(out))
            }
        }
    }
}

/// Rows of a delta in float64.
pub(crate) enum Product {
    /// As the matrix product left them.
    Tensor(Tensor),
    Values(Vec<f64>),
}

/// A product whose values are looked at.
pub(crate) enum ReadProduct<'p> {
    Tensor(Stored<'p>),
    Values(&'p [f64]),
}

/// The values of a contiguous tensor, behind its lock.
pub(crate) struct Stored<'p>(Box<dyn Deref<Target = Storage> + 'p>);

impl<'p> Stored<'p> {
    pub(crate) fn of(tensor: &'p Tensor) -> Stored<'p> {
        Stored(Box::new(tensor.storage_and_layout().0))
    }

    /// # Panics
    /// When they are of another type.
    pub(crate) fn values<T: WithDType>(&self) -> &[T] {
        let Storage::Cpu(storage) = &**self.0 else { unreachable!("the factors are on the CPU") };
        storage.as_slice().expect("whoever made the tensor says its type")
    }
}

impl Product {
    pub(crate) fn read(&self) -> ReadProduct<'_> {
        match self {
            Product::Tensor(tensor) => ReadProduct::Tensor(Stored::of(tensor)),
            Product::Values(values) => ReadProduct::Values(values),
        }
    }

    fn into_values(self) -> Vec<f64> {
        match self {
            Product::Tensor(_) => self.read().values().to_vec(),
            Product::Values(values) => values,
        }
    }
}

impl ReadProduct<'_> {
    /// Row after row.
    pub(crate) fn values(&self) -> &[f64] {
        match self {
            ReadProduct::Tensor(stored) => stored.values(),
            ReadProduct::Values(values) => values,
        }
    }
}
