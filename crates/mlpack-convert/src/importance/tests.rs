//! Both formats give what llama-quantize computes from them; what is wrong is found when the file is opened.

use super::*;
use mlpack_fs::ErrorKind;
use mlpack_gguf::{Layout, TensorSpec};
use mlpack_tensor::{GgmlType, MetaArray, Metadata};
use proptest::prelude::*;
use std::path::PathBuf;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/legal-qa/golden/llama.cpp-b11434")
}

fn both() -> [Importance; 2] {
    ["imatrix.gguf", "imatrix.dat"].map(|name| Importance::open(&golden().join(name)).unwrap())
}

fn open(bytes: &[u8]) -> Result<Importance, ImportanceError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("imatrix");
    std::fs::write(&path, bytes).unwrap();
    // The map outlives the name.
    Importance::open(&path)
}

/// What is wrong with a file, without the line that names it.
#[track_caller]
fn problems(bytes: &[u8]) -> String {
    let error = open(bytes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Malformed);
    let text = error.to_string();
    let (first, rest) = text.split_once('\n').unwrap();
    assert!(first.starts_with("cannot read ") && first.ends_with("/imatrix`"), "{first}");
    rest.to_owned()
}

fn all(importance: &Importance, name: &str) -> Vec<f32> {
    let i = importance.find(name).unwrap();
    let mut out = vec![7.0];
    importance.read(i, 0, importance.entry(i).value_count(), &mut out);
    out
}

/// A `.dat` file: entries of name, calls and sums, and what follows them.
fn dat(entries: &[(&str, i32, &[f32])], end: &[u8]) -> Vec<u8> {
    let mut bytes = (entries.len() as i32).to_le_bytes().to_vec();
    for (name, calls, sums) in entries {
        bytes.extend_from_slice(&(name.len() as i32).to_le_bytes());
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(&calls.to_le_bytes());
        bytes.extend_from_slice(&(sums.len() as i32).to_le_bytes());
        sums.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
    }
    bytes.extend_from_slice(end);
    bytes
}

fn keys() -> Metadata {
    let mut metadata = Metadata::new();
    metadata.set("general.type", "imatrix".into());
    metadata.set("imatrix.datasets", vec!["a.txt".to_owned(), "b.txt".to_owned()].into());
    metadata.set("imatrix.chunk_count", 3u32.into());
    metadata.set("imatrix.chunk_size", 512u32.into());
    metadata
}

/// A GGUF of float32 tensors: name, shape, values.
fn gguf(metadata: &Metadata, tensors: &[(&str, &[u64], &[f32])]) -> Vec<u8> {
    let spec = |(name, dims, _): &(&str, &[u64], &[f32])| TensorSpec {
        name: (*name).to_owned(),
        ty: GgmlType::F32,
        shape: (*dims).into(),
    };
    let layout = Layout::new(metadata, tensors.iter().map(spec).collect()).unwrap();
    let mut bytes = layout.header().to_vec();
    bytes.resize(layout.byte_len() as usize, 0);
    for (slot, (_, _, values)) in layout.tensors().iter().zip(tensors) {
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        bytes[slot.range.start as usize..slot.range.end as usize].copy_from_slice(&data);
    }
    bytes
}

#[test]
fn both_formats_of_a_real_matrix_give_the_values_that_numpy_computes() {
    // SHA-256 of all values, entries by name: sums through gguf-py (or struct), divided in numpy's float32.
    const VALUES: &str = "5501cc71a8acfca8ea6b77660031d27de17c02bdcefe5feda3d24e4de6e5f85b";
    for importance in both() {
        assert_eq!(importance.len(), 21);
        let mut bytes = Vec::new();
        for entry in importance.entries() {
            assert!(entry.unvisited.is_empty());
            all(&importance, &entry.name).iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
        }
        assert_eq!(bytes.len(), 6144 * 4);
        assert_eq!(Sha256::of(&bytes).to_string().trim_start_matches("sha256:"), VALUES);
        assert_eq!(importance.datasets(), ["gold/calib.txt"]);
        assert_eq!(importance.chunks(), 40);
    }
}

