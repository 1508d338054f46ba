//! Laying out files to be written: headers, the place of every tensor, shards and their index.
//!
//! ```text
//!   | N: u64 | {"__metadata__":{"format":"pt"},"name":{"dtype":…,"shape":…,"data_offsets":[…]},…}   spaces | data |
//! ```
//! The order is that of the safetensors crate 0.8: tensors with larger elements first, then by name, and the header is
//! padded with spaces to a multiple of 8. Its metadata is in a fixed order, which the crate's is not.

use mlpack_tensor::{Dtype, Shape};
use serde_json::{Map, Value, json};
use std::ops::Range;

/// A tensor that is going to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTensor {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape, outermost dimension first.
    pub shape: Shape,
}

/// A file that is going to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileLayout {
    /// The length prefix and the header.
    pub preamble: Vec<u8>,
    /// The bytes of each tensor as offsets into the file, in the order given.
    pub ranges: Vec<Range<u64>>,
    /// The length of the file.
    pub byte_len: u64,
}

impl NewTensor {
    /// Bytes of its data; `None` when they do not fit in 64 bits.
    pub fn byte_len(&self) -> Option<u64> {
        self.dtype.byte_len(&self.shape)
    }
}

/// Lays out one file, with the metadata that transformers asks for (`format: pt`). `None` when the sizes do not fit in 64
/// bits.
pub fn lay_out(tensors: &[NewTensor]) -> Option<FileLayout> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by(|a, b| {
        let (a, b) = (&tensors[*a], &tensors[*b]);
        b.dtype.byte_size().cmp(&a.dtype.byte_size()).then_with(|| a.name.cmp(&b.name))
    });
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut ranges = vec![0..0; tensors.len()];
    let mut at = 0u64;
    for i in order {
        let tensor = &tensors[i];
        let end = at.checked_add(tensor.byte_len()?)?;
        let described = json!({"dtype": tensor.dtype.name(), "shape": tensor.shape.dims(), "data_offsets": [at, end]});
        header.insert(tensor.name.clone(), described);
        ranges[i] = at..end;
        at = end;
    }
    let preamble = preamble(header);
    let start = preamble.len() as u64;
    for range in &mut ranges {
        *range = range.start.checked_add(start)?..range.end.checked_add(start)?;
    }
    Some(FileLayout { preamble, ranges, byte_len: at.checked_add(start)? })
}

/// The length prefix and the header.
pub(crate) fn preamble(header: Map<String, Value>) -> Vec<u8> {
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut preamble = (text.len() as u64).to_le_bytes().to_vec();
    preamble.extend(text);
    preamble
}

/// Cuts tensors into shards of at most so many bytes of data, in their order; a larger tensor has one of its own. Gives the
/// number of the shard of each.
pub fn shard(tensors: &[NewTensor], max_byte_len: u64) -> Vec<usize> {
    let (mut shard, mut filled) = (0, 0u64);
    let mut shards = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let byte_len = tensor.byte_len().unwrap_or(u64::MAX);
        if filled > 0 && filled.saturating_add(byte_len) > max_byte_len {
            shard += 1;
            filled = 0;
        }
        filled = filled.saturating_add(byte_len);
        shards.push(shard);
    }
    shards
}

/// The file name of a shard, as transformers writes it; a single file has no number.
pub fn shard_name(shard: usize, shards: usize) -> String {
    if shards == 1 {
        return "model.safetensors".to_owned();
    }
    format!("model-{:05}-of-{shards:05}.safetensors", shard + 1)
}

/// The index of a sharded checkpoint, as transformers writes it: `files` has the name of each tensor's file.
pub fn index(tensors: &[NewTensor], files: &[String]) -> String {
    let total: u64 = tensors.iter().filter_map(NewTensor::byte_len).sum();
    let parameters: u64 = tensors.iter().filter_map(|t| t.shape.element_count()).sum();
    let mut places: Vec<(&str, &str)> =
        tensors.iter().zip(files).map(|(t, file)| (t.name.as_str(), file.as_str())).collect();
    places.sort_unstable();
    let map: Map<String, Value> = places.into_iter().map(|(name, file)| (name.to_owned(), file.into())).collect();
    let index = json!({"metadata": {"total_parameters": parameters, "total_size": total}, "weight_map": map});
    format!("{index:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SafetensorsFile;

    fn tensor(name: &str, dtype: Dtype, dims: &[u64]) -> NewTensor {
        NewTensor { name: name.to_owned(), dtype, shape: Shape::from(dims) }
    }

    #[test]
    fn a_file_is_what_the_safetensors_crate_writes() {
        let tensors = [
            tensor("b", Dtype::BF16, &[3]),
            tensor("a", Dtype::BF16, &[2, 2]),
            tensor("z", Dtype::F32, &[1]),
            tensor("s", Dtype::F16, &[]),
        ];
        let layout = lay_out(&tensors).unwrap();
        let data: Vec<Vec<u8>> =
            tensors.iter().zip(1u8..).map(|(t, i)| vec![i; t.byte_len().unwrap() as usize]).collect();
        let mut ours = layout.preamble.clone();
        ours.resize(layout.byte_len as usize, 0);
        for (range, data) in layout.ranges.iter().zip(&data) {
            ours[range.start as usize..range.end as usize].copy_from_slice(data);
        }
        let views = tensors.iter().zip(&data).map(|(t, data)| {
            let dtype = match t.dtype {
                Dtype::F32 => safetensors::Dtype::F32,
                Dtype::BF16 => safetensors::Dtype::BF16,
                _ => safetensors::Dtype::F16,
            };
            let shape = t.shape.dims().iter().map(|d| *d as usize).collect();
            (t.name.clone(), safetensors::tensor::TensorView::new(dtype, shape, data).unwrap())
        });
        let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let theirs = safetensors::serialize(views, Some(metadata)).unwrap();
        // Equal elements sizes are ordered by type there; the values are where the header says in both.
        let dir = tempfile::tempdir().unwrap();
        let read = |bytes: &[u8]| {
            let path = dir.path().join("f.safetensors");
            std::fs::write(&path, bytes).unwrap();
            let file = SafetensorsFile::open(&path).unwrap();
            file.entries().iter().map(|e| (e.name.clone(), e.dtype, file.bytes(e).to_vec())).collect::<Vec<_>>()
        };
        assert_eq!(read(&ours), read(&theirs));
        assert_eq!(ours.len(), theirs.len());
    }

    #[test]
    fn shards_are_filled_in_order_and_a_large_tensor_is_alone() {
        let tensors = [4, 4, 20, 2, 2].map(|n| tensor("t", Dtype::U8, &[n]));
        assert_eq!(shard(&tensors, 8), [0, 0, 1, 2, 2]);
        assert_eq!(
            (shard_name(0, 1), shard_name(1, 12)),
            ("model.safetensors".into(), "model-00002-of-00012.safetensors".into())
        );
    }
}
