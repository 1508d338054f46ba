//! `mlpack diff`: figures against plain float64 arithmetic over the same files, gates, and the page.

use crate::support::{TestDir, base, fixture, mlpack};
use mlpack_gguf::GgufFile;
use mlpack_tensor::GgmlType;
use serde_json::Value;
use std::collections::BTreeMap;

fn adapter() -> String {
    fixture("legal-qa/legal-qa-lora").display().to_string()
}

/// The base in every type that the tests compare, as `out/base-<QUANT>.gguf`.
fn converted(quants: &str) -> TestDir {
    let dir = TestDir::new();
    mlpack(&dir).args(["convert", &base(), "--quant", quants, "--name", "base", "-o", "out"]).succeed();
    dir
}

/// The values of every tensor of a GGUF file.
fn values(dir: &TestDir, name: &str) -> BTreeMap<String, Vec<f32>> {
    let file = GgufFile::open(&dir.path(name)).unwrap();
    let decode = |t: &mlpack_gguf::Tensor| {
        let mut floats = vec![0.0; t.shape.element_count().unwrap() as usize];
        mlpack_quant::decode(t.ty, file.bytes(t), &mut floats).unwrap();
        (t.name.clone(), floats)
    };
    file.tensors().iter().map(decode).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("not a number: {value}"))
}

#[test]
fn a_conversion_without_loss_has_no_error() {
    // Rows of the checkpoint are in another order than in the file: pairs of wrong rows would show.
    let dir = converted("F32,BF16");
    for b in ["out/base-F32.gguf", "out/base-BF16.gguf"] {
        let diff = mlpack(&dir).args(["diff", &base(), b, "--max-rmse", "0", "--min-cosine", "1"]).json();
        let tensors = diff["tensors"].as_array().unwrap();
        assert_eq!((tensors.len(), &diff["holds"]), (values(&dir, b).len(), &Value::Bool(true)));
        for tensor in tensors {
            assert_eq!(["rmse", "max_error"].map(|key| number(&tensor[key])), [0.0, 0.0], "{tensor}");
            assert_eq!(number(&tensor["cosine"]), 1.0, "{tensor}");
        }
        for key in ["only_in_a", "only_in_b", "reshaped"] {
            assert_eq!(diff[key].as_array().map(Vec::len), Some(0), "{key}");
        }
    }
}

#[test]
fn figures_are_those_of_plain_arithmetic_over_the_same_files() {
    let dir = converted("F32,F16,Q4_K_M");
    // The F32 file holds the base's values exactly, and llama.cpp made the same bytes (cli_convert).
    let source = values(&dir, "out/base-F32.gguf");
    for b in ["out/base-F16.gguf", "out/base-Q4_K_M.gguf"] {
        let stored = values(&dir, b);
        let file = GgufFile::open(&dir.path(b)).unwrap();
        for a in [base().as_str(), "out/base-F32.gguf"] {
            let diff = mlpack(&dir).args(["diff", a, b]).json();
            assert_eq!(diff["tensors"].as_array().unwrap().len(), stored.len());
            let (mut all, mut all_squared) = (0.0, 0.0);
            for tensor in diff["tensors"].as_array().unwrap() {
                let name = tensor["name"].as_str().unwrap();
                let pairs: Vec<(f64, f64)> =
                    source[name].iter().zip(&stored[name]).map(|(a, b)| (f64::from(*a), f64::from(*b))).collect();
                let n = pairs.len() as f64;
                let squared: f64 = pairs.iter().map(|(a, b)| (a - b).powi(2)).sum();
                let (aa, bb): (f64, f64) =
                    (pairs.iter().map(|p| p.0 * p.0).sum(), pairs.iter().map(|p| p.1 * p.1).sum());
                let dot: f64 = pairs.iter().map(|(a, b)| a * b).sum();
                let max = pairs.iter().map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                let near = |key: &str, expected: f64| {
                    let found = number(&tensor[key]);
                    assert!((found - expected).abs() <= 1e-12 * expected.abs(), "{name} {key}: {found} {expected}");
                };
                near("rmse", (squared / n).sqrt());
                near("relative_rmse", (squared / aa).sqrt());
                near("cosine", dot / (aa * bb).sqrt());
                near("max_error", max);
                let info = file.tensors().iter().find(|t| t.name == name).unwrap();
                let row_len = info.shape.row_len();
                let at = tensor["max_error_at"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap());
                let index = at.reduce(|row, column| row * row_len + column).unwrap() as usize;
                assert_eq!((pairs[index].0 - pairs[index].1).abs(), max, "{name}: where the largest error is");
                near("bits_per_weight", (info.range.end - info.range.start) as f64 * 8.0 / n);
                assert_eq!(tensor["b"], info.ty.name());
                all += n;
                all_squared += squared;
            }
            let total = number(&diff["total"]["rmse"]);
            assert!((total - (all_squared / all).sqrt()).abs() <= 1e-12 * total, "{total}");
        }
    }
}

