//! Parts that belong together are one model; parts that do not are refused with the part's name.

use super::*;
use crate::{Layout, TensorSpec};
use mlpack_fs::ErrorKind;
use mlpack_tensor::{GgmlType, MetaValue, Shape};
use tempfile::TempDir;

/// A part: its number, the number of parts, and of tensors in all of them, as they are stated; its tensors.
fn part(no: MetaValue, count: MetaValue, total: MetaValue, names: &[&str]) -> Vec<u8> {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "llama".into());
    metadata.set(NO, no);
    metadata.set(COUNT, count);
    metadata.set(TENSOR_COUNT, total);
    write(&metadata, names)
}

fn write(metadata: &Metadata, names: &[&str]) -> Vec<u8> {
    let spec = |name: &&str| TensorSpec { name: (*name).into(), ty: GgmlType::F32, shape: Shape::new(vec![2]) };
    let layout = Layout::new(metadata, names.iter().map(spec).collect()).unwrap();
    let mut bytes = layout.header().to_vec();
    bytes.resize(layout.byte_len() as usize, 0);
    bytes
}

/// A part as the reference types its keys.
fn typical(no: u16, count: u16, total: i32, names: &[&str]) -> Vec<u8> {
    part(no.into(), count.into(), total.into(), names)
}

fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    files.iter().for_each(|(name, bytes)| std::fs::write(dir.path().join(name), bytes).unwrap());
    dir
}

fn three() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("m-00001-of-00003.gguf", typical(0, 3, 4, &["d", "a"])),
        ("m-00002-of-00003.gguf", typical(1, 3, 4, &["c"])),
        ("m-00003-of-00003.gguf", typical(2, 3, 4, &["b"])),
    ]
}

/// What is wrong, without the line that names the file; the kind; the hint.
#[track_caller]
fn refused(files: &[(&str, Vec<u8>)], open: &str) -> (String, ErrorKind, Option<String>) {
    let dir = folder(files);
    let error = GgufModel::open(&dir.path().join(open)).unwrap_err();
    assert!(matches!(error, Error::Split { .. }), "{error}");
    let text = error.to_string();
    let (first, rest) = text.split_once('\n').unwrap();
    assert_eq!(first, format!("cannot read split model `{}`", dir.path().join(open).display()));
    (rest.to_owned(), error.kind(), error.hint())
}

#[test]
fn all_parts_of_a_split_model_are_one() {
    let dir = folder(&three());
    let model = GgufModel::open(&dir.path().join("m-00001-of-00003.gguf")).unwrap();
    let tensors: Vec<_> = model.tensors().map(|(file, tensor)| (file, tensor.name.as_str())).collect();
    assert_eq!(tensors, [(0, "d"), (0, "a"), (1, "c"), (2, "b")]);
    assert_eq!(model.files().len(), 3);
    assert_eq!(model.metadata().find("general.architecture"), Some(&"llama".into()));
}

#[test]
fn a_single_file_is_a_model_under_any_name() {
    let plain = write(&Metadata::new(), &["a"]);
    for (name, bytes) in [("x", plain), ("y.gguf", typical(0, 1, 1, &["a"])), ("z", typical(0, 0, 9, &["a"]))] {
        let dir = folder(&[(name, bytes)]);
        assert_eq!(GgufModel::open(&dir.path().join(name)).unwrap().tensors().count(), 1);
    }
}

#[test]
fn numbers_may_have_any_integer_type() {
    let one = part(0u64.into(), 2i32.into(), 2u8.into(), &["a"]);
    let two = part(1i8.into(), 2i64.into(), 2u32.into(), &["b"]);
    let dir = folder(&[("m-00001-of-00002.gguf", one), ("m-00002-of-00002.gguf", two)]);
    assert_eq!(GgufModel::open(&dir.path().join("m-00001-of-00002.gguf")).unwrap().tensors().count(), 2);
}

