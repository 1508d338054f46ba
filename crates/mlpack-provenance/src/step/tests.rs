//! Statements compared with their bytes, and with the field rules of in-toto and SLSA.

use super::*;

fn step() -> Step {
    let mut step = Step::new(
        StepKind::Convert,
        Map::from_iter([("to".to_owned(), json!("gguf")), ("quant".to_owned(), json!("Q8_0"))]),
        vec![
            Dependency::file(Role::Tokenizer, Path::new("/srv/someone/base/tokenizer.json"), Sha256::of(b"tok")),
            Dependency::file(Role::Adapter, Path::new("lora/adapter_model.safetensors"), Sha256::of(b"lora"))
                .annotate("weight", "0.5"),
            Dependency::file(Role::Base, Path::new("/srv/someone/base/model.safetensors"), Sha256::of(b"base")),
            Dependency::unknown_run("no trainer_state.json beside the adapter"),
        ],
    );
    step.outputs = vec![Artifact::file(Path::new("/srv/someone/out/m-Q8_0.gguf"), Sha256::of(b"out"))];
    step.byproducts.insert("tensor-types".to_owned(), json!({"output.weight": "Q8_0"}));
    step
}

#[test]
fn the_bytes_are_these() {
    let statement = step().statement().unwrap();
    let build_id = step().build_id().unwrap().to_string();
    let expected = concat!(
        r#"{"_type":"https://in-toto.io/Statement/v1","predicate":{"buildDefinition":{"#,
        r#""buildType":"urn:mlpack:convert:v1","externalParameters":{"quant":"Q8_0","to":"gguf"},"#,
        r#""internalParameters":{"deterministic":true,"mlpack":"VERSION"},"resolvedDependencies":["#,
        r#"{"annotations":{"role":"base"},"digest":{"sha256":"BASE"},"name":"base/model.safetensors"},"#,
        r#"{"annotations":{"role":"adapter","weight":"0.5"},"digest":{"sha256":"LORA"},"name":"lora/adapter_model.safetensors"},"#,
        r#"{"annotations":{"role":"tokenizer"},"digest":{"sha256":"TOK"},"name":"base/tokenizer.json"},"#,
        r#"{"annotations":{"reason":"no trainer_state.json beside the adapter","role":"training-run","status":"unknown"},"#,
        r#""name":"training-run","uri":"urn:mlpack:run:unknown"}]},"#,
        r#""runDetails":{"builder":{"id":"urn:mlpack:builder","version":{"mlpack":"VERSION"}},"#,
        r#""byproducts":[{"content":"eyJvdXRwdXQud2VpZ2h0IjoiUThfMCJ9","mediaType":"application/json","name":"tensor-types"}],"#,
        r#""metadata":{"invocationId":"BUILD"}}},"predicateType":"https://slsa.dev/provenance/v1","#,
        r#""subject":[{"digest":{"sha256":"OUT"},"name":"m-Q8_0.gguf"}]}"#,
    )
    .replace("BASE", &Sha256::of(b"base").to_string())
    .replace("LORA", &Sha256::of(b"lora").to_string())
    .replace("TOK", &Sha256::of(b"tok").to_string())
    .replace("OUT", &Sha256::of(b"out").to_string())
    .replace("BUILD", &build_id)
    .replace("VERSION", VERSION);
    assert_eq!(std::str::from_utf8(statement.bytes()).unwrap(), expected);
    assert_eq!(statement.build_id(), Some(build_id.as_str()));
}

#[test]
fn the_order_of_inputs_and_the_place_on_this_machine_do_not_show() {
    let first = step().statement().unwrap();
    let mut other = step();
    other.dependencies.reverse();
    other.parameters = other.parameters.into_iter().rev().collect();
    other.dependencies.push(other.dependencies[0].clone());
    assert_eq!(other.statement().unwrap().bytes(), first.bytes());
    assert_eq!(other.statement().unwrap().bytes(), other.statement().unwrap().bytes());
    assert!(!String::from_utf8_lossy(first.bytes()).contains("someone"));
}

#[test]
fn a_folder_has_the_same_name_however_it_is_spelled() {
    let name = |path: &str| Dependency::file(Role::Base, Path::new(path), Sha256::of(b"")).name;
    assert_eq!(name("x.bin"), name("../mlpack-provenance/x.bin"));
    assert_eq!(name("./src/x.bin"), "src/x.bin");
    assert_eq!(name("/x.bin"), "x.bin");
}

