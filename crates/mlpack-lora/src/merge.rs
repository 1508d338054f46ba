//! Merged rows: base values plus the scaled products, in float64, rounded once.

use crate::{Change, Error, Overlay, round_to};
use candle_core::{Device, Tensor};
use mlpack_safetensors::{Entry, TensorInfo};
use mlpack_tensor::Dtype;

impl Overlay {
    /// Writes the merged rows of a base tensor to `out`, in the base dtype, little-endian.
    ///
    /// `rows` are row numbers of the tensor in any order; `base_rows` are the same rows of the base, row-major,
    /// little-endian; both buffers have `rows.len() * row_len * byte_size` bytes. `position` is the tensor's place in
    /// the checkpoint. `sum` is room for the float64 sums, kept by the caller from slab to slab.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with row and column of the first merged value that is NaN or infinite.
    pub fn merge_rows(
        &self,
        position: usize,
        tensor: &TensorInfo,
        rows: &[u64],
        base_rows: &[u8],
        sum: &mut Vec<f64>,
        out: &mut [u8],
    ) -> Result<(), Error> {
        let row_len = tensor.shape.row_len();
        sum.resize(rows.len() * row_len as usize, 0.0);
        to_f64(tensor.dtype, base_rows, sum);
        for change in self.changes(position) {
            let adapter = &self.adapters()[change.adapter].0;
            add_product(change, |entry| adapter.weights().bytes(entry), rows, row_len as usize, sum)
                .map_err(|e| Error::Device { tensor: tensor.name.clone(), reason: e.to_string() })?;
        }
        round_to(tensor.dtype, sum, out).map_err(|wrong| Error::NotFinite {
            tensor: tensor.name.clone(),
            dtype: tensor.dtype,
            row: rows[wrong.index / row_len as usize],
            column: wrong.index as u64 % row_len,
            value: wrong.value,
        })
    }
}

/// Adds `scale * (B @ A)` for the given rows to `sum`, row-major.
///
/// The products of float32 factors are exact in float64, and every element is accumulated in rank order, so the result
/// does not depend on how rows are grouped or on fused multiply-add.
fn add_product<'a>(
    change: &'a Change,
    bytes: impl Fn(&'a Entry) -> &'a [u8],
    rows: &[u64],
    row_len: usize,
    sum: &mut [f64],
) -> candle_core::Result<()> {
    let (a, b) = (&change.pair.a, &change.pair.b);
    let rank = a.shape.dims()[0] as usize;
    let mut factor_a = vec![0f64; rank * row_len];
    to_f64(a.dtype, bytes(a), &mut factor_a);
    let mut factor_b = vec![0f64; rows.len() * rank];
    let b_row_byte_len = rank * b.dtype.byte_size() as usize;
    for (&row, out) in rows.iter().zip(factor_b.chunks_exact_mut(rank)) {
        let start = row as usize * b_row_byte_len;
        to_f64(b.dtype, &bytes(b)[start..start + b_row_byte_len], out);
    }
    let device = Device::Cpu;
    let factor_a = Tensor::from_vec(factor_a, (rank, row_len), &device)?;
    let factor_b = Tensor::from_vec(factor_b, (rows.len(), rank), &device)?;
    let product = factor_b.matmul(&factor_a)?;
    let (storage, _) = product.storage_and_layout();
    let candle_core::Storage::Cpu(storage) = &*storage else { unreachable!("the factors are on the CPU") };
    for (s, p) in sum.iter_mut().zip(storage.as_slice::<f64>()?) {
        *s += change.scale * p;
    }
    Ok(())
}

/// Little-endian floats to float64; every value is exact.
fn to_f64(dtype: Dtype, bytes: &[u8], out: &mut [f64]) {
    fn each<const N: usize>(bytes: &[u8], out: &mut [f64], decode: impl Fn([u8; N]) -> f64) {
        let (chunks, _) = bytes.as_chunks::<N>();
        for (o, chunk) in out.iter_mut().zip(chunks) {
            *o = decode(*chunk);
        }
    }
    match dtype {
        Dtype::BF16 => each(bytes, out, |b| f64::from(f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16))),
        Dtype::F16 => each(bytes, out, |b| half::f16::from_le_bytes(b).to_f64()),
        Dtype::F32 => each(bytes, out, |b| f64::from(f32::from_le_bytes(b))),
        Dtype::F64 => each(bytes, out, f64::from_le_bytes),
        other => panic!("{other} is not a float dtype; overlays check that"),
    }
}

#[cfg(test)]
mod tests;