#[test]
fn the_tables_of_the_reference_are_read_as_one_model() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/legal-qa/golden/llama.cpp-b11434");
    let json = |name: &str| -> serde_json::Value {
        #[allow(clippy::disallowed_methods, reason = "a test reads its fixture")]
        serde_json::from_slice(&std::fs::read(golden.join(format!("{name}.json"))).unwrap()).unwrap()
    };
    let names = |made: &serde_json::Value| -> Vec<String> {
        made["tensors"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap().to_owned()).collect()
    };
    let mut files = Vec::new();
    let mut expected = Vec::new();
    for no in 0..3 {
        let name = part_name("split", no, 3);
        let made = json(name.strip_suffix(".gguf").unwrap());
        let key = |key: &str| {
            let found = made["kv"].as_array().unwrap().iter().find(|kv| kv["key"] == key).unwrap();
            let value = found["value"].as_u64().unwrap();
            match found["type"][0].as_str().unwrap() {
                "UINT16" => MetaValue::U16(value as u16),
                "INT32" => MetaValue::I32(value as i32),
                other => panic!("{other}"),
            }
        };
        let names = names(&made);
        let bytes = part(key(NO), key(COUNT), key(TENSOR_COUNT), &names.iter().map(String::as_str).collect::<Vec<_>>());
        files.push((name, bytes));
        expected.extend(names);
    }
    let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let dir = folder(&files);
    let model = GgufModel::open(&dir.path().join(files[0].0)).unwrap();
    assert_eq!(model.tensors().map(|(_, t)| t.name.clone()).collect::<Vec<_>>(), expected);
    assert_eq!(expected, names(&json("hf-f16")), "the same tensors in the same order as in one file");
}

#[test]
fn a_later_part_names_the_first() {
    assert_eq!(
        refused(&three(), "m-00002-of-00003.gguf"),
        (
            "  not the first part\n  expected: part 1 of 3\n  found:    part 2 of 3".to_owned(),
            ErrorKind::Misuse,
            Some("open `m-00001-of-00003.gguf`".to_owned())
        )
    );
    let renamed = [("other.gguf", typical(1, 3, 4, &["c"]))];
    assert_eq!(refused(&renamed, "other.gguf").2.unwrap(), "open the first part");
}

#[test]
fn a_name_that_is_not_a_parts_is_refused() {
    for name in ["m.gguf", "m-00001-of-00002.gguf", "m-1-of-3.gguf", "-00001-of-00003.gguf", "m-00002-of-00003.gguf"] {
        let (text, kind, _) = refused(&[(name, typical(0, 3, 4, &["a"]))], name);
        let expected = "expected: a name like `NAME-00001-of-00003.gguf`";
        assert_eq!(text, format!("  the file name does not say which part it is\n  {expected}"), "{name}");
        assert_eq!(kind, ErrorKind::Misuse);
    }
}

#[test]
fn all_missing_parts_are_named() {
    let only = [("m-00001-of-00003.gguf", typical(0, 3, 4, &["d", "a"]))];
    let (text, kind, hint) = refused(&only, "m-00001-of-00003.gguf");
    let found = "no `m-00002-of-00003.gguf`, `m-00003-of-00003.gguf`";
    assert_eq!(text, format!("  parts are missing\n  expected: 3 files\n  found:    {found}"));
    assert_eq!((kind, hint.unwrap().as_str()), (ErrorKind::Io, "put all parts into one folder"));

    let many = [("m-00001-of-65535.gguf", typical(0, u16::MAX, 4, &["a"]))];
    assert!(refused(&many, "m-00001-of-65535.gguf").0.ends_with("`m-00011-of-65535.gguf` and 65524 more"));
}

