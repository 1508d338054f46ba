//! Metadata that is added to a planned GGUF or safetensors file or ONNX graph, such as where it comes from.

use crate::{Error, Output, Stored};
use mlpack_gguf::{Layout, TensorSpec, header_metadata};
use mlpack_tensor::MetaValue;

/// Adds keys at the end of an output's metadata and moves its tensors accordingly. Keys that are there keep their values.
/// Graphs and safetensors files have text alone, so numbers are written out there. Does nothing to other outputs.
pub fn add_metadata(output: &mut Output, entries: &[(String, MetaValue)]) -> Result<(), Error> {
    if output.file_name.ends_with(".onnx") {
        mlpack_onnx::add_metadata(&mut output.preamble, &texts(entries));
        output.byte_len = output.preamble.len() as u64;
        return Ok(());
    }
    if output.tensors.iter().any(|tensor| matches!(tensor.stored, Stored::Safetensors(_))) {
        add_to_safetensors(output, &texts(entries));
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

fn texts(entries: &[(String, MetaValue)]) -> Vec<(String, String)> {
    let text = |value: &MetaValue| match value {
        MetaValue::String(text) => text.clone(),
        MetaValue::U32(number) => number.to_string(),
        other => unreachable!("{other:?} is not said of where a file comes from"),
    };
    entries.iter().map(|(key, value)| (key.clone(), text(value))).collect()
}

fn add_to_safetensors(output: &mut Output, entries: &[(String, String)]) {
    let preamble = mlpack_safetensors::add_metadata(&output.preamble, entries)
        .expect("a planned file has a header that was checked");
    let (before, now) = (output.preamble.len() as u64, preamble.len() as u64);
    for tensor in &mut output.tensors {
        tensor.range = tensor.range.start - before + now..tensor.range.end - before + now;
        tensor.padded_end = tensor.padded_end - before + now;
    }
    output.byte_len = output.byte_len - before + now;
    output.preamble = preamble;
}