#[test]
fn the_digest_is_the_files() {
    #[allow(clippy::disallowed_methods, reason = "a test reads its fixture")]
    for importance in both() {
        assert_eq!(*importance.sha256(), Sha256::of(&std::fs::read(importance.path()).unwrap()));
    }
}

#[test]
fn keys_are_those_of_every_file_that_llama_quantize_made() {
    let [gguf, dat] = both();
    let mut compared = 0;
    for file in std::fs::read_dir(golden()).unwrap().map(|f| f.unwrap()) {
        if !file.file_name().to_string_lossy().starts_with("qi-") {
            continue;
        }
        #[allow(clippy::disallowed_methods, reason = "a test reads its fixture")]
        let made: serde_json::Value = serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap();
        let made = made["kv"].as_array().unwrap();
        let last = &made[made.len() - 4..];
        for (importance, name) in [(&gguf, "imatrix.gguf"), (&dat, "imatrix.gguf")] {
            for (ours, theirs) in importance.metadata_entries(name).iter().zip(last) {
                assert_eq!(ours.0, theirs["key"]);
                match &ours.1 {
                    MetaValue::U32(v) => {
                        assert_eq!((&theirs["type"][0], &theirs["value"]), (&"UINT32".into(), &(*v).into()))
                    }
                    MetaValue::String(v) => {
                        assert_eq!((&theirs["type"][0], &theirs["value"]), (&"STRING".into(), &v.as_str().into()));
                    }
                    other => panic!("{other}"),
                }
            }
            assert_eq!(importance.metadata_entries(name).len(), 4);
        }
        compared += 1;
    }
    assert_eq!(compared, 22);
}

#[test]
fn texts_in_keys_are_cut_like_c_strings_but_never_inside_a_character() {
    let [gguf, _] = both();
    let file = |text: &str| match gguf.metadata_entries(text).remove(0) {
        ("quantize.imatrix.file", MetaValue::String(text)) => text,
        other => panic!("{other:?}"),
    };
    assert_eq!(file(&"x".repeat(127)).len(), 127);
    assert_eq!(file(&"x".repeat(128)).len(), 127);
    // What llama-quantize writes for the same path.
    assert_eq!(file(&format!("{}/ééééééé.dat", "x".repeat(120))), format!("{}/ééé", "x".repeat(120)));
    // It would write half an é here.
    assert_eq!(file(&format!("{}/ééééééé.dat", "x".repeat(121))), format!("{}/éé", "x".repeat(121)));
}

#[test]
fn filters_leave_what_llama_quantize_counts() {
    let strings = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    // The counts are quantize.imatrix.entries_count of llama-quantize with the same options.
    for (include, exclude, count) in [
        (&["attn_q", "ffn"][..], &[][..], Some(12u32)),
        (&[], &["blk.1", "down"], Some(12)),
        (&["zzz"], &[], None),
        (&[], &[], Some(21)),
    ] {
        for mut importance in both() {
            importance.keep(&strings(include), &strings(exclude));
            let keys = importance.metadata_entries("imatrix");
            let found = keys.iter().find(|(key, _)| *key == "quantize.imatrix.entries_count");
            assert_eq!(found.map(|(_, v)| v.clone()), count.map(MetaValue::U32));
            assert_eq!((keys.is_empty(), importance.is_empty()), (count.is_none(), count.is_none()));
        }
    }
}

#[test]
fn a_name_that_is_not_there_is_not_found() {
    let [gguf, _] = both();
    assert_eq!(gguf.find("token_embd.weight"), None);
    assert!(gguf.find("blk.1.ffn_down.weight").is_some());
}

