//! Slabs through a device modelled on the host: the files are those that the CPU writes, whatever happens on the way.

use super::*;
use crate::{
    FileType, GgufRequest, Imatrix, Importance, Input, MergeRequest, QuantizeOptions, Source, Split, execute, merge,
    open_model, plan_gguf, plan_merge,
};
use mlpack_arch::Families;
use mlpack_device::{HostModel, Limits};
use mlpack_fs::{AtomicDir, Sha256};
use std::path::{Path, PathBuf};

const TYPES: [&str; 8] = ["Q4_K_M", "Q6_K", "Q8_0", "BF16", "F16", "Q2_K", "IQ4_XS", "IQ3_S"];

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/legal-qa").join(path)
}

fn source(adapters: &[(&str, f64)]) -> Source {
    let adapters: Vec<(PathBuf, f64)> = adapters.iter().map(|(name, weight)| (fixture(name), *weight)).collect();
    Source::open(&fixture("kjv-llama"), &adapters, &Default::default()).unwrap()
}

fn plan(source: &Source, names: &[&str], options: &QuantizeOptions) -> Plan {
    let model = open_model(source, None, &Families::builtin()).unwrap();
    let variants: Vec<FileType> = names.iter().map(|name| FileType::parse(name).unwrap()).collect();
    let request = GgufRequest { name: "m", variants: &variants, pre: None, options, split: Split::default() };
    plan_gguf(source, &model, &request).unwrap()
}

/// Digests of the outputs, slabs on the device, and warnings.
fn run(source: &Source, plan: &Plan, resources: &Resources) -> (Vec<Sha256>, u64, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let done = execute(source, plan, dir.path(), resources, &|_| {}).unwrap();
    (done.outputs.iter().map(|output| output.sha256).collect(), done.on_device, done.warnings)
}

fn on(model: &HostModel, memory: Option<u64>, resources: Resources) -> Resources {
    let device = model.open(0, Limits { memory, lanes: 2 }).unwrap();
    Resources { device: Some(OnDevice::opened(device)), ..resources }
}

fn two_threads() -> Resources {
    Resources { threads: 2, ..Resources::default() }
}

#[test]
fn a_device_writes_the_files_of_the_cpu() {
    for adapters in [&[][..], &[("legal-qa-lora", 1.0)], &[("legal-qa-lora", 0.75), ("legal-qa-lora", -0.3)]] {
        let source = source(adapters);
        let plan = plan(&source, &TYPES, &QuantizeOptions::default());
        let (expected, none, _) = run(&source, &plan, &two_threads());
        assert_eq!(none, 0);
        let ways = if adapters.is_empty() { &[2][..] } else { &[2, 64] };
        for &slow_doubles in ways {
            for names in TYPES.map(|name| vec![name]).into_iter().chain([TYPES.to_vec()]) {
                let model = HostModel::new();
                model.set("slow_doubles", slow_doubles);
                let plan = self::plan(&source, &names, &QuantizeOptions::default());
                let (found, on_device, warnings) = run(&source, &plan, &on(&model, None, two_threads()));
                let expected: Vec<&Sha256> =
                    names.iter().map(|name| &expected[TYPES.iter().position(|n| n == name).unwrap()]).collect();
                assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{names:?} {adapters:?} {slow_doubles}");
                assert_eq!(warnings, [""; 0]);
                // Of what is only copied next to nothing goes there.
                assert!(on_device > 0 || names == ["BF16"], "{names:?} {adapters:?}");
            }
        }
    }
}

#[test]
fn tiles_threads_and_budgets_change_no_byte() {
    let source = source(&[("legal-qa-lora", 1.0)]);
    let plan = plan(&source, &["Q4_K_M", "Q8_0"], &QuantizeOptions::default());
    let (expected, ..) = run(&source, &plan, &two_threads());
    for (memory, threads, device_memory) in [(8 << 20, 1, 2 << 20), (64 << 20, 3, 1 << 20), (256 << 20, 4, 64 << 20)] {
        let model = HostModel::new();
        let resources = on(&model, Some(device_memory), Resources { memory, threads, ..Resources::default() });
        let (found, on_device, warnings) = run(&source, &plan, &resources);
        assert_eq!((found, warnings.len()), (expected.clone(), 0));
        assert!(on_device > 0 && model.get("used") <= device_memory);
    }
}

