//! Signatures of the reference implementation, and ours; what is changed, missing or extra is named.

use super::*;
use std::fs;
use std::path::PathBuf;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/provenance")
}

fn fixture_key() -> PublicKey {
    let pem = mlpack_fs::read_to_string_bounded(&fixtures().join("pub.pem"), 4096).unwrap();
    PublicKey::parse(&pem, "pub.pem").unwrap()
}

/// The model of fixtures/provenance/model.sig, made anew: a repository cannot hold its `.git`.
fn model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    fs::create_dir_all(model.join("sub")).unwrap();
    fs::create_dir(model.join(".git")).unwrap();
    for (name, content) in [
        ("Upper.txt", "1"),
        ("config.json", "{\"a\":1}\n"),
        ("empty.bin", ""),
        ("sub/z.bin", "z"),
        ("sub-1.bin", "y"),
        ("sub.bin", "x"),
        ("é.txt", "e"),
        (".git/HEAD", "not part of it"),
    ] {
        fs::write(model.join(name), content).unwrap();
    }
    for name in ["Upper.txt", "config.json", "model.safetensors", "sub/z.bin", "sub-1.bin", "sub.bin", "é.txt"] {
        fs::copy(fixtures().join("model").join(name), model.join(name)).unwrap();
    }
    dir
}

#[test]
fn a_signature_of_the_reference_implementation_fits_its_model() {
    let dir = model();
    let check = check_model(&dir.path().join("model"), &fixtures().join("model.sig")).unwrap();
    assert_eq!(check.note(), None);
    assert!(check.fits() && check.verifies(&fixture_key()));
    assert_eq!(check.resources.len(), 8);
    let single = check_model(&dir.path().join("model/model.safetensors"), &fixtures().join("single.sig")).unwrap();
    assert!(single.fits() && single.verifies(&fixture_key()));
    let certified = check_model(&dir.path().join("model"), &fixtures().join("cert.sig")).unwrap();
    assert!(certified.fits() && !certified.verifies(&fixture_key()));
}

#[test]
fn what_is_changed_missing_or_extra_is_named() {
    let dir = model();
    let at = |name: &str| dir.path().join("model").join(name);
    let note = || check_model(&dir.path().join("model"), &fixtures().join("model.sig")).unwrap().note();
    fs::write(at("model.safetensors"), "other").unwrap();
    assert_eq!(note().unwrap(), "`model.safetensors` has other bytes than the signed ones");
    fs::copy(fixtures().join("model/model.safetensors"), at("model.safetensors")).unwrap();
    fs::remove_file(at("sub/z.bin")).unwrap();
    fs::write(at("extra.bin"), "").unwrap();
    assert_eq!(note().unwrap(), "`extra.bin` is not signed, `sub/z.bin` is missing");
}

#[test]
fn our_signature_fits_and_lies_within_the_model() {
    for algorithm in [KeyAlgorithm::EcdsaP256, KeyAlgorithm::EcdsaP384] {
        let dir = model();
        let (model, key) = (dir.path().join("model"), PrivateKey::generate(algorithm).unwrap());
        let signature = model.join(MODEL_SIGNATURE);
        let bundle = sign_model(&model, &signature, &key).unwrap();
        fs::write(&signature, bundle.bytes()).unwrap();
        assert_eq!(sign_model(&model, &signature, &key).unwrap(), bundle, "the signature itself does not count");
        let check = check_model(&model, &signature).unwrap();
        assert!(check.fits() && check.verifies(&key.public()), "{:?}", check.note());
        let files = crate::tree::hash_tree(&model).unwrap();
        assert_eq!(check.root, crate::tree_digest(&files), "the root is the tree digest");
        fs::create_dir(model.join(".mlpack")).unwrap();
        fs::write(model.join(".mlpack/x"), "").unwrap();
        assert!(check_model(&model, &signature).unwrap().fits());
    }
}

#[test]
fn a_linked_file_counts_as_the_file_and_is_allowed_in_writing() {
    let dir = model();
    let model = dir.path().join("model");
    std::os::unix::fs::symlink("sub.bin", model.join("link.bin")).unwrap();
    let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
    let bundle = sign_model(&model, Path::new("elsewhere.sig"), &key).unwrap();
    let statement: Value = serde_json::from_slice(bundle.payload()).unwrap();
    assert_eq!(statement["predicate"]["serialization"]["allow_symlinks"], true);
}

