//! One side of a diff: a source as the tensors of the GGUF file that it is, or would become.

use crate::execute::delta_byte_len;
use crate::gather::{self, Reader, share};
use crate::gguf_plan::source_of;
use crate::slab::apply;
use crate::{Error, Input, Source, Step, Stored};
use mlpack_arch::{Model, ValueChange};
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
pub(super) type Room = gather::Room;

/// How a tensor that is computed from the config is stored in a GGUF file.
const COMPUTED: Stored = Stored::Ggml(mlpack_tensor::GgmlType::F32);

impl<'a> Side<'a> {
    /// A GGUF file as it is.
    pub fn of_gguf(source: &'a Source) -> Side<'a> {
        let tensors = source.tensors().iter().enumerate().map(|(position, tensor)| SideTensor {
            name: tensor.name.clone(),
            stored: tensor.stored,
            step: Step::copy(position, &tensor.shape),
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
        for extra in model.extra_tensors()? {
            let step = Step::computed(extra.data, &extra.shape);
            tensors.push(SideTensor { name: extra.name, stored: COMPUTED, shape: extra.shape, step });
        }
        let all: Vec<(&str, &Shape)> = source.tensors().iter().map(|t| (t.name.as_str(), &t.shape)).collect();
        let mapping = model.map_tensors(&all);
        let mut problems: Vec<Error> = mapping.problems.into_iter().map(Error::from).collect();
        for tensor in mapping.tensors {
            let step = Step::mapped(&tensor);
            match source_of(source, &tensor) {
                Err(e) => problems.push(e),
                Ok(_) => tensors.push(SideTensor {
                    name: tensor.gguf_name,
                    // A changed value is one of float32.
                    stored: match (tensor.values, &step.input) {
                        (ValueChange::None, Input::Tensors(gather)) => gather::stored(source, gather),
                        _ => COMPUTED,
                    },
                    shape: tensor.shape,
                    step,
                }),
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
            Input::Tensors(gather) => {
                let reader = Reader::new(self.source, gather, row_len, false, None);
                let stored = reader.stored();
                let bytes = reader.read(rows, room)?.unwrap_or(&room.gathered);
                decode(tensor, stored, bytes, floats)?;
                apply(gather.values, stored.dtype(), floats);
                Ok(())
            }
        }
    }

    /// Bytes that a slab needs for the factors of its deltas, whatever its rows.
    pub fn delta_byte_len(&self, tensor: &SideTensor) -> u64 {
        delta_byte_len(self.source, &tensor.step)
    }

    /// Gives back the pages of rows that are done with; returns their bytes.
    pub fn release(&self, tensor: &SideTensor, rows: &Range<u64>) -> u64 {
        let Input::Tensors(gather) = &tensor.step.input else { return 0 };
        let row_len = tensor.shape.row_len();
        let mut byte_len = 0;
        // Rows in another order come from elsewhere: what a neighbour still needs is read again.
        for (file, range) in share(self.source, gather, rows.start * row_len..rows.end * row_len) {
            byte_len += range.end - range.start;
            self.source.files()[file].release(range.start as usize..range.end as usize);
        }
        byte_len
    }
}

/// Stored values as float32.
fn decode(tensor: &SideTensor, stored: Stored, bytes: &[u8], floats: &mut [f32]) -> Result<(), Error> {
    let (name, shape) = (|| tensor.name.clone(), &tensor.shape);
    match (stored.dtype(), stored) {
        (Some(dtype), _) if dtype.is_float() => Ok(mlpack_quant::widen(dtype, bytes, floats)?),
        (_, Stored::Ggml(ty)) if mlpack_quant::can_decode(ty) => Ok(mlpack_quant::decode(ty, bytes, floats)?),
        (_, Stored::Ggml(ty)) => Err(Error::Undecodable { tensor: name(), ty }),
        (_, Stored::Safetensors(_) | Stored::NBits(..) | Stored::ColumnBlocks(..) | Stored::Bytes(_)) => {
            Err(Error::TensorDtype { tensor: name(), stored, shape: shape.clone() })
        }
    }
}
