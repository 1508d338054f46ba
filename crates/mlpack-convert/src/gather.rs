//! Reading rows of a step: from the places that its view says, with the adapters' deltas added.

use crate::offload::KeyedDelta;
use crate::packed::{MXFP4_BYTES, Scaled, append_mxfp4};
use crate::{Error, Gather, Source, SourceTensor, Stored};
use mlpack_arch::{Packing, ValueChange};
use mlpack_device::MAX_DELTAS;
use mlpack_lora::{ChangeTally, MergeRoom, ProductDevice, Rows};
use mlpack_tensor::{Dtype, GgmlType};
use std::ops::Range;

/// Room that a worker keeps from slab to slab.
#[derive(Debug, Default)]
pub(crate) struct Room {
    pieces: Vec<u64>,
    /// The rows, where they are not used as they lie in the source.
    pub gathered: Vec<u8>,
    merged: Vec<u8>,
    merging: MergeRoom,
}

impl Room {
    /// Room whose merging leaves products to a device where it can.
    pub fn on(products: ProductDevice) -> Room {
        Room { merging: MergeRoom::on(products), ..Room::default() }
    }
}

/// Elements of whole rows that are merged at once, where only parts of the rows are used.
const MERGED_ELEMENTS: u64 = 1 << 16;

/// Bytes that one batch of those needs: float64 values, change and product, and merged values.
pub(crate) const MERGED_BYTES: u64 = MERGED_ELEMENTS * (8 + 8 + 8 + 8);

/// A part of a source's file that was read, as an index into the source's files, where it begins, and its bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window<'a> {
    pub file: usize,
    pub start: u64,
    pub bytes: &'a [u8],
}

/// A gather with the source that it reads.
pub(crate) struct Reader<'a> {
    source: &'a Source,
    /// What need not be read from the maps.
    window: Option<Window<'a>>,
    gather: &'a Gather,
    row_len: u64,
    /// Pieces of one source tensor.
    per_tensor: u64,
    /// Whether values that are not finite are refused.
    finite: bool,
    /// Told how much merged rows changed.
    tally: Option<&'a ChangeTally>,
}

