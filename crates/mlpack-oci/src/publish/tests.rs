//! Published layouts, read back with oci-spec's types and held against ModelPack's schema.

use super::*;
use crate::json;
use oci_spec::image::{ImageIndex, ImageManifest};
use serde_json::Value;
use std::fs;
use std::path::Path;

const CHECKPOINT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/legal-qa/kjv-llama");

struct Bench {
    tmp: tempfile::TempDir,
    artifacts: Vec<Artifact>,
}

/// Two GGUF variants with a Modelfile each and a shared licence.
fn bench() -> Bench {
    let tmp = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| {
        let path = tmp.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let license = write("LICENSE", b"Apache License");
    let artifacts = ["Q4_K_M", "F16"]
        .map(|quant| {
            let path = write(&format!("legal-qa-{quant}.gguf"), format!("GGUF {quant} weights").as_bytes());
            let modelfile = write(&format!("Modelfile-{quant}"), format!("FROM ./legal-qa-{quant}.gguf\n").as_bytes());
            let extra =
                |path: &PathBuf, name: &str, kind| ExtraFile { path: path.clone(), name: name.to_owned(), kind };
            Artifact {
                path,
                format: ModelFormat::Gguf,
                variant: Some(quant.to_owned()),
                config: ModelConfig {
                    name: Some("legal-qa".into()),
                    architecture: Some("llama".into()),
                    parameter_count: Some(1_147_200),
                    licenses: vec!["Apache-2.0".into()],
                    languages: vec!["en".into()],
                    ..ModelConfig::default()
                },
                extra: vec![
                    extra(&license, "LICENSE", LayerKind::Doc),
                    extra(&modelfile, "Modelfile", LayerKind::WeightConfig),
                ],
                details: Details::default(),
            }
        })
        .to_vec();
    Bench { tmp, artifacts }
}

fn publish_to(dir: &Path, artifacts: &[Artifact]) -> Result<(Layout, Published), Error> {
    let layout = Layout::open_or_create(dir)?;
    let annotations = BTreeMap::from([("org.opencontainers.image.vendor".to_owned(), "Example".to_owned())]);
    let request = PublishRequest {
        artifacts,
        tag: &"1.0".parse()?,
        ecosystems: &[],
        image: &ImageOptions::default(),
        annotations: &annotations,
        digests: &BTreeMap::new(),
    };
    let published = publish(&layout, &request)?;
    Ok((layout, published))
}

fn read(layout: &Layout, digest: &str) -> Vec<u8> {
    let digest = digest.strip_prefix("sha256:").unwrap().parse().unwrap();
    mlpack_fs::read_bounded(&layout.blob_path(&digest), 1 << 20).unwrap()
}

fn names(manifest: &ImageManifest) -> Vec<(String, String)> {
    let name = |l: &Descriptor| l.annotations().as_ref().unwrap()[media::FILEPATH].clone();
    manifest.layers().iter().map(|l| (l.media_type().to_string(), name(l))).collect()
}

#[test]
fn variants_get_a_tag_each_and_an_index_over_them() {
    let bench = bench();
    let (layout, published) = publish_to(&bench.tmp.path().join("layout"), &bench.artifacts).unwrap();
    let tags: Vec<_> = layout.tags().unwrap().into_iter().map(|(tag, _)| tag.unwrap()).collect();
    assert_eq!(tags, ["1.0", "1.0-f16", "1.0-q4_k_m"]);
    assert_eq!(published.root().tag.as_str(), "1.0");

    let index = layout.read_index(&layout.resolve(&"1.0".parse().unwrap()).unwrap()).unwrap();
    let facts: Vec<BTreeMap<_, _>> = index
        .manifests()
        .iter()
        .map(|m| m.annotations().clone().unwrap().into_iter().collect::<BTreeMap<_, _>>())
        .collect();
    let weights = "GGUF F16 weights";
    let expected = [
        ("vnd.mlpack.format", "gguf".to_owned()),
        ("vnd.mlpack.variant", "F16".to_owned()),
        ("vnd.mlpack.weight.digest", format!("sha256:{}", Sha256::of(weights.as_bytes()))),
        ("vnd.mlpack.weight.size", weights.len().to_string()),
    ];
    assert_eq!(facts[0], expected.map(|(k, v)| (k.to_owned(), v)).into());
    assert_eq!(facts[1]["vnd.mlpack.variant"], "Q4_K_M");

    let manifest = layout.read_manifest(&published.manifests[1].descriptor).unwrap();
    assert_eq!(
        names(&manifest),
        [
            (media::WEIGHT_RAW.to_owned(), "legal-qa-Q4_K_M.gguf".to_owned()),
            (media::WEIGHT_CONFIG_RAW.to_owned(), "Modelfile".to_owned()),
            (media::DOC_RAW.to_owned(), "LICENSE".to_owned()),
        ]
    );
    assert_eq!(manifest.artifact_type().as_ref().unwrap().to_string(), media::MODEL_MANIFEST);
    assert_eq!(manifest.config().media_type().to_string(), media::MODEL_CONFIG);
    // 2 weights, 2 Modelfiles, 1 licence, 2 configs, 2 manifests, 1 index; the licence is stored once.
    assert_eq!(layout.verify().unwrap().blobs, 10);
    assert_eq!((published.bytes_written, published.bytes_skipped), (layout.verify().unwrap().bytes, 0));
}

#[test]
fn manifest_and_config_are_made_of_nothing_but_the_inputs() {
    let bench = bench();
    let (layout, published) = publish_to(&bench.tmp.path().join("layout"), &bench.artifacts[..1]).unwrap();
    assert!(published.index.is_none());
    assert_eq!(published.root().tag.as_str(), "1.0");
    let text = String::from_utf8(read(&layout, &format!("sha256:{}", published.root().digest))).unwrap();
    let parsed: ImageManifest = serde_json::from_str(&text).unwrap();
    let config = String::from_utf8(read(&layout, parsed.config().digest().as_ref())).unwrap();
    let digest = |content: &str| Sha256::of(content.as_bytes()).to_string();
    let descriptor = |kind: &str, content: &str| {
        format!(
            "{{\"mediaType\":\"application/vnd.cncf.model.{kind}\",\"digest\":\"sha256:{}\",\"size\":{}",
            digest(content),
            content.len()
        )
    };
    let layer = |name: &str, kind: &str, content: &str| {
        format!(
            "{},\"annotations\":{{\"org.cncf.model.filepath\":\"{name}\",\"org.opencontainers.image.title\":\"{name}\"}}}}",
            descriptor(&format!("{kind}.v1.raw"), content)
        )
    };
    let expected = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"artifactType\":\
         \"application/vnd.cncf.model.manifest.v1+json\",\"config\":{}}},\"layers\":[{},{},{}],\"annotations\":{{\
         \"org.opencontainers.image.licenses\":\"Apache-2.0\",\"org.opencontainers.image.title\":\"legal-qa\",\
         \"org.opencontainers.image.vendor\":\"Example\",\"vnd.mlpack.format\":\"gguf\",\"vnd.mlpack.variant\":\
         \"Q4_K_M\",\"vnd.mlpack.weight.digest\":\"sha256:{}\",\"vnd.mlpack.weight.size\":\"19\"}}}}",
        descriptor("config.v1+json", &config),
        layer("legal-qa-Q4_K_M.gguf", "weight", "GGUF Q4_K_M weights"),
        layer("Modelfile", "weight.config", "FROM ./legal-qa-Q4_K_M.gguf\n"),
        layer("LICENSE", "doc", "Apache License"),
        digest("GGUF Q4_K_M weights"),
    );
    assert_eq!(text, expected);
    assert_eq!(
        config,
        format!(
            "{{\"config\":{{\"architecture\":\"llama\",\"capabilities\":{{\"languages\":[\"en\"]}},\"format\":\"gguf\",\
             \"paramSize\":\"1.1M\",\"quantization\":\"Q4_K_M\"}},\"descriptor\":{{\"licenses\":[\"Apache-2.0\"],\
             \"name\":\"legal-qa\"}},\"modelfs\":{{\"diffIds\":[\"sha256:{}\",\"sha256:{}\",\"sha256:{}\"],\"type\":\
             \"layers\"}}}}",
            digest("GGUF Q4_K_M weights"),
            digest("FROM ./legal-qa-Q4_K_M.gguf\n"),
            digest("Apache License"),
        )
    );
}