#[test]
fn experts_have_their_own_counts_and_unvisited_ones_are_ones() {
    let bytes = gguf(
        &keys(),
        &[
            ("up.in_sum2", &[4, 2], &[2.0, 4.0, 9.0, 9.0, 3.0, 6.0, 0.0, 8.0]),
            ("up.in_sum", &[4, 2], &[0.0; 8]),
            ("up.counts", &[4, 1], &[2.0, 0.0, 2.5, -1.0]),
            ("up.stats", &[1], &[f32::NAN]),
        ],
    );
    let importance = open(&bytes).unwrap();
    let i = importance.find("up").unwrap();
    let entry = importance.entry(i);
    assert_eq!((entry.value_count(), &entry.unvisited[..]), (8, &[1, 3][..]));
    // 2.5 is rounded away from zero.
    assert_eq!(all(&importance, "up"), [1.0, 2.0, 1.0, 1.0, 1.0, 2.0, 1.0, 1.0]);
    let mut out = Vec::new();
    importance.read(i, 2, 2, &mut out);
    assert_eq!(out, [1.0, 2.0]);
    assert_eq!(importance.datasets(), ["a.txt", "b.txt"]);
    let keys = importance.metadata_entries("m");
    assert_eq!(keys[1], ("quantize.imatrix.dataset", "a.txt".into()), "the first one only");
}

#[test]
fn a_dat_file_divides_by_its_calls_and_may_end_early() {
    let entries: &[(&str, i32, &[f32])] = &[("b", 3, &[1.0, 6.0]), ("a", 0, &[5.0]), ("c", -2, &[5.0])];
    let chunks = 7i32.to_le_bytes();
    let named = [&chunks[..], &5i32.to_le_bytes(), b"x.txt"].concat();
    let nameless = [&chunks[..], &0i32.to_le_bytes()].concat();
    for (end, count, datasets) in [(&[][..], 0, 0), (&chunks, 7, 0), (&nameless, 7, 0), (&named, 7, 1)] {
        let importance = open(&dat(entries, end)).unwrap();
        assert_eq!(importance.entries().iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(all(&importance, "b"), [1.0f32 / 3.0, 2.0]);
        assert_eq!(all(&importance, "a"), [5.0], "raw without calls");
        assert_eq!(all(&importance, "c"), [5.0], "raw with negative calls");
        assert_eq!((importance.chunks(), importance.datasets().len()), (count, datasets));
        assert_eq!(importance.metadata_entries("x").len(), 2 + datasets + usize::from(count > 0));
    }
}

#[test]
fn a_chunk_count_that_is_not_positive_is_not_written() {
    let mut metadata = keys();
    metadata.set("imatrix.chunk_count", u32::MAX.into());
    metadata.set("imatrix.datasets", MetaValue::Array(MetaArray::String(Vec::new())));
    let bytes = gguf(&metadata, &[("w.in_sum2", &[1], &[1.0]), ("w.counts", &[1], &[1.0])]);
    let importance = open(&bytes).unwrap();
    assert_eq!(importance.chunks(), -1, "as the reference's int32_t has it");
    assert_eq!(
        importance.metadata_entries("x").iter().map(|(key, _)| *key).collect::<Vec<_>>(),
        ["quantize.imatrix.file", "quantize.imatrix.entries_count"]
    );
}

#[test]
fn files_of_neither_format_are_named_as_such() {
    let error = open(b"PK\x03\x04 and so on").unwrap_err();
    let text = error.to_string();
    assert_eq!(
        text.split_once('\n').unwrap().1,
        "  expected: the output of llama-imatrix (GGUF, or .dat with a count of entries first)\n  \
         found:    14 bytes that begin with 50 4b 03 04 20 61 6e 64"
    );
    assert_eq!(error.hint().unwrap(), "give the file that llama-imatrix wrote for this model");
    let safetensors = [&0x1234u64.to_le_bytes()[..], &[b' '; 0x20000]].concat();
    for bytes in [&b""[..], b"abc", &[0; 64], &(-1i32).to_le_bytes(), &dat(&[], b""), &safetensors] {
        assert!(matches!(open(bytes), Err(ImportanceError::Neither { .. })), "{:?}", &bytes[..bytes.len().min(8)]);
    }
}

#[test]
fn lengths_and_counts_of_a_dat_file_are_checked_before_anything_is_allocated() {
    let good = dat(&[("abc", 2, &[1.0, 2.0]), ("d", 2, &[1.0])], &[]);
    let with = |at: usize, value: i32| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        problems(&bytes)
    };
    let values = 4 + 4 + 3 + 4;
    assert_eq!(with(values, i32::MAX), "  entry `abc`: needs 8589934588 bytes at offset 19, but 25 remain");
    assert_eq!(with(values, -1), "  entry `abc`: it has no values\n  expected: at least 1\n  found:    -1");
    let second = values + 4 + 8;
    assert_eq!(with(second, -9), "  entry 2 of 2: a text of -9 bytes\n  expected: 1 to 1024");
    assert_eq!(with(second, i32::MAX), "  entry 2 of 2: a text of 2147483647 bytes\n  expected: 1 to 1024");
    assert_eq!(with(second, 1000), "  entry 2 of 2: needs 1000 bytes at offset 31, but 13 remain");
}

