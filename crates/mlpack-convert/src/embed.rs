//! Metadata that is added to a planned GGUF file, such as where it comes from.

use crate::{Error, Output, Stored};
use mlpack_gguf::{Layout, TensorSpec, header_metadata};
use mlpack_tensor::MetaValue;

/// Adds keys at the end of an output's metadata and moves its tensors accordingly. Keys that are there keep their values.
/// Does nothing to an output that is no GGUF file.
pub fn add_metadata(output: &mut Output, entries: &[(String, MetaValue)]) -> Result<(), Error> {
    let Some(mut metadata) = header_metadata(&output.preamble) else { return Ok(()) };
    for (key, value) in entries {
        if metadata.find(key).is_none() {
            metadata.push(key.clone(), value.clone());
        }
    }
    let specs: Option<Vec<TensorSpec>> = output
        .tensors
        .iter()
        .map(|t| match t.stored {
            Stored::Ggml(ty) => Some(TensorSpec { name: t.name.clone(), ty, shape: t.shape.clone() }),
            _ => None,
        })
        .collect();
    let Some(specs) = specs else { return Ok(()) };
    let layout =
        Layout::new(&metadata, specs).map_err(|source| Error::Layout { file: output.file_name.clone(), source })?;
    for (tensor, slot) in output.tensors.iter_mut().zip(layout.tensors()) {
        tensor.range = slot.range.clone();
        tensor.padded_end = slot.padded_end;
    }
    output.preamble = layout.header().to_vec();
    output.byte_len = layout.byte_len();
    Ok(())
}