#[test]
fn the_same_inputs_give_the_same_layout_in_any_order_and_place() {
    let bench = bench();
    let mut turned = bench.artifacts.clone();
    turned.reverse();
    let (first, _) = publish_to(&bench.tmp.path().join("a"), &bench.artifacts).unwrap();
    let (second, _) = publish_to(&bench.tmp.path().join("elsewhere/b"), &turned).unwrap();
    let files = |layout: &Layout| {
        let index = mlpack_fs::read_bounded(&layout.dir().join("index.json"), 1 << 20).unwrap();
        let mut blobs: Vec<_> =
            fs::read_dir(layout.dir().join("blobs/sha256")).unwrap().map(|e| e.unwrap().file_name()).collect();
        blobs.sort();
        (index, blobs)
    };
    assert_eq!(files(&first), files(&second));
    // Publishing again writes no blob.
    let (_, again) = publish_to(first.dir(), &turned).unwrap();
    assert_eq!(again.bytes_written, 0);
    assert_eq!(files(&first), files(&second));
}

#[test]
fn a_checkpoint_directory_is_published_file_by_file() {
    let tmp = tempfile::tempdir().unwrap();
    let artifact = Artifact {
        path: CHECKPOINT.into(),
        format: ModelFormat::Safetensors,
        variant: None,
        config: ModelConfig::default(),
        extra: Vec::new(),
        details: Details::default(),
    };
    let (layout, published) = publish_to(&tmp.path().join("layout"), &[artifact]).unwrap();
    let manifest = layout.read_manifest(&published.root().descriptor).unwrap();
    let config = media::WEIGHT_CONFIG_RAW;
    let expected = [
        (media::WEIGHT_RAW, "model.safetensors"),
        (config, "chat_template.jinja"),
        (config, "config.json"),
        (config, "generation_config.json"),
        (config, "tokenizer.json"),
        (config, "tokenizer.model"),
        (config, "tokenizer_config.json"),
    ];
    assert_eq!(names(&manifest), expected.map(|(kind, name)| (kind.to_owned(), name.to_owned())));
    layout.verify().unwrap();
}

