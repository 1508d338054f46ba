//! Merges against PEFT's own, run in float64 on tiny models (fixtures/lora), and of a real adapter against a reference with
//! twice the precision.

use super::*;
use crate::delta::{Delta, Operand};
use crate::{Adapter, Combine, OverlayOptions};
use mlpack_fs::Sha256;
use mlpack_safetensors::Checkpoint;
use mlpack_tensor::Dtype;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn fixtures(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

/// A base, what is laid over it, and the directory that they are in.
struct Laid {
    base: Checkpoint,
    overlay: Overlay,
    _dir: Option<tempfile::TempDir>,
}

impl Laid {
    fn legal_qa(weight: f64) -> Laid {
        let base = Checkpoint::open(&fixtures("legal-qa/kjv-llama")).unwrap();
        let adapter = Adapter::open(&fixtures("legal-qa/legal-qa-lora")).unwrap();
        let overlay = Overlay::new(vec![(adapter, weight)], &base, &OverlayOptions::default()).unwrap();
        Laid { base, overlay, _dir: None }
    }

    /// A golden's base and adapter, made again from the names of their tensors.
    fn golden(golden: &Value) -> Laid {
        Laid::golden_with(golden, None)
    }

    /// The same with another file in the place of the adapter's weights.
    fn golden_with(golden: &Value, weights: Option<&Path>) -> Laid {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        std::fs::create_dir(&base).unwrap();
        write_file(&base.join("model.safetensors"), &golden["base"], "");
        if !golden["config"].is_null() {
            std::fs::write(base.join("config.json"), golden["config"].to_string()).unwrap();
        }
        let adapter = |name: &str, config: &Value, file: &str, salt: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            match weights {
                Some(weights) => drop(std::fs::copy(weights, path.join(weights.file_name().unwrap())).unwrap()),
                None => write_file(&path.join(file), &golden[name], salt),
            }
            if config.is_null() {
                return Adapter::open(&path.join(file)).unwrap();
            }
            std::fs::write(path.join("adapter_config.json"), config.to_string()).unwrap();
            Adapter::open(&path).unwrap()
        };
        let file = golden["adapter_file"].as_str().unwrap_or("adapter_model.safetensors");
        let mut adapters = vec![(adapter("adapter", &golden["adapter_config"], file, ""), 1.0)];
        let mut options = OverlayOptions::default();
        let combine = &golden["combine"];
        if !combine.is_null() {
            let second = adapter("second", &golden["second_config"], "adapter_model.safetensors", "second:");
            adapters[0].1 = combine["weights"][0].as_f64().unwrap();
            adapters.push((second, combine["weights"][1].as_f64().unwrap()));
            let (density, seed) = (combine["density"].as_f64().unwrap(), combine["seed"].as_u64().unwrap());
            options.combine = Combine::parse(combine["how"].as_str().unwrap(), density, seed).unwrap();
        }
        let base = Checkpoint::open(&base).unwrap();
        let overlay = Overlay::new(adapters, &base, &options);
        Laid { base, overlay: overlay.unwrap_or_else(|e| panic!("{e}")), _dir: Some(dir) }
    }

    fn target(&self, name: &str) -> usize {
        self.overlay.targets().iter().position(|t| t.name == name).unwrap()
    }

    fn base_bytes(&self, target: usize) -> &[u8] {
        let base = self.overlay.targets()[target].base;
        base.map_or(&[], |position| self.base.bytes(&self.base.tensors()[position]))
    }

    fn rows(&self, target: usize, numbers: &[u64], row_len: u64) -> Vec<u8> {
        let size = self.overlay.targets()[target].dtype.byte_size();
        let mut out = vec![0; numbers.len() * (row_len * size) as usize];
        let (rows, mut room) = (Rows { numbers, row_len }, MergeRoom::default());
        self.overlay
            .merge_rows(target, rows, BaseBytes::new(self.base_bytes(target)), &mut room, None, &mut out)
            .unwrap();
        out
    }

    fn whole(&self, target: usize) -> Vec<u8> {
        let shape = &self.overlay.targets()[target].shape;
        let numbers: Vec<u64> = (0..shape.row_count().unwrap()).collect();
        self.rows(target, &numbers, shape.row_len())
    }
}

