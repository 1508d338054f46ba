//! Merged rows: base values plus what the adapters change, in float64, rounded once.

use crate::combine::Coins;
use crate::delta::{PanelKey, Panels};
use crate::matrix::{Matrix, to_f64};
use crate::target::{Axis, Form, Part, Rect, Target};
use crate::{ChangeTally, Combine, Error, Overlay, round_scaled, round_to};
use std::sync::OnceLock;

/// Rows of a tensor that are computed at a time when the norms of its columns are taken.
const NORM_ROWS: u64 = 256;

/// Room that a worker keeps from slab to slab.
#[derive(Debug, Default)]
pub struct MergeRoom {
    values: Vec<f64>,
    change: Vec<f64>,
    bytes: Vec<u8>,
    panels: Panels,
}

/// Rows that are merged.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Their numbers, in any order.
    pub numbers: &'a [u64],
    /// Elements of a row. Rows need not be those of the innermost dimension.
    pub row_len: u64,
}

impl Overlay {
    /// Writes the merged rows of one of [`Overlay::targets`] to `out`, in its dtype, little-endian, one after another.
    ///
    /// `base` are the bytes of the whole base tensor, of which only what is needed is read; empty for a target without
    /// one. `tally` is told how far the rows are from the base's. `out` has `numbers.len() * row_len * byte_size` bytes.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with row and column of the first merged value that is NaN or infinite.
    pub fn merge_rows(
        &self,
        target: usize,
        rows: Rows<'_>,
        base: &[u8],
        room: &mut MergeRoom,
        tally: Option<&ChangeTally>,
        out: &mut [u8],
    ) -> Result<(), Error> {
        let merge = Merge { overlay: self, index: target, target: &self.targets()[target], base };
        let needed = merge.matrix_rows(rows);
        let cols = merge.target.matrix_dims().1 as usize;
        merge.compute(&needed, room).map_err(|e| merge.device(&e))?;
        room.panels.end_slab().into_iter().for_each(|key| self.release(key));
        if let Some(tally) = tally {
            tally.add(target, &needed, cols, &room.values, &room.change);
        }
        let row_len = rows.row_len as usize;
        let size = merge.target.dtype.byte_size() as usize;
        if row_len == cols {
            return merge.round(&needed, &room.values, out);
        }
        room.bytes.resize(needed.len() * cols * size, 0);
        merge.round(&needed, &room.values, &mut room.bytes)?;
        // Rows of the tensor are pieces of the matrix's, or several of them.
        let mut at = 0;
        for (number, out) in rows.numbers.iter().zip(out.chunks_exact_mut((row_len * size).max(1))) {
            let first = number * rows.row_len;
            let matrix_row = first / cols as u64;
            while needed[at] != matrix_row {
                at += 1;
            }
            let start = (at * cols + (first % cols as u64) as usize) * size;
            out.copy_from_slice(&room.bytes[start..start + row_len * size]);
            at += (row_len / cols).saturating_sub(1);
        }
        Ok(())
    }
}

impl Overlay {
    /// Gives back the pages of factors that no slab asks for any more.
    fn release(&self, (target, part, operand): PanelKey) {
        let part = &self.targets()[target].parts[part];
        let (Form::Add { delta, .. } | Form::Dora { delta, .. }) = &part.form else { return };
        let adapter = &self.adapters()[part.adapter].0;
        delta.operands()[operand].matrices().into_iter().for_each(|matrix| adapter.release(matrix.tensor));
    }
}

/// One target and its base.
struct Merge<'a> {
    overlay: &'a Overlay,
    index: usize,
    target: &'a Target,
    base: &'a [u8],
}