#[test]
fn every_document_parses_with_oci_spec_and_the_config_obeys_its_schema() {
    let bench = bench();
    let (layout, published) = publish_to(&bench.tmp.path().join("layout"), &bench.artifacts).unwrap();
    let schema: Value = serde_json::from_str(include_str!("../../tests/modelpack/config-schema.json")).unwrap();
    for (manifest, precision, quantization) in
        [(&published.manifests[0], Some("float16"), None), (&published.manifests[1], None, Some("Q4_K_M"))]
    {
        let bytes = read(&layout, &format!("sha256:{}", manifest.digest));
        let parsed: ImageManifest = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(json::canonical(&parsed), bytes);
        let config: Value = serde_json::from_slice(&read(&layout, parsed.config().digest().as_ref())).unwrap();
        check_schema(&schema, &schema, &config, "config");
        assert_eq!(config["config"]["precision"].as_str(), precision);
        assert_eq!(config["config"]["quantization"].as_str(), quantization);
        assert_eq!(config["config"]["paramSize"], "1.1M");
        let layers: Vec<String> = parsed.layers().iter().map(|l| l.digest().to_string()).collect();
        assert_eq!(config["modelfs"]["diffIds"], serde_json::json!(layers));
    }
    let bytes = read(&layout, &format!("sha256:{}", published.root().digest));
    assert_eq!(json::canonical(&serde_json::from_slice::<ImageIndex>(&bytes).unwrap()), bytes);
}

/// The part of JSON Schema that ModelPack's schema uses.
fn check_schema(root: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        return check_schema(root, &root["$defs"][reference.strip_prefix("#/$defs/").unwrap()], value, at);
    }
    let right_type = match schema["type"].as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        other => panic!("{other} is not checked"),
    };
    assert!(right_type, "{at}: {value}");
    for key in schema["required"].as_array().into_iter().flatten() {
        assert!(value.get(key.as_str().unwrap()).is_some(), "{at}: {key} is missing");
    }
    for (key, child) in value.as_object().into_iter().flatten() {
        let known = schema["properties"].get(key).unwrap_or_else(|| panic!("{at}: `{key}` is not in the schema"));
        check_schema(root, known, child, &format!("{at}.{key}"));
    }
    for item in value.as_array().into_iter().flatten() {
        check_schema(root, &schema["items"], item, at);
    }
    if let Some(words) = schema["enum"].as_array() {
        assert!(words.contains(value), "{at}: {value}");
    }
    let len = value.as_array().map_or(0, Vec::len) as u64;
    assert!(schema["minItems"].as_u64().is_none_or(|min| len >= min), "{at}");
    assert!(schema["minLength"].as_u64().is_none_or(|min| value.as_str().unwrap().len() as u64 >= min), "{at}");
}

