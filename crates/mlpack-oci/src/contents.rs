//! What a manifest of any ecosystem holds: which layer becomes which file.
//!
//! | manifest | told by | layers become |
//! | --- | --- | --- |
//! | ModelPack | `artifactType` or config type | a file each, named by annotation; archives are unpacked |
//! | Ollama | layer types | `model.gguf`, `template`, `system`, `params.json`, … |
//! | Docker | config type | a file each, named by annotation or by type |
//! | KitOps | config type | unpacked archives, and the config as `Kitfile` |
//! | image | config type | what the last layer has under `models/` |
//!
//! Names come from strangers: each is checked to stay inside, and no two may meet.

use crate::{Error, media};
use mlpack_fs::Sha256;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Most files of one artifact.
const FILE_LIMIT: usize = 8192;
/// Longest name of a file.
const NAME_LIMIT: usize = 1024;

/// How a layer becomes files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// The layer is the file of that name.
    File(String),
    /// The layer is a tar; only what is below the prefix counts, without it.
    Tar {
        /// Whether it is compressed with gzip.
        gzip: bool,
        /// The folder that counts, with a slash at its end; empty for all.
        below: String,
    },
    /// The layer is the tensor map of a GGUF beside it.
    TensorMap,
}

/// A blob of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Its digest.
    pub digest: Sha256,
    /// Its length in bytes.
    pub byte_len: u64,
    /// What it becomes.
    pub form: Form,
}

/// A manifest or an index with what it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// An index over others.
    Index(Vec<Entry>),
    /// Files.
    Files(Vec<Content>),
}

/// An entry of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The digest of the manifest.
    pub digest: Sha256,
    /// Its length in bytes.
    pub byte_len: u64,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// `OS/ARCHITECTURE[/VARIANT]`.
    pub platform: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    config: Option<RawDescriptor>,
    #[serde(default)]
    layers: Vec<RawDescriptor>,
    #[serde(default)]
    manifests: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    platform: Option<RawPlatform>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

impl RawDescriptor {
    fn digest(&self) -> Result<Sha256, Error> {
        let parsed = self.digest.strip_prefix("sha256:").and_then(|hex| hex.parse().ok());
        parsed.ok_or_else(|| refuse("a sha256 digest", &self.digest))
    }

    fn name(&self) -> Option<&str> {
        let annotations = self.annotations.as_ref()?;
        annotations.get(media::FILEPATH).or_else(|| annotations.get(media::TITLE)).map(String::as_str)
    }
}

fn refuse(expected: &'static str, found: &str) -> Error {
    Error::Contents { expected, found: found.to_owned() }
}

/// Reads a manifest or an index of any ecosystem. `bytes` are bounded by whoever fetched them.
pub fn contents(bytes: &[u8]) -> Result<Contents, Error> {
    let manifest: RawManifest =
        serde_json::from_slice(bytes).map_err(|e| refuse("a manifest or an index", &e.to_string()))?;
    if let Some(entries) = &manifest.manifests {
        let entries = entries.iter().map(|entry| {
            let platform = entry.platform.as_ref().map(|p| match &p.variant {
                Some(variant) => format!("{}/{}/{variant}", p.os, p.architecture),
                None => format!("{}/{}", p.os, p.architecture),
            });
            let annotations = entry.annotations.clone().unwrap_or_default();
            Ok(Entry { digest: entry.digest()?, byte_len: entry.size, annotations, platform })
        });
        return Ok(Contents::Index(entries.collect::<Result<_, Error>>()?));
    }
    let Some(config) = &manifest.config else { return Err(refuse("a manifest with a config", "none")) };
    if manifest.layers.len() > FILE_LIMIT {
        return Err(refuse("at most 8192 layers", &manifest.layers.len().to_string()));
    }
    let files = if manifest.artifact_type.as_deref() == Some(media::MODEL_MANIFEST)
        || config.media_type == media::MODEL_CONFIG
    {
        manifest.layers.iter().map(modelpack).collect::<Result<_, _>>()?
    } else if manifest.layers.iter().any(|layer| layer.media_type.starts_with(media::OLLAMA_LAYER)) {
        ollama(&manifest.layers)?
    } else if config.media_type.starts_with("application/vnd.docker.ai.model.config.") {
        docker(&manifest.layers)?
    } else if config.media_type == media::KIT_CONFIG {
        kit(config, &manifest.layers)?
    } else if matches!(&*config.media_type, media::IMAGE_CONFIG | media::DOCKER_CONFIG) {
        image(&manifest.layers)?
    } else if manifest.layers.iter().all(|layer| layer.name().is_some()) {
        // Any other artifact whose layers have names, as oras makes them.
        manifest.layers.iter().map(modelpack).collect::<Result<_, _>>()?
    } else {
        return Err(refuse("a model of ModelPack, Ollama, Docker or KitOps, or an image", &config.media_type));
    };
    check_names(&files)?;
    Ok(Contents::Files(files))
}