#[test]
fn limits_decide_the_exit_code() {
    let dir = converted("Q4_K_M,Q8_0");
    let worst = |key: &str, keep: fn(f64, f64) -> f64| {
        let diff = mlpack(&dir).args(["diff", &base(), "out/base-Q4_K_M.gguf"]).json();
        diff["tensors"].as_array().unwrap().iter().map(|t| number(&t[key])).reduce(keep).unwrap()
    };
    let (rmse, cosine) = (worst("rmse", f64::max), worst("cosine", f64::min));
    assert!(rmse > 0.0 && cosine < 1.0);
    let run = |option: &str, limit: f64, code: i32| {
        mlpack(&dir).args(["diff", &base(), "out/base-Q4_K_M.gguf", option, &limit.to_string()]).expect(code).0
    };
    assert!(run("--max-rmse", rmse, 0).contains(&format!("every tensor keeps the limits: RMSE at most {rmse}")));
    assert!(run("--max-rmse", rmse * 0.999_999, 1).contains("tensors over the limits: RMSE at most"));
    run("--min-cosine", cosine, 0);
    assert!(run("--min-cosine", cosine + 1e-9, 1).contains("cosine under"));
    // NaN is no limit that anything keeps.
    run("--max-rmse", f64::NAN, 1);
    // A finer type keeps what a coarser one does not.
    mlpack(&dir).args(["diff", &base(), "out/base-Q8_0.gguf", "--max-rmse", &(rmse / 4.0).to_string()]).succeed();
}

#[test]
fn adapters_are_laid_over_the_source() {
    let dir = TestDir::new();
    mlpack(&dir).args(["convert", &base(), "-a", &adapter(), "--quant", "F32", "--name", "tuned", "-o", "."]).succeed();
    let with = mlpack(&dir).args(["diff", &base(), "-a", &adapter(), "tuned-F32.gguf", "--max-rmse", "0"]).json();
    assert_eq!(number(&with["total"]["rmse"]), 0.0);
    let without = mlpack(&dir).args(["diff", &base(), "tuned-F32.gguf"]).json();
    let changed = without["tensors"].as_array().unwrap().iter().filter(|t| number(&t["rmse"]) > 0.0);
    let plan = mlpack(&dir).args(["check", &base(), "-a", &adapter(), "--quant", "F32"]).json();
    assert_eq!(Some(changed.count() as u64), plan["changed"].as_u64());
    let (_, error) = mlpack(&dir).args(["diff", "tuned-F32.gguf", "-a", &adapter(), "tuned-F32.gguf"]).expect(2);
    assert!(error.contains("adapters are laid over a checkpoint"), "{error}");
}

