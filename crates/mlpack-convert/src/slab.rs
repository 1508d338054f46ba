//! One slab of one step: read, add the deltas, round, encode for every target.

use crate::{Error, ErrorSums, Input, Plan, SlabSums, Source, SourceTensor, Step, Stored};
use mlpack_fs::AtomicFile;
use mlpack_tensor::{Dtype, GgmlType};
use std::ops::Range;
use std::sync::Mutex;

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
    encoding: Encoding,
}

/// Room for the encoding of one target.
#[derive(Debug, Default)]
struct Encoding {
    bytes: Vec<u8>,
    importance: Vec<f32>,
    decoded: Vec<f32>,
}

/// Sums of errors by output and tensor, where they are asked for.
pub(crate) type Fidelity = Vec<Vec<Mutex<ErrorSums>>>;

/// What a worker needs to do any slab.
pub(crate) struct Work<'a> {
    pub source: &'a Source,
    pub plan: &'a Plan,
    pub files: &'a [AtomicFile],
    pub fidelity: Option<&'a Fidelity>,
}

/// Values on their way to the targets of a step.
struct Values<'a> {
    step: &'a Step,
    slab: &'a Slab,
    /// The source tensor's name; empty where the values are computed.
    name: &'a str,
    floats: &'a [f32],
}

