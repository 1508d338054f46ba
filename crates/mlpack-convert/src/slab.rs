//! One slab of one step: read, add the deltas, round, encode for every target.

use crate::execute::column_block;
use crate::gather::{Reader, Room, Window, share};
use crate::offload::{self, Offload};
use crate::resume::Resume;
use crate::{BytesPart, Error, ErrorSums, Input, Plan, SlabSums, Source, Step, Stored};
use mlpack_arch::ValueChange;
use mlpack_fs::{AtomicFile, Buffer, Buffers, Data, Extent, InputExtent, InputHasher, SharedBytes, write_together};
use mlpack_lora::{ChangeTally, ProductDevice};
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
    /// What is read and what is written.
    buffers: Buffers,
    encoding: Encoding,
    offload: offload::Room,
}

impl Scratch {
    /// Room of a worker that leaves products to a GPU, where there is one for that.
    pub(crate) fn new(products: Option<&ProductDevice>) -> Scratch {
        Scratch { room: Room::on(products.cloned().unwrap_or_default()), ..Scratch::default() }
    }
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
    /// A GPU, where slabs may go to one.
    pub offload: Option<&'a Offload>,
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
    /// Does one slab; every write is at a place that the plan fixed. Returns how many bytes of the source that accounts for.
    pub(crate) fn run(&self, slab: &Slab, scratch: &mut Scratch) -> Result<u64, Error> {
        let step = &self.plan.steps[slab.step];
        let Scratch { room, floats, buffers, encoding, offload } = scratch;
        let gather = match &step.input {
            Input::Computed(values) => {
                let range = (slab.rows.start * step.row_len) as usize..(slab.rows.end * step.row_len) as usize;
                let values = Values { step, rows: slab.rows.clone(), reader: None, floats: &values[range] };
                let mut encoded = self.rooms(slab, buffers, |_| true);
                for (i, encoded) in &mut encoded {
                    self.encode(&values, *i, encoding, encoded.bytes_mut())?;
                }
                self.write(slab, None, encoded, buffers, None)?;
                return Ok(0);
            }
            Input::Tensors(gather) => gather,
        };
        let shares = share(self.source, gather, slab.rows.start * step.row_len..slab.rows.end * step.row_len);
        let byte_len = shares.iter().map(|(_, range)| range.end - range.start).sum();
        if self.is_kept(slab) {
            shares.into_iter().try_for_each(|(file, range)| self.hashers[file].used(range, None))?;
            return Ok(byte_len);
        }
        let mut reader = Reader::new(self.source, gather, step.row_len, true, self.tally);
        // What the slab has in memory of the source: a copy where the rows are used once, as they lie there, else the map.
        let copy: SharedBytes;
        let mut at_hand = Vec::with_capacity(shares.len());
        let copied = match &shares[..] {
            [(file, range)] if reader.reads_windows() => {
                let mut buffer = buffers.take((range.end - range.start) as usize);
                let input = &self.hashers[*file];
                input.file().read_at(range.start, buffer.bytes_mut())?;
                copy = buffer.share();
                input.offer(range.clone(), Some(&copy));
                let window = Window { file: *file, start: range.start, bytes: &copy };
                reader = reader.with_window(window);
                at_hand.push(window);
                Some(&copy)
            }
            shares => {
                for (file, range) in shares {
                    let (input, bytes) = (&self.hashers[*file], range.start as usize..range.end as usize);
                    input.offer(range.clone(), None);
                    input.file().prepare(bytes.clone());
                    at_hand.push(Window { file: *file, start: range.start, bytes: &input.file().bytes()[bytes] });
                }
                None
            }
        };
        if let Some(encoded) = self.offload(slab, &reader, room, offload, buffers)? {
            self.write(slab, None, encoded, buffers, at_hand.first())?;
        } else {
            room.gathered = buffers.take(0).into_vec();
            let found = reader.read(&slab.rows, room)?;
            let made = SharedBytes::new(std::mem::take(&mut room.gathered));
            let bytes = found.unwrap_or(&made);
            let mut encoded = self.rooms(slab, buffers, |i| !self.is_as_is(step, i, &reader));
            self.encode_tensor(slab, &reader, bytes, floats, &mut encoded, encoding)?;
            let as_is = match (found, copied) {
                (None, _) => Data::Shared(&made),
                (Some(bytes), Some(copy)) if bytes.as_ptr_range() == copy.as_ptr_range() => Data::Shared(copy),
                (Some(bytes), _) => Data::Borrowed(bytes),
            };
            self.write(slab, Some(as_is), encoded, buffers, at_hand.first())?;
            buffers.give_back(made);
        }
        for ((file, range), Window { bytes, .. }) in shares.iter().zip(at_hand) {
            let input = &self.hashers[*file];
            input.used(range.clone(), Some(bytes))?;
            if copied.is_none() {
                input.file().release(range.start as usize..range.end as usize);
            }
        }
        if let Some(copy) = copied {
            buffers.give_back(copy.clone());
        }
        if slab.rows.end == step.rows {
            // Rows may also come from elsewhere in their tensors.
            for tensor in gather.positions.iter().map(|position| &self.source.tensors()[*position]) {
                self.source.file(tensor).release(tensor.range.start as usize..tensor.range.end as usize);
            }
        }
        Ok(byte_len)
    }