impl<'a> Reader<'a> {
    /// Reads rows of `row_len` elements; with `finite`, refuses values that are not.
    pub fn new(
        source: &'a Source,
        gather: &'a Gather,
        row_len: u64,
        finite: bool,
        tally: Option<&'a ChangeTally>,
    ) -> Reader<'a> {
        let elements = source.tensors()[gather.positions[0]].shape.element_count().unwrap_or(0);
        let elements = elements * per_stored(gather);
        let per_tensor = elements.checked_div(gather.view.piece_len()).unwrap_or(0).max(1);
        Reader { source, window: None, gather, row_len, per_tensor, finite, tally }
    }

    /// Whether rows are looked for in a window: those that are used row by row, once.
    pub fn reads_windows(&self) -> bool {
        matches!(self.gather.packing, Packing::None) && self.gather.view.as_transposed().is_none()
    }

    /// The same with a part of a file that was read already.
    pub fn with_window(self, window: Window<'a>) -> Reader<'a> {
        Reader { window: Some(window), ..self }
    }

    /// How all of the tensors are stored.
    pub fn stored(&self) -> Stored {
        stored(self.source, self.gather)
    }

    /// What is done to each value that was read.
    pub fn change(&self) -> ValueChange {
        self.gather.values
    }

    /// What each value is multiplied with.
    pub fn factor(&self) -> f64 {
        self.gather.factor
    }

    /// The name of a tensor that is read, and the row and column there, for an element of the rows from `start` on.
    pub fn place(&self, start: u64, element: u64) -> (&'a str, u64, u64) {
        let piece_len = self.gather.view.piece_len();
        let element = start * self.row_len + element;
        let piece = self.gather.view.source_piece(element / piece_len);
        let tensor = self.tensor((piece / self.per_tensor) as usize);
        let within = piece % self.per_tensor * piece_len + element % piece_len;
        let row_len = match self.gather.packing {
            Packing::Mxfp4 { .. } => piece_len,
            _ => tensor.shape.row_len().max(1),
        };
        (&tensor.name, within / row_len, within % row_len)
    }

    /// Whether adapters change any of the tensors.
    pub fn is_changed(&self) -> bool {
        self.gather.positions.iter().any(|position| self.source.tensors()[*position].target.is_some())
    }

    /// The bytes of rows in their order, before adapters change them, where they are whole pieces as the source stores them.
    pub fn source_pieces(&self, rows: &Range<u64>, pieces: &mut Vec<u64>) -> Option<Vec<&'a [u8]>> {
        self.pieces(rows, pieces)?;
        Some(self.runs(pieces).map(|(index, run)| self.bytes(index, &run)).collect())
    }

    /// The low-rank differences that are added to rows, and the numbers of those rows, where that is all that adapters do to
    /// the one tensor that is read.
    pub fn low_rank(&self, rows: &Range<u64>, numbers: &mut Vec<u64>) -> Option<Vec<KeyedDelta<'a>>> {
        let [position] = self.gather.positions[..] else { return None };
        let tensor = &self.source.tensors()[position];
        let (overlay, target) = self.source.overlay().zip(tensor.target)?;
        let deltas = overlay.low_rank(target, self.source.bytes(tensor).len() as u64)?;
        if deltas.is_empty()
            || deltas.len() > MAX_DELTAS
            || deltas[0].cols() != self.gather.view.piece_len()
            || deltas[0].cols() != self.row_len
        {
            return None;
        }
        self.pieces(rows, numbers)?;
        Some(deltas.into_iter().enumerate().map(|(i, delta)| (target, i, delta)).collect())
    }

    /// The numbers of the pieces that rows are made of, where they are not packed and not columns.
    fn pieces(&self, rows: &Range<u64>, pieces: &mut Vec<u64>) -> Option<()> {
        let any = self.row_len.checked_div(self.gather.view.piece_len()).is_some_and(|per_row| per_row > 0);
        (any && self.reads_windows()).then(|| self.list_pieces(rows, pieces))
    }

    fn list_pieces(&self, rows: &Range<u64>, pieces: &mut Vec<u64>) {
        let view = &self.gather.view;
        let per_row = self.row_len.checked_div(view.piece_len()).unwrap_or(0);
        pieces.clear();
        pieces.extend((rows.start * per_row..rows.end * per_row).map(|piece| view.source_piece(piece)));
    }

    /// The rows, as the source stores them, where they are used as they lie in the window or the map; else `None`, and they are
    /// in [`Room::gathered`].
    ///
    /// # Errors
    /// When a value is not finite and must be, or an adapter's delta makes it so.
    pub fn read(&self, rows: &Range<u64>, room: &mut Room) -> Result<Option<&'a [u8]>, Error> {
        let view = &self.gather.view;
        if let ([position], Packing::None, Some(matrix)) =
            (&self.gather.positions[..], &self.gather.packing, view.as_transposed())
        {
            return self.read_columns(*position, matrix, rows, room).map(|()| None);
        }
        let Room { pieces, gathered, merged, merging } = room;
        self.list_pieces(rows, pieces);
        gathered.clear();
        match &self.gather.packing {
            Packing::None => {}
            Packing::Scaled { scales, block } => {
                for (index, run) in self.runs(pieces) {
                    self.append_scaled(index, run, scales[index], *block, gathered);
                }
                self.check_finite(rows.start, 0, gathered)?;
                return Ok(None);
            }
            Packing::Mxfp4 { scales } => {
                for (index, run) in self.runs(pieces) {
                    self.append_mxfp4(index, run, *scales, gathered);
                }
                self.check_finite(rows.start, 0, gathered)?;
                return Ok(None);
            }
        }
        let single = self.runs(pieces).next();
        for of_tensor in pieces.chunk_by(|a, b| a / self.per_tensor == b / self.per_tensor) {
            let index = (of_tensor[0] / self.per_tensor) as usize;
            let position = self.gather.positions[index];
            if self.source.tensors()[position].target.is_none() {
                if let Some((index, run)) =
                    single.as_ref().filter(|(_, run)| run.end - run.start == pieces.len() as u64)
                {
                    let bytes = self.bytes(*index, run);
                    self.check_finite(rows.start, 0, bytes)?;
                    return Ok(Some(bytes));
                }
                let start = gathered.len();
                for (index, run) in self.runs(of_tensor) {
                    gathered.extend_from_slice(self.bytes(index, &run));
                }
                self.check_finite(rows.start, start, &gathered[start..])?;
            } else if view.piece_len() >= self.tensor(index).shape.row_len() {
                let numbers: Vec<u64> = of_tensor.iter().map(|piece| piece % self.per_tensor).collect();
                let rows = Rows { numbers: &numbers, row_len: view.piece_len() };
                let start = gathered.len();
                gathered.resize(start + numbers.len() * self.piece_bytes(), 0);
                self.source.merge_rows(position, rows, self.window, merging, self.tally, &mut gathered[start..])?;
            } else {
                self.merge_parts(index, of_tensor, (merged, merging), gathered)?;
            }
        }
        Ok(None)
    }

    /// Columns of a matrix as rows. Merged rows are computed whole, some at a time, and of each only the columns are kept:
    /// slabs of such a step are as large as the budget allows.
    fn read_columns(
        &self,
        position: usize,
        (start, rows, columns): (u64, u64, u64),
        wanted: &Range<u64>,
        room: &mut Room,
    ) -> Result<(), Error> {
        let Room { gathered, merged, merging, .. } = room;
        let size = self.piece_bytes();
        let (row_bytes, tile) = (columns as usize * size, wanted.start as usize * size..wanted.end as usize * size);
        gathered.resize((tile.end - tile.start) * rows as usize, 0);
        if self.source.tensors()[position].target.is_none() {
            let all = &self.source.bytes(self.tensor(0))[start as usize * size..];
            let lines = all.chunks_exact(row_bytes).take(rows as usize).map(|row| &row[tile.clone()]);
            transpose(size, (0, rows as usize), lines, gathered);
            return self.check_finite(wanted.start, 0, gathered);
        }
        // The first slab of the first step that reads the tensor sees every row once.
        let tally = self.tally.filter(|_| wanted.start == 0 && self.gather.offset == 0);
        let first = start / columns;
        let batch = (MERGED_ELEMENTS / columns).max(1);
        let mut done = 0;
        while done < rows {
            let count = batch.min(rows - done);
            let numbers: Vec<u64> = (first + done..first + done + count).collect();
            merged.resize(count as usize * row_bytes, 0);
            let of_tensor = Rows { numbers: &numbers, row_len: columns };
            self.source.merge_rows(position, of_tensor, self.window, merging, tally, merged)?;
            let lines = merged.chunks_exact(row_bytes).map(|row| &row[tile.clone()]);
            transpose(size, (done as usize, rows as usize), lines, gathered);
            done += count;
        }
        Ok(())
    }

    /// Appends parts of merged rows: the rows are merged whole, some at a time.
    fn merge_parts(
        &self,
        index: usize,
        pieces: &[u64],
        (merged, merging): (&mut Vec<u8>, &mut MergeRoom),
        gathered: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let tensor = self.tensor(index);
        let per_row = (tensor.shape.row_len() / self.gather.view.piece_len()).max(1);
        let piece_bytes = self.piece_bytes();
        let start = gathered.len();
        gathered.resize(start + pieces.len() * piece_bytes, 0);
        let row = |piece: u64| piece % self.per_tensor / per_row;
        let mut order: Vec<u32> = (0..pieces.len() as u32).collect();
        order.sort_unstable_by_key(|i| pieces[*i as usize]);
        let mut left = &order[..];
        while !left.is_empty() {
            let limit = (MERGED_ELEMENTS / tensor.shape.row_len().max(1)).max(1);
            let first = row(pieces[left[0] as usize]);
            let taken = left.partition_point(|i| row(pieces[*i as usize]) < first + limit);
            let last = row(pieces[left[taken - 1] as usize]);
            let source_rows: Vec<u64> = (first..=last).collect();
            let rows = Rows { numbers: &source_rows, row_len: tensor.shape.row_len() };
            merged.resize(source_rows.len() * per_row as usize * piece_bytes, 0);
            self.source.merge_rows(self.gather.positions[index], rows, self.window, merging, self.tally, merged)?;
            for &i in &left[..taken] {
                let at = (pieces[i as usize] % self.per_tensor - first * per_row) as usize * piece_bytes;
                let to = start + i as usize * piece_bytes;
                gathered[to..to + piece_bytes].copy_from_slice(&merged[at..at + piece_bytes]);
            }
            left = &left[taken..];
        }
        Ok(())
    }

    /// Appends the values of pieces of one tensor that lie together, each with the scale of its block.
    fn append_scaled(&self, index: usize, run: Range<u64>, scales: usize, block: [u64; 2], out: &mut Vec<u8>) {
        let tensor = self.tensor(index);
        let scales = &self.source.tensors()[scales];
        let [.., rows, row_len] = *tensor.shape.dims() else { unreachable!("scales are for matrices") };
        let dtype = |stored: Stored| stored.dtype().expect("the plan takes floats alone");
        let (dtype, scale_dtype) = (dtype(tensor.stored), dtype(scales.stored));
        let scaled = Scaled { dtype, row_len, rows, block, scale_dtype, scales: self.source.bytes(scales) };
        let from = index as u64 * self.per_tensor;
        let piece_len = self.gather.view.piece_len();
        let elements = (run.start - from) * piece_len..(run.end - from) * piece_len;
        let at = |element: u64| (element * dtype.byte_size()) as usize;
        let bytes = &self.source.bytes(tensor)[at(elements.start)..at(elements.end)];
        scaled.append(elements, bytes, out);
    }

    /// Appends rows of MXFP4 that lie together, as ggml stores them.
    fn append_mxfp4(&self, index: usize, run: Range<u64>, scales: usize, out: &mut Vec<u8>) {
        let (blocks, scales) =
            (self.source.bytes(self.tensor(index)), self.source.bytes(&self.source.tensors()[scales]));
        let per_row = self.gather.view.piece_len() as usize / 32;
        let rows = run.start as usize..run.end as usize;
        append_mxfp4(
            &blocks[rows.start * per_row * MXFP4_BYTES..rows.end * per_row * MXFP4_BYTES],
            &scales[rows.start * per_row..rows.end * per_row],
            out,
        );
    }

    /// Pieces that lie together in one tensor, as ranges, each with the index of the tensor.
    fn runs<'p>(&'p self, pieces: &'p [u64]) -> impl Iterator<Item = (usize, Range<u64>)> + 'p {
        let together = |a: &u64, b: &u64| a + 1 == *b && a / self.per_tensor == b / self.per_tensor;
        pieces.chunk_by(together).map(|run| ((run[0] / self.per_tensor) as usize, run[0]..run[run.len() - 1] + 1))
    }

    /// The bytes of pieces that lie together in one tensor.
    fn bytes(&self, index: usize, run: &Range<u64>) -> &'a [u8] {
        let piece_bytes = self.piece_bytes();
        let start = (run.start - index as u64 * self.per_tensor) as usize * piece_bytes;
        let len = (run.end - run.start) as usize * piece_bytes;
        let tensor = self.tensor(index);
        let in_window = |window: Window<'a>| {
            let at = (tensor.range.start + start as u64).checked_sub(window.start)? as usize;
            window.bytes.get(at..at + len)
        };
        let window = self.window.filter(|window| window.file == tensor.file);
        window.and_then(in_window).unwrap_or_else(|| &self.source.bytes(tensor)[start..start + len])
    }

    fn piece_bytes(&self) -> usize {
        self.stored().row_byte_len(self.gather.view.piece_len()) as usize
    }

    fn tensor(&self, index: usize) -> &'a SourceTensor {
        &self.source.tensors()[self.gather.positions[index]]
    }

    /// Refuses NaN and infinity, with the place of the first. `bytes` come after `offset` bytes of the rows from `start`.
    fn check_finite(&self, start: u64, offset: usize, bytes: &[u8]) -> Result<(), Error> {
        if !self.finite {
            return Ok(());
        }
        let stored = self.stored();
        let path = |name: &str| {
            let named = self.source.tensors().iter().find(|t| t.name == name).unwrap_or(self.tensor(0));
            self.source.file(named).path().to_owned()
        };
        if let Some(dtype) = stored.dtype() {
            let Some((index, value)) = first_not_finite(dtype, bytes) else { return Ok(()) };
            let before = offset as u64 / dtype.byte_size();
            let (name, row, column) = self.place(start, before + index as u64);
            return Err(Error::NotFinite { path: path(name), tensor: name.to_owned(), dtype, row, column, value });
        }
        if let Stored::Ggml(ty) = stored
            && let Some(block) = mlpack_quant::first_invalid_block(ty, bytes)
        {
            let (name, row, column) = self.place(start, block as u64 * ty.block_len());
            return Err(Error::InvalidBlock { path: path(name), tensor: name.to_owned(), ty, row, column });
        }
        Ok(())
    }
}

