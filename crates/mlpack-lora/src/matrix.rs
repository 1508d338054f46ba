//! Matrices inside an adapter's tensors: which elements they are, and their values in float64.

use crate::simd::simd;
use mlpack_tensor::{Dtype, Shape};
use std::ops::Range;

/// A tensor of an adapter's weights file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterTensor {
    /// Its name in the file.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape, outermost dimension first.
    pub shape: Shape,
    /// Elements from one index of a dimension to the next.
    pub strides: Vec<u64>,
    /// Its bytes, as offsets into the file, from its first element to its last.
    pub range: Range<u64>,
}

impl AdapterTensor {
    /// The strides of a row-major tensor.
    pub(crate) fn row_major(shape: &Shape) -> Vec<u64> {
        let mut strides = vec![1; shape.rank()];
        for i in (1..shape.rank()).rev() {
            strides[i - 1] = strides[i] * shape.dims()[i];
        }
        strides
    }

    /// Whether elements follow each other in row-major order.
    pub(crate) fn is_row_major(&self) -> bool {
        self.strides == AdapterTensor::row_major(&self.shape)
    }
}

/// Some elements of an adapter's tensor as a matrix. All counts are of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Matrix {
    /// The tensor, as an index into the adapter's.
    pub tensor: usize,
    dtype: Dtype,
    offset: u64,
    pub rows: u64,
    pub cols: u64,
    row_stride: u64,
    col_stride: u64,
}

impl Matrix {
    /// A tensor with all dimensions but the first as one: a vector is a column.
    pub(crate) fn of(index: usize, tensor: &AdapterTensor) -> Matrix {
        let rows = tensor.shape.dims().first().copied().unwrap_or(1);
        let cols = tensor.shape.dims().iter().skip(1).product();
        let row_stride = tensor.strides.first().copied().unwrap_or(1);
        // Tensors of more than two dimensions are row-major; the reader checked that.
        let col_stride = if tensor.shape.rank() == 2 { tensor.strides[1] } else { 1 };
        Matrix { tensor: index, dtype: tensor.dtype, offset: 0, rows, cols, row_stride, col_stride }
    }

    /// All elements of a tensor as one column.
    pub(crate) fn column(index: usize, tensor: &AdapterTensor) -> Matrix {
        let rows = tensor.shape.element_count().unwrap_or(0);
        let strided = tensor.strides.iter().zip(tensor.shape.dims()).find(|(_, d)| **d > 1);
        let row_stride = if tensor.is_row_major() { 1 } else { strided.map_or(1, |(s, _)| *s) };
        Matrix { tensor: index, dtype: tensor.dtype, offset: 0, rows, cols: 1, row_stride, col_stride: 1 }
    }

