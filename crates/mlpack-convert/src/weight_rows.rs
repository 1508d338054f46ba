//! The weights of what a model computes, by the names that its description gives them, a few rows at a time.

use crate::gather::{Reader, Room, share};
use crate::onnx_plan::{Role, roles};
use crate::slab::apply;
use crate::{Computation, Error, Input, Plan, Source, Step, Stored};
use mlpack_tensor::Shape;
use std::collections::BTreeMap;
use std::ops::Range;

/// The weights of a checkpoint, with what adapters change, for somebody who computes with them: no graph is involved, and nothing
/// is kept.
pub struct WeightRows<'a> {
    source: &'a Source,
    roles: BTreeMap<String, Role>,
}

impl<'a> WeightRows<'a> {
    /// The weights that a computation has.
    ///
    /// # Errors
    /// When a tensor has no place in the computation.
    pub fn new(source: &'a Source, computation: &Computation) -> Result<WeightRows<'a>, Error> {
        Ok(WeightRows { source, roles: roles(source, computation, &mut Plan::default())? })
    }

    /// The shape of a weight, where the checkpoint has it.
    pub fn shape(&self, role: &str) -> Option<&'a Shape> {
        self.roles.get(role).map(|role| &self.source.tensors()[role.position].shape)
    }

    /// The name that the checkpoint gives a weight, where it has it.
    pub fn tensor(&self, role: &str) -> Option<&'a str> {
        self.roles.get(role).map(|role| self.source.tensors()[role.position].name.as_str())
    }

    /// Reads rows of a weight that is there, after what its description does to values; a vector is one row.
    ///
    /// # Errors
    /// When a value is not finite.
    ///
    /// # Panics
    /// When there is no such weight, or it has not so many rows.
    pub fn read(&self, role: &str, rows: Range<u64>) -> Result<Vec<f32>, Error> {
        let role = self.roles.get(role).unwrap_or_else(|| panic!("the checkpoint has no `{role}`"));
        let mut step = Step::copy(role.position, &self.source.tensors()[role.position].shape);
        assert!(rows.start <= rows.end && rows.end <= step.rows, "rows of the weight");
        let Input::Tensors(gather) = &mut step.input else { unreachable!("a copy reads a tensor") };
        gather.values = role.values;
        let mut room = Room::default();
        let reader = Reader::new(self.source, gather, step.row_len, true, None);
        let Stored::Safetensors(dtype) = reader.stored() else { unreachable!("roles are of floats") };
        let bytes = reader.read(&rows, &mut room)?.unwrap_or(&room.gathered);
        let mut floats = vec![0.0; ((rows.end - rows.start) * step.row_len) as usize];
        mlpack_quant::widen(dtype, bytes, &mut floats)?;
        apply(role.values, Some(dtype), &mut floats);
        for (file, range) in share(self.source, gather, rows.start * step.row_len..rows.end * step.row_len) {
            self.source.files()[file].release(range.start as usize..range.end as usize);
        }
        Ok(floats)
    }
}
