//! One tile of a slab on its way through a device.
//!
//! ```text
//!   host     in: base rows | left factors | spreads | importance        out: flag | merged rows | encodings
//!               └────────────── one copy ──────────────┐                 ▲ one copy
//!   device   in …                                      | merged | floats | mean squares | flag | merged … | encodings …
//! ```
//! Where the merged rows are asked for, they are merged into their place in the output; where nothing is added they need not
//! come back.

use super::driver::Address;
use super::kernels::{
    Encode, Encoder, Kernels, Launch, MAX_DELTAS, MeanSquares, Merge, MergeDelta, Narrow, Widen, dtype_code, kernel,
};
use super::memory::{Buffer, Channel};
use super::panels::Grid;
use crate::{Error, Output, Slab};
use mlpack_tensor::{Dtype, GgmlType};
use std::ops::Range;
use std::sync::Arc;

/// What begins on the device begins at a multiple of this.
const ALIGNMENT: usize = 256;
/// The longest sum that is taken in float32: the bound grows faster than the errors.
const MAX_NARROW_RANK: usize = 64;
/// The unit roundoff of float32, and half as much again for the roundings of the bound itself.
const ROUNDOFF: f64 = 1.5 / (1u64 << 24) as f64;

/// Places of everything that a number of rows needs.
struct Layout {
    base: usize,
    left: Vec<usize>,
    spreads: usize,
    importance: Vec<usize>,
    in_len: usize,
    merged: usize,
    floats: usize,
    mean_squares: usize,
    /// Where what goes back begins, with the flag.
    out: usize,
    outputs: Vec<usize>,
    end: usize,
}

/// How an output is made.
#[derive(Clone, Copy)]
enum Way {
    Stored,
    Narrow(u32),
    Encode(GgmlType, Encoder),
}

fn way(output: &Output<'_>) -> Way {
    let Output::Encoded { ty, importance, .. } = output else { return Way::Stored };
    match ty {
        GgmlType::F32 => Way::Narrow(0),
        GgmlType::F16 => Way::Narrow(1),
        GgmlType::BF16 => Way::Narrow(2),
        ty => Way::Encode(*ty, kernel(*ty, importance.is_some()).expect("the caller asks for types with an encoder")),
    }
}

/// The type whose grid is needed for an output.
pub(crate) fn needs_grid(output: &Output<'_>) -> Option<GgmlType> {
    match way(output) {
        Way::Encode(ty, encoder) if encoder.grid => Some(ty),
        _ => None,
    }
}

/// What is on the device for all tiles of a slab.
pub(crate) struct Shared {
    /// Of each difference.
    pub panels: Vec<Arc<Buffer>>,
    /// Of each output.
    pub grids: Vec<Option<Grid>>,
}

fn importance<'a>(output: &'a Output<'_>) -> Option<&'a [f32]> {
    match (output, way(output)) {
        (Output::Encoded { importance: Some(values), .. }, Way::Encode(_, encoder)) if encoder.weighted => Some(values),
        _ => None,
    }
}

fn bytes<'a>(output: &'a mut Output<'_>) -> &'a mut [u8] {
    match output {
        Output::Stored(bytes) | Output::Encoded { bytes, .. } => bytes,
    }
}

/// Bytes of a row of an output.
fn row_bytes(output: &Output<'_>, slab: &Slab<'_>) -> usize {
    match output {
        Output::Stored(_) => slab.row_bytes(),
        Output::Encoded { ty, .. } => {
            ty.row_byte_len(slab.row_len as u64).expect("rows are whole blocks: the plan saw to that") as usize
        }
    }
}

impl Slab<'_> {
    fn row_bytes(&self) -> usize {
        self.row_len * self.dtype.byte_size() as usize
    }

    fn is_as_given(&self, output: &Output<'_>) -> bool {
        self.deltas.is_empty() && matches!(output, Output::Stored(_))
    }

    pub(crate) fn rows(&self) -> usize {
        self.pieces.iter().map(|piece| piece.len()).sum::<usize>() / self.row_bytes().max(1)
    }
}

