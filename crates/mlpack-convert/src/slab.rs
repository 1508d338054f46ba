//! One slab of one step: read, add the deltas, round, encode for every target.

use crate::execute::column_block;
use crate::gather::{Reader, Room, share};
use crate::resume::Resume;
use crate::{BytesPart, Error, ErrorSums, Input, Plan, SlabSums, Source, Step, Stored, Target};
use mlpack_arch::ValueChange;
use mlpack_fs::{AtomicFile, Extent, InputHasher, write_together};
use mlpack_lora::ChangeTally;
use mlpack_quant::{ColumnPart, Extremes, NBitsPart};
use mlpack_tensor::{Dtype, GgmlType};
use std::ops::Range;
use std::sync::Mutex;

/// The least magnitude that float16 rounds to infinity.
pub(crate) const F16_OVERFLOW: f32 = 65520.0;

/// Elements that are widened and encoded at a time, if a row is not longer: they stay in the nearest caches.
const STRIP_ELEMENTS: u64 = 1 << 13;

/// Rows of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slab {
    /// The step, as an index into the plan's.
    pub step: usize,
    /// Rows of the output.
    pub rows: Range<u64>,
}

/// Room that a worker keeps from slab to slab.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub room: Room,
    pub floats: Vec<f32>,
    /// Of each target.
    encoded: Vec<Vec<u8>>,
    encoding: Encoding,
}

/// Room for the encoding of one target beside its bytes.
#[derive(Debug, Default)]
struct Encoding {
    importance: Vec<f32>,
    decoded: Vec<f32>,
    scales: Vec<f32>,
}

/// Sums of errors by output and tensor, where they are asked for.
pub(crate) type Fidelity = Vec<Vec<Mutex<ErrorSums>>>;

/// What a worker needs to do any slab.
pub(crate) struct Work<'a> {
    pub source: &'a Source,
    pub plan: &'a Plan,
    pub files: &'a [AtomicFile],
    /// Of the source's files.
    pub hashers: &'a [InputHasher<'a>],
    pub fidelity: Option<&'a Fidelity>,
    /// How much the adapters change, where that is asked for.
    pub tally: Option<&'a ChangeTally>,
    /// What an interrupted run left, where that is looked for.
    pub resume: Option<&'a Resume>,
}

/// Values on their way to the targets of a step.
struct Values<'a> {
    step: &'a Step,
    /// Those rows of the slab.
    rows: Range<u64>,
    /// Where they come from; `None` where they are computed.
    reader: Option<&'a Reader<'a>>,
    floats: &'a [f32],
}

