//! A model directory as a set of named tensors.

use crate::{Entry, Error, SafetensorsFile};
use mlpack_fs::{Operation, read_bounded};
use mlpack_tensor::{Dtype, Shape};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// The file name of an index, as transformers writes it.
pub const INDEX_NAME: &str = "model.safetensors.index.json";

/// The largest index that is read: room for about a million tensor names.
const MAX_INDEX_LEN: u64 = 256 << 20;

/// One tensor of a checkpoint.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape, outermost dimension first.
    pub shape: Shape,
    /// The shard that holds it, as an index into [`Checkpoint::shards`].
    pub shard: usize,
    /// The tensor within its shard, as an index into [`SafetensorsFile::entries`].
    pub entry: usize,
}

/// A model directory: one or more safetensors files and what they hold.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    shards: Vec<SafetensorsFile>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    index: Option<PathBuf>,
}

impl Checkpoint {
    /// Opens every shard of a directory and checks their headers and the index against each other.
    ///
    /// The shards are those that `model.safetensors.index.json` names; without an index, the files named
    /// `model*.safetensors`. Both in file name order, as convert_hf_to_gguf.py takes them.
    pub fn open(dir: &Path) -> Result<Checkpoint, Error> {
        let names = file_names(dir)?;
        let index_path = dir.join(INDEX_NAME);
        let index = if names.contains(INDEX_NAME) { Some(read_index(&index_path)?) } else { None };
        let shard_names: Vec<String> = match &index {
            Some(map) => map.values().cloned().collect::<BTreeSet<_>>().into_iter().collect(),
            None => names.iter().filter(|n| n.starts_with("model") && n.ends_with(".safetensors")).cloned().collect(),
        };
        if let Some(map) = &index {
            check_shards_exist(dir, map, &shard_names, &names)?;
        }
        if shard_names.is_empty() {
            return Err(no_weights(dir, &names));
        }
        let shards =
            shard_names.iter().map(|n| SafetensorsFile::open(&dir.join(n))).collect::<Result<Vec<_>, Error>>()?;
        let (tensors, by_name) = collect(&shards, &shard_names)?;
        if let Some(map) = &index {
            check_index(&index_path, map, &by_name)?;
        }
        let index = index.map(|_| index_path);
        Ok(Checkpoint { dir: dir.to_owned(), shards, tensors, by_name, index })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The shards, in file name order.
    pub fn shards(&self) -> &[SafetensorsFile] {
        &self.shards
    }

    /// The path of the index, if the checkpoint has one.
    pub fn index(&self) -> Option<&Path> {
        self.index.as_deref()
    }

    /// The tensors: shards in file name order, tensors of a shard in name order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The position of a tensor in [`Checkpoint::tensors`].
    pub fn position(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.position(name).map(|i| &self.tensors[i])
    }

    /// Where a tensor lies in its file.
    pub fn entry(&self, tensor: &TensorInfo) -> &Entry {
        &self.shards[tensor.shard].entries()[tensor.entry]
    }

    /// The bytes of a tensor: row-major, little-endian.
    pub fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        self.shards[tensor.shard].bytes(self.entry(tensor))
    }
}

fn file_names(dir: &Path) -> Result<BTreeSet<String>, Error> {
    let error = |e| mlpack_fs::Error::io(Operation::List, dir, e);
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(dir).map_err(error)? {
        if let Ok(name) = entry.map_err(error)?.file_name().into_string() {
            names.insert(name);
        }
    }
    Ok(names)
}

fn no_weights(dir: &Path, names: &BTreeSet<String>) -> Error {
    let pytorch = names.iter().find(|n| n.starts_with("pytorch_model") && n.contains(".bin"));
    let adapter = names.contains("adapter_config.json");
    let found = match pytorch {
        Some(name) => format!("{name} (PyTorch's own format)"),
        None if adapter => "adapter_config.json: this is an adapter, not a base model".to_owned(),
        None => format!("{} other files", names.len()),
    };
    Error::NoWeights { path: dir.to_owned(), found, pytorch: pytorch.is_some() }
}

/// The weight map of an index: tensor name to file name.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, Error> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let bytes = read_bounded(path, MAX_INDEX_LEN)?;
    let index: Index =
        serde_json::from_slice(&bytes).map_err(|e| Error::Index { path: path.to_owned(), reason: e.to_string() })?;
    if index.weight_map.is_empty() {
        return Err(Error::Index { path: path.to_owned(), reason: "an empty weight_map".to_owned() });
    }
    for (tensor, file) in &index.weight_map {
        let plain = !file.is_empty() && file != "." && file != ".." && !file.contains(['/', '\\', '\0']);
        if !plain {
            return Err(Error::IndexPath { path: path.to_owned(), tensor: tensor.clone(), file: file.clone() });
        }
    }
    Ok(index.weight_map)
}