impl Layout {
    fn new(slab: &Slab<'_>, outputs: &[Output<'_>], rows: usize) -> Layout {
        let mut at = 0usize;
        let mut place = |len: usize| {
            let start = at;
            at += len.next_multiple_of(ALIGNMENT);
            start
        };
        let base = place(rows * slab.row_bytes());
        let left = slab.deltas.iter().map(|delta| place(rows * delta.rank * 4)).collect();
        let spreads = place(rows * 4);
        let importance = outputs.iter().map(|o| place(importance(o).map_or(0, |values| values.len() * 4))).collect();
        let in_len = place(0);
        let stored = outputs.iter().any(|output| matches!(output, Output::Stored(_)));
        let merged = place(if slab.deltas.is_empty() || stored { 0 } else { rows * slab.row_bytes() });
        let floats = place(rows * slab.row_len * 4);
        let mean_squares = place(rows * 4);
        let out = place(4);
        let of_output = |output: &Output<'_>| if slab.is_as_given(output) { 0 } else { rows * row_bytes(output, slab) };
        let places = outputs.iter().map(|output| place(of_output(output))).collect();
        let end = place(0);
        Layout { base, left, spreads, importance, in_len, merged, floats, mean_squares, out, outputs: places, end }
    }

    fn out_len(&self) -> usize {
        self.end - self.out
    }
}

/// Bytes of the device that so many rows take.
pub(crate) fn byte_len(slab: &Slab<'_>, outputs: &[Output<'_>], rows: usize) -> usize {
    Layout::new(slab, outputs, rows).end
}

/// One of the two halves of a lane: while one computes, the other's bytes are on their way.
pub(crate) struct Half {
    channel: Channel,
    buffer: Option<Buffer>,
    under_way: Option<Range<usize>>,
}

impl Half {
    pub(crate) fn new(channel: Channel) -> Half {
        Half { channel, buffer: None, under_way: None }
    }

    /// Copies rows to the device and starts all that is done with them.
    pub(crate) fn start(
        &mut self,
        kernels: &Kernels,
        slab: &Slab<'_>,
        shared: &Shared,
        outputs: &[Output<'_>],
        rows: Range<usize>,
    ) -> Result<(), Error> {
        let count = rows.len();
        let layout = Layout::new(slab, outputs, count);
        let narrow = self.is_narrow(slab);
        fill(slab, outputs, &rows, &layout, narrow, self.channel.memory(layout.in_len + layout.out_len())?);
        if self.buffer.as_ref().is_none_or(|buffer| buffer.len() < layout.end) {
            // The old one makes room first.
            self.buffer = None;
            self.buffer = Some(Buffer::new(self.channel.context(), layout.end)?);
        }
        let buffer = self.buffer.as_ref().expect("it was made above");
        let channel = &mut self.channel;
        channel.copy_in(buffer, 0, layout.in_len)?;
        channel.clear_word(buffer, layout.out)?;
        let at = |offset: usize| buffer.at(offset, 0);
        let dtype = dtype_code(slab.dtype).expect("the caller asks for rows that can be read");
        let mut stored: Address = at(layout.base);
        if !slab.deltas.is_empty() {
            let place = outputs.iter().position(|output| matches!(output, Output::Stored(_)));
            let merged = at(place.map_or(layout.merged, |i| layout.outputs[i]));
            let mut merge = Merge {
                base: stored,
                out: merged,
                not_finite: at(layout.out),
                rows: count as u64,
                cols: slab.row_len as u64,
                dtype,
                deltas: slab.deltas.len() as u32,
                narrow: narrow.into(),
                ..Merge::default()
            };
            assert!(slab.deltas.len() <= MAX_DELTAS, "the caller asks for so many at most");
            for (i, (delta, panel)) in slab.deltas.iter().zip(&shared.panels).enumerate() {
                merge.delta[i] = MergeDelta {
                    left: at(layout.left[i]),
                    right: panel.at(0, 0),
                    spreads: at(layout.spreads),
                    norms: panel.at(delta.rank * slab.row_len * 4, 0),
                    factor: delta.factor,
                    rank: delta.rank as u32,
                    reserved: 0,
                };
            }
            kernels.launch(channel, &Launch::Merge(merge))?;
            stored = merged;
        }
        let elements = (count * slab.row_len) as u64;
        if outputs.iter().any(|output| matches!(output, Output::Encoded { .. })) {
            let (to, not_finite) = (at(layout.floats), at(layout.out));
            let widen = Widen { from: stored, to, not_finite, count: elements, dtype, reserved: 0 };
            kernels.launch(channel, &Launch::Widen(widen))?;
        }
        let x = at(layout.floats);
        if outputs.iter().any(|output| matches!(way(output), Way::Encode(_, encoder) if encoder.mean_squares)) {
            let to = at(layout.mean_squares);
            let mean = MeanSquares { x, to, rows: count as u64, row_len: slab.row_len as u64 };
            kernels.launch(channel, &Launch::MeanSquares(mean))?;
        }
        for (i, output) in outputs.iter().enumerate() {
            let out = at(layout.outputs[i]);
            match way(output) {
                Way::Stored => {}
                Way::Narrow(dtype) => {
                    let narrow = Narrow { from: x, to: out, count: elements, dtype, reserved: 0 };
                    kernels.launch(channel, &Launch::Narrow(narrow))?;
                }
                Way::Encode(ty, encoder) => {
                    let grid = shared.grids[i].as_ref();
                    let encode = Encode {
                        x,
                        importance: if encoder.weighted { at(layout.importance[i]) } else { 0 },
                        mean_squares: if encoder.mean_squares { at(layout.mean_squares) } else { 0 },
                        out,
                        combinations: grid.map_or(0, Grid::combinations),
                        list: grid.map_or(0, Grid::list),
                        blocks: elements / ty.block_len(),
                        blocks_per_row: slab.row_len as u64 / ty.block_len(),
                    };
                    kernels.launch(channel, &Launch::Encode(encoder, encode))?;
                }
            }
        }
        channel.copy_out(buffer, layout.out, layout.in_len, layout.out_len())?;
        self.under_way = Some(rows);
        Ok(())
    }

    /// Waits for what was started, and takes its bytes. Says whether all values were finite.
    pub(crate) fn finish(&mut self, slab: &Slab<'_>, outputs: &mut [Output<'_>]) -> Result<bool, Error> {
        let Some(rows) = self.under_way.take() else { return Ok(true) };
        let layout = Layout::new(slab, outputs, rows.len());
        self.channel.wait()?;
        let memory = self.channel.memory(layout.in_len + layout.out_len())?;
        let (given, back) = memory.split_at(layout.in_len);
        for (output, place) in outputs.iter_mut().zip(&layout.outputs) {
            let row = row_bytes(output, slab);
            // Rows that nothing is added to are those that went there.
            let from = if slab.is_as_given(output) { &given[layout.base..] } else { &back[place - layout.out..] };
            let from = &from[..rows.len() * row];
            bytes(output)[rows.start * row..rows.end * row].copy_from_slice(from);
        }
        Ok(back[..4] == [0; 4])
    }

