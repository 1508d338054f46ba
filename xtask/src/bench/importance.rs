//! An importance matrix for the synthetic model: random positive values, as a GGUF like those that llama-imatrix writes.

use super::model::{self, Normal};
use anyhow::{Context as _, Result};
use mlpack_gguf::{Layout, TensorSpec};
use mlpack_tensor::{GgmlType, Metadata, Shape};
use std::path::Path;

const CHUNKS: u32 = 8;
const CHUNK_SIZE: u32 = 512;

/// Writes the file, unless it is there.
pub fn write(path: &Path) -> Result<()> {
    if path.is_file() {
        return Ok(());
    }
    let mut metadata = Metadata::new();
    metadata.set("general.type", "imatrix".into());
    metadata.set("imatrix.datasets", vec!["random".to_owned()].into());
    metadata.set("imatrix.chunk_count", CHUNKS.into());
    metadata.set("imatrix.chunk_size", CHUNK_SIZE.into());
    let mut tensors = Vec::new();
    for (layer, columns, name) in projections() {
        let spec = |part: &str, shape| TensorSpec {
            name: format!("blk.{layer}.{name}.weight.{part}"),
            ty: GgmlType::F32,
            shape: Shape::new(shape),
        };
        tensors.extend([spec("in_sum2", vec![1, columns as u64]), spec("counts", vec![1, 1])]);
    }
    let layout = Layout::new(&metadata, tensors).context("the synthetic importance matrix has no layout")?;
    let mut bytes = layout.header().to_vec();
    let mut random = Normal::new(2);
    let count = (CHUNKS * CHUNK_SIZE) as f32;
    for slot in layout.tensors() {
        bytes.resize(slot.range.start as usize, 0);
        for _ in 0..slot.spec.shape.element_count().unwrap_or(0) {
            let value = match slot.spec.name.ends_with(".counts") {
                true => count,
                // A mean of squares: positive, over a few powers of ten.
                false => count * (random.next_f32().powi(2) + 1e-6),
            };
            bytes.extend_from_slice(&value.to_le_bytes());
        }
    }
    bytes.resize(layout.byte_len() as usize, 0);
    std::fs::write(path, bytes).with_context(|| format!("cannot write `{}`", path.display()))
}

/// Layer, row length and GGUF name of every projection.
fn projections() -> impl Iterator<Item = (usize, usize, &'static str)> {
    (0..model::LAYERS).flat_map(|layer| model::PROJECTIONS.map(|(_, name, _, columns)| (layer, columns, name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_projection_has_positive_values_and_a_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imatrix.gguf");
        write(&path).unwrap();
        let file = mlpack_gguf::GgufFile::open(&path).unwrap();
        assert_eq!(file.tensors().len(), 2 * model::LAYERS * model::PROJECTIONS.len());
        for tensor in file.tensors() {
            let values = file.bytes(tensor).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            assert!(values.clone().count() > 0 && values.clone().all(|v| v > 0.0 && v.is_finite()), "{}", tensor.name);
        }
    }
}
