//! One slab of one step: read, add the deltas, round, encode for every target.

use crate::{Error, Input, Plan, Source, Step, Stored};
use mlpack_fs::AtomicFile;
use mlpack_safetensors::TensorInfo;
use mlpack_tensor::{Dtype, GgmlType};
use std::ops::Range;

/// The least magnitude that float16 rounds to infinity.
const F16_OVERFLOW: f32 = 65520.0;

/// Rows of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slab {
    /// The step, as an index into the plan's.
    pub step: usize,
    /// Rows of the output; the same rows of the source in another order, since slabs end where groups of rows end.
    pub rows: Range<u64>,
}

/// Room that a worker keeps from slab to slab.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    gathered: Vec<u8>,
    sums: Vec<f64>,
    merged: Vec<u8>,
    floats: Vec<f32>,
    encoded: Vec<u8>,
}

/// What a worker needs to do any slab.
pub(crate) struct Work<'a> {
    pub source: &'a Source,
    pub plan: &'a Plan,
    pub files: &'a [AtomicFile],
}

impl Work<'_> {
    /// Does one slab; every write is at a place that the plan fixed.
    pub(crate) fn run(&self, slab: &Slab, scratch: &mut Scratch) -> Result<(), Error> {
        let step = &self.plan.steps[slab.step];
        match &step.input {
            Input::Computed(values) => {
                let range = (slab.rows.start * step.row_len) as usize..(slab.rows.end * step.row_len) as usize;
                let encoded = &mut scratch.encoded;
                (0..step.targets.len())
                    .try_for_each(|i| self.encode(step, i, slab, "", &values[range.clone()], encoded))
            }
            Input::Checkpoint(position) => {
                let tensor = &self.source.checkpoint.tensors()[*position];
                let Scratch { gathered, sums, merged, floats, encoded } = scratch;
                let values = self.merged(*position, step, slab, gathered, sums, merged)?;
                self.write_tensor(step, slab, tensor, values, floats, encoded)
            }
        }
    }

    /// The rows of the slab in output order, in the source's dtype, with the deltas added: in the map where they are used
    /// as they are, else in the scratch room.
    fn merged<'s>(
        &'s self,
        position: usize,
        step: &Step,
        slab: &Slab,
        gathered: &'s mut Vec<u8>,
        sums: &mut Vec<f64>,
        merged: &'s mut Vec<u8>,
    ) -> Result<&'s [u8], Error> {
        let tensor = &self.source.checkpoint.tensors()[position];
        let all = self.source.checkpoint.bytes(tensor);
        let row_byte_len = (step.row_len * tensor.dtype.byte_size()) as usize;
        let source_rows: Vec<u64> = slab.rows.clone().map(|row| step.transform.source_row(row, step.rows)).collect();
        let contiguous = source_rows.iter().copied().eq(slab.rows.clone());
        let base = if contiguous {
            &all[slab.rows.start as usize * row_byte_len..slab.rows.end as usize * row_byte_len]
        } else {
            gathered.clear();
            for row in &source_rows {
                gathered.extend_from_slice(&all[*row as usize * row_byte_len..][..row_byte_len]);
            }
            gathered
        };
        if self.source.overlay.changes(position).is_empty() {
            self.check_finite(tensor, &source_rows, step.row_len, base)?;
            return Ok(base);
        }
        merged.resize(base.len(), 0);
        self.source.overlay.merge_rows(position, tensor, &source_rows, base, sums, merged)?;
        Ok(merged)
    }

    /// Refuses NaN and infinity, with the place of the first.
    fn check_finite(&self, tensor: &TensorInfo, rows: &[u64], row_len: u64, bytes: &[u8]) -> Result<(), Error> {
        let Some((index, value)) = first_not_finite(tensor.dtype, bytes) else { return Ok(()) };
        Err(Error::NotFinite {
            path: self.source.checkpoint.shards()[tensor.shard].path().to_owned(),
            tensor: tensor.name.clone(),
            dtype: tensor.dtype,
            row: rows[index / row_len as usize],
            column: index as u64 % row_len,
            value,
        })
    }

    /// Writes merged rows to every target: as they are where the target stores the source's own dtype, else encoded.
    fn write_tensor(
        &self,
        step: &Step,
        slab: &Slab,
        tensor: &TensorInfo,
        bytes: &[u8],
        floats: &mut Vec<f32>,
        encoded: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let as_is = |stored| match stored {
            Stored::Safetensors(_) => true,
            Stored::Ggml(ty) => same_bytes(tensor.dtype, ty),
        };
        let stored = |i: usize| {
            let target = step.targets[i];
            self.plan.outputs[target.output].tensors[target.tensor].stored
        };
        for i in (0..step.targets.len()).filter(|i| as_is(stored(*i))) {
            self.write(step, i, slab, bytes)?;
        }
        if (0..step.targets.len()).all(|i| as_is(stored(i))) {
            return Ok(());
        }
        floats.resize(bytes.len() / tensor.dtype.byte_size() as usize, 0.0);
        mlpack_quant::widen(tensor.dtype, bytes, floats)?;
        for i in (0..step.targets.len()).filter(|i| !as_is(stored(*i))) {
            self.encode(step, i, slab, &tensor.name, floats, encoded)?;
        }
        Ok(())
    }

    fn encode(
        &self,
        step: &Step,
        target: usize,
        slab: &Slab,
        tensor: &str,
        floats: &[f32],
        encoded: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let place = step.targets[target];
        let output = &self.plan.outputs[place.output];
        let Stored::Ggml(ty) = output.tensors[place.tensor].stored else {
            unreachable!("a safetensors target keeps the source's dtype, so it is written as it is")
        };
        if ty == GgmlType::F16
            && let Some(index) = first_f16_overflow(floats)
        {
            return Err(Error::F16Overflow {
                tensor: tensor.to_owned(),
                output: output.file_name.clone(),
                row: step.transform.source_row(slab.rows.start + index as u64 / step.row_len, step.rows),
                column: index as u64 % step.row_len,
                value: floats[index],
            });
        }
        let byte_len = self.byte_len(step, target, slab.rows.end - slab.rows.start);
        encoded.resize(byte_len as usize, 0);
        mlpack_quant::encode(ty, floats, step.row_len as usize, None, encoded)?;
        self.write(step, target, slab, encoded)
    }

    fn write(&self, step: &Step, target: usize, slab: &Slab, bytes: &[u8]) -> Result<(), Error> {
        let place = step.targets[target];
        let start = self.plan.outputs[place.output].tensors[place.tensor].range.start;
        let offset = start + self.byte_len(step, target, slab.rows.start);
        Ok(self.files[place.output].write_at(offset, bytes)?)
    }

    /// Bytes of so many rows of a target: rows of a tensor all have the same length.
    fn byte_len(&self, step: &Step, target: usize, rows: u64) -> u64 {
        let place = step.targets[target];
        let range = &self.plan.outputs[place.output].tensors[place.tensor].range;
        (range.end - range.start) / step.rows.max(1) * rows
    }
}