#[test]
fn truncated_dat_files_and_bytes_after_the_end_are_refused() {
    let good = dat(&[("abc", 2, &[1.0, 2.0])], &[&7i32.to_le_bytes()[..], &5i32.to_le_bytes(), b"x.txt"].concat());
    assert!(open(&good).is_ok());
    // After the entries, and after the chunk count, a file may end.
    let whole = [good.len() - 13, good.len() - 9, good.len()];
    for len in (0..good.len()).filter(|len| !whole.contains(len)) {
        assert!(open(&good[..len]).is_err(), "{len}");
    }
    let cut = problems(&good[..good.len() - 1]);
    assert_eq!(cut, format!("  dataset: needs 5 bytes at offset {}, but 4 remain", good.len() - 5));
    let long = problems(&[&good[..], b"??"].concat());
    let end = good.len();
    assert_eq!(
        long,
        format!("  bytes after the end\n  expected: the end of the file at offset {end}\n  found:    2 more bytes")
    );
    let hint = open(&good[..good.len() - 1]).unwrap_err().hint().unwrap();
    assert_eq!(hint, "the file may be truncated; compare its sha256 with the published one");
}

#[test]
fn all_problems_of_a_dat_file_come_at_once() {
    let bytes = dat(&[("a\n", 1, &[1.0, f32::NAN]), ("b", 1, &[f32::NEG_INFINITY]), ("b", 1, &[1.0])], b"?");
    assert_eq!(
        problems(&bytes),
        "  chunk count: needs 4 bytes at offset 60, but 1 remain\n  \
         entry `b`: occurs twice\n  \
         entry `a\\u{a}`: a sum is not finite\n  expected: finite sums\n  found:    NaN at value 1\n  \
         entry `b`: a sum is not finite\n  expected: finite sums\n  found:    -inf at value 0"
    );
}

#[test]
fn names_that_are_not_text_are_refused() {
    for name in ["a\0b".as_bytes(), b"\xff\xfe"] {
        let mut bytes = dat(&[("abc", 1, &[1.0]), (&"x".repeat(name.len()), 1, &[1.0])], b"");
        let at = bytes.len() - 12 - name.len();
        bytes[at..at + name.len()].copy_from_slice(name);
        assert_eq!(problems(&bytes), "  entry 2 of 2: not text\n  expected: UTF-8 without zero bytes");
    }
}

