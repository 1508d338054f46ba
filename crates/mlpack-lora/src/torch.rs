//! PyTorch's own format (`torch.save`, since 1.6): a zip archive of stored members.
//!
//! ```text
//!   NAME/data.pkl      a pickle: names, shapes, strides, and which storage each tensor lies in
//!   NAME/data/0        storage 0: plain little-endian elements
//!   NAME/data/1        …
//!   central directory, end record
//! ```
//! Format: `torch/serialization.py` of PyTorch 2.15, `.ZIP File Format Specification` 6.3.10. Members are read in the
//! map, so tensors are ranges of the file as they are in safetensors.

mod pickle;
mod zip;

use crate::Error;
use crate::matrix::AdapterTensor;
use mlpack_fs::{MappedFile, ReadError};
use mlpack_tensor::{Dtype, Escaped, Shape};
use pickle::Value;
use std::ops::Range;
use std::path::Path;

/// The longest pickle that is read: names and shapes of some hundred thousand tensors.
const MAX_PICKLE_LEN: u64 = 64 << 20;

/// What is wrong with a file of PyTorch's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TorchProblem {
    /// It asks for something to be called that rebuilds no tensor.
    #[error("it asks to call `{}`; nothing was run", Escaped(.0))]
    Call(String),
    /// The bytes end too early, or a count promises too much.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The archive or the pickle has a part that `torch.save` does not write.
    #[error("{0}")]
    Unexpected(String),
    /// A format from before PyTorch 1.6.
    #[error("the format of PyTorch before 1.6")]
    Legacy,
}

/// Whether the first bytes are those of a zip archive or a pickle.
pub(crate) fn is_torch(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || is_bare_pickle(bytes)
}

/// A pickle of protocol 2 to 5. A safetensors file begins with the length of its header, whose eighth byte is 0.
fn is_bare_pickle(bytes: &[u8]) -> bool {
    matches!(bytes, [0x80, 2..=5, ..]) && bytes.get(7) != Some(&0)
}

/// The tensors of a file, in the order of names. Nothing in it is executed.
pub(crate) fn read(map: &MappedFile) -> Result<Vec<AdapterTensor>, Error> {
    let bytes = map.bytes();
    let refuse = |problem| Error::Torch { path: map.path().to_owned(), problem };
    if is_bare_pickle(bytes) {
        // What it would call is worth more than its age.
        return Err(refuse(
            pickle::parse(&bytes[..bytes.len().min(MAX_PICKLE_LEN as usize)])
                .err()
                .filter(|problem| matches!(problem, TorchProblem::Call(_)))
                .unwrap_or(TorchProblem::Legacy),
        ));
    }
    tensors(map.path(), bytes).map_err(refuse)
}

fn tensors(path: &Path, bytes: &[u8]) -> Result<Vec<AdapterTensor>, TorchProblem> {
    let unexpected = |text: String| TorchProblem::Unexpected(text);
    let members = zip::members(bytes)?;
    let (root, pickle) = members
        .iter()
        .find_map(|(name, range)| Some((name.strip_suffix("data.pkl")?, range.clone())))
        .ok_or_else(|| unexpected("the archive has no data.pkl".to_owned()))?;
    if let Some(order) = members.get(&format!("{root}byteorder"))
        && &bytes[order.start as usize..order.end as usize] != b"little"
    {
        return Err(unexpected("its elements are big-endian".to_owned()));
    }
    if pickle.end - pickle.start > MAX_PICKLE_LEN {
        return Err(unexpected(format!("a data.pkl of {} bytes", pickle.end - pickle.start)));
    }
    let mut value = pickle::parse(&bytes[pickle.start as usize..pickle.end as usize])?;
    // A training checkpoint has the tensors one level down.
    for key in ["state_dict", "model_state_dict", "model", "module"] {
        if let Some(inner @ Value::Dict(_)) = value.entry(key) {
            value = inner.clone();
        }
    }
    let Value::Dict(entries) = &value else {
        return Err(unexpected(format!("`{}` holds no map of tensors", path.display())));
    };
    let mut found = Vec::new();
    for (name, value) in entries.iter() {
        let Value::Text(name) = name else {
            return Err(unexpected("a tensor's name is not text".to_owned()));
        };
        let Value::Tensor(tensor) = value else {
            return Err(unexpected(format!("`{}` is not a tensor", Escaped(name))));
        };
        let key = format!("{root}data/{}", tensor.storage.key);
        let storage = members.get(&key).ok_or_else(|| unexpected(format!("the archive has no {}", Escaped(&key))))?;
        found.push(place(name, tensor, storage)?);
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Where a tensor lies in the file, checked against its storage.
fn place(name: &str, tensor: &pickle::Tensor, storage: &Range<u64>) -> Result<AdapterTensor, TorchProblem> {
    let dtype = tensor.storage.dtype;
    let outside = || TorchProblem::Unexpected(format!("tensor `{}` lies outside its storage", Escaped(name)));
    let shape = Shape::new(tensor.size.clone());
    let count = shape.element_count().ok_or_else(outside)?;
    let mut last = 0u64;
    for (size, stride) in tensor.size.iter().zip(&tensor.stride) {
        last = size.saturating_sub(1).checked_mul(*stride).and_then(|n| n.checked_add(last)).ok_or_else(outside)?;
    }
    let elements = if count == 0 { 0 } else { last.checked_add(1).ok_or_else(outside)? };
    let start = tensor.offset.checked_mul(dtype.byte_size()).ok_or_else(outside)?;
    let byte_len = elements.checked_mul(dtype.byte_size()).ok_or_else(outside)?;
    let end = start.checked_add(byte_len).filter(|end| *end <= storage.end - storage.start).ok_or_else(outside)?;
    let found = AdapterTensor {
        name: name.to_owned(),
        dtype,
        shape,
        strides: tensor.stride.clone(),
        range: storage.start + start..storage.start + end,
    };
    if found.shape.rank() > 2 && !found.is_row_major() {
        let name = Escaped(name);
        return Err(TorchProblem::Unexpected(format!("tensor `{name}` of more than two dimensions is not contiguous")));
    }
    Ok(found)
}

/// The dtype of a storage class.
fn storage_dtype(class: &str) -> Option<Dtype> {
    Some(match class {
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "DoubleStorage" => Dtype::F64,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
