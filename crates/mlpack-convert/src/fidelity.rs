//! Fidelity: how far stored values are from the values that they stand for.
//!
//! ```text
//!   worker 1   rows 0..4    -> SlabSums ─┐
//!   worker 2   rows 4..8    -> SlabSums ─┼─> ErrorSums (adds row after row, in row order) -> TensorError
//!   worker 1   rows 8..12   -> SlabSums ─┘
//! ```
//!
//! A float sum depends on its order, so the order is fixed: within a row by the column, then by the row. How rows are cut
//! into slabs and which worker is first changes no bit.

use std::collections::BTreeMap;
use std::fmt;

/// Independent sums over a row, each over every `LANES`th column: as many as hide the latency of an addition while all
/// of them stay in registers.
const LANES: usize = 4;

/// The largest error of a tensor and the first place that has it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MaxError {
    /// The magnitude of the difference; NaN where one of the values is NaN, or both are the same infinity.
    pub error: f64,
    /// The row, counting all dimensions but the innermost as one.
    pub row: u64,
    /// The column.
    pub column: u64,
}

impl MaxError {
    /// Whether the error is larger; NaN is larger than any number.
    fn exceeds(self, other: MaxError) -> bool {
        self.error > other.error || (self.error.is_nan() && !other.error.is_nan())
    }
}

/// Sums over one row, in float64.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct RowSums {
    squared_error: f64,
    source_square: f64,
    stored_square: f64,
    dot: f64,
}

/// Sums over consecutive rows of a tensor, row by row: what a worker hands over when its slab is done.
#[derive(Clone, Debug)]
pub struct SlabSums {
    first_row: u64,
    elements: u64,
    rows: Vec<RowSums>,
    max: MaxError,
}

impl SlabSums {
    /// No rows yet; the first to be added is `first_row` of the tensor.
    pub fn new(first_row: u64) -> SlabSums {
        let max = MaxError { error: 0.0, row: first_row, column: 0 };
        SlabSums { first_row, elements: 0, rows: Vec::new(), max }
    }

    /// Adds the next rows: `source` and `stored` have the same whole number of rows of `row_len` values.
    pub fn add_rows(&mut self, row_len: usize, source: &[f32], stored: &[f32]) {
        debug_assert_eq!(source.len(), stored.len(), "the values of the same rows");
        let row_len = row_len.max(1);
        self.rows.reserve(source.len() / row_len);
        for (source, stored) in source.chunks_exact(row_len).zip(stored.chunks_exact(row_len)) {
            let (sums, max) = row_sums(source, stored);
            // Only a row with a new maximum is searched for its column: a few rows of a slab.
            if max > self.max.error || (sums.squared_error.is_nan() && !self.max.error.is_nan()) {
                let found = place(source, stored, self.first_row + self.rows.len() as u64);
                if found.exceeds(self.max) {
                    self.max = found;
                }
            }
            self.rows.push(sums);
            self.elements += row_len as u64;
        }
    }
}

/// Sums over every `LANES`th column of a row.
#[derive(Default)]
struct Lanes {
    squared_error: [f64; LANES],
    source_square: [f64; LANES],
    stored_square: [f64; LANES],
    dot: [f64; LANES],
    max: [f64; LANES],
}

impl Lanes {
    /// Adds a value to each lane. Each line is a vector instruction for every two lanes.
    #[inline(always)]
    fn add(&mut self, a: &[f32; LANES], b: &[f32; LANES]) {
        let (a, b) = (a.map(f64::from), b.map(f64::from));
        let mut error = a;
        error.iter_mut().zip(b).for_each(|(error, b)| *error -= b);
        self.squared_error.iter_mut().zip(error).for_each(|(sum, error)| *sum += error * error);
        self.source_square.iter_mut().zip(a).for_each(|(sum, a)| *sum += a * a);
        self.stored_square.iter_mut().zip(b).for_each(|(sum, b)| *sum += b * b);
        self.dot.iter_mut().zip(a).zip(b).for_each(|((sum, a), b)| *sum += a * b);
        let larger = |(max, error): (&mut f64, f64)| *max = if error.abs() > *max { error.abs() } else { *max };
        self.max.iter_mut().zip(error).for_each(larger);
    }
}