#[test]
fn threads_and_memory_do_not_change_a_figure() {
    let dir = converted("Q4_K_M");
    let run = |threads: &str, memory: &str, page: &str| {
        let args =
            ["diff", &base(), "out/base-Q4_K_M.gguf", "--threads", threads, "--memory", memory, "--report", page];
        (mlpack(&dir).args(args).json(), std::fs::read(dir.path(page)).unwrap())
    };
    let once = run("1", "256MiB", "1.html");
    assert_eq!(run("4", "256MiB", "4.html"), once);
    assert_eq!(run("3", "400KiB", "3.html"), once);
}

#[test]
fn people_see_the_worst_tensors_and_every_kind() {
    let dir = converted("Q4_K_M");
    let (text, _) = mlpack(&dir).args(["diff", &base(), "out/base-Q4_K_M.gguf", "--min-cosine", "0.9975"]).expect(1);
    insta::assert_snapshot!(text);
    let (all, _) = mlpack(&dir).args(["diff", &base(), "out/base-Q4_K_M.gguf", "--all"]).expect(0);
    for name in values(&dir, "out/base-Q4_K_M.gguf").keys() {
        assert!(all.lines().any(|line| line.trim_start().starts_with(&format!("{name} "))), "{name}");
    }
}

/// A GGUF file with one tensor of that name.
fn named(dir: &TestDir, file: &str, tensor: &str, values: &[f32]) {
    let shape = mlpack_tensor::Shape::new(vec![values.len() as u64]);
    let spec = mlpack_gguf::TensorSpec { name: tensor.to_owned(), ty: GgmlType::F32, shape };
    let layout = mlpack_gguf::Layout::new(&mlpack_tensor::Metadata::new(), vec![spec]).unwrap();
    let mut bytes = layout.header().to_vec();
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    bytes.resize(layout.byte_len() as usize, 0);
    std::fs::write(dir.path(file), bytes).unwrap();
}

#[test]
fn a_page_shows_names_of_strangers_as_text() {
    const EVIL: &str = "blk.0.<script>alert('x')</script>\u{1b}[31m";
    let dir = TestDir::new();
    named(&dir, "a.gguf", EVIL, &[1.0, 2.0]);
    named(&dir, "b.gguf", EVIL, &[1.0, 2.5]);
    let (text, _) = mlpack(&dir).args(["diff", "a.gguf", "b.gguf", "--report", "page.html"]).expect(0);
    assert!(!text.contains('\u{1b}'), "{text}");
    let page = std::fs::read_to_string(dir.path("page.html")).unwrap();
    assert!(!page.contains("<script") && !page.contains('\u{1b}'));
    assert!(page.contains("blk.<wbr>0.<wbr>&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;\\u{1b}[31m"), "{page}");
}

#[test]
fn what_cannot_be_compared_fails_a_gate_and_not_finite_values_do_too() {
    let dir = TestDir::new();
    named(&dir, "a.gguf", "x", &[1.0, 2.0]);
    named(&dir, "nan.gguf", "x", &[1.0, f32::NAN]);
    named(&dir, "other.gguf", "y", &[1.0, 2.0]);
    let diff = mlpack(&dir).args(["diff", "a.gguf", "nan.gguf"]).json();
    assert_eq!((&diff["tensors"][0]["rmse"], &diff["tensors"][0]["finite"]), (&Value::Null, &Value::Bool(false)));
    mlpack(&dir).args(["diff", "a.gguf", "nan.gguf", "--max-rmse", "inf"]).expect(1);
    mlpack(&dir).args(["diff", "a.gguf", "nan.gguf", "--min-cosine=-1"]).expect(1);
    // Nothing in common is no comparison at all.
    let (_, error) = mlpack(&dir).args(["diff", "a.gguf", "other.gguf"]).expect(3);
    insta::assert_snapshot!(error);
    mlpack(&dir).args(["diff", "a.gguf", "missing.gguf"]).expect(4);
    std::fs::write(dir.path("damaged.gguf"), "GGUF").unwrap();
    mlpack(&dir).args(["diff", "a.gguf", "damaged.gguf"]).expect(3);
}