#[test]
fn known_digests_save_reading_and_are_checked_when_copied() {
    let bench = bench();
    let layout = Layout::open_or_create(&bench.tmp.path().join("layout")).unwrap();
    let artifacts = &bench.artifacts[..1];
    let path = &artifacts[0].path;
    let digests = BTreeMap::from([(path.clone(), Sha256::of(b"something else"))]);
    let request = PublishRequest {
        artifacts,
        tag: &"1.0".parse().unwrap(),
        ecosystems: &[],
        image: &ImageOptions::default(),
        annotations: &BTreeMap::new(),
        digests: &digests,
    };
    let error = publish(&layout, &request).unwrap_err();
    assert!(matches!(error, Error::ContentMismatch { .. }));
    assert!(layout.tags().unwrap().is_empty());
    let digests = BTreeMap::from([(path.clone(), Sha256::of(b"GGUF Q4_K_M weights"))]);
    publish(&layout, &PublishRequest { digests: &digests, ..request }).unwrap();
    layout.verify().unwrap();
}

#[test]
fn what_cannot_be_published_is_refused_before_anything_is_written() {
    let bench = bench();
    let dir = bench.tmp.path().join("layout");
    let fails = |artifacts: &[Artifact]| publish_to(&dir, artifacts).unwrap_err();
    assert!(matches!(fails(&[]), Error::NoArtifacts));
    let twice = [bench.artifacts[0].clone(), bench.artifacts[0].clone()];
    assert!(matches!(fails(&twice), Error::SameVariant { tag, .. } if tag == "1.0-q4_k_m"));
    let mut same_file = bench.artifacts[0].clone();
    same_file.extra[0].name = "legal-qa-Q4_K_M.gguf".into();
    assert!(matches!(fails(&[same_file]), Error::SameFile { .. }));
    let mut escaping = bench.artifacts[0].clone();
    escaping.extra[0].name = "../LICENSE".into();
    assert!(matches!(fails(&[escaping]), Error::InvalidField { .. }));
    let mut onnx = bench.artifacts[0].clone();
    onnx.path = CHECKPOINT.into();
    onnx.format = ModelFormat::Onnx;
    let error = fails(&[onnx]).to_string();
    assert!(error.contains("expected: an `.onnx` file\n  found:    `model.safetensors`"), "{error}");
    assert_eq!(fs::read_dir(dir.join("blobs/sha256")).unwrap().count(), 0);
}

#[test]
fn hidden_files_are_left_out_and_links_to_directories_are_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let model = tmp.path().join("model");
    fs::create_dir_all(model.join("onnx")).unwrap();
    fs::write(model.join("onnx/model.onnx"), b"graph").unwrap();
    fs::write(model.join(".gitattributes"), b"x").unwrap();
    fs::write(model.join("weights.xyz"), b"?").unwrap();
    let artifact = Artifact {
        path: model.clone(),
        format: ModelFormat::Onnx,
        variant: Some("fp16".into()),
        config: ModelConfig::default(),
        extra: Vec::new(),
        details: Details::default(),
    };
    let (layout, published) = publish_to(&tmp.path().join("layout"), std::slice::from_ref(&artifact)).unwrap();
    assert_eq!(published.left_out, [model.join(".gitattributes")]);
    let manifest = layout.read_manifest(&published.root().descriptor).unwrap();
    assert_eq!(names(&manifest)[0].1, "onnx/model.onnx");
    let guessed = manifest.layers()[1].annotations().as_ref().unwrap();
    assert_eq!((&*guessed[media::FILEPATH], &*guessed[media::MEDIATYPE_UNTESTED]), ("weights.xyz", "true"));
    std::os::unix::fs::symlink("/", model.join("root")).unwrap();
    assert!(matches!(
        publish_to(&tmp.path().join("layout"), &[artifact]),
        Err(Error::NotAFile { found: "a link to a directory", .. })
    ));
}

#[test]
fn several_licences_become_one_expression() {
    let all = ["MIT OR Apache-2.0", "CC-BY-4.0"].map(str::to_owned);
    assert_eq!(spdx_and(&all), "(MIT OR Apache-2.0) AND CC-BY-4.0");
    assert_eq!(spdx_and(&all[..1]), "MIT OR Apache-2.0");
}
