//! An adapter on disk: PEFT's directory, MLX's directory, or a single file of kohya's.

use crate::key::{Key, Role};
use crate::matrix::{AdapterTensor, Matrix, is_summable};
use crate::weights::Weights;
use crate::{AdapterConfig, Error, Method, Misfit, Unmatched};
use mlpack_fs::FileStamp;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub(crate) const CONFIG_NAME: &str = "adapter_config.json";

/// Files that hold an adapter's weights, best first.
const WEIGHTS_NAMES: &[&str] =
    &["adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors", "adapter_model.pt"];

/// An adapter whose headers are read.
#[derive(Debug)]
pub struct Adapter {
    path: PathBuf,
    config_path: Option<PathBuf>,
    config: AdapterConfig,
    weights: Weights,
    modules: BTreeMap<(String, usize), Module>,
    repeated: Vec<Unmatched>,
}

/// The tensors of one module, as indices into the adapter's, by what they are.
pub(crate) type Module = BTreeMap<Role, usize>;

impl Adapter {
    /// Opens an adapter: a directory, or a file of weights with or without a config beside it. Headers only.
    ///
    /// # Errors
    /// [`Error::NotAnAdapter`] and [`Error::DeepSpeed`] where there is nothing that can be read as one, the errors of
    /// [`AdapterConfig::open`], and those of the weights' format.
    pub fn open(path: &Path) -> Result<Adapter, Error> {
        let not_an_adapter =
            |missing| Error::NotAnAdapter { path: path.to_owned(), missing, found: what_is_there(path) };
        let dir = if path.is_file() { path.parent().unwrap_or(Path::new("")) } else { path };
        let config_path = dir.join(CONFIG_NAME);
        let has_config = config_path.is_file();
        let weights_path = if path.is_file() {
            path.to_owned()
        } else {
            if let Some(found) = deepspeed(dir) {
                return Err(Error::DeepSpeed { path: dir.to_owned(), found });
            }
            if !has_config {
                return Err(not_an_adapter(CONFIG_NAME));
            }
            let found = WEIGHTS_NAMES.iter().map(|name| dir.join(name)).find(|path| path.is_file());
            found.ok_or_else(|| not_an_adapter(WEIGHTS_NAMES[0]))?
        };
        let config = if has_config { AdapterConfig::open(&config_path)? } else { AdapterConfig::kohya() };
        let weights = Weights::open(&weights_path)?;
        if weights.tensors().is_empty() {
            return Err(Error::Empty { path: weights_path });
        }
        let (modules, repeated) = group(weights.tensors());
        // State dicts have copies of what was trained whole; a copy says nothing else.
        let tensors = weights.tensors();
        let differs = |(copy, first): &(usize, usize)| {
            let (a, b) = (&tensors[*copy], &tensors[*first]);
            (a.dtype, &a.shape, &a.strides) != (b.dtype, &b.shape, &b.strides)
                || weights.bytes(*copy) != weights.bytes(*first)
        };
        let name = |index: usize| tensors[index].name.clone();
        let named = |(copy, first): (usize, usize)| Unmatched::Repeated { key: name(copy), first: name(first) };
        let repeated = repeated.into_iter().filter(differs).map(named).collect();
        let config_path = has_config.then_some(config_path);
        let adapter = Adapter { path: path.to_owned(), config_path, config, weights, modules, repeated };
        if !has_config
            && !adapter.modules.values().any(|m| {
                m.contains_key(&Role::A)
                    || m.contains_key(&Role::HadaW1A)
                    || m.contains_key(&Role::LokrW2)
                    || m.contains_key(&Role::LokrW2A)
            })
        {
            return Err(not_an_adapter(CONFIG_NAME));
        }
        Ok(adapter)
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of the files that belong to it.
    pub fn dir(&self) -> &Path {
        self.weights.path().parent().unwrap_or(Path::new(""))
    }

    /// The config.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// The path of the weights file.
    pub fn weights_path(&self) -> &Path {
        self.weights.path()
    }

    /// The path of the config; a single file of kohya's has none.
    pub fn config_path(&self) -> Option<&Path> {
        self.config_path.as_deref()
    }

    /// What the weights file was when it was opened.
    pub fn stamp(&self) -> &FileStamp {
        self.weights.map().stamp()
    }

    /// The tensors of the weights file.
    pub fn tensors(&self) -> &[AdapterTensor] {
        self.weights.tensors()
    }

    /// The bytes of one of [`Adapter::tensors`], from its first element to its last.
    pub fn bytes(&self, tensor: usize) -> &[u8] {
        self.weights.bytes(tensor)
    }

    /// Says that a tensor is not needed for now.
    pub(crate) fn release(&self, tensor: usize) {
        let range = &self.tensors()[tensor].range;
        self.weights.release(tensor, 0..range.end - range.start);
    }

    /// Says that rows of a matrix are not needed for now.
    pub(crate) fn release_rows(&self, matrix: &Matrix, rows: Range<u64>) {
        self.weights.release(matrix.tensor, matrix.byte_range(rows));
    }

    /// The tensors by module, in the order of names.
    pub(crate) fn modules(&self) -> &BTreeMap<(String, usize), Module> {
        &self.modules
    }

    /// Tensors that have the place of another one.
    pub(crate) fn repeated(&self) -> &[Unmatched] {
        &self.repeated
    }

    /// Tensors whose values cannot be added to anything: integers, NaN and infinity.
    pub(crate) fn unusable(&self) -> Vec<Misfit> {
        let mut misfits = Vec::new();
        for (index, tensor) in self.tensors().iter().enumerate() {
            let misfit = |expected: &str, found: String| Misfit {
                key: tensor.name.clone(),
                base: None,
                expected: expected.to_owned(),
                found,
            };
            if !is_summable(tensor.dtype) {
                misfits.push(misfit("F32, F16, BF16, F64, F8_E4M3 or F8_E5M2", tensor.dtype.to_string()));
            } else if let Some((place, value)) = self.first_not_finite(index) {
                misfits.push(misfit("finite values", format!("{value:?} at element {place}")));
            }
        }
        misfits
    }

    fn first_not_finite(&self, tensor: usize) -> Option<(usize, f64)> {
        const PIECE: usize = 4096;
        /// Bytes that are looked at before their pages are given back.
        const RELEASED: u64 = 4 << 20;
        let (dtype, bytes) = (self.tensors()[tensor].dtype, self.bytes(tensor));
        let size = dtype.byte_size() as usize;
        let mut values = [0.0; PIECE];
        let (mut at, mut released) = (0, 0);
        for (i, piece) in bytes.chunks(PIECE * size).enumerate() {
            let values = &mut values[..piece.len() / size];
            crate::matrix::to_f64(dtype, piece, values);
            if let Some(at) = values.iter().position(|v| !v.is_finite()) {
                return Some((i * PIECE + at, values[at]));
            }
            at += piece.len() as u64;
            if at - released >= RELEASED || at == bytes.len() as u64 {
                self.weights.release(tensor, released..at);
                released = at;
            }
        }
        None
    }

    /// What PEFT calls the config's kind, for messages.
    pub(crate) fn is(&self, method: Method) -> bool {
        self.config.method == method
    }
}

/// The shards of a training state that DeepSpeed's ZeRO leaves, where nothing else is there.
fn deepspeed(dir: &Path) -> Option<String> {
    if WEIGHTS_NAMES.iter().any(|name| dir.join(name).is_file()) {
        return None;
    }
    let mut found: Vec<String> = std::fs::read_dir(dir)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            name.starts_with("global_step")
                || name.starts_with("zero_pp_rank_")
                || name.starts_with("bf16_zero_pp_rank_")
                || name == "zero_to_fp32.py"
        })
        .collect();
    found.sort();
    found.into_iter().next()
}