#[test]
fn a_device_that_fails_at_any_slab_leaves_the_rest_to_the_cpu() {
    let source = source(&[("legal-qa-lora", 1.0)]);
    let plan = plan(&source, &["Q4_K_M"], &QuantizeOptions::default());
    let resources = Resources { memory: 4 << 20, threads: 2, ..Resources::default() };
    let (expected, ..) = run(&source, &plan, &resources);
    let model = HostModel::new();
    let (_, all, _) = run(&source, &plan, &on(&model, None, resources.clone()));
    let launches = model.get("launched");
    assert!(launches > 40, "{launches}");
    for succeed in [0, 1, 7, launches / 2, launches - 1] {
        let model = HostModel::new();
        let resources = on(&model, None, resources.clone());
        model.set("launches", succeed);
        let (found, on_device, warnings) = run(&source, &plan, &resources);
        assert_eq!(found, expected, "after {succeed} launches");
        assert!(on_device < all);
        let [warning] = &warnings[..] else { panic!("{warnings:?}") };
        // After a launch that fails every call does, and the other thread's may be the first to say so.
        assert!(warning.starts_with("the GPU `host model 0` failed; cu"), "{warning}");
        assert!(warning.contains(": CUDA_ERROR_LAUNCH_FAILED"), "{warning}");
        assert!(warning.contains(&format!("{on_device} of ")), "{warning}");
    }
}

#[test]
fn memory_that_runs_out_leaves_the_rest_to_the_cpu() {
    let source = source(&[("legal-qa-lora", 1.0)]);
    let plan = plan(&source, &["Q4_K_M"], &QuantizeOptions::default());
    let (expected, ..) = run(&source, &plan, &two_threads());
    let model = HostModel::new();
    let resources = on(&model, None, two_threads());
    // Somebody else takes it after the device was opened.
    model.set("memory", 256);
    let (found, on_device, warnings) = run(&source, &plan, &resources);
    assert_eq!((found, on_device), (expected, 0));
    assert!(
        warnings[0].contains("has too little memory; expected: ") && warnings[0].contains(" bytes free; 0 of "),
        "{}",
        warnings[0]
    );
}

#[test]
fn importance_goes_along() {
    let source = source(&[]);
    let importance = Arc::new(Importance::open(&fixture("golden/llama.cpp-b11434/imatrix.gguf")).unwrap());
    let imatrix = Imatrix { importance, named: "imatrix.gguf".to_owned(), allow_unvisited_experts: false };
    let options = QuantizeOptions { imatrix: Some(imatrix), ..QuantizeOptions::default() };
    for name in ["Q4_K_M", "Q4_0", "Q5_1", "IQ4_NL", "Q3_K_M", "Q2_K_S", "IQ1_S", "IQ2_XXS", "IQ2_M", "IQ3_XS"] {
        let plan = plan(&source, &[name], &options);
        let (expected, ..) = run(&source, &plan, &two_threads());
        let model = HostModel::new();
        let (found, on_device, _) = run(&source, &plan, &on(&model, None, two_threads()));
        assert_eq!(found, expected, "{name}");
        assert!(on_device > 0, "{name}");
    }
}

#[test]
fn a_merged_checkpoint_is_that_of_the_cpu() {
    let source = source(&[("legal-qa-lora", 1.0)]);
    let merged = |resources: &Resources| {
        let dir = tempfile::tempdir().unwrap();
        let request = MergeRequest { max_shard_size: None, measures_changes: false };
        let plan = plan_merge(&source, &request).unwrap();
        let out = AtomicDir::take_up(&dir.path().join("merged")).unwrap();
        let done = merge(&source, &plan, out, resources, &|_| {}).unwrap();
        (done.outputs.iter().map(|output| output.sha256).collect::<Vec<_>>(), done.on_device)
    };
    let (expected, _) = merged(&two_threads());
    let (found, on_device) = merged(&on(&HostModel::new(), None, two_threads()));
    assert_eq!(found, expected);
    assert!(on_device > 0);
}

#[test]
fn auto_takes_a_device_only_where_much_is_searched() {
    let source = source(&[]);
    let model = HostModel::new();
    let opened = Ok(Arc::new(model.open(0, Limits { memory: None, lanes: 2 }).unwrap()));
    let unopened = Unopened { limits: Limits { memory: None, lanes: 2 }, opened: Arc::new(OnceLock::from(opened)) };
    let resources = Resources { device: Some(OnDevice::IfWorth(unopened)), ..two_threads() };
    let small = plan(&source, &["Q4_K_M"], &QuantizeOptions::default());
    let elements = searched_elements(&small);
    assert!(matches!(resources.place(&source, &small), Some(Place::NotWorth(found)) if found == elements && found > 0));
    let mut large = small.clone();
    large.outputs = vec![large.outputs[0].clone(); 40];
    assert!(matches!(resources.place(&source, &large), Some(Place::Device(_))));
    let mut copied = plan(&source, &["Q8_0"], &QuantizeOptions::default());
    copied.outputs = vec![copied.outputs[0].clone(); 100];
    assert!(matches!(resources.place(&source, &copied), Some(Place::NotWorth(_))));
    assert!(matches!(large.steps[0].input, Input::Tensors(_)));
    // One that is not open yet is opened for a plan that is worth it, and for no other.
    if !Device::IS_BUILT {
        let limits = Limits { memory: None, lanes: 1 };
        let closed = Resources { device: Some(OnDevice::if_worth(limits)), ..two_threads() };
        assert!(matches!(closed.place(&source, &small), Some(Place::NotWorth(_))));
        let Some(OnDevice::IfWorth(unopened)) = &closed.device else { panic!("it is not opened yet") };
        assert!(unopened.opened.get().is_none());
        assert!(matches!(closed.place(&source, &large), Some(Place::NotOpened(mlpack_device::Error::NotBuilt))));
    }
}