/// The sums of one row, and the largest error that is a number.
fn row_sums(source: &[f32], stored: &[f32]) -> (RowSums, f64) {
    let mut lanes = Lanes::default();
    let (source_chunks, source_rest) = source.as_chunks::<LANES>();
    let (stored_chunks, stored_rest) = stored.as_chunks::<LANES>();
    for (a, b) in source_chunks.iter().zip(stored_chunks) {
        lanes.add(a, b);
    }
    if !source_rest.is_empty() {
        // Zeros add nothing: x + 0 is x for every sum of squares, and for a sum that starts at +0.
        let (mut a, mut b) = ([0.0; LANES], [0.0; LANES]);
        a[..source_rest.len()].copy_from_slice(source_rest);
        b[..stored_rest.len()].copy_from_slice(stored_rest);
        lanes.add(&a, &b);
    }
    let fold = |lanes: [f64; LANES]| (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
    let sums = RowSums {
        squared_error: fold(lanes.squared_error),
        source_square: fold(lanes.source_square),
        stored_square: fold(lanes.stored_square),
        dot: fold(lanes.dot),
    };
    (sums, lanes.max.into_iter().fold(0.0, f64::max))
}

/// The first place of a row's largest error, or of its first NaN.
fn place(source: &[f32], stored: &[f32], row: u64) -> MaxError {
    let mut max = MaxError { error: 0.0, row, column: 0 };
    for (column, (a, b)) in source.iter().zip(stored).enumerate() {
        let here = MaxError { error: (f64::from(*a) - f64::from(*b)).abs(), row, column: column as u64 };
        if here.exceeds(max) {
            max = here;
        }
    }
    max
}

/// Sums over a tensor whose slabs arrive in any order; they are added in row order.
#[derive(Clone, Debug, Default)]
pub struct ErrorSums {
    elements: u64,
    sums: RowSums,
    max: MaxError,
    next_row: u64,
    waiting: BTreeMap<u64, SlabSums>,
}

impl ErrorSums {
    /// Takes the sums of a slab; those that follow rows not yet seen wait for them.
    pub fn add(&mut self, slab: SlabSums) {
        if slab.rows.is_empty() {
            return;
        }
        self.waiting.insert(slab.first_row, slab);
        while let Some(slab) = self.waiting.remove(&self.next_row) {
            for row in &slab.rows {
                self.sums.squared_error += row.squared_error;
                self.sums.source_square += row.source_square;
                self.sums.stored_square += row.stored_square;
                self.sums.dot += row.dot;
            }
            self.elements += slab.elements;
            self.next_row += slab.rows.len() as u64;
            if slab.max.exceeds(self.max) {
                self.max = slab.max;
            }
        }
    }

    /// The tensor's error, once all of its slabs were added.
    pub fn finish(self) -> TensorError {
        debug_assert!(self.waiting.is_empty(), "rows before {:?} were never added", self.waiting.keys().next());
        let RowSums { squared_error, source_square, stored_square, dot } = self.sums;
        TensorError { elements: self.elements, squared_error, source_square, stored_square, dot, max: self.max }
    }
}

/// How far the stored values of a tensor are from its source. NaN in a tensor makes its figures NaN.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TensorError {
    /// The number of elements.
    pub elements: u64,
    /// The sum of squared differences.
    pub squared_error: f64,
    /// The sum of squared source values.
    pub source_square: f64,
    /// The sum of squared stored values.
    pub stored_square: f64,
    /// The sum of products of source and stored values.
    pub dot: f64,
    /// The largest difference.
    pub max: MaxError,
}

