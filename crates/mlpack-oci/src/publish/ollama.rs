//! Ollama's manifest: a Docker v2s2 manifest whose layers are bare files (ollama 0.17.4, `server/create.go`).
//!
//! ```text
//! config  application/vnd.docker.container.image.v1+json   model_format, model_family, model_type, file_type, …
//! layers  …image.model      the GGUF as it is: its digest stays
//!         …image.template   a Go template      …image.system   a text
//!         …image.license    a text, repeated   …image.params   a JSON object   …image.messages   a JSON array
//! ```
//!
//! The documents are the bytes that `ollama create` writes for the same facts: Go's field order, Go's escapes, a line end.

use super::{Details, LayerKind, Model};
use crate::package::Package;
use crate::{Blob, Error, Instruction, Modelfile, ParameterKind, json, media};
use mlpack_fs::Sha256;
use oci_spec::image::Descriptor;
use serde_json::{Map, Number, Value, json};
use std::collections::BTreeMap;

/// The manifest of a GGUF for Ollama, in the package.
pub(super) fn describe(package: &mut Package, model: &Model<'_>) -> Result<Descriptor, Error> {
    let artifact = model.artifact;
    let mut layers = Vec::new();
    for file in model.files.iter().filter(|f| f.kind == LayerKind::Weight) {
        layers.push(package.add_blob(&format!("{}model", media::OLLAMA_LAYER), file.blob.clone()));
    }
    if let Some(modelfile) = &artifact.details.modelfile {
        for (name, bytes) in layer_texts(modelfile) {
            layers.push(package.add_blob(&format!("{}{name}", media::OLLAMA_LAYER), Blob::of_bytes(bytes)));
        }
    }
    let digests: Vec<String> = layers.iter().map(|layer| layer.digest().to_string()).collect();
    let bytes = config(
        &artifact.details,
        artifact.config.parameter_count,
        artifact.variant.as_deref(),
        modelfile_of(model),
        &digests,
    );
    let config = package.add_blob(media::DOCKER_CONFIG, Blob::of_bytes(bytes));
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media::DOCKER_MANIFEST, "config": plain(&config),
        "layers": layers.iter().map(plain).collect::<Vec<_>>(),
    });
    Ok(package.add_bytes(media::DOCKER_MANIFEST, go_json(&manifest), None))
}

fn modelfile_of<'a>(model: &'a Model<'_>) -> Option<&'a Modelfile> {
    model.artifact.details.modelfile.as_ref()
}

fn plain(descriptor: &Descriptor) -> Value {
    json!({
        "mediaType": descriptor.media_type().to_string(), "digest": descriptor.digest().to_string(),
        "size": descriptor.size(),
    })
}

/// What a Go encoder writes: a line end after the document.
fn go_json(value: &Value) -> Vec<u8> {
    let mut bytes = json::canonical(value);
    bytes.push(b'\n');
    bytes
}

/// The body of `POST /api/create` for a GGUF that Ollama has as a blob (`docs/api.md`, "Create a Model").
pub fn ollama_request(name: &str, file_name: &str, digest: &Sha256, modelfile: Option<&Modelfile>) -> Vec<u8> {
    let mut request = json!({
        "model": name, "files": {file_name: format!("sha256:{digest}")}, "stream": false,
    });
    let mut licenses = Vec::new();
    for (kind, bytes) in modelfile.map(layer_texts).unwrap_or_default() {
        let text = || String::from_utf8_lossy(&bytes).into_owned();
        let value = || serde_json::from_slice::<Value>(&bytes).expect("written here");
        match kind {
            "license" => licenses.push(text()),
            "params" => request["parameters"] = value(),
            "messages" => request["messages"] = value(),
            kind => request[kind] = json!(text()),
        }
    }
    if !licenses.is_empty() {
        request["license"] = json!(licenses);
    }
    for instruction in modelfile.iter().flat_map(|m| m.instructions()) {
        match instruction {
            Instruction::Renderer(name) => request["renderer"] = json!(name),
            Instruction::Parser(name) => request["parser"] = json!(name),
            Instruction::Requires(version) => request["requires"] = json!(version),
            _ => {}
        }
    }
    json::canonical(&request)
}