/// How the values of a gather are stored once they are unpacked.
pub(crate) fn stored(source: &Source, gather: &Gather) -> Stored {
    match gather.packing {
        Packing::None => source.tensors()[gather.positions[0]].stored,
        Packing::Scaled { .. } => Stored::Safetensors(Dtype::F32),
        Packing::Mxfp4 { .. } => Stored::Ggml(GgmlType::MXFP4),
    }
}

/// Elements for each element of the source's own shape: MXFP4 has two in a byte.
fn per_stored(gather: &Gather) -> u64 {
    match gather.packing {
        Packing::Mxfp4 { .. } => 2,
        _ => 1,
    }
}

/// The part of the source that rows of a step account for: every byte of a source tensor is in one row of one step,
/// though perhaps not in the one that reads it.
pub(crate) fn share(source: &Source, gather: &Gather, elements: Range<u64>) -> Vec<(usize, Range<u64>)> {
    let mut shares = Vec::new();
    let (start, end) = (gather.offset + elements.start, gather.offset + elements.end);
    let mut before = 0;
    for &position in &gather.positions {
        let tensor = &source.tensors()[position];
        let len = tensor.shape.element_count().unwrap_or(0) * per_stored(gather);
        let (from, to) = (start.clamp(before, before + len), end.clamp(before, before + len));
        if from < to && tensor.in_place {
            let at =
                |element: u64| tensor.range.start + tensor.stored.row_byte_len((element - before) / per_stored(gather));
            shares.push((tensor.file, at(from)..at(to)));
        }
        before += len;
    }
    shares
}

/// Writes lines of elements of `size` bytes as the columns from `first` on of a matrix with `rows` columns.
fn transpose<'a>(size: usize, place: (usize, usize), lines: impl Iterator<Item = &'a [u8]>, out: &mut [u8]) {
    fn each<'a, const N: usize>((first, rows): (usize, usize), lines: impl Iterator<Item = &'a [u8]>, out: &mut [u8]) {
        let (out, _) = out.as_chunks_mut::<N>();
        for (r, line) in lines.enumerate() {
            for (column, element) in line.as_chunks::<N>().0.iter().enumerate() {
                out[column * rows + first + r] = *element;
            }
        }
    }
    match size {
        1 => each::<1>(place, lines, out),
        2 => each::<2>(place, lines, out),
        4 => each::<4>(place, lines, out),
        8 => each::<8>(place, lines, out),
        _ => unreachable!("a dtype has 1, 2, 4 or 8 bytes"),
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
}
