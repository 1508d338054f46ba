//! Metadata that is added to a planned GGUF file or ONNX graph, such as where it comes from.

use crate::{Error, Output, Stored};
use mlpack_gguf::{Layout, TensorSpec, header_metadata};
use mlpack_tensor::MetaValue;

/// Adds keys at the end of an output's metadata and moves its tensors accordingly. Keys that are there keep their values.
/// A graph has text alone, so numbers are written out. Does nothing to other outputs.
pub fn add_metadata(output: &mut Output, entries: &[(String, MetaValue)]) -> Result<(), Error> {
    if output.file_name.ends_with(".onnx") {
        let text = |value: &MetaValue| match value {
            MetaValue::String(text) => text.clone(),
            MetaValue::U32(number) => number.to_string(),
            other => unreachable!("{other:?} is not said of where a file comes from"),
        };
        let entries: Vec<_> = entries.iter().map(|(key, value)| (key.clone(), text(value))).collect();
        mlpack_onnx::add_metadata(&mut output.preamble, &entries);
        output.byte_len = output.preamble.len() as u64;
        return Ok(());
    }
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