fn content(layer: &RawDescriptor, form: Form) -> Result<Content, Error> {
    Ok(Content { digest: layer.digest()?, byte_len: layer.size, form })
}

/// The archive that a media type ends with.
fn archive(media_type: &str) -> Result<Option<Form>, Error> {
    let all = |gzip| Some(Form::Tar { gzip, below: String::new() });
    match media_type {
        m if m.ends_with(".tar") => Ok(all(false)),
        m if m.ends_with(".tar+gzip") || m.ends_with(".tar.gzip") => Ok(all(true)),
        m if m.ends_with("+zstd") => Err(refuse("a layer that is not compressed, or with gzip", m)),
        _ => Ok(None),
    }
}

fn modelpack(layer: &RawDescriptor) -> Result<Content, Error> {
    if layer.annotations.as_ref().is_some_and(|a| a.contains_key(media::TENSOR_MAP)) {
        return content(layer, Form::TensorMap);
    }
    if let Some(form) = archive(&layer.media_type)? {
        return content(layer, form);
    }
    let name = layer.name().ok_or_else(|| refuse("a layer with the name of its file", &layer.media_type))?;
    content(layer, Form::File(name.to_owned()))
}

fn ollama(layers: &[RawDescriptor]) -> Result<Vec<Content>, Error> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut files = Vec::new();
    for layer in layers {
        let Some(kind) = layer.media_type.strip_prefix(media::OLLAMA_LAYER) else { continue };
        let (stem, extension) = match kind {
            "model" => ("model", ".gguf"),
            "projector" => ("mmproj", ".gguf"),
            "adapter" => ("adapter", ".gguf"),
            "draft" => ("draft", ".gguf"),
            "template" | "prompt" => ("template", ""),
            "system" => ("system", ""),
            "license" => ("LICENSE", ""),
            "params" => ("params", ".json"),
            "messages" => ("messages", ".json"),
            "embed" => continue,
            _ => return Err(refuse("a layer of an Ollama model in GGUF", &layer.media_type)),
        };
        let count = counts.entry(stem).or_insert(0);
        *count += 1;
        let name = if *count == 1 { format!("{stem}{extension}") } else { format!("{stem}-{count}{extension}") };
        files.push(content(layer, Form::File(name))?);
    }
    Ok(files)
}

fn docker(layers: &[RawDescriptor]) -> Result<Vec<Content>, Error> {
    let mut files = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        let named = |name: &str| Form::File(layer.name().map_or_else(|| name.to_owned(), str::to_owned));
        let form = match layer.media_type.strip_prefix("application/vnd.docker.ai.").unwrap_or_default() {
            "gguf.v3" => named("model.gguf"),
            "gguf.v3.lora" => named("adapter.gguf"),
            "mmproj" | "gguf.v3.mmproj" => named("mmproj.gguf"),
            "license" => named("LICENSE"),
            "chat.template.jinja" => named("chat_template.jinja"),
            "vllm.config.tar" | "dir.tar" => Form::Tar { gzip: false, below: String::new() },
            "safetensors" => named(&format!("model-{at}.safetensors")),
            _ => match layer.name() {
                Some(name) => Form::File(name.to_owned()),
                None => return Err(refuse("a layer of a Docker model", &layer.media_type)),
            },
        };
        files.push(content(layer, form)?);
    }
    Ok(files)
}

fn kit(config: &RawDescriptor, layers: &[RawDescriptor]) -> Result<Vec<Content>, Error> {
    let mut files = vec![content(config, Form::File("Kitfile".to_owned()))?];
    for layer in layers {
        let known = layer.media_type.starts_with(media::KIT_LAYER);
        match archive(&layer.media_type)? {
            Some(form) if known => files.push(content(layer, form)?),
            _ => return Err(refuse("a layer of a ModelKit", &layer.media_type)),
        }
    }
    Ok(files)
}

/// The last layer is the one that a model is added in.
fn image(layers: &[RawDescriptor]) -> Result<Vec<Content>, Error> {
    let Some(layer) = layers.last() else { return Err(refuse("an image with a layer", "none")) };
    match archive(&layer.media_type)? {
        Some(Form::Tar { gzip, .. }) => Ok(vec![content(layer, Form::Tar { gzip, below: "models/".to_owned() })?]),
        _ => Err(refuse("an image whose layers are archives", &layer.media_type)),
    }
}

/// Every name is a relative path of plain components, and no file stands where another one needs a folder.
fn check_names(files: &[Content]) -> Result<(), Error> {
    let mut names: BTreeMap<&str, Sha256> = BTreeMap::new();
    for file in files {
        let Form::File(name) = &file.form else { continue };
        check_name(name)?;
        if names.insert(name, file.digest).is_some_and(|other| other != file.digest) {
            return Err(refuse("one file of each name", name));
        }
    }
    for name in names.keys() {
        for (at, _) in name.match_indices('/') {
            if names.contains_key(&name[..at]) {
                return Err(refuse("no file where another one needs a folder", name));
            }
        }
    }
    Ok(())
}

