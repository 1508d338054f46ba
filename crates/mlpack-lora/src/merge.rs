//! Merged rows: base values plus what the adapters change, in float64, rounded once.

mod narrow;

use crate::combine::Coins;
use crate::delta::{PanelKey, Panels, Product, ReadProduct};
use crate::matrix::{Matrix, to_f64};
use crate::simd::simd;
use crate::tally::RowSums;
use crate::target::{Axis, Form, Part, Rect, Target};
use crate::{Adapter, ChangeTally, Combine, Error, Overlay, ProductDevice, round_scaled, round_to};
use narrow::LowRank;
use std::ops::Range;
use std::sync::OnceLock;

/// Rows of a tensor that are computed at a time when the norms of its columns are taken.
const NORM_ROWS: u64 = 256;

/// Room that a worker keeps from slab to slab.
#[derive(Debug, Default)]
pub struct MergeRoom {
    row: RowRoom,
    bytes: Vec<u8>,
    panels: Panels,
    products: ProductDevice,
}

impl MergeRoom {
    /// Room of a worker that leaves products to a device where it can.
    pub fn on(products: ProductDevice) -> MergeRoom {
        MergeRoom { products, ..MergeRoom::default() }
    }
}

/// Room for one row on its way from the base to the result: it stays in the nearest caches.
#[derive(Debug, Default)]
struct RowRoom {
    values: Vec<f64>,
    change: Vec<f64>,
}

/// Rows that are merged.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Their numbers, in any order.
    pub numbers: &'a [u64],
    /// Elements of a row. Rows need not be those of the innermost dimension.
    pub row_len: u64,
}

/// The bytes of a base tensor.
#[derive(Clone, Copy, Debug, Default)]
pub struct BaseBytes<'a> {
    whole: &'a [u8],
    read: (usize, &'a [u8]),
}

impl<'a> BaseBytes<'a> {
    /// All of them, in a map: only what is needed is read. Empty for a target without a base.
    pub fn new(whole: &'a [u8]) -> BaseBytes<'a> {
        BaseBytes { whole, read: (0, &[]) }
    }

    /// The same where a part, which begins at `start`, was read already.
    pub fn with_part(self, start: usize, part: &'a [u8]) -> BaseBytes<'a> {
        BaseBytes { read: (start, part), ..self }
    }

    fn get(&self, range: Range<usize>) -> &'a [u8] {
        let (start, part) = self.read;
        let in_part = range.start.checked_sub(start).and_then(|at| part.get(at..at + range.len()));
        in_part.unwrap_or_else(|| &self.whole[range])
    }
}

impl Overlay {
    /// Writes the merged rows of one of [`Overlay::targets`] to `out`, in its dtype, little-endian, one after another.
    ///
    /// `tally` is told how far the rows are from the base's. `out` has `numbers.len() * row_len * byte_size` bytes.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with row and column of the first merged value that is NaN or infinite.
    pub fn merge_rows(
        &self,
        target: usize,
        rows: Rows<'_>,
        base: BaseBytes<'_>,
        room: &mut MergeRoom,
        tally: Option<&ChangeTally>,
        out: &mut [u8],
    ) -> Result<(), Error> {
        let merge = Merge { overlay: self, index: target, target: &self.targets()[target], base };
        let needed = merge.matrix_rows(rows);
        let cols = merge.target.matrix_dims().1 as usize;
        let row_len = rows.row_len as usize;
        let size = merge.target.dtype.byte_size() as usize;
        let MergeRoom { row, bytes, panels, products } = room;
        if row_len == cols {
            merge.compute(&needed, row, (panels, products), tally, out)?;
        } else {
            bytes.resize(needed.len() * cols * size, 0);
            merge.compute(&needed, row, (panels, products), tally, bytes)?;
        }
        panels.end_slab().into_iter().for_each(|key| self.release(key));
        if row_len == cols {
            return Ok(());
        }
        // Rows of the tensor are pieces of the matrix's, or several of them.
        let mut at = 0;
        for (number, out) in rows.numbers.iter().zip(out.chunks_exact_mut((row_len * size).max(1))) {
            let first = number * rows.row_len;
            let matrix_row = first / cols as u64;
            while needed[at] != matrix_row {
                at += 1;
            }
            let start = (at * cols + (first % cols as u64) as usize) * size;
            out.copy_from_slice(&bytes[start..start + row_len * size]);
            at += (row_len / cols).saturating_sub(1);
        }
        Ok(())
    }

    /// Whether rows of a target are merged with products that a device may compute. `base_len` are the bytes of the base tensor.
    pub fn asks_for_products(&self, target: usize, base_len: u64) -> bool {
        LowRank::of(self, target, base_len).is_some()
    }

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
    base: BaseBytes<'a>,
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