fn what_is_there(path: &Path) -> String {
    if !path.exists() {
        return "no such directory".to_owned();
    }
    let candidates = [&[CONFIG_NAME][..], WEIGHTS_NAMES, &["config.json", "model.safetensors"][..]].concat();
    let found: Vec<&str> = candidates.into_iter().filter(|name| path.join(name).exists()).collect();
    if found.is_empty() { "no adapter files".to_owned() } else { found.join(", ") }
}

/// Modules by name and number.
type Modules = BTreeMap<(String, usize), Module>;

/// The tensors by module, and those that have the place of an earlier one, each with that one.
fn group(tensors: &[AdapterTensor]) -> (Modules, Vec<(usize, usize)>) {
    let mut modules = Modules::new();
    let mut repeated = Vec::new();
    for (index, tensor) in tensors.iter().enumerate() {
        let key = Key::parse(&tensor.name);
        // Only factors of nested wrappers are told apart by depth.
        let depth = if matches!(key.role, Role::A | Role::B) { key.depth } else { 0 };
        match modules.entry((key.module, depth)).or_default().entry(key.role) {
            std::collections::btree_map::Entry::Vacant(place) => drop(place.insert(index)),
            std::collections::btree_map::Entry::Occupied(first) => repeated.push((index, *first.get())),
        }
    }
    (modules, repeated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlpack_tensor::{Dtype, Shape};

    fn tensor(name: &str) -> AdapterTensor {
        let shape = Shape::new(vec![1, 1]);
        AdapterTensor { name: name.to_owned(), dtype: Dtype::F32, shape, strides: vec![1, 1], range: 0..4 }
    }

    #[test]
    fn tensors_of_a_module_come_together_whatever_their_spelling() {
        let tensors = [
            "base_model.model.m.x.lora_A.weight",
            "m.x.lora_B.default.weight",
            "base_model.model.m.x.lora_magnitude_vector",
        ]
        .map(tensor);
        let (modules, repeated) = group(&tensors);
        assert!(repeated.is_empty());
        let module = Module::from([(Role::A, 0), (Role::B, 1), (Role::Magnitude, 2)]);
        assert_eq!(modules, BTreeMap::from([(("m.x".to_owned(), 0), module)]));
    }

    #[test]
    fn the_same_factor_under_two_spellings_is_named() {
        let (_, repeated) = group(&["base_model.model.m.x.lora_A.weight", "m.x.lora_A.default.weight"].map(tensor));
        assert_eq!(repeated, [(1, 0)]);
    }
}