fn check_shards_exist(
    dir: &Path,
    map: &BTreeMap<String, String>,
    shard_names: &[String],
    names: &BTreeSet<String>,
) -> Result<(), Error> {
    let missing: Vec<String> = shard_names.iter().filter(|n| !names.contains(*n)).cloned().collect();
    let mut tensors = map.iter().filter(|(_, file)| missing.contains(file)).map(|(tensor, _)| tensor);
    let Some(first) = tensors.next() else { return Ok(()) };
    Err(Error::MissingShards {
        dir: dir.to_owned(),
        count: 1 + tensors.count(),
        tensor: first.clone(),
        found: shard_names.len() - missing.len(),
        total: shard_names.len(),
        shards: missing,
    })
}

type Collected = (Vec<TensorInfo>, HashMap<String, usize>);

fn collect(shards: &[SafetensorsFile], shard_names: &[String]) -> Result<Collected, Error> {
    let mut tensors: Vec<TensorInfo> = Vec::new();
    let mut by_name = HashMap::new();
    for (shard, file) in shards.iter().enumerate() {
        for (entry, e) in file.entries().iter().enumerate() {
            if let Some(earlier) = by_name.insert(e.name.clone(), tensors.len()) {
                return Err(Error::DuplicateAcrossShards {
                    path: file.path().to_owned(),
                    tensor: e.name.clone(),
                    other: shard_names[tensors[earlier].shard].clone(),
                });
            }
            tensors.push(TensorInfo { name: e.name.clone(), dtype: e.dtype, shape: e.shape.clone(), shard, entry });
        }
    }
    Ok((tensors, by_name))
}

fn check_index(path: &Path, map: &BTreeMap<String, String>, by_name: &HashMap<String, usize>) -> Result<(), Error> {
    let missing: Vec<String> = map.keys().filter(|n| !by_name.contains_key(*n)).cloned().collect();
    let extra: BTreeSet<String> = by_name.keys().filter(|n| !map.contains_key(*n)).cloned().collect();
    if missing.is_empty() && extra.is_empty() {
        return Ok(());
    }
    Err(Error::IndexMismatch { path: path.to_owned(), missing, extra: extra.into_iter().collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of U8 tensors with one element each.
    fn write(path: &Path, names: &[&str]) {
        let entries: Vec<String> = names
            .iter()
            .enumerate()
            .map(|(i, n)| format!(r#""{n}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#, i + 1))
            .collect();
        let header = format!("{{{}}}", entries.join(","));
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + names.len(), 0);
        std::fs::write(path, bytes).unwrap();
    }

    fn write_index(dir: &Path, map: &[(&str, &str)]) {
        let map: Vec<String> = map.iter().map(|(t, f)| format!(r#""{t}":"{f}""#)).collect();
        std::fs::write(dir.join(INDEX_NAME), format!(r#"{{"weight_map":{{{}}}}}"#, map.join(","))).unwrap();
    }

    #[test]
    fn shards_come_in_file_order_and_tensors_in_name_order() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("model-2.safetensors"), &["a"]);
        write(&dir.path().join("model-1.safetensors"), &["z", "m"]);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let names: Vec<_> = checkpoint.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["m", "z", "a"]);
        assert_eq!(checkpoint.tensor("a").unwrap().shard, 1);
    }

    #[test]
    fn the_index_decides_which_files_count() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("model-1.safetensors"), &["a"]);
        write(&dir.path().join("model-old.safetensors"), &["b"]);
        write_index(dir.path(), &[("a", "model-1.safetensors")]);
        assert_eq!(Checkpoint::open(dir.path()).unwrap().tensors().len(), 1);
    }

    #[test]
    fn rejects_a_missing_shard_and_a_disagreeing_index() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("model-1.safetensors"), &["a", "b"]);
        write_index(dir.path(), &[("a", "model-1.safetensors"), ("c", "model-2.safetensors")]);
        assert!(matches!(Checkpoint::open(dir.path()), Err(Error::MissingShards { found: 1, total: 2, count: 1, .. })));
        write_index(dir.path(), &[("a", "model-1.safetensors"), ("c", "model-1.safetensors")]);
        match Checkpoint::open(dir.path()) {
            Err(Error::IndexMismatch { missing, extra, .. }) => {
                assert_eq!((missing, extra), (vec!["c".into()], vec!["b".into()]))
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn rejects_an_index_that_leads_out_of_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["../x.safetensors", "/etc/passwd", "..", ""] {
            write_index(dir.path(), &[("a", file)]);
            assert!(matches!(Checkpoint::open(dir.path()), Err(Error::IndexPath { .. })), "{file}");
        }
    }

    #[test]
    fn rejects_a_tensor_in_two_shards() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("model-1.safetensors"), &["a"]);
        write(&dir.path().join("model-2.safetensors"), &["a"]);
        assert!(matches!(Checkpoint::open(dir.path()), Err(Error::DuplicateAcrossShards { .. })));
    }

    #[test]
    fn names_what_is_there_when_there_are_no_weights() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("pytorch_model.bin"), b"").unwrap();
        match Checkpoint::open(dir.path()) {
            Err(e @ Error::NoWeights { pytorch: true, .. }) => {
                assert!(e.hint().unwrap().contains("safe_serialization"))
            }
            other => panic!("{other:?}"),
        }
    }
}