#[test]
fn what_is_measured_stays_on_the_cpu() {
    let source = source(&[("legal-qa-lora", 1.0)]);
    let mut plan = plan(&source, &["Q4_K_M"], &QuantizeOptions::default());
    plan.measures_changes = true;
    let resources = on(&HostModel::new(), None, two_threads());
    assert!(matches!(resources.place(&source, &plan), Some(Place::Measured)));
    assert_eq!(run(&source, &plan, &resources).1, 0);
}

#[test]
fn what_is_not_finite_is_named_by_the_cpu() {
    let source = source(&[("legal-qa-lora", 1e37)]);
    let plan = plan(&source, &["Q4_K_M"], &QuantizeOptions::default());
    let wrong = |resources: &Resources| {
        let dir = tempfile::tempdir().unwrap();
        execute(&source, &plan, dir.path(), resources, &|_| {}).unwrap_err().to_string()
    };
    let one = Resources { threads: 1, ..Resources::default() };
    assert_eq!(wrong(&on(&HostModel::new(), None, one.clone())), wrong(&one));
}

/// A GPU that only multiplies, so many times after it was looked at.
fn multiplying(succeed: u64) -> Resources {
    let left = Arc::new(AtomicU64::new(u64::MAX));
    let until = Arc::clone(&left);
    let multiply = move |left: &[f32], right: &[f32], [rows, rank, cols]: [usize; 3]| {
        let one_less = until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        one_less.map_err(|_| "gone".to_owned())?;
        let mut out = vec![0.0; rows * cols];
        for (left, out) in left.chunks_exact(rank).zip(out.chunks_exact_mut(cols)) {
            for (l, right) in left.iter().zip(right.chunks_exact(cols)).rev() {
                out.iter_mut().zip(right).for_each(|(sum, r)| *sum = l.mul_add(*r, *sum));
            }
        }
        Ok(out)
    };
    let device = ProductDevice::model(Box::new(multiply)).unwrap();
    left.store(succeed, Ordering::Relaxed);
    Resources { device: Some(OnDevice::Products(device)), ..two_threads() }
}

#[test]
fn a_device_that_only_multiplies_leaves_the_rest_to_the_cpu() {
    let source = source(&[("legal-qa-lora", 0.75)]);
    for names in [&["Q4_K_M"][..], &["F16", "Q8_0"]] {
        let plan = plan(&source, names, &QuantizeOptions::default());
        let (expected, ..) = run(&source, &plan, &two_threads());
        let (found, all, warnings) = run(&source, &plan, &multiplying(u64::MAX));
        assert_eq!((found, warnings.len()), (expected.clone(), 0));
        assert!(all >= 12, "every tensor that the adapter changes: {all}");
        for succeed in [0, 1, all / 2, all - 1] {
            let (found, done, warnings) = run(&source, &plan, &multiplying(succeed));
            assert_eq!(found, expected, "after {succeed}");
            let warning = format!(
                "the GPU `model` failed; found: gone; {done} products were computed there and the others on the CPU, with the \
                 same bytes"
            );
            assert_eq!((done, warnings), (succeed, vec![warning]));
        }
    }
}

#[test]
fn a_device_that_only_multiplies_is_used_where_it_would_help() {
    let resources = multiplying(u64::MAX);
    let (plain, one, two) = (source(&[]), source(&[("legal-qa-lora", 1.0)]), source(&[("legal-qa-lora", 1.0); 2]));
    let mut plan = plan(&one, &["Q4_K_M"], &QuantizeOptions::default());
    assert!(matches!(resources.place(&one, &plan), Some(Place::Products(_))));
    // Nothing to merge, and sums of two adapters, which float64 adds.
    for source in [&plain, &two] {
        let plan = self::plan(source, &["Q4_K_M"], &QuantizeOptions::default());
        assert!(matches!(resources.place(source, &plan), Some(Place::NoProducts(_))));
        assert_eq!(run(source, &plan, &resources).1, 0);
    }
    // What encoding loses is measured on the CPU, which encodes; what adapters change is a matter of float64.
    plan.limits.max_rmse = Some(1.0);
    assert!(matches!(resources.place(&one, &plan), Some(Place::Products(_))));
    assert!(run(&one, &plan, &resources).1 > 0);
    plan.measures_changes = true;
    assert!(matches!(resources.place(&one, &plan), Some(Place::Measured)));
    assert_eq!(run(&one, &plan, &resources).1, 0);
}
