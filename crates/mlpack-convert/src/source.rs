//! Open: a checkpoint with adapters laid over it, or a GGUF file, as one table of tensors in mapped files.

use crate::describe::{Change, Changes};
use crate::gather::Window;
use crate::{Error, Stored};
use mlpack_arch::{Families, Model};
use mlpack_fs::{MappedFile, Operation, read_bounded, write_atomic};
use mlpack_gguf::GgufModel;
use mlpack_lora::{Adapter, BaseBytes, ChangeTally, MergeRoom, Overlay, OverlayOptions, Rows};
use mlpack_safetensors::{Checkpoint, SafetensorsFile};
use mlpack_tensor::Shape;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The largest file of a description that is copied.
const MAX_DESCRIPTION_LEN: u64 = 512 << 20;

/// What is read. Only headers are in memory.
#[derive(Debug)]
pub struct Source {
    weights: Weights,
    tensors: Vec<SourceTensor>,
    changed_files: Vec<Change>,
    /// What a person should know before relying on the result.
    pub warnings: Vec<String>,
}

/// The formats that weights are read from.
#[derive(Debug)]
enum Weights {
    /// Beside the checkpoint files of modules that lie in folders of their own.
    Checkpoint(Checkpoint, Box<Overlay>, Vec<SafetensorsFile>),
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
    /// What adapters do to it, as an index into [`Overlay::targets`].
    pub target: Option<usize>,
    /// Whether its rows are those of the range. The rows of a tensor that adapters resize or add are not.
    pub in_place: bool,
}

impl Source {
    /// Opens a checkpoint directory and lays adapters over it, each with its weight (1 for a plain merge).
    ///
    /// # Errors
    /// What is wrong with the checkpoint; or everything that is wrong with the adapters, together.
    pub fn open(base: &Path, adapters: &[(PathBuf, f64)], options: &OverlayOptions) -> Result<Source, Error> {
        let checkpoint = Checkpoint::open(base)?;
        let adapters = adapters
            .iter()
            .map(|(dir, weight)| Ok((Adapter::open(dir)?, *weight)))
            .collect::<Result<Vec<_>, mlpack_lora::Error>>()?;
        let overlay = Overlay::new(adapters, &checkpoint, options)?;
        let changes = Changes::new(&checkpoint, &overlay)?;
        let warnings = overlay.notes().iter().cloned().chain(changes.notes).collect();
        let tensors = overlaid(&checkpoint, &overlay);
        let changed_files = changes.files;
        Ok(Source {
            tensors,
            changed_files,
            weights: Weights::Checkpoint(checkpoint, Box::new(overlay), Vec::new()),
            warnings,
        })
    }

    /// Opens the matrices that modules.json puts after pooling, too: tensors `FOLDER.NAME` behind all others, which adapters
    /// leave as they are.
    ///
    /// # Errors
    /// When modules.json or one of the files cannot be read.
    pub fn with_modules(mut self) -> Result<Source, Error> {
        let Weights::Checkpoint(checkpoint, _, modules) = &mut self.weights else { return Ok(self) };
        for folder in mlpack_arch::dense_folders(checkpoint.dir())? {
            let file = SafetensorsFile::open(&checkpoint.dir().join(&folder).join("model.safetensors"))?;
            let place = checkpoint.shards().len() + modules.len();
            let mut entries: Vec<_> = file.entries().iter().collect();
            entries.sort_by_key(|entry| entry.range.start);
            self.tensors.extend(entries.into_iter().map(|entry| SourceTensor {
                name: format!("{folder}.{}", entry.name),
                stored: Stored::Safetensors(entry.dtype),
                shape: entry.shape.clone(),
                file: place,
                range: entry.range.clone(),
                target: None,
                in_place: true,
            }));
            modules.push(file);
        }
        Ok(self)
    }