impl Work<'_> {
    /// Does one slab; every write is at a place that the plan fixed.
    pub(crate) fn run(&self, slab: &Slab, scratch: &mut Scratch) -> Result<(), Error> {
        let step = &self.plan.steps[slab.step];
        match &step.input {
            Input::Computed(values) => {
                let range = (slab.rows.start * step.row_len) as usize..(slab.rows.end * step.row_len) as usize;
                let values = Values { step, slab, name: "", floats: &values[range] };
                (0..step.targets.len()).try_for_each(|i| self.encode(&values, i, &mut scratch.encoding))
            }
            Input::Tensor(position) => {
                let Scratch { gathered, sums, merged, floats, encoding } = scratch;
                let bytes = self.merged(*position, step, slab, gathered, sums, merged)?;
                self.write_tensor(step, slab, &self.source.tensors()[*position], bytes, floats, encoding)
            }
        }
    }

    /// The rows of the slab in output order, as the source stores them, with the deltas added: in the map where they are
    /// used as they are, else in the scratch room.
    fn merged<'s>(
        &'s self,
        position: usize,
        step: &Step,
        slab: &Slab,
        gathered: &'s mut Vec<u8>,
        sums: &mut Vec<f64>,
        merged: &'s mut Vec<u8>,
    ) -> Result<&'s [u8], Error> {
        let tensor = &self.source.tensors()[position];
        let all = self.source.bytes(tensor);
        let row_byte_len = tensor.stored.row_byte_len(step.row_len) as usize;
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
        if self.source.changes(position).is_empty() {
            self.check_finite(tensor, &source_rows, step.row_len, base)?;
            return Ok(base);
        }
        merged.resize(base.len(), 0);
        self.source.merge_rows(position, &source_rows, base, sums, merged)?;
        Ok(merged)
    }

    /// Refuses NaN and infinity, with the place of the first.
    fn check_finite(&self, tensor: &SourceTensor, rows: &[u64], row_len: u64, bytes: &[u8]) -> Result<(), Error> {
        let path = || self.source.file(tensor).path().to_owned();
        if let Some(dtype) = tensor.stored.dtype() {
            let Some((index, value)) = first_not_finite(dtype, bytes) else { return Ok(()) };
            let (row, column) = (rows[index / row_len as usize], index as u64 % row_len);
            return Err(Error::NotFinite { path: path(), tensor: tensor.name.clone(), dtype, row, column, value });
        }
        if let Stored::Ggml(ty) = tensor.stored
            && let Some(block) = mlpack_quant::first_invalid_block(ty, bytes)
        {
            let index = block as u64 * ty.block_len();
            let (row, column) = (rows[(index / row_len) as usize], index % row_len);
            return Err(Error::InvalidBlock { path: path(), tensor: tensor.name.clone(), ty, row, column });
        }
        Ok(())
    }

    /// Writes merged rows to every target: as they are where the target stores the source's own type, else encoded.
    fn write_tensor(
        &self,
        step: &Step,
        slab: &Slab,
        tensor: &SourceTensor,
        bytes: &[u8],
        floats: &mut Vec<f32>,
        encoding: &mut Encoding,
    ) -> Result<(), Error> {
        let as_is = |i: &usize| {
            let target = step.targets[*i];
            self.plan.outputs[target.output].tensors[target.tensor].stored.same_bytes(tensor.stored)
        };
        for i in (0..step.targets.len()).filter(as_is) {
            self.write(step, i, slab, bytes)?;
        }
        if self.fidelity.is_none() && (0..step.targets.len()).all(|i| as_is(&i)) {
            return Ok(());
        }
        floats.resize(((slab.rows.end - slab.rows.start) * step.row_len) as usize, 0.0);
        match tensor.stored {
            Stored::Safetensors(dtype) if dtype.is_float() => mlpack_quant::widen(dtype, bytes, floats)?,
            Stored::Ggml(ty) if mlpack_quant::can_decode(ty) => mlpack_quant::decode(ty, bytes, floats)?,
            // Integers are only ever copied, and have no error to measure.
            _ => return Ok(()),
        }
        let values = Values { step, slab, name: &tensor.name, floats };
        for i in 0..step.targets.len() {
            if as_is(&i) {
                self.measure(&values, i, floats);
            } else {
                self.encode(&values, i, encoding)?;
            }
        }
        Ok(())
    }

    /// Encodes values for one target and writes them.
    fn encode(&self, values: &Values<'_>, target: usize, encoding: &mut Encoding) -> Result<(), Error> {
        let Values { step, slab, name, floats } = *values;
        let place = step.targets[target];
        let output = &self.plan.outputs[place.output];
        let stored = &output.tensors[place.tensor];
        let Stored::Ggml(ty) = stored.stored else {
            unreachable!("a safetensors target keeps the source's dtype, so it is written as it is")
        };
        let at = |index: usize| {
            let index = index as u64;
            let row = step.transform.source_row(slab.rows.start + index / step.row_len, step.rows);
            (row, index % step.row_len)
        };
        if ty == GgmlType::F16
            && let Some(index) = first_f16_overflow(floats)
        {
            let (tensor, output, (row, column)) = (name.to_owned(), output.file_name.clone(), at(index));
            return Err(Error::F16Overflow { tensor, output, row, column, value: floats[index] });
        }
        encoding.bytes.resize(self.byte_len(step, target, slab.rows.end - slab.rows.start) as usize, 0);
        let row_len = step.row_len as usize;
        match stored.importance {
            None => mlpack_quant::encode(ty, floats, row_len, None, &mut encoding.bytes)?,
            Some(entry) => {
                // Each expert of a stack has values of its own.
                let dims = stored.shape.dims();
                let rows_per_expert = dims[dims.len().saturating_sub(2)];
                let row_byte_len = encoding.bytes.len() / (floats.len() / row_len).max(1);
                let mut row = slab.rows.start;
                while row < slab.rows.end {
                    let expert = row / rows_per_expert;
                    let end = slab.rows.end.min((expert + 1) * rows_per_expert);
                    let rows = (row - slab.rows.start) as usize..(end - slab.rows.start) as usize;
                    self.plan.importance(entry, expert as usize, row_len, &mut encoding.importance);
                    let floats = &floats[rows.start * row_len..rows.end * row_len];
                    let bytes = &mut encoding.bytes[rows.start * row_byte_len..rows.end * row_byte_len];
                    mlpack_quant::encode(ty, floats, row_len, Some(&encoding.importance), bytes)?;
                    row = end;
                }
            }
        }
        if ty.is_quantized()
            && let Some(block) = mlpack_quant::first_invalid_block(ty, &encoding.bytes)
        {
            let block_len = ty.block_len() as usize;
            let (tensor, output, (row, column)) = (name.to_owned(), output.file_name.clone(), at(block * block_len));
            let value = floats[block * block_len..][..block_len]
                .iter()
                .copied()
                .fold(0.0, |max: f32, v| if v.abs() > max.abs() { v } else { max });
            return Err(Error::ScaleOverflow { tensor, output, ty, row, column, value });
        }
        self.write(step, target, slab, &encoding.bytes)?;
        if self.fidelity.is_some() {
            encoding.decoded.resize(floats.len(), 0.0);
            mlpack_quant::decode(ty, &encoding.bytes, &mut encoding.decoded)?;
            self.measure(values, target, &encoding.decoded);
        }
        Ok(())
    }

    /// Adds the error of stored values to that of their tensor.
    fn measure(&self, values: &Values<'_>, target: usize, stored: &[f32]) {
        let Some(fidelity) = self.fidelity else { return };
        let mut sums = SlabSums::new(values.slab.rows.start);
        sums.add_rows(values.step.row_len as usize, values.floats, stored);
        let place = values.step.targets[target];
        fidelity[place.output][place.tensor].lock().expect("no thread panics holding the lock").add(sums);
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