#[test]
fn the_build_id_depends_on_what_went_in_and_not_on_what_came_out() {
    let id = step().build_id().unwrap();
    let mut other = step();
    other.outputs.clear();
    other.byproducts.clear();
    assert_eq!(other.build_id().unwrap(), id);
    other.parameters.insert("quant".to_owned(), json!("Q4_0"));
    assert_ne!(other.build_id().unwrap(), id);
}

#[test]
fn fields_follow_the_rules_of_in_toto_and_slsa() {
    let mut all = Vec::new();
    for kind in StepKind::ALL {
        let mut step = step();
        step.kind = kind;
        step.outputs = Artifact::directory(
            Path::new("out/merged"),
            &[("model.safetensors".to_owned(), Sha256::of(b"w")), ("config.json".to_owned(), Sha256::of(b"c"))],
        );
        all.push(step.statement().unwrap());
    }
    for statement in all {
        let value: Value = serde_json::from_slice(statement.bytes()).unwrap();
        let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        // sigstore-go parses strictly: a statement has these four fields and no other.
        assert_eq!(keys(&value), ["_type", "predicate", "predicateType", "subject"]);
        assert_eq!(value["_type"], "https://in-toto.io/Statement/v1");
        assert_eq!(value["predicateType"], "https://slsa.dev/provenance/v1");
        assert_eq!(keys(&value["predicate"]), ["buildDefinition", "runDetails"]);
        let definition = &value["predicate"]["buildDefinition"];
        assert_eq!(keys(definition), ["buildType", "externalParameters", "internalParameters", "resolvedDependencies"]);
        assert!(definition["buildType"].as_str().unwrap().starts_with("urn:mlpack:"));
        let details = &value["predicate"]["runDetails"];
        assert_eq!(keys(details), ["builder", "byproducts", "metadata"]);
        assert_eq!(keys(&details["metadata"]), ["invocationId"], "no time in a statement");
        for subject in value["subject"].as_array().unwrap() {
            assert_eq!(subject["digest"]["sha256"].as_str().unwrap().len(), 64);
            assert!(!subject["name"].as_str().unwrap().starts_with('/'));
        }
        const DESCRIPTOR: [&str; 7] =
            ["name", "uri", "digest", "content", "downloadLocation", "mediaType", "annotations"];
        for dependency in definition["resolvedDependencies"].as_array().unwrap() {
            assert!(keys(dependency).iter().all(|k| DESCRIPTOR.contains(&k.as_str())));
            assert!(dependency.get("uri").is_some() || dependency.get("digest").is_some());
        }
    }
}

#[test]
fn a_directory_is_a_tree_and_its_files() {
    let files = [("b.json".to_owned(), Sha256::of(b"b")), ("a.json".to_owned(), Sha256::of(b"a"))];
    let artifacts = Artifact::directory(Path::new("/x/merged"), &files);
    let names: Vec<&str> = artifacts.iter().map(|a| a.name.as_str()).collect();
    assert_eq!(names, ["merged", "merged/a.json", "merged/b.json"]);
    assert_eq!(artifacts[0].sha256, tree_digest(&files));
}

#[test]
fn refuses_what_cannot_be_stated() {
    let mut bad = step();
    bad.parameters.insert("scale".to_owned(), json!({"lora": [1, 0.5]}));
    assert_eq!(
        bad.statement().unwrap_err().to_string(),
        "cannot state parameter `scale.lora[1]`\n  expected: an integer within 2^53, or the number as a string\n  \
         found:    a number that readers may round"
    );
    let mut bad = step();
    bad.outputs.clear();
    assert!(matches!(bad.statement(), Err(Error::NoSubject)));
    bad.outputs = vec![Artifact::file(Path::new("x"), Sha256::of(b"")); 1025];
    assert!(matches!(bad.statement(), Err(Error::TooManySubjects { found: 1025, limit: 1024 })));
    for name in ["", "/etc/passwd", "a/../b", "a//b", "./a", "a\\b", "a\nb", &"x".repeat(1025)] {
        let mut bad = step();
        bad.outputs[0].name = name.to_owned();
        assert!(matches!(bad.statement(), Err(Error::BadName { .. })), "{name:?}");
    }
}