impl Work<'_> {
    /// Does one slab; every write is at a place that the plan fixed.
    pub(crate) fn run(&self, slab: &Slab, shares: &[(usize, Range<u64>)], scratch: &mut Scratch) -> Result<(), Error> {
        if self.is_kept(slab) {
            return Ok(());
        }
        shares.iter().for_each(|(file, range)| self.hashers[*file].prepare(range.clone()));
        let step = &self.plan.steps[slab.step];
        let Scratch { room, floats, encoded, encoding } = scratch;
        encoded.resize_with(step.targets.len().max(encoded.len()), Vec::new);
        match &step.input {
            Input::Computed(values) => {
                let range = (slab.rows.start * step.row_len) as usize..(slab.rows.end * step.row_len) as usize;
                let values = Values { step, rows: slab.rows.clone(), reader: None, floats: &values[range] };
                for (i, encoded) in (0..step.targets.len()).zip(&mut *encoded) {
                    encoded.resize(self.span(step, i, &slab.rows), 0);
                    self.encode(&values, i, encoding, encoded)?;
                }
                self.write(slab, shares, |i| &encoded[i])
            }
            Input::Tensors(gather) => {
                let reader = Reader::new(self.source, gather, step.row_len, true, self.tally);
                let bytes = reader.read(&slab.rows, room)?;
                self.encode_tensor(slab, &reader, bytes, floats, encoded, encoding)?;
                let as_is = |i: usize| self.is_as_is(step, i, &reader);
                self.write(slab, shares, |i| if as_is(i) { bytes } else { &encoded[i] })
            }
        }
    }

    /// Whether a target stores the very bytes that were read or merged.
    fn is_as_is(&self, step: &Step, target: usize, reader: &Reader<'_>) -> bool {
        let place = step.targets[target];
        let stored = self.plan.outputs[place.output].tensors[place.tensor].stored;
        reader.change() == ValueChange::None && reader.factor() == 1.0 && stored.same_bytes(reader.stored())
    }

    /// Encodes merged rows for every target that does not store them as they are.
    fn encode_tensor(
        &self,
        slab: &Slab,
        reader: &Reader<'_>,
        bytes: &[u8],
        floats: &mut Vec<f32>,
        encoded: &mut [Vec<u8>],
        encoding: &mut Encoding,
    ) -> Result<(), Error> {
        let step = &self.plan.steps[slab.step];
        let as_is = |i: usize| self.is_as_is(step, i, reader);
        if self.fidelity.is_none() && (0..step.targets.len()).all(as_is) {
            return Ok(());
        }
        for (i, encoded) in (0..step.targets.len()).zip(&mut *encoded).filter(|(i, _)| !as_is(*i)) {
            encoded.resize(self.span(step, i, &slab.rows), 0);
        }
        let row_byte_len = bytes.len() / (slab.rows.end - slab.rows.start).max(1) as usize;
        for rows in self.strips(slab) {
            floats.resize(((rows.end - rows.start) * step.row_len) as usize, 0.0);
            let at = |row: u64| (row - slab.rows.start) as usize * row_byte_len;
            if !decode(reader, &bytes[at(rows.start)..at(rows.end)], floats)? {
                // Integers are only ever copied, and have no error to measure.
                return Ok(());
            }
            let values = Values { step, rows: rows.clone(), reader: Some(reader), floats };
            for (i, encoded) in (0..step.targets.len()).zip(&mut *encoded) {
                if as_is(i) {
                    self.measure(&values, i, floats);
                } else {
                    let start = self.span(step, i, &(slab.rows.start..rows.start));
                    let end = self.span(step, i, &(slab.rows.start..rows.end));
                    self.encode(&values, i, encoding, &mut encoded[start..end])?;
                }
            }
        }
        Ok(())
    }

    /// The rows of a slab in parts that are encoded one after the other.
    fn strips(&self, slab: &Slab) -> impl Iterator<Item = Range<u64>> {
        let step = &self.plan.steps[slab.step];
        let rows = slab.rows.clone();
        // Sums of errors are kept for each part.
        let all = self.fidelity.is_some() || column_block(self.plan, step) > 1;
        let count = if all { rows.end - rows.start } else { STRIP_ELEMENTS / step.row_len.max(1) };
        rows.clone().step_by(count.max(1) as usize).map(move |start| start..rows.end.min(start + count.max(1)))
    }

    /// Encodes values for one target.
    fn encode(
        &self,
        values: &Values<'_>,
        target: usize,
        encoding: &mut Encoding,
        encoded: &mut [u8],
    ) -> Result<(), Error> {
        let Values { step, reader, floats, ref rows } = *values;
        let place = step.targets[target];
        let output = &self.plan.outputs[place.output];
        let stored = &output.tensors[place.tensor];
        let ty = match stored.stored {
            Stored::Ggml(ty) => ty,
            Stored::NBits(n, part) => {
                let encode = |out: &mut [u8]| n.encode(part, floats, step.row_len as usize, out);
                let decode = |out: &mut [f32]| n.round_trip(floats, step.row_len as usize, out);
                let decode = (part == NBitsPart::Codes).then_some(decode);
                self.encode_blocks(values, target, encoding, encoded, encode, decode);
                return Ok(());
            }
            Stored::ColumnBlocks(b, part) => {
                let encode = |out: &mut [u8]| b.encode(part, floats, step.row_len as usize, out);
                let decode = |out: &mut [f32]| b.round_trip(floats, step.row_len as usize, out);
                let decode = (part == ColumnPart::Codes).then_some(decode);
                self.encode_blocks(values, target, encoding, encoded, encode, decode);
                return Ok(());
            }
            Stored::Bytes(part) => {
                self.encode_bytes(values, target, part, encoding, encoded);
                return Ok(());
            }
            Stored::Safetensors(_) => {
                unreachable!("a safetensors target keeps the source's dtype, so it is written as it is")
            }
        };
        let at = |index: usize| {
            let index = index as u64;
            let computed = ("", rows.start + index / step.row_len, index % step.row_len);
            let (name, row, column) = reader.map_or(computed, |reader| reader.place(rows.start, index));
            (name.to_owned(), row, column)
        };
        if ty == GgmlType::F16
            && let Some(index) = first_f16_overflow(floats)
        {
            let (output, (tensor, row, column)) = (output.file_name.clone(), at(index));
            return Err(Error::F16Overflow { tensor, output, row, column, value: floats[index] });
        }
        let row_len = step.row_len as usize;
        match stored.importance {
            None => mlpack_quant::encode(ty, floats, row_len, None, encoded)?,
            Some(entry) => {
                // Each expert of a stack has values of its own.
                let dims = stored.shape.dims();
                let rows_per_expert = dims[dims.len().saturating_sub(2)];
                let row_byte_len = encoded.len() / (floats.len() / row_len).max(1);
                let mut row = rows.start;
                while row < rows.end {
                    let expert = row / rows_per_expert;
                    let end = rows.end.min((expert + 1) * rows_per_expert);
                    let of_expert = (row - rows.start) as usize..(end - rows.start) as usize;
                    self.plan.importance(entry, expert as usize, row_len, &mut encoding.importance);
                    let floats = &floats[of_expert.start * row_len..of_expert.end * row_len];
                    let bytes = &mut encoded[of_expert.start * row_byte_len..of_expert.end * row_byte_len];
                    mlpack_quant::encode(ty, floats, row_len, Some(&encoding.importance), bytes)?;
                    row = end;
                }
            }
        }
        if ty.is_quantized()
            && let Some(block) = mlpack_quant::first_invalid_block(ty, encoded)
        {
            let block_len = ty.block_len() as usize;
            let (output, (tensor, row, column)) = (output.file_name.clone(), at(block * block_len));
            let value = floats[block * block_len..][..block_len]
                .iter()
                .copied()
                .fold(0.0, |max: f32, v| if v.abs() > max.abs() { v } else { max });
            return Err(Error::ScaleOverflow { tensor, output, ty, row, column, value });
        }
        if self.fidelity.is_some() {
            encoding.decoded.resize(floats.len(), 0.0);
            mlpack_quant::decode(ty, encoded, &mut encoding.decoded)?;
            self.measure(values, target, &encoding.decoded);
        }
        Ok(())
    }

    /// Encodes a part of blocks with scales of their own, and measures the values that it stands for, where it has them.
    fn encode_blocks(
        &self,
        values: &Values<'_>,
        target: usize,
        encoding: &mut Encoding,
        encoded: &mut [u8],
        encode: impl Fn(&mut [u8]),
        decode: Option<impl Fn(&mut [f32])>,
    ) {
        let Values { floats, .. } = *values;
        encode(encoded);
        if let (Some(_), Some(decode)) = (self.fidelity, decode) {
            encoding.decoded.resize(floats.len(), 0.0);
            decode(&mut encoding.decoded);
            self.measure(values, target, &encoding.decoded);
        }
    }

    /// Encodes a part of a matrix or a table of bytes.
    fn encode_bytes(
        &self,
        values: &Values<'_>,
        target: usize,
        part: BytesPart,
        encoding: &mut Encoding,
        bytes: &mut [u8],
    ) {
        let Values { step, floats, .. } = *values;
        let Encoding { decoded, scales, .. } = encoding;
        let extremes = || -> &[Extremes] {
            let position = match &step.input {
                Input::Tensors(gather) => gather.positions[0],
                Input::Computed(_) => unreachable!("what is computed is no matrix"),
            };
            self.plan.extremes.get(&position).expect("what outputs need was measured before")
        };
        let rows = floats.chunks_exact(step.row_len.max(1) as usize);
        match part {
            BytesPart::ColumnScales => {
                for (row, out) in rows.zip(bytes.chunks_exact_mut(4)) {
                    out.copy_from_slice(&Extremes::of(row).column_scale().to_le_bytes());
                }
            }
            BytesPart::ColumnZeroPoints => bytes.fill(0),
            BytesPart::TableZeroPoint => bytes.iter_mut().zip(floats).for_each(|(out, v)| *out = *v as u8),
            BytesPart::ColumnCodes => {
                scales.clear();
                scales.extend(extremes().iter().map(|column| column.column_scale()));
                mlpack_quant::encode_columns(floats, scales, bytes);
            }
            BytesPart::TableCodes => mlpack_quant::encode_table(floats, table(extremes()).table_scale(), bytes),
        }
        if self.fidelity.is_some() && matches!(part, BytesPart::ColumnCodes | BytesPart::TableCodes) {
            decoded.resize(floats.len(), 0.0);
            if part == BytesPart::ColumnCodes {
                mlpack_quant::decode_columns(bytes, scales, decoded);
            } else {
                mlpack_quant::decode_table(bytes, table(extremes()).table_scale(), decoded);
            }
            self.measure(values, target, decoded);
        }
    }

    /// Adds the error of stored values to that of their tensor.
    fn measure(&self, values: &Values<'_>, target: usize, stored: &[f32]) {
        let Some(fidelity) = self.fidelity else { return };
        let mut sums = SlabSums::new(values.rows.start);
        sums.add_rows(values.step.row_len as usize, values.floats, stored);
        let place = values.step.targets[target];
        fidelity[place.output][place.tensor].lock().expect("no thread panics holding the lock").add(sums);
    }

    /// The parts of the source's files that a slab accounts for.
    pub(crate) fn shares(&self, slab: &Slab) -> Vec<(usize, Range<u64>)> {
        let step = &self.plan.steps[slab.step];
        let Input::Tensors(gather) = &step.input else { return Vec::new() };
        share(self.source, gather, slab.rows.start * step.row_len..slab.rows.end * step.row_len)
    }

    /// Writes a slab to all of its targets.
    fn write<'b>(
        &self,
        slab: &Slab,
        shares: &[(usize, Range<u64>)],
        bytes: impl Fn(usize) -> &'b [u8],
    ) -> Result<(), Error> {
        let step = &self.plan.steps[slab.step];
        let extent = |(i, place): (usize, &Target)| {
            let (file, offset) = (&self.files[place.output], self.offset(step, i, slab.rows.start));
            Extent { file, offset, bytes: bytes(i) }
        };
        let extents: Vec<Extent<'_>> = step.targets.iter().enumerate().map(extent).collect();
        write_together(&extents, shares.first().map(|(input, _)| &self.hashers[*input]))?;
        let Some(resume) = self.resume else { return Ok(()) };
        step.targets.iter().try_for_each(|place| resume.note(place.output, &self.files[place.output]))
    }

    /// Whether an interrupted run wrote all of a slab, and nobody asks what it changes.
    fn is_kept(&self, slab: &Slab) -> bool {
        let step = &self.plan.steps[slab.step];
        let kept = |i| self.offset(step, i, slab.rows.end) <= self.files[step.targets[i].output].kept();
        self.resume.is_some() && !self.plan.measures_changes && (0..step.targets.len()).all(kept)
    }

    /// Where a row of a target begins in its file.
    fn offset(&self, step: &Step, target: usize, row: u64) -> u64 {
        let place = step.targets[target];
        self.plan.outputs[place.output].tensors[place.tensor].range.start + self.byte_len(step, target, row)
    }

    /// Bytes of so many rows of a target: rows of a tensor all have the same length, but where several are one in the output.
    fn byte_len(&self, step: &Step, target: usize, rows: u64) -> u64 {
        let place = step.targets[target];
        let tensor = &self.plan.outputs[place.output].tensors[place.tensor];
        if let Stored::ColumnBlocks(b, part) = tensor.stored {
            return b.byte_len(part, rows, step.row_len);
        }
        (tensor.range.end - tensor.range.start) / step.rows.max(1) * rows
    }

    /// Bytes of some rows of a target.
    fn span(&self, step: &Step, target: usize, rows: &Range<u64>) -> usize {
        (self.byte_len(step, target, rows.end) - self.byte_len(step, target, rows.start)) as usize
    }
}

