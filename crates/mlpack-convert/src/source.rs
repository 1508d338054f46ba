//! Open: a checkpoint with adapters laid over it, or a GGUF file, as one table of tensors in mapped files.

use crate::{Error, Stored};
use mlpack_arch::{Families, Model};
use mlpack_fs::{MappedFile, hash_file};
use mlpack_gguf::GgufModel;
use mlpack_lora::{Adapter, Overlay};
use mlpack_safetensors::{Checkpoint, SafetensorsFile};
use mlpack_tensor::Shape;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What is read. Only headers are in memory.
#[derive(Debug)]
pub struct Source {
    weights: Weights,
    tensors: Vec<SourceTensor>,
    /// What a person should know before relying on the result.
    pub warnings: Vec<String>,
}

/// The formats that weights are read from.
#[derive(Debug)]
enum Weights {
    Checkpoint(Checkpoint, Overlay),
    Gguf(GgufModel),
    /// The tensors of an adapter, for themselves.
    Adapter(SafetensorsFile),
}

/// A tensor of a source, whatever its format.
#[derive(Clone, Debug)]
pub struct SourceTensor {
    /// Its name in the source.
    pub name: String,
    /// How its elements are stored.
    pub stored: Stored,
    /// Its shape, outermost dimension first.
    pub shape: Shape,
    /// The file that holds it, as an index into [`Source::files`].
    pub file: usize,
    /// Its bytes, as offsets into that file.
    pub range: Range<u64>,
}

impl Source {
    /// Opens a checkpoint directory and lays adapters over it, each with its weight (1 for a plain merge).
    pub fn open(base: &Path, adapters: &[(PathBuf, f64)]) -> Result<Source, Error> {
        let checkpoint = Checkpoint::open(base)?;
        let adapters = adapters
            .iter()
            .map(|(dir, weight)| Ok((Adapter::open(dir)?, *weight)))
            .collect::<Result<Vec<_>, mlpack_lora::Error>>()?;
        let overlay = Overlay::new(adapters, &checkpoint)?;
        let mut warnings = Vec::new();
        for (adapter, _) in overlay.adapters() {
            warnings.extend(tokenizer_differences(base, adapter)?);
        }
        let tensors = checkpoint.tensors().iter().map(|tensor| SourceTensor {
            name: tensor.name.clone(),
            stored: Stored::Safetensors(tensor.dtype),
            shape: tensor.shape.clone(),
            file: tensor.shard,
            range: checkpoint.entry(tensor).range.clone(),
        });
        Ok(Source { tensors: tensors.collect(), weights: Weights::Checkpoint(checkpoint, overlay), warnings })
    }

    /// Opens a GGUF file, or the first of a split model's.
    pub fn open_gguf(path: &Path) -> Result<Source, Error> {
        let model = GgufModel::open(path)?;
        let tensors = model.tensors().map(|(file, tensor)| SourceTensor {
            name: tensor.name.clone(),
            stored: Stored::Ggml(tensor.ty),
            shape: tensor.shape.clone(),
            file,
            range: tensor.range.clone(),
        });
        Ok(Source { tensors: tensors.collect(), weights: Weights::Gguf(model), warnings: Vec::new() })
    }

    /// Opens the weights of an adapter as tensors of their own, in the order of the file.
    pub fn open_adapter(dir: &Path) -> Result<Source, Error> {
        let file = SafetensorsFile::open(&dir.join("adapter_model.safetensors"))?;
        let mut tensors: Vec<SourceTensor> = file
            .entries()
            .iter()
            .map(|entry| SourceTensor {
                name: entry.name.clone(),
                stored: Stored::Safetensors(entry.dtype),
                shape: entry.shape.clone(),
                file: 0,
                range: entry.range.clone(),
            })
            .collect();
        tensors.sort_by_key(|tensor| tensor.range.start);
        Ok(Source { tensors, weights: Weights::Adapter(file), warnings: Vec::new() })
    }

    /// The tensors, file by file.
    pub fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    /// The files that hold the tensors.
    pub fn files(&self) -> Vec<&MappedFile> {
        match &self.weights {
            Weights::Checkpoint(checkpoint, _) => checkpoint.shards().iter().map(|shard| shard.map()).collect(),
            Weights::Gguf(model) => model.files().iter().map(|file| file.map()).collect(),
            Weights::Adapter(file) => vec![file.map()],
        }
    }