impl Merge<'_> {
    fn device(&self, error: &candle_core::Error) -> Error {
        Error::Device { tensor: self.target.name.clone(), reason: error.to_string() }
    }

    /// The rows of the tensor as a matrix that hold the given rows, each run of equal ones once.
    fn matrix_rows(&self, rows: Rows<'_>) -> Vec<u64> {
        let cols = self.target.matrix_dims().1;
        if rows.row_len == cols {
            return rows.numbers.to_vec();
        }
        let mut needed: Vec<u64> = Vec::new();
        for number in rows.numbers {
            let (first, end) = (number * rows.row_len, (number + 1) * rows.row_len);
            for row in first / cols.max(1)..end.div_ceil(cols.max(1)) {
                if needed.last() != Some(&row) {
                    needed.push(row);
                }
            }
        }
        needed
    }

    /// Leaves the merged rows in `room.values` and how far they are from the base's in `room.change`.
    fn compute(&self, rows: &[u64], room: &mut MergeRoom) -> candle_core::Result<()> {
        let cols = self.target.matrix_dims().1 as usize;
        let MergeRoom { values, change, panels, .. } = room;
        values.resize(rows.len() * cols, 0.0);
        self.base_rows(rows, values);
        change.clear();
        change.resize(values.len(), 0.0);
        if self.overlay.combine() != Combine::Sum {
            self.combined(rows, values, change, panels)?;
            values.iter_mut().zip(change).for_each(|(value, change)| *value += *change);
            return Ok(());
        }
        let alone = |i: usize, part: &Part| {
            part.weight == 1.0 && !matches!(part.form, Form::Add { .. }) && self.target.is_alone(i)
        };
        for (i, part) in self.target.parts.iter().enumerate().filter(|(i, part)| !alone(*i, part)) {
            let weight = Some(part.weight);
            self.apply(i, part, weight, rows, values, change, panels)?;
        }
        values.iter_mut().zip(change.iter()).for_each(|(value, change)| *value += change);
        for (i, part) in self.target.parts.iter().enumerate().filter(|(i, part)| alone(*i, part)) {
            self.apply(i, part, None, rows, values, change, panels)?;
        }
        if self.target.replaced.is_some() && self.has_base_values() {
            self.checkpoint_rows(rows, change);
            values.iter().zip(change).for_each(|(value, change)| *change = value - *change);
        }
        Ok(())
    }

    /// Leaves in `change` what the adapters' deltas give when they are combined.
    fn combined(
        &self,
        rows: &[u64],
        values: &mut [f64],
        change: &mut [f64],
        panels: &mut Panels,
    ) -> candle_core::Result<()> {
        let combine = self.overlay.combine();
        let (matrix_rows, cols) = self.target.matrix_dims();
        let adapters = self.target.adapters();
        let mut deltas = Vec::with_capacity(adapters.len());
        for &adapter in &adapters {
            let mut delta = self.delta_of(adapter, rows, values, panels)?;
            if let Some(kept) = combine.kept(matrix_rows * cols) {
                let least = self.overlay.thresholds().threshold(self.index, adapter, kept, |visit| {
                    let mut start = 0;
                    while start < matrix_rows {
                        let end = matrix_rows.min(start + NORM_ROWS);
                        let rows: Vec<u64> = (start..end).collect();
                        let mut values = vec![0.0; rows.len() * cols as usize];
                        self.base_rows(&rows, &mut values);
                        visit(&self.delta_of(adapter, &rows, &mut values, panels)?);
                        start = end;
                    }
                    Ok::<(), candle_core::Error>(())
                })?;
                delta.iter_mut().filter(|d| d.abs() < least).for_each(|d| *d = 0.0);
            }
            deltas.push((delta, self.overlay.adapters()[adapter].1));
        }
        let coins: Vec<Coins> = match combine {
            Combine::Dare { density, seed } => {
                adapters.iter().map(|adapter| Coins::new(seed, density, *adapter, &self.target.name)).collect()
            }
            _ => Vec::new(),
        };
        let mut of_element = vec![(0.0, 0.0); deltas.len()];
        for (i, change) in change.iter_mut().enumerate() {
            for (of_adapter, (delta, weight)) in of_element.iter_mut().zip(&deltas) {
                *of_adapter = (delta[i], *weight);
            }
            let element = rows[i / cols as usize] * cols + i as u64 % cols;
            *change = combine.element(&of_element, |adapter| coins[adapter].keeps(element));
        }
        Ok(())
    }

    /// What one adapter alone, with weight 1, adds to rows whose base values are given.
    fn delta_of(
        &self,
        adapter: usize,
        rows: &[u64],
        values: &mut [f64],
        panels: &mut Panels,
    ) -> candle_core::Result<Vec<f64>> {
        let mut delta = vec![0.0; values.len()];
        for (i, part) in self.target.parts.iter().enumerate().filter(|(_, part)| part.adapter == adapter) {
            self.apply(i, part, Some(1.0), rows, values, &mut delta, panels)?;
        }
        Ok(delta)
    }

    /// Applies a part to the rows that it has a share in: with a weight it adds a difference to `change`, without one it
    /// leaves its own values in `values`.
    #[expect(clippy::too_many_arguments, reason = "the part, the rows, and the three rooms that a slab has")]
    fn apply(
        &self,
        index: usize,
        part: &Part,
        weight: Option<f64>,
        rows: &[u64],
        values: &mut [f64],
        change: &mut [f64],
        panels: &mut Panels,
    ) -> candle_core::Result<()> {
        let cols = self.target.matrix_dims().1 as usize;
        let Rect { rows: part_rows, cols: part_cols } = &part.rect;
        let here: Vec<usize> = (0..rows.len()).filter(|at| part_rows.contains(&rows[*at])).collect();
        if here.is_empty() {
            return Ok(());
        }
        let local: Vec<u64> = here.iter().map(|at| rows[*at] - part_rows.start).collect();
        let range = |at: usize| at * cols + part_cols.start as usize..at * cols + part_cols.end as usize;
        let width = ((part_cols.end - part_cols.start) as usize).max(1);
        let adapter = &self.overlay.adapters()[part.adapter].0;
        // A new value of one element: a difference, or the value itself.
        let set = |value: &mut f64, change: &mut f64, new: f64| match weight {
            Some(weight) => *change += weight * (new - *value),
            None => {
                *change = new - *value;
                *value = new;
            }
        };
        match &part.form {
            Form::Add { delta, scale } => {
                let factor = weight.unwrap_or(1.0) * scale;
                let product = delta.compute(adapter, &local, (self.index, index), panels)?;
                for (at, product) in here.into_iter().zip(product.chunks_exact(width)) {
                    change[range(at)].iter_mut().zip(product).for_each(|(change, p)| *change += factor * p);
                }
            }
            Form::Dora { delta, scale, magnitude, axis, norms } => {
                let product = delta.compute(adapter, &local, (self.index, index), panels)?;
                let magnitudes = magnitude.decode(adapter.bytes(magnitude.tensor));
                let norms = match axis {
                    Axis::Rows => None,
                    Axis::Cols => Some(self.column_norms(index, part, norms, panels)?),
                };
                for ((at, local), product) in here.into_iter().zip(local).zip(product.chunks_exact(width)) {
                    let (values, change) = (&mut values[range(at)], &mut change[range(at)]);
                    let row_factor = match axis {
                        Axis::Rows => {
                            let square = |(value, p): (&f64, &f64)| (value + scale * p) * (value + scale * p);
                            let norm = values.iter().zip(product).map(square).sum::<f64>().sqrt();
                            magnitudes[local as usize] / norm
                        }
                        Axis::Cols => 0.0,
                    };
                    for (col, ((value, change), p)) in values.iter_mut().zip(change).zip(product).enumerate() {
                        let factor = norms.map_or(row_factor, |norms| magnitudes[col] / norms[col]);
                        let new = factor * (*value + scale * p);
                        set(value, change, new);
                    }
                }
            }
            Form::Multiply { factors, axis, taps } => {
                let factors = factors.decode(adapter.bytes(factors.tensor));
                for (at, local) in here.into_iter().zip(local) {
                    for (col, (value, change)) in values[range(at)].iter_mut().zip(&mut change[range(at)]).enumerate() {
                        let factor = match axis {
                            Axis::Rows => factors[local as usize],
                            Axis::Cols => factors[col / *taps as usize],
                        };
                        let new = *value * factor;
                        set(value, change, new);
                    }
                }
            }
            Form::Replace { values: new, rows: listed } => {
                let bytes = adapter.bytes(new.tensor);
                let mut row = vec![0.0; width];
                for at in here {
                    let source = match listed {
                        None => rows[at] - part_rows.start,
                        Some(listed) => match listed.binary_search_by_key(&rows[at], |(row, _)| *row) {
                            Ok(found) => listed[found].1,
                            Err(_) => continue,
                        },
                    };
                    new.decode_row(bytes, source, &mut row);
                    for ((value, change), new) in values[range(at)].iter_mut().zip(&mut change[range(at)]).zip(&row) {
                        set(value, change, *new);
                    }
                }
                // Listed rows are few; others may be those of a whole embedding.
                if let (None, Some(first), Some(last)) = (listed, local.iter().min(), local.iter().max()) {
                    adapter.release_rows(new, *first..last + 1);
                }
            }
        }
        Ok(())
    }

    /// The norms of the columns of `W + scale * delta` over all rows of a part. Rows are added in their order, so how they
    /// are cut into pieces changes no bit.
    fn column_norms<'n>(
        &self,
        index: usize,
        part: &Part,
        norms: &'n OnceLock<Vec<f64>>,
        panels: &mut Panels,
    ) -> candle_core::Result<&'n [f64]> {
        if let Some(norms) = norms.get() {
            return Ok(norms);
        }
        let Form::Dora { delta, scale, .. } = &part.form else { unreachable!("only DoRA has norms") };
        let adapter = &self.overlay.adapters()[part.adapter].0;
        let cols = self.target.matrix_dims().1 as usize;
        let part_cols = part.rect.cols.start as usize..part.rect.cols.end as usize;
        let mut squares = vec![0.0; part_cols.len()];
        let mut start = part.rect.rows.start;
        while start < part.rect.rows.end {
            let end = part.rect.rows.end.min(start + NORM_ROWS);
            let rows: Vec<u64> = (start..end).collect();
            let local: Vec<u64> = rows.iter().map(|row| row - part.rect.rows.start).collect();
            let mut values = vec![0.0; rows.len() * cols];
            self.base_rows(&rows, &mut values);
            let product = delta.compute(adapter, &local, (self.index, index), panels)?;
            for (values, product) in values.chunks_exact(cols).zip(product.chunks_exact(squares.len().max(1))) {
                for ((square, value), p) in squares.iter_mut().zip(&values[part_cols.clone()]).zip(product) {
                    let sum = value + scale * p;
                    *square += sum * sum;
                }
            }
            start = end;
        }
        Ok(norms.get_or_init(|| squares.into_iter().map(f64::sqrt).collect()))
    }

    /// Rows of what the parts start from.
    fn base_rows(&self, rows: &[u64], out: &mut [f64]) {
        let Some(replaced) = &self.target.replaced else {
            return self.checkpoint_rows(rows, out);
        };
        let Matrix { tensor, cols, .. } = replaced.values;
        let bytes = self.overlay.adapters()[replaced.adapter].0.bytes(tensor);
        let matrix_cols = self.target.matrix_dims().1;
        for (row, out) in rows.iter().zip(out.chunks_exact_mut((matrix_cols as usize).max(1))) {
            // A stack's rows are pieces of the parameter's.
            let first = row * matrix_cols;
            replaced.values.decode_from(bytes, first / cols.max(1), first % cols.max(1), out);
        }
        if let (true, Some(first), Some(last)) = (matrix_cols == cols, rows.iter().min(), rows.iter().max()) {
            self.overlay.adapters()[replaced.adapter].0.release_rows(&replaced.values, *first..last + 1);
        }
    }

    /// Whether the checkpoint has values of the same shape to compare with.
    fn has_base_values(&self) -> bool {
        let elements = self.target.shape.element_count().unwrap_or(0);
        self.base.len() as u64 == elements * self.target.dtype.byte_size()
    }

    /// Rows of the base tensor.
    fn checkpoint_rows(&self, rows: &[u64], out: &mut [f64]) {
        let cols = self.target.matrix_dims().1;
        let row_byte_len = (cols * self.target.dtype.byte_size()) as usize;
        for (row, out) in rows.iter().zip(out.chunks_exact_mut((cols as usize).max(1))) {
            let start = *row as usize * row_byte_len;
            to_f64(self.target.dtype, &self.base[start..start + row_byte_len], out);
            if let Some(scales) = &self.target.scales {
                out.iter_mut().zip(0..).for_each(|(value, col)| *value *= scales.at(*row, col));
            }
        }
    }

    /// Rounds rows to the target's dtype.
    fn round(&self, rows: &[u64], values: &[f64], out: &mut [u8]) -> Result<(), Error> {
        let cols = self.target.matrix_dims().1;
        let rounded = match &self.target.scales {
            None => round_to(self.target.dtype, values, out),
            Some(scales) => round_scaled(self.target.dtype, values, out, |index| {
                scales.at(rows[index / cols as usize], index as u64 % cols)
            }),
        };
        rounded.map_err(|wrong| {
            // Places are those of the tensor's own rows.
            let place = rows[wrong.index / cols as usize] * cols + wrong.index as u64 % cols;
            let row_len = self.target.shape.row_len();
            Error::NotFinite {
                tensor: self.target.name.clone(),
                dtype: self.target.dtype,
                row: place / row_len,
                column: place % row_len,
                value: wrong.value,
            }
        })
    }
}

#[cfg(test)]
mod tests;