/// Decodes rows that were read and changes them as the converter does; says whether they are such as can be.
fn decode(reader: &Reader<'_>, bytes: &[u8], floats: &mut [f32]) -> Result<bool, Error> {
    let (stored, factor) = (reader.stored(), reader.factor());
    match stored {
        Stored::Safetensors(dtype) if dtype.is_float() => mlpack_quant::widen(dtype, bytes, floats)?,
        Stored::Ggml(ty) if mlpack_quant::can_decode(ty) => mlpack_quant::decode(ty, bytes, floats)?,
        _ => return Ok(false),
    }
    apply(reader.change(), stored.dtype(), floats);
    if factor != 1.0 {
        floats.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
    }
    Ok(true)
}

/// The extremes of all rows together.
pub(crate) fn table(rows: &[Extremes]) -> Extremes {
    rows.iter().copied().reduce(Extremes::and).unwrap_or(Extremes { min: 0.0, max: 0.0 })
}

/// Changes values as the converter does: in float16 where the tensor is stored so, else in float32.
pub(crate) fn apply(change: ValueChange, dtype: Option<Dtype>, floats: &mut [f32]) {
    let change: fn(f32) -> f32 = match (change, dtype) {
        (ValueChange::None, _) => return,
        (ValueChange::AddOne, Some(Dtype::F16)) => |v| half::f16::from_f32(v + 1.0).to_f32(),
        (ValueChange::AddOne, _) => |v| v + 1.0,
        (ValueChange::NegativeExp, Some(Dtype::F16)) => |v| -half::f16::from_f64(f64::from(v).exp()).to_f32(),
        // Twice rounded differs from rounding once about once in 2^28 values.
        (ValueChange::NegativeExp, _) => |v| -(f64::from(v).exp() as f32),
    };
    floats.iter_mut().for_each(|v| *v = change(*v));
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
    fn f16_overflows_where_rounding_gives_infinity() {
        assert_eq!(first_f16_overflow(&[65_519.996, -65_504.0]), None);
        assert_eq!(first_f16_overflow(&[1.0, -65_520.0]), Some(1));
    }
}