    /// The file that holds a tensor.
    pub fn file(&self, tensor: &SourceTensor) -> &MappedFile {
        match &self.weights {
            Weights::Checkpoint(checkpoint, _) => checkpoint.shards()[tensor.file].map(),
            Weights::Gguf(model) => model.files()[tensor.file].map(),
            Weights::Adapter(file) => file.map(),
        }
    }

    /// The bytes of one of [`Source::tensors`], without its adapters' deltas.
    pub fn bytes(&self, tensor: &SourceTensor) -> &[u8] {
        &self.file(tensor).bytes()[tensor.range.start as usize..tensor.range.end as usize]
    }

    /// Bytes of all files together.
    pub fn byte_len(&self) -> u64 {
        self.files().iter().map(|file| file.byte_len()).sum()
    }

    /// The adapters with their weights, in the order given.
    pub fn adapters(&self) -> &[(Adapter, f64)] {
        self.overlay().map_or(&[], Overlay::adapters)
    }

    /// The checkpoint, where that is what was opened.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        match &self.weights {
            Weights::Checkpoint(checkpoint, _) => Some(checkpoint),
            Weights::Gguf(_) | Weights::Adapter(_) => None,
        }
    }

    /// The adapters' deltas by position of the tensor, where a checkpoint was opened.
    pub fn overlay(&self) -> Option<&Overlay> {
        match &self.weights {
            Weights::Checkpoint(_, overlay) => Some(overlay),
            Weights::Gguf(_) | Weights::Adapter(_) => None,
        }
    }

    /// The GGUF model, where that is what was opened.
    pub fn gguf(&self) -> Option<&GgufModel> {
        match &self.weights {
            Weights::Checkpoint(..) | Weights::Adapter(_) => None,
            Weights::Gguf(model) => Some(model),
        }
    }

    /// Whether it is an adapter for itself.
    pub fn is_adapter(&self) -> bool {
        matches!(self.weights, Weights::Adapter(_))
    }

    /// How many adapters change the tensor at a position.
    pub(crate) fn changes(&self, position: usize) -> &[mlpack_lora::Change] {
        self.overlay().map_or(&[], |overlay| overlay.changes(position))
    }

    /// Rows of a checkpoint's tensor with the adapters' deltas added; arguments as [`Overlay::merge_rows`] has them.
    pub(crate) fn merge_rows(
        &self,
        position: usize,
        rows: &[u64],
        base_rows: &[u8],
        sum: &mut Vec<f64>,
        out: &mut [u8],
    ) -> Result<(), Error> {
        match &self.weights {
            Weights::Checkpoint(checkpoint, overlay) => {
                Ok(overlay.merge_rows(position, &checkpoint.tensors()[position], rows, base_rows, sum, out)?)
            }
            Weights::Gguf(_) | Weights::Adapter(_) => unreachable!("adapters are laid over checkpoints alone"),
        }
    }
}

/// Opens the model that a checkpoint is: its architecture, config and tokenizer.
///
/// # Errors
/// [`Error::NotACheckpoint`] for a GGUF source, which describes itself.
pub fn open_model(source: &Source, families: &Families) -> Result<Model, Error> {
    let Some(checkpoint) = source.checkpoint() else {
        let path = source.files().first().map(|file| file.path().to_owned()).unwrap_or_default();
        return Err(Error::NotACheckpoint { path });
    };
    Ok(Model::open(checkpoint.dir(), families)?)
}

/// Tokenizer files that an adapter carries and that differ from the base's: the base's are used, so say so.
fn tokenizer_differences(base: &Path, adapter: &Adapter) -> Result<Vec<String>, Error> {
    const FILES: &[&str] = &["tokenizer.json", "tokenizer.model", "chat_template.jinja", "added_tokens.json"];
    let mut warnings = Vec::new();
    for name in FILES {
        let theirs = adapter.dir().join(name);
        if !theirs.is_file() {
            continue;
        }
        let ours = base.join(name);
        if !ours.is_file() || hash_file(&ours)?.0 != hash_file(&theirs)?.0 {
            warnings.push(format!(
                "adapter `{}` carries a {name} that differs from the base's; the base's is used",
                adapter.dir().display()
            ));
        }
    }
    Ok(warnings)
}