    /// Rooms for what is encoded for those targets that are asked for.
    pub(crate) fn rooms(
        &self,
        slab: &Slab,
        buffers: &mut Buffers,
        encodes: impl Fn(usize) -> bool,
    ) -> Vec<(usize, Buffer)> {
        let step = &self.plan.steps[slab.step];
        let targets = (0..step.targets.len()).filter(|i| encodes(*i));
        targets.map(|i| (i, buffers.take(self.span(step, i, &slab.rows)))).collect()
    }

    /// Whether a target stores the very bytes that were read or merged.
    pub(crate) fn is_as_is(&self, step: &Step, target: usize, reader: &Reader<'_>) -> bool {
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
        encoded: &mut [(usize, Buffer)],
        encoding: &mut Encoding,
    ) -> Result<(), Error> {
        let step = &self.plan.steps[slab.step];
        if self.fidelity.is_none() && encoded.is_empty() {
            return Ok(());
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
            for i in (0..step.targets.len()).filter(|i| self.is_as_is(step, *i, reader)) {
                self.measure(&values, i, floats);
            }
            for (i, encoded) in &mut *encoded {
                let start = self.span(step, *i, &(slab.rows.start..rows.start));
                let end = self.span(step, *i, &(slab.rows.start..rows.end));
                self.encode(&values, *i, encoding, &mut encoded.bytes_mut()[start..end])?;
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
        if ty == GgmlType::F16
            && let Some(index) = first_infinite_f16(encoded)
        {
            let (output, (tensor, row, column)) = (output.file_name.clone(), at(index));
            return Err(Error::F16Overflow { tensor, output, row, column, value: floats[index] });
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

    /// Writes a slab to all of its targets: what was encoded for a target, else the rows as they are.
    fn write(
        &self,
        slab: &Slab,
        as_is: Option<Data<'_>>,
        encoded: Vec<(usize, Buffer)>,
        buffers: &mut Buffers,
        made_of: Option<&Window<'_>>,
    ) -> Result<(), Error> {
        let step = &self.plan.steps[slab.step];
        let encoded: Vec<(usize, SharedBytes)> = encoded.into_iter().map(|(i, buffer)| (i, buffer.share())).collect();
        let mut extents = Vec::with_capacity(step.targets.len());
        for (i, place) in step.targets.iter().enumerate() {
            let of_target = encoded.iter().find(|(target, _)| *target == i).map(|(_, bytes)| Data::Shared(bytes));
            let data = of_target.or(as_is).expect("what is not stored as it is was encoded");
            extents.push(Extent {
                file: &self.files[place.output],
                offset: self.offset(step, i, slab.rows.start),
                data,
            });
        }
        let input = made_of.map(|window| {
            let Window { file, start: offset, bytes } = *window;
            InputExtent { input: &self.hashers[file], offset, bytes }
        });
        write_together(&extents, input)?;
        encoded.into_iter().for_each(|(_, bytes)| buffers.give_back(bytes));
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
    pub(crate) fn byte_len(&self, step: &Step, target: usize, rows: u64) -> u64 {
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

/// The first float16 that is infinite: no value was before it was rounded.
fn first_infinite_f16(encoded: &[u8]) -> Option<usize> {
    let (values, _) = encoded.as_chunks::<2>();
    let infinite = |v: &[u8; 2]| u16::from_le_bytes(*v) & 0x7fff == 0x7c00;
    // The common case is one branch-free pass.
    if !values.iter().fold(false, |any, v| any | infinite(v)) {
        return None;
    }
    values.iter().position(infinite)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_overflows_where_rounding_gives_infinity() {
        let first = |values: &[f32]| {
            let mut encoded = vec![0; 2 * values.len()];
            mlpack_quant::encode(GgmlType::F16, values, values.len(), None, &mut encoded).unwrap();
            first_infinite_f16(&encoded)
        };
        assert_eq!(first(&[65_519.996, -65_504.0, f32::NAN]), None);
        assert_eq!(first(&[1.0, -F16_OVERFLOW]), Some(1));
    }
}
