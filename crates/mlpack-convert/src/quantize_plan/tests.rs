//! What the goldens of the legal-qa base do not show: pruning, splits, guesses and refusals.

use super::*;
use crate::TensorType;

fn given(tensors: &[(&str, GgmlType, &[u64])]) -> (Plan, Vec<Given>) {
    let given: Vec<Given> = tensors
        .iter()
        .enumerate()
        .map(|(i, (name, ty, dims))| Given {
            name: (*name).to_owned(),
            shape: Shape::new(dims.to_vec()),
            ty: *ty,
            source: None,
            place: (0, i as u64),
        })
        .collect();
    let step = |g: &Given| Step::computed(Vec::new(), &g.shape);
    (Plan { steps: given.iter().map(step).collect(), ..Plan::default() }, given)
}

fn metadata(entries: &[(&str, MetaValue)]) -> Metadata {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "llama".into());
    entries.iter().for_each(|(key, value)| metadata.set(*key, value.clone()));
    metadata
}

fn types(output: &Output) -> Vec<(&str, &'static str)> {
    output.tensors.iter().map(|t| (t.name.as_str(), t.stored.name())).collect()
}

/// The metadata that a file of this preamble has.
fn read_back(plan: &Plan, output: usize) -> Metadata {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.gguf");
    let mut bytes = plan.outputs[output].preamble.clone();
    bytes.resize(plan.outputs[output].byte_len as usize, 0);
    std::fs::write(&path, bytes).unwrap();
    mlpack_gguf::GgufFile::open(&path).unwrap().metadata().clone()
}

const LAYERS: &[(&str, GgmlType, &[u64])] = &[
    ("token_embd.weight", GgmlType::BF16, &[8, 256]),
    ("blk.10.ffn_down.weight", GgmlType::BF16, &[4, 256]),
    ("blk.2.ffn_down.weight", GgmlType::BF16, &[4, 256]),
    ("blk.1.ffn_down.weight", GgmlType::BF16, &[4, 256]),
    ("blk.0.ffn_down.weight", GgmlType::BF16, &[4, 256]),
];

#[test]
fn pruned_layers_are_left_out_and_the_later_ones_numbered_anew() {
    let (mut plan, given) = given(LAYERS);
    let options = QuantizeOptions { prune_layers: [1].into(), ..QuantizeOptions::default() };
    let metadata = metadata(&[("llama.block_count", MetaValue::U32(11)), ("z", MetaValue::U32(0))]);
    add_variant(&mut plan, "out", &given, &metadata, FileType::Q8_0, &options, Split::default()).unwrap();
    let names: Vec<&str> = plan.outputs[0].tensors.iter().map(|t| t.name.as_str()).collect();
    let expected = ["token_embd.weight", "blk.0.ffn_down.weight", "blk.1.ffn_down.weight", "blk.2.ffn_down.weight"];
    assert_eq!(names, expected);
    let keys: Vec<(String, MetaValue)> = read_back(&plan, 0).iter().map(|(k, v)| (k.to_owned(), v.clone())).collect();
    assert_eq!(keys.last().unwrap(), &("llama.block_count".to_owned(), MetaValue::U32(3)));
    drop_unused(&mut plan, &given);
    assert_eq!(plan.dropped, [("blk.1.ffn_down.weight".to_owned(), PRUNED)]);
    assert_eq!(plan.steps.len(), 4);
}

#[test]
fn a_layer_that_is_not_there_and_pruning_everything_are_refused() {
    let prune = |layers: &[u64]| {
        let (mut plan, given) = given(LAYERS);
        let options = QuantizeOptions { prune_layers: layers.iter().copied().collect(), ..QuantizeOptions::default() };
        add_variant(&mut plan, "out", &given, &metadata(&[]), FileType::Q8_0, &options, Split::default())
    };
    assert!(matches!(prune(&[3]), Err(Error::NoSuchLayer { layer: 3, layers: 4 })));
    assert!(matches!(prune(&[0, 1, 2, 10]), Err(Error::NoLayerLeft)));
}