    pub(crate) fn transposed(self) -> Matrix {
        Matrix { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    pub(crate) fn row_range(self, rows: Range<u64>) -> Matrix {
        Matrix { offset: self.offset + rows.start * self.row_stride, rows: rows.end - rows.start, ..self }
    }

    /// Of a matrix whose columns are numbered by `(k, expert)`, the columns of one expert.
    pub(crate) fn every_nth_col(self, n: u64, first: u64) -> Matrix {
        Matrix {
            offset: self.offset + first * self.col_stride,
            cols: self.cols / n,
            col_stride: self.col_stride * n,
            ..self
        }
    }

    /// Whether float32 holds every element as it is.
    pub(crate) fn is_exact_in_f32(&self) -> bool {
        matches!(self.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
    }

    pub(crate) fn element_count(&self) -> u64 {
        self.rows * self.cols
    }

    /// Where rows lie in the tensor's bytes, where they lie together; nothing where they do not.
    pub(crate) fn byte_range(&self, rows: Range<u64>) -> Range<u64> {
        if self.col_stride != 1 || self.row_stride != self.cols {
            return 0..0;
        }
        let at = |row: u64| (self.offset + row * self.row_stride) * self.dtype.byte_size();
        at(rows.start)..at(rows.end)
    }

    /// One row in float64. `bytes` are the tensor's.
    pub(crate) fn decode_row(&self, bytes: &[u8], row: u64, out: &mut [f64]) {
        self.decode_from(bytes, row, 0, out);
    }

    /// A piece of a row in float64, from a column on.
    pub(crate) fn decode_from(&self, bytes: &[u8], row: u64, col: u64, out: &mut [f64]) {
        let first = self.offset + row * self.row_stride + col * self.col_stride;
        let size = self.dtype.byte_size();
        if self.col_stride == 1 {
            let start = (first * size) as usize;
            to_f64(self.dtype, &bytes[start..start + out.len() * size as usize], out);
            return;
        }
        for (col, out) in out.iter_mut().enumerate() {
            let start = ((first + col as u64 * self.col_stride) * size) as usize;
            to_f64(self.dtype, &bytes[start..start + size as usize], std::slice::from_mut(out));
        }
    }

    /// All rows in float64, row-major.
    pub(crate) fn decode(&self, bytes: &[u8]) -> Vec<f64> {
        let mut out = vec![0.0; self.element_count() as usize];
        for (row, out) in out.chunks_exact_mut((self.cols as usize).max(1)).enumerate() {
            self.decode_row(bytes, row as u64, out);
        }
        out
    }
}

/// Little-endian floats to float64; every value is exact.
///
/// # Panics
/// When `dtype` is not a float dtype: overlays check that.
pub(crate) fn to_f64(dtype: Dtype, bytes: &[u8], out: &mut [f64]) {
    fn each<const N: usize>(bytes: &[u8], out: &mut [f64], decode: impl Fn([u8; N]) -> f64) {
        let (chunks, _) = bytes.as_chunks::<N>();
        simd(|| {
            for (o, chunk) in out.iter_mut().zip(chunks) {
                *o = decode(*chunk);
            }
        });
    }
    match dtype {
        Dtype::BF16 => each(bytes, out, |b| f64::from(f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16))),
        Dtype::F16 => each(bytes, out, |b| half::f16::from_le_bytes(b).to_f64()),
        Dtype::F32 => each(bytes, out, |b| f64::from(f32::from_le_bytes(b))),
        Dtype::F64 => each(bytes, out, f64::from_le_bytes),
        Dtype::F8_E4M3 => each(bytes, out, |[b]| e4m3_to_f64(b)),
        // The upper half of a float16 has the same exponent.
        Dtype::F8_E5M2 => each(bytes, out, |[b]| half::f16::from_bits(u16::from(b) << 8).to_f64()),
        other => panic!("{other} is not a float dtype; overlays check that"),
    }
}

/// OCP FP8 E4M3: exponent bias 7, no infinities, all ones are NaN.
fn e4m3_to_f64(b: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(b >> 3 & 0xf), f64::from(b & 7));
    let magnitude = match (exponent, b & 7) {
        (15, 7) => f64::NAN,
        (0, _) => mantissa * 2f64.powi(-9),
        _ => (8.0 + mantissa) * 2f64.powi(exponent - 10),
    };
    if b & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Dtypes that a delta is computed from and added to.
pub(crate) fn is_summable(dtype: Dtype) -> bool {
    dtype.is_float() || matches!(dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dims: &[u64]) -> AdapterTensor {
        let shape = Shape::from(dims);
        let strides = AdapterTensor::row_major(&shape);
        let byte_len = shape.element_count().unwrap() * 4;
        AdapterTensor { name: "t".into(), dtype: Dtype::F32, shape, strides, range: 0..byte_len }
    }

    fn count(n: u16) -> Vec<u8> {
        (0..n).flat_map(|i| f32::from(i).to_le_bytes()).collect()
    }

    #[test]
    fn experts_are_slices_of_the_factors() {
        // B of two experts and rank 2 is [out, (r, expert)]: the expert is the fastest.
        let b = Matrix::of(0, &tensor(&[3, 4]));
        assert_eq!(b.every_nth_col(2, 1).decode(&count(12)), [1.0, 3.0, 5.0, 7.0, 9.0, 11.0]);
        assert_eq!(b.row_range(1..3).transposed().decode(&count(12)), [4.0, 8.0, 5.0, 9.0, 6.0, 10.0, 7.0, 11.0]);
    }

    #[test]
    fn fp8_has_the_values_of_the_ocp_tables() {
        let decode = |dtype, bits: u8| {
            let mut out = [0.0];
            to_f64(dtype, &[bits], &mut out);
            out[0]
        };
        for (bits, value) in [(0x01, 0.001953125), (0x07, 0.013671875), (0x08, 0.015625), (0x38, 1.0), (0x7e, 448.0)] {
            assert_eq!(decode(Dtype::F8_E4M3, bits), value);
            assert_eq!(decode(Dtype::F8_E4M3, bits | 0x80), -value);
        }
        assert!(decode(Dtype::F8_E4M3, 0x7f).is_nan());
        for (bits, value) in [(0x01, 1.52587890625e-5), (0x3c, 1.0), (0x7b, 57344.0)] {
            assert_eq!(decode(Dtype::F8_E5M2, bits), value);
        }
    }
}
