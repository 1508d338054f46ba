//! An adapter directory: `adapter_config.json` and `adapter_model.safetensors`, as PEFT saves them.

use crate::{AdapterConfig, Error, Unmatched};
use mlpack_safetensors::{Entry, SafetensorsFile};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const CONFIG_NAME: &str = "adapter_config.json";
const WEIGHTS_NAME: &str = "adapter_model.safetensors";

/// The prefix that PEFT puts before the module names of the base model.
const PEFT_PREFIX: &str = "base_model.model.";

/// The two factors of one module.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The module's name in the base model, such as `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// A, of shape `[r, in]`.
    pub a: Entry,
    /// B, of shape `[out, r]`.
    pub b: Entry,
}

/// An adapter on disk.
#[derive(Debug)]
pub struct Adapter {
    dir: PathBuf,
    config: AdapterConfig,
    weights: SafetensorsFile,
    pairs: Vec<Pair>,
    unmatched: Vec<Unmatched>,
}

/// Which factor a key names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Factor {
    A,
    B,
}

impl Adapter {
    /// Opens an adapter directory; headers only.
    pub fn open(dir: &Path) -> Result<Adapter, Error> {
        let config_path = dir.join(CONFIG_NAME);
        let weights_path = dir.join(WEIGHTS_NAME);
        for (path, missing) in [(&config_path, CONFIG_NAME), (&weights_path, WEIGHTS_NAME)] {
            if !path.is_file() {
                return Err(Error::NotAnAdapter { path: dir.to_owned(), missing, found: what_is_there(dir) });
            }
        }
        let config = AdapterConfig::open(&config_path)?;
        let weights = SafetensorsFile::open(&weights_path)?;
        if weights.entries().is_empty() {
            return Err(Error::Empty { path: weights_path });
        }
        let (pairs, unmatched) = pair_up(weights.entries());
        Ok(Adapter { dir: dir.to_owned(), config, weights, pairs, unmatched })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The config.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// The weights file.
    pub fn weights(&self) -> &SafetensorsFile {
        &self.weights
    }

    /// The files that decide the merged values.
    pub fn files(&self) -> [PathBuf; 2] {
        [self.dir.join(CONFIG_NAME), self.dir.join(WEIGHTS_NAME)]
    }

    /// The complete pairs, in module order.
    pub fn pairs(&self) -> &[Pair] {
        &self.pairs
    }

    /// Tensors that are half of a pair, or of no known form; an overlay refuses them.
    pub fn unmatched(&self) -> &[Unmatched] {
        &self.unmatched
    }
}

fn what_is_there(dir: &Path) -> String {
    if !dir.exists() {
        return "no such directory".to_owned();
    }
    let candidates =
        ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "config.json", "model.safetensors"];
    let found: Vec<&str> = candidates.into_iter().filter(|name| dir.join(name).exists()).collect();
    if found.is_empty() { "no adapter files".to_owned() } else { found.join(", ") }
}

fn pair_up(entries: &[Entry]) -> (Vec<Pair>, Vec<Unmatched>) {
    let mut modules: BTreeMap<&str, (Option<&Entry>, Option<&Entry>)> = BTreeMap::new();
    let mut unmatched = Vec::new();
    for entry in entries {
        let Some((module, factor)) = parse_key(&entry.name) else {
            unmatched.push(Unmatched::UnknownForm { key: entry.name.clone(), nearest: None });
            continue;
        };
        let slot = modules.entry(module).or_default();
        let half = if factor == Factor::A { &mut slot.0 } else { &mut slot.1 };
        match half {
            // The same factor twice, under two spellings of the key.
            Some(_) => unmatched.push(Unmatched::UnknownForm { key: entry.name.clone(), nearest: None }),
            None => *half = Some(entry),
        }
    }
    let mut pairs = Vec::new();
    for (module, halves) in modules {
        match halves {
            (Some(a), Some(b)) => pairs.push(Pair { module: module.to_owned(), a: a.clone(), b: b.clone() }),
            (Some(only), None) => unmatched.push(no_partner(only, "lora_A", "lora_B")),
            (None, Some(only)) => unmatched.push(no_partner(only, "lora_B", "lora_A")),
            (None, None) => unreachable!("a module is only entered with one of its halves"),
        }
    }
    (pairs, unmatched)
}

fn no_partner(only: &Entry, has: &str, lacks: &str) -> Unmatched {
    let at = only.name.rfind(has).expect("parse_key found the factor in the key");
    let partner = format!("{}{lacks}{}", &only.name[..at], &only.name[at + has.len()..]);
    Unmatched::NoPartner { key: only.name.clone(), partner }
}

/// The module and the factor that a key names: `[base_model.model.]MODULE.lora_A[.default].weight`. The adapter name
/// between factor and `weight` is in files saved from a state dict instead of with `save_pretrained`.
fn parse_key(key: &str) -> Option<(&str, Factor)> {
    let stem = key.strip_prefix(PEFT_PREFIX).unwrap_or(key).strip_suffix(".weight")?;
    let stem = stem.strip_suffix(".default").unwrap_or(stem);
    let (module, factor) = match stem.strip_suffix(".lora_A") {
        Some(module) => (module, Factor::A),
        None => (stem.strip_suffix(".lora_B")?, Factor::B),
    };
    (!module.is_empty()).then_some((module, factor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlpack_tensor::{Dtype, Shape};

    fn entry(name: &str) -> Entry {
        Entry { name: name.to_owned(), dtype: Dtype::F32, shape: Shape::new(vec![1, 1]), range: 0..4 }
    }

    #[test]
    fn pairs_both_spellings_of_a_key() {
        let entries = [
            "base_model.model.m.x.lora_A.weight",
            "base_model.model.m.x.lora_B.weight",
            "m.y.lora_A.default.weight",
            "m.y.lora_B.default.weight",
        ]
        .map(entry);
        let (pairs, unmatched) = pair_up(&entries);
        let modules: Vec<_> = pairs.iter().map(|p| p.module.as_str()).collect();
        assert_eq!((modules, unmatched), (vec!["m.x", "m.y"], vec![]));
    }

    #[test]
    fn a_half_names_its_missing_partner_and_other_keys_are_unknown() {
        let entries = ["base_model.model.m.x.lora_A.weight", "m.x.lora_magnitude_vector", "lm_head.weight"].map(entry);
        let (pairs, unmatched) = pair_up(&entries);
        assert!(pairs.is_empty());
        assert!(unmatched.contains(&Unmatched::NoPartner {
            key: "base_model.model.m.x.lora_A.weight".into(),
            partner: "base_model.model.m.x.lora_B.weight".into()
        }));
        assert_eq!(unmatched.len(), 3);
    }
}