#[test]
fn overrides_come_after_the_file_type_and_the_split_is_forgotten() {
    let (mut plan, given) = given(LAYERS);
    let options = QuantizeOptions {
        overrides: vec![("a".to_owned(), MetaValue::U32(1)), ("general.architecture".to_owned(), "qwen2".into())],
        ..QuantizeOptions::default()
    };
    let metadata = metadata(&[("split.no", MetaValue::U16(0)), ("a", MetaValue::F32(0.0)), ("b", MetaValue::U32(2))]);
    add_variant(&mut plan, "out", &given, &metadata, FileType::Q4_0, &options, Split::default()).unwrap();
    let read = read_back(&plan, 0);
    let keys: Vec<&str> = read.iter().map(|(k, _)| k).collect();
    assert_eq!(keys, ["b", "general.quantization_version", "general.file_type", "a", "general.architecture"]);
}

#[test]
fn copying_keeps_types_and_the_stated_or_guessed_file_type() {
    let tensors: &[(&str, GgmlType, &[u64])] = &[
        ("output_norm.weight", GgmlType::F32, &[256]),
        ("blk.0.ffn_down.weight", GgmlType::Q4_K, &[4, 256]),
        ("blk.0.ffn_up.weight", GgmlType::Q4_K, &[4, 256]),
    ];
    let copy = |metadata: &Metadata| {
        let (mut plan, given) = given(tensors);
        add_variant(&mut plan, "out", &given, metadata, FileType::COPY, &QuantizeOptions::default(), Split::default())
            .unwrap();
        let kept = types(&plan.outputs[0]).iter().map(|(_, ty)| *ty).collect::<Vec<_>>();
        assert_eq!(kept, ["F32", "Q4_K", "Q4_K"]);
        read_back(&plan, 0).find("general.file_type").cloned()
    };
    assert_eq!(copy(&metadata(&[])), Some(MetaValue::U32(1024 + 15)));
    assert_eq!(copy(&metadata(&[("general.file_type", MetaValue::U32(7))])), Some(MetaValue::U32(7)));
}

#[test]
fn quantizing_again_is_refused_unless_asked_for() {
    let tensors: &[(&str, GgmlType, &[u64])] =
        &[("blk.0.ffn_down.weight", GgmlType::Q8_0, &[4, 256]), ("blk.0.ffn_up.weight", GgmlType::Q4_K, &[4, 256])];
    let with = |allow_requantize| {
        let (mut plan, given) = given(tensors);
        let options = QuantizeOptions { allow_requantize, pure: true, ..QuantizeOptions::default() };
        add_variant(&mut plan, "out", &given, &metadata(&[]), FileType::Q4_K_M, &options, Split::default())
    };
    let Err(Error::Requantize { tensors }) = with(false) else { panic!() };
    assert_eq!(tensors, [("blk.0.ffn_down.weight".to_owned(), GgmlType::Q8_0, GgmlType::Q4_K)]);
    assert!(with(true).is_ok());
}

#[test]
fn a_type_without_a_smaller_block_is_refused_where_it_does_not_fit() {
    let tensors: &[(&str, GgmlType, &[u64])] = &[("blk.0.attn_q.weight", GgmlType::F16, &[4, 96])];
    let quantize = |variant, patterns: &[&str]| {
        let (mut plan, given) = given(tensors);
        let tensor_types = patterns.iter().map(|p| TensorType::parse(p).unwrap()).collect();
        let options = QuantizeOptions { tensor_types, ..QuantizeOptions::default() };
        add_variant(&mut plan, "out", &given, &metadata(&[]), variant, &options, Split::default())?;
        Ok::<_, Error>(types(&plan.outputs[0])[0].1)
    };
    assert!(matches!(quantize(FileType::Q1_0, &[]), Err(Error::RowLength { ty: GgmlType::Q1_0, row_len: 96, .. })));
    assert!(matches!(quantize(FileType::Q4_0, &["attn=nvfp4"]), Err(Error::RowLength { .. })));
    assert_eq!(quantize(FileType::Q4_K_M, &[]).unwrap(), "Q5_0");
    assert_eq!(quantize(FileType::Q4_0, &["attn=q6_k"]).unwrap(), "Q8_0", "a pattern's type falls back too");
}