impl TensorError {
    /// The error of several tensors as one; the place of the largest difference is that in its own tensor.
    pub fn total<'a>(tensors: impl IntoIterator<Item = &'a TensorError>) -> TensorError {
        tensors.into_iter().fold(TensorError::default(), |total, t| TensorError {
            elements: total.elements + t.elements,
            squared_error: total.squared_error + t.squared_error,
            source_square: total.source_square + t.source_square,
            stored_square: total.stored_square + t.stored_square,
            dot: total.dot + t.dot,
            max: if t.max.exceeds(total.max) { t.max } else { total.max },
        })
    }

    /// The root of the mean squared difference; 0 for an empty tensor.
    pub fn rmse(&self) -> f64 {
        if self.elements == 0 { 0.0 } else { (self.squared_error / self.elements as f64).sqrt() }
    }

    /// The root of the mean squared source value.
    pub fn source_rms(&self) -> f64 {
        if self.elements == 0 { 0.0 } else { (self.source_square / self.elements as f64).sqrt() }
    }

    /// [`TensorError::rmse`] as a part of [`TensorError::source_rms`]: 0 without error, infinite where the source is all
    /// zero and the stored values are not.
    pub fn relative_rmse(&self) -> f64 {
        if self.squared_error == 0.0 { 0.0 } else { (self.squared_error / self.source_square).sqrt() }
    }

    /// The cosine of the angle between the tensors as vectors: 1 where both are all zero, 0 where one is.
    pub fn cosine(&self) -> f64 {
        if self.source_square == 0.0 && self.stored_square == 0.0 {
            return 1.0;
        }
        if self.source_square == 0.0 || self.stored_square == 0.0 {
            // Not a constant: 0 times NaN stays NaN.
            return 0.0 * self.squared_error;
        }
        // The root of the product, so that the cosine of equal tensors is 1 and not one ulp less.
        (self.dot / (self.source_square * self.stored_square).sqrt()).clamp(-1.0, 1.0)
    }

    /// Whether every value of both tensors is a number and finite.
    pub fn is_finite(&self) -> bool {
        self.squared_error.is_finite() && self.source_square.is_finite() && self.stored_square.is_finite()
    }
}

/// How much error is accepted for each tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// The largest [`TensorError::rmse`].
    pub max_rmse: Option<f64>,
    /// The least [`TensorError::cosine`].
    pub min_cosine: Option<f64>,
}

/// A limit that a tensor does not keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Exceeded {
    /// The RMSE is too large, or not a number.
    Rmse {
        /// The limit.
        limit: f64,
        /// The tensor's.
        found: f64,
    },
    /// The cosine is too small, or not a number.
    Cosine {
        /// The limit.
        limit: f64,
        /// The tensor's.
        found: f64,
    },
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exceeded::Rmse { limit, found } => write!(f, "RMSE {found} is over {limit}"),
            Exceeded::Cosine { limit, found } => write!(f, "cosine {found} is under {limit}"),
        }
    }
}

impl Limits {
    /// Whether there is any limit.
    pub fn any(&self) -> bool {
        self.max_rmse.is_some() || self.min_cosine.is_some()
    }

    /// The limits that a tensor does not keep. NaN keeps none, and neither does a figure next to a limit that is NaN.
    pub fn exceeded(&self, error: &TensorError) -> Vec<Exceeded> {
        let kept = |found: f64, in_limit: bool| in_limit && !found.is_nan() && error.is_finite();
        let rmse = self.max_rmse.and_then(|limit| {
            let found = error.rmse();
            (!kept(found, found <= limit)).then_some(Exceeded::Rmse { limit, found })
        });
        let cosine = self.min_cosine.and_then(|limit| {
            let found = error.cosine();
            (!kept(found, found >= limit)).then_some(Exceeded::Cosine { limit, found })
        });
        rmse.into_iter().chain(cosine).collect()
    }
}

#[cfg(test)]
mod tests;