#[test]
fn all_problems_of_a_gguf_file_come_at_once() {
    let mut metadata = keys();
    metadata.remove("imatrix.chunk_size");
    metadata.set("imatrix.chunk_count", "many".into());
    metadata.set("imatrix.datasets", vec![1u8].into());
    let bytes = gguf(
        &metadata,
        &[
            ("a.in_sum2", &[2], &[1.0, 2.0]),
            ("b.counts", &[1], &[1.0]),
            ("c.in_sum2", &[6], &[1.0; 6]),
            ("c.counts", &[4], &[1.0; 4]),
            ("d.in_sum2", &[2], &[1.0, 2.0]),
            ("d.in_sum", &[3], &[1.0; 3]),
            ("d.counts", &[1], &[1.0]),
            ("e.in_sum2", &[2], &[1.0, f32::INFINITY]),
            ("e.counts", &[1], &[1.0]),
            ("f.in_sum2", &[2], &[1.0, 1.0]),
            ("f.counts", &[2], &[1.0, f32::NAN]),
            ("g.in_sum2", &[0], &[]),
            ("g.counts", &[1], &[1.0]),
        ],
    );
    let text = problems(&bytes);
    let expected = "  key `imatrix.datasets`: of the wrong type\n  expected: array of str\n  found:    array
  key `imatrix.chunk_count`: of the wrong type\n  expected: u32\n  found:    str
  key `imatrix.chunk_size`: missing\n  expected: u32
  entry `a`: sums and counts do not go together\n  expected: a tensor `a.counts`\n  found:    none
  entry `b`: sums and counts do not go together\n  expected: a tensor `b.in_sum2`\n  found:    none
  entry `c`: sums and counts do not go together
  expected: a count for each of a number of equal parts of 6 sums\n  found:    4 counts
  entry `d`: sums and sums of squares do not go together\n  expected: 2 sums\n  found:    3
  entry `f`: not a count\n  expected: a finite number below 2^63\n  found:    NaN for expert 1
  entry `g`: it has no values\n  expected: at least 1\n  found:    0
  entry `e`: a sum is not finite\n  expected: finite sums\n  found:    inf at value 1";
    assert_eq!(text, expected);
}

#[test]
fn a_model_and_a_matrix_of_another_type_are_refused() {
    let mut model = Metadata::new();
    model.set("general.architecture", "llama".into());
    let text = problems(&gguf(&model, &[("output.weight", &[1], &[1.0])]));
    assert!(text.contains("key `imatrix.datasets`: missing"), "{text}");
    assert!(
        text.ends_with("no entries\n  expected: tensors named *.in_sum2 and *.counts\n  found:    none of 1 tensors")
    );

    let half = TensorSpec { name: "w.in_sum2".into(), ty: GgmlType::F16, shape: [2][..].into() };
    let counts = TensorSpec { name: "w.counts".into(), ty: GgmlType::F32, shape: [1][..].into() };
    let layout = Layout::new(&keys(), vec![half, counts]).unwrap();
    let mut bytes = layout.header().to_vec();
    bytes.resize(layout.byte_len() as usize, 0);
    assert_eq!(problems(&bytes), "  tensor `w.in_sum2`: of the wrong type\n  expected: F32\n  found:    F16");
}

#[test]
fn a_damaged_gguf_is_refused_by_its_own_reader() {
    let mut bytes = gguf(&keys(), &[("w.in_sum2", &[1], &[1.0]), ("w.counts", &[1], &[1.0])]);
    bytes.truncate(200);
    let error = open(&bytes).unwrap_err();
    assert!(matches!(error, ImportanceError::Gguf(_)), "{error}");
    assert_eq!(error.kind(), ErrorKind::Malformed);
}