#[test]
fn types_that_need_importance_are_refused_without_it_before_any_work() {
    let (mut plan, given) = given(LAYERS);
    let result = add_variant(
        &mut plan,
        "out",
        &given,
        &metadata(&[]),
        FileType::IQ2_XXS,
        &QuantizeOptions::default(),
        Split::default(),
    );
    let Err(Error::ImportanceMissing { file: None, tensors }) = result else { panic!("{result:?}") };
    assert!(tensors.contains(&("blk.10.ffn_down.weight".to_owned(), GgmlType::IQ2_XXS)), "{tensors:?}");
}

#[test]
fn a_pattern_skips_the_rules_and_their_counts() {
    let layers: Vec<(String, GgmlType, &[u64])> =
        (0..4).map(|i| (format!("blk.{i}.attn_v.weight"), GgmlType::F16, &[4, 256][..])).collect();
    let layers: Vec<(&str, GgmlType, &[u64])> = layers.iter().map(|(n, t, d)| (n.as_str(), *t, *d)).collect();
    let chosen = |patterns: &[&str]| {
        let (mut plan, given) = given(&layers);
        let tensor_types = patterns.iter().map(|p| TensorType::parse(p).unwrap()).collect();
        let options = QuantizeOptions { tensor_types, ..QuantizeOptions::default() };
        add_variant(&mut plan, "out", &given, &metadata(&[]), FileType::Q3_K_M, &options, Split::default()).unwrap();
        types(&plan.outputs[0]).iter().map(|(_, ty)| *ty).collect::<Vec<_>>()
    };
    assert_eq!(chosen(&[]), ["Q5_K", "Q5_K", "Q4_K", "Q4_K"]);
    assert_eq!(chosen(&[r"blk\.0=F16"]), ["F16", "Q5_K", "Q5_K", "Q4_K"]);
}

#[test]
fn a_split_model_keeps_its_parts_when_asked_to() {
    let (mut plan, mut given) = given(LAYERS);
    for (i, tensor) in given.iter_mut().enumerate() {
        tensor.place = (i / 3, (i % 3) as u64);
    }
    let options = QuantizeOptions { keep_split: true, ..QuantizeOptions::default() };
    add_variant(&mut plan, "big", &given, &metadata(&[]), FileType::Q8_0, &options, Split::default()).unwrap();
    let files: Vec<&str> = plan.outputs.iter().map(|o| o.file_name.as_str()).collect();
    assert_eq!(files, ["big-00001-of-00002.gguf", "big-00002-of-00002.gguf"]);
    assert_eq!(plan.outputs[1].tensors[0].name, "blk.1.ffn_down.weight", "parts keep the order of the input");
    let second: Vec<(String, MetaValue)> = read_back(&plan, 1).iter().map(|(k, v)| (k.to_owned(), v.clone())).collect();
    let expected = [
        ("split.no".to_owned(), MetaValue::U16(1)),
        ("split.count".to_owned(), MetaValue::U16(2)),
        ("split.tensors.count".to_owned(), MetaValue::I32(5)),
    ];
    assert_eq!(second, expected);
}

#[test]
fn outer_dimensions_of_one_are_not_counted() {
    assert_eq!(without_outer_ones(&Shape::new(vec![1, 1, 5])).dims(), [5]);
    assert_eq!(without_outer_ones(&Shape::new(vec![2, 1, 5])).dims(), [2, 1, 5]);
    assert_eq!(without_outer_ones(&Shape::new(vec![1])).dims(), [1]);
}