    /// Writes merged rows to `out`: the products of factors for all of them at once, everything else row by row.
    fn compute(
        &self,
        rows: &[u64],
        room: &mut RowRoom,
        (panels, products): (&mut Panels, &ProductDevice),
        tally: Option<&ChangeTally>,
        out: &mut [u8],
    ) -> Result<(), Error> {
        let base_len = self.base.whole.len() as u64;
        if let (None, Some(low_rank)) = (tally, LowRank::of(self.overlay, self.index, base_len)) {
            return low_rank.merge(self, rows, room, (panels, products), out);
        }
        let cols = self.target.matrix_dims().1 as usize;
        let (combined, parts) = match self.overlay.combine() {
            Combine::Sum => (None, self.sum_of_parts(rows, panels).map_err(|e| self.device(&e))?),
            _ => (Some(self.combined(rows, panels).map_err(|e| self.device(&e))?), Vec::new()),
        };
        let mut parts: Vec<RowPart<'_>> = parts.iter().map(PreparedPart::rows).collect();
        let RowRoom { values, change } = room;
        values.resize(cols, 0.0);
        change.resize(cols, 0.0);
        let mut sums = Vec::new();
        let row_byte_len = (cols * self.target.dtype.byte_size() as usize).max(1);
        for (at, (row, out)) in rows.iter().zip(out.chunks_exact_mut(row_byte_len)).enumerate() {
            self.base_row(*row, values);
            match &combined {
                Some(all) => {
                    change.copy_from_slice(&all[at * cols..(at + 1) * cols]);
                    add(values, change);
                }
                None => {
                    change.fill(0.0);
                    parts.iter_mut().filter(|p| p.weight.is_some()).for_each(|p| p.apply(*row, values, change));
                    add(values, change);
                    parts.iter_mut().filter(|p| p.weight.is_none()).for_each(|p| p.apply(*row, values, change));
                    if self.target.replaced.is_some() && self.has_base_values() {
                        self.checkpoint_row(*row, change);
                        values.iter().zip(&mut *change).for_each(|(value, change)| *change = value - *change);
                    }
                }
            }
            if tally.is_some() {
                sums.push(RowSums::of(values, change));
            }
            self.round(*row, values, out)?;
        }
        self.release_rows(rows);
        tally.into_iter().for_each(|tally| tally.add(self.index, rows, &sums));
        Ok(())
    }

    /// What rows need of every part. One that is alone and has weight 1 gives its values directly.
    fn sum_of_parts(&self, rows: &[u64], panels: &mut Panels) -> candle_core::Result<Vec<PreparedPart<'_>>> {
        let mut prepared = Vec::with_capacity(self.target.parts.len());
        for (i, part) in self.target.parts.iter().enumerate() {
            let alone = part.weight == 1.0 && !matches!(part.form, Form::Add { .. }) && self.target.is_alone(i);
            let weight = (!alone).then_some(part.weight);
            prepared.extend(self.prepare(i, part, weight, rows, panels)?);
        }
        Ok(prepared)
    }