#[test]
fn a_file_that_is_not_there_is_the_environments_fault() {
    let error = Importance::open(&golden().join("absent.dat")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
}

#[test]
fn what_is_wrong_with_the_malformed_fixtures_is_named() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/malformed/imatrix");
    for (name, expected) in [
        (
            "not-finite.gguf",
            "entry `blk.0.attn_q.weight`: a sum is not finite\n  expected: finite sums\n  found:    NaN at value 255",
        ),
        (
            "no-metadata.gguf",
            "key `imatrix.datasets`: missing\n  expected: array of str\n  \
             key `imatrix.chunk_count`: missing\n  expected: u32\n  key `imatrix.chunk_size`: missing\n  expected: u32",
        ),
        ("truncated.dat", "entry `blk.0.attn_q.weight`: needs 1024 bytes at offset 35, but 1018 remain"),
    ] {
        let text = Importance::open(&folder.join(name)).unwrap_err().to_string();
        assert_eq!(text.split_once("\n  ").unwrap().1, expected);
    }
    let short = Importance::open(&folder.join("wrong-size.gguf")).unwrap();
    assert_eq!(short.entry(0).value_count(), 128, "sound in itself");
}

/// One way to damage a file.
#[derive(Clone, Debug)]
enum Damage {
    Byte(usize, u8),
    Number(usize, i32),
    Huge(usize, u64),
    Cut(usize),
    Splice(usize, usize, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let huge = prop_oneof![Just(u64::MAX), Just(1 << 60), Just(1 << 40), Just(1 << 31), Just(u64::MAX / 4)];
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        (any::<usize>(), any::<i32>()).prop_map(|(at, number)| Damage::Number(at, number)),
        (any::<usize>(), huge).prop_map(|(at, number)| Damage::Huge(at, number)),
        any::<usize>().prop_map(Damage::Cut),
        (any::<usize>(), any::<usize>(), 1usize..64).prop_map(|(from, to, len)| Damage::Splice(from, to, len)),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    let len = bytes.len();
    let mut put = |at: usize, new: &[u8]| {
        let at = at % len;
        let n = new.len().min(len - at);
        bytes[at..at + n].copy_from_slice(&new[..n]);
    };
    match *damage {
        Damage::Byte(at, byte) => put(at, &[byte]),
        Damage::Number(at, number) => put(at, &number.to_le_bytes()),
        Damage::Huge(at, number) => put(at, &number.to_le_bytes()),
        Damage::Cut(at) => bytes.truncate(at % len),
        Damage::Splice(from, to, n) => {
            let piece: Vec<u8> = bytes[from % len..].iter().take(n).copied().collect();
            bytes.splice(to % len..to % len, piece);
        }
    }
}

proptest! {
    #[test]
    fn a_damaged_file_is_an_error_or_finite_values_inside_it(
        is_gguf in any::<bool>(),
        damage in proptest::collection::vec(damage(), 1..4),
    ) {
        let mut bytes = if is_gguf {
            let sums: &[f32] = &[2.0, 4.0, 9.0, 9.0];
            gguf(&keys(), &[("up.in_sum2", &[2, 2], sums), ("up.counts", &[2, 1], &[2.0, 0.0]), ("x.counts", &[1], &[1.0]), ("x.in_sum2", &[1], &[3.0])])
        } else {
            let end = [&7i32.to_le_bytes()[..], &5i32.to_le_bytes(), b"x.txt"].concat();
            dat(&[("abc", 2, &[1.0, 2.0]), ("d", 0, &[1.0])], &end)
        };
        for damage in &damage {
            if !bytes.is_empty() {
                apply(&mut bytes, damage);
            }
        }
        match open(&bytes) {
            Err(error) => prop_assert!(error.to_string().starts_with("cannot read ")),
            Ok(importance) => {
                let mut values = Vec::new();
                for (i, entry) in importance.entries().iter().enumerate() {
                    prop_assert!(entry.value_count() * 4 <= bytes.len());
                    importance.read(i, 0, entry.value_count(), &mut values);
                    prop_assert_eq!(values.len(), entry.value_count());
                    prop_assert!(values.iter().all(|v| v.is_finite()));
                }
            }
        }
    }
}