/// A name that stays below the folder it is unpacked in.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let plain = |part: &str| {
        !part.is_empty() && part != "." && part != ".." && part.len() <= 255 && !part.contains(['\\', '\0'])
            // Names of unfinished files are ours.
            && !(part.starts_with('.') && part.contains(".mlpack-"))
    };
    match name.len() <= NAME_LIMIT && name.split('/').all(plain) {
        true => Ok(()),
        false => Err(refuse("a relative path without `.` and `..` as the name of a file", name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn layer(media_type: &str, annotations: Value) -> Value {
        json!({"mediaType": media_type, "digest": format!("sha256:{}", Sha256::of(media_type.as_bytes())), "size": 5,
            "annotations": annotations})
    }

    fn read(config: &str, layers: Vec<Value>) -> Result<Vec<Form>, String> {
        let manifest = json!({"schemaVersion": 2, "config": layer(config, json!({})), "layers": layers});
        match contents(manifest.to_string().as_bytes()) {
            Ok(Contents::Files(files)) => Ok(files.into_iter().map(|f| f.form).collect()),
            Ok(Contents::Index(_)) => Err("an index".to_owned()),
            Err(e) => Err(e.to_string()),
        }
    }

    fn file(name: &str) -> Form {
        Form::File(name.to_owned())
    }

    #[test]
    fn every_ecosystem_is_read() {
        let none = json!({});
        let ollama = |kind: &str| layer(&format!("application/vnd.ollama.image.{kind}"), none.clone());
        assert_eq!(
            read(media::DOCKER_CONFIG, vec![ollama("model"), ollama("template"), ollama("license"), ollama("license")]),
            Ok(vec![file("model.gguf"), file("template"), file("LICENSE"), file("LICENSE-2")])
                .map(|forms| forms.into_iter().collect())
        );
        let named = layer(media::DOCKER_GGUF, json!({media::FILEPATH: "m.gguf"}));
        assert_eq!(read(media::DOCKER_MODEL_CONFIG, vec![named]), Ok(vec![file("m.gguf")]));
        let all = |gzip| Form::Tar { gzip, below: String::new() };
        let kit = |kind: &str| layer(&format!("application/vnd.kitops.modelkit.{kind}"), none.clone());
        assert_eq!(
            read(media::KIT_CONFIG, vec![kit("model.v1.tar"), kit("code.v1.tar+gzip")]),
            Ok(vec![file("Kitfile"), all(false), all(true)])
        );
        let image = vec![
            layer("application/vnd.oci.image.layer.v1.tar+gzip", none.clone()),
            layer(media::IMAGE_LAYER, none.clone()),
        ];
        let models = Form::Tar { gzip: false, below: "models/".to_owned() };
        assert_eq!(read(media::IMAGE_CONFIG, image), Ok(vec![models]));
        let map = json!({media::FILEPATH: "m.tensors.json", media::TENSOR_MAP: "v1"});
        assert_eq!(read(media::MODEL_CONFIG, vec![layer(media::DOC_RAW, map)]), Ok(vec![Form::TensorMap]));
    }

    #[test]
    fn names_that_leave_the_folder_or_meet_are_refused() {
        for name in
            ["../x", "/etc/passwd", "a/../../b", "a\\b", "", "a//b", "./a", ".x.mlpack-partial", "a/.b.mlpack-parts"]
        {
            let found = read(media::MODEL_CONFIG, vec![layer(media::WEIGHT_RAW, json!({media::FILEPATH: name}))]);
            let expected = format!(
                "cannot read what the artifact holds\n  expected: a relative path without `.` and `..` as the name of a file\n  found:    `{name}`"
            );
            assert_eq!(found, Err(expected));
        }
        let two = |first: &str, second: &str| {
            let named = |media_type: &str, name: &str| layer(media_type, json!({media::FILEPATH: name}));
            read(media::MODEL_CONFIG, vec![named(media::WEIGHT_RAW, first), named(media::DOC_RAW, second)])
        };
        assert!(two("a", "a").unwrap_err().contains("one file of each name"));
        assert!(two("a", "a/b").unwrap_err().contains("needs a folder"));
    }

    #[test]
    fn what_is_no_model_is_refused_with_its_type() {
        let found = read("application/vnd.example.config", vec![layer("x/y", json!({}))]);
        assert!(found.unwrap_err().ends_with("found:    `application/vnd.example.config`"));
        assert!(contents(b"{").is_err() && contents(b"{}").is_err());
        let bad = json!({"config": {"mediaType": media::MODEL_CONFIG, "digest": "sha256:../x", "size": 1},
            "layers": [{"mediaType": media::WEIGHT_RAW, "digest": "sha512:00", "size": 1, "annotations": {media::TITLE: "a"}}]});
        assert!(contents(bad.to_string().as_bytes()).unwrap_err().to_string().contains("a sha256 digest"));
    }
}