#[test]
fn ed25519_and_empty_models_are_refused() {
    let dir = model();
    let key = PrivateKey::generate(KeyAlgorithm::Ed25519).unwrap();
    let error = sign_model(&dir.path().join("model"), Path::new("x.sig"), &key).unwrap_err();
    assert!(matches!(error, Error::UnsignableKey { algorithm: "ed25519" }));
    let empty = tempfile::tempdir().unwrap();
    let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
    assert!(matches!(sign_model(empty.path(), Path::new("x.sig"), &key), Err(Error::EmptyModel { .. })));
}

/// A signature over a statement of ours, with one value changed.
fn signed_with(pointer: &str, value: Value) -> Result<ModelCheck, Error> {
    let dir = model();
    let model = dir.path().join("model");
    let mut statement: Value = serde_json::from_slice(&super::statement(&model, Path::new("x.sig")).unwrap()).unwrap();
    *statement.pointer_mut(pointer).unwrap() = value;
    if pointer.starts_with("/predicate/resources") {
        let listed = statement["predicate"]["resources"].as_array().unwrap();
        let digests: Vec<Sha256> =
            listed.iter().filter_map(|r| r["digest"].as_str().and_then(|d| d.parse().ok())).collect();
        let root = Sha256::of_parts(digests.iter().map(|d| d.as_bytes().as_slice()));
        statement["subject"][0]["digest"]["sha256"] = json!(root.to_string());
    }
    let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
    let bundle = Bundle::sign_as(&json::canonical(&statement), &key, HintStyle::ModelSigning);
    let path = dir.path().join("x.sig");
    fs::write(&path, bundle.bytes()).unwrap();
    check_model(&model, &path)
}

#[test]
fn each_broken_rule_is_named() {
    let digest = "0".repeat(64);
    for (pointer, value, expected) in [
        ("/predicateType", json!("https://slsa.dev/provenance/v1"), "field `predicateType`"),
        ("/subject", json!([]), "exactly one subject"),
        ("/subject/0/digest/sha256", json!(digest), "the digest over all resources"),
        ("/subject/0/digest", json!({}), "64 lowercase"),
        ("/predicate/serialization/method", json!("tar"), "files or shards"),
        ("/predicate/serialization/method", json!("shards"), "PATH:START:END"),
        ("/predicate/resources/0/algorithm", json!("blake3"), "field `resources.algorithm`"),
        ("/predicate/resources/0/name", json!("../../etc/passwd"), "a relative path"),
        ("/predicate/resources/0/name", json!("/etc/passwd"), "a relative path"),
        ("/predicate/resources/1/name", json!("Upper.txt"), "each part of each file once"),
    ] {
        let error = signed_with(pointer, value).unwrap_err().to_string();
        assert!(error.contains(expected), "{pointer}: {error}");
    }
}

#[test]
fn shards_are_checked_part_by_part() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("m");
    fs::create_dir(&model).unwrap();
    fs::write(model.join("w"), "abcdefgh").unwrap();
    let check = |cuts: &[(u64, u64)]| {
        let digests: Vec<Sha256> =
            cuts.iter().map(|(a, b)| Sha256::of(&b"abcdefghij"[*a as usize..*b as usize])).collect();
        let resources: Vec<Value> = cuts
            .iter()
            .zip(&digests)
            .map(|((a, b), d)| json!({"name": format!("w:{a}:{b}"), "algorithm": "sha256", "digest": d.to_string()}))
            .collect();
        let root = Sha256::of_parts(digests.iter().map(|d| d.as_bytes().as_slice()));
        let statement = json!({
            "_type": crate::STATEMENT_TYPE,
            "subject": [{"name": "m", "digest": {"sha256": root.to_string()}}],
            "predicateType": MODEL_SIGNING_TYPE,
            "predicate": {"resources": resources, "serialization":
                {"method": "shards", "hash_type": "sha256", "allow_symlinks": false, "shard_size": 4}},
        });
        let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let path = dir.path().join("x.sig");
        fs::write(&path, Bundle::sign_as(&json::canonical(&statement), &key, HintStyle::ModelSigning).bytes()).unwrap();
        check_model(&model, &path).map(|check| check.note())
    };
    assert_eq!(check(&[(0, 4), (4, 8)]).unwrap(), None);
    assert_eq!(check(&[(4, 8), (0, 4)]).unwrap(), None, "the order of the list does not matter");
    let other = Some("`w` has other bytes than the signed ones".to_owned());
    assert_eq!(check(&[(0, 4)]).unwrap(), other, "the file is longer");
    assert_eq!(check(&[(0, 4), (4, 10)]).unwrap(), other, "the file is shorter");
    assert!(check(&[(0, 4), (5, 8)]).is_err() && check(&[(0, 5), (4, 8)]).is_err());
}
