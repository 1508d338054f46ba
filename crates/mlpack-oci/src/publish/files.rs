//! Which files an artifact consists of, under which path, and what each is for.

use crate::publish::{Artifact, ModelFormat};
use crate::{Error, FieldProblem};
use mlpack_fs::Operation;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Files of one artifact: registries limit the manifest to 4 MiB, which is about that many layers.
const FILE_LIMIT: usize = 8192;
/// Directories inside each other.
const DEPTH_LIMIT: usize = 8;

/// What a layer is for, in ModelPack's words. The order is the order of layers in a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LayerKind {
    /// Weights.
    Weight,
    /// Configuration of the weights: tokenizer, config.json, chat template, Modelfile.
    WeightConfig,
    /// Documents: README, LICENSE, provenance statements.
    Doc,
    /// Code.
    Code,
    /// The tensor map of a GGUF, for clients that fetch only what changed.
    TensorMap,
}

/// A file that goes with an artifact and lies elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its path inside the artifact: relative, with `/` between components.
    pub name: String,
    /// What it is for.
    pub kind: LayerKind,
}

pub(super) struct Listing {
    /// In layer order: by kind, then by name.
    pub files: Vec<ListedFile>,
    /// Hidden entries.
    pub left_out: Vec<PathBuf>,
}

pub(super) struct ListedFile {
    pub path: PathBuf,
    pub name: String,
    pub kind: LayerKind,
    pub untested: bool,
}

/// Lists an artifact's files. Nothing but names and types is read.
pub(super) fn list(artifact: &Artifact) -> Result<Listing, Error> {
    let mut found = Found { names: BTreeMap::new(), left_out: Vec::new() };
    let metadata =
        fs::metadata(&artifact.path).map_err(|e| mlpack_fs::Error::io(Operation::Open, &artifact.path, e))?;
    if metadata.is_dir() {
        found.walk(&artifact.path, &artifact.path, "", 0)?;
    } else {
        let name = artifact.path.file_name().and_then(|n| n.to_str());
        let name = name.ok_or_else(|| not_a_file(&artifact.path, "a name that is not UTF-8"))?;
        found.names.insert(name.to_owned(), (artifact.path.clone(), LayerKind::Weight, false));
    }
    for extra in &artifact.extra {
        check_name(&extra.name)?;
        let value = (extra.path.clone(), extra.kind, false);
        if let Some((first, ..)) = found.names.insert(extra.name.clone(), value) {
            let (artifact, name, second) = (artifact.path.clone(), extra.name.clone(), extra.path.clone());
            return Err(Error::SameFile { artifact, name, first, second });
        }
    }
    let mut files: Vec<ListedFile> = found
        .names
        .into_iter()
        .map(|(name, (path, kind, untested))| ListedFile { path, name, kind, untested })
        .collect();
    files.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    let has_weights = |f: &ListedFile| f.kind == LayerKind::Weight && is_weight(&f.name, artifact.format);
    if metadata.is_dir() && !files.iter().any(has_weights) {
        let expected = match artifact.format {
            ModelFormat::Gguf => "a `.gguf` file",
            ModelFormat::Safetensors => "a `.safetensors` file",
            ModelFormat::Onnx => "an `.onnx` file",
        };
        let found = files.into_iter().map(|f| f.name).collect();
        return Err(Error::NoWeights { path: artifact.path.clone(), expected, found });
    }
    Ok(Listing { files, left_out: found.left_out })
}

struct Found {
    names: BTreeMap<String, (PathBuf, LayerKind, bool)>,
    left_out: Vec<PathBuf>,
}

impl Found {
    fn walk(&mut self, root: &Path, dir: &Path, prefix: &str, depth: usize) -> Result<(), Error> {
        if depth > DEPTH_LIMIT {
            return Err(Error::TooMany {
                path: root.to_owned(),
                limit: DEPTH_LIMIT,
                what: "directories inside each other",
            });
        }
        let list = |e| mlpack_fs::Error::io(Operation::List, dir, e);
        let mut entries = fs::read_dir(dir).map_err(list)?.collect::<Result<Vec<_>, _>>().map_err(list)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let name = entry.file_name();
            let name = name.to_str().ok_or_else(|| not_a_file(&path, "a name that is not UTF-8"))?;
            if name.starts_with('.') {
                self.left_out.push(path);
                continue;
            }
            let name = format!("{prefix}{name}");
            let file_type = entry.file_type().map_err(|e| mlpack_fs::Error::io(Operation::Open, &path, e))?;
            if file_type.is_dir() {
                self.walk(root, &path, &format!("{name}/"), depth + 1)?;
                continue;
            }
            // Checkpoints in a Hugging Face cache are links to files; a link to a directory could lead anywhere.
            let metadata = fs::metadata(&path).map_err(|e| mlpack_fs::Error::io(Operation::Open, &path, e))?;
            if !metadata.is_file() {
                return Err(not_a_file(
                    &path,
                    if metadata.is_dir() { "a link to a directory" } else { "a special file" },
                ));
            }
            let (kind, untested) = classify(&name);
            self.names.insert(name, (path, kind, untested));
            if self.names.len() > FILE_LIMIT {
                return Err(Error::TooMany { path: root.to_owned(), limit: FILE_LIMIT, what: "files" });
            }
        }
        Ok(())
    }
}