    /// What the adapters' deltas give when they are combined, for all rows.
    fn combined(&self, rows: &[u64], panels: &mut Panels) -> candle_core::Result<Vec<f64>> {
        let combine = self.overlay.combine();
        let (matrix_rows, cols) = self.target.matrix_dims();
        let adapters = self.target.adapters();
        let mut deltas = Vec::with_capacity(adapters.len());
        for &adapter in &adapters {
            let mut delta = self.delta_of(adapter, rows, panels)?;
            if let Some(kept) = combine.kept(matrix_rows * cols) {
                let least = self.overlay.thresholds().threshold(self.index, adapter, kept, |visit| {
                    let mut start = 0;
                    while start < matrix_rows {
                        let end = matrix_rows.min(start + NORM_ROWS);
                        let rows: Vec<u64> = (start..end).collect();
                        visit(&self.delta_of(adapter, &rows, panels)?);
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
        let mut changes = vec![0.0; rows.len() * cols as usize];
        for (i, change) in changes.iter_mut().enumerate() {
            for (of_adapter, (delta, weight)) in of_element.iter_mut().zip(&deltas) {
                *of_adapter = (delta[i], *weight);
            }
            let element = rows[i / cols as usize] * cols + i as u64 % cols;
            *change = combine.element(&of_element, |adapter| coins[adapter].keeps(element));
        }
        Ok(changes)
    }

    /// What one adapter alone, with weight 1, adds to rows.
    fn delta_of(&self, adapter: usize, rows: &[u64], panels: &mut Panels) -> candle_core::Result<Vec<f64>> {
        let mut prepared = Vec::new();
        for (i, part) in self.target.parts.iter().enumerate().filter(|(_, part)| part.adapter == adapter) {
            prepared.extend(self.prepare(i, part, Some(1.0), rows, panels)?);
        }
        let mut parts: Vec<RowPart<'_>> = prepared.iter().map(PreparedPart::rows).collect();
        let cols = self.target.matrix_dims().1 as usize;
        let (mut values, mut deltas) = (vec![0.0; cols], vec![0.0; rows.len() * cols]);
        for (row, delta) in rows.iter().zip(deltas.chunks_exact_mut(cols.max(1))) {
            self.base_row(*row, &mut values);
            parts.iter_mut().for_each(|part| part.apply(*row, &mut values, delta));
        }
        Ok(deltas)
    }

    /// What a part needs for the rows that it has a share in, if there are any.
    fn prepare<'p>(
        &'p self,
        index: usize,
        part: &'p Part,
        weight: Option<f64>,
        rows: &[u64],
        panels: &mut Panels,
    ) -> candle_core::Result<Option<PreparedPart<'p>>> {
        let local = part.rect.rows_of(rows);
        if local.is_empty() {
            return Ok(None);
        }
        let adapter = &self.overlay.adapters()[part.adapter].0;
        let (mut product, mut factors, mut norms) = (None, Vec::new(), None);
        match &part.form {
            Form::Add { delta, .. } => product = Some(delta.compute(adapter, &local, (self.index, index), panels)?),
            Form::Dora { delta, magnitude, axis, norms: taken, .. } => {
                product = Some(delta.compute(adapter, &local, (self.index, index), panels)?);
                factors = magnitude.decode(adapter.bytes(magnitude.tensor));
                if *axis == Axis::Cols {
                    norms = Some(self.column_norms(index, part, taken, panels)?);
                }
            }
            Form::Multiply { factors: stored, .. } => factors = stored.decode(adapter.bytes(stored.tensor)),
            Form::Replace { .. } => {}
        }
        Ok(Some(PreparedPart { adapter, part, weight, product, factors, norms }))
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
        let (mut squares, mut values) = (vec![0.0; part_cols.len()], vec![0.0; cols]);
        let mut start = part.rect.rows.start;
        while start < part.rect.rows.end {
            let end = part.rect.rows.end.min(start + NORM_ROWS);
            let rows: Vec<u64> = (start..end).collect();
            let local: Vec<u64> = rows.iter().map(|row| row - part.rect.rows.start).collect();
            let product = delta.compute(adapter, &local, (self.index, index), panels)?;
            let product = product.read();
            for (row, product) in rows.iter().zip(product.values().chunks_exact(squares.len().max(1))) {
                self.base_row(*row, &mut values);
                for ((square, value), p) in squares.iter_mut().zip(&values[part_cols.clone()]).zip(product) {
                    let sum = value + scale * p;
                    *square += sum * sum;
                }
            }
            start = end;
        }
        Ok(norms.get_or_init(|| squares.into_iter().map(f64::sqrt).collect()))
    }

    /// A row of what the parts start from.
    fn base_row(&self, row: u64, out: &mut [f64]) {
        let Some(replaced) = &self.target.replaced else {
            return self.checkpoint_row(row, out);
        };
        let Matrix { tensor, cols, .. } = replaced.values;
        let bytes = self.overlay.adapters()[replaced.adapter].0.bytes(tensor);
        // A stack's rows are pieces of the parameter's.
        let first = row * self.target.matrix_dims().1;
        replaced.values.decode_from(bytes, first / cols.max(1), first % cols.max(1), out);
    }

    /// Gives back the pages of rows that adapters bring whole: others may be those of a whole embedding.
    fn release_rows(&self, rows: &[u64]) {
        let release = |adapter: usize, values: &Matrix, rows: &[u64]| {
            if let (Some(first), Some(last)) = (rows.iter().min(), rows.iter().max()) {
                self.overlay.adapters()[adapter].0.release_rows(values, *first..last + 1);
            }
        };
        for part in &self.target.parts {
            // Listed rows are few.
            if let Form::Replace { values, rows: None } = &part.form {
                release(part.adapter, values, &part.rect.rows_of(rows));
            }
        }
        if let Some(replaced) = &self.target.replaced
            && replaced.values.cols == self.target.matrix_dims().1
        {
            release(replaced.adapter, &replaced.values, rows);
        }
    }

    /// Whether the checkpoint has values of the same shape to compare with.
    fn has_base_values(&self) -> bool {
        let elements = self.target.shape.element_count().unwrap_or(0);
        self.base.whole.len() as u64 == elements * self.target.dtype.byte_size()
    }

    /// A row of the base tensor.
    fn checkpoint_row(&self, row: u64, out: &mut [f64]) {
        let row_byte_len = out.len() * self.target.dtype.byte_size() as usize;
        let start = row as usize * row_byte_len;
        to_f64(self.target.dtype, self.base.get(start..start + row_byte_len), out);
        if let Some(scales) = &self.target.scales {
            out.iter_mut().zip(0..).for_each(|(value, col)| *value *= scales.at(row, col));
        }
    }

    /// Rounds a row to the target's dtype.
    fn round(&self, row: u64, values: &[f64], out: &mut [u8]) -> Result<(), Error> {
        let rounded = match &self.target.scales {
            None => round_to(self.target.dtype, values, out),
            Some(scales) => round_scaled(self.target.dtype, values, out, |col| scales.at(row, col as u64)),
        };
        rounded.map_err(|wrong| self.not_finite(row, wrong.index, wrong.value))
    }

    fn not_finite(&self, row: u64, col: usize, value: f64) -> Error {
        // Places are those of the tensor's own rows.
        let place = row * self.target.matrix_dims().1 + col as u64;
        let row_len = self.target.shape.row_len();
        Error::NotFinite {
            tensor: self.target.name.clone(),
            dtype: self.target.dtype,
            row: place / row_len,
            column: place % row_len,
            value,
        }
    }
}

/// A part, and what was computed for all rows of a slab.
struct PreparedPart<'p> {
    adapter: &'p Adapter,
    part: &'p Part,
    /// With a weight the part adds a difference to the change, without one it leaves its own values.
    weight: Option<f64>,
    product: Option<Product>,
    /// Of IA3, or the magnitudes of DoRA.
    factors: Vec<f64>,
    norms: Option<&'p [f64]>,
}

impl PreparedPart<'_> {
    fn rows(&self) -> RowPart<'_> {
        RowPart { prepared: self, weight: self.weight, product: self.product.as_ref().map(Product::read), next: 0 }
    }
}