#[test]
fn all_disagreements_come_at_once() {
    let mut files = three();
    files[1].1 = typical(2, 4, 5, &["a"]);
    files[2].1 = write(&Metadata::new(), &["b", "x"]);
    let (text, kind, _) = refused(&files, "m-00001-of-00003.gguf");
    let expected = "  key `split.no` of `m-00002-of-00003.gguf`\n  expected: 1\n  found:    2 (u16)
  key `split.count` of `m-00002-of-00003.gguf`\n  expected: 3\n  found:    4 (u16)
  key `split.tensors.count` of `m-00002-of-00003.gguf`\n  expected: 4\n  found:    5 (i32)
  key `split.no` of `m-00003-of-00003.gguf`\n  expected: 2\n  found:    no such key
  key `split.count` of `m-00003-of-00003.gguf`\n  expected: 3\n  found:    no such key
  key `split.tensors.count` of `m-00003-of-00003.gguf`\n  expected: 4\n  found:    no such key
  tensor `a` of `m-00002-of-00003.gguf` is in `m-00001-of-00003.gguf` too
  the parts do not hold all tensors, or too many\n  expected: 4 (split.tensors.count)\n  found:    5";
    assert_eq!((text.as_str(), kind), (expected, ErrorKind::Mismatch));
}

#[test]
fn numbers_out_of_range_are_refused() {
    let name = "m-00001-of-00003.gguf";
    for (no, count, expected) in [
        (MetaValue::U16(0), 65_536u32.into(), "key `split.count` of"),
        (MetaValue::U16(0), u64::MAX.into(), "key `split.count` of"),
        (MetaValue::U16(0), (-1i32).into(), "key `split.count` of"),
        (MetaValue::U16(0), "3".into(), "key `split.count` of"),
        (3u16.into(), 3u16.into(), "key `split.no` of"),
        ((-1i16).into(), 3u16.into(), "key `split.no` of"),
    ] {
        let (text, ..) = refused(&[(name, part(no, count, 1.into(), &["a"]))], name);
        assert!(text.trim_start().starts_with(expected), "{text}");
    }
    let mut files = three();
    files[0].1 = part(0u16.into(), 3u16.into(), "4".into(), &["d", "a"]);
    let (text, ..) = refused(&files, name);
    assert_eq!(text, format!("  key `split.tensors.count` of `{name}`\n  expected: an integer\n  found:    `4` (str)"));
}

#[test]
fn a_broken_part_is_named() {
    let mut files = three();
    files[2].1.truncate(50);
    let dir = folder(&files);
    let error = GgufModel::open(&dir.path().join("m-00001-of-00003.gguf")).unwrap_err();
    assert!(error.to_string().starts_with("cannot read `"), "{error}");
    assert!(error.to_string().contains("m-00003-of-00003.gguf`\n"), "{error}");
}

#[test]
fn what_is_wrong_with_the_malformed_fixtures_is_named() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/malformed/gguf");
    assert_eq!(GgufModel::open(&folder.join("base.gguf")).unwrap().tensors().count(), 3);
    for (name, expected) in [
        ("alignment-zero.gguf", "key `general.alignment`: expected a u32 power of two\n  found:    0 (u32)"),
        (
            "huge-counts.gguf",
            "tensor count: count 1152921504606846976 at offset 24 needs at least 38046409652025950208 bytes, but 840 remain",
        ),
        (
            "huge-dimension.gguf",
            "tensor `token_embd.weight`: its size does not fit in 64 bits\n  found:    [1152921504606846976, 32] as Q8_0",
        ),
        (
            "overlapping.gguf",
            "tensor `token_embd.weight`: its data overlaps `output_norm.weight`\n  \
             expected: an offset at or after 128\n  found:    96",
        ),
        (
            "missing-part-00001-of-00002.gguf",
            "parts are missing\n  expected: 2 files\n  found:    no `missing-part-00002-of-00002.gguf`",
        ),
    ] {
        let text = GgufModel::open(&folder.join(name)).unwrap_err().to_string();
        assert_eq!(text.split_once("\n  ").unwrap().1, expected);
    }
}