fn not_a_file(path: &Path, found: &'static str) -> Error {
    Error::NotAFile { path: path.to_owned(), found }
}

/// What a file of a model directory is for, and whether that is a guess: ModelPack has an annotation that says so.
fn classify(name: &str) -> (LayerKind, bool) {
    let base = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    let extension = base.rsplit_once('.').map_or("", |(_, e)| e);
    let starts = |words: &[&str]| words.iter().any(|w| base.starts_with(w));
    let kind = match extension {
        "gguf" | "safetensors" | "onnx" | "bin" | "pt" | "pth" => LayerKind::Weight,
        _ if is_weight(name, ModelFormat::Onnx) => LayerKind::Weight,
        "py" | "sh" | "ipynb" => LayerKind::Code,
        _ if starts(&["readme", "license", "licence", "notice", "copying", "use_policy", "changelog"]) => {
            LayerKind::Doc
        }
        _ if starts(&["modelfile"]) || base == "merges.txt" || base == "vocab.txt" => LayerKind::WeightConfig,
        "md" | "txt" | "pdf" | "png" | "jpg" | "jpeg" | "svg" | "jsonl" => LayerKind::Doc,
        "json" | "jinja" | "model" | "tiktoken" | "toml" | "yaml" | "yml" => LayerKind::WeightConfig,
        _ => return (LayerKind::WeightConfig, true),
    };
    (kind, false)
}

/// Whether a name is one that the format uses for weights.
fn is_weight(name: &str, format: ModelFormat) -> bool {
    match format {
        ModelFormat::Gguf => name.ends_with(".gguf"),
        ModelFormat::Safetensors => name.ends_with(".safetensors"),
        // External data: `model.onnx.data`, `model.onnx_data`, `model.onnx_data_1`.
        ModelFormat::Onnx => {
            name.ends_with(".onnx")
                || name.ends_with(".onnx.data")
                || name.rsplit_once(".onnx_data").is_some_and(|(_, n)| {
                    n.is_empty() || n.strip_prefix('_').is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
                })
        }
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    let component = |c: &str| !c.is_empty() && c != "." && c != ".." && !c.contains(['\\', '\0']);
    if name.split('/').all(component) {
        return Ok(());
    }
    let expected = "a relative path without `.` and `..`, with `/` between its parts";
    let problem = FieldProblem { expected, found: name.to_owned() };
    Err(Error::InvalidField { field: "name of an extra file".to_owned(), problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_classified_by_what_model_directories_hold() {
        use LayerKind::*;
        for (name, kind, untested) in [
            ("model-00001-of-00002.safetensors", Weight, false),
            ("model.safetensors.index.json", WeightConfig, false),
            ("tokenizer.model", WeightConfig, false),
            ("chat_template.jinja", WeightConfig, false),
            ("merges.txt", WeightConfig, false),
            ("Modelfile", WeightConfig, false),
            ("onnx/model.onnx_data", Weight, false),
            ("onnx/model.onnx_data_1", Weight, false),
            ("model.onnx.data", Weight, false),
            ("LICENSE", Doc, false),
            ("README.md", Doc, false),
            ("statement.intoto.jsonl", Doc, false),
            ("modeling_x.py", Code, false),
            ("optimizer.xyz", WeightConfig, true),
        ] {
            assert_eq!(classify(name), (kind, untested), "{name}");
        }
    }

    #[test]
    fn names_that_leave_the_artifact_are_refused() {
        for bad in ["", "/etc/passwd", "a/../b", "./a", "a//b", "a\\b"] {
            assert!(matches!(check_name(bad), Err(Error::InvalidField { .. })), "{bad}");
        }
        assert!(check_name("docs/LICENSE").is_ok());
    }
}
