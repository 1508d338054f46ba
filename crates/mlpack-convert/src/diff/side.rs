//! One side of a diff: a source as the tensors of the GGUF file that it is, or would become.

use crate::{Error, Input, Source, Step, Stored};
use mlpack_arch::{Model, TensorRule, Transform};
use mlpack_tensor::Shape;
use std::ops::Range;

/// A source and the tensors that its GGUF file has.
pub(super) struct Side<'a> {
    pub source: &'a Source,
    pub tensors: Vec<SideTensor>,
}

/// A tensor under its GGUF name, and how its rows come about.
pub(super) struct SideTensor {
    pub name: String,
    pub stored: Stored,
    pub shape: Shape,
    step: Step,
}

/// Room that a worker keeps from slab to slab.
#[derive(Default)]
pub(super) struct Room {
    gathered: Vec<u8>,
    sums: Vec<f64>,
    merged: Vec<u8>,
}

/// How a tensor that is computed from the config is stored in a GGUF file.
const COMPUTED: Stored = Stored::Ggml(mlpack_tensor::GgmlType::F32);

impl<'a> Side<'a> {
    /// A GGUF file as it is.
    pub fn of_gguf(source: &'a Source) -> Side<'a> {
        let tensors = source.tensors().iter().enumerate().map(|(position, tensor)| SideTensor {
            name: tensor.name.clone(),
            stored: tensor.stored,
            step: step(Input::Tensor(position), &tensor.shape, Transform::Copy),
            shape: tensor.shape.clone(),
        });
        Side { source, tensors: tensors.collect() }
    }

    /// A checkpoint as its model's GGUF file would be. Tensors that have no place in one are left out.
    ///
    /// # Errors
    /// Every tensor whose name the architecture does not know, together.
    pub fn of_model(source: &'a Source, model: &Model) -> Result<Side<'a>, Error> {
        let mut tensors = Vec::new();
        let mut problems = Vec::new();
        for extra in model.extra_tensors()? {
            let step = step(Input::Computed(extra.data), &extra.shape, Transform::Copy);
            tensors.push(SideTensor { name: extra.name, stored: COMPUTED, shape: extra.shape, step });
        }
        for (position, tensor) in source.tensors().iter().enumerate() {
            match model.map_tensor(&tensor.name, &tensor.shape) {
                Ok(TensorRule::Mapped { gguf_name, transform, .. }) => tensors.push(SideTensor {
                    name: gguf_name,
                    stored: tensor.stored,
                    step: step(Input::Tensor(position), &tensor.shape, transform),
                    shape: tensor.shape.clone(),
                }),
                Ok(TensorRule::Dropped { .. }) => {}
                Err(e) => problems.push(e.into()),
            }
        }
        Error::from_list(problems)?;
        Ok(Side { source, tensors })
    }

    /// Values of whole rows, as float32.
    pub fn read(
        &self,
        tensor: &SideTensor,
        rows: &Range<u64>,
        room: &mut Room,
        floats: &mut Vec<f32>,
    ) -> Result<(), Error> {
        let row_len = tensor.shape.row_len();
        let elements = rows.start * row_len..rows.end * row_len;
        floats.resize((elements.end - elements.start) as usize, 0.0);
        match &tensor.step.input {
            Input::Computed(values) => {
                floats.copy_from_slice(&values[elements.start as usize..elements.end as usize]);
                Ok(())
            }
            Input::Tensor(position) => {
                let bytes = self.bytes(*position, &tensor.step, elements, room)?;
                decode(tensor, bytes, floats)
            }
        }
    }

    /// Stored values in GGUF order, with the adapters' deltas added.
    fn bytes<'r>(
        &'r self,
        position: usize,
        step: &Step,
        elements: Range<u64>,
        room: &'r mut Room,
    ) -> Result<&'r [u8], Error> {
        let tensor = &self.source.tensors()[position];
        let all = self.source.bytes(tensor);
        let row_byte_len = tensor.stored.row_byte_len(step.row_len) as usize;
        let rows = elements.start / step.row_len.max(1)..elements.end / step.row_len.max(1);
        let source_rows: Vec<u64> = rows.clone().map(|row| step.transform.source_row(row, step.rows)).collect();
        let Room { gathered, sums, merged } = room;
        let base = if source_rows.iter().copied().eq(rows.clone()) {
            &all[rows.start as usize * row_byte_len..rows.end as usize * row_byte_len]
        } else {
            gathered.clear();
            for row in &source_rows {
                gathered.extend_from_slice(&all[*row as usize * row_byte_len..][..row_byte_len]);
            }
            gathered
        };
        if self.source.changes(position).is_empty() {
            return Ok(base);
        }
        merged.resize(base.len(), 0);
        self.source.merge_rows(position, &source_rows, base, sums, merged)?;
        Ok(merged)
    }

    /// Bytes that a slab needs for the factors of its deltas, whatever its rows.
    pub fn delta_byte_len(&self, tensor: &SideTensor) -> u64 {
        let Input::Tensor(position) = tensor.step.input else { return 0 };
        let rank = |change: &mlpack_lora::Change| change.pair.a.shape.dims().first().copied().unwrap_or(0);
        let largest = self.source.changes(position).iter().map(rank).max().unwrap_or(0);
        largest.saturating_mul(tensor.step.row_len).saturating_mul(8)
    }

    /// Gives back the pages of rows that are done with; returns their bytes.
    pub fn release(&self, tensor: &SideTensor, rows: &Range<u64>) -> u64 {
        let Input::Tensor(position) = tensor.step.input else { return 0 };
        let source = &self.source.tensors()[position];
        let row_byte_len = tensor.stored.row_byte_len(tensor.shape.row_len());
        // Rows in another order come from the same part of the file: what a neighbour still needs is read again.
        let start = source.range.start + rows.start * row_byte_len;
        let end = source.range.start + rows.end * row_byte_len;
        self.source.file(source).release(start as usize..end as usize);
        end - start
    }
}

/// The rows of a tensor. The elements of a vector whose order changes are rows of one.
fn step(input: Input, shape: &Shape, transform: Transform) -> Step {
    let (rows, row_len) = match transform {
        Transform::RopePermute { .. } if shape.rank() == 1 => (shape.row_len(), 1),
        _ => (shape.row_count().unwrap_or(0), shape.row_len()),
    };
    Step { input, rows, row_len, transform, targets: Vec::new() }
}

/// Stored values as float32.
fn decode(tensor: &SideTensor, bytes: &[u8], floats: &mut [f32]) -> Result<(), Error> {
    let (name, stored, shape) = (|| tensor.name.clone(), tensor.stored, &tensor.shape);
    match (stored.dtype(), stored) {
        (Some(dtype), _) if dtype.is_float() => Ok(mlpack_quant::widen(dtype, bytes, floats)?),
        (_, Stored::Ggml(ty)) if mlpack_quant::can_decode(ty) => Ok(mlpack_quant::decode(ty, bytes, floats)?),
        (_, Stored::Ggml(ty)) => Err(Error::Undecodable { tensor: name(), ty }),
        (_, Stored::Safetensors(_)) => Err(Error::TensorDtype { tensor: name(), stored, shape: shape.clone() }),
    }
}
