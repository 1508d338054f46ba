//! Policies against traces of small chains: what is demanded, met and not, and what a bad file says.

use super::*;
use crate::{
    Artifact, Dependency, KeyAlgorithm, PrivateKey, Role, SignOptions, Step, Store, TraceOptions, sign_chain, trace,
};
use serde_json::Map;
use std::fs;

/// Base and adapter to a converted file, signed.
struct Signed {
    dir: tempfile::TempDir,
}

impl Signed {
    fn new() -> Signed {
        let signed = Signed { dir: tempfile::tempdir().unwrap() };
        let path = |name: &str| signed.dir.path().join(name);
        for (name, content) in [("base.safetensors", "base"), ("adapter.safetensors", "adapter"), ("out.gguf", "out")] {
            fs::write(path(name), content).unwrap();
        }
        let run = Dependency::unknown_run("nobody said");
        let input =
            |role, name: &str| Dependency::file(role, &path(name), mlpack_fs::hash_file(&path(name)).unwrap().0);
        let inputs = vec![input(Role::Base, "base.safetensors"), input(Role::Adapter, "adapter.safetensors"), run];
        let mut step = Step::new(StepKind::Convert, Map::new(), inputs);
        step.outputs = vec![Artifact::file(&path("out.gguf"), mlpack_fs::hash_file(&path("out.gguf")).unwrap().0)];
        let store = Store::beside(signed.dir.path());
        store.record(&step).unwrap();
        store.write_sidecar(&step.outputs[0]).unwrap();
        let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        fs::write(path("release.pub"), key.public().to_pem()).unwrap();
        sign_chain(&path("out.gguf"), &key, &SignOptions::default()).unwrap();
        signed
    }

    fn judge(&self, policy: &str) -> Vec<Finding> {
        let path = self.dir.path().join("policy.toml");
        fs::write(&path, policy).unwrap();
        let policy = Policy::open(&path).unwrap();
        let options = TraceOptions { trust: policy.trust.clone(), ..TraceOptions::default() };
        policy.judge(&trace(&self.dir.path().join("out.gguf"), &options).unwrap())
    }

    /// The demands that are not met, each with what was found.
    fn unmet(&self, policy: &str) -> Vec<String> {
        let unmet = self.judge(policy).into_iter().filter(|f| !f.met);
        unmet
            .map(|f| {
                format!(
                    "{} | {}",
                    f.demand.replace(|c: char| c.is_ascii_hexdigit() && !c.is_alphabetic(), "0"),
                    f.found
                )
            })
            .collect()
    }
}

const TRUSTED: &str = "[[key]]\nname = 'release'\nfile = 'release.pub'\n";

#[test]
fn a_signed_chain_meets_what_it_can() {
    let signed = Signed::new();
    let policy = format!(
        "{TRUSTED}[require]\nlinks = ['base', 'adapter']\nbytes = ['base']\nsteps = ['convert']\nmin_version = '0.0.1'\n"
    );
    let findings = signed.judge(&policy);
    assert!(findings.iter().all(|f| f.met), "{findings:#?}");
    assert_eq!(findings.len(), 8);
}

#[test]
fn what_is_not_met_is_named_with_what_was_found() {
    let signed = Signed::new();
    let require = |rest: &str| signed.unmet(&format!("{TRUSTED}[require]\n{rest}\n"));
    assert_eq!(require("links = ['run']"), ["the run is stated, signed by a trusted key | unknown: nobody said"]);
    assert_eq!(require("links = ['dataset']"), ["the dataset is stated, signed by a trusted key | nothing states one"]);
    assert_eq!(require("steps = ['merge']"), ["a step merge is in the chain | no"]);
    assert_eq!(require("min_version = '99'").len(), 1);
    assert_eq!(require(&format!("digests = ['sha256:{}']", "0".repeat(64))).len(), 1);
    fs::remove_file(signed.dir.path().join("base.safetensors")).unwrap();
    assert_eq!(require("links = ['base']"), [""; 0], "the link is stated, whether the bytes are here or not");
    assert_eq!(
        require("bytes = ['base']"),
        [format!("the bytes of the base are here | {}", {
            let parent = signed.dir.path().file_name().unwrap().to_string_lossy().into_owned();
            format!("{parent}/base.safetensors: no longer where it was")
        })]
    );
}

#[test]
fn without_the_key_the_chain_is_signed_and_not_trusted() {
    let signed = Signed::new();
    assert_eq!(signed.unmet("[require]\nstate = 'untrusted'\n"), [""; 0]);
    let unmet = signed.unmet("");
    assert!(unmet.len() == 2 && unmet[0] == "the artifact is signed by a trusted key | untrusted", "{unmet:?}");
    // A key that may only state trainings does not speak for a conversion.
    let unmet = signed.unmet(&format!("{TRUSTED}steps = ['train', 'model']\n"));
    assert!(
        unmet[1].ends_with("untrusted: signed by `release`, which is not trusted for convert statements"),
        "{unmet:?}"
    );
    assert_eq!(
        signed.unmet(&format!("{TRUSTED}steps = ['train']\n[require.states]\nconvert = 'untrusted'\n")).len(),
        1
    );
}

#[test]
fn a_policy_with_a_mistake_says_which() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.toml");
    for (text, expected) in [
        ("[require]\nlink = []", "unknown field `link`"),
        ("[require]\nlinks = ['bass']", "unknown variant `bass`"),
        ("[require]\nsteps = ['bake']", "no such step: `bake`"),
        ("[require]\nstate = 'missing'", "no such demand: `missing`"),
        ("[require]\nmin_version = 'new'", "no version: `new`"),
        ("[require]\ndigests = ['abc']", "not a sha256 digest"),
        ("[[key]]\nfile = 'policy.toml'", "no PEM text"),
        ("[[key]]\nfile = 'absent.pub'", "absent.pub"),
        ("= 1", "line 1"),
    ] {
        fs::write(&path, text).unwrap();
        let error = Policy::open(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}
