//! Every golden of llama-quantize on the legal-qa base: names, order and types of all tensors.

use super::*;
use std::path::Path;

struct Golden {
    tensors: Vec<(String, String, Vec<u64>)>,
}

fn golden(name: &str) -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/legal-qa/golden/llama.cpp-b11434").join(name);
    let json: serde_json::Value = serde_json::from_slice(&mlpack_fs::read_bounded(&path, 1 << 20).unwrap()).unwrap();
    let tensors = json["tensors"].as_array().unwrap().iter().map(|t| {
        let mut dims: Vec<u64> = t["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).collect();
        dims.reverse();
        (t["name"].as_str().unwrap().to_owned(), t["type"].as_str().unwrap().to_owned(), dims)
    });
    Golden { tensors: tensors.collect() }
}

fn facts(importance: bool) -> ModelFacts {
    ModelFacts { arch: "llama".into(), layers: 3, heads: 4, kv_heads: 2, experts: 0, importance }
}

fn check(file_type: FileType, golden_name: &str, importance: bool) {
    let golden = golden(golden_name);
    let mut names: Vec<&str> = golden.tensors.iter().map(|(name, ..)| name.as_str()).collect();
    names.sort_by_key(|name| quantized_order(name));
    let in_file: Vec<&str> = golden.tensors.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, in_file, "{golden_name}: order");
    let facts = facts(importance);
    let options = QuantizeOptions::default();
    let mut mixture = Mixture::new(file_type, &facts, &options, names);
    for (name, ty, dims) in &golden.tensors {
        let shape = Shape::new(dims.clone());
        let chosen = mixture.choose(name, &shape).map_or(GgmlType::F32, |choice| choice.ty);
        assert_eq!(chosen.name(), ty, "{golden_name}: {name}");
    }
}

#[test]
fn types_equal_every_golden_without_importance() {
    use FileType as T;
    for ty in [
        T::Q2_K,
        T::Q3_K_S,
        T::Q3_K_M,
        T::Q3_K_L,
        T::Q4_0,
        T::Q4_1,
        T::Q4_K_S,
        T::Q4_K_M,
        T::Q5_0,
        T::Q5_1,
        T::Q5_K_S,
        T::Q5_K_M,
        T::Q6_K,
        T::Q8_0,
        T::IQ3_S,
        T::IQ3_M,
        T::IQ4_NL,
        T::IQ4_XS,
        T::TQ1_0,
        T::TQ2_0,
        T::MXFP4_MOE,
    ] {
        check(ty, &format!("q-{}.json", ty.name), false);
    }
}

#[test]
fn types_equal_every_golden_with_importance() {
    use FileType as T;
    for ty in [
        T::IQ1_S,
        T::IQ1_M,
        T::IQ2_XXS,
        T::IQ2_XS,
        T::IQ2_S,
        T::IQ2_M,
        T::IQ3_XXS,
        T::IQ3_XS,
        T::IQ3_S,
        T::IQ3_M,
        T::IQ4_NL,
        T::IQ4_XS,
        T::Q2_K,
        T::Q2_K_S,
        T::Q3_K_M,
        T::Q4_0,
        T::Q4_1,
        T::Q4_K_M,
        T::Q5_0,
        T::Q5_1,
        T::Q5_K_M,
        T::Q6_K,
    ] {
        check(ty, &format!("qi-{}.json", ty.name), true);
    }
}

#[test]
fn rows_that_are_not_whole_blocks_fall_back() {
    for (wanted, row_len, got) in [
        (GgmlType::Q4_K, 576, GgmlType::Q5_0),
        (GgmlType::Q6_K, 576, GgmlType::Q8_0),
        (GgmlType::Q5_K, 576, GgmlType::Q5_1),
        (GgmlType::Q3_K, 576, GgmlType::Q4_0),
        (GgmlType::IQ4_XS, 576, GgmlType::IQ4_NL),
        (GgmlType::Q4_0, 48, GgmlType::F16),
        (GgmlType::Q4_K, 80, GgmlType::F16),
        (GgmlType::Q4_K, 512, GgmlType::Q4_K),
    ] {
        assert_eq!(fit(wanted, row_len), got, "{wanted} {row_len}");
    }
}

#[test]
fn outer_dimensions_of_one_do_not_make_a_matrix() {
    let allows_quantization = |name: &str, shape: &Shape| allows_quantization("llama", name, shape);
    assert!(!allows_quantization("cls.output.weight", &Shape::new(vec![1, 256])));
    assert!(allows_quantization("cls.output.weight", &Shape::new(vec![2, 256])));
    assert!(!allows_quantization("blk.0.attn_q.bias", &Shape::new(vec![2, 256])));
}