    /// Whether sums are taken in float32 where an error's bound allows it: as on the CPU, one sum to bfloat16.
    fn is_narrow(&self, slab: &Slab<'_>) -> bool {
        let one = matches!(slab.deltas, [delta] if delta.rank <= MAX_NARROW_RANK && delta.factor.abs() < 1e6);
        self.channel.context().narrow && one && slab.dtype == Dtype::BF16
    }
}

/// Writes what a tile needs into the host's side.
fn fill(
    slab: &Slab<'_>,
    outputs: &[Output<'_>],
    rows: &Range<usize>,
    layout: &Layout,
    narrow: bool,
    memory: &mut [u8],
) {
    let row = slab.row_bytes();
    let mut wanted = rows.start * row..rows.end * row;
    let mut to = layout.base;
    let mut before = 0;
    for piece in slab.pieces {
        let from = wanted.start.max(before);
        let end = wanted.end.min(before + piece.len());
        if from < end {
            memory[to..to + end - from].copy_from_slice(&piece[from - before..end - before]);
            to += end - from;
            wanted.start = end;
        }
        before += piece.len();
    }
    let mut write = |at: usize, values: &mut dyn Iterator<Item = f32>| {
        memory[at..].as_chunks_mut::<4>().0.iter_mut().zip(values).for_each(|(out, v)| *out = v.to_le_bytes());
    };
    for (delta, at) in slab.deltas.iter().zip(&layout.left) {
        let left = &delta.left[rows.start * delta.rank..rows.end * delta.rank];
        write(*at, &mut left.iter().copied());
        if narrow {
            let spread = |left: &[f32]| {
                let norm = left.iter().map(|l| f64::from(*l) * f64::from(*l)).sum::<f64>().sqrt();
                // More than nothing: times a large norm it may be something.
                (delta.factor.abs() * norm * (delta.rank + 8) as f64 * ROUNDOFF) as f32 + f32::MIN_POSITIVE
            };
            write(layout.spreads, &mut left.chunks_exact(delta.rank.max(1)).map(spread));
        }
    }
    for (output, at) in outputs.iter().zip(&layout.importance) {
        if let Some(values) = importance(output) {
            write(*at, &mut values.iter().copied());
        }
    }
}