/// The values that fixtures/lora/make.py gives a tensor of that name, with what it puts before it.
fn values(salt: &str, name: &str, count: u64) -> Vec<f32> {
    // A state dict's copy of a parameter.
    let name = format!("{salt}{}", name.replace(".modules_to_save.", "."));
    let seed = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let value = |i: u64| {
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(i + 1));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let value = ((z >> 40) as f64 / 8_388_608.0 - 1.0) as f32;
        let around_one =
            ["ia3_l", "magnitude", "_scale"].iter().any(|part| name.contains(part)) || name.ends_with(".m");
        if around_one { (1.0 + f64::from(value) / 4.0) as f32 } else { value }
    };
    (0..count).map(value).collect()
}

/// A safetensors file of tensors with the given dtypes and shapes.
fn write_file(path: &Path, tensors: &Value, salt: &str) {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, described) in tensors.as_object().unwrap() {
        let (dtype, dims) = (described[0].as_str().unwrap(), &described[1]);
        let count = dims.as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).product();
        let start = data.len();
        for value in values(salt, name, count) {
            match Dtype::from_name(dtype).unwrap() {
                Dtype::F32 => data.extend(value.to_le_bytes()),
                Dtype::BF16 => data.extend(half::bf16::from_f32(value).to_le_bytes()),
                Dtype::F16 => data.extend(half::f16::from_f32(value).to_le_bytes()),
                small @ (Dtype::F8_E4M3 | Dtype::F8_E5M2) => {
                    let mut byte = [0];
                    round_to(small, &[value.into()], &mut byte).unwrap();
                    data.extend(byte);
                }
                other => panic!("{other}"),
            }
        }
        entries
            .push(format!(r#""{name}":{{"dtype":"{dtype}","shape":{dims},"data_offsets":[{start},{}]}}"#, data.len()));
    }
    let header = format!("{{{}}}", entries.join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    std::fs::write(path, bytes).unwrap();
}

/// Compares every tensor with the golden: those that change by digest, and that no other is touched.
fn check(case: &str, weights: Option<&Path>) {
    let path = fixtures("lora").join(format!("{case}.json"));
    let golden: Value = serde_json::from_slice(&mlpack_fs::read_bounded(&path, 1 << 24).unwrap()).unwrap();
    let laid = Laid::golden_with(&golden, weights);
    let merged = golden["merged"].as_object().unwrap();
    let mut compared = 0;
    for (name, theirs) in merged {
        // transformers also writes parameters that the base's file has under another name, such as a tied head.
        let Some(target) = laid.overlay.targets().iter().position(|t| t.name == *name) else {
            assert_eq!(theirs["changed"], false, "{case}: {name} is not touched");
            continue;
        };
        let shape: Vec<u64> = theirs["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).collect();
        assert_eq!(laid.overlay.targets()[target].shape.dims(), shape, "{case}: {name}");
        let ours = laid.whole(target);
        assert_eq!(
            theirs["sha256"],
            Sha256::of(&ours).to_string(),
            "{case}: {name} {:?}",
            laid.overlay.targets()[target].kinds()
        );
        compared += 1;
    }
    assert_eq!(compared, laid.overlay.targets().len(), "{case}: a target that PEFT's result does not have");
    assert!(compared > 0, "{case}");
    // A head that is no longer the embedding is worth a word, and so are sums that become FP8 again.
    assert_eq!(
        laid.overlay.notes().len(),
        usize::from(case == "vocabulary-tied" || case.starts_with("fp8-")),
        "{case}: {:?}",
        laid.overlay.notes()
    );
}

#[test]
fn every_kind_of_adapter_and_way_of_combining_them_is_pefts_in_float64_rounded_once() {
    let mut cases: Vec<String> = std::fs::read_dir(fixtures("lora"))
        .unwrap()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix(".json")?.to_owned()))
        .collect();
    cases.sort();
    assert!(cases.len() >= 56, "{cases:?}");
    let failed: Vec<&String> =
        cases.iter().filter(|case| std::panic::catch_unwind(|| check(case, None)).is_err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn files_that_pytorch_wrote_are_the_same_adapter() {
    // A plain state dict; and one within a training checkpoint, with transposed views and a storage that two tensors share.
    for file in ["adapter_model.bin", "adapter_model.pt"] {
        check("lora", Some(&fixtures("lora/torch").join(file)));
    }
}

#[test]
fn slabs_and_row_order_do_not_change_a_bit_of_any_kind() {
    for case in [
        "dora",
        "dora-conv1d-layers",
        "convolutions",
        "lokr",
        "loha-convolutions",
        "experts-transposed",
        "ia3",
        "fp8-e4m3",
        "combine-ties",
        "combine-dare",
        "combine-magnitude-prune",
    ] {
        let path = fixtures("lora").join(format!("{case}.json"));
        let laid = Laid::golden(&serde_json::from_slice(&mlpack_fs::read_bounded(&path, 1 << 24).unwrap()).unwrap());
        for target in 0..laid.overlay.targets().len() {
            let shape = laid.overlay.targets()[target].shape.clone();
            let (numbers, row_len): (Vec<u64>, u64) = ((0..shape.row_count().unwrap()).collect(), shape.row_len());
            let whole = laid.whole(target);
            let row_byte_len = whole.len() / numbers.len();
            for slab in [1, 3, 7] {
                let pieces: Vec<u8> = numbers.chunks(slab).flat_map(|n| laid.rows(target, n, row_len)).collect();
                assert!(pieces == whole, "{case}: {} in slabs of {slab}", laid.overlay.targets()[target].name);
            }
            let reversed: Vec<u64> = numbers.iter().rev().copied().collect();
            let back: Vec<u8> =
                laid.rows(target, &reversed, row_len).rchunks(row_byte_len).flatten().copied().collect();
            assert!(back == whole, "{case}: {} backwards", laid.overlay.targets()[target].name);
            // The elements of a vector one by one.
            if shape.rank() == 1 {
                let elements: Vec<u64> = (0..row_len).collect();
                assert!(laid.rows(target, &elements, 1) == whole, "{case}");
            }
        }
    }
}

/// A sum as an unevaluated pair of float64, about 106 bits (Knuth's TwoSum).
#[derive(Clone, Copy)]
struct Wide(f64, f64);

impl Wide {
    fn add(self, x: f64) -> Wide {
        let s = self.0 + x;
        let t = s - self.0;
        let e = (self.0 - (s - t)) + (x - t);
        Wide(s, self.1 + e)
    }

    /// The nearest bfloat16, ties to even, by distance to the candidates around the sum.
    fn to_bf16(self) -> u16 {
        let guess = half::bf16::from_f32(self.0 as f32).to_bits();
        let value = |b: u16| f64::from(half::bf16::from_bits(b).to_f32());
        let distance = |b: u16| ((self.0 - value(b)) + self.1).abs();
        [guess.wrapping_sub(1), guess, guess.wrapping_add(1)]
            .into_iter()
            .filter(|b| value(*b).is_finite())
            .min_by(|a, b| distance(*a).total_cmp(&distance(*b)).then((a & 1).cmp(&(b & 1))))
            .unwrap()
    }
}

#[test]
fn no_merged_element_of_the_legal_qa_adapter_is_off() {
    let laid = Laid::legal_qa(1.0);
    let mut elements = 0;
    for (i, target) in laid.overlay.targets().iter().enumerate() {
        let merged = laid.whole(i);
        let [part] = &target.parts[..] else { panic!("one adapter") };
        let Form::Add { delta: Delta::Plain(Operand::Product(left, right)), scale } = &part.form else {
            panic!("a plain LoRA")
        };
        let adapter = &laid.overlay.adapters()[0].0;
        let floats = |m: &Matrix| -> Vec<f64> {
            adapter.bytes(m.tensor).as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect()
        };
        let (a, b) = (floats(right), floats(left));
        let (cols, rank) = (target.shape.row_len() as usize, right.rows as usize);
        assert_eq!(*scale, 2.0, "a power of two, so scaling a product is exact");
        let base = laid.base_bytes(i).as_chunks::<2>().0;
        for (i, (bytes, base)) in merged.as_chunks::<2>().0.iter().zip(base).enumerate() {
            let (row, col) = (i / cols, i % cols);
            let w = f64::from(half::bf16::from_le_bytes(*base).to_f32());
            let exact = (0..rank).fold(Wide(w, 0.0), |s, k| s.add(2.0 * b[row * rank + k] * a[k * cols + col]));
            assert_eq!(u16::from_le_bytes(*bytes), exact.to_bf16(), "{} [{row}, {col}]", target.name);
        }
        elements += merged.len() / 2;
    }
    assert_eq!(elements, 1_081_344);
}

#[test]
fn slabs_and_row_order_of_a_weighted_merge_do_not_change_a_bit() {
    let laid = Laid::legal_qa(0.7);
    let target = laid.target("model.layers.1.mlp.down_proj.weight");
    let row_len = laid.overlay.targets()[target].shape.row_len();
    let numbers: Vec<u64> = (0..256).collect();
    let whole = laid.rows(target, &numbers, row_len);
    for slab in [1, 7, 100] {
        let pieces: Vec<u8> = numbers.chunks(slab).flat_map(|n| laid.rows(target, n, row_len)).collect();
        assert!(pieces == whole, "slabs of {slab} rows");
    }
}

#[test]
fn an_adapter_of_another_base_is_refused_with_every_shape() {
    let base = Checkpoint::open(&fixtures("legal-qa/kjv-llama")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(
        fixtures("legal-qa/legal-qa-lora/adapter_model.safetensors"),
        dir.path().join("adapter_model.safetensors"),
    )
    .unwrap();
    std::fs::write(dir.path().join("adapter_config.json"), r#"{"peft_type":"LORA","r":4,"lora_alpha":8}"#).unwrap();
    let adapter = Adapter::open(dir.path()).unwrap();
    match Overlay::new(vec![(adapter, 1.0)], &base, &OverlayOptions::default()) {
        Err(Error::Misfit { misfits, .. }) => assert_eq!(misfits.len(), 24, "A and B of 12 modules"),
        other => panic!("{other:?}"),
    }
}

/// Every finite bfloat16 in some element, and what the delta takes away again to nearly nothing.
#[test]
fn sums_in_float32_are_the_float64_ones_rounded() {
    let laid = Laid::legal_qa(0.7);
    for name in ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"] {
        let index = laid.target(name);
        let target = &laid.overlay.targets()[index];
        let base_len = laid.base_bytes(index).len() as u64;
        assert!(laid.overlay.asks_for_products(index, base_len), "this is the case that is summed in float32");
        let (numbers, row_len): (Vec<u64>, u64) = ((0..target.matrix_dims().0).collect(), target.shape.row_len());
        let merged = |base: &[u8], tally: Option<&ChangeTally>| {
            let mut out = vec![0; base.len()];
            let (rows, mut room) = (Rows { numbers: &numbers, row_len }, MergeRoom::default());
            laid.overlay.merge_rows(index, rows, BaseBytes::new(base), &mut room, tally, &mut out).map(|()| out)
        };
        // What is asked for changes is summed in float64.
        let tally = ChangeTally::new(&laid.overlay);
        let count = laid.base_bytes(index).len() / 2;
        let finite = (0..count).map(|i| (i * 40_503 % 65_536) as u16).map(|bits| match bits & 0x7f80 {
            0x7f80 => bits & 0x807f,
            _ => bits,
        });
        let all: Vec<u8> = finite.flat_map(u16::to_le_bytes).collect();
        let delta = merged(&vec![0; count * 2], Some(&tally)).unwrap();
        let negated: Vec<u8> = delta.as_chunks::<2>().0.iter().flat_map(|[low, high]| [*low, high ^ 0x80]).collect();
        for base in [&all, &negated, &delta, &vec![0; count * 2]] {
            assert!(merged(base, None).unwrap() == merged(base, Some(&tally)).unwrap(), "{name}");
        }
        let mut infinite = all;
        infinite[2_001] = 0x7f;
        infinite[2_000] = 0x80;
        let error = merged(&infinite, None).unwrap_err().to_string();
        assert_eq!(error, merged(&infinite, Some(&tally)).unwrap_err().to_string());
    }
}