/// A part that is applied to the rows of a slab, one after another.
struct RowPart<'p> {
    prepared: &'p PreparedPart<'p>,
    weight: Option<f64>,
    product: Option<ReadProduct<'p>>,
    /// Rows of the product that are used.
    next: usize,
}

impl RowPart<'_> {
    /// Applies the part to the next row of the slab, if it has a share in it.
    fn apply(&mut self, row: u64, values: &mut [f64], change: &mut [f64]) {
        let PreparedPart { adapter, part, factors, norms, .. } = self.prepared;
        let Rect { rows, cols } = &part.rect;
        if !rows.contains(&row) {
            return;
        }
        let (local, cols) = ((row - rows.start) as usize, cols.start as usize..cols.end as usize);
        let (values, change) = (&mut values[cols.clone()], &mut change[cols]);
        let of_row = self.next * values.len()..(self.next + 1) * values.len();
        let product = self.product.as_ref().map_or(&[][..], |product| &product.values()[of_row]);
        self.next += 1;
        let weight = self.weight;
        // A new value of one element: a difference, or the value itself.
        let set = |value: &mut f64, change: &mut f64, new: f64| match weight {
            Some(weight) => *change += weight * (new - *value),
            None => {
                *change = new - *value;
                *value = new;
            }
        };
        match &part.form {
            Form::Add { scale, .. } => {
                let factor = weight.unwrap_or(1.0) * scale;
                simd(|| change.iter_mut().zip(product).for_each(|(change, p)| *change += factor * p));
            }
            Form::Dora { scale, .. } => {
                let row_factor = match norms {
                    Some(_) => 0.0,
                    None => {
                        let square = |(value, p): (&f64, &f64)| (value + scale * p) * (value + scale * p);
                        let norm = values.iter().zip(product).map(square).sum::<f64>().sqrt();
                        factors[local] / norm
                    }
                };
                for (col, ((value, change), p)) in values.iter_mut().zip(change).zip(product).enumerate() {
                    let factor = norms.map_or(row_factor, |norms| factors[col] / norms[col]);
                    let new = factor * (*value + scale * p);
                    set(value, change, new);
                }
            }
            Form::Multiply { axis, taps, .. } => {
                for (col, (value, change)) in values.iter_mut().zip(change).enumerate() {
                    let factor = match axis {
                        Axis::Rows => factors[local],
                        Axis::Cols => factors[col / *taps as usize],
                    };
                    let new = *value * factor;
                    set(value, change, new);
                }
            }
            Form::Replace { values: new, rows: listed } => {
                let source = match listed {
                    None => local as u64,
                    Some(listed) => match listed.binary_search_by_key(&row, |(row, _)| *row) {
                        Ok(found) => listed[found].1,
                        Err(_) => return,
                    },
                };
                let mut row = vec![0.0; values.len()];
                new.decode_row(adapter.bytes(new.tensor), source, &mut row);
                for ((value, change), new) in values.iter_mut().zip(change).zip(row) {
                    set(value, change, new);
                }
            }
        }
    }
}

fn add(values: &mut [f64], change: &[f64]) {
    simd(|| values.iter_mut().zip(change).for_each(|(value, change)| *value += change));
}

#[cfg(test)]
mod tests;
