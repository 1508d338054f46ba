//! The weights file of an adapter, whatever its format: named tensors in a map.

use crate::matrix::AdapterTensor;
use crate::{Error, torch};
use mlpack_fs::MappedFile;
use mlpack_safetensors::SafetensorsFile;
use std::ops::Range;
use std::path::Path;

/// An opened weights file.
#[derive(Debug)]
pub(crate) struct Weights {
    file: File,
    tensors: Vec<AdapterTensor>,
}

#[derive(Debug)]
enum File {
    Safetensors(SafetensorsFile),
    Torch(MappedFile),
}

impl Weights {
    /// Opens a file by what it holds: a zip archive is PyTorch's, anything else has to be safetensors.
    pub(crate) fn open(path: &Path) -> Result<Weights, Error> {
        let map = MappedFile::open(path)?;
        if torch::is_torch(map.bytes()) {
            let tensors = torch::read(&map)?;
            return Ok(Weights { file: File::Torch(map), tensors });
        }
        let file = SafetensorsFile::open(path)?;
        let tensors = file.entries().iter().map(|entry| AdapterTensor {
            name: entry.name.clone(),
            dtype: entry.dtype,
            strides: AdapterTensor::row_major(&entry.shape),
            shape: entry.shape.clone(),
            range: entry.range.clone(),
        });
        Ok(Weights { tensors: tensors.collect(), file: File::Safetensors(file) })
    }

    pub(crate) fn path(&self) -> &Path {
        self.map().path()
    }

    pub(crate) fn tensors(&self) -> &[AdapterTensor] {
        &self.tensors
    }

    pub(crate) fn bytes(&self, tensor: usize) -> &[u8] {
        let range = &self.tensors[tensor].range;
        &self.map().bytes()[range.start as usize..range.end as usize]
    }

    /// Says that some bytes of a tensor are not needed for now, so that a large adapter does not stay in memory.
    pub(crate) fn release(&self, tensor: usize, bytes: Range<u64>) {
        let start = self.tensors[tensor].range.start;
        self.map().release((start + bytes.start) as usize..(start + bytes.end) as usize);
    }

    pub(crate) fn map(&self) -> &MappedFile {
        match &self.file {
            File::Safetensors(file) => file.map(),
            File::Torch(map) => map,
        }
    }
}