    /// Whether a tensor is one of [`Source::with_modules`].
    pub(crate) fn is_of_module(&self, tensor: &SourceTensor) -> bool {
        self.checkpoint().is_some_and(|checkpoint| tensor.file >= checkpoint.shards().len())
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
            target: None,
            in_place: true,
        });
        let tensors = tensors.collect();
        Ok(Source { tensors, changed_files: Vec::new(), weights: Weights::Gguf(model), warnings: Vec::new() })
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
                target: None,
                in_place: true,
            })
            .collect();
        tensors.sort_by_key(|tensor| tensor.range.start);
        Ok(Source { tensors, changed_files: Vec::new(), weights: Weights::Adapter(file), warnings: Vec::new() })
    }

    /// The tensors, file by file.
    pub fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    /// The files that hold the tensors.
    pub fn files(&self) -> Vec<&MappedFile> {
        match &self.weights {
            Weights::Checkpoint(checkpoint, _, modules) => {
                checkpoint.shards().iter().chain(modules).map(|shard| shard.map()).collect()
            }
            Weights::Gguf(model) => model.files().iter().map(|file| file.map()).collect(),
            Weights::Adapter(file) => vec![file.map()],
        }
    }

    /// The file that holds a tensor.
    pub fn file(&self, tensor: &SourceTensor) -> &MappedFile {
        match &self.weights {
            Weights::Checkpoint(checkpoint, _, modules) => match tensor.file.checked_sub(checkpoint.shards().len()) {
                None => checkpoint.shards()[tensor.file].map(),
                Some(module) => modules[module].map(),
            },
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
            Weights::Checkpoint(checkpoint, ..) => Some(checkpoint),
            Weights::Gguf(_) | Weights::Adapter(_) => None,
        }
    }

    /// The adapters' deltas by position of the tensor, where a checkpoint was opened.
    pub fn overlay(&self) -> Option<&Overlay> {
        match &self.weights {
            Weights::Checkpoint(_, overlay, _) => Some(overlay),
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

    /// Files of the model's description that adapters change.
    pub(crate) fn changed_files(&self) -> &[Change] {
        &self.changed_files
    }

    /// Whether adapters change files of the model's description.
    pub fn is_redescribed(&self) -> bool {
        !self.changed_files.is_empty()
    }

    /// Makes a directory a description of the model as adapters leave it: links to the base's files, and the changed ones.
    /// Weights are not among them.
    ///
    /// # Errors
    /// When a file cannot be listed, linked or written.
    pub fn describe_into(&self, dir: &Path) -> Result<(), Error> {
        let Some(checkpoint) = self.checkpoint() else { return Ok(()) };
        let base = checkpoint.dir();
        let list_error = |e| mlpack_fs::Error::io(Operation::List, base, e);
        for entry in std::fs::read_dir(base).map_err(list_error)? {
            let name = entry.map_err(list_error)?.file_name();
            let changed = self.changed_files.iter().any(|file| *file.name == *name);
            if changed || name.to_string_lossy().ends_with(".safetensors") {
                continue;
            }
            let path = std::path::absolute(base.join(&name)).map_err(list_error)?;
            let link = dir.join(name);
            std::os::unix::fs::symlink(path, &link).map_err(|e| mlpack_fs::Error::io(Operation::Create, link, e))?;
        }
        for file in &self.changed_files {
            match &file.text {
                Some(text) => drop(write_atomic(&dir.join(&file.name), text.as_bytes())?),
                None => drop(write_atomic(&dir.join(&file.name), &read_bounded(&file.from, MAX_DESCRIPTION_LEN)?)?),
            }
        }
        Ok(())
    }

    /// The file that one of [`Source::describe_into`]'s is, or was made from.
    pub fn origin_of(&self, path: &Path) -> PathBuf {
        let name = path.file_name().unwrap_or_default();
        let changed = self.changed_files.iter().find(|file| *file.name == *name).map(|file| file.from.clone());
        changed.or_else(|| Some(self.checkpoint()?.dir().join(name))).unwrap_or_else(|| path.to_owned())
    }

    /// Bytes that merging any rows of a tensor needs besides its slab.
    pub(crate) fn fixed_byte_len(&self, position: usize) -> u64 {
        let target = self.tensors[position].target;
        self.overlay().zip(target).map_or(0, |(overlay, target)| overlay.fixed_byte_len(target))
    }

    /// Whether a tensor is merged with products that a GPU may compute.
    pub(crate) fn asks_for_products(&self, position: usize) -> bool {
        let Weights::Checkpoint(checkpoint, overlay, _) = &self.weights else { return false };
        let base_len = |target: usize| {
            let base = overlay.targets()[target].base;
            base.map_or(0, |position| checkpoint.bytes(&checkpoint.tensors()[position]).len() as u64)
        };
        self.tensors[position].target.is_some_and(|target| overlay.asks_for_products(target, base_len(target)))
    }

    /// Bytes that merging needs for each element of a slab, besides those of a single sum.
    pub(crate) fn bytes_per_element(&self) -> u64 {
        self.overlay().map_or(0, Overlay::bytes_per_element)
    }

    /// Rows of a tensor that adapters change; `row_len` elements each, which need not be those of the innermost dimension. What
    /// the window has of the base is not looked for in the map.
    pub(crate) fn merge_rows(
        &self,
        position: usize,
        rows: Rows<'_>,
        window: Option<Window<'_>>,
        room: &mut MergeRoom,
        tally: Option<&ChangeTally>,
        out: &mut [u8],
    ) -> Result<(), Error> {
        let (Weights::Checkpoint(checkpoint, overlay, _), Some(target)) =
            (&self.weights, self.tensors[position].target)
        else {
            unreachable!("the caller asks for a tensor that adapters change")
        };
        let base = overlay.targets()[target].base.map(|position| {
            let tensor = &checkpoint.tensors()[position];
            let base = BaseBytes::new(checkpoint.bytes(tensor));
            let part = window.filter(|window| window.file == tensor.shard);
            let start = part.and_then(|part| part.start.checked_sub(checkpoint.entry(tensor).range.start));
            part.zip(start).map_or(base, |(part, start)| base.with_part(start as usize, part.bytes))
        });
        Ok(overlay.merge_rows(target, rows, base.unwrap_or_default(), room, tally, out)?)
    }
}

/// The tensors of a checkpoint as adapters leave them: some have another shape, and new ones are in the file of the tensor
/// that they start from, in the order of names.
fn overlaid(checkpoint: &Checkpoint, overlay: &Overlay) -> Vec<SourceTensor> {
    let tensor = |(position, tensor): (usize, &mlpack_safetensors::TensorInfo)| {
        let target = overlay.target_of(position);
        let shape = target.map_or(&tensor.shape, |target| &overlay.targets()[target].shape).clone();
        SourceTensor {
            name: tensor.name.clone(),
            stored: Stored::Safetensors(tensor.dtype),
            file: tensor.shard,
            range: checkpoint.entry(tensor).range.clone(),
            target,
            in_place: shape == tensor.shape,
            shape,
        }
    };
    let mut tensors: Vec<SourceTensor> = checkpoint.tensors().iter().enumerate().map(tensor).collect();
    for target in overlay.new_targets() {
        let new = &overlay.targets()[target];
        let file = new.base.map_or(checkpoint.shards().len() - 1, |position| checkpoint.tensors()[position].shard);
        let before = tensors.partition_point(|t| (t.file, &t.name) < (file, &new.name));
        let tensor = SourceTensor {
            name: new.name.clone(),
            stored: Stored::Safetensors(new.dtype),
            shape: new.shape.clone(),
            file,
            range: 0..0,
            target: Some(target),
            in_place: false,
        };
        tensors.insert(before, tensor);
    }
    tensors
}

/// Opens the model that a checkpoint is: its architecture, config and tokenizer, from its own directory or from one that
/// [`Source::describe_into`] made.
///
/// # Errors
/// [`Error::NotACheckpoint`] for a GGUF source, which describes itself.
pub fn open_model(source: &Source, described: Option<&Path>, families: &Families) -> Result<Model, Error> {
    let Some(checkpoint) = source.checkpoint() else {
        let path = source.files().first().map(|file| file.path().to_owned()).unwrap_or_default();
        return Err(Error::NotACheckpoint { path });
    };
    Ok(Model::open(described.unwrap_or(checkpoint.dir()), families)?)
}