/// The layers that a Modelfile becomes, in Ollama's order: the word of the media type and the content.
fn layer_texts(modelfile: &Modelfile) -> Vec<(&'static str, Vec<u8>)> {
    let mut texts: BTreeMap<u8, Vec<(&'static str, Vec<u8>)>> = BTreeMap::new();
    let mut params: BTreeMap<&'static str, Value> = BTreeMap::new();
    let mut messages = Vec::new();
    let mut add = |order, name, text: &str| texts.entry(order).or_default().push((name, text.as_bytes().to_vec()));
    for instruction in modelfile.instructions() {
        match instruction {
            Instruction::Template(text) => add(0, "template", text),
            Instruction::System(text) if !text.is_empty() => add(1, "system", text),
            Instruction::License(text) => add(2, "license", text),
            Instruction::Parameter(p) => match p.kind() {
                ParameterKind::Ignored => {}
                ParameterKind::TextList => match params.entry(p.name()).or_insert_with(|| json!([])) {
                    Value::Array(list) => list.push(json!(p.value())),
                    _ => unreachable!("a list stays one"),
                },
                kind => drop(params.insert(p.name(), number_or_bool(kind, p.value()))),
            },
            Instruction::Message { role, content } => messages.push(json!({"role": role.name(), "content": content})),
            Instruction::System(_)
            | Instruction::From(_)
            | Instruction::Adapter(_)
            | Instruction::Draft(_)
            | Instruction::Renderer(_)
            | Instruction::Parser(_)
            | Instruction::Requires(_) => {}
        }
    }
    let mut layers: Vec<(&'static str, Vec<u8>)> = texts.into_values().flatten().collect();
    if !params.is_empty() {
        let params: Map<String, Value> = params.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        layers.push(("params", go_json(&Value::Object(params))));
    }
    if !messages.is_empty() {
        layers.push(("messages", go_json(&Value::Array(messages))));
    }
    layers
}

/// A value as it arrives in Ollama: numbers of 32 bits are sent in their shortest form.
fn number_or_bool(kind: ParameterKind, text: &str) -> Value {
    let number = |text: String| text.parse::<Number>().map_or(Value::Null, Value::Number);
    match kind {
        ParameterKind::Bool => json!(matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")),
        ParameterKind::Float => text.parse::<f32>().map_or(Value::Null, |value| number(value.to_string())),
        _ => text.parse::<i64>().map_or(Value::Null, |value| number(value.to_string())),
    }
}

/// The config blob (`types/model/config.go`).
pub(super) fn config(
    details: &Details,
    parameter_count: Option<u64>,
    variant: Option<&str>,
    modelfile: Option<&Modelfile>,
    digests: &[String],
) -> Vec<u8> {
    let family = details.architecture.as_deref().unwrap_or_default();
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| drop(config.insert(key.to_owned(), value));
    set("model_format", json!("gguf"));
    set("model_family", json!(family));
    set("model_families", json!([family]));
    set("model_type", json!(human_number(parameter_count.unwrap_or(0))));
    set("file_type", json!(variant.unwrap_or("unknown")));
    for instruction in modelfile.iter().flat_map(|m| m.instructions()) {
        match instruction {
            Instruction::Renderer(name) => set("renderer", json!(name)),
            Instruction::Parser(name) => set("parser", json!(name)),
            Instruction::Requires(version) => set("requires", json!(version.trim_start_matches('v'))),
            _ => {}
        }
    }
    set("architecture", json!("amd64"));
    set("os", json!("linux"));
    set("rootfs", json!({"type": "layers", "diff_ids": digests}));
    go_json(&Value::Object(config))
}

/// A count as Ollama writes it (`format/format.go`): one digit after the point for billions, two for millions.
fn human_number(count: u64) -> String {
    let parts = |scale: u64, digits: usize, letter: char| match count % scale {
        0 => format!("{}{letter}", count / scale),
        _ => format!("{:.digits$}{letter}", count as f64 / scale as f64),
    };
    match count {
        1_000_000_000.. => parts(1_000_000_000, 1, 'B'),
        1_000_000.. => parts(1_000_000, 2, 'M'),
        1_000.. => format!("{:.0}K", count as f64 / 1_000.0),
        count => count.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Parameter, Role};

    #[test]
    fn counts_are_written_as_ollama_writes_them() {
        for (count, text) in [
            (999, "999"),
            (1_500, "2K"),
            (1_147_200, "1.15M"),
            (135_000_000, "135M"),
            (7_000_000_000, "7B"),
            (8_030_261_248, "8.0B"),
        ] {
            assert_eq!(human_number(count), text);
        }
    }

    #[test]
    fn a_modelfile_becomes_layers_in_ollamas_order_with_typed_parameters() {
        let mut modelfile = Modelfile::new("./m.gguf");
        for instruction in [
            Instruction::Message { role: Role::User, content: "a<b".to_owned() },
            Instruction::License("L1".to_owned()),
            Instruction::Parameter(Parameter::new("temperature", "0.2").unwrap()),
            Instruction::Parameter(Parameter::new("stop", "<|end|>").unwrap()),
            Instruction::Parameter(Parameter::new("stop", "x").unwrap()),
            Instruction::Parameter(Parameter::new("num_ctx", "4096").unwrap()),
            Instruction::Parameter(Parameter::new("use_mmap", "false").unwrap()),
            Instruction::System("be short".to_owned()),
            Instruction::Template("{{ .Prompt }}".to_owned()),
            Instruction::License("L2".to_owned()),
        ] {
            modelfile.set(instruction);
        }
        let layers = layer_texts(&modelfile);
        let texts: Vec<(&str, &str)> = layers.iter().map(|(n, b)| (*n, std::str::from_utf8(b).unwrap())).collect();
        assert_eq!(
            texts,
            [
                ("template", "{{ .Prompt }}"),
                ("system", "be short"),
                ("license", "L1"),
                ("license", "L2"),
                (
                    "params",
                    "{\"num_ctx\":4096,\"stop\":[\"\\u003c|end|\\u003e\",\"x\"],\"temperature\":0.2,\"use_mmap\":false}\n"
                ),
                ("messages", "[{\"role\":\"user\",\"content\":\"a\\u003cb\"}]\n"),
            ]
        );
    }

    #[test]
    fn the_config_is_what_ollama_writes() {
        let details = Details { architecture: Some("llama".to_owned()), ..Details::default() };
        let bytes = config(&details, Some(1_147_200), Some("Q8_0"), None, &["sha256:00".to_owned()]);
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            "{\"model_format\":\"gguf\",\"model_family\":\"llama\",\"model_families\":[\"llama\"],\"model_type\":\"1.15M\",\
             \"file_type\":\"Q8_0\",\"architecture\":\"amd64\",\"os\":\"linux\",\"rootfs\":{\"type\":\"layers\",\
             \"diff_ids\":[\"sha256:00\"]}}\n"
        );
    }
}