/// Whether ggml stores a type with the bytes of the dtype.
fn same_bytes(dtype: Dtype, ty: GgmlType) -> bool {
    matches!((dtype, ty), (Dtype::F32, GgmlType::F32) | (Dtype::F16, GgmlType::F16) | (Dtype::BF16, GgmlType::BF16))
}

/// The first NaN or infinity; dtypes that have none pass.
fn first_not_finite(dtype: Dtype, bytes: &[u8]) -> Option<(usize, f32)> {
    fn find<const N: usize>(
        bytes: &[u8],
        bad: impl Fn([u8; N]) -> bool,
        value: impl Fn([u8; N]) -> f32,
    ) -> Option<(usize, f32)> {
        let (chunks, _) = bytes.as_chunks::<N>();
        // The common case is one branch-free pass.
        if !chunks.iter().fold(false, |any, c| any | bad(*c)) {
            return None;
        }
        let index = chunks.iter().position(|c| bad(*c)).expect("the pass above saw one");
        Some((index, value(chunks[index])))
    }
    match dtype {
        Dtype::BF16 => find(
            bytes,
            |b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80,
            |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16),
        ),
        Dtype::F16 => {
            find(bytes, |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00, |b| half::f16::from_le_bytes(b).to_f32())
        }
        Dtype::F32 => find(bytes, |b| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000, f32::from_le_bytes),
        Dtype::F64 => find(bytes, |b| !(f64::from_le_bytes(b) as f32).is_finite(), |b| f64::from_le_bytes(b) as f32),
        _ => None,
    }
}

fn first_f16_overflow(floats: &[f32]) -> Option<usize> {
    if !floats.iter().fold(false, |any, v| any | (v.abs() >= F16_OVERFLOW)) {
        return None;
    }
    floats.iter().position(|v| v.abs() >= F16_OVERFLOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_value_that_is_not_finite() {
        let bf16: Vec<u8> = [0x3f80u16, 0x7f7f, 0xff80, 0x7fc0].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(first_not_finite(Dtype::BF16, &bf16), Some((2, f32::NEG_INFINITY)));
        assert_eq!(first_not_finite(Dtype::BF16, &bf16[..4]), None);
        let f16: Vec<u8> = [0x7bffu16, 0x7c00].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(first_not_finite(Dtype::F16, &f16), Some((1, f32::INFINITY)));
        assert_eq!(first_not_finite(Dtype::F64, &1e300f64.to_le_bytes()), Some((0, f32::INFINITY)));
        assert_eq!(first_not_finite(Dtype::I32, &u32::MAX.to_le_bytes()), None);
    }

    #[test]
    fn f16_overflows_where_rounding_gives_infinity() {
        assert_eq!(first_f16_overflow(&[65_519.996, -65_504.0]), None);
        assert_eq!(first_f16_overflow(&[1.0, -65_520.0]), Some(1));
    }
}
